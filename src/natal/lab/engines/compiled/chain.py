"""A chain of linear layers laid out for the kernels: which numbers are computed with, and where each lies.

The numbers of a network are one vector ``theta``, and its optimiser's lie as they do. A neuron that
nothing kept leads away from is left out: it never gets a gradient. What is left of a layer is one of two kinds:

- dense: a matrix in ``theta`` itself, its rows padded to whole vectors, 0 in its gaps where a weight is not kept;
- sparse: fewer than `SPARSE_BELOW` of its weights are kept, in compressed rows, and products skip the others.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from natal.lab.engines.compiled.vectors import LANES, Array, aligned, wide

DENSE, SPARSE = range(2)

SPARSE_BELOW = 0.45
"""The density below which skipping zeros is faster than a dense product; `benchmarks/density.py` measures it. The same
on every machine, for it decides the order of a gradient's sum."""


@dataclass(frozen=True)
class Linear:
    """The structure of a layer a' = relu(W a + b), or without relu.

    ``kept``: (outputs, inputs), true where a weight is kept; ``kept_bias``: (outputs,), None without biases.
    """

    kept: Array
    kept_bias: Array | None
    relu: bool


LAYER = np.dtype(
    [
        (name, np.int64)
        for name in (
            "inputs", "outputs",  # numbers of live neurons
            "kind", "relu",
            "weights", "kept",  # where its weights begin in theta, and how many numbers they take there
            "gaps",  # how many of these are none that is kept
            "biases", "kept_biases",  # the same for biases
            "pattern",  # where its pattern begins: a dense matrix's gaps, or compressed rows
            "bias_places",  # where the neurons of the biases begin in the pattern
            "values",  # where its weights (sparse) begin among the room's, in transposed order
            "before", "after",  # where its inputs and outputs begin among activations, in neurons
        )
    ]
)  # fmt: skip
"""A layer as the kernels see it: whole numbers. Theta, pattern and room are one array each for all layers."""


class Net(NamedTuple):
    """The structure of a chain for the kernels.

    ``pattern``, of a dense layer: the places in its matrix of what is no kept weight, none where all are kept; of a
    sparse one: rows' starts, columns, and for the transposed matrix rows' starts, columns, and each weight's number.
    """

    layers: Array
    pattern: Array
    block: int


@dataclass(frozen=True)
class Layout:
    """Where the numbers of a chain lie; ``tokens``: the first layer's inputs are positions of ones.

    ``live``: the neurons computed, of each layer's inputs and of the last one's outputs. ``size``: of theta;
    ``values``: of the weights that the room holds in transposed order.
    """

    net: Net
    tokens: bool
    live: tuple[Array, ...]
    kept: tuple[tuple[Array, Array | None], ...]
    size: int
    values: int

    def places(self) -> Iterator[tuple[tuple[Array, Array], tuple[Array, Array]]]:
        """Yield for each layer's weight and bias where its live numbers are in it and where in theta.

        Both as flat indices, in the same order; a layer without biases has none.
        """
        for n, (layer, (kept, kept_bias)) in enumerate(zip(self.net.layers, self.kept, strict=True)):
            into, out = self.live[n], self.live[n + 1]
            turned = self.tokens and n == 0  # its matrix is (input, output)
            of = kept[np.ix_(out, into)]
            o, i = np.nonzero(of.T)[::-1] if turned else np.nonzero(of)
            row, column, columns = (i, o, len(out)) if turned else (o, i, len(into))
            at = np.arange(len(o)) if layer["kind"] == SPARSE else row * wide(columns) + column
            weights = out[o] * kept.shape[1] + into[i], layer["weights"] + at
            neurons = out[np.flatnonzero(kept_bias[out])] if kept_bias is not None else np.zeros(0, np.int64)
            yield weights, (neurons, layer["biases"] + np.arange(len(neurons)))

    def pack(self, numbers: Sequence[tuple[Array, Array | None]], dtype: type) -> Array:
        """Return theta for each layer's (weight, bias), or an optimiser's moments for moments of their shapes."""
        theta = aligned((self.size,), dtype)
        for (weight, bias), (of_weight, of_bias) in zip(numbers, self.places(), strict=True):
            theta[of_weight[1]] = weight.reshape(-1)[of_weight[0]]
            if bias is not None:
                theta[of_bias[1]] = bias[of_bias[0]]
        return theta

    def unpack(self, theta: Array, numbers: Sequence[tuple[Array, Array | None]]) -> None:
        """Write theta back into each layer's (weight, bias); what has no place in theta stays as it is."""
        for (weight, bias), (of_weight, of_bias) in zip(numbers, self.places(), strict=True):
            weight.reshape(-1)[of_weight[0]] = theta[of_weight[1]]
            if bias is not None:
                bias[of_bias[0]] = theta[of_bias[1]]


def lay_out(chain: Sequence[Linear], tokens: bool, *, drop: bool = True) -> Layout:
    """Return the layout of a chain. ``drop``: leave out neurons that nothing kept leads away from.

    (With weight decay such a neuron's weights still change, so they are kept.)
    """
    live = [np.arange(chain[-1].kept.shape[0])]
    for layer in reversed(chain[1:]):
        used = layer.kept[live[0]].any(0) if drop else np.ones(layer.kept.shape[1], bool)
        live.insert(0, np.flatnonzero(used))
    live.insert(0, np.arange(chain[0].kept.shape[1]))

    layers = np.zeros(len(chain), LAYER)
    pattern: list[Array] = []
    theta = indices = values = neurons = 0
    for n, linear in enumerate(chain):
        layer, turned = layers[n], tokens and n == 0
        of = linear.kept[np.ix_(live[n + 1], live[n])]
        outputs, inputs = of.shape
        matrix = of.T if turned else of
        if turned or of.all() or of.mean() >= SPARSE_BELOW:
            kind, room = DENSE, 0
            kept = matrix.shape[0] * wide(matrix.shape[1])
            padded = np.pad(matrix, ((0, 0), (0, wide(matrix.shape[1]) - matrix.shape[1])))
            found = [] if of.all() else [np.flatnonzero(~padded)]
            layer["gaps"] = sum(map(len, found))
        else:
            kind = SPARSE
            row, column = np.nonzero(of)
            kept, room = len(row), len(row) if n > 0 else 0
            order = np.argsort(column, kind="stable")
            starts = np.searchsorted(row, np.arange(outputs + 1))
            turned_starts = np.searchsorted(column[order], np.arange(inputs + 1))
            found = [starts, column, turned_starts, row[order], order]
        if linear.kept_bias is not None:
            biases = np.flatnonzero(linear.kept_bias[live[n + 1]])
        else:
            biases = np.zeros(0, np.int64)
        layer["inputs"], layer["outputs"], layer["kind"], layer["relu"] = inputs, outputs, kind, linear.relu
        layer["weights"], layer["kept"] = theta, kept
        layer["biases"], layer["kept_biases"] = theta + wide(kept), len(biases)
        layer["pattern"], layer["values"] = indices, values
        pattern += [*found, biases]
        layer["bias_places"] = indices + sum(map(len, found))
        layer["before"], layer["after"] = neurons, neurons + wide(inputs)
        theta += wide(kept) + wide(len(biases))
        indices += sum(map(len, found)) + len(biases)
        values += wide(room)
        neurons += wide(inputs)
    net = Net(layers, np.concatenate(pattern).astype(np.int32), _block(layers))
    kept_ = tuple((linear.kept, linear.kept_bias) for linear in chain)
    return Layout(net, tokens, tuple(live), kept_, theta, values)


def _block(layers: Array) -> int:
    """Return how many rows of data are worked through at a time: whose activations stay in a core's own cache."""
    neurons = int(layers["inputs"].sum()) + int(layers["outputs"][-1])
    return int(np.clip(2**18 // max(neurons, 1) // (4 * LANES), 1, 3)) * 4 * LANES
