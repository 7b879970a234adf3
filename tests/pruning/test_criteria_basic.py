"""The paper's criteria: magnitude, truly random, and the published program's random that was not."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from natal import NatalError, Problem, criterion
from natal.pruning.choose import mask, problem_of, score
from natal.pruning.criteria import criteria
from natal.study import Recipe, load_study
from networks import mlp

RANDOM = Recipe(name="random", criterion="random")
PUBLISHED = load_study("as-published").recipe("random-from-init-stream")


def problem(seed: int = 42) -> Problem:
    return problem_of(mlp(194, 128, 97, seed), seed)


def correlation(x: Tensor, y: Tensor) -> float:
    return torch.corrcoef(torch.stack([x.flatten(), y.flatten()]))[0, 1].item()


def test_magnitude_scores_are_absolute_weights() -> None:
    p = problem()
    for name, scores in score("magnitude", p).items():
        assert torch.equal(scores, p.model.get_parameter(name).abs())


def test_random_scores_know_nothing_of_the_initial_weights() -> None:
    p = problem()
    for name, scores in score("random", p).items():
        assert abs(correlation(scores, p.weights[name])) < 4 / scores.numel() ** 0.5  # four standard errors
        assert 0 <= scores.min() < 0.001
        assert 0.999 < scores.max() < 1


def test_random_masks_differ_by_seed_and_repeat_themselves() -> None:
    one, again, other = (mask(RANDOM, problem(seed), 0.5).weights["hidden.weight"] for seed in (42, 42, 123))
    assert torch.equal(one, again)
    assert abs(correlation(one.float(), other.float())) < 4 / one.numel() ** 0.5


@pytest.mark.parametrize("sparsity", [0.1, 0.5, 0.95])
def test_the_published_random_keeps_exactly_the_most_positive_first_layer_weights(sparsity: float) -> None:
    p = problem()
    kept = mask(PUBLISHED, p, sparsity).weights["hidden.weight"]
    weights = p.weights["hidden.weight"]
    assert weights[kept].min() > weights[~kept].max()
    # the uniform u became the weight (2u - 1) / sqrt(fan_in): u > s means above (2s - 1) / sqrt(fan_in)
    cut = (2 * sparsity - 1) / 194**0.5
    assert (kept == (weights > cut)).float().mean() > 0.9999
    assert correlation(score("init-stream", p)["hidden.weight"], weights) > 0.999999


def test_the_published_random_is_random_on_the_second_layer_and_inexact_in_number() -> None:
    p = problem()
    found = mask(PUBLISHED, p, 0.5)
    assert (
        abs(correlation(found.weights["output.weight"].float(), p.weights["output.weight"])) < 4 / 12416**0.5
    )
    assert found.total == 37248
    assert found.kept == 18608  # int(0.5 * 37248) = 18624 would be exact


def test_sparsity_zero_is_dense_whatever_the_recipe(made: Callable[..., Problem]) -> None:
    made(lambda p: 1 / 0)
    assert mask(Recipe(name="x", criterion="made"), problem(), 0.0).kept == 37248


# -- criteria of one's own -------------------------------------------------------------------------------


@pytest.fixture
def made() -> Iterator[Callable[..., None]]:
    """Register a function as the criterion ``made``."""

    def make(function: Callable[[Problem], Any]) -> None:
        @criterion("made")
        def returns(p: Problem) -> Any:
            return function(p)

    yield make
    criteria._entries.pop("made", None)


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (
            lambda p: None,
            r"must return one tensor for each of \['hidden.weight', 'output.weight'\], got NoneType",
        ),
        (
            lambda p: {"hidden.weight": p.weights["hidden.weight"]},
            r"must return one tensor for each of .*, got \['hidden.weight'\]",
        ),
        (
            lambda p: {n: w.flatten() for n, w in p.weights.items()},
            r"gave 'hidden.weight' scores of shape \(24832,\); its weights have shape \(128, 194\)",
        ),
        (
            lambda p: {n: w.tolist() for n, w in p.weights.items()},
            "must give 'hidden.weight' a torch tensor, got list",
        ),
        (
            lambda p: {n: w * 1j for n, w in p.weights.items()},
            "gave 'hidden.weight' scores of torch.complex64, which have no order; give real",
        ),
        (
            lambda p: {n: w / (w > 0) * 0 for n, w in p.weights.items()},
            "gave 'hidden.weight' scores that are NaN",
        ),
    ],
)
def test_scores_that_are_not_scores_are_refused(
    made: Callable[..., None], function: Callable[[Problem], Any], words: str
) -> None:
    made(function)
    with pytest.raises(NatalError, match="^criterion 'made' " + words):
        score("made", problem())


def test_scores_keep_no_graph_and_infinite_scores_rank(made: Callable[..., None]) -> None:
    made(lambda p: {n: p.model.get_parameter(n) * float("inf") for n in p.weights})
    scores = score("made", problem())
    assert not any(s.requires_grad for s in scores.values())
    assert mask(Recipe(name="x", criterion="made"), problem(), 0.5).kept == 18624
