"""Random numbers that are the same everywhere: the functions they are made of, and their law."""

from __future__ import annotations

import math

import numpy as np
import torch
from scipy import stats

from natal.lab.networks import draws
from natal.streams import stream

U = torch.rand(20_000, dtype=torch.float64, generator=stream(1, "u")).numpy()


def test_logarithm_and_cosine_are_those_of_the_system_to_their_last_bits() -> None:
    x = np.concatenate([1 - U, [1.0, 2.0**-53, 1 - 2.0**-53, 0.5, np.sqrt(0.5)]])
    theirs = np.array([math.log(value) for value in x])
    assert np.all(np.abs(draws._log(x) - theirs) <= 4 * np.spacing(np.abs(theirs)))
    v = np.concatenate([U, np.arange(16) / 16, [1 - 2.0**-53, 0.125, np.nextafter(0.125, 1)]])
    assert (
        np.abs(draws._cos_of_turns(v) - np.array([math.cos(2 * math.pi * value) for value in v])).max()
        < 1e-15
    )
    assert draws._cos_of_turns(np.array([0.0, 0.25, 0.5, 0.75])).tolist() == [1, 0, -1, 0]


def test_normal_numbers_are_box_and_mullers_rounded_once() -> None:
    with draws.SameEverywhere(normal=True):
        drawn = torch.empty(30, 40).normal_(2.0, 3.0, generator=stream(3, "weights"))
    u, v = torch.rand(2, 30, 40, dtype=torch.float64, generator=stream(3, "weights"))
    expected = [
        math.sqrt(-2 * math.log1p(-p)) * math.cos(2 * math.pi * q) * 3 + 2
        for p, q in zip(u.flatten().tolist(), v.flatten().tolist(), strict=True)
    ]
    assert torch.equal(drawn.flatten(), torch.tensor(expected, dtype=torch.float64).float())
    assert stats.kstest((drawn.flatten().numpy() - 2) / 3, "norm").pvalue > 0.01
