"""What `natal diagnose` prints: a study's cells and the mask doctor's findings, the gravest first.

``print("\\n".join(lines("results")))``. Nothing is computed here, see `natal.reading.stats.diagnoses`. No torch here:
the doctor examined every network just before it was trained.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path

from natal.errors import NatalError
from natal.reading import stats
from natal.reading.results import Results, load
from natal.registry import did_you_mean
from natal.wording import percent, perhaps_percent

WIDTH = 100


def lines(
    directory: str | Path = "results",
    task: str | None = None,
    strategy: str | None = None,
    sparsity: float | None = None,
    network: str | None = None,
) -> list[str]:
    """Return the diagnosis of each pruned cell in ``directory``, the gravest first, as lines ready to print.

    Of a whole study, cells with nothing above a note are only counted, and notes left out; narrowed down to a task,
    strategy, sparsity or network, every cell is shown with all findings and its layers, mean over runs. Raises
    NatalError if there is no study, or it lacks what is named.
    """
    results = load(directory)
    _known(results, task, strategy, sparsity, network)
    cells = [
        c
        for c in stats.diagnoses(results.runs, strategy=strategy)
        if task in (None, c.setting.task)
        and network in (None, c.setting.network)
        and sparsity in (None, c.sparsity)
    ]
    brief = (task, strategy, sparsity, network) == (None, None, None, None)
    shown = [c for c in stats.gravest_first(cells) if not brief or c.severity in ("fatal", "warning")]
    return [_head(cells), *(line for c in shown for line in _cell(results, c, brief))]


def _known(
    results: Results, task: str | None, strategy: str | None, sparsity: float | None, network: str | None
) -> None:
    study = results.study
    strategies = tuple(recipe.name for recipe in study.strategies)
    for what, name, names in (
        ("task", task, study.task_names), ("strategy", strategy, strategies), ("network", network, study.network_names),
    ):  # fmt: skip
        if name is not None and name not in names:
            raise NatalError(f"{results.directory} has no {what} {name!r}{did_you_mean(name, names)}")
    pruned = [s for s in study.sparsities if s > 0]
    if sparsity is not None and sparsity not in pruned:
        known = ", ".join(f"{s:g}" for s in pruned) or "none"
        cure = perhaps_percent(sparsity) if sparsity / 100 in pruned else f"; known: {known}"
        raise NatalError(f"{results.directory} has no pruned networks of sparsity {sparsity:g}{cure}")


def _head(cells: Sequence[stats.Diagnosed]) -> str:
    if not cells:
        return "No pruned network has been trained here yet, so there is nothing to diagnose."
    fatal, warned = (sum(c.severity == severity for c in cells) for severity in ("fatal", "warning"))
    return (
        f"{len(cells)} cell{'s' * (len(cells) > 1)}, diagnosed before training: {fatal} fatal, "
        f"{warned} with warnings, {len(cells) - fatal - warned} with nothing above a note"
    )


def _cell(results: Results, c: stats.Diagnosed, brief: bool) -> Iterator[str]:
    yield ""
    yield from _wrapped(
        f"{results.words(c.setting)} / {c.strategy} at {percent(c.sparsity)}: {', '.join(_facts(c))}", ""
    )
    for f in c.findings:
        if brief and f.severity == "note":
            continue
        share = "" if f.runs == c.n else f" ({f.runs} of {c.n} runs)"
        words = f"{f.severity.upper() if f.severity == 'fatal' else f.severity}{share}"
        yield from _wrapped(f"{words}{', such as' * f.varies}: {f.text}", "  ")
    if not brief:
        yield _LAYER.format(*_TITLES)
        yield from (_layer(layer) for layer in c.layers)


def _wrapped(text: str, indent: str) -> list[str]:
    return textwrap.wrap(
        text,
        WIDTH,
        initial_indent=indent,
        subsequent_indent="    ",
        break_on_hyphens=False,
        break_long_words=False,
    )


def _facts(c: stats.Diagnosed) -> Iterator[str]:
    yield f"effective sparsity {_number(c.effective, '.2%')}"
    yield f"signal {_number(c.scale, '.2g')} of dense"
    if c.collapses_at is not None:
        yield f"collapses at {c.collapses_at:.2%}"
    yield f"n={c.n}"


_TITLES = ("layer", "density", "on a path", "units", "no input", "no output", "scale", "on", "off", "r(|w|)")
_LAYER = "    {:<16} {:>8} {:>9} {:>6} {:>9} {:>9} {:>6} {:>5} {:>5} {:>7}"


def _layer(layer: stats.LayerMeans) -> str:
    return _LAYER.format(
        layer.name,
        _number(layer.density, ".4f"),
        _number(layer.effective, ".4f"),
        layer.units,
        _number(layer.no_input, ".1f"),
        _number(layer.no_output, ".1f"),
        _number(layer.scale, ".2f"),
        _number(layer.always_on, ".0%"),
        _number(layer.always_off, ".0%"),
        _number(layer.with_size, "+.3f"),
    )


def _number(value: float, form: str) -> str:
    return "-" if math.isnan(value) else format(value, form)
