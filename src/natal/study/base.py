"""What every table of a study file is made of: strict, frozen, nothing unknown."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Strict

Integer = Annotated[int, Strict()]


Number = Annotated[float, Strict()]


MAX_SEED = 2**32 - 1
"""The largest seed ``numpy.random.RandomState`` takes, and the published tasks draw their data from one."""


class Model(BaseModel):
    """A table of a study file."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
