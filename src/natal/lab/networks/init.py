"""Initialisation as a key: schemes that redraw a network's weights, and the factor that scales them."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Generator, Tensor, nn

from natal.determinism import one_thread
from natal.errors import NatalError
from natal.lab.networks.draws import SameEverywhere
from natal.registry import did_you_mean
from natal.streams import stream


def _kaiming_normal(w: Tensor, generator: Generator) -> None:
    """N(0, 2 / fan_in): He et al. 2015, section 2.2."""
    nn.init.kaiming_normal_(w, generator=generator)


def _glorot_normal(w: Tensor, generator: Generator) -> None:
    """N(0, 2 / (fan_in + fan_out)): Glorot & Bengio 2010, section 4.2, with a normal distribution."""
    nn.init.xavier_normal_(w, generator=generator)


def _orthogonal(w: Tensor, generator: Generator) -> None:
    """Rows, or columns where they are fewer, orthonormal: Saxe et al. 2014, section 3.

    Decomposed in float64 and rounded to float32, so that the sums of a processor's library do not show.
    """
    drawn = torch.empty(len(w), w[0].numel(), dtype=torch.float32).normal_(generator=generator)
    tall = drawn.double() if len(drawn) >= drawn.shape[1] else drawn.double().T
    with one_thread():
        q, r = torch.linalg.qr(tall)
    q *= r.diag().sign()  # uniform over all such matrices
    w.copy_((q if len(drawn) >= drawn.shape[1] else q.T).float().view_as(w))


SCHEMES: dict[str, Callable[[Tensor, Generator], None] | None] = {
    "default": None,
    "kaiming-normal": _kaiming_normal,
    "glorot-normal": _glorot_normal,
    "orthogonal": _orthogonal,
}
"""How initial weights are drawn, by name; None leaves them as the network's own layers drew them."""


@torch.no_grad()
def redraw(net: nn.Module, scheme: str, scale: float, seed: int) -> None:
    """Draw the weights of a newborn network anew, from a stream of its own, and multiply them by ``scale``.

    Weights are the parameters of two or more dimensions: matrices, kernels, embeddings. The biases beside them become
    zero, unless the scheme is ``default``. Norms keep scale 1 and shift 0.
    """
    if scheme not in SCHEMES:
        raise NatalError(f"unknown initialisation {scheme!r}{did_you_mean(scheme, SCHEMES)}")
    if not (math.isfinite(scale) and scale > 0):
        raise NatalError(f"the scale of an initialisation must be a positive number, got {scale!r}")
    draw, generator = SCHEMES[scheme], stream(seed, "init-scheme")
    parameters = dict(net.named_parameters())
    for name, p in parameters.items():
        if p.ndim < 2:
            continue
        if draw:
            with SameEverywhere(normal=True):
                draw(p, generator)
            if (bias := parameters.get(name.removesuffix("weight") + "bias")) is not None:
                bias.zero_()
        if scale != 1:
            p.mul_(scale)
