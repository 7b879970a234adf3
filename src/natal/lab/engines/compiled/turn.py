"""Transposition, a square of `LANES` by `LANES` numbers at a time in registers."""

from __future__ import annotations

from typing import Any

from numba import types
from numba.extending import intrinsic

from natal.lab.engines.compiled.cache import inlined
from natal.lab.engines.compiled.vectors import LANES, Array, Emitter, emits


def _square(e: Emitter) -> None:
    """B[j+c, i+r] = A[i+r, j+c] for r, c < `LANES`: rows change places bit by bit of their numbers.

    After the step for a bit, lanes and rows whose numbers differ in that bit have been exchanged.
    """
    a, b, i, j = 0, 1, e.argument(2), e.argument(3)
    rows = [e.vector(a, e.plus(i, r), j) for r in range(LANES)]
    bit = LANES // 2
    while bit:
        lower = [lane if not lane & bit else lane - bit + LANES for lane in range(LANES)]
        upper = [lane + bit if not lane & bit else lane + LANES for lane in range(LANES)]
        before = rows
        rows = [
            e.shuffle(before[r], before[r + bit], lower)
            if not r & bit
            else e.shuffle(before[r - bit], before[r], upper)
            for r in range(LANES)
        ]
        bit //= 2
    for c in range(LANES):
        e.put_vector(rows[c], b, e.plus(j, c), i)


@intrinsic
def _turn_square(typing: Any, a: Any, b: Any, i: Any, j: Any) -> Any:
    return types.void(a, b, i, j), emits(_square)


@inlined
def turn(a: Array, b: Array) -> None:
    """B = Aᵀ. Both sizes of A are multiples of `LANES`."""
    for i in range(0, a.shape[0], LANES):
        for j in range(0, a.shape[1], LANES):
            _turn_square(a, b, i, j)
