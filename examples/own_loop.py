"""A lottery ticket and RigL inside a training loop of one's own: ``python examples/own_loop.py``."""

from typing import Any

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits  # type: ignore[import-untyped]
from torch import Tensor

import natal
from natal.lab.networks import born

torch.set_num_threads(1)
digits = load_digits()
x = torch.tensor(digits.data / 16, dtype=torch.float32)
y = torch.tensor(digits.target)
order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
train, test = order[:1200], order[1200:]

STEPS = 150
STRATEGIES: dict[str, Any] = {
    "random, at birth": "random",
    "lottery ticket": {"criterion": "magnitude", "at": "end", "rounds": 3, "rewind": "init"},
    "RigL": {
        "criterion": "magnitude",
        "scope": "erk",
        "at": {"from": "init", "to": "75%", "every": "20it"},
        "regrow": "gradient",
    },
}


def batch(step: int) -> Tensor:
    """Return the rows of a step, the same whenever the clock stands there."""
    return train[torch.randperm(len(train), generator=torch.Generator().manual_seed(step))[:60]]


for name, strategy in STRATEGIES.items():
    net = born("mlp", (64,), 10, seed=0)
    optimizer = torch.optim.Adam(net.parameters(), lr=3e-3)
    schedule = natal.PruningSchedule(net, optimizer, strategy, 0.97, steps=STEPS)
    while not schedule.done:
        # after a rewind the clock is back where it was, and the data with it
        rows = batch(schedule.clock)
        optimizer.zero_grad()
        F.cross_entropy(net(x[rows]), y[rows]).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
    proofs = schedule.proofs
    assert proofs["held"]
    assert proofs["rewound"]
    accuracy = (net(x[test]).argmax(1) == y[test]).double().mean()
    print(
        f"{name:16}  {schedule.mask.kept} weights left, accuracy {accuracy:.3f}, {schedule.taken} steps, "
        f"cuts to {', '.join(f'{reached:.0%}' for reached in proofs['rounds'][:3])}"
    )
