"""How time and memory grow with a study's runs: made-up stores of 10³ to 10⁶ runs, and what is asked of them.

    python benchmarks/scale.py [--runs 1000 10000 100000] [--shape seeds | cells] [--points 500] [--folder DIR]

``seeds``: 2 tasks x 25 strategies x 10 levels, the rest seeds; ``cells``: 10 seeds, the rest cells. Keys are those that
`natal plan` gives, so that the store is all done for it; masks, diagnoses and curves have the usual size and are made
up. Every question is a command of its own: its wall time, its processor time, and the most memory it held at once.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import natal
from machine import hardware
from natal.machine import facts
from natal.reading.report.files import study_bytes
from natal.store import FILE, NetworkFacts, Store
from natal.store.training import columns, insert, maker
from natal.study import Run

if TYPE_CHECKING:
    from natal.lab.plan import Plan

SCOPES: tuple[dict[str, str], ...] = (
    {"scope": "global"},
    {"scope": "layerwise"},
    {"scope": "global", "control": "shuffle"},
    {"scope": "global", "control": "reinit"},
    {"scope": "erk"},
)
CRITERIA = ("magnitude", "random", "snip", "lamp", "grasp")
TASKS = 2


def study(runs: int, shape: str) -> dict[str, Any]:
    """Return a study of so many runs."""
    strategies = [
        {"name": "-".join([criterion, *how.values()]), "criterion": criterion, **how}
        for criterion in CRITERIA
        for how in SCOPES
    ]
    levels = 10 if shape == "seeds" else runs // (TASKS * len(strategies) * 10)
    seeds = runs // (TASKS * len(strategies) * levels)
    return {
        "name": f"scale-{shape}",
        "tasks": [
            {"task": "regression", "name": "regression"},
            {"task": "digits", "name": "digits"},
        ],
        "hidden": 32,
        "strategies": strategies,
        "sparsities": [round(float(s), 6) for s in np.linspace(0, 0.95, levels)],
        "seeds": list(range(seeds)),
        "training": {"epochs": 500},
    }


def fill(directory: Path, planned: Plan, points: int) -> None:
    """Store all trainings of a plan, made up: of each cell one mask and diagnosis, of each run a metric and curves."""
    from natal.lab.engines import made_by
    from natal.lab.run import _declare

    about = {facts.setting: facts for facts in planned.networks}
    rng = np.random.default_rng(0)
    noise = np.cumsum(rng.standard_normal((64, points)).astype(np.float32), 1) / 100
    with Store.create(directory) as store:
        _declare(store, planned)
        db = store._db
        done: set[str] = set()
        masks: dict[Run, tuple[dict[str, Any], float]] = {}
        with store._transaction():
            by = {
                setting: maker(db, json.dumps(asdict(made_by(chosen.engine, planned.device))))
                for setting, chosen in planned.settings.items()
            }
            for run, key in planned.grid:
                if key in done:
                    continue
                done.add(key)
                cell = run._replace(seed=0, strategy=run.strategy if run.sparsity else "")
                if cell not in masks:
                    masks[cell] = mask(run, about[run.setting]), float(rng.random())
                what, worth = masks[cell]
                metric = 0.95 - 0.3 * run.sparsity**3 * (1 + worth) + 0.01 * float(rng.standard_normal())
                curve = (metric - 0.3 + 0.3 * np.linspace(0, 1, points) ** 0.3).astype(np.float32)
                curve[:-1] = np.minimum(curve[:-1] + noise[run.seed % 64, :-1], curve[-1] - np.float32(1e-6))
                loss = (1 - curve).astype(np.float64)
                lines = {
                    "step": np.linspace(500 / points, 500, points),
                    "train_loss": loss,
                    "val_loss": loss,
                    "val_metric": curve.astype(np.float64),
                }
                numbers = {"train_metric": metric, "val_metric": float(curve[-1]), "test_metric": metric}
                one = {**what, **numbers, "final_loss": float(loss[-1])}
                insert(db, by[run.setting], columns(key, "finished", one, lines))
        store.note(finished_at="2026-11-26T00:00:00Z", deterministic=True)


def _fill(file: Path, directory: Path, points: int) -> None:
    fill(directory, natal.plan(file, directory), points)


def mask(run: Run, network: NetworkFacts) -> dict[str, Any]:
    """Return the facts that the trainings of a cell share."""
    sizes = network.sizes
    total = sum(sizes.values())
    kept = {name: size - int(run.sparsity * size) for name, size in sizes.items()}
    if not run.strategy.endswith("layerwise"):  # the others share the total out, and it is exact
        kept[next(iter(kept))] += total - int(run.sparsity * total) - sum(kept.values())
    layers = [
        {"name": f"{name}.weight", "weights": sizes[name], "kept": k, "units": network.layers[name][0], "unread": 0,
         "effective": k, "removed": 0, "no_input": 0, "no_output": 0, "with_weight": [0.0074, 0.7054],
         "with_size": [0.7839, 1e-9], "scale": [0.5, 0.4], "always_on": [0.0, 0.0], "always_off": [0.0, 0.0]}
        for name, k in kept.items()
    ]  # fmt: skip
    findings = [
        ["note", "the mask depends on the weights: it correlates with |w| (r = +0.78, p < 1e-300); a random must not"],
        ["note", "global selection by these scores empties output.weight from sparsity 0.4126 on"],
    ]  # fmt: skip
    realised = 1 - sum(kept.values()) / total
    diagnosis = {"effective_sparsity": realised, "collapses_at": None, "findings": findings, "layers": layers}
    return {
        "total_params": network.parameters, "nonzero_params": network.parameters - total + sum(kept.values()),
        "prunable": total, "kept": sum(kept.values()), "densities": {n: k / sizes[n] for n, k in kept.items()},
        "steps_per_epoch": 1, "steps_planned": 500, "steps_trained": 500, "best_step": 500, "learning_rate": 0.001,
        "constant": False, "seconds": 0.05, "deterministic": True,
        "diagnosis": diagnosis if run.sparsity else {},
        "proofs": {"held": True, "rewound": True, "sparsity": realised,
                   "restarted": {"step": 0, "learning_rate": 0.001, "optimiser": "fresh", "batch": "all"}},
    }  # fmt: skip


def asked(file: Path, directory: Path, empty: Path) -> Iterator[tuple[str, Sequence[str]]]:
    """Yield each question and the command that answers it."""
    verb = [sys.executable, "-m", "natal"]
    python = [sys.executable, "-c"]
    yield "plan, nothing done", [*verb, "plan", str(file), "--out", str(empty)]
    yield "plan, all done", [*verb, "plan", str(file), "--out", str(directory)]
    yield "report", [*verb, "report", str(directory)]
    yield "validate", [*verb, "validate", str(directory)]
    yield "run, all done and written", [*verb, "run", str(file), "--out", str(directory), "--quiet"]
    yield "load", [*python, f"import natal; natal.load({str(directory)!r})"]
    yield "load + frame", [*python, f"import natal; print(natal.load({str(directory)!r}).frame().shape)"]
    yield "load + runs", [*python, f"import natal; print(len(natal.load({str(directory)!r}).runs))"]


def measured(command: Sequence[str]) -> tuple[float, float, float, int]:
    """Return a command's wall and processor seconds, the most bytes it held, and its exit status."""
    started = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    assert process.stderr is not None
    said = process.stderr.read().decode()
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        print(said.strip()[-2000:], file=sys.stderr)
    seconds = time.perf_counter() - started
    return seconds, used.ru_utime + used.ru_stime, used.ru_maxrss * 1024, process.returncode


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--runs", type=int, nargs="+", default=[1000, 10_000, 100_000])
    parser.add_argument("--shape", choices=("seeds", "cells"), default="seeds")
    parser.add_argument(
        "--points", type=int, default=500, help="of each curve; less for a million runs saves a disk"
    )
    parser.add_argument("--folder", type=Path, help="where stores are made, and kept")
    parser.add_argument("--only", help="of the questions those that begin so")
    chosen = parser.parse_args()
    print(hardware())
    print(
        ", ".join(
            f"{name} {value}" for name, value in facts() if name in ("natal", "python", "torch", "numpy")
        )
    )
    before: dict[str, tuple[int, float]] = {}
    for runs in chosen.runs:
        base = chosen.folder or Path(tempfile.mkdtemp())
        directory, empty = base / f"{chosen.shape}-{runs}", base / "empty"
        base.mkdir(parents=True, exist_ok=True)
        asked_study = natal.load_study(study(runs, chosen.shape))
        file = base / f"{chosen.shape}-{runs}.toml"
        file.write_bytes(study_bytes(asked_study))
        if not (directory / FILE).exists():
            started = time.perf_counter()
            # elsewhere: a command that is started is charged with the memory of who starts it
            with ProcessPoolExecutor(1, get_context("spawn")) as elsewhere:
                elsewhere.submit(_fill, file, directory, chosen.points).result()
            print(f"made in {time.perf_counter() - started:.0f} s")
        size = (directory / FILE).stat().st_size
        print(
            f"{len(asked_study.runs()):,} runs ({chosen.shape}), curves of {chosen.points} points: {size / 1e6:,.0f} MB"
        )
        for name, command in asked(file, directory, empty):
            if chosen.only and not name.startswith(chosen.only):
                continue
            seconds, own, memory, status = measured(command)
            growth = ""
            if name in before:
                fewer, earlier = before[name]
                growth = f"  {own / earlier:5.1f} times for {runs / fewer:.0f} times the runs"
            before[name] = runs, own
            failed = f"  exit status {status}" * bool(status)
            print(
                f"  {name:<28} {seconds:8.1f} s  {own:8.1f} s of CPU  {memory / 2**20:8,.0f} MiB{growth}{failed}",
                flush=True,
            )
        if chosen.folder is None:
            shutil.rmtree(base)


if __name__ == "__main__":
    main()
