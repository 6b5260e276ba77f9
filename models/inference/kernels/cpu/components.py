"""Sixteen channels of d components: tuples of d vectors, for any d, with unrolled loops.

A function learns d from the length of a tuple of vectors, or from ``shape`` (`shape_of`), an empty
array of strings of d bytes: types are known at compile time. ``shape`` is an array because Numba
can copy a tuple of arrays and numbers to all threads, but not nested tuples.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic
from numba.np import arrayobj
from numpy.typing import NDArray

from .simd import (
    LANES,
    Vector,
    broadcast,
    call_lanewise,
    lanes_type,
    load_many,
    unrolled,
    vector_pointer,
)


def shape_of(components: int) -> NDArray[Any]:
    """An empty array whose dtype tells compiled functions the number of components."""
    return np.zeros(0, f"S{components}")


def _constant(index: Any, value: int) -> Any:
    return ir.Constant(index.type, value)


@intrinsic
def load_all(typing: Any, shape: Any, array: Any, start: Any) -> Any:
    """Load d consecutive vectors, beginning at array[start]."""
    count = shape.dtype.count
    result = types.UniTuple(Vector(array.dtype), count)

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        offsets = range(0, LANES * count, LANES)
        values = load_many(context, builder, array, args[1], args[2], offsets)
        return context.make_tuple(builder, result, values)

    return result(shape, array, types.intp), generate


@intrinsic
def store_all(typing: Any, array: Any, start: Any, x: Any) -> Any:
    """Store d consecutive vectors, beginning at array[start]."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        for k, value in enumerate(cgutils.unpack_tuple(builder, args[2])):
            index = builder.add(args[1], _constant(args[1], LANES * k))
            pointer = vector_pointer(context, builder, array, args[0], index)
            builder.store(value, pointer, align=array.dtype.bitwidth // 8)
        return context.get_dummy_value()

    return types.void(array, types.intp, x), generate


def load_vectors(kind: Callable[[Any, Any], types.UniTuple], doc: str) -> Any:
    """An intrinsic (shape, array, start, stride) -> tuple of vectors, ``stride`` apart.

    ``kind`` gives the type of the tuple from the dtype of the array and the type of the shape.
    """

    def load_apart(typing: Any, shape: Any, array: Any, start: Any, stride: Any) -> Any:
        result = kind(array.dtype, shape)

        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            values = []
            for k in range(len(result)):
                index = builder.add(args[2], builder.mul(args[3], _constant(args[3], k)))
                values += load_many(context, builder, array, args[1], index, [0])
            return context.make_tuple(builder, result, values)

        return result(shape, array, types.intp, types.intp), generate

    load_apart.__doc__ = doc
    return intrinsic(load_apart)


load_apart = load_vectors(
    lambda dtype, shape: types.UniTuple(Vector(dtype), shape.dtype.count),
    "Load d vectors, ``stride`` apart.",
)


@intrinsic
def load_places(typing: Any, shape: Any, array: Any, start: Any, places: Any) -> Any:
    """Load d vectors at array[start + places[k]]."""
    result = types.UniTuple(Vector(array.dtype), shape.dtype.count)

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        table = arrayobj.make_array(signature.args[3])(context, builder, args[3])
        values = []
        for k in range(len(result)):
            place = builder.load(builder.gep(table.data, [_constant(args[2], k)]))
            index = builder.add(args[2], place)
            values += load_many(context, builder, array, args[1], index, [0])
        return context.make_tuple(builder, result, values)

    return result(shape, array, types.intp, places), generate


@intrinsic
def splat_all(typing: Any, shape: Any, array: Any, start: Any) -> Any:
    """D vectors of which each has one of d consecutive numbers in every lane."""
    result = types.UniTuple(Vector(array.dtype), shape.dtype.count)

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        fields = arrayobj.make_array(signature.args[1])(context, builder, args[1])
        values = []
        for k in range(len(result)):
            place = builder.gep(fields.data, [builder.add(args[2], _constant(args[2], k))])
            values.append(broadcast(builder, builder.load(place)))
        return context.make_tuple(builder, result, values)

    return result(shape, array, types.intp), generate


@intrinsic
def store_apart(typing: Any, array: Any, start: Any, stride: Any, x: Any) -> Any:
    """Store vectors, beginning at array[start] and ``stride`` apart."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        for k, value in enumerate(cgutils.unpack_tuple(builder, args[3])):
            step = builder.mul(args[2], _constant(args[2], k))
            pointer = vector_pointer(context, builder, array, args[0], builder.add(args[1], step))
            builder.store(value, pointer, align=array.dtype.bitwidth // 8)
        return context.get_dummy_value()

    return types.void(array, types.intp, types.intp, x), generate


@unrolled(lambda x, y: x)
def plus(builder: Any, x: Any, y: Any) -> Any:
    """X + y."""
    return [builder.fadd(a, b) for a, b in zip(x, y, strict=True)]


@unrolled(lambda factor, x: x)
def times(builder: Any, factor: Any, x: Any) -> Any:
    """Every component times one vector."""
    return [builder.fmul(factor, each) for each in x]


@unrolled(lambda x, y: x)
def multiplied(builder: Any, x: Any, y: Any) -> Any:
    """Every component of x times that of y."""
    return [builder.fmul(a, b) for a, b in zip(x, y, strict=True)]


@unrolled(lambda t, factor, x: x)
def plus_times(builder: Any, t: Any, factor: Any, x: Any) -> Any:
    """T + times(factor, x)."""
    pairs = zip(x, t, strict=True)
    return [call_lanewise(builder, "fma", factor, value, term) for value, term in pairs]


@unrolled(lambda x, y: x.dtype)
def dot(builder: Any, x: Any, y: Any) -> Any:
    """Sum of x y over components."""
    return fused_sum(builder, x, y)


def fused_sum(builder: Any, x: Any, y: Any) -> Any:
    """LLVM code for a sum of products, in order."""
    value = builder.fmul(x[0], y[0])
    for a, b in zip(x[1:], y[1:], strict=True):
        value = call_lanewise(builder, "fma", a, b, value)
    return value


@unrolled(lambda x, first: x)
def with_first(builder: Any, x: Any, first: Any) -> Any:
    """X with component 0 replaced."""
    return [first, *x[1:]]


def _coupling(back: bool) -> Callable[..., Any]:
    def couple(typing: Any, matrix: Any, start: Any, x: Any, sums: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            kind, (array, first, _, _) = signature.args, args
            xs, values = (cgutils.unpack_tuple(builder, each) for each in args[2:])
            data = builder.bitcast(
                vector_pointer(context, builder, kind[0], array, first),
                xs[0].type.element.as_pointer(),
            )
            d = len(xs)
            for row in range(d):
                for column in range(d):
                    place = column * d + row if back else row * d + column
                    number = builder.load(builder.gep(data, [_constant(first, place)]))
                    values[row] = call_lanewise(
                        builder, "fma", broadcast(builder, number), xs[column], values[row]
                    )
            return context.make_tuple(builder, x, values)

        return x(matrix, types.intp, x, x), generate

    couple.__doc__ = "sums + M{} x of the (d, d) matrix at matrix[start].".format("^T" * back)
    return intrinsic(couple)


couple = _coupling(back=False)
couple_back = _coupling(back=True)


@intrinsic
def outer_sums(
    typing: Any, shape: Any, a: Any, a_start: Any, b: Any, b_start: Any, c: Any, c_start: Any,
    e: Any, e_start: Any, chunks: Any, out: Any, out_start: Any,
) -> Any:  # fmt: skip
    """Vectors (d, d) of sums over chunks, a_k b_i + c_k e_i, to be completed by `lane_sums`.

    Features have the layout [chunk][component][16]. The sums are computed tile by tile; if the
    tile size does not divide d, the last tile is shifted back and some sums are computed twice.
    """
    d, whole = shape.dtype.count, types.intp
    tile = math.isqrt(d - 1) + 1
    tiles = -(-d // tile)

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        kind = signature.args
        index = args[2]
        zero = ir.Constant(lanes_type(a.dtype), [0.0] * LANES)

        def first_of(which: Any) -> Any:
            first = builder.mul(which, _constant(index, tile * LANES))
            last = _constant(index, (d - tile) * LANES)
            return builder.select(builder.icmp_signed("<", first, last), first, last)

        with cgutils.for_range(builder, _constant(index, tiles)) as outer:
            k_first = first_of(outer.index)
            with cgutils.for_range(builder, _constant(index, tiles)) as inner:
                i_first = first_of(inner.index)
                places = itertools.product(range(tile), repeat=2)
                sums = {place: cgutils.alloca_once_value(builder, zero) for place in places}
                for each in sums.values():
                    builder.store(zero, each)
                with cgutils.for_range(builder, args[9]) as chunk:
                    here = builder.mul(chunk.index, _constant(index, d * LANES))

                    def vectors(which: int, offset: Any, here: Any = here) -> list[Any]:
                        start = builder.add(builder.add(args[which + 1], here), offset)
                        offsets = range(0, LANES * tile, LANES)
                        return load_many(
                            context, builder, kind[which], args[which], start, offsets
                        )

                    for left, right in ((1, 3), (5, 7)):
                        rows, columns = vectors(left, k_first), vectors(right, i_first)
                        for (k, i), each in sums.items():
                            terms = rows[k], columns[i], builder.load(each)
                            builder.store(call_lanewise(builder, "fma", *terms), each)
                first = builder.add(
                    args[11], builder.add(builder.mul(k_first, _constant(index, d)), i_first)
                )
                for (k, i), each in sums.items():
                    place = builder.add(first, _constant(index, (k * d + i) * LANES))
                    pointer = vector_pointer(context, builder, kind[10], args[10], place)
                    builder.store(builder.load(each), pointer, align=a.dtype.bitwidth // 8)
        return context.get_dummy_value()

    return (
        types.void(shape, a, whole, b, whole, c, whole, e, whole, whole, out, whole),
        generate,
    )


@intrinsic
def lane_sums(typing: Any, array: Any, start: Any) -> Any:
    """Sum of the lanes of each of the sixteen vectors from array[start] on, as one vector."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        index = ir.VectorType(ir.IntType(32), LANES)
        even = ir.Constant(index, list(range(0, 2 * LANES, 2)))
        odd = ir.Constant(index, list(range(1, 2 * LANES, 2)))
        offsets = range(0, LANES * LANES, LANES)
        values = load_many(context, builder, array, args[0], args[1], offsets)
        while len(values) > 1:
            values = [
                builder.fadd(
                    builder.shuffle_vector(values[k], values[k + 1], even),
                    builder.shuffle_vector(values[k], values[k + 1], odd),
                )
                for k in range(0, len(values), 2)
            ]
        return values[0]

    return Vector(array.dtype)(array, types.intp), generate
