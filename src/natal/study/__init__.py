"""What is asked: a study and its parts, declared in a TOML file and checked. No torch here."""

from natal.study.base import MAX_SEED
from natal.study.choice import Initialisation, Network, Task
from natal.study.claim import Claim
from natal.study.clock import Clock, Span, Timeline, moment, steps
from natal.study.complaints import one_line
from natal.study.keys import Maker, digest
from natal.study.measure import Measure
from natal.study.read import load_study, presets
from natal.study.recipe import (
    CONTROLS,
    SCOPES,
    STRATEGIES,
    Aggregate,
    Control,
    Recipe,
    recipe_of,
    unknown_scope,
)
from natal.study.stages import Need, Stage, siblings_of, stage_of, targets_of, untimely
from natal.study.study import PAPERS, Run, Setting, Study
from natal.study.training import Optimiser, Schedule, Search, Training

__all__ = [
    "CONTROLS", "MAX_SEED", "PAPERS", "SCOPES", "STRATEGIES", "Aggregate", "Claim", "Clock", "Control",
    "Initialisation", "Maker", "Measure", "Need", "Network", "Optimiser", "Recipe", "Run", "Schedule", "Search",
    "Setting", "Span", "Stage", "Study", "Task", "Timeline", "Training", "digest", "load_study", "moment",
    "one_line", "presets", "recipe_of", "siblings_of", "stage_of", "steps", "targets_of", "unknown_scope", "untimely",
]  # fmt: skip
