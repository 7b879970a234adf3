"""Linear mode connectivity: how high the error rises between two trainings that share a beginning. No torch here."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from natal.reading.rows import Row


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
        """The highest error on the line minus the mean of its ends (Frankle et al. 2020); below 0.02 they call it
        stable. NaN where one of the two diverged."""
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
