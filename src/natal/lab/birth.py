"""From a row of a study to a `Trial`: data, network, mask and diagnosis, all from the run's seed."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from natal.determinism import deterministic, one_thread
from natal.errors import NatalError
from natal.lab.engines import Engine, Pending, Setting, made_by
from natal.lab.networks import born, networks, small_dense
from natal.lab.state import State
from natal.lab.states import Kept
from natal.lab.tasks import Split, load, tasks
from natal.lab.trial import Trial, scored_rows
from natal.pruning.choose import mask, problem_of, score
from natal.pruning.criteria import Problem, criteria, traits
from natal.pruning.criteria.flow import redraw
from natal.pruning.cuts import Cuts, cut
from natal.pruning.doctor import diagnose
from natal.pruning.mask import Mask, dense, prunable, unit_axes
from natal.pruning.masked import duplicate
from natal.pruning.pictures import pictures
from natal.pruning.savings import count
from natal.store import Place
from natal.study import Maker, Network, Recipe, Run, Stage, Study, Training, targets_of, untimely
from natal.study import keys as chains

DIAGNOSED_ROWS = 256
"""Training rows the mask doctor runs through a network: enough for scales and dead ReLUs, cheap beside one epoch."""


def setting(study: Study, task: str, network: str) -> Setting:
    """Return one task with one network; raises NatalError for what does not go together."""
    split = load(study.task(task), study.seeds[0], study.training.validation_fraction)
    loss = tasks[study.task(task).entry].loss.name
    complaint = study.training.check(len(split.fit), loss)
    timeline = study.training.timeline(len(split.fit))
    complaint = complaint or next(
        filter(None, (untimely(recipe, timeline) for recipe in study.strategies)), ""
    )
    line = study.measure.connectivity or {"from": []}
    late = [clock for clock in line["from"] if timeline.steps(clock) >= timeline.total]
    if late:
        complaint = (
            complaint
            or f"measure.connectivity: from {late[0]!r} nothing is left of training; name an earlier"
        )
    late = [clock for clock in study.keep if timeline.steps(clock) > timeline.total]
    if late:
        complaint = (
            complaint
            or f"keep lists {late[0]!r}, beyond the {timeline.total} steps of training; choose another"
        )
    if complaint:
        raise NatalError(f"task {task!r}: {complaint}")
    net = newborn(study, Run(task, "", 0.0, study.seeds[0], network), split)
    _check_last_batch(net, network, split, study.training)
    of_task = tasks[study.task(task).entry]
    return Setting(
        of_task, net, split, study.training, multiply_adds(net, split), stages=_beyond_birth(study)
    )


def _beyond_birth(study: Study) -> frozenset[str]:
    """Return what a study's stages ask of an engine beyond training from birth under a mask, see `Setting`."""
    found = {"keep"} if study.keep else set()
    if study.measure.connectivity is not None:
        found |= {"keep", "start", "order"}
    for recipe in study.strategies:
        if recipe.spread is not None:
            found |= {"cuts", "keep"}
        elif recipe.at != "init":
            found |= {"keep"} if recipe.rewind == "init" else {"keep", "start"}
    return frozenset(found)


def _check_last_batch(net: nn.Module, name: str, split: Split, training: Training) -> None:
    """Refuse a last batch too small for the network: batch norm has no variance over one number a channel."""
    rows = len(split.fit)
    last = rows % (training.batch or rows) or min(training.batch or rows, rows)
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            copy.deepcopy(net).train()(split.data.inputs[:last])
    except ValueError as error:
        raise NatalError(
            f"training.batch = {training.batch or 'full'}: of {rows} rows to fit, {last} are left for the last batch, "
            f"which network {name!r} cannot train on ({error}); choose another batch"
        ) from None


def newborn(study: Study, run: Run, split: Split) -> nn.Module:
    """Return a run's network at birth."""
    data = split.data
    return born(study.network(run.network), data.shape, data.outputs, run.seed)


def multiply_adds(net: nn.Module, split: Split) -> int:
    """Return the multiply-adds of one row's forward pass: products and convolutions."""
    return round(count(duplicate(net).eval(), split.data.inputs[:1]).multiply_adds)


def trial(
    study: Study,
    run: Run,
    learning_rate: float,
    key: str = "",
    dtype: torch.dtype = torch.float32,
    *,
    precise: bool = False,
) -> Trial:
    """Return the network a run trains. Masks and initial weights are drawn in float32 whatever ``dtype`` says.

    ``precise``: see `natal.pruning.criteria.Problem`.
    """
    task = tasks[study.task(run.task).entry]
    split = load(study.task(run.task), run.seed, study.training.validation_fraction)
    net = newborn(study, run, split)
    recipe = study.recipe(run.strategy)
    if recipe.control == "small-dense":
        if run.sparsity:
            return _small_dense(study, run, learning_rate, key, dtype, precise)
        recipe = recipe.plain
    # scores are sums too: their bits must not depend on the number of threads
    with one_thread(), deterministic():
        problem = _problem(study, run, split, net, precise=precise)
        chosen = mask(recipe, problem, run.sparsity)
        diagnosis = _diagnosis(net, problem, chosen, recipe, run.sparsity)
    # a control may replace initial values, not only the mask
    if chosen.redrawn:
        net.load_state_dict({**net.state_dict(), **chosen.redrawn})
    return Trial(
        key=key,
        task=task,
        split=split,
        network=net.to(dtype),
        mask=chosen,
        training=study.training,
        learning_rate=learning_rate,
        seed=run.seed,
        diagnosis=diagnosis,
        precise=precise,
    )


# -- stages of a chain -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Staged:
    """The trial of a stage, the realised sparsity of every cut since birth, and digests of what it starts from."""

    trial: Trial
    rounds: Sequence[float]
    digests: Mapping[str, str] = field(default_factory=dict)


def staged(study: Study, pending: Pending, found: Mapping[Place, Kept], *, precise: bool = False) -> Staged:
    """Return the network that a stage trains, given the states it starts from; ``precise`` as for `trial`.

    The mask is cut at the parent's state, from what the parent's mask left; then weights, clock and optimiser are wound
    back as the recipe says, and a control replaces the mask or initial weights. A stage from birth under one mask is
    `trial`'s.
    """
    stage, run, recipe = pending.stage, pending.run, pending.stage.recipe
    if stage.parent is None and (recipe is None or not _in_rounds(stage)):
        whole = trial(study, run, stage.learning_rate, pending.key, precise=precise)
        whole = replace(whole, training=stage.training, keep=pending.keep - begins(pending))
        return Staged(whole, () if recipe is None else (whole.mask.sparsity,))
    if stage.order:
        return _sibling(study, pending, found[pending.needs[0]])
    assert recipe is not None
    split = load(study.task(run.task), run.seed, study.training.validation_fraction)
    net = newborn(study, run, split)
    parent, trunk = (*(found[place] for place in pending.needs), None, None)[:2]
    rounds = [] if parent is None else [*parent.rounds]
    with one_thread(), deterministic():
        seen = net if parent is None else _holding(net, parent.state.tensors)
        problem = _problem(study, run, split, seen, precise=precise)
        cuts = _cuts(stage, len(split.fit))
        if cuts is not None:
            chosen = cuts.opening(problem)
        else:
            before = None if parent is None else parent.mask(net)
            since = 0.0 if stage.parent is None else stage.parent.run.sparsity
            for chosen in _in_turn(recipe, problem, stage.targets, before, since):
                rounds.append(chosen.sparsity)
        if recipe.control == "reinit":
            # redrawn are weights at birth, whatever the cut has seen
            chosen = replace(
                chosen, redrawn=redraw(prunable(net, whole=problem.whole), problem.stream("reinit"))
            )
        if chosen.redrawn:
            net.load_state_dict({**net.state_dict(), **chosen.redrawn})
        start = (
            None
            if parent is None
            else _start(stage, parent.state, None if trunk is None else trunk.state, chosen)
        )
        begun = net if start is None else _holding(net, start.tensors)
        diagnosis: dict[str, Any] = {}
        if cuts is None or cuts.regrow is not None:
            asked = None if recipe.rates else run.sparsity
            diagnosis = _diagnosis(
                begun, _problem(study, run, split, begun), chosen, recipe, asked, score_it=False
            )
    return Staged(
        Trial(
            key=pending.key,
            task=tasks[study.task(run.task).entry],
            split=split,
            network=net,
            mask=chosen,
            training=stage.training,
            learning_rate=stage.learning_rate,
            seed=run.seed,
            diagnosis=diagnosis,
            start=start,
            precise=precise,
            keep=pending.keep - begins(pending),
            cuts=cuts,
        ),
        rounds,
        {str(place): found[place].digest for place in pending.needs},
    )


def _sibling(study: Study, pending: Pending, parent: Kept) -> Staged:
    """Return the trial of a training that goes on from a state of another in another order of the data."""
    stage, run = pending.stage, pending.run
    split = load(study.task(run.task), run.seed, study.training.validation_fraction)
    net = newborn(study, run, split)
    of_task = tasks[study.task(run.task).entry]
    chosen = parent.mask(net) or dense(prunable(net))
    sibling = Trial(
        pending.key, of_task, split, net, chosen, stage.training, stage.learning_rate, run.seed,
        start=parent.state, keep=frozenset({"end"}), order=stage.order,
    )  # fmt: skip
    return Staged(sibling, parent.rounds, {str(pending.needs[0]): parent.digest})


def begins(pending: Pending) -> frozenset[str]:
    """Return those clocks among the wanted at which nothing is trained yet."""
    return pending.keep & {"init", f"{pending.stage.first}it"}


def _in_rounds(stage: Stage) -> bool:
    """Whether a stage from birth is cut more than once, or at its own pace."""
    assert stage.recipe is not None
    return stage.recipe.spread is not None or len(stage.targets) > 1 or bool(stage.recipe.rates)


def _in_turn(
    recipe: Recipe, problem: Problem, targets: Sequence[float], before: Mask | None, since: float
) -> Iterator[Mask]:
    """Yield the masks of several cuts at one state, the control's only as the last."""
    for target in targets:
        how = recipe if target == targets[-1] else recipe.plain
        before = cut(how, problem, target, before, recipe.rates, since=None if before is None else since)
        since = target
        yield before


def _cuts(stage: Stage, rows: int) -> Cuts | None:
    """Return the cuts inside a stage's training."""
    recipe = stage.recipe
    assert recipe is not None
    if recipe.spread is None:
        return None
    clock = stage.training.timeline(rows)
    first, last, every = (clock.steps(recipe.spread[name]) for name in ("from", "to", "every"))
    return Cuts(recipe, stage.targets[-1], first, last, every, recipe.regrow, recipe.fraction)


def _start(stage: Stage, parent: State, trunk: State | None, chosen: Mask) -> State | None:
    """Return what training goes on from once the recipe has wound back what it winds back; None, the birth."""
    if stage.start == "init":
        return None
    if stage.start == "none" and stage.at != "end":
        state = parent
    elif trunk is not None:
        state = replace(trunk, optimiser={})
    else:
        state = State(0, parent.tensors)
    kept = chosen.items()
    return replace(
        state,
        tensors={name: _under(kept.get(name), value) for name, value in state.tensors.items()},
        optimiser={name: _under(kept.get(name.rpartition("/")[0]), v) for name, v in state.optimiser.items()},
        mask=kept,
    )


def _under(kept: Tensor | None, value: Tensor) -> Tensor:
    """Return a parameter, or what an optimiser remembers of one, without what a mask removes."""
    return value if kept is None or value.shape != kept.shape else value.masked_fill(~kept, 0)


def _holding(net: nn.Module, tensors: Mapping[str, Tensor]) -> nn.Module:
    """Return a copy of a network with other parameters and buffers."""
    other = copy.deepcopy(net)
    other.load_state_dict(dict(tensors))
    return other


def _small_dense(
    study: Study, run: Run, learning_rate: float, key: str, dtype: torch.dtype, precise: bool
) -> Trial:
    """Return a dense network of the same family with as many parameters as the run's recipe would keep."""
    split = load(study.task(run.task), run.seed, study.training.validation_fraction)
    net, plain = newborn(study, run, split), study.recipe(run.strategy).model_copy(update={"control": None})
    with one_thread(), deterministic():
        chosen = mask(plain, _problem(study, run, split, net, precise=precise), run.sparsity)
    narrow, (shape, outputs) = _narrow(study, run, split, net, chosen), (split.data.shape, split.data.outputs)
    small = born(narrow, shape, outputs, run.seed, dtype)
    return Trial(
        key=key,
        task=tasks[study.task(run.task).entry],
        split=split,
        network=small,
        mask=dense(prunable(small, whole=plain.granularity == "neuron")),
        training=study.training,
        learning_rate=learning_rate,
        seed=run.seed,
        before=(chosen.total, sum(p.numel() for p in net.parameters())),
    )


def _narrow(study: Study, run: Run, split: Split, net: nn.Module, chosen: Mask) -> Network:
    """Return the widest network of a run's family that has no more parameters than a mask leaves to ``net``."""
    total = sum(p.numel() for p in net.parameters())
    removed = sum(int((~kept).sum()) for kept in chosen.items().values())
    return small_dense(study.network(run.network), split.data.shape, split.data.outputs, total - removed)


def try_out(study: Study, run: Run, rows: int) -> None:
    """Make a run's masks from few rows at birth, to see whether its recipe works on its network and data."""
    split = load(study.task(run.task), run.seed, study.training.validation_fraction)
    with one_thread(), deterministic():
        net, recipe = newborn(study, run, split), study.recipe(run.strategy)
        problem = _problem(study, run, split, net, rows)
        if recipe.spread is None and run.sparsity and (recipe.rounds != 1 or recipe.rates):
            for _ in _in_turn(recipe, problem, targets_of(study, recipe, run.sparsity), None, 0.0):
                pass
        elif recipe.control != "small-dense":
            mask(recipe, problem, run.sparsity)
        elif run.sparsity:
            plain = recipe.model_copy(update={"control": None})
            _narrow(study, run, split, net, mask(plain, problem, run.sparsity))


def _problem(
    study: Study, run: Run, split: Split, net: nn.Module, rows: int | None = None, *, precise: bool = False
) -> Problem:
    """Return what a run's criterion sees: its network, and the rows to fit, or of small batches a few a class."""
    fit = split.fit[: scored_rows(split, study.training, rows)]
    task = tasks[study.task(run.task).entry]
    inputs, targets = split.data.inputs[fit], split.data.targets[fit]
    neurons = study.recipe(run.strategy).granularity == "neuron"
    return problem_of(
        net, run.seed, whole=neurons, inputs=inputs, targets=targets, loss=task.loss.value, precise=precise
    )


def _diagnosis(
    net: nn.Module,
    problem: Problem,
    chosen: Mask,
    recipe: Recipe,
    sparsity: float | None,
    *,
    score_it: bool = True,
) -> dict[str, Any]:
    """Return what the mask doctor says of a network about to be trained, JSON-ready; nothing for a dense one.

    ``sparsity``: what was asked for, None where layers go at their own rates. ``score_it``: whether the problem is the
    one that the mask was cut from, so that its scores say where the criterion would empty a layer.
    """
    if sparsity == 0:
        return {}
    assert problem.inputs is not None
    one_shot = traits[recipe.criterion].rounds == 1 and recipe.control is None
    selected = score_it and recipe.granularity == "weight" and recipe.scope == "global" and one_shot
    found = diagnose(
        net,
        chosen,
        problem.inputs[:DIAGNOSED_ROWS],
        # what other granularities remove is no share of weights or neurons
        requested=sparsity if recipe.granularity in ("weight", "neuron") else None,
        random=recipe.criterion == "random" and recipe.control is None,
        scores=score(recipe.criterion, replace(problem, sparsity=sparsity or 0.0)) if selected else None,
    )
    return {
        "effective_sparsity": found.effective_sparsity,
        "collapses_at": found.collapses_at,
        "findings": [[finding.severity, finding.text] for finding in found.findings],
        "layers": [asdict(layer) for layer in found.layers],
        "pictures": pictures(chosen, unit_axes(net), problem.inputs.shape[1:]),
    }


# -- keys --------------------------------------------------------------------------------------------------------------


def key_of(study: Study, run: Run, engine: Engine, device: str, learning_rate: float) -> str:
    """Return the key of a training from birth behind a run, given the entries that this process has imported."""
    return chains.key(study, run, made_by(engine, device), learning_rate, _fingerprints(study, run))


def keys_of(study: Study) -> chains.Keys:
    """Return the keys of a study's trainings, likewise."""
    return chains.Keys(study, lambda run: _fingerprints(study, run))


def key_0_2(study: Study, run: Run, maker: Maker, learning_rate: float) -> str | None:
    """Return the key under which natal 0.2 stored that training, see `natal.study.keys.key_0_2`."""
    return chains.key_0_2(study, run, maker, learning_rate, _fingerprints(study, run))


def _fingerprints(study: Study, run: Run) -> Mapping[str, str]:
    task, network, criterion = (
        study.task(run.task),
        study.network(run.network),
        study.recipe(run.strategy).criterion,
    )
    return {
        task.entry: tasks.fingerprint(task.entry),
        network.entry: networks.fingerprint(network.entry),
        criterion: criteria.fingerprint(criterion),
    }
