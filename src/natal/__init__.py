"""natal."""

from typing import Any


def __getattr__(name: str) -> Any:
    if name in ("apply", "prune"):
        from natal import pruning

        return getattr(pruning, name)
    raise AttributeError(f"module 'natal' has no attribute {name!r}")
