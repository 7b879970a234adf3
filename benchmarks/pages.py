"""How heavy a report's page is, and how long it takes to make and to open: 144 runs, and 100,000.

    python benchmarks/pages.py [--runs 144 100000]

The runs are made up: masks, curves and diagnoses of the usual size, metrics that fall with sparsity. Opened is until a
headless Chromium has drawn the first chart, which is scrolled to, and until nothing is left to draw.
"""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from machine import hardware
from natal.reading import report
from natal.reading.results import load
from natal.store import Outcome, Store
from natal.study import Maker, Study, load_study

MAKER = Maker("torch", 1, "cpu", "2.13.0+cpu", "2.4.6", "0.3.0")
SHAPES = {144: (2, 1, 3, 8, 3), 100_000: (2, 5, 20, 50, 10)}
"""Tasks, networks, strategies, sparsities and seeds."""
LAYERS = {"fc1": [300, 784], "fc2": [100, 300], "output": [10, 100]}
SIZES = {name: rows * columns for name, (rows, columns) in LAYERS.items()}
EPOCHS = 50
PICTURES = [
    *(("fc1", shows, 14, 14) for shows in ("pixels", *(f"unit {i}" for i in range(6)))),
    *((name, shows, min(12, LAYERS[name][0]), 12) for name in LAYERS for shows in ("all", "corner")),
]
POOL = "0123456789abcdefghijklmnopqrstuvwxyz" * 8


def made_up(directory: Path, shape: tuple[int, int, int, int, int]) -> None:
    """Fill a store with a study of this shape."""
    tasks, networks, strategies, levels, seeds = shape
    study = load_study(
        {
            "name": "pages",
            "tasks": [{"task": "digits", "name": f"task-{i}"} for i in range(tasks)],
            "networks": [
                {"network": "mlp", "hidden": [300, 100], "name": f"net-{i}"} for i in range(networks)
            ],
            "strategies": [{"name": f"strategy-{i}", "criterion": "magnitude"} for i in range(strategies)],
            "sparsities": [round(float(s), 4) for s in np.linspace(0, 0.99, levels)],
            "seeds": list(range(seeds)),
            "training": {"epochs": EPOCHS},
        }
    )
    grid = [
        (run, "|".join(map(str, run._replace(strategy="" if not run.sparsity else run.strategy))))
        for run in study.runs()
    ]
    with Store.create(directory) as store:
        store.declare(study, grid, manifest(study))
        made: dict[str, Outcome] = {}
        rng = np.random.default_rng(0)
        for run, key in grid:
            if key not in made:
                made[key] = outcome(key, run.sparsity, int(run.strategy.rpartition("-")[2]), rng)
        outcomes = list(made.values())
        for i in range(0, len(outcomes), 5000):
            store.add(outcomes[i : i + 5000])


def manifest(study: Study) -> dict[str, Any]:
    task = {
        **{
            "metric": "accuracy",
            "field": "acc",
            "chance": 0.1,
            "loss": "cross-entropy",
            "learning_rate": 1e-3,
        },
        **{
            "inputs": 784,
            "outputs": 10,
            "fit_rows": 900,
            "val_rows": 100,
            "train_rows": 1000,
            "test_rows": 1000,
        },
    }
    weights = sum(SIZES.values())
    network = {"engine": "torch", "parameters": weights + 410, "layers": LAYERS, "macs": weights}
    length = {"steps": EPOCHS, "steps_per_epoch": 1}
    return {
        "tasks": dict.fromkeys(study.task_names, task),
        "networks": [{"task": t, "network": n, **network, **length} for t, n in study.settings()],
        "study_hash": study.digest,
        "elapsed_seconds": 1.0,
        "deterministic": True,
    }


def outcome(key: str, sparsity: float, strategy: int, rng: np.random.Generator) -> Outcome:
    kept = {name: size - int(sparsity * size) for name, size in SIZES.items()}
    metric = float(0.95 - 0.3 * sparsity**3 * (1 + strategy / 40) + 0.01 * rng.standard_normal())
    curve = np.linspace(metric - 0.3, metric, EPOCHS)
    layers = [
        {"name": f"{name}.weight", "weights": SIZES[name], "kept": k, "units": LAYERS[name][0], "unread": 0,
         "effective": k, "no_input": 0, "no_output": 0, "with_weight": None, "with_size": [0.5, 1e-9],
         "scale": [0.5, 0.4], "always_on": None, "always_off": None}
        for name, k in kept.items()
    ]  # fmt: skip
    pictures = [
        [f"{layer}.weight", shows, rows, 0.5, POOL[int(rng.integers(40)) :][: rows * columns]]
        for layer, shows, rows, columns in PICTURES
    ]
    findings = [["note", f"the mask depends on the weights: it correlates with |w| (r = +{metric:.3f})"]]
    diagnosis = {
        "effective_sparsity": sparsity,
        "collapses_at": None,
        "findings": findings,
        "layers": layers,
        "pictures": pictures,
    }
    return Outcome(
        key=key, status="finished", total_params=sum(SIZES.values()) + 410, nonzero_params=sum(kept.values()),
        prunable=sum(SIZES.values()), kept=sum(kept.values()), densities={n: k / SIZES[n] for n, k in kept.items()},
        steps_per_epoch=1, steps_planned=EPOCHS, steps_trained=EPOCHS, best_step=EPOCHS, learning_rate=1e-3,
        train_metric=metric, val_metric=metric, test_metric=metric, final_loss=0.1, constant=False, seconds=1.0,
        made_by=MAKER, deterministic=True, diagnosis=diagnosis if sparsity else {},
        curves={"step": np.arange(1.0, EPOCHS + 1), "train_loss": 1 - curve, "val_loss": 1 - curve,
                "val_metric": curve},
    )  # fmt: skip


def opened(path: Path) -> tuple[float, float] | None:
    """Return seconds until the first chart is drawn, and until all are that will be; None without a browser."""
    chromium = shutil.which("chromium")
    if chromium is None:
        return None
    from playwright.sync_api import sync_playwright

    with sync_playwright() as play:
        browser = play.chromium.launch(
            executable_path=chromium, args=["--no-sandbox"] if os.geteuid() == 0 else []
        )
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        start = time.perf_counter()
        page.goto(path.as_uri())
        # of many charts a page draws those that a reader comes near
        page.locator("main .chart").first.scroll_into_view_if_needed()
        page.wait_for_selector("svg.marks, canvas.marks", timeout=300_000)
        first = time.perf_counter() - start
        page.wait_for_selector("html[data-ready]", timeout=300_000)
        return first, time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--runs", type=int, nargs="+", choices=sorted(SHAPES), default=sorted(SHAPES))
    print(hardware())
    for runs in parser.parse_args().runs:
        with tempfile.TemporaryDirectory() as folder:
            directory = Path(folder)
            made_up(directory, SHAPES[runs])
            start = time.perf_counter()
            results = load(directory)
            content = report.outputs(results)["report.html"]()
            made = time.perf_counter() - start
            path = directory / "report.html"
            path.write_bytes(content)
            seen = opened(path)
        words = "no browser here" if seen is None else f"first chart {seen[0]:.1f} s, all {seen[1]:.1f} s"
        print(
            f"{runs:>7,} runs: {len(content) / 1e6:.2f} MB, made in {made:.1f} s; opened: {words}", flush=True
        )


if __name__ == "__main__":
    main()
