"""How long a plan takes and how much memory, from a few steps trained here and now instead of a constant."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

from natal.lab import birth, data_in, states
from natal.lab.checkpoints import EVERY
from natal.lab.engines import Pending
from natal.lab.plan import Chosen, Plan
from natal.lab.trial import Trial
from natal.study import Recipe, Run

STEPS = 6


@dataclass(frozen=True)
class Estimate:
    """What `measure` found: seconds the pending trainings take at most, and bytes of memory of one worker, if the
    system tells them. ``checkpoints``: bytes that the long ones among them lay on the disk meanwhile, at most."""

    seconds: float
    memory: int | None
    checkpoints: int = 0


def measure(plan: Plan) -> Estimate:
    """Return an estimate for the trainings still to be done, were none to stop early.

    In every setting a few steps of the dense network are trained on this machine, with and without evaluations; what
    a mask or a smaller network saves, the engine's own `cost` says.
    """
    with data_in(plan.jobs[0].data if plan.jobs else None):
        seconds, long = _seconds(plan)
        return Estimate(seconds / plan.workers, _peak(), _checkpoints(plan, long))


Cell = tuple[object, ...]
"""What trainings have in common that differ in their seeds alone."""


def _cell(training: Pending) -> Cell:
    run, stage = training.run, training.stage
    return run.task, run.network, run.strategy, run.sparsity, stage.first, stage.steps


def _seconds(plan: Plan) -> tuple[float, set[Cell]]:
    """Return how long one worker takes for all, and which trainings take so long that they leave checkpoints."""
    seconds = 0.0
    long: set[Cell] = set()
    for (task, network), own in plan.settings.items():
        pending = [t for t in plan.pending if t.run.task == task and t.run.network == network]
        if not pending:
            continue
        dense = Run(task, plan.study.strategies[0].name, 0.0, plan.study.seeds[0], network)
        first = pending[0]._replace(run=dense)
        trial = birth.trial(plan.study, dense, first.stage.learning_rate)
        each = _training(own, trial, plan.device)
        cost = own.engine.cost(first, own.setting)
        whole = own.setting.steps
        # all seeds of a cell cost the same
        by_cell: dict[Cell, list[Pending]] = {}
        for t in pending:
            by_cell.setdefault(_cell(t), []).append(t)
        for cell, those in by_cell.items():
            takes = each * own.engine.cost(those[0], own.setting) * those[0].stage.share(whole) / cost
            seconds += takes * len(those)
            if takes > EVERY:
                long.add(cell)
        scorings = {recipe.name: _scoring(recipe) for recipe in plan.study.strategies}
        by_scoring: dict[str, list[Pending]] = {}
        for those in by_cell.values():
            # what could not be made cannot be measured either
            made = [t for t in those if t.key not in plan.failed] if plan.failed else those
            by_scoring.setdefault(
                scorings[those[0].run.strategy] if those[0].run.sparsity else "", []
            ).extend(made)
        seconds += sum(_making(plan, those) for those in by_scoring.values())
    return seconds, long


def _scoring(recipe: Recipe) -> str:
    """Return what recipes have in common whose masks take about as long to make: not their scope, nor a control."""
    control = recipe.control if recipe.control == "small-dense" else None  # which looks for another network
    return recipe.model_copy(update={"name": "", "scope": "global", "control": control}).model_dump_json()


def _checkpoints(plan: Plan, long: set[Cell]) -> int:
    """Return about how many bytes checkpoints take at most: every worker has those of one job."""

    def size(training: Pending) -> int:
        network = plan.settings[training.run.setting].setting.network
        state = states.size(network, plan.study.training.optimiser.moments)
        # as it is now, the states kept so far, and the weights of the best evaluation
        best = states.size(network, 0) - states.mask_size(network)
        return state * (1 + len(training.keep)) + best

    if not long:
        return 0
    of_jobs = sorted(sum(size(t) for t in job.trainings if _cell(t) in long) for job in plan.jobs)
    return sum(of_jobs[-plan.workers :])


def _making(plan: Plan, pending: Sequence[Pending]) -> float:
    """Return the seconds of making all masks that take about as long, from making the last one.

    One that is cut later is made of the network at birth, as its state is not there yet.
    """
    if not pending:
        return 0.0
    started = time.perf_counter()
    birth.trial(plan.study, pending[-1].run, pending[-1].stage.learning_rate)
    return (time.perf_counter() - started) * len(pending)


def _training(own: Chosen, trial: Trial, device: str) -> float:
    """Return the seconds of one whole training: its steps and its evaluations."""
    rows = trial.rows_to_fit
    steps, evaluations = own.setting.steps, len(trial.training.evaluations(rows))
    few = min(STEPS, steps)

    def seconds(length: int, every: int) -> float:
        short = trial.training.model_copy(
            update={"length": f"{length}it", "evaluate": f"{every}it", "patience": None, "target": None}
        )
        started = time.perf_counter()
        for _ in own.engine.train([replace(trial, training=short)], device):
            pass
        return time.perf_counter() - started

    seconds(1, 1)
    one, many, often = seconds(1, 1), seconds(few, few), seconds(few, 1)
    step = max(many - one, 0.0) / max(few - 1, 1)
    evaluation = max(often - many, 0.0) / max(few - 1, 1)
    return one + step * (steps - 1) + evaluation * (evaluations - 1)


def _peak() -> int | None:
    """Return the most memory this process has used, in bytes; None where the system does not say, as on Windows."""
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak
