"""Selection by the k-th value gives the masks of a full sort, to the last weight."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from natal.errors import NatalError
from natal.pruning.scopes import _Budget, _budget
from natal.pruning.select import keep_highest, select
from natal.study import SCOPES

torch.set_num_threads(1)


def by_sorting(scores: Mapping[str, Tensor], sparsity: float, scope: Any, last: bool) -> dict[str, Tensor]:
    """The definition: sort by tier, then key, then position; the first ``int(sparsity * n)`` go."""
    if scope == "layerwise":
        return {n: by_sorting({n: s}, sparsity, "global", last)[n] for n, s in scores.items()}
    shapes = {n: tuple(s.shape) for n, s in scores.items()}
    counts = {n: s.numel() for n, s in scores.items()}
    budget = _budget(scope, counts, shapes, sparsity if last else None)
    entries = [
        (*tier_and_key(budget, name, u, value), position)
        for name, score in scores.items()
        for position, (u, value) in enumerate(zip(heights(score), score.flatten().tolist(), strict=True))
    ]
    flat = [
        (tier, key, layer, position)
        for (tier, key, position), layer in zip(entries, owners(scores), strict=True)
    ]
    gone = {(layer, position) for _, _, layer, position in sorted(flat)[: int(sparsity * len(flat))]}
    return {
        name: torch.tensor([(i, p) not in gone for p in range(counts[name])]).view(shapes[name])
        for i, name in enumerate(scores)
    }


def owners(scores: Mapping[str, Tensor]) -> list[int]:
    return [i for i, score in enumerate(scores.values()) for _ in range(score.numel())]


def tier_and_key(budget: _Budget, name: str, u: float, value: float) -> tuple[int, float]:
    if name in budget.exact:
        return 2 * (u <= budget.exact[name]), -u
    tier = 1 + (u <= budget.least[name]) if name in budget.least else 1
    if budget.rank is None:
        return tier, value
    return tier, budget.rank(torch.tensor(u, dtype=torch.float64), name).item()


def heights(score: Tensor) -> list[float]:
    """(r + 1/2) / n for each score, r its rank from the top, ties as in the sort."""
    flat, n = score.flatten().tolist(), score.numel()
    order = sorted(range(n), key=lambda i: (flat[i], i))
    ranks = {i: n - 1 - place for place, i in enumerate(order)}
    return [(ranks[i] + 0.5) / n for i in range(n)]


DTYPES = [torch.float32, torch.float64, torch.int64, torch.float16]


@st.composite
def layers(draw: st.DrawFn) -> dict[str, Tensor]:
    """A few layers of small scores of one or several types, so that ties abound; the first may be a convolution."""
    shapes: list[Any] = draw(
        st.lists(st.tuples(st.integers(1, 6), st.integers(1, 6)), min_size=1, max_size=4)
    )
    if draw(st.booleans()):
        shapes[0] = (*shapes[0], 2, 2)
    dtypes = draw(
        st.lists(
            st.sampled_from([torch.float32, torch.float64, torch.int64, torch.float16]),
            min_size=4,
            max_size=4,
        )
    )
    values = st.sampled_from([-2, -1, -0.0, 0.0, 1, 2, 3, math.inf, -math.inf])
    found = {}
    for i, (shape, dtype) in enumerate(zip(shapes, dtypes, strict=False)):
        numbers = draw(st.lists(values, min_size=math.prod(shape), max_size=math.prod(shape)))
        if dtype == torch.int64:
            numbers = [0 if math.isinf(n) else int(n) for n in numbers]
        found[f"l{i}"] = torch.tensor(numbers, dtype=dtype).view(shape)
    return found


@settings(max_examples=300)
@given(layers(), st.floats(0, 0.999), st.sampled_from([s for s in SCOPES if s != "threshold"]), st.booleans())
def test_it_is_the_full_sort_bit_for_bit(
    scores: dict[str, Tensor], sparsity: float, scope: str, last: bool
) -> None:
    agrees(scores, sparsity, scope, last)


@settings(max_examples=150)
@given(layers(), st.floats(0, 0.999), st.lists(st.floats(0, 1), min_size=1, max_size=4), st.booleans())
def test_it_is_the_full_sort_for_densities_by_layer(
    scores: dict[str, Tensor], sparsity: float, densities: list[float], last: bool
) -> None:
    agrees(scores, sparsity, dict(zip(scores, densities, strict=False)), last)


def agrees(scores: dict[str, Tensor], sparsity: float, scope: Any, last: bool) -> None:
    try:
        found = select(scores, sparsity, scope, last=last)
    except NatalError:
        assert last
        assert scope in ("uniform+", "smart-ratios") or not isinstance(scope, str)
        return
    expected = by_sorting(scores, sparsity, scope, last)
    assert list(found) == list(scores)
    assert {n: k.tolist() for n, k in found.items()} == {n: k.tolist() for n, k in expected.items()}


@pytest.mark.parametrize("removed", [0, 1, 5, 6])
def test_zero_and_minus_zero_tie(removed: int) -> None:
    scores = {"a": torch.tensor([0.0, -0.0, 0.0]), "b": torch.tensor([-0.0, 0.0, 0.0])}
    kept = torch.cat(list(keep_highest(scores, removed).values()))
    assert kept.tolist() == [False] * removed + [True] * (6 - removed)
