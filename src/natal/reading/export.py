"""A study's runs and curves in files that other programs read: Parquet, CSV, JSON, TensorBoard. No torch here.

``write("results", ["parquet"])`` makes ``results/export/runs.parquet`` and ``curves.parquet``. Curves are written a few
hundred runs at a time, so that a million of them need no more memory than a thousand.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from natal.errors import NatalError, require
from natal.reading.report.files import json_bytes
from natal.reading.results import Results, load
from natal.reading.rows import Curve
from natal.registry import did_you_mean

if TYPE_CHECKING:
    import pandas as pd

SOME = 500
"""Runs whose curves are written at a time."""
EXPORT = "export"
_LINES = ("train_loss", "val_loss", "val_metric", "test_metric")


def write(directory: str | Path | Results, forms: Sequence[str], out: str | Path | None = None) -> list[Path]:
    """Write a study's runs and curves in these forms, see `FORMS`, and return the paths.

    ``out``: a directory, by default ``export`` in the study's. ``runs`` have the columns of `Results.frame`, ``curves``
    those of `Results.curves_frame`. Raises NatalError for an unknown form, a library that is not installed, or a file
    that cannot be written.
    """
    for form in forms:
        if form not in FORMS:
            raise NatalError(f"unknown format {form!r}{did_you_mean(form, FORMS)}")
        if form in _NEEDS:
            require(*_NEEDS[form], extra=form, purpose=f"natal export --{form}")
    results = directory if isinstance(directory, Results) else load(directory)
    place = Path(out) if out is not None else results.directory / EXPORT
    try:
        place.mkdir(parents=True, exist_ok=True)
        return [path for form in forms for path in FORMS[form](results, place)]
    except OSError as error:
        raise NatalError(
            f"{error.filename or place}: {error.strerror}; name another directory with --out"
        ) from None


def _csv(results: Results, place: Path) -> list[Path]:
    runs, curves = place / "runs.csv", place / "curves.csv"
    results.frame().to_csv(runs, index=False, lineterminator="\n")
    with curves.open("w", encoding="utf-8", newline="") as file:
        for i, frame in enumerate(_frames(results)):
            frame.to_csv(file, index=False, header=i == 0, lineterminator="\n")
    return [runs, curves]


def _json(results: Results, place: Path) -> list[Path]:
    path = place / "results.json"
    path.write_bytes(json_bytes(results))
    return [path]


def _parquet(results: Results, place: Path) -> list[Path]:
    import pyarrow as pa
    from pyarrow import parquet

    runs, curves = place / "runs.parquet", place / "curves.parquet"
    results.frame().to_parquet(runs, index=False, engine="pyarrow")
    schema = None
    with pa.OSFile(str(curves), "wb") as file:
        writer = None
        for frame in _frames(results):
            table = pa.Table.from_pandas(frame, schema, preserve_index=False)
            if writer is None:
                schema = table.schema
                writer = parquet.ParquetWriter(file, schema)
            writer.write_table(table)
        if writer is not None:
            writer.close()
    return [runs, curves]


def _frames(results: Results) -> Iterator[pd.DataFrame]:
    """Yield the curves as `Results.curves_frame` has them, some runs at a time; at least one frame."""
    if not len(results.runs):
        yield results.curves_frame()
    for first in range(0, len(results.runs), SOME):
        yield results.curves_frame(range(first, min(first + SOME, len(results.runs))))


def _tensorboard(results: Results, place: Path) -> list[Path]:
    """Write an event file a run, in folders TASK/NETWORK/STRATEGY/SPARSITY/SEED, a step being an optimiser's."""
    paths = []
    for row, curve in zip(results.runs, results.curves, strict=True):
        parts = (row.task, row.network, row.strategy, repr(row.sparsity).removesuffix(".0"), str(row.seed))
        folder = place / "tensorboard" / Path(*map(_folder, parts))
        folder.mkdir(parents=True, exist_ok=True)
        _events(folder, curve, {"test_metric": row.test_metric, "train_metric": row.train_metric})
        paths.append(folder)
    return paths


def _folder(name: str) -> str:
    """Return a name as that of a folder, other names as other folders."""
    name = name.replace("%", "%25").replace("/", "%2F")
    return name.replace(".", "%2E") if name in (".", "..") else name


def _events(folder: Path, curve: Curve, last: Mapping[str, float | None]) -> None:
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.summary.writer.record_writer import RecordWriter

    def told(name: str, step: float, value: float) -> Event:
        return Event(step=int(step), summary=Summary(value=[Summary.Value(tag=name, simple_value=value)]))

    events = [Event(file_version="brain.Event:2")]
    for name in _LINES:
        both = zip(curve.step.tolist(), curve[name].tolist(), strict=False)
        events += (told(name, step, value) for step, value in both)
    end = float(curve.step[-1]) if len(curve.step) else 0.0
    events += (told(f"end/{name}", end, value) for name, value in last.items() if value is not None)
    with (folder / "events.out.tfevents.natal").open("wb") as file:
        writer = RecordWriter(file)
        for event in events:
            writer.write(event.SerializeToString())
        writer.flush()


FORMS: Mapping[str, Callable[[Results, Path], list[Path]]] = {
    "parquet": _parquet,
    "csv": _csv,
    "json": _json,
    "tensorboard": _tensorboard,
}
"""What a study can be written as: tables of runs and curves; the published format; TensorBoard's event files."""
_NEEDS: Mapping[str, tuple[str, ...]] = {"parquet": ("pyarrow",), "tensorboard": ("tensorboard",)}
