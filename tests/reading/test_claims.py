"""What a paper states beside what a study found: every quantity by hand, and every claim of the paper."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from test_stats import FACTS, STUDY, row, toy

import reference_store
from natal.errors import NatalError
from natal.reading.claims import Checked, check_claim
from natal.reading.results import load
from natal.study import Claim, load_study

RUNS = [*toy({0: 1.0, 0.5: 0.98, 0.7: 0.94, 0.9: 0.5}), *toy({0: 1.0, 0.5: 0.9, 0.7: 0.94}, "b")]


def check(quantity: Any, published: float | None = None, runs: Any = RUNS, **where: Any) -> Checked:
    claim = Claim(text="", quantity=quantity, task="t", published=published, **{"strategy": "a", **where})
    return check_claim(runs, claim, STUDY, {"t": FACTS})


@pytest.mark.parametrize(("checked", "ours", "verdict"), [
    (check("mean", 0.98, sparsity=0.5), 0.98, "agrees"),
    (check("mean", 0.9, sparsity=0.7), 0.94, "agrees"),  # 0.9 may be anything from 0.85 to 0.95
    (check("mean", 0.97, sparsity=0.5), 0.98, "not excluded"),  # ± 0.0248
    (check("mean", 0.949, sparsity=0.5), 0.98, "disagrees"),
    (check("mean", 1.0, sparsity=0.7), 0.94, "not excluded"),  # 1.0 may be 0.95, but 0.94 is not it
    (check("epochs", 500.0, sparsity=0.5), 500, "agrees"),
    (check("epochs", 499.0, sparsity=0.5), 500, "disagrees"),
    (check("critical-sparsity", 0.5), 0.5, "agrees"),
    (check("critical-sparsity", 0.7), 0.5, "not excluded"),
    (check("critical-sparsity", 0.9), 0.5, "disagrees"),
    (check("kept-through", 0.0, strategy="b"), 0.0, "agrees"),
    (check("chance-from", 0.9), 0.9, "agrees"),
    (check("chance-from", 0.5), 0.9, "disagrees"),
    (check("chance-from", 0.7, strategy="b"), math.inf, "disagrees"),
    (check("peak-sparsity", 0.0), 0.0, "agrees"),
    (check("peak-sparsity", 0.5), 0.0, "disagrees"),
    (check("difference", sparsity=0.5, against="b"), 0.08, "agrees"),
    (check("difference", sparsity=0.5, against="a", strategy="b"), -0.08, "disagrees"),
    (check("difference", sparsity=0.7, against="b"), 0.0, "disagrees"),  # the same in every run
    (check("difference", against="b"), 0.04, "agrees"),  # over 50 % and 70 %, which both have
    (check("difference", 0.0, against="b"), 0.04, "disagrees"),
    (check("difference", sparsity=0.7, against="dense"), -0.06, "disagrees"),
])  # fmt: skip
def test_a_claim_by_hand(checked: Checked, ours: float, verdict: str) -> None:
    assert checked.ours == pytest.approx(ours, abs=1e-12)
    assert checked.verdict == verdict


def test_what_our_intervals_allow_stands_beside_the_number() -> None:
    mean = check("mean", 0.98, sparsity=0.5)  # 0.97, 0.98 and 0.99: ± 4.302653 · 0.01 / sqrt(3)
    assert (mean.low, mean.high) == pytest.approx((0.98 - 0.0248414, 0.98 + 0.0248414), abs=1e-6)
    level = check("critical-sparsity", 0.5)
    assert (level.low, level.high) == (0.5, 0.7)
    peak = check("peak-sparsity", 0.0)
    assert math.isnan(peak.low)
    assert math.isnan(peak.high)


@pytest.mark.parametrize(("published", "ours", "same"), [
    (0.9, 0.949, True), (0.9, 0.951, False), (0.71, 0.7149, True), (0.71, 0.7151, False),
    (1.0, 0.951, True), (1.0, 0.949, False),
])  # fmt: skip
def test_a_mean_is_the_published_one_to_its_digits(published: float, ours: float, same: bool) -> None:
    verdict = check("mean", published, [row(sparsity=0.5, value=ours)], sparsity=0.5).verdict
    assert verdict == ("agrees" if same else "cannot be judged")


def test_early_failures_are_a_share_of_the_short_trainings() -> None:
    runs = [
        row(),
        *(row(sparsity=0.5, seed=s, value=v, trained=101) for s, v in enumerate((0.1, 0.99))),
    ]
    assert check("early-failures", 1.0, runs).ours == 0.5
    assert check("early-failures", 1.0, runs).verdict == "disagrees"
    assert check("early-failures", 0.5, runs).verdict == "agrees"
    assert check("early-failures", 1.0).verdict is None  # none was short


def test_one_seed_judges_no_difference_and_no_other_number() -> None:
    runs = [row(value=0.9), row(sparsity=0.5, value=0.8), row("b", 0.5, value=0.7)]
    assert check("difference", None, runs, against="b").verdict == "cannot be judged"
    assert check("mean", 0.7, runs, sparsity=0.5).verdict == "cannot be judged"
    assert check("mean", 0.8, runs, sparsity=0.5).verdict == "agrees"


@pytest.mark.parametrize(
    "quantity", ["mean", "critical-sparsity", "peak-sparsity", "chance-from", "difference"]
)
def test_what_the_study_lacks_is_not_judged(quantity: Any) -> None:
    missing: dict[str, dict[str, Any]] = {"mean": {"sparsity": 0.5}, "difference": {"against": "a"}}
    where = missing.get(quantity, {})
    checked = check(quantity, 0.5, strategy="c", **where)
    assert (checked.ours, checked.verdict) == (None, None)
    assert math.isnan(checked.low)


def test_a_cell_of_diverged_runs_is_not_judged() -> None:
    assert check("mean", 0.5, [row(sparsity=0.5, value=None)], sparsity=0.5).verdict is None


def test_every_claim_of_the_paper_is_checked(tmp_path: Path) -> None:
    results = load(reference_store.build(tmp_path))
    checked = [check_claim(results.runs, c, results.study, results.tasks) for c in results.study.claims]
    told: dict[str | None, list[Any]] = {}
    for c in checked:
        told.setdefault(c.verdict, []).append((c.claim.task, c.claim.strategy, c.claim.quantity))
    assert len(told["agrees"]) == 24
    assert told["not excluded"] == [
        ("modular", "structured", "difference"),  # from dense at 80 %: three seeds scatter too far
        ("modular", "structured", "critical-sparsity"),  # 80 % here, 90 % published
        ("modular", "random", "difference"),  # both at chance: neither beats the other
    ]
    assert told[None] == [(task, "structured", "difference") for task in ("modular", "regression")]
    assert set(told) == {"agrees", "not excluded", None}


def test_both_presets_make_the_same_claims() -> None:
    ours, theirs = load_study("paper").claims, load_study("as-published").claims

    def renamed(name: str | None) -> str | None:
        return name and name.replace("random-from-init-stream", "random")

    theirs = tuple(
        c.model_copy(update={"strategy": renamed(c.strategy), "against": renamed(c.against)}) for c in theirs
    )
    assert theirs == ours


@pytest.mark.parametrize(("changes", "words"), [
    ({"quantity": "difference", "published": None}, "needs against, the name of another strategy"),
    ({"against": "b"}, "'mean' takes no against"),
    ({"quantity": "difference", "against": "dense", "sparsity": None}, "a difference from dense needs a sparsity"),
    ({"published": None}, "'mean' needs a published number"),
    ({"sparsity": None}, "'mean' goes with a sparsity"),
    ({"quantity": "kept-through"}, "'kept-through' goes without a sparsity"),
])  # fmt: skip
def test_a_claim_that_contradicts_itself_is_refused(changes: dict[str, Any], words: str) -> None:
    claim = {"text": "x", "quantity": "mean", "task": "t", "strategy": "a", "sparsity": 0.5, "published": 1.0}
    study = STUDY.model_dump(mode="json")
    with pytest.raises(NatalError, match=words):
        load_study({**study, "claims": [{k: v for k, v in {**claim, **changes}.items() if v is not None}]})
