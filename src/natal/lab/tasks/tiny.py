"""Tasks made from nothing but a seed: modular arithmetic, regression, sparse parity."""

from __future__ import annotations

from typing import Annotated, Literal

import numpy as np
import torch
from pydantic import Field

from natal.errors import NatalError
from natal.lab.options import Share, Size
from natal.lab.tasks.data import Data
from natal.lab.tasks.task import task

Operation = Literal["add", "subtract", "multiply", "divide"]


@task("modular", loss="cross-entropy", metric="accuracy", learning_rate=1e-2)
def modular(
    seed: int,
    *,
    modulus: Annotated[int, Field(ge=2)] = 97,
    operation: Operation = "add",
    share: Share = 0.8,
    symmetric: bool = False,
    diagonal: bool = True,
    tokens: bool = False,
) -> Data:
    """Predict a op b mod n from one-hot(a) then one-hot(b); over all pairs, 80 % of which train.

    ``modulus``: n. ``operation``: ``add``, ``subtract``, ``multiply``, or ``divide``, a b⁻¹ for b other than 0 and a
    prime n. ``share``: of the pairs, that train. ``symmetric``: of (a, b) and (b, a) one alone is there, the one with
    a ≤ b. ``diagonal``: whether pairs with a = b are there. ``tokens``: rows are the tokens a, b, n instead, the last
    of which stands for "=".
    """
    n = modulus
    if symmetric and operation in ("subtract", "divide"):
        raise NatalError(f"symmetric = true needs a op b = b op a, and {operation!r} is not so")
    if operation == "divide" and any(n % d == 0 for d in range(2, int(n**0.5) + 1)):
        raise NatalError(f"operation 'divide' needs a prime modulus, such as 97, got {n}")
    a, b = np.repeat(np.arange(n), n), np.tile(np.arange(n), n)
    there = (a <= b if symmetric else a >= 0) & ((a != b) | diagonal) & ((b > 0) | (operation != "divide"))
    a, b = a[there], b[there]
    if operation == "divide":
        inverse = np.array([0] + [pow(divisor, -1, n) for divisor in range(1, n)])
        targets = a * inverse[b] % n
    else:
        targets = {"add": a + b, "subtract": a - b, "multiply": a * b}[operation] % n
    rows = len(a)
    order = np.random.RandomState(seed).permutation(rows)
    if tokens:
        inputs = np.stack([a, b, np.full(rows, n)], axis=1)
    else:
        inputs = np.zeros((rows, 2 * n), dtype=np.float32)
        inputs[np.arange(rows), a] = 1
        inputs[np.arange(rows), n + b] = 1
    x, y = torch.from_numpy(inputs[order]), torch.from_numpy(targets[order])
    train = int(share * rows)
    if not 0 < train < rows:
        raise NatalError(f"share {share} of {rows} pairs is {train}; both parts need at least one")
    return Data(x[:train], y[:train], x[train:], y[train:], outputs=n, vocabulary=n + 1 if tokens else None)


@task("regression", loss="squared-error", metric="R²", learning_rate=1e-3)
def regression(
    seed: int,
    *,
    rows: Annotated[int, Field(ge=5)] = 200,
    features: Size = 20,
    noise: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.1,
) -> Data:
    """Predict y = X w + noise for rows of normal features; 80 % train.

    ``rows`` and ``features``: the size of X. ``noise``: its standard deviation.
    """
    rng = np.random.RandomState(seed)
    w = rng.randn(features).astype(np.float32)
    x = rng.randn(rows, features).astype(np.float32)
    # float32 before the factor, not after: the published program's rounding
    disturbed = x @ w + np.float32(noise) * rng.randn(rows).astype(np.float32)
    inputs, targets, train = torch.from_numpy(x), torch.from_numpy(disturbed)[:, None], int(0.8 * rows)
    return Data(inputs[:train], targets[:train], inputs[train:], targets[train:], outputs=1)


@task("sparse-parity", loss="cross-entropy", metric="accuracy", learning_rate=1e-2)
def sparse_parity(
    seed: int, *, bits: Size = 40, relevant: Size = 3, train: Size = 1000, test: Size = 1000
) -> Data:
    """Predict whether an odd number of the first few of many random bits is -1 (Barak et al. 2022, section 2).

    ``bits``: numbers of a row, each 1 or -1. ``relevant``: how many of them, the first, decide. ``train`` and ``test``:
    numbers of rows, drawn independently.
    """
    if relevant > bits:
        raise NatalError(f"relevant {relevant} is more than its {bits} bits")
    signs = np.random.RandomState(seed).randint(0, 2, (train + test, bits)) * 2 - 1
    x = torch.from_numpy(signs.astype(np.float32))
    y = torch.from_numpy((signs[:, :relevant] < 0).sum(1) % 2)
    return Data(x[:train], y[:train], x[train:], y[train:], outputs=2)
