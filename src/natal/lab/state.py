"""A network at one moment of a training: what the next stage of a chain starts from, and what a user can look at."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor


@dataclass(frozen=True)
class State:
    """A network at one moment of a training. All tensors lie on the CPU, contiguous, and share memory with nothing.

    ``step``: optimiser steps taken, on the clock of its training. ``tensors``: parameters and buffers, as the
    ``state_dict`` names them, removed weights exactly 0. ``optimiser``: what it remembers, ``"PARAMETER/exp_avg"``,
    ``"PARAMETER/exp_avg_sq"`` and ``"PARAMETER/step"`` of Adam, ``"PARAMETER/momentum_buffer"`` of SGD, 0 where a
    weight is removed; empty: a fresh optimiser. ``mask``: what is kept of each masked parameter, as `Mask.items` gives
    it.
    ``streams``: the states of the generators ``augment`` and ``dropout`` (``dropout:cuda`` on an accelerator), those
    that were drawn from; without one, a stream begins afresh. The order of the data needs none: it is drawn again and
    ``step`` batches of it are passed over.

    To go on from other circumstances, replace fields: ``replace(state, optimiser={})`` rewinds weights with a fresh
    optimiser, ``replace(state, step=0, optimiser={}, streams={})`` keeps weights and starts the clock again.
    """

    step: int
    tensors: Mapping[str, Tensor]
    optimiser: Mapping[str, Tensor] = field(default_factory=dict)
    mask: Mapping[str, Tensor] = field(default_factory=dict)
    streams: Mapping[str, Tensor] = field(default_factory=dict)
