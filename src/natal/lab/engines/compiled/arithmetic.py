"""Exponential and logarithm, from multiplications and additions alone: no library's, whose bits vary with the CPU."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import types
from numba.extending import overload

from natal.lab.engines.compiled.cache import inlined
from natal.lab.engines.compiled.vectors import fma, to_float32, to_float64, to_int64


def exponential(x: Any) -> Any:
    """Return e^x for x ≤ 0 (or NaN), to a unit in the last place; what is less than 2^-126 (2^-1022) is 0.

    x = q ln 2 + s with q whole and |s| ≤ ln 2 / 2, then e^x = 2^q (1 + s + s² p(s)) (Cody & Waite 1980). p is the
    Taylor series in float64; in float32 its last terms are fitted to the interval.
    """
    return math.exp(x)


f, d = np.float32, np.float64  # a Python float would make every sum it meets a double
_F_LOG2_E, _F_LN2, _F_LN2_REST = f(1.4426950408889634), f(0.693145751953125), f(1.428606765330187e-06)
_F6, _F5, _F4 = f(0.00019852761761285365), f(0.0013930435525253415), f(0.008333360776305199)
_F3, _F2, _F1 = f(0.041666485369205475), f(0.1666666716337204), f(0.5)
_F_ONE, _F_NONE, _F_LEAST = f(1), f(0), f(-87.3365)
_D_LOG2_E, _D_LN2, _D_LN2_REST = (
    d(1.4426950408889634),
    d(0.693147180369123816490),
    d(1.90821492927058770002e-10),
)
_TAYLOR = tuple(d(1 / math.factorial(n)) for n in range(13, 1, -1))
_D_ONE, _D_NONE, _D_LEAST = d(1), d(0), d(-708.396)


@overload(exponential)
def _(x: Any) -> Any:
    def single(x: Any) -> Any:
        q = np.rint(x * _F_LOG2_E)
        s = fma(q, -_F_LN2_REST, fma(q, -_F_LN2, x))
        p = fma(fma(fma(fma(fma(_F6, s, _F5), s, _F4), s, _F3), s, _F2), s, _F1)
        whole = np.int32(q if x > _F_LEAST else _F_NONE)
        y = (_F_ONE + fma(s * s, p, s)) * to_float32(np.int32((whole + 127) << 23))
        return _F_NONE if x < _F_LEAST else y

    def double(x: Any) -> Any:
        q = np.rint(x * _D_LOG2_E)
        s = fma(q, -_D_LN2_REST, fma(q, -_D_LN2, x))
        p = _D_NONE
        for term in _TAYLOR:
            p = fma(p, s, term)
        whole = np.int64(q if x > _D_LEAST else _D_NONE)
        y = (_D_ONE + fma(s * s, p, s)) * to_float64((whole + 1023) << 52)
        return _D_NONE if x < _D_LEAST else y

    return single if x == types.float32 else double


_ODD = tuple(d(1 / n) for n in range(23, 1, -2))


@inlined
def logarithm(x: Any) -> Any:
    """Return ln x in float64, for a normal x > 0 (NaN for NaN), to two units in the last place.

    x = 2^e m with m from √½ to √2, then ln x = e ln 2 + 2 artanh t, t = (m - 1) / (m + 1), by its series in t.
    """
    x = np.float64(x)
    bits = to_int64(x)
    e = (bits - 0x3FE6A09E667F3BCD) >> 52  # the bits of √½
    m = to_float64(bits - (e << 52))
    t = (m - _D_ONE) / (m + _D_ONE)
    square, series = t * t, _D_NONE
    for term in _ODD:
        series = fma(series, square, term)
    near = fma(square * t, series, t) * d(2)
    return fma(np.float64(e), _D_LN2, fma(np.float64(e), _D_LN2_REST, near)) if x == x and x < np.inf else x
