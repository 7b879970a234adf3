"""The same study on any executor: the same bits, whoever dies; what kills its workers is recorded."""

from __future__ import annotations

import multiprocessing
import multiprocessing.forkserver
import os
import pickle
import signal
import subprocess
import sys
from concurrent.futures import BrokenExecutor, Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import natal
from conftest import tiny, toml, trainings
from natal import NatalError
from natal.lab import drive, parcel, worker
from natal.lab.engines import Pending
from natal.lab.executors import processes
from natal.lab.executors.simulated import Simulated
from natal.lab.parcel import Brief, Parcel, unpack, work
from natal.lab.run import Silent
from natal.lab.worker import Made
from natal.reading import report
from natal.reading.results import Results
from natal.store import Store

CHAIN = {"name": "imp", "criterion": "magnitude", "at": "end", "rewind": "init", "rounds": "levels"}
STUDY = tiny(strategies=[CHAIN, "random"], seeds=[1, 2])
"""12 rows, 10 trainings: a chain of three, and cuts at birth."""


@pytest.fixture(scope="module")
def inline(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[object, ...]]:
    """What the study comes to in this very process."""
    out = tmp_path_factory.mktemp("inline")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report, "write", lambda *_, **__: [])
        natal.run(STUDY, out, on="inline")
    return trainings(out)


@pytest.mark.usefixtures("no_report")
def test_any_executor_gives_the_bits_of_none(tmp_path: Path, inline: dict[str, Any]) -> None:
    sent: list[Parcel] = []

    class Posting(ThreadPoolExecutor):
        """Threads that get and give what a network would carry."""

        def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
            sent.extend(args)
            packed = pickle.dumps((fn, args))
            return super().submit(lambda: (call := pickle.loads(packed))[0](*call[1]))

    with Posting(2) as executor:
        results = natal.run(STUDY, tmp_path, on=executor)
        assert executor.submit(len, "natal leaves it open").result() == 20
    assert trainings(tmp_path) == inline
    assert results.manifest["workers"] == 2
    # all threads are one worker, which is told what all jobs have in common when it is made ready, and twice more
    whole = [one for one in sent[:-1] if one.content is not None]
    assert len(whole) == 3
    assert len(sent) > 5


def test_a_worker_that_does_not_know_the_brief_sends_the_parcel_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parcel, "_known", {})
    study = natal.load_study(STUDY)
    brief = Brief(study, ["compiled"], "cpu", "")
    assert work(brief.parcel(None, whole=False)) == parcel.UNKNOWN
    assert unpack(work(brief.parcel(None, whole=True))) == []
    assert unpack(work(brief.parcel(None, whole=False))) == []


@pytest.mark.usefixtures("forgotten")
def test_a_worker_of_another_version_refuses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parcel, "_known", {})
    (tmp_path / "own_part.py").write_text("PART = 1\n")
    (tmp_path / "study.toml").write_text(toml(tiny(plugins=["own_part"])))
    study = natal.load_study(tmp_path / "study.toml")
    monkeypatch.setattr(sys, "path", [*sys.path])
    worker.load_plugins(study)
    brief = Brief(study, ["compiled"], "cpu", "").parcel(None, whole=True)
    there = parcel.versions()
    monkeypatch.setattr(parcel, "versions", lambda: {**there, "torch": "1.0"})
    with pytest.raises(
        NatalError, match=r"a worker on '.*' has torch 1\.0, the command 2\..*; install the same"
    ):
        work(brief)
    monkeypatch.setattr(parcel, "versions", lambda: there)
    (tmp_path / "own_part.py").write_text("PART = 2\n")
    with pytest.raises(
        NatalError, match="has another version of plugin 'own_part'; copy the file, and start"
    ):
        work(brief)
    (tmp_path / "own_part.py").unlink()
    del sys.modules["own_part"]
    with pytest.raises(
        NatalError, match=r"a worker on '.*' is not ready: plugin 'own_part' does not import: Mod"
    ):
        work(brief)


@pytest.mark.parametrize(
    ("on", "options", "words"),
    [
        ("dusk", {}, "unknown executor 'dusk'; did you mean 'dask'"),
        ("inline", {"address": "tcp://x:1"}, "--address goes with --on dask or ray, not with inline"),
        ("slurm", {"adress": "x"}, "executors have no option 'adress'; did you mean 'address'"),
        (
            ThreadPoolExecutor,
            {},
            "name one of processes, inline, dask, ray, slurm, or give an executor of concurrent",
        ),
        (object(), {}, "name one of processes, inline, dask, ray, slurm, or give an executor of concurrent"),
    ],
)
def test_an_executor_that_is_none_is_refused(tmp_path: Path, on: Any, options: Any, words: str) -> None:
    with pytest.raises(NatalError, match=words):
        natal.run(STUDY, tmp_path / "out", on=on, options=options)
    assert not (tmp_path / "out").exists()


def test_an_engine_that_is_not_installed_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(NatalError, match=r"distributed, which is not installed: pip install 'natal\[dask\]'"):
        natal.run(STUDY, tmp_path / "out", on="dask")


# -- deaths ------------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("no_report")
def test_a_hundred_workers_that_die_lose_and_double_nothing(tmp_path: Path, tiny_results: Results) -> None:
    with Store.read(tiny_results.directory) as store:
        outcome = next(iter(store.outcomes(sorted(store.finished())[:1])))
    study = tiny(seeds=list(range(1, 41)))
    planned = natal.plan(study, tmp_path)
    poisoned = [training.key for training in planned.pending[::97]]
    made: list[str] = []

    def make(training: Pending) -> Made:
        made.append(training.key)
        return Made(replace(outcome, key=training.key))

    heard: list[int] = []

    class Notes(Silent):
        def finished(self, position: int, run: Any, outcome: Any, field: str) -> None:
            heard.append(position)

    executor = Simulated(100, make, deaths=0.05, poisoned=poisoned, seed=7)
    results = natal.run(study, tmp_path, on=executor, watcher=Notes())
    with Store.read(tmp_path) as store:
        assert store.finished() == {training.key for training in planned.pending} - set(poisoned)
        assert set(store.failures()) == set(poisoned)
    assert len(made) == len(set(made)) == len(planned.pending) - len(poisoned)
    assert heard == list(range(1, len(heard) + 1))
    assert len(results.runs) == len(heard) == 360 - len(results.failed)
    assert executor.died > drive.KILLS * len(poisoned)
    reason = f"its worker died {drive.KILLS} times while it trained this run alone; is memory short?"
    assert {failure.reason for _, failure in results.failed} == {reason}


@pytest.mark.usefixtures("no_report")
def test_workers_that_only_die_are_given_up(tmp_path: Path) -> None:
    def make(training: Pending) -> Made:
        raise AssertionError("nothing comes of it")

    study = tiny(seeds=[1, 2, 3])
    keys = [training.key for training in natal.plan(study, tmp_path).pending]
    with pytest.raises(
        NatalError, match="10 runs have killed their workers and none has finished, last task="
    ):
        natal.run(study, tmp_path, on=Simulated(3, make, poisoned=keys))
    with pytest.raises(NatalError, match="workers died 3 times before they trained anything"):
        natal.run(study, tmp_path, on=Simulated(3, make, deaths=1.0))


DEADLY = '''
import multiprocessing, os, signal, natal

@natal.criterion("deadly")
def deadly(problem):
    """Magnitude, but of one run a worker dies, as one out of memory does."""
    if multiprocessing.parent_process() is not None and (problem.seed, problem.sparsity) == (2, 0.5):
        os.kill(os.getpid(), signal.SIGKILL)
    return {n: w.abs() for n, w in problem.weights.items()}
'''


@pytest.mark.slow
@pytest.mark.usefixtures("forgotten", "no_report")
def test_a_run_that_kills_its_worker_is_recorded_and_no_other_lost(tmp_path: Path) -> None:
    (tmp_path / "deadly.py").write_text(DEADLY)
    (tmp_path / "study.toml").write_text(toml(tiny(strategies=["deadly", "random"], plugins=["deadly"])))
    natal.run(tmp_path / "study.toml", tmp_path / "whole", on="inline")
    results = natal.run(tmp_path / "study.toml", tmp_path / "out", workers=2)
    ((run, failure),) = results.failed
    assert (run.strategy, run.seed, run.sparsity) == ("deadly", 2, 0.5)
    assert failure.reason.startswith("its worker died 3 times while it trained this run alone")
    whole, made = trainings(tmp_path / "whole"), trainings(tmp_path / "out")
    assert made == {key: row for key, row in whole.items() if key != failure.key}
    assert natal.run(tmp_path / "study.toml", tmp_path / "out", on="inline").failed == []
    assert trainings(tmp_path / "out") == whole


# -- processes ---------------------------------------------------------------------------------------------------------


def _as_a_pool_worker(out: str) -> tuple[int, str]:
    try:
        natal.run(tiny(seeds=[1]), out, workers=2)
    except NatalError as error:
        return natal.plan(tiny(seeds=[1]), out).workers, str(error)
    raise AssertionError("two workers under a worker")


def test_inside_a_worker_of_a_pool_a_study_trains_in_that_process(tmp_path: Path) -> None:
    with processes._context.Pool(1) as pool:
        workers, said = pool.apply(_as_a_pool_worker, (str(tmp_path / "out"),))
    assert workers == 1
    assert said.startswith(
        "workers=2: this process is itself a worker of multiprocessing.Pool, which may start no"
    )


def test_what_the_system_says_when_no_process_starts_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def too_long(*_: object) -> None:
        raise OSError("AF_UNIX path too long")

    monkeypatch.setattr(multiprocessing.forkserver, "ensure_running", too_long)
    with pytest.raises(
        NatalError, match="worker processes cannot be started: AF_UNIX path too long; try --workers 1"
    ):
        natal.run(tiny(seeds=[1]), tmp_path / "out", workers=2)


SHADOWS = ("natal", "numba", "pydantic", "multiprocessing", "torch", "sklearn")


@pytest.mark.slow
def test_nothing_in_the_current_directory_is_taken_for_a_library(tmp_path: Path) -> None:
    for name in SHADOWS:
        (tmp_path / f"{name}.py").write_text(f"open({str(tmp_path / 'TAKEN')!r}, 'a').write('{name}\\n')\n")
    (tmp_path / "own_one.py").write_text("import own_helper\n")
    (tmp_path / "own_helper.py").write_text("")
    (tmp_path / "study.toml").write_text(toml(tiny(plugins=["own_one"])))
    command = Path(sys.executable).with_name("natal")
    done = subprocess.run(
        [command, "run", "study.toml", "--workers", "2", "--quiet"], cwd=tmp_path, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr, done.stdout) == (0, "", "")
    assert not (tmp_path / "TAKEN").exists()


@pytest.mark.slow
@pytest.mark.usefixtures("no_report")
def test_a_fork_server_that_is_killed_is_started_again(tmp_path: Path, inline: dict[str, Any]) -> None:
    class Assassin(Silent):
        heard = 0

        def finished(self, position: int, run: Any, outcome: Any, field: str) -> None:
            Assassin.heard += 1
            if position in (1, 4):
                os.kill(multiprocessing.forkserver._forkserver._forkserver_pid, 9)  # type: ignore[attr-defined]
                for child in multiprocessing.active_children():
                    child.kill()

    natal.run(STUDY, tmp_path, workers=2, watcher=Assassin())
    assert trainings(tmp_path) == inline
    assert Assassin.heard == 12


@pytest.mark.slow
@pytest.mark.usefixtures("no_report")
def test_where_there_is_no_fork_server_workers_are_spawned(
    tmp_path: Path, inline: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "_context", multiprocessing.get_context("spawn"))
    natal.run(STUDY, tmp_path, workers=2)
    assert trainings(tmp_path) == inline


@pytest.mark.usefixtures("no_report")
@pytest.mark.parametrize(
    "said", [OSError(11, "no more threads"), BrokenExecutor("gone"), ZeroDivisionError("a\nb")]
)
def test_an_executor_that_takes_no_more_is_one_line(tmp_path: Path, said: Exception) -> None:
    class Reluctant(ThreadPoolExecutor):
        taken = 0

        def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
            self.taken += 1
            if self.taken > 2:  # the first makes a worker ready
                raise said
            return super().submit(fn, *args, **kwargs)

    with (
        Reluctant(1) as executor,
        pytest.raises(NatalError, match="the executor takes no more jobs") as refusal,
    ):
        natal.run(STUDY, tmp_path, on=executor)
    assert "\n" not in str(refusal.value)
    natal.run(STUDY, tmp_path, on="inline")
    assert len(trainings(tmp_path)) == 10


def _finished(what: Any) -> Future[Any]:
    future: Future[Any] = Future()
    future.set_result(what)
    return future


def _cancelled() -> Future[Any]:
    future: Future[Any] = Future()
    future.cancel()
    future.set_running_or_notify_cancel()
    return future


ONE = _finished(parcel.pack([]))
NONSENSE: dict[str, tuple[Any, str]] = {
    "no future": (lambda: None, "gave None for a job, no future"),
    "what it came to": (lambda: parcel.pack([]), "gave an object of type bytes for a job, no future"),
    "none": (lambda: _finished(None), "gave back None, which is not what the function that it was handed returns"),
    "text": (lambda: _finished("done"), "gave back an object of type str, which is not what the function"),
    "nothing": (lambda: _finished(b""), "gave back an object of type bytes, which is not what the function"),
    "others": (lambda: _finished(pickle.dumps(7)), "gave back an object of type bytes, which is not what"),
    "another": (lambda: _finished(parcel.pack([])), "gave back what belongs to another job"),
    "one for all": (lambda: ONE, "gave back what belongs to another job"),
    "cancelled": (_cancelled, "cancelled 3 jobs"),
}  # fmt: skip


@pytest.mark.usefixtures("no_report")
@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("kind", NONSENSE)
def test_an_executor_that_gives_nonsense_is_named(
    tmp_path: Path, kind: str, late: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    give, words = NONSENSE[kind]

    class Odd(ThreadPoolExecutor):
        asked = 0

        def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
            self.asked += 1
            if late and self.asked < 2:  # the first makes a worker ready
                return super().submit(fn, *args, **kwargs)
            given: Future[Any] = give()
            return given

        def count(self) -> None:
            """Not a number."""

    monkeypatch.setattr(drive, "HOPELESS", 1)
    with Odd(1) as executor, pytest.raises(NatalError) as refusal:
        natal.run(STUDY, tmp_path, on=executor)
    if kind == "cancelled" and late:
        words = "have killed their workers and none has finished"
    else:
        words = f"executor Odd {words}"
    assert words in str(refusal.value)
    assert "\n" not in str(refusal.value)


@pytest.mark.skipif(sys.platform != "linux", reason="it looks into /proc")
def test_signals_of_a_terminal_are_the_coordinators_alone(tmp_path: Path) -> None:
    look = (
        "from multiprocessing import forkserver, resource_tracker\n"
        "from natal.lab.executors import prepare\n"
        "prepare()\n"
        "for pid in (resource_tracker._resource_tracker._pid, forkserver._forkserver._forkserver_pid):\n"
        "    status = dict(line.split(':\\t', 1) for line in open(f'/proc/{pid}/status'))\n"
        "    print(int(status['SigBlk'], 16) | int(status['SigIgn'], 16))\n"
    )
    with (tmp_path / "said").open("w") as file:  # the fork server holds it open while it loads torch
        subprocess.run([sys.executable, "-c", look], stdout=file, check=True)
    held = [int(line) for line in (tmp_path / "said").read_text().split()]
    assert len(held) == 2
    assert all(mask >> (number - 1) & 1 for mask in held for number in (signal.SIGINT, signal.SIGHUP))
