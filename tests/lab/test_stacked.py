"""The engine ``stacked``: lanes that never meet, end when they are over, and fit in memory; refusals by name."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from natal import NatalError
from natal.lab.engines import ENGINES, stacked
from natal.lab.trial import Trained, Trial
from natal.pruning.mask import dense, prunable
from trials import bits, setting, train, trial

NORMED = {"network": "mlp", "hidden": [8, 7], "batch_norm": True, "bias": False}


def near(ours: Trained, theirs: Trained) -> None:
    assert ours.outcome.steps_trained == theirs.outcome.steps_trained
    assert ours.outcome.best_step == theirs.outcome.best_step
    assert ours.outcome.status == theirs.outcome.status
    for name, value in theirs.state.items():
        torch.testing.assert_close(ours.state[name], value, rtol=1e-9, atol=1e-9)


# -- lanes ---------------------------------------------------------------------------------------------------


def test_lanes_leave_when_they_are_over_and_are_handed_over_at_once() -> None:
    made = [
        trial(NORMED, seed=seed, rate=rate, dtype=torch.float64, length="80it", evaluate="2it", patience=3)
        for seed in (1, 2, 3)
        for rate in (1e-3, 3e-2, 0.3)
    ]
    expected = {t.outcome.key: t for t in train("torch", *made)}
    steps = [t.outcome.steps_trained for t in expected.values()]
    assert len(set(steps)) > 3
    order = []
    for trained in ENGINES["stacked"].train(made, "cpu"):
        near(trained, expected[trained.outcome.key])
        order.append(trained.outcome.steps_trained)
    assert order == sorted(steps)


def test_a_diverging_lane_leaves_the_others_alone() -> None:
    def made(rate: float) -> list[Trial]:
        return [
            trial(NORMED, seed=s, rate=r, optimiser="sgd", batch=30, length="6it", evaluate="6it", clip=1e30)
            for s, r in ((1, 1e-2), (2, rate), (3, 1e-2))
        ]

    sick, healthy = train("stacked", *made(1e38)), train("stacked", *made(1e-2))
    assert [t.outcome.status for t in sick] == ["finished", "diverged", "finished"]
    assert [bits(sick[i]) for i in (0, 2)] == [bits(healthy[i]) for i in (0, 2)]
    (alone,) = train("torch", made(1e38)[1])
    assert sick[1].outcome.steps_trained == alone.outcome.steps_trained


@pytest.mark.slow
def test_what_is_not_alike_is_not_stacked() -> None:
    small, large = trial({"network": "mlp", "hidden": [5]}), trial({"network": "mlp", "hidden": [9]})
    gelu = trial({"network": "mlp", "hidden": [5], "activation": "gelu"})
    for ours, theirs in zip(
        train("stacked", small, large, gelu), train("torch", small, large, gelu), strict=True
    ):
        for name, value in theirs.state.items():
            torch.testing.assert_close(ours.state[name], value, rtol=1e-3, atol=1e-4)


class Tied(nn.Module):
    """Two layers of one weight, behind a layer that is not trained and whose output is kept as a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.frozen = nn.Linear(6, 4)
        self.frozen.requires_grad_(False)
        self.first = nn.Linear(4, 4)
        self.second = nn.Linear(4, 4)
        self.second.weight = self.first.weight
        self.register_buffer("shift", torch.ones(4), persistent=False)
        self.shift: Tensor

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.second(torch.relu(self.first(self.frozen(x) + self.shift)))
        return out


def homemade(make: Callable[[], nn.Module], **keys: Any) -> list[Trial]:
    found = []
    for seed in (1, 2):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            net = make().double()
        found.append(replace(trial("mlp", seed=seed, **keys), network=net, mask=dense(prunable(net))))
    return found


def test_tied_frozen_and_unnamed_tensors_are_what_they_are_to_torch() -> None:
    made = homemade(Tied, length="5it", optimiser={"name": "adamw", "weight_decay": 0.5})
    assert ENGINES["stacked"].refuses(setting(made[0])) == ""
    for ours, theirs, of in zip(train("stacked", *made), train("torch", *made), made, strict=True):
        near(ours, theirs)
        assert ours.state.keys() == of.network.state_dict().keys()
        assert torch.equal(ours.state["frozen.weight"], of.network.get_parameter("frozen.weight"))
        assert torch.equal(ours.state["first.weight"], ours.state["second.weight"])


# -- refusals ------------------------------------------------------------------------------------------------


class Branching(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        out = super().forward(x)
        return out if out.sum() > 0 else -out


class Counting(nn.Linear):
    """Answers otherwise every time."""

    calls = 0

    def forward(self, x: Tensor) -> Tensor:
        Counting.calls += 1
        return super().forward(x) * self.calls


class Hiding(nn.Linear):
    """Holds a tensor, drawn at birth, that neither its parameters nor its buffers name."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs)
        self.factor = torch.rand(outputs)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * self.factor


class Idle(nn.Linear):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs)
        self.idle = nn.Parameter(torch.ones(3))


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: nn.Sequential(nn.Linear(6, 4), nn.Dropout(0.5)), "random"),
        (lambda: Branching(6, 4), "data-dependent control flow"),
        (lambda: Counting(6, 4), "its results under torch.func.vmap are not its own"),
        (lambda: nn.Sequential(Hiding(6, 4)), "its '0.factor' is a tensor, but neither parameter nor buffer"),
        (lambda: Idle(6, 4), "its parameter 'idle' takes no part in its outputs"),
    ],
)
def test_what_a_stack_cannot_do_is_refused_with_the_reason(
    make: Callable[[], nn.Module], reason: str
) -> None:
    made = homemade(make)[0]
    before = copy.deepcopy(made.network.state_dict())
    torch.manual_seed(3)
    state = torch.get_rng_state()
    said = ENGINES["stacked"].refuses(setting(made))
    assert reason in said
    assert "\n" not in said
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(made.network.state_dict()[name], value) for name, value in before.items())


# -- memory --------------------------------------------------------------------------------------------------


@pytest.fixture
def stacks(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The sizes of the stacks that are trained."""
    sizes: list[int] = []
    whole = stacked._train

    def spy(trials: Sequence[Trial], *rest: Any) -> Iterator[Trained]:
        sizes.append(len(trials))
        return whole(trials, *rest)

    monkeypatch.setattr(stacked, "_train", spy)
    return sizes


def seven() -> list[Trial]:
    return [trial(NORMED, seed=seed, length="30it", evaluate="3it", patience=2) for seed in range(1, 8)]


def test_a_job_is_split_by_what_memory_holds(stacks: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    made = seven()
    monkeypatch.setattr(stacked, "_room", lambda device: 3 * stacked._bytes_a_lane(made[0]) + 1)
    assert len(train("stacked", *made)) == 7
    assert stacks == [3, 3, 1]


def test_the_estimate_grows_with_weights_rows_and_layers() -> None:
    def lane(hidden: list[int], **keys: Any) -> int:
        return stacked._bytes_a_lane(trial({"network": "mlp", "hidden": hidden}, **keys))

    # 6 x 10 + 10 + 10 x 4 + 4 weights; of a row are kept at least its inputs, ten activations and four outputs
    assert lane([10], batch=20) > 8 * 4 * 114 + 20 * 4 * (6 + 10 + 4)
    assert lane([10], batch=20) < lane([10], batch=40) < lane([10])
    assert lane([10], batch=20) < lane([10, 10], batch=20)


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("full"), RuntimeError("DefaultCPUAllocator: can't")]
)
def test_a_stack_that_memory_does_not_hold_is_halved(
    error: Exception, stacks: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    step = stacked._Lanes.step

    def short(self: Any, *rest: Any) -> Tensor:
        if len(self.rate) > 2:
            raise error
        return step(self, *rest)

    monkeypatch.setattr(stacked._Lanes, "step", short)
    made = seven()
    trained = list(ENGINES["stacked"].train(made, "cpu"))
    assert sorted(t.outcome.key for t in trained) == sorted(t.key for t in made)
    assert stacks == [7, 3, 1, 1, 1, 1, 1, 1, 1]


def test_lanes_that_were_handed_over_are_not_trained_again(
    stacks: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    step = stacked._Lanes.step
    failed: list[int] = []

    def short(self: Any, *rest: Any) -> Tensor:
        if len(self.rate) < 7 and not failed:
            failed.append(len(self.rate))
            raise torch.OutOfMemoryError("full")
        return step(self, *rest)

    monkeypatch.setattr(stacked._Lanes, "step", short)
    made = seven()
    trained = list(ENGINES["stacked"].train(made, "cpu"))
    assert sorted(t.outcome.key for t in trained) == sorted(t.key for t in made)
    left = failed[0]
    assert stacks[0] == 7
    assert sum(stacks[1:]) == left < 7


def test_one_network_too_large_for_memory_is_said_in_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def short(self: Any, *rest: Any) -> Tensor:
        raise torch.OutOfMemoryError("full")

    monkeypatch.setattr(stacked._Lanes, "step", short)
    with pytest.raises(NatalError, match="one network does not fit in the memory of cpu; choose a smaller"):
        train("stacked", *seven())


def test_other_errors_are_not_taken_for_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(self: Any, *rest: Any) -> Tensor:
        raise RuntimeError("shapes")

    monkeypatch.setattr(stacked._Lanes, "step", wrong)
    with pytest.raises(RuntimeError, match="shapes"):
        train("stacked", *seven())


# -- the host does not wait ----------------------------------------------------------------------------------


class Waits(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts how often a number is asked of a tensor."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("engine", ["torch", "stacked"])
def test_no_number_is_asked_of_the_device_between_evaluations(engine: str) -> None:
    counts = []
    for length in ("5it", "20it"):
        # torch's Adam asks its count of steps, which is on the host
        made = trial(
            NORMED, optimiser="sgd", length=length, evaluate=length, batch=40, clip=0.1, schedule="cosine"
        )
        with Waits() as waits:
            train(engine, made)
        counts.append(waits.count)
    assert counts[0] == counts[1] > 0
