"""How units flow through a masked network: who feeds whom, what is constant, what reaches the output.

A *unit* is a linear neuron or a convolution channel. `trace` reads a model's forward pass with ``torch.fx``
and labels every feature of every tensor with the unit it carries; a removed unit must leave all of them at
once. Two questions are then answered by walking the graph: which units lie on a path to the output
(`Flow.reaching`, `Flow.needed`), and which features can be reached from the input or else are constant
(`Signal`).

Tensors are taken to be batches, (rows, features) or (rows, channels, positions...). Whatever is not
understood (an unknown operation, a reused layer, another shape) keeps its full width: it is `Flow.pinned`,
never guessed at.
"""

from __future__ import annotations

import copy
import operator
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.fx.passes.shape_prop import ShapeProp
from torch.utils import _pytree as pytree

from natal.errors import NatalError
from natal.pruning.mask import Mask

Example = Tensor | tuple[Any, ...]
"""What a model is called with: one tensor, or the tuple of its arguments."""


@dataclass(frozen=True)
class Signal:
    """A tensor between two operations, feature by feature.

    ``units``: (features,), the unit each feature carries. ``value``: (features,), the constant each feature
    always equals, in float64; NaN where it varies. ``reached``: (features,), whether a path of kept weights
    leads here from the input. ``axes``: the number of axes of positions: 0 for (rows, features), 2 for (rows,
    channels, height, width). ``flat``: positions and channels are flattened, and not yet counted.
    """

    units: Tensor
    value: Tensor
    reached: Tensor
    axes: int = 0
    flat: bool = False

    def spread(self, features: int) -> Signal | None:
        """Return the signal with every channel repeated for each of its positions; None if uneven."""
        times, rest = divmod(features, len(self.units))
        if rest or (times != 1 and not self.flat):
            return None
        units, value, reached = (t.repeat_interleave(times) for t in (self.units, self.value, self.reached))
        return Signal(units, value, reached)


@dataclass(frozen=True)
class Layer:
    """A linear or convolution layer: the only operation that mixes units.

    ``incoming``: its input, or None where that keeps its full width. ``units``: (out,), the units it makes.
    ``kept``: (out, in) bool, whether any weight of a connection is kept. ``gain``: (out, in) float64, the
    masked weights summed over the kernel. ``reached``: (out,). ``zero_padded``: whether a constant input is
    not constant at the border.
    """

    name: str
    incoming: Signal | None
    units: Tensor
    kept: Tensor
    gain: Tensor
    reached: Tensor
    zero_padded: bool

    def foldable(self) -> Tensor:
        """Return (in,) bool: the inputs whose contribution is the same constant everywhere."""
        assert self.incoming is not None
        return _foldable(self.incoming, self.zero_padded)


@dataclass(frozen=True)
class Link:
    """Two signals whose features correspond one to one, so that they keep or lose units together.

    ``carries``: (features,) bool, whether the source still influences the result.
    """

    source: Tensor
    result: Tensor
    carries: Tensor


@dataclass
class Flow:
    """The graph of units of one masked model.

    ``steps``: layers and links in the order of the forward pass. ``channelwise``: names of modules holding
    one entry per unit (batch norm, PReLU, depthwise convolution) with the signal they act on. ``pinned``:
    units that must stay. ``outputs``: those of them that are the model's outputs. ``obstacles``: which
    operations keep a constant unit from being removed, by name, and why. ``count``: number of units.
    """

    steps: list[Layer | Link] = field(default_factory=list)
    channelwise: list[tuple[str, Signal, Tensor]] = field(default_factory=list)
    pinned: list[Tensor] = field(default_factory=list)
    outputs: list[Tensor] = field(default_factory=list)
    obstacles: dict[str, str] = field(default_factory=dict)
    count: int = 0

    @property
    def layers(self) -> list[Layer]:
        """Return the layers that were understood, in the order of the forward pass."""
        return [step for step in self.steps if isinstance(step, Layer)]

    def reaching(self) -> Tensor:
        """Return (count,) bool: the units from which a path of kept weights leads to the output."""
        return self._needed(self.pinned, widths=False)

    def needed(self) -> Tensor:
        """Return (count,) bool: the units a smaller model must keep to compute the same function.

        A unit may go where each of its readers has no kept weight on it, or can fold its constant value.
        Units tied by an addition go together or not at all. At least one unit of every layer stays, so that
        layers remain ordinary modules.
        """
        pinned = list(self.pinned)
        while True:
            needed = self._needed(pinned, widths=True)
            empty = [layer.units[:1] for layer in self.layers if not needed[layer.units].any()]
            if not empty:
                return needed
            pinned += empty[-1:]  # the last one's first: it may bring the others back to life

    def _needed(self, pinned: Iterable[Tensor], widths: bool) -> Tensor:
        needed = torch.zeros(self.count, dtype=torch.bool)
        for units in pinned:
            needed[units] = True
        before = -1
        while before != (before := int(needed.sum())):
            for step in reversed(self.steps):
                if isinstance(step, Link):
                    needed[step.source[needed[step.result] & (step.carries | widths)]] = True
                    if widths:
                        needed[step.result[needed[step.source]]] = True
                elif step.incoming is not None:
                    read = step.kept[needed[step.units]].any(0)
                    if widths:
                        read &= ~step.foldable()
                    needed[step.incoming.units[read]] = True
        return needed


def trace(model: nn.Module, mask: Mask, example: Example | None = None, training: bool = False) -> Flow:
    """Read how units flow through ``model``, whose removed parameters are already zero (`masked`).

    ``example``: the model's input; with it, tensors of other shapes than the module's docstring names are
    recognised and keep their width. ``training``: what may be called constant: a feature that equals a number
    in the model's present mode (False), or one that is zero and will stay zero however the kept parameters
    are trained (True). Raises NatalError naming the model if ``torch.fx`` cannot follow its forward pass.
    """
    try:
        graph = fx.Tracer().trace(model)
    except Exception as error:
        raise NatalError(
            f"cannot follow the forward pass of {type(model).__name__}: {first_line(error)}; "
            "it must be one torch.fx can trace, without branches on values"
        ) from error
    if example is not None:
        _propagate_shapes(model, graph, example)
    return _Reader(model, mask, training).read(graph)


def arguments(example: Example) -> tuple[Any, ...]:
    """Return ``example`` as the tuple of arguments a model is called with."""
    return example if isinstance(example, tuple) else (example,)


def _propagate_shapes(model: nn.Module, graph: fx.Graph, example: Example) -> None:
    twin = copy.deepcopy(model).eval()  # in training mode running it would move batch norm's buffers
    try:
        with torch.no_grad(), torch.random.fork_rng():
            twin(*arguments(example))  # ShapeProp prints a traceback before it raises
            ShapeProp(fx.GraphModule(twin, graph)).propagate(*arguments(example))
    except Exception as error:
        raise NatalError(
            f"{type(model).__name__} cannot be run on the example: {first_line(error)}"
        ) from error


def first_line(error: Exception) -> str:
    """Return what an exception says first, or its type if it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


POINTWISE: tuple[type[nn.Module], ...] = (
    nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.CELU, nn.SELU, nn.GELU, nn.SiLU, nn.Mish, nn.Sigmoid,
    nn.Tanh, nn.Softplus, nn.Softsign, nn.Hardtanh, nn.Hardswish, nn.Hardsigmoid, nn.LogSigmoid,
    nn.Tanhshrink, nn.Softshrink, nn.Hardshrink, nn.Threshold, nn.Identity,
)  # fmt: skip
POINTWISE_NAMES = {
    "relu", "relu6", "leaky_relu", "elu", "celu", "selu", "gelu", "silu", "mish", "sigmoid", "tanh",
    "softplus", "softsign", "hardtanh", "hardswish", "hardsigmoid", "logsigmoid", "tanhshrink",
    "softshrink", "hardshrink", "abs", "neg", "square", "sin", "cos", "exp", "clamp", "contiguous",
    "clone",
}  # fmt: skip
"""Functions that act on each number alone, in ``torch``, ``torch.nn.functional`` or as methods."""
DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)
Convolution = nn.Conv1d | nn.Conv2d | nn.Conv3d
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
BatchNorm = nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
POOLINGS = (
    nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d,
    nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d,
)  # fmt: skip
AVERAGES = (nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d)
ARITHMETIC = {"add", "iadd", "sub", "isub", "mul", "imul", "truediv", "itruediv"}


class _Reader:
    """Walks a traced graph in order and builds its `Flow`; one method per kind of operation.

    A method returns the operation's result as a `Signal`, or None for "not understood".
    """

    def __init__(self, model: nn.Module, mask: Mask, training: bool) -> None:
        self.modules = dict(model.named_modules())
        self.masks = mask.items()
        self.training = training
        self.flow = Flow()
        self.signals: dict[fx.Node, Signal] = {}
        self.memory: dict[fx.Node, fx.Node] = {}  # of a tensor that may share another's memory, that other
        self.batch_sizes: set[fx.Node] = set()
        owners = Counter(id(p) for _, p in model.named_parameters(remove_duplicate=False))
        self.shared = {
            name
            for name, module in self.modules.items()
            if any(owners[id(p)] > 1 for p in module.parameters())
        }

    def read(self, graph: fx.Graph) -> Flow:
        calls = Counter(node.target for node in graph.nodes if node.op == "call_module")
        # what is called twice, or also read directly, cannot be cut to one place's width, if it has a width
        self.shared |= {
            name
            for name, times in calls.items()
            if times > 1 and isinstance(name, str) and self.modules[name].state_dict()
        }
        self.shared |= {str(node.target).rpartition(".")[0] for node in graph.nodes if node.op == "get_attr"}
        for node in graph.nodes:
            signal = self.apply(node)
            if signal is not None and not self.well_formed(node, signal):
                self.flow.pinned.append(signal.units)
                if any(user.op == "output" for user in node.users):
                    self.flow.outputs.append(signal.units)
                self.obstruct(
                    node, signal, "its tensors are not (rows, features) or (rows, channels, positions)"
                )
                signal = None
            if signal is not None:
                self.signals[node] = signal
                changed = _in_place(node, self.modules)
                if changed or _same_memory(node, self.modules):
                    source = node.all_input_nodes[0]
                    self.memory[node] = self.memory.get(source, source)
                if changed:  # later readers see the changed tensor
                    self.forget(node)
                    self.signals[node] = self.signals[source] = signal
            elif not self.harmless(node):
                for argument in node.all_input_nodes:
                    self.pin(argument, node)
                own = self.masks.get(f"{node.target}.weight") if node.op == "call_module" else None
                if own is not None and not own.flatten(1).any(1).all():
                    self.flow.obstacles.setdefault(repr(str(node.target)), self.reason(node))
        return self.flow

    def pin(self, node: fx.Node, reader: fx.Node) -> None:
        """Keep all units of a tensor that something unknown reads, and perhaps writes."""
        signal = self.signals.get(node)
        if signal is not None:
            self.flow.pinned.append(signal.units)
            if reader.op == "output":
                self.flow.outputs.append(signal.units)
            else:
                self.obstruct(reader, signal, self.reason(reader))
            self.forget(node)

    def forget(self, node: fx.Node) -> None:
        """Take nothing for constant in a tensor that may have been written to, and in others on its memory."""
        memory = self.memory.get(node, node)
        for other, signal in self.signals.items():
            if self.memory.get(other, other) is memory:
                self.signals[other] = replace(signal, value=torch.full_like(signal.value, torch.nan))

    def obstruct(self, node: fx.Node, signal: Signal, why: str) -> None:
        """Remember why ``node`` keeps constant units in place, if there are any."""
        if signal.value.isfinite().any():
            self.flow.obstacles.setdefault(repr(str(node.target if node.op == "call_module" else node)), why)

    def reason(self, node: fx.Node) -> str:
        target = str(node.target)
        if node.op != "call_module":
            return f"this {_function_name(node) or target} is not followed"
        module = self.modules[target]
        kind = type(module).__name__
        if target in self.shared:
            return f"this {kind} or its weight is used more than once"
        if module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module):
            return f"this {kind} has hooks"
        return f"this {'grouped ' * (getattr(module, 'groups', 1) > 1)}{kind} is not followed"

    def apply(self, node: fx.Node) -> Signal | None:
        source = self.signals.get(node.args[0]) if node.args and isinstance(node.args[0], fx.Node) else None
        if node.op == "call_module":
            return self.module(str(node.target), source) if len(node.args) == 1 and not node.kwargs else None
        if node.op not in ("call_function", "call_method"):
            return None
        return self.function(node, _function_name(node), source)

    def module(self, name: str, source: Signal | None) -> Signal | None:
        module = self.modules[name]
        kind = type(module)  # exactly: a subclass may compute something else
        if (
            name in self.shared
            or module._forward_hooks
            or module._forward_pre_hooks
            or "forward" in vars(module)
        ):
            return None
        if kind is nn.Linear or (kind in CONVOLUTIONS and module.groups == 1):
            return self.layer(name, module, source)
        if source is None:
            return None
        if kind in POINTWISE:
            return self.pointwise(source, module)
        if kind in DROPOUTS:
            return self.keep_zeros(source) if module.training and module.p else source
        if kind in BATCH_NORMS:
            return self.batch_norm(name, module, source)
        if kind is nn.PReLU:
            return self.prelu(name, module, source)
        if kind in CONVOLUTIONS and module.groups == module.in_channels == module.out_channels:
            return self.depthwise(name, module, source)
        if kind in POOLINGS:
            return source if source.axes and not getattr(module, "return_indices", False) else None
        if kind in AVERAGES:
            divided = getattr(module, "divisor_override", None) is not None
            plain = not _any(module.padding) and not module.ceil_mode and not divided
            return None if not source.axes else source if plain else self.keep_zeros(source)
        if kind is nn.Flatten and (module.start_dim, module.end_dim) == (1, -1):
            return _flatten(source)
        return None

    def function(self, node: fx.Node, name: str, source: Signal | None) -> Signal | None:
        if name in ARITHMETIC:
            return self.arithmetic(node, getattr(operator, name))
        if name == "cat":
            return self.cat(node)
        if source is None:
            return None
        rest = node.args[1:]
        if name in POINTWISE_NAMES and not any(
            isinstance(a, fx.Node) for a in (*rest, *node.kwargs.values())
        ):
            return self.pointwise(source, lambda value: _call(node, value))
        if name in ("dropout", "dropout1d", "dropout2d", "dropout3d"):
            return (
                source if _bound(node, p=0.5, training=True)["training"] is False else self.keep_zeros(source)
            )
        if name == "flatten" and _bound(node, start_dim=0, end_dim=-1) == {"start_dim": 1, "end_dim": -1}:
            return _flatten(source)
        if name in ("view", "reshape"):
            shape = rest[0] if len(rest) == 1 and isinstance(rest[0], tuple | list) else rest
            rows_first = len(shape) == 2 and shape[0] in self.batch_sizes and shape[1] == -1
            return _flatten(source) if rows_first else None
        if name == "mean" and source.axes:
            given = _bound(node, dim=None, keepdim=False)
            axes = given["dim"] if isinstance(given["dim"], tuple | list) else (given["dim"],)
            ndim = source.axes + 2
            if all(isinstance(axis, int) for axis in axes) and (
                sorted(axis % ndim for axis in axes) == list(range(2, ndim))
            ):
                return source if given["keepdim"] else replace(source, axes=0)
        if source.axes:
            kind = name.rstrip("123d")
            if kind in ("max_pool", "adaptive_avg_pool", "adaptive_max_pool"):
                return source if len(rest) < 6 and not node.kwargs.get("return_indices") else None
            if kind == "avg_pool":  # kernel and stride alone; padding would let zeros in at the border
                return (
                    source
                    if len(rest) < 3 and not node.kwargs.keys() - {"stride"}
                    else self.keep_zeros(source)
                )
        return None

    def layer(self, name: str, module: nn.Linear | Convolution, source: Signal | None) -> Signal | None:
        weight, kept = self.parameter(name, "weight", module.weight)
        outputs, inputs = weight.shape[:2]
        gain, kept = weight.reshape(outputs, inputs, -1).sum(2), kept.reshape(outputs, inputs, -1).any(2)
        axes = weight.ndim - 2
        incoming = source.spread(inputs) if source is not None and axes == source.axes else None
        if source is not None and incoming is None:
            self.flow.pinned.append(source.units)
        seen = incoming or _unknown(inputs)
        foldable = _foldable(seen, zero_padded := _pads_zeros(module))
        value = self.bias(name, module) + gain[:, foldable] @ seen.value[foldable]
        value = self.settled(torch.where((kept & ~foldable).any(1), torch.nan, value))
        reached = (kept & seen.reached).any(1)
        units = self.new_units(outputs)
        self.flow.steps.append(Layer(name, incoming, units, kept, gain, reached, zero_padded))
        return Signal(units, value, reached, axes)

    def depthwise(self, name: str, module: Convolution, source: Signal) -> Signal | None:
        if source.axes != module.weight.ndim - 2:
            return None
        weight, kept = self.parameter(name, "weight", module.weight)
        gain, carries = weight.flatten(1).sum(1), kept.flatten(1).any(1)
        inside = torch.where(_foldable(source, _pads_zeros(module)), gain * source.value, torch.nan)
        value = self.bias(name, module) + torch.where(carries, inside, 0.0)
        units = self.new_units(len(gain))
        self.flow.channelwise.append((name, source, units))
        self.flow.steps.append(Link(source.units, units, carries))
        return Signal(units, self.settled(value), source.reached & carries, source.axes)

    def batch_norm(self, name: str, module: BatchNorm, source: Signal) -> Signal | None:
        spread = source if source.axes else source.spread(module.num_features)
        if spread is None:
            return None
        value = torch.full_like(spread.value, torch.nan)
        if not module.training and module.running_mean is not None and not self.training:
            mean, var, weight, bias = (
                None if t is None else t.detach().cpu().double()
                for t in (module.running_mean, module.running_var, module.weight, module.bias)
            )
            value = F.batch_norm(spread.value[None], mean, var, weight, bias, eps=module.eps)[0]
        self.flow.channelwise.append((name, spread, spread.units))
        return replace(spread, value=self.settled(value))

    def prelu(self, name: str, module: nn.PReLU, source: Signal) -> Signal | None:
        value = self.settled(F.prelu(source.value[None], module.weight.detach().cpu().double())[0])
        if module.num_parameters > 1:
            if source.flat or module.num_parameters != len(source.units):
                return None
            self.flow.channelwise.append((name, source, source.units))
        return replace(source, value=torch.where(source.value.isnan(), torch.nan, value))

    def arithmetic(self, node: fx.Node, operation: Callable[[Any, Any], Any]) -> Signal | None:
        operands = [self.signals.get(a) if isinstance(a, fx.Node) else a for a in node.args]
        if len(operands) != 2 or node.kwargs:
            return None
        a, b = operands
        if isinstance(a, Signal) and isinstance(b, Signal):
            if (a.axes, a.flat, len(a.units)) != (b.axes, b.flat, len(b.units)):
                return None
            units = self.new_units(len(a.units))
            for operand in (a, b):
                self.flow.steps.append(Link(operand.units, units, torch.ones(len(units), dtype=torch.bool)))
            value = self.settled(operation(a.value.clone(), b.value))
            return Signal(units, value, a.reached | b.reached, a.axes, a.flat)
        if isinstance(a, Signal) and isinstance(b, int | float):
            return self.pointwise(a, lambda value: operation(value, b))
        if isinstance(b, Signal) and isinstance(a, int | float):
            return self.pointwise(b, lambda value: operation(a, value))
        return None

    def cat(self, node: fx.Node) -> Signal | None:
        parts = [
            self.signals.get(a) if isinstance(a, fx.Node) else None
            for a in pytree.arg_tree_leaves(node.args[0])
        ]
        known = [part for part in parts if part is not None]
        axis = _bound(node, dim=0)["dim"]
        if not known or len(known) != len(parts) or len({(part.axes, part.flat) for part in known}) != 1:
            return None
        axes = known[0].axes
        if known[0].flat or axis not in (1, -1 - axes):
            return None
        units, value, reached = (
            torch.cat([getattr(p, f) for p in known]) for f in ("units", "value", "reached")
        )
        return Signal(units, value, reached, axes)

    def pointwise(self, source: Signal, function: Callable[[Tensor], Tensor]) -> Signal:
        value = function(source.value.clone())
        # some functions answer NaN with a number (a threshold does), but what varied still varies
        return replace(source, value=self.settled(torch.where(source.value.isnan(), torch.nan, value)))

    def keep_zeros(self, source: Signal) -> Signal:
        return replace(source, value=source.value.where(source.value == 0, torch.nan))

    def settled(self, value: Tensor) -> Tensor:
        trustworthy = value == 0 if self.training else value.isfinite()
        return torch.where(trustworthy, value, torch.nan)

    def bias(self, name: str, module: nn.Linear | Convolution) -> Tensor:
        if module.bias is None:
            return torch.zeros(len(module.weight), dtype=torch.float64)
        value, kept = self.parameter(name, "bias", module.bias)
        return torch.where(kept, torch.nan, value) if self.training else value  # a kept bias will be trained

    def parameter(self, name: str, kind: str, values: Tensor) -> tuple[Tensor, Tensor]:
        kept = self.masks.get(f"{name}.{kind}")
        return values.detach().cpu().double(), torch.ones(
            values.shape, dtype=torch.bool
        ) if kept is None else kept.cpu()

    def new_units(self, count: int) -> Tensor:
        self.flow.count += count
        return torch.arange(self.flow.count - count, self.flow.count)

    def well_formed(self, node: fx.Node, signal: Signal) -> bool:
        shape = getattr(node.meta.get("tensor_meta"), "shape", None)
        return shape is None or len(shape) == signal.axes + 2

    def harmless(self, node: fx.Node) -> bool:
        """Return whether ``node`` only asks for the number of rows."""
        name = _function_name(node) if node.op.startswith("call") and node.op != "call_module" else ""
        rows = name == "size" and node.args[1:] == (0,)
        if (name, *node.args[1:]) in (("getattr", "shape"), ("size",)):
            return all(_function_name(user) == "getitem" and user.args[1] == 0 for user in node.users)
        if name == "getitem" and isinstance(node.args[0], fx.Node) and node.args[1] == 0:
            parent = node.args[0]
            rows = parent not in self.signals and parent.op != "placeholder" and self.harmless(parent)
        if rows:
            self.batch_sizes.add(node)
        return rows


def _function_name(node: fx.Node) -> str:
    """Return the name of a torch function or method without trailing underscore; "" for others."""
    if isinstance(node.target, str):
        return node.target.rstrip("_") if node.op == "call_method" else ""
    home = getattr(node.target, "__module__", None) or "torch"
    ours = home.startswith("torch") or home in ("_operator", "operator", "builtins")
    return getattr(node.target, "__name__", "").rstrip("_") if ours else ""


def _call(node: fx.Node, value: Tensor) -> Tensor:
    if isinstance(node.target, str):
        result = getattr(value, node.target)(*node.args[1:], **node.kwargs)
    else:
        assert callable(node.target)
        result = node.target(value, *node.args[1:], **node.kwargs)
    assert isinstance(result, Tensor)
    return result


def _in_place(node: fx.Node, modules: dict[str, nn.Module]) -> bool:
    if node.op == "call_module":
        return bool(getattr(modules[str(node.target)], "inplace", False))
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    flagged = node.kwargs.get("inplace") or (True in node.args[1:] and "dropout" not in name)
    return name.endswith("_") or name in ("iadd", "isub", "imul", "itruediv") or bool(flagged)


def _same_memory(node: fx.Node, modules: dict[str, nn.Module]) -> bool:
    """Return whether an operation that is followed may return its input, or a view of it."""
    if node.op == "call_module":
        return isinstance(modules[str(node.target)], (nn.Identity, nn.Flatten, *DROPOUTS))
    return _function_name(node).startswith(("flatten", "view", "reshape", "contiguous", "dropout"))


def _bound(node: fx.Node, **defaults: Any) -> dict[str, Any]:
    given = dict(zip(defaults, node.args[1:], strict=False))
    return {**defaults, **given, **{k: v for k, v in node.kwargs.items() if k in defaults}}


def _flatten(source: Signal) -> Signal:
    return replace(source, axes=0, flat=True) if source.axes else source


def _unknown(features: int) -> Signal:
    varies = torch.full((features,), torch.nan, dtype=torch.float64)
    return Signal(torch.empty(0, dtype=torch.long), varies, torch.ones(features, dtype=torch.bool))


def _foldable(signal: Signal, zero_padded: bool) -> Tensor:
    return signal.value.isfinite() & ((signal.value == 0) | (not zero_padded))


def _pads_zeros(module: nn.Linear | Convolution) -> bool:
    return isinstance(module, CONVOLUTIONS) and module.padding_mode == "zeros" and _any(module.padding)


def _any(padding: int | str | tuple[int, ...]) -> bool:
    return (
        padding != "valid"
        if isinstance(padding, str)
        else any(padding)
        if isinstance(padding, tuple)
        else padding > 0
    )
