"""What travels between a command and its workers, through any executor: bytes, and nothing on a disk.

What all jobs of a command have in common, its *brief*, goes to a worker once: a parcel names it by its digest, and a
worker that does not know it sends the parcel back. Before anything of a brief is looked at, the worker makes sure that
it has the same versions and plugins as the command.
"""

from __future__ import annotations

import hashlib
import os
import pickle
import platform
import socket
import threading
import time
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import metadata, util
from pathlib import Path

import numpy as np
import torch

from natal.errors import NatalError
from natal.lab import DATA, worker
from natal.lab.engines import Pending
from natal.lab.plan import Job
from natal.lab.worker import Made
from natal.machine import HOME
from natal.store import Failure
from natal.store.training import written
from natal.study import Study

UNKNOWN = b""
"""The answer of a worker that does not know a parcel's brief."""


@dataclass(frozen=True)
class Parcel:
    """A job on its way: ``errand`` is what this one is about, None to make a worker ready; ``content`` is the brief."""

    brief: str
    content: bytes | None
    errand: bytes | None

    def trainings(self) -> tuple[Pending, ...]:
        """Return the trainings that it asks for."""
        found: tuple[Pending, ...] = () if self.errand is None else pickle.loads(self.errand)[1]
        return found


class Brief:
    """What all jobs of a command have in common; makes their parcels."""

    def __init__(self, study: Study, engines: Sequence[str], device: str, data: str) -> None:
        common = pickle.dumps((study, tuple(engines), device, data))
        self.content = pickle.dumps((versions(), sources(study.plugins), common))
        self.digest = hashlib.sha256(self.content).hexdigest()

    def parcel(self, job: Job | None, *, whole: bool) -> Parcel:
        """Return a job as a parcel, ``whole`` with the brief itself."""
        errand = (
            None
            if job is None
            else pickle.dumps((job.engine, job.trainings, dict(job.states), job.checkpoints))
        )
        return Parcel(self.digest, self.content if whole else None, errand)


def work(parcel: Parcel) -> bytes:
    """Do a parcel's job in a worker; return what comes of it, packed, or `UNKNOWN`.

    Whatever goes wrong in a training fails it alone. Raises NatalError if this worker cannot work for the command.
    """
    with _turn:
        job = _job(parcel)
        return UNKNOWN if job is None else pack(list(worker.away(job)))


def work_into(parcel: Parcel, folder: Path, name: str) -> bytes:
    """Do a parcel's job likewise, but leave what comes in a folder as it comes, in files ``NAME-0.came`` and so on.

    So nothing of it is lost, whether this worker is stopped in the midst of it or the command that asked for it.
    """
    with _turn:
        job = _job(parcel)
        assert job is not None, "a parcel for a folder holds its brief"
        some: list[Made | Failure] = []
        written, since = 0, time.monotonic()
        for one in worker.away(job):
            some.append(one)
            if time.monotonic() - since > EVERY:
                _leave(folder / f"{name}-{written}.came", some)
                some, written, since = [], written + 1, time.monotonic()
        _leave(folder / f"{name}-{written}.came", some)
        return pack([])


EVERY = 20.0
"""Seconds of training after which what has come is left in the folder."""


def _leave(path: Path, some: Sequence[Made | Failure]) -> None:
    draft = path.with_suffix(".new")
    draft.write_bytes(pack(some))
    draft.replace(path)


def _job(parcel: Parcel) -> Job | None:
    """Return a parcel's job, None if its brief is not known here."""
    if parcel.brief not in _known:
        if parcel.content is None:
            return None
        _known.clear()
        _known[parcel.brief] = _opened(parcel.content)
    study, device, data = _known[parcel.brief]
    errand = ("", (), {}, None) if parcel.errand is None else pickle.loads(parcel.errand)
    engine, trainings, states, checkpoints = errand
    return Job(study, engine, device, trainings, data, states, checkpoints)


_known: dict[str, tuple[Study, str, str]] = {}
_turn = threading.Lock()
"""Training sets what the whole process has: threads, determinism. Where workers are threads, they take turns."""


def _opened(content: bytes) -> tuple[Study, str, str]:
    wanted, plugins, common = pickle.loads(content)
    here = versions()
    wrong = [
        f"{name} {here[name]}, the command {wanted[name]}" for name in here if here[name] != wanted[name]
    ]
    if wrong:
        raise _refusal(f"has {'; '.join(wrong)}", "install the same in both places")
    study, engines, device, data = pickle.loads(common)
    if os.path.isdir(data):
        os.environ[DATA] = data
    else:  # the folder has another name here
        data = os.environ.get(DATA, data)
    try:
        worker.prepare(study, engines, device)
    except NatalError as error:
        raise _refusal(f"is not ready: {error}", "install there what is missing") from None
    for plugin, digest in sources(study.plugins).items():
        if digest != plugins[plugin]:
            raise _refusal(
                f"has another version of plugin {plugin!r}", "copy the file, and start its workers again"
            )
    return study, device, data


def _refusal(what: str, cure: str) -> NatalError:
    return NatalError(f"a worker on {socket.gethostname()!r} {what}; {cure}")


def versions() -> dict[str, str]:
    """Return what must be the same wherever a study is trained."""
    return {
        "natal": f"{metadata.version('natal')} ({_digest(sorted(HOME.rglob('*.py')))})",
        "torch": torch.__version__,
        "numpy": np.__version__,
        "python": ".".join(platform.python_version_tuple()[:2]),
    }


def sources(plugins: Sequence[str]) -> Mapping[str, str]:
    """Return a digest of the source of each imported plugin."""
    found = {}
    for plugin in plugins:
        spec = util.find_spec(plugin)
        places = [] if spec is None else list(spec.submodule_search_locations or ())
        files = [file for place in places for file in sorted(Path(place).rglob("*.py"))]
        if not files and spec is not None and spec.origin is not None:
            files = [Path(spec.origin)]
        found[plugin] = _digest(files)
    return found


def _digest(files: Sequence[Path]) -> str:
    whole = hashlib.sha256()
    for file in files:
        whole.update(file.read_bytes())
    return whole.hexdigest()[:8]


def pack(came: Sequence[Made | Failure]) -> bytes:
    """Return what came of trainings as bytes: outcomes compressed; states as they are, for they hardly shrink."""
    states = [one.states if isinstance(one, Made) else {} for one in came]
    bare = [_bare(one) if isinstance(one, Made) else one for one in came]
    return pickle.dumps((zlib.compress(pickle.dumps(bare), 1), states))


def _bare(one: Made) -> Made:
    """Return what was made without its states, as it will be stored: the command only passes it on."""
    return replace(one, states={}, outcome=written(one.outcome))


def unpack(content: bytes) -> list[Made | Failure]:
    """Return what was packed."""
    packed, states = pickle.loads(content)
    bare: list[Made | Failure] = pickle.loads(zlib.decompress(packed))
    return [
        replace(one, states=of) if isinstance(one, Made) and of else one
        for one, of in zip(bare, states, strict=True)
    ]
