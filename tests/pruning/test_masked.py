"""A masked copy behaves as the module it copies: whoever reads, writes, trains, compiles or stores it."""

from __future__ import annotations

import copy
import threading
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, grad, stack_module_state, vmap
from torch.nn.utils import clip_grad_norm_, parametrizations, parametrize
from torch.nn.utils import prune as torch_prune
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.checkpoint import checkpoint

import natal
from natal import Mask, NatalError
from natal.pruning.masked import unmasked
from networks import NETWORKS, layer_of, network

torch.set_num_threads(1)


class Attends(nn.Module):
    """Attention, whose forward reads its output projection's weight; a head."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.attention(x, x, x, need_weights=False)[0].mean(1))
        return out


class Tied(nn.Module):
    """Two layers that share a weight."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 3)
        self.b.weight = self.a.weight

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.c(self.b(self.a(x).tanh()).tanh()).mean(1)
        return out


class Foreign(nn.Module):
    """Reads the weight of a layer that it never calls, as tied decoders do."""

    def __init__(self) -> None:
        super().__init__()
        self.encode, self.head = nn.Linear(8, 5), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.encode(x).tanh()
        out: Tensor = self.head(F.linear(h, self.encode.weight.T).tanh()).mean(1)
        return out


class Language(nn.Module):
    """An embedding tied to a head; either may be registered first."""

    def __init__(self, head_first: bool) -> None:
        super().__init__()
        if head_first:
            self.head = nn.Linear(6, 9, bias=False)
        self.embed, self.mix = nn.Embedding(9, 6), nn.Linear(6, 6)
        if not head_first:
            self.head = nn.Linear(6, 9, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens: Tensor) -> Tensor:
        out: Tensor = self.head(self.mix(self.embed(tokens)).tanh()).mean(1)
        return out


def plain() -> nn.Module:
    return nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Flatten(), nn.Linear(24, 3))


def encoder() -> nn.Module:
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
    return nn.Sequential(
        nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), nn.Flatten(), nn.Linear(24, 3)
    )


SHARED = {
    "plain": (plain, torch.randn),
    "attention": (Attends, torch.randn),
    "tied": (Tied, torch.randn),
    "foreign": (Foreign, torch.randn),
    "encoder": (encoder, torch.randn),
    "embedding first": (lambda: Language(False), None),
    "head first": (lambda: Language(True), None),
}
"""Networks whose weights are read in every way there is, each with what draws its inputs; None draws tokens."""


def build(kind: str) -> tuple[nn.Module, Tensor, Mask]:
    """Return a network in float64, inputs for it, and a mask of half of its weights."""
    make, draw = SHARED[kind]
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = make().double()
        x = torch.randint(9, (6, 3)) if draw is None else draw(6, 3, 8, dtype=torch.float64)
    return model, x, natal.prune(model, 0.5, "random", seed=3)


def reference(model: nn.Module, mask: Mask) -> nn.Module:
    """Return a plain copy of the model whose removed weights are zero."""
    copied = copy.deepcopy(model)
    mask.apply_(dict(copied.named_parameters(remove_duplicate=False)))
    return copied


def removed(net: nn.Module, mask: Mask) -> Tensor:
    """Return everything stored under the mask's removed entries."""
    parameters = dict(net.named_parameters(remove_duplicate=False))
    return torch.cat([parameters[name].detach()[~kept] for name, kept in mask.items().items()])


def loss_of(net: nn.Module, x: Tensor) -> Tensor:
    out: Tensor = net(x).square().mean()
    return out


@torch.no_grad()
def scribble(net: nn.Module, value: float = 7.0) -> None:
    """Write a number over every parameter."""
    for parameter in net.parameters():
        parameter.fill_(value)


# -- reading ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", SHARED)
def test_every_reader_sees_the_mask(kind: str) -> None:
    model, x, mask = build(kind)
    net = natal.apply(model, mask)
    assert torch.equal(net(x), reference(model, mask)(x))
    scribble(net)
    scribble(model)
    expected = reference(model, mask)
    assert torch.equal(net(x), expected(x))
    loss_of(net, x).backward()  # type: ignore[no-untyped-call]
    loss_of(expected, x).backward()  # type: ignore[no-untyped-call]
    for (name, p), q in zip(net.named_parameters(), expected.parameters(), strict=True):
        assert p.grad is not None
        assert q.grad is not None
        kept = mask.items().get(name, torch.ones_like(p, dtype=torch.bool))
        if kind in ("embedding first", "head first") and name in ("head.weight", "embed.weight"):
            kept = next(kept for n, kept in mask.items().items() if n in ("head.weight", "embed.weight"))
        assert torch.equal(p.grad, q.grad * kept), name


@pytest.mark.parametrize("kind", SHARED)
def test_torch_prune_masks_every_reader_too_and_trains_on(kind: str) -> None:
    model, x, mask = build(kind)
    ours, theirs = natal.apply(model, mask), natal.to_torch_prune(model, mask)
    assert torch.equal(theirs(x), ours(x))
    optimisers = [torch.optim.SGD(net.parameters(), 0.1, momentum=0.9) for net in (ours, theirs)]
    for _ in range(3):
        for net, optimiser in zip((ours, theirs), optimisers, strict=True):
            optimiser.zero_grad()
            loss_of(net, x).backward()  # type: ignore[no-untyped-call]
            optimiser.step()
        assert torch.allclose(theirs(x), ours(x), rtol=1e-12, atol=1e-12)
    back = natal.from_torch_prune(theirs)
    assert {n: k.tolist() for n, k in back.weights.items()} == {
        names(model)[n]: k.tolist() for n, k in mask.weights.items()
    }


def names(model: nn.Module) -> dict[str, str]:
    """Return every parameter's first name by each of its names."""
    first = {id(p): name for name, p in model.named_parameters()}
    return {name: first[id(p)] for name, p in model.named_parameters(remove_duplicate=False)}


@pytest.mark.parametrize("cell", [nn.LSTM, nn.GRU, nn.RNN])
def test_recurrent_layers_read_a_mask_made_by_hand(cell: type[nn.LSTM | nn.GRU | nn.RNN]) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model, x = cell(4, 5, batch_first=True).double(), torch.randn(2, 3, 4, dtype=torch.float64)
        mask = Mask({n: torch.rand_like(p) > 0.5 for n, p in model.named_parameters() if p.ndim == 2})
    net = natal.apply(model, mask)
    scribble(net, 0.3)
    scribble(model, 0.3)
    assert torch.equal(net(x)[0], reference(model, mask)(x)[0])
    net(x)[0].sum().backward()
    for name, kept in mask.weights.items():
        gradient = net.get_parameter(name).grad
        assert gradient is not None
        assert not gradient[~kept].any()
        assert gradient[kept].any()


def test_nothing_removed_is_seen_even_if_it_is_nan() -> None:
    model, x, mask = build("plain")
    net = natal.apply(model, mask)
    with torch.no_grad():
        layer_of(net, "0", nn.Linear).weight[~mask.weights["0.weight"]] = torch.nan
    assert net(x).isfinite().all()
    loss_of(net, x).backward()  # type: ignore[no-untyped-call]
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())


def test_checkpointed_layers_train_under_their_mask() -> None:
    class Checkpointed(nn.Module):
        def __init__(self, reentrant: bool) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 3)
            self.reentrant = reentrant

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.b(checkpoint(self.a, x, use_reentrant=self.reentrant).tanh())
            return out

    x = torch.ones(4, 8).requires_grad_()
    for reentrant in (False, True):
        model = Checkpointed(reentrant)
        mask = natal.prune(model, 0.5, "random", exclude=("b",))
        net = natal.apply(model, mask)
        scribble(net, 0.1)
        loss_of(net, x).backward()  # type: ignore[no-untyped-call]
        gradient = net.get_parameter("a.weight").grad
        assert gradient is not None
        assert torch.equal(gradient != 0, mask.weights["a.weight"])


def test_other_threads_neither_see_nor_disturb_a_pass() -> None:
    model, x, mask = build("foreign")
    net = natal.apply(model, mask)
    expected = reference(model, mask)(x)
    inside, leave = threading.Event(), threading.Event()

    class Waits(nn.Module):
        def forward(self, h: Tensor) -> Tensor:
            inside.set()
            leave.wait(30)
            return h

    waiting = natal.apply(nn.Sequential(model, Waits()), Mask({f"0.{n}": k for n, k in mask.weights.items()}))
    found: list[Tensor] = []
    thread = threading.Thread(target=lambda: found.append(waiting(x)))
    thread.start()
    assert inside.wait(30)
    assert isinstance(
        layer_of(waiting, "0.encode", nn.Linear).weight, nn.Parameter
    )  # this thread runs no forward pass
    assert torch.equal(net(x), expected)
    leave.set()
    thread.join()
    assert torch.equal(found[0], expected)


# -- writing ---------------------------------------------------------------------------------------------

WRITES: dict[str, Callable[[nn.Linear], object]] = {
    "reset_parameters": lambda layer: layer.reset_parameters(),
    "init": lambda layer: nn.init.xavier_uniform_(layer.weight),
    "data.copy_": lambda layer: layer.weight.data.copy_(torch.ones(8, 8)),
    "data": lambda layer: setattr(layer.weight, "data", torch.ones(8, 8, dtype=torch.float64)),
    "clamp_": lambda layer: layer.weight.data.clamp_(0.05, 0.1),
    "new parameter": lambda layer: setattr(
        layer, "weight", nn.Parameter(torch.ones(8, 8, dtype=torch.float64))
    ),
    "load_state_dict": lambda layer: layer.load_state_dict(nn.Linear(8, 8).double().state_dict()),
}


@pytest.mark.parametrize("how", WRITES)
def test_a_write_takes_effect_on_what_is_kept(how: str) -> None:
    model, x, mask = build("plain")
    net = natal.apply(model, mask)
    for network_ in (net, model):
        with torch.random.fork_rng(), torch.no_grad():
            torch.manual_seed(5)
            WRITES[how](layer_of(network_, "0", nn.Linear))
    assert torch.equal(net(x), reference(model, mask)(x))
    assert torch.equal(
        layer_of(net, "0", nn.Linear).weight,
        layer_of(model, "0", nn.Linear).weight * mask.weights["0.weight"],
    )
    assert not removed(net, mask).any()


def test_parameters_are_the_modules_own() -> None:
    model, x, mask = build("plain")
    net = natal.apply(model, mask)
    first = layer_of(net, "0", nn.Linear)
    assert net.get_parameter("0.weight") is first.weight is dict(net.named_parameters())["0.weight"]
    assert isinstance(first.weight, nn.Parameter)
    loss_of(net, x).backward()  # type: ignore[no-untyped-call]
    gradient = first.weight.grad
    assert gradient is not None
    before = first.weight.detach().clone()
    torch.optim.SGD([first.weight], 0.1).step()
    assert torch.equal(first.weight, before - 0.1 * gradient)


def test_a_parameter_of_another_shape_is_refused_by_name() -> None:
    model, x, mask = build("plain")
    net = natal.apply(model, mask)
    layer_of(net, "0", nn.Linear).weight = nn.Parameter(torch.ones(8, 1, dtype=torch.float64))
    with pytest.raises(
        NatalError, match=r"'weight' of a Linear has shape \(8, 1\) now and its mask \(8, 8\)"
    ):
        net(x)


# -- state -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("assign", [False, True])
@pytest.mark.parametrize("kind", SHARED)
def test_state_dicts_load_strictly_both_ways(kind: str, assign: bool) -> None:
    model, x, mask = build(kind)
    net = natal.apply(model, mask)
    scribble(net)
    state = net.state_dict()
    assert list(state) == list(model.state_dict())
    assert not removed(net, mask).any()
    twin, other = copy.deepcopy(model), natal.apply(model, mask)
    twin.load_state_dict(state, strict=True, assign=assign)
    assert torch.equal(twin(x), net(x))
    dense = {name: t.clone() for name, t in model.state_dict().items()}
    other.load_state_dict(dense, strict=True, assign=assign)
    assert torch.equal(other(x), reference(model, mask)(x))
    assert all(torch.equal(t, dense[name]) for name, t in model.state_dict().items())
    assert not removed(other, mask).any()


def test_unmasked_is_the_plain_module_again() -> None:
    for kind in SHARED:
        model, x, mask = build(kind)
        net = natal.apply(model, mask)
        plain_again = unmasked(net, mask)
        assert [type(m) for m in plain_again.modules()] == [type(m) for m in model.modules()]
        assert [n for n, _ in plain_again.named_buffers()] == [n for n, _ in model.named_buffers()]
        assert torch.equal(plain_again(x), net(x))


# -- training --------------------------------------------------------------------------------------------

OPTIMISERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "SGD": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, weight_decay=0.1),
    "Nesterov": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, weight_decay=0.1, nesterov=True),
    "Adam": lambda p: torch.optim.Adam(p, 0.01, weight_decay=0.1, amsgrad=True),
    "AdamW": lambda p: torch.optim.AdamW(p, 0.01, weight_decay=0.1),
    "fused AdamW": lambda p: torch.optim.AdamW(p, 0.01, weight_decay=0.1, fused=True),
    "NAdam": lambda p: torch.optim.NAdam(p, 0.01, weight_decay=0.1),
    "RAdam": lambda p: torch.optim.RAdam(p, 0.01, weight_decay=0.1),
    "Adamax": lambda p: torch.optim.Adamax(p, 0.01, weight_decay=0.1),
    "Adagrad": lambda p: torch.optim.Adagrad(p, 0.01, weight_decay=0.1),
    "Adadelta": lambda p: torch.optim.Adadelta(p, 0.5, weight_decay=0.1),
    "RMSprop": lambda p: torch.optim.RMSprop(p, 0.01, momentum=0.5, weight_decay=0.1, centered=True),
    "Rprop": lambda p: torch.optim.Rprop(p, 0.01),
    "ASGD": lambda p: torch.optim.ASGD(p, 0.01, weight_decay=0.1),
}
"""Those that treat every number alone, so that masked training is dense training with zeroing, bit for bit."""
TOGETHER: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "Adafactor": lambda p: torch.optim.Adafactor(p, 0.01, weight_decay=0.1),
    "LBFGS": lambda p: torch.optim.LBFGS(p, 0.1),
}


def train(
    net: nn.Module, optimiser: torch.optim.Optimizer, x: Tensor, steps: int, mask: Mask | None = None
) -> None:
    def closure() -> float:
        optimiser.zero_grad()
        loss = loss_of(net, x)
        loss.backward()  # type: ignore[no-untyped-call]
        return loss.item()

    for _ in range(steps):
        optimiser.step(closure)
        if mask is not None:
            mask.apply_(dict(net.named_parameters(remove_duplicate=False)))


@pytest.mark.parametrize("name", [*OPTIMISERS, *TOGETHER])
def test_no_optimiser_brings_a_removed_weight_back(name: str) -> None:
    model, x, mask = build("tied")
    make = (OPTIMISERS | TOGETHER)[name]
    dense = copy.deepcopy(model)
    before = make(dense.parameters())
    train(dense, before, x, 3)
    net, zeroed = natal.apply(dense, mask), reference(dense, mask)
    optimiser, theirs = make(net.parameters()), make(zeroed.parameters())
    for one in (optimiser, theirs):
        one.load_state_dict(copy.deepcopy(before.state_dict()))  # momenta of a dense training
    train(net, optimiser, x, 4)
    assert not removed(net, mask).any()
    if name in OPTIMISERS:
        train(zeroed, theirs, x, 4, mask)
        assert all(torch.equal(p, q) for p, q in zip(net.parameters(), zeroed.parameters(), strict=True))


def test_clipping_sees_the_gradients_of_kept_weights_only() -> None:
    model, x, mask = build("plain")
    net, dense = natal.apply(model, mask), reference(model, mask)
    loss_of(net, x).backward()  # type: ignore[no-untyped-call]
    loss_of(dense, x).backward()  # type: ignore[no-untyped-call]
    mask.apply_({name: p.grad for name, p in dense.named_parameters() if p.grad is not None})
    norms = [clip_grad_norm_(one.parameters(), 1e-3) for one in (net, dense)]
    assert torch.equal(*norms)


@pytest.mark.parametrize(("buffers", "multi"), [(False, None), (True, get_ema_multi_avg_fn(0.9))])  # type: ignore[no-untyped-call]
def test_an_average_of_masked_copies_is_masked(buffers: bool, multi: Any) -> None:
    model, (x, _) = network("conv")
    mask = natal.prune(model, 0.5, "random")
    net = natal.apply(model, mask)
    average = AveragedModel(net, use_buffers=buffers, multi_avg_fn=multi)
    optimiser = OPTIMISERS["SGD"](net.parameters())
    for _ in range(3):
        train(net, optimiser, x, 1)
        average.update_parameters(net)
    assert not removed(average.module, mask).any()
    scribble(average)
    model.load_state_dict(average.module.state_dict())
    assert torch.equal(average.eval()(x), model.eval()(x))


def test_a_copy_of_the_copy_stays_masked_on_its_own() -> None:
    model, x, mask = build("attention")
    net = natal.apply(model, mask)
    again = copy.deepcopy(copy.deepcopy(net))
    del net
    train(again, OPTIMISERS["SGD"](again.parameters()), x, 3)
    assert not removed(again, mask).any()
    sequence = natal.apply(build("plain")[0], build("plain")[2])
    assert isinstance(sequence, nn.Sequential)
    part = copy.deepcopy(sequence[:2])  # a slice of a masked sequence
    assert isinstance(part, nn.Sequential)
    assert len(part) == 2


def test_distributed_training_of_one_process_is_training() -> None:
    model, x, mask = build("attention")
    net, alone = natal.apply(model, mask), natal.apply(model, mask)
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)  # type: ignore[attr-defined]
    try:
        parallel = nn.parallel.DistributedDataParallel(net)
        train(parallel, OPTIMISERS["SGD"](parallel.parameters()), x, 3)
    finally:
        dist.destroy_process_group()
    train(alone, OPTIMISERS["SGD"](alone.parameters()), x, 3)
    assert all(torch.equal(p, q) for p, q in zip(net.parameters(), alone.parameters(), strict=True))
    assert not removed(net, mask).any()


# -- on top ----------------------------------------------------------------------------------------------


class Symmetric(nn.Module):
    def forward(self, w: Tensor) -> Tensor:
        return w.triu() + w.triu(1).T


ON_TOP: dict[str, Callable[[nn.Module], object]] = {
    "weight norm": lambda layer: parametrizations.weight_norm(layer),
    "spectral norm": lambda layer: parametrizations.spectral_norm(layer),
    "orthogonal": lambda layer: parametrizations.orthogonal(layer),
    "symmetric": lambda layer: parametrize.register_parametrization(layer, "weight", Symmetric()),
    "old weight norm": lambda layer: nn.utils.weight_norm(layer),
    "torch prune": lambda layer: torch_prune.l1_unstructured(layer, "weight", 0.3),  # type: ignore[no-untyped-call]
}


@pytest.mark.filterwarnings("ignore:.*weight_norm.*deprecated")
@pytest.mark.parametrize("how", ON_TOP)
def test_what_is_put_on_a_masked_weight_goes_through_the_mask(how: str) -> None:
    model, x, mask = build("plain")
    kept = mask.weights["0.weight"]
    net = natal.apply(model, mask)
    ON_TOP[how](layer_of(net, "0", nn.Linear))
    # torch itself cannot copy a layer under the old kind of hook
    copied = net if how in ("old weight norm", "torch prune") else copy.deepcopy(net)
    read: list[Tensor] = []
    product = F.linear

    def spy(h: Tensor, w: Tensor, b: Tensor | None) -> Tensor:
        read.append(w)
        return product(h, w, b)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(F, "linear", spy)
        for one in (net, copied):
            one(x)
    assert all(not w[~kept].any() for w in (read[0], read[2]))
    assert read[0][kept].any()
    train(net, OPTIMISERS["SGD"](net.parameters()), x, 3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(F, "linear", spy)
        net(x)
    assert not read[4][~kept].any()


@pytest.mark.parametrize("how", ["weight norm", "spectral norm", "symmetric"])
def test_a_parametrization_compiled_at_once_goes_through_the_mask(how: str) -> None:
    model, x, mask = build("plain")
    net = natal.apply(model, mask).eval()
    ON_TOP[how](layer_of(net, "0", nn.Linear))
    torch._dynamo.reset()
    found = torch.compile(net, fullgraph=True, backend="eager")(x)
    weight = layer_of(net, "0", nn.Linear).weight * mask.weights["0.weight"]
    expected = functional_call(reference(model, mask), {"0.weight": weight}, (x,))
    assert torch.allclose(found, expected, rtol=1e-12, atol=1e-15)


def test_a_parametrization_on_top_is_to_be_taken_off_before_the_mask() -> None:
    model, _, mask = build("plain")
    net = natal.apply(model, mask)
    parametrizations.weight_norm(layer_of(net, "0", nn.Linear))
    with pytest.raises(NatalError, match="has a parametrization on top of its mask; take it off first"):
        unmasked(net, mask)


def test_a_parametrization_can_be_taken_off_again() -> None:
    model, x, mask = build("plain")
    net = natal.apply(model, mask)
    parametrizations.weight_norm(layer_of(net, "0", nn.Linear))
    before = net(x)
    assert "parametrizations.weight.original0" in layer_of(net, "0", nn.Linear).state_dict()
    parametrize.remove_parametrizations(layer_of(net, "0", nn.Linear), "weight")
    assert torch.allclose(net(x), before, rtol=1e-12)
    assert sorted(net.state_dict()) == sorted(model.state_dict())
    scribble(net)
    scribble(model)
    assert torch.equal(net(x), reference(model, mask)(x))


def test_torch_prune_on_top_can_be_made_permanent() -> None:
    model, x, mask = build("plain")
    net = natal.apply(model, mask)
    torch_prune.l1_unstructured(layer_of(net, "0", nn.Linear), "weight", 0.75)  # type: ignore[no-untyped-call]
    before = net(x)
    torch_prune.remove(layer_of(net, "0", nn.Linear), "weight")  # type: ignore[no-untyped-call]
    assert torch.equal(net(x), before)
    assert torch.equal(
        layer_of(net, "0", nn.Linear).weight != 0,
        (layer_of(net, "0", nn.Linear).weight != 0) & mask.weights["0.weight"],
    )


# -- transformed, compiled, exported ---------------------------------------------------------------------


def test_functional_calls_and_their_gradients_go_through_the_mask() -> None:
    model, x, mask = build("attention")
    net = natal.apply(model, mask)
    dense: dict[str, Tensor] = dict(model.named_parameters())
    assert torch.equal(functional_call(net, dense, (x,)), reference(model, mask)(x))
    gradients = grad(lambda θ: functional_call(net, θ, (x,)).square().mean())(dense)
    expected = reference(model, mask)
    loss_of(expected, x).backward()  # type: ignore[no-untyped-call]
    for name, parameter in expected.named_parameters():
        kept = mask.items().get(name, torch.ones_like(parameter, dtype=torch.bool))
        assert parameter.grad is not None
        assert torch.allclose(gradients[name], parameter.grad * kept, rtol=1e-12, atol=1e-15)


def test_an_ensemble_of_masked_copies_runs_at_once_each_under_its_own_mask() -> None:
    model, x, _ = build("plain")
    nets = [natal.apply(model, natal.prune(model, 0.5, "random", seed=s)) for s in range(3)]
    parameters, buffers = stack_module_state(nets)
    shell = copy.deepcopy(nets[0]).to("meta")
    together = vmap(lambda p, b: functional_call(shell, (p, b), (x,)))(parameters, buffers)
    assert torch.allclose(together, torch.stack([net(x) for net in nets]), rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("kind", [kind for kind in SHARED if kind != "encoder"])
def test_it_compiles_in_one_graph(kind: str) -> None:
    model, x, mask = build(kind)
    net = natal.apply(model, mask)
    scribble(net)
    scribble(model)
    torch._dynamo.reset()
    compiled = torch.compile(net, fullgraph=True, backend="aot_eager")
    assert isinstance(compiled, nn.Module)
    assert torch.allclose(compiled(x), reference(model, mask)(x), rtol=1e-12, atol=1e-12)
    train(compiled, OPTIMISERS["SGD"](net.parameters()), x, 2)
    assert not removed(net, mask).any()


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("kind", ["plain", "attention", "foreign"])
def test_it_exports(kind: str, strict: bool) -> None:
    model, x, mask = build(kind)
    net = natal.apply(model, mask)
    scribble(net)
    scribble(model)
    program = torch.export.export(net, (x,), strict=strict)
    assert torch.allclose(program.module()(x), reference(model, mask)(x), rtol=1e-12, atol=1e-12)


class Own(nn.Linear):
    """A layer that torch.fx looks into, as it is none of torch's."""

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias)


def test_fx_and_tracing_read_the_mask() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model, x = nn.Sequential(Own(8, 8), nn.ReLU(), nn.Linear(8, 3)), torch.randn(5, 8)
    mask = natal.prune(model, 0.5, "random")
    net = natal.apply(model, mask)
    graph = torch.fx.symbolic_trace(net)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*torch.jit.trace.* is deprecated")
        traced = torch.jit.trace(net, x)  # type: ignore[no-untyped-call]
    for one in (net, model):
        scribble(one)
    expected = reference(model, mask)(x)
    assert torch.equal(graph(x), expected)
    assert torch.equal(traced(x), expected)
    loss_of(graph, x).backward()  # type: ignore[no-untyped-call]
    for name, kept in mask.weights.items():
        gradient = net.get_parameter(name).grad
        assert gradient is not None
        assert not gradient[~kept].any()


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.* is deprecated")
def test_scripting_is_refused_by_name() -> None:
    model, _, mask = build("attention")
    with pytest.raises(
        NatalError, match=r"torch.jit.script cannot compile the masked \w+; use torch.compile"
    ) as said:
        torch.jit.script(natal.apply(model, mask))
    assert "\n" not in str(said.value)


@pytest.mark.parametrize("kind", NETWORKS)
def test_moving_and_casting_move_the_mask(kind: str) -> None:
    model, (x, _) = network(kind)
    mask = natal.prune(model, 0.5, "random")
    net = natal.apply(model, mask).double()
    assert torch.equal(net.eval()(x.double()), reference(model, mask).double().eval()(x.double()))
    assert {b.device.type for b in natal.apply(model, mask).to("meta").buffers()} == {
        "meta"
    } or kind != "conv"
