"""A study's statistics as its report needs them: each computed once, by `natal.reading.stats`, and looked up."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import cached_property

from natal.reading import claims, figures, stats
from natal.reading.connectivity import Barrier, barriers
from natal.reading.results import Results
from natal.reading.rows import Runs
from natal.study import Setting
from natal.wording import percent

FEW = 3
"""Up to so many strategies a report spells everything out; more are ranked and shown side by side."""
FEW_PAIRS = 15
"""Up to so many pairs of strategies a setting are all printed; of more, those that tell most."""
LARGE = 20_000
"""Up to so many runs a study has files of a line a run beside its report."""
MANY_PAIRS = 200_000
"""Up to so many comparisons are made level by level; of more, a report says that there are more."""
WIDE = 24
"""Up to so many levels stand side by side in a text; a table of more is named there, and lies in files of its own."""
Where = tuple[Setting, str]
"""A setting and a strategy's name."""


class View:
    """One study's results with their statistics."""

    def __init__(self, results: Results) -> None:
        self.results = results
        self.study = results.study
        self.settings = results.study.settings()
        self.strategies = [recipe.name for recipe in results.study.strategies]
        self.few = len(self.strategies) <= FEW
        self._known: dict[tuple[Where, stats.Bound], float | None] = {}

    @property
    def noun(self) -> str:
        """What a study's parts are called: settings, if its tasks meet several networks."""
        return "task" if len(self.study.networks) == 1 else "setting"

    @cached_property
    def runs_of(self) -> Mapping[Setting, Runs]:
        """The runs of each setting; no comparison crosses settings, so everything is read from these."""
        return {setting: self.results.runs.settings.get(setting, Runs()) for setting in self.settings}

    @cached_property
    def cells(self) -> Mapping[Where, list[stats.Cell]]:
        """The cells of each setting and strategy."""
        found: dict[Where, list[stats.Cell]] = {}
        for c in stats.cells(self.results.runs):
            found.setdefault((c.setting, c.strategy), []).append(c)
        return found

    @cached_property
    def diagnosed(self) -> Mapping[Where, list[stats.Diagnosed]]:
        """What the mask doctor said of the cells of each setting and strategy."""
        found: dict[Where, list[stats.Diagnosed]] = {}
        for c in stats.diagnoses(self.results.runs):
            found.setdefault((c.setting, c.strategy), []).append(c)
        return found

    @cached_property
    def pictured(self) -> bool:
        """Whether pictures of masks are stored; the first natals stored none, which later ones may have added to."""
        told = [run for run in self.results.runs if run.effective_sparsity is not None]
        return any("pictures" in run.diagnosis for run in (*told[:1], *told[-1:]))

    @cached_property
    def findings(self) -> Mapping[Where, list[stats.Found]]:
        """The mask doctor's findings over all runs of each setting and strategy."""
        return stats.findings_of_strategies(self.results.runs)

    @cached_property
    def flags(self) -> list[stats.Flag]:
        """What is odd about the runs."""
        return stats.flags(self.results.runs, self.study, self.results.tasks)

    @cached_property
    def rankings(self) -> Mapping[Setting, list[stats.Ranked]]:
        """Each setting's strategies, the best first."""
        return {setting: stats.ranking(self.results.runs, setting) for setting in self.settings}

    @cached_property
    def overall(self) -> list[stats.Paired]:
        """Every two strategies over all pruned levels."""
        return stats.compare_overall(self.results.runs)

    @property
    def large(self) -> bool:
        """Whether the study has more runs than files of a line a run are for."""
        return len(self.results.runs) > LARGE

    @property
    def wide(self) -> bool:
        """Whether the study has more levels than a text has room for."""
        return len(self.study.sparsities) > WIDE

    @cached_property
    def too_many_pairs(self) -> int:
        """How many comparisons level by level there would be, if they are too many to be made, else 0."""
        pruned = sum(s > 0 for s in self.study.sparsities)
        count = math.comb(len(self.strategies), 2) * len(self.settings) * pruned
        return count if count > MANY_PAIRS else 0

    @cached_property
    def by_level(self) -> list[stats.Paired]:
        """Every two strategies level by level, unless they are too many."""
        if self.too_many_pairs:
            return []
        return stats.compare_levels(self.results.runs)

    @cached_property
    def controlled(self) -> list[stats.Controlled]:
        """Every strategy beside its controls."""
        return stats.compare_controls(self.results.runs, self.study)

    @cached_property
    def barriers(self) -> list[Barrier]:
        """The error barriers of each cell and clock; none if the study does not measure connectivity."""
        return barriers(self.results.lines) if self.study.measure.connectivity else []

    @cached_property
    def checked(self) -> list[claims.Checked]:
        """The study's claims, held against its runs."""
        return claims.check(self.results)

    @cached_property
    def dense(self) -> Mapping[Setting, stats.Cell | None]:
        """Each setting's unpruned network."""
        return {setting: stats.dense_baseline(runs, setting) for setting, runs in self.runs_of.items()}

    @cached_property
    def bars(self) -> Mapping[Setting, float | None]:
        """0.95 of each setting's dense mean."""
        return {setting: stats.threshold(runs, setting) for setting, runs in self.runs_of.items()}

    @cached_property
    def dense_at_chance(self) -> Mapping[Setting, bool]:
        """Whether each setting's dense network learned nothing."""
        found = self.results.tasks
        return {
            setting: bool(runs) and stats.dense_at_chance(runs, setting, found[setting.task])
            for setting, runs in self.runs_of.items()
        }

    def possible(self, setting: Setting, low: float, high: float) -> tuple[float, float]:
        """Return an interval of the test metric without what cannot be."""
        return figures.possible(self.results.tasks[setting.task].metric, low, high)

    @property
    def random(self) -> str | None:
        """The strategy that others are measured against."""
        return figures.random_masks(self.study)

    @cached_property
    def priority(self) -> list[str]:
        """The strategies in the order in which charts colour them."""
        return figures.priority(self.results, self.rankings.values())

    def critical(self, where: Where) -> float | None:
        """Return a strategy's critical sparsity on a setting."""
        return self._critical(where, "mean")

    def critical_range(self, where: Where) -> tuple[float | None, float | None]:
        """Return the critical sparsities that the cells' intervals allow."""
        return self._critical(where, "low"), self._critical(where, "high")

    def _critical(self, where: Where, bound: stats.Bound) -> float | None:
        if (where, bound) not in self._known:
            setting, strategy = where
            found = stats.critical_sparsity(self.runs_of[setting], setting, strategy, bound)
            self._known[where, bound] = found
        return self._known[where, bound]

    @cached_property
    def effort(self) -> Mapping[tuple[Setting, str, float], tuple[float, float]]:
        """What each cell's networks cost, mean over seeds: their work, see `work_is`, and seconds of training."""
        spent: dict[tuple[Setting, str, float], list[tuple[int, float]]] = {}
        for run in self.results.runs:
            where = (run.setting, run.strategy, run.sparsity)
            spent.setdefault(where, []).append((run.kept, run.seconds))
        return {
            where: (sum(kept for kept, _ in of) / len(of), sum(seconds for _, seconds in of) / len(of))
            for where, of in spent.items()
        }

    def work_is(self, setting: Setting) -> str:
        """Return what a network's kept weights stand for: multiply-adds, where a row of input meets each once."""
        facts = self.results.networks[setting]
        return "multiply-adds a row" if facts.macs == facts.prunable else "weights kept"

    def words(self, setting: Setting) -> str:
        """Return a setting's name."""
        return self.results.words(setting)

    def levels(self, levels: Sequence[float]) -> str:
        """Return levels as in ``at 10%, 90%``, or ``from 50% on`` if they are all that there are from there."""
        above = sorted(s for s in self.study.sparsities if s >= min(levels))
        if len(levels) > 1 and sorted(levels) == above:
            return f"from {percent(above[0])} on"
        return f"at {', '.join(map(percent, levels))}"
