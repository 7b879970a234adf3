"""Products with a matrix of which only some weights are kept: their cost falls with the number kept.

A pattern in compressed rows: the kept weights of row i are numbers ``starts[i]`` to ``starts[i + 1]`` of ``values``,
and ``columns`` says in which column each is. Activations lie (neuron, row of data), so that one weight meets whole
vectors of rows.
"""

from __future__ import annotations

from typing import Any

from numba import types
from numba.extending import intrinsic

from natal.lab.engines.compiled.cache import inlined
from natal.lab.engines.compiled.folds import folded
from natal.lab.engines.compiled.vectors import LANES, Array, Emitter, emits

WIDTH = 4
"""Vectors of a row of the result that are in registers at once."""
GROUP = 4
"""Gradients that are summed together."""


def _row(width: int) -> Any:
    """Return the kernel for one row of a sparse product and so many vectors of it.

    C[i, j:j+width·LANES] += Σ_k values[k] B[columns[k], j:j+width·LANES], k from ``first`` up to ``last``, one chain
    of fused multiply-adds from zero, as in a dense product, whose zeros change nothing.
    """

    def nest(e: Emitter) -> None:
        values, columns, b, c, i, j, first, last = 0, 1, 2, 3, *(e.argument(n) for n in range(4, 8))
        sums = e.sums(width, c)
        with e.loop(last, first) as k:
            one, column = e.everywhere(e.number(values, k)), e.index(columns, k)
            for v in range(width):
                sums[v].value = e.fma(one, e.vector(b, column, e.plus(j, v * LANES)), sums[v].value)
        for v in range(width):
            place = i, e.plus(j, v * LANES)
            e.put_vector(e.builder.fadd(e.vector(c, *place), sums[v].value), c, *place)

    @intrinsic
    def row(typing: Any, values: Any, columns: Any, b: Any, c: Any, i: Any, j: Any, k: Any, end: Any) -> Any:
        return types.void(values, columns, b, c, i, j, k, end), emits(nest)

    return row


_row_wide, _row_narrow = _row(WIDTH), _row(1)


@inlined
def add_sparse_product(starts: Array, columns: Array, values: Array, b: Array, c: Array) -> None:
    """C += W B for W in compressed rows. B: (column of W, n), C: (row of W, n), n a multiple of `LANES`."""
    n = c.shape[1]
    whole = n // (WIDTH * LANES) * (WIDTH * LANES)
    for j in range(0, whole, WIDTH * LANES):
        for i in range(c.shape[0]):
            _row_wide(values, columns, b, c, i, j, starts[i], starts[i + 1])
    for j in range(whole, n, LANES):
        for i in range(c.shape[0]):
            _row_narrow(values, columns, b, c, i, j, starts[i], starts[i + 1])


def _dots(count: int) -> Any:
    """Return the kernel for so many dot products of rows of A with one row of B, added to numbers of C.

    C[k] += Σ_n A[columns[k], n] B[i, n] for ``count`` k from ``k`` on; number n is in lane n mod `LANES`.
    """

    def nest(e: Emitter) -> None:
        columns, a, b, c, i, k, length = 0, 1, 2, 3, *(e.argument(n) for n in range(4, 7))
        places = [e.plus(k, g) for g in range(count)]
        rows, sums = [e.index(columns, place) for place in places], e.sums(count, c)
        with e.loop(length, step=LANES) as n:
            shared = e.vector(b, i, n)
            for g in range(count):
                sums[g].value = e.fma(e.vector(a, rows[g], n), shared, sums[g].value)
        totals = folded(e, [s.value for s in sums])
        for g in range(count):
            e.put(e.builder.fadd(e.number(c, places[g]), e.lane(totals, g)), c, places[g])

    @intrinsic
    def dots(typing: Any, columns: Any, a: Any, b: Any, c: Any, i: Any, k: Any, length: Any) -> Any:
        return types.void(columns, a, b, c, i, k, length), emits(nest)

    return dots


_group, _one = _dots(GROUP), _dots(1)


@inlined
def add_kept_products(starts: Array, columns: Array, a: Array, b: Array, values: Array) -> None:
    """Let ``values`` grow by B Aᵀ where weights are kept: the gradient of each is one dot product of two rows.

    A: (column of W, n), B: (row of W, n), n a multiple of `LANES`.
    """
    n = b.shape[1]
    for i in range(b.shape[0]):
        groups = starts[i + 1] - (starts[i + 1] - starts[i]) % GROUP
        for k in range(starts[i], groups, GROUP):
            _group(columns, a, b, values, i, k, n)
        for k in range(groups, starts[i + 1]):
            _one(columns, a, b, values, i, k, n)
