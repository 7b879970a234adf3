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
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from natal.errors import NatalError
from natal.reading import figures, report, stats
from natal.reading.results import Results, Row, load
from natal.study import Recipe, Run
from natal.wording import describe, percent

PASSED = "Validation PASSED. All checks OK."
DENSE_BARS = {"modular": 0.05, "regression": 0.5}
"""What the dense mean must exceed, as the published validator has it; on other tasks, chance."""
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
        results = load(directory)
    except NatalError as error:
        return [str(error)]
    return [line for check in _CHECKS for line in check(results)]


def notes(directory: str | Path = "results") -> list[str]:
    """Return what a reader should know though it is no error: divergence, mixed provenance, no dense level.

    Raises NatalError if there is no study in ``directory``.
    """
    results = load(directory)
    lost = [run for run in stats.once(results.runs) if run["status"] == "diverged"]
    makers = stats.provenance(results.runs)
    found = []
    if lost:
        found.append(
            f"{len(lost)} trainings diverged, the first {_name(lost[0])}; they count as run, not as results"
        )
    if len(makers) > 1:
        found.append(f"trainings were made in {len(makers)} ways: {'; '.join(makers)}")
    if 0 not in results.study.sparsities:
        found.append("the study has no sparsity 0, so there is no dense baseline and no critical sparsity")
    return found


def verdict(directory: str | Path = "results") -> tuple[str, int]:
    """Return what `natal validate` prints and its exit code: 0 if everything is as it should be, else 1."""
    errors = validate(directory)
    if errors:
        return "\n".join(["Validation FAILED.", *(f"  - {error}" for error in errors)]), 1
    return "\n".join([*(f"NOTE: {note}" for note in notes(directory)), PASSED]), 0


# -- the study -------------------------------------------------------------------------------------------


def _complete(results: Results) -> Iterator[str]:
    study = results.study
    wanted = study.runs()
    there = Counter(_run(row) for row in results.runs)
    missing = [run for run in wanted if run not in there]
    if missing:
        yield (
            f"{len(missing)} of {len(wanted)} runs are missing, the first {describe(missing[0])}; "
            "`natal run` with the same study resumes"
        )
    strangers = [run for run in there if run not in set(wanted)]
    if strangers:
        yield f"{len(strangers)} runs are not in the study, the first {describe(strangers[0])}"
    cells = Counter(run[:3] for run in there.elements())
    yield from _few(
        f"{task} / {recipe.name} at {percent(level)} has {cells[task, recipe.name, level]} runs; the study "
        f"has {len(study.seeds)} seeds"
        for task in study.task_names
        for recipe in study.strategies
        for level in study.sparsities
        if cells[task, recipe.name, level] != len(study.seeds)
    )
    for what, position, names in (
        ("task", 0, study.task_names),
        ("strategy", 1, [r.name for r in study.strategies]),
        ("sparsity", 2, study.sparsities),
        ("seed", 3, study.seeds),
    ):
        for name in names:
            if not any(run[position] == name for run in there):
                yield f"no run has {what} {name}"


def _dense(results: Results) -> Iterator[str]:
    for task in results.study.task_names:
        dense = stats.dense_baseline(results.runs, task)
        if dense is None:
            continue
        chance = results.tasks.get(task, {}).get("chance", 0.0)
        bar = DENSE_BARS.get(task, chance)
        if not dense.test.mean > bar:
            yield (
                f"dense {task} does not learn: mean {dense.metric_name} is {dense.test.mean:.4g} and must "
                f"exceed {bar:.4g}; chance is {chance:.4g}"
            )


def _provenance(results: Results) -> Iterator[str]:
    manifest = results.manifest
    fraction = results.study.training.validation_fraction
    for name in PROVENANCE:
        if manifest.get(name) is None:
            yield f"provenance is not recorded: the manifest has no {name}"
    if manifest.get("deterministic") is not True:
        yield "determinism is off: the manifest's deterministic is not true"
    loose = [row for row in results.runs if row["deterministic"] is not True]
    if loose:
        yield f"{len(loose)} runs were trained with determinism off, the first {_name(loose[0])}"
    if manifest.get("study_hash") not in (None, results.study.digest):
        yield "the manifest's study_hash is not the hash of its study"
    for task in results.study.task_names:
        facts = results.tasks.get(task, {})
        rows: list[Any] = [facts.get(name) for name in ("fit_rows", "val_rows", "train_rows", "test_rows")]
        if not all(isinstance(n, int) and n > 0 for n in rows):
            yield f"the split of task {task!r} is not recorded: rows fit, val, train, test = {rows}"
        elif rows[1] != round(fraction * rows[2]) or rows[0] + rows[1] != rows[2]:
            yield (
                f"the split of task {task!r} is not the study's: {rows[0]} rows train and {rows[1]} validate "
                f"of {rows[2]}; validation_fraction is {fraction}"
            )


def _numbers(results: Results) -> Iterator[str]:
    budget = results.study.training.epochs or math.inf
    metrics = ("train_metric", "val_metric", "test_metric", "train_loss")
    yield from _few(
        f"{_name(row)}: {name} is not a finite number, yet the training did not diverge"
        for row in results.runs
        if row["status"] != "diverged"
        for name in metrics
        if row[name] is None
    )
    yield from _few(
        f"{_name(row)}: {name} {row[name]:.4g} is out of range"
        for row in results.runs
        for name in metrics[:3]
        if row[name] is not None
        and not (0 <= row[name] <= 1 if row["metric"] == "accuracy" else row[name] <= 1)
    )
    yield from _few(
        f"{_name(row)}: best epoch {row['best_epoch']} of {row['epochs_trained']}; the budget is {budget}"
        for row in results.runs
        if row["status"] != "diverged" and not 1 <= row["best_epoch"] <= row["epochs_trained"] <= budget
    )
    yield from _few(
        f"{_name(row)}: its curves have {len(curve['train_loss'])} and {len(curve['val_metric'])} epochs, "
        f"{row['epochs_trained']} were trained"
        for row, curve in zip(results.runs, results.curves, strict=True)
        if not len(curve["train_loss"]) == len(curve["val_metric"]) == row["epochs_trained"]
    )
    yield from _few(
        f"{_name(row)}: its validation curve is highest at epoch {best}, its best epoch is {row['best_epoch']}"
        for row, curve in zip(results.runs, results.curves, strict=True)
        if row["status"] != "diverged"
        and len(curve["val_metric"])
        and (best := int(curve["val_metric"].argmax()) + 1) != row["best_epoch"]
    )


# -- the masks -------------------------------------------------------------------------------------------


def _masks(results: Results) -> Iterator[str]:
    study = results.study
    yield from _few(
        f"{_name(row)}: {wrong}"
        for row in results.runs
        for wrong in _mask(
            row, study.recipe(row["strategy"]), study.hidden or 0, results.tasks.get(row["task"], {})
        )
    )


def _mask(row: Row, recipe: Recipe, hidden: int, task: Mapping[str, Any]) -> Iterator[str]:
    """Yield how a run's mask is not the one its recipe and sparsity ask for, to rounding."""
    s, kept, total = row["sparsity"], row["kept"], row["prunable"]
    sizes = {
        "hidden": task.get("inputs", 0) * hidden,
        "output": hidden * task.get("outputs", 0),
    }
    if sum(sizes.values()) != total or set(sizes) != set(row["densities"]):
        yield f"{total} prunable weights in {sorted(row['densities'])}; the network has {sizes}"
        return
    by_layer = {layer: round(row["densities"][layer] * n) for layer, n in sizes.items()}
    if sum(by_layer.values()) != kept:
        yield f"its layers keep {by_layer}, which is not {kept} in all"
    biases = hidden + task["outputs"]
    if row["total_params"] != total + biases or row["nonzero_params"] > kept + biases:
        yield (
            f"{row['nonzero_params']} of {row['total_params']} parameters are not zero; it keeps {kept} of "
            f"{total} weights and has {biases} biases"
        )

    if s > 0 and recipe.scope == "threshold":
        # every weight's fate is drawn on its own, so counts scatter; of other scores nothing can be expected
        expected, deviation = (1 - s) * total, math.sqrt(total * s * (1 - s))
        if recipe.criterion in ("random", "init-stream") and abs(kept - expected) > 5 * deviation:
            yield f"keeps {kept} weights, more than 5 standard deviations from {expected:.0f}"
    elif recipe.granularity == "neuron":
        neurons = max(hidden - int(s * hidden), 1)
        yield from _unlike({layer: n // hidden * neurons for layer, n in sizes.items()}, by_layer)
    elif recipe.scope == "layerwise":
        yield from _unlike({layer: n - int(s * n) for layer, n in sizes.items()}, by_layer)
    elif kept != total - int(s * total):
        # every other scope only shares the same total out
        yield f"keeps {kept} of {total} weights, the study asks for {total - int(s * total)}"


def _unlike(wanted: Mapping[str, int], found: Mapping[str, int]) -> Iterator[str]:
    if found != wanted:
        yield f"its layers keep {dict(found)} weights, the study asks for {dict(wanted)}"


def _diagnosed(results: Results) -> Iterator[str]:
    pruned = [row for row in results.runs if row["sparsity"] > 0]
    yield from _few(
        f"{_name(row)}: its mask was never diagnosed; `natal run --fresh` does so"
        for row in pruned
        if not row["diagnosis"]
    )
    yield from _few(
        f"{_name(row)}: its diagnosis is of another mask: {kept} weights kept, {row['kept']} in the mask"
        for row in pruned
        if row["diagnosis"]
        and (kept := sum(layer["kept"] for layer in row["diagnosis"]["layers"])) != row["kept"]
    )
    yield from _few(
        f"{_name(row)}: effective sparsity {row['effective_sparsity']:.4f} is less than the mask's own "
        f"{row['realised_sparsity']:.4f}"
        for row in pruned
        if row["effective_sparsity"] is not None
        and row["effective_sparsity"] < row["realised_sparsity"] - 1e-12
    )


# -- the outputs -----------------------------------------------------------------------------------------


def _outputs(results: Results) -> Iterator[str]:
    cure = f"`natal report {results.directory}` rebuilds it"
    for name, make in report.OUTPUTS.items():
        path = results.directory / name
        try:
            content = path.read_bytes()
        except OSError as error:
            yield f"{name} cannot be read ({error.strerror}); {cure}"
            continue
        wrong = (
            _figure(results, path, content)
            if name in figures.FIGURES
            else _text(name, content, make(results))
        )
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
        if columns != list(report.SUMMARY_COLUMNS):
            return (
                f"has columns {', '.join(columns) or 'none'} instead of {', '.join(report.SUMMARY_COLUMNS)}"
            )
    for part in PARTS.get(name, ()):
        if part not in text:
            return f"has no {part!r}"
    return f"does not say what the run store says, first in line {_first_difference(content, wanted)}"


def _first_difference(content: bytes, wanted: bytes) -> int:
    ours, theirs = content.split(b"\n"), wanted.split(b"\n")
    same = (i for i, (a, b) in enumerate(zip(ours, theirs, strict=False), 1) if a != b)
    return next(same, min(len(ours), len(theirs)))


_CHECKS = (_complete, _dense, _provenance, _numbers, _masks, _diagnosed, _outputs)


def _few(errors: Iterable[str]) -> Iterator[str]:
    """Yield the first errors of one kind and count the rest."""
    found = list(errors)
    yield from found[:SHOWN]
    if len(found) > SHOWN:
        yield f"... and {len(found) - SHOWN} more like the last"


def _run(row: Row) -> Run:
    return Run(row["task"], row["strategy"], row["sparsity"], row["seed"])


def _name(row: Mapping[str, Any]) -> str:
    return describe(_run(dict(row)))
