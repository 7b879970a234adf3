"""Networks a study can train: a registry of functions from a row's shape to a module, and a network's birth."""

from natal.lab.networks.convolutional import conv_2, conv_4, conv_6, lenet_5, vgg_11, vgg_16
from natal.lab.networks.init import SCHEMES
from natal.lab.networks.mlp import lenet_300_100, mlp
from natal.lab.networks.network import Builder, born, network, networks, options, parameters
from natal.lab.networks.resnet import resnet_20, resnet_32, resnet_56
from natal.lab.networks.small import small_dense
from natal.lab.networks.transformer import transformer

__all__ = [
    "SCHEMES",
    "Builder",
    "born",
    "conv_2",
    "conv_4",
    "conv_6",
    "lenet_5",
    "lenet_300_100",
    "mlp",
    "network",
    "networks",
    "options",
    "parameters",
    "resnet_20",
    "resnet_32",
    "resnet_56",
    "small_dense",
    "transformer",
    "vgg_11",
    "vgg_16",
]
