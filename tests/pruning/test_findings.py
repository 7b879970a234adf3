"""The findings of the second round, list L, one by one: the example that was found, and siblings of its kind.

What other files hold in full is named there and only touched here: masked copies (L4) in test_masked.py; groups and
targets (L18, L19) in test_graph.py and benchmarks/zoo.py; speed (L20) in benchmarks/scoring.py; how stable masks are
(L21) in docs/criteria.md and benchmarks/stability.py.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import prune
from torch.utils.checkpoint import checkpoint

import natal
from natal import Mask, NatalError
from natal.pruning.choose import problem_of, score
from networks import network

torch.set_num_threads(1)


class Of(nn.Module):
    """A network whose forward pass is a function of its layers and its input."""

    def __init__(self, way: Callable[..., Any], **layers: nn.Module) -> None:
        super().__init__()
        self.way = way
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, x: Any) -> Any:
        return self.way(self, x)


def halved(net: nn.Module, x: Any, **how: Any) -> tuple[nn.Module, nn.Module, Mask]:
    """Return the masked network, the compacted one and the mask, with half of the units gone."""
    mask = natal.prune(net, 0.5, "magnitude", "layerwise", "neuron", batch=(x, None), **how)
    ticket = natal.apply(net, mask)
    return ticket, natal.compact(ticket, mask), mask


# --- silently another result ------------------------------------------------------------------------------------

L1: dict[str, Callable[[Tensor], Tensor]] = {
    "h + 1": lambda h: h + 1,
    "h - 1.0": lambda h: h - 1.0,
    "clamp(h, 0, 1)": lambda h: torch.clamp(h, 0, 1),
    "cat([h, h], 1)": lambda h: torch.cat([h, h], 1)[:, :8],
    "add(h, 1, alpha=1)": lambda h: torch.add(h, 1, alpha=1),
    "hardtanh(h, 0, 1)": lambda h: F.hardtanh(h, 0, 1),
    "threshold(h, 1, 1)": lambda h: F.threshold(h, 1, 1),
    "softmax(h, 1)": lambda h: h.relu() * h.mean(1, True),
    "h.relu_()": lambda h: h.clone().relu_(),
    "roll(h, 1, 0)": lambda h: torch.roll(h, 1, 0),
}


@pytest.mark.parametrize("kind", L1)
@pytest.mark.filterwarnings("ignore:constant units")
def test_l1_a_positional_one_is_no_inplace(kind: str) -> None:
    net = (
        Of(lambda m, x: m.c(L1[kind](h := m.a(x)).relu() + h), a=nn.Linear(3, 8), c=nn.Linear(8, 2))
        .double()
        .eval()
    )
    kept = torch.ones(8, 3, dtype=torch.bool)
    kept[::2] = False  # four units are constant, and not zero
    mask = Mask({"a.weight": kept, "c.weight": torch.ones(2, 8, dtype=torch.bool)})
    x = torch.randn(5, 3, dtype=torch.float64)
    torch.testing.assert_close(natal.compact(net, mask, x)(x), natal.apply(net, mask)(x))


L2: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "Flatten(2)": lambda m, x: m.over(nn.Flatten(2)(m.a(x))).flatten(1),
    "view(b, c, -1)": lambda m, x: m.over((h := m.a(x)).view(h.shape[0], h.shape[1], -1)).flatten(1),
    "over an image's width": lambda m, x: m.wide(m.a(x)).flatten(1),
    "reshape by keyword": lambda m, x: m.over(m.a(x).reshape(shape=(x.shape[0], -1, 16))).flatten(1),
    "unflatten": lambda m, x: m.over(m.a(x).flatten(1).unflatten(1, (-1, 16))).flatten(1),
}


@pytest.mark.parametrize("kind", L2)
@pytest.mark.filterwarnings("ignore:units of these layers are kept whole", "ignore:constant units")
def test_l2_channels_go_not_positions(kind: str) -> None:
    net = Of(
        lambda m, x: m.c(L2[kind](m, x).reshape(len(x), 8, -1).sum(2)),
        a=nn.Conv2d(1, 8, 1), over=nn.Linear(16, 3), wide=nn.Linear(4, 3), c=nn.Linear(8, 2),
    ).double().eval()  # fmt: skip
    x = torch.randn(2, 1, 4, 4, dtype=torch.float64)
    ticket, small, mask = halved(net, x)
    assert [len(mask.units["a.weight"]), int(mask.units["a.weight"].sum())] == [8, 4]
    for over in ("over.weight", "wide.weight"):  # they read positions, all of which stay
        assert mask.weights[over].any(0).all()
    torch.testing.assert_close(small(x), ticket(x))


@pytest.mark.parametrize("first", ["embed", "head"])
def test_l3_a_shared_weight_is_masked_by_all_its_names(first: str) -> None:
    layers = {"embed": nn.Embedding(6, 4), "head": nn.Linear(4, 6, bias=False)}
    order = [first, *(name for name in layers if name != first)]
    net = Of(lambda m, x: m.head(m.embed(x)), **{name: layers[name] for name in order}).eval()
    net.get_submodule("head").weight = net.get_submodule("embed").weight
    mask = natal.prune(net, 0.5, "magnitude")
    x = torch.arange(6)[None]
    (kept,) = mask.weights.values()
    assert not natal.apply(net, mask).get_submodule("embed")(x)[0][~kept].any()
    torch.testing.assert_close(natal.compact(net, mask, x)(x), natal.apply(net, mask)(x))
    by_torch = natal.to_torch_prune(net, mask)
    torch.testing.assert_close(by_torch(x), natal.apply(net, mask)(x))


def test_l4_a_masked_layer_takes_writes_and_has_the_keys_of_the_plain_one() -> None:
    net = nn.Linear(6, 5)
    ticket = natal.apply(net, natal.prune(net, 0.5, "magnitude"))
    assert list(ticket.state_dict()) == list(net.state_dict())
    before = ticket.state_dict()["weight"].clone()
    nn.init.constant_(ticket.get_parameter("weight"), 2.0)
    assert ticket.state_dict()["weight"].unique().tolist() == [0.0, 2.0]
    ticket.load_state_dict(net.state_dict())
    assert torch.equal(ticket.state_dict()["weight"], before)


@pytest.mark.parametrize("kind", ["SGD", "AdamW", "RMSprop", "NAdam"])
def test_l5_what_is_removed_stays_removed_and_the_scheduler_goes_on(kind: str) -> None:
    model, (x, y) = network("deep")
    mask = natal.prune(model, 0.6, "random", seed=1)
    ticket = natal.apply(model.double(), mask)
    x = x.double()

    def step(net: nn.Module, optimizer: Any, scheduler: Any) -> float:
        optimizer.zero_grad()
        loss = F.cross_entropy(net(x), y)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        scheduler.step()
        return loss.item()

    optimizer = getattr(torch.optim, kind)(ticket.parameters(), lr=0.01, weight_decay=0.1)
    schedulers = torch.optim.lr_scheduler
    scheduler = schedulers.SequentialLR(
        optimizer, [schedulers.ConstantLR(optimizer, 0.5, 2), schedulers.CosineAnnealingLR(optimizer, 5)], [2]
    )
    step(ticket, optimizer, scheduler)
    small = natal.compact_training(ticket, mask, optimizer, x, scheduler=scheduler)
    assert small.optimizer is not None
    for _ in range(3):
        losses = step(ticket, optimizer, scheduler), step(small.model, small.optimizer, small.scheduler)
        assert losses[0] == pytest.approx(losses[1], rel=1e-9)
        assert scheduler.get_last_lr() == small.scheduler.get_last_lr()
        assert small.optimizer.param_groups[0]["lr"] == scheduler.get_last_lr()[0]
    for name, kept in small.mask.weights.items():
        assert not small.model.get_parameter(name)[~kept].any()


class Wrapper(torch.optim.Optimizer):
    """An optimiser around another one, as Lookahead and SAM are."""

    def __init__(self, base: torch.optim.Optimizer) -> None:
        self.base = base
        super().__init__([p for group in base.param_groups for p in group["params"]], {})


class Lookahead(Wrapper):
    pass


class SAM(Wrapper):
    pass


@pytest.mark.parametrize("kind", ["Adafactor", "LBFGS", "Muon", "Lookahead", "SAM"])
def test_l5_an_optimiser_that_cannot_be_carried_is_refused_by_name(kind: str) -> None:
    net = nn.Sequential(nn.Linear(4, 6, bias=False), nn.ReLU(), nn.Linear(6, 2, bias=False))
    if kind in ("Lookahead", "SAM"):
        optimizer = {"Lookahead": Lookahead, "SAM": SAM}[kind](torch.optim.SGD(net.parameters(), 0.1))
    elif hasattr(torch.optim, kind):
        optimizer = getattr(torch.optim, kind)(net.parameters())
    else:  # older than this optimiser
        return
    mask = natal.prune(net, 0.5, "magnitude")
    with pytest.raises(NatalError, match=f"^{kind} ") as error:
        natal.compact_training(net, mask, optimizer, torch.ones(2, 4))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("criterion", ["random", "magnitude"])
@pytest.mark.parametrize("control", [None, "shuffle", "reinit"])
def test_l6_a_mask_does_not_depend_on_the_callers_defaults(criterion: str, control: str | None) -> None:
    model, batch = network("mlp")
    how: dict[str, Any] = {"control": control, "batch": batch, "seed": 3}
    expected = natal.prune(model, 0.5, criterion, **how)
    before = torch.get_default_dtype()
    try:
        torch.set_default_dtype(torch.float64)
        wide = natal.prune(model, 0.5, criterion, **how)
        with torch.device("meta"):
            elsewhere = natal.prune(model, 0.5, criterion, **how)
    finally:
        torch.set_default_dtype(before)
    for found in (wide, elsewhere):
        assert all(torch.equal(found.weights[n], kept) for n, kept in expected.weights.items())
        assert all(torch.equal(found.redrawn[n], drawn) for n, drawn in expected.redrawn.items())


def test_l7_a_buffer_called_mask_is_no_mask() -> None:
    net = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))
    net[0].register_buffer("causal_mask", torch.ones(3, 3))
    net[0].register_buffer("weight_mask_of_old", torch.ones(3, 4))
    prune.l1_unstructured(net[1], "weight", 0.5)  # type: ignore[no-untyped-call]
    mask = natal.from_torch_prune(net)
    assert set(mask.items()) == {"1.weight"}


@pytest.mark.parametrize("kind", ["linear", "convolution", "granularity neuron"])
def test_l8_complex_networks_keep_their_imaginary_part(kind: str) -> None:
    made: dict[str, Any] = {"dtype": torch.complex128}
    if kind == "convolution":
        net = nn.Sequential(nn.Conv1d(1, 6, 1, **made), nn.Tanh(), nn.Conv1d(6, 2, 1, **made))
        x = torch.randn(3, 1, 4, dtype=torch.complex128)
    else:
        net = nn.Sequential(nn.Linear(4, 6, **made), nn.Tanh(), nn.Linear(6, 2, **made))
        x = torch.randn(3, 4, dtype=torch.complex128)
    how: Any = {"granularity": "neuron"} if "neuron" in kind else {}
    mask = natal.prune(net, 0.5, "magnitude", batch=(x, None), **how)
    small = natal.compact(net.eval(), mask, x)
    torch.testing.assert_close(small(x), natal.apply(net, mask)(x))
    assert small(x).imag.abs().max() > 0


def test_l10_a_norm_over_tokens_is_not_the_units_norm() -> None:
    net = Of(lambda m, x: m.c(m.n(m.a(x))), a=nn.Linear(3, 8), n=nn.BatchNorm1d(8), c=nn.Linear(8, 2)).eval()
    mask = natal.prune(
        net, 0.5, "magnitude", "layerwise", "neuron", batch=(torch.randn(2, 8, 3), None)
    )  # eight tokens of eight units
    assert set(mask.units) == {"a.weight"}
    assert "n.weight" not in mask.biases


# --- crashes and refusals ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("inputs", "outputs", "groups"), [(8, 12, 2), (6, 12, 6), (6, 6, 6), (8, 8, 4)])
def test_l11_a_grouped_convolution_before_batch_norm(inputs: int, outputs: int, groups: int) -> None:
    net = nn.Sequential(
        nn.Conv2d(3, inputs, 1), nn.Conv2d(inputs, outputs, 3, padding=1, groups=groups), nn.BatchNorm2d(outputs),
        nn.ReLU(), nn.Conv2d(outputs, 2, 1),
    ).eval()  # fmt: skip
    x = torch.randn(3, 3, 5, 5)
    ticket, small, mask = halved(net, x)
    torch.testing.assert_close(small(x), ticket(x), rtol=1e-4, atol=1e-5)
    assert natal.diagnose(net, mask, x).effective_sparsity is not None


@pytest.mark.parametrize("reentrant", [False, True])
def test_l12_checkpointed_layers_are_scored_or_named(reentrant: bool) -> None:
    net = Of(
        lambda m, x: m.c(checkpoint(m.b, F.relu(m.a(x)), use_reentrant=reentrant)),
        a=nn.Linear(3, 8), b=nn.Linear(8, 8), c=nn.Linear(8, 2),
    )  # fmt: skip
    batch = torch.randn(6, 3), torch.arange(6) % 2
    for criterion in ("snip", "grasp"):
        if not reentrant:
            plain = copy.deepcopy(net)
            plain.way = lambda m, x: m.c(m.b(F.relu(m.a(x))))
            a, b = (natal.prune(model, 0.5, criterion, batch=batch) for model in (net, plain))
            assert all(torch.equal(a.weights[n], kept) for n, kept in b.weights.items())
        else:
            with pytest.raises(NatalError, match="use_reentrant=False") as error:
                natal.prune(net, 0.5, criterion, batch=batch)
            assert "\n" not in str(error.value)


def test_l13_models_without_numbers_and_losses_without_derivatives() -> None:
    with pytest.raises(NatalError, match="'weight' is on the meta device"):
        natal.prune(nn.Linear(3, 4, device="meta"), 0.5, "magnitude")
    net = nn.Linear(3, 4)
    lengths = torch.full((2,), 5), torch.full((2,), 2)

    def ctc(outputs: Tensor, targets: Tensor) -> Tensor:
        return F.ctc_loss(outputs.log_softmax(-1), targets, *lengths)

    batch = torch.randn(5, 2, 3), torch.ones(2, 2, dtype=torch.long)
    assert natal.prune(net, 0.5, "snip", batch=batch, loss=ctc).kept == 6
    for criterion in ("grasp", "prospr-published"):
        with pytest.raises(NatalError, match="the loss has no derivative that the criterion needs") as error:
            natal.prune(net, 0.5, criterion, batch=batch, loss=ctc)
        assert "\n" not in str(error.value)


def test_l14_attention_that_torch_prunes_trains_on() -> None:
    attention = nn.MultiheadAttention(8, 2, batch_first=True)
    net = Of(lambda m, x: m.c(m.att(x, x, x)[0].mean(1)), att=attention, c=nn.Linear(8, 2))
    by_torch = natal.to_torch_prune(net, natal.prune(net, 0.5, "magnitude"))
    optimizer = torch.optim.SGD(by_torch.parameters(), 0.1, momentum=0.9)
    losses = []
    for _ in range(4):
        optimizer.zero_grad()
        loss = F.cross_entropy(by_torch(torch.ones(3, 4, 8)), torch.tensor([0, 0, 0]))
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        losses.append(loss.item())
    assert losses == sorted(losses, reverse=True)


@pytest.mark.parametrize(
    "norm",
    [nn.utils.parametrizations.spectral_norm, nn.utils.parametrizations.weight_norm, nn.utils.spectral_norm],
)
def test_l15_an_excluded_layer_may_be_computed(norm: Any) -> None:
    net = nn.Sequential(norm(nn.Linear(4, 6)), nn.ReLU(), nn.Linear(6, 2))
    assert set(natal.prune(net, 0.5, "magnitude", exclude=("0",)).weights) == {"2.weight"}
    with pytest.raises(NatalError, match=r"'0.weight' is computed, not a parameter"):
        natal.prune(net, 0.5, "magnitude")


@pytest.mark.parametrize("layer", [nn.Linear(4, 2), nn.Conv2d(4, 2, 1)])
@pytest.mark.filterwarnings("ignore:.*torch.jit.script.* is deprecated", "ignore:.*jit.*:DeprecationWarning")
def test_l16_a_script_of_a_masked_network_is_refused_by_name(layer: nn.Module) -> None:
    net = nn.Sequential(layer, nn.ReLU())
    with pytest.raises(NatalError, match=r"torch.jit.script cannot compile the masked"):
        torch.jit.script(natal.apply(net, natal.prune(net, 0.5, "magnitude")))


NET = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
X, Y = torch.ones(5, 3), torch.zeros(5, dtype=torch.long)
MASK = natal.prune(NET, 0.5, "magnitude", granularity="neuron")
L17: dict[str, tuple[Callable[[], Any], str]] = {
    "diagnose, batch=3": (lambda: natal.diagnose(NET, MASK, batch=3), "batch must be a tensor of inputs"),  # type: ignore[arg-type]
    "diagnose, a pair of numbers": (
        lambda: natal.diagnose(NET, MASK, batch=(3, 4)),
        "batch must be a tensor",
    ),
    "diagnose, no parts": (lambda: natal.diagnose(NET, MASK, batch=()), "batch must be inputs or a pair"),  # type: ignore[arg-type]
    "diagnose, a word": (lambda: natal.diagnose(NET, MASK, batch="x"), "batch must be a tensor"),  # type: ignore[arg-type]
    "diagnose, one row": (lambda: natal.diagnose(NET, MASK, batch=X[:1]), "at least two rows"),
    "diagnose, no model": (lambda: natal.diagnose(3, MASK), "model must be a torch.nn.Module, got 3"),  # type: ignore[arg-type]
    "prune, batch=3": (lambda: natal.prune(NET, 0.5, "snip", batch=3), "batch must be a pair"),  # type: ignore[arg-type]
    "prune, no inputs": (
        lambda: natal.prune(NET, 0.5, "snip", batch=(3, Y)),
        "a batch of type int does not fit",
    ),
    "prune, no targets": (lambda: natal.prune(NET, 0.5, "snip", batch=(X, 3)), "the loss does not fit"),
    "prune, neurons": (
        lambda: natal.prune(NET, 0.5, "magnitude", granularity="neuron", batch=(3, None)),
        "cannot be run on the example",
    ),
    "prune, a target": (
        lambda: natal.prune(NET, macs=0.5, criterion="magnitude", batch=("x", 0)),
        "cannot be run",
    ),
    "compact, example=3": (lambda: natal.compact(NET, MASK, 3), "cannot be run on the example"),  # type: ignore[arg-type]
    "compact, other columns": (
        lambda: natal.compact(NET, MASK, torch.ones(5, 7)),
        "cannot be run on the example",
    ),
    "compact, no mask": (lambda: natal.compact(NET, 3), "mask must be a natal.Mask, got int"),  # type: ignore[arg-type]
    "compact, no model": (lambda: natal.compact(3, MASK), "model must be a torch.nn.Module, got 3"),  # type: ignore[type-var]
    "compact_training": (
        lambda: natal.compact_training(NET, MASK, None, ("x",)),
        "cannot be run on the example",
    ),
    "savings, example=3": (lambda: natal.savings(NET, NET, 3), "cannot be run on the example"),  # type: ignore[arg-type]
    "savings, no model": (lambda: natal.savings(NET, 3, X), "model must be a torch.nn.Module, got 3"),  # type: ignore[arg-type]
    "savings, repeats": (lambda: natal.savings(NET, NET, X, repeats="a"), "repeats must be at least 1"),  # type: ignore[arg-type]
    "score": (lambda: score("synflow", problem_of(NET, 0, inputs=3)), "inputs must be one tensor"),
    "select": (lambda: natal.select(3, 0.5), "scores must be tensors by name, got int"),  # type: ignore[arg-type]
    "collapse": (lambda: natal.collapse_sparsity(3), "scores must be tensors by name, got int"),  # type: ignore[arg-type]
}


@pytest.mark.parametrize("kind", L17)
def test_l17_what_is_no_batch_is_told_in_one_line(kind: str) -> None:
    call, message = L17[kind]
    with pytest.raises(NatalError) as error:
        call()
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_l17_named_inputs_are_a_batch() -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(3, 2)

        def forward(self, *, values: Tensor) -> dict[str, Tensor]:
            return {"logits": self.inner(values)}

    found = natal.diagnose(Named(), natal.prune(Named(), 0.5, "magnitude"), {"values": torch.randn(4, 3)})
    assert found.layers[0].scale is not None
