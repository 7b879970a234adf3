"""Workers of a Dask scheduler."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, ParamSpec, TypeVar

from distributed import Client, KilledWorker
from distributed.comm.core import CommClosedError

from natal.errors import NatalError
from natal.lab.executors.workers import Workers
from natal.machine import cores

P = ParamSpec("P")
R = TypeVar("R")

PATIENCE = 60
"""Seconds to wait for a scheduler, at first and after it went away."""


class Dask(Workers):
    """Workers of a Dask scheduler, which hands jobs out and tries those of lost workers again.

    ``address``: the scheduler's, such as ``tcp://scheduler:8786``; without one, workers are started on this machine.
    A worker process trains one network at a time, however many threads it has. Raises NatalError if nobody answers.
    """

    def __init__(self, address: str | None = None) -> None:
        self._address = address
        self._connect()

    def _connect(self) -> None:
        here: dict[str, Any] = {"n_workers": cores(), "threads_per_worker": 1, "dashboard_address": None}
        try:
            self._client = (
                Client(self._address, timeout=PATIENCE, set_as_default=False)
                if self._address
                else Client(set_as_default=False, **here)
            )
        except (OSError, ValueError, ImportError) as error:
            raise NatalError(
                f"no Dask scheduler answers at {self._address!r} ({error}); start one with `dask scheduler`"
            ) from None
        self._executor = self._client.get_executor(pure=False)
        self._counted, self._count = 0.0, 1

    def submit(self, fn: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> Future[R]:
        """Hand ``fn`` to the scheduler; one that was restarted is found again."""
        if self._client.status != "running":
            self._client.close(timeout=1)
            self._connect()
        future: Future[R] = self._executor.submit(fn, *args, **kwargs)
        return future

    @property
    def count(self) -> int:
        """How many worker processes the scheduler has now."""
        if time.monotonic() - self._counted > 1:
            try:
                self._count = len(self._client.nthreads())
            except (OSError, CommClosedError):
                self._count = 1
            self._counted = time.monotonic()
        return self._count

    def lost(self, error: BaseException) -> bool:
        """Whether a job's workers died, or the scheduler did."""
        return isinstance(error, KilledWorker | CommClosedError) or super().lost(error)

    def stop(self) -> None:
        """Leave the scheduler; what was started here ends."""
        self._client.close(timeout=5)
