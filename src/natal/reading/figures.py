"""A study's two figures: its metric, and its epochs, against sparsity. No torch here, and no pyplot.

``metric_figure(load("results")).savefig("mine.pdf")``, or any other format that matplotlib knows. Up to six
strategies share one panel per setting, more get a small panel each. Every seed is a faint point, so that a mean
cannot hide what it is the mean of. Colours are Okabe and Ito's (2008), safe for colour-blind readers, and every
strategy has a marker of its own for readers in grey.
"""

from __future__ import annotations

import io
import math
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from natal.reading import stats
from natal.reading.results import Results
from natal.reading.rows import Row
from natal.study import Setting, Study

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure
    from matplotlib.text import Text

FIGURES = {"accuracy_vs_sparsity.png": "metric", "epochs_vs_sparsity.png": "epochs"}
"""File names of the figures, as the published program calls them."""
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9")
MARKERS = "osD^vP"
FEW = len(COLOURS)
"""Up to so many strategies share a panel."""
COLUMNS = 5
"""At most so many small panels in a row."""
WIDTH = 7.0  # inches: the text width of a paper
DPI = 200
DIGEST = "natal-digest"  # the PNG text entry that says which results a picture shows
CARET_DOWN = 11  # matplotlib's caret with its base on the point
_STYLE: dict[str, Any] = {
    **{"font.family": "DejaVu Sans", "font.size": 8, "axes.labelsize": 8, "axes.titlesize": 9},
    **{"legend.fontsize": 7.5, "xtick.labelsize": 7.5, "ytick.labelsize": 7.5},
    **{"axes.linewidth": 0.8, "axes.spines.top": False, "axes.spines.right": False},
}
_SMALL: dict[str, Any] = {"fontsize": 6.5, "color": "0.3"}
_MEAN: dict[str, Any] = {
    **{"linewidth": 1.3, "markersize": 4.2, "markeredgecolor": "white", "markeredgewidth": 0.5},
    **{"elinewidth": 0.9, "capsize": 1.8, "capthick": 0.9},
}
_CRITICAL: dict[str, Any] = {"linewidth": 1.0, "linestyle": (0, (4, 3))}
_RETAINED: dict[str, Any] = {"color": "0.6", "linewidth": 0.7, "linestyle": (0, (1, 2))}
_DENSE: dict[str, Any] = {"color": "0.45", "linewidth": 0.8, "linestyle": "-"}
_CHANCE: dict[str, Any] = {"color": "0.45", "linewidth": 0.8, "linestyle": ":"}
_OTHERS: dict[str, Any] = {"color": "0.8", "linewidth": 0.6}
_CONTROLLED: dict[str, Any] = {"color": "black", "linewidth": 1.0, "linestyle": "--"}

Kind = Literal["metric", "epochs"]


def metric_figure(results: Results) -> Figure:
    """Return the figure of mean test metric against sparsity, ± 1 standard deviation.

    Vertical dashes: a strategy's critical sparsity. Horizontal lines: the dense mean, 0.95 of it, and chance.
    Points far below everything a reader wants to compare (R² has no floor) are drawn as arrows on the lower
    edge and counted. In small panels all other strategies are grey, and a control has the strategy it
    controls beside it.
    """
    return _figure(results, "metric")


def epochs_figure(results: Results) -> Figure:
    """Return the figure of mean epochs trained against sparsity, ± 1 standard deviation, and the budget."""
    return _figure(results, "epochs")


def png(results: Results, kind: str) -> bytes:
    """Return the bytes of the ``metric`` or ``epochs`` figure, carrying `Results.digest` as a text entry."""
    figure = {"metric": metric_figure, "epochs": epochs_figure}[kind](results)
    file = io.BytesIO()
    with _plain_style():
        figure.savefig(file, format="png", dpi=DPI, metadata={"Software": "natal", DIGEST: results.digest})
    return file.getvalue()


def shown_digest(path: Path) -> str:
    """Return the `Results.digest` a figure file was drawn from, ``""`` if it carries none.

    Raises OSError if the file is not a whole picture.
    """
    from PIL import Image

    try:
        with Image.open(path) as image:
            image.verify()  # every chunk's checksum: a cut or altered file opens well and fails only here
            return str(image.info.get(DIGEST, ""))
    except (OSError, SyntaxError, ValueError) as error:
        raise OSError(f"{path.name}: {error}") from None


# -- one panel -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Line:
    """How one strategy is drawn: its place among the strategies decides colour, marker and sideways shift.

    ``shared``: whether it shares its panel with other strategies.
    """

    name: str
    colour: str = COLOURS[0]
    marker: str = MARKERS[0]
    shift: float = 0.0
    shared: bool = False

    def x(self, sparsity: float) -> float:
        return 100 * sparsity + self.shift


def _lines(study: Study) -> list[_Line]:
    names = [recipe.name for recipe in study.strategies]
    # shifted a little, for equal values would hide each other, but never so far that a level looks like another
    levels = sorted(study.sparsities)
    closest = min((b - a for a, b in pairwise(levels)), default=1.0)
    step = min(0.008 * _span(study), 100 * closest / 2 / max(len(names) - 1, 1))
    middle = (len(names) - 1) / 2
    return [
        _Line(name, COLOURS[i], MARKERS[i], step * (i - middle), len(names) > 1)
        for i, name in enumerate(names)
    ]


def _span(study: Study) -> float:
    """Return the width of the sparsity axis in percent, without its margins."""
    return 100 * max(max(study.sparsities) - min(study.sparsities), 0.1)


def _frame(axes: Axes, results: Results, setting: Setting, kind: Kind) -> list[tuple[str, float]]:
    """Draw what belongs to the setting: the axes' limits and the horizontal lines; return these by name."""
    runs, levels = _runs(results, setting), sorted(100 * s for s in results.study.sparsities)
    margin = 0.05 * _span(results.study)
    axes.set_xlim(levels[0] - margin, levels[-1] + margin)
    axes.set_xticks(levels, minor=True)
    axes.tick_params(axis="x", which="minor", length=3.5)
    axes.grid(axis="y", color="0.92", linewidth=0.6, zorder=0)
    axes.set_axisbelow(True)
    if kind == "epochs":
        budget = results.networks[setting].epochs
        tallest = max((c.epochs.mean + c.epochs.std for c in stats.cells(runs) if c.epochs.n), default=0.0)
        axes.set_ylim(0, 1.05 * max(budget, tallest))
        axes.axhline(budget, zorder=1, **_DENSE)
        return [(f"budget {budget:.10g}", budget)]
    chance = results.tasks[setting.task].chance
    low, high = window(runs, chance)
    axes.set_ylim(low, high)
    axes.axhline(chance, zorder=1, **_CHANCE)
    named = [(f"chance {_short(chance)}", chance)]
    dense, bar = stats.dense_baseline(runs, setting), stats.threshold(runs, setting)
    if dense and dense.test.n and dense.test.mean >= low:
        axes.axhline(dense.test.mean, zorder=1, **_DENSE)
        named.append((f"dense {_short(dense.test.mean)}", dense.test.mean))
    if bar is not None:
        axes.axhline(bar, zorder=1, **_RETAINED)
    return named


def _strategy(axes: Axes, results: Results, setting: Setting, line: _Line, kind: Kind) -> None:
    """Draw one strategy: every seed, the means with ± 1 standard deviation, and its critical sparsity."""
    runs = [run for run in _runs(results, setting) if run.strategy == line.name]
    low, _ = axes.get_ylim()
    seeds = [(line.x(run.sparsity), _value(run, kind)) for run in runs if run.test_metric is not None]
    means = [
        (line.x(s), mean if mean >= low else math.nan, std) for s, mean, std in _means(runs, kind)
    ]  # what lies below the panel is left to the arrows
    shown = [(x, y) for x, y in seeds if y >= low]
    axes.plot(
        [x for x, _ in shown], [y for _, y in shown], "o",
        color=line.colour, alpha=0.45, markersize=3.4, markeredgewidth=0, zorder=3,
    )  # fmt: skip
    axes.errorbar(
        [x for x, _, _ in means], [y for _, y, _ in means], [std for _, _, std in means],
        label=_said(line.name), color=line.colour, marker=line.marker, zorder=4, **_MEAN,
    )  # fmt: skip
    critical = (
        stats.critical_sparsity(_runs(results, setting), setting, line.name) if kind == "metric" else None
    )
    if critical is not None:
        axes.axvline(line.x(critical), color=line.colour, zorder=1, **_CRITICAL)
    if critical is not None and line.shared:
        # several strategies' dashes: whose they are must be seen in grey, too
        look: Any = {"color": line.colour, "marker": line.marker, "markersize": 3.2, "markeredgewidth": 0}
        axes.plot([line.x(critical)], [1.0], transform=axes.get_xaxis_transform(), clip_on=False, **look)
    _mark_clipped(axes, [x for x, y in seeds if y < low], line)


def _mark_clipped(axes: Axes, places: Sequence[float], line: _Line) -> None:
    """Mark runs below the panel with arrows on its lower edge."""
    low, high = axes.get_ylim()
    for x in places:
        axes.plot([x], [low + 0.04 * (high - low)], color=line.colour, marker=CARET_DOWN, zorder=5)


def _say_clipped(axes: Axes, runs: Sequence[Row], brief: bool = False) -> None:
    """Say how many runs lie below the panel, and how far; the shared dense ones once."""
    low, _ = axes.get_ylim()
    values = [run.test_metric for run in stats.once(runs) if run.test_metric is not None]
    below = [value for value in values if value < low]
    if below:
        runs_below = f"{len(below)} run{'s' * (len(below) > 1)}"
        words = f"arrows: {runs_below} below the axis, down to {min(below):.3g}"
        words = f"{runs_below} below, to {min(below):.3g}" if brief else words
        paper = {"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1}
        look = _SMALL | {"fontsize": 5.5 if brief else 6.5}
        axes.text(0.02, 0.06, words, transform=axes.transAxes, bbox=paper, **look)


def _runs(results: Results, setting: Setting) -> list[Row]:
    return [run for run in results.runs if run.setting == setting]


def _value(run: Row, kind: Kind) -> float:
    return run.epochs_trained if kind == "epochs" or run.test_metric is None else run.test_metric


def _means(runs: Sequence[Row], kind: Kind) -> list[tuple[float, float, float]]:
    """Return sparsity, mean and standard deviation of each of one strategy's cells that has any."""
    summaries = [(c.sparsity, c.test if kind == "metric" else c.epochs) for c in stats.cells(runs)]
    return sorted((s, m.mean, m.std) for s, m in summaries if m.n)


def window(runs: Sequence[Row], chance: float) -> tuple[float, float]:
    """Return the metric's axis limits: all of the data, but below chance only half as much as above it."""
    values = [run.test_metric for run in runs if run.test_metric is not None]
    reach = (max([chance, *values]) - chance) or 1.0
    floor = chance - 0.5 * reach
    for c in stats.cells(runs):
        # the bar of a cell with a run below the panel would reach far above it, too
        if c.test.n and min(c.values.values()) >= floor:
            values += [c.test.mean - c.test.std, c.test.mean + c.test.std]
    top, bottom = max([chance, *values]), max(min([chance, *values]), floor)
    margin = 0.06 * (top - bottom or reach)
    return bottom - margin, top + margin


# -- the sheet -------------------------------------------------------------------------------------------


def _figure(results: Results, kind: Kind) -> Figure:
    with _plain_style():
        return (_together if len(results.study.strategies) <= FEW else _one_by_one)(results, kind)


def _together(results: Results, kind: Kind) -> Figure:
    """Return a figure with a panel per setting in which all strategies meet."""
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    settings, lines = results.study.settings(), _lines(results.study)
    columns = min(len(settings), 2)
    rows = math.ceil(len(settings) / columns)
    dashes = [("critical sparsity", {"color": "0.4", **_CRITICAL}), ("95% of dense", _RETAINED)]
    dashes = dashes if kind == "metric" else []
    names = [_said(line.name) for line in lines] + [name for name, _ in dashes]
    legend_rows = math.ceil(len(names) / _legend_columns(names))
    figure = Figure(figsize=(WIDTH, 2.6 * rows + 0.35 + 0.17 * legend_rows), layout="constrained")
    panels = list(figure.subplots(rows, columns, squeeze=False).flat)
    titles: list[tuple[Axes, Text, Text]] = []
    for axes, setting in zip(panels, settings, strict=False):
        named = _frame(axes, results, setting, kind)
        for line in lines:
            _strategy(axes, results, setting, line, kind)
        if kind == "metric":
            _say_clipped(axes, _runs(results, setting))
        where: Any = {"xycoords": ("axes fraction", "data"), "xytext": (2, 0), "textcoords": "offset points"}
        for text, y in named:
            axes.annotate(text, (1, y), va="center", annotation_clip=False, **where, **_SMALL)
        name = axes.set_title(_said(results.words(setting)), loc="left", fontweight="bold")
        note, alarming = _note(results, setting)
        colour = "firebrick" if alarming else "0.3"
        titles.append((axes, name, axes.set_title(note, loc="right", fontsize=6.5, color=colour)))
        axes.set_xlabel("requested sparsity (%)")
        axes.set_ylabel(_label(results, setting, kind))
        _tick(axes, results.study, 0.03 * columns)
    for axes in panels[len(settings) :]:
        axes.set_axis_off()
    handles, named_lines = panels[0].get_legend_handles_labels()
    handles += [Line2D([], [], **look) for _, look in dashes]
    _legend(figure, handles, [*named_lines, *(name for name, _ in dashes)])
    _set_apart(figure, titles)
    return figure


def _set_apart(figure: Figure, titles: Sequence[tuple[Axes, Text, Text]]) -> None:
    """Raise the names of all panels by a line if one of them reaches into the note on its right."""
    figure.draw_without_rendering()
    if any(name.get_window_extent().x1 + 4 > note.get_window_extent().x0 for _, name, note in titles):
        for axes, name, note in titles:
            line = 1.4 * note.get_window_extent().height / axes.get_window_extent().height
            axes.set_title(name.get_text(), loc="left", fontweight="bold", y=1 + line)


def _one_by_one(results: Results, kind: Kind) -> Figure:
    """Return a figure with a small panel per setting and strategy, all others in grey behind it."""
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    study = results.study
    rows = math.ceil(len(study.strategies) / COLUMNS)
    columns = math.ceil(len(study.strategies) / rows)
    controlled = {control: strategy for strategy, control, _ in stats.controls(study)}
    looks: list[tuple[str, dict[str, Any]]] = [
        ("mean ± 1 sd", {"color": COLOURS[0], "marker": MARKERS[0], **_LEGEND_MEAN}),
        ("a seed", {"color": COLOURS[0], "alpha": 0.45, "marker": "o", "linestyle": "none", "markersize": 3}),
    ]
    looks += [("the strategy it is a control of", _CONTROLLED)] if controlled else []
    looks += [("all others", _OTHERS)]
    looks += (
        [("critical sparsity", {"color": COLOURS[0], **_CRITICAL}), ("dense", _DENSE),
         ("95% of dense", _RETAINED), ("chance", _CHANCE)]
        if kind == "metric" else [("epoch budget", _DENSE)]
    )  # fmt: skip
    legend_rows = math.ceil(len(looks) / _legend_columns([name for name, _ in looks]))
    height = len(study.settings()) * (0.95 * rows + 0.45) + 0.15 + 0.17 * legend_rows
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    sheets = figure.subfigures(len(study.settings()), 1, squeeze=False).flat
    for sheet, setting in zip(sheets, study.settings(), strict=True):
        _sheet(sheet, results, setting, kind, (rows, columns), controlled)
    _legend(figure, [Line2D([], [], **look) for _, look in looks], [name for name, _ in looks])
    return figure


_LEGEND_MEAN = {
    name: _MEAN[name] for name in ("linewidth", "markersize", "markeredgecolor", "markeredgewidth")
}


def _sheet(
    sheet: SubFigure,
    results: Results,
    setting: Setting,
    kind: Kind,
    shape: tuple[int, int],
    controlled: dict[str, str],
) -> None:
    """Fill one setting's part of the figure."""
    names = [recipe.name for recipe in results.study.strategies]
    panels = list(sheet.subplots(*shape, sharex=True, sharey=True, squeeze=False).flat)
    curves = {
        name: _means([r for r in _runs(results, setting) if r.strategy == name], kind) for name in names
    }

    def draw(axes: Axes, name: str, look: dict[str, Any], order: float) -> None:
        low, _ = axes.get_ylim()
        y = [mean if mean >= low else math.nan for _, mean, _ in curves[name]]
        axes.plot([100 * s for s, _, _ in curves[name]], y, zorder=order, **look)

    named: list[tuple[str, float]] = []
    for axes, name in zip(panels, names, strict=False):
        named = _frame(axes, results, setting, kind)
        for other in names:
            draw(axes, other, _OTHERS, 1.5)
        if name in controlled:
            draw(axes, controlled[name], _CONTROLLED, 2)
        _strategy(axes, results, setting, _Line(name), kind)
        if kind == "metric":
            _say_clipped(axes, [run for run in _runs(results, setting) if run.strategy == name], brief=True)
        axes.set_title(_said(textwrap.fill(name, 20)), fontsize=6.5, loc="left", pad=3)
        axes.tick_params(labelsize=6)
    _tick(panels[0], results.study, 0.15)
    for axes in panels[len(names) :]:
        axes.set_axis_off()
    for axes in panels[len(names) - shape[1] : len(names)]:
        axes.tick_params(axis="x", labelbottom=True)  # the lowest panel of a column that ends early
    note, alarming = _note(results, setting)
    lines = ", ".join(text for text, _ in named)
    title = _said(f"{results.words(setting)}: {lines}; {note}")
    colour = "firebrick" if alarming else "black"
    sheet.suptitle(title, fontsize=8, x=0.01, ha="left", fontweight="bold", color=colour)
    sheet.supxlabel("requested sparsity (%)", fontsize=7)
    sheet.supylabel(_label(results, setting, kind), fontsize=7)


def _label(results: Results, setting: Setting, kind: Kind) -> str:
    return _said(f"test {results.tasks[setting.task].metric}") if kind == "metric" else "epochs trained"


def _note(results: Results, setting: Setting) -> tuple[str, bool]:
    """Return what every panel must say of its data, and whether that is alarming."""
    seeds = len(results.study.seeds)
    lost = sum(run.test_metric is None for run in _runs(results, setting))
    missing = sum(run.setting == setting for run in results.missing)
    note = f"mean ± 1 sd, n = {seeds}" if seeds > 1 else "n = 1"
    note += f", {lost} diverged" * bool(lost) + f", {missing} missing" * bool(missing)
    return note, bool(lost or missing)


def _tick(axes: Axes, study: Study, least: float) -> None:
    """Label the sparsities, leaving out those closer than a share ``least`` of the axis to the next."""
    levels = sorted(100 * s for s in study.sparsities)
    labelled = _apart(levels, least * _span(study))
    axes.set_xticks(labelled, [f"{level:.4g}" for level in labelled])


def _legend(figure: Figure, handles: list[Any], names: Sequence[str]) -> None:
    figure.legend(
        handles,
        names,
        loc="outside lower center",
        ncols=_legend_columns(names),
        frameon=False,
        handlelength=2.6,
        columnspacing=1.4,
    )


def _legend_columns(names: Sequence[str]) -> int:
    """Return how many columns of a legend fit into the figure's width, five at most."""
    for columns in range(min(len(names), 5), 1, -1):
        widest = [max(map(len, column)) for column in np.array_split(names, columns)]
        # a letter of the legend's font is about 4.6 points wide, a handle and its gaps about 36
        if sum(36 + 4.6 * letters for letters in widest) <= 72 * WIDTH:
            return columns
    return 1


def _apart(levels: Sequence[float], least: float) -> list[float]:
    """Return the levels whose tick labels would not touch: the lowest, then the highest first served."""
    kept = [min(levels)]
    for level in sorted(levels, reverse=True):
        if all(abs(level - other) >= least for other in kept):
            kept.append(level)
    return sorted(kept)


def _said(name: str) -> str:
    """Return a user's words as matplotlib writes them out, instead of taking them for formulas or hidden labels."""
    return (" " if name.startswith("_") else "") + name.replace("$", r"\$")


def _short(value: float) -> str:
    return f"{value:.2f}" if abs(value) >= 0.1 else f"{value:.2g}"


@contextmanager
def _plain_style() -> Iterator[None]:
    """Draw with matplotlib's defaults and ours, whatever the user's own style says."""
    import matplotlib

    # all defaults would also reset the backend of a notebook that draws beside us
    keep = {"backend", "interactive", "toolbar", "backend_fallback"}
    style: Any = {k: v for k, v in matplotlib.rcParamsDefault.items() if k not in keep} | _STYLE
    with matplotlib.rc_context(style):
        yield
