"""What a study found as typed rows: a `Row` a run, a `Curve` beside it. No torch here."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from natal.store import Curves, NetworkFacts, Outcome, Record, TaskFacts
from natal.study import Run, Setting, Training, steps


@dataclass(frozen=True)
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

    @cached_property
    def setting(self) -> Setting:
        """Its task with its network."""
        return Setting(self.task, self.network)

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


def row(run: Run, outcome: Outcome, task: TaskFacts, network: NetworkFacts, training: Training) -> Row:
    """Return one run of a study that trains in such a way, ``network`` on ``task``, as a row."""
    planned = outcome.steps_planned or network.steps
    every = steps(training.evaluate, outcome.steps_per_epoch, planned)
    evaluations, at_best = (math.ceil(n / every) for n in (outcome.steps_trained, outcome.best_step))
    first = outcome.proofs.get("restarted", {}).get("step", 0)
    diagnosis = outcome.diagnosis
    return Row(
        *run,
        status=outcome.status,
        total_params=outcome.total_params,
        nonzero_params=outcome.nonzero_params,
        prunable=outcome.prunable,
        kept=outcome.kept,
        realised_sparsity=1 - outcome.kept / outcome.prunable,
        densities=dict(outcome.densities),
        metric=task.metric,
        field=task.field,
        train_metric=_finite(outcome.train_metric),
        val_metric=_finite(outcome.val_metric),
        test_metric=_finite(outcome.test_metric),
        train_loss=_finite(outcome.final_loss),
        learning_rate=task.learning_rate if outcome.learning_rate is None else outcome.learning_rate,
        epochs_trained=outcome.epochs_trained,
        best_epoch=outcome.best_epoch,
        steps_trained=outcome.steps_trained,
        best_step=outcome.best_step,
        steps_planned=planned,
        steps_per_epoch=outcome.steps_per_epoch,
        evaluations=evaluations - first // every,
        waited=evaluations - at_best,
        constant=outcome.constant,
        effective_sparsity=diagnosis.get("effective_sparsity"),
        collapses_at=diagnosis.get("collapses_at"),
        severity=next((severity for severity, _ in diagnosis.get("findings", ())), None),
        diagnosis=dict(diagnosis),
        deterministic=outcome.deterministic,
        seconds=outcome.seconds,
        made_by=str(outcome.made_by),
        key=outcome.key,
        proofs=dict(outcome.proofs),
    )


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


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
