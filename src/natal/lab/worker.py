"""What a worker process does: make tickets, train them, hand the outcomes back."""

from __future__ import annotations

import importlib
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from natal.determinism import deterministic, one_thread
from natal.errors import NatalError
from natal.lab.engines import ENGINES, Ticket, kernels
from natal.lab.networks import mlp
from natal.lab.tasks import Split, load, tasks
from natal.lab.trial import MADE_WITH
from natal.pruning.choose import mask, problem_of, score
from natal.pruning.criteria import Problem, criteria, traits
from natal.pruning.doctor import diagnose
from natal.pruning.mask import Mask
from natal.registry import did_you_mean
from natal.study import STRATEGIES, Recipe, Run, Study

if TYPE_CHECKING:
    from natal.store import Outcome


@dataclass(frozen=True)
class Job:
    """Trainings one worker does in one go: rows of a study with their keys."""

    study: Study
    engine: str
    device: str
    runs: tuple[tuple[Run, str], ...]


def train(job: Job) -> list[Outcome]:
    """Train the runs of a job and return their outcomes, in order."""
    load_plugins(job.study)
    for run, expected in job.runs:
        if key(job.study, run, job.engine, job.device) != expected:
            raise NatalError(
                "a plugin was edited after this program had imported it; start the program again, and what the "
                "plugin made is trained again"
            )
    tickets = []
    for run, key_ in job.runs:
        with _named(_words(run)):
            tickets.append(ticket(job.study, run, key_))
    others = f" and {len(job.runs) - 1} more" if job.runs[1:] else ""
    with _named(f"training {_words(job.runs[0][0])}{others}"):
        return [trained.outcome for trained in ENGINES[job.engine](tickets, job.study.training, job.device)]


def key(study: Study, run: Run, engine: str, device: str) -> str:
    """Return the key of the training behind a run, given the tasks and criteria that this process has imported.

    Versions of natal, torch and NumPy are part of it: another version's training may have other bits, so it is not
    found again.
    """
    criterion = study.recipe(run.strategy).criterion
    return study.key(
        run,
        engine=", ".join([f"{engine}/{device}", *MADE_WITH]),
        learning_rate=study.learning_rate(run.task, tasks[run.task].learning_rate),
        fingerprints={run.task: tasks.fingerprint(run.task), criterion: criteria.fingerprint(criterion)},
        # the oracle shares nothing, so that it checks sharing too: it trains every row, as the published program did
        share=engine != "sequential",
    )


def ticket(study: Study, run: Run, key: str = "", dtype: torch.dtype = torch.float32) -> Ticket:
    """Return the network a run trains: data, split, initial weights and mask, all from the run's seed.

    Masks and initial weights are drawn in float32 whatever ``dtype`` says.
    """
    task = tasks[run.task]
    split = load(run.task, run.seed, study.training.validation_fraction)
    net, problem = _problem(study, run, split)
    # copies: a criterion may do with its problem's model what it likes
    parameters = {name: p.detach().clone().to(dtype) for name, p in net.named_parameters()}
    recipe = study.recipe(run.strategy)
    # scores are sums too: their bits must not depend on the number of threads
    with one_thread(), deterministic():
        chosen = mask(recipe, problem, run.sparsity)
        # a control may replace initial values, not only the mask
        parameters |= {name: values.to(dtype) for name, values in chosen.redrawn.items()}
        diagnosis = _diagnosis(net, problem, chosen, recipe, run.sparsity)
    return Ticket(
        key=key,
        task=task,
        split=split,
        parameters=parameters,
        mask=chosen,
        learning_rate=study.learning_rate(run.task, task.learning_rate),
        diagnosis=diagnosis,
    )


def _problem(study: Study, run: Run, split: Split, rows: int | None = None) -> tuple[nn.Sequential, Problem]:
    """Return a run's network at birth, and what its criterion sees: that network and ``rows`` of the rows to fit."""
    net = mlp(split.data.inputs.shape[1], study.hidden, split.data.outputs, run.seed)
    fit = split.fit[:rows]
    return net, problem_of(
        net,
        run.seed,
        inputs=split.data.inputs[fit],
        targets=split.data.targets[fit],
        loss=tasks[run.task].loss.value,
    )


DIAGNOSED_ROWS = 256
"""Training rows the mask doctor runs through a network: enough for scales and dead ReLUs, cheap beside one epoch."""


def _diagnosis(
    net: nn.Module, problem: Problem, chosen: Mask, recipe: Recipe, sparsity: float
) -> dict[str, Any]:
    """Return what the mask doctor says of a network about to be trained, JSON-ready; nothing for a dense one."""
    if sparsity == 0:
        return {}
    assert problem.inputs is not None
    counted = recipe.granularity in (
        "weight",
        "neuron",
    )  # what other granularities remove is no share of either
    one_shot = traits[recipe.criterion].rounds == 1 and recipe.control is None
    selected = recipe.granularity == "weight" and recipe.scope == "global" and one_shot
    found = diagnose(
        net,
        chosen,
        problem.inputs[:DIAGNOSED_ROWS],
        requested=sparsity if counted else None,
        random=recipe.criterion == "random" and recipe.control is None,
        scores=score(recipe.criterion, replace(problem, sparsity=sparsity)) if selected else None,
    )
    return {
        "effective_sparsity": found.effective_sparsity,
        "collapses_at": found.collapses_at,
        "findings": [[finding.severity, finding.text] for finding in found.findings],
        "layers": [asdict(layer) for layer in found.layers],
    }


def prepare(study: Study, engine: str, device: str) -> None:
    """Load what the first training would otherwise wait for: plugins, and the kernels of the engine."""
    load_plugins(study)
    if (engine, device) == ("batched", "cpu"):
        kernels.load()


def load_plugins(study: Study) -> None:
    """Import the study's plugin modules, from beside the study file or the Python path.

    Raises NatalError naming the plugin and what its import said.
    """
    for folder in ("", study.folder) if study.plugins else ():
        if folder not in sys.path:
            sys.path.insert(0, folder)
    for plugin in study.plugins:
        with _named(f"plugin {plugin!r} does not import"):
            importlib.import_module(plugin)


CHECKED_ROWS = 256
"""Training rows on which `check` tries a criterion: whether it works shows on a few, and sixty rounds are quick."""


def check(study: Study) -> None:
    """Make sure every task and strategy of a study works, before anything is trained.

    Each task's data is loaded, and each strategy makes one mask per task at the study's highest sparsity, looking at
    few rows. Raises NatalError for the first that does not.
    """
    load_plugins(study)
    for name in study.tasks:
        tasks[name]
    rates = study.training.learning_rate
    for name in rates if isinstance(rates, dict) else ():
        if name not in tasks:
            raise NatalError(f"training.learning_rate: unknown task {name!r}{did_you_mean(name, tasks)}")
    for recipe in study.strategies:
        if recipe.name == recipe.criterion and recipe.name not in criteria:
            raise NatalError(
                f"unknown strategy {recipe.name!r}{did_you_mean(recipe.name, [*STRATEGIES, *criteria])}"
            )
        criteria[recipe.criterion]
    for name in study.tasks:
        for recipe in study.strategies:
            run = Run(name, recipe.name, max(study.sparsities), study.seeds[0])
            with _named(_words(run)), one_thread(), deterministic():
                split = load(name, run.seed, study.training.validation_fraction)
                mask(recipe, _problem(study, run, split, CHECKED_ROWS)[1], run.sparsity)


@contextmanager
def _named(doing: str) -> Iterator[None]:
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


def _words(run: Run) -> str:
    return ", ".join(f"{name}={value}" for name, value in run._asdict().items())
