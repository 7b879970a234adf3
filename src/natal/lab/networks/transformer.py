"""A small decoder-only transformer for sequences of tokens such as a, b, =."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from natal.errors import NatalError
from natal.lab.networks.network import network
from natal.lab.options import Positive, Size
from natal.lab.shapes import Tokens, said


@network("transformer")
def transformer(
    shape: tuple[int, ...],
    outputs: int,
    *,
    depth: Size = 1,
    width: Positive = 128,
    heads: Size = 4,
    norm: bool = False,
) -> nn.Module:
    """Decoder-only transformer that answers at the last token (Nanda et al. 2023, section 3: one layer, no norm).

    Learned embeddings and positions, causal attention without biases, a ReLU layer four times as wide, an output layer
    without bias. ``depth``: number of layers; Power et al. 2022, appendix A.1.2, have two. ``width``: size of the
    residual stream, rounded to a multiple of ``heads``. ``norm``: layer norms before attention, before the ReLU layer
    and before the output.
    """
    if not isinstance(shape, Tokens):
        raise NatalError(f"reads tokens, not {said(shape)}; the task modular has them with tokens = true")
    return Transformer(shape, outputs, depth, heads * max(1, round(width / heads)), heads, norm)


class Transformer(nn.Module):
    """Embed tokens and places, pass through layers, answer at the last place."""

    def __init__(self, shape: Tokens, outputs: int, depth: int, width: int, heads: int, norm: bool) -> None:
        super().__init__()
        self.embedding = nn.Embedding(shape.vocabulary, width)
        self.positions = nn.Embedding(shape[0], width)
        self.layers = nn.Sequential(*(Layer(width, heads, norm) for _ in range(depth)))
        self.norm = nn.LayerNorm(width) if norm else nn.Identity()
        self.output = nn.Linear(width, outputs, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return the outputs of a batch of rows of tokens."""
        h = self.embedding(x) + self.positions.weight
        outputs: Tensor = self.output(self.norm(self.layers(h)[:, -1]))
        return outputs


class Layer(nn.Module):
    """x + attention, then + W₂ relu(W₁ x + b₁) + b₂ (Vaswani et al. 2017, section 3)."""

    def __init__(self, width: int, heads: int, norm: bool) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = (nn.LayerNorm(width) if norm else nn.Identity() for _ in range(2))
        self.query, self.key, self.value, self.merge = (nn.Linear(width, width, bias=False) for _ in range(4))
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Return the residual stream after this layer."""
        h = self.norm1(x)
        query, key, value = (self._split(part(h)) for part in (self.query, self.key, self.value))
        attended = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + self.merge(attended.transpose(1, 2).flatten(2))
        y: Tensor = x + self.down(torch.relu(self.up(self.norm2(x))))
        return y

    def _split(self, x: Tensor) -> Tensor:
        """Return (rows, heads, places, width / heads)."""
        return x.reshape(x.size(0), x.size(1), self.heads, -1).transpose(1, 2)
