"""The figures: what they show, for any shape of study, and what they were drawn from."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from matplotlib.container import ErrorbarContainer
from matplotlib.lines import Line2D

import reference_store
from natal.errors import NatalError
from natal.reading import figures, stats
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
                                   run.sparsity if run.sparsity in base["sparsities"] else 0.9, run.seed)]
                for run in study.runs()}  # fmt: skip
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
    pytest.param(4, 12, {}, marks=pytest.mark.slow),
])  # fmt: skip
def test_any_shape_of_study_can_be_drawn(tmp_path: Path, tasks: int, strategies: int, changes: Any) -> None:
    results = shaped(tmp_path, tasks, strategies, **changes)
    for kind in ("metric", "epochs"):
        assert figures.png(results, kind).startswith(b"\x89PNG")


@pytest.mark.parametrize("strategies", [1, 2, 6, 9])
def test_strategies_in_colour_can_be_told_apart(tmp_path: Path, strategies: int) -> None:
    lines = figures._lines(shaped(tmp_path, strategies=strategies))
    coloured = [line for line in lines if line.place is not None]
    assert len(coloured) == min(strategies, figures.FEW)
    assert len({line.colour for line in coloured}) == len({line.marker for line in coloured}) == len(coloured)
    assert {line.colour for line in lines if line.place is None} <= {"0.55"}


def test_many_strategies_are_a_few_in_colour_and_a_ranking_of_all(tmp_path: Path) -> None:
    results = shaped(tmp_path, tasks=2, strategies=16)
    figure = figures.metric_figure(results)
    curves, forests = figure.axes[::2], figure.axes[1::2]
    assert [axes.get_title(loc="left") for axes in curves] == ["task-0", "task-1"]
    for axes, forest, setting in zip(curves, forests, results.study.settings(), strict=True):
        assert len(axes.containers) == figures.FEW
        assert sum(line.get_color() == "0.8" for line in axes.lines) == 10
        ranked = stats.ranking(results.runs, setting)
        assert [tick.get_text() for tick in forest.get_yticklabels()] == [r.strategy for r in ranked]
        means = [xs(line)[0] for line in forest.lines if len(xs(line)) == 1]
        assert means == [r.mean.mean for r in ranked]
        low, high = forest.get_ylim()
        assert low > high  # the best on top
    assert "10 others" in [text.get_text() for text in figure.legends[0].get_texts()]


def test_random_masks_and_the_best_that_are_no_controls_are_in_colour(tmp_path: Path) -> None:
    names = [*({"criterion": "magnitude", "control": c} for c in ("shuffle", "reinit", "invert")), "magnitude",
             "snip", "grasp", "synflow", "random"]  # fmt: skip
    base = reference_store.reference_study().model_dump(mode="json")
    study = load_study({**base, "tasks": ["regression"], "strategies": names, "claims": []})
    outcomes = {}
    for run in study.runs():
        # the later a strategy stands, the worse it is
        place = [r.name for r in study.strategies].index(run.strategy)
        outcome = REFERENCE[Run("regression", "random", run.sparsity, run.seed)]
        outcomes[run] = replace(outcome, test_metric=0.9 - 0.1 * place * (run.sparsity > 0))
    order = figures.priority(load(reference_store.build(tmp_path, outcomes, study)))
    assert order == [*("random", "magnitude", "snip", "grasp", "synflow"),
                     *("magnitude-shuffle", "magnitude-reinit", "magnitude-invert")]  # fmt: skip


@pytest.mark.parametrize("levels", [[0.0, 0.97, 0.98, 0.99], [0.9, 0.95, 0.99, 0.999], [0.5]])
@pytest.mark.parametrize("axis", get_args(figures.Axis))
def test_every_marker_stands_at_its_level_and_every_level_is_named(
    tmp_path: Path, levels: list[float], axis: figures.Axis
) -> None:
    results = shaped(tmp_path, strategies=4, sparsities=levels)
    figure = figures.metric_figure(results, axis=axis)
    where = [100 * s if axis == "sparsity" else 100 * (1 - s) for s in levels]
    for container in figure.axes[0].containers:
        assert isinstance(container, ErrorbarContainer)
        assert xs(container.lines[0]) == pytest.approx(where)
    ticks = figure.axes[0].get_xticklabels()
    assert [tick.get_text().strip() for tick in ticks] == [f"{x:.4g}" for x in where]
    figure.draw_without_rendering()
    boxes = [tick.get_window_extent() for tick in ticks]
    assert not [(a, b) for a, b in combinations(boxes, 2) if a.overlaps(b) and a.y0 == b.y0]


@pytest.mark.parametrize(("levels", "axis"), [
    ([0.0, 0.1, 0.3, 0.5, 0.7, 0.8, 0.9, 0.95], "sparsity"),
    ([0.0, 0.5, 0.9, 0.99, 0.999], "density"),
    ([0.0], "sparsity"),
])  # fmt: skip
def test_levels_that_crowd_at_the_end_have_a_logarithmic_axis(levels: list[float], axis: str) -> None:
    study = reference_store.reference_study().model_copy(update={"sparsities": tuple(levels)})
    assert figures.axis_of(study) == axis


def test_bars_are_t_intervals_within_what_can_be(results: Any) -> None:
    axes = figures.metric_figure(results).axes[1]
    bars = axes.containers[1]
    assert isinstance(bars, ErrorbarContainer)
    (segments,) = bars.lines[2]
    cells = stats.cells(results.runs, results.study.settings()[1], "random")
    for (bottom, top), cell in zip(segments.get_segments(), cells, strict=True):
        assert (bottom[1], top[1]) == pytest.approx((cell.test.low, min(cell.test.high, 1)))
    assert any(cell.test.high > 1 for cell in cells)
    epochs = figures.epochs_figure(results).axes[1].containers[0]
    assert isinstance(epochs, ErrorbarContainer)
    ends = [y for segment in epochs.lines[2][0].get_segments() for _, y in segment]
    assert 0 <= min(ends) < max(ends) <= 500


@pytest.mark.parametrize(
    ("form", "start"),
    [
        ("pdf", b"%PDF-"),
        *(pytest.param(*p, marks=pytest.mark.slow) for p in (("svg", b"<?xml"), ("png", b"\x89PNG"))),
    ],
)
def test_figures_for_a_paper_are_of_its_width_with_their_fonts(
    results: Any, tmp_path: Path, form: str, start: bytes
) -> None:
    paths = figures.write(results, tmp_path, form, width=3.25)
    assert [path.name for path in paths] == [f"{name}.{form}" for name in figures.NAMES.values()]
    made = [path.read_bytes() for path in paths]
    assert all(content.startswith(start) for content in made)
    if form == "pdf":
        assert b"/MediaBox [ 0 0 234 " in made[0]  # 3.25 inches of 72 points
        assert b"/Subtype /Type3" not in made[0]
        assert b"/FontFile2" in made[0]
    if form == "svg":
        assert b"<text" not in made[0]  # outlines: no font is asked for


@pytest.mark.slow
@pytest.mark.parametrize("form", get_args(figures.Format))
def test_a_figure_is_the_same_file_each_time(results: Any, tmp_path: Path, form: str) -> None:
    first = [path.read_bytes() for path in figures.write(results, tmp_path, form)]
    assert [path.read_bytes() for path in figures.write(results, tmp_path, form)] == first


@pytest.mark.parametrize(("given", "wanted"), [("3.25in", 3.25), ("8.89 cm", 3.5), ("88.9mm", 3.5)])
def test_a_width_has_a_unit(given: str, wanted: float) -> None:
    assert figures.inches(given) == pytest.approx(wanted)


@pytest.mark.parametrize("given", ["3.25", "wide", "-1in", "3pt"])
def test_a_width_without_one_is_refused(given: str) -> None:
    with pytest.raises(NatalError, match=r"with its unit, such as 3\.25in"):
        figures.inches(given)


def test_what_is_no_figure_is_refused(results: Any, tmp_path: Path) -> None:
    with pytest.raises(NatalError, match="unknown format 'jpeg'"):
        figures.write(results, tmp_path, "jpeg")
    with pytest.raises(NatalError, match="2 to 20 inches wide, got 200"):
        figures.write(results, tmp_path, width=200)
    (tmp_path / "file").touch()
    with pytest.raises(NatalError, match="name another directory with --out"):
        figures.write(results, tmp_path / "file")


def test_the_ranking_is_a_figure(results: Any) -> None:
    figure = figures.figure(results, "ranking")
    assert [[t.get_text() for t in axes.get_yticklabels()] for axes in figure.axes] == [
        ["structured", "magnitude", "random"],
        ["structured", "random", "magnitude"],
    ]


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
        "mean, 95% CI, n = 3, 3 missing", "mean, 95% CI, n = 3, 3 diverged",
    ]  # fmt: skip
    empty = load(reference_store.build(tmp_path / "empty", {}))
    assert figures.png(empty, "metric").startswith(b"\x89PNG")


def test_huge_negative_r2_is_clipped_marked_and_counted(tmp_path: Path) -> None:
    # the third seed's is in sight, and so is none of the cell's bar
    fallen = [Run("regression", "random", 0.95, seed) for seed in (42, 123)]
    outcomes = {run: replace(o, test_metric=-1000.0) if run in fallen else o for run, o in REFERENCE.items()}
    axes = figures.metric_figure(load(reference_store.build(tmp_path, outcomes))).axes[1]
    low, high = axes.get_ylim()
    assert -0.7 < low < -0.4
    assert high < 1.2
    assert "arrows: 2 runs below the axis, down to -1e+03" in labels(axes)


def test_chance_that_is_far_below_all_data_is_left_below_the_panel(tmp_path: Path) -> None:
    """Accuracies from 0.91 to 0.94 beside chance at 0.01 would be one line; what must be retained stays in sight."""
    outcomes = {
        run: replace(o, test_metric=0.94 - 0.03 * run.sparsity) if run.task == "modular" else o
        for run, o in REFERENCE.items()
    }
    axes = figures.metric_figure(load(reference_store.build(tmp_path, outcomes))).axes[0]
    low, high = axes.get_ylim()
    assert 0.88 < low < 0.95 * 0.94 < 0.94 < high < 0.95
    assert labels(axes) == ["chance 0.01 below", "dense 0.94"]


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
    assert [axes.get_title(loc="left") for axes in figure.axes] == names


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
    assert [labels(axes) for axes in figure.axes] == [["budget 9.43"], ["budget 333.33"]]


NAMES = ["$x^$", "$", "$a$ and $b$", r"\$x^\$", "_hidden", "100% {x}", "a_b^c"]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("name", "strategies"),
    [
        ("$x^$", 2),
        *(pytest.param(name, 2, marks=pytest.mark.slow) for name in NAMES[1:]),
        *(pytest.param(name, 7, marks=pytest.mark.slow) for name in ("$x^$", "_hidden")),
    ],
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


def test_a_backend_that_matplotlib_does_not_know_is_no_matter() -> None:
    code = (
        "import os\nfrom natal.reading.figures import _plain_style\n"
        "with _plain_style(): print(os.environ['MPLBACKEND'])"
    )
    words = [sys.executable, "-c", code]
    done = subprocess.run(
        words, env={**os.environ, "MPLBACKEND": "wrong"}, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "wrong\n", "")
