"""Where the features of atoms have their numbers, and matrix products of features.

Sixteen channels, a chunk, of the components of an atom are adjacent: the number of a component
and channel is at ``((chunk * N + atom) * n + component) * 16 + channel % 16``, with channels
padded to a multiple of sixteen.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic
from numpy.typing import NDArray

from ...inference.kernels.cpu.algebra import IRREP_ROWS, features
from ...inference.kernels.cpu.compiled import internal
from ...inference.kernels.cpu.components import store_all
from ...inference.kernels.cpu.dense import multiply
from ...inference.kernels.cpu.simd import LANES, Vector, load_many, vector_pointer
from .loops import Turns, over, taken
from .products import add_product


class Layout(NamedTuple):
    """Sizes of a batch."""

    shape: NDArray[Any]
    """Empty array that tells compiled functions the number of components (see `components`)."""
    atoms: int
    chunks: int
    """Chunks of channels."""
    sizes: NDArray[np.int64]
    """Components of each irrep."""
    rows: NDArray[np.int64]
    """(irreps, 5 N), places of the components of each irrep within a chunk, atom by atom."""
    zeros: NDArray[Any]
    """(width,), bias of products without bias."""
    parity_conserving: bool


# Numba passes every number of a named tuple to a compiled function, one by one, which makes calls
# slow to compile. These functions are code of their callers.


def number(builder: Any, kind: Any, value: Any, name: str) -> Any:
    """LLVM code for a field of a named tuple of this type."""
    return builder.extract_value(value, kind.fields.index(name))


def _components(layout: Any) -> int:
    shape = layout.types[layout.fields.index("shape")]
    return int(shape.dtype.count)


def _place(of_size: Callable[[Any], int]) -> Any:
    def place(typing: Any, layout: Any, chunk: Any, i: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            atoms = number(builder, layout, args[0], "atoms")
            row = builder.add(builder.mul(args[1], atoms), args[2])
            return builder.mul(row, ir.Constant(row.type, LANES * of_size(layout)))

        return types.intp(layout, types.intp, types.intp), generate

    return intrinsic(place)


place = _place(_components)
"""(layout, chunk, i) -> where the components of an atom begin."""
factor_place = _place(lambda layout: 1)
"""(layout, chunk, i) -> where the factors of an atom begin: arrays (irreps, chunks, N, 16), or
(chunks, N, 16) of factors for all irreps alike."""


@intrinsic
def load(typing: Any, layout: Any, x: Any, at: Any) -> Any:
    """The components of an atom and chunk."""
    offsets = range(0, LANES * _components(layout), LANES)
    result = types.UniTuple(Vector(x.dtype), len(offsets))

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        values = load_many(context, builder, x, args[1], args[2], offsets)
        return context.make_tuple(builder, result, values)

    return result(layout, x, types.intp), generate


store = store_all
"""(x, at, value): write the components of an atom and chunk."""


@intrinsic
def load_factors(typing: Any, layout: Any, factors: Any, at: Any) -> Any:
    """The factors of each irrep of an atom and chunk."""
    irreps = len(IRREP_ROWS[_components(layout)])
    result = types.UniTuple(Vector(factors.dtype), irreps)

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        step = factor_step(builder, layout, args[0])
        values = []
        for k in range(irreps):
            index = builder.add(args[2], builder.mul(step, ir.Constant(step.type, k)))
            values += load_many(context, builder, factors, args[1], index, [0])
        return context.make_tuple(builder, result, values)

    return result(layout, factors, types.intp), generate


@intrinsic
def store_factors(typing: Any, layout: Any, factors: Any, at: Any, values: Any) -> Any:
    """Write the factors of each irrep of an atom and chunk."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        step = factor_step(builder, layout, args[0])
        for k, value in enumerate(cgutils.unpack_tuple(builder, args[3])):
            index = builder.add(args[2], builder.mul(step, ir.Constant(step.type, k)))
            pointer = vector_pointer(context, builder, factors, args[1], index)
            builder.store(value, pointer, align=factors.dtype.bitwidth // 8)
        return context.get_dummy_value()

    return types.void(layout, factors, types.intp, values), generate


def factor_step(builder: Any, kind: Any, layout: Any) -> Any:
    """LLVM code for the distance between the factors of two irreps."""
    both = (number(builder, kind, layout, name) for name in ("atoms", "chunks"))
    count = builder.mul(*both)
    return builder.mul(count, ir.Constant(count.type, LANES))


each_atom = over(lambda layout, *_: layout.atoms)
each_chunk = over(lambda layout, *_: layout.chunks)


# Products


@internal
def mix(layout: Layout, matrices: Any, x: Any, y: Any, first: int, last: int) -> None:
    """Y = x W for the channels of each irrep of atoms, with packed matrices."""
    chunks, stride = layout.chunks, layout.atoms * features(layout.shape)
    for k in range(layout.sizes.size):
        begin, end = first * layout.sizes[k], last * layout.sizes[k]
        multiply(
            x, 0, stride, layout.rows[k, begin:end], end - begin, matrices,
            k * (chunks * LANES) ** 2, layout.zeros, 0, chunks, chunks, y, 0, stride,
        )  # fmt: skip


@over(lambda layout, *_: layout.sizes.size * layout.chunks)
def add_products(turns: Turns, layout: Layout, g: Any, x: Any, matrices: Any) -> None:
    r"""Add the sums over atoms and components of :math:`g x^T` to the matrix of each irrep.

    This is the gradient of W in y = W x; ``matrices`` are (irreps, width, width).
    """
    stride = layout.atoms * features(layout.shape)
    for task in taken(turns):
        k, chunk = task // layout.chunks, task % layout.chunks
        add_product(
            g, chunk * stride, x, 0, stride, layout.rows[k], layout.atoms * layout.sizes[k],
            layout.chunks, matrices, task * LANES * LANES * layout.chunks,
        )  # fmt: skip
