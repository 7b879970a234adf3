"""Everything a directory shows, rebuilt from its store alone."""

from __future__ import annotations

import csv
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from test_results import searching

import reference_store
from natal.errors import NatalError
from natal.reading import figures, report, stats, wording
from natal.reading.report import browser, files, view
from natal.reading.report.sections import compared
from natal.reading.results import Results, load
from natal.store import Store
from natal.study import Control, Run, Training, load_study, presets

COLUMNS = (
    "task,strategy,sparsity,metric_name,metric_mean,metric_std,metric_ci_low,metric_ci_high,"
    "epochs_mean,epochs_std,n_seeds"
)
TABLES = ["published", "means", "results", "pairs", "pairs-by-level", "masks"]
FILES = [*report.OUTPUTS, *(f"tables/{name}.{kind}" for name in TABLES for kind in ("csv", "tex"))]


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return reference_store.build(tmp_path_factory.mktemp("report"))


@pytest.fixture(scope="module")
def text(directory: Path) -> str:
    return report.text(load(directory))


def table(directory: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(report.csv_bytes(load(directory)).decode().splitlines()))


def test_write_makes_every_file_and_the_same_bytes_again(directory: Path) -> None:
    paths = report.write(directory)
    assert [str(p.relative_to(directory)) for p in paths] == FILES
    first = {p: p.read_bytes() for p in paths}
    assert {p: p.read_bytes() for p in report.write(directory)} == first
    assert [p.name for p in directory.rglob(".*")] == [report.WRITTEN]


def test_summary_has_the_published_columns_and_a_row_per_cell(directory: Path) -> None:
    content = report.csv_bytes(load(directory)).decode()
    assert content.splitlines()[0] == COLUMNS
    rows = table(directory)
    assert len(rows) == 2 * 3 * 8
    structured = next(
        r for r in rows if (r["task"], r["strategy"], r["sparsity"]) == ("modular", "structured", "0.7")
    )
    assert round(float(structured["metric_mean"]), 4) == 0.7094
    assert (structured["metric_name"], structured["n_seeds"]) == ("test_acc", "3")
    assert float(structured["metric_ci_low"]) < 0.7094 < float(structured["metric_ci_high"])


def test_json_is_the_published_format(directory: Path) -> None:
    content = json.loads(report.json_bytes(load(directory)))
    assert set(content) == {"metadata", "results"}
    assert content["results"] == reference_store.reference_objects()


def test_report_has_its_sections(text: str) -> None:
    sections = ["KEY FINDINGS", "PUBLISHED BESIDE OURS", "RESULTS", "WHAT THE NUMBERS HIDE",
                "WHAT THIS CANNOT CONCLUDE", "STRATEGIES SEED BY SEED", "WHAT THE MASKS DID", "WHAT WAS RUN",
                "HOW IT WAS MADE"]  # fmt: skip
    positions = [text.index(f"\n{s}\n----") for s in sections]
    assert positions == sorted(positions)
    assert "95% CI" in text
    assert "UNFINISHED" not in text
    for title in ("RANKING", "CONTROLS", "PATIENCE WOULD HAVE"):
        assert title not in text  # three strategies need no ranking, have no controls, and were stopped early
    assert all(len(line) <= 125 for line in text.splitlines())


def test_report_says_what_the_numbers_hide(text: str) -> None:
    assert "Layer collapse, 18 runs" in text
    assert "regression from 50% on: magnitude 15" in text
    assert "Stopped by patience at chance, 41 runs" in text
    assert "modular at 10%, 90%: structured 2" in text  # straddling
    findings = section(text, "KEY FINDINGS")
    assert "!! masks left nothing that can learn, before any training, from 50% on" in findings
    assert "!! patience ended runs that were still at chance at 30%, 50%, 70%, 80%, 90%" in findings
    assert "with so few seeds none could: the least p is 0.25" in " ".join(findings.split())


def test_report_says_what_three_seeds_cannot(text: str) -> None:
    assert "n = 3: 3 seeds a cell" in text
    assert "is 0.25, so no difference" in " ".join(text.split())
    assert "needs 6 seeds or more" in " ".join(text.split())


def test_report_puts_published_numbers_beside_ours(text: str) -> None:
    line = next(line for line in text.splitlines() if "structured's critical sparsity is 90%" in line)
    assert line.split()[:6] == ["not", "excluded", "90%", "80%", "[80%,", "90%]"]
    assert text.count("neurons only select a width") == text.count("\n    not tested ") == 2
    assert "24 supported, 3 not excluded, 2 not tested." in " ".join(text.split())


def test_report_says_what_the_masks_did(text: str) -> None:
    table = text[text.index("regression / magnitude: collapses at 42.4%") :].splitlines()
    assert table[4].split() == [
        *("50%", "50.0%", "100.0%", "0.0", "128.0", "0%", "0.00"),
        *("fatal", "in", "3", "of", "3"),
    ]
    words = " ".join(text.split())
    assert "fatal from 50% on, 15 runs: output.weight has collapsed: no weight is left" in words
    assert "warning from 10% on, 21 runs, such as: hidden.weight has dead units: 12 that nothing" in words
    assert "regression: nothing above a note about random." in words


def many(directory: Path, strategies: int, seeds: int = 3) -> Path:
    """A study of many strategies on one task: each a little worse than the one before it."""
    names = ["random", *(f"strategy-{i}" for i in range(1, strategies))]
    base = reference_store.reference_study().model_dump(mode="json")
    recipes = [{"name": n, "criterion": "random" if n == "random" else "magnitude"} for n in names]
    study = load_study(
        {**base, "tasks": ["regression"], "strategies": recipes, "claims": [], "seeds": list(range(seeds))}
    )
    reference = reference_store.reference_outcomes()
    outcomes = {}
    for run in study.runs():
        place = names.index(run.strategy)
        like = "random" if place else "magnitude"  # the first strategy's masks are the fatal ones
        outcome = reference[Run("regression", like, run.sparsity, 42)]
        metric = 0.9 - 0.01 * ((place - 2) % strategies) * (run.sparsity > 0) + 0.001 * run.seed
        outcomes[run] = replace(outcome, test_metric=metric)
    return reference_store.build(directory, outcomes, study)


def section(text: str, title: str) -> str:
    return text.partition(f"\n{title}\n---")[2].partition("\n---")[0]


def test_many_strategies_are_ranked_and_shown_side_by_side(tmp_path: Path) -> None:
    text = report.text(load(many(tmp_path, 15)))
    ranking = section(text, "RANKING")
    assert "With 3 seeds no pair can be told apart, whatever the difference: the least p is 0.25" in (
        " ".join(ranking.split())
    )
    rows = [line.split() for line in ranking.splitlines() if line.split()[:1] and line.split()[0].isdigit()]
    assert [row[1] for row in rows] == [f"strategy-{i}" for i in range(2, 15)] + ["random", "strategy-1"]
    assert rows[0][2] == "0.9010"
    assert rows[13][-8:] == ["0%", "[0%,", "0%]", "5", "of", "7", "0", "all"]
    masks = section(text, "WHAT THE MASKS DID")
    assert "100.0%F" in masks
    assert "random: fatal from 50% on, 15 runs: no path of kept weights" in masks
    # 14 pairs with the best and 14 with random masks, one of them the same
    pairs = section(text, "STRATEGIES SEED BY SEED")
    assert "Shown are the 27 pairs" in pairs
    assert "78 others are left out, 0 of them significant" in " ".join(pairs.split())
    assert "for all 735 comparisons" in " ".join(pairs.split())
    assert sum(" - " in line for line in pairs.splitlines()) == 1 + 27  # and the title of their column
    assert "See tables/pairs-by-level.csv" in pairs
    assert all(len(line) <= 125 for line in text.splitlines())


def test_enough_seeds_tell_strategies_apart(tmp_path: Path) -> None:
    text = report.text(load(many(tmp_path, 7, seeds=16)))
    assert "21 of 21 pairs of strategies differ significantly" in " ".join(text.split())
    assert " beats " not in text
    assert "10 others are left out, 10 of them significant" in " ".join(text.split())
    ranking = section(text, "RANKING")
    assert "no pair can be told apart" not in ranking
    assert [line.split()[-1] for line in ranking.splitlines() if "of 7" in line] == ["-"] * 7


def controlled(directory: Path) -> Path:
    """A study without early stopping: structured, its width control, and random masks with all controls."""
    base = load_study("controls", ["seeds=[42, 123, 7]"]).model_dump(mode="json")
    names = ["random", {"criterion": "random", "control": "shuffle"}, "structured", "fresh-narrow"]
    claims = [claim for claim in base["claims"] if claim["task"] == "modular"]
    changes = {"tasks": ["modular"], "strategies": names, "sparsities": [0.0, 0.3, 0.5], "claims": claims}
    study = load_study({**base, **changes})
    reference = reference_store.reference_outcomes()
    outcomes = {}
    for run in study.runs():
        kind = "random" if run.strategy.startswith("random") else "structured"
        o = reference[Run("modular", kind, run.sparsity, run.seed)]
        if run.strategy == "fresh-narrow":
            o = replace(o, test_metric=(o.test_metric or 0) + 0.01)
        if kind == "random" and run.sparsity:  # at chance for 101 epochs, and then it memorises
            curve, loss = np.full(500, 0.004), np.linspace(4.5, 0.5, 500)
            curves = {"step": np.arange(1.0, 501), "train_loss": loss, "val_loss": loss, "val_metric": curve}
            o = replace(o, steps_trained=500, best_step=1, train_metric=0.9, curves=curves)
        outcomes[run] = o
    return reference_store.build(directory, outcomes, study)


def test_strategies_stand_beside_their_controls(tmp_path: Path) -> None:
    text = report.text(load(controlled(tmp_path)))
    controls = section(text, "STRATEGIES BESIDE THEIR CONTROLS")
    rows = [
        line.split()
        for line in controls.splitlines()
        if line.startswith(("    random -", "    structured -"))
    ]
    assert rows == [
        ["random", "-", "random-shuffle", "same"],
        ["structured", "-", "fresh-narrow", "-0.0100", "[-0.0100,", "-0.0100]", "0.5", "-0.0100", "-0.0100"],
    ]
    assert "for 2 planned comparisons" in " ".join(controls.split())
    assert "  - shuffle: the same number of weights" in controls
    assert "  - fresh-narrow: a newly drawn network" in controls
    assert "quota-random" not in controls
    claims = section(text, "PUBLISHED BESIDE OURS")
    # a difference of 0.01 is less than 1,882 test rows can show
    assert [line[:20].strip() for line in claims.splitlines() if "select a width" in line] == [
        "cannot be judged"
    ]


def test_a_study_without_early_stopping_says_what_patience_would_have_hidden(tmp_path: Path) -> None:
    hidden = section(report.text(load(controlled(tmp_path))), "WHAT PATIENCE WOULD HAVE HIDDEN")
    rows = [line.split() for line in hidden.splitlines() if " of " in line and "%" in line]
    # after 101 of 500 epochs the loss has come 100 / 499 of the way from 4.5 to 0.5
    assert rows[0] == [
        "random",
        "30%",
        "3",
        "of",
        "3",
        "101",
        "3.6984",
        "0.5000",
        "0.9000",
        "0.0028",
    ]
    assert [row[-9] for row in rows] == ["30%", "50%"] * 2


def test_every_control_has_its_meaning() -> None:
    kinds = {kind for _, _, kind in stats.controls(load_study("controls"))}
    assert set(compared.CONTROL_MEANING) == {*kinds, *get_args(Control)}


def test_every_mean_in_the_tables_is_a_stats_mean(directory: Path, text: str) -> None:
    for cell in stats.cells(load(directory).runs):
        assert f"{cell.test.mean:.4f}" in text


def test_an_unfinished_store_is_reported_loudly(tmp_path: Path) -> None:
    outcomes = dict(list(reference_store.reference_outcomes().items())[:30])
    results = load(reference_store.build(tmp_path, outcomes))
    content = report.text(results)
    assert f"UNFINISHED: {len(results.missing)} of 144 runs are missing" in content
    assert json.loads(report.json_bytes(results))["metadata"]["natal"]["missing_runs"] == len(results.missing)
    assert "UNFINISHED: 144 of 144" in report.text(load(reference_store.build(tmp_path / "empty", {})))


def test_diverged_and_mixed_runs_are_reported_loudly(tmp_path: Path) -> None:
    outcomes = reference_store.reference_outcomes()
    for seed in (42, 123, 7):
        run = Run("modular", "structured", 0.95, seed)
        outcomes[run] = reference_store.diverged(outcomes[run])
    other = Run("regression", "random", 0.5, 7)
    outcomes[other] = replace(
        outcomes[other], made_by=replace(reference_store.MAKER, engine="stacked", device="cuda")
    )
    directory = reference_store.build(tmp_path, outcomes)
    content = report.text(load(directory))
    assert "DIVERGED: 3 trainings" in content
    assert "MIXED PROVENANCE" in content
    assert "stacked engine (revision 1) on cuda, natal 0.2.0, torch 2.13.0+cpu, numpy 2.4.6: 1" in content
    row = next(
        r
        for r in table(directory)
        if (r["task"], r["strategy"], r["sparsity"]) == ("modular", "structured", "0.95")
    )
    assert (row["metric_mean"], row["n_seeds"]) == ("nan", "0")


def test_one_seed_has_no_interval(tmp_path: Path) -> None:
    study = load_study(
        {**reference_store.reference_study().model_dump(mode="json"), "seeds": [42], "claims": []}
    )
    directory = reference_store.build(tmp_path, study=study)
    assert {r["metric_ci_low"] for r in table(directory)} == {"nan"}
    content = report.text(load(directory))
    assert "n/a" in content
    assert "One run only" in content
    assert "n = 1: 1 seed a cell" in content
    assert "PUBLISHED" not in content


def test_a_negative_dense_mean_leaves_critical_sparsity_undefined(tmp_path: Path) -> None:
    outcomes = {run: replace(o, test_metric=-12345.678) if run.task == "regression" else o
                for run, o in reference_store.reference_outcomes().items()}  # fmt: skip
    content = report.text(load(reference_store.build(tmp_path, outcomes)))
    assert "0.95 of it: undefined, not positive" in content
    assert "magnitude: critical sparsity undefined" in content
    assert "-1.2e+04" in content
    assert "Dense network at chance, 1 tasks" in content
    assert "!! the dense network is at chance" in content


def test_a_directory_that_cannot_be_written_is_one_clear_line(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(NatalError, match=r"results\.json: No space left on device"):
        report.write(directory)
    assert {p.name for p in directory.iterdir() if p.name.startswith(".")} <= {report.WRITTEN}


# -- several networks, other trainings, searched learning rates ---------------------------------------------------


@pytest.fixture(scope="module")
def networks(tmp_path_factory: pytest.TempPathFactory) -> Results:
    study, outcomes = reference_store.two_networks(
        training={
            "length": "20000it",
            "batch": 128,
            "optimiser": {"name": "sgd", "momentum": 0.9},
            "patience": "none",
        }
    )
    steps = {"modular": 53, "regression": 2}
    outcomes = {
        run: replace(o, steps_per_epoch=steps[run.task], steps_planned=20000) for run, o in outcomes.items()
    }
    return load(reference_store.build(tmp_path_factory.mktemp("networks"), outcomes, study))


def test_a_report_names_every_network_and_how_it_was_trained(networks: Results) -> None:
    text = report.text(networks)
    run = section(text, "WHAT WAS RUN")
    assert "288 of 288: 2 tasks x 2 networks x 3 strategies x 8 sparsities x 3 seeds" in run
    assert (
        "wide on modular: 37,473 parameters, 37,248 prunable weights in 2 layers, 37,248 multiply-adds a row; "
        "engine torch"
    ) in " ".join(run.split())
    assert (
        "  training    SGD on batches of 128, momentum 0.9, at most 20000 steps, no patience, target 0.999"
        in run
    )
    assert "  rate        0.01 on modular\n  rate        0.001 on regression\n" in run
    for title in ("KEY FINDINGS", "RESULTS", "STRATEGIES SEED BY SEED", "WHAT THE MASKS DID"):
        for name in ("modular / wide", "modular / narrow", "regression / wide", "regression / narrow"):
            assert name in section(text, title), (title, name)
    limits = " ".join(section(text, "WHAT THIS CANNOT CONCLUDE").split())
    assert "A seed sets data, split, order of batches and initial weights together." in limits
    assert "Tried: modular, regression; wide, narrow; one learning rate per task or network" in limits
    assert "hidden layer" not in text
    assert all(len(line) <= 125 for line in text.splitlines())


def test_a_table_of_several_networks_names_them(networks: Results) -> None:
    content = report.csv_bytes(networks).decode().splitlines()
    assert content[0] == COLUMNS.replace("sparsity,", "sparsity,network,")
    assert len(content) == 1 + 96
    assert content[1].startswith("modular,magnitude,0.0,wide,test_acc,0.289")


def test_claims_are_held_against_their_network(tmp_path: Path) -> None:
    claim = {"text": "it scores 0.98", "quantity": "mean", "task": "regression", "network": "narrow",
             "strategy": "random", "sparsity": 0.0, "published": 0.49}  # fmt: skip
    study, outcomes = reference_store.two_networks(claims=[claim, {**claim, "network": "wide"}])
    text = report.text(load(reference_store.build(tmp_path, outcomes, study)))
    beside = section(text, "PUBLISHED BESIDE OURS").splitlines()
    where = {name: beside.index(next(line for line in beside if line.startswith(f"  regression / {name}")))
             for name in ("wide", "narrow")}  # fmt: skip
    assert beside[where["wide"] + 2].split()[:3] == ["CONTRADICTED", "0.4900", "0.9769"]
    assert beside[where["narrow"] + 2].split()[:3] == ["supported", "0.4900", "0.4884"]
    # settings that no claim speaks of have no table
    assert not any(line.startswith("  modular") for line in beside)


def test_a_report_shows_which_learning_rates_were_chosen(tmp_path: Path) -> None:
    text = report.text(load(searching(tmp_path)))
    assert "0.1, 1, chosen per strategy and level on validation rows; see LEARNING RATES" in text
    rates = section(text, "LEARNING RATES")
    assert "4 trainings were made for it" in " ".join(rates.split())
    rows = [line.split() for line in rates.splitlines() if line.startswith(("  regression", "    "))]
    assert rows == [
        ["regression"],
        ["strategy", "50%"],
        ["random", "1", "e"],
    ]  # 0.1 and 1 were tried: 1 is the last of them
    assert "2 learning rates, the best on validation rows for each strategy and level" in " ".join(
        text.split()
    )
    assert "trainings   4; strategies share" in text
    open_ = report.text(load(searching(tmp_path / "open", finished=3, chosen=0.1, finished_at=None)))
    assert [
        line.split()
        for line in section(open_, "LEARNING RATES").splitlines()
        if line.startswith("    random")
    ] == [["random", "open"]]
    assert "LEARNING RATES" not in report.text(load(reference_store.build(tmp_path / "plain")))


@pytest.mark.parametrize(("training", "words"), [
    ({}, "full-batch Adam, at most 500 epochs, patience 100, target 0.999"),
    ({"epochs": 160, "batch": 128, "patience": "none", "target": "none", "decide": "end",
      "optimiser": {"name": "sgd", "momentum": 0.9, "nesterov": True, "weight_decay": 5e-4},
      "schedule": {"name": "cosine", "warmup": "5ep"}, "clip": 1.0, "label_smoothing": 0.1},
     "SGD on batches of 128, momentum 0.9 (Nesterov), weight decay 0.0005, schedule cosine, warm-up 5 epochs, "
     "label smoothing 0.1, gradients clipped at norm 1, at most 160 epochs, no patience, no target, the last weights"),
    ({"length": "500it", "evaluate": "10it", "decide": "val-loss", "schedule": [["100it", 0.1], ["200it", 0.01]],
      "optimiser": {"name": "adamw", "betas": [0.9, 0.98]}},
     "full-batch AdamW, betas 0.9 and 0.98, schedule from 100it times 0.1; from 200it times 0.01, at most 500 steps, "
     "evaluated every 10 steps, patience 100, target 0.999, weights of the lowest validation loss"),
    ({"schedule": {"name": "step", "every": "30ep"}},
     "full-batch Adam, schedule step, times 0.1 every 30 epochs, at most 500 epochs, patience 100, target 0.999"),
])  # fmt: skip
def test_every_way_of_training_has_its_words(training: dict[str, Any], words: str) -> None:
    assert wording.training(Training.model_validate(training)) == words


def test_a_study_that_shares_nothing_says_so(tmp_path: Path) -> None:
    study = load_study({**reference_store.reference_study().model_dump(mode="json"), "share": False})
    assert "; none is shared" in report.text(load(reference_store.build(tmp_path, study=study)))


# -- tables and the study as files ---------------------------------------------------------------------------------


def test_every_table_is_a_file_for_programs(directory: Path) -> None:
    results = load(directory)
    made = report.outputs(results)
    rows = list(csv.DictReader(made["tables/results.csv"]().decode().splitlines()))
    cells = stats.cells(results.runs)
    assert [(r["task"], r["strategy"], float(r["sparsity"])) for r in rows] == [
        (c.setting.task, c.strategy, c.sparsity) for c in cells
    ]
    assert [float(r["mean"]) for r in rows] == pytest.approx([c.test.mean for c in cells], abs=1e-9)
    masks = list(csv.DictReader(made["tables/masks.csv"]().decode().splitlines()))
    assert {(r["task"], r["strategy"]) for r in masks} > {("regression", "magnitude")}
    for name in made:
        if name.endswith(".csv"):
            content = list(csv.reader(made[name]().decode().splitlines()))
            assert {len(row) for row in content} == {len(content[0])}, name


def test_every_table_is_a_file_for_papers(directory: Path) -> None:
    made = report.outputs(load(directory))
    content = made["tables/means.tex"]().decode()
    assert "\\begin{tabular}{lrrrrrrrr}" in content
    assert "\\multicolumn{9}{l}{\\textit{modular: test\\_acc}} \\\\" in content
    assert "structured & 0.2891" in content
    assert "95\\% \\\\" in content
    for name in made:
        if name.endswith(".tex"):
            lines = [line for line in made[name]().decode().splitlines() if line.endswith("\\\\")]
            widths = {line.replace("\\&", "").count("&") for line in lines if "multicolumn" not in line}
            assert len(widths) == 1, name


def test_runs_are_a_table_of_everything_but_the_diagnosis(directory: Path) -> None:
    rows = list(csv.DictReader(report.outputs(load(directory))["runs.csv"]().decode().splitlines()))
    runs = load(directory).runs
    assert len(rows) == len(runs) == 144
    assert [float(row["test_metric"]) for row in rows] == [run.test_metric for run in runs]
    assert {"density_hidden", "seconds", "learning_rate", "made_by"} < set(rows[0])
    assert "diagnosis" not in rows[0]


@pytest.mark.parametrize("name", presets())
def test_the_study_is_a_file_that_runs_it_again(name: str, tmp_path: Path) -> None:
    study = load_study(name)
    path = tmp_path / "study.toml"
    path.write_bytes(files.study_bytes(study))
    assert load_study(path).digest == study.digest


def test_a_studys_words_survive_its_file(tmp_path: Path) -> None:
    table = reference_store.reference_study().model_dump(mode="json")
    changed = {**table, "description": 'a "quoted" \\ 🙂 \x7f\nline', "plugins": ["mine"], "claims": []}
    study = load_study(changed)
    path = tmp_path / "study.toml"
    path.write_bytes(files.study_bytes(study))
    assert load_study(path).description == study.description
    assert "mine, must lie beside this file" in path.read_text("utf-8")


# -- big studies, files that are written again, links that lead elsewhere -------------------------------------------


def _times(directory: Path) -> dict[str, int]:
    return {
        str(p): p.stat().st_mtime_ns for p in directory.rglob("*") if p.is_file() and p.name != "study.sqlite"
    }


@pytest.fixture
def no_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out what takes most of a report's time."""
    monkeypatch.setattr(figures, "png", lambda *_: b"drawn")
    monkeypatch.setattr(browser, "page", lambda *_: "page")


@pytest.mark.usefixtures("no_figures")
def test_outputs_are_written_again_only_if_something_changed(tmp_path: Path) -> None:
    directory = reference_store.build(tmp_path)
    paths = report.write(directory, anew=False)
    first = _times(directory)
    assert report.write(directory, anew=False) == paths
    assert _times(directory) == first
    (directory / "report.txt").write_text("mine")
    report.write(directory, anew=False)
    assert (directory / "report.txt").read_text() != "mine"
    second = _times(directory)
    reference_store.tamper(directory, "UPDATE training SET seconds = 1 WHERE id = 1")
    report.write(directory, anew=False)
    third = _times(directory)
    assert all(third[name] != second[name] for name in second)
    report.write(directory)
    assert all(time != third[name] for name, time in _times(directory).items())


@pytest.mark.usefixtures("no_figures")
def test_a_large_study_has_no_file_of_a_line_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = reference_store.build(tmp_path)
    report.write(directory)
    monkeypatch.setattr(view, "LARGE", 143)
    monkeypatch.setattr(view, "WIDE", 7)
    monkeypatch.setattr(view, "MANY_PAIRS", 10)
    written = {path.name for path in report.write(directory)}
    assert not {"results.json", "runs.csv"} & written
    assert not (directory / "runs.csv").exists()  # nor one of when it was smaller
    text = (directory / "report.txt").read_text()
    assert "`natal export DIR --json` and `--csv`" in " ".join(text.split())
    assert "Level by level there would be 42 comparisons" in " ".join(text.split())
    assert "See tables/means.csv" in text


@pytest.mark.usefixtures("no_figures")
def test_a_link_in_the_way_is_not_followed(tmp_path: Path) -> None:
    mine = tmp_path / "thesis"
    mine.write_text("mine")
    directory = reference_store.build(tmp_path / "results")
    for name in ("report.txt", "summary.csv"):
        (directory / f".{name}.{os.getpid()}").symlink_to(mine)
        (directory / name).symlink_to(mine)
    (directory / ".written").symlink_to(mine)
    report.write(directory)
    assert mine.read_text() == "mine"
    assert "KEY FINDINGS" in (directory / "report.txt").read_text()
    assert not (directory / "report.txt").is_symlink()


@pytest.mark.usefixtures("no_figures")
def test_tables_of_the_study_before_are_not_left_beside_the_report(tmp_path: Path) -> None:
    directory = reference_store.build(tmp_path)
    before = {str(path.relative_to(directory)) for path in report.write(directory)}
    mine = directory / "tables" / "mine.csv"
    mine.write_text("mine")
    smaller = {**reference_store.reference_study().model_dump(mode="json"), "sparsities": [0.0], "claims": []}
    with Store.create(directory) as store:
        manifest, grid = store.manifest(), [(run, key) for run, key in store.grid() if run.sparsity == 0]
        del manifest["study"]
        study = load_study(smaller)
        store.declare(study, grid, {**manifest, "study_hash": study.digest})
    after = {str(path.relative_to(directory)) for path in report.write(directory)}
    assert "tables/pairs.csv" in before - after
    assert {f"tables/{path.name}" for path in mine.parent.iterdir()} == {
        "tables/mine.csv", *(name for name in after if name.startswith("tables/"))
    }  # fmt: skip
