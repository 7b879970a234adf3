"""Everything a results directory shows, rebuilt from its run store alone. No torch here.

``write("results")`` makes results.json, summary.csv, runs.csv, study.toml, both figures, the report as text and as a
page, and its tables in files of their own. Nothing is computed here: every number comes from a function in
`natal.reading.stats` that a reader can call. The same store gives the same bytes.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from natal.errors import NatalError
from natal.reading import figures
from natal.reading.report import browser, charts, files
from natal.reading.report.document import Document
from natal.reading.report.files import csv_bytes, json_bytes, summary_columns
from natal.reading.report.sections import SECTIONS, verdicts
from natal.reading.report.text import text as as_text
from natal.reading.report.view import View
from natal.reading.results import Results, load

TABLES = "tables"
"""The folder of a report's tables."""
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
    return made


def write(directory: str | Path = "results") -> list[Path]:
    """Rebuild all outputs of the study in ``directory``, finished or not, and return their paths.

    Each file replaces its predecessor whole or not at all. Raises NatalError if there is no study or a file
    cannot be written.
    """
    results = load(directory)
    paths = []
    for name, make in outputs(results).items():
        path = results.directory / name
        _replace(path, make())
        paths.append(path)
    return paths


def _replace(path: Path, content: bytes) -> None:
    """Write a file beside its place, then move it there: a reader never sees half of it."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(exist_ok=True)
        try:
            temporary.write_bytes(content)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise NatalError(
            f"{path}: {error.strerror}; free some space, check permissions, or copy the run store elsewhere "
            "and rebuild there"
        ) from None


__all__ = ["OUTPUTS", "csv_bytes", "document", "json_bytes", "outputs", "summary_columns", "text", "write"]
