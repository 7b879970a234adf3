"""Chains of fully connected layers."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from natal.errors import NatalError
from natal.lab.networks.network import network
from natal.lab.options import Positive, Size
from natal.lab.shapes import Tokens, numbers, said

Activation = Literal["relu", "leaky-relu", "gelu", "silu", "tanh", "sigmoid"]

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "leaky-relu": nn.LeakyReLU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
}


@network("mlp")
def mlp(
    shape: tuple[int, ...],
    outputs: int,
    *,
    hidden: Sequence[Size] = (128,),
    activation: Activation = "relu",
    batch_norm: bool = False,
    bias: bool = True,
    embedding: Size | None = None,
    residual: bool = False,
    readout: Size | None = None,
    width: Positive = 1.0,
) -> nn.Module:
    """Fully connected layers of any number and size; the paper's network is ``hidden = [128]``.

    ``hidden``: sizes of the hidden layers, first to last; none makes a linear model. ``activation``: after each of
    them. ``batch_norm``: between a hidden layer and its activation. ``bias``: of the hidden and output layers.
    ``embedding``: size of one embedding shared by the places of a row and summed over them (Minegishi et al. 2023,
    section 3): the row is tokens, or one-hot blocks as wide as the outputs. ``residual``: a hidden layer as wide as the
    one before adds to it, h + act(W h + b) (MNIST-1D's 40-500-500-10). ``readout``: size of a linear layer before the
    output, without activation (Minegishi et al.'s unembedding). ``width``: factor on all sizes, rounded.

    Layers are called ``hidden`` and ``output``, or ``hidden1``, ``hidden2``, ... where there are several.
    """
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    if embedding is not None:
        vocabulary = shape.vocabulary if isinstance(shape, Tokens) else outputs
        layers["bag"] = Bag(shape, vocabulary)
        size = _scaled(embedding, width)
        layers["embedding"] = nn.Linear(vocabulary, size, bias=False)
    else:
        numbers(shape, "; give it an embedding, such as embedding = 128")
        if len(shape) > 1:
            layers["flatten"] = nn.Flatten()
        size = math.prod(shape)
    skips = False
    for number, wanted in enumerate(hidden, start=1):
        n, before = str(number) if len(hidden) > 1 else "", size
        size = _scaled(wanted, width)
        block: OrderedDict[str, nn.Module] = OrderedDict({f"hidden{n}": nn.Linear(before, size, bias=bias)})
        if batch_norm:
            block[f"norm{n}"] = nn.BatchNorm1d(size)
        block[f"{activation}{n}"] = ACTIVATIONS[activation]()
        if residual and number > 1 and size == before:
            layers[f"residual{n}"] = Residual(block)
            skips = True
        else:
            layers |= block
    if residual and not skips:
        raise NatalError(
            f"has residual = true, but no hidden layer is as wide as the one before: {list(hidden)}; give two "
            "neighbours one size"
        )
    if readout is not None:
        before, size = size, _scaled(readout, width)
        layers["readout"] = nn.Linear(before, size, bias=bias)
    layers["output"] = nn.Linear(size, outputs, bias=bias)
    return nn.Sequential(layers)


@network("lenet-300-100")
def lenet_300_100(shape: tuple[int, ...], outputs: int, *, width: Positive = 1.0) -> nn.Module:
    """Two hidden ReLU layers of 300 and 100 (LeCun et al. 1998, section III.C.4; Frankle & Carbin 2019, figure 2).

    266,200 weights and 410 biases on MNIST. ``width``: factor on both sizes, rounded.
    """
    return mlp(numbers(shape), outputs, hidden=[300, 100], width=width)


def _scaled(size: int, width: float) -> int:
    return max(1, round(size * width))


class Residual(nn.Module):
    """x + f(x), f a chain of named layers."""

    def __init__(self, layers: OrderedDict[str, nn.Module]) -> None:
        super().__init__()
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, x: Tensor) -> Tensor:
        """Return x + f(x)."""
        y = x
        for layer in self.children():
            y = layer(y)
        return x + y


class Bag(nn.Module):
    """How often each token turns up in a row: (rows, vocabulary) float counts.

    A linear layer without bias on top is an embedding summed over a row: W (e_a + e_b) = W e_a + W e_b. Reads rows of
    tokens, or of one-hot blocks of ``vocabulary`` numbers.
    """

    one_hot: Tensor

    def __init__(self, shape: tuple[int, ...], vocabulary: int) -> None:
        super().__init__()
        self.vocabulary, self.tokens = vocabulary, isinstance(shape, Tokens)
        if not self.tokens and (len(shape) != 1 or shape[0] % vocabulary):
            raise NatalError(
                f"embeds tokens or one-hot blocks of {vocabulary} numbers, one per output, not {said(shape)}; "
                "leave embedding out"
            )
        if self.tokens:
            self.register_buffer("one_hot", torch.eye(vocabulary), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return the counts."""
        if self.tokens:
            return F.embedding(x, self.one_hot).sum(1)
        return x.reshape(x.size(0), -1, self.vocabulary).sum(1)
