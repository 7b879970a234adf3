"""What the masks did to the networks before any training."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from natal.reading import stats
from natal.reading.report import charts
from natal.reading.report.document import Block, Column, Entry, Line, Part, Prose, Section, Table, Value
from natal.reading.report.sections.compared import level_columns
from natal.reading.report.view import View
from natal.reading.wording import number, share
from natal.study import Setting
from natal.wording import percent, plural

_Cells = Sequence[stats.Diagnosed]


def masks(view: View) -> Section:
    """Return what the mask doctor said, and the density of each layer."""
    return Section("What the masks did", tuple(_masks(view)))


def _masks(view: View) -> Iterator[Block]:
    if not view.diagnosed:
        return
    more = (
        " No input, no output: hidden units that no path reaches from the input, or that reach no output "
        "(pruned neurons are both). Always off: ReLUs that cut the whole batch. Scale: the output's "
        "standard deviation, pruned over dense."
    )
    at_birth = all(recipe.at == "init" for recipe in view.study.strategies)
    caption = (
        f"{'Before any training' if at_birth else 'Before the training under each mask'}, mean over seeds. "
        "Effective sparsity: share of weights that are removed or on "
        "no path from input to output. Collapses: the least sparsity at which the criterion's scores empty a "
        f"layer, where that can be said. `natal diagnose` tells more of each cell.{more * view.few}"
    )
    parts: list[Part] = []
    harmless = []
    for setting in view.settings:
        told = {name: view.diagnosed.get((setting, name), []) for name in view.strategies}
        grave = {
            name: cells
            for name, cells in told.items()
            if any(c.severity in ("fatal", "warning") for c in cells)
        }
        parts += _in_full(view, setting, grave) if view.few else _in_brief(view, setting, grave)
        fine = [name for name, cells in told.items() if cells and name not in grave]
        if fine:
            harmless.append(f"{view.words(setting)}: nothing above a note about {', '.join(fine)}.")
    columns = _FULL if view.few else _brief_columns(view)
    if parts:
        wide = view.wide and not view.few
        yield Table("masks", caption, columns, tuple(parts), apart="Every level" * wide)
    for setting in view.settings:
        if view.runs_of[setting]:
            yield charts.layers(view, setting)
            if view.pictured:
                yield charts.patterns(view, setting)
    for sentence in harmless:
        yield Prose(sentence)


_FULL = (
    Column("sparsity", "sparsity"),
    Column("realised", "realised"),
    Column("effective", "effective"),
    Column("no input", "no_input"),
    Column("no output", "no_output"),
    Column("always off", "always_off"),
    Column("scale", "scale"),
    Column(" gravest", "gravest", left=True),
)


def _in_full(view: View, setting: Setting, strategies: Mapping[str, _Cells]) -> Iterator[Part]:
    """Yield a part per strategy, with the findings behind it."""
    for name, cells in strategies.items():
        yield Part(
            f"{view.words(setting)} / {name}{_collapse(cells)}",
            tuple(map(_cell, cells)),
            setting,
            name,
            tuple(
                f"{f.severity} {view.levels(f.sparsities)}, {plural(f.runs, 'run')}{', such as' * f.varies}: {f.text}"
                for f in view.findings[setting, name]
                if f.severity != "note"
            ),
        )


def _cell(c: stats.Diagnosed) -> Line:
    gravest = f"{c.severity} in {c.runs[c.severity]} of {c.n}" if c.severity else "nothing"
    return Line(
        (
            Value(percent(c.sparsity), c.sparsity),
            Value(share(c.realised), c.realised),
            Value(share(c.effective), c.effective),
            Value(number(c.no_input, ".1f"), c.no_input),
            Value(number(c.no_output, ".1f"), c.no_output),
            Value(share(c.always_off, ".0f"), c.always_off),
            Value(number(c.scale, ".2f"), c.scale),
            f" {gravest}",
        ),
        (c.strategy,),
        c.sparsity,
    )


def _levels(view: View) -> list[float]:
    return sorted({c.sparsity for cells in view.diagnosed.values() for c in cells})


def _brief_columns(view: View) -> tuple[Column, ...]:
    return (
        Column("strategy", "strategy", left=True),
        Column("collapses", "collapses_at"),
        *level_columns(_levels(view)),
    )


def _in_brief(view: View, setting: Setting, strategies: Mapping[str, _Cells]) -> Iterator[Part]:
    """Yield one part for all strategies, and what was fatal."""
    if not strategies:
        return
    notes = []
    for name in strategies:
        told: dict[tuple[tuple[float, ...], int], list[str]] = {}
        for f in view.findings[setting, name]:
            if f.severity == "fatal":
                told.setdefault((f.sparsities, f.runs), []).append(f.text)
        for (levels, runs), texts in told.items():
            notes.append(f"{name}: fatal {view.levels(levels)}, {plural(runs, 'run')}: {'; '.join(texts)}")
    yield Part(
        f"{view.words(setting)}: effective sparsity by requested sparsity; F where a mask was fatal, in any run",
        tuple(_strategy(view, name, cells) for name, cells in strategies.items()),
        setting,
        notes=tuple(notes),
    )


def _strategy(view: View, name: str, cells: _Cells) -> Line:
    at: dict[float, Entry] = {
        c.sparsity: Value(share(c.effective), c.effective, "F" * (c.fatal > 0)) for c in cells
    }
    collapse = next((c.collapses_at for c in cells if c.collapses_at is not None), None)
    first: Entry = "-" if collapse is None else Value(share(collapse), collapse)
    return Line((name, first, *(at.get(s, "n/a") for s in _levels(view))), (name,))


def _collapse(cells: _Cells) -> str:
    known = [c.collapses_at for c in cells if c.collapses_at is not None]
    return f": collapses at {share(min(known))}" if known else ""
