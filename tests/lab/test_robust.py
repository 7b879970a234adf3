"""Nothing lost: commands and workers killed at random moments, Ctrl-C, full disks, other people's files."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import pytest

import natal
from command import PLAIN, Command
from conftest import Natal, tiny, toml, trainings
from natal import NatalError, Run
from natal.lab.run import Silent
from natal.reading.results import Results
from natal.reading.rows import Row
from natal.store import FILE, Outcome, Store

STUDY: dict[str, Any] = {
    "name": "robust",
    "tasks": ["regression"],
    "strategies": ["magnitude", "random", "structured"],
    "sparsities": [0.0, 0.3, 0.6, 0.9],
    "seeds": [1, 2, 3],
    "hidden": 1024,
    "training": {"epochs": 400, "patience": 400, "target": "none", "learning_rate": 0.002},
}
"""36 rows, 30 trainings, seven jobs; stored whole it takes 150 kB."""
ROWS, TRAININGS = 36, 30
Trainings = dict[str, tuple[object, ...]]
Start = Callable[..., Command]


@pytest.fixture
def study(tmp_path: Path) -> list[str]:
    """The words of the command that runs the study."""
    (tmp_path / "robust.toml").write_text(toml(STUDY))
    return ["run", "robust.toml", "--workers"]


@pytest.mark.parametrize("name", ["a\0b", "a\x1b[31mb", ""])
def test_what_is_no_name_for_a_directory_is_told_before_work_starts(name: str, tmp_path: Path) -> None:
    with pytest.raises(NatalError, match=r"(is no name for|is not) a directory.*; name one .* with --out"):
        natal.run(STUDY, name and tmp_path / name)


def stored(folder: Path) -> set[str]:
    """Return the stored rows as the progress lines name them."""
    if not (folder / "results" / FILE).exists():
        return set()
    results = natal.load(folder / "results") if trainings(folder / "results") else None
    return {_name(row) for row in results.runs} if results else set()


def _name(row: Row) -> str:
    return f"task=regression, strategy={row['strategy']}, sparsity={row['sparsity']:.0%}, seed={row['seed']}"


def named(line: str) -> str:
    return line.partition("] ")[2].partition(" ...")[0]


@pytest.fixture(scope="session")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Trainings:
    """What the study leaves behind when nothing disturbs it."""
    out = tmp_path_factory.mktemp("uninterrupted")
    natal.run(STUDY, out, workers=1)
    found = trainings(out)
    assert len(found) == TRAININGS
    return found


def finish(command: Command, folder: Path, before: set[str], expected: Trainings) -> None:
    """Let a command finish, and check that it did the rest, only the rest, and to the last bit."""
    result = command.wait()
    assert (result.returncode, result.stderr) == (0, "")
    lines = command.lines()
    assert len(lines) == ROWS - len(before)
    assert not before & {named(line) for line in lines}
    assert [int(line[1:].partition("/")[0]) for line in lines] == list(range(len(before) + 1, ROWS + 1))
    assert trainings(folder / "results") == expected
    assert len(natal.load(folder / "results").runs) == ROWS


@pytest.mark.slow
def test_a_command_killed_at_random_moments_loses_nothing(
    started: Start, tmp_path: Path, study: list[str], uninterrupted: Trainings
) -> None:
    rng = random.Random(20261001)
    kept: Trainings = {}
    for kill in range(10):
        before = stored(tmp_path)
        workers, lines = 2 if kill > 7 else 1, kill % 3
        command = started(*study, workers, pause=max(lines, 1))  # it comes no further than to the next line
        if lines:
            command.until_paused()
            command.go_on()
        time.sleep(rng.uniform(0, 0.15))
        command.end(signal.SIGKILL)
        now = trainings(tmp_path / "results") if (tmp_path / "results" / FILE).exists() else {}
        assert {key: now[key] for key in kept} == kept
        said = {named(line) for line in command.lines()}
        assert not before & said
        assert said <= stored(tmp_path)  # what it said is true
        assert len(now) > len(kept) or not lines
        assert len(now) < TRAININGS or workers == 2  # killed between one stored training and the next
        kept = now
    finish(started(*study, 1), tmp_path, stored(tmp_path), uninterrupted)


@pytest.mark.slow
@pytest.mark.usefixtures("no_report")
def test_a_killed_worker_is_replaced(tmp_path: Path, uninterrupted: Trainings) -> None:
    class Assassin(Silent):
        heard: ClassVar[list[Run]] = []

        def finished(self, position: int, run: Run, outcome: Outcome, field: str) -> None:
            self.heard.append(run)
            if position in (1, 12, 13):
                for worker in multiprocessing.active_children()[: 1 + position % 2]:
                    worker.kill()

    results = natal.run(STUDY, tmp_path, workers=2, watcher=Assassin())
    assert sorted(Assassin.heard) == sorted(results.study.runs())
    assert trainings(tmp_path) == uninterrupted


def stopped(result: subprocess.CompletedProcess[str], sent: signal.Signals, directory: Path) -> None:
    """Check for the exit status of that signal and one line that says what is kept and how to go on."""
    found = natal.load(directory) if (directory / FILE).exists() and _declared(directory) else None
    runs = f"{len(found.runs)} of 36 runs are" if found else "no run is"
    words = f"natal: stopped, {runs} stored in results; the same command goes on from there.\n"
    assert (result.returncode, result.stderr) == (128 + sent, words)


def _declared(directory: Path) -> bool:
    with Store.read(directory) as store:
        return "study" in store.manifest()


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_ctrl_c_leaves_a_store_to_go_on_from_and_says_so(
    started: Start, tmp_path: Path, study: list[str], uninterrupted: Trainings, workers: int
) -> None:
    command = started(*study, workers, pause=2)
    command.until_paused()
    result = command.end(signal.SIGINT)
    assert 0 < len(trainings(tmp_path / "results")) < TRAININGS
    stopped(result, signal.SIGINT, tmp_path / "results")
    finish(started(*study, 1), tmp_path, stored(tmp_path), uninterrupted)


@pytest.mark.parametrize(
    "sent",
    [signal.SIGTERM, signal.SIGINT, signal.SIGHUP],
)
@pytest.mark.slow
def test_a_signal_at_any_moment_is_one_line(
    started: Start, tmp_path: Path, study: list[str], sent: signal.Signals
) -> None:
    for processes in (1, 2, 3):  # the fork server, then its workers
        command = started(*study, 2, pause=1)  # which both workers come before
        while len(command.process.children(recursive=True)) < processes:
            time.sleep(0.001)
        result = command.end(sent)
        stopped(result, sent, tmp_path / "results")


LISTENED_TO = """
import sys
from natal.cli import main
from natal.progress import Lines
report = Lines.finished
def finished(*what):
    report(*what)
    sys.stdin.read()  # until its reader has left
Lines.finished = finished
main()
"""


@pytest.mark.slow
def test_a_reader_that_leaves_is_one_line_too(tmp_path: Path, study: list[str]) -> None:
    (tmp_path / "results").mkdir()
    with subprocess.Popen(
        [sys.executable, "-c", LISTENED_TO, *study, "1"], cwd=tmp_path, text=True, env={**os.environ, **PLAIN},
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    ) as command:  # fmt: skip
        assert command.stdin is not None
        assert command.stdout is not None
        assert command.stderr is not None
        assert command.stdout.readline().startswith("[1/36] ")  # `natal run | head -1`
        command.stdout.close()
        command.stdin.close()
        said = command.stderr.read()
    result = subprocess.CompletedProcess(study, command.returncode, "", said)
    stopped(result, signal.SIGPIPE, tmp_path / "results")


# -- places that cannot be written, files that are not ours ----------------------------------------------


def refused(result: subprocess.CompletedProcess[str], *words: str) -> None:
    """Check for exit status 2 and one line on standard error that says certain things."""
    assert result.returncode == 2, result.stderr
    assert result.stderr.startswith("natal: ")
    assert result.stderr.count("\n") == 1
    assert [word for word in words if word not in result.stderr] == [], result.stderr


def _foreign(path: Path) -> None:
    with sqlite3.connect(path) as db:
        db.execute("CREATE TABLE thesis (chapter TEXT)")
    db.close()


@pytest.mark.parametrize(
    "verb",
    [
        pytest.param(["run", "tiny.toml", "--workers", "1", "--out"], marks=pytest.mark.slow),
        ["run", "tiny.toml", "--fresh", "--workers", "1", "--out"],
        ["report"],
    ],
)
def test_other_files_of_that_name_are_left_as_they_are(
    cli: Natal, tmp_path: Path, tiny_results: Results, verb: list[str]
) -> None:
    (tmp_path / "tiny.toml").write_text(toml(tiny(seeds=[3])))
    whole = (tiny_results.directory / FILE).read_bytes()
    places: dict[str, bytes | None] = {
        "text": b"my thesis\n" * 500,
        "cut": whole[: len(whole) // 2],
        "foreign": None,
    }
    for name, content in places.items():
        path = tmp_path / name / FILE
        path.parent.mkdir()
        path.write_bytes(content) if content is not None else _foreign(path)
        before = path.read_bytes()
        refused(cli(*verb, name), f"{name}/{FILE}", "name another directory with --out")
        assert path.read_bytes() == before
        assert {p.name for p in path.parent.iterdir()} <= {FILE, ".lock"}


@pytest.mark.parametrize("place", ["file", "file/below", "/proc/natal", "\N{GREEK SMALL LETTER THETA}" * 200])
def test_a_directory_that_cannot_be_made(cli: Natal, tmp_path: Path, place: str) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "tiny.toml").write_text(toml(tiny()))
    refused(cli("run", "tiny.toml", "--workers", 1, "--out", place), place)
    assert (tmp_path / "file").read_text() == "mine"
    assert {p.name for p in tmp_path.iterdir() if p.name[0] != "."} == {"file", "tiny.toml"}


@pytest.mark.slow
def test_a_disk_that_fills_up_is_one_line_and_the_command_goes_on_later(
    started: Start, tmp_path: Path, study: list[str], uninterrupted: Trainings
) -> None:
    result = started(*study, 1, largest=100_000).wait()
    refused(result, f"results/{FILE}", "run the same command again")
    assert 0 < len(trainings(tmp_path / "results")) < TRAININGS
    finish(started(*study, 1), tmp_path, stored(tmp_path), uninterrupted)
