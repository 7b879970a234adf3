"""From scores to a mask: rounds, scopes, granularities and the controls every comparison needs."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from math import prod
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from natal.errors import NatalError
from natal.pruning.controls import CONTROLS
from natal.pruning.criteria.flow import redraw
from natal.pruning.criteria.problem import (
    Problem,
    Scores,
    Traits,
    criteria,
    private,
    rounded,
    traits,
)
from natal.pruning.graph.capture import made_example, shapes_of
from natal.pruning.grid import grid_of, two_of_four
from natal.pruning.mask import Mask, dense, first_layer, prunable, unit_axes
from natal.pruning.masked import duplicate, masked
from natal.pruning.neurons import Neurons, kept_whole
from natal.pruning.select import check_sparsity, keep_highest, select, select_units
from natal.pruning.targets import Floors, Target, measured, search
from natal.pruning.targets import reached as left
from natal.streams import uniform
from natal.study import Recipe

if TYPE_CHECKING:
    from natal.pruning.compaction import Shrunk


def problem_of(
    model: nn.Module, seed: int, *, exclude: Sequence[str] = (), whole: bool = False, **data: object
) -> Problem:
    """Return the problem of pruning ``model``; see `Problem` for ``inputs``, ``targets``, ``loss``, ``attention``.

    ``exclude``: layers to leave alone; ``whole``: take in those that only lose whole units; see
    `natal.pruning.mask.prunable`.
    """
    weights = prunable(model, exclude, whole=whole)
    return Problem(model=model, weights=weights, seed=seed, whole=whole, **data)  # type: ignore[arg-type]


def score(name: str, problem: Problem) -> Scores:
    """Return the scores of criterion ``name``, checked: one number for every prunable weight.

    An iterative criterion is asked once, on the problem as it is. Nothing of the caller's is touched: model,
    mode, gradients, global random state. Raises NatalError naming the criterion and the layer if the answer
    is none, or if the problem lacks what the criterion needs.
    """
    criteria[name]  # an unknown name speaks before missing data does
    _check_problem(name, problem)
    with private(_precise(problem, traits.get(name, Traits()))) as own:
        return _scores(name, own)


def mask(
    recipe: Recipe,
    problem: Problem,
    sparsity: float,
    floors: Floors | None = None,
    *,
    before: Mask | None = None,
    going: Going | None = None,
    last: bool = True,
) -> Mask:
    """Return the mask a recipe chooses for a problem.

    Sparsity 0 is the dense network whatever the recipe. With weight granularity ``int(sparsity * n)`` of the
    n prunable weights go. With neuron granularity ``sparsity`` is the share of neurons removed, the output
    layer's stay, and a neuron's score aggregates its weights' (by default the L2 norm of the incoming ones).
    Kernels and blocks are counted and scored likewise, and 2:4 removes half; see `natal.pruning.grid`.

    Controls: ``shuffle`` permutes the mask within each layer. ``quota-random`` draws a random mask that keeps
    as many weights (groups) of each layer: the same law, in draws of its own. ``invert`` negates the scores. ``reinit``
    keeps the mask and redraws the weights, see `natal.pruning.criteria.redraw`. For neurons: ``random-neurons``
    removes as many of each layer at random, ``highest-norm`` those with the largest incoming L2 norm of
    weights, ``fresh-narrow`` keeps the mask and draws a new network of its width from PyTorch's
    initialisation. New weights are in the mask's ``redrawn``. ``floors``: what every group of neurons keeps.

    For cuts one after the other, see `natal.pruning.cuts.cut`: ``before``: what an earlier cut kept of this network;
    what is gone stays gone, and ``sparsity`` counts it. ``going``: how many go of layers that have a pace of their own.
    ``last``: False while more cuts follow, when a budget may still be on its way.
    """
    how = check(recipe, problem, sparsity)
    if sparsity == 0:
        return replace(dense(problem.weights), inputs=shapes_of(problem.inputs))
    left = problem.kept if before is None else before.weights
    with private(_precise(replace(problem, sparsity=sparsity, kept=left), how)) as own:
        found = Neurons(own) if recipe.granularity == "neuron" else None
        if found is not None and before is not None and not before.units:
            before = replace(before, units=found.units_of(before))
        begun = 1.0 if before is None else _density(before)
        if found is not None and floors is not None:
            floors.check(found.groups)
        chosen: Mask | None = None
        for turn in range(1, how.rounds + 1):
            over = turn == how.rounds
            reached = sparsity if over else 1 - begun * ((1 - sparsity) / begun) ** (turn / how.rounds)
            scores = _scores(recipe.criterion, own)
            if problem.precise and recipe.granularity != "weight":
                scores = {name: s.double() for name, s in scores.items()}  # what groups come to are sums, too
            gone = before if how.returns or chosen is None else chosen
            if found is not None:
                ranked = ranking(found.scores(recipe, scores, own), recipe, gone.units if gone else {})
                kept = select_units(ranked, reached, recipe.scope, last=over and last)
                kept = kept if floors is None or not over else floors.raised(kept, ranked)
                chosen = found.mask(own, kept)
            else:
                own_pace = going(reached) if going is not None else {}
                stays = gone.weights if gone else {}
                axes = unit_axes(own.model)
                chosen = Mask(_of_weights(recipe, scores, stays, reached, over and last, own_pace, axes))
            if before is not None and over:
                _check_stays_gone(chosen, before, recipe, reached)
            if not over:
                # on the way a scope may ask for less than is gone already
                chosen = chosen if before is None else _and(chosen, before)
                weights = {name: w * chosen.weights[name] for name, w in own.initial.items()}
                own = replace(own, weights=weights, kept=chosen.weights, round=turn + 1)
        assert chosen is not None
        if recipe.control is not None and recipe.control != "invert":
            scored = problem if own.precise else own  # new weights are drawn in the network's own precision
            if found is not None:
                chosen = _CONTROLS[recipe.control](chosen, scored, found)
            else:
                chosen = CONTROLS[recipe.control](chosen, scored, recipe.granularity)
        return replace(chosen, inputs=shapes_of(problem.inputs))


def mask_for(recipe: Recipe, problem: Problem, target: Target, floors: Floors) -> Mask:
    """Return the mask of whole neurons with the smallest sparsity that meets a target; its ``reached`` says what
    is left.

    What is found is compacted, as its user will do: groups that the model's own code does not let go are kept whole,
    named, and the search begins again, so that a target is reached by a smaller network and not by a count alone.
    """
    from natal.pruning.compaction import shrink

    example = problem.inputs
    if example is None:
        example = made_example(problem.model, f"target {target.of!r}", counts=True)
        problem = replace(problem, inputs=example)
    with private(problem) as own:
        found = Neurons(own, quiet=True)
    floors.check(found.groups)
    units = sum(map(len, found.groups.values()))
    told = dict(found.told)
    dense_time = measured(duplicate(problem.model).eval(), example) if target.of == "latency" else 1.0

    def candidate(sparsity: float) -> Mask:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # said once below
            return mask(recipe, problem, sparsity, floors)

    def shares(chosen: Mask) -> dict[str, float]:
        found_shares = left(found.graph, problem.model, chosen.units)
        if target.of == "latency":
            small = smaller(chosen).model if chosen.units else problem.model
            found_shares["latency"] = measured(duplicate(small).eval(), example) / dense_time
        return found_shares

    def smaller(chosen: Mask) -> Shrunk:
        return shrink(masked(problem.model, chosen), chosen, example, training=False)

    try:
        while True:
            best = search(target, candidate, lambda chosen: shares(chosen)[target.of], units)
            small = smaller(best)
            stubborn = {
                name
                for name, group in found.groups.items()
                if name not in floors.whole and any((m.name, m.axis) in small.refused for m in group.members)
            }
            if not stubborn:
                return replace(best, reached=shares(best))
            told |= small.told
            floors = replace(floors, whole=floors.whole | stubborn)
    finally:
        if told:
            warnings.warn(kept_whole(told), stacklevel=3)


Going = Callable[[float], Mapping[str, int]]
"""From the sparsity of a cut, how many weights are gone after it of the layers that have a pace of their own."""


def _and(chosen: Mask, before: Mask) -> Mask:
    """Return a mask without what an earlier cut removed."""
    weights, units = (
        {name: part & of[name].to(part.device) for name, part in parts.items()}
        for parts, of in ((chosen.weights, before.weights), (chosen.units, before.units))
    )
    return replace(chosen, weights=weights, units=units)


def _density(before: Mask) -> float:
    """Return the share of neurons, or else of weights, that an earlier cut kept."""
    units = before.units.values()
    return sum(int(stay.sum()) for stay in units) / sum(map(len, units)) if units else 1 - before.sparsity


def _check_stays_gone(chosen: Mask, before: Mask, recipe: Recipe, sparsity: float) -> None:
    for name, kept in before.weights.items():
        back = int((chosen.weights[name] & ~kept.to(chosen.weights[name].device)).sum())
        if back:
            raise NatalError(
                f"the mask before has removed {back} weights of {name!r} more than {recipe.scope!r} at sparsity "
                f"{sparsity:g} removes, and what is gone stays gone; raise the sparsity, or cut with one scope"
            )


def _of_weights(
    recipe: Recipe,
    scores: Scores,
    stays: Mapping[str, Tensor],
    sparsity: float,
    last: bool,
    going: Mapping[str, int],
    axes: Mapping[str, int],
) -> dict[str, Tensor]:
    """Return the masks of single weights, or of the groups that a finer granularity makes of them.

    ``axes``: along which each weight holds its layer's units; those groups lie in (out, in, ...).
    """
    if recipe.granularity != "weight" and any(axes[name] for name in scores):
        of_weights, before = (
            {name: t.movedim(axes[name], 0) for name, t in part.items()} for part in (scores, stays)
        )
        found = _of_weights(recipe, of_weights, before, sparsity, last, going, dict.fromkeys(axes, 0))
        return {name: kept.movedim(0, axes[name]).contiguous() for name, kept in found.items()}
    if recipe.granularity == "2:4":
        ranked = ranking(scores, recipe, stays)
        return {name: two_of_four(ranked[name], sparsity) for name in scores}
    if recipe.granularity == "weight":
        return select(ranking(scores, recipe, stays), sparsity, recipe.scope, last=last, going=going)
    _check_unsigned(recipe, scores, "a group's")
    grids = {name: grid_of(recipe.granularity, of_weights.shape) for name, of_weights in scores.items()}
    p = 1 if recipe.aggregate == "incoming-l1" else 2
    of_groups = {name: grid.norm(scores[name], p) for name, grid in grids.items()}
    ranked = ranking(of_groups, recipe, {name: grids[name].any(kept) for name, kept in stays.items()})
    shapes = {name: tuple(of_weights.shape) for name, of_weights in scores.items()}
    kept = select(ranked, sparsity, recipe.scope, shapes=shapes, last=last)
    return {name: grid.spread(kept[name]) for name, grid in grids.items()}


def _check_unsigned(recipe: Recipe, scores: Scores, whose: str) -> None:
    for name, of_weights in scores.items():
        if (of_weights < 0).any():
            raise NatalError(
                f"criterion {recipe.criterion!r} gives weights of {name!r} negative scores, and {whose} score "
                "is a norm, which would drop the sign; use granularity 'weight' or '2:4'"
            )


def _precise(problem: Problem, how: Traits) -> Problem:
    """Return the problem, precise only where scores are more than the weights as they are, or draws."""
    return replace(problem, precise=problem.precise and how.needs != "nothing")


def _scores(name: str, problem: Problem) -> Scores:
    scores = criteria[name](problem)
    if not isinstance(scores, Mapping) or set(scores) != set(problem.weights):
        got = sorted(scores) if isinstance(scores, Mapping) else type(scores).__name__
        raise NatalError(
            f"criterion {name!r} must return one tensor for each of {sorted(problem.weights)}, got {got}"
        )
    for layer, w in problem.weights.items():
        if not isinstance(scores[layer], Tensor):
            raise NatalError(
                f"criterion {name!r} must give {layer!r} a torch tensor, got {type(scores[layer]).__name__}"
            )
        if scores[layer].shape != w.shape:
            raise NatalError(
                f"criterion {name!r} gave {layer!r} scores of shape {tuple(scores[layer].shape)}; "
                f"its weights have shape {tuple(w.shape)}"
            )
        if scores[layer].is_complex():
            raise NatalError(
                f"criterion {name!r} gave {layer!r} scores of {scores[layer].dtype}, which have no order; give real"
            )
        if scores[layer].isnan().any():
            raise NatalError(f"criterion {name!r} gave {layer!r} scores that are NaN")
        if problem.round == 1 and not scores[layer].any():
            warnings.warn(
                f"criterion {name!r} gives every weight of {layer!r} the score 0, so position decides there",
                stacklevel=3,
            )
    found = {layer: scores[layer].detach() for layer in problem.weights}
    return {layer: rounded(s) for layer, s in found.items()} if problem.precise else found


def ranking(scores: Scores, recipe: Recipe, stays: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Turn the scores round for ``invert`` and put what is already gone below everything."""
    signed = {name: -s if recipe.control == "invert" else s for name, s in scores.items()}
    if not stays:
        return signed
    return {name: s.masked_fill(~stays[name].to(s.device), -torch.inf) for name, s in signed.items()}


def _shuffle(chosen: Mask, problem: Problem, found: Neurons) -> Mask:
    return found.mask(problem, redraw(chosen.units, problem.stream("shuffle")))


def _random_neurons(chosen: Mask, problem: Problem, found: Neurons) -> Mask:
    generator = problem.stream("random-neurons")
    draws = {n: uniform(k.shape, generator).to(k.device) for n, k in chosen.units.items()}
    return _with_units(draws, chosen, problem, found)


def _highest_norm(chosen: Mask, problem: Problem, found: Neurons) -> Mask:
    by_norm = Recipe(name="norm", criterion="magnitude", granularity="neuron")
    sizes = {name: w.abs() for name, w in problem.initial.items()}
    norms = {name: -found.score(by_norm, sizes, found.groups[name]) for name in chosen.units}
    return _with_units(norms, chosen, problem, found)


def _with_units(scores: Scores, chosen: Mask, problem: Problem, found: Neurons) -> Mask:
    """Keep as many units of each layer as ``chosen`` does, but those with the highest of these scores."""
    kept = {name: _best(scores[name], int(stay.sum())) for name, stay in chosen.units.items()}
    return found.mask(problem, kept)


def _best(scores: Tensor, count: int) -> Tensor:
    return keep_highest({"": scores}, scores.numel() - count)[""]


def _reinit(chosen: Mask, problem: Problem, found: Neurons) -> Mask:
    return replace(chosen, redrawn=redraw(problem.initial, problem.stream("reinit")))


def _fresh_narrow(chosen: Mask, problem: Problem, found: Neurons) -> Mask:
    """Draw U(±1/√fan_in) with the fan-in that is left, as PyTorch's linear and convolution layers of that
    width do."""
    generator = problem.stream("fresh-narrow")
    parameters = dict(problem.model.named_parameters())
    redrawn = {}
    axes = unit_axes(problem.model)
    for name, kept in chosen.weights.items():
        axis = (
            axes[name] if kept.ndim == 2 else 0
        )  # PyTorch takes a transposed convolution's for one of (out, in)
        fan_in = int(kept.movedim(axis, 0).flatten(1).sum(1).max().clamp_min(1))  # of every unit that stays
        for parameter in (name, name.removesuffix("weight") + "bias"):
            if parameter in parameters and name.endswith("weight"):
                like = parameters[parameter]
                redrawn[parameter] = (2 * uniform(like.shape, generator) - 1).to(like) / fan_in**0.5
    for path, module in problem.model.named_modules():
        if not isinstance(module, nn.RNNBase | nn.RNNCellBase):
            continue
        # all its parameters in one range, by the number of hidden units that are left
        own = {f"{path}.{leaf}" if path else leaf: p for leaf, p in module.named_parameters()}
        first = next(name for name in own if "weight_hh" in name)
        hidden = int(chosen.weights[first].any(0).sum()) if first in chosen.weights else module.hidden_size
        for name, like in own.items():
            redrawn[name] = (2 * uniform(like.shape, generator) - 1).to(like) / max(hidden, 1) ** 0.5
    return replace(chosen, redrawn=redrawn)


_CONTROLS: dict[str, Callable[[Mask, Problem, Neurons], Mask]] = {
    "shuffle": _shuffle,
    "reinit": _reinit,
    "random-neurons": _random_neurons,
    "highest-norm": _highest_norm,
    "fresh-narrow": _fresh_narrow,
}


def check(recipe: Recipe, problem: Problem, sparsity: float) -> Traits:
    """Raise NatalError for a recipe that contradicts itself or a problem it cannot solve."""
    name, control = recipe.criterion, recipe.control
    criteria[name]
    check_sparsity(sparsity)
    if control == "small-dense":
        raise NatalError(
            "control 'small-dense' trains another, smaller network, so it belongs to a study's strategy, not to a mask"
        )
    neurons = recipe.granularity == "neuron"
    if not neurons and control in ("random-neurons", "highest-norm", "fresh-narrow"):
        raise NatalError(f"control {control!r} is for whole neurons; use granularity 'neuron'")
    if not neurons and recipe.reduce != "mean":
        raise NatalError(f"reduce {recipe.reduce!r} is for whole neurons; use granularity 'neuron'")
    if neurons and control == "quota-random":
        raise NatalError("control 'quota-random' is for single weights; for neurons use 'random-neurons'")
    in_groups = recipe.granularity not in ("weight", "neuron", "2:4")
    if not neurons and recipe.aggregate not in (
        ("incoming-l1", "incoming-l2") if in_groups else ("incoming-l2",)
    ):
        raise NatalError(f"aggregate {recipe.aggregate!r} is for whole neurons; use granularity 'neuron'")
    if recipe.aggregate == "gate" and name != "snip":
        raise NatalError(
            f"aggregate 'gate' is SNIP's score of a whole neuron; use criterion 'snip', not {name!r}"
        )
    if recipe.scope == "threshold" and name not in ("random", "init-stream"):
        raise NatalError(
            f"scope 'threshold' keeps scores above the sparsity, which suits uniform draws only: 'random' or "
            f"'init-stream', not {name!r}; use scope 'global'"
        )
    if recipe.scope == "threshold" and (in_groups or recipe.granularity == "2:4"):
        raise NatalError(
            "scope 'threshold' is for scores of single weights, which are uniform draws; use granularity 'weight'"
        )
    if recipe.scope == "threshold" and control == "invert":
        raise NatalError(
            "control 'invert' negates the scores, and scope 'threshold' would keep none of those; use scope 'global'"
        )
    if recipe.granularity == "2:4":
        _check_two_of_four(recipe, problem, sparsity)
    counts = {
        name: prod(grid_of(recipe.granularity if in_groups else "weight", w.shape).tiles)
        for name, w in problem.weights.items()
    }
    total = sum(counts.values())
    kept = total - int(sparsity * total)
    if not neurons and kept < len(counts):
        what = "groups" if in_groups else "weights"
        raise NatalError(
            f"sparsity {sparsity} leaves {kept} of {total} {what} for {len(counts)} layers, so one "
            f"of them, such as {min(counts, key=lambda n: counts[n])!r}, would be empty; lower it"
        )
    if sparsity:
        _check_problem(name, problem)
    return traits.get(name, Traits())


def _check_two_of_four(recipe: Recipe, problem: Problem, sparsity: float) -> None:
    if sparsity not in (0, 0.5):
        raise NatalError(f"granularity '2:4' removes two of every four; set sparsity=0.5, not {sparsity}")
    if recipe.scope not in ("global", "layerwise"):
        raise NatalError(
            f"granularity '2:4' lets scores compete within each four, so scope {recipe.scope!r} has no say; "
            "leave it out"
        )
    axes = unit_axes(problem.model)
    if all(w.shape[1 - axes[name]] < 2 for name, w in problem.weights.items()):
        first = next(iter(problem.weights))
        raise NatalError(f"granularity '2:4' finds no four in {first!r}: every layer has one input")


def _check_problem(name: str, problem: Problem) -> None:
    """Raise NatalError if the problem lacks what the criterion needs, or is broken."""
    needs = traits.get(name, Traits()).needs
    if needs == "data" and (problem.inputs is None or problem.targets is None or problem.loss is None):
        free = ", ".join(sorted(n for n, t in traits.items() if t.needs != "data"))
        raise NatalError(
            f"criterion {name!r} needs data: pass a batch (inputs, targets) and a loss; without data: {free}"
        )
    first, w = first_layer(problem.model)
    if needs == "shape" and problem.inputs is None and w.ndim > 2:
        raise NatalError(
            f"criterion {name!r} needs the shape of an input, which the convolution {first!r} does not tell; "
            "pass a batch, whose values are not used"
        )
    if isinstance(problem.inputs, Tensor) and len(problem.inputs) == 0:
        raise NatalError(f"the batch has no rows: its inputs have shape {tuple(problem.inputs.shape)}")
    for layer, weights in problem.weights.items():
        if not weights.isfinite().all():
            raise NatalError(
                f"weights of {layer!r} are NaN or infinite; initialise the layer before pruning it"
            )
