"""From a study to stored runs: plan what is to be trained, train it, keep every finished run.

`plan` compares a study's grid with what the directory already holds; `run` trains the rest and writes the tables,
figures and report. The coordinating process alone writes to the store.
"""

from __future__ import annotations

import os
import platform
import sys
import time
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Executor, Future, wait
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from filelock import FileLock, Timeout

from natal import report
from natal.errors import NatalError
from natal.executors import InProcess, Processes, prepare
from natal.registry import did_you_mean
from natal.results import Results, describe, load
from natal.spec import Run, Study, load_study
from natal.store import FILE, Outcome, Store

if TYPE_CHECKING:
    from natal.worker import Job

ENGINES = ("batched", "sequential")
MAX_DEATHS = 3
SECONDS_PER_FLOP = {"batched": 1 / 190e9, "sequential": 1 / 70e9}  # measured on one Zen 5 core, and on two
SMALL = 20e9  # floating-point operations that are not worth starting processes for: a tenth of a second


@dataclass(frozen=True)
class Plan:
    """What a command would do: the grid with each row's key, the trainings behind it, and which are still to do.

    ``pending``: one row for each training still to be done, in the order they will be started. ``jobs``: the same,
    in the batches that workers take. ``flops``: about what is to be computed at most, were no training to stop early.
    ``outdated``: trainings stored in the directory that another version of natal, torch or NumPy made. They are kept,
    but never mixed with this version's.
    """

    study: Study
    directory: Path
    engine: str
    device: str
    workers: int
    grid: list[tuple[Run, str]]
    pending: list[tuple[Run, str]]
    jobs: list[list[tuple[Run, str]]] = field(repr=False)
    flops: float
    outdated: int
    tasks: dict[str, dict[str, Any]] = field(repr=False)

    @property
    def trainings(self) -> int:
        """Number of different trainings behind the grid's rows."""
        return len({key for _, key in self.grid})

    @property
    def shared(self) -> int:
        """Number of rows that reuse another row's training."""
        return len(self.grid) - self.trainings

    @property
    def seconds(self) -> float:
        """About how long the pending trainings take at most, were none to stop early, on a current server core."""
        return self.flops * SECONDS_PER_FLOP[self.engine] / self.workers

    @property
    def done(self) -> list[tuple[Run, str]]:
        """The rows whose training is stored already."""
        missing = {key for _, key in self.pending}
        return [(run, key) for run, key in self.grid if key not in missing]


class Watcher(Protocol):
    """Whoever wants to follow a study while it runs."""

    def started(self, plan: Plan) -> None:
        """Training begins."""

    def training(self, runs: Sequence[Run]) -> None:
        """These runs are being trained now."""

    def finished(self, position: int, run: Run, outcome: Outcome, field: str) -> None:
        """Row number ``position`` of the grid's rows is stored; ``field`` is its metric's short name."""


class Silent:
    """A watcher that says nothing."""

    def started(self, plan: Plan) -> None:
        """Say nothing."""

    def training(self, runs: Sequence[Run]) -> None:
        """Say nothing."""

    def finished(self, position: int, run: Run, outcome: Outcome, field: str) -> None:
        """Say nothing."""


def run(
    study: str | Path | Mapping[str, Any] | Study = "paper",
    out: str | Path = "results",
    *,
    overrides: Sequence[str] = (),
    workers: int | None = None,
    engine: str = "batched",
    device: str = "cpu",
    fresh: bool = False,
    watcher: Watcher | None = None,
) -> Results:
    """Run a study into a directory, going on from what the directory already holds, and return its results.

    ``study``: a preset's name, a TOML file, a mapping of its keys, or a Study. ``overrides``: as for ``--set``.
    ``workers``: processes; by default one per core, or none beside this one when the work is small or ``engine`` is
    ``sequential`` (whose torch uses all cores by itself). ``fresh``: forget what the directory holds.
    Raises NatalError, before anything is trained or written, for anything wrong with the input.
    """
    study = load_study(study, overrides)
    directory = _check(out, engine, workers)
    if engine == "batched" and (_cores() if workers is None else workers) > 1:
        prepare()
    look = partial(plan, study, directory, workers=workers, engine=engine, device=device, fresh=fresh)
    planned = look()
    with _alone(directory), Store.create(directory) as store:
        if fresh:
            store.clear()
        elif not store.finished().isdisjoint(key for _, key in planned.pending):
            planned = look()  # another command has finished some of them in the meantime
        told = store.manifest().get("study_hash"), store.grid()
        if planned.pending or told != (study.digest, planned.grid):
            _declare(store, planned)
        _drive(planned, store, watcher or Silent())
        if store.manifest()["finished_at"] is None:
            outcomes = store.outcomes().values()
            store.note(finished_at=_now(), deterministic=all(o.deterministic for o in outcomes))
        report.write(directory)
    return load(directory)


def plan(
    study: str | Path | Mapping[str, Any] | Study = "paper",
    out: str | Path = "results",
    *,
    overrides: Sequence[str] = (),
    workers: int | None = None,
    engine: str = "batched",
    device: str = "cpu",
    fresh: bool = False,
) -> Plan:
    """Return what `run` with the same arguments would do; trains and writes nothing.

    Every task and strategy of the study is tried out once. Raises NatalError for the first that does not work.
    """
    study = load_study(study, overrides)
    directory = _check(out, engine, workers)
    from natal import worker
    from natal.engine import batched
    from natal.engine.ticket import MADE_WITH

    batched.check(device)
    worker.check(study)
    about = {name: _about(study, name) for name in study.tasks}
    grid = [(row, worker.key(study, row, engine, device)) for row in study.runs()]
    finished: set[str] = set()
    outdated = 0
    if (directory / FILE).exists() and not fresh:
        with Store.read(directory) as store:
            finished = store.finished()
            outdated = sum(not set(MADE_WITH).issubset(by.split(", ")) for by in store.made_by())
    missing: dict[str, Run] = {}
    for row, key in grid:
        if key not in finished:
            missing.setdefault(key, row)
    pending = [(row, key) for key, row in missing.items()]
    cost = {key: _flops(study, row, about[row.task]) for row, key in pending}
    if engine == "batched":
        # longest first keeps all workers busy to the end
        pending.sort(key=lambda row: -cost[row[1]])
        jobs = _lane_jobs(study, pending, about, device)
        jobs.sort(key=lambda job: -sum(cost[key] for _, key in job))
        pending = [row for job in jobs for row in job]
    else:
        jobs = [[row] for row in pending]
    flops = sum(cost.values())
    return Plan(
        study,
        directory,
        engine,
        device,
        _workers(workers, engine, device, flops, len(jobs), study),
        grid,
        pending,
        jobs,
        flops,
        outdated,
        about,
    )


def _about(study: Study, name: str) -> dict[str, Any]:
    """Return what the right half needs to know of a task, which it cannot import."""
    from natal.tasks import load as load_data
    from natal.tasks import tasks

    task, split = tasks[name], load_data(name, study.seeds[0], study.training.validation_fraction)
    return {
        "metric": task.metric.name, "field": task.metric.field, "chance": task.chance, "loss": task.loss.name,
        "learning_rate": study.learning_rate(name, task.learning_rate),
        "inputs": split.data.inputs.shape[1], "outputs": split.data.outputs,
        "fit_rows": len(split.fit), "val_rows": len(split.val),
        "train_rows": len(split.data.inputs), "test_rows": len(split.data.test_inputs),
    }  # fmt: skip


def _neurons(study: Study, row: Run, outputs: int) -> int:
    """Return how many hidden neurons a run trains: those with an outgoing weight, about so many if weights go."""
    of_neurons = study.recipe(row.strategy).granularity == "neuron"
    share = row.sparsity if of_neurons else row.sparsity**outputs
    return max(1, study.hidden - int(share * study.hidden))


def _flops(study: Study, row: Run, about: Mapping[str, Any]) -> float:
    """Return about how many operations a run takes if it does not stop early.

    Three products a step (forward, backward to the weights, backward to the neurons), two operations a pair; wide
    inputs are taken to be one-hot.
    """
    neurons = _neurons(study, row, about["outputs"])
    pairs = about["fit_rows"] * neurons * (about["outputs"] + min(about["inputs"], 32))
    return 6.0 * study.training.epochs * float(pairs)


def _lane_jobs(
    study: Study, pending: list[tuple[Run, str]], about: Mapping[str, Mapping[str, Any]], device: str
) -> list[list[tuple[Run, str]]]:
    """Return the batches the batched engine would make of the pending runs, each a worker's job, in order."""
    from natal.engine.batched import lanes_at_once, width

    jobs: list[list[tuple[Run, str]]] = []
    open_jobs: dict[tuple[str, int], list[tuple[Run, str]]] = {}
    for row, key in pending:
        of = about[row.task]
        neurons = width(_neurons(study, row, of["outputs"]))
        lanes = lanes_at_once(of["fit_rows"], neurons, of["outputs"]) if device == "cpu" else len(pending)
        job = open_jobs.get((row.task, neurons))
        if job is None or len(job) == lanes:
            job = open_jobs[row.task, neurons] = []
            jobs.append(job)
        job.append((row, key))
    return jobs


def _check(out: str | Path, engine: str, workers: int | None) -> Path:
    """Return the directory that ``out`` names; raise NatalError for what is wrong with the options."""
    if engine not in ENGINES:
        raise NatalError(f"unknown engine {engine!r}{did_you_mean(engine, ENGINES)}")
    if workers is not None and workers < 1:
        raise NatalError(f"workers must be at least 1, got {workers}")
    if out == "" or (Path(out).exists() and not Path(out).is_dir()):
        raise NatalError(f"{str(out)!r} is not a directory; name one that can be written with --out")
    return Path(out)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _workers(asked: int | None, engine: str, device: str, flops: float, jobs: int, study: Study) -> int:
    """Return how many worker processes to use; 1 means none beside this one."""
    homemade = _homemade(study)
    if asked is not None and asked > 1 and homemade:
        raise NatalError(
            f"workers={asked} cannot import a task or criterion made in this script or notebook; put it in a "
            "module and name that in the study's plugins, or leave workers at 1"
        )
    if asked is not None:
        return asked
    if engine == "sequential" or device != "cpu" or flops < SMALL or homemade:
        return 1
    return max(1, min(_cores(), jobs))


def _homemade(study: Study) -> bool:
    """Whether a task or criterion is known to this process alone: made in a script or notebook, not in a plugin."""
    from natal.criteria import criteria
    from natal.tasks import tasks

    origins = [tasks.origin(tasks[name]) for name in study.tasks]
    origins += [criteria.origin(criteria[r.criterion]) for r in study.strategies]
    importable = {"natal", *(plugin.split(".")[0] for plugin in study.plugins)}
    return any(origin.__module__.split(".")[0] not in importable for origin in origins)


class _alone:
    """The right to write in a directory: held by one command at a time, released by the system if it is killed."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def __enter__(self) -> None:
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            self.lock = FileLock(self.directory / ".lock")
            self.lock.acquire(timeout=0)
        except Timeout:
            raise NatalError(
                f"another natal command is at work in {str(self.directory)!r}; wait for it, or name another "
                "directory with --out"
            ) from None
        except OSError as error:
            raise NatalError(
                f"{error.filename or self.directory}: {error.strerror}; name a directory that can be written "
                "with --out"
            ) from None

    def __exit__(self, *_: object) -> None:
        self.lock.release()


def _declare(store: Store, planned: Plan) -> None:
    """Write down what is about to be trained, and by what.

    ``started_at`` and ``elapsed_seconds`` (of training) go on from the commands before, as the runs do; the rest is
    this command's.
    """
    import torch

    before = store.manifest() if planned.done else {}
    store.declare(
        planned.study,
        planned.grid,
        {
            "study_hash": planned.study.digest,
            "tasks": planned.tasks,
            "natal_version": metadata.version("natal"),
            "python_version": platform.python_version(),
            "torch_version": torch.__version__,
            "numpy_version": np.__version__,
            "platform": platform.platform(),
            "processor": _processor(),
            "device": planned.device,
            "engine": planned.engine,
            "dtype": "float32",
            "threads": 1 if planned.engine == "batched" else torch.get_num_threads(),
            "workers": planned.workers,
            "command": " ".join(sys.argv) if sys.argv[0].endswith("natal") else "natal.run",
            "started_at": before.get("started_at", _now()),
            "finished_at": None,
            "elapsed_seconds": before.get("elapsed_seconds", 0.0),
        },
    )


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def _drive(planned: Plan, store: Store, watcher: Watcher) -> None:
    """Hand the jobs to the workers and store what comes back, job by job."""
    from natal import worker

    rows: dict[str, list[Run]] = {}
    for row, key in planned.grid:
        rows.setdefault(key, []).append(row)
    position = len(planned.done)
    before = float(store.manifest()["elapsed_seconds"])

    def keep(outcomes: list[Outcome]) -> None:
        nonlocal position
        store.add(outcomes, elapsed_seconds=round(before + time.monotonic() - started, 3))
        for outcome in outcomes:
            for row in rows[outcome.key]:
                position += 1
                watcher.finished(position, row, outcome, planned.tasks[row.task]["field"])

    executor: Executor = InProcess() if planned.workers == 1 else Processes(planned.workers)
    queue = deque(
        worker.Job(planned.study, planned.engine, planned.device, tuple(job)) for job in planned.jobs
    )
    running: dict[Future[list[Outcome]], Job] = {}
    deaths = 0  # in a row, with nothing finished in between
    watcher.started(planned)
    try:
        if queue:  # a worker that answers has torch and the kernels, which is not training
            with suppress(BrokenExecutor):
                executor.submit(worker.prepare, planned.study, planned.engine, planned.device).result()
        started = time.monotonic()
        while queue or running:
            broken = False
            while queue and len(running) < planned.workers and not broken:
                watcher.training([row for job in [*running.values(), queue[0]] for row, _ in job.runs])
                try:
                    running[executor.submit(worker.train, queue[0])] = queue[0]
                    queue.popleft()
                except BrokenExecutor:
                    broken = True
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                if isinstance(future.exception(), BrokenExecutor):
                    broken = True
                else:
                    del running[future]
                    keep(future.result())
                    deaths = 0
            # a worker was killed: its pool is of no more use, and what was being trained starts again
            if broken:
                deaths += 1
                if deaths == MAX_DEATHS:
                    training = "; ".join(describe(job.runs[0][0]) for job in running.values())
                    raise NatalError(
                        f"workers died {MAX_DEATHS} times and finished nothing, last while training {training}; "
                        "is memory short? Finished runs are stored; try again with --workers 1"
                    )
                queue.extendleft(running.values())
                running.clear()
                assert isinstance(executor, Processes)
                executor.stop()
                executor = Processes(planned.workers)
    finally:
        if isinstance(executor, Processes):
            executor.stop()
