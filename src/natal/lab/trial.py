"""What goes into training and what comes out: a `Ticket` (initial weights and mask) and a `Trained` network."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import metadata
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from natal.lab.networks import mlp
from natal.lab.tasks import Split, Task
from natal.pruning.mask import Mask
from natal.store import Outcome

MADE_WITH = (f"natal {metadata.version('natal')}", f"torch {torch.__version__}", f"numpy {np.__version__}")
"""The programs whose every version may give other bits: part of a run's key, and of its outcome's ``made_by``."""


@dataclass(frozen=True)
class Ticket:
    """A network about to be trained: initial weights, mask, data and learning rate.

    ``parameters``: initial values by name (``hidden.weight``, ``hidden.bias``, ``output.weight``, ``output.bias``),
    not yet masked. ``diagnosis``: what the mask doctor said, JSON-ready.
    """

    key: str
    task: Task
    split: Split
    parameters: Mapping[str, Tensor]
    mask: Mask
    learning_rate: float
    diagnosis: Mapping[str, Any] = field(default_factory=dict)

    def born(self) -> dict[str, Tensor]:
        """Return a copy of the initial weights under the mask, by name."""
        parameters = {name: p.clone() for name, p in self.parameters.items()}
        self.mask.apply_(parameters)
        return parameters

    def network(self, parameters: Mapping[str, Tensor] | None = None) -> nn.Sequential:
        """Return the network as a module, with its initial weights under the mask or with ``parameters``."""
        hidden, inputs = self.parameters["hidden.weight"].shape
        net = mlp(
            inputs, hidden, self.split.data.outputs, seed=0, dtype=self.parameters["hidden.weight"].dtype
        )
        net.load_state_dict(dict(parameters or self.born()))
        return net

    def rows(self) -> dict[str, tuple[Tensor, Tensor]]:
        """Return (inputs, targets) of the rows trained on (``fit``), ``val``, ``train`` (both) and ``test``."""
        data, dtype = self.split.data, self.parameters["hidden.weight"].dtype
        x, y, test_x, test_y = data.inputs, data.targets, data.test_inputs, data.test_targets
        parts = {
            "fit": (x[self.split.fit], y[self.split.fit]),
            "val": (x[self.split.val], y[self.split.val]),
            "train": (x, y),
            "test": (test_x, test_y),
        }
        return {
            name: (a.to(dtype), b.to(dtype) if b.is_floating_point() else b) for name, (a, b) in parts.items()
        }


@dataclass
class History:
    """A training as it unfolds: its curves, and which epoch was best so far.

    A strictly better validation metric is a new best. Training ends after ``patience`` epochs without one, at
    ``target``, or when the loss is no longer finite.
    """

    patience: int | None
    target: float | None
    train_loss: list[float] = field(default_factory=list)
    val_metric: list[float] = field(default_factory=list)
    best: float = -math.inf
    best_epoch: int = 0
    diverged: bool = False

    def record(self, loss: float, metric: float) -> bool:
        """Add an epoch; return whether its metric is a new best."""
        self.train_loss.append(loss)
        self.val_metric.append(metric)
        self.diverged = not math.isfinite(loss)
        better = metric > self.best and not self.diverged
        if better:
            self.best, self.best_epoch = metric, len(self.val_metric)
        return better

    @property
    def over(self) -> bool:
        """Whether training ends before the epoch budget does."""
        waited = len(self.val_metric) - self.best_epoch
        return (
            self.diverged
            or (self.patience is not None and waited >= self.patience)
            or (self.target is not None and self.val_metric[-1] >= self.target)
        )


@dataclass(frozen=True)
class Trained:
    """A trained network: its outcome for the store and its parameters (best weights, by name)."""

    outcome: Outcome
    parameters: Mapping[str, Tensor]


@torch.no_grad()
def conclude(
    ticket: Ticket, history: History, parameters: Mapping[str, Tensor], seconds: float, made_by: str
) -> Trained:
    """Measure the best weights of a training and sum it up.

    Train metric and loss are over all training rows, validation rows included. ``made_by``: engine, device.
    """
    rows = ticket.rows()
    metric: dict[str, float | None] = dict.fromkeys(("train", "val", "test"))
    loss, constant = None, False
    if not history.diverged:
        net = ticket.network(parameters)
        outputs = {part: net(rows[part][0]) for part in metric}
        metric = {part: ticket.task.metric.value(outputs[part], rows[part][1]) for part in metric}
        loss = ticket.task.loss.value(outputs["train"], rows["train"][1]).item()
        constant = _constant(outputs["test"])
    mask, biases = ticket.mask, ticket.mask.biases.values()
    total = sum(p.numel() for p in ticket.parameters.values())
    removed = mask.total - mask.kept + sum(int((~kept).sum()) for kept in biases)
    return Trained(
        Outcome(
            key=ticket.key,
            status="diverged" if history.diverged else "finished",
            total_params=total,
            nonzero_params=total - removed,
            prunable=mask.total,
            kept=mask.kept,
            densities={name.removesuffix(".weight"): d for name, d in mask.densities().items()},
            epochs_trained=len(history.val_metric),
            best_epoch=history.best_epoch,
            train_metric=metric["train"],
            val_metric=metric["val"],
            test_metric=metric["test"],
            final_loss=loss,
            constant=constant,
            seconds=seconds,
            made_by=", ".join([made_by, *MADE_WITH]),
            diagnosis=dict(ticket.diagnosis),
            deterministic=torch.are_deterministic_algorithms_enabled(),
            train_loss_curve=np.array(history.train_loss, dtype=np.float64),
            val_metric_curve=np.array(history.val_metric, dtype=np.float64),
        ),
        parameters,
    )


def _constant(outputs: Tensor) -> bool:
    """Whether every row gets the same outputs, up to the rounding of a float32 sum."""
    spread = (outputs - outputs[0]).abs().max()
    return bool(spread <= 1e-6 * (1 + outputs.abs().max()))
