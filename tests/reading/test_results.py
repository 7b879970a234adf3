"""Reading a store back, the published format, and comparing two programs."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pytest

import reference_store
from natal.errors import NatalError
from natal.reading.results import compare, load, published, published_objects, read_published
from natal.store import Store
from natal.study import Run, Setting, load_study


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return reference_store.build(tmp_path_factory.mktemp("results"))


@pytest.fixture(scope="module")
def results(directory: Path) -> Any:
    return load(directory)


def test_a_row_per_grid_row_in_the_studys_order(results: Any) -> None:
    assert [r.run for r in results.runs] == results.study.runs()
    assert results.missing == []
    assert len({r.key for r in results.runs}) == 132
    assert len(results.curves) == 144
    assert all(
        len(c.val_metric) == r.epochs_trained for c, r in zip(results.curves, results.runs, strict=True)
    )


def test_realised_sparsity_counts_prunable_weights_only(results: Any) -> None:
    row = next(
        r for r in results.runs if (r.task, r.strategy, r.sparsity) == ("regression", "structured", 0.7)
    )
    # int(.7 * 128) = 89 of 128 neurons are gone, with 21 weights each
    assert row.realised_sparsity == pytest.approx(89 / 128)
    assert (row.kept, row.prunable) == (39 * 21, 128 * 21)


def test_published_objects_are_the_published_ones(results: Any) -> None:
    ours, theirs = published_objects(results), reference_store.reference_objects()
    assert ours == theirs
    assert [list(o) for o in ours] == [list(o) for o in theirs]  # fields in the same order


def test_metadata_has_the_published_fields(results: Any) -> None:
    theirs = json.loads(reference_store.DATA.read_text("utf-8"))["metadata"]
    ours = published(results)["metadata"]
    assert {name: ours[name] for name in theirs} == theirs
    assert set(ours) - set(theirs) == {"platform", "natal"}
    assert ours["natal"]["engine"] == "torch"
    assert ours["natal"]["missing_runs"] == 0


def test_a_study_without_the_papers_tasks_has_no_constants_for_them(tmp_path: Path) -> None:
    study = load_study(reference_store.reference_study(), ['tasks=["regression"]'])
    metadata = published(load(reference_store.build(tmp_path, study=study)))["metadata"]
    assert (metadata["modular_mod"], metadata["regression_n"], metadata["regression_d"]) == (None, 200, 20)


def test_an_unfinished_store_names_what_is_missing(tmp_path: Path) -> None:
    outcomes = dict(list(reference_store.reference_outcomes().items())[:100])
    results = load(reference_store.build(tmp_path, outcomes))
    # rows 0 to 99 and, beyond them, the dense rows that share a training with an earlier one
    assert len(results.runs) + len(results.missing) == 144
    assert Run("regression", "structured", 0.95, 7) in results.missing
    assert not {r.key for r in results.runs} & {"", None}


def test_a_diverged_run_has_null_metrics(tmp_path: Path) -> None:
    outcomes = reference_store.reference_outcomes()
    run = Run("modular", "structured", 0.5, 7)
    outcomes[run] = reference_store.diverged(outcomes[run])
    found = next(o for o in published_objects(load(reference_store.build(tmp_path, outcomes)))
                 if (o["task"], o["strategy"], o["sparsity"], o["seed"]) == run[:4])  # fmt: skip
    assert [found[f"{part}_acc"] for part in ("train", "val", "test")] == [None] * 3
    assert found["train_loss"] is None
    json.dumps(found, allow_nan=False)


def test_a_metric_that_is_not_finite_reads_as_none(tmp_path: Path) -> None:
    outcomes = reference_store.reference_outcomes()
    run = Run("regression", "random", 0.5, 7)
    outcomes[run] = replace(outcomes[run], test_metric=math.nan, val_metric=-math.inf)
    row = next(r for r in load(reference_store.build(tmp_path, outcomes)).runs
               if r.run == run)  # fmt: skip
    assert (row.test_metric, row.val_metric) == (None, None)


def test_no_store_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(NatalError, match=r"study\.sqlite is missing"):
        load(tmp_path)


def test_frames(results: Any) -> None:
    frame = results.frame()
    assert isinstance(frame, pandas.DataFrame)
    assert frame.shape[0] == 144
    assert "density_hidden" in frame
    assert {"effective_sparsity", "collapses_at", "severity"} <= set(frame)
    assert "diagnosis" not in frame
    assert frame["severity"].eq("fatal").sum() == 18
    curves = results.curves_frame()
    assert len(curves) == sum(r.epochs_trained for r in results.runs)
    assert list(curves.columns) == [
        *("task", "strategy", "sparsity", "seed", "network", "step", "epoch", "train_loss", "val_loss"),
        *("val_metric", "test_metric"),
    ]
    assert curves["test_metric"].isna().all()  # this study does not measure it as it trains
    assert list(frame.columns)[:5] == ["task", "strategy", "sparsity", "seed", "network"]
    assert set(frame["network"]) == {"mlp"}


def test_a_row_carries_its_diagnosis(results: Any) -> None:
    rows = {(r.task, r.strategy, r.sparsity, r.seed): r for r in results.runs}
    dense = rows["regression", "magnitude", 0.0, 42]
    assert (dense.diagnosis, dense.effective_sparsity, dense.severity) == ({}, None, None)
    dead = rows["regression", "magnitude", 0.5, 42]
    assert (dead.effective_sparsity, dead.collapses_at, dead.severity) == (1.0, 0.424, "fatal")
    assert [layer["name"] for layer in dead.diagnosis["layers"]] == ["hidden.weight", "output.weight"]
    narrow = rows["regression", "structured", 0.5, 42]
    assert (narrow.effective_sparsity, narrow.collapses_at, narrow.severity) == (
        0.5,
        None,
        "warning",
    )


# -- comparison --------------------------------------------------------------------------------------------


def test_equal_programs_are_identical_to_the_last_bit(results: Any) -> None:
    comparison = compare(published_objects(results), reference_store.reference_objects())
    assert comparison.identical
    assert comparison.matched == 144
    assert comparison.lines()[-1] == "all 144 matched runs identical to the last bit"


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
    ("UPDATE manifest SET value = json_remove(value, '$.regression') WHERE name = 'tasks'", "regression"),
    ("UPDATE manifest SET value = json_set(value, '$.width', 3) WHERE name = 'study'", "unknown key 'width'"),
])  # fmt: skip
def test_a_store_of_another_version_is_refused_in_one_line(tmp_path: Path, statement: str, said: str) -> None:
    reference_store.tamper(reference_store.build(tmp_path), statement)
    with pytest.raises(NatalError, match="natal cannot read it") as refusal:
        _ = load(tmp_path).runs
    assert said in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_rows_of_the_grid_that_are_lost_are_damage(tmp_path: Path) -> None:
    reference_store.tamper(reference_store.build(tmp_path), "DELETE FROM grid WHERE position >= 100")
    with pytest.raises(NatalError, match="is damaged: of 144 rows of the grid 100 are there"):
        _ = load(tmp_path).missing


# -- rows, curves and networks -------------------------------------------------------------------------------


def test_a_row_is_read_by_attribute_or_by_name(results: Any) -> None:
    row = results.runs[0]
    assert row.test_metric == row["test_metric"]
    assert (row.run, row.setting) == (Run("modular", "magnitude", 0.0, 42), Setting("modular", "mlp"))
    for wrong in ("accuracy", "setting", "__class__"):
        with pytest.raises(KeyError):
            row[wrong]
    assert "diagnosis" not in repr(row)


def test_a_notebook_shows_results_in_a_line(results: Any) -> None:
    assert repr(results) == f"<Results of study 'paper' in {str(results.directory)!r}: 144 of 144 runs>"


def test_curves_are_read_when_asked_for_and_belong_to_the_runs(tmp_path: Path) -> None:
    directory = reference_store.build(tmp_path)
    results = load(directory)
    assert results.curves[3].step.tolist() == list(range(1, results.runs[3].steps_trained + 1))
    assert results.curves is results.curves
    again = load(directory)
    assert len(again.runs) == len(results.runs)
    reference_store.tamper(directory, "DELETE FROM training", sealed=False)
    with pytest.raises(NatalError, match="was written to since it was read; read it again"):
        _ = again.curves[3]


def test_epochs_of_small_batches_are_steps_by_the_epoch(tmp_path: Path) -> None:
    training = {"length": "100it", "batch": 32, "evaluate": "30it", "patience": "none"}
    study = load_study({**reference_store.reference_study().model_dump(mode="json"), "tasks": ["regression"],
                        "sparsities": [0.0], "seeds": [7], "training": training, "claims": []})  # fmt: skip
    outcome = reference_store.reference_outcomes()[Run("regression", "random", 0.0, 7)]
    curve = np.array([30.0, 60, 90, 100])
    outcome = replace(
        outcome, steps_per_epoch=5, steps_planned=100, steps_trained=100, best_step=60,
        curves={"step": curve, "train_loss": curve, "val_loss": curve, "val_metric": np.array([0.1, 0.9, 0.5, 0.5])},
    )  # fmt: skip
    results = load(reference_store.build(tmp_path, dict.fromkeys(study.runs(), outcome), study))
    row, curves = results.runs[0], results.curves[0]
    assert (row.epochs_trained, row.best_epoch, row.evaluations, row.waited) == (20, 12, 4, 2)
    assert curves.epoch.tolist() == [6, 12, 18, 20]
    assert results.networks[row.setting].epochs == 20
    assert results.curves_frame()["epoch"].tolist()[:4] == [6, 12, 18, 20]


def test_a_study_of_natal_0_2_reads_as_ever(tmp_path: Path) -> None:
    results = load(reference_store.old(tmp_path / "old"))
    [row] = results.runs
    assert (row.steps_trained, row.steps_planned, row.epochs_trained, row.best_epoch) == (3, 12, 3, 2)
    assert (row.learning_rate, row.network, row.evaluations, row.waited) == (0.001, "mlp", 3, 1)
    assert row.made_by == "compiled engine (revision 1) on cpu, natal 0.2.0, torch 2.13.0+cpu, numpy 2.4.6"
    assert results.missing == [Run("regression", "snip", 0.5, 2)]
    facts = results.networks[row.setting]
    assert (facts.parameters, facts.sizes, facts.steps) == (705, {"hidden": 640, "output": 32}, 12)
    assert results.curves[0].val_loss.tolist() == []
    assert published_objects(results)[0]["epochs_trained"] == 3


@pytest.fixture(scope="module")
def networks(tmp_path_factory: pytest.TempPathFactory) -> Any:
    study, outcomes = reference_store.two_networks()
    return load(reference_store.build(tmp_path_factory.mktemp("networks"), outcomes, study))


def test_files_of_several_networks_name_them(networks: Any, results: Any) -> None:
    assert [o["network"] for o in published_objects(networks)].count("narrow") == 144
    assert "network" not in published_objects(results)[0]
    assert networks.words(Setting("modular", "narrow")) == "modular / narrow"
    assert results.words(Setting("modular", "mlp")) == "modular"
    assert networks.frame()["network"].value_counts().to_dict() == {"wide": 144, "narrow": 144}


def test_runs_match_on_their_network(networks: Any, results: Any) -> None:
    assert compare(published_objects(networks), published_objects(networks)).identical
    apart = compare(
        published_objects(networks), published_objects(results)
    )  # published files know the paper's alone
    assert (apart.matched, len(apart.only_ours), len(apart.only_theirs)) == (0, 288, 144)
    paper = [{**o, "network": "mlp"} for o in published_objects(networks) if o["network"] == "wide"]
    assert compare(paper, published_objects(results)).identical


def test_a_network_that_is_not_the_papers_is_named_even_alone(tmp_path: Path) -> None:
    study, outcomes = reference_store.two_networks()
    base = study.model_dump(mode="json")
    alone = load_study({**base, "networks": base["networks"][:1], "tasks": ["regression"]})
    results = load(reference_store.build(tmp_path, outcomes, alone))
    assert {o["network"] for o in published_objects(results)} == {"wide"}
    assert results.words(Setting("regression", "wide")) == "regression"


# -- comparison of files that are not whole --------------------------------------------------------------------


def test_a_field_that_some_runs_lack_differs_there(results: Any) -> None:
    ours, theirs = published_objects(results), reference_store.reference_objects()
    for run in theirs[1:]:
        del run["train_loss"]
    loss = compare(ours, theirs).fields["train_loss"]
    assert (loss.differing, loss.largest) == (143, math.inf)
    assert compare(theirs, ours).fields["train_loss"].differing == 143
    # a field that the other side never has is its own affair
    assert compare(ours, [{**run, "novel": 1} for run in reference_store.reference_objects()]).identical


def test_a_field_that_neither_run_has_is_no_difference() -> None:
    one = {"task": "t", "strategy": "s", "sparsity": 0.5, "seed": 1, "test_acc": 0.5}
    other = {"task": "u", "strategy": "s", "sparsity": 0.5, "seed": 1, "test_r2": 0.5}
    comparison = compare([one, other], [dict(one), dict(other)])
    assert comparison.identical
    assert list(comparison.fields) == ["test_acc", "test_r2"]


def test_runs_that_a_file_has_twice_are_named() -> None:
    one = {"task": "t", "strategy": "s", "sparsity": 0.5, "seed": 1, "test_acc": 0.5}
    comparison = compare([one], [{**one, "test_acc": 0.1}, dict(one)])
    assert comparison.twice_theirs == [Run("t", "s", 0.5, 1)]
    assert not comparison.identical
    assert (
        "1 run more than once in theirs, the first task=t, strategy=s, sparsity=50%, seed=1"
        in comparison.lines()
    )
    assert compare([one, one], [one]).twice_ours == [Run("t", "s", 0.5, 1)]
    # so is a name that falls together with another
    renamed = compare([one], [one, {**one, "strategy": "r"}], {"r": "s"})
    assert renamed.twice_theirs == [Run("t", "s", 0.5, 1)]


@pytest.mark.parametrize("change", [
    {"seed": math.nan}, {"seed": [1]}, {"seed": "1"}, {"seed": True}, {"sparsity": math.inf}, {"sparsity": None},
    {"task": 3}, {"strategy": "\x1b[31mred"}, {"strategy": "two\nlines"}, {"network": ["mlp"]}, {"a\x00b": 1},
])  # fmt: skip
def test_a_file_whose_runs_make_no_sense_is_one_line(tmp_path: Path, change: dict[str, Any]) -> None:
    run = {"task": "t", "strategy": "s", "sparsity": 0.5, "seed": 1, **change}
    (tmp_path / "results.json").write_text(json.dumps({"results": [run]}))
    with pytest.raises(NatalError, match="not in the published format"):
        read_published(tmp_path)


def test_a_file_nested_beyond_reason_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "results.json").write_text('{"results": ' + "[" * 200_000)
    with pytest.raises(NatalError, match="not in the published format"):
        read_published(tmp_path)


# -- searched learning rates -----------------------------------------------------------------------------------


def searching(directory: Path, finished: int = 4, chosen: float = 1.0, **manifest: Any) -> Path:
    """A study of two seeds and one cell that tries two rates; of its four trainings, the first so many are done."""
    base = reference_store.reference_study().model_dump(mode="json")
    training = {"epochs": 500, "learning_rate": {"search": [0.1, 1.0]}}
    study = load_study({**base, "tasks": ["regression"], "strategies": [base["strategies"][1]],
                        "sparsities": [0.5], "seeds": [42, 7], "training": training, "claims": []})  # fmt: skip
    tried = {i: {rate: f"{rate}-{seed}" for rate in (0.1, 1.0)} for i, seed in enumerate(study.seeds)}
    outcome = reference_store.reference_outcomes()[Run("regression", "random", 0.5, 7)]
    values = {"0.1-42": 0.5, "1.0-42": 0.6, "0.1-7": 0.5, "1.0-7": 0.6}
    outcomes = [
        replace(outcome, key=key, val_metric=value, learning_rate=float(key.partition("-")[0]))
        for key, value in values.items()
    ]
    grid = [(run, f"{chosen}-{run.seed}") for run in study.runs()]
    about = {
        **reference_store.MANIFEST,
        "study_hash": study.digest,
        "networks": reference_store.networks(study, {"regression": reference_store.TASKS["regression"]}),
        "tasks": {"regression": {**reference_store.TASKS["regression"], "learning_rate": None}},
    }
    with Store.create(directory) as store:
        store.declare(study, grid, {**about, **manifest}, tried)
        store.add(outcomes[:finished])
    return directory


def test_a_search_shows_the_rates_that_validation_rows_choose(tmp_path: Path) -> None:
    results = load(searching(tmp_path))
    assert [(row.seed, row.learning_rate, row.key) for row in results.runs] == [
        (42, 1.0, "1.0-42"), (7, 1.0, "1.0-7"),
    ]  # fmt: skip
    assert [(a.row.seed, a.row.learning_rate, a.value) for a in results.tried] == [
        (42, 0.1, 0.5), (42, 1.0, 0.6), (7, 0.1, 0.5), (7, 1.0, 0.6),
    ]  # fmt: skip
    assert len(results.curves) == 2


def test_a_search_that_is_not_over_shows_no_rate(tmp_path: Path) -> None:
    # a store shows the first rate until the search is over
    results = load(searching(tmp_path, finished=3, chosen=0.1, finished_at=None))
    assert results.runs == ()
    assert len(results.tried) == 3
    assert [run.seed for run in results.missing] == [42, 7]
