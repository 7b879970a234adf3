"""Masks that do not depend on the order in which a processor adds: scores in float64, rounded before ranking."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from natal import Recipe
from natal.pruning.choose import mask, problem_of, score
from natal.pruning.criteria import Problem, criteria, criterion, traits
from natal.pruning.criteria.problem import rounded


def problem(order: Tensor | None = None, **options: Any) -> Problem:
    """Return one of twelve inputs whose sums over hidden units, or over rows, come in the order given."""
    draws = torch.Generator().manual_seed(1)
    net = nn.Sequential(nn.Linear(12, 30), nn.Tanh(), nn.Linear(30, 4))
    with torch.no_grad():
        for p in net.parameters():
            p.copy_(torch.randn(p.shape, generator=draws))
    x, y = torch.randn(50, 12, generator=draws), torch.randint(4, (50,), generator=draws)
    if order is not None:
        x, y = x[order], y[order]
    return problem_of(net, 0, inputs=x, targets=y, loss=F.cross_entropy, **options)


def test_rounding_leaves_the_digits_of_float32_in_the_range_of_float64() -> None:
    third = torch.tensor(1 / 3, dtype=torch.float64)
    assert rounded(third) == third.float().double() != third
    tiny = torch.tensor([1e-200, -3e200, 0.0, torch.inf], dtype=torch.float64)
    assert torch.allclose(rounded(tiny[:2]), tiny[:2], rtol=2**-24, atol=0)
    assert torch.equal(rounded(tiny[2:]), tiny[2:])
    assert torch.equal(rounded(rounded(third)), rounded(third))


def test_rounding_is_that_of_digits_and_exponent_taken_apart() -> None:
    wide = torch.randn(5000, dtype=torch.float64) * 10.0 ** torch.randint(-290, 290, (5000,)).double()
    halves = wide.abs().log2().floor().exp2() * (
        1 + 2**-24 + torch.randint(0, 2**20, (5000,)).double() / 2**23
    )
    special = torch.tensor([0.0, -0.0, torch.inf, -torch.inf, 1 - 2**-40, -(2 - 2**-30)], dtype=torch.float64)
    for scores in (wide, halves, special, wide.view(50, 100).T):
        digits, exponent = torch.frexp(scores)
        apart = torch.ldexp((digits * 2**24).round() / 2**24, exponent)
        assert torch.equal(rounded(scores), apart)
        assert torch.equal(rounded(scores).signbit(), scores.signbit())
    assert rounded(torch.tensor([torch.nan], dtype=torch.float64)).isnan().all()


@pytest.mark.parametrize("name", ["snip", "grasp", "synflow"])
def test_scores_are_those_of_float64_whatever_the_order_of_rows(name: str) -> None:
    turned = torch.arange(49, -1, -1)
    single = [score(name, problem(order))["2.weight"] for order in (None, turned)]
    assert name == "synflow" or not torch.equal(*single)  # data-free: nothing to add in another order
    ours, other = (score(name, problem(order, precise=True))["2.weight"] for order in (None, turned))
    assert ours.dtype == torch.float64
    assert torch.equal(ours, other)
    exact = problem(turned)
    exact.model.double()
    assert exact.inputs is not None
    wide = problem_of(exact.model, 0, inputs=exact.inputs.double(), targets=exact.targets, loss=exact.loss)
    assert torch.equal(ours, rounded(score(name, wide)["2.weight"]))


def test_draws_and_weights_as_they_are_keep_their_scores() -> None:
    for name in ("random", "magnitude", "init-stream"):
        assert traits[name].needs == "nothing"
        plain, precise = (
            mask(Recipe(name="r", criterion=name), problem(precise=p), 0.7) for p in (False, True)
        )
        assert all(torch.equal(precise.weights[n], kept) for n, kept in plain.weights.items())


def test_norms_of_neurons_are_summed_in_float64() -> None:
    seen: list[torch.dtype] = []

    @criterion("all-alike")
    def all_alike(asked: Problem) -> dict[str, Tensor]:
        seen.append(next(iter(asked.weights.values())).dtype)
        # in float32 the first unit's norm comes out as the others'
        rows = {"0.weight": torch.ones(30, 12), "2.weight": torch.ones(4, 30)}
        rows["0.weight"][0, 0] += 2**-23
        return rows

    try:
        recipe = Recipe(name="r", criterion="all-alike", granularity="neuron", aggregate="incoming-l1")
        kept = mask(recipe, problem(precise=True), 29 / 30)
        assert kept.units["0.weight"].nonzero().flatten().tolist() == [0]
        assert seen == [torch.float32]
    finally:
        del criteria._entries["all-alike"], traits["all-alike"]


@pytest.mark.parametrize("control", ["reinit", "fresh-narrow"])
def test_new_weights_are_drawn_in_the_precision_of_the_network(control: str) -> None:
    granularity = "neuron" if control == "fresh-narrow" else "weight"
    recipe = Recipe.model_validate(
        {"name": "r", "criterion": "snip", "granularity": granularity, "control": control}
    )
    plain, precise = (mask(recipe, problem(precise=p), 0.5) for p in (False, True))
    assert plain.redrawn.keys() == precise.redrawn.keys() != set()
    for name, value in precise.redrawn.items():
        assert value.dtype == torch.float32
        assert torch.equal(value, plain.redrawn[name])


def test_nothing_of_the_callers_is_widened() -> None:
    asked = problem(precise=True)
    mask(Recipe(name="r", criterion="snip"), asked, 0.5)
    assert {p.dtype for p in asked.model.parameters()} == {torch.float32}
    assert asked.inputs is not None
    assert asked.inputs.dtype == torch.float32
