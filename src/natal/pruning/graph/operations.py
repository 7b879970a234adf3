"""What each operation does with units: a table of rules over ATen operations.

A rule gets the `Reader`, the shapes of the results, and the operation's arguments with `Signal` in place of
tensors; it answers with the results' signals, or None for "not followed", which keeps what the operation reads
whole. Most operations need none of their own: one that only moves numbers is run itself on the labels (`MOVES`),
an elementwise one joins what meets in it. Teach natal another one with ``@rule("my_library.my_operation.default")``,
or a module of one's own, whose insides are then not looked at, with ``@rule(MyModule)``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from math import gcd, prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from natal.pruning.graph.reader import VARIES, Reader, Signal, Step, axes_of, squash

Rule = Callable[..., Any]
RULES: dict[str | type, Rule] = {}
Shapes = Sequence[tuple[int, ...]]


def rule(*names: str | type[nn.Module]) -> Callable[[Rule], Rule]:
    """Register the decorated function as the rule of operations, by name: ``"addmm"``, or with its overload,
    ``"aten.sum.dim_IntList"``; or of modules, by class.

    A module's rule gets what its ``forward`` was called with, tensors as signals, and those of its parameters from
    ``reader.own("weight")``; it may answer with what another rule makes of them, such as `linear` or `pointwise`.
    """

    def file(function: Rule) -> Rule:
        for name in names:
            RULES[name] = function
        return function

    return file


# --- operations that only move numbers ------------------------------------------------------------------------

MOVES = (
    "view", "_unsafe_view", "reshape", "_reshape_alias", "permute", "transpose", "t", "expand", "slice", "select",
    "split", "split_with_sizes", "unsafe_split", "unsafe_chunk", "unbind", "squeeze", "unsqueeze", "cat", "stack",
    "roll", "flip", "index", "index_select", "gather", "constant_pad_nd", "reflection_pad1d", "reflection_pad2d",
    "reflection_pad3d", "replication_pad1d", "replication_pad2d", "replication_pad3d", "pixel_shuffle",
    "pixel_unshuffle", "channel_shuffle", "clone", "contiguous", "alias", "detach", "lift_fresh", "repeat",
    "repeat_interleave", "unfold", "diagonal", "upsample_nearest1d", "upsample_nearest2d", "upsample_nearest3d",
    "_to_copy", "im2col", "native_channel_shuffle", "rot90", "tril", "triu", "as_strided", "movedim",
)  # fmt: skip
NOTHING = -1
"""The label of numbers that an operation fills in."""


@rule(*MOVES)
def move(reader: Reader, shapes: Shapes, *args: Any, **kwargs: Any) -> list[Signal] | None:
    """Run the operation itself on the labels and read where they went."""
    op = reader.operation.op
    name = op.overloadpacket.__name__.rstrip("_")
    in_place = op._schema.is_mutable
    signals = [v for v in pytree.tree_leaves((args, kwargs)) if isinstance(v, Signal)]
    if name == "_to_copy":
        kwargs = {}
    if name == "as_strided" and shapes[0] != signals[0].shape:
        return None
    if name == "repeat_interleave" and not (args and isinstance(args[0], Signal) and len(args) > 1):
        return None
    real = [s for s in signals if not s.fresh]
    if name in ("index", "index_select") and signals[0].name in reader.trained and signals[0].ndim == 2:
        index = args[1] if name == "index" else [args[2]] if args[1] == 0 else []
        if len(index) == 1 and not any(isinstance(i, Signal) for i in index):
            return [embedding(reader, shapes, signals[0], index[0])]

    def run(of: Callable[[Signal], Tensor], fill: Any = None) -> list[Tensor]:
        """Return the operation's results on other numbers."""
        new_args, new_kwargs = pytree.tree_map_only(Signal, of, (args, kwargs))
        if in_place:
            new_args = pytree.tree_map_only(Tensor, torch.clone, new_args)
        if name == "constant_pad_nd" and fill is not None:
            new_args = (*new_args[:2], fill)
        if name.startswith(("upsample", "pixel", "im2col", "reflection", "replication")):
            new_args = pytree.tree_map_only(Tensor, lambda t: t.double(), new_args)
        if name in ("_to_copy", "as_strided"):  # another kind of number, another order in memory
            result = new_args[0].clone()
        elif name in ("view", "_unsafe_view", "_reshape_alias"):  # labels lie in memory in another way
            result = new_args[0].reshape(new_args[1])
        else:
            result = op(*new_args, **new_kwargs)
        return [t for t in pytree.tree_leaves(result) if isinstance(t, Tensor)]

    if name in ("slice", "select", "split", "split_with_sizes", "unsafe_split", "unbind", "unsafe_chunk"):
        _cut_regularly(reader, name, signals[0], shapes, args)
    if name in ("roll", "index", "index_select", "gather", "unfold", "im2col"):
        _in_order(reader, name, signals[0], args)
    if name in ("cat", "stack"):
        layers = _side_by_side(reader, name, signals, shapes[0], args, kwargs)
        outputs: list[list[Tensor]] = [layers]
    elif len(real) > 1:
        return None
    else:
        outputs = [[] for _ in shapes]
        for layer in signals[0].layers if signals else ():
            moved = run(lambda s, layer=layer: layer.expand(s.shape), NOTHING)  # type: ignore[misc]
            for k, result in enumerate(moved):
                result = squash(result.long())
                if (result == NOTHING).any():
                    result = _filled(result)
                outputs[k].append(result)
    values = [VARIES] * len(shapes)
    if any(s.kept is not None or s.constant() for s in signals) and name != "im2col":
        values = run(lambda s: s.value.expand(s.shape))
    kept: list[Tensor | None] = [None] * len(shapes)
    source = signals[0] if len(signals) == 1 else Signal(())
    if source.kept is not None and name not in ("constant_pad_nd",):
        kept = list(run(lambda s: s.kept.expand(s.shape).contiguous()))  # type: ignore[union-attr]
    fresh = bool(signals) and not real
    return [
        Signal(
            shape,
            tuple(layer for layer in dict.fromkeys(layers) if layer.numel() > 1),
            value if keep is not None else squash(value),
            keep,
            source.name,
            source.maker,
            fresh,
        )
        for shape, layers, value, keep in zip(shapes, outputs, values, kept, strict=True)
    ]


def _filled(labels: Tensor) -> Tensor:
    """Give numbers that were filled in the label of their neighbours, where that is one."""
    best = labels
    for axis in range(labels.ndim):
        if labels.shape[axis] > 1:
            widest = best.amax(axis, keepdim=True)
            lowest = torch.where(best == NOTHING, widest, best).amin(axis, keepdim=True)
            if torch.equal(widest, lowest):
                best = widest
    return squash(torch.where(best == NOTHING, 0, best))


def _cut_regularly(reader: Reader, name: str, signal: Signal, shapes: Shapes, args: Sequence[Any]) -> None:
    """Note what a slice along units asks of them: pieces of one size, cut alike, or none cut at all."""
    if name in ("split", "split_with_sizes", "unsafe_split", "unsafe_chunk"):
        axis = args[2] if len(args) > 2 else 0
    elif name == "slice":
        axis = args[1] if len(args) > 1 else 0
    else:
        axis = args[1] if len(args) > 1 else 0
    axis %= signal.ndim
    layer = signal.along(axis)
    if layer is None:
        return
    if name in ("select", "unbind"):
        reader.box(layer, [axis], "one of them is taken by its place")
        return
    size, whole = shapes[0][axis], signal.shape[axis]
    start = 0
    if name == "slice":
        start = (args[2] if len(args) > 2 else 0) or 0
        start = max(start + whole, 0) if start < 0 else start
        step = args[4] if len(args) > 4 else 1
        if step != 1:
            reader.pin(layer, "every other unit is taken")
            return
        if size == whole:
            return
    elif len({shape[axis] for shape in shapes}) > 1:
        size = gcd(*(shape[axis] for shape in shapes))  # as one part for queries and two for keys and values
        if size == 1:
            reader.pin(layer, "split into parts of different sizes")
            return
    if whole % size or start % size:
        reader.pin(layer, "sliced at a fixed place")
        return
    pieces = layer.unflatten(axis, (whole // size, size))  # type: ignore[no-untyped-call]
    reader.box(pieces, [axis], "cut into pieces that would lose different ones")


def _in_order(reader: Reader, name: str, signal: Signal, args: Sequence[Any]) -> None:
    """Units that are put in another order by number cannot be cut along that axis."""
    if name == "index":
        axes = {k for k, index in enumerate(args[1]) if index is not None}
    elif name == "roll":
        dims = args[2] if len(args) > 2 else ()
        axes = {d % signal.ndim for d in (dims if isinstance(dims, list | tuple) else [dims])}
    elif name == "im2col":
        axes = set(range(signal.ndim))
    else:
        axes = {args[1] % max(signal.ndim, 1)}
    for layer in signal.layers:
        if axes_of(layer) & axes:
            reader.box(layer, sorted(axes), f"{name} takes them by their places")


def _side_by_side(
    reader: Reader, name: str, signals: list[Signal], shape: tuple[int, ...], args: Any, kwargs: Any
) -> list[Tensor]:
    """Return the layers of a concatenation: along its axis labels follow each other, across it they are joined."""
    axis = args[1] if len(args) > 1 else kwargs.get("dim", 0)
    axis %= len(shape)
    parts = [s for s in signals if s.shape != (0,)]
    if name == "stack":
        parts = [
            Signal(
                (*s.shape[:axis], 1, *s.shape[axis:]),
                tuple(layer.unsqueeze(axis) for layer in s.layers),
                fresh=s.fresh,
            )
            for s in parts
        ]
    found: list[Tensor] = []
    along = [part.along(axis) for part in parts]
    if any(layer is not None and axes_of(layer) == {axis} for layer in along):
        pieces = []
        for part, layer in zip(parts, along, strict=True):
            line = [1] * len(shape)
            line[axis] = part.shape[axis]
            if layer is None:
                pieces.append(torch.zeros(line, dtype=torch.long))
            else:
                pieces.append(reader.collapse(layer, axes_of(layer) - {axis}).expand(line))
        found.append(torch.cat(pieces, axis))
    across: dict[int, Tensor] = {}
    for part in parts:
        for layer in part.layers:
            rest = axes_of(layer) - {axis}
            if not rest or (layer.shape[axis] > 1 and found):
                continue
            first = reader.collapse(layer, {axis})
            key = min(rest)
            for other in [p for p in parts if p is not part and not p.fresh]:
                theirs = [m for m in other.layers if axes_of(m) & rest]
                for m in theirs:
                    reader.join(reader.collapse(m, {axis}), first)
                if not theirs and any(other.shape[a] > 1 for a in rest):
                    reader.pin(first, "concatenated with numbers that cannot be cut")
            across.setdefault(key, first)
    return found + list(across.values())


@rule("empty", "zeros", "ones", "full", "arange", "empty_like", "zeros_like", "ones_like", "full_like", "new_zeros",
      "new_ones", "new_full", "new_empty", "scalar_tensor", "empty_strided", "new_empty_strided", "linspace", "rand",
      "randn", "rand_like", "randn_like", "bernoulli", "uniform", "normal", "eye", "tril_indices",
      "triu_indices")  # fmt: skip
def made_of_nothing(reader: Reader, shapes: Shapes, *args: Any, **kwargs: Any) -> list[Signal]:
    """Return tensors that have whatever size they are asked for."""
    return [Signal(shape, fresh=True) for shape in shapes]


# --- elementwise ----------------------------------------------------------------------------------------------


@rule("pointwise", "where", "masked_fill", "addcmul", "addcdiv", "lerp", "_prelu_kernel", "copy", "fill", "zero",
      "hardswish", "hardsigmoid", "hardtanh", "relu6", "silu", "mish", "elu", "celu", "selu", "gelu", "leaky_relu",
      "threshold", "softplus", "logit", "clamp", "round", "floor", "fused_dropout", "native_dropout", "maximum",
      "minimum", "bitwise_and", "bitwise_or")  # fmt: skip
def pointwise(reader: Reader, shapes: Shapes, *args: Any, **kwargs: Any) -> list[Signal]:
    """Join what meets in an elementwise operation."""
    operands = [v for v in pytree.tree_leaves((args, kwargs)) if isinstance(v, Signal)]
    shape = shapes[0]
    aligned = _by_heads(reader, [_aligned(s, len(shape)) for s in operands])
    layers: list[Tensor] = []
    for i, own in enumerate(aligned):
        for layer in own.layers:
            axes = axes_of(layer)
            for j, other in enumerate(aligned):
                if i == j or not any(other.shape[a] > 1 for a in axes) or (other.fresh and not other.layers):
                    continue
                theirs = [m for m in other.layers if axes_of(m) & axes]
                for m in theirs if i < j else ():
                    reader.join(layer, m)
                if not theirs:
                    reader.pin(layer, "meets numbers that cannot be cut along")
            overlapping = [m for m in layers if axes_of(m) & axes]
            if not overlapping:
                layers.append(layer)
            elif len(overlapping) == 1 and axes < axes_of(overlapping[0]):
                # joined above: the coarser one says as much
                layers = [layer if m is overlapping[0] else m for m in layers]
    makers = {s.maker for s in operands if s.layers and s.name == ""} - {""}
    alone = len([s for s in operands if s.layers and s.name == ""]) == 1 and makers
    return [
        Signal(
            shape,
            tuple(layers),
            _evaluated(reader, operands, args, kwargs),
            maker=next(iter(makers)) if alone else "",
            fresh=bool(operands) and all(s.fresh for s in operands),
        ),
        *(Signal(other) for other in shapes[1:]),
    ]


def _by_heads(reader: Reader, operands: list[Signal]) -> list[Signal]:
    """Let units (heads, width) that meet numbers along their width alone go by heads.

    A rotary embedding or a norm of each head has one number for every place in a head, the same for all heads.
    """
    last = max((s.ndim for s in operands), default=0) - 1
    lines = [m for s in operands for m in s.layers if axes_of(m) == {last}]
    changed = []
    for signal in operands:
        layers = tuple(
            reader.collapse(m, {last}) if lines and last in axes_of(m) and len(axes_of(m)) > 1 else m
            for m in signal.layers
        )
        changed.append(replace(signal, layers=layers))
    if any(
        m is not n
        for a, b in zip(operands, changed, strict=True)
        for m, n in zip(a.layers, b.layers, strict=True)
    ):
        for m in lines:
            reader.pin(m)
    return changed


def _aligned(signal: Signal, ndim: int) -> Signal:
    missing = ndim - signal.ndim
    if not missing:
        return signal
    layers = tuple(layer.view([1] * missing + list(layer.shape)) for layer in signal.layers)
    return Signal((1,) * missing + signal.shape, layers, fresh=signal.fresh)


def _evaluated(reader: Reader, operands: list[Signal], args: Any, kwargs: Any) -> Tensor:
    """Return an elementwise operation's result where all that it reads is constant, or a factor is zero."""
    if not any(s.constant() for s in operands):
        return VARIES
    op = reader.operation.op
    values = [s.value for s in operands]
    unknown = torch.tensor(False)
    for value in values:
        unknown = unknown | value.isnan()
    result = VARIES
    # not every kernel broadcasts, least of all one that writes; a number is often told from a tensor of one
    shapes = [_ahead(s).shape for s in operands if s.ndim]
    broad = torch.broadcast_shapes(*shapes)  # type: ignore[no-untyped-call]

    def known(signal: Signal) -> Tensor:
        return (_ahead(signal).expand(broad) if signal.ndim else signal.value).clone()

    try:
        new_args, new_kwargs = pytree.tree_map_only(Signal, known, (args, kwargs))
        answer = op(*new_args, **new_kwargs)
        answer = answer[0] if isinstance(answer, tuple) else answer
        if isinstance(answer, Tensor):
            answer = answer if answer.is_complex() else answer.double()
            result = torch.where(unknown, torch.nan, answer)
    except (RuntimeError, TypeError):
        return VARIES
    if op.overloadpacket.__name__.rstrip("_") == "mul":
        zero = torch.tensor(False)
        for value in values:
            zero = zero | (value == 0)
        result = torch.where(zero, 0, result)
    return result


def _ahead(signal: Signal) -> Tensor:
    """Return what is known of a tensor with all its axes, of size 1 where the number does not change."""
    return signal.value.view([1] * (signal.ndim - signal.value.ndim) + list(signal.value.shape))


# --- reductions -----------------------------------------------------------------------------------------------

SUMS = ("sum", "linalg_vector_norm", "norm", "cumsum")
MEANS = ("mean", "var", "std", "var_mean", "std_mean")


@rule(*SUMS, *MEANS, "amax", "amin", "max", "min", "prod", "logsumexp", "argmax", "argmin", "any", "all", "median",
      "_softmax", "_log_softmax", "_safe_softmax", "softmax", "log_softmax", "sort", "topk", "aminmax")  # fmt: skip
def reduction(reader: Reader, shapes: Shapes, x: Signal, *args: Any, **kwargs: Any) -> list[Signal] | None:
    """A sum over units is read by what follows; a mean divides by their number; others may not lose one."""
    op = reader.operation.op
    name = op.overloadpacket.__name__.rstrip("_")
    if args and isinstance(args[0], Signal):  # max(a, b)
        met: list[Signal] = pointwise(reader, shapes, x, *args, **kwargs)
        return met
    dims = _dims(op, args, kwargs, x.ndim, name)
    inside, outside = reader.split(x, dims)
    over = x, dims
    for layer in inside:
        if name in SUMS and name != "cumsum":
            continue
        if name in MEANS and _in_small_module(reader):
            over = _note_norm(reader, layer, f"{name} divides by their number") or over
        else:
            reader.pin(layer, f"{name} runs over them")
    keepdim = len(shapes[0]) == x.ndim
    layers = []
    for layer in outside:
        if not keepdim:
            for axis in sorted(dims, reverse=True):
                layer = layer.squeeze(axis)
        layers.append(layer)
    value = VARIES
    if x.constant():
        try:
            rest = list(args)
            answer = op(x.value.expand(x.shape), *rest, **{k: v for k, v in kwargs.items() if k != "dtype"})
            answer = answer[0] if isinstance(answer, tuple) else answer
            value = squash(answer if answer.is_complex() else answer.double())
        except (RuntimeError, TypeError):
            value = VARIES
    out = [Signal(shape, tuple(layers), value, maker=x.maker if not inside else "") for shape in shapes]
    if inside:
        reader.mix(over[0], out[0], over[1])
    return out


def _dims(op: Any, args: Any, kwargs: Any, ndim: int, name: str) -> set[int]:
    """Return the axes that a reduction runs over."""
    names = [a.name for a in op._schema.arguments][1:]
    given = dict(zip(names, args, strict=False)) | dict(kwargs)
    dims = given.get("dim")
    if dims is None or dims == []:
        dims = range(ndim)
    dims = [dims] if isinstance(dims, int) else dims
    return {d % ndim for d in dims} if ndim else set()


def _in_small_module(reader: Reader) -> bool:
    """Return whether a module without parts is running, which can be put into one that restores the width."""
    name = reader.operation.module
    module = reader.modules.get(name)
    # between two modules natal would have to rewrite the caller's own code
    return bool(name) and module is not None and not any(True for _ in module.children())


def _note_norm(reader: Reader, over: Tensor, why: str) -> tuple[Signal, set[int]] | None:
    """Note that the running module divides by the number of those units it gets; return what it gets, and the axis
    of the units, if it can be put into a module that restores their number."""
    name = reader.operation.module
    received = [reader.signal(s) for s in reader.tape.received.get(name, [])]
    returned = reader.tape.returned.get(name, [])
    if len(received) == len(returned) == reader.tape.calls.get(name) == 1:
        for layer in received[0].layers:
            axes = axes_of(layer)
            if len(axes) == 1 and torch.isin(layer, over).any():
                axis = next(iter(axes))
                if len(layer.reshape(-1)) == reader.tape.shapes[returned[0]][axis]:
                    reader.found.norms[name] = axis - received[0].ndim, layer.reshape(-1)
                    return received[0], axes
    reader.pin(over, why)
    return None


# --- along positions ------------------------------------------------------------------------------------------


@rule("max_pool1d", "max_pool2d_with_indices", "max_pool3d_with_indices", "max_pool2d", "avg_pool1d", "avg_pool2d",
      "avg_pool3d", "_adaptive_avg_pool2d", "_adaptive_avg_pool3d", "adaptive_max_pool2d", "adaptive_max_pool3d",
      "adaptive_avg_pool1d", "upsample_bilinear2d", "_upsample_bilinear2d_aa", "upsample_linear1d",
      "upsample_bicubic2d",
      "upsample_trilinear3d", "grid_sampler_2d", "grid_sampler_3d")  # fmt: skip
def positions(reader: Reader, shapes: Shapes, x: Signal, *args: Any, **kwargs: Any) -> list[Signal]:
    """Channel by channel over the positions behind it: what changes along positions stays."""
    name = reader.operation.op.overloadpacket.__name__
    count = {"1": 1, "2": 2, "3": 3}.get(next((c for c in name if c in "123"), "2"), 2)
    spatial = set(range(x.ndim - count, x.ndim))
    inside, outside = reader.split(x, spatial)
    for layer in inside:
        reader.pin(layer, f"{name} runs over them")
    value = VARIES
    if x.constant() and not any(isinstance(a, Signal) for a in args):
        answer = reader.operation.op(x.value.expand(x.shape).contiguous(), *args, **kwargs)
        value = squash(answer[0] if isinstance(answer, tuple) else answer)
    return [Signal(shape, tuple(outside), value, maker=x.maker) for shape in shapes]


@rule("_pack_padded_sequence")
def packed(reader: Reader, shapes: Shapes, x: Signal, lengths: Signal, batch_first: bool) -> list[Signal]:
    """The places of all sequences behind each other, on the first axis instead of two."""
    _, outside = reader.split(x, {0, 1})
    return [Signal(shapes[0], tuple(m.squeeze(0) for m in outside), maker=x.maker), Signal(shapes[1])]


# --- norms ----------------------------------------------------------------------------------------------------


@rule("native_batch_norm", "_native_batch_norm_legit", "_native_batch_norm_legit_no_training", "cudnn_batch_norm",
      "_batch_norm_with_update", "_batch_norm_no_update")  # fmt: skip
def batch_norm(
    reader: Reader,
    shapes: Shapes,
    x: Signal,
    weight: Any,
    bias: Any,
    mean: Any = None,
    var: Any = None,
    *rest: Any,
) -> list[Signal]:
    """A scale and a shift for each number along axis 1."""
    own = [s for s in (weight, bias, mean, var) if isinstance(s, Signal)]
    layers = list(x.layers)
    channel = x.along(1)
    for part in own:
        for layer in part.layers:
            across = layer.view([1, -1] + [1] * (x.ndim - 2))
            if channel is None:
                reader.pin(layer)
            else:
                reader.join(channel, across)
    for layer in x.layers:
        if not axes_of(layer) <= {1} and 1 in axes_of(layer):
            layers = [m for m in layers if m is not layer] + [reader.collapse(layer, axes_of(layer) - {1})]
    value = VARIES
    training = bool(rest[0]) if rest and isinstance(rest[0], bool) else False
    if x.constant() and not training and not reader.training and len(own) >= 2 and isinstance(mean, Signal):
        numbers = [
            None if not isinstance(s, Signal) else s.value.reshape(-1) for s in (mean, var, weight, bias)
        ]
        if all(n is None or not n.isnan().any() for n in numbers):
            m, v, w, b = (None if n is None else n.expand(x.shape[1]) for n in numbers)
            value = torch.nn.functional.batch_norm(
                x.value.expand(x.shape).double(),
                m,
                v,
                w,
                b,
                eps=rest[-1] if isinstance(rest[-1], float) else 1e-5,
            )
    value = _scaled(value, weight, bias, [1], [1] * (x.ndim - 2))
    owner = reader.operation.module
    if x.maker and isinstance(weight, Signal) and weight.name:
        reader.found.after[x.maker] = owner
    return [Signal(shapes[0], tuple(layers), value, maker=x.maker), *(Signal(s) for s in shapes[1:])]


@rule("native_layer_norm", "_fused_rms_norm")
def layer_norm(
    reader: Reader,
    shapes: Shapes,
    x: Signal,
    shape: Sequence[int],
    weight: Any = None,
    bias: Any = None,
    *rest: Any,
) -> list[Signal]:
    """A mean and a variance over the last axes, then a scale and a shift for each number along them."""
    return _norm(
        reader, shapes, x, set(range(x.ndim - len(shape), x.ndim)), weight, bias, x.ndim - len(shape)
    )


@rule("native_group_norm")
def group_norm(
    reader: Reader,
    shapes: Shapes,
    x: Signal,
    weight: Any,
    bias: Any,
    n: int,
    c: int,
    hw: int,
    groups: int,
    eps: float,
) -> list[Signal]:
    """A mean and a variance over each group of channels."""
    if groups == c:
        alone: list[Signal] = batch_norm(reader, shapes, x, weight, bias)
        return alone
    return _norm(reader, shapes, x, set(range(1, x.ndim)), weight, bias, 1)


def _scaled(value: Tensor, weight: Any, bias: Any, ahead: list[int], behind: list[int]) -> Tensor:
    """Return a norm's result, where a scale of zero leaves nothing but the shift; the axes around theirs are given."""
    if not isinstance(weight, Signal) or not (weight.value == 0).any():
        return value
    scale, shift = (
        torch.zeros(())
        if not isinstance(s, Signal)
        else s.value.expand(s.shape).reshape([*ahead, *s.shape, *behind])
        for s in (weight, bias)
    )
    return torch.where(scale == 0, shift, value)


def _norm(
    reader: Reader, shapes: Shapes, x: Signal, axes: set[int], weight: Any, bias: Any, first: int
) -> list[Signal]:
    inside, outside = reader.split(x, axes)
    for part in (weight, bias):
        if not isinstance(part, Signal):
            continue
        for layer in part.layers:
            across = layer.view([1] * first + list(layer.shape) + [1] * (x.ndim - first - layer.ndim))
            meets = [m for m in inside if axes_of(m) & axes_of(across)]
            for m in meets:
                reader.join(m, across)
            if not meets:
                reader.pin(layer)
    behind = x.ndim - first - weight.ndim if isinstance(weight, Signal) else 0
    value = _scaled(VARIES, weight, bias, [1] * first, [1] * behind)
    out = Signal(shapes[0], (*inside, *outside), value)
    over = x, axes
    for layer in inside:
        if _in_small_module(reader):
            over = _note_norm(reader, layer, "a norm runs over them") or over
        else:
            reader.pin(layer, "a norm runs over them")
    if inside:
        reader.mix(over[0], out, over[1])
    return [out, *(Signal(s) for s in shapes[1:])]


# --- layers ---------------------------------------------------------------------------------------------------


@rule("mm", "bmm", "mv", "dot")
def product(reader: Reader, shapes: Shapes, a: Signal, b: Signal, **kwargs: Any) -> Signal:
    """C = A B, over A's last axis and B's last but one."""
    return _contract(reader, shapes[0], a, b, VARIES, None)


@rule("linear")
def linear(reader: Reader, shapes: Shapes, x: Signal, weight: Signal, bias: Signal | None = None) -> Signal:
    """y = x Wᵀ + b over the last axis of x, the weight (out, in)."""
    ahead = (1,) * (x.ndim - 2)

    def turned(t: Tensor) -> Tensor:
        t = t.view([1] * (2 - t.ndim) + list(t.shape)).T
        return t.reshape(ahead + tuple(t.shape))

    weight = replace(
        weight,
        shape=(*ahead, *weight.shape[::-1]),
        layers=tuple(map(turned, weight.layers)),
        value=weight.value if not weight.value.ndim else turned(weight.value),
        kept=None if weight.kept is None else turned(weight.kept),
    )
    return _contract(reader, shapes[0], x, weight, VARIES, bias)


@rule("addmm", "addmv", "baddbmm", "addbmm")
def affine(reader: Reader, shapes: Shapes, c: Signal, a: Signal, b: Signal, **kwargs: Any) -> Signal | None:
    """C + A B."""
    if kwargs.get("beta", 1) != 1 or kwargs.get("alpha", 1) != 1:
        return None
    return _contract(reader, shapes[0], a, b, VARIES, c)


def _contract(
    reader: Reader, shape: tuple[int, ...], a: Signal, b: Signal, _: Tensor, c: Signal | None
) -> Signal:
    over_a, over_b = a.ndim - 1, max(b.ndim - 2, 0)
    # what attends is met place by place in every head, so that one choice is to give up a place in all of them
    between = not a.name and not b.name
    inward = reader.inward and between
    if between and any(over_a in axes_of(m) and len(axes_of(m)) > 1 for m in a.layers):
        reader.found.heads = True
    ins_a, out_a = reader.split(a, {over_a}, inward)
    ins_b, out_b = reader.split(b, {over_b}, inward)
    for m in ins_a:
        meets = list(ins_b)
        for n in meets:
            reader.join(m.reshape(-1), n.reshape(-1))
        if not meets and not b.fresh and a.shape[over_a] > 1:
            reader.pin(m, "multiplied by numbers that cannot be cut")
    if not ins_a and not a.fresh:
        for n in ins_b:
            reader.pin(
                n, "tied to numbers that stay" if b.name else "multiplied by numbers that cannot be cut"
            )
    ndim = len(shape)
    layers: list[Tensor] = []
    batch = set(range(ndim - 2)) if a.ndim > 2 else set()
    if inward:
        out_a, out_b = (
            [reader.collapse(m, batch) if axes_of(m) - batch else m for m in part] for part in (out_a, out_b)
        )
    for own, other, theirs in ((out_a, b, out_b), (out_b, a, out_a)):
        for layer in own:
            layer = _placed(layer, own is out_b, a, b, ndim)
            axes = axes_of(layer)
            if axes & batch:
                meets = [
                    m
                    for m in (_placed(t, own is out_a, a, b, ndim) for t in theirs)
                    if axes_of(m) & axes & batch
                ]
                for m in meets:
                    reader.join(layer, m)
                if not meets and any(other.shape[x] > 1 for x in axes & batch):
                    reader.pin(layer, "multiplied by numbers that cannot be cut")
            if not any(axes_of(m) & axes for m in layers):
                layers.append(layer)
            else:
                kept = [m for m in layers if axes_of(m) & axes]
                if len(axes_of(kept[0])) > len(axes):
                    layers = [layer if m is kept[0] else m for m in layers]
    over = [m.reshape([1] * ndim + [-1]) for m in (ins_a or ins_b)]
    reader.worked((*shape, a.shape[over_a]), [*(m[..., None] for m in layers), *over])
    weighs, weighed = b.name in reader.trained, a.name in reader.trained
    if weighs and weighed:  # a learnt input, if the layer's own module is running
        weighed = not _owned(reader, b) or _owned(reader, a)
    if weighs and not weighed and (b.kept is not None or reader.masks is None):
        return _layer(reader, shape, a, b, tuple(layers), c)
    out = Signal(shape, tuple(layers), _nothing(a, b) if a.ndim == b.ndim == ndim > 1 else VARIES)
    if c is not None:
        out = pointwise(reader, [shape], out, c)[0]
        out = Signal(shape, out.layers)
    if weighed and not weighs:
        reader.found.uses[a.name] = (
            reader.found.uses.get(a.name, 0) + 2
        )  # not a layer's way to use its weight
    if ins_a or ins_b:
        reader.mix(a, out, {over_a})
        reader.mix(b, out, {over_b})
    return out


def _owned(reader: Reader, signal: Signal) -> bool:
    return signal.name.rpartition(".")[0] == reader.operation.module


def _nothing(a: Signal, b: Signal) -> Tensor:
    """Return zero where A has a row or B a column of zeros, else NaN."""
    rows = (_ahead(a) == 0).all(-1, keepdim=True)
    columns = (_ahead(b) == 0).all(-2, keepdim=True)
    return torch.where(rows | columns, 0.0, torch.nan)


def _placed(layer: Tensor, second: bool, a: Signal, b: Signal, ndim: int) -> Tensor:
    """Return a layer of A or B along the axes of their product."""
    if second:
        if b.ndim == 1:
            return layer.reshape([1] * ndim)
        line = layer.narrow(b.ndim - 2, 0, 1)
        return line if b.ndim == ndim else line.reshape([1] * (ndim - 2) + list(line.shape[-2:]))
    line = layer.narrow(a.ndim - 1, 0, 1)
    return line.squeeze(-1) if b.ndim == 1 else line


def _layer(
    reader: Reader,
    shape: tuple[int, ...],
    x: Signal,
    weight: Signal,
    layers: tuple[Tensor, ...],
    bias: Signal | None,
) -> Signal:
    """A weight (in, out) reads the last axis of x."""
    name, inputs, outputs = weight.name, x.shape[-1], shape[-1]
    own = [m for m in weight.layers if axes_of(m) == {weight.ndim - 1}]
    writes = own[0].reshape(-1) if own else torch.zeros(outputs, dtype=torch.long)
    _made(reader, name, own[0] if own else None)
    line = next((m for m in x.layers if axes_of(m) == {x.ndim - 1}), None)
    if line is not None:
        other = [m for m in weight.layers if axes_of(m) == {weight.ndim - 2}]
        _reads(reader, name, other[0] if other else None)
    reads = torch.zeros(inputs, dtype=torch.long) if line is None else line.reshape(-1)
    module, folds = _folds(reader, name)
    value = VARIES
    kept = gain = None
    incoming = VARIES.expand(inputs)
    if reader.masks is not None and weight.kept is not None:
        kept = weight.kept.expand(weight.shape).reshape(inputs, outputs).T
        gain = weight.value.expand(weight.shape).reshape(inputs, outputs).T
        probe = torch.zeros([1] * (x.ndim - 1) + [inputs], dtype=torch.long)
        incoming = reader.per_label(x.value, probe.expand(probe.shape)).reshape(-1)
        value = _through(incoming, kept, gain, zero_only=False)
    step = Step(reads, writes, incoming, kept, gain, not folds, name, module)
    reader.found.steps.append(step)
    if bias is not None:
        layers = _with_bias(reader, bias, layers, len(shape), len(shape) - 1)
        value = value + bias.value if value is not VARIES else VARIES
    return Signal(shape, layers, value, maker=name)


def _through(incoming: Tensor, kept: Tensor, gain: Tensor, zero_only: bool) -> Tensor:
    """Return what a layer puts out where all that it reads is constant, else NaN."""
    known = incoming.isfinite() & ((incoming == 0) | (not zero_only))
    value = torch.zeros(len(kept), dtype=incoming.dtype)
    some = (known & (incoming != 0)).nonzero().flatten()
    if len(some):
        value = torch.where(kept[:, some], gain[:, some], 0).to(incoming.dtype) @ incoming[some]
    return torch.where((kept[:, ~known] if known.any() else kept).any(1), torch.nan, value)


def _with_bias(
    reader: Reader, bias: Signal, layers: tuple[Tensor, ...], ndim: int, axis: int
) -> tuple[Tensor, ...]:
    for line in bias.layers:
        across = line.reshape([1] * axis + [-1] + [1] * (ndim - 1 - axis)) if line.ndim == 1 else line
        meets = [m for m in layers if axes_of(m) & axes_of(across)]
        for m in meets:
            reader.join(m, across)
        if not meets:
            reader.pin(line)
    return layers


def _made(reader: Reader, name: str, line: Tensor | None) -> None:
    reader.found.uses[name] = reader.found.uses.get(name, 0) + 1
    if line is not None and name not in reader.found.rows:
        reader.found.rows[name] = _axis(reader, name, line)


def _reads(reader: Reader, name: str, line: Tensor | None) -> None:
    if line is not None:
        reader.found.columns[name] = _axis(reader, name, line)


def _axis(reader: Reader, name: str, line: Tensor) -> int:
    """Return the axis of a parameter that an atom lies on."""
    atom = int(line.reshape(-1)[0])
    return max(axis for axis, start in enumerate(reader.found.base[name]) if start <= atom)


def _folds(reader: Reader, name: str) -> tuple[str, bool]:
    """Return the layer that owns a weight, and whether a constant that it reads can be put into its bias."""
    owner, _, leaf = name.rpartition(".")
    module = reader.modules.get(owner)
    plain = type(module) in (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d) and leaf == "weight"
    alone = len(reader.tape.aliases.get(name, [])) == 1 and reader.tape.calls.get(owner) == 1
    bias = getattr(module, "bias", None)
    own = bias is None or len(reader.tape.aliases.get(f"{owner}.bias", [])) == 1
    return owner, bool(plain and alone and own and reader.operation.module == owner)


@rule("convolution")
def convolution(
    reader: Reader, shapes: Shapes, x: Signal, w: Signal, bias: Any, stride: Any, padding: Any, dilation: Any,
    transposed: bool, output_padding: Any, groups: int,
) -> Signal | None:  # fmt: skip
    """Channels are axis 1; the weight is (out, in / groups, ...), transposed (in, out / groups, ...)."""
    shape = shapes[0]
    inputs, outputs = x.shape[1], shape[1]
    by_out, by_in = (1, 0) if transposed else (0, 1)
    rows, columns = w.along(by_out), w.along(by_in)
    for layer in w.layers:
        if axes_of(layer) & set(range(2, w.ndim)):
            reader.pin(layer)
    # channels that are spread over positions, as by a pixel shuffle, go together
    spread = [reader.collapse(m, axes_of(m) - {1}) if 1 in axes_of(m) else m for m in x.layers]
    inside, outside = reader.split(replace(x, layers=tuple(spread)), {1})
    layers = []
    for layer in outside:
        if axes_of(layer) & set(range(2, x.ndim)):
            reader.pin(layer, "a convolution runs over them")
        else:
            layers.append(layer)
    name = w.name
    if not name:
        return None
    read = inside[0].reshape(-1) if inside else None
    make = rows.reshape(-1) if rows is not None else None
    column = columns.reshape(-1) if columns is not None else None
    _made(reader, name, rows)
    if groups == 1:
        if read is not None and column is not None:
            reader.join(read, column)
            _reads(reader, name, columns)
        elif column is not None:
            reader.pin(column, "tied to numbers that stay")
        elif read is not None and inputs > 1:
            reader.pin(read, "read by a weight that cannot be cut")
    else:
        make, read = _grouped(reader, groups, inputs, outputs, make, column, read, transposed)
        if inside and not transposed and (inputs // groups < 4 or column is None):
            reader.found.by_group.add(name)
    if make is not None:
        line = [1, -1] + [1] * (len(shape) - 2)
        layers.append(make.view(line))
    met = x if transposed else Signal(shape)
    counted = [m for m in (make, read) if m is not None]
    if groups > 1:  # each unit reads its own group's
        grouped = name in reader.found.by_group
        counted = [m for m in (make,) if m is not None] + (
            [] if grouped or read is None else [read[: inputs // groups]]
        )
    sizes = (x.shape[0], outputs, inputs // groups, prod(met.shape[2:]), prod(w.shape[2:]))
    placed = [m.reshape([-1 if k == (1 if m is make else 2) else 1 for k in range(5)]) for m in counted]
    reader.worked(sizes, placed)
    module, folds = _folds(reader, name)
    zero_only = transposed or not folds or any(padding)
    value, kept, gain, incoming = VARIES, None, None, VARIES.expand(inputs)
    if reader.masks is not None and w.kept is not None:
        kept, gain = _dense(w, groups, inputs, outputs, transposed)
        probe = torch.zeros([1, inputs] + [1] * (x.ndim - 2), dtype=torch.long)
        incoming = reader.per_label(x.value, probe).reshape(-1)
        value = _through(incoming, kept, gain, transposed or any(padding)).view(
            [1, -1] + [1] * (len(shape) - 2)
        )
    writes = torch.zeros(outputs, dtype=torch.long) if make is None else make
    reads = torch.zeros(inputs, dtype=torch.long) if read is None else read
    reader.found.steps.append(Step(reads, writes, incoming, kept, gain, zero_only, name, module))
    if isinstance(bias, Signal):
        layers = list(_with_bias(reader, bias, tuple(layers), len(shape), 1))
        value = value + bias.value.view([1, -1] + [1] * (len(shape) - 2)) if value is not VARIES else VARIES
    return Signal(shape, tuple(layers), value, maker=name)


def _grouped(
    reader: Reader, groups: int, inputs: int, outputs: int, make: Tensor | None, column: Tensor | None,
    read: Tensor | None, transposed: bool,
) -> tuple[Tensor | None, Tensor | None]:  # fmt: skip
    """Join what a grouped convolution ties: whole groups, or as many channels of each."""
    fan_in, fan_out = inputs // groups, outputs // groups
    if transposed:
        # the weight's rows are the inputs, its columns the outputs of every group
        make, column = column, make
        if make is not None and column is not None:
            column, make = make, column
    if read is None:
        if column is not None:
            reader.pin(column)
        if transposed or make is None or fan_out == 1:
            if make is not None:
                reader.pin(make, "a grouped convolution of the input")
            return None, read
        across = make.view(groups, fan_out)
        reader.join(across, across[:1])
        return make, read
    if transposed:
        for part in (column, make, read):
            if part is not None:
                reader.pin(part, "a grouped transposed convolution")
        return None, read
    within = read.view(groups, fan_in)
    if fan_in < 4 or column is None:
        reader.join(within, within[:, :1])
        if column is not None:
            reader.pin(column)
        if make is not None:
            reader.join(make.view(groups, fan_out), within[:, :1])
        if make is None:
            reader.pin(read, "a grouped convolution")
        return make, read
    reader.join(within, column[None])
    if make is not None:
        across = make.view(groups, fan_out)
        reader.join(across, across[:1])
    return make, read


def _dense(w: Signal, groups: int, inputs: int, outputs: int, transposed: bool) -> tuple[Tensor, Tensor]:
    """Return (out, in): which connections hold a kept weight, and what each adds up to."""
    assert w.kept is not None
    kept, value = w.kept.expand(w.shape), w.value.expand(w.shape)
    kept = kept.flatten(2).any(2) if w.ndim > 2 else kept
    value = value.to(torch.complex128 if value.is_complex() else torch.float64)
    value = value.flatten(2).sum(2) if w.ndim > 2 else value
    if transposed:
        blocks = [(k.T, v.T) for k, v in zip(kept.chunk(groups), value.chunk(groups), strict=True)]
    else:
        blocks = list(zip(kept.chunk(groups), value.chunk(groups), strict=True))
    if groups == 1:
        return blocks[0]
    return torch.block_diag(*[k.double() for k, _ in blocks]).bool(), torch.block_diag(  # type: ignore[no-untyped-call]
        *[v for _, v in blocks]
    )


@rule("embedding")
def embedding(
    reader: Reader, shapes: Shapes, weight: Signal, index: Any, *rest: Any, **kwargs: Any
) -> Signal:
    """Rows of a table, by number: its columns are units, its rows stay."""
    shape = shapes[0]
    for layer in weight.layers:
        if 0 in axes_of(layer):
            reader.pin(layer)
    reader.found.uses[weight.name] = reader.found.uses.get(weight.name, 0) + 1
    line = weight.along(1)
    if weight.name and line is not None:
        reader.found.rows.setdefault(weight.name, 1)
    layers = () if line is None else (line.view([1] * (len(shape) - 1) + [-1]),)
    value = VARIES
    if reader.masks is not None and weight.kept is not None:
        dead = ~weight.kept.expand(weight.shape).any(0)
        value = torch.where(dead, 0.0, torch.nan).view([1] * (len(shape) - 1) + [-1])
    return Signal(shape, layers, value, maker="")


@rule("glu")
def glu(reader: Reader, shapes: Shapes, x: Signal, dim: int = -1) -> list[Signal] | None:
    """The first half times a gate made of the second."""
    axis = dim % x.ndim
    half = x.shape[axis] // 2
    layers = []
    for layer in x.layers:
        if layer.shape[axis] > 1:
            reader.join(layer.narrow(axis, 0, half), layer.narrow(axis, half, half))
            pieces = layer.unflatten(axis, (2, half))  # type: ignore[no-untyped-call]
            reader.box(pieces, [axis], "one half gates the other")
            layers.append(layer.narrow(axis, 0, half))
        else:
            layers.append(layer)
    value = VARIES
    if x.constant():
        value = squash(torch.nn.functional.glu(x.value.expand(x.shape), dim))
    return [Signal(shapes[0], tuple(layers), value)]
