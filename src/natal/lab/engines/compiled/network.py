"""Which networks are chains of linear layers, and what a chain reads of a task's data."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from natal.lab.engines.compiled.chain import Linear
from natal.lab.engines.compiled.steps import Data
from natal.lab.engines.compiled.vectors import Array, wide
from natal.lab.networks.mlp import Bag
from natal.pruning.mask import Mask

FEW = 8
"""Whole-number inputs are taken as positions of ones where at most one number in so many is not zero."""


@dataclass(frozen=True)
class Chain:
    """The layers of a module, in order, by the names of their parameters.

    ``before``: what comes before the first linear layer and has no parameters. ``relu``: whether one follows each.
    """

    before: nn.Sequential
    layers: tuple[str, ...]
    relu: tuple[bool, ...]

    @property
    def reads(self) -> tuple[object, ...]:
        """What it reads of a row: equal for chains that read the same."""
        return tuple((type(module), getattr(module, "vocabulary", None)) for module in self.before)


def chain_of(net: nn.Module) -> Chain | str:
    """Return a module as a chain, or why it is none."""
    before: list[nn.Module] = []
    layers: list[str] = []
    relu: list[bool] = []
    for name, module in _steps(net, ""):
        if type(module) is nn.Linear:
            layers.append(name)
            relu.append(False)
        elif type(module) is nn.ReLU and layers:
            relu[-1] = True
        elif not layers and (type(module) is Bag or (type(module) is nn.Flatten and _flattens_rows(module))):
            before.append(module)
        else:
            return f"it takes chains of linear layers with ReLU, and this network has {type(module).__name__}"
    if not layers:
        return "it takes chains of linear layers with ReLU, and this network has no linear layer"
    if relu[-1]:
        return "it takes chains that end in a linear layer, and this one ends in ReLU"
    parameters = [p for name in layers for p in _layer(net, name).parameters()]
    if len({id(p) for p in parameters}) < len(parameters):
        return "it does not take layers that share their weights"
    if not all(p.requires_grad for p in parameters):
        return "it trains every weight, and some of this network's are frozen"
    if any(module._forward_hooks or module._forward_pre_hooks for module in net.modules()):
        return "it does not take modules with hooks"
    return Chain(nn.Sequential(*before), tuple(layers), tuple(relu))


def _steps(module: nn.Module, name: str) -> list[tuple[str, nn.Module]]:
    """Return the modules of nested sequences with their names, in order."""
    if type(module) is not nn.Sequential:
        return [(name, module)]
    prefix = f"{name}." if name else ""
    children = zip(module._modules, module, strict=True)  # named_children leaves out what comes a second time
    return [step for child, inner in children for step in _steps(inner, prefix + child)]


def _flattens_rows(module: nn.Flatten) -> bool:
    return (module.start_dim, module.end_dim) == (1, -1)


def _layer(net: nn.Module, name: str) -> nn.Linear:
    layer = net.get_submodule(name)
    assert isinstance(layer, nn.Linear)
    return layer


def arrays(net: nn.Module, chain: Chain) -> list[tuple[Array, Array | None]]:
    """Return each layer's (weight, bias) as arrays that share the module's memory."""
    layers = [_layer(net, name) for name in chain.layers]
    return [
        (layer.weight.detach().numpy(), layer.bias.detach().numpy() if layer.bias is not None else None)
        for layer in layers
    ]


def linears(net: nn.Module, chain: Chain, mask: Mask) -> list[Linear]:
    """Return the layers with what a mask keeps of them; what it does not name is kept."""
    kept = mask.items()
    found = []
    for name, relu, (weight, bias) in zip(chain.layers, chain.relu, arrays(net, chain), strict=True):
        keep, keep_bias = (
            np.ones(p.shape, bool) if key not in kept else kept[key].numpy()
            for key, p in ((f"{name}.weight", weight), (f"{name}.bias", weight[:, 0]))
        )
        found.append(Linear(keep, keep_bias if bias is not None else None, relu))
    return found


def ones_a_row(inputs: Tensor) -> int:
    """Return how many ones every row is the sum of, if it is of as many few ones, as in one-hot groups, else 0.

    ``inputs``: (row, input), all training rows of a trial, so that the answer is its own affair.
    """
    few = float(inputs[0].sum())
    if not (few.is_integer() and 0 < few <= inputs.shape[1] / FEW):
        return 0
    whole = (inputs >= 0).all() and (inputs == inputs.floor()).all()
    return int(few) if whole and bool((inputs.sum(1) == few).all()) else 0


def data_of(inputs: Tensor, targets: Tensor, ones: int, dtype: torch.dtype) -> Data:
    """Return rows of a task as the kernels read them. ``inputs``: (row, input); ``ones``: see `ones_a_row`."""
    number = torch.empty(0, dtype=dtype).numpy().dtype
    rows, width = inputs.shape
    if ones:
        row, place = inputs.nonzero(as_tuple=True)
        places = place.repeat_interleave(inputs[row, place].long())
        positions, numbers = places.reshape(rows, ones).to(torch.int32).numpy(), np.zeros((rows, 0), number)
    else:
        positions, numbers = np.zeros((rows, 0), np.int32), inputs.numpy()
        if numbers.dtype != number or width != wide(width) or not numbers.flags.c_contiguous:
            numbers = np.zeros((rows, wide(width)), number)
            numbers[:, :width] = inputs.numpy()
    if targets.is_floating_point():
        return Data(numbers, positions, np.zeros(0, np.int32), np.ascontiguousarray(targets.numpy(), number))
    return Data(numbers, positions, targets.to(torch.int32).numpy(), np.zeros((0, 0), number))
