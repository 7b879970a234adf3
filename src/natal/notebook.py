"""How natal's objects show themselves: a line where they are printed, a small table in a notebook."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

Rows = Iterable[Sequence[object]]


class Shown:
    """An object with a short ``repr``, and a table of itself in a notebook.

    A subclass says what it is in a line and in rows; whatever a study names is escaped.
    """

    def _line(self) -> str:
        raise NotImplementedError

    def _table(self) -> Rows:
        raise NotImplementedError

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {self._line()}>"

    def _repr_html_(self) -> str:
        return html(f"{type(self).__name__}: {self._line()}", self._table())


def html(title: str, rows: Rows) -> str:
    """Return a titled table, the first of whose rows are names."""
    lines = [
        "".join(f"<td style='text-align:left'>{escape(str(entry))}</td>" for entry in row) for row in rows
    ]
    body = "".join(f"<tr>{line}</tr>" for line in lines)
    return f"<div><strong>{escape(title)}</strong><table>{body}</table></div>"
