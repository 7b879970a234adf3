"""Everything a results directory shows, rebuilt from its run store alone. No torch here.

``write("results")`` makes results.json, summary.csv, both figures and report.txt. Nothing is computed here:
every number comes from a function in `natal.stats` that a reader can call. The same store gives the same
bytes.
"""

from __future__ import annotations

import csv
import io
import json
import math
import os
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from natal import figures, stats
from natal.errors import NatalError
from natal.results import Results, load, percent, published

SUMMARY_COLUMNS = (
    *("task", "strategy", "sparsity", "metric_name", "metric_mean", "metric_std", "metric_ci_low"),
    *("metric_ci_high", "epochs_mean", "epochs_std", "n_seeds"),
)
WIDTH = 110
FEW = 3
"""Up to so many strategies a report spells everything out; more are ranked and shown side by side."""
FEW_PAIRS = 15
"""Up to so many pairs of strategies a task are all printed; of more, those that tell most."""


def write(directory: str | Path = "results") -> list[Path]:
    """Rebuild all outputs of the study in ``directory``, finished or not, and return their paths.

    Each file replaces its predecessor whole or not at all. Raises NatalError if there is no study or a file
    cannot be written.
    """
    results = load(directory)
    paths = []
    for name, make in OUTPUTS.items():
        path = results.directory / name
        _replace(path, make(results))
        paths.append(path)
    return paths


def json_bytes(results: Results) -> bytes:
    """Return ``results.json``: all runs in the published program's format."""
    return (json.dumps(published(results), indent=2, allow_nan=False, ensure_ascii=False) + "\n").encode()


def csv_bytes(results: Results) -> bytes:
    """Return ``summary.csv``: a row per cell; ``nan`` where a number is undefined."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(SUMMARY_COLUMNS)
    for c in stats.cells(results.runs):
        numbers = (c.test.mean, c.test.std, c.test.low, c.test.high, c.epochs.mean, c.epochs.std)
        # ten digits: more than any reader needs, fewer than two machines' libraries can disagree on
        writer.writerow(
            [c.task, c.strategy, c.sparsity, c.metric_name, *(f"{x:.10g}" for x in numbers), c.test.n]
        )
    return file.getvalue().encode()


def text(results: Results) -> str:
    """Return ``report.txt``."""
    return "\n".join(line.rstrip() for section in _SECTIONS for line in section(results)) + "\n"


OUTPUTS: dict[str, Callable[[Results], bytes]] = {
    "results.json": json_bytes,
    "summary.csv": csv_bytes,
    "accuracy_vs_sparsity.png": lambda results: figures.png(results, "metric"),
    "epochs_vs_sparsity.png": lambda results: figures.png(results, "epochs"),
    "report.txt": lambda results: text(results).encode(),
}
"""What `write` makes, by file name."""


_Cells = Sequence[stats.Diagnosed]

# -- sections --------------------------------------------------------------------------------------------


def _title(results: Results) -> Iterator[str]:
    title = f"PRUNING AT INITIALISATION: study {results.study.name!r}"
    yield from (title, "=" * len(title), "")
    if results.study.description:
        yield from _prose(results.study.description)
    if results.missing:
        count = f"{len(results.missing)} of {len(results.study.runs())} runs are missing"
        yield from _loud(f"UNFINISHED: {count}. Every number below is over the runs there are.")
    lost = sum(run["test_metric"] is None for run in stats.once(results.runs))
    if lost:
        yield from _loud(f"DIVERGED: {_n(lost, 'training')} without a metric. Means leave them out; see D.")


def _what_was_run(results: Results) -> Iterator[str]:
    yield from _heading("WHAT WAS RUN")
    facts = list(_facts(results))
    wide = max(len(name) for name, _ in facts)
    yield from (f"  {name:<{wide}}  {fact}" for name, fact in facts)
    yield ""


def _facts(results: Results) -> Iterator[tuple[str, str]]:
    study, training, manifest = results.study, results.study.training, results.manifest

    def made(*names: str) -> str:
        return ", ".join(f"{name.removesuffix('_version')} {manifest.get(name)}" for name in names)

    trainings = len({run["key"] for run in results.runs})
    size = [(study.tasks, "task"), (study.strategies, "strategy"), (study.sparsities, "sparsity")]
    grid = " x ".join(_n(len(things), noun) for things, noun in [*size, (study.seeds, "seed")])
    target = "no target" if training.target is None else f"target {training.target:g}"
    patience = f"patience {training.patience}" if training.patience else "no patience"
    yield "runs", f"{len(results.runs)} of {len(study.runs())}: {grid}"
    yield "trainings", f"{trainings}; strategies share the dense one of each task and seed"
    yield "seeds", ", ".join(map(str, study.seeds))
    yield "network", f"one hidden layer of {study.hidden} ReLU neurons; biases are never pruned or counted"
    yield "training", f"full-batch Adam, at most {training.epochs} epochs, {patience}, {target}"
    for name in study.tasks:
        task = results.tasks.get(name, {})
        rows = ", ".join(f"{task.get(f'{part}_rows')} {part}" for part in ("fit", "val", "test"))
        yield name, f"rows: {rows}; {task.get('metric')}, chance {_number(task.get('chance'))}"
    for recipe in study.strategies:
        control = f", control {recipe.control}" if recipe.control else ""
        yield (
            recipe.name,
            f"{recipe.criterion} scores, {recipe.scope} scope, by {recipe.granularity}{control}",
        )
    yield "software", made("natal_version", "torch_version", "numpy_version", "python_version")
    yield "hardware", made("platform", "processor", "device", "workers", "threads")
    determinism = "on" if manifest.get("deterministic") else "OFF"
    yield "arithmetic", f"{made('engine', 'dtype')}, deterministic algorithms {determinism}"
    yield "wall time", f"{_number(manifest.get('elapsed_seconds'), '.1f')} s of training"


def _findings(results: Results) -> Iterator[str]:
    yield from _heading("KEY FINDINGS")
    runs = results.runs
    for task in results.study.tasks:
        dense, bar = stats.dense_baseline(runs, task), stats.threshold(runs, task)
        yield f"  {task}"
        if dense and dense.test.n:
            yield (
                f"    dense: {dense.metric_name} {_number(dense.test.mean)}, 95% CI {_interval(dense.test)}, "
                f"n = {dense.test.n}; 0.95 of it: {_number(bar) if bar else 'undefined, not positive'}"
            )
            if stats.dense_at_chance(runs, task, results.tasks.get(task, {})):
                yield "    !! the dense network is at chance: its critical sparsities mean nothing"
        else:
            yield "    dense: no run, so critical sparsity is undefined"
        for recipe in results.study.strategies:
            best = stats.peak(runs, task, recipe.name)
            if best:
                yield (
                    f"    {recipe.name}: critical sparsity {_critical(runs, task, recipe.name)}; "
                    f"best mean {_number(best.test.mean)} at {percent(best.sparsity)}"
                )
    yield ""
    pairs = stats.compare_overall(runs)
    clear = [p for p in pairs if p.p_holm <= 0.05]
    if len(clear) > FEW_PAIRS:
        yield from _prose(
            f"Over all pruned levels {len(clear)} of {len(pairs)} pairs of strategies differ significantly "
            "at 0.05, seed by seed and after Holm's correction; RANKING says which."
        )
    for p in clear if len(clear) <= FEW_PAIRS else ():
        better, worse = (p.first, p.second) if p.difference.mean > 0 else (p.second, p.first)
        yield f"  {p.task}: {better} beats {worse} over all pruned levels, p = {p.p_holm:.3g} (Holm)"
    if 0 < len(clear) <= FEW_PAIRS:
        yield ""
    elif pairs and not clear:
        yield from _prose(
            "Over all pruned levels no two strategies differ significantly at 0.05, seed by seed and after "
            "Holm's correction; see below whether these seeds could have shown it."
        )
    yield from _prose(
        "Critical sparsity: the highest level whose mean test metric is at least 0.95 of the dense mean, "
        "whatever happens at lower levels; a cell with a diverged run does not count."
    )


def _ranking(results: Results) -> Iterator[str]:
    study = results.study
    if len(study.strategies) <= FEW:
        return
    yield from _heading("RANKING")
    yield from _prose(
        "By the mean test metric over all pruned levels, seed by seed; 95% CI over seeds; n seeds with a "
        "metric at every level. Fatal: cells in which a mask left nothing that can learn, before any "
        "training. Not told apart from: ranks whose difference is not significant at 0.05, paired by seed, "
        "after Holm's correction for all pairs of all tasks."
    )
    least = stats.smallest_p(len(study.seeds))
    if least > 0.05:
        yield from _prose(
            f"With {_n(len(study.seeds), 'seed')} no pair can be told apart, whatever the difference: the "
            f"least p is {least:.3g}. The order is what these seeds happened to show."
        )
    for task in study.tasks:
        ranked = stats.ranking(results.runs, task)
        if not ranked:
            continue
        ranks = {r.strategy: r.rank for r in ranked}
        wide = max(map(len, ranks))
        line = f"    {{:>4}} {{:<{wide}}} {{:>9}} {{:>20}} {{:>3}} {{:>9}} {{:>7}} {{:>8}}  {{}}"
        yield f"  {task}"
        yield line.format(
            "rank", "strategy", "mean", "95% CI", "n", "critical", "fatal", "diverged", "not told apart from"
        )
        for r in ranked:
            yield line.format(
                r.rank,
                r.strategy,
                _number(r.mean.mean),
                _interval(r.mean),
                r.mean.n,
                _level(r.critical),
                f"{r.fatal} of {r.cells}",
                r.diverged,
                "any other" if len(r.alike) == len(ranked) - 1 else _spans([ranks[name] for name in r.alike]),
            )
        yield ""


def _beside(results: Results) -> Iterator[str]:
    yield from _heading("PUBLISHED BESIDE OURS")
    if not results.study.claims:
        yield from _prose("This study file lists no published numbers ([[claims]]).")
        return
    yield f"  {'published':>9} {'ours':>9} {'95% CI or range':>20}  verdict"
    for claim in results.study.claims:
        checked = stats.check_claim(results.runs, claim)
        show = _level if claim.quantity in ("critical-sparsity", "peak-sparsity") else _number
        span = "n/a" if math.isnan(checked.high) else f"[{show(checked.low)}, {show(checked.high)}]"
        verdict = {None: "cannot be judged", True: "agrees", False: "DISAGREES"}[checked.agrees]
        yield (
            f"  {show(claim.published):>9} {show(checked.ours):>9} {span:>20}  "
            f"{verdict if checked.ours is not None else 'not in these results'}: {claim.text}"
        )
    yield ""
    yield from _prose(
        "A mean agrees if the published number, as rounded there, lies in our 95% CI; a critical sparsity if "
        "it lies in the range our intervals allow; a peak if it is the same level. Wide intervals agree "
        "easily."
    )


def _masks(results: Results) -> Iterator[str]:
    told = stats.diagnoses(results.runs)
    if not told:
        return
    yield from _heading("WHAT THE MASKS DID")
    yield from _prose(
        "Before any training, mean over seeds. Effective sparsity: share of weights that are removed or on "
        "no path from input to output. Collapses: the least sparsity at which the criterion's scores empty a "
        "layer, where that can be said. `natal diagnose` tells more of each cell."
    )
    few = len(results.study.strategies) <= FEW
    if few:
        yield from _prose(
            "No input, no output: hidden units that no path reaches from the input, or that reach no output "
            "(pruned neurons are both). Always off: ReLUs that cut the whole batch. Scale: the output's "
            "standard deviation, pruned over dense."
        )
    for task in results.study.tasks:
        grave = {}
        harmless = []
        for recipe in results.study.strategies:
            cells = [c for c in told if (c.task, c.strategy) == (task, recipe.name)]
            if any(c.severity in ("fatal", "warning") for c in cells):
                grave[recipe.name] = cells
            elif cells:
                harmless.append(recipe.name)
        yield from _masks_in_full(results, task, grave) if few else _masks_in_brief(results, task, grave)
        if harmless:
            yield from _prose(f"{task}: nothing above a note about {', '.join(harmless)}.")


def _masks_in_full(results: Results, task: str, strategies: Mapping[str, _Cells]) -> Iterator[str]:
    """Yield a table per strategy and the findings behind it."""
    for name, cells in strategies.items():
        yield f"  {task} / {name}{_collapse(cells)}"
        yield _mask_line(
            "sparsity", "realised", "effective", "no input", "no output", "always off", "scale", "gravest"
        )
        for c in cells:
            yield _mask_line(
                percent(c.sparsity),
                _share(c.realised),
                _share(c.effective),
                _number(c.no_input, ".1f"),
                _number(c.no_output, ".1f"),
                _share(c.always_off, ".0f"),
                _number(c.scale, ".2f"),
                f"{c.severity} in {c.runs[c.severity]} of {c.n}" if c.severity else "nothing",
            )
        for f in stats.findings(_of(results, task, name)):
            if f.severity != "note":
                yield from _bullet(_finding(f))
        yield ""


def _mask_line(*columns: str) -> str:
    return "    {:>8} {:>9} {:>9} {:>8} {:>9} {:>10} {:>6}  {}".format(*columns)


def _masks_in_brief(results: Results, task: str, strategies: Mapping[str, _Cells]) -> Iterator[str]:
    """Yield one table for all strategies, and what was fatal."""
    levels = sorted({c.sparsity for cells in strategies.values() for c in cells})
    if not levels:
        return
    wide = max(map(len, strategies))
    yield f"  {task}: effective sparsity by requested sparsity; F where a mask was fatal, in any run"
    yield f"    {'':<{wide}} {'collapses':>9} " + " ".join(f"{percent(s):>7} " for s in levels)
    for name, cells in strategies.items():
        at = {c.sparsity: f"{_share(c.effective):>7}{' F'[c.fatal > 0]}" for c in cells}
        collapse = next((c.collapses_at for c in cells if c.collapses_at is not None), None)
        yield (
            f"    {name:<{wide}} {'-' if collapse is None else _share(collapse):>9} "
            + " ".join(at.get(s, f"{'n/a':>7} ") for s in levels)
        )
    yield ""
    for name in strategies:
        told: dict[tuple[tuple[float, ...], int], list[str]] = {}
        for f in stats.findings(_of(results, task, name)):
            if f.severity == "fatal":
                told.setdefault((f.sparsities, f.runs), []).append(f.text)
        for (at_levels, runs), texts in told.items():
            where = ", ".join(map(percent, at_levels))
            yield from _bullet(f"{name}: fatal at {where}, {_n(runs, 'run')}: {'; '.join(texts)}")
    if any(c.fatal for cells in strategies.values() for c in cells):
        yield ""


def _of(results: Results, task: str, strategy: str) -> stats.Rows:
    return [run for run in results.runs if (run["task"], run["strategy"]) == (task, strategy)]


def _collapse(cells: _Cells) -> str:
    known = [c.collapses_at for c in cells if c.collapses_at is not None]
    return f": collapses at {_share(min(known))}" if known else ""


def _finding(f: stats.Found) -> str:
    """Return a finding as in ``warning at 10%, 30%, 6 runs, such as: hidden.weight has dead units: ...``."""
    return (
        f"{f.severity} at {', '.join(map(percent, f.sparsities))}, {_n(f.runs, 'run')}"
        f"{', such as' * f.varies}: {f.text}"
    )


def _tables(results: Results) -> Iterator[str]:
    yield from _heading("RESULTS")
    yield from _prose(
        "Mean, standard deviation (ddof 0) and Student-t 95% CI (ddof 1) of the test metric over seeds; "
        "epochs trained, mean; n runs averaged. Sparsity as requested, and realised over prunable weights. "
        "Flags: * at least 0.95 of the dense mean, ~ the 95% CI holds 0.95 of the dense mean, C a layer has "
        "collapsed, K constant output, P ended by patience at chance, T out of time, D diverged."
    )
    flags = _flag_letters(results)
    for task in results.study.tasks:
        for recipe in results.study.strategies:
            cells = stats.cells(results.runs, task, recipe.name)
            if not cells:
                continue
            yield f"  {task} / {recipe.name}: {cells[0].metric_name}"
            yield _cell_line("sparsity", "realised", "mean", "std", "95% CI", "epochs", "n", "flags")
            for c in cells:
                yield _cell_line(
                    percent(c.sparsity),
                    f"{100 * c.realised:.2f}%",
                    _number(c.test.mean),
                    _number(c.test.std),
                    _interval(c.test),
                    _number(c.epochs.mean, ".1f"),
                    str(c.test.n),
                    flags.get((task, recipe.name, c.sparsity), ""),
                )
            yield ""


def _cell_line(*columns: str) -> str:
    return "    {:>8} {:>9} {:>9} {:>8} {:>20} {:>7} {:>3}  {}".format(*columns)


def _pairs(results: Results) -> Iterator[str]:
    overall, levels = stats.compare_overall(results.runs), stats.compare_levels(results.runs)
    if not overall:
        return
    yield from _heading("STRATEGIES SEED BY SEED")
    yield from _prose(
        "Mean over all pruned levels, first minus second, paired by seed; exact two-sided sign-flip p, and p "
        f"after Holm's correction for these {len(overall)} comparisons. Least p: the least n seeds can give."
    )
    shown = _telling(results, overall)
    if len(shown) < len(overall):
        rest = [p for p in overall if p not in shown]
        yield from _prose(
            f"Shown are the {len(shown)} pairs with a task's best strategy or with random masks; {len(rest)} "
            f"others are left out, {sum(p.p_holm <= 0.05 for p in rest)} of them significant at 0.05 after "
            "the same correction. `natal.stats.compare_overall` and `compare_levels` return them all."
        )
    names = {(p.task, p.first, p.second): f"{p.task}: {p.first} - {p.second}" for p in shown}
    wide = max(map(len, names.values()))
    yield f"  {'':<{wide}} {'difference':>10} {'95% CI':>20} {'n':>3} {'p':>8} {'p Holm':>8} {'least p':>8}"
    for p in shown:
        yield (
            f"  {names[p.task, p.first, p.second]:<{wide}} {_number(p.difference.mean, '+.4f'):>10} "
            f"{_interval(p.difference):>20} {p.difference.n:>3} "
            f"{p.p:>8.3g} {p.p_holm:>8.3g} {p.smallest_p:>8.3g}"
        )
    yield ""
    yield from _prose(
        "The same level by level, mean difference; ! where p after Holm's correction for "
        f"{'these' if len(shown) == len(overall) else 'all'} {len(levels)} comparisons is at most 0.05."
    )
    table = {(p.task, p.first, p.second, p.sparsity): p for p in levels}
    sparsities = sorted({p.sparsity for p in levels if p.sparsity is not None})
    yield f"  {'':<{wide}} " + " ".join(f"{percent(s):>9}" for s in sparsities)
    for pair, name in names.items():
        row = [table.get((*pair, s)) for s in sparsities]
        yield f"  {name:<{wide}} " + " ".join(f"{_difference(p):>9}" for p in row)
    yield ""


def _telling(results: Results, pairs: list[stats.Paired]) -> list[stats.Paired]:
    """Return all pairs if they are few, else those with a task's best strategy or its random masks."""
    shown = []
    for task in results.study.tasks:
        here = [p for p in pairs if p.task == task]
        if len(here) > FEW_PAIRS:
            named = {stats.ranking(results.runs, task)[0].strategy, _random(results)}
            here = [p for p in here if {p.first, p.second} & named]
        shown += here
    return shown


def _random(results: Results) -> str | None:
    """Return the strategy that others are measured against: the first that removes weights at random."""
    for recipe in results.study.strategies:
        drawn = recipe.criterion in ("random", "init-stream") and recipe.control is None
        if drawn and recipe.granularity == "weight":
            return recipe.name
    return None


def _hidden(results: Results) -> Iterator[str]:
    yield from _heading("WHAT THE NUMBERS HIDE")
    found = stats.flags(results.runs, results.study, results.tasks)
    for kind, sentence in _SENTENCES.items():
        flags = [flag for flag in found if flag.kind == kind]
        if flags:
            yield from _bullet(sentence.format(sum(flag.count for flag in flags)))
        for flag in flags:
            levels = ", ".join(map(percent, flag.sparsities))
            yield f"      {flag.task} / {flag.strategy} at {levels}: {flag.count}"
    makers = stats.provenance(results.runs)
    if len(makers) > 1:
        yield from _bullet(
            "MIXED PROVENANCE. Not all trainings were made the same way; chaotic ones differ between engines "
            "and machines by about as much as between orders of summation."
        )
        yield from (f"      {maker}: {count}" for maker, count in makers.items())
    if not found and len(makers) <= 1:
        yield "  Nothing that natal looks for was found."
    yield ""


_SENTENCES: dict[stats.Kind, str] = {
    "diverged": "DIVERGED, {} runs. Their loss stopped being a finite number; means are over the survivors.",
    "dense-at-chance": "Dense network at chance, {} tasks. It learned nothing that could be kept: critical "
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


def _limits(results: Results) -> Iterator[str]:
    yield from _heading("WHAT THIS CANNOT CONCLUDE")
    n = len(results.study.seeds)
    least = stats.smallest_p(n)
    yield from _bullet(
        f"n = {n}: {_n(n, 'seed')} a cell. The smallest two-sided p-value an exact sign-flip test can give "
        f"is {least:.3g}" + (_TOO_FEW.format(stats.seeds_needed(0.05)) if least > 0.05 else ".")
    )
    for what, made in (
        ("overall", stats.compare_overall(results.runs)),
        ("level by level", stats.compare_levels(results.runs)),
    ):
        if len(made) > 1:
            needed = stats.seeds_needed(0.05 / len(made))
            yield from _bullet(
                f"After correction for the {len(made)} comparisons {what}, one difference alone can be "
                f"significant from {needed} seeds on."
            )
    for limit in _LIMITS:
        yield from _bullet(limit)
    yield from _bullet(
        f"Tried: {', '.join(results.study.tasks)}; one hidden layer of {results.study.hidden} neurons; one "
        "learning rate per task, not tuned per strategy or sparsity. Nothing follows for other tasks, "
        "depths, widths or rates."
    )


_TOO_FEW = (
    ", so no difference between strategies can be significant at 0.05 by it, however large; that needs {} "
    "seeds or more."
)
_LIMITS = (
    "Intervals and critical sparsities are not corrected for the number of cells: of 20 intervals one is "
    "expected to miss its mean. The t interval assumes that seeds scatter normally.",
    "A critical sparsity is a level of this study's grid, reached by a mean; the dense mean it is measured "
    "against is itself uncertain.",
    "A seed sets data, split and initial weights together. Nothing here says which of them a difference "
    "comes from.",
)
_SECTIONS = (
    _title,
    _what_was_run,
    _findings,
    _ranking,
    _beside,
    _masks,
    _tables,
    _pairs,
    _hidden,
    _limits,
)


# -- words and files -------------------------------------------------------------------------------------

_LETTERS: dict[stats.Kind, str] = {
    "layer-collapse": "C",
    "constant": "K",
    "stopped-at-chance": "P",
    "out-of-time": "T",
    "diverged": "D",
    "straddling": "~",
}


def _flag_letters(results: Results) -> dict[tuple[str, str, float], str]:
    """Return the flags column by task, strategy and sparsity."""
    letters: dict[tuple[str, str, float], str] = {}
    for task in results.study.tasks:
        bar = stats.threshold(results.runs, task)
        for c in stats.cells(results.runs, task):
            if bar is not None and c.sparsity > 0 and c.test.mean >= bar:
                letters[task, c.strategy, c.sparsity] = "*"
    everyone = [recipe.name for recipe in results.study.strategies]
    for flag in stats.flags(results.runs, results.study, results.tasks):
        for strategy in everyone if flag.strategy == stats.DENSE else [flag.strategy]:
            for level in flag.sparsities:
                where = (flag.task, strategy, level)
                letters[where] = letters.get(where, "") + _LETTERS.get(flag.kind, "")
    return letters


def _critical(runs: stats.Rows, task: str, strategy: str) -> str:
    low, high = stats.critical_range(runs, task, strategy)
    allowed = f" (intervals allow {_level(low)} to {_level(high)})" if low != high else ""
    return _level(stats.critical_sparsity(runs, task, strategy)) + allowed


def _difference(p: stats.Paired | None) -> str:
    return _number(p.difference.mean, "+.4f") + "!" * (p.p_holm <= 0.05) if p else "n/a"


def _number(value: float | None, form: str = ".4f") -> str:
    """Return a number in ``form``, in powers of ten where that would run too wide, or n/a."""
    if value is None or math.isnan(value):
        return "n/a"
    plain = f"{value:{form}}"
    return plain if len(plain) <= 9 else f"{value:{'+' * form.startswith('+')}.1e}"


def _share(value: float, form: str = ".1f") -> str:
    return "n/a" if math.isnan(value) else f"{100 * value:{form}}%"


def _spans(ranks: Sequence[int]) -> str:
    """Return ranks as in ``2-4, 7``, and none as ``-``."""
    spans: list[list[int]] = []
    for rank in ranks:
        if spans and spans[-1][-1] == rank - 1:
            spans[-1].append(rank)
        else:
            spans.append([rank])
    return ", ".join(f"{s[0]}-{s[-1]}" if len(s) > 1 else f"{s[0]}" for s in spans) or "-"


def _interval(summary: stats.Summary) -> str:
    return "n/a" if math.isnan(summary.low) else f"[{_number(summary.low)}, {_number(summary.high)}]"


def _level(level: float | None) -> str:
    return "undefined" if level is None else "n/a" if math.isnan(level) else percent(level)


def _n(count: int, noun: str) -> str:
    if count != 1:
        noun = f"{noun[:-1]}ies" if noun.endswith("y") else f"{noun}s"
    return f"{count} {noun}"


def _heading(words: str) -> tuple[str, str]:
    return words, "-" * len(words)


def _prose(words: str) -> list[str]:
    return [*textwrap.wrap(words, WIDTH, initial_indent="  ", subsequent_indent="  ", **_UNBROKEN), ""]


def _bullet(words: str) -> list[str]:
    return textwrap.wrap(words, WIDTH, initial_indent="  - ", subsequent_indent="    ", **_UNBROKEN)


def _loud(words: str) -> list[str]:
    return [
        "!" * WIDTH,
        *textwrap.wrap(words, WIDTH, initial_indent="!! ", subsequent_indent="!! "),
        "!" * WIDTH,
        "",
    ]


_UNBROKEN: dict[str, Any] = {"break_on_hyphens": False, "break_long_words": False}


def _replace(path: Path, content: bytes) -> None:
    """Write a file beside its place, then move it there: a reader never sees half of it."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        try:
            temporary.write_bytes(content)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise NatalError(
            f"{path}: {error.strerror}; free some space, check permissions, or copy the run store elsewhere "
            "and rebuild there"
        ) from None
