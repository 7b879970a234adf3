"""The report's sections on chains and on connectivity, against what was trained."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

import natal
from conftest import tiny
from natal.reading import report
from natal.reading.connectivity import Line, barriers
from natal.reading.report import data as drawn
from natal.reading.report import view
from natal.reading.report.view import View
from natal.reading.results import Results

TICKET = {"criterion": "magnitude", "scope": "layerwise", "at": "end", "rewind": "init"}


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    study = tiny(
        seeds=[1, 2],
        sparsities=[0.0, 0.5, 0.8],
        strategies=[
            {**TICKET, "name": "ticket", "rounds": "levels"},
            {**TICKET, "name": "late", "rounds": 2, "rewind": "8it"},
            "random",
        ],
        training={
            "epochs": 4,
            "learning_rate": 0.02,
            "patience": "none",
            "target": "none",
            "batch": 36,
            "optimiser": "adam",
        },
        measure={"connectivity": {"from": ["init", "8it"], "orders": 2, "points": 5}},
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report, "write", lambda directory, **_: [])  # no figures
        return natal.run(study, tmp_path_factory.mktemp("chained"), workers=1, engine="torch")


def test_chains_say_what_was_shared_and_what_each_round_reached(results: Results) -> None:
    text = " ".join(report.text(results).split())
    # by hand, a seed: dense 1, ticket 2, late 2 rounds twice, random 2; and the rows' chains without sharing:
    # 3 dense, ticket 2 + 3, late 3 + 3, random 1 + 1
    assert (
        "18 runs end chains of 32 trainings in all, each dense network's included; 18 of them differ" in text
    )
    (table,) = (t for t in report.document(results).tables if t.name == "chains")
    (part,) = table.parts
    cut = {(line.entries[0], line.sparsity): line.entries for line in part.lines}
    assert set(cut) == {(name, level) for name in ("ticket", "late") for level in (0.5, 0.8)}
    reached = [row for row in results.runs if (row.strategy, row.sparsity) == ("late", 0.8)]
    means = 100 * np.mean([row.proofs["rounds"] for row in reached], axis=0)
    assert cut["late", 0.8][2] == " ".join(f"{share:.2f}%" for share in means)
    assert [str(e) for e in cut["late", 0.8][3:]] == ["8", "2 of 2", "2 of 2", "2"]


def test_of_a_large_study_chains_say_whose_seed_they_are(
    results: Results, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(view, "LARGE", 17)
    (table,) = (t for t in report.document(results).tables if t.name == "chains")
    assert "reached, of seed 1 alone, since there are more than 20,000 runs." in table.caption
    assert {str(line.entries[-1]) for part in table.parts for line in part.lines} == {"1"}


def test_no_barriers_interval_reaches_below_zero(results: Results) -> None:
    row = results.runs[0]
    # t(0.975, 1) = 12.706: of 0.01 and 0.03 the interval goes from -0.107 to 0.147
    errors = {1: [0.3, 0.31, 0.3], 2: [0.3, 0.33, 0.3]}
    (found,) = barriers(
        [Line(dataclasses.replace(row, seed=seed), "init", 1, np.array(e)) for seed, e in errors.items()]
    )
    assert (found.barrier.n, found.barrier.low) == (2, 0.0)
    assert [found.barrier.mean, found.barrier.high] == pytest.approx([0.02, 0.02 + 12.7062 * 0.01], rel=1e-4)


def test_barriers_stand_in_table_and_chart(results: Results) -> None:
    found = barriers(results.lines)
    assert {b.clock for b in found} == {"init", "8it"}
    one = next(b for b in found if (b.strategy, b.sparsity, b.clock) == ("ticket", 0.5, "init"))
    ours = [
        line.barrier
        for line in results.lines
        if (line.row.strategy, line.row.sparsity, line.clock) == ("ticket", 0.5, "init")
    ]
    assert one.barrier.mean == pytest.approx(sum(ours) / 2)
    assert one.barrier.n == 2
    (table,) = (t for t in report.document(results).tables if t.name == "connectivity")
    assert sum(len(part.lines) for part in table.parts) == len(found)
    rows = drawn.data(View(results))["barriers"].rows
    assert [row[2] for row in rows] == pytest.approx([b.barrier.mean for b in found], rel=1e-5, abs=1e-9)
