"""What every table of a study file is made of: strict, frozen, nothing unknown."""

from __future__ import annotations

from collections.abc import Collection
from typing import Annotated, Any, ClassVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Strict

Integer = Annotated[int, Strict()]


Number = Annotated[float, Strict()]


Flag = Annotated[bool, Strict()]


def _printable(value: str) -> str:
    # names and sentences reach terminals, reports and file formats as they are
    if not value.strip():
        raise ValueError("must not be empty")
    if not value.isprintable():
        raise ValueError("must be printable text on one line")
    return value


Words = Annotated[str, AfterValidator(_printable)]


MOST = 10_000
"""Rounds, rungs or points, at most: a study writes each of them out, in memory."""


MAX_SEED = 2**32 - 1
"""The largest seed ``numpy.random.RandomState`` takes, and the published tasks draw their data from one."""


class Model(BaseModel):
    """A table of a study file; ``ALSO``: keys it takes that stand for others."""

    ALSO: ClassVar[tuple[str, ...]] = ()

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    def without_defaults(self, table: dict[str, Any], ever: Collection[str] = ()) -> dict[str, Any]:
        """Return ``table``, this model written out, without what is at its default; ``ever``: what always stays.

        So a field that a later natal adds changes no digest of what was written before it.
        """
        fields = type(self).model_fields
        return {k: v for k, v in table.items() if k in ever or getattr(self, k) != fields[k].default}
