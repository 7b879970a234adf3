"""What `natal audit` prints: a paper's claims beside the results of any study. No torch here.

``print("\\n".join(lines("tiny-networks", "results")))``.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from natal.errors import NatalError
from natal.reading import claims
from natal.reading.claims import Checked
from natal.reading.results import Results, load
from natal.reading.wording import heading, prose, wrapped
from natal.registry import did_you_mean
from natal.study.audit import Audit, load_audit
from natal.wording import percent, plural


def audit(
    source: str | Path | Audit, directory: str | Path | Results, names: Mapping[str, str] | None = None
) -> list[Checked]:
    """Hold a paper's claims against the results in a directory.

    ``source``: the name of a shipped audit, a TOML file, or an Audit. ``names``: what a task, network or strategy of
    the results is called in the audit. Raises NatalError for an audit that is none, and for a name that the results
    lack.
    """
    results = directory if isinstance(directory, Results) else load(directory)
    paper = source if isinstance(source, Audit) else load_audit(source)
    here = {theirs: ours for ours, theirs in (names or {}).items()}
    there = {
        *results.study.task_names,
        *results.study.network_names,
        *(r.name for r in results.study.strategies),
    }
    for name in here.values():
        if name not in there:
            raise NatalError(f"--as {name!r}: the results have no such name{did_you_mean(name, there)}")

    asked = [
        claim.model_copy(
            update={
                key: here.get(name, name)
                for key in ("task", "network", "strategy", "against")
                if (name := getattr(claim, key)) is not None
            }
        )
        for claim in paper.all_claims()
    ]
    judged = claims.check(results, asked)
    return [replace(c, claim=claim) for c, claim in zip(judged, paper.all_claims(), strict=True)]


def lines(source: str | Path, directory: str | Path, names: Mapping[str, str] | None = None) -> list[str]:
    """Return an audit as lines ready to print: verdicts counted, then each claim with ours, n, interval and cause."""
    results, paper = load(directory), load_audit(source)
    return list(_lines(paper, results, audit(paper, results, names)))


def _lines(paper: Audit, results: Results, checked: list[Checked]) -> Iterator[str]:
    study = results.study
    yield from heading(paper.title)
    yield from prose(f"{paper.citation}.")
    yield from (line for sentence in paper.about for line in wrapped(f"- {sentence}", 2))
    yield ""
    grid = f"{len(results.runs)} of {plural(len(study.runs()), 'run')}, {plural(len(study.seeds), 'seed')}"
    yield from prose(f"Held against study {study.name!r} in {results.directory}: {grid}.")
    yield from prose(", ".join(f"{count} {verdict}" for verdict, count in claims.told(checked)) + ".")
    for c in checked:
        yield from _claim(c)


def _claim(c: Checked) -> Iterator[str]:
    show = claims.shown(c.claim)
    verdict = c.verdict.upper() if c.verdict == "contradicted" else c.verdict
    about = [c.claim.task, *([c.claim.network] if c.claim.network else []), c.claim.strategy]
    level = "" if c.claim.sparsity is None else f" at {percent(c.claim.sparsity)}"
    against = f" against {c.claim.against}" if c.claim.against else ""
    where = f" [{c.claim.where}]" if c.claim.where else ""
    yield from wrapped(f"{verdict:<16} {c.claim.text}{where}", 2)
    ours = "" if c.ours is None else f"ours {show(c.ours)}{_span(c)}, n = {c.n}; "
    subject = f"{c.claim.quantity} of {' / '.join(about)}{level}{against}"
    yield from wrapped(f"{subject}: published {claims.stated(c.claim)}, {ours}{c.cause}", 19)


def _span(c: Checked) -> str:
    show = claims.shown(c.claim)
    return "" if math.isnan(c.low) or math.isnan(c.high) else f" [{show(c.low)}, {show(c.high)}]"
