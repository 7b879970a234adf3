"""The jobs of a plan on their way: which can start, and what becomes of the states between them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from heapq import heappop, heappush
from typing import Any

import numpy as np

from natal.lab.checkpoints import Checkpoints
from natal.lab.engines import Pending, made_by
from natal.lab.plan import Job, Plan
from natal.lab.worker import Made
from natal.store import MASK, NOW, Failure, Outcome, Place, States, Store


class Queue:
    """A plan's jobs, of which one can start as soon as the states that its trainings start from are there.

    States are stored before the row of the training that they are of, and dropped when no training needs them any more,
    unless the study keeps them; the checkpoint of a training is dropped when that is stored. Only the coordinating
    process has one. ``failed``: why, by key, of what was tried here.
    """

    def __init__(self, planned: Plan, store: Store) -> None:
        self._plan, self._store, self._states = planned, store, States(planned.directory)
        self._pending = {training.key: training for training in planned.pending}
        self._users: dict[Place, set[str]] = {}
        for training in self._pending.values():
            for place in training.needs:
                self._users.setdefault(place, set()).add(training.key)
        self._of: dict[str, list[Place]] = {}
        for place in self._users:
            self._of.setdefault(place.key, []).append(place)
        statuses = store.statuses()
        needed = {place for place in self._users if place.key in statuses}
        self._states.sweep(needed | {Place(key, NOW) for key in self._pending}, statuses)
        self._checkpoints = Checkpoints(str(planned.directory.absolute()))
        kept, passing = self._states.there()
        self._there = kept | passing
        self.failed: dict[str, str] = {}
        self._stored = {key for key in self._of if key in statuses and key not in self._pending}
        self._ready: list[tuple[int, int, Job]] = []
        self._blocked: dict[Place, list[list[Any]]] = {}
        self._blocks = 0
        self._earliest = 0
        for number, job in enumerate(planned.jobs):
            self._enter(number, job)

    def _enter(self, number: int, job: Job) -> None:
        """Let a job wait for the states that it starts from; the lowest number starts first."""
        awaited = {place for training in job.trainings for place in training.needs} - self._there
        if not awaited:
            heappush(self._ready, (number, id(job), job))
            return
        self._blocks += 1
        waits = [len(awaited), number, job]
        for place in awaited:
            self._blocked.setdefault(place, []).append(waits)

    def _settle(self, place: Place) -> None:
        """Let go of the jobs that waited for a state alone, which is there now or will never be."""
        for waits in self._blocked.pop(place, ()):
            waits[0] -= 1
            if not waits[0]:
                self._blocks -= 1
                heappush(self._ready, (waits[1], id(waits[2]), waits[2]))

    def __bool__(self) -> bool:
        return bool(self._ready) or self._blocks > 0

    @property
    def ready(self) -> int:
        """How many jobs can start."""
        return len(self._ready)

    def take(self, idle: int = 1, portion: int = 1) -> Job | None:
        """Return the first job that can start, with the states that it starts from; None if all have to wait.

        Where fewer jobs are left than workers are ``idle``, it is split. ``portion``: so many jobs of one engine at
        once, where handing one out is dear.
        """
        trainings: list[Pending] = []
        first: Job | None = None
        while self._ready and (first is None or (portion > 1 and self._ready[0][2].engine == first.engine)):
            number, _, job = heappop(self._ready)
            left = [training for training in job.trainings if training.key in self._pending]
            if left and first is None and len(self._ready) + 1 < idle and len(left) > 1:
                half = (len(left) + 1) // 2
                later = replace(job, trainings=tuple(left[half:]))
                heappush(self._ready, (number, id(later), later))
                left = left[:half]
            if left:
                first = first or job
                trainings += left
                portion -= 1
        if first is None:
            return None
        needed = {place for training in trainings for place in training.needs}
        return replace(
            first,
            trainings=tuple(trainings),
            states={place: self._states.read(place) for place in needed},
            checkpoints=self._checkpoints,
        )

    def left(self, job: Job) -> Job | None:
        """Return what is still to do of a job that was handed out, None if nothing is."""
        some = tuple(training for training in job.trainings if training.key in self._pending)
        return replace(job, trainings=some) if some else None

    def give_back(self, job: Job) -> None:
        """Take a job back that was handed out and not done: it comes first."""
        self._earliest -= 1
        self._enter(self._earliest, replace(job, states={}))

    def finished(self, came: Iterable[Made | Failure], **manifest: Any) -> list[Outcome | Failure]:
        """Store what trainings came to; return that, and what becomes of those that can now never begin.

        What comes a second time, from a worker that was thought lost, is left out.
        """
        by_key = {one.key: one for one in came if one.key in self._pending}
        made = [one for one in by_key.values() if isinstance(one, Made)]
        failures = [one for one in by_key.values() if isinstance(one, Failure)]
        for one in made:
            for clock, content in one.states.items():
                place = Place(one.outcome.key, clock)
                self._states.write(place, content, keep=clock == MASK or place in self._plan.kept)
                self._there.add(place)
        self.failed |= {one.key: one.reason for one in failures}
        done = [self._pending.pop(key) for key in by_key]
        outcomes = [one.outcome for one in made]
        ended = [*by_key, *self._stored]
        self._stored = set()
        for key in ended:  # and of those that can now never begin, as they are found
            for place in self._of.pop(key, ()):
                for training in self._never(place):
                    done.append(training)
                    ended.append(training.key)
                    if key in self.failed:
                        self.failed[training.key] = self.failed[key]
                        failures.append(
                            Failure(training.key, f"what it starts from failed: {self.failed[key]}")
                        )
                    else:
                        outcomes.append(self._never_begun(training, place))
        lines = {f"connectivity/{one.outcome.key}": one.line for one in made if one.line}
        self._store.add(outcomes, failures, **manifest, **lines)
        if self._states.passing.is_dir():  # else there is no checkpoint, and nothing to ask the disk for each
            for one in made:
                self._states.drop(Place(one.outcome.key, NOW))
        for training in done:
            for place in training.needs:
                self._users.get(place, set()).discard(training.key)
                if place in self._users and not self._users[place]:
                    del self._users[place]
                    self._there.discard(place)
                    self._states.drop(place)
        return [*outcomes, *failures]

    def _never(self, place: Place) -> list[Pending]:
        """Return, and take off the queue, what waits for a state that is not there though its training has ended."""
        lost = [] if place in self._there else sorted(self._users.get(place, set()) & self._pending.keys())
        found = [self._pending.pop(key) for key in lost]
        self._settle(place)
        return found

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
