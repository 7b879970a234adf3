"""Half the multiply-adds of a small residual CNN on real digits, trained: ``python examples/half_the_cost.py``."""

import logging
import warnings

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import natal
from natal.lab.tasks import load


class Residual(nn.Module):
    """A stem, two blocks around which a shortcut leads, a mean over the picture, a linear layer."""

    def __init__(self, width: int = 24) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(1, width, 3, padding=1), nn.Linear(width, 10)
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(width, 2 * width, 3, padding=1, bias=False), nn.BatchNorm2d(2 * width), nn.ReLU(),
                nn.Conv2d(2 * width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width),
            )
            for _ in range(2)
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits of a batch of pictures."""
        x = self.stem(x)
        for block in self.blocks:
            x = torch.relu(x + block(x))
        logits: Tensor = self.head(x.mean((2, 3)))
        return logits


def accuracy(net: nn.Module, x: Tensor, y: Tensor) -> float:
    """Return the share of pictures that are told apart."""
    with torch.no_grad():
        return float((net.eval()(x).argmax(1) == y).double().mean())


torch.manual_seed(0)
digits = load("digits", 0, 0.1).data
x, y, test_x, test_y = digits.inputs, digits.targets, digits.test_inputs, digits.test_targets

net = Residual()

mask = natal.prune(net, macs=0.5, criterion="snip", batch=(x[:256], y[:256]), multiple_of=4)
print("reached:", {name: f"{share:.1%}" for name, share in mask.reached.items()})
ticket = natal.apply(net, mask)
compacted = natal.compact_training(ticket, mask, torch.optim.Adam(ticket.parameters(), lr=3e-3))
small, optimizer = compacted.model, compacted.optimizer
assert optimizer is not None
for _ in range(8):
    for rows in torch.split(torch.randperm(len(x)), 64):
        optimizer.zero_grad()
        F.cross_entropy(small.train()(x[rows]), y[rows]).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
print(f"accuracy on digits it has not seen: {accuracy(small, test_x, test_y):.1%}")
print(natal.savings(net, small, x[:64]))
# it would tell of every library that it does not need, and of its own deprecations
warnings.simplefilter("ignore", FutureWarning)
logging.getLogger("torch.onnx").setLevel(logging.ERROR)
torch.onnx.export(small.eval(), (x[:2],), "half_the_cost.onnx", dynamo=True, verbose=False)
