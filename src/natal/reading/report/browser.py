"""A document as one page for a browser: it needs no network, no other file, and no program but the browser.

The page is made from ``page/``: a template, its style, its script, and Vega's own scripts, which `tools/bundle_vega.py`
bundles. Every word of a study is escaped; the page's own policy lets no request leave it.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from natal.reading.figures import COLOURS, axis_of
from natal.reading.report import charts
from natal.reading.report.data import data
from natal.reading.report.document import (
    Block,
    Bullets,
    Chart,
    Document,
    Entry,
    Line,
    Part,
    Points,
    Table,
    Value,
)
from natal.reading.report.files import toml
from natal.reading.report.view import View
from natal.study import Setting
from natal.wording import percent

FOLDER = Path(__file__).parent / "page"
ENTRIES = 6_000
"""At most so many entries of a table are in a page; its files have all of them."""
MANY = 60
"""Up to so many charts are drawn at once; of more, those that a reader comes near."""


def page(document: Document, view: View) -> str:
    """Return the page."""
    drawn = data(view)
    cells = {
        (view.settings[row[0]], view.strategies[row[1]], row[2]): i
        for i, row in enumerate(drawn["cells"].rows)
    }
    build = _Build(view, cells)
    sections = [
        {"title": s.title, "anchor": s.anchor, "blocks": [build.block(b) for b in s.blocks]}
        for s in document.sections
    ]
    head, closer = [build.block(b) for b in document.head], [build.block(b) for b in document.closer]
    facts = {
        "data": {name: {"columns": table.columns, "rows": table.rows} for name, table in drawn.items()},
        "charts": [{"name": c.name, "title": c.title, "says": c.says, "spec": c.spec} for c in build.charts],
        "axes": charts.axes(view),
        "colours": COLOURS,
        "priority": view.priority,
        "many": MANY,
        "work": [view.work_is(setting) for setting in view.settings],
        "command": [_narrowed(view, setting) for setting in view.settings],
        "recipes": [_set("strategies", [recipe.model_dump(mode="json")]) for recipe in view.study.strategies],
        "file": re.sub(r"[^\w-]+", "-", view.study.name).strip("-") or "study",
    }
    made: str = _template().render(
        document=document,
        head=head,
        sections=sections,
        closer=closer,
        tasks=view.study.task_names,
        networks=view.study.network_names,
        axis=axis_of(view.study),
        levels=[(f"{s:g}", percent(s)) for s in sorted(view.study.sparsities)],
        strategies=view.strategies,
        foot=f"Made by natal from the run store alone; results {view.results.digest}. Open it anywhere: it asks no "
        "host for anything.",
        css=_safe(_text("page.css")),
        script=_safe(_text("page.js")),
        vega=_safe(_text("vega.js")),
        data=_safe(json.dumps(facts, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")),
    )
    return made.lstrip()


def _narrowed(view: View, setting: Setting) -> list[str]:
    """Return the options that narrow a study down to a setting."""
    task = view.study.task(setting.task).model_dump(mode="json")
    network = view.study.network(setting.network).model_dump(mode="json")
    several = len(view.study.networks) > 1
    return [_set("tasks", [task]), *([_set("networks", [network])] if several else [])]


def _set(key: str, value: Any) -> str:
    return "--set " + shlex.quote(f"{key}={toml(value)}")


class _Build:
    """Blocks as the template takes them, with charts, settings and cells numbered."""

    def __init__(self, view: View, cells: Mapping[tuple[Setting, str, float], int]) -> None:
        self.charts: list[Chart] = []
        self._settings = {setting: i for i, setting in enumerate(view.settings)}
        self._strategies = {name: i for i, name in enumerate(view.strategies)}
        self._cells = cells

    def block(self, block: Block) -> dict[str, Any]:
        made: dict[str, Any] = {"kind": type(block).__name__, **vars(block)}
        if isinstance(block, Bullets):
            made["items_"] = block.items
        if isinstance(block, Points | Chart):
            made["setting"] = self._place(block.setting)
        if isinstance(block, Chart):
            made["number"] = len(self.charts)
            self.charts.append(block)
        if isinstance(block, Table):
            made |= self._table(block)
        return made

    def _place(self, setting: Setting | None) -> int | None:
        return None if setting is None else self._settings[setting]

    def _table(self, table: Table) -> dict[str, Any]:
        # room for the longest note of a column keeps its numbers in line
        rooms = [
            max((len(e.note) for e in those if isinstance(e, Value)), default=0)
            for those in zip(*(line.entries for part in table.parts for line in part.lines), strict=True)
        ]
        room = ENTRIES // len(table.columns)
        parts: list[dict[str, Any]] = []
        left_out = 0
        for part in table.parts:
            shown = part.lines[: max(room, 0)]
            if shown:
                lines = [self._line(table, part, line, rooms) for line in shown]
                place = self._place(part.setting)
                parts.append({"title": part.title, "setting": place, "notes": part.notes, "lines": lines})
            room -= len(part.lines)
            left_out += len(part.lines) - len(shown)
        total = sum(len(part.lines) for part in table.parts)
        return {
            "parts": parts,
            "left_out": left_out,
            "short": f"{table.apart}: a table of {total} lines",
            "wordy": any(column.wide for column in table.columns),
        }

    def _line(self, table: Table, part: Part, line: Line, rooms: Sequence[int]) -> dict[str, Any]:
        cell = None
        if part.setting is not None and len(line.strategies) == 1 and line.sparsity is not None:
            cell = self._cells.get((part.setting, line.strategies[0], line.sparsity))
        return {
            "strategies": " ".join(str(self._strategies[name]) for name in line.strategies),
            "level": None if line.sparsity is None else f"{line.sparsity:g}",
            "entries": list(self._entries(table, line, cell, rooms)),
        }

    def _entries(
        self, table: Table, line: Line, cell: int | None, rooms: Sequence[int]
    ) -> Iterator[dict[str, Any]]:
        for i, (column, entry) in enumerate(zip(table.columns, line.entries, strict=True)):
            text = entry.text if isinstance(entry, Value) else entry
            yield {
                "text": text.strip(),
                "note": entry.note if isinstance(entry, Value) else "",
                "room": rooms[i],
                "left": column.left,
                "number": _number(entry),
                "word": entry if column.name == "verdict" else None,
                "cell": cell if i == 0 else None,
            }


def _number(entry: Entry) -> str | None:
    """Return what an entry sorts by, if not by what is written."""
    if not isinstance(entry, Value):
        return None
    written = f"{entry.number:.6g}"
    return None if written == entry.text else written


def _safe(text: str) -> Any:
    """Return our own text as it is, for a script or a style, where entities mean nothing."""
    from markupsafe import Markup

    assert "</script" not in text.lower()
    assert "</style" not in text.lower()
    return Markup(text)


def _marked(words: str) -> Any:
    """Return a sentence, escaped, with what stands between backticks as code."""
    from markupsafe import Markup, escape

    return Markup(re.sub("`([^`]*)`", r"<code>\1</code>", str(escape(words))))


@cache
def _text(name: str) -> str:
    return (FOLDER / name).read_text("utf-8")


@cache
def _template() -> Any:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(FOLDER), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    environment.filters["marked"] = _marked
    return environment.get_template("page.html")
