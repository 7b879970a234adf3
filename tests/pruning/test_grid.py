"""Kernels, blocks and two of every four: masks by hand, exact counts, every refusal with its reason."""

from __future__ import annotations

from math import ceil, prod
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import natal
from natal import NatalError
from natal.pruning.grid import Grid, grid_of, two_of_four
from natal.study import Recipe
from networks import network

torch.set_num_threads(1)


def linear(*rows: list[float]) -> nn.Module:
    layer = nn.Linear(len(rows[0]), len(rows), bias=False)
    layer.weight = nn.Parameter(torch.tensor(rows, dtype=torch.float32))
    return layer


# -- by hand ---------------------------------------------------------------------------------------------


def test_blocks_by_hand() -> None:
    # blocks of 2 x 2 in a 3 x 5 matrix: norms 2, sqrt(2), 3 above; 5, 4, 1 below, cut by the border
    layer = linear([1, 1, 1, 0, 3], [1, 1, 0, 1, 0], [3, 4, 4, 0, 1])
    mask = natal.prune(layer, 0.5, "magnitude", granularity={"block": [2, 2]})
    assert mask.weights["weight"].int().tolist() == [[0, 0, 0, 0, 1], [0, 0, 0, 0, 1], [1, 1, 1, 1, 0]]
    mask = natal.prune(layer, 0.5, "magnitude", granularity={"block": [2, 2]}, control="invert")
    assert mask.weights["weight"].int().tolist() == [[1, 1, 1, 1, 0], [1, 1, 1, 1, 0], [0, 0, 0, 0, 1]]


def test_the_norm_of_a_block_is_chosen_by_aggregate() -> None:
    # L2: 1.5 against sqrt(2) ~ 1.41; L1: 1.5 against 2
    layer = linear([1.5, 0, 1, 1])
    for aggregate, kept in (("incoming-l2", [1, 1, 0, 0]), ("incoming-l1", [0, 0, 1, 1])):
        mask = natal.prune(layer, 0.5, "magnitude", granularity={"block": [1, 2]}, aggregate=aggregate)
        assert mask.weights["weight"].int().tolist() == [kept]


def test_kernels_by_hand() -> None:
    layer = nn.Conv2d(2, 2, (1, 2), bias=False)
    layer.weight = nn.Parameter(torch.tensor([[[[3.0, 4]], [[1, 0]]], [[[0, 6]], [[2, 2]]]]))
    mask = natal.prune(layer, 0.5, "magnitude", granularity="kernel")  # norms 5, 1; 6, 2.83
    assert mask.weights["weight"].int().tolist() == [[[[1, 1]], [[0, 0]]], [[[1, 1]], [[0, 0]]]]


def test_a_kernel_of_a_linear_layer_is_a_weight() -> None:
    model, _ = network("deep")
    kernels, weights = (natal.prune(model, 0.7, "magnitude", granularity=g) for g in ("kernel", "weight"))
    assert all(torch.equal(kernels.weights[n], weights.weights[n]) for n in weights.weights)


def test_two_of_four_by_hand() -> None:
    # fours [1 5 3 2] and [4 4 4 4], then a rest of three, of which one goes
    layer = linear([1, 5, 3, 2, 4, 4, 4, 4, 9, 7, 8])
    mask = natal.prune(layer, 0.5, "magnitude", granularity="2:4")
    assert mask.weights["weight"].int().tolist() == [[0, 1, 1, 0, 0, 0, 1, 1, 1, 0, 1]]


def test_two_of_four_of_a_convolution_are_four_input_channels() -> None:
    scores = torch.tensor([[[[4.0, 1]], [[3, 2]], [[2, 3]], [[1, 4]]]])  # one output, four inputs, 1 x 2
    assert two_of_four(scores, 0.5).int().tolist() == [[[[1, 0]], [[1, 0]], [[0, 1]], [[0, 1]]]]


def test_two_of_four_on_its_way_removes_one_of_four() -> None:
    scores = torch.tensor([[4.0, 3, 2, 1]])
    ways = {reached: two_of_four(scores, reached).sum().item() for reached in (0.1, 0.25, 0.4, 0.5)}
    assert ways == {0.1: 4, 0.25: 3, 0.4: 3, 0.5: 2}


def test_budgets_of_blocks_are_those_of_their_layers() -> None:
    # erk on (30, 40) and (40, 10) keeps 70 : 50 of the weights, so 70 : 50 of the 300 + 100 blocks
    net = nn.Sequential(nn.Linear(40, 30, bias=False), nn.Linear(10, 40, bias=False))
    mask = natal.prune(net, 0.9, "random", "erk", {"block": [2, 2]})
    kept = [int(k.sum()) / 4 for k in mask.weights.values()]
    assert kept == [23, 17]
    assert kept[0] == round(40 * 70 / 120)


# -- properties ------------------------------------------------------------------------------------------

SHAPES = st.one_of(
    st.tuples(st.integers(1, 7), st.integers(1, 9)),
    st.tuples(st.integers(1, 4), st.integers(1, 5), st.integers(1, 3), st.integers(1, 3)),
)
BLOCKS = st.tuples(st.integers(1, 4), st.integers(1, 5))


@settings(max_examples=80)
@given(SHAPES, BLOCKS, st.integers(0, 10))
def test_every_weight_lies_in_one_tile_that_goes_whole(
    shape: tuple[int, ...], block: tuple[int, int], seed: int
) -> None:
    grid = Grid(*block, shape)
    generator = torch.Generator().manual_seed(seed)
    tiles = torch.rand(grid.tiles, generator=generator) > 0.5
    mask = grid.spread(tiles)
    assert mask.shape == shape
    assert torch.equal(grid.any(mask), tiles)
    matrix = mask.flatten(1)
    for i in range(matrix.shape[0]):
        for j in range(matrix.shape[1]):
            assert matrix[i, j] == tiles[i // block[0], j // block[1]]
    values = torch.rand(shape, generator=generator, dtype=torch.float64)
    for p, total in ((1, values.sum()), (2, values.norm())):
        assert torch.allclose(grid.norm(values, p).norm(p=p), total)


@settings(max_examples=80)
@given(SHAPES, st.integers(0, 10))
def test_two_of_four_keeps_the_two_highest_of_every_four(shape: tuple[int, ...], seed: int) -> None:
    scores = torch.randint(4, shape, generator=torch.Generator().manual_seed(seed))  # ties abound
    kept = two_of_four(scores.double(), 0.5)
    inputs_last, of_kept = scores.movedim(1, -1).flatten(0, -2), kept.movedim(1, -1).flatten(0, -2)
    for row, stays in zip(inputs_last.tolist(), of_kept.tolist(), strict=True):
        for start in range(0, len(row), 4):
            four, left = row[start : start + 4], stays[start : start + 4]
            in_order = sorted(range(len(four)), key=lambda i: (four[i], i))
            assert [i for i in range(len(four)) if not left[i]] == sorted(in_order[: len(four) // 2])


GROUPED: list[Any] = ["kernel", {"block": [2, 3]}, {"block": [1, 4]}]


def groups(model: nn.Module, granularity: Any) -> dict[str, Grid]:
    return {name: grid_of(granularity, p.shape) for name, p in natal.prune(model, 0.0).weights.items()}


@pytest.mark.parametrize("granularity", GROUPED, ids=str)
@pytest.mark.parametrize("kind", ["deep", "conv"])
@pytest.mark.parametrize("criterion", ["magnitude", "synflow", "force"])
def test_groups_go_whole_and_in_exact_number(criterion: str, kind: str, granularity: Any) -> None:
    model, batch = network(kind)
    grids = groups(model, granularity)
    total = sum(prod(grid.tiles) for grid in grids.values())
    mask = natal.prune(model, 0.6, criterion, granularity=granularity, batch=batch)
    tiles = {name: grid.any(mask.weights[name]) for name, grid in grids.items()}
    assert sum(int((~t).sum()) for t in tiles.values()) == int(0.6 * total)
    assert all(torch.equal(grid.spread(tiles[name]), mask.weights[name]) for name, grid in grids.items())


@pytest.mark.parametrize("granularity", [*GROUPED, "2:4"], ids=str)
@pytest.mark.parametrize("control", ["shuffle", "quota-random", "reinit", "invert"])
def test_controls_keep_the_structure_and_the_counts(control: str, granularity: Any) -> None:
    model, _ = network("conv")
    plain, other = (
        natal.prune(model, 0.5, "magnitude", granularity=granularity, control=c, seed=1)
        for c in (None, control)
    )

    def structure(mask: natal.Mask) -> dict[str, Tensor]:
        if granularity == "2:4":
            return {n: two_of_four(k.double(), 0.5) for n, k in mask.weights.items()}
        grids = groups(model, granularity)
        return {n: grid.spread(grid.any(mask.weights[n])) for n, grid in grids.items()}

    assert all(torch.equal(other.weights[n], k) for n, k in structure(other).items())
    changed = any(not torch.equal(other.weights[n], k) for n, k in plain.weights.items())
    assert changed == (control != "reinit")
    assert bool(other.redrawn) == (control == "reinit")
    if control in ("shuffle", "quota-random") and granularity != "2:4":
        for name, grid in groups(model, granularity).items():
            assert grid.any(other.weights[name]).sum() == grid.any(plain.weights[name]).sum()
    if granularity == "2:4":
        assert other.kept == plain.kept


def test_signed_scores_work_under_2_4_and_are_refused_in_groups() -> None:
    model, batch = network("deep")
    for criterion in ("grasp", "phew"):
        mask = natal.prune(model, 0.5, criterion, granularity="2:4", batch=batch)
        assert mask.kept == sum(
            rows * (columns - 2 * (columns // 4) - columns % 4 // 2)
            for rows, columns in ((8, 5), (7, 8), (6, 7), (3, 6))
        )
        with pytest.raises(NatalError, match=r"negative scores, and a group's score is a norm, .* '2:4'"):
            natal.prune(model, 0.5, criterion, granularity="kernel", batch=batch)


def test_2_4_without_a_four_is_refused() -> None:
    with pytest.raises(NatalError, match="'2:4' finds no four in 'weight': every layer has one input"):
        natal.prune(nn.Linear(1, 8), 0.5, "magnitude", granularity="2:4")


def test_recipes_of_older_studies_keep_their_keys() -> None:
    plain = Recipe(name="x", criterion="magnitude")
    assert plain.model_dump() == {
        "name": "x",
        "criterion": "magnitude",
        "scope": "global",
        "granularity": "weight",
    }
    block = Recipe.model_validate({"name": "x", "criterion": "magnitude", "granularity": {"block": (4, 2)}})
    assert block.model_dump(mode="json")["granularity"] == {"block": [4, 2]}
    assert (plain.removed, block.removed) == ("weight", "4x2-block")
    assert Recipe.model_validate(block.model_dump(mode="json")) == block


def test_tiles_count_the_border() -> None:
    assert Grid(4, 4, (97, 128)).tiles == (25, 32)
    assert grid_of("kernel", (6, 3, 5, 5)).tiles == (6, 3)
    assert ceil(97 / 4) == 25
