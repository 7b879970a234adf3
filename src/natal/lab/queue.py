"""The jobs of a plan on their way: which can start, and what becomes of the states between them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from natal.lab.engines import Pending, made_by
from natal.lab.plan import Job, Plan
from natal.lab.worker import Made
from natal.store import MASK, Failure, Outcome, Place, States, Store


class Queue:
    """A plan's jobs, of which one can start as soon as the states that its trainings start from are there.

    States are stored before the row of the training that they are of, and dropped when no training needs them any more,
    unless the study keeps them. Only the coordinating process has one.
    """

    def __init__(self, planned: Plan, store: Store) -> None:
        self._plan, self._store, self._states = planned, store, States(planned.directory)
        self._jobs = list(planned.jobs)
        self._pending = {training.key: training for training in planned.pending}
        self._users: dict[Place, list[str]] = {}
        for training in self._pending.values():
            for place in training.needs:
                self._users.setdefault(place, []).append(training.key)
        statuses = store.statuses()
        self._diverged = {key for key, status in statuses.items() if status == "diverged"}
        self._failed: dict[str, str] = {}
        self._states.sweep({place for place in self._users if place.key in statuses}, statuses)
        kept, passing = self._states.there()
        self._there = kept | passing

    def __bool__(self) -> bool:
        return bool(self._jobs)

    def take(self) -> Job | None:
        """Return the first job that can start, with the states that it starts from; None if all have to wait."""
        for job in self._jobs:
            needed = {place for training in job.trainings for place in training.needs}
            if needed <= self._there:
                self._jobs.remove(job)
                return replace(job, states={place: self._states.read(place) for place in needed})
        return None

    def give_back(self, job: Job) -> None:
        """Take a job back that was handed out and not done: it comes first."""
        self._jobs.insert(0, job)

    def finished(self, came: Iterable[Made | Failure], **manifest: Any) -> list[Outcome | Failure]:
        """Store what trainings came to; return that, and what becomes of those that can now never begin.

        A training that came before, from a worker that was thought lost, is left out.
        """
        came = [one for one in came if _key(one) in self._pending]
        made = [one for one in came if isinstance(one, Made)]
        failures = [one for one in came if isinstance(one, Failure)]
        for one in made:
            for clock, content in one.states.items():
                place = Place(one.outcome.key, clock)
                self._states.write(place, content, keep=clock == MASK or place in self._plan.kept)
                self._there.add(place)
        self._diverged |= {one.outcome.key for one in made if one.outcome.status == "diverged"}
        self._failed |= {one.key: one.reason for one in failures}
        done = {_key(one): self._pending.pop(_key(one)) for one in came}
        outcomes = [one.outcome for one in made]
        for training, place in self._lost():
            done[training.key] = training
            if place.key in self._failed:
                self._failed[training.key] = self._failed[place.key]
                failures.append(
                    Failure(training.key, f"what it starts from failed: {self._failed[place.key]}")
                )
            else:
                self._diverged.add(training.key)
                outcomes.append(self._never_begun(training, place))
        lines = {f"connectivity/{one.outcome.key}": one.line for one in made if one.line}
        self._store.add(outcomes, failures, **manifest, **lines)
        for training in done.values():
            for place in training.needs:
                self._users[place].remove(training.key)
                if not self._users[place]:
                    self._states.drop(place)
        return [*outcomes, *failures]

    def _lost(self) -> Iterator[tuple[Pending, Place]]:
        """Yield, and take off the queue, what waits for a state that nothing will make, and what waits for that."""
        while True:
            lost = {
                training.key: place
                for training in self._pending.values()
                for place in training.needs
                if place not in self._there and place.key not in self._pending
            }
            if not lost:
                return
            for key, place in lost.items():
                assert place.key in self._diverged or place.key in self._failed, place
                yield self._pending.pop(key), place
            self._jobs = [job for job in map(_without(lost), self._jobs) if job.trainings]

    def _never_begun(self, training: Pending, place: Place) -> Outcome:
        """Return the outcome of a training whose parent diverged: nothing was cut, nothing was trained."""
        name = training.run.setting
        facts = next(facts for facts in self._plan.networks if facts.setting == name)
        chosen = self._plan.settings[name]
        return Outcome(
            key=training.key,
            status="diverged",
            total_params=facts.parameters,
            nonzero_params=facts.parameters,
            prunable=facts.prunable,
            kept=facts.prunable,
            densities=dict.fromkeys(facts.layers, 1.0),
            steps_per_epoch=facts.steps_per_epoch,
            steps_planned=training.stage.steps,
            steps_trained=0,
            best_step=0,
            learning_rate=training.stage.learning_rate,
            train_metric=None,
            val_metric=None,
            test_metric=None,
            final_loss=None,
            constant=False,
            seconds=0.0,
            made_by=made_by(chosen.engine, self._plan.device),
            deterministic=True,
            diagnosis={},
            curves={name: np.empty(0) for name in ("step", "train_loss", "val_loss", "val_metric")},
            proofs={
                "never_begun": f"the training it starts from, {place.key}, diverged before {place.clock!r}"
            },
        )


def _key(one: Made | Failure) -> str:
    return one.key if isinstance(one, Failure) else one.outcome.key


def _without(lost: Iterable[str]) -> Any:
    gone = set(lost)
    return lambda job: replace(job, trainings=tuple(t for t in job.trainings if t.key not in gone))
