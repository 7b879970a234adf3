"""Training: ``train(tickets, training)`` turns tickets into trained networks, by one of two engines.

``sequential`` trains one network at a time in plain PyTorch: the oracle, equal to the published program to the last
bit. ``batched`` trains many at once with a hand-written backward pass: the fast path, proven against the oracle.
"""

from natal.lab.engines import compiled, kernels, torch
from natal.lab.trial import Ticket, Trained

ENGINES = {"batched": compiled.train, "sequential": torch.train}

__all__ = ["ENGINES", "Ticket", "Trained", "compiled", "kernels", "torch"]
