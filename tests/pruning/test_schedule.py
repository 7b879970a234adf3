"""Protocols inside a loop of one's own: the same numbers as the lab's, and proofs of what the loop did."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import natal
from natal import NatalError, PruningSchedule, Recipe
from natal.determinism import deterministic, single_threaded
from natal.lab.state import State
from natal.lab.trial import Trial
from natal.pruning.choose import mask
from natal.pruning.cuts import Cuts, cut
from natal.pruning.mask import Mask, dense, prunable
from networks import network
from trials import after, how, trial

LENGTH = 12


def made(**keys: Any) -> Trial:
    """A dense network of the lab, about to be trained for twelve steps in batches."""
    one = trial({"network": "mlp", "hidden": [9, 7]}, batch=40, length=f"{LENGTH}it", evaluate="12it", **keys)
    return replace(one, mask=dense(prunable(one.network)))


def loop(one: Trial, strategy: Any, sparsity: float = 0.7, **keys: Any) -> tuple[nn.Module, PruningSchedule]:
    """Train the trial's network in a loop as anyone writes it, with the schedule in it."""
    net, seen = one.born(), one.problem(one.network)
    optimizer = torch.optim.Adam(net.parameters(), lr=one.learning_rate)
    scheduler = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 1 / LENGTH, total_iters=LENGTH - 1)
    x, y = one.rows()["fit"]
    with deterministic(), single_threaded():
        schedule = PruningSchedule(
            net, optimizer, strategy, sparsity, steps=LENGTH, batch=(seen.inputs, seen.targets), seed=one.seed,
            scheduler=scheduler, **keys,
        )  # fmt: skip
        batches: Iterator[Tensor | None] = one.batches()
        while not schedule.done:
            rows = next(batches)
            optimizer.zero_grad()
            F.cross_entropy(net(x[rows]), y[rows]).backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(net.parameters(), 1e9)
            optimizer.step()
            scheduler.step()
            if schedule.step() == "rewound":
                state = State(schedule.clock, one.network.state_dict())
                batches = replace(one, start=state).batches() if schedule.clock < LENGTH else one.batches()
    return net, schedule


def engine(one: Trial, **fields: Any) -> State:
    """Train a trial in the lab, under the loop's learning rates, to its end."""
    return at(one, "end", **fields)


def at(one: Trial, clock: str, **fields: Any) -> State:
    table = one.training.model_dump() | {"schedule": [[f"{k}it", 1 - k / LENGTH] for k in range(1, LENGTH)]}
    return after("torch", replace(one, training=how(**table), **fields), clock).states[clock]


def assert_same(net: nn.Module, schedule: PruningSchedule, state: State) -> None:
    # the scheduler multiplies its factors up, so that rates differ from the lab's in their last bits
    for name, value in net.state_dict().items():
        torch.testing.assert_close(value, state.tensors[name], rtol=0, atol=1e-5)
    for name, kept in schedule.mask.items().items():
        assert torch.equal(kept, state.mask[name]), name
        assert not net.state_dict()[name][~kept].any(), name


def recipe(**keys: Any) -> Recipe:
    return Recipe.model_validate({"name": "r", "criterion": "magnitude", **keys})


# -- the same as in the lab -----------------------------------------------------------------------------------


def test_at_birth_it_is_natal_prune() -> None:
    one = made()
    kept = mask(recipe(criterion="snip"), one.problem(one.network), 0.7)
    net, schedule = loop(one, "snip")
    assert_same(net, schedule, engine(one, mask=kept))
    assert schedule.proofs == {
        "held": True, "rewound": True, "rounds": [pytest.approx(0.7, abs=0.01)], "restarted": [],
    }  # fmt: skip


@pytest.mark.parametrize("regrow", [None, "random", "gradient"])
def test_gradual_set_and_rigl_are_those_of_the_lab(regrow: Any) -> None:
    one = made()
    table = {"criterion": "magnitude", "scope": "erk", "at": {"from": "init", "to": "75%", "every": "3it"}}
    net, schedule = loop(one, table | ({"regrow": regrow} if regrow else {}))
    cuts = Cuts(recipe(scope="erk"), 0.7, 0, 9, 3, regrow)
    assert_same(net, schedule, engine(one, cuts=cuts, mask=cuts.opening(one.problem(one.network))))
    assert schedule.mask.kept == schedule.mask.total - int(0.7 * schedule.mask.total)
    assert len(schedule.proofs["rounds"]) == 3
    assert schedule.proofs["held"] is True


def holding(one: Trial, state: State) -> nn.Module:
    net = one.born()
    net.load_state_dict(dict(state.tensors))
    return net


def test_early_pruning_goes_on_whole() -> None:
    one = made()
    trunk = at(one, "5it")
    kept = cut(recipe(criterion="snip"), one.problem(holding(one, trunk)), 0.7)
    net, schedule = loop(one, {"criterion": "snip", "at": "5it"})
    assert_same(net, schedule, engine(one, start=trunk, mask=kept))
    assert (schedule.total, schedule.taken) == (LENGTH, LENGTH)
    assert schedule.proofs["restarted"] == [
        {"clock": 5, "optimiser": "kept", "learning_rate": pytest.approx(1e-2 * 7 / 12)}
    ]


@pytest.mark.parametrize("rewind", ["init", "3it", "clock"])
def test_lottery_tickets_are_those_of_the_lab(rewind: str) -> None:
    one, rounds = made(), 2
    how_ = recipe(scope="layerwise")
    trunk = None if rewind != "3it" else replace(at(one, "3it"), optimiser={})
    state, kept = at(one, "end"), None
    for number in range(1, rounds + 1):
        kept = cut(how_, one.problem(holding(one, state)), 1 - 0.3 ** (number / rounds), kept, {"last": 0.5})
        start = State(0, state.tensors) if rewind == "clock" else trunk
        state = at(one, "end", mask=kept, start=start)
    table = {"criterion": "magnitude", "scope": "layerwise", "at": "end", "rounds": rounds, "rewind": rewind}
    net, schedule = loop(one, {**table, "rates": {"last": 0.5}})
    assert_same(net, schedule, state)
    first = 3 if rewind == "3it" else 0
    assert schedule.total == LENGTH + rounds * (LENGTH - first)
    proofs = schedule.proofs
    assert proofs["held"] is True
    assert proofs["rewound"] is True
    rate = pytest.approx(1e-2 * (LENGTH - first) / LENGTH)
    assert proofs["restarted"] == [{"clock": first, "optimiser": "fresh", "learning_rate": rate}] * rounds
    assert kept is not None
    assert proofs["rounds"][-1] == kept.sparsity


def test_pruned_after_training_it_is_fine_tuned() -> None:
    one = made()
    end = at(one, "end")
    kept = cut(recipe(), one.problem(holding(one, end)), 0.7)
    net, schedule = loop(one, {"criterion": "magnitude", "at": "end"}, retrain=4)
    assert schedule.total == LENGTH + 4
    # at the last learning rate, from the first step of the clock on
    last = replace(one, learning_rate=1e-2 / LENGTH, training=how(batch=40, length="4it", evaluate="4it"))
    start = State(0, end.tensors)
    assert_same(net, schedule, after("torch", replace(last, start=start, mask=kept), "end").states["end"])


def test_a_reinitialised_control_has_the_tickets_mask_and_other_weights() -> None:
    one = made()
    table = {"criterion": "magnitude", "at": "end", "rounds": 1, "rewind": "init"}
    (_, ticket), (_, control) = (loop(one, {**table, **extra}) for extra in ({}, {"control": "reinit"}))
    assert {n: m.tolist() for n, m in control.mask.weights.items()} == {
        n: m.tolist() for n, m in ticket.mask.weights.items()
    }
    birth = prunable(one.network)
    for name, drawn in control.mask.redrawn.items():
        # the initial values of the layer in another order
        assert drawn.flatten().sort().values.tolist() == birth[name].flatten().sort().values.tolist()
        assert not torch.equal(drawn, birth[name])


# -- what is held and proven ------------------------------------------------------------------------------------


def simple(**keys: Any) -> tuple[nn.Module, torch.optim.Optimizer, PruningSchedule]:
    net, batch = network("deep")
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    return net, optimizer, PruningSchedule(net, optimizer, "magnitude", 0.5, steps=5, batch=batch, **keys)


def test_momentum_revives_nothing_and_clipping_sees_only_what_is_kept() -> None:
    net, (x, y) = network("deep")
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    table = {"criterion": "magnitude", "at": "2it"}
    schedule = PruningSchedule(net, optimizer, table, 0.5, steps=5, batch=(x, y))
    for _ in range(5):
        optimizer.zero_grad()
        F.cross_entropy(net(x), y).backward()  # type: ignore[no-untyped-call]
        for name, kept in schedule.mask.items().items():
            gradient = net.get_parameter(name).grad
            assert gradient is not None
            assert not gradient[~kept].any()
        optimizer.step()
        schedule.step()
        for name, kept in schedule.mask.items().items():
            assert not net.get_parameter(name)[~kept].any()
    assert schedule.mask.sparsity == pytest.approx(0.5, abs=0.01)
    assert schedule.proofs["held"] is True


def test_a_loop_that_revives_a_weight_is_told() -> None:
    net, optimizer, schedule = simple()
    assert schedule.proofs["held"] is True
    with torch.no_grad():
        net.get_parameter("0.weight").fill_(1.0)
    schedule.step()
    assert schedule.proofs["held"] is False
    schedule.close()
    assert not optimizer._optimizer_step_post_hooks
    assert not net.get_parameter("0.weight")._post_accumulate_grad_hooks


def test_a_closed_schedules_network_compacts_as_any_does() -> None:
    net, (x, y) = network("deep")
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    schedule = PruningSchedule(
        net,
        optimizer,
        {"criterion": "magnitude", "granularity": "neuron", "at": "1it"},
        0.5,
        steps=2,
        batch=(x, y),
    )
    while not schedule.done:
        optimizer.zero_grad()
        F.cross_entropy(net(x), y).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
    schedule.close()
    small = natal.compact(net, schedule.mask)
    torch.testing.assert_close(small(x), net(x))
    assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in net.parameters()) / 2


class Reader(nn.Module):
    """A recurrent layer, whose single weights cannot be pruned."""

    def __init__(self) -> None:
        super().__init__()
        self.rows, self.out = nn.GRU(3, 6, batch_first=True), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.out(self.rows(x)[0][:, -1])
        return out


@pytest.mark.parametrize("control", [None, "reinit"])
def test_neurons_go_from_a_recurrent_layer_and_stay_away(control: Any) -> None:
    net, x, y = Reader(), torch.randn(8, 5, 3), torch.randint(0, 2, (8,))
    optimizer = torch.optim.Adam(net.parameters(), 0.05)
    schedule = PruningSchedule(
        net, optimizer, recipe(granularity="neuron", control=control, at="3it", rewind="init"), 0.5, steps=5,
        batch=(x, y),
    )  # fmt: skip
    while not schedule.done:
        optimizer.zero_grad()
        F.cross_entropy(net(x), y).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
    stays = schedule.mask.weights["rows.weight_hh_l0"].any(1).view(3, 6)
    assert stays.sum(1).tolist() == [3, 3, 3]
    for name, kept in schedule.mask.items().items():
        assert not net.state_dict()[name][~kept].any(), name
    assert not net.state_dict()["rows.weight_ih_l0"][~stays.flatten()].any()


def test_a_device_and_mode_of_the_callers_stay() -> None:
    net, _ = network("conv")
    state, mode = torch.get_rng_state(), [m.training for m in net.modules()]
    x, y = network("conv")[1]
    optimizer = torch.optim.Adam(net.parameters())
    PruningSchedule(net, optimizer, "snip", 0.5, steps=3, batch=(x, y))
    assert torch.equal(torch.get_rng_state(), state)
    assert [m.training for m in net.modules()] == mode


# -- what cannot be done in a loop --------------------------------------------------------------------------------

REFUSED: dict[str, tuple[Any, dict[str, Any], str]] = {
    "levels": (
        {"criterion": "magnitude", "at": "end", "rounds": "levels", "rewind": "init"},
        {},
        "walks the sparsities",
    ),
    "small-dense": ({"criterion": "magnitude", "control": "small-dense"}, {}, "smaller network"),
    "no retrain": ({"criterion": "magnitude", "at": "end"}, {}, "retrain=STEPS"),
    "retrain": ("magnitude", {"retrain": 3}, 'retrain is for at = "end"'),
    "epochs": ({"criterion": "magnitude", "at": "1ep"}, {}, "steps_per_epoch=STEPS"),
    "late": ({"criterion": "magnitude", "at": "50it"}, {}, "beyond the 10 steps"),
    "backwards": ({"criterion": "magnitude", "at": "3it", "rewind": "5it"}, {}, "is later than the cut"),
    "data": ({"criterion": "snip", "at": "5it"}, {"batch": None}, "needs data"),
    "steps": ("magnitude", {"steps": 0}, "steps must be a whole number"),
    "yes": ("magnitude", {"steps": True}, "steps must be a whole number of at least 1, got True"),
    "epoch": (
        {"criterion": "magnitude", "at": "1ep"},
        {"steps_per_epoch": -2},
        "steps_per_epoch must be .*, got -2",
    ),
    "span": ({"criterion": "magnitude", "at": "end"}, {"retrain": "2ep"}, "retrain must be .*, got '2ep'"),
    "inputs": (
        {"criterion": "snip"},
        {"batch": torch.ones(3, 8)},
        r"batch must be a pair \(inputs, targets\), got Tensor",
    ),
    "no scheduler": (
        "magnitude",
        {"scheduler": 3},
        r"scheduler must be one of torch\.optim\.lr_scheduler, got int",
    ),
    "no strategy": (None, {}, "strategy must be a criterion's name, a table of keys or a Recipe, got None"),
    "unknown": ("magnitud", {}, "unknown criterion 'magnitud'"),
    "senseless": ({"criterion": "magnitude", "rewind": "5it"}, {}, "nothing to wind back"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_a_loop_cannot_do_is_refused_in_one_line(case: str) -> None:
    strategy, keys, message = REFUSED[case]
    net, batch = network("deep")
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    asked: dict[str, Any] = {"steps": 10, "batch": batch} | keys
    with pytest.raises(NatalError, match=message) as refusal:
        PruningSchedule(net, optimizer, strategy, **asked)
    assert "\n" not in str(refusal.value)
    # nothing was touched
    assert not optimizer._optimizer_step_post_hooks
    assert all(
        torch.equal(p, q) for p, q in zip(net.parameters(), network("deep")[0].parameters(), strict=True)
    )


def test_a_model_optimiser_or_scheduler_that_does_not_fit_is_refused() -> None:
    net, batch = network("deep")
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    masked = natal.apply(net, natal.prune(net, 0.5, "magnitude"))
    with pytest.raises(NatalError, match="masked already"):
        PruningSchedule(masked, torch.optim.SGD(masked.parameters()), "magnitude", steps=3)
    with pytest.raises(NatalError, match=r"does not train '0\.weight'"):
        PruningSchedule(net, torch.optim.SGD([net.get_parameter("6.weight")]), "magnitude", steps=3)
    with pytest.raises(NatalError, match=r"must be a torch\.optim\.Optimizer, got str"):
        PruningSchedule(net, "adam", "magnitude", steps=3)  # type: ignore[arg-type]
    with pytest.raises(NatalError, match=r"model must be a torch\.nn\.Module, got None"):
        PruningSchedule(None, optimizer, "magnitude", steps=3)  # type: ignore[arg-type]
    torch.optim.lr_scheduler.StepLR(optimizer, 2)
    table = {"criterion": "magnitude", "at": "end", "rewind": "init"}
    with pytest.raises(NatalError, match="give it as scheduler"):
        PruningSchedule(net, optimizer, table, steps=3, batch=batch)


def test_rigl_without_a_step_of_the_optimiser_says_so() -> None:
    net, (x, y) = network("deep")
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    table = {
        "criterion": "magnitude",
        "at": {"from": "init", "to": "4it", "every": "2it"},
        "regrow": "gradient",
    }
    schedule = PruningSchedule(net, optimizer, table, 0.5, steps=5, batch=(x, y))
    optimizer.step()
    schedule.step()
    with pytest.raises(NatalError, match=r"optimizer\.step\(\) was not called"):
        schedule.step()


@pytest.mark.parametrize("at", ["2it", {"from": "init", "to": "4it", "every": "2it"}])
def test_what_another_optimiser_trains_is_not_cut(at: Any) -> None:
    net, (x, y) = network("deep")
    given, other = torch.optim.SGD(net.parameters(), lr=0.1), torch.optim.Adam(net.parameters())
    schedule = PruningSchedule(net, given, {"criterion": "magnitude", "at": at}, 0.5, steps=5, batch=(x, y))
    other.step()
    schedule.step()
    with pytest.raises(
        NatalError, match=r"called 2 times, and the optimizer that it was given has taken no step"
    ):
        schedule.step()


def test_masks_are_the_callers_to_keep() -> None:
    _, _, schedule = simple()
    assert isinstance(schedule.mask, Mask)
    assert schedule.mask.kept == schedule.mask.total - int(0.5 * schedule.mask.total)


# -- the document ---------------------------------------------------------------------------------------------

DOCUMENT = (Path(__file__).parents[2] / "docs" / "loops.md").read_text("utf-8")


def test_the_documented_loop_runs() -> None:
    net, (x, y) = network("deep")
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    known: dict[str, Any] = {
        "natal": natal,
        "model": net,
        "optimizer": optimizer,
        "scheduler": torch.optim.lr_scheduler.StepLR(optimizer, 40),
        "loader": lambda: itertools.repeat((x, y)),
        "loss": F.cross_entropy,
    }
    (loop_of_document, _) = re.findall(r"^```python\n(.*?)^```", DOCUMENT, re.S | re.M)
    exec(loop_of_document, known)
    assert known["schedule"].taken == 400
    assert known["schedule"].mask.sparsity == pytest.approx(0.9, abs=0.01)


def test_every_documented_strategy_can_be_scheduled() -> None:
    tables = [json.loads(table) for table in re.findall(r"`(\{.*?\})`", DOCUMENT)]
    assert len(tables) == 5
    for table in tables:
        net, batch = network("deep")
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        retrain = 10 if (table["at"], table.get("rewind")) == ("end", None) else None
        schedule = PruningSchedule(net, optimizer, table, 0.5, steps=100, batch=batch, retrain=retrain)
        assert schedule.total >= 100
