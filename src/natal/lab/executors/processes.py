"""Worker processes behind ``concurrent.futures``."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import BrokenExecutor, Future, ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from types import ModuleType
from typing import Any, ParamSpec, TypeVar

from natal.errors import NatalError
from natal.lab.executors.workers import Unstarted, Workers
from natal.machine import HOME

P = ParamSpec("P")
R = TypeVar("R")

# elsewhere there is none, or it is not safe to fork what has loaded the system's libraries
_context: Any = multiprocessing.get_context("forkserver" if sys.platform == "linux" else "spawn")
if sys.platform == "linux":
    _context.set_forkserver_preload(["natal.lab.preload"])


def prepare() -> None:
    """Start the fork server, which loads torch and kernels while the coordinator imports torch too; returns at once."""
    if _context.get_start_method() == "forkserver" and may_have_children():
        from multiprocessing import forkserver

        with _plainly(), _nothing_from_here(), _signals_wait():
            forkserver.ensure_running()


def may_have_children() -> bool:
    """Whether this process may start others: a worker of `multiprocessing.Pool` may not."""
    return not multiprocessing.current_process().daemon


@dataclass
class _Slot:
    """One worker: a pool of its own, so that its death is nobody else's, and the jobs it has, the running one first."""

    pool: ProcessPoolExecutor
    jobs: deque[Future[Any]] = field(default_factory=deque)
    broken: bool = False


class Processes(Workers):
    """Worker processes that share one preloaded torch and end with their coordinator, however it ends.

    They are forked from a fork server that has imported ``natal.lab.preload``, so a worker starts in milliseconds;
    where there is none, they are spawned. Every worker watches a pipe whose other end only the coordinator holds: when
    the coordinator calls `stop`, or is killed, the pipe closes and the worker exits at once. A worker that dies breaks
    its own job alone; the one that waited behind it is `Unstarted`.
    """

    def __init__(self, workers: int) -> None:
        self._watched, self._lifeline = _context.Pipe(duplex=False)
        self._slots = [_Slot(self._pool()) for _ in range(workers)]

    def _pool(self) -> ProcessPoolExecutor:
        return ProcessPoolExecutor(
            1, mp_context=_context, initializer=_start_worker, initargs=(self._watched,)
        )

    @property
    def count(self) -> int:
        """How many processes there are."""
        return len(self._slots)

    def submit(self, fn: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> Future[R]:
        """Hand ``fn`` to the worker with the least to do; see `concurrent.futures.Executor.submit`.

        Raises NatalError if no process can be started.
        """
        slot = min(self._slots, key=lambda slot: len(slot.jobs))
        if slot.broken:
            slot.pool.shutdown(wait=False)
            slot.pool, slot.broken = self._pool(), False
            slot.jobs.clear()
        asked: Future[R] = Future()
        slot.jobs.append(asked)
        try:
            with _plainly(), _nothing_from_here(), _without_main(), _signals_wait():
                inner = slot.pool.submit(fn, *args, **kwargs)
        except (BrokenExecutor, EOFError, ConnectionError) as error:
            # the worker has just died, or the fork server while it started one
            slot.broken = True
            slot.jobs.remove(asked)
            asked.set_exception(Unstarted(str(error)))
            return asked
        inner.add_done_callback(lambda done: _pass_on(slot, done, asked))
        return asked

    def stop(self) -> None:
        """End the workers at once, whatever they are doing."""
        self._lifeline.close()
        for slot in self._slots:
            # waits: a worker still starting would miss what it starts with
            slot.pool.shutdown(cancel_futures=True)
        self._watched.close()


def _pass_on(slot: _Slot, done: Future[Any], asked: Future[Any]) -> None:
    """Let a job's future say what came of it; called by the pool's own thread."""
    first = bool(slot.jobs) and slot.jobs[0] is asked
    error: BaseException | None = None
    if done.cancelled():
        error = Unstarted("stopped")
    elif (error := done.exception()) is not None and isinstance(error, BrokenExecutor):
        if slot.broken or not first:
            error = Unstarted(str(error))
        slot.broken = True
    if asked in slot.jobs:
        slot.jobs.remove(asked)
    if not asked.set_running_or_notify_cancel():
        return
    if error is not None:
        asked.set_exception(error)
    else:
        asked.set_result(done.result())


@contextmanager
def _plainly() -> Iterator[None]:
    """Turn what the system says when it starts no process into one line; that one died is no matter for it."""
    try:
        yield
    except (BrokenExecutor, ConnectionError):
        raise
    except OSError as error:
        raise NatalError(
            f"worker processes cannot be started: {error.strerror or error}; "
            "try --workers 1, which needs none, or see to TMPDIR, /dev/shm and `ulimit -n`"
        ) from None


@contextmanager
def _nothing_from_here() -> Iterator[None]:
    """Keep what starts now from importing what lies in the current directory by the name of a library.

    Only the study's plugins may be found there, once everything else is imported.
    """
    here, home = Path.cwd(), HOME.parent
    path, safe = list(sys.path), os.environ.get("PYTHONSAFEPATH")
    sys.path[:] = [p for p in path if p and (Path(p) != here or here == home)]
    os.environ["PYTHONSAFEPATH"] = "1"
    try:
        yield
    finally:
        sys.path[:] = path
        if safe is None:
            del os.environ["PYTHONSAFEPATH"]
        else:
            os.environ["PYTHONSAFEPATH"] = safe


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

    Processes started meanwhile never get Ctrl-C, nor that the terminal is gone, from their first instruction on: it is
    the coordinator's to handle.
    """
    came: list[int] = []
    handlers: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():  # no other is interrupted, or may set a handler
        handlers = {number: signal.getsignal(number) for number in signal.valid_signals()}
        handlers = {number: handler for number, handler in handlers.items() if callable(handler)}
    blocks = hasattr(signal, "pthread_sigmask")
    try:
        for number in handlers:
            signal.signal(number, lambda number, _: came.append(number))
        if blocks:
            from multiprocessing import resource_tracker

            blocked = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGHUP])
            resource_tracker.ensure_running()  # ignores Ctrl-C by itself, and later it would unblock it here
            signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
        try:
            yield
        finally:
            if blocks:
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
