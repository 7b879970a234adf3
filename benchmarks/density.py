"""What does a step cost at each density? The compiled engine against plain PyTorch, in turn, in one process.

    python benchmarks/density.py                    steps of two networks, and the products of four layers
    python benchmarks/density.py --figure out.png   also a figure of the steps

One thread. "plain" is a loop with fused Adam that multiplies masks in after each step: it pays the dense price at any
density. Networks: LeNet-300-100 on rows of 784 numbers, 60 a step; eight hidden layers of 128 on all 6,774 rows of the
modular task. Data are random numbers of that shape.

The last table is where the engine's rule comes from: below which density three products that skip zeros are faster than
three dense ones. The rule is one number on every machine, because it decides the order in which gradients are summed.
"""

from __future__ import annotations

import argparse
import copy
import os
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numba import njit
from torch import Tensor, nn

from machine import hardware, in_turn
from natal.determinism import one_thread
from natal.lab.engines.compiled import products, sparse
from natal.lab.engines.compiled.chain import SPARSE_BELOW
from natal.lab.engines.compiled.learner import Learner, batches
from natal.lab.engines.compiled.network import Chain, chain_of, data_of, ones_a_row
from natal.lab.engines.compiled.steps import Loss
from natal.lab.engines.compiled.vectors import Array, aligned, wide
from natal.lab.networks.mlp import mlp
from natal.pruning.mask import Mask
from natal.study import Optimiser
from plain import Plain

DENSITIES = (1.0, 0.5, 0.3, 0.2, 0.1, 0.05, 0.02)
RATE = 1e-3


def random_mask(net: nn.Module, density: float, seed: int = 0) -> Mask:
    """Keep a share of every weight matrix, drawn at random."""
    generator = torch.Generator().manual_seed(seed)
    weights = {name: p for name, p in net.named_parameters() if p.ndim == 2}
    return Mask({name: torch.rand(p.shape, generator=generator) < density for name, p in weights.items()})


def compiled_steps(net: nn.Module, mask: Mask, x: Tensor, y: Tensor) -> tuple[Learner, Any]:
    """Return a network in training, and its rows as the kernels read them."""
    chain = chain_of(net)
    assert isinstance(chain, Chain)
    ones, net = ones_a_row(x), copy.deepcopy(net)
    mask.apply_(dict(net.named_parameters()))
    return Learner(net, chain, mask, Optimiser(), ones > 0, Loss(True, 0.0)), data_of(
        x, y, ones, torch.float32
    )


def plain_steps(plain: Plain, parts: list[Tensor | None]) -> None:
    for part in parts:
        plain.step(part)


def network(name: str, net: nn.Module, x: Tensor, y: Tensor, batch: int | None, rounds: int) -> list[float]:
    """Print a step and an evaluation at every density; return the milliseconds of steps, those of plain last."""
    rows, steps, plains = len(x), 1 if batch is None else 20, []
    held = np.arange(min(rows, 15_000) if batch else rows // 9)
    print(f"\n{name}: ms a step, and an evaluation of {len(held):,} rows")
    print(f"{'density':>9}{'compiled':>11}{'plain':>9}{'ratio':>8}{'evaluation':>13}{'plain':>9}{'ratio':>8}")
    found = []
    for density in DENSITIES:
        mask = random_mask(net, density)
        learner, data = compiled_steps(net, mask, x, y)
        plain = Plain(copy.deepcopy(net), mask, x, y, RATE)
        parts: list[Tensor | None] = [None] * steps
        if batch:
            parts = [
                torch.randperm(rows, generator=torch.Generator().manual_seed(s))[:batch] for s in range(steps)
            ]
        order, cuts = batches(parts, np.arange(rows))
        ours, other, measuring, measured = in_turn(
            partial(learner.learn, data, order, cuts, np.full(steps, RATE)),
            partial(plain_steps, plain, parts),
            partial(learner.measure, data, held),
            partial(plain.evaluate, x[: len(held)], y[: len(held)]),
            rounds=rounds,
        )
        print(
            f"{density:9}{1e3 * ours / steps:11.3f}{1e3 * other / steps:9.3f}{other / ours:7.1f}x"
            f"{1e3 * measuring:13.2f}{1e3 * measured:9.2f}{measured / measuring:7.1f}x",
            flush=True,
        )
        found.append(1e3 * ours / steps)
        plains.append(1e3 * other / steps)
    return [*found, float(np.median(plains))]


@njit(error_model="numpy")
def dense_products(w, a, across, z, slopes, back):  # type: ignore[no-untyped-def]
    """A layer's three products: outputs, gradient, and what is pulled back."""
    products.add_product(w, a, z)
    products.add_product(z, across, slopes)
    products.add_product(w.T, z, back)


@njit(error_model="numpy")
def sparse_products(there, values, turned, slopes, a, z, back):  # type: ignore[no-untyped-def]
    """The same for the weights kept."""
    sparse.add_sparse_product(there[0], there[1], values, a, z)
    sparse.add_kept_products(there[0], there[1], a, z, slopes)
    sparse.add_sparse_product(turned[0], turned[1], values, z, back)


def compressed(kept: Array) -> tuple[Array, Array]:
    """Return where each row's kept weights begin, and their columns."""
    row, column = np.nonzero(kept)
    return np.searchsorted(row, np.arange(len(kept) + 1)).astype(np.int32), column.astype(np.int32)


def break_even(outputs: int, inputs: int, rows: int, rounds: int) -> None:
    """Print a layer's products at several densities, and where skipping zeros begins to pay."""
    rng = np.random.default_rng(0)
    a, z, back = (aligned((n, rows), np.float32) for n in (inputs, outputs, inputs))
    a[:] = rng.standard_normal(a.shape)
    across, slopes, w = (aligned((n, wide(inputs)), np.float32) for n in (rows, outputs, outputs))
    ratios = []
    for density in DENSITIES:
        kept = rng.random((outputs, inputs)) < density

        there, turned = compressed(kept), compressed(kept.T)
        values, grown = np.ones(len(there[1]), np.float32), np.zeros(len(there[1]), np.float32)
        skipping, dense = in_turn(
            partial(sparse_products, there, values, turned, grown, a, z, back),
            partial(dense_products, w[:, :inputs], a, across, z, slopes, back),
            rounds=rounds,
        )
        ratios.append(dense / skipping)
    even = next((d for d, ratio in zip(DENSITIES, ratios, strict=True) if ratio >= 1), 0.0)
    if 0 < even < 1:  # between this density and the one above, on a line through both
        at = DENSITIES.index(even)
        (low, high), (above, below) = (even, DENSITIES[at - 1]), (1 / ratios[at], 1 / ratios[at - 1])
        even = low + (high - low) * (1 - above) / (below - above)
    shown = "".join(f"{ratio:7.2f}x" for ratio in ratios)
    print(f"{outputs:>5} x {inputs:<4}{rows:>5} rows{shown}{even:12.2f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--figure", type=Path, help="write a figure of a step's time against density")
    asked = parser.parse_args()
    print(f"machine     {hardware()}; load before: {os.getloadavg()[0]:.2f}")
    print(
        f"versions    torch {torch.__version__}, numpy {np.__version__}; one thread, medians of {asked.rounds}"
    )
    torch.manual_seed(0)
    images, digits = torch.randn(15_000, 784), torch.randint(0, 10, (15_000,))
    pairs = torch.zeros(6774, 194)
    for block in (0, 97):
        pairs[torch.arange(6774), block + torch.randint(0, 97, (6774,))] = 1
    sums = torch.randint(0, 97, (6774,))
    with one_thread():
        found = {
            "LeNet-300-100, batch 60": network(
                "LeNet-300-100, batch 60, Adam", mlp((784,), 10, hidden=[300, 100]), images, digits, 60, asked.rounds
            ),
            "8 hidden layers of 128, full batch": network(
                "8 hidden layers of 128 on the modular task, full batch, Adam",
                mlp((194,), 97, hidden=[128] * 8), pairs, sums, None, max(3, asked.rounds // 3),
            ),
        }  # fmt: skip
        print(
            "\nthree products of a layer, dense / skipping zeros, and the density at which they cost the same"
        )
        print(f"{'':22}{''.join(f'{density:8}' for density in DENSITIES)}  break-even")
        for outputs, inputs, rows in ((300, 784, 64), (100, 300, 64), (97, 128, 192), (128, 128, 192)):
            break_even(outputs, inputs, rows, 5 * asked.rounds)
        print(f"the engine's rule: skip zeros below {SPARSE_BELOW}")
    if asked.figure:
        draw(found, asked.figure)


def draw(found: dict[str, list[float]], path: Path) -> None:
    """Draw milliseconds a step against density, plain PyTorch as a level line."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(found), figsize=(4.2 * len(found), 3.2), layout="constrained")
    for axis, (name, (*ours, plain)) in zip(axes, found.items(), strict=True):
        axis.plot(DENSITIES, ours, "o-", label="natal, compiled")
        axis.axhline(plain, color="0.5", linestyle="--", label="plain PyTorch, masked")
        axis.set(xscale="log", yscale="log", title=name, xlabel="share of weights kept", ylabel="ms a step")
        axis.legend(frameon=False)
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    main()
