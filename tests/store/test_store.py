"""The run store: what goes in comes out, and a file that is not whole or not ours is left as it is."""

from __future__ import annotations

import errno
import math
import os
import pickle
import shutil
import sqlite3
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from conftest import tiny
from natal import NatalError, Run, load_study
from natal.lab.plan import writable
from natal.store import FILE, Failure, Outcome, Store, chosen, mapping, sqlite
from natal.store.migrations import MIGRATIONS, one_to_two
from natal.store.sqlite import APPLICATION, FORMAT
from natal.store.training import COLUMNS, Written, columns, written
from natal.study import Maker
from reference_store import FACTS_1, old, tamper

STUDY = load_study(tiny())
GRID = [(run, f"key-{i}") for i, run in enumerate(STUDY.runs())]
MAKER = Maker("torch", 1, "cpu", "2.13.0", "2.4.6", "0.3.0")
FINISHED = Outcome(
    key="key-0",
    status="finished",
    total_params=705,
    nonzero_params=33,
    prunable=672,
    kept=0,
    densities={"hidden.weight": 0.0, "output.weight": 0.0},
    steps_per_epoch=2,
    steps_planned=24,
    steps_trained=6,
    best_step=4,
    learning_rate=0.02,
    train_metric=0.1,
    val_metric=0.2,
    test_metric=1 / 3,
    final_loss=1e-300,
    constant=True,
    seconds=0.5,
    made_by=MAKER,
    deterministic=True,
    diagnosis={"findings": []},
    curves={
        "step": np.array([2.0, 4.0, 6.0]),
        "train_loss": np.array([3.0, 2.0, 1 / 3]),
        "val_loss": np.array([1e300, 1.0, 0.5]),
        "val_metric": np.array([-np.inf, 0.2, np.nan]),
    },
)
DIVERGED = replace(
    FINISHED,
    key="key-1",
    status="diverged",
    train_metric=None,
    val_metric=None,
    test_metric=None,
    final_loss=None,
    curves={"step": np.array([2.0]), "train_loss": np.array([np.nan]), "val_metric": np.array([np.nan])},
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
        outcomes = {o.key: o for o in again.outcomes()}
    for wrote in (FINISHED, DIVERGED):
        read = outcomes[wrote.key]
        assert read.facts() == wrote.facts()
        assert (read.key, read.status) == (wrote.key, wrote.status)
        assert read.made_by == wrote.made_by
        assert {n: c.tobytes() for n, c in read.curves.items()} == {
            n: c.tobytes() for n, c in wrote.curves.items()
        }


@pytest.mark.parametrize("one", [FINISHED, DIVERGED], ids=lambda one: one.status)
def test_what_comes_with_its_columns_is_stored_as_it_would_be_without(one: Outcome, tmp_path: Path) -> None:
    one = replace(
        one, diagnosis={"findings": [["note", "é"]], "effective_sparsity": 0.1}, proofs={"held": True}
    )
    came: Written = pickle.loads(pickle.dumps(written(one)))
    assert came.columns == columns(one.key, one.status, one.facts(), one.curves)
    assert [dict(mapping) for mapping in (came.diagnosis, came.proofs)] == [one.diagnosis, one.proofs]
    other = replace(came, key="other", kept=7, proofs={**came.proofs, "held": False})
    assert other.columns is None
    made = [one, replace(one, key="other", kept=7, proofs={"held": False})]
    for name, those in (("came", [came, other]), ("made", made)):
        with Store.create(tmp_path / name) as store:
            store.add(those)
    queries = (f"SELECT {', '.join(COLUMNS)} FROM training", "SELECT * FROM detail", "SELECT * FROM curve")
    for query in queries:  # all but when each was stored
        stored = [
            sqlite3.connect(tmp_path / name / FILE).execute(query).fetchall() for name in ("came", "made")
        ]
        assert stored[0] == stored[1]
        assert len(stored[0]) == 2


def test_a_stored_training_is_never_replaced(store: Store) -> None:
    store.add([FINISHED])
    store.add([replace(FINISHED, test_metric=0.99)])
    assert [o.test_metric for o in store.outcomes()] == [1 / 3]


def test_trainings_outlive_the_study_that_made_them(store: Store) -> None:
    store.add([FINISHED, DIVERGED])
    store.declare(STUDY, GRID[1:2], {})
    assert store.finished() == {"key-0", "key-1"}
    assert [o.key for o in store.outcomes()] == ["key-1"]
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
    (tmp_path / f".{FILE}.new").write_bytes(b"a draft that a killed command left behind")
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


def test_epochs_are_steps_by_the_epoch() -> None:
    assert (FINISHED.epochs_trained, FINISHED.best_epoch) == (3, 2)
    assert type(FINISHED.epochs_trained) is int  # as the published files write them
    assert replace(FINISHED, steps_trained=5).epochs_trained == 2.5


def test_curves_are_read_when_asked_for(store: Store) -> None:
    store.add([FINISHED])
    assert store.curves(["key-0", "other"])["key-0"]["train_loss"].tolist() == [3.0, 2.0, 1 / 3]
    assert store.curves(["other"]) == {}


def test_every_maker_is_counted_whatever_study_it_worked_for(store: Store) -> None:
    other = replace(MAKER, revision=2)
    store.add([FINISHED, DIVERGED, replace(FINISHED, key="elsewhere", made_by=other)])
    assert store.makers() == {MAKER: 2, other: 1}


# -- learning rates ------------------------------------------------------------------------------------------


def test_what_a_row_tried_is_kept_beside_what_it_shows(store: Store) -> None:
    tried = {0: {0.1: "key-0", 1.0: "other"}}
    store.declare(STUDY, GRID, {}, tried)
    store.add([FINISHED])
    assert store.complete() == (0, 18)
    store.add([replace(FINISHED, key="other")])
    assert store.tried() == tried
    assert {o.key for o in store.outcomes()} == {"key-0", "other"}
    assert store.complete() == (1, 18)
    store.choose({0: "other"})
    assert (store.grid()[0][1], store.grid()[1][1]) == ("other", "key-1")
    assert store.tried() == tried
    store.declare(STUDY, GRID, {})
    assert store.tried() == {}


def test_a_level_takes_the_rate_with_the_best_mean_over_its_seeds() -> None:
    runs = [Run("t", "a", 0.5, seed) for seed in range(2)]
    tried = {seed: {0.1: f"low-{seed}", 1.0: f"high-{seed}"} for seed in range(2)}
    values = {"low-0": 0.5, "low-1": 0.6, "high-0": 0.9, "high-1": 0.1}  # means of 0.55 and 0.5
    low = {0: "low-0", 1: "low-1"}
    assert chosen(runs, tried, values) == low
    assert chosen(runs, tried, {**values, "high-1": 0.2}) == low  # equals: the first of them
    assert chosen(runs, tried, {**values, "high-1": 0.3}) == {0: "high-0", 1: "high-1"}
    assert chosen(runs, tried, {**values, "high-1": 0.3, "high-0": -math.inf}) == low  # it diverged
    del values["low-0"]
    assert chosen(runs, tried, values) == {}  # the search is not over


def test_a_rate_can_be_chosen_by_validation_loss(store: Store) -> None:
    store.declare(STUDY, GRID, {}, {0: {0.1: "key-0", 1.0: "key-1"}})
    store.add([FINISHED, replace(FINISHED, key="key-1", best_step=6), DIVERGED])
    assert store.deciding("val-loss") == {"key-0": -1.0, "key-1": -0.5}  # at the best step
    assert store.deciding("val-metric") == {"key-0": 0.2, "key-1": 0.2}
    store.clear()
    store.declare(STUDY, GRID, {}, {0: {1.0: "key-1"}})
    store.add([DIVERGED])
    assert store.deciding("val-loss") == {"key-1": -math.inf}


# -- bits that flip, readers that stay, files that are moved -----------------------------------------------------


def _everything(directory: Path) -> object:
    with Store.read(directory) as store:
        return (
            store.grid(),
            store.manifest(),
            store.tried(),
            [
                (
                    o.key,
                    o.status,
                    o.made_by,
                    o.facts(),
                    {name: line.tobytes() for name, line in o.curves.items()},
                )
                for o in store.outcomes(sorted(store.finished()))
            ],
        )


def test_a_flipped_bit_changes_nothing_unseen(tmp_path: Path) -> None:
    source = tmp_path / "whole"
    with Store.create(source) as store:
        store.declare(STUDY, GRID, {"threads": 1})
        store.add([replace(o, key=f"key-{i}") for i, o in enumerate([FINISHED, DIVERGED, *[FINISHED] * 16])])
    whole, before = (source / FILE).read_bytes(), _everything(source)
    where = np.random.default_rng(0).choice(8 * len(whole), 150, replace=False)
    seen = 0
    for bit in where.tolist():
        spoilt = bytearray(whole)
        spoilt[bit // 8] ^= 1 << bit % 8
        (tmp_path / FILE).write_bytes(spoilt)
        try:
            read = _everything(tmp_path)
        except NatalError:
            seen += 1
        else:
            assert read == before
    assert seen > 30  # most of a small file is empty


@pytest.mark.parametrize("statement", [
    "UPDATE training SET test_metric = 0.5 WHERE key = 'key-0'",
    "UPDATE training SET status = 'diverged' WHERE key = 'key-0'",
    "UPDATE maker SET made_by = replace(made_by, '2.13', '2.12')",
    "UPDATE detail SET proofs = '{\"held\": false}'",
    "UPDATE curve SET numbers = zeroblob(length(numbers))",
    "UPDATE curve SET lines = replace(lines, 'val_loss', 'val_less')",
    "DELETE FROM curve",
    "DELETE FROM detail",
])  # fmt: skip
def test_whoever_reads_what_was_changed_says_so(store: Store, statement: str) -> None:
    store.add([FINISHED])
    assert store.damage() == []
    store._db.execute(statement)
    [line] = store.damage()
    assert "is not what was written; restore the file, or run the study with --fresh" in line
    with pytest.raises(NatalError, match="is not what was written"):
        list(store.outcomes())


@pytest.mark.parametrize("statement", [
    "UPDATE training SET prunable = 0", "UPDATE training SET kept = 'many'", "UPDATE training SET densities = '['",
    "UPDATE detail SET diagnosis = '[1]'", "UPDATE curve SET lines = '{}'", "UPDATE maker SET made_by = '[]'",
    "UPDATE training SET status = 'fine'", "UPDATE manifest SET value = '[' WHERE name = 'study'",
    "UPDATE detail SET proofs = '" + "[" * 100_000 + "'",
])  # fmt: skip
def test_what_natal_never_wrote_is_one_line_in_every_reader(store: Store, statement: str) -> None:
    store.add([FINISHED])
    store.close()
    tamper(store.path.parent, statement)
    with Store.read(store.path.parent) as again:
        readers: list[Callable[[], object]] = [
            again.statuses, again.makers, again.manifest, again.table, again.finished, again.study,
            lambda: list(again.outcomes()), lambda: again.curves(["key-0"]),
            lambda: [mapping(again.path, text) for text in again.details(["key-0"])["key-0"]],
        ]  # fmt: skip
        refusals = again.damage()
        for read in readers:
            try:
                read()
            except NatalError as refusal:
                refusals.append(str(refusal))
    assert refusals
    assert all("\n" not in refusal for refusal in refusals)


def test_a_reader_never_stops_the_writer(store: Store) -> None:
    store.add([FINISHED])
    reader = sqlite3.connect(store.path, isolation_level=None)
    reader.execute("BEGIN")
    assert reader.execute("SELECT COUNT(*) FROM training").fetchone() == (1,)
    store._db.execute("PRAGMA busy_timeout = 0")
    store.add([DIVERGED])  # at once, though the reader goes on reading what was there when it began
    assert reader.execute("SELECT COUNT(*) FROM training").fetchone() == (1,)
    reader.close()
    assert store.finished() == {"key-0", "key-1"}


def test_where_no_memory_is_shared_the_writer_waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite, "shares_memory", lambda path: False)
    with Store.create(tmp_path) as store:
        assert store._db.execute("PRAGMA journal_mode").fetchone() == ("delete",)
        assert store._db.execute("PRAGMA busy_timeout").fetchone() == (600_000,)
        store.add([FINISHED])
    with Store.read(tmp_path) as reader:
        assert reader._db.execute("PRAGMA busy_timeout").fetchone() == (600_000,)


def test_file_systems_that_hosts_share_are_told_apart(tmp_path: Path) -> None:
    mounts = f"/dev/vda / ext4 rw 0 0\nhost:/home {tmp_path}/my\\040home nfs4 rw 0 0\ntmpfs /dev/shm tmpfs rw 0 0\n"
    assert sqlite.shares_memory(tmp_path / FILE, mounts)
    assert not sqlite.shares_memory(tmp_path / "my home" / "results" / FILE, mounts)
    assert not sqlite.shares_memory(Path("/big/x"), "none / ext4 rw 0 0\nx /big fuse.sshfs rw 0 0\n")
    assert sqlite.shares_memory(Path("/big/x"), "")


def test_what_a_killed_writer_left_is_read_where_nothing_can_be_written(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.add([FINISHED])
    copy = tmp_path / "killed"
    shutil.copytree(store.path.parent, copy)  # in the midst of it: with what was written ahead
    assert {path.name for path in copy.iterdir()} > {FILE}
    with Store.read(copy) as reader:
        assert reader.finished() == {"key-0"}
    (copy / f"{FILE}-wal").unlink(missing_ok=True)
    monkeypatch.setattr(os, "access", lambda *_: False)
    with Store.read(copy) as reader:
        reader.finished()
    monkeypatch.undo()
    with Store.create(copy) as writer:
        writer.add([DIVERGED])
    assert [path.name for path in copy.iterdir()] == [FILE]


# -- stores of earlier versions --------------------------------------------------------------------------------


def _is_whole(store: Store) -> None:
    assert store.grid() == [(Run("regression", "snip", 0.5, seed, "mlp"), f"k{seed}") for seed in (1, 2)]
    assert store.study().network_names == ("mlp",)
    assert store.manifest()["engine"] == "batched"
    maker = Maker("compiled", 1, "cpu", "2.13.0+cpu", "2.4.6", "0.2.0")
    assert store.makers() == {maker: 1}
    [outcome] = store.outcomes()
    kept = {
        name: FACTS_1[name]
        for name in ("kept", "densities", "test_metric", "final_loss", "constant", "diagnosis")
    }
    assert {name: outcome.facts()[name] for name in kept} == kept
    assert (outcome.key, outcome.status, outcome.made_by) == ("k1", "finished", maker)
    assert (outcome.steps_per_epoch, outcome.steps_trained, outcome.best_step) == (1, 3, 2)
    assert (outcome.steps_planned, outcome.learning_rate) == (None, None)  # natal 0.2 did not write them down
    curves = {name: curve.tolist() for name, curve in outcome.curves.items()}
    assert (curves["step"], curves["train_loss"]) == ([1, 2, 3], [3.0, 2.0, 1 / 3])
    assert curves["val_metric"][:2] == [-np.inf, 0.2]
    assert np.isnan(curves["val_metric"][2])
    assert store.tried() == {}


def test_a_reader_of_an_old_store_leaves_the_file_as_it_is(tmp_path: Path) -> None:
    path = old(tmp_path / "results") / FILE
    before = path.read_bytes()
    with Store.read(path.parent) as store:
        _is_whole(store)
    assert path.read_bytes() == before
    assert [p.name for p in path.parent.iterdir()] == [FILE]


def test_a_study_run_in_an_old_store_brings_it_up_to_date(tmp_path: Path) -> None:
    directory = old(tmp_path / "results")
    with Store.create(directory) as store:
        _is_whole(store)
        store.add([replace(FINISHED, key="k2")])
    with Store.read(directory) as store:
        assert store.finished() == {"k1", "k2"}
    with sqlite3.connect(directory / FILE) as db:
        assert db.execute("PRAGMA user_version").fetchone() == (FORMAT,)
        assert db.execute("SELECT finished_at FROM training WHERE key = 'k1'").fetchone() == (
            "2026-10-01 12:00:00",
        )
    db.close()


def test_an_upgrade_that_is_interrupted_leaves_the_old_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = old(tmp_path / "results")

    def killed(db: sqlite3.Connection) -> None:
        one_to_two(db)
        raise KeyboardInterrupt

    monkeypatch.setitem(MIGRATIONS, 1, killed)
    with pytest.raises(KeyboardInterrupt):
        Store.create(directory)
    monkeypatch.setitem(MIGRATIONS, 1, one_to_two)
    with sqlite3.connect(directory / FILE) as db:
        assert db.execute("PRAGMA user_version").fetchone() == (1,)
    db.close()
    with Store.read(directory) as store:
        _is_whole(store)


def test_an_upgraded_store_has_the_tables_of_a_new_one(tmp_path: Path) -> None:
    def tables(directory: Path) -> dict[str, list[Any]]:
        Store.create(directory).close()
        db = sqlite3.connect(directory / FILE)
        names = [
            name
            for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'table' ORDER BY name")
        ]
        found = {name: db.execute(f"PRAGMA table_info({name})").fetchall() for name in names}
        db.close()
        return found

    assert tables(old(tmp_path / "old")) == tables(tmp_path / "new")


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
    "newer": (_newer, "has store format 99, this natal reads 1 to 3; name another directory with --out"),
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


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo])
def test_what_is_no_file_is_refused_at_once(tmp_path: Path, make: Callable[[Path], None]) -> None:
    make(tmp_path / FILE)
    for look in (Store.read, Store.recognise):
        with pytest.raises(
            NatalError, match=r"study\.sqlite is no file, so not a natal run store; name another"
        ):
            look(tmp_path)


def test_a_table_that_is_lost_is_damage(store: Store) -> None:
    store.add([FINISHED])
    store._db.execute("DROP TABLE curve")
    with pytest.raises(NatalError, match="no such table: curve: the file is damaged"):
        list(store.outcomes())


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
    large = [replace(FINISHED, key=f"key-{i}", curves={"step": np.zeros(5000)}) for i in range(1, 5)]
    with pytest.raises(
        NatalError, match="disk is full: no space is left, or the disk fails; free some and run the same"
    ):
        store.add(large)
    assert store.finished() == {"key-0"}
    store._db.execute("PRAGMA max_page_count = 1000000")
    store.add(large)
    assert store.finished() == {f"key-{i}" for i in range(5)}


def test_a_store_that_was_not_begun_whole_keeps_nobody_from_its_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", full)
        with pytest.raises(NatalError, match="No space left on device"):
            Store.create(tmp_path)
    assert writable(tmp_path, None) == tmp_path
    Store.create(tmp_path).close()
    assert [path.name for path in tmp_path.iterdir()] == [FILE]


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


def test_a_failure_counts_its_tries_until_the_training_is_made(tmp_path: Path) -> None:
    with Store.create(tmp_path) as store:
        store.add([], [Failure("k1", "too large"), Failure("k2", "lost")])
        store.add([], [Failure("k1", "still too large")])
        found = store.failures()
        assert [(f.key, f.reason, f.tries) for f in found.values()] == [
            ("k1", "still too large", 2),
            ("k2", "lost", 1),
        ]
        assert store.finished() == set()
        store.add([replace(FINISHED, key="k1")])
        assert set(store.failures()) == {"k2"}
        store.clear()
        assert store.failures() == {}


def test_a_study_that_this_natal_does_not_read_is_one_line(store: Store) -> None:
    store.note(study={**load_study("paper").model_dump(mode="json"), "seeds": []})
    with pytest.raises(NatalError, match=r"of another version, and this natal cannot read it \(seeds"):
        store.study()
