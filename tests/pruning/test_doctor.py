"""The doctor's numbers on networks small enough to check by hand, and its promise to change nothing."""

import copy
import itertools
from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from natal.errors import NatalError
from natal.pruning.apply import apply, prune
from natal.pruning.doctor import Diagnosis, collapse_sparsity, diagnose, effective, emptied_at
from natal.pruning.files import to_torch_prune
from natal.pruning.mask import Mask, dense, prunable
from natal.pruning.select import select
from networks import mlp

torch.set_num_threads(1)
Known = TypeVar("Known")


def known(number: Known | None) -> Known:
    """What the doctor could measure."""
    assert number is not None
    return number


def bools(*rows: str) -> Tensor:
    """Return a boolean matrix drawn with 1 and 0, one string a row."""
    return torch.tensor([[digit == "1" for digit in row] for row in rows])


# 3 inputs, hidden units a (inputs 0 and 1), b (none), c (input 2); output 0 reads a and b, output 1 reads b
SMALL = Mask({"hidden.weight": bools("110", "000", "001"), "output.weight": bools("110", "010")})


def small_net() -> nn.Sequential:
    return mlp(3, 3, 2, seed=0)


def texts(found: Diagnosis, severity: str) -> str:
    return " | ".join(f.text for f in found.findings if f.severity == severity)


def test_effective_keeps_paths_only() -> None:
    kept = effective(SMALL)
    assert torch.equal(kept.weights["hidden.weight"], bools("110", "000", "000"))
    assert torch.equal(kept.weights["output.weight"], bools("100", "000"))
    assert kept.sparsity == 1 - 3 / 15
    assert effective(kept).kept == kept.kept  # a second look finds nothing more


def test_a_small_network_by_hand() -> None:
    found = diagnose(small_net(), SMALL, requested=0.6)
    hidden, output = found.layers
    assert (hidden.weights, hidden.kept, hidden.effective, hidden.units) == (9, 3, 2, 3)
    assert (hidden.no_input, hidden.no_output, hidden.unread) == (1, 1, 0)
    assert (output.kept, output.effective, output.no_input, output.no_output) == (3, 1, 1, 0)
    assert hidden.density == 3 / 9
    assert found.sparsity == 1 - 6 / 15
    assert found.effective_sparsity == 1 - 3 / 15
    assert found.requested == 0.6
    assert found.collapsed == ()
    assert not found.fatal
    assert "1 that nothing reaches and 1 that reach no output, of 3" in texts(found, "warning")
    assert "1 of 2 outputs of output.weight" in texts(found, "warning")
    assert "50.0% of the kept weights lie on no path" in texts(found, "warning")
    assert "asks for" not in str(found)  # 6 of 15 is what sparsity 0.6 keeps


@settings(max_examples=40)
@given(
    widths=st.lists(st.integers(1, 6), min_size=2, max_size=5),
    density=st.floats(0, 1),
    seed=st.integers(0, 99),
)
def test_the_short_way_and_the_graph_agree(widths: list[int], density: float, seed: int) -> None:
    """A chain walked from the mask alone is what torch.fx finds, and is what gradients say."""
    generator = torch.Generator().manual_seed(seed)
    layers = [nn.Linear(i, o).double() for i, o in itertools.pairwise(widths)]
    net = nn.Sequential(*layers)

    class Wrapped(nn.Module):  # no nn.Sequential: takes the way through the graph
        def __init__(self) -> None:
            super().__init__()
            for name, layer in net.named_children():
                self.add_module(name, layer)

        def forward(self, x: Tensor) -> Tensor:
            for name in map(str, range(len(layers))):
                x = torch.tanh(self.get_submodule(name)(x))
            return x

    mask = Mask({n: torch.rand(w.shape, generator=generator) < density for n, w in prunable(net).items()})
    alone, chain, graph = effective(mask), effective(mask, net), effective(mask, Wrapped())
    assert all(torch.equal(alone.weights[n], graph.weights[n]) for n in mask.weights)
    assert all(torch.equal(alone.weights[n], chain.weights[n]) for n in mask.weights)
    # SynFlow's flow: with all weights one and no bias, a weight matters if and only if it is on a path
    ones = {n: kept.double().requires_grad_() for n, kept in mask.weights.items()}
    x = torch.ones(widths[0], dtype=torch.double)
    for w in ones.values():
        x = w @ x
    x.sum().backward()  # type: ignore[no-untyped-call]
    assert all(torch.equal((known(w.grad) * w) != 0, alone.weights[n]) for n, w in ones.items())


class Everything(nn.Module):
    """Batch norm, a depthwise convolution, a shortcut, a concatenation, pooling and flattening."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.deep, self.point = nn.Conv2d(4, 4, 3, groups=4, padding=1), nn.Conv2d(4, 4, 1)
        self.side, self.last = nn.Conv2d(4, 3, 3), nn.Conv2d(4, 3, 3)
        self.head, self.out = nn.Linear(6 * 4, 5), nn.Linear(5, 2)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.norm(self.stem(x)))
        y = self.point(self.deep(x))
        y += x
        y = torch.cat([self.side(x), self.relu(self.last(y))], 1)
        out: Tensor = self.out(self.relu(self.head(torch.flatten(F.max_pool2d(y, 2), 1))))
        return out


@settings(max_examples=60)
@given(density=st.floats(0.02, 0.6), seed=st.integers(0, 999))
@pytest.mark.slow
def test_paths_through_a_residual_network_are_what_gradients_say(density: float, seed: int) -> None:
    """With every kept weight positive, a weight matters if and only if it lies on a path."""
    generator = torch.Generator().manual_seed(seed)
    net = Everything().double().eval()
    mask = Mask({n: torch.rand(w.shape, generator=generator) < density for n, w in prunable(net).items()})
    with torch.no_grad():
        for name, p in net.named_parameters():
            share = mask.weights.get(name, torch.full_like(p, name == "norm.weight"))
            # unequal values, so that max pooling has no ties; small, so that they do not overflow
            p.copy_(share * torch.rand(p.shape, generator=generator).add(0.5))
    x = torch.rand(4, 2, 6, 6, generator=generator, dtype=torch.double) + 0.5
    net(x).sum().backward()
    on_path = {n: (known(net.get_parameter(n).grad) * net.get_parameter(n)) != 0 for n in mask.weights}
    kept = effective(mask, net).weights
    assert all(torch.equal(kept[n], on_path[n]) for n in mask.weights)


class Shortcut(nn.Module):
    """conv -> bn -> relu -> (depthwise, conv) + shortcut -> pool -> head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.deep, self.point = nn.Conv2d(4, 4, 3, padding=1, groups=4), nn.Conv2d(4, 4, 1)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.stem(x)))
        x = torch.relu(x + self.point(self.deep(x)))
        out: Tensor = self.head(F.dropout(x.mean((2, 3)), 0.1))  # a dropout that ignores the mode
        return out


def test_a_shortcut_keeps_a_network_alive_when_a_layer_collapses() -> None:
    net = Shortcut()
    mask = dense(prunable(net))
    mask.weights["point.weight"].fill_(False)
    found = diagnose(net, mask, torch.randn(4, 2, 5, 5))
    assert found.collapsed == ("point.weight",)
    assert not found.fatal
    assert "point.weight has collapsed" in texts(found, "warning")
    by_name = {layer.name: layer for layer in found.layers}
    assert by_name["deep.weight"].effective == 0  # it leads into nothing
    assert by_name["deep.weight"].no_output == 4
    assert by_name["stem.weight"].effective == 72
    assert by_name["stem.weight"].no_output == 0
    mask.weights["head.weight"].fill_(False)
    assert diagnose(net, mask).fatal


def test_depthwise_weights_are_followed_channel_by_channel() -> None:
    net = Shortcut()
    mask = dense(prunable(net))
    mask.weights["stem.weight"][0] = False
    mask.weights["deep.weight"][1] = False
    mask.weights["point.weight"][:, 2] = False
    kept = effective(mask, net).weights
    assert kept["deep.weight"].flatten(1).sum(1).tolist() == [0, 0, 0, 9]
    assert kept["point.weight"].sum((0, 2, 3)).tolist() == [0, 0, 0, 4]


def test_collapse_is_fatal() -> None:
    weights = prunable(mlp(194, 128, 97, seed=0))
    net = mlp(194, 128, 97, seed=0)
    mask = Mask(select({n: w.abs() for n, w in weights.items()}, 0.97))
    found = diagnose(net, mask, requested=0.97)
    assert found.fatal
    assert found.collapsed == ("hidden.weight",)
    assert found.findings[0].severity == "fatal"
    assert found.effective_sparsity == 1


def test_requested_and_realised_may_differ() -> None:
    found = diagnose(small_net(), SMALL, requested=0.5)
    assert "sparsity 0.5 asks for 8 kept weights, the mask keeps 6" in texts(found, "warning")


def test_the_papers_collapse_is_found_before_any_training() -> None:
    """nn.Linear draws within 0.224 in the first layer and 0.088 in the second: magnitude empties the second."""
    net = mlp(20, 128, 1, seed=42)
    scores = {n: w.abs() for n, w in prunable(net).items()}
    healthy = diagnose(net, Mask(select(scores, 0.3)), requested=0.3, scores=scores)
    smaller = int((scores["hidden.weight"] < scores["output.weight"].max()).sum())
    assert healthy.collapses_at == pytest.approx((smaller + 128) / 2688)
    assert 0.41 < known(healthy.collapses_at) < 0.44
    assert "empties output.weight from sparsity 0.4" in texts(healthy, "note")
    assert not healthy.fatal
    broken = diagnose(net, Mask(select(scores, 0.5)), requested=0.5)
    assert broken.fatal
    assert broken.collapsed == ("output.weight",)
    assert broken.collapses_at is None


def test_whole_neurons_that_a_mask_removes_are_no_illness() -> None:
    net = mlp(20, 128, 5, seed=0)
    for sparsity in (0.5, 0.99):
        mask = prune(net, sparsity, "magnitude", "layerwise", "neuron")
        found = diagnose(net, mask, torch.randn(64, 20), requested=sparsity)
        assert not texts(found, "warning")
        hidden = found.layers[0]
        assert (hidden.removed, hidden.no_input, hidden.no_output) == (int(sparsity * 128), 0, 0)
        assert found.unit_sparsity == int(sparsity * 128) / 128
        assert f"requested {sparsity:.4f}, realised {found.unit_sparsity:.4f} of neurons" in str(found)
        assert (
            known(hidden.scale).pruned > known(hidden.scale).dense
        )  # of the units that stay, not diluted by the others
    # a unit that loses its input alone is another matter: its outgoing weights are wasted
    mask = dense(prunable(net))
    mask.weights["hidden.weight"][:3] = False
    assert "dead units: 3 that nothing reaches, of 128" in texts(diagnose(net, mask), "warning")
    assert "asks for 64 kept neurons, the mask keeps 2" in str(
        diagnose(net, prune(net, 0.99, "magnitude", "layerwise", "neuron"), requested=0.5)
    )


def test_neurons_of_a_layer_whose_reader_is_left_alone_are_no_illness_either() -> None:
    net = mlp(20, 16, 5, seed=0)
    mask = prune(net, 0.5, "magnitude", "layerwise", "neuron")
    alone = Mask({"hidden.weight": mask.weights["hidden.weight"]}, mask.biases, mask.units)
    assert not texts(diagnose(net, alone, requested=0.5), "warning")


@pytest.mark.parametrize("scope", ["global", "layerwise"])
def test_rounding_once_or_layer_by_layer_are_both_what_was_asked_for(scope: str) -> None:
    net = mlp(194, 128, 97, seed=0)
    for sparsity in (0.1, 0.35, 0.9, 0.99):
        mask = Mask(select({n: torch.rand_like(w) for n, w in prunable(net).items()}, sparsity, scope))
        assert "asks for" not in str(diagnose(net, mask, requested=sparsity))


def test_a_constant_output_is_named_wherever_the_output_layer_stands() -> None:
    class Backwards(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head, self.body = nn.Linear(4, 3), nn.Linear(2, 4)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.head(torch.relu(self.body(x)))
            return out

    mask = dense(prunable(Backwards()))
    mask.weights["head.weight"][0] = False
    assert "1 of 3 outputs of head.weight, the last layer, are constant" in str(diagnose(Backwards(), mask))
    mask = Mask({"body.weight": bools("11", "00", "11", "11")})
    assert "body.weight has dead units: 1 that nothing reaches, of 4" in str(diagnose(Backwards(), mask))


def test_a_control_that_redraws_weights_is_examined_on_the_weights_it_draws() -> None:
    net = mlp(194, 128, 97, seed=0)
    mask = prune(net, 0.5, "magnitude", control="reinit")
    assert "shows no dependence" in texts(diagnose(net, mask), "note")
    assert "correlates with |w|" in texts(diagnose(net, replace(mask, redrawn={})), "note")


def test_a_network_already_pruned_can_be_examined() -> None:
    net, x = mlp(20, 16, 5, seed=0), torch.randn(9, 20)
    mask = prune(net, 0.5, "random")
    plain = diagnose(net, mask, x)
    for pruned in (apply(net, mask), to_torch_prune(net, mask)):
        pruned(x)
        found = diagnose(pruned, mask, x)
        assert [layer.effective for layer in found.layers] == [layer.effective for layer in plain.layers]
        assert known(found.layers[1].scale).pruned == known(plain.layers[1].scale).pruned
        assert "removed weights are already zero" in texts(found, "note")


def test_a_random_mask_shows_no_correlation_and_a_leaking_one_does() -> None:
    net = mlp(194, 128, 97, seed=0)
    weights = prunable(net)
    for seed in range(1000, 1020):
        generator = torch.Generator().manual_seed(seed)
        scores = {n: torch.rand(w.shape, generator=generator) for n, w in weights.items()}
        found = diagnose(net, Mask(select(scores, 0.5)), random=True)
        assert not texts(found, "warning")
        assert "no dependence on the weights" in texts(found, "note")
    # the field's classic: a generator seeded like the initialisation draws the weights' own numbers again
    generator = torch.Generator().manual_seed(0)
    scores = {n: torch.rand(w.shape, generator=generator) for n, w in weights.items()}
    leak = diagnose(net, Mask(select(scores, 0.5)), random=True)
    assert "said to be random" in texts(leak, "warning")
    assert known(leak.layers[0].with_weight).r == pytest.approx(
        0.866, abs=0.01
    )  # sqrt(3)/2: sign of a uniform
    large = diagnose(net, Mask(select({n: w.abs() for n, w in weights.items()}, 0.5)))
    assert "correlates with |w| in hidden.weight" in texts(large, "note")
    assert abs(known(large.layers[0].with_weight).r) < 0.05


def test_the_p_value_is_calibrated() -> None:
    """Masks that are random have p below 0.1 in about a tenth of the cases."""
    net = mlp(20, 30, 1, seed=3)
    generator = torch.Generator().manual_seed(0)
    low = 0
    for _ in range(400):
        mask = Mask({"hidden.weight": torch.rand(30, 20, generator=generator) < 0.3})
        low += known(diagnose(net, mask).layers[0].with_weight).p < 0.1
    assert 22 <= low <= 60  # binomial(400, 0.1): three standard deviations


def test_correlation_agrees_with_the_textbook() -> None:
    net = mlp(10, 12, 5, seed=1)
    kept = torch.rand(12, 10, generator=torch.Generator().manual_seed(0)) < 0.4
    found = diagnose(net, Mask({"hidden.weight": kept})).layers[0]
    pairs = torch.stack(
        [kept.flatten().double(), net.get_parameter("hidden.weight").detach().flatten().double()]
    )
    assert known(found.with_weight).r == pytest.approx(torch.corrcoef(pairs)[0, 1].item())


def test_removed_weights_that_are_zero_cannot_be_correlated() -> None:
    net = small_net()
    SMALL.apply_(dict(net.named_parameters()))
    found = diagnose(net, SMALL)
    assert found.layers[0].with_weight is None
    assert "removed weights are already zero" in texts(found, "note")


def test_scale_and_relus_by_hand() -> None:
    net = nn.Sequential(nn.Linear(1, 4), nn.ReLU(), nn.Linear(4, 1))
    with torch.no_grad():
        net.get_parameter("0.weight").copy_(torch.tensor([[1.0], [1.0], [0.0], [0.0]]))
        net.get_parameter("0.bias").copy_(
            torch.tensor([0.0, 9.0, 1.0, -1.0])
        )  # cuts half, never, never, always
    x = torch.tensor([[-1.0], [1.0]])
    mask = Mask({"0.weight": torch.tensor([[True], [False], [True], [True]])})
    found = diagnose(net, mask, x)
    assert "ReLUs" not in str(found)  # one of four and one of three off: nobody died
    hidden = found.layers[0]
    assert known(hidden.scale).dense == pytest.approx((2 / 4) ** 0.5)  # variances 1, 1, 0, 0
    assert known(hidden.scale).pruned == pytest.approx(
        (1 / 3) ** 0.5
    )  # of the three units that keep a weight
    assert hidden.always_on == (0.5, 1 / 3)
    assert hidden.always_off == (0.25, 1 / 3)


@pytest.mark.parametrize(
    "relu", [nn.ReLU(), nn.ReLU(inplace=True), F.relu, torch.relu, Tensor.relu, Tensor.relu_]
)
def test_every_way_to_ask_for_a_relu_is_seen(relu: Callable[[Tensor], Tensor]) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.head = nn.Conv2d(1, 2, 1), nn.Linear(8, 1)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.head(relu(self.conv(x)).flatten(1))
            return out

    net = Net()
    with torch.no_grad():
        net.conv.weight.zero_()
        net.get_parameter("conv.bias").copy_(torch.tensor([1.0, -1.0]))
    found = diagnose(net, dense(prunable(net)), torch.ones(2, 1, 2, 2)).layers[0]
    assert (found.always_on, found.always_off) == ((0.5, 0.5), (0.5, 0.5))


def test_a_fading_signal_and_dead_relus_are_warned_about() -> None:
    net = mlp(20, 40, 5, seed=0)
    with torch.no_grad():
        net.get_parameter("hidden.bias").fill_(-0.2)
    mask = dense(prunable(net))
    mask.weights["hidden.weight"][:, 1:] = False
    mask.weights["output.weight"][:, 1:] = False
    found = diagnose(net, mask, torch.randn(50, 20).clamp(-0.5, 0.5))
    assert "the signal fades at output.weight" in texts(found, "warning")
    assert "of the ReLUs after hidden.weight are off for the whole batch" in texts(found, "warning")


def test_nothing_is_changed() -> None:
    net = Shortcut().train()
    net(torch.randn(3, 2, 5, 5)).sum().backward()
    mask = Mask(select({n: w.abs() for n, w in prunable(net).items()}, 0.7))
    before, grads = copy.deepcopy(net.state_dict()), [known(p.grad).clone() for p in net.parameters()]
    masks = copy.deepcopy(mask)
    random_state = torch.get_rng_state()
    diagnose(net, mask, (torch.ones(4, 2, 5, 5), torch.zeros(4)))
    assert net.training
    assert net.norm.training
    assert torch.equal(torch.get_rng_state(), random_state)
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert all(torch.equal(known(p.grad), g) for p, g in zip(net.parameters(), grads, strict=True))
    assert all(torch.equal(m, masks.items()[k]) for k, m in mask.items().items())
    assert not any(m._forward_hooks for m in net.modules())


def test_networks_are_run_in_evaluation_mode() -> None:
    net = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.9), nn.ReLU(), nn.Linear(8, 3))
    x, mask = torch.randn(20, 4), dense(prunable(net))
    training, evaluation = (diagnose(net.train(mode), mask, x) for mode in (True, False))
    assert [layer.scale for layer in training.layers] == [layer.scale for layer in evaluation.layers]


def test_the_printed_table_is_aligned() -> None:
    lines = str(diagnose(small_net(), SMALL, torch.randn(9, 3), requested=0.6)).splitlines()
    assert lines[0] == "sparsity: requested 0.6000, realised 0.6000, effective 0.8000"
    table = lines[lines.index("") + 1 :]
    structure, behaviour = table[:3], table[4:]
    assert (
        structure[0]
        == "layer          weights  kept  density  on a path  units  removed  no input  no output"
    )
    assert (
        structure[1]
        == "hidden.weight        9     3   0.3333          2      3        0         1          1"
    )
    # too few weights for r(w): a column nothing is known of is left out
    assert behaviour[0] == "layer          scale dense -> pruned  always on  always off"
    assert len({len(line) for line in structure}) == len({len(line) for line in behaviour}) == 1


def test_it_fits_a_terminal_of_100_columns() -> None:
    net = nn.Sequential(
        nn.Linear(1000, 2000), nn.ReLU(), nn.Linear(2000, 1000), nn.ReLU(), nn.Linear(1000, 20)
    )
    stages = nn.Sequential()
    for number in range(6):  # six blocks of it, so that the list of correlations is long
        stages.add_module(f"a_rather_long_stage_{number}", nn.Sequential(nn.Linear(20, 20), nn.ReLU()))
    net = nn.Sequential(net, stages)
    mask = Mask(select({n: w.abs() for n, w in prunable(net).items()}, 0.8, "layerwise"))
    text = str(diagnose(net, mask, torch.randn(8, 1000), requested=0.8))
    assert max(map(len, text.splitlines())) <= 100
    assert "and 6 more" in text  # nine layers correlate, the strongest three are named


class Branching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.a(x) if x.sum() > 0 else x


def test_an_untraceable_model_is_still_examined() -> None:
    net = Branching()
    mask = Mask({"a.weight": torch.eye(4, dtype=torch.bool)})
    found = diagnose(net, mask, torch.ones(3, 4))
    assert found.effective_sparsity is None
    assert found.layers[0].kept == 4
    assert "effective sparsity are unknown" in texts(found, "note")
    with pytest.raises(NatalError, match="forward pass of Branching"):
        effective(mask, net)


class Encoder(nn.Module):
    """A module torch.fx does not look into, with shortcuts inside."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Linear(5, 8), nn.Linear(8, 3)
        self.encoder = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.encoder(self.embed(x)).mean(1))
        return out


def test_a_shortcut_around_attention_keeps_a_network_alive() -> None:
    net, x = Encoder(), torch.randn(6, 4, 5)
    mask = dense(prunable(net))
    mask.weights["encoder.linear2.weight"].fill_(False)  # a shortcut leads around it
    found = diagnose(net, mask, x)
    # without linear2 (128 weights) the 128 of linear1 lie on no path either
    assert found.effective_sparsity == 256 / mask.total
    assert not found.fatal
    assert "encoder.linear2.weight has collapsed" in texts(found, "warning")
    mask.weights["head.weight"].fill_(False)
    found = diagnose(net, mask, x)
    assert found.effective_sparsity == 1
    assert "no path of kept weights" in texts(found, "fatal")


def test_outputs_that_are_sequences_are_outputs() -> None:
    net = nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 3))
    mask = Mask({"1.weight": bools("1111", "0000", "1111")})
    found = diagnose(net, mask, torch.randn(5, 6, 4))
    assert "1 of 3 outputs of 1.weight, the last layer, are constant" in texts(found, "warning")


def test_a_mask_that_no_path_condemns_but_that_silences_the_network_is_fatal() -> None:
    net = mlp(4, 6, 2, seed=0)
    with torch.no_grad():
        net.get_parameter("hidden.weight").abs_()
        net.get_parameter("hidden.bias").fill_(-0.1)
    kept = Mask({"hidden.weight": torch.zeros(6, 4, dtype=torch.bool)})
    kept.weights["hidden.weight"][:, 0] = True
    x = torch.rand(8, 4)
    x[:, 0] = 0  # what is left of the input never varies
    found = diagnose(net, kept, x)
    assert known(found.effective_sparsity) < 1
    assert "the same output" in texts(found, "fatal")


def test_grouped_convolutions_lie_on_paths_group_by_group() -> None:
    net = nn.Sequential(nn.Conv2d(2, 4, 1, groups=2), nn.Flatten(), nn.Linear(16, 2))
    mask = dense(prunable(net))
    mask.weights["2.weight"].view(2, 4, 4)[:, 2:] = False  # nothing reads the second group
    found = diagnose(net, mask, torch.randn(3, 2, 2, 2))
    assert found.layers[0].effective == 2
    assert found.layers[0].no_output == 2


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: effective(Mask({"a": bools("11"), "b": bools("111")})), "not a chain of linear layers"),
        (lambda: effective(Mask({"a": torch.ones(2, 2, 1, 1, dtype=torch.bool)})), "pass the model as well"),
        (lambda: diagnose(small_net(), Mask({"hiden.weight": bools("1")})), "did you mean 'hidden.weight'"),
        (lambda: diagnose(small_net(), SMALL, torch.ones(1, 3)), "at least two rows"),
        (lambda: diagnose(small_net(), Mask({})), "names no weight"),
        (
            lambda: diagnose(small_net(), dict(SMALL.weights)),  # type: ignore[arg-type]
            "must be a natal.Mask, got dict",
        ),
        (lambda: diagnose(small_net(), SMALL, requested=1.0), "must lie in [0, 1), got 1.0"),
        (lambda: diagnose(small_net(), SMALL, scores={"a": torch.ones(2)}), "got ['a']"),
        (lambda: diagnose(small_net(), SMALL, torch.ones(2, 4)), "cannot be run on the"),
        (lambda: emptied_at({}), "at least one number"),
        (lambda: emptied_at({"a": torch.tensor([1.0, torch.nan])}), "'a' hold NaN"),
    ],
)
def test_bad_input_is_one_sentence(call: Callable[[], object], message: str) -> None:
    with pytest.raises(NatalError) as error:
        call()
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@settings(max_examples=60)
@given(
    sizes=st.lists(st.integers(1, 40), min_size=1, max_size=4),
    levels=st.integers(1, 5),
    seed=st.integers(0, 99),
)
def test_collapse_is_where_selection_first_empties_a_layer(sizes: list[int], levels: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    scores = {f"{i}": torch.randint(levels, (n,), generator=generator).float() for i, n in enumerate(sizes)}
    total = sum(sizes)
    first = collapse_sparsity(scores)
    removed = int(first * total)
    emptied = [
        k for k in range(total) if not all(m.any() for m in select(scores, (k + 0.5) / total).values())
    ]
    assert removed == (emptied[0] if emptied else total)
    if first < 1:
        assert not all(m.any() for m in select(scores, first).values())
        assert all(m.any() for m in select(scores, (removed - 0.5) / total).values())
    assert first == min(emptied_at(scores).values())


def test_magnitude_collapses_the_studys_hidden_layer() -> None:
    """No hidden weight exceeds 1/sqrt(194): the last one goes when only larger output weights are left."""
    weights = prunable(mlp(194, 128, 97, seed=0))
    at = emptied_at({n: w.abs() for n, w in weights.items()})
    # output weights above 1/sqrt(194), of U(-1/sqrt(128), 1/sqrt(128)): a share 1 - sqrt(128/194) of a third
    assert at["hidden.weight"] == pytest.approx(1 - (1 - (128 / 194) ** 0.5) / 3, abs=0.002)
    assert at["output.weight"] == 1.0
