"""Which learning rate a strategy's level takes, of those that it tried. No torch here."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from natal.store.record import Outcome
from natal.study import Run

Tried = Mapping[int, Mapping[float, str]]
"""The key of the training at each learning rate, for the rows of a grid that choose among several, by position."""


def deciding(outcome: Outcome, decide: str) -> float:
    """Return what decides for a training, higher is better: its best validation metric, or minus its validation loss.

    ``decide``: as in `natal.study.Training`. One that diverged never wins.
    """
    if outcome.val_metric is None:
        return -math.inf
    if decide != "val-loss":
        return outcome.val_metric
    steps, loss = outcome.curves["step"], outcome.curves["val_loss"]
    return float(-loss[steps == outcome.best_step][0])


def chosen(
    grid: Sequence[tuple[Run, str]], tried: Tried, outcomes: Mapping[str, Outcome], decide: str
) -> dict[int, str]:
    """Return the key of the training that each searching row shows, by position.

    The rows of one strategy and level choose together: the rate with the highest mean of `deciding` over their seeds,
    the first of equals. Rows that still lack one of their trainings are left out.
    """
    cells: dict[Run, list[int]] = {}
    for position in tried:
        cells.setdefault(grid[position][0]._replace(seed=0), []).append(position)
    found = {}
    for positions in cells.values():
        if any(key not in outcomes for p in positions for key in tried[p].values()):
            continue
        means = {
            rate: sum(deciding(outcomes[tried[p][rate]], decide) for p in positions) / len(positions)
            for rate in tried[positions[0]]
        }
        best = max(means, key=means.__getitem__)
        found.update({p: tried[p][best] for p in positions})
    return found
