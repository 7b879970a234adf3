"""What the documents tell a reader to type exists: commands, options, make targets, names, files."""

from __future__ import annotations

import re
import shlex
import tomllib
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import pytest
import typer.main

import natal
from conftest import Natal
from natal import load_study
from natal.cli import app

ROOT = Path(__file__).parent.parent
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
COMMANDS = typer.main.get_command(app).commands  # type: ignore[attr-defined]


def blocks(document: Path, *languages: str) -> list[str]:
    """Return the fenced code blocks in some languages."""
    found = re.findall(r"^ *```(\w*)\n(.*?)^ *```", document.read_text("utf-8"), re.S | re.M)
    return [text for language, text in found if language in languages]


def commands() -> list[str]:
    """Return every ``natal`` command line of the documents and the study files."""
    lines = [
        line.strip()
        for document in DOCUMENTS
        for text in blocks(document, "sh", "")
        for line in text.split("\n")
    ]
    lines += re.findall(r"`(natal [^`]+)`", (ROOT / "README.md").read_text("utf-8"))
    for study in natal.study.presets().values():
        lines += re.findall(r"^#.*?(natal .+)$", study.read_text("utf-8"), re.M)
    parts = [part.strip() for line in lines for part in line.partition("  #")[0].split("&&")]
    return sorted({part.partition(" > ")[0] for part in parts if re.match(r"natal [a-z]+( |$)", part)})


def test_there_are_commands_to_check() -> None:
    assert len(commands()) >= 8
    assert {"natal list", "natal plan", "natal validate", "natal report"} <= set(commands())


@pytest.mark.parametrize("line", commands())
def test_a_documented_command_exists_with_its_options(line: str) -> None:
    _, verb, *words = shlex.split(line, comments=True)
    assert verb in COMMANDS, line
    COMMANDS[verb].make_context(verb, words)  # parses and does not run; a wrong option raises


SMALL = {"": ["--seeds=1", "--set=tasks=['regression']"],
         "digits": ["--seeds=1", "--set=training.length='1ep'", "--set=sparsities=[0.0, 0.9]"]}  # fmt: skip
"""What makes the README's studies a matter of seconds, by preset."""


@pytest.mark.slow
def test_the_readmes_commands_work_in_the_order_in_which_they_stand(cli: Natal) -> None:
    (text,) = (block for block in blocks(ROOT / "README.md", "sh") if "natal list" in block)
    lines = [shlex.split(line, comments=True)[1:] for line in text.splitlines()]
    assert len(lines) > 15
    for words in lines:
        small = SMALL[words[1] if words[1:2] == ["digits"] else ""] if words[0] == "run" else []
        if words[0] == "merge":
            other = cli("run", "--part", "2/2", "--out", "b", *SMALL[""])
            assert (other.returncode, other.stderr) == (0, "")
        done = cli(*words, *small)
        assert (done.returncode, done.stderr) == (0, ""), words


def test_every_command_is_documented() -> None:
    readme = (ROOT / "README.md").read_text("utf-8")
    assert [verb for verb in COMMANDS if f"natal {verb}" not in readme] == []


def test_documented_make_targets_exist() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.M))
    named = {word for d in DOCUMENTS for word in re.findall(r"\bmake ([a-z]+)$", d.read_text("utf-8"), re.M)}
    assert {"study", "test"} <= named
    assert named <= targets


def test_documented_names_exist() -> None:
    names = {
        name
        for document in DOCUMENTS
        for text in blocks(document, "python")
        for line in text.split("\n")
        for imported in re.findall(r"from natal import (.*)", line) or [""]
        for name in [*re.findall(r"\bnatal\.(\w+)", line), *imported.replace(",", " ").split()]
    }
    assert {"run", "load", "criterion", "Problem"} <= names
    # a module such as natal.lightning is there once it is imported
    unknown = [name for name in sorted(names) if not hasattr(natal, name) and not find_spec(f"natal.{name}")]
    assert unknown == []


def test_documented_modules_exist() -> None:
    named = {
        name for d in DOCUMENTS for name in re.findall(r"`(natal(?:\.[a-z_]+){2,})`", d.read_text("utf-8"))
    }
    assert "natal.lab.engines.compiled" in named
    assert [name for name in sorted(named) if not find_spec(name)] == []


def test_the_files_of_the_architecture_exist() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text("utf-8")
    named = set(re.findall(r"`((?:study|store|pruning|lab|reading)/[\w/.]*)`", text))
    assert {"lab/plan.py", "lab/engines/"} <= named
    assert [name for name in sorted(named) if not (ROOT / "src" / "natal" / name).exists()] == []


def test_every_public_name_resolves() -> None:
    for name in natal.__all__:
        found = getattr(natal, name)
        assert not isinstance(found, ModuleType), f"natal.{name} is also the name of a module"
        assert getattr(natal, name) is found
    assert set(natal.__all__) <= set(dir(natal))
    with pytest.raises(AttributeError, match="module 'natal' has no attribute 'prun'"):
        natal.prun  # noqa: B018


@pytest.mark.usefixtures("forgotten")
def test_the_documented_study_and_criterion_work(tmp_path: Path) -> None:
    page = ROOT / "docs" / "own_study.md"
    (study,) = blocks(page, "toml")
    (criterion,) = (text for text in blocks(page, "python") if "@criterion" in text)
    (plugin,) = tomllib.loads(study)["plugins"]
    (tmp_path / "mine.toml").write_text(study, "utf-8")
    (tmp_path / f"{plugin}.py").write_text(criterion, "utf-8")
    planned = natal.plan(tmp_path / "mine.toml", tmp_path / "results")  # draws a mask with every strategy
    assert planned.study == load_study(tmp_path / "mine.toml")
    assert len(criterion.split("\n")) <= 12


def test_documented_files_exist() -> None:
    text = (ROOT / "README.md").read_text("utf-8")
    named = set(re.findall(r"\]\(((?!http)[^)#]+)\)", text)) | set(
        re.findall(r"`((?:docs|examples|tests|src)/[\w./-]*)`", text)
    )
    assert [name for name in sorted(named) if not (ROOT / name).exists()] == []
