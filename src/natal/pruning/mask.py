"""A mask: which weights of a network are kept; and which of its weights can be pruned at all."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from natal.errors import NatalError
from natal.notebook import Rows, Shown
from natal.registry import did_you_mean
from natal.wording import plural


@dataclass(frozen=True, repr=False)
class Mask(Shown):
    """Which weights are kept, by parameter name; True = kept.

    ``weights``: the prunable weights, whose share of removals is the sparsity. ``biases``: what is set to
    zero along with a removed neuron and never counted: its bias, and the scale and shift of a batch norm that
    follows it. ``units``: for a mask of whole neurons, which neurons of each layer stay, by the layer's
    weight. ``redrawn``: initial values that replace the network's own, for the controls that redraw them.
    ``inputs``: of what the model was called with, (dtype, shape) by position or name, no data, so that compaction
    needs no example. ``reached``: for a mask of whole neurons that met a target, the shares of the dense network's
    multiply-adds, parameters or time that are left.
    """

    weights: Mapping[str, Tensor]
    biases: Mapping[str, Tensor] = field(default_factory=dict)
    units: Mapping[str, Tensor] = field(default_factory=dict)
    redrawn: Mapping[str, Tensor] = field(default_factory=dict)
    inputs: Mapping[str, Any] = field(default_factory=dict)
    reached: Mapping[str, float] = field(default_factory=dict)

    def _line(self) -> str:
        layers = plural(len(self.weights), "layer")
        return f"{self.kept:,} of {self.total:,} weights kept in {layers}, sparsity {self.sparsity:.4g}"

    def _table(self) -> Rows:
        yield "layer", "shape", "kept", "density"
        for name, kept in self.weights.items():
            count = int(kept.sum())
            shape = " x ".join(map(str, kept.shape))
            yield name, shape, f"{count:,} of {kept.numel():,}", f"{count / kept.numel():.2%}"

    @property
    def total(self) -> int:
        """Number of prunable weights."""
        return sum(m.numel() for m in self.weights.values())

    @property
    def kept(self) -> int:
        """Number of prunable weights kept."""
        return sum(int(m.sum()) for m in self.weights.values())

    @property
    def sparsity(self) -> float:
        """Share of prunable weights removed (realised); 0 where none are masked."""
        return 1 - self.kept / self.total if self.weights else 0.0

    def densities(self) -> dict[str, float]:
        """Share of weights kept, by parameter name; 0 means the layer has collapsed."""
        return {name: int(m.sum()) / m.numel() for name, m in self.weights.items()}

    def items(self) -> dict[str, Tensor]:
        """Return all masked parameters by name, weights and biases alike."""
        return {**self.weights, **self.biases}

    def to(self, device: str | torch.device) -> Mask:
        """Return the mask on a device."""
        weights, biases, units, redrawn = (
            {name: t.to(device) for name, t in part.items()}
            for part in (self.weights, self.biases, self.units, self.redrawn)
        )
        return Mask(weights, biases, units, redrawn, self.inputs, self.reached)

    @torch.no_grad()
    def apply_(self, parameters: Mapping[str, Tensor]) -> None:
        """Set the removed entries of ``parameters`` (by name) to zero, in place."""
        for name, kept in self.items().items():
            parameters[name].mul_(kept)


def dense(weights: Mapping[str, Tensor]) -> Mask:
    """Return the mask that keeps everything."""
    return Mask({name: torch.ones_like(w, dtype=torch.bool) for name, w in weights.items()})


LAYERS: dict[type[nn.Module], dict[str, int]] = {
    **{kind: {"weight": 0} for kind in (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)},
    # an attention module's input projections are linear layers too
    nn.MultiheadAttention: dict.fromkeys(
        ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight"), 0
    ),
}
"""By kind of module, the parameters that can be pruned, and the axis along which each holds the layer's units."""

WHOLE = (nn.RNNBase, nn.RNNCellBase, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
"""Modules that can only lose whole units: their single weights are not prunable."""


def check_model(model: object) -> None:
    """Raise NatalError unless ``model`` is a module."""
    if not isinstance(model, nn.Module):
        raise NatalError(f"model must be a torch.nn.Module, got {model!r}")


def layer(kind: type[nn.Module], **axes: int) -> None:
    """Make parameters of a user's own module prunable: ``natal.layer(MyDense, weight=1)``.

    ``axes``: by parameter, the axis along which it holds the layer's units (its outputs), 0 for one of (out, in, ...).
    Raises NatalError if ``kind`` is no class of modules or no parameter is named.
    """
    if not (isinstance(kind, type) and issubclass(kind, nn.Module)):
        raise NatalError(f"layer takes a class of modules, such as nn.Linear, got {kind!r}")
    if not axes or any(axis not in (0, 1) for axis in axes.values()):
        raise NatalError(
            f"layer takes the parameters of {kind.__name__} with the axis of their units, 0 or 1, such as weight=0, "
            f"got {axes}"
        )
    LAYERS[kind] = axes


def weight_names(model: nn.Module, *, whole: bool = False) -> dict[str, list[str]]:
    """Return the prunable parameters of a model, each with all the names it goes by, that of its layer first; shared
    weights count once.

    These are the weights of linear and convolution layers, the input projections of ``nn.MultiheadAttention`` and what
    `layer` names. Not among them: biases, norms, embeddings (but a layer's weight that one shares is), and weights
    that are computed, as a parametrization does. ``whole``: also those of recurrent and transposed layers, which can
    lose whole units only.
    """
    names: dict[int, list[str]] = {}
    for name, module, leaf in _prunable_entries(model, whole):
        parameter = module._parameters.get(leaf)
        if parameter is not None:
            names.setdefault(id(parameter), []).append(name)
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if id(parameter) in names and name not in names[id(parameter)]:
            names[id(parameter)].append(name)
    return {aliases[0]: aliases for aliases in names.values()}


def unit_axes(model: nn.Module) -> dict[str, int]:
    """Return, by name, the axis along which every prunable parameter holds its layer's units, whole ones included."""
    return {
        name: _axes(module, whole=True)[leaf] for name, module, leaf in _prunable_entries(model, whole=True)
    }


def first_layer(model: nn.Module) -> tuple[str, Tensor]:
    """Return name and weight of the first prunable layer, whether or not it is excluded from pruning."""
    name, module, leaf = next(iter(_prunable_entries(model)))
    weight: Tensor = getattr(module, leaf)
    return name, weight


def first_width(model: nn.Module) -> int:
    """Return how many inputs a unit of the first prunable layer reads."""
    name, weight = first_layer(model)
    return weight.shape[1 - unit_axes(model)[name]]


def _prunable_entries(model: nn.Module, whole: bool = False) -> Iterator[tuple[str, nn.Module, str]]:
    """Yield every prunable weight by name, layer and entry of the layer, whether a parameter or computed."""
    for prefix, module in model.named_modules(remove_duplicate=False):
        for leaf in _axes(module, whole):
            yield f"{prefix}.{leaf}" if prefix else leaf, module, leaf


def _axes(module: nn.Module, whole: bool = False) -> dict[str, int]:
    """Return the prunable entries of one module, with the axis of their units."""
    # an attribute that a module of its kind does not have is a parameter that is None
    for kind in type(module).__mro__:
        if kind in LAYERS:
            return {
                leaf: axis
                for leaf, axis in LAYERS[kind].items()
                if module._parameters.get(leaf, 0) is not None
            }
    if _is_turned(module):
        return {"weight": 1}
    if whole and isinstance(module, WHOLE):
        if isinstance(module, nn.modules.conv._ConvNd):
            return {"weight": 1}
        return {name: 0 for name in module._parameters if name.startswith("weight_")}
    return {}


def is_layer(module: nn.Module) -> bool:
    """Return whether a module is a layer whose own ``forward`` gives what its prunable weights make: no attention."""
    return bool(_axes(module)) and not isinstance(module, nn.MultiheadAttention)


def _is_turned(module: nn.Module) -> bool:
    """Return whether a module is the linear layer of GPT-2, whose weight is (in, out), whatever library it is of."""
    weight = module._parameters.get("weight")
    sizes = (getattr(module, "nx", None), getattr(module, "nf", None))
    return type(module).__name__ == "Conv1D" and weight is not None and tuple(weight.shape) == sizes


def prunable(model: nn.Module, exclude: Sequence[str] = (), *, whole: bool = False) -> dict[str, Tensor]:
    """Return the prunable weights by parameter name, detached: those of linear and convolution layers.

    Biases and normalisation parameters are never pruned. ``whole``: see `weight_names`. ``exclude``: layers to leave
    alone, by name (``"fc1"`` or ``"fc1.weight"``), or ``"first"`` and ``"last"`` in the order in which the model
    registers them. Raises NatalError if nothing is left, a name is unknown, or a weight is not one of dense numbers.
    """
    entries = {name: module._parameters.get(leaf) for name, module, leaf in _prunable_entries(model, whole)}
    if not entries:
        raise NatalError(
            f"{type(model).__name__} has no linear or convolution layer, so nothing can be pruned"
        )
    known = layer_names(model, whole=whole)
    # a module of several weights, such as a recurrent one, goes by its own name too
    parts: dict[str, list[str]] = {}
    for name in entries:
        parts.setdefault(name.rpartition(".")[0], []).append(known[name])
    left_alone = set()
    for layer in exclude:
        if layer not in known and layer not in parts:
            raise NatalError(
                f"exclude names no prunable layer {layer!r}{did_you_mean(layer, [*known, *parts])}"
            )
        left_alone |= {known[layer]} if layer in known else set(parts[layer])
    found = {}
    for name, parameter in entries.items():
        if known[name] == name and name not in left_alone:
            found[name] = _dense(name, parameter)
    if not found:
        raise NatalError(
            f"exclude leaves no layer of {type(model).__name__} to prune, not even {known['last']!r}"
        )
    return found


def layer_names(model: nn.Module, *, whole: bool = False) -> dict[str, str]:
    """Return what each prunable weight may be called, ``"fc1"``, ``"fc1.weight"``, ``"first"`` or ``"last"``, with the
    name that masks know it by."""
    entries = [name for name, _, _ in _prunable_entries(model, whole)]
    known = {name: name for name in entries}
    known |= {
        alias: first for first, aliases in weight_names(model, whole=whole).items() for alias in aliases
    }
    known |= {alias.removesuffix(".weight"): first for alias, first in known.items()}
    return known | {"first": known[entries[0]], "last": known[entries[-1]]}


def _dense(name: str, parameter: nn.Parameter | None) -> Tensor:
    """Return the parameter's values; raise NatalError unless it is one, of floating-point numbers with data."""
    if parameter is None:
        raise NatalError(
            f"{name!r} is computed, not a parameter (a parametrization or weight norm?); make it plain before pruning, "
            f"or exclude it"
        )
    if isinstance(parameter, nn.UninitializedParameter):
        raise NatalError(f"{name!r} has no shape yet; run one batch through the lazy layer before pruning")
    if parameter.is_meta:
        raise NatalError(
            f"{name!r} is on the meta device, without values; give the model some before pruning (to_empty, then "
            "initialise or load)"
        )
    if parameter.layout != torch.strided or not (parameter.is_floating_point() or parameter.is_complex()):
        raise NatalError(
            f"{name!r} is {parameter.dtype}, {parameter.layout}; only dense floating-point weights are pruned: convert "
            "or exclude it"
        )
    return parameter.detach()


def remove_neurons(weights: Mapping[str, Tensor], kept: Mapping[str, Tensor]) -> Mask:
    """Return the mask of a chain of linear layers that loses whole neurons.

    ``weights``: the (out, in) matrices in order, by parameter name. ``kept``: a boolean vector of neurons for
    every layer but the last. A removed neuron loses its incoming row, its bias and its column in the next
    layer.
    """
    masks = dict(dense(weights).weights)
    biases = {}
    names = list(weights)
    for name, following in pairwise(names):
        neurons = kept[name].bool()
        masks[name] = masks[name] & neurons[:, None]
        masks[following] = masks[following] & neurons[None, :]
        biases[name.removesuffix("weight") + "bias"] = neurons
    return Mask(masks, biases, units={name: kept[name].bool() for name in names[:-1]})
