"""The examples run as they stand, and a plugin is as good as what natal brings along."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import natal
from command import PLAIN
from conftest import Natal, trainings
from natal.pruning.criteria import criteria
from natal.reading.results import Results

EXAMPLES = Path(__file__).parent.parent / "examples"
SHORT = ("--set=tasks=['circle']", "--seeds=1", "--set=training.epochs=5")


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> Results:
    """The results of the example's command line, as a user types it, from another directory."""
    folder = tmp_path_factory.mktemp("example")
    natal_ = Path(sys.executable).with_name("natal")
    subprocess.run(
        [natal_, "run", EXAMPLES / "my_study.toml", "--out", "mine", "--quiet"],
        cwd=folder,
        check=True,
    )
    return natal.load(folder / "mine")


@pytest.mark.slow
def test_the_example_study_is_whole(example: Results, cli: Natal) -> None:
    assert (len(example.runs), len(trainings(example.directory))) == (120, 96)
    verdict = cli("validate", example.directory)
    assert (verdict.returncode, verdict.stdout) == (0, "Validation PASSED. All checks OK.\n")


@pytest.mark.slow
def test_the_example_criterion_does_what_it_says(example: Results) -> None:
    densities = {
        (row["task"], row["strategy"], row["sparsity"]): row["densities"]
        for row in example.runs
        if row["seed"] == 1
    }
    for task in example.study.task_names:
        assert densities[task, "magnitude", 0.9]["output"] == 0
        assert densities[task, "relative", 0.9]["output"] == pytest.approx(0.1, abs=0.06)
    dense = {row["task"]: row["test_metric"] for row in example.runs if row["sparsity"] == 0}
    assert all(metric > 0.9 for metric in dense.values())


def test_the_example_criteria_are_short() -> None:
    text = (EXAMPLES / "my_criteria.py").read_text()
    body = text[text.index("@criterion") : text.index("@task")].strip()
    assert len(body.split("\n")) <= 15
    assert len((EXAMPLES / "gradient_size.py").read_text().strip().split("\n")) <= 15  # the whole file


@pytest.mark.usefixtures("forgotten")
@pytest.mark.slow
def test_the_comparison_has_every_criterion_and_control(cli: Natal, tmp_path: Path) -> None:
    recipes = natal.load_study(EXAMPLES / "compare_all.toml").strategies
    own = {name for name in criteria if criteria[name].__module__.startswith("natal.")}
    assert {r.criterion for r in recipes} == {*own, "gradient-size"} - {"init-stream"}
    assert {r.control for r in recipes if r.criterion == "gradient-size"} == {
        None,
        "shuffle",
        "reinit",
        "invert",
        "quota-random",
    }
    words = ("--seeds=1", "--set=training.epochs=2", "--set=sparsities=[0.0,0.8]", "--workers=1", "--quiet")
    result = cli("run", EXAMPLES / "compare_all.toml", *words, "--out", "out")
    assert result.returncode == 0, result.stderr
    assert {row["strategy"] for row in natal.load(tmp_path / "out").runs} == {r.name for r in recipes}


@pytest.mark.slow
def test_a_plugin_gives_the_same_bits_in_worker_processes(cli: Natal, tmp_path: Path) -> None:
    for workers in (1, 2):
        result = cli("run", EXAMPLES / "my_study.toml", *SHORT, "--out", workers, "--workers", workers)
        assert result.returncode == 0, result.stderr
    assert len(trainings(tmp_path / "1")) == 16
    assert trainings(tmp_path / "1") == trainings(tmp_path / "2")


@pytest.mark.slow
def test_a_plugin_adds_a_network_a_task_and_an_optimiser_setting(cli: Natal, tmp_path: Path) -> None:
    result = cli(
        "run", EXAMPLES / "odd_digits.toml", "--out", "odd", "--set", 'training.length="2ep"', "--quiet"
    )
    assert result.returncode == 0, result.stderr
    runs = natal.load(tmp_path / "odd").frame()
    assert set(runs["network"]) == {"tiny-cnn", "tiny-cnn-width8"}
    assert len(runs) == 16
    code = (EXAMPLES / "my_network.py").read_text().split("\n\n\n", 1)[1]
    lines = [line for line in code.splitlines() if line.strip() and '"""' not in line]
    assert len(lines) <= 12


@pytest.mark.slow
def test_the_question_of_synflow_on_digits_is_one_file(cli: Natal, tmp_path: Path) -> None:
    study = EXAMPLES / "synflow_on_digits.toml"
    asked = natal.load_study(study)
    assert len(asked.seeds) == 6
    assert max(asked.sparsities) == 0.99
    assert {"random", "synflow", "synflow-shuffle", "synflow-small-dense"} <= {
        r.name for r in asked.strategies
    }
    words = ("--seeds", "1", "--set", 'training.length="1ep"', "--set", "sparsities=[0.0,0.99]", "--quiet")
    result = cli("run", study, *words, "--out", "out")
    assert result.returncode == 0, result.stderr
    assert len(natal.load(tmp_path / "out").runs) == 12


@pytest.mark.slow
def test_an_edited_plugin_retrains_what_it_made_and_nothing_else(cli: Natal, tmp_path: Path) -> None:
    for name in ("my_study.toml", "my_criteria.py"):
        shutil.copy(EXAMPLES / name, tmp_path)
    words = ("my_study.toml", "--seeds=1", "--set=training.epochs=2")
    assert cli("run", *words, "--workers", 1).returncode == 0
    assert "done         40 of 40 runs" in cli("plan", *words).stdout
    plugin = tmp_path / "my_criteria.py"
    plugin.write_text(plugin.read_text().replace("** 0.5", "** 0.25"))
    # the file makes the task circle, whose 20 rows go, and the criterion relative, whose 3 pruned rows go
    assert "done         17 of 40 runs" in cli("plan", *words).stdout


LONG = ("half_the_cost.py", "own_loop.py", "smaller_network.py")


@pytest.mark.parametrize(
    "script",
    [
        pytest.param(path.name, marks=[pytest.mark.slow] if path.name in LONG else [])
        for path in sorted(EXAMPLES.glob("*.py"))
    ],
)
def test_an_example_script_runs(script: str, tmp_path: Path) -> None:
    result = subprocess.run(
        [sys.executable, EXAMPLES / script],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={**os.environ, **PLAIN},
        check=False,
    )
    assert (result.returncode, result.stderr) == (0, "")


# -- scripts and notebooks -------------------------------------------------------------------------------

SCRIPT = """
import sys
import natal

print("once")

@natal.criterion("smallest")
def smallest(problem):
    return {name: -w.abs() for name, w in problem.weights.items()}

study = {"name": "script", "tasks": ["regression"], "strategies": STRATEGIES, "sparsities": [0.0, 0.5],
         "seeds": [1], "hidden": 16, "training": {"epochs": 3}}
results = natal.run(study, "results", **OPTIONS)
print(len(results.runs))
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("strategies", "options"),
    [
        (["smallest"], {}),
        (["magnitude", "structured"], {"workers": 2}),
    ],
)
def test_a_script_without_a_main_guard_runs_once(
    tmp_path: Path, strategies: list[str], options: dict[str, int]
) -> None:
    text = SCRIPT.replace("STRATEGIES", json.dumps(strategies)).replace("OPTIONS", json.dumps(options))
    (tmp_path / "script.py").write_text(text)
    result = subprocess.run(
        [sys.executable, "script.py"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert (result.stderr, result.stdout) == ("", f"once\n{2 * len(strategies)}\n")
