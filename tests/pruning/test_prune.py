from __future__ import annotations

import copy
import io
import math
import pickle
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import natal
from natal.errors import NatalError
from natal.pruning.apply import apply, prune
from natal.pruning.mask import Mask
from networks import NETWORKS, network

torch.set_num_threads(1)

OPTIMISERS: dict[str, Callable[[Iterator[nn.Parameter]], torch.optim.Optimizer]] = {
    "momentum": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.1),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.01, momentum=0.5, weight_decay=0.1, centered=True),
}


def zeros_hold(net: nn.Module, mask: Mask) -> bool:
    """Removed entries are zero as stored, and in the file."""
    stored = {name: p.detach().clone() for name, p in net.named_parameters()}
    filed = net.state_dict()
    return all(
        not stored[name][~kept].any() and not filed[name][~kept].any() for name, kept in mask.items().items()
    )


def train(net: nn.Module, batch: tuple[Tensor, Tensor], optimiser: str = "momentum", steps: int = 5) -> None:
    x, y = batch
    net.train()
    steps_taken = OPTIMISERS[optimiser](net.parameters())
    for _ in range(steps):
        steps_taken.zero_grad()
        F.cross_entropy(net(x), y).backward()  # type: ignore[no-untyped-call]
        steps_taken.step()


def test_the_front_door() -> None:
    model, batch = network("conv")
    assert natal.prune is prune
    assert natal.apply is apply
    mask = natal.prune(model, sparsity=0.9, criterion="synflow", batch=batch)
    assert mask.total - mask.kept == int(0.9 * mask.total)
    net = natal.apply(model, mask)
    assert zeros_hold(net, mask)
    assert isinstance(net, type(model))
    assert repr(net) == repr(model)
    assert list(net.state_dict()) == list(model.state_dict())


@pytest.mark.parametrize("optimiser", OPTIMISERS)
@pytest.mark.parametrize("kind", NETWORKS)
def test_pruned_weights_stay_zero_in_any_loop(kind: str, optimiser: str) -> None:
    model, batch = network(kind)
    mask = prune(model, 0.8, "snip", batch=batch)
    net = apply(model, mask)
    before = {n: p.clone() for n, p in net.named_parameters()}
    train(net, batch, optimiser)
    assert zeros_hold(net, mask)
    assert all(
        not torch.equal(p, before[n])
        for n, p in net.named_parameters()
        if n in mask.weights and mask.weights[n].any()
    )


def test_it_trains_exactly_as_zeroing_after_every_step_does() -> None:
    model, (x, y) = network("mlp")
    mask = prune(model, 0.5, "magnitude")
    net, plain = apply(model, mask), copy.deepcopy(model)
    parameters = dict(plain.named_parameters())
    mask.apply_(parameters)
    optimiser = torch.optim.Adam(plain.parameters(), lr=0.01)
    other = torch.optim.Adam(net.parameters(), lr=0.01)
    for _ in range(10):
        optimiser.zero_grad()
        F.cross_entropy(plain(x), y).backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        mask.apply_(parameters)
        other.zero_grad()
        F.cross_entropy(net(x), y).backward()  # type: ignore[no-untyped-call]
        other.step()
    assert torch.equal(net(x), plain(x))


@pytest.mark.parametrize("kind", NETWORKS)
@pytest.mark.parametrize("way", ["deepcopy", "pickle", "torch.save", "state_dict"])
def test_the_masked_copy_can_be_copied_and_stored(kind: str, way: str) -> None:
    model, batch = network(kind)
    mask = prune(model, 0.7, "magnitude")
    net = apply(model, mask)
    train(net, batch, steps=2)
    if way == "deepcopy":
        again = copy.deepcopy(net)
    elif way == "pickle":
        again = pickle.loads(pickle.dumps(net))
    elif way == "torch.save":
        buffer = io.BytesIO()
        torch.save(net, buffer)
        buffer.seek(0)
        again = torch.load(buffer, weights_only=False)
    else:
        again = apply(model, mask)
        again.load_state_dict(net.state_dict())
    assert torch.equal(again.eval()(batch[0]), net.eval()(batch[0]))
    train(again, batch)
    assert zeros_hold(again, mask)
    assert torch.equal(net(batch[0]), net(batch[0]))


def test_apply_can_be_repeated() -> None:
    model, _ = network("conv")
    first, second = (prune(model, 0.5, "random", seed=s) for s in (1, 2))
    net = apply(apply(model, first), second)
    assert zeros_hold(net, first)
    assert zeros_hold(net, second)
    again = pickle.loads(pickle.dumps(net))
    assert zeros_hold(again, second)


def test_a_pruned_network_can_be_pruned_again() -> None:
    model, _ = network("deep")
    net = apply(model, prune(model, 0.5, "synflow"))
    assert prune(net, 0.9, "magnitude").kept == prune(model, 0.9, "magnitude").kept


def test_shared_weights_are_scored_once_and_masked_everywhere() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 3)
            self.b.weight = self.a.weight

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.c(torch.relu(self.b(torch.relu(self.a(x)))))
            return out

    with torch.random.fork_rng():
        torch.manual_seed(0)
        model, x = Tied(), torch.randn(6, 4)
    batch = (x, torch.arange(6) % 3)
    for criterion in ("synflow", "snip", "magnitude"):
        mask = prune(model, 0.5, criterion, batch=batch)
        assert list(mask.weights) == ["a.weight", "c.weight"]
        assert mask.total == 28
    net = apply(model, mask)
    assert torch.equal(net.get_parameter("a.weight"), net.get_parameter("b.weight"))
    train(net, batch)
    assert torch.equal(net.get_parameter("a.weight"), net.get_parameter("b.weight"))
    assert zeros_hold(net, mask)
    assert sum(p.numel() for p in net.parameters()) == sum(p.numel() for p in model.parameters())


def test_neuron_masks_silence_their_units_through_training() -> None:
    model, batch = network("conv")
    mask = prune(model, 0.5, "magnitude", "layerwise", "neuron", batch=batch)
    net = apply(model, mask)
    train(net, batch)
    assert zeros_hold(net, mask)
    outputs: dict[str, Tensor] = {}
    net.get_submodule("1").register_forward_hook(lambda _m, _i, output: outputs.update(norm=output))
    net.eval()(batch[0])
    assert not outputs["norm"][:, ~mask.units["0.weight"]].any()


def test_attention_modules() -> None:
    class Attends(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
            self.head = nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.head(self.attention(x, x, x, need_weights=False)[0].mean(1))
            return out

    with torch.random.fork_rng():
        torch.manual_seed(0)
        model, x = Attends(), torch.randn(6, 5, 8)
    batch = (x, torch.arange(6) % 3)
    for criterion in ("snip", "grasp", "prospr", "magnitude"):
        mask = prune(model, 0.6, criterion, batch=batch)
        assert set(mask.weights) == {"attention.in_proj_weight", "attention.out_proj.weight", "head.weight"}
    net = apply(model, mask)
    train(net, batch)
    assert zeros_hold(net, mask)
    with torch.no_grad():  # the fused path in evaluation mode sees the mask too
        net.eval()
        fast = net(x)
    assert torch.allclose(fast, net.train()(x), atol=1e-6)


def test_a_control_that_redraws_is_applied() -> None:
    model, _ = network("mlp")
    mask = prune(model, 0.5, "magnitude", control="reinit")
    net = apply(model, mask)
    assert torch.equal(
        net.get_parameter("hidden.weight"), mask.redrawn["hidden.weight"] * mask.weights["hidden.weight"]
    )


def test_fresh_narrow_computes_what_a_narrow_network_computes() -> None:
    model, (x, _) = network("mlp")
    mask = prune(model, 0.5, "magnitude", "layerwise", "neuron", control="fresh-narrow")
    net, kept = apply(model, mask), mask.units["hidden.weight"]
    narrow = nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3))
    with torch.no_grad():
        narrow.get_parameter("0.weight").copy_(mask.redrawn["hidden.weight"][kept])
        narrow.get_parameter("0.bias").copy_(mask.redrawn["hidden.bias"][kept])
        narrow.get_parameter("2.weight").copy_(mask.redrawn["output.weight"][:, kept])
        narrow.get_parameter("2.bias").copy_(mask.redrawn["output.bias"])
    assert torch.allclose(net(x), narrow(x), atol=1e-6)


def test_integer_inputs() -> None:
    model = nn.Sequential(nn.Embedding(10, 6), nn.Flatten(), nn.Linear(24, 8), nn.ReLU(), nn.Linear(8, 3))
    x = torch.arange(20).view(5, 4) % 10
    for criterion in ("synflow", "ntk-sap", "snip", "phew"):
        mask = prune(model, 0.5, criterion, batch=(x, torch.arange(5) % 3))
        assert mask.kept == 108


def test_exclude_leaves_layers_alone() -> None:
    model, batch = network("residual")
    mask = prune(model, 0.9, "snip", batch=batch, exclude=("first", "last"))
    assert "stem.weight" not in mask.weights
    assert "head.weight" not in mask.weights
    assert mask.total - mask.kept == int(0.9 * mask.total)


X, Y = network("deep")[1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"model": nn.Linear}, r"model must be a torch.nn.Module, got <class 'torch.nn"),
        ({"model": nn.ReLU()}, "ReLU has no linear or convolution layer, so nothing can be pruned"),
        ({"sparsity": 1.0}, r"sparsity must be a number in \[0, 1\), got 1.0"),
        ({"sparsity": math.nan}, r"sparsity must be a number in \[0, 1\), got nan"),
        ({"sparsity": "0.5"}, r"sparsity must be a number in \[0, 1\), got '0.5'"),
        ({"sparsity": 0.99}, r"sparsity 0.99 leaves 2 of 156 weights for 4 layers.*'6.weight'.*lower it"),
        (
            {"sparsity": 0.95, "granularity": "neuron"},
            r"sparsity 0.95 would remove every neuron of '0.weight'; lower",
        ),
        ({"criterion": "snp"}, "unknown criterion 'snp'; did you mean 'snip'"),
        ({"criterion": None}, "criterion: input should be a valid string, got None"),
        ({"criterion": "snip"}, r"criterion 'snip' needs data: pass a batch .* without data: .*synflow"),
        ({"criterion": "snip", "batch": (X, None)}, "criterion 'snip' needs data"),
        ({"scope": "erkk"}, "unknown scope 'erkk'; did you mean 'erk'"),
        ({"scope": "threshold"}, r"'threshold' .* uniform draws only.* not 'magnitude'; use scope 'global'"),
        ({"scope": {"2.wieght": 0.5}}, r"scope names no prunable layer '2.wieght'; did you mean '2.weight'"),
        ({"scope": {"2": 0.5, "2.weight": 0.5}}, r"scope names the layer '2.weight' twice"),
        ({"scope": {"2": math.nan}}, r"the density of layer '2' must lie in \[0, 1\], got nan"),
        (
            {"scope": "igq", "granularity": "neuron"},
            r"scope 'igq' budgets single weights; neurons take global",
        ),
        (
            {"granularity": "filter"},
            r"granularity: unknown granularity 'filter'.* known: weight, neuron, kernel",
        ),
        ({"granularity": {"block": [4]}}, r"granularity: a block has two sides, \{ block = \[4, 4\] \}, got"),
        ({"granularity": {"block": [4, 0]}}, r"granularity: a block has two sides"),
        (
            {"granularity": "2:4", "sparsity": 0.6},
            r"'2:4' removes two of every four; set sparsity=0.5, not 0.6",
        ),
        (
            {"granularity": "2:4", "scope": "erk"},
            r"'2:4' lets scores compete within each four, so scope 'erk'",
        ),
        ({"granularity": "kernel", "aggregate": "gate"}, r"aggregate 'gate' is for whole neurons"),
        (
            {"granularity": "kernel", "criterion": "random", "scope": "threshold"},
            r"scope 'threshold' is for scores of single weights, which are uniform draws",
        ),
        (
            {"granularity": {"block": [9, 9]}, "sparsity": 0.8},
            r"sparsity 0.8 leaves 1 of 4 groups for 4 layers, so one of them, such as '0.weight', would be empty",
        ),
        ({"aggregate": "gate"}, r"aggregate 'gate' is for whole neurons; use granularity 'neuron'"),
        ({"control": "shufle"}, "control: input should be 'shuffle'"),
        ({"control": "fresh-narrow"}, "'fresh-narrow' is for whole neurons; use granularity 'neuron'"),
        ({"batch": torch.zeros(3)}, r"batch must be a pair \(inputs, targets\), got Tensor"),
        ({"batch": (X, Y, Y)}, r"batch must be a pair \(inputs, targets\), got tuple of 3"),
        ({"batch": (X[:0], Y[:0])}, r"the batch has no rows: its inputs have shape \(0, 5\)"),
        ({"batch": (X[:, :4], Y)}, r"a batch of shape \(12, 4\) does not fit layer '0' of Sequential"),
        ({"batch": (X.double(), Y)}, r"a batch of shape \(12, 5\) does not fit layer '0' .*Double and Float"),
        ({"batch": (X.numpy(), Y)}, r"a batch of type ndarray does not fit layer '0'"),
        ({"batch": (X, Y + 5)}, r"the loss does not fit the model's outputs .*Target 5 is out of bounds"),
        ({"batch": (X, Y[:3])}, r"the loss does not fit the model's outputs"),
        ({"batch": (X * math.nan, Y)}, r"the loss must be finite and real, got nan; look for NaN"),
        ({"loss": "mse"}, r"loss must be a function of \(outputs, targets\), got 'mse'"),
        (
            {"loss": lambda f, _: f.mean(1)},
            r"the loss must be one number, got shape \(12,\); average over the rows",
        ),
        ({"loss": lambda f, _: 1.0}, "the loss must be a tensor of one number, got float"),
        (
            {"loss": lambda f, _: torch.ones(())},
            "does not depend on the model's weights, not even on '0.weight'",
        ),
        (
            {"loss": lambda f, _: dict[str, Tensor]()["a"]},
            "the loss does not fit the model's outputs and the batch's targets: 'a'",
        ),
        ({"seed": "a"}, "seed must be an integer, got 'a'"),
        ({"exclude": "first"}, r"exclude=\('first',\)"),
        ({"exclude": ("nowhere",)}, "exclude names no prunable layer 'nowhere'"),
        ({"exclude": ("0", "2", "4", "6")}, "exclude leaves no layer of Sequential to prune"),
    ],
)
def test_mistakes_are_one_sentence(arguments: dict[str, Any], message: str) -> None:
    criterion = "snip" if {"batch", "loss"} & set(arguments) else "magnitude"
    given: dict[str, Any] = {"model": network("deep")[0], "sparsity": 0.5, "criterion": criterion}
    given |= {"batch": (X, Y)} if "loss" in arguments else {}
    with pytest.raises(NatalError, match=message) as caught:
        prune(**given | arguments)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_broken_weights_are_named(value: float) -> None:
    model, batch = network("deep")
    with torch.no_grad():
        model.get_parameter("2.weight")[0, 0] = value
    for criterion in ("random", "phew", "lamp", "snip"):
        with pytest.raises(NatalError, match=r"weights of '2.weight' are NaN or infinite; initialise"):
            prune(model, 0.5, criterion, batch=batch)


def test_a_model_that_cannot_be_copied_is_refused() -> None:
    model, batch = network("deep")
    mask = prune(model, 0.5, "magnitude")
    attributes: list[Any] = [model(batch[0]), threading.Lock()]  # a tensor with a graph; a lock
    for attribute in attributes:
        model.cache = attribute
        with pytest.raises(NatalError, match="Sequential cannot be copied: "):
            prune(model, 0.5, "snip", batch=batch)
        with pytest.raises(NatalError, match="Sequential cannot be copied: "):
            apply(model, mask)


def test_apply_names_what_does_not_fit() -> None:
    mask = prune(network("deep")[0], 0.5, "magnitude")
    with pytest.raises(
        NatalError, match=r"the mask has '0.weight' of shape \(8, 5\), the model has \(4, 1, 3, 3\)"
    ):
        apply(network("conv")[0], mask)
    with pytest.raises(
        NatalError, match=r"the mask has '0.weight' of shape \(8, 5\), the model has \(8, 4\)"
    ):
        apply(nn.Sequential(nn.Linear(4, 8)), mask)
    with pytest.raises(NatalError, match=r"mask must be a natal.Mask, as natal.prune returns, got dict"):
        apply(network("deep")[0], dict(mask.weights))  # type: ignore[arg-type]
    with pytest.raises(NatalError, match=r"model must be a torch.nn.Module, got None"):
        apply(None, mask)  # type: ignore[arg-type]
