"""The report as a page: everything in one file, every word escaped, every number from the statistics."""

from __future__ import annotations

import json
import re
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import reference_store
from natal.reading import report, stats
from natal.reading.report import browser, charts
from natal.reading.report import data as drawn
from natal.reading.report.document import Chart
from natal.reading.report.view import View
from natal.reading.results import Results, load
from natal.study import Run, load_study

HOSTILE = "</script><img src=x onerror=alert(1)>'\"`{{7*7}}&amp;"


def page_of(results: Results) -> str:
    return report.outputs(results)["report.html"]().decode()


def facts_of(page: str) -> dict[str, Any]:
    """The data that a page carries."""
    found = re.search(r'<script type="application/json" id="page">(.*?)</script>', page, re.S)
    assert found
    facts: dict[str, Any] = json.loads(found[1])
    return facts


def objects(facts: dict[str, Any], name: str) -> list[dict[str, Any]]:
    table = facts["data"][name]
    return [dict(zip(table["columns"], row, strict=True)) for row in table["rows"]]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    return load(reference_store.build(tmp_path_factory.mktemp("page")))


@pytest.fixture(scope="module")
def page(results: Results) -> str:
    return page_of(results)


def hostile(directory: Path) -> Results:
    """A study whose every name and sentence tries to be something else."""
    base = reference_store.reference_study().model_dump(mode="json")
    del base["hidden"]
    recipes = [{"name": f"{HOSTILE}{i}", "criterion": "magnitude"} for i in range(2)]
    study = load_study(
        {**base, "name": HOSTILE, "description": HOSTILE, "strategies": recipes, "claims": [],
         "tasks": [{"task": "modular", "name": HOSTILE}], "networks": [{"network": "mlp", "name": HOSTILE}],
         "training": {"epochs": 500}}
    )  # fmt: skip
    one = reference_store.reference_outcomes()[Run("modular", "magnitude", 0.95, 7)]
    one = replace(one, diagnosis={**one.diagnosis, "findings": [["fatal", HOSTILE]]})
    facts = {HOSTILE: {**reference_store.TASKS["modular"], "metric": HOSTILE}}
    return load(reference_store.build(directory, dict.fromkeys(study.runs(), one), study, tasks=facts))


def test_a_page_is_one_small_file_that_asks_no_host(page: str) -> None:
    assert 1_000_000 < len(page.encode()) < 2_000_000
    before, _, _ = page.partition("<script")
    assert before.startswith("<!DOCTYPE html>")
    assert set(re.findall(r'(?:src|href)="([^#"][^"]*)"', before)) == {"data:,"}
    assert "default-src 'none'" in before
    assert not re.search(r"@import|url\(|https?:", before)
    ours = page.rpartition("<script>")[2]
    assert re.findall(r"http[^\"]*", ours) == [
        "https://vega.github.io/schema/vega-lite/v6.json"
    ]  # a name, not asked for


def test_a_page_has_the_sections_tables_and_sentences_of_the_text(results: Results, page: str) -> None:
    document = report.document(results)
    for section in document.sections:
        assert f'<h2 id="title-{section.anchor}">{section.title}</h2>' in page
    for table in document.tables:
        assert f"tables/{table.name}.csv" in page
    words = re.sub(r"<[^>]+>|\s+", " ", page.partition('<script type="application/json"')[0])
    assert "structured improves on dense at 10%" in words
    assert "Critical sparsity: the highest level whose mean test metric" in words


def test_every_number_of_a_page_is_a_statistic(results: Results, page: str) -> None:
    facts = facts_of(page)
    cells = objects(facts, "cells")
    wanted = stats.cells(results.runs)
    assert [c["mean"] for c in cells] == pytest.approx([c.test.mean for c in wanted], rel=1e-5)
    assert [c["density"] for c in cells] == pytest.approx([1 - c.realised for c in wanted], rel=1e-5)
    # no interval reaches beyond what a metric can be
    for c, own in zip(cells, wanted, strict=True):
        assert c["high"] == pytest.approx(min(own.test.high, 1), rel=1e-5)
        floor = 0 if own.setting.task == "modular" else -9
        assert c["low"] == pytest.approx(max(own.test.low, floor), rel=1e-5)
    runs = objects(facts, "runs")
    assert [r["metric"] for r in runs] == pytest.approx([r.test_metric for r in results.runs], rel=1e-5)
    critical = [(c["strategy"], c["sparsity"]) for c in cells if c["critical"] and c["setting"] == 1]
    assert critical == [(0, 0.3), (1, 0.5), (2, 0.9)]
    curves = facts["data"]["curves"]["rows"]
    assert len(curves) == 144
    assert max(len(curve[1]) for curve in curves) == drawn.POINTS
    assert curves[0][1][-1] == results.curves[0].epoch[-1]


def test_masks_are_pictured_of_every_run_or_of_one_a_cell(
    results: Results, page: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pictures = objects(facts_of(page), "pictures")
    pruned = [i for i, run in enumerate(results.runs) if run.sparsity]
    assert [p["run"] for p in pictures] == [i for i in pruned for _ in range(4)]
    assert [(p["layer"], p["shows"]) for p in pictures[:3]] == [
        ("hidden", "all"),
        ("hidden", "corner"),
        ("output", "all"),
    ]
    assert pictures[0]["levels"] == "zh0zh0"
    monkeypatch.setattr(drawn, "PICTURED", 42)
    some = objects(facts_of(page_of(results)), "pictures")
    cells = [(results.runs[p["run"]].run[:3], results.runs[p["run"]].seed) for p in some[::4]]
    assert len(cells) == len(set(cells)) == 42
    assert {seed for _, seed in cells} == {42}


def test_a_store_without_pictures_has_no_chart_of_them(tmp_path: Path) -> None:
    outcomes = reference_store.reference_outcomes()
    for run, one in outcomes.items():
        outcomes[run] = replace(one, diagnosis={k: v for k, v in one.diagnosis.items() if k != "pictures"})
    results = load(reference_store.build(tmp_path, outcomes))
    assert not View(results).pictured
    charts = [b.name for s in report.document(results).sections for b in s.blocks if isinstance(b, Chart)]
    assert "layers" in charts
    assert "patterns" not in charts


def test_a_cell_names_the_command_that_makes_it_again(results: Results, page: str, tmp_path: Path) -> None:
    facts = facts_of(page)
    path = tmp_path / "study.toml"
    path.write_bytes(report.outputs(results)["study.toml"]())
    options = shlex.split(" ".join([*facts["command"][1], facts["recipes"][2]]))
    changes = [word for word in options if word != "--set"]
    study = load_study(path, [*changes, "sparsities=[0.9]", "seeds=[7]"])
    (run,) = study.runs()
    assert run == Run("regression", "structured", 0.9, 7)
    assert study.strategies[0] == results.study.recipe("structured")
    assert study.training == results.study.training


def test_names_of_a_study_are_text(tmp_path: Path) -> None:
    results = hostile(tmp_path)
    page = page_of(results)
    shown = page.partition('<script type="application/json"')[0]
    assert "<img" not in shown
    assert "&lt;/script&gt;&lt;img src=x onerror=alert(1)&gt;" in shown
    assert page.count("</script>") == 3
    assert "49" not in shown.partition("<h1>")[2][:60]
    facts = facts_of(page)
    assert facts["data"]["settings"]["rows"][0][0] == HOSTILE
    assert facts["data"]["findings"]["rows"][0][2] == HOSTILE
    assert re.fullmatch(r"[\w-]+", facts["file"])
    assert (tmp_path / "x").write_bytes(report.outputs(results)["tables/means.tex"]())


@pytest.mark.parametrize(("words", "marked"), [
    ("`natal diagnose` tells", "<code>natal diagnose</code> tells"),
    ("one ` alone <b>", "one ` alone &lt;b&gt;"),
    ("`<b>`", "<code>&lt;b&gt;</code>"),
])  # fmt: skip
def test_code_in_sentences_is_shown_as_code(words: str, marked: str) -> None:
    assert str(browser._marked(words)) == marked


def test_of_a_large_study_a_page_shows_a_sample_and_says_so(
    results: Results, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, most in (("RUNS", 50), ("CURVES", 7), ("LAYERS", 20), ("FINDINGS", 5)):
        monkeypatch.setattr(drawn, name, most)
    monkeypatch.setattr(browser, "ENTRIES", 90)
    page = page_of(results)
    facts = facts_of(page)
    assert [len(facts["data"][n]["rows"]) for n in ("cells", "runs", "curves", "layers")] == [48, 50, 7, 20]
    assert [r["metric"] for r in objects(facts, "runs")][::49] == pytest.approx(
        [results.runs[0].test_metric, results.runs[-1].test_metric], rel=1e-5
    )
    assert "38 more lines are only there" in page


@pytest.mark.parametrize("finished", [0, 30])
def test_an_unfinished_study_has_a_page(tmp_path: Path, finished: int) -> None:
    outcomes = dict(list(reference_store.reference_outcomes().items())[:finished])
    page = page_of(load(reference_store.build(tmp_path, outcomes)))
    assert f"UNFINISHED: {144 - len(load(tmp_path).runs)} of 144 runs are missing" in page


def specs(results: Results) -> list[dict[str, Any]]:
    """Every chart of a report as a browser would draw it, with two rows of data."""
    view = View(results)
    blocks = [b for s in report.document(results).sections for b in s.blocks]
    filled: dict[str, Any] = {
        "x": charts.axes(view)["density"],
        "strategies": view.strategies,
        "legend": {"orient": "bottom", "columns": 2},
        "columns": 3,
        "panel": 200,
        "label": 100,
        "soft": "#555555",
        "paper": "#ffffff",
        "depth": {"name": "viridis", "extent": [0, 0.8]},
        "ink": "#000000",
        "faint": "#dddddd",
        "tiles": 4,
        "pairs": 2,
    }

    def fill(node: Any) -> Any:
        if isinstance(node, list):
            return [fill(entry) for entry in node]
        if isinstance(node, dict):
            return filled[node["$"]] if "$" in node else {key: fill(entry) for key, entry in node.items()}
        return node

    shown = [b for b in blocks if isinstance(b, Chart)]
    return [fill(dict(chart.spec)) for chart in [*shown, *charts.closer()]]


@pytest.mark.slow
def test_every_chart_is_valid_vega_lite(results: Results) -> None:
    import altair

    schema = "https://vega.github.io/schema/vega-lite/v6.json"
    for spec in specs(results):
        altair.Chart.from_dict({"$schema": schema, **spec}, validate=True)


@pytest.mark.slow
def test_the_script_in_pages_is_the_bundled_one() -> None:
    import runpy

    tool = runpy.run_path(str(Path(__file__).parents[2] / "tools" / "bundle_vega.py"))
    assert tool["TARGET"].read_text("utf-8") == tool["bundle"]()
