"""Structure between single weights and whole neurons: kernels, blocks, and two of every four.

A layer's weight is seen as a matrix, one row per output, its columns the inputs with their kernel positions. A
*kernel* is the run of columns of one input; a *block* a tile of the matrix, smaller at its border. Each is one group
with one score, the norm of its weights' scores, and stays or goes whole. Under *2:4* two of every four neighbouring
inputs go, at every output and kernel position, which is what sparse tensor cores can skip.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil, prod

import torch
import torch.nn.functional as F
from torch import Tensor

Granularity = str | Mapping[str, Sequence[int]]
"""``weight``, ``neuron``, ``kernel``, ``2:4``, or ``{"block": (rows, columns)}``."""


@dataclass(frozen=True)
class Grid:
    """The tiles that the weight of one layer falls into; ``shape``: the weight's."""

    rows: int
    columns: int
    shape: Sequence[int]

    @property
    def tiles(self) -> tuple[int, int]:
        """How many tiles there are, down and across."""
        return ceil(self.shape[0] / self.rows), ceil(prod(self.shape[1:]) / self.columns)

    def norm(self, scores: Tensor, p: int) -> Tensor:
        """Return the p-norm of every tile's scores."""
        norm: Tensor = torch.linalg.vector_norm(self._cut(scores), p, dim=2)
        return norm

    def any(self, kept: Tensor) -> Tensor:
        """Return which tiles hold anything that is kept."""
        return self._cut(kept).any(2)

    def spread(self, kept: Tensor) -> Tensor:
        """Return the weight's mask from its tiles'."""
        whole = kept.repeat_interleave(self.rows, 0).repeat_interleave(self.columns, 1)
        return whole[: self.shape[0], : prod(self.shape[1:])].reshape(self.shape)

    def _cut(self, values: Tensor) -> Tensor:
        """Return (down, across, rows x columns), with zeros beyond the border."""
        matrix = values.flatten(1)
        down, across = self.tiles
        border = (0, across * self.columns - matrix.shape[1], 0, down * self.rows - matrix.shape[0])
        tiles = F.pad(matrix, border).view(down, self.rows, across, self.columns)
        return tiles.transpose(1, 2).flatten(2)


def grid_of(granularity: Granularity, shape: Sequence[int]) -> Grid:
    """Return the grid of a granularity over a weight; single weights are tiles of one."""
    if not isinstance(granularity, str):
        rows, columns = granularity["block"]
        return Grid(rows, columns, shape)
    return Grid(1, prod(shape[2:]) if granularity == "kernel" else 1, shape)


def two_of_four(scores: Tensor, sparsity: float) -> Tensor:
    """Return the mask that removes the ``int(sparsity * 4)`` lowest scores of every four neighbouring inputs.

    Of a last run of fewer inputs ``int(sparsity * n)`` go; of equal scores the first.
    """
    fours = _fours(scores, torch.inf)
    here = _fours(torch.ones_like(scores, dtype=torch.bool), False).sum(-1, keepdim=True)
    removed = torch.tensor([int(sparsity * n) for n in range(5)], device=scores.device)[here]
    ranks = fours.argsort(dim=-1, stable=True).argsort(dim=-1)
    kept = (ranks >= removed).flatten(-2)[..., : scores.shape[1]]
    return torch.movedim(kept, -1, 1).contiguous()


def _fours(values: Tensor, beyond: float) -> Tensor:
    """Return (outputs, kernel..., fours, 4), the last four filled up with ``beyond``."""
    inputs_last = torch.movedim(values, 1, -1)
    filled = F.pad(inputs_last, (0, -inputs_last.shape[-1] % 4), value=beyond)
    return filled.reshape(*filled.shape[:-1], -1, 4)
