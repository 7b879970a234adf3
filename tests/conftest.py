"""What several test files need: a study of seconds, its results, and the command line as a user has it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock
from hypothesis import HealthCheck, settings

import natal
from command import Command
from natal import front
from natal.lab.networks import networks
from natal.lab.tasks import tasks
from natal.pruning.criteria import criteria, flow, traits
from natal.reading import report
from natal.reading.results import Results
from natal.store import Store

torch.set_num_threads(1)  # two test processes share two cores
# the same examples in every run, and all the time that a slow machine takes for them
settings.register_profile(
    "natal", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("natal")

TINY: dict[str, Any] = {
    "name": "tiny",
    "tasks": ["regression"],
    "strategies": ["magnitude", "random", "structured"],
    "sparsities": [0.0, 0.5, 0.9],
    "seeds": [1, 2],
    "hidden": 32,
    "training": {"epochs": 12, "patience": 4, "learning_rate": 0.02},
}
"""18 rows, 14 trainings: both seeds' dense network serves three strategies."""


def tiny(**changes: Any) -> dict[str, Any]:
    """Return the tiny study with some keys changed; ``training`` keys are merged."""
    training = {**TINY["training"], **changes.pop("training", {})}
    return {**TINY, **changes, "training": training}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the tests that take longest, so that no process is left alone with one of them at the end."""
    items.sort(key=lambda item: item.path.name not in ("test_site.py", "test_docs.py", "test_package.py"))


@pytest.fixture(autouse=True)
def _seeded() -> Iterator[None]:
    """Let layers and rows that a test draws without a seed of its own be the same in every run."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


@pytest.fixture
def few_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let criteria that prune in many rounds, or draw many times in each, take few: for what does not depend on it."""
    monkeypatch.setattr(flow, "REDRAWS", 1)
    for name, of in list(traits.items()):
        monkeypatch.setitem(traits, name, replace(of, rounds=min(3, of.rounds)))


@pytest.fixture
def no_report(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out the figures, for tests that look at the run store alone."""
    assert vars(front)["report"] is report
    monkeypatch.setattr(report, "write", lambda directory, **_: [])


@contextmanager
def forgetting(folder: Path) -> Iterator[None]:
    """Forget in the end what was registered meanwhile, and the plugins of a folder that were imported."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "path", list(sys.path))
        for registry in (criteria, networks, tasks):
            patch.setattr(registry, "_entries", dict(registry._entries))
        yield
    for name, module in list(sys.modules.items()):
        if str(getattr(module, "__file__", None)).startswith(str(folder)):
            del sys.modules[name]


@pytest.fixture
def forgotten(tmp_path: Path) -> Iterator[None]:
    """Forget after the test what it registered, and the plugins that it wrote and imported."""
    with forgetting(tmp_path):
        yield


@pytest.fixture(scope="session")
def tiny_results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    """The results of the tiny study with everything that `natal run` writes; read-only."""
    return natal.load(_once(tmp_path_factory, "tiny", lambda out: natal.run(tiny(), out)))


def _once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]) -> Path:
    """Return a directory that is filled by whichever test process comes first."""
    shared = factory.getbasetemp().parent if "PYTEST_XDIST_WORKER" in os.environ else factory.getbasetemp()
    done = shared / f"{name}.done"
    with FileLock(shared / f"{name}.lock"):
        if not done.exists():
            make(shared / name / "results")
            done.touch()
    return shared / name / "results"


def trainings(directory: Path) -> dict[str, tuple[object, ...]]:
    """Return the stored trainings by key, all but how long each took and when it ended."""
    with Store.read(directory) as store:
        return {
            o.key: (
                o.status,
                o.made_by,
                {name: value for name, value in o.facts().items() if name != "seconds"},
                {name: line.tobytes() for name, line in o.curves.items()},
            )
            for o in store.outcomes(store.finished())
        }


Natal = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="session")
def kernels(tiny_results: Results) -> None:
    """Have the kernels compiled: the first command that needs them says that it compiles them."""


@pytest.fixture
def cli(tmp_path: Path, kernels: None) -> Natal:
    """Run ``natal`` with some words in a process of its own, in an empty directory."""
    return lambda *words: Command(tmp_path, *words).wait()


@pytest.fixture
def started(tmp_path: Path, kernels: None) -> Iterator[Callable[..., Command]]:
    """Start ``natal`` likewise and return it running; none outlives the test."""
    commands: list[Command] = []

    def start(*words: object, **limits: int) -> Command:
        commands.append(Command(tmp_path, *words, **limits))
        return commands[-1]

    yield start
    for command in commands:
        if command.running:
            command.end(signal.SIGKILL)


def toml(study: dict[str, Any]) -> str:
    """Return a study as TOML."""
    lines = [f"{key} = {_literal(value)}" for key, value in study.items() if not isinstance(value, dict)]
    for key, table in study.items():
        if isinstance(table, dict):
            lines += [f"[{key}]", *(f"{k} = {_literal(v)}" for k, v in table.items())]
    return "\n".join(lines) + "\n"


def _literal(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{k} = {_literal(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_literal, value)) + "]"
    if isinstance(value, str):
        return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
    return repr(value)
