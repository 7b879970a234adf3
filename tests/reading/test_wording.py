"""How a report writes numbers and sentences."""

from __future__ import annotations

import math
from typing import Any

import pytest

from natal.reading import wording
from natal.reading.stats import summarise
from natal.study import Recipe, Run
from natal.wording import brief, describe, listed, percent, plural


@pytest.mark.parametrize(("value", "form", "shown"), [
    (0.12345, ".4f", "0.1235"), (-12345.678, ".4f", "-1.2e+04"), (12345.678, "+.4f", "+1.2e+04"),
    (None, ".4f", "n/a"), (math.nan, ".4f", "n/a"), (99999.0, ".1f", "99999.0"),
])  # fmt: skip
def test_numbers_never_run_too_wide(value: float | None, form: str, shown: str) -> None:
    assert wording.number(value, form) == shown


def test_ranks_are_written_as_spans() -> None:
    assert wording.spans([1, 2, 3, 5, 7, 8]) == "1-3, 5, 7-8"
    assert wording.spans([]) == "-"


@pytest.mark.parametrize(("seeds", "said"), [
    (1, "1 seed: no difference can be significant at 0.05 (the smallest p-value of an exact paired test is 1); 6"),
    (6, "6 seeds: a difference that all of them share has p = 0.031; corrected for many comparisons it stays below "
        "0.05 among 1 comparison at most"),
    (27, "p = 1.5e-08; corrected for many comparisons it stays below 0.05 among 3355443 comparisons at most"),
    (28, "28 seeds: a difference that all of them share has p < 1e-8; corrected for a million comparisons it stays"),
    (2000, "2000 seeds: a difference that all of them share has p < 1e-8"),
])  # fmt: skip
def test_what_so_many_seeds_can_show(seeds: int, said: str) -> None:
    assert said in wording.power(seeds)


def test_of_many_names_the_first_and_the_last_are_listed() -> None:
    assert listed(range(3)) == "0, 1, 2"
    assert listed(range(40)).endswith("38, 39")
    assert listed(range(2000)).startswith("0, 1, 2, 3, 4")
    assert listed(range(2000)).endswith(", 36, 37, ..., 1999")


def test_levels_shares_and_intervals() -> None:
    assert [wording.show_level(x) for x in (0.5, None, math.inf)] == ["50%", "undefined", "never"]
    assert (wording.share(0.125), wording.share(math.nan)) == ("12.5%", "n/a")
    assert wording.interval(summarise([1, 1])) == "[1.0000, 1.0000]"
    assert wording.interval(summarise([1])) == "n/a"


def test_counts_have_their_noun() -> None:
    assert [plural(n, "strategy") for n in (0, 1, 2)] == [
        "0 strategies",
        "1 strategy",
        "2 strategies",
    ]
    assert plural(2, "run") == "2 runs"
    assert [plural(2, noun) for noun in ("branch", "epoch")] == ["2 branches", "2 epochs"]


def test_sentences_are_wrapped_whole() -> None:
    lines = [*wording.prose("word " * 60), *wording.bullet("word " * 60), *wording.loud("word " * 60)]
    assert max(map(len, lines)) <= wording.WIDTH
    assert wording.bullet("a-b " * 60)[0].endswith("a-b")
    assert wording.bullet("word " * 60)[1].startswith("    word")
    assert wording.wrapped("word " * 60, 4)[1].startswith("      word")


def test_the_papers_network_goes_without_saying() -> None:
    paper, other = Run("digits", "snip", 0.995, 7), Run("digits", "snip", 0.995, 7, "lenet-5")
    assert describe(paper) == "task=digits, strategy=snip, sparsity=99.5%, seed=7"
    assert describe(other) == "task=digits, network=lenet-5, strategy=snip, sparsity=99.5%, seed=7"
    assert (brief(paper), brief(other)) == ("digits snip 99.5%", "digits lenet-5 snip 99.5%")


def test_levels_of_a_ladder_have_two_decimals() -> None:
    shares = (0.0, 0.3, 0.995, 0.865782272, 0.9141006541, 0.00001, 0.99999)
    assert [percent(x) for x in shares] == ["0%", "30%", "99.5%", "86.58%", "91.41%", "0.001%", "99.999%"]


@pytest.mark.parametrize(("recipe", "said"), [
    ({}, ""),
    ({"at": "end", "rounds": "levels", "scope": "layerwise", "rates": {"last": 0.5}, "rewind": "init"},
     ", cut at end, a round a level, rates last 0.5, rewound to init"),
    ({"at": "end", "rounds": 3, "rewind": "clock"}, ", cut at end, in 3 rounds, clock rewound"),
    ({"at": {"from": "init", "to": "75%", "every": "100it"}, "regrow": "gradient"},
     ", cut every 100it from init to 75%, gradient regrowth of 0.3"),
])  # fmt: skip
def test_the_moments_of_a_recipe(recipe: dict[str, Any], said: str) -> None:
    assert wording.moments(Recipe(name="x", criterion="magnitude", **recipe)) == said
