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
from .compiled import internal
from .components import load_all, store_all, times
from .neighbors import FRAME, ROOT_2, ROOT_3, WEIGHTS, Neighbors, Slots, turn
from .simd import LANES, fma, like, load, splat, total
from .tensornet_network import PackedTensorNet, TensorNetWork


@internal
def table_row(shape: Any) -> int:
    """Count of numbers per knot and chunk of channels.

    These are the spline coefficients c of the factors of I, A and S, then the differences to the
    next row, (c_{k+1} - c_k) / h.
    """
    return 2 * irreps_of(shape) * LANES


@internal
def factors(shape: Any, table: Any, at: int, weights: Any, w: int) -> Any:
    """The factors of I, A and S, from four consecutive rows."""
    w0, w1 = splat(weights[w]), splat(weights[w + 1])
    w2, w3 = splat(weights[w + 2]), splat(weights[w + 3])
    return splines(shape, table, at, (w0, w1, w2, w3))


@internal
def factor_slopes(shape: Any, table: Any, at: int, weights: Any, w: int) -> Any:
    """The derivatives of the factors, from three rows of differences, to float32's last digit.

    Computed from the coefficients themselves, they would lose digits in proportion to 1 / h.
    """
    w0, w1, w2 = splat(weights[w + 4]), splat(weights[w + 5]), splat(weights[w + 6])
    return splines(shape, table, at + irreps_of(shape) * LANES, (w0, w1, w2))


@internal
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


@internal
def embed(
    first: int, last: int, chunk: int, species: Any, net: PackedTensorNet, neighbors: Neighbors,
    slots: Slots, work: TensorNetWork,
) -> None:  # fmt: skip
    """Compute the embedding's sum for atoms ``first`` to ``last`` and one chunk of channels.

    ``species`` (N,) are rows of the tables ``receiver`` and ``sender``, p and q above; an atom
    adds ``embedding_at_zero`` times P_ii to its own scalar part.
    """
    shape, width, row = net.shape, net.chunks * LANES, table_row(net.shape)
    start, c = chunk * net.rows * row, chunk * LANES
    for i in range(first, last):
        p = load(net.receiver, species[i] * width + c)
        own = load(net.embedding_at_zero, c) * (p + load(net.sender, species[i] * width + c))
        zero = own - own
        sums = only(shape, (own, zero, zero, zero, zero, zero, zero, zero, zero))
        for slot in range(neighbors.offsets[i], neighbors.offsets[i] + slots.counts[i]):
            q = load(net.sender, species[slots.sender[slot]] * width + c)
            at = start + slots.row[slot] * row
            f = factors(shape, net.tables, at, slots.weights, slot * WEIGHTS)
            pair = p + q
            d = direction(shape, slots.frame, slot * FRAME, pair)
            sums = plus_scaled(sums, times(pair, f), d)
        store_all(work.embedded, (chunk * species.size + i) * features(shape), sums)


@internal
def layer_tables(chunk: int, layer: int, net: PackedTensorNet) -> Any:
    """Start of a layer's table, and its factors at zero, of an atom's message to itself."""
    place, irreps = layer * net.chunks + chunk, irreps_of(net.shape)
    own = load_irreps(net.shape, net.at_zero, place * LANES * irreps, LANES)
    return (place + net.chunks) * net.rows * table_row(net.shape), own


@internal
def gather(
    first: int, last: int, chunk: int, layer: int, net: PackedTensorNet, neighbors: Neighbors,
    slots: Slots, work: TensorNetWork,
) -> None:  # fmt: skip
    """Compute a layer's messages to atoms ``first`` to ``last`` in one chunk of channels."""
    shape, size, row = net.shape, features(net.shape), table_row(net.shape)
    y, message = work.y[layer], work.message[layer]
    start, own = layer_tables(chunk, layer, net)
    begin = chunk * work.outputs.size * size
    for i in range(first, last):
        sums = scaled(own, load_all(shape, y, begin + i * size))
        for slot in range(neighbors.offsets[i], neighbors.offsets[i] + slots.counts[i]):
            at = start + slots.row[slot] * row
            f = factors(shape, net.tables, at, slots.weights, slot * WEIGHTS)
            sums = plus_scaled(sums, f, load_all(shape, y, begin + slots.sender[slot] * size))
        store_all(message, begin + i * size, sums)


@internal
def gather_back(
    first: int, last: int, chunk: int, layer: int, net: PackedTensorNet, neighbors: Neighbors,
    slots: Slots, work: TensorNetWork,
) -> None:  # fmt: skip
    """Backward pass of `gather`: adds to the gradient of Y and to the slopes dE/dr."""
    shape, size, row = net.shape, features(net.shape), table_row(net.shape)
    y, g_message, g_y = work.y[layer], work.message[layer], work.delta[layer]
    start, own = layer_tables(chunk, layer, net)
    begin, slope = chunk * work.outputs.size * size, chunk * slots.edge.size
    begins = layer == net.layers - 1  # there are no slopes yet
    for i in range(first, last):
        here = load_all(shape, y, begin + i * size)
        sums = load_all(shape, g_y, begin + i * size)
        mine = load_all(shape, g_message, begin + i * size)
        sums = plus_scaled(sums, own, mine)
        for slot in range(neighbors.offsets[i], neighbors.offsets[i] + slots.counts[i]):
            at, w = start + slots.row[slot] * row, slot * WEIGHTS
            f = factors(shape, net.tables, at, slots.weights, w)
            slopes = factor_slopes(shape, net.tables, at, slots.weights, w)
            g = load_all(shape, g_message, begin + slots.sender[slot] * size)
            sums = plus_scaled(sums, f, g)
            rise = weighted(slopes, dots(g, here))
            before = 0.0 if begins else slots.slope[slope + slot]
            slots.slope[slope + slot] = before + total(rise)
        store_all(g_y, begin + i * size, sums)


@internal
def embed_back(
    first: int, last: int, species: Any, net: PackedTensorNet, neighbors: Neighbors,
    slots: Slots, work: TensorNetWork,
) -> None:  # fmt: skip
    r"""Backward pass of `embed`: dE/dr_ij of each slot, including the slopes of the layers.

    With :math:`\rho` the derivative along u and v the gradient of the sum with respect to the
    components of D(-u),

    .. math:: \frac{dE}{dr_{ij}} = \rho \, u + (1 - u u^T) \, J(u)^T v / r
    """
    shape, size, row = net.shape, features(net.shape), table_row(net.shape)
    width, edges = net.chunks * LANES, slots.edge.size
    slopes_per_slot = slots.slope.size // max(1, edges)
    for i in range(first, last):
        mine = species[i] * width
        for slot in range(neighbors.offsets[i], neighbors.offsets[i] + slots.counts[i]):
            theirs = species[slots.sender[slot]] * width
            d = direction(shape, slots.frame, slot * FRAME, load(net.receiver, mine))
            zero = d[0] - d[0]
            along, v = zero, times(zero, d)
            rho = 0.0
            for chunk in range(net.chunks):
                c = chunk * LANES
                pair = load(net.receiver, mine + c) + load(net.sender, theirs + c)
                at, w = (chunk * net.rows + slots.row[slot]) * row, slot * WEIGHTS
                f = factors(shape, net.tables, at, slots.weights, w)
                slopes = factor_slopes(shape, net.tables, at, slots.weights, w)
                x = load_all(shape, work.gradient, (chunk * species.size + i) * size)
                along = fma(pair, weighted(slopes, dots(x, d)), along)
                v = plus_scaled(v, times(pair, f), x)
            if net.layers > 0:
                for k in range(slopes_per_slot):
                    rho += slots.slope[k * edges + slot]
            rho += total(along)
            turn_tensor(slots, slot, rho, with_zeros(v))


@internal
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
