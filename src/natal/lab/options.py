"""Options of a registered function: what its signature allows, checked before it is called.

A network and a task are functions whose keyword parameters are the keys of a study file::

    @network("mine")
    def mine(shape, outputs, *, width: int = 64, activation: Literal["relu", "tanh"] = "relu"): ...

``{ network = "mine", widht = 8 }`` and ``{ network = "mine", width = "8" }`` are refused in one line. A type may carry
a bound, as pydantic writes it: ``Annotated[int, Field(ge=1)]``.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Annotated, Any, get_type_hints

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.errors import PydanticUserError

from natal.errors import NatalError
from natal.registry import did_you_mean

Size = Annotated[int, Field(ge=1)]
"""A whole number of at least 1, such as a number of neurons."""
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
"""A number above 0."""
Share = Annotated[float, Field(gt=0, lt=1)]
"""A part of a whole: above 0, below 1."""


def settled(
    what: str, function: Callable[..., Any], given: Mapping[str, Any], context: int
) -> dict[str, Any]:
    """Return the options that differ from their defaults, each of the type that the signature of ``function`` says.

    ``what``: the entry in words, such as ``network 'mlp'``. ``context``: how many leading parameters natal fills in
    itself. Equal settings give equal results however they are written: 8 and 8.0, a list and a tuple. Raises
    NatalError for an unknown option, a missing one, or a value that its type does not allow.
    """
    allowed, others = _options(what, function, context)
    for key in given:
        if key not in allowed and not others:
            raise NatalError(f"{what}: unknown option {key!r}{did_you_mean(key, allowed)}")
    for key, (_, default) in allowed.items():
        if default is inspect.Parameter.empty and key not in given:
            raise NatalError(f"{what} needs the option {key!r}")
    values = {k: _plain(_valid(what, k, v, allowed[k][0]) if k in allowed else v) for k, v in given.items()}
    return {k: v for k, v in values.items() if k not in allowed or v != _plain(allowed[k][1])}


@functools.cache
def _options(
    what: str, function: Callable[..., Any], context: int
) -> tuple[dict[str, tuple[TypeAdapter[Any], Any]], bool]:
    """Return the options a signature names, as (type, default) by name, and whether it takes any others."""
    parameters = list(inspect.signature(function).parameters.values())[context:]
    try:
        hints = get_type_hints(function, include_extras=True)
    except NameError as error:
        raise NatalError(f"{what}: its signature names a type that cannot be found: {error}") from None
    variadic = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    named = [p for p in parameters if p.kind not in variadic]
    options = {p.name: (_adapter(what, p.name, hints.get(p.name, Any)), p.default) for p in named}
    return options, any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters)


def _adapter(what: str, key: str, hint: Any) -> TypeAdapter[Any]:
    try:
        return TypeAdapter(hint, config=ConfigDict(arbitrary_types_allowed=True))
    except PydanticUserError as error:
        # a type with a configuration of its own takes none from here
        if error.code == "type-adapter-config-unused":
            return TypeAdapter(hint)
        raise NatalError(f"{what}: option {key!r} has a type that cannot be checked, {hint}") from None


def _valid(what: str, key: str, value: Any, adapter: TypeAdapter[Any]) -> Any:
    try:
        return adapter.validate_python(value, strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        place = "".join(f"[{part}]" for part in first["loc"] if isinstance(part, int))
        said = first["msg"].removeprefix("Value error, ").replace("Input should be", "must be", 1)
        said = _SAID.get(first["type"], said)
        near = ""
        if first["type"] == "literal_error" and isinstance(first["input"], str):
            near = did_you_mean(first["input"], _choices(first)).partition("; known")[0]
        raise NatalError(f"{what}: option {key}{place} {said}, got {first['input']!r}{near}") from None


_SAID = {
    "sequence_str": "must be a list",
    "is_instance_of": "must be a list",
    "list_type": "must be a list",
    "int_type": "must be a whole number",
    "float_type": "must be a number",
    "bool_type": "must be true or false",
    "string_type": "must be text",
}
"""What pydantic would say in its own words."""


def _choices(error: Any) -> list[str]:
    return [word.strip("'") for word in error["ctx"]["expected"].replace(" or ", ", ").split(", ")]


def _plain(value: Any) -> Any:
    return [_plain(v) for v in value] if isinstance(value, tuple | list) else value
