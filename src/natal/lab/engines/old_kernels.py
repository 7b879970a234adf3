"""The arithmetic of training on CPU, compiled: forward, backward and Adam of a two-layer ReLU network.

Numba compiles these functions on first use and keeps them on disk. A step goes through the rows in blocks of ``ROWS``
that stay in a core's own cache, so that activations never travel to memory and back. The numbers are reproducible:

- every sum has one written order, none is left to a library: a network's bits depend on nothing but itself;
- multiply-adds are fused where written (`fma`, `tile`, `fold`) and nowhere else, whatever the CPU's vectors;
- one-hot classification in float32 adds up in the order of the libraries under the sequential engine, on the CPUs for
  which that was recorded: MKL's products over rows in sums of 192, torch's softmax, sums over rows and Adam.

Neurons come in multiples of `LANES`; rows of outputs are padded to one.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import numpy as np
from llvmlite import binding, ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic, overload
from numpy.typing import NDArray

F = TypeVar("F", bound=Callable[..., Any])
Array = NDArray[Any]

ROWS = 192  # MKL, and so the oracle, adds up products over rows in sums of 192
LANES = 16  # rows of arrays are multiples of this many numbers: the longest vectors of any CPU
LEVELS = 4  # torch sums columns in sums of sums of sums of sums


# -- what Numba lacks --------------------------------------------------------------------------------------------

_FEATURES = binding.get_host_cpu_features()
_VECTOR_BYTES = 64 if _FEATURES.get("avx512f") else 32 if _FEATURES.get("avx") else 16
_PANEL = 2 if _VECTOR_BYTES == 32 else 4  # vectors a tile is wide: AVX has 16 registers, others 32


@intrinsic
def fma(typing: Any, a: Any, b: Any, c: Any) -> Any:
    """Return a b + c, rounded once."""

    def build(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> Any:
        return builder.fma(*arguments)

    return a(a, a, a), build


@intrinsic
def from_bits(typing: Any, bits: Any) -> Any:
    """Return the float32 whose bits are an int32's."""

    def build(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], ir.FloatType())

    return types.float32(types.int32), build


@intrinsic
def to_bits(typing: Any, number: Any) -> Any:
    """Return the bits of a float32 as an int32."""

    def build(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], ir.IntType(32))

    return types.int32(types.float32), build


def _fused(builder: ir.IRBuilder, size: int, a: Any, b: Any, c: Any) -> Any:
    """Emit a b + c, rounded once, for vectors of numbers of so many bytes."""
    name = f"llvm.fma.v{a.type.count}f{8 * size}"
    function = cgutils.get_or_insert_function(builder.module, ir.FunctionType(a.type, [a.type] * 3), name)
    return builder.call(function, [a, b, c])


@intrinsic(prefer_literal=True)
def tile(typing: Any, height: Any, a: Any, i: Any, b: Any, j: Any, c: Any) -> Any:
    """Add a b to a tile of c: ``height`` rows from row i on, a panel of columns (or what is left) from column j on.

    The sums stay in registers: each is one chain of fused multiply-adds along the inner axis, from zero. ``a`` may
    have any strides; rows of ``b`` and ``c`` are contiguous.
    """
    tall = height.literal_value

    def build(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> Any:
        number = context.get_data_type(signature.args[1].dtype)
        size = context.get_abi_sizeof(number)
        lanes, index = _VECTOR_BYTES // size, ir.IntType(64)
        vector = ir.VectorType(number, lanes)

        def look(place: int) -> tuple[Any, list[Any], list[Any]]:
            array = context.make_array(signature.args[place])(context, builder, arguments[place])
            shape, strides = (cgutils.unpack_tuple(builder, t) for t in (array.shape, array.strides))
            return builder.ptrtoint(array.data, index), strides, shape

        def at(address: Any, *offsets: Any) -> Any:
            for offset in offsets:
                address = builder.add(address, offset)
            return address

        def times(value: Any, n: int) -> Any:
            return builder.mul(value, ir.Constant(index, n))

        def load(address: Any, kind: Any) -> Any:
            value = builder.load(builder.inttoptr(address, kind.as_pointer()))
            value.align = size
            return value

        i_, j_ = arguments[2], arguments[4]
        a_start, (a_row, a_step), (_, steps) = look(1)
        b_start, (b_step, _), (_, columns) = look(3)
        c_start, (c_row, _), _ = look(5)
        a_start, b_start = at(a_start, builder.mul(i_, a_row)), at(b_start, times(j_, size))
        c_start = at(c_start, builder.mul(i_, c_row), times(j_, size))

        def emit(wide: int) -> None:
            before, loop, after = builder.block, builder.append_basic_block(), builder.append_basic_block()
            builder.branch(loop)
            builder.position_at_end(loop)
            step, a_at, b_at = (builder.phi(index) for _ in range(3))
            sums = [[builder.phi(vector) for _ in range(wide)] for _ in range(tall)]
            row = [load(at(b_at, ir.Constant(index, v * _VECTOR_BYTES)), vector) for v in range(wide)]
            zero = ir.Constant(index, 0)
            first = ir.Constant(ir.VectorType(ir.IntType(32), lanes), [0] * lanes)
            nothing = ir.Constant(vector, [0.0] * lanes)
            for r in range(tall):
                one = load(at(a_at, times(a_row, r)), number)
                many = builder.insert_element(ir.Constant(vector, ir.Undefined), one, zero)
                many = builder.shuffle_vector(many, many, first)
                for v in range(wide):
                    sums[r][v].add_incoming(nothing, before)
                    sums[r][v].add_incoming(_fused(builder, size, many, row[v], sums[r][v]), loop)
            next_step = builder.add(step, ir.Constant(index, 1))
            for place, start, moved in (
                (step, zero, next_step),
                (a_at, a_start, builder.add(a_at, a_step)),
                (b_at, b_start, builder.add(b_at, b_step)),
            ):
                place.add_incoming(start, before)
                place.add_incoming(moved, loop)
            builder.cbranch(builder.icmp_signed("<", next_step, steps), loop, after)
            builder.position_at_end(after)
            for r in range(tall):
                for v in range(wide):
                    here = at(c_start, times(c_row, r), ir.Constant(index, v * _VECTOR_BYTES))
                    grown = builder.fadd(load(here, vector), sums[r][v].incomings[1][0])
                    builder.store(grown, builder.inttoptr(here, vector.as_pointer())).align = size

        left = builder.sub(columns, j_)
        with builder.if_else(builder.icmp_signed(">=", left, ir.Constant(index, _PANEL * lanes))) as (
            full,
            part,
        ):
            with full:
                emit(_PANEL)
            with part:
                for wide in range(1, _PANEL):
                    with builder.if_then(builder.icmp_signed("==", left, ir.Constant(index, wide * lanes))):
                        emit(wide)
        return context.get_dummy_value()

    return types.void(height, a, i, b, j, c), build


@intrinsic(prefer_literal=True)
def fold(typing: Any, operation: Any, a: Any, b: Any) -> Any:
    """Return the "sum" or "max" of a row a, or the "dot" product of a and b; they are multiples of `LANES` long.

    In torch's order: number i of every group of `LANES` goes to lane i; then the upper half of the lanes to the
    lower, and so on.
    """
    name = operation.literal_value

    def build(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> Any:
        arrays = [
            context.make_array(kind)(context, builder, x)
            for kind, x in zip(signature.args[1:], arguments[1:], strict=True)
        ]
        number, index = context.get_data_type(signature.args[1].dtype), ir.IntType(64)
        vector = ir.VectorType(number, LANES)
        size = context.get_abi_sizeof(number)
        (length,) = cgutils.unpack_tuple(builder, arrays[0].shape)

        def load(array: Any, place: Any) -> Any:
            value = builder.load(builder.bitcast(builder.gep(array.data, [place]), vector.as_pointer()))
            value.align = size
            return value

        def join(x: Any, y: Any) -> Any:
            if name == "max":
                return builder.select(builder.fcmp_ordered(">", y, x), y, x)
            return builder.fadd(x, y)

        zero, group = ir.Constant(index, 0), ir.Constant(index, LANES)
        nothing = ir.Constant(vector, [0.0] * LANES)
        total = cgutils.alloca_once_value(builder, nothing if name == "dot" else load(arrays[0], zero))
        first = zero if name == "dot" else group
        with cgutils.for_range_slice(builder, first, length, group, index) as (place, _):
            here, so_far = load(arrays[0], place), builder.load(total)
            if name == "dot":
                joined = _fused(builder, size, here, load(arrays[1], place), so_far)
            else:
                joined = join(so_far, here)
            builder.store(joined, total)
        lanes, half = builder.load(total), LANES // 2
        while half:
            mask = ir.Constant(
                ir.VectorType(ir.IntType(32), LANES), [(i + half) % LANES for i in range(LANES)]
            )
            lanes = join(lanes, builder.shuffle_vector(lanes, lanes, mask))
            half //= 2
        return builder.extract_element(lanes, ir.Constant(ir.IntType(32), 0))

    return a.dtype(operation, a, b), build


# -- arithmetic --------------------------------------------------------------------------------------------------


def exponential(x: Any) -> Any:
    """Return e^x for x ≤ 100."""
    return math.exp(x)


def logarithm(x: Any) -> Any:
    """Return ln x for a normal x > 0."""
    return math.log(x)


f = np.float32  # a Python float would make every sum it meets a double
_ZERO, _ONE, _TWO, _FOUR_THIRDS, _SMALLEST = f(0), f(1), f(2), f(1 / 0.75), f(-104)
_LOG2_E, _LN2_HIGH, _LN2_LOW = f(1.4426950408889634), f(0.693145751953125), f(1.428606765330187e-06)
_E6, _E5, _E4 = f(0.00019852761761285365), f(0.0013930435525253415), f(0.008333360776305199)
_E3, _E2, _E1 = f(0.041666485369205475), f(0.1666666716337204), f(0.5)
_LN2, _LN2_REST = f(0.6931471824645996), f(-1.904654323148236e-09)
_L3, _L2, _L1 = f(0.3027294874), f(0.3996108174), f(0.6666694880)


@overload(exponential)
def _(x: Any) -> Any:
    """Return the algorithm for a type; in float32 it is SLEEF's (Shibata & Petrogalli 2020), and so torch's.

    x = q ln 2 + s with q whole, then e^x = 2^q (1 + s + s² p(s)).
    """

    def single(x: Any) -> Any:
        q = np.rint(x * _LOG2_E)
        s = fma(q, -_LN2_LOW, fma(q, -_LN2_HIGH, x))
        p = fma(fma(fma(fma(fma(_E6, s, _E5), s, _E4), s, _E3), s, _E2), s, _E1)
        whole = np.int32(q)
        half = whole >> 1  # in two steps: 2^q itself may be too small a number
        power = from_bits(np.int32((half + 127) << 23)), from_bits(np.int32((whole - half + 127) << 23))
        y = (_ONE + fma(s * s, p, s)) * power[0] * power[1]
        return _ZERO if x < _SMALLEST else y

    def double(x: Any) -> Any:
        return math.exp(x)

    return single if x == types.float32 else double


@overload(logarithm)
def _(x: Any) -> Any:
    """Return the algorithm for a type; in float32 it is SLEEF's, in pairs of numbers (value, what it lacks).

    x = 2^e m, then ln x = e ln 2 + 2 artanh((m - 1) / (m + 1)).
    """

    def single(x: Any) -> Any:
        e = ((to_bits(x * _FOUR_THIRDS) >> 23) & 255) - 127
        m = from_bits(np.int32(to_bits(x) - (e << 23)))
        e = np.float32(e)
        high = _LN2 * e
        low = fma(_LN2_REST, e, fma(_LN2, e, -high))
        above, below = m - _ONE, m + _ONE  # as pairs
        part = above + _ONE
        above_rest = (-_ONE - (above - part)) + (m - part)
        part = below - _ONE
        below_rest = (_ONE - (below - part)) + (m - part)
        inverse = _ONE / below
        z = above * inverse
        wrong = fma(-below_rest, inverse, fma(-below, inverse, _ONE))
        z_rest = fma(z, wrong, fma(above_rest, inverse, fma(inverse, above, -z)))
        square = z * z
        p = fma(fma(_L3, square, _L2), square, _L1)
        total = high + z * _TWO
        rest = (((high - total) + z * _TWO) + low) + z_rest * _TWO
        cubic = square * z * p
        final = total + cubic
        return final + (((total - final) + cubic) + rest)

    def double(x: Any) -> Any:
        return math.log(x)

    return single if x == types.float32 else double


def _compiled(function: F) -> F:
    """Compile a function when first called, without fast-math; keep it on disk where there is room for that."""
    try:
        compiled: F = njit(cache=True, error_model="numpy")(function)
    except RuntimeError:  # neither the package's directory nor the user's can be written
        compiled = njit(error_model="numpy")(function)
    return compiled


@_compiled
def add_product(a: Array, b: Array, c: Array) -> None:
    """Let c grow by a b, each sum one chain along the inner axis; columns of b and c are multiples of `LANES`."""
    rows = a.shape[0]
    for j in range(0, b.shape[1], _PANEL * _VECTOR_BYTES // c.itemsize):
        i = 0
        while i + 6 <= rows:
            tile(6, a, i, b, j, c)
            i += 6
        while i < rows:
            tile(1, a, i, b, j, c)
            i += 1


class Shape(NamedTuple):
    """The sizes of a network: inputs, neurons (a multiple of `LANES`), outputs."""

    inputs: int
    neurons: int
    outputs: int


class Room(NamedTuple):
    """Working memory for a block of rows of one network at a time; (row, output) is padded to whole `LANES`."""

    hidden: Array  # (row, neuron)
    out: Array  # (row, output); after the loss what is pulled back
    back: Array  # (row, neuron)
    across: Array  # (neuron, output): w2 transposed
    bias: Array  # (output,)
    columns: Array  # (input, neuron): what comes back to one-hot inputs from one block
    hidden_sums: Array  # (level, neuron)
    out_sums: Array  # (level, output)
    rest: Array  # (row of all, output of the last, incomplete 32)
    rest_sums: Array  # (level, four times as many)
    exps: Array  # (output,)
    totals: Array  # (row,)


def room(shape: Shape, rows: int, dtype: Any) -> Room:
    """Return working memory for networks of a shape and at most so many rows; ``dtype``: float32 or float64."""
    wide, rest = -(-shape.outputs // LANES) * LANES, shape.outputs % 32
    sizes = (
        (ROWS, shape.neurons),
        (ROWS, wide),
        (ROWS, shape.neurons),
        (shape.neurons, wide),
        (wide,),
        (shape.inputs, shape.neurons),
        (LEVELS, shape.neurons),
        (LEVELS, wide),
        (rows, rest),
        (LEVELS, 4 * rest),
        (wide,),
        (ROWS,),
    )
    return Room(*(_aligned(size, dtype) for size in sizes))


def _aligned(size: tuple[int, ...], dtype: Any) -> Array:
    """Return zeros that begin where a vector may: a vector across two cache lines is loaded twice."""
    count = math.prod(size)
    memory = np.zeros(count * np.dtype(dtype).itemsize + 64, np.uint8)
    start = -memory.ctypes.data % 64
    aligned: Array = memory[start : start + count * np.dtype(dtype).itemsize].view(dtype).reshape(size)
    return aligned


@_compiled
def _views(flat: Array, shape: Shape) -> tuple[Array, Array, Array]:
    """Return w1 (bias and inputs, neuron), w2 (output, neuron) and b2 (output) of a lane's vector."""
    first, second = (shape.inputs + 1) * shape.neurons, shape.outputs * shape.neurons
    w1 = flat[:first].reshape((shape.inputs + 1, shape.neurons))
    w2 = flat[first : first + second].reshape((shape.outputs, shape.neurons))
    return w1, w2, flat[first + second : first + second + shape.outputs]


@_compiled
def _turn(w2: Array, across: Array) -> None:
    for i in range(w2.shape[0]):
        for j in range(w2.shape[1]):
            across[j, i] = w2[i, j]


def _add_inputs(inputs: Any, w1: Any, hidden: Any) -> None:
    """Add x w1 to hidden, x numbers or the positions of ones."""


@overload(_add_inputs)
def _(inputs: Any, w1: Any, hidden: Any) -> Any:
    def ones(inputs: Any, w1: Any, hidden: Any) -> None:
        for r in range(inputs.shape[0]):
            for one in inputs[r]:
                for j in range(w1.shape[1]):
                    hidden[r, j] += w1[one, j]

    def numbers(inputs: Any, w1: Any, hidden: Any) -> None:
        add_product(inputs, w1, hidden)

    return ones if isinstance(inputs.dtype, types.Integer) else numbers


def _inputs_pull(inputs: Any, back: Any, g1: Any, columns: Any) -> None:
    """Add xᵀ back to g1, x numbers or the positions of ones."""


@overload(_inputs_pull)
def _(inputs: Any, back: Any, g1: Any, columns: Any) -> Any:
    def ones(inputs: Any, back: Any, g1: Any, columns: Any) -> None:
        columns[:] = 0
        for r in range(inputs.shape[0]):
            for one in inputs[r]:
                for j in range(back.shape[1]):
                    columns[one, j] += back[r, j]
        for i in range(g1.shape[0]):
            for j in range(g1.shape[1]):
                g1[i, j] += columns[i, j]

    def numbers(inputs: Any, back: Any, g1: Any, columns: Any) -> None:
        add_product(inputs.T, back, g1)

    return ones if isinstance(inputs.dtype, types.Integer) else numbers


@_compiled
def _forward(inputs: Array, w1: Array, w2: Array, b2: Array, room: Room) -> None:
    """Fill hidden = relu(b1 + x w1) and out = b2 + hidden w2ᵀ for some rows."""
    count, neurons, wide = inputs.shape[0], w1.shape[1], room.out.shape[1]
    hidden, out, zero = room.hidden[:count], room.out[:count], w1.dtype.type(0)
    room.bias[:] = -np.inf  # beyond the outputs: never the largest, nothing in a softmax
    room.bias[: b2.shape[0]] = b2
    for r in range(count):
        for j in range(neurons):
            hidden[r, j] = w1[0, j]
    _add_inputs(inputs, w1[1:], hidden)
    for r in range(count):
        for j in range(neurons):
            hidden[r, j] = zero if hidden[r, j] < 0 else hidden[r, j]
    for r in range(count):
        for j in range(wide):
            out[r, j] = room.bias[j]
    if b2.shape[0] == 1:  # a product would be mostly padding
        for r in range(count):
            out[r, 0] += fold("dot", hidden[r], w2[0])
    else:
        add_product(hidden, room.across, out)


def _loss(out: Any, targets: Any, scale: Any, exps: Any, totals: Any) -> Any:
    """Return the summed loss; out becomes its gradient times ``scale``."""


@overload(_loss)
def _(out: Any, targets: Any, scale: Any, exps: Any, totals: Any) -> Any:
    def cross_entropy(out: Any, targets: Any, scale: Any, exps: Any, totals: Any) -> Any:
        """Return -Σ log softmax(z)_y; z becomes its gradient times ``scale``: scale (softmax(z) - onehot(y))."""
        loss, wide = 0.0, out.shape[1]
        for r in range(out.shape[0]):
            row = out[r]
            largest = fold("max", row, row)
            for j in range(wide):
                row[j] -= largest
                exps[j] = exponential(row[j])
            totals[r] = fold("sum", exps, exps)
        for r in range(out.shape[0]):
            totals[r] = logarithm(totals[r])
        for r in range(out.shape[0]):
            row, wanted = out[r], targets[r]
            at_wanted = row[wanted] - totals[r]
            loss -= at_wanted
            for j in range(wide):
                row[j] = exponential(row[j] - totals[r]) * scale
            row[wanted] = fma(exponential(at_wanted), scale, -scale)
        return loss

    def squared_error(out: Any, targets: Any, scale: Any, exps: Any, totals: Any) -> Any:
        """Return Σ (z - y)²; z becomes scale (z - y)."""
        loss = 0.0
        for r in range(out.shape[0]):
            for j in range(targets.shape[1]):
                error = out[r, j] - targets[r, j]
                loss += error * error
                out[r, j] = scale * error
        return loss

    return cross_entropy if isinstance(targets.dtype, types.Integer) else squared_error


@_compiled
def _carry(sums: Array, done: int, power: int) -> None:
    """After ``done`` rows were added to the first level of sums, move full levels up, as torch does.

    torch sums columns in ``2**power`` rows, these sums in as many, and so on: four levels.
    """
    mask = (1 << power) - 1
    if done & mask == 0:
        for level in range(1, LEVELS):
            for j in range(sums.shape[1]):
                sums[level, j] += sums[level - 1, j]
                sums[level - 1, j] = 0
            if done & (mask << (level * power)):
                break


@_compiled
def _power(rows: int) -> int:
    bits = 0
    while (1 << bits) < rows:
        bits += 1
    return max(4, bits // 4)


@_compiled
def _sum_rest(rest: Array, sums: Array) -> None:
    """Sum the columns torch sums one by one, four rows apart: in four sums each, and these at the end."""
    rows, columns = rest.shape
    quarter = rows // 4
    power = _power(quarter)
    sums[:] = 0
    for i in range(quarter):
        for j in range(4 * columns):
            sums[0, j] += rest[4 * i + j // columns, j % columns]
        _carry(sums, i + 1, power)
    for level in range(1, LEVELS):
        sums[0] += sums[level]
    for i in range(4 * quarter, rows):
        for j in range(columns):
            sums[0, j] += rest[i, j]
    for k in range(1, 4):
        for j in range(columns):
            sums[0, j] += sums[0, k * columns + j]


@_compiled
def gradients(
    theta: Array,
    gradient: Array,
    shape: Shape,
    inputs: Array,
    targets: Array,
    scale: Any,
    room: Room,
    losses: Array,
) -> None:
    """Fill ``gradient`` (lane, parameter) and ``losses`` (lane) at ``theta`` (lane, parameter).

    ``inputs``: (lane, row, input) numbers, or (lane, row, ones a row) whole numbers that say where the ones are;
    ``targets``: (lane, row) classes for -Σ log softmax(z)_y, or (lane, row, output) for Σ (z - y)². The gradient is
    the loss's times ``scale``, for squared errors half of that.
    """
    total = inputs.shape[1]
    power, whole, zero = _power(total), shape.outputs // 32 * 32, theta.dtype.type(0)
    for lane in range(theta.shape[0]):
        w1, w2, b2 = _views(theta[lane], shape)
        g1, g2, gb2 = _views(gradient[lane], shape)
        _turn(w2, room.across)
        gradient[lane] = 0
        room.hidden_sums[:] = 0
        room.out_sums[:] = 0
        losses[lane] = 0
        for start in range(0, total, ROWS):
            stop = min(start + ROWS, total)
            count = stop - start
            _forward(inputs[lane, start:stop], w1, w2, b2, room)
            hidden, out, back = room.hidden[:count], room.out[:count], room.back[:count]
            losses[lane] += _loss(out, targets[lane, start:stop], scale, room.exps, room.totals)
            add_product(out.T[: shape.outputs], hidden, g2)
            back[:] = 0
            add_product(out[:, : shape.outputs], w2, back)
            for r in range(count):
                for j in range(shape.neurons):
                    back[r, j] = back[r, j] if hidden[r, j] > 0 else zero
                    room.hidden_sums[0, j] += back[r, j]
                _carry(room.hidden_sums, start + r + 1, power)
                for j in range(whole):
                    room.out_sums[0, j] += out[r, j]
                _carry(room.out_sums, start + r + 1, power)
                for j in range(whole, shape.outputs):
                    room.rest[start + r, j - whole] = out[r, j]
            _inputs_pull(inputs[lane, start:stop], back, g1[1:], room.columns)
        for level in range(1, LEVELS):
            room.hidden_sums[0] += room.hidden_sums[level]
            room.out_sums[0] += room.out_sums[level]
        g1[0] = room.hidden_sums[0]
        gb2[:whole] = room.out_sums[0, :whole]
        if whole < shape.outputs:
            _sum_rest(room.rest, room.rest_sums)
            gb2[whole:] = room.rest_sums[0, : shape.outputs - whole]


def _score(out: Any, targets: Any, outputs: Any) -> Any:
    """Return how many rows have their class as the first largest output, or Σ (z - y)²."""


@overload(_score)
def _(out: Any, targets: Any, outputs: Any) -> Any:
    def right(out: Any, targets: Any, outputs: Any) -> Any:
        count = 0
        for r in range(out.shape[0]):
            row, wanted = out[r], targets[r]
            if row[wanted] == fold("max", row, row):
                first = 0
                while row[first] != row[wanted]:
                    first += 1
                count += first == wanted
        return count

    def squares(out: Any, targets: Any, outputs: Any) -> Any:
        total = 0.0
        for r in range(out.shape[0]):
            for j in range(outputs):
                error = out[r, j] - targets[r, j]
                total += error * error
        return total

    return right if isinstance(targets.dtype, types.Integer) else squares


@_compiled
def scores(theta: Array, shape: Shape, inputs: Array, targets: Array, room: Room, results: Array) -> None:
    """Fill ``results`` (lane): rows with the right class, or summed squared errors; arguments as for `gradients`."""
    total = inputs.shape[1]
    for lane in range(theta.shape[0]):
        w1, w2, b2 = _views(theta[lane], shape)
        _turn(w2, room.across)
        results[lane] = 0
        for start in range(0, total, ROWS):
            stop = min(start + ROWS, total)
            _forward(inputs[lane, start:stop], w1, w2, b2, room)
            results[lane] += _score(room.out[: stop - start], targets[lane, start:stop], shape.outputs)


@_compiled
def moments(
    gradient: Array, first: Array, second: Array, root: Array, rate1: Any, rate2: Any, keep2: Any
) -> None:
    """Adam's moments: m ← m + (1 - β₁) (g - m), v ← β₂ v + (1 - β₂) g², and √v (Kingma & Ba 2015, algorithm 1).

    All arrays (lane, parameter); ``rate1``, ``rate2``, ``keep2``: 1 - β₁, 1 - β₂, β₂.
    """
    for lane in range(gradient.shape[0]):
        for i in range(gradient.shape[1]):
            g = gradient[lane, i]
            first[lane, i] = fma(rate1, g - first[lane, i], first[lane, i])
            second[lane, i] = fma(rate2 * g, g, second[lane, i] * keep2)
            root[lane, i] = np.sqrt(second[lane, i])


@_compiled
def move(
    theta: Array, first: Array, root: Array, mask: Any, rate: Any, correction: Any, epsilon: Any
) -> None:
    """Adam's step, then the mask (None: all ones): θ ← mask ⊙ (θ - rate m / (√v / correction + ε))."""
    for lane in range(theta.shape[0]):
        for i in range(theta.shape[1]):
            moved = theta[lane, i] - rate * first[lane, i] / (root[lane, i] / correction + epsilon)
            theta[lane, i] = moved if mask is None else moved * mask[lane, i]


def load() -> None:
    """Compile what training in float32 needs, or read it from disk, so that no training waits for it."""
    shape = Shape(inputs=1, neurons=LANES, outputs=1)
    theta, gradient, first, second, root = np.zeros((5, 1, 4 * LANES), np.float32)
    memory, sums, number = room(shape, 1, np.float32), np.zeros(1), np.float32(1)
    numbers, wholes = np.zeros((1, 1, 1), np.float32), np.zeros((1, 1, 1), np.int32)
    for inputs, targets in ((numbers, numbers), (wholes, wholes[0])):
        gradients(theta, gradient, shape, inputs, targets, number, memory, sums)
        scores(theta, shape, inputs, targets, memory, sums)
    moments(gradient, first, second, root, number, number, number)
    for mask in (None, theta):
        move(theta, first, root, mask, number, number, number)
