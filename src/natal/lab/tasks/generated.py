"""MNIST-1D, rebuilt: signals of 40 numbers, ten shapes, moved, stretched, sheared and buried in noise."""

from __future__ import annotations

import numpy as np
import torch
from numpy.random import RandomState
from numpy.typing import NDArray

from natal.lab.tasks.data import Data
from natal.lab.tasks.task import task

Signal = NDArray[np.float64]

SHAPES = (
    (5, 6, 6.5, 6.75, 7, 7, 7, 7, 6.75, 6.5, 6, 5),
    (5, 3, 3, 3.4, 3.8, 4.2, 4.6, 5, 5.4, 5.8, 5, 5),
    (5, 6, 6.5, 6.5, 6, 5.25, 4.75, 4, 3.5, 3.5, 4, 5),
    (5, 6, 6.5, 6.5, 6, 5, 5, 6, 6.5, 6.5, 6, 5),
    (5, 4.4, 3.8, 3.2, 2.6, 2.6, 5, 5, 5, 5, 5, 5),
    (5, 3, 3, 3, 3, 5, 6, 6.5, 6.5, 6, 4.5, 5),
    (5, 4, 3.5, 3.25, 3, 3, 3, 3, 3.25, 3.5, 4, 5),
    (5, 7, 7, 6.6, 6.2, 5.8, 5.4, 5, 4.6, 4.2, 5, 5),
    (5, 4, 3.5, 3.5, 4, 5, 5, 4, 3.5, 3.5, 4, 5),
    (5, 4, 3.5, 3.5, 4, 5, 5, 5, 5, 4.7, 4.3, 5),
)
"""The ten digits as lines of twelve points."""

SEED = 42
"""The published data set's."""


@task("mnist-1d", loss="cross-entropy", metric="accuracy", learning_rate=1e-2)
def mnist_1d() -> Data:
    """Tell ten one-dimensional shapes apart: MNIST-1D (Greydanus & Kobak 2024), 4,000 training and 1,000 test rows.

    The same rows for every seed: those of the published data set, generated again with its seed, to float32's rounding.
    """
    rng = RandomState(SEED)
    shapes = np.array(SHAPES)
    shapes = (shapes - shapes.mean(1, keepdims=True)) / shapes.std(1, keepdims=True)
    shapes = (shapes - shapes[:, :1]) / 6
    classes = np.repeat(np.arange(10), 500)
    signals = np.stack([_signal(shapes[c], rng) for c in classes])
    order = rng.permutation(len(classes))
    signals = ((signals - signals.mean()) / signals.std()).astype(np.float32)
    x, y = torch.from_numpy(signals[order]), torch.from_numpy(classes[order])
    return Data(x[:4000], y[:4000], x[4000:], y[4000:], outputs=10)


def _signal(shape: Signal, rng: RandomState) -> Signal:
    """Return one row: the shape in front of 36 to 60 zeros, stretched, scaled, moved, with noise, sheared, sampled."""
    from scipy.ndimage import gaussian_filter1d  # half a second, which only those who draw it wait for

    padding = 36 + int(rng.rand() * 25)
    # what is not exactly zero belongs to the shape
    x = _sampled(np.concatenate([shape + 1e-8, np.zeros(padding)]), 72)
    x = x * (1 + 0.4 * (rng.rand() - 0.5))
    x = np.roll(x, rng.choice(48))
    x = np.where(x != 0, x, gaussian_filter1d(0.25 * rng.randn(72), 2))
    x = x + 0.02 * rng.randn(72)
    x = x - 0.75 * (rng.rand() - 0.5) * np.linspace(-0.5, 0.5, 72)
    return _sampled(x, 40)


def _sampled(x: Signal, points: int) -> Signal:
    """Return a signal at ``points`` even places, by straight lines between its own."""
    return np.interp(np.linspace(0, 1, points), np.linspace(0, 1, len(x)), x)
