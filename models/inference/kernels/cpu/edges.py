r"""Sums over neighbours, forward and backward; nothing of size edges x channels is stored.

Every edge is listed at its receiver i, sender j, and its reverse is in the list as well. What the
network asks of a distance is a cubic spline, whose four coefficients and four weights are looked
up for each edge; :math:`f_k` are the factors of I, A and S.

Embedding, with :math:`P = p_{Z_i} + q_{Z_j}` and the tensor D of the direction u:

.. math:: X_i = \sum_j P_{ij} \, f(r_{ij}) \odot D(-u_{ij})

Interaction, with the gradient :math:`\bar M` of M given:

.. math::
    M_i = \sum_j f(r_{ij}) \odot Y_j, \qquad
    \bar Y_i = \sum_j f(r_{ij}) \odot \bar M_j, \qquad
    \frac{dE}{dr_{ji}} = \sum_k f'_k(r_{ij}) \; \bar M_j \cdot_k Y_i

The last two are one loop: that over the neighbours to which i sends, which are those it hears.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

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
from .simd import LANES, fma, like, load, splat, total

WEIGHTS = 7
"""Of a slot: four of the spline, then three of its derivative."""
FRAME = 12
"""Of a slot: the unit vector u, 1 / r, and the A and S components of D(-u)."""
ROOT_2 = math.sqrt(2)
ROOT_3 = math.sqrt(3)


class Pairs(NamedTuple):
    """A neighbour list with its skin, by receiver."""

    offsets: NDArray[np.int64]
    """(N + 1,), where the edges of each receiver begin."""
    senders: NDArray[np.int32]
    """(E,)."""
    shifts: NDArray[np.float64]
    """(E, 3), Angstrom: r_ij = r_j - r_i + shift."""
    reverse: NDArray[np.int32]
    """(E,), the same pair listed at the other atom."""


class Slots(NamedTuple):
    """The edges within the cutoff, packed at the front of each receiver's share of `Pairs`."""

    counts: NDArray[np.int32]
    """(N,)."""
    edge: NDArray[np.int32]
    """(E,), of a slot."""
    slot: NDArray[np.int32]
    """(E,), of an edge."""
    sender: NDArray[np.int32]
    row: NDArray[np.int32]
    """(E,), first row of the table."""
    weights: NDArray[Any]
    """(E * WEIGHTS,)."""
    frame: NDArray[Any]
    """(E * FRAME,)."""
    slope: NDArray[Any]
    """(chunks * E,), dE/dr of each chunk of channels."""
    gradient: NDArray[Any]
    """(E, 3), dE/dr_ij."""


@inlined
def place(
    first: int, last: int, positions: Any, pairs: Pairs, slots: Slots, unit: float,
    lower: float, cutoff: float, intervals: int,
) -> None:  # fmt: skip
    """Fill the slots of receivers ``first`` to ``last``: geometry in float64.

    ``unit`` is the network's unit of length in Angstrom, in which the cutoffs are.
    """
    per_length = intervals / (cutoff - lower)
    for i in range(first, last):
        slot = pairs.offsets[i]
        for edge in range(pairs.offsets[i], pairs.offsets[i + 1]):
            j = pairs.senders[edge]
            x = (positions[j, 0] - positions[i, 0] + pairs.shifts[edge, 0]) / unit
            y = (positions[j, 1] - positions[i, 1] + pairs.shifts[edge, 1]) / unit
            z = (positions[j, 2] - positions[i, 2] + pairs.shifts[edge, 2]) / unit
            r = math.sqrt(x * x + y * y + z * z)
            if not lower <= r < cutoff:
                continue
            knot = min(int((r - lower) * per_length), intervals - 1)
            t = (r - lower) * per_length - knot
            slots.edge[slot], slots.slot[edge] = edge, slot
            slots.sender[slot], slots.row[slot] = j, knot
            s, w = 1 - t, slot * WEIGHTS
            slots.weights[w] = s * s * s / 6
            slots.weights[w + 1] = ((3 * t - 6) * t * t + 4) / 6
            slots.weights[w + 2] = ((3 * s - 6) * s * s + 4) / 6
            slots.weights[w + 3] = t * t * t / 6
            slots.weights[w + 4] = s * s / 2
            slots.weights[w + 5] = (1 + 2 * t * s) / 2
            slots.weights[w + 6] = t * t / 2
            x, y, z, f = x / r, y / r, z / r, slot * FRAME
            slots.frame[f], slots.frame[f + 1], slots.frame[f + 2] = x, y, z
            slots.frame[f + 3] = 1 / r
            slots.frame[f + 4] = -ROOT_2 * x
            slots.frame[f + 5] = -ROOT_2 * y
            slots.frame[f + 6] = -ROOT_2 * z
            slots.frame[f + 7] = ROOT_2 * x * y
            slots.frame[f + 8] = ROOT_2 * y * z
            slots.frame[f + 9] = ROOT_2 * x * z
            slots.frame[f + 10] = (x * x - y * y) / ROOT_2
            slots.frame[f + 11] = (3 * z * z - 1) / (ROOT_2 * ROOT_3)
            slot += 1
        slots.counts[i] = slot - pairs.offsets[i]


@inlined
def table_row(shape: Any) -> int:
    """Numbers of one knot and chunk of channels.

    The spline coefficients c of the factors of I, A and S, then the differences to the next row,
    (c_{k+1} - c_k) / h.
    """
    return 2 * irreps_of(shape) * LANES


@inlined
def factors(shape: Any, table: Any, at: int, weights: Any, w: int) -> Any:
    """The factors of I, A and S: four consecutive rows."""
    w0, w1 = splat(weights[w]), splat(weights[w + 1])
    w2, w3 = splat(weights[w + 2]), splat(weights[w + 3])
    return splines(shape, table, at, (w0, w1, w2, w3))


@inlined
def factor_slopes(shape: Any, table: Any, at: int, weights: Any, w: int) -> Any:
    """Their derivatives: three rows of differences, which float32 holds to its last digit.

    From the coefficients themselves they would lose digits as 1 / h.
    """
    w0, w1, w2 = splat(weights[w + 4]), splat(weights[w + 5]), splat(weights[w + 6])
    return splines(shape, table, at + irreps_of(shape) * LANES, (w0, w1, w2))


@inlined
def direction(shape: Any, frame: Any, f: int, x: Any) -> Any:
    """The components of D(-u) of a slot, in vectors like x."""
    return only(
        shape,
        (
            like(x, ROOT_3),
            splat(frame[f + 4]),
            splat(frame[f + 5]),
            splat(frame[f + 6]),
            splat(frame[f + 7]),
            splat(frame[f + 8]),
            splat(frame[f + 9]),
            splat(frame[f + 10]),
            splat(frame[f + 11]),
        ),
    )


@inlined
def embed(
    first: int, last: int, chunk: int, chunks: int, shape: Any, species: Any, receiver: Any,
    sender: Any, table: Any, at_zero: Any, rows: int, pairs: Pairs, slots: Slots, x: Any,
) -> None:  # fmt: skip
    """The embedding's sum for atoms ``first`` to ``last`` and one chunk of channels.

    ``species`` (N,) are rows of the tables ``receiver`` and ``sender``, p and q above;
    ``at_zero`` times P_ii is what an atom adds to its own scalar part.
    """
    atoms, row = species.size, table_row(shape)
    start, c = chunk * rows * row, chunk * LANES
    for i in range(first, last):
        p = load(receiver, species[i] * chunks * LANES + c)
        own = load(at_zero, c) * (p + load(sender, species[i] * chunks * LANES + c))
        zero = own - own
        sums = only(shape, (own, zero, zero, zero, zero, zero, zero, zero, zero))
        for slot in range(pairs.offsets[i], pairs.offsets[i] + slots.counts[i]):
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
    at_zero: Any, z: int, pairs: Pairs, slots: Slots, y: Any, message: Any,
) -> None:  # fmt: skip
    """The messages to atoms ``first`` to ``last`` in one chunk of channels.

    ``start`` is where the chunk's table begins, ``z`` where its factors at distance zero do:
    those of the message of an atom to itself.
    """
    size, row = features(shape), table_row(shape)
    own, begin = load_irreps(shape, at_zero, z, LANES), chunk * atoms * size
    for i in range(first, last):
        sums = scaled(own, load_all(shape, y, begin + i * size))
        for slot in range(pairs.offsets[i], pairs.offsets[i] + slots.counts[i]):
            at = start + slots.row[slot] * row
            f = factors(shape, table, at, slots.weights, slot * WEIGHTS)
            sums = plus_scaled(sums, f, load_all(shape, y, begin + slots.sender[slot] * size))
        store_all(message, begin + i * size, sums)


@inlined
def gather_back(
    first: int, last: int, chunk: int, atoms: int, shape: Any, table: Any, start: int,
    at_zero: Any, z: int, pairs: Pairs, slots: Slots, y: Any, g_message: Any, g_y: Any,
    begins: bool,
) -> None:  # fmt: skip
    """The way back of `gather`: adds to the gradient of Y, and to the slopes dE/dr.

    ``begins`` says that there are no slopes yet: this is the last layer.
    """
    size, row = features(shape), table_row(shape)
    own = load_irreps(shape, at_zero, z, LANES)
    begin, slope = chunk * atoms * size, chunk * slots.edge.size
    for i in range(first, last):
        here = load_all(shape, y, begin + i * size)
        sums = load_all(shape, g_y, begin + i * size)
        mine = load_all(shape, g_message, begin + i * size)
        sums = plus_scaled(sums, own, mine)
        for slot in range(pairs.offsets[i], pairs.offsets[i] + slots.counts[i]):
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
    table: Any, rows: int, pairs: Pairs, slots: Slots, g: Any, layers: int,
) -> None:  # fmt: skip
    r"""The way back of `embed`, to dE/dr_ij of each slot, the slopes of the layers included.

    With :math:`\rho` the derivative along u and v the gradient of the sum with respect to the
    components of D(-u),

    .. math:: \frac{dE}{dr_{ij}} = \rho \, u + (1 - u u^T) \, J(u)^T v / r
    """
    atoms, edges = species.size, slots.edge.size
    size, row = features(shape), table_row(shape)
    for i in range(first, last):
        mine = species[i] * chunks * LANES
        for slot in range(pairs.offsets[i], pairs.offsets[i] + slots.counts[i]):
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
            turn(slots, slot, rho, with_zeros(v))


@inlined
def turn(slots: Slots, slot: int, rho: float, v: Any) -> None:
    """Write dE/dr_ij from its part along u and the gradient with respect to D(-u)."""
    f = slot * FRAME
    x, y, z = slots.frame[f], slots.frame[f + 1], slots.frame[f + 2]
    v_xy, v_yz, v_xz = ROOT_2 * total(v[4]), ROOT_2 * total(v[5]), ROOT_2 * total(v[6])
    v_d, v_z = ROOT_2 * total(v[7]), ROOT_2 / ROOT_3 * total(v[8])
    g_x = -ROOT_2 * total(v[1]) + v_xy * y + v_xz * z + v_d * x - v_z * x
    g_y = -ROOT_2 * total(v[2]) + v_xy * x + v_yz * z - v_d * y - v_z * y
    g_z = -ROOT_2 * total(v[3]) + v_yz * y + v_xz * x + 2 * v_z * z
    radial = g_x * x + g_y * y + g_z * z
    inverse = slots.frame[f + 3]
    slots.gradient[slot, 0] = rho * x + inverse * (g_x - radial * x)
    slots.gradient[slot, 1] = rho * y + inverse * (g_y - radial * y)
    slots.gradient[slot, 2] = rho * z + inverse * (g_z - radial * z)


@inlined
def collect(
    first: int, last: int, pairs: Pairs, slots: Slots, factor: float, unit: float,
    forces: Any, virial: Any,
) -> None:  # fmt: skip
    """Forces (N, 3) and shares of the virial (N, 3, 3) from dE/dr_ij.

    F_i = sum of dE/dr_ij - dE/dr_ji, W_i = - sum of r_ij (x) dE/dr_ij over the edges that i
    receives. ``factor`` takes dE/dr to eV/A, ``unit`` lengths to Angstrom.
    """
    for i in range(first, last):
        for k in range(3):
            forces[i, k] = 0
            for m in range(3):
                virial[i, k, m] = 0
        for slot in range(pairs.offsets[i], pairs.offsets[i] + slots.counts[i]):
            back = slots.slot[pairs.reverse[slots.edge[slot]]]
            r = unit / np.float64(slots.frame[slot * FRAME + 3])
            for k in range(3):
                gradient = factor * np.float64(slots.gradient[slot, k])
                forces[i, k] += gradient - factor * np.float64(slots.gradient[back, k])
                for m in range(3):
                    virial[i, m, k] -= r * slots.frame[slot * FRAME + m] * gradient
