"""What a study takes from a registry: a task or a network, by name and options."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, field_validator, model_serializer, model_validator

from natal.study.base import Model, Number


class Initialisation(Model):
    """How initial weights are drawn; a name alone stands for its scheme.

    ``default``: as the network's own layers draw them. The others redraw every weight matrix and kernel and set
    biases to zero: ``kaiming-normal`` N(0, 2 / fan_in) (He et al. 2015), ``glorot-normal`` N(0, 2 / (fan_in +
    fan_out)) (Glorot & Bengio 2010), ``orthogonal`` (Saxe et al. 2014). ``scale`` multiplies every weight.
    """

    scheme: Literal["default", "kaiming-normal", "glorot-normal", "orthogonal"] = "default"
    scale: Number = 1.0

    @field_validator("scale")
    @classmethod
    def _positive(cls, value: float) -> float:
        if not value > 0:
            raise ValueError("must be positive, such as 0.5")
        return value

    @model_serializer(mode="plain")
    def _short(self) -> str | dict[str, Any]:
        return self.scheme if self.scale == 1 else {"scheme": self.scheme, "scale": self.scale}


class Choice(Model):
    """An entry of a registry with options of its own, under a name: ``{ mlp, hidden = [64, 64] }``.

    Written as a name alone, or as a table of ``KIND`` (the entry), perhaps ``name``, and the entry's options.
    """

    KIND: ClassVar[str]
    OWN: ClassVar[tuple[str, ...]]
    name: str
    entry: str
    options: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="before")
    @classmethod
    def _written(cls, value: Any) -> Any:
        if isinstance(value, str):
            value = {cls.KIND: value}
        if not isinstance(value, Mapping):
            raise ValueError(f"must be the name of a {cls.KIND} or a table of keys")
        if "entry" in value:
            return value
        if not isinstance(value.get(cls.KIND), str):
            raise ValueError(f"needs the key {cls.KIND}, the name of a {cls.KIND}")
        own = {key: value[key] for key in cls.OWN if key in value}
        options = {k: v for k, v in value.items() if k not in (*cls.OWN, "name", cls.KIND)}
        entry = value[cls.KIND]
        words = [_words(key, option) for key, option in sorted({**own, **options}.items())]
        return {
            "name": "-".join([entry, *words]),
            **value_of(value, "name"),
            "entry": entry,
            "options": options,
            **own,
        }

    @model_validator(mode="after")
    def _sayable(self) -> Self:
        if not self.name or not self.name.isprintable():
            raise ValueError(f"a name must be printable text, got {self.name!r}")
        return self

    @model_serializer(mode="plain")
    def _short(self) -> Any:
        table = {self.KIND: self.entry, **self._own(), **self.options}
        if self.name != type(self)(**table).name:
            table["name"] = self.name
        return self.entry if table == {self.KIND: self.entry} else table

    def _own(self) -> dict[str, Any]:
        return {}

    def __hash__(self) -> int:
        return hash(self.model_dump_json())


def value_of(table: Mapping[str, Any], key: str) -> dict[str, Any]:
    """Return the part of a table under one key, empty if it has none."""
    return {key: table[key]} if key in table else {}


def _words(key: str, value: Any) -> str:
    """Return an option as a part of a name: ``width8``, ``64x64``, ``caffe``, ``gelu``."""
    if value is True:
        return key.replace("_", "-")
    if isinstance(value, list | tuple):
        return "x".join(str(v) for v in value)
    if isinstance(value, Mapping):
        return "-".join(str(v) for v in value.values())
    return value if isinstance(value, str) else f"{key.replace('_', '-')}{value!r}".replace("False", "-false")


class Task(Choice):
    """A registered task with options: ``{ task = "modular", modulus = 59 }``."""

    KIND: ClassVar[str] = "task"
    OWN: ClassVar[tuple[str, ...]] = ()


class Network(Choice):
    """A registered network with options: ``{ network = "resnet-20", width = 8, init = "orthogonal" }``."""

    KIND: ClassVar[str] = "network"
    OWN: ClassVar[tuple[str, ...]] = ("init",)
    init: Initialisation = Initialisation()

    @model_validator(mode="before")
    @classmethod
    def _scheme(cls, value: Any) -> Any:
        if isinstance(value, Mapping) and isinstance(value.get("init"), str):
            return {**value, "init": {"scheme": value["init"]}}
        return value

    def _own(self) -> dict[str, Any]:
        return {} if self.init == Initialisation() else {"init": self.init.model_dump()}
