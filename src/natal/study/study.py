"""What a study is: a grid of trainings, declared in a TOML file. No torch here.

``load_study("paper")`` reads a preset, ``load_study("mine.toml")`` a file. A `Study` expands into the `Run` rows of
its grid; each row's training has a key, see `natal.study.keys`. Two rows with one key are one training: that is how
the dense baseline is shared by all strategies, and how a stored run is found again.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, NamedTuple, Self

from pydantic import BeforeValidator, Field, field_validator, model_serializer, model_validator

from natal.notebook import Rows, Shown
from natal.registry import did_you_mean
from natal.study.base import MAX_SEED, MOST, Flag, Integer, Model, Number, Words
from natal.study.choice import Network, Task
from natal.study.claim import Claim
from natal.study.clock import Moment
from natal.study.keys import digest
from natal.study.measure import Measure
from natal.study.recipe import Recipe, recipe_of
from natal.study.training import Search, Training
from natal.wording import percent, perhaps_percent, plural

PAPERS = "mlp"
"""The name of the paper's network, which the published files leave unsaid."""


class Setting(NamedTuple):
    """A task with a network, by their names in a study."""

    task: str
    network: str = PAPERS


class Run(NamedTuple):
    """One row of a study's grid: a task, a strategy's name, a requested sparsity, a seed, and a network."""

    task: str
    strategy: str
    sparsity: float
    seed: int
    network: str = PAPERS

    @property
    def setting(self) -> Setting:
        """Its task with its network."""
        return Setting(self.task, self.network)


def _paper_network(hidden: Any) -> dict[str, Any]:
    return {"network": "mlp", "hidden": [hidden], "name": PAPERS}


def _ladder(value: Any) -> Any:
    """Read ``{ keep = 0.8, rounds = 11 }`` as the sparsities 1 - 0.8**k, k = 0 ... 11."""
    if not isinstance(value, Mapping):
        return value
    keep, rounds = value.get("keep"), value.get("rounds")
    if set(value) != {"keep", "rounds"} or isinstance(keep, bool) or not isinstance(keep, int | float):
        raise ValueError(f"a ladder of sparsities is {{ keep = 0.8, rounds = 11 }}, got {dict(value)}")
    if not 0 < keep < 1:
        raise ValueError(f"keep must lie strictly between 0 and 1, got {keep}")
    if type(rounds) is not int or not 1 <= rounds <= MOST:
        raise ValueError(f"rounds must be a whole number from 1 to {MOST}, got {rounds!r}")
    # 1 - 0.8 is 0.2, not the 0.19999999999999996 that binary fractions make of it
    return [round(1 - keep**k, 10) for k in range(rounds + 1)]


def _listed(value: Any) -> Any:
    return list(value) if isinstance(value, Sequence | set) and not isinstance(value, str) else value


_EARLY = 'a training that stops early may never get there; set training.patience = "none" and training.target = "none"'


def within(clocks: Sequence[str]) -> tuple[str, ...]:
    """Return those positions that lie inside a training."""
    return tuple(clock for clock in clocks if clock not in ("init", "end", "none", "clock"))


LONGEST = 250
"""Stages of a chain: the longest in the literature have a hundred."""


def retrains(recipe: Recipe) -> bool:
    """Whether a recipe cuts after training and trains on from there."""
    return recipe.at == "end" and recipe.rewind == "none"


_EVER = ("name", "description", "plugins", "tasks", "strategies", "sparsities", "seeds", "training", "claims")
"""Keys of a study that are written out even at their default."""


class Study(Shown, Model):
    """A grid of runs: tasks x networks x strategies x sparsities x seeds, trained in one way.

    A *setting* is a task with a network. ``hidden = 64`` is short for the paper's network of that width, an ``mlp``
    of one hidden layer. ``share``: whether rows that ask for the same training get the same one. ``sparsities``: a
    list, or a ladder ``{"keep": 0.8, "rounds": 11}``. ``keep``: clocks of every row's training whose states are stored.
    """

    ALSO: ClassVar[tuple[str, ...]] = ("hidden",)
    name: Words
    description: str = ""
    plugins: tuple[str, ...] = ()
    tasks: Annotated[tuple[Task, ...], BeforeValidator(_listed)]
    networks: Annotated[tuple[Network, ...], BeforeValidator(_listed)]
    strategies: Annotated[
        tuple[Recipe, ...],
        BeforeValidator(lambda v: [recipe_of(e) for e in v] if isinstance(_listed(v), list) else v),
    ]
    sparsities: Annotated[tuple[Number, ...], BeforeValidator(_ladder)]
    seeds: tuple[Integer, ...]
    training: Training = Training()
    share: Flag = True
    keep: tuple[Moment, ...] = ()
    measure: Measure = Measure()
    claims: tuple[Claim, ...] = ()
    folder: str = Field(default="", exclude=True)
    """Where the study file lies, so that its plugins are found beside it; not part of the study."""

    def _line(self) -> str:
        size: list[tuple[Sequence[object], str]] = [
            (self.tasks, "task"),
            (self.networks, "network"),
            (self.strategies, "strategy"),
        ]
        size += [(self.sparsities, "sparsity"), (self.seeds, "seed")]
        grid = " x ".join(plural(len(things), noun) for things, noun in size)
        return f"{self.name!r}, {plural(math.prod(len(things) for things, _ in size), 'run')} = {grid}"

    def _table(self) -> Rows:
        if self.description:
            yield "description", self.description
        yield "tasks", ", ".join(self.task_names)
        yield "networks", ", ".join(self.network_names)
        yield "strategies", ", ".join(recipe.name for recipe in self.strategies)
        yield "sparsities", ", ".join(map(percent, self.sparsities))
        yield "seeds", ", ".join(map(str, self.seeds))

    @model_validator(mode="before")
    @classmethod
    def _one_hidden_layer(cls, table: Any) -> Any:
        if not isinstance(table, Mapping):
            return table
        if "hidden" not in table:
            return {"networks": [_paper_network(128)], **table}
        if "networks" in table:
            raise ValueError("hidden is short for one network; with networks, write it there")
        hidden = table["hidden"]
        if isinstance(hidden, bool) or not isinstance(hidden, int) or hidden < 2:
            raise ValueError(f"hidden must be a whole number of at least 2 neurons, got {hidden!r}")
        rest = {key: value for key, value in table.items() if key != "hidden"}
        return {**rest, "networks": [_paper_network(hidden)]}

    @model_serializer(mode="wrap")
    def _as_ever(self, handler: Any) -> dict[str, Any]:
        # as the first studies were written: digests of stored studies stay the same
        table: dict[str, Any] = handler(self)
        table = self.without_defaults(table, (*_EVER, "networks"))
        if self.hidden is not None and table.pop("networks", None):
            table["hidden"] = self.hidden
        return table

    @field_validator("tasks", "networks", "strategies", "sparsities", "seeds")
    @classmethod
    def _listed_once(cls, value: tuple[Any, ...]) -> tuple[Any, ...]:
        if not value:
            raise ValueError("must name at least one")
        seen = set()
        for name in (getattr(v, "name", v) for v in value):
            if name in seen:
                raise ValueError(f"lists {name!r} twice; name each once")
            seen.add(name)
        return value

    @field_validator("sparsities")
    @classmethod
    def _sparsities(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        for s in value:
            if not 0 <= s < 1:
                raise ValueError(f"sparsity must lie in [0, 1), got {s}{perhaps_percent(s)}")
        return value

    @field_validator("seeds")
    @classmethod
    def _seeds(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        for s in value:
            if not 0 <= s <= MAX_SEED:
                raise ValueError(f"a seed must lie in [0, 2**32), got {s}")
        return value

    @field_validator("strategies")
    @classmethod
    def _none_is_dense(cls, value: tuple[Recipe, ...]) -> tuple[Recipe, ...]:
        if any(recipe.name == "dense" for recipe in value):
            raise ValueError(
                '"dense" is what claims call the network without pruning, got a strategy of that name; give it another'
            )
        return value

    @field_validator("plugins")
    @classmethod
    def _modules(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for plugin in value:
            if plugin.endswith(".py") or not all(part.isidentifier() for part in plugin.split(".")):
                raise ValueError(
                    f"name modules, without .py or folders, such as 'my_criteria', got {plugin!r}"
                )
        return value

    @model_validator(mode="after")
    def _claims_of_one_network(self) -> Self:
        for i, claim in enumerate(self.claims):
            if claim.network is None and len(self.networks) > 1:
                raise ValueError(
                    f"claims.{i} needs the key network, since the study has several: {', '.join(self.network_names)}"
                )
        return self

    @model_validator(mode="after")
    def _one_rate_per_setting(self) -> Self:
        rates = self.training.learning_rate
        of_tasks = {*self.task_names} - {*self.network_names}
        if isinstance(rates, dict) and of_tasks & {*rates} and {*self.network_names} & {*rates}:
            raise ValueError(
                f"training.learning_rate names tasks and networks, {', '.join(rates)}; name all of one kind"
            )
        if isinstance(rates, dict) and not set(rates) & {*self.network_names}:
            for task in self.task_names:
                if task not in rates:
                    raise ValueError(
                        f"training.learning_rate has no entry for task {task!r}{did_you_mean(task, rates)}"
                    )
        elif isinstance(rates, dict):
            for network in self.network_names:
                if network not in rates:
                    raise ValueError(
                        f"training.learning_rate has no entry for network {network!r}{did_you_mean(network, rates)}"
                    )
        return self

    @model_validator(mode="after")
    def _moments_of_this_training(self) -> Self:
        for i, recipe in enumerate(self.strategies):
            complaint = self._untimely(recipe)
            if complaint:
                raise ValueError(f"strategies.{i}.{complaint}")
        if self.training.retrain is not None and not any(map(retrains, self.strategies)):
            raise ValueError(
                'training.retrain: is for a cut at = "end" that is not rewound, which no strategy makes, got '
                f"{self.training.retrain!r}; leave it out"
            )
        line = self.measure.connectivity
        if line is not None and self.training.batch is None:
            raise ValueError(
                'measure.connectivity: trains on in other orders of the data, and training.batch = "full" has no '
                "order, so every barrier would be 0; set training.batch, such as 64"
            )
        if line is not None and within(line["from"]) and self._stops_early:
            raise ValueError(
                f"measure.connectivity: is from inside training, got {line['from']}, and {_EARLY}"
            )
        if line is not None and isinstance(self.training.learning_rate, Search):
            raise ValueError(
                "measure.connectivity: needs one learning rate a row, got several to search among; name one in "
                "training.learning_rate"
            )
        if within(self.keep) and self._stops_early:
            raise ValueError(
                f"keep lists a moment inside training, got {within(self.keep)[0]!r}, and {_EARLY}"
            )
        return self

    def _untimely(self, recipe: Recipe) -> str:
        """Return how a recipe does not go with the study's sparsities and training, or ``""``."""
        if recipe.rounds == "levels" and list(self.sparsities) != sorted(self.sparsities):
            return f'rounds = "levels" goes through the sparsities in order, got {list(self.sparsities)}; sort them'
        stages = len(self.sparsities) if recipe.rounds == "levels" else recipe.rounds
        if recipe.at != "init" and stages > LONGEST:
            return f"rounds: make a chain of {stages} trainings, one after the other; set at most {LONGEST}"
        if retrains(recipe) and self.training.retrain is None:
            return (
                'at: needs something after the cut, got "end" and no rewind; set training.retrain, such as "20ep", or '
                'rewind = "init", "clock" or a step'
            )
        if recipe.spread is not None and self._stops_early:
            return f"at: goes on to a moment inside training, got {recipe.spread['to']!r}, and {_EARLY}"
        clocks = within((str(recipe.at), recipe.rewind)) if recipe.spread is None else ()
        if not clocks or not self._stops_early:
            return ""
        key = "at" if recipe.at == clocks[0] else "rewind"
        return f"{key}: is a moment inside training, got {clocks[0]!r}, and {_EARLY}"

    @property
    def _stops_early(self) -> bool:
        return (self.training.patience, self.training.target) != (None, None)

    @property
    def hidden(self) -> int | None:
        """The width of the paper's network, if that is the only one."""
        only = self.networks[0]
        hidden = only.options.get("hidden")
        if isinstance(hidden, list) and len(hidden) == 1 and type(hidden[0]) is int:
            paper = Network.model_validate(_paper_network(hidden[0]))
            return hidden[0] if self.networks == (paper,) else None
        return None

    @property
    def task_names(self) -> tuple[str, ...]:
        """The tasks' names in order."""
        return tuple(task.name for task in self.tasks)

    @property
    def network_names(self) -> tuple[str, ...]:
        """The networks' names in order."""
        return tuple(network.name for network in self.networks)

    @property
    def digest(self) -> str:
        """A 16-digit hash of the whole study, claims and all."""
        return digest(self.model_dump(mode="json"))

    def recipe(self, strategy: str) -> Recipe:
        """Return the recipe behind a strategy's name."""
        return next(r for r in self.strategies if r.name == strategy)

    def task(self, name: str) -> Task:
        """Return the task behind a name."""
        return next(t for t in self.tasks if t.name == name)

    def network(self, name: str) -> Network:
        """Return the network behind a name."""
        return next(n for n in self.networks if n.name == name)

    def settings(self) -> list[Setting]:
        """Return every task with every network, in the grid's order."""
        return [Setting(task, network) for task in self.task_names for network in self.network_names]

    def runs(self) -> list[Run]:
        """Return the grid, in the paper's order: task, network, strategy, sparsity, then seed."""
        return [
            Run(task, recipe.name, sparsity, seed, network)
            for task, network in self.settings()
            for recipe in self.strategies
            for sparsity in self.sparsities
            for seed in self.seeds
        ]

    def learning_rates(self, run: Run, own: float) -> tuple[float, ...]:
        """Return the learning rates a run is trained at: one, or those its strategy and level choose from.

        ``own``: the task's, used when the study names none.
        """
        rate = self.training.learning_rate
        if isinstance(rate, Search):
            return rate.search
        if isinstance(rate, dict):
            return (rate[run.task] if run.task in rate else rate[run.network],)
        return (own if rate is None else rate,)
