"""Networks at moments of their trainings, as files beside the run store. No torch here: contents are bytes.

``OUT/states/KEY@CLOCK.safetensors`` is what a study asked to ``keep``, and the masks of networks cut after their birth;
``OUT/states/passing/`` holds what stages still to be trained start from. The coordinating process alone writes, whole
files or none, and a state before the row of its training: so a row never promises a state that is not there. The one
exception is the checkpoint of a long training, `NOW`, which the worker that trains writes over the one before.
"""

from __future__ import annotations

import os
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from natal.errors import NatalError

FOLDER = "states"
PASSING = "passing"
ENDING = ".safetensors"
MASK = "mask"
"""In the place of a clock: the mask that a training ended with."""
NOW = "now"
"""In the place of a clock: a training that is not over, as it was when it last left a checkpoint."""


class Place(NamedTuple):
    """Which state: the key of its training, and the clock: ``init``, ``500it``, ``end``; or `MASK`."""

    key: str
    clock: str

    def __str__(self) -> str:
        return f"{self.key}@{self.clock}"


class States:
    """The states of one results directory."""

    def __init__(self, directory: Path) -> None:
        self.kept = directory / FOLDER
        self.passing = directory / FOLDER / PASSING

    def there(self) -> tuple[set[Place], set[Place]]:
        """Return which states are stored to keep, and which in passing."""
        return _in(self.kept), _in(self.passing)

    def read(self, place: Place) -> bytes:
        """Return a state's content; raise NatalError if it is not there."""
        for folder in (self.kept, self.passing):
            try:
                return _path(folder, place).read_bytes()
            except FileNotFoundError:
                continue
            except OSError as error:
                raise NatalError(f"{_path(folder, place)}: {error.strerror}; check its permissions") from None
        raise NatalError(f"{_path(self.kept, place)} is not there; `natal run` makes it again")

    def write(self, place: Place, content: bytes, *, keep: bool) -> None:
        """Store a state, to ``keep`` or in passing, the whole file or none of it."""
        path = _path(self.kept if keep else self.passing, place)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            # a worker that was thought lost may write a checkpoint at the same time
            draft = f".{os.getpid()}.new" if place.clock == NOW else ".new"
            replace_whole(path, content, path.with_suffix(draft))
        except OSError as error:
            raise NatalError(
                f"{path}: {error.strerror}; free some space, or check permissions, and run the same command again"
            ) from None

    def sweep(self, needed: Collection[Place], trained: Collection[str]) -> None:
        """Remove what a killed command left behind, and what nothing needs any more.

        In passing stay the states that are ``needed``; of the kept those of stored trainings, ``trained``.
        """
        for folder in (self.kept, self.passing):
            for path in folder.glob("*.new"):
                path.unlink(missing_ok=True)
        for place in _in(self.passing) - set(needed):
            self.drop(place)
        for place in _in(self.kept):
            if place.key not in trained:
                _path(self.kept, place).unlink(missing_ok=True)
        for folder in (self.passing, self.kept):
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()

    def drop(self, place: Place) -> None:
        """Remove a state that nothing needs any more, unless it is kept."""
        with suppress(OSError):  # the last one takes the folder with it
            _path(self.passing, place).unlink()
            self.passing.rmdir()


def replace_whole(path: Path, content: bytes, draft: Path | None = None) -> None:
    """Write a file beside its place and move it there, whole or not at all, where no link leads elsewhere.

    ``draft``: what it is called until then, by default a name of this process. Raises OSError.
    """
    draft = draft or path.with_name(f".{path.name}.{os.getpid()}")
    draft.unlink(missing_ok=True)  # what a killed command left, or somebody put there to be followed
    try:
        with draft.open("xb") as file:
            file.write(content)
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)


def _path(folder: Path, place: Place) -> Path:
    return folder / f"{place}{ENDING}"


def _in(folder: Path) -> set[Place]:
    if not folder.is_dir():
        return set()
    names = (path.name.removesuffix(ENDING).partition("@") for path in folder.glob(f"*@*{ENDING}"))
    return {Place(key, clock) for key, _, clock in names}
