"""Optimisers: a step of each on the weights that are kept."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from natal.lab.engines.compiled.cache import inlined
from natal.lab.engines.compiled.chain import Net
from natal.lab.engines.compiled.vectors import LANES, Array, fma

SGD, ADAM, ADAMW = range(3)


class Rule(NamedTuple):
    """What an optimiser does, in numbers; ``kind``: `SGD`, `ADAM` or `ADAMW`; ``clip``: see `clip`, 0 for no bound."""

    kind: int
    momentum: float
    nesterov: bool
    beta1: float
    beta2: float
    epsilon: float
    weight_decay: float
    clip: float


@inlined
def _kept_squares(net: Net, gradient: Array) -> float:
    """Return Σ g² over what is kept, one sum a lane: a layer's k-th kept number is in lane k mod `LANES`.

    Where a layer has no gaps, the zeros that fill its rows up to whole vectors are counted with the rest.
    """
    squares = np.zeros(LANES)
    for n in range(len(net.layers)):
        layer = net.layers[n]
        passed = 0
        for i in range(layer.kept):
            if passed < layer.gaps and net.pattern[layer.pattern + passed] == i:
                passed += 1
                continue
            g = np.float64(gradient[layer.weights + i])
            squares[(i - passed) % LANES] += g * g
        for i in range(layer.kept_biases):
            g = np.float64(gradient[layer.biases + i])
            squares[i % LANES] += g * g
    total = 0.0
    for lane in range(LANES):
        total += squares[lane]
    return total


@inlined
def clip(net: Net, gradient: Array, most: float) -> None:
    """Scale the gradient down to a norm of ``most`` if it is longer (Pascanu et al. 2013, algorithm 1)."""
    # torch's 1e-6, which keeps a gradient of nothing from dividing
    share = most / (np.sqrt(_kept_squares(net, gradient)) + 1e-6)
    if share < 1:
        for i in range(len(gradient)):
            gradient[i] *= gradient.dtype.type(share)


@inlined
def sgd(theta: Array, gradient: Array, first: Array, rule: Rule, rate: float) -> None:
    """g ← g + λ θ;  m ← μ m + g;  θ ← θ - η m, or with Nesterov θ - η (g + μ m) (Sutskever et al. 2013).

    Without momentum m is not looked at.
    """
    number = theta.dtype.type
    momentum, decay, rate_ = number(rule.momentum), number(rule.weight_decay), number(rate)
    if rule.momentum == 0:
        for i in range(len(theta)):
            theta[i] -= rate_ * fma(decay, theta[i], gradient[i])
    elif rule.nesterov:
        for i in range(len(theta)):
            g = fma(decay, theta[i], gradient[i])
            first[i] = fma(momentum, first[i], g)
            theta[i] -= rate_ * fma(momentum, first[i], g)
    else:
        for i in range(len(theta)):
            first[i] = fma(momentum, first[i], fma(decay, theta[i], gradient[i]))
            theta[i] -= rate_ * first[i]


@inlined
def adam(
    theta: Array, gradient: Array, first: Array, second: Array, powers: Array, rule: Rule, rate: float
) -> None:
    """m ← m + (1-β₁)(g - m);  v ← β₂ v + (1-β₂) g²;  θ ← θ - η m̂ / (√v̂ + ε) (Kingma & Ba 2015, algorithm 1).

    m̂ = m / (1 - β₁ᵗ), v̂ = v / (1 - β₂ᵗ); ``powers``: β₁ᵗ and β₂ᵗ of the last step, brought up to date. Weight decay
    λ: Adam's goes into the gradient, g + λ θ; AdamW's leaves it alone, θ ← (1 - η λ) θ first (Loshchilov & Hutter
    2019). The root is IEEE's.
    """
    powers[0] *= rule.beta1
    powers[1] *= rule.beta2
    number = theta.dtype.type
    coupled = number(rule.weight_decay if rule.kind == ADAM else 0.0)
    shrunk = number(1 - rate * rule.weight_decay if rule.kind == ADAMW else 1.0)
    rate1, rate2, keep2 = number(1 - rule.beta1), number(1 - rule.beta2), number(rule.beta2)
    correction, epsilon = number(1 / np.sqrt(1 - powers[1])), number(rule.epsilon)
    step = number(rate / (1 - powers[0]))
    for i in range(len(theta)):
        g = fma(coupled, theta[i], gradient[i])
        first[i] = fma(rate1, g - first[i], first[i])
        second[i] = fma(rate2 * g, g, second[i] * keep2)
        theta[i] = theta[i] * shrunk - step * first[i] / fma(np.sqrt(second[i]), correction, epsilon)
