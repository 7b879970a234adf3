"""How objects show themselves: a line where they are printed, a table in a notebook."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import natal
import reference_store
from natal.lab.tasks import load as load_task
from natal.pruning.savings import savings
from natal.reading.results import load

NAME = "<img src=x onerror=alert(1)>"


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    net = nn.Sequential(nn.Linear(20, 50), nn.ReLU(), nn.Linear(50, 3))
    mask = natal.prune(net, 0.9, "magnitude")
    study = reference_store.reference_study().model_copy(update={"name": NAME, "claims": ()})
    base = tmp_path_factory.mktemp("notebook")
    return {
        "Mask": mask,
        "Ticket": natal.Ticket(mask, net.state_dict(), provenance={"name": NAME}),
        "Data": load_task("sparse-parity", 1, 0.1).data,
        "Diagnosis": natal.diagnose(net, mask, torch.zeros(8, 20)),
        "Savings": savings(net, nn.Sequential(nn.Linear(20, 3)), torch.zeros(2, 20), repeats=1),
        "Study": study,
        "Results": load(reference_store.build(base / "results", study=study)),
        "Plan": natal.plan({**study.model_dump(mode="json"), "seeds": [1]}, base / "plan"),
    }


@pytest.mark.parametrize(("name", "line"), [
    ("Mask", "<Mask: 115 of 1,150 weights kept in 2 layers, sparsity 0.9>"),
    ("Ticket", "<Ticket: 115 of 1,150 weights kept in 2 layers, sparsity 0.9, drawn on 1,203 initial values>"),
    ("Data", "<Data: 1,000 training and 1,000 test rows of 40 numbers, 2 outputs>"),
    ("Diagnosis", "<Diagnosis: sparsity 0.9, effective "),
    ("Savings", "<Savings: parameters 1,203 -> 63, multiply-adds 1,150 -> 60, bytes of activations "),
    ("Study", f"<Study: '{NAME}', 144 runs = 2 tasks x 1 network x 3 strategies x 8 sparsities x 3 seeds>"),
    ("Results", f"<Results of study '{NAME}' in "),
    ("Plan", f"<Plan: study '{NAME}' in "),
])  # fmt: skip
def test_an_object_shows_itself_in_a_line_and_in_a_table(shown: dict[str, Any], name: str, line: str) -> None:
    said = repr(shown[name])
    assert said.startswith(line)
    assert len(said) < 300
    page = shown[name]._repr_html_()
    assert page.startswith("<div><strong>")
    assert page.count("<tr>") >= 3
    assert "<img" not in page


def test_results_draw_themselves(shown: dict[str, Any], tmp_path: Path) -> None:
    picture = shown["Results"].plot("ranking", width=3.25)
    assert picture._repr_png_().startswith(b"\x89PNG")
    assert picture.figure.get_size_inches()[0] == 3.25
    picture.figure.savefig(tmp_path / "mine.pdf")
