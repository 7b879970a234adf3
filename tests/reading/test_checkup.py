"""`natal diagnose`: the gravest cells first, narrowed down on request."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

import reference_store
from natal.errors import NatalError
from natal.reading.checkup import lines


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return reference_store.build(tmp_path_factory.mktemp("checkup"))


def cells(said: list[str]) -> list[str]:
    return [found[0] for line in said if (found := re.match(r"\w+ / \w+ at \d+%", line))]


def test_fatal_cells_come_first_and_harmless_ones_are_counted(directory: Path) -> None:
    said = lines(directory)
    # 5 levels of regression and 1 of modular lose a layer; structured has dead units at all 2 x 7
    assert said[0] == (
        "42 cells, diagnosed before training: 6 fatal, 14 with warnings, 22 with nothing above a note"
    )
    shown = cells(said)
    assert len(shown) == 20
    assert shown[0] == "modular / magnitude at 95%"
    assert shown[1:6] == [f"regression / magnitude at {s}%" for s in (50, 70, 80, 90, 95)]
    assert "note" not in "".join(said[1:])
    where = said.index(next(line for line in said if line.startswith("regression / magnitude at 50%")))
    assert said[where : where + 4] == [
        "regression / magnitude at 50%: effective sparsity 100.00%, signal 0 of dense, collapses at 42.40%,",
        "    n=3",
        "  FATAL: no path of kept weights leads from the input to the output: the network is constant",
        "  FATAL: output.weight has collapsed: no weight is left",
    ]
    assert all(len(line) <= 100 for line in said)


def test_narrowed_down_it_tells_all(directory: Path) -> None:
    said = lines(directory, "regression", "magnitude", 0.1)
    assert said[0].startswith("1 cell, diagnosed")
    assert cells(said) == ["regression / magnitude at 10%"]
    assert any(line.startswith("  note, such as: the mask depends on the weights") for line in said)
    hidden = next(line.split() for line in said if "hidden.weight " in line)
    # one threshold t cuts 2560 t √20 + 128 t √128 = 268 of the 2688 weights: t = 0.0208, and 0.907 stay
    assert hidden == ["hidden.weight", "0.9070", "0.9070", "128", "0.0", "0.0", "0.90", "12%", "0%", "+0.500"]
    assert len(cells(lines(directory, strategy="structured"))) == 14
    assert len(cells(lines(directory, sparsity=0.5))) == 6


def test_what_is_not_there_is_one_clear_line(directory: Path, tmp_path: Path) -> None:
    with pytest.raises(NatalError, match="has no strategy 'magnitud'; did you mean 'magnitude'"):
        lines(directory, strategy="magnitud")
    with pytest.raises(NatalError, match="has no task 'xyz'; known: modular, regression"):
        lines(directory, task="xyz")
    with pytest.raises(NatalError, match=r"no pruned networks of sparsity 0; known: 0\.1, 0\.3"):
        lines(directory, sparsity=0.0)
    with pytest.raises(NatalError, match=r"no pruned networks of sparsity 95; did you mean 0\.95?"):
        lines(directory, sparsity=95.0)
    with pytest.raises(NatalError, match=r"study\.sqlite is missing"):
        lines(tmp_path / "nowhere")
    assert lines(reference_store.build(tmp_path, {})) == [
        "No pruned network has been trained here yet, so there is nothing to diagnose."
    ]


def test_the_verb_prints_it_without_torch(directory: Path) -> None:
    code = (
        "import sys; from natal import cli\n"
        f"sys.argv = ['natal', 'diagnose', {str(directory)!r}, '--task', 'regression', '--sparsity', '0.5']\n"
        "try: cli.main()\n"
        "finally: assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == lines(directory, "regression", sparsity=0.5)


def test_cells_are_narrowed_down_to_a_network(tmp_path: Path) -> None:
    study, outcomes = reference_store.two_networks()
    directory = reference_store.build(tmp_path, outcomes, study)
    said = lines(directory, network="narrow", strategy="structured", sparsity=0.5)
    assert said[0].startswith("2 cells, diagnosed")
    assert [line.partition(":")[0] for line in said if " at 50%" in line] == [
        "modular / narrow / structured at 50%", "regression / narrow / structured at 50%",
    ]  # fmt: skip
    assert lines(directory)[0].startswith("84 cells, diagnosed before training: 12 fatal")
    with pytest.raises(NatalError, match="has no network 'narow'; did you mean 'narrow'"):
        lines(directory, network="narow")
