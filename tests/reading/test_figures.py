"""The figures: what they show, for any shape of study, and what they were drawn from."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.container import ErrorbarContainer
from matplotlib.lines import Line2D

import reference_store
from natal.reading import figures
from natal.reading.results import load
from natal.study import Run, load_study

REFERENCE = reference_store.reference_outcomes()


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return load(reference_store.build(tmp_path_factory.mktemp("figures")))


def shaped(directory: Path, tasks: int = 1, strategies: int = 3, **changes: Any) -> Any:
    """Results of a made-up study with the reference runs' numbers."""
    names = [f"strategy-{i}" for i in range(strategies)]
    task_names = [f"task-{i}" for i in range(tasks)]
    base = reference_store.reference_study().model_dump(mode="json")
    recipes = [{"name": name, "criterion": "magnitude"} for name in names]
    training = {**base["training"], "learning_rate": None}
    study = load_study(
        {**base, "tasks": task_names, "strategies": recipes, "training": training, "claims": [], **changes}
    )
    outcomes = {run: REFERENCE[Run(("modular", "regression")[int(run.task[-1]) % 2],
                                   ("magnitude", "random", "structured")[int(run.strategy[9:]) % 3],
                                   run.sparsity, run.seed)] for run in study.runs()}  # fmt: skip
    facts = {
        name: reference_store.TASKS[("modular", "regression")[i % 2]] for i, name in enumerate(task_names)
    }
    return load(reference_store.build(directory, outcomes, study, tasks=facts))


def xs(line: Line2D) -> list[float]:
    return [float(x) for x in np.asarray(line.get_xdata())]


def ys(line: Line2D) -> list[float]:
    return [float(y) for y in np.asarray(line.get_ydata())]


def labels(axes: Any) -> list[str]:
    return [text.get_text() for text in axes.texts]


def test_a_panel_per_task_and_a_line_per_strategy(results: Any) -> None:
    figure = figures.metric_figure(results)
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["modular", "regression"]
    for axes in figure.axes:
        assert axes.get_legend_handles_labels()[1] == ["magnitude", "random", "structured"]
        assert axes.get_xlabel() == "requested sparsity (%)"
    assert [axes.get_ylabel() for axes in figure.axes] == ["test accuracy", "test R²"]
    assert labels(figure.axes[0]) == ["chance 0.01", "dense 0.29"]
    assert figure.get_size_inches()[0] == 7


def test_critical_sparsities_are_dashed_in_each_strategys_colour(results: Any) -> None:
    for axes, wanted in zip(figures.metric_figure(results).axes, ([0, 0, 80], [30, 50, 90]), strict=True):
        dashed = {line.get_color(): xs(line)[0] for line in axes.lines
                  if len(set(xs(line))) == 1 and len(xs(line)) == 2}  # fmt: skip
        assert [round(dashed[colour]) for colour in figures.COLOURS[:3]] == pytest.approx(wanted, abs=1)


def test_means_are_the_reference_means(results: Any) -> None:
    bars = figures.metric_figure(results).axes[0].containers[2]
    assert isinstance(bars, ErrorbarContainer)
    means = [round(y, 4) for y in ys(bars.lines[0])]
    assert means == [0.2891, 0.3535, 0.4513, 0.5990, 0.7094, 0.6132, 0.2685, 0.0900]


def test_epochs_figure_names_the_budget(results: Any) -> None:
    figure = figures.epochs_figure(results)
    assert [labels(axes) for axes in figure.axes] == [["budget 500"]] * 2
    assert figure.axes[0].get_ylim()[0] == 0


@pytest.mark.parametrize(("tasks", "strategies", "changes"), [
    (1, 1, {"seeds": [42], "sparsities": [0.5]}),
    (1, 1, {"seeds": [42], "sparsities": [0.0]}),
    (3, 2, {"seeds": [42, 7]}),
    (4, 12, {}),
])  # fmt: skip
def test_any_shape_of_study_can_be_drawn(tmp_path: Path, tasks: int, strategies: int, changes: Any) -> None:
    results = shaped(tmp_path, tasks, strategies, **changes)
    for kind in ("metric", "epochs"):
        assert figures.png(results, kind).startswith(b"\x89PNG")


@pytest.mark.parametrize("strategies", range(1, figures.FEW + 1))
def test_strategies_in_one_panel_can_be_told_apart(tmp_path: Path, strategies: int) -> None:
    lines = figures._lines(shaped(tmp_path, strategies=strategies).study)
    for looks in (
        {line.colour for line in lines},
        {line.marker for line in lines},
        {line.shift for line in lines},
    ):
        assert len(looks) == strategies
    assert (
        max(abs(line.shift) for line in lines) < 2.5
    )  # half the way to the next level: 90 and 95 are closest


def test_many_strategies_get_a_small_panel_each(tmp_path: Path) -> None:
    figure = figures.metric_figure(shaped(tmp_path, tasks=2, strategies=16))
    assert [sheet.get_suptitle() for sheet in figure.subfigs] == [
        "task-0: chance 0.01, dense 0.29; mean ± 1 sd, n = 3", "task-1: chance 0, dense 0.98; mean ± 1 sd, n = 3",
    ]  # fmt: skip
    for sheet, critical in zip(figure.subfigs, ([0, 0, 80], [30, 50, 90]), strict=True):
        panels = [axes for axes in sheet.axes if axes.axison]
        assert [axes.get_title(loc="left") for axes in panels] == [f"strategy-{i}" for i in range(16)]
        grid = sheet.axes[0].get_gridspec()
        assert grid is not None
        assert grid.get_geometry() == (4, 4)
        for i, axes in enumerate(panels):
            assert axes.get_ylim() == panels[0].get_ylim()
            [own] = axes.containers
            assert isinstance(own, ErrorbarContainer)
            dashed = [
                line for line in axes.lines if line.get_color() == figures.COLOURS[0] and len(xs(line)) == 2
            ]
            assert xs(dashed[0])[0] == critical[i % 3]
            assert len(xs(own.lines[0])) == 8
            assert sum(line.get_color() == "0.8" for line in axes.lines) == 16
    assert " ".join(tick.get_text() for tick in panels[-1].get_xticklabels()) == "0 30 50 80 95"


def test_a_control_has_its_strategy_beside_it(tmp_path: Path) -> None:
    names = ["magnitude", *({"criterion": "magnitude", "control": c} for c in ("shuffle", "reinit", "invert")),
             "random", "snip", "grasp"]  # fmt: skip
    base = reference_store.reference_study().model_dump(mode="json")
    study = load_study({**base, "tasks": ["regression"], "strategies": names, "claims": []})
    outcomes = {run: REFERENCE[Run("regression", "random", run.sparsity, run.seed)] for run in study.runs()}
    for seed in study.seeds:
        run = Run("regression", "magnitude", 0.5, seed)
        outcomes[run] = replace(outcomes[run], test_metric=0.125)
    figure = figures.metric_figure(load(reference_store.build(tmp_path, outcomes, study)))
    beside = [
        [line for line in axes.lines if line.get_color() == "black"] for axes in figure.subfigs[0].axes[:7]
    ]
    assert [len(lines) for lines in beside] == [0, 1, 1, 1, 0, 0, 0]
    assert ys(beside[1][0])[3] == 0.125


@pytest.mark.parametrize(("kind", "start"), [("pdf", b"%PDF-"), ("svg", b"<?xml")])
def test_figures_can_be_saved_for_a_paper(results: Any, tmp_path: Path, kind: str, start: bytes) -> None:
    path = tmp_path / f"figure.{kind}"
    figures.metric_figure(results).savefig(path)
    assert path.read_bytes().startswith(start)


def test_a_legend_fits_into_the_page() -> None:
    paper = ["magnitude", "random", "structured", "critical sparsity", "95% of dense"]
    assert figures._legend_columns(paper) == 5  # 54 letters: 5 * 36 + 4.6 * 54 = 428 of 504 points
    assert figures._legend_columns(["magnitude-layerwise-neuron-shuffle"] * 12) == 2  # 192 points each
    assert figures._legend_columns(["x" * 200] * 3) == figures._legend_columns(["x"]) == 1


@pytest.mark.filterwarnings("error")
def test_missing_and_diverged_runs_are_counted_in_red(tmp_path: Path) -> None:
    outcomes = dict(REFERENCE)
    for seed in (42, 123, 7):
        run = Run("regression", "structured", 0.7, seed)
        outcomes[run] = reference_store.diverged(outcomes[run])
        del outcomes[Run("modular", "random", 0.9, seed)]
    figure = figures.metric_figure(load(reference_store.build(tmp_path, outcomes)))
    assert [axes.get_title(loc="right") for axes in figure.axes] == [
        "mean ± 1 sd, n = 3, 3 missing", "mean ± 1 sd, n = 3, 3 diverged",
    ]  # fmt: skip
    empty = load(reference_store.build(tmp_path / "empty", {}))
    assert figures.png(empty, "metric").startswith(b"\x89PNG")


def test_huge_negative_r2_is_clipped_marked_and_counted(tmp_path: Path) -> None:
    # the third seed's is in sight, and so is none of the cell's bar of ± 500
    fallen = [Run("regression", "random", 0.95, seed) for seed in (42, 123)]
    outcomes = {run: replace(o, test_metric=-1000.0) if run in fallen else o for run, o in REFERENCE.items()}
    axes = figures.metric_figure(load(reference_store.build(tmp_path, outcomes))).axes[1]
    low, high = axes.get_ylim()
    assert -0.7 < low < -0.4
    assert high < 1.2
    assert "arrows: 2 runs below the axis, down to -1e+03" in labels(axes)


def test_a_picture_carries_what_it_was_drawn_from(results: Any, tmp_path: Path) -> None:
    path = tmp_path / "figure.png"
    content = figures.png(results, "epochs")
    path.write_bytes(content)
    assert figures.shown_digest(path) == results.digest
    for damage in (content[:-100], content[:5000] + b"x" + content[5001:], b"\x89PNG"):
        path.write_bytes(damage)
        with pytest.raises(OSError, match=r"figure\.png"):
            figures.shown_digest(path)


def test_the_digest_knows_one_changed_bit(results: Any, tmp_path: Path) -> None:
    run = Run("regression", "random", 0.5, 7)
    outcomes = {**REFERENCE, run: replace(REFERENCE[run], test_metric=0.5)}
    assert load(reference_store.build(tmp_path, outcomes)).digest != results.digest


def test_drawing_leaves_the_users_style_alone_and_ignores_it(results: Any) -> None:
    import matplotlib

    plain = figures.png(results, "epochs")
    with matplotlib.rc_context({"font.size": 30, "lines.linewidth": 9, "savefig.transparent": True}):
        assert figures.png(results, "epochs") == plain
        assert matplotlib.rcParams["font.size"] == 30


# -- several networks, and names that matplotlib would read otherwise -------------------------------------------


def test_a_panel_per_task_and_network(tmp_path: Path) -> None:
    study, outcomes = reference_store.two_networks()
    results = load(reference_store.build(tmp_path, outcomes, study))
    names = ["modular / wide", "modular / narrow", "regression / wide", "regression / narrow"]
    figure = figures.metric_figure(results)
    assert [axes.get_title(loc="left") for axes in figure.axes] == names
    dense = [text for axes in figure.axes for text in labels(axes) if text.startswith("dense")]
    assert dense == ["dense 0.29", "dense 0.14", "dense 0.98", "dense 0.49"]
    many = [{"name": f"strategy-{i}", "criterion": "magnitude"} for i in range(7)]
    study = load_study({**study.model_dump(mode="json"), "strategies": many})
    one = reference_store.reference_outcomes()[Run("regression", "random", 0.5, 7)]
    figure = figures.epochs_figure(
        load(reference_store.build(tmp_path / "many", dict.fromkeys(study.runs(), one), study))
    )
    assert [sheet.get_suptitle().partition(":")[0] for sheet in figure.subfigs] == names


@pytest.mark.parametrize("long", [False, True])
def test_the_names_of_panels_stay_clear_of_the_notes_beside_them(tmp_path: Path, long: bool) -> None:
    names = {"wide": "wide", "narrow": "a-network-of-a-long-name" if long else "thin"}
    study, outcomes = reference_store.two_networks()
    networks = tuple(network.model_copy(update={"name": names[network.name]}) for network in study.networks)
    study = study.model_copy(update={"networks": networks})
    outcomes = {run._replace(network=names[run.network]): found for run, found in outcomes.items()}
    figure = figures.metric_figure(load(reference_store.build(tmp_path, outcomes, study)))
    figure.draw_without_rendering()
    for axes in figure.axes:
        name, note = (getattr(axes, title).get_window_extent() for title in ("_left_title", "_right_title"))
        assert not name.overlaps(note)
        # a line above only where there is no room
        assert (name.y0 > note.y1) == long


def test_the_budget_is_each_settings_own_in_epochs(tmp_path: Path) -> None:
    training = {"length": "1000it", "batch": 64, "patience": "none"}  # 3 steps an epoch of 144 rows
    results = shaped(tmp_path, tasks=2, training={**training, "learning_rate": None})
    figure = figures.epochs_figure(results)
    assert [labels(axes) for axes in figure.axes] == [["budget 9.433962264"], ["budget 333.3333333"]]


NAMES = ["$x^$", "$", "$a$ and $b$", r"\$x^\$", "_hidden", "100% {x}", "a_b^c"]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("name", "strategies"), [*((name, 2) for name in NAMES), ("$x^$", 7), ("_hidden", 7)]
)
def test_any_name_can_be_drawn(tmp_path: Path, name: str, strategies: int) -> None:
    assert figures.png(renamed(tmp_path, name, strategies), "metric").startswith(b"\x89PNG")


def test_a_name_is_drawn_as_it_is_written(tmp_path: Path) -> None:
    import matplotlib.text

    for name in ("$x^$", "_hidden"):
        figure = figures.metric_figure(renamed(tmp_path / name.strip("$"), name, 2))
        [shown] = [
            text
            for text in figure.legends[0].get_texts()
            if text.get_text().strip().replace("\\", "") == name
        ]
        assert isinstance(shown, matplotlib.text.Text)
        drawn, is_math = shown._preprocess_math(shown.get_text())  # type: ignore[attr-defined]
        assert (drawn.strip(), is_math) == (name, False)


def renamed(directory: Path, name: str, strategies: int) -> Any:
    """Results of a study whose task, network and first strategy have an unusual name."""
    recipes = [{"name": name if i == 0 else f"s{i}", "criterion": "magnitude"} for i in range(strategies)]
    base = reference_store.reference_study().model_dump(mode="json")
    del base["hidden"]
    named = {
        "tasks": [{"task": "modular", "name": name}],
        "networks": [{"network": "mlp", "name": name}, "other"],
    }
    study = load_study({**base, **named, "strategies": recipes, "claims": [], "training": {"epochs": 500}})
    one = REFERENCE[Run("modular", "random", 0.5, 7)]
    facts = {name: {**reference_store.TASKS["modular"], "metric": name}}
    return load(reference_store.build(directory, dict.fromkeys(study.runs(), one), study, tasks=facts))


@pytest.mark.parametrize("levels", [[0.0, 0.97, 0.98, 0.99], [0.9, 0.95, 0.99, 0.999], [0.5]])
def test_no_marker_is_moved_to_where_another_level_might_be(tmp_path: Path, levels: list[float]) -> None:
    base = reference_store.reference_study().model_dump(mode="json")
    recipes = [{"name": f"s{i}", "criterion": "magnitude"} for i in range(figures.FEW)]
    study = load_study({**base, "sparsities": levels, "strategies": recipes, "claims": []})
    closest = min((b - a for a, b in pairwise(levels)), default=1.0)
    assert max(abs(line.shift) for line in figures._lines(study)) <= 100 * closest / 4 + 1e-9
