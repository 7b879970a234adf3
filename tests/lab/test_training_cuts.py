"""Cuts inside a training: gradual, SET and RigL, in every engine that makes them."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from test_states import everything
from torch import Tensor

import chains
from natal import NatalError, Recipe
from natal.lab.engines import ENGINES
from natal.lab.state import State
from natal.lab.trial import Trial
from natal.pruning.cuts import Cuts, cubic
from natal.pruning.mask import Mask
from natal.streams import stream
from trials import OPTIMISERS, after, how, same, setting, trial

ENGINES_THAT_CUT = ("torch", "compiled")


def cutting(made: Trial, cuts: Cuts, **training: Any) -> Trial:
    """The trial with cuts inside its training, under the mask that they begin with."""
    opening = cuts.opening(made.problem(made.network))
    return replace(made, cuts=cuts, mask=opening, training=how(**training) if training else made.training)


def cuts(kind: str, start: int, stop: int, every: int, sparsity: float = 0.7, **keys: Any) -> Cuts:
    recipe = Recipe.model_validate({"name": "r", "criterion": "magnitude", **keys})
    regrow: Any = {"gradual": None, "set": "random", "rigl": "gradient"}[kind]
    return Cuts(recipe, sparsity, start, stop, every, regrow)


def mlp() -> Trial:
    return trial({"network": "mlp", "hidden": [9, 7]})


def every_step(engine: str, made: Trial) -> list[State]:
    """The states of a trial after every step, the first one's beginning included."""
    clocks = [f"{step}it" for step in range(made.first, made.training.total_steps(made.rows_to_fit) + 1)]
    trained = after(engine, made, *clocks)
    return [trained.states[clock] for clock in clocks]


def held(state: State) -> bool:
    return not any(state.tensors[name][~kept].any() for name, kept in state.mask.items())


# -- laws ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ENGINES_THAT_CUT)
@pytest.mark.parametrize("kind", ["set", "rigl"])
@pytest.mark.parametrize("scope", ["erk", "layerwise", "global"])
def test_the_count_of_weights_of_every_layer_never_changes(engine: str, kind: str, scope: str) -> None:
    made = cutting(mlp(), cuts(kind, 0, 16, 3, scope=scope), batch=40, length="20it", evaluate="4it")
    states = every_step(engine, made)
    counts = [{name: int(kept.sum()) for name, kept in state.mask.items()} for state in states]
    assert counts == [counts[0]] * 21
    sizes = [kept.numel() for kept in made.mask.weights.values()]
    gone = sum(int(0.7 * size) for size in sizes) if scope == "layerwise" else int(0.7 * sum(sizes))
    assert sum(counts[0].values()) == sum(sizes) - gone
    assert all(held(state) for state in states)
    moves = [s for s, (a, b) in enumerate(itertools.pairwise(states), 1) if not same_mask(a, b)]
    # the last cut's fraction is 0
    assert set(moves) <= {3, 6, 9, 12, 15}
    assert {3, 6} <= set(moves)


def same_mask(a: State, b: State) -> bool:
    return all(torch.equal(a.mask[name], b.mask[name]) for name in a.mask)


@pytest.mark.parametrize("engine", ENGINES_THAT_CUT)
def test_gradual_cuts_follow_the_cube_and_end_at_the_sparsity_exactly(engine: str) -> None:
    made = cutting(mlp(), cuts("gradual", 4, 15, 3), batch=40, length="20it", evaluate="1it", decide="end")
    states, total = every_step(engine, made), made.mask.total
    gone = [total - sum(int(kept.sum()) for kept in state.mask.values()) for state in states]
    expected, reached = [], 0.0
    for step in range(21):
        reached = cubic(step, 4, 15, 0.7) if step in (7, 10, 13, 15) else reached
        expected.append(int(reached * total))
    assert gone == expected
    assert gone[15:] == [int(0.7 * total)] * 6
    assert all(held(state) for state in states)
    # what is gone stays gone
    for a, b in itertools.pairwise(states):
        assert not any((b.mask[name] & ~a.mask[name]).any() for name in a.mask)
    trained = after(engine, made)
    assert trained.outcome.kept == total - int(0.7 * total)
    assert trained.outcome.proofs["held"] is True
    assert trained.outcome.proofs["sparsity"] == pytest.approx(0.7, abs=1 / total)


@pytest.mark.parametrize("engine", ENGINES_THAT_CUT)
@pytest.mark.parametrize("granularity", ["neuron", {"block": [2, 2]}])
def test_whole_neurons_and_blocks_go_gradually_too(engine: str, granularity: Any) -> None:
    plan = cuts("gradual", 0, 9, 3, 0.4, granularity=granularity, scope="layerwise")
    made = cutting(mlp(), plan, batch=40, length="12it", evaluate="3it")
    trained = after(engine, made, "end")
    assert trained.outcome.proofs["held"] is True
    if granularity == "neuron":
        rows = [trained.states["end"].mask[name].any(1) for name in made.mask.weights]
        assert [int((~row).sum()) for row in rows] == [int(0.4 * 9), int(0.4 * 7), 0]
        # a removed neuron's bias goes with it, here inside the training
        biases = [name for name in trained.states["end"].mask if name.endswith("bias")]
        assert len(biases) == 2


@pytest.mark.parametrize("engine", ENGINES_THAT_CUT)
@pytest.mark.parametrize("rule", ["momentum", "adam"])
def test_what_regrows_starts_at_zero_and_so_do_its_moments(engine: str, rule: str) -> None:
    made = cutting(
        mlp(), cuts("rigl", 0, 12, 5), batch=40, length="12it", evaluate="6it", optimiser=OPTIMISERS[rule]
    )
    states = every_step(engine, made)
    seen = 0
    for name in made.mask.weights:
        new = states[5].mask[name] & ~states[4].mask[name]
        seen += int(new.sum())
        moments = [m for key, m in states[5].optimiser.items() if key.startswith(f"{name}/") and m.ndim]
        assert moments
        for tensor in (states[5].tensors[name], *moments):
            assert not tensor[new].any()
        # and it is trained from the next step on
        assert states[6].tensors[name][new].all()
        # what stays goes on with what it had
        stays = states[5].mask[name] & states[4].mask[name]
        assert states[5].tensors[name][stays].any()
    assert seen > 0


@pytest.mark.parametrize("engine", ENGINES_THAT_CUT)
@pytest.mark.parametrize("kind", ["gradual", "set", "rigl"])
@pytest.mark.parametrize("rule", ["sgd", "nesterov", "adamw"])
def test_it_goes_on_from_any_state_between_its_cuts(engine: str, kind: str, rule: str) -> None:
    made = cutting(
        mlp(), cuts(kind, 0, 14, 4), batch=40, length="16it", evaluate="1it", optimiser=OPTIMISERS[rule]
    )
    whole = after(engine, made, "3it", "8it", "9it", "end")
    for clock in ("3it", "8it", "9it"):
        state = whole.states[clock]
        rest = after(engine, replace(made, start=state, mask=Mask(state.mask)), "end")
        assert same(rest.states["end"], whole.states["end"]), clock


def test_networks_with_everything_are_cut_while_they_train() -> None:
    made = cutting(everything(), cuts("rigl", 0, 8, 2, scope="erk"), batch=40, length="10it", evaluate="5it")
    whole = after("torch", made, "5it", "end")
    assert whole.outcome.proofs["held"] is True
    middle = whole.states["5it"]
    rest = after("torch", replace(made, start=middle, mask=Mask(middle.mask)), "end")
    assert same(rest.states["end"], whole.states["end"])


@pytest.mark.parametrize("kind", ["gradual", "set", "rigl"])
@pytest.mark.parametrize("rule", OPTIMISERS)
@pytest.mark.parametrize("criterion", ["magnitude", "snip"])
def test_compiled_agrees_with_torch_in_float64(kind: str, rule: str, criterion: str) -> None:
    ways = chains.ways(optimiser=OPTIMISERS[rule], batch=20, clip=5.0, evaluate="20it")
    made = chains.trial(3, ways, [20, 30, 12, 5], [1.0, 1.0, 1.0])
    made = replace(made, learning_rate=1e-3)
    made = cutting(made, cuts(kind, 0, 15, 5, criterion=criterion, scope="erk"))
    theirs, ours = (after(engine, made, "end") for engine in ("torch", "compiled"))
    a, b = theirs.states["end"], ours.states["end"]
    assert same_mask(a, b)
    # which are not those that it began with
    assert not same_mask(a, replace(a, mask=made.mask.items()))
    for name, value in a.tensors.items():
        torch.testing.assert_close(b.tensors[name], value, rtol=0, atol=1e-9)


# -- one update by hand --------------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ENGINES_THAT_CUT)
def test_rigl_looks_at_the_gradient_of_the_steps_own_batch(engine: str) -> None:
    plan = cuts("rigl", 0, 10, 2)
    made = cutting(mlp(), plan, batch=40, length="10it", evaluate="10it", optimiser="sgd")
    states = every_step(engine, made)
    rows = torch.randperm(90, generator=stream(made.seed, "order"))[40:80]
    x, y = made.rows()["fit"]
    net = made.born()
    net.load_state_dict(dict(states[1].tensors))
    F.cross_entropy(net(x[rows]), y[rows]).backward()  # type: ignore[no-untyped-call]
    for name, before in states[1].mask.items():
        gradient: Tensor = net.get_parameter(name).grad  # type: ignore[assignment]
        stepped = (net.get_parameter(name) - 1e-2 * gradient).detach().abs().masked_fill(~before, 0)
        moving = int(0.3 / 2 * (1 + torch.cos(torch.tensor(torch.pi * 2 / 10))).item() * int(before.sum()))
        order = stepped.flatten().argsort(descending=True)[: int(before.sum()) - moving]
        stays = torch.zeros(before.numel(), dtype=torch.bool).index_fill_(0, order, True)
        back = gradient.abs().flatten().masked_fill(stays, -1).argsort(descending=True)[:moving]
        assert torch.equal(states[2].mask[name].flatten(), stays.index_fill(0, back, True)), name


# -- what is measured, and what is refused ----------------------------------------------------------------------


@pytest.mark.parametrize("engine", ENGINES_THAT_CUT)
def test_only_what_comes_after_the_last_cut_can_be_the_best_or_end_training(engine: str) -> None:
    plan = cuts("gradual", 0, 10, 5, 0.9)
    made = cutting(mlp(), plan, length="40it", evaluate="1it", patience=1)
    trained = after(engine, made)
    assert trained.outcome.best_step >= 10
    assert trained.outcome.steps_trained >= 11
    # the mask kept is the last one's
    gone = sum(int((~(trained.state[name] != 0)).sum()) for name in made.mask.weights)
    assert gone >= int(0.9 * made.mask.total)
    early = after(engine, cutting(mlp(), plan, length="40it", evaluate="1it", target=0.01))
    assert early.outcome.steps_trained == 10


@pytest.mark.parametrize("engine", ENGINES_THAT_CUT)
def test_a_network_that_overflows_is_not_cut_but_diverges(engine: str) -> None:
    made = replace(mlp(), learning_rate=1e30)
    made = cutting(made, cuts("rigl", 0, 10, 5), optimiser="sgd", length="20it", evaluate="20it")
    trained = after(engine, made)
    assert trained.outcome.status == "diverged"
    assert trained.outcome.proofs["held"] is True


def test_stacked_says_that_it_does_not_cut_while_training() -> None:
    asked = replace(setting(mlp()), stages=frozenset({"cuts"}))
    assert ENGINES["stacked"].refuses(asked) == "it does not cut networks while they train"
    assert not ENGINES["torch"].refuses(asked)


def test_cuts_that_do_not_fit_the_training_are_refused() -> None:
    for start, stop in ((5, 5), (6, 3), (0, 21)):
        with pytest.raises(NatalError, match=f"at goes from step {start} to step {stop} here"):
            cutting(mlp(), cuts("gradual", start, stop, 2), length="20it")
