"""One named stream of random numbers per use, none of them the caller's global one.

A stream is a fresh ``torch.Generator``. Its seed mixes the run's seed with the stream's purpose, so two purposes
never share numbers: masks drawn for seed 42 know nothing of the weights drawn for seed 42. The published program
missed exactly this; see the study ``as-published``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch

PUBLISHED = ("init", "split")
"""Purposes whose streams are seeded with the bare seed, as the published program did, so that natal's initial
weights and validation splits are its own to the last bit."""


def stream(seed: int, purpose: str) -> torch.Generator:
    """Return the CPU generator of one purpose, e.g. ``stream(42, "mask")``.

    The streams of two different purposes, or of two seeds, are independent; the same pair always gives the same
    stream. The purposes in ``PUBLISHED`` are seeded with ``seed`` itself.
    """
    if purpose in PUBLISHED:
        mixed = seed
    else:
        digest = hashlib.sha256(f"natal/{purpose}/{seed}".encode()).digest()
        mixed = int.from_bytes(digest[:8], "big") >> 1  # torch takes seeds below 2**63
    return torch.Generator(device="cpu").manual_seed(mixed)


def uniform(shape: Sequence[int], generator: torch.Generator) -> torch.Tensor:
    """Return draws from [0, 1) in float32 on the CPU, whatever the caller's default dtype and device."""
    return torch.rand(tuple(shape), generator=generator, dtype=torch.float32, device="cpu")


def normal(shape: Sequence[int], generator: torch.Generator, *, precise: bool = False) -> torch.Tensor:
    """Return standard normal draws in float32 on the CPU, whatever the caller's default dtype and device.

    ``precise`` ones are other numbers: drawn in float64 and rounded, they do not depend on the processor, whose
    logarithms and cosines in float32 do.
    """
    dtype = torch.float64 if precise else torch.float32
    return torch.randn(tuple(shape), generator=generator, dtype=dtype, device="cpu").float()
