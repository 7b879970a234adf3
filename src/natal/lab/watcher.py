"""Whoever follows a study while it runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from natal.lab.plan import Plan
from natal.store import Outcome
from natal.study import Run


class Watcher(Protocol):
    """Whoever wants to follow a study while it runs."""

    def started(self, plan: Plan) -> None:
        """Training begins."""

    def training(self, runs: Sequence[Run]) -> None:
        """These runs are handed out to be trained."""

    def finished(self, position: int, run: Run, outcome: Outcome, field: str) -> None:
        """Row number ``position`` of the grid's rows is stored; ``field`` is its metric's short name."""

    def failed(self, run: Run, reason: str) -> None:
        """This row could not be trained."""


class Silent:
    """A watcher that says nothing."""

    def started(self, plan: Plan) -> None:
        """Say nothing."""

    def training(self, runs: Sequence[Run]) -> None:
        """Say nothing."""

    def finished(self, position: int, run: Run, outcome: Outcome, field: str) -> None:
        """Say nothing."""

    def failed(self, run: Run, reason: str) -> None:
        """Say nothing."""
