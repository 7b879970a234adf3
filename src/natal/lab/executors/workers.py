"""What natal asks of an engine's workers beyond `concurrent.futures`' protocol; each has a default."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import BrokenExecutor, CancelledError, Executor, Future
from typing import ParamSpec, TypeVar

from natal.machine import cores

P = ParamSpec("P")
R = TypeVar("R")


class Unstarted(BrokenExecutor):
    """The worker that was to do a job next is gone, and had not begun with it."""


class Workers(Executor):
    """Workers behind an executor. A future whose worker is lost has an exception for which `lost` is true.

    An adapter of an engine overrides what its client knows better. ``forgets``: whether every job has a process of its
    own, which knows nothing of the jobs before. ``answers``: whether what comes of a job comes by its future; if not,
    `kept` has it.
    """

    forgets = False
    answers = True

    @property
    def name(self) -> str:
        """What it is called in a complaint."""
        return type(self).__name__

    @property
    def count(self) -> int:
        """How many jobs run at once now; workers join and leave."""
        raise NotImplementedError

    def portion(self, ready: int) -> int:
        """Return how many of the jobs that are ``ready`` are handed out as one."""
        return 1

    def lost(self, error: BaseException) -> bool:
        """Whether an exception means that a job's worker is gone."""
        return isinstance(error, BrokenExecutor | CancelledError)

    def kept(self) -> Iterable[bytes]:
        """Return what has come by another way than futures, even of jobs that a command before this one handed out.

        What was returned once is stored by the time of the next call.
        """
        return ()

    def stop(self) -> None:
        """End what was begun here, at once."""
        self.shutdown(wait=False, cancel_futures=True)


class Given(Workers):
    """An executor that somebody else has made, and ends."""

    def __init__(self, executor: Executor) -> None:
        self._executor = executor

    def submit(self, fn: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> Future[R]:
        """Hand ``fn`` to the executor."""
        return self._executor.submit(fn, *args, **kwargs)

    @property
    def name(self) -> str:
        """What the executor is called, not this."""
        return type(self._executor).__name__

    @property
    def count(self) -> int:
        """As many as the executor says that it has, or as this machine has cores."""
        said = (getattr(self._executor, name, None) for name in ("count", "_max_workers"))
        return next((many for many in said if isinstance(many, int) and many > 0), cores())

    def stop(self) -> None:
        """Leave it as it is."""
