"""How a network is trained, as data."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator, field_validator

from natal.study.base import Integer, Model, Number


def _none(value: Any) -> Any:
    if isinstance(value, str) and value != "none":
        raise ValueError('must be a number or "none"')
    return None if value == "none" else value


class Training(Model):
    """How every network of a study is trained: full-batch Adam with early stopping on validation rows.

    ``epochs``: most steps taken. ``patience``: epochs without a better validation metric before stopping, or
    ``"none"`` for the full budget. ``target``: a validation metric that ends training at once, or ``"none"``.
    ``validation_fraction``: share of training rows held out. ``learning_rate``: one number, or one per task;
    left out, each task's own.
    """

    epochs: Integer = 500
    patience: Annotated[Integer | None, BeforeValidator(_none)] = 100
    target: Annotated[Number | None, BeforeValidator(_none)] = 0.999
    validation_fraction: Number = 0.1
    learning_rate: Number | dict[str, Number] | None = None

    @field_validator("epochs", "patience")
    @classmethod
    def _at_least_one(cls, value: int | None) -> int | None:
        if value is not None and value < 1:
            raise ValueError("must be at least 1")
        return value

    @field_validator("validation_fraction")
    @classmethod
    def _fraction(cls, value: float) -> float:
        if not 0 < value < 0.5:
            raise ValueError("must lie strictly between 0 and 0.5")
        return value

    @field_validator("learning_rate")
    @classmethod
    def _positive(cls, value: float | dict[str, float] | None) -> float | dict[str, float] | None:
        for rate in value.values() if isinstance(value, dict) else [value]:
            if rate is not None and not rate > 0:
                raise ValueError("must be positive, such as 0.001")
        return value
