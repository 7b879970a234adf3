"""Exact selection: which weights or units have the highest scores, at a sparsity, under a scope.

Scores go in, masks come out: ``kept = select({"hidden": scores}, 0.9)``. True means kept, a higher score means keep.
Exactly ``int(s * n)`` entries go: all below the k-th smallest score and, of those equal to it, the first by position. A
threshold alone would prune extra ones on ties; a sort of everything would give the same mask at ten times the cost.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from numbers import Real

import torch
from torch import Tensor

from natal.errors import NatalError
from natal.pruning.scopes import Scope, quotas
from natal.study import SCOPES
from natal.wording import perhaps_percent


def select(
    scores: Mapping[str, Tensor],
    sparsity: float,
    scope: Scope = "global",
    *,
    shapes: Mapping[str, Sequence[int]] | None = None,
    last: bool = True,
    going: Mapping[str, int] | None = None,
) -> dict[str, Tensor]:
    """Keep the highest scores: exactly ``int(sparsity * n)`` are removed, ties broken by position, first goes
    first.

    ``scores``: any shapes, by name. ``scope``: ``global`` ranks all of them together (n over everything),
    ``layerwise`` each entry on its own (n per entry), a budget as described in `natal.pruning.scopes`, or densities by
    layer. ``threshold`` keeps the scores above ``sparsity`` itself, so that the count is only binomial when
    they are uniform: the published program's random masks. ``shapes``: of the weights behind the scores, where a score
    is that of a group of weights; budgets are made of them. ``last``: False while an iterative criterion has
    rounds to go, when a budget may still be on its way. ``going``: under ``layerwise``, how many go of some layers
    whatever the sparsity. Returns boolean tensors of the scores' shapes, True =
    kept. Masks are nested: what a higher sparsity keeps, a lower one keeps too. Raises NatalError on a
    sparsity outside [0, 1), an unknown scope or layer, a budget that cannot be met at this sparsity, or a
    score that is NaN.
    """
    check_sparsity(sparsity)
    if not isinstance(scores, Mapping):
        raise NatalError(f"scores must be tensors by name, got {type(scores).__name__}")
    for name, score in scores.items():
        if score.isnan().any():
            raise NatalError(f"scores of {name!r} hold NaN; a criterion must give every weight a number")
    if scope == "threshold":
        return {name: score > sparsity for name, score in scores.items()}
    counts = {name: score.numel() for name, score in scores.items()}
    if scope == "layerwise":
        shares = [([name], (going or {}).get(name, int(sparsity * n))) for name, n in counts.items()]
    else:
        behind = shapes or {name: tuple(score.shape) for name, score in scores.items()}
        shares = quotas(scope, counts, behind, sparsity, last=last)
    kept: dict[str, Tensor] = {}
    for layers, removed in shares:
        kept |= keep_highest({name: scores[name] for name in layers}, removed)
    return {name: kept[name] for name in scores}


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


def keep_highest(scores: Mapping[str, Tensor], removed: int) -> dict[str, Tensor]:
    """Return masks that leave out the ``removed`` lowest of all these scores, of equal ones the first by position."""
    flat = torch.cat([_comparable(score).flatten() for score in scores.values()])
    kept = torch.ones_like(flat, dtype=torch.bool)
    if removed:
        edge = _smallest(flat, removed)
        torch.gt(flat, edge, out=kept)
        tied = (flat == edge).nonzero().flatten()
        # of the tied as many go as are still to go; what is below the edge is gone already
        go = removed - (len(flat) - int(torch.count_nonzero(kept)) - len(tied))
        kept[tied[go:]] = True
    parts = torch.split(kept, [score.numel() for score in scores.values()])
    return {name: part.view(score.shape) for (name, score), part in zip(scores.items(), parts, strict=True)}


def check_sparsity(sparsity: float) -> None:
    """Raise NatalError unless this is a number in [0, 1)."""
    if not isinstance(sparsity, Real) or not 0 <= sparsity < 1:
        hint = perhaps_percent(sparsity) if isinstance(sparsity, Real) else ""
        raise NatalError(f"sparsity must be a number in [0, 1), got {sparsity!r}{hint}")


def _comparable(scores: Tensor) -> Tensor:
    return scores if scores.dtype in (torch.float32, torch.float64) else scores.to(torch.float64)


def _smallest(flat: Tensor, k: int) -> Tensor:
    """Return the k-th smallest number, the first being k = 1."""
    # on an accelerator sorting is as fast, and deterministic
    return flat.kthvalue(k).values if flat.device.type == "cpu" else flat.sort().values[k - 1]
