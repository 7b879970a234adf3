"""One network at a time in plain PyTorch: the oracle.

``torch.nn`` layers, autograd and ``torch.optim.Adam`` under deterministic algorithms. Under torch 2.13.0 on an
x86-64 CPU with AVX-512 it gives the published program's results to the last bit, whatever the number of threads.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence

import torch

from natal.determinism import deterministic
from natal.lab.trial import History, Ticket, Trained, conclude
from natal.study import Training


def train(tickets: Sequence[Ticket], training: Training, device: str = "cpu") -> list[Trained]:
    """Train each ticket on its own and return the results in order.

    Full-batch Adam; after every step removed weights are set to zero again and the validation metric is measured;
    the best weights are restored before the final measurement.
    """
    with deterministic(device), torch.enable_grad():
        return [_train_one(ticket, training, device) for ticket in tickets]


def _train_one(ticket: Ticket, training: Training, device: str) -> Trained:
    started = time.perf_counter()
    net = ticket.network().to(device)
    parameters = dict(net.named_parameters())
    mask = ticket.mask.to(device)
    rows = {name: (x.to(device), y.to(device)) for name, (x, y) in ticket.rows().items()}
    (x, y), (val_x, val_y) = rows["fit"], rows["val"]
    optimiser = torch.optim.Adam(net.parameters(), lr=ticket.learning_rate)
    history = History(training.patience, training.target)
    best = {name: p.detach().clone() for name, p in parameters.items()}

    for _ in range(training.epochs):
        optimiser.zero_grad()
        loss = ticket.task.loss.value(net(x), y)
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        mask.apply_(parameters)
        with torch.no_grad():
            diverged = not math.isfinite(loss.item())
            metric = math.nan if diverged else ticket.task.metric.value(net(val_x), val_y)
        if history.record(loss.item(), metric):
            best = {name: p.detach().clone() for name, p in parameters.items()}
        if history.over:
            break

    best = {name: p.cpu() for name, p in best.items()}
    return conclude(
        ticket,
        history,
        best,
        time.perf_counter() - started,
        f"sequential engine, {device}",
    )
