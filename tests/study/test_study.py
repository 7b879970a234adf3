"""Study files: the presets, the grid, the keys, and every refusal."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from conftest import tiny, toml
from natal import NatalError, Recipe, Run, Study, load_study
from natal.study import Maker, Network, Task, Training, keys, presets


def test_the_paper_preset_is_the_papers_grid() -> None:
    study = load_study("paper")
    runs = study.runs()
    assert len(runs) == len(set(runs)) == 144
    assert runs[0] == Run("modular", "magnitude", 0.0, 42)
    assert runs[:3] == [Run("modular", "magnitude", 0.0, seed) for seed in (42, 123, 7)]
    assert runs[-1] == Run("regression", "structured", 0.95, 7)
    assert study.sparsities == (0.0, 0.1, 0.3, 0.5, 0.7, 0.8, 0.9, 0.95)
    training = study.training
    assert (training.epochs, training.patience, training.target) == (500, 100, 0.999)
    assert (training.validation_fraction, study.hidden) == (0.1, 128)
    assert [study.learning_rates(run, 5.0) for run in (runs[0], runs[-1])] == [(1e-2,), (1e-3,)]


def test_the_presets_differ_in_the_random_strategy_alone() -> None:
    paper, published = load_study("paper"), load_study("as-published")
    assert set(presets()) >= {"paper", "as-published"}
    same = {"tasks", "sparsities", "seeds", "networks", "training"}
    assert paper.model_dump(include=same) == published.model_dump(include=same)
    assert published.recipe("random-from-init-stream").criterion == "init-stream"
    assert [r for r in published.strategies if r.criterion != "init-stream"] == [
        r for r in paper.strategies if r.criterion != "random"
    ]


@pytest.mark.parametrize(
    ("entry", "recipe"),
    [
        ("magnitude", Recipe(name="magnitude", criterion="magnitude")),
        (
            "structured",
            Recipe(name="structured", criterion="magnitude", scope="layerwise", granularity="neuron"),
        ),
        (
            {"criterion": "random", "scope": "layerwise"},
            Recipe(name="random-layerwise", criterion="random", scope="layerwise"),
        ),
        ({"name": "mine", "criterion": "random"}, Recipe(name="mine", criterion="random")),
    ],
)
def test_a_strategy_is_a_name_or_a_table(entry: Any, recipe: Recipe) -> None:
    assert load_study(tiny(strategies=[entry])).strategies == (recipe,)


def test_a_study_survives_its_own_dump() -> None:
    study = load_study("as-published")
    again = Study.model_validate(study.model_dump(mode="json"))
    assert again == study.model_copy(update={"folder": ""})
    assert again.digest == study.digest


def test_a_file_and_a_mapping_make_the_same_study(tmp_path: Path) -> None:
    file = tmp_path / "mein Studium ü.toml"
    file.write_text(toml(tiny()), "utf-8")
    assert load_study(file).digest == load_study(tiny()).digest
    assert load_study(file).folder == str(tmp_path)


def test_a_study_is_made_of_objects_too() -> None:
    training = Training(batch=32, length="2ep", optimiser="sgd")  # type: ignore[arg-type]
    network = Network.model_validate({"network": "resnet-20", "width": 8})
    parts = {"networks": [network], "tasks": [Task.model_validate("digits")], "training": training}
    written = {
        "networks": [{"network": "resnet-20", "width": 8}],
        "tasks": ["digits"],
        "training": {"batch": 32, "length": "2ep", "optimiser": "sgd"},
    }
    plain = {key: value for key, value in tiny().items() if key not in (*parts, "hidden")}
    assert load_study({**plain, **parts}) == load_study({**plain, **written})


def test_overrides_are_toml_literals_at_a_path() -> None:
    study = load_study(
        "paper",
        [
            'tasks=["regression"]',
            "training.epochs=7",
            'training.patience="none"',
            "training.learning_rate.regression=0.5",
        ],
    )
    assert study.task_names == ("regression",)
    assert (study.training.epochs, study.training.patience) == (7, None)
    assert study.learning_rates(study.runs()[0], 1.0) == (0.5,)


def test_a_study_can_be_changed_like_a_file() -> None:
    study = load_study("paper")
    assert load_study(study) == study
    assert load_study(study, ["hidden=64"]) == load_study("paper", ["hidden=64"])


def test_a_learning_rate_left_out_is_the_tasks_own() -> None:
    study = load_study({k: v for k, v in tiny().items() if k != "training"})
    assert study.learning_rates(study.runs()[0], 0.25) == (0.25,)


# -- keys ------------------------------------------------------------------------------------------------


MAKER = Maker(engine="compiled", revision=1, device="cpu", torch="2.13.0", numpy="2.4.6", natal="0.3.0")


def key(
    run: Run,
    study: Study | None = None,
    *,
    maker: Maker = MAKER,
    learning_rate: float = 1e-3,
    fingerprints: dict[str, str] | None = None,
) -> str:
    return keys.key(study or load_study("paper"), run, maker, learning_rate, fingerprints or {})


def test_dense_rows_share_one_training_per_task_and_seed() -> None:
    study = load_study("paper")
    rows = Counter(key(run, study) for run in study.runs())
    assert Counter(rows.values()) == {3: 6, 1: 126}


def test_a_key_depends_on_everything_the_training_depends_on() -> None:
    run = Run("regression", "random", 0.5, 7)
    base = key(run)
    changed = [
        key(run._replace(seed=8)),
        key(run._replace(sparsity=0.7)),
        key(run._replace(task="modular")),
        key(run._replace(strategy="magnitude")),
        *(
            key(run, maker=replace(MAKER, **change))
            for change in (
                {"engine": "torch"},
                {"revision": 2},
                {"device": "cuda"},
                {"torch": "2.14.0"},
                {"numpy": "2.5.0"},
            )
        ),
        key(run, learning_rate=2e-3),
        key(run, fingerprints={"random": "edited"}),
        key(run, fingerprints={"regression": "edited"}),
        *(
            key(run, load_study("paper", [change]))
            for change in (
                "hidden=64",
                "training.epochs=499",
                "training.patience=99",
                "training.target=0.99",
                "training.validation_fraction=0.2",
            )
        ),
    ]
    assert len({base, *changed}) == 1 + len(changed)


def test_a_key_ignores_what_the_training_does_not_depend_on() -> None:
    run = Run("regression", "random", 0.5, 7)
    other = load_study(
        "paper",
        [
            'name="other"',
            "seeds=[7, 8]",
            "sparsities=[0.5]",
            "claims=[]",
            'strategies=[{name="mine", criterion="random"}]',
        ],
    )
    assert key(run._replace(strategy="mine"), other, fingerprints={"magnitude": "edited"}) == key(run)


def test_keys_are_the_same_in_every_process_and_release() -> None:
    # a changed key would retrain everybody's stored runs; change this number only on purpose
    run = Run("regression", "structured", 0.9, 42)
    assert key(run) == key(run, maker=replace(MAKER, natal="9.9")) == "34913c6f0e5041eb"


OLD = [
    ("paper", Run("regression", "structured", 0.9, 42), "compiled", "f5be578434cae71a"),
    ("paper", Run("modular", "magnitude", 0.0, 7), "compiled", "e1db670f2b8fe56d"),
    ("controls", Run("regression", "fresh-narrow", 0.9, 7), "compiled", "8d16dd97ebef8a0b"),
    ("as-published", Run("regression", "random-from-init-stream", 0.5, 7), "torch", "bef2c3a5850a8c93"),
    ("as-published", Run("regression", "structured", 0.0, 7), "torch", "b0ce4fd77e1d8c3c"),
]
"""Keys that natal 0.2.0 gave, as it computed them."""


@pytest.mark.parametrize(("study", "run", "engine", "stored"), OLD)
def test_the_keys_of_natal_0_2_are_known(study: str, run: Run, engine: str, stored: str) -> None:
    maker = Maker(engine, 1, "cpu", torch="2.13.0+cpu", numpy="2.4.6", natal="0.2.0")
    rate = {"modular": 1e-2, "regression": 1e-3}[run.task]
    assert keys.key_0_2(load_study(study), run, maker, rate, {}) == stored
    # an engine whose bits have changed since made none of them
    assert keys.key_0_2(load_study(study), run, replace(maker, revision=2), rate, {}) is None


@pytest.mark.parametrize(
    "change",
    [
        "training.batch=32",
        'training.length="500it"',
        'training.optimiser="sgd"',
        'networks=["lenet-5"]',
        'networks=[{network="mlp", hidden=[128], init="orthogonal", name="mlp"}]',
        'tasks=["modular", {task="regression", rows=9, name="regression"}]',
    ],
)
def test_what_natal_0_2_could_not_ask_for_has_none_of_its_keys(change: str) -> None:
    overrides = [change, *(["training.learning_rate=0.1"] if "tasks" not in change else [])]
    study = load_study("paper", overrides)
    run = study.runs()[-1]
    assert keys.key_0_2(study, run, replace(MAKER, natal="0.2.0"), 0.1, {}) is None


# -- refusals --------------------------------------------------------------------------------------------

CLAIM = {
    "text": "a", "quantity": "difference", "task": "regression", "strategy": "random", "against": "dense",
    "sparsity": 0.5,
}  # fmt: skip

REFUSED: list[tuple[dict[str, Any], list[str]]] = [
    ({"sparsities": {"keep": 0.8, "rounds": 10**8}}, ["sparsities", "from 1 to 10000", "100000000"]),
    (
        {"strategies": [{"criterion": "random", "rounds": 10**9}]},
        ["strategies.0.rounds", "10000", "1000000000"],
    ),
    ({"strategies": [{"criterion": "random", "name": "dense"}]}, ["strategies", '"dense"', "another"]),
    ({"measure": {"connectivity": {"from": ["init"], "points": 10**9}}}, ["points", "10000", "1000000000"]),
    ({"training": {"schedule": {"name": "cosine", "factor": 0.5}}}, ["schedule.factor", '"step"', "0.5"]),
    ({"claims": [CLAIM | {"sparsity": 95.0}]}, ["claims.0.sparsity", "[0, 1)", "95", "0.95?"]),
    ({"claims": [CLAIM | {"against": "random"}]}, ["claims.0.against", "'random'", "another"]),
    ({"sparsities": [1.0]}, ["sparsities", "[0, 1)", "1.0"]),
    ({"sparsities": [-0.1]}, ["sparsities", "[0, 1)", "-0.1"]),
    ({"sparsities": [math.nan]}, ["sparsities", "nan"]),
    ({"sparsities": [math.inf]}, ["sparsities", "inf"]),
    ({"sparsities": [0.5, 0.1, 0.5]}, ["sparsities", "0.5 twice", "once"]),
    ({"sparsities": [0.0, -0.0]}, ["sparsities", "twice"]),
    ({"sparsities": ["a"]}, ["sparsities.0", "'a'"]),
    ({"sparsities": []}, ["sparsities", "at least one"]),
    ({"seeds": [-1]}, ["seeds", "[0, 2**32)", "-1"]),
    ({"seeds": [2**32]}, ["seeds", "[0, 2**32)", "4294967296"]),
    ({"seeds": [7, 7]}, ["seeds", "7 twice", "once"]),
    ({"seeds": [1.5]}, ["seeds.0", "integer", "1.5"]),
    ({"seeds": [True]}, ["seeds.0", "integer", "True"]),
    ({"tasks": []}, ["tasks", "at least one"]),
    ({"tasks": ["regression", "regression"]}, ["tasks", "'regression' twice"]),
    ({"tasks": "regression"}, ["tasks", "a list", "'regression'"]),
    ({"strategies": "random"}, ["strategies", "'random'"]),
    ({"strategies": ["random", "random"]}, ["strategies", "'random' twice"]),
    (
        {"strategies": [{"criterion": "random", "scope": "local"}]},
        ["strategies.0.scope", "'local'", "layerwise"],
    ),
    ({"strategies": [{"criterion": "random", "skope": "global"}]}, ["skope", "did you mean 'scope'"]),
    ({"strategies": [{"scope": "global"}]}, ["strategies.0", "criterion"]),
    ({"hidden": 1}, ["hidden", "at least 2", "1"]),
    ({"networks": ["lenet-5"]}, ["hidden: is short for one network; with networks, write it there, got 32"]),
    ({"hidden": 2.5}, ["hidden", "2.5"]),
    ({"hiden": 64}, ["unknown key 'hiden'", "did you mean 'hidden'"]),
    ({"folder": "/"}, ["unknown key 'folder'"]),
    ({"model": "lenet-5", "seeds": "many"}, ["unknown key 'model'", "did you mean 'networks'"]),
    ({"training": {"epochs": 0}}, ["training.epochs", "at least 1", "0"]),
    ({"training": {"epochs": -3}}, ["training.epochs", "at least 1", "-3"]),
    ({"training": {"patience": 0}}, ["training.patience", "at least 1", "0"]),
    ({"training": {"patience": "never"}}, ["training.patience", 'a number or "none"', "'never'"]),
    ({"training": {"target": math.nan}}, ["training.target", "nan"]),
    (
        {"training": {"validation_fraction": 0.0}},
        ["training.validation_fraction", "between 0 and 0.5", "0.0"],
    ),
    (
        {"training": {"validation_fraction": 0.5}},
        ["training.validation_fraction", "between 0 and 0.5", "0.5"],
    ),
    ({"training": {"validation_fraction": math.nan}}, ["training.validation_fraction", "nan"]),
    ({"training": {"learning_rate": 0.0}}, ["training.learning_rate", "positive", "0.0"]),
    ({"training": {"learning_rate": -0.1}}, ["training.learning_rate", "positive", "-0.1"]),
    ({"training": {"learning_rate": math.nan}}, ["training.learning_rate", "nan"]),
    ({"training": {"learning_rate": "fast"}}, ["training.learning_rate", "'fast'"]),
    ({"training": {"learning_rate": {"regression": -1.0}}}, ["training.learning_rate", "positive", "-1.0"]),
    (
        {"training": {"learning_rate": {"regresion": 1.0}}},
        ["training.learning_rate", "'regression'", "regresion"],
    ),
    (
        {"training": {"learning_rate": {"search": [0.1]}}},
        ["training.learning_rate.search: needs two or more different learning rates, got [0.1]"],
    ),
    (
        {"training": {"learning_rate": {"regression": 0.1, "mlp": 0.2}}},
        ["training.learning_rate names tasks and networks, regression, mlp; name all of one kind"],
    ),
    (
        {"training": {"optimiser": {"momentum": 0.9}}},
        ["training.optimiser.momentum: belongs to sgd; adam takes betas"],
    ),
    (
        {"training": {"decide": "end"}},
        ['training.decide: "end" keeps the last weights of the full length; it'],
    ),
    (
        {"training": {"epochs": 3, "length": "3ep"}},
        ["training.epochs: says the same thing as length; keep one of them"],
    ),
    (
        {"training": {"optimiser": {"betas": [0.9]}}},
        ["training.optimiser.betas: must be a pair, such as [0.9, 0.999], got [0.9]"],
    ),
    (
        {"training": {"schedule": [["1ep", 0.1, 3]]}},
        ['training.schedule.points.0: must be a pair, such as ["80ep", 0.1], got ["1ep", 0.1, 3]'],
    ),
    (
        {"training": {"schedule": [["1ep"]]}},
        ['training.schedule.points.0: must be a pair, such as ["80ep", 0.1], got ["1ep"]'],
    ),
    ({"name": ""}, ["name", "must not be empty"]),
    ({"strategies": [{"criterion": "random", "name": " "}]}, ["strategies.0.name", "must not be empty"]),
    ({"training": {"test_curve": "yes"}}, ["training.test_curve", "boolean", "'yes'"]),
    ({"training": {"epoch": 5}}, ["unknown key 'training.epoch'", "did you mean 'epochs'"]),
    (
        {"claims": [{"text": "x", "quantity": "mean", "task": "a", "strategy": "b", "published": 1.0}]},
        ["claims.0", "sparsity"],
    ),
]


@pytest.mark.parametrize(("changes", "words"), REFUSED, ids=[str(changes)[:50] for changes, _ in REFUSED])
def test_bad_input_is_refused_in_one_line_with_key_value_and_cure(
    changes: dict[str, Any], words: list[str]
) -> None:
    with pytest.raises(NatalError) as refusal:
        load_study(tiny(**changes))
    message = str(refusal.value)
    assert "\n" not in message
    assert [word for word in words if word not in message] == [], message


@pytest.mark.parametrize(
    ("init", "said"),
    [
        ({"scale": -1}, "networks.0.init.scale: must be positive, such as 0.5, got -1"),
        (2.0, "networks.0.init: must be the name of a scheme or a table of scheme and scale, got 2.0"),
    ],
)
def test_a_bad_initialisation_is_refused(init: Any, said: str) -> None:
    study = {key: value for key, value in tiny().items() if key != "hidden"}
    with pytest.raises(NatalError) as refusal:
        load_study({**study, "networks": [{"network": "mlp", "init": init}]})
    assert str(refusal.value) == f"study: {said}"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("hidden", ["'hidden'", "path.key=VALUE"]),
        ("=3", ["path.key=VALUE"]),
        ("tasks=regression", ["'regression'", "not a TOML literal", "'tasks=\"name\"'"]),
        ("hidden.deep=3", ["'hidden'", "not a table"]),
        ("a..b=1", ["unknown key 'a'"]),
        ("training.epochs=0", ["training.epochs", "at least 1"]),
    ],
)
def test_a_bad_override_is_refused(change: str, words: list[str]) -> None:
    with pytest.raises(NatalError) as refusal:
        load_study(tiny(), [change])
    assert [word for word in words if word not in str(refusal.value)] == [], refusal.value


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", ["key 'name' is missing", "4 more"]),
        (b"name = 'x'\ntasks = [\n", ["mine.toml: not valid TOML"]),
        (b"name = 'x'\nseeds = = 3\n", ["mine.toml: not valid TOML", "line 2"]),
        (b"name = 'x'\nname = 'y'\n", ["mine.toml: not valid TOML", "line 2"]),
        (b"name = 'x'\n# caf\xe9\n", ["mine.toml: not valid TOML", "UTF-8", "line 2"]),
        (b"\x00\x01\x02", ["mine.toml: not valid TOML"]),
        (b"SQLite format 3\x00", ["mine.toml: not valid TOML"]),
    ],
)
def test_a_malformed_file_is_refused(tmp_path: Path, content: bytes, words: list[str]) -> None:
    file = tmp_path / "mine.toml"
    file.write_bytes(content)
    with pytest.raises(NatalError) as refusal:
        load_study(file)
    assert "\n" not in str(refusal.value)
    assert [word for word in words if word not in str(refusal.value)] == [], refusal.value


def test_a_study_that_is_not_there_is_refused(tmp_path: Path) -> None:
    (tmp_path / "folder.toml").mkdir()
    for source, words in {
        "papr": "did you mean 'paper'",
        "": "known: as-published",
        str(tmp_path): "name a .toml file",
        "missing.toml": "no study file 'missing.toml'",
        str(tmp_path / "folder.toml"): "no study file",
    }.items():
        with pytest.raises(NatalError, match=words):
            load_study(source)


def test_a_mapping_of_things_that_are_not_data_is_refused() -> None:
    with pytest.raises(NatalError, match="set is not JSON serializable; use plain tables"):
        load_study(tiny(tasks={"regression"}))
