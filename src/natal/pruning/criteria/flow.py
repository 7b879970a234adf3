"""Criteria that need no data: what flows through the network, and who sits on its paths."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from natal.errors import NatalError
from natal.pruning.criteria.problem import Problem, Scores, criterion, gradient, leaves
from natal.pruning.graph.capture import made_example
from natal.pruning.graph.units import read
from natal.pruning.masked import recomputed
from natal.streams import normal

_BATCH_NORM = nn.modules.batchnorm._BatchNorm
_SELF_NORMS = (nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, nn.modules.instancenorm._InstanceNorm)


@criterion("synflow", needs="shape", rounds=100)
def synflow(problem: Problem) -> Scores:
    """|θ ⊙ ∂R/∂θ|, R = 1ᵀ f(1; |θ|), 100 rounds at density d^(t/100) (SynFlow; Tanaka et al. 2020, algorithm
    1).

    For a chain of layers R = 1ᵀ ∏|W_l| 1, the flow over all paths: the scores of each layer add up to R,
    those entering a hidden unit to those leaving it. On one all-ones input, batch norms with running
    statistics. Departures from ganguli-lab/Synaptic-Flow: float64, not float32; biases and running means are
    out of R (the authors' code keeps |bias|), which makes both laws exact; norms without running statistics
    (layer, group, instance) count as the identity, because on an all-ones input they output zero. Softmax
    attention passes on an average of equal tokens, so nothing flows through its query and key weights: they
    score 0.
    """
    flow = _absolute(problem)
    θ = leaves({name: w.double().abs() for name, w in problem.weights.items()})
    x = problem.example()
    one = torch.ones_like(x, dtype=torch.float64 if x.is_floating_point() else x.dtype)
    R = flow.logits(θ, one).sum()
    g = gradient(R, θ)
    return {name: (θ[name].detach() * g.pop(name)).abs_() for name in θ}


def _absolute(problem: Problem) -> Problem:
    """Return the problem on a float64 model in evaluation mode with every parameter |θ| and nothing added: no bias,
    no mean. The prunable weights, which are given with each call, are not copied."""
    given = {
        parameter
        for name, parameter in problem.model.named_parameters(remove_duplicate=False)
        if name in problem.weights
    }
    flow = deepcopy(
        problem.model, {id(weight): weight for weight in given} | recomputed(problem.model)
    ).eval()
    for module in flow.modules():
        if parametrize.is_parametrized(module):
            _settle(module)
    for module in flow.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None and parameter not in given:
                absolute = parameter.double().abs() if "bias" not in name else parameter.double().mul(0)
                module._parameters[name] = nn.Parameter(absolute, requires_grad=False)
        for name, buffer in module._buffers.items():
            if buffer is not None and buffer.is_floating_point():
                module._buffers[name] = buffer.double()
        if isinstance(module, _BATCH_NORM) and module.running_mean is not None:
            module.running_mean.zero_()
        elif isinstance(module, (*_SELF_NORMS, _BATCH_NORM)):
            module.forward = lambda x: x  # type: ignore[method-assign]
    return replace(problem, model=flow)


def _settle(module: nn.Module) -> None:
    """Make what parametrizations compute plain parameters, without torch's own removal, which alters all copies."""
    computed = {name: getattr(module, name).detach() for name in module.parametrizations}  # type: ignore[union-attr]
    module.__class__ = type(module).__bases__[0]
    del module.parametrizations
    for name, value in computed.items():
        module._parameters[name] = nn.Parameter(value, requires_grad=False)


EPSILON, REDRAWS, ROWS = 0.01, 5, 256
"""NTK-SAP's perturbation (the default of the authors' command line) and redraws a round (``--ntksap_R`` of their
script), and natal's bound on the rows of its Gaussian input, which is their ``--prune-batch-size``."""


@criterion("ntk-sap", needs="shape", rounds=20)
def ntk_sap(problem: Problem) -> Scores:
    """|∂/∂m Σ_x ‖f(x; m ⊙ θ) − f(x; m ⊙ (θ + εΔ))‖²|, 20 rounds (NTK-SAP; Wang et al. 2023).

    An estimate of the trace of the neural tangent kernel and of the mask's hold on it. x ~ N(0, 1) of the
    inputs' shape, Δ ~ N(0, 1), ε = 0.01; x, θ and Δ are drawn anew five times a round. Batch norms use the
    statistics of f(x; m ⊙ θ), held fixed. Removed weights score 0. Departures from YiteWang/NTK-SAP: θ is
    redrawn by shuffling each layer's initial weights, which is right for any independent initialisation,
    where the authors call their models' own initialiser; one batch of at most 256 rows a redraw; integer
    inputs (tokens) are taken as they are.
    """
    generator = problem.stream(f"ntk-sap/{problem.round}")
    total = {name: torch.zeros_like(w) for name, w in problem.weights.items()}
    for _ in range(REDRAWS):
        x = problem.example(ROWS)
        if x.is_floating_point():
            x = normal(x.shape, generator, precise=problem.precise).to(x)
        θ = redraw(problem.initial, generator)
        Δ = {name: normal(w.shape, generator, precise=problem.precise).to(w) for name, w in θ.items()}
        for name, g in _ntk_saliency(problem, x, θ, Δ).items():
            total[name] += g * problem.kept[name]
    return {name: s.abs() for name, s in total.items()}


def _ntk_saliency(
    problem: Problem, x: Tensor, θ: Mapping[str, Tensor], Δ: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    m = leaves({name: kept.to(θ[name].dtype) for name, kept in problem.kept.items()})
    _fix_batch_norms(problem, x, {name: m[name].detach() * θ[name] for name in m})
    f = problem.logits({name: m[name] * θ[name] for name in m}, x)
    f_moved = problem.logits({name: m[name] * (θ[name] + EPSILON * Δ[name]) for name in m}, x)
    return gradient((f - f_moved).square().sum(), m)


def _fix_batch_norms(problem: Problem, x: Tensor, weights: Mapping[str, Tensor]) -> None:
    norms = [module for module in problem.model.modules() if isinstance(module, _BATCH_NORM)]
    for norm in norms:
        norm.train()
        norm.momentum = 1.0  # the running statistics become those of x
    with torch.no_grad():
        problem.outputs(weights, x)
    for norm in norms:
        norm.eval()


def redraw(weights: Mapping[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
    """Return new initial weights: each layer's own values in random order.

    A draw without replacement from the layer's initial distribution, whatever that was; PyTorch's own reset
    would change the scale of a network that was initialised in another way.
    """
    return {
        name: w.flatten()[torch.randperm(w.numel(), generator=generator, device="cpu").to(w.device)].view(
            w.shape
        )
        for name, w in weights.items()
    }


WALKS = 1024
"""Walks taken at a time; a constant of the result, since draws are made for a whole batch of walks."""


@criterion("phew")
def phew(problem: Problem) -> Scores:
    """−(number of the random walk that visits the weight first) (PHEW; Patil & Dovrolis 2021).

    Walks start in turn at every input unit and, going back, at every output unit, and step along a weight
    with probability |θ| / Σ|θ| over the weights leaving the unit; in a convolution to a channel by Σ|kernel|,
    then to an element of the kernel by |θ|. PHEW keeps what was visited once the budget is met: the highest
    scores. Departures: the walk that meets the budget is cut short, so that the count is exact; weights never
    visited in 10 walks a weight are ranked by |θ|, below all visited ones; only chains of layers can be
    walked (the authors' code has a rule for its own residual networks). One score for all sparsities: masks
    are nested.
    """
    chain = _chain(problem)
    n = sum(w.numel() for w in problem.weights.values())
    first = {
        name: torch.full((w.numel(),), torch.inf, dtype=torch.float64, device="cpu")
        for name, w in problem.weights.items()
    }
    generator = problem.stream("phew")
    for start in range(0, 10 * n, 2 * WALKS):
        numbers = torch.arange(start, start + 2 * WALKS, dtype=torch.float64, device="cpu").view(WALKS, 2)
        for direction in (0, 1):  # forward walks have even numbers, backward ones odd
            for name, edges in _walk(chain, start // 2, backward=direction == 1, generator=generator):
                first[name].scatter_reduce_(0, edges, numbers[:, direction], "amin")
        if all(float(seen.isfinite().double().mean()) >= 1 - problem.sparsity for seen in first.values()):
            break
    scores = {}
    for name, w in problem.weights.items():
        # never visited: below every walk's number, the largest weight first
        never = 10 * n + 2 * WALKS + 1 / (1 + w.flatten().abs().double().cpu())
        scores[name] = -torch.where(first[name].isinf(), never, first[name]).view(w.shape).to(w.device)
    return scores


def _chain(problem: Problem) -> list[tuple[str, Tensor, int]]:
    """Return (name, |weights|, inputs per unit of the layer before) along the chain; raise where it is
    none."""
    example = problem.inputs
    if example is None:
        example = made_example(problem.model, "criterion 'phew'")
    graph = read(problem.model, example)
    names = {graph.alias[name]: name for name in problem.weights}
    steps = [step for step in graph.found.steps if step.weight in names]
    makes = torch.zeros(1, dtype=torch.long, device="cpu")
    chain: list[tuple[str, Tensor, int]] = []
    for step in steps:
        name = names[step.weight]
        factor, rest = divmod(len(step.reads), len(makes))
        follows = not rest and torch.equal(step.reads, makes.repeat_interleave(factor))
        again = any(name == earlier for earlier, _, _ in chain)
        grouped = problem.weights[name].shape[1] != len(step.reads)
        if (chain and not follows) or again or grouped or graph.found.uses.get(step.weight, 1) > 1:
            before = chain[-1][0] if chain and not again else name
            reason = "do not feed the next prunable layer alone"
            if again:
                reason = "come from a layer that is used twice"
            elif grouped:
                reason = (
                    f"feed the grouped convolution {name!r}" if chain else "come from a grouped convolution"
                )
            raise NatalError(
                f"criterion 'phew' walks along a chain of layers, but the units of {before!r} {reason}"
            )
        chain.append((name, problem.weights[name].abs().double().cpu(), factor if chain else 1))
        makes = step.writes
    if len(chain) != len(names):
        missing = next(name for name in problem.weights if name not in [n for n, _, _ in chain])
        raise NatalError(
            f"criterion 'phew' walks along a chain of layers, but {missing!r} is not read as a layer of it"
        )
    return chain


def _walk(
    chain: list[tuple[str, Tensor, int]], start: int, *, backward: bool, generator: torch.Generator
) -> list[tuple[str, Tensor]]:
    """Take `WALKS` walks at once; return the flat indices of the weights that they cross, by layer."""
    ends = chain[-1][1].shape[0] if backward else chain[0][1].shape[1]
    at = (start + torch.arange(WALKS, device="cpu")) % ends  # round robin over the units at this end
    crossed = []
    for name, w, factor in reversed(chain) if backward else chain:
        kernels = w.flatten(2) if w.ndim > 2 else w[..., None]  # (out, in, elements)
        strength = kernels.sum(2)
        if backward:
            out, into = at, _draw(strength[at], generator)
            at = into // factor
        else:
            # a flattened channel continues at one of its positions, drawn evenly
            into = at * factor + torch.randint(factor, at.shape, generator=generator, device="cpu")
            out = at = _draw(strength.T[into], generator)
        element = _draw(kernels[out, into], generator)
        crossed.append((name, (out * w.shape[1] + into) * kernels.shape[2] + element))
    return crossed


def _draw(probabilities: Tensor, generator: torch.Generator) -> Tensor:
    # a unit without weights steps anywhere, as in the authors' code
    stuck = probabilities.sum(1, keepdim=True) == 0
    return torch.multinomial(probabilities + stuck, 1, generator=generator).squeeze(1)
