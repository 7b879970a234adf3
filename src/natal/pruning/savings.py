"""What a smaller network saves: parameters, multiply-adds, activation memory, time.

Work is counted on the operations of one forward pass, as `natal.pruning.graph.capture` writes them down, so that what
a model computes without a module is counted too; what has no rule here is named.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from natal.errors import NatalError
from natal.notebook import Rows, Shown
from natal.pruning.graph.capture import Example, Operation, Ref, Tape, arguments, capture
from natal.pruning.mask import check_model
from natal.pruning.masked import duplicate

T = TypeVar("T")


@dataclass(frozen=True, repr=False)
class Savings(Shown):
    """What a smaller network saves; every pair is (before, after), and ``str()`` prints the table.

    ``parameters``: their number. ``multiply_adds``: of matrix products and convolutions, for one row of input.
    ``activations``: bytes of all results of one row's operations that hold numbers of their own, views not
    counted. ``seconds``: median time of one forward pass of the example. ``layers``: of every module with parameters or
    work of its own, by name, ((parameters before, after), (multiply-adds before, after)). ``rows``: in the example.
    ``uncounted``: operations with parameters or much work whose multiply-adds are not counted, by name.
    """

    parameters: tuple[int, int]
    multiply_adds: tuple[int, int]
    seconds: tuple[float, float]
    layers: Mapping[str, tuple[tuple[int, int], tuple[int, int]]]
    rows: int
    activations: tuple[int, int] = (0, 0)
    uncounted: tuple[str, ...] = ()

    def _line(self) -> str:
        return ", ".join(f"{name} {before} -> {after}" for name, before, after in self._pairs())

    def _table(self) -> Rows:
        yield "", "before", "after"
        yield from self._pairs()

    def _pairs(self) -> Iterator[tuple[str, str, str]]:
        for name, (before, after) in (
            ("parameters", self.parameters),
            ("multiply-adds", self.multiply_adds),
            ("bytes of activations", self.activations),
        ):
            yield name, f"{before:,}", f"{after:,}"
        slow, quick = self.seconds
        yield "milliseconds", f"{1e3 * slow:.3f}", f"{1e3 * quick:.3f}"

    def __str__(self) -> str:
        lines = [("", "parameters", "", "multiply-adds", "")]
        for name, (parameters, work) in [
            *self.layers.items(),
            ("total", (self.parameters, self.multiply_adds)),
        ]:
            lines.append((name or "the model itself", *_pair(parameters), *_pair(work)))
        widths = [max(len(line[i]) for line in lines) for i in range(5)]
        table = [
            "  ".join(
                cell.ljust(w) if i == 0 else cell.rjust(w)
                for i, (cell, w) in enumerate(zip(line, widths, strict=True))
            )
            for line in lines
        ]
        before, after = self.activations
        table.append(f"activations of one row: {before / 1e6:.3f} MB -> {after / 1e6:.3f} MB")
        before_s, after_s = self.seconds
        table.append(
            f"forward pass of {self.rows} rows: {before_s * 1e3:.3f} ms -> {after_s * 1e3:.3f} ms, "
            f"{before_s / after_s:.2f} times as fast"
        )
        if self.uncounted:
            table.append(f"not counted as multiply-adds: {', '.join(self.uncounted)}")
        return "\n".join(line.rstrip() for line in table)


def savings(before: nn.Module, after: nn.Module, example: Example, repeats: int = 30) -> Savings:
    """Count and time two networks on ``example``, in evaluation mode, without changing them.

    Multiply-adds are counted from the shapes that matrix products and convolutions see, attention's and
    transposed ones included. Latency is the median of ``repeats`` runs each, taken in turn so that a busy machine
    slows both alike. Raises NatalError if ``repeats`` is below 1 or a network cannot be run on the example.
    """
    for net in (before, after):
        check_model(net)
    if isinstance(repeats, bool) or not isinstance(repeats, int) or repeats < 1:
        raise NatalError(f"repeats must be at least 1, got {repeats!r}")
    nets = [duplicate(net).eval() for net in (before, after)]
    args, kwargs = arguments(example)
    given = [t for t in pytree.tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
    rows = len(given[0]) if given and given[0].ndim else 1
    counts = [count(net, example) for net in nets]
    sizes = [
        {
            name: sum(p.numel() for p in module.parameters(recurse=False))
            for name, module in net.named_modules()
        }
        for net in nets
    ]
    times: list[list[float]] = [[], []]
    with torch.inference_mode(), torch.random.fork_rng():
        for _ in range(repeats + 1):
            for net, taken in zip(nets, times, strict=True):
                _synchronize(given)
                start = time.perf_counter()
                net(*args, **kwargs)
                _synchronize(given)
                taken.append(time.perf_counter() - start)
    return Savings(
        parameters=_both(sum(p.numel() for p in net.parameters()) for net in nets),
        multiply_adds=_both(round(c.multiply_adds) for c in counts),
        seconds=_both(statistics.median(taken[1:]) for taken in times),  # the first run warms up
        layers={
            name: (
                _both(size.get(name, 0) for size in sizes),
                _both(round(c.work.get(name, 0)) for c in counts),
            )
            for name in dict.fromkeys([*sizes[0], *sizes[1]])
            if any(size.get(name) for size in sizes) or any(c.work.get(name) for c in counts)
        },
        rows=rows,
        activations=_both(round(c.activations) for c in counts),
        uncounted=tuple(dict.fromkeys([*counts[0].uncounted, *counts[1].uncounted])),
    )


@dataclass(frozen=True)
class Count:
    """The work of one network for one row: multiply-adds in all and by module, bytes of results, what is left
    out."""

    multiply_adds: float
    work: Mapping[str, float]
    activations: float
    uncounted: tuple[str, ...]


def count(model: nn.Module, example: Example) -> Count:
    """Count one forward pass of a private model in evaluation mode, per row of the example's first tensor."""
    tape = capture(model, example)
    rows = next((tape.shapes[slot][0] for slot in tape.inputs if tape.shapes[slot]), 1)
    work: dict[str, float] = {}
    total = activations = 0.0
    uncounted: dict[str, None] = {}
    for operation in tape.operations:
        if operation.op == "written":
            continue
        name = operation.op.overloadpacket.__name__
        formula = _WORK.get(name)
        if formula is not None:
            amount = formula(tape, operation) / rows
            total += amount
            work[operation.module] = work.get(operation.module, 0) + amount
        elif name in _UNCOUNTED:
            uncounted.setdefault(name)
        if not any(r.alias_info is not None for r in operation.op._schema.returns):
            activations += (
                sum(math.prod(tape.shapes[slot]) * tape.widths[slot] for slot in operation.outputs) / rows
            )
    return Count(total, work, activations, tuple(uncounted))


def _trilinear(tape: Tape, operation: Operation) -> float:
    """A bilinear layer: every number of the result meets a matrix."""
    return float(
        math.prod(tape.shapes[operation.outputs[0]]) * math.prod(_shape(tape, operation.args[1])[1:])
    )


def _shape(tape: Tape, value: Any) -> tuple[int, ...]:
    return tape.shapes[value.slot] if isinstance(value, Ref) else tuple(value.shape)


def _product(first: int) -> Callable[[Tape, Operation], float]:
    """(…, m, k) by (…, k, n) takes … m n k."""

    def work(tape: Tape, operation: Operation) -> float:
        return float(math.prod(tape.shapes[operation.outputs[0]]) * _shape(tape, operation.args[first])[-1])

    return work


def _convolution(tape: Tape, operation: Operation) -> float:
    """Every number of the result, transposed of the input, meets one filter."""
    weight = _shape(tape, operation.args[1])
    met = _shape(tape, operation.args[0]) if operation.args[6] else tape.shapes[operation.outputs[0]]
    return float(math.prod(met) * math.prod(weight[1:]))


_WORK: dict[str, Callable[[Tape, Operation], float]] = {
    "mm": _product(0),
    "bmm": _product(0),
    "mv": _product(0),
    "dot": lambda tape, operation: float(_shape(tape, operation.args[0])[-1]),
    "addmm": _product(1),
    "addmv": _product(1),
    "baddbmm": _product(1),
    "convolution": _convolution,
    "_trilinear": _trilinear,
}
_UNCOUNTED = {
    "native_batch_norm", "_native_batch_norm_legit", "_native_batch_norm_legit_no_training", "cudnn_batch_norm",
    "native_layer_norm", "native_group_norm", "_fused_rms_norm", "_prelu_kernel", "_embedding_bag", "_fft_c2c",
    "_fft_r2c", "_fft_c2r", "linalg_inv_ex", "grid_sampler_2d", "_cdist_forward", "mkldnn_rnn_layer",
    "_weight_norm_interface",
}  # fmt: skip
"""Operations with parameters, or with much work, that are not counted, as is usual: multiply-adds are those of products
and convolutions. They are named instead; what has neither, elementwise work and poolings, is not."""


def _synchronize(given: Iterable[Tensor]) -> None:
    if any(t.is_cuda for t in given):
        torch.cuda.synchronize()


def _both(values: Iterable[T]) -> tuple[T, T]:
    before, after = values
    return before, after


def _pair(pair: tuple[int, int]) -> tuple[str, str]:
    before, after = pair
    return f"{before:,} -> {after:,}", f"{100 * (1 - after / before):.1f} % less" if before else ""


__all__ = ["Count", "Savings", "count", "savings"]
