"""How to choose a mask: a `Recipe`, which a study calls a strategy."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import PlainValidator, model_serializer

from natal.registry import did_you_mean
from natal.study.base import Model, Words

SCOPES: Mapping[str, str] = {
    "global": "whatever ranking all scores together gives",
    "layerwise": "the same everywhere: int(s · n) go in each layer",
    "threshold": "no competition: scores above the sparsity stay; for `random` and `init-stream` only, the count is "
    "not exact",
    "er": "∝ (n_in + n_out) / (n_in n_out) (Mocanu et al. 2018)",
    "erk": "∝ Σ dims / ∏ dims (RigL; Evci et al. 2020)",
    "igq": "1 / (F n + 1), one F for all layers (ideal gas quotas; Vysogorets and Kempe 2023)",
    "smart-ratios": "∝ (L − l + 1)² + (L − l + 1); a last linear layer has 0.3 (Su et al. 2020, their rule for "
    "ResNets)",
    "uniform+": "the same, but a first convolution stays dense and the last layer keeps at least 20 % (Gale et al. "
    "2019)",
}
"""Where scores compete, and how dense each layer becomes by it; `natal.pruning.scopes` has the formulas."""


Aggregate = Literal["incoming-l1", "incoming-l2", "outgoing-l1", "outgoing-l2", "both-l1", "both-l2", "gate"]


Control = Literal[
    "shuffle",
    "reinit",
    "invert",
    "quota-random",
    "random-neurons",
    "highest-norm",
    "fresh-narrow",
    "small-dense",
]


CONTROLS: Mapping[str, str] = {
    "shuffle": "permutes the mask within each layer, or its kernels or blocks, or each four",
    "quota-random": "draws a random mask with the criterion's own densities: the same law, in draws of its own",
    "invert": "negates the scores",
    "reinit": "keeps the mask, hands out each layer's initial values in random order",
    "random-neurons": "removes as many neurons of each layer, at random",
    "highest-norm": "removes the neurons with the largest incoming norm",
    "fresh-narrow": "keeps the mask, draws the network of that width anew from PyTorch's initialisation",
    "small-dense": "has no mask, in a study, but a dense network of the same family with as many parameters",
}
"""What each `Control` does."""


Reduce = Literal["sum", "mean", "max", "first"]


def unknown_scope(value: Any) -> str:
    """Return the sentence about a scope that is none: the nearest one and, since they are few, all of them."""
    near = did_you_mean(str(value), SCOPES).partition("; known")[0]
    return f"unknown scope {value!r}{near or ';'} known: {', '.join(SCOPES)}, or densities by layer"


def _scope(value: Any) -> Any:
    if isinstance(value, Mapping):
        for layer, density in value.items():
            if isinstance(density, bool) or not isinstance(density, int | float) or not 0 <= density <= 1:
                raise ValueError(f"the density of layer {layer!r} must lie in [0, 1], got {density!r}")
        return {str(layer): float(density) for layer, density in value.items()}
    if value not in SCOPES:
        raise ValueError(unknown_scope(value))
    return value


GRANULARITIES = ("weight", "neuron", "kernel", "2:4")
"""What is removed whole; or ``{ block = [rows, columns] }``."""


def _granularity(value: Any) -> Any:
    if isinstance(value, Mapping):
        sides: Any = value.get("block")
        pair = set(value) == {"block"} and isinstance(sides, list | tuple) and len(sides) == 2
        if not pair or not all(type(side) is int and side > 0 for side in sides):
            raise ValueError(f"a block has two sides, {{ block = [4, 4] }}, got {value!r}")
        return {"block": list(sides)}
    if value not in GRANULARITIES:
        near = did_you_mean(str(value), GRANULARITIES).partition("; known")[0]
        raise ValueError(
            f"unknown granularity {value!r}{near or ';'} known: {', '.join(GRANULARITIES)}, "
            "or { block = [rows, columns] }"
        )
    return value


class Recipe(Model):
    """How to choose a mask: which score, where scores compete, what is removed.

    A *strategy* is a recipe with a name. ``criterion`` names a registered criterion, ``scope`` where its scores
    compete (a name in `SCOPES`, or densities by layer), ``granularity`` what is removed whole (a name in
    `GRANULARITIES`, or ``{"block": [rows, columns]}``), ``aggregate`` how the score of a neuron or group comes
    from its weights' within a layer, ``reduce`` how a neuron's comes from the layers that go together, ``control``
    the comparison that replaces the mask or the initial weights, see `natal.pruning.choose.mask`.
    """

    name: Words
    criterion: str
    scope: Annotated[str | dict[str, float], PlainValidator(_scope)] = "global"
    granularity: Annotated[str | dict[str, list[int]], PlainValidator(_granularity)] = "weight"
    aggregate: Aggregate = "incoming-l2"
    control: Control | None = None
    reduce: Reduce = "mean"

    @property
    def removed(self) -> str:
        """What is removed whole, in a word: ``weight``, ``kernel``, ``4x4-block``."""
        return _word(self.granularity)

    @model_serializer(mode="wrap")
    def _without_defaults(self, handler: Any) -> dict[str, Any]:
        return self.without_defaults(handler(self), ("name", "criterion", "scope", "granularity"))


def _word(entry: Any) -> str:
    """Return a scope, granularity or another entry of a recipe as a word."""
    if isinstance(entry, Mapping):
        sides = entry.get("block") if set(entry) == {"block"} else None
        return f"{'x'.join(map(str, sides))}-block" if isinstance(sides, list | tuple) else "by-layer"
    return str(entry)


_WIDTH_CONTROLS: tuple[Control, ...] = ("random-neurons", "highest-norm", "fresh-narrow")


_STRUCTURED: Any = {"criterion": "magnitude", "scope": "layerwise", "granularity": "neuron"}


STRATEGIES: dict[str, Recipe] = {
    "structured": Recipe(name="structured", **_STRUCTURED),
    **{control: Recipe(name=control, control=control, **_STRUCTURED) for control in _WIDTH_CONTROLS},
}
"""Strategies with a name of their own: the study's structured pruning and its three controls. Any criterion's
name is a strategy too: global scope, single weights."""


def recipe_of(entry: Any) -> Any:
    """Return a strategy as written in a study, a name or a table, as something that makes a `Recipe`."""
    if isinstance(entry, str):
        return STRATEGIES.get(entry) or Recipe(name=entry, criterion=entry)
    if isinstance(entry, Mapping) and "name" not in entry:
        order = ("criterion", "scope", "granularity", "aggregate", "reduce", "control")
        return {"name": "-".join(_word(entry[k]) for k in order if k in entry), **entry}
    return entry
