"""Pruning criteria: each a pure function from a `Problem` to one score per prunable weight; higher = keep.

A new one is a decorated function::

    @criterion("smallest")
    def smallest(problem: Problem) -> Scores:
        "Keeps the smallest weights."
        return {name: -w.abs() for name, w in problem.weights.items()}
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from natal.errors import NatalError
from natal.masks import Mask, dense, prunable, remove_neurons, select, select_units
from natal.registry import Registry
from natal.spec import Recipe
from natal.streams import stream

Scores = Mapping[str, Tensor]
"""One score per prunable weight, by parameter name, in the weight's shape; higher = keep."""


@dataclass(frozen=True)
class Problem:
    """What a criterion may look at: a network at initialisation and the data it will be trained on.

    ``model``: a private copy. ``weights``: its prunable weights by parameter name. ``inputs``, ``targets``, ``loss``:
    the training rows and the loss, absent for a data-free use. ``seed``: the run's; draw from
    ``problem.stream("mask")``, never from the global generator.
    """

    model: nn.Module
    weights: Mapping[str, Tensor]
    seed: int
    inputs: Tensor | None = None
    targets: Tensor | None = None
    loss: Callable[[Tensor, Tensor], Tensor] | None = None

    def stream(self, purpose: str) -> torch.Generator:
        """Return this run's generator for one purpose; see `natal.streams.stream`."""
        return stream(self.seed, purpose)


Criterion = Callable[[Problem], Scores]
criteria: Registry[Criterion] = Registry("criterion")


def criterion(name: str) -> Callable[[Criterion], Criterion]:
    """Register the decorated function as the criterion ``name``."""
    return criteria.register(name)


@criterion("magnitude")
def magnitude(problem: Problem) -> Scores:
    """|θ₀|: the absolute initial weight (Janowsky 1989; Han et al. 2015, §3).

    Under ``nn.Linear``'s initialisation the layers' scales differ, so a global scope can remove a layer whole.
    """
    return {name: w.abs() for name, w in problem.weights.items()}


@criterion("random")
def random(problem: Problem) -> Scores:
    """Uniform draws from the stream ``mask``, independent of the initial weights."""
    generator = problem.stream("mask")
    return {name: torch.rand(w.shape, generator=generator) for name, w in problem.weights.items()}


def score(name: str, problem: Problem) -> Scores:
    """Return the scores of criterion ``name``, checked: one finite number for every prunable weight.

    Raises NatalError naming the criterion and the layer otherwise.
    """
    scores = criteria[name](problem)
    if not isinstance(scores, Mapping) or set(scores) != set(problem.weights):
        got = sorted(scores) if isinstance(scores, Mapping) else type(scores).__name__
        raise NatalError(f"criterion {name!r} must return one tensor for each of {sorted(problem.weights)}, got {got}")
    for layer, w in problem.weights.items():
        if not isinstance(scores[layer], Tensor) or scores[layer].shape != w.shape:
            shape = tuple(scores[layer].shape) if isinstance(scores[layer], Tensor) else type(scores[layer]).__name__
            raise NatalError(f"criterion {name!r} gave {layer!r} scores of shape {shape}; "
                             f"its weights have shape {tuple(w.shape)}")
        if scores[layer].isnan().any():
            raise NatalError(f"criterion {name!r} gave {layer!r} scores that are NaN")
    return {layer: scores[layer].detach() for layer in problem.weights}


def mask(recipe: Recipe, problem: Problem, sparsity: float) -> Mask:
    """Return the mask a recipe chooses for a problem.

    Sparsity 0 is the dense network whatever the recipe. With neuron granularity a neuron's score is the L2 norm of
    its incoming weights' scores and ``sparsity`` is the share of neurons removed from each hidden layer; the output layer's
    neurons stay.
    """
    if sparsity == 0:
        return dense(problem.weights)
    scores = score(recipe.criterion, problem)
    if recipe.granularity == "weight":
        return Mask(select(scores, sparsity, recipe.scope))
    hidden = {name: scores[name].norm(dim=1) for name in list(scores)[:-1]}
    return remove_neurons(problem.weights, select_units(hidden, sparsity, recipe.scope))


def problem_of(model: nn.Module, seed: int, **data: object) -> Problem:
    """Return the problem of pruning ``model``; see `Problem` for ``inputs``, ``targets`` and ``loss``."""
    return Problem(model=model, weights=prunable(model), seed=seed, **data)  # type: ignore[arg-type]
