"""Tasks by name: what is learned, from which data, and by what it is judged.

A task is a decorated function that returns `Data`; its keyword parameters are the keys of a study file::

    @task("parity", loss="cross-entropy", metric="accuracy", learning_rate=1e-2)
    def parity(seed: int, *, bits: int = 8) -> Data: ...

A function that takes no seed has the same data for every seed, which are then loaded once.
"""

from __future__ import annotations

import functools
import inspect
import json
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from natal.determinism import defaults_given_back
from natal.errors import NatalError
from natal.lab.options import settled
from natal.lab.tasks.data import TENSORS, Data, Split, divide
from natal.registry import Registry
from natal.streams import stream
from natal.study import Task as Choice


@dataclass(frozen=True)
class Loss:
    """A training loss.

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
    """A registered task: its data, its loss, its metric, and what an untrained guess scores.

    ``data(seed, **options)``, or ``data(**options)`` for data that are the same for every seed. ``chance``: the metric
    of a network that has learned nothing; None for a guess among the outputs (1 / outputs), or the mean (R² 0).
    ``learning_rate``: Adam's, unless a study says otherwise.
    """

    name: str
    data: Callable[..., Data]
    loss: Loss
    metric: Metric
    learning_rate: float
    chance: float | None

    @property
    def seeds(self) -> int:
        """How many seeds its data take: 1, or 0 for data that are the same for every seed."""
        positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
        return int(any(p.kind in positional for p in inspect.signature(self.data).parameters.values()))


tasks: Registry[Task] = Registry("task", origin=lambda task: task.data)


def task(
    name: str, *, loss: str, metric: str, learning_rate: float, chance: float | None = None
) -> Callable[[Callable[..., Data]], Callable[..., Data]]:
    """Register the decorated data function as a task.

    ``loss``: a name in ``LOSSES``; ``metric``: a name in ``METRICS``; ``chance``: see `Task`. Raises NatalError for
    others.
    """
    for kind, given, known in (("loss", loss, LOSSES), ("metric", metric, METRICS)):
        if given not in known:
            raise NatalError(f"task {name!r}: unknown {kind} {given!r}; known: {', '.join(known)}")
    # classes or numbers: one kind of target serves both
    if (loss == "cross-entropy") != (metric == "accuracy"):
        raise NatalError(
            f"task {name!r}: metric {metric!r} does not go with loss {loss!r}; accuracy goes with "
            "cross-entropy, R² with squared-error"
        )
    if not (math.isfinite(learning_rate) and learning_rate > 0):
        raise NatalError(f"task {name!r}: learning_rate must be positive, such as 0.001, got {learning_rate}")

    def file(data: Callable[..., Data]) -> Callable[..., Data]:
        tasks.register(name)(Task(name, data, LOSSES[loss], METRICS[metric], learning_rate, chance))
        return data

    return file


def options(choice: Choice) -> dict[str, Any]:
    """Return the options of a choice that differ from their defaults; raise NatalError for one that is not allowed."""
    entry = tasks[choice.entry]
    return settled(f"task {entry.name!r}", entry.data, choice.options, context=entry.seeds)


def load(choice: Choice | str, seed: int, validation_fraction: float) -> Split:
    """Return the data of a task for a seed, with ``round(fraction * rows)`` validation rows drawn from ``split``.

    A name stands for the task with its defaults. Shared by all trainings of that task and seed in this process, which
    must not write into it, see `unspoilt`. Raises NatalError for data a network cannot be trained on.
    """
    entry = tasks[choice if isinstance(choice, str) else choice.entry]
    settings = json.dumps({} if isinstance(choice, str) else options(choice), sort_keys=True)
    split = _split(entry, settings, seed, validation_fraction)
    if spoilt(split):
        _split.cache_clear()
        _data.cache_clear()
        split = _split(entry, settings, seed, validation_fraction)
    return split


def unspoilt(task: Task, split: Split) -> None:
    """Raise NatalError if a task's data were written into since they were loaded; the next `load` has them anew."""
    if spoilt(split):
        raise NatalError(
            f"task {task.name!r}: this training wrote into the data that others share; work on a copy, inputs.clone()"
        )


def spoilt(split: Split) -> bool:
    """Whether anything was written into a split: torch counts the writes into a tensor."""
    return any(t._version for t in (*(getattr(split.data, name) for name in TENSORS), split.fit, split.val))


# by task, not name: a notebook redefines it
@functools.lru_cache(maxsize=64)
def _split(task: Task, settings: str, seed: int, validation_fraction: float) -> Split:
    name, data = task.name, _data(task, settings, seed if task.seeds else None)
    rows = len(data.inputs)
    held_out = round(validation_fraction * rows)
    if not 0 < held_out < rows:
        raise NatalError(
            f"training.validation_fraction = {validation_fraction:g} of the {rows} rows of task {name!r} is {held_out} "
            "rows; both parts need at least one"
        )
    classes = data.targets if data.stratified else None
    val, fit = divide(rows, held_out, stream(seed, "split"), classes)
    for part, y in (("validation", data.targets[val]), ("test", data.test_targets)):
        if task.metric.name == "R²" and math.isnan(r2(y, y)):
            raise NatalError(
                f"task {name!r}: its {len(y)} {part} targets are all the same, so R² is undefined; "
                "give it more rows"
            )
    guess = 1 / data.outputs if task.metric.name == "accuracy" else 0.0
    return Split(data, fit.clone(), val.clone(), guess if task.chance is None else task.chance)


@functools.lru_cache(maxsize=64)
def _data(task: Task, settings: str, seed: int | None) -> Data:
    """Return checked data that nobody else holds."""
    with torch.inference_mode(False), defaults_given_back():
        try:
            data = task.data(*([] if seed is None else [seed]), **json.loads(settings))
        except NatalError as error:
            raise NatalError(f"task {task.name!r}: {error}") from None
        _check(task, data)
        if tasks.origin(task).__module__.startswith("natal."):
            return data
        # a plugin may go on writing into what it returned
        return replace(data, **{name: getattr(data, name).clone() for name in TENSORS})


def _check(task: Task, data: Data) -> None:
    name = task.name
    if not isinstance(data, Data):
        raise NatalError(f"task {name!r} must return natal.Data, got {type(data).__name__}")
    if type(data.outputs) is not int or data.outputs < 1:
        raise NatalError(f"task {name!r}: outputs must be a whole number of at least 1, got {data.outputs!r}")
    if data.stratified and task.loss.name != "cross-entropy":
        raise NatalError(f"task {name!r}: stratified needs classes, and its loss is {task.loss.name!r}")
    for part, x, y in (
        ("training", data.inputs, data.targets),
        ("test", data.test_inputs, data.test_targets),
    ):
        if not (isinstance(x, Tensor) and isinstance(y, Tensor)):
            raise NatalError(
                f"task {name!r}: {part} inputs and targets must be torch tensors, "
                f"got {type(x).__name__} and {type(y).__name__}"
            )
        _check_inputs(name, part, x, data)
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


def _check_inputs(name: str, part: str, x: Tensor, data: Data) -> None:
    got = f"got {tuple(x.shape)} {x.dtype}"
    if data.vocabulary is None:
        if x.ndim < 2 or 0 in x.shape[1:] or x.dtype != torch.float32:
            tokens = "; tokens need a vocabulary" if x.dtype == torch.int64 else ""
            raise NatalError(f"task {name!r}: {part} inputs must be (rows, ...) float32, {got}{tokens}")
    elif x.ndim != 2 or not x.shape[1] or x.dtype != torch.int64:
        raise NatalError(f"task {name!r}: {part} inputs must be (rows, length) int64 tokens, {got}")
    elif len(x) and not 0 <= int(x.min()) <= int(x.max()) < data.vocabulary:
        raise NatalError(f"task {name!r}: {part} inputs must be tokens below vocabulary={data.vocabulary}")
    if x.shape[1:] != data.inputs.shape[1:]:
        raise NatalError(
            f"task {name!r}: test rows of shape {tuple(x.shape[1:])} but training rows of shape "
            f"{tuple(data.inputs.shape[1:])}"
        )
