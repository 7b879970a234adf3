"""The site: every public name is in the reference, every page has its place, and all of it builds without a warning."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

import natal

DOCS = Path(__file__).parents[1] / "docs"
NOTEBOOKS = sorted((DOCS / "notebooks").glob("*.md"))


def test_every_public_name_is_in_the_reference() -> None:
    text = (DOCS / "api.md").read_text("utf-8")
    named = re.findall(r"^\.\. auto(?:function|class|data|exception):: (\w+)$", text, re.M)
    assert sorted(named) == sorted(natal.__all__)


def test_every_page_stands_in_the_contents() -> None:
    contents = re.findall(
        r"```{toctree}(.*?)```", "".join(page.read_text("utf-8") for page in DOCS.glob("*.md")), re.S
    )
    listed = set(re.findall(r"^([\w/]+)$", "".join(contents), re.M))
    pages = {str(page.relative_to(DOCS).with_suffix("")) for page in [*DOCS.glob("*.md"), *NOTEBOOKS]}
    assert pages - {"index"} == listed


def test_links_between_pages_lead_somewhere() -> None:
    broken = [
        f"{page.name}: {target}"
        for page in [*DOCS.glob("*.md"), *NOTEBOOKS]
        for target in re.findall(r"\]\((?!http)([^)#\s]+)", page.read_text("utf-8"))
        if not (page.parent / target).exists()
    ]
    assert broken == []


def test_there_are_four_notebooks_with_code() -> None:
    assert len(NOTEBOOKS) >= 4
    assert all(page.read_text("utf-8").count("```{code-cell} python") >= 4 for page in NOTEBOOKS)


@pytest.mark.slow
def test_the_site_builds_without_a_warning_and_its_notebooks_run(tmp_path: Path) -> None:
    pytest.importorskip("myst_nb", reason="pip install 'natal[site]'")
    command = [sys.executable, "-m", "sphinx", "--fail-on-warning", "--keep-going", "--quiet"]
    # notebooks that another build has run do not count here
    command += ["-D", "nb_execution_mode=force", str(DOCS), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    start = (tmp_path / "notebooks" / "start.html").read_text("utf-8")
    assert "unseen digits" in start
    assert "a quarter of the multiply-adds" in start
    assert "natal.prune" in (tmp_path / "api.html").read_text("utf-8")
