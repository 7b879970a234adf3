"""A run and its numbers in words, written the same wherever they are shown."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from natal.study import Run


def describe(run: Run) -> str:
    """Return a run's identity as in ``task=modular, strategy=random, sparsity=30%, seed=42``.

    The network stands after the task, but for the paper's own, which goes without saying.
    """
    network = "" if run.network == run._field_defaults["network"] else f"network={run.network}, "
    return f"task={run.task}, {network}strategy={run.strategy}, sparsity={percent(run.sparsity)}, seed={run.seed}"


def brief(run: Run) -> str:
    """Return a cell's identity as in ``modular random 30%``; the network as in `describe`."""
    network = "" if run.network == run._field_defaults["network"] else f"{run.network} "
    return f"{run.task} {network}{run.strategy} {percent(run.sparsity)}"


def on_one_line(text: str) -> str:
    """Return somebody's text on one line, without what would move a terminal's cursor or change its colours."""
    return " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())


TOLD = 400
"""Characters of an error's own words that are told: some have a whole tensor in them."""


def told(text: str) -> str:
    """Return an error's own words on one line, the first of them where they are many, without torch's C++ frames."""
    line = on_one_line(text.split("Exception raised from")[0])
    return line if len(line) <= TOLD else f"{line[:TOLD]} ..."


def place(path: Path) -> str:
    """Return a path as one would type it here: what lies below the current directory without that."""
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


def percent(share: float) -> str:
    """Return a share as a percentage, as ``30%``, ``99.5%`` or ``86.58%``: two decimals at most.

    More decimals only where two would make it 0% or 100%.
    """
    rounded = round(100 * share, 2)
    return f"{100 * share if rounded in (0, 100) else rounded:.10g}%"


def plural(count: int, noun: str) -> str:
    """Return a count with its noun, as in ``1 strategy`` and ``2 strategies``."""
    if count != 1:
        noun = (
            f"{noun[:-1]}ies" if noun.endswith("y") else f"{noun}es" if noun.endswith("nch") else f"{noun}s"
        )
    return f"{count} {noun}"


LISTED = 40
"""Names or numbers that a line lists: a study may have thousands."""


def listed(words: Iterable[object]) -> str:
    """Return words one after the other, of too many the first and the last."""
    every = [str(word) for word in words]
    if len(every) > LISTED:
        every = [*every[: LISTED - 2], "...", every[-1]]
    return ", ".join(every)


def perhaps_percent(sparsity: float) -> str:
    """Return ``"; did you mean 0.95?"`` for a sparsity of 95, and nothing for what is no percentage either."""
    return f"; did you mean {sparsity / 100:.10g}?" if 1 < sparsity < 100 else ""


def stretch(span: str) -> str:
    """Return a stretch of training in words: ``10 steps`` for ``10it``, ``1 epoch`` for ``1ep``, others as they are."""
    number, unit = span[:-2], {"it": "step", "ep": "epoch"}.get(span[-2:])
    return plural(int(number), unit) if unit and number.isdigit() else span


def duration(seconds: float) -> str:
    """Return a stretch of time to two digits or so: ``0.4 s``, ``45 s``, ``3 min``, ``2.5 h``."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
