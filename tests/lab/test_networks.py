"""Networks: published sizes, initial bits, formulas by hand, initialisation schemes, and what is refused."""

from __future__ import annotations

import copy
import inspect
import itertools
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
import torch.fx
import torch.nn.functional as F
from torch import Tensor, nn

import natal
from natal import NatalError
from natal.lab.networks import born, network, networks, options, parameters, small_dense
from natal.lab.networks.resnet import Block, ResNet
from natal.lab.networks.transformer import Layer, Transformer
from natal.lab.shapes import Tokens, example
from natal.study import Network

MNIST, CIFAR, PAIRS = (1, 28, 28), (3, 32, 32), Tokens(3, 98)


def chosen(entry: str, **keys: Any) -> Network:
    return Network.model_validate({"network": entry, **keys})


def build(entry: str, shape: tuple[int, ...], outputs: int = 10, seed: int = 1, **keys: Any) -> nn.Module:
    return born(chosen(entry, **keys), shape, outputs, seed)


def shapes(net: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(p.shape) for name, p in net.named_parameters()}


def equal(one: nn.Module, other: nn.Module) -> bool:
    a, b = one.state_dict(), other.state_dict()
    return list(a) == list(b) and all(torch.equal(a[name], b[name]) for name in a)


# -- published sizes -------------------------------------------------------------------------------------

SIZES: list[tuple[str, dict[str, Any], tuple[int, ...], int, int, int]] = [
    # network, options, row, outputs, weights (two or more sides), parameters
    ("mlp", {}, (194,), 97, 194 * 128 + 128 * 97, 37473),  # the paper's, modular
    ("mlp", {}, (20,), 1, 20 * 128 + 128, 2817),  # the paper's, regression
    ("mlp", {"hidden": [500, 500], "residual": True}, (40,), 10, 275_000, 276_010),  # MNIST-1D's tickets
    ("mlp", {"hidden": [48], "embedding": 500, "bias": False}, (134,), 67, 33_500 + 24_000 + 3_216, 60_716),
    ("lenet-300-100", {}, MNIST, 10, 266_200, 266_610),  # Frankle & Carbin, figure 2: 266K
    ("lenet-5", {}, MNIST, 10, 61_470, 61_706),  # LeCun: about 60,000
    ("lenet-5", {"caffe": True}, MNIST, 10, 430_500, 431_080),  # SNIP, table 1: 431K
    ("conv-2", {}, CIFAR, 10, 4_300_992, 4_301_642),  # Frankle & Carbin, figure 2: 4.3M
    ("conv-4", {}, CIFAR, 10, 2_425_024, 2_425_930),  # 2.4M
    ("conv-6", {}, CIFAR, 10, 2_261_184, 2_262_602),  # printed as 1.7M, which its own appendix contradicts
    ("resnet-20", {}, CIFAR, 10, 268_336, 269_722),  # He et al., table 6: 0.27M
    ("resnet-20", {"shortcut": "projection"}, CIFAR, 10, 270_896, 272_474),
    ("resnet-20", {"width": 8}, CIFAR, 10, 67_352, 68_050),
    ("resnet-32", {}, CIFAR, 10, 461_872, 464_154),  # 0.46M
    ("resnet-56", {}, CIFAR, 10, 848_944, 853_018),  # 0.85M
    ("vgg-11", {}, CIFAR, 10, 9_222_848, 9_231_114),
    ("vgg-16", {}, CIFAR, 10, 14_715_584, 14_728_266),
    ("vgg-16", {"batch_norm": False}, CIFAR, 10, 14_715_584, 14_719_818),
    # Nanda et al.: embeddings, positions, four attention matrices, two of the ReLU layer, unembedding
    ("transformer", {}, Tokens(3, 114), 113, 128 * (114 + 3 + 4 * 128 + 8 * 128 + 113), 226_688),
    # Power et al., appendix A.1.2: two layers of width 128 and four heads, about 4e5 beside the embeddings
    ("transformer", {"depth": 2}, Tokens(3, 98), 97, 128 * (98 + 3 + 24 * 128 + 97), 419_840),
]


@pytest.mark.parametrize(("entry", "keys", "row", "outputs", "weights", "total"), SIZES)
def test_sizes_are_the_published_ones(
    entry: str, keys: dict[str, Any], row: tuple[int, ...], outputs: int, weights: int, total: int
) -> None:
    net = build(entry, row, outputs, **keys)
    assert sum(p.numel() for p in net.parameters() if p.ndim > 1) == weights
    assert sum(p.numel() for p in net.parameters()) == total
    assert parameters(chosen(entry, **keys), row, outputs) == total


def test_every_network_has_its_size_tested() -> None:
    assert {entry for entry, *_ in SIZES} == set(networks)


@pytest.mark.parametrize(
    ("blocks", "convolutions"),
    [(1, 38_592), (2, 259_776), (3, 1_144_512)],  # 38K, 260K and 1.1M in figure 2
)
def test_the_convolutions_of_conv_2_4_6_have_the_published_sizes(blocks: int, convolutions: int) -> None:
    net = build(f"conv-{2 * blocks}", CIFAR)
    assert sum(p.numel() for p in net.parameters() if p.ndim == 4) == convolutions


def test_the_layers_of_lenet_5() -> None:
    assert shapes(build("lenet-5", MNIST)) == {
        "conv1.weight": (6, 1, 5, 5), "conv1.bias": (6,), "conv2.weight": (16, 6, 5, 5), "conv2.bias": (16,),
        "hidden1.weight": (120, 400), "hidden1.bias": (120,), "hidden2.weight": (84, 120), "hidden2.bias": (84,),
        "output.weight": (10, 84), "output.bias": (10,),
    }  # fmt: skip
    assert shapes(build("lenet-5", MNIST, caffe=True)) == {
        "conv1.weight": (20, 1, 5, 5), "conv1.bias": (20,), "conv2.weight": (50, 20, 5, 5), "conv2.bias": (50,),
        "hidden.weight": (500, 800), "hidden.bias": (500,), "output.weight": (10, 500), "output.bias": (10,),
    }  # fmt: skip


def test_the_layers_of_lenet_300_100() -> None:
    assert shapes(build("lenet-300-100", MNIST)) == {
        "hidden1.weight": (300, 784), "hidden1.bias": (300,), "hidden2.weight": (100, 300), "hidden2.bias": (100,),
        "output.weight": (10, 100), "output.bias": (10,),
    }  # fmt: skip


@pytest.mark.parametrize(("depth", "blocks"), [(20, 3), (32, 5), (56, 9)])
@pytest.mark.parametrize("shortcut", ["identity", "projection"])
def test_the_layers_of_a_resnet(depth: int, blocks: int, shortcut: str) -> None:
    net = build(f"resnet-{depth}", CIFAR, shortcut=shortcut)
    main = [p for name, p in net.named_parameters() if p.ndim > 1 and "shortcut" not in name]
    assert len(main) == depth
    widths = [16] + [width for width in (16, 32, 64) for _ in range(2 * blocks)]
    expected = [(b, a, 3, 3) for a, b in itertools.pairwise([3, *widths])]
    assert [tuple(p.shape) for p in main] == [*expected, (10, 64)]
    projections = [tuple(p.shape) for n, p in net.named_parameters() if "shortcut" in n and p.ndim > 1]
    assert projections == ([(32, 16, 1, 1), (64, 32, 1, 1)] if shortcut == "projection" else [])


@pytest.mark.parametrize(
    ("entry", "widths"),
    [
        ("vgg-11", [64, 128, 256, 256, 512, 512, 512, 512]),
        ("vgg-16", [64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512]),
    ],
)
def test_the_layers_of_vgg(entry: str, widths: list[int]) -> None:
    net = build(entry, CIFAR)
    kernels = [tuple(p.shape) for p in net.parameters() if p.ndim == 4]
    assert kernels == [(b, a, 3, 3) for a, b in itertools.pairwise([3, *widths])]
    assert sum(isinstance(m, nn.BatchNorm2d) for m in net.modules()) == len(widths)
    assert sum(isinstance(m, nn.MaxPool2d) for m in net.modules()) == 4
    assert shapes(net)["output.weight"] == (10, 512)


# -- birth -----------------------------------------------------------------------------------------------

SMALL: dict[str, tuple[tuple[int, ...], dict[str, Any]]] = {
    "mlp": ((20,), {"hidden": [30, 30], "batch_norm": True}),
    "lenet-300-100": (MNIST, {"width": 0.1}),
    "lenet-5": (MNIST, {}),
    "conv-2": ((1, 8, 8), {"width": 4}),
    "conv-4": ((1, 8, 8), {"width": 4}),
    "conv-6": ((1, 8, 8), {"width": 4}),
    "resnet-20": ((3, 8, 8), {"width": 4}),
    "resnet-32": ((3, 8, 8), {"width": 4, "shortcut": "projection"}),
    "resnet-56": ((3, 8, 8), {"width": 2}),
    "vgg-11": ((1, 16, 16), {"width": 4}),
    "vgg-16": ((1, 16, 16), {"width": 4}),
    "transformer": (PAIRS, {"width": 16, "heads": 2, "norm": True}),
}
"""A small one of every network; a new network inherits the tests below by its line here."""


def test_every_network_has_a_small_one() -> None:
    assert set(SMALL) == set(networks)


@pytest.mark.parametrize("entry", SMALL)
def test_the_bits_are_those_of_building_after_manual_seed(entry: str) -> None:
    row, keys = SMALL[entry]
    torch.manual_seed(123)
    assert equal(build(entry, row, seed=123, **keys), networks[entry](row, 10, **keys))


@pytest.mark.parametrize("seed", [42, 123, 7, 0, 2**32 - 1])
@pytest.mark.parametrize(("inputs", "outputs"), [(194, 97), (20, 1)])
def test_the_papers_network_has_the_bits_of_linear_after_manual_seed(
    seed: int, inputs: int, outputs: int
) -> None:
    torch.manual_seed(seed)
    first, second = nn.Linear(inputs, 128), nn.Linear(128, outputs)
    net = dict(build("mlp", (inputs,), outputs, seed, hidden=[128]).named_parameters())
    expected = {
        "hidden.weight": first.weight, "hidden.bias": first.bias,
        "output.weight": second.weight, "output.bias": second.bias,
    }  # fmt: skip
    assert list(net) == list(expected)
    for name, p in expected.items():
        assert torch.equal(net[name], p), name


@pytest.mark.parametrize("entry", SMALL)
def test_the_callers_generator_dtype_and_device_are_neither_used_nor_changed(entry: str) -> None:
    row, keys = SMALL[entry]
    keys = {**keys, "init": "orthogonal"}
    first = build(entry, row, **keys)
    torch.manual_seed(99)
    before = torch.get_rng_state()
    torch.set_default_dtype(torch.float64)
    torch.set_default_device("meta")
    try:
        again = build(entry, row, **keys)
        assert torch.get_default_dtype() == torch.float64
        assert torch.empty(1).is_meta
    finally:
        torch.set_default_device("cpu")
        torch.set_default_dtype(torch.float32)
    assert torch.equal(torch.get_rng_state(), before)
    assert equal(first, again)
    assert {(p.dtype, p.device.type) for p in again.parameters()} == {(torch.float32, "cpu")}


@pytest.mark.parametrize("entry", SMALL)
def test_a_float64_network_has_the_float32_numbers(entry: str) -> None:
    row, keys = SMALL[entry]
    single = build(entry, row, **keys)
    double = born(chosen(entry, **keys), row, 10, 1, torch.float64)
    for p, q in zip(single.parameters(), double.parameters(), strict=True):
        assert q.dtype == torch.float64
        assert torch.equal(p.double(), q)
    rows = example(row, 2)
    assert double(rows.double() if rows.is_floating_point() else rows).dtype == torch.float64


@pytest.mark.parametrize("entry", SMALL)
def test_seeds_are_different_networks(entry: str) -> None:
    row, keys = SMALL[entry]
    assert equal(build(entry, row, seed=5, **keys), build(entry, row, seed=5, **keys))
    assert not equal(build(entry, row, seed=5, **keys), build(entry, row, seed=6, **keys))


@pytest.mark.parametrize(
    ("entry", "row", "keys"),
    [
        *((entry, *small) for entry, small in SMALL.items()),
        ("mlp", Tokens(2, 10), {"embedding": 4}),
        ("mlp", (20,), {"embedding": 4, "hidden": [5, 5], "residual": True}),
        ("resnet-20", (3, 8, 8), {"width": 2, "shortcut": "projection"}),
    ],
)
def test_every_network_can_be_traced(entry: str, row: tuple[int, ...], keys: dict[str, Any]) -> None:
    # what finds units and makes small networks reads a traced module
    net, rows = build(entry, row, **keys).eval(), example(row, 3)
    traced = torch.fx.symbolic_trace(net)
    assert torch.equal(traced(rows), net(rows))


@pytest.mark.parametrize("entry", SMALL)
def test_every_network_can_be_pruned_and_trained(entry: str) -> None:
    row, keys = SMALL[entry]
    net = build(entry, row, **keys)
    mask = natal.prune(net, sparsity=0.5, criterion="magnitude", scope="layerwise", seed=0)
    masked = copy.deepcopy(net)
    mask.apply_(dict(masked.named_parameters()))
    masked(example(row, 4)).logsumexp(1).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in masked.parameters())


# -- formulas --------------------------------------------------------------------------------------------


def test_the_paper_network_computes_its_formula() -> None:
    net, x = build("mlp", (2,), 1, hidden=[3]), torch.tensor([[1.0, -2.0]])
    w1, b1, w2, b2 = net.parameters()
    assert torch.allclose(net(x), torch.clamp(x @ w1.T + b1, min=0) @ w2.T + b2)


@pytest.mark.parametrize(
    ("activation", "formula"),
    [
        ("relu", lambda z: z.clamp(min=0)),
        ("leaky-relu", lambda z: torch.where(z > 0, z, z / 100)),
        ("gelu", lambda z: z * (1 + torch.erf(z / math.sqrt(2))) / 2),
        ("silu", lambda z: z / (1 + (-z).exp())),
        ("tanh", lambda z: 1 - 2 / ((2 * z).exp() + 1)),
        ("sigmoid", lambda z: 1 / (1 + (-z).exp())),
    ],
)
def test_activations_are_their_formulas(activation: str, formula: Callable[[Tensor], Tensor]) -> None:
    net, x = build("mlp", (4,), 2, hidden=[5, 3], activation=activation, bias=False), torch.randn(6, 4)
    w1, w2, w3 = net.parameters()
    assert torch.allclose(net(x), formula(formula(x @ w1.T) @ w2.T) @ w3.T, atol=1e-6)


def test_a_residual_layer_adds_to_the_one_before() -> None:
    net, x = build("mlp", (4,), 2, hidden=[5, 5, 3], residual=True), torch.randn(6, 4)
    w1, b1, w2, b2, w3, b3, w4, b4 = net.parameters()
    h = torch.relu(x @ w1.T + b1)
    h = h + torch.relu(h @ w2.T + b2)
    h = torch.relu(h @ w3.T + b3)
    assert torch.allclose(net(x), h @ w4.T + b4, atol=1e-6)


def test_batch_norm_stands_between_a_layer_and_its_activation() -> None:
    net, x = build("mlp", (4,), 2, hidden=[5], batch_norm=True), torch.randn(6, 4)
    w1, b1, _, _, w2, b2 = net.parameters()
    z = x @ w1.T + b1
    z = (z - z.mean(0)) / (z.var(0, unbiased=False) + 1e-5).sqrt()
    assert torch.allclose(net(x), torch.relu(z) @ w2.T + b2, atol=1e-5)


def test_an_embedding_is_summed_over_tokens_or_one_hot_blocks() -> None:
    tokens = build("mlp", Tokens(2, 5), 5, hidden=[4], embedding=3)
    one_hot = build("mlp", (10,), 5, hidden=[4], embedding=3)
    pairs = torch.cartesian_prod(torch.arange(5), torch.arange(5))
    table, w1, b1, w2, b2 = tokens.parameters()
    h = table.T[pairs[:, 0]] + table.T[pairs[:, 1]]
    expected = torch.relu(h @ w1.T + b1) @ w2.T + b2
    assert torch.allclose(tokens(pairs), expected, atol=1e-6)
    assert torch.allclose(one_hot(F.one_hot(pairs, 5).flatten(1).float()), expected, atol=1e-6)


def test_a_readout_is_linear() -> None:
    net, x = build("mlp", (4,), 2, hidden=[5], readout=7, bias=False), torch.randn(6, 4)
    w1, w2, w3 = net.parameters()
    assert w2.shape == (7, 5)
    assert torch.allclose(net(x), torch.relu(x @ w1.T) @ w2.T @ w3.T, atol=1e-6)


def test_no_hidden_layer_makes_a_linear_model() -> None:
    net, x = build("mlp", (2, 3), 4, hidden=[]), torch.randn(5, 2, 3)
    w, b = net.parameters()
    assert torch.allclose(net(x), x.flatten(1) @ w.T + b)


def test_a_width_scales_every_hidden_layer() -> None:
    net = build("mlp", (10,), 5, hidden=[8, 6], embedding=10, width=0.25)
    assert [tuple(p.shape) for p in net.parameters() if p.ndim > 1] == [(2, 5), (2, 2), (2, 2), (5, 2)]


def test_an_identity_shortcut_takes_every_second_pixel_and_pads_with_zero_maps() -> None:
    net = build("resnet-20", (1, 8, 8), width=2).eval()
    assert isinstance(net, ResNet)
    x = torch.randn(3, 1, 8, 8)
    maps = torch.relu(F.conv2d(x, net.conv.weight, padding=1))
    for number, block in enumerate(net.blocks):
        assert isinstance(block, Block)
        stride = 2 if number in (3, 6) else 1
        y = torch.relu(F.conv2d(maps, block.conv1.weight, stride=stride, padding=1))
        y = F.conv2d(y, block.conv2.weight, padding=1)
        if stride == 2:
            short = torch.zeros_like(y)
            channels = maps.shape[1]
            short[:, channels // 2 : channels // 2 + channels] = maps[:, :, ::2, ::2]
            maps = short
        maps = torch.relu(y + maps)
    expected = maps.mean((2, 3)) @ net.output.weight.T + net.output.bias
    # an untrained batch norm divides by sqrt(1 + 1e-5)
    assert torch.allclose(net(x), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("norm", [False, True])
def test_a_transformer_computes_its_formula(norm: bool) -> None:
    net = build("transformer", PAIRS, 97, depth=2, width=8, heads=2, norm=norm)
    assert isinstance(net, Transformer)
    rows = torch.randint(0, 98, (5, 3))
    normed = (lambda h: F.layer_norm(h, (8,))) if norm else (lambda h: h)
    h = net.embedding.weight[rows] + net.positions.weight
    for layer in net.layers:
        assert isinstance(layer, Layer)
        n = normed(h)
        q, k, v = ((n @ part.weight.T).reshape(5, 3, 2, 4) for part in (layer.query, layer.key, layer.value))
        pull = torch.einsum("biha,bjha->bhij", q, k) / math.sqrt(4)
        pull = pull.masked_fill(torch.ones(3, 3).triu(1).bool(), -math.inf).softmax(-1)
        h = h + torch.einsum("bhij,bjha->biha", pull, v).flatten(2) @ layer.merge.weight.T
        up = torch.relu(normed(h) @ layer.up.weight.T + layer.up.bias)
        h = h + up @ layer.down.weight.T + layer.down.bias
    assert torch.allclose(net(rows), normed(h)[:, -1] @ net.output.weight.T, atol=1e-5)


# -- initialisation --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scheme", "variance"),
    [
        ("kaiming-normal", lambda fan_in, fan_out: 2 / fan_in),
        ("glorot-normal", lambda fan_in, fan_out: 2 / (fan_in + fan_out)),
    ],
)
def test_normal_schemes_have_their_variance(scheme: str, variance: Callable[[int, int], float]) -> None:
    for name, p in build("conv-2", (3, 16, 16), init=scheme).named_parameters():
        if p.ndim == 1:
            assert not p.any(), name
            continue
        fan_out, fan_in = len(p), p[0].numel()
        fan_out *= p[0, 0].numel()
        expected = math.sqrt(variance(fan_in, fan_out))
        # five standard errors of a standard deviation and of a mean
        assert p.std().item() == pytest.approx(expected, rel=5 / math.sqrt(2 * p.numel())), name
        assert abs(p.mean().item()) < 5 * expected / math.sqrt(p.numel()), name


def test_orthogonal_rows_are_orthonormal() -> None:
    for name, p in build("lenet-5", MNIST, init="orthogonal").named_parameters():
        if p.ndim > 1:
            w = p.flatten(1)
            gram = w @ w.T if len(w) <= w.shape[1] else w.T @ w
            assert torch.allclose(gram, torch.eye(len(gram)), atol=1e-5), name


def test_a_scale_multiplies_weights_alone() -> None:
    plain = dict(build("mlp", (20,)).named_parameters())
    doubled = dict(build("mlp", (20,), init={"scheme": "default", "scale": 2.0}).named_parameters())
    for name, p in plain.items():
        assert torch.equal(doubled[name], 2 * p if p.ndim > 1 else p)
    normal = build("mlp", (20,), init="glorot-normal")
    smaller = build("mlp", (20,), init={"scheme": "glorot-normal", "scale": 0.5})
    for p, q in zip(normal.parameters(), smaller.parameters(), strict=True):
        assert torch.equal(p / 2, q)


def test_a_scheme_draws_from_a_stream_of_its_own_and_leaves_norms_alone() -> None:
    net = build("resnet-20", (3, 8, 8), width=2, init="kaiming-normal")
    norms = [m for m in net.modules() if isinstance(m, nn.BatchNorm2d)]
    assert all(m.weight.eq(1).all() and m.bias.eq(0).all() for m in norms)
    # nothing of the default's numbers is left, and none of them is used again
    torch.manual_seed(1)
    same_seed = nn.init.kaiming_normal_(torch.empty_like(net.get_parameter("conv.weight")))
    assert not torch.equal(net.get_parameter("conv.weight"), same_seed)


# -- a network of one's own ------------------------------------------------------------------------------


Register = Callable[[str], Callable[[Callable[..., Any]], Callable[..., Any]]]


@pytest.fixture
def file() -> Iterator[Register]:
    """Register functions under names that are free again afterwards."""
    before = set(networks)
    yield network
    for name in set(networks) - before:
        del networks._entries[name]


def test_a_function_is_a_network(file: Register) -> None:
    @file("mine")
    def mine(
        shape: tuple[int, ...], outputs: int, *, width: int = 8, kind: Literal["a", "b"] = "a"
    ) -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(math.prod(shape), width), nn.Linear(width, outputs))

    assert shapes(build("mine", (2, 3), 4, width=5))["1.weight"] == (5, 6)
    assert options(chosen("mine", width=8, kind="b")) == {"kind": "b"}
    with pytest.raises(NatalError, match=r"^network 'mine': option kind must be 'a' or 'b', got 'c'"):
        build("mine", (2, 3), kind="c")


def test_options_without_a_type_and_any_others_are_handed_over(file: Register) -> None:
    seen: dict[str, Any] = {}

    @file("open")
    def anything(shape, outputs, one=1, **others):  # type: ignore[no-untyped-def]
        seen.update(one=one, **others)
        return nn.Linear(shape[0], outputs)

    build("open", (3,), one="two", three=[3])
    assert seen == {"one": "two", "three": [3]}


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda shape, outputs: "a network", "must return a torch.nn.Module, got str"),
        (
            lambda shape, outputs: nn.Linear(shape[0], 4),
            r"must answer each row with 10 numbers, .*, got \(2, 4\)",
        ),
        (
            lambda shape, outputs: nn.Identity(),
            "has no linear or convolution layer, so nothing can be pruned",
        ),
        (lambda shape, outputs: nn.LazyLinear(outputs), "has lazy layers"),
        (
            lambda shape, outputs: nn.Linear(shape[0], outputs).requires_grad_(False),
            "has no parameter that learns; leave requires_grad at True",
        ),
        (lambda shape, outputs: nn.Linear(7, outputs), "cannot read rows of 3 numbers: RuntimeError"),
        (lambda shape, outputs: 1 / 0, "cannot read rows of 3 numbers: ZeroDivisionError"),
    ],
)
def test_a_network_that_does_not_work_is_refused_in_one_line(
    file: Register, make: Callable[..., Any], words: str
) -> None:
    file("broken")(make)
    with pytest.raises(NatalError, match=f"^network 'broken' {words}") as refusal:
        build("broken", (3,))
    assert "\n" not in str(refusal.value)


def test_a_function_without_shape_and_outputs_is_refused(file: Register) -> None:
    with pytest.raises(NatalError, match="network 'short' must be a function of the shape"):
        file("short")(lambda shape: nn.Linear(3, 4))


def test_a_type_that_cannot_be_found_is_named(file: Register) -> None:
    def lost(shape: tuple[int, ...], outputs: int, *, kind: "Nowhere" = 1) -> nn.Module:  # type: ignore[name-defined]  # noqa: F821, UP037
        return nn.Linear(shape[0], outputs)

    file("lost")(lost)
    with pytest.raises(NatalError, match="network 'lost': its signature names a type that cannot be found"):
        build("lost", (3,))


def test_a_network_that_looks_at_values_is_counted_too(file: Register) -> None:
    @file("measured")
    def measured(shape: tuple[int, ...], outputs: int) -> nn.Module:
        layer = nn.Linear(shape[0], outputs)
        layer.weight.data /= layer.weight.norm().item()
        return layer

    assert parameters(chosen("measured"), (3,), 2) == 8


def test_the_documented_network_works(file: Register) -> None:
    text = (Path(__file__).parents[2] / "docs" / "networks.md").read_text("utf-8")
    exec(text.split("```python\n")[1].split("```")[0], {"__name__": "documented"})
    assert parameters(chosen("two-convolutions"), MNIST, 10) == 16 * 9 + 16 + 16 * 16 * 9 + 16 + 170
    assert small_dense(chosen("two-convolutions"), MNIST, 10, 700).options == {"width": 7}


# -- refusals --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("entry", "row", "keys", "words"),
    [
        ("lenet", (20,), {}, "unknown network 'lenet'; did you mean 'lenet-5'"),
        ("mlp", (20,), {"hiden": [3]}, "network 'mlp': unknown option 'hiden'; did you mean 'hidden'"),
        ("mlp", (20,), {"hidden": 8}, "network 'mlp': option hidden must be a list, got 8"),
        ("mlp", (20,), {"hidden": "8"}, "network 'mlp': option hidden must be a list, got '8'"),
        ("mlp", (20,), {"hidden": [8, 0]}, r"option hidden\[1\] must be greater than or equal to 1, got 0"),
        ("mlp", (20,), {"hidden": [8.5]}, r"option hidden\[0\] must be a whole number, got 8.5"),
        ("mlp", (20,), {"bias": 1}, "option bias must be true or false, got 1"),
        ("mlp", (20,), {"width": "wide"}, "option width must be a number, got 'wide'"),
        ("mlp", (20,), {"width": math.inf}, "option width must be a finite number, got inf"),
        ("mlp", (20,), {"width": True}, "option width must be a number, got True"),
        ("mlp", (20,), {"activation": "rellu"}, "got 'rellu'; did you mean 'relu'"),
        ("mlp", (20,), {"residual": True}, "no hidden layer is as wide as the one before: .128.; give two"),
        ("mlp", PAIRS, {}, "network 'mlp' reads numbers, not rows of 3 tokens; give it an embedding"),
        (
            "mlp",
            (194,),
            {"embedding": 5},
            "one-hot blocks of 10 numbers, one per output, not rows of 194 num",
        ),
        ("lenet-300-100", PAIRS, {}, "network 'lenet-300-100' reads numbers, not rows of 3 tokens$"),
        ("lenet-5", (784,), {}, r"network 'lenet-5' reads images \(channels, height, width\) of at least 12"),
        ("lenet-5", (1, 8, 8), {}, "of at least 12 x 12, not rows of 1 x 8 x 8 numbers"),
        ("lenet-5", (1, 12, 12), {"caffe": True}, "of at least 16 x 16"),
        ("conv-6", (1, 4, 4), {}, "of at least 8 x 8"),
        ("vgg-16", (1, 8, 8), {}, "of at least 16 x 16"),
        ("resnet-20", (194,), {}, r"reads images \(channels, height, width\), not rows of 194 numbers"),
        ("resnet-20", (3, 8, 8), {"shortcut": "none"}, "option shortcut must be 'identity' or 'projection'"),
        ("transformer", (194,), {}, "reads tokens, not rows of 194 numbers"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(
    entry: str, row: tuple[int, ...], keys: dict[str, Any], words: str
) -> None:
    with pytest.raises(NatalError, match=words) as refusal:
        build(entry, row, **keys)
    assert "\n" not in str(refusal.value)


def test_the_smallest_images_that_fit_are_read() -> None:
    for entry, side, keys in (
        ("lenet-5", 12, {}), ("lenet-5", 16, {"caffe": True}), ("conv-2", 2, {}), ("conv-4", 4, {}),
        ("conv-6", 8, {}), ("vgg-11", 16, {"width": 2}), ("resnet-20", 1, {"width": 2}),
    ):  # fmt: skip
        assert build(entry, (1, side, side), **keys)(torch.zeros(2, 1, side, side)).shape == (2, 10)


def test_options_written_in_other_words_are_the_same() -> None:
    assert options(chosen("mlp", hidden=[128], bias=True, width=1)) == {}
    assert options(chosen("resnet-20", width=16)) == options(chosen("resnet-20", width=16.0)) == {}
    assert options(chosen("mlp", hidden=(64, 64))) == {"hidden": [64, 64]}


# -- the control small-dense -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "entry",
    [pytest.param(e, marks=pytest.mark.slow) if e in ("resnet-32", "resnet-56") else e for e in SMALL],
)
@pytest.mark.parametrize("share", [1.0, 0.5, 0.1])
def test_small_dense_is_the_widest_that_has_no_more_parameters(entry: str, share: float) -> None:
    row, keys = SMALL[entry]
    choice = chosen(entry, **keys)
    whole = parameters(choice, row, 10)
    budget = int(share * whole)
    small = small_dense(choice, row, 10, budget)
    assert (small.entry, small.init) == (choice.entry, choice.init)
    assert parameters(small, row, 10) <= budget
    default = inspect.signature(networks[entry]).parameters["width"].default
    given, own = small.options["width"], options(choice).get("width", default)
    if given < own:
        wider = small.model_copy(update={"options": {**small.options, "width": given + own / 10_000}})
        assert parameters(wider, row, 10) > budget
    assert (share == 1.0) == (parameters(small, row, 10) == whole)
    assert isinstance(born(small, row, 10, 1), nn.Module)


def test_small_dense_of_the_papers_network_by_hand() -> None:
    # 195 numbers into a neuron, 97 out of it, 97 output biases: 292 n + 97
    small = small_dense(chosen("mlp"), (194,), 97, 292 * 13 + 97 + 291)
    assert shapes(born(small, (194,), 97, 1))["hidden.weight"] == (13, 194)


def test_small_dense_below_the_narrowest_is_refused() -> None:
    with pytest.raises(
        NatalError, match="narrowest network 'mlp' has 389 parameters, more than the 388 that"
    ):
        small_dense(chosen("mlp"), (194,), 97, 388)


def test_small_dense_of_a_plugin_uses_its_width(file: Register) -> None:
    @file("wide")
    def wide(shape: tuple[int, ...], outputs: int, *, width: int = 100) -> nn.Module:
        return nn.Sequential(nn.Linear(shape[0], width, bias=False), nn.Linear(width, outputs, bias=False))

    assert small_dense(chosen("wide"), (3,), 2, 59).options == {"width": 11}
    assert small_dense(chosen("wide", width=4), (3,), 2, 59).options == {"width": 4}


def test_small_dense_of_a_network_without_width_is_refused_by_name(file: Register) -> None:
    file("rigid")(lambda shape, outputs: nn.Linear(shape[0], outputs))
    with pytest.raises(NatalError, match=r"'small-dense' needs .* network 'rigid' has no option 'width'"):
        small_dense(chosen("rigid"), (3,), 2, 5)


# -- documentation ---------------------------------------------------------------------------------------


def test_every_network_and_option_is_documented() -> None:
    text = (Path(__file__).parents[2] / "docs" / "networks.md").read_text("utf-8")
    sections = {part.split("`")[1]: part for part in text.split("\n## ")[1:] if part.startswith("`")}
    assert set(sections) == {name for name in networks if networks[name].__module__.startswith("natal.")}
    for name, section in sections.items():
        for key, parameter in list(inspect.signature(networks[name]).parameters.items())[2:]:
            default = parameter.default
            written = json.dumps(list(default) if isinstance(default, tuple) else default)
            assert (f"`{key}`" if default is None else f"`{key} = {written}`") in section, (name, key)


def test_torchs_own_frames_stay_out_of_what_is_told() -> None:
    with pytest.raises(NatalError) as refusal:
        build("mlp", (20,), hidden=[10**29])
    message = str(refusal.value)
    assert message.startswith("network 'mlp' cannot read rows of 20 numbers")
    assert len(message) < 500
    assert "Exception raised from" not in message
