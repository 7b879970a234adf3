"""Tasks: the published data to the last bit, splits, losses and metrics by hand, data that are refused."""

from __future__ import annotations

import hashlib
import inspect
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from natal import Data, NatalError
from natal.lab.shapes import Tokens
from natal.lab.tasks import LOSSES, METRICS, Split, accuracy, load, options, r2, task, tasks, unspoilt
from natal.lab.tasks.data import divide
from natal.study import Task


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
    before, numpy_before = torch.get_rng_state(), np.random.get_state(legacy=False)["state"]["key"]
    assert load("regression", 77, 0.1) is load("regression", 77, 0.1)
    assert torch.equal(torch.get_rng_state(), before)
    assert np.array_equal(np.random.get_state(legacy=False)["state"]["key"], numpy_before)


# -- options ---------------------------------------------------------------------------------------------


def data_of(entry: str, seed: int = 1, **keys: Any) -> Data:
    return load(Task.model_validate({"task": entry, **keys}), seed, 0.2).data


def pairs_of(data: Data) -> list[tuple[int, int, int]]:
    """Return (a, b, target) of every row of modular arithmetic, whichever form it has."""
    inputs, targets = torch.cat([data.inputs, data.test_inputs]), torch.cat([data.targets, data.test_targets])
    n = data.outputs
    if data.vocabulary:
        assert inputs[:, 2].eq(n).all()
        a, b = inputs[:, 0], inputs[:, 1]
    else:
        assert inputs.shape[1] == 2 * n
        assert inputs.sum(1).eq(2).all()
        a, b = inputs[:, :n].argmax(1), inputs[:, n:].argmax(1)
    return sorted(zip(a.tolist(), b.tolist(), targets.tolist(), strict=True))


@pytest.mark.parametrize("tokens", [False, True])
@pytest.mark.parametrize(
    ("operation", "answer"),
    [
        ("add", lambda a, b: (a + b) % 7),
        ("subtract", lambda a, b: (a - b) % 7),
        ("multiply", lambda a, b: a * b % 7),
        # x with x b = a
        ("divide", lambda a, b: next(x for x in range(7) if x * b % 7 == a)),
    ],
)
def test_modular_operations_by_hand(operation: str, answer: Callable[[int, int], int], tokens: bool) -> None:
    data = data_of("modular", modulus=7, operation=operation, tokens=tokens)
    divisors = range(1, 7) if operation == "divide" else range(7)
    assert pairs_of(data) == [(a, b, answer(a, b)) for a in range(7) for b in divisors]
    assert data.shape == ((3,) if tokens else (14,))


def test_the_tokens_of_modular_are_its_one_hot_rows_in_another_form() -> None:
    numbers, tokens = data_of("modular", modulus=5), data_of("modular", modulus=5, tokens=True)
    assert torch.equal(numbers.inputs[:, :5].argmax(1), tokens.inputs[:, 0])
    assert torch.equal(numbers.targets, tokens.targets)
    assert isinstance(tokens.shape, Tokens)
    assert tokens.shape.vocabulary == 6


@pytest.mark.parametrize(("diagonal", "pairs"), [(True, 2278), (False, 2211)])
def test_symmetric_pairs_are_there_once(diagonal: bool, pairs: int) -> None:
    # grokking tickets: 67 * 68 / 2 pairs with the diagonal, 67 * 66 / 2 without; 40 % train
    data = data_of("modular", modulus=67, symmetric=True, diagonal=diagonal, share=0.4)
    assert len(data.inputs) == int(0.4 * pairs)
    there = pairs_of(data)
    assert len({frozenset((a, b)) for a, b, _ in there}) == len(there) == pairs


def test_the_defaults_of_modular_written_out_are_the_default() -> None:
    written: dict[str, Any] = {
        "modulus": 97,
        "operation": "add",
        "share": 0.8,
        "symmetric": False,
        "tokens": False,
    }
    assert options(Task.model_validate({"task": "modular", **written})) == {}
    assert torch.equal(data_of("modular", **written).inputs, data_of("modular").inputs)


def test_regression_of_another_size() -> None:
    data = data_of("regression", rows=50, features=3, noise=0.0)
    assert (data.inputs.shape, data.test_inputs.shape) == ((40, 3), (10, 3))
    w = torch.linalg.lstsq(data.inputs, data.targets).solution
    assert torch.allclose(data.test_inputs @ w, data.test_targets, atol=1e-5)


def test_sparse_parity_is_the_parity_of_the_first_bits() -> None:
    data = data_of("sparse-parity", bits=9, relevant=2, train=60, test=30)
    assert (data.inputs.shape, data.test_inputs.shape, data.outputs) == ((60, 9), (30, 9), 2)
    assert set(data.inputs.unique().tolist()) == {-1.0, 1.0}  # type: ignore[no-untyped-call]
    assert torch.equal(data.targets, (data.inputs[:, 0] * data.inputs[:, 1] < 0).long())


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"task": "modular", "modulo": 5}, "task 'modular': unknown option 'modulo'; did you mean 'modulus'"),
        ({"task": "modular", "modulus": 1}, "option modulus must be greater than or equal to 2, got 1"),
        ({"task": "modular", "modulus": 5.0}, r"option modulus must be a whole number, got 5\.0"),
        (
            {"task": "modular", "operation": "plus"},
            "must be 'add', 'subtract', 'multiply' or 'divide', got 'plus'",
        ),
        ({"task": "modular", "share": 1.0}, r"option share must be less than 1, got 1\.0"),
        (
            {"task": "modular", "modulus": 2, "share": 0.1},
            r"'modular': share 0\.1 of 4 pairs is 0; both parts need",
        ),
        (
            {"task": "modular", "operation": "divide", "modulus": 9},
            "'divide' needs a prime modulus, .* got 9",
        ),
        (
            {"task": "modular", "operation": "subtract", "symmetric": True},
            "symmetric = true needs a op b = b op a",
        ),
        (
            {"task": "sparse-parity", "bits": 3, "relevant": 4},
            "'sparse-parity': relevant 4 is more than its 3 bits",
        ),
        ({"task": "regression", "noise": -1.0}, "option noise must be greater than or equal to 0"),
        ({"task": "mnist-5k", "normalise": "zero"}, "must be 'standard', 'unit' or 'none', got 'zero'"),
        ({"task": "mnist-5k", "augment": "flip"}, "option augment must be a list, got 'flip'"),
        (
            {"task": "mnist-5k", "augment": ["turn"]},
            r"option augment\[0\] must be 'flip' or 'crop', got 'turn'",
        ),
        ({"task": "mnist-6k"}, "unknown task 'mnist-6k'; did you mean 'mnist-5k'"),
    ],
)
def test_options_that_cannot_be_are_refused_in_one_line(keys: dict[str, Any], words: str) -> None:
    with pytest.raises(NatalError, match=words) as refusal:
        load(Task.model_validate(keys), 1, 0.1)
    assert "\n" not in str(refusal.value)


# -- the split -------------------------------------------------------------------------------------------


@given(st.lists(st.integers(0, 4), min_size=2, max_size=60), st.data())
def test_a_stratified_split_gives_every_class_its_share(classes: list[int], draw: st.DataObject) -> None:
    labels, rows = torch.tensor(classes), len(classes)
    count = draw.draw(st.integers(1, rows - 1))
    held, rest = divide(rows, count, torch.Generator().manual_seed(3), labels)
    assert sorted([*held.tolist(), *rest.tolist()]) == list(range(rows))
    assert len(held) == count
    for c in set(classes):
        exact = classes.count(c) * count / rows
        assert math.floor(exact) <= int((labels[held] == c).sum()) <= math.ceil(exact)
    again, _ = divide(rows, count, torch.Generator().manual_seed(3), labels)
    assert torch.equal(held, again)


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
    assert (load("modular", 1, 0.1).chance, load("regression", 1, 0.1).chance) == (1 / 97, 0.0)
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
            replace(NUMBERS, inputs=np.ones((40, 3), np.float32)),  # type: ignore[arg-type]
            "squared-error",
            "training inputs and targets must be torch tensors, got ndarray and Tensor",
        ),
        (
            replace(NUMBERS, inputs=torch.ones(40)),
            "squared-error",
            r"must be \(rows, ...\) float32, got \(40,\)",
        ),
        (
            replace(NUMBERS, inputs=torch.ones(40, 3, dtype=torch.float64)),
            "squared-error",
            "got .* torch.float64",
        ),
        (
            replace(NUMBERS, test_inputs=torch.ones(10, 4)),
            "squared-error",
            r"test rows of shape \(4,\) but training rows of shape \(3,\)",
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


TOKENS = replace(
    CLASSES, inputs=torch.ones(40, 3, dtype=torch.int64), test_inputs=torch.ones(10, 3, dtype=torch.int64)
)


def test_rows_of_any_shape_and_tokens_are_data(made: Callable[..., Split]) -> None:
    images = replace(CLASSES, inputs=torch.ones(40, 2, 5, 5), test_inputs=torch.ones(10, 2, 5, 5))
    assert made(images, "cross-entropy").data.shape == (2, 5, 5)
    shape = made(replace(TOKENS, vocabulary=2), "cross-entropy").data.shape
    assert isinstance(shape, Tokens)
    assert (shape, shape.vocabulary) == ((3,), 2)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (TOKENS, r"must be \(rows, ...\) float32, got \(40, 3\) torch.int64; tokens need a vocabulary"),
        (replace(TOKENS, vocabulary=1), "training inputs must be tokens below vocabulary=1"),
        (
            replace(CLASSES, vocabulary=5),
            r"must be \(rows, length\) int64 tokens, got \(40, 3\) torch.float32",
        ),
    ],
)
def test_tokens_that_cannot_be_embedded_are_refused(
    made: Callable[..., Split], data: Data, words: str
) -> None:
    with pytest.raises(NatalError, match="^task 'made'.*" + words):
        made(data, "cross-entropy")


def test_shares_of_classes_need_classes(made: Callable[..., Split]) -> None:
    with pytest.raises(
        NatalError, match="task 'made': stratified needs classes, and its loss is 'squared-error'"
    ):
        made(replace(NUMBERS, stratified=True))


def test_chance_is_a_guess_unless_a_task_says_otherwise(made: Callable[..., Split]) -> None:
    made(CLASSES, "cross-entropy")
    task("made", loss="cross-entropy", metric="accuracy", learning_rate=0.1)(tasks["made"].data)
    assert load("made", 0, 0.1).chance == 0.5
    task("made", loss="cross-entropy", metric="accuracy", learning_rate=0.1, chance=0.9)(tasks["made"].data)
    assert load("made", 0, 0.1).chance == 0.9


def test_data_without_a_seed_are_loaded_once(made: Callable[..., Split]) -> None:
    calls = []

    @task("made", loss="squared-error", metric="R²", learning_rate=0.1)
    def fixed(*, factor: float = 1.0) -> Data:
        calls.append(factor)
        return replace(NUMBERS, inputs=NUMBERS.inputs * factor)

    doubled = Task.model_validate({"task": "made", "factor": 2.0})
    one, other = load(doubled, 1, 0.1), load(doubled, 2, 0.1)
    assert one.data is other.data
    assert not torch.equal(one.val, other.val)
    assert load("made", 1, 0.1).data.inputs.mean() == 1
    assert calls == [2.0, 1.0]


def test_what_a_plugin_does_to_its_own_tensors_later_changes_nothing(made: Callable[..., Split]) -> None:
    own = torch.ones(40, 3)
    split = made(replace(NUMBERS, inputs=own))
    own.zero_()
    assert split.data.inputs.eq(1).all()


@pytest.mark.parametrize("part", ["inputs", "targets", "test_inputs", "test_targets", "fit", "val"])
def test_writing_into_shared_data_is_named_and_the_next_load_has_them_anew(
    made: Callable[..., Split], part: str
) -> None:
    split = made(NUMBERS)
    shared = getattr(split if part in {"fit", "val"} else split.data, part)
    unspoilt(tasks["made"], split)
    before = shared.clone()
    shared[0] = 7
    with pytest.raises(NatalError, match="task 'made': this training wrote into the data that others share"):
        unspoilt(tasks["made"], split)
    anew = load("made", 0, 0.1)
    assert torch.equal(getattr(anew if part in {"fit", "val"} else anew.data, part), before)
    unspoilt(tasks["made"], anew)


def test_a_refusal_of_a_plugin_begins_with_its_task(made: Callable[..., Split]) -> None:
    @task("made", loss="squared-error", metric="R²", learning_rate=0.1)
    def refuses(seed: int) -> Data:
        raise NatalError("the moon is not full; wait")

    with pytest.raises(NatalError, match=r"^task 'made': the moon is not full; wait$"):
        load("made", 0, 0.1)


def test_the_documented_task_works(made: Callable[..., Split]) -> None:
    text = (Path(__file__).parents[2] / "docs" / "tasks.md").read_text("utf-8")
    exec(text.split("```python\n")[1].split("```")[0], {"__name__": "documented"})
    try:
        data = load(Task.model_validate({"task": "circle", "rows": 60}), 1, 0.1).data
    finally:
        tasks._entries.pop("circle", None)
    assert (data.inputs.shape, data.shape) == ((30, 2), (2,))


# -- documentation ---------------------------------------------------------------------------------------


def test_every_task_and_option_is_documented() -> None:
    text = (Path(__file__).parents[2] / "docs" / "tasks.md").read_text("utf-8")
    sections = {part.split("`")[1]: part for part in text.split("\n## ")[1:] if part.startswith("`")}
    assert set(sections) == {n for n in tasks if tasks[n].data.__module__.startswith("natal.")}
    for name, section in sections.items():
        entry = tasks[name]
        assert f"learning rate {entry.learning_rate:g}" in section, name
        for key, parameter in list(inspect.signature(entry.data).parameters.items())[entry.seeds :]:
            default = parameter.default
            written = json.dumps(list(default) if isinstance(default, tuple) else default)
            assert f"`{key} = {written}`" in section, (name, key)


def test_a_split_without_rows_is_refused(made: Callable[..., Split]) -> None:
    with pytest.raises(
        NatalError, match=r"validation_fraction = 0\.01 of the 40 rows of task 'made' is 0 rows"
    ):
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
