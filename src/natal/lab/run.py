"""From a study to stored runs: train what is missing, keep every finished run.

The coordinating process alone writes to the store.
"""

from __future__ import annotations

import platform
import sys
import time
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Future, wait
from contextlib import suppress
from dataclasses import asdict
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
from filelock import FileLock, Timeout

from natal.errors import NatalError
from natal.lab.executors import Processes, prepare
from natal.lab.fresh import adopt, clear, is_of
from natal.lab.plan import Job, Plan, plan
from natal.machine import cores, processor
from natal.store import Failure, Outcome, Store, chosen
from natal.study import Run, Study
from natal.wording import describe

if TYPE_CHECKING:
    from natal.lab.worker import Made

MAX_DEATHS = 3


class Watcher(Protocol):
    """Whoever wants to follow a study while it runs."""

    def started(self, plan: Plan) -> None:
        """Training begins."""

    def training(self, runs: Sequence[Run]) -> None:
        """These runs are being trained now."""

    def finished(self, position: int, run: Run, outcome: Outcome, field: str) -> None:
        """Row number ``position`` of the grid's rows is stored; ``field`` is its metric's short name."""

    def failed(self, run: Run, reason: str) -> None:
        """This row could not be trained."""


class Silent:
    """A watcher that says nothing."""

    def started(self, plan: Plan) -> None:
        """Say nothing."""

    def training(self, runs: Sequence[Run]) -> None:
        """Say nothing."""

    def finished(self, position: int, run: Run, outcome: Outcome, field: str) -> None:
        """Say nothing."""

    def failed(self, run: Run, reason: str) -> None:
        """Say nothing."""


def train(
    study: Study,
    directory: Path,
    *,
    workers: int | None,
    engine: str,
    device: str,
    fresh: bool,
    data: str | Path | None,
    watcher: Watcher,
    afterwards: Callable[[Path], object],
    part: str | None = None,
    only: Collection[Run] | None = None,
) -> None:
    """Train what ``directory`` lacks of ``study`` and keep it; then, still alone there, call ``afterwards``.

    A training that goes wrong is stored as failed, with those that start from it; all others are made.
    Raises NatalError, before anything is trained or written, for anything wrong with the input.
    """
    if device == "cpu" and (cores() if workers is None else workers) > 1:
        prepare()
    look = partial(
        plan, study, directory, workers=workers, engine=engine, device=device, fresh=fresh, data=data, part=part,
        only=only,
    )  # fmt: skip
    planned = look()
    with _alone(directory):
        if fresh and not is_of(planned.directory, study):
            clear(planned.directory)
        _fill(planned, look, watcher)
        if fresh:
            adopt(directory)
        afterwards(directory)


def _fill(planned: Plan, look: Callable[[], Plan], watcher: Watcher) -> None:
    """Train what is planned; ``look`` plans again."""
    study = planned.study
    with Store.create(planned.directory) as store:
        if not store.finished().isdisjoint({training.key for training in planned.pending} - planned.again):
            planned = look()  # another command has finished some of them in the meantime
        if planned.pending or not _declared(store, planned):
            _declare(store, planned)
        _drive(planned, store, watcher)
        if planned.tried:
            runs = [run for run, _ in planned.grid]
            store.choose(chosen(runs, planned.tried, store.deciding(study.training.decide)))
        kept, total = store.complete()
        if kept == total and store.manifest("finished_at")["finished_at"] is None:
            store.note(finished_at=_now(), deterministic=store.deterministic())


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


def _declared(store: Store, planned: Plan) -> bool:
    """Whether the store already shows this very study: the same rows, with the same trainings to choose from."""
    if store.manifest().get("study_hash") != planned.study.digest or store.tried() != planned.tried:
        return False
    shown = store.grid()
    return len(shown) == len(planned.grid) and all(
        row == planned_row and (key == planned_key or key in planned.tried.get(position, {}).values())
        for position, ((row, key), (planned_row, planned_key)) in enumerate(
            zip(shown, planned.grid, strict=True)
        )
    )


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
            "connectivity": planned.lines,
            "tasks": {name: asdict(facts) for name, facts in planned.tasks.items()},
            "networks": [asdict(facts) for facts in planned.networks],
            "natal_version": metadata.version("natal"),
            "python_version": platform.python_version(),
            "torch_version": torch.__version__,
            "numpy_version": np.__version__,
            "platform": platform.platform(),
            "processor": processor(),
            "device": planned.device,
            "engine": ", ".join(dict.fromkeys(facts.engine for facts in planned.networks)),
            "dtype": "float32",
            "threads": 1,
            "workers": planned.workers,
            "command": " ".join(sys.argv) if sys.argv[0].endswith("natal") else "natal.run",
            "started_at": before.get("started_at", _now()),
            "finished_at": None,
            "elapsed_seconds": before.get("elapsed_seconds", 0.0),
        },
        planned.tried,
    )


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def _drive(planned: Plan, store: Store, watcher: Watcher) -> None:
    """Train the jobs and store what comes back."""
    from natal.lab import worker
    from natal.lab.queue import Queue

    waiting: dict[str, list[tuple[Run, set[str]]]] = {}
    missing = {training.key for training in planned.pending} - planned.again
    for position, (row, key) in enumerate(planned.grid):
        wanted = {key, *planned.tried.get(position, {}).values()} & missing
        for key in wanted:
            waiting.setdefault(key, []).append((row, wanted))
    position = len(planned.done)
    before = float(store.manifest()["elapsed_seconds"])
    queue = Queue(planned, store)

    def keep(came: Sequence[Made | Failure]) -> None:
        nonlocal position
        ended = queue.finished(came, elapsed_seconds=round(before + time.monotonic() - started, 3))
        for one in ended:
            for row, wanted in waiting.pop(one.key, ()):
                if isinstance(one, Failure):
                    if wanted:
                        watcher.failed(row, one.reason)
                    wanted.clear()
                    continue
                if wanted == {one.key}:
                    position += 1
                    watcher.finished(position, row, one, planned.tasks[row.task].field)
                wanted.discard(one.key)

    engines = tuple(dict.fromkeys(job.engine for job in planned.jobs))
    watcher.started(planned)
    started = time.monotonic()
    if planned.workers == 1:
        worker.prepare(planned.study, engines, planned.device)
        started = time.monotonic()
        keep([])
        while (job := queue.take()) is not None:
            watcher.training([training.run for training in job.trainings])
            for made in worker.each(job):
                keep([made])
        return

    executor = Processes(planned.workers)
    running: dict[Future[list[Made | Failure]], Job] = {}
    deaths = 0  # in a row, with nothing finished in between
    try:
        if queue:  # a worker that answers has torch and the kernels, which is not training
            with suppress(BrokenExecutor):
                executor.submit(worker.prepare, planned.study, engines, planned.device).result()
        started = time.monotonic()
        keep([])
        while queue or running:
            broken = False
            while len(running) < planned.workers and not broken and (job := queue.take()) is not None:
                watcher.training([t.run for each in [*running.values(), job] for t in each.trainings])
                try:
                    running[executor.submit(worker.train, job)] = job
                except BrokenExecutor:
                    queue.give_back(job)
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
                    training = "; ".join(describe(job.trainings[0].run) for job in running.values())
                    raise NatalError(
                        f"workers died {MAX_DEATHS} times and finished nothing, last while training {training}; "
                        "is memory short? Finished runs are stored; try again with --workers 1"
                    )
                for job in running.values():
                    queue.give_back(job)
                running.clear()
                executor.stop()
                executor = Processes(planned.workers)
    finally:
        executor.stop()
