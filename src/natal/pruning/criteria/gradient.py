"""Criteria that differentiate the training loss on one batch; formulas checked against the authors' code."""

from __future__ import annotations

from torch import Tensor

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
    gg = sum((g[name] * g[name].detach()).sum() for name in θ)
    assert isinstance(gg, Tensor)
    # where the loss is linear in the weights there is no graph left: H is zero
    Hg = gradient(gg, θ) if gg.requires_grad else {name: 0 * w for name, w in θ.items()}
    return {name: problem.weights[name] * Hg[name].detach() for name in θ}


@criterion("grasp", needs="data")
def grasp(problem: Problem) -> Scores:
    """θ ⊙ Hg, signed: keeps what preserves the gradient norm (GraSP; Wang et al. 2020).

    To first order, removing weight q changes gᵀg by −2 θ_q (Hg)_q, and GraSP removes the *largest* −θ ⊙ Hg:
    weights whose removal raises the gradient norm go first. Logits are divided by T = 200. Departures from
    alecwangcq/GraSP: g and H are those of the whole batch, where the authors add up two half batches to save
    memory (four times this, without batch norm); and the weights scored are the weights trained, where theirs
    redraws the linear layers.
    """
    return _hessian_gradient(problem)


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
    which drops a term of the derivative.
    """
    c = {name: w.new_ones(w.shape).requires_grad_() for name, w in problem.weights.items()}
    others = {name: p for name, p in problem.model.named_parameters() if name not in c}
    θ = {name: c[name] * w for name, w in problem.weights.items()} | leaves(others)
    v = {name: w.new_zeros(()) for name, w in θ.items()}
    for _ in range(STEPS):
        g = gradient(problem.loss_at(θ), θ, create_graph=True)
        v = {name: MOMENTUM * v[name] + g[name] for name in θ}
        θ = {name: θ[name] - LEARNING_RATE * v[name] for name in θ}
    return {name: g.abs() for name, g in gradient(problem.loss_at(θ), c).items()}
