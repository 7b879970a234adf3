"""How fast is the compiled engine? It and plain PyTorch engines in turn, on the same study, in one session.

    python benchmarks/study.py                the whole study with both engines (about five minutes on two cores)
    python benchmarks/study.py --seeds        also: does ten times the seeds cost ten times the time?
    python benchmarks/study.py --repeats 3    medians of three rounds

Every figure is that of a whole `natal run` command in a fresh process; "training" leaves out starting Python and
torch, planning, and writing figures. The floor is the arithmetic the study cannot avoid, at the speed of the matrix
products of this very machine in this very session.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
import threading
import time
import timeit
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import NamedTuple

import numpy as np
import psutil
import torch
from numba import njit

import natal
from machine import hardware
from natal.determinism import one_thread
from natal.lab.engines.compiled import products
from natal.lab.engines.compiled.vectors import wide
from natal.reading.results import Results, compare, published_objects
from natal.wording import describe

TASKS = ("modular", "regression")
SHARED = {"torch": ("--set", "share=false"), "compiled": ("--set", "share=true")}
"""The dense network of a seed is one row of each strategy: trained for each, or once."""


class Timing(NamedTuple):
    """One `natal run`: seconds of the command and of training alone, peak memory in MB, and what it made."""

    command: float
    training: float
    peak: float
    results: Results


def measure(folder: Path, study: str, engine: str, *options: str) -> Timing:
    """Run a study in a fresh process and directory; memory is the proportional set size of all its processes."""
    out = Path(tempfile.mkdtemp(prefix=f"{engine}-", dir=folder))
    command = [
        sys.executable,
        "-m",
        "natal.cli",
        "run",
        study,
        "--engine",
        engine,
        "--out",
        str(out),
        "--quiet",
        *options,
    ]
    started = time.perf_counter()
    process = psutil.Popen(command)
    peak = [0.0]
    watch = threading.Thread(target=_watch, args=(process, peak))
    watch.start()
    if process.wait() != 0:
        sys.exit(f"{' '.join(command)} failed")
    seconds = time.perf_counter() - started
    watch.join()
    results = natal.load(out)
    return Timing(seconds, float(results.manifest["elapsed_seconds"]), peak[0], results)


def _watch(process: psutil.Process, peak: list[float]) -> None:
    while process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
        total = 0.0
        try:
            for each in (process, *process.children(recursive=True)):
                total += each.memory_full_info().pss
        except psutil.Error:
            pass
        peak[0] = max(peak[0], total / 1e6)
        time.sleep(0.25)


@njit(error_model="numpy")
def _product(a, b, c):  # type: ignore[no-untyped-def]
    products.add_product(a, b, c)


def gflops(rows: int = 1693, inner: int = 128, columns: int = 97) -> dict[str, float]:
    """Return the single-thread speed of a float32 matrix product, in GFLOP/s (medians of 30), by who computes it."""
    a, b, out = torch.ones(rows, inner), torch.ones(columns, inner), torch.empty(rows, columns)
    # as the engine has it: outputs x rows, of rows 192 at a time
    whole = wide(rows)
    activations, sums = np.ones((inner, whole), np.float32), np.zeros((columns, whole), np.float32)
    products: dict[str, Callable[[], object]] = {
        "NumPy": lambda: np.matmul(a.numpy(), b.numpy().T, out=out.numpy()),
        "torch": lambda: torch.mm(a, b.T, out=out),
        "natal": lambda: _product(b.numpy(), activations, sums),
    }
    with one_thread():
        return {
            name: 2e-9 * rows * inner * columns / median(timeit.repeat(product, number=1, repeat=30))
            for name, product in products.items()
        }


def floor_tflop(results: Results) -> float:
    """Return the products no exact program avoids, in TFLOP, given the epochs each training took.

    Three products an epoch between hidden neurons kept and outputs, forward on the validation rows, and for dense
    inputs two more; removed neurons and shared trainings are free. It multiplies the zeros of unstructured masks,
    which the compiled engine need not.
    """
    tasks, total, seen = results.manifest["tasks"], 0.0, set()
    for row in results.runs:
        identity = (
            row["task"],
            row["seed"],
            "dense" if row["sparsity"] == 0 else (row["strategy"], row["sparsity"]),
        )
        if identity in seen:
            continue
        seen.add(identity)
        of, recipe = tasks[row["task"]], results.study.recipe(row["strategy"])
        (hidden,) = results.study.networks[0].options["hidden"]
        kept = max(1, hidden - int(row["sparsity"] * hidden)) if recipe.granularity == "neuron" else hidden
        inputs = 0 if row["task"] == "modular" else of["inputs"]
        per_epoch = kept * (
            of["fit_rows"] * (3 * of["outputs"] + 2 * inputs) + of["val_rows"] * (of["outputs"] + inputs)
        )
        total += 2 * per_epoch * row["epochs_trained"]
    return total / 1e12


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--study", default="as-published")
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--seeds", action="store_true", help="measure three seeds against thirty")
    parser.add_argument("--keep", type=Path, help="keep the results directories here")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    asked = parser.parse_args()

    print(f"machine     {hardware()}; load before: {os.getloadavg()[0]:.2f}")
    print(
        f"versions    natal {_version()}, torch {torch.__version__}, numpy {np.__version__}, "
        f"Python {platform.python_version()}"
    )
    with tempfile.TemporaryDirectory() as name:
        folder = asked.keep or Path(name)
        folder.mkdir(parents=True, exist_ok=True)
        speeds = gflops()
        shown = ", ".join(f"{name} {speed:.0f}" for name, speed in speeds.items())
        print(f"sgemm       {shown} GFLOP/s on one core (1693 x 128 x 97); the floor takes the fastest")
        figures = compare_engines(folder, asked.study, asked.repeats, max(speeds.values()))
        figures["sgemm_gflops"] = speeds
        if asked.seeds:
            figures["seeds"] = compare_seeds(folder, asked.study)
    if asked.json:
        asked.json.write_text(json.dumps(figures, indent=1))


def _version() -> str:
    from importlib.metadata import version

    return version("natal")


def compare_engines(folder: Path, study: str, repeats: int, speed: float) -> dict[str, object]:
    """Time the compiled engine against torch, in turn; print and return the figures."""
    rounds: dict[tuple[str, str], list[Timing]] = {}
    for _ in range(repeats):
        for task in TASKS:
            for engine in ("compiled", "torch"):
                only = ("--set", f'tasks=["{task}"]', *SHARED[engine])
                rounds.setdefault((engine, task), []).append(measure(folder, study, engine, *only))
        whole_study = measure(folder, study, "compiled", *SHARED["compiled"])
        rounds.setdefault(("compiled", "whole"), []).append(whole_study)
    cores = len(os.sched_getaffinity(0))
    print(
        f"study       {study!r}; the engine torch trains all 144 runs one by one, as the published program did;"
    )
    print("            the compiled engine trains the 132 that differ")
    print(
        f"{'':12}{'torch':>12}{'compiled':>12}{'ratio':>9}{'floor':>9}   training seconds, medians of {repeats}"
    )
    figures: dict[str, object] = {}
    whole = {
        e: [sum(r.training for r in part) for part in zip(*(rounds[e, t] for t in TASKS), strict=True)]
        for e in ("compiled", "torch")
    }
    for name in ("modular", "regression", "whole"):
        slow = median(whole["torch"] if name == "whole" else [t.training for t in rounds["torch", name]])
        fast = median(t.training for t in rounds["compiled", name])
        floor = floor_tflop(rounds["compiled", name][0].results) * 1e3 / speed / cores
        print(f"{name:12}{slow:12.1f}{fast:12.2f}{slow / fast:8.1f}x{floor:8.1f}s")
        figures[name] = {"torch": slow, "compiled": fast, "ratio": slow / fast, "floor": floor}
    command = median(t.command for t in rounds["compiled", "whole"])
    slow_command = median(
        sum(r.command for r in part) for part in zip(*(rounds["torch", t] for t in TASKS), strict=True)
    )
    print(
        f"commands    whole study, start-up and report included: torch {slow_command:.1f} s (two commands), "
        f"compiled {command:.1f} s, {slow_command / command:.1f}x"
    )
    once = sum(_without_repeats(rounds["torch", task][0]) for task in TASKS)
    print(
        f"sharing     without its 12 repeated dense runs the engine torch takes {once:.1f} s: "
        f"{once / median(t.training for t in rounds['compiled', 'whole']):.1f}x"
    )
    for task in TASKS:
        ours, theirs = (
            published_objects(rounds[engine, task][0].results) for engine in ("compiled", "torch")
        )
        name, apart = next((n, d) for n, d in compare(ours, theirs).fields.items() if n.startswith("test_"))
        print(
            f"agreement   {name} of {len(ours)} runs: {apart.mean:+.2g} on average, {apart.largest:.2g} at most"
            f"{f' ({describe(apart.where)})' if apart.where else ''}"
        )
    peak = max(t.peak for t in rounds["compiled", "whole"])
    print(f"memory      at most {peak:.0f} MB over all processes of the compiled engine")
    figures |= {"command_seconds": command, "peak_mb": peak, "torch_without_repeats": once}
    return figures


def _without_repeats(timing: Timing) -> float:
    """Return the seconds of a torch run's trainings, counting a dense network once per seed."""
    runs = timing.results.runs
    first = timing.results.study.strategies[0].name
    return sum(float(row["seconds"]) for row in runs if row["sparsity"] > 0 or row["strategy"] == first)


def compare_seeds(folder: Path, study: str) -> dict[str, float]:
    """Time three seeds against thirty with the compiled engine; print and return the ratio per task."""
    ratios = {}
    for task, options in (("regression", ()), ("modular", ("--set", "training.epochs=100"))):
        only = ("--set", f'tasks=["{task}"]', *options)
        few = measure(folder, study, "compiled", *only, "--seeds", ",".join(map(str, range(3))))
        many = measure(folder, study, "compiled", *only, "--seeds", ",".join(map(str, range(30))))
        ratios[task] = many.training / few.training
        print(
            f"seeds       {task}: 30 seeds cost {ratios[task]:.1f} times 3 seeds "
            f"({many.training:.1f} s against {few.training:.1f} s)"
        )
    return ratios


if __name__ == "__main__":
    main()
