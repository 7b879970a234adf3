"""Which learning rate a strategy's level takes, of those that it tried. No torch here."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from natal.store.record import Curves
from natal.study import Run

Tried = Mapping[int, Mapping[float, str]]
"""The key of the training at each learning rate, for the rows of a grid that choose among several, by position."""


def deciding(metric: float | None, best_step: int, curves: Curves, decide: str) -> float:
    """Return what decides for a training, higher is better: its best validation metric, or minus its validation loss.

    ``decide``: as in `natal.study.Training`; ``curves`` are looked at for ``val-loss`` alone. One that diverged,
    without a ``metric``, never wins.
    """
    if metric is None:
        return -math.inf
    if decide != "val-loss":
        return metric
    return float(-curves["val_loss"][curves["step"] == best_step][0])


def chosen(runs: Sequence[Run], tried: Tried, values: Mapping[str, float]) -> dict[int, str]:
    """Return the key of the training that each searching row shows, by position; ``values``: `deciding` by key.

    The rows of one strategy and level choose together: the rate with the highest mean of `deciding` over their seeds,
    the first of equals. Rows that still lack one of their trainings are left out.
    """
    cells: dict[Run, list[int]] = {}
    for position in tried:
        cells.setdefault(runs[position]._replace(seed=0), []).append(position)
    found = {}
    for positions in cells.values():
        if any(key not in values for p in positions for key in tried[p].values()):
            continue
        means = {
            rate: sum(values[tried[p][rate]] for p in positions) / len(positions)
            for rate in tried[positions[0]]
        }
        best = max(means, key=means.__getitem__)
        found.update({p: tried[p][best] for p in positions})
    return found
