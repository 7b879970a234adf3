"""What a paper states beside what a study found: every quantity by hand, and every claim of the paper."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_stats import FACTS as SMALL
from test_stats import row, toy

import reference_store
from natal.errors import NatalError
from natal.reading.claims import Checked, check_claim
from natal.reading.results import load
from natal.reading.rows import Curve
from natal.study import Claim, load_study

FACTS = replace(SMALL, test_rows=1_000_000)
"""As many rows as show any effect."""
STUDY = load_study(
    {
        "name": "toy",
        "tasks": ["t"],
        "strategies": [{"name": name, "criterion": "snip"} for name in "abc"],
        "sparsities": [0.0, 0.5, 0.7, 0.9],
        "seeds": [0, 1, 2],
    }
)
RUNS = [*toy({0: 1.0, 0.5: 0.98, 0.7: 0.94, 0.9: 0.5}), *toy({0: 1.0, 0.5: 0.9, 0.7: 0.94}, "b")]


def check(quantity: Any, published: float | None = None, runs: Any = RUNS, **where: Any) -> Checked:
    claim = Claim(text="x", quantity=quantity, published=published, **{"task": "t", "strategy": "a", **where})
    return check_claim(runs, claim, STUDY, {"t": FACTS})


@pytest.mark.parametrize(("checked", "ours", "verdict"), [
    (check("mean", 0.98, sparsity=0.5), 0.98, "supported"),
    (check("mean", 0.9, sparsity=0.7), 0.94, "supported"),  # 0.9 may be anything from 0.85 to 0.95
    (check("mean", 0.97, sparsity=0.5), 0.98, "not excluded"),  # ± 0.0248
    (check("mean", 0.949, sparsity=0.5), 0.98, "contradicted"),
    (check("mean", 1.0, sparsity=0.7), 0.94, "not excluded"),  # 1.0 may be 0.95, but 0.94 is not it
    (check("epochs", 500.0, sparsity=0.5), 500, "supported"),
    (check("epochs", 499.0, sparsity=0.5), 500, "contradicted"),
    (check("critical-sparsity", 0.5), 0.5, "supported"),
    (check("critical-sparsity", 0.7), 0.5, "not excluded"),
    (check("critical-sparsity", 0.9), 0.5, "contradicted"),
    (check("kept-through", 0.0, strategy="b"), 0.0, "supported"),
    (check("chance-from", 0.9), 0.9, "supported"),
    (check("chance-from", 0.5), 0.9, "contradicted"),
    (check("chance-from", 0.7, strategy="b"), math.inf, "contradicted"),
    (check("peak-sparsity", 0.0), 0.0, "supported"),
    (check("peak-sparsity", 0.5), 0.0, "contradicted"),
    (check("difference", sparsity=0.5, against="b"), 0.08, "supported"),
    (check("difference", sparsity=0.5, against="a", strategy="b"), -0.08, "contradicted"),
    (check("difference", sparsity=0.7, against="b"), 0.0, "cannot be judged"),  # the same in every run
    (check("difference", against="b"), 0.04, "supported"),  # over 50 % and 70 %, which both have
    (check("difference", 0.0, against="b"), 0.04, "contradicted"),
    (check("difference", sparsity=0.7, against="dense"), -0.06, "contradicted"),
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
    assert verdict == ("supported" if same else "cannot be judged")


def test_early_failures_are_a_share_of_the_short_trainings() -> None:
    runs = [
        row(),
        *(row(sparsity=0.5, seed=s, value=v, trained=101) for s, v in enumerate((0.1, 0.99))),
    ]
    assert check("early-failures", 1.0, runs).ours == 0.5
    assert check("early-failures", 1.0, runs).verdict == "contradicted"
    assert check("early-failures", 0.5, runs).verdict == "supported"
    assert check("early-failures", 1.0).verdict == "not tested"  # none was short


def test_one_seed_judges_no_difference_and_no_other_number() -> None:
    runs = [row(value=0.9), row(sparsity=0.5, value=0.8), row("b", 0.5, value=0.7)]
    assert check("difference", None, runs, against="b").verdict == "cannot be judged"
    assert check("mean", 0.7, runs, sparsity=0.5).verdict == "cannot be judged"
    assert check("mean", 0.8, runs, sparsity=0.5).verdict == "supported"


@pytest.mark.parametrize(
    "quantity", ["mean", "critical-sparsity", "peak-sparsity", "chance-from", "difference"]
)
def test_what_the_study_lacks_is_not_judged(quantity: Any) -> None:
    missing: dict[str, dict[str, Any]] = {"mean": {"sparsity": 0.5}, "difference": {"against": "a"}}
    where = missing.get(quantity, {})
    checked = check(quantity, 0.5, strategy="c", **where)
    assert (checked.ours, checked.verdict) == (None, "not tested")
    assert math.isnan(checked.low)


def test_a_cell_of_diverged_runs_is_not_judged() -> None:
    assert check("mean", 0.5, [row(sparsity=0.5, value=None)], sparsity=0.5).verdict == "not tested"


def test_every_claim_of_the_paper_is_checked(tmp_path: Path) -> None:
    results = load(reference_store.build(tmp_path))
    checked = [check_claim(results.runs, c, results.study, results.tasks) for c in results.study.claims]
    told: dict[str, list[Any]] = {}
    for c in checked:
        told.setdefault(c.verdict, []).append((c.claim.task, c.claim.strategy, c.claim.quantity))
    assert len(told["supported"]) == 24
    assert told["not excluded"] == [
        ("modular", "structured", "difference"),  # from dense at 80 %: three seeds scatter too far
        ("modular", "structured", "critical-sparsity"),  # 80 % here, 90 % published
        ("modular", "random", "difference"),  # both at chance: neither beats the other
    ]
    assert told["not tested"] == [(task, "structured", "difference") for task in ("modular", "regression")]
    assert set(told) == {"supported", "not excluded", "not tested"}


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
    ({"at_least": 1.0}, "states one of published, at_least and at_most"),
    ({"value": 0.9}, "value, the metric that is to be reached, goes with reached"),
    ({"of": "reached"}, "'mean' takes no of"),
    ({"quantity": "ratio", "against": "b", "of": "reached"}, "value, the metric that is to be reached"),
    ({"quantity": "ratio", "against": "b", "published": None}, "'ratio' needs a published number, at_least or at_most"),
    ({"sparsity": None}, "'mean' goes with a sparsity"),
    ({"quantity": "kept-through"}, "'kept-through' goes without a sparsity"),
])  # fmt: skip
def test_a_claim_that_contradicts_itself_is_refused(changes: dict[str, Any], words: str) -> None:
    claim = {"text": "x", "quantity": "mean", "task": "t", "strategy": "a", "sparsity": 0.5, "published": 1.0}
    study = STUDY.model_dump(mode="json")
    with pytest.raises(NatalError, match=words):
        load_study({**study, "claims": [{k: v for k, v in {**claim, **changes}.items() if v is not None}]})


# -- iterations, ratios, bounds --------------------------------------------------------------------------

CURVED = [
    row(name, 0.5, seed, 0.9, best=best, trained=100)
    for name, bests in (("a", (10, 20, 40)), ("b", (20, 40, 80)))
    for seed, best in enumerate(bests)
]
DENSE = [row("a", 0.0, seed, 0.8, best=80, trained=100) for seed in range(3)]


def curve(run: Any, values: dict[int, float]) -> Curve:
    """A run's validation metric by step."""
    steps, nothing = np.array(list(values), dtype=np.float64), np.empty(0)
    return Curve(
        run.task, run.strategy, run.sparsity, run.seed, run.network, steps, steps, nothing, nothing,
        np.array(list(values.values())), nothing,
    )  # fmt: skip


def reached(quantity: Any, at: dict[str, list[int | None]], **where: Any) -> Checked:
    """Judge a claim on runs whose validation metric reaches 0.9 at some step, or never (None)."""
    curves = [
        curve(run, {1: 0.1, **({steps: 0.9} if (steps := at[run.strategy][run.seed]) else {}), 100: 0.5})
        for run in CURVED
    ]
    claim = Claim(text="x", quantity=quantity, task="t", strategy="a", sparsity=0.5, value=0.9, **where)
    return check_claim(CURVED, claim, STUDY, {"t": FACTS}, lambda: curves)


@pytest.mark.parametrize(("checked", "ours", "verdict"), [
    (check("best-iteration", 23.0, CURVED, sparsity=0.5), 70 / 3, "supported"),  # to its digits
    (check("best-iteration", 60.0, CURVED, sparsity=0.5), 70 / 3, "not excluded"),  # ± 37.9
    (check("best-iteration", 62.0, CURVED, sparsity=0.5), 70 / 3, "contradicted"),
    (check("best-iteration", None, CURVED, sparsity=0.5, at_most=62.0), 70 / 3, "supported"),
    (check("ratio", 0.5, CURVED, sparsity=0.5, against="b", of="best-iteration"), 0.5, "supported"),
    (check("ratio", None, CURVED, sparsity=0.5, against="b", of="best-iteration", at_least=0.4), 0.5, "supported"),
    (check("ratio", None, CURVED, sparsity=0.5, against="b", of="best-iteration", at_least=0.6), 0.5, "contradicted"),
    (check("difference", None, CURVED, sparsity=0.5, against="b", of="best-iteration", at_most=0.0), -70 / 3,
     "not excluded"),
    (check("ratio", None, [*CURVED, *DENSE], sparsity=0.5, against="dense", of="best-iteration", at_most=1.0), 0.25,
     "not excluded"),  # ln: -2.08, -1.39, -0.69, so 0.25 · exp(± 1.72)
    (reached("reached", {"a": [10, 20, 30], "b": [1, 1, 1]}, published=20.0), 20.0, "supported"),
    (reached("ratio", {"a": [10, 20, 30], "b": [40, 80, 120]}, against="b", of="reached", at_most=0.25), 0.25,
     "supported"),
])  # fmt: skip
def test_iterations_and_ratios_by_hand(checked: Checked, ours: float, verdict: str) -> None:
    assert checked.ours == pytest.approx(ours, abs=1e-9)
    assert checked.verdict == verdict
    assert checked.n == 3


def test_a_value_that_is_never_reached_is_judged_only_where_that_is_certain() -> None:
    # b never gets there in 100 steps, so b may have needed more: a's ratio to it is at most what was measured
    never: dict[str, list[int | None]] = {"a": [10, 10, 10], "b": [None, None, None]}
    sooner = reached("ratio", never, against="b", of="reached", at_most=0.5)
    assert sooner.verdict == "supported"
    assert sooner.ours == pytest.approx(0.1)
    number = reached("ratio", never, against="b", of="reached", published=0.1)
    assert number.verdict == "cannot be judged"
    assert number.cause == "3 runs ended before the value was reached"
    later = reached("ratio", {"a": [None] * 3, "b": [10] * 3}, against="b", of="reached", at_most=0.5)
    assert later.verdict == "contradicted"
    assert reached("reached", {"a": [None] * 3, "b": [1] * 3}, at_least=50.0).verdict == "supported"


@pytest.mark.parametrize(("rows", "published", "bound", "verdict"), [
    (1_000_000, 0.04, None, "supported"),
    (1_000, 0.04, None, "supported"),  # 1.96 sqrt(0.92 · 0.08 / 1000) = 0.017
    (100, 0.04, None, "cannot be judged"),  # 0.053
    (100, None, 0.0, "cannot be judged"),
    (1_000, None, 0.0, "supported"),
    (1_000, None, 0.03, "cannot be judged"),  # 0.01 beyond the bound
    (1_000, None, 0.07, "contradicted"),
    (1_000, 0.003, None, "cannot be judged"),  # three rows of a thousand
])  # fmt: skip
def test_an_effect_smaller_than_the_test_rows_can_show_cannot_be_judged(
    rows: int, published: float | None, bound: float | None, verdict: str
) -> None:
    runs = [
        row(name, 0.5, seed, 0.9 + step, best=1)
        for name, step in (("a", 0.04), ("b", 0.0))
        for seed in range(3)
    ]
    claim = Claim(
        text="x", quantity="difference", task="t", strategy="a", against="b", sparsity=0.5,
        published=published, at_least=bound,
    )  # fmt: skip
    checked = check_claim(runs, claim, STUDY, {"t": replace(FACTS, test_rows=rows)})
    assert checked.verdict == verdict
    assert ("test rows cannot show" in checked.cause) == (verdict == "cannot be judged")


@pytest.mark.parametrize(("changes", "cause"), [
    ({"task": "x"}, "the study has no task 'x'"),
    ({"network": "x"}, "the study has no network 'x'"),
    ({"strategy": "x"}, "the study has no strategy 'x'"),
    ({"sparsity": 0.6}, "the study has no sparsity 60%"),
    ({"strategy": "c"}, "no finished run has such a number"),
])  # fmt: skip
def test_what_was_not_tested_has_a_cause(changes: dict[str, Any], cause: str) -> None:
    checked = check("mean", 0.5, **{"sparsity": 0.5, **changes})
    assert (checked.verdict, checked.cause) == ("not tested", cause)


def test_a_claim_about_what_the_study_lacks_is_refused_unless_a_change_left_it_out() -> None:
    study = STUDY.model_dump(mode="json")
    claim = {
        "text": "x",
        "quantity": "mean",
        "task": "tt",
        "strategy": "a",
        "sparsity": 0.5,
        "published": 1.0,
    }
    with pytest.raises(NatalError, match=r"claims\.0\.task: the study has no task 'tt'; did you mean 't'"):
        load_study({**study, "claims": [claim]})
    with pytest.raises(
        NatalError, match=r"claims\.0\.network: the study has no network 'mpl'; did you mean 'mlp'"
    ):
        load_study({**study, "claims": [{**claim, "task": "t", "network": "mpl"}]})
    with pytest.raises(NatalError, match=r"claims\.0\.task: the study has no task 'tt'"):
        load_study({**study, "claims": [claim]}, ["seeds=[1]"])
    narrowed = load_study("paper", ['tasks=["regression"]'])
    assert {claim.task for claim in narrowed.claims} == {"modular", "regression"}
    assert load_study(narrowed) == narrowed
