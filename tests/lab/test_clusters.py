"""The engines themselves on this machine: workers killed, a scheduler restarted, the same bits as in one process."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

import natal
from conftest import forgetting, tiny, toml, trainings
from natal.errors import _installed
from natal.lab.run import Silent
from natal.reading import report

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("no_report")]

MORTAL = '''
import os, signal
from contextlib import suppress
from pathlib import Path
import natal

@natal.criterion("mortal")
def mortal(problem):
    """Magnitude, but whoever finds a file DIE takes it away and dies."""
    with suppress(FileNotFoundError):
        Path(__file__).with_name("DIE").unlink()
        os.kill(os.getpid(), signal.SIGKILL)
    return {n: w.abs() for n, w in problem.weights.items()}
'''
CHAIN = {"name": "imp", "criterion": "mortal", "at": "end", "rewind": "init", "rounds": "levels"}
STUDY = tiny(strategies=[CHAIN, "random", "structured"], seeds=[1, 2, 3], plugins=["mortal"])
"""27 rows, 21 trainings: chains of three, and cuts at birth.

No chain is cut before something is stored: then a job that is still to come can be told to die.
"""


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The study's file, beside its plugin."""
    folder = tmp_path_factory.mktemp("mortal")
    (folder / "mortal.py").write_text(MORTAL)
    (folder / "study.toml").write_text(toml(STUDY))
    with forgetting(folder):
        yield folder / "study.toml"


@pytest.fixture(scope="module")
def inline(study: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[object, ...]]:
    """What the study comes to in this very process."""
    out = tmp_path_factory.mktemp("inline")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report, "write", lambda *_, **__: [])
        natal.run(study, out, on="inline")
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
    """Return a port that is free, and that no system gives to whoever asks for any before a scheduler has taken it."""
    for port in range(20_000 + os.getpid() % 10_000, 32_000):
        with socket.socket() as listener, suppress(OSError):
            listener.bind(("127.0.0.1", port))
            return port
    raise AssertionError("no port is free")


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
        tmp_path: Path, study: Path, inline: dict[str, Any], cluster: Cluster
    ) -> None:
        watcher = At(_3=cluster.kill_a_worker, _12=cluster.restart)
        results = natal.run(
            study, tmp_path / "out", on="dask", options={"address": cluster.address}, watcher=watcher
        )
        assert trainings(tmp_path / "out") == inline
        assert watcher.heard == list(range(1, 28))
        assert results.failed == []


# -- Ray ---------------------------------------------------------------------------------------------------------------


if not missing("ray"):

    @pytest.mark.ray
    def test_ray_loses_a_worker_and_no_bit(tmp_path: Path, study: Path, inline: dict[str, Any]) -> None:
        import ray

        die = study.with_name("DIE")

        ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
        try:
            watcher = At(_1=die.touch)
            results = natal.run(study, tmp_path / "out", on="ray", watcher=watcher)
            assert ray.is_initialized()  # whoever begins it ends it
        finally:
            ray.shutdown()
        assert not die.exists()
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


if not missing("submitit"):

    @pytest.mark.slurm
    def test_slurm_loses_a_job_and_the_command_and_no_bit(
        started: Any,
        tmp_path: Path,
        study: Path,
        inline: dict[str, Any],
        slurm: str,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr("natal.lab.executors.slurm.ASK", 1.0)
        out, die, heard = tmp_path / "results", study.with_name("DIE"), list[int]()

        class TellsAJobToDie(Silent):
            def finished(self, position: int, run: Any, outcome: Any, field: str) -> None:
                if not heard:
                    die.touch()
                heard.append(position)

        if slurm == "slurm":  # submitit's local jobs end with whoever began them
            command = started("run", study, "--on", "slurm", "--jobs", "2", "--time", "10m", pause=1)
            command.until_paused()
            command.end(signal.SIGKILL)
            while jobs_of_slurm():  # they go on without it
                time.sleep(0.1)
            assert 0 < len(trainings(out)) < len(inline)
            assert list(out.glob("slurm/*.came"))
        options = {"cluster": slurm, "jobs": 2}
        results = natal.run(study, out, on="slurm", options=options, watcher=TellsAJobToDie())
        assert trainings(out) == inline
        assert not die.exists()
        assert heard[-1] == 27
        assert results.failed == []
        assert not (out / "slurm").exists()
