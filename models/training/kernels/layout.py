"""Where the features of atoms have their numbers, and matrix products of features.

Sixteen channels, a chunk, of the components of an atom are adjacent: the number of a component
and channel is at ``((chunk * N + atom) * n + component) * 16 + channel % 16``, with channels
padded to a multiple of sixteen.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir
from numba import prange, types
from numba.core import cgutils
from numba.extending import intrinsic
from numba.np import arrayobj
from numpy.typing import NDArray

from ...inference.kernels.cpu.algebra import features, irreps_of, load_irreps
from ...inference.kernels.cpu.compiled import internal
from ...inference.kernels.cpu.components import load_all, store_all
from ...inference.kernels.cpu.dense import WIDTHS, multiply
from ...inference.kernels.cpu.simd import (
    LANES,
    broadcast,
    call_lanewise,
    element_type,
    from_type,
    vector_pointer,
)


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


@internal
def place(layout: Layout, chunk: int, i: int) -> int:
    """Where the components of an atom begin."""
    return (chunk * layout.atoms + i) * features(layout.shape)


@internal
def load(layout: Layout, x: Any, at: int) -> Any:
    """The components of an atom and chunk."""
    return load_all(layout.shape, x, at)


@internal
def store(layout: Layout, x: Any, at: int, value: Any) -> None:
    """Write the components of an atom and chunk."""
    store_all(x, at, value)


# Factors of irreps, (N, irreps, width): rows of dense layers


@internal
def width(layout: Layout) -> int:
    """Channels, padded."""
    return layout.chunks * LANES


@internal
def factor_place(layout: Layout, chunk: int, i: int) -> int:
    """Where the factors of an atom begin."""
    return (i * irreps_of(layout.shape) * layout.chunks + chunk) * LANES


@internal
def load_factors(layout: Layout, factors: Any, chunk: int, i: int) -> Any:
    """The factors of an atom and chunk."""
    return load_irreps(layout.shape, factors, factor_place(layout, chunk, i), width(layout))


# Products


@internal
def mix(layout: Layout, matrices: Any, x: Any, y: Any, first: int, last: int) -> None:
    """Y = x W for the channels of each irrep of atoms, with packed matrices."""
    chunks, stride = layout.chunks, layout.atoms * features(layout.shape)
    for k in range(layout.sizes.size):
        begin, end = first * layout.sizes[k], last * layout.sizes[k]
        multiply(
            x, 0, stride, layout.rows[k, begin:end], end - begin, matrices,
            k * width(layout) * width(layout), layout.zeros, 0, chunks, chunks, y, 0, stride,
        )  # fmt: skip


OUTER_ROWS = {bits: 8 if width > 1 else 4 for bits, width in WIDTHS.items()}
"""Bits of the dtype -> channels of g in a tile of `_outer`: with `outer_width` chunks of x, its
sums leave registers for the factors."""


def outer_width(array: Any) -> int:
    """Chunks of x in a tile, for the type of an array."""
    return max(1, WIDTHS[array.dtype.bitwidth] // 2)


rows_of_tile = from_type(lambda array: OUTER_ROWS[array.dtype.bitwidth])
chunks_of_tile = from_type(outer_width)


def _outer(wide: bool) -> Any:
    """Add the sum over places of g x^T to a tile: `OUTER_ROWS` channels of g, chunks of x."""

    def outer(
        typing: Any, g: Any, g_start: Any, channel: Any, x: Any, x_start: Any, x_stride: Any,
        places: Any, begin: Any, end: Any, sums: Any, s_start: Any, s_stride: Any,
    ) -> Any:  # fmt: skip
        count, across = OUTER_ROWS[g.dtype.bitwidth], outer_width(g) if wide else 1
        whole = types.intp

        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            g_, g_first, first_row, x_, x_first, stride, where, n, last, s_, s_first, step = args

            def vector(kind: Any, array: Any, start: Any, stride: Any, k: int) -> Any:
                index = builder.add(start, builder.mul(stride, ir.Constant(start.type, k)))
                return vector_pointer(context, builder, kind, array, index)

            sixteen, align = ir.Constant(g_first.type, LANES), g.dtype.bitwidth // 8
            pointers = [
                vector(sums, s_, builder.add(s_first, builder.mul(step, _at(row))), sixteen, k)
                for row in range(count)
                for k in range(across)
            ]
            totals = [
                cgutils.alloca_once_value(builder, builder.load(each, align=align))
                for each in pointers
            ]
            offsets = arrayobj.make_array(places)(context, builder, where).data
            with cgutils.for_range_slice(builder, n, last, _at(1)) as (place, _):
                offset = builder.load(builder.gep(offsets, [place]))
                ones = builder.bitcast(
                    vector_pointer(context, builder, g, g_, builder.add(g_first, offset)),
                    element_type(g.dtype).as_pointer(),
                )
                start = builder.add(x_first, offset)
                columns = [
                    builder.load(vector(x, x_, start, stride, k), align=align)
                    for k in range(across)
                ]
                for row in range(count):
                    one = builder.gep(ones, [builder.add(first_row, _at(row))])
                    each = broadcast(builder, builder.load(one))
                    for k, column in enumerate(columns):
                        total = totals[row * across + k]
                        value = call_lanewise(builder, "fma", each, column, builder.load(total))
                        builder.store(value, total)
            for pointer, total in zip(pointers, totals, strict=True):
                builder.store(builder.load(total), pointer, align=align)
            return context.get_dummy_value()

        return (
            types.void(g, whole, whole, x, whole, whole, places, whole, whole, sums, whole, whole),
            generate,
        )

    return intrinsic(outer)


def _at(k: int) -> ir.Constant:
    return ir.Constant(ir.IntType(64), k)


wide_outer, narrow_outer = _outer(wide=True), _outer(wide=False)

AT_ONCE = 96
"""Atoms of which the features stay in the cache, while all tiles of a product use them."""


def add_products(layout: Layout, g: Any, x: Any, matrices: Any) -> None:
    r"""Add the sums over atoms and components of :math:`g x^T` to the matrix of each irrep.

    This is the gradient of W in y = W x; ``matrices`` are (irreps, width, width).
    """
    stride, across = layout.atoms * features(layout.shape), chunks_of_tile(g)
    side = width(layout)
    for task in prange(layout.sizes.size * layout.chunks):
        k, chunk = task // layout.chunks, task % layout.chunks
        size = layout.sizes[k]
        for first in range(0, layout.atoms, AT_ONCE):
            begin, end = first * size, min(first + AT_ONCE, layout.atoms) * size
            for row in range(0, LANES, rows_of_tile(g)):
                at = (k * side + chunk * LANES + row) * side
                column = 0
                while column < layout.chunks:
                    tile = (
                        g, chunk * stride, row, x, column * stride, stride, layout.rows[k],
                        begin, end, matrices, at + column * LANES, side,
                    )  # fmt: skip
                    if column + across <= layout.chunks:
                        wide_outer(*tile)
                        column += across
                    else:
                        narrow_outer(*tile)
                        column += 1
