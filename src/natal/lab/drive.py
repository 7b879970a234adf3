"""Handing a plan's jobs to workers and storing what comes back, the same for every executor.

Of an executor nothing is asked but `concurrent.futures`' protocol. A job whose worker is lost is handed out again: in
halves, until the run that kills its workers stands alone; after `KILLS` of them it is stored as failed.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from concurrent.futures import BrokenExecutor, CancelledError, Future
from contextlib import suppress
from dataclasses import replace
from queue import Empty, SimpleQueue

from natal.errors import NatalError
from natal.lab import worker
from natal.lab.executors import Unstarted, Workers
from natal.lab.parcel import UNKNOWN, Brief, unpack, work
from natal.lab.plan import Job, Plan
from natal.lab.queue import Queue
from natal.lab.watcher import Watcher
from natal.lab.worker import Made
from natal.store import Failure, Store
from natal.wording import describe

KILLS = 3
"""A run that was alone with this many workers when they died has killed them."""
HOPELESS = 10
"""As many runs in a row may have killed their workers, with none finished in between: then it may not be the runs."""
AHEAD = 2
"""Jobs a worker: one that it trains, one that waits there, so that no worker waits for this process."""
LOOK = 5.0
"""Seconds after which to see whether workers have joined."""


def drive(planned: Plan, store: Store, watcher: Watcher, workers: Workers | None) -> None:
    """Train a plan's jobs and store what comes back; without ``workers`` in this very process."""
    engines = tuple(dict.fromkeys(job.engine for job in planned.jobs))
    watcher.started(planned)
    if workers is None:
        worker.prepare(planned.study, engines, planned.device)
        ledger = _Ledger(planned, store, watcher)
        while (job := ledger.queue.take()) is not None:
            watcher.training([training.run for training in job.trainings])
            for one in worker.each(job):
                ledger.keep([one])
    elif planned.jobs:
        _Driver(planned, store, watcher, workers, engines).run()
    else:
        _Ledger(planned, store, watcher)


class _Ledger:
    """What is still to come, and what has come: stored first, told then."""

    def __init__(self, planned: Plan, store: Store, watcher: Watcher) -> None:
        self.queue = Queue(planned, store)
        self._planned, self._watcher = planned, watcher
        self._position = len(planned.done)
        self._before = float(store.manifest("elapsed_seconds")["elapsed_seconds"])
        self._started = time.monotonic()
        missing = {training.key for training in planned.pending} - planned.again
        # by a training's key its row, and of the few that have more than one, the others
        self._row: dict[str, int] = {}
        self._others: dict[str, list[int]] = {}
        for position in range(len(planned.grid)):
            for key in self._keys(position) & missing:
                if self._row.setdefault(key, position) != position:
                    self._others.setdefault(key, []).append(position)
        if planned.pending:  # else nothing may change, so that what was written stays as it is
            self.keep([])

    def _keys(self, position: int) -> set[str]:
        """Return the keys of the trainings behind a row."""
        return {self._planned.grid.behind[position], *self._planned.tried.get(position, {}).values()}

    def keep(self, came: Sequence[Made | Failure]) -> None:
        """Store what came of trainings, and say which rows that settles."""
        elapsed = round(self._before + time.monotonic() - self._started, 3)
        for one in self.queue.finished(came, elapsed_seconds=elapsed):
            if one.key not in self._row:
                continue
            for position in (self._row.pop(one.key), *self._others.pop(one.key, ())):
                keys = self._keys(position)
                if not self._row.keys().isdisjoint(keys):
                    continue
                row = self._planned.grid.runs[position]
                reason = next((self.queue.failed[key] for key in keys if key in self.queue.failed), None)
                if reason is not None:
                    self._watcher.failed(row, reason)
                elif not isinstance(one, Failure):
                    self._position += 1
                    self._watcher.finished(self._position, row, one, self._planned.tasks[row.task].field)


class _Driver:
    """Jobs in flight, and what becomes of those whose workers die."""

    def __init__(
        self, planned: Plan, store: Store, watcher: Watcher, workers: Workers, engines: Sequence[str]
    ) -> None:
        self._planned, self._store, self._watcher, self._workers = planned, store, watcher, workers
        self._brief = Brief(planned.study, engines, planned.device, planned.jobs[0].data)
        self._running: dict[Future[bytes], tuple[Job, bool]] = {}  # and whether it went out with the brief
        self._done: SimpleQueue[Future[bytes]] = SimpleQueue()
        self._told = 0  # parcels that went out with the brief
        self._kills: dict[str, int] = {}
        self._killed = 0
        self._any = False

    def run(self) -> None:
        """Train all jobs."""
        try:
            self._make_ready()
            self._ledger = _Ledger(self._planned, self._store, self._watcher)
            self._store_and_go_on([])  # what is there of a command before this one
            while self._ledger.queue or self._running:
                self._hand_out()
                if self._running:
                    self._store_and_go_on(self._come())
            self._store_and_go_on([])
        finally:
            for future in self._running:
                future.cancel()

    def _make_ready(self) -> None:
        """Wait for a worker that has torch and the kernels, which is not training."""
        for _ in range(KILLS):
            try:
                future = self._checked(self._workers.submit(work, self._brief.parcel(None, whole=True)))
                self._opened(future.result())
                return
            except (Exception, CancelledError) as error:
                if not self._workers.lost(error):
                    raise self._refusal(error) from None
                cancelled = isinstance(error, CancelledError)
        if cancelled:
            raise self._nonsense(f"cancelled {KILLS} jobs")
        raise NatalError(
            f"workers died {KILLS} times before they trained anything; is memory short? Finished runs are stored; try "
            "--on inline"
        )

    def _hand_out(self) -> None:
        """Give every worker something to do, and something to go on with while there is more than enough."""
        queue, count = self._ledger.queue, max(self._workers.count, 1)
        while len(self._running) < (count * AHEAD if queue.ready > count else count):
            job = queue.take(count - len(self._running), self._workers.portion(queue.ready))
            if job is None:
                return
            self._watcher.training([training.run for training in job.trainings])
            self._send(job, whole=self._told < count or self._workers.forgets)

    def _send(self, job: Job, *, whole: bool) -> None:
        self._told += whole
        try:
            future = self._workers.submit(work, self._brief.parcel(job, whole=whole))
        except NatalError:
            raise
        except Exception as error:  # whatever somebody's executor says
            raise NatalError(
                f"the executor takes no more jobs ({worker.said(error)}); finished runs are stored, and the same "
                "command goes on with a new one"
            ) from None
        if self._checked(future) in self._running:
            raise self._nonsense("gave the same future for two jobs")
        self._running[future] = job, whole
        future.add_done_callback(self._done.put)

    def _checked(self, future: object) -> Future[bytes]:
        """Return what an executor gave for a job; raise NatalError if it is none of its futures."""
        if not isinstance(future, Future):
            raise self._nonsense(f"gave {_a(future)} for a job, no future")
        return future

    def _opened(self, content: object, job: Job | None = None) -> list[Made | Failure]:
        """Return what a job came to; raise NatalError if it is not what the function that was submitted returns."""
        try:
            came = unpack(content) if isinstance(content, bytes) else None
        except Exception:  # whatever bytes that are something else make a reader say
            came = None
        if came is None:
            raise self._nonsense(
                f"gave back {_a(content)}, which is not what the function that it was handed returns"
            )
        if (
            job is not None
            and self._workers.answers
            and {t.key for t in job.trainings}.isdisjoint(one.key for one in came)
        ):
            raise self._nonsense("gave back what belongs to another job")
        return came

    def _nonsense(self, what: str) -> NatalError:
        return NatalError(
            f"executor {self._workers.name} {what}; give one that keeps to concurrent.futures' protocol. Finished runs "
            "are stored"
        )

    def _come(self) -> list[Future[bytes]]:
        """Wait until jobs are done, or it is time to look for new workers."""
        came = []
        with suppress(Empty):
            came.append(self._done.get(timeout=LOOK))
            while True:
                came.append(self._done.get_nowait())
        return came

    def _store_and_go_on(self, futures: Iterable[Future[bytes]]) -> None:
        came: list[Made | Failure] = []
        ended: list[tuple[Job, bool]] = []
        refusal: NatalError | None = None
        for future in futures:
            job, whole = self._running.pop(future)
            error = Cancelled() if future.cancelled() else future.exception()
            if error is None and future.result() == UNKNOWN and not whole:
                self._send(job, whole=True)
            elif error is None:
                try:
                    came += self._opened(future.result(), job)
                    ended.append((job, False))
                except NatalError as nonsense:
                    refusal = nonsense
            elif isinstance(error, Unstarted):
                ended.append((job, False))
            elif self._workers.lost(error):
                ended.append((job, True))
            else:
                refusal = self._refusal(error)
        came += [one for content in self._workers.kept() for one in unpack(content)]
        if came:
            self._ledger.keep(came)
            self._any, self._killed = True, 0
        for job, killed in ended:
            left = self._ledger.queue.left(job)
            if left is not None and killed:
                self._split(left)
            elif left is not None:
                self._ledger.queue.give_back(left)
        if refusal is not None:
            raise refusal

    @staticmethod
    def _refusal(error: BaseException) -> NatalError:
        if isinstance(error, NatalError):
            return NatalError(str(error))
        return NatalError(f"a worker cannot work: {worker.said(error)}; finished runs are stored")

    def _split(self, job: Job) -> None:
        """Hand a job out again whose worker died: in halves, or the one run that is left of it a few times more."""
        trainings = job.trainings
        if len(trainings) > 1:
            half = len(trainings) // 2
            for part in (trainings[half:], trainings[:half]):
                self._ledger.queue.give_back(replace(job, trainings=part))
            return
        (training,) = trainings
        self._kills[training.key] = self._kills.get(training.key, 0) + 1
        if self._kills[training.key] < KILLS:
            self._ledger.queue.give_back(job)
            return
        self._killed += 1
        if self._killed == HOPELESS:
            if not self._any and not self._planned.done:
                raise NatalError(
                    f"{HOPELESS} runs have killed their workers and none has finished, last "
                    f"{describe(training.run)}; is memory short? The same command goes on, with --on inline in one "
                    "process"
                )
            self._make_ready()  # or is there nobody any more?
            self._killed = 0
        reason = f"its worker died {KILLS} times while it trained this run alone; is memory short?"
        self._ledger.keep([Failure(training.key, reason)])


def _a(thing: object) -> str:
    return "None" if thing is None else f"an object of type {type(thing).__name__}"


class Cancelled(BrokenExecutor):
    """The engine has dropped a job."""
