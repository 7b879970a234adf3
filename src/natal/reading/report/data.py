"""What a report's charts draw: cells, runs, layers, findings and learning curves, as plain rows.

All of a small study. Of a large one every cell, a sample of the runs, and the curves of a few: means and intervals are
always over all of them. Settings, strategies, cells and runs are numbered, in the order of their lists.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from natal.reading import stats
from natal.reading.report.view import View
from natal.reading.rows import Row
from natal.store import plain

CELLS = 20_000
RUNS = 10_000
CURVES = 600
LAYERS = 20_000
FINDINGS = 5_000
PICTURED = 150
"""At most so many of each, and the masks of so many runs, are in a page: together under 6 MB."""
POINTS = 60
"""A learning curve is drawn through so many of its evaluations at most."""
T = TypeVar("T")


@dataclass(frozen=True)
class Data:
    """What charts draw: columns by name, and rows of plain numbers and words."""

    columns: tuple[str, ...]
    rows: Sequence[Sequence[Any]]


def data(view: View) -> Mapping[str, Data]:
    """Return all data of a report's charts by name."""
    cells = [c for those in view.cells.values() for c in those][:CELLS]
    number = {(c.setting, c.strategy, c.sparsity): i for i, c in enumerate(cells)}
    runs = _sample([r for r in view.results.runs if (r.setting, r.strategy, r.sparsity) in number], RUNS)
    return {
        "settings": Data(
            ("task", "network", "words", "metric"),
            [(s.task, s.network, view.words(s), view.results.tasks[s.task].metric) for s in view.settings],
        ),
        "strategies": Data(("strategy",), [(name,) for name in view.strategies]),
        "lines": Data(("setting", "line", "y"), list(_lines(view))),
        "cells": _cells(view, cells),
        "runs": _runs(view, runs, number),
        "ranking": _ranking(view),
        "layers": Data(
            ("cell", "layer", "density", "effective"), _sample(list(_layers(view, number)), LAYERS)
        ),
        "barriers": Data(
            ("cell", "clock", "barrier", "barrier_low", "barrier_high", "lines"),
            list(_barriers(view, number)),
        ),
        "findings": Data(("cell", "severity", "text"), _sample(list(_findings(view, number)), FINDINGS)),
        "curves": _curves(view, runs),
        "pictures": Data(("run", "layer", "shows", "rows", "most", "levels"), list(_pictures(runs))),
    }


def _sample(things: Sequence[T], most: int) -> list[T]:
    """Return at most so many of some things, spread evenly over them."""
    if len(things) <= most:
        return list(things)
    return [things[i] for i in np.linspace(0, len(things) - 1, most).round().astype(int)]


def _short(x: float | None, digits: int = 6) -> float | None:
    """Return a number with a few digits, None for what is none."""
    return None if x is None or not math.isfinite(x) else float(f"{x:.{digits}g}")


def _lines(view: View) -> Iterator[tuple[int, str, float]]:
    """Yield the levels that every curve is held against."""
    for i, setting in enumerate(view.settings):
        dense, bar = view.dense[setting], view.bars[setting]
        yield i, "chance", view.results.tasks[setting.task].chance
        if dense and dense.test.n:
            yield i, "dense", dense.test.mean
        if bar is not None:
            yield i, "95% of dense", bar


def _cells(view: View, cells: Sequence[stats.Cell]) -> Data:
    place = {setting: i for i, setting in enumerate(view.settings)}
    which = {name: i for i, name in enumerate(view.strategies)}
    doctor = {(d.setting, d.strategy, d.sparsity): d for those in view.diagnosed.values() for d in those}
    effort = view.effort
    rows = []
    for c in cells:
        where = (c.setting, c.strategy, c.sparsity)
        d = doctor.get(where)
        work, seconds = effort[where]
        low, high = view.possible(c.setting, c.test.low, c.test.high)
        rows.append(
            (
                place[c.setting],
                which[c.strategy],
                c.sparsity,
                _short(1 - c.realised),
                *map(_short, (c.test.mean, low, high)),
                c.test.n,
                c.diverged,
                _short(c.epochs.mean),
                _short(d.effective) if d else None,
                _short(work),
                _short(seconds, 3),
                int(view.critical((c.setting, c.strategy)) == c.sparsity),
                d.severity if d else None,
            )
        )
    columns = (
        *("setting", "strategy", "sparsity", "density", "mean", "low", "high", "n", "diverged", "epochs"),
        *("effective", "work", "seconds", "critical", "severity"),
    )
    return Data(columns, rows)


def _runs(view: View, runs: Sequence[Row], number: Mapping[Any, int]) -> Data:
    columns = ("cell", "seed", "metric", "train", "val", "epochs", "best", "seconds", "rate")
    return Data(
        columns,
        [
            (
                number[r.setting, r.strategy, r.sparsity],
                r.seed,
                *map(_short, (r.test_metric, r.train_metric, r.val_metric, r.epochs_trained, r.best_epoch)),
                _short(r.seconds, 3),
                r.learning_rate,
            )
            for r in runs
        ],
    )


def _ranking(view: View) -> Data:
    which = {name: i for i, name in enumerate(view.strategies)}
    return Data(
        ("setting", "strategy", "rank", "mean", "low", "high", "n"),
        [
            (
                i,
                which[r.strategy],
                r.rank,
                *map(_short, (r.mean.mean, *view.possible(setting, r.mean.low, r.mean.high))),
                r.mean.n,
            )
            for i, setting in enumerate(view.settings)
            for r in view.rankings[setting]
        ],
    )


def _layers(view: View, number: Mapping[Any, int]) -> Iterator[tuple[int, str, float | None, float | None]]:
    for those in view.diagnosed.values():
        for d in those:
            cell = number.get((d.setting, d.strategy, d.sparsity))
            if cell is not None:
                for layer in d.layers:
                    name = layer.name.removesuffix(".weight")
                    yield cell, name, _short(layer.density, 4), _short(layer.effective, 4)


def _barriers(view: View, number: Mapping[Any, int]) -> Iterator[tuple[Any, ...]]:
    for b in view.barriers:
        cell = number.get((b.setting, b.strategy, b.sparsity))
        if cell is not None and b.barrier.n:
            yield cell, b.clock, *map(_short, (b.barrier.mean, b.barrier.low, b.barrier.high)), b.barrier.n


def _findings(view: View, number: Mapping[Any, int]) -> Iterator[tuple[int, str, str]]:
    for d in stats.gravest_first(d for those in view.diagnosed.values() for d in those):
        cell = number.get((d.setting, d.strategy, d.sparsity))
        if cell is not None:
            for f in d.findings:
                share = "" if f.runs == d.n else f" ({f.runs} of {d.n} runs)"
                yield cell, f.severity, f"{f.text}{share}"


def _curves(view: View, runs: Sequence[Row]) -> Data:
    """Return learning curves, a row per run, each a list of numbers per column."""
    chosen = _sample(range(len(runs)), CURVES)
    place = {id(run): at for at, run in enumerate(view.results.runs)}
    rows = []
    for i, curve in zip(chosen, view.results.curves_of([place[id(runs[i])] for i in chosen]), strict=True):
        kept = _kept(len(curve.step))
        numbers = (curve.epoch, curve.train_loss, curve.val_loss, curve.val_metric, curve.test_metric)
        rows.append((i, *(_thin(values, kept) for values in numbers)))
    return Data(("run", "epoch", "train_loss", "val_loss", "val_metric", "test_metric"), rows)


def _pictures(runs: Sequence[Row]) -> Iterator[tuple[Any, ...]]:
    """Yield pictures of masks, see `natal.pruning.pictures`: of every run, or of more than fit a run a cell."""
    pruned = [i for i, run in enumerate(runs) if run.sparsity]
    if len(pruned) > PICTURED:
        firsts = {(runs[i].setting, runs[i].strategy, runs[i].sparsity): i for i in reversed(pruned)}
        pruned = _sample(sorted(firsts.values()), PICTURED)
    for i in pruned:
        for layer, *picture in plain(runs[i].diagnosis).get("pictures", ()):
            yield i, layer.removesuffix(".weight"), *picture


def _kept(length: int) -> NDArray[np.int64]:
    return np.unique(np.linspace(0, max(length - 1, 0), min(length, POINTS)).round().astype(np.int64))


def _thin(values: NDArray[np.float64], kept: NDArray[np.int64]) -> list[float | None]:
    return [_short(float(values[i]), 4) for i in kept] if len(values) else []
