"""How to choose a mask: a `Recipe`, which a study calls a strategy."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import Field, PlainValidator, field_validator, model_serializer, model_validator

from natal.registry import did_you_mean
from natal.study.base import MOST, Model, Number, Words
from natal.study.clock import moment, span

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


SPREAD = ("from", "to", "every")
"""The keys of ``at`` for many small cuts inside one training."""


def _at(value: Any) -> Any:
    if not isinstance(value, Mapping):
        return moment(value)
    if set(value) != set(SPREAD):
        raise ValueError(
            'many cuts inside one training are { from = "10%", to = "70%", every = "100it" }, '
            f"got the keys {', '.join(map(str, value)) or 'none'}"
        )
    return {"from": moment(value["from"]), "to": moment(value["to"]), "every": span(value["every"])}


def _rounds(value: Any) -> Any:
    if value != "levels" and (type(value) is not int or not 1 <= value <= MOST):
        raise ValueError(
            f'must be a whole number from 1 to {MOST}, such as 1, or "levels" for a chain through the sparsities'
        )
    return value


def _rewind(value: Any) -> Any:
    if value in ("none", "clock"):
        return value
    try:
        return moment(value)
    except ValueError:
        raise ValueError(
            'must be "none", "init", "clock" (weights stay, the schedule starts again) or a position in training '
            'such as "500it"'
        ) from None


class Recipe(Model):
    """How to choose a mask: which score, where scores compete, what is removed, and when.

    A *strategy* is a recipe with a name. ``criterion`` names a registered criterion, ``scope`` where its scores
    compete (a name in `SCOPES`, or densities by layer), ``granularity`` what is removed whole (a name in
    `GRANULARITIES`, or ``{"block": [rows, columns]}``), ``aggregate`` how the score of a neuron or group comes
    from its weights' within a layer, ``reduce`` how a neuron's comes from the layers that go together, ``control``
    the comparison that replaces the mask or the initial weights, see `natal.pruning.choose.mask`.

    *When*, on the training clock: ``at`` the cut is made, or ``{"from", "to", "every"}``, many cuts inside one
    training; in ``rounds``, a number or ``"levels"``, one chain through a study's sparsities; ``rates``: by layer,
    ``first`` or ``last``, the share of a round's rate at which it goes; ``rewind``: what is wound back after each cut;
    ``regrow``: how weights return inside a training, a ``fraction`` of those kept at first, decaying to none.
    """

    name: Words
    criterion: str
    scope: Annotated[str | dict[str, float], PlainValidator(_scope)] = "global"
    granularity: Annotated[str | dict[str, list[int]], PlainValidator(_granularity)] = "weight"
    aggregate: Aggregate = "incoming-l2"
    control: Control | None = None
    reduce: Reduce = "mean"
    at: Annotated[str | dict[str, str], PlainValidator(_at)] = "init"
    rounds: Annotated[int | Literal["levels"], PlainValidator(_rounds)] = 1
    rates: dict[str, Number] = Field(default={})
    rewind: Annotated[str, PlainValidator(_rewind)] = "none"
    regrow: Literal["random", "gradient"] | None = None
    fraction: Number = 0.3

    @field_validator("rates")
    @classmethod
    def _shares(cls, value: dict[str, float]) -> dict[str, float]:
        for layer, rate in value.items():
            if not 0 <= rate <= 1:
                raise ValueError(f"the rate of layer {layer!r} must lie in [0, 1], got {rate}")
        return value

    @model_validator(mode="after")
    def _makes_sense(self) -> Self:
        complaint = _senseless(self)
        if complaint:
            raise ValueError(complaint)
        return self

    @property
    def spread(self) -> dict[str, str] | None:
        """The ``from``, ``to`` and ``every`` of many cuts inside one training, None for a cut at one moment."""
        return self.at if isinstance(self.at, dict) else None

    @property
    def plain(self) -> Recipe:
        """The recipe without its control, as it cuts in the rounds before the last."""
        return self.model_copy(update={"control": None})

    @property
    def removed(self) -> str:
        """What is removed whole, in a word: ``weight``, ``kernel``, ``4x4-block``."""
        return _word(self.granularity)

    @model_serializer(mode="wrap")
    def _without_defaults(self, handler: Any) -> dict[str, Any]:
        return self.without_defaults(handler(self), ("name", "criterion", "scope", "granularity"))


NEW_WEIGHTS: tuple[Control, ...] = ("reinit", "fresh-narrow")
"""Controls that replace initial weights."""

MOVES: tuple[Control, ...] = ("shuffle", "quota-random", "random-neurons", "highest-norm")
"""Controls that keep other weights than the scores say, in the last round."""


def _senseless(recipe: Recipe) -> str:
    """Return why a recipe's moment does not go with the rest of it, beginning with the key to change, or ``""``."""
    at, rewind, control = recipe.at, recipe.rewind, recipe.control
    if recipe.regrow is None and recipe.fraction != 0.3:
        return f'fraction belongs to regrow = "random" or "gradient", got {recipe.fraction} without; leave it out'
    if not 0 < recipe.fraction < 1:
        return f"fraction must lie strictly between 0 and 1, such as 0.3, got {recipe.fraction}"
    if recipe.rates and recipe.scope != "layerwise":
        return f'rates let layers go at their own pace, which only scope = "layerwise" does, got scope {recipe.scope!r}'
    if recipe.rates and recipe.granularity != "weight":
        return f'rates count single weights; set granularity = "weight", got {recipe.removed!r}'
    if recipe.spread is not None:
        return _senseless_spread(recipe)
    if recipe.regrow is not None:
        return (
            'regrow needs cuts inside a training, at = { from = "init", to = "75%", every = "100it" }, '
            f"got at = {at!r}"
        )
    if at == "init" and rewind != "none":
        return f'rewind has nothing to wind back, got {rewind!r} with at = "init"; set at = "end" or a step'
    if rewind == "end":
        return 'rewind goes back to "init" or to a step such as "500it", got "end"'
    if control == "small-dense" and at != "init":
        return f'control small-dense trains a smaller network from birth, got at = {at!r}; set at = "init"'
    if control in NEW_WEIGHTS and at != "init" and rewind != "init":
        return (
            f'control {control} redraws initial weights, so it goes with rewind = "init" or at = "init", '
            f"got at = {at!r}, rewind = {rewind!r}"
        )
    trained_between = rewind == "clock" or (rewind == "none" and at == "end")
    if control in MOVES and recipe.rounds != 1 and at != "init" and trained_between:
        return (
            f"control {control} keeps weights that earlier rounds have set to zero for good, got rounds = "
            f'{recipe.rounds!r}, rewind = {rewind!r}; set rewind = "init", a step, or rounds = 1'
        )
    if recipe.granularity == "2:4" and recipe.rounds not in (1, "levels"):
        return f"rounds pass through other sparsities than the half of granularity '2:4', got {recipe.rounds}; set 1"
    return ""


def _senseless_spread(recipe: Recipe) -> str:
    """Return why many cuts inside one training do not go with the rest of a recipe, or ``""``."""
    written = "at = { from, to, every }"
    if recipe.rounds != 1:
        return f"rounds do not go with {written}, whose cuts are inside one training, got {recipe.rounds!r}; set 1"
    if recipe.rewind != "none":
        return f"rewind does not go with {written}, after which training goes on, got {recipe.rewind!r}; leave it out"
    if recipe.rates:
        return f"rates do not go with {written}, got {dict(recipe.rates)}; leave them out, or give densities by layer"
    if recipe.control not in (None, "invert"):
        return (
            f"control does not go with {written}, whose mask is made while it trains, got {recipe.control!r}; "
            'set at = "init", "end" or a step'
        )
    if recipe.granularity == "2:4" or (recipe.regrow is not None and recipe.granularity != "weight"):
        growing = " and regrow" if recipe.regrow is not None else ""
        return f'granularity does not go with {written}{growing}, got {recipe.removed!r}; set "weight"'
    return ""


def _when(entry: Mapping[str, Any]) -> list[str]:
    """Return the moments of a recipe, as written in a study, as parts of its name."""
    words = []
    for key in ("at", "rounds", "rates", "rewind", "regrow", "fraction"):
        value = entry.get(key)
        if value is None:
            continue
        if isinstance(value, Mapping):
            parts = [f"{k}-{v}" for k, v in value.items()]
        else:
            parts = [str(value)] if value == "levels" else [f"{key}-{value}"]
        words += parts
    return words


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
        return {"name": "-".join([*(_word(entry[k]) for k in order if k in entry), *_when(entry)]), **entry}
    return entry
