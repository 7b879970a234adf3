"""What a paper states, beside what a study found. No torch here.

``check(results)`` judges a study's own claims, ``check(results, claims)`` any others. A claim is a number, a bound, or
the sign of a difference; whether ours agrees is said with our uncertainty, not by eye.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import numpy as np

from natal.reading import stats
from natal.reading.results import Results
from natal.reading.rows import Curve, Row
from natal.reading.stats import Rows
from natal.reading.wording import number, show_level
from natal.store import TaskFacts
from natal.study import Claim, Run, Setting, Study
from natal.wording import percent, plural

Verdict = Literal["supported", "not excluded", "contradicted", "cannot be judged", "not tested"]
_Curves = Callable[[], Sequence[Curve]]


@dataclass(frozen=True)
class Checked:
    """A published claim beside ours.

    ``ours``: None if the study has no such number; infinite for a level of chance that is never reached. ``low``,
    ``high``: the 95 % interval of our mean, or the range of levels that our intervals allow; nan if there is none.
    ``n``: seeds behind it. ``verdict``: ``supported`` if ours is the published number to its digits, or the interval
    lies on the claimed side of the bound; ``not excluded`` if ours differs, but our interval or range allows it;
    ``contradicted`` if not even that; ``cannot be judged`` without an interval, or where the test set is too small to
    see such an effect; ``not tested`` without ours. ``cause``: why, in a clause.
    """

    claim: Claim
    ours: float | None
    low: float
    high: float
    n: int
    verdict: Verdict
    cause: str


def check(results: Results, claims: Iterable[Claim] | None = None) -> list[Checked]:
    """Put claims, by default the study's own, beside what it found."""
    wanted = results.study.claims if claims is None else claims
    return [
        check_claim(results.runs, claim, results.study, results.tasks, lambda: results.curves)
        for claim in wanted
    ]


def check_claim(
    runs: Rows, claim: Claim, study: Study, tasks: Mapping[str, TaskFacts], curves: _Curves = lambda: ()
) -> Checked:
    """Put a published claim beside our number; ``tasks``: facts of each task, ``curves``: what `reached` looks at."""
    nothing = Checked(claim, None, math.nan, math.nan, 0, "not tested", "")
    lacking = _lacking(claim, study)
    if lacking:
        return replace(nothing, cause=f"the study has no {lacking}")
    found = _found(runs, claim, study, tasks, curves)
    if found is None:
        return replace(nothing, cause="no finished run has such a number")
    verdict, cause = _verdict(claim, found, tasks[claim.task])
    return Checked(claim, found.ours, found.low, found.high, found.n, verdict, cause)


def setting_of(claim: Claim, study: Study) -> Setting:
    """Return the task and network that a claim is about; one that names no network means the study's only one."""
    return Setting(claim.task, claim.network or study.network_names[0])


def _lacking(claim: Claim, study: Study) -> str:
    """Return what a claim is about and the study has not, or ``""``."""
    if claim.task not in study.task_names:
        return f"task {claim.task!r}"
    if claim.network is not None and claim.network not in study.network_names:
        return f"network {claim.network!r}"
    if claim.network is None and len(study.networks) > 1:
        return f"single network, and the claim names none of {', '.join(study.network_names)}"
    strategies = [recipe.name for recipe in study.strategies]
    for name in (claim.strategy, claim.against):
        if name not in (None, stats.DENSE, *strategies):
            return f"strategy {name!r}"
    if claim.sparsity is not None and claim.sparsity not in study.sparsities:
        return f"sparsity {percent(claim.sparsity)}"
    return ""


# -- our number ------------------------------------------------------------------------------------------


class _Found(NamedTuple):
    """Our number and what our intervals allow, nan where there is none.

    ``accuracy``: mean of the two sides of a difference of metrics. ``lower``, ``higher``: how many runs could make the
    true number lower, or higher, since they ended before the value was reached.
    """

    ours: float
    low: float
    high: float
    n: int
    accuracy: float = math.nan
    lower: int = 0
    higher: int = 0


def _found(
    runs: Rows, claim: Claim, study: Study, tasks: Mapping[str, TaskFacts], curves: _Curves
) -> _Found | None:
    """Return our number for a claim; None if no run has it."""
    where = (runs, setting_of(claim, study), claim.strategy)
    match claim.quantity:
        case "critical-sparsity":
            levels = [stats.critical_sparsity(*where, bound) for bound in _BOUNDS]
        case "kept-through":
            levels = [stats.kept_through(*where, bound) for bound in _BOUNDS]
        case "chance-from":
            levels = [stats.chance_from(*where, tasks[claim.task], bound) for bound in _BOUNDS]
        case "peak-sparsity":
            top = stats.peak(*where)
            levels = [top.sparsity if top else None, None, None]
        case "early-failures":
            early, failed = stats.early_failures(*where)
            levels = [failed / early if early else None, None, None]
        case "difference" | "ratio":
            return _of_two(claim, where[1], _measured(runs, claim, curves))
        case _:
            return _of_one(claim, where[1], _measured(runs, claim, curves))
    ours, low, high = (math.nan if level is None else level for level in levels)
    n = max((c.test.n for c in stats.cells(*where)), default=0)
    return None if math.isnan(ours) else _Found(ours, low, high, n)


_BOUNDS: tuple[stats.Bound, ...] = ("mean", "low", "high")


class _Measured(NamedTuple):
    """A run's number; ``least``: whether it is only known to be at least that."""

    row: Row
    value: float
    least: bool = False


def _measured(runs: Rows, claim: Claim, curves: _Curves) -> list[_Measured]:
    """Return what a claim speaks of, of each run that did not diverge."""
    whole = [run for run in runs if run.test_metric is not None]
    match claim.measured:
        case "epochs":
            return [_Measured(run, run.epochs_trained) for run in whole]
        case "best-iteration":
            return [_Measured(run, float(run.best_step)) for run in whole]
        case "reached":
            assert claim.value is not None
            by_run = {Run(c.task, c.strategy, c.sparsity, c.seed, c.network): c for c in curves()}
            return [_first_reaching(run, by_run[run.run], claim.value) for run in whole]
    return [_Measured(run, run.test_metric) for run in whole if run.test_metric is not None]


def _first_reaching(run: Row, curve: Curve, value: float) -> _Measured:
    there = np.flatnonzero(curve.val_metric >= value)
    if len(there):
        return _Measured(run, float(curve.step[there[0]]))
    return _Measured(run, float(run.steps_trained), least=True)


def _side(
    measured: Iterable[_Measured], setting: Setting, strategy: str
) -> dict[tuple[int, float], _Measured]:
    """Return a strategy's numbers by seed and level, or those of the dense network, which all share."""
    those = [m for m in measured if m.row.setting == setting]
    if strategy != stats.DENSE:
        return {(m.row.seed, m.row.sparsity): m for m in those if m.row.strategy == strategy}
    dense = [m for m in those if m.row.sparsity == 0]
    return {(m.row.seed, 0.0): m for m in dense if m.row.strategy == dense[0].row.strategy}


def _of_one(claim: Claim, setting: Setting, measured: Iterable[_Measured]) -> _Found | None:
    cell = [
        m for (_, level), m in _side(measured, setting, claim.strategy).items() if level == claim.sparsity
    ]
    if not cell:
        return None
    s = stats.summarise(m.value for m in cell)
    return _Found(s.mean, s.low, s.high, s.n, higher=sum(m.least for m in cell))


def _of_two(claim: Claim, setting: Setting, measured: Sequence[_Measured]) -> _Found | None:
    """Pair two strategies seed by seed; over levels, each seed uses the levels that both have."""
    first, second = (_side(measured, setting, name) for name in (claim.strategy, str(claim.against)))
    pairs: dict[int, list[tuple[_Measured, _Measured]]] = {}
    for (seed, level), ours in first.items():
        wanted = level > 0 if claim.sparsity is None else level == claim.sparsity
        theirs = second.get((seed, 0.0 if claim.against == stats.DENSE else level))
        if wanted and theirs is not None:
            pairs.setdefault(seed, []).append((ours, theirs))
    if not pairs:
        return None
    ratio = claim.quantity == "ratio"
    both = [pair for of_seed in pairs.values() for pair in of_seed]
    if ratio and any(m.value <= 0 for pair in both for m in pair):
        return None
    s = stats.summarise(
        float(np.mean([math.log(a.value / b.value) if ratio else a.value - b.value for a, b in of_seed]))
        for of_seed in pairs.values()
    )
    mean, low, high = (math.exp(x) if ratio else x for x in (s.mean, s.low, s.high))
    accuracy = (
        float(np.mean([m.value for pair in both for m in pair])) if claim.measured == "metric" else math.nan
    )
    lower, higher = (sum(pair[side].least for pair in both) for side in (1, 0))
    return _Found(mean, low, high, s.n, accuracy, lower, higher)


# -- what follows ----------------------------------------------------------------------------------------


def _verdict(claim: Claim, found: _Found, facts: TaskFacts) -> tuple[Verdict, str]:
    verdict, cause = _of_bound(claim, found) if claim.published is None else _of_number(claim, found)
    if verdict in ("supported", "contradicted"):
        # a run that ended before the value was reached may have needed any number of steps
        rising, falling = _what_would_change(claim, verdict)
        unknown = found.higher * rising + found.lower * falling
        if unknown:
            return "cannot be judged", f"{plural(unknown, 'run')} ended before the value was reached"
    too_small = _below_resolution(claim, found, facts, verdict)
    return ("cannot be judged", too_small) if too_small else (verdict, cause)


def _of_bound(claim: Claim, found: _Found) -> tuple[Verdict, str]:
    """Judge a claim that our number lies on one side of a bound, by default that a difference is positive."""
    if math.isnan(found.low):
        return "cannot be judged", _no_interval(found)
    if claim.at_most is not None:
        bound, inside, reaches = claim.at_most, found.high <= claim.at_most, found.low <= claim.at_most
    elif claim.at_least is not None:
        bound, inside, reaches = claim.at_least, found.low >= claim.at_least, found.high >= claim.at_least
    else:
        bound, inside, reaches = 0.0, found.low > 0, found.high > 0
    if inside:
        return "supported", f"our interval lies on the claimed side of {bound:g}"
    if reaches:
        return "not excluded", f"our interval holds {bound:g}"
    return "contradicted", f"our interval lies on the other side of {bound:g}"


def _of_number(claim: Claim, found: _Found) -> tuple[Verdict, str]:
    """Judge a claim that our number is the published one."""
    assert claim.published is not None
    rounding = _rounding(claim)
    if abs(found.ours - claim.published) <= rounding:
        return "supported", "ours is the published number to its digits"
    if claim.quantity in ("peak-sparsity", "early-failures"):
        return "contradicted", "ours is another number"
    if math.isnan(found.low) or math.isnan(found.high):
        return "cannot be judged", _no_interval(found)
    # of levels at chance the lower end is the higher level
    low, high = sorted((found.low, found.high))
    if low - rounding <= claim.published <= high + rounding:
        return "not excluded", "ours differs, but our interval holds the published number"
    return "contradicted", "our interval does not hold the published number"


def _rounding(claim: Claim) -> float:
    # a mean published as 0.71 may be anything from 0.705 to 0.715; a level is a level
    assert claim.published is not None
    decimals = len(f"{claim.published:.10f}".rstrip("0").partition(".")[2])
    digits = {"mean": max(1, decimals), "epochs": decimals, "best-iteration": decimals, "reached": decimals}
    digits["ratio"] = max(1, decimals)
    if claim.published:  # no difference at all is exactly 0
        digits["difference"] = decimals
    return 0.5 * 10.0 ** -digits[claim.quantity] if claim.quantity in digits else 0.0


def _no_interval(found: _Found) -> str:
    return "one seed has no interval" if found.n == 1 else "there is no interval"


def _what_would_change(claim: Claim, verdict: Verdict) -> tuple[bool, bool]:
    """Return whether a higher, and whether a lower true number could change a verdict."""
    if claim.published is not None:
        return True, True
    claimed_low = claim.at_most is not None
    return (verdict == "supported") == claimed_low, (verdict == "supported") != claimed_low


def _below_resolution(claim: Claim, found: _Found, facts: TaskFacts, verdict: Verdict) -> str:
    """Say why a test set of n rows cannot show the effect, where it cannot.

    Two accuracies near p differ by chance of the rows alone by about ± 1.96 √(p (1 − p) / n), which no number of seeds
    on the same rows reveals. A published effect smaller than that can be neither shown nor refuted; of a bound, our
    distance from it must be larger.
    """
    if claim.quantity != "difference" or claim.measured != "metric" or facts.metric != "accuracy":
        return ""
    p = min(max(found.accuracy, 0.0), 1.0)
    least = 1.96 * math.sqrt(p * (1 - p) / facts.test_rows)
    if claim.published:
        effect = abs(claim.published)
    elif verdict == "contradicted" or (verdict == "supported" and claim.published is None):
        effect = abs(found.ours - (claim.at_least or claim.at_most or 0.0))
    else:
        return ""
    if effect >= least:
        return ""
    return f"{facts.test_rows:,} test rows cannot show an effect of {effect:.2g}: it must be at least {least:.2g}"


def told(checked: Sequence[Checked]) -> Iterator[tuple[Verdict, int]]:
    """Yield each verdict that was passed, in order from supported to not tested, and how often."""
    order: tuple[Verdict, ...] = (
        "supported",
        "not excluded",
        "contradicted",
        "cannot be judged",
        "not tested",
    )
    verdicts = [c.verdict for c in checked]
    yield from ((v, verdicts.count(v)) for v in order if v in verdicts)


# -- in words --------------------------------------------------------------------------------------------


def shown(claim: Claim) -> Callable[[float | None], str]:
    """Return how numbers of a claim's quantity are written."""
    if claim.quantity in ("critical-sparsity", "kept-through", "peak-sparsity", "chance-from"):
        return lambda x: "n/a" if x is None else show_level(x)
    if claim.quantity == "early-failures":
        return lambda x: "n/a" if x is None else f"{x:.0%}"
    if claim.quantity == "ratio":
        return lambda x: number(x, ".3f")
    return lambda x: number(x, ".4f" if claim.measured == "metric" else ".0f")


def stated(claim: Claim) -> str:
    """Return what a claim says our number is: ``0.7100``, ``>= 0.0030`` or ``positive``."""
    show = shown(claim)
    if claim.at_least is not None:
        return f">= {show(claim.at_least)}"
    if claim.at_most is not None:
        return f"<= {show(claim.at_most)}"
    return "positive" if claim.published is None else show(claim.published)
