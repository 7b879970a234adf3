"""How a training's numbers lie in the store, and the digests that tell when a bit of them has flipped. No torch here.

A digest is 64 bits of BLAKE2b: of a row's values as Python writes them in ASCII, of curves and details as stored.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from hashlib import blake2b
from typing import Any

import numpy as np
from numpy.typing import NDArray


def digest(*parts: bytes) -> int:
    """Return 64 bits of BLAKE2b of some bytes, as SQLite keeps a whole number."""
    made = blake2b(digest_size=8)
    for part in parts:
        made.update(part)
    return int.from_bytes(made.digest(), "little", signed=True)


def digest_of_row(values: Sequence[object]) -> int:
    """Return the digest of a row's values: None, whole numbers, float64 and text."""
    return digest(ascii(tuple(values)).encode())


class Later(Mapping[str, Any]):
    """A mapping that is read whenever it is looked into, and not kept: a million diagnoses need not lie in memory."""

    __slots__ = ("_read", "_what")

    def __init__(self, read: Callable[[Any], Mapping[str, Any]], what: object) -> None:
        self._read, self._what = read, what

    def __getitem__(self, name: str) -> Any:
        return self._read(self._what)[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._read(self._what))

    def __len__(self) -> int:
        return len(self._read(self._what))

    def __repr__(self) -> str:
        return repr(plain(self))


def plain(mapping: Mapping[str, Any]) -> dict[str, Any]:
    """Return a mapping as a dictionary, for whoever looks into it more than once."""
    return dict(mapping._read(mapping._what) if isinstance(mapping, Later) else mapping)


class Packed(Mapping[str, NDArray[np.float64]]):
    """Curves as they are stored, which travel so, too, and are unpacked only where somebody looks at them."""

    def __init__(self, lines: str, numbers: bytes) -> None:
        self.lines, self.numbers = lines, numbers

    def __getitem__(self, name: str) -> NDArray[np.float64]:
        return unpack(self.lines, self.numbers)[name]

    def __iter__(self) -> Iterator[str]:
        return (name for name, *_ in _layout(self.lines)[0])

    def __len__(self) -> int:
        return len(_layout(self.lines)[0])


def pack(curves: Mapping[str, NDArray[np.float64]]) -> tuple[str, bytes]:
    """Return curves as they are stored: what lines there are, as JSON, and their numbers one after the other.

    A line takes four bytes a number where float32 holds each exactly, as it does what torch measured, else
    eight. Compression would save a third more, and cost the coordinator more time than all else it does for a run.
    """
    lines, numbers = [], []
    for name, line in curves.items():
        line = np.asarray(line, np.float64)
        with np.errstate(over="ignore"):
            half = line.astype("<f4")
        exact = np.array_equal(half, line, equal_nan=True)
        lines.append([name, "<f4" if exact else "<f8", len(line)])
        numbers.append((half if exact else line.astype("<f8", copy=False)).tobytes())
    return json.dumps(lines), b"".join(numbers)


def unpack(lines: str, numbers: bytes) -> dict[str, NDArray[np.float64]]:
    """Return curves from how they are stored; raises ValueError or TypeError if that makes no sense."""
    layout, size = _layout(lines)
    if size != len(numbers):
        raise ValueError(f"{len(numbers)} bytes instead of {size}")
    return {
        name: np.frombuffer(numbers, kind, length, at).astype(np.float64) for name, kind, length, at in layout
    }


@lru_cache(1000)
def _layout(lines: str) -> tuple[list[tuple[str, str, int, int]], int]:
    """Return each line's name, kind, length and place among the bytes, and how many bytes there are."""
    layout, at = [], 0
    for name, kind, length in json.loads(lines):
        layout.append((str(name), kind, length, at))
        at += length * np.dtype(kind).itemsize
    return layout, at


def number(value: Any) -> float | None:
    """Return a number as SQLite keeps it, which has no NaN."""
    return None if value is None or math.isnan(value) else float(value)
