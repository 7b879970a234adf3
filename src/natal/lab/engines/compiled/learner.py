"""A network in training: what the kernels need of it, kept together, and its numbers in and out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
MOMENTS = {"sgd": ("momentum_buffer",), "adam": ("exp_avg", "exp_avg_sq"), "adamw": ("exp_avg", "exp_avg_sq")}
"""What ``torch.optim`` calls the moments of an optimiser, the first and the second."""

Numbers = list[tuple[Array, Array | None]]
"""Each layer's (weight, bias), or what an optimiser remembers of them."""

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
    """A network in training, on its own under a mask, from where ``net`` is.

    ``remembered``: moments as `natal.lab.state.State` names them, else new ones. ``remasked``: whether it will go on
    under other masks. ``learn`` moves it, ``measure`` looks at it, ``write`` brings its numbers back into a module;
    ``theta`` are the numbers themselves, which may be copied and put back. ``size`` is the bytes it takes, working
    memory left out.
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
        remembered: Mapping[str, Tensor] | None = None,
        remasked: bool = False,
    ) -> None:
        self.chain, self.tokens = chain, tokens
        self.moments = MOMENTS[optimiser.name] if optimiser.name != "sgd" or optimiser.momentum else ()
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
        remembered = remembered or {}
        moments = [self._moments(numbers, remembered, key) for key in self.moments]
        # without decay or moments a neuron that leads nowhere stays as it was born
        self._lay_out(net, mask, drop=rule.weight_decay == 0 and not remasked)
        if any(self._left_out(full) for full in moments):
            self._lay_out(net, mask, drop=False)
        theta = self.layout.pack(numbers, self.dtype)
        gradient, first, second = aligned((3, *theta.shape), self.dtype)
        for vector, full in zip((first, second), moments, strict=False):
            vector[:] = self.layout.pack(full, self.dtype)
        self.taken = max((int(t) for name, t in remembered.items() if name.endswith("/step")), default=0)
        powers = np.ones(2)
        for n, beta in enumerate((beta1, beta2)):
            for _ in range(self.taken):
                powers[n] *= beta  # as a step does it, rounding by rounding
        self.state = State(theta, gradient, first, second, powers)

    def _moments(self, numbers: Numbers, remembered: Mapping[str, Tensor], key: str) -> Numbers:
        """Return one of the optimiser's moments of every layer, 0 where it remembers none."""

        def of(name: str, like: Array) -> Array:
            found = remembered.get(f"{name}/{key}")
            return np.zeros_like(like) if found is None else found.numpy().astype(like.dtype)

        return [
            (of(f"{layer}.weight", weight), None if bias is None else of(f"{layer}.bias", bias))
            for layer, (weight, bias) in zip(self.chain.layers, numbers, strict=True)
        ]

    def _left_out(self, full: Numbers) -> bool:
        """Whether any of these numbers is not 0 and has no place in theta."""
        rest = [(weight.copy(), None if bias is None else bias.copy()) for weight, bias in full]
        self.layout.unpack(np.zeros(self.layout.size, self.dtype), rest)
        return any(weight.any() or (bias is not None and bias.any()) for weight, bias in rest)

    def _lay_out(self, net: nn.Module, mask: Mask, drop: bool) -> None:
        self.layout = lay_out(linears(net, self.chain, mask), self.tokens, drop=drop)
        self.room = room(self.layout, self.dtype)
        gaps = np.ones(self.layout.size, bool)
        for weight, bias in self.layout.places():
            gaps[weight[1]] = gaps[bias[1]] = False
        self._gaps = np.flatnonzero(gaps)

    @property
    def holds(self) -> bool:
        """Whether what it computes with is 0 wherever no weight is kept: nothing else has a place in it.

        Of numbers that have overflowed it is not asked: 0 times infinity is not 0.
        """
        theta = self.state.theta
        return not theta[self._gaps].any() or not bool(np.isfinite(theta).all())

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
        self.taken += len(rates)
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

    def read(self, net: nn.Module) -> Array:
        """Return the numbers of a module as ``theta`` has them."""
        return self.layout.pack(arrays(net, self.chain), self.dtype)

    @property
    def remembers(self) -> bool:
        """Whether its optimiser has taken a step, here or in the training that it goes on with."""
        return self.taken > 0 or bool(self.state.first.any())

    def remembered(self) -> dict[str, Tensor]:
        """Return the optimiser's moments as `natal.lab.state.State` names them; nothing before the first step."""
        found: dict[str, Tensor] = {}
        if not self.remembers:
            return found
        for key, full in zip(self.moments, self._unpacked_moments(), strict=True):
            for layer, (weight, bias) in zip(self.chain.layers, full, strict=True):
                for leaf, moment in (("weight", weight), ("bias", bias)):
                    if moment is not None:
                        found[f"{layer}.{leaf}/{key}"] = torch.from_numpy(moment)
                        if self.rule.kind != SGD:
                            found[f"{layer}.{leaf}/step"] = torch.tensor(
                                float(self.taken), dtype=torch.float32
                            )
        return found

    def _unpacked_moments(self) -> list[Numbers]:
        """Return the optimiser's moments of every layer, 0 where a weight is removed."""
        shapes = [(kept, kept_bias) for kept, kept_bias in self.layout.kept]
        found = []
        for vector in (self.state.first, self.state.second)[: len(self.moments)]:
            full: Numbers = [
                (np.zeros(w.shape, self.dtype), None if b is None else np.zeros(b.shape, self.dtype))
                for w, b in shapes
            ]
            self.layout.unpack(vector, full)
            found.append(full)
        return found

    def dense_gradient(self, net: nn.Module, data: Data, batch: Array) -> dict[str, Tensor]:
        """Return the gradient of every weight on a batch, of the removed ones too, at the numbers of ``net``.

        It is that of a network which keeps everything and takes a step of nothing, so its bits are the kernels' own.
        """
        whole = Learner(net, self.chain, Mask({}), Optimiser(name="sgd"), self.tokens, self.loss)
        whole.learn(data, batch, np.array([[0, len(batch)]]), np.zeros(1))
        numbers = [
            (np.zeros_like(w), None if b is None else np.zeros_like(b)) for w, b in arrays(net, self.chain)
        ]
        whole.layout.unpack(whole.state.gradient, numbers)
        return {
            f"{layer}.weight": torch.from_numpy(w)
            for layer, (w, _) in zip(self.chain.layers, numbers, strict=True)
        }

    def remask(self, net: nn.Module, mask: Mask, regrown: Mapping[str, Tensor] | None = None) -> None:
        """Go on under another mask, given a module of the network's structure.

        What was kept and still is goes on with its moments. What is new begins at ``net``'s number, with none; so does
        what is ``regrown``, whether or not it was kept until now. ``net`` is left as it was.
        """
        if regrown:
            without = {n: kept & ~regrown[n] if n in regrown else kept for n, kept in mask.weights.items()}
            self.remask(net, Mask(without, mask.biases))
        numbers: Numbers = [(w.copy(), None if b is None else b.copy()) for w, b in arrays(net, self.chain)]
        self.layout.unpack(self.theta, numbers)
        moments = self._unpacked_moments()
        self._lay_out(net, mask, drop=False)  # moments may still move a neuron that leads nowhere any more
        theta = self.layout.pack(numbers, self.dtype)
        gradient, first, second = aligned((3, *theta.shape), self.dtype)
        for vector, full in zip((first, second), moments, strict=False):
            vector[:] = self.layout.pack(full, self.dtype)
        self.state = State(theta, gradient, first, second, self.state.powers)


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
