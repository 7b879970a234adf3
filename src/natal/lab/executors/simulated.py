"""Workers that are only played: they take random times, die at random, and die of certain runs. For tests."""

from __future__ import annotations

import heapq
import random
import threading
from collections import deque
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import BrokenExecutor, Future
from dataclasses import dataclass, field
from typing import Any, ParamSpec, TypeVar

from natal.lab.engines import Pending
from natal.lab.executors.workers import Unstarted, Workers
from natal.lab.parcel import UNKNOWN, Parcel, pack
from natal.lab.worker import Made

P = ParamSpec("P")
R = TypeVar("R")


@dataclass
class _Player:
    """One worker: the jobs it has, the running one first, and the briefs it knows."""

    jobs: deque[tuple[Future[bytes], Parcel]] = field(default_factory=deque)
    briefs: set[str] = field(default_factory=set)


class Simulated(Workers):
    """``count`` workers whose trainings take no time of ours: ``make`` says what comes of one.

    A job takes a random time of theirs. Of ``deaths`` jobs, a share, the worker dies in its midst, but of one training
    alone no more than once; and of each job that has a training of ``poisoned``, by its key. One that dies is replaced
    by one that knows nothing. ``died``: how many.
    """

    def __init__(
        self,
        count: int,
        make: Callable[[Pending], Made],
        *,
        deaths: float = 0.0,
        poisoned: Collection[str] = (),
        seed: int = 0,
    ) -> None:
        self._players = [_Player() for _ in range(count)]
        self._make, self._deaths, self._poisoned = make, deaths, frozenset(poisoned)
        self._random = random.Random(seed)
        self._now, self._order = 0.0, 0
        self._events: list[tuple[float, int, _Player]] = []
        self._lock = threading.Condition()
        self._unlucky: set[str] = set()
        self._over = False
        self.died = 0
        self._thread = threading.Thread(target=self._play, daemon=True)
        self._thread.start()

    @property
    def count(self) -> int:
        """How many workers there are."""
        return len(self._players)

    def submit(self, fn: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> Future[R]:
        """Give a parcel to the worker with the least to do."""
        (parcel,) = args
        assert isinstance(parcel, Parcel)
        future: Future[Any] = Future()
        with self._lock:
            player = min(self._players, key=lambda player: len(player.jobs))
            player.jobs.append((future, parcel))
            if len(player.jobs) == 1:
                self._begin(player)
            self._lock.notify()
        return future

    def _begin(self, player: _Player) -> None:
        self._order += 1
        heapq.heappush(self._events, (self._now + self._random.expovariate(1), self._order, player))

    def _play(self) -> None:
        while True:
            with self._lock:
                while not self._events and not self._over:
                    self._lock.wait()
                if self._over:
                    return
                self._now, _, player = heapq.heappop(self._events)
                future, parcel = player.jobs.popleft()
                trainings = parcel.trainings()
                deadly = any(training.key in self._poisoned for training in trainings)
                known = parcel.content is not None or parcel.brief in player.briefs
                lost: list[Future[bytes]] = []
                died = known and (deadly or self._by_chance(trainings))
                if died:
                    self.died += 1
                    lost = [waiting for waiting, _ in player.jobs]
                    self._players = [_Player() if one is player else one for one in self._players]
                elif player.jobs:
                    self._begin(player)
                if parcel.content is not None:
                    player.briefs.add(parcel.brief)
            self._tell(future, trainings, known=known, died=died)
            for other in lost:
                other.set_exception(Unstarted("its worker died"))

    def _by_chance(self, trainings: Sequence[Pending]) -> bool:
        if self._random.random() >= self._deaths:
            return False
        if len(trainings) != 1:
            return True
        (key,) = (training.key for training in trainings)
        first = key not in self._unlucky
        self._unlucky.add(key)
        return first

    def _tell(self, future: Future[bytes], trainings: Sequence[Pending], *, known: bool, died: bool) -> None:
        if died:
            future.set_exception(BrokenExecutor("a worker died"))
        elif not known:
            future.set_result(UNKNOWN)
        else:
            future.set_result(pack([self._make(training) for training in trainings]))

    def stop(self) -> None:
        """End the play."""
        with self._lock:
            self._over = True
            self._lock.notify()
        self._thread.join()
