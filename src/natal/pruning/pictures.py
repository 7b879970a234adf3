"""What a mask looks like: pictures of few letters, small enough to lie beside every run of a study."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from natal.pruning.mask import Mask

LAYERS = 4
"""At most so many layers are pictured: the first, the last, and some evenly between."""
BLOCKS = 12
"""At most so many blocks a side has a picture of a layer's weights."""
PIXELS = 16
"""Likewise a picture of what is seen of an image."""
UNITS = 6
"""At most so many units of the first layer show what they see of an image."""
T = TypeVar("T")
LETTERS = "0123456789abcdefghijklmnopqrstuvwxyz"


class Picture(NamedTuple):
    """Shares of weights kept, block by block.

    ``layer``: the weight's name. ``shows``: ``all`` its weights, a row of blocks a group of units; the ``corner`` of
    its first weights, one a block; ``pixels``, how much of each pixel all units see; ``unit 7``, what unit 7 sees, of a
    convolution its kernel. ``rows``: how many rows of blocks. ``most``: the largest share of a block. ``levels``: a
    letter a block, row by row: ``0`` for nothing kept, else ``1`` to ``z`` for shares up to ``most``.
    """

    layer: str
    shows: str
    rows: int
    most: float
    levels: str


def pictures(mask: Mask, axes: Mapping[str, int], image: Sequence[int] = ()) -> list[Picture]:
    """Return pictures of a mask.

    ``axes``: along which every weight holds its units, see `natal.pruning.mask.unit_axes`; ``image``: the shape of the
    input, (channels, height, width), if it is one.
    """
    by_unit = {name: kept.movedim(axes.get(name, 0), 0).cpu().numpy() for name, kept in mask.weights.items()}
    made = list(_fields(*next(iter(by_unit.items())), image)) if by_unit and len(image) == 3 else []
    for name in _evenly(list(by_unit), LAYERS):
        weights = by_unit[name].reshape(len(by_unit[name]), -1)
        made.append(_picture(name, "all", weights, 1, BLOCKS))
        if max(weights.shape) > BLOCKS:  # else the blocks are the weights themselves
            made.append(_picture(name, "corner", weights[:BLOCKS, :BLOCKS], 1, BLOCKS))
    return made


def _fields(name: str, kept: NDArray[np.bool_], image: Sequence[int]) -> Iterator[Picture]:
    """Yield what the first layer's units see of an image; nothing if it does not read one as such."""
    channels, height, width = image
    units = _evenly(range(len(kept)), UNITS)
    if kept.ndim == 2 and kept.shape[1] == channels * height * width:
        seen = kept.reshape(-1, channels, height, width)
        yield _picture(name, "pixels", seen.sum((0, 1)), len(seen) * channels, PIXELS)
    elif kept.ndim == 4 and kept.shape[1] == channels:
        seen = kept
    else:
        return
    yield from (_picture(name, f"unit {unit}", seen[unit].sum(0), channels, PIXELS) for unit in units)


def _picture(layer: str, shows: str, kept: NDArray[np.generic], of: int, side: int) -> Picture:
    """Return a picture of at most ``side`` x ``side`` blocks: ``kept`` of ``of`` weights lie at each place."""
    rows, columns = (np.arange(0, n, -(-n // side)) for n in kept.shape)
    sums = np.add.reduceat(np.add.reduceat(kept.astype(np.int64), rows, 0), columns, 1)
    sizes = of * np.outer(
        *(np.diff([*edges, n]) for edges, n in zip((rows, columns), kept.shape, strict=True))
    )
    shares = sums / sizes
    most = float(shares.max())
    levels = np.ceil(shares / (most or 1) * (len(LETTERS) - 1)).astype(int)
    return Picture(layer, shows, len(rows), float(f"{most:.4g}"), "".join(LETTERS[i] for i in levels.flat))


def _evenly(things: Sequence[T], most: int) -> list[T]:
    """Return at most so many of some things, the first and the last among them."""
    if len(things) <= most:
        return list(things)
    return [things[i] for i in np.linspace(0, len(things) - 1, most).round().astype(int)]
