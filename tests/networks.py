"""Small networks of every kind the pruning tests run over, each with a batch that fits."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor, nn

from natal.lab.networks import born
from natal.study import Network


def mlp(
    inputs: int, hidden: int, outputs: int, seed: int, dtype: torch.dtype = torch.float32
) -> nn.Sequential:
    """Return the paper's network at birth, of any size."""
    choice = Network.model_validate({"network": "mlp", "hidden": [hidden]})
    net = born(choice, (inputs,), outputs, seed, dtype)
    assert isinstance(net, nn.Sequential)
    return net


class Residual(nn.Module):
    """Stem, one residual block with batch norm and a projected skip, a linear head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 4, 3, padding=1, bias=False)
        self.conv1 = nn.Conv2d(4, 6, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(6)
        self.conv2 = nn.Conv2d(6, 6, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(6)
        self.skip = nn.Conv2d(4, 6, 1, bias=False)
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        y = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
        out: Tensor = self.head(torch.relu(y + self.skip(x)).mean((2, 3)))
        return out


class Block(nn.Module):
    """A pre-norm transformer block with attention of plain linear layers, and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(6), nn.LayerNorm(6)
        self.query, self.key, self.value, self.out = (nn.Linear(6, 6) for _ in range(4))
        self.up, self.down = nn.Linear(6, 12), nn.Linear(12, 6)
        self.dropout = nn.Dropout(0.3)
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm1(x)
        attended = nn.functional.scaled_dot_product_attention(self.query(y), self.key(y), self.value(y))
        x = x + self.dropout(self.out(attended))
        x = x + self.down(torch.nn.functional.gelu(self.up(self.norm2(x))))
        out: Tensor = self.head(x.mean(1))
        return out


class Recurrent(nn.Module):
    """A GRU over projected steps, an LSTM over what it says, and a classifier of the last step."""

    def __init__(self) -> None:
        super().__init__()
        self.project = nn.Linear(6, 8)
        self.gru = nn.GRU(8, 6, batch_first=True)
        self.lstm = nn.LSTM(6, 5, batch_first=True)
        self.head = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        steps, _ = self.gru(torch.relu(self.project(x)))
        steps, _ = self.lstm(steps)
        out: Tensor = self.head(steps[:, -1])
        return out


def deep_mlp() -> nn.Sequential:
    sizes = [5, 8, 7, 6, 3]
    layers: list[nn.Module] = []
    for a, b in itertools.pairwise(sizes):
        layers += [nn.Linear(a, b), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def conv_net() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(4, 5, 3, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(5 * 9, 8),
        nn.ReLU(),
        nn.Linear(8, 3),
    )


def _seeded(make: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        with torch.random.fork_rng():
            torch.manual_seed(1)
            return make()

    return build


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "mlp": (lambda: mlp(5, 8, 3, seed=3), (5,)),
    "deep": (_seeded(deep_mlp), (5,)),
    "conv": (_seeded(conv_net), (1, 6, 6)),
    "residual": (_seeded(Residual), (1, 6, 6)),
    "transformer": (_seeded(Block), (4, 6)),
    "recurrent": (_seeded(Recurrent), (4, 6)),
}


def network(kind: str) -> tuple[nn.Module, tuple[Tensor, Tensor]]:
    make, shape = NETWORKS[kind]
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(12, *shape, generator=generator)
    return make(), (x, torch.randint(3, (12,), generator=generator))


Layer = TypeVar("Layer", bound=nn.Module)


def layer_of(net: nn.Module, name: str, kind: type[Layer]) -> Layer:
    """Return a layer of a network by name; its kind is known, so its attributes have types."""
    found = net.get_submodule(name)
    assert isinstance(found, kind)
    return found
