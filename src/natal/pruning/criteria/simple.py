"""Criteria that look at the weights alone."""

from __future__ import annotations

import torch
from torch import Tensor

from natal.pruning.criteria.problem import Problem, Scores, criterion
from natal.pruning.mask import unit_axes
from natal.streams import uniform


@criterion("random")
def random(problem: Problem) -> Scores:
    """Uniform draws from the stream ``mask``, independent of the initial weights."""
    generator = problem.stream("mask")
    return {name: uniform(w.shape, generator).to(w.device) for name, w in problem.weights.items()}


@criterion("init-stream")
def init_stream(problem: Problem) -> Scores:
    """Uniform draws from the very stream that drew the initial weights: the published program's "random".

    Its mask generator was seeded with the number that seeded the initialisation, so the first layer's scores
    are the uniforms behind its weights, and "random" keeps the most positive of them. Only for the study
    ``as-published``, with the scope ``threshold``.
    """
    generator = problem.stream("init")
    return {name: uniform(w.shape, generator).to(w.device) for name, w in problem.weights.items()}


@criterion("magnitude")
def magnitude(problem: Problem) -> Scores:
    """|θ₀|: the absolute initial weight (Janowsky 1989; Han et al. 2015, §3).

    Under ``nn.Linear``'s initialisation the layers' scales differ, so a global scope can remove a layer
    whole.
    """
    return {name: w.abs() for name, w in problem.weights.items()}


@criterion("init-magnitude")
def init_magnitude(problem: Problem) -> Scores:
    """|θ₀| · √fan_in: magnitude in units of the initialisation's scale, so that layers compete on equal
    terms.

    fan_in: inputs of one unit, kernel included. natal's own baseline: what `magnitude` measures once the
    1/√fan_in of PyTorch's, LeCun's and He's initialisations is divided out.
    """
    axes = unit_axes(problem.model)
    return {name: w.abs() * (w.numel() / w.shape[axes[name]]) ** 0.5 for name, w in problem.weights.items()}


@criterion("lamp")
def lamp(problem: Problem) -> Scores:
    """w_u² / Σ_{v: w_v² ≥ w_u²} w_v², the sum over the same layer (LAMP; Lee et al. 2021).

    The largest weight of a layer scores 1, so a global scope never empties a layer while another holds two
    weights. Equal weights are put in order of position, as in the authors' code. A layer of zeros scores 0.
    """
    return {name: _lamp(w) for name, w in problem.weights.items()}


def _lamp(w: Tensor) -> Tensor:
    squares = w.flatten().to(torch.float64).square()
    order = squares.argsort(stable=True)
    at_least_as_large = squares[order].flip(0).cumsum(0).flip(0)
    scores = torch.empty_like(squares)
    scores[order] = squares[order] / at_least_as_large.clamp_min(torch.finfo(torch.float64).tiny)
    return scores.view(w.shape)
