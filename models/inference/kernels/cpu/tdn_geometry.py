r"""Edges of a TDN: harmonics, envelope and the matrix of their tensor products; and the way back.

The equations are those of `tdn_equations`. Every edge is listed at its receiver i, sender j;
:math:`M_{ki} = \sum_j M_{ijk} Y_j` is made once for all layers.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .compiled import internal
from .edges import FRAME, Pairs
from .simd import LANES, fma, like, load, store, total
from .tdn_network import Network

WEIGHTS = 7
"""Of a slot: the four of the spline and the three of its slope."""


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
    """(E * FRAME,): the unit vector u, 1 / r."""
    envelope: NDArray[Any]
    """(2 E,): phi and d phi / dr."""
    coupling: NDArray[Any]
    """(E * matrix,): M, row by row, padded to whole vectors."""
    slope: NDArray[Any]
    """(E,), dE/dr, with Y held fixed."""
    harmonics: NDArray[Any]
    """(E, d), dE/dY."""
    gradient: NDArray[Any]
    """(E, 3), dE/dr_ij."""


@internal
def harmonics(x: float, y: float, z: float, net: Network, out: Any) -> None:
    """Harmonics and their derivatives along x, y and z: the first four rows of ``out``.

    (7, d) or more; what is behind is overwritten. See `tdn_equations.harmonics`.
    """
    degrees, kept = net.degrees[-1] + 1, 0
    cosines, sines = out[4], out[5]
    before, now, coming = out[6], out[7], out[8]
    cosines[0], sines[0] = 1.0, 0.0
    for m in range(1, degrees):
        cosines[m] = z * cosines[m - 1] - x * sines[m - 1]
        sines[m] = z * sines[m - 1] + x * cosines[m - 1]
    for degree in range(degrees):
        # Legendre polynomials' m-th derivatives, from those of the two degrees below.
        for m in range(degree - 1):
            lower = (2 * degree - 1) * y * now[m] - (degree + m - 1) * before[m]
            coming[m] = lower / (degree - m)
        if degree > 0:
            coming[degree - 1] = (2 * degree - 1) * y * now[degree - 1]
            coming[degree] = (2 * degree - 1) * now[degree - 1]
        else:
            coming[0] = 1.0
        coming[degree + 1] = 0.0
        before, now, coming = now, coming, before
        if net.degrees[kept] != degree:
            continue
        first = net.starts[kept]
        kept += 1
        for k in range(-degree, degree + 1):
            m, at = abs(k), first + degree + k
            p = net.norms[degree, m] * now[m]
            rise = net.norms[degree, m] * now[m + 1]
            out[0, at] = p * (sines[m] if k < 0 else cosines[m])
            out[2, at] = rise * (sines[m] if k < 0 else cosines[m])
            if m == 0:
                out[1, at], out[3, at] = 0.0, 0.0
            elif k < 0:
                out[1, at], out[3, at] = m * p * cosines[m - 1], m * p * sines[m - 1]
            else:
                out[1, at], out[3, at] = -m * p * sines[m - 1], m * p * cosines[m - 1]


HARMONICS_ROWS = 9
"""Of the memory of `harmonics`."""


@internal
def place(
    first: int, last: int, positions: Any, pairs: Pairs, slots: Slots, net: Network, own: Any
) -> None:
    """Fill the slots of receivers ``first`` to ``last``: geometry in float64."""
    per_length, d, size = net.intervals / net.cutoff, net.components, net.matrix
    unit = net.unit
    for i in range(first, last):
        slot = pairs.offsets[i]
        for edge in range(pairs.offsets[i], pairs.offsets[i + 1]):
            j = pairs.senders[edge]
            x = (positions[j, 0] - positions[i, 0] + pairs.shifts[edge, 0]) / unit
            y = (positions[j, 1] - positions[i, 1] + pairs.shifts[edge, 1]) / unit
            z = (positions[j, 2] - positions[i, 2] + pairs.shifts[edge, 2]) / unit
            r = math.sqrt(x * x + y * y + z * z)
            if not r < net.cutoff:
                continue
            knot = min(int(r * per_length), net.intervals - 1)
            t = r * per_length - knot
            slots.edge[slot], slots.slot[edge] = edge, slot
            slots.sender[slot], slots.row[slot] = j, knot
            slots.slope[slot] = 0
            slots.harmonics[slot, :] = 0
            s, w = 1 - t, slot * WEIGHTS
            slots.weights[w] = s * s * s / 6
            slots.weights[w + 1] = ((3 * t - 6) * t * t + 4) / 6
            slots.weights[w + 2] = ((3 * s - 6) * s * s + 4) / 6
            slots.weights[w + 3] = t * t * t / 6
            slots.weights[w + 4] = s * s / 2
            slots.weights[w + 5] = (1 + 2 * t * s) / 2
            slots.weights[w + 6] = t * t / 2
            slots.envelope[2 * slot], slots.envelope[2 * slot + 1] = 1, 0
            if net.smooth:
                rate = math.pi / net.cutoff
                slots.envelope[2 * slot] = 0.5 * (math.cos(rate * r) + 1)
                slots.envelope[2 * slot + 1] = -0.5 * rate * math.sin(rate * r)
            f = slot * FRAME
            slots.frame[f], slots.frame[f + 1], slots.frame[f + 2] = x / r, y / r, z / r
            slots.frame[f + 3] = 1 / r
            harmonics(x / r, y / r, z / r, net, own)
            for at in range(0, size, LANES):
                sums = like(load(net.product, at), own[0, 0]) * load(net.product, at)
                for k in range(1, d):
                    row = load(net.product, k * size + at)
                    sums = fma(like(row, own[0, k]), row, sums)
                store(slots.coupling, slot * size + at, sums)
            slot += 1
        slots.counts[i] = slot - pairs.offsets[i]


@internal
def add_to_harmonics(slots: Slots, slot: int, net: Network, matrix: Any, start: int) -> None:
    r"""Add to dE/dY: :math:`\bar Y_j = \sum_{ki} M_{ijk} \bar M_{ki}`, given at matrix[start]."""
    for k in range(net.components):
        at = k * net.matrix
        sums = load(net.product, at) * load(matrix, start)
        for chunk in range(LANES, net.matrix, LANES):
            sums = fma(load(net.product, at + chunk), load(matrix, start + chunk), sums)
        slots.harmonics[slot, k] += total(sums)


@internal
def turn(slots: Slots, slot: int, net: Network, own: Any) -> None:
    r"""Write dE/dr_ij.

    .. math:: \frac{dE}{dr_{ij}} = \frac{dE}{dr} u + (1 - u u^T) \bar Y \cdot \nabla Y / r
    """
    f = slot * FRAME
    x, y, z = slots.frame[f], slots.frame[f + 1], slots.frame[f + 2]
    harmonics(x, y, z, net, own)
    g_x, g_y, g_z = 0.0, 0.0, 0.0
    for k in range(net.components):
        g = slots.harmonics[slot, k]
        g_x += g * own[1, k]
        g_y += g * own[2, k]
        g_z += g * own[3, k]
    radial = g_x * x + g_y * y + g_z * z
    along, inverse = slots.slope[slot], slots.frame[f + 3]
    slots.gradient[slot, 0] = along * x + inverse * (g_x - radial * x)
    slots.gradient[slot, 1] = along * y + inverse * (g_y - radial * y)
    slots.gradient[slot, 2] = along * z + inverse * (g_z - radial * z)
