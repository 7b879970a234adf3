"""What a worker process does: make tickets, train them, hand the outcomes back."""

from __future__ import annotations

import importlib
import sys
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from natal.criteria import Problem, criteria, mask, problem_of, score, traits
from natal.determinism import deterministic, one_thread
from natal.doctor import diagnose
from natal.engine import ENGINES, Ticket
from natal.errors import NatalError
from natal.masks import Mask
from natal.nets import mlp
from natal.registry import did_you_mean
from natal.spec import STRATEGIES, Recipe, Run, Study
from natal.tasks import load, tasks

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
    tickets = [ticket(job.study, run, key) for run, key in job.runs]
    return [trained.outcome for trained in ENGINES[job.engine](tickets, job.study.training, job.device)]


def key(study: Study, run: Run, engine: str, device: str) -> str:
    """Return the key of the training behind a run, given the tasks and criteria that this process has imported."""
    criterion = study.recipe(run.strategy).criterion
    return study.key(
        run,
        engine=f"{engine}/{device}",
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
    net = mlp(split.data.inputs.shape[1], study.hidden, split.data.outputs, run.seed)
    # copies: a criterion may do with its problem's model what it likes
    parameters = {name: p.detach().clone().to(dtype) for name, p in net.named_parameters()}
    problem = problem_of(
        net,
        run.seed,
        inputs=split.data.inputs[split.fit],
        targets=split.data.targets[split.fit],
        loss=task.loss.value,
    )
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


DIAGNOSED_ROWS = 256
"""Training rows the mask doctor runs through a network: enough for scales and dead ReLUs, cheap beside one epoch."""


def _diagnosis(
    net: nn.Module, problem: Problem, chosen: Mask, recipe: Recipe, sparsity: float
) -> dict[str, Any]:
    """Return what the mask doctor says of a network about to be trained, JSON-ready; nothing for a dense one."""
    if sparsity == 0:
        return {}
    assert problem.inputs is not None
    one_shot = traits[recipe.criterion].rounds == 1 and recipe.control is None
    selected = recipe.granularity == "weight" and recipe.scope == "global" and one_shot
    found = diagnose(
        net,
        chosen,
        problem.inputs[:DIAGNOSED_ROWS],
        requested=sparsity,
        random=recipe.criterion == "random" and recipe.control is None,
        scores=score(recipe.criterion, replace(problem, sparsity=sparsity)) if selected else None,
    )
    return {
        "effective_sparsity": found.effective_sparsity,
        "collapses_at": found.collapses_at,
        "findings": [[finding.severity, finding.text] for finding in found.findings],
        "layers": [asdict(layer) for layer in found.layers],
    }


def load_plugins(study: Study) -> None:
    """Import the study's plugin modules, from beside the study file or the Python path.

    Raises NatalError naming the plugin and what its import said.
    """
    for folder in ("", study.folder) if study.plugins else ():
        if folder not in sys.path:
            sys.path.insert(0, folder)
    for plugin in study.plugins:
        try:
            importlib.import_module(plugin)
        except NatalError:
            raise
        except (Exception, SystemExit) as error:
            said = " ".join(f"{type(error).__name__}: {error}".split())
            raise NatalError(f"plugin {plugin!r} does not import: {said}") from error


def check(study: Study) -> None:
    """Make sure every task and strategy of a study works, before anything is trained.

    Each task's data is loaded, and each strategy makes one mask per task at the study's highest sparsity. Raises
    NatalError for the first that does not.
    """
    load_plugins(study)
    for name in study.tasks:
        tasks[name]
    for recipe in study.strategies:
        if recipe.name == recipe.criterion and recipe.name not in criteria:
            raise NatalError(
                f"unknown strategy {recipe.name!r}{did_you_mean(recipe.name, [*STRATEGIES, *criteria])}"
            )
        criteria[recipe.criterion]
    sparsity = max(study.sparsities)
    for name in study.tasks:
        for recipe in study.strategies:
            ticket(study, Run(name, recipe.name, sparsity, study.seeds[0]))
