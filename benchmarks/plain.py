"""What natal's compiled engine is measured against: a plain PyTorch loop that multiplies masks in after each step."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from natal.pruning.mask import Mask


class Plain:
    """A network trained with fused Adam, its removed weights set to zero again after each step."""

    def __init__(self, net: nn.Module, mask: Mask, x: Tensor, y: Tensor, learning_rate: float) -> None:
        self.net, self.x, self.y = net, x, y
        parameters = dict(net.named_parameters())
        self.kept = [(parameters[name], kept.to(torch.float32)) for name, kept in mask.items().items()]
        self.adam = torch.optim.Adam(net.parameters(), lr=learning_rate, fused=True)

    def step(self, batch: Tensor | None) -> None:
        """Take a step on some rows, or on all."""
        x, y = (self.x, self.y) if batch is None else (self.x[batch], self.y[batch])
        self.adam.zero_grad()
        F.cross_entropy(self.net(x), y).backward()  # type: ignore[no-untyped-call]
        self.adam.step()
        with torch.no_grad():
            for weight, kept in self.kept:
                weight.mul_(kept)

    @torch.no_grad()
    def evaluate(self, x: Tensor, y: Tensor) -> tuple[float, float]:
        """Return loss and accuracy on some rows."""
        out = self.net(x)
        return F.cross_entropy(out, y).item(), (out.argmax(1) == y).float().mean().item()
