"""What every engine is: something that trains trials, and says which it cannot take."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple, Protocol

from torch import Tensor, nn

from natal.lab.tasks import Split, Task
from natal.lab.trial import Trained, Trial
from natal.store import Place
from natal.study import Recipe, Run, Stage, Training


@dataclass(frozen=True)
class Setting:
    """A task with a network, trained in one way: all that an engine needs to know before there is a mask.

    ``network``: one of them, newborn; treat it as read-only. ``split``: the data of the study's first seed.
    ``macs``: multiply-adds of one row's forward pass. ``stages``: what its trials need beyond a training from birth:
    ``"start"``, ``"keep"``, ``"cuts"``, ``"order"``, as the fields of `Trial`.
    """

    task: Task
    network: nn.Module
    split: Split
    training: Training
    macs: int
    stages: frozenset[str] = frozenset()

    @cached_property
    def parameters(self) -> int:
        """Number of parameters."""
        return sum(p.numel() for p in self.network.parameters())

    @cached_property
    def steps(self) -> int:
        """Optimiser steps of one training, were it not to stop early."""
        return self.training.total_steps(len(self.split.fit))

    @cached_property
    def row(self) -> Tensor:
        """One input, without its row axis."""
        return self.split.data.inputs[0]

    @cached_property
    def rows_a_step(self) -> int:
        """Rows of one step."""
        return min(self.training.batch or len(self.split.fit), len(self.split.fit))

    def flops(self, density: float = 1.0) -> float:
        """Return about how many operations a training takes: three products a step, two operations a multiply-add."""
        return 6.0 * self.steps * self.rows_a_step * self.macs * density


class Pending(NamedTuple):
    """A training still to be done: the row that asks for it, its key, and its recipe.

    ``stage``: which stage of a chain it is, of a cut at birth the same one for all seeds; ``needs``: the states it
    starts from, as `Stage.needs` lists them; ``keep``: the clocks at which its own are wanted.
    """

    run: Run
    key: str
    recipe: Recipe
    stage: Stage
    needs: tuple[Place, ...] = ()
    keep: frozenset[str] = frozenset()


class Engine(Protocol):
    """How trainings are done.

    ``revision`` rises whenever the engine's bits change: it is part of every key. ``devices``: kinds of device it
    runs on.
    """

    @property
    def name(self) -> str:
        """What it is called."""

    @property
    def revision(self) -> int:
        """How often its bits have changed."""

    @property
    def portable(self) -> bool:
        """Whether its bits are the same on every processor; masks are then scored to be so too."""

    @property
    def devices(self) -> Sequence[str]:
        """Kinds of device."""

    def refuses(self, setting: Setting) -> str:
        """Return why this engine cannot train in a setting, or ``""``."""

    def jobs(self, pending: Sequence[Pending], setting: Setting, device: str) -> list[list[Pending]]:
        """Return the pending trainings of one setting in the portions that workers take, each worth starting."""

    def cost(self, pending: Pending, setting: Setting) -> float:
        """Return about how long a training takes, in any unit that is the same for all of this engine's."""

    def prepare(self, device: str) -> None:
        """Load what the first training would otherwise wait for."""

    def train(self, trials: Sequence[Trial], device: str) -> Iterator[Trained]:
        """Yield the trained networks as they finish, in any order."""
