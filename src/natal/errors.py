"""The one exception natal raises for a mistake its user can mend, and the commonest one: the lab is not installed."""

from __future__ import annotations

from importlib.util import find_spec


class NatalError(ValueError):
    """A mistake the user can mend: one line naming the argument, the value and the cure.

    The command line prints it and exits with status 2; nothing has been trained or written when it is raised
    for bad input.
    """


def first_line(error: Exception) -> str:
    """Return what an exception says first, or its type if it says nothing."""
    return str(error).strip().split("\n")[0] or type(error).__name__


def require(*modules: str, extra: str = "lab", purpose: str = "pruning and training") -> None:
    """Raise NatalError if one of these is not installed, naming the ``extra`` that brings it, for a ``purpose``.

    Reading results needs none of them, and brings none.
    """
    missing = [name for name in modules if not _installed(name)]
    if missing:
        raise NatalError(
            f"{purpose} need{'s' * (purpose != 'pruning and training')} {', '.join(missing)}, which is not installed: "
            f"pip install 'natal[{extra}]'"
        )


def _installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ValueError:  # as a test says that it is not there
        return False
