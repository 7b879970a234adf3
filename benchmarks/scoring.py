"""Time and memory of choosing a mask for ResNet-50, beside the pruners of Synaptic-Flow.

    git clone https://github.com/ganguli-lab/Synaptic-Flow
    python benchmarks/scoring.py --peer Synaptic-Flow

Both prune the same network (its architecture built of either's layers, the same weights, float64) on the same batch of
random images, globally, in one process of one thread per measurement, taking turns. Where batch norms see data, both
use the batch's statistics. Seconds are of CPU, which other work on the machine moves least; memory is the peak beyond
what the process holds before the network is built. The share of weights on which the two masks agree is printed, so
that nobody compares unlike things; without ``--peer`` natal runs alone.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import natal
from natal.pruning.criteria import traits

SPARSITY = 0.9
CRITERIA = {"snip": "SNIP", "grasp": "GraSP", "synflow": "SynFlow"}
STAGES = ((64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 2))


class Bottleneck(nn.Module):
    """1 x 1, 3 x 3, 1 x 1 and a skip, as in He et al. 2016."""

    def __init__(self, layers: Any, inputs: int, width: int, stride: int) -> None:
        super().__init__()

        def convolution(i: int, o: int, kernel: int, stride: int = 1) -> nn.Module:
            made: nn.Module = layers.Conv2d(i, o, kernel, stride=stride, padding=kernel // 2, bias=False)
            return made

        self.conv1, self.bn1 = convolution(inputs, width, 1), layers.BatchNorm2d(width)
        self.conv2, self.bn2 = convolution(width, width, 3, stride), layers.BatchNorm2d(width)
        self.conv3, self.bn3 = convolution(width, 4 * width, 1), layers.BatchNorm2d(4 * width)
        same = stride == 1 and inputs == 4 * width
        self.skip = nn.Sequential() if same else convolution(inputs, 4 * width, 1, stride)
        self.bn_skip = nn.Sequential() if same else layers.BatchNorm2d(4 * width)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.bn1(self.conv1(x)))
        h = torch.relu(self.bn2(self.conv2(h)))
        out: Tensor = torch.relu(self.bn3(self.conv3(h)) + self.bn_skip(self.skip(x)))
        return out


def resnet50(layers: Any) -> nn.Module:
    blocks: list[nn.Module] = []
    inputs = 64
    for width, count, stride in STAGES:
        for i in range(count):
            blocks.append(Bottleneck(layers, inputs, width, stride if i == 0 else 1))
            inputs = 4 * width
    return nn.Sequential(
        layers.Conv2d(3, 64, 7, stride=2, padding=3, bias=False),
        layers.BatchNorm2d(64),
        nn.ReLU(),
        nn.MaxPool2d(3, 2, 1),
        *blocks,
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        layers.Linear(inputs, 1000),
    ).double()


def problem(layers: Any, batch: int, side: int) -> tuple[nn.Module, tuple[Tensor, Tensor]]:
    """Return the network with the same weights whatever its layers, and the batch."""
    torch.manual_seed(0)
    model = resnet50(layers)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=(2 / parameter[0].numel()) ** 0.5)
            elif name.endswith("bias"):
                parameter.zero_()
    x = torch.randn(batch, 3, side, side, dtype=torch.float64)
    return model, (x, torch.arange(batch) % 1000)


def by_natal(criterion: str, rounds: int, batch: int, side: int) -> tuple[float, list[Tensor]]:
    traits["synflow"] = replace(traits["synflow"], rounds=rounds)
    model, data = problem(nn, batch, side)
    started = time.process_time()
    mask = natal.prune(model, SPARSITY, criterion, batch=data)
    return time.process_time() - started, list(mask.weights.values())


def by_peer(peer: str, criterion: str, rounds: int, batch: int, side: int) -> tuple[float, list[Tensor]]:
    sys.path.insert(0, peer)
    from Layers import layers  # type: ignore[import-not-found]
    from prune import prune_loop  # type: ignore[import-not-found]
    from Pruners import pruners  # type: ignore[import-not-found]
    from Utils import generator  # type: ignore[import-not-found]

    model, data = problem(layers, batch, side)
    started = time.process_time()
    torch.set_default_dtype(torch.float64)  # its SynFlow makes an input of the default type
    pruner = getattr(pruners, CRITERIA[criterion])(generator.masked_parameters(model))
    prune_loop(
        model,
        F.cross_entropy,
        pruner,
        [data],
        "cpu",
        1 - SPARSITY,
        "exponential",
        "global",
        rounds if criterion == "synflow" else 1,
        train_mode=criterion != "synflow",
    )
    seconds = time.process_time() - started
    return seconds, [mask.bool() for mask, _ in pruner.masked_parameters]


def measure(words: argparse.Namespace) -> None:
    """Measure one program once, in this process; print the numbers and leave the mask in a file."""
    torch.set_num_threads(1)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    sizes = (words.criterion, words.rounds, words.batch, words.side)
    seconds, masks = by_peer(words.peer, *sizes) if words.measure == "peer" else by_natal(*sizes)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    np.save(words.out, np.packbits(torch.cat([m.flatten() for m in masks]).numpy()))
    print(json.dumps({"seconds": seconds, "megabytes": peak / 1024}))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--peer", help="a checkout of ganguli-lab/Synaptic-Flow; it needs tqdm")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--side", type=int, default=224, help="of the square images")
    parser.add_argument("--rounds", type=int, default=10, help="of SynFlow; the paper's are 100")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--criteria", nargs="+", default=list(CRITERIA), choices=list(CRITERIA))
    for hidden in ("--measure", "--criterion", "--out"):
        parser.add_argument(hidden, help=argparse.SUPPRESS)
    words = parser.parse_args()
    if words.measure:
        measure(words)
        return
    print(
        f"{platform.processor() or platform.machine()}, torch {torch.__version__}, one thread; "
        f"ResNet-50, float64, batch {words.batch} of {words.side} x {words.side}, sparsity {SPARSITY}, SynFlow "
        f"{words.rounds} rounds; medians of {words.repeats}"
    )
    print(f"{'':8} {'natal':>18} {'Synaptic-Flow':>18} {'ratio':>12}  masks agree on")
    for criterion in words.criteria:
        compare(words, criterion)


def compare(words: argparse.Namespace, criterion: str) -> None:
    programs = ["natal", *(["peer"] if words.peer else [])]
    found: dict[str, list[dict[str, float]]] = {program: [] for program in programs}
    with TemporaryDirectory() as folder:
        for _ in range(words.repeats):
            for program in programs:
                found[program].append(once(words, criterion, program, folder))
        bits = [np.unpackbits(np.load(f"{folder}/{program}.npy")) for program in programs]
    numbers = {
        program: [median(run[what] for run in runs) for what in ("seconds", "megabytes")]
        for program, runs in found.items()
    }
    shown = [f"{seconds:6.1f} s {megabytes:6.0f} MB" for seconds, megabytes in numbers.values()]
    line = f"{criterion:8} {shown[0]:>18}"
    if words.peer:
        time_ratio, memory_ratio = (a / b for a, b in zip(numbers["natal"], numbers["peer"], strict=True))
        agree = float((bits[0] == bits[1]).mean())
        line += f" {shown[1]:>18} {time_ratio:5.2f} {memory_ratio:6.2f}  {agree:.6f}"
    print(line, flush=True)


def once(words: argparse.Namespace, criterion: str, program: str, folder: str) -> dict[str, float]:
    command = [
        sys.executable,
        __file__,
        "--measure",
        program,
        "--criterion",
        criterion,
        "--out",
        f"{folder}/{program}.npy",
    ]
    command += ["--batch", str(words.batch), "--side", str(words.side), "--rounds", str(words.rounds)]
    command += ["--peer", str(Path(words.peer).resolve())] if words.peer else []
    ran = subprocess.run(command, capture_output=True, text=True, check=True)
    numbers: dict[str, float] = json.loads(ran.stdout.strip().splitlines()[-1])
    return numbers


if __name__ == "__main__":
    main()
