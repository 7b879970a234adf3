"""What is asked: a study and its parts, declared in a TOML file and checked. No torch here."""

from natal.study.base import MAX_SEED
from natal.study.claim import Claim
from natal.study.complaints import one_line
from natal.study.keys import digest
from natal.study.read import load_study, presets
from natal.study.recipe import SCOPES, STRATEGIES, Aggregate, Control, Recipe, unknown_scope
from natal.study.study import Run, Study
from natal.study.training import Training

__all__ = [
    "MAX_SEED", "SCOPES", "STRATEGIES", "Aggregate", "Claim", "Control", "Recipe", "Run", "Study", "Training",
    "digest", "load_study", "one_line", "presets", "unknown_scope",
]  # fmt: skip
