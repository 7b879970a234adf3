"""Networks a study can train."""

from __future__ import annotations

import torch
from torch import nn

from natal.errors import NatalError
from natal.lab.networks.mlp import mlp
from natal.registry import Registry
from natal.study import Network

networks: Registry[object] = Registry("network")
networks.register("mlp")(mlp)


def born(
    choice: Network, shape: tuple[int, ...], outputs: int, seed: int, dtype: torch.dtype = torch.float32
) -> nn.Module:
    """Return a newborn network."""
    networks[choice.entry]
    (hidden,) = choice.options["hidden"]
    if hidden < 1:
        raise NatalError("hidden must be positive")
    return mlp(shape[0], hidden, outputs, seed, dtype)


__all__ = ["born", "mlp", "networks"]
