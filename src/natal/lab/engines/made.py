"""Who made a training: an engine, its revision, a device, and the versions of what computes for it."""

from __future__ import annotations

import functools
from importlib import metadata
from typing import Protocol

import numpy as np
import torch

from natal.study import Maker


class Named(Protocol):
    """Whatever has an engine's name and revision."""

    @property
    def name(self) -> str:
        """What it is called."""

    @property
    def revision(self) -> int:
        """How often its bits have changed."""


def made_by(engine: Named, device: str) -> Maker:
    """Return who trains when ``engine`` does on ``device``, here and now."""
    return Maker(engine.name, engine.revision, device, torch.__version__, np.__version__, _release())


@functools.cache
def _release() -> str:
    return metadata.version("natal")
