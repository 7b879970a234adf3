"""The study's network and its birth: architecture and initialisation.

One hidden layer of ReLU neurons, as plain ``torch.nn`` modules named ``hidden`` and ``output``.
"""

from __future__ import annotations

import math
from collections import OrderedDict

import torch
from torch import nn

from natal.streams import stream


def mlp(
    inputs: int, hidden: int, outputs: int, seed: int, dtype: torch.dtype = torch.float32
) -> nn.Sequential:
    """Return a newborn ``inputs -> hidden -> outputs`` ReLU network.

    Every weight and bias is U(-1/sqrt(fan_in), 1/sqrt(fan_in)), ``torch.nn.Linear``'s own initialisation, drawn
    in float32 from the stream ``init`` of ``seed``, first layer then second: the same bits as building the layers
    after ``torch.manual_seed(seed)``, without touching the global generator.
    """
    with torch.random.fork_rng(
        devices=[]
    ):  # nn.Linear draws from the caller's generator; give it back as it was
        sizes = ((inputs, hidden), (hidden, outputs))
        layers = [nn.Linear(*size, dtype=torch.float32) for size in sizes]  # whatever the caller's default is
    net = nn.Sequential(OrderedDict(hidden=layers[0], relu=nn.ReLU(), output=layers[1]))
    generator = stream(seed, "init")
    for layer in layers:
        nn.init.kaiming_uniform_(layer.weight, a=math.sqrt(5), generator=generator)
        bound = 1 / math.sqrt(layer.in_features)
        nn.init.uniform_(layer.bias, -bound, bound, generator=generator)
    return net.to(dtype)
