"""Where the features of atoms have their numbers, and matrix products of features.

Sixteen channels, a chunk, of the components of an atom are adjacent: the number of a component
and channel is at ``((chunk * N + atom) * n + component) * 16 + channel % 16``, with channels
padded to a multiple of sixteen.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba import prange
from numpy.typing import NDArray

from ...inference.kernels.cpu.algebra import features, load_irreps
from ...inference.kernels.cpu.compiled import internal
from ...inference.kernels.cpu.components import load_all, store_all, store_apart
from ...inference.kernels.cpu.dense import multiply
from ...inference.kernels.cpu.simd import LANES
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


@internal
def width(layout: Layout) -> int:
    """Channels, padded."""
    return layout.chunks * LANES


# Factors of irreps, (irreps, chunks, N, 16), or (chunks, N, 16) for all irreps alike


@internal
def factor_place(layout: Layout, chunk: int, i: int) -> int:
    """Where the factors of an atom for the first irrep begin."""
    return (chunk * layout.atoms + i) * LANES


@internal
def load_factors(layout: Layout, factors: Any, chunk: int, i: int) -> Any:
    """The factors of an atom and chunk."""
    at, step = factor_place(layout, chunk, i), factor_place(layout, layout.chunks, 0)
    return load_irreps(layout.shape, factors, at, step)


@internal
def store_factors(layout: Layout, factors: Any, chunk: int, i: int, values: Any) -> None:
    """Write the factors of an atom and chunk."""
    at, step = factor_place(layout, chunk, i), factor_place(layout, layout.chunks, 0)
    store_apart(factors, at, step, values)


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


def add_products(layout: Layout, g: Any, x: Any, matrices: Any) -> None:
    r"""Add the sums over atoms and components of :math:`g x^T` to the matrix of each irrep.

    This is the gradient of W in y = W x; ``matrices`` are (irreps, width, width).
    """
    stride = layout.atoms * features(layout.shape)
    for task in prange(layout.sizes.size * layout.chunks):
        k, chunk = task // layout.chunks, task % layout.chunks
        add_product(
            g, chunk * stride, x, 0, stride, layout.rows[k], layout.atoms * layout.sizes[k],
            layout.chunks, matrices, task * LANES * width(layout),
        )  # fmt: skip
