"""A results directory, read back: run rows, curves, the published result format, comparison with another
program.

``load("results")`` gives everything a question about a study needs, from its run store alone. No torch here:
a finished study can be read on a machine that could not have run it.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from functools import cached_property, lru_cache
from importlib import util
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from natal.errors import NatalError
from natal.notebook import Rows, html
from natal.reading import stats
from natal.reading.connectivity import Line, lines
from natal.reading.rows import Attempt, Curve, InParts, Row, Runs, columns, curve, rows
from natal.store import FILE, Failure, NetworkFacts, States, Store, Table, TaskFacts, chosen, mapping
from natal.study import PAPERS, Maker, Run, Setting, Study
from natal.wording import describe, on_one_line, plural

if TYPE_CHECKING:
    import pandas as pd

    from natal.lab.restore import Mask, Module, State
    from natal.reading.figures import Axis, Kind, Picture

PublishedRun = dict[str, Any]
"""A run as an object of the published program's ``results.json``."""
IDENTITY = ("task", "strategy", "sparsity", "seed")
"""The fields that say which row of a grid such an object belongs to; see `identity`."""


@dataclass(frozen=True, repr=False)
class Results:
    """One study's runs as typed rows, read from the store when they are asked for.

    ``tasks`` and ``networks``: facts of each task by name, and of each task with each network.
    """

    directory: Path
    study: Study
    manifest: Mapping[str, Any]
    tasks: Mapping[str, TaskFacts]
    networks: Mapping[Setting, NetworkFacts]

    def __repr__(self) -> str:
        try:
            grid = self._grid
            count = f"{len(grid.shown)} of {len(grid.runs)} runs"
        except NatalError:  # whoever prints it gets to know when the runs are asked for
            count = "runs that cannot be read any more"
        return f"<Results of study {self.study.name!r} in {str(self.directory)!r}: {count}>"

    @cached_property
    def _grid(self) -> _Grid:
        """The grid's rows, and the trainings behind them as columns."""
        with Store.read(self.directory) as store, _readable(store, self.manifest), store.reading():
            if store.manifest("study_hash").get("study_hash") != self.manifest.get("study_hash"):
                raise self._written_to()
            runs, keys = store.runs()
            study = self.study
            asked = len(study.settings()) * len(study.strategies) * len(study.sparsities) * len(study.seeds)
            if len(runs) != asked:
                raise NatalError(
                    f"{self.directory / FILE} is damaged: of {plural(asked, 'row')} of the grid {len(runs)} are there; "
                    "restore the file, or run the same study again"
                )
            tried, table = store.tried(), store.table()
            makers = {number: store.maker(number) for number in np.unique(table["maker"]).tolist()}
            values = store.deciding(self.study.training.decide) if tried else {}
            # a grid shows a row's first rate until the search is over, and a command that was stopped leaves it so
            if tried:
                picked = chosen(runs, tried, values)
                keys = [picked.get(i, "") if i in tried else key for i, key in enumerate(keys)]
            place = {key: i for i, key in enumerate(table["key"].tolist())}
            at = np.fromiter((place.get(key, -1) for key in keys), np.int64, len(keys))
            return _Grid(runs, at, tried, table, place, values, makers)

    def _columns(self, runs: Sequence[Run], at: NDArray[np.int64]) -> dict[str, Any]:
        with _readable(None, self.manifest):
            grid = self._grid
            return columns(runs, grid.table, at, self.tasks, self.networks, self.study.training, grid.makers)

    def _rows(self, runs: Sequence[Run], at: NDArray[np.int64]) -> Runs:
        found = self._columns(runs, at)
        keys = found["key"]

        said = InParts[tuple[str, str]](
            len(runs), lambda places: self._read(Store.details, [keys[i] for i in places])
        )
        path = self.directory / FILE

        @lru_cache(1000)
        def proofs(text: str) -> Mapping[str, Any]:  # most trainings of a cell prove the same
            return mapping(path, text)

        return rows(found, lambda i: mapping(path, said[i][0]), lambda i: proofs(said[i][1]))

    def _read(self, what: Callable[[Store, list[int]], Mapping[str, Any]], keys: list[str]) -> list[Any]:
        """Return what lies apart from the rows of these trainings."""
        numbers = self._grid.table["id"]
        with Store.read(self.directory) as store:
            stored = what(store, [int(numbers[self._grid.place[key]]) for key in dict.fromkeys(keys)])
        if not stored.keys() >= set(keys):
            raise self._written_to()
        return [stored[key] for key in keys]

    def _written_to(self) -> NatalError:
        return NatalError(f"{self.directory} was written to since it was read; read it again")

    @cached_property
    def runs(self) -> Runs:
        """A row per grid row that has been trained, in the study's order."""
        grid = self._grid
        there = grid.at >= 0
        return self._rows(grid.shown, grid.at[there])

    @cached_property
    def tried(self) -> list[Attempt]:
        """Where learning rates are searched, a run's trainings at each rate, chosen or not."""
        grid = self._grid
        pairs = [
            (grid.runs[i], key)
            for i, keys in grid.tried.items()
            for key in keys.values()
            if key in grid.place
        ]
        at = np.array([grid.place[key] for _, key in pairs], np.int64)
        made = self._rows([run for run, _ in pairs], at)
        return [Attempt(row, grid.values[key]) for row, (_, key) in zip(made, pairs, strict=True)]

    @cached_property
    def missing(self) -> list[Run]:
        """Grid rows without a training yet."""
        grid = self._grid
        return [grid.runs[i] for i in np.flatnonzero(grid.at < 0).tolist()]

    @cached_property
    def curves(self) -> Sequence[Curve]:
        """Beside each run of ``runs`` its curves, a number an evaluation; a few hundred at a time are in memory.

        Raises NatalError if the store has lost them since the runs were read.
        """

        return InParts(len(self.runs), self.curves_of)

    def curves_of(self, places: Sequence[int]) -> list[Curve]:
        """Return the curves of some of ``runs``, by place; raises NatalError like ``curves``."""
        runs = [self.runs[i] for i in places]
        stored = self._read(Store.curves, [run.key for run in runs])
        return [curve(run, line) for run, line in zip(runs, stored, strict=True)]

    def count(self) -> tuple[int, int]:
        """Return how many rows show a training, and how many of those diverged, without reading them."""
        with Store.read(self.directory) as store:
            return store.count()

    @cached_property
    def failed(self) -> list[tuple[Run, Failure]]:
        """Of ``missing`` those whose training failed, and why; `natal run` tries them again."""
        with Store.read(self.directory) as store:
            return store.failed()

    @cached_property
    def lines(self) -> list[Line]:
        """The lines between trainings that share a beginning, where the study measures connectivity."""
        return list(lines(self.runs, self.manifest))

    def connectivity(self) -> pd.DataFrame:
        """Return ``lines`` as a pandas DataFrame: a row per run, clock and order, with the error barrier."""
        import pandas

        return pandas.DataFrame(
            {**line.row.run._asdict(), "clock": line.clock, "order": line.order, "barrier": line.barrier}
            for line in self.lines
        )

    def state(self, run: Run | Row, clock: str = "end") -> State:
        """Return the state of a run's training at a clock that the study keeps; see `natal.lab.state.State`.

        Raises NatalError if it was not kept, or if the lab is not installed.
        """
        from natal.lab import restore

        row = self._row(run)
        return restore.state(self.study, self.directory, row.run, row.key, clock)

    def mask(self, run: Run | Row) -> Mask:
        """Return the mask that a run's training ended with; see `natal.Mask`. Raises NatalError like `state`."""
        from natal.lab import restore

        row = self._row(run)
        return restore.mask(self.study, self.directory, row.run, row.key, self._maker(row))

    def network(self, run: Run | Row, clock: str = "end") -> Module:
        """Return a run's network at a clock that the study keeps, a plain module; raises NatalError like `state`."""
        from natal.lab import restore

        row = self._row(run)
        return restore.network(self.study, self.directory, row.run, row.key, self._maker(row), clock)

    def damaged_states(self) -> Iterator[str]:
        """Yield what is wrong with the states and masks that are kept, where the lab is installed to read them."""
        if any(States(self.directory).there()) and util.find_spec("torch"):
            from natal.lab import restore

            yield from restore.damaged(self.directory)

    def _maker(self, row: Row) -> Maker:
        return next(maker for maker in self._grid.makers.values() if str(maker) == row.made_by)

    def _row(self, run: Run | Row) -> Row:
        wanted = run.run if isinstance(run, Row) else run
        if not isinstance(wanted, Run):
            raise NatalError(f"run must be a row of results.runs or a natal.Run, got {type(run).__name__}")
        found = next((row for row in self.runs if row.run == wanted), None)
        if found is None:
            raise NatalError(
                f"{describe(wanted)} is no trained run of {str(self.directory)!r}; results.runs lists them"
            )
        return found

    @cached_property
    def digest(self) -> str:
        """A 16-digit hash of the study and its runs' results; figures carry it to show their origin."""
        made = hashlib.sha256(f"[{json.dumps(self.study.digest)}, [".encode())
        fields = (*identity(self.study), *_DIGESTED)
        for i, row in enumerate(self.runs):
            made.update((", " * (i > 0) + json.dumps([getattr(row, name) for name in fields])).encode())
        made.update(b"]]")
        return made.hexdigest()[:16]

    def plot(self, kind: Kind = "metric", width: float | None = None, axis: Axis | None = None) -> Picture:
        """Return the ``metric`` or ``epochs`` against sparsity, or the ``ranking``, as a notebook shows it.

        ``width`` in inches; ``axis``: ``sparsity``, or ``density`` on a logarithmic scale; see `natal.reading.figures`.
        """
        from natal.reading import figures

        return figures.Picture(figures.figure(self, kind, width or figures.WIDTH, axis))

    def _repr_html_(self) -> str:
        return html(repr(self)[1:-1], self._table())

    def _table(self) -> Rows:
        yield "study", on_one_line(self.study.description) or self.study.name
        yield "runs", f"{len(self.runs)} of {len(self.runs) + len(self.missing)}"
        if self.failed:
            yield "failed", f"{plural(len(self.failed), 'run')}, the first: {self.failed[0][1].reason}"
        yield "strategies", ", ".join(recipe.name for recipe in self.study.strategies)
        for setting in self.study.settings():
            dense = stats.dense_baseline([run for run in self.runs if run.setting == setting], setting)
            if dense and dense.test.n:
                yield (
                    self.words(setting),
                    f"dense {dense.metric_name} {dense.test.mean:.4f}, n = {dense.test.n}",
                )
        if (self.directory / "report.html").is_file():
            yield "report", self.directory / "report.html"

    def words(self, setting: Setting) -> str:
        """Return a setting's name: the task's, and the network's if the study has several."""
        return setting.task if len(self.study.networks) == 1 else f"{setting.task} / {setting.network}"

    def frame(self) -> pd.DataFrame:
        """Return ``runs`` as a pandas DataFrame, one ``density_LAYER`` column per prunable layer.

        The mask doctor's ``diagnosis`` is left out but for the columns ``effective_sparsity``,
        ``collapses_at`` and ``severity``.
        """
        import pandas

        grid = self._grid
        found = self._columns(grid.shown, grid.at[grid.at >= 0])
        layers = _by_layer(found.pop("densities"))
        for name in ("epochs_trained", "best_epoch"):
            if (found[name] == np.floor(found[name])).all():
                found[name] = found[name].astype(np.int64)
        order = [field.name for field in fields(Row) if field.name in found]
        return pandas.DataFrame({**{name: found[name] for name in order}, **layers})

    def curves_frame(self, places: Sequence[int] | None = None) -> pd.DataFrame:
        """Return ``curves`` as a long pandas DataFrame: a row per run and evaluation, ``nan`` for unknown numbers.

        ``places``: of which of ``runs``, by default all.
        """
        import pandas

        parts = [
            pandas.DataFrame(
                {
                    name: values if not isinstance(values, np.ndarray) or len(values) else math.nan
                    for name, values in vars(curve).items()
                },
                index=range(len(curve.step)),
            )
            for curve in (self.curves if places is None else self.curves_of(places))
        ]
        empty = pandas.DataFrame(columns=[field.name for field in fields(Curve)])
        return pandas.concat(parts, ignore_index=True) if parts else empty


class _Grid(NamedTuple):
    """A study's grid as the store has it: each row, and which training of ``table`` it shows, -1 for none yet."""

    runs: list[Run]
    at: NDArray[np.int64]
    tried: Mapping[int, Mapping[float, str]]
    table: Table
    place: Mapping[str, int]
    values: Mapping[str, float]
    makers: Mapping[int, Maker]

    @property
    def shown(self) -> list[Run]:
        """The rows that have a training."""
        if (self.at >= 0).all():
            return self.runs
        return [run for run, at in zip(self.runs, self.at.tolist(), strict=True) if at >= 0]


def _by_layer(texts: Sequence[str]) -> dict[str, Any]:
    """Return each layer's density as a column, from densities as JSON; NaN where a network has no such layer."""
    known = {text: json.loads(text) for text in dict.fromkeys(texts)}
    names = dict.fromkeys(name for densities in known.values() for name in densities)
    return {
        f"density_{name}": np.array([known[text].get(name, math.nan) for text in texts], np.float64)
        for name in names
    }


_DIGESTED = (
    "status",
    "nonzero_params",
    "train_metric",
    "val_metric",
    "test_metric",
    "train_loss",
    "epochs_trained",
    "best_epoch",
)


def identity(study: Study) -> tuple[str, ...]:
    """Return the fields that say which run of a study is meant: the published ones, and the network's name.

    The published files know one network, the paper's, and so do not name it.
    """
    return IDENTITY if study.network_names == (PAPERS,) else (*IDENTITY, "network")


def load(directory: str | Path = "results") -> Results:
    """Read the study in ``directory``, finished or not.

    Raises NatalError if there is none, or another version of natal has written it in a way this one cannot read.
    """
    directory = Path(directory)
    with Store.read(directory) as store:
        manifest = store.manifest()
        with _readable(store, manifest):
            study = store.study()
            tasks = {name: TaskFacts(**facts) for name, facts in manifest["tasks"].items()}
            networks = {facts.setting: facts for facts in _networks(study, tasks, manifest)}
            return Results(directory, study, manifest, tasks, networks)


@contextmanager
def _readable(store: Store | None, manifest: Mapping[str, Any]) -> Iterator[None]:
    """Turn what does not read into one line: a field too many or too few, a word for a number."""
    try:
        yield
    except NatalError:
        raise
    except (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError) as error:
        place = store.path if store else FILE
        raise NatalError(
            f"{place} was written by natal {manifest.get('natal_version')} and this natal cannot read it "
            f"({(str(error).splitlines() or [''])[0]}); read it with that version, or run the study again with --fresh"
        ) from None


def _networks(
    study: Study, tasks: Mapping[str, TaskFacts], manifest: Mapping[str, Any]
) -> Iterator[NetworkFacts]:
    """Yield what is known of each network; natal 0.2 trained the paper's alone, and wrote nothing down of it."""
    for facts in manifest.get("networks", ()):
        layers, whole = (
            {name: tuple(shape) for name, shape in facts.get(kind, {}).items()}
            for kind in ("layers", "whole")
        )
        yield NetworkFacts(**{**facts, "layers": layers, "whole": whole})
    if "networks" in manifest:
        return
    hidden, epochs, engine = study.hidden, study.training.epochs, str(manifest.get("engine"))
    if hidden is None or epochs is None:
        raise ValueError("the manifest says nothing of its networks")
    for name, task in tasks.items():
        layers = {"hidden": (hidden, task.inputs), "output": (task.outputs, hidden)}
        weights = hidden * (task.inputs + task.outputs)
        parameters = weights + hidden + task.outputs
        yield NetworkFacts(name, PAPERS, engine, parameters, layers, weights, epochs, steps_per_epoch=1)


# -- the published format --------------------------------------------------------------------------------


def published_objects(results: Results) -> list[PublishedRun]:
    """Return the runs as the published program's run objects; a diverged run's metrics are None.

    ``actual_sparsity`` = 1 - nonzero_params / total_params, biases included, as that program counted.
    """
    return [
        {
            **{name: run[name] for name in identity(results.study)},
            "total_params": run.total_params,
            "nonzero_params": run.nonzero_params,
            "actual_sparsity": 1 - run.nonzero_params / run.total_params,
            **{f"{part}_{run.field}": run[f"{part}_metric"] for part in ("train", "val", "test")},
            "train_loss": run.train_loss,
            "epochs_trained": run.epochs_trained,
            "best_epoch": run.best_epoch,
        }
        for run in results.runs
    ]


def published(results: Results) -> dict[str, Any]:
    """Return the content of ``results.json``: the published program's metadata and run objects.

    What that format has no field for lies under one more metadata key, ``natal``.
    """
    study, manifest, tasks = results.study, results.manifest, results.tasks
    modular, regression = (tasks.get(n) if n in study.task_names else None for n in ("modular", "regression"))
    metadata = {
        "num_tasks": len(study.task_names),
        "num_strategies": len(study.strategies),
        "num_sparsity_levels": len(study.sparsities),
        "num_seeds": len(study.seeds),
        "total_runs": len(study.runs()),
        "elapsed_seconds": manifest.get("elapsed_seconds"),
        "hidden_dim": study.hidden,
        "max_epochs": study.training.epochs,
        "validation_fraction": study.training.validation_fraction,
        "modular_mod": modular.outputs if modular else None,
        "regression_n": regression.train_rows + regression.test_rows if regression else None,
        "regression_d": regression.inputs if regression else None,
        **{
            name: manifest.get(name)
            for name in ("python_version", "torch_version", "numpy_version", "platform", "device")
        },
        "deterministic_algorithms_enabled": manifest.get("deterministic"),
        "seed_values": list(study.seeds),
        "sparsity_values": list(study.sparsities),
        "task_values": list(study.task_names),
        "strategy_values": [recipe.name for recipe in study.strategies],
    }
    extra = {
        name: value for name, value in sorted(manifest.items()) if name not in {*metadata, "deterministic"}
    }
    extra["missing_runs"] = len(results.missing)
    return {"metadata": {**metadata, "natal": extra}, "results": published_objects(results)}


def read_published(path: str | Path) -> list[PublishedRun]:
    """Return the run objects of ``path``: a file in the published format, or a results directory with a run
    store.

    Raises NatalError if it is neither.
    """
    path = Path(path)
    if (path / FILE).is_file():
        return published_objects(load(path))
    try:
        objects = json.loads((path / "results.json" if path.is_dir() else path).read_text("utf-8"))["results"]
        if all(_is_run(run) for run in objects):
            return list(objects)
    except OSError as error:
        raise NatalError(
            f"{error.filename}: {error.strerror}; name a results directory or a results.json"
        ) from None
    except (ValueError, KeyError, TypeError, RecursionError):
        pass
    raise NatalError(
        f'{path} is not in the published format: it needs {{"results": [objects with {", ".join(IDENTITY)}]}}, names '
        "being printable text, a sparsity a number and a seed a whole one"
    )


def _is_run(run: Any) -> bool:
    """Whether something is a run of the published format: what identifies it makes sense, whatever else it has."""
    names = [run["task"], run["strategy"], run.get("network", PAPERS)]
    return (
        all(isinstance(name, str) and name.isprintable() for name in (*names, *run))
        and type(run["sparsity"]) in (int, float)
        and math.isfinite(run["sparsity"])
        and type(run["seed"]) is int
    )


# -- two programs, one study -----------------------------------------------------------------------------


class Difference(NamedTuple):
    """How far one field of two programs' runs lies apart.

    ``largest``: absolute difference, in the field's unit; infinite where only one side has a number.
    ``where``: the run that shows it, None if no run differs. ``differing``: runs that differ at all.
    ``mean``: ours minus theirs, over all runs that have the field.
    """

    largest: float
    where: Run | None
    differing: int
    mean: float


@dataclass(frozen=True)
class Comparison:
    """Two programs' runs of one study beside each other, matched on task, strategy, sparsity, seed and network.

    ``matched``: runs both have. ``only_ours``, ``only_theirs``: runs one side lacks, under our strategies'
    names. ``twice_ours``, ``twice_theirs``: runs that a side has more than once, of which the last is compared.
    ``fields``: what the matched runs differ by, for every field that any of both sides' objects have.
    """

    matched: int
    only_ours: list[Run]
    only_theirs: list[Run]
    twice_ours: list[Run]
    twice_theirs: list[Run]
    fields: dict[str, Difference]

    @property
    def identical(self) -> bool:
        """Whether both sides have the same runs, each once, equal to the last bit in every field that both know."""
        return bool(self.matched) and not (
            self.only_ours
            or self.only_theirs
            or self.twice_ours
            or self.twice_theirs
            or any(d.differing for d in self.fields.values())
        )

    def lines(self) -> list[str]:
        """Return the comparison as lines ready to print."""
        return list(self._lines())

    def _lines(self) -> Iterator[str]:
        yield f"{plural(self.matched, 'run')} compared, matched on {', '.join(IDENTITY)}"
        for whose, runs in (("ours", self.only_ours), ("theirs", self.only_theirs)):
            if runs:
                yield f"{plural(len(runs), 'run')} only in {whose}, the first {describe(runs[0])}"
        for whose, runs in (("ours", self.twice_ours), ("theirs", self.twice_theirs)):
            if runs:
                yield f"{plural(len(runs), 'run')} more than once in {whose}, the first {describe(runs[0])}"
        width = max(map(len, self.fields), default=0)
        for name, difference in self.fields.items():
            if difference.where is None:
                yield f"{name:<{width}}  identical to the last bit"
            else:
                yield (
                    f"{name:<{width}}  differs in {plural(difference.differing, 'run')}, "
                    f"by {difference.mean:+.2g} on average, by at most {difference.largest:.3g} "
                    f"({describe(difference.where)})"
                )
        if self.matched and not any(d.differing for d in self.fields.values()):
            yield f"all {plural(self.matched, 'matched run')} identical to the last bit"


def compare(
    ours: Sequence[PublishedRun], theirs: Sequence[PublishedRun], rename: Mapping[str, str] | None = None
) -> Comparison:
    """Compare two lists of run objects (see `published_objects`) field by field.

    A field that one side never has is not compared; where only some of its objects lack it, those differ.
    ``rename``: our name of a strategy that the other program calls differently, by their name
    (``{"random": "random-from-init-stream"}``). Raises NatalError if a name in it belongs to no run.
    """
    rename = rename or {}
    for side, runs, names in (("theirs", theirs, rename), ("ours", ours, rename.values())):
        known = {run["strategy"] for run in runs}
        for name in names:
            if name not in known:
                raise NatalError(f"no run of {side} has strategy {name!r}; known: {', '.join(sorted(known))}")
    theirs = [{**run, "strategy": rename.get(run["strategy"], run["strategy"])} for run in theirs]
    a, b = ({_identity(run): run for run in side} for side in (ours, theirs))
    shared = [which for which in a if which in b]
    known_to_both = set().union(*theirs) - {*IDENTITY, "network"}
    names_in_order = dict.fromkeys(name for run in ours for name in run if name in known_to_both)
    fields = {
        name: _difference({w: _apart(a[w].get(name, _ABSENT), b[w].get(name, _ABSENT)) for w in shared})
        for name in (names_in_order if shared else ())
    }
    return Comparison(
        len(shared),
        [w for w in a if w not in b],
        [w for w in b if w not in a],
        _twice(ours),
        _twice(theirs),
        {name: difference for name, difference in fields.items() if difference is not None},
    )


_ABSENT = object()
"""What a run has in a field that it lacks; not null, which is a value."""


def _twice(runs: Sequence[PublishedRun]) -> list[Run]:
    return [run for run, count in Counter(map(_identity, runs)).items() if count > 1]


def _identity(run: Mapping[str, Any]) -> Run:
    where = run["task"], run["strategy"], float(run["sparsity"]), int(run["seed"])
    return Run(*where, run.get("network", PAPERS))


def _apart(x: Any, y: Any) -> float | None:
    """Return x - y; infinite where only one of them is a number, None where both runs lack the field."""
    if x is y is _ABSENT:
        return None
    if x == y:
        return 0.0
    if isinstance(x, int | float) and isinstance(y, int | float):
        return math.inf if math.isnan(x - y) else x - y
    return math.inf


def _difference(values: Mapping[Run, float | None]) -> Difference | None:
    """Sum up one field's differences; None where no matched run has the field."""
    known = {run: value for run, value in values.items() if value is not None}
    if not known:
        return None
    worst = max(known, key=lambda run: abs(known[run]))
    return Difference(
        largest=abs(known[worst]),
        where=worst if known[worst] else None,
        differing=sum(value != 0 for value in known.values()),
        mean=sum(known.values()) / len(known),
    )
