r"""The Coulomb energy of charges, its forces and its gradient; see `models/heads/coulomb.py`.

Each atom i sums over all its pairs, so that there are no atomic additions:

.. math::
    E_i = \tfrac12 \sum_j k\, h(r_{ij})\, \bar q_{ij}, \qquad
    \frac{\partial E}{\partial q_{ic}} = \sum_j k\, h(r_{ij})\, \omega_c q_{jc}, \qquad
    F_i = \sum_j k\, h'(r_{ij})\, \bar q_{ij}\, u_{ij}

with h = (1 - f) v and u the direction from i to j. Geometry is computed in float64.
"""

from __future__ import annotations

import math
from typing import Any

from .compiled import internal
from .neighbors import Neighbors
from .simd import LANES, fma, load, splat, store, total
from .tensornet2_network import ChargesWork, PackedCharges


@internal
def coulomb(
    first: int, last: int, positions: Any, charges: PackedCharges, pairs: Neighbors,
    more: ChargesWork, unit: float, factor: float, outputs: Any, forces: Any, virial: Any,
    scratch: Any,
) -> None:  # fmt: skip
    """Add the Coulomb energies of atoms, their forces and virials, and write the gradient.

    ``pairs`` is the list of pairs; with an infinite cutoff all pairs of a system count. ``unit``
    and ``factor`` are those of `collect`; the scratch memory takes the gradient of one atom.
    """
    width = charges.levels * charges.chunks
    listed = charges.cutoff < math.inf
    stride = positions.shape[0] * LANES
    for i in range(first, last):
        begin, end = more.bounds[more.system[i]], more.bounds[more.system[i] + 1]
        if listed:
            begin, end = pairs.offsets[i], pairs.offsets[i + 1]
        for c in range(width):
            q = load(more.charges, c * stride + i * LANES) * load(charges.shares, c * LANES)
            store(scratch, c * LANES, q)
            store(scratch, (width + c) * LANES, q - q)
        energy = 0.0
        for k in range(begin, end):
            j = k
            x, y, z = -positions[i, 0], -positions[i, 1], -positions[i, 2]
            if listed:
                j = pairs.senders[k]
                x += pairs.shifts[k, 0]
                y += pairs.shifts[k, 1]
                z += pairs.shifts[k, 2]
            elif i == j:
                continue
            x, y, z = (
                (x + positions[j, 0]) / unit,
                (y + positions[j, 1]) / unit,
                (z + positions[j, 2]) / unit,
            )
            square = x * x + y * y + z * z
            if square >= charges.cutoff * charges.cutoff:
                continue
            r = math.sqrt(square)
            value, slope = 1 / r, -1 / square
            if listed:
                value += charges.field * square - charges.shift
                slope += 2 * charges.field * r
            if r < charges.damping:
                t = r / charges.damping
                s = 1 - t * t
                f = math.exp(1 - 1 / s)
                slope = slope * (1 - f) + value * f * 2 * t / (s * s * charges.damping)
                value *= 1 - f
            value *= charges.coulomb
            slope *= charges.coulomb
            weight = splat(scratch.dtype.type(value))
            q = load(more.charges, j * LANES)
            products = load(scratch, 0) * q
            store(scratch, width * LANES, fma(weight, q, load(scratch, width * LANES)))
            for c in range(1, width):
                q = load(more.charges, c * stride + j * LANES)
                products = fma(load(scratch, c * LANES), q, products)
                at = (width + c) * LANES
                store(scratch, at, fma(weight, q, load(scratch, at)))
            product = total(products)
            energy += product * value
            along = factor * product * slope
            x, y, z = x / r, y / r, z / r
            forces[i, 0] += along * x
            forces[i, 1] += along * y
            forces[i, 2] += along * z
            along *= 0.5 * r * unit
            for m, u in enumerate((x, y, z)):
                virial[i, m, 0] -= along * u * x
                virial[i, m, 1] -= along * u * y
                virial[i, m, 2] -= along * u * z
        outputs[i] += 0.5 * energy
        for c in range(width):
            g = load(scratch, (width + c) * LANES) * load(charges.shares, c * LANES)
            store(more.gradient, c * stride + i * LANES, g)
