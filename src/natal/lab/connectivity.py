"""What a network measures on the straight line between two trainings' last weights."""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from natal.determinism import deterministic, one_thread
from natal.lab.state import State
from natal.lab.trial import Trial, measure


def along(trial: Trial, first: State, last: State, points: int) -> dict[str, list[float]]:
    """Return loss and metric of the test rows at (1 - a) W + a W', a from 0 to 1 in ``points`` (Frankle et al. 2020).

    Parameters and buffers alike lie between the two; whole numbers, such as a count of batches, are the first's.
    """
    net = copy.deepcopy(trial.network).eval()
    inputs, targets = trial.rows()["test"]
    losses, metrics = [], []
    with one_thread(), deterministic():
        for number in range(points):
            share = number / (points - 1)
            net.load_state_dict({n: _between(t, last.tensors[n], share) for n, t in first.tensors.items()})
            outputs = measure(net, inputs)
            losses.append(trial.task.loss.value(outputs, targets).item())
            metrics.append(float(trial.task.metric.value(outputs, targets)))
    return {"test_loss": losses, "test_metric": metrics}


def _between(first: Tensor, last: Tensor, share: float) -> Tensor:
    return torch.lerp(first, last, share) if first.is_floating_point() else first
