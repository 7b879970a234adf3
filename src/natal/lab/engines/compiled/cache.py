"""Compilation by Numba: once a machine, kept on disk, said on the terminal.

What is on disk is used if it can be read; a missing, damaged or read-only cache costs the time to compile and nothing
else. Two commands that need the kernels at once take turns: the second finds what the first has compiled.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import pickle
import stat
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from filelock import FileLock, Timeout
from numba import config, njit
from numba.core.caching import FunctionCache, IndexDataCacheFile

from natal.errors import NatalError

F = TypeVar("F", bound=Callable[..., Any])

SAID = "natal: compiling its kernels for this processor, once; this takes some seconds"

PATIENCE = 120
"""Seconds to wait for another command that compiles, before doing the same work beside it."""


def inlined(function: F) -> F:
    """Let compiled functions call this one; it is compiled into each of them."""
    wrapped: F = njit(error_model="numpy", no_cpython_wrapper=True, no_cfunc_wrapper=True)(function)
    return wrapped


def entry(function: F) -> F:
    """Compile a function when it is first called, without fast-math, and keep it on disk where there is room."""
    compiled: Any = njit(error_model="numpy")(function)
    if not config.DISABLE_JIT:
        try:
            compiled._cache = _Said(compiled._cache) if _shared() else _Cache(function)
        except RuntimeError:  # neither the package's directory nor the user's can be written
            compiled._cache = _Said(compiled._cache)
    entered: F = compiled
    return entered


def usable() -> bool:
    """Whether kernels can be compiled and kept here; `refuses` says why not."""
    return not (config.DISABLE_JIT or _shared())


def refuses() -> str:
    """Return why nothing can be compiled here, or ``""``.

    Raises NatalError if others can write where compiled code is kept: reading it executes what lies there.
    """
    if shared := _shared():
        raise NatalError(
            f"NUMBA_CACHE_DIR {shared!r}: others can write there, and natal executes what it reads there; name a "
            f"directory of your own, or type chmod go-w {shared!r}"
        )
    return "NUMBA_DISABLE_JIT is set in the environment" if config.DISABLE_JIT else ""


def _shared() -> str:
    """Return the directory that NUMBA_CACHE_DIR names if it, or one that it lies in, is not this user's alone.

    Where it is not set, kernels lie beside natal's own code, or below the user's home: who can write there needs none.
    """
    named = config.CACHE_DIR
    if not named or not hasattr(os, "getuid"):
        return ""
    place = Path(named).resolve()
    for path in (place, *place.parents):
        try:
            status = path.stat()
        except OSError:  # to be made, by this user
            continue
        others = status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
        # in a directory such as /tmp nobody can replace what is another's
        if status.st_uid not in (0, os.getuid()) or (
            others and not (path != place and status.st_mode & stat.S_ISVTX)
        ):
            return str(path)
    return ""


def _say() -> None:
    """Say, once a process, that it will take a while."""
    global _said
    if not _said:
        print(SAID, file=sys.stderr, flush=True)
    _said = True


_said = False


class _Said:
    """No cache; says so before compiling."""

    def __init__(self, none: Any) -> None:
        self._none = none

    def __getattr__(self, name: str) -> Any:
        return getattr(self._none, name)

    def load_overload(self, *arguments: Any) -> None:
        """Find nothing."""
        _say()


class _Files(IndexDataCacheFile):  # type: ignore[misc]
    """Numba's files of one function, each compiled code followed by its digest."""

    def _dump(self, found: Any) -> bytes:
        data: bytes = super()._dump(found)
        return data + hashlib.sha256(data).digest()

    def _load_data(self, name: str) -> Any:
        data = Path(self._data_path(name)).read_bytes()
        if hashlib.sha256(data[:-32]).digest() != data[-32:]:
            raise ValueError("damaged")
        return pickle.loads(data)


class _Cache(FunctionCache):  # type: ignore[misc]
    """Numba's cache of one function, which nothing wrong with a file can stop, used by one process at a time.

    What was compiled from other sources of this package is not taken.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__(function)
        if config.CACHE_DIR:
            made = Path(self.cache_path)
            with contextlib.suppress(OSError):  # whatever the user's mask lets a group write
                made.chmod(stat.S_IMODE(made.stat().st_mode) & ~(stat.S_IWGRP | stat.S_IWOTH))
        self._cache_file = _Files(self.cache_path, self._impl.filename_base, _sources())
        self._turn = Path(self.cache_path) / f"{function.__name__}.lock"
        self._lock = FileLock(self._turn)

    def load_overload(self, *arguments: Any) -> Any:
        """Return what is on disk, or None after taking the right to compile it."""
        found = self._load(*arguments)
        if found is None:
            self._lock = FileLock(self._turn)  # one that a process was forked with is of no use to it
            try:
                self._lock.acquire(timeout=PATIENCE)
                found = self._load(*arguments)  # by whoever had the lock
            except (OSError, Timeout):
                pass
            if found is None:
                _say()
            else:
                self._lock.release()
        return found

    def _load(self, *arguments: Any) -> Any:
        try:
            return super().load_overload(*arguments)
        except Exception:  # a damaged file may raise anything
            return None

    def save_overload(self, *arguments: Any) -> None:
        """Write to disk, where that is possible."""
        try:
            super().save_overload(*arguments)
        except Exception:  # a full or read-only disk, or a damaged index
            self._start_anew(*arguments)
        finally:
            self._lock.release()

    def _start_anew(self, *arguments: Any) -> None:
        with contextlib.suppress(Exception):
            self.flush()
            super().save_overload(*arguments)


@functools.cache
def _sources() -> str:
    """Return the digest of this package's files: Numba itself looks at that of the function it is given alone."""
    files = sorted(Path(__file__).parent.glob("*.py"))
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()
