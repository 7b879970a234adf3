"""How stable a mask is: what one weight more or fewer does to it, and how far natal's departures reach.

    python benchmarks/stability.py

Two networks, LeNet-300-100 and a small VGG with batch norm, on Gaussian images with random labels; global scope.
Printed are intersections over unions of the kept weights, the mean of three seeds: of the masks at 90 % and at one
weight more removed, and of each criterion that departs from its authors' program and that program's (both at 90 %).
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from statistics import mean

import torch
from torch import nn

import natal
from natal import Mask
from natal.pruning.criteria import criteria, traits

SPARSITY, ROWS, SEEDS = 0.9, 32, (0, 1, 2)


def lenet() -> nn.Module:
    return nn.Sequential(
        nn.Flatten(), nn.Linear(784, 300), nn.ReLU(), nn.Linear(300, 100), nn.ReLU(), nn.Linear(100, 10)
    )


def vgg() -> nn.Module:
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise((1, 8, 16, 32)):
        layers += [nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]
        layers += [nn.Conv2d(outputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]
        layers += [nn.MaxPool2d(2)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(32 * 9, 10))


NETWORKS: dict[str, Callable[[], nn.Module]] = {"LeNet-300-100": lenet, "VGG": vgg}
DEPARTURES = {"prospr": "prospr-published", "grasp": "grasp-published"}


def overlap(a: Mask, b: Mask) -> float:
    """Return the intersection over union of what two masks keep."""
    pairs = [(a.weights[name], b.weights[name]) for name in a.weights]
    return sum(int((k & m).sum()) for k, m in pairs) / sum(int((k | m).sum()) for k, m in pairs)


def measured(make: Callable[[], nn.Module], seed: int) -> dict[str, float]:
    """Return the overlaps of one network drawn with one seed, by criterion or pair of criteria."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model, x, y = make(), torch.randn(ROWS, 1, 28, 28), torch.randint(10, (ROWS,))

    def prune(name: str, sparsity: float) -> Mask:
        return natal.prune(model, sparsity, name, batch=(x, y), seed=seed)

    found: dict[str, float] = {}
    masks = {}
    for name in criteria:
        if name != "init-stream":
            masks[name] = mask = prune(name, SPARSITY)
            # half a weight beyond the next, so that no rounding decides
            one_more = (mask.total - mask.kept + 1.5) / mask.total
            found[name] = overlap(mask, prune(name, one_more))
    return found | {f"{a} against {b}": overlap(masks[a], masks[b]) for a, b in DEPARTURES.items()}


def main() -> None:
    tables = {name: [measured(make, seed) for seed in SEEDS] for name, make in NETWORKS.items()}
    print(f"{'':34}{'rounds':>7}" + "".join(f"{name:>15}" for name in NETWORKS))
    for row in next(iter(tables.values()))[0]:
        rounds = traits[row].rounds if row in traits else ""
        overlaps = "".join(f"{mean(table[row] for table in found):15.2f}" for found in tables.values())
        print(f"{row:34}{rounds:>7}{overlaps}")


if __name__ == "__main__":
    main()
