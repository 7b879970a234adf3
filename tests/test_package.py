"""What is shipped: the facts around the code agree, and the built distributions work where the sources are not."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tarfile
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest

import natal
from natal.study import presets

ROOT = Path(__file__).parents[1]
HOME = str(Path.home())
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
SMOKE = """
import natal, torch
study = {"name": "smoke", "tasks": ["regression"], "strategies": ["snip", "structured"], "sparsities": [0.0, 0.5],
         "seeds": [1, 2], "hidden": 16, "training": {"epochs": 150, "learning_rate": 0.02}}
if __name__ == "__main__":
    results = natal.run(study, "there", workers=2)
    assert len(results.runs) == 8, results
    net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
    mask = natal.prune(net, 0.5, "magnitude", granularity="neuron")
    assert natal.compact(natal.apply(net, mask), mask)(torch.ones(1, 4)).shape == (1, 2)
    print(natal.__file__)
"""


def test_the_version_stands_everywhere() -> None:
    assert natal.__version__ == PROJECT["version"]
    citation = (ROOT / "CITATION.cff").read_text("utf-8")
    assert f"\nversion: {PROJECT['version']}\n" in citation
    assert f"\nlicense: {PROJECT['license']}\n" in citation
    assert f"\n## {PROJECT['version']}\n" in (ROOT / "CHANGELOG.md").read_text("utf-8")
    assert (ROOT / "LICENSE").read_text("utf-8").startswith("BSD 3-Clause License")


def test_the_guide_for_contributors_names_files_and_tests_that_exist() -> None:
    named = set(re.findall(r"`((?:docs|src|tests)/[\w./-]+)`", (ROOT / "CONTRIBUTING.md").read_text("utf-8")))
    assert len(named) > 20
    assert [name for name in sorted(named) if not (ROOT / name).exists()] == []


def test_reports_of_faults_ask_for_the_version() -> None:
    forms = sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"))
    assert len(forms) >= 2
    assert [form.name for form in forms if "`natal --version`" not in form.read_text("utf-8")] == []


def python_of(folder: Path) -> Path:
    """Make a virtual environment and return its interpreter."""
    venv.create(folder, with_pip=True, symlinks=True)
    return folder / "bin" / "python"


def call(*words: object, folder: Path, home: str) -> subprocess.CompletedProcess[str]:
    """Run a command in a folder, with a home of its own and nothing of this checkout on the path."""
    registry = {
        name: value
        for name, value in os.environ.items()
        if name.startswith(("PIP_", "SSL_")) or name.lower().endswith("_proxy")
    }
    env = {"PATH": os.environ["PATH"], "HOME": home, "OMP_NUM_THREADS": "1", **registry}
    done = subprocess.run(
        [*map(str, words)], cwd=folder, env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{words}:\n{done.stdout}\n{done.stderr}"
    return done


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The source distribution, and the wheel that is built from it and nothing else."""
    folder = tmp_path_factory.mktemp("dist")
    build = [sys.executable, "-m", "hatchling", "build"]
    call(*build, "-t", "sdist", "-d", folder, folder=ROOT, home=HOME)
    (archive,) = folder.glob("*.tar.gz")
    with tarfile.open(archive) as opened:
        opened.extractall(folder / "unpacked", filter="data")
    (source,) = (folder / "unpacked").iterdir()
    call(*build, "-t", "wheel", "-d", folder, folder=source, home=HOME)
    return folder


@pytest.mark.slow
def test_the_wheel_holds_the_package_whole_and_nothing_else(dist: Path) -> None:
    (wheel,) = dist.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    shipped = {
        str(path.relative_to(ROOT / "src"))
        for path in (ROOT / "src").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert {name for name in names if name.startswith("natal/")} == shipped
    assert {f"natal/study/presets/{path.name}" for path in presets().values()} <= names
    assert "natal/py.typed" in names
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert {name.split("/")[0] for name in names} == {"natal", f"natal-{natal.__version__}.dist-info"}


@pytest.mark.slow
def test_a_clean_environment_reads_and_says_what_training_needs(dist: Path, tmp_path: Path) -> None:
    python = python_of(tmp_path / "clean")
    (wheel,) = dist.glob("*.whl")
    pip = (python, "-m", "pip", "install", "--quiet", "--constraint", ROOT / "constraints.txt")
    call(*pip, wheel, folder=tmp_path, home=HOME)
    work = tmp_path / "elsewhere"
    work.mkdir()
    command = python.parent / "natal"
    said = call(command, "--version", folder=work, home="/proc").stdout
    assert "torch        not installed" in said
    assert str(tmp_path / "clean") in said
    assert "  paper " in call(command, "list", folder=work, home="/proc").stdout
    assert call(python, "-m", "natal", "show", "paper", folder=work, home="/proc").stdout.startswith(
        "# The study of"
    )
    failed = subprocess.run([command, "run"], cwd=work, capture_output=True, text=True, check=False)
    assert (failed.returncode, failed.stderr.count("\n")) == (2, 1)
    assert "pip install 'natal[lab]'" in failed.stderr


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["*.whl", "*.tar.gz"])
def test_a_distribution_trains_from_another_directory_with_a_home_that_cannot_be_written(
    dist: Path, tmp_path: Path, kind: str
) -> None:
    python = python_of(tmp_path / "clean")
    # torch and the others are borrowed from here, natal is not: a path file inside a path file is not followed
    site = next((tmp_path / "clean" / "lib").glob("python*/site-packages"))
    (site / "borrowed.pth").write_text(f"{Path(pytest.__file__).parents[1]}\n")
    (built,) = dist.glob(kind)
    install = (python, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", built)
    call(*install, folder=tmp_path, home=HOME)
    work = tmp_path / "elsewhere"
    work.mkdir()
    (work / "smoke.py").write_text(SMOKE)
    # in /proc nobody can write, not even root
    said = call(python, "smoke.py", folder=work, home="/proc").stdout
    assert Path(said.splitlines()[-1]).is_relative_to(tmp_path / "clean")
    command = python.parent / "natal"
    assert "Validation PASSED" in call(command, "validate", "there", folder=work, home="/proc").stdout
    assert "report.txt" in call(command, "report", "there", folder=work, home="/proc").stdout
