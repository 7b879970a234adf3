"""Validation passes on the reference runs and names whatever is broken."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import reference_store
from natal import report, validate
from natal.spec import Run

REFERENCE = reference_store.reference_outcomes()
TASKS = reference_store.TASKS
MAGNITUDE, RANDOM = Run("modular", "magnitude", 0.5, 7), Run("modular", "random", 0.5, 7)
DENSE, STRUCTURED = Run("modular", "magnitude", 0.0, 7), Run("modular", "structured", 0.5, 7)
UNEVEN = {"hidden": 65 / 128, "output": 63 / 128}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = reference_store.build(tmp_path_factory.mktemp("whole"))
    report.write(directory)
    return directory


@pytest.fixture
def directory(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "results"))


def errors_of(directory: Path, outcomes: dict[Run, Any] | None = None, **manifest: Any) -> str:
    """What is wrong with a store apart from its outputs, which it has none of."""
    found = validate.validate(reference_store.build(directory, outcomes, **manifest))
    return "\n".join(line for line in found if "cannot be read" not in line)


def test_the_reference_runs_pass(whole: Path) -> None:
    assert validate.validate(whole) == []
    assert validate.verdict(whole) == ("Validation PASSED. All checks OK.", 0)


def test_a_failure_lists_its_errors_and_exits_with_one(directory: Path) -> None:
    (directory / "summary.csv").unlink()
    text, code = validate.verdict(directory)
    assert code == 1
    assert text.splitlines()[0] == "Validation FAILED."
    assert "summary.csv cannot be read (No such file or directory); `natal report" in text


def test_no_store_fails_in_one_line(tmp_path: Path) -> None:
    text, code = validate.verdict(tmp_path)
    assert code == 1
    assert "study.sqlite is missing" in text


@pytest.mark.parametrize("name", report.OUTPUTS)
@pytest.mark.parametrize("damage", [
    lambda content: b"",
    lambda content: content[: len(content) // 2],
    lambda content: content[: len(content) // 2] + b"7" + content[len(content) // 2 + 1 :],
], ids=["empty", "cut", "altered"])  # fmt: skip
def test_any_damage_to_an_output_is_named(
    directory: Path, name: str, damage: Callable[[bytes], bytes]
) -> None:
    path = directory / name
    path.write_bytes(damage(path.read_bytes()))
    [error] = validate.validate(directory)
    assert error.startswith(name)
    assert "rebuilds it" in error


@pytest.mark.parametrize(("name", "old", "new", "said"), [
    ("report.txt", b"KEY FINDINGS", b"KEY FICTION", "has no 'KEY FINDINGS'"),
    ("report.txt", b"95% CI", b"CI", "has no '95% CI'"),
    ("summary.csv", b"n_seeds", b"seeds", "has columns task, strategy"),
    ("summary.csv", b"structured,0.7,test_acc,0.7", b"structured,0.7,test_acc,0.8", "first in line 22"),
    ("results.json", b'"test_acc": 0.27', b'"test_acc": 0.28', "does not say what the run store says"),
    ("results.json", b"}", b"", "is not JSON"),
])  # fmt: skip
def test_what_is_wrong_with_a_table_is_said(
    directory: Path, name: str, old: bytes, new: bytes, said: str
) -> None:
    path = directory / name
    path.write_bytes(path.read_bytes().replace(old, new))
    [error] = validate.validate(directory)
    assert said in error


def test_outputs_of_another_store_are_named(directory: Path, tmp_path: Path) -> None:
    run = Run("regression", "random", 0.5, 7)
    other = reference_store.build(
        tmp_path / "other", {**REFERENCE, run: replace(REFERENCE[run], test_metric=0.5)}
    )
    for name in report.OUTPUTS:
        shutil.copy(directory / name, other / name)
    found = validate.validate(other)
    assert [line.split()[0] for line in found] == list(report.OUTPUTS)
    assert "was not drawn from these results" in "\n".join(found)


def test_missing_runs_are_named(tmp_path: Path) -> None:
    outcomes = {run: o for run, o in REFERENCE.items() if run != Run("modular", "random", 0.3, 123)}
    text = errors_of(tmp_path, outcomes)
    assert (
        "1 of 144 runs are missing, the first task=modular, strategy=random, sparsity=30%, seed=123" in text
    )
    assert "modular / random at 30% has 2 runs; the study has 3 seeds" in text
    without = {run: o for run, o in REFERENCE.items() if run.task == "modular"}
    assert "no run has task regression" in errors_of(tmp_path / "half", without)


def test_a_dense_network_that_does_not_learn_is_named(tmp_path: Path) -> None:
    outcomes = {run: replace(o, test_metric=0.04) if run.sparsity == 0 else o for run, o in REFERENCE.items()}
    text = errors_of(tmp_path, outcomes)
    assert "dense modular does not learn: mean test_acc is 0.04 and must exceed 0.05" in text
    assert "dense regression does not learn: mean test_r2 is 0.04 and must exceed 0.5" in text


@pytest.mark.parametrize(("manifest", "said"), [
    ({"deterministic": False}, "determinism is off"),
    ({"torch_version": None}, "no torch_version"),
    ({"study_hash": "0" * 16}, "not the hash of its study"),
    ({"tasks": {**TASKS, "modular": {**TASKS["modular"], "val_rows": None}}}, "split of task 'modular'"),
    ({"tasks": {**TASKS, "regression": {**TASKS["regression"], "val_rows": 15}}}, "15 validate of 160"),
])  # fmt: skip
def test_gaps_in_the_provenance_are_named(tmp_path: Path, manifest: Any, said: str) -> None:
    assert said in errors_of(tmp_path, **manifest)


@pytest.mark.parametrize(("run", "change", "said"), [
    (MAGNITUDE, {"kept": 18623}, "keeps 18623 of 37248 weights, the study asks for 18624"),
    (RANDOM, {"kept": 18624 + 500}, "more than 5 standard deviations from 18624"),
    (STRUCTURED, {"densities": UNEVEN}, "its layers keep"),
    (DENSE, {"kept": 37247}, "keeps 37247 of 37248 weights, the study asks for 37248"),
    (MAGNITUDE, {"nonzero_params": 37473}, "37473 of 37473 parameters are not zero"),
    (MAGNITUDE, {"prunable": 1000}, "1000 prunable weights"),
    (MAGNITUDE, {"test_metric": None}, "test_metric is not a finite number"),
    (MAGNITUDE, {"final_loss": float("inf")}, "train_loss is not a finite number"),
    (MAGNITUDE, {"val_metric": 1.5}, "val_metric 1.5 is out of range"),
    (MAGNITUDE, {"best_epoch": 0}, "best epoch 0 of"),
    (Run("regression", "random", 0.5, 7), {"epochs_trained": 499}, "499 were trained"),
])  # fmt: skip
def test_a_wrong_run_is_named(tmp_path: Path, run: Run, change: Any, said: str) -> None:
    text = errors_of(tmp_path, {**REFERENCE, run: replace(REFERENCE[run], **change)})
    assert said in text
    assert f"seed={run.seed}" in text


def test_layerwise_masks_are_exact_in_every_layer(tmp_path: Path) -> None:
    study = reference_store.reference_study()
    recipes = tuple(
        r.model_copy(update={"scope": "layerwise"}) if r.name == "magnitude" else r for r in study.strategies
    )
    study = study.model_copy(update={"strategies": recipes})
    found = validate.validate(reference_store.build(tmp_path, study=study))
    assert any("magnitude, sparsity=10%" in line and "the study asks for" in line for line in found)


def test_a_recorded_divergence_is_a_note_not_an_error(tmp_path: Path) -> None:
    run = Run("modular", "structured", 0.95, 7)
    directory = reference_store.build(tmp_path, {**REFERENCE, run: reference_store.diverged(REFERENCE[run])})
    report.write(directory)
    text, code = validate.verdict(directory)
    assert code == 0
    assert text.splitlines()[0].startswith(
        "NOTE: 1 trainings diverged, the first task=modular, strategy=structured"
    )
    assert text.splitlines()[-1] == "Validation PASSED. All checks OK."


def test_a_missing_or_foreign_diagnosis_is_named(tmp_path: Path) -> None:
    other = Run("modular", "structured", 0.7, 7)
    shallow = {**REFERENCE[RANDOM].diagnosis, "effective_sparsity": 0.25}
    broken = {
        **REFERENCE,
        STRUCTURED: replace(REFERENCE[STRUCTURED], diagnosis={}),
        other: replace(REFERENCE[other], diagnosis=REFERENCE[STRUCTURED].diagnosis),
        RANDOM: replace(REFERENCE[RANDOM], diagnosis=shallow),
    }
    found = errors_of(tmp_path, broken)
    assert "strategy=structured, sparsity=50%, seed=7: its mask was never diagnosed" in found
    assert (
        "strategy=structured, sparsity=70%, seed=7: its diagnosis is of another mask: 18624 weights kept"
        in found
    )
    assert (
        "strategy=random, sparsity=50%, seed=7: effective sparsity 0.2500 is less than the mask's own"
        in found
    )
