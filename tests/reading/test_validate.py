"""Validation passes on the reference runs and names whatever is broken."""

from __future__ import annotations

import csv
import itertools
import json
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_results import searching

import natal
import reference_store
from conftest import tiny
from natal.reading import report, validate
from natal.reading.results import load
from natal.study import SCOPES, Run, load_study, presets

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
    lambda content: content[:2000] + bytes([content[2000] ^ 1]) + content[2001:],
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


@pytest.mark.parametrize(("content", "said"), [
    (b"\x89PNG\r\n\x1a\n", "is not a picture: 8 bytes; `natal"),
    (b"GIF89a" * 1000, "is not a picture: 6000 bytes without a PNG signature; `natal"),
])  # fmt: skip
def test_what_is_no_picture_is_named(directory: Path, content: bytes, said: str) -> None:
    (directory / "epochs_vs_sparsity.png").write_bytes(content)
    [error] = validate.validate(directory)
    assert said in error


def test_errors_of_one_kind_are_counted_from_the_fourth_on(tmp_path: Path) -> None:
    outcomes = {
        run: replace(o, val_metric=1.5) if run[:3] == MAGNITUDE[:3] else o for run, o in REFERENCE.items()
    }
    text = errors_of(tmp_path, outcomes)
    assert text.count("val_metric 1.5 is out of range") == 3
    assert "more like the last" not in text
    outcomes = {
        run: replace(o, val_metric=1.5) if run[1:3] == MAGNITUDE[1:3] else o for run, o in REFERENCE.items()
    }
    assert "... and 3 more like the last" in errors_of(tmp_path / "six", outcomes)


def test_outputs_of_another_store_are_named(directory: Path, tmp_path: Path) -> None:
    run = Run("regression", "random", 0.5, 7)
    other = reference_store.build(
        tmp_path / "other", {**REFERENCE, run: replace(REFERENCE[run], test_metric=0.5)}
    )
    names = report.outputs(load(directory))
    (other / "tables").mkdir()
    for name in names:
        shutil.copy(directory / name, other / name)
    found = validate.validate(other)
    wrong = [line.split()[0] for line in found]
    assert set(wrong) < set(names)
    # what does not change with a run's metric: the study, and what masks did before training
    assert set(names) - set(wrong) == {"study.toml", "tables/masks.csv", "tables/masks.tex"}
    assert "was not drawn from these results" in "\n".join(found)


def test_missing_runs_are_named(tmp_path: Path) -> None:
    outcomes = {run: o for run, o in REFERENCE.items() if run != Run("modular", "random", 0.3, 123)}
    text = errors_of(tmp_path, outcomes)
    assert "1 of 144 runs missing, the first task=modular, strategy=random, sparsity=30%, seed=123" in text
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
    ({"tasks": {**TASKS, "regression": {**TASKS["regression"], "val_rows": 0}}}, "'regression' is not recorded"),
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
    (MAGNITUDE, {"best_step": 0}, "best step 0 of"),
    (Run("regression", "random", 0.5, 7), {"steps_trained": 499}, "499 evaluations of 499 steps were made"),
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


# the paper's own in `make test`, all of them in `make test-all`
@pytest.mark.parametrize(
    "preset",
    [
        preset if preset == "paper" else pytest.param(preset, marks=pytest.mark.slow)
        for preset in sorted(presets())
    ],
)
def test_what_a_preset_makes_is_valid(preset: str, tmp_path: Path) -> None:
    changes = ["seeds=[1]", "sparsities=[0.0, 0.5, 0.9]", *_SHORTER.get(preset, _SHORT)]
    natal.run(preset, tmp_path, overrides=changes, workers=1)
    assert validate.validate(tmp_path) == []


_SHORT = ['tasks=["regression"]', "training.epochs=150"]
_FEW = ['training.length="20it"', 'training.evaluate="10it"']
_DIGITS = ['tasks=[{ task = "digits", name = "mnist" }]']
_SHORTER = {
    "depth": _FEW,
    "digits": ["sparsities=[0.0, 0.9]", 'training.length="4it"', 'training.evaluate="4it"'],
    "grokking-tickets": ["sparsities=[0.0, 0.6]", *_FEW],
    "lottery": ["sparsities=[0.0, 0.2, 0.36]", *_FEW, *_DIGITS],
    "mnist-1d-lottery": ["sparsities=[0.0, 0.1, 0.2]", *_FEW],
    "sanity": ["sparsities=[0.0, 0.8]", *_FEW, *_DIGITS],
}


def test_every_scope_and_granularity_is_valid(tmp_path: Path, no_report: None) -> None:
    weights: list[Any] = [{"criterion": "random", "scope": scope} for scope in SCOPES]
    weights += [{"name": "named", "criterion": "random", "scope": {"output": 0.6}}]
    neurons = [
        {"criterion": "snip", "scope": scope, "granularity": "neuron"} for scope in ("global", "layerwise")
    ]
    study = tiny(strategies=[*weights, *neurons], sparsities=[0.1, 0.5], seeds=[1], training={"epochs": 1})
    natal.run(study, tmp_path, workers=1)
    found = validate.validate(tmp_path)
    assert [line for line in found if "cannot be read" not in line] == []


def test_every_finer_granularity_is_valid_and_a_wrong_count_is_not(tmp_path: Path, no_report: None) -> None:
    finer: list[Any] = ["kernel", "2:4", {"block": [4, 4]}, {"block": [1, 4]}]
    strategies = [
        {"criterion": "random", "scope": scope, "granularity": granularity}
        for granularity in finer
        for scope in ("global", "layerwise")
    ]
    study = tiny(strategies=strategies, sparsities=[0.0, 0.5], seeds=[1], training={"epochs": 1})
    results = natal.run(study, tmp_path, workers=1)
    assert [s.name for s in results.study.strategies][4:6] == [
        "random-global-4x4-block",
        "random-layerwise-4x4-block",
    ]
    found = validate.validate(tmp_path)
    assert [line for line in found if "cannot be read" not in line and "does not learn" not in line] == []
    recipes = {s.name: s for s in results.study.strategies}
    for row in results.runs:
        if row.sparsity and "4x4" not in row.strategy:
            one_less = {**row.densities, "hidden": row.densities["hidden"] - 1 / 640}
            other = replace(row, kept=row.kept - 1, densities=one_less)
            assert list(validate._mask(other, recipes[row.strategy], results.networks[row.setting])) != []


def test_other_scopes_only_share_the_total_out(tmp_path: Path) -> None:
    study = reference_store.reference_study()
    recipes = tuple(
        r.model_copy(update={"scope": "erk"}) if r.name == "magnitude" else r for r in study.strategies
    )
    study = study.model_copy(update={"strategies": recipes})
    outcomes = {**REFERENCE, MAGNITUDE: replace(REFERENCE[MAGNITUDE], kept=18625, nonzero_params=18700)}
    found = validate.validate(reference_store.build(tmp_path, outcomes, study))
    found = [line for line in found if "cannot be read" not in line and "its diagnosis" not in line]
    assert ["magnitude" in line for line in found] == [True, True]
    assert "which is not 18625 in all" in found[0]
    assert "keeps 18625 of 37248 weights, the study asks for 18624" in found[1]


def published_checks(directory: Path) -> list[str]:
    """What the published program's validator looks at, as paper.md lists it; it knows nothing of natal."""
    wrong = []
    content = json.loads((directory / "results.json").read_text("utf-8"))
    metadata, runs = content["metadata"], content["results"]
    known = (
        "num_tasks num_strategies num_sparsity_levels num_seeds total_runs elapsed_seconds hidden_dim max_epochs "
        "validation_fraction modular_mod regression_n regression_d python_version torch_version numpy_version "
        "platform device deterministic_algorithms_enabled seed_values sparsity_values task_values strategy_values"
    )
    wrong += [f"metadata lacks {key}" for key in known.split() if metadata.get(key) is None]
    if len(runs) != metadata["total_runs"] or len(runs) != 144:
        wrong.append("runs are missing")
    if (metadata["num_seeds"], metadata["seed_values"]) != (3, [42, 123, 7]):
        wrong.append("not the three seeds")
    cells = Counter((run["task"], run["strategy"], run["sparsity"]) for run in runs)
    for where in itertools.product(
        metadata["task_values"], metadata["strategy_values"], metadata["sparsity_values"]
    ):
        if cells[where] != 3:
            wrong.append(f"{where} has {cells[where]} seeds")
    for task, field, bar in (("modular", "acc", 0.05), ("regression", "r2", 0.5)):
        fields = {
            "total_params",
            "nonzero_params",
            "actual_sparsity",
            "train_loss",
            "epochs_trained",
            "best_epoch",
        }
        fields |= {"task", "strategy", "sparsity", "seed", f"train_{field}", f"val_{field}", f"test_{field}"}
        wrong += [
            f"{task} has fields {set(run)}" for run in runs if run["task"] == task and set(run) != fields
        ]
        dense = [run[f"test_{field}"] for run in runs if run["task"] == task and run["sparsity"] == 0]
        if not sum(dense) / len(dense) > bar:
            wrong.append(f"dense {task} does not learn")
    if metadata["validation_fraction"] != 0.1 or metadata["deterministic_algorithms_enabled"] is not True:
        wrong.append("split or determinism")
    for name in ("accuracy_vs_sparsity.png", "epochs_vs_sparsity.png"):
        if (directory / name).stat().st_size < 1000:
            wrong.append(f"{name} is empty")
    text = (directory / "report.txt").read_text("utf-8")
    wrong += [f"the report has no {part}" for part in ("KEY FINDINGS", "95% CI") if part not in text]
    with (directory / "summary.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    columns = (
        "task strategy sparsity metric_name metric_mean metric_std metric_ci_low metric_ci_high epochs_mean "
        "epochs_std n_seeds"
    )
    if list(table[0]) != columns.split() or len(table) != 48 or {row["n_seeds"] for row in table} != {"3"}:
        wrong.append("summary.csv")
    return wrong


def test_the_published_validators_checks_hold(whole: Path) -> None:
    assert published_checks(whole) == []
    there = {str(path.relative_to(whole)) for path in whole.rglob("*") if path.is_file()}
    assert there == {*report.outputs(load(whole)), "study.sqlite", report.WRITTEN}
    assert set(report.OUTPUTS) < there


def changed(directory: Path, statement: str) -> list[str]:
    reference_store.tamper(directory, statement)
    text, code = validate.verdict(directory)
    assert code == 1
    return text.splitlines()


def test_a_store_that_was_tampered_with_is_named(directory: Path) -> None:
    edit = """UPDATE training SET test_metric = 0.5 WHERE key =
              (SELECT key FROM grid WHERE task = 'modular' AND strategy = 'random' AND sparsity = 0.9)"""
    found = changed(directory, edit)
    assert set(report.OUTPUTS) - {"study.toml"} < {line.split()[1] for line in found[1:]}
    assert validate.validate(directory) != []
    report.write(directory)
    assert validate.validate(directory) == []


@pytest.mark.parametrize(("statement", "said"), [
    ("DELETE FROM training WHERE key IN (SELECT key FROM grid WHERE seed = 7)", "no run has seed 7"),
    ("DELETE FROM grid WHERE strategy = 'structured'", "of 144 rows of the grid 96 are there"),
    ("UPDATE grid SET sparsity = 0.31 WHERE sparsity = 0.3", "18 runs not in the study"),
    ("UPDATE manifest SET value = 'false' WHERE name = 'deterministic'", "determinism is off: the manifest's"),
    ("UPDATE training SET deterministic = 0", "144 runs trained with det"),
    ("UPDATE manifest SET value = json_set(value, '$.hidden', 64) WHERE name = 'study'", "not the hash of its study"),
    ("UPDATE training SET best_step = 2", "its best step is 2"),
    ("UPDATE curve SET lines = '[[\"step\", \"<f8\", 1]]', numbers = zeroblob(8)", "its curves end at step 0"),
])  # fmt: skip
def test_tampering_with_the_store_fails_with_a_list(directory: Path, statement: str, said: str) -> None:
    assert said in "\n".join(changed(directory, statement))


def test_a_recorded_divergence_is_a_note_not_an_error(tmp_path: Path) -> None:
    run = Run("modular", "structured", 0.95, 7)
    directory = reference_store.build(tmp_path, {**REFERENCE, run: reference_store.diverged(REFERENCE[run])})
    report.write(directory)
    text, code = validate.verdict(directory)
    assert code == 0
    assert text.splitlines()[0].startswith(
        "NOTE: 1 training diverged, the first task=modular, strategy=structured"
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


# -- several networks, other trainings, searches and stopped commands ---------------------------------------------


def complaints(directory: Path) -> list[str]:
    return [line for line in validate.validate(directory) if "cannot be read" not in line]


def test_two_networks_are_whole_or_named(tmp_path: Path) -> None:
    study, outcomes = reference_store.two_networks()
    assert complaints(reference_store.build(tmp_path / "whole", outcomes, study)) == []
    wide = {run: o for run, o in outcomes.items() if run.network == "wide"}
    found = complaints(reference_store.build(tmp_path / "half", wide, study))
    assert "no run has network narrow" in found
    assert (
        "144 of 288 runs missing, the first task=modular, network=narrow, strategy=magnitude, sparsity=0%, "
        "seed=42; `natal run` with the same study resumes"
    ) in found
    assert "modular / narrow / magnitude at 0% has 0 runs; the study has 3 seeds" in found


def test_a_stopped_study_is_not_blamed_for_what_is_said_at_its_end(tmp_path: Path) -> None:
    outcomes = dict(list(REFERENCE.items())[:30])
    directory = reference_store.build(tmp_path, outcomes, deterministic=None, finished_at=None)
    assert not any("determinism" in line for line in validate.validate(directory))
    loose = {run: replace(o, deterministic=False) for run, o in outcomes.items()}
    directory = reference_store.build(tmp_path / "loose", loose, deterministic=None, finished_at=None)
    assert any("runs trained with determinism off" in line for line in validate.validate(directory))


def test_a_dense_network_that_learns_nothing_is_an_error_for_the_papers_alone(tmp_path: Path) -> None:
    study, outcomes = reference_store.two_networks()
    outcomes = {run: replace(o, test_metric=0.0) if run.sparsity == 0 else o for run, o in outcomes.items()}
    directory = reference_store.build(tmp_path, outcomes, study)
    assert complaints(directory) == []
    assert "dense modular / narrow does not learn: mean test_acc is 0, chance 0.01031" in validate.notes(
        directory
    )


def _trained(decide: str, best: int) -> Any:
    curves = {
        "step": np.array([10.0, 20, 30]), "train_loss": np.array([3.0, 2, 1]),
        "val_loss": np.array([3.0, 1, 2]), "val_metric": np.array([0.9, 0.5, 0.5]),
    }  # fmt: skip
    training = {"length": "30it", "evaluate": "10it", "patience": "none", "target": "none", "decide": decide}
    study, outcomes = reference_store.two_networks(training={**training, "learning_rate": 0.01})
    return study, {
        run: replace(o, steps_planned=30, steps_trained=30, best_step=best, curves=curves)
        for run, o in outcomes.items()
    }


@pytest.mark.parametrize(("decide", "best", "said"), [
    ("val-metric", 10, "validation curve is highest at step 10"),
    ("val-loss", 20, "validation loss is lowest at step 20"),
    ("end", 30, "last step is at step 30"),
])  # fmt: skip
def test_the_best_evaluation_is_the_one_that_the_study_decides_by(
    tmp_path: Path, decide: str, best: int, said: str
) -> None:
    study, outcomes = _trained(decide, best)
    assert complaints(reference_store.build(tmp_path / "right", outcomes, study)) == []
    for other in {10, 20, 30} - {best}:
        study, outcomes = _trained(decide, other)
        found = complaints(reference_store.build(tmp_path / str(other), outcomes, study))
        assert f"{said}, its best step is {other}" in found[0]


def test_a_training_of_another_length_is_named(tmp_path: Path) -> None:
    outcomes = {**REFERENCE, MAGNITUDE: replace(REFERENCE[MAGNITUDE], steps_planned=600)}
    assert "its whole training has 600 steps, the study's 500" in errors_of(tmp_path, outcomes)


def test_the_choice_among_learning_rates_is_checked(tmp_path: Path) -> None:
    assert complaints(searching(tmp_path / "right")) == []
    [first, _] = complaints(searching(tmp_path / "wrong", chosen=0.1))
    assert first == (
        "task=regression, strategy=random, sparsity=50%, seed=42: the store shows the training at learning rate 0.1, "
        "validation rows choose 1.0"
    )
    # until a search is over, a store shows the first rate of each row
    assert not any(
        "learning rate" in line
        for line in complaints(searching(tmp_path / "o", chosen=0.1, finished_at=None))
    )


def test_a_smaller_dense_network_stands_for_a_pruned_one(tmp_path: Path) -> None:
    base = reference_store.reference_study().model_dump(mode="json")
    small = {"name": "small", "criterion": "magnitude", "control": "small-dense"}
    study = load_study(
        {**base, "tasks": ["modular"], "strategies": [small], "sparsities": [0.5], "claims": []}
    )
    # pruned, the 37,473 parameters are 18,849; 64 neurons have 64 * 291 weights and 64 + 97 biases, 18,785 in all
    dense = replace(
        REFERENCE[MAGNITUDE],
        kept=18624,
        nonzero_params=18785,
        densities={"hidden": 1.0, "output": 1.0},
        diagnosis={},
    )

    def wrong(**change: Any) -> list[str]:
        outcomes = dict.fromkeys(study.runs(), replace(dense, **change))
        directory = tmp_path / str(len(list(tmp_path.iterdir())))
        return complaints(reference_store.build(directory, outcomes, study))

    assert wrong() == []
    assert "it must be a dense network of at most 18849" in wrong(nonzero_params=18850)[0]
    assert "it must be a dense network" in wrong(densities={"hidden": 0.5, "output": 1.0})[0]


def test_layers_of_any_network_keep_what_the_recipe_asks_for(tmp_path: Path) -> None:
    """A network of a convolution and a linear layer, by its shapes alone."""
    layers = {"conv": [4, 1, 3, 3], "fc": [10, 64]}  # 36 and 640 weights, 14 biases
    study = load_study(
        reference_store.reference_study(), ['tasks=["modular"]', "sparsities=[0.25]", "claims=[]"]
    )
    facts = {"task": "modular", "network": "mlp", "engine": "torch", "parameters": 690, "layers": layers,
             "macs": 1000, "steps": 500, "steps_per_epoch": 1}  # fmt: skip
    outcome = replace(REFERENCE[MAGNITUDE], total_params=690, prunable=676, kept=507, nonzero_params=521,
                      densities={"conv": 27 / 36, "fc": 480 / 640}, diagnosis={})  # fmt: skip

    def found(o: Any) -> list[str]:
        directory = tmp_path / str(len(list(tmp_path.iterdir())))
        outcomes = dict.fromkeys(study.runs(), o)
        lines = complaints(reference_store.build(directory, outcomes, study, networks=[facts]))
        return [line for line in lines if "magnitude" in line and "diagnosed" not in line]

    assert found(outcome) == []
    assert (
        "its layers keep {'conv': 26, 'fc': 480}, which is not 507 in all"
        in found(replace(outcome, densities={"conv": 26 / 36, "fc": 480 / 640}))[0]
    )
    assert "691 parameters; the network has 690" in found(replace(outcome, total_params=691))[0]
    assert "has 14 other parameters" in found(replace(outcome, nonzero_params=522))[0]
