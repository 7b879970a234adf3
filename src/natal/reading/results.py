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
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from natal.errors import NatalError
from natal.notebook import Rows, html
from natal.reading import stats
from natal.reading.connectivity import Line, lines
from natal.reading.rows import Attempt, Curve, Row, curve, row
from natal.store import FILE, Failure, NetworkFacts, Store, TaskFacts, chosen, deciding
from natal.study import PAPERS, Run, Setting, Study
from natal.wording import describe, plural

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
    """One study's runs as typed rows.

    ``tasks`` and ``networks``: facts of each task by name, and of each task with each network. ``runs``: a row per
    grid row that has been trained, in the study's order. ``tried``: where learning rates are searched, a run's
    trainings at each rate, chosen or not. ``missing``: grid rows without a training yet.
    """

    directory: Path
    study: Study
    manifest: Mapping[str, Any]
    tasks: Mapping[str, TaskFacts]
    networks: Mapping[Setting, NetworkFacts]
    runs: list[Row]
    tried: list[Attempt]
    missing: list[Run]

    def __repr__(self) -> str:
        return (
            f"<Results of study {self.study.name!r} in {str(self.directory)!r}: "
            f"{len(self.runs)} of {len(self.runs) + len(self.missing)} runs>"
        )

    @cached_property
    def curves(self) -> list[Curve]:
        """Beside each run of ``runs`` its curves, a number an evaluation; read from the store when first asked for.

        Raises NatalError if the store has lost them since the runs were read.
        """
        with Store.read(self.directory) as store:
            try:
                stored = store.curves()
            except ValueError as error:
                raise NatalError(
                    f"{store.path}: a curve is damaged ({error}); run the study with --fresh"
                ) from None
        if any(run.key not in stored for run in self.runs):
            raise NatalError(f"{self.directory} was written to since it was read; read it again")
        return [curve(run, stored[run.key]) for run in self.runs]

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
        return restore.mask(self.study, self.directory, row.run, row.key)

    def network(self, run: Run | Row, clock: str = "end") -> Module:
        """Return a run's network at a clock that the study keeps, a plain module; raises NatalError like `state`."""
        from natal.lab import restore

        row = self._row(run)
        return restore.network(self.study, self.directory, row.run, row.key, clock)

    def _row(self, run: Run | Row) -> Row:
        wanted = run.run if isinstance(run, Row) else run
        found = next((row for row in self.runs if row.run == wanted), None)
        if found is None:
            raise NatalError(
                f"{describe(wanted)} is no trained run of {str(self.directory)!r}; results.runs lists them"
            )
        return found

    @property
    def digest(self) -> str:
        """A 16-digit hash of the study and its runs' results; figures carry it to show their origin."""
        shown = [[row[name] for name in (*identity(self.study), *_DIGESTED)] for row in self.runs]
        return hashlib.sha256(json.dumps([self.study.digest, shown]).encode()).hexdigest()[:16]

    def plot(self, kind: Kind = "metric", width: float | None = None, axis: Axis | None = None) -> Picture:
        """Return the ``metric`` or ``epochs`` against sparsity, or the ``ranking``, as a notebook shows it.

        ``width`` in inches; ``axis``: ``sparsity``, or ``density`` on a logarithmic scale; see `natal.reading.figures`.
        """
        from natal.reading import figures

        return figures.Picture(figures.figure(self, kind, width or figures.WIDTH, axis))

    def _repr_html_(self) -> str:
        return html(repr(self)[1:-1], self._table())

    def _table(self) -> Rows:
        yield "study", self.study.description or self.study.name
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

        return pandas.DataFrame([row.flat() for row in self.runs])

    def curves_frame(self) -> pd.DataFrame:
        """Return ``curves`` as a long pandas DataFrame: a row per run and evaluation, ``nan`` for unknown numbers."""
        import pandas

        parts = [
            pandas.DataFrame(
                {
                    name: values if not isinstance(values, np.ndarray) or len(values) else math.nan
                    for name, values in vars(curve).items()
                },
                index=range(len(curve.step)),
            )
            for curve in self.curves
        ]
        empty = pandas.DataFrame(columns=[field.name for field in fields(Curve)])
        return pandas.concat(parts, ignore_index=True) if parts else empty


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
        try:
            return _results(directory, store, manifest)
        except NatalError:
            raise
        except (KeyError, TypeError, ValueError) as error:  # a field too many or too few, or not JSON
            raise NatalError(
                f"{store.path} was written by natal {manifest.get('natal_version')} and this natal cannot read it "
                f"({str(error).splitlines()[0]}); read it with that version, or run the study again with --fresh"
            ) from None


def _results(directory: Path, store: Store, manifest: Mapping[str, Any]) -> Results:
    study, grid, tried = store.study(), store.grid(), store.tried()
    tasks = {name: TaskFacts(**facts) for name, facts in manifest["tasks"].items()}
    networks = {facts.setting: facts for facts in _networks(study, tasks, manifest)}
    outcomes = store.outcomes(curves=bool(tried))
    # a grid shows a row's first rate until the search is over, and a command that was stopped leaves it so
    shown = dict(enumerate(key for _, key in grid)) | dict.fromkeys(tried, "")
    shown |= chosen(grid, tried, outcomes, study.training.decide)

    def read(run: Run, key: str) -> Row:
        return row(run, outcomes[key], tasks[run.task], networks[run.setting], study.training)

    return Results(
        directory,
        study,
        manifest,
        tasks,
        networks,
        runs=[read(run, shown[i]) for i, (run, _) in enumerate(grid) if shown[i] in outcomes],
        tried=[
            Attempt(read(grid[i][0], key), deciding(outcomes[key], study.training.decide))
            for i, keys in tried.items()
            for key in keys.values()
            if key in outcomes
        ],
        missing=[run for i, (run, _) in enumerate(grid) if shown[i] not in outcomes],
    )


def _networks(
    study: Study, tasks: Mapping[str, TaskFacts], manifest: Mapping[str, Any]
) -> Iterator[NetworkFacts]:
    """Yield what is known of each network; natal 0.2 trained the paper's alone, and wrote nothing down of it."""
    for facts in manifest.get("networks", ()):
        layers = {layer: tuple(shape) for layer, shape in facts["layers"].items()}
        yield NetworkFacts(**{**facts, "layers": layers})
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
        if all(set(IDENTITY) <= set(run) for run in objects):
            return list(objects)
    except OSError as error:
        raise NatalError(
            f"{error.filename}: {error.strerror}; name a results directory or a results.json"
        ) from None
    except (ValueError, KeyError, TypeError):
        pass
    raise NatalError(
        f'{path} is not in the published format: it needs {{"results": [objects with {", ".join(IDENTITY)}]}}'
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
