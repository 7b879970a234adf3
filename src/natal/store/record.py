"""What one training left behind. No torch here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from natal.study import Maker, Setting

Curves = Mapping[str, NDArray[np.float64]]
"""One number per evaluation, by name: ``step`` (optimiser steps taken by then), ``train_loss`` (mean of the steps since
the evaluation before), ``val_loss``, ``val_metric``, and ``test_metric`` where a study asks for it. Trainings stored by
natal 0.2 have no ``val_loss``."""


class Record:
    """A typed row whose fields can also be read by name, ``row["task"]``, as the rows of natal 0.2 were."""

    def __getitem__(self, name: str) -> Any:
        if name not in self.__dataclass_fields__:  # type: ignore[attr-defined]
            raise KeyError(name)
        return getattr(self, name)


@dataclass(frozen=True)
class TaskFacts(Record):
    """What a study's results say of one of its tasks.

    ``metric``: what is measured (``accuracy``), and ``field`` its short name (``acc``); ``chance``: its value for a
    network that has learned nothing. ``loss``: what is minimised. ``learning_rate``: of every network, None where they
    differ. ``inputs``: numbers of one input row; ``outputs``: of one output.
    """

    metric: str
    field: str
    chance: float
    loss: str
    learning_rate: float | None
    inputs: int
    outputs: int
    fit_rows: int
    val_rows: int
    train_rows: int
    test_rows: int


@dataclass(frozen=True)
class NetworkFacts(Record):
    """What a study's results say of one network on one task.

    ``engine``: what trained it. ``parameters``: all of them; ``layers``: the shape of each prunable layer's weights.
    ``macs``: multiply-adds of one row's forward pass. ``steps``: of a whole training; ``steps_per_epoch``. ``whole``:
    the shape of weights of which only whole neurons can go, such as recurrent ones.
    """

    task: str
    network: str
    engine: str
    parameters: int
    layers: Mapping[str, tuple[int, ...]]
    macs: int
    steps: int
    steps_per_epoch: int
    whole: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    @property
    def setting(self) -> Setting:
        """The task with the network."""
        return Setting(self.task, self.network)

    @property
    def sizes(self) -> dict[str, int]:
        """Number of weights of each prunable layer."""
        return {name: prod(shape) for name, shape in self.layers.items()}

    @property
    def prunable(self) -> int:
        """Number of prunable weights."""
        return sum(self.sizes.values())

    @property
    def epochs(self) -> float:
        """The length of a whole training in epochs."""
        return whole(self.steps / self.steps_per_epoch)


@dataclass(frozen=True)
class Outcome:
    """What one training left behind.

    ``status``: ``finished``, or ``diverged`` if the training loss stopped being finite (then the metrics
    are None). ``densities``: share of weights kept, per prunable layer; ``prunable`` and ``kept``: weights
    there were and are, over all of them, biases never counted. ``steps_trained``: optimiser steps taken, of
    ``steps_planned`` (None: not known, from natal 0.2); ``best_step``: those up to the evaluation whose weights were
    kept. ``constant``: the trained network gives every test row the same output. ``learning_rate``: what it was
    trained at (None: not known, from natal 0.2). ``seconds``: the training's share of wall time. ``made_by``: engine,
    device, and versions. ``deterministic``: whether torch's deterministic algorithms were on. ``diagnosis``: what the
    mask doctor said before training: ``effective_sparsity``, ``collapses_at`` (the sparsity at which this criterion
    first empties a layer of this network, None if it is not known), ``findings`` (pairs of severity and
    sentence, gravest first) and ``layers``, as in `natal.pruning.doctor`, and ``pictures`` of the mask, as in
    `natal.pruning.pictures`; earlier natals have none. ``curves``: see `Curves`.
    ``proofs``: what was checked while it was trained (nothing, from earlier natals): ``held``, removed weights were
    exactly 0 at every evaluation and after the last step; ``rewound``, what training began with under the mask was the
    state it was given, bit for bit; ``restarted``, the ``step`` of the clock it began at, the ``learning_rate`` of its
    first step, whether the ``optimiser`` was ``fresh`` or ``kept``, and a digest of the rows of its first ``batch``;
    ``sparsity``, realised.
    """

    key: str
    status: str
    total_params: int
    nonzero_params: int
    prunable: int
    kept: int
    densities: dict[str, float]
    steps_per_epoch: int
    steps_planned: int | None
    steps_trained: int
    best_step: int
    learning_rate: float | None
    train_metric: float | None
    val_metric: float | None
    test_metric: float | None
    final_loss: float | None
    constant: bool
    seconds: float
    made_by: Maker
    deterministic: bool
    diagnosis: Mapping[str, Any]
    curves: Curves = field(repr=False)
    proofs: Mapping[str, Any] = field(default_factory=dict)

    @property
    def epochs_trained(self) -> float:
        """Epochs trained; a whole number wherever training ended with an epoch."""
        return whole(self.steps_trained / self.steps_per_epoch)

    @property
    def best_epoch(self) -> float:
        """The epoch after which the best weights were measured."""
        return whole(self.best_step / self.steps_per_epoch)

    def facts(self) -> dict[str, Any]:
        """Return what it says of itself: its fields but the key, the status, the maker and the curves."""
        return {name: getattr(self, name) for name in _FACTS}

    def maker(self) -> dict[str, Any]:
        """Return who made it, JSON-ready."""
        return asdict(self.made_by)


_FACTS = [f.name for f in fields(Outcome) if f.name not in ("key", "status", "made_by", "curves")]


@dataclass(frozen=True)
class Failure(Record):
    """A training that could not be made, and is tried again by the next command.

    ``reason``: what went wrong, in one line. ``tries``: commands in which it failed. ``at``: when it last did, UTC.
    """

    key: str
    reason: str
    tries: int = 1
    at: str = ""


def whole(number: float) -> float:
    """Return a whole number as one."""
    return int(number) if number == int(number) else number
