"""A bare install reads: what ``pip install natal`` brings, and nothing of the lab, is enough for every stored study."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import natal
import reference_store
from natal.reading import report

HEAVY = ("torch", "numba", "safetensors", "threadpoolctl", "filelock")
PROJECT = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text("utf-8"))["project"]


def brought(requirements: list[str]) -> set[str]:
    """The distributions that an installer would bring for some requirements, theirs included."""
    found: set[str] = set()
    wanted = list(requirements)
    while wanted:
        requirement = Requirement(wanted.pop())
        if requirement.name not in found and (
            not requirement.marker or requirement.marker.evaluate({"extra": ""})
        ):
            found.add(requirement.name)
            wanted += metadata.requires(requirement.name) or []
    return found


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of packages that a bare install would have: links to those of this environment."""
    folder = tmp_path_factory.mktemp("site")
    (folder / "natal").symlink_to(Path(natal.__file__).parent)
    for name in brought(PROJECT["dependencies"]):
        distribution = metadata.distribution(name)
        for top in {file.parts[0] for file in distribution.files or []} - {"..", "__pycache__"}:
            (folder / top).symlink_to(Path(str(distribution.locate_file(top))))
    return folder


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = reference_store.build(tmp_path_factory.mktemp("bare"))
    report.write(directory)
    return directory


def python(site: Path, code: str) -> subprocess.CompletedProcess[str]:
    """Run Python with the packages of ``site`` alone."""
    env = {
        "PYTHONPATH": str(site),
        "PATH": os.environ["PATH"],
        "HOME": str(site),
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    command = [sys.executable, "-S", "-c", code]
    return subprocess.run(command, env=env, capture_output=True, encoding="utf-8", check=False)


def verb(site: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return python(site, f"import sys; sys.argv = ['natal', *{words!r}]; from natal.cli import main; main()")


def test_the_lab_is_in_no_bare_install(site: Path) -> None:
    listed = f"from importlib.util import find_spec; print([m for m in {HEAVY} if find_spec(m)])"
    done = python(site, listed)
    assert (done.stdout, done.stderr) == ("[]\n", "")
    lab = {Requirement(r).name for r in PROJECT["optional-dependencies"]["lab"]}
    assert lab == set(HEAVY)


@pytest.mark.parametrize(("words", "said"), [
    pytest.param(["report"], "report.txt", marks=pytest.mark.slow),
    (["validate"], "Validation PASSED. All checks OK."),
    (["diagnose", "--task", "regression", "--sparsity", "0.5"], "FATAL: output.weight has collapsed"),
])  # fmt: skip
def test_a_stored_study_is_read(site: Path, directory: Path, words: list[str], said: str) -> None:
    done = verb(site, words[0], str(directory), *words[1:])
    assert (done.returncode, done.stderr) == (0, "")
    assert said in done.stdout


def test_stored_studies_are_compared(site: Path, directory: Path) -> None:
    done = verb(site, "compare", str(directory), str(reference_store.DATA))
    assert (done.returncode, done.stderr) == (0, "")
    assert "all 144 matched runs identical to the last bit" in done.stdout


def test_what_is_known_without_the_lab_is_shown(site: Path) -> None:
    done = verb(site, "show", "paper")
    assert (done.returncode, done.stderr) == (0, "")
    assert 'name = "paper"' in done.stdout
    done = verb(site, "list")
    assert (done.returncode, done.stderr) == (0, "")
    assert "  paper " in done.stdout
    assert "  structured " in done.stdout
    assert "not listed: pruning and training need torch, numba" in done.stdout
    assert "pip install 'natal[lab]'" in done.stdout


@pytest.mark.parametrize("words", [["run"], ["plan"], ["run", "--workers", "1", "--out", "there"]])
def test_what_needs_the_lab_says_so_in_one_line(site: Path, words: list[str]) -> None:
    done = verb(site, *words)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "natal: pruning and training need torch, numba, safetensors, threadpoolctl, filelock, which is not installed: "
        "pip install 'natal[lab]'\n"
    )


def test_python_reads_and_says_what_it_lacks(site: Path, directory: Path) -> None:
    code = f"""
import natal
results = natal.load({str(directory)!r})
print(len(results.runs), len(results.curves), results.frame().shape[0], natal.load_study("paper").name)
for name in ("prune", "run", "Mask"):
    try:
        getattr(natal, name)
    except natal.NatalError as error:
        print(str(error).rpartition(": ")[2])
"""
    done = python(site, code)
    assert done.stderr == ""
    assert done.stdout.splitlines() == ["144 144 144 paper", *["pip install 'natal[lab]'"] * 3]
