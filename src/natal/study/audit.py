"""A paper's claims in a file of their own, with a citation: what `natal audit` holds against any results."""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import Any, Self

from pydantic import Field, ValidationError, field_validator, model_validator

from natal.errors import NatalError
from natal.registry import did_you_mean
from natal.study.base import Model, Words
from natal.study.claim import Claim
from natal.study.complaints import one_line
from natal.study.read import load_study, parsed, presets


class Audit(Model):
    """What a paper claims, to be held against results that may come from anywhere.

    ``name``: what the audit is called; ``title``, ``citation``: of the paper; ``about``: what a reader must know of the
    claims, a sentence each. ``claims``: see `Claim`; ``study``: a preset whose claims are the paper's, too, and
    come first.
    """

    name: Words
    title: Words
    citation: Words
    about: tuple[Words, ...] = ()
    study: str | None = None
    claims: tuple[Claim, ...] = Field(default=())

    @field_validator("study")
    @classmethod
    def _preset(cls, value: str | None) -> str | None:
        if value is not None and value not in presets():
            raise ValueError(f"unknown study {value!r}{did_you_mean(value, presets())}")
        return value

    @model_validator(mode="after")
    def _something(self) -> Self:
        if not self.all_claims():
            raise ValueError("an audit needs claims, or a study that has some")
        return self

    def all_claims(self) -> tuple[Claim, ...]:
        """Return the study's claims and the audit's own."""
        return (*(load_study(self.study).claims if self.study else ()), *self.claims)


def audits() -> dict[str, Path]:
    """Return the audits that come with natal, by name."""
    folder = Path(str(resources.files("natal.study") / "audits"))
    return {path.stem: path for path in sorted(folder.glob("*.toml"))}


def load_audit(source: str | Path) -> Audit:
    """Read an audit from a shipped one's name or a TOML file; raise NatalError for anything wrong, in one line."""
    path = Path(source)
    if path.suffix != ".toml":
        if str(source) not in audits():
            raise NatalError(
                f"unknown audit {str(source)!r}{did_you_mean(str(source), audits())} (or name a .toml file)"
            )
        path = audits()[str(source)]
    if not path.is_file():
        raise NatalError(f"no audit file {str(source)!r}; `natal list` shows the shipped ones")
    table: dict[str, Any] = parsed(path.read_bytes(), path.name)
    try:
        return Audit.model_validate(table)
    except ValidationError as error:
        raise NatalError(f"{path.name}: {one_line(error, Audit)}") from None
