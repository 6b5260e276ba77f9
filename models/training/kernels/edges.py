r"""Sums over the neighbours of TensorNet: value, gradient, and the tangents of both.

An edge has factors :math:`f_k(r)` of I, A and S with slopes :math:`f'_k`, both sums over a few
rows of a table T, and the tensor D of its direction:

.. math:: f_k = \sum_m w_m T_{row + m, k}, \qquad f'_k = \sum_m w'_m T_{row + m, k}

There are four rows: w and w' are a spline's weights, or select the factors of a pair and their
slopes from the first two (see `radial`). The notation is
that of `atoms`; :math:`\dot r` and :math:`\dot D` are tangents of an edge's length and tensor.
Each pair is listed in both directions, with equal lengths and tangents of these.

Interaction:

.. math::
    M_i &= a \odot Y_i + \sum_j f \odot Y_j, \qquad
    \dot M_i = a \odot \dot Y_i + \sum_j f \odot \dot Y_j + \dot r f' \odot Y_j \\
    \bar Y_i &= a \odot \bar M_i + \sum_j f \odot \bar M_j, \qquad
    \tilde Y_i = a \odot \tilde M_i + \sum_j f \odot \tilde M_j + \dot r f' \odot \bar M_j \\
    \bar r_{ji} &= \sum_k f'_k \bar M_j \cdot_k Y_i, \qquad
    \frac{dL}{df_k} = \tilde M_j \cdot_k Y_i + \bar M_j \cdot_k \dot Y_i, \qquad
    \frac{dL}{df'_k} = \dot r \, \bar M_j \cdot_k Y_i

Embedding, with :math:`P = p_i + q_j`:

.. math::
    X_i &= \sqrt3 \, a_I P_{ii} \mathbb{1} / \sqrt3 + \sum_j P f \odot D, \qquad
    \dot X_i = \sum_j P (\dot r f' \odot D + f \odot \dot D) \\
    \bar D &= \sum_c P f \odot \bar X_i, \qquad \bar r = \sum_{ck} P f'_k \bar X_i \cdot_k D \\
    \frac{dL}{df_k} &= P (\tilde X_i \cdot_k D + \bar X_i \cdot_k \dot D), \qquad
    \frac{dL}{df'_k} = P \dot r \, \bar X_i \cdot_k D \\
    \frac{dL}{dP} &= \sum_k f_k (\tilde X_i \cdot_k D + \bar X_i \cdot_k \dot D)
    + \dot r f'_k \bar X_i \cdot_k D

Loops with threads are over chunks of sixteen channels, of which each has its own part of every
sum: results do not depend on the number of threads.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ...inference.kernels.cpu.algebra import (
    dot,
    dots,
    irreps_of,
    load_irreps,
    only,
    plus_scaled,
    scaled,
    weighted,
)
from ...inference.kernels.cpu.compiled import internal
from ...inference.kernels.cpu.components import (
    plus,
    plus_times,
    splat_all,
    store_apart,
    times,
)
from ...inference.kernels.cpu.simd import LANES, like, splat, total
from ...inference.kernels.cpu.simd import load as load_one
from ...inference.kernels.cpu.simd import store as store_one
from .layout import Layout, each_atom, each_chunk, factor_place, load, place, store
from .loops import Turns, taken

ROOT_3 = 3**0.5
ROWS = 4
"""Rows of a table that an edge reads."""


class Edges(NamedTuple):
    """Edges, sorted by receiver."""

    species: NDArray[np.int64]
    """(N,), rows of the species factors."""
    offsets: NDArray[np.int64]
    """(N + 1,), first edge of each receiver, and E."""
    sender: NDArray[np.int64]
    """(E,)."""
    row: NDArray[np.int64]
    """(E,), first row of the tables."""
    weights: NDArray[Any]
    """Flat (E, 4): w."""
    slopes: NDArray[Any]
    """Flat (E, 4): w'."""
    directions: NDArray[Any]
    """Flat (E, n): D."""


@internal
def rows_at(shape: Any, table: Any, at: int) -> Any:
    """The rows of a table, (chunks, rows, irreps, 16), from a place on."""
    step = irreps_of(shape) * LANES
    return (
        load_irreps(shape, table, at, LANES),
        load_irreps(shape, table, at + step, LANES),
        load_irreps(shape, table, at + 2 * step, LANES),
        load_irreps(shape, table, at + 3 * step, LANES),
    )


@internal
def summed(rows: Any, weights: Any, e: int) -> Any:
    """The sum over the rows of an edge, for each irrep."""
    w = e * ROWS
    found = times(splat(weights[w]), rows[0])
    found = plus_times(found, splat(weights[w + 1]), rows[1])
    found = plus_times(found, splat(weights[w + 2]), rows[2])
    return plus_times(found, splat(weights[w + 3]), rows[3])


@internal
def spread(
    shape: Any, g_table: Any, at: int, weights: Any, slopes: Any, e: int, g_factor: Any,
    g_slope: Any,
) -> None:  # fmt: skip
    """Add the gradients of an edge's factors and their slopes to the rows they came from."""
    step = irreps_of(shape) * LANES
    for m in range(ROWS):
        here = load_irreps(shape, g_table, at + m * step, LANES)
        here = plus_times(here, splat(weights[e * ROWS + m]), g_factor)
        here = plus_times(here, splat(slopes[e * ROWS + m]), g_slope)
        store_apart(g_table, at + m * step, LANES, here)


# Interaction


@each_chunk
def gather(
    turns: Turns, layout: Layout, edges: Edges, table: Any, at_zero: Any, y: Any, m: Any
) -> None:
    """The messages M."""
    row, width = irreps_of(layout.shape) * LANES, layout.chunks * LANES
    for chunk in taken(turns):
        c, part = chunk * LANES, chunk * (table.size // layout.chunks)
        own = load_irreps(layout.shape, at_zero, c, width)
        for i in range(layout.atoms):
            here = place(layout, chunk, i)
            found = scaled(own, load(layout, y, here))
            for e in range(edges.offsets[i], edges.offsets[i + 1]):
                rows = rows_at(layout.shape, table, part + edges.row[e] * row)
                f = summed(rows, edges.weights, e)
                y_j = load(layout, y, place(layout, chunk, edges.sender[e]))
                found = plus_scaled(found, f, y_j)
            store(m, here, found)


@each_chunk
def gather_back(
    turns: Turns, layout: Layout, edges: Edges, table: Any, at_zero: Any, y: Any, g_m: Any,
    sums: Any, g_y: Any, g_length: Any,
) -> None:  # fmt: skip
    """Gradient of y, sums + what those of the messages give; adds to dE/dr, (chunks, E)."""
    row, width = irreps_of(layout.shape) * LANES, layout.chunks * LANES
    for chunk in taken(turns):
        c, part = chunk * LANES, chunk * (table.size // layout.chunks)
        own = load_irreps(layout.shape, at_zero, c, width)
        for i in range(layout.atoms):
            here = place(layout, chunk, i)
            y_i = load(layout, y, here)
            found = plus_scaled(load(layout, sums, here), own, load(layout, g_m, here))
            for e in range(edges.offsets[i], edges.offsets[i + 1]):
                rows = rows_at(layout.shape, table, part + edges.row[e] * row)
                f, df = summed(rows, edges.weights, e), summed(rows, edges.slopes, e)
                g_j = load(layout, g_m, place(layout, chunk, edges.sender[e]))
                found = plus_scaled(found, f, g_j)
                g_length[chunk, e] += total(weighted(df, dots(g_j, y_i)))
            store(g_y, here, found)


@each_chunk
def gather_tangent(
    turns: Turns, layout: Layout, edges: Edges, table: Any, at_zero: Any, dr: Any, y: Any, dy: Any,
    dm: Any,
) -> None:  # fmt: skip
    """Tangent of `gather`."""
    row, width = irreps_of(layout.shape) * LANES, layout.chunks * LANES
    for chunk in taken(turns):
        c, part = chunk * LANES, chunk * (table.size // layout.chunks)
        own = load_irreps(layout.shape, at_zero, c, width)
        for i in range(layout.atoms):
            here = place(layout, chunk, i)
            found = scaled(own, load(layout, dy, here))
            for e in range(edges.offsets[i], edges.offsets[i + 1]):
                there = place(layout, chunk, edges.sender[e])
                rows = rows_at(layout.shape, table, part + edges.row[e] * row)
                f, df = summed(rows, edges.weights, e), summed(rows, edges.slopes, e)
                found = plus_scaled(found, f, load(layout, dy, there))
                found = plus_scaled(found, times(splat(dr[e]), df), load(layout, y, there))
            store(dm, here, found)


@each_chunk
def gather_back_tangent(
    turns: Turns, layout: Layout, edges: Edges, table: Any, at_zero: Any, dr: Any, y: Any, dy: Any,
    g_m: Any, dg_m: Any, sums: Any, dg_y: Any, g_table: Any, g_zero: Any,
) -> None:  # fmt: skip
    """Tangent of the gradient of y; adds dL/dT to ``g_table`` and dL/da to ``g_zero``."""
    row, width = irreps_of(layout.shape) * LANES, layout.chunks * LANES
    for chunk in taken(turns):
        c, part = chunk * LANES, chunk * (table.size // layout.chunks)
        own = load_irreps(layout.shape, at_zero, c, width)
        for i in range(layout.atoms):
            here = place(layout, chunk, i)
            y_i, dy_i = load(layout, y, here), load(layout, dy, here)
            g_i, dg_i = load(layout, g_m, here), load(layout, dg_m, here)
            g_own = load_irreps(layout.shape, g_zero, c, width)
            g_own = plus(g_own, plus(dots(dg_i, y_i), dots(g_i, dy_i)))
            store_apart(g_zero, c, width, g_own)
            found = plus_scaled(load(layout, sums, here), own, dg_i)
            for e in range(edges.offsets[i], edges.offsets[i + 1]):
                there = place(layout, chunk, edges.sender[e])
                rows = rows_at(layout.shape, table, part + edges.row[e] * row)
                f, df = summed(rows, edges.weights, e), summed(rows, edges.slopes, e)
                g_j, dg_j = load(layout, g_m, there), load(layout, dg_m, there)
                r = splat(dr[e])
                found = plus_scaled(plus_scaled(found, f, dg_j), times(r, df), g_j)
                g_factor = plus(dots(dg_j, y_i), dots(g_j, dy_i))
                g_slope = times(r, dots(g_j, y_i))
                at = part + edges.row[e] * row
                spread(
                    layout.shape, g_table, at, edges.weights, edges.slopes, e, g_factor, g_slope
                )
            store(dg_y, here, found)


# Embedding


@each_chunk
def embed(
    turns: Turns, layout: Layout, edges: Edges, table: Any, at_zero: Any, p: Any, q: Any, x: Any,
    norms: Any,
) -> None:  # fmt: skip
    """X of the species factors p and q, and its squared norms."""
    components, width = layout.shape.itemsize, layout.chunks * LANES
    row = irreps_of(layout.shape) * LANES
    for chunk in taken(turns):
        c, part = chunk * LANES, chunk * (table.size // layout.chunks)
        own = load_one(at_zero, c)
        for i in range(layout.atoms):
            here = edges.species[i] * width + c
            p_i = load_one(p, here)
            first = like(own, ROOT_3) * own * (p_i + load_one(q, here))
            zero = own - own
            found = only(layout.shape, (first, zero, zero, zero, zero, zero, zero, zero, zero))
            for e in range(edges.offsets[i], edges.offsets[i + 1]):
                pair = p_i + load_one(q, edges.species[edges.sender[e]] * width + c)
                rows = rows_at(layout.shape, table, part + edges.row[e] * row)
                f = summed(rows, edges.weights, e)
                d = splat_all(layout.shape, edges.directions, e * components)
                found = plus_scaled(found, times(pair, f), d)
            store(x, place(layout, chunk, i), found)
            store_one(norms, factor_place(layout, chunk, i), dot(found, found))


@each_atom
def embed_back(
    turns: Turns, layout: Layout, edges: Edges, table: Any, p: Any, q: Any, g_norms: Any, x: Any,
    g_x: Any, g_length: Any, g_direction: Any,
) -> None:  # fmt: skip
    """Write the derivatives by D, flat (E, n), and add those by the lengths, (E,).

    The gradient of x first gets the share of the squared norms, 2 g x.
    """
    components, width = layout.shape.itemsize, layout.chunks * LANES
    row = irreps_of(layout.shape) * LANES
    for i in taken(turns):
        for chunk in range(layout.chunks):
            at, g = place(layout, chunk, i), load_one(g_norms, factor_place(layout, chunk, i))
            store(g_x, at, plus_times(load(layout, g_x, at), g + g, load(layout, x, at)))
        for e in range(edges.offsets[i], edges.offsets[i + 1]):
            d = splat_all(layout.shape, edges.directions, e * components)
            v = times(d[0] - d[0], d)
            along = d[0] - d[0]
            for chunk in range(layout.chunks):
                c, part = chunk * LANES, chunk * (table.size // layout.chunks)
                here = edges.species[i] * width + c
                pair = load_one(p, here) + load_one(q, edges.species[edges.sender[e]] * width + c)
                g = load(layout, g_x, place(layout, chunk, i))
                rows = rows_at(layout.shape, table, part + edges.row[e] * row)
                f, df = summed(rows, edges.weights, e), summed(rows, edges.slopes, e)
                v = plus_scaled(v, times(pair, f), g)
                along = along + pair * weighted(df, dots(g, d))
            g_length[e] += total(along)
            for k in range(components):
                g_direction[e * components + k] = total(v[k])


@each_chunk
def embed_tangent(
    turns: Turns, layout: Layout, edges: Edges, table: Any, dr: Any, d_directions: Any, p: Any,
    q: Any, x: Any, dx: Any, dnorms: Any,
) -> None:  # fmt: skip
    """Tangent of `embed`."""
    components, width = layout.shape.itemsize, layout.chunks * LANES
    row = irreps_of(layout.shape) * LANES
    for chunk in taken(turns):
        c, part = chunk * LANES, chunk * (table.size // layout.chunks)
        for i in range(layout.atoms):
            here = edges.species[i] * width + c
            p_i = load_one(p, here)
            zero = p_i - p_i
            found = only(layout.shape, (zero, zero, zero, zero, zero, zero, zero, zero, zero))
            for e in range(edges.offsets[i], edges.offsets[i + 1]):
                pair = p_i + load_one(q, edges.species[edges.sender[e]] * width + c)
                rows = rows_at(layout.shape, table, part + edges.row[e] * row)
                f = times(pair, summed(rows, edges.weights, e))
                df = times(pair * splat(dr[e]), summed(rows, edges.slopes, e))
                d = splat_all(layout.shape, edges.directions, e * components)
                dd = splat_all(layout.shape, d_directions, e * components)
                found = plus_scaled(plus_scaled(found, f, dd), df, d)
            at = place(layout, chunk, i)
            store(dx, at, found)
            norm = dot(load(layout, x, at), found)
            store_one(dnorms, factor_place(layout, chunk, i), norm + norm)


@each_chunk
def embed_table(
    turns: Turns, layout: Layout, edges: Edges, table: Any, at_zero: Any, dr: Any,
    d_directions: Any, p: Any, q: Any, g_norms: Any, dg_norms: Any, x: Any, dx: Any, g_x: Any,
    dg_x: Any, g_p: Any, g_q: Any, g_table: Any, g_zero: Any,
) -> None:  # fmt: skip
    """Add dL/dp, dL/dq, dL/dT and dL/da.

    ``dg_x`` lacks the share of the squared norms, the tangent of 2 g x.
    """
    components, width = layout.shape.itemsize, layout.chunks * LANES
    row = irreps_of(layout.shape) * LANES
    for chunk in taken(turns):
        c, part = chunk * LANES, chunk * (table.size // layout.chunks)
        own = load_one(at_zero, c)
        for i in range(layout.atoms):
            here = edges.species[i] * width + c
            p_i, q_i = load_one(p, here), load_one(q, here)
            own_row, factor = place(layout, chunk, i), factor_place(layout, chunk, i)
            g, dg = load(layout, g_x, own_row), load(layout, dg_x, own_row)
            norm, dnorm = load_one(g_norms, factor), load_one(dg_norms, factor)
            dg = plus_times(dg, dnorm + dnorm, load(layout, x, own_row))
            dg = plus_times(dg, norm + norm, load(layout, dx, own_row))
            first = like(own, ROOT_3) * dg[0]
            store_one(g_zero, c, load_one(g_zero, c) + first * (p_i + q_i))
            sums = first * own
            store_one(g_q, here, load_one(g_q, here) + sums)
            for e in range(edges.offsets[i], edges.offsets[i + 1]):
                there = edges.species[edges.sender[e]] * width + c
                pair = p_i + load_one(q, there)
                d = splat_all(layout.shape, edges.directions, e * components)
                rows = rows_at(layout.shape, table, part + edges.row[e] * row)
                f, df = summed(rows, edges.weights, e), summed(rows, edges.slopes, e)
                dd = splat_all(layout.shape, d_directions, e * components)
                g_factor = plus(dots(dg, d), dots(g, dd))
                g_slope = times(splat(dr[e]), dots(g, d))
                g_pair = weighted(f, g_factor) + weighted(df, g_slope)
                sums = sums + g_pair
                store_one(g_q, there, load_one(g_q, there) + g_pair)
                g_factor, g_slope = times(pair, g_factor), times(pair, g_slope)
                at = part + edges.row[e] * row
                spread(
                    layout.shape, g_table, at, edges.weights, edges.slopes, e, g_factor, g_slope
                )
            store_one(g_p, here, load_one(g_p, here) + sums)
