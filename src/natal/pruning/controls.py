"""The controls of masks of weights; those of whole neurons stand with them in `natal.pruning.choose`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from natal.pruning.criteria.flow import redraw
from natal.pruning.criteria.problem import Problem
from natal.pruning.grid import Granularity, grid_of, two_of_four
from natal.pruning.mask import Mask
from natal.pruning.select import keep_highest
from natal.streams import uniform


def shuffle(chosen: Mask, problem: Problem, granularity: Granularity) -> Mask:
    """Permute the mask within each layer: its weights or groups, and under 2:4 each four."""
    generator = problem.stream("shuffle")
    if granularity == "weight":
        return Mask(redraw(chosen.weights, generator))
    if granularity == "2:4":
        return _random_fours(chosen, problem, "shuffle")
    grids = {name: grid_of(granularity, kept.shape) for name, kept in chosen.weights.items()}
    moved = redraw({name: grid.any(chosen.weights[name]) for name, grid in grids.items()}, generator)
    return Mask({name: grid.spread(moved[name]) for name, grid in grids.items()})


def quota_random(chosen: Mask, problem: Problem, granularity: Granularity) -> Mask:
    """Keep as many weights or groups of each layer, at random."""
    if granularity == "2:4":
        return _random_fours(chosen, problem, "quota-random")
    generator = problem.stream("quota-random")  # not the stream of `random`: its control would be a copy
    drawn = {}
    for name, kept in chosen.weights.items():
        grid = grid_of(granularity, kept.shape)
        groups = kept if granularity == "weight" else grid.any(kept)
        draws = {name: uniform(groups.shape, generator).to(kept.device)}
        best = keep_highest(draws, groups.numel() - int(groups.sum()))[name]
        drawn[name] = best if granularity == "weight" else grid.spread(best)
    return Mask(drawn)


def reinit(chosen: Mask, problem: Problem, granularity: Granularity) -> Mask:
    """Keep the mask, redraw the weights."""
    return replace(chosen, redrawn=redraw(problem.initial, problem.stream("reinit")))


def _random_fours(chosen: Mask, problem: Problem, purpose: str) -> Mask:
    generator = problem.stream(purpose)
    return Mask(
        {
            name: two_of_four(uniform(kept.shape, generator).to(kept.device), 0.5)
            for name, kept in chosen.weights.items()
        }
    )


CONTROLS: Mapping[str, Callable[[Mask, Problem, Granularity], Mask]] = {
    "shuffle": shuffle,
    "quota-random": quota_random,
    "reinit": reinit,
}
