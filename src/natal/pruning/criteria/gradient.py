"""Criteria that differentiate the training loss on one batch; formulas checked against the authors' code."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from natal.errors import NatalError
from natal.pruning.criteria.problem import Problem, Scores, criterion, gradient, leaves

ROUNDS = 60
"""Rounds of iterative SNIP and FORCE: ``--num_steps 60`` in the commands of the authors' README."""


@criterion("snip", needs="data")
def snip(problem: Problem) -> Scores:
    """|θ ⊙ ∂L/∂θ| = |∂L(c ⊙ θ)/∂c| at c = 1: connection sensitivity (SNIP; Lee et al. 2019).

    Departures from namhoonlee/snip-public: the weights scored are the weights trained, while the authors' code
    scores another draw; scores are not divided by their sum, which changes no rank.
    """
    θ = leaves(problem.weights)
    g = gradient(problem.loss_at(θ), θ)
    return {name: (problem.weights[name] * g[name]).abs() for name in θ}


@criterion("iterative-snip", needs="data", rounds=ROUNDS)
def iterative_snip(problem: Problem) -> Scores:
    """|θ̄ ⊙ ∂L/∂θ̄| on the network pruned so far, 60 rounds (iterative SNIP; de Jorge et al. 2021;
    Verdenius et al. 2020).

    θ̄ = m ⊙ θ₀, so a removed weight scores 0 and stays removed. Departure from naver/force: every round sees
    the same batch, where the authors' code draws a new one.
    """
    return snip(problem)


@criterion("force", needs="data", rounds=ROUNDS, returns=True)
def force(problem: Problem) -> Scores:
    """|θ₀ ⊙ ∂L/∂θ̄| with θ̄ = m ⊙ θ₀, 60 rounds: a removed weight may return (FORCE; de Jorge et al. 2021).

    The gradient is taken in the pruned network, also for weights that are absent from it, and weighted by
    what they would be if they were there. Masks of two sparsities need not be nested. Departure: as in
    `iterative_snip`.
    """
    θ = leaves(problem.weights)
    g = gradient(problem.loss_at(θ), θ)
    return {name: (problem.initial[name] * g[name]).abs() for name in θ}


TEMPERATURE = 200
"""GraSP divides the logits by this (``T=200`` in the authors' code)."""


def _hessian_gradient(problem: Problem) -> dict[str, Tensor]:
    """Return θ ⊙ Hg: g = ∂L/∂θ and H = ∂²L/∂θ² of the loss of f / T, H times g as ∂(gᵀ stop(g))/∂θ."""
    θ = leaves(problem.weights)
    g = gradient(problem.loss_of(problem.logits(θ) / TEMPERATURE), θ, create_graph=True)
    Hg = _hessian_product(g, {name: one.detach() for name, one in g.items()}, θ)
    return {name: problem.weights[name] * Hg[name] for name in θ}


def _hessian_product(g: Scores, v: Scores, θ: Scores) -> dict[str, Tensor]:
    """Return Hv = ∂(gᵀ v)/∂θ, g being a gradient in θ with its graph."""
    gv = sum((g[name] * v[name]).sum() for name in θ)
    assert isinstance(gv, Tensor)
    # where the loss is linear in the weights there is no graph left: H is zero
    return gradient(gv, θ) if gv.requires_grad else {name: 0 * w.detach() for name, w in θ.items()}


@criterion("grasp", needs="data")
def grasp(problem: Problem) -> Scores:
    """θ ⊙ Hg, signed: keeps what preserves the gradient norm (GraSP; Wang et al. 2020).

    To first order, removing weight q changes gᵀg by −2 θ_q (Hg)_q, and GraSP removes the *largest* −θ ⊙ Hg:
    weights whose removal raises the gradient norm go first. Logits are divided by T = 200. Departures from
    alecwangcq/GraSP: g and H are those of the whole batch, where the authors add up two half batches
    (`grasp_published`); and the weights scored are the weights trained, where theirs redraws the linear layers.
    """
    return _hessian_gradient(problem)


@criterion("grasp-published", needs="data")
def grasp_published(problem: Problem) -> Scores:
    """θ ⊙ (H₁ + H₂)(g₁ + g₂), signed, of two half batches (the program of GraSP; Wang et al. 2020).

    What alecwangcq/GraSP computes, to save memory: four times `grasp` where rows do not meet, but with batch norm each
    half has statistics of its own. Of an odd number of rows the second half has one more. Departure: the weights scored
    are the weights trained.
    """
    θ = leaves(problem.weights)
    halves = _halves(problem)
    losses = (half.loss_of(half.logits(θ) / TEMPERATURE) for half in halves)
    gradients = [gradient(loss, θ) for loss in losses]
    g = {name: gradients[0][name] + gradients[1][name] for name in θ}
    total = {name: torch.zeros_like(w) for name, w in problem.weights.items()}
    for half in halves:
        g_half = gradient(half.loss_of(half.logits(θ) / TEMPERATURE), θ, create_graph=True)
        for name, Hg in _hessian_product(g_half, g, θ).items():
            total[name] += problem.weights[name] * Hg
    return total


def _halves(problem: Problem) -> tuple[Problem, Problem]:
    x, y = problem.inputs, problem.targets
    if not (isinstance(x, Tensor) and isinstance(y, Tensor)) or len(x) < 2 or len(x) != len(y):
        raise NatalError(
            "criterion 'grasp-published' halves the batch: give a tensor of inputs and one of targets, with as many "
            "rows, two at least; or use 'grasp'"
        )
    n = len(x) // 2
    return replace(problem, inputs=x[:n], targets=y[:n]), replace(problem, inputs=x[n:], targets=y[n:])


@criterion("grasp-absolute", needs="data")
def grasp_absolute(problem: Problem) -> Scores:
    """|θ ⊙ Hg|: weights that change the gradient norm least go first (Frankle et al. 2021, "Missing the Mark").

    They report it to be better than the signed score, and published no code for it.
    """
    return {name: score.abs() for name, score in _hessian_gradient(problem).items()}


STEPS, LEARNING_RATE, MOMENTUM = 3, 0.5, 0.9
"""ProsPr's inner training (the authors' README; their command line's own defaults are 0.1 and no
momentum)."""


@criterion("prospr", needs="data")
def prospr(problem: Problem) -> Scores:
    """|∂L(θ_M)/∂c|, where θ_0 = c ⊙ θ and SGD took M = 3 steps from there (ProsPr; Alizadeh et al. 2022).

    θ_{t+1} = θ_t − α v_{t+1}, v_{t+1} = μ v_t + ∂L/∂θ_t, with α = 0.5 and μ = 0.9; biases and norms learn
    too. The derivative is taken through all steps. With M = 0 it is SNIP. Departures from mil-ad/prospr:
    every step sees the whole batch, where the authors' code draws a new one; and their code detaches v_1,
    which drops a term of the derivative (`prospr_published`).
    """
    return _through_training(problem, whole=True)


@criterion("prospr-published", needs="data")
def prospr_published(problem: Problem) -> Scores:
    """As `prospr`, but v_1 is taken to be a constant (the program of ProsPr; Alizadeh et al. 2022).

    What mil-ad/prospr computes: like ``torch.optim.SGD`` it starts the momentum from a detached copy of the gradient,
    so the first step passes on no derivative. Departure: every step sees the whole batch.
    """
    return _through_training(problem, whole=False)


def _through_training(problem: Problem, *, whole: bool) -> dict[str, Tensor]:
    c = {name: w.new_ones(w.shape).requires_grad_() for name, w in problem.weights.items()}
    others = {name: p for name, p in problem.parameters().items() if name not in c}
    θ = {name: c[name] * w for name, w in problem.weights.items()} | leaves(others)
    v = {name: w.new_zeros(()) for name, w in θ.items()}
    for step in range(STEPS):
        g = gradient(problem.loss_at(θ), θ, create_graph=True)
        if step == 0 and not whole:
            g = {name: one.detach() for name, one in g.items()}
        v = {name: MOMENTUM * v[name] + g[name] for name in θ}
        θ = {name: θ[name] - LEARNING_RATE * v[name] for name in θ}
    return {name: g.abs() for name, g in gradient(problem.loss_at(θ), c).items()}
