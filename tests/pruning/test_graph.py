"""One graph: which units go together, on small networks by hand, on random ones, and on those of the zoo."""

from __future__ import annotations

import contextlib
import copy
import random
import re
import runpy
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence as pack
from torch.nn.utils.rnn import pad_packed_sequence as unpack

import natal
from natal.errors import NatalError
from natal.pruning.choose import problem_of, score
from natal.pruning.graph.capture import capture
from natal.pruning.graph.operations import RULES, affine, pointwise, rule
from natal.pruning.graph.units import read
from natal.pruning.mask import LAYERS, Mask, unit_axes
from natal.pruning.savings import count
from networks import NETWORKS, layer_of, network

torch.set_num_threads(1)


def groups(net: nn.Module, x: Any) -> dict[str, int]:
    """Return the sizes of the groups of units that may be cut, by name."""
    return {group.name: len(group) for group in read(net, x).groups() if len(group)}


def pruned(net: nn.Module, x: Any, sparsity: float = 0.5, **how: Any) -> tuple[nn.Module, nn.Module, Mask]:
    """Return the masked network in float64, the compacted one, and the mask."""
    net = net.double()
    mask = natal.prune(net, sparsity, "magnitude", "layerwise", "neuron", batch=(x, None), **how)
    ticket = natal.apply(net, mask)
    return ticket, natal.compact(ticket, mask), mask


def size(net: nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())


def randn(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


class Of(nn.Module):
    """A network whose forward pass is a function of its layers and its input."""

    def __init__(self, forward: Any, **layers: nn.Module | nn.Parameter) -> None:
        super().__init__()
        for name, layer in layers.items():
            setattr(self, name, layer)
        self.way = forward

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.way(self, *args, **kwargs)


class Conv1D(nn.Module):
    """The linear layer of GPT-2 as its library writes it, which is known by its looks."""

    def __init__(self, nf: int, nx: int) -> None:
        super().__init__()
        self.nf, self.nx = nf, nx
        self.weight = nn.Parameter(torch.randn(nx, nf))
        self.bias = nn.Parameter(torch.randn(nf))

    def forward(self, x: Tensor) -> Tensor:
        y = torch.addmm(self.bias, x.view(-1, x.size(-1)), self.weight)
        return y.view(*x.size()[:-1], self.nf)


def filled(m: Any, x: Tensor) -> Tensor:
    """Write the units of one place after the other into a tensor of zeros."""
    h = torch.zeros(*x.shape[:2], m.a.out_features, dtype=x.dtype)
    for place in range(x.shape[1]):
        h[:, place] = m.a(x[:, place])
    out: Tensor = m.c(h)
    return out


class ChannelNorm(nn.Module):
    """The norm over channels that convolutional networks write by hand."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.scale, self.shift = (
            nn.Parameter(torch.randn(width, 1, 1)),
            nn.Parameter(torch.randn(width, 1, 1)),
        )

    def forward(self, x: Tensor) -> Tensor:
        centred = x - x.mean(1, keepdim=True)
        return centred * torch.rsqrt(centred.square().mean(1, keepdim=True) + 1e-6) * self.scale + self.shift


class Biased(nn.Module):
    """Attention with a learnt bias for every distance and head, looked up in a table."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(8, 8) for _ in range(4))
        self.table = nn.Parameter(torch.randn(15, 4))
        self.register_buffer("distance", torch.arange(8)[:, None] - torch.arange(8) + 7)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (each(x).unflatten(-1, (-1, 2)).transpose(1, 2) for each in (self.q, self.k, self.v))
        bias = self.table[self.get_buffer("distance").flatten()].view(8, 8, -1).permute(2, 0, 1)
        out: Tensor = self.o(((q @ k.transpose(-2, -1) + bias).softmax(-1) @ v).transpose(1, 2).flatten(2))
        return out


def conv(i: int, o: int, k: int = 1, **more: Any) -> nn.Conv2d:
    return nn.Conv2d(i, o, k, padding=k // 2, **more)


# (forward, layers, input's shape, groups of units that may be cut)
LINKS: dict[str, tuple[Any, Any, tuple[int, ...], dict[str, int]]] = {
    "addition": (
        lambda m, x: m.c(m.a(x) + m.b(x)),
        lambda: {"a": conv(3, 8), "b": conv(3, 8), "c": conv(8, 2)},
        (2, 3, 4, 4),
        {"a.weight": 8},
    ),
    "one more is no unit": (
        lambda m, x: m.c(F.relu(m.a(x)) + 1) + m.b(torch.clamp(m.a(x), 0, 1) - 1.0),
        lambda: {"a": conv(3, 8), "b": conv(8, 2), "c": conv(8, 2)},
        (2, 3, 4, 4),
        {"a.weight": 8},
    ),
    "concatenation by position": (
        lambda m, x: m.c(torch.cat([m.a(x), m.b(x)], 1)),
        lambda: {"a": conv(3, 8), "b": conv(3, 6), "c": conv(14, 2)},
        (2, 3, 4, 4),
        {"a.weight": 8, "b.weight": 6},
    ),
    "concatenation of positions": (
        lambda m, x: m.c(torch.cat([m.a(x), m.b(x)], dim=-1)),
        lambda: {"a": conv(3, 8), "b": conv(3, 8), "c": conv(8, 2)},
        (2, 3, 4, 4),
        {"a.weight": 8},
    ),
    "squeeze and excitation": (
        lambda m, x: m.c((h := m.a(x)) * m.up(F.relu(m.down(h.mean((2, 3), keepdim=True)))).sigmoid()),
        lambda: {"a": conv(3, 8), "down": conv(8, 4), "up": conv(4, 8), "c": conv(8, 2)},
        (2, 3, 4, 4),
        {"a.weight": 8, "down.weight": 4},
    ),
    "depthwise, with a multiplier": (
        lambda m, x: m.c(m.n(m.d(m.a(x)))),
        lambda: {"a": conv(3, 6), "d": conv(6, 12, 3, groups=6), "n": nn.BatchNorm2d(12), "c": conv(12, 2)},
        (2, 3, 4, 4),
        {"a.weight": 6},
    ),
    "grouped, by width": (
        lambda m, x: m.c(m.n(m.g(m.a(x)))),
        lambda: {"a": conv(3, 8), "g": conv(8, 12, 3, groups=2), "n": nn.BatchNorm2d(12), "c": conv(12, 2)},
        (2, 3, 4, 4),
        {"a.weight": 4, "g.weight": 6},
    ),
    "a grouped convolution of the input": (
        lambda m, x: m.c(F.relu(m.n(m.g(x)))),
        lambda: {"g": conv(4, 8, 3, groups=2), "n": nn.BatchNorm2d(8), "c": conv(8, 2)},
        (2, 4, 4, 4),
        {"g.weight": 4},
    ),
    "a gate from the other half": (
        lambda m, x: m.c(F.glu(m.a(x), 1)),
        lambda: {"a": conv(3, 8), "c": conv(4, 2)},
        (2, 3, 4, 4),
        {"a.weight": 4},
    ),
    "halves of a chunk": (
        lambda m, x: m.c((y := m.a(x).chunk(2, 1))[0] * y[1].sigmoid()),
        lambda: {"a": conv(3, 8), "c": conv(4, 2)},
        (2, 3, 4, 4),
        {"a.weight": 4},
    ),
    "channels shuffled": (
        lambda m, x: m.c(m.a(x).view(2, 2, -1, 4, 4).transpose(1, 2).reshape(2, -1, 4, 4)),
        lambda: {"a": conv(3, 8), "c": conv(8, 2)},
        (2, 3, 4, 4),
        {"a.weight": 4},
    ),
    "pixels shuffled": (
        lambda m, x: m.c(F.pixel_shuffle(m.a(x), upscale_factor=2)),
        lambda: {"a": conv(3, 12), "c": conv(3, 2)},
        (2, 3, 4, 4),
        {"a.weight": 3},
    ),
    "flattened": (
        lambda m, x: m.c(m.a(x).flatten(start_dim=1)),
        lambda: {"a": conv(3, 8), "c": nn.Linear(8 * 16, 2)},
        (2, 3, 4, 4),
        {"a.weight": 8},
    ),
    "a linear layer over positions": (
        lambda m, x: m.c(m.l(m.a(x).flatten(2)).mean(2)),
        lambda: {"a": conv(3, 8), "l": nn.Linear(16, 5), "c": nn.Linear(8, 2)},
        (2, 3, 4, 4),
        {"a.weight": 8},
    ),
    "upsampled, padded, pooled": (
        lambda m, x: m.c(F.max_pool2d(F.pad(F.interpolate(m.a(x), scale_factor=2), (1, 1)), 2).amax((2, 3))),
        lambda: {"a": conv(3, 8), "c": nn.Linear(8, 2)},
        (2, 3, 4, 4),
        {"a.weight": 8},
    ),
    "transposed": (
        lambda m, x: m.c(m.t(m.a(x))),
        lambda: {"a": conv(3, 8), "t": nn.ConvTranspose2d(8, 6, 2, 2), "c": conv(6, 2)},
        (2, 3, 4, 4),
        {"a.weight": 8, "t.weight": 6},
    ),
    "a layer used twice": (
        lambda m, x: m.c(m.b(F.relu(m.b(F.relu(m.a(x)))))),
        lambda: {"a": nn.Linear(3, 8), "b": nn.Linear(8, 8), "c": nn.Linear(8, 2)},
        (5, 3),
        {"a.weight": 8},
    ),
    "a parameter of the model's own": (
        lambda m, x: m.c((m.a(x) + m.place) * m.scale),
        lambda: {
            "a": nn.Linear(3, 8),
            "place": nn.Parameter(torch.randn(1, 4, 8)),
            "scale": nn.Parameter(torch.randn(8)),
            "c": nn.Linear(8, 2),
        },
        (2, 4, 3),
        {"a.weight": 8},
    ),
    "group norm": (
        lambda m, x: m.c(m.n(m.a(x)).relu()),
        lambda: {"a": conv(3, 8), "n": nn.GroupNorm(2, 8), "c": conv(8, 2)},
        (2, 3, 4, 4),
        {"a.weight": 8},
    ),
    "instance norm": (
        lambda m, x: m.c(m.n(m.a(x)).relu()),
        lambda: {"a": conv(3, 8), "n": nn.InstanceNorm2d(8, affine=True), "c": conv(8, 2)},
        (2, 3, 4, 4),
        {"a.weight": 8},
    ),
    "a norm over units": (
        lambda m, x: m.c(m.r(m.b(m.n(m.a(x))))),
        lambda: {
            "a": nn.Linear(3, 8),
            "n": nn.LayerNorm(8),
            "b": nn.Linear(8, 6),
            "r": nn.RMSNorm(6),
            "c": nn.Linear(6, 2),
        },
        (2, 4, 3),
        {"a.weight": 8, "b.weight": 6},
    ),
    "batch norm over tokens": (
        lambda m, x: m.c(m.n(m.a(x))),
        lambda: {"a": nn.Linear(3, 8), "n": nn.BatchNorm1d(4), "c": nn.Linear(8, 2)},
        (2, 4, 3),
        {"a.weight": 8},
    ),
    "recurrent, gated": (
        lambda m, x: m.c(m.g(m.a(x))[0][:, -1]),
        lambda: {"a": nn.Linear(3, 6), "g": nn.GRU(6, 8, batch_first=True), "c": nn.Linear(8, 2)},
        (2, 4, 3),
        {"a.weight": 6, "g.weight_ih_l0": 8},
    ),
    "recurrent, both ways, in two layers": (
        lambda m, x: m.c(m.r(m.a(x))[0].mean(1)),
        lambda: {
            "a": nn.Linear(3, 6),
            "r": nn.LSTM(6, 4, 2, batch_first=True, bidirectional=True),
            "c": nn.Linear(8, 2),
        },
        (2, 4, 3),
        {"a.weight": 6, "r.weight_ih_l0": 4},
    ),
    "recurrent, with a projection": (
        lambda m, x: m.c(m.r(x)[0][:, -1]),
        lambda: {"r": nn.LSTM(3, 8, batch_first=True, proj_size=4), "c": nn.Linear(4, 2)},
        (2, 4, 3),
        {"r.weight_ih_l0": 8, "r.weight_hr_l0": 4},
    ),
    "a recurrent cell": (
        lambda m, x: m.c(m.r(x[:, 1], m.r(x[:, 0]))),
        lambda: {"r": nn.RNNCell(3, 8), "c": nn.Linear(8, 2)},
        (2, 2, 3),
        {"r.weight_hh": 8},  # torch multiplies by this one first
    ),
    "positions, then a norm over units": (
        lambda m, x: m.c(m.n(m.a(x) + m.place)),
        lambda: {
            "a": nn.Linear(3, 8),
            "place": nn.Parameter(torch.randn(1, 4, 8)),
            "n": nn.LayerNorm(8),
            "c": nn.Linear(8, 2),
        },
        (2, 4, 3),
        {"a.weight": 8},
    ),
    "a weight that is (in, out)": (
        lambda m, x: m.c(F.relu(m.b(F.relu(m.a(x))))),
        lambda: {"a": Conv1D(8, 3), "b": Conv1D(6, 8), "c": nn.Linear(6, 2)},
        (2, 4, 3),
        {"a.weight": 8, "b.weight": 6},
    ),
    "a norm over channels and positions": (
        lambda m, x: m.c(m.n(m.a(x)).relu()),
        lambda: {"a": conv(3, 8), "n": nn.LayerNorm((8, 4, 4)), "c": conv(8, 2)},
        (2, 3, 4, 4),
        {"a.weight": 8},
    ),
    "a norm of one's own over channels": (
        lambda m, x: m.c(m.n(m.a(x).relu())),
        lambda: {"a": conv(3, 8), "n": ChannelNorm(8), "c": conv(8, 2)},
        (2, 3, 4, 4),
        {"a.weight": 8},
    ),
    "instance norm without numbers of its own": (
        lambda m, x: m.c(m.n(m.a(x)).relu()),
        lambda: {"a": conv(3, 8), "n": nn.InstanceNorm2d(8), "c": conv(8, 2)},
        (2, 3, 4, 4),
        {"a.weight": 8},
    ),
    "a gate of one number a channel": (
        lambda m, x: m.c(m.p(m.a(x))),
        lambda: {"a": conv(3, 8), "p": nn.PReLU(8), "c": conv(8, 2)},
        (2, 3, 4, 4),
        {"a.weight": 8},
    ),
    "a learnt input": (
        lambda m, x: m.c((m.q(m.latent) @ m.k(x).transpose(1, 2)).softmax(-1) @ m.v(x)),
        lambda: {
            "latent": nn.Parameter(torch.randn(5, 3)),
            "q": nn.Linear(3, 8),
            "k": nn.Linear(3, 8),
            "v": nn.Linear(3, 6),
            "c": nn.Linear(6, 2),
        },
        (2, 4, 3),
        {"q.weight": 8, "v.weight": 6},
    ),
    "positions looked up in a table": (
        lambda m, x: m.c(m.a(x) + m.table[torch.tensor([2, 0, 1, 2])]),
        lambda: {"table": nn.Parameter(torch.randn(3, 8)), "a": nn.Linear(3, 8), "c": nn.Linear(8, 2)},
        (2, 4, 3),
        {"a.weight": 8},
    ),
    "a bias of two places for every head, then a mean over places": (
        lambda m, x: m.c(m.att(m.a(x)).mean(1)),
        lambda: {"a": nn.Linear(3, 8), "att": Biased(), "c": nn.Linear(8, 2)},
        (2, 8, 3),  # as many places as units
        {"a.weight": 8, "att.q.weight": 4, "att.o.weight": 8},
    ),
    "attention across": (
        lambda m, x: m.c(m.att(m.a(x), h := m.b(x), h)[0]),
        lambda: {
            "a": nn.Linear(3, 8),
            "b": nn.Linear(3, 8),
            "att": nn.MultiheadAttention(8, 4, batch_first=True),
            "c": nn.Linear(8, 2),
        },
        (2, 4, 3),
        {"a.weight": 8, "att.in_proj_weight": 4, "att.out_proj.weight": 8},
    ),
    "sequences of their own lengths": (
        lambda m, x: m.c(unpack(m.g(pack(m.a(x), 4 - torch.arange(len(x)), batch_first=True))[0])[0]),
        lambda: {"a": nn.Linear(3, 6), "g": nn.GRU(6, 8, batch_first=True), "c": nn.Linear(8, 2)},
        (2, 4, 3),
        {"a.weight": 6, "g.weight_ih_l0": 8},
    ),
    "a tensor filled step by step": (
        filled,
        lambda: {"a": nn.Linear(3, 8), "c": nn.Linear(8, 2)},
        (2, 4, 3),
        {"a.weight": 8},
    ),
    "written through a view": (
        lambda m, x: (h := m.a(x), h.view(len(x), 2, -1, 8).transpose(1, 2).relu_(), m.c(h))[2],
        lambda: {"a": nn.Linear(3, 8), "c": nn.Linear(8, 2)},
        (2, 4, 3),
        {"a.weight": 8},
    ),
    "attention": (
        lambda m, x: m.c(m.att(h := m.a(x), h, h)[0]),
        lambda: {
            "a": nn.Linear(3, 8),
            "att": nn.MultiheadAttention(8, 4, batch_first=True),
            "c": nn.Linear(8, 2),
        },
        (2, 4, 3),
        {"a.weight": 8, "att.in_proj_weight": 4, "att.out_proj.weight": 8},
    ),
}


def linked(kind: str) -> tuple[nn.Module, Tensor, dict[str, int]]:
    way, layers, shape, expected = LINKS[kind]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = Of(way, **layers())
    return net.double().eval(), randn(*shape), expected


@pytest.mark.parametrize("kind", LINKS)
def test_units_that_meet_go_together(kind: str) -> None:
    net, x, expected = linked(kind)
    assert groups(net, x) == expected


@pytest.mark.filterwarnings("ignore:units of these layers are kept whole. 'l.weight'")
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("kind", LINKS)
def test_every_group_is_cut_and_the_function_stays(kind: str, training: bool) -> None:
    net, x, expected = linked(kind)
    if training and kind == "batch norm over tokens":
        # then its statistics are means over units, which another width would not have
        with pytest.warns(UserWarning, match="'a.weight': the smaller network computes something else"):
            pruned(net.train(), x)
        return
    ticket, small, mask = pruned(net.train(training), x)
    assert set(mask.units) == set(expected)
    for weight, stays in mask.units.items():
        axis = unit_axes(net)[weight]
        before, after = (model.get_parameter(weight).shape[axis] for model in (net, small))
        assert after == stays.double().mean().item() * before < before
    torch.testing.assert_close(small(x), ticket(x))
    assert not kind.startswith("instance") or small.get_submodule("n").num_features == 4
    if kind != "channels shuffled":  # its code states the number of rows
        rows = torch.cat([x, x[:1]])
        torch.testing.assert_close(small.eval()(rows), ticket.eval()(rows))


def part_of(h: Tensor, others: Tensor) -> Tensor:
    others[:, : h.shape[1]] = h
    return others


# what is done to the units of a layer, and why that keeps them whole
STAYS: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
    "in another order": (lambda h: h[:, [1, 0, 3, 2]], "index takes them by their places"),
    "in another order, by tensor": (
        lambda h: h.index_select(1, torch.arange(3, -1, -1)),
        "index_select takes them",
    ),
    "turned": (lambda h: h.roll(1, 1), "roll takes them by their places"),
    "one of them": (lambda h: h * h[:, 2, None], "one of them is taken by its place"),
    "apart": (lambda h: torch.stack(h.unbind(1)[::-1], 1), "one of them is taken by its place"),
    "sorted": (lambda h: h.sort(1)[0], "sort runs over them"),
    "normalised": (lambda h: h.softmax(1), "_softmax runs over them"),
    "every other": (lambda h: torch.cat([h[:, ::2], h[:, 1::2]], 1), "every other unit is taken"),
    "in parts": (
        lambda h: torch.cat(torch.split_with_sizes(h, [1, 3], 1)[::-1], 1),
        "split into parts of different sizes",
    ),
    "transformed": (lambda h: torch.fft.fft(h, dim=1).real, "_fft_r2c is not followed"),
    "averaged": (lambda h: h - h.mean(1, keepdim=True), "mean runs over them"),
    "into a part of others": (
        lambda h: part_of(h, torch.zeros(len(h), 8).to(h))[:, :4],
        "written to a part of a tensor",
    ),
    "beside others": (
        lambda h: h * F.one_hot(torch.arange(len(h)) % 4, 4),
        "meets numbers that cannot be cut along",
    ),
}


@pytest.mark.parametrize("kind", STAYS)
def test_what_keeps_a_layer_whole_is_said_once(kind: str) -> None:
    way, why = STAYS[kind]
    net = Of(
        lambda m, x: m.d(m.c(way(m.b(m.a(x)))).relu()),
        a=nn.Linear(3, 4), b=nn.Linear(4, 4), c=nn.Linear(4, 6), d=nn.Linear(6, 2),
    ).eval()  # fmt: skip
    x = randn(5, 3)
    with pytest.warns(UserWarning, match=f"^units of these layers are kept whole: 'b.weight': {why}") as seen:
        ticket, small, mask = pruned(net, x)
    assert len(seen) == 1
    assert set(mask.units) == {"a.weight", "c.weight"}
    torch.testing.assert_close(small(x), ticket(x))
    alone = Of(lambda m, x: m.b(way(m.a(x))), a=nn.Linear(3, 4), b=nn.Linear(4, 2)).double()
    with pytest.raises(
        NatalError, match=rf"finds no hidden layer: units are kept whole of 'a.weight': {why}"
    ):
        natal.prune(alone, 0.5, "magnitude", granularity="neuron", batch=(x, None))


def test_units_that_the_model_returns_and_weights_that_are_no_layers_are_named() -> None:
    net = Of(
        lambda m, x: (m.c(m.b(h := m.a(x)).relu() @ m.square), h),
        a=nn.Linear(3, 8), b=nn.Linear(8, 6), square=nn.Parameter(torch.randn(6, 6)), c=nn.Linear(6, 2),
        idle=nn.Linear(4, 4), turned=nn.Linear(3, 8),
    )  # fmt: skip
    whole = net.way
    net.way = lambda m, x: (*whole(m, x), (m.turned.weight @ x.T).sum())
    with pytest.warns(UserWarning, match="kept whole") as seen:
        _, _, mask = pruned(net, randn(5, 3))
    assert set(mask.units) == {"b.weight"}
    assert [str(each.message) for each in seen] == [
        "units of these layers are kept whole: 'a.weight': the model returns them; 'idle.weight': it does not run; "
        "'turned.weight': it is no layer's weight as it is"
    ]
    alone = Of(lambda m, x: m.a(x), a=nn.Linear(3, 8))
    with pytest.raises(NatalError, match="finds no hidden layer: all units are outputs"):
        natal.prune(alone, 0.5, "magnitude", granularity="neuron", batch=(randn(5, 3).float(), None))


@pytest.mark.parametrize("kind", ["a norm over units", "group norm", "attention"])
def test_a_plain_norm_of_the_smaller_width_is_another_function(kind: str) -> None:
    net, x, _ = linked(kind)
    mask = natal.prune(net, 0.5, "magnitude", "layerwise", "neuron", batch=(x, None))
    exact = natal.compact(net, mask)
    said = pytest.warns(UserWarning, match="renormalise=True: the smaller Of computes another function")
    with said if kind != "attention" else contextlib.nullcontext():
        plain = natal.compact(net, mask, renormalise=True)
    assert size(plain) <= size(exact)
    assert torch.equal(plain(x), exact(x)) == (kind == "attention")  # which has no norm


def test_grouped_queries_go_with_the_keys_they_share() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        q, k, v = (layer(x).unflatten(-1, (-1, 4)).transpose(1, 2) for layer in (m.q, m.k, m.v))
        k, v = k.repeat_interleave(2, 1), v.repeat_interleave(2, 1)
        out: Tensor = m.o(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return out

    net = Of(forward, q=nn.Linear(6, 24), k=nn.Linear(6, 12), v=nn.Linear(6, 12), o=nn.Linear(24, 3)).eval()
    x = randn(2, 5, 6)
    assert groups(net.double(), x) == {"q.weight": 3}  # three keys, each with two queries
    ticket, small, mask = pruned(net, x)
    assert [layer_of(small, name, nn.Linear).out_features for name in "qk"] == [16, 8]
    assert layer_of(small, "o", nn.Linear).in_features == 16
    torch.testing.assert_close(small(x), ticket(x))
    assert mask.units["q.weight"].sum() == 2


class Attention(nn.Module):
    """Attention of four heads, which may share keys, with the scale of its width at birth."""

    def __init__(self, keys: int, width: int = 6, scale: float | None = 6**-0.5) -> None:
        super().__init__()
        self.keys, self.scale = keys, scale
        self.q, self.o = nn.Linear(5, 4 * width), nn.Linear(4 * width, 2)
        self.k, self.v = nn.Linear(5, keys * width), nn.Linear(5, keys * width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            layer(x).view(len(x), x.shape[1], heads, -1).transpose(1, 2)
            for layer, heads in ((self.q, 4), (self.k, self.keys), (self.v, self.keys))
        )
        k, v = (t.repeat_interleave(4 // self.keys, 1) for t in (k, v))
        mixed = F.scaled_dot_product_attention(q, k, v, scale=self.scale)
        out: Tensor = self.o(mixed.transpose(1, 2).flatten(2))
        return out


@pytest.mark.parametrize("keys", [4, 2, 1])
def test_attention_loses_heads_or_width_as_told(keys: int) -> None:
    x = randn(3, 7, 5)
    narrow, small, mask = pruned(Attention(keys).eval(), x, attention="width")
    # places that queries and keys meet in, and places that values carry, six of either in every head
    assert {name: len(kept) for name, kept in mask.units.items()} == {"q.weight": 6, "v.weight": 6}
    assert [layer_of(small, n, nn.Linear).out_features for n in "qkv"] == [12, 3 * keys, 3 * keys]
    torch.testing.assert_close(small(x), narrow(x))
    if keys > 1:
        fewer = natal.prune(
            Attention(keys).double(), 0.5, "magnitude", "layerwise", "neuron", batch=(x, None)
        )
        assert {name: len(kept) for name, kept in fewer.units.items()} == {"q.weight": keys}


def test_torchs_transformer_gets_narrower_in_all_its_parts() -> None:
    inner = nn.Transformer(8, 4, 1, 1, 16, dropout=0.0, batch_first=True)
    net = Of(
        lambda m, x: m.c(m.t(m.a(x), m.b(x))),
        a=nn.Linear(3, 8),
        b=nn.Linear(3, 8),
        t=inner,
        c=nn.Linear(8, 2),
    )
    x = randn(2, 4, 3)
    ticket, small, mask = pruned(net.eval(), x)
    narrow: Any = small.get_submodule("t")
    assert all(int(stay.sum()) * 2 == len(stay) for stay in mask.units.values())
    assert (narrow.d_model, narrow.decoder.layers[0].multihead_attn.num_heads) == (4, 2)
    torch.testing.assert_close(small(x), ticket(x))


def test_narrower_heads_of_torchs_attention_keep_their_scale(tmp_path: Path) -> None:
    def made() -> nn.Module:
        return Of(
            lambda m, x: m.c(m.att(h := m.a(x), h, h)[0]),
            a=nn.Linear(3, 12), att=nn.MultiheadAttention(12, 2, batch_first=True), c=nn.Linear(12, 2),
        ).eval()  # fmt: skip

    x = randn(2, 4, 3)
    ticket, small, mask = pruned(made(), x, attention="width")
    assert len(mask.units["att.in_proj_weight"]) == 6
    attention = layer_of(small, "att", nn.MultiheadAttention)
    assert (attention.num_heads, attention.head_dim) == (2, 6)  # the scale is that of six still
    assert attention.out_proj.weight.shape == (6, 6)
    torch.testing.assert_close(small(x), ticket(x))
    natal.save_compact(tmp_path / "small", small)
    assert torch.equal(natal.load_compact(tmp_path / "small", made().double())(x), small(x))


def test_a_scale_that_the_code_takes_from_the_width_keeps_it() -> None:
    x = randn(3, 7, 5)
    with pytest.warns(UserWarning, match="'q.weight': the smaller network computes something else"):
        ticket, small, _ = pruned(Attention(4, scale=None).eval(), x, attention="width")
    assert [layer_of(small, n, nn.Linear).out_features for n in "qkv"] == [24, 24, 12]
    torch.testing.assert_close(small(x), ticket(x))


@pytest.mark.parametrize(
    ("how", "message"),
    [
        (
            {"attention": "depth", "granularity": "neuron"},
            "attention must be 'heads' or 'width', got 'depth'",
        ),
        ({"attention": "width"}, "attention='width' is for whole neurons; use granularity 'neuron'"),
    ],
)
def test_a_choice_that_attention_does_not_have_is_refused(how: Any, message: str) -> None:
    with pytest.raises(NatalError, match=re.escape(message)):
        natal.prune(Attention(4), 0.5, "magnitude", **how)


def test_a_number_of_heads_follows_the_cut() -> None:
    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.heads, self.width = 4, 16
            self.qkv, self.out = nn.Linear(6, 48), nn.Linear(16, 3)

        def forward(self, x: Tensor) -> Tensor:
            rows, tokens, _ = x.shape
            q, k, v = self.qkv(x).reshape(rows, tokens, 3, self.heads, 4).permute(2, 0, 3, 1, 4).unbind(0)
            y = (q @ k.transpose(-2, -1)).softmax(-1) @ v
            out: Tensor = self.out(y.transpose(1, 2).reshape(rows, tokens, self.width))
            return out

    ticket, small, _ = pruned(Attention().eval(), randn(2, 5, 6))
    assert isinstance(small, Attention)
    assert (small.heads, small.width, small.qkv.out_features) == (2, 8, 24)
    torch.testing.assert_close(small(randn(2, 5, 6)), ticket(randn(2, 5, 6)))


def test_a_number_that_is_a_width_by_chance_stays() -> None:
    class Patches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.image_size, self.hidden = 8, 8
            self.patches, self.head = nn.Conv2d(1, 8, 2, 2), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            assert x.shape[-1] == self.image_size
            out: Tensor = self.head(self.patches(x).reshape(len(x), self.hidden, -1).mean(2))
            return out

    x = randn(3, 1, 8, 8)
    ticket, small, _ = pruned(Patches().eval(), x)
    assert (vars(small)["image_size"], vars(small)["hidden"]) == (8, 4)
    torch.testing.assert_close(small(x), ticket(x))


def test_a_size_that_the_code_states_keeps_its_group_whole_and_is_named() -> None:
    net = Of(
        lambda m, x: m.c(m.b(m.a(x).relu()).view(-1, 8).relu()),
        a=nn.Linear(3, 8), b=nn.Linear(8, 8), c=nn.Linear(8, 2),
    ).eval()  # fmt: skip
    x = randn(5, 3)
    with pytest.warns(UserWarning, match="stay in place, because of 'b.weight': ") as seen:
        ticket, small, _ = pruned(net, x)
    assert len(seen) == 1
    assert [layer_of(small, name, nn.Linear).out_features for name in "ab"] == [4, 8]
    torch.testing.assert_close(small(x), ticket(x))


def test_a_group_that_is_refused_goes_by_its_layer_not_by_a_table() -> None:
    net = Of(
        lambda m, x: m.c((m.table[torch.arange(4)] + m.b(m.a(x).relu())).view(-1, 4, 8).relu()),
        table=nn.Parameter(torch.randn(4, 8)), a=nn.Linear(3, 8), b=nn.Linear(8, 8), c=nn.Linear(8, 2),
    ).eval()  # fmt: skip
    with pytest.warns(UserWarning, match="because of 'b.weight': without them its code fails: "):
        pruned(net, randn(2, 4, 3))


def test_a_flag_that_decides_what_runs_is_tried_both_ways() -> None:
    def forward(m: Any, x: Tensor, flip: bool = False) -> Tensor:
        h = m.a(x)
        out: Tensor = m.c(h.flip(1) if flip is True else h)
        return out

    class Flipped(Of):
        def forward(self, x: Tensor, flip: bool = False) -> Tensor:
            return forward(self, x, flip)

    net = Flipped(None, a=nn.Linear(3, 8), c=nn.Linear(8, 2)).eval()
    with torch.no_grad():
        net.get_parameter("a.weight").copy_(
            torch.arange(8, 0, -1)[:, None].expand(8, 3)
        )  # the first four stay
    with pytest.warns(
        UserWarning, match="'a.weight': the smaller network computes something else with flip=True"
    ):
        ticket, small, _ = pruned(net, randn(5, 3))
    for flip in (False, True):
        torch.testing.assert_close(small(randn(5, 3), flip), ticket(randn(5, 3), flip))


def test_complex_numbers_keep_their_imaginary_part() -> None:
    layers = [layer for _ in range(3) for layer in (nn.Linear(5, 5, dtype=torch.complex128), nn.Tanh())]
    net = nn.Sequential(*layers).eval()
    mask = natal.prune(net, 0.8, "random", seed=0)
    x = torch.complex(randn(8, 5), randn(8, 5))
    torch.testing.assert_close(natal.compact(net, mask)(x), natal.apply(net, mask)(x))


def test_an_input_is_asked_for_in_one_line() -> None:
    net = nn.Sequential(nn.Embedding(9, 4), nn.Flatten(), nn.Linear(12, 6), nn.ReLU(), nn.Linear(6, 2))
    with pytest.raises(
        NatalError, match=r"needs an input of Sequential, whose first layer '2.weight'"
    ) as error:
        natal.prune(net, 0.5, "magnitude", granularity="neuron")
    assert "\n" not in str(error.value)


def test_a_mask_knows_the_shapes_it_was_made_for_and_holds_no_data(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Embedding(9, 4), nn.Flatten(), nn.Linear(12, 6), nn.ReLU(), nn.Linear(6, 2)).eval()
    x = torch.randint(9, (5, 3))
    mask = natal.prune(net, 0.5, "magnitude", granularity="neuron", batch=(x, None))
    assert mask.inputs == {"0": ["int64", [2, 3]]}
    natal.save_mask(tmp_path / "mask", mask)
    again = natal.load_mask(tmp_path / "mask")
    small = natal.compact(net, again)
    assert layer_of(small, "2", nn.Linear).out_features < 6
    torch.testing.assert_close(small(x), natal.apply(net, mask)(x))


def test_a_rule_of_ones_own() -> None:
    @torch.library.custom_op("natal_test::double", mutates_args=())
    def double(x: Tensor) -> Tensor:
        return x * 2

    net = Of(lambda m, x: m.c(double(m.a(x))), a=nn.Linear(3, 8), c=nn.Linear(8, 2)).double().eval()
    with pytest.raises(NatalError, match="double is not followed"):
        natal.prune(net, 0.5, "magnitude", granularity="neuron", batch=(randn(5, 3), None))
    rule("natal_test.double.default")(pointwise)
    try:
        assert groups(net, randn(5, 3)) == {"a.weight": 8}
    finally:
        del RULES["natal_test.double.default"]


class Scale(nn.Module):
    """A factor a unit, computed where no tape can see it, and only after a look at the numbers."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.linspace(1, 2, width))

    def forward(self, x: Tensor) -> Tensor:
        if not x.isfinite().all():
            raise ValueError("a number is infinite")
        return torch.from_numpy(x.detach().numpy() * self.factor.detach().numpy())


class Turned(nn.Module):
    """A layer of a user's own, whose weight is (in, out) and has a name of its own."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.kernel = nn.Parameter(torch.randn(inputs, outputs))
        self.shift = nn.Parameter(torch.randn(outputs))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.kernel + self.shift


def test_modules_of_ones_own_have_rules_and_prunable_weights() -> None:
    net = nn.Sequential(Turned(3, 8), Scale(8), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 2)).double().eval()
    x = randn(5, 3)
    with pytest.raises(NatalError, match="'1' branches on the values of its input"):
        natal.prune(net, 0.5, "magnitude", granularity="neuron", batch=(x, None))

    @rule(Scale)
    def scale(reader: Any, shapes: Any, x: Any) -> Any:
        return pointwise(reader, shapes, x, reader.own("factor"))

    @rule(Turned)
    def turned(reader: Any, shapes: Any, x: Any) -> Any:
        return affine(reader, shapes, reader.own("shift"), x, reader.own("kernel"))

    try:
        assert groups(net, x) == {"0.kernel": 8, "2.weight": 6}
        # the table says what may be removed for its own sake; the graph, what goes with it
        assert set(natal.prune(net, 0.5, "magnitude", granularity="neuron", batch=(x, None)).units) == {
            "2.weight"
        }
        natal.layer(Turned, kernel=1)
        ticket, small, mask = pruned(net, x)
        assert {name: int(kept.sum()) for name, kept in mask.units.items()} == {"0.kernel": 4, "2.weight": 3}
        assert tuple(small.get_parameter("0.kernel").shape) == (3, 4)
        assert tuple(small.get_parameter("1.factor").shape) == (4,)
        torch.testing.assert_close(small(x), ticket(x))
        four = natal.prune(net, 0.5, "magnitude", granularity="2:4").weights["0.kernel"]
        assert four.sum() == 16  # of three inputs of a unit one goes, for the fours run along them
        assert (four.sum(0) == 2).all()
    finally:
        del RULES[Scale], RULES[Turned]
        LAYERS.pop(Turned, None)


@pytest.mark.parametrize(
    ("kind", "axes", "message"),
    [
        (Turned(2, 2), {"kernel": 1}, "layer takes a class of modules, such as nn.Linear, got Turned()"),
        (Turned, {}, "layer takes the parameters of Turned with the axis of their units"),
        (Turned, {"kernel": 2}, "0 or 1, such as weight=0, got {'kernel': 2}"),
    ],
)
def test_a_layer_that_is_none_is_refused_in_one_line(kind: Any, axes: dict[str, int], message: str) -> None:
    with pytest.raises(NatalError) as error:
        natal.layer(kind, **axes)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_tied_embedding_loses_the_width_that_its_head_does() -> None:
    net = Of(
        lambda m, x: m.head(m.norm(m.embed(x) + m.up(F.relu(m.down(m.embed(x)))))),
        embed=nn.Embedding(9, 8), down=nn.Linear(8, 6), up=nn.Linear(6, 8), norm=nn.LayerNorm(8),
        head=nn.Linear(8, 9, bias=False),
    ).eval()  # fmt: skip
    net.get_submodule("head").weight = net.get_parameter("embed.weight")
    ticket, small, mask = pruned(net, torch.arange(6).view(2, 3))
    assert mask.units["embed.weight"].sum() == 4  # the group goes by the name it has on the tape
    assert tuple(small.get_parameter("embed.weight").shape) == (9, 4)
    assert small.get_submodule("head").weight is small.get_parameter("embed.weight")
    x = torch.arange(9)[None]
    torch.testing.assert_close(small(x), ticket(x))


@pytest.mark.parametrize("criterion", ["snip", "grasp-absolute", "synflow", "ntk-sap"])
@pytest.mark.filterwarnings("ignore:criterion .* score 0")
def test_recurrent_units_are_scored_by_their_recurrent_weights(criterion: str) -> None:
    net, x, _ = linked("recurrent, gated")
    y = torch.tensor([0, 1])
    mask = natal.prune(net, 0.5, criterion, "layerwise", "neuron", batch=(x, y))
    scores = score(criterion, problem_of(net, 0, whole=True, inputs=x, targets=y, loss=F.cross_entropy))
    assert {name for name in scores if name.startswith("g.")} == {"g.weight_ih_l0", "g.weight_hh_l0"}
    assert mask.units["g.weight_ih_l0"].sum() == 4
    assert not mask.weights["g.weight_hh_l0"].all()
    # single weights of a recurrent layer are no business of a mask of weights
    assert "g.weight_hh_l0" not in natal.prune(net, 0.5, criterion, batch=(x, y)).weights


def test_a_fresh_narrow_recurrent_layer_is_drawn_by_its_width() -> None:
    net, x, _ = linked("recurrent, gated")
    mask = natal.prune(net, 0.5, "magnitude", "layerwise", "neuron", batch=(x, None), control="fresh-narrow")
    drawn = [values for name, values in mask.redrawn.items() if name.startswith("g.")]
    assert len(drawn) == 4
    assert 0.9 / 4**0.5 < max(float(values.abs().max()) for values in drawn) <= 1 / 4**0.5


def test_a_recurrent_layer_is_left_alone_by_its_name() -> None:
    net, x, _ = linked("recurrent, gated")
    mask = natal.prune(net, 0.5, "magnitude", "layerwise", "neuron", batch=(x, None), exclude=("g",))
    assert set(mask.units) == {"a.weight"}


@pytest.mark.parametrize("kind", NETWORKS)
def test_capture_leaves_no_trace(kind: str) -> None:
    model, (x, _) = network(kind)
    state, before = torch.get_rng_state(), {k: v.clone() for k, v in model.state_dict().items()}
    private = copy.deepcopy(model)
    tape = capture(private, x)
    assert tape.outputs
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in private.modules())


# --- random graphs ----------------------------------------------------------------------------------------------


class RandomNet(nn.Module):
    """A network of random operations on a few feature maps, which it keeps and combines."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        draw = random.Random(seed)
        self.plan: list[tuple[str, Any]] = []
        self.layers = nn.ModuleList()
        widths = [3]
        for _ in range(draw.randint(3, 9)):
            kind = draw.choice(KINDS)
            at = draw.randrange(len(widths))
            width = widths[at]
            new = draw.choice([4, 6, 8])
            match kind:
                case "conv":
                    kernel, bias = draw.choice([1, 3]), draw.random() < 0.7
                    layer: nn.Module = nn.Conv2d(width, new, kernel, padding="same", bias=bias)
                    widths.append(new)
                case "grouped":
                    if width % 2:
                        continue
                    layer = nn.Conv2d(width, new, 3, padding=1, groups=2)
                    widths.append(new)
                case "depthwise":
                    layer = nn.Conv2d(width, width, 3, padding=1, groups=width)
                    widths.append(width)
                case "norm":
                    norms: list[Callable[[int], nn.Module]] = [nn.BatchNorm2d, lambda n: nn.GroupNorm(1, n)]
                    layer = draw.choice(norms)(width)
                    widths.append(width)
                case "transposed":
                    layer = nn.ConvTranspose2d(width, new, 1)
                    widths.append(new)
                case (
                    "relu"
                    | "relu_"
                    | "sigmoid"
                    | "scale"
                    | "scale_"
                    | "flip"
                    | "pool"
                    | "flat"
                    | "flat_keyword"
                ):
                    layer = nn.Identity()
                    widths.append(width)
                case "glu" | "chunk":
                    if width % 2:
                        continue
                    layer = nn.Identity()
                    widths.append(width // 2)
                case "shuffle" | "split" | "split_sizes":
                    if width % 2:
                        continue
                    layer = nn.Identity()
                    widths.append(width)
                case "add" | "add_" | "mul":
                    others = [k for k, w in enumerate(widths) if w == width]
                    self.plan.append((kind, (at, draw.choice(others))))
                    self.layers.append(nn.Identity())
                    widths.append(width)
                    continue
                case "cat" | "cat_keyword":
                    other = draw.randrange(len(widths))
                    self.plan.append((kind, (at, other)))
                    self.layers.append(nn.Identity())
                    widths.append(width + widths[other])
                    continue
                case "again":
                    used = [
                        (k, p) for k, p in enumerate(self.plan)
                        if p[0] == "conv" and self.layers[k].in_channels == width
                    ]  # fmt: skip
                    if not used:
                        continue
                    shared = layer_of(self.layers, str(draw.choice(used)[0]), nn.Conv2d)
                    self.plan.append(("conv", (at,)))
                    self.layers.append(shared)
                    widths.append(shared.out_channels)
                    continue
                case "excite":
                    layer = nn.Sequential(nn.Conv2d(width, 4, 1), nn.ReLU(), nn.Conv2d(4, width, 1))
                    widths.append(width)
            self.plan.append((kind, (at,)))
            self.layers.append(layer)
        self.head = nn.Linear(widths[-1], 3)

    def forward(self, x: Tensor) -> Tensor:
        maps = [x]
        for (kind, at), layer in zip(self.plan, self.layers, strict=True):
            y = maps[at[0]]
            match kind:
                case "relu":
                    y = F.relu(y)
                case "relu_":
                    y = F.relu_(y.clone()) if y is x else y.relu_()
                case "sigmoid":
                    y = y.sigmoid()
                case "scale":
                    y = y * 2 + 1
                case "scale_":
                    y = y.clone().mul_(2).sub_(1)
                case "flat":
                    y = y.view(len(y), -1, 25).reshape(len(y), -1, 5, 5)
                case "flat_keyword":
                    y = torch.reshape(y.flatten(start_dim=2), shape=(len(y), -1, 5, 5))
                case "split":
                    y = torch.cat(torch.split(y, y.shape[1] // 2, 1)[::-1], 1)
                case "split_sizes":
                    a, b = y.split(split_size=[y.shape[1] // 2] * 2, dim=-3)
                    y = torch.concat(tensors=(a * 2, b), dim=1)
                case "flip":
                    y = y.flip(-1)
                case "pool":
                    y = F.avg_pool2d(y, 3, 1, 1)
                case "glu":
                    y = F.glu(y, 1)
                case "chunk":
                    a, b = y.chunk(2, dim=1)
                    y = a + b
                case "shuffle":
                    y = y.reshape(len(y), 2, -1, *y.shape[2:]).transpose(1, 2).flatten(1, 2)
                case "add":
                    y = y + maps[at[1]]
                case "add_":
                    y = y.clone()
                    y += maps[at[1]]
                case "mul":
                    y = torch.mul(y, maps[at[1]])
                case "cat":
                    y = torch.cat([y, maps[at[1]]], 1)
                case "cat_keyword":
                    y = torch.cat((y, maps[at[1]]), dim=-3)
                case "excite":
                    y = y * layer(y.mean((2, 3), keepdim=True)).sigmoid()
                case _:
                    y = layer(y)
            maps.append(y)
        out: Tensor = self.head(maps[-1].mean((2, 3)))
        return out


KINDS = [
    "conv",
    "conv",
    "conv",
    "grouped",
    "depthwise",
    "norm",
    "norm",
    "transposed",
    "relu",
    "relu_",
    "sigmoid",
    "scale",
    "scale_",
    "flat",
    "flat_keyword",
    "split",
    "split_sizes",
    "flip",
    "pool",
    "glu",
    "chunk",
    "shuffle",
    "add",
    "add_",
    "mul",
    "cat",
    "cat_keyword",
    "again",
    "excite",
]


def random_net(seed: int) -> tuple[nn.Module, Tensor]:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = RandomNet(seed).double()
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.get_buffer("running_mean").normal_()
                module.get_buffer("running_var").uniform_(0.5, 2)
                nn.init.normal_(module.weight)
                nn.init.normal_(module.bias)
    return net, randn(4, 3, 5, 5)


def random_mask(net: nn.Module, x: Tensor, seed: int, density: float) -> Mask:
    """Return a mask of random groups and of random weights besides."""
    try:
        mask = natal.prune(net, 0.4, "random", "layerwise", "neuron", batch=(x, None), seed=seed)
    except NatalError:  # every unit is the input's or an output
        mask = natal.prune(net, 0.0, "random", batch=(x, None))
    generator = torch.Generator().manual_seed(seed)
    weights = {n: k & (torch.rand(k.shape, generator=generator) < density) for n, k in mask.weights.items()}
    return Mask(weights, mask.biases, mask.units, inputs=mask.inputs)


@pytest.mark.filterwarnings("ignore")
@settings(max_examples=60)
@given(seed=st.integers(0, 10**6), training=st.booleans(), density=st.sampled_from([1.0, 0.7, 0.2]))
def test_random_graphs_are_compacted_equal(seed: int, training: bool, density: float) -> None:
    net, x = random_net(seed)
    net.train(training)
    mask = random_mask(net, x, seed, density)
    ticket = natal.apply(net, mask)
    small = natal.compact(ticket, mask, x)
    # some write to their input
    expected = copy.deepcopy(ticket)(x.clone())
    torch.testing.assert_close(copy.deepcopy(small)(x.clone()), expected)
    # three steps of training
    ticket.train()
    optimizer = torch.optim.SGD(ticket.parameters(), lr=1e-3, momentum=0.9)
    smaller = natal.compact_training(ticket, mask, optimizer, x)
    assert smaller.optimizer is not None
    for _ in range(3):
        losses = []
        for model, opt in ((ticket, optimizer), (smaller.model, smaller.optimizer)):
            opt.zero_grad()
            loss = F.cross_entropy(model(x.clone()), torch.arange(4) % 3)
            try:
                loss.backward()  # type: ignore[no-untyped-call]
            except RuntimeError as error:
                if model is ticket and "inplace operation" in str(error):
                    return  # it overwrites what its own derivative needs
                raise
            opt.step()
            losses.append(loss.item())
        assert losses[0] == pytest.approx(losses[1], rel=1e-9, abs=1e-12)


# --- targets ------------------------------------------------------------------------------------------------------


def test_a_target_asks_for_an_image_because_its_size_counts() -> None:
    model, batch = network("conv")
    for target in ("macs", "params", "latency"):
        with pytest.raises(NatalError, match=f"target '{target}' needs an input of Sequential") as error:
            natal.prune(model, criterion="magnitude", **{target: 0.5})  # type: ignore[arg-type]
        assert "\n" not in str(error.value)
    # which channels go together is the same at any size
    how: Any = {"criterion": "magnitude", "granularity": "neuron"}
    made, given = natal.prune(model, 0.5, **how), natal.prune(model, 0.5, batch=batch, **how)
    assert all(torch.equal(made.units[name], given.units[name]) for name in given.units)


@pytest.mark.filterwarnings("ignore:units of these layers are kept whole")
@pytest.mark.parametrize("kind", ["conv", "residual", "transformer", "deep"])
@pytest.mark.parametrize(("of", "share"), [("macs", 0.5), ("params", 0.5)])
def test_a_target_is_reached_by_exact_counts(kind: str, of: str, share: float) -> None:
    model, batch = network(kind)
    target: dict[str, Any] = {of: share}
    mask = natal.prune(model, criterion="magnitude", batch=batch, **target)
    small = natal.compact(model.eval(), mask, batch[0], renormalise=True)
    counts = [count(copy.deepcopy(net).eval(), batch[0]) for net in (model, small)]
    work = counts[1].multiply_adds / counts[0].multiply_adds
    assert mask.reached["macs"] == pytest.approx(work, abs=1e-12)
    assert mask.reached["params"] == pytest.approx(size(small) / size(model), abs=1e-12)
    assert mask.reached[of] <= share
    assert mask.reached[of] > share - 0.25  # a unit of these small layers is a large step


@pytest.mark.parametrize(
    ("of", "less"), [("macs", 0.05), ("params", 0.17)]
)  # less: what a count alone can reach
def test_a_target_is_reached_by_the_compacted_network_or_not_at_all(of: str, less: float) -> None:
    net = Of(
        lambda m, x: m.d(m.n(m.c(F.relu(m.b(m.a(x)).view(-1, 8, 4, 4))))).mean((2, 3)),
        a=conv(3, 8), b=conv(8, 8), c=conv(8, 16), n=nn.GroupNorm(4, 16), d=conv(16, 2),
    ).double().eval()  # fmt: skip
    x = randn(2, 3, 4, 4)
    how: dict[str, Any] = {"criterion": "magnitude", "scope": "layerwise", "batch": (x, None)}
    with pytest.warns(
        UserWarning, match="kept whole: 'b.weight': without them its code fails: shape"
    ) as seen:
        mask = natal.prune(net, **how | {of: 0.7})
    assert len(seen) == 1
    assert mask.units["b.weight"].all()
    small = natal.compact(net, mask)
    counts = [(count(copy.deepcopy(model), x).multiply_adds, size(model)) for model in (small, net)]
    assert mask.reached == {
        of: found / dense for of, found, dense in zip(("macs", "params"), *counts, strict=True)
    }
    assert mask.reached[of] <= 0.7
    refused = pytest.raises(
        NatalError, match=f"{of}={less} cannot be reached: .*see the warning for what is kept"
    )
    with pytest.warns(UserWarning, match="kept whole: 'b.weight'"), refused:
        natal.prune(net, **how | {of: less})


def test_groups_keep_what_they_are_told_to() -> None:
    model, batch = network("conv")
    how: dict[str, Any] = {"criterion": "magnitude", "granularity": "neuron", "batch": batch}
    plain = natal.prune(model, 0.6, **how)
    assert {n: int(k.sum()) for n, k in plain.units.items()} != {"0.weight": 4, "4.weight": 4, "7.weight": 4}
    even = natal.prune(model, 0.6, multiple_of=2, **how)
    assert all(int(k.sum()) % 2 == 0 or k.all() for k in even.units.values())
    assert all((even.units[n] | ~k).all() for n, k in plain.units.items())
    floors = natal.prune(model, 0.6, at_least={"4": 5, "7.weight": 0.75}, **how)
    assert [int(floors.units[n].sum()) for n in ("4.weight", "7.weight")] == [5, 6]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"macs": 0.5, "sparsity": 0.5}, "give a sparsity or a target, not both sparsity=0.5 and macs=0.5"),
        ({"macs": 0.5, "params": 0.5}, "give one target, not macs and params"),
        ({"macs": 1.5}, "macs must be the share of the dense network's that is left"),
        ({"macs": 0.001}, "macs=0.001 cannot be reached"),
        ({"multiple_of": 8}, "multiple_of and at_least are for whole neurons"),
        ({"macs": 0.5, "multiple_of": 0}, "multiple_of must be a whole number above 0, got 0"),
        ({"macs": 0.5, "at_least": {"hiden": 3}}, "did you mean 'hidden.weight'"),
    ],
)
def test_a_target_that_makes_no_sense_is_one_sentence(arguments: dict[str, Any], message: str) -> None:
    model, batch = network("mlp")
    with pytest.raises(NatalError) as error:
        natal.prune(model, criterion="magnitude", batch=batch, **arguments)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.slow
def test_half_the_cost_runs_as_it_stands(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pytest.importorskip("onnxscript")
    monkeypatch.chdir(tmp_path)
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        runpy.run_path(str(Path(__file__).parents[2] / "examples" / "half_the_cost.py"))
    said = capsys.readouterr().out
    shares = re.findall(r"'macs': '([\d.]+)%'", said)
    assert 40 < float(shares[0]) <= 50
    assert float(re.findall(r"has not seen: ([\d.]+)%", said)[0]) > 90
    assert (tmp_path / "half_the_cost.onnx").stat().st_size > 10_000


# --- files ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "kind", ["addition", "grouped, by width", "group norm", "a norm over units", "attention"]
)
def test_a_compacted_network_is_rebuilt_from_its_file(kind: str, tmp_path: Path) -> None:
    net, x, _ = linked(kind)
    _, small, _ = pruned(net, x)
    natal.save_compact(tmp_path / "small", small)
    again = natal.load_compact(tmp_path / "small", linked(kind)[0])
    assert torch.equal(again(x), small(x))
    assert list(again.state_dict()) == list(small.state_dict())


def test_a_file_of_another_architecture_is_refused(tmp_path: Path) -> None:
    natal.save_compact(tmp_path / "small", nn.Sequential(nn.Linear(3, 2)))
    with pytest.raises(NatalError, match="another architecture: '0' is a Linear there, a ReLU here"):
        natal.load_compact(tmp_path / "small", nn.Sequential(nn.ReLU()))
    with pytest.raises(NatalError, match="has no module '1'"):
        natal.load_compact(tmp_path / "small", nn.Sequential(nn.Linear(3, 2), nn.ReLU()))
    natal.save_mask(tmp_path / "mask", natal.prune(nn.Linear(3, 4), 0.5, "magnitude"))
    with pytest.raises(NatalError, match="holds a mask, not a compacted network"):
        natal.load_compact(tmp_path / "mask", nn.Linear(3, 4))
