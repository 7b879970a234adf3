"""A study's two figures: its metric, and its epochs, against sparsity. No torch here, and no pyplot.

``metric_figure(load("results")).savefig("mine.pdf")``. One panel per task, one line per strategy; every seed
is a faint point, so that a mean cannot hide what it is the mean of. Colours are Okabe and Ito's (2008), safe
for colour-blind readers, and every strategy also has a marker of its own. With many strategies each panel
takes the whole width and its levels stand evenly, so that the strategies fit side by side at each.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from natal import stats
from natal.results import Results, Row
from natal.spec import Study

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FIGURES = {"accuracy_vs_sparsity.png": "metric", "epochs_vs_sparsity.png": "epochs"}
"""File names of the figures, as the published program calls them."""
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#000000", "#B8A800")
MARKERS = "osD^vPXd<>ph"
DASHES = ("-", "--", "-.")
FEW = 6
"""Up to so many strategies share narrow panels, with bars for ± 1 standard deviation."""
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


def metric_figure(results: Results) -> Figure:
    """Return the figure of mean test metric against sparsity, ± 1 standard deviation.

    Vertical dashes: each strategy's critical sparsity, short ones on the axis where strategies are many.
    Horizontal lines: the dense mean, 0.95 of it, and chance. Points far below everything a reader wants to
    compare (R² has no floor) are drawn as arrows on the lower edge and counted.
    """
    return _figure(results, _metric_panel)


def epochs_figure(results: Results) -> Figure:
    """Return the figure of mean epochs trained against sparsity, ± 1 standard deviation, and the budget."""
    return _figure(results, _epochs_panel)


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


# -- panels ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Line:
    """How one strategy is drawn: its place among the strategies decides colour, marker and sideways shift."""

    name: str
    colour: str
    marker: str
    dash: str
    shift: float
    places: Mapping[float, float]
    crowded: bool

    def x(self, sparsity: float) -> float:
        return self.places[sparsity] + self.shift


def _lines(study: Study) -> list[_Line]:
    names = [recipe.name for recipe in study.strategies]
    crowded, places = len(names) > FEW, _places(study)
    # shifted by fractions of a percent: equal values would hide each other otherwise
    step = 7 / len(names) if crowded else min(0.8, 4 / max(len(names) - 1, 1))
    return [
        _Line(
            name,
            COLOURS[i % len(COLOURS)],
            MARKERS[i % len(MARKERS)],
            DASHES[i // len(COLOURS) % len(DASHES)],
            step * (i - (len(names) - 1) / 2),
            places,
            crowded,
        )
        for i, name in enumerate(names)
    ]


def _places(study: Study) -> dict[float, float]:
    """Return where each sparsity stands on the axis: at its percentage, or one after the other if crowded."""
    levels = sorted(study.sparsities)
    if len(study.strategies) > FEW:
        return {s: 10.0 * i for i, s in enumerate(levels)}
    return {s: 100 * s for s in levels}


def _metric_panel(axes: Axes, results: Results, task: str, lines: list[_Line]) -> None:
    runs = [run for run in results.runs if run["task"] == task]
    facts = results.tasks.get(task, {})
    chance = float(facts.get("chance", 0.0))
    dense = stats.dense_baseline(runs, task)
    low, high = _window(runs, chance)
    axes.set_ylim(low, high)
    axes.set_ylabel(f"test {facts.get('metric', 'metric')}")

    _level(axes, chance, f"chance {_short(chance)}", ":")
    if dense and dense.test.n:
        _level(axes, dense.test.mean, f"dense {_short(dense.test.mean)}", "-")
    bar = stats.threshold(runs, task)
    if bar is not None:
        axes.axhline(bar, color="0.6", linewidth=0.7, linestyle=(0, (1, 2)), zorder=1)

    for line in lines:
        critical = stats.critical_sparsity(runs, task, line.name)
        if critical is not None:
            # many whole lines would bury the data
            look: Any = {"ymax": 0.06} if line.crowded else {"linestyle": (0, (4, 3))}
            axes.axvline(line.x(critical), color=line.colour, linewidth=1, zorder=1, **look)
        _points(axes, line, runs, "test_metric")
        _means(axes, line, [(c.sparsity, c.test) for c in stats.cells(runs, task, line.name)])
    _mark_clipped(axes, runs, lines)


def _epochs_panel(axes: Axes, results: Results, task: str, lines: list[_Line]) -> None:
    runs = [run for run in results.runs if run["task"] == task]
    budget = results.study.training.epochs
    tallest = max((c.epochs.mean + c.epochs.std for c in stats.cells(runs) if c.epochs.n), default=0.0)
    axes.set_ylim(0, 1.05 * max(budget, tallest))
    axes.set_ylabel("epochs trained")
    _level(axes, budget, f"budget {budget}", "-")
    for line in lines:
        _points(axes, line, runs, "epochs_trained")
        _means(axes, line, [(c.sparsity, c.epochs) for c in stats.cells(runs, task, line.name)])


def _means(axes: Axes, line: _Line, points: Iterable[tuple[float, stats.Summary]]) -> None:
    """Draw one strategy's means with ± 1 standard deviation; a mean below the panel is left to the arrows."""
    low, _ = axes.get_ylim()
    shown = sorted((s, m.mean, m.std) for s, m in points if m.n)
    x = [line.x(s) for s, _, _ in shown]
    mean = [mean if mean >= low else math.nan for _, mean, _ in shown]
    std = [std for _, _, std in shown]
    look: dict[str, Any] = {"color": line.colour, "marker": line.marker, "linestyle": line.dash}
    axes.errorbar(x, mean, None if line.crowded else std, label=line.name, zorder=4, **look, **_MEAN)


def _points(axes: Axes, line: _Line, runs: Sequence[Row], name: str) -> None:
    """Draw every seed's value of one strategy as a faint point."""
    low, _ = axes.get_ylim()
    shown = [run for run in runs if run["strategy"] == line.name and run["test_metric"] is not None]
    x = [line.x(run["sparsity"]) for run in shown]
    y = [run[name] if run[name] >= low else math.nan for run in shown]
    size = 2.4 if line.crowded else 3.4
    axes.plot(x, y, "o", color=line.colour, alpha=0.45, markersize=size, markeredgewidth=0, zorder=3)


def _level(axes: Axes, y: float, text: str, dash: str) -> None:
    """Draw a horizontal line, named in the right margin."""
    low, high = axes.get_ylim()
    if low <= y <= high:
        axes.axhline(y, color="0.45", linewidth=0.8, linestyle=dash, zorder=1)
        where: Any = {"xycoords": ("axes fraction", "data"), "xytext": (2, 0), "textcoords": "offset points"}
        axes.annotate(text, (1, y), va="center", annotation_clip=False, **where, **_SMALL)


def _mark_clipped(axes: Axes, runs: Sequence[Row], lines: list[_Line]) -> None:
    """Mark runs below the panel with arrows on its lower edge, and say how many and how far."""
    low, high = axes.get_ylim()
    below = [run for run in stats.once(runs) if run["test_metric"] is not None and run["test_metric"] < low]
    edge = low + 0.04 * (high - low)
    looks = {line.name: line for line in lines}
    for run in below:
        line = looks[run["strategy"]]
        axes.plot(line.x(run["sparsity"]), edge, color=line.colour, marker=CARET_DOWN, zorder=5)
    if below:
        worst = min(run["test_metric"] for run in below)
        words = f"arrows: {len(below)} run{'s' * (len(below) > 1)} below the axis, down to {worst:.3g}"
        paper = {"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1}
        axes.text(0.02, 0.06, words, transform=axes.transAxes, bbox=paper, **_SMALL)


def _window(runs: Sequence[Row], chance: float) -> tuple[float, float]:
    """Return the metric's axis limits: all of the data, but below chance only half as much as above it."""
    values = [run["test_metric"] for run in runs if run["test_metric"] is not None]
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


def _figure(results: Results, panel: Callable[[Axes, Results, str, list[_Line]], None]) -> Figure:
    from matplotlib.figure import Figure

    tasks = results.study.tasks
    lines = _lines(results.study)
    crowded = len(lines) > FEW
    columns = 1 if crowded else min(len(tasks), 2)
    rows = math.ceil(len(tasks) / columns)
    names = [*(line.name for line in lines), "critical sparsity", "95% of dense"]
    legend_rows = math.ceil(len(names) / _legend_columns(names))
    height = (3.4 if crowded else 2.6) * rows + 0.35 + 0.17 * legend_rows
    with _plain_style():
        figure = Figure(figsize=(WIDTH, height), layout="constrained")
        grid: Any = figure.subplots(rows, columns, squeeze=False)
        panels = list(grid.flat)
        for axes, task in zip(panels, tasks, strict=False):
            panel(axes, results, task, lines)
            _dress(axes, results, task)
        for axes in panels[len(tasks) :]:
            axes.set_axis_off()
        _legend(figure, panels[0], dashes=panel is _metric_panel)
    return figure


def _dress(axes: Axes, results: Results, task: str) -> None:
    places = _places(results.study)
    levels = list(places.values())
    crowded = len(results.study.strategies) > FEW
    axes.set_title(task, loc="left", fontweight="bold")
    axes.set_xlabel("requested sparsity (%)" + ", levels spaced evenly" * crowded)
    span = max(levels[-1] - levels[0], 10)
    margin = 5.0 if crowded else 0.05 * span
    axes.set_xlim(levels[0] - margin, levels[-1] + margin)
    panels_wide = 1 if crowded else min(len(results.study.tasks), 2)
    labelled = _apart(levels, 0.03 * panels_wide * span)
    axes.set_xticks(labelled, [f"{100 * s:.4g}" for s, x in places.items() if x in labelled])
    axes.set_xticks(levels, minor=True)
    axes.tick_params(axis="x", which="minor", length=3.5)
    axes.grid(axis="y", color="0.92", linewidth=0.6, zorder=0)
    axes.set_axisbelow(True)
    seeds = len(results.study.seeds)
    lost = sum(run["task"] == task and run["test_metric"] is None for run in results.runs)
    missing = sum(run.task == task for run in results.missing)
    spread = "mean and every seed" if crowded else "mean ± 1 sd"
    note = f"{spread}, n = {seeds}" if seeds > 1 else "n = 1"
    note += f", {lost} diverged" * bool(lost) + f", {missing} missing" * bool(missing)
    axes.set_title(note, loc="right", fontsize=6.5, color="firebrick" if lost or missing else "0.3")


def _legend(figure: Figure, axes: Axes, dashes: bool) -> None:
    from matplotlib.lines import Line2D

    handles, names = axes.get_legend_handles_labels()
    if dashes:
        short: Any = {"marker": "|", "linestyle": "none"} if len(names) > FEW else {"linestyle": (0, (4, 3))}
        handles += [
            Line2D([], [], color="0.4", linewidth=1.0, **short),
            Line2D([], [], color="0.6", linestyle=(0, (1, 2)), linewidth=0.9),
        ]
        names += ["critical sparsity", "95% of dense"]
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
    """Return the levels whose tick labels would not touch, the highest first served."""
    kept: list[float] = []
    for level in sorted(levels, reverse=True):
        if not kept or kept[-1] - level >= least:
            kept.append(level)
    return kept[::-1]


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
