"""A results directory, read back: run rows, curves, the published result format, comparison with another
program.

``load("results")`` gives everything a question about a study needs, from its run store alone. No torch here:
a finished study can be read on a machine that could not have run it.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from natal.errors import NatalError
from natal.store import FILE, Outcome, Store
from natal.study import Run, Study
from natal.wording import describe

if TYPE_CHECKING:
    import pandas as pd

Row = dict[str, Any]
IDENTITY = ("task", "strategy", "sparsity", "seed")
"""The fields that say which row of a grid an object belongs to."""


@dataclass(frozen=True)
class Results:
    """One study's runs as plain rows.

    ``runs``: a row per grid row that has been trained, in the study's order, with the fields of `row`.
    ``curves``: beside each run its ``train_loss`` and ``val_metric``, one number per epoch. ``missing``: grid
    rows without a training yet.
    """

    directory: Path
    study: Study
    manifest: Mapping[str, Any]
    runs: list[Row]
    curves: list[Row] = field(repr=False)
    missing: list[Run]

    @property
    def tasks(self) -> dict[str, dict[str, Any]]:
        """Facts of each task by name: metric, chance level, numbers of rows, inputs and outputs."""
        return dict(self.manifest.get("tasks", {}))

    @property
    def digest(self) -> str:
        """A 16-digit hash of the study and its runs' results; figures carry it to show their origin."""
        shown = [[row[name] for name in (*IDENTITY, *_DIGESTED)] for row in self.runs]
        return hashlib.sha256(json.dumps([self.study.digest, shown]).encode()).hexdigest()[:16]

    def frame(self) -> pd.DataFrame:
        """Return ``runs`` as a pandas DataFrame, one ``density_LAYER`` column per prunable layer.

        The mask doctor's ``diagnosis`` is left out but for the columns ``effective_sparsity``,
        ``collapses_at`` and ``severity``.

        Raises NatalError if pandas is not installed.
        """
        rows = [
            {
                **{k: v for k, v in row.items() if k not in ("densities", "diagnosis")},
                **{f"density_{layer}": density for layer, density in row["densities"].items()},
            }
            for row in self.runs
        ]
        return _pandas().DataFrame(rows)

    def curves_frame(self) -> pd.DataFrame:
        """Return ``curves`` as a long pandas DataFrame: one row per run and epoch, epochs counted from 1.

        Raises NatalError if pandas is not installed.
        """
        pandas = _pandas()
        parts = [
            pandas.DataFrame(
                {
                    **{name: curve[name] for name in IDENTITY},
                    "epoch": range(1, len(curve["train_loss"]) + 1),
                    "train_loss": curve["train_loss"],
                    "val_metric": curve["val_metric"],
                }
            )
            for curve in self.curves
        ]
        empty = pandas.DataFrame(columns=[*IDENTITY, "epoch", "train_loss", "val_metric"])
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


def load(directory: str | Path = "results") -> Results:
    """Read the study in ``directory``, finished or not.

    Raises NatalError if there is none, or another version of natal has written it in a way this one cannot read.
    """
    directory = Path(directory)
    with Store.read(directory) as store:
        manifest = store.manifest()
        try:
            study, grid, outcomes = store.study(), store.grid(), store.outcomes()
        except NatalError:
            raise
        except (TypeError, ValueError) as error:  # a field too many or too few, or not JSON
            raise NatalError(
                f"{store.path} was written by natal {manifest.get('natal_version')} and this natal cannot read it "
                f"({str(error).splitlines()[0]}); read it with that version, or run the study again with --fresh"
            ) from None
    facts = manifest.get("tasks", {})
    done = [(run, outcomes[key]) for run, key in grid if key in outcomes]
    return Results(
        directory,
        study,
        manifest,
        runs=[row(run, outcome, facts.get(run.task, {})) for run, outcome in done],
        curves=[{**run._asdict(), **o.curves} for run, o in done],
        missing=[run for run, key in grid if key not in outcomes],
    )


def row(run: Run, outcome: Outcome, task: Mapping[str, Any]) -> Row:
    """Return one run as a plain row; ``task``: the manifest's facts of its task.

    ``sparsity`` is the requested one and ``realised_sparsity`` = 1 - kept / prunable the one its mask has,
    biases not counted; ``effective_sparsity`` counts kept weights on no path from input to output as removed,
    too. ``diagnosis``: all that the mask doctor said before training (see `natal.store.Outcome`), ``{}`` for
    a dense run; ``severity`` is its gravest finding's: fatal, warning, note or None. ``metric``: what
    ``train_metric``, ``val_metric`` and ``test_metric`` measure (``accuracy``), and ``field`` its short name
    (``acc``); a metric that is not a finite number is None.
    """
    return {
        **run._asdict(),
        "status": outcome.status,
        "total_params": outcome.total_params,
        "nonzero_params": outcome.nonzero_params,
        "prunable": outcome.prunable,
        "kept": outcome.kept,
        "realised_sparsity": 1 - outcome.kept / outcome.prunable,
        "densities": dict(outcome.densities),
        "metric": task.get("metric", "metric"),
        "field": task.get("field", "metric"),
        "train_metric": _finite(outcome.train_metric),
        "val_metric": _finite(outcome.val_metric),
        "test_metric": _finite(outcome.test_metric),
        "train_loss": _finite(outcome.final_loss),
        "epochs_trained": outcome.epochs_trained,
        "best_epoch": outcome.best_epoch,
        "constant": outcome.constant,
        "effective_sparsity": outcome.diagnosis.get("effective_sparsity"),
        "collapses_at": outcome.diagnosis.get("collapses_at"),
        "severity": next((severity for severity, _ in outcome.diagnosis.get("findings", ())), None),
        "diagnosis": dict(outcome.diagnosis),
        "deterministic": outcome.deterministic,
        "seconds": outcome.seconds,
        "made_by": str(outcome.made_by),
        "key": outcome.key,
    }


# -- the published format --------------------------------------------------------------------------------


def published_objects(results: Results) -> list[Row]:
    """Return the runs as the published program's run objects; a diverged run's metrics are None.

    ``actual_sparsity`` = 1 - nonzero_params / total_params, biases included, as that program counted.
    """
    return [
        {
            **{name: run[name] for name in IDENTITY},
            "total_params": run["total_params"],
            "nonzero_params": run["nonzero_params"],
            "actual_sparsity": 1 - run["nonzero_params"] / run["total_params"],
            **{f"{part}_{run['field']}": run[f"{part}_metric"] for part in ("train", "val", "test")},
            "train_loss": run["train_loss"],
            "epochs_trained": run["epochs_trained"],
            "best_epoch": run["best_epoch"],
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
        "modular_mod": modular["outputs"] if modular else None,
        "regression_n": regression["train_rows"] + regression["test_rows"] if regression else None,
        "regression_d": regression["inputs"] if regression else None,
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


def read_published(path: str | Path) -> list[Row]:
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
    """Two programs' runs of one study beside each other, matched on task, strategy, sparsity and seed.

    ``matched``: runs both have. ``only_ours``, ``only_theirs``: runs one side lacks, under our strategies'
    names. ``fields``: what the matched runs differ by, for every field that both sides' objects have.
    """

    matched: int
    only_ours: list[Run]
    only_theirs: list[Run]
    fields: dict[str, Difference]

    @property
    def identical(self) -> bool:
        """Whether both sides have the same runs, equal to the last bit in every field that both know."""
        return (
            bool(self.matched)
            and not self.only_ours
            and not self.only_theirs
            and not any(d.differing for d in self.fields.values())
        )

    def lines(self) -> list[str]:
        """Return the comparison as lines ready to print."""
        return list(self._lines())

    def _lines(self) -> Iterator[str]:
        yield f"{self.matched} runs compared, matched on {', '.join(IDENTITY)}"
        for whose, runs in (("ours", self.only_ours), ("theirs", self.only_theirs)):
            if runs:
                yield f"{len(runs)} runs only in {whose}, the first {describe(runs[0])}"
        width = max(map(len, self.fields), default=0)
        for name, difference in self.fields.items():
            if difference.where is None:
                yield f"{name:<{width}}  identical to the last bit"
            else:
                yield (
                    f"{name:<{width}}  differs in {difference.differing} runs, "
                    f"by {difference.mean:+.2g} on average, by at most {difference.largest:.3g} "
                    f"({describe(difference.where)})"
                )
        if self.matched and not any(d.differing for d in self.fields.values()):
            yield f"all {self.matched} matched runs are identical to the last bit"


def compare(
    ours: Sequence[Row], theirs: Sequence[Row], rename: Mapping[str, str] | None = None
) -> Comparison:
    """Compare two lists of run objects (see `published_objects`) field by field.

    ``rename``: our name of a strategy that the other program calls differently, by their name
    (``{"random": "random-from-init-stream"}``). Raises NatalError if a name in it belongs to no run.
    """
    rename = rename or {}
    for side, runs, names in (("theirs", theirs, rename), ("ours", ours, rename.values())):
        known = {run["strategy"] for run in runs}
        for name in names:
            if name not in known:
                raise NatalError(f"no run of {side} has strategy {name!r}; known: {', '.join(sorted(known))}")
    a = {_identity(run): run for run in ours}
    b = {_identity({**run, "strategy": rename.get(run["strategy"], run["strategy"])}): run for run in theirs}
    shared = [which for which in a if which in b]
    apart: dict[str, dict[Run, float]] = {}
    for which in shared:
        for name in a[which]:
            if name in b[which] and name not in IDENTITY:
                apart.setdefault(name, {})[which] = _apart(a[which][name], b[which][name])
    fields = {name: _difference(values) for name, values in apart.items()}
    return Comparison(len(shared), [w for w in a if w not in b], [w for w in b if w not in a], fields)


def _identity(run: Mapping[str, Any]) -> Run:
    return Run(run["task"], run["strategy"], float(run["sparsity"]), int(run["seed"]))


def _apart(x: Any, y: Any) -> float:
    """Return x - y; infinite where only one of them is a number."""
    if x == y:
        return 0.0
    if isinstance(x, int | float) and isinstance(y, int | float):
        return math.inf if math.isnan(x - y) else x - y
    return math.inf


def _difference(values: Mapping[Run, float]) -> Difference:
    worst = max(values, key=lambda run: abs(values[run]))
    return Difference(
        largest=abs(values[worst]),
        where=worst if values[worst] else None,
        differing=sum(value != 0 for value in values.values()),
        mean=sum(values.values()) / len(values),
    )


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _pandas() -> Any:
    try:
        import pandas
    except ImportError:
        raise NatalError(
            "a DataFrame needs pandas, which is not installed: pip install natal[pandas]"
        ) from None
    return pandas
