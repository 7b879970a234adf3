"""How numbers and sentences are written in a report: plain text of a fixed width."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterator, Sequence
from typing import Any

from natal.reading.stats import Summary, seeds_needed, smallest_p
from natal.store import NetworkFacts
from natal.study import Optimiser, Recipe, Schedule, Training
from natal.wording import percent, plural, stretch

WIDTH = 110


def number(value: float | None, form: str = ".4f") -> str:
    """Return a number in ``form``, in powers of ten where that would run too wide, or n/a."""
    if value is None or math.isnan(value):
        return "n/a"
    plain = f"{value:{form}}"
    return plain if len(plain) <= 9 else f"{value:{'+' * form.startswith('+')}.1e}"


def share(value: float, form: str = ".1f") -> str:
    """Return a share as a percentage, or n/a."""
    return "n/a" if math.isnan(value) else f"{100 * value:{form}}%"


def spans(ranks: Sequence[int]) -> str:
    """Return ranks as in ``2-4, 7``, and none as ``-``."""
    spans: list[list[int]] = []
    for rank in ranks:
        if spans and spans[-1][-1] == rank - 1:
            spans[-1].append(rank)
        else:
            spans.append([rank])
    return ", ".join(f"{s[0]}-{s[-1]}" if len(s) > 1 else f"{s[0]}" for s in spans) or "-"


def interval(summary: Summary) -> str:
    """Return a 95 % interval, or n/a."""
    return "n/a" if math.isnan(summary.low) else f"[{number(summary.low)}, {number(summary.high)}]"


def show_level(level: float | None) -> str:
    """Return a sparsity; ``undefined`` for None, ``never`` for one that no level reaches."""
    return "undefined" if level is None else "never" if math.isinf(level) else percent(level)


def power(seeds: int) -> str:
    """Return what a paired comparison of two strategies can show at best with so many seeds."""
    least = smallest_p(seeds)
    if least > 0.05:
        return (
            f"{plural(seeds, 'seed')}: no difference can be significant at 0.05 (the smallest p-value of an exact "
            f"paired test is {least:.2g}); {seeds_needed()} seeds are the least"
        )
    if least < 1e-8:
        return (
            f"{seeds} seeds: a difference that all of them share has p < 1e-8; corrected for a million comparisons it "
            "stays below 0.05"
        )
    return (
        f"{seeds} seeds: a difference that all of them share has p = {least:.2g}; corrected for many comparisons it "
        f"stays below 0.05 among {plural(int(0.05 / least), 'comparison')} at most"
    )


def network(facts: NetworkFacts) -> str:
    """Return a network on a task in words, as in ``lenet-5 on mnist: 61,706 parameters, ...``."""
    return (
        f"{facts.network} on {facts.task}: {facts.parameters:,} parameters, {facts.prunable:,} prunable weights in "
        f"{plural(len(facts.layers), 'layer')}, {facts.macs:,} multiply-adds a row"
    )


def moments(recipe: Recipe) -> str:
    """Return when a recipe cuts and what it winds back, as in ``, cut at end, a round a level, rewound to init``."""
    return "".join(f", {words}" for words in _moments(recipe))


def _moments(recipe: Recipe) -> Iterator[str]:
    if recipe.spread is not None:
        yield "cut every {every} from {from} to {to}".format(**recipe.spread)
    elif recipe.at != "init":
        yield f"cut at {recipe.at}"
    if recipe.rounds != 1:
        yield "a round a level" if recipe.rounds == "levels" else f"in {recipe.rounds} rounds"
    if recipe.rates:
        yield "rates " + " and ".join(f"{layer} {rate:g}" for layer, rate in recipe.rates.items())
    if recipe.regrow is not None:
        yield f"{recipe.regrow} regrowth of {recipe.fraction:g}"
    if recipe.rewind != "none":
        yield "clock rewound" if recipe.rewind == "clock" else f"rewound to {recipe.rewind}"


def training(how: Training) -> str:
    """Return how networks are trained, as in ``full-batch Adam, at most 500 epochs, patience 100, target 0.999``."""
    return ", ".join(_training(how))


def _training(how: Training) -> Iterator[str]:
    optimiser = {"adam": "Adam", "adamw": "AdamW", "sgd": "SGD"}[how.optimiser.name]
    yield f"full-batch {optimiser}" if how.batch is None else f"{optimiser} on batches of {how.batch}"
    if how.optimiser.momentum:
        yield f"momentum {how.optimiser.momentum:g}" + " (Nesterov)" * how.optimiser.nesterov
    if how.optimiser.betas != Optimiser().betas:
        yield f"betas {how.optimiser.betas[0]:g} and {how.optimiser.betas[1]:g}"
    if how.optimiser.weight_decay:
        yield f"weight decay {how.optimiser.weight_decay:g}"
    if how.schedule != Schedule():
        points = "; ".join(f"from {clock} times {factor:g}" for clock, factor in how.schedule.points)
        step = ""
        if how.schedule.name == "step":
            step = f", times {how.schedule.factor:g} every {stretch(str(how.schedule.every))}"
        yield f"schedule {points or how.schedule.name}{step}"
        if how.schedule.warmup:
            yield f"warm-up {stretch(str(how.schedule.warmup))}"
    if how.label_smoothing:
        yield f"label smoothing {how.label_smoothing:g}"
    if how.clip is not None:
        yield f"gradients clipped at norm {how.clip:g}"
    yield f"at most {how.epochs} epochs" if how.epochs is not None else f"at most {how.length[:-2]} steps"
    if how.evaluate != "1ep":
        yield f"evaluated every {stretch(how.evaluate)}"
    yield f"patience {how.patience}" if how.patience else "no patience"
    yield "no target" if how.target is None else f"target {how.target:g}"
    if how.decide != "val-metric":
        yield {"val-loss": "weights of the lowest validation loss", "end": "the last weights"}[how.decide]


def heading(words: str) -> tuple[str, str]:
    """Return a section's title, underlined."""
    return words, "-" * len(words)


def prose(words: str) -> list[str]:
    """Return a paragraph and the empty line after it."""
    return [*textwrap.wrap(words, WIDTH, initial_indent="  ", subsequent_indent="  ", **_UNBROKEN), ""]


def wrapped(words: str, indent: int) -> list[str]:
    """Return lines whose first stands ``indent`` spaces in, the others two more."""
    left, hanging = " " * indent, " " * (indent + 2)
    return textwrap.wrap(words, WIDTH, initial_indent=left, subsequent_indent=hanging, **_UNBROKEN)


def bullet(words: str) -> list[str]:
    """Return an item of a list."""
    return wrapped(f"- {words}", 2)


def loud(words: str) -> list[str]:
    """Return what nobody may overlook."""
    return [
        "!" * WIDTH,
        *textwrap.wrap(words, WIDTH, initial_indent="!! ", subsequent_indent="!! "),
        "!" * WIDTH,
        "",
    ]


_UNBROKEN: dict[str, Any] = {"break_on_hyphens": False, "break_long_words": False}


def folded(words: str, indent: int) -> list[str]:
    """Return a fact in as many lines as it needs, the room left of them being ``indent``."""
    return textwrap.wrap(words, WIDTH - indent, **_UNBROKEN) or [""]
