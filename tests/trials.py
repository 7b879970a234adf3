"""Networks about to be trained, on small made-up data, for the tests of engines."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from typing import Any

import torch
from torch import Tensor

from natal.lab.engines import ENGINES, Setting
from natal.lab.networks import born
from natal.lab.shapes import Tokens
from natal.lab.state import State
from natal.lab.tasks import Data, Split, tasks
from natal.lab.tasks.data import Augment
from natal.lab.trial import Trained, Trial
from natal.pruning.mask import Mask, prunable
from natal.pruning.select import select
from natal.study import Network, Training

FIT, VAL, TEST = 90, 30, 20
CLASSES, TOKENS = 4, Tokens(3, 7)

OPTIMISERS: dict[str, dict[str, Any]] = {
    "sgd": {"name": "sgd"},
    "momentum": {"name": "sgd", "momentum": 0.9, "weight_decay": 1e-3},
    "nesterov": {"name": "sgd", "momentum": 0.8, "nesterov": True},
    "adam": {"name": "adam", "betas": [0.8, 0.99], "weight_decay": 0.1},
    "adamw": {"name": "adamw", "weight_decay": 0.1},
}
"""Every rule that moves weights, with what it remembers."""


@cache
def split(shape: tuple[int, ...], seed: int, numbers: bool = False, augment: Augment | None = None) -> Split:
    """Random rows of a shape; targets are classes of a random linear map, or with ``numbers`` its two outputs."""
    generator = torch.Generator().manual_seed(seed)
    rows = FIT + VAL + TEST
    if isinstance(shape, Tokens):
        inputs = torch.randint(shape.vocabulary, (rows, *shape), generator=generator)
    else:
        inputs = torch.randn(rows, *shape, generator=generator)
    flat = inputs.flatten(1).float()
    outputs = 2 if numbers else CLASSES
    targets = flat @ torch.randn(flat.shape[1], outputs, generator=generator)
    targets = targets if numbers else targets.argmax(1)
    train = FIT + VAL
    data = Data(
        inputs[:train],
        targets[:train],
        inputs[train:],
        targets[train:],
        outputs,
        vocabulary=getattr(shape, "vocabulary", None),
        augment=augment,
    )
    order = torch.randperm(train, generator=generator)
    return Split(data, order[VAL:], order[:VAL], 1 / outputs)


def trial(
    network: str | Mapping[str, Any],
    shape: tuple[int, ...] = (6,),
    *,
    seed: int = 1,
    rate: float = 1e-2,
    sparsity: float = 0.5,
    dtype: torch.dtype = torch.float32,
    numbers: bool = False,
    augment: Augment | None = None,
    **training: Any,
) -> Trial:
    """A network under a random mask; ``training``: keys of a study's."""
    rows = split(shape, seed, numbers, augment)
    net = born(Network.model_validate(network), rows.data.shape, rows.data.outputs, seed)
    generator = torch.Generator().manual_seed(1000 + seed)
    scores = {name: torch.rand(w.shape, generator=generator) for name, w in prunable(net).items()}
    return Trial(
        key=f"{network} {shape} {seed} {rate} {sparsity}",
        task=tasks["regression" if numbers else "modular"],
        split=rows,
        network=net.to(dtype),
        mask=Mask(select(scores, sparsity)),
        training=how(**training),
        learning_rate=rate,
        seed=seed,
    )


def how(**keys: Any) -> Training:
    """A training of a study's keys that goes its full length."""
    return Training.model_validate({"patience": "none", "target": "none", **keys})


def setting(of: Trial) -> Setting:
    """The setting that a trial belongs to."""
    return Setting(of.task, of.network, of.split, of.training, 1)


def train(engine: str, *trials: Trial, **training: Any) -> list[Trained]:
    """Train on one CPU, in another way than the trials' if one is given; in the order of the trials."""
    asked = [replace(t, training=how(**training)) if training else t for t in trials]
    trained = {t.outcome.key: t for t in ENGINES[engine].train(asked, "cpu")}
    return [trained[t.key] for t in trials]


def bits(trained: Trained) -> tuple[bytes, ...]:
    """Everything a training leaves behind but its time."""
    o = trained.outcome
    facts = json.dumps({name: value for name, value in o.facts().items() if name != "seconds"})
    curves = (curve.tobytes() for curve in o.curves.values())
    return (facts.encode(), *curves, *(p.numpy().tobytes() for p in trained.state.values()))


def removed(trained: Trained, mask: Mask) -> Tensor:
    """All values of a trained network that its mask removes."""
    return torch.cat([trained.state[name][~kept] for name, kept in mask.items().items()])


def same(a: State, b: State) -> bool:
    """Whether two states agree in every bit."""
    pairs = ((a.tensors, b.tensors), (a.optimiser, b.optimiser), (a.mask, b.mask), (a.streams, b.streams))
    return a.step == b.step and all(
        x.keys() == y.keys() and all(torch.equal(x[name], y[name]) for name in x) for x, y in pairs
    )


def after(engine: str, made: Trial, *clocks: str, **training: Any) -> Trained:
    """Train one trial and keep its states at some clocks."""
    (trained,) = train(engine, replace(made, keep=frozenset(clocks)), **training)
    return trained
