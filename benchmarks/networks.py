"""Steps a second of natal's engines against a plain masked PyTorch loop, for the networks of the field.

    python benchmarks/networks.py [--rounds 5] [--seconds 2] [NETWORK ...]

Every core runs one single-threaded process of the same program at a time, and programs take turns: the plain loop
below, the engine ``torch``, and the engine that ``--engine auto`` takes where that is another one. Printed are, for
each network, the median over rounds of the steps that all cores do a second, what share of the plain loop's that is,
and the most memory that a process of the program took. Data are random where only their shape counts.
"""

from __future__ import annotations

import argparse
import copy
import functools
import multiprocessing
import platform
import resource
import statistics
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from machine import hardware
from natal.lab import birth
from natal.lab.engines import ENGINES, Setting, choose
from natal.lab.networks import born
from natal.lab.tasks import Data, Split, load, tasks
from natal.lab.trial import Trial
from natal.machine import cores
from natal.pruning.mask import Mask, prunable
from natal.pruning.select import select
from natal.study import Network, Task, Training

SPARSITY = 0.9
VALIDATION_ROWS = 100


@dataclass(frozen=True)
class Case:
    """A network on rows of one shape; ``shape`` None: the paper's modular task, all rows a step."""

    network: dict[str, Any]
    shape: tuple[int, ...] | None
    training: dict[str, Any]


ADAM = {"optimiser": "adam"}
SGD = {"optimiser": {"name": "sgd", "momentum": 0.9}}
CASES = {
    **{f"mlp-{n}-deep": Case({"network": "mlp", "hidden": [128] * n}, None, ADAM) for n in (2, 4, 8)},
    "lenet-300-100": Case({"network": "lenet-300-100"}, (1, 28, 28), {**ADAM, "batch": 60}),
    "lenet-5": Case({"network": "lenet-5"}, (1, 28, 28), {**SGD, "batch": 64}),
    "resnet-20-width-8": Case({"network": "resnet-20", "width": 8}, (3, 32, 32), {**SGD, "batch": 128}),
    "resnet-20-width-16": Case({"network": "resnet-20", "width": 16}, (3, 32, 32), {**SGD, "batch": 128}),
}


@functools.cache
def trial(name: str) -> Trial:
    """Return the network of a case under a random mask, about to be trained."""
    case, generator = CASES[name], torch.Generator().manual_seed(0)
    if case.shape is None:
        split = load(Task.model_validate("modular"), 1, 0.1)
    else:
        x, y = (
            torch.rand(2600, *case.shape, generator=generator),
            torch.randint(10, (2600,), generator=generator),
        )
        rows = torch.arange(2000 + VALIDATION_ROWS)
        split = Split(
            Data(x[:2100], y[:2100], x[2100:], y[2100:], 10),
            rows[VALIDATION_ROWS:],
            rows[:VALIDATION_ROWS],
            0.1,
        )
    net = born(Network.model_validate(case.network), split.data.shape, split.data.outputs, 1)
    scores = {name: torch.rand(w.shape, generator=generator) for name, w in prunable(net).items()}
    training = Training.model_validate({**case.training, "patience": "none", "target": "none"})
    return Trial(name, tasks["modular"], split, net, Mask(select(scores, SPARSITY)), training, 1e-3, seed=1)


# -- the programs ----------------------------------------------------------------------------------------------


def plain(name: str, steps: int) -> float:
    """Train by a loop as anyone writes it and return its seconds."""
    made = trial(name)
    rows = made.rows()
    (x, y), (val_x, val_y) = rows["fit"], rows["val"]
    x, val_x = x.contiguous(), val_x.contiguous()
    batch = made.training.batch or len(x)
    started = time.perf_counter()
    net = copy.deepcopy(made.network)
    masks = [(dict(net.named_parameters())[name], kept.float()) for name, kept in made.mask.items().items()]
    with torch.no_grad():
        for weight, kept in masks:
            weight.mul_(kept)
    optimiser: torch.optim.Optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    if made.training.optimiser.name == "sgd":
        optimiser = torch.optim.SGD(net.parameters(), lr=1e-3, momentum=0.9)
    net.train()
    done = 0
    while done < steps:
        order = torch.randperm(len(x)) if batch < len(x) else None
        for start in range(0, len(x), batch):
            inputs, targets = (x, y) if order is None else _taken(x, y, order[start : start + batch])
            optimiser.zero_grad()
            loss = F.cross_entropy(net(inputs), targets)
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            with torch.no_grad():
                for weight, kept in masks:
                    weight.mul_(kept)
            done += 1
            if done == steps:
                break
    _accuracy(net, val_x, val_y)
    return time.perf_counter() - started


def _taken(x: Tensor, y: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    return x[rows], y[rows]


@torch.no_grad()
def _accuracy(net: nn.Module, x: Tensor, y: Tensor) -> float:
    accuracy: float = (net.eval()(x).argmax(1) == y).float().mean().item()
    return accuracy


def engine(which: str, name: str, steps: int) -> float:
    """Train by an engine and return the seconds it says it took."""
    made = trial(name)
    training = made.training.model_copy(update={"length": f"{steps}it", "evaluate": f"{steps}it"})
    (trained,) = ENGINES[which].train([replace(made, training=training)], "cpu")
    seconds: float = trained.outcome.seconds
    return seconds


def run(program: str, name: str, steps: int) -> tuple[float, float]:
    """Return the seconds of so many steps and the most MiB that this process ever took."""
    torch.set_num_threads(1)
    seconds = plain(name, steps) if program == "plain" else engine(program, name, steps)
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


# -- taking turns ----------------------------------------------------------------------------------------------


def preferred(name: str) -> str:
    """Return the engine that ``auto`` takes for a case."""
    made = trial(name)
    macs = birth.multiply_adds(made.network, made.split)
    setting = Setting(made.task, made.network, made.split, made.training, macs)
    return choose("auto", setting, "cpu")[0].name


def compare(name: str, rounds: int, seconds: float) -> None:
    """Print a line for every program."""
    programs = list(dict.fromkeys(["plain", "torch", preferred(name)]))
    spawn = multiprocessing.get_context("spawn")
    processes = {
        program: [ProcessPoolExecutor(1, mp_context=spawn) for _ in range(cores())] for program in programs
    }

    def all_cores(program: str, steps: int) -> tuple[float, float]:
        futures = [process.submit(run, program, name, steps) for process in processes[program]]
        results = [future.result() for future in futures]
        return sum(steps / taken for taken, _ in results), max(memory for _, memory in results)

    few = 3
    rates = {program: [all_cores(program, few) for _ in range(2)][-1][0] / cores() for program in programs}
    found: dict[str, list[tuple[float, float]]] = {program: [] for program in programs}
    for _ in range(rounds):
        for program in programs:
            found[program].append(all_cores(program, max(few, round(rates[program] * seconds))))
    for pool in (pool for pools in processes.values() for pool in pools):
        pool.shutdown()
    medians = {program: statistics.median(rate for rate, _ in found[program]) for program in programs}
    for program in programs:
        memory = max(memory for _, memory in found[program])
        share = f"{medians[program] / medians['plain']:6.2f}"
        print(f"{name:20} {program:10} {medians[program]:10.1f} {share} {memory:8.0f}", flush=True)


def main(arguments: Sequence[str] | None = None) -> None:
    """Compare the networks named, or all."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "networks", nargs="*", metavar="NETWORK", help=f"of {', '.join(CASES)}; all if none is named"
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0, help="about how long a program has each turn")
    options = parser.parse_args(arguments)
    print(f"{hardware()}; Python {platform.python_version()}, torch {torch.__version__}")
    print(f"{'network':20} {'program':10} {'steps/s':>10} {'share':>6} {'peak MiB':>8}")
    for name in options.networks or CASES:
        compare(name, options.rounds, options.seconds)


if __name__ == "__main__":
    main()
