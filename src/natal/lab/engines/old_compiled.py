"""Many networks at once, with a hand-written backward pass: the fast path.

Networks of one task and one width become *lanes* of stacked arrays (lane, row, neuron). Three facts make it fast,
none of which changes what is computed:

- a neuron with no outgoing weight left, whether removed whole or not, is left out: its own weights never get a
  gradient; the arrays are only as wide as the others (rounded up to 16);
- on CPU a one-hot input is never multiplied: the first layer is a sum of the weight rows its ones select;
- on CPU a step is compiled (`natal.lab.engines.kernels`) and works through a few rows at a time, which stay in
  the cache.

On CPU a lane's bits depend on nothing but itself: a network trained alone equals itself among 500. One-hot
classification is moreover *the oracle's arithmetic*: sums run in the order in which the sequential engine's do on the
CPU it was recorded on, so the results are the same to the last bit there. Elsewhere, and for dense inputs, only the
order of summation differs. On an accelerator a step is a few large operations of torch over all lanes.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Self

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from natal.determinism import deterministic, one_thread
from natal.errors import NatalError
from natal.lab.engines import kernels
from natal.lab.trial import History, Ticket, Trained, conclude
from natal.study import Training

LANE_FLOATS = (
    2**19
)  # hidden activations and outputs of all lanes together: work enough a step, jobs enough a study
BETA1, BETA2, EPS = 0.9, 0.999, 1e-8  # torch.optim.Adam's defaults


def train(tickets: Sequence[Ticket], training: Training, device: str = "cpu") -> list[Trained]:
    """Train all tickets and return the results in order.

    Tickets may differ in anything: those of one task, width and precision share arrays, on CPU a few at a
    time (`lanes_at_once`). On CPU the result of a ticket does not depend on the others, to the last bit.
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


def width(kept: int) -> int:
    """Return how many neurons a lane holds for ``kept`` of them: rounded up to whole vectors."""
    return max(1, math.ceil(kept / kernels.LANES)) * kernels.LANES


def lanes_at_once(rows: int, neurons: int, outputs: int) -> int:
    """Return how many networks of that shape train together on CPU, and so make a worker's job (at least 1)."""
    return max(1, LANE_FLOATS // (rows * (neurons + outputs)))


def _neurons(ticket: Ticket) -> Tensor:
    """Return the indices of the neurons to compute: those with an outgoing weight."""
    return ticket.mask.weights["output.weight"].any(0).nonzero().flatten()


def _width(ticket: Ticket) -> int:
    return width(len(_neurons(ticket)))


# -- one group of lanes ------------------------------------------------------------------------------------------


def _train_lanes(tickets: Sequence[Ticket], training: Training, device: str) -> list[Trained]:
    started = time.perf_counter()
    lanes = _kind(device).of(tickets, device)
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
    """The rows of every lane: inputs (lane, row, input or one) and targets (lane, row) or (lane, row, output)."""

    inputs: Tensor
    targets: Tensor

    def only(self, lanes: list[int]) -> _Rows:
        return _Rows(self.inputs[lanes], self.targets[lanes])


class _Lanes:
    """Parameters and Adam's moments of a group of networks, stacked along the lane axis, and their rows.

    A lane's parameters lie in one flat vector, ``theta[lane]``, seen through the views ``w1`` (lane, input, neuron),
    ``w2`` (lane, output, neuron) and ``b2`` (lane, output). The neuron axis comes last everywhere; the first row
    of ``w1`` is the hidden bias, the weight of an input that is always one.
    """

    def __init__(
        self, ticket: Ticket, theta: Tensor, mask: Tensor | None, moments: Tensor, fit: _Rows, val: _Rows
    ) -> None:
        self.ticket, self.theta, self.mask, self.moments = ticket, theta, mask, moments
        self.fit, self.val = fit, val
        self.gradient, self.scratch = torch.empty_like(theta), torch.empty_like(theta)

    @classmethod
    def of(cls, tickets: Sequence[Ticket], device: str) -> Self:
        """Return newborn lanes for tickets of one task, width and learning rate."""
        theta = torch.stack([_flatten(t, t.born()) for t in tickets])
        mask: Tensor | None = None
        if any(t.mask.kept < t.mask.total for t in tickets):
            kept = [{name: torch.ones_like(p) for name, p in t.parameters.items()} for t in tickets]
            for t, keep in zip(tickets, kept, strict=True):
                t.mask.apply_(keep)
            mask = torch.stack([_flatten(t, keep) for t, keep in zip(tickets, kept, strict=True)]).to(device)
        few, rows = _ones_a_row(tickets[0].split.data.inputs), [t.rows() for t in tickets]
        fit, val = (
            cls.rows(
                torch.stack([r[part][0] for r in rows]).to(device),
                torch.stack([r[part][1] for r in rows]).to(device),
                few,
            )
            for part in ("fit", "val")
        )
        moments = torch.zeros(2, *theta.shape, dtype=theta.dtype, device=device)
        return cls(tickets[0], theta.to(device), mask, moments, fit, val)

    def only(self, lanes: list[int]) -> Self:
        """Return the same training with fewer lanes."""
        mask = None if self.mask is None else self.mask[lanes]
        fit, val = self.fit.only(lanes), self.val.only(lanes)
        return type(self)(self.ticket, self.theta[lanes], mask, self.moments[:, lanes], fit, val)

    @staticmethod
    def rows(inputs: Tensor, targets: Tensor, few: int) -> _Rows:
        """Return stacked rows as this kind of lanes wants them; ``few``: see `_ones_a_row`."""
        raise NotImplementedError

    def step(self, t: int) -> list[float]:
        """Take Adam's step ``t`` (from 1) on the training rows; return each lane's loss before it."""
        raise NotImplementedError

    def validate(self) -> list[float]:
        """Return the validation metric of each lane."""
        raise NotImplementedError


class _OnCPU(_Lanes):
    """Lanes whose steps are compiled, one lane after the other."""

    def __init__(
        self, ticket: Ticket, theta: Tensor, mask: Tensor | None, moments: Tensor, fit: _Rows, val: _Rows
    ) -> None:
        super().__init__(ticket, theta, mask, moments, fit, val)
        inputs, outputs, rows = (
            ticket.split.data.inputs.shape[1],
            ticket.split.data.outputs,
            fit.inputs.shape[1],
        )
        shape = kernels.Shape(inputs, _width(ticket), outputs)
        number = theta.numpy().dtype.type
        room = kernels.room(shape, rows, number)
        self.sums = np.zeros(len(theta))
        of_lanes = (theta.numpy(), self.gradient.numpy(), shape, fit.inputs.numpy(), fit.targets.numpy())
        classes = ticket.task.loss.name == "cross-entropy"
        self.averaged = rows if classes else rows * outputs
        scale = number(1 / rows if classes else 2 / self.averaged)
        self.gradients = partial(kernels.gradients, *of_lanes, scale, room, self.sums)
        self.scores = partial(
            kernels.scores, theta.numpy(), shape, val.inputs.numpy(), val.targets.numpy(), room, self.sums
        )
        self.metric = _METRICS[ticket.task.metric.name](val.targets)
        first, second = moments.numpy()
        betas = (number(1 - BETA1), number(1 - BETA2), number(BETA2))
        self.adam = partial(
            kernels.moments, self.gradient.numpy(), first, second, self.scratch.numpy(), *betas
        )
        mask_ = None if mask is None else mask.numpy()
        self.move = partial(kernels.move, theta.numpy(), first, self.scratch.numpy(), mask_)
        self.number, self.as_oracle = number, fit.inputs.dtype == torch.int32 and theta.dtype == torch.float32

    @staticmethod
    def rows(inputs: Tensor, targets: Tensor, few: int) -> _Rows:
        if few:
            inputs = inputs.nonzero()[:, 2].view(*inputs.shape[:2], few).to(torch.int32)
        return _Rows(inputs, targets if targets.is_floating_point() else targets.to(torch.int32))

    def step(self, t: int) -> list[float]:
        self.gradients()
        losses: list[float] = (self.sums / self.averaged).tolist()
        self.adam()
        if self.as_oracle:
            torch.sqrt(self.moments[1], out=self.scratch)  # MKL's, which rounds otherwise
        rate, correction = self.ticket.learning_rate / (1 - BETA1**t), (1 - BETA2**t) ** 0.5
        self.move(self.number(rate), self.number(correction), self.number(EPS))
        return losses

    def validate(self) -> list[float]:
        self.scores()
        return self.metric(self.sums)


class _OnAccelerator(_Lanes):
    """Lanes whose steps are torch's operations over all of them, zeros multiplied too."""

    def __init__(
        self, ticket: Ticket, theta: Tensor, mask: Tensor | None, moments: Tensor, fit: _Rows, val: _Rows
    ) -> None:
        super().__init__(ticket, theta, mask, moments, fit, val)
        self.w1, self.w2, self.b2 = _views(theta, ticket)
        self.g1, self.g2, self.gb2 = _views(self.gradient, ticket)
        self.gradient.zero_()
        self.loss, self.score = _LOSSES[ticket.task.loss.name], _SCORES[ticket.task.metric.name]
        self.metric = _METRICS[ticket.task.metric.name](val.targets)

    @staticmethod
    def rows(inputs: Tensor, targets: Tensor, few: int) -> _Rows:
        return _Rows(F.pad(inputs, (1, 0), value=1.0), targets)

    def step(self, t: int) -> list[float]:
        hidden, out = self._forward(self.fit.inputs)
        losses, pull = self.loss(out, self.fit.targets)
        self.g2.copy_(torch.bmm(pull.mT, hidden))
        # ReLU's slope: what comes back where hidden > 0, else 0
        back = torch.ops.aten.threshold_backward(torch.bmm(pull, self.w2), hidden, 0)
        self.g1.copy_(torch.bmm(self.fit.inputs.mT, back))
        self.gb2.copy_(pull.sum(1))
        self._adam(t)
        total: list[float] = losses.tolist()
        return total

    def validate(self) -> list[float]:
        return self.metric(self.score(self._forward(self.val.inputs)[1], self.val.targets).cpu().numpy())

    def _forward(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Return hidden activations (lane, row, neuron) and outputs (lane, row, output) of some rows."""
        hidden = torch.bmm(inputs, self.w1).relu_()
        return hidden, torch.bmm(hidden, self.w2.mT).add_(self.b2[:, None])

    def _adam(self, t: int) -> None:
        """Adam's step t, then the mask: θ ← m ⊙ (θ - η m̂ / (√v̂ + ε)) (Kingma & Ba 2015, algorithm 1)."""
        first, second = self.moments
        first.lerp_(self.gradient, 1 - BETA1)
        second.mul_(BETA2).addcmul_(self.gradient, self.gradient, value=1 - BETA2)
        torch.sqrt(second, out=self.scratch)
        self.scratch.div_((1 - BETA2**t) ** 0.5).add_(EPS)
        self.theta.addcdiv_(first, self.scratch, value=-self.ticket.learning_rate / (1 - BETA1**t))
        if self.mask is not None:
            self.theta.mul_(self.mask)


def _kind(device: str) -> type[_Lanes]:
    return _OnCPU if device == "cpu" else _OnAccelerator


def _views(flat: Tensor, ticket: Ticket) -> list[Tensor]:
    """Return ``w1``, ``w2`` and ``b2`` as views of the lanes' vectors (lane, parameter)."""
    inputs, neurons, outputs = (
        ticket.parameters["hidden.weight"].shape[1],
        _width(ticket),
        ticket.split.data.outputs,
    )
    shapes = ((inputs + 1, neurons), (outputs, neurons), (outputs,))
    sizes = [math.prod(shape) for shape in shapes]
    parts = torch.split(
        flat, [*sizes, flat.shape[1] - sum(sizes)], dim=1
    )  # what is left fills the last vector
    return [part.view(len(flat), *shape) for part, shape in zip(parts[:3], shapes, strict=True)]


def _flatten(ticket: Ticket, parameters: dict[str, Tensor]) -> Tensor:
    """Return full-size parameters by name as a lane's vector; neurons that only fill up the width are zero."""
    kept, outputs = _neurons(ticket), ticket.split.data.outputs
    size = (ticket.parameters["hidden.weight"].shape[1] + 1 + outputs) * _width(ticket) + width(outputs)
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


# -- losses and metrics of many lanes, on an accelerator ----------------------------------------------------------


def _cross_entropy(out: Tensor, classes: Tensor) -> tuple[Tensor, Tensor]:
    """Return -Σ log softmax(z)_y / rows per lane and its gradient (softmax(z) - onehot(y)) / rows."""
    at, rows = classes[..., None], classes.shape[1]
    logs = F.log_softmax(out, 2)
    wanted = out.zero_().scatter_(2, at, -1 / rows)
    pull: Tensor = torch.ops.aten._log_softmax_backward_data(wanted, logs, 2, logs.dtype)
    return -logs.gather(2, at).sum((1, 2)) / rows, pull


def _squared_error(out: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Return Σ (z - y)² / (rows · outputs) per lane and its gradient 2 (z - y) / (rows · outputs)."""
    error, count = out - targets, targets.shape[1] * targets.shape[2]
    return error.square().sum((1, 2)) / count, error * (2 / count)


def _right(out: Tensor, classes: Tensor) -> Tensor:
    """Return how many rows of each lane have their class as the largest output."""
    return (out.argmax(2) == classes).sum(1)


def _squares(out: Tensor, targets: Tensor) -> Tensor:
    """Return Σ (z - y)² of each lane."""
    return (out - targets).square().sum((1, 2))


def _accuracy(classes: Tensor) -> Callable[[NDArray[Any]], list[float]]:
    """Return the metric of each lane as a function of its right rows: their share, in float32 as torch's mean."""
    rows = classes.shape[1]
    return lambda right: [float(np.float32(count / rows)) for count in right]


def _r2(targets: Tensor) -> Callable[[NDArray[Any]], list[float]]:
    """Return the metric of each lane as a function of its squared errors: 1 - Σ (z - y)² / Σ (y - ȳ)²."""
    total = (targets - targets.mean((1, 2), keepdim=True)).square_().sum((1, 2)).tolist()
    return lambda squares: [
        1 - r / t if t else math.nan for r, t in zip(squares.tolist(), total, strict=True)
    ]


_LOSSES: dict[str, Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]] = {
    "cross-entropy": _cross_entropy,
    "squared-error": _squared_error,
}
_SCORES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"accuracy": _right, "R²": _squares}
_METRICS: dict[str, Callable[[Tensor], Callable[[NDArray[Any]], list[float]]]] = {
    "accuracy": _accuracy,
    "R²": _r2,
}


def check(device: str) -> None:
    """Raise NatalError unless ``device`` is one this machine has."""
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    has = ["cpu", *["cuda"][:count], *(f"cuda:{i}" for i in range(count))]
    if device not in has:
        raise NatalError(f"unknown device {device!r}; this machine has: {', '.join(has)}")
