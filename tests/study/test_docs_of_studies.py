"""docs/studies.md names every key of a study file, and its example is one."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from natal import load_study
from natal.explain import toml
from natal.study import Claim, Initialisation, Optimiser, Recipe, Schedule, Study, Training
from natal.study.base import Model
from natal.study.protocols import PROTOCOLS
from natal.study.recipe import SCOPES

PAGE = (Path(__file__).parents[2] / "docs" / "studies.md").read_text("utf-8")
INSIDE = {"folder", "entry", "options"}


@pytest.mark.parametrize("table", [Study, Recipe, Training, Claim, Optimiser, Schedule, Initialisation])
def test_every_key_is_documented(table: type[Model]) -> None:
    keys = {*table.model_fields, *table.ALSO} - INSIDE
    assert [key for key in sorted(keys) if f"`{key}`" not in PAGE and f"{key} =" not in PAGE] == []


def test_every_documented_key_exists() -> None:
    section, documented = "", []
    for line in PAGE.splitlines():
        section = line.removeprefix("## ") if line.startswith("## ") else section
        if line.startswith("| `"):
            documented += [(section, key) for key in re.findall(r"`(\w+)`", line.split(" | ")[0])]
    tables: dict[str, type[Model]] = {
        "The study": Study,
        "A strategy": Recipe,
        "Training": Training,
        "A claim": Claim,
    }
    assert len(documented) > 35
    for section, key in documented:
        table = tables[section]
        assert key in {*table.model_fields, *table.ALSO}, (section, key)


def test_every_default_is_told_right() -> None:
    rows = {}
    for line in PAGE.split("## Training")[1].split("## A claim")[0].splitlines():
        if line.startswith("| `"):
            key, *_, default = (part.strip() for part in line.strip("| ").split(" | "))
            rows[key.strip("`")] = default.strip("`")
    of_training = Training()
    for key in (
        "length",
        "patience",
        "target",
        "validation_fraction",
        "evaluate",
        "decide",
        "label_smoothing",
    ):
        (told,) = tomllib.loads(f"x = {rows[key]}").values()
        assert told == getattr(of_training, key), key
    assert (rows["batch"], of_training.batch) == ('"full"', None)
    assert (rows["clip"], of_training.clip) == ('"none"', None)


def test_every_scope_is_named() -> None:
    assert [scope for scope in SCOPES if f"`{scope}`" not in PAGE] == []


def test_protocols_by_name_are_the_rows_of_the_table() -> None:
    rows = re.findall(r"^\| (.*?) \| `(\{.*?\})`(?:, with `(.*?)`)? \|$", PAGE.split("### When")[1], re.M)
    named = [(words, toml(recipe), study) for words, recipe, study in PROTOCOLS.values()]
    assert [row for row in rows if "control" not in row[1]] == named
    for _, recipe, _ in PROTOCOLS.values():
        Recipe.model_validate({"name": "x", **recipe})


def test_the_example_is_a_study() -> None:
    (block,) = re.findall(r"```toml\n(.*?)```", PAGE, re.S)
    study = load_study(tomllib.loads(block))
    assert study.network_names == ("lenet-5", "mlp-gelu-64x64")
    assert len(study.runs()) == 1 * 2 * 3 * 3 * 6
