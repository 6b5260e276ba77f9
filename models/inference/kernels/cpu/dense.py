"""Matrix products on rows of sixteen-channel chunks.

Layout: an array of n rows of K channels is stored as K / 16 chunks, each of n rows of sixteen
numbers. Element (row, channel) is at ``channel // 16 * stride + row + channel % 16``, where
``row`` is the offset of the row. Channels are padded with zeros to whole chunks.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from llvmlite import binding, ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic
from numpy.typing import NDArray

from .compiled import internal
from .simd import (
    LANES,
    broadcast,
    call_lanewise,
    element_type,
    from_type,
    load_many,
    vector_pointer,
)

ROWS = 6
"""Rows of a tile; with `WIDTHS` chunks of columns, its sums fill the registers."""


def _widths() -> dict[int, int]:
    told = numba.config.CPU_FEATURES  # set to compile for another processor
    here = binding.get_host_cpu_features().get("avx512f")
    wide = "+avx512f" in told.split(",") if told else here
    return {32: 4, 64: 2} if wide else {32: 1, 64: 1}


UNROLLED = 4
"""Channels that a tile multiplies without a loop."""

WIDTHS = _widths()
"""Bits of the dtype -> chunks of columns in a tile, on this processor."""


full_width = from_type(lambda array: WIDTHS[array.dtype.bitwidth])
"""`WIDTHS` for the array's dtype, known at compile time."""


def _tile(wide: bool) -> Any:
    """The product of one tile: `ROWS` rows times one or `WIDTHS` chunks of columns."""

    def tile(
        typing: Any, a: Any, rows: Any, a_start: Any, a_stride: Any, chunks: Any, w: Any,
        w_start: Any, b: Any, b_start: Any, c: Any, c_start: Any, c_stride: Any,
    ) -> Any:  # fmt: skip
        width = WIDTHS[a.dtype.bitwidth] if wide else 1
        whole = types.intp

        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            x, offsets, x_start, x_stride, n, w_, w_first, b_, b_first, y, y_start, y_stride = args
            places = cgutils.unpack_tuple(builder, offsets)

            def constant(k: int) -> ir.Constant:
                return ir.Constant(x_start.type, k)

            across = range(0, LANES * width, LANES)
            columns = load_many(context, builder, b, b_, b_first, across)
            sums = [
                [cgutils.alloca_once_value(builder, column) for column in columns]
                for _ in range(ROWS)
            ]
            with cgutils.for_range(builder, n) as chunk:
                first = builder.add(x_start, builder.mul(chunk.index, x_stride))
                step = constant(LANES * LANES * width)
                weights = builder.add(w_first, builder.mul(chunk.index, step))
                ones = [
                    builder.bitcast(
                        vector_pointer(context, builder, a, x, builder.add(first, place)),
                        element_type(a.dtype).as_pointer(),
                    )
                    for place in places
                ]
                # A few channels at a time: with all sixteen, compiling takes twice as long.
                with cgutils.for_range(builder, constant(LANES // UNROLLED)) as part:
                    begin = builder.mul(part.index, constant(UNROLLED))
                    row_of = builder.add(weights, builder.mul(begin, constant(width * LANES)))
                    for k in range(UNROLLED):
                        here = range(k * width * LANES, (k + 1) * width * LANES, LANES)
                        row = load_many(context, builder, w, w_, row_of, here)
                        lane = builder.add(begin, constant(k))
                        for one, totals in zip(ones, sums, strict=True):
                            each = broadcast(builder, builder.load(builder.gep(one, [lane])))
                            for total, column in zip(totals, row, strict=True):
                                value = call_lanewise(
                                    builder, "fma", each, column, builder.load(total)
                                )
                                builder.store(value, total)
            for place, totals in zip(places, sums, strict=True):
                for v, total in enumerate(totals):
                    index = builder.add(y_start, place)
                    index = builder.add(index, builder.mul(y_stride, constant(v)))
                    pointer = vector_pointer(context, builder, c, y, index)
                    builder.store(builder.load(total), pointer, align=a.dtype.bitwidth // 8)
            return context.get_dummy_value()

        return (
            types.void(a, rows, whole, whole, whole, w, whole, b, whole, c, whole, whole),
            generate,
        )

    return intrinsic(tile)


wide_tile = _tile(wide=True)
narrow_tile = _tile(wide=False)


@internal
def multiply(
    x: Any, x_start: int, x_stride: int, rows: Any, count: int, weights: Any, w_start: int,
    bias: Any, b_start: int, chunks_in: int, chunks_out: int, y: Any, y_start: int, y_stride: int,
) -> None:  # fmt: skip
    """Y = x W + b for the rows at ``rows[:count]``, with packed weights (see `pack_matrix`)."""
    width = full_width(x)
    last = count - 1
    column = 0
    while column < chunks_out:
        tile_width = width if column + width <= chunks_out else 1
        for row in range(0, count, ROWS):
            # Places beyond the last row repeat it: the same numbers go to the same place.
            offsets = (
                rows[row], rows[min(row + 1, last)], rows[min(row + 2, last)],
                rows[min(row + 3, last)], rows[min(row + 4, last)], rows[min(row + 5, last)],
            )  # fmt: skip
            tile = (
                x, offsets, x_start, x_stride, chunks_in, weights, w_start, bias,
                b_start + column * LANES, y, y_start + column * y_stride, y_stride,
            )  # fmt: skip
            if tile_width == width:
                wide_tile(*tile)
            else:
                narrow_tile(*tile)
        w_start += chunks_in * LANES * LANES * tile_width
        column += tile_width


def pack_matrix(weight: NDArray[Any]) -> NDArray[Any]:
    """Pack a matrix (inputs, outputs), multiples of 16, for `multiply`: flat, tile by tile."""
    width = WIDTHS[weight.dtype.itemsize * 8]
    chunks = weight.shape[1] // LANES
    parts, column = [], 0
    while column < chunks:
        step = width if column + width <= chunks else 1
        parts.append(weight[:, column * LANES : (column + step) * LANES].ravel())
        column += step
    return np.concatenate(parts)
