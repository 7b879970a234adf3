"""Masks by hand: exact counts, ties by position, nestedness, neurons with all that belongs to them."""

from __future__ import annotations

import math
import re
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from natal import Mask, NatalError, select
from natal.pruning.choose import mask, problem_of
from natal.pruning.mask import dense, prunable, remove_neurons
from natal.pruning.select import select_units
from natal.study import STRATEGIES, Recipe
from networks import mlp

# three neurons with two inputs each, and one output
W1 = torch.tensor([[0.1, -0.9], [0.2, 0.3], [-0.8, 0.05]])
W2 = torch.tensor([[0.7, -0.15, 0.4]])


def three_neurons() -> nn.Module:
    net = mlp(2, 3, 1, seed=0)
    net.load_state_dict(
        {"hidden.weight": W1, "hidden.bias": torch.ones(3), "output.weight": W2, "output.bias": torch.ones(1)}
    )
    return net


def made(recipe: Recipe, sparsity: float) -> Mask:
    return mask(recipe, problem_of(three_neurons(), seed=0), sparsity)


# -- by hand ---------------------------------------------------------------------------------------------


def test_a_magnitude_mask_by_hand() -> None:
    # by size: .05 .1 .15 .2 | .3 .4 .7 .8 .9; int(0.5 * 9) = 4 go
    found = made(Recipe(name="magnitude", criterion="magnitude"), 0.5)
    assert found.weights["hidden.weight"].tolist() == [[False, True], [False, True], [True, False]]
    assert found.weights["output.weight"].tolist() == [[True, False, True]]
    assert (found.kept, found.total, found.sparsity) == (5, 9, 1 - 5 / 9)
    assert found.densities() == {"hidden.weight": 0.5, "output.weight": 2 / 3}
    assert dict(found.biases) == {}


def test_a_layerwise_magnitude_mask_by_hand() -> None:
    # int(0.5 * 6) = 3 of the first layer go (.05 .1 .2), int(0.5 * 3) = 1 of the second (.15)
    found = made(Recipe(name="x", criterion="magnitude", scope="layerwise"), 0.5)
    assert found.weights["hidden.weight"].tolist() == [[False, True], [False, True], [True, False]]
    assert found.weights["output.weight"].tolist() == [[True, False, True]]


def test_a_structured_mask_by_hand() -> None:
    # incoming norms: .906, .361, .802; int(0.4 * 3) = 1 neuron goes: the second
    found = made(STRATEGIES["structured"], 0.4)
    assert found.weights["hidden.weight"].tolist() == [[True, True], [False, False], [True, True]]
    assert found.weights["output.weight"].tolist() == [[True, False, True]]
    assert {name: kept.tolist() for name, kept in found.biases.items()} == {
        "hidden.bias": [True, False, True]
    }
    assert (found.kept, found.total) == (6, 9)


def test_structured_always_leaves_a_neuron() -> None:
    found = made(STRATEGIES["structured"], 0.999)
    assert found.biases["hidden.bias"].tolist() == [True, False, False]
    assert found.kept == 3


def test_applying_a_mask_sets_exactly_the_removed_entries_to_zero() -> None:
    net = three_neurons()
    made(STRATEGIES["structured"], 0.4).apply_(dict(net.named_parameters()))
    parameters = {name: p.tolist() for name, p in net.named_parameters()}
    assert parameters["hidden.bias"] == [1.0, 0.0, 1.0]
    assert parameters["output.bias"] == [1.0]
    assert torch.equal(net.get_parameter("hidden.weight")[[0, 2]], W1[[0, 2]])
    assert net.get_parameter("hidden.weight")[1].tolist() == [0.0, 0.0]
    assert torch.equal(net.get_parameter("output.weight"), W2 * torch.tensor([1.0, 0.0, 1.0]))


@pytest.mark.parametrize(
    ("task", "sparsity", "kept"),
    [
        ("regression", 0.0, 2688),
        ("regression", 0.5, 1344),
        ("regression", 0.95, 135),
        ("modular", 0.1, 33524),
        ("modular", 0.3, 26074),
        ("modular", 0.95, 1863),
    ],
)
def test_the_papers_networks_keep_exactly_these_counts(task: str, sparsity: float, kept: int) -> None:
    net = mlp(20, 128, 1, seed=42) if task == "regression" else mlp(194, 128, 97, seed=42)
    for criterion in ("magnitude", "random"):
        found = mask(Recipe(name="x", criterion=criterion), problem_of(net, seed=42), sparsity)
        assert found.kept == kept


def test_ties_go_by_position_first_goes_first() -> None:
    scores = {"a": torch.tensor([1.0, 0.0, 0.0]), "b": torch.tensor([[0.0, 0.0], [1.0, 0.0]])}
    kept = select(scores, 3 / 7 + 0.01)
    assert kept["a"].tolist() == [True, False, False]
    assert kept["b"].tolist() == [[False, True], [True, True]]
    assert select({"a": torch.zeros(10)}, 0.3)["a"].tolist() == [False] * 3 + [True] * 7


def test_the_threshold_scope_keeps_the_scores_above_the_sparsity() -> None:
    kept = select({"a": torch.tensor([0.1, 0.5, 0.6]), "b": torch.tensor([0.9])}, 0.5, scope="threshold")
    assert (kept["a"].tolist(), kept["b"].tolist()) == ([False, False, True], [True])


def test_neurons_go_with_row_bias_and_column_through_a_chain_of_layers() -> None:
    weights = {"1.weight": torch.ones(3, 2), "2.weight": torch.ones(2, 3), "3.weight": torch.ones(1, 2)}
    found = remove_neurons(
        weights, {"1.weight": torch.tensor([True, False, True]), "2.weight": torch.tensor([False, True])}
    )
    assert found.weights["1.weight"].tolist() == [[True, True], [False, False], [True, True]]
    assert found.weights["2.weight"].tolist() == [[False, False, False], [True, False, True]]
    assert found.weights["3.weight"].tolist() == [[False, True]]
    assert {name: b.tolist() for name, b in found.biases.items()} == {
        "1.bias": [True, False, True],
        "2.bias": [False, True],
    }


def test_prunable_weights_are_those_of_linear_and_convolution_layers() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(8, 3))
    found = prunable(model)
    assert {name: tuple(w.shape) for name, w in found.items()} == {
        "0.weight": (2, 1, 3, 3),
        "3.weight": (3, 8),
    }
    assert not found["3.weight"].requires_grad
    with pytest.raises(NatalError, match="BatchNorm1d has no linear or convolution layer"):
        prunable(nn.BatchNorm1d(3))


# -- properties ------------------------------------------------------------------------------------------

SPARSITIES = st.floats(0, 1, exclude_max=True)
NUMBERS = st.floats(-3, 3, width=16) | st.sampled_from([0.0, 1.0])  # coarse, so that ties are common
SCORES = st.lists(st.lists(NUMBERS, min_size=1, max_size=20), min_size=1, max_size=3).map(
    lambda layers: {str(i): torch.tensor(layer) for i, layer in enumerate(layers)}
)


def counted(kept: dict[str, Tensor]) -> int:
    return sum(int(k.sum()) for k in kept.values())


@settings(max_examples=60)
@given(SCORES, SPARSITIES)
def test_counts_are_exact(scores: dict[str, Tensor], sparsity: float) -> None:
    total = sum(s.numel() for s in scores.values())
    assert counted(select(scores, sparsity)) == total - int(sparsity * total)
    layerwise = select(scores, sparsity, "layerwise")
    for name, s in scores.items():
        assert int(layerwise[name].sum()) == s.numel() - int(sparsity * s.numel())
        assert layerwise[name].dtype == torch.bool


@settings(max_examples=60)
@given(SCORES, SPARSITIES)
def test_nothing_kept_scores_below_anything_removed(scores: dict[str, Tensor], sparsity: float) -> None:
    kept = torch.cat(list(select(scores, sparsity).values()))
    values = torch.cat(list(scores.values()))
    assert kept.all() or values[kept].min() >= values[~kept].max()


@settings(max_examples=60)
@given(SCORES, SPARSITIES, SPARSITIES, st.sampled_from(["global", "layerwise", "threshold"]))
def test_masks_are_nested(scores: dict[str, Tensor], one: float, other: float, scope: str) -> None:
    sparser, denser = select(scores, max(one, other), scope), select(scores, min(one, other), scope)
    for name in scores:
        assert not (sparser[name] & ~denser[name]).any()


@settings(max_examples=60)
@given(SCORES, SPARSITIES)
def test_every_layer_keeps_a_unit(scores: dict[str, Tensor], sparsity: float) -> None:
    kept = select_units(scores, sparsity, "layerwise")
    plain = select(scores, sparsity, "layerwise")
    for name in scores:
        assert int(kept[name].sum()) == max(
            1, int(plain[name].sum())
        )  # under global scope: tests/test_scopes.py


# -- refusals --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sparsity", [1.0, -0.1, math.nan, math.inf, "0.5", None, [0.5]])
def test_what_is_no_sparsity_is_refused(sparsity: Any) -> None:
    with pytest.raises(
        NatalError, match=rf"sparsity must be a number in \[0, 1\), got {re.escape(repr(sparsity))}"
    ):
        select({"a": torch.ones(3)}, sparsity)


def test_nan_scores_and_unknown_scopes_are_refused() -> None:
    with pytest.raises(NatalError, match="scores of 'a' hold NaN"):
        select({"a": torch.tensor([1.0, math.nan])}, 0.5)
    with pytest.raises(NatalError, match=r"unknown scope 'local'; .* known: global, layerwise, threshold"):
        select({"a": torch.ones(3)}, 0.5, "local")


def test_a_dense_mask_keeps_everything() -> None:
    everything = dense({"a": torch.zeros(3, 2), "b": torch.zeros(1)})
    assert (everything.kept, everything.total, everything.sparsity) == (7, 7, 0.0)
