"""Every criterion on the models that users bring, and no trace left on any of them, also when something fails."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import natal
from natal import NatalError
from natal.pruning.choose import problem_of, score
from natal.pruning.criteria import criteria
from networks import network

torch.set_num_threads(1)
pytestmark = pytest.mark.filterwarnings("ignore:criterion .* score 0")
BUILT_IN = sorted(name for name in criteria if criteria[name].__module__.startswith("natal."))


class LeNet5(nn.Module):
    """As in LeCun et al. 1998, with max pooling and ReLU."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 6, 5, padding=2), nn.Conv2d(6, 16, 5)
        self.fc1, self.fc2, self.fc3 = nn.Linear(400, 120), nn.Linear(120, 84), nn.Linear(84, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.conv1(x)), 2)
        x = F.max_pool2d(F.relu(self.conv2(x)), 2).flatten(1)
        out: Tensor = self.fc3(F.relu(self.fc2(F.relu(self.fc1(x)))))
        return out


class Tied(nn.Module):
    """Two layers that share a weight."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 3)
        self.b.weight = self.a.weight

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.c(torch.relu(self.b(torch.relu(self.a(x)))))
        return out


class Restless(nn.Module):
    """Counts its calls in a buffer and adds noise from all three global generators."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 3)
        self.calls: Tensor
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        noise = random.random() + np.random.rand() + torch.rand(())
        out: Tensor = self.b(torch.relu(self.a(x + noise)))
        return out


class Pair(nn.Module):
    """Takes a dictionary and returns its hidden layer too."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        hidden = torch.relu(self.a(batch["x"]))
        return self.b(hidden), hidden


def head(channels: int, pool: nn.Module) -> list[nn.Module]:
    return [nn.ReLU(), pool, nn.Flatten(), nn.Linear(channels, 3)]


def plain() -> nn.Sequential:
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 3))


def frozen() -> nn.Sequential:
    net = plain()
    net[0].weight.requires_grad_(False)
    return net


def depthwise() -> nn.Sequential:
    separable = [
        nn.Conv2d(2, 4, 3),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Conv2d(4, 4, 3, groups=4),
        nn.Conv2d(4, 6, 1),
    ]
    return nn.Sequential(*separable, *head(6, nn.AdaptiveAvgPool2d(1)))


def grouped() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Conv2d(4, 8, 3, groups=2), *head(8, nn.AdaptiveAvgPool2d(1))
    )


MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "lenet": (LeNet5, (1, 28, 28)),
    "conv1d": (lambda: nn.Sequential(nn.Conv1d(2, 4, 3), *head(4, nn.AdaptiveAvgPool1d(1))), (2, 9)),
    "conv3d": (lambda: nn.Sequential(nn.Conv3d(1, 4, 3), *head(4, nn.AdaptiveAvgPool3d(1))), (1, 5, 5, 5)),
    "grouped": (grouped, (2, 8, 8)),
    "depthwise": (depthwise, (2, 8, 8)),
    "tied": (Tied, (6,)),
    "frozen": (frozen, (6,)),
    "restless": (Restless, (6,)),
    "double": (lambda: plain().double(), (6,)),
    "half": (lambda: plain().half(), (6,)),
    "bfloat16": (lambda: plain().bfloat16(), (6,)),
    "no running statistics": (
        lambda: nn.Sequential(
            nn.Linear(6, 8), nn.BatchNorm1d(8, track_running_stats=False), nn.ReLU(), nn.Linear(8, 3)
        ),
        (6,),
    ),
}


def seeded(make: Callable[[], nn.Module]) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(5)
        return make()


def brought(kind: str) -> tuple[nn.Module, tuple[Tensor, Tensor]]:
    make, shape = MODELS[kind]
    model = seeded(make)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(8, *shape, generator=generator).to(next(model.parameters()).dtype)
    return model, (x, torch.randint(3, (8,), generator=generator))


def trace(model: nn.Module) -> tuple[Any, ...]:
    """Everything that scoring could have changed, in a form that can be compared."""
    return (
        {name: (value.dtype, value.tolist()) for name, value in model.state_dict().items()},
        [module.training for module in model.modules()],
        [(id(p), p.requires_grad, None if p.grad is None else p.grad.tolist()) for p in model.parameters()],
        torch.get_rng_state().tolist(),
        random.getstate(),
        np.random.get_state(legacy=False)["state"]["key"].tolist(),
        (torch.is_grad_enabled(), torch.get_default_dtype()),
    )


def with_gradients(model: nn.Module) -> nn.Module:
    """In training mode, in the middle of a loop: gradients lie about."""
    for p in model.train().parameters():
        p.grad = torch.ones_like(p) if p.requires_grad else None
    return model


@pytest.mark.usefixtures("few_rounds")
@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("name", BUILT_IN)
def test_every_criterion_prunes_the_models_that_users_bring(name: str, kind: str) -> None:
    model, batch = brought(kind)
    before = trace(with_gradients(model))
    if name == "phew" and kind in ("grouped", "depthwise", "tied"):
        with pytest.raises(NatalError, match="'phew' walks along a chain of layers, but the units of"):
            natal.prune(model, 0.5, name, batch=batch)
        assert trace(model) == before
        return
    found = natal.prune(model, 0.5, name, batch=batch)
    assert found.total - found.kept == int(0.5 * found.total)
    net = natal.apply(model, found)
    assert trace(model) == before
    torch.rand(1), random.random(), np.random.rand()  # the state of the caller's generators does not matter
    again = natal.prune(model, 0.5, name, batch=batch)
    assert all(torch.equal(kept, again.weights[n]) for n, kept in found.weights.items())
    assert {p.dtype for p in net.parameters()} == {p.dtype for p in model.parameters()}
    assert [p.requires_grad for p in net.parameters()] == [p.requires_grad for p in model.parameters()]


@pytest.mark.usefixtures("few_rounds")
@pytest.mark.parametrize("kind", ["lenet", "conv1d", "conv3d", "frozen", "restless", "half"])
@pytest.mark.parametrize("name", [n for n in BUILT_IN if n not in ("grasp", "grasp-published", "phew")])
def test_every_criterion_with_unsigned_scores_prunes_their_neurons(name: str, kind: str) -> None:
    model, batch = brought(kind)
    before = trace(with_gradients(model))
    found = natal.prune(model, 0.5, name, granularity="neuron", batch=batch)
    assert (
        sum(int((~kept).sum()) for kept in found.units.values()) == sum(map(len, found.units.values())) // 2
    )
    assert trace(model) == before


@pytest.mark.parametrize("control", ["shuffle", "quota-random", "invert", "reinit"])
@pytest.mark.parametrize("kind", MODELS)
def test_every_control_works_on_them(kind: str, control: str) -> None:
    model, batch = brought(kind)
    before = trace(with_gradients(model))
    found = natal.prune(model, 0.5, "snip", control=control, batch=batch)
    assert found.total - found.kept == int(0.5 * found.total)
    net = natal.apply(model, found)
    assert trace(model) == before
    assert net(batch[0]).isfinite().all()


@pytest.mark.parametrize("name", [n for n in BUILT_IN if n not in ("init-stream",)])
def test_a_failure_leaves_no_trace_either(name: str) -> None:
    class Breaks(Restless):
        def forward(self, x: Tensor) -> Tensor:
            super().forward(x)
            raise KeyError("the third tap")

    def breaks(outputs: Tensor, targets: Tensor) -> Tensor:
        raise ZeroDivisionError

    model, batch = brought("restless")
    for broken, loss in ((seeded(Breaks), F.cross_entropy), (model, breaks)):
        before = trace(with_gradients(broken))
        try:
            natal.prune(broken, 0.5, name, granularity="weight", batch=batch, loss=loss)
        except NatalError as error:
            assert "the third tap" in str(error) or "ZeroDivisionError" in str(error)  # noqa: PT017
        assert trace(broken) == before


def test_a_failure_names_layer_and_reason() -> None:
    class Breaks(Restless):
        def forward(self, x: Tensor) -> Tensor:
            super().forward(x)
            raise KeyError("the third tap")

    _, batch = brought("restless")
    with pytest.raises(
        NatalError, match=r"batch of shape \(8, 6\) does not fit layer 'b' of Breaks: 'the third tap'"
    ):
        natal.prune(seeded(Breaks), 0.5, "snip", batch=batch)
    with pytest.raises(NatalError, match=r"batch of type tuple does not fit Tied: .*at most|Tied: "):
        natal.prune(seeded(Tied), 0.5, "snip", batch=((batch[0], batch[0]), batch[1]))


def test_a_network_in_half_precision_is_scored_in_float32() -> None:
    model, (x, y) = brought("half")
    for name in ("snip", "grasp", "grasp-absolute", "prospr"):
        narrow = natal.prune(model, 0.5, name, batch=(x, y))
        wide = natal.prune(seeded(lambda: plain().half().float()), 0.5, name, batch=(x.float(), y))
        assert all(torch.equal(kept, wide.weights[n]) for n, kept in narrow.weights.items())


def test_a_model_may_take_a_dictionary_and_return_a_tuple() -> None:
    model = seeded(Pair)
    _, (x, y) = brought("frozen")
    first: dict[str, Any] = {
        "batch": ({"x": x}, y),
        "loss": lambda outputs, targets: F.cross_entropy(outputs[0], targets),
    }
    for name in ("snip", "force", "prospr", "magnitude"):
        assert natal.prune(model, 0.5, name, **first).kept == 36
    with pytest.raises(NatalError, match=r"inputs must be one tensor .*, got dict; wrap Pair to take one"):
        natal.prune(model, 0.5, "synflow", **first)
    with pytest.raises(
        NatalError, match="Pair must return one tensor, got tuple; wrap it to return its logits"
    ):
        natal.prune(model, 0.5, "grasp", **first)


@pytest.mark.parametrize("name", ["synflow", "ntk-sap"])
def test_the_first_layer_tells_the_shape_of_an_input_even_if_it_is_excluded(name: str) -> None:
    model, (x, y) = network("deep")
    without = natal.prune(model, 0.5, name, exclude=("first",))
    assert "0.weight" not in without.weights
    if name == "synflow":  # which does not look at the values, and not at the number of rows either
        with_batch = natal.prune(model, 0.5, name, exclude=("first",), batch=(x, y))
        assert all(torch.equal(kept, with_batch.weights[n]) for n, kept in without.weights.items())


@pytest.mark.parametrize(
    "norm",
    [nn.LayerNorm(8), nn.GroupNorm(2, 8), nn.RMSNorm(8), nn.BatchNorm1d(8, track_running_stats=False)],
    ids=lambda norm: type(norm).__name__,
)
def test_norms_without_running_statistics_let_synaptic_flow_through(norm: nn.Module) -> None:
    plain_, (x, _) = brought("frozen")
    assert isinstance(plain_, nn.Sequential)
    bare = nn.Sequential(plain_[0], plain_[1], plain_[3])
    normed = nn.Sequential(plain_[0], norm, plain_[1], plain_[3])
    flow, expected = (list(score("synflow", problem_of(m, 0, inputs=x)).values()) for m in (normed, bare))
    assert all(torch.equal(a, b) for a, b in zip(flow, expected, strict=True))


def test_negative_scores_of_ones_own_are_refused_for_neurons(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(
        criteria._entries, "mine", lambda problem: {n: -w.abs() for n, w in problem.weights.items()}
    )
    model, _ = network("deep")
    with pytest.raises(
        NatalError, match=r"'mine' gives weights of '0.weight' negative scores.* drop the sign"
    ):
        natal.prune(model, 0.5, "mine", granularity="neuron")
