"""What physical removal saves: ``python benchmarks/compact.py``.

The baseline is the masked network, whose dense kernels multiply by its zeros. Prints the machine, the
versions, and for every case parameters, multiply-adds and median latency before and after.
"""

from __future__ import annotations

import os
import platform
import time
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from natal.lab.networks import born
from natal.pruning.apply import prune
from natal.pruning.compaction import compact
from natal.pruning.mask import Mask
from natal.pruning.masked import masked
from natal.pruning.savings import savings

REPEATS = 100


def vgg(width: int) -> nn.Sequential:
    """A VGG-like network for (rows, 3, 32, 32), four blocks of convolution, batch norm, ReLU and pooling."""
    layers: list[nn.Module] = []
    channels = [3, width, 2 * width, 4 * width, 4 * width]
    for i in range(4):
        layers += [
            nn.Conv2d(channels[i], channels[i + 1], 3, padding=1),
            nn.BatchNorm2d(channels[i + 1]),
            nn.ReLU(),
        ]
        layers += [nn.MaxPool2d(2)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(4 * 4 * width, 10))


def processor() -> str:
    """Return the processor's name as the kernel gives it, where it does."""
    info = Path("/proc/cpuinfo")
    names = [x for x in info.read_text().splitlines() if x.startswith("model name")] if info.exists() else []
    return names[0].partition(":")[2].strip() if names else platform.processor()


def main() -> None:
    """Print every case, then the speed-ups side by side."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    print(f"{processor()}, {os.cpu_count()} cores, 1 thread used; {platform.platform()}")
    print(f"python {platform.python_version()}, torch {torch.__version__}")
    print(
        f"baseline: the masked network, whose dense kernels multiply by its zeros; medians of {REPEATS} runs"
    )
    image, row = torch.randn(16, 3, 32, 32), torch.randn(4096, 194)
    study, images = born("mlp", (194,), 97, seed=0), vgg(32).eval()
    structured = partial(prune, criterion="magnitude", scope="layerwise", granularity="neuron")
    cases: list[tuple[str, nn.Module, Tensor, Mask]] = [
        ("study network, 50 % of neurons", study, row, structured(study, 0.5)),
        ("study network, 90 % of neurons", study, row, structured(study, 0.9)),
        ("study network, 99 % of weights at random", study, row, prune(study, 0.99, "random")),
        ("VGG-like, 50 % of channels", images, image, structured(images, 0.5)),
        ("VGG-like, 90 % of channels", images, image, structured(images, 0.9)),
    ]
    summary = []
    for title, net, example, mask in cases:
        start = time.perf_counter()
        small = compact(net, mask)
        taken = time.perf_counter() - start
        before = masked(net, mask)
        with torch.no_grad():
            error = (before(example) - small(example)).abs().max().item()
        saved = savings(before, small, example, REPEATS)
        print(f"\n{title} (compacted in {taken * 1e3:.0f} ms, outputs differ by at most {error:.1e})")
        print(saved)
        work, seconds = (pair[0] / pair[1] for pair in (saved.multiply_adds, saved.seconds))
        summary.append(f"{title:<42} {seconds:5.2f} times as fast, {work:6.2f} times fewer multiply-adds")
    print("", *summary, sep="\n")


if __name__ == "__main__":
    main()
