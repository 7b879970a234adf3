"""The engine ``compiled`` against the engine ``torch``, and by itself: any chain, any mask, any way of training."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from chains import CLASSES, NUMBERS, train, trial, ways
from natal.lab.engines import ENGINES, Setting
from natal.lab.engines.compiled import chain as chain_module
from natal.lab.engines.compiled.learner import Learner, batches
from natal.lab.engines.compiled.network import Chain, chain_of, data_of
from natal.lab.engines.compiled.steps import Data as Data_
from natal.lab.engines.compiled.steps import Loss
from natal.lab.engines.compiled.vectors import Array
from natal.lab.engines.torch import optimiser_of
from natal.lab.networks.mlp import mlp
from natal.lab.tasks import Data, Split, Task
from natal.lab.trial import Trial
from natal.pruning.mask import Mask

OPTIMISERS: list[Any] = [
    "sgd",
    {"name": "sgd", "momentum": 0.9, "weight_decay": 0.01},
    {"name": "sgd", "momentum": 0.9, "nesterov": True},
    "adam",
    {"name": "adam", "betas": [0.8, 0.99], "weight_decay": 0.01},
    {"name": "adamw", "weight_decay": 0.1},
]


@given(
    seed=st.integers(0, 1000),
    sizes=st.lists(st.integers(1, 40), min_size=2, max_size=5),
    densities=st.lists(st.sampled_from([0.0, 0.05, 0.3, 0.7, 1.0]), min_size=4, max_size=4),
    task=st.sampled_from([CLASSES, NUMBERS]),
    ones=st.integers(0, 2),
    bias=st.booleans(),
    without=st.sampled_from([0.0, 0.3]),
    fit=st.integers(2, 400),
    batch=st.sampled_from(["full", 1, 7, 60, 300]),
    optimiser=st.sampled_from(OPTIMISERS),
    schedule=st.sampled_from(["constant", "cosine", [["5it", 0.5], ["11it", 0.1]]]),
    smoothing=st.sampled_from([0.0, 0.1]),
    clip=st.sampled_from(["none", 0.1, 1.0]),
)
@settings(max_examples=60)
def test_in_float64_it_agrees_with_the_torch_engine_after_20_steps(
    seed: int, sizes: list[int], densities: list[float], task: Task, ones: int, bias: bool, without: float, fit: int,
    batch: str | int, optimiser: Any, schedule: Any, smoothing: float, clip: Any,
) -> None:  # fmt: skip
    if ones:
        sizes = [sizes[0] + 8 * ones, *sizes[1:]]
    training = ways(
        batch=batch if batch == "full" else min(int(batch), fit),
        optimiser=optimiser,
        schedule=schedule,
        clip=clip,
        label_smoothing=smoothing if task is CLASSES else 0.0,
    )
    one = trial(seed, training, sizes, densities, task=task, ones=ones, bias=bias, without=without, fit=fit)
    (ours,), (theirs,) = (train(engine, one) for engine in ("compiled", "torch"))
    for name, p in theirs.state.items():
        q = ours.state[name]
        assert p.dtype == q.dtype == torch.float64
        assert (q - p).abs().max() <= 1e-9 * max(1e-6, float(p.abs().max())), name
    for name, kept in one.mask.items().items():
        assert (ours.state[name][~kept] == 0).all(), name
    for name, curve in theirs.outcome.curves.items():
        np.testing.assert_allclose(ours.outcome.curves[name], curve, rtol=1e-6, atol=1e-12, err_msg=name)
    assert ours.outcome.final_loss == pytest.approx(theirs.outcome.final_loss, rel=1e-6)
    for part in ("train_metric", "val_metric", "test_metric"):
        assert getattr(ours.outcome, part) == pytest.approx(getattr(theirs.outcome, part), rel=1e-4)
    assert ours.outcome.constant == theirs.outcome.constant


def test_an_embedding_summed_over_tokens_is_trained_too() -> None:
    rng = np.random.default_rng(0)
    tokens = torch.from_numpy(rng.integers(0, 30, (70, 3)))
    tokens[0] = 4  # three times the same
    classes = torch.from_numpy(rng.integers(0, 5, 70))
    data = Data(tokens[:60], classes[:60], tokens[60:], classes[60:], outputs=5, vocabulary=30)
    split = Split(data, fit=torch.arange(10, 60), val=torch.arange(10), chance=0.2)
    torch.manual_seed(0)
    net = mlp(data.shape, 5, hidden=[12, 8], embedding=16).double()
    kept = {
        name: torch.from_numpy(rng.random(p.shape) < 0.6) for name, p in net.named_parameters() if p.ndim == 2
    }
    one = Trial("key", CLASSES, split, net, Mask(kept), ways(batch=20), 0.01, 1)
    (ours,), (theirs,) = (train(engine, one) for engine in ("compiled", "torch"))
    for name, p in theirs.state.items():
        torch.testing.assert_close(ours.state[name], p, rtol=0, atol=1e-9 * float(p.abs().max()))


def test_networks_that_read_one_split_in_several_ways_train_together() -> None:
    one = trial(0, ways(), [32, 16, 10], [1.0, 1.0], ones=2)
    flat = mlp((32,), 10, hidden=[16]).double()
    summed = mlp((32,), 16, hidden=[16], embedding=8).double()
    summed.output = nn.Linear(16, 10).double()
    both = [replace(one, network=net, mask=Mask({})) for net in (flat, summed)]
    for trained, alone in zip(train("compiled", *both), both, strict=True):
        (expected,) = train("compiled", alone)
        for name, p in expected.state.items():
            assert torch.equal(trained.state[name], p)


REFUSED: dict[str, tuple[nn.Module, dict[str, Any]]] = {
    "this network has Conv2d": (nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(8, 2)), {}),
    "this network has Tanh": (nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2)), {}),
    "this network has BatchNorm1d": (nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 2)), {}),
    "ends in ReLU": (nn.Sequential(nn.Linear(4, 2), nn.ReLU()), {}),
}


@pytest.mark.parametrize("reason", REFUSED)
def test_what_it_cannot_take_it_refuses_with_the_reason(reason: str) -> None:
    net, keys = REFUSED[reason]
    one = trial(0, ways(**keys), [4, 2], [1.0])
    setting = Setting(CLASSES, net, one.split, one.training, macs=8)
    assert reason in ENGINES["compiled"].refuses(setting)
    assert ENGINES["torch"].refuses(setting) == ""


def refusal(one: Trial, net: nn.Module) -> str:
    return ENGINES["compiled"].refuses(Setting(CLASSES, net, one.split, one.training, macs=9))


def test_a_network_that_is_more_than_its_layers_is_refused() -> None:
    one = trial(0, ways(), [3, 3], [1.0])
    layer = nn.Linear(3, 3)
    assert "share their weights" in refusal(one, nn.Sequential(layer, nn.ReLU(), layer))
    tied = nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 3))
    tied[2].bias = tied[0].bias
    assert "share their weights" in refusal(one, tied)
    frozen = nn.Sequential(nn.Linear(3, 3))
    frozen[0].bias.requires_grad_(False)
    assert "frozen" in refusal(one, frozen)
    hooked = nn.Sequential(nn.Linear(3, 3))
    hooked[0].register_forward_hook(lambda module, inputs, output: 2 * output)
    assert "hooks" in refusal(one, hooked)


def test_one_activation_that_is_used_twice_counts_twice() -> None:
    relu = nn.ReLU()
    net = nn.Sequential(nn.Linear(3, 3), relu, nn.Sequential(nn.Linear(3, 3), relu), nn.Linear(3, 3))
    chain = chain_of(net)
    assert isinstance(chain, Chain)
    assert (chain.layers, chain.relu) == (("0", "2.0", "3"), (True, True, False))


def test_rows_it_cannot_read_or_that_change_at_random_are_refused() -> None:
    one = trial(0, ways(), [3, 3], [1.0])
    net = nn.Sequential(nn.Linear(3, 3))
    noisy = replace(one, split=replace(one.split, data=replace(one.split.data, augment=lambda x, _: x)))
    assert "at random" in refusal(noisy, net)
    images = replace(one.split.data, inputs=torch.zeros(70, 1, 3))
    assert "rows of numbers" in refusal(replace(one, split=replace(one.split, data=images)), net)


def learner(one: Trial, mask: Mask | None = None) -> tuple[Learner, Data_, Array]:
    """A network in training by hand, its data, and the rows to fit."""
    chain = chain_of(one.network)
    assert isinstance(chain, Chain)
    data = one.split.data
    made = Learner(
        one.born(), chain, mask or one.mask, one.training.optimiser, False, Loss(one.task is CLASSES, 0.0)
    )
    return made, data_of(data.inputs, data.targets, 0, one.dtype), one.split.fit.numpy()


def steps(made: Learner, data: Data_, fit: Array, count: int) -> None:
    made.learn(data, *batches([None] * count, fit), np.full(count, 0.01))


@pytest.mark.parametrize("optimiser", ["adam", {"name": "sgd", "momentum": 0.9}])
def test_under_another_mask_what_stays_goes_on_with_its_moments(optimiser: Any) -> None:
    one = trial(3, ways(optimiser=optimiser), [20, 30, 5], [0.2, 0.9])
    other = trial(4, ways(), [20, 30, 5], [0.5, 0.2]).mask
    made, data, fit = learner(one)
    steps(made, data, fit, 5)
    made.remask(one.born(), other)
    steps(made, data, fit, 5)
    net = one.born()
    made.write(net)

    theirs = one.born()
    rule = optimiser_of(one.training.optimiser, theirs, 0.01)
    x, y = one.rows()["fit"]
    parameters = dict(theirs.named_parameters())
    for mask in (one.mask, other):
        with torch.no_grad():
            for name, kept in mask.weights.items():
                parameters[name].mul_(kept)
                for moment in rule.state[parameters[name]].values():
                    if isinstance(moment, Tensor) and moment.ndim:
                        moment.mul_(kept)
        for _ in range(5):
            rule.zero_grad()
            F.cross_entropy(theirs(x), y).backward()  # type: ignore[no-untyped-call]
            for name, kept in mask.weights.items():
                parameters[name].grad.mul_(kept)  # type: ignore[union-attr]
            rule.step()
    for name, p in theirs.state_dict().items():
        kept = other.weights.get(name, torch.ones_like(p, dtype=torch.bool))
        ours = dict(net.named_parameters())[name].detach()

        torch.testing.assert_close(ours[kept], p[kept], rtol=0, atol=1e-9 * float(p.abs().max()))


def test_sparse_and_dense_products_give_the_same_outputs_to_the_last_bit_and_gradients_to_a_rounding(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A gradient's sum over rows runs row by row in a dense product and lane by lane in a sparse one."""
    one = trial(5, ways(optimiser="sgd"), [40, 50, 30, 10], [0.3] * 3, fit=150, dtype=torch.float32)
    found = {}
    for below in (0.0, 1.0):
        monkeypatch.setattr(chain_module, "SPARSE_BELOW", below)
        made, data, fit = learner(one)
        before = made.measure(data, fit)
        made.learn(data, *batches([None], fit), np.ones(1))
        net = one.born()
        made.write(net)
        found[below] = before, [p.detach().double() for p in net.parameters()]
        assert set(made.layout.net.layers["kind"]) == {
            chain_module.DENSE if below == 0 else chain_module.SPARSE
        }
    (dense, theta), (skipping, phi) = found.values()
    assert dense == skipping
    for p, q in zip(theta, phi, strict=True):
        # each of 150 summands is below 1, and a sum of n of them errs by n roundings at most
        assert (p - q).abs().max() <= 150 * 2**-24


def test_memory_falls_with_density() -> None:
    """LeNet-300-100: numbers, gradient, moments and pattern of a network."""
    sizes = {}
    for density in (1.0, 0.1, 0.02):
        one = trial(0, ways(), [784, 300, 100, 10], [density] * 3, dtype=torch.float32)
        sizes[density] = learner(one)[0].size
    assert sizes[0.02] < sizes[1.0] / 20
    assert sizes[0.1] < sizes[1.0] / 5
