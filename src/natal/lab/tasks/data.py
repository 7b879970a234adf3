"""What a task hands over: rows to learn from and rows to be judged on, and how they are divided."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from natal.lab.shapes import Tokens, said
from natal.notebook import Rows, Shown
from natal.wording import plural

Augment = Callable[[Tensor, Generator], Tensor]
"""``augment(inputs, generator)``: a batch's inputs, changed at random, as many and of the same shape."""


@dataclass(frozen=True, repr=False)
class Data(Shown):
    """Rows to learn from and rows to be judged on.

    ``inputs``: (rows, ...) float32, or (rows, length) int64 tokens below ``vocabulary``. ``targets``: (rows,) int64
    classes for cross-entropy, (rows, outputs) float32 for squared error. ``outputs``: width of the network's last
    layer. ``stratified``: validation rows are drawn with equal shares of every class. ``augment``: what is done to
    every batch of training inputs, drawing from the generator it is given.
    """

    inputs: Tensor
    targets: Tensor
    test_inputs: Tensor
    test_targets: Tensor
    outputs: int
    vocabulary: int | None = None
    stratified: bool = False
    augment: Augment | None = None

    def _line(self) -> str:
        rows = f"{len(self.inputs):,} training and {len(self.test_inputs):,} test {said(self.shape)}"
        return f"{rows}, {plural(self.outputs, 'output')}"

    def _table(self) -> Rows:
        for name in TENSORS:
            tensor = getattr(self, name)
            yield name, " x ".join(map(str, tensor.shape)), str(tensor.dtype).removeprefix("torch.")

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one row, as a network is told it: `Tokens` for tokens."""
        shape = tuple(self.inputs.shape[1:])
        return shape if self.vocabulary is None else Tokens(shape[0], self.vocabulary)


TENSORS = ("inputs", "targets", "test_inputs", "test_targets")
"""The tensors among `Data`'s fields."""


@dataclass(frozen=True)
class Split:
    """A task's data with its training rows divided: ``fit`` rows are trained on, ``val`` rows choose the best epoch.

    ``chance``: the metric of a network that has learned nothing.
    """

    data: Data
    fit: Tensor
    val: Tensor
    chance: float = math.nan

    @property
    def augment(self) -> Augment | None:
        """What is done to every batch of training inputs."""
        return self.data.augment


def divide(
    rows: int, count: int, generator: Generator, classes: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Return (held out, rest): ``count`` of ``rows`` drawn at random, and the others, both in the order drawn.

    With ``classes``, (rows,) int64, every class gives its share of the count, rounded by largest remainders.
    """
    order = torch.randperm(rows, generator=generator)
    if classes is None:
        return order[:count], order[count:]
    sizes = torch.bincount(classes)
    quotas = sizes * count // rows
    remainders = sizes * count % rows
    quotas[remainders.argsort(descending=True, stable=True)[: count - int(quotas.sum())]] += 1
    drawn = classes[order]
    # the how-manieth of its class each row is, in the order drawn
    place = torch.nn.functional.one_hot(drawn).cumsum(0).gather(1, drawn[:, None])[:, 0]
    held = place <= quotas[drawn]
    return order[held], order[~held]
