"""Digests: of a study, and of everything a training depends on.

A training's key is a chain: the digest of its parent's key, of what is done to the parent, and of who does the
arithmetic. Equal prefix, equal key: that is how rows share trainings. What a study leaves at its default enters no
digest, so a field that natal gains later changes no old key; natal's own release never enters one, an engine's
*revision* does, which rises whenever the engine's bits change.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from natal.study.recipe import Recipe
    from natal.study.stages import Stage
    from natal.study.study import Run, Study
    from natal.study.training import Training


def digest(value: Any) -> str:
    """Return the first 16 hexadecimal digits of the SHA-256 of a value's JSON, keys sorted."""
    return _sha(_json(value))


def _json(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


def _sha(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Maker:
    """Who does the arithmetic: all that may give a training other bits, but for the machine and natal's release.

    ``natal``, the release, is written down with every training and enters no key: an engine whose bits change raises
    its ``revision``.
    """

    engine: str
    revision: int
    device: str
    torch: str
    numpy: str
    natal: str

    def __str__(self) -> str:
        return (
            f"{self.engine} engine (revision {self.revision}) on {self.device}, "
            f"natal {self.natal}, torch {self.torch}, numpy {self.numpy}"
        )

    @property
    def identity(self) -> tuple[str, int, str, str, str]:
        """Everything that enters a key."""
        return self.engine, self.revision, self.device, self.torch, self.numpy


Fingerprints = Callable[["Run"], Mapping[str, str]]
"""For a run, digests of plugin files by the name of the entry that they define; the same for all seeds and levels."""


class Keys:
    """The keys of a study's trainings; what many of them share is put into JSON once."""

    def __init__(self, study: Study, fingerprints: Fingerprints) -> None:
        self.study = study
        self._fingerprints = fingerprints
        self._births: dict[tuple[str, str, int], str] = {}
        self._parts: dict[object, tuple[str, str, object]] = {}

    def birth(self, run: Run) -> str:
        """Return the key of a run's network at birth, with its data: where every chain begins."""
        which = run.task, run.network, run.seed
        if which not in self._births:
            before, after = self._birth(run)
            self._births[which] = _sha(f"{before}{run.seed}{after}")
        return self._births[which]

    def of_run(self, run: Run, maker: Maker, learning_rate: float) -> str:
        """Return the key of a training from birth, under at most one mask cut there, at one learning rate.

        At sparsity 0 no recipe enters it, so every strategy's dense run is one training; in a study that does not
        ``share``, the strategy's name does, so that every row is trained on its own.
        """
        recipe = self.study.recipe(run.strategy) if run.sparsity else None
        mask = None if recipe is None else _cut(recipe, {"name"}, run.sparsity, self._fingerprints(run))
        training = self.study.training.alone
        return digest({"parent": self.birth(run), **self._link(run, mask, training, learning_rate, maker)})

    def of_stage(
        self, stage: Stage, maker: Maker, parent: str | None = None, *, of: Run | None = None
    ) -> str:
        """Return the key of one stage, by those of the stages before it in its chain; ``parent``: the last of them, if
        known. ``of``: for a stage from birth, a run of another seed.

        A stage from birth has the key of a training that knows no chains, `of_run`, but that of a mask made in rounds
        the sparsities on the way enter, too.
        """
        if stage.parent is None:
            return self.of_seeds(stage, maker)(of or stage.run)
        parent = parent or self.of_stage(stage.parent, maker)
        before, after = self._of_all_seeds(stage, maker)
        return _sha(f'{before}"{parent}"{after}')

    def of_seeds(self, stage: Stage, maker: Maker) -> Callable[[Run], str]:
        """Return what gives, for a stage from birth, its key in a run that differs in seed alone."""
        before, after = self._of_all_seeds(stage, maker)
        return lambda run: _sha(f'{before}"{self.birth(run)}"{after}')

    def _of_all_seeds(self, stage: Stage, maker: Maker) -> tuple[str, str]:
        """Return the JSON of what a stage's key depends on, before and after its parent's key, once for all seeds."""
        run = stage.run
        which = (
            *(run.task, run.network, run.strategy, id(stage.recipe), stage.targets, id(stage.training)),
            *(stage.learning_rate, stage.parent is None, stage.at, stage.start, stage.order, id(maker)),
        )
        if which not in self._parts:
            # what is told apart by being the same object has to stay
            self._parts[which] = *self._around(stage, maker), (stage.recipe, stage.training, maker)
        return self._parts[which][:2]

    def _birth(self, run: Run) -> tuple[str, str]:
        """Return the JSON of what a birth depends on, before and after the seed."""
        which = run.task, run.network
        if which not in self._parts:
            task, network = self.study.task(run.task), self.study.network(run.network)
            values = {
                "task": [task.entry, task.options],
                "network": [network.entry, network.options],
                "init": network.init.model_dump(),
                "plugins": _of(self._fingerprints(run), task.entry, network.entry),
            }
            self._parts[which] = *_split(values, "seed"), None
        return self._parts[which][:2]

    def _around(self, stage: Stage, maker: Maker) -> tuple[str, str]:
        """Return the JSON of what a stage's key depends on, before and after its parent's key."""
        mask: dict[str, object] | None = None
        if stage.recipe is not None:
            apart = {"name", "rounds"} if stage.parent is None else {"name", "rounds", "at", "rewind"}
            mask = _cut(stage.recipe, apart, stage.targets[-1], self._fingerprints(stage.run))
            if stage.targets[1:]:
                mask["targets"] = list(stage.targets[:-1])
        before = {}
        if stage.parent is not None:
            before = {"at": stage.at, "start": stage.start}
            if stage.order:
                before["order"] = f"{stage.order}, {self.study.measure.connectivity}"
        link = self._link(stage.run, mask, stage.training, stage.learning_rate, maker)
        return _split({**before, **link}, "parent")

    def _link(
        self, run: Run, mask: dict[str, object] | None, training: Training, learning_rate: float, maker: Maker
    ) -> dict[str, object]:
        return {
            "cut": mask if self.study.share else [run.strategy, mask],
            "train": {**training.model_dump(), "learning_rate": learning_rate},
            "maker": maker.identity,
        }


def _split(values: Mapping[str, object], name: str) -> tuple[str, str]:
    """Return a table as JSON, before and after the value of one more name."""
    first = "".join(f'"{n}":{_json(values[n])},' for n in sorted(values) if n < name)
    last = "".join(f',"{n}":{_json(values[n])}' for n in sorted(values) if n > name)
    return f'{{{first}"{name}":', f"{last}}}"


def birth(study: Study, run: Run, fingerprints: Mapping[str, str]) -> str:
    """Return `Keys.birth`; ``fingerprints``: digests of plugin files, by the name of the entry that they define."""
    return Keys(study, lambda run: fingerprints).birth(run)


def key(study: Study, run: Run, maker: Maker, learning_rate: float, fingerprints: Mapping[str, str]) -> str:
    """Return `Keys.of_run`, likewise."""
    return Keys(study, lambda run: fingerprints).of_run(run, maker, learning_rate)


def _cut(
    recipe: Recipe, apart: set[str], sparsity: float, fingerprints: Mapping[str, str]
) -> dict[str, object]:
    plugins = _of(fingerprints, recipe.criterion)
    return {**recipe.model_dump(exclude=apart), "sparsity": sparsity, "plugins": plugins}


def _of(fingerprints: Mapping[str, str], *names: str) -> dict[str, str]:
    return {name: fingerprints[name] for name in sorted(names) if fingerprints.get(name)}


def key_0_2(
    study: Study, run: Run, maker: Maker, learning_rate: float, fingerprints: Mapping[str, str]
) -> str | None:
    """Return the key natal 0.2.0 gave a training, None if that release could not have asked for it. Frozen.

    The release that stored it, ``maker.natal``, was part of its keys. Its engines were ``batched``, revision 1 of
    ``compiled``, and ``sequential``, revision 1 of ``torch``, which shared nothing.
    """
    names = {"compiled": "batched", "torch": "sequential"}
    table = study.training.alone.model_dump()
    known = {"epochs", "patience", "target", "validation_fraction", "learning_rate"}
    recipe = study.recipe(run.strategy).model_dump(exclude={"name"})
    task = study.task(run.task)
    if (
        study.hidden is None
        or task.options
        or set(table) != known
        or maker.engine not in names
        or maker.revision != 1
        or not set(recipe) <= {"criterion", "scope", "granularity", "aggregate", "control"}
    ):
        return None
    mask: object = None if run.sparsity == 0 else {**recipe, "sparsity": run.sparsity}
    sources = (task.entry,) if mask is None else (task.entry, recipe["criterion"])
    versions = f"natal {maker.natal}, torch {maker.torch}, numpy {maker.numpy}"
    return digest(
        {
            "task": task.entry,
            "seed": run.seed,
            "hidden": study.hidden,
            "training": {**table, "learning_rate": learning_rate},
            "mask": mask if maker.engine == "compiled" else [run.strategy, mask],
            "engine": f"{names[maker.engine]}/{maker.device}, {versions}",
            "plugins": _of(fingerprints, *sources),
        }
    )
