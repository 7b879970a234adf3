"""A target in multiply-adds, parameters or measured time instead of a sparsity.

The sparsity is searched: multiply-adds and parameters are counted exactly from the graph for every candidate, time
is measured on compacted networks.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from natal.errors import NatalError
from natal.pruning.graph.capture import arguments, on_cpu
from natal.pruning.graph.exact import gets_narrow
from natal.pruning.graph.units import Graph
from natal.pruning.mask import Mask
from natal.registry import did_you_mean


@dataclass(frozen=True)
class Floors:
    """What every group of units keeps in any case.

    ``multiple_of``: each keeps a multiple of this many units, where it has so many. ``at_least``: a number of units
    for all, or by group; a share of them below 1. ``whole``: groups that keep all their units.
    """

    multiple_of: int = 1
    at_least: int | float | Mapping[str, int | float] = 1
    whole: frozenset[str] = frozenset()

    def check(self, groups: Iterable[str]) -> None:
        """Raise NatalError for a floor that no group has."""
        groups = list(groups)
        if (
            isinstance(self.multiple_of, bool)
            or not isinstance(self.multiple_of, int)
            or self.multiple_of < 1
        ):
            raise NatalError(f"multiple_of must be a whole number above 0, got {self.multiple_of!r}")
        by_group = self.at_least if isinstance(self.at_least, Mapping) else {"": self.at_least}
        for name, floor in by_group.items():
            if name and _named(name, groups) is None:
                raise NatalError(f"at_least names no group of units {name!r}{did_you_mean(name, groups)}")
            if isinstance(floor, bool) or not isinstance(floor, int | float) or floor < 0:
                raise NatalError(f"at_least must be a number of units or a share of them, got {floor!r}")

    def least(self, name: str, count: int) -> int:
        """Return the fewest units that a group of so many keeps."""
        floor: int | float = 1
        if name in self.whole:
            return count
        if isinstance(self.at_least, Mapping):
            floor = next((v for k, v in self.at_least.items() if name in (k, f"{k}.weight")), 1)
        else:
            floor = self.at_least
        least = round(floor * count) if isinstance(floor, float) and floor < 1 else int(floor)
        return min(max(least, 1), count)

    @on_cpu
    def raised(self, kept: Mapping[str, Tensor], scores: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the units that stay when every group keeps what it must: the best of those that were to go
        return."""
        raised = {}
        for name, stays in kept.items():
            count = max(int(stays.sum()), self.least(name, len(stays)))
            count = min(-(-count // self.multiple_of) * self.multiple_of, len(stays))
            best = torch.zeros_like(stays)
            order = (
                scores[name]
                .double()
                .masked_fill(stays.to(scores[name].device), torch.inf)
                .argsort(stable=True)
            )
            best[order[len(stays) - count :].to(best.device)] = True
            raised[name] = best
        return raised


def _named(name: str, groups: Iterable[str]) -> str | None:
    return next((n for n in (name, f"{name}.weight") if n in groups), None)


@dataclass(frozen=True)
class Target:
    """What a pruned network may still cost: ``share`` of the dense one's ``macs``, ``params`` or ``latency``."""

    of: str
    share: float

    @classmethod
    def given(cls, macs: float | None, params: float | None, latency: float | None) -> Target | None:
        """Return the one target that is given, if any."""
        named = {"macs": macs, "params": params, "latency": latency}
        found = [(name, share) for name, share in named.items() if share is not None]
        if len(found) > 1:
            raise NatalError(f"give one target, not {' and '.join(name for name, _ in found)}")
        for name, share in found:
            if isinstance(share, bool) or not isinstance(share, int | float) or not 0 < share <= 1:
                raise NatalError(
                    f"{name} must be the share of the dense network's that is left, above 0 and at most 1, "
                    f"got {share!r}"
                )
        return cls(*found[0]) if found else None


@on_cpu
def reached(graph: Graph, model: nn.Module, units: Mapping[str, Tensor]) -> dict[str, float]:
    """Return the shares of multiply-adds and parameters that are left without some units, counted exactly."""
    needed = torch.ones(len(graph.root), dtype=torch.bool)
    by_name = {group.name: group for group in graph.groups(None) if len(group)}
    by_name |= {group.name: group for key in graph._groups.values() for group in key if len(group)}
    for name, stays in units.items():
        needed[by_name[name].units[~stays.cpu()]] = False
    everything = torch.ones_like(needed)
    whole = {
        name
        for name, (axis, _) in graph.found.norms.items()
        if not gets_narrow(model.get_submodule(name), axis)
    }
    names: dict[bool, list[str]] = {True: [], False: []}
    for name, _ in model.named_parameters():
        names[name.rpartition(".")[0] in whole].append(graph.alias[name])
    size = graph.size(needed, names[False]) + graph.size(everything, names[True])
    return {
        "macs": graph.multiply_adds(needed) / max(graph.multiply_adds(everything), 1),
        "params": size / graph.size(everything, [*names[False], *names[True]]),
    }


def search(
    target: Target,
    candidate: Callable[[float], Mask],
    cost: Callable[[Mask], float],
    units: int,
) -> Mask:
    """Return the mask of the smallest sparsity whose cost is within the target; raise NatalError if none is."""
    low, high = 0, units - 1
    best: Mask | None = None
    while low <= high:
        middle = (low + high) // 2
        try:
            mask = candidate(middle / units)
        except NatalError:  # so many would leave a layer without a unit
            if not middle:
                raise
            high = middle - 1
            continue
        if cost(mask) <= target.share:
            best, high = mask, middle - 1
        else:
            low = middle + 1
    if best is None:
        raise NatalError(
            f"{target.of}={target.share:g} cannot be reached: with one unit a layer, what stays costs more; raise it, "
            "lower multiple_of or at_least, or see the warning for what is kept whole"
        )
    return best


def measured(whole: nn.Module, example: Any, repeats: int = 7) -> float:
    """Return the median time of a forward pass, after one that warms up."""
    args, kwargs = arguments(example)
    taken = []
    with torch.inference_mode(), torch.random.fork_rng():
        for _ in range(repeats + 1):
            start = time.perf_counter()
            whole(*args, **kwargs)
            taken.append(time.perf_counter() - start)
    return statistics.median(taken[1:])
