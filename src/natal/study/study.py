"""What a study is: a grid of trainings, declared in a TOML file. No torch here.

``load_study("paper")`` reads a preset, ``load_study("mine.toml")`` a file. A `Study` expands into the `Run` rows of
its grid; each row has a key, the digest of everything its training depends on. Two rows with one key are one
training: that is how the dense baseline is shared by all strategies, and how a stored run is found again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, NamedTuple, Self

from pydantic import BeforeValidator, Field, field_validator, model_validator

from natal.registry import did_you_mean
from natal.study.base import MAX_SEED, Integer, Model, Number
from natal.study.claim import Claim
from natal.study.keys import digest
from natal.study.recipe import Recipe, recipe_of
from natal.study.training import Training


class Run(NamedTuple):
    """One row of a study's grid: a task, a strategy's name, a requested sparsity and a seed."""

    task: str
    strategy: str
    sparsity: float
    seed: int


class Study(Model):
    """A grid of runs: tasks x strategies x sparsities x seeds, one network shape, one way of training."""

    name: str
    description: str = ""
    plugins: tuple[str, ...] = ()
    tasks: tuple[str, ...]
    strategies: Annotated[
        tuple[Recipe, ...],
        BeforeValidator(
            lambda v: (
                [recipe_of(e) for e in v] if isinstance(v, Sequence | set) and not isinstance(v, str) else v
            )
        ),
    ]
    sparsities: tuple[Number, ...]
    seeds: tuple[Integer, ...]
    hidden: Integer = 128
    training: Training = Training()
    claims: tuple[Claim, ...] = ()
    folder: str = Field(default="", exclude=True)
    """Where the study file lies, so that its plugins are found beside it; not part of the study."""

    @field_validator("tasks", "strategies", "sparsities", "seeds")
    @classmethod
    def _listed_once(cls, value: tuple[Any, ...]) -> tuple[Any, ...]:
        if not value:
            raise ValueError("must name at least one")
        names = [v.name if isinstance(v, Recipe) else v for v in value]
        twice = [n for n in names if names.count(n) > 1]
        if twice:
            raise ValueError(f"lists {twice[0]!r} twice; name each once")
        return value

    @field_validator("sparsities")
    @classmethod
    def _sparsities(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        for s in value:
            if not 0 <= s < 1:
                raise ValueError(f"sparsity must lie in [0, 1), got {s}")
        return value

    @field_validator("seeds")
    @classmethod
    def _seeds(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        for s in value:
            if not 0 <= s <= MAX_SEED:
                raise ValueError(f"a seed must lie in [0, 2**32), got {s}")
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

    @field_validator("hidden")
    @classmethod
    def _hidden(cls, value: int) -> int:
        if value < 2:
            raise ValueError("must be at least 2 neurons")
        return value

    @model_validator(mode="after")
    def _one_rate_per_task(self) -> Self:
        rates = self.training.learning_rate
        for task in self.tasks:
            if isinstance(rates, dict) and task not in rates:
                raise ValueError(
                    f"training.learning_rate has no entry for task {task!r}{did_you_mean(task, rates)}"
                )
        return self

    @property
    def digest(self) -> str:
        """A 16-digit hash of the whole study, claims and all."""
        return digest(self.model_dump(mode="json"))

    def recipe(self, strategy: str) -> Recipe:
        """Return the recipe behind a strategy's name."""
        return next(r for r in self.strategies if r.name == strategy)

    def runs(self) -> list[Run]:
        """Return the grid, in the paper's order: task, then strategy, then sparsity, then seed."""
        return [
            Run(task, recipe.name, sparsity, seed)
            for task in self.tasks
            for recipe in self.strategies
            for sparsity in self.sparsities
            for seed in self.seeds
        ]

    def learning_rate(self, task: str, own: float) -> float:
        """Return the learning rate of one task; ``own`` is the task's, used when the study names none."""
        rate = self.training.learning_rate
        if isinstance(rate, dict):
            return rate[task]
        return own if rate is None else rate

    def key(
        self,
        run: Run,
        *,
        engine: str,
        learning_rate: float,
        fingerprints: Mapping[str, str],
        share: bool = True,
    ) -> str:
        """Return the digest of everything the training behind ``run`` depends on.

        At sparsity 0 no recipe enters it, so every strategy's dense run is one training; without ``share`` the
        strategy's name enters it, so that every row is trained on its own. ``engine`` says what does the arithmetic
        (engine, device, versions of natal, torch and NumPy); ``fingerprints`` hold the digests of plugin files by
        the name of the task or criterion that they define.
        """
        recipe = self.recipe(run.strategy)
        mask: object = (
            None if run.sparsity == 0 else {**recipe.model_dump(exclude={"name"}), "sparsity": run.sparsity}
        )
        sources = {run.task} if mask is None else {run.task, recipe.criterion}
        return digest(
            {
                "task": run.task,
                "seed": run.seed,
                "hidden": self.hidden,
                "training": {**self.training.model_dump(), "learning_rate": learning_rate},
                "mask": mask if share else [run.strategy, mask],
                "engine": engine,
                "plugins": {name: fingerprints[name] for name in sorted(sources) if fingerprints.get(name)},
            }
        )
