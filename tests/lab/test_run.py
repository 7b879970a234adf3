"""From a study to stored runs: what is planned, what is shared, what is never trained twice."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from filelock import FileLock

import natal
from conftest import tiny, toml, trainings
from natal import NatalError, Problem, Run, criterion
from natal.lab import run as runner
from natal.lab import worker
from natal.lab.engines.compiled import engine
from natal.lab.plan import Job, Plan
from natal.lab.run import Silent
from natal.lab.worker import Made
from natal.progress import Lines
from natal.reading import report
from natal.reading.results import Results
from natal.store import FILE, Outcome, Store


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[Run]:
    """Every run that is trained from now on, in order."""
    rows: list[Run] = []
    real = worker.each

    def each(job: Job) -> Iterator[Made]:
        runs = {training.key: training.run for training in job.trainings}
        for made in real(job):
            assert isinstance(made, Made)
            rows.append(runs[made.outcome.key])
            yield made

    monkeypatch.setattr(worker, "each", each)
    return rows


# -- plans -----------------------------------------------------------------------------------------------


def test_the_plan_of_the_paper(tmp_path: Path) -> None:
    planned = natal.plan("paper", tmp_path / "results")
    assert (len(planned.grid), planned.trainings, planned.shared) == (144, 132, 12)
    assert (len(planned.pending), planned.done) == (132, [])
    assert {training.key for training in planned.pending} == {key for _, key in planned.grid}
    assert planned.grid[3] == planned.grid[3:4][0] == list(planned.grid)[3]
    # a planned run is its row and its key: all seeds of a cut at birth share the rest
    cut = [training for training in planned.pending if training.run.sparsity]
    assert len({id(t.stage) for t in cut}) == len({t.run._replace(seed=0) for t in cut}) < len(cut)
    assert list(tmp_path.iterdir()) == []


def test_the_oracle_trains_every_row(tmp_path: Path) -> None:
    planned = natal.plan("as-published", tmp_path / "results", engine="sequential")
    assert (planned.trainings, planned.shared) == (144, 0)
    assert {training.run for training in planned.pending} == set(planned.study.runs())


def test_a_plan_knows_what_is_stored(tiny_results: Results) -> None:
    planned = natal.plan(tiny(seeds=[1, 2, 3]), tiny_results.directory)
    assert (len(planned.grid), len(planned.done), len(planned.pending)) == (27, 18, 7)
    assert {training.run.seed for training in planned.pending} == {3}
    assert len(natal.plan(tiny(), tiny_results.directory, fresh=True).pending) == 14
    assert natal.plan(tiny(), tiny_results.directory).jobs == []


def test_a_last_batch_of_one_row_is_refused_where_batch_norm_cannot_take_it(tmp_path: Path) -> None:
    normed = {"network": "mlp", "hidden": [8], "batch_norm": True, "name": "normed"}
    table = {key: value for key, value in tiny().items() if key != "hidden"} | {"networks": [normed]}
    # 144 rows to fit: 11 x 13 and one
    with pytest.raises(
        NatalError, match=r"training\.batch = 13: of 144 rows to fit, 1 are left for the last batch"
    ):
        natal.plan({**table, "training": {"batch": 13}}, tmp_path / "out")
    assert natal.plan({**table, "training": {"batch": 16}}, tmp_path / "out").pending
    assert natal.plan(tiny(training={"batch": 13}), tmp_path / "out").pending


# -- runs ------------------------------------------------------------------------------------------------


def test_a_run_leaves_everything_behind(tiny_results: Results) -> None:
    names = {path.name for path in tiny_results.directory.iterdir()}
    assert names == {FILE, ".lock", "tables", report.WRITTEN, *report.OUTPUTS}
    assert len(tiny_results.runs) == 18
    assert len(trainings(tiny_results.directory)) == 14
    assert tiny_results.missing == []
    assert tiny_results.manifest["finished_at"] is not None
    dense = [row for row in tiny_results.runs if row["sparsity"] == 0]
    assert len({row["key"] for row in dense}) == 2
    by_cell = {(row["strategy"], row["sparsity"], row["seed"]): row for row in tiny_results.runs}
    assert by_cell["magnitude", 0.5, 1]["kept"] == 672 - 336
    assert by_cell["structured", 0.9, 1]["kept"] == 4 * 21  # int(0.9 * 32) = 28 neurons go
    assert by_cell["structured", 0.9, 1]["nonzero_params"] == 4 * 22 + 1


@pytest.mark.usefixtures("no_report")
def test_nothing_is_trained_twice(tmp_path: Path, trained: list[Run]) -> None:
    natal.run(tiny(seeds=[1]), tmp_path)
    assert len(trained) == 7
    natal.run(tiny(seeds=[1]), tmp_path)
    assert len(trained) == 7
    before = trainings(tmp_path)
    natal.run(
        tiny(seeds=[2, 1], strategies=["structured", "magnitude"]), tmp_path
    )  # two strategies, another order
    assert len(trained) == 12
    assert {run.seed for run in trained[7:]} == {2}
    after = trainings(tmp_path)
    assert {key: after[key] for key in before} == before
    assert len(natal.load(tmp_path).runs) == 12


@pytest.mark.usefixtures("no_report")
def test_a_command_with_nothing_to_do_changes_nothing(tmp_path: Path) -> None:
    natal.run(tiny(seeds=[1]), tmp_path)
    with Store.read(tmp_path) as store:
        before = store.manifest()
    natal.run(tiny(seeds=[1]), tmp_path, workers=2)
    with Store.read(tmp_path) as store:
        assert store.manifest() == before
    natal.run(tiny(seeds=[1, 2]), tmp_path)
    with Store.read(tmp_path) as store:
        after = store.manifest()
    assert after["started_at"] == before["started_at"]
    assert after["elapsed_seconds"] > before["elapsed_seconds"]
    assert after["study_hash"] == natal.load_study(tiny(seeds=[1, 2])).digest


@pytest.mark.usefixtures("no_report")
def test_another_versions_trainings_are_kept_but_never_mixed(
    tmp_path: Path, trained: list[Run], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    natal.run(tiny(seeds=[1]), tmp_path)
    before = trainings(tmp_path)
    monkeypatch.setattr(engine.Compiled, "revision", 99)
    planned = natal.plan(tiny(seeds=[1, 2]), tmp_path)
    assert (planned.outdated, planned.done, len(planned.pending)) == (7, [], 14)
    trained.clear()

    class Stop(Lines):
        def finished(self, position: int, run: Run, outcome: Outcome, field: str) -> None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        natal.run(tiny(seeds=[1, 2]), tmp_path, watcher=Stop())
    said = "7 stored trainings were made by another engine or revision of it, torch or NumPy; they are kept, but not"
    assert said in capsys.readouterr().out
    assert all("(revision 99)" in str(row["made_by"]) for row in natal.load(tmp_path).runs)
    assert len(natal.run(tiny(seeds=[1, 2]), tmp_path).runs) == 18
    assert len(trained) == 14
    after = trainings(tmp_path)
    assert len(after) == 7 + 14
    assert {key: after[key] for key in before} == before


@pytest.mark.usefixtures("no_report")
def test_a_study_goes_back_and_forth_in_one_directory(tmp_path: Path, trained: list[Run]) -> None:
    for epochs, total in ((2, 7), (3, 14), (2, 14)):
        results = natal.run(tiny(seeds=[1], training={"epochs": epochs}), tmp_path)
        assert len(trained) == total
        assert results.study.training.epochs == epochs
        assert {row["epochs_trained"] for row in results.runs} <= set(range(1, epochs + 1))


@pytest.mark.usefixtures("no_report")
def test_fresh_forgets_and_trains_again(tmp_path: Path, trained: list[Run]) -> None:
    natal.run(tiny(seeds=[1, 2]), tmp_path)
    before = trainings(tmp_path)
    natal.run(tiny(seeds=[1]), tmp_path, fresh=True)
    assert len(trained) == 14 + 7
    after = trainings(tmp_path)
    assert len(after) == 7
    assert {key: before[key] for key in after} == after


@pytest.mark.usefixtures("no_report")
def test_the_same_bits_with_two_workers_one_by_one_and_after_a_resume(
    tiny_results: Results, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = trainings(tiny_results.directory)
    natal.run(tiny(), tmp_path / "workers", workers=2)
    assert trainings(tmp_path / "workers") == expected

    for seeds in ([2], [1, 2]):
        for strategies in (["random"], ["structured", "magnitude", "random"]):
            natal.run(tiny(seeds=seeds, strategies=strategies), tmp_path / "pieces")
    assert trainings(tmp_path / "pieces") == expected

    monkeypatch.setattr(engine, "WORTH_A_JOB", 0)  # each training a job of its own

    class Stop(Silent):
        def finished(self, position: int, run: Run, outcome: Outcome, field: str) -> None:
            raise KeyboardInterrupt

    for stored in range(1, 15):
        with pytest.raises(KeyboardInterrupt):
            natal.run(tiny(), tmp_path / "resumed", watcher=Stop())
        assert len(trainings(tmp_path / "resumed")) == stored
    assert trainings(tmp_path / "resumed") == expected


@pytest.mark.usefixtures("no_report")
def test_a_watcher_hears_of_every_row_once_in_order(tmp_path: Path) -> None:
    class Notes(Silent):
        def __init__(self) -> None:
            self.plans: list[Plan] = []
            self.now: list[Run] = []
            self.heard: list[tuple[int, Run, str, str]] = []

        def started(self, plan: Plan) -> None:
            self.plans.append(plan)

        def training(self, runs: Sequence[Run]) -> None:
            self.now += runs

        def finished(self, position: int, run: Run, outcome: Outcome, field: str) -> None:
            self.heard.append((position, run, outcome.key, field))

    notes = Notes()
    assert len(natal.run(tiny(seeds=[1]), tmp_path, watcher=notes).runs) == 9
    assert [position for position, *_ in notes.heard] == list(range(1, 10))
    assert {(run, key) for _, run, key, _ in notes.heard} == set(notes.plans[0].grid)
    assert {field for *_, field in notes.heard} == {"r2"}
    assert len(notes.plans) == 1
    assert len(notes.now) == 7
    again = Notes()
    natal.run(tiny(seeds=[1, 2]), tmp_path, watcher=again)
    assert [position for position, *_ in again.heard] == list(range(10, 19))


@pytest.mark.usefixtures("no_report")
def test_the_caller_is_left_alone(tmp_path: Path) -> None:
    torch.manual_seed(5)
    before, path, main = torch.get_rng_state(), list(sys.path), sys.modules["__main__"]
    natal.run(tiny(seeds=[1]), tmp_path, workers=2)
    assert torch.equal(torch.get_rng_state(), before)
    assert sys.path == path
    assert sys.modules["__main__"] is main


@pytest.mark.usefixtures("no_report")
@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_thread_and_an_event_loop_run_a_study(tmp_path: Path, tiny_results: Results, workers: int) -> None:
    async def served() -> None:
        natal.run(tiny(), tmp_path / "loop", workers=workers)
        await asyncio.to_thread(natal.run, tiny(), tmp_path / "thread", workers=workers)

    asyncio.run(served())
    assert trainings(tmp_path / "loop") == trainings(tmp_path / "thread") == trainings(tiny_results.directory)


@pytest.mark.usefixtures("no_report")
@pytest.mark.parametrize("engine", [pytest.param("batched", marks=pytest.mark.slow), "sequential"])
def test_the_callers_settings_change_no_bit(tmp_path: Path, engine: str) -> None:
    study = tiny(seeds=[1], strategies=["random", "snip"])
    natal.run(study, tmp_path / "plain", engine=engine)
    torch.set_default_dtype(torch.float64)
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        with torch.no_grad(), np.errstate(all="raise"):
            natal.run(study, tmp_path / "odd", engine=engine)
        assert torch.get_default_dtype() == torch.float64
        assert torch.is_deterministic_algorithms_warn_only_enabled()
    finally:
        torch.set_default_dtype(torch.float32)
        torch.use_deterministic_algorithms(False)
    assert trainings(tmp_path / "odd") == trainings(tmp_path / "plain")


@pytest.mark.parametrize(
    ("changes", "kept"),
    [
        ({"sparsities": [1e-300]}, [672, 672, 672]),
        ({"sparsities": [0.995]}, [4, 4, 21]),
        ({"hidden": 2, "sparsities": [0.5]}, [21, 21, 21]),
        ({"hidden": 2, "sparsities": [0.94]}, [3, 3, 21]),
        ({"seeds": [2**32 - 1], "sparsities": [0.5]}, [336, 336, 336]),
        ({"sparsities": [0.5], "training": {"epochs": 1, "patience": 1000}}, [336, 336, 336]),
        ({"sparsities": [0.5], "training": {"patience": "none", "target": -1e9}}, [336, 336, 336]),
        ({"sparsities": [0.5], "training": {"validation_fraction": 0.499}}, [336, 336, 336]),
        (
            {"sparsities": [0.0, 0.5], "strategies": [{"criterion": "snip", "control": "small-dense"}]},
            [672, 336],
        ),
        ({"sparsities": [0.0], "strategies": ["random"], "name": "one cell: \N{SNOWMAN} [/]"}, [672]),
    ],
)
def test_odd_studies_that_are_allowed_work(tmp_path: Path, changes: dict[str, Any], kept: list[int]) -> None:
    results = natal.run(tiny(**{"seeds": [1], **changes}), tmp_path)
    assert [row["kept"] for row in results.runs] == kept
    assert {row["status"] for row in results.runs} == {"finished"}
    if (training := changes.get("training", {})) and {"epochs", "target"} & set(training):
        assert {row["epochs_trained"] for row in results.runs} == {1}
    assert str(results.study.name) in (tmp_path / "report.txt").read_text("utf-8")


@pytest.mark.usefixtures("no_report")
def test_a_diverged_run_is_stored_and_shown(tmp_path: Path) -> None:
    results = natal.run(tiny(seeds=[1], training={"learning_rate": 1e18}), tmp_path)
    assert "diverged" in {row["status"] for row in results.runs}
    diverged = [row for row in results.runs if row["status"] == "diverged"]
    assert {row["test_metric"] for row in diverged} == {None}
    assert "diverged" in report.text(results)


# -- one at a time ---------------------------------------------------------------------------------------


def test_a_second_command_in_the_same_directory_stops(tmp_path: Path, tiny_results: Results) -> None:
    out = tmp_path / "results"
    shutil.copytree(tiny_results.directory, out)
    before = trainings(out)
    holder = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import filelock, sys; lock = filelock.FileLock(sys.argv[1]); lock.acquire(); print(); input()",
            out / ".lock",
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert holder.stdout is not None
    holder.stdout.readline()
    words = (
        "another natal command is at work in .*results'; wait for it, or name another directory with --out"
    )
    for fresh in (False, True):
        with pytest.raises(NatalError, match=words):
            natal.run(tiny(seeds=[9]), out, fresh=fresh)
    assert trainings(out) == before
    assert natal.plan(tiny(), out).pending == []  # looking is allowed
    holder.kill()
    holder.communicate()
    FileLock(out / ".lock").acquire(timeout=0).lock.release()  # the system let go of it


@pytest.mark.usefixtures("no_report")
def test_what_another_command_finishes_meanwhile_is_not_trained_again(
    tmp_path: Path, trained: list[Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = runner._alone
    others = [tiny(seeds=[1])]

    def alone(directory: Path) -> object:
        if others:
            natal.run(others.pop(), tmp_path)  # between this command's plan and its turn
        return real(directory)

    monkeypatch.setattr(runner, "_alone", alone)
    heard: list[int] = []

    class Notes(Silent):
        def finished(self, position: int, run: Run, outcome: Outcome, field: str) -> None:
            heard.append(position)

    natal.run(tiny(seeds=[1, 2]), tmp_path, watcher=Notes())
    assert len(trained) == 14
    assert heard == list(range(10, 19))


# -- refusals before anything is written -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("study", "options", "words"),
    [
        ({"tasks": ["regresion"]}, {}, "unknown task 'regresion'; did you mean 'regression'"),
        ({"strategies": ["magnitud"]}, {}, "unknown strategy 'magnitud'; did you mean 'magnitude'"),
        ({"strategies": ["structurd"]}, {}, "unknown strategy 'structurd'; did you mean 'structured'"),
        (
            {"strategies": [{"name": "x", "criterion": "randon"}]},
            {},
            "unknown criterion 'randon'; did you mean 'random'",
        ),
        ({"plugins": ["no_such_plugin"]}, {}, "plugin 'no_such_plugin' does not import: ModuleNotFoundError"),
        ({}, {"workers": 0}, "workers must be at least 1, got 0"),
        ({}, {"engine": "batch"}, "unknown engine 'batch'; did you mean 'batched'"),
        ({}, {"device": "tpu"}, "unknown device 'tpu'; this machine has: cpu"),
        ({}, {"device": "cpu:1"}, "unknown device 'cpu:1'; this machine has: cpu"),
        (
            {"training": {"validation_fraction": 0.001}},
            {},
            "training.validation_fraction = 0.001 of the 160 rows of task 'regression' is 0",
        ),
        (
            {"training": {"validation_fraction": 0.006}},
            {},
            "its 1 validation targets are all the same, so R² is undefined",
        ),
        (
            {"training": {"label_smoothing": 0.1}},
            {},
            "task 'regression': training.label_smoothing = 0.1 smooths the classes of cross-entropy",
        ),
    ],
)
def test_bad_input_is_refused_before_anything_is_written(
    tmp_path: Path, study: dict[str, Any], options: dict[str, Any], words: str
) -> None:
    with pytest.raises(NatalError, match=words):
        natal.run(tiny(**study), tmp_path / "results", **options)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("network", "study", "words"),
    [
        # 20 + 1 weights and 2 biases; 16 weights go
        (
            {"network": "mlp", "hidden": [1]},
            {"strategies": [{"criterion": "random", "control": "small-dense"}], "sparsities": [0.8]},
            "narrowest network 'mlp' has 23 parameters, more than the 7 that the pruned one keeps",
        ),
        # 160 training rows, 16 of which validate
        (
            {"network": "mlp", "hidden": [8], "batch_norm": True},
            {"training": {"batch": 143}},
            "of 144 rows to fit, 1 are left for the last batch, which network 'mlp-batch-norm-8' cannot",
        ),
    ],
)
def test_a_network_that_cannot_be_trained_is_refused_before_anything_is_written(
    tmp_path: Path, network: dict[str, Any], study: dict[str, Any], words: str
) -> None:
    asked = {key: value for key, value in tiny(**study).items() if key != "hidden"}
    with pytest.raises(NatalError, match=words):
        natal.run({**asked, "networks": [network]}, tmp_path / "results")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("forgotten", "no_report")
def test_a_criterion_of_this_process_alone_needs_one_worker(tmp_path: Path) -> None:
    @criterion("mine-alone")
    def smallest(problem: Problem) -> dict[str, torch.Tensor]:
        return {name: -w.abs() for name, w in problem.weights.items()}

    study = tiny(strategies=["mine-alone"], seeds=[1])
    with pytest.raises(
        NatalError, match="workers=2 cannot import a task, network or criterion made in this script"
    ):
        natal.run(study, tmp_path / "refused", workers=2)
    assert len(natal.run(study, tmp_path / "results").runs) == 3
    large = tiny(strategies=["mine-alone"], tasks=["modular"], hidden=512)
    assert natal.plan(large, tmp_path / "nowhere").workers == 1
    assert {path.name for path in tmp_path.iterdir()} == {"results"}


@pytest.mark.usefixtures("forgotten", "no_report")
@pytest.mark.filterwarnings("ignore:criterion 'vandal'")
def test_a_criterion_may_do_with_its_network_what_it_likes(tmp_path: Path) -> None:
    @criterion("vandal")
    def vandal(problem: Problem) -> dict[str, torch.Tensor]:
        """Magnitude, but it leaves a mess behind."""
        scores = {name: w.abs() for name, w in problem.weights.items()}
        assert problem.inputs is not None
        assert problem.targets is not None
        with torch.no_grad():
            for p in (
                *problem.model.parameters(),
                *problem.weights.values(),
                problem.inputs,
                problem.targets,
            ):
                p.zero_()
        return scores

    rows = natal.run(tiny(strategies=["vandal", "magnitude"], seeds=[1]), tmp_path).runs
    results = {(row["strategy"], row["sparsity"]): row["test_metric"] for row in rows}
    for sparsity in (0.0, 0.5, 0.9):
        assert results["vandal", sparsity] == results["magnitude", sparsity]


@pytest.mark.usefixtures("forgotten", "no_report")
def test_a_plugin_that_is_edited_under_a_running_program_mixes_nothing(tmp_path: Path) -> None:
    text = (
        "import natal\n@natal.criterion('steady')\n"
        "def steady(problem):\n    return {n: w.abs() for n, w in problem.weights.items()}\n"
    )
    (tmp_path / "steady.py").write_text(text)
    (tmp_path / "mine.toml").write_text(toml(tiny(strategies=["steady"], plugins=["steady"], seeds=[1])))
    mine, out = tmp_path / "mine.toml", tmp_path / "results"
    natal.run(mine, out)
    (tmp_path / "steady.py").write_text(text.replace("w.abs()", "-w.abs()"))
    assert natal.plan(mine, out).pending == []  # this program goes on with what it imported
    before = trainings(out)
    with pytest.raises(
        NatalError, match="a plugin was edited after this program had imported it; start the program"
    ):  # its workers import what is there now; dense networks would not need it
        natal.run(mine, out, overrides=["seeds=[2]", "sparsities=[0.5, 0.9]"], workers=2)
    assert trainings(out) == before
