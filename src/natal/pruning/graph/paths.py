"""Which weights lie on a path from input to output, by one pass along a tape and one back.

Every operation is replaced by the question which of its results some path reaches: a layer by its mask, anything
elementwise by "one of its inputs". Forwards numbers are 0 or 1, and so are gradients backwards, so that a weight's
gradient says whether a path leads into it and one leads on.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from natal.pruning.graph.capture import WRITTEN, Operation, Ref, Tape, on_cpu
from natal.pruning.graph.operations import MOVES


@dataclass
class Paths:
    """What was found, by weight: ``on``: in its shape, whether a path of kept weights through it could lead from
    input to output; ``into``, ``reached``, ``leads``: which of a layer's inputs and of its units are reached, and
    which of its units lead on, for layers that use their weight as it is."""

    on: dict[str, Tensor] = field(default_factory=dict)
    into: dict[str, Tensor] = field(default_factory=dict)
    reached: dict[str, Tensor] = field(default_factory=dict)
    leads: dict[str, Tensor] = field(default_factory=dict)


class _Bits(torch.autograd.Function):
    """Whether a number is above zero, and whether its gradient is."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return (x > 0).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return (gradients[0] > 0).to(gradients[0].dtype)


def bits(x: Tensor) -> Tensor:
    """Return 1 where x is above zero, with gradients of 0 and 1."""
    answer: Tensor = _Bits.apply(x)  # type: ignore[no-untyped-call]
    return answer


@dataclass
class _Flow:
    """What reaches a tensor; ``own``: it comes from parameters alone, and is what a layer lets through."""

    bits: Tensor
    own: bool = False
    name: str = ""


class _Walk:
    def __init__(self, model: nn.Module, tape: Tape, masks: Mapping[str, Tensor]) -> None:
        self.tape = tape
        self.leaves: dict[str, Tensor] = {}
        self.flows: dict[int, _Flow] = {}
        self.seen: dict[str, list[tuple[Tensor, int, Tensor, int]]] = {}
        parameters = dict(model.named_parameters()) | dict(model.named_buffers())
        by_first = tape.by_first(masks)
        for name, slot in tape.registered.items():
            kept = by_first.get(name)
            leaf = (
                torch.ones(parameters[name].shape, dtype=torch.float32)
                if kept is None
                else kept.cpu().float()
            ).requires_grad_()
            self.leaves[name] = leaf
            self.flows[slot] = _Flow(leaf, own=True, name=name)
        for slot in tape.inputs:
            self.flows[slot] = _Flow(torch.ones(tape.shapes[slot], dtype=torch.float32))

    def run(self) -> Paths:
        with torch.enable_grad():
            for operation in self.tape.operations:
                shapes = [self.tape.shapes[slot] for slot in operation.outputs]
                results = self.step(operation, shapes)
                for slot, flow in zip(operation.outputs, results, strict=True):
                    self.flows[slot] = flow
            ends = [self.flow(slot).bits.sum() for slot in self.tape.outputs if not self.flow(slot).own]
            total = sum(ends, torch.zeros((), requires_grad=True, dtype=torch.float32))
            watched = [t for uses in self.seen.values() for use in uses for t in (use[2],)]
            grads = torch.autograd.grad(total, [*self.leaves.values(), *watched], allow_unused=True)
        found = Paths()
        of_leaf = dict(zip(self.leaves, grads, strict=False))
        for name, leaf in self.leaves.items():
            grad = of_leaf[name]
            found.on[name] = torch.zeros_like(leaf, dtype=torch.bool) if grad is None else grad > 0
        rest = iter(grads[len(self.leaves) :])
        for name, uses in self.seen.items():
            for x, axis, y, out_axis in uses:
                grad = next(rest)
                leads = torch.zeros_like(y) if grad is None else grad
                for store, value, along in (
                    (found.into, x, axis),
                    (found.reached, y, out_axis),
                    (found.leads, leads, out_axis),
                ):
                    line = (value.detach() > 0).movedim(along, 0).reshape(value.shape[along], -1).any(1)
                    store[name] = store[name] | line if name in store else line
        return found

    def flow(self, slot: int) -> _Flow:
        if slot not in self.flows:
            self.flows[slot] = _Flow(torch.zeros(self.tape.shapes[slot], dtype=torch.float32), own=True)
        return self.flows[slot]

    def step(self, operation: Operation, shapes: list[tuple[int, ...]]) -> list[_Flow]:
        if operation.op == WRITTEN:
            a, b = (self.flow(slot) for slot in operation.given())
            return [
                a if a.own and b.own else _Flow(bits(a.bits * (not a.own) + _any(b.bits)), a.own and b.own)
            ]
        name = operation.op.overloadpacket.__name__.strip("_")
        refs = [v for v in pytree.tree_leaves((operation.args, dict(operation.kwargs))) if isinstance(v, Ref)]
        flows = [self.flow(ref.slot) for ref in refs]
        live = [f for f in flows if not f.own]
        if name in ("convolution", "mm", "addmm", "bmm", "baddbmm", "mv", "addmv", "embedding"):
            return [self.mixed(name, operation, shapes[0])]
        if not flows:
            return [_Flow(torch.zeros(shape, dtype=torch.float32), own=True) for shape in shapes]
        if name in _MOVES:
            return self.moved(name, operation, flows, shapes)
        if not live:
            return [self.spread(flows, shape, own=True) for shape in shapes]
        if torch.Tag.pointwise in operation.op.tags or name in _ELEMENTWISE:
            return [self.elementwise(live, shape) for shape in shapes[:1]] + [
                _Flow(torch.zeros(s, dtype=torch.float32), own=True) for s in shapes[1:]
            ]
        x = self.flow(operation.args[0].slot) if isinstance(operation.args[0], Ref) else live[0]
        if name in _POSITIONS:
            count = 1 if "1d" in name else 3 if "3d" in name else 2
            lead = x.bits.flatten(x.bits.ndim - count).sum(-1)
            wide = bits(lead)[(...,) + (None,) * count]
            return [_Flow(wide.expand(shape)) for shape in shapes]
        if name in ("mean", "sum", "amax", "amin") and len(shapes) == 1 and len(operation.args) > 1:
            dims = operation.args[1]
            keep = len(shapes[0]) == x.bits.ndim
            if dims:
                return [_Flow(bits(x.bits.sum(dims, keepdim=keep)))]
        if name.endswith("softmax"):
            return [_Flow(bits(x.bits.sum(operation.args[1], keepdim=True)).expand(shapes[0]))]
        return [self.spread(live, shape) for shape in shapes]

    def moved(
        self, name: str, operation: Operation, flows: list[_Flow], shapes: list[tuple[int, ...]]
    ) -> list[_Flow]:
        own = all(f.own for f in flows)

        def bits_of(ref: Ref) -> Tensor:
            flow = self.flow(ref.slot)
            # beside activations a parameter, as a class token, starts no path
            return flow.bits if own or not flow.own else torch.zeros_like(flow.bits)

        args, kwargs = pytree.tree_map_only(Ref, bits_of, (operation.args, dict(operation.kwargs)))
        if name == "constant_pad_nd":
            args = (*args[:2], 0.0)
        if name in ("to_copy", "as_strided") and args[0].shape == shapes[0]:
            result = args[0]
        elif name in ("view", "unsafe_view", "reshape_alias"):
            result = args[0].reshape(args[1])
        else:
            result = operation.op(*args, **kwargs)
        tensors = [t for t in pytree.tree_leaves(result) if isinstance(t, Tensor)]
        source = flows[0].name if len(flows) == 1 else ""
        return [_Flow(t, own, source) for t in tensors]

    def elementwise(self, live: list[_Flow], shape: tuple[int, ...]) -> _Flow:
        total = torch.zeros(shape, dtype=torch.float32)
        for flow in live:
            total = total + flow.bits
        return _Flow(bits(total))

    def spread(self, flows: list[_Flow], shape: tuple[int, ...], own: bool = False) -> _Flow:
        """Return a result that anything may have reached."""
        return _Flow(
            bits(sum((_any(f.bits) for f in flows), torch.zeros((), dtype=torch.float32))).expand(shape), own
        )

    def mixed(self, name: str, operation: Operation, shape: tuple[int, ...]) -> _Flow:
        args: list[Any] = [self.flow(a.slot) if isinstance(a, Ref) else a for a in operation.args]
        if name == "embedding":
            table = args[0]
            line = bits(table.bits.sum(0))
            return _Flow(line.expand(shape))
        if name == "convolution":
            x, w = args[0], args[1]
            if x.own or not w.own:
                return self.spread([x, w], shape, x.own and w.own)
            return _Flow(self.convolution(x.bits, w, args[6], args[8], shape))
        a, b = args[-2:]
        own = a.own and b.own
        if b.own and not a.own:
            y = bits(a.bits @ b.bits)
            if b.name and b.bits.numel() == self.leaves[b.name].numel():
                self.seen.setdefault(b.name, []).append((a.bits, a.bits.ndim - 1, y, y.ndim - 1))
            return _Flow(y)
        if own or a.own:
            return _Flow(bits(a.bits @ b.bits), own)
        rows = a.bits.sum(-1, keepdim=True)
        columns = b.bits.sum(-2, keepdim=True) if b.bits.ndim > 1 else b.bits.sum()
        return _Flow(bits((rows if b.bits.ndim > 1 else rows.squeeze(-1)) + columns).expand(shape))

    def convolution(
        self, x: Tensor, w: _Flow, transposed: bool, groups: int, shape: tuple[int, ...]
    ) -> Tensor:
        channels = bits(x.movedim(1, 0).flatten(1).sum(1))
        connects = bits(w.bits.flatten(2).sum(2))
        chunks = connects.chunk(groups)
        parts = [p.T for p in chunks] if transposed else list(chunks)
        y = bits(torch.cat([p @ c for p, c in zip(parts, channels.chunk(groups), strict=True)]))
        if w.name and w.bits.numel() == self.leaves[w.name].numel():
            self.seen.setdefault(w.name, []).append((channels, 0, y, 0))
        return y.view([1, -1] + [1] * (len(shape) - 2)).expand(shape)


def _any(x: Tensor) -> Tensor:
    return bits(x.sum())


_MOVES = {name.strip("_") for name in MOVES} | {"to_copy"}
_MOVES |= {f"{name}" for name in ("unsafe_view", "reshape_alias")}
_ELEMENTWISE = {"native_batch_norm", "native_batch_norm_legit", "native_batch_norm_legit_no_training",
                "cudnn_batch_norm", "prelu_kernel", "native_dropout"}  # fmt: skip
_POSITIONS = {"max_pool2d_with_indices", "max_pool3d_with_indices", "avg_pool2d", "avg_pool3d", "adaptive_avg_pool2d",
              "adaptive_avg_pool3d", "adaptive_max_pool2d", "adaptive_max_pool3d", "upsample_bilinear2d",
              "upsample_linear1d", "upsample_bicubic2d", "upsample_trilinear3d"}  # fmt: skip


@on_cpu
def paths(model: nn.Module, tape: Tape, masks: Mapping[str, Tensor]) -> Paths:
    """Return what lies on a path from the inputs of a tape to its outputs, under masks of its parameters."""
    return _Walk(model, tape, masks).run()
