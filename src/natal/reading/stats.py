"""Run rows in, numbers with their uncertainty out: every number a report or a figure shows. No torch here.

All functions are pure and take the rows of `natal.reading.results.load`. A *setting* is a task with a network, a *cell*
the rows that differ in seed alone. Metrics: higher is better. A run whose test metric is None has diverged; it is left
out of means, counted, and flagged.
"""

from __future__ import annotations

import itertools
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray

from natal.reading.rows import Attempt, Curve, Row, Runs
from natal.store import TaskFacts, plain
from natal.study import Recipe, Setting, Study

Rows = Sequence[Row]
Numbers = NDArray[np.float64]
DENSE = "dense"
"""What a flag calls the unpruned network, which belongs to no strategy."""
PATIENCE = 100
"""The paper's patience, held against trainings that had none."""
RETAINED = 0.95
"""The share of the dense network's metric that a pruned one must keep, in the paper's critical sparsity."""

# -- one cell --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Summary:
    """``n`` numbers in brief: mean, standard deviation (ddof 0) and the 95 % interval of the mean.

    Everything is nan for n = 0, the interval is nan for n = 1.
    """

    n: int
    mean: float
    std: float
    low: float
    high: float


def summarise(values: Iterable[float] | Numbers, level: float = 0.95) -> Summary:
    """Summarise numbers: mean, standard deviation with ddof 0, Student-t interval with ddof 1.

    mean ± t(1 - (1 - level) / 2, n - 1) · s / √n, with s² = Σ(x - mean)² / (n - 1).
    """
    x = values if isinstance(values, np.ndarray) else np.array(list(values), dtype=np.float64)
    n = len(x)
    if n == 0:
        return Summary(0, math.nan, math.nan, math.nan, math.nan)
    mean, std = float(x.mean()), float(x.std())
    if n == 1:
        return Summary(1, mean, std, math.nan, math.nan)
    half = float(_student(n, level) * x.std(ddof=1) / math.sqrt(n))
    return Summary(n, mean, std, mean - half, mean + half)


def _student(n: int, level: float) -> float:
    """Return the quantile of Student's t that a two-sided interval of ``n`` numbers needs."""
    # not above: planning does without it, and it takes as long to import as all of natal
    from scipy.special import stdtrit

    return float(stdtrit(n - 1, 0.5 + level / 2))


def summarise_all(those: Sequence[Numbers], level: float = 0.95) -> list[Summary]:
    """Return `summarise` of each, those of one length together."""
    found: list[Summary] = [summarise(())] * len(those)
    for n, places in _by_length(those).items():
        if n < 2:
            for i in places:
                found[i] = summarise(those[i], level)
            continue
        x = np.array([those[i] for i in places])
        half = _student(n, level) * x.std(axis=1, ddof=1) / math.sqrt(n)
        mean, std = x.mean(axis=1), x.std(axis=1)
        numbers = zip(
            mean.tolist(), std.tolist(), (mean - half).tolist(), (mean + half).tolist(), strict=True
        )
        for i, four in zip(places, numbers, strict=True):
            found[i] = Summary(n, *four)
    return found


@dataclass(frozen=True)
class Cell:
    """The runs of one setting, strategy and sparsity, over seeds.

    ``test``: their test metric; ``epochs``: epochs trained; both over the runs that did not diverge.
    ``realised``: mean realised sparsity over prunable weights. ``values``: the test metric by seed.
    ``diverged``: runs that did.
    """

    setting: Setting
    strategy: str
    sparsity: float
    metric_name: str
    test: Summary
    epochs: Summary
    realised: float
    values: Mapping[int, float]
    diverged: int


def cells(runs: Rows, setting: Setting | None = None, strategy: str | None = None) -> list[Cell]:
    """Return the cells of ``runs``, in the order they first appear; of one setting or strategy if named."""
    made = _all_cells(runs)
    if setting is not None and strategy is not None:
        return list(made.get((setting, strategy), ()))
    return [
        c
        for (of, name), those in made.items()
        if setting in (None, of) and strategy in (None, name)
        for c in those
    ]


def _all_cells(runs: Rows) -> Mapping[tuple[Setting, str], list[Cell]]:
    """Return the cells of each setting and strategy."""
    runs = remembering(runs)
    if "cells" not in runs.memory:
        found: dict[tuple[Setting, str], list[Cell]] = {}
        for where, rows in runs.cells.items():
            found.setdefault(where[:2], []).append(_cell(*where, rows))
        runs.memory["cells"] = found
    known: Mapping[tuple[Setting, str], list[Cell]] = runs.memory["cells"]
    return known


def remembering(runs: Rows) -> Runs:
    """Return rows that remember what is found out about them, themselves if they do already."""
    return runs if isinstance(runs, Runs) else Runs(runs)


def cell(runs: Rows, setting: Setting, strategy: str, sparsity: float) -> Cell | None:
    """Return one cell, or None if it has no run yet."""
    return next((c for c in cells(runs, setting, strategy) if c.sparsity == sparsity), None)


def _cell(setting: Setting, strategy: str, sparsity: float, rows: Rows) -> Cell:
    kept = [(run, run.test_metric) for run in rows if run.test_metric is not None]
    return Cell(
        setting,
        strategy,
        sparsity,
        metric_name=f"test_{rows[0]['field']}",
        test=summarise(value for _, value in kept),
        epochs=summarise(run.epochs_trained for run, _ in kept),
        realised=float(np.mean([run.realised_sparsity for run in rows])),
        values={run.seed: value for run, value in kept},
        diverged=len(rows) - len(kept),
    )


# -- one strategy ----------------------------------------------------------------------------------------


def dense_baseline(runs: Rows, setting: Setting) -> Cell | None:
    """Return the cell of the unpruned network, which all strategies share; None if ``runs`` has none."""
    return next((c for c in cells(runs, setting) if c.sparsity == 0), None)


def threshold(runs: Rows, setting: Setting) -> float | None:
    """Return 0.95 · the dense mean; None if there is no dense mean, or it is not positive.

    Of a dense network at or below zero (R² can be), 0.95 of its metric is no less than the metric itself:
    keeping most of nothing is undefined.
    """
    dense = dense_baseline(runs, setting)
    return RETAINED * dense.test.mean if dense and dense.test.mean > 0 else None


Bound = Literal["mean", "low", "high"]
"""Which number of a cell is held against a threshold: its mean, or an end of its 95 % interval."""


def critical_sparsity(runs: Rows, setting: Setting, strategy: str, bound: Bound = "mean") -> float | None:
    """Return the highest level whose mean test metric is at least 0.95 of the dense mean, whatever happens
    below it.

    A cell in which a run diverged does not count as keeping it: its mean is over the survivors. ``bound``:
    hold an end of the 95 % interval against the threshold instead; a cell of one run has none and counts by
    its mean. None where `threshold` is, or where no level reaches it.
    """
    return max((s for s, kept in _keeping(runs, setting, strategy, bound) if kept), default=None)


def kept_through(runs: Rows, setting: Setting, strategy: str, bound: Bound = "mean") -> float | None:
    """Return the highest level up to which *every* level is at least 0.95 of the dense mean.

    Unlike `critical_sparsity`, one level that falls short ends it. ``bound`` and None as there.
    """
    unbroken = itertools.takewhile(lambda level: level[1], _keeping(runs, setting, strategy, bound))
    return max((s for s, _ in unbroken), default=None)


def _keeping(runs: Rows, setting: Setting, strategy: str, bound: Bound) -> list[tuple[float, bool]]:
    """Return each level in order, and whether it keeps 0.95 of the dense mean."""
    bar = threshold(runs, setting)
    if bar is None:
        return []
    # level 0 keeps all of the dense metric by definition, however wide its interval
    return sorted(
        (c.sparsity, c.sparsity == 0 or (not c.diverged and _end(c.test, bound) >= bar))
        for c in cells(runs, setting, strategy)
    )


def _end(summary: Summary, bound: Bound) -> float:
    value: float = getattr(summary, bound)
    return summary.mean if math.isnan(value) else value


def critical_range(runs: Rows, setting: Setting, strategy: str) -> tuple[float | None, float | None]:
    """Return the lowest and highest critical sparsity that the cells' 95 % intervals allow.

    First the highest level whose whole interval is at least 0.95 of the dense mean, then the highest whose
    interval reaches it; the dense mean is taken as known.
    """
    return critical_sparsity(runs, setting, strategy, "low"), critical_sparsity(
        runs, setting, strategy, "high"
    )


def chance_from(
    runs: Rows, setting: Setting, strategy: str, facts: TaskFacts, bound: Bound = "mean"
) -> float | None:
    """Return the lowest pruned level from which on every level's mean is no better than `chance_bound`.

    ``facts``: the manifest's of the task. ``bound``: hold an end of the 95 % interval against it instead.
    Infinite if the highest level is still better; None if nothing pruned was trained.
    """
    pruned = sorted(
        (c for c in cells(runs, setting, strategy) if c.sparsity > 0), key=lambda c: c.sparsity, reverse=True
    )
    if not pruned:
        return None
    bar = _chance_bound(runs, setting, facts)
    at_chance = itertools.takewhile(lambda c: _end(c.test, bound) <= bar, pruned)
    return min((c.sparsity for c in at_chance), default=math.inf)


def straddling(runs: Rows, setting: Setting, strategy: str) -> list[Cell]:
    """Return the pruned cells whose 95 % interval holds 0.95 of the dense mean: either side is possible."""
    bar = threshold(runs, setting)
    if bar is None:
        return []
    return [c for c in cells(runs, setting, strategy) if c.sparsity > 0 and c.test.low < bar <= c.test.high]


def peak(runs: Rows, setting: Setting, strategy: str) -> Cell | None:
    """Return the cell with the highest mean test metric, the sparser of two equals; None if all diverged."""
    ranked = [c for c in cells(runs, setting, strategy) if c.test.n]
    return max(ranked, key=lambda c: (c.test.mean, c.sparsity), default=None)


# -- two strategies --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Paired:
    """Two strategies' test metrics seed by seed: first minus second.

    ``sparsity``: the level compared, None for the mean over all pruned levels. ``difference``: mean and
    interval over the seeds both have. ``p``: exact two-sided sign-flip p-value; ``smallest_p``: the least it
    could be with so few seeds, 2^(1 - n). ``p_holm``: ``p`` corrected for all comparisons made beside this
    one.
    """

    setting: Setting
    first: str
    second: str
    sparsity: float | None
    difference: Summary
    p: float
    smallest_p: float
    p_holm: float = math.nan


def paired(
    runs: Rows, setting: Setting, first: str, second: str, sparsity: float | None = None
) -> Paired | None:
    """Compare two strategies seed by seed, at one sparsity or over the mean of all pruned levels (``None``).

    Seeds that one side lacks or that diverged drop out; over levels, each seed uses the levels both sides
    have. None if no seed is left.
    """
    return _compared(runs, [(setting, first, second, sparsity)])[0]


_Which = tuple[Setting, str, str, float | None]


def _compared(runs: Rows, wanted: Sequence[_Which]) -> list[Paired | None]:
    """Return comparisons in the order given, None for those without a seed; each is made once, all together."""
    runs = remembering(runs)
    known: dict[_Which, Paired | None] = runs.memory.setdefault("compared", {})
    for which in wanted:
        setting, first, second, sparsity = which
        other = known.get((setting, second, first, sparsity))
        if which not in known and other is not None:
            d = other.difference
            turned = Summary(d.n, -d.mean, d.std, -d.high, -d.low)
            known[which] = replace(other, first=first, second=second, difference=turned)
    new = [which for which in dict.fromkeys(wanted) if which not in known]
    differences = list(_differences(runs, new))
    summaries, values = summarise_all(differences), sign_flips(differences)
    for which, summary, p in zip(new, summaries, values, strict=True):
        known[which] = Paired(*which, summary, p, smallest_p(summary.n)) if summary.n else None
    return [known[which] for which in wanted]


def _differences(runs: Runs, wanted: Sequence[_Which]) -> Iterator[Numbers]:
    """Yield the differences of two strategies by seed, at a level or over the mean of all pruned levels."""
    tables: dict[Setting, _Metrics] = {}
    for setting, first, second, sparsity in wanted:
        if setting not in tables:
            tables[setting] = _metrics(runs, setting)
        table = tables[setting]
        a, b = table.strategies.get(first), table.strategies.get(second)
        if a is None or b is None:
            yield np.empty(0)
        elif sparsity is not None:
            level = table.levels.get(sparsity)
            d = np.empty(0) if level is None else table.values[a, level] - table.values[b, level]
            yield d if not np.isnan(d).any() else d[~np.isnan(d)]
        else:
            pruned = [i for level, i in table.levels.items() if level > 0]
            d = np.ascontiguousarray((table.values[a, pruned] - table.values[b, pruned]).T)
            there = ~np.isnan(d)
            if there.all() and d.size:
                yield d.mean(axis=1)
                continue
            # a seed comes where its first level does, as in the order of the runs
            seeds = sorted(
                np.flatnonzero(there.any(axis=1)).tolist(), key=lambda seed: int(there[seed].argmax())
            )
            yield np.array([d[seed][there[seed]].mean() for seed in seeds])


class _Metrics(NamedTuple):
    """A setting's test metrics by strategy, level and seed, NaN where there is none, and the place of each."""

    strategies: Mapping[str, int]
    levels: Mapping[float, int]
    values: NDArray[np.float64]


def _metrics(runs: Runs, setting: Setting) -> _Metrics:
    known: dict[Setting, _Metrics] = runs.memory.setdefault("metrics", {})
    if setting not in known:
        rows = runs.settings.get(setting, Runs())
        strategies, levels, seeds = (
            {value: i for i, value in enumerate(_distinct(rows, name))}
            for name in ("strategy", "sparsity", "seed")
        )
        values = np.full((len(strategies), len(levels), len(seeds)), np.nan)
        for row in rows:
            if row.test_metric is not None:
                values[strategies[row.strategy], levels[row.sparsity], seeds[row.seed]] = row.test_metric
        known[setting] = _Metrics(strategies, levels, values)
    return known[setting]


def against_dense(runs: Rows, setting: Setting, strategy: str, sparsity: float) -> Paired | None:
    """Compare one cell of a strategy with the dense network, seed by seed; None if no seed has both."""
    pruned, dense = cell(runs, setting, strategy, sparsity), dense_baseline(runs, setting)
    if pruned is None or dense is None:
        return None
    shared = [seed for seed in pruned.values if seed in dense.values]
    differences = np.array([pruned.values[seed] - dense.values[seed] for seed in shared])
    if not shared:
        return None
    summary, p = summarise(differences), sign_flip(differences)
    return Paired(setting, strategy, DENSE, sparsity, summary, p, smallest_p(len(shared)))


def compare_overall(runs: Rows) -> list[Paired]:
    """Compare every two strategies of each setting over all pruned levels' mean, Holm-corrected together."""
    return _family(runs, "overall", lambda: [(*couple, None) for couple in _couples(runs)])


def compare_levels(runs: Rows) -> list[Paired]:
    """Compare every two strategies of each setting at every pruned level, Holm-corrected together."""

    def wanted() -> list[_Which]:
        levels = [level for level in sorted(_distinct(runs, "sparsity")) if level > 0]
        return [(*couple, level) for couple in _couples(runs) for level in levels]

    return _family(runs, "levels", wanted)


def _couples(runs: Rows) -> Iterator[tuple[Setting, str, str]]:
    """Yield every two strategies of each setting."""
    strategies = _distinct(runs, "strategy")
    for setting in _distinct(runs, "setting"):
        for a, b in itertools.combinations(strategies, 2):
            yield setting, a, b


def sign_flip(differences: Sequence[float] | Numbers) -> float:
    """Return the two-sided p-value of paired differences under sign flips: exact up to 16 pairs.

    p = share of the 2^n sign patterns s with |Σ s_i d_i| >= |Σ d_i|; the null hypothesis is that each
    difference is as likely to be d as -d. Beyond 16 pairs a fixed draw of 100,000 patterns estimates it,
    (hits + 1) / (draws + 1).
    """
    return sign_flips([np.asarray(differences, np.float64)])[0]


DRAWS = 100_000
AT_ONCE = 1_000
"""So many sign patterns are drawn at a time; a multiple of four, so that they are those of a single draw."""


def sign_flips(differences: Sequence[Numbers]) -> list[float]:
    """Return `sign_flip` of each; those with as many pairs share their sign patterns, and a matrix product."""
    found = [math.nan] * len(differences)
    for n, places in _by_length(differences).items():
        if n <= 16:
            # 2^n sums a comparison: as many comparisons at once as a few megabytes hold
            step = max(2**18 >> n, 1)
            for part in (places[i : i + step] for i in range(0, len(places), step)):
                d = np.array([differences[i] for i in part]).reshape(len(part), n)
                sums = np.zeros((len(part), 1))
                for k in range(n):
                    value = d[:, k : k + 1]
                    sums = np.concatenate([sums + value, sums - value], axis=1)
                shares = (np.abs(sums) >= _reach(d)[:, None]).mean(axis=1)
                for i, share in zip(part, shares.tolist(), strict=True):
                    found[i] = share
            continue
        d = np.array([differences[i] for i in places])
        reach, hits = _reach(d), np.zeros(len(places), np.int64)
        rng = np.random.default_rng(0)
        for _ in range(DRAWS // AT_ONCE):
            signs = (rng.integers(0, 2, (AT_ONCE, n), dtype=np.int8) * 2 - 1).astype(np.float64)
            for first in range(0, len(d), 128):  # what stays in a processor's cache
                some = slice(first, first + 128)
                sums = np.abs(signs @ d[some].T)
                hits[some] += np.count_nonzero(sums >= reach[some], axis=0)
        for i, count in zip(places, hits.tolist(), strict=True):
            found[i] = (count + 1) / (DRAWS + 1)
    return found


def _reach(d: Numbers) -> Numbers:
    """Return what a sum of each row of differences must reach to count, a little less than its own."""
    # sums of equal terms in another order differ in the last bits of the terms, and must count as ties
    reached: Numbers = np.abs(d.sum(axis=1)) - 1e-12 * np.abs(d).sum(axis=1)
    return reached


def _by_length(those: Sequence[Numbers]) -> Mapping[int, list[int]]:
    found: dict[int, list[int]] = {}
    for i, one in enumerate(those):
        found.setdefault(len(one), []).append(i)
    return found


def smallest_p(n: int) -> float:
    """Return the smallest two-sided sign-flip p-value that n pairs can give: 2^(1 - n)."""
    return float(2.0 ** (1 - n))


def seeds_needed(p: float = 0.05) -> int:
    """Return how many seeds a two-sided sign-flip test needs before it can reach ``p`` at all."""
    return next(n for n in itertools.count(1) if smallest_p(n) <= p)


def holm(p_values: Sequence[float]) -> list[float]:
    """Return Holm's step-down correction of p-values, in the order given.

    With p_(1) <= ... <= p_(m):  p'_(k) = max over j <= k of min(1, (m - j + 1) p_(j)).
    """
    corrected = [math.nan] * len(p_values)
    running = 0.0
    for rank, i in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        running = max(running, min(1.0, (len(p_values) - rank) * p_values[i]))
        corrected[i] = running
    return corrected


def _family(runs: Rows, name: str, wanted: Callable[[], Sequence[_Which]]) -> list[Paired]:
    """Return comparisons that are Holm-corrected together."""
    runs = remembering(runs)
    families: dict[str, list[Paired]] = runs.memory.setdefault("families", {})
    if name not in families:
        made = [c for c in _compared(runs, wanted()) if c is not None]
        corrected = holm([c.p for c in made])
        families[name] = [replace(c, p_holm=p) for c, p in zip(made, corrected, strict=True)]
    return list(families[name])


# -- a strategy and its controls -------------------------------------------------------------------------


@dataclass(frozen=True)
class Controlled:
    """A strategy beside one of its controls on one setting, strategy minus control.

    ``kind``: the control's word; ``scope`` for the same scores competing elsewhere, ``units`` for magnitude
    measured in units of the initialisation. ``overall``: over all pruned levels; ``levels``: one by one. Both
    are Holm-corrected over all controls of the study and nothing else, since these comparisons were planned.
    """

    kind: str
    overall: Paired
    levels: tuple[Paired, ...]

    @property
    def same(self) -> bool:
        """Whether strategy and control have the same test metric in every run: one network twice."""
        return all(p.difference.mean == p.difference.std == 0 for p in self.levels)


def controls(study: Study) -> list[tuple[str, str, str]]:
    """Return (strategy, its control, kind of control) for all strategies that ``study`` has both of."""
    found = []
    for strategy, other in itertools.permutations(study.strategies, 2):
        if strategy.control is not None:
            continue
        differ = {f for f in Recipe.model_fields if getattr(strategy, f) != getattr(other, f)} - {"name"}
        if differ == {"control"}:
            found.append((strategy.name, other.name, str(other.control)))
        elif differ == {"scope"} and strategy.scope == "global":
            found.append((strategy.name, other.name, "scope"))
        elif differ == {"criterion"} and (strategy.criterion, other.criterion) == _UNITS:
            found.append((strategy.name, other.name, "units"))
    return found


_UNITS = ("magnitude", "init-magnitude")


def compare_controls(runs: Rows, study: Study) -> list[Controlled]:
    """Compare every strategy with each of its controls, seed by seed, on every setting."""
    pairs = [(setting, *names) for setting in study.settings() for names in controls(study)]
    levels = [s for s in study.sparsities if s > 0]
    overall = _family(runs, "controls", lambda: [(*which, None) for *which, _ in pairs])  # type: ignore[misc]
    single = _family(runs, "controls by level", lambda: [(*w, s) for *w, _ in pairs for s in levels])  # type: ignore[misc]
    by_level: dict[tuple[Setting, str, str], list[Paired]] = {}
    for p in single:
        by_level.setdefault((p.setting, p.first, p.second), []).append(p)
    kinds = {(setting, strategy, control): kind for setting, strategy, control, kind in pairs}
    return [
        Controlled(kinds[which], p, tuple(by_level[which]))
        for p in overall
        for which in [(p.setting, p.first, p.second)]
    ]


# -- all strategies --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Ranked:
    """One strategy's place among all strategies of a setting.

    ``rank``: 1 is the best. ``mean``: of each seed's mean test metric over all pruned levels. ``critical``:
    its `critical_sparsity`. ``cells``: its pruned cells; ``fatal``: those in which a mask was fatal before
    training began, see `diagnoses`; ``diverged``: runs that did. ``alike``: the strategies that these seeds
    cannot tell from it, Holm-corrected p above 0.05 in `compare_overall`, in rank order.
    """

    rank: int
    setting: Setting
    strategy: str
    mean: Summary
    critical: float | None
    cells: int
    fatal: int
    diverged: int
    alike: tuple[str, ...]


def ranking(runs: Rows, setting: Setting) -> list[Ranked]:
    """Return a setting's strategies, the highest mean over all pruned levels first.

    Each seed's levels are averaged first, then the seeds. A seed counts only if it has a test metric at every
    pruned level of the setting: without its hardest level, a strategy would climb. One without such a seed comes
    last. Nothing is ranked where nothing pruned was trained.
    """
    levels = {c.sparsity for c in cells(runs, setting) if c.sparsity > 0}
    if not levels:
        return []
    apart = {
        frozenset((p.first, p.second))
        for p in compare_overall(runs)
        if p.setting == setting and p.p_holm <= 0.05
    }
    means = {}
    for strategy in dict.fromkeys(c.strategy for c in cells(runs, setting)):
        by_seed: dict[int, list[float]] = {}
        for c in cells(runs, setting, strategy):
            for seed, value in c.values.items() if c.sparsity > 0 else ():
                by_seed.setdefault(seed, []).append(value)
        means[strategy] = summarise(float(np.mean(v)) for v in by_seed.values() if len(v) == len(levels))
    order = sorted(
        means, key=lambda strategy: means[strategy].mean if means[strategy].n else -math.inf, reverse=True
    )
    ranked = []
    for rank, strategy in enumerate(order, 1):
        pruned = [c for c in cells(runs, setting, strategy) if c.sparsity > 0]
        ranked.append(
            Ranked(
                rank,
                setting,
                strategy,
                mean=means[strategy],
                critical=critical_sparsity(runs, setting, strategy),
                cells=len(pruned),
                fatal=sum(d.fatal > 0 for d in diagnoses(runs, setting, strategy)),
                diverged=sum(c.diverged for c in pruned),
                alike=tuple(o for o in order if o != strategy and frozenset((o, strategy)) not in apart),
            )
        )
    return ranked


# -- what the masks did ----------------------------------------------------------------------------------

Severity = Literal["fatal", "warning", "note"]
SEVERITIES: tuple[Severity, ...] = get_args(Severity)
"""What a finding of the mask doctor can be, gravest first."""


@dataclass(frozen=True)
class Found:
    """One finding of the mask doctor, shared by ``runs`` runs at ``sparsities``.

    ``text``: the sentence as the first of them has it. ``varies``: whether others have other numbers in it.
    """

    severity: Severity
    text: str
    runs: int
    sparsities: tuple[float, ...]
    varies: bool


def findings(runs: Rows) -> list[Found]:
    """Return what the mask doctor found in ``runs``: the gravest first, then what most runs share.

    Sentences that differ in numbers or brackets alone are one finding.
    """
    return _merged((where[2], told.findings) for where, told in _doctor(runs).items())


def findings_of_strategies(runs: Rows) -> dict[tuple[Setting, str], list[Found]]:
    """Return `findings` of each setting and strategy."""
    grouped: dict[tuple[Setting, str], list[Any]] = {}
    for (setting, strategy, sparsity), told in _doctor(runs).items():
        grouped.setdefault((setting, strategy), []).append((sparsity, told.findings))
    return {where: _merged(told) for where, told in grouped.items()}


def _merged(
    told: Iterable[tuple[float, Mapping[tuple[Severity, str], tuple[str, int, bool]]]],
) -> list[Found]:
    """Return the findings of several cells, those at a sparsity and how many runs have them, as one list."""
    found: dict[tuple[Severity, str], Found] = {}
    for sparsity, of in told:
        for (severity, alike), (text, count, varies) in of.items():
            f = found.get((severity, alike), Found(severity, text, 0, (), False))
            found[severity, alike] = Found(
                severity,
                f.text,
                f.runs + count,
                tuple(sorted({*f.sparsities, sparsity})),
                f.varies or varies or text != f.text,
            )
    return sorted(found.values(), key=lambda f: (SEVERITIES.index(f.severity), -f.runs))


# a number by itself, not one in a layer's name (0.weight), and whatever stands in brackets
_NUMBERS = re.compile(r"\([^)]*\)|(?<![\w.])[-+]?\d+(\.\d+)?(e[-+]?\d+)?%?(?!\w|\.\w)")


@dataclass(frozen=True)
class LayerMeans:
    """What the mask doctor measured in one layer, mean over a cell's runs; nan where none of them knows.

    ``density``, ``effective``: share of its weights kept, and kept on a path from input to output.
    ``no_input``, ``no_output``: units that no path reaches, or that reach no output. ``with_size``:
    correlation of mask and size of weight. ``scale``: standard deviation of the layer's output, pruned over
    dense. ``always_on``, ``always_off``: share of ReLUs that never cut, or always do.
    """

    name: str
    weights: int
    units: int
    density: float
    effective: float
    no_input: float
    no_output: float
    with_size: float
    scale: float
    always_on: float
    always_off: float


@dataclass(frozen=True)
class Diagnosed:
    """What the mask doctor said of one cell's networks before they were trained, over its ``n`` runs.

    ``runs``: how many have a finding of each severity. ``realised``, ``effective``: mean sparsity over
    prunable weights, as kept and without weights on no path. ``no_input``, ``no_output``: mean number of
    hidden units that no path reaches, or that reach no output (a unit can be both); ``units``: hidden units
    there are. ``always_off``: mean share of ReLUs that are off for the whole batch. ``scale``: the output's
    standard deviation, pruned over dense. ``collapses_at``: the least sparsity, over seeds, at which this
    criterion empties a layer; None if not known. Other numbers are nan where no run knows them.
    """

    setting: Setting
    strategy: str
    sparsity: float
    n: int
    runs: Mapping[Severity, int]
    realised: float
    effective: float
    units: int
    no_input: float
    no_output: float
    always_off: float
    scale: float
    collapses_at: float | None
    findings: tuple[Found, ...]
    layers: tuple[LayerMeans, ...]

    @property
    def severity(self) -> Severity | None:
        """The gravest finding's severity; None if nothing was found."""
        return next((severity for severity in SEVERITIES if self.runs[severity]), None)

    @property
    def fatal(self) -> int:
        """Number of runs that cannot learn."""
        return self.runs["fatal"]


def diagnoses(runs: Rows, setting: Setting | None = None, strategy: str | None = None) -> list[Diagnosed]:
    """Return what the mask doctor said of each pruned cell, in order; of one setting or strategy if named."""
    return [
        known.diagnosed
        for (of, name, _), known in _doctor(runs).items()
        if known.diagnosed is not None and setting in (None, of) and strategy in (None, name)
    ]


class _Told(NamedTuple):
    """What the mask doctor said of a cell: the means, and its findings with how many runs have each."""

    diagnosed: Diagnosed | None
    findings: Mapping[tuple[Severity, str], tuple[str, int, bool]]


def _doctor(runs: Rows) -> Mapping[tuple[Setting, str, float], _Told]:
    """Return what was said of each cell; every diagnosis is read once."""
    runs = remembering(runs)
    if "doctor" not in runs.memory:
        found: dict[tuple[Setting, str, float], _Told] = {}
        for where, rows in runs.cells.items():
            read = [(row, plain(row.diagnosis)) for row in rows]
            known = [(row, diagnosis) for row, diagnosis in read if diagnosis]
            told: dict[tuple[Severity, str], tuple[str, int, bool]] = {}
            for _, diagnosis in read:
                for severity, text in diagnosis.get("findings", ()):
                    which = severity, _alike(text)
                    first, count, varies = told.get(which, (text, 0, False))
                    told[which] = first, count + 1, varies or text != first
            found[where] = _Told(_diagnosed(*where, known, told) if known else None, told)
        runs.memory["doctor"] = found
    said: Mapping[tuple[Setting, str, float], _Told] = runs.memory["doctor"]
    return said


@lru_cache(10_000)
def _alike(text: str) -> str:
    """Return a finding's sentence without its numbers and brackets."""
    return _NUMBERS.sub("#", text)


def gravest_first(cells: Iterable[Diagnosed]) -> list[Diagnosed]:
    """Return cells by their gravest finding, those with more fatal runs first; equals stay in order."""
    order = [*SEVERITIES, None]
    return sorted(cells, key=lambda c: (order.index(c.severity), -c.fatal))


def _diagnosed(
    setting: Setting,
    strategy: str,
    sparsity: float,
    known: Sequence[tuple[Row, Mapping[str, Any]]],
    told: Mapping[tuple[Severity, str], tuple[str, int, bool]],
) -> Diagnosed:
    rows = [row for row, _ in known]
    layers = tuple(_layer(those) for those in zip(*(of["layers"] for _, of in known), strict=True))
    hidden, last = layers[:-1], layers[-1]
    relus = [layer for layer in layers if not math.isnan(layer.always_off)]
    severities = [{severity for severity, _ in of["findings"]} for _, of in known]
    return Diagnosed(
        setting,
        strategy,
        sparsity,
        n=len(rows),
        runs={severity: sum(severity in those for those in severities) for severity in SEVERITIES},
        realised=_mean(run.realised_sparsity for run in rows),
        effective=_mean(run.effective_sparsity for run in rows),
        units=sum(layer.units for layer in hidden),
        no_input=sum(layer.no_input for layer in hidden),
        no_output=sum(layer.no_output for layer in hidden),
        always_off=(
            sum(layer.units * layer.always_off for layer in relus) / sum(layer.units for layer in relus)
            if relus
            else math.nan
        ),
        scale=last.scale,
        collapses_at=min((run.collapses_at for run in rows if run.collapses_at is not None), default=None),
        findings=tuple(_merged([(sparsity, told)])),
        layers=layers,
    )


def _layer(those: Sequence[Mapping[str, Any]]) -> LayerMeans:
    """Average one layer's entries, one a run; pairs are (r, p) or (dense, pruned)."""

    def mean(name: str, of: Callable[[Any], float | None] = lambda value: value) -> float:
        return _mean(None if layer[name] is None else of(layer[name]) for layer in those)

    first = those[0]
    return LayerMeans(
        first["name"],
        first["weights"],
        first["units"],
        density=mean("kept") / first["weights"],
        effective=mean("effective") / first["weights"],
        no_input=mean("no_input"),
        no_output=mean("no_output"),
        with_size=mean("with_size", lambda pair: pair[0]),
        scale=mean("scale", lambda pair: pair[1] / pair[0] if pair[0] else None),
        always_on=mean("always_on", lambda pair: pair[1]),
        always_off=mean("always_off", lambda pair: pair[1]),
    )


def _mean(values: Iterable[float | None]) -> float:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else math.nan


# -- what a mean hides -----------------------------------------------------------------------------------

Kind = Literal[
    "diverged",
    "dense-at-chance",
    "layer-collapse",
    "constant",
    "stopped-at-chance",
    "out-of-time",
    "straddling",
    "single-seed",
]


@dataclass(frozen=True)
class Flag:
    """Runs or cells whose mean should not be read without a second thought.

    ``kind``: ``diverged``, ``dense-at-chance``, ``layer-collapse`` (a prunable layer keeps no weight),
    ``constant`` (one output for every test row), ``stopped-at-chance``, ``out-of-time``, ``straddling`` (each
    as the function of its name says), ``single-seed`` (a cell of one run has no interval). ``strategy``:
    ``dense`` at sparsity 0. ``sparsities``: the levels concerned. ``count``: how many runs, or for
    ``dense-at-chance``, ``straddling`` and ``single-seed`` how many cells.
    """

    kind: Kind
    setting: Setting
    strategy: str
    sparsities: tuple[float, ...]
    count: int


def flags(runs: Rows, study: Study, tasks: Mapping[str, TaskFacts]) -> list[Flag]:
    """Return what is odd about a study's runs, worst kind first.

    ``tasks``: the manifest's facts of each task. The dense runs that all strategies share are looked at once.
    """
    found: dict[tuple[Kind, Setting, str], list[float]] = {}
    runs = remembering(runs)

    def file(kind: Kind, setting: Setting, strategy: str, sparsity: float) -> None:
        found.setdefault((kind, setting, DENSE if sparsity == 0 else strategy), []).append(sparsity)

    for run in once(runs):
        where = (run.setting, run.strategy, run.sparsity)
        for kind, odd in _oddities(run, study, tasks[run.task]).items():
            if odd:
                file(kind, *where)
    for setting in _distinct(runs, "setting"):
        if dense_at_chance(runs, setting, tasks[setting.task]):
            file("dense-at-chance", setting, DENSE, 0.0)
        for strategy in _distinct(runs, "strategy"):
            for c in straddling(runs, setting, strategy):
                file("straddling", setting, strategy, c.sparsity)
    for c in cells(once(runs)):
        if c.test.n == 1:
            file("single-seed", c.setting, c.strategy, c.sparsity)
    order: tuple[Kind, ...] = get_args(Kind)
    return [
        Flag(kind, setting, strategy, tuple(sorted(set(levels))), len(levels))
        for wanted in order
        for (kind, setting, strategy), levels in found.items()
        if kind == wanted
    ]


def once(runs: Rows) -> list[Row]:
    """Return the runs with each dense training once, though every strategy's row shows it."""
    seen: set[tuple[Setting, int]] = set()
    kept = []
    for run in runs:
        if run.sparsity == 0:
            if (run.setting, run.seed) in seen:
                continue
            seen.add((run.setting, run.seed))
        kept.append(run)
    return kept


def _oddities(run: Row, study: Study, facts: TaskFacts) -> dict[Kind, bool]:
    if run.test_metric is None:
        return {"diverged": True}
    return {
        "layer-collapse": 0 in run.densities.values(),
        "constant": bool(run.constant),
        "stopped-at-chance": stopped_at_chance(run, study, facts),
        "out-of-time": out_of_time(run, study),
    }


def stopped_at_chance(run: Row, study: Study, facts: TaskFacts) -> bool:
    """Whether patience ended a run, before its planned length, that had not been seen to learn anything.

    Its best validation metric is no better than `chance_bound`: that it cannot learn does not follow.
    """
    patience = study.training.patience
    return bool(
        patience is not None
        and run.waited >= patience
        and run.ended_early
        and run.val_metric is not None
        and run.val_metric <= chance_bound(run.metric, facts.chance, facts.val_rows, run.evaluations)
    )


def dense_at_chance(runs: Rows, setting: Setting, facts: TaskFacts) -> bool:
    """Whether the dense mean is no better than `chance_bound`: keeping 0.95 of it then means nothing."""
    dense = dense_baseline(runs, setting)
    if dense is None or not dense.test.n:
        return False
    return dense.test.mean <= _chance_bound(runs, setting, facts)


def _chance_bound(runs: Rows, setting: Setting, facts: TaskFacts) -> float:
    """Return `chance_bound` of a setting's test metric."""
    metric = remembering(runs).settings[setting][0].metric
    return chance_bound(metric, facts.chance, facts.test_rows)


@lru_cache(10_000)
def chance_bound(metric: str, chance: float, rows: int, looks: int = 1) -> float:
    """Return the metric up to which a network cannot be told from one that has learned nothing.

    Accuracy over ``rows`` rows: what the best of ``looks`` guesses exceeds with probability at most 1 %
    (Bonferroni), the smallest k / rows with P(Binomial(rows, chance) > k) <= 0.01 / looks. Any other metric
    has no such distribution: 5 % of the way from chance to 1, by convention (R² <= 0.05).
    """
    if metric == "accuracy" and rows:
        from scipy.special import bdtrc

        return next(k for k in range(rows + 1) if bdtrc(k, rows, chance) <= 0.01 / looks) / rows
    return chance + 0.05 * (1 - chance)


def would_stop(values: Sequence[float], patience: int) -> int | None:
    """Return the evaluation after which ``patience`` would have ended a training, None if it would not have.

    ``values``: what decides at each evaluation, higher is better, see `natal.reading.rows.Curve`. Only a strictly
    better one is a new best; a curve that ends before or with that evaluation was not cut short.
    """
    best, since = -math.inf, 0
    for evaluation, value in enumerate(values, 1):
        best, since = (value, 0) if value > best else (best, since + 1)
        if since == patience:
            return evaluation if evaluation < len(values) else None
    return None


@dataclass(frozen=True)
class CutShort:
    """What patience would have hidden of one cell that was trained without: runs it would have ended at chance.

    ``runs``: how many of ``n`` it would have ended, before their planned length, with a best validation metric no
    better than `chance_bound`. Of those, means: ``epoch`` of the end; ``loss_then``, ``loss_after``: training
    loss at that epoch, and after the full length; ``train_after``, ``test_after``: metrics after it.
    """

    setting: Setting
    strategy: str
    sparsity: float
    n: int
    runs: int
    epoch: float
    loss_then: float
    loss_after: float
    train_after: float
    test_after: float


def cut_short(
    runs: Rows,
    curves: Sequence[Curve],
    tasks: Mapping[str, TaskFacts],
    decide: str = "val-metric",
    patience: int = PATIENCE,
) -> list[CutShort]:
    """Return what ``patience`` would have hidden of each cell, where it would have ended a run at chance.

    ``curves``: beside ``runs``, as `natal.reading.results.Results` has them. ``decide``: which evaluation is the best
    one, as in `natal.study.Training`; where that is the last, patience would have gone by the metric. ``patience``: in
    evaluations. The training up to there is the same with and without it, so this is what an early-stopped twin would
    have come to.
    """
    by = "val-metric" if decide == "end" else decide
    ended: dict[tuple[Setting, str, float], list[tuple[int, Row, Curve]]] = {}
    counts = Counter((run.setting, run.strategy, run.sparsity) for run in runs)
    for run, curve in zip(runs, curves, strict=True):
        end = would_stop(curve.deciding(by).tolist(), patience)
        if end is None or run.test_metric is None or run.constant:
            continue  # of a constant network there was nothing to hide
        facts = tasks[run.task]
        if max(curve.val_metric[:end]) <= chance_bound(run.metric, facts.chance, facts.val_rows, end):
            ended.setdefault((run.setting, run.strategy, run.sparsity), []).append((end - 1, run, curve))
    return [
        CutShort(
            *which,
            n=counts[which],
            runs=len(those),
            epoch=_mean(curve.epoch[at] for at, _, curve in those),
            loss_then=_mean(curve.train_loss[at] for at, _, curve in those),
            loss_after=_mean(curve.train_loss[-1] for _, _, curve in those),
            train_after=_mean(run.train_metric for _, run, _ in those),
            test_after=_mean(run.test_metric for _, run, _ in those),
        )
        for which, those in ended.items()
    ]


def early_failures(runs: Rows, setting: Setting, strategy: str) -> tuple[int, int]:
    """Return how many of a strategy's runs ended before their planned length, and how many of those fell below
    0.95 of the dense mean (all of them where `threshold` is undefined). Diverged runs are left out."""
    bar = threshold(runs, setting)
    early = [
        run.test_metric
        for run in remembering(runs).settings.get(setting, ())
        if run.strategy == strategy and run.ended_early and run.test_metric is not None
    ]
    return len(early), sum(bar is None or value < bar for value in early)


def out_of_time(run: Row, study: Study) -> bool:
    """Whether a run was trained to its planned length and was at its best in the last twentieth: it was still learning.

    A constant network's bias may still be moving; that is not counted. Nor is anything in a study that keeps the last
    weights whatever they measure.
    """
    late = not run.ended_early and run.best_step > 0.95 * run.steps_planned
    return late and study.training.decide != "end" and not run.constant


@dataclass(frozen=True)
class Searched:
    """The learning rates that one cell tried, over its seeds.

    ``values``: what decided at each rate, higher is better, over the trainings that did not diverge; ``diverged``: how
    many did. ``chosen``: the rate of the runs shown, None while the search is not over.
    """

    setting: Setting
    strategy: str
    sparsity: float
    values: Mapping[float, Summary]
    diverged: Mapping[float, int]
    chosen: float | None


def searched(runs: Rows, attempts: Sequence[Attempt]) -> list[Searched]:
    """Return what each cell that searched its learning rate tried and chose, in order."""
    chosen = {(run.setting, run.strategy, run.sparsity): run.learning_rate for run in runs}
    cells: dict[tuple[Setting, str, float], dict[float, list[float]]] = {}
    for a in attempts:
        where = (a.row.setting, a.row.strategy, a.row.sparsity)
        assert a.row.learning_rate is not None
        cells.setdefault(where, {}).setdefault(a.row.learning_rate, []).append(a.value)
    return [
        Searched(
            *where,
            values={rate: summarise(v for v in values if math.isfinite(v)) for rate, values in rates.items()},
            diverged={rate: sum(v == -math.inf for v in values) for rate, values in rates.items()},
            chosen=chosen.get(where),
        )
        for where, rates in cells.items()
    ]


def provenance(runs: Rows) -> dict[str, int]:
    """Return who trained how many of the runs, most first; more than one maker is mixed provenance."""
    return dict(Counter(run.made_by for run in once(runs)).most_common())


def _distinct(runs: Rows, name: str) -> list[Any]:
    return list(dict.fromkeys(getattr(run, name) for run in runs))
