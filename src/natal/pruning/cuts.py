"""Cuts on the training clock: of a network that lost weights before, many small ones, and those that regrow."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from natal.errors import NatalError
from natal.pruning.choose import mask
from natal.pruning.criteria import Problem
from natal.pruning.mask import Mask
from natal.study import Recipe

Regrow = Literal["random", "gradient"]
"""Which weights come back: any, or where the dense gradient of the current batch is largest."""


@dataclass(frozen=True)
class Cuts:
    """Cuts inside one training, after the steps ``start + every``, ``start + 2 every``, ..., and ``stop``.

    Without ``regrow`` the network begins dense and loses weights by a cubic schedule, ``sparsity`` of them from
    ``stop`` on (`cubic`). With it the network begins at ``sparsity`` and every cut moves a ``fraction`` of each
    layer's kept weights elsewhere in the layer (`dropped_and_regrown`). ``rates``: see `cut`.
    """

    recipe: Recipe
    sparsity: float
    start: int
    stop: int
    every: int
    regrow: Regrow | None = None
    fraction: float = 0.3
    rates: Mapping[str, float] = field(default_factory=dict)

    @property
    def steps(self) -> list[int]:
        """The numbers of steps after which something is cut."""
        return sorted({*range(self.start + self.every, self.stop, self.every), self.stop})


def cut(
    recipe: Recipe, problem: Problem, sparsity: float, before: Mask | None, rates: Mapping[str, float]
) -> Mask:
    """Return the mask of a network that lost weights ``before``, now at ``sparsity`` in all."""
    if before is None and not rates:
        return mask(recipe, problem, sparsity)
    raise NatalError("a second cut, and rates, are not known yet; set rounds = 1 and leave rates out")
