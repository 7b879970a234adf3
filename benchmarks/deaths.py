"""A hundred workers that die at random, and runs that kill whoever trains them: is anything lost, or made twice?

    python benchmarks/deaths.py [--runs 100000] [--workers 100]

Workers are simulated: a job takes a random time of theirs and none of ours, and training is made up (curves of 500
evaluations); of a hundred jobs one kills its worker at random, and of a hundred runs one kills every worker. What hands
jobs out, splits those that died, and stores what comes back is natal's own.
"""

from __future__ import annotations

import argparse
import random
import tempfile
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import natal
from coordinator import made_up
from machine import hardware
from natal.lab.engines import Pending
from natal.lab.executors.simulated import Simulated
from natal.lab.run import Silent, train
from natal.lab.worker import Made
from natal.store import Store
from scale import study

DEATHS = 0.01
POISONED = 0.01


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--runs", type=int, default=100_000)
    parser.add_argument("--workers", type=int, default=100)
    asked = parser.parse_args()
    print(hardware())
    with tempfile.TemporaryDirectory() as base:
        outcome = made_up(Path(base) / "few")
        many, out = natal.load_study(study(asked.runs, "seeds")), Path(base) / "many"
        wanted = [training.key for training in natal.plan(many, out).pending]
        poisoned = set(random.Random(0).sample(wanted, int(POISONED * len(wanted))))
        made: Counter[str] = Counter()

        def make(training: Pending) -> Made:
            made[training.key] += 1
            return Made(replace(outcome, key=training.key))

        executor = Simulated(asked.workers, make, deaths=DEATHS, poisoned=poisoned, seed=1)
        started = time.perf_counter()
        train(
            many, out, workers=None, engine="auto", device="cpu", fresh=False, data=None, watcher=Silent(),
            on=executor, afterwards=lambda _: None,
        )  # fmt: skip
        seconds = time.perf_counter() - started
        with Store.read(out) as store:
            stored, failed = store.finished(), set(store.failures())
    healthy = set(wanted) - poisoned
    print(
        f"{len(many.runs()):,} runs, {len(wanted):,} trainings, {asked.workers} workers, of which {executor.died:,} "
        f"died: {seconds:.0f} s"
    )
    for what, count in (
        ("trainings lost", len(healthy - stored)),
        ("trainings made twice", sum(times > 1 for times in made.values())),
        ("poisoned runs not recorded as failed", len(poisoned - failed)),
        ("others recorded as failed", len(failed - poisoned)),
        ("stored that nobody asked for", len(stored - healthy)),
    ):
        print(f"  {count:8,} {what}")
    print(f"  {len(failed):8,} of {len(poisoned):,} poisoned runs recorded as failed")


if __name__ == "__main__":
    main()
