"""3x3 tensors by their components, as tuples of vectors: see `models/cartesian.py`.

``x[0]`` is I, ``x[1:4]`` A and ``x[4:9]`` S, in the orthonormal basis, so that norms are sums of
squares. Of a network without A or S they are left out: a tuple then has six, four or one
components (``shape``, see `components`), and products drop what is not among them. In memory the
vectors of an atom and chunk of channels lie side by side.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from ....maths.cartesian import BASIS, BY_COMPONENTS, ROWS
from .compiled import inlined
from .components import load_at
from .simd import LANES, Vector, call_lanewise, fma, lanes_type, like, vector_pointer

ROOT_1_2 = math.sqrt(1 / 2)
ROOT_1_3 = math.sqrt(1 / 3)
ROOT_1_6 = math.sqrt(1 / 6)

IRREP_ROWS = {
    components: [list(range(9))[ROWS[irrep]] for irrep in irreps]
    for components, irreps in BY_COMPONENTS.items()
}
"""Rows of the basis, by irrep, that so many components stand for."""


def rows_of(components: int) -> list[int]:
    """Rows of the basis that so many components stand for."""
    return [row for rows in IRREP_ROWS[components] for row in rows]


# What is known when compiled


@intrinsic
def features(typing: Any, shape: Any) -> Any:
    """Numbers of one atom and chunk of channels."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return context.get_constant(types.intp, shape.dtype.count * LANES)

    return types.intp(shape), generate


@intrinsic
def irreps_of(typing: Any, shape: Any) -> Any:
    """How many irreps there are."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return context.get_constant(types.intp, len(IRREP_ROWS[shape.dtype.count]))

    return types.intp(shape), generate


@intrinsic
def only(typing: Any, shape: Any, x: Any) -> Any:
    """Those of nine components that there are."""
    rows = rows_of(shape.dtype.count)
    result = types.UniTuple(x.dtype, len(rows))

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        values = cgutils.unpack_tuple(builder, args[1])
        return context.make_tuple(builder, result, [values[row] for row in rows])

    return result(shape, x), generate


@intrinsic
def with_zeros(typing: Any, x: Any) -> Any:
    """All nine components, those that there are not being zero."""
    rows = rows_of(x.count)
    result = types.UniTuple(x.dtype, 9)

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        nine = [ir.Constant(lanes_type(x.dtype.dtype), [0.0] * LANES)] * 9
        for row, value in zip(rows, cgutils.unpack_tuple(builder, args[0]), strict=True):
            nine[row] = value
        return context.make_tuple(builder, result, nine)

    return result(x), generate


# Irreps


def _vectors(dtype: Any, shape: Any) -> types.UniTuple:
    """The type of one vector for each irrep."""
    return types.UniTuple(Vector(dtype), len(IRREP_ROWS[shape.dtype.count]))


@intrinsic
def load_irreps(typing: Any, shape: Any, array: Any, start: Any, stride: Any) -> Any:
    """One vector for each irrep, from array[start] on and ``stride`` apart."""
    result = _vectors(array.dtype, shape)

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        values = []
        for k in range(len(result)):
            step = builder.mul(args[3], ir.Constant(args[3].type, k))
            index = builder.add(args[2], step)
            values.append(load_at(context, builder, array, args[1], index))
        return context.make_tuple(builder, result, values)

    return result(shape, array, types.intp, types.intp), generate


@intrinsic
def store_irreps(typing: Any, array: Any, start: Any, stride: Any, x: Any) -> Any:
    """Write them."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        for k, value in enumerate(cgutils.unpack_tuple(builder, args[3])):
            step = builder.mul(args[2], ir.Constant(args[2].type, k))
            pointer = vector_pointer(context, builder, array, args[0], builder.add(args[1], step))
            builder.store(value, pointer, align=array.dtype.bitwidth // 8)
        return context.get_dummy_value()

    return types.void(array, types.intp, types.intp, x), generate


@intrinsic
def splines(typing: Any, shape: Any, table: Any, at: Any, weights: Any) -> Any:
    """For each irrep the sum over consecutive rows of a table, times a weight each.

    A row has twice as many vectors as there are irreps; those from ``table[at]`` on are summed.
    """
    result = _vectors(table.dtype, shape)
    row = 2 * len(result) * LANES

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        weight = cgutils.unpack_tuple(builder, args[3])
        values = []
        for k in range(len(result)):
            rows = [
                load_at(
                    context,
                    builder,
                    table,
                    args[1],
                    builder.add(args[2], ir.Constant(args[2].type, m * row + k * LANES)),
                )
                for m in range(len(weight))
            ]
            value = builder.fmul(weight[-1], rows[-1])
            for w, c in zip(weight[-2::-1], rows[-2::-1], strict=True):
                value = call_lanewise(builder, "fma", w, c, value)
            values.append(value)
        return context.make_tuple(builder, result, values)

    return result(shape, table, types.intp, weights), generate


@intrinsic
def scaled(typing: Any, factors: Any, x: Any) -> Any:
    """Each irrep times a factor."""
    irreps = IRREP_ROWS[x.count]

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        factor, values = (cgutils.unpack_tuple(builder, each) for each in args)
        of_each = [f for f, rows in zip(factor, irreps, strict=True) for _ in rows]
        products = [builder.fmul(f, v) for f, v in zip(of_each, values, strict=True)]
        return context.make_tuple(builder, x, products)

    return x(factors, x), generate


@intrinsic
def plus_scaled(typing: Any, t: Any, factors: Any, x: Any) -> Any:
    """T + scaled(factors, x)."""
    irreps = IRREP_ROWS[x.count]

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        terms, factor, values = (cgutils.unpack_tuple(builder, each) for each in args)
        of_each = [f for f, rows in zip(factor, irreps, strict=True) for _ in rows]
        sums = [
            call_lanewise(builder, "fma", f, v, t)
            for t, f, v in zip(terms, of_each, values, strict=True)
        ]
        return context.make_tuple(builder, x, sums)

    return x(x, factors, x), generate


def _dots(builder: Any, xs: Any, ys: Any) -> list[Any]:
    found, pairs = [], iter(zip(xs, ys, strict=True))
    for rows in IRREP_ROWS[len(xs)]:
        value = builder.fmul(*next(pairs))
        for _ in rows[1:]:
            a, b = next(pairs)
            value = call_lanewise(builder, "fma", a, b, value)
        found.append(value)
    return found


@intrinsic
def dots(typing: Any, x: Any, y: Any) -> Any:
    """Inner products of the I, the A and the S parts."""
    result = types.UniTuple(x.dtype, len(IRREP_ROWS[x.count]))

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        xs, ys = (cgutils.unpack_tuple(builder, each) for each in args)
        return context.make_tuple(builder, result, _dots(builder, xs, ys))

    return result(x, x), generate


@intrinsic
def dot(typing: Any, x: Any, y: Any) -> Any:
    """Frobenius product."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        first, *rest = _dots(builder, *(cgutils.unpack_tuple(builder, each) for each in args))
        for each in rest:
            first = builder.fadd(first, each)
        return first

    return x.dtype(x, x), generate


@intrinsic
def weighted(typing: Any, weights: Any, x: Any) -> Any:
    """Sum over irreps of weights times x."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        ws, xs = (cgutils.unpack_tuple(builder, each) for each in args)
        value = builder.fmul(ws[-1], xs[-1])
        for w, each in zip(ws[-2::-1], xs[-2::-1], strict=True):
            value = call_lanewise(builder, "fma", w, each, value)
        return value

    return x.dtype(x, x), generate


# Products


@intrinsic
def transposed(typing: Any, x: Any) -> Any:
    """X^T: the antisymmetric part changes its sign."""
    rows = rows_of(x.count)

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        values = cgutils.unpack_tuple(builder, args[0])
        turned = [
            builder.fneg(value) if row in (1, 2, 3) else value
            for row, value in zip(rows, values, strict=True)
        ]
        return context.make_tuple(builder, x, turned)

    return x(x), generate


def _constants(components: int) -> Any:
    """Of X Y in the basis, (result, x, y)."""
    rows = rows_of(components)
    basis = BASIS.numpy()[rows]
    return np.einsum("kab,iac,jcb->kij", basis, basis, basis)


def _bilinear(commuting: bool) -> Any:
    def bilinear(typing: Any, x: Any, y: Any) -> Any:
        constants = _constants(x.count)
        if commuting:
            constants = constants + constants.transpose(0, 2, 1)

        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            xs, ys = (cgutils.unpack_tuple(builder, each) for each in args)
            found = []
            for table in constants:
                value = None
                for i, j in np.argwhere(abs(table) > 1e-12):
                    number = ir.Constant(xs[i].type, [float(table[i, j])] * LANES)
                    term = builder.fmul(number, xs[i])
                    if value is None:
                        value = builder.fmul(term, ys[j])
                    else:
                        value = call_lanewise(builder, "fma", term, ys[j], value)
                found.append(value)
            return context.make_tuple(builder, x, found)

        return x(x, x), generate

    bilinear.__doc__ = "X Y{} of few components, term by term.".format(" + Y X" * commuting)
    return intrinsic(bilinear)


few_product = _bilinear(commuting=False)
few_anticommutator = _bilinear(commuting=True)


@inlined
def compose(x: Any) -> Any:
    """Nine components -> the entries of the matrix, by rows."""
    half = like(x[0], ROOT_1_2)
    i, d, e = like(x[0], ROOT_1_3) * x[0], half * x[7], like(x[0], ROOT_1_6) * x[8]
    return (
        i + d - e,
        half * (x[4] - x[3]),
        half * (x[6] + x[2]),
        half * (x[4] + x[3]),
        i - d - e,
        half * (x[5] - x[1]),
        half * (x[6] - x[2]),
        half * (x[5] + x[1]),
        i + e + e,
    )


@inlined
def decompose(m: Any) -> Any:
    """The entries of a matrix -> its components."""
    half = like(m[0], ROOT_1_2)
    diagonal = m[0] + m[4]
    return (
        like(m[0], ROOT_1_3) * (diagonal + m[8]),
        half * (m[7] - m[5]),
        half * (m[2] - m[6]),
        half * (m[3] - m[1]),
        half * (m[1] + m[3]),
        half * (m[5] + m[7]),
        half * (m[2] + m[6]),
        half * (m[0] - m[4]),
        like(m[0], ROOT_1_6) * (m[8] + m[8] - diagonal),
    )


@inlined
def entry(a: Any, b: Any, row: int, column: int) -> Any:
    """One entry of the matrix product."""
    last = a[3 * row + 2] * b[6 + column]
    return fma(a[3 * row], b[column], fma(a[3 * row + 1], b[3 + column], last))


@inlined
def product(x: Any, y: Any) -> Any:
    """Components of X Y."""
    if len(x) < 9:
        return few_product(x, y)
    a, b = compose(x), compose(y)
    return decompose(
        (
            entry(a, b, 0, 0), entry(a, b, 0, 1), entry(a, b, 0, 2),
            entry(a, b, 1, 0), entry(a, b, 1, 1), entry(a, b, 1, 2),
            entry(a, b, 2, 0), entry(a, b, 2, 1), entry(a, b, 2, 2),
        )
    )  # fmt: skip


@inlined
def both(a: Any, b: Any, row: int, column: int) -> Any:
    """One entry of A B + B A."""
    return entry(a, b, row, column) + entry(b, a, row, column)


@inlined
def anticommutator(x: Any, y: Any) -> Any:
    """Components of X Y + Y X."""
    if len(x) < 9:
        return few_anticommutator(x, y)
    a, b = compose(x), compose(y)
    return decompose(
        (
            both(a, b, 0, 0), both(a, b, 0, 1), both(a, b, 0, 2),
            both(a, b, 1, 0), both(a, b, 1, 1), both(a, b, 1, 2),
            both(a, b, 2, 0), both(a, b, 2, 1), both(a, b, 2, 2),
        )
    )  # fmt: skip
