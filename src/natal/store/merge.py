"""Stores of parts of one study, trained apart, as one store. No torch here.

Parts must be of the same study, and made by the same versions of natal, torch and NumPy: otherwise their grids name
other trainings. A training that several parts have must have the same bits in all of them.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice, zip_longest
from pathlib import Path
from typing import Any

from natal.errors import NatalError
from natal.store.record import Outcome
from natal.store.search import chosen
from natal.store.sqlite import AT_ONCE, FILE, Store
from natal.store.states import FOLDER, replace_whole
from natal.study import Run
from natal.wording import describe

VERSIONS = ("natal_version", "torch_version", "numpy_version", "device")
SHOWN = 3
"""How many conflicts are spelled out."""
DRAFT = ".merging"


def merge(sources: Sequence[Path], out: Path) -> tuple[int, int]:
    """Join the stores in ``sources`` into a new one in ``out``; return how many rows have their trainings, of how many.

    What failed in a part and was made in none is failed in the whole. Nothing is left in ``out`` unless the merge is
    whole. Raises NatalError if the parts are not of one study, if
    versions differ, if a training has other bits in another part, or if ``out`` holds anything already.
    """
    if len(sources) < 2:
        raise NatalError("a merge needs two directories at least, such as `natal merge A B --out C`")
    if out.exists() and (not out.is_dir() or any(path.name != ".lock" for path in out.iterdir())):
        raise NatalError(f"{str(out)!r} is not empty; name a new directory with --out")
    for number, source in enumerate(sources):
        if any(source.resolve() == other.resolve() for other in sources[:number]):
            raise NatalError(f"{str(source)!r} is named twice; name every part once")
    stores = [Store.read(source) for source in sources]
    draft = out / DRAFT
    try:
        _agree(stores)
        shutil.rmtree(draft, ignore_errors=True)
        with Store.create(draft) as store:
            counts = _join(stores, store)
        _states(sources, out)
        (draft / FILE).replace(out / FILE)
        return counts
    except OSError as error:
        raise NatalError(
            f"{error.filename or out}: {error.strerror}; free some space, or name another directory with --out"
        ) from None
    finally:
        shutil.rmtree(draft, ignore_errors=True)
        for one in stores:
            one.close()


def _agree(stores: Sequence[Store]) -> None:
    """Raise NatalError unless all parts are of one study, by one natal, torch and NumPy."""
    first, *others = stores
    study, versions = first.study(), first.manifest(*VERSIONS)
    for other in others:
        if other.study().digest != study.digest:
            raise NatalError(
                f"{first.path.parent} and {other.path.parent} are not of one study: "
                f"{study.name!r} has digest {study.digest}, {other.study().name!r} {other.study().digest}"
            )
        for name, version in other.manifest(*VERSIONS).items():
            if versions.get(name) != version:
                raise NatalError(
                    f"{first.path.parent} has {name} {versions.get(name)}, {other.path.parent} {version}; train the "
                    "parts of a study with the same versions"
                )
        for mine, theirs in zip_longest(first.grid(), other.grid()):
            # a row that chooses may show another of its trainings in each part
            if mine != theirs and not (mine and theirs and mine[0] == theirs[0] and first.tried()):
                run = (mine or theirs)[0]
                raise NatalError(
                    f"{first.path.parent} and {other.path.parent} want different trainings for {describe(run)}: "
                    "a plugin, an engine or a version differs"
                )
        if first.tried() != other.tried():
            raise NatalError(
                f"{first.path.parent} and {other.path.parent} try other learning rates: "
                "a plugin, an engine or a version differs"
            )


def _join(stores: Sequence[Store], into: Store) -> tuple[int, int]:
    manifests = [store.manifest() for store in stores]
    grid, tried, study = stores[0].grid(), stores[0].tried(), stores[0].study()
    lines = {k: v for m in manifests for k, v in m.items() if k.startswith("connectivity/")}
    begun = [m["started_at"] for m in manifests if m.get("started_at")]
    about = {
        **{name: value for name, value in manifests[0].items() if name != "study"},
        **lines,
        "command": "natal merge",
        "started_at": min(begun, default=None),
        "elapsed_seconds": sum(float(m.get("elapsed_seconds") or 0) for m in manifests),
        "finished_at": None,
    }
    into.declare(study, grid, about, tried)
    conflicts: list[str] = []
    count = 0
    for store in stores:
        coming = store.outcomes(store.keys())
        while some := list(islice(coming, AT_ONCE)):
            there = {mine.key: mine for mine in into.outcomes([theirs.key for theirs in some])}
            into.add(theirs for theirs in some if theirs.key not in there)
            for theirs in some:
                for told in _apart(there[theirs.key], theirs) if theirs.key in there else ():
                    count += 1
                    if count <= SHOWN:
                        first = next(s for s in stores if list(s.outcomes([theirs.key])))
                        which = next((run for run, key in grid if key == theirs.key), None)
                        conflicts.append(
                            f"{_named(which, theirs.key)} has {told} in {first.path.parent} and {store.path.parent}"
                        )
    if conflicts:
        more = f" (and {count - SHOWN} more)" if count > SHOWN else ""
        raise NatalError(f"parts disagree: {'; '.join(conflicts)}{more}; nothing was merged")
    failures = [failure for store in stores for failure in store.failures().values()]
    made = {o.key for o in into.outcomes(failure.key for failure in failures)}
    into.add((), (failure for failure in failures if failure.key not in made))
    if tried:
        into.choose(chosen([run for run, _ in grid], tried, into.deciding(study.training.decide)))
    complete, total = into.complete()
    if complete == total:
        now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        into.note(finished_at=now, deterministic=into.deterministic())
    return complete, total


def _apart(mine: Outcome, theirs: Outcome) -> Iterator[str]:
    """Yield in what two trainings of one key differ, but for the time they took."""
    ours, other = mine.facts() | {"status": mine.status}, theirs.facts() | {"status": theirs.status}
    for name in ours:
        if name != "seconds" and ours[name] != other[name]:
            yield f"{name} {_short(ours[name])} and {_short(other[name])}"
    lines = [{name: line.tobytes() for name, line in o.curves.items()} for o in (mine, theirs)]
    if lines[0] != lines[1]:
        yield "one curve and another"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 30 else f"{text[:29]}…"


def _named(run: Run | None, key: str) -> str:
    return f"training {key}" if run is None else describe(run)


def _states(sources: Iterable[Path], out: Path) -> None:
    """Bring what states the parts keep; raise NatalError for one that differs."""
    for source in sources:
        for path in sorted((source / FOLDER).glob("*.safetensors")) if (source / FOLDER).is_dir() else ():
            content, place = path.read_bytes(), out / FOLDER / path.name
            if place.exists() and place.read_bytes() != content:
                shutil.rmtree(out / FOLDER)
                raise NatalError(
                    f"parts disagree: {path} is another state of the same name; nothing was merged"
                )
            place.parent.mkdir(parents=True, exist_ok=True)
            replace_whole(place, content)
