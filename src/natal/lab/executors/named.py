"""Executors by name, as ``natal run --on`` knows them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from concurrent.futures import Executor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from natal.errors import NatalError, require
from natal.lab.executors.processes import Processes
from natal.lab.executors.workers import Given, Workers
from natal.registry import did_you_mean

NAMES = {
    "processes": "worker processes on this machine",
    "inline": "this very process, one training after the other",
    "dask": "workers of a Dask scheduler",
    "ray": "workers of a Ray cluster",
    "slurm": "jobs of Slurm, which share the results directory",
}
"""Every executor that has a name, in one phrase."""
OPTIONS = {
    "dask": {"address"},
    "ray": {"address"},
    "slurm": {"partition", "time", "jobs", "cluster"},
}
"""The options that an executor takes."""


def check(on: str | Executor, options: Mapping[str, Any]) -> None:
    """Raise NatalError for a name that is none, an option that it does not take, or a package that is missing."""
    if not isinstance(on, str):
        if isinstance(on, type) or not callable(getattr(on, "submit", None)):
            raise NatalError(
                f"on={on!r}: name one of {', '.join(NAMES)}, or give an executor of concurrent.futures"
            )
        return
    if on not in NAMES:
        raise NatalError(f"unknown executor {on!r}{did_you_mean(on, NAMES)}")
    for option in options:
        if option not in OPTIONS.get(on, set()):
            takers = [name for name, known in OPTIONS.items() if option in known]
            if not takers:
                known_ones = [name for known in OPTIONS.values() for name in known]
                raise NatalError(f"executors have no option {option!r}{did_you_mean(option, known_ones)}")
            raise NatalError(f"--{option} goes with --on {' or '.join(takers)}, not with {on}")
    for name, module in (("dask", "distributed"), ("ray", "ray"), ("slurm", "submitit")):
        if on == name:
            require(module, extra=name)


@contextmanager
def opened(
    on: str | Executor, workers: int, directory: Path, options: Mapping[str, Any]
) -> Iterator[Workers | None]:
    """Connect to an executor for as long as a study runs; None for this process itself."""
    made = _made(on, workers, directory, options)
    try:
        yield made
    finally:
        if made is not None and made is not on:  # who gave it ends it
            made.stop()


def _made(on: str | Executor, workers: int, directory: Path, options: Mapping[str, Any]) -> Workers | None:
    if isinstance(on, Workers):
        return on
    if not isinstance(on, str):
        return Given(on)
    if on == "dask":
        from natal.lab.executors.dask import Dask

        return Dask(**options)
    if on == "ray":
        from natal.lab.executors.ray import Ray

        return Ray(**options)
    if on == "slurm":
        from natal.lab.executors.slurm import Slurm

        return Slurm(directory, **options)
    return None if on == "inline" or workers == 1 else Processes(workers)
