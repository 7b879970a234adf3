"""From every earlier format of the run store to today's, one step a function. A step is never changed again.

A store is brought up to date when a study is run in it; a reader brings a copy in memory up to date and leaves the file
as it was.
"""

from __future__ import annotations

import json
import re
import sqlite3
from collections.abc import Callable

import numpy as np

from natal.store import packing
from natal.store.training import SCHEMA, columns, insert, maker

_MADE_BY = re.compile(r"(\w+) engine, ([\w:]+), natal ([^,]+), torch ([^,]+), numpy ([^,]+)")
_ENGINES = {"batched": "compiled", "sequential": "torch"}


def one_to_two(db: sqlite3.Connection) -> None:
    """Networks, steps instead of epochs, curves in a table of their own, and who made a training as fields."""
    db.execute("ALTER TABLE grid ADD COLUMN network TEXT NOT NULL DEFAULT 'mlp'")
    db.execute("ALTER TABLE training RENAME TO training_1")
    for statement in (
        "CREATE TABLE training (key TEXT PRIMARY KEY, status TEXT NOT NULL, made_by TEXT NOT NULL, facts TEXT NOT NULL,"
        " finished_at TEXT NOT NULL DEFAULT CURRENT_TIMESTAMP) WITHOUT ROWID",
        "CREATE TABLE curve (key TEXT NOT NULL, name TEXT NOT NULL, numbers BLOB NOT NULL,"
        " PRIMARY KEY (key, name)) WITHOUT ROWID",
        "CREATE TABLE tried (position INTEGER NOT NULL, learning_rate REAL NOT NULL, key TEXT NOT NULL,"
        " PRIMARY KEY (position, learning_rate)) WITHOUT ROWID",
    ):
        db.execute(statement)
    rows = db.execute("SELECT key, status, facts, train_loss, val_metric, finished_at FROM training_1")
    for key, status, text, loss, metric, when in rows:  # one at a time: all together need not fit into memory
        facts = json.loads(text)
        made_by = _made_by(str(facts.pop("made_by")))
        epochs, best = facts.pop("epochs_trained"), facts.pop("best_epoch")
        facts |= {"steps_per_epoch": 1, "steps_planned": None, "steps_trained": epochs, "best_step": best}
        facts["learning_rate"] = None
        db.execute(
            "INSERT INTO training VALUES (?, ?, ?, ?, ?)",
            (key, status, json.dumps(made_by), json.dumps(facts), when),
        )
        steps = np.arange(1, len(loss) // 8 + 1, dtype=np.float64).tobytes()
        db.executemany(
            "INSERT INTO curve VALUES (?, ?, ?)",
            [(key, "step", steps), (key, "train_loss", loss), (key, "val_metric", metric)],
        )
    db.execute("DROP TABLE training_1")


def _made_by(words: str) -> dict[str, str | int]:
    match = _MADE_BY.fullmatch(words)
    engine, device, natal, torch, numpy = match.groups() if match else (words, "", "", "", "")
    return {
        "engine": _ENGINES.get(engine, engine),
        "revision": 1,
        "device": device,
        "torch": torch,
        "numpy": numpy,
        "natal": natal,
    }


def two_to_three(db: sqlite3.Connection) -> None:
    """Columns instead of JSON, makers once, digests, curves of a training in one row; trainings move one by one."""
    db.execute("ALTER TABLE training RENAME TO training_2")
    db.execute("ALTER TABLE curve RENAME TO curve_2")
    for statement in SCHEMA.split(";")[:-1]:
        db.execute(statement)
    last = ""
    while rows := db.execute(
        "SELECT key, status, made_by, facts, finished_at FROM training_2 WHERE key > ? ORDER BY key LIMIT 500",
        (last,),
    ).fetchall():
        for key, status, made_by, text, when in rows:
            lines = db.execute("SELECT name, numbers FROM curve_2 WHERE key = ?", (key,))
            curves = {name: np.frombuffer(numbers) for name, numbers in lines}
            order = sorted(curves, key=lambda name: (name != "step", name != "train_loss", name))
            training = columns(key, status, json.loads(text), {name: curves[name] for name in order})
            number = insert(db, maker(db, made_by), training)
            db.execute("UPDATE training SET finished_at = ? WHERE id = ?", (when, number))
        last = rows[-1][0]
        # what has moved gives its room to what comes next
        db.execute("DELETE FROM training_2 WHERE key <= ?", (last,))
        db.execute("DELETE FROM curve_2 WHERE key <= ?", (last,))
    db.execute("DROP TABLE training_2")
    db.execute("DROP TABLE curve_2")
    db.create_function("digest_of_row", -1, lambda *row: packing.digest_of_row(row))
    for table, columns_ in (
        ("grid", "position, task, strategy, sparsity, seed, network, key"),
        ("tried", "position, learning_rate, key"),
    ):
        db.execute(f"ALTER TABLE {table} ADD COLUMN digest INTEGER NOT NULL DEFAULT 0")
        db.execute(f"UPDATE {table} SET digest = digest_of_row({columns_})")
    db.execute("ALTER TABLE manifest ADD COLUMN digest INTEGER NOT NULL DEFAULT 0")
    for name, value in db.execute("SELECT name, value FROM manifest").fetchall():
        db.execute(
            "UPDATE manifest SET digest = ? WHERE name = ?",
            (packing.digest(name.encode(), value.encode()), name),
        )


MIGRATIONS: dict[int, Callable[[sqlite3.Connection], None]] = {1: one_to_two, 2: two_to_three}
"""What leads from a format to the next one."""
