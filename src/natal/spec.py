"""What a study is: a grid of trainings, declared in a TOML file. No torch here.

``load_study("paper")`` reads a preset, ``load_study("mine.toml")`` a file. A `Study` expands into the `Run` rows of
its grid; each row has a key, the digest of everything its training depends on. Two rows with one key are one
training: that is how the dense baseline is shared by all strategies, and how a stored run is found again.
"""

from __future__ import annotations

import hashlib
import json
import math
import tomllib
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainValidator,
    Strict,
    ValidationError,
    field_validator,
    model_serializer,
    model_validator,
)

from natal.errors import NatalError
from natal.registry import did_you_mean

Integer = Annotated[int, Strict()]
Number = Annotated[float, Strict()]
MAX_SEED = 2**32 - 1
"""The largest seed ``numpy.random.RandomState`` takes, and the published tasks draw their data from one."""


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


SCOPES = ("global", "layerwise", "threshold", "er", "erk", "igq", "smart-ratios", "uniform+")
"""Where scores compete; `natal.masks` says what each means."""

Aggregate = Literal["incoming-l1", "incoming-l2", "outgoing-l1", "outgoing-l2", "both-l1", "both-l2", "gate"]
Control = Literal[
    "shuffle", "reinit", "invert", "quota-random", "random-neurons", "highest-norm", "fresh-narrow"
]


def unknown_scope(value: Any) -> str:
    """Return the sentence about a scope that is none: the nearest one and, since they are few, all of them."""
    near = did_you_mean(str(value), SCOPES).partition("; known")[0]
    return f"unknown scope {value!r}{near or ';'} known: {', '.join(SCOPES)}, or densities by layer"


def _scope(value: Any) -> Any:
    if isinstance(value, Mapping):
        for layer, density in value.items():
            if isinstance(density, bool) or not isinstance(density, int | float) or not 0 <= density <= 1:
                raise ValueError(f"the density of layer {layer!r} must lie in [0, 1], got {density!r}")
        return {str(layer): float(density) for layer, density in value.items()}
    if value not in SCOPES:
        raise ValueError(unknown_scope(value))
    return value


class Recipe(_Model):
    """How to choose a mask: which score, where scores compete, what is removed.

    A *strategy* is a recipe with a name. ``criterion`` names a registered criterion, ``scope`` where its scores
    compete (a name in `SCOPES`, or densities by layer), ``granularity`` whether single weights or whole
    neurons are removed, ``aggregate`` how a neuron's score comes from its weights', ``control`` the comparison
    that replaces the mask or the initial weights, see `natal.criteria.mask`.
    """

    name: str
    criterion: str
    scope: Annotated[str | dict[str, float], PlainValidator(_scope)] = "global"
    granularity: Literal["weight", "neuron"] = "weight"
    aggregate: Aggregate = "incoming-l2"
    control: Control | None = None

    @model_serializer(mode="wrap")
    def _without_defaults(self, handler: Any) -> dict[str, Any]:
        # left out unless used, so that the keys of runs stored before these fields existed stay the same
        later = {"aggregate": "incoming-l2", "control": None}
        return {k: v for k, v in handler(self).items() if k not in later or v != later[k]}


_WIDTH_CONTROLS: tuple[Control, ...] = ("random-neurons", "highest-norm", "fresh-narrow")
_STRUCTURED: Any = {"criterion": "magnitude", "scope": "layerwise", "granularity": "neuron"}

STRATEGIES: dict[str, Recipe] = {
    "structured": Recipe(name="structured", **_STRUCTURED),
    **{control: Recipe(name=control, control=control, **_STRUCTURED) for control in _WIDTH_CONTROLS},
}
"""Strategies with a name of their own: the study's structured pruning and its three controls. Any criterion's
name is a strategy too: global scope, single weights."""


def _recipe(entry: Any) -> Any:
    if isinstance(entry, str):
        return STRATEGIES.get(entry) or Recipe(name=entry, criterion=entry)
    if isinstance(entry, Mapping) and "name" not in entry:
        order = ("criterion", "scope", "granularity", "aggregate", "control")
        words = [entry[k] for k in order if k in entry]
        return {"name": "-".join("by-layer" if isinstance(w, Mapping) else str(w) for w in words), **entry}
    return entry


def _none(value: Any) -> Any:
    if isinstance(value, str) and value != "none":
        raise ValueError('must be a number or "none"')
    return None if value == "none" else value


class Training(_Model):
    """How every network of a study is trained: full-batch Adam with early stopping on validation rows.

    ``epochs``: most steps taken. ``patience``: epochs without a better validation metric before stopping, or
    ``"none"`` for the full budget. ``target``: a validation metric that ends training at once, or ``"none"``.
    ``validation_fraction``: share of training rows held out. ``learning_rate``: one number, or one per task;
    left out, each task's own.
    """

    epochs: Integer = 500
    patience: Annotated[Integer | None, BeforeValidator(_none)] = 100
    target: Annotated[Number | None, BeforeValidator(_none)] = 0.999
    validation_fraction: Number = 0.1
    learning_rate: Number | dict[str, Number] | None = None

    @field_validator("epochs", "patience")
    @classmethod
    def _at_least_one(cls, value: int | None) -> int | None:
        if value is not None and value < 1:
            raise ValueError("must be at least 1")
        return value

    @field_validator("validation_fraction")
    @classmethod
    def _fraction(cls, value: float) -> float:
        if not 0 < value < 0.5:
            raise ValueError("must lie strictly between 0 and 0.5")
        return value

    @field_validator("learning_rate")
    @classmethod
    def _positive(cls, value: float | dict[str, float] | None) -> float | dict[str, float] | None:
        for rate in value.values() if isinstance(value, dict) else [value]:
            if rate is not None and not rate > 0:
                raise ValueError("must be positive, such as 0.001")
        return value


class Claim(_Model):
    """One thing a paper states, and where a study finds its own number for it.

    ``quantity``, of ``strategy`` on ``task``: ``mean`` (test metric of the cell at ``sparsity``), ``epochs``
    (mean epochs trained there), ``critical-sparsity``, ``kept-through`` (the highest level up to which every
    level keeps 0.95 of dense), ``chance-from`` (the lowest level from which on all are at chance),
    ``peak-sparsity`` (the level with the highest mean), ``early-failures`` (of the runs that ended before the
    epoch budget, the share below 0.95 of dense), ``difference`` (strategy minus ``against``, another strategy
    or ``dense``, paired by seed; at ``sparsity``, or over all pruned levels). ``published``: the number; left
    out of a ``difference``, the claim is that it is positive.
    """

    text: str
    quantity: Literal[
        "mean", "epochs", "critical-sparsity", "kept-through", "chance-from", "peak-sparsity",
        "early-failures", "difference",
    ]  # fmt: skip
    task: str
    strategy: str
    against: str | None = None
    sparsity: Number | None = None
    published: Number | None = None

    @model_serializer(mode="wrap")
    def _without_unused(self, handler: Any) -> dict[str, Any]:
        # so that the hashes of studies stored before `against` existed stay the same
        unused = ("against", "published")
        return {k: v for k, v in handler(self).items() if k not in unused or v is not None}

    @model_validator(mode="after")
    def _fits(self) -> Self:
        difference = self.quantity == "difference"
        if not difference and (self.sparsity is None) == (self.quantity in ("mean", "epochs")):
            raise ValueError(
                f"quantity {self.quantity!r} goes {'with' if self.sparsity is None else 'without'} a sparsity"
            )
        if (self.against is None) == difference:
            needs = "needs against, the name of another strategy" if difference else "takes no against"
            raise ValueError(f"quantity {self.quantity!r} {needs}")
        if self.against == "dense" and self.sparsity is None:
            raise ValueError("a difference from dense needs a sparsity")
        if self.published is None and not difference:
            raise ValueError(f"quantity {self.quantity!r} needs a published number")
        return self


class Run(NamedTuple):
    """One row of a study's grid: a task, a strategy's name, a requested sparsity and a seed."""

    task: str
    strategy: str
    sparsity: float
    seed: int


class Study(_Model):
    """A grid of runs: tasks x strategies x sparsities x seeds, one network shape, one way of training."""

    name: str
    description: str = ""
    plugins: tuple[str, ...] = ()
    tasks: tuple[str, ...]
    strategies: Annotated[
        tuple[Recipe, ...],
        BeforeValidator(
            lambda v: (
                [_recipe(e) for e in v] if isinstance(v, Sequence | set) and not isinstance(v, str) else v
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
        return _digest(self.model_dump(mode="json"))

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
        return _digest(
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


def presets() -> dict[str, Path]:
    """Return the study files that come with natal, by name."""
    folder = Path(str(resources.files("natal") / "studies"))
    return {path.stem: path for path in sorted(folder.glob("*.toml"))}


def load_study(source: str | Path | Mapping[str, Any] | Study, overrides: Sequence[str] = ()) -> Study:
    """Read a study from a preset's name, a TOML file, a mapping or another study, and check it.

    ``overrides`` are ``path.key=VALUE`` strings with a TOML literal, as given to ``--set``. Raises NatalError with
    one line naming file, key, value and cure for anything wrong.
    """
    folder, where = "", "study"
    if isinstance(source, Study):
        table, folder = source.model_dump(mode="json"), source.folder
    elif isinstance(source, Mapping):
        try:
            table = json.loads(json.dumps(source))
        except (TypeError, ValueError) as error:
            raise NatalError(f"study: {error}; use plain tables, lists, text and numbers") from None
    else:
        path = _find(source)
        folder, where = str(path.parent.resolve()), path.name
        table = _parse(path.read_bytes(), where)
    for override in overrides:
        _set(table, override)
    if "folder" in table:
        raise NatalError(f"{where}: unknown key 'folder'; plugins are looked for beside the study file")
    try:
        return Study.model_validate({**table, "folder": folder})
    except ValidationError as error:
        raise NatalError(f"{where}: {_one_line(error)}") from None


def _find(source: str | Path) -> Path:
    path = Path(source)
    if path.suffix == ".toml" or path.is_file():
        if not path.is_file():
            raise NatalError(f"no study file {str(source)!r}; `natal list` shows the presets")
        return path
    known = presets()
    if str(source) not in known:
        raise NatalError(
            f"unknown study {str(source)!r}{did_you_mean(str(source), known)} (or name a .toml file)"
        )
    return known[str(source)]


def _parse(content: bytes, where: str) -> dict[str, Any]:
    try:
        return tomllib.loads(content.decode())
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise NatalError(f"{where}: not valid TOML: not UTF-8 text (at line {line})") from None
    except tomllib.TOMLDecodeError as error:
        raise NatalError(f"{where}: not valid TOML: {error}") from None


def _set(table: dict[str, Any], override: str) -> None:
    path, equals, literal = override.partition("=")
    if not equals or not path.strip():
        raise NatalError(f"--set {override!r}: write it as path.key=VALUE, such as training.epochs=100")
    try:
        value = tomllib.loads(f"value = {literal}")["value"]
    except tomllib.TOMLDecodeError:
        raise NatalError(
            f"--set {override!r}: {literal!r} is not a TOML literal; quote text, such as '{path}=\"name\"'"
        ) from None
    *parents, last = path.strip().split(".")
    for parent in parents:
        table = table.setdefault(parent, {})
        if not isinstance(table, dict):
            raise NatalError(f"--set {override!r}: {parent!r} is not a table of keys")
    table[last] = value


def _one_line(error: ValidationError) -> str:
    """Turn pydantic's first complaint into ``key: what is wrong, got value; cure``, counting the others."""
    first, *others = error.errors()
    where = ".".join(str(part) for part in first["loc"] if str(part) not in _UNION_BRANCHES)
    if first["type"] == "extra_forbidden":
        owners: dict[str, type[_Model]] = {"training": Training, "strategies": Recipe, "claims": Claim}
        owner = owners.get(str(first["loc"][0]), Study) if len(first["loc"]) > 1 else Study
        known = set(owner.model_fields) - {"folder"}
        message = f"unknown key {where!r}{did_you_mean(str(first['loc'][-1]), known)}"
    elif first["type"] == "missing":
        message = f"key {where!r} is missing"
    else:
        what = _SAID.get((first["type"], where.split(".")[0]), first["msg"].removeprefix("Value error, "))
        what = (what[0].lower() + what[1:]).replace("a valid tuple", "a list")
        shown = (
            ""
            if "got " in what or "twice" in what or "unknown " in what or not where
            else (f", got {_show(first['input'])}")
        )
        message = f"{where}: {what}{shown}" if where else f"{what}"
    return message + (f" (and {len(others)} more)" if others else "")


_SAID = {
    ("model_type", "training"): "must be a table of keys",
    ("model_type", "strategies"): "must be a strategy's name or a table of keys",
    ("model_type", "claims"): "must be a table of keys",
}
"""What pydantic would say in its own words, by its word for the mistake and the study's key."""

_UNION_BRANCHES = {
    "int",
    "float",
    "constrained-int",
    "constrained-float",
    "dict[str,constrained-float]",
    "dict[str,float]",
    "Recipe",
    "function-before[_none()]",
}


def _show(value: Any) -> str:
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    text = json.dumps(value, default=str) if isinstance(value, dict | list | tuple) else repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _digest(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]
