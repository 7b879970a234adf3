"""What Numba lacks: vectors of numbers held in registers, and multiply-adds that round once.

A vector is always `LANES` numbers, whatever the CPU: one register of AVX-512, two of AVX2, and so on. So the lane that
a number goes to, and with it the order of every sum, is written here and the same everywhere.

Kernels that must keep sums in registers are *emitted*: a Python function, run once when Numba compiles, that writes the
instructions of a loop nest through an `Emitter`. Everything else is plain Numba.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numba
import numpy as np
from llvmlite import binding, ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, register_jitable
from numba.np.arrayobj import populate_array
from numpy.typing import NDArray

Array = NDArray[Any]

LANES = 16
"""Numbers in a vector; rows of arrays are padded to multiples of it."""


@register_jitable
def wide(count: int) -> int:
    """Return ``count`` rounded up to whole vectors."""
    return -(-count // LANES) * LANES


def _has(feature: str) -> bool:
    """Whether the CPU compiled for, this one or the one NUMBA_CPU_NAME and NUMBA_CPU_FEATURES name, has a feature."""
    named: str | None = numba.config.CPU_FEATURES
    if named is None:
        return bool(binding.get_host_cpu_features().get(feature))
    return f"+{feature}" in named.split(",")


PANEL = 4 if _has("avx512f") else 1
"""Vectors side by side in a tile: 6 rows of 4 fill the 32 registers of AVX-512, 6 of 1 the 16 half as long of AVX2."""


def aligned(size: tuple[int, ...], dtype: Any) -> Array:
    """Return zeros that begin where a vector may: a vector across two cache lines is loaded twice."""
    bytes_ = math.prod(size) * np.dtype(dtype).itemsize
    memory = np.zeros(bytes_ + 64, np.uint8)
    start = -memory.ctypes.data % 64
    array: Array = memory[start : start + bytes_].view(dtype).reshape(size)
    return array


@intrinsic
def fma(typing: Any, a: Any, b: Any, c: Any) -> Any:
    """Return a b + c, rounded once."""
    return a(a, a, a), lambda context, builder, signature, arguments: builder.fma(*arguments)


def _reinterpreted(source: Any, target: Any, kind: Any) -> Any:
    @intrinsic
    def reinterpret(typing: Any, x: Any) -> Any:
        return target(source), lambda _, builder, __, arguments: builder.bitcast(arguments[0], kind)

    return reinterpret


to_float32 = _reinterpreted(
    types.int32, types.float32, ir.FloatType()
)  # the number whose bits a whole number has
to_float64 = _reinterpreted(types.int64, types.float64, ir.DoubleType())
to_int64 = _reinterpreted(types.float64, types.int64, ir.IntType(64))  # and back


@intrinsic
def part(typing: Any, flat: Any, start: Any, rows: Any, columns: Any) -> Any:
    """Return a part of a flat array as a matrix (row, column).

    Whoever calls has the flat array, so that nothing need count who uses its memory: less to compile.
    """
    matrix = types.Array(flat.dtype, 2, "C")

    def build(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> Any:
        source = context.make_array(flat)(context, builder, arguments[0])
        begin, *shape = (
            context.cast(builder, number, kind, types.intp)
            for number, kind in zip(arguments[1:], signature.args[1:], strict=True)
        )
        size = context.get_constant(types.intp, context.get_abi_sizeof(context.get_data_type(flat.dtype)))
        view = context.make_array(matrix)(context, builder)
        steps = [builder.mul(shape[1], size), size]
        populate_array(view, builder.gep(source.data, [begin]), shape, steps, size, meminfo=None)
        return view._getvalue()

    return matrix(flat, start, rows, columns), build


_INDEX = ir.IntType(64)


class Emitter:
    """Instructions on vectors of `LANES` numbers, written where ``builder`` stands.

    ``array[i, j]`` of the arguments is named by the argument's place and indices: ``vector(2, i, j)`` is the vector
    that begins at row i, column j of the third argument.
    """

    def __init__(self, context: Any, builder: Any, signature: Any, arguments: Any) -> None:
        self.builder, self._arguments, self._arrays = builder, arguments, {}
        for place, (kind, argument) in enumerate(zip(signature.args, arguments, strict=True)):
            if isinstance(kind, types.Array):
                array = context.make_array(kind)(context, builder, argument)
                steps = cgutils.unpack_tuple(builder, array.strides)
                if kind.layout == "C":  # known, so that an address is one instruction
                    steps[-1] = self.whole(context.get_abi_sizeof(context.get_data_type(kind.dtype)))
                self._arrays[place] = array.data, steps

    def whole(self, n: int) -> Any:
        """Return n as an index."""
        return ir.Constant(_INDEX, n)

    def plus(self, index: Any, n: int) -> Any:
        """Return index + n."""
        return self.builder.add(index, self.whole(n)) if n else index

    def argument(self, place: int) -> Any:
        """Return an argument that is a whole number as an index."""
        number = self._arguments[place]
        return number if number.type == _INDEX else self.builder.sext(number, _INDEX)

    def _at(self, place: int, indices: Sequence[Any], kind: Any) -> Any:
        """Return where an array's element is, as a pointer to a ``kind``."""
        data, steps = self._arrays[place]
        address = self.builder.bitcast(data, ir.IntType(8).as_pointer())
        for index, step in zip(indices, steps, strict=True):
            address = self.builder.gep(address, [self.builder.mul(index, step)])
        return self.builder.bitcast(address, kind.as_pointer())

    def _number(self, place: int) -> Any:
        return self._arrays[place][0].type.pointee

    def number(self, place: int, *indices: Any) -> Any:
        """Return one element."""
        return self.builder.load(self._at(place, indices, self._number(place)))

    def index(self, place: int, *indices: Any) -> Any:
        """Return one element of an array of whole numbers as an index."""
        return self.builder.zext(self.number(place, *indices), _INDEX)

    def put(self, value: Any, place: int, *indices: Any) -> None:
        """Store one element."""
        self.builder.store(value, self._at(place, indices, self._number(place)))

    def vector(self, place: int, *indices: Any) -> Any:
        """Return the vector that begins at an element."""
        number = self._number(place)
        loaded = self.builder.load(self._at(place, indices, ir.VectorType(number, LANES)))
        loaded.align = 4  # a vector may begin at any element
        return loaded

    def put_vector(self, value: Any, place: int, *indices: Any) -> None:
        """Store the vector that begins at an element."""
        self.builder.store(value, self._at(place, indices, value.type)).align = 4

    def zeros(self, place: int) -> Any:
        """Return a vector of zeros of an array's numbers."""
        return ir.Constant(ir.VectorType(self._number(place), LANES), [0.0] * LANES)

    def everywhere(self, number: Any) -> Any:
        """Return a vector whose lanes are all one number."""
        vector = ir.VectorType(number.type, LANES)
        one = self.builder.insert_element(ir.Constant(vector, ir.Undefined), number, self.whole(0))
        return self.shuffle(one, one, [0] * LANES)

    def shuffle(self, x: Any, y: Any, lanes: Sequence[int]) -> Any:
        """Return the vector of the given lanes of x and y, those of y counted on from those of x."""
        chosen = ir.Constant(ir.VectorType(ir.IntType(32), len(lanes)), list(lanes))
        return self.builder.shuffle_vector(x, y, chosen)

    def lane(self, vector: Any, n: int) -> Any:
        """Return lane n of a vector."""
        return self.builder.extract_element(vector, self.whole(n))

    def fma(self, a: Any, b: Any, c: Any) -> Any:
        """Return a b + c, rounded once, lane by lane."""
        bits = 32 if isinstance(a.type.element, ir.FloatType) else 64
        kind = ir.FunctionType(a.type, [a.type] * 3)
        function = cgutils.get_or_insert_function(self.builder.module, kind, f"llvm.fma.v{LANES}f{bits}")
        return self.builder.call(function, [a, b, c])

    @contextmanager
    def loop(self, stop: Any, start: Any = None, step: int = 1) -> Iterator[Any]:
        """Repeat what is emitted inside for every index from ``start`` (0) up to ``stop``."""
        begin = self.whole(0) if start is None else start
        with cgutils.for_range_slice(self.builder, begin, stop, self.whole(step), _INDEX) as (index, _):
            yield index

    def sums(self, count: int, place: int) -> list[Sum]:
        """Return so many vectors of sums of an array's numbers, from zero."""
        return [Sum(self.builder, self.zeros(place)) for _ in range(count)]


class Sum:
    """A vector that changes from one turn of a loop to the next; it lives in registers."""

    def __init__(self, builder: Any, start: Any) -> None:
        self._builder, self._slot = builder, cgutils.alloca_once_value(builder, start)

    @property
    def value(self) -> Any:
        """The vector as it stands."""
        return self._builder.load(self._slot)

    @value.setter
    def value(self, value: Any) -> None:
        self._builder.store(value, self._slot)


def emits(nest: Callable[[Emitter], None]) -> Callable[..., Any]:
    """Return Numba's way to write a loop nest that returns nothing."""

    def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        nest(Emitter(context, builder, signature, arguments))
        return context.get_dummy_value()

    return build
