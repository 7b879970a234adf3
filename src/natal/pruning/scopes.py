"""Scopes: where scores compete.

``global`` and ``layerwise`` need no explanation; the others are budgets, which give each layer a density and let scores
compete inside it. All of them are one idea: the weight with rank r (from the top) in a layer of n sits at the *height*
u = (r + 1/2) / n, near 0 for the layer's best weight and near 1 for its worst; the budget turns height and layer into a
key, and the keys compete globally. The count is therefore exact under every budget, a layer that would exceed density 1
simply runs out of weights while the rest share what is left, and masks are nested. Keys do not look at scores, so how
many go from each layer is known before anything is ranked.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod

import torch
from torch import Tensor

from natal.errors import NatalError
from natal.registry import did_you_mean
from natal.study import unknown_scope

Scope = str | Mapping[str, float]
"""A name in `natal.study.SCOPES`, or densities by layer: those layers get exactly theirs, the others compete
globally for the rest."""


def quotas(
    scope: Scope,
    counts: Mapping[str, int],
    shapes: Mapping[str, Sequence[int]],
    sparsity: float,
    *,
    last: bool = True,
) -> list[tuple[list[str], int]]:
    """Return how many scores go, by share: layers that compete by score with one another, and what they lose together.

    ``counts``: scores of each layer; ``shapes``: of its weight. Exactly ``int(sparsity * n)`` of all n go. ``last``:
    False while an iterative criterion has rounds to go, when a budget may still be on its way. Raises NatalError on an
    unknown scope or layer, and for a budget that cannot be met at this sparsity.
    """
    removed = int(sparsity * sum(counts.values()))
    budget = _budget(scope, counts, shapes, sparsity if last else None)
    # numbers of scores that go first, compete and stay last, by layer
    tiers = {name: budget.tiers(name, n) for name, n in counts.items()}
    if last:
        _check_feasible(tiers, removed, scope, sparsity)
    together = [name for name in counts if budget.rank is None and name not in budget.exact]
    gone = dict.fromkeys(counts, 0)
    of_together = 0
    for tier in range(3):
        here = {name: tiers[name][tier] for name in counts}
        going = min(removed, sum(here.values()))
        removed -= going
        if tier == 1 and together:
            # exact layers have nothing in this tier, so these layers have it to themselves
            of_together = going
            continue
        keys = {name: budget.keys(name, gone[name], n, counts[name]) for name, n in here.items()}
        for name, n in _lowest(keys, going).items():
            gone[name] += n
    alone = [([name], n) for name, n in gone.items() if name not in together]
    return ([(together, of_together)] if together else []) + alone


def heights(ranks: Tensor, n: int) -> Tensor:
    """Return u = (r + 1/2) / n for ranks r from the top of n: near 0 is best."""
    return (ranks + 0.5) / n


def _lowest(keys: Mapping[str, Tensor], going: int) -> dict[str, int]:
    """Return how many of the ``going`` lowest keys each layer has; of equal keys the earlier layer's go first."""
    flat = torch.cat(list(keys.values()))
    if going == 0:
        return dict.fromkeys(keys, 0)
    edge = flat.kthvalue(going).values
    below = {name: int((key < edge).sum()) for name, key in keys.items()}
    left = going - sum(below.values())
    for name, key in keys.items():
        tied = min(left, int((key == edge).sum()))
        below[name] += tied
        left -= tied
    return below


@dataclass(frozen=True)
class _Budget:
    """How a scope ranks weights of different layers: by tier first, by key within a tier.

    Tier 2 is kept before all others, 0 goes before all others, 1 competes. ``rank``: (height, layer's name) -> key, or
    None to compete by the score itself. ``least``: densities that a layer keeps in any case. ``exact``: densities that
    a layer neither undercuts nor exceeds.
    """

    rank: Callable[[Tensor, str], Tensor] | None = None
    least: Mapping[str, float] = field(default_factory=dict)
    exact: Mapping[str, float] = field(default_factory=dict)

    def tiers(self, name: str, n: int) -> tuple[int, int, int]:
        """Return how many of a layer's n scores lie in each tier."""
        if name in self.exact:
            kept = _up_to(self.exact[name], n)
            return n - kept, 0, kept
        if name in self.least:
            kept = _up_to(self.least[name], n)
            return 0, n - kept, kept
        return 0, n, 0

    def keys(self, name: str, gone: int, count: int, n: int) -> Tensor:
        """Return the keys of ``count`` of a layer's n scores, from the worst but ``gone`` on."""
        if self.rank is None and name not in self.exact:
            return torch.zeros(0, dtype=torch.float64, device="cpu")
        ranks = torch.arange(n - gone, n - gone - count, -1, dtype=torch.float64, device="cpu") - 1
        u = heights(ranks, n)
        return -u if self.rank is None or name in self.exact else self.rank(u, name)


def _up_to(density: float, n: int) -> int:
    """Return how many of n heights are at most ``density``."""
    return int((heights(torch.arange(n, dtype=torch.float64, device="cpu"), n) <= density).sum())


def _budget(
    scope: Scope,
    counts: Mapping[str, int],
    shapes: Mapping[str, Sequence[int]],
    sparsity: float | None,
) -> _Budget:
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
    names, depth = list(shapes), len(shapes)
    if not isinstance(scope, str):
        return _by_layer(scope, counts, sparsity)
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


def _by_layer(densities: Mapping[str, float], counts: Mapping[str, int], sparsity: float | None) -> _Budget:
    named = {}
    for layer, density in densities.items():
        name = layer if layer in counts else f"{layer}.weight"
        if name not in counts:
            raise NatalError(f"scope names no prunable layer {layer!r}{did_you_mean(layer, counts)}")
        if not 0 <= density <= 1:
            raise NatalError(f"scope: the density of {layer!r} must lie in [0, 1], got {density}")
        if name in named:
            raise NatalError(f"scope names the layer {name!r} twice; write one of {layer!r} and {name!r}")
        named[name] = float(density)
    if set(named) != set(counts):
        return _Budget(exact=named)
    total = sum(counts.values())
    planned = sum(density * counts[name] for name, density in named.items())
    kept = planned if sparsity is None else total - int(sparsity * total)
    if abs(planned - kept) > len(named):
        raise NatalError(
            f"scope gives every layer a density, {planned:g} weights in all, but sparsity {sparsity} keeps "
            f"{kept}; set sparsity={1 - planned / total:.4g} or leave {list(named)[-1]!r} out"
        )
    # a density of 0 is granted last
    return _Budget(lambda u, name: -u / max(named[name], 1e-12))


def _check_feasible(
    tiers: Mapping[str, tuple[int, int, int]], removed: int, scope: Scope, sparsity: float
) -> None:
    kept = sum(map(sum, tiers.values())) - removed
    word = repr(scope) if isinstance(scope, str) else "with densities by layer"
    name = max(tiers, key=lambda n: tiers[n][2])
    if kept < sum(c[2] for c in tiers.values()):
        raise NatalError(
            f"scope {word} keeps {tiers[name][2]} weights of {name!r}, but sparsity {sparsity} leaves only "
            f"{kept} in all; lower the sparsity"
        )
    name = max(tiers, key=lambda n: tiers[n][0])
    if kept > sum(c[1] + c[2] for c in tiers.values()):
        raise NatalError(
            f"scope {word} removes {tiers[name][0]} weights of {name!r}, but sparsity {sparsity} removes "
            f"only {removed} in all; raise the sparsity"
        )
