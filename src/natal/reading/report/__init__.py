"""Everything a results directory shows, rebuilt from its run store alone. No torch here.

``write("results")`` makes results.json, summary.csv, runs.csv, study.toml, both figures, the report as text and as a
page, and its tables in files of their own. Nothing is computed here: every number comes from a function in
`natal.reading.stats` that a reader can call. The same store gives the same bytes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path, PurePath

from natal.errors import NatalError
from natal.machine import version
from natal.reading import figures
from natal.reading.report import browser, charts, files
from natal.reading.report.document import Document
from natal.reading.report.files import csv_bytes, json_bytes, summary_columns
from natal.reading.report.sections import SECTIONS, verdicts
from natal.reading.report.text import text as as_text
from natal.reading.report.view import View
from natal.reading.results import Results, load
from natal.store import Store, replace_whole

TABLES = "tables"
"""The folder of a report's tables."""
WRITTEN = ".written"
"""Says from what the outputs were made last; see `write`."""
OUTPUTS = (
    "results.json",
    "summary.csv",
    "runs.csv",
    "study.toml",
    "accuracy_vs_sparsity.png",
    "epochs_vs_sparsity.png",
    "report.txt",
    "report.html",
)
"""What `write` makes of any study, by file name; `outputs` adds the tables it has."""
BY_RUN = ("results.json", "runs.csv")
"""Outputs of a line a run, which a study of more than `natal.reading.report.view.LARGE` runs has on request alone."""


def document(results: Results) -> Document:
    """Return the report of a study."""
    return _document(View(results))


def _document(view: View) -> Document:
    sections = [make(view) for make in SECTIONS]
    return Document(
        "Pruning at initialisation",
        view.study.name,
        tuple(verdicts.head(view)),
        tuple(section for section in sections if section.blocks),
        charts.closer(),
    )


def text(results: Results) -> str:
    """Return ``report.txt``."""
    return as_text(document(results))


def outputs(results: Results) -> dict[str, Callable[[], bytes]]:
    """Return everything that belongs into a results directory, by file name, each made when it is asked for."""
    view = View(results)
    said = _document(view)
    made: dict[str, Callable[[], bytes]] = {
        "results.json": lambda: json_bytes(results),
        "summary.csv": lambda: csv_bytes(results),
        "runs.csv": lambda: files.runs_bytes(results),
        "study.toml": lambda: files.study_bytes(results.study),
        "accuracy_vs_sparsity.png": lambda: figures.png(results, "metric"),
        "epochs_vs_sparsity.png": lambda: figures.png(results, "epochs"),
        "report.txt": lambda: as_text(said).encode(),
        "report.html": lambda: browser.page(said, view).encode(),
    }
    for table in said.tables:
        made[f"{TABLES}/{table.name}.csv"] = lambda table=table: files.table_csv(table)  # type: ignore[misc]
        made[f"{TABLES}/{table.name}.tex"] = lambda table=table: files.table_latex(table)  # type: ignore[misc]
    return {name: make for name, make in made.items() if not (view.large and name in BY_RUN)}


def write(directory: str | Path = "results", *, anew: bool = True) -> list[Path]:
    """Rebuild all outputs of the study in ``directory``, finished or not, and return their paths.

    Each file replaces its predecessor whole or not at all. Without ``anew`` nothing is done if neither the runs, the
    study nor natal's version changed since the outputs were written, and nobody touched them. Raises NatalError if
    there is no study or a file cannot be written.
    """
    results = load(directory)
    with Store.read(results.directory) as store:
        made_of = {"natal": version("natal"), "store": store.state()}
    place = results.directory / WRITTEN
    names = [] if anew else _untouched(place, made_of)
    if names:
        return [results.directory / name for name in names]
    files = {}
    for name, make in outputs(results).items():
        path = results.directory / name
        _replace(path, make())
        files[name] = _seen(path)
    for name in {*BY_RUN, *_tables(place)} - set(files):  # of when the study was smaller, or another
        (results.directory / name).unlink(missing_ok=True)
    _replace(place, json.dumps({"of": made_of, "files": files}).encode())
    return [results.directory / name for name in files]


def _tables(place: Path) -> list[str]:
    """Return the names of the tables that were written last."""
    try:
        names = [PurePath(name) for name in json.loads(place.read_bytes())["files"]]
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return []
    return [str(name) for name in names if str(name.parent) == TABLES and name.suffix in (".csv", ".tex")]


def _untouched(place: Path, made_of: Mapping[str, str]) -> list[str]:
    """Return the names of the outputs that were made of the same, if they all lie there as they were written."""
    try:
        written = json.loads(place.read_bytes())
        files: dict[str, list[int]] = written["files"]
        same = written["of"] == made_of and all(
            _seen(place.parent / name) == seen for name, seen in files.items()
        )
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return []
    return list(files) if same else []


def _seen(path: Path) -> list[int]:
    found = path.lstat()
    return [found.st_size, found.st_mtime_ns]


def _replace(path: Path, content: bytes) -> None:
    """Write a file beside its place, then move it there: a reader never sees half of it."""
    try:
        path.parent.mkdir(exist_ok=True)
        replace_whole(path, content)
    except OSError as error:
        raise NatalError(
            f"{path}: {error.strerror}; free some space, check permissions, or copy the run store elsewhere "
            "and rebuild there"
        ) from None


__all__ = ["OUTPUTS", "csv_bytes", "document", "json_bytes", "outputs", "summary_columns", "text", "write"]
