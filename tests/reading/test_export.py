"""What is exported says what the store says, in every form."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas
import pytest

import reference_store
from natal import NatalError, errors
from natal.reading import export
from natal.reading.results import Results, load, published
from natal.study import load_study


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    study = load_study(
        {**reference_store.reference_study().model_dump(mode="json"), "tasks": ["regression"], "sparsities": [0.0, 0.5],
         "claims": []}
    )  # fmt: skip
    outcomes = {r: o for r, o in reference_store.reference_outcomes().items() if r in study.runs()}
    return load(reference_store.build(tmp_path_factory.mktemp("export"), outcomes, study))


@pytest.mark.parametrize("form", ["csv", "parquet"])
def test_tables_hold_what_the_frames_hold(
    results: Results, tmp_path: Path, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export, "SOME", 4)  # in several parts
    runs, curves = export.write(results, [form], tmp_path)
    read = pandas.read_csv if form == "csv" else pandas.read_parquet
    frame = read(runs)
    assert list(frame.columns) == list(results.frame().columns)
    assert frame["test_metric"].tolist() == results.frame()["test_metric"].tolist()
    again, wanted = read(curves), results.curves_frame()
    assert list(again.columns) == list(wanted.columns)
    for name in ("task", "seed", "step", "train_loss", "val_metric"):
        assert again[name].tolist() == wanted[name].tolist(), name


def test_the_published_format_is_the_same_file(results: Results, tmp_path: Path) -> None:
    [path] = export.write(results, ["json"], tmp_path)
    assert json.loads(path.read_text("utf-8")) == published(results)


def test_an_event_file_a_run_has_its_curves(results: Results, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folders = export.write(results, ["tensorboard"], tmp_path)
    assert len(folders) == len(results.runs)
    assert folders[-1].relative_to(tmp_path) == Path("tensorboard/regression/mlp/structured/0.5/7")
    events = EventAccumulator(str(folders[-1]), {"scalars": 0})
    events.Reload()
    told, curve = events.Scalars("val_metric"), results.curves[-1]
    assert [e.step for e in told] == curve.step.tolist()
    assert np.allclose([e.value for e in told], curve.val_metric, rtol=1e-6)
    assert events.Scalars("end/test_metric")[0].value == pytest.approx(results.runs[-1].test_metric)


def test_what_is_missing_or_unknown_is_one_line(
    results: Results, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(NatalError, match="unknown format 'parket'; did you mean 'parquet'"):
        export.write(results, ["parket"], tmp_path)
    monkeypatch.setattr(errors, "_installed", lambda name: False)
    with pytest.raises(
        NatalError, match=r"natal export --parquet needs pyarrow, .* pip install 'natal\[parquet\]'"
    ):
        export.write(results, ["parquet"], tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(NatalError, match="name another directory with --out"):
        export.write(results, ["csv"], tmp_path / "file")


def test_every_run_has_an_event_file_of_its_own_below_its_folder(results: Results, tmp_path: Path) -> None:
    names, levels = ("a/b", "a-b", "a%2Fb", ".", ".."), (0.9, 0.9000001)
    runs = [replace(results.runs[0], strategy=name, sparsity=level) for name in names for level in levels]
    many = SimpleNamespace(runs=runs, curves=[results.curves[0]] * len(runs))
    folders = export._tensorboard(many, tmp_path)  # type: ignore[arg-type]
    files = {path.resolve() for path in tmp_path.rglob("events*")}
    assert len(files) == len(folders) == 10
    assert all(path.is_relative_to(tmp_path / "tensorboard/regression/mlp") for path in files)
