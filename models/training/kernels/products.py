"""Products of rows for the gradients of matrices, and matrices packed for products with rows."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic
from numba.np import arrayobj

from ...inference.kernels.cpu.compiled import internal
from ...inference.kernels.cpu.components import load_apart, shape_of, store_apart
from ...inference.kernels.cpu.dense import WIDTHS, full_width
from ...inference.kernels.cpu.simd import (
    LANES,
    broadcast,
    call_lanewise,
    element_type,
    from_type,
    unrolled,
    vector_pointer,
)
from .loops import Turns, over, taken

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

AT_ONCE = 480
"""Rows that stay in the cache while all tiles of a product use them."""


@internal
def add_product(
    g: Any, g_start: int, x: Any, x_start: int, x_stride: int, places: Any, rows: int,
    chunks: int, matrices: Any, start: int,
) -> None:  # fmt: skip
    """Add the sum over rows of g x^T, for sixteen numbers of g, to rows of a matrix.

    Rows are at ``places``; ``chunks`` of numbers of x are ``x_stride`` apart.
    """
    across, side = chunks_of_tile(g), chunks * LANES
    for begin in range(0, rows, AT_ONCE):
        end = min(begin + AT_ONCE, rows)
        for row in range(0, LANES, rows_of_tile(g)):
            chunk = 0
            while chunk < chunks:
                tile = (
                    g, g_start, row, x, x_start + chunk * x_stride, x_stride, places, begin, end,
                    matrices, start + row * side + chunk * LANES, side,
                )  # fmt: skip
                if chunk + across <= chunks:
                    wide_outer(*tile)
                    chunk += across
                else:
                    narrow_outer(*tile)
                    chunk += 1


SIXTEEN = shape_of(LANES)
"""Tells `load_apart` to load sixteen vectors."""


@over(lambda chunks, *_: chunks.size - 1)
def pack(turns: Turns, chunks: Any, weights: Any, matrices: Any, transposes: Any) -> None:
    """Pack matrices one behind the other, W^T and W, as `dense.pack_matrix` does.

    ``chunks`` are those of the inputs of the first matrix W, then of the outputs of each.
    """
    for layer in taken(turns):
        inputs, outputs, at = chunks[layer], chunks[layer + 1], 0
        for k in range(layer):
            at += chunks[k] * chunks[k + 1] * LANES * LANES
        for block in range(inputs * outputs):
            output, column = block // inputs, block % inputs
            first = at + (output * inputs * LANES + column) * LANES
            square = load_apart(SIXTEEN, weights, first, inputs * LANES)
            to, step = packed_place(weights, outputs, inputs, column, output)
            store_apart(transposes, at + to, step, square)
            to, step = packed_place(weights, inputs, outputs, output, column)
            store_apart(matrices, at + to, step, transposed_square(square))


@internal
def packed_place(array: Any, inputs: int, outputs: int, chunk: int, block: int) -> Any:
    """Where a packed matrix has rows of sixteen numbers of a chunk of outputs, and their distance.

    The first of sixteen rows of a block of inputs is meant.
    """
    width = full_width(array)
    first = chunk // width * width
    if first + width > outputs:  # the last tiles are narrow
        first, width = chunk, 1
    row = width * LANES
    return first * inputs * LANES * LANES + block * LANES * row + (chunk - first) * LANES, row


@unrolled(lambda rows: rows)
def transposed_square(builder: Any, rows: Any) -> Any:
    """Sixteen vectors -> the vectors of their first lanes, their second lanes and so on."""
    for bit in (1, 2, 4, 8):
        lanes = range(LANES)
        low = [k if not k & bit else LANES + k - bit for k in lanes]
        high = [k + bit if not k & bit else LANES + k for k in lanes]
        found = list(rows)
        for k in lanes:
            if not k & bit:
                both = rows[k], rows[k + bit]
                for place, mask in ((k, low), (k + bit, high)):
                    index = ir.Constant(ir.VectorType(ir.IntType(32), LANES), mask)
                    found[place] = builder.shuffle_vector(*both, index)
        rows = found
    return rows
