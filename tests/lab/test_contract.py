"""What every engine promises, over networks, tasks and ways to train: one experiment, masks that hold, the same bits.

In ``make test`` every pair of values meets at least once; in ``make test-all`` every combination.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Generator, Tensor

import natal
from conftest import trainings
from natal.lab.engines import ENGINES
from natal.lab.trial import Trained, Trial
from trials import TOKENS, bits, removed, setting, train, trial

# No neuron without inputs stands before a batch norm: it has no gradient but that of rounding, which Adam makes whole
# steps of.
NETWORKS: dict[str, tuple[Mapping[str, Any], tuple[int, ...]]] = {
    "mlp": ({"network": "mlp", "hidden": [9]}, (6,)),
    "linear": ({"network": "mlp", "hidden": []}, (6,)),
    "deep": ({"network": "mlp", "hidden": [9, 8, 7], "activation": "tanh"}, (6,)),
    "normed": (
        {"network": "mlp", "hidden": [24, 20], "activation": "gelu", "batch_norm": True, "bias": False},
        (24,),
    ),
    "residual": ({"network": "mlp", "hidden": [8, 8], "residual": True}, (6,)),
    "embedding": ({"network": "mlp", "embedding": 5}, TOKENS),
    "lenet-300-100": ({"network": "lenet-300-100", "width": 0.05}, (1, 5, 5)),
    "lenet-5": ({"network": "lenet-5", "width": 0.5}, (1, 12, 12)),
    "resnet-20": ({"network": "resnet-20", "width": 2}, (1, 8, 8)),
    "projection": ({"network": "resnet-20", "width": 2, "shortcut": "projection"}, (3, 8, 8)),
    "vgg-11": ({"network": "vgg-11", "width": 2, "batch_norm": False}, (1, 16, 16)),
    "vgg-11-bn": ({"network": "vgg-11", "width": 2}, (1, 32, 32)),
    "conv-2": ({"network": "conv-2", "width": 2}, (1, 8, 8)),
    "transformer": ({"network": "transformer", "width": 8, "heads": 2, "norm": True}, TOKENS),
}

IDLE = {"vgg-11-bn": re.compile(r"conv\d+\.bias|norm\d+\.running_mean")}
"""Biases that a batch norm takes away again, which rounding alone moves, and the means that follow them."""

LONG = ("vgg-11-bn", "vgg-11", "projection", "resnet-20")
"""Networks too large for ``make test``: all their combinations are in ``make test-all``."""


def noise(x: Tensor, generator: Generator) -> Tensor:
    return x + torch.randn(x.shape, generator=generator) if x.is_floating_point() else x


TASKS: dict[str, dict[str, Any]] = {
    "classes": {},
    "numbers": {"numbers": True},
    "augmented": {"augment": noise},
}

WAYS: dict[str, dict[str, Any]] = {
    "adam": {"test_curve": True},
    "adamw": {
        "optimiser": {"name": "adamw", "weight_decay": 0.1},
        "batch": 45,
        "clip": 0.5,
        "schedule": "linear",
    },
    "nesterov": {
        "optimiser": {"name": "sgd", "momentum": 0.9, "nesterov": True},
        "batch": 40,
        "schedule": {"name": "cosine", "warmup": "3it"},
        "decide": "val-loss",
    },
    "momentum": {
        "optimiser": {"name": "sgd", "momentum": 0.5, "weight_decay": 1e-3},
        "schedule": [["10it", 0.1]],
        "decide": "end",
    },
    "smoothed": {
        "optimiser": {"name": "adam", "betas": [0.8, 0.99], "weight_decay": 0.01},
        "batch": 64,
        "label_smoothing": 0.1,
        "clip": 0.1,
    },
}


def pairs(*factors: Sequence[str]) -> list[tuple[str, ...]]:
    """Rows in which every two values of different factors meet: each row takes what meets most that has not yet."""
    places = list(itertools.combinations(range(len(factors)), 2))
    missing = {(i, j, a, b) for i, j in places for a in factors[i] for b in factors[j]}

    def new(row: tuple[str, ...]) -> set[tuple[int, int, str, str]]:
        return {(i, j, row[i], row[j]) for i, j in places} & missing

    rows = []
    while missing:
        rows.append(max(itertools.product(*factors), key=lambda row: len(new(row))))
        missing -= new(rows[-1])
    return rows


PAIRS = pairs([n for n in NETWORKS if n not in LONG], list(TASKS), list(WAYS))
EVERY = list(itertools.product(NETWORKS, TASKS, WAYS))


def test_every_pair_meets() -> None:
    for i, j in itertools.combinations(range(3), 2):
        both = {(row[i], row[j]) for row in PAIRS}
        assert both == {(row[i], row[j]) for row in EVERY if row[0] not in LONG}
    assert len(PAIRS) < len(EVERY) / 2


def lanes(
    network: str, task: str, way: str, dtype: torch.dtype = torch.float64, steps: int = 20
) -> list[Trial]:
    """Three trainings: of two seeds, whose data differ, one dense, one at another learning rate."""
    of, shape = NETWORKS[network]
    how = {"length": f"{steps}it", "evaluate": f"{steps // 4}it", **WAYS[way], **TASKS[task]}
    if task == "numbers":
        how.pop("label_smoothing", None)
    seeds, rates, sparsities = (1, 1, 2), (1e-2, 1e-2, 3e-3), (0.5, 0.0, 0.7)
    return [
        trial(of, shape, seed=seed, rate=rate, sparsity=sparsity, dtype=dtype, **how)
        for seed, rate, sparsity in zip(seeds, rates, sparsities, strict=True)
    ]


def same_experiment(
    ours: Trained, theirs: Trained, tolerance: float, idle: re.Pattern[str] | None = None
) -> None:
    assert ours.outcome.steps_trained == theirs.outcome.steps_trained == 20
    assert (ours.outcome.kept, ours.outcome.nonzero_params) == (
        theirs.outcome.kept,
        theirs.outcome.nonzero_params,
    )
    for name, curve in theirs.outcome.curves.items():
        np.testing.assert_allclose(
            ours.outcome.curves[name], curve, rtol=tolerance, atol=tolerance, err_msg=name
        )
    assert ours.outcome.best_step == theirs.outcome.best_step
    assert ours.state.keys() == theirs.state.keys()
    for name, value in theirs.state.items():
        if idle and idle.fullmatch(name):
            continue
        error = (ours.state[name] - value).abs().max()
        assert error <= tolerance * max(1, value.abs().max().item()), name


def agree(network: str, task: str, way: str) -> None:
    made = lanes(network, task, way)
    convolutions = len(NETWORKS[network][1]) == 3
    expected = train("torch", *made)
    for trained, of in zip(expected, made, strict=True):
        assert not removed(trained, of.mask).any()
    for engine in ENGINES:
        if engine != "torch" and not ENGINES[engine].refuses(setting(made[0])):
            for ours, theirs, of in zip(train(engine, *made), expected, made, strict=True):
                assert ours.outcome.made_by.engine == engine
                assert not removed(ours, of.mask).any()
                same_experiment(ours, theirs, 1e-7 if convolutions else 1e-9, IDLE.get(network))


@pytest.mark.parametrize(("network", "task", "way"), PAIRS)
def test_engines_do_one_experiment(network: str, task: str, way: str) -> None:
    agree(network, task, way)


@pytest.mark.slow
@pytest.mark.parametrize(("network", "task", "way"), [row for row in EVERY if row not in PAIRS])
def test_engines_do_one_experiment_in_every_combination(network: str, task: str, way: str) -> None:
    agree(network, task, way)


@pytest.mark.parametrize("network", NETWORKS)
def test_the_stack_takes_every_network_there_is(network: str) -> None:
    for task in TASKS:
        made = lanes(network, task, "adam", torch.float32)[0]
        assert ENGINES["stacked"].refuses(setting(made)) == ""


# -- the same bits -------------------------------------------------------------------------------------------


def same_bits(network: str, task: str, way: str) -> None:
    made = lanes(network, task, way, torch.float32, steps=4)
    for engine in ("torch", "compiled"):
        if not ENGINES[engine].refuses(setting(made[0])):
            expected = [bits(t) for t in train(engine, *made)]
            assert [bits(train(engine, t)[0]) for t in made] == expected
            assert [bits(t) for t in train(engine, *made[::-1])] == expected[::-1]


@pytest.mark.parametrize(("network", "task", "way"), PAIRS[::4])
def test_a_training_has_the_same_bits_in_any_company(network: str, task: str, way: str) -> None:
    same_bits(network, task, way)


@pytest.mark.slow
@pytest.mark.parametrize(("network", "task", "way"), [row for row in EVERY if row not in PAIRS[::4]])
def test_a_training_has_the_same_bits_in_any_company_in_every_combination(
    network: str, task: str, way: str
) -> None:
    same_bits(network, task, way)


STUDY: dict[str, Any] = {
    "name": "contract",
    "tasks": [{"task": "modular", "modulus": 11}],
    "networks": [
        {"network": "mlp", "hidden": [16, 12]},
        {"network": "mlp", "hidden": [8], "batch_norm": True},
    ],
    "strategies": ["random", "magnitude"],
    "sparsities": [0.0, 0.5],
    "seeds": [1, 2],
    "training": {
        "length": "3ep",
        "batch": 32,
        "optimiser": {"name": "sgd", "momentum": 0.9},
        "learning_rate": 0.1,
    },
}


@pytest.mark.usefixtures("no_report")
def test_the_same_bits_after_a_resume_and_with_two_workers(tmp_path: Path) -> None:
    natal.run(STUDY, tmp_path / "once", workers=1)
    natal.run({**STUDY, "seeds": [2], "sparsities": [0.5]}, tmp_path / "resumed", workers=1)
    natal.run(STUDY, tmp_path / "resumed", workers=2)
    once, resumed = trainings(tmp_path / "once"), trainings(tmp_path / "resumed")
    assert len(once) == 12  # a network's dense one is trained once a seed
    assert resumed == once
