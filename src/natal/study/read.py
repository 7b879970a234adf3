"""From a preset, a file or a mapping to a checked `Study`."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from natal.errors import NatalError
from natal.registry import did_you_mean
from natal.study.base import Model
from natal.study.complaints import one_line
from natal.study.study import Study


def presets() -> dict[str, Path]:
    """Return the study files that come with natal, by name."""
    folder = Path(str(resources.files("natal.study") / "presets"))
    return {path.stem: path for path in sorted(folder.glob("*.toml"))}


def load_study(source: str | Path | Mapping[str, Any] | Study, overrides: Sequence[str] = ()) -> Study:
    """Read a study from a preset's name, a TOML file, a mapping or another study, and check it.

    ``overrides`` are ``path.key=VALUE`` strings with a TOML literal, as given to ``--set``. Raises NatalError with
    one line naming file, key, value and cure for anything wrong.
    """
    if isinstance(overrides, str):
        raise NatalError(f"overrides must be a list, such as [{overrides!r}], got text")
    folder, where = "", "study"
    if isinstance(source, Study):
        table, folder = source.model_dump(mode="json"), source.folder
    elif isinstance(source, Mapping):
        try:
            table = json.loads(json.dumps(source, default=_plain))
        except (TypeError, ValueError) as error:
            raise NatalError(f"study: {error}; use plain tables, lists, text and numbers") from None
    else:
        path = _find(source)
        folder, where = str(path.parent.resolve()), path.name
        table = parsed(path.read_bytes(), where)
    for override in overrides:
        _set(table, override)
    if "folder" in table:
        raise NatalError(f"{where}: unknown key 'folder'; plugins are looked for beside the study file")
    try:
        study = Study.model_validate({**table, "folder": folder})
    except ValidationError as error:
        raise NatalError(f"{where}: {one_line(error)}") from None
    if not isinstance(source, Study):
        _check_claims(study, _before(source) if overrides else study, where)
    return study


def _before(source: str | Path | Mapping[str, Any]) -> Study | None:
    """Return the study before it was changed, if it was one."""
    try:
        return load_study(source)
    except NatalError:
        return None


def _check_claims(study: Study, before: Study | None, where: str) -> None:
    """Raise NatalError if a claim is about a task or network that is in no such study.

    Leaving out a task that a claim is about is no mistake: the claim is then not tested.
    """
    known = [study, *([before] if before else [])]
    tasks, networks = ({name for s in known for name in names(s)} for names in (_task_names, _network_names))
    for i, claim in enumerate(study.claims):
        for key, name, there in (("task", claim.task, tasks), ("network", claim.network, networks)):
            if name is not None and name not in there:
                raise NatalError(
                    f"{where}: claims.{i}.{key}: the study has no {key} {name!r}{did_you_mean(name, there)}"
                )


def _task_names(study: Study) -> tuple[str, ...]:
    return study.task_names


def _network_names(study: Study) -> tuple[str, ...]:
    return study.network_names


def _plain(value: Any) -> Any:
    """Return one of a study's objects, such as a `Network`, as it would be written in a file."""
    if isinstance(value, Model):
        return value.model_dump(mode="json")
    raise TypeError(f"Object of type {type(value).__name__} is not JSON serializable")


def _find(source: str | Path) -> Path:
    path = Path(source)
    if path.suffix == ".toml" or path.is_file():
        if not path.is_file():
            raise NatalError(f"no study file {str(source)!r}; `natal list` shows the presets")
        return path
    known = presets()
    if str(source) not in known:
        raise NatalError(
            f"unknown study {str(source)!r}{did_you_mean(str(source), known)} (or name a .toml file)"
        )
    return known[str(source)]


def parsed(content: bytes, where: str) -> dict[str, Any]:
    """Return the table that a TOML file's content is; raise NatalError, with the line, if it is none."""
    try:
        return tomllib.loads(content.decode())
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise NatalError(f"{where}: not valid TOML: not UTF-8 text (at line {line})") from None
    except tomllib.TOMLDecodeError as error:
        raise NatalError(f"{where}: not valid TOML: {error}") from None


_SAME = {"length": "epochs", "epochs": "length", "networks": "hidden", "hidden": "networks"}
"""Keys that say the same thing."""


def _set(table: dict[str, Any], override: str) -> None:
    path, equals, literal = override.partition("=")
    if not equals or not path.strip():
        raise NatalError(f"--set {override!r}: write it as path.key=VALUE, such as training.epochs=100")
    try:
        value = tomllib.loads(f"value = {literal}")["value"]
    except tomllib.TOMLDecodeError:
        raise NatalError(
            f"--set {override!r}: {literal!r} is not a TOML literal; quote text, such as '{path}=\"name\"'"
        ) from None
    *parents, last = path.strip().split(".")
    for parent in parents:
        table = table.setdefault(parent, {})
        if not isinstance(table, dict):
            raise NatalError(f"--set {override!r}: {parent!r} is not a table of keys")
    table[last] = value
    # what the study says of the same thing in another way gives way
    table.pop(_SAME.get(last, ""), None)
