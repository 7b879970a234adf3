"""How a training lies in the store: the tables since format 3, and the way in and out of them. No torch here."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from natal.store import packing
from natal.store.record import Curves, Outcome
from natal.study import Maker

SCHEMA = """
CREATE TABLE maker (id INTEGER PRIMARY KEY, made_by TEXT NOT NULL UNIQUE, digest INTEGER NOT NULL);
CREATE TABLE training (
    id INTEGER PRIMARY KEY, key TEXT NOT NULL UNIQUE, status TEXT NOT NULL, maker INTEGER NOT NULL,
    total_params INTEGER NOT NULL, nonzero_params INTEGER NOT NULL, prunable INTEGER NOT NULL, kept INTEGER NOT NULL,
    densities TEXT NOT NULL, steps_per_epoch INTEGER NOT NULL, steps_planned INTEGER, steps_trained INTEGER NOT NULL,
    best_step INTEGER NOT NULL, learning_rate REAL, train_metric REAL, val_metric REAL, test_metric REAL,
    final_loss REAL, constant INTEGER NOT NULL, seconds REAL NOT NULL, deterministic INTEGER NOT NULL,
    effective_sparsity REAL, collapses_at REAL, severity TEXT, first_step INTEGER NOT NULL, begun INTEGER NOT NULL,
    detail INTEGER NOT NULL, curve INTEGER NOT NULL, digest INTEGER NOT NULL,
    finished_at TEXT NOT NULL DEFAULT CURRENT_TIMESTAMP);
CREATE TABLE detail (id INTEGER PRIMARY KEY, diagnosis TEXT NOT NULL, proofs TEXT NOT NULL);
CREATE TABLE curve (id INTEGER PRIMARY KEY, lines TEXT NOT NULL, numbers BLOB NOT NULL);
CREATE TABLE failure (key TEXT PRIMARY KEY, reason TEXT NOT NULL, tries INTEGER NOT NULL,
                      at TEXT NOT NULL DEFAULT CURRENT_TIMESTAMP) WITHOUT ROWID;
"""
"""Trainings since format 3: columns that questions are asked of, and apart from them what is seldom read whole.

``maker``: who made it, by number. ``detail`` and ``curve``: digests of the row with the same ``id`` in those tables;
``digest``: of all columns before it, see `natal.store.packing`. Rows lie in the order in which they came. ``failure``:
trainings that could not be made, until they are.
"""


class Columns(NamedTuple):
    """A training as format 3 has it: its row but for ``maker`` and ``digest``, its detail and its curves."""

    row: tuple[Any, ...]
    detail: tuple[str, str]
    curve: tuple[str, bytes]


@dataclass(frozen=True)
class Written(Outcome):
    """A training with its columns, worked out where it was made: the command that stores it has many others.

    A copy with other fields has none.
    """

    columns: Columns | None = field(init=False, default=None, repr=False, compare=False)


def columns_of(o: Outcome) -> Columns:
    """Return a training's columns, worked out here unless it brings them."""
    made = o.columns if isinstance(o, Written) else None
    return columns(o.key, o.status, o.facts(), o.curves) if made is None else made


def written(o: Outcome) -> Written:
    """Return a training with its columns; its diagnosis, proofs and curves are read from there."""
    made = columns_of(o)
    diagnosis, proofs = (packing.Later(json.loads, text) for text in made.detail)
    apart = {"diagnosis": diagnosis, "proofs": proofs, "curves": packing.Packed(*made.curve)}
    new = Written(**{f.name: getattr(o, f.name) for f in fields(Outcome)} | apart)
    object.__setattr__(new, "columns", made)
    return new


def columns(key: str, status: str, facts: Mapping[str, Any], curves: Curves) -> Columns:
    """Return a training's columns from what it says of itself."""
    diagnosis, proofs = packing.plain(facts["diagnosis"]), packing.plain(facts.get("proofs", {}))
    detail = json.dumps(diagnosis), json.dumps(proofs)
    lines, numbers = packing.pack(curves)
    findings = diagnosis.get("findings", ())
    planned = facts["steps_planned"]
    row = (
        key, status,
        *(int(facts[n]) for n in ("total_params", "nonzero_params", "prunable", "kept")),
        json.dumps(facts["densities"]), int(facts["steps_per_epoch"]), None if planned is None else int(planned),
        int(facts["steps_trained"]), int(facts["best_step"]),
        *(packing.number(facts[n]) for n in (
            "learning_rate", "train_metric", "val_metric", "test_metric", "final_loss")),
        int(facts["constant"]), float(facts["seconds"]), int(facts["deterministic"]),
        packing.number(diagnosis.get("effective_sparsity")), packing.number(diagnosis.get("collapses_at")),
        str(findings[0][0]) if findings else None,
        int(proofs.get("restarted", {}).get("step", 0)), int("never_begun" not in proofs),
        packing.digest(*(text.encode() for text in detail)), packing.digest(lines.encode(), numbers),
    )  # fmt: skip
    return Columns(row, detail, (lines, numbers))


def insert(db: sqlite3.Connection, maker: int, made: Columns) -> int | None:
    """Store a training; return its id, None if its key was there already."""
    key, status, *rest = made.row
    row = (key, status, maker, *rest)
    added = db.execute(_INSERT, (*row, packing.digest_of_row(row)))
    if not added.rowcount:
        return None
    db.execute("INSERT INTO detail VALUES (?, ?, ?)", (added.lastrowid, *made.detail))
    db.execute("INSERT INTO curve VALUES (?, ?, ?)", (added.lastrowid, *made.curve))
    return added.lastrowid


COLUMNS = (
    "key", "status", "maker", "total_params", "nonzero_params", "prunable", "kept", "densities", "steps_per_epoch",
    "steps_planned", "steps_trained", "best_step", "learning_rate", "train_metric", "val_metric", "test_metric",
    "final_loss", "constant", "seconds", "deterministic", "effective_sparsity", "collapses_at", "severity",
    "first_step", "begun", "detail", "curve", "digest",
)  # fmt: skip
_INSERT = f"INSERT OR IGNORE INTO training ({', '.join(COLUMNS)}) VALUES ({', '.join('?' * len(COLUMNS))})"


def maker(db: sqlite3.Connection, made_by: str) -> int:
    """Return the number of a maker, written down once."""
    known = db.execute("SELECT id FROM maker WHERE made_by = ?", (made_by,)).fetchone()
    if known:
        return int(known[0])
    added = db.execute(
        "INSERT INTO maker (made_by, digest) VALUES (?, ?)", (made_by, packing.digest(made_by.encode()))
    )
    return int(added.lastrowid or 0)


def outcome(
    row: Sequence[Any], made_by: Maker, diagnosis: dict[str, Any], proofs: dict[str, Any], curves: Curves
) -> Outcome:
    """Return a training from its row, from ``key`` to ``digest``, and what lies apart from it."""
    one = dict(zip(COLUMNS, row, strict=True))
    for name in (
        "maker",
        "effective_sparsity",
        "collapses_at",
        "severity",
        "first_step",
        "begun",
        "detail",
        "curve",
        "digest",
    ):
        del one[name]
    for name in ("constant", "deterministic"):
        one[name] = bool(one[name])
    one["densities"] = json.loads(one["densities"])
    return Outcome(**one, made_by=made_by, diagnosis=diagnosis, proofs=proofs, curves=curves)


Table = Mapping[str, NDArray[Any]]
"""Trainings as columns by name, those of `COLUMNS` but the digests; numbers that are None are NaN, whole ones -1."""
_WHOLE = {
    *(
        "maker",
        "total_params",
        "nonzero_params",
        "prunable",
        "kept",
        "steps_per_epoch",
        "steps_planned",
        "steps_trained",
    ),
    *("best_step", "constant", "deterministic", "first_step", "begun"),
}
_WORDS = {"key", "status", "densities", "severity"}


def table(rows: Sequence[Sequence[Any]]) -> dict[str, NDArray[Any]]:
    """Return rows, from ``key`` to ``digest``, as columns; raises ValueError or TypeError for what is no number."""
    found: dict[str, NDArray[Any]] = {}
    same: dict[Any, Any] = {}
    columns: Sequence[Sequence[Any]] = list(zip(*rows, strict=True)) if rows else [()] * len(COLUMNS)
    for name, values in zip(COLUMNS, columns, strict=True):
        if name in _WHOLE:
            found[name] = np.array([-1 if v is None else v for v in values], np.int64)
        elif name in _WORDS:
            # few different words, many rows
            values = values if name == "key" else [same.setdefault(v, v) for v in values]
            found[name] = np.fromiter(values, object, len(values))
        elif name not in ("detail", "curve", "digest"):
            found[name] = np.array([np.nan if v is None else v for v in values], np.float64)
    for name in ("total_params", "prunable", "steps_per_epoch"):
        if (found[name] < 1).any():
            raise ValueError(f"{name} is not positive")
    return found
