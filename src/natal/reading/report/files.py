"""A report's tables as files: CSV for programs, LaTeX for papers."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from typing import Any

from natal.reading import stats
from natal.reading.report.document import Entry, Table, Value
from natal.reading.results import Results, identity, published
from natal.study import Study

SUMMARY_COLUMNS = (
    *("task", "strategy", "sparsity", "metric_name", "metric_mean", "metric_std", "metric_ci_low"),
    *("metric_ci_high", "epochs_mean", "epochs_std", "n_seeds"),
)
"""The published program's columns; `summary_columns` names the network too, where it is not the paper's."""


def json_bytes(results: Results) -> bytes:
    """Return ``results.json``: all runs in the published program's format."""
    return (json.dumps(published(results), indent=2, allow_nan=False, ensure_ascii=False) + "\n").encode(
        errors="backslashreplace"
    )


def summary_columns(study: Study) -> tuple[str, ...]:
    """Return the columns of ``summary.csv``."""
    return (*identity(study)[:3], *identity(study)[4:], *SUMMARY_COLUMNS[3:])


def csv_bytes(results: Results) -> bytes:
    """Return ``summary.csv``: a row per cell; ``nan`` where a number is undefined."""
    columns = summary_columns(results.study)
    rows = []
    for c in stats.cells(results.runs):
        numbers = (c.test.mean, c.test.std, c.test.low, c.test.high, c.epochs.mean, c.epochs.std)
        where = [c.setting.task, c.strategy, c.sparsity, *[c.setting.network] * ("network" in columns)]
        rows.append([*where, c.metric_name, *map(_digits, numbers), c.test.n])
    return _csv(columns, rows)


def runs_bytes(results: Results) -> bytes:
    """Return ``runs.csv``: a row per run, everything but what the mask doctor said at length."""
    rows = [run.flat() for run in results.runs]
    # networks have layers of their own
    columns = list(dict.fromkeys(name for row in rows for name in row))
    return _csv(columns, [[row.get(name) for name in columns] for row in rows])


def table_csv(table: Table) -> bytes:
    """Return a table as CSV: numbers with ten digits, and what its parts are about in columns of their own."""
    places = [name for name in ("task", "network", "strategy") if _differs(table, name)]
    rows = [
        [*(place[name] for name in places), *map(_plain, line.entries)]
        for part in table.parts
        for place in [
            {
                "task": part.setting.task if part.setting else "",
                "network": part.setting.network if part.setting else "",
                "strategy": part.strategy,
            }
        ]
        for line in part.lines
    ]
    return _csv([*places, *(column.name for column in table.columns)], rows)


def table_latex(table: Table) -> bytes:
    """Return a table for a paper: a ``tabular`` of the package booktabs, a heading per part."""
    layout = "".join("l" if column.left else "r" for column in table.columns)
    width = len(table.columns)
    lines = [
        f"% {table.name}: needs \\usepackage{{booktabs}}",
        f"\\begin{{tabular}}{{{layout}}}",
        "\\toprule",
        _tex_row([column.title for column in table.columns]),
    ]
    for part in table.parts:
        lines.append("\\midrule")
        if part.title:
            lines.append(f"\\multicolumn{{{width}}}{{l}}{{\\textit{{{_tex(part.title)}}}}} \\\\")
        lines += [_tex_row(line.entries) for line in part.lines]
    return "\n".join([*lines, "\\bottomrule", "\\end{tabular}", ""]).encode()


def study_bytes(study: Study) -> bytes:
    """Return ``study.toml``: the study as a file that ``natal run`` takes; `natal.load_study` of it has its digest."""
    head = f"# The study {study.name!r} as it was run."
    if study.plugins:
        head += f" Its plugins, {', '.join(study.plugins)}, must lie beside this file or be installed."
    table = study.model_dump(mode="json")
    # what a claim does not say is left out; what a training does without is said
    table["claims"] = [{k: v for k, v in claim.items() if v is not None} for claim in table["claims"]]
    if table["training"]["learning_rate"] is None:  # the tasks' own, which is said by leaving it out
        del table["training"]["learning_rate"]
    lines = [head, *(f"{key} = {toml(value)}" for key, value in table.items())]
    return ("\n".join(lines) + "\n").encode()


def toml(value: Any) -> str:
    """Return a study's value as TOML has it in one line; what a training does without is called ``"none"`` there."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{toml(key)} = {toml(entry)}" for key, entry in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(toml, value)) + "]"
    if value is None:
        return '"none"'
    # JSON's text is TOML's, but for one letter that TOML wants escaped
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def _differs(table: Table, name: str) -> bool:
    if name == "strategy":
        return any(part.strategy for part in table.parts)
    return any(part.setting is not None for part in table.parts)


def _csv(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> bytes:
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)
    return file.getvalue().encode()


def _plain(entry: Entry) -> str:
    return _digits(entry.number) if isinstance(entry, Value) else entry


def _digits(number: float) -> str:
    # ten digits: more than any reader needs, fewer than two machines' libraries can disagree on
    return f"{number:.10g}"


def _tex_row(entries: Sequence[Entry]) -> str:
    return " & ".join(_tex(str(entry)) for entry in entries) + " \\\\"


def _tex(words: str) -> str:
    return "".join(_TEX.get(letter, letter) for letter in words)


_TEX: Mapping[str, str] = {
    **{letter: f"\\{letter}" for letter in "&%$#_{}"},
    "\\": "\\textbackslash{}",
    "~": "\\textasciitilde{}",
    "^": "\\textasciicircum{}",
    "²": "$^2$",
    "±": "$\\pm$",
    "×": "$\\times$",
    "<": "$<$",
    ">": "$>$",
}


__all__ = [
    "SUMMARY_COLUMNS",
    "csv_bytes",
    "json_bytes",
    "runs_bytes",
    "study_bytes",
    "summary_columns",
    "table_csv",
    "table_latex",
    "toml",
]
