"""Norms over units that keep their old divisor when some of the units are gone.

In a masked network a removed unit is a zero that a norm still counts. A plain norm of the smaller width would
divide by fewer and compute something else; these compute the same.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class LayerNorm(nn.LayerNorm):
    """``nn.LayerNorm`` of features of which ``width`` were there and the missing ones are zero.

    mean = Σx / n, variance = (Σ(x − mean)² + (n − k) mean²) / n, with n the old width and k the present one.
    """

    width: int

    def forward(self, x: Tensor) -> Tensor:
        """Return the normalised features."""
        mean = x.sum(-1, keepdim=True) / self.width
        gone = self.width - x.shape[-1]
        variance = ((x - mean).square().sum(-1, keepdim=True) + gone * mean.square()) / self.width
        x = (x - mean) * torch.rsqrt(variance + self.eps)
        if self.weight is not None:
            x = x * self.weight
        return x if self.bias is None else x + self.bias

    def extra_repr(self) -> str:
        """Say which width it divides by."""
        return f"{super().extra_repr()}, width={self.width}"


class Widened(nn.Module):
    """A module that sees its old width: zeros where units are gone, whose results are dropped again.

    ``module``: the module as it was, under the mask. ``stays``: (width,) which of its units are left. ``axis``: of
    the units, from the end.
    """

    stays: Tensor

    def __init__(self, module: nn.Module, stays: Tensor, axis: int) -> None:
        super().__init__()
        self.module, self.axis, self.width = module, axis, len(stays)
        self.register_buffer("stays", stays.nonzero().flatten())
        self.train(module.training)

    def forward(self, x: Tensor) -> Tensor:
        """Return what the module makes of the units that are left."""
        shape = list(x.shape)
        shape[self.axis] = self.width
        wide = x.new_zeros(shape).index_copy(self.axis, self.stays, x)
        result: Tensor = self.module(wide).index_select(self.axis, self.stays)
        return result

    def extra_repr(self) -> str:
        """Say which width it restores."""
        return f"{len(self.stays)} of {self.width}, axis={self.axis}"
