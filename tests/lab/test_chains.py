"""Chains of stages: they are what one would do by hand, share what they can, and survive a kill at any moment."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import cycle
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import natal
from conftest import tiny, trainings
from natal import NatalError, Run, load_study
from natal.lab import birth, connectivity, worker
from natal.lab.engines import ENGINES
from natal.lab.plan import Job
from natal.lab.state import State
from natal.lab.tasks import load
from natal.lab.trial import Course, Trained, Trial
from natal.lab.worker import Made
from natal.pruning.choose import mask
from natal.reading.results import Results
from natal.reading.validate import validate
from natal.store import Failure, States, Store

LONG = {
    "epochs": 6,
    "learning_rate": 0.02,
    "patience": "none",
    "target": "none",
    "batch": 36,
    "optimiser": "adam",
}
"""24 steps, 4 an epoch."""

TICKET = {
    "name": "ticket",
    "criterion": "magnitude",
    "scope": "layerwise",
    "at": "end",
    "rounds": "levels",
    "rewind": "init",
}
REINIT = {**TICKET, "name": "reinit", "control": "reinit"}
SPREAD = {"from": "2it", "to": "18it", "every": "4it"}

PROTOCOLS: dict[str, dict[str, Any]] = {
    "ticket": TICKET,
    "reinit": REINIT,
    "paced": {**TICKET, "rates": {"last": 0.5}},
    "weights": {**TICKET, "rewind": "6it", "rounds": 2},
    "rate": {**TICKET, "rewind": "clock"},
    "early": {"criterion": "snip", "at": "6it"},
    "early-rounds": {"criterion": "snip", "at": "6it", "rounds": 3},
    "from-birth": {"criterion": "snip", "at": "6it", "rewind": "init", "control": "shuffle"},
    "fine-tuned": {"criterion": "magnitude", "at": "end"},
    "gradual": {"criterion": "magnitude", "at": SPREAD},
    "set": {"criterion": "magnitude", "scope": "erk", "at": SPREAD, "regrow": "random"},
    "rigl": {"criterion": "magnitude", "scope": "erk", "at": SPREAD, "regrow": "gradient"},
    "neurons": {
        "criterion": "magnitude",
        "granularity": "neuron",
        "at": "end",
        "rounds": 2,
        "rewind": "init",
    },
    "neurons-gradual": {
        "criterion": "magnitude",
        "granularity": "neuron",
        "scope": "layerwise",
        "at": SPREAD,
    },
    "levels-at-birth": {"criterion": "snip", "rounds": "levels"},
}


def chains(*strategies: Any, **changes: Any) -> dict[str, Any]:
    """A tiny study of chains, of one seed and two levels unless ``changes`` say otherwise."""
    retrain = (
        {"retrain": "2ep"}
        if any("at" in s and s["at"] == "end" and "rewind" not in s for s in strategies)
        else {}
    )
    training = {**LONG, **retrain, **changes.pop("training", {})}
    wanted = {"seeds": [1], "sparsities": [0.0, 0.5, 0.8], "strategies": list(strategies), **changes}
    return tiny(**wanted, training=training)


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The key of every training that is begun from now on, in order."""
    keys: list[str] = []
    real = worker.each

    def each(job: Job) -> Iterator[Made | Failure]:
        keys.extend(training.key for training in job.trainings)
        yield from real(job)

    monkeypatch.setattr(worker, "each", each)
    return keys


def curves(results: Results, strategy: str, sparsity: float) -> list[float]:
    (found,) = (c for c in results.curves if (c.strategy, c.sparsity) == (strategy, sparsity))
    return [*found.step, *found.train_loss, *found.val_loss, *found.val_metric]


# -- laws --------------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("no_report")
@pytest.mark.parametrize("engine", ["torch", "compiled"])
def test_a_chain_of_one_round_is_train_cut_rewind_by_hand(tmp_path: Path, engine: str) -> None:
    one = {**TICKET, "rounds": 1}
    results = natal.run(chains(one, sparsities=[0.5]), tmp_path, engine=engine)
    study = results.study

    def hand(trial: Any) -> Trained:
        (done,) = ENGINES[engine].train([trial], "cpu")
        return done

    dense = birth.trial(study, Run("regression", "ticket", 0.0, 1), 0.02)
    end = hand(replace(dense, keep=frozenset({"end"}))).states["end"]
    grown = birth.newborn(study, Run("regression", "ticket", 0.0, 1), dense.split)
    born = {name: value.clone() for name, value in grown.state_dict().items()}
    grown.load_state_dict(dict(end.tensors))
    problem = natal.pruning.choose.problem_of(grown, 1)
    ticket = mask(study.recipe("ticket"), problem, 0.5)
    grown.load_state_dict(born)
    by_hand = hand(replace(dense, network=grown, mask=ticket)).outcome
    assert curves(results, "ticket", 0.5) == [
        x for name in ("step", "train_loss", "val_loss", "val_metric") for x in by_hand.curves[name]
    ]
    assert results.runs[0].test_metric == by_hand.test_metric
    kept = results.mask(results.runs[0]).weights
    assert all(torch.equal(kept[name], ticket.weights[name]) for name in ticket.weights)


@pytest.mark.usefixtures("no_report")
def test_nothing_wound_back_at_birth_is_the_training_of_ever(tmp_path: Path, trained: list[str]) -> None:
    now = natal.run(chains({"name": "snip", "criterion": "snip", "at": "init", "rewind": "none"}), tmp_path)
    begun = len(trained)
    assert natal.plan(chains({"name": "snip", "criterion": "snip"}), tmp_path).pending == []
    assert (begun, len(now.runs)) == (3, 3)


@pytest.mark.usefixtures("no_report")
def test_rounds_keep_the_count_of_one_cut(tmp_path: Path) -> None:
    some = [
        {**TICKET, "name": f"{n}", "rounds": n, "scope": scope} for n in (1, 3) for scope in ("layerwise",)
    ]
    results = natal.run(chains(*some, sparsities=[0.63]), tmp_path)
    (one, three) = results.runs
    assert (one.kept, one.densities) == (three.kept, three.densities)
    assert len(three.proofs["rounds"]) == 3
    assert three.proofs["rounds"][-1] == three.realised_sparsity


@pytest.mark.usefixtures("no_report")
def test_branches_share_their_trunk(tmp_path: Path, trained: list[str]) -> None:
    shuffled = {**TICKET, "name": "shuffled", "control": "shuffle"}
    results = natal.run(chains(TICKET, REINIT, shuffled), tmp_path)
    # the dense network, and each strategy at two levels: no stage of a trunk besides
    assert (len(results.runs), len(trained), len(set(trained))) == (9, 7, 7)
    assert natal.run(chains("magnitude", sparsities=[0.0]), tmp_path).runs[0].key in trained[:1]
    assert len(trained) == 7


@pytest.mark.usefixtures("no_report")
def test_a_control_has_the_tickets_mask(tmp_path: Path) -> None:
    results = natal.run(chains(TICKET, REINIT), tmp_path)
    by_name = {(row.strategy, row.sparsity): row for row in results.runs}
    mine, control = (results.mask(by_name[name, 0.8]).weights for name in ("ticket", "reinit"))
    assert all(torch.equal(mine[name], control[name]) for name in mine)
    assert by_name["ticket", 0.8].test_metric != by_name["reinit", 0.8].test_metric


@pytest.mark.parametrize("engine", [pytest.param("torch", marks=pytest.mark.slow), "compiled"])
def test_every_protocol_runs_and_proves_itself(tmp_path: Path, engine: str) -> None:
    asked = chains(*({**recipe, "name": name} for name, recipe in PROTOCOLS.items()))
    results = natal.run(asked, tmp_path, engine=engine)
    assert {row.status for row in results.runs} == {"finished"}
    assert validate(tmp_path) == []
    assert not (tmp_path / "states" / "passing").exists()
    for row in results.runs:
        if row.sparsity and row.strategy not in ("paced", "neurons", "neurons-gradual"):
            assert abs(row.realised_sparsity - row.sparsity) < 0.01, row.run
    for name in ("neurons", "neurons-gradual"):
        of_neurons = next(row for row in results.runs if (row.strategy, row.sparsity) == (name, 0.8))
        assert [int(kept.sum()) for kept in results.mask(of_neurons).units.values()] == [7]


BROKEN: list[tuple[dict[str, Any], str]] = [
    ({"held": False}, "removed weights were not 0 at every evaluation and after the last step"),
    ({"rewound": False}, "it did not begin with the weights it was given, rewind = '6it'"),
    ({"sparsity": 0.25}, "its network ended at sparsity 0.250000, its mask has 0."),
    ({"rounds": [0.25]}, "its last cut reached sparsity 0.250000, its network has 0."),
    ({"restarted": {"step": 7}}, "it began at step 7 of its clock, the study says 6"),
    (
        {"restarted": {"optimiser": "kept"}},
        "its optimiser began kept, which is not what rewind = '6it' means",
    ),
    ({"restarted": {"learning_rate": 1.0}}, "its first learning rate was 1.0, the study says 0.02"),
]


@pytest.mark.usefixtures("no_report")
def test_what_a_chain_does_not_prove_is_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[dict[str, Any]] = []
    conclude = Course.proofs

    def proofs(self: Course) -> dict[str, Any]:
        found: dict[str, Any] = conclude.fget(self)  # type: ignore[attr-defined]
        told = said[0] if self.trial.start is not None else {}
        return {**found, **told, "restarted": {**found["restarted"], **told.get("restarted", {})}}

    monkeypatch.setattr(Course, "proofs", property(proofs))
    made = worker._made

    def with_rounds(*args: Any) -> Made:
        one = made(*args)
        told = {k: v for k, v in said[0].items() if k == "rounds" and one.outcome.proofs["restarted"]["step"]}
        return replace(one, outcome=replace(one.outcome, proofs={**one.outcome.proofs, **told}))

    monkeypatch.setattr(worker, "_made", with_rounds)
    asked = chains({**TICKET, "rewind": "6it"}, sparsities=[0.0, 0.5])
    for n, (changes, words) in enumerate(BROKEN):
        said[:] = [changes]
        natal.run(asked, tmp_path / str(n))
        assert any(words in line for line in validate(tmp_path / str(n))), words


@pytest.mark.usefixtures("no_report")
@pytest.mark.parametrize("engine", ["torch", "compiled"])
@pytest.mark.parametrize("optimiser", ["sgd", {"name": "sgd", "momentum": 0.9}, "adam", "adamw"])
def test_an_optimiser_that_goes_on_proves_what_it_can_remember(
    tmp_path: Path, optimiser: object, engine: str
) -> None:
    asked = chains(PROTOCOLS["early"], sparsities=[0.5], training={"optimiser": optimiser})
    natal.run(asked, tmp_path, engine=engine)
    assert [line for line in validate(tmp_path) if "its optimiser began" in line] == []


# -- states ------------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("no_report")
def test_states_are_given_back(tmp_path: Path) -> None:
    results = natal.run(chains(TICKET, keep=["init", "6it", "end"]), tmp_path)
    ticket = next(row for row in results.runs if row.sparsity == 0.8)
    kept = results.mask(ticket)
    born, middle, end = (results.state(ticket, clock) for clock in ("init", "1.5ep", "end"))
    assert (born.step, middle.step, end.step) == (0, 6, 24)
    at_birth = birth.newborn(results.study, ticket.run, load(results.study.task("regression"), 1, 0.1))
    for name, stays in kept.weights.items():
        assert torch.equal(born.tensors[name], at_birth.state_dict()[name] * stays)
        assert not end.tensors[name][~stays].any()
        assert not torch.equal(middle.tensors[name], end.tensors[name])
    net = results.network(ticket.run)
    assert all(torch.equal(value, end.tensors[name]) for name, value in net.state_dict().items())
    before = trainings(tmp_path)
    assert natal.plan(chains(TICKET, keep=["init", "6it", "end"]), tmp_path).pending == []
    assert trainings(tmp_path) == before


@pytest.mark.usefixtures("no_report", "few_rounds")
@pytest.mark.parametrize("engine", ["torch", "compiled"])
def test_the_mask_of_a_run_is_the_one_that_it_was_trained_under(tmp_path: Path, engine: str) -> None:
    controls = [{"criterion": "ntk-sap", "control": control} for control in ("shuffle", "quota-random")]
    asked = chains("ntk-sap", "snip", "structured", "random-neurons", TICKET, *controls, keep=["end"])
    results = natal.run(asked, tmp_path, engine=engine)
    for row in results.runs:
        trained_under = results.state(row).mask
        for name, kept in results.mask(row).items().items():
            assert torch.equal(kept, trained_under.get(name, torch.ones_like(kept))), (row.run, name)


@pytest.mark.usefixtures("no_report")
def test_a_stored_training_is_trained_again_for_a_state(tmp_path: Path, trained: list[str]) -> None:
    natal.run(chains("magnitude", sparsities=[0.0]), tmp_path)
    before = trainings(tmp_path)
    planned = natal.plan(chains(TICKET), tmp_path)
    assert planned.again == set(before)
    assert (len(planned.pending), len(planned.done)) == (3, 1)
    natal.run(chains(TICKET), tmp_path)
    assert Counter(trained)[next(iter(before))] == 2
    after = trainings(tmp_path)
    assert {key: after[key] for key in before} == before


@pytest.mark.usefixtures("no_report")
def test_states_that_are_wanted_later_are_those_of_each_seed(tmp_path: Path) -> None:
    wanted = chains("magnitude", "random", TICKET, seeds=[1, 2], keep=["end"])
    natal.run({**wanted, "keep": []}, tmp_path / "later")
    before = trainings(tmp_path / "later")
    later, once = (natal.run(wanted, tmp_path / place) for place in ("later", "once"))
    assert trainings(tmp_path / "later") == before == trainings(tmp_path / "once")
    for row in once.runs:
        state = later.state(row.run).tensors
        assert all(torch.equal(value, state[name]) for name, value in once.state(row).tensors.items()), (
            row.run
        )


@pytest.mark.usefixtures("no_report")
def test_what_was_not_kept_is_named_with_the_cure(tmp_path: Path) -> None:
    results = natal.run(chains(TICKET, sparsities=[0.0]), tmp_path)
    with pytest.raises(
        NatalError, match=r"the state at 'end' of .* is not stored; run the study again with keep ="
    ):
        results.state(results.runs[0])
    with pytest.raises(NatalError, match="clock '9ep' is beyond the 24 steps"):
        results.network(results.runs[0], "9ep")
    with pytest.raises(NatalError, match="clock 'soon' must be a position in training, such as"):
        results.state(results.runs[0], "soon")
    with pytest.raises(NatalError, match="seed=7 is no trained run of"):
        results.mask(results.runs[0].run._replace(seed=7))
    with pytest.raises(NatalError, match=r"run must be a row of results\.runs or a natal\.Run, got int"):
        results.mask(7)  # type: ignore[arg-type]


@pytest.mark.usefixtures("no_report")
def test_a_state_that_is_kept_and_yet_not_there_is_not_to_be_asked_for(tmp_path: Path) -> None:
    asked = chains(PROTOCOLS["early"], sparsities=[0.5], keep=["init", "end"])
    results = natal.run(asked, tmp_path)
    with pytest.raises(
        NatalError,
        match=r"clock 'init' is before step 6, at which the training of .* begins; what came before is the",
    ):
        results.state(results.runs[0], "init")
    for path in (tmp_path / "states").glob("*@end.safetensors"):
        path.unlink()
    with pytest.raises(
        NatalError, match="is not stored; it diverged before, or the same `natal run` makes it again"
    ):
        results.state(results.runs[0])
    wild = chains("magnitude", keep=["end"], training={"learning_rate": 1e18, "optimiser": "sgd"})
    lost = natal.run(wild, tmp_path / "wild")
    with pytest.raises(NatalError, match="is not stored; it diverged before"):
        lost.state(lost.runs[0])


@pytest.mark.usefixtures("no_report")
def test_a_mask_that_is_lost_is_made_again(tmp_path: Path) -> None:
    asked = chains(TICKET, PROTOCOLS["rigl"], REINIT, {"criterion": "snip"})
    results = natal.run(asked, tmp_path)
    masks = {path: path.read_bytes() for path in (tmp_path / "states").glob("*@mask.safetensors")}
    assert len(masks) == 6  # of all but snip's and the dense network
    for path in masks:
        path.unlink()
    with pytest.raises(
        NatalError, match=r"the mask of .* is not stored; the same `natal run` makes it again"
    ):
        results.mask(next(row for row in results.runs if row.sparsity and row.strategy == "ticket"))
    before = trainings(tmp_path)
    natal.run(asked, tmp_path)
    assert {path: path.read_bytes() for path in masks} == masks
    assert trainings(tmp_path) == before
    assert natal.plan(asked, tmp_path).pending == []


@pytest.mark.usefixtures("no_report")
def test_states_that_are_damaged_are_told_by_validate(tmp_path: Path) -> None:
    natal.run(chains(TICKET, keep=["end"]), tmp_path)

    def said() -> list[str]:
        return [line for line in validate(tmp_path) if line.startswith("state ")]

    assert said() == []
    short, flipped, *_ = sorted((tmp_path / "states").glob("*@end.safetensors"))
    content = flipped.read_bytes()
    short.write_bytes(short.read_bytes()[:-8])
    flipped.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    wrong = said()
    assert [line.split()[1] for line in wrong] == [short.stem, flipped.stem]
    assert all(line.endswith("remove it, and `natal run` makes it again") for line in wrong)


@pytest.mark.usefixtures("no_report")
def test_a_dense_network_has_a_mask_whatever_the_control(tmp_path: Path) -> None:
    strategies = [{"criterion": "snip"}, {"criterion": "snip", "control": "small-dense"}]
    results = natal.run(chains(*strategies, sparsities=[0.0], share=False), tmp_path)
    assert [results.mask(row).sparsity for row in results.runs] == [0, 0]


@pytest.mark.usefixtures("no_report")
def test_a_damaged_state_is_named(tmp_path: Path) -> None:
    results = natal.run(chains(TICKET, sparsities=[0.0], keep=["end"]), tmp_path)
    (path,) = (tmp_path / "states").glob("*@end.safetensors")
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(NatalError, match=r"@end is damaged: its digest differs; remove it"):
        results.state(results.runs[0])


@pytest.mark.usefixtures("no_report")
def test_states_beyond_the_disk_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    planned = natal.plan(chains(TICKET, keep=["end"]), tmp_path)
    kept, passing = planned.state_bytes
    # 705 parameters, as many first and second moments, three trainings; two of their ends are passed on
    assert kept > 3 * 705 * 4 * 3
    assert passing == 0
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=1000))
    with pytest.raises(NatalError, match=r"states would take .* GB, and .* has 1e-06 GB left; keep fewer"):
        natal.plan(chains(TICKET, keep=["end"]), tmp_path)


@pytest.mark.usefixtures("no_report")
@pytest.mark.parametrize(
    ("strategies", "keep", "masks", "states"),
    [
        ([TICKET], [], 2, 0),
        ([PROTOCOLS["gradual"], "magnitude"], ["init", "end"], 2, 10),
        (["magnitude"], [], 0, 0),
    ],
)
def test_the_plan_counts_the_bytes_that_are_kept(
    tmp_path: Path, strategies: list[Any], keep: list[str], masks: int, states: int
) -> None:
    asked = chains(*strategies, keep=keep)
    # 672 prunable weights, a bit each; 705 parameters, and where training has begun two moments of each
    told = masks * (672 // 8) + states // 2 * (2 * (672 // 8) + 4 * 705 * (1 + 3))
    assert natal.plan(asked, tmp_path).state_bytes[0] == told
    natal.run(asked, tmp_path)
    names = [path.name for path in (tmp_path / "states").glob("*.safetensors")]
    assert (len([n for n in names if "@mask" in n]), len(names)) == (masks, masks + states)


# -- linear mode connectivity ------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("no_report")
def test_two_trainings_from_one_state_and_the_line_between(
    tmp_path: Path, trained: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    ends: list[tuple[Trial, State, State]] = []
    real = connectivity.along

    def along(trial: Trial, first: State, last: State, points: int) -> dict[str, list[float]]:
        ends.append((trial, first, last))
        return real(trial, first, last, points)

    monkeypatch.setattr(worker, "along", along)
    measured = {"connectivity": {"from": ["init", "20it"], "orders": 2, "points": 5}}
    asked = chains(TICKET, measure=measured, sparsities=[0.0, 0.5])
    results = natal.run(asked, tmp_path)
    frame = results.connectivity()
    assert list(zip(frame["sparsity"], frame["clock"], frame["order"], strict=True)) == [
        (0.0, "init", 1), (0.0, "20it", 1), (0.5, "init", 1), (0.5, "20it", 1)
    ]  # fmt: skip
    assert len(trained) == 6
    # the later they part, the nearer they stay
    early, late = (results.lines[i].error for i in (0, 1))
    assert len(early) == len(late) == 5
    assert early[0] == late[0]
    assert abs(late - late[0]).max() < abs(early - early[0]).max()
    assert results.lines[0].barrier == early.max() - (early[0] + early[-1]) / 2
    # a quarter of the way on every line, by hand
    assert len(ends) == 4
    measured_there = sorted(float(line.error[1]) for line in results.lines)
    by_hand = []
    for trial, first, last in ends:
        at = {name: 0.75 * value + 0.25 * last.tensors[name] for name, value in first.tensors.items()}
        inputs, targets = trial.rows()["test"]
        hidden = (inputs @ at["hidden.weight"].T + at["hidden.bias"]).relu()
        missed = targets - (hidden @ at["output.weight"].T + at["output.bias"])
        by_hand.append(float((missed**2).mean()))
    assert measured_there == pytest.approx(sorted(by_hand), rel=1e-5)
    assert list(frame["barrier"]) == [line.barrier for line in results.lines]
    assert natal.plan(asked, tmp_path).pending == []
    assert not (tmp_path / "states").joinpath("passing").exists()


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ({}, 'measure.connectivity: must be a table { from = ["init", "500it"]'),
        ({"from": []}, "measure.connectivity: from lists the clocks of states"),
        ({"from": ["init"], "orders": 1}, "orders must be a whole number from 2 to 10000, got 1"),
    ],
)
def test_a_line_that_cannot_be_measured_is_refused(line: dict[str, Any], words: str) -> None:
    with pytest.raises(NatalError) as refused:
        load_study(chains(TICKET, measure={"connectivity": line}))
    assert words in str(refused.value)


def test_a_line_between_trainings_on_all_rows_at_once_is_refused() -> None:
    line = {"connectivity": {"from": ["init"], "orders": 2, "points": 5}}
    with pytest.raises(NatalError, match="has no order, so every barrier would be 0"):
        load_study(chains(TICKET, measure=line, training={"batch": "full"}))


# -- kills -------------------------------------------------------------------------------------------------------------


class Killed(BaseException):
    """A command that ends on the spot."""


def killing(monkeypatch: pytest.MonkeyPatch, after: int) -> None:
    """Let the command die before its write number ``after`` from now, or in the middle of it."""
    count = [0]

    def dying(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **keys: Any) -> Any:
            count[0] += 1
            if count[0] == after:
                raise Killed
            return real(*args, **keys)

        return call

    for of, name in ((Store, "add"), (States, "write"), (States, "drop"), (States, "sweep")):
        monkeypatch.setattr(of, name, dying(getattr(of, name)))


@pytest.mark.usefixtures("no_report")
def test_kills_at_any_moment_change_no_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = chains(TICKET, REINIT, {**TICKET, "name": "back", "rewind": "6it"}, keep=["end"])
    natal.run(asked, tmp_path / "whole")
    out = tmp_path / "killed"
    begun: list[str] = []
    real = worker.each

    def each(job: Job) -> Iterator[Made | Failure]:
        with Store.read(out) as store:
            begun.extend(store.finished() & {training.key for training in job.trainings})
        yield from real(job)

    monkeypatch.setattr(worker, "each", each)
    for after in cycle(range(1, 9)):
        with monkeypatch.context() as patch:
            killing(patch, after)
            try:
                natal.run(asked, out)
                break
            except Killed:
                continue
    assert trainings(out) == trainings(tmp_path / "whole")
    assert begun == []  # what was stored was never trained again
    assert files(out) == files(tmp_path / "whole")


def files(directory: Path) -> dict[str, bytes]:
    """Every file of states by its path."""
    folder = directory / "states"
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.usefixtures("no_report")
def test_a_killed_write_leaves_nothing(tmp_path: Path) -> None:
    asked = chains(TICKET)
    natal.run(asked, tmp_path)
    passing = tmp_path / "states" / "passing"
    passing.mkdir()
    (passing / "abc@end.safetensors").write_bytes(b"of a command before")
    (passing / "abc@end.new").write_bytes(b"half")
    (tmp_path / "states" / "abc@end.safetensors").write_bytes(b"its training was never stored")
    before = files(tmp_path)
    natal.run(asked, tmp_path)
    assert files(tmp_path) == {name: content for name, content in before.items() if "abc" not in name}


# -- what diverges -----------------------------------------------------------------------------------------------------


def test_what_starts_from_a_diverged_training_is_recorded(tmp_path: Path) -> None:
    wild = chains(TICKET, REINIT, "magnitude", training={"learning_rate": 1e18, "optimiser": "sgd"})
    results = natal.run(wild, tmp_path)
    assert {row.status for row in results.runs} == {"diverged"}
    never = [row for row in results.runs if not row.begun]
    assert {(row.strategy, row.sparsity) for row in never} == {
        (name, level) for name in ("ticket", "reinit") for level in (0.5, 0.8)
    }
    assert "diverged before 'end'" in never[0].proofs["never_begun"]
    assert [line for line in validate(tmp_path) if "does not learn" not in line] == []
    assert natal.plan(wild, tmp_path).pending == []


# -- workers -----------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("no_report")
def test_workers_train_chains_side_by_side_to_the_same_bits(tmp_path: Path) -> None:
    asked = chains(TICKET, REINIT, {**TICKET, "name": "back", "rewind": "6it"}, seeds=[1, 2])
    natal.run(asked, tmp_path / "alone", workers=1)
    natal.run(asked, tmp_path / "two", workers=2)
    assert trainings(tmp_path / "alone") == trainings(tmp_path / "two")
    assert files(tmp_path / "alone") == files(tmp_path / "two")


# -- the plan ----------------------------------------------------------------------------------------------------------


def test_the_plan_draws_the_chains(tmp_path: Path) -> None:
    planned = natal.plan(chains(TICKET, REINIT, "magnitude"), tmp_path)
    assert [line.strip() for line in planned.chains] == [
        "ticket: dense > 50% > 80% (3 stages)",
        "cut at end, rewound to birth; its stages serve every sparsity",
        "reinit: dense > 50% > 80% (3 stages)",
        "cut at end, rewound to birth; 2 branches off the stages without the control",
    ]
    waits = [max((len(t.needs) for t in job.trainings), default=0) for job in planned.jobs]
    assert waits[0] == 0
    assert planned.state_bytes[1] > 0


@pytest.mark.parametrize(
    ("recipe", "changes", "words"),
    [
        (
            {"at": "6it", "rewind": "7it"},
            {},
            "task 'regression': strategy 'm': rewind = '7it' (step 7) is later",
        ),
        ({"at": {**SPREAD, "to": "1it"}}, {}, "to = '1it' (step 1) must come after from = '2it' (step 2)"),
        ({"at": "25it"}, {}, "at = '25it' is beyond the 24 steps of training"),
        ({**TICKET, "rates": {"lost": 0.5}}, {}, "rates name no prunable layer 'lost'"),
        ({}, {"keep": ["7ep"]}, "keep lists '7ep', beyond the 24 steps of training"),
        (
            {"at": "end"},
            {"training": {"schedule": [["10it", 0]]}},
            "training.retrain = '2ep' would go on at the last learning rate, which the schedule has made 0",
        ),
        (
            {"at": "end"},
            {"training": {"evaluate": "9it"}},
            "training.evaluate = '9it' is longer than training.retrain",
        ),
    ],
)
def test_what_makes_no_sense_on_this_clock_is_refused(
    tmp_path: Path, recipe: dict[str, Any], changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(NatalError) as refused:
        natal.run(chains({"criterion": "magnitude", **recipe, "name": "m"}, **changes), tmp_path / "results")
    assert words in str(refused.value)
    assert list(tmp_path.iterdir()) == []
