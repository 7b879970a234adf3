"""What a study found as typed rows: a `Row` a run, a `Curve` beside it. No torch here."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property, lru_cache
from typing import Any, SupportsIndex, TypeVar, overload

import numpy as np
from numpy.typing import NDArray

from natal.store import Curves, Later, NetworkFacts, Record, Table, TaskFacts, whole
from natal.study import Maker, Run, Setting, Training, steps

T_co = TypeVar("T_co", covariant=True)


@dataclass(frozen=True, slots=True)
class Row(Record):
    """One run: which it is, what its mask left, how it was trained and what came of it.

    ``sparsity`` is the requested one and ``realised_sparsity`` = 1 - kept / prunable the one its mask has, biases not
    counted; ``effective_sparsity`` counts kept weights on no path from input to output as removed, too. ``metric``:
    what ``train_metric``, ``val_metric`` and ``test_metric`` measure (``accuracy``), and ``field`` its short name
    (``acc``); a metric that is not a finite number is None. ``epochs_trained`` and ``best_epoch`` are steps by the
    epoch; ``steps_planned``: of the whole training; ``evaluations``: how many were made, ``waited``: how many of them
    after the best. ``diagnosis``: all that the mask doctor said before training (see `natal.store.Outcome`), empty for
    a dense run; ``severity`` is its gravest finding's: fatal, warning, note or None. ``proofs``: what was checked while
    it trained, see `natal.store.Outcome`; of a training that could not begin, ``never_begun`` says why.
    """

    task: str
    strategy: str
    sparsity: float
    seed: int
    network: str
    status: str
    total_params: int
    nonzero_params: int
    prunable: int
    kept: int
    realised_sparsity: float
    densities: Mapping[str, float] = dataclasses.field(repr=False)
    metric: str
    field: str
    train_metric: float | None
    val_metric: float | None
    test_metric: float | None
    train_loss: float | None
    learning_rate: float | None
    epochs_trained: float
    best_epoch: float
    steps_trained: int
    best_step: int
    steps_planned: int
    steps_per_epoch: int
    evaluations: int
    waited: int
    constant: bool
    effective_sparsity: float | None
    collapses_at: float | None
    severity: str | None
    diagnosis: Mapping[str, Any] = dataclasses.field(repr=False)
    deterministic: bool
    seconds: float
    made_by: str
    key: str
    proofs: Mapping[str, Any] = dataclasses.field(default_factory=dict, repr=False)

    @property
    def run(self) -> Run:
        """Which row of the study's grid it is."""
        return Run(self.task, self.strategy, self.sparsity, self.seed, self.network)

    @property
    def setting(self) -> Setting:
        """Its task with its network."""
        return _setting(self.task, self.network)

    @property
    def begun(self) -> bool:
        """Whether there was anything to train: what it was to start from may have diverged."""
        return "never_begun" not in self.proofs

    @property
    def ended_early(self) -> bool:
        """Whether training ended before its planned length."""
        return self.steps_trained < self.steps_planned

    def flat(self) -> dict[str, Any]:
        """Return the row as plain columns: without the diagnosis, each layer's density as ``density_LAYER``."""
        apart = ("densities", "diagnosis", "proofs")
        names = (field.name for field in dataclasses.fields(self))
        columns = {name: self[name] for name in names if name not in apart}
        return columns | {f"density_{layer}": density for layer, density in self.densities.items()}


@dataclass(frozen=True)
class Curve(Record):
    """One run's training, a number an evaluation.

    ``step``: optimiser steps taken by then, ``epoch`` the same in epochs; ``train_loss``: mean over the steps since
    the evaluation before. ``val_loss`` is empty in trainings that natal 0.2 stored, and ``test_metric`` unless the
    study measures it.
    """

    task: str
    strategy: str
    sparsity: float
    seed: int
    network: str
    step: NDArray[np.float64]
    epoch: NDArray[np.float64]
    train_loss: NDArray[np.float64]
    val_loss: NDArray[np.float64]
    val_metric: NDArray[np.float64]
    test_metric: NDArray[np.float64]

    def deciding(self, decide: str) -> NDArray[np.float64]:
        """Return what decides which evaluation is the best, higher is better; see `natal.study.Training`."""
        return {"val-metric": self.val_metric, "val-loss": -self.val_loss, "end": self.step}[decide]


@dataclass(frozen=True)
class Attempt:
    """A training at one of the learning rates that a run chooses from; ``value``: what decides, higher is better."""

    row: Row
    value: float


class Runs(tuple[Row, ...]):
    """Rows that remember their cells: the rows that differ in seed alone."""

    @cached_property
    def memory(self) -> dict[Any, Any]:
        """What functions have found out about these rows, so that none computes it twice."""
        return {}

    @cached_property
    def settings(self) -> Mapping[Setting, Runs]:
        """The rows of each setting, in the order they first appear."""
        found: dict[Setting, list[Row]] = {}
        for row in self:
            found.setdefault(row.setting, []).append(row)
        return (
            {setting: Runs(rows) for setting, rows in found.items()}
            if len(found) > 1
            else dict.fromkeys(found, self)
        )

    @cached_property
    def cells(self) -> Mapping[Where, Runs]:
        """The rows of each setting, strategy and sparsity, in the order they first appear."""
        found: dict[Where, list[Row]] = {}
        for row in self:
            found.setdefault((row.setting, row.strategy, row.sparsity), []).append(row)
        return {where: Runs(rows) for where, rows in found.items()}


Where = tuple[Setting, str, float]
"""A cell's setting, strategy and sparsity."""


@cache
def _setting(task: str, network: str) -> Setting:
    return Setting(task, network)


def columns(
    runs: Sequence[Run],
    table: Table,
    at: NDArray[np.int64],
    tasks: Mapping[str, TaskFacts],
    networks: Mapping[Setting, NetworkFacts],
    training: Training,
    makers: Mapping[int, Maker],
) -> dict[str, Any]:
    """Return the fields of rows but diagnosis and proofs, an array or a list each: run i shows the training ``at[i]``.

    ``table``: as `natal.store.Store.table` has it. Numbers that a row may lack are NaN here.
    """
    of = {name: values[at] for name, values in table.items()}
    settings = {setting: i for i, setting in enumerate(networks)}
    which = np.fromiter((settings[run.task, run.network] for run in runs), np.int64, len(runs))  # type: ignore[index]
    facts = list(networks.values())
    planned = np.where(
        of["steps_planned"] > 0, of["steps_planned"], np.array([f.steps for f in facts])[which]
    )
    per_epoch = of["steps_per_epoch"]
    lengths = {
        pair: steps(training.evaluate, *pair)
        for pair in set(zip(per_epoch.tolist(), planned.tolist(), strict=True))
    }
    every = np.array(
        [lengths[pair] for pair in zip(per_epoch.tolist(), planned.tolist(), strict=True)], np.int64
    )
    evaluations, at_best = (-(-of[name] // every) for name in ("steps_trained", "best_step"))
    rates = np.array([tasks[f.task].learning_rate for f in facts], np.float64)[which]
    said = {number: str(maker) for number, maker in makers.items()}
    task, strategy, sparsity, seed, network = zip(*runs, strict=True) if runs else ([],) * 5
    metrics = {
        name: np.where(np.isfinite(of[name]), of[name], np.nan)
        for name in ("train_metric", "val_metric", "test_metric", "final_loss")
    }
    metric, field = ([getattr(tasks[f.task], name) for f in facts] for name in ("metric", "field"))
    return {
        "task": task,
        "strategy": strategy,
        "sparsity": sparsity,
        "seed": seed,
        "network": network,
        "status": of["status"],
        **{name: of[name] for name in ("total_params", "nonzero_params", "prunable", "kept")},
        "realised_sparsity": 1 - of["kept"] / of["prunable"],
        "densities": of["densities"],
        "metric": [metric[i] for i in which],
        "field": [field[i] for i in which],
        "train_metric": metrics["train_metric"],
        "val_metric": metrics["val_metric"],
        "test_metric": metrics["test_metric"],
        "train_loss": metrics["final_loss"],
        "learning_rate": np.where(np.isnan(of["learning_rate"]), rates, of["learning_rate"]),
        "epochs_trained": of["steps_trained"] / per_epoch,
        "best_epoch": of["best_step"] / per_epoch,
        "steps_trained": of["steps_trained"],
        "best_step": of["best_step"],
        "steps_planned": planned,
        "steps_per_epoch": per_epoch,
        "evaluations": evaluations - of["first_step"] // every,
        "waited": evaluations - at_best,
        "constant": of["constant"] != 0,
        "effective_sparsity": of["effective_sparsity"],
        "collapses_at": of["collapses_at"],
        "severity": of["severity"],
        "deterministic": of["deterministic"] != 0,
        "seconds": of["seconds"],
        "made_by": [said[number] for number in of["maker"].tolist()],
        "key": of["key"],
    }


_PERHAPS = (
    "train_metric",
    "val_metric",
    "test_metric",
    "train_loss",
    "learning_rate",
    "effective_sparsity",
    "collapses_at",
)


_Read = Callable[[int], Mapping[str, Any]]


def rows(found: Mapping[str, Any], diagnoses: _Read, proofs: _Read) -> Runs:
    """Return rows from their `columns`; the others return the diagnosis and the proofs of the row of this number."""
    lists = {
        name: values.tolist() if isinstance(values, np.ndarray) else values for name, values in found.items()
    }
    for name in _PERHAPS:
        lists[name] = [None if value != value else value for value in lists[name]]
    for name in ("epochs_trained", "best_epoch"):
        lists[name] = [whole(value) for value in lists[name]]
    count = len(lists["key"])
    lists["densities"] = [Later(_densities, text) for text in lists["densities"]]
    lists["diagnosis"] = [Later(diagnoses, i) for i in range(count)]
    lists["proofs"] = [Later(proofs, i) for i in range(count)]
    return Runs(map(Row, *(lists[field.name] for field in dataclasses.fields(Row))))


@lru_cache(1000)
def _densities(text: str) -> dict[str, float]:
    return dict(json.loads(text))


class InParts(Sequence[T_co]):
    """A sequence of which a part at a time is read and kept.

    ``read``: returns the things of a range of places.
    """

    def __init__(self, count: int, read: Callable[[range], Sequence[T_co]], size: int = 500) -> None:
        self._count, self._read, self._size = count, read, size
        self._part: tuple[int, Sequence[T_co]] = (-1, ())

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, place: SupportsIndex) -> T_co: ...
    @overload
    def __getitem__(self, place: slice) -> Sequence[T_co]: ...
    def __getitem__(self, place: SupportsIndex | slice) -> T_co | Sequence[T_co]:
        places = range(self._count)[place]
        if isinstance(places, range):
            return [self[i] for i in places]
        number, within = divmod(places, self._size)
        if self._part[0] != number:
            first = number * self._size
            self._part = number, self._read(range(first, min(first + self._size, self._count)))
        return self._part[1][within]


def curve(row: Row, curves: Curves) -> Curve:
    """Return a row's curves as the store has them."""
    step = curves.get("step", _NOTHING)
    return Curve(
        *row.run,
        step=step,
        epoch=step / row.steps_per_epoch,
        train_loss=curves.get("train_loss", _NOTHING),
        val_loss=curves.get("val_loss", _NOTHING),
        val_metric=curves.get("val_metric", _NOTHING),
        test_metric=curves.get("test_metric", _NOTHING),
    )


_NOTHING = np.empty(0)
