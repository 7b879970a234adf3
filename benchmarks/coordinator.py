"""What a run costs the command that hands it out: trainings of 0 s through processes, with the live view.

    python benchmarks/coordinator.py [--runs 20000] [--workers 2]

Workers answer at once with a made-up training of the usual size (curves of 500 evaluations). Printed are the processor
time of the command for each run, from the first job to the last row stored, and how its memory grew: for each planned
run before the first job, and for each finished run of the second half, when every buffer has its size.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from rich.console import Console

import natal
from machine import hardware
from natal.lab.parcel import Parcel, pack
from natal.lab.plan import Plan
from natal.lab.run import train
from natal.lab.worker import Made
from natal.progress import View
from natal.store import Outcome, Store
from natal.study import Run
from scale import fill, study

_OUTCOMES: list[Outcome] = []


def _tell(outcome: Outcome) -> None:
    _OUTCOMES.append(outcome)


def answer(parcel: Parcel) -> bytes:
    """Return what a worker returns, without training anything."""
    return pack([Made(replace(_OUTCOMES[0], key=training.key)) for training in parcel.trainings()])


class AtOnce(ProcessPoolExecutor):
    """Processes that answer at once."""

    def submit(self, work: Callable[..., Any], /, *args: Any, **options: Any) -> Future[Any]:
        """Have a parcel answered."""
        return super().submit(answer, *args, **options)


class Meter(View):
    """The live view, which looks at the clock and the memory when the first job is handed out."""

    began: float
    planned: int
    halfway = 0

    def started(self, plan: Plan) -> None:
        """Note where the work begins."""
        super().started(plan)
        self.planned, self.began = memory(), time.process_time()

    def finished(self, position: int, run: Run, outcome: Outcome, field: str) -> None:
        """Note the memory halfway."""
        super().finished(position, run, outcome, field)
        if position == self.total // 2:
            self.halfway = memory()


def memory() -> int:
    """Return the bytes that this process holds now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def made_up(folder: Path) -> Outcome:
    """Return a training of the usual size."""
    few = natal.load_study(study(1000, "seeds"))
    fill(folder, natal.plan(few, folder), 500)
    with Store.read(folder) as store:
        return next(store.outcomes())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--runs", type=int, default=20_000)
    parser.add_argument("--workers", type=int, default=2)
    asked = parser.parse_args()
    print(hardware())
    with tempfile.TemporaryDirectory() as base:
        outcome = made_up(Path(base) / "few")
        many = natal.load_study(study(asked.runs, "seeds"))
        before = memory()
        ended: list[tuple[float, int]] = []
        with (
            Path(os.devnull).open("w") as nowhere,
            AtOnce(asked.workers, get_context("spawn"), _tell, (outcome,)) as executor,
            Meter(Console(file=nowhere, force_terminal=True)) as meter,
        ):
            train(
                many, Path(base) / "many", workers=None, engine="auto", device="cpu", fresh=False, data=None,
                watcher=meter, on=executor,
                afterwards=lambda _: ended.append((time.process_time(), memory())),
            )  # fmt: skip
        with Store.read(Path(base) / "many") as store:
            trained = len(store.finished())
        ((seconds, most),) = ended
    count = len(many.runs())
    print(f"{count:,} runs, {trained:,} trainings, {asked.workers} workers")
    print(
        f"  {(seconds - meter.began) / trained * 1e6:8.0f} microseconds of CPU a training, with the live view"
    )
    print(f"  {(meter.planned - before) / count:8.0f} bytes a planned run")
    print(f"  {(most - meter.halfway) / (count - count // 2):8.0f} bytes a finished run")


if __name__ == "__main__":
    main()
