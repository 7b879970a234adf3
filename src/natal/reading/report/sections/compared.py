"""Strategies beside each other: their ranking, their controls, every pair, the learning rates they were given."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from natal.reading import stats
from natal.reading.report import charts
from natal.reading.report.document import (
    Block,
    Bullets,
    Column,
    Entry,
    Line,
    Part,
    Prose,
    Section,
    Table,
    Value,
)
from natal.reading.report.view import FEW_PAIRS, MANY_PAIRS, View
from natal.reading.wording import interval, number, show_level, spans
from natal.wording import percent, plural


def level_columns(levels: Sequence[float]) -> tuple[Column, ...]:
    """Return a column per sparsity."""
    return tuple(Column(percent(s), f"at_{s:g}") for s in levels)


def ranking(view: View) -> Section:
    """Return the ranking of the strategies; three or fewer need none but its picture."""
    return Section("Ranking", tuple(_ranking(view)))


def _ranking(view: View) -> Iterator[Block]:
    if not any(view.rankings.values()):
        return
    for setting, ranked in view.rankings.items():
        if ranked:
            yield charts.ranking(view, setting)
    if view.few:
        return
    least = stats.smallest_p(len(view.study.seeds))
    alone = (
        f" With {plural(len(view.study.seeds), 'seed')} no pair can be told apart, whatever the difference: the "
        f"least p is {least:.3g}. The order is what these seeds happened to show."
    ) * (least > 0.05)
    yield Table(
        "ranking",
        "By the mean test metric over all pruned levels, seed by seed; 95% CI over seeds; n seeds with a "
        "metric at every level. Critical sparsity, and the range that the cells' intervals allow. Fatal: cells "
        "in which a mask left nothing that can learn, before any training. Undecided: ranks that these seeds "
        "cannot tell from it, the difference paired by seed not significant at 0.05 after Holm's correction "
        f"for all pairs of all {view.noun}s.{alone}",
        (
            Column("rank", "rank"),
            Column("strategy", "strategy", left=True),
            Column("mean", "mean"),
            Column("95% CI", "ci"),
            Column("n", "n"),
            Column("critical", "critical"),
            Column("allowed", "allowed"),
            Column("fatal", "fatal"),
            Column("diverged", "diverged"),
            Column(" undecided", "undecided", left=True),
        ),
        tuple(
            Part(view.words(setting), tuple(_ranked(view, ranked)), setting)
            for setting, ranked in view.rankings.items()
            if ranked
        ),
    )


def _ranked(view: View, ranked: Sequence[stats.Ranked]) -> Iterator[Line]:
    ranks = {r.strategy: r.rank for r in ranked}
    for r in ranked:
        low, high = view.critical_range((r.setting, r.strategy))
        undecided = "all" if len(r.alike) == len(ranked) - 1 else spans([ranks[name] for name in r.alike])
        yield Line(
            (
                Value(str(r.rank), r.rank),
                r.strategy,
                Value(number(r.mean.mean), r.mean.mean),
                interval(r.mean),
                Value(str(r.mean.n), r.mean.n),
                level(r.critical),
                "-" if low is None else f"[{show_level(low)}, {show_level(high)}]",
                Value(f"{r.fatal} of {r.cells}", r.fatal),
                Value(str(r.diverged), r.diverged),
                f" {undecided}",
            ),
            (r.strategy,),
        )


def level(sparsity: float | None) -> Entry:
    """Return a sparsity as an entry of a table."""
    return show_level(None) if sparsity is None else Value(show_level(sparsity), sparsity)


def controls(view: View) -> Section:
    """Return strategies beside their controls."""
    return Section("Strategies beside their controls", tuple(_controls(view)))


def _controls(view: View) -> Iterator[Block]:
    compared = view.controlled
    if not compared:
        return
    levels = [s for s in view.study.sparsities if s > 0]
    yield Table(
        "controls",
        "Strategy minus control, paired by seed, so that a positive number speaks for the strategy: mean over "
        "all pruned levels, 95% CI, exact sign-flip p after Holm's correction for "
        f"{plural(len(compared), 'planned comparison')}; then level by level. Same: both have the same metric in "
        "every run, so the control removed what the strategy did, or both left a constant network; it shows "
        "nothing.",
        (
            Column("strategy - control", "difference", left=True),
            Column("overall", "overall"),
            Column("95% CI", "ci"),
            Column("p Holm", "p_holm"),
            *level_columns(levels),
        ),
        tuple(
            Part(
                view.words(setting),
                tuple(_control(c, levels) for c in compared if c.overall.setting == setting),
                setting,
            )
            for setting in view.settings
        ),
        apart="Strategies beside their controls, every level" * view.wide,
    )
    told = [
        (f"{kind}: {words}", ())
        for kind, words in CONTROL_MEANING.items()
        if any(c.kind == kind for c in compared)
    ]
    last = "A difference whose interval holds zero is not shown to be zero: read how wide the interval is."
    yield Bullets((*told, (last, ())))


def _control(c: stats.Controlled, levels: Sequence[float]) -> Line:
    p = c.overall
    both = (p.first, p.second)
    if c.same:
        return Line((versus(p), "same", "", "", *[""] * len(levels)), both)
    at = {one.sparsity: one.difference.mean for one in c.levels}
    return Line(
        (
            versus(p),
            signed(p.difference.mean),
            interval(p.difference),
            Value(f"{p.p_holm:.3g}", p.p_holm),
            *(signed(at[s]) if s in at else "n/a" for s in levels),
        ),
        both,
    )


def versus(p: stats.Paired) -> str:
    """Return two strategies as a difference."""
    return f"{p.first} - {p.second}"


def signed(difference: float) -> Value:
    """Return a difference with its sign."""
    return Value(number(difference, "+.4f"), difference)


CONTROL_MEANING: dict[str, str] = {
    "shuffle": "the same number of weights (or neurons) in each layer, which ones drawn anew. A difference is "
    "what choosing within layers is worth; none leaves open whether the layers' shares are any good.",
    "quota-random": "as many weights in each layer, removed at random. It asks what shuffle asks.",
    "reinit": "the same mask on newly drawn initial weights. A difference is what the mask owes to the very "
    "weights it was chosen on; none says that its shape carries the result, good or bad.",
    "invert": "what the scores rank last is kept. No difference says that the scores are no guide here; a "
    "difference may also come from how many weights each layer is left with.",
    "random-neurons": "as many neurons, removed at random. A difference is what choosing by norm is worth.",
    "highest-norm": "the neurons with the largest norm go instead. No difference says that norms are no guide.",
    "fresh-narrow": "a newly drawn network of the width that is left. No difference says that pruning chose a "
    "width and nothing else; it does not say that this width could be known beforehand.",
    "small-dense": "a dense network of the same family, with at most as many parameters as pruning leaves. No "
    "difference says that a smaller network does as well as a pruned one; its layers have other shapes, too.",
    "scope": "the same scores competing within other bounds. A difference belongs to where scores compete, "
    "not to the scores.",
    "units": "magnitude in units of each layer's initialisation. A difference is what a global threshold "
    "over layers of different scale does.",
}
"""What each kind of control shows and what it cannot."""


def pairs(view: View) -> Section:
    """Return every two strategies seed by seed."""
    return Section("Strategies seed by seed", tuple(_pairs(view)))


def _pairs(view: View) -> Iterator[Block]:
    overall, levels = view.overall, view.by_level
    if not overall:
        return
    shown = _telling(view)
    told = ""
    if len(shown) < len(overall):
        rest = [p for p in overall if p not in shown]
        told = (
            f" Shown are the {len(shown)} pairs with a {view.noun}'s best strategy or with random masks; "
            f"{len(rest)} others are left out, {sum(p.p_holm <= 0.05 for p in rest)} of them significant at 0.05 after "
            "the same correction. `natal.reading.stats.compare_overall` and `compare_levels` return them all."
        )
    by_setting = [(setting, [p for p in shown if p.setting == setting]) for setting in view.settings]
    by_setting = [(setting, those) for setting, those in by_setting if those]
    yield Table(
        "pairs",
        "Mean over all pruned levels, first minus second, paired by seed; exact two-sided sign-flip p, and p "
        f"after Holm's correction for these {len(overall)} comparisons. Least p: the least n seeds can give.{told}",
        (
            Column("first - second", "pair", left=True),
            Column("difference", "difference"),
            Column("95% CI", "ci"),
            Column("n", "n"),
            Column("p", "p"),
            Column("p Holm", "p_holm"),
            Column("least p", "least_p"),
        ),
        tuple(Part(view.words(setting), tuple(map(_pair, those)), setting) for setting, those in by_setting),
    )
    for setting, those in by_setting:
        yield charts.pairs(view, setting, those)
    if view.too_many_pairs:
        yield Prose(
            f"Level by level there would be {view.too_many_pairs:,} comparisons; more than {MANY_PAIRS:,} are not made "
            "here. `natal.reading.stats.compare_levels` makes them."
        )
        return
    table = {(p.setting, p.first, p.second, p.sparsity): p for p in levels}
    sparsities = sorted({p.sparsity for p in levels if p.sparsity is not None})
    yield Table(
        "pairs-by-level",
        "The same level by level, mean difference; ! where p after Holm's correction for "
        f"{'these' if len(shown) == len(overall) else 'all'} {len(levels)} comparisons is at most 0.05.",
        (Column("first - second", "pair", left=True), *level_columns(sparsities)),
        tuple(
            Part(
                view.words(setting),
                tuple(
                    Line(
                        (
                            versus(p),
                            *(_difference(table.get((setting, p.first, p.second, s))) for s in sparsities),
                        ),
                        (p.first, p.second),
                    )
                    for p in those
                ),
                setting,
            )
            for setting, those in by_setting
        ),
        apart="Every level" * (len(shown) > FEW_PAIRS or view.wide),
    )


def _pair(p: stats.Paired) -> Line:
    return Line(
        (
            versus(p),
            signed(p.difference.mean),
            interval(p.difference),
            Value(str(p.difference.n), p.difference.n),
            *(Value(f"{x:.3g}", x) for x in (p.p, p.p_holm, p.smallest_p)),
        ),
        (p.first, p.second),
    )


def _telling(view: View) -> list[stats.Paired]:
    """Return all pairs if they are few, else those with a setting's best strategy or its random masks."""
    shown = []
    for setting in view.settings:
        here = [p for p in view.overall if p.setting == setting]
        if len(here) > FEW_PAIRS:
            named = {view.rankings[setting][0].strategy, view.random}
            here = [p for p in here if {p.first, p.second} & named]
        shown += here
    return shown


def _difference(p: stats.Paired | None) -> Entry:
    if p is None:
        return "n/a"
    return Value(number(p.difference.mean, "+.4f"), p.difference.mean, "!" * (p.p_holm <= 0.05))


def learning_rates(view: View) -> Section:
    """Return which learning rates were chosen, where a study searches them."""
    return Section("Learning rates", tuple(_learning_rates(view)))


def _learning_rates(view: View) -> Iterator[Block]:
    results = view.results
    found = stats.searched(results.runs, results.tried)
    if not found:
        return
    rates = sorted({rate for c in found for rate in c.values})
    decided = "lowest validation loss" if view.study.training.decide == "val-loss" else "validation metric"
    levels = sorted({c.sparsity for c in found})
    at = {(c.setting, c.strategy, c.sparsity): c for c in found}
    parts = []
    for setting in view.settings:
        lines = [
            Line((name, *(_rate(at.get((setting, name, s)), rates) for s in levels)), (name,))
            for name in view.strategies
            if any(where[:2] == (setting, name) for where in at)
        ]
        if lines:
            parts.append(Part(view.words(setting), tuple(lines), setting))
    yield Table(
        "learning-rates",
        f"Chosen for each strategy and level among {', '.join(f'{rate:g}' for rate in rates)}, by the mean over seeds "
        f"of the {decided} of the weights that training keeps; test rows had no part in it. "
        f"{plural(len({a.row.key for a in results.tried}), 'training')} were made for it. Edge (e): the lowest or the "
        "highest of the rates was chosen, so a better one may lie beyond."
        + " Open: the search is not over."
        * any(c.chosen is None for c in found),
        (Column("strategy", "strategy", left=True), *level_columns(levels)),
        tuple(parts),
        apart="The rates of every level" * view.wide,
    )


def _rate(found: stats.Searched | None, rates: Sequence[float]) -> Entry:
    if found is None:
        return "n/a"
    if found.chosen is None:
        return "open"
    return Value(f"{found.chosen:g}", found.chosen, " e" * (found.chosen in (rates[0], rates[-1])))
