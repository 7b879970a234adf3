"""Engines: how trainings are done. ``torch`` is the oracle; the others are faster and are proven against it."""

from __future__ import annotations

from natal.errors import NatalError
from natal.lab.engines.compiled import Compiled
from natal.lab.engines.engine import Engine, Pending, Setting
from natal.lab.engines.made import made_by
from natal.lab.engines.stacked import Stacked
from natal.lab.engines.torch import Torch
from natal.registry import did_you_mean

_ALL: tuple[Engine, ...] = (Torch(), Compiled(), Stacked())
ENGINES = {engine.name: engine for engine in _ALL}
"""Every engine by name."""

ALIASES = {"sequential": "torch", "batched": "compiled"}
"""What two of them were called in natal 0.2."""

PREFERENCE = {"cpu": ("compiled", "torch"), "cuda": ("stacked", "torch")}
"""The engines that ``auto`` tries on a kind of device, in order."""


def engine_named(name: str) -> str:
    """Return an engine's name, or ``auto``, for what a user calls it; raise NatalError for a name that is none."""
    found = ALIASES.get(name, name)
    if found != "auto" and found not in ENGINES:
        raise NatalError(f"unknown engine {name!r}{did_you_mean(name, ['auto', *ENGINES, *ALIASES])}")
    return found


def choose(asked: str, setting: Setting, device: str) -> tuple[Engine, dict[str, str]]:
    """Return the engine for a setting, and why each that would have been preferred refuses it.

    Raises NatalError if ``asked`` is not ``auto`` and that engine refuses.
    """
    kind = device.partition(":")[0]
    refused: dict[str, str] = {}
    for name in PREFERENCE[kind] if asked == "auto" else (asked,):
        engine = ENGINES[name]
        reason = f"it does not run on {kind}" if kind not in engine.devices else engine.refuses(setting)
        if not reason:
            return engine, refused
        refused[name] = reason
    (name, reason) = next(iter(refused.items()))
    raise NatalError(f"engine {name!r} cannot train this: {reason}; use --engine auto")


__all__ = [
    "ALIASES", "ENGINES", "PREFERENCE", "Engine", "Pending", "Setting", "choose", "engine_named", "made_by",
]  # fmt: skip
