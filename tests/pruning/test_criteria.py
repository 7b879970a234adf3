from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from natal.errors import NatalError
from natal.pruning.apply import apply
from natal.pruning.choose import mask, problem_of, score
from natal.pruning.criteria import Criterion, Problem, Scores, criteria, criterion, redraw, traits
from natal.pruning.mask import Mask
from natal.study import SCOPES, STRATEGIES, Recipe, load_study
from natal.study.recipe import Control, Reduce
from networks import NETWORKS, mlp, network

torch.set_num_threads(1)
BUILT_IN = sorted(name for name in criteria if criteria[name].__module__.startswith("natal."))
ONE_SHOT = [name for name in BUILT_IN if traits[name].rounds == 1]
SIGNED = ("grasp", "grasp-published", "phew")  # scores below zero, of which a norm would drop the sign
pytestmark = pytest.mark.filterwarnings("ignore:criterion .* score 0")


Rows = Sequence[Sequence[float]]
Weights = Mapping[str, Tensor]


def tiny(
    w1: Rows = ((1.0, -2.0), (3.0, 0.5)), w2: Rows = ((2.0, -1.0),), bias: bool = False, **data: Any
) -> Problem:
    """x -> relu(W1 x) -> W2 h, in float64."""
    net = nn.Sequential(nn.Linear(2, 2, bias=bias), nn.ReLU(), nn.Linear(2, 1, bias=bias)).double()
    with torch.no_grad():
        net.get_parameter("0.weight").copy_(torch.tensor(w1))
        net.get_parameter("2.weight").copy_(torch.tensor(w2))
    return problem_of(net, seed=0, **data)


def line(w: float, x: float, y: float) -> Problem:
    """f(x) = w x and L = ½ (f − y)²."""
    net = nn.Linear(1, 1, bias=False).double()
    with torch.no_grad():
        net.weight.fill_(w)
    half_square = lambda f, t: 0.5 * (f - t).square().mean()  # noqa: E731
    return problem_of(
        net,
        seed=0,
        inputs=torch.tensor([[x]]).double(),
        targets=torch.tensor([[y]]).double(),
        loss=half_square,
    )


def close(got: Tensor, expected: object) -> None:
    expected = torch.as_tensor(expected, dtype=torch.float64)
    torch.testing.assert_close(got.double(), expected, rtol=1e-9, atol=1e-12)


# --- anchors computed by hand -------------------------------------------------------------------------------


def test_magnitude_and_init_magnitude_by_hand() -> None:
    problem = tiny()
    close(score("magnitude", problem)["0.weight"], [[1, 2], [3, 0.5]])
    close(
        score("init-magnitude", problem)["0.weight"],
        torch.tensor([[1, 2], [3, 0.5]], dtype=torch.float64) * math.sqrt(2),
    )
    conv = problem_of(nn.Conv2d(3, 2, 3), 0)
    close(score("init-magnitude", conv)["weight"], conv.weights["weight"].abs() * math.sqrt(27))


def test_random_is_the_mask_stream() -> None:
    problem = tiny()
    generator = problem.stream("mask")
    draws = score("random", problem)
    assert torch.equal(draws["0.weight"], torch.rand(2, 2, generator=generator))
    assert torch.equal(draws["2.weight"], torch.rand(1, 2, generator=generator))


def test_lamp_by_hand() -> None:
    scores = score("lamp", tiny())
    # squares 1, 4, 9, .25; each over the sum of those at least as large
    close(scores["0.weight"], [[1 / 14, 4 / 13], [1, 0.25 / 14.25]])
    close(scores["2.weight"], [[1, 1 / 5]])


def test_lamp_ties_zeros_and_an_empty_layer() -> None:
    problem = tiny(w1=((1.0, 1.0), (0.0, 1.0)), w2=((0.0, 0.0),))
    close(score("lamp", problem)["0.weight"], [[1 / 3, 1 / 2], [0, 1]])
    close(score("lamp", problem)["2.weight"], [[0, 0]])


def test_snip_by_hand() -> None:
    # f = 2 relu(x1 - 2 x2) - relu(3 x1 + x2 / 2) at x = (2, .5)
    # h = (1, 6.25), f = -4.25, dL/df = f - y = -5.25
    problem = tiny(
        inputs=torch.tensor([[2.0, 0.5]]).double(),
        targets=torch.tensor([[1.0]]).double(),
        loss=lambda f, y: 0.5 * (f - y).square().mean(),
    )
    scores = score("snip", problem)
    close(scores["2.weight"], [[2 * 1 * 5.25, 1 * 6.25 * 5.25]])
    close(scores["0.weight"], [[1 * 2 * 2 * 5.25, 2 * 0.5 * 2 * 5.25], [3 * 2 * 5.25, 0.5 * 0.5 * 5.25]])


def test_grasp_by_hand_with_its_sign() -> None:
    # L = ½ (w x / 200 − y)²: g = (w x / 200 − y) x / 200 and H = (x / 200)²
    w, x, y = 3.0, 400.0, 1.0
    g, H = (6.0 - 1) * 2, 4.0
    close(score("grasp", line(w, x, y))["weight"], [[w * H * g]])
    close(score("grasp", line(w, x, 10.0))["weight"], [[w * H * (6.0 - 10) * 2]])  # negative
    close(score("grasp-absolute", line(w, x, 10.0))["weight"], [[w * H * 8]])


def test_grasp_removes_first_what_raises_the_gradient_norm() -> None:
    # removing w from θ changes gᵀg by about −2 θ Hg: the most negative score raises it most, and goes first
    problem = tiny(
        inputs=torch.randn(6, 2, generator=torch.Generator().manual_seed(3)).double() * 200,
        targets=torch.zeros(6, 1).double(),
        loss=lambda f, y: (f - y - 1).square().mean(),
    )
    scores = score("grasp", problem)

    def norm(weights: Weights) -> float:
        θ = {n: w.clone().requires_grad_() for n, w in weights.items()}
        g = torch.autograd.grad(problem.loss_of(problem.outputs(θ) / 200), list(θ.values()))
        return sum(float((x * x).sum()) for x in g)

    step = 1e-5
    for name, w in problem.weights.items():
        for i in range(w.numel()):
            moved = {n: v.clone() for n, v in problem.weights.items()}
            moved[name].view(-1)[i] *= 1 - step
            change = (norm(moved) - norm(problem.weights)) / step
            assert change == pytest.approx(-2 * float(scores[name].view(-1)[i]), rel=1e-3, abs=1e-4)


def test_iterative_snip_and_force_by_hand() -> None:
    problem = tiny(
        inputs=torch.tensor([[2.0, 0.5]]).double(),
        targets=torch.tensor([[1.0]]).double(),
        loss=lambda f, y: 0.5 * (f - y).square().mean(),
    )
    removed = {
        "0.weight": torch.tensor([[True, True], [False, True]]),
        "2.weight": torch.ones(1, 2, dtype=torch.bool),
    }
    now = Problem(
        problem.model,
        {n: w * removed[n] for n, w in problem.weights.items()},
        0,
        problem.inputs,
        problem.targets,
        problem.loss,
        initial=problem.weights,
        kept=removed,
        round=2,
    )
    # without the 3: h = (1, .25), f = 1.75, dL/df = .75; the gradient in the removed weight is -1 * 2 * .75
    close(score("iterative-snip", now)["0.weight"], [[3, 1.5], [0, 0.5 * 0.5 * 0.75]])
    close(score("force", now)["0.weight"], [[3, 1.5], [3 * 2 * 0.75, 0.5 * 0.5 * 0.75]])


def test_synflow_by_hand() -> None:
    scores = score("synflow", tiny(bias=True))
    # R = 2 (1 + 2) + 1 (3 + .5) = 9.5
    close(scores["0.weight"], [[2, 4], [3, 0.5]])
    close(scores["2.weight"], [[6, 3.5]])
    assert scores["0.weight"].dtype == torch.float64


def test_synflow_through_a_batch_norm_by_hand() -> None:
    net = nn.Sequential(nn.Linear(1, 1), nn.Linear(1, 2), nn.BatchNorm1d(2, eps=0), nn.Linear(2, 1)).double()
    numbers: dict[str, Any] = {"0.weight": [[-1]], "1.weight": [[-2], [4]], "3.weight": [[5, -7]]}
    numbers |= {"2.weight": [-3, 6], "2.bias": [5, 6], "2.running_mean": [7, 8], "2.running_var": [4, 4]}
    with torch.no_grad():
        for name, values in numbers.items():
            net.state_dict()[name].copy_(torch.tensor(values))
    scores = score("synflow", problem_of(net, 0))
    # R = 1 · 2 · (3 / √4) · 5 + 1 · 4 · (6 / √4) · 7 = 15 + 84, with neither biases nor means
    close(scores["0.weight"], [[99]])
    close(scores["1.weight"], [[15], [84]])
    close(scores["3.weight"], [[15, 84]])


def test_ntk_sap_by_hand() -> None:
    # f = m w x: d/dm (m ε Δ x)² = 2 m (ε Δ x)², summed over five draws
    problem = line(3.0, 1.0, 0.0)
    generator = problem.stream("ntk-sap/1")
    expected = 0.0
    for _ in range(5):
        x = torch.randn(1, 1, generator=generator)
        torch.randperm(1, generator=generator)
        expected += 2 * float(0.01 * torch.randn(1, 1, generator=generator) * x) ** 2
    assert float(score("ntk-sap", problem)["weight"]) == pytest.approx(expected, rel=1e-5)


def test_ntk_sap_scores_nothing_where_the_mask_is_zero() -> None:
    problem = problem_for("deep")
    kept = {n: torch.arange(w.numel()).view(w.shape) % 5 > 0 for n, w in problem.weights.items()}
    weights = {n: w * kept[n] for n, w in problem.weights.items()}
    scores = score("ntk-sap", replace(problem, weights=weights, initial=problem.weights, kept=kept, round=2))
    assert all(scores[n].any() and not scores[n][~kept[n]].any() for n in kept)


def test_prospr_by_hand() -> None:
    # L = ½ (θ x − y)² with x = 1: e_t = θ_t − y follows e ← e − α v, v ← μ v + e; the start is c w − y
    w, y, α, μ = 3.0, 1.0, 0.5, 0.9
    e, v, de, dv = w - y, 0.0, w, 0.0  # values and derivatives in c
    for _ in range(3):
        v, dv = μ * v + e, μ * dv + de
        e, de = e - α * v, de - α * dv
    close(score("prospr", line(w, 1.0, y))["weight"], [[abs(e * de)]])


def test_phew_by_hand() -> None:
    # one unit a layer: the walks have no choice, so walk 0 visits everything
    problem = problem_of(nn.Sequential(nn.Linear(1, 1), nn.ReLU(), nn.Linear(1, 1)), 0)
    scores = score("phew", problem)
    assert [float(s) for s in scores.values()] == [0.0, 0.0]
    # |θ| = 0 is never stepped along from a unit with another way out
    scores = score("phew", tiny(w1=((1.0, 1.0), (0.0, 1.0)), w2=((1.0, 0.0),)))
    assert float(scores["0.weight"][1, 0]) == min(float(s.min()) for s in scores.values())
    # only forward walks from input 1, numbers 2, 6, ..., can reach unit 1
    assert -float(scores["2.weight"][0, 1]) % 4 == 2


def walks(*layers: nn.Module | Rows, seed: int = 0) -> list[Tensor]:
    """Number of the walk that visits each weight first; ``layers``: modules, or weights of linear layers."""
    made: list[nn.Module] = []
    for layer in layers:
        if not isinstance(layer, nn.Module):
            w = torch.tensor(layer, dtype=torch.float64)
            made.append(nn.Linear(w.shape[1], w.shape[0], bias=False))
            made[-1].weight = nn.Parameter(w)
        else:
            made.append(layer)
    return [-s for s in score("phew", problem_of(nn.Sequential(*made), seed)).values()]


def conv1d(weights: Sequence[Rows]) -> nn.Conv1d:
    w = torch.tensor(weights, dtype=torch.float64)
    conv = nn.Conv1d(w.shape[1], w.shape[0], w.shape[2], bias=False)
    conv.weight = nn.Parameter(w)
    return conv


def test_phew_walks_in_turn_from_every_input_and_back_from_every_output() -> None:
    for seed in range(10):
        first, second = walks([[1, 0], [0, 1]], [[1, 1], [1e-30, 1e-30]], seed=seed)
        assert first[0, 0] == 0  # walk 0 starts at input 0 and has no choice, walk 2 at input 1
        assert first[1, 1] in (1, 2)
        assert sorted(second[0].tolist())[0] == 0
        # nobody steps forward to output 1; walks 3, 7, ... start there
        assert second[1].min() == 3
        assert (second[1] % 4 == 3).all()


def test_phew_steps_with_probability_proportional_to_the_weights_size() -> None:
    forward = [walks([[1], [-9]], [[1, 1]], seed=seed)[0][1, 0] == 0 for seed in range(200)]
    assert 0.82 < sum(forward) / 200 < 0.97  # 0.9, standard error 0.021
    # walk 1 goes back from the output: to unit 1 in 9 of 10, which walk 0 found in one half of all cases
    back = [walks([[1], [1]], [[1, 9]], seed=seed)[1][0, 1] <= 1 for seed in range(200)]
    assert 0.88 < sum(back) / 200 <= 1  # 0.95, standard error 0.015


def test_phew_ranks_what_no_walk_visits_by_size() -> None:
    first, second = walks([[1e9, 0], [0, 1e9], [-0.1, 0.2]], [[1, 1, 0]])
    visited = torch.cat([first[[0, 1], [0, 1]], second[0, :2]]).max()
    assert visited < first[2, 1] < first[2, 0] < first[0, 1] == second[0, 2]


def test_phew_in_convolutions() -> None:
    # within a kernel: never to an element that is zero
    kernel = walks(conv1d([[[1, 0]]]), nn.Flatten(), [[1, 1]])[0].flatten().tolist()
    assert kernel[0] == 0
    assert kernel[1] > 10 * 4
    # from a channel to any of its four positions, also those whose weights are zero; back to the channel of a position
    for seed in range(10):
        channels, columns = walks(conv1d([[[1]], [[1]]]), nn.Flatten(), [[0] * 5 + [1] + [0] * 2], seed=seed)
        assert channels[1] <= 1  # walk 1 must come back through position 5, which belongs to channel 1
        columns = columns.flatten()
        assert columns[5] <= 1
        others = torch.cat([columns[:5], columns[6:]])
        assert (others % 2 == 0).all()  # found by forward walks only
        assert others.max() < 10 * 10


# --- laws ---------------------------------------------------------------------------------------------------


def test_snip_is_the_derivative_of_the_loss_in_the_mask() -> None:
    model, (x, y) = network("deep")
    problem = problem_of(model.double(), 0, inputs=x.double(), targets=y, loss=F.cross_entropy)
    scores = score("snip", problem)
    step = 1e-6
    for name, w in problem.weights.items():
        for i in range(0, w.numel(), 7):
            up, down = ({n: v.clone() for n, v in problem.weights.items()} for _ in range(2))
            up[name].view(-1)[i] *= 1 + step
            down[name].view(-1)[i] *= 1 - step
            slope = float((problem.loss_at(up) - problem.loss_at(down)).detach()) / (2 * step)
            assert abs(slope) == pytest.approx(float(scores[name].view(-1)[i]), rel=1e-4, abs=1e-9)


def test_hessian_gradient_product_against_finite_differences() -> None:
    model, (x, y) = network("deep")
    problem = problem_of(model.double(), 0, inputs=x.double() * 200, targets=y, loss=F.cross_entropy)

    def g(weights: Weights) -> dict[str, Tensor]:
        θ = {n: w.detach().clone().requires_grad_() for n, w in weights.items()}
        return dict(
            zip(
                θ,
                torch.autograd.grad(problem.loss_of(problem.outputs(θ) / 200), list(θ.values())),
                strict=True,
            )
        )

    first, step = g(problem.weights), 1e-6
    plus = g({n: w + step * first[n] for n, w in problem.weights.items()})
    minus = g({n: w - step * first[n] for n, w in problem.weights.items()})
    scores = score("grasp", problem)
    for name, w in problem.weights.items():
        Hg = (plus[name] - minus[name]) / (2 * step)
        torch.testing.assert_close(scores[name], w * Hg, rtol=1e-4, atol=1e-8)
    assert any((s < 0).any() for s in scores.values())
    assert any((s > 0).any() for s in scores.values())


@pytest.mark.parametrize("kind", ["deep", "conv"])
def test_ntk_sap_is_the_derivative_of_the_outputs_distance_in_the_mask(kind: str) -> None:
    model, (x, _) = network(kind)
    many = x.repeat(25, *[1] * (x.ndim - 1)).double()  # 300 rows, of which 256 count
    problem = problem_of(model.double(), 0, inputs=many)
    kept = {n: torch.arange(w.numel()).view(w.shape) % 5 > 0 for n, w in problem.weights.items()}
    weights = {n: w * kept[n] for n, w in problem.weights.items()}
    now = replace(problem, weights=weights, initial=problem.weights, kept=kept, round=3)
    scores = score("ntk-sap", now)

    generator, draws = now.stream("ntk-sap/3"), []
    for _ in range(5):
        inputs = torch.randn(256, *x.shape[1:], generator=generator).double()
        θ = redraw(problem.weights, generator)
        draws.append(
            (inputs, θ, {n: torch.randn(w.shape, generator=generator).double() for n, w in θ.items()})
        )
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]

    def distance(m: Weights) -> float:
        total = 0.0
        for inputs, θ, Δ in draws:
            for norm in norms:
                norm.train().momentum = 1.0
            with torch.no_grad():  # the running statistics are those of the network pruned so far, and stay
                torch.func.functional_call(model, {n: kept[n] * w for n, w in θ.items()}, (inputs,))
                model.eval()
                f = torch.func.functional_call(model, {n: m[n] * w for n, w in θ.items()}, (inputs,))
                moved = {n: m[n] * (w + 0.01 * Δ[n]) for n, w in θ.items()}
                total += float((f - torch.func.functional_call(model, moved, (inputs,))).square().sum())
        return total

    step = 1e-7  # small, so that no ReLU or maximum switches
    for name, w in problem.weights.items():
        for i in range(1, w.numel(), max(1, w.numel() // 6)):
            up, down = ({n: k.double() for n, k in kept.items()} for _ in range(2))
            up[name].view(-1)[i] += step
            down[name].view(-1)[i] -= step
            slope = (distance(up) - distance(down)) / (2 * step) * bool(kept[name].view(-1)[i])
            assert float(scores[name].view(-1)[i]) == pytest.approx(abs(slope), rel=1e-4, abs=1e-7)


def test_prospr_against_finite_differences_through_training() -> None:
    model, (x, y) = network("mlp")
    problem = problem_of(model.double(), 0, inputs=x.double(), targets=y, loss=F.cross_entropy)
    scores = score("prospr", problem)

    def after_training(weights: Weights) -> float:
        net = mlp(5, 8, 3, seed=3).double()
        net.load_state_dict(net.state_dict() | dict(weights))
        optimiser = torch.optim.SGD(net.parameters(), lr=0.5, momentum=0.9)
        for _ in range(3):
            optimiser.zero_grad()
            F.cross_entropy(net(x.double()), y).backward()  # type: ignore[no-untyped-call]
            optimiser.step()
        return F.cross_entropy(net(x.double()), y).item()

    step = 1e-6
    for name, w in problem.weights.items():
        for i in range(0, w.numel(), 5):
            up, down = ({n: v.clone() for n, v in problem.weights.items()} for _ in range(2))
            up[name].view(-1)[i] *= 1 + step
            down[name].view(-1)[i] *= 1 - step
            slope = (after_training(up) - after_training(down)) / (2 * step)
            assert abs(slope) == pytest.approx(float(scores[name].view(-1)[i]), rel=1e-3, abs=1e-8)


@pytest.mark.parametrize("kind", ["mlp", "deep", "conv"])
def test_synflow_conserves_the_flow_of_each_layer(kind: str) -> None:
    model, (x, _) = network(kind)
    scores = score("synflow", problem_of(model, 0, inputs=x))
    flows = [float(s.sum()) for s in scores.values()]
    assert flows == pytest.approx([flows[0]] * len(flows), rel=1e-12)


@pytest.mark.parametrize("kind", ["mlp", "deep"])
def test_synflow_conserves_the_flow_of_each_hidden_unit(kind: str) -> None:
    model, (x, _) = network(kind)
    scores = list(score("synflow", problem_of(model, 0, inputs=x)).values())
    for incoming, outgoing in itertools.pairwise(scores):
        torch.testing.assert_close(incoming.sum(1), outgoing.sum(0), rtol=1e-12, atol=0)


@pytest.mark.parametrize("seed", [0, *(pytest.param(n, marks=pytest.mark.slow) for n in range(1, 5))])
def test_synflow_never_collapses_a_layer_down_to_one_weight_a_layer(seed: int) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(6, 9), nn.ReLU(), nn.Linear(9, 7), nn.ReLU(), nn.Linear(7, 4))
    problem = problem_of(model, seed)
    total = sum(w.numel() for w in problem.weights.values())
    for kept in (3, 4, 5, 8, 20):
        found = mask(Recipe(name="s", criterion="synflow"), problem, (total - kept + 0.5) / total)
        assert found.kept == kept
        assert min(found.densities().values()) > 0
    # with one weight a layer, the three are a path
    path = list(mask(Recipe(name="s", criterion="synflow"), problem, (total - 2.5) / total).weights.values())
    assert torch.equal(path[0].any(1), path[1].any(0))
    assert torch.equal(path[1].any(1), path[2].any(0))


@pytest.mark.parametrize(
    ("kind", "crossed"),
    [
        ("conv", ["0.weight", "4.weight", "7.weight", "9.weight"]),
        ("residual", ["stem.weight", "head.weight"]),  # the flow can go round the others
    ],
)
def test_synflow_never_collapses_a_layer_that_every_path_crosses(kind: str, crossed: list[str]) -> None:
    problem = problem_for(kind)
    total, layers = sum(w.numel() for w in problem.weights.values()), len(problem.weights)
    for kept in (layers, layers + 1, layers + 4, 30):
        found = mask(Recipe(name="s", criterion="synflow"), problem, (total - kept + 0.5) / total)
        assert found.kept == kept
        assert min(found.densities()[layer] for layer in crossed) > 0


def test_lamp_never_empties_a_layer_where_magnitude_does() -> None:
    problem = problem_of(mlp(20, 128, 1, seed=42), 42)
    assert mask(Recipe(name="m", criterion="magnitude"), problem, 0.9).densities()["output.weight"] == 0
    for name in ("lamp", "synflow", "init-magnitude"):
        assert min(mask(Recipe(name="m", criterion=name), problem, 0.9).densities().values()) > 0


def test_phew_keeps_weights_on_paths_only() -> None:
    problem = problem_of(network("deep")[0], 0)
    found = list(mask(Recipe(name="p", criterion="phew"), problem, 0.8).weights.values())
    broken = 0  # the walk that meets the budget is cut short, so one unit a layer may be left dangling
    for before, after in itertools.pairwise(found):
        broken += int((before.any(1) != after.any(0)).sum())
    assert broken <= len(found)


def test_phew_is_refused_where_there_is_no_chain() -> None:
    for kind, layer in (("residual", "conv2.weight"), ("transformer", "query.weight")):
        with pytest.raises(NatalError, match=f"'phew' walks along a chain .*'{layer}'"):
            score("phew", problem_of(network(kind)[0], 0))


def test_force_may_bring_weights_back_and_others_do_not(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, list[dict[str, Tensor]]] = {}
    for name in ("force", "iterative-snip"):
        original = criteria[name]

        def spy(problem: Problem, original: Criterion = original, name: str = name) -> Scores:
            seen.setdefault(name, []).append(dict(problem.kept))
            return original(problem)

        monkeypatch.setitem(criteria._entries, name, spy)
        model, (x, y) = network("deep")
        mask(
            Recipe(name=name, criterion=name),
            problem_of(model, 0, inputs=x, targets=y, loss=F.cross_entropy),
            0.9,
        )
    returned = {
        name: any((b[n] & ~a[n]).any() for a, b in itertools.pairwise(ms) for n in b)
        for name, ms in seen.items()
    }
    assert returned == {"force": True, "iterative-snip": False}
    assert len(seen["force"]) == traits["force"].rounds


def test_redraw_keeps_a_layers_values_and_moves_them() -> None:
    weights = problem_of(network("deep")[0], 0).weights
    drawn = redraw(weights, torch.Generator().manual_seed(1))
    for name, w in weights.items():
        assert torch.equal(w.flatten().sort().values, drawn[name].flatten().sort().values)
        assert not torch.equal(w, drawn[name])


# --- the contract, for every registered criterion on every kind of network ----------------------------------


def problem_for(kind: str, seed: int = 0) -> Problem:
    model, (x, y) = network(kind)
    return problem_of(model, seed, inputs=x, targets=y, loss=F.cross_entropy)


def applicable(name: str, kind: str) -> bool:
    return name != "phew" or kind in ("mlp", "deep", "conv")


PAIRS = [(name, kind) for name in BUILT_IN for kind in NETWORKS if applicable(name, kind)]


@pytest.mark.usefixtures("few_rounds")
@pytest.mark.parametrize(("name", "kind"), PAIRS)
def test_contract(name: str, kind: str) -> None:
    problem = problem_for(kind)
    model = problem.model.train()
    model.zero_grad()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    modes = [m.training for m in model.modules()]
    state = torch.random.get_rng_state()
    total = sum(w.numel() for w in problem.weights.values())

    scores = score(name, problem)
    assert all(torch.isfinite(s).all() for s in scores.values())
    assert {n: s.shape for n, s in scores.items()} == {n: w.shape for n, w in problem.weights.items()}
    assert all(torch.equal(s, t) for s, t in zip(scores.values(), score(name, problem).values(), strict=True))

    masks = [mask(Recipe(name="r", criterion=name), problem, s) for s in (0.3, 0.83)]
    for found, sparsity in zip(masks, (0.3, 0.83), strict=True):
        assert found.total - found.kept == int(sparsity * total)
    if name in ONE_SHOT:
        assert all((masks[0].weights[n] | ~masks[1].weights[n]).all() for n in problem.weights)
    torch.randn(3)  # the caller's generator must not matter
    again = mask(Recipe(name="r", criterion=name), problem_for(kind), 0.83)
    assert all(torch.equal(again.weights[n], masks[1].weights[n]) for n in problem.weights)

    torch.random.set_rng_state(state)
    assert torch.equal(state, torch.random.get_rng_state())
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert modes == [m.training for m in model.modules()]
    assert all(p.grad is None and p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("name", BUILT_IN)
def test_scoring_leaves_the_global_generator_alone(name: str) -> None:
    problem = problem_for("mlp")
    state = torch.random.get_rng_state()
    with torch.no_grad():  # and works where the caller switched gradients off
        score(name, problem)
    assert torch.equal(state, torch.random.get_rng_state())
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("name", ["random", "phew", "ntk-sap"])
def test_draws_come_from_the_seed(name: str) -> None:
    first, second = (mask(Recipe(name="r", criterion=name), problem_for("mlp", seed), 0.5) for seed in (0, 1))
    assert any(not torch.equal(first.weights[n], second.weights[n]) for n in first.weights)


@pytest.mark.usefixtures("few_rounds")
@pytest.mark.parametrize(("name", "kind"), PAIRS)
def test_every_scope_keeps_the_exact_count(name: str, kind: str) -> None:
    problem = problem_for(kind)
    size = {n: w.numel() for n, w in problem.weights.items()}
    scopes: list[str | dict[str, float]] = [s for s in SCOPES if s != "threshold"]
    for scope in [*scopes, {list(size)[1]: 0.25}]:
        recipe = Recipe(name="r", criterion=name, scope=scope)
        denser, sparser = (mask(recipe, problem, s) for s in (0.55, 0.6))
        gone = {n: int((~kept).sum()) for n, kept in sparser.weights.items()}
        if scope == "layerwise":
            assert gone == {n: int(0.6 * count) for n, count in size.items()}
        else:
            assert sum(gone.values()) == int(0.6 * sum(size.values()))
        if name in ONE_SHOT:
            assert all((denser.weights[n] | ~sparser.weights[n]).all() for n in size)
    assert sparser.densities()[list(size)[1]] == pytest.approx(0.25, abs=0.5 / size[list(size)[1]])
    halves = mask(Recipe(name="r", criterion=name, scope=dict.fromkeys(size, 0.5)), problem, 0.5)
    assert all(abs(int(kept.sum()) - size[n] / 2) <= 1 for n, kept in halves.weights.items())


def test_dropout_and_batch_statistics_do_not_make_scores_random() -> None:
    problem = problem_for("transformer")
    problem.model.train()
    trained, evaluated = score("snip", problem), None
    problem.model.eval()
    evaluated = score("snip", problem)
    assert all(torch.equal(a, b) for a, b in zip(trained.values(), evaluated.values(), strict=True))


@pytest.mark.parametrize("name", ["snip", "force", "grasp", "prospr", "ntk-sap", "synflow"])
def test_batch_norms_use_the_batchs_own_statistics_except_under_synflow(name: str) -> None:
    problem = problem_for("conv")
    before = score(name, problem)
    problem.model.get_buffer("1.running_mean").fill_(3)
    problem.model.get_buffer("1.running_var").fill_(9)
    same = all(torch.equal(s, before[n]) for n, s in score(name, problem).items())
    assert same == (name != "synflow")
    assert float(problem.model.get_buffer("1.running_mean")[0]) == 3


def test_synflow_says_when_a_layer_gets_no_flow() -> None:
    with pytest.warns(UserWarning, match=r"'synflow' gives every weight of 'query.weight' the score 0"):
        score("synflow", problem_for("transformer"))


# --- neurons ------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("few_rounds")
@pytest.mark.parametrize("kind", ["mlp", "deep", "conv"])
@pytest.mark.parametrize("name", [n for n in BUILT_IN if n not in SIGNED])
def test_neurons_go_whole_and_in_exact_number(name: str, kind: str) -> None:
    problem = problem_for(kind)
    for scope in ("layerwise", "global"):
        found = mask(Recipe(name="r", criterion=name, scope=scope, granularity="neuron"), problem, 0.5)
        counts = [(len(k), int((~k).sum())) for k in found.units.values()]
        if scope == "layerwise":
            assert all(gone == n // 2 for n, gone in counts)
        else:
            assert sum(gone for _, gone in counts) == sum(n for n, _ in counts) // 2
        for layer, kept in found.units.items():
            assert torch.equal(found.weights[layer].flatten(1).any(1), kept)
    # densities by layer, though early rounds cannot meet them yet
    first, units = next(iter(found.units.items()))
    recipe = Recipe(name="r", criterion=name, scope={first: 0.25}, granularity="neuron")
    quarter = mask(recipe, problem, 0.6 if len(found.units) > 1 else 0.75)
    assert int(quarter.units[first].sum()) == len(units) // 4


def silent_units(model: nn.Module, found: Mask, x: Tensor) -> bool:
    """Whether noise on everything that was removed leaves the outputs as they are."""
    net = apply(model, found).eval()
    parameters: dict[str, Tensor] = dict(net.named_parameters())
    for name, kept in found.items().items():
        noise = torch.randn_like(parameters[name])
        parameters[name] = parameters[name] + noise * ~kept
    return torch.equal(net(x), torch.func.functional_call(net, parameters, (x,)))


def test_a_removed_channel_takes_bias_norm_and_columns_along() -> None:
    model, (x, _) = network("conv")
    found = mask(STRATEGIES["structured"], problem_of(model, 0, inputs=x), 0.5)
    assert set(found.units) == {"0.weight", "4.weight", "7.weight"}
    assert set(found.biases) == {"0.bias", "1.weight", "1.bias", "4.bias", "7.bias"}
    gone = ~found.units["4.weight"]
    assert not found.weights["7.weight"].view(8, 5, 9)[:, gone].any()
    assert not found.weights["4.weight"][:, ~found.units["0.weight"]].any()
    assert silent_units(model, found, x)


def test_aggregates_by_hand() -> None:
    net = nn.Sequential(nn.Linear(2, 3, bias=False), nn.ReLU(), nn.Linear(3, 1, bias=False))
    with torch.no_grad():
        net.get_parameter("0.weight").copy_(torch.tensor([[3.0, 4.0], [5.0, 1.0], [1.0, 1.0]]))
        net.get_parameter("2.weight").copy_(torch.tensor([[1.0, 2.0, 7.0]]))
    kept = {}
    for how in ("incoming-l2", "incoming-l1", "outgoing-l1", "outgoing-l2", "both-l1", "both-l2"):
        recipe = Recipe(name="r", criterion="magnitude", granularity="neuron", aggregate=how)
        kept[how] = mask(recipe, problem_of(net, 0), 0.7).units["0.weight"].int().argmax().item()
    # incoming: 5, 5.1, 1.4 and 7, 6, 2; outgoing: 1, 2, 7; both: 8, 8, 9 and 5.1, 5.5, 7.1
    assert kept == {
        "incoming-l2": 1,
        "incoming-l1": 0,
        "outgoing-l1": 2,
        "outgoing-l2": 2,
        "both-l1": 2,
        "both-l2": 2,
    }


@pytest.mark.parametrize("kind", ["deep", "conv"])
def test_gate_is_the_derivative_of_the_loss_in_a_gate_on_the_unit(kind: str) -> None:
    from natal.pruning.criteria.problem import private
    from natal.pruning.neurons import Neurons

    model, (x, y) = network(kind)
    problem = problem_of(model.double(), 0, inputs=x.double(), targets=y, loss=F.cross_entropy)
    layer, hooked = ("2.weight", "3") if kind == "deep" else ("0.weight", "2")
    with private(problem) as own:
        neurons = Neurons(own)
        got = neurons.gate(own, neurons.groups[layer])
        step, slopes = 1e-6, []
        for unit in range(len(got)):
            values = []
            for sign in (1, -1):

                def gate(
                    _module: nn.Module, _inputs: object, output: Tensor, sign: int = sign, unit: int = unit
                ) -> Tensor:
                    c = torch.ones(output.shape[1], dtype=output.dtype)
                    c[unit] += sign * step
                    return output * c.view(1, -1, *[1] * (output.ndim - 2))

                hook = own.model.get_submodule(hooked).register_forward_hook(gate)
                values.append(float(own.loss_at(own.weights)))
                hook.remove()
            slopes.append(abs(values[0] - values[1]) / (2 * step))
    torch.testing.assert_close(got, torch.tensor(slopes, dtype=torch.float64), rtol=1e-4, atol=1e-8)
    found = mask(Recipe(name="g", criterion="snip", granularity="neuron", aggregate="gate"), problem, 0.5)
    assert found.units


def test_units_that_are_added_go_together() -> None:
    model, (x, y) = network("residual")
    found = mask(STRATEGIES["structured"], problem_of(model, 0, inputs=x, targets=y), 0.5)
    assert {n: len(k) for n, k in found.units.items()} == {
        "stem.weight": 4,
        "conv1.weight": 6,
        "conv2.weight": 6,
    }
    stays = found.units["conv2.weight"]
    rows = [found.weights[name].flatten(1).any(1) for name in ("conv2.weight", "skip.weight")]
    assert all(torch.equal(stays, row) for row in rows)
    assert torch.equal(stays, found.weights["head.weight"].any(0))
    assert torch.equal(stays, found.biases["bn2.weight"])
    left = problem_of(model, 0, exclude=("stem", "conv2", "skip"), inputs=x)
    found = mask(STRATEGIES["structured"], left, 0.5)
    assert set(found.units) == {"conv1.weight"}
    assert set(found.biases) == {"bn1.weight", "bn1.bias"}


@pytest.mark.parametrize(("reduce", "kept"), [("mean", 1), ("sum", 1), ("max", 2), ("first", 0)])
def test_the_layers_of_a_group_come_to_one_score(reduce: Reduce, kept: int) -> None:
    class Sum(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(1, 3, bias=False), nn.Linear(1, 3, bias=False), nn.Linear(3, 1)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.c(self.a(x) + self.b(x))
            return out

    net = Sum()
    with torch.no_grad():
        net.a.weight.copy_(torch.tensor([[4.0], [3.0], [0.0]]))
        net.b.weight.copy_(torch.tensor([[0.0], [3.0], [5.0]]))
    recipe = Recipe(name="r", criterion="magnitude", granularity="neuron", reduce=reduce)
    assert mask(recipe, problem_of(net, 0), 0.7).units["a.weight"].nonzero().flatten().tolist() == [kept]


def test_what_cannot_be_cut_is_kept_whole_and_named_once() -> None:
    class Sorted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(4, 6), nn.Linear(6, 5), nn.Linear(5, 2)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.c(torch.relu(self.b(self.a(x).sort(1).values)))
            return out

    problem = problem_of(Sorted(), 0)
    with pytest.warns(UserWarning, match=r"kept whole: 'a.weight': sort runs over them") as seen:
        found = mask(STRATEGIES["structured"], problem, 0.5)
    assert len(seen) == 1
    assert {n: int(k.sum()) for n, k in found.units.items()} == {"b.weight": 3}


def test_a_model_that_branches_on_values_is_refused_for_neurons_only() -> None:
    class Fork(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(2, 2), nn.Linear(2, 1)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.b(self.a(x)) if x.sum() > 0 else self.b(x)
            return out

    problem = problem_of(Fork(), 0)
    assert mask(Recipe(name="m", criterion="magnitude"), problem, 0.5).kept == 3
    with pytest.raises(NatalError, match="branches on the values of its input"):
        mask(STRATEGIES["structured"], problem, 0.5)


# --- controls -----------------------------------------------------------------------------------------------


def controlled(
    control: Control | None,
    kind: str = "deep",
    granularity: str = "weight",
    scope: str = "global",
    name: str = "magnitude",
    sparsity: float = 0.7,
) -> Mask:
    recipe = Recipe(name="c", criterion=name, scope=scope, granularity=granularity, control=control)
    return mask(recipe, problem_for(kind), sparsity)


@pytest.mark.usefixtures("few_rounds")
@pytest.mark.parametrize("control", ["shuffle", "quota-random"])
@pytest.mark.parametrize("name", ["magnitude", "synflow", "snip"])
def test_shuffle_and_quota_random_keep_the_densities_and_move_the_weights(
    control: Control, name: str
) -> None:
    plain, moved = controlled(None, name=name), controlled(control, name=name)
    assert plain.densities() == moved.densities()
    assert any(not torch.equal(plain.weights[n], moved.weights[n]) for n in plain.weights)


def test_controls_draw_from_streams_of_their_own() -> None:
    problem, plain = problem_for("deep"), controlled(None)
    shuffled = redraw(plain.weights, problem.stream("shuffle"))
    assert all(torch.equal(kept, shuffled[n]) for n, kept in controlled("shuffle").weights.items())
    redrawn = redraw(problem.weights, problem.stream("reinit"))
    assert all(torch.equal(w, redrawn[n]) for n, w in controlled("reinit").redrawn.items())
    plain = controlled(None, granularity="neuron", scope="layerwise")
    moved = controlled("shuffle", granularity="neuron", scope="layerwise")
    shuffled = redraw(plain.units, problem.stream("shuffle"))
    assert all(torch.equal(kept, shuffled[n]) for n, kept in moved.units.items())
    assert any(not torch.equal(kept, plain.units[n]) for n, kept in moved.units.items())


def test_quota_random_draws_for_itself_so_that_the_control_of_random_is_no_copy() -> None:
    problem = problem_for("deep")
    plain, found = controlled(None, name="random"), controlled("quota-random", name="random")
    generator = problem.stream("quota-random")
    for name, kept in found.weights.items():
        draws = torch.rand(kept.shape, generator=generator)
        count = int(plain.weights[name].sum())
        assert torch.equal(kept, draws >= draws.flatten().sort().values[draws.numel() - count])
        assert not torch.equal(kept, plain.weights[name])


def test_invert_keeps_what_the_criterion_removes() -> None:
    problem = problem_for("deep")
    found = controlled("invert", sparsity=0.5)
    plain = controlled(None, sparsity=0.5)
    assert int(sum((found.weights[n] & plain.weights[n]).sum() for n in problem.weights)) <= 1  # an odd total
    units = controlled("invert", granularity="neuron", sparsity=0.5, scope="layerwise")
    highest = controlled("highest-norm", granularity="neuron", sparsity=0.5, scope="layerwise")
    assert all(torch.equal(units.units[n], highest.units[n]) for n in units.units)


def test_reinit_keeps_the_mask_and_changes_the_weights() -> None:
    plain, again = controlled(None), controlled("reinit")
    assert all(torch.equal(plain.weights[n], again.weights[n]) for n in plain.weights)
    assert set(again.redrawn) == set(again.weights)
    assert not plain.redrawn


@pytest.mark.usefixtures("few_rounds")
@pytest.mark.parametrize("control", ["shuffle", "random-neurons", "highest-norm", "fresh-narrow"])
def test_neuron_controls_keep_as_many_of_each_layer(control: Control) -> None:
    plain = controlled(None, "conv", "neuron", name="synflow")
    other = controlled(control, "conv", "neuron", name="synflow")
    counts = [{n: int(k.sum()) for n, k in found.units.items()} for found in (plain, other)]
    assert counts[0] == counts[1]
    assert other.weights.keys() == plain.weights.keys()
    assert other.biases.keys() == plain.biases.keys()


def test_highest_norm_by_hand() -> None:
    found = controlled("highest-norm", "mlp", "neuron", "layerwise", sparsity=0.5)
    norms = problem_for("mlp").weights["hidden.weight"].norm(dim=1)
    assert norms[found.units["hidden.weight"]].max() <= norms[~found.units["hidden.weight"]].min()


def test_fresh_narrow_is_pytorchs_own_initialisation_of_that_width() -> None:
    problem = problem_of(mlp(20, 128, 1, seed=42), 42)
    found = mask(STRATEGIES["fresh-narrow"], problem, 0.9)
    kept = int(found.units["hidden.weight"].sum())
    assert kept == 128 - int(0.9 * 128)
    w1, w2 = found.redrawn["hidden.weight"], found.redrawn["output.weight"]
    assert float(w1.abs().max()) <= 1 / math.sqrt(20) < 1.01 * float(w1.abs().max())
    assert float(w2.abs().max()) <= 1 / math.sqrt(kept) < 1.1 * float(w2.abs().max())
    assert set(found.redrawn) == {"hidden.weight", "hidden.bias", "output.weight", "output.bias"}
    assert not torch.equal(w1, problem.weights["hidden.weight"])


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        ({"control": "random-neurons"}, "for whole neurons"),
        ({"control": "quota-random", "granularity": "neuron"}, "'random-neurons'"),
        ({"aggregate": "both-l2"}, "granularity 'neuron'"),
        ({"aggregate": "gate", "granularity": "neuron"}, "criterion 'snip'"),
        ({"criterion": "phew", "granularity": "neuron"}, "negative scores, .* would drop the sign"),
        (
            {"criterion": "grasp", "granularity": "neuron"},
            "'0.weight' negative scores, .* would drop the sign",
        ),
        ({"criterion": "snip", "scope": "threshold"}, "'threshold' .* uniform draws only.* not 'snip'"),
        ({"scope": "erk", "granularity": "neuron"}, "budgets single weights"),
    ],
)
def test_recipes_that_contradict_themselves(recipe: dict[str, Any], message: str) -> None:
    with pytest.raises(NatalError, match=message):
        mask(Recipe(**{"name": "r", "criterion": "magnitude", **recipe}), problem_for("deep"), 0.5)


# --- extension and bad answers ------------------------------------------------------------------------------


@pytest.fixture
def forget() -> Iterator[None]:
    yield
    for name in ("mine", "mine-iterative"):
        criteria._entries.pop(name, None)
        traits.pop(name, None)


def test_a_criterion_of_ones_own(forget: None) -> None:
    @criterion("mine")
    def mine(problem: Problem) -> Scores:
        """Keeps the smallest weights."""
        return {name: -w.abs() for name, w in problem.weights.items()}

    found, inverse = (
        mask(Recipe(name="m", criterion="mine"), problem_for("mlp"), 0.5),
        controlled("invert", "mlp", sparsity=0.5),
    )
    assert all(torch.equal(found.weights[n], inverse.weights[n]) for n in found.weights)

    calls = []

    @criterion("mine-iterative", needs="data", rounds=4)
    def mine_iterative(problem: Problem) -> Scores:
        """Looks at what is left."""
        left = sum(int((w != 0).sum()) for w in problem.weights.values())
        assert left == sum(int(kept.sum()) for kept in problem.kept.values())
        calls.append((problem.round, left, problem.sparsity))
        return {name: w.abs() for name, w in problem.weights.items()}

    assert mask(Recipe(name="m", criterion="mine-iterative"), problem_for("mlp"), 0.9375).kept == 64 - 60
    assert calls == [(1, 64, 0.9375), (2, 32, 0.9375), (3, 16, 0.9375), (4, 8, 0.9375)]


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lambda w: {}, "must return one tensor for each"),
        (lambda w: {n: v.sum() for n, v in w.items()}, r"'hidden.weight' scores of shape \(\)"),
        (lambda w: {n: v * math.nan for n, v in w.items()}, "'hidden.weight' scores that are NaN"),
        (lambda w: list(w.values()), "must return one tensor for each .*, got list"),
    ],
)
def test_bad_scores_are_named(forget: None, answer: Callable[[Weights], Scores], message: str) -> None:
    criterion("mine")(lambda problem: answer(problem.weights))
    with pytest.raises(NatalError, match=message):
        score("mine", problem_for("mlp"))


def test_errors_name_the_layer_and_the_cure() -> None:
    model, (x, y) = network("deep")
    with pytest.raises(NatalError, match=r"criterion 'snip' needs data.*without data: .*synflow"):
        score("snip", problem_of(model, 0))
    with pytest.raises(NatalError, match=r"batch of shape \(12, 4\) does not fit layer '0'"):
        score("snip", problem_of(model, 0, inputs=x[:, :4], targets=y, loss=F.cross_entropy))
    each_row = problem_of(
        model, 0, inputs=x, targets=y, loss=lambda f, t: F.cross_entropy(f, t, reduction="none")
    )
    with pytest.raises(NatalError, match=r"must be one number, got shape \(12,\)"):
        score("snip", each_row)
    with pytest.raises(NatalError, match=r"does not depend on the model's weights"):
        score("grasp", problem_of(model, 0, inputs=x, targets=y, loss=lambda f, t: torch.ones(())))
    with pytest.raises(NatalError, match="loss does not fit the model's outputs"):
        score("snip", problem_of(model, 0, inputs=x, targets=y[:5], loss=F.cross_entropy))
    with pytest.raises(NatalError, match=r"'synflow' needs the shape of an input.*'0.weight'"):
        score("synflow", problem_of(network("conv")[0], 0))
    with pytest.raises(NatalError, match=r"leaves 2 of 156 weights for 4 layers.*'6.weight'"):
        mask(Recipe(name="m", criterion="magnitude"), problem_of(model, 0), 0.99)
    with pytest.raises(NatalError, match="no linear or convolution layer"):
        problem_of(nn.Sequential(nn.ReLU()), 0)
    with pytest.raises(NatalError, match="unknown criterion 'snp'; did you mean 'snip'"):
        score("snp", problem_of(model, 0))


# --- recipes in study files ---------------------------------------------------------------------------------


def test_a_recipe_without_the_later_fields_dumps_as_before() -> None:
    assert Recipe(name="m", criterion="magnitude").model_dump() == {
        "name": "m",
        "criterion": "magnitude",
        "scope": "global",
        "granularity": "weight",
    }
    dumped = Recipe(name="m", criterion="magnitude", control="shuffle", scope={"a": 0.5}).model_dump()
    assert dumped["control"] == "shuffle"
    assert dumped["scope"] == {"a": 0.5}
    study = load_study(
        {
            "name": "x",
            "tasks": ["a"],
            "strategies": ["magnitude", "structured"],
            "sparsities": [0, 0.5],
            "seeds": [1],
        }
    )
    assert study.digest == "00bb6b54d84e4948"  # what it was before these fields existed


def test_strategies_are_named_by_their_words() -> None:
    table = {"name": "x", "tasks": ["a"], "sparsities": [0.5], "seeds": [1]}
    entries = [
        {"criterion": "snip", "control": "shuffle"},
        {"criterion": "snip", "scope": {"a": 0.1}},
        "fresh-narrow",
    ]
    names = [r.name for r in load_study({**table, "strategies": entries}).strategies]
    assert names == ["snip-shuffle", "snip-by-layer", "fresh-narrow"]
    for entry, message in (
        (
            {"criterion": "snip", "scope": "erkk"},
            "unknown scope 'erkk'; did you mean 'erk'[?] known: .*erk, ",
        ),
        ({"criterion": "snip", "scope": {"a": 2}}, "layer 'a' must lie in"),
        ({"criterion": "snip", "control": "shufle"}, "'shuffle'"),
    ):
        with pytest.raises(NatalError, match=message):
            load_study({**table, "strategies": [entry]})


def test_the_papers_masks_are_what_they_were() -> None:
    """Digests of the masks before criteria became a package: the published runs must not move by a bit."""
    import hashlib

    digest = hashlib.sha256()
    for shape in ((194, 128, 97), (20, 128, 1)):
        for seed in (42, 7):
            problem = problem_of(mlp(*shape, seed=seed), seed)
            for recipe in (
                Recipe(name="m", criterion="magnitude"),
                Recipe(name="r", criterion="random"),
                STRATEGIES["structured"],
            ):
                for sparsity in (0.0, 0.3, 0.9, 0.95):
                    for name, kept in mask(recipe, problem, sparsity).items().items():
                        digest.update(name.encode() + kept.numpy().tobytes())
    assert digest.hexdigest()[:16] == "f5fc304a249a3b57"


def test_a_study_trains_from_the_values_a_control_redraws() -> None:
    from natal.lab import birth
    from natal.study import Run

    table = {
        "name": "x",
        "tasks": ["regression"],
        "strategies": ["structured", "fresh-narrow"],
        "sparsities": [0.5],
        "seeds": [1],
        "hidden": 16,
    }
    study = load_study(table)
    plain, fresh = (
        birth.trial(study, Run("regression", name, 0.5, 1), 0.1) for name in ("structured", "fresh-narrow")
    )
    before, after = (t.network.get_parameter("hidden.weight") for t in (plain, fresh))
    assert torch.equal(plain.mask.units["hidden.weight"], fresh.mask.units["hidden.weight"])
    assert not torch.equal(before, after)
    assert torch.equal(after, fresh.mask.redrawn["hidden.weight"])
