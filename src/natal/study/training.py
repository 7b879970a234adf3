"""How a network is trained, as data: optimiser, learning rate, schedule, batch, length, evaluation, stopping."""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import pairwise
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BeforeValidator, Discriminator, Tag, field_validator, model_serializer, model_validator

from natal.study.base import Flag, Integer, Model, Number
from natal.study.clock import Clock, Span, Timeline, span, steps

LONGEST = 10**8
"""Steps of one training, at most: each has its factor of the learning rate, in memory."""


def _none(value: Any) -> Any:
    if isinstance(value, str) and value != "none":
        raise ValueError('must be a number or "none"')
    return None if value == "none" else value


def _none_or_span(value: Any) -> Any:
    return None if value in (None, "none") else span(value)


def _batch(value: Any) -> Any:
    if isinstance(value, str) and value != "full":
        raise ValueError('must be "full" or a number of rows')
    return None if value == "full" else value


class Optimiser(Model):
    """Which rule moves the weights; a name alone stands for its defaults.

    ``sgd`` with ``momentum`` and ``nesterov``; ``adam``; ``adamw``, whose ``weight_decay`` is decoupled
    (Loshchilov & Hutter 2019). Everything else as in ``torch.optim``; ``betas`` are Adam's.
    """

    name: Literal["sgd", "adam", "adamw"] = "adam"
    momentum: Number = 0.0
    nesterov: Flag = False
    betas: tuple[Number, Number] = (0.9, 0.999)
    weight_decay: Number = 0.0

    @property
    def moments(self) -> int:
        """How many numbers it remembers of each weight; plain SGD none."""
        return int(bool(self.momentum)) if self.name == "sgd" else 2

    @model_serializer(mode="wrap")
    def _short(self, handler: Any) -> dict[str, Any]:
        return self.without_defaults(handler(self), ("name",))

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.name == "sgd":
            if not 0 <= self.momentum < 1:
                raise ValueError(f"momentum must lie in [0, 1), got {self.momentum}")
            if self.nesterov and not self.momentum:
                raise ValueError("nesterov needs a momentum, such as 0.9")
            if self.betas != (0.9, 0.999):
                raise ValueError("betas belong to adam and adamw; sgd takes momentum")
        elif self.momentum or self.nesterov:
            word = "momentum" if self.momentum else "nesterov"
            raise ValueError(f"{word} belongs to sgd; {self.name} takes betas")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas must lie in [0, 1), got {list(self.betas)}")
        if self.weight_decay < 0:
            raise ValueError(f"weight_decay must be at least 0, got {self.weight_decay}")
        return self


class Schedule(Model):
    """How the learning rate moves: a factor of it at every step.

    ``constant``; ``cosine``, ½ (1 + cos πt/T), and ``linear``, 1 - t/T, from 1 at the first step towards 0 after the
    last; ``step``, times ``factor`` after every stretch ``every``; ``points``, a list of (clock, factor), each factor
    of the learning rate holding from its clock on. ``warmup``: before that clock the factor also rises linearly,
    (t + 1) / steps of the warm-up. t counts steps from 0, T is their number.
    """

    name: Literal["constant", "step", "cosine", "linear", "points"] = "constant"
    every: Span | None = None
    factor: Number = 0.1
    points: tuple[tuple[Clock, Number], ...] = ()
    warmup: Clock | None = None

    @model_serializer(mode="wrap")
    def _short(self, handler: Any) -> dict[str, Any]:
        return self.without_defaults(handler(self), ("name",))

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if (self.name == "step") != (self.every is not None):
            raise ValueError('schedule "step" goes with every, such as "30ep"; no other does')
        if (self.name == "points") != bool(self.points):
            raise ValueError('schedule "points" goes with points, such as [["80ep", 0.1]]; no other does')
        if self.name != "step" and self.factor != Schedule.model_fields["factor"].default:
            raise ValueError(
                f'factor goes with schedule "step" and with no other, got {self.factor}; leave it out'
            )
        for value in (self.factor, *(factor for _, factor in self.points)):
            if value < 0:
                raise ValueError(f"a factor of the learning rate must be at least 0, got {value}")
        return self

    def positions(self) -> tuple[str, ...]:
        """Return every clock that the schedule speaks of."""
        return tuple(clock for clock in (self.every, self.warmup, *(c for c, _ in self.points)) if clock)

    def at(self, step: int, steps_per_epoch: int, total: int) -> float:
        """Return the factor of the learning rate at ``step`` (from 0) of ``total``."""

        def when(clock: str) -> int:
            return steps(clock, steps_per_epoch, total)

        factor = 1.0
        if self.name == "cosine":
            factor = (1 + math.cos(math.pi * step / total)) / 2
        elif self.name == "linear":
            factor = 1 - step / total
        elif self.name == "step":
            assert self.every is not None
            factor = self.factor ** (step // when(self.every))
        for clock, value in self.points:
            if step >= when(clock):
                factor = value
        warm = when(self.warmup) if self.warmup else 0
        return factor * (step + 1) / warm if step < warm else factor


class Search(Model):
    """Learning rates to choose from, per strategy and level, by the mean over seeds of the best validation value."""

    search: tuple[Number, ...]

    @field_validator("search")
    @classmethod
    def _several(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if len(set(value)) < 2 or len(set(value)) != len(value):
            raise ValueError(f"needs two or more different learning rates, got {list(value)}")
        return value


def _kind(value: Any) -> str:
    """Return which of `LearningRate` is meant, so that a mistake is told of that one alone."""
    if isinstance(value, Search):
        return "Search"
    if not isinstance(value, Mapping):
        return "float"
    lists = any(isinstance(rates, list | tuple) for rates in value.values())
    return "Search" if "search" in value or lists else "Table"


LearningRate = Annotated[
    Annotated[Number, Tag("float")]
    | Annotated[Search, Tag("Search")]
    | Annotated[dict[str, Number], Tag("Table")],
    Discriminator(_kind),
]
"""A number, one per task or per network, or several to choose from."""


def _table(name: str) -> BeforeValidator:
    """Return a validator that reads a bare word as the table with that ``name``."""
    return BeforeValidator(lambda value: {name: value} if isinstance(value, str) else value)


def _schedule(value: Any) -> Any:
    return {"name": "points", "points": value} if isinstance(value, list | tuple) else value


class Training(Model):
    """How every network of a study is trained. The paper's way is one value of it: full-batch Adam, 500 epochs.

    ``length``: ``"500ep"`` or ``"50000it"``; ``epochs = 500`` is another way to write the first. ``batch``: rows a
    step, or ``"full"``. ``optimiser``, ``schedule``: a name or a table. ``learning_rate``: one number, one per task
    or network, or ``{ search = [...] }``; left out, each task's own. ``evaluate``: how often validation rows are
    measured. ``decide``: which evaluation is the best, whose weights are kept: the highest ``val-metric``, the
    lowest ``val-loss``, or the ``end``, whatever it measures. ``patience``: evaluations without a better one before
    training stops, or ``"none"`` to train the full length and read the best evaluation afterwards. ``target``: a
    validation metric that ends training at once, or ``"none"``. ``label_smoothing``: of cross-entropy. ``clip``:
    the largest norm of all gradients together, or ``"none"``. ``validation_fraction``: share of training rows held
    out. ``test_curve``: measure the test rows at every evaluation too; nothing is ever chosen by them. ``retrain``: how
    long a network that is cut after training, and not rewound, trains on at the last learning rate.
    """

    ALSO: ClassVar[tuple[str, ...]] = ("epochs",)
    length: Span = "500ep"
    patience: Annotated[Integer | None, BeforeValidator(_none)] = 100
    target: Annotated[Number | None, BeforeValidator(_none)] = 0.999
    validation_fraction: Number = 0.1
    learning_rate: LearningRate | None = None
    optimiser: Annotated[Optimiser, _table("name")] = Optimiser()
    schedule: Annotated[Schedule, BeforeValidator(_schedule), _table("name")] = Schedule()
    batch: Annotated[Integer | None, BeforeValidator(_batch)] = None
    evaluate: Span = "1ep"
    decide: Literal["val-metric", "val-loss", "end"] = "val-metric"
    label_smoothing: Number = 0.0
    clip: Annotated[Number | None, BeforeValidator(_none)] = None
    test_curve: Flag = False
    retrain: Annotated[Span | None, BeforeValidator(_none_or_span)] = None

    @model_validator(mode="before")
    @classmethod
    def _epochs(cls, table: Any) -> Any:
        if not isinstance(table, Mapping) or "epochs" not in table:
            return table
        rest = {key: value for key, value in table.items() if key != "epochs"}
        if "length" in rest:
            raise ValueError("epochs says the same thing as length; keep one of them")
        epochs = table["epochs"]
        if isinstance(epochs, bool) or not isinstance(epochs, int) or epochs < 1:
            raise ValueError(f"epochs must be a whole number of at least 1, got {epochs!r}")
        return {**rest, "length": f"{epochs}ep"}

    @model_serializer(mode="wrap")
    def _as_ever(self, handler: Any) -> dict[str, Any]:
        # as the first studies were written, and later keys only if used: digests of stored studies stay the same
        ever = ("length", "patience", "target", "validation_fraction", "learning_rate")
        table = self.without_defaults(handler(self), ever)
        length = table.pop("length")
        return {**({"epochs": int(length[:-2])} if length.endswith("ep") else {"length": length}), **table}

    @field_validator("patience", "batch")
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

    @field_validator("label_smoothing")
    @classmethod
    def _smoothing(cls, value: float) -> float:
        if not 0 <= value < 1:
            raise ValueError("must lie in [0, 1)")
        return value

    @field_validator("clip")
    @classmethod
    def _norm(cls, value: float | None) -> float | None:
        if value is not None and not value > 0:
            raise ValueError("must be positive, such as 1.0")
        return value

    @field_validator("learning_rate")
    @classmethod
    def _positive(cls, value: Any) -> Any:
        rates = (
            value.search
            if isinstance(value, Search)
            else value.values()
            if isinstance(value, dict)
            else [value]
        )
        for rate in rates:
            if rate is not None and not rate > 0:
                raise ValueError("must be positive, such as 0.001")
        return value

    @model_validator(mode="after")
    def _one_way_to_end(self) -> Self:
        if self.decide == "end" and (self.patience, self.target) != (None, None):
            raise ValueError(
                'decide "end" keeps the last weights of the full length; it goes with patience = "none" and '
                'target = "none"'
            )
        return self

    @property
    def epochs(self) -> int | None:
        """The length in epochs, None if it is in steps."""
        return int(self.length[:-2]) if self.length.endswith("ep") else None

    @property
    def alone(self) -> Self:
        """The same training without what comes after it; what enters keys."""
        return self if self.retrain is None else self.model_copy(update={"retrain": None})

    # -- on the clock of one data set ------------------------------------------------------------------------------

    def steps_per_epoch(self, rows: int) -> int:
        """Return the optimiser's steps an epoch over ``rows`` rows; the last batch may be short."""
        return 1 if self.batch is None else math.ceil(rows / self.batch)

    def total_steps(self, rows: int) -> int:
        """Return the steps of the whole training, were it not to stop early."""
        return steps(self.length, self.steps_per_epoch(rows), 0)

    def timeline(self, rows: int) -> Timeline:
        """Return the clock of a training over ``rows`` rows."""
        return Timeline(self.steps_per_epoch(rows), self.total_steps(rows))

    def retraining(self, rows: int) -> tuple[Self, float]:
        """Return the training that goes on after this one for ``retrain``, and its factor of the learning rate, the
        last one."""
        assert self.retrain is not None
        again = {"length": self.retrain, "schedule": Schedule(), "retrain": None}
        return self.model_copy(update=again), self.factors(rows)[-1]

    def evaluations(self, rows: int) -> list[int]:
        """Return the steps after which validation rows are measured; the last step is always one of them."""
        total = self.total_steps(rows)
        every = steps(self.evaluate, self.steps_per_epoch(rows), total)
        return sorted({*range(every, total + 1, every), total})

    def factors(self, rows: int) -> list[float]:
        """Return the factor of the learning rate at every step."""
        total = self.total_steps(rows)
        if self.schedule == Schedule():
            return [1.0] * total
        return [self.schedule.at(step, self.steps_per_epoch(rows), total) for step in range(total)]

    def check(self, rows: int, loss: str) -> str:
        """Return what of this does not fit a data set of ``rows`` training rows with a ``loss``, or ``""``."""
        if self.label_smoothing and loss != "cross-entropy":
            return (
                f"training.label_smoothing = {self.label_smoothing:g} smooths the classes of cross-entropy, and the "
                f"loss here is {loss}; leave it out"
            )
        if self.batch is not None and self.batch > rows:
            return f'training.batch = {self.batch} is larger than the {rows} rows to train on; "full" takes them all'
        total, per_epoch = self.total_steps(rows), self.steps_per_epoch(rows)
        if total > LONGEST:
            return f"training.length = {self.length!r} is {total:,} steps here, more than {LONGEST:,}; shorten it"
        for clock in self.schedule.positions():
            if steps(clock, per_epoch, total) > total:
                return (
                    f"training.schedule speaks of {clock!r}, beyond the length of {self.length!r} "
                    f"({total} steps here)"
                )
        when = [steps(clock, per_epoch, total) for clock, _ in self.schedule.points]
        if any(later <= earlier for earlier, later in pairwise(when)):
            return f"training.schedule lists its clocks out of order: {[c for c, _ in self.schedule.points]}"
        if steps(self.evaluate, per_epoch, total) > total:
            return f"training.evaluate = {self.evaluate!r} is longer than training itself, {self.length!r}"
        if self.retrain is not None:
            again, factor = self.retraining(rows)
            if factor == 0:
                return (
                    f"training.retrain = {self.retrain!r} would go on at the last learning rate, which the schedule "
                    "has made 0; choose another schedule"
                )
            return again.check(rows, loss).replace("training itself", "training.retrain")
        return ""
