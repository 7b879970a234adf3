"""What is shown while a study runs names every run, whatever its network is called."""

from __future__ import annotations

import io
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console

import natal
import reference_store
from conftest import tiny
from natal.lab.watcher import Silent
from natal.progress import Note, View, line, shown
from natal.reading.results import Results
from natal.study import Run

RUN = Run("digits", "snip", 0.9, 7, "lenet-5")
OUTCOME = reference_store.reference_outcomes()[Run("modular", "random", 0.5, 7)]


def test_a_line_names_the_network_but_the_papers() -> None:
    trained = replace(OUTCOME, test_metric=0.25)
    assert line(3, 9, RUN, trained, "acc") == (
        "[3/9] task=digits, network=lenet-5, strategy=snip, sparsity=90%, seed=7 ... test_acc=0.2500"
    )
    assert line(3, 9, RUN._replace(network="mlp"), trained, "acc").startswith(
        "[3/9] task=digits, strategy=snip"
    )
    lost = replace(reference_store.diverged(OUTCOME, 7), steps_per_epoch=3)
    assert line(3, 9, RUN, lost, "acc").endswith("... diverged at epoch 2.33")


def test_the_live_view_shows_a_cell_once() -> None:
    view = View(Console(file=io.StringIO(), force_terminal=True, width=200))
    view.training([RUN, RUN._replace(seed=8), RUN._replace(network="mlp"), RUN._replace(sparsity=0.5)])
    view.live.get_renderable()
    assert view.now.plain == "training  digits lenet-5 snip 90%, digits snip 90%, digits lenet-5 snip 50%"


def test_a_notebook_has_one_line_that_is_rewritten(
    tiny_results: Results, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    seconds = iter([0.0, 0.1, 2.0, 2.1])
    plan = natal.plan(tiny(), tiny_results.directory)
    # of this module alone: other threads ask the time too
    monkeypatch.setattr("natal.progress.time", SimpleNamespace(monotonic=lambda: next(seconds)))
    note = Note(said.append)
    note.started(plan)
    assert said == ["tiny: 18 of 18 runs stored already; nothing to train."]
    note.before = 0
    note.finished(1, RUN, OUTCOME, "acc")  # too soon after the line before
    note.failed(RUN, "no memory")
    note.finished(9, RUN, OUTCOME, "acc")
    note.finished(18, RUN, OUTCOME, "acc")
    assert said[1:] == [
        "tiny: 9 of 18 runs, 1 failed, about 2 s left; the last was digits lenet-5 snip 90%",
        "tiny: 18 of 18 runs, 1 failed, done in 2 s; the last was digits lenet-5 snip 90%",
    ]


def test_python_code_is_followed_where_somebody_looks(
    tiny_results: Results,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Console, "is_terminal", False)
    with shown(None) as watcher:
        assert isinstance(watcher, Silent)
    shutil.copytree(tiny_results.directory, tmp_path / "results")
    natal.run(tiny(), tmp_path / "results", progress=True)
    assert capsys.readouterr().out == "18 of 18 runs stored already; nothing to train.\n"
    monkeypatch.setattr(Console, "is_terminal", True)
    with shown(None) as watcher:
        assert isinstance(watcher, View)
    with shown(False) as watcher:
        assert isinstance(watcher, Silent)
