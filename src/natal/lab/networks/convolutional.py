"""Plain convolutional networks: LeNet-5, Conv-2/4/6 and VGG."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from torch import nn

from natal.lab.networks.network import network
from natal.lab.options import Positive
from natal.lab.shapes import image


@network("lenet-5")
def lenet_5(shape: tuple[int, ...], outputs: int, *, caffe: bool = False, width: Positive = 1.0) -> nn.Module:
    """LeNet-5: two convolutions of 5 x 5, each with pooling, and fully connected layers.

    LeCun et al. 1998, figure 2, with full connections between the maps, ReLU and max pooling: 6 and 16 maps, the first
    padded by 2, then 120, 84 and the outputs; 61,470 weights and 236 biases on MNIST. ``caffe``: the variant of
    Caffe's examples that SNIP prunes (Lee et al. 2019, table 1): 20 and 50 maps, no padding and no activation after the
    convolutions, 500 hidden neurons; 430,500 weights and 580 biases. ``width``: factor on maps and neurons, rounded.
    """
    maps1, maps2, *hidden = [_scaled(n, width) for n in ((20, 50, 500) if caffe else (6, 16, 120, 84))]
    channels, *sides = image(shape, 16 if caffe else 12)
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    layers["conv1"] = nn.Conv2d(channels, maps1, 5, padding=0 if caffe else 2)
    if not caffe:
        layers["relu1"] = nn.ReLU()
    layers["pool1"] = nn.MaxPool2d(2)
    layers["conv2"] = nn.Conv2d(maps1, maps2, 5)
    if not caffe:
        layers["relu2"] = nn.ReLU()
    layers["pool2"] = nn.MaxPool2d(2)
    height, breadth = (((side - (4 if caffe else 0)) // 2 - 4) // 2 for side in sides)
    return nn.Sequential(layers | _head(maps2 * height * breadth, hidden, outputs))


def _conv(shape: tuple[int, ...], outputs: int, width: float, blocks: int) -> nn.Module:
    channels, height, breadth = image(shape, 2**blocks)
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    for block in range(1, blocks + 1):
        maps = _scaled(2 ** (block - 1), width)
        for number in (2 * block - 1, 2 * block):
            layers[f"conv{number}"] = nn.Conv2d(channels, maps, 3, padding=1)
            layers[f"relu{number}"] = nn.ReLU()
            channels = maps
        layers[f"pool{block}"] = nn.MaxPool2d(2)
    rest = channels * (height >> blocks) * (breadth >> blocks)
    return nn.Sequential(layers | _head(rest, [_scaled(4, width)] * 2, outputs))


@network("conv-2")
def conv_2(shape: tuple[int, ...], outputs: int, *, width: Positive = 64) -> nn.Module:
    """Conv-2 (Frankle & Carbin 2019, figure 2): two 3 x 3 convolutions, pooling, 256, 256 and the outputs.

    4,300,992 weights on CIFAR-10, 38,592 of them in convolutions. ``width``: maps of the first convolution; the hidden
    layers have four times as many neurons.
    """
    return _conv(shape, outputs, width, 1)


@network("conv-4")
def conv_4(shape: tuple[int, ...], outputs: int, *, width: Positive = 64) -> nn.Module:
    """Conv-4 (Frankle & Carbin 2019, figure 2): four 3 x 3 convolutions, pooling after each two, 256, 256, outputs.

    2,425,024 weights on CIFAR-10, 259,776 of them in convolutions. ``width``: maps of the first convolution, doubled
    after each pooling; the hidden layers have four times as many neurons.
    """
    return _conv(shape, outputs, width, 2)


@network("conv-6")
def conv_6(shape: tuple[int, ...], outputs: int, *, width: Positive = 64) -> nn.Module:
    """Conv-6 (Frankle & Carbin 2019, figure 2): six 3 x 3 convolutions, pooling after each two, 256, 256, outputs.

    2,261,184 weights on CIFAR-10, 1,144,512 of them in convolutions. The paper prints 1.1 million for the
    convolutions, as here, but 1.7 million in all, which its appendix H.1 does not give. ``width``: maps of the first
    convolution, doubled after each pooling; the hidden layers have four times as many neurons.
    """
    return _conv(shape, outputs, width, 3)


def _vgg(
    shape: tuple[int, ...], outputs: int, width: float, batch_norm: bool, convolutions: Sequence[int]
) -> nn.Module:
    channels, _, _ = image(shape, 16)
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    number = 0
    for stage, count in enumerate(convolutions):
        if stage:
            layers[f"pool{stage}"] = nn.MaxPool2d(2)
        maps = _scaled(min(2**stage, 8), width)
        for _ in range(count):
            number += 1
            layers[f"conv{number}"] = nn.Conv2d(channels, maps, 3, padding=1)
            if batch_norm:
                layers[f"norm{number}"] = nn.BatchNorm2d(maps)
            layers[f"relu{number}"] = nn.ReLU()
            channels = maps
    layers["pool"] = nn.AdaptiveAvgPool2d(1)
    layers["flatten"] = nn.Flatten()
    layers["output"] = nn.Linear(channels, outputs)
    return nn.Sequential(layers)


@network("vgg-11")
def vgg_11(
    shape: tuple[int, ...], outputs: int, *, width: Positive = 64, batch_norm: bool = True
) -> nn.Module:
    """VGG-11 for CIFAR (Simonyan & Zisserman 2015, table 1, column A): eight 3 x 3 convolutions, one linear layer.

    Batch norm, four poolings, then the mean over what is left, as in the lottery tickets' and SynFlow's programs:
    9,231,114 parameters on CIFAR-10. ``width``: maps of the first convolution, doubled after each
    pooling, up to eight times.
    """
    return _vgg(shape, outputs, width, batch_norm, (1, 1, 2, 2, 2))


@network("vgg-16")
def vgg_16(
    shape: tuple[int, ...], outputs: int, *, width: Positive = 64, batch_norm: bool = True
) -> nn.Module:
    """VGG-16 for CIFAR (Simonyan & Zisserman 2015, table 1, column D): thirteen 3 x 3 convolutions, one linear layer.

    Batch norm, four poolings, then the mean over what is left, as in the lottery tickets' and SynFlow's programs:
    14,728,266 parameters on CIFAR-10. ``width``: maps of the first convolution, doubled after each pooling, up to
    eight times.
    """
    return _vgg(shape, outputs, width, batch_norm, (2, 2, 3, 3, 3))


def _head(inputs: int, hidden: Sequence[int], outputs: int) -> OrderedDict[str, nn.Module]:
    """Return the fully connected end of a network: hidden ReLU layers and the output."""
    layers: OrderedDict[str, nn.Module] = OrderedDict(flatten=nn.Flatten())
    for number, size in enumerate(hidden, start=1):
        n = str(number) if len(hidden) > 1 else ""
        layers[f"hidden{n}"] = nn.Linear(inputs, size)
        layers[f"hidden{n}_relu"] = nn.ReLU()
        inputs = size
    layers["output"] = nn.Linear(inputs, outputs)
    return layers


def _scaled(size: float, width: float) -> int:
    return max(1, round(size * width))
