"""A study's figures: its metric, and its epochs, against sparsity, and the ranking. No torch here, and no pyplot.

``metric_figure(load("results")).savefig("mine.pdf")``, or `write` for PNG, SVG and PDF of a paper's width. Up to six
strategies share one panel per setting; of more, six are in colour before all others in grey, beside a forest plot of
all. Every seed is a faint point, so that a mean cannot hide what it is the mean of, and stands where its level is.
Bars are the 95 % t-intervals that the report speaks of, without what cannot be. Colours are Okabe and Ito's (2008),
safe for colour-blind readers, and every strategy has a marker of its own for readers in grey.
"""

from __future__ import annotations

import io
import math
import os
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

from natal.errors import NatalError
from natal.reading import stats
from natal.reading.rows import Row, Runs
from natal.registry import did_you_mean
from natal.study import Setting, Study

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.text import Text

    from natal.reading.results import Results

FIGURES = {"accuracy_vs_sparsity.png": "metric", "epochs_vs_sparsity.png": "epochs"}
"""File names of the figures, as the published program calls them."""
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9")
MARKERS = "osD^vP"
FEW = len(COLOURS)
"""Up to so many strategies have a colour."""
WIDTH = 7.0  # inches: the text width of a paper
NARROW = 5.0
"""Below so many inches panels stand under each other: a column of a paper."""
DPI = 200
DIGEST = "natal-digest"  # the PNG text entry that says which results a picture shows
CARET_DOWN = 11  # matplotlib's caret with its base on the point
Format = Literal["png", "svg", "pdf"]
Kind = Literal["metric", "epochs", "ranking"]
Axis = Literal["sparsity", "density"]
"""What stands below a curve: the requested sparsity, or the share of weights kept on a logarithmic scale."""
NAMES: dict[Kind, str] = {
    "metric": "accuracy_vs_sparsity",
    "epochs": "epochs_vs_sparsity",
    "ranking": "ranking",
}
"""File names of figures, without their ending."""
_STYLE: dict[str, Any] = {
    **{"font.family": "DejaVu Sans", "font.size": 8, "axes.labelsize": 8, "axes.titlesize": 9},
    **{"legend.fontsize": 7.5, "xtick.labelsize": 7.5, "ytick.labelsize": 7.5},
    **{"axes.linewidth": 0.8, "axes.spines.top": False, "axes.spines.right": False},
    # a journal takes no other fonts than those a file brings: TrueType in PDF, outlines in SVG
    **{"pdf.fonttype": 42, "ps.fonttype": 42, "svg.fonttype": "path", "svg.hashsalt": "natal"},
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


def metric_figure(results: Results, width: float = WIDTH, axis: Axis | None = None) -> Figure:
    """Return the figure of mean test metric against sparsity, with 95 % t-intervals.

    ``width`` in inches. ``axis``: see `Axis`; by default what `axis_of` says. Vertical dashes: a strategy's critical
    sparsity. Horizontal lines: the dense mean, 0.95 of it, and chance. Points far below everything a reader wants to
    compare (R² has no floor) are drawn as arrows on the lower edge and counted. Of more than six strategies, six are in
    colour: random masks, then those with the best ranks that are no controls; beside them stands the ranking of all.
    """
    return figure(results, "metric", width, axis)


def epochs_figure(results: Results, width: float = WIDTH, axis: Axis | None = None) -> Figure:
    """Return the figure of mean epochs trained against sparsity, likewise, and the budget."""
    return figure(results, "epochs", width, axis)


def figure(results: Results, kind: Kind = "metric", width: float = WIDTH, axis: Axis | None = None) -> Figure:
    """Return a figure: ``metric`` or ``epochs`` against sparsity, or the ``ranking`` as a forest plot."""
    with _plain_style():
        if kind == "ranking":
            return _forests(results, width)
        return _curves(results, kind, width, axis or axis_of(results.study))


def axis_of(study: Study) -> Axis:
    """Return the axis that shows a study's levels apart: density, if half of the pruned ones are 0.9 or above."""
    pruned = [s for s in study.sparsities if s > 0]
    return "density" if pruned and 2 * sum(s >= 0.9 for s in pruned) >= len(pruned) else "sparsity"


def png(results: Results, kind: str) -> bytes:
    """Return the bytes of the ``metric`` or ``epochs`` figure, carrying `Results.digest` as a text entry."""
    made = {"metric": metric_figure, "epochs": epochs_figure}[kind](results)
    return _saved(made, "png", {"Software": "natal", DIGEST: results.digest})


@dataclass(frozen=True)
class Picture:
    """A figure that shows itself in a notebook; ``figure`` is matplotlib's, to change or save."""

    figure: Figure

    def _repr_png_(self) -> bytes:
        return _saved(self.figure, "png", _KEEPSAKE["png"])


def write(
    results: Results,
    directory: str | Path,
    form: str = "pdf",
    width: float = WIDTH,
    axis: Axis | None = None,
) -> list[Path]:
    """Write all figures for a paper: ``form`` is png, svg or pdf, ``width`` in inches; return their paths.

    Raises NatalError for another form, for a width below 2 or above 20 inches, or if a file cannot be written.
    """
    if form not in get_args(Format):
        raise NatalError(f"unknown format {form!r}{did_you_mean(form, get_args(Format))}")
    if not 2 <= width <= 20:
        raise NatalError(f"a figure must be 2 to 20 inches wide, got {width:g}")
    directory = Path(directory)
    paths = []
    for kind, name in NAMES.items():
        content = _saved(figure(results, kind, width, axis), form, _KEEPSAKE[form])
        path = directory / f"{name}.{form}"
        try:
            directory.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        except OSError as error:
            raise NatalError(f"{path}: {error.strerror}; name another directory with --out") from None
        paths.append(path)
    return paths


_KEEPSAKE: dict[str, dict[str, Any]] = {
    "png": {"Software": "natal"},
    "svg": {"Creator": "natal", "Date": None},
    "pdf": {"Creator": "natal", "Producer": None, "CreationDate": None},
}
"""What a file says of itself: nothing that changes from one writing to the next."""


def inches(width: str) -> float:
    """Return a width such as ``3.25in``, ``8.5cm`` or ``85mm`` in inches; raise NatalError if it is none."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(in|cm|mm)", width.strip())
    if not found:
        raise NatalError(f"--width {width!r}: write it with its unit, such as 3.25in or 8.5cm")
    return float(found[1]) / {"in": 1.0, "cm": 2.54, "mm": 25.4}[found[2]]


def _saved(made: Figure, form: str, metadata: dict[str, Any]) -> bytes:
    file = io.BytesIO()
    with _plain_style():
        made.savefig(file, format=form, dpi=DPI, metadata=metadata)
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


def priority(results: Results, rankings: Iterable[Sequence[stats.Ranked]] | None = None) -> list[str]:
    """Return a study's strategies in the order in which figures colour them: random masks, the best ranks, controls.

    ``rankings``: of each setting, where they are known already.
    """
    study = results.study
    random = random_masks(study)
    controls = {recipe.name for recipe in study.strategies if recipe.control is not None}
    ranks: dict[str, list[int]] = {recipe.name: [] for recipe in study.strategies}
    for ranked in rankings or (stats.ranking(results.runs, setting) for setting in study.settings()):
        for r in ranked:
            ranks[r.strategy].append(r.rank)

    def place(name: str) -> tuple[bool, bool, float]:
        return name != random, name in controls, float(np.mean(ranks[name])) if ranks[name] else math.inf

    return sorted(ranks, key=place)


def random_masks(study: Study) -> str | None:
    """Return the strategy that others are measured against: the first that removes weights at random."""
    for recipe in study.strategies:
        drawn = recipe.criterion in ("random", "init-stream") and recipe.control is None
        if drawn and recipe.granularity == "weight":
            return recipe.name
    return None


def possible(metric: str, low: float, high: float) -> tuple[float, float]:
    """Return an interval without what no metric can be: above 1, or an accuracy below 0."""
    return max(low, 0.0 if metric == "accuracy" else -math.inf), min(high, 1.0)


# -- one panel -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Line:
    """How one strategy is drawn: its place among those in colour decides its colour and marker; None is grey."""

    name: str
    place: int | None

    @property
    def colour(self) -> str:
        return "0.55" if self.place is None else COLOURS[self.place]

    @property
    def marker(self) -> str:
        return "o" if self.place is None else MARKERS[self.place]


def _lines(results: Results) -> list[_Line]:
    """Return how each strategy is drawn, in the study's order."""
    names = [recipe.name for recipe in results.study.strategies]
    chosen = names if len(names) <= FEW else priority(results)[:FEW]
    places = {name: i for i, name in enumerate(name for name in names if name in chosen)}
    return [_Line(name, places.get(name)) for name in names]


def _x(sparsity: float, axis: Axis) -> float:
    return 100 * sparsity if axis == "sparsity" else 100 * (1 - sparsity)


def _below(axes: Axes, study: Study, axis: Axis) -> None:
    """Draw the axis of the levels, each of which has its label."""
    from matplotlib.ticker import NullLocator

    levels = sorted(study.sparsities)
    places = [_x(s, axis) for s in levels]
    if axis == "density":
        axes.set_xscale("log")
        axes.set_xlim(1.15 * max(places), min(places) / 1.15)
        axes.set_xlabel("weights kept (%), requested")
    else:
        margin = 0.05 * 100 * max(levels[-1] - levels[0], 0.1)
        axes.set_xlim(places[0] - margin, places[-1] + margin)
        axes.set_xlabel("requested sparsity (%)")
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticks(places)
    axes.tick_params(axis="x", length=3.5)
    axes.grid(axis="y", color="0.92", linewidth=0.6, zorder=0)
    axes.set_axisbelow(True)


def _name_levels(axes: Axes, study: Study, axis: Axis) -> None:
    """Write every level's label, a line lower where it would touch its neighbour; needs the panel's final width."""
    room = axes.get_window_extent().width * 72 / axes.figure.dpi  # points
    ends = [
        axes.transLimits.transform((axes.transScale.transform((x, 0))[0], 0))[0] for x in axes.get_xticks()
    ]
    names = [f"{_x(s, axis):.4g}" for s in sorted(study.sparsities)]
    free = [-math.inf] * 4
    labels = []
    for end, name in sorted(zip(ends, names, strict=True)):
        half = 2.5 * len(name) + 1.5  # a digit is about 4.8 points wide
        row = next((i for i, taken in enumerate(free) if end * room - half >= taken), len(free) - 1)
        free[row] = end * room + half
        labels.append((end, "\n" * row + name))
    order = dict(labels)
    axes.set_xticklabels([order[end] for end in ends])


def _frame(axes: Axes, results: Results, setting: Setting, kind: Kind) -> list[tuple[str, float]]:
    """Draw what belongs to the setting: the axes' limits and the horizontal lines; return these by name."""
    runs = _runs(results, setting)
    if kind == "epochs":
        budget = results.networks[setting].epochs
        tallest = max((c.epochs.mean for c in stats.cells(runs) if c.epochs.n), default=0.0)
        axes.set_ylim(0, 1.05 * max(budget, tallest))
        axes.axhline(budget, zorder=1, **_DENSE)
        return [(f"budget {round(budget, 2):.10g}", budget)]
    task = results.tasks[setting.task]
    low, high = window(runs, task.chance, task.metric)
    axes.set_ylim(low, high)
    named = [(f"chance {_short(task.chance)}{' below' * (task.chance < low)}", max(task.chance, low))]
    if task.chance >= low:
        axes.axhline(task.chance, zorder=1, **_CHANCE)
    dense, bar = stats.dense_baseline(runs, setting), stats.threshold(runs, setting)
    if dense and dense.test.n and dense.test.mean >= low:
        axes.axhline(dense.test.mean, zorder=1, **_DENSE)
        named.append((f"dense {_short(dense.test.mean)}", dense.test.mean))
    if bar is not None:
        axes.axhline(bar, zorder=1, **_RETAINED)
    return named


def _strategy(axes: Axes, results: Results, setting: Setting, line: _Line, kind: Kind, axis: Axis) -> None:
    """Draw one strategy: every seed, the means with their intervals, and its critical sparsity; a grey one's means."""
    low, high = axes.get_ylim()
    cells = [
        (_x(s, axis), mean if mean >= low else math.nan, interval)
        for s, mean, interval in _means(results, setting, line.name, kind)
    ]  # what lies below the panel is left to the arrows
    xs, means = [x for x, _, _ in cells], [mean for _, mean, _ in cells]
    if line.place is None:
        axes.plot(xs, means, zorder=1.5, **_OTHERS)
        return
    runs = [run for run in _runs(results, setting) if run.strategy == line.name]
    seeds = [(_x(run.sparsity, axis), _value(run, kind)) for run in runs if run.test_metric is not None]
    shown = [(x, y) for x, y in seeds if y >= low]
    axes.plot(
        [x for x, _ in shown], [y for _, y in shown], "o",
        color=line.colour, alpha=0.45, markersize=3.4, markeredgewidth=0, zorder=3,
    )  # fmt: skip
    bars = [
        [max(mean - bottom, 0) for _, mean, (bottom, _) in cells],
        [max(top - mean, 0) for _, mean, (_, top) in cells],
    ]
    axes.errorbar(
        xs, means, np.nan_to_num(bars),
        label=_said(line.name), color=line.colour, marker=line.marker, zorder=4, **_MEAN,
    )  # fmt: skip
    if kind == "metric":
        critical = stats.critical_sparsity(results.runs, setting, line.name)
        if critical is not None:
            axes.axvline(_x(critical, axis), color=line.colour, zorder=1, **_CRITICAL)
            # several strategies' dashes: whose they are must be seen in grey, too
            look: Any = {"color": line.colour, "marker": line.marker, "markersize": 3.2, "markeredgewidth": 0}
            axes.plot(
                [_x(critical, axis)], [1.0], transform=axes.get_xaxis_transform(), clip_on=False, **look
            )
    for x, y in seeds:
        if y < low:  # runs below the panel are arrows on its lower edge
            axes.plot([x], [low + 0.04 * (high - low)], color=line.colour, marker=CARET_DOWN, zorder=5)


def _say_clipped(axes: Axes, runs: Sequence[Row]) -> None:
    """Say how many runs lie below the panel, and how far; the shared dense ones once."""
    low, _ = axes.get_ylim()
    values = [run.test_metric for run in stats.once(runs) if run.test_metric is not None]
    below = [value for value in values if value < low]
    if below:
        runs_below = f"{len(below)} run{'s' * (len(below) > 1)}"
        words = f"arrows: {runs_below} below the axis, down to {min(below):.3g}"
        paper = {"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1}
        axes.text(0.02, 0.06, words, transform=axes.transAxes, bbox=paper, **_SMALL)


def _runs(results: Results, setting: Setting) -> Runs:
    return results.runs.settings.get(setting, Runs())


def _value(run: Row, kind: Kind) -> float:
    return run.epochs_trained if kind == "epochs" or run.test_metric is None else run.test_metric


def _means(
    results: Results, setting: Setting, strategy: str, kind: Kind
) -> list[tuple[float, float, tuple[float, float]]]:
    """Return sparsity, mean and interval of each of one strategy's cells that has any, within what can be."""
    budget, metric = results.networks[setting].epochs, results.tasks[setting.task].metric
    found = []
    for c in stats.cells(results.runs, setting, strategy):
        m = c.test if kind == "metric" else c.epochs
        ends = possible(metric, m.low, m.high) if kind == "metric" else (max(m.low, 0.0), min(m.high, budget))
        if m.n:
            found.append((c.sparsity, m.mean, ends if m.n > 1 else (math.nan, math.nan)))
    return sorted(found)


SQUEEZED = 1 / 3
"""The share of a panel that the data need at least; where chance would leave them less, it is left below the panel."""


def window(runs: Sequence[Row], chance: float, metric: str) -> tuple[float, float]:
    """Return the metric's axis limits: all of the data, what must be retained, and chance unless they are far above it;
    below chance only half as much as above it."""
    values = [run.test_metric for run in runs if run.test_metric is not None]
    reach = (max([chance, *values]) - chance) or 1.0
    floor = chance - 0.5 * reach
    for c in stats.cells(runs):
        # the bar of a cell with a run below the panel would reach far above it, too
        if c.test.n > 1 and min(c.values.values()) >= floor:
            values += possible(metric, c.test.low, c.test.high)
    bar = stats.threshold(runs, runs[0].setting) if runs else None
    values += [] if bar is None else [bar]
    if not values or max(values) - min(values) >= SQUEEZED * (max(values) - chance):
        values.append(chance)
    top, bottom = max(values), max(min(values), floor)
    margin = 0.06 * (top - bottom or reach)
    return bottom - margin, top + margin


# -- the sheet -------------------------------------------------------------------------------------------


def _curves(results: Results, kind: Kind, width: float, axis: Axis) -> Figure:
    """Return a panel per setting in which all strategies meet; if they are many, with their ranking beside it."""
    from matplotlib.lines import Line2D

    settings, lines = results.study.settings(), _lines(results)
    many = len(lines) > FEW
    beside = many and kind == "metric"
    columns = 1 if width < NARROW or (beside and len(settings) == 1) else 2
    looks: list[tuple[str, dict[str, Any]]] = [
        *([("critical sparsity", {"color": "0.4", **_CRITICAL}), ("95% of dense", _RETAINED)]) * (kind == "metric"),
        *([(f"{len(lines) - FEW} others", _OTHERS)] * many),
    ]  # fmt: skip
    names = [_said(line.name) for line in lines if line.place is not None] + [name for name, _ in looks]
    if beside:
        figure, panels, forests = _beside(len(settings), len(lines), width, names)
    else:
        columns = min(columns, len(settings))
        figure, panels = _sheet(len(settings), columns, 2.6, width, names)
        forests = []
    titles: list[tuple[Axes, Text, Text]] = []
    for axes, setting in zip(panels, settings, strict=False):
        _below(axes, results.study, axis)
        named = _frame(axes, results, setting, kind)
        for line in lines:
            _strategy(axes, results, setting, line, kind, axis)
        if kind == "metric":
            shown = {line.name for line in lines if line.place is not None}
            _say_clipped(axes, [run for run in _runs(results, setting) if run.strategy in shown])
        where: Any = {"xycoords": ("axes fraction", "data"), "xytext": (2, 0), "textcoords": "offset points"}
        for text, y in named:
            axes.annotate(text, (1, y), va="center", annotation_clip=False, **where, **_SMALL)
        titles.append((axes, *_titled(axes, results, setting)))
        axes.set_ylabel(_label(results, setting, kind))
    for axes, setting in zip(forests, settings, strict=False):
        _forest(axes, results, setting, {line.name: line for line in lines})
    for axes in panels[len(settings) :]:
        axes.set_axis_off()
    handles, named_lines = panels[0].get_legend_handles_labels()
    handles += [Line2D([], [], **look) for _, look in looks]
    _legend(figure, handles, [*named_lines, *(name for name, _ in looks)], width)
    figure.draw_without_rendering()
    for axes, _ in zip(panels, settings, strict=False):
        _name_levels(axes, results.study, axis)
    _set_apart(figure, titles)
    return figure


def _sheet(
    count: int, columns: int, height: float, width: float, names: Sequence[str]
) -> tuple[Figure, list[Axes]]:
    """Return a figure with so many panels, and room for a legend of these names."""
    from matplotlib.figure import Figure

    rows = math.ceil(count / columns)
    legend = math.ceil(len(names) / _legend_columns(names, width)) if names else 0
    figure = Figure(figsize=(width, height * rows + 0.35 + 0.17 * legend), layout="constrained")
    return figure, list(figure.subplots(rows, columns, squeeze=False).flat)


def _beside(
    count: int, strategies: int, width: float, names: Sequence[str]
) -> tuple[Figure, list[Axes], list[Axes]]:
    """Return a figure with a panel and a forest plot per setting: beside each other, or below in a column."""
    from matplotlib.figure import Figure

    tall = 0.45 + 0.135 * strategies
    legend = 0.35 + 0.17 * math.ceil(len(names) / _legend_columns(names, width))
    if width < NARROW:
        figure = Figure(figsize=(width, count * (2.4 + tall) + legend), layout="constrained")
        panels = list(figure.subplots(2 * count, 1, height_ratios=[2.4, tall] * count, squeeze=False).flat)
    else:
        figure = Figure(figsize=(width, count * max(2.6, tall) + legend), layout="constrained")
        panels = list(figure.subplots(count, 2, width_ratios=[1.35, 1], squeeze=False).flat)
    return figure, panels[::2], panels[1::2]


def _titled(axes: Axes, results: Results, setting: Setting) -> tuple[Text, Text]:
    """Write a setting's name above its panel, and beside it what must be known of its data."""
    name = axes.set_title(_said(results.words(setting)), loc="left", fontweight="bold")
    note, alarming = _note(results, setting)
    colour = "firebrick" if alarming else "0.3"
    return name, axes.set_title(note, loc="right", fontsize=6.5, color=colour)


def _set_apart(figure: Figure, titles: Sequence[tuple[Axes, Text, Text]]) -> None:
    """Raise the names of all panels by a line if one of them reaches into the note on its right."""
    figure.draw_without_rendering()
    if any(name.get_window_extent().x1 + 4 > note.get_window_extent().x0 for _, name, note in titles):
        for axes, name, note in titles:
            line = 1.4 * note.get_window_extent().height / axes.get_window_extent().height
            axes.set_title(name.get_text(), loc="left", fontweight="bold", y=1 + line)


def _forests(results: Results, width: float) -> Figure:
    """Return a figure with the ranking of each setting's strategies as a forest plot."""
    settings, lines = results.study.settings(), _lines(results)
    columns = 1 if width < NARROW else min(2, len(settings))
    figure, panels = _sheet(len(settings), columns, 0.55 + 0.15 * len(lines), width, [])
    titles = []
    for axes, setting in zip(panels, settings, strict=False):
        _forest(axes, results, setting, {line.name: line for line in lines})
        titles.append((axes, *_titled(axes, results, setting)))
    for axes in panels[len(settings) :]:
        axes.set_axis_off()
    _set_apart(figure, titles)
    return figure


def _forest(axes: Axes, results: Results, setting: Setting, looks: dict[str, _Line]) -> None:
    """Draw each strategy's mean over all pruned levels and its interval, the best on top."""
    ranked = [r for r in stats.ranking(results.runs, setting) if r.mean.n]
    metric = results.tasks[setting.task].metric
    for place, r in enumerate(ranked):
        look = looks[r.strategy]
        if r.mean.n > 1:
            axes.plot(
                possible(metric, r.mean.low, r.mean.high), [place] * 2, color=look.colour, linewidth=1.2
            )
        axes.plot(
            [r.mean.mean], [place], color=look.colour, marker=look.marker, markersize=4, markeredgewidth=0
        )
    axes.set_yticks(range(len(ranked)), [_said(_cut(r.strategy)) for r in ranked], fontsize=6.5)
    axes.set_ylim(len(ranked) - 0.4, -0.6)
    axes.grid(axis="x", color="0.92", linewidth=0.6, zorder=0)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.set_axisbelow(True)
    axes.set_xlabel(_said(f"mean test {metric} over pruned levels"))


def _cut(name: str) -> str:
    return name if len(name) <= 28 else f"{name[:27]}…"


def _label(results: Results, setting: Setting, kind: Kind) -> str:
    return _said(f"test {results.tasks[setting.task].metric}") if kind == "metric" else "epochs trained"


def _note(results: Results, setting: Setting) -> tuple[str, bool]:
    """Return what every panel must say of its data, and whether that is alarming."""
    seeds = len(results.study.seeds)
    lost = sum(run.test_metric is None for run in _runs(results, setting))
    missing = sum(run.setting == setting for run in results.missing)
    note = f"mean, 95% CI, n = {seeds}" if seeds > 1 else "n = 1"
    note += f", {lost} diverged" * bool(lost) + f", {missing} missing" * bool(missing)
    return note, bool(lost or missing)


def _legend(figure: Figure, handles: list[Any], names: Sequence[str], width: float) -> None:
    figure.legend(
        handles,
        names,
        loc="outside lower center",
        ncols=_legend_columns(names, width),
        frameon=False,
        handlelength=2.6,
        columnspacing=1.4,
    )


def _legend_columns(names: Sequence[str], width: float = WIDTH) -> int:
    """Return how many columns of a legend fit into a width, five at most."""
    for columns in range(min(len(names), 5), 1, -1):
        widest = [max(map(len, column)) for column in np.array_split(names, columns)]
        # a letter of the legend's font is about 4.6 points wide, a handle and its gaps about 36
        if sum(36 + 4.6 * letters for letters in widest) <= 72 * width:
            return columns
    return 1


def _said(name: str) -> str:
    """Return a user's words as matplotlib writes them out, instead of taking them for formulas or hidden labels."""
    return (" " if name.startswith("_") else "") + name.replace("$", r"\$")


def _short(value: float) -> str:
    return f"{value:.2f}" if abs(value) >= 0.1 else f"{value:.2g}"


def _matplotlib() -> ModuleType:
    """Return matplotlib, which does not open under a MPLBACKEND that it does not know; files need none."""
    try:
        import matplotlib
    except ValueError:
        wrong = os.environ.pop("MPLBACKEND", None)
        if wrong is None:
            raise
        # what the failed import left behind
        for name in [name for name in sys.modules if name.partition(".")[0] == "matplotlib"]:
            del sys.modules[name]
        try:
            import matplotlib
        finally:
            os.environ["MPLBACKEND"] = wrong
    return matplotlib


@contextmanager
def _plain_style() -> Iterator[None]:
    """Draw with matplotlib's defaults and ours, whatever the user's own style says."""
    matplotlib = _matplotlib()
    # all defaults would also reset the backend of a notebook that draws beside us
    keep = {"backend", "interactive", "toolbar", "backend_fallback"}
    style: Any = {k: v for k, v in matplotlib.rcParamsDefault.items() if k not in keep} | _STYLE
    with matplotlib.rc_context(style):
        yield
