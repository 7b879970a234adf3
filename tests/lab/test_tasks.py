"""Tasks: the published data to the last bit, splits, losses and metrics by hand, data that are refused."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from natal import Data, NatalError
from natal.lab.tasks import LOSSES, METRICS, Split, accuracy, load, r2, task, tasks


def digest(tensor: Tensor) -> str:
    return hashlib.sha256(tensor.numpy().tobytes()).hexdigest()[:16]


# -- the published data ----------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [42, 123, 7])
def test_modular_is_the_published_recipe(seed: int) -> None:
    pairs = [(a, b) for a in range(97) for b in range(97)]
    order = np.random.RandomState(seed).permutation(9409)
    data = tasks["modular"].data(seed)
    inputs, targets = torch.cat([data.inputs, data.test_inputs]), torch.cat([data.targets, data.test_targets])
    assert (len(data.inputs), len(data.test_inputs), data.outputs) == (7527, 1882, 97)
    assert inputs.sum().item() == 2 * 9409
    for row in (0, 1, 7526, 7527, 9408):
        a, b = pairs[order[row]]
        assert inputs[row].nonzero().flatten().tolist() == [a, 97 + b]
        assert targets[row].item() == (a + b) % 97


@pytest.mark.parametrize("seed", [42, 123, 7])
def test_regression_is_the_published_recipe(seed: int) -> None:
    rng = np.random.RandomState(seed)
    w = rng.randn(20).astype(np.float32)
    x = rng.randn(200, 20).astype(np.float32)
    y = x @ w + np.float32(0.1) * rng.randn(200).astype(np.float32)
    data = tasks["regression"].data(seed)
    assert torch.equal(data.inputs, torch.from_numpy(x[:160]))
    assert torch.equal(data.test_inputs, torch.from_numpy(x[160:]))
    assert torch.equal(data.targets, torch.from_numpy(y[:160, None]))
    assert torch.equal(data.test_targets, torch.from_numpy(y[160:, None]))
    assert data.outputs == 1


def test_the_data_of_seed_42_are_these_bits() -> None:
    modular, regression = tasks["modular"].data(42), tasks["regression"].data(42)
    assert digest(modular.inputs) == "5e1d032cefcfc227"
    assert digest(modular.targets) == "7e7e4577620d549c"
    assert digest(modular.test_targets) == "6d0eceb098f17853"
    assert digest(regression.inputs) == "cee02772e36db6e4"


@pytest.mark.parametrize(("name", "held_out", "fit"), [("modular", 753, 6774), ("regression", 16, 144)])
def test_the_split_is_the_published_one(name: str, held_out: int, fit: int) -> None:
    split = load(name, 42, 0.1)
    order = torch.randperm(held_out + fit, generator=torch.Generator().manual_seed(42))
    assert torch.equal(split.val, order[:held_out])
    assert torch.equal(split.fit, order[held_out:])
    assert (len(split.val), len(split.fit)) == (held_out, fit)


def test_data_are_loaded_once_and_the_global_generators_are_left_alone() -> None:
    torch.manual_seed(1)
    np.random.seed(1)
    before, (_, numpy_before, *_) = torch.get_rng_state(), np.random.get_state(legacy=True)
    assert load("regression", 77, 0.1) is load("regression", 77, 0.1)
    assert torch.equal(torch.get_rng_state(), before)
    assert np.array_equal(np.random.get_state(legacy=True)[1], numpy_before)


# -- losses and metrics by hand --------------------------------------------------------------------------


def test_r2_on_four_points() -> None:
    # mean 2.5, SS_tot 2.25 + .25 + .25 + 2.25 = 5, SS_res 0 + .25 + 0 + 1 = 1.25
    targets, outputs = torch.tensor([[1.0], [2.0], [3.0], [4.0]]), torch.tensor([[1.0], [2.5], [3.0], [3.0]])
    assert r2(outputs, targets) == 0.75
    assert r2(targets, targets) == 1.0
    assert r2(torch.full((4, 1), 2.5), targets) == 0.0
    assert r2(targets.flip(0), targets) == -3.0
    assert math.isnan(r2(outputs, torch.ones(4, 1)))


def test_accuracy_on_four_points() -> None:
    outputs = torch.tensor([[0.0, 1.0], [1.0, 0.0], [0.0, 1.0], [0.5, 0.5]])
    assert accuracy(outputs, torch.tensor([1, 0, 0, 0])) == 0.75  # a tie goes to the first class
    assert accuracy(outputs, torch.tensor([0, 1, 0, 1])) == 0.0


def test_losses_by_hand() -> None:
    cross_entropy, squared_error = LOSSES["cross-entropy"].value, LOSSES["squared-error"].value
    assert cross_entropy(torch.zeros(3, 97), torch.tensor([0, 1, 96])).item() == pytest.approx(math.log(97))
    assert squared_error(torch.tensor([[1.0], [2.0]]), torch.tensor([[0.0], [4.0]])).item() == 2.5


def test_a_task_says_how_it_is_judged() -> None:
    modular, regression = tasks["modular"], tasks["regression"]
    assert (modular.loss.name, modular.metric.field, modular.learning_rate) == ("cross-entropy", "acc", 1e-2)
    assert (regression.loss.name, regression.metric.field, regression.learning_rate) == (
        "squared-error",
        "r2",
        1e-3,
    )
    assert (modular.chance, regression.chance) == (1 / 97, 0.0)
    assert set(METRICS) == {"accuracy", "R²"}


# -- tasks of one's own ----------------------------------------------------------------------------------

COUNT = torch.arange(40.0)[:, None]
NUMBERS = Data(torch.ones(40, 3), COUNT, torch.ones(10, 3), COUNT[:10], outputs=1)
CLASSES = replace(
    NUMBERS,
    targets=torch.zeros(40, dtype=torch.int64),
    test_targets=torch.ones(10, dtype=torch.int64),
    outputs=2,
)


@pytest.fixture
def made() -> Iterator[Callable[..., Split]]:
    """Register the task ``made`` that returns something, and load it."""

    def make(data: Any, loss: str = "squared-error", fraction: float = 0.1) -> Split:
        metric = "R²" if loss == "squared-error" else "accuracy"

        @task("made", loss=loss, metric=metric, learning_rate=0.1, chance=0.0)
        def returns(seed: int) -> Data:
            return data  # type: ignore[no-any-return]

        return load("made", 0, fraction)

    yield make
    tasks._entries.pop("made", None)


def test_a_task_of_ones_own_is_split(made: Callable[..., Split]) -> None:
    assert (len(made(NUMBERS).val), len(made(CLASSES, "cross-entropy").fit)) == (4, 36)


def test_a_redefined_task_is_loaded_anew(made: Callable[..., Split]) -> None:
    made(NUMBERS)
    assert torch.equal(made(replace(NUMBERS, inputs=torch.zeros(40, 3))).data.inputs, torch.zeros(40, 3))


@pytest.mark.parametrize(
    ("data", "loss", "words"),
    [
        (None, "squared-error", "must return natal.Data, got NoneType"),
        (
            replace(NUMBERS, inputs=np.ones((40, 3), np.float32)),
            "squared-error",
            "training inputs and targets must be torch tensors, got ndarray and Tensor",
        ),
        (
            replace(NUMBERS, inputs=torch.ones(40)),
            "squared-error",
            r"must be \(rows, features\) float32, got \(40,\)",
        ),
        (
            replace(NUMBERS, inputs=torch.ones(40, 3, dtype=torch.float64)),
            "squared-error",
            "got .* torch.float64",
        ),
        (
            replace(NUMBERS, test_inputs=torch.ones(10, 4)),
            "squared-error",
            "4 test features but 3 training features",
        ),
        (replace(NUMBERS, targets=torch.ones(39, 1)), "squared-error", "as many rows"),
        (replace(NUMBERS, test_targets=torch.tensor(1.0)), "squared-error", "as many rows"),
        (
            replace(NUMBERS, inputs=torch.ones(0, 3), targets=torch.ones(0, 1)),
            "squared-error",
            "at least one",
        ),
        (
            replace(NUMBERS, targets=torch.ones(40)),
            "squared-error",
            r"must be \(rows, 1\) float32, got \(40,\)",
        ),
        (
            replace(NUMBERS, test_targets=torch.full((10, 1), math.nan)),
            "squared-error",
            "test data hold NaN or infinity",
        ),
        (
            replace(NUMBERS, inputs=torch.full((40, 3), math.inf)),
            "squared-error",
            "training data hold NaN or infinity",
        ),
        (
            replace(NUMBERS, targets=torch.ones(40, 1)),
            "squared-error",
            "its 4 validation targets are all the same, so R²",
        ),
        (
            replace(NUMBERS, test_targets=COUNT[:10] * 0),
            "squared-error",
            "its 10 test targets are all the same, so R²",
        ),
        (replace(CLASSES, outputs=1), "cross-entropy", "test targets must be int64 classes below outputs=1"),
        (
            replace(CLASSES, targets=CLASSES.targets.float()),
            "cross-entropy",
            "training targets must be int64 classes",
        ),
        (
            replace(CLASSES, targets=CLASSES.targets - 1),
            "cross-entropy",
            "training targets must be int64 classes",
        ),
    ],
)
def test_data_that_cannot_be_trained_on_are_refused(
    made: Callable[..., Split], data: Any, loss: str, words: str
) -> None:
    with pytest.raises(NatalError, match="^task 'made'.*" + words):
        made(data, loss)


def test_a_split_without_rows_is_refused(made: Callable[..., Split]) -> None:
    with pytest.raises(NatalError, match=r"validation_fraction 0\.01 of task 'made''s 40 rows is 0 rows"):
        made(NUMBERS, fraction=0.01)


@pytest.mark.parametrize(
    ("words", "refusal"),
    [
        ({"loss": "mse"}, "unknown loss 'mse'; known: cross-entropy, squared-error"),
        ({"metric": "auc"}, "unknown metric 'auc'; known: accuracy, R²"),
        ({"metric": "accuracy"}, "metric 'accuracy' does not go with loss 'squared-error'"),
        ({"loss": "cross-entropy"}, "metric 'R²' does not go with loss 'cross-entropy'"),
        ({"learning_rate": 0.0}, "learning_rate must be positive, such as 0.001, got 0.0"),
        ({"learning_rate": math.nan}, "learning_rate must be positive, such as 0.001, got nan"),
    ],
)
def test_a_task_that_cannot_be_judged_is_refused(words: dict[str, Any], refusal: str) -> None:
    good: dict[str, Any] = {"loss": "squared-error", "metric": "R²", "learning_rate": 0.1, "chance": 0.0}
    with pytest.raises(NatalError, match=f"task 'made': {refusal}"):
        task("made", **{**good, **words})
