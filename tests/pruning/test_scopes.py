from __future__ import annotations

import math
from collections.abc import Mapping

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from natal.errors import NatalError
from natal.pruning.mask import Mask, prunable, remove_neurons, weight_names
from natal.pruning.scopes import heights
from natal.pruning.select import select, select_units
from natal.study import SCOPES
from networks import Residual, deep_mlp

torch.set_num_threads(1)
Scores = Mapping[str, Tensor]
BUDGETS = [s for s in SCOPES if s not in ("global", "layerwise", "threshold")]


@st.composite
def layers(draw: st.DrawFn) -> Scores:
    """A few layers of small integer scores, so that ties abound; the first may be a convolution."""
    shapes: list[tuple[int, ...]] = draw(
        st.lists(st.tuples(st.integers(1, 6), st.integers(1, 6)), min_size=1, max_size=4)
    )
    if draw(st.booleans()):
        shapes[0] = (*shapes[0], 2, 2)
    count = sum(math.prod(s) for s in shapes)
    values = draw(st.lists(st.integers(-3, 3), min_size=count, max_size=count))
    flat = torch.tensor(values, dtype=torch.float32)
    parts = flat.split([math.prod(s) for s in shapes])  # type: ignore[no-untyped-call]
    return {f"l{i}": part.view(shape) for i, (part, shape) in enumerate(zip(parts, shapes, strict=True))}


def removed(kept: Scores) -> int:
    return sum(int((~k).sum()) for k in kept.values())


def total(scores: Scores) -> int:
    return sum(s.numel() for s in scores.values())


sparsities = st.floats(0, 0.999)


@settings(max_examples=60)
@given(layers(), sparsities, st.sampled_from(["global", *BUDGETS]))
def test_exactly_int_s_n_go_under_every_scope(scores: Scores, sparsity: float, scope: str) -> None:
    try:
        kept = select(scores, sparsity, scope)
    except NatalError as error:
        assert scope in ("uniform+", "smart-ratios")
        assert "'l" in str(error)  # it names the layer  # noqa: PT017
        return
    assert removed(kept) == int(sparsity * total(scores))
    assert {n: k.shape for n, k in kept.items()} == {n: s.shape for n, s in scores.items()}


@settings(max_examples=60)
@given(layers(), sparsities)
def test_layerwise_is_exact_in_each_layer(scores: Scores, sparsity: float) -> None:
    for name, kept in select(scores, sparsity, "layerwise").items():
        assert int((~kept).sum()) == int(sparsity * scores[name].numel())


@settings(max_examples=60)
@given(layers(), sparsities, sparsities, st.sampled_from(list(SCOPES)))
def test_masks_are_nested(scores: Scores, one: float, other: float, scope: str) -> None:
    try:
        less, more = (select(scores, s, scope) for s in sorted((one, other)))
    except NatalError:
        return
    assert all((less[n] | ~more[n]).all() for n in scores)


@settings(max_examples=60)
@given(layers(), sparsities, st.sampled_from(list(SCOPES)))
def test_the_best_of_a_layer_stay_and_ties_go_first_come_first_gone(
    scores: Scores, sparsity: float, scope: str
) -> None:
    try:
        kept = select(scores, sparsity, scope)
    except NatalError:
        return
    for name, score in scores.items():
        in_order = kept[name].flatten()[score.flatten().argsort(stable=True)]
        assert torch.equal(in_order, in_order.sort().values)  # False ... False True ... True


def test_ties_go_by_position_across_layers() -> None:
    kept = select({"a": torch.zeros(3), "b": torch.zeros(2)}, 0.8)
    assert kept["a"].tolist() == [False] * 3
    assert kept["b"].tolist() == [False, True]


@settings(max_examples=40)
@given(layers(), sparsities, st.sampled_from(["global", "layerwise"]))
def test_units_go_in_exact_number_and_every_layer_keeps_one(
    scores: Scores, sparsity: float, scope: str
) -> None:
    units = {n: s.flatten() for n, s in scores.items()}
    try:
        kept = select_units(units, sparsity, scope)
    except NatalError as error:
        assert "would remove every neuron of 'l" in str(error)  # noqa: PT017
        assert total(units) - int(sparsity * total(units)) < len(units)
        return
    assert all(k.any() for k in kept.values())
    if scope == "global":
        assert removed(kept) == int(sparsity * total(units))


def test_heights_by_hand() -> None:
    assert heights(torch.arange(4), 4).tolist() == [0.125, 0.375, 0.625, 0.875]


def ones(**shapes: tuple[int, ...]) -> Scores:
    generator = torch.Generator().manual_seed(0)
    return {name: torch.rand(shape, generator=generator) for name, shape in shapes.items()}


def densities(scores: Scores, sparsity: float, scope: str | dict[str, float]) -> dict[str, float]:
    return {n: int(k.sum()) / k.numel() for n, k in select(scores, sparsity, scope).items()}


def test_erk_by_hand() -> None:
    # Σ dims: 30 + 40 = 70, 40 + 10 = 50; 10 % of 1600 is 160 weights, shared 70 : 50
    scores = ones(a=(30, 40), b=(40, 10))
    kept = select(scores, 0.9, "erk")
    assert [int(k.sum()) for k in kept.values()] == [93, 67]
    assert {n: int(k.sum()) for n, k in select(scores, 0.9, "er").items()} == {"a": 93, "b": 67}


def test_erk_counts_the_kernel_and_er_does_not() -> None:
    scores = ones(conv=(8, 4, 3, 3), linear=(16, 12))  # 288 and 192 weights, Σ dims 18 and 28
    kept = {scope: int(select(scores, 0.9, scope)["conv"].sum()) for scope in ("erk", "er")}
    assert kept["erk"] == round(48 * 18 / 46)
    ratio = 12 / 32 * 288, 28  # er: density ∝ 12 / 32 and 28 / 192
    assert kept["er"] == pytest.approx(48 * ratio[0] / sum(ratio), abs=0.6)


def test_erk_fixes_a_full_layer_dense_and_solves_the_rest_again() -> None:
    scores = ones(big=(100, 100), small=(2, 3), middle=(20, 10))
    found = densities(scores, 0.5, "erk")
    assert found["small"] == 1
    # of 5103 kept, 6 are small's; the rest goes 200 : 30, but middle has only 200 to give
    assert found["middle"] == 1
    assert found["big"] == (10206 - int(0.5 * 10206) - 206) / 10000
    found = densities(scores, 0.95, "erk")
    kept = 10206 - int(0.95 * 10206)
    assert found["small"] == 1
    assert found["big"] * 10000 == pytest.approx((kept - 6) * 200 / 230, abs=1)


def test_igq_by_hand() -> None:
    scores = ones(a=(30, 40), b=(40, 10))
    found = densities(scores, 0.9, "igq")
    # one F solves 1200 / (1200 F + 1) + 400 / (400 F + 1) = 160
    low, high = 0.0, 1.0
    for _ in range(100):
        F = (low + high) / 2
        low, high = (F, high) if 1200 / (1200 * F + 1) + 400 / (400 * F + 1) > 160 else (low, F)
    assert found["a"] * 1200 == pytest.approx(1200 / (1200 * F + 1), abs=1)
    assert found["b"] * 400 == pytest.approx(400 / (400 * F + 1), abs=1)


def test_smart_ratios_by_hand() -> None:
    # L = 3: (3² + 3, 2² + 2, last linear layer 0.3)
    scores = ones(a=(20, 20), b=(20, 20), c=(10, 20))
    found = densities(scores, 0.8, "smart-ratios")
    assert found["c"] == 0.3
    assert found["a"] * 400 == pytest.approx((200 - 60) * 12 / 18, abs=1)
    with pytest.raises(NatalError, match="'smart-ratios' keeps 60 weights of 'c'"):
        select(scores, 0.99, "smart-ratios")
    with pytest.raises(NatalError, match="'smart-ratios' removes 140 weights of 'c'"):
        select(scores, 0.01, "smart-ratios")


def test_smart_ratios_leave_a_last_convolution_to_its_ratio() -> None:
    found = densities(ones(a=(20, 20), b=(10, 20, 1, 1)), 0.8, "smart-ratios")  # 2² + 2 to 1² + 1
    assert found["a"] * 400 == pytest.approx(120 * 6 * 400 / (6 * 400 + 2 * 200), abs=1)


def test_uniform_plus_by_hand() -> None:
    scores = ones(conv=(4, 1, 3, 3), middle=(20, 40), last=(10, 20))
    found = densities(scores, 0.9, "uniform+")
    assert found["conv"] == 1
    assert found["last"] == 0.2
    assert round(found["middle"] * 800) == 1036 - int(0.9 * 1036) - 36 - 40
    assert densities(ones(a=(20, 40), b=(10, 20)), 0.5, "uniform+") == {"a": 0.5, "b": 0.5}  # no convolution
    with pytest.raises(NatalError, match=r"'uniform\+' keeps 40 weights of 'last'"):
        select(scores, 0.99, "uniform+")


def test_densities_by_layer() -> None:
    scores = ones(a=(10, 10), b=(20, 10), c=(10, 10))
    found = densities(scores, 0.8, {"a": 0.5, "c": 0.0})
    assert found == {"a": 0.5, "b": 30 / 200, "c": 0}
    found = densities(scores, 0.775, {"a": 0.5, "b": 0.2, "c": 0.0})
    assert found == {"a": 0.5, "b": 0.2, "c": 0}


@pytest.mark.parametrize(
    ("scope", "sparsity", "message"),
    [
        (
            {"a": 0.5, "b": 0.2, "c": 0.0},
            0.5,
            r"every layer a density, 90 weights in all, but sparsity 0.5 keeps 200",
        ),
        ({"a": 1.0}, 0.9, r"with densities by layer keeps 100 weights of 'a'.* leaves only 40"),
        ({"b": 0.0}, 0.1, r"removes 200 weights of 'b'.* removes only 40"),
        ({"a": 0.5, "a.weight": 0.5}, 0.5, "no prunable layer 'a.weight'"),
        ({"aa": 0.5}, 0.5, r"no prunable layer 'aa'; did you mean 'a'"),
        ({"a": 1.5}, 0.5, r"density of 'a' must lie in \[0, 1\], got 1.5"),
        ("globe", 0.5, "unknown scope 'globe'; did you mean 'global'[?] known: global, layerwise"),
        ("global", 1.0, r"sparsity must be a number in \[0, 1\), got 1.0"),
    ],
)
def test_scopes_that_cannot_be_met_say_why(
    scope: str | dict[str, float], sparsity: float, message: str
) -> None:
    with pytest.raises(NatalError, match=message):
        select(ones(a=(10, 10), b=(20, 10), c=(10, 10)), sparsity, scope)


def test_nan_is_refused_by_name() -> None:
    with pytest.raises(NatalError, match="'a' hold NaN"):
        select({"a": torch.tensor([1.0, math.nan])}, 0.5)


def test_prunable_finds_linear_convolution_and_attention_weights_only() -> None:
    net = nn.Sequential(
        nn.Embedding(4, 6), nn.TransformerEncoderLayer(6, 2, 8), nn.LayerNorm(6), nn.Conv1d(1, 2, 3)
    )
    assert list(prunable(net)) == [
        "1.self_attn.in_proj_weight",
        "1.self_attn.out_proj.weight",
        "1.linear1.weight",
        "1.linear2.weight",
        "3.weight",
    ]
    assert list(prunable(nn.Linear(2, 2))) == ["weight"]


def test_shared_weights_count_once() -> None:
    net = deep_mlp()
    net[2] = nn.Linear(8, 8)
    net.append(nn.Linear(8, 8))
    net[7].weight = net[2].weight
    assert weight_names(net)["2.weight"] == ["2.weight", "7.weight"]
    assert "7.weight" not in prunable(net)


def test_exclude() -> None:
    net = Residual()
    assert list(prunable(net, ("first", "last", "conv2.weight"))) == ["conv1.weight", "skip.weight"]
    with pytest.raises(NatalError, match="no prunable layer 'conv3'; did you mean 'conv"):
        prunable(net, ("conv3",))
    with pytest.raises(NatalError, match="leaves no layer of Linear to prune"):
        prunable(nn.Linear(2, 2), ("first",))


def test_weights_that_are_no_parameters_are_refused_by_name() -> None:
    net = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(2, 2)))
    with pytest.raises(NatalError, match=r"'0.weight' is computed"):
        prunable(net)
    with pytest.raises(NatalError, match=r"'0.weight' has no shape yet"):
        prunable(nn.Sequential(nn.LazyLinear(2)))


def test_remove_neurons_of_a_chain() -> None:
    weights = {"a.weight": torch.ones(3, 2), "b.weight": torch.ones(2, 3), "c.weight": torch.ones(1, 2)}
    found = remove_neurons(
        weights, {"a.weight": torch.tensor([True, False, True]), "b.weight": torch.tensor([1, 0])}
    )
    assert found.weights["a.weight"].int().tolist() == [[1, 1], [0, 0], [1, 1]]
    assert found.weights["b.weight"].int().tolist() == [[1, 0, 1], [0, 0, 0]]
    assert found.weights["c.weight"].int().tolist() == [[1, 0]]
    assert set(found.biases) == {"a.bias", "b.bias"}
    assert (found.kept, found.total) == (7, 14)


def test_mask_counts_and_applies() -> None:
    mask = Mask({"a": torch.tensor([[True, False], [True, True]])}, {"b": torch.tensor([False, True])})
    parameters = {"a": torch.full((2, 2), 5.0), "b": torch.full((2,), 5.0)}
    mask.apply_(parameters)
    assert (mask.kept, mask.total, mask.sparsity, mask.densities()) == (3, 4, 0.25, {"a": 0.75})
    assert parameters["a"].tolist() == [[5, 0], [5, 5]]
    assert parameters["b"].tolist() == [0, 5]
