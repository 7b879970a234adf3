"""What a study found: each setting in a few lines, and published claims held against it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from natal.reading import claims, stats
from natal.reading.report.document import (
    Block,
    Column,
    Entry,
    Line,
    Loud,
    Part,
    Point,
    Points,
    Prose,
    Section,
    Table,
    Value,
)
from natal.reading.report.view import FEW_PAIRS, View
from natal.reading.wording import interval, number, show_level
from natal.store import Failure
from natal.study import Run, Setting
from natal.wording import describe, on_one_line, percent, plural


def head(view: View) -> Iterator[Block]:
    """Yield what stands before everything: what the study is, and what no reader may overlook."""
    results = view.results
    if results.study.description:
        yield Prose(on_one_line(results.study.description))
    if results.missing:
        count = f"{len(results.missing)} of {len(results.study.runs())} runs are missing"
        yield Loud(f"UNFINISHED: {count}. Every number below is over the runs there are.")
    if results.failed:
        count = f"{len(results.failed)} of {len(results.study.runs())} runs could not be trained"
        yield Loud(f"FAILED: {count}. `natal run` tries them again.")
        yield Points("Why", tuple(_reasons(results.failed)))
    lost = sum(run.test_metric is None for run in stats.once(results.runs))
    if lost:
        yield Loud(f"DIVERGED: {plural(lost, 'training')} without a metric. Means leave them out; see D.")


def _reasons(failed: Sequence[tuple[Run, Failure]]) -> Iterator[Point]:
    """Yield each reason once, with the first run that it stopped, and count the rest."""
    by_reason: dict[str, list[Run]] = {}
    for run, failure in failed:
        by_reason.setdefault(failure.reason, []).append(run)
    for reason, runs in list(by_reason.items())[:REASONS]:
        more = f" and {plural(len(runs) - 1, 'more run')}" if len(runs) > 1 else ""
        yield Point(f"{describe(runs[0])}{more}: {reason}")
    if len(by_reason) > REASONS:
        yield Point(f"{len(by_reason) - REASONS} more reasons; results.failed has them all")


REASONS = 10
"""As many reasons of failures are told; there may be one a run."""


def findings(view: View) -> Section:
    """Return the key findings: verdicts, each setting's dense network and strategies, who beats whom."""
    return Section("Key findings", tuple(_findings(view)))


def _findings(view: View) -> Iterator[Block]:
    told = ", ".join(f"{count} {verdict}" for verdict, count in claims.told(view.checked))
    if told:
        yield Prose(f"Published claims held against these runs: {told}.")
    for setting in view.settings:
        yield Points(view.words(setting), tuple(_about(view, setting)), setting)
    clear = [p for p in view.overall if p.p_holm <= 0.05]
    if len(clear) > FEW_PAIRS:
        yield Prose(
            f"Over all pruned levels {len(clear)} of {len(view.overall)} pairs of strategies differ significantly "
            "at 0.05, seed by seed and after Holm's correction; RANKING says which."
        )
    elif clear:
        yield Points("Who beats whom over all pruned levels", tuple(_beats(view, p) for p in clear))
    elif view.overall:
        least = max(p.smallest_p for p in view.overall)
        could = f", and with so few seeds none could: the least p is {least:.3g}" * (least > 0.05)
        yield Prose(
            "Over all pruned levels no two strategies differ significantly at 0.05, seed by seed and after "
            f"Holm's correction{could}."
        )
    yield Prose(
        "Critical sparsity: the highest level whose mean test metric is at least 0.95 of the dense mean, "
        "whatever happens at lower levels; a cell with a diverged run does not count."
    )


def _beats(view: View, p: stats.Paired) -> Point:
    better, worse = (p.first, p.second) if p.difference.mean > 0 else (p.second, p.first)
    return Point(
        f"{view.words(p.setting)}: {better} beats {worse} over all pruned levels, p = {p.p_holm:.3g} (Holm)"
    )


def _about(view: View, setting: Setting) -> Iterator[Point]:
    dense, bar = view.dense[setting], view.bars[setting]
    if dense and dense.test.n:
        yield Point(
            f"dense: {dense.metric_name} {number(dense.test.mean)}, 95% CI {interval(dense.test)}, "
            f"n = {dense.test.n}; 0.95 of it: {number(bar) if bar else 'undefined, not positive'}"
        )
        if view.dense_at_chance[setting]:
            yield Point("the dense network is at chance: its critical sparsities mean nothing", alarm=True)
    else:
        yield Point("dense: no run, so critical sparsity is undefined")
    yield from _each_strategy(view, setting) if view.few else _best_and_worst(view, setting)


def _each_strategy(view: View, setting: Setting) -> Iterator[Point]:
    """Yield each strategy's critical sparsity and best level, and what must be known to read them."""
    for strategy in view.strategies:
        best = stats.peak(view.runs_of[setting], setting, strategy)
        if best:
            yield Point(
                f"{strategy}: critical sparsity {_critical(view, setting, strategy)}; "
                f"best mean {number(best.test.mean)} at {percent(best.sparsity)}"
            )
        for words, levels in _caveats(view, setting, strategy):
            yield Point(f"{words} {view.levels(levels)}", alarm=True, depth=1)


def _critical(view: View, setting: Setting, strategy: str) -> str:
    low, high = view.critical_range((setting, strategy))
    allowed = f" (intervals allow {show_level(low)} to {show_level(high)})" if low != high else ""
    return show_level(view.critical((setting, strategy))) + allowed


def _caveats(view: View, setting: Setting, strategy: str) -> Iterator[tuple[str, list[float]]]:
    fatal = _fatal(view, setting, strategy)
    if fatal:
        yield "masks left nothing that can learn, before any training,", fatal
    for flag in view.flags:
        if (flag.kind, flag.setting, flag.strategy) == ("stopped-at-chance", setting, strategy):
            others = [level for level in flag.sparsities if level not in fatal]
            if others:
                yield "patience ended runs that were still at chance", others


def _fatal(view: View, setting: Setting, strategy: str) -> list[float]:
    return [c.sparsity for c in view.diagnosed.get((setting, strategy), ()) if c.fatal]


def _best_and_worst(view: View, setting: Setting) -> Iterator[Point]:
    ranked = view.rankings[setting]
    if not ranked:
        return
    measured = [r for r in ranked if r.mean.n]  # an unfinished study has strategies without a number yet
    for word, r in (("best", measured[0]), ("worst", measured[-1])) if measured else ():
        yield Point(
            f"{word} of {len(measured)}: {r.strategy}, mean {number(r.mean.mean)} over all pruned levels"
        )
    by_level: dict[float, list[str]] = {}
    for r in ranked:
        if r.critical is not None:
            by_level.setdefault(r.critical, []).append(r.strategy)
    for level in sorted(by_level, reverse=True):
        yield Point(f"critical sparsity {show_level(level)}: {', '.join(by_level[level])}")
    fatal = [(r.strategy, _fatal(view, setting, r.strategy)) for r in ranked if r.fatal]
    if fatal:
        told = "; ".join(f"{name} {view.levels(levels)}" for name, levels in fatal)
        yield Point(f"masks that left nothing that can learn: {told}", alarm=True)


def beside(view: View) -> Section:
    """Return every published claim beside ours."""
    return Section("Published beside ours", tuple(_beside(view)))


def _beside(view: View) -> Iterator[Block]:
    checked: dict[Setting, list[claims.Checked]] = {}
    for c in view.checked:
        checked.setdefault(claims.setting_of(c.claim, view.study), []).append(c)
    asked = [setting for setting in view.settings if setting in checked]
    if not asked:
        return
    yield Table(
        "published",
        "Supported: ours is the published number to its digits, or our 95% CI lies on the claimed side of a bound, "
        "above zero for a difference that is only said to be positive. Not excluded: ours differs, but our 95% CI, or "
        "the range of levels our intervals allow, holds it; wide intervals exclude little. Contradicted: not even "
        "that. Cannot be judged: there is no interval, or the test set is too small to show such an effect. "
        "Differences and ratios are paired by seed; n seeds.",
        (
            Column("verdict", "verdict", left=True),
            Column("published", "published"),
            Column("ours", "ours"),
            Column("95% CI or range", "range"),
            Column("n", "n"),
            Column(" the claim", "claim", left=True),
            Column("because", "cause", left=True, wide=True),
        ),
        tuple(
            Part(view.words(setting), tuple(_claim(c) for c in checked[setting]), setting)
            for setting in asked
        ),
    )


def _claim(c: claims.Checked) -> Line:
    show = claims.shown(c.claim)
    published = c.claim.published
    said: Entry = claims.stated(c.claim) if published is None else Value(show(published), published)
    verdict = c.verdict.upper() if c.verdict == "contradicted" else c.verdict
    span = "n/a" if math.isnan(c.high) else f"[{show(c.low)}, {show(c.high)}]"
    ours = Value(show(c.ours), math.nan if c.ours is None else c.ours)
    return Line((verdict, said, ours, span, Value(str(c.n), c.n), " " + c.claim.text, c.cause))
