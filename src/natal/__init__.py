"""natal, the laboratory for pruning at initialisation.

``natal.run("paper")`` runs a study, ``natal.load("results")`` reads one. Names are resolved on first use, so that
reading results never imports torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from natal.criteria import Problem, Scores, criteria, criterion
    from natal.errors import NatalError
    from natal.masks import Mask, select
    from natal.pruning import apply, prune
    from natal.results import Results, load
    from natal.runner import plan, run
    from natal.spec import Recipe, Run, Study, Training, load_study
    from natal.tasks import Data, task, tasks

_HOMES = {
    "natal.criteria": ("Problem", "Scores", "criteria", "criterion"),
    "natal.errors": ("NatalError",),
    "natal.masks": ("Mask", "select"),
    "natal.pruning": ("apply", "prune"),
    "natal.results": ("Results", "load"),
    "natal.runner": ("plan", "run"),
    "natal.spec": ("Recipe", "Run", "Study", "Training", "load_study"),
    "natal.tasks": ("Data", "task", "tasks"),
}
_HOME = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "Data", "Mask", "NatalError", "Problem", "Recipe", "Results", "Run", "Scores", "Study", "Training",
    "apply", "criteria", "criterion", "load", "load_study", "plan", "prune", "run", "select", "task", "tasks",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'natal' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
