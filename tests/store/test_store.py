"""The run store: what goes in comes out, and a file that is not whole or not ours is left as it is."""

from __future__ import annotations

import os
import shutil
import sqlite3
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from conftest import tiny
from natal import NatalError, Run, load_study
from natal.store import FILE, Outcome, Store
from natal.store.sqlite import APPLICATION

STUDY = load_study(tiny())
GRID = [(run, f"key-{i}") for i, run in enumerate(STUDY.runs())]
FINISHED = Outcome(
    key="key-0",
    status="finished",
    total_params=705,
    nonzero_params=33,
    prunable=672,
    kept=0,
    densities={"hidden.weight": 0.0, "output.weight": 0.0},
    epochs_trained=3,
    best_epoch=2,
    train_metric=0.1,
    val_metric=0.2,
    test_metric=1 / 3,
    final_loss=1e-300,
    constant=True,
    seconds=0.5,
    made_by="hand",
    deterministic=True,
    diagnosis={"findings": []},
    train_loss_curve=np.array([3.0, 2.0, 1 / 3]),
    val_metric_curve=np.array([-np.inf, 0.2, np.nan]),
)
DIVERGED = replace(
    FINISHED,
    key="key-1",
    status="diverged",
    train_metric=None,
    val_metric=None,
    test_metric=None,
    final_loss=None,
    train_loss_curve=np.array([np.nan]),
    val_metric_curve=np.array([np.nan]),
)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = Store.create(tmp_path / "results")
    store.declare(STUDY, GRID, {"threads": 1})
    return store


def test_what_is_stored_is_read_back_to_the_last_bit(store: Store) -> None:
    store.add([FINISHED, DIVERGED], elapsed_seconds=1.5)
    store.close()
    with Store.read(store.path.parent) as again:
        assert again.study() == STUDY
        assert again.grid() == GRID
        assert again.finished() == {"key-0", "key-1"}
        assert again.manifest() == {
            "study": STUDY.model_dump(mode="json"),
            "threads": 1,
            "elapsed_seconds": 1.5,
        }
        outcomes = again.outcomes()
    for wrote in (FINISHED, DIVERGED):
        read = outcomes[wrote.key]
        assert read.facts() == wrote.facts()
        assert (read.key, read.status) == (wrote.key, wrote.status)
        assert read.train_loss_curve.tobytes() == wrote.train_loss_curve.tobytes()
        assert read.val_metric_curve.tobytes() == wrote.val_metric_curve.tobytes()


def test_a_stored_training_is_never_replaced(store: Store) -> None:
    store.add([FINISHED])
    store.add([replace(FINISHED, test_metric=0.99)])
    assert store.outcomes()["key-0"].test_metric == 1 / 3


def test_trainings_outlive_the_study_that_made_them(store: Store) -> None:
    store.add([FINISHED, DIVERGED])
    store.declare(STUDY, GRID[1:2], {})
    assert store.finished() == {"key-0", "key-1"}
    assert set(store.outcomes()) == {"key-1"}
    assert "threads" in store.manifest()


def test_clear_forgets_everything(store: Store) -> None:
    store.add([FINISHED])
    store.clear()
    assert (store.finished(), store.grid(), store.manifest()) == (set(), [], {})
    with pytest.raises(NatalError, match="holds no study yet; `natal run --out"):
        store.study()


def test_a_failed_transaction_leaves_nothing_behind(store: Store) -> None:
    def broken() -> object:
        yield FINISHED
        raise RuntimeError("midway")

    with pytest.raises(RuntimeError, match="midway"):
        store.add(broken())  # type: ignore[arg-type]
    assert store.finished() == set()
    store.add([FINISHED])
    assert store.finished() == {"key-0"}


def test_a_new_store_is_whole_from_its_first_moment(tmp_path: Path) -> None:
    (tmp_path / "study.new").write_bytes(b"a draft that a killed command left behind")
    with Store.create(tmp_path) as store:
        assert store.finished() == set()
    assert [path.name for path in tmp_path.iterdir()] == [FILE]


def test_reading_where_nothing_is_names_the_cure(tmp_path: Path) -> None:
    with pytest.raises(NatalError, match=r"study.sqlite is missing; `natal run --out .*nothing` makes one"):
        Store.read(tmp_path / "nothing")
    assert list(tmp_path.iterdir()) == []


def test_a_reader_cannot_write(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    store.add([FINISHED])
    store.close()
    monkeypatch.setattr(os, "access", lambda *_: False)  # as for someone else's results
    with Store.read(store.path.parent) as reader:
        assert reader.finished() == {"key-0"}
        with pytest.raises(
            NatalError, match="readonly database: it cannot be written; check its permissions"
        ):
            reader.add([DIVERGED])


# -- files that are not whole, not ours or not writable --------------------------------------------------


def _foreign(path: Path) -> None:
    with sqlite3.connect(path) as db:
        db.execute("CREATE TABLE training (mine TEXT)")
    db.close()


def _newer(path: Path) -> None:
    with sqlite3.connect(path) as db:
        db.execute(f"PRAGMA application_id = {APPLICATION}")
        db.execute("PRAGMA user_version = 99")
    db.close()


def _cut(bytes_left: int) -> Callable[[Path], None]:
    def spoil(path: Path) -> None:
        with Store.create(path.parent) as store:
            store.declare(STUDY, GRID, {})
            store.add([replace(FINISHED, key=f"key-{i}") for i in range(18)])
        assert path.stat().st_size > bytes_left
        os.truncate(path, bytes_left)

    return spoil


SPOILT: dict[str, tuple[Callable[[Path], object], str]] = {
    "text": (lambda path: path.write_text("my thesis\n" * 100), "file is not a database"),
    "empty": (
        lambda path: path.write_bytes(b""),
        "is not a natal run store; name another directory with --out",
    ),
    "foreign": (_foreign, "is not a natal run store; name another directory with --out"),
    "newer": (_newer, "has store format 99, this natal reads 1; use another --out"),
    "without-end": (_cut(20480), "name another directory with --out"),
    "within-a-page": (_cut(5000), "name another directory with --out"),
    "within-the-header": (_cut(50), "name another directory with --out"),
}


@pytest.mark.parametrize("kind", SPOILT)
@pytest.mark.parametrize("opened", [Store.create, Store.read])
def test_a_damaged_or_foreign_file_is_refused_and_left_as_it_is(
    tmp_path: Path, kind: str, opened: Callable[[Path], Store]
) -> None:
    spoil, words = SPOILT[kind]
    path = tmp_path / FILE
    spoil(path)
    before = path.read_bytes()
    with pytest.raises(NatalError) as refusal:
        opened(tmp_path)
    assert words in str(refusal.value)
    assert "\n" not in str(refusal.value)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == [FILE]


def test_every_truncation_is_noticed(tmp_path: Path) -> None:
    path, whole = tmp_path / FILE, tmp_path / "whole"
    with Store.create(tmp_path) as store:
        store.add([FINISHED])
    shutil.copy(path, whole)
    for bytes_left in range(0, whole.stat().st_size, 1000):
        shutil.copy(whole, path)
        os.truncate(path, bytes_left)
        with pytest.raises(NatalError):
            Store.create(tmp_path)


def test_a_full_disk_is_one_line_and_loses_nothing(store: Store) -> None:
    store.add([FINISHED])
    pages = store._db.execute("PRAGMA page_count").fetchone()[0]
    store._db.execute(f"PRAGMA max_page_count = {pages}")
    large = [replace(FINISHED, key=f"key-{i}", train_loss_curve=np.zeros(5000)) for i in range(1, 5)]
    with pytest.raises(
        NatalError, match="disk is full: no space is left, or the disk fails; free some and run the same"
    ):
        store.add(large)
    assert store.finished() == {"key-0"}
    store._db.execute("PRAGMA max_page_count = 1000000")
    store.add(large)
    assert store.finished() == {f"key-{i}" for i in range(5)}


def test_a_directory_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    for place in (tmp_path / "file", tmp_path / "file" / "below", Path("/proc/natal")):
        with pytest.raises(NatalError, match="name another directory with --out"):
            Store.create(place)
    assert (tmp_path / "file").read_text() == "mine"


def test_a_store_that_another_program_holds_says_so(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    holder = sqlite3.connect(store.path, isolation_level=None)
    holder.execute("BEGIN EXCLUSIVE")
    store._db.execute("PRAGMA busy_timeout = 1")
    with pytest.raises(
        NatalError, match="locked: another program has it open; close that and run the same command"
    ):
        store.add([FINISHED])
    holder.close()
    store.add([FINISHED])
    assert store.finished() == {"key-0"}


def test_the_grid_keeps_the_runs_types(store: Store) -> None:
    run, key = store.grid()[0]
    assert run == Run("regression", "magnitude", 0.0, 1)
    assert (type(run), type(run.sparsity), type(run.seed), type(key)) == (Run, float, int, str)
