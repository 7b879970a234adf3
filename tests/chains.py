"""Trials of chains of linear layers, made of numbers that are the same on every processor."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from natal.lab.engines import ENGINES
from natal.lab.networks.draws import SameEverywhere
from natal.lab.tasks import LOSSES, METRICS, Data, Split, Task
from natal.lab.trial import Trained, Trial
from natal.pruning.mask import Mask
from natal.study import Training

CLASSES = Task("classes", lambda seed: None, LOSSES["cross-entropy"], METRICS["accuracy"], 0.01, None)  # type: ignore[arg-type,return-value]
NUMBERS = Task("numbers", lambda seed: None, LOSSES["squared-error"], METRICS["R²"], 0.01, None)  # type: ignore[arg-type,return-value]


def rows(
    rng: np.random.Generator, task: Task, count: int, inputs: int, outputs: int, ones: int
) -> tuple[Tensor, Tensor]:
    """Inputs, one-hot groups if ``ones``, and targets."""
    if ones:
        x = torch.zeros(count, inputs)
        for group in np.array_split(np.arange(inputs), ones):
            x[torch.arange(count), torch.from_numpy(rng.choice(group, count))] = 1
    else:
        x = torch.from_numpy((4 * rng.random((count, inputs)) - 2).astype(np.float32))
    if task is CLASSES:
        return x, torch.from_numpy(rng.integers(0, outputs, count))
    return x, torch.from_numpy((4 * rng.random((count, outputs)) - 2).astype(np.float32))


def trial(
    seed: int,
    training: Training,
    sizes: list[int],
    densities: list[float],
    *,
    task: Task = CLASSES,
    ones: int = 0,
    bias: bool = True,
    without: float = 0.0,
    fit: int = 50,
    dtype: torch.dtype = torch.float64,
) -> Trial:
    """A chain of ``sizes``, each layer keeping a share of its weights, and ``without`` being a share of biases."""
    rng = np.random.default_rng(seed)
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    with SameEverywhere():
        for inner, outer in pairwise(sizes):
            layers += [nn.Linear(inner, outer, bias=bias), nn.ReLU()]
    net = nn.Sequential(*layers[:-1]).to(dtype)
    kept = {
        f"{2 * n}.weight": torch.from_numpy(rng.random((outer, inner)) < density)
        for n, (inner, outer, density) in enumerate(zip(sizes, sizes[1:], densities, strict=False))
    }
    gone = {
        name: torch.from_numpy(rng.random(len(p)) >= without)
        for name, p in net.named_parameters()
        if name.endswith("bias") and without
    }
    train, test = (rows(rng, task, count, sizes[0], sizes[-1], ones) for count in (fit + 20, 15))
    order = torch.from_numpy(rng.permutation(fit + 20))
    split = Split(Data(*train, *test, outputs=sizes[-1]), fit=order[20:], val=order[:20], chance=0.0)
    return Trial("key", task, split, net, Mask(kept, gone), training, 0.01, seed)


def ways(**keys: Any) -> Training:
    """A training of 20 steps whose last weights are kept, unless ``keys`` say otherwise."""
    table = {"length": "20it", "evaluate": "7it", "decide": "end", "patience": "none", "target": "none"}
    return Training.model_validate({**table, **keys})


def train(engine: str, *trials: Trial) -> list[Trained]:
    return list(ENGINES[engine].train(trials, "cpu"))
