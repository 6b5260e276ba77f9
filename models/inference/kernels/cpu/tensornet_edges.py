r"""Sums over neighbours, forward and backward; nothing of size edges x channels is stored.

The factors :math:`f_k` of I, A and S are cubic splines of the distance; their four coefficients
and four weights are looked up for each edge (see `neighbors`).

Embedding, with :math:`P = p_{Z_i} + q_{Z_j}` and the tensor D of the direction u:

.. math:: X_i = \sum_j P_{ij} \, f(r_{ij}) \odot D(-u_{ij})

Interaction, with given gradient :math:`\bar M` of M:

.. math::
    M_i = \sum_j f(r_{ij}) \odot Y_j, \qquad
    \bar Y_i = \sum_j f(r_{ij}) \odot \bar M_j, \qquad
    \frac{dE}{dr_{ji}} = \sum_k f'_k(r_{ij}) \; \bar M_j \cdot_k Y_i

The last two share one loop, over the atoms to which i sends; these are also its senders.
"""

from __future__ import annotations

from typing import Any

from .algebra import (
    dots,
    features,
    irreps_of,
    load_irreps,
    only,
    plus_scaled,
    scaled,
    splines,
    weighted,
    with_zeros,
)
from .compiled import inlined
from .components import load_all, store_all, times
from .neighbors import FRAME, ROOT_2, ROOT_3, WEIGHTS, Neighbors, Slots, turn
from .simd import LANES, fma, like, load, splat, total


@inlined
def table_row(shape: Any) -> int:
    """Count of numbers per knot and chunk of channels.

    These are the spline coefficients c of the factors of I, A and S, then the differences to the
    next row, (c_{k+1} - c_k) / h.
    """
    return 2 * irreps_of(shape) * LANES


@inlined
def factors(shape: Any, table: Any, at: int, weights: Any, w: int) -> Any:
    """The factors of I, A and S, from four consecutive rows."""
    w0, w1 = splat(weights[w]), splat(weights[w + 1])
    w2, w3 = splat(weights[w + 2]), splat(weights[w + 3])
    return splines(shape, table, at, (w0, w1, w2, w3))


@inlined
def factor_slopes(shape: Any, table: Any, at: int, weights: Any, w: int) -> Any:
    """The derivatives of the factors, from three rows of differences, to float32's last digit.

    Computed from the coefficients themselves, they would lose digits in proportion to 1 / h.
    """
    w0, w1, w2 = splat(weights[w + 4]), splat(weights[w + 5]), splat(weights[w + 6])
    return splines(shape, table, at + irreps_of(shape) * LANES, (w0, w1, w2))


@inlined
def direction(shape: Any, frame: Any, f: int, x: Any) -> Any:
    """The components of D(-u) of a slot, in vectors like x."""
    return only(
        shape,
        (
            like(x, ROOT_3), splat(frame[f + 4]), splat(frame[f + 5]), splat(frame[f + 6]),
            splat(frame[f + 7]), splat(frame[f + 8]), splat(frame[f + 9]), splat(frame[f + 10]),
            splat(frame[f + 11]),
        ),
    )  # fmt: skip


@inlined
def embed(
    first: int, last: int, chunk: int, chunks: int, shape: Any, species: Any, receiver: Any,
    sender: Any, table: Any, at_zero: Any, rows: int, neighbors: Neighbors, slots: Slots, x: Any,
) -> None:  # fmt: skip
    """Compute the embedding's sum for atoms ``first`` to ``last`` and one chunk of channels.

    ``species`` (N,) are rows of the tables ``receiver`` and ``sender``, p and q above; an atom
    adds ``at_zero`` times P_ii to its own scalar part.
    """
    atoms, row = species.size, table_row(shape)
    start, c = chunk * rows * row, chunk * LANES
    for i in range(first, last):
        p = load(receiver, species[i] * chunks * LANES + c)
        own = load(at_zero, c) * (p + load(sender, species[i] * chunks * LANES + c))
        zero = own - own
        sums = only(shape, (own, zero, zero, zero, zero, zero, zero, zero, zero))
        for slot in range(neighbors.offsets[i], neighbors.offsets[i] + slots.counts[i]):
            q = load(sender, species[slots.sender[slot]] * chunks * LANES + c)
            at = start + slots.row[slot] * row
            f = factors(shape, table, at, slots.weights, slot * WEIGHTS)
            pair = p + q
            d = direction(shape, slots.frame, slot * FRAME, pair)
            sums = plus_scaled(sums, times(pair, f), d)
        store_all(x, (chunk * atoms + i) * features(shape), sums)


@inlined
def gather(
    first: int, last: int, chunk: int, atoms: int, shape: Any, table: Any, start: int,
    at_zero: Any, z: int, neighbors: Neighbors, slots: Slots, y: Any, message: Any,
) -> None:  # fmt: skip
    """Compute the messages to atoms ``first`` to ``last`` in one chunk of channels.

    The chunk's table begins at ``start``; its factors at distance zero, which apply to an atom's
    message to itself, begin at ``z``.
    """
    size, row = features(shape), table_row(shape)
    own, begin = load_irreps(shape, at_zero, z, LANES), chunk * atoms * size
    for i in range(first, last):
        sums = scaled(own, load_all(shape, y, begin + i * size))
        for slot in range(neighbors.offsets[i], neighbors.offsets[i] + slots.counts[i]):
            at = start + slots.row[slot] * row
            f = factors(shape, table, at, slots.weights, slot * WEIGHTS)
            sums = plus_scaled(sums, f, load_all(shape, y, begin + slots.sender[slot] * size))
        store_all(message, begin + i * size, sums)


@inlined
def gather_back(
    first: int, last: int, chunk: int, atoms: int, shape: Any, table: Any, start: int,
    at_zero: Any, z: int, neighbors: Neighbors, slots: Slots, y: Any, g_message: Any, g_y: Any,
    begins: bool,
) -> None:  # fmt: skip
    """Backward pass of `gather`: adds to the gradient of Y and to the slopes dE/dr.

    ``begins`` is true for the last layer, for which there are no slopes yet.
    """
    size, row = features(shape), table_row(shape)
    own = load_irreps(shape, at_zero, z, LANES)
    begin, slope = chunk * atoms * size, chunk * slots.edge.size
    for i in range(first, last):
        here = load_all(shape, y, begin + i * size)
        sums = load_all(shape, g_y, begin + i * size)
        mine = load_all(shape, g_message, begin + i * size)
        sums = plus_scaled(sums, own, mine)
        for slot in range(neighbors.offsets[i], neighbors.offsets[i] + slots.counts[i]):
            at, w = start + slots.row[slot] * row, slot * WEIGHTS
            f = factors(shape, table, at, slots.weights, w)
            slopes = factor_slopes(shape, table, at, slots.weights, w)
            g = load_all(shape, g_message, begin + slots.sender[slot] * size)
            sums = plus_scaled(sums, f, g)
            rise = weighted(slopes, dots(g, here))
            before = 0.0 if begins else slots.slope[slope + slot]
            slots.slope[slope + slot] = before + total(rise)
        store_all(g_y, begin + i * size, sums)


@inlined
def embed_back(
    first: int, last: int, chunks: int, shape: Any, species: Any, receiver: Any, sender: Any,
    table: Any, rows: int, neighbors: Neighbors, slots: Slots, g: Any, layers: int,
) -> None:  # fmt: skip
    r"""Backward pass of `embed`: dE/dr_ij of each slot, including the slopes of the layers.

    With :math:`\rho` the derivative along u and v the gradient of the sum with respect to the
    components of D(-u),

    .. math:: \frac{dE}{dr_{ij}} = \rho \, u + (1 - u u^T) \, J(u)^T v / r
    """
    atoms, edges = species.size, slots.edge.size
    size, row = features(shape), table_row(shape)
    for i in range(first, last):
        mine = species[i] * chunks * LANES
        for slot in range(neighbors.offsets[i], neighbors.offsets[i] + slots.counts[i]):
            theirs = species[slots.sender[slot]] * chunks * LANES
            d = direction(shape, slots.frame, slot * FRAME, load(receiver, mine))
            zero = d[0] - d[0]
            along, v = zero, times(zero, d)
            rho = 0.0
            for chunk in range(chunks):
                c = chunk * LANES
                pair = load(receiver, mine + c) + load(sender, theirs + c)
                at, w = (chunk * rows + slots.row[slot]) * row, slot * WEIGHTS
                f = factors(shape, table, at, slots.weights, w)
                slopes = factor_slopes(shape, table, at, slots.weights, w)
                x = load_all(shape, g, (chunk * atoms + i) * size)
                along = fma(pair, weighted(slopes, dots(x, d)), along)
                v = plus_scaled(v, times(pair, f), x)
                if layers > 0:
                    rho += slots.slope[chunk * edges + slot]
            rho += total(along)
            turn_tensor(slots, slot, rho, with_zeros(v))


@inlined
def turn_tensor(slots: Slots, slot: int, rho: float, v: Any) -> None:
    """Write dE/dr_ij from its part along u and the gradient with respect to D(-u)."""
    f = slot * FRAME
    x, y, z = slots.frame[f], slots.frame[f + 1], slots.frame[f + 2]
    v_xy, v_yz, v_xz = ROOT_2 * total(v[4]), ROOT_2 * total(v[5]), ROOT_2 * total(v[6])
    v_d, v_z = ROOT_2 * total(v[7]), ROOT_2 / ROOT_3 * total(v[8])
    g_x = -ROOT_2 * total(v[1]) + v_xy * y + v_xz * z + v_d * x - v_z * x
    g_y = -ROOT_2 * total(v[2]) + v_xy * x + v_yz * z - v_d * y - v_z * y
    g_z = -ROOT_2 * total(v[3]) + v_yz * y + v_xz * x + 2 * v_z * z
    turn(slots, slot, rho, g_x, g_y, g_z)
