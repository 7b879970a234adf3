"""Sums over the lanes of a vector, and over rows."""

from __future__ import annotations

from typing import Any

from numba import types
from numba.extending import intrinsic

from natal.lab.engines.compiled.cache import inlined
from natal.lab.engines.compiled.vectors import LANES, Array, Emitter, emits


def folded(e: Emitter, vectors: list[Any]) -> Any:
    """Return the vector of the sums of each vector's lanes: the upper half goes to the lower, and so on.

    Vectors in pairs, then parts of one vector, are folded together: three instructions fold two.
    """
    length = LANES  # lanes of a part, each part the rest of one sum
    while length > 1:
        alone, half = len(vectors) == 1, length // 2
        pairs = [(vectors[0], vectors[0])] if alone else zip(vectors[::2], vectors[1::2], strict=True)
        lanes = vectors[0].type.count * (1 if alone else 2)
        lower = [part + lane for part in range(0, lanes, length) for lane in range(half)]
        upper = [lane + half for lane in lower]
        vectors = [e.builder.fadd(e.shuffle(x, y, lower), e.shuffle(x, y, upper)) for x, y in pairs]
        length = half
    return vectors[0]


def _sum(e: Emitter) -> None:
    """B[i] += Σ_n A[i, n], number n in lane n mod `LANES`."""
    a, b, i, length = 0, 1, e.argument(2), e.argument(3)
    (total,) = e.sums(1, a)
    with e.loop(length, step=LANES) as n:
        total.value = e.builder.fadd(total.value, e.vector(a, i, n))
    e.put(e.builder.fadd(e.number(b, i), e.lane(folded(e, [total.value]), 0)), b, i)


@intrinsic
def _add_sum(typing: Any, a: Any, b: Any, i: Any, length: Any) -> Any:
    return types.void(a, b, i, length), emits(_sum)


@inlined
def add_row_sums(a: Array, b: Array) -> None:
    """Let b grow by the sums of A's rows, whose length is a multiple of `LANES`."""
    for i in range(a.shape[0]):
        _add_sum(a, b, i, a.shape[1])
