"""natal, the laboratory for pruning at initialisation.

``natal.run("paper")`` runs a study, ``natal.load("results")`` reads one. Names are resolved on first use, so that
reading results never imports torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from natal.errors import NatalError
    from natal.front import run
    from natal.lab.networks import network
    from natal.lab.plan import plan
    from natal.lab.tasks import Data, task
    from natal.pruning.apply import apply, prune
    from natal.pruning.compact_files import load_compact, save_compact
    from natal.pruning.compaction import compact
    from natal.pruning.criteria import Problem, Scores, criterion
    from natal.pruning.doctor import Diagnosis, collapse_sparsity, diagnose
    from natal.pruning.files import (
        Ticket,
        from_torch_prune,
        load_mask,
        load_ticket,
        save_mask,
        save_ticket,
        to_torch_prune,
    )
    from natal.pruning.mask import Mask, layer
    from natal.pruning.savings import Savings, savings
    from natal.pruning.schedule import PruningSchedule
    from natal.pruning.select import select
    from natal.pruning.training import Compacted, compact_training
    from natal.reading.results import Results, load
    from natal.reading.rows import Curve, Row
    from natal.study import Network, Optimiser, Recipe, Run, Schedule, Study, Task, Training, load_study

_HOMES = {
    "natal.pruning.compact_files": ("load_compact", "save_compact"),
    "natal.pruning.compaction": ("compact",),
    "natal.pruning.savings": ("Savings", "savings"),
    "natal.pruning.schedule": ("PruningSchedule",),
    "natal.pruning.training": ("Compacted", "compact_training"),
    "natal.pruning.criteria": ("Problem", "Scores", "criterion"),
    "natal.pruning.doctor": ("Diagnosis", "collapse_sparsity", "diagnose"),
    "natal.errors": ("NatalError",),
    "natal.pruning.files": (
        "Ticket",
        "from_torch_prune",
        "load_mask",
        "load_ticket",
        "save_mask",
        "save_ticket",
        "to_torch_prune",
    ),
    "natal.pruning.mask": ("Mask", "layer"),
    "natal.pruning.select": ("select",),
    "natal.pruning.apply": ("apply", "prune"),
    "natal.reading.results": ("Results", "load"),
    "natal.reading.rows": ("Curve", "Row"),
    "natal.front": ("run",),
    "natal.lab.plan": ("plan",),
    "natal.study": (
        "Network",
        "Optimiser",
        "Recipe",
        "Run",
        "Schedule",
        "Study",
        "Task",
        "Training",
        "load_study",
    ),
    "natal.lab.networks": ("network",),
    "natal.lab.tasks": ("Data", "task"),
}
_HOME = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "Compacted", "Curve", "Data", "Diagnosis", "Mask", "NatalError", "Network", "Optimiser", "Problem",
    "PruningSchedule", "Recipe", "Results", "Row", "Run", "Savings", "Schedule", "Scores", "Study", "Task",
    "Ticket", "Training", "apply", "collapse_sparsity", "compact", "compact_training", "criterion", "diagnose",
    "from_torch_prune", "layer", "load", "load_compact", "load_mask", "load_study", "load_ticket", "network", "plan",
    "prune", "run", "save_compact", "save_mask", "save_ticket", "savings", "select", "task", "to_torch_prune",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return import_module("importlib.metadata").version("natal")
    if name not in _HOME:
        raise AttributeError(f"module 'natal' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
