"""The network's birth: torch.nn.Linear's own bits, from a stream of its own."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from natal.lab.networks import mlp


@pytest.mark.parametrize("seed", [42, 123, 7, 0, 2**32 - 1])
@pytest.mark.parametrize(
    ("inputs", "hidden", "outputs", "parameters"), [(194, 128, 97, 37473), (20, 128, 1, 2817)]
)
def test_the_bits_are_those_of_linear_after_manual_seed(
    seed: int, inputs: int, hidden: int, outputs: int, parameters: int
) -> None:
    torch.manual_seed(seed)
    first, second = nn.Linear(inputs, hidden), nn.Linear(hidden, outputs)
    net = dict(mlp(inputs, hidden, outputs, seed).named_parameters())
    assert sum(p.numel() for p in net.values()) == parameters
    expected = {
        "hidden.weight": first.weight,
        "hidden.bias": first.bias,
        "output.weight": second.weight,
        "output.bias": second.bias,
    }
    assert list(net) == list(expected)
    for name, p in expected.items():
        assert torch.equal(net[name], p), name


def test_the_callers_generator_and_default_dtype_change_nothing() -> None:
    born = mlp(5, 4, 3, seed=1)
    torch.manual_seed(99)
    before = torch.get_rng_state()
    torch.set_default_dtype(torch.float64)
    try:
        again = mlp(5, 4, 3, seed=1)
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(torch.get_rng_state(), before)
    for p, q in zip(born.parameters(), again.parameters(), strict=True):
        assert p.dtype == q.dtype
        assert torch.equal(p, q)


def test_a_float64_network_has_the_float32_numbers() -> None:
    single, double = mlp(5, 4, 3, seed=1), mlp(5, 4, 3, seed=1, dtype=torch.float64)
    for p, q in zip(single.parameters(), double.parameters(), strict=True):
        assert q.dtype == torch.float64
        assert torch.equal(p.double(), q)


def test_the_network_computes_its_formula() -> None:
    net, x = mlp(2, 3, 1, seed=0), torch.tensor([[1.0, -2.0]])
    w1, b1, w2, b2 = net.parameters()
    assert torch.allclose(net(x), torch.clamp(x @ w1.T + b1, min=0) @ w2.T + b2)
