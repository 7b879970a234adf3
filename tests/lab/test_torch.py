"""The engine ``torch`` is plain PyTorch, written by hand here, bit for bit; the caller's settings are the caller's."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from types import GeneratorType
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from natal.determinism import deterministic
from natal.lab.engines import ENGINES
from natal.lab.networks import born
from natal.lab.tasks import Data, Split
from natal.lab.trial import Trial
from natal.pruning.mask import Mask, prunable
from natal.pruning.select import select
from natal.streams import stream
from natal.study import Network
from trials import bits, how, removed, train, trial

# -- by hand -------------------------------------------------------------------------------------------------


def by_hand(
    made: Trial, optimiser: Callable[[nn.Module], torch.optim.Optimizer], epochs: int
) -> tuple[list[float], nn.Module]:
    """The losses of every step of masked minibatch training and the network after it, as anyone writes it."""
    data, fit, batch = made.split.data, made.split.fit, made.training.batch
    assert batch is not None
    x, y = data.inputs[fit], data.targets[fit]
    net = copy.deepcopy(made.network)
    weights = [(dict(net.named_parameters())[name], kept) for name, kept in made.mask.items().items()]
    with torch.no_grad():
        for weight, kept in weights:
            weight.mul_(kept)
    optim, order, losses = optimiser(net), stream(made.seed, "order"), []
    for _ in range(epochs):
        rows = torch.randperm(len(x), generator=order)
        for start in range(0, len(x), batch):
            those = rows[start : start + batch]
            optim.zero_grad()
            loss = F.cross_entropy(net(x[those]), y[those])
            loss.backward()  # type: ignore[no-untyped-call]
            optim.step()
            with torch.no_grad():
                for weight, kept in weights:
                    weight.mul_(kept)
            losses.append(loss.item())
    return losses, net


def mnist_like() -> Trial:
    generator = torch.Generator().manual_seed(5)
    x, y = torch.rand(700, 1, 28, 28, generator=generator), torch.randint(10, (700,), generator=generator)
    order = torch.randperm(600, generator=generator)
    rows = Split(Data(x[:600], y[:600], x[600:], y[600:], 10), order[50:], order[:50], 0.1)
    made = trial("lenet-300-100", (1, 28, 28))
    net = born(Network.model_validate("lenet-300-100"), (1, 28, 28), 10, 3)
    scores = {name: torch.rand(w.shape, generator=generator) for name, w in prunable(net).items()}
    return replace(
        made, split=rows, network=net, mask=Mask(select(scores, 0.8)), learning_rate=1.2e-3, seed=3
    )


def test_lenet_300_100_trains_as_plain_pytorch_does_bit_for_bit() -> None:
    made = replace(mnist_like(), training=how(batch=60, length="3ep", evaluate="1it", decide="end"))
    losses, net = by_hand(made, lambda net: torch.optim.Adam(net.parameters(), lr=1.2e-3), epochs=3)
    (trained,) = train("torch", made)
    assert len(losses) == 3 * 10  # 550 rows: nine batches of 60 and one of 10
    assert trained.outcome.curves["train_loss"].tolist() == losses
    for name, value in net.state_dict().items():
        assert torch.equal(trained.state[name], value), name
    assert not removed(trained, made.mask).any()
    assert trained.outcome.kept == made.mask.kept == 266200 - 212960


RULES: dict[str, tuple[dict[str, object], Callable[[nn.Module], torch.optim.Optimizer]]] = {
    "sgd": ({"name": "sgd"}, lambda net: torch.optim.SGD(net.parameters(), lr=1e-2)),
    "momentum": (
        {"name": "sgd", "momentum": 0.9, "weight_decay": 1e-3},
        lambda net: torch.optim.SGD(net.parameters(), lr=1e-2, momentum=0.9, weight_decay=1e-3),
    ),
    "nesterov": (
        {"name": "sgd", "momentum": 0.8, "nesterov": True},
        lambda net: torch.optim.SGD(net.parameters(), lr=1e-2, momentum=0.8, nesterov=True),
    ),
    "adam": (
        {"name": "adam", "betas": [0.8, 0.99], "weight_decay": 0.1},
        lambda net: torch.optim.Adam(net.parameters(), lr=1e-2, betas=(0.8, 0.99), weight_decay=0.1),
    ),
    "adamw": (
        {"name": "adamw", "weight_decay": 0.1},
        lambda net: torch.optim.AdamW(net.parameters(), lr=1e-2, weight_decay=0.1),
    ),
}


@pytest.mark.parametrize("rule", RULES)
def test_optimisers_are_those_of_torch(rule: str) -> None:
    table, optimiser = RULES[rule]
    made = trial({"network": "mlp", "hidden": [9, 7]}, optimiser=table, batch=32, length="4ep", decide="end")
    _, net = by_hand(made, optimiser, epochs=4)
    (trained,) = train("torch", made)
    for name, value in net.state_dict().items():
        assert torch.equal(trained.state[name], value), name


def test_a_batch_as_large_as_the_data_is_all_rows_in_their_order() -> None:
    made = trial("mlp", length="3it", evaluate="1it")
    (full,), (large,) = train("torch", made), train("torch", made, length="3it", evaluate="1it", batch=90)
    assert bits(full) == bits(large)


def test_the_loss_of_an_evaluation_is_the_mean_since_the_one_before() -> None:
    made = trial("mlp")
    (each,) = train("torch", made, batch=40, length="7it", evaluate="1it")
    (some,) = train("torch", made, batch=40, length="7it", evaluate="3it")
    losses = each.outcome.curves["train_loss"]
    assert some.outcome.curves["step"].tolist() == [3, 6, 7]
    means = [losses[:3].mean(), losses[3:6].mean(), losses[6]]
    np.testing.assert_allclose(some.outcome.curves["train_loss"], means, rtol=1e-6)


def test_a_schedule_scales_the_learning_rate_of_its_steps() -> None:
    # plain SGD is linear in its rate: with the factor 0 nothing moves; half of 1 is 0.5
    made = trial("mlp", optimiser="sgd", rate=0.5, length="2it", evaluate="1it", decide="end")
    still = replace(made, training=how(optimiser="sgd", length="2it", decide="end", schedule=[["init", 0.0]]))
    (trained,) = train("torch", still)
    for name, p in made.born().named_parameters():
        assert torch.equal(trained.state[name], p)
    halved = how(optimiser="sgd", length="1it", decide="end", schedule=[["init", 0.5]])
    (half,) = train("torch", replace(made, training=halved, learning_rate=1.0))
    (same,) = train("torch", replace(made, training=how(optimiser="sgd", length="1it", decide="end")))
    assert all(torch.equal(half.state[name], p) for name, p in same.state.items())


def test_label_smoothing_is_of_the_training_loss_alone() -> None:
    made = trial("mlp", length="1it", label_smoothing=0.2)
    (trained,) = train("torch", made)
    x, y = made.rows()["fit"]
    with torch.no_grad():
        logp = made.born()(x).log_softmax(1)
    # ε of the target's weight is spread over all classes
    hand = -(0.8 * logp[torch.arange(len(y)), y] + 0.2 * logp.mean(1)).mean()
    assert trained.outcome.curves["train_loss"][0] == pytest.approx(hand.item(), rel=1e-6)
    net = copy.deepcopy(made.network)
    net.load_state_dict(dict(trained.state))
    val_x, val_y = made.rows()["val"]
    assert trained.outcome.curves["val_loss"][0] == F.cross_entropy(net(val_x), val_y).item()


def test_clipping_bounds_the_norm_of_the_gradients_of_what_is_kept() -> None:
    made = trial("mlp", sparsity=0.9, optimiser="sgd", rate=1.0, length="1it", decide="end", clip=1e-3)
    (trained,) = train("torch", made)
    born = dict(made.born().named_parameters())
    moved = torch.cat([(trained.state[name] - p).flatten() for name, p in born.items()])
    # at rate 1 the step is the clipped gradient; torch divides by the norm plus 1e-6
    assert moved.norm().item() == pytest.approx(1e-3, rel=1e-3)


def test_clipping_a_masked_network_is_clipping_the_network_that_is_left() -> None:
    whole = trial(
        {"network": "mlp", "hidden": [4]}, optimiser="sgd", rate=1.0, length="5it", decide="end", clip=0.05
    )
    neurons = torch.tensor([True, False, True, False])
    mask = Mask(
        {"hidden.weight": neurons[:, None].expand(4, 6), "output.weight": neurons[None].expand(4, 4)},
        {"hidden.bias": neurons},
    )
    (masked,) = train("torch", replace(whole, mask=mask))
    small = trial({"network": "mlp", "hidden": [2]})
    net = small.network
    left: dict[str, Any] = {
        "hidden.weight": neurons,
        "hidden.bias": neurons,
        "output.weight": (slice(None), neurons),
    }
    net.load_state_dict({n: p[left[n]] if n in left else p for n, p in whole.network.state_dict().items()})
    dense = Mask({name: torch.ones_like(w, dtype=torch.bool) for name, w in prunable(net).items()})
    (alone,) = train("torch", replace(whole, network=net, mask=dense))
    for name, value in alone.state.items():
        kept = masked.state[name][left[name]] if name in left else masked.state[name]
        torch.testing.assert_close(kept, value, rtol=1e-5, atol=1e-7)


def test_convolutions_have_channels_last_on_a_cpu_and_are_handed_over_as_others_are() -> None:
    images = (3, 12, 12)
    assert trial("lenet-5", images).layout("cpu") == torch.channels_last
    assert trial("lenet-300-100", images).layout("cpu") == torch.contiguous_format
    assert trial("lenet-5", images).layout("cuda") == torch.contiguous_format
    made = trial("lenet-5", images, length="2it")
    x, _ = made.rows()["fit"]
    assert x.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(x, made.split.data.inputs[made.split.fit])
    (trained,) = train("torch", made)
    assert all(value.is_contiguous() for value in trained.state.values())


def test_channels_do_not_lie_last_where_kernels_would_write_past_their_memory() -> None:
    for width, shortcut, last in [(2, "projection", False), (2, "identity", True), (8, "projection", True)]:
        made = trial({"network": "resnet-20", "width": width, "shortcut": shortcut}, (3, 8, 8))
        assert (made.layout("cpu") == torch.channels_last) is last


# -- which evaluation ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("decide", ["val-metric", "val-loss", "end"])
def test_the_weights_of_the_deciding_evaluation_are_kept(decide: str) -> None:
    made = trial("mlp", rate=0.3, batch=30, length="60it", evaluate="3it", decide=decide, test_curve=True)
    (trained,) = train("torch", made)
    curves = trained.outcome.curves
    best = {
        "val-metric": int(curves["val_metric"].argmax()),
        "val-loss": int(curves["val_loss"].argmin()),
        "end": len(curves["step"]) - 1,
    }[decide]
    assert trained.outcome.best_step == curves["step"][best] == 3 * (best + 1)
    # the same training, ended there
    (ended,) = train(
        "torch", made, batch=30, length=f"{trained.outcome.best_step}it", evaluate="3it", decide="end"
    )
    assert all(torch.equal(ended.state[name], p) for name, p in trained.state.items())
    assert curves["test_metric"][best] == trained.outcome.test_metric
    last = len(curves["step"]) - 1
    assert last not in (curves["val_metric"].argmax(), curves["val_loss"].argmin())


# -- random numbers ------------------------------------------------------------------------------------------


class Dropping(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 4)
        self.dropout = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layer(self.dropout(x))
        return out


def dropping(seed: int) -> Trial:
    made = trial("mlp", seed=seed, length="3it", evaluate="1it")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = Dropping()
    dense = Mask({"layer.weight": torch.ones(4, 6, dtype=torch.bool)})
    return replace(made, network=net, mask=dense, split=trial("mlp").split)


def test_dropout_draws_from_the_runs_own_stream() -> None:
    one, two = dropping(1), dropping(2)
    torch.manual_seed(7)
    before = torch.get_rng_state()
    first, other = train("torch", one, two)
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(3)
    assert [bits(t) for t in train("torch", two, one)] == [bits(other), bits(first)]
    assert first.outcome.curves["train_loss"].tolist() != other.outcome.curves["train_loss"].tolist()
    with torch.random.fork_rng():
        torch.manual_seed(stream(1, "dropout").initial_seed())
        x, y = one.rows()["fit"]
        hand = F.cross_entropy(one.network.train()(x), y)
    assert first.outcome.curves["train_loss"][0] == hand.item()


def noise(x: Tensor, generator: Generator) -> Tensor:
    return x + torch.randn(x.shape, generator=generator)


def test_augmentation_draws_from_the_runs_own_stream_and_changes_training_rows_alone() -> None:
    made = trial("mlp", augment=noise, length="2it", evaluate="1it")
    (trained,) = train("torch", made)
    x, y = made.rows()["fit"]
    generator, net = stream(1, "augment"), made.born()
    optimiser = torch.optim.Adam(net.parameters(), lr=1e-2)
    for loss in trained.outcome.curves["train_loss"]:
        optimiser.zero_grad()
        hand = F.cross_entropy(net(noise(x, generator)), y)
        assert loss == hand.item()
        hand.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        made.mask.apply_(dict(net.named_parameters()))
    val_x, val_y = made.rows()["val"]
    assert trained.outcome.curves["val_loss"][1] == F.cross_entropy(net(val_x), val_y).item()


# -- divergence ----------------------------------------------------------------------------------------------

NORMED = {"network": "mlp", "hidden": [8], "batch_norm": True}


def test_a_network_with_batch_norm_whose_weights_overflow_has_diverged() -> None:
    made = trial(NORMED, optimiser="sgd", rate=1e38, batch=45, length="6it", evaluate="2it")
    (trained,) = train("torch", made)
    o = trained.outcome
    assert (o.status, o.best_step, o.test_metric) == ("diverged", 0, None)
    assert not math.isfinite(o.curves["train_loss"][-1])
    for name, value in (
        made.born().state_dict().items()
    ):  # the best is what it was born with, running means too
        assert torch.equal(trained.state[name], value)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_training_whose_validation_overflows_has_diverged_though_its_last_loss_is_finite(
    engine: str,
) -> None:
    # after the first step the weights are huge: the loss before it says nothing of that, NaN outputs have an argmax
    made = trial("mlp", optimiser="sgd", rate=1e38, length="4it", evaluate="1it", decide="end")
    (trained,) = train(engine, made)
    o = trained.outcome
    assert math.isfinite(o.curves["train_loss"][0])
    assert not math.isfinite(o.curves["val_loss"][0])
    assert (o.status, o.steps_trained, o.best_step, o.val_metric) == ("diverged", 1, 0, None)


def test_running_means_are_those_of_the_best_evaluation() -> None:
    made = trial(NORMED, rate=0.2, length="150it", evaluate="1it", decide="val-loss")
    (trained,) = train("torch", made)
    best = trained.outcome.best_step
    assert best < 150
    assert trained.state["norm.num_batches_tracked"] == best
    (ended,) = train("torch", made, length=f"{best}it", evaluate="1it", decide="end")
    assert torch.equal(trained.state["norm.running_mean"], ended.state["norm.running_mean"])


# -- the caller's settings -----------------------------------------------------------------------------------


def settings() -> list[object]:
    return [
        torch.get_num_threads(),
        torch.are_deterministic_algorithms_enabled(),
        torch.utils.deterministic.fill_uninitialized_memory,  # type: ignore[attr-defined]
        torch.get_rng_state().tolist(),
        torch.get_default_dtype(),
        torch.get_float32_matmul_precision(),
        torch.backends.cudnn.benchmark,
        torch.backends.cudnn.allow_tf32,
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        torch.is_autocast_enabled("cpu"),
        torch.backends.cuda.flash_sdp_enabled(),  # type: ignore[no-untyped-call]
        np.geterr(),
    ]


@pytest.fixture
def unusual() -> Iterator[None]:
    torch.set_num_threads(2)
    torch.set_default_dtype(torch.float64)
    torch.set_float32_matmul_precision("medium")
    torch.manual_seed(11)
    try:
        with torch.inference_mode(), torch.autocast("cpu"):
            yield
    finally:
        torch.set_float32_matmul_precision("highest")
        torch.set_default_dtype(torch.float32)
        torch.set_num_threads(1)


@pytest.mark.parametrize("engine", ["torch", "stacked"])
def test_while_the_caller_has_a_network_in_hand_torch_is_as_the_caller_left_it(
    engine: str, unusual: None
) -> None:
    before = settings()
    with torch.inference_mode(False):
        made = [trial(NORMED, seed=seed, length="4it") for seed in (1, 2)]
    torch.manual_seed(11)
    seen = [settings() for _ in ENGINES[engine].train(made, "cpu")]
    assert [*seen, settings()] == [before] * 3
    unfinished = ENGINES[engine].train(made, "cpu")
    next(unfinished)
    assert isinstance(unfinished, GeneratorType)
    unfinished.close()
    assert settings() == before


@pytest.mark.parametrize("engine", ["torch", "stacked"])
def test_no_setting_of_the_callers_changes_a_bit(engine: str, request: pytest.FixtureRequest) -> None:
    made = [trial({"network": "mlp", "hidden": [64, 64]}, seed=seed, length="4it") for seed in (1, 2)]
    expected = [bits(t) for t in train(engine, *made)]
    request.getfixturevalue("unusual")
    torch.set_default_device("meta")
    try:
        assert [bits(t) for t in train(engine, *made)] == expected
    finally:
        torch.set_default_device("cpu")
        torch.set_default_device(None)


def test_settings_come_back_after_an_error() -> None:
    before = settings()
    with pytest.raises(ZeroDivisionError), deterministic():
        1 / 0  # noqa: B018
    assert settings() == before
