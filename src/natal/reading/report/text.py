"""A document as plain text of a fixed width; long tables and charts are named, not shown."""

from __future__ import annotations

from collections.abc import Iterator
from functools import singledispatch

from natal.reading.report.document import (
    Block,
    Bullets,
    Chart,
    Document,
    Facts,
    Line,
    Loud,
    Part,
    Points,
    Prose,
    Section,
    Table,
)
from natal.reading.wording import bullet, folded, heading, loud, prose, wrapped


def text(document: Document) -> str:
    """Return the document as text."""
    return "\n".join(line.rstrip() for line in _document(document)).rstrip() + "\n"


def _document(document: Document) -> Iterator[str]:
    yield from (document.title, "=" * len(document.title), "")
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
    wide = max(len(name) for name, _ in block.pairs)
    for name, fact in block.pairs:
        for i, line in enumerate(folded(fact, wide + 4)):
            yield f"  {'' if i else name:<{wide}}  {line}"
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


def _part(table: Table, part: Part) -> Iterator[str]:
    """Yield a part: its title, its lines under the columns, and its notes."""
    lines = [Line(tuple(column.title for column in table.columns)), *part.lines]
    wide = [max(len(str(line.entries[i])) for line in lines) for i in range(len(table.columns))]
    if part.title:
        yield f"  {part.title}"
    for line in lines if part.lines else ():
        entries = [
            f"{entry!s:<{w}}" if column.left else f"{entry!s:>{w}}"
            for entry, column, w in zip(line.entries, table.columns, wide, strict=True)
        ]
        yield "    " + " ".join(entries)
    for note in part.notes:
        yield from bullet(note)
    yield ""
