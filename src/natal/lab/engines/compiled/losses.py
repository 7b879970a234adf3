"""Losses of a block of rows, their gradients, and how right the outputs are.

``z``: outputs (output, row), at least as many rows as ``rows``, the numbers of the data's rows in it; what is beyond
them only fills up the last vector. Sums over rows run in float64, one row after the other.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from natal.lab.engines.compiled.arithmetic import exponential, logarithm
from natal.lab.engines.compiled.cache import inlined
from natal.lab.engines.compiled.vectors import Array


@inlined
def largest(z: Array, top: Array) -> None:
    """Fill ``top`` with the largest output of each row; what is no number is never the largest."""
    top[:] = -np.inf
    for o in range(z.shape[0]):
        for r in range(z.shape[1]):
            top[r] = z[o, r] if z[o, r] > top[r] else top[r]


@inlined
def right(z: Array, top: Array, classes: Array, rows: Array) -> int:
    """Return how many rows have their class as the first of their largest outputs."""
    count = 0
    for r in range(len(rows)):
        wanted = classes[rows[r]]
        first = 0
        while first < wanted and z[first, r] != top[r]:
            first += 1
        count += first == wanted and z[wanted, r] == top[r]
    return count


@inlined
def cross_entropy(z: Array, top: Array, total: Array, classes: Array, rows: Array, smoothing: float) -> float:
    """Return -Σ_r Σ_o y log softmax(z), where y = (1 - ε) onehot(class) + ε / outputs.

    ``top``: the largest outputs. z becomes e^(z - top), and ``total`` its sum over outputs.
    """
    loss, share = 0.0, smoothing / z.shape[0]
    for r in range(len(rows)):
        loss += np.float64(top[r]) - (1 - smoothing) * z[classes[rows[r]], r]
    if smoothing > 0:
        for o in range(z.shape[0]):
            for r in range(len(rows)):
                loss -= share * z[o, r]
    total[:] = 0
    for o in range(z.shape[0]):
        for r in range(z.shape[1]):
            z[o, r] = exponential(z[o, r] - top[r])
            total[r] += z[o, r]
    product = 1.0  # one logarithm for many rows
    for r in range(len(rows)):
        product *= total[r]
        if product > 1e200:
            loss += logarithm(product)
            product = 1.0
    return loss + float(logarithm(product))


@inlined
def cross_entropy_pull(
    z: Array, total: Array, classes: Array, rows: Array, smoothing: float, scale: Any
) -> None:
    """Turn what `cross_entropy` left into its gradient times ``scale``: scale (softmax(z) - y)."""
    share, rest = scale * z.dtype.type(smoothing / z.shape[0]), scale * z.dtype.type(1 - smoothing)
    for r in range(z.shape[1]):
        total[r] = scale / total[r]
    for o in range(z.shape[0]):
        for r in range(z.shape[1]):
            z[o, r] = z[o, r] * total[r] - share
    for r in range(len(rows)):
        z[classes[rows[r]], r] -= rest
    z[:, len(rows) :] = 0


@inlined
def squared_error(z: Array, values: Array, rows: Array) -> float:
    """Return Σ (z - y)²; z becomes z - y. ``values``: y (row of the data, output)."""
    loss = 0.0
    for r in range(len(rows)):
        for o in range(z.shape[0]):
            z[o, r] -= values[rows[r], o]
            loss += np.float64(z[o, r]) * z[o, r]
    return loss


@inlined
def squared_error_pull(z: Array, rows: Array, scale: Any) -> None:
    """Turn what `squared_error` left into its gradient, of which ``scale`` is twice a row's share."""
    for o in range(z.shape[0]):
        for r in range(z.shape[1]):
            z[o, r] *= scale
    z[:, len(rows) :] = 0
