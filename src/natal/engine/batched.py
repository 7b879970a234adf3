"""Many networks at once, with a hand-written backward pass: the fast path.

Networks of one task and one width become *lanes* of stacked arrays (lane, row, neuron); a step is a few large
operations over all of them. Four facts make it fast, none of which changes what is computed:

- a neuron with no outgoing weight left, whether removed whole or not, is left out: its own weights never get a
  gradient; the arrays are only as wide as the others (rounded up to 32);
- a one-hot input is never multiplied: the first layer is a sum of the weight rows its ones select;
- rows go through a step in large blocks, what comes back to a one-hot input is summed while it is in the cache;
- large products go through oneDNN's kernels, small ones through NumPy, which loops over lanes without Python.

On CPU a lane's bits depend on nothing but itself: every product is one call a lane with the lane's own shapes, and
every other operation works row by row on one thread. A network trained alone equals itself among 500.

One-hot classification is moreover *the oracle's arithmetic*: sums run in the order in which the sequential engine's
do on the CPU it was recorded on, so the results are the same to the last bit there (``ROWS``, ``WIDTH_STEP``, the
bias first, torch's own softmax and Adam). Elsewhere, and for dense inputs, only the order of summation differs.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from natal.determinism import deterministic, one_thread
from natal.engine.ticket import History, Ticket, Trained, conclude
from natal.errors import NatalError
from natal.spec import Training

WIDTH_STEP = 32  # torch sums the columns of narrower arrays in another order than the oracle's
LANE_FLOATS = 2**19  # activations of all lanes held at once, 2 MB in float32: more would leave the cache
BLOCK_FLOATS = (
    2**20
)  # activations of one lane's block of rows, 4 MB in float32; smaller blocks mean more calls
ROWS = 192  # MKL, and so the oracle, adds up products over rows in sums of 192
BETA1, BETA2, EPS = 0.9, 0.999, 1e-8  # torch.optim.Adam's defaults


def train(tickets: Sequence[Ticket], training: Training, device: str = "cpu") -> list[Trained]:
    """Train all tickets and return the results in order.

    Tickets may differ in anything: those of one task, width and precision share arrays, a few at a time so that
    the arrays stay in the cache. On CPU the result of a ticket does not depend on the others, to the last bit.
    """
    groups: dict[Any, list[int]] = {}
    for i, ticket in enumerate(tickets):
        weight = ticket.parameters["hidden.weight"]
        data, split = ticket.split.data, ticket.split
        shape = (
            weight.shape,
            weight.dtype,
            len(split.fit),
            len(split.val),
            data.outputs,
            _ones_a_row(data.inputs),
        )
        groups.setdefault((ticket.task.name, _width(ticket), ticket.learning_rate, shape), []).append(i)
    trained: dict[int, Trained] = {}
    with one_thread(), deterministic(device), torch.no_grad():
        for members in groups.values():
            first = tickets[members[0]]
            together = lanes_at_once(len(first.split.fit), _width(first), first.split.data.outputs)
            size = together if device == "cpu" else len(members)
            for start in range(0, len(members), size):
                part = members[start : start + size]
                trained.update(
                    zip(part, _train_lanes([tickets[i] for i in part], training, device), strict=True)
                )
    return [trained[i] for i in range(len(tickets))]


def width(kept: int, hidden: int) -> int:
    """Return how many neurons a lane holds for ``kept`` of ``hidden``: rounded up to a multiple of 32."""
    return min(max(1, math.ceil(kept / WIDTH_STEP)) * WIDTH_STEP, hidden)


def lanes_at_once(rows: int, neurons: int, outputs: int) -> int:
    """Return how many networks of that shape fit the cache together while they train (at least 1)."""
    return max(1, LANE_FLOATS // (rows * (neurons + outputs)))


def _neurons(ticket: Ticket) -> Tensor:
    """Return the indices of the neurons to compute: those with an outgoing weight."""
    return ticket.mask.weights["output.weight"].any(0).nonzero().flatten()


def _width(ticket: Ticket) -> int:
    return width(len(_neurons(ticket)), ticket.parameters["hidden.weight"].shape[0])


# -- one group of lanes ------------------------------------------------------------------------------------------


def _train_lanes(tickets: Sequence[Ticket], training: Training, device: str) -> list[Trained]:
    started = time.perf_counter()
    lanes = _Lanes.of(tickets, device)
    histories = [History(training.patience, training.target) for _ in tickets]
    best = lanes.theta.clone()
    alive = list(range(len(tickets)))  # the ticket of each lane still training
    for step in range(1, training.epochs + 1):
        losses, metrics = lanes.step(step), lanes.validate()
        measured = zip(alive, losses, metrics, strict=True)
        better = [histories[i].record(loss, metric) for i, loss, metric in measured]
        if any(better):
            best[[i for i, is_better in zip(alive, better, strict=True) if is_better]] = lanes.theta[better]
        going = [lane for lane, i in enumerate(alive) if not histories[i].over]
        if not going:
            break
        if len(going) < len(alive):
            alive = [alive[lane] for lane in going]
            lanes = lanes.only(going)
    seconds = (time.perf_counter() - started) / len(tickets)
    made_by = f"batched engine, {device}"
    return [
        conclude(ticket, history, _parameters(ticket, theta), seconds, made_by)
        for ticket, history, theta in zip(tickets, histories, best.cpu(), strict=True)
    ]


@dataclass(frozen=True)
class _Rows:
    """The rows of every lane: inputs with a first column of ones, as numbers or as the positions of their ones."""

    targets: Tensor  # (lane, row) classes or (lane, row, output)
    dense: Tensor | None  # (lane, row, input)
    ones: Tensor | None  # (lane, row, ones per row), counted through the rows of all lanes' stacked w1

    @classmethod
    def of(cls, rows: list[tuple[Tensor, Tensor]], few: int, device: str) -> _Rows:
        inputs = F.pad(torch.stack([x for x, _ in rows]), (1, 0), value=1.0)
        targets = torch.stack([y for _, y in rows]).to(device)
        if not (few and device == "cpu"):
            return cls(targets, inputs.to(device), None)
        ones = inputs.nonzero()[:, 2].view(*inputs.shape[:2], few + 1)  # and the one that is always there
        return cls(targets, None, ones + inputs.shape[2] * torch.arange(len(ones))[:, None, None])

    def part(self, start: int, stop: int) -> _Rows:
        """Return some of every lane's rows."""
        dense, ones = (None if x is None else x[:, start:stop] for x in (self.dense, self.ones))
        return _Rows(self.targets[:, start:stop], dense, ones)

    def only(self, lanes: list[int], inputs: int) -> _Rows:
        if self.ones is None:
            return _Rows(self.targets[lanes], None if self.dense is None else self.dense[lanes], None)
        moved = torch.tensor(lanes) - torch.arange(len(lanes))
        return _Rows(self.targets[lanes], None, self.ones[lanes] - inputs * moved[:, None, None])


class _Lanes:
    """Parameters, Adam's moments and working memory of a group of networks, stacked along the lane axis.

    A lane's parameters lie in one flat vector, ``theta[lane]``, seen through the views ``w1`` (lane, input, neuron),
    ``w2`` (lane, output, neuron) and ``b2`` (lane, output). The neuron axis comes last everywhere; the first row
    of ``w1`` is the hidden bias, the weight of an input that is always one.
    """

    def __init__(
        self, ticket: Ticket, theta: Tensor, mask: Tensor | None, moments: Tensor, fit: _Rows, val: _Rows
    ) -> None:
        self.ticket, self.theta, self.mask, self.moments, self.fit, self.val = (
            ticket,
            theta,
            mask,
            moments,
            fit,
            val,
        )
        self.gradient, self.scratch = torch.empty_like(theta), torch.empty_like(theta)
        self.w1, self.w2, self.b2 = _views(theta, ticket)
        self.g1, self.g2, self.gb2 = _views(self.gradient, ticket)
        (lanes, inputs, neurons), outputs, rows = self.w1.shape, self.w2.shape[1], fit.targets.shape[1]
        self.ops = _ops(theta, rows, neurons, outputs)
        self.first, self.second = moments
        self.loss = _LOSSES[ticket.task.loss.name]
        self.metric = _METRICS[ticket.task.metric.name](val.targets)
        # blocks are a lane's own affair: if neighbours changed them, they would change its bits
        block = max(3, BLOCK_FLOATS // (2 * neurons + outputs) // ROWS) * ROWS if self.ops.on_cpu else rows
        edges = itertools.pairwise([*range(0, rows, block), rows])
        self.pull = theta.new_empty(lanes, rows, outputs)
        self.back = theta.new_empty(lanes, rows, neurons)
        self.blocks = [(fit.part(a, b), self.pull[:, a:b], self.back[:, a:b]) for a, b in edges]
        # where small products are written to, for as many rows as a block has
        counts = {block.targets.shape[1] for block in (*(b for b, _, _ in self.blocks), val)}
        hidden, out = (theta.new_empty(lanes, max(counts), n) for n in (neurons, outputs))
        self.room = {n: (hidden[:, :n], out[:, :n]) for n in counts}
        if fit.ones is not None:
            self.columns = theta.new_empty(lanes * inputs, neurons)  # what comes back to each one-hot input
        self.bags = [None if part.ones is None else _bags(part.ones) for part, _, _ in self.blocks]

    @classmethod
    def of(cls, tickets: Sequence[Ticket], device: str) -> _Lanes:
        """Return newborn lanes for tickets of one task, width and learning rate."""
        theta = torch.stack([_flatten(t, t.born()) for t in tickets])
        mask: Tensor | None = None
        if any(t.mask.kept < t.mask.total for t in tickets):
            kept = [{name: torch.ones_like(p) for name, p in t.parameters.items()} for t in tickets]
            for t, keep in zip(tickets, kept, strict=True):
                t.mask.apply_(keep)
            mask = torch.stack([_flatten(t, keep) for t, keep in zip(tickets, kept, strict=True)]).to(device)
        rows, few = [t.rows() for t in tickets], _ones_a_row(tickets[0].split.data.inputs)
        fit, val = (_Rows.of([r[part] for r in rows], few, device) for part in ("fit", "val"))
        return cls(
            tickets[0],
            theta.to(device),
            mask,
            torch.zeros(2, *theta.shape, dtype=theta.dtype, device=device),
            fit,
            val,
        )

    def only(self, lanes: list[int]) -> _Lanes:
        """Return the same training with fewer lanes."""
        mask, inputs = None if self.mask is None else self.mask[lanes], self.w1.shape[1]
        return _Lanes(
            self.ticket,
            self.theta[lanes],
            mask,
            self.moments[:, lanes],
            self.fit.only(lanes, inputs),
            self.val.only(lanes, inputs),
        )

    def step(self, t: int) -> list[float]:
        """Take Adam's step ``t`` (from 1) on the training rows; return each lane's loss before it."""
        rows, losses = self.fit.targets.shape[1], []
        if self.fit.ones is not None:
            self.columns.zero_()
        for (block, pull, back), bags in zip(self.blocks, self.bags, strict=True):
            hidden, out = self._forward(block)
            losses.append(self.loss(out, block.targets, rows, pull))
            self.ops.outer(pull, hidden, self.g2, add=len(losses) > 1)
            # ReLU's slope: what comes back where hidden > 0, else 0
            torch.ops.aten.threshold_backward.grad_input(
                self.ops.times(pull, self.w2, back), hidden, 0, grad_input=back
            )
            if bags is not None:
                columns, members, offsets = bags
                sums = F.embedding_bag(members, back.flatten(0, 1), offsets, mode="sum")
                self.columns.index_add_(0, columns, sums)
        torch.sum(self.pull, 1, out=self.gb2)
        if self.fit.dense is not None:
            self.ops.outer(self.fit.dense, self.back, self.g1)
        else:
            self.g1.copy_(self.columns.view_as(self.g1))
            torch.sum(self.back, 1, out=self.g1[:, 0])
        self._adam(t)
        total: list[float] = sum(losses[1:], losses[0]).tolist()
        return total

    def validate(self) -> list[float]:
        """Return the validation metric of each lane."""
        return self.metric(self._forward(self.val)[1])

    def _forward(self, rows: _Rows) -> tuple[Tensor, Tensor]:
        """Return hidden activations (lane, row, neuron) and outputs (lane, row, output) of some rows."""
        hidden, out = self.room[rows.targets.shape[1]]
        if rows.dense is not None:
            hidden = self.ops.times(rows.dense, self.w1, hidden)
        else:
            assert rows.ones is not None
            weights = self.w1.reshape(-1, hidden.shape[2])
            hidden = F.embedding_bag(rows.ones.flatten(0, 1), weights, mode="sum").view_as(hidden)
        hidden.relu_()
        return hidden, self.ops.outputs(hidden, self.w2, self.b2, out)

    def _adam(self, t: int) -> None:
        """Adam's step t, then the mask: θ ← m ⊙ (θ - η m̂ / (√v̂ + ε)) (Kingma & Ba 2015, algorithm 1).

        The operations, and so the bits, are those of ``torch.optim.Adam``.
        """
        self.first.lerp_(self.gradient, 1 - BETA1)
        self.second.mul_(BETA2).addcmul_(self.gradient, self.gradient, value=1 - BETA2)
        self.ops.sqrt(self.second, self.scratch)
        self.scratch.div_((1 - BETA2**t) ** 0.5).add_(EPS)
        self.theta.addcdiv_(self.first, self.scratch, value=-self.ticket.learning_rate / (1 - BETA1**t))
        if self.mask is not None:
            self.theta.mul_(self.mask)


def _views(flat: Tensor, ticket: Ticket) -> list[Tensor]:
    """Return ``w1``, ``w2`` and ``b2`` as views of the lanes' vectors (lane, parameter)."""
    inputs, neurons, outputs = (
        ticket.parameters["hidden.weight"].shape[1],
        _width(ticket),
        ticket.split.data.outputs,
    )
    shapes = ((inputs + 1, neurons), (outputs, neurons), (outputs,))
    parts = torch.split(flat, [math.prod(shape) for shape in shapes], dim=1)
    return [part.view(len(flat), *shape) for part, shape in zip(parts, shapes, strict=True)]


def _flatten(ticket: Ticket, parameters: dict[str, Tensor]) -> Tensor:
    """Return full-size parameters by name as a lane's vector; neurons that only fill up the width are zero."""
    kept, outputs = _neurons(ticket), ticket.split.data.outputs
    size = (ticket.parameters["hidden.weight"].shape[1] + 1 + outputs) * _width(ticket) + outputs
    flat = torch.zeros(1, size, dtype=parameters["hidden.weight"].dtype)
    w1, w2, b2 = (view[0] for view in _views(flat, ticket))
    w1[0, : len(kept)] = parameters["hidden.bias"][kept]
    w1[1:, : len(kept)] = parameters["hidden.weight"][kept].T
    w2[:, : len(kept)] = parameters["output.weight"][:, kept]
    b2.copy_(parameters["output.bias"])
    return flat[0]


def _parameters(ticket: Ticket, flat: Tensor) -> dict[str, Tensor]:
    """Return a lane's vector as full-size parameters by name; neurons left out are as they were born."""
    w1, w2, b2 = (view[0] for view in _views(flat[None], ticket))
    kept = _neurons(ticket)
    full = ticket.born()
    full["hidden.bias"][kept] = w1[0, : len(kept)]
    full["hidden.weight"][kept] = w1[1:, : len(kept)].T
    full["output.weight"][:, kept] = w2[:, : len(kept)]
    full["output.bias"].copy_(b2)
    return full


def _ones_a_row(inputs: Tensor) -> int:
    """Return how many ones every row has if all are as few ones among zeros, as in one-hot groups, else 0.

    ``inputs``: (row, input), all training rows of a ticket, so that the answer is its own affair.
    """
    is_one = inputs == 1
    few = int(is_one[0].sum())
    alike = (
        few <= inputs.shape[1] // 8
        and bool((is_one.sum(1) == few).all())
        and bool((is_one | (inputs == 0)).all())
    )
    return few if alike else 0


def _bags(ones: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return how to add up what comes back to the inputs of a block of rows: ``ROWS`` at a time, then those sums.

    ``ones`` (lane, row, ones per row). Three index tensors: for each first sum the input (of all lanes') that it
    belongs to, in the order in which they are to be added; the rows of all first sums, one sum after the other; and
    where each starts. The always-on input is left out; its sum goes over all rows.
    """
    lanes, rows, per_row = ones.shape
    inputs = int(ones.max()) + 1
    part = torch.arange(rows) // ROWS
    place = (part[None, :, None] * inputs + ones[..., 1:]).flatten()
    row = torch.arange(lanes * rows).repeat_interleave(per_row - 1)
    order = place.argsort(stable=True)
    sums, sizes = torch.unique_consecutive(place[order], return_counts=True)
    return sums % inputs, row[order], sizes.cumsum(0) - sizes


# -- losses and metrics of many lanes ------------------------------------------------------------------------------


def _cross_entropy(out: Tensor, classes: Tensor, rows: int, pull: Tensor) -> Tensor:
    """Return -Σ log softmax(z)_y / rows per lane; ``pull`` becomes its gradient (softmax(z) - onehot(y)) / rows."""
    at = classes[..., None]
    logs = F.log_softmax(out, 2)
    wanted = out.zero_().scatter_(2, at, -1 / rows)
    for lane in zip(wanted, logs, pull, strict=True):  # each is contiguous, as this operation wants it
        torch.ops.aten._log_softmax_backward_data.out(*lane[:2], 1, logs.dtype, out=lane[2])
    return -logs.gather(2, at).sum((1, 2)) / rows


def _squared_error(out: Tensor, targets: Tensor, rows: int, pull: Tensor) -> Tensor:
    """Return Σ (z - y)² / (rows · outputs) per lane; ``pull`` becomes its gradient 2 (z - y) / (rows · outputs)."""
    out.sub_(targets)
    count = rows * out.shape[2]
    torch.mul(out, 2 / count, out=pull)
    return (out * out).sum((1, 2)) / count


def _accuracy(classes: Tensor) -> Callable[[Tensor], list[float]]:
    def measure(out: Tensor) -> list[float]:
        # NumPy's argmax is twice as fast as torch's on CPU
        best = torch.from_numpy(out.numpy().argmax(2)) if out.device.type == "cpu" else out.argmax(2)
        right: list[float] = (best == classes).to(torch.float32).mean(1).tolist()
        return right

    return measure


def _r2(targets: Tensor) -> Callable[[Tensor], list[float]]:
    total = (targets - targets.mean((1, 2), keepdim=True)).square_().sum((1, 2)).tolist()

    def measure(out: Tensor) -> list[float]:
        residual = out.sub_(targets).square_().sum((1, 2)).tolist()
        return [1 - r / t if t else math.nan for r, t in zip(residual, total, strict=True)]

    return measure


_LOSSES: dict[str, Callable[[Tensor, Tensor, int, Tensor], Tensor]] = {
    "cross-entropy": _cross_entropy,
    "squared-error": _squared_error,
}
_METRICS: dict[str, Callable[[Tensor], Callable[[Tensor], list[float]]]] = {"accuracy": _accuracy, "R²": _r2}


# -- products ------------------------------------------------------------------------------------------------------


class _Ops:
    """The products of a step over stacked lanes, as an accelerator does them: whole batches, zeros multiplied too.

    ``room``: memory of the right shape that a product may be written to.
    """

    on_cpu = False

    def times(self, a: Tensor, b: Tensor, room: Tensor) -> Tensor:
        """Return a b."""
        return torch.bmm(a, b, out=room)

    def outputs(self, hidden: Tensor, w2: Tensor, b2: Tensor, room: Tensor) -> Tensor:
        """Return hidden w2ᵀ + b2."""
        return self.times(hidden, w2.mT, room).add_(b2[:, None])

    def outer(self, a: Tensor, b: Tensor, total: Tensor, add: bool = False) -> None:
        """Let total = aᵀ b, or with ``add`` total + aᵀ b."""
        total.baddbmm_(a.mT, b, beta=int(add))

    def sqrt(self, x: Tensor, room: Tensor) -> None:
        """Let room = √x."""
        torch.sqrt(x, out=room)


class _Small(_Ops):
    """The same for small networks on CPU: NumPy hands one lane at a time to its BLAS, in a loop of C.

    So a lane's bits cannot depend on its neighbours; torch.bmm may regroup them.
    """

    on_cpu = True

    def times(self, a: Tensor, b: Tensor, room: Tensor) -> Tensor:
        if a.shape[-1] == 1:  # an outer product: BLAS is slow at it
            return torch.mul(a, b, out=room)
        np.matmul(a.numpy(), b.numpy(), out=room.numpy())
        return room

    def outer(self, a: Tensor, b: Tensor, total: Tensor, add: bool = False) -> None:
        if add:
            total += torch.from_numpy(np.matmul(a.mT.numpy(), b.numpy()))
        else:
            np.matmul(a.mT.numpy(), b.numpy(), out=total.numpy())

    def sqrt(self, x: Tensor, room: Tensor) -> None:
        np.sqrt(
            x.numpy(), out=room.numpy()
        )  # torch's takes four times as long over the zeros of pruned weights


class _Large(_Small):
    """The same for large networks on CPU, a lane at a time.

    oneDNN's kernels are about twice as fast as MKL's on CPUs that are not Intel's and add up in the same order, except
    over many rows, where MKL's own product is as fast as one that copies its order.
    """

    def times(self, a: Tensor, b: Tensor, room: Tensor) -> Tensor:
        return _stack([linear(x, y.T, None) for x, y in zip(a, b, strict=True)])

    def outputs(self, hidden: Tensor, w2: Tensor, b2: Tensor, room: Tensor) -> Tensor:
        return _stack([linear(*lane) for lane in zip(hidden, w2, b2, strict=True)])

    def outer(self, a: Tensor, b: Tensor, total: Tensor, add: bool = False) -> None:
        for x, y, t in zip(a, b, total, strict=True):
            t.addmm_(x.T, y, beta=int(add))

    def sqrt(self, x: Tensor, room: Tensor) -> None:
        torch.sqrt(x, out=room)  # the oracle's, which NumPy's is not to the last bit


def _stack(lanes: list[Tensor]) -> Tensor:
    return lanes[0][None] if len(lanes) == 1 else torch.stack(lanes)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return x weightᵀ + bias through oneDNN where this torch has it; torch's own ``linear`` uses MKL."""
    if x.dtype == torch.float32 and torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        product: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
        return product
    return F.linear(x, weight, bias)


LARGE = 2**22
"""Multiplications in one product of a network on CPU from which on a Python call a lane costs little."""


def _ops(theta: Tensor, rows: int, neurons: int, outputs: int) -> _Ops:
    if theta.device.type != "cpu":
        return _Ops()
    return _Large() if rows * neurons * outputs >= LARGE else _Small()


def check(device: str) -> None:
    """Raise NatalError unless ``device`` is one this machine has."""
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    has = ["cpu", *["cuda"][:count], *(f"cuda:{i}" for i in range(count))]
    if device not in has:
        raise NatalError(f"unknown device {device!r}; this machine has: {', '.join(has)}")
