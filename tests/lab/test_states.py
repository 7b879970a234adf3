"""States: a training that goes on from one is the training that was never interrupted, and what begins is proven."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from natal import NatalError
from natal.lab.engines import ENGINES
from natal.lab.state import State
from natal.lab.trial import Trial
from natal.pruning.mask import Mask, prunable
from trials import OPTIMISERS, after, how, same, train, trial

SCHEDULES: dict[str, Any] = {
    "constant": "constant",
    "linear": "linear",
    "step": {"name": "step", "every": "3it", "factor": 0.5},
    "cosine": {"name": "cosine", "warmup": "4it"},
    "points": [["4it", 0.5], ["80%", 0.1]],
}


class Everything(nn.Module):
    """Convolution, batch norm and dropout: buffers, and a draw at every step."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.dropout, self.head = nn.Dropout(0.3), nn.Linear(64, 4)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.dropout(torch.relu(self.norm(self.conv(x))).flatten(1)))
        return out


def noise(x: Tensor, generator: torch.Generator) -> Tensor:
    return x + 0.1 * torch.randn(x.shape, generator=generator, dtype=torch.float32).to(x)


def everything() -> Trial:
    """A trial whose every step draws an order, a change of the rows, and dropout."""
    made = trial("mlp", (1, 4, 4), augment=noise)
    with torch.random.fork_rng():
        torch.manual_seed(7)
        net = Everything()
        kept = {name: torch.rand(w.shape) < 0.5 for name, w in prunable(net).items()}
    return replace(made, network=net, mask=Mask(kept))


def chain() -> Trial:
    return trial({"network": "mlp", "hidden": [9, 7]})


NETWORKS: dict[str, tuple[str, Callable[[], Trial]]] = {
    "torch": ("torch", everything),
    "compiled": ("compiled", chain),
    "stacked": ("stacked", lambda: trial({"network": "mlp", "hidden": [9, 7]}, augment=noise)),
}


@pytest.mark.parametrize("engine", NETWORKS)
@pytest.mark.parametrize("rule", OPTIMISERS)
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_training_that_goes_on_from_a_state_is_the_one_that_was_not_interrupted(
    engine: str, rule: str, schedule: str
) -> None:
    name, make = NETWORKS[engine]
    made = make()
    # 90 rows in batches of 40: the state after 5 steps lies inside the second epoch
    way = {
        "optimiser": OPTIMISERS[rule], "schedule": SCHEDULES[schedule], "batch": 40, "length": "10it",
        "evaluate": "1it", "clip": 1.0 if schedule == "cosine" else "none",
    }  # fmt: skip
    whole = after(name, made, "5it", "end", **way)
    middle = whole.states["5it"]
    assert middle.step == 5
    rest = after(name, replace(made, start=middle), "end", **way)
    assert same(rest.states["end"], whole.states["end"])
    for curve, values in rest.outcome.curves.items():
        assert values.tolist() == whole.outcome.curves[curve][5:].tolist(), curve
    assert rest.outcome.proofs["held"]
    assert rest.outcome.proofs["rewound"]


@pytest.mark.parametrize("engine", NETWORKS)
@pytest.mark.parametrize("clock", ["init", "1it", "3it", "9it"])
def test_it_may_be_interrupted_at_any_step(engine: str, clock: str) -> None:
    name, make = NETWORKS[engine]
    made = make()
    way: dict[str, Any] = {"batch": 40, "length": "10it", "evaluate": "4it"}
    whole = after(name, made, clock, "end", **way)
    rest = after(name, replace(made, start=whole.states[clock]), "end", **way)
    assert same(rest.states["end"], whole.states["end"])


@pytest.mark.parametrize("engine", NETWORKS)
def test_states_hold_what_they_say(engine: str) -> None:
    name, make = NETWORKS[engine]
    made = make()
    way: dict[str, Any] = {"batch": 40, "length": "6it", "evaluate": "2it", "decide": "end"}
    trained = after(name, made, "init", "2it", "1ep", "end", **way)
    assert {clock: state.step for clock, state in trained.states.items()} == {
        "init": 0, "2it": 2, "1ep": 3, "end": 6,
    }  # fmt: skip
    first, last = trained.states["init"], trained.states["end"]
    assert not first.optimiser
    assert not first.streams
    assert {n: t.tolist() for n, t in first.tensors.items()} == {
        n: t.tolist() for n, t in made.born().state_dict().items()
    }
    for tensor in itertools.chain(last.tensors.values(), last.optimiser.values()):
        assert tensor.is_contiguous()
        assert tensor.device.type == "cpu"
    for parameter, kept in made.mask.items().items():
        assert torch.equal(last.mask[parameter], kept)
        for moment in (parameter, f"{parameter}/exp_avg", f"{parameter}/exp_avg_sq"):
            assert not {**last.tensors, **last.optimiser}[moment][~kept].any()
        assert last.optimiser[f"{parameter}/step"] == 6
    # decide = "end" keeps the last weights, so they are the trained network's
    assert all(torch.equal(last.tensors[n], value) for n, value in trained.state.items())


@pytest.mark.parametrize("engine", NETWORKS)
def test_the_end_is_the_last_step_taken_not_the_best_evaluation(engine: str) -> None:
    name, make = NETWORKS[engine]
    way: dict[str, Any] = {"batch": 40, "length": "60it", "evaluate": "1it", "patience": 2}
    trained = after(name, make(), "end", "60it", **way)
    assert trained.outcome.best_step < trained.outcome.steps_trained < 60
    assert trained.states["end"].step == trained.outcome.steps_trained
    # a clock that training did not reach has no state
    assert set(trained.states) == {"end"}
    differ = [
        n for n, value in trained.state.items() if not torch.equal(value, trained.states["end"].tensors[n])
    ]
    assert differ


@pytest.mark.parametrize("engine", NETWORKS)
def test_a_rewind_goes_on_with_schedule_and_order_and_a_fresh_optimiser(engine: str) -> None:
    name, make = NETWORKS[engine]
    made = make()
    way: dict[str, Any] = {"batch": 40, "length": "8it", "evaluate": "1it", "schedule": "linear"}
    trunk = after(name, made, "2it", **way).states["2it"]
    rewound = after(name, replace(made, start=replace(trunk, optimiser={})), "3it", **way)
    began = rewound.outcome.proofs["restarted"]
    assert (began["step"], began["optimiser"]) == (2, "fresh")
    assert began["learning_rate"] == pytest.approx(1e-2 * 6 / 8)
    # Adam counts its steps from the rewind: the first is the rate's size for every kept weight, whatever came before
    last = list(made.mask.weights)[-1]
    moved, start = rewound.states["3it"].tensors[last], trunk.tensors[last]
    sizes = (moved - start)[moved != 0].abs()
    assert sizes.max() <= 1e-2 * 6 / 8 * 1.001
    assert sizes.median() > 1e-2 * 6 / 8 * 0.99
    again = after(name, replace(made, start=replace(trunk, step=0, optimiser={}, streams={})), **way)
    birth = after(name, made, **way)
    assert again.outcome.proofs["restarted"] == birth.outcome.proofs["restarted"]
    assert again.outcome.curves["step"].tolist() == list(range(1, 9))


@pytest.mark.parametrize("engine", NETWORKS)
def test_another_order_is_another_order_of_the_same_data_from_the_same_state(engine: str) -> None:
    name, make = NETWORKS[engine]
    made = make()
    way: dict[str, Any] = {"batch": 40, "length": "6it", "evaluate": "1it"}
    start = after(name, made, "3it", **way).states["3it"]
    first, second, again = (
        after(name, replace(made, start=start, order=order), "end", **way) for order in (0, 1, 1)
    )
    assert same(second.states["end"], again.states["end"])
    assert not same(first.states["end"], second.states["end"])
    batches = [t.outcome.proofs["restarted"]["batch"] for t in (first, second)]
    assert batches[0] != batches[1]
    assert all(t.outcome.proofs["rewound"] for t in (first, second))
    # an epoch of the other order still sees every row once
    seen = torch.cat([b for b, _ in zip(replace(made, training=how(**way), order=1).batches(), range(3), strict=False)
                      if b is not None])  # fmt: skip
    assert sorted(seen.tolist()) == list(range(90))
    # and it too goes on from its own states
    split = after(name, replace(made, start=start, order=1), "5it", **way).states["5it"]
    assert same(
        after(name, replace(made, start=split, order=1), "end", **way).states["end"], second.states["end"]
    )


def test_orders_of_one_seed_in_one_stack_stay_apart() -> None:
    name, make = NETWORKS["stacked"]
    made = make()
    way: dict[str, Any] = {"batch": 40, "length": "6it", "evaluate": "1it"}
    start = after(name, made, "3it", **way).states["3it"]
    some = [replace(made, key=f"{n}", start=start, order=n) for n in (0, 1, 2)]
    # and one order from two states, in one of which its stream of changes was drawn from before
    begun = [after(name, some[n], "4it", **way).states["4it"] for n in (0, 1)]
    later = [replace(made, key=f"{n}", start=state, order=1) for n, state in enumerate(begun)]
    for together in (some, later):
        together = [replace(t, keep=frozenset({"end"})) for t in together]
        alone = [train(name, t, **way)[0] for t in together]
        stacked = train(name, *together, **way)
        for a, b in zip(alone, stacked, strict=True):
            assert a.outcome.proofs == b.outcome.proofs
            for part in ("augment", "augment/1", "augment/2"):
                one, other = a.states["end"].streams.get(part), b.states["end"].streams.get(part)
                assert (one is None) == (other is None)
                assert one is None or other is None or torch.equal(one, other)
            for tensor, value in a.states["end"].tensors.items():
                # sums of a stack run in another order than alone
                torch.testing.assert_close(b.states["end"].tensors[tensor], value)
        one, other = (t.states["end"].tensors["output.weight"] for t in stacked[:2])
        assert not torch.allclose(one, other, atol=1e-4)


def test_batches_from_a_step_on_are_those_after_it() -> None:
    made = trial("mlp", batch=40, length="9it")
    all_of_them = [next(b) for b in [made.batches()] for _ in range(9)]
    for step in range(8):
        state = State(step, made.network.state_dict())
        later = replace(made, start=state).batches()
        for expected in all_of_them[step:]:
            assert torch.equal(next(later), expected)  # type: ignore[arg-type]


# -- proofs --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ENGINES)
def test_every_engine_proves_that_masks_hold_and_weights_are_those_given(engine: str) -> None:
    made = trial({"network": "mlp", "hidden": [9, 7]}, length="3it")
    (trained,) = train(engine, made)
    proofs = trained.outcome.proofs
    assert proofs["held"] is True
    assert proofs["rewound"] is True
    assert proofs["sparsity"] == made.mask.sparsity
    assert proofs["restarted"] == {"step": 0, "learning_rate": 0.01, "optimiser": "fresh", "batch": "all"}


def test_a_mask_that_is_not_held_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("natal.lab.engines.torch._removed", lambda net, mask: [])
    (trained,) = train("torch", trial("mlp", length="3it"))
    assert trained.outcome.proofs["held"] is False


def test_weights_that_are_not_rewound_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    made = trial("mlp", length="3it")
    state = State(1, {n: t + 1 for n, t in made.network.state_dict().items()})
    monkeypatch.setattr(Trial, "born", lambda self: replace(self, start=None).network)
    (trained,) = train("torch", replace(made, start=state))
    assert trained.outcome.proofs["rewound"] is False


@pytest.mark.parametrize("engine", NETWORKS)
def test_removed_weights_stay_zero_whatever_overflows(engine: str) -> None:
    made = trial(
        {"network": "mlp", "hidden": [9, 7]}, rate=1e30, optimiser="sgd", length="5it", evaluate="1it"
    )
    (trained,) = train(engine, replace(made, keep=frozenset({"end"})))
    assert trained.outcome.status == "diverged"
    assert trained.outcome.proofs["held"] is True


def test_a_stage_without_steps_and_a_clock_outside_it_are_refused() -> None:
    made = trial("mlp", length="5it")
    state = State(5, made.network.state_dict())
    with pytest.raises(NatalError, match="'5it' ends at step 5, and this stage starts at step 5"):
        replace(made, start=state)
    with pytest.raises(
        NatalError, match="keep names '2it', step 2 here, and this stage goes from step 3 to 5"
    ):
        replace(made, start=replace(state, step=3), keep=frozenset({"2it"}))
