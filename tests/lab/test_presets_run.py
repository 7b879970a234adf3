"""The studies of protocols that come with natal run, made tiny: whole, proven and valid."""

from __future__ import annotations

from pathlib import Path

import pytest

import natal
from natal.reading.validate import validate

TINY = ["seeds=[1]", 'training.evaluate="6it"', 'training.length="12it"']
DIGITS = 'tasks=[{task="digits", name="mnist"}]'


def made(name: str, folder: Path, *overrides: str) -> natal.Results:
    """Run a study made tiny in this process; what it claims then is another matter."""
    return natal.run(name, folder, overrides=[*TINY, *overrides], workers=1)


def proven(results: natal.Results, folder: Path) -> None:
    """Check that a study is whole and that its chains prove what they should; so few steps need not learn."""
    assert [line for line in validate(folder) if "does not learn" not in line] == []
    assert results.missing == []
    chained = [
        row for row in results.runs if row.sparsity and results.study.recipe(row.strategy).at != "init"
    ]
    assert chained
    assert all(row.proofs["held"] for row in chained)


def test_lottery(tmp_path: Path) -> None:
    results = made("lottery", tmp_path, DIGITS, "sparsities={keep=0.8, rounds=2}")
    proven(results, tmp_path)
    masks = {row.strategy: results.mask(row) for row in results.runs if row.sparsity == 0.36}
    ticket, reinit, shuffle = (masks[name].weights for name in ("ticket", "reinit", "shuffle"))
    for name, kept in ticket.items():
        assert kept.equal(reinit[name])
        assert not kept.equal(shuffle[name])
        assert kept.sum() == shuffle[name].sum()
    # half the rate in the last layer, 0.9 squared
    assert ticket["output.weight"].float().mean() == pytest.approx(0.81, abs=2e-3)


@pytest.mark.slow
def test_sanity(tmp_path: Path) -> None:
    proven(made("sanity", tmp_path, DIGITS, "sparsities=[0.0, 0.8]"), tmp_path)


@pytest.mark.slow
def test_mnist_1d_lottery(tmp_path: Path) -> None:
    ticket = (
        'name="ticket", criterion="magnitude", scope="layerwise", at="8it", rounds="levels", rewind="init"'
    )
    sooner = f"strategies=[{{{ticket}}}]"
    proven(made("mnist-1d-lottery", tmp_path, sooner, "sparsities=[0.0, 0.101, 0.202]"), tmp_path)
