"""Nothing lost: commands and workers killed at random moments, Ctrl-C, full disks, other people's files."""

from __future__ import annotations

import os
import random
import resource
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

import natal
from conftest import Command, environment, tiny, toml, trainings
from natal.results import Results
from natal.store import FILE

STUDY: dict[str, Any] = {
    "name": "robust",
    "tasks": ["regression"],
    "strategies": ["magnitude", "random", "structured"],
    "sparsities": [0.0, 0.3, 0.6, 0.9],
    "seeds": [1, 2, 3],
    "hidden": 1024,
    "training": {"epochs": 60, "patience": 30, "learning_rate": 0.002},
}
"""36 rows, 30 trainings, about ten jobs."""
ROWS, TRAININGS = 36, 30


class Started:
    """A ``natal run`` in a process group of its own, its lines in a file."""

    def __init__(self, folder: Path, workers: int) -> None:
        (folder / "robust.toml").write_text(toml(STUDY))
        self.output, self.errors = folder / "output", folder / "errors"
        words = [sys.executable, "-m", "natal.cli", "run", "robust.toml", "--workers", str(workers)]
        with self.output.open("w") as output, self.errors.open("w") as errors:
            self.process = psutil.Popen(words, cwd=folder, stdout=output, stderr=errors, start_new_session=True,
                                        env=environment())

    def lines(self) -> list[str]:
        """Return the runs it has reported."""
        return [line for line in self.output.read_text().splitlines() if line.startswith("[") and "=" in line]

    def wait_for(self, lines: int) -> None:
        """Wait until it has reported that many runs, or has ended."""
        while len(self.lines()) < lines and self.process.poll() is None:
            time.sleep(0.005)

    def kill(self) -> None:
        """Kill the command as the system does when memory is short, and see its processes go with it."""
        family = self.process.children(recursive=True)
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(30)
        _, left = psutil.wait_procs(family, timeout=30)
        assert left == [], "orphans"


@pytest.fixture
def started(tmp_path: Path) -> Iterator[Callable[[int], Started]]:
    """Start ``natal run`` in the test's directory; none outlives the test."""
    commands: list[Started] = []

    def start(workers: int) -> Started:
        commands.append(Started(tmp_path, workers))
        return commands[-1]

    yield start
    for command in commands:
        if command.process.poll() is None:
            command.kill()


def stored(folder: Path) -> set[str]:
    """Return the stored rows as the progress lines name them."""
    if not (folder / "results" / FILE).exists():
        return set()
    results = natal.load(folder / "results") if trainings(folder / "results") else None
    return {_name(row) for row in results.runs} if results else set()


def _name(row: dict[str, Any]) -> str:
    return f"task=regression, strategy={row['strategy']}, sparsity={row['sparsity']:.0%}, seed={row['seed']}"


def named(line: str) -> str:
    return line.partition("] ")[2].partition(" ...")[0]


@pytest.fixture(scope="session")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[object, ...]]:
    """What the study leaves behind when nothing disturbs it."""
    out = tmp_path_factory.mktemp("uninterrupted")
    natal.run(STUDY, out, workers=1)
    found = trainings(out)
    assert len(found) == TRAININGS
    return found


def finish(command: Started, folder: Path, before: set[str], expected: dict[str, tuple[object, ...]]) -> None:
    """Let a command finish, and check that it did the rest, only the rest, and to the last bit."""
    assert command.process.wait(120) == 0, command.errors.read_text()
    lines = command.lines()
    assert len(lines) == ROWS - len(before)
    assert not before & {named(line) for line in lines}
    assert [int(line[1:].partition("/")[0]) for line in lines] == list(range(len(before) + 1, ROWS + 1))
    assert trainings(folder / "results") == expected
    assert len(natal.load(folder / "results").runs) == ROWS


def test_a_command_killed_at_random_moments_loses_nothing(
    started: Callable[[int], Started], tmp_path: Path, uninterrupted: dict[str, tuple[object, ...]]
) -> None:
    rng = random.Random(20261001)
    kept: dict[str, tuple[object, ...]] = {}
    kills, amid = 0, 0
    while kills < 8:
        before = stored(tmp_path)
        command = started(rng.choice([1, 2]))
        if kills % 4 == 3:
            time.sleep(rng.uniform(0.3, 2.5))  # also while it starts
        else:
            command.wait_for(rng.randint(1, 4))
            time.sleep(rng.uniform(0, 0.1))
        assert command.process.poll() is None, "the study is too short to be killed this often"
        command.kill()
        kills += 1
        now = trainings(tmp_path / "results") if (tmp_path / "results" / FILE).exists() else {}
        assert {key: now[key] for key in kept} == kept
        assert not before & {named(line) for line in command.lines()}
        assert {named(line) for line in command.lines()} <= stored(tmp_path)  # what it said is true
        amid += len(kept) < len(now)
        kept = now
    assert amid >= 3  # several were killed between one stored training and the next
    assert 0 < len(kept) < TRAININGS
    finish(started(2), tmp_path, stored(tmp_path), uninterrupted)


def test_a_killed_worker_is_replaced(
    started: Callable[[int], Started], tmp_path: Path, uninterrupted: dict[str, tuple[object, ...]]
) -> None:
    command = started(2)
    for lines in (1, 12):
        command.wait_for(lines)
        workers = [worker for child in command.process.children() for worker in child.children()]
        assert workers
        workers[-1].send_signal(signal.SIGKILL)
    finish(command, tmp_path, set(), uninterrupted)
    assert command.errors.read_text() == ""


@pytest.mark.parametrize("workers", [1, 2])
def test_ctrl_c_leaves_a_store_to_go_on_from_and_says_so(
    started: Callable[[int], Started], tmp_path: Path, uninterrupted: dict[str, tuple[object, ...]], workers: int
) -> None:
    command = started(workers)
    command.wait_for(2)
    family = command.process.children(recursive=True)
    os.killpg(command.process.pid, signal.SIGINT)  # a terminal sends it to all of them
    assert command.process.wait(30) == 130
    assert psutil.wait_procs(family, timeout=30)[1] == []
    kept = len(trainings(tmp_path / "results"))
    assert 0 < kept < TRAININGS
    words = f"natal: stopped. {kept} trainings are stored in results; the same command goes on from there."
    assert command.errors.read_text().split("\n") == ["", words, ""]
    finish(started(1), tmp_path, stored(tmp_path), uninterrupted)


def test_ctrl_c_before_anything_is_stored_is_quiet_too(started: Callable[[int], Started], tmp_path: Path) -> None:
    (tmp_path / "results").mkdir()
    command = started(2)
    while not (children := command.process.children()):  # the fork server, importing torch
        time.sleep(0.005)
    time.sleep(0.2)
    os.killpg(command.process.pid, signal.SIGINT)
    assert command.process.wait(30) == 130
    assert psutil.wait_procs(children, timeout=30)[1] == []
    words = "natal: stopped. 0 trainings are stored in results; the same command goes on from there."
    assert command.errors.read_text().split("\n") == ["", words, ""]


# -- places that cannot be written, files that are not ours ------------------------------------------------------


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


@pytest.mark.parametrize("verb", [["run", "tiny.toml", "--out"], ["run", "tiny.toml", "--fresh", "--out"], ["report"]])
def test_other_files_of_that_name_are_left_as_they_are(
    cli: Command, tmp_path: Path, tiny_results: Results, verb: list[str]
) -> None:
    (tmp_path / "tiny.toml").write_text(toml(tiny(seeds=[3])))
    whole = (tiny_results.directory / FILE).read_bytes()
    places: dict[str, bytes | None] = {"text": b"my thesis\n" * 500, "cut": whole[: len(whole) // 2], "foreign": None}
    for name, content in places.items():
        path = tmp_path / name / FILE
        path.parent.mkdir()
        path.write_bytes(content) if content is not None else _foreign(path)
        before = path.read_bytes()
        refused(cli(*verb, name), f"{name}/{FILE}", "name another directory with --out")
        assert path.read_bytes() == before
        assert {p.name for p in path.parent.iterdir()} <= {FILE, ".lock"}


@pytest.mark.parametrize("place", ["file", "file/below", "/proc/natal", "\N{GREEK SMALL LETTER THETA}" * 200])
def test_a_directory_that_cannot_be_made(cli: Command, tmp_path: Path, place: str) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "tiny.toml").write_text(toml(tiny()))
    refused(cli("run", "tiny.toml", "--out", place), "--out")
    assert (tmp_path / "file").read_text() == "mine"
    assert {p.name for p in tmp_path.iterdir()} == {"file", "tiny.toml"}


def test_a_disk_that_fills_up_is_one_line_and_the_command_goes_on_later(
    tmp_path: Path, uninterrupted: dict[str, tuple[object, ...]], started: Callable[[int], Started]
) -> None:
    (tmp_path / "robust.toml").write_text(toml(STUDY))
    result = subprocess.run(
        [sys.executable, "-m", "natal.cli", "run", "robust.toml"], cwd=tmp_path, env=environment(), text=True,
        capture_output=True, timeout=120, check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (45_000, 45_000)),
    )  # fmt: skip
    refused(result, f"results/{FILE}", "run the same command again")
    assert 0 < len(trainings(tmp_path / "results")) < TRAININGS
    finish(started(1), tmp_path, stored(tmp_path), uninterrupted)
