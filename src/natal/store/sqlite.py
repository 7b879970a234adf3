"""Finished trainings in one SQLite file, written by the coordinating process alone. No torch here.

``study.sqlite`` holds a row per training, found by its key, and apart from it what is seldom read: curves, and what the
mask doctor said; the grid of the study that was last run in the directory, each row naming its key; and a manifest. A
training is committed in its own transaction as soon as it is finished, so a kill at any moment loses only what was
still being trained.

Readers never stop the writer: it writes ahead (SQLite's WAL) while it has the file open, where the file system lets
processes share memory; elsewhere it waits for them, and reads are short. Opening a store looks at its first page alone;
whoever reads a row or a curve checks its digest, and `Store.damage` looks at all there is.
"""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from itertools import islice
from pathlib import Path
from typing import Any, Self, TypeVar

import numpy as np
from pydantic import ValidationError

from natal.errors import NatalError
from natal.store import packing
from natal.store.migrations import MIGRATIONS
from natal.store.record import Curves, Failure, Outcome
from natal.store.search import deciding
from natal.store.training import COLUMNS, SCHEMA, Table, columns_of, insert, maker, outcome, table
from natal.study import Maker, Run, Study, digest, one_line

T = TypeVar("T")
FILE = "study.sqlite"
APPLICATION = 0x4E41544C  # "NATL": tells natal's files from other people's
FORMAT = 3
PATIENCE = 600.0
"""Seconds that a writer waits for readers, and a reader for a writer, where the file system makes them wait."""
AT_ONCE = 500
"""Trainings that are read at once, where each has curves."""

_SCHEMA = f"""{SCHEMA}
CREATE TABLE grid (position INTEGER PRIMARY KEY, task TEXT NOT NULL, strategy TEXT NOT NULL, sparsity REAL NOT NULL,
                   seed INTEGER NOT NULL, key TEXT NOT NULL, network TEXT NOT NULL DEFAULT 'mlp',
                   digest INTEGER NOT NULL DEFAULT 0);
CREATE TABLE tried (position INTEGER NOT NULL, learning_rate REAL NOT NULL, key TEXT NOT NULL,
                    digest INTEGER NOT NULL DEFAULT 0,
                    PRIMARY KEY (position, learning_rate)) WITHOUT ROWID;
CREATE TABLE manifest (name TEXT PRIMARY KEY, value TEXT NOT NULL, digest INTEGER NOT NULL DEFAULT 0) WITHOUT ROWID;
"""
"""What a new store starts with; what an old one becomes, see `natal.store.migrations`."""


class Store:
    """The run store of one results directory.

    Open it with `Store.create` to run a study, with `Store.read` to look at one. Every method that can meet a damaged
    file or a full disk raises NatalError with one line.
    """

    def __init__(self, path: Path, connection: sqlite3.Connection, *, writes: bool = False) -> None:
        self.path = path
        self._db = connection
        self._writes = writes
        self._file = _identity(path)
        self._makers: dict[int, Maker] = {}
        connection.create_function("digest_of_row", -1, lambda *row: packing.digest_of_row(row))

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
            db = _recognise(sqlite3.connect(path, PATIENCE, isolation_level=None), path)
            if shares_memory(path):
                db.execute("PRAGMA journal_mode = WAL")
            store = cls(path, db, writes=True)
            if _version(db) < FORMAT:
                with store._transaction():
                    _bring_up_to_date(db, path)
            return store

    @classmethod
    def read(cls, directory: Path) -> Self:
        """Open the store in ``directory`` for reading only; raise NatalError if there is none."""
        path = directory / FILE
        if directory.exists() and not directory.is_dir():
            raise NatalError(f"{str(directory)!r} is a file; name a directory that `natal run` has filled")
        if not path.exists():
            raise NatalError(
                f"no study in {str(directory)!r}: {FILE} is missing; `natal run --out {directory}` makes one"
            )
        with _plainly(path):
            db = _recognise(_to_read(path), path)
            if _version(db) < FORMAT:
                copy = sqlite3.connect(
                    "", isolation_level=None
                )  # a file of its own that ends with the connection
                db.backup(copy)
                db.close()
                db = copy
                _bring_up_to_date(db, path)
            return cls(path, db)

    @classmethod
    def recognise(cls, directory: Path) -> None:
        """Raise NatalError unless the file in ``directory`` is a natal store, of any format that this natal reads."""
        path = directory / FILE
        with _plainly(path):
            _recognise(_to_read(path), path).close()

    def close(self) -> None:
        """Close the file; a writer leaves one file, which can be read where nothing can be written."""
        with suppress(sqlite3.Error):
            if self._writes:
                self._db.execute("PRAGMA busy_timeout = 0")
                self._db.execute("PRAGMA journal_mode = DELETE")  # not while somebody reads
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
                f"INSERT INTO grid ({_GRID}, digest) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    (*row, packing.digest_of_row(row))
                    for row in ((i, *run, key) for i, (run, key) in enumerate(grid))
                ),
            )
            self._db.execute("DELETE FROM tried")
            self._db.executemany(
                "INSERT INTO tried VALUES (?, ?, ?, ?)",
                [
                    (i, rate, key, packing.digest_of_row((i, rate, key)))
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
            self._db.executemany(
                f"UPDATE grid SET digest = digest_of_row({_GRID}) WHERE position = ?", [(p,) for p in keys]
            )

    def clear(self) -> None:
        """Forget every training and the study."""
        with self._transaction():
            for table in ("training", "detail", "curve", "maker", "failure", "grid", "tried", "manifest"):
                self._db.execute(f"DELETE FROM {table}")
            self._makers.clear()

    def add(self, outcomes: Iterable[Outcome], failures: Iterable[Failure] = (), **manifest: Any) -> None:
        """Store finished trainings, and manifest entries, in one transaction; a key stored already stays as it is.

        ``failures``: what could not be trained, in the same transaction; one that failed before counts one more try.
        """
        with self._transaction():
            for f in failures:
                self._db.execute(
                    "INSERT INTO failure VALUES (?, ?, ?, COALESCE(?, CURRENT_TIMESTAMP)) ON CONFLICT (key) DO UPDATE "
                    "SET reason = excluded.reason, tries = tries + excluded.tries, at = excluded.at",
                    (f.key, f.reason, f.tries, f.at or None),
                )
            failed = self._db.execute("SELECT EXISTS (SELECT 1 FROM failure)").fetchone()[0]
            numbers: dict[Maker, int] = {}
            for o in outcomes:
                if failed:
                    self._db.execute("DELETE FROM failure WHERE key = ?", (o.key,))
                if o.made_by not in numbers:
                    numbers[o.made_by] = maker(self._db, json.dumps(o.maker()))
                insert(self._db, numbers[o.made_by], columns_of(o))
            self._write_manifest(manifest)

    def _write_manifest(self, entries: dict[str, Any]) -> None:
        texts = [(name, json.dumps(value)) for name, value in entries.items()]
        self._db.executemany(
            "INSERT OR REPLACE INTO manifest VALUES (?, ?, ?)",
            [(name, text, packing.digest(name.encode(), text.encode())) for name, text in texts],
        )

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        with _plainly(self.path):
            if _identity(self.path) != self._file:
                raise NatalError(
                    f"{self.path} was moved or deleted while natal wrote to it; put it back, or begin again with the "
                    "same command"
                )
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise

    # -- reading -------------------------------------------------------------------------------------------------

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Let everything read inside be of one moment, whatever is written meanwhile."""
        if self._db.in_transaction:
            yield
            return
        with _plainly(self.path):
            self._db.execute("BEGIN")
            try:
                yield
            finally:
                self._db.execute("ROLLBACK")

    def finished(self) -> set[str]:
        """Return the keys of all trainings stored, whichever study made them."""
        with _sensibly(self.path):
            found = {key for (key,) in self._db.execute("SELECT key FROM training")}
            if not all(isinstance(key, str) for key in found):
                raise ValueError("a training's key is no text")
            return found

    def keys(self) -> Iterator[str]:
        """Yield the keys of all trainings stored, in the order they came, a few at a time in memory."""
        last = 0
        with _sensibly(self.path):
            query = "SELECT id, key FROM training WHERE id > ? ORDER BY id LIMIT ?"
            while some := self._db.execute(query, (last, AT_ONCE)).fetchall():
                last = some[-1][0]
                yield from (key for _, key in some)

    def statuses(self) -> dict[str, str]:
        """Return the status of every training stored, whichever study made it, by key."""
        with _sensibly(self.path):
            same = {status: status for status in STATUSES}
            return {key: same[status] for key, status in self._db.execute("SELECT key, status FROM training")}

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
        with _sensibly(self.path):
            counts = self._db.execute(
                "SELECT maker, COUNT(*) FROM training GROUP BY maker ORDER BY maker"
            ).fetchall()
            return {self.maker(number): count for number, count in counts}

    def maker(self, number: int) -> Maker:
        """Return a maker by its number in a training's row."""
        if number not in self._makers:
            with _sensibly(self.path):
                query = "SELECT made_by, digest FROM maker WHERE id = ?"
                made_by, told = self._db.execute(query, (number,)).fetchone() or ("", None)
                if told != packing.digest(made_by.encode()):
                    raise self._damaged(f"maker {number}")
                self._makers[number] = Maker(**json.loads(made_by))
        return self._makers[number]

    def manifest(self, *names: str) -> dict[str, Any]:
        """Return the manifest, or these entries of it: the study, versions, platform, threads, wall time."""
        which = f" WHERE name IN ({', '.join('?' * len(names))})" if names else ""
        found = {}
        with _sensibly(self.path):
            for name, value, told in self._db.execute(
                f"SELECT name, value, digest FROM manifest{which}", names
            ):
                if told != packing.digest(str(name).encode(), str(value).encode()):
                    raise self._damaged(f"the manifest's {name!r}")
                found[name] = json.loads(value)
        return found

    def study(self) -> Study:
        """Return the study this directory shows; raise NatalError if none was declared yet."""
        declared = self.manifest("study").get("study")
        if declared is None:
            raise NatalError(
                f"{self.path} holds no study yet; `natal run --out {self.path.parent}` starts one"
            )
        try:
            return Study.model_validate(declared)
        except ValidationError as error:
            raise NatalError(
                f"{self.path} holds a study of another version, and this natal cannot read it ({one_line(error)}); "
                "read it with that version, or run the study again with --fresh"
            ) from None

    def grid(self) -> list[tuple[Run, str]]:
        """Return the rows of the study's grid, in order, each with the key of its training."""
        return list(zip(*self.runs(), strict=True))

    def runs(self) -> tuple[list[Run], list[str]]:
        """Return the rows of the study's grid, in order, and the keys of their trainings."""
        same: dict[Any, Any] = {}
        runs, keys = [], []
        with _sensibly(self.path):
            for *row, told in self._db.execute(f"SELECT {_GRID}, digest FROM grid ORDER BY position"):
                if told != packing.digest_of_row(row):
                    raise self._damaged(f"row {row[0]!a} of the grid")
                _, task, strategy, sparsity, seed, network, key = row
                name = task, strategy, sparsity, network
                task, strategy, sparsity, network = same.setdefault(name, name)  # few cells, many seeds
                runs.append(Run(task, strategy, sparsity, seed, network))
                keys.append(key)
        return runs, keys

    def complete(self) -> tuple[int, int]:
        """Return how many of the grid's rows have all their trainings, and how many rows there are."""
        with _sensibly(self.path):
            lacking = """SELECT COUNT(*) FROM grid WHERE key NOT IN (SELECT key FROM training) OR EXISTS (SELECT 1 FROM
                tried WHERE tried.position = grid.position AND tried.key NOT IN (SELECT key FROM training))"""
            (total,), (missing,) = (
                self._db.execute(q).fetchone() for q in ("SELECT COUNT(*) FROM grid", lacking)
            )
            return total - missing, total

    def tried(self) -> dict[int, dict[float, str]]:
        """Return the key of the training at each learning rate, for the grid's rows that choose among several."""
        found: dict[int, dict[float, str]] = {}
        with _sensibly(self.path):
            for position, rate, key, told in self._db.execute("SELECT * FROM tried"):
                if told != packing.digest_of_row((position, rate, key)):
                    raise self._damaged(f"what row {position} tried")
                found.setdefault(position, {})[rate] = key
        return found

    def table(self) -> Table:
        """Return the stored trainings of the study as columns, without details and curves, in the order they came.

        The column ``id`` has the number that each has in the file.
        """
        parts = []
        with _sensibly(self.path):
            found = self._db.execute(f"SELECT {_COLUMNS}, id FROM training WHERE {_OF_STUDY} ORDER BY id")
            while some := found.fetchmany(20_000):
                rows = [row[:-1] for row in some]
                for row in rows:
                    self._check(row)
                parts.append({**table(rows), "id": np.array([row[-1] for row in some], np.int64)})
        parts = parts or [{**table([]), "id": np.empty(0, np.int64)}]
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def details(self, which: Sequence[str] | Sequence[int]) -> dict[str, tuple[str, str]]:
        """Return diagnosis and proofs of these trainings, as JSON for `mapping` to read, by key.

        ``which``: keys, or numbers, as the column ``id`` of `table` has them: those that came one after the other lie
        so, too, and are read in a fraction of the time.
        """
        found = {}
        with _sensibly(self.path):
            for key, told, diagnosis, proofs in self._joined("detail", "diagnosis, proofs", which):
                if told != packing.digest(str(diagnosis).encode(), str(proofs).encode()):
                    raise self._damaged(f"what the doctor said of training {key!a}")
                found[key] = diagnosis, proofs
        return found

    def curves(self, which: Sequence[str] | Sequence[int]) -> dict[str, Curves]:
        """Return the curves of these trainings, by key; ``which``: as for `details`."""
        found: dict[str, Curves] = {}
        with _sensibly(self.path):
            for key, told, lines, numbers in self._joined("curve", "lines, numbers", which):
                if told != packing.digest(str(lines).encode(), bytes(numbers or b"")):
                    raise self._damaged(f"the curves of training {key!a}")
                found[key] = packing.unpack(lines, numbers)
        return found

    def _joined(
        self, name: str, wanted: str, which: Sequence[str] | Sequence[int]
    ) -> Iterator[tuple[Any, ...]]:
        """Yield key, digest and more from the table ``name``, which has the digest in `training`."""
        with _sensibly(self.path):
            for some in _parts(which):
                by = "key" if isinstance(some[0], str) else "id"
                query = (
                    f"SELECT key, {name}, {wanted} FROM training LEFT JOIN {name} USING (id) WHERE {by} IN"
                )
                yield from self._db.execute(
                    f"{query} ({', '.join('?' * len(some))}) ORDER BY id", some
                ).fetchall()

    def outcomes(self, keys: Iterable[str] | None = None) -> Iterator[Outcome]:
        """Yield stored trainings whole, by default those of the study: the grid's, and those at rates not chosen."""
        if keys is None:
            with _sensibly(self.path):
                keys = [
                    key
                    for (key,) in self._db.execute(f"SELECT key FROM training WHERE {_OF_STUDY} ORDER BY id")
                ]
        for some in _parts(keys):
            places = ", ".join("?" * len(some))
            with self.reading():
                query = f"SELECT {_COLUMNS} FROM training WHERE key IN ({places}) ORDER BY id"
                rows = self._db.execute(query, some).fetchall()
                curves = self.curves(some)
                details = self.details(some)
            for row in rows:
                with _sensibly(self.path):
                    self._check(row)
                    key = row[0]
                    diagnosis, proofs = (mapping(self.path, text) for text in details[key])
                    one = outcome(row, self.maker(row[2]), diagnosis, proofs, curves[key])
                yield one

    def deciding(self, decide: str) -> dict[str, float]:
        """Return what decides for each training that a row chooses from, see `natal.store.search.deciding`."""
        metric, best = COLUMNS.index("val_metric"), COLUMNS.index("best_step")
        found = {}
        with _sensibly(self.path):
            query = f"SELECT {_COLUMNS} FROM training WHERE key IN (SELECT key FROM tried)"
            for some in _parts(self._db.execute(query).fetchall()):
                curves = self.curves([row[0] for row in some]) if decide == "val-loss" else {}
                for row in some:
                    self._check(row)
                    found[row[0]] = deciding(row[metric], row[best], curves.get(row[0], {}), decide)
        return found

    def state(self) -> str:
        """Return a word that changes whenever the study, its trainings, or anything said of them does."""
        sums = [
            f"SELECT COUNT(*), TOTAL(digest & 4294967295) FROM {table}"
            for table in ("training", "grid", "tried")
        ]
        sums += [
            "SELECT name, digest FROM manifest ORDER BY name",
            "SELECT key, reason FROM failure ORDER BY key",
        ]
        with _sensibly(self.path):
            return digest([self._db.execute(query).fetchall() for query in sums])

    def count(self) -> tuple[int, int]:
        """Return how many of the grid's rows show a training, and how many of those diverged."""
        shown = "SELECT COUNT(*), TOTAL(status = 'diverged') FROM grid JOIN training USING (key)"
        with _sensibly(self.path):
            trained, diverged = self._db.execute(shown).fetchone()
            return int(trained), int(diverged)

    def deterministic(self) -> bool:
        """Whether all trainings of the study were made with deterministic algorithms."""
        with _sensibly(self.path):
            loose = f"SELECT 1 FROM training WHERE NOT deterministic AND {_OF_STUDY} LIMIT 1"
            return self._db.execute(loose).fetchone() is None

    def damage(self, apart_from: Collection[str] = ()) -> list[str]:
        """Look at every page and every digest; return what is wrong, a line each.

        ``apart_from``: keys of trainings that are looked at by somebody else.
        """
        found: list[str] = []
        self._makers.clear()
        with _sensibly(self.path):
            pages = self._db.execute("PRAGMA quick_check").fetchall()
            found += [f"{self.path}: {said}" for (said,) in pages if said != "ok"]
            keys = [key for (key,) in self._db.execute("SELECT key FROM training ORDER BY id")]
        for some in _parts(key for key in keys if key not in apart_from):
            try:
                for _ in self.outcomes(some):
                    pass
            except NatalError as error:
                found.append(str(error))
        return found

    def _check(self, row: Sequence[Any]) -> None:
        """Raise NatalError unless a training's row, from ``key`` to ``digest``, is as it was written."""
        if packing.digest_of_row(row[:-1]) != row[-1] or row[1] not in STATUSES:
            raise self._damaged(f"training {row[0]!a}")

    def _damaged(self, what: str) -> NatalError:
        return NatalError(
            f"{self.path} is damaged: {what} is not what was written; restore the file, or run the study with --fresh"
        )


def mapping(path: Path, text: str) -> dict[str, Any]:
    """Return what a JSON text of the store in ``path`` says; raises NatalError if that makes no sense."""
    try:
        return dict(json.loads(text).items())
    except (AttributeError, RecursionError, TypeError, ValueError):
        with _sensibly(path):
            raise


STATUSES = ("finished", "diverged")
"""What a stored training can have come to."""
_COLUMNS = ", ".join(COLUMNS)
_GRID = "position, task, strategy, sparsity, seed, network, key"
_OF_STUDY = "key IN (SELECT key FROM grid UNION SELECT key FROM tried)"


def _parts(things: Iterable[T]) -> Iterator[list[T]]:
    rest = iter(things)
    while some := list(islice(rest, AT_ONCE)):
        yield some


def _found(path: Path) -> None:
    """Make an empty store at ``path``, whole or not at all: a kill must not leave a file that no one recognises."""
    draft = path.with_name(f".{path.name}.new")  # hidden files, which a kill may leave, stop nobody
    draft.unlink(missing_ok=True)
    db = sqlite3.connect(draft)
    db.executescript(
        f"BEGIN; PRAGMA application_id = {APPLICATION}; PRAGMA user_version = {FORMAT}; {_SCHEMA} COMMIT;"
    )
    db.close()
    draft.rename(path)


def shares_memory(path: Path, mounts: str | None = None) -> bool:
    """Whether processes can share memory through files beside ``path``, which SQLite's writing ahead needs.

    Not on file systems that several hosts share. ``mounts``: as Linux lists them; where a system does not, none of
    those is expected.
    """
    if mounts is None:
        try:
            mounts = Path("/proc/self/mounts").read_text("utf-8", "surrogateescape")
        except OSError:
            return True
    here, kind = path.resolve(), ""
    deepest = -1
    for mount in mounts.splitlines():
        _, point, is_of, *_ = mount.split(" ")
        place = Path(point.encode().decode("unicode_escape"))
        if here.is_relative_to(place) and len(place.parts) >= deepest:
            deepest, kind = len(place.parts), is_of
    return kind not in _SHARED and not kind.startswith("fuse.")


_SHARED = {"nfs", "nfs4", "cifs", "smb3", "smbfs", "lustre", "gpfs", "beegfs", "ceph", "afs", "9p", "glusterfs",
           "pvfs2", "orangefs", "virtiofs", "fuse", "ocfs2", "gfs2", "panfs", "wekafs", "ncpfs", "vboxsf"}  # fmt: skip
"""File systems that hosts share, as Linux calls them."""


def _to_read(path: Path) -> sqlite3.Connection:
    """Return a connection that only reads; what a killed command left beside the file may need the right to write."""
    if not path.is_file():  # to open a pipe would wait for who writes to it
        raise NatalError(f"{path} is no file, so not a natal run store; name another directory with --out")
    may_write = os.access(path, os.W_OK) and os.access(path.parent, os.W_OK)
    with path.open("rb") as file:
        ahead = file.read(20)[18:] == b"\2\2"  # written ahead, by a command that could not tidy up
    alone = ahead and not path.with_name(f"{path.name}-wal").exists()
    mode = "mode=rw" if may_write else "immutable=1" if alone else "mode=ro"
    return sqlite3.connect(f"{path.resolve().as_uri()}?{mode}", PATIENCE, uri=True, isolation_level=None)


def _recognise(db: sqlite3.Connection, path: Path) -> sqlite3.Connection:
    """Return ``db`` if it is a natal store, else close it and say what it is."""
    try:
        _inspect(db, path)
    except BaseException:
        db.close()
        raise
    return db


def _inspect(db: sqlite3.Connection, path: Path) -> None:
    db.execute("BEGIN")  # nobody changes the file while it is looked at
    (application,) = db.execute("PRAGMA application_id").fetchone()
    if application != APPLICATION:
        raise NatalError(f"{path} is not a natal run store; name another directory with --out")
    if not min(MIGRATIONS) <= _version(db) <= FORMAT:
        raise NatalError(
            f"{path} has store format {_version(db)}, this natal reads {min(MIGRATIONS)} to {FORMAT}; "
            "name another directory with --out"
        )
    (page,), (pages,) = (db.execute(f"PRAGMA {what}").fetchone() for what in ("page_size", "page_count"))
    # SQLite finds nothing wrong with a file that was cut; what was written ahead lies beside it
    ahead = path.with_name(f"{path.name}-wal")
    if not ahead.exists() and path.stat().st_size != page * pages:
        raise NatalError(
            f"{path} is damaged; nothing was changed; restore it or name another directory with --out"
        )
    db.execute("SELECT COUNT(*) FROM sqlite_master").fetchone()
    db.execute("COMMIT")


def _identity(path: Path) -> tuple[int, int] | None:
    """Return what tells a file from another of its name, None if there is none."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    return found.st_dev, found.st_ino


def _version(db: sqlite3.Connection) -> int:
    (version,) = db.execute("PRAGMA user_version").fetchone()
    return int(version)


def _bring_up_to_date(db: sqlite3.Connection, path: Path) -> None:
    written = _version(db)
    try:
        for version in range(written, FORMAT):
            MIGRATIONS[version](db)
            db.execute(f"PRAGMA user_version = {version + 1}")
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise NatalError(
            f"{path} has store format {written} and cannot be brought up to date ({str(error).splitlines()[0]}); "
            "restore it or name another directory with --out"
        ) from None


@contextmanager
def _sensibly(path: Path) -> Iterator[None]:
    """Turn what is no training, though SQLite finds nothing wrong with it, into one line, too."""
    try:
        with _plainly(path):
            yield
    except NatalError:
        raise
    except (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError) as error:
        said = (str(error).splitlines() or [""])[0]
        raise NatalError(
            f"{path} is damaged: it holds what natal did not write ({type(error).__name__}: {said}); restore the file, "
            "or run the study with --fresh"
        ) from None


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
        elif any(word in text for word in ("not a database", "malformed", "corrupt", "no such")):
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
