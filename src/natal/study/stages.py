"""From a row of a study to its chain of stages: trainings, each from a state of the one before. No torch here.

```
birth --- trunk (dense) --- cut, wound back --- stage --- cut, wound back --- the row's own training
```

What a stage needs of an earlier one is its state at a clock; equal beginnings are one training.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

from natal.study.clock import Timeline
from natal.study.recipe import Recipe
from natal.study.study import Run, Study, retrains
from natal.study.training import Training


@dataclass(frozen=True, slots=True)
class Stage:
    """One training of a chain: from a state, under a mask cut there, to the end of its clock.

    ``run``: the row that asks for it, at the stage's own sparsity. ``recipe``: how it is cut, None for the dense
    trunk; ``targets``: the sparsities of the cuts made in a row before it trains, the last its own. ``parent``: the
    stage whose state at the clock ``at`` is cut; None, the network at birth. ``start``: what is wound back: ``none``,
    ``init``, ``clock``, or a clock of the trunk. ``first`` and ``steps``: the step of its clock that it begins at, and
    those in all. ``order``: of the data; a stage with another than its parent's is not cut, and is compared with it.
    """

    run: Run
    training: Training
    learning_rate: float
    steps: int
    recipe: Recipe | None = None
    targets: tuple[float, ...] = ()
    parent: Stage | None = None
    at: str = "init"
    start: str = "none"
    first: int = 0
    order: int = 0

    @property
    def beyond_birth(self) -> bool:
        """Whether its mask was cut later than at the network's birth."""
        return self.recipe is not None and (self.parent is not None or self.recipe.spread is not None)

    @property
    def trunk(self) -> Stage:
        """The stage that the chain begins with."""
        return self if self.parent is None else self.parent.trunk

    @property
    def needs(self) -> list[Need]:
        """The states that it starts from: what is cut, and what weights are wound back to."""
        if self.parent is None:
            return []
        if self.order:
            return [Need(self.parent, self.at), Need(self.parent, "end")]
        back = [] if self.start in ("none", "init", "clock") else [Need(self.trunk, self.start)]
        return [Need(self.parent, self.at), *back]

    def share(self, whole: int) -> float:
        """Return how much of a training of ``whole`` steps it is."""
        return (self.steps - self.first) / whole

    def __iter__(self) -> Iterator[Stage]:
        """Yield the stages of the chain, this one last."""
        if self.parent is not None:
            yield from self.parent
        yield self


class Need(NamedTuple):
    """A state: of a stage, at a clock."""

    stage: Stage
    clock: str


Known = dict[tuple[object, ...], Stage]
"""Stages by what they are, see `stage_of`."""


def stage_of(study: Study, run: Run, learning_rate: float, rows: int, known: Known | None = None) -> Stage:
    """Return the last stage of a row's chain, the row's own training; ``rows`` are trained on.

    ``known``: the stages before the last, of other rows too, which are then the same objects where they are the same.
    """
    known = {} if known is None else known
    training, timeline = study.training.alone, study.training.timeline(rows)
    dense = run._replace(sparsity=0.0)
    # in a study that does not share, every strategy has a trunk of its own
    whose = dense if not study.share else dense._replace(strategy="")
    trunk = known.setdefault((whose, learning_rate), Stage(dense, training, learning_rate, timeline.total))
    recipe = study.recipe(run.strategy)
    if run.sparsity == 0:
        return trunk
    if recipe.spread is not None:
        return Stage(run, training, learning_rate, timeline.total, recipe, (run.sparsity,))
    targets = targets_of(study, recipe, run.sparsity)
    at = timeline.name(str(recipe.at))
    if at == "init":
        return Stage(run, training, learning_rate, timeline.total, recipe, targets)
    start = recipe.rewind if recipe.rewind in ("none", "clock") else timeline.name(recipe.rewind)
    if retrains(recipe):
        training, factor = study.training.retraining(rows)
        learning_rate *= factor
        timeline = training.timeline(rows)
    first = timeline.steps(
        at if start == "none" and at != "end" else "init" if start in ("none", "clock") else start
    )

    def after(parent: Stage, how: Recipe, *targets: float) -> Stage:
        here = run._replace(sparsity=targets[-1])
        return Stage(here, training, learning_rate, timeline.total, how, targets, parent, at, start, first)

    if at != "end" and first >= timeline.steps(at):
        # nothing is trained between such cuts: all are made of the one state
        return after(trunk, recipe, *targets)
    parent, plain = trunk, recipe.plain
    of = plain.model_dump_json(exclude={"name"}) if targets[1:] else ""
    for target in targets[:-1]:
        parent = known.setdefault((id(parent), of, target), after(parent, plain, target))
    return after(parent, recipe, targets[-1])


def siblings_of(study: Study, stage: Stage, rows: int) -> Iterator[Stage]:
    """Yield the trainings that go on from a row's states in other orders of the data, as the study measures.

    None of a network that is cut while it trains or is another, smaller one, nor from before its training begins.
    """
    line, recipe = study.measure.connectivity, stage.recipe
    if line is None or (
        recipe is not None and (recipe.spread is not None or recipe.control == "small-dense")
    ):
        return
    clock = Timeline(study.training.steps_per_epoch(rows), stage.steps)
    for at in line["from"]:
        if stage.first <= clock.steps(at) < stage.steps:
            for order in range(1, line["orders"]):
                yield replace(
                    stage, recipe=None, targets=(), parent=stage, at=clock.name(at), start="none",
                    first=clock.steps(at), order=order,
                )  # fmt: skip


def targets_of(study: Study, recipe: Recipe, sparsity: float) -> tuple[float, ...]:
    """Return the sparsities of a recipe's rounds up to a row's: n rounds reach 1 - (1 - s)**(j/n), j = 1 ... n."""
    if recipe.rounds == "levels":
        return tuple(level for level in study.sparsities if 0 < level <= sparsity)
    before = [1 - (1 - sparsity) ** (j / recipe.rounds) for j in range(1, recipe.rounds)]
    return (*before, sparsity)


def untimely(recipe: Recipe, timeline: Timeline) -> str:
    """Return how the moments of a recipe do not fit a training's clock, or ``""``."""
    written = f"strategy {recipe.name!r}: "
    if recipe.spread is not None:
        first, last = (timeline.steps(recipe.spread[end]) for end in ("from", "to"))
        every = timeline.steps(recipe.spread["every"])
        if last > timeline.total:
            return f"{written}to = {recipe.spread['to']!r} is beyond the {timeline.total} steps of training; lower it"
        if last <= first:
            return (
                f"{written}to = {recipe.spread['to']!r} (step {last}) must come after from = "
                f"{recipe.spread['from']!r} (step {first}); raise to"
            )
        if every > last - first:
            return (
                f"{written}every = {recipe.spread['every']!r} is longer than the {last - first} steps from "
                f"{recipe.spread['from']!r} to {recipe.spread['to']!r}; shorten it"
            )
        return ""
    at = str(recipe.at)
    if timeline.steps(at) > timeline.total:
        return f"{written}at = {at!r} is beyond the {timeline.total} steps of training; set an earlier one"
    ends = f"is the end of the {timeline.total} steps of training, after which nothing is trained"
    if at != "end" and timeline.steps(at) == timeline.total and recipe.rewind == "none":
        return (
            f'{written}at = {at!r} {ends}; set at = "end" with training.retrain, rewind, or an earlier moment'
        )
    if recipe.rewind not in ("none", "clock") and timeline.steps(recipe.rewind) == timeline.total:
        return f"{written}rewind = {recipe.rewind!r} {ends}; wind back to an earlier moment"
    if recipe.rewind not in ("none", "clock") and timeline.steps(recipe.rewind) > timeline.steps(at):
        return (
            f"{written}rewind = {recipe.rewind!r} (step {timeline.steps(recipe.rewind)}) is later than the cut, "
            f"at = {at!r} (step {timeline.steps(at)}); wind back to an earlier one"
        )
    return ""
