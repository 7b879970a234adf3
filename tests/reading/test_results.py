"""Reading a store back, the published format, and comparing two programs."""

from __future__ import annotations

import json
import math
import sqlite3
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import reference_store
from natal.errors import NatalError
from natal.reading.results import compare, load, published, published_objects, read_published
from natal.study import Run


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return reference_store.build(tmp_path_factory.mktemp("results"))


@pytest.fixture(scope="module")
def results(directory: Path) -> Any:
    return load(directory)


def test_a_row_per_grid_row_in_the_studys_order(results: Any) -> None:
    assert [
        Run(r["task"], r["strategy"], r["sparsity"], r["seed"]) for r in results.runs
    ] == results.study.runs()
    assert results.missing == []
    assert len({r["key"] for r in results.runs}) == 132
    assert len(results.curves) == 144
    assert all(
        len(c["val_metric"]) == r["epochs_trained"] for c, r in zip(results.curves, results.runs, strict=True)
    )


def test_realised_sparsity_counts_prunable_weights_only(results: Any) -> None:
    row = next(
        r
        for r in results.runs
        if (r["task"], r["strategy"], r["sparsity"]) == ("regression", "structured", 0.7)
    )
    # int(.7 * 128) = 89 of 128 neurons are gone, with 21 weights each
    assert row["realised_sparsity"] == pytest.approx(89 / 128)
    assert (row["kept"], row["prunable"]) == (39 * 21, 128 * 21)


def test_published_objects_are_the_published_ones(results: Any) -> None:
    ours, theirs = published_objects(results), reference_store.reference_objects()
    assert ours == theirs
    assert [list(o) for o in ours] == [list(o) for o in theirs]  # fields in the same order


def test_metadata_has_the_published_fields(results: Any) -> None:
    theirs = json.loads(reference_store.DATA.read_text("utf-8"))["metadata"]
    ours = published(results)["metadata"]
    assert {name: ours[name] for name in theirs} == theirs
    assert set(ours) - set(theirs) == {"platform", "natal"}
    assert ours["natal"]["engine"] == "sequential"
    assert ours["natal"]["missing_runs"] == 0


def test_a_study_without_the_papers_tasks_has_no_constants_for_them(tmp_path: Path) -> None:
    study = reference_store.reference_study().model_copy(update={"tasks": ("regression",)})
    metadata = published(load(reference_store.build(tmp_path, study=study)))["metadata"]
    assert (metadata["modular_mod"], metadata["regression_n"], metadata["regression_d"]) == (None, 200, 20)


def test_an_unfinished_store_names_what_is_missing(tmp_path: Path) -> None:
    outcomes = dict(list(reference_store.reference_outcomes().items())[:100])
    results = load(reference_store.build(tmp_path, outcomes))
    # rows 0 to 99 and, beyond them, the dense rows that share a training with an earlier one
    assert len(results.runs) + len(results.missing) == 144
    assert Run("regression", "structured", 0.95, 7) in results.missing
    assert not {r["key"] for r in results.runs} & {"", None}


def test_a_diverged_run_has_null_metrics(tmp_path: Path) -> None:
    outcomes = reference_store.reference_outcomes()
    run = Run("modular", "structured", 0.5, 7)
    outcomes[run] = reference_store.diverged(outcomes[run])
    found = next(o for o in published_objects(load(reference_store.build(tmp_path, outcomes)))
                 if (o["task"], o["strategy"], o["sparsity"], o["seed"]) == run)  # fmt: skip
    assert [found[f"{part}_acc"] for part in ("train", "val", "test")] == [None] * 3
    assert found["train_loss"] is None
    json.dumps(found, allow_nan=False)


def test_a_metric_that_is_not_finite_reads_as_none(tmp_path: Path) -> None:
    outcomes = reference_store.reference_outcomes()
    run = Run("regression", "random", 0.5, 7)
    outcomes[run] = replace(outcomes[run], test_metric=math.nan, val_metric=-math.inf)
    row = next(r for r in load(reference_store.build(tmp_path, outcomes)).runs
               if (r["task"], r["strategy"], r["sparsity"], r["seed"]) == run)  # fmt: skip
    assert (row["test_metric"], row["val_metric"]) == (None, None)


def test_no_store_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(NatalError, match=r"study\.sqlite is missing"):
        load(tmp_path)


def test_frames(results: Any) -> None:
    pandas = pytest.importorskip("pandas")
    frame = results.frame()
    assert isinstance(frame, pandas.DataFrame)
    assert frame.shape[0] == 144
    assert "density_hidden" in frame
    assert {"effective_sparsity", "collapses_at", "severity"} <= set(frame)
    assert "diagnosis" not in frame
    assert frame["severity"].eq("fatal").sum() == 18
    curves = results.curves_frame()
    assert len(curves) == sum(r["epochs_trained"] for r in results.runs)
    assert list(curves.columns) == [
        "task",
        "strategy",
        "sparsity",
        "seed",
        "epoch",
        "train_loss",
        "val_metric",
    ]


def test_frames_without_pandas_say_how_to_get_it(results: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(NatalError, match=r"pip install natal\[pandas\]"):
        results.frame()


def test_a_row_carries_its_diagnosis(results: Any) -> None:
    rows = {(r["task"], r["strategy"], r["sparsity"], r["seed"]): r for r in results.runs}
    dense = rows["regression", "magnitude", 0.0, 42]
    assert (dense["diagnosis"], dense["effective_sparsity"], dense["severity"]) == ({}, None, None)
    dead = rows["regression", "magnitude", 0.5, 42]
    assert (dead["effective_sparsity"], dead["collapses_at"], dead["severity"]) == (1.0, 0.424, "fatal")
    assert [layer["name"] for layer in dead["diagnosis"]["layers"]] == ["hidden.weight", "output.weight"]
    narrow = rows["regression", "structured", 0.5, 42]
    assert (narrow["effective_sparsity"], narrow["collapses_at"], narrow["severity"]) == (
        0.5,
        None,
        "warning",
    )


# -- comparison --------------------------------------------------------------------------------------------


def test_equal_programs_are_identical_to_the_last_bit(results: Any) -> None:
    comparison = compare(published_objects(results), reference_store.reference_objects())
    assert comparison.identical
    assert comparison.matched == 144
    assert comparison.lines()[-1] == "all 144 matched runs are identical to the last bit"


def test_a_difference_is_measured_and_placed(results: Any) -> None:
    theirs = reference_store.reference_objects()
    theirs[5] = {**theirs[5], "test_acc": theirs[5]["test_acc"] + 0.5}
    theirs[6] = {**theirs[6], "test_acc": math.nextafter(theirs[6]["test_acc"], 1)}
    comparison = compare(published_objects(results), theirs)
    difference = comparison.fields["test_acc"]
    assert difference.largest == pytest.approx(0.5)
    assert difference.where == Run("modular", "magnitude", 0.1, 7)
    assert difference.differing == 2
    assert not comparison.identical
    assert comparison.fields["epochs_trained"].differing == 0


def test_null_against_a_number_is_infinitely_far_and_null_equals_null() -> None:
    one = {"task": "t", "strategy": "s", "sparsity": 0.5, "seed": 1, "test_acc": None}
    assert compare([one], [dict(one)]).identical
    assert compare([one], [{**one, "test_acc": 0.5}]).fields["test_acc"].largest == math.inf


def test_runs_match_under_another_name(results: Any) -> None:
    ours = [{**o, "strategy": "mine"} if o["strategy"] == "random" else o for o in published_objects(results)]
    theirs = reference_store.reference_objects()
    apart = compare(ours, theirs)
    assert (apart.matched, len(apart.only_ours), len(apart.only_theirs)) == (96, 48, 48)
    assert compare(ours, theirs, {"random": "mine"}).identical
    with pytest.raises(NatalError, match="no run of theirs has strategy 'randm'"):
        compare(ours, theirs, {"randm": "mine"})
    with pytest.raises(NatalError, match="no run of ours has strategy 'min'"):
        compare(ours, theirs, {"random": "min"})


def test_read_published_takes_a_file_or_a_directory(directory: Path, tmp_path: Path) -> None:
    assert read_published(directory) == read_published(reference_store.DATA)
    for content in ("{", "[]", '{"results": [{"task": "t"}]}', '{"results": 3}'):
        (tmp_path / "results.json").write_text(content)
        with pytest.raises(NatalError, match="published format"):
            read_published(tmp_path / "results.json")
    with pytest.raises(NatalError, match="No such file"):
        read_published(tmp_path / "nothing.json")


@pytest.mark.parametrize(("statement", "said"), [
    ("UPDATE training SET facts = json_remove(facts, '$.diagnosis')", "diagnosis"),
    ("UPDATE training SET facts = json_set(facts, '$.novel', 1)", "novel"),
    ("UPDATE training SET facts = 'x'", "Expecting value"),
    ("UPDATE manifest SET value = json_set(value, '$.width', 3) WHERE name = 'study'", "1 validation error"),
])  # fmt: skip
def test_a_store_of_another_version_is_refused_in_one_line(tmp_path: Path, statement: str, said: str) -> None:
    db = sqlite3.connect(reference_store.build(tmp_path) / "study.sqlite")
    with db:
        db.execute(statement)
    db.close()
    with pytest.raises(NatalError, match="natal cannot read it") as refusal:
        load(tmp_path)
    assert said in str(refusal.value)
    assert "\n" not in str(refusal.value)
