"""What every test of pruning starts from: a global generator of one seed, given back as it was."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(autouse=True)
def seeded() -> Iterator[None]:
    """Let layers and rows that a test draws without a seed of its own be the same in every run."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield
