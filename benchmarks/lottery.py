"""The work of a lottery-ticket experiment (Frankle & Carbin 2019, figure 3): how long, and how long in plain PyTorch?

    python benchmarks/lottery.py                 a share of the work, and what all of it would take
    python benchmarks/lottery.py --whole         all of it, with the compiled engine

LeNet-300-100, batch 60, Adam at 1.2e-3: twelve tickets of density 0.8^k and three controls of the last three
densities, 50,000 iterations each, evaluated on 15,000 rows every 100. What is timed is the work, not the lottery:
masks are random, the same density in every layer, and the rows are random numbers, 60,000 of 784. A worker a core, one
thread a worker; plain PyTorch is a loop with fused Adam that multiplies masks in after each step, also a process a
core.

Without --whole every training is cut to a share of its iterations, both programs in turn. The compiled engine's
trainings end with a measurement of all 61,000 rows, plain's do not: the shorter, the dearer that is.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

import torch

from density import random_mask
from machine import hardware
from natal.lab.engines import ENGINES
from natal.lab.networks.mlp import mlp
from natal.lab.tasks import LOSSES, METRICS, Data, Split, Task
from natal.lab.trial import Trial
from natal.study import Training
from plain import Plain

ITERATIONS, EVERY, BATCH, RATE = 50_000, 100, 60, 1.2e-3
FIT, HELD, TEST = 45_000, 15_000, 1_000
DENSITIES = [0.8**k for k in range(12)] + [0.8**k for k in (9, 10, 11)]


@dataclass(frozen=True)
class Work:
    """One training: how dense, and how many iterations."""

    density: float
    iterations: int


def rows() -> Data:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(FIT + HELD, 784, generator=generator)
    y = torch.randint(0, 10, (FIT + HELD,), generator=generator)
    return Data(x, y, x[:TEST], y[:TEST], outputs=10)


DATA: list[Data] = []


def start() -> None:
    """Prepare a worker: one thread, the data, the kernels."""
    torch.set_num_threads(1)
    DATA.append(rows())
    ENGINES["compiled"].prepare("cpu")


def compiled(work: Work) -> None:
    net = mlp((784,), 10, hidden=[300, 100])
    training = Training.model_validate(
        {"length": f"{work.iterations}it", "evaluate": f"{EVERY}it", "batch": BATCH, "decide": "end",
         "patience": "none", "target": "none"}
    )  # fmt: skip
    task = Task("rows", rows, LOSSES["cross-entropy"], METRICS["accuracy"], RATE, None)
    split = Split(DATA[0], fit=torch.arange(FIT), val=torch.arange(FIT, FIT + HELD), chance=0.1)
    trial = Trial("key", task, split, net, random_mask(net, work.density), training, RATE)
    for _ in ENGINES["compiled"].train([trial], "cpu"):
        pass


def plain(work: Work) -> None:
    net, data = mlp((784,), 10, hidden=[300, 100]), DATA[0]
    mask = random_mask(net, work.density)
    mask.apply_(dict(net.named_parameters()))
    loop = Plain(net, mask, data.inputs, data.targets, RATE)
    generator = torch.Generator().manual_seed(0)
    order: list[torch.Tensor] = []
    for step in range(1, work.iterations + 1):
        if not order:
            order = list(torch.split(torch.randperm(FIT, generator=generator), BATCH))
        loop.step(order.pop())
        if step % EVERY == 0:
            loop.evaluate(data.inputs[FIT:], data.targets[FIT:])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--whole", action="store_true", help="all iterations, with the compiled engine alone")
    parser.add_argument("--iterations", type=int, default=2000, help="of each training, in the comparison")
    parser.add_argument("--rounds", type=int, default=3)
    asked = parser.parse_args()
    cores = len(os.sched_getaffinity(0))
    print(f"machine     {hardware()}; load before: {os.getloadavg()[0]:.2f}")
    print(
        f"work        {len(DENSITIES)} trainings, {sum(DENSITIES):.1f} dense ones' weights, {cores} processes"
    )
    with multiprocessing.get_context("spawn").Pool(cores, start) as pool:

        def seconds(program: Callable[[Work], None], iterations: int) -> float:
            began = time.perf_counter()
            for _ in pool.imap_unordered(program, [Work(d, iterations) for d in DENSITIES]):
                pass
            return time.perf_counter() - began

        if asked.whole:
            took = seconds(compiled, ITERATIONS)
            print(f"compiled    {took:.0f} s for all of it, {took / 60:.1f} minutes")
            return
        for program in (compiled, plain):
            seconds(program, EVERY)  # once without counting
        taken = [
            [seconds(program, asked.iterations) for program in (compiled, plain)] for _ in range(asked.rounds)
        ]
    ours, theirs = (median(column) for column in zip(*taken, strict=True))
    scale = ITERATIONS / asked.iterations / 60
    print(
        f"compiled    {ours:.2f} s for {asked.iterations} iterations each: {ours * scale:.1f} minutes for all"
    )
    print(f"plain       {theirs:.2f} s: {theirs * scale:.1f} minutes; ratio {theirs / ours:.1f}x")


if __name__ == "__main__":
    main()
