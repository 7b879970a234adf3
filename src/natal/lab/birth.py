"""From a row of a study to a `Trial`: data, network, mask and diagnosis, all from the run's seed."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from natal.determinism import deterministic, one_thread
from natal.errors import NatalError
from natal.lab.engines import Engine, Setting, made_by
from natal.lab.networks import born, networks, small_dense
from natal.lab.tasks import Split, load, tasks
from natal.lab.trial import Trial
from natal.pruning.choose import mask, problem_of, score
from natal.pruning.criteria import Problem, criteria, traits
from natal.pruning.doctor import diagnose
from natal.pruning.mask import Mask, dense, prunable
from natal.study import Maker, Network, Recipe, Run, Study, Training
from natal.study import keys as chains

DIAGNOSED_ROWS = 256
"""Training rows the mask doctor runs through a network: enough for scales and dead ReLUs, cheap beside one epoch."""

SCORED_A_CLASS = 10
"""Training rows a class that a criterion sees where a study trains on small batches, if a batch is not larger."""


def setting(study: Study, task: str, network: str) -> Setting:
    """Return one task with one network; raises NatalError for what does not go together."""
    split = load(study.task(task), study.seeds[0], study.training.validation_fraction)
    loss = tasks[study.task(task).entry].loss.name
    complaint = study.training.check(len(split.fit), loss)
    if complaint:
        raise NatalError(f"task {task!r}: {complaint}")
    net = newborn(study, Run(task, "", 0.0, study.seeds[0], network), split)
    _check_last_batch(net, network, split, study.training)
    return Setting(tasks[study.task(task).entry], net, split, study.training, multiply_adds(net, split))


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
    training = net.training
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        net.eval()(split.data.inputs[:1])
    net.train(training)
    return int(counter.get_total_flops()) // 2


def trial(
    study: Study, run: Run, learning_rate: float, key: str = "", dtype: torch.dtype = torch.float32
) -> Trial:
    """Return the network a run trains. Masks and initial weights are drawn in float32 whatever ``dtype`` says."""
    task = tasks[study.task(run.task).entry]
    split = load(study.task(run.task), run.seed, study.training.validation_fraction)
    net = newborn(study, run, split)
    recipe = study.recipe(run.strategy)
    if recipe.control == "small-dense" and run.sparsity:
        return _small_dense(study, run, learning_rate, key, dtype)
    # scores are sums too: their bits must not depend on the number of threads
    with one_thread(), deterministic():
        problem = _problem(study, run, split, net)
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
    )


def _small_dense(study: Study, run: Run, learning_rate: float, key: str, dtype: torch.dtype) -> Trial:
    """Return a dense network of the same family with as many parameters as the run's recipe would keep."""
    split = load(study.task(run.task), run.seed, study.training.validation_fraction)
    net, plain = newborn(study, run, split), study.recipe(run.strategy).model_copy(update={"control": None})
    with one_thread(), deterministic():
        chosen = mask(plain, _problem(study, run, split, net), run.sparsity)
    narrow, (shape, outputs) = _narrow(study, run, split, net, chosen), (split.data.shape, split.data.outputs)
    small = born(narrow, shape, outputs, run.seed, dtype)
    return Trial(
        key=key,
        task=tasks[study.task(run.task).entry],
        split=split,
        network=small,
        mask=dense(prunable(small, ())),
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
    """Make a run's mask from few rows, to see whether its recipe works on its network and data."""
    split = load(study.task(run.task), run.seed, study.training.validation_fraction)
    with one_thread(), deterministic():
        net, recipe = newborn(study, run, split), study.recipe(run.strategy)
        problem = _problem(study, run, split, net, rows)
        if recipe.control != "small-dense":
            mask(recipe, problem, run.sparsity)
        elif run.sparsity:
            plain = recipe.model_copy(update={"control": None})
            _narrow(study, run, split, net, mask(plain, problem, run.sparsity))


def _problem(study: Study, run: Run, split: Split, net: nn.Module, rows: int | None = None) -> Problem:
    """Return what a run's criterion sees: its network, and the rows to fit, or of small batches a few a class."""
    batch = study.training.batch
    if batch is not None:
        rows = min(rows or len(split.fit), max(batch, SCORED_A_CLASS * split.data.outputs))
    fit = split.fit[:rows]
    task = tasks[study.task(run.task).entry]
    inputs, targets = split.data.inputs[fit], split.data.targets[fit]
    return problem_of(net, run.seed, inputs=inputs, targets=targets, loss=task.loss.value)


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
        # what other granularities remove is no share of weights or neurons
        requested=sparsity if recipe.granularity in ("weight", "neuron") else None,
        random=recipe.criterion == "random" and recipe.control is None,
        scores=score(recipe.criterion, replace(problem, sparsity=sparsity)) if selected else None,
    )
    return {
        "effective_sparsity": found.effective_sparsity,
        "collapses_at": found.collapses_at,
        "findings": [[finding.severity, finding.text] for finding in found.findings],
        "layers": [asdict(layer) for layer in found.layers],
    }


# -- keys --------------------------------------------------------------------------------------------------------------


def key_of(study: Study, run: Run, engine: Engine, device: str, learning_rate: float) -> str:
    """Return the key of the training behind a run, given the entries that this process has imported."""
    return chains.key(study, run, made_by(engine, device), learning_rate, _fingerprints(study, run))


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
