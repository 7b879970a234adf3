"""Which stages of a study's chains are to be trained, whose states they need, and how the chains look in words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from natal.lab import birth, states
from natal.lab.engines import Pending, made_by
from natal.store import MASK, Place
from natal.study import Run, Setting, Stage, Study, Timeline, siblings_of
from natal.wording import percent, plural

if TYPE_CHECKING:
    from natal.lab.plan import Chosen


class Growth:
    """A study's stages by key, as its rows ask for them, and of those the ones to train.

    A row's own training is to do unless it is stored; whatever it starts from then has to be there as a state, or the
    stage before is trained, once more if need be. ``statuses``: of stored trainings by key; ``kept`` and ``passing``:
    the states that lie there, which count if their training is stored too: a kill may have come between the two.
    ``lines``: by the key of a row's training, the clock, order and key of those that are compared with it.
    ``chained``: the rows' own stages that another comes before.
    """

    def __init__(
        self,
        study: Study,
        device: str,
        settings: Mapping[Setting, Chosen],
        statuses: Mapping[str, str],
        kept: set[Place],
        passing: set[Place],
    ) -> None:
        self.study, self.device, self.settings, self.statuses = study, device, settings, statuses
        self._kept_there = {place for place in kept if place.key in statuses}
        self._there = {place for place in kept | passing if place.key in statuses}
        self._wanted: dict[str, Pending] = {}
        self._clocks_wanted: dict[str, set[str]] = {}
        self._keys: dict[int, tuple[Stage, str]] = {}
        self._making = birth.keys_of(study)
        self._makers = {name: made_by(own.engine, device) for name, own in settings.items()}
        self._recipes = {recipe.name: recipe for recipe in study.strategies}
        self.kept: set[Place] = set()
        self.lines: dict[str, list[tuple[str, int, str]]] = {}
        self._asked: set[str] = set()
        self.chained: list[Stage] = []

    def ask(self, run: Run, stage: Stage, key: str) -> None:
        """Have a row's own training, with its key, there at the end, with its mask if that was cut later than at birth,
        and the states that the study keeps."""
        if key in self._asked:
            return
        self._asked.add(key)
        if stage.parent is not None:
            self.chained.append(stage)
        clocks = self._clocks(stage) if self.study.keep else set()
        self.kept |= {Place(key, clock) for clock in clocks}
        # one that diverged has no state to give
        if self.statuses.get(key) != "diverged":
            masked = not stage.beyond_birth or Place(key, MASK) in self._kept_there
            if key not in self.statuses or not masked:
                self._train(key, run, stage)
            for clock in clocks:
                self._have(Place(key, clock), run, stage, self._kept_there)
        for sibling in siblings_of(self.study, stage, self._rows(stage)) if self.compares else ():
            other = self.key(sibling)
            self.lines.setdefault(key, []).append((sibling.at, sibling.order, other))
            if other not in self.statuses:
                self._train(other, sibling.run, sibling)

    @property
    def compares(self) -> bool:
        """Whether rows want trainings that they are compared with."""
        return self.study.measure.connectivity is not None

    @property
    def keeps(self) -> bool:
        """Whether rows may want more than their own training: states, or trainings that they are compared with."""
        return bool(self.study.keep) or self.compares

    def pending(self) -> list[Pending]:
        """Return the trainings to do, parents before children."""
        for key, clocks in self._clocks_wanted.items():
            self._wanted[key] = self._wanted[key]._replace(keep=frozenset(clocks))
        found = list(self._wanted.values())
        depth = list(depths(found))
        return [found[i] for i in sorted(range(len(found)), key=depth.__getitem__)]

    @property
    def again(self) -> set[str]:
        """The keys of stored trainings among those to do."""
        return {key for key in self._wanted if key in self.statuses}

    def bytes(self, pending: Sequence[Pending]) -> tuple[int, int]:
        """Return about how many bytes of states and masks are written to keep, and are held in passing at most.

        The most there is if all chains go on side by side.
        """
        cut_later = Counter(t.run.setting for t in pending if t.stage.beyond_birth)
        if not self.kept and not cut_later and not any(training.needs for training in pending):
            return 0, 0
        settings = {training.key: training.run.setting for training in pending}
        networks = {setting: self.settings[setting].setting.network for setting in {*settings.values()}}
        moments = self.study.training.optimiser.moments
        later = {setting: states.size(net, moments) for setting, net in networks.items()}
        born = {setting: states.size(net, 0) for setting, net in networks.items()}
        sizes = {key: later[setting] for key, setting in settings.items()}
        kept = sum(
            (born if place.clock == "init" else later)[settings[place.key]]
            for place in self.kept
            if place.key in settings and place not in self._kept_there
        )
        kept += sum(many * states.mask_size(networks[setting]) for setting, many in cut_later.items())
        level = dict(zip((t.key for t in pending), depths(pending), strict=True))
        last: dict[Place, int] = {}
        for training in pending:
            for place in set(training.needs) - self.kept:
                last[place] = max(last.get(place, 0), level[training.key])
        held = [
            sum(
                sizes.get(place.key, 0)
                for place, until in last.items()
                if level.get(place.key, 0) <= depth <= until
            )
            for depth in range(max(level.values(), default=0) + 1)
        ]
        return kept, max(held, default=0)

    def _train(self, key: str, run: Run, stage: Stage) -> None:
        needs = self._needs(stage)
        self._wanted[key] = Pending(run, key, self._recipes[run.strategy], stage, needs)
        for need, place in zip(stage.needs, needs, strict=True):
            if place in self._there:
                continue
            # what diverged cannot be gone on from, however often it is trained
            if self.statuses.get(place.key) != "diverged":
                self._have(place, need.stage.run, need.stage, self._there)

    def _have(self, place: Place, run: Run, stage: Stage, there: set[Place]) -> None:
        """Have a stage's state there at the end."""
        if place in there:
            return
        if place.key not in self._wanted:
            self._train(place.key, run, stage)
        self._clocks_wanted.setdefault(place.key, set()).add(place.clock)

    def _needs(self, stage: Stage) -> tuple[Place, ...]:
        if stage.parent is None:
            return ()
        return tuple(Place(self.key(need.stage), need.clock) for need in stage.needs)

    def key(self, stage: Stage) -> str:
        """Return a stage's key; stages of one chain are the same objects, see `stage_of`."""
        if stage.parent is None:
            return self.of_seeds(stage)(stage.run)
        if id(stage) not in self._keys:
            parent = None if stage.parent is None else self.key(stage.parent)
            self._keys[id(stage)] = (
                stage,
                self._making.of_stage(stage, self._makers[stage.run.setting], parent),
            )
        return self._keys[id(stage)][1]

    def of_seeds(self, stage: Stage) -> Callable[[Run], str]:
        """Return what gives, for a stage from birth, its key in a run that differs in seed alone."""
        return self._making.of_seeds(stage, self._makers[stage.run.setting])

    def _clocks(self, stage: Stage) -> set[str]:
        """Return the clocks of a stage's training at which the study keeps its states."""
        per_epoch = self.study.training.steps_per_epoch(self._rows(stage))
        clock = Timeline(per_epoch, stage.steps)
        return {clock.name(at) for at in self.study.keep if stage.first <= clock.steps(at) <= stage.steps}

    def _rows(self, stage: Stage) -> int:
        return len(self.settings[stage.run.setting].setting.split.fit)


def depths(pending: Sequence[Pending]) -> Iterator[int]:
    """Yield for each training how many others have to be done before it, one after the other."""
    if not any(training.needs for training in pending):
        return iter([0] * len(pending))
    by_key = {training.key: training for training in pending}
    found: dict[str, int] = {}

    def depth(key: str) -> int:
        if key not in found:
            before = [place.key for place in by_key[key].needs if place.key in by_key]
            found[key] = 1 + max(map(depth, before), default=-1)
        return found[key]

    return (depth(training.key) for training in pending)


def drawn(study: Study, chained: Sequence[Stage]) -> list[str]:
    """Return the chains of a study in words, a line a strategy that has one: its stages, and what it shares."""
    lines = []
    one = study.settings()[0]
    chained = [s for s in chained if s.run.seed == study.seeds[0] and s.run.setting == one]
    for recipe in study.strategies:
        rows = [s for s in chained if s.run.strategy == recipe.name]
        if not rows:
            continue
        longest = max(rows, key=lambda stage: (len(list(stage)), stage.run.sparsity))
        lines.append(f"{recipe.name}: {_chain(longest)}")
        lines.append(f"{'':<{len(recipe.name)}}  {_way(longest)}; {_shares(study, longest, rows)}")
    return lines


def _chain(last: Stage) -> str:
    words = ["dense", *(percent(stage.run.sparsity) for stage in last if stage.parent is not None)]
    if len(words) > 8:
        words = [*words[:4], "...", *words[-2:]]
    return " > ".join(words) + f" ({plural(len(list(last)), 'stage')})"


def _way(last: Stage) -> str:
    back = {
        "none": "training goes on",
        "init": "rewound to birth",
        "clock": "the clock rewound, weights stay",
    }
    return f"cut at {last.at}, {back.get(last.start, f'rewound to {last.start}')}"


def _shares(study: Study, longest: Stage, rows: Sequence[Stage]) -> str:
    assert longest.recipe is not None
    if longest.recipe.control is not None and longest.parent is not longest.trunk:
        return f"{plural(len(rows), 'branch')} off the stages without the control"
    return (
        "its stages serve every sparsity" if longest.recipe.rounds == "levels" else "shares the dense stage"
    )
