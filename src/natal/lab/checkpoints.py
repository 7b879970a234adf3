"""Trainings in the midst of themselves: what a long one leaves behind now and then, so that a kill costs minutes of it.

A checkpoint is a state with what was seen so far. A trial that goes on from one is `natal.lab.trial.Trial.resumed`, and
the law of states holds for it: its bits are those of the training that was never interrupted.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load, save
from torch import Tensor

from natal.errors import NatalError
from natal.lab import states
from natal.lab.state import State
from natal.lab.states import Kept
from natal.store import FILE, NOW, Place, States

EVERY = 300.0
"""Seconds of a training after which it leaves a checkpoint, and again after as many."""


@dataclass(frozen=True)
class Checkpoint:
    """A training after one of its evaluations, with which it was not over.

    ``now``: its state there, with the neurons that its mask keeps. ``best``: parameters and buffers of the best
    evaluation. ``states``: those kept so far, by clock. ``curves``: its evaluations. ``seen``: what `History` and
    `Course` remember beside, JSON-ready. ``seconds``: how long it has taken.
    """

    now: Kept
    best: Mapping[str, Tensor]
    states: Mapping[str, State]
    curves: Mapping[str, Sequence[float]]
    seen: Mapping[str, Any]
    seconds: float


@dataclass(frozen=True)
class Checkpoints:
    """Where trainings leave checkpoints, and after how many seconds of training each.

    ``directory``: of results. The worker that trains writes there itself, for a checkpoint that waited for the end of
    its job would be none. Where a worker does not share the directory, nothing is left.
    """

    directory: str
    every: float = field(default_factory=lambda: EVERY)

    def last(self, key: str) -> Checkpoint | None:
        """Return what a training left last; None if there is nothing, or nothing that can be read."""
        with suppress(NatalError, OSError):
            return unpack(States(Path(self.directory)).read(Place(key, NOW)))
        return None

    def leave(self, key: str, checkpoint: Checkpoint) -> None:
        """Write a checkpoint over the one before, whole or not at all. A full disk costs the checkpoint alone."""
        if Path(self.directory, FILE).is_file():
            with suppress(NatalError):
                States(Path(self.directory)).write(Place(key, NOW), pack(checkpoint), keep=False)


_FORMAT = 1


def pack(checkpoint: Checkpoint) -> bytes:
    """Return a checkpoint as the content of a safetensors file; the states in it are such files themselves."""
    packed = {"now": states.pack(checkpoint.now)}
    packed |= {f"state/{clock}": states.pack(Kept(state)) for clock, state in checkpoint.states.items()}
    tensors = {
        name: torch.frombuffer(bytearray(content), dtype=torch.uint8) for name, content in packed.items()
    }
    tensors |= {
        f"curve/{name}": torch.tensor(curve, dtype=torch.float64, device="cpu")
        for name, curve in checkpoint.curves.items()
    }
    tensors |= {
        f"best/{name}": value.detach().cpu().contiguous().clone() for name, value in checkpoint.best.items()
    }
    told = {
        "format": _FORMAT,
        "seen": checkpoint.seen,
        "seconds": checkpoint.seconds,
        "digest": states.digest(tensors),
    }
    return save(tensors, {"natal": json.dumps(told)})


def unpack(content: bytes) -> Checkpoint | None:
    """Return the checkpoint that was packed; None if it is damaged, or of another version of natal."""
    try:
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
        told, tensors = json.loads(header["__metadata__"]["natal"]), load(content)
        if told["format"] != _FORMAT or states.digest(tensors) != told["digest"]:
            return None
        parts: dict[str, dict[str, Tensor]] = {"now": {}, "state": {}, "curve": {}, "best": {}}
        for full, tensor in tensors.items():
            part, _, name = full.partition("/")
            parts[part][name] = tensor
        return Checkpoint(
            _state(parts["now"][""]),
            parts["best"],
            {clock: _state(of).state for clock, of in parts["state"].items()},
            {name: curve.tolist() for name, curve in parts["curve"].items()},
            told["seen"],
            told["seconds"],
        )
    except Exception:  # whatever a broken file makes a reader say
        return None


def _state(packed: Tensor) -> Kept:
    return states.unpack(packed.numpy().tobytes(), "a checkpoint")
