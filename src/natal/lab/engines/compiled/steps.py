"""Steps of training and evaluations of a chain of layers, compiled: forward, backward, and the optimiser's step.

Data are worked through in blocks of rows whose activations stay in a core's own cache. Activations lie (neuron, row),
A₀ the inputs and Aₙ = relu(Wₙ Aₙ₋₁ + bₙ); what is pulled back through the chain is P, the loss's derivative by
Wₙ Aₙ₋₁ + bₙ. Every sum has one written order, so that a network's bits depend on nothing but itself.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from natal.lab.engines.compiled.cache import entry, inlined
from natal.lab.engines.compiled.chain import SPARSE, Layout, Net
from natal.lab.engines.compiled.folds import add_row_sums
from natal.lab.engines.compiled.losses import (
    cross_entropy,
    cross_entropy_pull,
    largest,
    right,
    squared_error,
    squared_error_pull,
)
from natal.lab.engines.compiled.optimisers import SGD, Rule, adam, clip, sgd
from natal.lab.engines.compiled.products import add_product
from natal.lab.engines.compiled.sparse import add_kept_products, add_sparse_product
from natal.lab.engines.compiled.turn import turn
from natal.lab.engines.compiled.vectors import Array, aligned, part, wide


class Data(NamedTuple):
    """Rows of data: inputs as numbers (row, input; padded to whole vectors) or as positions of ones (row, ones a row),
    and targets as classes (row) or values (row, output); the other of each pair has no columns, or no rows."""

    numbers: Array
    ones: Array
    classes: Array
    values: Array


class State(NamedTuple):
    """A network in training: its numbers, their gradient, the optimiser's moments, and β₁ᵗ, β₂ᵗ."""

    theta: Array
    gradient: Array
    first: Array
    second: Array
    powers: Array


class Loss(NamedTuple):
    """What is minimised: cross-entropy (``classes``) with label smoothing, or squared error."""

    classes: bool
    smoothing: float


class Room(NamedTuple):
    """Working memory for one block of rows, each array flat: whoever uses a part says its shape."""

    activations: Array
    pull: Array
    back: Array
    inputs: Array
    turned: Array
    values: Array  # sparse layers' weights in their transposed order
    biases: Array
    top: Array
    total: Array


def room(layout: Layout, dtype: type) -> Room:
    """Return working memory for a chain."""
    layers, n = layout.net.layers, layout.net.block
    widths = [wide(int(layers["inputs"][0])), *(wide(int(outputs)) for outputs in layers["outputs"])]
    inputs, most = widths[1 if layout.tokens else 0], max(widths[1:])
    turned = max([widths[1] if layout.tokens else 0, *widths[1:-1]])
    sizes = (
        sum(widths) * n, most * n, most * n, inputs * n, turned * n, layout.values, most, n, n,
    )  # fmt: skip
    return Room(*(aligned((size,), dtype) for size in sizes))


@inlined
def _matrix(layer: Any, numbers: Array, turned: bool) -> Array:
    """Return a dense layer's matrix, weights or gradient: (output, input), or (input, output) where inputs are ones."""
    rows, columns = (layer.inputs, layer.outputs) if turned else (layer.outputs, layer.inputs)
    matrix: Array = part(numbers, layer.weights, rows, wide(columns))
    return matrix


@inlined
def _compressed(layer: Any, pattern: Array) -> tuple[Array, Array, Array, Array, Array]:
    """Return a sparse layer's pattern: see `Net`."""
    a = layer.pattern
    b = a + layer.outputs + 1
    c = b + layer.kept
    d = c + layer.inputs + 1
    e = d + layer.kept
    return pattern[a:b], pattern[b:c], pattern[c:d], pattern[d:e], pattern[e : e + layer.kept]


@inlined
def _turn_kept(net: Net, theta: Array, room: Room) -> None:
    """Bring up to date the weights of sparse layers in their transposed order; nothing is pulled through the first."""
    for n in range(1, len(net.layers)):
        layer = net.layers[n]
        if layer.kind == SPARSE:
            numbers = _compressed(layer, net.pattern)[4]
            for k in range(layer.kept):
                room.values[layer.values + k] = theta[layer.weights + numbers[k]]


@inlined
def _hold(net: Net, gradient: Array) -> None:
    """Let the gradient be 0 where a dense layer's matrix keeps no weight, so that no optimiser ever moves it."""
    for n in range(len(net.layers)):
        layer = net.layers[n]
        for k in range(layer.gaps):
            gradient[layer.weights + net.pattern[layer.pattern + k]] = 0


@inlined
def _biases(net: Net, layer: Any, theta: Array, room: Room) -> Array:
    """Return a layer's biases, 0 for those it does not have, in whole vectors."""
    biases = room.biases[: wide(layer.outputs)]
    biases[:] = 0
    for k in range(layer.kept_biases):
        biases[net.pattern[layer.bias_places + k]] = theta[layer.biases + k]
    return biases


@inlined
def _read(data: Data, rows: Array, inputs: Array) -> None:
    """Copy some rows of the data's numbers; what is left of ``inputs`` (row, input) becomes zero."""
    for r in range(len(rows)):
        row = rows[r]
        for i in range(inputs.shape[1]):
            inputs[r, i] = data.numbers[row, i]
    inputs[len(rows) :] = 0


@inlined
def _add_ones(data: Data, rows: Array, weights: Array, sums: Array) -> None:
    """S += X W for X of zeros and a few ones a row: the sum of the rows of W that the ones select."""
    for r in range(len(rows)):
        for k in range(data.ones.shape[1]):
            one = data.ones[rows[r], k]
            for j in range(weights.shape[1]):
                sums[r, j] += weights[one, j]


@inlined
def _add_to_ones(data: Data, rows: Array, pulls: Array, slopes: Array) -> None:
    """G += Xᵀ P for X of zeros and a few ones a row: each row of P goes to the rows of G that its ones select."""
    for r in range(len(rows)):
        for k in range(data.ones.shape[1]):
            one = data.ones[rows[r], k]
            for j in range(pulls.shape[1]):
                slopes[one, j] += pulls[r, j]


@inlined
def _relu(z: Array) -> None:
    """Let what is negative be zero."""
    for i in range(z.shape[0]):
        for j in range(z.shape[1]):
            z[i, j] = z.dtype.type(0) if z[i, j] < 0 else z[i, j]


@inlined
def _forward(net: Net, theta: Array, data: Data, rows: Array, room: Room) -> Array:
    """Fill the activations of some rows, A' = relu(W A + b) layer after layer; return the outputs (output, row).

    ``room.inputs`` keeps, row by row, what is known so: the inputs, or where those are ones the first layer's outputs.
    """
    n, by_ones = wide(len(rows)), data.ones.shape[1] > 0
    first = net.layers[0]
    neurons = wide(first.outputs if by_ones else first.inputs)
    by_rows = part(room.inputs, 0, n, neurons)
    if by_ones:
        biases = _biases(net, first, theta, room)
        for r in range(n):
            for j in range(neurons):
                by_rows[r, j] = biases[j]
        _add_ones(data, rows, _matrix(first, theta, True), by_rows)
        if first.relu:
            _relu(by_rows)
    else:
        _read(data, rows, by_rows)
    turn(by_rows, part(room.activations, (first.after if by_ones else first.before) * n, neurons, n))
    for at in range(by_ones, len(net.layers)):
        layer = net.layers[at]
        biases = _biases(net, layer, theta, room)
        before = part(room.activations, layer.before * n, layer.inputs, n)
        after = part(room.activations, layer.after * n, wide(layer.outputs), n)
        for o in range(after.shape[0]):
            after[o] = biases[o]
        z = after[: layer.outputs]
        if layer.kind == SPARSE:
            starts, columns, _, _, _ = _compressed(layer, net.pattern)
            add_sparse_product(starts, columns, theta[layer.weights :], before, z)
        else:
            weights = _matrix(layer, theta, False)
            add_product(weights[:, : layer.inputs], before, z)
        if layer.relu:
            _relu(z)
    last = net.layers[len(net.layers) - 1]
    outputs: Array = part(room.activations, last.after * n, last.outputs, n)
    return outputs


@inlined
def _backward(net: Net, theta: Array, gradient: Array, data: Data, rows: Array, room: Room) -> None:
    """Add to the gradient what some rows contribute, from P at the outputs back: W gets P Aᵀ, b the sums of P's rows,
    and the layer before Wᵀ P where it was active."""
    n = wide(len(rows))
    by_ones = data.ones.shape[1] > 0
    last = net.layers[len(net.layers) - 1]
    pull = part(room.activations, last.after * n, wide(last.outputs), n)
    spare, next_spare = room.pull, room.back
    for back in range(len(net.layers)):
        at = len(net.layers) - 1 - back
        layer = net.layers[at]
        sums = room.biases[: layer.outputs]
        sums[:] = 0
        add_row_sums(pull[: layer.outputs], sums)
        for k in range(layer.kept_biases):
            gradient[layer.biases + k] += sums[net.pattern[layer.bias_places + k]]
        if at == 0 and by_ones:
            pulls = part(room.turned, 0, n, wide(layer.outputs))
            turn(pull, pulls)
            _add_to_ones(data, rows, pulls, _matrix(layer, gradient, True))
            break
        before = part(room.activations, layer.before * n, wide(layer.inputs), n)
        if layer.kind == SPARSE:
            starts, columns, turned_starts, turned_columns, _ = _compressed(layer, net.pattern)
            kept = gradient[layer.weights : layer.weights + layer.kept]
            add_kept_products(starts, columns, before, pull[: layer.outputs], kept)
        else:
            known = at == by_ones
            across = part(room.inputs if known else room.turned, 0, n, wide(layer.inputs))
            if not known:
                turn(before, across)
            add_product(pull[: layer.outputs, : len(rows)], across, _matrix(layer, gradient, False))
        if at == 0:
            break
        pulled = part(spare, 0, wide(layer.inputs), n)
        pulled[:] = 0
        if layer.kind == SPARSE:
            values = room.values[layer.values : layer.values + layer.kept]
            add_sparse_product(turned_starts, turned_columns, values, pull, pulled[: layer.inputs])
        else:
            weights = _matrix(layer, theta, False)
            add_product(weights.T[: layer.inputs], pull[: layer.outputs], pulled)
        if net.layers[at - 1].relu:
            for i in range(layer.inputs):
                for r in range(n):
                    pulled[i, r] = pulled[i, r] if before[i, r] > 0 else pulled.dtype.type(0)
        pull = pulled
        spare, next_spare = next_spare, spare


@entry
def learn(
    net: Net, state: State, rule: Rule, loss: Loss, data: Data, order: Array, cuts: Array, rates: Array, room: Room,
    losses: Array,
) -> None:  # fmt: skip
    """Take a step on each batch, batch s being rows ``order[cuts[s, 0]:cuts[s, 1]]`` of the data, at learning rate
    ``rates[s]``; fill ``losses`` with each batch's mean loss before its step."""
    _turn_kept(net, state.theta, room)
    outputs = net.layers[len(net.layers) - 1].outputs
    for s in range(len(rates)):
        batch = order[cuts[s, 0] : cuts[s, 1]]
        state.gradient[:] = 0
        share = 1.0 / len(batch) if loss.classes else 1.0 / (len(batch) * outputs)
        total = 0.0
        for start in range(0, len(batch), net.block):
            rows = batch[start : start + net.block]
            z = _forward(net, state.theta, data, rows, room)
            top, sums = room.top[: z.shape[1]], room.total[: z.shape[1]]
            if loss.classes:
                largest(z, top)
                total += cross_entropy(z, top, sums, data.classes, rows, loss.smoothing)
                cross_entropy_pull(z, sums, data.classes, rows, loss.smoothing, z.dtype.type(share))
            else:
                total += squared_error(z, data.values, rows)
                squared_error_pull(z, rows, z.dtype.type(2 * share))
            _backward(net, state.theta, state.gradient, data, rows, room)
        losses[s] = state.theta.dtype.type(total * share)  # what the network's numbers overflow, it does
        _hold(net, state.gradient)
        if rule.clip > 0:
            clip(net, state.gradient, rule.clip)
        if rule.kind == SGD:
            sgd(state.theta, state.gradient, state.first, rule, rates[s])
        else:
            adam(state.theta, state.gradient, state.first, state.second, state.powers, rule, rates[s])
        _turn_kept(net, state.theta, room)


@entry
def evaluate(net: Net, theta: Array, loss: Loss, data: Data, rows: Array, room: Room, results: Array) -> None:
    """Fill ``results`` for some rows of the data: the mean loss; how many rows are right, or the sum of squared errors;
    the largest difference of an output from the first row's, and the largest output, both in size."""
    _turn_kept(net, theta, room)
    results[:] = 0
    outputs = net.layers[len(net.layers) - 1].outputs
    first, apart, most = np.zeros(outputs, theta.dtype), theta.dtype.type(0), theta.dtype.type(0)
    for start in range(0, len(rows), net.block):
        part = rows[start : start + net.block]
        z = _forward(net, theta, data, part, room)
        for o in range(outputs if start == 0 else 0):
            first[o] = z[o, 0]
        for o in range(outputs):
            for r in range(len(part)):
                apart = max(apart, abs(z[o, r] - first[o]))
                most = max(most, abs(z[o, r]))
        if loss.classes:
            top, sums = room.top[: z.shape[1]], room.total[: z.shape[1]]
            largest(z, top)
            results[1] += right(z, top, data.classes, part)
            results[0] += cross_entropy(z, top, sums, data.classes, part, loss.smoothing)
        else:
            squares = squared_error(z, data.values, part)
            results[0] += squares
            results[1] += squares
    results[2], results[3] = apart, most
    results[0] = theta.dtype.type(results[0] / (len(rows) if loss.classes else len(rows) * outputs))
