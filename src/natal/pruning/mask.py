"""Which weights a network keeps: exact selection, scopes, granularities, densities.

Scores go in, a `Mask` comes out: ``mask = select({"hidden": scores}, 0.9)``. True means kept, a higher score
means keep. Exactly ``int(s * n)`` weights go, found by rank: a threshold would prune extra weights on ties.

A *scope* says where scores compete. ``global`` and ``layerwise`` need no explanation; the others are budgets,
which give each layer a density and let scores compete inside it. All of them are one idea: a weight with rank
r in a layer of n sits at the *height* u = (r + 1/2) / n, near 0 for the layer's best weight and near 1 for
its worst; the budget turns height and layer into a key, and the keys compete globally. The count is therefore
exact under every budget, a layer that would exceed density 1 simply runs out of weights while the rest share
what is left, and masks are nested.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from math import prod
from numbers import Real
from typing import Any

import torch
from torch import Tensor, nn

from natal.errors import NatalError
from natal.registry import did_you_mean
from natal.study import SCOPES, unknown_scope

Scope = str | Mapping[str, float]
"""A name in `natal.study.SCOPES`, or densities by layer: those layers get exactly theirs, the others compete
globally for the rest."""


@dataclass(frozen=True)
class Mask:
    """Which weights are kept, by parameter name; True = kept.

    ``weights``: the prunable weights, whose share of removals is the sparsity. ``biases``: what is set to
    zero along with a removed neuron and never counted: its bias, and the scale and shift of a batch norm that
    follows it. ``units``: for a mask of whole neurons, which neurons of each layer stay, by the layer's
    weight. ``redrawn``: initial values that replace the network's own, for the controls that redraw them.
    ``inputs``: of what the model was called with, (dtype, shape) by position or name, no data, so that compaction
    needs no example. ``reached``: for a mask of whole neurons that met a target, the shares of the dense network's
    multiply-adds, parameters or time that are left.
    """

    weights: Mapping[str, Tensor]
    biases: Mapping[str, Tensor] = field(default_factory=dict)
    units: Mapping[str, Tensor] = field(default_factory=dict)
    redrawn: Mapping[str, Tensor] = field(default_factory=dict)
    inputs: Mapping[str, Any] = field(default_factory=dict)
    reached: Mapping[str, float] = field(default_factory=dict)

    @property
    def total(self) -> int:
        """Number of prunable weights."""
        return sum(m.numel() for m in self.weights.values())

    @property
    def kept(self) -> int:
        """Number of prunable weights kept."""
        return sum(int(m.sum()) for m in self.weights.values())

    @property
    def sparsity(self) -> float:
        """Share of prunable weights removed (realised)."""
        return 1 - self.kept / self.total

    def densities(self) -> dict[str, float]:
        """Share of weights kept, by parameter name; 0 means the layer has collapsed."""
        return {name: int(m.sum()) / m.numel() for name, m in self.weights.items()}

    def items(self) -> dict[str, Tensor]:
        """Return all masked parameters by name, weights and biases alike."""
        return {**self.weights, **self.biases}

    def to(self, device: str | torch.device) -> Mask:
        """Return the mask on a device."""
        weights, biases, units, redrawn = (
            {name: t.to(device) for name, t in part.items()}
            for part in (self.weights, self.biases, self.units, self.redrawn)
        )
        return Mask(weights, biases, units, redrawn, self.inputs, self.reached)

    @torch.no_grad()
    def apply_(self, parameters: Mapping[str, Tensor]) -> None:
        """Set the removed entries of ``parameters`` (by name) to zero, in place."""
        for name, kept in self.items().items():
            parameters[name].mul_(kept)


def select(
    scores: Mapping[str, Tensor], sparsity: float, scope: Scope = "global", *, last: bool = True
) -> dict[str, Tensor]:
    """Keep the highest scores: exactly ``int(sparsity * n)`` are removed, ties broken by position, first goes
    first.

    ``scores``: any shapes, by name. ``scope``: ``global`` ranks all of them together (n over everything),
    ``layerwise`` each entry on its own (n per entry), a budget as described in the module, or densities by
    layer. ``threshold`` keeps the scores above ``sparsity`` itself, so that the count is only binomial when
    they are uniform: the published program's random masks. ``last``: False while an iterative criterion has
    rounds to go, when a budget may still be on its way. Returns boolean tensors of the same shapes, True =
    kept. Masks are nested: what a higher sparsity keeps, a lower one keeps too. Raises NatalError on a
    sparsity outside [0, 1), an unknown scope or layer, a budget that cannot be met at this sparsity, or a
    score that is NaN.
    """
    check_sparsity(sparsity)
    for name, score in scores.items():
        if score.isnan().any():
            raise NatalError(f"scores of {name!r} hold NaN; a criterion must give every weight a number")
    if scope == "layerwise":
        return {name: _keep_highest(score, int(sparsity * score.numel())) for name, score in scores.items()}
    if scope == "threshold":
        return {name: score > sparsity for name, score in scores.items()}
    removed = int(sparsity * sum(score.numel() for score in scores.values()))
    budget = _budget(scope, scores, sparsity if last else None)
    keys = {name: budget.key(name, score) for name, score in scores.items()}
    tiers = {name: budget.tier(name, score) for name, score in scores.items()}
    if last:
        _check_feasible(tiers, removed, scope, sparsity)
    together, tier = (torch.cat([t.flatten() for t in by_name.values()]) for by_name in (keys, tiers))
    order = together.argsort(stable=True)
    if budget.least or budget.exact:
        order = order[tier[order].argsort(stable=True)]  # the tier first, then the key, then the position
    kept = torch.ones(len(order), dtype=torch.bool, device=order.device)
    kept[order[:removed]] = False
    parts = torch.split(kept, [score.numel() for score in scores.values()])
    return {name: part.view(score.shape) for (name, score), part in zip(scores.items(), parts, strict=True)}


def select_units(
    scores: Mapping[str, Tensor], sparsity: float, scope: Scope = "global", *, last: bool = True
) -> dict[str, Tensor]:
    """Like `select` over one score per neuron, except that the best neuron of every layer stays.

    Raises NatalError where that is impossible, and on a scope that has no meaning for neurons.
    """
    if isinstance(scope, str) and scope in SCOPES and scope not in ("global", "layerwise"):
        raise NatalError(
            f"scope {scope!r} budgets single weights; neurons take global, layerwise or densities by layer"
        )
    safe = {}
    for name, score in scores.items():
        best = score.argsort(stable=True)[-1]
        safe[name] = score.to(torch.float64, copy=True).index_fill_(0, best, torch.inf)
    kept = select(safe, sparsity, scope, last=last)
    for name, units in kept.items():
        if not units.any():
            raise NatalError(f"sparsity {sparsity} would remove every neuron of {name!r}; lower it")
    return kept


def check_sparsity(sparsity: float) -> None:
    """Raise NatalError unless this is a number in [0, 1)."""
    if not isinstance(sparsity, Real) or not 0 <= sparsity < 1:
        raise NatalError(f"sparsity must be a number in [0, 1), got {sparsity!r}")


def _keep_highest(scores: Tensor, removed: int) -> Tensor:
    # rank, not threshold: with ties a threshold would prune extra weights
    order = scores.flatten().argsort(stable=True)
    kept = torch.ones(scores.numel(), dtype=torch.bool, device=scores.device)
    kept[order[:removed]] = False
    return kept.view(scores.shape)


def heights(scores: Tensor) -> Tensor:
    """Return u = (r + 1/2) / n for each score, r its rank from the top: near 0 is best; ties as in
    `select`."""
    n = scores.numel()
    u = torch.empty(n, dtype=torch.float64, device=scores.device)
    ranks = torch.arange(n, 0, -1, dtype=torch.float64, device=scores.device) - 0.5
    u[scores.flatten().argsort(stable=True)] = ranks / n
    return u.view(scores.shape)


@dataclass(frozen=True)
class _Budget:
    """How a scope ranks weights of different layers: by tier first, by key within a tier.

    ``rank``: (height, layer's name) -> key, or None to compete by the score itself. ``least``: densities that
    a layer keeps in any case. ``exact``: densities that a layer neither undercuts nor exceeds.
    """

    rank: Callable[[Tensor, str], Tensor] | None = None
    least: Mapping[str, float] = field(default_factory=dict)
    exact: Mapping[str, float] = field(default_factory=dict)

    def key(self, name: str, score: Tensor) -> Tensor:
        if name in self.exact:
            return -heights(score)
        return score.to(torch.float64) if self.rank is None else self.rank(heights(score), name)

    def tier(self, name: str, score: Tensor) -> Tensor:
        """2 is kept before all others, 0 goes before all others, 1 competes."""
        if name in self.exact:
            return (heights(score) <= self.exact[name]).long() * 2
        if name in self.least:
            return 1 + (heights(score) <= self.least[name]).long()
        return torch.ones_like(score, dtype=torch.long)


def _budget(scope: Scope, scores: Mapping[str, Tensor], sparsity: float | None) -> _Budget:
    """Return the budget of a scope for layers of these shapes; each entry is its formula for the density d.

    ``sparsity``: what densities by layer must add up to, None while an iterative criterion is on its way.

    er            d ∝ (n_in + n_out) / (n_in n_out)        Erdős–Rényi; Mocanu et al. 2018
    erk           d ∝ Σ dims / ∏ dims                      RigL, Evci et al. 2020; er on linear layers
    igq           d = 1 / (F n + 1), one F for all         ideal gas quotas; Vysogorets & Kempe 2023
    smart-ratios  d ∝ (L - l + 1)² + (L - l + 1), the last layer 0.3 if it is linear; Su et al. 2020, ResNet rule
    uniform+      the same d everywhere, but a first convolution stays dense and the last layer keeps at least
                  20 %; Gale et al. 2019

    Departures: what a layer cannot take, being dense already, all others share in proportion, as in RigL, where
    Su et al. give it to the first layers, who also give 0.3 to every linear layer (their networks have one).
    """
    shapes = {name: tuple(score.shape) for name, score in scores.items()}
    names, depth = list(shapes), len(shapes)
    if not isinstance(scope, str):
        return _by_layer(scope, shapes, sparsity)
    match scope:
        case "global":
            return _Budget()
        case "er":
            return _proportional({n: (s[0] + s[1]) / (s[0] * s[1]) for n, s in shapes.items()})
        case "erk":
            return _proportional({n: sum(s) / prod(s) for n, s in shapes.items()})
        case "igq":
            # u <= 1 / (F n + 1) solved for F: the force that squeezes this weight out
            return _Budget(lambda u, name: (1 / u - 1) / prod(shapes[name]))
        case "smart-ratios":
            ratios = _proportional({n: (depth - i) ** 2 + (depth - i) for i, n in enumerate(names)})
            linear = len(shapes[names[-1]]) == 2
            return _Budget(ratios.rank, exact={names[-1]: 0.3} if linear and depth > 1 else {})
        case "uniform+":
            first = {names[0]: 1.0} if len(shapes[names[0]]) > 2 else {}
            return _Budget(lambda u, _: -u, least={names[-1]: 0.2} | first)
    raise NatalError(unknown_scope(scope))


def _proportional(ratios: Mapping[str, float]) -> _Budget:
    # u <= c * ratio solved for c: the smaller it is, the earlier the weight is granted
    return _Budget(lambda u, name: -u / ratios[name])


def _by_layer(
    densities: Mapping[str, float], shapes: Mapping[str, Sequence[int]], sparsity: float | None
) -> _Budget:
    named = {}
    for layer, density in densities.items():
        name = layer if layer in shapes else f"{layer}.weight"
        if name not in shapes:
            raise NatalError(f"scope names no prunable layer {layer!r}{did_you_mean(layer, shapes)}")
        if not 0 <= density <= 1:
            raise NatalError(f"scope: the density of {layer!r} must lie in [0, 1], got {density}")
        if name in named:
            raise NatalError(f"scope names the layer {name!r} twice; write one of {layer!r} and {name!r}")
        named[name] = float(density)
    if set(named) != set(shapes):
        return _Budget(exact=named)
    total = sum(prod(shape) for shape in shapes.values())
    planned = sum(density * prod(shapes[name]) for name, density in named.items())
    kept = planned if sparsity is None else total - int(sparsity * total)
    if abs(planned - kept) > len(named):
        raise NatalError(
            f"scope gives every layer a density, {planned:g} weights in all, but sparsity {sparsity} keeps "
            f"{kept}; set sparsity={1 - planned / total:.4g} or leave {list(named)[-1]!r} out"
        )
    # a density of 0 is granted last
    return _Budget(lambda u, name: -u / max(named[name], 1e-12))


def _check_feasible(tiers: Mapping[str, Tensor], removed: int, scope: Scope, sparsity: float) -> None:
    counts = {name: [int((tier == level).sum()) for level in (0, 1, 2)] for name, tier in tiers.items()}
    kept = sum(map(sum, counts.values())) - removed
    word = repr(scope) if isinstance(scope, str) else "with densities by layer"
    name = max(counts, key=lambda n: counts[n][2])
    if kept < sum(c[2] for c in counts.values()):
        raise NatalError(
            f"scope {word} keeps {counts[name][2]} weights of {name!r}, but sparsity {sparsity} leaves only "
            f"{kept} in all; lower the sparsity"
        )
    name = max(counts, key=lambda n: counts[n][0])
    if kept > sum(c[1] + c[2] for c in counts.values()):
        raise NatalError(
            f"scope {word} removes {counts[name][0]} weights of {name!r}, but sparsity {sparsity} removes "
            f"only {removed} in all; raise the sparsity"
        )


def dense(weights: Mapping[str, Tensor]) -> Mask:
    """Return the mask that keeps everything."""
    return Mask({name: torch.ones_like(w, dtype=torch.bool) for name, w in weights.items()})


LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
"""The modules whose ``weight`` is prunable. An attention module's input projections count too: they are
linear."""


def weight_names(model: nn.Module) -> dict[str, list[str]]:
    """Return the prunable parameters of a model, each with all the names it goes by; shared weights count
    once.

    These are the weights of linear and convolution layers and the input projections of
    ``nn.MultiheadAttention``. Not among them: biases, norms, embeddings, recurrent and transposed layers.
    """
    names: dict[str, list[str]] = {}
    by_identity: dict[int, str] = {}
    for prefix, module in model.named_modules(remove_duplicate=False):
        for leaf in _leaves(module):
            name = f"{prefix}.{leaf}" if prefix else leaf
            parameter = module._parameters.get(leaf)
            if parameter is None:
                raise NatalError(
                    f"{name!r} is computed, not a parameter (a parametrization or weight norm?); make it "
                    "plain before pruning"
                )
            if isinstance(parameter, nn.UninitializedParameter):
                raise NatalError(
                    f"{name!r} has no shape yet; run one batch through the lazy layer before pruning"
                )
            first = by_identity.setdefault(id(parameter), name)
            names.setdefault(first, []).append(name)
    return names


def first_layer(model: nn.Module) -> tuple[str, Tensor]:
    """Return name and weight of the first prunable layer, whether or not it is excluded from pruning."""
    first = next(iter(weight_names(model)))
    return first, dict(model.named_parameters())[first]


def _leaves(module: nn.Module) -> list[str]:
    if isinstance(module, LAYERS):
        return ["weight"]
    if isinstance(module, nn.MultiheadAttention):
        return [
            n
            for n in ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")
            if module._parameters.get(n) is not None
        ]
    return []


def prunable(model: nn.Module, exclude: Sequence[str] = ()) -> dict[str, Tensor]:
    """Return copies of the prunable weights by parameter name: those of linear and convolution layers.

    Biases and normalisation parameters are never pruned. ``exclude``: layers to leave alone, by name
    (``"fc1"`` or ``"fc1.weight"``), or ``"first"`` and ``"last"`` in the order in which the model registers
    them. Raises NatalError if nothing is left or a name is unknown.
    """
    names = weight_names(model)
    if not names:
        raise NatalError(
            f"{type(model).__name__} has no linear or convolution layer, so nothing can be pruned"
        )
    known = {alias: first for first, aliases in names.items() for alias in aliases}
    known |= {alias.removesuffix(".weight"): first for alias, first in known.items()}
    known |= {"first": next(iter(names)), "last": list(names)[-1]}
    for layer in exclude:
        if layer not in known:
            raise NatalError(f"exclude names no prunable layer {layer!r}{did_you_mean(layer, known)}")
    left_alone = {known[layer] for layer in exclude}
    parameters = dict(model.named_parameters())
    found = {name: parameters[name].detach().clone() for name in names if name not in left_alone}
    if not found:
        raise NatalError(
            f"exclude leaves no layer of {type(model).__name__} to prune, not even {known['last']!r}"
        )
    return found


def remove_neurons(weights: Mapping[str, Tensor], kept: Mapping[str, Tensor]) -> Mask:
    """Return the mask of a chain of linear layers that loses whole neurons.

    ``weights``: the (out, in) matrices in order, by parameter name. ``kept``: a boolean vector of neurons for
    every layer but the last. A removed neuron loses its incoming row, its bias and its column in the next
    layer.
    """
    masks = dict(dense(weights).weights)
    biases = {}
    names = list(weights)
    for name, following in pairwise(names):
        neurons = kept[name].bool()
        masks[name] = masks[name] & neurons[:, None]
        masks[following] = masks[following] & neurons[None, :]
        biases[name.removesuffix("weight") + "bias"] = neurons
    return Mask(masks, biases, units={name: kept[name].bool() for name in names[:-1]})
