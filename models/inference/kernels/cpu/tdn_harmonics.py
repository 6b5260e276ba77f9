r"""Edges of a TDN: harmonics, envelope and matrix of the tensor products; backward pass included.

:math:`M_{ki} = \sum_j M_{ijk} Y_j` is computed once for all layers. The equations are in
``tests/support/tdn_equations.py``.
"""

from __future__ import annotations

import math
from typing import Any

from .compiled import internal
from .components import lane_sums
from .neighbors import FRAME, Neighbors, Slots, turn, vector
from .simd import LANES, fma, like, load, store, total
from .tdn_network import PackedTDN, TDNWork


@internal
def harmonics(x: float, y: float, z: float, net: PackedTDN, out: Any) -> None:
    """Write harmonics and their derivatives along x, y and z to the first four rows of ``out``.

    ``out`` has `HARMONICS_ROWS` rows; the others are scratch memory.
    """
    degrees, kept = net.degrees[-1] + 1, 0
    cosines, sines = out[4], out[5]
    before, now, coming = out[6], out[7], out[8]
    cosines[0], sines[0] = 1.0, 0.0
    for m in range(1, degrees):
        cosines[m] = z * cosines[m - 1] - x * sines[m - 1]
        sines[m] = z * sines[m - 1] + x * cosines[m - 1]
    for degree in range(degrees):
        # The m-th derivatives of Legendre polynomials, from those of the two degrees below.
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


@internal
def orient(
    first: int, last: int, positions: Any, neighbors: Neighbors, slots: Slots, net: PackedTDN,
    work: TDNWork, own: Any,
) -> None:  # fmt: skip
    """Compute envelopes and couplings of receivers ``first`` to ``last``; clear the gradients."""
    d, size, rate = net.components, net.matrix, math.pi / net.cutoff
    for i in range(first, last):
        for slot in range(neighbors.offsets[i], neighbors.offsets[i] + slots.counts[i]):
            x, y, z, r = vector(i, slots.edge[slot], positions, neighbors, net.unit)
            slots.slope[slot] = 0
            work.harmonics[slot, :] = 0
            work.envelope[2 * slot], work.envelope[2 * slot + 1] = 1, 0
            if net.smooth:
                work.envelope[2 * slot] = 0.5 * (math.cos(rate * r) + 1)
                work.envelope[2 * slot + 1] = -0.5 * rate * math.sin(rate * r)
            harmonics(x / r, y / r, z / r, net, own)
            for at in range(0, size, LANES):
                sums = like(load(net.product, at), own[0, 0]) * load(net.product, at)
                for k in range(1, d):
                    row = load(net.product, k * size + at)
                    sums = fma(like(row, own[0, k]), row, sums)
                store(work.coupling, slot * size + at, sums)


@internal
def add_to_harmonics(slot: int, net: PackedTDN, work: TDNWork, scratch: Any) -> None:
    r"""Add to dE/dY: :math:`\bar Y_j = \sum_{ki} M_{ijk} \bar M_{ki}`.

    The terms of each :math:`\bar M_{ki}` are the lanes of a vector at ``work.sums``.
    """
    for at in range(0, net.matrix, LANES):
        store(scratch, work.totals + at, lane_sums(scratch, work.sums + at * LANES))
    for k in range(net.components):
        at = k * net.matrix
        sums = load(net.product, at) * load(scratch, work.totals)
        for chunk in range(LANES, net.matrix, LANES):
            sums = fma(load(net.product, at + chunk), load(scratch, work.totals + chunk), sums)
        work.harmonics[slot, k] += total(sums)


@internal
def turn_harmonics(
    first: int, last: int, neighbors: Neighbors, slots: Slots, net: PackedTDN, work: TDNWork,
    own: Any,
) -> None:  # fmt: skip
    r"""Write dE/dr_ij, with the gradient :math:`\bar Y \cdot \nabla Y` with respect to u."""
    for i in range(first, last):
        for slot in range(neighbors.offsets[i], neighbors.offsets[i] + slots.counts[i]):
            f = slot * FRAME
            harmonics(slots.frame[f], slots.frame[f + 1], slots.frame[f + 2], net, own)
            g_x, g_y, g_z = 0.0, 0.0, 0.0
            for k in range(net.components):
                g = work.harmonics[slot, k]
                g_x += g * own[1, k]
                g_y += g * own[2, k]
                g_z += g * own[3, k]
            turn(slots, slot, slots.slope[slot], g_x, g_y, g_z)
