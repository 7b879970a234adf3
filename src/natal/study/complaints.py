"""What pydantic complains of, in one line that names key, value and cure."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from natal.registry import did_you_mean
from natal.study.base import Model
from natal.study.choice import Initialisation, Network, Task
from natal.study.claim import Claim
from natal.study.measure import Measure
from natal.study.recipe import Recipe
from natal.study.study import Study
from natal.study.training import Optimiser, Schedule, Search, Training

_TABLES: dict[str, type[Model]] = {
    "": Study,
    "tasks": Task,
    "networks": Network,
    "networks.init": Initialisation,
    "strategies": Recipe,
    "claims": Claim,
    "measure": Measure,
    "training": Training,
    "training.optimiser": Optimiser,
    "training.schedule": Schedule,
    "training.learning_rate": Search,
}
"""The tables of a study file, by where they stand."""

_ELSEWHERE = {
    "batch_size": "training.batch",
    "dataset": "tasks",
    "datasets": "tasks",
    "lr": "training.learning_rate",
    "model": "networks",
    "models": "networks",
    "network": "networks",
    "optimizer": "training.optimiser",
    "scheduler": "training.schedule",
    "seed": "seeds",
    "sparsity": "sparsities",
    "strategy": "strategies",
    "task": "tasks",
}
"""What other programs call a key, and where it stands here."""


def one_line(error: ValidationError, file: type[Model] = Study) -> str:
    """Turn pydantic's first complaint into ``key: what is wrong, got value; cure``, counting the others.

    ``file``: the model of the whole file.
    """
    # a key that is none may be the one that is missing, by another program's name
    first, *others = sorted(error.errors(), key=lambda e: e["type"] != "extra_forbidden")
    parts = [str(part) for part in first["loc"] if not _is_branch(str(part))]
    where = ".".join(parts)
    if first["type"] == "extra_forbidden":
        *table, key = parts
        absent = {
            str(e["loc"][-1]) for e in others if e["type"] == "missing" and e["loc"][:-1] == first["loc"][:-1]
        }
        message = f"unknown key {where!r}{_instead(key, _keys(table, file), absent)}"
    elif first["type"] == "too_long" or (first["type"] == "missing" and parts[-1].isdigit()):
        of = parts if first["type"] == "too_long" else parts[:-1]
        pair = next(_PAIRS[part] for part in of if part in _PAIRS)
        message = f"{'.'.join(of)}: must be a pair, such as {pair}, got {_show(first['input'])}"
    elif first["type"] == "missing":
        message = f"key {where!r} is missing"
    else:
        what = _SAID.get((first["type"], where.split(".")[0]), first["msg"].removeprefix("Value error, "))
        word, _, rest = what.partition(" ")
        value, given = first["input"], True
        if word in _keys(parts, file):
            # said by a whole table of one of its keys
            where, what = f"{where}.{word}".lstrip("."), rest
            given = not isinstance(value, Mapping) or word in value
            value = value[word] if isinstance(value, Mapping) and given else value
        what = (what[0].lower() + what[1:]).replace("a valid tuple", "a list")
        told = "got " in what or "twice" in what or "unknown " in what or not where or not given
        shown = "" if told else f", got {_show(value)}"
        message = f"{where}: {what}{shown}" if where else what
    return message + (f" (and {len(others)} more)" if others else "")


def _keys(table: list[str], file: type[Model] = Study) -> set[str]:
    """Return the keys that a table knows, given where it stands."""
    where = ".".join(part for part in table if not part.isdigit())
    model = _TABLES.get(where) if where else file
    return {*model.model_fields, *model.ALSO} - {"folder", "entry", "options"} if model else set()


def _instead(key: str, known: set[str], absent: set[str]) -> str:
    """Say what a reader may have meant by a key that is none here: rather a key that must be there and is not."""
    if "did you mean" in (nearest := did_you_mean(key, absent)):
        return nearest
    homes = [_ELSEWHERE[key]] if key in _ELSEWHERE else []
    homes += [f"{table}.{key}" for table in _TABLES if table and key in _keys(table.split("."))]
    near = did_you_mean(key, known)
    return f"; did you mean {homes[0]!r}?" if homes and "did you mean" not in near else near


_SAID = {
    ("model_type", "training"): "must be a table of keys",
    ("model_type", "networks"): "must be the name of a scheme or a table of scheme and scale",
    ("model_type", "strategies"): "must be a strategy's name or a table of keys",
    ("model_type", "claims"): "must be a table of keys",
}
"""What pydantic would say in its own words, by its word for the mistake and the study's key."""

_PAIRS = {"betas": "[0.9, 0.999]", "points": '["80ep", 0.1]'}
"""Keys of pairs, with one of each."""

_BRANCHES = {"int", "float", "constrained-int", "constrained-float", "Recipe", "Search", "Table"}


def _is_branch(part: str) -> bool:
    """Whether a part of pydantic's path is no key of the file: a member of a union, a validator's name."""
    return part in _BRANCHES or "[" in part


def _show(value: Any) -> str:
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    text = json.dumps(value, default=str) if isinstance(value, dict | list | tuple) else repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
