"""The smaller network computes the same function, trains the same way, and remains an ordinary module."""

import copy
import io
import itertools
import pickle
import re
import runpy
import warnings
from collections import UserDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import onnx
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx.reference import ReferenceEvaluator
from torch import Tensor, nn

import natal
from natal.errors import NatalError
from natal.pruning.apply import apply, prune
from natal.pruning.compaction import compact
from natal.pruning.files import to_torch_prune
from natal.pruning.graph.capture import tensors_in
from natal.pruning.mask import Mask, dense, prunable, remove_neurons
from natal.pruning.masked import masked
from natal.pruning.savings import savings
from natal.pruning.training import compact_training
from networks import layer_of

ROOT = Path(__file__).parents[2]
torch.set_num_threads(1)


class Residual(nn.Module):
    """A stem, a block with an addition, global pooling; ``cat`` concatenates instead of adding."""

    def __init__(self, width: int = 6, padding: int = 1, cat: bool = False, inplace: bool = False) -> None:
        super().__init__()
        self.cat = cat
        self.act = nn.ReLU(inplace=inplace)
        self.stem, self.norm = nn.Conv2d(3, width, 3, padding=padding), nn.BatchNorm2d(width)
        self.one, self.norm1 = nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        self.two, self.norm2 = nn.Conv2d(width, width, 1, bias=False), nn.BatchNorm2d(width)
        self.head = nn.Linear(width * (1 + cat), 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.norm(self.stem(x)))
        y = self.norm2(self.two(F.relu(self.norm1(self.one(x)))))
        x = torch.cat([x, y], dim=1) if self.cat else torch.relu(x + y)
        out: Tensor = self.head(x.mean(dim=(2, 3)))
        return out


class Preactivated(nn.Module):
    """An in-place activation changes the tensor that the addition reads later."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.block, self.head = nn.Linear(5, 8), nn.Linear(8, 8), nn.Linear(8, 3)
        self.act = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        out: Tensor = self.head(self.block(self.act(x)) + x)
        return out


class View(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 6, 3), nn.Linear(6 * 9, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.leaky_relu(self.conv(x), 0.1), 2)
        out: Tensor = self.head(x.view(x.size(0), -1))
        return out


def mlp(*widths: int, act: type[nn.Module] = nn.ReLU, norm: bool = False, bias: bool = True) -> nn.Sequential:
    layers: list[nn.Module] = []
    for i, o in itertools.pairwise(widths):
        layers += [nn.Linear(i, o, bias=bias), *([nn.BatchNorm1d(o)] if norm else []), act()]
    return nn.Sequential(*layers[: -1 - norm])


def conv(act: type[nn.Module] = nn.ReLU, padding: int = 0) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), act(), nn.MaxPool2d(2),
        nn.Conv2d(6, 5, 3, padding=padding), act(), nn.AvgPool2d(2, padding=padding), nn.Dropout(0.0),
        nn.Flatten(), nn.BatchNorm1d(5 * (1 + 8 * padding)), nn.Linear(5 * (1 + 8 * padding), 7), act(),
        nn.Linear(7, 4),
    )  # fmt: skip


def depthwise() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 6, 1), nn.PReLU(6), nn.Conv2d(6, 6, 3, padding=1, groups=6), nn.SiLU(),
        nn.Conv2d(6, 5, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 4),
    )  # fmt: skip


def depthwise_padded() -> nn.Sequential:
    """A depthwise channel without weights is constant, and not foldable past the padding behind it."""
    return nn.Sequential(
        nn.Conv2d(3, 5, 1), nn.Conv2d(5, 5, 3, groups=5), nn.Sigmoid(), nn.Conv2d(5, 3, 3, padding=1),
        nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(3, 4),
    )  # fmt: skip


class Block(nn.Module):
    """A residual block as torchvision writes it: one ReLU used twice, an addition in place, a downsampling."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn1, self.bn2 = nn.BatchNorm2d(outputs), nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = nn.Sequential()
        if (inputs, stride) != (outputs, 1):
            conv = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
            self.downsample = nn.Sequential(conv, nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        y += self.downsample(x)
        out: Tensor = self.relu(y)
        return out


def resnet() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.ReLU(inplace=True),
        Block(4, 4, 1), Block(4, 8, 2), Block(8, 8, 1),
        nn.AdaptiveAvgPool2d((1, 1)), nn.Flatten(1), nn.Linear(8, 4),
    )  # fmt: skip


class LeNet(nn.Module):
    """Everything between the layers is a function; several outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 8, 3)
        self.fc1, self.fc2, self.fc3 = nn.Linear(8, 12), nn.Linear(12, 10), nn.Linear(10, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(torch.tanh(self.conv1(x)), (2, 2))
        x = F.avg_pool2d(F.relu(self.conv2(x)), 2)
        x = torch.flatten(x, start_dim=1)
        out: Tensor = self.fc3(F.gelu(self.fc2(F.dropout(F.silu(self.fc1(x)), 0.5, training=False))))
        return out


class Transformer(nn.Module):
    """Attention written out: the feed-forward part shrinks, what attention and norms mix does not."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.q, self.k, self.v, self.o = nn.Linear(5, 8), *(nn.Linear(8, 8) for _ in range(4))
        self.norm1, self.norm2 = nn.LayerNorm(8), nn.LayerNorm(8)
        self.up, self.down, self.head = nn.Linear(8, 16), nn.Linear(16, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        h = self.norm1(x)
        weights = torch.softmax(self.q(h) @ self.k(h).transpose(-1, -2) / 8**0.5, -1)
        x = x + self.o(weights @ self.v(h))
        x = x + self.down(F.gelu(self.up(self.norm2(x))))
        out: Tensor = self.head(x.mean(1))
        return out


class Branches(nn.Module):
    """Several inputs to one concatenation, which is read twice."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d = nn.Linear(5, 8), nn.Linear(5, 6), nn.Linear(14, 8), nn.Linear(22, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.cat((torch.tanh(self.a(x)), torch.sigmoid(self.b(x))), 1)
        out: Tensor = self.d(torch.cat([y, torch.relu(self.c(y))], dim=-1))
        return out


def convolutions(dims: int) -> nn.Sequential:
    """A convolutional network over 1 or 3 axes of positions."""
    conv, norm, pool = {
        1: (nn.Conv1d, nn.BatchNorm1d, nn.MaxPool1d),
        3: (nn.Conv3d, nn.BatchNorm3d, nn.MaxPool3d),
    }[dims]
    return nn.Sequential(
        conv(2, 6, 3, padding=1), norm(6), nn.Sigmoid(), pool(2), conv(6, 6, 1, groups=6), nn.ReLU(),
        conv(6, 4, 2), nn.Tanh(), nn.Flatten(), nn.Linear(4 * 2**dims, 4),
    )  # fmt: skip


IMAGE, ROW = (3, 8, 8), (5,)
NETS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "mlp": (lambda: mlp(5, 9, 4), ROW),
    "deep": (lambda: mlp(5, 8, 8, 8, 8, 4, act=nn.Sigmoid), ROW),
    "deep-norm": (lambda: mlp(5, 8, 8, 8, 4, norm=True), ROW),
    "no-bias": (lambda: mlp(5, 8, 8, 4, act=nn.Softplus, bias=False), ROW),
    "conv": (conv, IMAGE),
    "conv-padded": (lambda: conv(nn.Sigmoid, padding=1), IMAGE),
    "depthwise": (depthwise, IMAGE),
    "depthwise-padded": (depthwise_padded, IMAGE),
    "residual": (Residual, IMAGE),
    "residual-in-place": (lambda: Residual(inplace=True), IMAGE),
    "dense-block": (lambda: Residual(cat=True), IMAGE),
    "preactivated": (Preactivated, ROW),
    "view": (View, IMAGE),
    "resnet": (resnet, IMAGE),
    "lenet": (LeNet, (3, 8, 8)),
    "transformer": (Transformer, (6, 5)),
    "branches": (Branches, ROW),
    "conv1d": (lambda: convolutions(1), (2, 6)),
    "conv3d": (lambda: convolutions(3), (2, 6, 6, 6)),
}


def build(name: str, seed: int = 0) -> tuple[nn.Module, Tensor]:
    """Return a net with lively normalisation statistics, and a batch for it."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        make, shape = NETS[name]
        net = make()
        for module in net.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                for t in ("running_mean", "weight", "bias"):
                    module.state_dict()[t].normal_()
                module.get_buffer("running_var").uniform_(0.5, 2)
        return net, torch.randn(6, *shape)


def random_mask(net: nn.Module, density: float, seed: int, units: float = 1.0) -> Mask:
    """Return a random mask: weights kept with ``density``, and whole rows (bias too) with ``units``."""
    generator = torch.Generator().manual_seed(seed)
    weights, biases = {}, {}
    for name, w in prunable(net).items():
        rows = torch.rand(len(w), generator=generator) < units
        weights[name] = (torch.rand(w.shape, generator=generator) < density) & rows.view(
            -1, *[1] * (w.ndim - 1)
        )
        bias = name.removesuffix("weight") + "bias"
        if bias in dict(net.named_parameters()):
            biases[bias] = rows
    return Mask(weights, biases)


def size(net: nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())


ANY = {
    "name": st.sampled_from(sorted(NETS)),
    "density": st.floats(0, 0.6),
    "units": st.sampled_from([1.0, 0.6]),
    "training": st.booleans(),
    "with_example": st.booleans(),
    "seed": st.integers(0, 999),
}


@pytest.mark.filterwarnings("ignore:constant units")
@settings(max_examples=25)
@given(**ANY)
def test_it_computes_the_same_function(**drawn: Any) -> None:
    computes_the_same_function(**drawn)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:constant units")
@settings(max_examples=150)
@given(**ANY)
def test_it_computes_the_same_function_of_many_draws(**drawn: Any) -> None:
    computes_the_same_function(**drawn)


def computes_the_same_function(
    name: str, density: float, units: float, training: bool, with_example: bool, seed: int
) -> None:
    net, x = build(name, seed)
    net.train(training)
    mask = random_mask(net, density, seed, units)
    before = {k: v.clone() for k, v in net.state_dict().items()}
    expected = masked(net, mask)(x)
    small = compact(net, mask, x if with_example else None)
    assert type(small) is type(net)
    assert small.training == training
    assert all(
        torch.equal(v, before[k]) for k, v in net.state_dict().items()
    )  # the caller's model is his own
    assert same_state(compact(apply(net, mask), mask, x if with_example else None), small)
    if name != "transformer":  # its rows have a middle axis, which only an example tells
        assert same_state(compact(apply(net, mask), mask), small)
    torch.testing.assert_close(small(x), expected, atol=1e-5, rtol=1e-5)
    assert size(small) <= size(net) + 8  # 8: a bias that folding asked for
    torch.testing.assert_close(compact_training(net, mask).model(x), expected, atol=1e-5, rtol=1e-5)


def same_state(a: nn.Module, b: nn.Module) -> bool:
    ours, theirs = a.state_dict(), b.state_dict()
    return list(ours) == list(theirs) and all(torch.equal(t, theirs[name]) for name, t in ours.items())


@pytest.mark.parametrize(
    "name", ["mlp", "deep-norm", "no-bias", "conv", "resnet", "lenet", "transformer", "conv1d", "conv3d"]
)
def test_whole_neurons_make_every_network_smaller(name: str) -> None:
    """What `natal.prune` removes by neuron leaves physically, batch norm or not, padded or not."""
    net, x = build(name)
    net.eval()
    exclude = {
        "resnet": ("0", "3.conv2", "4.conv2", "4.downsample.0", "5.conv2"),
        "transformer": ("embed", "q", "k", "v", "o", "down"),
        "conv1d": ("0",),
        "conv3d": ("0",),
    }.get(name, ())
    mask = prune(net, 0.5, "magnitude", "layerwise", "neuron", exclude=exclude)
    small = compact(net, mask)
    torch.testing.assert_close(small(x), apply(net, mask)(x), atol=1e-5, rtol=1e-5)
    for weight, stay in mask.units.items():
        assert len(small.get_parameter(weight)) == int(stay.sum())


@pytest.mark.parametrize("control", ["reinit", "fresh-narrow"])
def test_weights_that_a_control_redraws_are_the_ones_compacted(control: str) -> None:
    net, x = build("mlp")
    mask = prune(net, 0.5, "magnitude", "layerwise", "neuron", control=control)
    ticket = apply(net, mask)
    torch.testing.assert_close(compact(net, mask)(x), ticket(x))
    opt = torch.optim.Adam(ticket.parameters(), lr=1e-2)
    train(ticket, Mask({}), opt, x, 5)
    # a ticket that has been trained is not drawn again
    torch.testing.assert_close(compact(ticket, mask)(x), ticket(x))


@pytest.mark.parametrize("make", [apply, to_torch_prune])
@pytest.mark.parametrize("name", ["mlp", "resnet", "transformer"])
def test_a_network_in_training_is_compacted_and_trains_on(
    name: str, make: Callable[[nn.Module, Mask], nn.Module]
) -> None:
    net, x = build(name)
    net.train()
    pruned = make(net, random_mask(net, 0.35, seed=3, units=0.6))
    mask = random_mask(net, 0.35, seed=3, units=0.6)
    opt = torch.optim.AdamW(pruned.parameters(), lr=1e-2, weight_decay=0.1)
    train(pruned, Mask({}), opt, x, 5)
    before = {k: v.clone() for k, v in pruned.state_dict().items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        small, sliced, carried = compact_training(pruned, mask, opt)
        function = compact(pruned, mask)
    assert all(torch.equal(v, before[k]) for k, v in pruned.state_dict().items())
    assert {type(m) for m in function.modules()} == {type(m) for m in net.modules()}
    assert carried is not None
    expected = train(pruned, Mask({}), opt, x, 20)
    assert train(small, sliced, carried, x, 20) == pytest.approx(expected, abs=1e-4)


OPTIMIZERS: dict[str, Callable[[Iterator[nn.Parameter]], torch.optim.Optimizer]] = {
    "adam": lambda p: torch.optim.Adam(p, lr=1e-2),
    "adamw-amsgrad": lambda p: torch.optim.AdamW(p, lr=1e-2, amsgrad=True),
    "sgd": lambda p: torch.optim.SGD(p, lr=3e-2, momentum=0.9, weight_decay=1e-3),
}


def train(net: nn.Module, mask: Mask, optimizer: torch.optim.Optimizer, x: Tensor, steps: int) -> list[float]:
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = F.cross_entropy(net(x), torch.arange(len(x)) % 4 % 3)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        mask.apply_(dict(net.named_parameters()))
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize(
    "name", ["mlp", "deep-norm", "conv-padded", "depthwise", "residual", "preactivated", "no-bias"]
)
def test_it_trains_on_like_the_masked_network(name: str, optimizer: str) -> None:
    net, x = build(name)
    mask = random_mask(net, 0.35, seed=3, units=0.6)
    mask.apply_(dict(net.named_parameters()))
    opt = OPTIMIZERS[optimizer](net.parameters())
    train(net, mask, opt, x, 5)
    small, sliced, carried = compact_training(net, mask, opt)
    assert carried is not None
    assert type(carried) is type(opt)
    assert size(small) < size(net)
    expected = train(net, mask, opt, x, 20)
    assert train(small, sliced, carried, x, 20) == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("optimizer", ["a new one", "carried"])
def test_what_is_removed_inside_kept_units_gets_no_gradient(optimizer: str) -> None:
    net, x = build("mlp")
    mask = prune(net, 0.6, "random")
    ticket, y = apply(net, mask).double(), torch.arange(len(x)) % 3
    x = x.double()
    before = OPTIMIZERS["sgd"](ticket.parameters())
    small, smaller, carried = compact_training(ticket, mask, before if optimizer == "carried" else None, x)
    assert (carried is None) == (optimizer == "a new one")
    runs = [(ticket, before), (small, carried or OPTIMIZERS["sgd"](small.parameters()))]
    assert not smaller.weights["0.weight"].all()
    for _ in range(3):
        norms = []
        for model, stepped in runs:
            stepped.zero_grad()
            F.cross_entropy(model(x), y).backward()  # type: ignore[no-untyped-call]
            norms.append(nn.utils.clip_grad_norm_(model.parameters(), 0.01).item())
            stepped.step()
        assert norms[0] == pytest.approx(norms[1], rel=1e-12)
    for name, kept in smaller.items().items():
        assert not small.get_parameter(name)[~kept].any()
    torch.testing.assert_close(small(x), ticket(x))


@pytest.mark.filterwarnings("error")
def test_a_carried_scheduler_counts_the_steps_of_its_own_optimizer() -> None:
    net, x = build("mlp")
    optimizer = OPTIMIZERS["sgd"](net.parameters())
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda epoch: 0.5**epoch)
    mask = prune(net, 0.5, "magnitude")
    small = compact_training(net, mask, optimizer, x, scheduler=scheduler)
    assert small.optimizer is not None
    F.cross_entropy(small.model(x), torch.arange(len(x)) % 3).backward()  # type: ignore[no-untyped-call]
    small.optimizer.step()
    small.scheduler.step()  # torch warns if it does not know of the step
    assert (small.scheduler.get_last_lr(), scheduler.get_last_lr()) == ([0.015], [0.03])


def test_a_fresh_optimizer_would_train_differently() -> None:
    net, x = build("mlp")
    mask = random_mask(net, 0.35, seed=3, units=0.6)
    opt = torch.optim.Adam(net.parameters(), lr=1e-2)
    train(net, mask, opt, x, 5)
    small, sliced, _ = compact_training(net, mask, opt)
    other = train(small, sliced, torch.optim.Adam(small.parameters(), lr=1e-2), x, 20)
    assert other != pytest.approx(train(net, mask, opt, x, 20), abs=1e-4)


def test_neurons_leave_whole() -> None:
    net = mlp(194, 128, 97)
    hidden = torch.arange(128) % 2 == 0
    mask = remove_neurons(prunable(net), {"0.weight": hidden})
    small = compact(net, mask)
    assert [tuple(p.shape) for p in small.parameters()] == [(64, 194), (64,), (97, 64), (97,)]
    first, second = layer_of(small, "0", nn.Linear), layer_of(small, "2", nn.Linear)
    assert (first.in_features, first.out_features, second.in_features) == (194, 64, 64)
    assert torch.equal(first.weight, layer_of(net, "0", nn.Linear).weight[hidden])
    trained = compact_training(net, mask)
    assert trained.mask.sparsity == 0
    assert trained.optimizer is None
    assert {n: tuple(m.shape) for n, m in trained.mask.items().items()} == {
        "0.weight": (64, 194), "2.weight": (97, 64), "0.bias": (64,)
    }  # fmt: skip


def set_(tensor: Tensor, values: list[Any]) -> None:
    with torch.no_grad():
        tensor.copy_(torch.tensor(values))


@pytest.mark.parametrize(("bias", "folded"), [(2.0, 0.5 + 3 * 2.0), (-2.0, 0.5)])
def test_a_constant_unit_is_folded_into_the_next_bias(bias: float, folded: float) -> None:
    net = mlp(1, 2, 1)
    set_(net.get_parameter("0.bias"), [1.0, bias])
    set_(net.get_parameter("2.weight"), [[1.0, 3.0]])
    set_(net.get_parameter("2.bias"), [0.5])
    mask = Mask({"0.weight": torch.tensor([[True], [False]])})
    small = compact(net, mask)
    assert small[0].out_features == 1
    assert small.get_parameter("2.bias").tolist() == [folded]
    # its bias would have learned: for training it must stay
    assert compact_training(net, mask).model.get_submodule("0").out_features == 2


def test_a_kept_bias_of_zero_will_learn_and_so_stays_for_training() -> None:
    net = mlp(1, 2, 1)
    nn.init.zeros_(net.get_parameter("0.bias"))
    mask = Mask({"0.weight": torch.tensor([[True], [False]])})
    assert compact(net, mask)[0].out_features == 1
    assert compact_training(net, mask).model.get_submodule("0").out_features == 2
    masked_bias = Mask(mask.weights, {"0.bias": torch.tensor([True, False])})
    assert compact_training(net, masked_bias).model.get_submodule("0").out_features == 1


class Written(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.a(x))
        x.masked_fill_(x > 0.2, 0.5)  # it changes what b reads
        out: Tensor = self.c(torch.relu(self.b(x)))
        return out


def test_a_tensor_written_to_is_not_constant() -> None:
    net, x = Written(), torch.randn(5, 3)
    nn.init.ones_(net.a.bias)
    only_first = torch.ones(3, 3, dtype=torch.bool)
    only_first[0, 1:] = False
    mask = Mask(
        {"a.weight": masked_first_channel(net, "a.weight").weights["a.weight"], "b.weight": only_first}
    )
    small = compact(net, mask)
    torch.testing.assert_close(small(x), masked(net, mask)(x))


class Stateful(nn.Module):
    """A network that keeps a running mean of its units and reads it."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.a, self.b, self.way = nn.Linear(3, 4), nn.Linear(4, 2), way
        self.mean: Tensor
        self.register_buffer("mean", torch.zeros(4))

    @torch.no_grad()
    def follow(self, h: Tensor) -> None:
        mean = self.mean
        match self.way:
            case "in place":
                mean.mul_(0.9).add_(h.mean(0), alpha=0.1)
            case "data":
                mean.data.mul_(0.9).add_(h.mean(0), alpha=0.1)
            case "copied":
                mean.copy_(0.9 * mean + 0.1 * h.mean(0))
            case "another":
                self.mean = 0.9 * mean + 0.1 * h.mean(0)
            case "part":
                mean[:2] += h.mean(0)[:2]

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x)
        self.follow(h)
        out: Tensor = self.b(h + self.mean)
        return out


@pytest.mark.filterwarnings("ignore:constant units")
@pytest.mark.parametrize("way", ["in place", "data", "copied", "another", "part"])
def test_what_a_pass_changes_is_not_constant(way: str) -> None:
    net, x = Stateful(way).double().eval(), torch.randn(5, 3, dtype=torch.float64)
    nn.init.ones_(net.a.bias)  # of the first unit nothing else is left
    mask = masked_first_channel(net, "a.weight")
    small, whole = compact(net, mask, x), masked(net, mask)
    for _ in range(3):
        torch.testing.assert_close(small(x), whole(x))


@dataclass
class Answer:
    logits: Any
    more: Any = None


class Bare:
    def __init__(self, logits: Tensor) -> None:
        self.logits, self.me = logits, self


class Slotted:
    __slots__ = ("logits",)

    def __init__(self, logits: Tensor) -> None:
        self.logits = logits


RETURNED: dict[str, Callable[[Tensor], Any]] = {
    "a tuple": lambda t: (None, t, 3),
    "a mapping": lambda t: UserDict(logits=t),
    "a dataclass": Answer,
    "an object": Bare,
    "slots": Slotted,
    "all of them": lambda t: {"a": [Answer(None, (Bare(t.sum(1)), Slotted(t)))]},
    "a distribution": lambda t: torch.distributions.Categorical(logits=t, validate_args=False),
}


class Returning(nn.Module):
    """A network whose answer lies in something, and whose code states a width."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.a, self.b, self.c, self.kind = nn.Linear(3, 4), nn.Linear(4, 4), nn.Linear(4, 2), kind

    def forward(self, x: Tensor) -> Any:
        h = self.b(self.a(x)).tanh()
        return RETURNED[self.kind](self.c(h / h.shape[1]))


@pytest.mark.parametrize("kind", RETURNED)
@pytest.mark.filterwarnings(
    "ignore:units of these layers are kept whole"
)  # a distribution normalises its logits
def test_whatever_a_network_returns_is_compared(kind: str) -> None:
    net, x = Returning(kind).double().eval(), torch.randn(5, 3, dtype=torch.float64)
    mask = prune(net, 0.5, "magnitude", "layerwise", "neuron", batch=(x, None))
    with pytest.warns(UserWarning, match="'b.weight': the smaller network computes something else$"):
        small = compact(net, mask, x)
    assert (small.a.out_features, small.b.out_features) == (2, 4)
    found, expected = (tensors_in(model(x)) for model in (small, masked(net, mask)))
    assert expected
    torch.testing.assert_close(found, expected)


def test_a_network_that_returns_no_tensor_is_refused() -> None:
    net = Returning("a tuple")
    net.register_forward_hook(lambda module, inputs, output: "nothing")
    mask = masked_first_channel(net, "a.weight")
    with pytest.raises(
        NatalError, match=r"^Returning returns no tensor but a str, so that nothing can be followed$"
    ):
        compact(net, mask, torch.randn(5, 3))


class Insisting(nn.Module):
    """A network whose code states its precision or its number of rows, and divides by its width."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.a, self.b, self.kind = nn.Linear(3, 4), nn.Linear(4, 2), kind

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x)
        if self.kind == "precision":
            h = h * (h @ torch.full((h.shape[1], 1), 1 / h.shape[1], dtype=torch.float32))
        elif self.kind == "rows":
            h = h.view(5, -1) / h.shape[1]
        out: Tensor = self.b(h)
        return out


@pytest.mark.parametrize("kind", ["precision", "rows"])
def test_code_that_insists_on_its_precision_or_rows_is_compared_at_that(kind: str) -> None:
    net, x = Insisting(kind).eval(), torch.randn(5, 3)
    mask = prune(net, 0.5, "magnitude", "layerwise", "neuron", batch=(x, None))
    with pytest.warns(UserWarning, match="'a.weight': the smaller network computes something else$"):
        small = compact(net, mask, x)
    torch.testing.assert_close(small(x), masked(net, mask)(x))


def test_a_network_that_cannot_be_compared_is_refused() -> None:
    net, x = Insisting("once").eval(), torch.randn(5, 3)
    seen: list[int] = []

    def once(module: nn.Module, inputs: Any) -> None:
        seen.append(1)
        if len(seen) > 1:
            raise ValueError("this way only once")

    net.register_forward_pre_hook(once)
    with pytest.raises(NatalError, match=r"^Insisting runs once and not again, .*: this way only once$"):
        compact(net, masked_first_channel(net, "a.weight"), x)


class Aliased(nn.Module):
    """A tensor is changed through another that shares its memory."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.a, self.b, self.c, self.kind = nn.Linear(4, 6), nn.Linear(6, 3), nn.Linear(6, 3), kind
        self.same, self.dropout, self.flat = nn.Identity(), nn.Dropout(), nn.Flatten()

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        match self.kind:
            case "itself":
                y = x
            case "identity":
                y = self.same(x)
            case "dropout":
                y = F.dropout(self.dropout(x), 0.5, False)
            case "contiguous":
                y = x.contiguous()
            case "flattened":
                y = self.flat(torch.flatten(x, 1))
        y = y.masked_fill_(y < 0, 0.5) if self.kind == "contiguous" else F.relu_(y)
        out: Tensor = self.b(x) + self.c(y)
        return out


@pytest.mark.filterwarnings("ignore:constant units")
@pytest.mark.parametrize("kind", ["itself", "identity", "dropout", "contiguous", "flattened"])
def test_a_tensor_changed_under_another_name_is_not_constant(kind: str) -> None:
    net, x = Aliased(kind).eval(), torch.randn(5, 4)
    nn.init.constant_(net.a.bias, -1.0)
    mask = masked_first_channel(net, "a.weight")
    torch.testing.assert_close(compact(net, mask)(x), masked(net, mask)(x))


def test_an_applied_network_computes_under_its_own_mask_whatever_is_loaded_into_it() -> None:
    net, x = build("mlp")
    ticket = apply(net, random_mask(net, 0.4, seed=1))
    ticket.load_state_dict({**ticket.state_dict(), **build("mlp", seed=5)[0].state_dict()})
    torch.testing.assert_close(compact(ticket, dense(prunable(net)))(x), ticket(x))


def test_a_layer_without_bias_gains_one_when_folding_needs_it() -> None:
    net = nn.Sequential(nn.Linear(1, 2), nn.Sigmoid(), nn.Linear(2, 1, bias=False))
    mask = Mask({"0.weight": torch.tensor([[True], [False]])})
    small = compact(net, mask)
    assert small[2].bias is not None
    assert compact(net, dense(prunable(net)))[2].bias is None
    torch.testing.assert_close(small(torch.ones(3, 1)), masked(net, mask)(torch.ones(3, 1)))


def masked_first_channel(net: nn.Module, name: str) -> Mask:
    kept = torch.ones_like(net.get_parameter(name), dtype=torch.bool)
    kept[0] = False
    return Mask({name: kept})


@pytest.mark.parametrize(
    ("padding", "mode", "bias", "width"),
    [
        (0, "zeros", 1.0, 3),
        (1, "zeros", 1.0, 4),
        (1, "zeros", -1.0, 3),
        (1, "reflect", 1.0, 3),
        ("same", "zeros", 1.0, 4),
    ],
)
def test_a_constant_channel_survives_zero_padding_unless_it_is_zero(
    padding: int | str, mode: Literal["zeros", "reflect"], bias: float, width: int
) -> None:
    first, second = nn.Conv2d(2, 4, 3), nn.Conv2d(4, 3, 3, padding=padding, padding_mode=mode)
    net = nn.Sequential(first, nn.ReLU(), second)
    set_(net.get_parameter("0.bias"), [bias, 0.1, 0.2, 0.3])
    mask, x = masked_first_channel(net, "0.weight"), torch.randn(2, 2, 7, 7)
    small = compact(net, mask)
    assert small[0].out_channels == small[2].in_channels == width
    torch.testing.assert_close(small(x), masked(net, mask)(x), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("training", "width"), [(False, 3), (True, 4)])
def test_batch_norm_is_folded_through_in_evaluation_mode_only(training: bool, width: int) -> None:
    net = nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 1)).train(training)
    set_(net.get_buffer("1.running_mean"), [1.0, 2.0, 3.0, 4.0])
    small = compact(net, masked_first_channel(net, "0.weight"))
    assert small[0].out_features == small[1].num_features == small[3].in_features == width
    assert len(small.get_buffer("1.running_mean")) == width


@pytest.mark.parametrize(("training", "width"), [(False, 3), (True, 4)])
def test_a_constant_is_folded_through_dropout_in_evaluation_mode_only(training: bool, width: int) -> None:
    net = nn.Sequential(nn.Linear(2, 4), nn.Sigmoid(), nn.Dropout(0.5), nn.Linear(4, 1)).train(training)
    assert compact(net, masked_first_channel(net, "0.weight"))[0].out_features == width


@pytest.mark.parametrize(("padding", "width"), [(0, 3), (1, 4)])
def test_an_average_over_padding_is_not_constant(padding: int, width: int) -> None:
    net = nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.Sigmoid(), nn.AvgPool2d(2, padding=padding), nn.Conv2d(4, 3, 1)
    )
    mask, x = masked_first_channel(net, "0.weight"), torch.randn(2, 2, 8, 8)
    small = compact(net, mask)
    assert small[0].out_channels == width
    torch.testing.assert_close(small(x), masked(net, mask)(x))


class Stacked(nn.Module):
    """A concatenation of positions, not of channels."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.norm = nn.Conv2d(2, 4, 3), nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4)
        self.head = nn.Conv2d(4, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.norm(torch.cat([self.a(x), self.b(x)], dim=2)))
        return out


def test_positions_put_side_by_side_keep_their_channels() -> None:
    net, x = Stacked().eval(), torch.randn(2, 2, 6, 6)
    mask = masked_first_channel(net, "a.weight")
    small = compact(net, mask)
    assert small.a.out_channels == 4  # the other half of the picture still shows channel 0
    torch.testing.assert_close(small(x), masked(net, mask)(x))
    gone = torch.arange(4) > 0
    both = {"b.weight": mask.weights["a.weight"]}
    mask = Mask({**mask.weights, **both}, {"a.bias": gone, "b.bias": gone})
    small = compact(net, mask)
    assert (small.a.out_channels, small.b.out_channels, small.norm.num_features, small.head.in_channels) == (
        3,
    ) * 4
    torch.testing.assert_close(small(x), masked(net, mask)(x))


def test_the_unit_that_stays_of_a_layer_nobody_reads_brings_back_no_more_than_it_reads() -> None:
    net = mlp(3, 4, 4, 2)
    mask = dense(prunable(net))
    mask.weights["4.weight"].fill_(False)
    mask.weights["2.weight"][:, [0, 1, 3]] = False  # unit 2 is all that the second layer reads
    assert [m.out_features for m in compact(net, mask) if isinstance(m, nn.Linear)] == [1, 1, 2]


def test_units_tied_by_an_addition_go_only_together() -> None:
    net, x = build("residual")
    net.eval()
    assert isinstance(net, Residual)
    head = torch.ones(4, 6, dtype=torch.bool)
    head[:, 0] = False  # nobody reads channel 0 after the addition, but the block reads it before
    alone = compact(net, Mask({"head.weight": head}))
    assert (alone.stem.out_channels, alone.two.out_channels) == (6, 6)
    block = torch.ones(6, 6, 3, 3, dtype=torch.bool)
    block[:, 0] = False
    both = compact(net, Mask({"head.weight": head, "one.weight": block}))
    assert (both.stem.out_channels, both.norm.num_features, both.one.in_channels) == (5, 5, 5)
    assert (both.two.out_channels, both.head.in_features, both.one.out_channels) == (5, 5, 6)
    torch.testing.assert_close(both(x), masked(net, Mask({"head.weight": head, "one.weight": block}))(x))


def test_one_unit_of_a_collapsed_layer_stays() -> None:
    net, x = build("deep")
    mask = Mask({name: torch.zeros_like(w, dtype=torch.bool) for name, w in prunable(net).items()})
    small = compact(net, mask)
    assert [m.out_features for m in small.children() if isinstance(m, nn.Linear)] == [1, 1, 1, 1, 4]
    torch.testing.assert_close(small(x), masked(net, mask)(x))


@pytest.mark.parametrize("name", NETS)
def test_nothing_to_remove_gives_an_equal_copy(name: str) -> None:
    net, x = build(name)
    small = compact(net.eval(), dense(prunable(net)))
    assert small is not net
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), small.parameters(), strict=True))
    assert torch.equal(small(x), net(x))


class Reused(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.a, self.b, self.c, self.kind = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2), kind
        self.norm = nn.LayerNorm(4)
        self.attention = nn.MultiheadAttention(4, 2)
        if kind == "tied":
            self.b.weight = self.a.weight
        if kind == "hooked":
            self.b.register_forward_hook(lambda module, inputs, output: output.flip(1))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.a(x))
        match self.kind:
            case "twice":
                x = self.a(x)
            case "norm":
                x = self.norm(x)
            case "reshaped":
                x = x.reshape(-1, 2, 2).transpose(1, 2).reshape(-1, 4)
            case "direct":
                x = F.linear(x, self.b.weight, self.b.bias) + self.b(x)
            case "tied" | "hooked":
                x = self.b(x)
            case "width":
                x = x * x.size(1)
            case "written":
                x.masked_fill_(x > 0.2, 0.5)
            case "attention":
                x = self.attention(x, x, x)[0]
        out: Tensor = self.c(x)
        return out


NAMED = {
    "twice": "'a.weight': tied to numbers that stay in 'a'",
    "norm": "'norm': it runs over units, so that a constant one counts",
    "reshaped": "",
    "direct": "'b.weight': the smaller network computes something else",
    "tied": "'a.weight': tied to numbers that stay in 'a'",
    "hooked": "'b.weight': the smaller network computes something else",
    "width": "'a.weight': the smaller network computes something else",
    "written": "",
    "attention": "'a.weight': without them its code fails: was expecting embedding dimension of 4, but got 3",
}


@pytest.mark.parametrize("kind", NAMED)
def test_what_cannot_be_cut_keeps_its_width(kind: str) -> None:
    net, x = Reused(kind), torch.randn(5, 4)
    with torch.no_grad():
        net.a.bias[0] = 1 if kind == "norm" else -1
    mask = masked_first_channel(net, "a.weight")
    mask = Mask({**mask.weights, "b.weight": mask.weights["a.weight"]} if kind != "tied" else mask.weights)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        small = compact(net, mask)
    assert len(seen) == (NAMED[kind] != "")
    assert all(NAMED[kind] in str(warning.message) for warning in seen)
    assert small.a.out_features == (3 if kind in ("hooked", "direct") else 4)
    torch.testing.assert_close(small(x), masked(net, mask)(x))


def test_a_hook_survives_but_a_plain_layer_before_it_still_shrinks() -> None:
    net = mlp(3, 4, 4, 2)
    net[4].register_forward_hook(lambda module, inputs, output: 2 * output)
    mask, x = masked_first_channel(net, "0.weight"), torch.randn(5, 3)
    small = compact(net, mask)
    assert small[0].out_features == 3
    torch.testing.assert_close(small(x), masked(net, mask)(x))


def widths(net: nn.Module) -> tuple[int, int, int]:
    before, norm, after = (
        layer_of(net, "0", nn.Linear),
        layer_of(net, "1", nn.BatchNorm1d),
        layer_of(net, "2", nn.Linear),
    )
    return before.out_features, norm.num_features, after.in_features


def test_an_example_reveals_sequences() -> None:
    # (rows, steps, features): batch norm acts on the steps, so its width stays
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)).eval()
    set_(
        net.get_buffer("1.running_mean"), [0.0, 1.0, 2.0, 3.0]
    )  # so that a constant unit differs from step to step
    mask, x = masked_first_channel(net, "0.weight"), torch.randn(5, 4, 3)
    small = compact(net, mask, x)
    assert widths(small) == (4, 4, 4)
    mask = Mask({**mask.weights, "2.weight": torch.ones(2, 4, dtype=torch.bool)})
    mask.weights["2.weight"][:, 0] = False
    small = compact(net, mask, x)
    assert widths(small) == (3, 4, 3)
    torch.testing.assert_close(small(x), masked(net, mask)(x))


class Branching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.a(x) if x.sum() > 0 else x


@pytest.mark.parametrize(
    ("net", "mask", "message"),
    [
        (Branching(), Mask({"a.weight": torch.ones(2, 2, dtype=torch.bool)}), "forward pass of Branching"),
        (mlp(2, 3), Mask({"0.wieght": torch.ones(3, 2, dtype=torch.bool)}), "did you mean '0.weight'"),
        (mlp(2, 3), Mask({"0.weight": torch.ones(2, 3, dtype=torch.bool)}), "shape (3, 2)"),
        (mlp(2, 3), Mask({"0.weight": torch.ones(3, 2)}), "torch.bool"),
    ],
)
def test_bad_input_is_one_sentence(net: nn.Module, mask: Mask, message: str) -> None:
    with pytest.raises(NatalError) as error:
        compact(net, mask)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_wrong_example_prints_no_traceback(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(NatalError, match="cannot be run on the example"):
        compact(mlp(2, 3, 1), dense(prunable(mlp(2, 3, 1))), torch.ones(1, 5))
    assert capfd.readouterr() == ("", "")


def test_weights_that_hooks_compute_are_counted_after_a_pass() -> None:
    net, x = build("mlp")
    by_torch = to_torch_prune(net, prune(net, 0.5, "magnitude"))
    by_torch(x)  # leaves a product with a gradient in every layer
    assert savings(net, by_torch, x, repeats=1).parameters == (size(net), size(net))


def test_networks_of_other_layers_can_be_compared() -> None:
    saved = savings(mlp(5, 8, 3), mlp(5, 3), torch.ones(2, 5), repeats=1)
    assert saved.layers == {"0": ((48, 18), (40, 15)), "2": ((27, 0), (24, 0))}


def test_a_wrong_example_and_a_foreign_optimizer_are_refused() -> None:
    net = mlp(2, 3, 1)
    with pytest.raises(NatalError, match="cannot be run on the example"):
        compact(net, dense(prunable(net)), torch.ones(1, 5))
    with pytest.raises(NatalError, match="cannot be run on the example"):
        savings(net, mlp(5, 1), torch.ones(1, 2))
    with pytest.raises(NatalError, match=r"must be a torch\.optim\.Optimizer, got str"):
        compact_training(net, dense(prunable(net)), "adam")  # type: ignore[arg-type]
    with pytest.raises(NatalError, match="no parameter of this Sequential"):
        compact_training(net, dense(prunable(net)), torch.optim.SGD(mlp(2, 3).parameters()))


def test_an_input_without_rows_is_asked_for() -> None:
    net, x = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 2, 1)), torch.randn(3, 5, 5)
    mask = prune(net, 0.5, "magnitude", granularity="neuron", batch=(x, None))
    with pytest.raises(
        NatalError, match=r"made of two rows, as the mask knows its inputs\); pass an example$"
    ) as error:
        compact(net, mask)
    assert "\n" not in str(error.value)
    torch.testing.assert_close(compact(net, mask, x)(x), masked(net, mask)(x))


def test_frozen_parameters_stay_frozen_and_gradients_are_dropped() -> None:
    net = mlp(2, 4, 1)
    net[0].weight.requires_grad_(False)
    net(torch.ones(1, 2)).sum().backward()
    small = compact(net, masked_first_channel(net, "0.weight"))
    assert not small[0].weight.requires_grad
    assert small[2].weight.requires_grad
    assert all(p.grad is None for p in small.parameters())
    assert net[2].weight.grad is not None


def test_the_global_random_state_is_untouched() -> None:
    net, x = build("conv")
    state = torch.get_rng_state()
    compact(net.train(), random_mask(net, 0.3, 1), x)
    savings(net, net, x, repeats=1)
    assert torch.equal(torch.get_rng_state(), state)


def through_export(net: nn.Module, x: Tensor) -> Tensor:
    out: Tensor = torch.export.export(net, (x,)).module()(x)
    return out


def through_pickle(net: nn.Module, x: Tensor) -> Tensor:
    out: Tensor = pickle.loads(pickle.dumps(net))(x)
    return out


def through_save(net: nn.Module, x: Tensor) -> Tensor:
    buffer = io.BytesIO()
    torch.save(net, buffer)
    buffer.seek(0)
    out: Tensor = torch.load(buffer, weights_only=False)(x)
    return out


def through_onnx(net: nn.Module, x: Tensor) -> Tensor:
    buffer = io.BytesIO()
    torch.onnx.export(net, (x,), buffer, dynamo=True, verbose=False)  # type: ignore[arg-type]
    model = onnx.load_from_string(buffer.getvalue())
    onnx.checker.check_model(model)
    (result,) = ReferenceEvaluator(model).run(None, {model.graph.input[0].name: x.numpy()})
    return torch.from_numpy(result)


WAYS = [through_export, through_pickle, through_save, through_onnx, lambda net, x: copy.deepcopy(net)(x)]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("name", "way"),
    [
        pytest.param(name, way, marks=pytest.mark.slow)
        if way is through_onnx and name != "conv"
        else (name, way)
        for name in ("mlp", "conv", "residual", "resnet", "transformer", "conv1d")
        for way in WAYS
    ],
)
def test_it_travels(name: str, way: Callable[[nn.Module, Tensor], Tensor]) -> None:
    net, x = build(name)
    net.eval()
    mask = random_mask(net, 0.4, seed=1, units=0.5)
    small = compact(net, mask)
    assert size(small) < size(net)
    torch.testing.assert_close(way(small, x), masked(net, mask)(x), atol=1e-5, rtol=1e-5)


def test_savings_are_counted_from_shapes() -> None:
    net = nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 9, 3))
    kept = torch.ones(3, 36, dtype=torch.bool)
    kept[:, 9:18] = False  # channel 1's nine positions
    small = compact(net, Mask({"3.weight": kept}))
    saved = savings(net, small, torch.randn(7, 2, 5, 5), repeats=3)
    assert saved.parameters == (4 * 18 + 4 + 3 * 36 + 3, 3 * 18 + 3 + 3 * 27 + 3)
    assert saved.multiply_adds == (9 * 4 * 18 + 3 * 36, 9 * 3 * 18 + 3 * 27)
    assert saved.layers["0"] == ((76, 57), (648, 486))
    assert min(saved.seconds) > 0
    assert "187 -> 141" in str(saved)
    assert "times as fast" in str(saved)
    with pytest.raises(NatalError, match="repeats must be at least 1, got 0"):
        savings(net, small, torch.randn(7, 2, 5, 5), repeats=0)


def test_the_readmes_lines_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    readme = (ROOT / "README.md").read_text("utf-8")
    (text,) = (t for t in re.findall(r"```python\n(.*?)```", readme, re.S) if "natal.compact(" in t)
    torch.manual_seed(0)
    names: dict[str, Any] = {
        "natal": natal,
        "F": F,
        "model": mlp(20, 30, 30, 4),
        "x": torch.randn(8, 20),
        "y": torch.arange(8) % 4,
    }
    exec(text, names)
    torch.testing.assert_close(names["small"](names["x"]), names["ticket"](names["x"]))
    said = capsys.readouterr().out
    assert "sparsity: realised 0.9" in said
    assert "times as fast" in said
    assert natal.load_ticket("ticket.safetensors").mask.kept == names["mask"].kept


def test_the_example_runs_as_it_stands(capsys: pytest.CaptureFixture[str]) -> None:
    runpy.run_path(str(ROOT / "examples" / "smaller_network.py"))
    said = capsys.readouterr().out
    assert "empties hidden.weight from sparsity 0.9385 on" in said
    assert "total   37,473 -> 21,705  42.1 % less" in said


def test_the_benchmark_says_what_it_beat(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    benchmark = runpy.run_path(str(ROOT / "benchmarks" / "compact.py"))
    monkeypatch.setitem(benchmark["main"].__globals__, "REPEATS", 1)
    benchmark["main"]()
    said = capsys.readouterr().out
    assert "baseline: the masked network" in said
    assert len(re.findall(r"^.* times as fast, +[\d.]+ times fewer multiply-adds$", said, re.M)) == 5
    differences = re.findall(r"differ by at most ([\d.e+-]+)", said)
    assert len(differences) == 5
    assert all(float(d) < 1e-5 for d in differences)


# (layer, inputs, multiply-adds of one row, what is named as not counted)
COUNTED: dict[str, tuple[Callable[[], nn.Module], tuple[Any, ...], int, tuple[str, ...]]] = {
    "transposed": (lambda: nn.ConvTranspose2d(3, 5, 2, 2), (torch.ones(2, 3, 4, 4),), 16 * 3 * 5 * 4, ()),
    "grouped": (lambda: nn.Conv2d(4, 8, 3, groups=2), (torch.ones(2, 4, 5, 5),), 9 * 8 * 2 * 9, ()),
    "bilinear": (lambda: nn.Bilinear(3, 4, 5), (torch.ones(2, 3), torch.ones(2, 4)), 3 * 4 * 5, ()),
    "recurrent": (lambda: nn.GRU(3, 4, batch_first=True), (torch.ones(2, 6, 3),), 6 * 3 * 4 * (3 + 4), ()),
    "embedding": (lambda: nn.Embedding(9, 4), (torch.ones(2, 3, dtype=torch.long),), 0, ()),
    "bags": (lambda: nn.EmbeddingBag(9, 4), (torch.ones(2, 3, dtype=torch.long),), 0, ("_embedding_bag",)),
    "norm": (lambda: nn.LayerNorm(4), (torch.ones(2, 4),), 0, ("native_layer_norm",)),
    "slope": (lambda: nn.PReLU(4), (torch.ones(2, 4),), 0, ("_prelu_kernel",)),
}


@pytest.mark.parametrize("kind", COUNTED)
def test_savings_count_every_layer_with_parameters_or_name_it(kind: str) -> None:
    make, inputs, expected, named = COUNTED[kind]
    found = natal.savings(make(), make(), inputs, repeats=1)
    parameters = sum(p.numel() for p in make().parameters())
    assert found.multiply_adds == (expected, expected)
    assert found.parameters == (parameters, parameters)
    assert found.layers[""] == ((parameters, parameters), (expected, expected))
    assert found.uncounted == named
    for name in named:
        assert f"not counted as multiply-adds: {name}" in str(found)


@pytest.mark.parametrize(("dtype", "size"), [(torch.float32, 4), (torch.float64, 8), (torch.bfloat16, 2)])
def test_activation_memory_goes_by_the_width_of_its_numbers(dtype: torch.dtype, size: int) -> None:
    net = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Flatten(), nn.Linear(8, 2)).to(dtype)
    found = natal.savings(net, net, torch.ones(5, 3, dtype=dtype), repeats=1)
    assert found.activations == (size * (8 + 8 + 2),) * 2  # a view takes no memory of its own


def test_constants_before_a_large_layer_are_folded() -> None:
    net = nn.Sequential(nn.Linear(8, 128), nn.ReLU(), nn.Linear(128, 97)).eval()
    mask = dense(prunable(net))
    mask.weights["0.weight"][::2] = False  # constant, and not zero
    x = torch.randn(5, 8)
    small = compact(net, mask, x)
    assert layer_of(small, "0", nn.Linear).out_features == 64
    torch.testing.assert_close(small(x), masked(net, mask)(x))
