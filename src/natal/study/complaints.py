"""What pydantic complains of, in one line that names key, value and cure."""

from __future__ import annotations

import json
import math
from typing import Any

from pydantic import ValidationError

from natal.registry import did_you_mean
from natal.study.base import Model
from natal.study.claim import Claim
from natal.study.recipe import Recipe
from natal.study.study import Study
from natal.study.training import Training


def one_line(error: ValidationError) -> str:
    """Turn pydantic's first complaint into ``key: what is wrong, got value; cure``, counting the others."""
    first, *others = error.errors()
    where = ".".join(str(part) for part in first["loc"] if str(part) not in _UNION_BRANCHES)
    if first["type"] == "extra_forbidden":
        owners: dict[str, type[Model]] = {"training": Training, "strategies": Recipe, "claims": Claim}
        owner = owners.get(str(first["loc"][0]), Study) if len(first["loc"]) > 1 else Study
        known = set(owner.model_fields) - {"folder"}
        message = f"unknown key {where!r}{did_you_mean(str(first['loc'][-1]), known)}"
    elif first["type"] == "missing":
        message = f"key {where!r} is missing"
    else:
        what = _SAID.get((first["type"], where.split(".")[0]), first["msg"].removeprefix("Value error, "))
        what = (what[0].lower() + what[1:]).replace("a valid tuple", "a list")
        shown = (
            ""
            if "got " in what or "twice" in what or "unknown " in what or not where
            else (f", got {_show(first['input'])}")
        )
        message = f"{where}: {what}{shown}" if where else f"{what}"
    return message + (f" (and {len(others)} more)" if others else "")


_SAID = {
    ("model_type", "training"): "must be a table of keys",
    ("model_type", "strategies"): "must be a strategy's name or a table of keys",
    ("model_type", "claims"): "must be a table of keys",
}
"""What pydantic would say in its own words, by its word for the mistake and the study's key."""


_UNION_BRANCHES = {
    "int",
    "float",
    "constrained-int",
    "constrained-float",
    "dict[str,constrained-float]",
    "dict[str,float]",
    "Recipe",
    "function-before[_none()]",
}


def _show(value: Any) -> str:
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    text = json.dumps(value, default=str) if isinstance(value, dict | list | tuple) else repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
