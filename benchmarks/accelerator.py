"""Is natal right and fast on an accelerator? Agreement, steps a second, and whole studies beside the CPU's results.

    python benchmarks/accelerator.py [--device cuda] [--only agreement speed studies] [--seeds 2]

*Agreement*: the engines on the device against ``torch`` on the CPU after 20 steps in float64, the largest difference of
any weight relative to its tensor's largest. *Speed*: network-steps a second of ``torch`` and of stacks of 1 to 64
networks. *Studies*: ``paper``, and ``digits`` with fewer seeds, by ``--engine auto`` on the device and on the CPU: the
seconds each took, and how far the means of a strategy's level lie apart. About four minutes on an H100.
"""

from __future__ import annotations

import argparse
import copy
import platform
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import mean

import torch

import natal
from machine import hardware
from natal import NatalError
from natal.lab.engines import ENGINES
from natal.lab.plan import check_device
from natal.lab.trial import Trial
from natal.reading.results import Results
from networks import CASES, trial

STEPS = 20
ALLOWED = {"mlp-2-deep": 1e-9, "lenet-300-100": 1e-9, "lenet-5": 1e-7, "resnet-20-width-8": 1e-7}
"""How far engines may be apart, by network."""
LANES = (1, 8, 64)


def several(name: str, count: int, steps: int, dtype: torch.dtype, **changes: object) -> list[Trial]:
    """Return copies of a case's trial on one set of rows, each with its own order of batches."""
    keys = {"length": f"{steps}it", "evaluate": f"{steps}it", "decide": "end", **changes}
    made = trial(name)
    made = replace(made, training=made.training.model_copy(update=keys))
    networks = [made.network if dtype == torch.float32 else double(made) for _ in range(count)]
    return [replace(made, key=f"{name} {i}", seed=i, network=net) for i, net in enumerate(networks)]


def double(made: Trial) -> torch.nn.Module:
    """Return a trial's network in float64."""
    return copy.deepcopy(made.network).double()


def agreement(device: str) -> None:
    """Print how far each engine on the device is from the oracle on the CPU."""
    print(f"\n{'float64, 20 steps':20} {'engine':8} {'largest difference':>18} {'allowed':>8}")
    for name, allowed in ALLOWED.items():
        made = several(name, 2, STEPS, torch.float64, batch=16)
        expected = {t.outcome.key: t for t in ENGINES["torch"].train(made, "cpu")}
        for engine in ("torch", "stacked"):
            apart = 0.0
            for trained in ENGINES[engine].train(made, device):
                for tensor, value in expected[trained.outcome.key].state.items():
                    difference = (trained.state[tensor] - value).abs().max() / value.abs().max().clamp(
                        min=1e-3
                    )
                    apart = max(apart, float(difference))
            verdict = "" if apart <= allowed else "  TOO FAR"
            print(f"{name:20} {engine:8} {apart:18.1e} {allowed:8.0e}{verdict}", flush=True)


def speed(device: str, seconds: float = 1.0) -> None:
    """Print network-steps a second."""
    print(f"\n{'steps/s':20} {'engine':8} {'networks':>8} {'network-steps/s':>15} {'peak MiB':>8}")
    for name in CASES:
        for engine, count in [("torch", 1), *(("stacked", lanes) for lanes in LANES)]:
            few = 3
            _timed(name, engine, count, few, device)
            steps = max(few, min(2000, round(few * seconds / _timed(name, engine, count, few, device))))
            if device != "cpu":
                torch.cuda.reset_peak_memory_stats(device)
            taken = _timed(name, engine, count, steps, device)
            memory = torch.cuda.max_memory_allocated(device) / 2**20 if device != "cpu" else 0
            print(f"{name:20} {engine:8} {count:8} {count * steps / taken:15.0f} {memory:8.0f}", flush=True)


def _timed(name: str, engine: str, count: int, steps: int, device: str) -> float:
    made = several(name, count, steps, torch.float32)
    return sum(trained.outcome.seconds for trained in ENGINES[engine].train(made, device))


def studies(device: str, seeds: int) -> None:
    """Print times of whole studies and differences of what they found."""
    chosen = list(range(1, seeds + 1))
    for study, overrides in (("paper", []), ("digits", [f"seeds={chosen}"])):
        found: dict[str, Results] = {}
        print(f"\n{study} {' '.join(overrides)}")
        for where in dict.fromkeys([device, "cpu"]):
            with tempfile.TemporaryDirectory() as folder:
                started = time.perf_counter()
                results = natal.run(study, Path(folder) / "out", overrides=overrides, device=where)
                command = time.perf_counter() - started
                found[where] = results
                makers = sorted({str(run["made_by"]) for run in results.runs})
                training = sum(run["seconds"] for run in results.runs)
                print(
                    f"  {where}: {command:.1f} s, of which training {training:.1f} s; {'; '.join(makers)}",
                    flush=True,
                )
        if len(found) == 2:
            compare(found[device], found["cpu"])


def compare(ours: Results, theirs: Results) -> None:
    """Print how far two runs of one study lie apart, run by run and in the means over seeds."""

    def cells(results: Results) -> dict[tuple[object, ...], list[float]]:
        found: dict[tuple[object, ...], list[float]] = {}
        for run in results.runs:
            if run["test_metric"] is not None:
                cell = run["task"], run["network"], run["strategy"], run["sparsity"]
                found.setdefault(cell, []).append(run["test_metric"])
        return found

    a, b = cells(ours), cells(theirs)
    apart = {cell: mean(a[cell]) - mean(b[cell]) for cell in a.keys() & b.keys()}
    worst = max(apart, key=lambda cell: abs(apart[cell]))
    print(
        f"  {len(apart)} cells, {len(a.keys() ^ b.keys())} in one alone; test metric: mean difference "
        f"{mean(apart.values()):+.4f}, mean of sizes {mean(map(abs, apart.values())):.4f}, "
        f"largest {apart[worst]:+.4f} in {worst}",
        flush=True,
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the sections asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--only", nargs="*", default=["agreement", "studies", "speed"])
    parser.add_argument("--seeds", type=int, default=2, help="of the study digits")
    options = parser.parse_args(arguments)
    try:
        check_device(options.device)
    except NatalError as error:
        raise SystemExit(str(error)) from None
    gpu = torch.cuda.get_device_name(options.device) if options.device != "cpu" else "no accelerator"
    print(f"{gpu}; {hardware()}; Python {platform.python_version()}, torch {torch.__version__}")
    for section in options.only:
        started = time.perf_counter()
        if section == "agreement":
            agreement(options.device)
        elif section == "speed":
            speed(options.device)
        else:
            studies(options.device, options.seeds)
        print(f"[{section}: {time.perf_counter() - started:.0f} s]", flush=True)


if __name__ == "__main__":
    main()
