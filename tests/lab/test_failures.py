"""A training that goes wrong is recorded, with what starts from it; it is never dropped and never stops another."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

import natal
from conftest import Natal, tiny, toml, trainings
from natal import Run
from natal.lab import worker
from natal.lab.engines import ENGINES
from natal.lab.run import Silent
from natal.store import Failure, Store

PLUGIN = '''
import pathlib, natal, torch

@natal.criterion("frail")
def frail(problem):
    """Magnitude, but of what lies in BAD it makes nothing."""
    bad = pathlib.Path(__file__).with_name("BAD")
    if bad.exists() and repr([problem.seed, problem.sparsity]) in bad.read_text():
        if bad.read_text()[0] == "T":
            torch.empty(1 << 50)
        raise {"M": MemoryError("\\x1b[31mtoo large\\n"), "K": KeyboardInterrupt("typed"), "S": SystemExit(3)}[
            bad.read_text()[0]
        ]
    return {n: w.abs() for n, w in problem.weights.items()}
'''


def frail(folder: Path, bad: str, **changes: Any) -> Path:
    """Write a study whose plugin fails at what ``bad`` lists; return the study's file."""
    (folder / "frail_plugin.py").write_text(PLUGIN)
    (folder / "BAD").write_text(bad)
    file = folder / "frail.toml"
    file.write_text(toml(tiny(strategies=["frail", "random"], plugins=["frail_plugin"], **changes)))
    return file


LESS = "a smaller network or batch, or fewer --workers, needs less"


@pytest.mark.slow
def test_what_failed_is_told_everywhere_and_tried_again(cli: Natal, tmp_path: Path) -> None:
    frail(tmp_path, "M [1, 0.5] [2, 0.5]")
    why = f"MemoryError: [31mtoo large (frail_plugin.py, line 11); {LESS}"
    lost = "task=regression, strategy=frail, sparsity=50%, seed=1"
    first = cli("run", "frail.toml", "--workers", 1)
    assert first.returncode == 1
    assert first.stderr == (
        f"natal: 2 runs failed, the first {lost}: {why}; the same command tries them again\n"
    )
    assert f"FAILED {lost}: {why}\n" in first.stdout
    results = natal.load(tmp_path / "results")
    assert [(run.strategy, run.sparsity, run.seed) for run, _ in results.failed] == [
        ("frail", 0.5, 1),
        ("frail", 0.5, 2),
    ]
    assert results.missing == [run for run, _ in results.failed]
    assert len(results.runs) == 10
    text = (tmp_path / "results" / "report.txt").read_text("utf-8")
    page = (tmp_path / "results" / "report.html").read_text("utf-8")
    for told in (text, page):
        assert "2 of 12 runs could not be trained" in told
        assert f"{lost} and 1 more run: {why}" in " ".join(told.split())
    planned = cli("plan", "frail.toml").stdout
    assert f"failed       2 of them before, and are tried again; the first: {why}\n" in planned
    checked = cli("validate")
    assert checked.returncode == 1
    assert f"{lost} failed: {why}" in checked.stdout

    (tmp_path / "BAD").unlink()
    again = cli("run", "frail.toml", "--workers", 1)
    assert (again.returncode, again.stderr) == (0, "")
    with Store.read(tmp_path / "results") as store:
        assert store.failures() == {}


@pytest.mark.usefixtures("forgotten", "no_report")
@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("K", r"KeyboardInterrupt: typed \(frail_plugin\.py, line 11\)"),
        ("T", rf"RuntimeError: .* can't allocate memory: .* \(frail_plugin\.py, line 10\); {LESS}"),
    ],
)
def test_nothing_that_goes_wrong_in_a_worker_stops_it(tmp_path: Path, kind: str, reason: str) -> None:
    whole = natal.run(frail(tmp_path, "nothing"), tmp_path / "whole").directory
    (tmp_path / "BAD").write_text(f"{kind} [2, 0.9] [2, 0.5]")

    class Notes(Silent):
        def __init__(self) -> None:
            self.heard: list[tuple[Run, str]] = []

        def failed(self, run: Run, reason: str) -> None:
            self.heard.append((run, reason))

    notes = Notes()
    results = natal.run(tmp_path / "frail.toml", tmp_path / "out", workers=2, watcher=notes)
    failed = [(run, failure.reason) for run, failure in results.failed]
    assert sorted(failed) == sorted(notes.heard)
    assert {(run.sparsity, run.seed) for run, _ in failed} == {(0.9, 2), (0.5, 2)}
    assert all(re.fullmatch(reason, said) for _, said in failed)
    made = trainings(tmp_path / "out")
    assert made == {key: row for key, row in trainings(whole).items() if key in made}
    assert len(made) == len(trainings(whole)) - 2
    assert natal.load(tmp_path / "out").manifest["finished_at"] is None


@pytest.mark.usefixtures("no_report")
def test_what_starts_from_a_failed_training_fails_because_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chain = {"name": "imp", "criterion": "magnitude", "at": "end", "rewind": "init", "rounds": "levels"}
    study = tiny(strategies=[chain, "random"], sparsities=[0.0, 0.5, 0.9], seeds=[1, 2])
    whole = natal.run(study, tmp_path / "whole").directory
    dense = next(
        run for run, _ in natal.plan(study, tmp_path / "x").grid if run.sparsity == 0 and run.seed == 2
    )
    key = dict(natal.plan(study, tmp_path / "x").grid)[dense]
    real = type(ENGINES["compiled"]).train

    def train(self: Any, trials: Any, device: str) -> Any:
        for trial in trials:
            if trial.key == key:
                raise RuntimeError("no luck")
            yield from real(self, [trial], device)

    monkeypatch.setattr(type(ENGINES["compiled"]), "train", train)
    results = natal.run(study, tmp_path / "out")
    reasons = {run: failure.reason for run, failure in results.failed}
    assert {(run.strategy, run.sparsity) for run in reasons} == {
        ("imp", 0.0), ("random", 0.0), ("imp", 0.5), ("imp", 0.9),
    }  # fmt: skip
    assert {run.seed for run in reasons} == {2}
    assert reasons[dense].startswith("RuntimeError: no luck (test_failures.py, line ")
    assert reasons[dense._replace(sparsity=0.9)] == f"what it starts from failed: {reasons[dense]}"
    made = trainings(tmp_path / "out")
    assert made == {key: row for key, row in trainings(whole).items() if key in made}
    assert not list((tmp_path / "out" / "states").glob("passing/*"))
    monkeypatch.undo()
    assert natal.run(study, tmp_path / "out").failed == []
    assert trainings(tmp_path / "out") == trainings(whole)


@pytest.mark.usefixtures("forgotten", "no_report")
def test_a_training_that_writes_into_shared_data_fails_alone(tmp_path: Path) -> None:

    study = tiny(strategies=["magnitude"], seeds=[1])
    whole = natal.run(study, tmp_path / "whole").directory
    planned = natal.plan(study, tmp_path / "out")
    (job,) = planned.jobs
    real, engine = ENGINES["compiled"].train, type(ENGINES["compiled"])

    def train(self: Any, trials: Any, device: str) -> Any:
        for number, trained in enumerate(real(trials, device)):
            if number == 1 and len(trials) == 3:
                trials[1].split.data.inputs.zero_()
            yield trained

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine, "train", train)
        came = list(worker.each(job))
    failures = [one for one in came if isinstance(one, Failure)]
    assert [failure.key for failure in failures] == [job.trainings[1].key]
    assert "this training wrote into the data that others share" in failures[0].reason
    natal.run(study, tmp_path / "out")
    assert trainings(tmp_path / "out") == trainings(whole)
