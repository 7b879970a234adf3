"""What a report says, as data: sections of prose, lists, tables and charts. Nothing is computed here.

`natal.reading.report.text` and `natal.reading.report.browser` show the same `Document`; the builders in
`natal.reading.report.sections` make it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from natal.study import Setting


@dataclass(frozen=True)
class Value:
    """A number in a table: how it is written, and what it is, for sorting and files; ``note``: letters behind it."""

    text: str
    number: float
    note: str = ""

    def __str__(self) -> str:
        return self.text + self.note


Entry = str | Value
"""What stands in one place of a table."""


@dataclass(frozen=True)
class Prose:
    """A paragraph."""

    text: str


@dataclass(frozen=True)
class Loud:
    """What nobody may overlook."""

    text: str


@dataclass(frozen=True)
class Point:
    """An item of a list; ``alarm``: it changes how everything else is to be read; ``depth``: how far it stands in."""

    text: str
    alarm: bool = False
    depth: int = 0


@dataclass(frozen=True)
class Points:
    """A list of facts under a title, about one setting or all (``None``)."""

    title: str
    points: tuple[Point, ...]
    setting: Setting | None = None


@dataclass(frozen=True)
class Bullets:
    """A list of sentences, each with lines of detail below it."""

    items: tuple[tuple[str, tuple[str, ...]], ...]


@dataclass(frozen=True)
class Facts:
    """Names and what there is to say of each."""

    pairs: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Column:
    """A column's title and, for files, its name.

    ``left``: words, which start at the left; ``wide``: a text has no room for it.
    """

    title: str
    name: str
    left: bool = False
    wide: bool = False


@dataclass(frozen=True)
class Line:
    """A line of a table.

    ``strategies``: those it speaks of, all of which a reader must have chosen to see it; ``sparsity``: the only one it
    speaks of. A line of one strategy at one sparsity, in a part of one setting, is about a cell.
    """

    entries: tuple[Entry, ...]
    strategies: tuple[str, ...] = ()
    sparsity: float | None = None


@dataclass(frozen=True)
class Part:
    """The lines of a table about one setting, and one strategy if it says so; ``notes``: sentences below them."""

    title: str
    lines: tuple[Line, ...]
    setting: Setting | None = None
    strategy: str = ""
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Table:
    """Lines below columns, in parts.

    ``name``: of its files, ``tables/NAME.csv`` and ``tables/NAME.tex``. ``caption``: what it shows. ``apart``: its
    title, if it is too long for a text, which names its files instead.
    """

    name: str
    caption: str
    columns: tuple[Column, ...]
    parts: tuple[Part, ...]
    apart: str = ""


@dataclass(frozen=True)
class Chart:
    """A chart, declared in Vega-Lite.

    ``spec``: its specification, whose data are names, see `natal.reading.report.data`. ``says``: what it shows, for
    those who cannot see it, too. ``setting``: what it is about, None for all.
    """

    name: str
    title: str
    says: str
    spec: Mapping[str, Any]
    setting: Setting | None = None


Block = Prose | Loud | Points | Bullets | Facts | Table | Chart


@dataclass(frozen=True)
class Section:
    """A titled part of a report; one without blocks is left out."""

    title: str
    blocks: tuple[Block, ...]

    @property
    def anchor(self) -> str:
        """Its name in links."""
        return "-".join(self.title.lower().split())


@dataclass(frozen=True)
class Document:
    """A report: what it is, the study's name, what stands before its sections, the sections.

    ``closer``: charts about a single cell, for whoever looks closer at it.
    """

    title: str
    name: str
    head: tuple[Block, ...]
    sections: tuple[Section, ...]
    closer: tuple[Chart, ...] = ()

    @property
    def tables(self) -> list[Table]:
        """Its tables in order."""
        return [block for section in self.sections for block in section.blocks if isinstance(block, Table)]
