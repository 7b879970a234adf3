"""A run store with the 144 runs of the published program, for tests of the half that reads stores."""

from __future__ import annotations

import hashlib
import json
import sqlite3
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from natal.store import FILE, Outcome, Store, packing
from natal.store.sqlite import APPLICATION
from natal.store.training import COLUMNS
from natal.study import PAPERS, Maker, Run, Study, load_study

DATA = Path(__file__).parent / "data" / "as_published.json"
TASKS: dict[str, dict[str, Any]] = {
    "modular": {
        "metric": "accuracy",
        "field": "acc",
        "chance": 1 / 97,
        "loss": "cross-entropy",
        "learning_rate": 0.01,
        "inputs": 194,
        "outputs": 97,
        "fit_rows": 6774,
        "val_rows": 753,
        "train_rows": 7527,
        "test_rows": 1882,
    },
    "regression": {
        "metric": "R²",
        "field": "r2",
        "chance": 0.0,
        "loss": "squared-error",
        "learning_rate": 0.001,
        "inputs": 20,
        "outputs": 1,
        "fit_rows": 144,
        "val_rows": 16,
        "train_rows": 160,
        "test_rows": 40,
    },
}
HIDDEN = 128
MAKER = Maker("torch", 1, "cpu", "2.13.0+cpu", "2.4.6", "0.2.0")
MANIFEST: dict[str, Any] = {
    "tasks": TASKS,
    "python_version": "3.11.7",
    "torch_version": "2.13.0+cpu",
    "numpy_version": "2.4.6",
    "natal_version": "0.1.0",
    "platform": "Linux-x86_64",
    "processor": "AVX-512",
    "device": "cpu",
    "engine": "torch",
    "dtype": "float32",
    "threads": 1,
    "workers": 2,
    "deterministic": True,
    "elapsed_seconds": 407.4,
    "started_at": "2026-10-01T12:00:00Z",
    "finished_at": "2026-10-01T12:06:47Z",
}


def networks(study: Study, tasks: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """What the manifest says of each network; all of them are the paper's, whatever they are called."""
    sizes = {name: (about["inputs"] * HIDDEN, HIDDEN * about["outputs"]) for name, about in tasks.items()}
    return [
        {
            "task": task,
            "network": network,
            "engine": "torch",
            "parameters": sum(sizes[task]) + HIDDEN + tasks[task]["outputs"],
            "layers": {"hidden": [HIDDEN, tasks[task]["inputs"]], "output": [tasks[task]["outputs"], HIDDEN]},
            "macs": sum(sizes[task]),
            "steps": study.training.total_steps(tasks[task]["fit_rows"]),
            "steps_per_epoch": study.training.steps_per_epoch(tasks[task]["fit_rows"]),
        }
        for task, network in study.settings()
    ]


def reference_objects() -> list[dict[str, Any]]:
    objects: list[dict[str, Any]] = json.loads(DATA.read_text("utf-8"))["results"]
    return objects


def reference_study() -> Study:
    """The paper's study, its random masks being the ones the published program drew."""
    study = load_study("paper")
    recipes = [
        r.model_dump()
        if r.name != "random"
        else {"name": "random", "criterion": "init-stream", "scope": "threshold"}
        for r in study.strategies
    ]
    return load_study({**study.model_dump(mode="json"), "strategies": recipes})


def reference_outcomes() -> dict[Run, Outcome]:
    """The published runs as outcomes; densities follow from the initialisation, curves are made up."""
    return {_identity(o): _outcome(o) for o in reference_objects()}


def build(
    directory: Path, outcomes: dict[Run, Outcome] | None = None, study: Study | None = None, **manifest: Any
) -> Path:
    """Make a store in ``directory`` holding ``outcomes`` (all 144 published runs) for ``study``'s grid."""
    study = study or reference_study()
    outcomes = reference_outcomes() if outcomes is None else outcomes
    grid = [(run, _key(run)) for run in study.runs()]
    about = {"study_hash": study.digest, **MANIFEST, **manifest}
    with Store.create(directory) as store:
        store.declare(study, grid, {"networks": networks(study, about["tasks"]), **about})
        store.add([replace(outcomes[run], key=key) for run, key in grid if run in outcomes])
    return directory


GRID_3 = "position, task, strategy, sparsity, seed, network, key"


def tamper(directory: Path, *statements: str, sealed: bool = True) -> None:
    """Change a store by hand; ``sealed``: with digests that agree, as if natal had written it so."""
    db = sqlite3.connect(directory / FILE, isolation_level=None)
    for statement in statements:
        db.execute(statement)
    if sealed:
        for i, *texts in db.execute("SELECT id, diagnosis, proofs FROM detail").fetchall():
            told = packing.digest(*(text.encode() for text in texts))
            db.execute("UPDATE training SET detail = ? WHERE id = ?", (told, i))
        for i, lines, numbers in db.execute("SELECT id, lines, numbers FROM curve").fetchall():
            told = packing.digest(lines.encode(), numbers)
            db.execute("UPDATE training SET curve = ? WHERE id = ?", (told, i))
        for i, *row in db.execute(f"SELECT id, {', '.join(COLUMNS[:-1])} FROM training").fetchall():
            db.execute("UPDATE training SET digest = ? WHERE id = ?", (packing.digest_of_row(row), i))
        for table, of in (("grid", GRID_3), ("tried", "position, learning_rate, key")):
            for row in db.execute(f"SELECT {of} FROM {table}").fetchall():
                told = packing.digest_of_row(row)
                db.execute(
                    f"UPDATE {table} SET digest = ? WHERE ({of}) = ({', '.join('?' * len(row))})",
                    (told, *row),
                )
        for name, value in db.execute("SELECT name, value FROM manifest").fetchall():
            told = packing.digest(name.encode(), value.encode())
            db.execute("UPDATE manifest SET digest = ? WHERE name = ?", (told, name))
    db.close()


def two_networks(**changes: Any) -> tuple[Study, dict[Run, Outcome]]:
    """The paper's study with two networks, ``wide`` and ``narrow``: the published runs, and half their metric."""
    base = reference_study().model_dump(mode="json")
    del base["hidden"]
    wide, narrow = ({"network": "mlp", "hidden": [HIDDEN], "name": name} for name in ("wide", "narrow"))
    study = load_study({**base, "networks": [wide, narrow], "claims": [], **changes})
    published = reference_outcomes()
    outcomes = {}
    for run in study.runs():
        outcome = published[run._replace(network=PAPERS)]
        share = 0.5 if run.network == "narrow" else 1.0
        outcomes[run] = replace(outcome, test_metric=share * (outcome.test_metric or 0))
    return study, outcomes


def diverged(outcome: Outcome, epoch: int = 3) -> Outcome:
    """The same training, had its loss stopped being finite."""
    return replace(
        outcome,
        status="diverged",
        train_metric=None,
        val_metric=None,
        test_metric=None,
        final_loss=None,
        steps_trained=epoch,
        best_step=1,
        curves={name: curve[:epoch] for name, curve in outcome.curves.items()},
    )


def _identity(run: dict[str, Any]) -> Run:
    return Run(run["task"], run["strategy"], run["sparsity"], run["seed"])


def _key(run: Run) -> str:
    shared = run._replace(strategy="dense") if run.sparsity == 0 else run
    return hashlib.sha256(repr(tuple(shared)).encode()).hexdigest()[:16]


def _outcome(run: dict[str, Any]) -> Outcome:
    task = TASKS[run["task"]]
    sizes = {"hidden": task["inputs"] * HIDDEN, "output": HIDDEN * task["outputs"]}
    removed = int(run["sparsity"] * HIDDEN) if run["strategy"] == "structured" else 0
    kept = run["nonzero_params"] - task["outputs"] - (HIDDEN - removed)
    first = _kept_in_first_layer(run, task, sizes, kept, removed)
    densities = {
        "hidden": first / sizes["hidden"],
        "output": (kept - first) / sizes["output"],
    }
    epochs, best, metric = run["epochs_trained"], run["best_epoch"], run[f"val_{task['field']}"]
    curve = np.full(epochs, metric - 0.01)
    curve[:best] = np.linspace(metric - 0.5, metric, best) if best > 1 else metric
    return Outcome(
        key="",
        status="finished",
        total_params=run["total_params"],
        nonzero_params=run["nonzero_params"],
        prunable=sum(sizes.values()),
        kept=kept,
        densities=densities,
        steps_per_epoch=1,
        steps_planned=500,
        steps_trained=epochs,
        best_step=best,
        learning_rate=task["learning_rate"],
        train_metric=run[f"train_{task['field']}"],
        val_metric=metric,
        test_metric=run[f"test_{task['field']}"],
        final_loss=run["train_loss"],
        constant=0 in densities.values(),
        seconds=407.4 / 144,
        made_by=MAKER,
        deterministic=True,
        diagnosis=_diagnosis(run, sizes, {"hidden": first, "output": kept - first}, removed),
        curves={
            "step": np.arange(1.0, epochs + 1),
            "train_loss": np.linspace(5.0, run["train_loss"], epochs),
            "val_loss": np.linspace(5.0, 1.0, epochs),
            "val_metric": curve,
        },
    )


COLLAPSES = {"modular": 0.937, "regression": 0.424}
"""Where magnitude empties a layer of each task's network, about; see `_kept_in_first_layer`."""


def _diagnosis(
    run: dict[str, Any], sizes: dict[str, int], kept: dict[str, int], removed: int
) -> dict[str, Any]:
    """What the doctor might have said, had it seen these masks: paths and scales are made up."""
    if run["sparsity"] == 0:
        return {}
    total, density = sum(sizes.values()), sum(kept.values()) / sum(sizes.values())
    empty = [layer for layer, k in kept.items() if not k]
    if empty:
        findings = [
            ["fatal", "no path of kept weights leads from the input to the output: the network is constant"],
            ["fatal", f"{empty[0]}.weight has collapsed: no weight is left"],
        ]
    elif removed:
        dead = f"{removed} that nothing reaches and {removed} that reach no output, of {HIDDEN}"
        findings = [["warning", f"hidden.weight has dead units: {dead}"]]
    else:
        correlation = f"(r = +{0.5 + run['seed'] / 1000:.3f}, p < 1e-300)"
        findings = [["note", f"the mask depends on the weights: it correlates with |w| {correlation}"]]
    layers = [
        {
            "name": f"{layer}.weight",
            "weights": sizes[layer],
            "kept": k,
            "units": HIDDEN if layer == "hidden" else sizes["output"] // HIDDEN,
            "unread": 0,
            "effective": 0 if empty else k,
            "no_input": removed if layer == "hidden" else 0,
            "no_output": (HIDDEN if empty else removed) if layer == "hidden" else 0,
            "with_weight": None,
            "with_size": [0.5, 1e-9] if k and not removed else None,
            "scale": [0.5, 0.5 * density * (not empty)],
            "always_on": [0.0, 0.125] if layer == "hidden" else None,
            "always_off": [0.0, removed / HIDDEN] if layer == "hidden" else None,
        }
        for layer, k in kept.items()
    ]
    return {
        "effective_sparsity": 1.0 if empty else 1 - sum(kept.values()) / total,
        "collapses_at": COLLAPSES[run["task"]] if run["strategy"] == "magnitude" else None,
        "findings": findings,
        "layers": layers,
        "pictures": _pictures(kept),
    }


def _pictures(kept: dict[str, int]) -> list[list[Any]]:
    """What masks of these densities might look like: two rows of three blocks a layer."""
    return [
        [f"{layer}.weight", shows, 2, float(k > 0), "zh0" * 2 if k else "000" * 2]
        for layer, k in kept.items()
        for shows in ("all", "corner")
    ]


def _kept_in_first_layer(
    run: dict[str, Any], task: dict[str, int], sizes: dict[str, int], kept: int, removed: int
) -> int:
    if run["strategy"] == "structured":
        return task["inputs"] * (HIDDEN - removed)
    if run["strategy"] == "random" or run["sparsity"] == 0:
        return round(kept * sizes["hidden"] / sum(sizes.values()))
    # magnitude: one threshold over two uniform distributions of different widths; a layer can go whole
    bounds: dict[str, float] = {"hidden": task["inputs"] ** -0.5, "output": HIDDEN**-0.5}
    low, high = 0.0, max(bounds.values())
    for _ in range(60):
        cut = (low + high) / 2
        gone = sum(n * min(1, cut / bounds[layer]) for layer, n in sizes.items())
        low, high = (cut, high) if gone < sum(sizes.values()) - kept else (low, cut)
    first = round(sizes["hidden"] * (1 - min(1, low / bounds["hidden"])))
    if low > bounds["output"]:
        first = kept
    return min(first, kept)


# -- stores of earlier versions ----------------------------------------------------------------------------

FORMAT_1 = """
CREATE TABLE training (key TEXT PRIMARY KEY, status TEXT NOT NULL, facts TEXT NOT NULL,
                       train_loss BLOB NOT NULL, val_metric BLOB NOT NULL, finished_at TEXT NOT NULL
                       DEFAULT CURRENT_TIMESTAMP) WITHOUT ROWID;
CREATE TABLE grid (position INTEGER PRIMARY KEY, task TEXT NOT NULL, strategy TEXT NOT NULL, sparsity REAL NOT NULL,
                   seed INTEGER NOT NULL, key TEXT NOT NULL);
CREATE TABLE manifest (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
"""
"""What natal 0.2.0 created."""
FACTS_1: dict[str, Any] = {
    "total_params": 705, "nonzero_params": 369, "prunable": 672, "kept": 336,
    "densities": {"hidden": 0.5, "output": 0.5}, "epochs_trained": 3, "best_epoch": 2,
    "train_metric": 0.1, "val_metric": 0.2, "test_metric": 1 / 3, "final_loss": 1e-300, "constant": False,
    "seconds": 0.5, "made_by": "batched engine, cpu, natal 0.2.0, torch 2.13.0+cpu, numpy 2.4.6",
    "deterministic": True, "diagnosis": {},
}  # fmt: skip
MANIFEST_1: dict[str, Any] = {
    "study": {"name": "old", "description": "", "plugins": [], "tasks": ["regression"], "hidden": 32,
              "strategies": [{"name": "snip", "criterion": "snip", "scope": "global", "granularity": "weight"}],
              "sparsities": [0.5], "seeds": [1, 2],
              "training": {"epochs": 12, "patience": 4, "target": 0.999, "validation_fraction": 0.1,
                           "learning_rate": None}, "claims": []},
    "tasks": {"regression": {"metric": "R²", "field": "r2", "chance": 0.0, "loss": "squared-error",
                             "learning_rate": 0.001, "inputs": 20, "outputs": 1, "fit_rows": 144, "val_rows": 16,
                             "train_rows": 160, "test_rows": 40}},
    "natal_version": "0.2.0", "engine": "batched", "finished_at": "2026-10-01T12:06:47Z",
}  # fmt: skip


def old(directory: Path) -> Path:
    """A store as natal 0.2.0 left it: two rows, one of them trained."""
    directory.mkdir(parents=True)
    db = sqlite3.connect(directory / FILE)
    db.executescript(f"PRAGMA application_id = {APPLICATION}; PRAGMA user_version = 1; {FORMAT_1}")
    with db:
        blobs = [np.array(curve).tobytes() for curve in ([3.0, 2.0, 1 / 3], [-np.inf, 0.2, np.nan])]
        when = "2026-10-01 12:00:00"
        db.execute(
            "INSERT INTO training VALUES (?, ?, ?, ?, ?, ?)",
            ("k1", "finished", json.dumps(FACTS_1), *blobs, when),
        )
        db.executemany(
            "INSERT INTO grid VALUES (?, 'regression', 'snip', 0.5, ?, ?)", [(0, 1, "k1"), (1, 2, "k2")]
        )
        db.executemany(
            "INSERT INTO manifest VALUES (?, ?)", [(k, json.dumps(v)) for k, v in MANIFEST_1.items()]
        )
    db.close()
    return directory
