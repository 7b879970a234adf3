"""The shape of one row of inputs: what a task tells a network about what it will read."""

from __future__ import annotations

from typing import Self

import torch
from torch import Tensor

from natal.errors import NatalError


class Tokens(tuple[int, ...]):
    """The shape of a row of tokens: ``(length,)`` whole numbers from 0 to ``vocabulary`` - 1.

    Every other shape is a plain tuple and stands for float32 numbers: ``(194,)``, ``(1, 28, 28)``.
    """

    vocabulary: int

    def __new__(cls, length: int, vocabulary: int) -> Self:
        """Return the shape of ``length`` tokens."""
        self = super().__new__(cls, (length,))
        self.vocabulary = vocabulary
        return self

    def __getnewargs__(self) -> tuple[int, int]:
        return self[0], self.vocabulary


def said(shape: tuple[int, ...]) -> str:
    """Return a shape in words: ``rows of 194 numbers``, ``rows of 1 x 28 x 28 numbers``, ``rows of 3 tokens``."""
    return f"rows of {' x '.join(map(str, shape))} {'tokens' if isinstance(shape, Tokens) else 'numbers'}"


def example(shape: tuple[int, ...], rows: int) -> Tensor:
    """Return rows of that shape, all zeros, on which a network can be tried."""
    dtype = torch.int64 if isinstance(shape, Tokens) else torch.float32
    return torch.zeros(rows, *shape, dtype=dtype)


def image(shape: tuple[int, ...], smallest: int = 1) -> tuple[int, int, int]:
    """Return channels, height and width of an image; raise NatalError for other shapes and for smaller images."""
    if len(shape) != 3 or min(shape[1:]) < smallest:
        size = f" of at least {smallest} x {smallest}" if smallest > 1 else ""
        raise NatalError(f"reads images (channels, height, width){size}, not {said(shape)}")
    channels, height, width = shape
    return channels, height, width


def numbers(shape: tuple[int, ...], cure: str = "") -> tuple[int, ...]:
    """Return the shape of rows of numbers; raise NatalError, ending with ``cure``, for rows of tokens."""
    if isinstance(shape, Tokens):
        raise NatalError(f"reads numbers, not {said(shape)}{cure}")
    return shape
