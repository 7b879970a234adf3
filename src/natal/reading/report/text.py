"""A document as plain text of a fixed width; long tables and charts are named, not shown."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import singledispatch

from natal.reading.report.document import (
    Block,
    Bullets,
    Chart,
    Document,
    Entry,
    Facts,
    Line,
    Loud,
    Part,
    Points,
    Prose,
    Section,
    Table,
    Value,
)
from natal.reading.wording import bullet, folded, heading, loud, prose, wrapped

LABEL = 16
"""A longer name of a fact stands on a line of its own, so that it does not push all facts to the right."""


def text(document: Document) -> str:
    """Return the document as text."""
    return "\n".join(line.rstrip() for line in _document(document)).rstrip() + "\n"


def _document(document: Document) -> Iterator[str]:
    title = f"{document.title.upper()}: study {document.name!r}"
    yield from (title, "=" * len(title), "")
    for block in document.head:
        yield from _lines(block)
    for section in document.sections:
        yield from _section(section)


def _section(section: Section) -> Iterator[str]:
    shown = [line for block in section.blocks for line in _lines(block)]
    if shown:  # a section of charts alone has nothing to say here
        yield from heading(section.title.upper())
        yield from shown


@singledispatch
def _lines(block: Block) -> Iterator[str]:
    raise TypeError(f"a text cannot show {type(block).__name__}")


@_lines.register
def _(block: Prose) -> Iterator[str]:
    yield from prose(block.text)


@_lines.register
def _(block: Loud) -> Iterator[str]:
    yield from loud(block.text)


@_lines.register
def _(block: Points) -> Iterator[str]:
    yield f"  {block.title}"
    for point in block.points:
        yield from wrapped("!! " * point.alarm + point.text, 4 + 2 * point.depth)
    yield ""


@_lines.register
def _(block: Bullets) -> Iterator[str]:
    for sentence, details in block.items:
        yield from bullet(sentence)
        for detail in details:
            yield from wrapped(detail, 6)
    yield ""


@_lines.register
def _(block: Facts) -> Iterator[str]:
    wide = max((len(name) for name, _ in block.pairs if len(name) <= LABEL), default=0)
    for name, fact in block.pairs:
        label = name
        if len(name) > wide:
            yield f"  {name}"
            label = ""
        for i, line in enumerate(folded(fact, wide + 4)):
            yield f"  {'' if i else label:<{wide}}  {line}"
    yield ""


@_lines.register
def _(block: Chart) -> Iterator[str]:
    yield from ()


@_lines.register
def _(block: Table) -> Iterator[str]:
    if block.apart:
        yield from prose(f"{block.caption} See tables/{block.name}.csv, or the same table in report.html.")
        return
    if block.caption:
        yield from prose(block.caption)
    for part in block.parts:
        yield from _part(block, part)


def _aligned(entries: Sequence[Entry], left: bool) -> list[str]:
    """Return a column's entries at one width: words at its left, numbers at its right with their notes behind them."""
    notes = max(len(entry.note) if isinstance(entry, Value) else 0 for entry in entries)
    written = [
        f"{entry.text}{entry.note:<{notes}}"
        if isinstance(entry, Value)
        else f"{entry}{'' if left else ' ' * notes}"
        for entry in entries
    ]
    wide = max(map(len, written))
    return [f"{words:<{wide}}" if left else f"{words:>{wide}}" for words in written]


def _part(table: Table, part: Part) -> Iterator[str]:
    """Yield a part: its title, its lines under the columns, and its notes."""
    if part.title:
        yield f"  {part.title}"
    if part.lines:
        titled = [Line(tuple(column.title for column in table.columns)), *part.lines]
        columns = zip(*(line.entries for line in titled), strict=True)
        both = zip(columns, table.columns, strict=True)
        aligned = [_aligned(those, column.left) for those, column in both if not column.wide]
        yield from ("    " + " ".join(entries) for entries in zip(*aligned, strict=True))
    for note in part.notes:
        yield from bullet(note)
    yield ""
