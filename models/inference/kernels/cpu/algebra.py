"""The components of 3x3 tensors as tuples of vectors; see `models/maths/cartesian.py`.

``x[0]`` is I, ``x[1:4]`` A and ``x[4:9]`` S, in the orthonormal basis, so that norms are sums of
squares. Networks without A or S leave them out: a tuple then has six, four or one components
(``shape``, see `components`), and products drop all others. In memory, the vectors of an atom and
chunk of channels are adjacent.
"""

from __future__ import annotations

import functools
import math
from itertools import pairwise
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from ....maths.cartesian import BASIS, BY_COMPONENTS, ROWS
from .compiled import internal
from .components import fused_sum, load_vectors
from .simd import (
    LANES,
    Vector,
    call_lanewise,
    from_type,
    like,
    load_many,
    unrolled,
)

ROOT_1_2 = math.sqrt(1 / 2)
ROOT_1_3 = math.sqrt(1 / 3)
ROOT_1_6 = math.sqrt(1 / 6)

IRREP_ROWS = {
    components: [list(range(9))[ROWS[irrep]] for irrep in irreps]
    for components, irreps in BY_COMPONENTS.items()
}
"""Number of components -> the rows of the basis that they stand for, by irrep."""


def rows_of(components: int) -> list[int]:
    """Rows of the basis that this number of components stands for."""
    return [row for rows in IRREP_ROWS[components] for row in rows]


# Compile-time constants


features = from_type(lambda shape: shape.dtype.count * LANES)
"""Count of numbers per atom and chunk of channels."""
irreps_of = from_type(lambda shape: len(IRREP_ROWS[shape.dtype.count]))
"""Number of irreps."""


@intrinsic
def only(typing: Any, shape: Any, x: Any) -> Any:
    """Select, from nine components, those that the network has."""
    rows = rows_of(shape.dtype.count)
    result = types.UniTuple(x.dtype, len(rows))

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        values = cgutils.unpack_tuple(builder, args[1])
        return context.make_tuple(builder, result, [values[row] for row in rows])

    return result(shape, x), generate


@unrolled(lambda x: types.UniTuple(x.dtype, 9))
def with_zeros(builder: Any, x: Any) -> Any:
    """All nine components, with zeros for those that the network lacks."""
    nine = [ir.Constant(x[0].type, [0.0] * LANES)] * 9
    for row, value in zip(rows_of(len(x)), x, strict=True):
        nine[row] = value
    return nine


# Irreps


def _vectors(dtype: Any, shape: Any) -> types.UniTuple:
    """The type of one vector for each irrep."""
    return types.UniTuple(Vector(dtype), len(IRREP_ROWS[shape.dtype.count]))


load_irreps = load_vectors(_vectors, "Load one vector per irrep, ``stride`` apart.")


@intrinsic
def splines(typing: Any, shape: Any, table: Any, at: Any, weights: Any) -> Any:
    """Weighted sums over consecutive rows of a table, one per irrep.

    The rows, each of two vectors per irrep, begin at ``table[at]``.
    """
    result = _vectors(table.dtype, shape)
    row = 2 * len(result) * LANES

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        weight = cgutils.unpack_tuple(builder, args[3])
        values = []
        for k in range(len(result)):
            offsets = [m * row + k * LANES for m in range(len(weight))]
            rows = load_many(context, builder, table, args[1], args[2], offsets)
            values.append(fused_sum(builder, weight[::-1], rows[::-1]))
        return context.make_tuple(builder, result, values)

    return result(shape, table, types.intp, weights), generate


def _of_components(factors: Any, components: int) -> list[Any]:
    """Expand factors from one per irrep to one per component."""
    pairs = zip(factors, IRREP_ROWS[components], strict=True)
    return [factor for factor, rows in pairs for _ in rows]


@unrolled(lambda factors, x: x)
def scaled(builder: Any, factors: Any, x: Any) -> Any:
    """Each irrep times a factor."""
    of_each = _of_components(factors, len(x))
    return [builder.fmul(f, value) for f, value in zip(of_each, x, strict=True)]


@unrolled(lambda t, factors, x: x)
def plus_scaled(builder: Any, t: Any, factors: Any, x: Any) -> Any:
    """T + scaled(factors, x)."""
    terms = zip(_of_components(factors, len(x)), x, t, strict=True)
    return [call_lanewise(builder, "fma", *each) for each in terms]


def _dots(builder: Any, x: Any, y: Any) -> list[Any]:
    """Inner products of the I, A and S parts."""
    ends = np.cumsum([0, *map(len, IRREP_ROWS[len(x)])])
    return [fused_sum(builder, x[a:b], y[a:b]) for a, b in pairwise(ends)]


dots = unrolled(lambda x, y: types.UniTuple(x.dtype, len(IRREP_ROWS[x.count])))(_dots)


@unrolled(lambda x, y: x.dtype)
def dot(builder: Any, x: Any, y: Any) -> Any:
    """Frobenius product."""
    return functools.reduce(builder.fadd, _dots(builder, x, y))


@unrolled(lambda weights, x: x.dtype)
def weighted(builder: Any, weights: Any, x: Any) -> Any:
    """Sum of weights times x over irreps."""
    return fused_sum(builder, weights[::-1], x[::-1])


# Products


@unrolled(lambda x: x)
def transposed(builder: Any, x: Any) -> Any:
    """X^T: the antisymmetric part changes sign."""
    pairs = zip(rows_of(len(x)), x, strict=True)
    return [builder.fneg(value) if row in (1, 2, 3) else value for row, value in pairs]


def _few(commuting: bool) -> Any:
    """X Y, or X Y + Y X, for fewer than nine components: term by term."""

    @unrolled(lambda x, y: x)
    def few(builder: Any, x: Any, y: Any) -> Any:
        basis = BASIS.numpy()[rows_of(len(x))]
        constants = np.einsum("kab,iac,jcb->kij", basis, basis, basis)  # (result, x, y)
        if commuting:
            constants = constants + constants.transpose(0, 2, 1)
        found = []
        for table in constants:
            terms = [tuple(place) for place in np.argwhere(abs(table) > 1e-12)]
            factors = [
                builder.fmul(ir.Constant(x[i].type, [float(table[i, j])] * LANES), x[i])
                for i, j in terms
            ]
            found.append(fused_sum(builder, factors, [y[j] for _, j in terms]))
        return found

    return few


few_product, few_anticommutator = _few(commuting=False), _few(commuting=True)


@internal
def compose(x: Any) -> Any:
    """Nine components -> entries of the matrix, by rows."""
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


@internal
def decompose(m: Any) -> Any:
    """Entries of a matrix, by rows -> its nine components."""
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


def _entry(builder: Any, a: Any, b: Any, row: int, column: int) -> Any:
    """LLVM code for one entry of the matrix product."""
    return fused_sum(builder, a[3 * row : 3 * row + 3][::-1], b[column::3][::-1])


@unrolled(lambda a, b: a)
def matrix_product(builder: Any, a: Any, b: Any) -> Any:
    """Entries of A B, by rows."""
    return [_entry(builder, a, b, *divmod(k, 3)) for k in range(9)]


@unrolled(lambda a, b: a)
def matrix_anticommutator(builder: Any, a: Any, b: Any) -> Any:
    """Entries of A B + B A, by rows."""
    return [
        builder.fadd(_entry(builder, a, b, *place), _entry(builder, b, a, *place))
        for place in (divmod(k, 3) for k in range(9))
    ]


@internal
def product(x: Any, y: Any) -> Any:
    """Components of X Y."""
    if len(x) < 9:
        return few_product(x, y)
    return decompose(matrix_product(compose(x), compose(y)))


@internal
def anticommutator(x: Any, y: Any) -> Any:
    """Components of X Y + Y X."""
    if len(x) < 9:
        return few_anticommutator(x, y)
    return decompose(matrix_anticommutator(compose(x), compose(y)))
