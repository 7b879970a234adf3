"""A network in training: what the kernels need of it, kept together, and its numbers in and out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from natal.lab.engines.compiled.chain import lay_out
from natal.lab.engines.compiled.network import Chain, arrays, data_of, linears
from natal.lab.engines.compiled.optimisers import ADAM, ADAMW, SGD, Rule
from natal.lab.engines.compiled.steps import Data, Loss, State, evaluate, learn, room
from natal.lab.engines.compiled.vectors import Array, aligned
from natal.pruning.mask import Mask
from natal.study import Optimiser

KINDS = {"sgd": SGD, "adam": ADAM, "adamw": ADAMW}
EPSILON = 1e-8  # torch.optim's default


class Measured(NamedTuple):
    """A network on some rows: mean loss; right rows, or summed squared errors; and whether all rows get one answer.

    ``apart``: the largest difference of an output from the first row's, ``most``: the largest output, both in size.
    """

    loss: float
    score: float
    apart: float
    most: float


class Learner:
    """A network in training, on its own under a mask, from where ``net`` and new moments are.

    ``learn`` moves it, ``measure`` looks at it, ``write`` brings its numbers back into a module; ``theta`` are the
    numbers themselves, which may be copied and put back. ``size`` is the bytes it takes, working memory left out.
    """

    def __init__(
        self,
        net: nn.Module,
        chain: Chain,
        mask: Mask,
        optimiser: Optimiser,
        tokens: bool,
        loss: Loss,
        clip: float | None = None,
    ) -> None:
        self.chain, self.tokens = chain, tokens
        self.loss, self.plain = loss, loss._replace(smoothing=0.0)
        (beta1, beta2), rule = optimiser.betas, optimiser
        self.rule = Rule(
            KINDS[rule.name],
            float(rule.momentum),
            rule.nesterov,
            float(beta1),
            float(beta2),
            EPSILON,
            float(rule.weight_decay),
            float(clip or 0),
        )
        numbers = arrays(net, chain)
        self.dtype = numbers[0][0].dtype.type
        # without decay a neuron that leads nowhere stays as it was born
        self._lay_out(net, mask, drop=rule.weight_decay == 0)
        theta = self.layout.pack(numbers, self.dtype)
        gradient, first, second = aligned((3, *theta.shape), self.dtype)
        self.state = State(theta, gradient, first, second, np.ones(2))

    def _lay_out(self, net: nn.Module, mask: Mask, drop: bool) -> None:
        self.layout = lay_out(linears(net, self.chain, mask), self.tokens, drop=drop)
        self.room = room(self.layout, self.dtype)

    @property
    def theta(self) -> Array:
        """The network's numbers, as they lie in memory."""
        return self.state.theta

    @property
    def size(self) -> int:
        """Bytes of its numbers, their moments and gradient, and its pattern."""
        net = self.layout.net
        return sum(array.nbytes for array in self.state) + net.layers.nbytes + net.pattern.nbytes

    def learn(self, data: Data, order: Array, cuts: Array, rates: Array) -> Array:
        """Take steps, see `natal.lab.engines.compiled.steps.learn`; return the mean loss of each before it."""
        losses = np.zeros(len(rates))
        learn(self.layout.net, self.state, self.rule, self.loss, data, order, cuts, rates, self.room, losses)
        return losses

    def measure(self, data: Data, rows: Array, theta: Array | None = None) -> Measured:
        """Measure it, or other numbers of the same layout, on some rows of the data; the loss without smoothing."""
        results = np.zeros(4)
        numbers = self.state.theta if theta is None else theta
        evaluate(self.layout.net, numbers, self.plain, data, rows, self.room, results)
        return Measured(*results.tolist())

    def write(self, net: nn.Module, theta: Array | None = None) -> None:
        """Bring its numbers, or others of the same layout, into a module; what is not trained stays as it is there."""
        self.layout.unpack(self.state.theta if theta is None else theta, arrays(net, self.chain))

    def remask(self, net: nn.Module, mask: Mask) -> None:
        """Go on under another mask, given a module of the network's structure.

        What was kept and still is goes on with its moments. What is new begins at ``net``'s number, with none. ``net``
        is left as it was.
        """
        numbers, first, second = (
            [(w.copy(), None if b is None else b.copy()) for w, b in arrays(net, self.chain)]
            for _ in range(3)
        )
        for moments in (first, second):
            for weight, bias in moments:
                weight[...] = 0
                if bias is not None:
                    bias[...] = 0
        before = self.layout
        for vector, full in ((self.theta, numbers), (self.state.first, first), (self.state.second, second)):
            before.unpack(vector, full)
        self._lay_out(net, mask, drop=False)  # moments may still move a neuron that leads nowhere any more
        theta, m, v = (self.layout.pack(full, self.dtype) for full in (numbers, first, second))
        self.state = State(theta, np.zeros_like(theta), m, v, self.state.powers)


def batches(parts: Sequence[Tensor | None], fit: Array) -> tuple[Array, Array]:
    """Return the rows of some steps' batches, one after the other, and where each begins and ends.

    ``parts``: positions among the rows ``fit`` of each step, None for all of them, as `Trial.batches` yields them.
    """
    if parts[0] is None:
        return fit, np.tile(np.array([0, len(fit)]), (len(parts), 1))
    ends = np.cumsum([len(part) for part in parts if part is not None])
    order = torch.cat([part for part in parts if part is not None]).numpy()
    return fit[order], np.stack([np.concatenate([[0], ends[:-1]]), ends], 1)


def load() -> None:
    """Compile what training in float32 needs, or read it from disk, so that no training waits for it."""
    net = nn.Sequential(nn.Linear(1, 1), nn.ReLU(), nn.Linear(1, 1))
    chain, mask = Chain(nn.Sequential(), ("0", "2"), (True, False)), Mask({}, {})
    learner = Learner(net, chain, mask, Optimiser(), False, Loss(True, 0.0))
    data = data_of(torch.zeros(1, 1), torch.zeros(1, dtype=torch.int64), 0, torch.float32)
    rows = torch.zeros(1, dtype=torch.int64).numpy()
    learner.learn(data, *batches([None], rows), np.ones(1))
    learner.measure(data, rows)
