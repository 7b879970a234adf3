"""Worker processes behind ``concurrent.futures``."""

from __future__ import annotations

import multiprocessing
import multiprocessing.forkserver
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from types import ModuleType
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")


_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["natal.lab.preload"])


def prepare() -> None:
    """Start the fork server, which loads torch and kernels while the coordinator imports torch too; returns at once."""
    with _signals_wait():
        multiprocessing.forkserver.ensure_running()


class Processes(ProcessPoolExecutor):
    """Worker processes that share one preloaded torch and end with their coordinator, however it ends.

    They are forked from a fork server that has imported ``natal.lab.preload``, so a worker starts in milliseconds.
    Every worker watches a pipe whose other end only the coordinator holds: when the coordinator calls `stop`, or is
    killed, the pipe closes and the worker exits at once.
    """

    def __init__(self, workers: int) -> None:
        watched, self._lifeline = _context.Pipe(duplex=False)
        super().__init__(workers, mp_context=_context, initializer=_start_worker, initargs=(watched,))

    def submit(self, fn: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> Future[R]:
        """Hand ``fn`` to a worker; see `concurrent.futures.Executor.submit`."""
        with _without_main(), _signals_wait():
            return super().submit(fn, *args, **kwargs)

    def stop(self) -> None:
        """End the workers at once, whatever they are doing."""
        self._lifeline.close()
        self.shutdown(cancel_futures=True)  # waits: a worker still starting would miss what it starts with


@contextmanager
def _without_main() -> Iterator[None]:
    """Keep new workers from importing the caller's script: a script without a main guard would run itself again."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


@contextmanager
def _signals_wait() -> Iterator[None]:
    """Hold back Ctrl-C and its like until a process is started whole; one half started would complain.

    Processes started meanwhile never get Ctrl-C, from their first instruction on: it is the coordinator's to handle.
    """
    came: list[int] = []
    handlers: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():  # no other is interrupted, or may set a handler
        handlers = {number: signal.getsignal(number) for number in signal.valid_signals()}
        handlers = {number: handler for number, handler in handlers.items() if callable(handler)}
    try:
        for number in handlers:
            signal.signal(number, lambda number, _: came.append(number))
        resource_tracker.ensure_running()  # later it would unblock the signal
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
        try:
            yield
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        for number in came:
            signal.raise_signal(number)


def _start_worker(lifeline: Connection) -> None:
    threading.Thread(target=_exit_when_closed, args=(lifeline,), daemon=True).start()


def _exit_when_closed(lifeline: Connection) -> None:
    try:
        lifeline.recv_bytes()
    except (EOFError, OSError):
        os._exit(1)
