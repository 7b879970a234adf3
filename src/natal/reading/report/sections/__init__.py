"""What a report says and in which order: a builder a section, the most important first.

A builder takes a `View` and returns a `Section`, one without blocks if there is nothing to say. To add a section, write
one and put it into `SECTIONS`: it is in the text, in the browser, and its tables are in files.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from natal.reading.report.sections import chains, compared, curves, hidden, made, masks, verdicts

if TYPE_CHECKING:
    from natal.reading.report.document import Section
    from natal.reading.report.view import View

SECTIONS: tuple[Callable[[View], Section], ...] = (
    verdicts.findings,
    verdicts.beside,
    curves.curves,
    compared.ranking,
    compared.controls,
    hidden.patience,
    hidden.hidden,
    hidden.limits,
    compared.pairs,
    masks.masks,
    chains.chains,
    chains.connectivity,
    curves.costs,
    compared.learning_rates,
    made.what_was_run,
    made.how_it_was_made,
)
"""What was found, what it hides, what cannot be concluded, and only then how."""
