"""Many networks at once, with a hand-written backward pass: the fast path.

Networks of one task and one width become *lanes* of stacked arrays (lane, row, neuron). Three facts make it fast,
none of which changes what is computed:

- a neuron with no outgoing weight left, whether removed whole or not, is left out: its own weights never get a
  gradient; the arrays are only as wide as the others (rounded up to 16);
- a one-hot input is never multiplied: the first layer is a sum of the weight rows its ones select;
- a step is compiled (`natal.lab.engines.kernels`) and works through a few rows at a time, which stay in
  the cache.

A lane's bits depend on nothing but itself: a network trained alone equals itself among 500. One-hot
classification is moreover *the oracle's arithmetic*: sums run in the order in which the sequential engine's do on the
CPU it was recorded on, so the results are the same to the last bit there. Elsewhere, and for dense inputs, only the
order of summation differs.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from natal.determinism import deterministic, one_thread
from natal.lab.engines import kernels
from natal.lab.engines.engine import Pending, Setting
from natal.lab.engines.made import made_by
from natal.lab.trial import History, Trained, Trial, conclude
from natal.study import Maker, Training

LANE_FLOATS = (
    2**19
)  # hidden activations and outputs of all lanes together: work enough a step, jobs enough a study
BETA1, BETA2, EPS = 0.9, 0.999, 1e-8  # torch.optim.Adam's defaults


class Compiled:
    """The engine ``compiled``; see the module."""

    name = "compiled"
    revision = 1
    devices = ("cpu",)

    def refuses(self, setting: Setting) -> str:
        """Return why it cannot train in a setting: it knows one hidden layer of ReLU and full-batch Adam."""
        if not _is_paper_network(setting.network):
            return "it takes networks of one hidden layer of ReLU"
        training, own = setting.training, Training()
        for key in (
            "optimiser",
            "schedule",
            "batch",
            "evaluate",
            "decide",
            "label_smoothing",
            "clip",
            "test_curve",
        ):
            if getattr(training, key) != getattr(own, key):
                return f"it does not take training.{key}"
        return "" if training.length.endswith("ep") else "it takes lengths in epochs"

    def cost(self, pending: Pending, setting: Setting) -> float:
        """Return about how many operations a training takes: those of the neurons that have an outgoing weight."""
        return setting.flops(_neurons_left(pending, setting) / _hidden(setting))

    def jobs(self, pending: Sequence[Pending], setting: Setting, device: str) -> list[list[Pending]]:
        """Return the trainings of one width together, as many as share arrays."""
        jobs: list[list[Pending]] = []
        open_jobs: dict[int, list[Pending]] = {}
        for training in pending:
            neurons = width(_neurons_left(training, setting))
            job = open_jobs.get(neurons)
            if job is None or len(job) == lanes_at_once(
                len(setting.split.fit), neurons, setting.split.data.outputs
            ):
                job = open_jobs[neurons] = []
                jobs.append(job)
            job.append(training)
        return jobs

    def prepare(self, device: str) -> None:
        """Load the kernels."""
        kernels.load()

    def train(self, trials: Sequence[Trial], device: str) -> Iterator[Trained]:
        """Train all trials and yield them in order.

        Trials may differ in anything: those of one task, width and precision share arrays, a few at a time
        (`lanes_at_once`). The result of one does not depend on the others, to the last bit.
        """
        groups: dict[Any, list[int]] = {}
        for i, trial in enumerate(trials):
            weight = trial.network.get_parameter("hidden.weight")
            data, split = trial.split.data, trial.split
            shape = (
                weight.shape,
                weight.dtype,
                len(split.fit),
                len(split.val),
                data.outputs,
                _ones_a_row(data.inputs),
            )
            groups.setdefault((trial.task.name, _width(trial), trial.learning_rate, shape), []).append(i)
        trained: dict[int, Trained] = {}
        with one_thread(), deterministic(device), torch.no_grad():
            for members in groups.values():
                first = trials[members[0]]
                size = lanes_at_once(len(first.split.fit), _width(first), first.split.data.outputs)
                for start in range(0, len(members), size):
                    part = members[start : start + size]
                    lanes = _train_lanes([trials[i] for i in part], made_by(self, device))
                    trained.update(zip(part, lanes, strict=True))
        yield from (trained[i] for i in range(len(trials)))


def _is_paper_network(net: nn.Module) -> bool:
    layers = list(net.named_children())
    kinds = [type(layer) for _, layer in layers]
    return kinds == [nn.Linear, nn.ReLU, nn.Linear] and [n for n, _ in layers] == ["hidden", "relu", "output"]


def _hidden(setting: Setting) -> int:
    return len(setting.network.get_parameter("hidden.weight"))


def _neurons_left(pending: Pending, setting: Setting) -> int:
    """Return how many hidden neurons are trained: those with an outgoing weight, about so many if weights go."""
    of_neurons, sparsity = pending.recipe.granularity == "neuron", pending.run.sparsity
    share = sparsity if of_neurons else sparsity**setting.split.data.outputs
    return max(1, _hidden(setting) - int(share * _hidden(setting)))


def width(kept: int) -> int:
    """Return how many neurons a lane holds for ``kept`` of them: rounded up to whole vectors."""
    return max(1, math.ceil(kept / kernels.LANES)) * kernels.LANES


def lanes_at_once(rows: int, neurons: int, outputs: int) -> int:
    """Return how many networks of that shape train together on CPU, and so make a worker's job (at least 1)."""
    return max(1, LANE_FLOATS // (rows * (neurons + outputs)))


def _neurons(trial: Trial) -> Tensor:
    """Return the indices of the neurons to compute: those with an outgoing weight."""
    return trial.mask.weights["output.weight"].any(0).nonzero().flatten()


def _width(trial: Trial) -> int:
    return width(len(_neurons(trial)))


# -- one group of lanes ------------------------------------------------------------------------------------------


def _train_lanes(trials: Sequence[Trial], maker: Maker) -> list[Trained]:
    started = time.perf_counter()
    training = trials[0].training
    lanes = _OnCPU.of(trials, "cpu")
    histories = [History(training) for _ in trials]
    best = lanes.theta.clone()
    alive = list(range(len(trials)))  # the trial of each lane still training
    for step in range(1, training.total_steps(len(trials[0].split.fit)) + 1):
        losses, metrics = lanes.step(step), lanes.validate()
        measured = zip(alive, losses, metrics, strict=True)
        better = [histories[i].record(step, loss, math.nan, metric) for i, loss, metric in measured]
        if any(better):
            best[[i for i, is_better in zip(alive, better, strict=True) if is_better]] = lanes.theta[better]
        going = [lane for lane, i in enumerate(alive) if not histories[i].over]
        if not going:
            break
        if len(going) < len(alive):
            alive = [alive[lane] for lane in going]
            lanes = lanes.only(going)
    seconds = (time.perf_counter() - started) / len(trials)
    return [
        conclude(trial, history, _parameters(trial, theta), seconds, maker)
        for trial, history, theta in zip(trials, histories, best.cpu(), strict=True)
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
        self, trial: Trial, theta: Tensor, mask: Tensor | None, moments: Tensor, fit: _Rows, val: _Rows
    ) -> None:
        self.trial, self.theta, self.mask, self.moments = trial, theta, mask, moments
        self.fit, self.val = fit, val
        self.gradient, self.scratch = torch.empty_like(theta), torch.empty_like(theta)

    @classmethod
    def of(cls, trials: Sequence[Trial], device: str) -> Self:
        """Return newborn lanes for trials of one task, width and learning rate."""
        theta = torch.stack([_flatten(t, _parameters_of(t.born())) for t in trials])
        mask: Tensor | None = None
        if any(t.mask.kept < t.mask.total for t in trials):
            kept = [
                {name: torch.ones_like(p) for name, p in _parameters_of(t.network).items()} for t in trials
            ]
            for t, keep in zip(trials, kept, strict=True):
                t.mask.apply_(keep)
            mask = torch.stack([_flatten(t, keep) for t, keep in zip(trials, kept, strict=True)]).to(device)
        few, rows = _ones_a_row(trials[0].split.data.inputs), [t.rows() for t in trials]
        fit, val = (
            cls.rows(
                torch.stack([r[part][0] for r in rows]).to(device),
                torch.stack([r[part][1] for r in rows]).to(device),
                few,
            )
            for part in ("fit", "val")
        )
        moments = torch.zeros(2, *theta.shape, dtype=theta.dtype, device=device)
        return cls(trials[0], theta.to(device), mask, moments, fit, val)

    def only(self, lanes: list[int]) -> Self:
        """Return the same training with fewer lanes."""
        mask = None if self.mask is None else self.mask[lanes]
        fit, val = self.fit.only(lanes), self.val.only(lanes)
        return type(self)(self.trial, self.theta[lanes], mask, self.moments[:, lanes], fit, val)

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
        self, trial: Trial, theta: Tensor, mask: Tensor | None, moments: Tensor, fit: _Rows, val: _Rows
    ) -> None:
        super().__init__(trial, theta, mask, moments, fit, val)
        inputs, outputs, rows = (
            trial.split.data.inputs.shape[1],
            trial.split.data.outputs,
            fit.inputs.shape[1],
        )
        shape = kernels.Shape(inputs, _width(trial), outputs)
        number = theta.numpy().dtype.type
        room = kernels.room(shape, rows, number)
        self.sums = np.zeros(len(theta))
        of_lanes = (theta.numpy(), self.gradient.numpy(), shape, fit.inputs.numpy(), fit.targets.numpy())
        classes = trial.task.loss.name == "cross-entropy"
        self.averaged = rows if classes else rows * outputs
        scale = number(1 / rows if classes else 2 / self.averaged)
        self.gradients = partial(kernels.gradients, *of_lanes, scale, room, self.sums)
        self.scores = partial(
            kernels.scores, theta.numpy(), shape, val.inputs.numpy(), val.targets.numpy(), room, self.sums
        )
        self.metric = _METRICS[trial.task.metric.name](val.targets)
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
        rate, correction = self.trial.learning_rate / (1 - BETA1**t), (1 - BETA2**t) ** 0.5
        self.move(self.number(rate), self.number(correction), self.number(EPS))
        return losses

    def validate(self) -> list[float]:
        self.scores()
        return self.metric(self.sums)


def _views(flat: Tensor, trial: Trial) -> list[Tensor]:
    """Return ``w1``, ``w2`` and ``b2`` as views of the lanes' vectors (lane, parameter)."""
    inputs, neurons, outputs = (
        trial.network.get_parameter("hidden.weight").shape[1],
        _width(trial),
        trial.split.data.outputs,
    )
    shapes = ((inputs + 1, neurons), (outputs, neurons), (outputs,))
    sizes = [math.prod(shape) for shape in shapes]
    parts = torch.split(
        flat, [*sizes, flat.shape[1] - sum(sizes)], dim=1
    )  # what is left fills the last vector
    return [part.view(len(flat), *shape) for part, shape in zip(parts[:3], shapes, strict=True)]


def _flatten(trial: Trial, parameters: dict[str, Tensor]) -> Tensor:
    """Return full-size parameters by name as a lane's vector; neurons that only fill up the width are zero."""
    kept, outputs = _neurons(trial), trial.split.data.outputs
    size = (trial.network.get_parameter("hidden.weight").shape[1] + 1 + outputs) * _width(trial) + width(
        outputs
    )
    flat = torch.zeros(1, size, dtype=parameters["hidden.weight"].dtype)
    w1, w2, b2 = (view[0] for view in _views(flat, trial))
    w1[0, : len(kept)] = parameters["hidden.bias"][kept]
    w1[1:, : len(kept)] = parameters["hidden.weight"][kept].T
    w2[:, : len(kept)] = parameters["output.weight"][:, kept]
    b2.copy_(parameters["output.bias"])
    return flat[0]


def _parameters(trial: Trial, flat: Tensor) -> dict[str, Tensor]:
    """Return a lane's vector as full-size parameters by name; neurons left out are as they were born."""
    w1, w2, b2 = (view[0] for view in _views(flat[None], trial))
    kept = _neurons(trial)
    full = _parameters_of(trial.born())
    full["hidden.bias"][kept] = w1[0, : len(kept)]
    full["hidden.weight"][kept] = w1[1:, : len(kept)].T
    full["output.weight"][:, kept] = w2[:, : len(kept)]
    full["output.bias"].copy_(b2)
    return full


def _parameters_of(net: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach() for name, p in net.named_parameters()}


def _ones_a_row(inputs: Tensor) -> int:
    """Return how many ones every row has if all are as few ones among zeros, as in one-hot groups, else 0.

    ``inputs``: (row, input), all training rows of a trial, so that the answer is its own affair.
    """
    is_one = inputs == 1
    few = int(is_one[0].sum())
    alike = (
        few <= inputs.shape[1] // 8
        and bool((is_one.sum(1) == few).all())
        and bool((is_one | (inputs == 0)).all())
    )
    return few if alike else 0


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


_METRICS: dict[str, Callable[[Tensor], Callable[[NDArray[Any]], list[float]]]] = {
    "accuracy": _accuracy,
    "R²": _r2,
}
