"""Cuts on the training clock: of a network that lost weights before, many small ones, and those that regrow.

Pure functions from a network as it is to a mask. They know nothing of runs or loops: engines cut by them inside a
training, chains of stages between trainings, and `natal.PruningSchedule` in a loop of the user's own.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from natal.errors import NatalError
from natal.pruning.choose import Going, mask, ranking, score
from natal.pruning.criteria import Problem
from natal.pruning.mask import Mask, dense, layer_names
from natal.pruning.select import keep_highest
from natal.registry import did_you_mean
from natal.streams import stream, uniform
from natal.study import Recipe

Regrow = Literal["random", "gradient"]
"""Which weights come back: any, or where the dense gradient of the current batch is largest."""


def cut(
    recipe: Recipe,
    problem: Problem,
    sparsity: float,
    before: Mask | None = None,
    rates: Mapping[str, float] | None = None,
    *,
    since: float | None = None,
    last: bool = True,
) -> Mask:
    """Return the mask of a network that lost weights ``before`` and is at ``sparsity``, of all it once had, now.

    Scores are those of the network as it is, ``problem.model``; what is gone stays gone. The target is absolute, so
    that n cuts keep as many weights as one cut does. Without ``before`` it is `natal.pruning.choose.mask`.

    ``rates``: layers (``"first"``, ``"last"`` or a name) that go at a pace of their own, under the scope ``layerwise``:
    where a cut removes the share r of what is left, a layer of rate ρ loses round(ρ r n) of the n weights it has left
    (Frankle & Carbin 2019: half the rate in the last layer). ``since``: the sparsity that ``before`` was cut at, which
    tells r; left out, it is that of the layers without a rate. ``last``: False while more cuts follow, when a budget by
    layers may still be on its way.

    Raises NatalError as `natal.pruning.choose.mask` does, for rates that name no layer or have no meaning, and if the
    scope would need back what ``before`` has removed.
    """
    device = next(iter(problem.weights.values())).device
    before = None if before is None else before.to(device)
    if before is None and not rates:
        return mask(recipe, problem, sparsity, last=last)
    if before is not None and sparsity == 0:
        raise NatalError(
            "sparsity 0 is the dense network, and weights were removed before; raise the sparsity"
        )
    going = _going(recipe, problem, before, rates, since) if rates else None
    return mask(recipe, problem, sparsity, before=before, going=going, last=last)


def _going(
    recipe: Recipe, problem: Problem, before: Mask | None, rates: Mapping[str, float], since: float | None
) -> Going:
    """Return how many weights are gone of each layer that has a rate, after a cut at a sparsity."""
    if recipe.scope != "layerwise" or recipe.granularity != "weight":
        raise NatalError(
            f"rates are for single weights under the scope 'layerwise', got {recipe.removed!r} under {recipe.scope!r}"
        )
    known, rate = layer_names(problem.model), {}
    for layer, value in rates.items():
        if known.get(layer) not in problem.weights:
            raise NatalError(f"rates name no prunable layer {layer!r}{did_you_mean(layer, known)}")
        if not 0 <= value <= 1:
            raise NatalError(f"rates: the rate of {layer!r} must lie in [0, 1], got {value}")
        if known[layer] in rate:
            raise NatalError(
                f"rates name the layer {known[layer]!r} twice, got {', '.join(map(repr, rates))}; give it one rate"
            )
        rate[known[layer]] = value
    if not any(rate.get(name, 1) for name in problem.weights):
        raise NatalError(
            "rates: every layer has the rate 0, so nothing is ever removed; raise one, or leave a layer out"
        )
    kept = dense(problem.weights).weights if before is None else before.weights
    total = {name: m.numel() for name, m in kept.items()}
    left = {name: int(m.sum()) for name, m in kept.items()}
    if since is None:
        others = [name for name in kept if name not in rate]
        if not others and before is not None:
            raise NatalError(
                "rates name every layer, so the sparsity of the cut before is unknown; give it as since"
            )
        since = 1 - sum(left[n] for n in others) / sum(total[n] for n in others) if others else 0.0
    density = 1 - since

    def going(sparsity: float) -> dict[str, int]:
        share = 1 - (1 - sparsity) / density
        return {name: total[name] - left[name] + round(rate[name] * share * left[name]) for name in rate}

    return going


def cubic(step: int, start: int, stop: int, sparsity: float) -> float:
    """Return s_t = s (1 − (1 − (t − from) / (to − from))³) between ``start`` and ``stop``, 0 before, s afterwards.

    From a dense network; many weights go at first, when there are many, and few at the end (Zhu & Gupta 2017, eq. 1).
    """
    if step >= stop:
        return sparsity
    return sparsity * (1 - (1 - max(step - start, 0) / (stop - start)) ** 3)


def decayed(step: int, start: int, stop: int, fraction: float) -> float:
    """Return f/2 (1 + cos(π (t − from) / (to − from))): all of ``fraction`` at ``start``, nothing from ``stop`` on.

    (RigL; Evci et al. 2020, section 3, after Dettmers & Zettlemoyer 2019.)
    """
    if step >= stop:
        return 0.0
    return fraction / 2 * (1 + math.cos(math.pi * max(step - start, 0) / (stop - start)))


class Moved(NamedTuple):
    """A mask after a cut, and which weights came back, by parameter name; those start at 0, their moments too."""

    mask: Mask
    regrown: Mapping[str, Tensor]


def dropped_and_regrown(
    recipe: Recipe,
    problem: Problem,
    before: Mask,
    fraction: float,
    regrow: Regrow,
    gradient: Mapping[str, Tensor] | None = None,
    step: int = 0,
) -> Moved:
    """Return the mask in which every layer has moved a fraction of its weights elsewhere; no layer's count changes.

    Of the n weights that a layer keeps, the ⌊fraction n⌋ with the lowest scores go; then as many come back, of all
    those that are gone by then: at random (SET; Mocanu et al. 2018), or where ``gradient``, the dense one, is largest
    in size (RigL; Evci et al. 2020, algorithm 1: one that has just gone may come back). ``step``: of the clock; each
    step has draws of its own. Raises NatalError for a granularity other than ``weight``, and without the gradient that
    is asked for.
    """
    if recipe.granularity != "weight":
        raise NatalError(f"regrow moves single weights; set granularity 'weight', not {recipe.removed!r}")
    if regrow == "gradient" and gradient is None:
        raise NatalError("regrow 'gradient' needs the dense gradient of the current batch; pass gradient")
    before = before.to(next(iter(problem.weights.values())).device)
    # a criterion that draws must not draw the same every time
    seed = stream(problem.seed, f"drop/{step}").initial_seed()
    scores = score(recipe.criterion, replace(problem, seed=seed, kept=before.weights))
    scores = ranking(scores, recipe, before.weights)
    draws = problem.stream(f"regrow/{step}")
    kept, regrown = {}, {}
    for name, of_weights in scores.items():
        count, left = of_weights.numel(), int(before.weights[name].sum())
        moving = int(fraction * left)
        stays = keep_highest({name: of_weights}, count - left + moving)[name]
        if gradient is None or regrow == "random":
            wanted = uniform(of_weights.shape, draws).to(of_weights.device)
        else:
            wanted = gradient[name].to(of_weights.device).abs()
        back = keep_highest({name: wanted.masked_fill(stays, -torch.inf)}, count - moving)[name]
        kept[name], regrown[name] = stays | back, back
    return Moved(replace(before, weights=kept), regrown)


@dataclass(frozen=True)
class Cuts:
    """Cuts inside one training, after the steps ``start + every``, ``start + 2 every``, ..., and ``stop``.

    Without ``regrow`` the network begins dense and loses weights by a cubic schedule, ``sparsity`` of them from
    ``stop`` on (`cubic`). With it the network begins at ``sparsity`` under a random mask and every cut moves a fraction
    of each layer's kept weights elsewhere in the layer (`dropped_and_regrown`), ``fraction`` at first and less and less
    (`decayed`).
    """

    recipe: Recipe
    sparsity: float
    start: int
    stop: int
    every: int
    regrow: Regrow | None = None
    fraction: float = 0.3

    @property
    def steps(self) -> list[int]:
        """The numbers of steps after which something is cut."""
        return sorted({*range(self.start + self.every, self.stop, self.every), self.stop})

    def opening(self, problem: Problem) -> Mask:
        """Return the mask that training begins with: dense; with ``regrow`` a random one of the scope's densities."""
        if self.regrow is None:
            return dense(problem.weights)
        random = self.recipe.model_copy(update={"criterion": "random", "control": None})
        return mask(random, problem, self.sparsity)

    def at(
        self, step: int, problem: Problem, before: Mask, gradient: Mapping[str, Tensor] | None = None
    ) -> Moved:
        """Return the mask after the cut at a step of `steps`, of a network that was under the mask ``before``."""
        if self.regrow is None:
            reached = cubic(step, self.start, self.stop, self.sparsity)
            last = step >= self.stop
            return Moved(cut(self.recipe, problem, reached, before, last=last), {})
        fraction = decayed(step, self.start, self.stop, self.fraction)
        return dropped_and_regrown(self.recipe, problem, before, fraction, self.regrow, gradient, step)
