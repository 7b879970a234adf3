"""Linear mode connectivity: how high the error rises between two trainings that share a beginning. No torch here."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from natal.reading.rows import Row
from natal.reading.stats import Summary, summarise
from natal.study import Setting

STABLE = 0.02
"""Below this error barrier Frankle et al. (2020) call a network stable."""


@dataclass(frozen=True)
class Line:
    """The straight line from a run's last weights to those of a training that left it at a clock, in another ``order``.

    ``error``: 1 - accuracy of the test rows, or their loss on a task that has none, point by point.
    """

    row: Row
    clock: str
    order: int
    error: NDArray[np.float64]

    @property
    def barrier(self) -> float:
        """The highest error on the line minus the mean of its ends (Frankle et al. 2020); see `STABLE`. NaN where
        one of the two diverged."""
        return float(self.error.max() - self.error[[0, -1]].mean()) if len(self.error) else float("nan")


def lines(rows: Sequence[Row], manifest: Mapping[str, Any]) -> Iterator[Line]:
    """Yield the lines that were measured of a study's runs, in the order of runs, clocks and orders."""
    for row in rows:
        for clock, order, key in manifest.get("connectivity", {}).get(row.key, ()):
            found = manifest.get(f"connectivity/{key}", {})
            if row.metric == "accuracy":
                error = 1 - np.array(found.get("test_metric", ()))
            else:
                error = np.array(found.get("test_loss", ()))
            yield Line(row, clock, order, error)


@dataclass(frozen=True)
class Barrier:
    """The error barriers of a cell at a clock: a seed's is the mean over its orders; diverged ones are left out.

    The interval of ``barrier`` is cut at 0: no barrier is less, since the ends of a line belong to it.
    """

    setting: Setting
    strategy: str
    sparsity: float
    clock: str
    barrier: Summary


def barriers(lines: Sequence[Line]) -> list[Barrier]:
    """Return the barriers of every cell and clock, in the order of the lines."""
    found: dict[tuple[Setting, str, float, str], dict[int, list[float]]] = {}
    for line in lines:
        row = line.row
        seeds = found.setdefault((row.setting, row.strategy, row.sparsity, line.clock), {})
        if np.isfinite(line.barrier):
            seeds.setdefault(row.seed, []).append(line.barrier)
    return [
        Barrier(*where, _from_zero(summarise(float(np.mean(those)) for those in seeds.values())))
        for where, seeds in found.items()
    ]


def _from_zero(summary: Summary) -> Summary:
    return replace(summary, low=0.0) if summary.low < 0 else summary
