"""What is learned: a task owns its data, its loss and its metric.

A task is a function from a seed to `Data`, decorated with what it is judged by::

    @task("parity", loss="cross-entropy", metric="accuracy", learning_rate=1e-2, chance=0.5)
    def parity(seed: int) -> Data: ...
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from natal.errors import NatalError
from natal.registry import Registry
from natal.streams import stream
from natal.study import Task as TaskChoice


@dataclass(frozen=True)
class Data:
    """Rows to learn from and rows to be judged on.

    ``inputs``: (rows, features) float32. ``targets``: (rows,) int64 classes for cross-entropy, (rows, outputs)
    float32 for squared error. ``outputs``: width of the network's last layer.
    """

    inputs: Tensor
    targets: Tensor
    test_inputs: Tensor
    test_targets: Tensor
    outputs: int


@dataclass(frozen=True)
class Loss:
    """A training loss and its closed-form gradient.

    ``value(outputs, targets)``: the mean over rows, a scalar tensor.
    """

    name: str
    value: Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Metric:
    """How good a network is; higher is better.

    ``of(outputs, targets)``: a scalar float64 tensor, which `value` makes a Python float. ``field``: its name in run
    objects (``test_acc``).
    """

    name: str
    field: str
    of: Callable[[Tensor, Tensor], Tensor]

    def value(self, outputs: Tensor, targets: Tensor) -> float:
        """Return the metric of some outputs."""
        return self.of(outputs, targets).item()


def accuracy(outputs: Tensor, targets: Tensor) -> Tensor:
    """Share of rows whose largest output is the target class, computed in float32 as the published program did."""
    return (outputs.argmax(1) == targets).float().mean().double()


def r2(outputs: Tensor, targets: Tensor) -> Tensor:
    """R² = 1 - SS_res / SS_tot: 1 is perfect, 0 is the mean of ``targets``, negative is worse than that mean."""
    residual = ((targets - outputs) ** 2).sum().double()
    total = ((targets - targets.mean()) ** 2).sum().double()
    return torch.where(total == 0, math.nan, 1 - residual / total)


LOSSES = {
    loss.name: loss for loss in (Loss("cross-entropy", F.cross_entropy), Loss("squared-error", F.mse_loss))
}
METRICS = {metric.name: metric for metric in (Metric("accuracy", "acc", accuracy), Metric("R²", "r2", r2))}


@dataclass(frozen=True)
class Task:
    """A registered task: its data by seed, its loss, its metric, and what an untrained guess scores.

    ``chance``: the metric of a network that has learned nothing. ``learning_rate``: Adam's, unless a study says
    otherwise.
    """

    name: str
    data: Callable[[int], Data]
    loss: Loss
    metric: Metric
    learning_rate: float
    chance: float


tasks: Registry[Task] = Registry("task", origin=lambda task: task.data)


def task(
    name: str, *, loss: str, metric: str, learning_rate: float, chance: float
) -> Callable[[Callable[[int], Data]], Callable[[int], Data]]:
    """Register the decorated data function as a task.

    ``loss``: a name in ``LOSSES``; ``metric``: a name in ``METRICS``. Raises NatalError for others.
    """
    for kind, given, known in (("loss", loss, LOSSES), ("metric", metric, METRICS)):
        if given not in known:
            raise NatalError(f"task {name!r}: unknown {kind} {given!r}; known: {', '.join(known)}")
    if (loss == "cross-entropy") != (
        metric == "accuracy"
    ):  # classes or numbers: one kind of target serves both
        raise NatalError(
            f"task {name!r}: metric {metric!r} does not go with loss {loss!r}; accuracy goes with "
            "cross-entropy, R² with squared-error"
        )
    if not (math.isfinite(learning_rate) and learning_rate > 0):
        raise NatalError(f"task {name!r}: learning_rate must be positive, such as 0.001, got {learning_rate}")

    def file(data: Callable[[int], Data]) -> Callable[[int], Data]:
        tasks.register(name)(Task(name, data, LOSSES[loss], METRICS[metric], learning_rate, chance))
        return data

    return file


MODULUS = 97
REGRESSION_ROWS, REGRESSION_FEATURES = 200, 20


@task("modular", loss="cross-entropy", metric="accuracy", learning_rate=1e-2, chance=1 / MODULUS)
def modular(seed: int) -> Data:
    """Predict (a + b) mod 97 from one-hot(a) then one-hot(b), over all 9,409 pairs; 80 % train."""
    n = MODULUS
    a, b = np.repeat(np.arange(n), n), np.tile(np.arange(n), n)
    inputs = np.zeros((n * n, 2 * n), dtype=np.float32)
    inputs[np.arange(n * n), a] = 1
    inputs[np.arange(n * n), n + b] = 1
    order = np.random.RandomState(seed).permutation(n * n)
    x, y = torch.from_numpy(inputs[order]), torch.from_numpy(((a + b) % n)[order])
    train = int(0.8 * n * n)
    return Data(x[:train], y[:train], x[train:], y[train:], outputs=n)


@task("regression", loss="squared-error", metric="R²", learning_rate=1e-3, chance=0.0)
def regression(seed: int) -> Data:
    """Predict y = X w + noise for 200 rows of 20 normal features; 160 train."""
    rng = np.random.RandomState(seed)
    w = rng.randn(REGRESSION_FEATURES).astype(np.float32)
    x = rng.randn(REGRESSION_ROWS, REGRESSION_FEATURES).astype(np.float32)
    # float32 before the factor, not after: the published program's rounding
    noise = np.float32(0.1) * rng.randn(REGRESSION_ROWS).astype(np.float32)
    inputs, targets = torch.from_numpy(x), torch.from_numpy(x @ w + noise)[:, None]
    return Data(inputs[:160], targets[:160], inputs[160:], targets[160:], outputs=1)


@dataclass(frozen=True)
class Split:
    """A task's data with its training rows divided: ``fit`` rows are trained on, ``val`` rows choose the best epoch."""

    data: Data
    fit: Tensor
    val: Tensor
    augment: Callable[[Tensor, torch.Generator], Tensor] | None = None


def load(choice: TaskChoice, seed: int, validation_fraction: float) -> Split:
    """Return the data of a task for a seed, with ``round(fraction * rows)`` validation rows drawn from ``split``.

    Shared by all trainings of that task and seed in this process; treat it as read-only. Raises NatalError for data
    a network cannot be trained on.
    """
    return _load(tasks[choice.entry], seed, validation_fraction)


@functools.lru_cache(maxsize=64)
def _load(
    task: Task, seed: int, validation_fraction: float
) -> Split:  # by task, not name: a notebook redefines it
    name, data = task.name, task.data(seed)
    _check(task, data)
    rows = len(data.inputs)
    held_out = round(validation_fraction * rows)
    if not 0 < held_out < rows:
        raise NatalError(
            f"validation_fraction {validation_fraction} of task {name!r}'s {rows} rows is {held_out} rows; "
            "both parts need at least one"
        )
    order = torch.randperm(rows, generator=stream(seed, "split"))
    split = Split(data, fit=order[held_out:], val=order[:held_out])
    for part, y in (("validation", data.targets[split.val]), ("test", data.test_targets)):
        if task.metric.name == "R²" and math.isnan(r2(y, y)):
            raise NatalError(
                f"task {name!r}: its {len(y)} {part} targets are all the same, so R² is undefined; "
                "give it more rows"
            )
    return split


def _check(task: Task, data: Data) -> None:
    name = task.name
    if not isinstance(data, Data):
        raise NatalError(f"task {name!r} must return natal.Data, got {type(data).__name__}")
    if type(data.outputs) is not int or data.outputs < 1:
        raise NatalError(f"task {name!r}: outputs must be a whole number of at least 1, got {data.outputs!r}")
    for part, x, y in (
        ("training", data.inputs, data.targets),
        ("test", data.test_inputs, data.test_targets),
    ):
        if not (isinstance(x, Tensor) and isinstance(y, Tensor)):
            raise NatalError(
                f"task {name!r}: {part} inputs and targets must be torch tensors, "
                f"got {type(x).__name__} and {type(y).__name__}"
            )
        if x.ndim != 2 or not x.shape[1] or x.dtype != torch.float32:
            raise NatalError(
                f"task {name!r}: {part} inputs must be (rows, features) float32, got {tuple(x.shape)} {x.dtype}"
            )
        if x.shape[1] != data.inputs.shape[1]:
            raise NatalError(
                f"task {name!r}: {x.shape[1]} test features but {data.inputs.shape[1]} training features"
            )
        if y.ndim == 0 or len(x) != len(y) or not len(x):
            raise NatalError(
                f"task {name!r}: {part} inputs {tuple(x.shape)} and targets {tuple(y.shape)} must have as many "
                "rows, at least one"
            )
        if not x.isfinite().all() or (y.is_floating_point() and not y.isfinite().all()):
            raise NatalError(f"task {name!r}: {part} data hold NaN or infinity")
        if task.loss.name == "cross-entropy":
            if y.dtype != torch.int64 or y.ndim != 1 or not 0 <= int(y.min()) <= int(y.max()) < data.outputs:
                raise NatalError(
                    f"task {name!r}: {part} targets must be int64 classes below outputs={data.outputs}"
                )
        elif y.dtype != torch.float32 or y.shape != (len(x), data.outputs):
            raise NatalError(
                f"task {name!r}: {part} targets must be (rows, {data.outputs}) float32, "
                f"got {tuple(y.shape)} {y.dtype}"
            )
