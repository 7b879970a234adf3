"""Streams: one purpose, one sequence of numbers, none of them the caller's."""

from __future__ import annotations

import torch

from natal.streams import stream
from natal.study import MAX_SEED


def draw(seed: int, purpose: str, n: int = 1000) -> torch.Tensor:
    return torch.rand(n, generator=stream(seed, purpose))


def test_a_stream_repeats_itself() -> None:
    assert torch.equal(draw(42, "mask"), draw(42, "mask"))
    # written down, because every stored random mask depends on it
    assert stream(42, "mask").initial_seed() == 1867749720888909858


def test_the_published_streams_are_seeded_with_the_bare_seed() -> None:
    for purpose in ("init", "split"):
        for seed in (0, 42, MAX_SEED):
            assert stream(seed, purpose).initial_seed() == seed


def test_purposes_and_seeds_never_share_numbers() -> None:
    draws = [draw(seed, purpose) for seed in (0, 1, 42) for purpose in ("init", "mask", "data", "order")]
    correlations = torch.corrcoef(torch.stack(draws)) - torch.eye(len(draws))
    assert correlations.abs().max() < 0.15  # 4.7 standard errors of 1000 draws


def test_the_global_generator_is_left_alone() -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    draw(42, "mask")
    draw(42, "init")
    assert torch.equal(torch.get_rng_state(), before)
