"""docs/criteria.md: every example is run, every table row is true, nothing registered is missing."""

from __future__ import annotations

import doctest
import re
from pathlib import Path
from typing import get_args

import pytest
import torch

import natal
from natal import NatalError
from natal.pruning.criteria import criteria, traits
from natal.study import CONTROLS, SCOPES, Control
from networks import network

PAGE = (Path(__file__).parents[2] / "docs" / "criteria.md").read_text("utf-8")
BUILT_IN = sorted(name for name in criteria if criteria[name].__module__.startswith("natal."))
ROWS = {
    cells[0].strip("`"): cells[1:]
    for line in re.findall(r"^\|( `.*)\|$", PAGE, re.M)
    for cells in [[cell.strip() for cell in line.split("|")]]
}
torch.set_num_threads(1)


def sections() -> dict[str, str]:
    """Return the text under each criterion's heading."""
    parts = re.split(r"^### `([^`]+)`$|^## .*$", PAGE, flags=re.M)
    return {name: text for name, text in zip(parts[1::2], parts[2::2], strict=True) if name is not None}


def test_every_criterion_has_a_section_and_every_scope_and_control_a_row() -> None:
    assert sorted(sections()) == BUILT_IN
    assert {*BUILT_IN, *SCOPES, *get_args(Control)} <= set(ROWS)
    assert all(criteria.summary(name) for name in BUILT_IN)
    assert set(CONTROLS) == set(get_args(Control))
    for name, words in {**SCOPES, **CONTROLS}.items():
        assert ROWS[name][0] == words


@pytest.mark.parametrize("name", BUILT_IN)
def test_every_section_has_formula_cost_and_example(name: str) -> None:
    text = sections()[name]
    assert "Cost: " in text
    assert ">>> " in text
    assert f'"{name}"' in text  # the example scores with it


def test_the_examples_come_out_as_printed() -> None:
    """In one session, in order: later examples use the networks of earlier ones."""
    blocks = re.findall(r"^```pycon\n(.*?)^```", PAGE, re.S | re.M)
    parsed = doctest.DocTestParser().get_doctest("\n".join(blocks), {}, "criteria.md", "docs/criteria.md", 0)
    assert len(parsed.examples) > 35
    said: list[str] = []
    outcome = doctest.DocTestRunner(verbose=False).run(parsed, out=said.append)
    assert outcome.failed == 0, "".join(said)


@pytest.mark.parametrize("name", BUILT_IN)
def test_a_row_of_the_table_is_true(name: str) -> None:
    needs, rounds, nested, neurons, _ = ROWS[name]
    how = traits[name]
    assert str(how) == f"needs {needs}" + (f", {rounds} rounds" if rounds != "1" else "")
    assert nested == ("yes" if how.rounds == 1 else "not promised")
    model, batch = network("mlp")
    if neurons == "yes":
        assert natal.prune(model, 0.5, name, granularity="neuron", batch=batch).units
    else:
        with pytest.raises(NatalError, match="would drop the sign"):
            natal.prune(model, 0.5, name, granularity="neuron", batch=batch)


def test_the_criterion_in_the_docs_works(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(criteria, "_entries", dict(criteria._entries))
    example = re.findall(r"```python\n(.*?)```", PAGE, re.S)[-1]
    exec(compile(example, "docs/criteria.md", "exec"), {"__name__": "my_criteria"})
    model, batch = network("deep")
    assert natal.prune(model, 0.5, "taylor", batch=batch).kept == 78
    assert traits.pop("taylor").rounds == 10
