"""The engine ``compiled`` against the engine ``torch``, and by itself: any chain, any mask, any way of training."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from chains import CLASSES, NUMBERS, train, trial, ways
from natal.lab.tasks import Task

OPTIMISERS: list[Any] = [
    "sgd",
    {"name": "sgd", "momentum": 0.9, "weight_decay": 0.01},
    {"name": "sgd", "momentum": 0.9, "nesterov": True},
    "adam",
    {"name": "adam", "betas": [0.8, 0.99], "weight_decay": 0.01},
    {"name": "adamw", "weight_decay": 0.1},
]


@given(
    seed=st.integers(0, 1000),
    sizes=st.lists(st.integers(1, 40), min_size=2, max_size=5),
    densities=st.lists(st.sampled_from([0.0, 0.05, 0.3, 0.7, 1.0]), min_size=4, max_size=4),
    task=st.sampled_from([CLASSES, NUMBERS]),
    ones=st.integers(0, 2),
    bias=st.booleans(),
    without=st.sampled_from([0.0, 0.3]),
    fit=st.integers(2, 400),
    batch=st.sampled_from(["full", 1, 7, 60, 300]),
    optimiser=st.sampled_from(OPTIMISERS),
    schedule=st.sampled_from(["constant", "cosine", [["5it", 0.5], ["11it", 0.1]]]),
    smoothing=st.sampled_from([0.0, 0.1]),
)
@settings(max_examples=60, deadline=None)
def test_in_float64_it_agrees_with_the_torch_engine_after_20_steps(
    seed: int, sizes: list[int], densities: list[float], task: Task, ones: int, bias: bool, without: float, fit: int,
    batch: str | int, optimiser: Any, schedule: Any, smoothing: float,
) -> None:  # fmt: skip
    if ones:
        sizes = [sizes[0] + 8 * ones, *sizes[1:]]
    training = ways(
        batch=batch if batch == "full" else min(int(batch), fit),
        optimiser=optimiser,
        schedule=schedule,
        label_smoothing=smoothing if task is CLASSES else 0.0,
    )
    one = trial(seed, training, sizes, densities, task=task, ones=ones, bias=bias, without=without, fit=fit)
    (ours,), (theirs,) = (train(engine, one) for engine in ("compiled", "torch"))
    for name, p in theirs.state.items():
        q = ours.state[name]
        assert p.dtype == q.dtype == torch.float64
        assert (q - p).abs().max() <= 1e-9 * max(1e-6, float(p.abs().max())), name
    for name, kept in one.mask.items().items():
        assert (ours.state[name][~kept] == 0).all(), name
    for name, curve in theirs.outcome.curves.items():
        np.testing.assert_allclose(ours.outcome.curves[name], curve, rtol=1e-6, atol=1e-12, err_msg=name)
    assert ours.outcome.final_loss == pytest.approx(theirs.outcome.final_loss, rel=1e-6)
    for part in ("train_metric", "val_metric", "test_metric"):
        assert getattr(ours.outcome, part) == pytest.approx(getattr(theirs.outcome, part), rel=1e-4)
    assert ours.outcome.constant == theirs.outcome.constant
