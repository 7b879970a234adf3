"""Pruning criteria: each a pure function from a `Problem` to one score per prunable weight; higher = keep.

A new one is a decorated function::

    @criterion("smallest")
    def smallest(problem: Problem) -> Scores:
        "Keeps the smallest weights."
        return {name: -w.abs() for name, w in problem.weights.items()}

``@criterion("mine", needs="data", rounds=100)`` is called 100 times, each time on what the last cut left.
docs/criteria.md lists them all: formula, source, cost, what they need.
"""

from natal.pruning.criteria.flow import ntk_sap, phew, redraw, synflow
from natal.pruning.criteria.gradient import (
    force,
    grasp,
    grasp_absolute,
    grasp_published,
    iterative_snip,
    prospr,
    prospr_published,
    snip,
)
from natal.pruning.criteria.problem import (
    Criterion,
    Problem,
    Scores,
    Traits,
    criteria,
    criterion,
    gradient,
    leaves,
    traits,
)
from natal.pruning.criteria.simple import init_magnitude, init_stream, lamp, magnitude, random

__all__ = [
    "Criterion",
    "Problem",
    "Scores",
    "Traits",
    "criteria",
    "criterion",
    "force",
    "gradient",
    "grasp",
    "grasp_absolute",
    "grasp_published",
    "init_magnitude",
    "init_stream",
    "iterative_snip",
    "lamp",
    "leaves",
    "magnitude",
    "ntk_sap",
    "phew",
    "prospr",
    "prospr_published",
    "random",
    "redraw",
    "snip",
    "synflow",
    "traits",
]
