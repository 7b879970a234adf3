"""Random changes to a batch of images, drawn from a generator that the caller seeds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Generator, Tensor

Change = Literal["flip", "crop"]


@dataclass(frozen=True)
class Images:
    """Changes to images, in order; ``fill``: each channel's value of a black pixel."""

    changes: tuple[Change, ...]
    fill: tuple[float, ...]

    def __call__(self, x: Tensor, generator: Generator) -> Tensor:
        """Return (rows, channels, height, width), each image changed on its own."""
        for change in self.changes:
            x = CHANGES[change](x, generator, self.fill)
        return x


def flip(x: Tensor, generator: Generator, fill: Sequence[float]) -> Tensor:
    """Mirror every second image or so, left to right."""
    mirrored = (torch.rand(len(x), generator=generator) < 0.5).to(x.device)
    return torch.where(mirrored[:, None, None, None], x.flip(3), x)


def crop(x: Tensor, generator: Generator, fill: Sequence[float]) -> Tensor:
    """Pad with black by an eighth of the side, then cut out an image of the old size anywhere (He et al. 2016, 4.2)."""
    rows, channels, height, width = x.shape
    pad = max(1, height // 8), max(1, width // 8)
    wide = x.new_tensor(fill)[None, :, None, None].repeat(rows, 1, height + 2 * pad[0], width + 2 * pad[1])
    wide[:, :, pad[0] : pad[0] + height, pad[1] : pad[1] + width] = x
    top, left = (torch.randint(0, 2 * p + 1, (rows, 1), generator=generator).to(x.device) for p in pad)
    down = top + torch.arange(height, device=x.device)
    across = left + torch.arange(width, device=x.device)
    row, channel = torch.arange(rows, device=x.device), torch.arange(channels, device=x.device)
    return wide[
        row[:, None, None, None], channel[:, None, None], down[:, None, :, None], across[:, None, None, :]
    ]


CHANGES: dict[Change, Callable[[Tensor, Generator, Sequence[float]], Tensor]] = {"flip": flip, "crop": crop}
