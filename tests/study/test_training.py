"""Training as data: schedules against PyTorch's, batches and evaluations by hand, every bad value in one line."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from torch.optim import SGD, lr_scheduler

from natal.study import Optimiser, Training
from natal.study.training import Schedule


def factors(schedule: Any, length: str = "40it", rows: int = 100, batch: int | str = 20) -> list[float]:
    return Training.model_validate({"schedule": schedule, "length": length, "batch": batch}).factors(rows)


# -- schedules: PyTorch is the oracle ------------------------------------------------------------------------


def oracle(make: Any, count: int) -> list[float]:
    """The factors that a scheduler of torch.optim gives to a learning rate of 1."""
    optimiser = SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler, found = make(optimiser), []
    for _ in range(count):
        found.append(optimiser.param_groups[0]["lr"])
        optimiser.step()
        scheduler.step()
    return found


@pytest.mark.parametrize(
    ("schedule", "theirs"),
    [
        ("constant", lambda o: lr_scheduler.ConstantLR(o, factor=1.0)),
        ("cosine", lambda o: lr_scheduler.CosineAnnealingLR(o, T_max=40)),
        ("linear", lambda o: lr_scheduler.LinearLR(o, start_factor=1.0, end_factor=0.0, total_iters=40)),
        ({"name": "step", "every": "7it"}, lambda o: lr_scheduler.StepLR(o, step_size=7, gamma=0.1)),
        # 100 rows in batches of 20: five steps an epoch
        (
            {"name": "step", "every": "3ep", "factor": 0.5},
            lambda o: lr_scheduler.StepLR(o, step_size=15, gamma=0.5),
        ),
        (
            [["50%", 0.1], ["6ep", 0.01]],
            lambda o: lr_scheduler.MultiStepLR(o, milestones=[20, 30], gamma=0.1),
        ),
        (
            {"name": "constant", "warmup": "8it"},
            lambda o: lr_scheduler.LinearLR(o, start_factor=1 / 8, end_factor=1.0, total_iters=7),
        ),
    ],
)
def test_schedules_are_those_of_torch(schedule: Any, theirs: Any) -> None:
    assert factors(schedule) == pytest.approx(oracle(theirs, 40), abs=1e-12)


def test_cosine_with_warm_up_by_hand() -> None:
    ours = factors({"name": "cosine", "warmup": "4it"}, length="8it")
    cosine = [(1 + math.cos(math.pi * t / 8)) / 2 for t in range(8)]
    assert ours == pytest.approx(
        [c * f for c, f in zip(cosine, [0.25, 0.5, 0.75, 1, 1, 1, 1, 1], strict=True)]
    )


def test_a_point_may_raise_the_rate_and_holds_from_its_clock_on() -> None:
    assert factors([["init", 0.5], ["2it", 2.0], ["4it", 0.0]], length="6it") == [
        0.5,
        0.5,
        2.0,
        2.0,
        0.0,
        0.0,
    ]


@given(
    st.sampled_from(["constant", "cosine", "linear"]),
    st.integers(1, 300),
    st.integers(1, 100),
    st.integers(0, 100),
)
def test_a_schedule_stays_between_0_and_1(name: str, total: int, rows: int, percent: int) -> None:
    schedule = {"name": name, "warmup": f"{percent}%"}
    values = factors(schedule, f"{total}it", rows, 1)
    assert len(values) == total
    assert all(0 < value <= 1 for value in values)
    assert percent or values[0] == 1


# -- batches, epochs, evaluations ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keys", "rows", "per_epoch", "total"),
    [
        ({}, 100, 1, 500),
        ({"length": "3ep"}, 100, 1, 3),
        ({"length": "3ep", "batch": 30}, 100, 4, 12),
        ({"length": "3ep", "batch": 50}, 100, 2, 6),
        ({"length": "7it", "batch": 30}, 100, 4, 7),
        ({"epochs": 5, "batch": "full"}, 100, 1, 5),
    ],
)
def test_steps_by_hand(keys: dict[str, Any], rows: int, per_epoch: int, total: int) -> None:
    training = Training.model_validate(keys)
    assert (training.steps_per_epoch(rows), training.total_steps(rows)) == (per_epoch, total)


@pytest.mark.parametrize(
    ("evaluate", "length", "expected"),
    [
        ("1ep", "3ep", [4, 8, 12]),
        ("2ep", "3ep", [8, 12]),
        ("5it", "3ep", [5, 10, 12]),
        ("12it", "3ep", [12]),
        ("1it", "3it", [1, 2, 3]),
        ("1ep", "10it", [4, 8, 10]),
    ],
)
def test_the_last_step_is_always_evaluated(evaluate: str, length: str, expected: list[int]) -> None:
    training = Training.model_validate({"batch": 30, "evaluate": evaluate, "length": length})
    assert training.evaluations(100) == expected


# -- what does not fit ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        (
            {"batch": 101},
            'training.batch = 101 is larger than the 100 rows to train on; "full" takes them all',
        ),
        (
            {"schedule": {"name": "step", "every": "600ep"}},
            "training.schedule speaks of '600ep', beyond the length of '500ep' (500 steps here)",
        ),
        (
            {"schedule": {"name": "cosine", "warmup": "501it"}},
            "training.schedule speaks of '501it', beyond the length of '500ep' (500 steps here)",
        ),
        (
            {"schedule": [["10%", 0.1], ["20it", 0.01]]},
            "training.schedule lists its clocks out of order: ['10%', '20it']",
        ),
        ({"evaluate": "600ep"}, "training.evaluate = '600ep' is longer than training itself, '500ep'"),
        (
            {"length": "100000001it"},
            "training.length = '100000001it' is 100,000,001 steps here, more than 100,000,000; shorten it",
        ),
        ({"batch": 100}, ""),
        ({"schedule": [["500it", 0.1]]}, ""),
    ],
)
def test_what_does_not_fit_the_data_is_said_in_a_line(keys: dict[str, Any], said: str) -> None:
    assert Training.model_validate(keys).check(100, "cross-entropy") == said


def test_label_smoothing_is_refused_where_there_are_no_classes() -> None:
    smoothed = Training.model_validate({"label_smoothing": 0.1})
    assert smoothed.check(100, "cross-entropy") == ""
    assert smoothed.check(100, "squared-error") == (
        "training.label_smoothing = 0.1 smooths the classes of cross-entropy, and the loss here is squared-error; "
        "leave it out"
    )


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"optimiser": "rmsprop"}, "'sgd', 'adam' or 'adamw'"),
        ({"optimiser": {"name": "sgd", "momentum": 1.0}}, "momentum must lie in [0, 1), got 1.0"),
        ({"optimiser": {"name": "sgd", "nesterov": True}}, "nesterov needs a momentum, such as 0.9"),
        (
            {"optimiser": {"name": "sgd", "betas": [0.5, 0.9]}},
            "betas belong to adam and adamw; sgd takes momentum",
        ),
        ({"optimiser": {"momentum": 0.9}}, "momentum belongs to sgd; adam takes betas"),
        ({"optimiser": {"betas": [0.9, 1.0]}}, "betas must lie in [0, 1), got [0.9, 1.0]"),
        ({"optimiser": {"weight_decay": -1}}, "weight_decay must be at least 0, got -1"),
        ({"schedule": "step"}, 'schedule "step" goes with every, such as "30ep"; no other does'),
        ({"schedule": {"name": "cosine", "every": "30ep"}}, 'schedule "step" goes with every'),
        ({"schedule": []}, 'schedule "points" goes with points'),
        ({"schedule": [["5it", -1]]}, "a factor of the learning rate must be at least 0, got -1"),
        ({"batch": 0}, "must be at least 1"),
        ({"batch": "all"}, 'must be "full" or a number of rows'),
        ({"patience": "never"}, 'must be a number or "none"'),
        ({"label_smoothing": 1}, "must lie in [0, 1)"),
        ({"clip": 0}, "must be positive, such as 1.0"),
        ({"learning_rate": -0.1}, "must be positive, such as 0.001"),
        ({"learning_rate": {"search": [0.1]}}, "needs two or more different learning rates, got [0.1]"),
        ({"learning_rate": {"search": [0.1, 0.1]}}, "needs two or more different learning rates"),
        ({"test_curve": "yes"}, "valid boolean"),
        ({"decide": "end"}, 'it goes with patience = "none" and target = "none"'),
        ({"epochs": 3, "length": "3ep"}, "epochs says the same thing as length; keep one of them"),
        ({"epochs": True}, "epochs must be a whole number of at least 1, got True"),
        ({"length": "0ep"}, "must be a number of epochs or steps"),
        ({"validation_fraction": 0.5}, "must lie strictly between 0 and 0.5"),
    ],
)
def test_a_bad_value_is_named_with_its_cure(keys: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError) as error:
        Training.model_validate(keys)
    assert said in str(error.value) or said in str(error.value).replace("input should be ", "")


# -- as it is written down -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "keys",
    [
        {},
        {"epochs": 7},
        {"length": "50000it", "patience": "none", "target": "none", "decide": "end"},
        {"schedule": [["80ep", 0.1], ["120ep", 0.01]], "batch": 128, "length": "160ep"},
        {
            "optimiser": {"name": "sgd", "momentum": 0.9, "nesterov": True},
            "clip": 1.0,
            "label_smoothing": 0.1,
        },
        {"learning_rate": {"search": [0.1, 0.01]}},
        {"learning_rate": {"modular": 0.1}},
    ],
)
def test_a_training_written_down_reads_back_the_same(keys: dict[str, Any]) -> None:
    training = Training.model_validate(keys)
    assert Training.model_validate(training.model_dump()) == training


def test_later_keys_enter_what_is_written_only_if_used() -> None:
    old = {"epochs", "patience", "target", "validation_fraction", "learning_rate"}
    assert set(Training().model_dump()) == old
    assert set(Training(batch=60).model_dump()) == {*old, "batch"}
    assert Optimiser().model_dump() == {"name": "adam"}
    assert Schedule().model_dump() == {"name": "constant"}
