"""Checkpoints: a long training that is killed goes on from its last one, to the same bits, and trains nothing twice."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from test_chains import REINIT, TICKET, Killed, chains, files
from test_states import NETWORKS
from test_training_cuts import cuts, cutting, mlp

import natal
from conftest import tiny, toml, trainings
from natal.lab import checkpoints, estimate
from natal.lab.checkpoints import Checkpoint, Checkpoints, pack, unpack
from natal.lab.state import State
from natal.lab.trial import History, Trained, Trial
from natal.reading.validate import validate
from natal.store import FILE, NOW, Place, States, Store
from trials import OPTIMISERS, after, how, same, train

WAY: dict[str, Any] = {"batch": 40, "length": "14it", "evaluate": "2it", "optimiser": OPTIMISERS["adamw"]}


@dataclass(frozen=True)
class Left(Checkpoints):
    """Every checkpoint of a training, as it would be read again."""

    def leave(self, key: str, checkpoint: Checkpoint) -> None:
        content = pack(checkpoint)
        found = unpack(content)
        assert found is not None
        assert pack(found) == content
        self.all.append(found)

    @property
    def all(self) -> list[Checkpoint]:
        return LEFT


LEFT: list[Checkpoint] = []


def facts(trained: Trained) -> list[Any]:
    """All that a training leaves behind but its time, the states aside."""
    told = {name: value for name, value in trained.outcome.facts().items() if name != "seconds"}
    curves = {name: line.tobytes() for name, line in trained.outcome.curves.items()}
    return [
        json.dumps(told),
        curves,
        {name: value.numpy().tobytes() for name, value in trained.state.items()},
    ]


def plain(engine: str) -> Trial:
    return replace(NETWORKS[engine][1](), training=how(**WAY, schedule="cosine", test_curve=True, patience=3))


def mid_training(engine: str) -> Trial:
    """A trial that itself goes on from a state, in an order of its own."""
    made = plain(engine)
    return replace(made, start=after(engine, made, "3it").states["3it"], order=1)


def cut(kind: str, **keys: Any) -> Callable[[str], Trial]:
    return lambda _: cutting(mlp(), cuts(kind, 2, 9, 3, 0.4, **keys), **WAY)


TRIALS: dict[str, tuple[str, Callable[[str], Trial]]] = {
    **{f"{engine}, from birth": (engine, plain) for engine in NETWORKS},
    **{f"{engine}, from a state": (engine, mid_training) for engine in NETWORKS},
    **{f"{engine}, gradual": (engine, cut("gradual")) for engine in ("torch", "compiled")},
    **{f"{engine}, RigL": (engine, cut("rigl", scope="erk")) for engine in ("torch", "compiled")},
    "neurons go": ("torch", cut("gradual", scope="layerwise", granularity="neuron")),
}
LONG = ("compiled, from a state", "stacked, from a state", "torch, gradual", "torch, RigL")
"""Those of them that wait for `make test-all`."""


@pytest.mark.parametrize(
    "which", [pytest.param(w, marks=pytest.mark.slow) if w in LONG else w for w in TRIALS]
)
def test_from_any_checkpoint_on_a_training_is_the_one_that_was_not_interrupted(
    which: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, make = TRIALS[which]
    made = replace(make(engine), keep=frozenset({"4it", "10it", "end"}))
    LEFT.clear()
    (whole,) = train(engine, made)
    (left,) = train(engine, replace(made, checkpoints=Left("", every=0.0)))
    assert facts(left) == facts(whole)  # to leave some changes nothing
    some = list(LEFT)
    steps = [checkpoint.now.state.step for checkpoint in some]
    assert steps == [int(step) for step in whole.outcome.curves["step"][:-1]]
    evaluated: list[int] = []
    record = History.record

    def recording(self: History, step: int, *values: float) -> bool:
        evaluated.append(step)
        return record(self, step, *values)

    monkeypatch.setattr(History, "record", recording)
    for checkpoint in some:
        evaluated.clear()
        (rest,) = train(engine, made.resumed(checkpoint))
        assert facts(rest) == facts(whole)
        assert rest.states.keys() == whole.states.keys()
        assert all(same(rest.states[clock], state) for clock, state in whole.states.items())
        assert evaluated == [
            step for step in whole.outcome.curves["step"] if step > checkpoint.now.state.step
        ]
        assert rest.outcome.seconds > checkpoint.seconds


def test_a_checkpoint_is_left_when_it_is_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("natal.lab.trial.time", SimpleNamespace(monotonic=lambda: now[0]))
    record = History.record

    def recording(self: History, step: int, *values: float) -> bool:
        now[0] += 100.0  # seconds from one evaluation to the next
        return record(self, step, *values)

    monkeypatch.setattr(History, "record", recording)
    LEFT.clear()
    train("compiled", replace(NETWORKS["compiled"][1](), training=how(**WAY), checkpoints=Left("")))
    assert [checkpoint.now.state.step for checkpoint in LEFT] == [6, 12]


def test_a_training_that_wrote_into_its_data_leaves_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """Or what goes on from it, with data that are loaded anew, would not be found out."""
    made = plain("torch")
    data = replace(made.split.data, inputs=made.split.data.inputs.clone())
    made = replace(made, split=replace(made.split, data=data), checkpoints=Left("", every=0.0))
    record = History.record

    def spoiling(self: History, step: int, *values: float) -> bool:
        if step == 6:
            data.inputs.zero_()
        return record(self, step, *values)

    monkeypatch.setattr(History, "record", spoiling)
    LEFT.clear()
    train("torch", made)
    assert [checkpoint.now.state.step for checkpoint in LEFT] == [2, 4]


def test_what_cannot_be_read_or_written_is_no_checkpoint(tmp_path: Path) -> None:
    LEFT.clear()
    train(
        "compiled", replace(NETWORKS["compiled"][1](), training=how(**WAY), checkpoints=Left("", every=0.0))
    )
    elsewhere = Checkpoints(str(tmp_path / "not-shared"))
    elsewhere.leave("key", LEFT[0])
    assert elsewhere.last("key") is None
    assert list(tmp_path.iterdir()) == []
    (tmp_path / FILE).touch()
    here, states = Checkpoints(str(tmp_path)), States(tmp_path)
    here.leave("key", LEFT[0])
    (path,) = (tmp_path / "states" / "passing").iterdir()
    found = here.last("key")
    assert found is not None
    assert pack(found) == path.read_bytes()
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    assert here.last("key") is None
    states.drop(Place("key", NOW))
    (tmp_path / "states").rmdir()
    (tmp_path / "states").touch()  # nothing can be written below it
    here.leave("key", LEFT[0])
    assert here.last("key") is None


# -- studies -----------------------------------------------------------------------------------------------------------


def passing(directory: Path) -> list[str]:
    return sorted(path.name for path in (directory / "states" / "passing").glob("*"))


@pytest.mark.usefixtures("no_report")
@pytest.mark.parametrize("engine", [pytest.param("torch", marks=pytest.mark.slow), "compiled"])
def test_a_study_that_is_killed_at_every_checkpoint_trains_nothing_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, engine: str
) -> None:
    back = {**TICKET, "name": "back", "rewind": "6it"}
    asked = chains(TICKET, REINIT, back, training={"evaluate": "6it"}, keep=["end"], sparsities=[0.0, 0.5])
    natal.run(asked, tmp_path / "whole", engine=engine, workers=1)
    evaluated, kills = killed_at_every_checkpoint(asked, tmp_path / "killed", engine, monkeypatch)
    assert trainings(tmp_path / "killed") == trainings(tmp_path / "whole")
    assert files(tmp_path / "killed") == files(tmp_path / "whole")
    assert passing(tmp_path / "killed") == []
    # three from birth in four evaluations each, and one from step 6 on in three
    assert sorted(evaluated) == sorted([*[6] * 3, *[12, 18, 24] * 4])
    assert kills == 3 * 3 + 2


def killed_at_every_checkpoint(
    asked: dict[str, Any], out: Path, engine: str, monkeypatch: pytest.MonkeyPatch
) -> tuple[list[int], int]:
    """Run a study by commands that die as soon as they have left a checkpoint.

    Return the steps evaluated, and the number of kills.
    """
    evaluated: list[int] = []
    record, leave = History.record, Checkpoints.leave

    def recording(self: History, step: int, *values: float) -> bool:
        evaluated.append(step)
        return record(self, step, *values)

    def killing(self: Checkpoints, key: str, checkpoint: Checkpoint) -> None:
        leave(self, key, checkpoint)
        raise Killed

    monkeypatch.setattr(History, "record", recording)
    monkeypatch.setattr(Checkpoints, "leave", killing)
    monkeypatch.setattr(checkpoints, "EVERY", 0.0)
    kills = 0
    while True:
        try:
            natal.run(asked, out, engine=engine, workers=1)
            return evaluated, kills
        except Killed:
            kills += 1
            assert any(f"@{NOW}." in name for name in passing(out))


@pytest.mark.usefixtures("no_report")
@pytest.mark.parametrize("optimiser", ["sgd", "adam"])
def test_the_estimate_counts_the_bytes_of_checkpoints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, optimiser: str
) -> None:
    asked = chains("magnitude", sparsities=[0.0], keep=["6it"], training={"optimiser": optimiser})
    planned = natal.plan(asked, tmp_path, workers=1)
    assert estimate.measure(planned).checkpoints == 0  # of a training of less than five minutes
    monkeypatch.setattr(estimate, "EVERY", -1.0)
    counted = estimate.measure(planned).checkpoints
    left: list[Checkpoint] = []
    monkeypatch.setattr(Checkpoints, "leave", lambda self, key, checkpoint: left.append(checkpoint))
    monkeypatch.setattr(checkpoints, "EVERY", 0.0)
    natal.run(asked, tmp_path, workers=1)

    def held(state: State) -> int:
        moments = [value for value in state.optimiser.values() if value.ndim]
        bits = sum(kept.numel() for kept in state.mask.values()) // 8
        return sum(value.nbytes for value in (*state.tensors.values(), *moments)) + bits

    last = left[-1]
    best = sum(value.nbytes for value in last.best.values())
    assert counted == held(last.now.state) + held(last.states["6it"]) + best


@pytest.mark.usefixtures("no_report")
def test_a_checkpoint_of_what_is_not_asked_for_any_more_goes(tmp_path: Path) -> None:
    natal.run(chains("random", sparsities=[0.5]), tmp_path)
    States(tmp_path).write(Place("gone", NOW), b"of a row that the study had", keep=False)
    assert len(passing(tmp_path)) == 1
    natal.run(chains("random", sparsities=[0.5]), tmp_path)
    assert passing(tmp_path) == []


NEURONS = {**TICKET, "name": "neurons", "granularity": "neuron"}
BLOCKS = {**TICKET, "name": "blocks", "granularity": {"block": [2, 2]}, "rewind": "6it"}
SHUFFLED = {**TICKET, "name": "shuffled", "control": "shuffle"}
NORMED = {"network": "mlp", "hidden": [16, 12], "batch_norm": True, "name": "normed"}
IMAGES = {"task": "digits", "augment": ["crop"], "name": "images"}

KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "batch norm": ("torch", {"strategies": [TICKET, SHUFFLED], "networks": [NORMED]}),
    "changed images": (
        "torch",
        {"strategies": [TICKET, BLOCKS], "tasks": [IMAGES], "networks": ["conv-2"], "sparsities": [0.0, 0.5]},
    ),
    "neurons": ("compiled", {"strategies": [NEURONS, REINIT], "networks": [NORMED | {"batch_norm": False}]}),
    "neurons with batch norm": ("torch", {"strategies": [NEURONS], "networks": [NORMED]}),
    "blocks": ("compiled", {"strategies": [BLOCKS]}),
    "several networks": ("auto", {"strategies": [TICKET], "networks": [NORMED, "lenet-300-100"]}),
    "learning rates": (
        "compiled",
        {"strategies": [TICKET, REINIT], "training": {"learning_rate": {"search": [0.01, 0.03]}}},
    ),
    "two workers": ("compiled", {"strategies": [TICKET, BLOCKS], "seeds": [1, 2]}),
}
"""Chains with what a study may have beside them."""


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_chains_of_every_kind_survive_kills(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    engine, changes = KINDS[kind]
    way = {"evaluate": "6it", "length": "18it", **changes.get("training", {})}
    asked = chains(**{**changes, "training": way})
    del asked["training"]["epochs"]
    if "networks" in asked:
        del asked["hidden"]
    natal.run(asked, tmp_path / "whole", engine=engine, workers=2 if kind == "two workers" else 1)
    assert validate(tmp_path / "whole") == []
    evaluated, kills = killed_at_every_checkpoint(asked, tmp_path / "killed", engine, monkeypatch)
    assert kills > 3
    assert trainings(tmp_path / "killed") == trainings(tmp_path / "whole")
    assert files(tmp_path / "killed") == files(tmp_path / "whole")
    assert passing(tmp_path / "killed") == []
    with Store.read(tmp_path / "whole") as store:
        done = list(store.outcomes(store.finished()))
    assert len(evaluated) == sum(len(outcome.curves["step"]) for outcome in done)


@pytest.mark.slow
def test_stacked_chains_survive_kills_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their bits depend on the company, so here it is what they prove that is the same."""
    asked = chains(TICKET, REINIT, seeds=[1, 2], training={"evaluate": "8it"}, keep=["6it"])
    of_torch = natal.run(asked, tmp_path / "torch", engine="torch")
    killed_at_every_checkpoint(asked, tmp_path / "killed", "stacked", monkeypatch)
    assert validate(tmp_path / "killed") == []
    assert passing(tmp_path / "killed") == []
    assert len(files(tmp_path / "killed")) == len(files(tmp_path / "torch"))
    mine, theirs = (
        {row.run: (row.kept, row.steps_trained, row.proofs["rounds"]) for row in results.runs if row.sparsity}
        for results in (natal.load(tmp_path / "killed"), of_torch)
    )
    assert mine == theirs


DYING = '''
import os, signal
from pathlib import Path
import natal
from torch import nn

class Dying(nn.Sequential):
    """Two layers whose training kills its process once, at a step of the second seed's."""
    def forward(self, x):
        if self.training and len(x) == 36:
            notes = Path(__file__).with_name("notes")
            with notes.open("a") as file:
                file.write(".")
            if notes.stat().st_size == 15 and Path(__file__).with_name("deadly").exists():
                os.kill(os.getpid(), signal.SIGKILL)
        return super().forward(x)

@natal.network("dying")
def dying(inputs, outputs):
    return Dying(nn.Linear(inputs[0], 8), nn.ReLU(), nn.Linear(8, outputs))
'''


@pytest.mark.slow
@pytest.mark.usefixtures("forgotten", "no_report")
def test_a_worker_that_dies_is_gone_on_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In processes of their own, which write checkpoints themselves."""
    monkeypatch.setattr(checkpoints, "EVERY", 0.0)
    (tmp_path / "dying_net.py").write_text(DYING)
    notes, deadly = tmp_path / "notes", tmp_path / "deadly"
    way = {"epochs": 6, "batch": 36, "evaluate": "4it", "target": "none"}
    study = tiny(strategies=["random"], sparsities=[0.0], seeds=[1], plugins=["dying_net"], training=way)
    study["networks"] = ["dying"]
    del study["hidden"]
    (tmp_path / "study.toml").write_text(toml(study))
    natal.run(tmp_path / "study.toml", tmp_path / "whole", workers=2)
    steps = notes.stat().st_size
    notes.write_bytes(b"")
    deadly.touch()
    natal.run(tmp_path / "study.toml", tmp_path / "out", workers=2)
    assert trainings(tmp_path / "out") == trainings(tmp_path / "whole")
    # it died at its fifteenth batch, of which the last two had not come to an evaluation
    assert 0 < notes.stat().st_size - steps <= 4
    assert passing(tmp_path / "out") == []
