"""Positions on the training clock: ``"init"``, ``"500it"``, ``"2ep"``, ``"10%"``, ``"end"``.

The strings are open_lth's (iterations and epochs), with shares of the whole length added.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import BeforeValidator

_UNIT = re.compile(r"(\d+(?:\.\d+)?)(ep|it|%)")


def _clock(value: Any) -> Any:
    if not isinstance(value, str) or not (value in ("init", "end") or _UNIT.fullmatch(value)):
        raise ValueError('must be a position in training, such as "500it", "2ep", "10%", "init" or "end"')
    return value


def span(value: Any) -> str:
    """Return a stretch of training, checked."""
    if not isinstance(value, str) or not re.fullmatch(r"[1-9]\d*(ep|it)", value):
        raise ValueError('must be a number of epochs or steps, such as "160ep" or "50000it"')
    return value


Clock = Annotated[str, BeforeValidator(_clock)]
"""A position in training."""

Span = Annotated[str, BeforeValidator(span)]
"""A stretch of training: whole epochs or whole steps, at least one."""


def moment(value: Any) -> str:
    """Return a position in training with its ends by their names: ``"0it"`` is ``"init"``, ``"100%"`` is ``"end"``."""
    clock = str(_clock(value))
    match = _UNIT.fullmatch(clock)
    if match is not None and float(match[1]) == 0:
        return "init"
    return "end" if match is not None and match[2] == "%" and float(match[1]) == 100 else clock


Moment = Annotated[str, BeforeValidator(moment)]
"""A position in training, see `moment`."""


def steps(clock: str, steps_per_epoch: int, total: int) -> int:
    """Return the number of optimiser steps taken at a position of the clock.

    ``total``: steps of the whole training, which ``"end"`` and shares refer to; a position between two steps is the
    later one of them.
    """
    if clock in ("init", "end"):
        return 0 if clock == "init" else total
    match = _UNIT.fullmatch(clock)
    assert match is not None
    amount, unit = float(match[1]), match[2]
    exact = {"it": amount, "ep": amount * steps_per_epoch, "%": amount / 100 * total}[unit]
    # 10 % of 30 steps is 3, not the 4 that binary fractions would make of it
    return -int(-round(exact, 9) // 1)


@dataclass(frozen=True)
class Timeline:
    """The clock of one training: its steps an epoch and in all."""

    steps_per_epoch: int
    total: int

    def steps(self, clock: str) -> int:
        """Return the optimiser steps taken at a position."""
        return steps(clock, self.steps_per_epoch, self.total)

    def name(self, clock: str) -> str:
        """Return a position as every way to write it is written in keys and files: ``init``, ``500it``, ``end``."""
        taken = self.steps(clock)
        return "init" if taken == 0 else "end" if taken == self.total else f"{taken}it"
