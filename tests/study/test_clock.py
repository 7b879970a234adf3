"""Positions on the training clock, by hand and as properties."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from natal.study.clock import Clock, Span, steps


@pytest.mark.parametrize(
    ("clock", "expected"),
    [
        ("init", 0),
        ("end", 1000),
        ("0it", 0),
        ("500it", 500),
        ("2ep", 80),
        ("0.5ep", 20),
        ("10%", 100),
        ("100%", 1000),
        ("12.34%", 124),  # between two steps: the later
        ("0.01ep", 1),
    ],
)
def test_a_position_is_a_number_of_steps_taken(clock: str, expected: int) -> None:
    assert steps(clock, steps_per_epoch=40, total=1000) == expected


def test_a_share_is_not_rounded_up_for_a_binary_fraction() -> None:
    # 0.1 and 0.07 have no exact binary form: 7 / 100 * 100 is 7.000000000000001
    assert [steps(f"{percent}%", 1, 100) for percent in range(101)] == list(range(101))
    assert steps("10%", 1, 30) == 3


@given(st.integers(0, 1000), st.integers(1, 500), st.integers(1, 10**6))
def test_units_agree(epochs: int, per_epoch: int, total: int) -> None:
    assert steps(f"{epochs}ep", per_epoch, total) == steps(f"{epochs * per_epoch}it", per_epoch, total)
    assert steps("100%", per_epoch, total) == steps("end", per_epoch, total) == total
    assert steps("0%", per_epoch, total) == steps("init", per_epoch, total) == 0


@given(st.floats(0, 100), st.floats(0, 100), st.integers(1, 10**6))
def test_a_later_share_is_a_later_step(a: float, b: float, total: int) -> None:
    early, late = (steps(f"{share:.3f}%", 1, total) for share in sorted((a, b)))
    assert 0 <= early <= late <= total


@pytest.mark.parametrize(
    "wrong", ["5", "5 it", "-1it", "it", "1e3it", "5epochs", "begin", "", "10 %", 5, None, True]
)
def test_what_is_no_position_is_refused(wrong: object) -> None:
    with pytest.raises(ValidationError, match='must be a position in training, such as "500it"'):
        TypeAdapter(Clock).validate_python(wrong)


@pytest.mark.parametrize("wrong", ["0ep", "0it", "1.5ep", "10%", "init", "end", "5", "-5ep", 5, None])
def test_what_is_no_stretch_is_refused(wrong: object) -> None:
    with pytest.raises(ValidationError, match="must be a number of epochs or steps"):
        TypeAdapter(Span).validate_python(wrong)
