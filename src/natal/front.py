"""The front door: the lab runs a study, the reading wing writes what it found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from natal.lab.plan import writable
from natal.lab.run import Watcher, train
from natal.progress import shown
from natal.reading import report
from natal.reading.results import Results, load
from natal.study import Study, load_study


def run(
    study: str | Path | Mapping[str, Any] | Study = "paper",
    out: str | Path = "results",
    *,
    overrides: Sequence[str] = (),
    workers: int | None = None,
    engine: str = "auto",
    device: str = "cpu",
    fresh: bool = False,
    data: str | Path | None = None,
    part: str | None = None,
    on: str | Executor = "processes",
    options: Mapping[str, Any] | None = None,
    progress: bool | None = None,
    watcher: Watcher | None = None,
) -> Results:
    """Run a study into a directory, going on from what the directory already holds, and return its results.

    ``study``: a preset's name, a TOML file, a mapping of its keys, or a Study. ``overrides``: as for ``--set``.
    ``workers``: processes; by default one per core, or none beside this one when the work is small. ``engine``: one of
    `natal.lab.engines`, or ``auto``: the fastest that takes a setting. ``fresh``: start again; what the directory holds
    stays until all is trained anew, and the same call goes on with one that was stopped.
    ``data``: the folder of data files for tasks that need one; NATAL_DATA in the environment names it, too.
    ``on``: where trainings run, ``processes`` or ``inline``, ``dask``, ``ray``, ``slurm``; or any executor of
    `concurrent.futures`, such as ``natal.lab.executors.Dask("tcp://scheduler:8786")``, which is left open.
    ``options``: of an executor that is named: ``address``, or for Slurm ``partition``, ``time`` and ``jobs``.
    ``part``: such as ``3/8``: train only this part of the study, see `natal.plan`.
    ``progress``: whether to show how far it is; by default in a notebook and on a terminal. ``watcher``: what is told
    of every run in its place.
    Raises NatalError, before anything is trained or written, for anything wrong with the input.
    """
    study = load_study(study, overrides)
    directory = writable(out, workers)
    with nullcontext(watcher) if watcher else shown(progress) as following:
        train(
            study,
            directory,
            workers=workers,
            engine=engine,
            device=device,
            fresh=fresh,
            data=data,
            part=part,
            on=on,
            options=options,
            watcher=following,
            afterwards=lambda directory: report.write(directory, anew=False),
        )
    return load(directory)
