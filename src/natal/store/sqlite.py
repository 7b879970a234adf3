"""Finished trainings in one SQLite file, written by the coordinating process alone. No torch here.

``study.sqlite`` holds one row per training, found by its key; the grid of the study that was last run in the
directory, each row naming its key; and a manifest. A training is committed in its own transaction as soon as it is
finished, so a kill at any moment loses only what was still being trained.
"""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import numpy as np

from natal.errors import NatalError
from natal.store.record import Outcome
from natal.study import Run, Study

FILE = "study.sqlite"
APPLICATION = 0x4E41544C  # "NATL": tells natal's files from other people's
FORMAT = 1

_SCHEMA = """
CREATE TABLE training (key TEXT PRIMARY KEY, status TEXT NOT NULL, facts TEXT NOT NULL,
                       train_loss BLOB NOT NULL, val_metric BLOB NOT NULL, finished_at TEXT NOT NULL
                       DEFAULT CURRENT_TIMESTAMP) WITHOUT ROWID;
CREATE TABLE grid (position INTEGER PRIMARY KEY, task TEXT NOT NULL, strategy TEXT NOT NULL, sparsity REAL NOT NULL,
                   seed INTEGER NOT NULL, key TEXT NOT NULL);
CREATE TABLE manifest (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
"""


class Store:
    """The run store of one results directory.

    Open it with `Store.create` to run a study, with `Store.read` to look at one. Every method that can meet a damaged
    file or a full disk raises NatalError with one line.
    """

    def __init__(self, path: Path, connection: sqlite3.Connection) -> None:
        self.path = path
        self._db = connection

    @classmethod
    def create(cls, directory: Path) -> Self:
        """Open the store in ``directory``, making both if they are not there.

        Raises NatalError if the directory cannot be written, or the file is not a whole natal store; such a file
        is left as it is.
        """
        path = directory / FILE
        with _plainly(path):
            directory.mkdir(parents=True, exist_ok=True)
            if not path.exists():
                _found(path)
            return cls(path, _recognise(sqlite3.connect(path, isolation_level=None), path))

    @classmethod
    def read(cls, directory: Path) -> Self:
        """Open the store in ``directory`` for reading only; raise NatalError if there is none."""
        path = directory / FILE
        if not path.is_file():
            raise NatalError(
                f"no study in {str(directory)!r}: {FILE} is missing; `natal run --out {directory}` makes one"
            )
        with _plainly(path):
            # a command that was killed left a journal behind, which a reader must be able to roll back
            mode = "rw" if os.access(path, os.W_OK) and os.access(directory, os.W_OK) else "ro"
            db = sqlite3.connect(f"{path.resolve().as_uri()}?mode={mode}", uri=True, isolation_level=None)
            return cls(path, _recognise(db, path))

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- writing -------------------------------------------------------------------------------------------------

    def declare(self, study: Study, grid: Sequence[tuple[Run, str]], manifest: dict[str, Any]) -> None:
        """Make ``study`` the one this directory shows: its grid with each row's key, and its manifest."""
        with self._transaction():
            self._db.execute("DELETE FROM grid")
            self._db.executemany(
                "INSERT INTO grid VALUES (?, ?, ?, ?, ?, ?)",
                [(i, *run, key) for i, (run, key) in enumerate(grid)],
            )
            self._write_manifest({"study": study.model_dump(mode="json"), **manifest})

    def note(self, **manifest: Any) -> None:
        """Add or replace entries of the manifest."""
        with self._transaction():
            self._write_manifest(manifest)

    def clear(self) -> None:
        """Forget every training and the study."""
        with self._transaction():
            for table in ("training", "grid", "manifest"):
                self._db.execute(f"DELETE FROM {table}")

    def add(self, outcomes: Iterable[Outcome], **manifest: Any) -> None:
        """Store finished trainings, and manifest entries, in one transaction; a key stored already stays as it is."""
        with self._transaction():
            self._db.executemany(
                "INSERT OR IGNORE INTO training (key, status, facts, train_loss, val_metric) VALUES (?, ?, ?, ?, ?)",
                [
                    (
                        o.key,
                        o.status,
                        json.dumps(o.facts()),
                        o.train_loss_curve.tobytes(),
                        o.val_metric_curve.tobytes(),
                    )
                    for o in outcomes
                ],
            )
            self._write_manifest(manifest)

    def _write_manifest(self, entries: dict[str, Any]) -> None:
        self._db.executemany(
            "INSERT OR REPLACE INTO manifest VALUES (?, ?)",
            [(name, json.dumps(value)) for name, value in entries.items()],
        )

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        with _plainly(self.path):
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise

    # -- reading -------------------------------------------------------------------------------------------------

    def finished(self) -> set[str]:
        """Return the keys of all trainings stored, whichever study made them."""
        with _plainly(self.path):
            return {key for (key,) in self._db.execute("SELECT key FROM training")}

    def made_by(self) -> list[str]:
        """Return what made each training stored (`Outcome.made_by`), whichever study it belongs to."""
        with _plainly(self.path):
            rows = self._db.execute("SELECT facts FROM training")
            return [json.loads(facts)["made_by"] for (facts,) in rows]

    def manifest(self) -> dict[str, Any]:
        """Return the manifest: the study, versions, platform, threads, wall time."""
        with _plainly(self.path):
            return {
                name: json.loads(value)
                for name, value in self._db.execute("SELECT name, value FROM manifest")
            }

    def study(self) -> Study:
        """Return the study this directory shows; raise NatalError if none was declared yet."""
        declared = self.manifest().get("study")
        if declared is None:
            raise NatalError(
                f"{self.path} holds no study yet; `natal run --out {self.path.parent}` starts one"
            )
        return Study.model_validate(declared)

    def grid(self) -> list[tuple[Run, str]]:
        """Return the rows of the study's grid, in order, each with the key of its training."""
        with _plainly(self.path):
            rows = self._db.execute("SELECT task, strategy, sparsity, seed, key FROM grid ORDER BY position")
            return [(Run(*row[:4]), row[4]) for row in rows]

    def outcomes(self) -> dict[str, Outcome]:
        """Return the stored trainings of the study's grid by key."""
        with _plainly(self.path):
            rows = self._db.execute(
                "SELECT key, status, facts, train_loss, val_metric FROM training "
                "WHERE key IN (SELECT key FROM grid)"
            )
            return {
                key: Outcome(
                    key=key,
                    status=status,
                    **json.loads(facts),
                    train_loss_curve=np.frombuffer(loss),
                    val_metric_curve=np.frombuffer(metric),
                )
                for key, status, facts, loss, metric in rows
            }


def _found(path: Path) -> None:
    """Make an empty store at ``path``, whole or not at all: a kill must not leave a file that no one recognises."""
    draft = path.with_suffix(".new")
    draft.unlink(missing_ok=True)
    db = sqlite3.connect(draft)
    db.executescript(
        f"BEGIN; PRAGMA application_id = {APPLICATION}; PRAGMA user_version = {FORMAT}; {_SCHEMA} COMMIT;"
    )
    db.close()
    draft.rename(path)


def _recognise(db: sqlite3.Connection, path: Path) -> sqlite3.Connection:
    """Return ``db`` if it is a whole natal store, else close it and say what it is."""
    try:
        _inspect(db, path)
    except BaseException:
        db.close()
        raise
    return db


def _inspect(db: sqlite3.Connection, path: Path) -> None:
    (application,) = db.execute("PRAGMA application_id").fetchone()
    (version,) = db.execute("PRAGMA user_version").fetchone()
    if application != APPLICATION:
        raise NatalError(f"{path} is not a natal run store; name another directory with --out")
    if version != FORMAT:
        raise NatalError(f"{path} has store format {version}, this natal reads {FORMAT}; use another --out")
    (page,) = db.execute("PRAGMA page_size").fetchone()
    # SQLite fills a cut page up with zeros and finds nothing wrong with them
    if db.execute("PRAGMA quick_check").fetchone() != ("ok",) or path.stat().st_size % page:
        raise NatalError(
            f"{path} is damaged; nothing was changed; restore it or name another directory with --out"
        )


@contextmanager
def _plainly(path: Path) -> Iterator[None]:
    """Turn what SQLite and the file system say into one line."""
    try:
        yield
    except sqlite3.DatabaseError as error:
        text = str(error)
        if "full" in text or "disk I/O" in text:
            cure = "no space is left, or the disk fails; free some and run the same command again"
        elif "readonly" in text or "unable to open" in text:
            cure = "it cannot be written; check its permissions or name another directory with --out"
        elif "not a database" in text or "malformed" in text or "corrupt" in text:
            cure = (
                "the file is damaged or not a natal run store, and was left as it is; "
                "name another directory with --out"
            )
        elif "locked" in text:
            cure = "another program has it open; close that and run the same command again"
        else:
            cure = "nothing more was written"
        raise NatalError(f"{path}: {text}: {cure}") from None
    except OSError as error:
        raise NatalError(
            f"{error.filename or path}: {error.strerror}; name another directory with --out"
        ) from None
