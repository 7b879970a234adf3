"""Everything a results directory shows, rebuilt from its run store alone. No torch here.

``write("results")`` makes results.json, summary.csv, both figures and report.txt. Nothing is computed here:
every number comes from a function in `natal.reading.stats` that a reader can call. The same store gives the same
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

from natal.errors import NatalError
from natal.reading import claims, figures, stats
from natal.reading.results import Results, identity, load, published
from natal.reading.wording import (
    WIDTH,
    bullet,
    heading,
    interval,
    loud,
    network,
    number,
    prose,
    share,
    show_level,
    spans,
    training,
    wrapped,
)
from natal.study import Setting, Study
from natal.wording import percent, plural

SUMMARY_COLUMNS = (
    *("task", "strategy", "sparsity", "metric_name", "metric_mean", "metric_std", "metric_ci_low"),
    *("metric_ci_high", "epochs_mean", "epochs_std", "n_seeds"),
)
"""The published program's columns; `summary_columns` names the network too, where it is not the paper's."""
FEW = 3
"""Up to so many strategies a report spells everything out; more are ranked and shown side by side."""
FEW_PAIRS = 15
"""Up to so many pairs of strategies a setting are all printed; of more, those that tell most."""


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


def summary_columns(study: Study) -> tuple[str, ...]:
    """Return the columns of ``summary.csv``."""
    return (*identity(study)[:3], *identity(study)[4:], *SUMMARY_COLUMNS[3:])


def csv_bytes(results: Results) -> bytes:
    """Return ``summary.csv``: a row per cell; ``nan`` where a number is undefined."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    columns = summary_columns(results.study)
    writer.writerow(columns)
    for c in stats.cells(results.runs):
        numbers = (c.test.mean, c.test.std, c.test.low, c.test.high, c.epochs.mean, c.epochs.std)
        # ten digits: more than any reader needs, fewer than two machines' libraries can disagree on
        where = [c.setting.task, c.strategy, c.sparsity, *[c.setting.network] * ("network" in columns)]
        writer.writerow([*where, c.metric_name, *(f"{x:.10g}" for x in numbers), c.test.n])
    return file.getvalue().encode()


def text(results: Results) -> str:
    """Return ``report.txt``."""
    lines = "\n".join(line.rstrip() for section in _SECTIONS for line in section(results))
    return lines.rstrip() + "\n"


OUTPUTS: dict[str, Callable[[Results], bytes]] = {
    "results.json": json_bytes,
    "summary.csv": csv_bytes,
    "accuracy_vs_sparsity.png": lambda results: figures.png(results, "metric"),
    "epochs_vs_sparsity.png": lambda results: figures.png(results, "epochs"),
    "report.txt": lambda results: text(results).encode(),
}
"""What `write` makes, by file name."""


_Cells = Sequence[stats.Diagnosed]


def _noun(results: Results) -> str:
    """Return what a study's parts are called: settings, if its tasks meet several networks."""
    return "task" if len(results.study.networks) == 1 else "setting"


# -- sections --------------------------------------------------------------------------------------------


def _title(results: Results) -> Iterator[str]:
    title = f"PRUNING AT INITIALISATION: study {results.study.name!r}"
    yield from (title, "=" * len(title), "")
    if results.study.description:
        yield from prose(results.study.description)
    if results.missing:
        count = f"{len(results.missing)} of {len(results.study.runs())} runs are missing"
        yield from loud(f"UNFINISHED: {count}. Every number below is over the runs there are.")
    lost = sum(run.test_metric is None for run in stats.once(results.runs))
    if lost:
        yield from loud(
            f"DIVERGED: {plural(lost, 'training')} without a metric. Means leave them out; see D."
        )


def _what_was_run(results: Results) -> Iterator[str]:
    yield from heading("WHAT WAS RUN")
    yield from _aligned(_grid(results))


def _how_it_was_made(results: Results) -> Iterator[str]:
    yield from heading("HOW IT WAS MADE")
    yield from _aligned(_making(results))


def _aligned(facts: Iterator[tuple[str, str]]) -> Iterator[str]:
    listed = list(facts)
    wide = max(len(name) for name, _ in listed)
    yield from (f"  {name:<{wide}}  {fact}" for name, fact in listed)
    yield ""


def _grid(results: Results) -> Iterator[tuple[str, str]]:
    study = results.study
    networks = [(study.networks, "network")] if len(study.networks) > 1 else []
    size = [(study.tasks, "task"), *networks, (study.strategies, "strategy"), (study.sparsities, "sparsity")]
    grid = " x ".join(plural(len(things), noun) for things, noun in [*size, (study.seeds, "seed")])
    yield "runs", f"{len(results.runs)} of {len(study.runs())}: {grid}"
    yield "seeds", ", ".join(map(str, study.seeds))
    if study.hidden is not None:
        yield (
            "network",
            f"one hidden layer of {study.hidden} ReLU neurons; biases are never pruned or counted",
        )
    else:
        for facts in results.networks.values():
            yield from _folded("network", f"{network(facts)}; engine {facts.engine}")
        yield (
            "pruned",
            "weights of linear and convolution layers; other parameters are never pruned or counted",
        )
    yield from _folded("training", training(study.training))
    if results.tried:
        rates = ", ".join(f"{rate:g}" for rate in sorted({a.row.learning_rate or 0 for a in results.tried}))
        yield "rates", f"{rates}, chosen per strategy and level on validation rows; see LEARNING RATES"
    elif study.hidden is None:
        yield from _rates_used(results)
    for name, task in results.tasks.items():
        rows = ", ".join(f"{task[f'{part}_rows']} {part}" for part in ("fit", "val", "test"))
        yield name, f"rows: {rows}; {task.metric}, chance {number(task.chance)}"


def _folded(name: str, words: str) -> Iterator[tuple[str, str]]:
    """Yield a fact in as many lines as it needs."""
    first, *more = textwrap.wrap(words, WIDTH - 12, break_on_hyphens=False, break_long_words=False)
    yield name, first
    yield from (("", line) for line in more)


def _rates_used(results: Results) -> Iterator[tuple[str, str]]:
    """Yield the learning rates, a line each, with the settings that use it if there are several."""
    used: dict[float, list[Setting]] = {}
    for setting, rate in {run.setting: run.learning_rate for run in results.runs}.items():
        if rate is not None:
            used.setdefault(rate, []).append(setting)
    for rate, settings in used.items():
        tasks = list(dict.fromkeys(setting.task for setting in settings))
        every = len(settings) == len(tasks) * len(results.study.networks)
        names = tasks if every else [results.words(setting) for setting in settings]
        yield "rate", f"{rate:g}" + f" on {', '.join(names)}" * (len(used) > 1)


def _making(results: Results) -> Iterator[tuple[str, str]]:
    study, manifest = results.study, results.manifest

    def made(*names: str) -> str:
        return ", ".join(f"{name.removesuffix('_version')} {manifest.get(name)}" for name in names)

    for recipe in study.strategies:
        control = f", control {recipe.control}" if recipe.control else ""
        scores = f"{recipe.criterion} scores, {recipe.scope} scope, by {recipe.removed}{control}"
        yield recipe.name, scores
    trainings = len({run.key for run in results.runs} | {a.row.key for a in results.tried})
    shared = (
        f"strategies share the dense one of each {_noun(results)} and seed"
        if study.share
        else "none is shared"
    )
    yield "trainings", f"{trainings}; {shared}"
    yield "software", made("natal_version", "torch_version", "numpy_version", "python_version")
    yield "hardware", made("platform", "processor", "device", "workers", "threads")
    determinism = "on" if manifest.get("deterministic") else "OFF"
    yield "arithmetic", f"{made('engine', 'dtype')}, deterministic algorithms {determinism}"
    yield "wall time", f"{number(manifest.get('elapsed_seconds'), '.1f')} s of training"
    yield "study hash", str(manifest.get("study_hash"))


def _findings(results: Results) -> Iterator[str]:
    yield from heading("KEY FINDINGS")
    runs = results.runs
    for setting in results.study.settings():
        dense, bar = stats.dense_baseline(runs, setting), stats.threshold(runs, setting)
        yield f"  {results.words(setting)}"
        if dense and dense.test.n:
            yield (
                f"    dense: {dense.metric_name} {number(dense.test.mean)}, 95% CI {interval(dense.test)}, "
                f"n = {dense.test.n}; 0.95 of it: {number(bar) if bar else 'undefined, not positive'}"
            )
            if stats.dense_at_chance(runs, setting, results.tasks[setting.task]):
                yield "    !! the dense network is at chance: its critical sparsities mean nothing"
        else:
            yield "    dense: no run, so critical sparsity is undefined"
        few = len(results.study.strategies) <= FEW
        yield from _each_strategy(results, setting) if few else _best_and_worst(results, setting)
    yield ""
    pairs = stats.compare_overall(runs)
    clear = [p for p in pairs if p.p_holm <= 0.05]
    if len(clear) > FEW_PAIRS:
        yield from prose(
            f"Over all pruned levels {len(clear)} of {len(pairs)} pairs of strategies differ significantly "
            "at 0.05, seed by seed and after Holm's correction; RANKING says which."
        )
    for p in clear if len(clear) <= FEW_PAIRS else ():
        better, worse = (p.first, p.second) if p.difference.mean > 0 else (p.second, p.first)
        yield f"  {results.words(p.setting)}: {better} beats {worse} over all pruned levels, p = {p.p_holm:.3g} (Holm)"
    if 0 < len(clear) <= FEW_PAIRS:
        yield ""
    elif pairs and not clear:
        least = max(p.smallest_p for p in pairs)
        could = f", and with so few seeds none could: the least p is {least:.3g}" * (least > 0.05)
        yield from prose(
            "Over all pruned levels no two strategies differ significantly at 0.05, seed by seed and after "
            f"Holm's correction{could}."
        )
    told = ", ".join(f"{count} {verdict}" for verdict, count in claims.told(claims.check(results)))
    if told:
        yield from prose(f"Published claims held against these runs: {told}.")
    yield from prose(
        "Critical sparsity: the highest level whose mean test metric is at least 0.95 of the dense mean, "
        "whatever happens at lower levels; a cell with a diverged run does not count."
    )


def _each_strategy(results: Results, setting: Setting) -> Iterator[str]:
    """Yield each strategy's critical sparsity and best level, and what must be known to read them."""
    for recipe in results.study.strategies:
        best = stats.peak(results.runs, setting, recipe.name)
        if best:
            yield (
                f"    {recipe.name}: critical sparsity {_critical(results.runs, setting, recipe.name)}; "
                f"best mean {number(best.test.mean)} at {percent(best.sparsity)}"
            )
        for words, levels in _caveats(results, setting, recipe.name):
            yield f"      !! {words} {_levels(results, levels)}"


def _caveats(results: Results, setting: Setting, strategy: str) -> Iterator[tuple[str, list[float]]]:
    fatal = [c.sparsity for c in stats.diagnoses(results.runs, setting, strategy) if c.fatal]
    if fatal:
        yield "masks left nothing that can learn, before any training,", fatal
    for flag in stats.flags(results.runs, results.study, results.tasks):
        if (flag.kind, flag.setting, flag.strategy) == ("stopped-at-chance", setting, strategy):
            others = [level for level in flag.sparsities if level not in fatal]
            if others:
                yield "patience ended runs that were still at chance", others


def _best_and_worst(results: Results, setting: Setting) -> Iterator[str]:
    ranked = stats.ranking(results.runs, setting)
    if not ranked:
        return
    for word, r in (("best", ranked[0]), ("worst", ranked[-1])):
        yield f"    {word} of {len(ranked)}: {r.strategy}, mean {number(r.mean.mean)} over all pruned levels"
    by_level: dict[float, list[str]] = {}
    for r in ranked:
        if r.critical is not None:
            by_level.setdefault(r.critical, []).append(r.strategy)
    for level in sorted(by_level, reverse=True):
        yield from wrapped(f"critical sparsity {show_level(level)}: {', '.join(by_level[level])}", 4)
    fatal = [(r.strategy, [c.sparsity for c in stats.diagnoses(results.runs, setting, r.strategy) if c.fatal])
             for r in ranked if r.fatal]  # fmt: skip
    if fatal:
        told = "; ".join(f"{name} {_levels(results, levels)}" for name, levels in fatal)
        yield from wrapped(f"!! masks that left nothing that can learn: {told}", 4)


def _ranking(results: Results) -> Iterator[str]:
    study = results.study
    rankings = {setting: stats.ranking(results.runs, setting) for setting in study.settings()}
    if len(study.strategies) <= FEW or not any(rankings.values()):
        return
    yield from heading("RANKING")
    yield from prose(
        "By the mean test metric over all pruned levels, seed by seed; 95% CI over seeds; n seeds with a "
        "metric at every level. Critical sparsity, and the range that the cells' intervals allow. Fatal: cells "
        "in which a mask left nothing that can learn, before any training. Undecided: ranks that these seeds "
        "cannot tell from it, the difference paired by seed not significant at 0.05 after Holm's correction "
        f"for all pairs of all {_noun(results)}s."
    )
    least = stats.smallest_p(len(study.seeds))
    if least > 0.05:
        yield from prose(
            f"With {plural(len(study.seeds), 'seed')} no pair can be told apart, whatever the difference: the "
            f"least p is {least:.3g}. The order is what these seeds happened to show."
        )
    for setting, ranked in rankings.items():
        if not ranked:
            continue
        ranks = {r.strategy: r.rank for r in ranked}
        wide = max(map(len, ranks))
        line = (
            f"    {{:>4}} {{:<{wide}}} {{:>8}} {{:>20}} {{:>2}} {{:>8}} {{:>12}} {{:>7}} {{:>8}}  {{}}".format
        )
        yield f"  {results.words(setting)}"
        yield line(
            "rank", "strategy", "mean", "95% CI", "n", "critical", "allowed", "fatal", "diverged", "undecided"
        )
        for r in ranked:
            low, high = stats.critical_range(results.runs, setting, r.strategy)
            yield line(
                r.rank,
                r.strategy,
                number(r.mean.mean),
                interval(r.mean),
                r.mean.n,
                show_level(r.critical),
                "-" if low is None else f"[{show_level(low)}, {show_level(high)}]",
                f"{r.fatal} of {r.cells}",
                r.diverged,
                "all" if len(r.alike) == len(ranked) - 1 else spans([ranks[name] for name in r.alike]),
            )
        yield ""


def _beside(results: Results) -> Iterator[str]:
    study = results.study
    checked: dict[Setting, list[claims.Checked]] = {}
    for c in claims.check(results):
        checked.setdefault(claims.setting_of(c.claim, study), []).append(c)
    asked = [setting for setting in study.settings() if setting in checked]
    if not asked:
        return
    yield from heading("PUBLISHED BESIDE OURS")
    for setting in asked:
        name = results.words(setting)
        yield f"  {name:<18} {'published':>9} {'ours':>9} {'95% CI or range':>20}  the claim"
        for c in checked[setting]:
            show = claims.shown(c.claim)
            span = "n/a" if math.isnan(c.high) else f"[{show(c.low)}, {show(c.high)}]"
            verdict = c.verdict.upper() if c.verdict == "contradicted" else c.verdict
            yield f"    {verdict:<16} {claims.stated(c.claim):>9} {show(c.ours):>9} {span:>20}  {c.claim.text}"
        yield ""
    yield from prose(
        "Supported: ours is the published number to its digits, or the 95% CI of a difference, paired by seed, lies "
        "above zero. Not excluded: ours differs, but our 95% CI, or the range of levels our intervals allow, "
        "holds it; wide intervals exclude little. Contradicted: not even that. Cannot be judged: there is no interval, "
        "or the test set is too small to show such an effect."
    )


def _controls(results: Results) -> Iterator[str]:
    compared = stats.compare_controls(results.runs, results.study)
    if not compared:
        return
    yield from heading("STRATEGIES BESIDE THEIR CONTROLS")
    yield from prose(
        "Strategy minus control, paired by seed, so that a positive number speaks for the strategy: mean over "
        "all pruned levels, 95% CI, exact sign-flip p after Holm's correction for "
        f"{plural(len(compared), 'planned comparison')}; then level by level. Same: both have the same metric in "
        "every run, so the control removed what the strategy did, or both left a constant network; it shows "
        "nothing."
    )
    sparsities = [s for s in results.study.sparsities if s > 0]
    wide = max(len(_versus(c.overall)) for c in compared)
    for setting in results.study.settings():
        yield (
            f"  {results.words(setting):<{wide}} {'overall':>8} {'95% CI':>20} {'p Holm':>7} "
            + " ".join(f"{percent(s):>8}" for s in sparsities)
        )
        for c in compared:
            if c.overall.setting != setting:
                continue
            if c.same:
                yield f"  {_versus(c.overall):<{wide}} {'same':>8}"
                continue
            at = {p.sparsity: number(p.difference.mean, "+.4f") for p in c.levels}
            yield (
                f"  {_versus(c.overall):<{wide}} {number(c.overall.difference.mean, '+.4f'):>8} "
                f"{interval(c.overall.difference):>20} {c.overall.p_holm:>7.3g} "
                + " ".join(f"{at.get(s, 'n/a'):>8}" for s in sparsities)
            )
        yield ""
    for kind, words in _CONTROL_MEANING.items():
        if any(c.kind == kind for c in compared):
            yield from bullet(f"{kind}: {words}")
    yield from bullet(
        "A difference whose interval holds zero is not shown to be zero: read how wide the interval is."
    )
    yield ""


def _learning_rates(results: Results) -> Iterator[str]:
    found = stats.searched(results.runs, results.tried)
    if not found:
        return
    rates = sorted({rate for c in found for rate in c.values})
    yield from heading("LEARNING RATES")
    decided = "lowest validation loss" if results.study.training.decide == "val-loss" else "validation metric"
    yield from prose(
        f"Chosen for each strategy and level among {', '.join(f'{rate:g}' for rate in rates)}, by the mean over seeds "
        f"of the {decided} of the weights that training keeps; test rows had no part in it. "
        f"{plural(len({a.row.key for a in results.tried}), 'training')} were made for it. Edge (e): the lowest or the "
        "highest of the rates was chosen, so a better one may lie beyond."
        + " Open: the search is not over."
        * any(c.chosen is None for c in found)
    )
    levels = sorted({c.sparsity for c in found})
    at = {(c.setting, c.strategy, c.sparsity): c for c in found}
    for setting in results.study.settings():
        names = [r.name for r in results.study.strategies if any(w[:2] == (setting, r.name) for w in at)]
        if not names:
            continue
        wide = max(len(name) for name in [*names, results.words(setting)])
        yield f"  {results.words(setting):<{wide}} " + " ".join(f"{percent(s):>9}" for s in levels)
        for name in names:
            row = [_rate(at.get((setting, name, s)), rates) for s in levels]
            yield f"  {name:<{wide}} " + " ".join(f"{word:>9}" for word in row)
        yield ""


def _rate(found: stats.Searched | None, rates: Sequence[float]) -> str:
    if found is None:
        return "n/a"
    if found.chosen is None:
        return "open"
    return f"{found.chosen:g}" + " e" * (found.chosen in (rates[0], rates[-1]))


def _versus(p: stats.Paired) -> str:
    return f"{p.first} - {p.second}"


_CONTROL_MEANING: dict[str, str] = {
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


def _patience(results: Results) -> Iterator[str]:
    if results.study.training.patience is not None:
        return
    cut = stats.cut_short(results.runs, results.curves, results.tasks, results.study.training.decide)
    if not cut:
        return
    yield from heading("WHAT PATIENCE WOULD HAVE HIDDEN")
    yield from prose(
        f"This study trains without early stopping. With a patience of {stats.PATIENCE}, these runs would have "
        "ended at chance. Up to that epoch their training is the same, so each line sets the early-stopped "
        "twin beside the full budget. Train metric high, test metric at chance: the network can be trained, "
        "it memorises, and does not generalise."
    )
    wide = max(len(f"{results.words(c.setting)} / {c.strategy}") for c in cut)
    line = f"  {{:<{wide}}} {{:>8}} {{:>7}} {{:>6}} {{:>10}} {{:>10}} {{:>12}} {{:>11}}".format
    heads = ("", "sparsity", "runs", "ended", "loss then", "loss after", "train metric", "test metric")
    yield line(*heads)
    before = ""
    for c in cut:
        name = f"{results.words(c.setting)} / {c.strategy}"
        yield line(
            "" if name == before else name,
            percent(c.sparsity),
            f"{c.runs} of {c.n}",
            number(c.epoch, ".0f"),
            number(c.loss_then),
            number(c.loss_after),
            number(c.train_after),
            number(c.test_after),
        )
        before = name
    yield ""


def _masks(results: Results) -> Iterator[str]:
    told = stats.diagnoses(results.runs)
    if not told:
        return
    yield from heading("WHAT THE MASKS DID")
    yield from prose(
        "Before any training, mean over seeds. Effective sparsity: share of weights that are removed or on "
        "no path from input to output. Collapses: the least sparsity at which the criterion's scores empty a "
        "layer, where that can be said. `natal diagnose` tells more of each cell."
    )
    few = len(results.study.strategies) <= FEW
    if few:
        yield from prose(
            "No input, no output: hidden units that no path reaches from the input, or that reach no output "
            "(pruned neurons are both). Always off: ReLUs that cut the whole batch. Scale: the output's "
            "standard deviation, pruned over dense."
        )
    for setting in results.study.settings():
        grave = {}
        harmless = []
        for recipe in results.study.strategies:
            cells = [c for c in told if (c.setting, c.strategy) == (setting, recipe.name)]
            if any(c.severity in ("fatal", "warning") for c in cells):
                grave[recipe.name] = cells
            elif cells:
                harmless.append(recipe.name)
        yield from (
            _masks_in_full(results, setting, grave) if few else _masks_in_brief(results, setting, grave)
        )
        if harmless:
            yield from prose(f"{results.words(setting)}: nothing above a note about {', '.join(harmless)}.")


def _masks_in_full(results: Results, setting: Setting, strategies: Mapping[str, _Cells]) -> Iterator[str]:
    """Yield a table per strategy and the findings behind it."""
    for name, cells in strategies.items():
        yield f"  {results.words(setting)} / {name}{_collapse(cells)}"
        yield _mask_line(
            "sparsity", "realised", "effective", "no input", "no output", "always off", "scale", "gravest"
        )
        for c in cells:
            yield _mask_line(
                percent(c.sparsity),
                share(c.realised),
                share(c.effective),
                number(c.no_input, ".1f"),
                number(c.no_output, ".1f"),
                share(c.always_off, ".0f"),
                number(c.scale, ".2f"),
                f"{c.severity} in {c.runs[c.severity]} of {c.n}" if c.severity else "nothing",
            )
        for f in stats.findings(_of(results, setting, name)):
            if f.severity != "note":
                such = ", such as" * f.varies
                yield from bullet(
                    f"{f.severity} {_levels(results, f.sparsities)}, {plural(f.runs, 'run')}{such}: {f.text}"
                )
        yield ""


def _mask_line(*columns: str) -> str:
    return "    {:>8} {:>9} {:>9} {:>8} {:>9} {:>10} {:>6}  {}".format(*columns)


def _masks_in_brief(results: Results, setting: Setting, strategies: Mapping[str, _Cells]) -> Iterator[str]:
    """Yield one table for all strategies, and what was fatal."""
    levels = sorted({c.sparsity for cells in strategies.values() for c in cells})
    if not levels:
        return
    wide = max(map(len, strategies))
    words = results.words(setting)
    yield f"  {words}: effective sparsity by requested sparsity; F where a mask was fatal, in any run"
    yield f"    {'':<{wide}} {'collapses':>9} " + " ".join(f"{percent(s):>7} " for s in levels)
    for name, cells in strategies.items():
        at = {c.sparsity: f"{share(c.effective):>7}{' F'[c.fatal > 0]}" for c in cells}
        collapse = next((c.collapses_at for c in cells if c.collapses_at is not None), None)
        yield (
            f"    {name:<{wide}} {'-' if collapse is None else share(collapse):>9} "
            + " ".join(at.get(s, f"{'n/a':>7} ") for s in levels)
        )
    yield ""
    for name in strategies:
        told: dict[tuple[tuple[float, ...], int], list[str]] = {}
        for f in stats.findings(_of(results, setting, name)):
            if f.severity == "fatal":
                told.setdefault((f.sparsities, f.runs), []).append(f.text)
        for (at_levels, runs), texts in told.items():
            where = _levels(results, at_levels)
            yield from bullet(f"{name}: fatal {where}, {plural(runs, 'run')}: {'; '.join(texts)}")
    if any(c.fatal for cells in strategies.values() for c in cells):
        yield ""


def _of(results: Results, setting: Setting, strategy: str) -> stats.Rows:
    return [run for run in results.runs if (run.setting, run.strategy) == (setting, strategy)]


def _collapse(cells: _Cells) -> str:
    known = [c.collapses_at for c in cells if c.collapses_at is not None]
    return f": collapses at {share(min(known))}" if known else ""


def _tables(results: Results) -> Iterator[str]:
    yield from heading("RESULTS")
    yield from prose(
        "Mean, standard deviation (ddof 0) and Student-t 95% CI (ddof 1) of the test metric over seeds; "
        "epochs trained, mean; n runs averaged. Sparsity as requested, and realised over prunable weights. "
        "Flags: * at least 0.95 of the dense mean, ~ the 95% CI holds 0.95 of the dense mean, C a layer has "
        "collapsed, K constant output, P ended by patience at chance, T out of time, D diverged."
    )
    flags = _flag_letters(results)
    for setting in results.study.settings():
        for recipe in results.study.strategies:
            cells = stats.cells(results.runs, setting, recipe.name)
            if not cells:
                continue
            yield f"  {results.words(setting)} / {recipe.name}: {cells[0].metric_name}"
            yield _cell_line("sparsity", "realised", "mean", "std", "95% CI", "epochs", "n", "flags")
            for c in cells:
                yield _cell_line(
                    percent(c.sparsity),
                    f"{100 * c.realised:.2f}%",
                    number(c.test.mean),
                    number(c.test.std),
                    interval(c.test),
                    number(c.epochs.mean, ".1f"),
                    str(c.test.n),
                    flags.get((setting, recipe.name, c.sparsity), ""),
                )
            yield ""


def _cell_line(*columns: str) -> str:
    return "    {:>8} {:>9} {:>9} {:>8} {:>20} {:>7} {:>3}  {}".format(*columns)


def _pairs(results: Results) -> Iterator[str]:
    overall, levels = stats.compare_overall(results.runs), stats.compare_levels(results.runs)
    if not overall:
        return
    yield from heading("STRATEGIES SEED BY SEED")
    yield from prose(
        "Mean over all pruned levels, first minus second, paired by seed; exact two-sided sign-flip p, and p "
        f"after Holm's correction for these {len(overall)} comparisons. Least p: the least n seeds can give."
    )
    shown = _telling(results, overall)
    if len(shown) < len(overall):
        rest = [p for p in overall if p not in shown]
        yield from prose(
            f"Shown are the {len(shown)} pairs with a {_noun(results)}'s best strategy or with random masks; "
            f"{len(rest)} others are left out, {sum(p.p_holm <= 0.05 for p in rest)} of them significant at 0.05 after "
            "the same correction. `natal.reading.stats.compare_overall` and `compare_levels` return them all."
        )
    names = {
        (p.setting, p.first, p.second): f"{results.words(p.setting)}: {p.first} - {p.second}" for p in shown
    }
    wide = max(map(len, names.values()))
    yield f"  {'':<{wide}} {'difference':>10} {'95% CI':>20} {'n':>3} {'p':>8} {'p Holm':>8} {'least p':>8}"
    for p in shown:
        yield (
            f"  {names[p.setting, p.first, p.second]:<{wide}} {number(p.difference.mean, '+.4f'):>10} "
            f"{interval(p.difference):>20} {p.difference.n:>3} "
            f"{p.p:>8.3g} {p.p_holm:>8.3g} {p.smallest_p:>8.3g}"
        )
    yield ""
    yield from prose(
        "The same level by level, mean difference; ! where p after Holm's correction for "
        f"{'these' if len(shown) == len(overall) else 'all'} {len(levels)} comparisons is at most 0.05."
    )
    table = {(p.setting, p.first, p.second, p.sparsity): p for p in levels}
    sparsities = sorted({p.sparsity for p in levels if p.sparsity is not None})
    yield f"  {'':<{wide}} " + " ".join(f"{percent(s):>9}" for s in sparsities)
    for pair, name in names.items():
        row = [table.get((*pair, s)) for s in sparsities]
        yield f"  {name:<{wide}} " + " ".join(f"{_difference(p):>9}" for p in row)
    yield ""


def _telling(results: Results, pairs: list[stats.Paired]) -> list[stats.Paired]:
    """Return all pairs if they are few, else those with a setting's best strategy or its random masks."""
    shown = []
    for setting in results.study.settings():
        here = [p for p in pairs if p.setting == setting]
        if len(here) > FEW_PAIRS:
            named = {stats.ranking(results.runs, setting)[0].strategy, _random(results)}
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
    yield from heading("WHAT THE NUMBERS HIDE")
    found = stats.flags(results.runs, results.study, results.tasks)
    for kind, sentence in _SENTENCES.items():
        flags = [flag for flag in found if flag.kind == kind]
        if flags:
            yield from bullet(sentence.format(sum(flag.count for flag in flags), _noun(results)))
        alike: dict[tuple[Setting, str], list[str]] = {}
        for flag in flags:
            where = flag.setting, _levels(results, flag.sparsities)
            alike.setdefault(where, []).append(f"{flag.strategy} {flag.count}")
        for (setting, levels), counted in alike.items():
            yield from wrapped(f"{results.words(setting)} {levels}: {', '.join(counted)}", 6)
    makers = stats.provenance(results.runs)
    if len(makers) > 1:
        yield from bullet(
            "MIXED PROVENANCE. Not all trainings were made the same way; chaotic ones differ between engines "
            "and machines by about as much as between orders of summation."
        )
        yield from (f"      {maker}: {count}" for maker, count in makers.items())
    if not found and len(makers) <= 1:
        yield "  Nothing that natal looks for was found."
    yield ""


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


def _limits(results: Results) -> Iterator[str]:
    yield from heading("WHAT THIS CANNOT CONCLUDE")
    n = len(results.study.seeds)
    least = stats.smallest_p(n)
    yield from bullet(
        f"n = {n}: {plural(n, 'seed')} a cell. The smallest two-sided p-value an exact sign-flip test can give "
        f"is {least:.3g}" + (_TOO_FEW.format(stats.seeds_needed(0.05)) if least > 0.05 else ".")
    )
    for what, made in (
        ("overall", stats.compare_overall(results.runs)),
        ("level by level", stats.compare_levels(results.runs)),
    ):
        if len(made) > 1:
            needed = stats.seeds_needed(0.05 / len(made))
            yield from bullet(
                f"After correction for the {len(made)} comparisons {what}, one difference alone can be "
                f"significant from {needed} seeds on."
            )
    for limit in _LIMITS:
        yield from bullet(limit)
    order = "" if results.study.training.batch is None else ", order of batches"
    yield from bullet(
        f"A seed sets data, split{order} and initial weights together. Nothing here says which of them a difference "
        "comes from."
    )
    yield from bullet(f"Tried: {_tried(results)}")
    yield ""


def _tried(results: Results) -> str:
    study = results.study
    tasks = ", ".join(study.task_names)
    if study.hidden is not None and not results.tried:
        return (
            f"{tasks}; one hidden layer of {study.hidden} neurons; one learning rate per task, not tuned per strategy "
            "or sparsity. Nothing follows for other tasks, depths, widths or rates."
        )
    rates = "one learning rate per task or network, not tuned per strategy or sparsity"
    if results.tried:
        count = len({a.row.learning_rate for a in results.tried})
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
_SECTIONS = (
    _title,
    _what_was_run,
    _findings,
    _ranking,
    _beside,
    _controls,
    _learning_rates,
    _patience,
    _hidden,
    _limits,
    _masks,
    _tables,
    _pairs,
    _how_it_was_made,
)
"""The most important first: what was found, what it hides, and only then every number."""


# -- letters, levels and files -------------------------------------------------------------------------------------

_LETTERS: dict[stats.Kind, str] = {
    "layer-collapse": "C",
    "constant": "K",
    "stopped-at-chance": "P",
    "out-of-time": "T",
    "diverged": "D",
    "straddling": "~",
}


def _flag_letters(results: Results) -> dict[tuple[Setting, str, float], str]:
    """Return the flags column by setting, strategy and sparsity."""
    letters: dict[tuple[Setting, str, float], str] = {}
    for setting in results.study.settings():
        bar = stats.threshold(results.runs, setting)
        for c in stats.cells(results.runs, setting):
            if bar is not None and c.sparsity > 0 and c.test.mean >= bar:
                letters[setting, c.strategy, c.sparsity] = "*"
    everyone = [recipe.name for recipe in results.study.strategies]
    for flag in stats.flags(results.runs, results.study, results.tasks):
        for strategy in everyone if flag.strategy == stats.DENSE else [flag.strategy]:
            for level in flag.sparsities:
                where = (flag.setting, strategy, level)
                letters[where] = letters.get(where, "") + _LETTERS.get(flag.kind, "")
    return letters


def _critical(runs: stats.Rows, setting: Setting, strategy: str) -> str:
    low, high = stats.critical_range(runs, setting, strategy)
    allowed = f" (intervals allow {show_level(low)} to {show_level(high)})" if low != high else ""
    return show_level(stats.critical_sparsity(runs, setting, strategy)) + allowed


def _difference(p: stats.Paired | None) -> str:
    return number(p.difference.mean, "+.4f") + "!" * (p.p_holm <= 0.05) if p else "n/a"


def _levels(results: Results, levels: Sequence[float]) -> str:
    """Return levels as in ``at 10%, 90%``, or ``from 50% on`` if they are all that there are from there."""
    above = sorted(s for s in results.study.sparsities if s >= min(levels))
    if len(levels) > 1 and sorted(levels) == above:
        return f"from {percent(above[0])} on"
    return f"at {', '.join(map(percent, levels))}"


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
