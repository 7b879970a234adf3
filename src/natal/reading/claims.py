"""What a paper states, beside what a study found. No torch here.

``check_claim(results.runs, claim, results.study, results.tasks)`` for each of ``study.claims``. A claim is a
number, or the sign of a difference; whether ours agrees is said with our uncertainty, not by eye.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from natal.reading import stats
from natal.reading.stats import Rows
from natal.store import TaskFacts
from natal.study import Claim, Setting, Study

Verdict = Literal["agrees", "not excluded", "disagrees", "cannot be judged"]


@dataclass(frozen=True)
class Checked:
    """A published claim beside ours.

    ``ours``: None if the study has no such number; infinite for a level of chance that is never reached.
    ``low``, ``high``: the 95 % interval of our mean, or the range of levels that our intervals allow; nan if
    there is none. ``verdict``: ``agrees`` if ours is the published number to its digits, or the interval of a
    difference lies on the claimed side of zero; ``not excluded`` if ours differs, but our interval or range
    allows it; ``disagrees`` if not even that; ``cannot be judged`` without an interval; None without ours.
    """

    claim: Claim
    ours: float | None
    low: float
    high: float
    verdict: Verdict | None


def check_claim(runs: Rows, claim: Claim, study: Study, tasks: Mapping[str, TaskFacts]) -> Checked:
    """Put a published claim beside our number; ``tasks``: facts of each task."""
    ours, low, high = (None if x is None or math.isnan(x) else x for x in _ours(runs, claim, study, tasks))
    return Checked(
        claim,
        ours,
        math.nan if low is None else low,
        math.nan if high is None else high,
        None if ours is None else _verdict(claim, ours, low, high),
    )


def setting_of(claim: Claim, study: Study) -> Setting:
    """Return the task and network that a claim is about; one that names no network means the study's only one."""
    return Setting(claim.task, claim.network or study.network_names[0])


_Number = float | None


def _ours(
    runs: Rows, claim: Claim, study: Study, tasks: Mapping[str, TaskFacts]
) -> tuple[_Number, _Number, _Number]:
    """Return our number for a claim and the ends of what our intervals allow."""
    if claim.task not in tasks:
        return None, None, None
    setting = setting_of(claim, study)
    where = (runs, setting, claim.strategy)
    levels: list[_Number]
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
        case _:
            summary = _summary(runs, claim, setting)
            levels = [summary.mean, summary.low, summary.high] if summary else [None, None, None]
    ours, low, high = levels
    return ours, low, high


_BOUNDS: tuple[stats.Bound, ...] = ("mean", "low", "high")


def _summary(runs: Rows, claim: Claim, setting: Setting) -> stats.Summary | None:
    """Return the mean that a claim is about: of a cell's metric or epochs, or of a difference."""
    if claim.quantity == "difference":
        against, level = str(claim.against), claim.sparsity
        if against == stats.DENSE and level is not None:
            pair = stats.against_dense(runs, setting, claim.strategy, level)
        else:
            pair = stats.paired(runs, setting, claim.strategy, against, level)
        return pair.difference if pair else None
    assert claim.sparsity is not None
    found = stats.cell(runs, setting, claim.strategy, claim.sparsity)
    return (found.epochs if claim.quantity == "epochs" else found.test) if found else None


def _verdict(claim: Claim, ours: float, low: _Number, high: _Number) -> Verdict:
    if claim.published is None:  # the claim is that the difference is positive
        if low is None or high is None:
            return "cannot be judged"
        return "agrees" if low > 0 else "not excluded" if high > 0 else "disagrees"
    # a mean published as 0.71 may be anything from 0.705 to 0.715; a level is a level
    digits = {"mean": max(1, _decimals(claim.published)), "epochs": _decimals(claim.published)}
    rounding = 0.5 * 10.0 ** -digits[claim.quantity] if claim.quantity in digits else 0.0
    if abs(ours - claim.published) <= rounding:
        return "agrees"
    if claim.quantity in ("peak-sparsity", "early-failures"):
        return "disagrees"
    if low is None or high is None:
        return "cannot be judged"
    # of levels at chance the lower end is the higher level
    low, high = sorted((low, high))
    return "not excluded" if low - rounding <= claim.published <= high + rounding else "disagrees"


def _decimals(x: float) -> int:
    return len(f"{x:.10f}".rstrip("0").partition(".")[2])
