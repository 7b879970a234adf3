"""The study `lottery` made tiny: what its chains prove, and what its controls keep of the ticket's mask."""

from __future__ import annotations

from pathlib import Path

import pytest

import natal


def test_lottery(tmp_path: Path, no_report: None) -> None:
    few = ["seeds=[1]", 'training.length="12it"', 'training.evaluate="6it"', "sparsities=[0.0, 0.2, 0.36]"]
    digits = 'tasks=[{ task = "digits", name = "mnist" }]'
    results = natal.run("lottery", tmp_path, overrides=[*few, digits], workers=1)
    assert results.missing == []
    chained = [row for row in results.runs if row.sparsity and results.study.recipe(row.strategy).at == "end"]
    assert len(chained) == 6
    assert all(row.proofs["held"] for row in chained)
    masks = {row.strategy: results.mask(row).weights for row in chained if row.sparsity == 0.36}
    for name, kept in masks["ticket"].items():
        assert kept.equal(masks["reinit"][name])
        assert not kept.equal(masks["shuffle"][name])
        assert kept.sum() == masks["shuffle"][name].sum()
    # half the rate in the last layer: 0.9 squared stays
    assert masks["ticket"]["output.weight"].float().mean().item() == pytest.approx(0.81, abs=2e-3)
