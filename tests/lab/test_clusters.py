"""The engines themselves on this machine: workers killed, a scheduler restarted, the same bits as in one process."""

from __future__ import annotations

import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

import natal
from conftest import tiny, toml, trainings
from natal.errors import _installed
from natal.lab.run import Silent
from natal.reading import report

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("no_report")]

CHAIN = {"name": "imp", "criterion": "magnitude", "at": "end", "rewind": "init", "rounds": "levels"}
STUDY = tiny(strategies=[CHAIN, "random", "structured"], seeds=[1, 2, 3])
"""27 rows, 21 trainings: chains of three, and cuts at birth."""


@pytest.fixture(scope="module")
def inline(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[object, ...]]:
    """What the study comes to in this very process."""
    out = tmp_path_factory.mktemp("inline")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report, "write", lambda *_, **__: [])
        natal.run(STUDY, out, on="inline")
    return trainings(out)


class At(Silent):
    """A watcher that does something when certain numbers of rows are stored."""

    def __init__(self, **what: Any) -> None:
        self.what = {int(position[1:]): do for position, do in what.items()}
        self.heard: list[int] = []

    def finished(self, position: int, run: Any, outcome: Any, field: str) -> None:
        self.heard.append(position)
        if position in self.what:
            self.what[position]()


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def missing(package: str) -> bool:
    """Say in one line that an engine is not there, instead of skipping its tests in silence."""
    if _installed(package):
        return False
    print(f"{package} is not installed here: --on is not tried on it", file=sys.stderr)
    return True


# -- Dask --------------------------------------------------------------------------------------------------------------


class Cluster:
    """A Dask scheduler and workers over TCP, each a process."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.port = folder, free_port()
        self.address = f"tcp://127.0.0.1:{self.port}"
        self.scheduler = self._start("dask_scheduler", "--host", "127.0.0.1", "--port", str(self.port))
        self.workers = [self.worker(), self.worker()]

    def worker(self) -> subprocess.Popen[bytes]:
        return self._start(
            "dask_worker", self.address, "--nthreads", "1", "--no-nanny", "--host", "127.0.0.1"
        )

    def _start(self, program: str, *words: str) -> subprocess.Popen[bytes]:
        log = (self.folder / "dask.log").open("ab")
        command = [sys.executable, "-m", f"distributed.cli.{program}", *words, "--no-dashboard"]
        return subprocess.Popen(command, cwd=self.folder, stdout=log, stderr=log)

    def kill_a_worker(self) -> None:
        self.workers[0].kill()
        self.workers.append(self.worker())

    def restart(self) -> None:
        """Kill the scheduler, which takes its workers with it, and start all anew at the same address."""
        self.stop()
        self.scheduler = self._start("dask_scheduler", "--host", "127.0.0.1", "--port", str(self.port))
        self.workers = [self.worker(), self.worker()]

    def stop(self) -> None:
        for process in (self.scheduler, *self.workers):
            process.kill()
            process.wait()


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    started = Cluster(tmp_path)
    yield started
    started.stop()


if not missing("distributed"):

    @pytest.mark.dask
    def test_dask_loses_workers_and_its_scheduler_and_no_bit(
        tmp_path: Path, inline: dict[str, Any], cluster: Cluster
    ) -> None:
        watcher = At(_3=cluster.kill_a_worker, _12=cluster.restart)
        results = natal.run(
            STUDY, tmp_path / "out", on="dask", options={"address": cluster.address}, watcher=watcher
        )
        assert trainings(tmp_path / "out") == inline
        assert watcher.heard == list(range(1, 28))
        assert results.failed == []


# -- Ray ---------------------------------------------------------------------------------------------------------------


def kill_a_ray_worker() -> None:
    """Kill a process that is at a job of natal's, or has been."""
    children = psutil.Process().children(recursive=True)
    busy = [p for p in children if p.name() in ("ray::_call", "ray::IDLE")]
    assert busy, "no process of Ray's is at work"
    busy[0].kill()


if not missing("ray"):

    @pytest.mark.ray
    def test_ray_loses_a_worker_and_no_bit(tmp_path: Path, inline: dict[str, Any]) -> None:
        import ray

        ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
        try:
            watcher = At(_3=kill_a_ray_worker)
            results = natal.run(STUDY, tmp_path / "out", on="ray", watcher=watcher)
            assert ray.is_initialized()  # whoever begins it ends it
        finally:
            ray.shutdown()
        assert trainings(tmp_path / "out") == inline
        assert watcher.heard == list(range(1, 28))
        assert results.failed == []


# -- Slurm -------------------------------------------------------------------------------------------------------------


NODE = Path(__file__).parents[2] / "tools" / "slurm_node.sh"


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A whole Slurm on this machine, as ``slurm``; where it does not start, ``local``, after saying so in one line."""
    place = Path(tempfile.mkdtemp(prefix="natal-slurm-", dir="/tmp"))
    monkeypatch.setenv("NATAL_SLURM", str(place))
    monkeypatch.setenv("SLURM_CONF", str(place / "slurm.conf"))
    if subprocess.run([NODE, "up"], stdout=subprocess.DEVNULL, check=False).returncode:
        print("Slurm's jobs are played by submitit's local executor", file=sys.stderr)
        yield "local"
    else:
        yield "slurm"
        subprocess.run([NODE, "down"], check=True)
    shutil.rmtree(place, ignore_errors=True)


def jobs_of_slurm() -> list[str]:
    listed = subprocess.run(["squeue", "-h", "-o", "%A"], capture_output=True, text=True, check=True)
    return listed.stdout.split()


class KillsAJob(Silent):
    """A watcher that kills the first job of Slurm's or submitit's that it sees at work when a row is stored."""

    def __init__(self, cluster: str) -> None:
        self.cluster, self.killed = cluster, False
        self.heard: list[int] = []

    def finished(self, position: int, run: Any, outcome: Any, field: str) -> None:
        self.heard.append(position)
        if self.killed:
            return
        if self.cluster == "slurm":
            for job in jobs_of_slurm()[:1]:
                subprocess.run(["scancel", "--signal=KILL", job], check=True)
                self.killed = True
            return
        every = psutil.Process().children(recursive=True)
        for process in [p for p in every if "submitit.core._submit" in p.cmdline()][-1:]:
            process.kill()
            self.killed = True


if not missing("submitit"):

    @pytest.mark.slurm
    def test_slurm_loses_a_job_and_the_command_and_no_bit(
        started: Any, tmp_path: Path, inline: dict[str, Any], slurm: str
    ) -> None:
        out = tmp_path / "results"
        if slurm == "slurm":  # submitit's local jobs end with whoever began them
            (tmp_path / "study.toml").write_text(toml(STUDY))
            command = started("run", "study.toml", "--on", "slurm", "--jobs", "2", "--time", "10m")
            command.wait_for(1)
            assert command.lines(), command.errors.read_text()
            command.end(signal.SIGKILL)
            while jobs_of_slurm():  # they go on without it
                time.sleep(0.1)
            assert 0 < len(trainings(out)) < len(inline)
            assert list(out.glob("slurm/*.came"))
        watcher = KillsAJob(slurm)
        options = {"cluster": slurm, "jobs": 2}
        results = natal.run(STUDY, out, on="slurm", options=options, watcher=watcher)
        assert trainings(out) == inline
        assert watcher.killed
        assert watcher.heard[-1] == 27
        assert results.failed == []
        assert not (out / "slurm").exists()
