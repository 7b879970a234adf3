"""Workers of a Ray cluster."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, ParamSpec, TypeVar

import ray
from ray.exceptions import RayTaskError, TaskCancelledError

from natal.errors import NatalError
from natal.lab.executors.workers import Workers

P = ParamSpec("P")
R = TypeVar("R")


class Ray(Workers):
    """Workers of a Ray cluster, one core each.

    ``address``: the cluster's, ``auto`` for the one that this machine belongs to; without one, Ray is started here. A
    Ray that this process has begun to use already is used. Raises NatalError if there is no cluster.
    """

    def __init__(self, address: str | None = None) -> None:
        self._began = not ray.is_initialized()
        if self._began:
            here: dict[str, Any] = {} if address else {"include_dashboard": False}
            try:
                ray.init(address, log_to_driver=False, logging_level="ERROR", **here)
            except (ConnectionError, OSError, ValueError, RuntimeError) as error:
                raise NatalError(
                    f"no Ray cluster answers at {address!r} ({str(error).splitlines()[0]}); start one with "
                    "`ray start --head`"
                ) from None
        # a job is tried again here, where it can be split
        self._call = ray.remote(num_cpus=1, max_retries=0)(_call)

    def submit(self, fn: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> Future[R]:
        """Hand ``fn`` to the cluster."""
        future: Future[R] = self._call.remote(fn, args, kwargs).future()
        return future

    @property
    def count(self) -> int:
        """How many cores the cluster has now."""
        return int(ray.cluster_resources().get("CPU", 0))

    def lost(self, error: BaseException) -> bool:
        """Whether a job ended by anything but its own error: its worker or machine is gone, or out of memory."""
        died = isinstance(error, ray.exceptions.RayError) and not isinstance(error, RayTaskError)
        return died or isinstance(error, TaskCancelledError) or super().lost(error)

    def stop(self) -> None:
        """Leave the cluster; what was started here ends."""
        if self._began:
            ray.shutdown()


def _call(fn: Callable[..., R], args: tuple[Any, ...], kwargs: dict[str, Any]) -> R:
    return fn(*args, **kwargs)
