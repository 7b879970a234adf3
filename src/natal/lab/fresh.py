"""A study begun afresh: a directory of its own inside the old one, whose place it takes once it is whole.

What was stored before stays readable until then, and a command that was stopped goes on in the new one.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from natal.errors import NatalError
from natal.store import FILE, States, Store
from natal.store.states import ENDING, FOLDER
from natal.study import Study

BEGUN = ".fresh"
"""Where a study that is begun afresh lies until it is whole."""


def begun(directory: Path, study: Study) -> Path:
    """Return where ``study`` is begun afresh; raise NatalError if ``directory`` holds a store that is not natal's."""
    if (directory / FILE).exists():
        Store.recognise(directory)
    return directory / BEGUN


def is_of(place: Path, study: Study) -> bool:
    """Whether a study that was begun afresh is this one, and not another that was left there."""
    try:
        with Store.read(place) as store:
            return bool(store.manifest("study_hash").get("study_hash") == study.digest)
    except NatalError:
        return False


def clear(place: Path) -> None:
    """Remove what was begun afresh."""
    shutil.rmtree(place, ignore_errors=True)


def adopt(directory: Path) -> None:
    """Put what was begun afresh, and is whole, in the place of what ``directory`` held.

    States first, as ever: a kill in between leaves two stores, and the same command goes on.
    """
    place = directory / BEGUN
    for path in (place / FOLDER).glob(f"*{ENDING}") if (place / FOLDER).is_dir() else ():
        (directory / FOLDER).mkdir(exist_ok=True)
        path.replace(directory / FOLDER / path.name)
    (place / FILE).replace(directory / FILE)
    with Store.read(directory) as store:
        States(directory).sweep((), store.finished())
    clear(place)
