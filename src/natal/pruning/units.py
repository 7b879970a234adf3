"""Which neurons a network has: what goes when one of a layer's units (neuron, channel) goes.

``units(model, weights)`` follows every layer's output through the graph that ``torch.fx`` traces, up to the
next layers. On the way each step must treat units one by one (an activation, a pooling, a batch norm, a
flattening of channels); where units are mixed or added to others', removing one alone has no meaning and the
reason is recorded.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

from torch import Tensor, fx, nn

from natal.errors import NatalError
from natal.pruning.mask import LAYERS, Mask, dense, weight_names

Params = Mapping[str, Tensor]


@dataclass(frozen=True)
class Units:
    """What hangs on the units of one layer.

    ``consumers``: (weight, inputs per unit) of the layers that read them; a flattened channel is many inputs.
    ``norms``: batch norms on the way, by module name. ``others``: the bias and the norms' parameters, zeroed
    with a unit. ``output``: whether they are the network's outputs, which stay. ``tie``: why they cannot go
    alone, or "".
    """

    consumers: tuple[tuple[str, int], ...] = ()
    norms: tuple[str, ...] = ()
    others: tuple[str, ...] = ()
    output: bool = False
    tie: str = ""

    def __or__(self, more: Units) -> Units:
        """Return what hangs on the units by either of two ways."""
        return Units(
            tuple(dict.fromkeys(self.consumers + more.consumers)),
            tuple(dict.fromkeys(self.norms + more.norms)),
            tuple(dict.fromkeys(self.others + more.others)),
            self.output or more.output,
            self.tie or more.tie,
        )


def units(model: nn.Module, weights: Params) -> dict[str, Units]:
    """Return the units of every layer in ``weights``, in the order of execution; see `Units`.

    Raises NatalError if ``torch.fx`` cannot trace the model.
    """
    try:
        graph = fx.Tracer().trace(model)
    except Exception as error:  # whatever a user's forward raises when it is traced
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise NatalError(
            f"the units of {next(iter(weights))!r} cannot be followed: torch.fx does not trace "
            f"{type(model).__name__}: {reason}"
        ) from error
    follower = _Follower(model, weights)
    found: dict[str, Units] = {}
    for node in graph.nodes:
        name = follower.layer(node)
        if name in weights:
            twice = Units(tie="come from a layer that is used twice") if name in found else Units()
            found[name] = found.get(name, Units()) | follower.units_of(node) | twice
    unseen = Units(tie="are used where torch.fx cannot see it")
    return found | {name: unseen for name in weights if name not in found}


_UNITWISE_MODULES = ("activation", "dropout", "flatten", "linear.Identity")
_MIXING_ACTIVATIONS = (nn.MultiheadAttention, nn.Softmax, nn.LogSoftmax, nn.Softmin, nn.Softmax2d, nn.GLU)
_UNITWISE_CALLS = {
    "relu",
    "relu_",
    "relu6",
    "leaky_relu",
    "elu",
    "selu",
    "gelu",
    "silu",
    "mish",
    "tanh",
    "sigmoid",
    "hardtanh",
    "hardswish",
    "hardsigmoid",
    "softplus",
    "dropout",
    "dropout1d",
    "dropout2d",
    "contiguous",
    "flatten",
    "view",
    "reshape",
}
_POOLING_CALLS = {  # max pooling is dispatched under the second name
    "max_pool1d",
    "boolean_dispatch",
    "max_pool2d",
    "max_pool3d",
    "avg_pool1d",
    "avg_pool2d",
    "avg_pool3d",
    "adaptive_avg_pool1d",
    "adaptive_avg_pool2d",
    "adaptive_max_pool1d",
    "adaptive_max_pool2d",
}
_ADDITIONS = {"add", "iadd", "add_", "sub", "isub"}


class _Follower:
    """Walks from a layer's node to the layers that read it."""

    def __init__(self, model: nn.Module, weights: Params) -> None:
        self.modules = dict(model.named_modules(remove_duplicate=False))
        self.canonical = {alias: name for name, aliases in weight_names(model).items() for alias in aliases}
        self.weights = weights

    def layer(self, node: fx.Node) -> str:
        """Return the weight of the layer that a node calls, or ""."""
        target = str(node.target)
        if node.op != "call_module" or not isinstance(self.modules[target], LAYERS):
            return ""
        return self.canonical.get(f"{target}.weight", "")

    def units_of(self, node: fx.Node) -> Units:
        """Return what hangs on the units of the layer that ``node`` calls."""
        target = str(node.target)
        weight = _weight(self.modules[target])
        has_bias = self.modules[target]._parameters.get("bias") is not None
        own = Units(others=(f"{target}.bias",) if has_bias else ())
        return own | self._users(node, len(weight), convolution=weight.ndim > 2)

    def _users(self, node: fx.Node, count: int, *, convolution: bool) -> Units:
        together = Units()
        for user in node.users:
            together |= self._step(user, count, convolution)
        return together

    def _step(self, user: fx.Node, count: int, convolution: bool) -> Units:
        onward = partial(self._users, user, count, convolution=convolution)
        if user.op == "output":
            return Units(output=True)
        if user.op == "call_module":
            name = str(user.target)
            module = self.modules[name]
            if isinstance(module, LAYERS):
                return self._consumed(module, self.canonical.get(f"{name}.weight", ""), count, convolution)
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                if module.num_features != count or not module.affine:
                    return Units(tie=f"go through {name!r}, which cannot silence one of them")
                return Units(norms=(name,), others=(f"{name}.weight", f"{name}.bias")) | onward()
            kind = f"{type(module).__module__}.{type(module).__name__}".removeprefix("torch.nn.modules.")
            unitwise = kind.startswith(_UNITWISE_MODULES) and not isinstance(module, _MIXING_ACTIVATIONS)
            # over a linear layer's outputs a pooling would run across the units
            if unitwise or (kind.startswith("pooling") and convolution):
                return onward()
            return Units(tie=f"go through {name!r} ({type(module).__name__}), which mixes them")
        called = getattr(user.target, "__name__", str(user.target))
        if called in ("size", "dim") or (called == "getattr" and user.args[1] in ("shape", "ndim")):
            return Units()  # looks at the shape, not at the values
        if called in _UNITWISE_CALLS or (called in _POOLING_CALLS and convolution):
            return onward()
        if called in _ADDITIONS:
            return Units(tie="are added to those of others")
        return Units(tie=f"go through {called!r}, which may mix them")

    def _consumed(self, layer: nn.Module, name: str, count: int, convolution: bool) -> Units:
        inputs = _weight(layer).shape[1]
        if getattr(layer, "groups", 1) != 1:
            return Units(tie=f"feed the grouped convolution {name!r}")
        flattened = convolution and isinstance(layer, nn.Linear)
        if inputs % count or (inputs != count and not flattened):
            return Units(tie=f"reach {name!r} in an order that cannot be followed")
        # a layer that is left alone keeps its columns; the unit it reads is silent anyway
        return Units(consumers=((name, inputs // count),) if name in self.weights else ())


def _weight(layer: nn.Module) -> Tensor:
    weight: Tensor = layer.weight  # type: ignore[assignment]
    return weight


def removable(found: Mapping[str, Units]) -> dict[str, Units]:
    """Return the layers whose units may be removed: all but the output's.

    Raises NatalError naming every layer whose units cannot be removed alone.
    """
    tied = {name: unit.tie for name, unit in found.items() if unit.tie}
    if tied:
        listed = " and ".join(f"those of {name!r} {tie}" for name, tie in tied.items())
        cure = ", ".join(f'"{name.removesuffix(".weight")}"' for name in tied)
        raise NatalError(
            f"granularity 'neuron' cannot remove units one by one: {listed}; pass exclude=({cure},)"
        )
    free = {name: unit for name, unit in found.items() if not unit.output}
    if not free:
        raise NatalError(
            f"granularity 'neuron' finds no hidden layer: the units of {next(iter(found))!r} are outputs"
        )
    return free


def columns(weight: Tensor, count: int) -> Tensor:
    """Return what a layer's weight (out, count * factor, ...) holds for each of ``count`` incoming units, one
    row each."""
    return weight.transpose(0, 1).reshape(count, -1)


def remove_units(weights: Params, kept: Params, found: Mapping[str, Units]) -> Mask:
    """Return the mask without some units: their rows, their biases and norms, and the columns that read them.

    ``kept``: a boolean vector of units by layer; layers that are not in it keep all theirs.
    """
    masks = dict(dense(weights).weights)
    others: dict[str, Tensor] = {}
    for name, stay in kept.items():
        masks[name] = masks[name] & stay.view(-1, *[1] * (weights[name].ndim - 1))
        for consumer, factor in found[name].consumers:
            stays = stay.repeat_interleave(factor)
            masks[consumer] = masks[consumer] & stays.view(1, -1, *[1] * (weights[consumer].ndim - 2))
        others |= dict.fromkeys(found[name].others, stay)
    return Mask(masks, others, units=dict(kept))


def gates(unit: Units, name: str, parameters: Params, c: Tensor) -> dict[str, Tensor]:
    """Return the parameters under a gate c on every unit of a layer: what its last affine map puts out, times
    c."""
    gated = [f"{norm}.{p}" for norm in unit.norms[-1:] for p in ("weight", "bias")] or [
        name,
        *(other for other in unit.others if other.endswith("bias")),
    ]
    return {p: parameters[p] * c.view(-1, *[1] * (parameters[p].ndim - 1)) for p in gated}
