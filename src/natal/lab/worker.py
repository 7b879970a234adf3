"""What a worker process does: make trials, train them, hand the outcomes back."""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from natal.errors import NatalError
from natal.lab import DATA, birth
from natal.lab.engines import ENGINES
from natal.lab.networks import networks
from natal.lab.tasks import tasks
from natal.pruning.criteria import criteria
from natal.registry import did_you_mean
from natal.study import STRATEGIES, Run, Study

if TYPE_CHECKING:
    from natal.lab.plan import Job
    from natal.store import Outcome


def train(job: Job) -> list[Outcome]:
    """Train the runs of a job and return their outcomes."""
    return list(each(job))


def each(job: Job) -> Iterator[Outcome]:
    """Train the runs of a job and yield their outcomes as they finish."""
    study, engine = job.study, ENGINES[job.engine]
    if job.data:
        os.environ[DATA] = job.data
    load_plugins(study)
    for pending in job.trainings:
        # a run that natal 0.2 stored has a key of its own, but is never pending
        if birth.key_of(study, pending.run, engine, job.device, pending.learning_rate) != pending.key:
            raise NatalError(
                "a plugin was edited after this program had imported it; start the program again, and what the "
                "plugin made is trained again"
            )
    trials = []
    for pending in job.trainings:
        with named(_words(study, pending.run)):
            trials.append(birth.trial(study, pending.run, pending.learning_rate, pending.key))
    others = f" and {len(trials) - 1} more" if trials[1:] else ""
    with named(f"training {_words(study, job.trainings[0].run)}{others}"):
        for trained in engine.train(trials, job.device):
            yield trained.outcome


def prepare(study: Study, engines: tuple[str, ...], device: str) -> None:
    """Load what the first training would otherwise wait for: plugins, and what engines need."""
    load_plugins(study)
    for engine in engines:
        ENGINES[engine].prepare(device)


def load_plugins(study: Study) -> None:
    """Import the study's plugin modules, from beside the study file or the Python path.

    Raises NatalError naming the plugin and what its import said.
    """
    for folder in ("", study.folder) if study.plugins else ():
        if folder not in sys.path:
            sys.path.insert(0, folder)
    for plugin in study.plugins:
        with named(f"plugin {plugin!r} does not import"):
            importlib.import_module(plugin)


def check_names(study: Study) -> None:
    """Make sure a study speaks only of what is registered; raise NatalError for the first that is not."""
    for task in study.tasks:
        tasks[task.entry]
    for network in study.networks:
        networks[network.entry]
    rates = study.training.learning_rate
    known = [*study.task_names, *study.network_names, *tasks]
    for name in rates if isinstance(rates, dict) else ():
        if name not in known:
            raise NatalError(f"training.learning_rate: unknown task {name!r}{did_you_mean(name, known)}")
    for recipe in study.strategies:
        if recipe.name == recipe.criterion and recipe.name not in criteria:
            raise NatalError(
                f"unknown strategy {recipe.name!r}{did_you_mean(recipe.name, [*STRATEGIES, *criteria])}"
            )
        criteria[recipe.criterion]


CHECKED_ROWS = 256
"""Training rows on which `check` tries a criterion: whether it works shows on a few, and sixty rounds are quick."""


def check(study: Study) -> None:
    """Make sure every strategy of a study works, before anything is trained.

    Each makes one mask per setting at the study's highest sparsity, looking at few rows. Raises NatalError for the
    first that does not.
    """
    for task, network in study.settings():
        for recipe in study.strategies:
            run = Run(task, recipe.name, max(study.sparsities), study.seeds[0], network)
            with named(_words(study, run)):
                birth.try_out(study, run, CHECKED_ROWS)


@contextmanager
def named(doing: str) -> Iterator[None]:
    """Turn whatever goes wrong inside a plugin, or for want of memory, into one line that begins with ``doing``."""
    try:
        yield
    except NatalError:
        raise
    except (Exception, SystemExit) as error:
        said = " ".join(f"{type(error).__name__}: {error}".split())
        frame = traceback.extract_tb(error.__traceback__)[-1]
        inside = not frame.filename.startswith("<frozen importlib")
        place = f" ({Path(frame.filename).name}, line {frame.lineno})" if inside else ""
        raise NatalError(f"{doing}: {said}{place}") from error


def _words(study: Study, run: Run) -> str:
    fields = run._asdict()
    if len(study.networks) == 1:
        del fields["network"]
    return ", ".join(f"{name}={value}" for name, value in fields.items())
