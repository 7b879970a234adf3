"""Cuts on the training clock: what is gone stays gone, counts are those of one cut, and anchors checked on paper."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from natal import NatalError, Recipe
from natal.pruning.choose import mask, problem_of
from natal.pruning.criteria import Problem
from natal.pruning.cuts import Cuts, cubic, cut, decayed, dropped_and_regrown
from natal.pruning.mask import Mask
from natal.study import SCOPES
from networks import network


def recipe(**keys: Any) -> Recipe:
    return Recipe.model_validate({"name": "r", "criterion": "magnitude", **keys})


def two_layers(first: list[list[float]], last: list[list[float]]) -> nn.Sequential:
    """A chain of two layers without biases that holds these numbers."""
    net = nn.Sequential(
        nn.Linear(len(first[0]), len(first), bias=False), nn.Linear(len(last[0]), len(last), bias=False)
    )
    with torch.no_grad():
        for number, values in ((0, first), (1, last)):
            net.get_parameter(f"{number}.weight").copy_(torch.tensor(values))
    return net


def ones(kept: Mask) -> list[list[list[int]]]:
    return [part.int().tolist() for part in kept.weights.values()]


# -- anchors, checked on paper -------------------------------------------------------------------------------

# at birth: ten weights, sizes 1 to 10
BIRTH = two_layers([[1, -6, 3], [-2, 5, 4]], [[9, -8], [7, 10]])
# trained under the first mask of the test below: what is gone is 0, -6 has shrunk to 0.5, 9 has become -1
TRAINED = two_layers([[0, 0.5, 3], [0, 5, -4]], [[-1, 8], [7, 10]])


def test_a_round_of_iterative_pruning_on_paper() -> None:
    # keep 80 %: int(0.2 · 10) = 2 go, the smallest of all, 1 and -2
    first = cut(recipe(), problem_of(BIRTH, 1), 0.2)
    assert ones(first) == [[[0, 1, 1], [0, 1, 1]], [[1, 1], [1, 1]]]
    # keep 80 % of those: int(0.36 · 10) = 3 are gone in all; of the eight left the smallest is 0.5
    second = cut(recipe(), problem_of(TRAINED, 1), 0.36, first)
    assert ones(second) == [[[0, 0, 1], [0, 1, 1]], [[1, 1], [1, 1]]]
    # keep 40 %: int(0.6 · 10) = 6 gone: then also -1, 3 and -4
    third = cut(recipe(), problem_of(TRAINED, 1), 0.6, second)
    assert ones(third) == [[[0, 0, 0], [0, 1, 0]], [[0, 1], [1, 1]]]


def test_a_round_at_half_the_rate_in_the_last_layer_on_paper() -> None:
    half = {"last": 0.5}
    layers = recipe(scope="layerwise")
    # half of what is left goes: int(0.5 · 6) = 3 of the first layer, and half of that rate, 4 · 0.25 = 1, of the last
    first = cut(layers, problem_of(BIRTH, 1), 0.5, None, half)
    assert ones(first) == [[[0, 1, 0], [0, 1, 1]], [[1, 1], [0, 1]]]
    # half again: int(0.75 · 6) = 4 of the first gone, 0.5 going; a quarter of the 3 left is 0.75, so one more, -1
    second = cut(layers, problem_of(TRAINED, 1), 0.75, first, half)
    assert ones(second) == [[[0, 0, 0], [0, 1, 1]], [[0, 1], [0, 1]]]
    assert ones(cut(layers, problem_of(TRAINED, 1), 0.75, first, {"1": 0.5}, since=0.5)) == ones(second)
    # where every layer has a rate, only the caller knows how deep the cut before went
    with pytest.raises(NatalError, match="rates name every layer"):
        cut(layers, problem_of(TRAINED, 1), 0.75, first, {"first": 0.5, "last": 0.5})
    every = cut(layers, problem_of(TRAINED, 1), 0.75, first, {"first": 1.0, "last": 0.5}, since=0.5)
    # a share 1/2 at full rate: round(3 / 2) = 2 of the three that the first layer has left
    assert ones(every) == [[[0, 0, 0], [0, 1, 0]], [[0, 1], [0, 1]]]


def test_the_lenet_ladder_of_the_lottery_ticket_paper() -> None:
    # 20 % a round, 10 % in the last layer: 0.8 and 0.9 of the weights stay, round after round
    net = nn.Sequential(nn.Linear(784, 300), nn.ReLU(), nn.Linear(300, 100), nn.ReLU(), nn.Linear(100, 10))
    kept, last = None, 1000
    for round_ in range(1, 6):
        kept = cut(recipe(scope="layerwise"), problem_of(net, 1), 1 - 0.8**round_, kept, {"last": 0.5})
        last -= round(0.1 * last)
        counts = [int(part.sum()) for part in kept.weights.values()]
        assert counts == [
            235200 - int((1 - 0.8**round_) * 235200),
            30000 - int((1 - 0.8**round_) * 30000),
            last,
        ]
    # 1000 · 0.9⁵ = 590.49
    assert last == 590


def test_a_rigl_update_on_paper() -> None:
    # the first layer keeps 4 of 6, the last 2 of 4; a fraction of one half moves 2 and 1
    net = two_layers([[4, 0, 3], [2, 0, 1]], [[5, 0], [0, -6]])
    before = Mask(
        {
            "0.weight": torch.tensor([[1, 0, 1], [1, 0, 1]]).bool(),
            "1.weight": torch.tensor([[1, 0], [0, 1]]).bool(),
        }
    )
    gradient = {
        "0.weight": torch.tensor([[9.0, -7, 9], [-8, 6, 5]]),
        "1.weight": torch.tensor([[-4.0, 1], [-3, 9]]),
    }
    moved = dropped_and_regrown(recipe(), problem_of(net, 1), before, 0.5, "gradient", gradient)
    # first layer: 2 and 1 go, 4 and 3 stay. Of the four then gone the largest gradients are -8, that of the 2 that has
    # just gone, and -7: both come back. Last layer: 5 goes, -6 stays; its own gradient, -4, is larger than -3 and 1.
    assert ones(moved.mask) == [[[1, 1, 1], [1, 0, 0]], [[1, 0], [0, 1]]]
    assert [part.int().tolist() for part in moved.regrown.values()] == [
        [[0, 1, 0], [1, 0, 0]],
        [[1, 0], [0, 0]],
    ]


def test_a_cubic_schedule_on_paper() -> None:
    # 80 % between steps 0 and 4: 0.8 (1 - 27/64), 0.8 (1 - 8/64), 0.8 (1 - 1/64), 0.8
    reached = [cubic(step, 0, 4, 0.8) for step in range(6)]
    assert reached == pytest.approx([0, 0.4625, 0.7, 0.7875, 0.8, 0.8], abs=1e-15)
    assert cubic(4, 0, 4, 0.8) == 0.8
    assert cubic(3, 10, 20, 0.8) == 0.0
    # of the ten weights int(4.625), int(7), int(7.875) and 8 are gone
    cuts, kept = Cuts(recipe(), 0.8, 0, 4, 1), None
    kept = cuts.opening(problem_of(BIRTH, 1))
    gone = []
    for step in cuts.steps:
        kept, _ = cuts.at(step, problem_of(BIRTH, 1), kept)
        gone.append(kept.total - kept.kept)
    assert gone == [4, 7, 7, 8]
    # the two largest, 9 and 10, are left, both in the last layer
    assert ones(kept) == [[[0, 0, 0], [0, 0, 0]], [[1, 0], [0, 1]]]


def test_the_fraction_decays_by_a_cosine() -> None:
    # 0.3/2 (1 + cos(0, π/4, π/2, 3π/4)), and nothing from the end on
    half = math.sqrt(0.5)
    expected = [0.3, 0.15 * (1 + half), 0.15, 0.15 * (1 - half), 0.0, 0.0]
    assert [decayed(step, 10, 18, 0.3) for step in range(10, 22, 2)] == pytest.approx(expected, abs=1e-15)
    assert decayed(18, 10, 18, 0.3) == 0.0


def test_cuts_come_after_every_stretch_and_at_the_last_step() -> None:
    assert Cuts(recipe(), 0.8, 10, 40, 10).steps == [20, 30, 40]
    assert Cuts(recipe(), 0.8, 10, 35, 10).steps == [20, 30, 35]
    assert Cuts(recipe(), 0.8, 0, 5, 100).steps == [5]


# -- laws ----------------------------------------------------------------------------------------------------


def trained(net: nn.Module, kept: Mask, seed: int) -> None:
    """Move every weight at random, as a training would, under a mask."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    kept.apply_(dict(net.named_parameters()))


GRANULARITIES: tuple[Any, ...] = ("weight", "neuron", "kernel", {"block": [2, 2]})
SEVERAL = [
    ("magnitude", scope, granularity)
    for scope in SCOPES
    for granularity in GRANULARITIES
    if scope != "threshold" and (granularity != "neuron" or scope in ("global", "layerwise"))
]
# a criterion with rounds of its own makes them in every cut
IN_ROUNDS = [
    pytest.param("force", "layerwise", "neuron", marks=pytest.mark.slow),
    pytest.param("force", "global", "weight", marks=pytest.mark.slow),
    pytest.param("force", "erk", {"block": [2, 2]}, marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("criterion", "scope", "granularity"), [*SEVERAL, *IN_ROUNDS], ids=str)
def test_cuts_one_after_the_other_keep_the_count_of_one(criterion: str, scope: str, granularity: Any) -> None:
    net, (x, y) = network("conv")

    def problem() -> Problem:
        return problem_of(net, 3, inputs=x, targets=y, loss=nn.functional.cross_entropy)

    how = recipe(scope=scope, granularity=granularity, criterion=criterion)
    once = mask(how, problem(), 1 - 0.7**3)
    kept: Mask | None = None
    for turn in (1, 2, 3):
        before, kept = kept, cut(how, problem(), 1 - 0.7**turn, kept)
        if before is not None:
            assert not any((kept.weights[n] & ~before.weights[n]).any() for n in kept.weights)
        trained(net, kept, turn)
    assert kept is not None
    if granularity in ("weight", "neuron"):
        units, alone = ((m.units or m.weights).values() for m in (kept, once))
        assert sum(int(part.sum()) for part in units) == sum(int(part.sum()) for part in alone)
    else:
        # tiles of a border hold fewer weights, so it is tiles that are counted
        assert abs(kept.kept - once.kept) <= 4 * len(kept.weights) * 9
    if scope not in ("global",) and granularity == "weight":
        assert kept.densities() == once.densities()


def test_units_that_are_gone_are_known_from_the_mask_alone() -> None:
    net, (x, _) = network("residual")
    how = recipe(granularity="neuron", scope="layerwise")
    first = cut(how, problem_of(net, 1, inputs=x), 0.3)
    trained(net, first, 1)
    again, bare = (
        cut(how, problem_of(net, 1, inputs=x), 0.6, before)
        for before in (first, Mask(first.weights, first.biases))
    )
    assert first.units
    assert ones(again) == ones(bare)


def test_the_same_sparsity_again_is_the_same_mask() -> None:
    net, (x, _) = network("deep")
    first = cut(recipe(), problem_of(net, 1, inputs=x), 0.5)
    trained(net, first, 1)
    assert ones(cut(recipe(), problem_of(net, 1, inputs=x), 0.5, first)) == ones(first)


@pytest.mark.parametrize("control", ["shuffle", "quota-random", "reinit", "invert"])
def test_controls_keep_the_counts_of_the_cut_they_stand_beside(control: str) -> None:
    net, (x, _) = network("deep")
    first = cut(recipe(), problem_of(net, 1, inputs=x), 0.3)
    trained(net, first, 1)
    ticket, other = (
        cut(recipe(control=c), problem_of(net, 1, inputs=x), 0.6, first) for c in (None, control)
    )
    assert other.kept == ticket.kept
    if control != "invert":
        assert other.densities() == ticket.densities()
    if control == "reinit":
        assert ones(other) == ones(ticket)
        assert set(other.redrawn) == set(ticket.weights)


@pytest.mark.parametrize("regrow", ["random", "gradient"])
@pytest.mark.parametrize("criterion", ["magnitude", "snip", "random"])
def test_what_regrows_is_as_much_as_what_went_in_every_layer(regrow: Any, criterion: str) -> None:
    net, (x, y) = network("conv")
    how = recipe(criterion=criterion, scope="erk")
    cuts = Cuts(how, 0.8, 0, 60, 10, regrow)

    def problem() -> Problem:
        return problem_of(net, 3, inputs=x, targets=y, loss=nn.functional.cross_entropy)

    kept = cuts.opening(problem())
    assert kept.densities() == mask(how, problem(), 0.8).densities()
    kept.apply_(dict(net.named_parameters()))
    for step in cuts.steps:
        generator = torch.Generator().manual_seed(step)
        gradient = {n: torch.randn(w.shape, generator=generator) for n, w in kept.weights.items()}
        moved = cuts.at(step, problem(), kept, gradient)
        assert moved.mask.densities() == kept.densities()
        share = decayed(step, 0, 60, 0.3)
        for name, back in moved.regrown.items():
            assert int(back.sum()) == int(share * int(kept.weights[name].sum()))
            assert moved.mask.weights[name][back].all()
        if step < 40:
            assert ones(moved.mask) != ones(kept)
        kept = moved.mask
        trained(net, kept, step)


def test_draws_differ_from_step_to_step_and_not_from_run_to_run() -> None:
    net, (x, _) = network("deep")
    problem = problem_of(net, 3, inputs=x)
    before = cut(recipe(), problem, 0.5)
    first, second, again = (
        dropped_and_regrown(recipe(criterion="random"), problem, before, 0.5, "random", step=step).mask
        for step in (10, 20, 10)
    )
    assert ones(first) == ones(again)
    assert ones(first) != ones(second)


# -- what cannot be --------------------------------------------------------------------------------------------


def test_what_makes_no_sense_is_refused() -> None:
    net, (x, _) = network("deep")
    problem = problem_of(net, 3, inputs=x)
    first = cut(recipe(), problem, 0.5)
    with pytest.raises(NatalError, match="what is gone stays gone"):
        cut(recipe(), problem, 0.4, first)
    # one layer has lost all it has, another nothing: no layerwise cut can follow
    lopsided = {
        n: (torch.zeros_like if n == "0.weight" else torch.ones_like)(k) for n, k in first.weights.items()
    }
    with pytest.raises(NatalError, match="what is gone stays gone"):
        cut(recipe(scope="layerwise"), problem, 0.5, Mask(lopsided))
    with pytest.raises(NatalError, match="sparsity 0 is the dense network"):
        cut(recipe(), problem, 0.0, first)
    with pytest.raises(NatalError, match="rates are for single weights under the scope 'layerwise'"):
        cut(recipe(), problem, 0.5, None, {"last": 0.5})
    with pytest.raises(NatalError, match="rates name no prunable layer 'lst'"):
        cut(recipe(scope="layerwise"), problem, 0.5, None, {"lst": 0.5})
    with pytest.raises(NatalError, match="must lie in \\[0, 1\\], got 2"):
        cut(recipe(scope="layerwise"), problem, 0.5, None, {"last": 2})
    with pytest.raises(NatalError, match=r"rates name the layer '[^']*' twice, got '0', 'first'; give"):
        cut(recipe(scope="layerwise"), problem, 0.5, None, {"0": 0.5, "first": 1.0})
    with pytest.raises(NatalError, match="every layer has the rate 0"):
        cut(
            recipe(scope="layerwise"),
            problem,
            0.5,
            None,
            {n.removesuffix(".weight"): 0.0 for n in problem.weights},
        )
    with pytest.raises(NatalError, match="needs the dense gradient"):
        dropped_and_regrown(recipe(), problem, first, 0.3, "gradient")
    with pytest.raises(NatalError, match="regrow moves single weights"):
        dropped_and_regrown(recipe(granularity="neuron"), problem, first, 0.3, "random")


def test_nothing_of_the_callers_is_touched() -> None:
    net, (x, _) = network("deep")
    before = {name: value.clone() for name, value in net.state_dict().items()}
    state = torch.get_rng_state()
    problem = problem_of(net, 3, inputs=x)
    first = cut(recipe(), problem, 0.5)
    kept = {n: part.clone() for n, part in first.weights.items()}
    gradient: dict[str, Tensor] = {n: torch.ones(w.shape) for n, w in first.weights.items()}
    cut(recipe(), problem, 0.7, first)
    dropped_and_regrown(recipe(), problem, first, 0.3, "gradient", gradient)
    dropped_and_regrown(recipe(), replace(problem, seed=5), first, 0.3, "random")
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(net.state_dict()[n], value) for n, value in before.items())
    assert all(torch.equal(first.weights[n], part) for n, part in kept.items())
