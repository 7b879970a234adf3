"""Residual networks for small images: ResNet-20, 32 and 56."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from natal.lab.networks.network import network
from natal.lab.options import Positive
from natal.lab.shapes import image

Shortcut = Literal["identity", "projection"]


@network("resnet-20")
def resnet_20(
    shape: tuple[int, ...], outputs: int, *, width: Positive = 16, shortcut: Shortcut = "identity"
) -> nn.Module:
    """ResNet-20 for CIFAR (He et al. 2016, section 4.2): three stages of three blocks; 0.27 million parameters.

    ``width``: maps of the first stage, doubled in each of the other two. ``shortcut``: how a block passes on its input
    where maps double and sides halve: ``identity`` takes every second pixel and pads with zero maps (option A, the
    paper's on CIFAR; 269,722 parameters on CIFAR-10), ``projection`` is a 1 x 1 convolution with batch norm (option B,
    as in the lottery tickets' and SynFlow's programs; 272,474).
    """
    return ResNet(shape, outputs, 3, width, shortcut)


@network("resnet-32")
def resnet_32(
    shape: tuple[int, ...], outputs: int, *, width: Positive = 16, shortcut: Shortcut = "identity"
) -> nn.Module:
    """ResNet-32 for CIFAR (He et al. 2016, section 4.2): three stages of five blocks; 0.46 million parameters.

    Options as of ``resnet-20``.
    """
    return ResNet(shape, outputs, 5, width, shortcut)


@network("resnet-56")
def resnet_56(
    shape: tuple[int, ...], outputs: int, *, width: Positive = 16, shortcut: Shortcut = "identity"
) -> nn.Module:
    """ResNet-56 for CIFAR (He et al. 2016, section 4.2): three stages of nine blocks; 0.85 million parameters.

    Options as of ``resnet-20``.
    """
    return ResNet(shape, outputs, 9, width, shortcut)


class ResNet(nn.Module):
    """A 3 x 3 convolution, three stages of blocks, the mean over the image, a linear layer."""

    def __init__(
        self, shape: tuple[int, ...], outputs: int, blocks: int, width: float, shortcut: Shortcut
    ) -> None:
        super().__init__()
        channels, _, _ = image(shape)
        stem, *_ = sizes = [max(1, round(width * factor)) for factor in (1, 2, 4)]
        self.conv = nn.Conv2d(channels, stem, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(stem)
        self.blocks = nn.Sequential()
        before = stem
        for stage, maps in enumerate(sizes):
            for block in range(blocks):
                halve = stage > 0 and block == 0
                self.blocks.append(Block(before, maps, 2 if halve else 1, shortcut))
                before = maps
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.output = nn.Linear(before, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Return the outputs of a batch of images."""
        x = self.blocks(torch.relu(self.norm(self.conv(x))))
        outputs: Tensor = self.output(self.pool(x).flatten(1))
        return outputs


class Block(nn.Module):
    """relu(f(x) + x), f two 3 x 3 convolutions with batch norm (He et al. 2016, figure 2)."""

    def __init__(self, before: int, maps: int, stride: int, shortcut: Shortcut) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, maps, 3, stride=stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(maps)
        self.conv2 = nn.Conv2d(maps, maps, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(maps)
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1 and shortcut == "projection":
            self.shortcut = nn.Sequential(
                nn.Conv2d(before, maps, 1, stride=stride, bias=False), nn.BatchNorm2d(maps)
            )
        elif stride > 1:
            self.shortcut = Subsample(stride, maps - before)

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's maps."""
        y = torch.relu(self.norm1(self.conv1(x)))
        return torch.relu(self.norm2(self.conv2(y)) + self.shortcut(x))


class Subsample(nn.Module):
    """Every ``stride``-th pixel of each map, and ``more`` maps of zeros, half of them before and half behind."""

    def __init__(self, stride: int, more: int) -> None:
        super().__init__()
        self.stride, self.more = stride, more

    def forward(self, x: Tensor) -> Tensor:
        """Return the smaller, deeper image."""
        before = self.more // 2
        x = x[:, :, :: self.stride, :: self.stride]
        return F.pad(x, (0, 0, 0, 0, before, self.more - before))
