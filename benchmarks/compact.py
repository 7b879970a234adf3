"""What physical removal saves: ``python benchmarks/compact.py``.

The baseline is the masked network, whose dense kernels multiply by its zeros. Prints the machine, the
versions, and for every case parameters, multiply-adds and median latency before and after.
"""

from __future__ import annotations

import os
import platform
import time
from pathlib import Path

import torch
from torch import Tensor, nn

from natal.compaction import compact, savings
from natal.flow import masked
from natal.masks import Mask, prunable, select, select_units
from natal.nets import mlp


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


def by_unit(net: nn.Module, sparsity: float) -> Mask:
    """Remove the share ``sparsity`` of every hidden layer's units, smallest L2 norm first."""
    weights = prunable(net)
    scores = {name: w.flatten(1).norm(dim=1) for name, w in list(weights.items())[:-1]}
    rows = select_units(scores, sparsity, "layerwise")
    kept = {n: torch.ones_like(w, dtype=torch.bool) for n, w in weights.items()}
    for name, units in rows.items():
        kept[name] &= units.view(-1, *[1] * (kept[name].ndim - 1))
    return Mask(kept, {name.removesuffix("weight") + "bias": units for name, units in rows.items()})


def by_weight(net: nn.Module, sparsity: float) -> Mask:
    """Remove weights at random."""
    generator = torch.Generator().manual_seed(1)
    return Mask(
        select({n: torch.rand(w.shape, generator=generator) for n, w in prunable(net).items()}, sparsity)
    )


def processor() -> str:
    """Return the processor's name as the kernel gives it, where it does."""
    info = Path("/proc/cpuinfo")
    names = [x for x in info.read_text().splitlines() if x.startswith("model name")] if info.exists() else []
    return names[0].partition(":")[2].strip() if names else platform.processor()


def main() -> None:
    """Print every case."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    print(f"{processor()}, {os.cpu_count()} cores, 1 thread used; {platform.platform()}")
    print(f"python {platform.python_version()}, torch {torch.__version__}")
    image, row = torch.randn(16, 3, 32, 32), torch.randn(4096, 194)
    cases: list[tuple[str, nn.Module, Tensor, Mask]] = []
    for sparsity in (0.5, 0.9):
        net: nn.Module = mlp(194, 128, 97, seed=0)
        cases.append((f"study network, {sparsity:.0%} of neurons", net, row, by_unit(net, sparsity)))
    net = mlp(194, 128, 97, seed=0)
    cases.append(("study network, 99% of weights at random", net, row, by_weight(net, 0.99)))
    for sparsity in (0.5, 0.9):
        net = vgg(32).eval()
        cases.append((f"VGG-like, {sparsity:.0%} of channels", net, image, by_unit(net, sparsity)))
    for title, net, example, mask in cases:
        start = time.perf_counter()
        small = compact(net, mask)
        taken = time.perf_counter() - start
        before = masked(net, mask)
        with torch.no_grad():
            error = (before(example) - small(example)).abs().max().item()
        print(f"\n{title} (compacted in {taken * 1e3:.0f} ms, outputs differ by at most {error:.1e})")
        print(savings(before, small, example))


if __name__ == "__main__":
    main()
