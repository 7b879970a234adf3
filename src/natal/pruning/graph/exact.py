"""Modules that compute with fewer units what the masked network computes.

In a masked network a removed unit is a zero that a norm still counts. A plain norm of the smaller width would
divide by fewer and compute something else; these compute the same.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
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


def gets_narrow(module: nn.Module, axis: int) -> bool:
    """Return whether a norm over units becomes a `LayerNorm` of fewer, not a whole one in a `Widened`."""
    return type(module) is nn.LayerNorm and axis == -1 and len(module.normalized_shape) == 1


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


class MultiheadAttention(nn.MultiheadAttention):
    """``nn.MultiheadAttention`` of which heads or features are gone, so that what attends is no longer as wide as
    what is read.

    softmax(Q Kᵀ / √d) V by heads, d the old width of a head, between the projections that are left.
    """

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Return what attention gives, and its weights if they are asked for."""
        batched = query.ndim == 3
        inputs = [x if batched else x[None] for x in (query, key, value)]
        if batched and not self.batch_first:
            inputs = [x.transpose(0, 1) for x in inputs]
        q, k, v = (
            F.linear(x, w, b).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)  # type: ignore[no-untyped-call]
            for x, (w, b) in zip(inputs, self.projections(), strict=True)
        )
        scores = q @ k.transpose(-2, -1) / self.head_dim**0.5
        if is_causal and attn_mask is None:
            attn_mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).triu(1)
        if attn_mask is not None:
            attn_mask = (
                attn_mask.view(-1, self.num_heads, *attn_mask.shape[1:]) if attn_mask.ndim == 3 else attn_mask
            )
            scores = _masked(scores, attn_mask)
        if key_padding_mask is not None:
            padding = key_padding_mask if batched else key_padding_mask[None]
            scores = _masked(scores, padding[:, None, None, :])
        weights = scores.softmax(-1)
        mixed = F.dropout(weights, self.dropout, self.training) @ v
        out = self.out_proj(mixed.transpose(1, 2).flatten(2))
        if batched and not self.batch_first:
            out = out.transpose(0, 1)
        shown = (weights.mean(1) if average_attn_weights else weights) if need_weights else None
        if batched:
            return out, shown
        return out[0], None if shown is None else shown[0]

    def projections(self) -> list[tuple[Tensor, Tensor | None]]:
        """Return weight and bias that make queries, keys and values."""
        if self.in_proj_weight is not None:
            weights = self.in_proj_weight.chunk(3)
        else:
            weights = (self.q_proj_weight, self.k_proj_weight, self.v_proj_weight)
        biases = (None,) * 3 if self.in_proj_bias is None else self.in_proj_bias.chunk(3)
        return list(zip(weights, biases, strict=True))


def _masked(scores: Tensor, mask: Tensor) -> Tensor:
    return scores.masked_fill(mask, -torch.inf) if mask.dtype == torch.bool else scores + mask
