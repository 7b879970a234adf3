"""A report's charts, declared in Vega-Lite 6: what is drawn from which data, not how.

Data are named, see `natal.reading.report.data`; a page fills them in for what its reader has chosen. A table
``{"$": NAME}`` stands for what depends on that choice: ``x`` for the axis (`AXES`), ``strategies`` for those in colour.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

from natal.reading import stats
from natal.reading.connectivity import STABLE
from natal.reading.figures import COLOURS, window
from natal.reading.report.document import Chart
from natal.reading.report.view import View
from natal.reading.wording import interval, number, show_level
from natal.study import Setting
from natal.wording import percent, plural

Spec = dict[str, Any]
SHAPES = ("circle", "square", "diamond", "triangle-down", "cross", "triangle-up")
IN_COLOUR = len(COLOURS)
"""At most so many strategies are in colour, each with a shape of its own; others are grey."""

X: Spec = {"$": "x"}
_CHOSEN = "datum.colour"
_OTHERS = "!datum.colour"


def axes(view: View) -> dict[str, Spec]:
    """Return the axes that a reader can choose from: requested sparsity, or density on a logarithmic scale."""
    levels = sorted(view.study.sparsities)
    kept = [round(1 - s, 10) for s in levels]
    return {
        "sparsity": {
            "field": "sparsity",
            "type": "quantitative",
            "title": "requested sparsity",
            "scale": {"nice": False, "zero": False, "padding": 12},
            "axis": {
                "format": _percents(levels),
                "values": levels,
                "labelOverlap": "greedy",
                "labelSeparation": 4,
                "grid": False,
            },
        },
        "density": {
            "field": "density",
            "type": "quantitative",
            "title": "weights kept (logarithmic)",
            "scale": {"type": "log", "reverse": True, "nice": False, "padding": 12},
            "axis": {
                "format": _percents(kept),
                "values": kept,
                "labelOverlap": "greedy",
                "grid": False,
            },
        },
    }


def _percents(shares: Sequence[float]) -> str:
    """Return the format of an axis that names shares as `natal.wording.percent` does."""
    decimals = max((len(percent(share).strip("%").partition(".")[2]) for share in shares), default=0)
    return f".{decimals}~%"


def metric(view: View, setting: Setting) -> Chart:
    """Return the test metric against sparsity: every seed, means, t intervals, dense and chance, critical sparsity."""
    metric = view.results.tasks[setting.task].metric
    runs = view.runs_of[setting]
    low, high = window(runs, view.results.tasks[setting.task].chance, metric)
    below = sum(r.test_metric is not None and r.test_metric < low for r in runs)
    y: Spec = {
        "type": "quantitative",
        "title": f"test {metric}",
        "scale": {"domain": [low, high], "nice": False, "zero": False},
    }
    spec: Spec = {
        "height": 320,
        "layer": [
            *_levels(y),
            {
                "data": {"name": "cells"},
                "transform": [{"filter": f"datum.critical && {_CHOSEN}"}],
                "mark": {"type": "rule", "strokeDash": [5, 4], "opacity": 0.8},
                "encoding": {"x": X, "color": _colour()},
            },
            {
                "data": {"name": "cells"},
                "transform": [{"filter": _OTHERS}],
                "mark": {"type": "line", "strokeWidth": 1, "opacity": 0.35, "clip": True, "color": "#888888"},
                "encoding": {"x": X, "y": {**y, "field": "mean"}, "detail": {"field": "strategy"}},
            },
            {
                "data": {"name": "cells"},
                "transform": [{"filter": _CHOSEN}],
                "mark": {"type": "line", "strokeWidth": 1.8, "clip": True},
                "encoding": {"x": X, "y": {**y, "field": "mean"}, "color": _colour()},
            },
            {
                "data": {"name": "cells"},
                "transform": [{"filter": f"{_CHOSEN} && datum.low != null"}],
                "mark": {"type": "rule", "strokeWidth": 1.4, "clip": True},
                "encoding": {
                    "x": X,
                    "y": {**y, "field": "low"},
                    "y2": {"field": "high"},
                    "color": _colour(),
                },
            },
            {
                "data": {"name": "runs"},
                "transform": [{"filter": f"{_CHOSEN} && datum.metric >= {low!r}"}],
                "mark": {"type": "circle", "size": 28, "opacity": 0.5, "cursor": "pointer"},
                "encoding": {
                    "x": X,
                    "y": {**y, "field": "metric"},
                    "color": _colour(),
                    "tooltip": [
                        _TASK,
                        _STRATEGY,
                        _SPARSITY,
                        _tip("seed"),
                        _tip("metric", f"test {metric}", ".4f"),
                    ],
                },
            },
            {
                "data": {"name": "runs"},
                "transform": [{"filter": f"{_CHOSEN} && datum.metric != null && datum.metric < {low!r}"}],
                "mark": {
                    "type": "point",
                    "shape": "triangle-down",
                    "filled": True,
                    "size": 60,
                    "cursor": "pointer",
                },
                "encoding": {
                    "x": X,
                    "y": {"datum": low},
                    "color": _colour(),
                    "tooltip": [
                        _TASK,
                        _STRATEGY,
                        _SPARSITY,
                        _tip("seed"),
                        _tip("metric", f"test {metric}", ".3g"),
                    ],
                },
            },
            {
                "data": {"name": "cells"},
                "transform": [{"filter": _CHOSEN}],
                "mark": {
                    "type": "point",
                    "filled": True,
                    "size": 75,
                    "opacity": 1,
                    "clip": True,
                    "cursor": "pointer",
                },
                "encoding": {
                    "x": X,
                    "y": {**y, "field": "mean"},
                    "color": _colour(),
                    "shape": _shape(),
                    "tooltip": _cell_tips(metric),
                },
            },
        ],
    }
    return Chart(
        "metric",
        f"Test {metric} against sparsity: {view.words(setting)}",
        _metric_in_words(view, setting, low)
        + f" {plural(below, 'run')} below the chart: triangles." * bool(below),
        spec,
        setting,
    )


def _metric_in_words(view: View, setting: Setting, low: float) -> str:
    n, chance = len(view.study.seeds), view.results.tasks[setting.task].chance
    across = f"and chance ({number(chance)}, below the chart)" if chance < low else "and chance"
    bars = f" and 95% t-interval of {n} seeds, each a faint point" if n > 1 else " (one seed)"
    critical = [f"{name} {show_level(view.critical((setting, name)))}" for name in view.strategies]
    dashed = (
        f" Dashed: critical sparsity, {', '.join(critical)}." if view.few else " Dashed: critical sparsity."
    )
    return f"Mean{bars}. Lines across: the dense network, 95% of it, {across}.{dashed}"


def _levels(y: Spec) -> list[Spec]:
    """Return the lines across a chart, and their names."""
    here = {"data": {"name": "lines"}}
    return [
        {
            **here,
            "mark": {"type": "rule", "strokeWidth": 1, "color": "#888888", "clip": True},
            "encoding": {
                "y": {**y, "field": "y"},
                "strokeDash": {
                    "field": "line",
                    "scale": {
                        "domain": ["dense", "95% of dense", "chance"],
                        "range": [[1, 0], [1, 3], [6, 3]],
                    },
                    "legend": None,
                },
            },
        },
        {
            **here,
            "mark": {
                **{"type": "text", "align": "right", "fontSize": 10, "color": {"$": "soft"}, "clip": True},
                # below the line, of what is 95 % of another line
                **{"baseline": "middle", "dy": {"expr": "datum.line == '95% of dense' ? 8 : -7"}},
            },
            "encoding": {
                "x": {"value": {"expr": "width - 3"}},
                "y": {**y, "field": "y"},
                "text": {"field": "line"},
            },
        },
    ]


def ranking(view: View, setting: Setting) -> Chart:
    """Return the ranking as a forest plot: each strategy's mean with its interval, the best on top."""
    metric = view.results.tasks[setting.task].metric
    y: Spec = {
        "field": "strategy",
        "type": "nominal",
        "title": None,
        "sort": {"field": "mean", "order": "descending"},
        "axis": {"labelLimit": 190, "domain": False, "ticks": False},
    }
    x: Spec = {"type": "quantitative", "scale": {"zero": False}}
    tips = [_TASK, _STRATEGY, _tip("mean", "mean", ".4f"), _tip("low", "95% CI from", ".4f")]
    tips += [_tip("high", "to", ".4f"), _tip("n", "seeds")]
    ranked = view.rankings[setting]
    best = ", ".join(f"{r.strategy} {number(r.mean.mean)} {interval(r.mean)}" for r in ranked[:5])
    return Chart(
        "ranking",
        f"Strategies by their mean test {metric}: {view.words(setting)}",
        "Mean over all pruned levels, or at the level chosen above, with the 95% t-interval over seeds. Intervals of "
        f"two strategies that overlap do not say that they are equal; pairs are tested below. Over all levels: {best}"
        f"{', ...' * (len(ranked) > 5)}.",
        {
            "data": {"name": "ranking"},
            "height": {"step": 22},
            "layer": [
                {
                    "transform": [{"filter": "datum.low != null"}],
                    "mark": {"type": "rule", "strokeWidth": 2},
                    "encoding": {
                        "y": y,
                        "x": {**x, "field": "low", "title": f"mean test {metric}"},
                        "x2": {"field": "high"},
                        "color": _colour(grey=True),
                    },
                },
                {
                    "mark": {"type": "point", "filled": True, "size": 75, "opacity": 1, "cursor": "pointer"},
                    "encoding": {
                        "y": y,
                        "x": {**x, "field": "mean"},
                        "color": _colour(grey=True),
                        "shape": _shape(grey=True),
                        "tooltip": tips,
                    },
                },
            ],
        },
        setting,
    )


def pairs(view: View, setting: Setting, compared: Sequence[stats.Paired]) -> Chart:
    """Return paired differences of strategies as a forest plot; filled where they are significant after correction."""
    metric = view.results.tasks[setting.task].metric
    values = [
        {
            "pair": f"{p.first} - {p.second}",
            "difference": p.difference.mean,
            **({} if math.isnan(p.difference.low) else {"low": p.difference.low, "high": p.difference.high}),
            "significant": _CLEAR if p.p_holm <= 0.05 else "undecided",
            "p_holm": p.p_holm,
        }
        for p in sorted(compared, key=lambda p: -p.difference.mean)
    ]
    y: Spec = {
        "field": "pair",
        "type": "nominal",
        "title": None,
        "sort": None,
        "axis": {"labelLimit": {"$": "label"}, "domain": False, "ticks": False},
    }
    tips = [_tip("pair"), _tip("difference", form="+.4f"), _tip("low", "95% CI from", "+.4f")]
    tips += [_tip("high", "to", "+.4f"), _tip("p_holm", "p after Holm", ".3g")]
    x: Spec = {"type": "quantitative", "title": f"difference in mean test {metric}"}
    return Chart(
        "pairs",
        f"Paired differences: {view.words(setting)}",
        "First minus second, mean over all pruned levels and 95% t-interval, paired by seed; filled where p after "
        "Holm's correction is at most 0.05. The table has the numbers.",
        {
            "data": {"name": "pairs", "values": values},
            "height": {"step": 20},
            "layer": [
                {
                    "mark": {"type": "rule", "color": "#888888"},
                    "encoding": {"x": {**x, "datum": 0}},
                },
                {
                    "transform": [{"filter": "isValid(datum.low)"}],
                    "mark": {"type": "rule", "strokeWidth": 1.6, "color": COLOURS[0]},
                    "encoding": {"y": y, "x": {**x, "field": "low"}, "x2": {"field": "high"}},
                },
                {
                    "mark": {"type": "point", "size": 70, "opacity": 1, "color": COLOURS[0]},
                    "encoding": {
                        "y": y,
                        "x": {**x, "field": "difference"},
                        "fill": {
                            "field": "significant",
                            "type": "nominal",
                            "scale": {"domain": [_CLEAR, "undecided"], "range": [COLOURS[0], {"$": "paper"}]},
                            "legend": {"orient": "bottom", "title": None, "columns": 1},
                        },
                        "tooltip": tips,
                    },
                },
            ],
        },
        setting,
    )


_CLEAR = "p <= 0.05 after Holm"


def costs(view: View, setting: Setting, cost: Literal["work", "seconds"]) -> Chart:
    """Return the test metric against multiply-adds, or against seconds of training, a point per cell."""
    metric = view.results.tasks[setting.task].metric
    low, high = window(view.runs_of[setting], view.results.tasks[setting.task].chance, metric)
    words = view.work_is(setting) if cost == "work" else "seconds of training"
    y: Spec = {
        "type": "quantitative",
        "title": f"test {metric}",
        "scale": {"domain": [low, high], "nice": False, "zero": False},
    }
    x: Spec = {
        "field": cost,
        "type": "quantitative",
        "title": f"{words} (logarithmic)",
        "scale": {"type": "log", "nice": False, "padding": 12},
        "axis": {"format": "~s" if cost == "work" else "~g", "grid": False, "labelOverlap": "greedy"},
    }
    says = {
        "work": "Mean over seeds of each cell. Work as the mask leaves it: dense kernels do not become faster by it.",
        "seconds": "Mean over seeds of each cell. Seconds are each training's share of wall time as it was measured, "
        "trained at once with others where that is faster; early stopping counts.",
    }
    positive = f"datum.{cost} > 0"
    return Chart(
        cost,
        f"Test {metric} against {words}: {view.words(setting)}",
        says[cost],
        {
            "height": 300,
            "layer": [
                *_levels(y),
                {
                    "data": {"name": "cells"},
                    "transform": [{"filter": f"{positive} && {_OTHERS}"}],
                    "mark": {"type": "point", "filled": True, "size": 20, "opacity": 0.3, "clip": True,
                             "color": "#888888"},
                    "encoding": {"x": x, "y": {**y, "field": "mean"}, "tooltip": _cell_tips(metric)},
                },
                {
                    "data": {"name": "cells"},
                    "transform": [{"filter": f"{positive} && {_CHOSEN} && datum.low != null"}],
                    "mark": {"type": "rule", "opacity": 0.6, "clip": True},
                    "encoding": {
                        "x": x,
                        "y": {**y, "field": "low"},
                        "y2": {"field": "high"},
                        "color": _colour(),
                    },
                },
                {
                    "data": {"name": "cells"},
                    "transform": [{"filter": f"{positive} && {_CHOSEN}"}],
                    "mark": {"type": "point", "filled": True, "size": 75, "opacity": 1, "clip": True,
                             "cursor": "pointer"},
                    "encoding": {
                        "x": x,
                        "y": {**y, "field": "mean"},
                        "color": _colour(),
                        "shape": _shape(),
                        "tooltip": _cell_tips(metric),
                    },
                },
            ],
        },
        setting,
    )  # fmt: skip


def layers(view: View, setting: Setting) -> Chart:
    """Return each layer's density against sparsity, a panel per strategy."""
    facts = view.results.networks[setting]
    order = [layer.removesuffix(".weight") for layer in (*facts.layers, *facts.whole)]
    return Chart(
        "layers",
        f"Density of each layer: {view.words(setting)}",
        "Share of each layer's weights that the mask keeps, mean over seeds (lines), and that is left on a path from "
        "input to output (points). A layer that is not drawn at a level keeps nothing there.",
        {
            "data": {"name": "layers"},
            "transform": [{"filter": f"{_CHOSEN} && datum.layer_density > 0"}],
            "facet": {"field": "strategy", "type": "nominal", "title": None, "sort": {"$": "strategies"}},
            "columns": {"$": "columns"},
            "spec": {
                "width": {"$": "panel"},
                "height": 170,
                "encoding": {
                    "x": X,
                    "color": {
                        "field": "layer",
                        "type": "ordinal",
                        "sort": order,
                        "scale": {"scheme": {"$": "depth"}},
                        "legend": {"title": "layer, from the input on", "orient": "bottom", "columns": 3},
                    },
                },
                "layer": [
                    {
                        "mark": {"type": "line", "strokeWidth": 1.6},
                        "encoding": {"y": _share("layer_density", "weights kept (log)")},
                    },
                    {
                        "transform": [{"filter": "datum.layer_effective > 0"}],
                        "mark": {"type": "point", "filled": True, "size": 30, "opacity": 0.9, "cursor": "pointer"},
                        "encoding": {
                            "y": _share("layer_effective", "weights kept (log)"),
                            "tooltip": [
                                _STRATEGY, _SPARSITY, _tip("layer"), _tip("layer_density", "kept", ".2%"),
                                _tip("layer_effective", "on a path", ".2%"),
                            ],
                        },
                    },
                ],
            },
        },
        setting,
    )  # fmt: skip


def barriers(view: View, setting: Setting) -> Chart:
    """Return the error barrier against sparsity, a panel per state that two trainings parted at."""
    accuracy = view.results.tasks[setting.task].metric == "accuracy"
    error = "error" if accuracy else "loss"
    stable = f"; the dashed line is at {STABLE:g}, below which a network is called stable" if accuracy else ""
    # the threshold is one of error, not of loss
    rule = [
        {
            "mark": {"type": "rule", "strokeDash": [4, 4], "color": {"$": "soft"}},
            "encoding": {"y": {"datum": STABLE, "type": "quantitative"}},
        }
    ]
    clocks = list(dict.fromkeys(b.clock for b in view.barriers if b.setting == setting))
    y: Spec = {"type": "quantitative", "title": f"{error} barrier"}
    return Chart(
        "barriers",
        f"Error barrier between trainings that part: {view.words(setting)}",
        f"Highest test {error} on the line between two trainings from one state, minus the mean of its ends; a panel "
        f"per state. Mean with the 95% t-interval over seeds{stable}.",
        {
            "data": {"name": "barriers"},
            "facet": {"field": "clock", "type": "nominal", "title": None, "sort": clocks},
            "columns": {"$": "columns"},
            "spec": {
                "width": {"$": "panel"},
                "height": 190,
                "layer": [
                    *(rule if accuracy else ()),
                    {
                        "transform": [{"filter": f"{_CHOSEN} && datum.barrier_low != null"}],
                        "mark": {"type": "rule", "strokeWidth": 1.5, "clip": True, "opacity": 0.6},
                        "encoding": {
                            "x": X,
                            "y": {**y, "field": "barrier_low"},
                            "y2": {"field": "barrier_high"},
                            "color": _colour(),
                        },
                    },
                    {
                        "transform": [{"filter": _CHOSEN}],
                        "mark": {"type": "line", "strokeWidth": 1.6},
                        "encoding": {"x": X, "y": {**y, "field": "barrier"}, "color": _colour()},
                    },
                    {
                        "transform": [{"filter": _CHOSEN}],
                        "mark": {"type": "point", "filled": True, "size": 55, "opacity": 1, "cursor": "pointer"},
                        "encoding": {
                            "x": X,
                            "y": {**y, "field": "barrier"},
                            "color": _colour(),
                            "shape": _shape(),
                            "tooltip": [
                                _STRATEGY, _SPARSITY, _tip("clock", "state at"), _tip("barrier", "barrier", ".4f"),
                                _tip("barrier_low", "95% CI from", ".4f"), _tip("barrier_high", "to", ".4f"),
                                _tip("lines", "seeds"),
                            ],
                        },
                    },
                ],
            },
        },
        setting,
    )  # fmt: skip


def patterns(view: View, setting: Setting) -> Chart:
    """Return what each strategy's mask keeps of the first layer, a panel per strategy."""
    by_strategy: Spec = {"field": "strategy", "type": "nominal", "title": None, "sort": {"$": "strategies"}}
    return Chart(
        "patterns",
        f"What is kept of the first layer: {view.words(setting)}",
        "One seed's mask at the level chosen above, else at the highest. Of images, each block is a place of it, its "
        "shade the stronger the more units see it; otherwise a row of blocks is a group of units, a column one of "
        "inputs. Shades go from nothing kept to the block that keeps most of its panel.",
        _mosaic("patterns", by_strategy, "tiles", 120, [_STRATEGY, _SPARSITY, _tip("seed")]),
        setting,
    )


def _mosaic(name: str, facet: Spec, columns: str, side: int, tips: list[Spec]) -> Spec:
    """Return pictures of masks as panels of blocks, see `natal.pruning.pictures`."""

    def along(field: str) -> Spec:
        return {"field": field, "type": "ordinal", "axis": None, "scale": {"paddingInner": 0.06}}

    return {
        "data": {"name": name},
        "facet": facet,
        "columns": {"$": columns},
        "spacing": 14,
        "resolve": {"scale": {"x": "independent", "y": "independent"}},
        "spec": {
            "width": side,
            "height": side,
            "mark": {"type": "rect", "cursor": "pointer" if name == "patterns" else "default"},
            "encoding": {
                "x": along("column"),
                "y": along("row"),
                "color": {
                    "field": "level",
                    "type": "quantitative",
                    "legend": None,
                    "scale": {"domain": [0, 1], "range": [{"$": "faint"}, {"$": "ink"}]},
                },
                "tooltip": [*tips, _tip("layer"), _tip("share", "kept", ".3~%")],
            },
        },
    }


def _share(field: str, title: str) -> Spec:
    return {
        "field": field,
        "type": "quantitative",
        "title": title,
        "scale": {"type": "log", "nice": False, "domainMax": 1},
        "axis": {
            "format": ".2~%",
            "values": [round(m * 10.0**-e, 9) for e in range(7) for m in (1, 0.5, 0.2)],
            "labelOverlap": "greedy",
        },
    }


def closer() -> tuple[Chart, ...]:
    """Return the charts about one cell: its runs' learning curves, and its mask by layer."""
    seeds: Spec = {"field": "seed", "type": "nominal", "legend": {"orient": "bottom", "title": "seed"}}
    epoch: Spec = {"field": "epoch", "type": "quantitative", "title": "epoch", "axis": {"grid": False}}
    panel: Spec = {"type": "nominal", "title": None, "sort": {"field": "order"}}

    def curve(what: Literal["loss", "metric"]) -> Chart:
        of = ", ".join({"loss": ("training", "validation"), "metric": ("validation", "test")}[what])
        return Chart(
            f"curve-{what}",
            f"{what.capitalize()} by epoch",
            f"The {what} ({of}, where it was measured) of each run of this cell at up to 60 of its evaluations.",
            {
                "data": {"name": what},
                "height": 200,
                "mark": {"type": "line", "strokeWidth": 1.6, "clip": True},
                "encoding": {
                    "x": epoch,
                    "y": {
                        "field": "value",
                        "type": "quantitative",
                        "title": what,
                        "scale": {"type": "log", "nice": False} if what == "loss" else {"zero": False},
                    },
                    "color": {**seeds, "scale": {"range": list(COLOURS)}},
                    "strokeDash": {
                        "field": "rows",
                        "type": "nominal",
                        "legend": {"orient": "bottom", "title": "rows"},
                        "scale": {"domain": of.split(", "), "range": [[1, 0], [4, 3]]},
                    },
                    "tooltip": [_tip("seed"), _tip("rows"), _tip("epoch"), _tip("value", what, ".4g")],
                },
            },
        )

    return (
        curve("loss"),
        curve("metric"),
        Chart(
            "mask",
            "Mask by layer",
            "Share of each layer's weights kept (bar), and kept on a path from input to output (tick), mean over runs.",
            {
                "data": {"name": "layers"},
                "height": {"step": 20},
                "encoding": {
                    "y": {"field": "layer", "type": "nominal", "sort": None, "title": None,
                          "axis": {"labelLimit": 150}},
                    "tooltip": [_tip("layer"), _tip("layer_density", "kept", ".3%"),
                                _tip("layer_effective", "on a path", ".3%")],
                },
                "layer": [
                    {
                        "mark": {"type": "bar", "color": COLOURS[0], "opacity": 0.75},
                        "encoding": {"x": {"field": "layer_density", "type": "quantitative", "title": "weights kept",
                                           "axis": {"format": ".3~%", "tickCount": 5}}},
                    },
                    {
                        "mark": {"type": "tick", "color": COLOURS[3], "thickness": 3},
                        "encoding": {"x": {"field": "layer_effective", "type": "quantitative"}},
                    },
                ],
            },
        ),
        Chart(
            "fields",
            "What the first layer sees of the image",
            "Share of weights kept at each place of the image: by all units, and by some units alone, of a convolution "
            "within its kernel. Shades go from nothing kept to the block that keeps most of its panel.",
            _mosaic("fields", {**panel, "field": "shows"}, "tiles", 96, [_tip("shows")]),
        ),
        Chart(
            "blocks",
            "Weights kept, layer by layer",
            "A row of blocks is a group of a layer's units, a column a group of their inputs. All: the whole layer; "
            "corner: its first weights one by one. Shades go from nothing kept to the block that keeps most of its "
            "panel.",
            _mosaic("blocks", {**panel, "field": "panel"}, "pairs", 120, [_tip("shows")]),
        ),
    )  # fmt: skip


def _colour(grey: bool = False) -> Spec:
    """Return strategies' colours, with a legend; ``grey``: where every line names its strategy, and all are drawn."""
    return _by_strategy(list(COLOURS), "#888888" if grey else None)


def _shape(grey: bool = False) -> Spec:
    return _by_strategy(list(SHAPES), "circle" if grey else None)


def _by_strategy(looks: list[str], otherwise: str | None) -> Spec:
    scale = {"domain": {"$": "strategies"}, "range": looks}
    encoding = {"field": "strategy", "type": "nominal", "scale": scale, "legend": {"$": "legend"}}
    if otherwise is None:
        return encoding
    return {"condition": {"test": _CHOSEN, **encoding, "legend": None}, "value": otherwise}


def _tip(field: str, title: str | None = None, form: str | None = None) -> Spec:
    tip: Spec = {"field": field, "title": title or field}
    return tip | ({"format": form, "type": "quantitative"} if form else {"type": "nominal"})


_TASK = _tip("setting", "on")
_STRATEGY = _tip("strategy")
_SPARSITY = _tip("sparsity", form=".4~%")


def _cell_tips(metric: str) -> list[Spec]:
    return [
        _TASK,
        _STRATEGY,
        _SPARSITY,
        _tip("mean", f"mean test {metric}", ".4f"),
        _tip("low", "95% CI from", ".4f"),
        _tip("high", "to", ".4f"),
        _tip("n", "seeds"),
        _tip("severity", "the mask doctor"),
    ]
