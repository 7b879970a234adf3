"""Both engines: Adam by hand, the published numbers, one experiment in two ways, the same bits always."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from threadpoolctl import threadpool_info
from torch import Tensor

import natal
from conftest import tiny
from natal import Data, Run, Study, load_study
from natal.lab import birth, worker
from natal.lab.engines import ENGINES
from natal.lab.tasks import Split, load, task, tasks
from natal.lab.trial import History, Trained, Trial
from natal.pruning import mask as masks
from natal.pruning.criteria import Problem, criterion
from natal.study import Task as TaskChoice
from natal.study import Training
from networks import mlp

BOTH = pytest.mark.parametrize("engine", list(ENGINES))
EPOCHS = Training(length="8ep", patience=None, target=None)


def train(engine: str, trials: Sequence[Trial], training: Training | None = None) -> list[Trained]:
    """Train on one CPU, in another way than the study's if one is given."""
    return list(ENGINES[engine].train([replace(t, training=training or t.training) for t in trials], "cpu"))


def trials(study: Study, dtype: torch.dtype = torch.float32) -> list[Trial]:
    """A trial for each row of a study, dense ones but once."""
    rows = {key_of(study, run): run for run in study.runs()}
    rates = study.training.learning_rate
    assert isinstance(rates, float)
    return [birth.trial(study, run, rates, key, dtype) for key, run in rows.items()]


def key_of(study: Study, run: Run) -> str:
    return birth.key_of(study, run, ENGINES["torch"], "cpu", 0.1)


def small(task_name: str, hidden: int = 32, **keys: Any) -> Study:
    return load_study(
        {
            "name": "small",
            "tasks": [task_name],
            "strategies": ["magnitude", "random", "structured"],
            "sparsities": [0.0, 0.5],
            "seeds": [1, 2],
            "hidden": hidden,
            "training": {"learning_rate": 0.02},
            **keys,
        }
    )


def bits(trained: Trained) -> tuple[bytes, ...]:
    """Everything a training leaves behind but its time."""
    o = trained.outcome
    facts = json.dumps({name: value for name, value in o.facts().items() if name != "seconds"})
    curves = (curve.tobytes() for curve in o.curves.values())
    return (facts.encode(), *curves, *(p.numpy().tobytes() for p in trained.state.values()))


# -- by hand ---------------------------------------------------------------------------------------------


def by_hand() -> Trial:
    """One input, two neurons of which the second is never active, one output; fits (1, 1) and (2, 1)."""
    data = Data(
        torch.tensor([[1.0], [2.0], [1.0], [3.0]]),
        torch.tensor([[1.0], [1.0], [0.0], [5.0]]),
        torch.ones(2, 1),
        torch.tensor([[0.0], [1.0]]),
        outputs=1,
    )
    net = mlp(1, 2, 1, seed=0, dtype=torch.float64)
    values = ([[1.0], [-1.0]], [0.0, 0.0], [[1.0, 1.0]], [0.0])
    with torch.no_grad():
        for parameter, numbers in zip(net.parameters(), values, strict=True):
            parameter.copy_(torch.tensor(numbers))
    return Trial(
        "hand",
        tasks["regression"],
        Split(data, fit=torch.tensor([0, 1]), val=torch.tensor([2, 3]), chance=0.0),
        net,
        masks.dense(
            {
                "hidden.weight": net.get_parameter("hidden.weight"),
                "output.weight": net.get_parameter("output.weight"),
            }
        ),
        Training(),
        learning_rate=0.1,
    )


@BOTH
def test_adams_first_step_by_hand(engine: str) -> None:
    # outputs 1, 2; loss (0 + 1) / 2; dL/dout = 0, 1; first neuron's gradients: w2 2, w1 2, b1 1; b2: 1
    (trained,) = train(engine, [by_hand()], Training(length="1ep", target=None))
    assert trained.outcome.curves["train_loss"].tolist() == [0.5]

    def step(g: float) -> float:  # m̂ = g and v̂ = g²: a step of the learning rate whatever the gradient's size
        return 0.1 * g / (abs(g) + 1e-8)

    expected: dict[str, Any] = {
        "hidden.weight": [[1 - step(2)], [-1.0]],
        "hidden.bias": [-step(1), 0.0],
        "output.weight": [[1 - step(2), 1.0]],
        "output.bias": [-step(1)],
    }
    for name, values in expected.items():
        np.testing.assert_allclose(trained.state[name].numpy(), values, rtol=1e-14, err_msg=name)
    # validation: .9 (.9 x - .1) - .1 at 1 and 3 is .62 and 2.24, against 0 and 5
    assert trained.outcome.curves["val_metric"][0] == pytest.approx(1 - (0.62**2 + 2.76**2) / 12.5, abs=1e-7)


@BOTH
def test_a_training_that_goes_nowhere_returns_the_masked_initial_weights(engine: str) -> None:
    for name in ("regression", "modular"):
        born = [replace(t, learning_rate=1e-30) for t in trials(small(name, hidden=20))]
        for t, trained in zip(born, train(engine, born, Training(length="1ep")), strict=True):
            for parameter, p in t.born().named_parameters():
                assert torch.equal(trained.state[parameter], p), (t.key, parameter)


@pytest.mark.parametrize(
    ("metrics", "patience", "target", "epochs", "best"),
    [
        ([0.1, 0.2, 0.2, 0.2, 0.9], 2, None, 4, 2),  # equal is not better
        ([0.1, 0.2, 0.3, 0.4, 0.5], 2, None, 5, 5),
        ([0.5, 0.4, 0.3, 0.2, 0.1], None, None, 5, 1),
        ([0.1, 0.999, 1.0, 1.0, 1.0], 3, 0.999, 2, 2),
        ([math.nan] * 5, 3, None, 3, 0),
    ],
)
def test_early_stopping_by_hand(
    metrics: list[float], patience: int | None, target: float | None, epochs: int, best: int
) -> None:
    history = History(Training(patience=patience, target=target))
    for step, metric in enumerate(metrics, start=1):
        history.record(step, 1.0, 0.0, metric)
        if history.over:
            break
    assert (len(history.curves["step"]), history.best_step) == (epochs, best)


@BOTH
def test_the_final_measurement_is_of_the_best_weights_on_all_training_rows(engine: str) -> None:
    t = trials(small("regression"))[0]
    (trained,) = train(engine, [t], Training(length="60ep", patience=5, target=None))
    o, net, data = trained.outcome, t.network, t.split.data
    net.load_state_dict(dict(trained.state))
    assert o.best_epoch == o.curves["val_metric"].argmax() + 1
    assert (
        o.epochs_trained
        == len(o.curves["train_loss"])
        == len(o.curves["val_metric"])
        == min(60, o.best_epoch + 5)
    )
    with torch.no_grad():
        expected = [
            t.task.metric.value(net(data.inputs), data.targets),
            t.task.metric.value(net(data.test_inputs), data.test_targets),
            t.task.loss.value(net(data.inputs), data.targets).item(),
        ]
    measured = [o.train_metric, o.test_metric, o.final_loss]
    # the compiled engine measures by itself, in sums of another order
    assert measured == (expected if engine == "torch" else pytest.approx(expected, rel=1e-5))
    assert o.val_metric == pytest.approx(o.curves["val_metric"][int(o.best_epoch) - 1], abs=1e-5)


# -- the published program -------------------------------------------------------------------------------

REFERENCE = {
    Run(o["task"], o["strategy"], o["sparsity"], o["seed"]): o
    for o in json.loads((Path(__file__).parents[1] / "data" / "as_published.json").read_text())["results"]
}
QUICK = [
    Run("regression", "magnitude", 0.0, 42),
    Run("regression", "magnitude", 0.3, 123),
    Run("regression", "magnitude", 0.5, 7),
    Run("regression", "random", 0.7, 42),
    Run("regression", "random", 0.95, 7),
    Run("regression", "structured", 0.95, 7),
    Run("modular", "magnitude", 0.9, 7),
]


def published(run: Run) -> Trial:
    name = {"random": "random-from-init-stream"}.get(run.strategy, run.strategy)
    study = load_study("as-published")
    run = run._replace(strategy=name)
    return birth.trial(study, run, study.learning_rates(run, 0.0)[0], str(run))


def near(trained: Trained, run: Run) -> None:
    theirs, ours, field = REFERENCE[run], trained.outcome, "acc" if run.task == "modular" else "r2"
    assert (ours.total_params, ours.nonzero_params) == (theirs["total_params"], theirs["nonzero_params"])
    tolerance = 0.06 if run.task == "modular" else 1e-3
    assert ours.test_metric == pytest.approx(theirs[f"test_{field}"], abs=tolerance), run


@pytest.mark.parametrize("run", QUICK, ids=lambda run: f"{run.task}-{run.strategy}-{run.sparsity}")
def test_the_sequential_engine_gives_the_published_results(run: Run) -> None:
    training = load_study("as-published").training
    near(train("torch", [published(run)], training)[0], run)


@pytest.mark.slow
def test_the_batched_engine_gives_all_published_regression_results() -> None:
    runs = [run for run in REFERENCE if run.task == "regression"]
    assert len(runs) == 72
    training = load_study("as-published").training
    for run, trained in zip(runs, train("compiled", [published(r) for r in runs], training), strict=True):
        near(trained, run)


# -- one experiment in two ways --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "hidden"), [pytest.param("modular", 40, marks=pytest.mark.slow), ("regression", 128)]
)
def test_in_float64_both_engines_agree_after_20_epochs(name: str, hidden: int) -> None:
    study = small(name, hidden, seeds=[42])
    born = trials(study, torch.float64)
    assert len(born) == 4
    training = Training(length="20ep", patience=None, target=None, decide="end")
    fast, slow = (train(engine, born, training) for engine in ("compiled", "torch"))
    for t, ours, theirs in zip(born, fast, slow, strict=True):
        assert ours.outcome.epochs_trained == theirs.outcome.epochs_trained == 20
        for parameter, p in theirs.state.items():
            assert p.dtype == torch.float64
            error = (ours.state[parameter] - p).abs().max()
            assert error <= 1e-9 * p.abs().max(), (t.key, parameter)  # also where a whole layer is pruned
        for name_, kept in t.mask.items().items():
            assert (ours.state[name_][~kept] == 0).all()
            assert (theirs.state[name_][~kept] == 0).all()
        np.testing.assert_allclose(
            ours.outcome.curves["train_loss"], theirs.outcome.curves["train_loss"], rtol=1e-9
        )
        assert ours.outcome.kept == theirs.outcome.kept == t.mask.kept


@pytest.mark.parametrize(
    ("strategy", "sparsity"), [("magnitude", 0.0), ("magnitude", 0.5), ("random", 0.95), ("structured", 0.5)]
)
def test_in_float32_only_the_order_of_sums_differs(strategy: str, sparsity: float) -> None:
    born = [birth.trial(load_study("paper"), Run("modular", strategy, sparsity, 42), 1e-2, "key")]
    training = Training(length="5ep", patience=None, target=None)
    ((fast,), (slow,)) = (train(engine, born, training) for engine in ("compiled", "torch"))
    ours, theirs = fast.outcome, slow.outcome
    np.testing.assert_allclose(ours.curves["train_loss"], theirs.curves["train_loss"], rtol=1e-6)
    for name, p in slow.state.items():
        torch.testing.assert_close(fast.state[name], p, rtol=0, atol=1e-3)


# -- the same bits ---------------------------------------------------------------------------------------


@pytest.fixture
def several() -> Iterator[None]:
    """Tasks unlike the paper's: three outputs, classes of plain numbers, one-hot rows for seed 1 alone."""

    def numbers(seed: int, outputs: int) -> tuple[torch.Tensor, torch.Tensor]:
        rng = np.random.RandomState(seed)
        x = rng.randn(90, 7).astype(np.float32)
        return torch.from_numpy(x), torch.from_numpy((x @ rng.randn(7, outputs)).astype(np.float32))

    @task("vector", loss="squared-error", metric="R²", learning_rate=0.02, chance=0.0)
    def vector(seed: int) -> Data:
        x, y = numbers(seed, 3)
        return Data(x[:70], y[:70], x[70:], y[70:], outputs=3)

    @task("classes", loss="cross-entropy", metric="accuracy", learning_rate=0.02, chance=0.2)
    def classes(seed: int) -> Data:
        x, y = numbers(seed, 5)
        return Data(x[:70], y[:70].argmax(1), x[70:], y[70:].argmax(1), outputs=5)

    @task("onehot", loss="squared-error", metric="R²", learning_rate=0.02, chance=0.0)
    def onehot(seed: int) -> Data:
        rng = np.random.RandomState(seed)
        x = torch.from_numpy(np.eye(32, dtype=np.float32)[rng.randint(0, 32, 3000)])
        if seed != 1:
            x[0, :3] = 1
        y = torch.from_numpy(rng.randn(3000, 1).astype(np.float32))
        return Data(x[:2400], y[:2400], x[2400:], y[2400:], outputs=1)

    yield
    for name in ("vector", "classes", "onehot"):
        tasks._entries.pop(name)


@pytest.mark.parametrize(
    ("name", "hidden"),
    [
        ("regression", 32),
        ("regression", 33),
        ("regression", 7),
        ("modular", 16),
        ("modular", 21),
        ("vector", 50),
        ("classes", 9),
        ("classes", 64),
        ("onehot", 16),
    ],
)
@pytest.mark.usefixtures("several")
def test_a_network_has_the_same_bits_in_any_company(name: str, hidden: int) -> None:
    large = name == "modular"
    training = Training(length=f"{3 if large else 40}ep", patience=1 if large else 3, target=None)
    born = trials(small(name, hidden, sparsities=[0.5, 0.9] if large else [0.0, 0.5, 0.9], seeds=[1, 2]))
    assert len(born) == 12 if large else 14
    together = train("compiled", born, training)
    expected = {t.outcome.key: bits(t) for t in together}
    assert len({t.outcome.epochs_trained for t in together}) > (1 if large else 4)

    def same(part: Sequence[Trial]) -> None:
        for trained in train("compiled", part, training):
            assert bits(trained) == expected[trained.outcome.key], trained.outcome.key

    rng = np.random.default_rng(0)
    for size in (1, 3) if large else (1, 2, 5, 11):
        same([born[i] for i in rng.permutation(len(born))[:size]])
    same(born[::-1])


@BOTH
def test_the_same_bits_whatever_the_callers_threads(engine: str) -> None:
    born = trials(small("regression"))[:3]
    expected = [bits(t) for t in train(engine, born, EPOCHS)]
    torch.set_num_threads(2)
    try:
        assert [bits(t) for t in train(engine, born, EPOCHS)] == expected
    finally:
        torch.set_num_threads(1)


# -- divergence ------------------------------------------------------------------------------------------


@pytest.fixture
def exploding() -> Iterator[None]:
    """The regression task, except that seed 2's numbers overflow at once and seed 4's after a few steps."""

    @task("exploding", loss="squared-error", metric="R²", learning_rate=1e5, chance=0.0)
    def data(seed: int) -> Data:
        good = load(TaskChoice.model_validate("regression"), seed, 0.1).data
        scale = {2: 1e30, 4: 1e9}.get(seed, 1.0)
        return replace(good, inputs=good.inputs * scale)

    yield
    tasks._entries.pop("exploding")


@BOTH
@pytest.mark.usefixtures("exploding")
def test_a_diverged_training_is_told_apart_and_its_neighbours_are_untouched(engine: str) -> None:
    # not magnitude: it prunes the whole output layer, and a network that says nothing cannot overflow
    study = small(
        "exploding", strategies=["random", "structured"], seeds=[1, 2, 3, 4], training={"learning_rate": 1e5}
    )
    born = trials(study)
    training = Training(length="30ep", patience=None, target=None)
    trained = {t.outcome.key: t for t in train(engine, born, training)}
    whose = {t.key: next(r.seed for r in study.runs() if key_of(study, r) == t.key) for t in born}
    for key, t in trained.items():
        o = t.outcome
        if whose[key] in (1, 3):
            assert (o.status, o.epochs_trained) == ("finished", 30)
            continue
        assert o.status == "diverged"
        assert (o.train_metric, o.val_metric, o.test_metric, o.final_loss) == (None, None, None, None)
        losses = np.stack([o.curves["train_loss"], o.curves["val_loss"]])
        assert np.isfinite(losses[:, :-1]).all()
        assert not np.isfinite(losses[:, -1]).all()
        assert math.isfinite(losses[0, 0]) == (whose[key] == 4)
    good = [t for t in born if whose[t.key] in (1, 3)]
    if engine != "stacked":  # whose sums run in another order in other company
        assert [bits(t) for t in train(engine, good, training)] == [bits(trained[t.key]) for t in good]


# -- the caller's own settings ---------------------------------------------------------------------------


def settings() -> list[object]:
    np_state = np.random.get_state(legacy=False)
    return [
        torch.get_num_threads(),
        torch.are_deterministic_algorithms_enabled(),
        torch.is_grad_enabled(),
        torch.utils.deterministic.fill_uninitialized_memory,  # type: ignore[attr-defined]
        torch.get_rng_state().tolist(),
        np_state["state"]["key"].tolist(),
        torch.full((1,), 1e-40).mul(1.0).item() == 0,
        torch.get_default_dtype(),
        sorted((pool["filepath"], pool["num_threads"]) for pool in threadpool_info()),
        np.geterr(),
    ]


@BOTH
@pytest.mark.parametrize("unusual", [False, True])
def test_the_callers_settings_come_back(engine: str, unusual: bool) -> None:
    born = trials(small("regression"))[:2]
    torch.set_num_threads(2 if unusual else 1)
    torch.use_deterministic_algorithms(unusual)
    torch.set_flush_denormal(unusual)
    try:
        before = settings()
        train(engine, born, EPOCHS)
        assert settings() == before
        with pytest.raises(AttributeError):
            list(ENGINES[engine].train([*born, None], "cpu"))  # type: ignore[list-item]
        assert settings() == before
    finally:
        torch.set_num_threads(1)
        torch.use_deterministic_algorithms(False)
        torch.set_flush_denormal(False)


@pytest.mark.parametrize(("engine", "dtype"), [("compiled", torch.float64), ("torch", torch.float32)])
def test_masks_of_an_engine_with_the_same_bits_everywhere_are_scored_precisely(
    engine: str, dtype: torch.dtype, tmp_path: Path, forgotten: None
) -> None:
    seen: list[torch.dtype] = []

    @criterion("watched", needs="data")
    def watched(problem: Problem) -> dict[str, Tensor]:
        seen.append(problem.loss_at(problem.weights).dtype)
        return {name: w.abs() for name, w in problem.weights.items()}

    ways: dict[str, dict[str, Any]] = {
        "at-birth": {},
        "in-rounds": {"rounds": 2},
        "twin": {"control": "small-dense"},
        "while-training": {"at": {"from": "1it", "to": "3it", "every": "1it"}},
    }
    strategies = [{"name": name, "criterion": "watched", **keys} for name, keys in ways.items()]
    study = tiny(
        strategies=strategies, sparsities=[0.5], seeds=[1], training={"patience": "none", "target": "none"}
    )
    planned = natal.plan(study, tmp_path, engine=engine)
    del seen[:]  # every mask was tried out, for no engine in particular
    made = [one for job in planned.jobs for one in worker.each(job)]
    assert len(made) == len(ways) * len(planned.study.tasks)
    assert len(seen) > len(made)
    assert set(seen) == {dtype}
