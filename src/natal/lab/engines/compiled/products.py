"""Dense products, a tile of the result at a time in registers.

Every sum of a product is one chain of fused multiply-adds along the inner axis, from zero, and is then added to what
is there: the same bits whatever the tile.
"""

from __future__ import annotations

from typing import Any

from numba import types
from numba.extending import intrinsic

from natal.lab.engines.compiled.cache import inlined
from natal.lab.engines.compiled.vectors import LANES, PANEL, Array, Emitter, emits

HEIGHT = 6
"""Rows of a tile."""


def _tile(height: int, width: int) -> Any:
    """Return the kernel for tiles of so many rows and so many vectors.

    C[i:i+height, j:j+width·LANES] += Σ_k A[i:i+height, k] B[k, j:j+width·LANES]; A may have any strides, rows of B and
    C are contiguous.
    """

    def nest(e: Emitter) -> None:
        a, b, c, i, j, inner = 0, 1, 2, e.argument(3), e.argument(4), e.argument(5)
        sums = [e.sums(width, c) for _ in range(height)]
        with e.loop(inner) as k:
            row = [e.vector(b, k, e.plus(j, v * LANES)) for v in range(width)]
            for r in range(height):
                one = e.everywhere(e.number(a, e.plus(i, r), k))
                for v in range(width):
                    sums[r][v].value = e.fma(one, row[v], sums[r][v].value)
        for r in range(height):
            for v in range(width):
                place = e.plus(i, r), e.plus(j, v * LANES)
                e.put_vector(e.builder.fadd(e.vector(c, *place), sums[r][v].value), c, *place)

    @intrinsic
    def tile(typing: Any, a: Any, b: Any, c: Any, i: Any, j: Any, inner: Any) -> Any:
        return types.void(a, b, c, i, j, inner), emits(nest)

    return tile


_tall_wide, _tall, _flat_wide, _flat = _tile(HEIGHT, PANEL), _tile(HEIGHT, 1), _tile(1, PANEL), _tile(1, 1)


@inlined
def add_product(a: Array, b: Array, c: Array) -> None:
    """C += A B. A: (row, inner), any strides; B: (inner, column), C: (row, column), columns multiples of `LANES`."""
    rows, inner, columns = a.shape[0], a.shape[1], b.shape[1]
    tall, panels = rows // HEIGHT * HEIGHT, columns // (PANEL * LANES) * (PANEL * LANES)
    for j in range(0, panels, PANEL * LANES):
        for i in range(0, tall, HEIGHT):
            _tall_wide(a, b, c, i, j, inner)
        for i in range(tall, rows):
            _flat_wide(a, b, c, i, j, inner)
    for j in range(panels, columns, LANES):
        for i in range(0, tall, HEIGHT):
            _tall(a, b, c, i, j, inner)
        for i in range(tall, rows):
            _flat(a, b, c, i, j, inner)
