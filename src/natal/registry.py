"""Named entries a study file can refer to: tasks, criteria, executors.

A registry is a dictionary that is filled by a decorator and answers a misspelt name with the nearest one::

    @criterion("smallest-first")
    def smallest_first(problem): ...

An entry made in a user's own module is found once that module is imported: ``plugins = ["my_module"]``.
"""

from __future__ import annotations

import difflib
import hashlib
import inspect
import linecache
from collections.abc import Callable, Iterable, Iterator
from types import CodeType
from typing import Any, Generic, TypeVar

from natal.errors import NatalError

T = TypeVar("T")


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return ``"; did you mean 'x'?"`` for the known name nearest to ``name``, else the list of known names."""
    known = sorted(known)
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"; did you mean {near[0]!r}?" if near else f"; known: {', '.join(known) or 'none'}"


class Registry(Generic[T]):
    """Entries of one kind by name.

    ``kind`` is the word used in messages (``"criterion"``); ``origin`` returns the function an entry was made from.
    """

    def __init__(self, kind: str, origin: Callable[[T], Any] = lambda entry: entry) -> None:
        self.kind = kind
        self.origin = origin
        self._entries: dict[str, T] = {}
        self._fingerprints: dict[str, str] = {}

    def register(self, name: str) -> Callable[[T], T]:
        """Return the decorator that files its argument under ``name``.

        Raises NatalError if another entry already has the name (importing the same module twice is harmless).
        """

        def file(entry: T) -> T:
            old = self._entries.get(name)
            if old is not None and self._place(old) != self._place(entry):
                raise NatalError(f"{self.kind} {name!r} is already registered; choose another name")
            self._entries[name] = entry
            # now, not when asked: the file may change while this process goes on with what it imported
            self._fingerprints[name] = _fingerprint(self.origin(entry))
            return entry

        return file

    def __getitem__(self, name: str) -> T:
        """Return the entry called ``name``; raise NatalError naming the nearest one if there is none."""
        if name not in self._entries:
            raise NatalError(f"unknown {self.kind} {name!r}{did_you_mean(name, self._entries)}")
        return self._entries[name]

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def summary(self, name: str) -> str:
        """Return the first paragraph of the entry's docstring, as one line."""
        return " ".join((inspect.getdoc(self.origin(self[name])) or "").split("\n\n")[0].split())

    def fingerprint(self, name: str) -> str:
        """Return a digest of the file that defines ``name``, or ``""`` for natal's own entries.

        It is part of a run's key, so that editing a plugin retrains what the plugin made, and nothing else. In a
        notebook it is a digest of the cell, at a prompt of the function.
        """
        self[name]
        return self._fingerprints[name]

    def _place(self, entry: T) -> tuple[str, str]:
        function = self.origin(entry)
        return function.__module__, function.__qualname__


def _fingerprint(function: Any) -> str:
    if function.__module__.startswith("natal."):
        return ""
    code = inspect.unwrap(function).__code__
    linecache.checkcache(code.co_filename)
    source = "".join(linecache.getlines(code.co_filename)) or _instructions(code)
    return hashlib.sha256(source.encode()).hexdigest()[:16]


def _instructions(code: CodeType) -> str:
    """Return what a function does, for one typed at a prompt: its instructions, constants and names."""
    constants = [_instructions(c) if isinstance(c, CodeType) else repr(c) for c in code.co_consts]
    return f"{code.co_code.hex()} {constants} {code.co_names} {code.co_varnames}"
