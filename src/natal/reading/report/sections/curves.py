"""The test metric against sparsity, and against what a network costs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from natal.reading import stats
from natal.reading.report import charts
from natal.reading.report.document import Block, Column, Entry, Line, Part, Section, Table, Value
from natal.reading.report.sections.compared import level_columns
from natal.reading.report.view import View
from natal.reading.wording import interval, number
from natal.study import Setting
from natal.wording import percent


def curves(view: View) -> Section:
    """Return the metric against sparsity: curves, means by level, and the table of all cells."""
    return Section("Results", tuple(_curves(view)))


def _curves(view: View) -> Iterator[Block]:
    if not view.cells:
        return
    for setting in view.settings:
        if view.runs_of[setting]:
            yield charts.metric(view, setting)
    letters = _letters(view)
    levels = sorted(view.study.sparsities)
    yield Table(
        "means",
        "Mean test metric over seeds by requested sparsity. Flags: * at least 0.95 of the dense mean, ~ the 95% CI "
        "holds 0.95 of the dense mean, C a layer has collapsed, K constant output, P ended by patience at chance, "
        "T out of time, D diverged.",
        (Column("strategy", "strategy", left=True), *level_columns(levels)),
        tuple(
            Part(
                _metric_of(view, setting),
                tuple(
                    Line((name, *_means(view, (setting, name), levels, letters)), (name,))
                    for name in view.strategies
                    if (setting, name) in view.cells
                ),
                setting,
            )
            for setting in view.settings
            if view.runs_of[setting]
        ),
        apart="Means by level" * view.wide,
    )
    yield Table(
        "results",
        "Every cell: mean, standard deviation (ddof 0) and Student-t 95% CI (ddof 1) of the test metric over seeds; "
        "epochs trained, mean; n runs averaged. Sparsity as requested, and realised over prunable weights.",
        (
            Column("strategy", "strategy", left=True),
            Column("sparsity", "sparsity"),
            Column("realised", "realised"),
            Column("mean", "mean"),
            Column("std", "std"),
            Column("95% CI", "ci"),
            Column("epochs", "epochs"),
            Column("n", "n"),
            Column("flags", "flags", left=True),
        ),
        tuple(
            Part(
                _metric_of(view, setting),
                tuple(
                    _cell(c, letters) for name in view.strategies for c in view.cells.get((setting, name), ())
                ),
                setting,
            )
            for setting in view.settings
            if view.runs_of[setting]
        ),
        apart="Every cell",
    )


def _metric_of(view: View, setting: Setting) -> str:
    return f"{view.words(setting)}: test_{view.results.tasks[setting.task].field}"


_Letters = Mapping[tuple[Setting, str, float], str]


def _means(view: View, where: tuple[Setting, str], levels: list[float], letters: _Letters) -> Iterator[Entry]:
    at = {c.sparsity: c.test.mean for c in view.cells[where]}
    for s in levels:
        yield Value(number(at[s]), at[s], letters.get((*where, s), "")) if s in at else "n/a"


def _cell(c: stats.Cell, letters: _Letters) -> Line:
    return Line(
        (
            c.strategy,
            Value(percent(c.sparsity), c.sparsity),
            Value(f"{100 * c.realised:.2f}%", c.realised),
            Value(number(c.test.mean), c.test.mean),
            Value(number(c.test.std), c.test.std),
            interval(c.test),
            Value(number(c.epochs.mean, ".1f"), c.epochs.mean),
            Value(str(c.test.n), c.test.n),
            letters.get((c.setting, c.strategy, c.sparsity), ""),
        ),
        (c.strategy,),
        c.sparsity,
    )


_LETTERS: dict[stats.Kind, str] = {
    "layer-collapse": "C",
    "constant": "K",
    "stopped-at-chance": "P",
    "out-of-time": "T",
    "diverged": "D",
    "straddling": "~",
}


def _letters(view: View) -> _Letters:
    """Return the flags of each cell in letters."""
    letters: dict[tuple[Setting, str, float], str] = {}
    for (setting, strategy), cells in view.cells.items():
        bar = view.bars[setting]
        for c in cells:
            if bar is not None and c.sparsity > 0 and c.test.mean >= bar:
                letters[setting, strategy, c.sparsity] = "*"
    for flag in view.flags:
        for strategy in view.strategies if flag.strategy == stats.DENSE else [flag.strategy]:
            for level in flag.sparsities:
                where = (flag.setting, strategy, level)
                letters[where] = letters.get(where, "") + _LETTERS.get(flag.kind, "")
    return letters


def costs(view: View) -> Section:
    """Return the metric against what a network costs."""
    return Section(
        "What it costs",
        tuple(
            charts.costs(view, setting, cost)
            for setting in view.settings
            if view.runs_of[setting]
            for cost in ("work", "seconds")
        ),
    )
