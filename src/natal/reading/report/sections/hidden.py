"""What means hide: runs that patience ended, odd runs, and what the study cannot conclude."""

from __future__ import annotations

from collections.abc import Iterator

from natal.reading import stats
from natal.reading.report.document import Block, Bullets, Column, Line, Part, Prose, Section, Table, Value
from natal.reading.report.view import View
from natal.reading.wording import number
from natal.study import Setting
from natal.wording import percent, plural


def patience(view: View) -> Section:
    """Return what early stopping would have hidden of a study that has none."""
    return Section("What patience would have hidden", tuple(_patience(view)))


def _patience(view: View) -> Iterator[Block]:
    results = view.results
    if view.study.training.patience is not None:
        return
    cut = stats.cut_short(results.runs, results.curves, results.tasks, view.study.training.decide)
    if not cut:
        return
    yield Table(
        "patience",
        f"This study trains without early stopping. With a patience of {stats.PATIENCE}, these runs would have "
        "ended at chance. Up to that epoch their training is the same, so each line sets the early-stopped "
        "twin beside the full budget. Train metric high, test metric at chance: the network can be trained, "
        "it memorises, and does not generalise.",
        (
            Column("strategy", "strategy", left=True),
            Column("sparsity", "sparsity"),
            Column("runs", "runs"),
            Column("ended", "ended"),
            Column("loss then", "loss_then"),
            Column("loss after", "loss_after"),
            Column("train metric", "train_metric"),
            Column("test metric", "test_metric"),
        ),
        tuple(
            Part(view.words(setting), lines, setting)
            for setting in view.settings
            if (lines := tuple(_cut(c) for c in cut if c.setting == setting))
        ),
    )


def _cut(c: stats.CutShort) -> Line:
    numbers = (c.loss_then, c.loss_after, c.train_after, c.test_after)
    return Line(
        (
            c.strategy,
            Value(percent(c.sparsity), c.sparsity),
            Value(f"{c.runs} of {c.n}", c.runs),
            Value(number(c.epoch, ".0f"), c.epoch),
            *(Value(number(x), x) for x in numbers),
        ),
        (c.strategy,),
        c.sparsity,
    )


def hidden(view: View) -> Section:
    """Return everything odd about the runs."""
    return Section("What the numbers hide", tuple(_hidden(view)))


def _hidden(view: View) -> Iterator[Block]:
    items = []
    for kind, sentence in _SENTENCES.items():
        flags = [flag for flag in view.flags if flag.kind == kind]
        alike: dict[tuple[Setting, str], list[str]] = {}
        for flag in flags:
            alike.setdefault((flag.setting, view.levels(flag.sparsities)), []).append(
                f"{flag.strategy} {flag.count}"
            )
        if flags:
            details = tuple(
                f"{view.words(setting)} {levels}: {', '.join(counted)}"
                for (setting, levels), counted in alike.items()
            )
            items.append((sentence.format(sum(flag.count for flag in flags), view.noun), details))
    makers = stats.provenance(view.results.runs)
    if len(makers) > 1:
        mixed = (
            "MIXED PROVENANCE. Not all trainings were made the same way; chaotic ones differ between engines "
            "and machines by about as much as between orders of summation."
        )
        items.append((mixed, tuple(f"{maker}: {count}" for maker, count in makers.items())))
    yield Bullets(tuple(items)) if items else Prose("Nothing that natal looks for was found.")


_SENTENCES: dict[stats.Kind, str] = {
    "diverged": "DIVERGED, {} runs. Their loss stopped being a finite number; means are over the survivors.",
    "dense-at-chance": "Dense network at chance, {} {}s. It learned nothing that could be kept: critical "
    "sparsities mean nothing there.",
    "layer-collapse": "Layer collapse, {} runs. The mask removed a layer whole, so the output cannot depend "
    "on the input: that says more about where scores compete than about the criterion.",
    "constant": "Constant networks, {} runs. They give every test row the same output.",
    "stopped-at-chance": "Stopped by patience at chance, {} runs. Validation never rose above what guessing "
    "gives, so training ended early; what the full epoch budget would have reached is not known.",
    "out-of-time": "Out of time, {} runs. They were still improving when the epoch budget ended, so their "
    "mean measures speed as well as quality.",
    "straddling": "On the threshold, {} cells. Their 95% CI holds 0.95 of the dense mean: these seeds cannot "
    "say on which side they lie.",
    "single-seed": "One run only, {} cells. They have no interval, and nothing about them can be tested.",
}


def limits(view: View) -> Section:
    """Return what the study cannot conclude."""
    return Section("What this cannot conclude", (Bullets(tuple((limit, ()) for limit in _limits(view))),))


def _limits(view: View) -> Iterator[str]:
    n = len(view.study.seeds)
    least = stats.smallest_p(n)
    yield (
        f"n = {n}: {plural(n, 'seed')} a cell. The smallest two-sided p-value an exact sign-flip test can give "
        f"is {least:.3g}" + (_TOO_FEW.format(stats.seeds_needed(0.05)) if least > 0.05 else ".")
    )
    for what, made in (("overall", view.overall), ("level by level", view.by_level)):
        if len(made) > 1:
            needed = stats.seeds_needed(0.05 / len(made))
            yield (
                f"After correction for the {len(made)} comparisons {what}, one difference alone can be "
                f"significant from {needed} seeds on."
            )
    yield from _LIMITS
    order = "" if view.study.training.batch is None else ", order of batches"
    yield (
        f"A seed sets data, split{order} and initial weights together. Nothing here says which of them a difference "
        "comes from."
    )
    yield f"Tried: {_tried(view)}"


def _tried(view: View) -> str:
    study, tried = view.study, view.results.tried
    tasks = ", ".join(study.task_names)
    if study.hidden is not None and not tried:
        return (
            f"{tasks}; one hidden layer of {study.hidden} neurons; one learning rate per task, not tuned per strategy "
            "or sparsity. Nothing follows for other tasks, depths, widths or rates."
        )
    rates = "one learning rate per task or network, not tuned per strategy or sparsity"
    if tried:
        count = len({a.row.learning_rate for a in tried})
        rates = f"{count} learning rates, the best on validation rows for each strategy and level"
    return f"{tasks}; {', '.join(study.network_names)}; {rates}. Nothing follows for other tasks, networks or rates."


_TOO_FEW = (
    ", so no difference between strategies can be significant at 0.05 by it, however large; that needs {} "
    "seeds or more."
)
_LIMITS = (
    "Intervals and critical sparsities are not corrected for the number of cells: of 20 intervals one is "
    "expected to miss its mean. The t interval assumes that seeds scatter normally, and may reach beyond what "
    "the metric can.",
    "A critical sparsity is a level of this study's grid, reached by a mean; the dense mean it is measured "
    "against is itself uncertain.",
)
