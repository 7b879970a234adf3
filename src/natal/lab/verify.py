"""Train a sample of stored runs again and compare: do these results come out again, here?"""

from __future__ import annotations

import random
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from natal.errors import NatalError
from natal.lab.run import Silent, Watcher, train
from natal.machine import processor
from natal.store import Outcome, Store
from natal.study import Run
from natal.wording import describe, plural

TOLERANCE = 0.03
"""By how much a metric may differ on another make of CPU or with other versions: see docs/trust.md."""
METRICS = ("train_metric", "val_metric", "test_metric")


@dataclass(frozen=True)
class Verified:
    """Runs that were trained again.

    ``exact``: whether equal bits were asked for, and if not, ``why``. ``same``: how many of ``runs`` came out as
    stored; ``apart``: of the others which, and in what they differ.
    """

    runs: int
    exact: bool
    why: str
    same: int
    apart: tuple[tuple[Run, str], ...]

    def lines(self) -> Iterator[str]:
        """Yield it as lines ready to print."""
        what = "to the last bit" if self.exact else f"within {TOLERANCE} of each metric, since {self.why}"
        yield f"{self.same} of {plural(self.runs, 'run')} trained again came out as stored, {what}"
        yield from (f"{describe(run)}: {said}" for run, said in self.apart)


def verify(
    directory: str | Path = "results",
    sample: int = 20,
    *,
    seed: int | None = None,
    workers: int | None = None,
    data: str | Path | None = None,
    watcher: Watcher | None = None,
) -> Verified:
    """Train ``sample`` stored runs again, drawn at random, with the chains before them, and compare.

    Bits must be equal on the make of CPU that the study was trained on, and of the compiled engine on any; elsewhere,
    and with other versions, every metric within `TOLERANCE`. ``seed``: of the draw. The store is only read. Raises
    NatalError if there is no study, or nothing of it is trained.
    """
    directory = Path(directory)
    if sample < 1:
        raise NatalError(f"sample must be at least 1, got {sample}")
    with Store.read(directory) as store, store.reading():
        study, manifest, grid = store.study(), store.manifest(), store.grid()
        statuses, tried = store.statuses(), store.tried()
        there = [(at, run, key) for at, (run, key) in enumerate(grid) if key in statuses]
        if not there:
            raise NatalError(f"{directory} has no trained run yet; `natal run --out {directory}` trains some")
        drawn = random.Random(seed).sample(there, min(sample, len(there)))
        stored = {outcome.key: outcome for outcome in store.outcomes({key for _, _, key in drawn})}
    engines = {outcome.made_by.engine for outcome in stored.values()}
    device = next(iter(stored.values())).made_by.device.split(":")[0]
    with tempfile.TemporaryDirectory(prefix="natal-verify-") as place:
        train(
            study,
            Path(place),
            workers=workers,
            engine=next(iter(engines)) if len(engines) == 1 else "auto",
            device=device,
            fresh=False,
            data=data,
            watcher=watcher or Silent(),
            afterwards=lambda _: None,
            only=frozenset(run for _, run, _ in drawn),
        )
        with Store.read(Path(place)) as store:
            rates, here = store.tried(), store.grid()
            # where rates are searched, at the stored one's, whichever these few seeds would choose
            again = {
                key: next(
                    (rates[at][rate] for rate, of in tried.get(at, {}).items() if of == key), here[at][1]
                )
                for at, _, key in drawn
            }
            made = {outcome.key: outcome for outcome in store.outcomes({*again.values()})}
    why = _why_not_exact(
        manifest.get("processor"), engines, all(key == other for key, other in again.items())
    )
    apart = [
        (run, said)
        for _, run, key in drawn
        for said in [_apart(stored[key], made.get(again[key]), exact=not why)]
        if said
    ]
    return Verified(len(drawn), not why, why, len(drawn) - len(apart), tuple(apart))


def _why_not_exact(trained_on: str | None, engines: set[str], same_keys: bool) -> str:
    """Return why the same bits cannot be expected here, ``""`` if they are."""
    if not same_keys:
        return "the versions of natal's engine, torch or NumPy differ"
    if trained_on != processor() and engines != {"compiled"}:
        return f"the study was trained on {trained_on}, and this is {processor()}"
    return ""


def _apart(stored: Outcome, made: Outcome | None, *, exact: bool) -> str:
    """Return in what a training differs from the stored one, ``""`` if in nothing that counts."""
    if made is None:
        return "it could not be trained again"
    if made.status != stored.status:
        return f"{made.status}, and is stored as {stored.status}"
    for name in METRICS:
        a, b = getattr(made, name), getattr(stored, name)
        same = a == b if exact or None in (a, b) else abs(a - b) <= TOLERANCE
        if not same:
            return f"{name} {a}, and is stored as {b}"
    if not exact:
        return ""
    if made.kept != stored.kept or made.steps_trained != stored.steps_trained:
        return (
            f"{made.kept} weights, {made.steps_trained} steps; stored: {stored.kept}, {stored.steps_trained}"
        )
    if any(
        not np.array_equal(made.curves.get(name, ()), line, equal_nan=True)
        for name, line in stored.curves.items()
    ):
        return "its metrics are the stored ones, its curves are not"
    return ""
