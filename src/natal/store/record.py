"""What one training left behind. No torch here."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Outcome:
    """What one training left behind.

    ``status``: ``finished``, or ``diverged`` if the training loss stopped being finite (then the metrics
    are None). ``densities``: share of weights kept, per prunable layer; ``prunable`` and ``kept``: weights
    there were and are, over all of them, biases never counted. ``constant``: the trained network gives
    every test row the same output. ``train_loss_curve`` and ``val_metric_curve``: one value per epoch
    trained. ``seconds``: the training's share of wall time. ``made_by``: engine, device, and versions of natal,
    torch and NumPy, with commas between.
    ``deterministic``: whether torch's deterministic algorithms were on. ``diagnosis``: what the mask doctor
    said before training: ``effective_sparsity``, ``collapses_at`` (the sparsity at which this criterion
    first empties a layer of this network, None if it is not known), ``findings`` (pairs of severity and
    sentence, gravest first) and ``layers``, as in `natal.pruning.doctor`.
    """

    key: str
    status: str
    total_params: int
    nonzero_params: int
    prunable: int
    kept: int
    densities: dict[str, float]
    epochs_trained: int
    best_epoch: int
    train_metric: float | None
    val_metric: float | None
    test_metric: float | None
    final_loss: float | None
    constant: bool
    seconds: float
    made_by: str
    deterministic: bool
    diagnosis: dict[str, Any]
    train_loss_curve: NDArray[np.float64] = field(repr=False)
    val_metric_curve: NDArray[np.float64] = field(repr=False)

    def facts(self) -> dict[str, Any]:
        """Return the scalar fields, JSON-ready."""
        curves = ("key", "status", "train_loss_curve", "val_metric_curve")
        return {name: value for name, value in self.__dict__.items() if name not in curves}
