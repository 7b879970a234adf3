"""Is a results directory whole, consistent and what its study asked for? No torch here.

``validate("results")`` returns what is wrong, one line each; an empty list is a pass. Everything expected is
derived from the study in the run store, so the same checks hold for any study, and all outputs are compared
with what the store would make of them now.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from natal.errors import NatalError
from natal.reading import figures, report, stats
from natal.reading.results import Results, load
from natal.reading.rows import Curve, Row
from natal.store import NetworkFacts, Store, plain
from natal.study import Recipe, Stage, stage_of
from natal.wording import describe, percent, plural

PASSED = "Validation PASSED. All checks OK."
DENSE_BARS = {"modular": 0.05, "regression": 0.5}
"""What the dense mean of the paper's network must exceed, as the published validator has it; on other tasks, chance."""
PROVENANCE = (
    "natal_version",
    "python_version",
    "torch_version",
    "numpy_version",
    "platform",
    "device",
    "engine",
    "dtype",
    "threads",
    "study_hash",
    "elapsed_seconds",
)
PARTS = {"report.txt": ("KEY FINDINGS", "95% CI")}
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
LEAST_PNG_BYTES = 5000
SHOWN = 3
"""How many errors of one kind are spelled out before the rest is only counted."""


def validate(directory: str | Path = "results") -> list[str]:
    """Return what is wrong with the results in ``directory``, one line each; nothing wrong, an empty list."""
    try:
        return _wrong(load(directory))
    except NatalError as error:
        return [str(error)]


def _wrong(results: Results) -> list[str]:
    """Return what is wrong with results; SQLite goes through the file beside the checks, in a thread of its own."""
    read = {row.key for row in results.runs}  # what the checks read they check for damage, too
    with ThreadPoolExecutor(1) as beside:
        damage = beside.submit(_damage, results.directory, read)
        try:
            wrong = [line for check in _CHECKS for line in check(results)]
        except NatalError as error:
            wrong = [str(error)]
        return damage.result() or wrong


def _damage(directory: Path, read: Collection[str]) -> list[str]:
    with Store.read(directory) as store:
        return store.damage(read)


def notes(directory: str | Path = "results") -> list[str]:
    """Return what a reader should know though it is no error: divergence, mixed provenance, no dense level.

    Raises NatalError if there is no study in ``directory``.
    """
    return _notes(load(directory))


def _notes(results: Results) -> list[str]:
    lost = [run for run in stats.once(results.runs) if run["status"] == "diverged"]
    makers = stats.provenance(results.runs)
    found = []
    if lost:
        found.append(
            f"{plural(len(lost), 'training')} diverged, the first {_name(lost[0])}; they count as made, not as results"
        )
    if len(makers) > 1:
        found.append(f"trainings were made in {len(makers)} ways: {'; '.join(makers)}")
    if results.study.hidden is None:
        found += [
            f"dense {words} does not learn: mean {dense.metric_name} is {dense.test.mean:.4g}, chance {chance:.4g}"
            for words, dense, chance in _dense_cells(results)
            if not dense.test.mean > chance
        ]
    if 0 not in results.study.sparsities:
        found.append("the study has no sparsity 0, so there is no dense baseline and no critical sparsity")
    return found


def verdict(directory: str | Path = "results") -> tuple[str, int]:
    """Return what `natal validate` prints and its exit code: 0 if everything is as it should be, else 1."""
    try:
        results = load(directory)
        errors = _wrong(results)
    except NatalError as error:
        errors = [str(error)]
    if errors:
        return "\n".join(["Validation FAILED.", *(f"  - {error}" for error in errors)]), 1
    return "\n".join([*(f"NOTE: {note}" for note in _notes(results)), PASSED]), 0


# -- the study -------------------------------------------------------------------------------------------


def _complete(results: Results) -> Iterator[str]:
    study = results.study
    wanted = study.runs()
    there = Counter(row.run for row in results.runs)
    missing = [run for run in wanted if run not in there]
    if missing:
        yield (
            f"{len(missing)} of {plural(len(wanted), 'run')} missing, the first {describe(missing[0])}; "
            "`natal run` with the same study resumes"
        )
    yield from _few(f"{describe(run)} failed: {failure.reason}" for run, failure in results.failed)
    asked = set(wanted)
    strangers = [run for run in there if run not in asked]
    if strangers:
        yield f"{plural(len(strangers), 'run')} not in the study, the first {describe(strangers[0])}"
    cells = Counter((run.setting, run.strategy, run.sparsity) for run in there.elements())
    yield from _few(
        f"{results.words(setting)} / {recipe.name} at {percent(level)} has "
        f"{plural(cells[setting, recipe.name, level], 'run')}; the study has {plural(len(study.seeds), 'seed')}"
        for setting in study.settings()
        for recipe in study.strategies
        for level in study.sparsities
        if cells[setting, recipe.name, level] != len(study.seeds)
    )
    for what, names in (
        ("task", study.task_names),
        ("network", study.network_names),
        ("strategy", [r.name for r in study.strategies]),
        ("sparsity", study.sparsities),
        ("seed", study.seeds),
    ):
        found = {getattr(run, what) for run in there}
        yield from (f"no run has {what} {name}" for name in names if name not in found)


def _dense(results: Results) -> Iterator[str]:
    for words, dense, chance in _dense_cells(results) if results.study.hidden is not None else ():
        bar = DENSE_BARS.get(dense.setting.task, chance)
        if not dense.test.mean > bar:
            yield (
                f"dense {words} does not learn: mean {dense.metric_name} is {dense.test.mean:.4g} and must "
                f"exceed {bar:.4g}; chance is {chance:.4g}"
            )


def _dense_cells(results: Results) -> Iterator[tuple[str, stats.Cell, float]]:
    """Yield the name, the dense cell and the level of chance of each setting that has dense runs."""
    for setting in results.study.settings():
        dense = stats.dense_baseline(results.runs, setting)
        if dense is not None:
            yield results.words(setting), dense, results.tasks[setting.task].chance


def _provenance(results: Results) -> Iterator[str]:
    manifest = results.manifest
    fraction = results.study.training.validation_fraction
    for name in PROVENANCE:
        if manifest.get(name) is None:
            yield f"provenance is not recorded: the manifest has no {name}"
    # written down when a study is finished; until then every run says so for itself
    if manifest.get("deterministic") is not True and manifest.get("finished_at") is not None:
        yield "determinism is off: the manifest's deterministic is not true"
    loose = [row for row in results.runs if row.deterministic is not True]
    if loose:
        yield f"{plural(len(loose), 'run')} trained with determinism off, the first {_name(loose[0])}"
    if manifest.get("study_hash") not in (None, results.study.digest):
        yield "the manifest's study_hash is not the hash of its study"
    for task, facts in results.tasks.items():
        rows: list[Any] = [facts[f"{part}_rows"] for part in ("fit", "val", "train", "test")]
        if not all(isinstance(n, int) and n > 0 for n in rows):
            yield f"the split of task {task!r} is not recorded: rows fit, val, train, test = {rows}"
        elif rows[1] != round(fraction * rows[2]) or rows[0] + rows[1] != rows[2]:
            yield (
                f"the split of task {task!r} is not the study's: {rows[0]} rows train and {rows[1]} validate "
                f"of {rows[2]}; validation_fraction is {fraction}"
            )


def _numbers(results: Results) -> Iterator[str]:
    metrics = ("train_metric", "val_metric", "test_metric", "train_loss")
    whole = [row for row in results.runs if row.status != "diverged"]
    yield from _few(
        f"{_name(row)}: {name} is not a finite number, yet the training did not diverge"
        for row in whole
        for name in metrics
        if row[name] is None
    )
    yield from _few(
        f"{_name(row)}: {name} {row[name]:.4g} is out of range"
        for row in results.runs
        for name in metrics[:3]
        if row[name] is not None and not (0 <= row[name] <= 1 if row.metric == "accuracy" else row[name] <= 1)
    )
    yield from _few(
        f"{_name(row)}: best step {row.best_step} of {row.steps_trained}; the whole training has {row.steps_planned}"
        for row in whole
        if not 1 <= row.best_step <= row.steps_trained <= row.steps_planned
    )
    yield from _few(
        f"{_name(row)}: its whole training has {row.steps_planned} steps, the study's {planned}"
        for row in results.runs
        if row.steps_planned != (planned := _stage(results, row).steps)
    )


def _stage(results: Results, row: Row) -> Stage:
    """Return the stage that a run's training should be; of its seed it knows by its run alone."""
    known: dict[object, Stage] = results.runs.memory.setdefault("stages", {})
    which = row.setting, row.strategy, row.sparsity, row.learning_rate
    if which not in known:
        rows = results.tasks[row.task].fit_rows
        known[which] = stage_of(results.study, row.run, row.learning_rate or 0.0, rows)
    return known[which]


class _Few:
    """The first errors of one kind, and how many more there are."""

    def __init__(self) -> None:
        self.shown: list[str] = []
        self.more = 0

    def add(self, errors: Iterable[str]) -> None:
        for error in errors:
            if len(self.shown) < SHOWN:
                self.shown.append(error)
            else:
                self.more += 1

    def __iter__(self) -> Iterator[str]:
        yield from self.shown
        if self.more:
            yield f"... and {self.more} more like the last"


def _each(results: Results) -> Iterator[str]:
    """Yield what is wrong with single runs: curves, masks, proofs and diagnoses, each read once."""
    study = results.study
    training = study.training
    measured = ["train_loss", "val_loss", "val_metric", *["test_metric"] * training.test_curve]
    small = {r.name for r in study.strategies if r.control == SMALL_DENSE}
    small |= {r.name for r in study.strategies if r.spread is not None and r.regrow is None}
    recipes = {recipe.name: recipe for recipe in study.strategies}
    cut, best, masks, proofs, never, other, less = (_Few() for _ in range(7))
    batches: dict[tuple[object, ...], dict[str, Row]] = {}
    for row, curve in zip(results.runs, results.curves, strict=True):
        proven = plain(row.proofs)
        begun = proven.get("restarted")
        if begun is not None:
            first = batches.setdefault((row.setting, row.seed, begun["step"]), {})
            first.setdefault(str(begun["batch"]), row)
        if "never_begun" in proven:
            continue
        if not _whole(row, curve, measured):
            cut.add([_cut_short(row, curve, measured)])
        spread = recipes[row.strategy].spread if row.sparsity else None
        settled = (
            training.timeline(results.tasks[row.task].fit_rows).steps(spread["to"])
            if spread is not None
            else 0
        )
        best.add(f"{_name(row)}: {wrong}" for wrong in _best(row, curve, training.decide, settled))
        masks.add(
            f"{_name(row)}: {wrong}"
            for wrong in _mask(row, recipes[row.strategy], results.networks[row.setting])
        )
        proofs.add(f"{_name(row)}: {wrong}" for wrong in _proof(results, row, recipes[row.strategy], proven))
        if row.sparsity > 0 and row.strategy not in small:
            diagnosis = plain(row.diagnosis)
            if not diagnosis:
                never.add([f"{_name(row)}: its mask was never diagnosed; `natal run --fresh` does so"])
            elif (kept := sum(layer["kept"] for layer in diagnosis["layers"])) != row.kept:
                other.add(
                    [
                        f"{_name(row)}: its diagnosis is of another mask: {kept} weights kept, {row.kept} in the mask"
                    ]
                )
            if row.effective_sparsity is not None and row.effective_sparsity < row.realised_sparsity - 1e-12:
                less.add(
                    [
                        f"{_name(row)}: effective sparsity {row.effective_sparsity:.4f} is less than the mask's own "
                        f"{row.realised_sparsity:.4f}"
                    ]
                )
    yield from cut
    yield from best
    yield from _search(results)
    yield from masks
    yield from proofs
    yield from _few(
        f"{_name(second)}: its first batch is not that of {_name(first)}, which begins at the same step of the clock"
        for first, second, *_ in (list(rows.values()) for rows in batches.values() if len(rows) > 1)
    )
    yield from never
    yield from other
    yield from less


def _cut_short(row: Row, curve: Curve, measured: Sequence[str]) -> str:
    return (
        f"{_name(row)}: its curves end at step {int(curve.step[-1]) if len(curve.step) else 0} with "
        f"{', '.join(f'{len(curve[name])} of {name}' for name in measured if len(curve[name]))}; "
        f"{row.evaluations} evaluations of {row.steps_trained} steps were made"
    )


_BEST = {
    "val-metric": "validation curve is highest",
    "val-loss": "validation loss is lowest",
    "end": "last step is",
}


def _best(row: Row, curve: Curve, decide: str, settled: int) -> Iterator[str]:
    """Yield how a run's best step is not that of its curve; before its last cut, at ``settled``, nothing counts."""
    deciding = curve.deciding(decide)
    if row.status == "diverged" or not len(deciding) or len(deciding) != len(curve.step):
        return
    counts = (curve.step >= settled) & (deciding == deciding)
    at = int(curve.step[np.where(counts, deciding, -math.inf).argmax()])
    if at != row.best_step:
        yield f"its {_BEST[decide]} at step {at}, its best step is {row.best_step}"


def _whole(row: Row, curve: Curve, measured: Sequence[str]) -> bool:
    """Whether a run's curves reach from its first evaluation to its last; natal 0.2 kept no validation loss."""
    lengths = {len(curve[name]) for name in measured if name != "val_loss" or len(curve.val_loss)}
    return lengths == {len(curve.step)} == {row.evaluations} and curve.step[-1:] == [row.steps_trained]


def _search(results: Results) -> Iterator[str]:
    """Yield what is wrong with the choice among learning rates: the store must show what the rule would choose."""
    if results.manifest.get("finished_at") is None:
        return
    with Store.read(results.directory) as store:
        tried = store.tried()
        shown = [key for _, key in store.grid()] if tried else []
    wanted = {row.run: row.key for row in results.runs}
    rates = {attempt.row.key: attempt.row.learning_rate for attempt in results.tried}
    yield from _few(
        f"{describe(run)}: the store shows the training at learning rate {rates.get(shown[i])}, "
        f"validation rows choose {rates.get(wanted[run])}"
        for i, run in enumerate(results.study.runs() if tried else ())
        if i in tried and run in wanted and shown[i] != wanted[run]
    )


# -- the masks -------------------------------------------------------------------------------------------


def _mask(row: Row, recipe: Recipe, network: NetworkFacts) -> Iterator[str]:
    """Yield how a run's mask is not the one its recipe and sparsity ask for, to rounding."""
    s, kept, total, sizes = row.sparsity, row.kept, row.prunable, network.sizes
    # a dense training may be shared with strategies that cut single weights
    if recipe.granularity == "neuron" and (s > 0 or set(row.densities) != set(sizes)):
        sizes = {**sizes, **{name: math.prod(shape) for name, shape in network.whole.items()}}
    if sum(sizes.values()) != total or set(sizes) != set(row.densities):
        yield f"{total} prunable weights in {sorted(row.densities)}; the network has {sizes}"
        return
    if row.total_params != network.parameters:
        yield f"{row.total_params} parameters; the network has {network.parameters}"
    if s > 0 and recipe.control == SMALL_DENSE:
        # another network: it has no more parameters than the pruned one would keep, and keeps all of them
        if recipe.granularity == "neuron":
            # how many weights go with the neurons of other than plain chains, shapes do not say
            most = row.total_params - (total - sum((_narrowed(s, recipe, network) or sizes).values()))
        else:
            most = row.total_params - sum(int(s * n) for n in sizes.values())
        if set(row.densities.values()) != {1.0} or row.nonzero_params > most:
            yield (
                f"{row.nonzero_params} parameters, densities {dict(row.densities)}; it must be a dense network of at "
                f"most {most}"
            )
        return
    if row.nonzero_params > row.total_params - (total - kept):
        yield (
            f"{row.nonzero_params} of {row.total_params} parameters are not zero; it keeps {kept} of "
            f"{total} weights and has {row.total_params - total} other parameters"
        )
    by_layer = {layer: round(row.densities[layer] * n) for layer, n in sizes.items()}
    if sum(by_layer.values()) != kept:
        yield f"its layers keep {by_layer}, which is not {kept} in all"

    if s > 0 and recipe.scope == "threshold":
        # every weight's fate is drawn on its own, so counts scatter; of other scores nothing can be expected
        expected, deviation = (1 - s) * total, math.sqrt(total * s * (1 - s))
        if recipe.criterion in ("random", "init-stream") and abs(kept - expected) > 5 * deviation:
            yield f"keeps {kept} weights, more than 5 standard deviations from {expected:.0f}"
    elif recipe.granularity == "neuron":
        wanted = _narrowed(s, recipe, network)
        if wanted is not None:
            yield from _unlike(wanted, by_layer)
    elif s > 0 and recipe.granularity == "2:4":
        yield from _unlike({layer: _halved(shape) for layer, shape in network.layers.items()}, by_layer)
    elif s > 0 and recipe.granularity != "weight":
        yield from _unlike_in_groups(s, recipe, network, by_layer)
    elif recipe.scope == "layerwise":
        # layers that go at their own rate are told by the realised sparsity alone
        first, *_, last = [next(iter(sizes)), *sizes]
        paced = {{"first": first, "last": last}.get(layer, layer) for layer in recipe.rates if s > 0}
        wanted_layers = {layer: n - int(s * n) for layer, n in sizes.items() if layer not in paced}
        yield from _unlike(wanted_layers, {layer: by_layer[layer] for layer in wanted_layers})
    elif kept != total - int(s * total):
        # every other scope only shares the same total out
        yield f"keeps {kept} of {total} weights, the study asks for {total - int(s * total)}"


SMALL_DENSE = "small-dense"


def _narrowed(sparsity: float, recipe: Recipe, network: NetworkFacts) -> dict[str, int] | None:
    """Return what is left of each layer once neurons are removed; None where shapes alone do not say it.

    They do for linear layers each of which reads all units of the one before: n units keep n - int(sparsity · n), at
    least one, if layers do not compete for neurons.
    """
    shapes = list(network.layers.values())
    chained = all(len(shape) == 2 for shape in shapes) and all(a[0] == b[1] for a, b in pairwise(shapes))
    if network.whole or not chained or (len(shapes) > 2 and recipe.scope != "layerwise"):
        return None
    widths = [shape[0] for shape in shapes]
    kept = [shapes[0][1], *(max(n - int(sparsity * n), 1) for n in widths[:-1]), widths[-1]]
    return {layer: kept[i] * kept[i + 1] for i, layer in enumerate(network.layers)}


def _halved(shape: Sequence[int]) -> int:
    """Return how many weights of a layer 2:4 keeps: of every four inputs two, of a last few half, rounded up."""
    inputs = shape[1]
    return math.prod(shape) // inputs * (inputs - 2 * (inputs // 4) - inputs % 4 // 2)


def _unlike_in_groups(
    sparsity: float, recipe: Recipe, network: NetworkFacts, by_layer: Mapping[str, int]
) -> Iterator[str]:
    """Kernels and blocks go in exact number; how many weights that is, shapes say where all groups are of one size."""
    counts, sizes = {}, {}
    for layer, shape in network.layers.items():
        block = (
            recipe.granularity["block"] if isinstance(recipe.granularity, dict) else (1, math.prod(shape[2:]))
        )
        matrix = (shape[0], math.prod(shape[1:]))
        if any(side % part for side, part in zip(matrix, block, strict=True)):
            return
        sizes[layer] = math.prod(block)
        counts[layer] = math.prod(matrix) // sizes[layer]
    if recipe.scope == "layerwise":
        yield from _unlike({n: (c - int(sparsity * c)) * sizes[n] for n, c in counts.items()}, by_layer)
        return
    groups, total = sum(by_layer[layer] // size for layer, size in sizes.items()), sum(counts.values())
    if groups != total - int(sparsity * total):
        yield f"keeps {groups} groups of {total}, the study asks for {total - int(sparsity * total)}"


def _unlike(wanted: Mapping[str, int], found: Mapping[str, int]) -> Iterator[str]:
    if found != wanted:
        yield f"its layers keep {dict(found)} weights, the study asks for {dict(wanted)}"


def _proof(results: Results, row: Row, recipe: Recipe, proofs: Mapping[str, Any]) -> Iterator[str]:
    """Yield what the lab found broken while it trained, and what a protocol's run should prove and does not."""
    stage = _stage(results, row)
    if not proofs:
        if stage.beyond_birth:
            yield "nothing proves that its mask held and its weights were wound back; `natal run --fresh` does so"
        return
    if proofs["held"] is not True:
        yield "removed weights were not 0 at every evaluation and after the last step"
    if proofs["rewound"] is not True:
        yield f"it did not begin with the weights it was given, rewind = {recipe.rewind!r}"
    small = recipe.control == SMALL_DENSE and row.sparsity > 0  # a dense network: nothing of it is removed
    if row.status == "finished" and proofs["sparsity"] != (0 if small else row.realised_sparsity):
        yield f"its network ended at sparsity {proofs['sparsity']:.6f}, its mask has {row.realised_sparsity:.6f}"
    if row.status == "finished" and proofs.get("rounds", [proofs["sparsity"]])[-1] != proofs["sparsity"]:
        yield f"its last cut reached sparsity {proofs['rounds'][-1]:.6f}, its network has {proofs['sparsity']:.6f}"
    begun = proofs["restarted"]
    goes_on = stage.first > 0 and stage.start == "none" and stage.training.optimiser.moments > 0
    if begun["step"] != stage.first:
        yield f"it began at step {begun['step']} of its clock, the study says {stage.first}"
    elif begun["optimiser"] != ("kept" if goes_on else "fresh"):
        yield f"its optimiser began {begun['optimiser']}, which is not what rewind = {recipe.rewind!r} means"
    elif row.learning_rate is not None:
        factors: dict[object, float] = results.runs.memory.setdefault("factors", {})
        which = id(stage), row.task
        if which not in factors:
            factors[which] = stage.training.factors(results.tasks[row.task].fit_rows)[stage.first]
        factor = factors[which]
        if not math.isclose(begun["learning_rate"], row.learning_rate * factor, rel_tol=1e-12):
            yield f"its first learning rate was {begun['learning_rate']}, the study says {row.learning_rate * factor}"


def _states(results: Results) -> Iterator[str]:
    yield from _few(results.damaged_states())


# -- the outputs -----------------------------------------------------------------------------------------


def _outputs(results: Results) -> Iterator[str]:
    cure = f"`natal report {results.directory}` rebuilds it"
    for name, make in report.outputs(results).items():
        path = results.directory / name
        try:
            content = path.read_bytes()
        except OSError as error:
            yield f"{name} cannot be read ({error.strerror}); {cure}"
            continue
        wrong = _figure(results, path, content) if name in figures.FIGURES else _text(name, content, make())
        if wrong:
            yield f"{name} {wrong}; {cure}"


def _figure(results: Results, path: Path, content: bytes) -> str:
    if not content.startswith(PNG_SIGNATURE) or len(content) < LEAST_PNG_BYTES:
        return f"is not a picture: {len(content)} bytes" + " without a PNG signature" * (
            content[:8] != PNG_SIGNATURE
        )
    try:
        shown = figures.shown_digest(path)
    except OSError as error:
        return f"is damaged ({error})"
    return "" if shown == results.digest else "was not drawn from these results"


def _text(name: str, content: bytes, wanted: bytes) -> str:
    if content == wanted:
        return ""
    text = content.decode("utf-8", "replace")
    if name == "results.json":
        try:
            json.loads(text)
        except ValueError as error:
            return f"is not JSON ({error})"
    if name == "summary.csv":
        columns = next(csv.reader(io.StringIO(text)), [])
        asked = next(csv.reader(io.StringIO(wanted.decode())))
        if columns != asked:
            return f"has columns {', '.join(columns) or 'none'} instead of {', '.join(asked)}"
    for part in PARTS.get(name, ()):
        if part not in text:
            return f"has no {part!r}"
    return f"does not say what the run store says, first in line {_first_difference(content, wanted)}"


def _first_difference(content: bytes, wanted: bytes) -> int:
    ours, theirs = content.split(b"\n"), wanted.split(b"\n")
    same = (i for i, (a, b) in enumerate(zip(ours, theirs, strict=False), 1) if a != b)
    return next(same, min(len(ours), len(theirs)))


_CHECKS = (_complete, _dense, _provenance, _numbers, _each, _states, _outputs)


def _few(errors: Iterable[str]) -> Iterator[str]:
    """Yield the first errors of one kind and count the rest."""
    found = _Few()
    found.add(errors)
    yield from found


def _name(row: Row) -> str:
    return describe(row.run)
