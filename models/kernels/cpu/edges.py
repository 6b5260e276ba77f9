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

from .algebra import FEATURES, dots, load_tensor, plus_scaled, scaled, store_tensor
from .compiled import inlined
from .simd import LANES, fma, like, load, splat, total

TABLE_ROW = 6 * LANES
"""Numbers of one knot and chunk of channels: the spline coefficients c of the factors of I, A
and S, then the differences to the next row, (c_{k+1} - c_k) / h."""
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
def spline(table: Any, at: int, w0: Any, w1: Any, w2: Any, w3: Any) -> Any:
    """One factor of sixteen channels: four consecutive rows."""
    upper = fma(w2, load(table, at + 2 * TABLE_ROW), w3 * load(table, at + 3 * TABLE_ROW))
    return fma(w0, load(table, at), fma(w1, load(table, at + TABLE_ROW), upper))


@inlined
def factors(table: Any, at: int, weights: Any, w: int) -> Any:
    """The factors of I, A and S."""
    w0, w1 = splat(weights[w]), splat(weights[w + 1])
    w2, w3 = splat(weights[w + 2]), splat(weights[w + 3])
    return (
        spline(table, at, w0, w1, w2, w3),
        spline(table, at + LANES, w0, w1, w2, w3),
        spline(table, at + 2 * LANES, w0, w1, w2, w3),
    )


@inlined
def spline_slope(table: Any, at: int, w0: Any, w1: Any, w2: Any) -> Any:
    """Derivative of one factor: three rows of differences, which float32 holds to its last digit.

    From the coefficients themselves it would lose digits as 1 / h.
    """
    last = w2 * load(table, at + 2 * TABLE_ROW)
    return fma(w0, load(table, at), fma(w1, load(table, at + TABLE_ROW), last))


@inlined
def factor_slopes(table: Any, at: int, weights: Any, w: int) -> Any:
    """Derivatives of the factors of I, A and S."""
    w0, w1, w2 = splat(weights[w + 4]), splat(weights[w + 5]), splat(weights[w + 6])
    return (
        spline_slope(table, at + 3 * LANES, w0, w1, w2),
        spline_slope(table, at + 4 * LANES, w0, w1, w2),
        spline_slope(table, at + 5 * LANES, w0, w1, w2),
    )


@inlined
def direction(frame: Any, f: int, x: Any) -> Any:
    """The nine components of D(-u) of a slot, in vectors like x."""
    return (
        like(x, ROOT_3),
        splat(frame[f + 4]),
        splat(frame[f + 5]),
        splat(frame[f + 6]),
        splat(frame[f + 7]),
        splat(frame[f + 8]),
        splat(frame[f + 9]),
        splat(frame[f + 10]),
        splat(frame[f + 11]),
    )


@inlined
def embed(
    first: int, last: int, chunk: int, chunks: int, species: Any, receiver: Any, sender: Any,
    table: Any, at_zero: Any, rows: int, pairs: Pairs, slots: Slots, x: Any,
) -> None:  # fmt: skip
    """The embedding's sum for atoms ``first`` to ``last`` and one chunk of channels.

    ``species`` (N,) are rows of the tables ``receiver`` and ``sender``, p and q above;
    ``at_zero`` times P_ii is what an atom adds to its own scalar part.
    """
    atoms = species.size
    start, c = chunk * rows * TABLE_ROW, chunk * LANES
    for i in range(first, last):
        p = load(receiver, species[i] * chunks * LANES + c)
        own = load(at_zero, c) * (p + load(sender, species[i] * chunks * LANES + c))
        zero = own - own
        sums = (own, zero, zero, zero, zero, zero, zero, zero, zero)
        for slot in range(pairs.offsets[i], pairs.offsets[i] + slots.counts[i]):
            q = load(sender, species[slots.sender[slot]] * chunks * LANES + c)
            at = start + slots.row[slot] * TABLE_ROW
            f_i, f_a, f_s = factors(table, at, slots.weights, slot * WEIGHTS)
            pair = p + q
            d = direction(slots.frame, slot * FRAME, pair)
            sums = plus_scaled(sums, pair * f_i, pair * f_a, pair * f_s, d)
        store_tensor(x, (chunk * atoms + i) * FEATURES, sums)


@inlined
def gather(
    first: int, last: int, chunk: int, atoms: int, table: Any, start: int, at_zero: Any, z: int,
    pairs: Pairs, slots: Slots, y: Any, message: Any,
) -> None:  # fmt: skip
    """The messages to atoms ``first`` to ``last`` in one chunk of channels.

    ``start`` is where the chunk's table begins, ``z`` where its factors at distance zero do:
    those of the message of an atom to itself.
    """
    own = load(at_zero, z), load(at_zero, z + LANES), load(at_zero, z + 2 * LANES)
    begin = chunk * atoms * FEATURES
    for i in range(first, last):
        sums = scaled(own[0], own[1], own[2], load_tensor(y, begin + i * FEATURES))
        for slot in range(pairs.offsets[i], pairs.offsets[i] + slots.counts[i]):
            at = start + slots.row[slot] * TABLE_ROW
            f_i, f_a, f_s = factors(table, at, slots.weights, slot * WEIGHTS)
            sent = load_tensor(y, begin + slots.sender[slot] * FEATURES)
            sums = plus_scaled(sums, f_i, f_a, f_s, sent)
        store_tensor(message, begin + i * FEATURES, sums)


@inlined
def gather_back(
    first: int, last: int, chunk: int, atoms: int, table: Any, start: int, at_zero: Any, z: int,
    pairs: Pairs, slots: Slots, y: Any, g_message: Any, g_y: Any, begins: bool,
) -> None:  # fmt: skip
    """The way back of `gather`: adds to the gradient of Y, and to the slopes dE/dr.

    ``begins`` says that there are no slopes yet: this is the last layer.
    """
    own = load(at_zero, z), load(at_zero, z + LANES), load(at_zero, z + 2 * LANES)
    begin, slope = chunk * atoms * FEATURES, chunk * slots.edge.size
    for i in range(first, last):
        here = load_tensor(y, begin + i * FEATURES)
        sums = load_tensor(g_y, begin + i * FEATURES)
        mine = load_tensor(g_message, begin + i * FEATURES)
        sums = plus_scaled(sums, own[0], own[1], own[2], mine)
        for slot in range(pairs.offsets[i], pairs.offsets[i] + slots.counts[i]):
            at, w = start + slots.row[slot] * TABLE_ROW, slot * WEIGHTS
            f_i, f_a, f_s = factors(table, at, slots.weights, w)
            s_i, s_a, s_s = factor_slopes(table, at, slots.weights, w)
            g = load_tensor(g_message, begin + slots.sender[slot] * FEATURES)
            sums = plus_scaled(sums, f_i, f_a, f_s, g)
            d_i, d_a, d_s = dots(g, here)
            rise = fma(s_i, d_i, fma(s_a, d_a, s_s * d_s))
            before = 0.0 if begins else slots.slope[slope + slot]
            slots.slope[slope + slot] = before + total(rise)
        store_tensor(g_y, begin + i * FEATURES, sums)


@inlined
def embed_back(
    first: int, last: int, chunks: int, species: Any, receiver: Any, sender: Any, table: Any,
    rows: int, pairs: Pairs, slots: Slots, g: Any, layers: int,
) -> None:  # fmt: skip
    r"""The way back of `embed`, to dE/dr_ij of each slot, the slopes of the layers included.

        With :math:`
    ho` the derivative along u and v the gradient of the sum with respect to the
        components of D(-u),

        .. math:: rac{dE}{dr_{ij}} =
    ho \, u + (1 - u u^T) \, J(u)^T v / r
    """
    atoms, edges = species.size, slots.edge.size
    for i in range(first, last):
        mine = species[i] * chunks * LANES
        for slot in range(pairs.offsets[i], pairs.offsets[i] + slots.counts[i]):
            theirs = species[slots.sender[slot]] * chunks * LANES
            d = direction(slots.frame, slot * FRAME, load(receiver, mine))
            zero = d[0] - d[0]
            along = zero
            v = (zero, zero, zero, zero, zero, zero, zero, zero, zero)
            rho = 0.0
            for chunk in range(chunks):
                c = chunk * LANES
                pair = load(receiver, mine + c) + load(sender, theirs + c)
                at = (chunk * rows + slots.row[slot]) * TABLE_ROW
                _, f_a, f_s = factors(table, at, slots.weights, slot * WEIGHTS)
                s_i, s_a, s_s = factor_slopes(table, at, slots.weights, slot * WEIGHTS)
                x = load_tensor(g, (chunk * atoms + i) * FEATURES)
                d_i, d_a, d_s = dots(x, d)
                along = fma(pair, fma(s_i, d_i, fma(s_a, d_a, s_s * d_s)), along)
                v = plus_scaled(v, zero, pair * f_a, pair * f_s, x)
                if layers > 0:
                    rho += slots.slope[chunk * edges + slot]
            rho += total(along)
            turn(slots, slot, rho, v)


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
