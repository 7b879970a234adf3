"""A run and its numbers in words, written the same wherever they are shown."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from natal.study import Run


def describe(run: Run) -> str:
    """Return a run's identity as in ``task=modular, strategy=random, sparsity=30%, seed=42``."""
    return f"task={run.task}, strategy={run.strategy}, sparsity={percent(run.sparsity)}, seed={run.seed}"


def percent(share: float) -> str:
    """Return a share as a percentage, with as many digits as it needs: ``30%``, ``99.5%``."""
    return f"{100 * share:.10g}%"
