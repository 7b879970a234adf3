"""Which weights a network keeps: exact selection, scopes, granularities, densities.

Scores go in, a `Mask` comes out: ``mask = select({"hidden": scores}, 0.9)``. True means kept, a higher score means
keep. Exactly ``int(s * n)`` weights go, found by rank: a threshold would prune extra weights on ties.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from natal.errors import NatalError


@dataclass(frozen=True)
class Mask:
    """Which weights are kept, by parameter name; True = kept.

    ``weights``: the prunable weights, whose share of removals is the sparsity. ``biases``: biases of removed
    neurons, set to zero with them and never counted.
    """

    weights: Mapping[str, Tensor]
    biases: Mapping[str, Tensor] = field(default_factory=dict)

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
        move = {name: m.to(device) for name, m in self.weights.items()}
        return Mask(move, {name: m.to(device) for name, m in self.biases.items()})

    @torch.no_grad()
    def apply_(self, parameters: Mapping[str, Tensor]) -> None:
        """Set the removed entries of ``parameters`` (by name) to zero, in place."""
        for name, kept in self.items().items():
            parameters[name].mul_(kept)


def select(scores: Mapping[str, Tensor], sparsity: float, scope: str = "global") -> dict[str, Tensor]:
    """Keep the highest scores: exactly ``int(sparsity * n)`` are removed, ties broken by position, first goes first.

    ``scores``: any shapes, by name. ``scope``: ``global`` ranks all of them together (n over everything),
    ``layerwise`` each entry on its own (n per entry). ``threshold`` keeps the scores above ``sparsity`` itself, so that
    the count is only binomial when they are uniform: the published program's random masks. Returns boolean tensors of the same shapes, True = kept.
    Masks are nested: what a higher sparsity keeps, a lower one keeps too. Raises NatalError on a sparsity outside
    [0, 1), an unknown scope, or a score that is NaN.
    """
    if not 0 <= sparsity < 1:
        raise NatalError(f"sparsity must lie in [0, 1), got {sparsity}")
    for name, score in scores.items():
        if score.isnan().any():
            raise NatalError(f"scores of {name!r} hold NaN; a criterion must give every weight a number")
    if scope == "layerwise":
        return {name: _keep_highest(score, int(sparsity * score.numel())) for name, score in scores.items()}
    if scope == "threshold":
        return {name: score > sparsity for name, score in scores.items()}
    if scope != "global":
        raise NatalError(f"unknown scope {scope!r}; known: global, layerwise, threshold")
    together = torch.cat([score.flatten() for score in scores.values()])
    kept = _keep_highest(together, int(sparsity * len(together)))
    parts = torch.split(kept, [score.numel() for score in scores.values()])
    return {name: part.view(score.shape) for (name, score), part in zip(scores.items(), parts, strict=True)}


def select_units(scores: Mapping[str, Tensor], sparsity: float, scope: str = "global") -> dict[str, Tensor]:
    """Like `select` over one score per neuron, except that at least one neuron of every layer stays."""
    kept = select(scores, sparsity, scope)
    for name, score in scores.items():
        if not kept[name].any():
            kept[name][score.argmax()] = True
    return kept


def _keep_highest(scores: Tensor, removed: int) -> Tensor:
    # rank, not threshold: with ties a threshold would prune extra weights
    order = scores.flatten().argsort(stable=True)
    kept = torch.ones(scores.numel(), dtype=torch.bool, device=scores.device)
    kept[order[:removed]] = False
    return kept.view(scores.shape)


def dense(weights: Mapping[str, Tensor]) -> Mask:
    """Return the mask that keeps everything."""
    return Mask({name: torch.ones_like(w, dtype=torch.bool) for name, w in weights.items()})


def prunable(model: nn.Module) -> dict[str, Tensor]:
    """Return copies of the prunable weights by parameter name: those of linear and convolution layers.

    Biases and normalisation parameters are never pruned. Raises NatalError if there is none.
    """
    layers = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
    found = {
        f"{name}.weight" if name else "weight": module.weight.detach().clone()
        for name, module in model.named_modules()
        if isinstance(module, layers)
    }
    if not found:
        raise NatalError(f"{type(model).__name__} has no linear or convolution layer, so nothing can be pruned")
    return found


def remove_neurons(weights: Mapping[str, Tensor], kept: Mapping[str, Tensor]) -> Mask:
    """Return the mask of a chain of linear layers that loses whole neurons.

    ``weights``: the (out, in) matrices in order, by parameter name. ``kept``: a boolean vector of neurons for every
    layer but the last. A removed neuron loses its incoming row, its bias and its column in the next layer.
    """
    masks = dict(dense(weights).weights)
    biases = {}
    names = list(weights)
    for name, following in zip(names, names[1:], strict=False):
        neurons = kept[name].bool()
        masks[name] = masks[name] & neurons[:, None]
        masks[following] = masks[following] & neurons[None, :]
        biases[name.removesuffix("weight") + "bias"] = neurons
    return Mask(masks, biases)
