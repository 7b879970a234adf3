"""What goes into a training and what comes out: a `Trial`, its `History`, and a `Trained` network.

Engines differ in how they do the arithmetic. What is measured when, which evaluation is the best, when training ends
and what is written down of it, they all have from here.
"""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from natal.lab.state import State
from natal.lab.tasks import Split, Task
from natal.pruning.cuts import Cuts
from natal.pruning.doctor import is_constant
from natal.pruning.mask import Mask
from natal.store import Outcome
from natal.streams import stream
from natal.study import Maker, Training

CHUNK = 1000
"""Rows of images or tokens that are measured at once; flat rows are measured all at once."""


@dataclass(frozen=True)
class Trial:
    """A network about to be trained: initial weights, mask, data, and how.

    ``network``: at birth, not yet masked; treat it as read-only. ``seed``: the run's, from which every stream is
    drawn. ``before``: prunable weights and all parameters of the network it stands for, where it is itself a smaller
    one (the control ``small-dense``). ``diagnosis``: what the mask doctor said, JSON-ready. ``start``: the state that
    training goes on from, at the clock ``start.step``, under ``mask``; None: from birth. ``keep``: clocks
    (``"500it"``, ``"end"`` for the last step taken) whose states are wanted. ``cuts``: those inside this training.
    ``order``: which order of the data, and which random changes of its rows; another number is another order.
    """

    key: str
    task: Task
    split: Split
    network: nn.Module
    mask: Mask
    training: Training
    learning_rate: float
    seed: int = 0
    before: tuple[int, int] | None = None
    diagnosis: Mapping[str, Any] = field(default_factory=dict)
    start: State | None = None
    keep: frozenset[str] = frozenset()
    cuts: Cuts | None = None
    order: int = 0

    def born(self) -> nn.Module:
        """Return a copy of the network with its initial weights under the mask."""
        net = copy.deepcopy(self.network)
        self.mask.apply_(dict(net.named_parameters()))
        return net

    @property
    def dtype(self) -> torch.dtype:
        """The precision it is trained in."""
        return next(self.network.parameters()).dtype

    @property
    def rows_to_fit(self) -> int:
        """Number of rows trained on."""
        return len(self.split.fit)

    def rows(self, device: str | torch.device = "cpu") -> Mapping[str, tuple[Tensor, Tensor]]:
        """Return (inputs, targets) of the rows trained on (``fit``), ``val``, ``train`` (both) and ``test``.

        In the network's precision, on a device. They belong to all trainings of the split; treat them as read-only.
        """
        return _rows(self.split, self.dtype, torch.device(device), self.layout(device))

    def layout(self, device: str | torch.device) -> torch.memory_format:
        """Return how images and kernels lie in memory: on a CPU convolutions like channels last."""
        convolves = any(p.ndim == 4 for p in self.network.parameters())
        last = convolves and torch.device(device).type == "cpu" and self.split.data.inputs.ndim == 4
        return torch.channels_last if last else torch.contiguous_format

    def stream(self, purpose: str) -> torch.Generator:
        """Return this run's generator for one purpose: ``order``, ``augment``, ``dropout``."""
        return stream(self.seed, purpose)

    def loss(self) -> Callable[[Tensor, Tensor], Tensor]:
        """Return what is minimised: the task's loss, with the study's label smoothing."""
        smoothing = self.training.label_smoothing
        return partial(F.cross_entropy, label_smoothing=smoothing) if smoothing else self.task.loss.value

    def batches(self, device: str | torch.device = "cpu") -> Iterator[Tensor | None]:
        """Yield the positions, among the rows to fit, of each step's batch; None: all of them, in their order.

        Every epoch draws a new order from the stream ``order`` and cuts it into batches; the last may be short.
        """
        rows, size = self.rows_to_fit, self.training.batch
        if size is None or size >= rows:
            while True:
                yield None
        generator = self.stream("order")
        while True:
            order = torch.randperm(rows, generator=generator, device="cpu")
            yield from torch.split(order.to(device), size)


# data are cut up and placed once for all the trainings that follow each other on them
@functools.lru_cache(maxsize=4)
def _rows(
    split: Split, dtype: torch.dtype, device: torch.device, layout: torch.memory_format
) -> Mapping[str, tuple[Tensor, Tensor]]:
    def placed(rows: Tensor, part: Tensor | None = None) -> Tensor:
        rows = rows.to(device, dtype if rows.is_floating_point() else None)
        if part is None:
            return rows
        rows = rows[part.to(device)]
        return rows.contiguous(memory_format=layout) if rows.ndim == 4 else rows

    x, y, data = split.data.inputs, split.data.targets, split.data
    return {
        "fit": (placed(x, split.fit), placed(y, split.fit)),
        "val": (placed(x, split.val), placed(y, split.val)),
        "train": (placed(x), placed(y)),
        "test": (placed(data.test_inputs), placed(data.test_targets)),
    }


class History:
    """A training as it unfolds: its curves, and which evaluation was the best so far.

    A strictly better one (`Training.decide`) is a new best. Training ends after ``patience`` evaluations without one,
    at ``target``, or when a loss, of training or validation, is no longer finite.
    """

    def __init__(self, training: Training) -> None:
        self.training = training
        names = ["step", "train_loss", "val_loss", "val_metric", *["test_metric"] * training.test_curve]
        self.curves: dict[str, list[float]] = {name: [] for name in names}
        self.best = -math.inf
        self.best_step = 0
        self.diverged = False
        self._waited = 0

    def record(
        self, step: int, train_loss: float, val_loss: float, val_metric: float, test_metric: float = math.nan
    ) -> bool:
        """Add the evaluation after ``step`` steps; return whether it is a new best."""
        values = {"step": step, "train_loss": train_loss, "val_loss": val_loss, "val_metric": val_metric}
        for name, curve in self.curves.items():
            curve.append(float(values.get(name, test_metric)))
        self.diverged = not (math.isfinite(train_loss) and math.isfinite(val_loss))
        value = {"val-metric": val_metric, "val-loss": -val_loss, "end": float(step)}[self.training.decide]
        better = value > self.best and not self.diverged
        self._waited = 0 if better else self._waited + 1
        if better:
            self.best, self.best_step = value, step
        return better

    @property
    def over(self) -> bool:
        """Whether training ends before its length does."""
        training, metric = self.training, self.curves["val_metric"][-1]
        return (
            self.diverged
            or (training.patience is not None and self._waited >= training.patience)
            or (training.target is not None and metric >= training.target)
        )


@dataclass(frozen=True)
class Trained:
    """A trained network: its outcome for the store and its state (best weights and buffers, by name).

    ``states``: those that the trial asked for, by clock; a clock that training ended before has none.
    """

    outcome: Outcome
    state: Mapping[str, Tensor]
    states: Mapping[str, State] = field(default_factory=dict)


@torch.no_grad()
def measure(net: nn.Module, inputs: Tensor) -> Tensor:
    """Return the outputs of a network in evaluation mode."""
    if inputs.ndim == 2 or len(inputs) <= CHUNK:
        out: Tensor = net(inputs)
        return out
    return torch.cat([net(part) for part in torch.split(inputs, CHUNK)])


@dataclass(frozen=True)
class Finals:
    """The best weights of a training, measured: the metric of the parts of the data, the loss on all training rows, and
    whether all test rows get the same outputs. Nothing, of a training that diverged."""

    metric: Mapping[str, float | None] = field(
        default_factory=lambda: dict.fromkeys(("train", "val", "test"))
    )
    loss: float | None = None
    constant: bool = False


def finals(trial: Trial, state: Mapping[str, Tensor]) -> Finals:
    """Measure the best weights of a training, in torch, on the device where they are."""
    device = next(iter(state.values())).device
    net = copy.deepcopy(trial.network).to(device).eval()
    net.load_state_dict(dict(state))
    rows = trial.rows(device)
    outputs = {part: measure(net, rows[part][0]) for part in ("train", "val", "test")}
    return Finals(
        {part: trial.task.metric.value(out, rows[part][1]) for part, out in outputs.items()},
        trial.task.loss.value(outputs["train"], rows["train"][1]).item(),
        is_constant(outputs["test"]),
    )


def conclude(
    trial: Trial,
    history: History,
    state: Mapping[str, Tensor],
    seconds: float,
    made_by: Maker,
    measured: Finals | None = None,
) -> Trained:
    """Sum up a training, whose best weights are measured here unless the engine has ``measured`` them itself.

    Train metric and loss are over all training rows, validation rows included.
    """
    if measured is None:
        measured = Finals() if history.diverged else finals(trial, state)
    mask, fit = trial.mask, trial.rows_to_fit
    removed = mask.total - mask.kept + sum(int((~kept).sum()) for kept in mask.biases.values())
    remaining = sum(p.numel() for p in trial.network.parameters()) - removed
    prunable, total = trial.before or (mask.total, remaining + removed)
    return Trained(
        Outcome(
            key=trial.key,
            status="diverged" if history.diverged else "finished",
            total_params=total,
            nonzero_params=remaining,
            prunable=prunable,
            kept=mask.kept,
            densities={name.removesuffix(".weight"): d for name, d in mask.densities().items()},
            steps_per_epoch=trial.training.steps_per_epoch(fit),
            steps_planned=trial.training.total_steps(fit),
            steps_trained=int(history.curves["step"][-1]),
            best_step=history.best_step,
            learning_rate=trial.learning_rate,
            train_metric=measured.metric["train"],
            val_metric=measured.metric["val"],
            test_metric=measured.metric["test"],
            final_loss=measured.loss,
            constant=measured.constant,
            seconds=seconds,
            made_by=made_by,
            diagnosis=dict(trial.diagnosis),
            deterministic=torch.are_deterministic_algorithms_enabled(),
            curves={name: np.array(curve, dtype=np.float64) for name, curve in history.curves.items()},
        ),
        {name: value.cpu().contiguous() for name, value in state.items()},
    )
