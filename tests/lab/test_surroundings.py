"""What a command meets outside its study: closed streams, plugins that reach out, shared caches, lost directories."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from numba import config
from torch import Tensor, nn

import natal
from conftest import Natal, tiny, toml, trainings
from natal import NatalError, Problem, criterion, network, task
from natal.lab.engines import ENGINES
from natal.lab.engines.compiled import cache, engine
from natal.lab.estimate import measure
from natal.lab.run import Silent
from natal.reading.results import Results
from natal.store import FILE

STUDY = tiny(strategies=["magnitude"], sparsities=[0.0, 0.5])


class Told(Silent):
    """Does something when so many runs are finished."""

    def __init__(self, after: int, act: Any) -> None:
        self.after, self.act = after, act

    def finished(self, position: int, run: Any, outcome: Any, field: str) -> None:
        """Do it."""
        if position == self.after:
            self.act()


# -- standard streams -----------------------------------------------------------------------------------------------


def closed(folder: Path, words: str, streams: str) -> subprocess.CompletedProcess[str]:
    """Run ``natal`` from a shell that closes some of its standard streams."""
    return subprocess.run(
        f"{sys.executable} -m natal {words} {streams}",
        shell=True, cwd=folder, capture_output=True, text=True, check=False,
    )  # fmt: skip


def test_a_command_without_any_standard_stream_does_its_work(tmp_path: Path) -> None:
    (tmp_path / "tiny.toml").write_text(toml(STUDY))
    done = closed(tmp_path, "run tiny.toml --workers 1", "<&- >&- 2>&-")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    natal.run(STUDY, tmp_path / "again")
    # nothing that was printed went into the store
    assert trainings(tmp_path / "results") == trainings(tmp_path / "again")


@pytest.mark.parametrize(
    "words",
    [
        "list",
        pytest.param("show synflow", marks=pytest.mark.slow),
        "--version",
        "--help",
        pytest.param("plan paper --out new", marks=pytest.mark.slow),
        pytest.param("validate results", marks=pytest.mark.slow),
        pytest.param("report results", marks=pytest.mark.slow),
        pytest.param("diagnose results", marks=pytest.mark.slow),
        pytest.param("compare results results", marks=pytest.mark.slow),
        pytest.param("export results --csv", marks=pytest.mark.slow),
        pytest.param("figures results", marks=pytest.mark.slow),
        pytest.param("verify results --sample 1", marks=pytest.mark.slow),
        pytest.param("merge results --out merged", marks=pytest.mark.slow),
        pytest.param("audit paper results", marks=pytest.mark.slow),
    ],
)
def test_a_closed_output_is_no_matter(cli: Natal, tmp_path: Path, tiny_results: Results, words: str) -> None:
    shutil.copytree(tiny_results.directory, tmp_path / "results")
    whole = cli(*words.split())
    shutil.rmtree(tmp_path / "merged", ignore_errors=True)
    done = closed(tmp_path, words, ">&-")
    assert (done.returncode, done.stdout, done.stderr) == (whole.returncode, "", whole.stderr)
    assert "Traceback" not in done.stderr


def reaching(act: Any) -> None:
    """Register a criterion that does something besides scoring."""

    @criterion("reaching")
    def reaching(problem: Problem) -> dict[str, Tensor]:
        """|θ|, and something else."""
        act()
        return {name: w.abs() for name, w in problem.weights.items()}


@pytest.mark.usefixtures("forgotten")
@pytest.mark.parametrize("gone", ["closed", "none"])
def test_a_criterion_that_closes_the_output_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gone: str
) -> None:
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    reaching(lambda: sys.stdout.close() if gone == "closed" else setattr(sys, "stdout", None))
    with pytest.raises(NatalError) as caught:
        natal.run({**STUDY, "strategies": ["reaching"]}, tmp_path / "out")
    assert str(caught.value).endswith(
        "strategy=reaching, sparsity=0.5, seed=1: it closed the standard output; leave it open"
    )
    assert not (tmp_path / "out").exists()


PLUGIN = """
import sys
from natal import criterion
calls = []

@criterion("late")
def late(problem):
    \"\"\"|θ|, and the output away once training has begun.\"\"\"
    calls.append(1)
    if len(calls) > 1:
        {act}
    return {{name: w.abs() for name, w in problem.weights.items()}}
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("act", "code", "said"),
    [
        (
            "sys.stdout.close()",
            2,
            "natal: a plugin has closed the standard output; nothing stored was lost\n",
        ),
        ("sys.stdout = None", 0, ""),
        ("sys.stderr.close()", 0, ""),
    ],
)
def test_a_stream_that_goes_while_training_loses_nothing(
    cli: Natal, tmp_path: Path, act: str, code: int, said: str
) -> None:
    (tmp_path / "late.py").write_text(PLUGIN.format(act=act))
    (tmp_path / "tiny.toml").write_text(toml({"plugins": ["late"], **STUDY, "strategies": ["late"]}))
    done = cli("run", "tiny.toml", "--workers", 1)
    assert (done.returncode, done.stderr) == (code, said)
    assert trainings(tmp_path / "results")
    (tmp_path / "late.py").write_text(PLUGIN.format(act="pass"))
    assert cli("validate", "results").returncode == code // 2  # what is missing is told, and nothing else


# -- where a command stands -----------------------------------------------------------------------------------------


SET_FOR_ALL: dict[str, Callable[[], object]] = {
    "device": lambda: torch.set_default_device("meta"),
    "dtype": lambda: torch.set_default_dtype(torch.float64),
    "gradients": lambda: torch.set_grad_enabled(False),
    "threads": lambda: torch.set_num_threads(3),
    "determinism": lambda: torch.use_deterministic_algorithms(False),
    "denormals": lambda: torch.set_flush_denormal(False),
}
"""What code of others may set for the whole process."""


@pytest.mark.usefixtures("forgotten", "no_report")
@pytest.mark.parametrize("engine", ["torch", "compiled"])
@pytest.mark.parametrize("what", SET_FOR_ALL)
def test_what_a_criterion_sets_for_all_holds_for_itself_alone(tmp_path: Path, engine: str, what: str) -> None:
    def settings() -> tuple[object, ...]:
        return (
            torch.get_default_device(),
            torch.get_default_dtype(),
            torch.is_grad_enabled(),
            torch.get_num_threads(),
            torch.get_deterministic_debug_mode(),
        )

    before = settings()
    natal.run({**STUDY, "strategies": ["random"]}, tmp_path / "alone", engine=engine, workers=1)
    reaching(SET_FOR_ALL[what])
    natal.run({**STUDY, "strategies": ["reaching", "random"]}, tmp_path / "out", engine=engine, workers=1)
    alone, beside = trainings(tmp_path / "alone"), trainings(tmp_path / "out")
    assert len(beside) > len(alone)
    assert {key: beside[key] for key in alone} == alone
    assert settings() == before


@pytest.mark.usefixtures("forgotten", "no_report")
def test_what_tasks_and_networks_set_for_all_holds_for_themselves_alone(tmp_path: Path) -> None:
    @task("apart", loss="squared-error", metric="R²", learning_rate=0.01)
    def apart(seed: int) -> natal.Data:
        """Data, and another default."""
        x = torch.randn(40, 3, generator=torch.Generator().manual_seed(seed))
        SET_FOR_ALL["device"]()
        SET_FOR_ALL["dtype"]()
        return natal.Data(x[:30], x[:30, :1], x[30:], x[30:, :1], outputs=1)

    @network("alike")
    def alike(shape: tuple[int, ...], outputs: int) -> nn.Module:
        """Layers, and another default."""
        made = nn.Sequential(nn.Linear(shape[0], 8), nn.ReLU(), nn.Linear(8, outputs))
        SET_FOR_ALL["device"]()
        SET_FOR_ALL["dtype"]()
        return made

    own = {"tasks": ["apart"], "networks": ["alike", {"network": "mlp", "hidden": [8]}]}
    results = natal.run({**{k: v for k, v in STUDY.items() if k != "hidden"}, **own}, tmp_path, workers=1)
    assert not results.missing
    assert {row.status for row in results.runs} == {"finished"}
    assert (torch.get_default_device().type, torch.get_default_dtype()) == ("cpu", torch.float32)


@pytest.mark.usefixtures("forgotten", "no_report")
@pytest.mark.parametrize("fresh", [False, True])
def test_a_criterion_that_goes_elsewhere_takes_nothing_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fresh: bool
) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "there").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("NATAL_DATA", "elsewhere")
    found: list[str] = []

    def leaving() -> None:
        found.append(os.environ["NATAL_DATA"])
        os.chdir(tmp_path / "there")

    reaching(leaving)
    results = natal.run({**STUDY, "strategies": ["reaching"]}, "out", fresh=fresh, data=".")
    assert len(results.runs) == 4
    assert list((tmp_path / "there").iterdir()) == []
    assert (tmp_path / "here" / "out" / FILE).is_file()
    assert {*found} == {str(tmp_path / "here")}
    assert os.environ["NATAL_DATA"] == "elsewhere"


@pytest.mark.usefixtures("forgotten")
def test_the_folder_of_data_is_named_for_one_call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NATAL_DATA", raising=False)
    found: list[str] = []
    reaching(lambda: found.append(os.environ["NATAL_DATA"]))
    planned = natal.plan({**STUDY, "strategies": ["reaching"]}, tmp_path / "out", data=tmp_path)
    assert "NATAL_DATA" not in os.environ
    seen = len(found)
    measure(planned)
    assert len(found) > seen
    assert {*found, *(job.data for job in planned.jobs)} == {str(tmp_path)}
    with pytest.raises(NatalError):
        natal.plan({**STUDY, "strategies": ["no such"]}, tmp_path / "out", data=tmp_path)
    assert "NATAL_DATA" not in os.environ


def test_a_plan_names_the_directory_as_it_was_named(
    cli: Natal, tmp_path: Path, tiny_results: Results
) -> None:
    (tmp_path / "tiny.toml").write_text(toml(STUDY))
    assert "0 of 4 runs stored in some/results\n" in cli("plan", "tiny.toml", "--out", "some/results").stdout
    assert (
        f"stored in {tiny_results.directory}\n"
        in cli("plan", "tiny.toml", "--out", tiny_results.directory).stdout
    )


@pytest.mark.usefixtures("no_report")
@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.slow)])
@pytest.mark.parametrize("how", ["deleted", "moved", "replaced"])
def test_a_directory_that_is_lost_in_the_middle_is_told_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str, workers: int
) -> None:
    place = tmp_path / "out"
    # each training a job of its own: two workers cannot have done all four before the first is told of
    monkeypatch.setattr(engine, "WORTH_A_JOB", 0)

    def lose() -> None:
        if how == "moved":
            place.rename(tmp_path / "elsewhere")
        else:
            shutil.rmtree(place)
        if how == "replaced":
            natal.run(STUDY, place)

    with pytest.raises(
        NatalError, match=f"{FILE} was moved or deleted while natal wrote to it; put it back, or begin"
    ):
        natal.run(STUDY, place, workers=workers, watcher=Told(1, lose))
    if how == "moved":
        (tmp_path / "elsewhere").rename(place)
        assert 0 < len(trainings(place)) < 4
    assert len(natal.run(STUDY, place).runs) == 4


@pytest.mark.usefixtures("no_report")
def test_a_study_begun_afresh_that_is_stopped_leaves_the_old_and_goes_on(tmp_path: Path) -> None:
    natal.run(STUDY, tmp_path)
    before = trainings(tmp_path)
    longer = tiny(strategies=["magnitude"], sparsities=[0.0, 0.5], training={"epochs": 13})

    def stop() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        natal.run(longer, tmp_path, fresh=True, watcher=Told(2, stop))
    assert trainings(tmp_path) == before
    assert natal.load(tmp_path).study.training.length == "12ep"
    seen: list[int] = []
    natal.run(
        longer,
        tmp_path,
        fresh=True,
        watcher=Told(3, lambda: seen.append(len(natal.plan(longer, tmp_path, fresh=True).done))),
    )
    assert seen == [3]  # it went on with the third
    assert natal.load(tmp_path).study.training.length == "13ep"
    assert before.keys().isdisjoint(trainings(tmp_path))
    assert not (tmp_path / ".fresh").exists()


# -- compiled code --------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not hasattr(os, "getuid"), reason="there are no such rights here")
def test_a_cache_that_others_can_write_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def shared(path: Path, mode: int) -> bool:
        path.mkdir(exist_ok=True)
        path.chmod(mode)
        monkeypatch.setattr(config, "CACHE_DIR", str(path))
        return bool(cache._shared())

    monkeypatch.setattr(config, "CACHE_DIR", "")
    assert cache._shared() == ""
    assert [shared(tmp_path / f"{mode:o}", mode) for mode in (0o700, 0o755, 0o775, 0o757, 0o1777)] == [
        False, False, True, True, True,
    ]  # fmt: skip
    # what lies in a directory of others, or is still to be made there, can be replaced; not where they cannot delete
    (tmp_path / "ours").mkdir(mode=0o700)
    assert not shared(tmp_path / "1777" / "ours", 0o700)
    assert shared(tmp_path / "757" / "ours", 0o700)
    monkeypatch.setattr(config, "CACHE_DIR", str(tmp_path / "757" / "to be made"))
    with pytest.raises(
        NatalError, match="others can write there, and natal executes what it reads there; name a dir"
    ):
        natal.plan(STUDY, tmp_path / "out")
    assert natal.plan(STUDY, tmp_path / "out", engine="torch").engine == "torch"
    ENGINES["compiled"].prepare("cpu")  # as the fork server does: says nothing, reads nothing


def test_of_a_cache_only_the_right_to_write_is_taken_from_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def double(x: int) -> int:
        return 2 * x

    monkeypatch.setattr(config, "CACHE_DIR", str(tmp_path))
    mask = os.umask(0o002)
    try:
        cache.entry(double)
    finally:
        os.umask(mask)
    (made,) = tmp_path.iterdir()
    assert made.stat().st_mode & 0o777 == 0o755


def test_nothing_is_read_from_a_cache_that_others_can_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def double(x: int) -> int:
        return 2 * x

    monkeypatch.setattr(config, "CACHE_DIR", str(tmp_path))
    tmp_path.chmod(0o777)
    assert isinstance(cache.entry(double)._cache, cache._Said)  # type: ignore[attr-defined]
    assert list(tmp_path.iterdir()) == []


def test_without_compilation_torch_trains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config, "DISABLE_JIT", 1)
    planned = natal.plan(STUDY, tmp_path)
    assert {job.engine for job in planned.jobs} == {"torch"}
    (chosen,) = planned.settings.values()
    assert chosen.refused == {"compiled": "NUMBA_DISABLE_JIT is set in the environment"}


@pytest.mark.slow
def test_a_command_without_compilation_says_so_in_its_plan(tmp_path: Path) -> None:
    (tmp_path / "tiny.toml").write_text(toml(STUDY))
    for verb in ("plan", "run"):
        done = subprocess.run(
            [sys.executable, "-m", "natal", verb, "tiny.toml", "--workers", "2"], cwd=tmp_path, text=True, check=False,
            capture_output=True, env={**os.environ, "NUMBA_DISABLE_JIT": "1"},
        )  # fmt: skip
        assert (done.returncode, done.stderr) == (0, "")
        if verb == "plan":
            assert "engine torch, not compiled: NUMBA_DISABLE_JIT is set in the environment" in done.stdout
