"""Random numbers with the same bits on every processor.

torch draws the same whole numbers everywhere, but makes numbers of them by whichever instructions a processor has:
where x (b - a) + a is one fused multiply-add, the last bit differs from where it is two operations. And its normal
numbers come from logarithms and cosines of different libraries.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

Array = NDArray[np.float64]


class SameEverywhere(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Within this context uniform numbers are those torch draws where it has fused multiply-adds, on any processor.

    With ``normal`` normal numbers too are the same everywhere, though not those that torch would have drawn.
    """

    def __init__(self, *, normal: bool = False) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._normal = normal

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # nothing here is compiled, and guarding it would import the compiler, for seconds

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Replace two of torch's functions."""
        of_one = bool(args) and isinstance(args[0], Tensor) and args[0].dtype == torch.float32
        if of_one and func is torch.ops.aten.uniform_.default:
            return _uniform(*args, **(kwargs or {}))
        if of_one and self._normal and func is torch.ops.aten.normal_.default:
            return _normal(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def _uniform(
    out: Tensor, a: float = 0.0, b: float = 1.0, *, generator: torch.Generator | None = None
) -> Tensor:
    """Fill with x (b - a) + a, rounded once, for x in [0, 1): 48 bits at most, which float64 holds exactly."""
    x = torch.empty_like(out).uniform_(generator=generator)
    low, high = torch.tensor([a, b], dtype=torch.float32)
    return out.copy_(x.double() * (high - low).double() + low.double())


def _normal(
    out: Tensor, mean: float = 0.0, std: float = 1.0, *, generator: torch.Generator | None = None
) -> Tensor:
    """Fill with mean + std √(-2 ln u) cos 2πv (Box & Muller 1958), in float64 and rounded to float32 at the end."""
    u, v = (
        torch.empty(out.shape, dtype=torch.float64).uniform_(generator=generator).numpy() for _ in range(2)
    )
    return out.copy_(torch.from_numpy(np.sqrt(-2 * _log(1 - u)) * _cos_of_turns(v)) * std + mean)


def _log(x: Array) -> Array:
    """Return ln x = k ln 2 + 2 artanh((m - 1) / (m + 1)) for x = 2^k m, m about 1; every operation is IEEE's."""
    m, k = np.frexp(x)
    low = m < math.sqrt(0.5)
    m, k = np.where(low, 2 * m, m), k - low
    s = (m - 1) / (m + 1)
    found: Array = k * math.log(2) + 2 * s * _series(s * s, [1 / n for n in range(1, 27, 2)])
    return found


def _cos_of_turns(v: Array) -> Array:
    """Return cos 2πv: the cosine or sine of what is left of v, an eighth at most, after whole quarters."""
    quarter = np.rint(4 * v)
    y = 2 * math.pi * (v - quarter / 4)
    cosine = _series(y * y, [(-1) ** n / math.factorial(2 * n) for n in range(10)])
    sine = y * _series(y * y, [(-1) ** n / math.factorial(2 * n + 1) for n in range(10)])
    quarter = quarter.astype(np.int64) % 4
    return np.where(quarter % 2, sine, cosine) * np.where((quarter == 1) | (quarter == 2), -1.0, 1.0)


def _series(z: Array, coefficients: Sequence[float]) -> Array:
    """Return Σ c_n zⁿ, from the highest power down (Horner)."""
    total = np.full_like(z, coefficients[-1])
    for c in coefficients[-2::-1]:
        total = total * z + c
    return total
