"""What every mask promises, over criterion x granularity x scope x control x network.

The plain run tries every *pair* of choices that can stand together; ``pytest -m slow`` tries every combination.
"""

from __future__ import annotations

import functools
import itertools
import math
import random
from collections.abc import Callable
from typing import Any, NamedTuple, get_args

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import natal
from natal import Mask, NatalError, Problem
from natal.pruning.criteria import Scores, criteria, traits
from natal.pruning.grid import grid_of, two_of_four
from natal.study import SCOPES, Control
from networks import network

torch.set_num_threads(1)
pytestmark = pytest.mark.filterwarnings(
    "ignore:criterion .* score 0", "ignore:units of these layers are kept whole"
)

CRITERIA = sorted(name for name in criteria if criteria[name].__module__.startswith("natal."))
GRANULARITIES: dict[str, Any] = {
    "weight": "weight",
    "neuron": "neuron",
    "kernel": "kernel",
    "block": {"block": [2, 3]},
    "2:4": "2:4",
}
ALL_SCOPES = (*SCOPES, "by layer")
# a new control is tried with everything; the smaller network is a study's, not a mask's
CONTROLS = (None, *(control for control in get_args(Control) if control != "small-dense"))
KINDS = ("deep", "conv", "residual", "transformer", "recurrent")
SPARSITY = 0.5
FIRST = {
    "deep": "0.weight",
    "conv": "0.weight",
    "residual": "stem.weight",
    "transformer": "query.weight",
    "recurrent": "project.weight",
}


class Case(NamedTuple):
    criterion: str
    granularity: str
    scope: str
    control: str | None
    kind: str

    def prune(self) -> Mask:
        """Return the mask this case asks for."""
        model, batch = network(self.kind)
        return natal.prune(
            model,
            SPARSITY,
            self.criterion,
            {FIRST[self.kind]: 0.6} if self.scope == "by layer" else self.scope,
            GRANULARITIES[self.granularity],
            control=self.control,
            batch=batch,
            seed=5,
        )


def refusal(case: Case) -> str:
    """Return a word of the reason why a case makes no sense, or ""."""
    signed = case.criterion in ("grasp", "grasp-published", "phew")
    of_neurons = case.control in ("random-neurons", "highest-norm", "fresh-narrow")
    if case.granularity != "neuron" and of_neurons:
        return "for whole neurons"
    if case.granularity == "neuron" and case.control == "quota-random":
        return "random-neurons"
    if case.scope == "threshold" and case.criterion not in ("random", "init-stream"):
        return "uniform draws"
    if case.scope == "threshold" and case.granularity in ("kernel", "block", "2:4"):
        return "uniform draws"
    if case.scope == "threshold" and case.control == "invert":
        return "would keep none"
    if case.granularity == "2:4" and case.scope not in ("global", "layerwise"):
        return "within each four"
    if case.criterion == "phew" and case.kind in ("residual", "transformer", "recurrent"):
        return "'phew' walks along a chain"
    if signed and case.granularity in ("neuron", "kernel", "block"):
        return "drop the sign"
    if case.granularity == "neuron" and case.scope not in ("global", "layerwise", "by layer"):
        return "budgets single weights"
    return ""


EVERY = [Case(*choice) for choice in itertools.product(CRITERIA, GRANULARITIES, ALL_SCOPES, CONTROLS, KINDS)]
VALID = [case for case in EVERY if not refusal(case)]


def pairs(case: Case) -> set[tuple[int, int, Any, Any]]:
    return {(i, j, case[i], case[j]) for i, j in itertools.combinations(range(len(case)), 2)}


def pairwise(cases: list[Case]) -> list[Case]:
    """Return a few of the cases that hold every pair of choices which any of them holds."""
    shuffled = random.Random(0).sample(cases, len(cases))
    missing = set().union(*map(pairs, shuffled))
    chosen = []
    while missing:
        # the best of the next few is nearly the best of all
        new = list(itertools.islice((case for case in shuffled if pairs(case) & missing), 40))
        best = max(new, key=lambda case: len(pairs(case) & missing))
        missing -= pairs(best)
        chosen.append(best)
    return chosen


def check(case: Case) -> None:
    model, (x, y) = network(case.kind)
    before = {name: t.clone() for name, t in model.state_dict().items()}
    state = torch.random.get_rng_state()
    mask = case.prune()
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
    parameters = dict(model.named_parameters())
    assert {n: (k.shape, k.dtype) for n, k in mask.weights.items()} == {
        n: (parameters[n].shape, torch.bool) for n in mask.weights
    }
    assert bool(mask.redrawn) == (case.control in ("reinit", "fresh-narrow"))
    counted(case, mask)
    net = natal.apply(model, mask)
    net.train()
    optimiser = torch.optim.SGD(net.parameters(), 0.01, momentum=0.9, weight_decay=0.1)
    for _ in range(2):
        optimiser.zero_grad()
        F.cross_entropy(net(x), y).backward()  # type: ignore[no-untyped-call]
        optimiser.step()
    stored = dict(net.named_parameters())
    assert all(not stored[n][~k].any() for n, k in mask.items().items())
    assert all(p.isfinite().all() for p in stored.values())


def counted(case: Case, mask: Mask) -> None:
    """Check that what goes goes whole, and in exact number."""
    if case.granularity == "neuron":
        sizes = {n: len(k) for n, k in mask.units.items()}
        gone = {n: int((~k).sum()) for n, k in mask.units.items()}
        for name, stay in mask.units.items():
            rows = mask.weights[name]  # of a recurrent layer, a row for each gate of a unit
            assert not rows[~stay.repeat(len(rows) // len(stay))].any()
            assert stay.any()
    else:
        tiles: dict[str, Tensor] = mask.weights  # type: ignore[assignment]
        if case.granularity == "2:4":
            assert all(torch.equal(two_of_four(k.double(), SPARSITY), k) for k in tiles.values())
            return
        grids = {n: grid_of(GRANULARITIES[case.granularity], k.shape) for n, k in tiles.items()}
        tiles = {n: grid.any(tiles[n]) for n, grid in grids.items()}
        assert all(torch.equal(grid.spread(tiles[n]), mask.weights[n]) for n, grid in grids.items())
        sizes = {n: k.numel() for n, k in tiles.items()}
        gone = {n: int((~k).sum()) for n, k in tiles.items()}
    if case.scope == "layerwise":
        assert gone == {n: int(SPARSITY * size) for n, size in sizes.items()}
    elif case.scope == "threshold":
        total = sum(sizes.values())
        assert abs(sum(gone.values()) - SPARSITY * total) < 5 * math.sqrt(total) / 2
    else:
        assert sum(gone.values()) == int(SPARSITY * sum(sizes.values()))
    if case.scope == "by layer":
        first = FIRST[case.kind]
        assert abs(sizes[first] - gone[first] - 0.6 * sizes[first]) <= 0.5


@pytest.mark.usefixtures("few_rounds")
@pytest.mark.parametrize("criterion", CRITERIA)
def test_every_pair_of_choices_keeps_the_contract(criterion: str) -> None:
    for case in PAIRS:
        if case.criterion == criterion:
            check(case)


PAIRS = pairwise(VALID)


def test_the_pairs_are_few_and_all_there() -> None:
    assert set().union(*map(pairs, PAIRS)) == set().union(*map(pairs, VALID))
    assert len(PAIRS) < 260


@pytest.fixture
def scored_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a criterion score the same weights under the same mask once: what is tried is what comes of its scores."""

    def remembering(score: Callable[[Problem], Scores]) -> Callable[[Problem], Scores]:
        known: dict[tuple[Any, ...], Scores] = {}

        @functools.wraps(score)
        def once(problem: Problem) -> Scores:
            of = [t for part in (problem.weights, problem.initial, problem.kept) for t in part.values()]
            key = (problem.round, problem.sparsity, *(t.detach().numpy().tobytes() for t in of))
            if key not in known:
                known[key] = score(problem)
            return {name: s.clone() for name, s in known[key].items()}

        return once

    for name in CRITERIA:
        monkeypatch.setitem(criteria._entries, name, remembering(criteria[name]))


@pytest.mark.slow
@pytest.mark.usefixtures("few_rounds", "scored_once")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("criterion", CRITERIA)
def test_every_combination_keeps_the_contract(criterion: str, kind: str) -> None:
    for case in VALID:
        if (case.criterion, case.kind) == (criterion, kind):
            check(case)


def test_what_makes_no_sense_is_refused_with_the_reason() -> None:
    quick = [case for case in EVERY if refusal(case) and traits[case.criterion].rounds == 1]
    for case in pairwise(quick):
        with pytest.raises(NatalError, match=refusal(case)) as said:
            case.prune()
        assert "\n" not in str(said.value)
