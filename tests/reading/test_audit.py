"""Audits: a paper's claims in a file of their own, held against any results."""

from __future__ import annotations

from pathlib import Path

import pytest

import reference_store
from natal.errors import NatalError
from natal.reading.audit import audit, lines
from natal.study.audit import Audit, audits, load_audit

CLAIM = """
[[claims]]
text = "random masks reach 0.97"
where = "Table 1"
quantity = "mean"
task = "linear"
strategy = "chance"
sparsity = 0.1
published = 0.97
"""
FILE = f'name = "theirs"\ntitle = "Another paper"\ncitation = "A. U. Thor 2020"\n{CLAIM}'


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return reference_store.build(tmp_path_factory.mktemp("audit"))


def test_every_shipped_audit_reads_and_cites_its_paper() -> None:
    assert {"tiny-networks", "grokking-tickets"} <= set(audits())
    for name in audits():
        paper = load_audit(name)
        assert paper.name == name
        assert "20" in paper.citation
        assert len(paper.all_claims()) >= 8


def test_the_first_papers_audit_of_its_own_results(directory: Path) -> None:
    text = lines("tiny-networks", directory)
    assert text[0] == "Pruning at Initialization in Tiny Neural Networks: Structured Pruning Beats Magnitude"
    assert "  24 supported, 3 not excluded, 2 not tested." in text
    at = text.index("  supported        dense reaches only 0.29 test accuracy")
    assert " ".join(" ".join(text[at + 1 : at + 3]).split()) == (
        "mean of modular / structured at 0%: published 0.2900, ours 0.2891 [0.1810, 0.3971], n = 3; "
        "ours is the published number to its digits"
    )


def test_claims_of_another_paper_are_not_tested_by_these_results(directory: Path) -> None:
    judged = audit("grokking-tickets", directory)
    assert {c.verdict for c in judged} == {"not tested"}
    assert judged[0].cause == "the study has no strategy 'grokked-ticket'"


def test_names_are_translated_and_the_claim_shown_as_it_was_made(directory: Path, tmp_path: Path) -> None:
    (tmp_path / "theirs.toml").write_text(FILE)
    (judged,) = audit(tmp_path / "theirs.toml", directory, {"regression": "linear", "random": "chance"})
    assert (judged.verdict, judged.n) == ("not excluded", 3)  # 0.9757, of [0.95, 1.00]
    assert (judged.claim.task, judged.claim.strategy) == ("linear", "chance")
    (plain,) = audit(tmp_path / "theirs.toml", directory)
    assert (plain.verdict, plain.cause) == ("not tested", "the study has no task 'linear'")
    with pytest.raises(
        NatalError, match="--as 'randm': the results have no such name; did you mean 'random'"
    ):
        audit(tmp_path / "theirs.toml", directory, {"randm": "chance"})


@pytest.mark.parametrize(("text", "said"), [
    (FILE.replace("sparsity = 0.1", ""), "theirs.toml: claims.0.quantity: 'mean' goes with a sparsity"),
    (FILE.replace("citation =", "place ="), "theirs.toml: unknown key 'place'; known: about, citation, claims"),
    (FILE.replace("citation", "cite"), "theirs.toml: unknown key 'cite'; did you mean 'citation'? (and 1 more)"),
    (FILE.replace("name =", "nome = 1\nname ="), "theirs.toml: unknown key 'nome'; did you mean 'name'"),
    (FILE.replace(CLAIM, ""), "theirs.toml: an audit needs claims, or a study that has some"),
    (FILE.replace(CLAIM, 'study = "papr"'), "theirs.toml: study: unknown study 'papr'; did you mean 'paper'"),
    ("x = = 1", "theirs.toml: not valid TOML"),
])  # fmt: skip
def test_a_wrong_audit_is_one_line(directory: Path, tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "theirs.toml").write_text(text)
    with pytest.raises(NatalError) as refusal:
        lines(tmp_path / "theirs.toml", directory)
    assert said in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_a_wrong_name_is_one_line() -> None:
    with pytest.raises(NatalError, match="unknown audit 'tiny-network'; did you mean 'tiny-networks'"):
        load_audit("tiny-network")
    with pytest.raises(NatalError, match=r"no audit file 'x\.toml'; `natal list` shows"):
        load_audit("x.toml")
    assert isinstance(load_audit("tiny-networks"), Audit)
