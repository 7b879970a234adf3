"""Networks that are cut later than at birth: what was trained once and shared, and what rounds reached."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from natal.reading.connectivity import STABLE, Barrier
from natal.reading.report import charts
from natal.reading.report.document import Block, Column, Line, Part, Prose, Section, Table, Value
from natal.reading.report.view import LARGE, View
from natal.reading.rows import Row
from natal.reading.wording import interval, number
from natal.study import Stage, stage_of
from natal.wording import percent, plural

ROUNDS = 8
"""Up to so many rounds of a chain are written out; of more, the first and the last."""


def chains(view: View) -> Section:
    """Return what chains shared, and each round's realised sparsity."""
    return Section("Chains", tuple(_chains(view)))


def _chains(view: View) -> Iterator[Block]:
    parts = tuple(part for setting in view.settings if (part := _part(view, view.runs_of[setting])).lines)
    if not parts:
        return
    if not view.large:
        yield Prose(_shared(view))
    seed = view.study.seeds[0]
    over = (
        f"of seed {seed} alone, since there are more than {LARGE:,} runs" if view.large else "mean over seeds"
    )
    yield Table(
        "chains",
        f"Networks that were cut later than at birth. Rounds: sparsity that each cut of a chain reached, {over}. "
        "Began at: the step of its clock that the last training went on from, or was rewound to. Held: runs whose "
        "removed weights were exactly 0 at every evaluation; rewound: those that began with the very state that they "
        "were given.",
        (
            Column("strategy", "strategy", left=True),
            Column("sparsity", "sparsity"),
            Column("rounds", "rounds", left=True),
            Column("began at", "began_at"),
            Column("held", "held"),
            Column("rewound", "rewound"),
            Column("n", "n"),
        ),
        parts,
        apart="Chains, round by round" * view.wide,
    )


def _part(view: View, rows: Sequence[Row]) -> Part:
    """Return the lines of one setting's chains."""
    late = {recipe.name for recipe in view.study.strategies if recipe.at != "init"}
    cells: dict[tuple[str, float], list[Row]] = {}
    for row in rows:
        # a large study's are read of one seed
        if row.strategy in late and row.sparsity and (not view.large or row.seed == view.study.seeds[0]):
            cells.setdefault((row.strategy, row.sparsity), []).append(row)
    lines = tuple(
        _cell(*where, found)
        for where, those in cells.items()
        if (found := [row.proofs for row in those if "rounds" in row.proofs])
    )
    setting = rows[0].setting if rows else None
    return Part(view.words(setting) if setting else "", lines, setting)


def _cell(strategy: str, sparsity: float, proofs: Sequence[Mapping[str, Any]]) -> Line:
    rounds: list[list[float]] = [proof["rounds"] for proof in proofs]
    reached = [100 * sum(those) / len(those) for those in zip(*rounds, strict=True)]
    words = [f"{share:.2f}%" for share in reached]
    if len(words) > ROUNDS:
        words = [*words[:3], "...", *words[-2:], f"({len(reached)} rounds)"]
    steps = [proof["restarted"]["step"] for proof in proofs]
    return Line(
        (
            strategy,
            Value(percent(sparsity), sparsity),
            " ".join(words),
            Value(f"{min(steps)}", min(steps)),
            *(
                Value(f"{count} of {len(proofs)}", count)
                for count in (sum(proof[what] is True for proof in proofs) for what in ("held", "rewound"))
            ),
            Value(str(len(proofs)), len(proofs)),
        ),
        (strategy,),
        sparsity,
    )


def _shared(view: View) -> str:
    """Return how many trainings the rows' chains have, and how many different ones those are."""
    apart: set[object] = set()
    total = 0
    for setting, rows in view.runs_of.items():
        fit = view.results.tasks[setting.task]["fit_rows"]
        for row in rows:
            # without a search among learning rates every stage of a chain knows its own
            rate = (row.learning_rate or 0.0) if view.results.tried else 0.0
            names = _names(view, stage_of(view.study, row.run, rate, fit))
            apart |= set(names)
            total += len(names)
    return (
        f"{plural(len(view.results.runs), 'run')} end chains of {total} trainings in all, each dense network's "
        f"included; {len(apart)} of them differ and were trained once."
    )


def _names(view: View, last: Stage) -> list[object]:
    """Return what tells the stages of a chain apart from those of other chains."""
    names: list[object] = []
    for stage in last:
        run, recipe = stage.run, stage.recipe
        cut = "" if recipe is None else recipe.model_dump_json(exclude={"name", "rounds", "at", "rewind"})
        whose = "" if view.study.share else run.strategy
        before = names[-1] if names else (run.task, run.network, run.seed)
        names.append((before, whose, cut, stage.targets, stage.at, stage.start, stage.learning_rate))
    return names


def connectivity(view: View) -> Section:
    """Return how high the error rises on the line between two trainings that part at a state."""
    return Section("Linear mode connectivity", tuple(_connectivity(view)))


def _connectivity(view: View) -> Iterator[Block]:
    if not view.barriers:
        return
    of_setting = {
        setting: those
        for setting in view.settings
        if (those := [b for b in view.barriers if b.setting == setting])
    }
    for setting in of_setting:
        yield charts.barriers(view, setting)
    yield Table(
        "connectivity",
        "Two trainings go on from one state in different orders of the data; the error barrier is the highest test "
        "error (loss, where a task has no accuracy) on the straight line between their last weights, minus the mean of "
        f"its ends. Frankle et al. (2020) call a network stable where that of its error stays below {STABLE:g}. Mean "
        "and Student-t 95% CI over n seeds; lines with an end that diverged are left out.",
        (
            Column("strategy", "strategy", left=True),
            Column("sparsity", "sparsity"),
            Column("state at", "clock", left=True),
            Column("barrier", "barrier"),
            Column("95% CI", "ci"),
            Column("n", "n"),
            Column("stable", "stable", left=True),
        ),
        tuple(
            Part(view.words(setting), tuple(_barrier(view, b) for b in those), setting)
            for setting, those in of_setting.items()
        ),
    )


def _barrier(view: View, b: Barrier) -> Line:
    mean = b.barrier.mean
    # the threshold is one of error; what is stable in a loss nobody has said
    known = math.isfinite(mean) and view.results.tasks[b.setting.task].metric == "accuracy"
    return Line(
        (
            b.strategy,
            Value(percent(b.sparsity), b.sparsity),
            b.clock,
            Value(number(mean), mean),
            interval(b.barrier),
            Value(str(b.barrier.n), b.barrier.n),
            ("yes" if mean < STABLE else "no") if known else "n/a",
        ),
        (b.strategy,),
        b.sparsity,
    )
