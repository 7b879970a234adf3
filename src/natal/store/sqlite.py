"""Finished trainings in one SQLite file, written by the coordinating process alone. No torch here.

``study.sqlite`` holds one row per training, found by its key; the grid of the study that was last run in the
directory, each row naming its key; and a manifest. A training is committed in its own transaction as soon as it is
finished, so a kill at any moment loses only what was still being trained.
"""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from natal.errors import NatalError
from natal.store.migrations import MIGRATIONS
from natal.store.record import Curves, Failure, Outcome
from natal.study import Maker, Run, Study

FILE = "study.sqlite"
APPLICATION = 0x4E41544C  # "NATL": tells natal's files from other people's
FORMAT = 3

_SCHEMA = """
CREATE TABLE training (key TEXT PRIMARY KEY, status TEXT NOT NULL, made_by TEXT NOT NULL, facts TEXT NOT NULL,
                       finished_at TEXT NOT NULL DEFAULT CURRENT_TIMESTAMP) WITHOUT ROWID;
CREATE TABLE curve (key TEXT NOT NULL, name TEXT NOT NULL, numbers BLOB NOT NULL,
                    PRIMARY KEY (key, name)) WITHOUT ROWID;
CREATE TABLE grid (position INTEGER PRIMARY KEY, task TEXT NOT NULL, strategy TEXT NOT NULL, sparsity REAL NOT NULL,
                   seed INTEGER NOT NULL, key TEXT NOT NULL, network TEXT NOT NULL DEFAULT 'mlp');
CREATE TABLE tried (position INTEGER NOT NULL, learning_rate REAL NOT NULL, key TEXT NOT NULL,
                    PRIMARY KEY (position, learning_rate)) WITHOUT ROWID;
CREATE TABLE manifest (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE failure (key TEXT PRIMARY KEY, reason TEXT NOT NULL, tries INTEGER NOT NULL,
                      at TEXT NOT NULL DEFAULT CURRENT_TIMESTAMP) WITHOUT ROWID;
"""
"""What a new store starts with; what an old one becomes, see `natal.store.migrations`."""


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
            db = _recognise(sqlite3.connect(path, isolation_level=None), path)
            store = cls(path, db)
            if _version(db) < FORMAT:
                with store._transaction():
                    _bring_up_to_date(db)
            return store

    @classmethod
    def read(cls, directory: Path) -> Self:
        """Open the store in ``directory`` for reading only; raise NatalError if there is none."""
        path = directory / FILE
        if directory.exists() and not directory.is_dir():
            raise NatalError(f"{str(directory)!r} is a file; name a directory that `natal run` has filled")
        if not path.is_file():
            raise NatalError(
                f"no study in {str(directory)!r}: {FILE} is missing; `natal run --out {directory}` makes one"
            )
        with _plainly(path):
            # a command that was killed left a journal behind, which a reader must be able to roll back
            mode = "rw" if os.access(path, os.W_OK) and os.access(directory, os.W_OK) else "ro"
            db = sqlite3.connect(f"{path.resolve().as_uri()}?mode={mode}", uri=True, isolation_level=None)
            db = _recognise(db, path)
            if _version(db) < FORMAT:
                copy = sqlite3.connect(":memory:", isolation_level=None)
                db.backup(copy)
                db.close()
                db = copy
                _bring_up_to_date(db)
            return cls(path, db)

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- writing -------------------------------------------------------------------------------------------------

    def declare(
        self,
        study: Study,
        grid: Sequence[tuple[Run, str]],
        manifest: dict[str, Any],
        tried: Mapping[int, Mapping[float, str]] | None = None,
    ) -> None:
        """Make ``study`` the one this directory shows: its grid with each row's key, and its manifest.

        ``tried``: for rows that choose among learning rates, the key of the training at each, by row position.
        """
        with self._transaction():
            self._db.execute("DELETE FROM grid")
            self._db.executemany(
                "INSERT INTO grid (position, task, strategy, sparsity, seed, network, key) "
                "VALUES (?, ?, ?, ?, ?, ?, ?)",
                [(i, *run, key) for i, (run, key) in enumerate(grid)],
            )
            self._db.execute("DELETE FROM tried")
            self._db.executemany(
                "INSERT INTO tried VALUES (?, ?, ?)",
                [
                    (i, rate, key)
                    for i, candidates in (tried or {}).items()
                    for rate, key in candidates.items()
                ],
            )
            self._write_manifest({"study": study.model_dump(mode="json"), **manifest})

    def note(self, **manifest: Any) -> None:
        """Add or replace entries of the manifest."""
        with self._transaction():
            self._write_manifest(manifest)

    def choose(self, keys: Mapping[int, str]) -> None:
        """Let rows of the grid, by position, show other trainings of those they tried."""
        with self._transaction():
            self._db.executemany(
                "UPDATE grid SET key = ? WHERE position = ?", [(k, p) for p, k in keys.items()]
            )

    def clear(self) -> None:
        """Forget every training and the study."""
        with self._transaction():
            for table in ("training", "curve", "failure", "grid", "tried", "manifest"):
                self._db.execute(f"DELETE FROM {table}")

    def add(self, outcomes: Iterable[Outcome], failures: Iterable[Failure] = (), **manifest: Any) -> None:
        """Store finished trainings, and manifest entries, in one transaction; a key stored already stays as it is.

        ``failures``: what could not be trained, in the same transaction; one that failed before counts one more try.
        """
        with self._transaction():
            for f in failures:
                self._db.execute(
                    "INSERT INTO failure (key, reason, tries) VALUES (?, ?, ?) ON CONFLICT (key) DO UPDATE SET "
                    "reason = excluded.reason, tries = tries + excluded.tries, at = CURRENT_TIMESTAMP",
                    (f.key, f.reason, f.tries),
                )
            for o in outcomes:
                self._db.execute("DELETE FROM failure WHERE key = ?", (o.key,))
                added = self._db.execute(
                    "INSERT OR IGNORE INTO training (key, status, made_by, facts) VALUES (?, ?, ?, ?)",
                    (o.key, o.status, json.dumps(o.maker()), json.dumps(o.facts())),
                )
                if added.rowcount:
                    self._db.executemany(
                        "INSERT INTO curve VALUES (?, ?, ?)",
                        [(o.key, name, numbers.tobytes()) for name, numbers in o.curves.items()],
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

    def statuses(self) -> dict[str, str]:
        """Return the status of every training stored, whichever study made it, by key."""
        with _plainly(self.path):
            return dict(self._db.execute("SELECT key, status FROM training"))

    def failures(self) -> dict[str, Failure]:
        """Return the trainings that failed and were not made since, whichever study asked for them, by key."""
        with _plainly(self.path):
            rows = self._db.execute("SELECT key, reason, tries, at FROM failure")
            return {row[0]: Failure(*row) for row in rows}

    def failed(self) -> list[tuple[Run, Failure]]:
        """Return the rows of the study's grid that cannot be shown because a training failed, in order, and why."""
        with _plainly(self.path):
            rows = self._db.execute(
                "SELECT task, strategy, sparsity, seed, network, f.key, reason, tries, at FROM failure f "
                "JOIN (SELECT position, key FROM grid UNION SELECT position, key FROM tried) k USING (key) "
                "JOIN grid USING (position) GROUP BY position ORDER BY position"
            )
            return [(Run(*row[:5]), Failure(*row[5:])) for row in rows]

    def makers(self) -> dict[Maker, int]:
        """Return who made the trainings stored, whichever study they belong to, and how many each."""
        with _plainly(self.path):
            rows = self._db.execute("SELECT made_by, COUNT(*) FROM training GROUP BY made_by")
            return {Maker(**json.loads(made_by)): count for made_by, count in rows}

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
            rows = self._db.execute(
                "SELECT task, strategy, sparsity, seed, network, key FROM grid ORDER BY position"
            )
            return [(Run(*row[:5]), row[5]) for row in rows]

    def complete(self) -> int:
        """Return how many of the grid's rows have all their trainings."""
        finished, tried = self.finished(), self.tried()
        return sum(
            finished.issuperset({key, *tried.get(i, {}).values()}) for i, (_, key) in enumerate(self.grid())
        )

    def tried(self) -> dict[int, dict[float, str]]:
        """Return the key of the training at each learning rate, for the grid's rows that choose among several."""
        found: dict[int, dict[float, str]] = {}
        with _plainly(self.path):
            for position, rate, key in self._db.execute("SELECT position, learning_rate, key FROM tried"):
                found.setdefault(position, {})[rate] = key
        return found

    def curves(self) -> dict[str, Curves]:
        """Return the curves of the study's trainings by key, see `outcomes`."""
        found: dict[str, dict[str, NDArray[np.float64]]] = {}
        with _plainly(self.path):
            for key, name, numbers in self._db.execute(
                f"SELECT key, name, numbers FROM curve WHERE {_OF_STUDY}"
            ):
                found.setdefault(key, {})[name] = np.frombuffer(numbers)
        return dict(found)

    def outcomes(self, *, curves: bool = True) -> dict[str, Outcome]:
        """Return the stored trainings of the study by key: the grid's, and those at learning rates not chosen.

        Without ``curves``, theirs are left empty, which is much quicker for a large study.
        """
        lines = self.curves() if curves else {}
        with _plainly(self.path):
            rows = self._db.execute(f"SELECT key, status, made_by, facts FROM training WHERE {_OF_STUDY}")
            return {
                key: Outcome(
                    key=key,
                    status=status,
                    made_by=Maker(**json.loads(made_by)),
                    curves=lines.get(key, {}),
                    **json.loads(facts),
                )
                for key, status, made_by, facts in rows
            }


_OF_STUDY = "key IN (SELECT key FROM grid UNION SELECT key FROM tried)"


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
    if application != APPLICATION:
        raise NatalError(f"{path} is not a natal run store; name another directory with --out")
    if not min(MIGRATIONS) <= _version(db) <= FORMAT:
        raise NatalError(
            f"{path} has store format {_version(db)}, this natal reads {min(MIGRATIONS)} to {FORMAT}; "
            "name another directory with --out"
        )
    (page,) = db.execute("PRAGMA page_size").fetchone()
    # SQLite fills a cut page up with zeros and finds nothing wrong with them
    if db.execute("PRAGMA quick_check").fetchone() != ("ok",) or path.stat().st_size % page:
        raise NatalError(
            f"{path} is damaged; nothing was changed; restore it or name another directory with --out"
        )


def _version(db: sqlite3.Connection) -> int:
    (version,) = db.execute("PRAGMA user_version").fetchone()
    return int(version)


def _bring_up_to_date(db: sqlite3.Connection) -> None:
    for version in range(_version(db), FORMAT):
        MIGRATIONS[version](db)
        db.execute(f"PRAGMA user_version = {version + 1}")


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
