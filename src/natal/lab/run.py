"""From a study to stored runs: train what is missing, keep every finished run.

The coordinating process alone writes to the store.
"""

from __future__ import annotations

import platform
import sys
import time
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import Executor
from dataclasses import asdict, replace
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout

from natal.errors import NatalError
from natal.lab import data_in
from natal.lab.executors import named, prepare
from natal.lab.fresh import adopt, clear, is_of
from natal.lab.plan import Plan, plan
from natal.lab.watcher import Silent, Watcher
from natal.machine import cores, processor
from natal.store import Store, chosen
from natal.study import Run, Study

__all__ = ["Silent", "Watcher", "train"]


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
    on: str | Executor = "processes",
    options: Mapping[str, Any] | None = None,
) -> None:
    """Train what ``directory`` lacks of ``study`` and keep it; then, still alone there, call ``afterwards``.

    A training that goes wrong is stored as failed, with those that start from it; all others are made.
    Raises NatalError, before anything is trained or written, for anything wrong with the input.
    """
    options = dict(options or {})
    named.check(on, options)
    if on == "inline":
        workers = 1
    if on == "processes" and device == "cpu" and (cores() if workers is None else workers) > 1:
        prepare()
    look = partial(
        plan, study, directory, workers=workers, engine=engine, device=device, fresh=fresh, part=part, only=only,
        beyond=on not in ("processes", "inline"),
    )  # fmt: skip
    with data_in(data):
        planned = look()
        with _alone(directory):
            if fresh and not is_of(planned.directory, study):
                clear(planned.directory)
            _fill(planned, look, watcher, on, options)
            if fresh:
                adopt(directory)
            afterwards(directory)


def _fill(
    planned: Plan,
    look: Callable[[], Plan],
    watcher: Watcher,
    on: str | Executor,
    options: Mapping[str, Any],
) -> None:
    """Train what is planned; ``look`` plans again."""
    from natal.lab.drive import drive

    study = planned.study
    with Store.create(planned.directory) as store:
        if not store.finished().isdisjoint({training.key for training in planned.pending} - planned.again):
            planned = look()  # another command has finished some of them in the meantime
        if not planned.pending and _declared(store, planned):
            drive(planned, store, watcher, None)
        else:
            with named.opened(on, planned.workers, planned.directory, options) as workers:
                if workers is not None:
                    planned = replace(planned, workers=max(workers.count, 1))
                _declare(store, planned)
                drive(planned, store, watcher, workers)
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
            "command": _command(),
            "started_at": before.get("started_at", _now()),
            "finished_at": None,
            "elapsed_seconds": before.get("elapsed_seconds", 0.0),
        },
        planned.tried,
    )


def _command() -> str:
    """Return what was typed, with escapes for bytes that are no text, as a folder's name may have."""
    typed = " ".join(sys.argv) if sys.argv[0].endswith("natal") else "natal.run"
    return typed.encode(errors="backslashreplace").decode()


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
