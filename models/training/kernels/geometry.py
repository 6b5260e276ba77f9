r"""Lengths and directions of edges, their tangents, and gradients of the edges' vectors.

An edge's vector d has the length r and, as in `TensorNet`, the unit vector n = -d / r. The tensor
:math:`1 + [n]_\times + n n^T - 1/3` has the components (see `maths.cartesian`)

.. math::
    I = \sqrt3, \quad A = \sqrt2 \, n, \quad
    S = \sqrt2 \left( n_x n_y, n_y n_z, n_x n_z, \tfrac12 (n_x^2 - n_y^2),
    \tfrac{1}{2 \sqrt3} (2 n_z^2 - n_x^2 - n_y^2) \right)

A tangent of d gives :math:`\dot r = -n \cdot \dot d` and, with
:math:`\dot n = -(\dot d + \dot r n) / r`, the tangents of the components; the gradient of d is the
transpose of this map. All is computed in float64.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ...inference.kernels.cpu.compiled import internal
from .loops import Turns, over, taken

ROOT_2, ROOT_3 = 2**0.5, 3**0.5
each_vector = over(lambda vectors, *_: len(vectors))


@internal
def unit_of(vectors: Any, e: int) -> Any:
    """Length of an edge, and n."""
    x, y, z = vectors[e, 0], vectors[e, 1], vectors[e, 2]
    r = np.sqrt(x * x + y * y + z * z)
    return r, -x / r, -y / r, -z / r


@each_vector
def directions(turns: Turns, vectors: Any, lengths: Any, components: int, tensors: Any) -> None:
    """Lengths (E,), and the components of the edges' tensors, flat (E, n)."""
    for e in taken(turns):
        r, x, y, z = unit_of(vectors, e)
        lengths[e] = r
        at = e * components
        tensors[at] = ROOT_3
        if components in (4, 9):
            tensors[at + 1], tensors[at + 2], tensors[at + 3] = ROOT_2 * x, ROOT_2 * y, ROOT_2 * z
        if components in (6, 9):
            s = at + components - 5
            tensors[s], tensors[s + 1] = ROOT_2 * x * y, ROOT_2 * y * z
            tensors[s + 2], tensors[s + 3] = ROOT_2 * x * z, (x * x - y * y) / ROOT_2
            tensors[s + 4] = (2 * z * z - x * x - y * y) / (ROOT_2 * ROOT_3)


@each_vector
def directions_back(
    turns: Turns, vectors: Any, g_lengths: Any, components: int, g_tensors: Any, g_vectors: Any
) -> None:
    """Gradients of the vectors from those of lengths and components."""
    for e in taken(turns):
        r, x, y, z = unit_of(vectors, e)
        at = e * components
        g_x, g_y, g_z = 0.0, 0.0, 0.0
        if components in (4, 9):
            g_x, g_y, g_z = g_tensors[at + 1], g_tensors[at + 2], g_tensors[at + 3]
        if components in (6, 9):
            s = at + components - 5
            xy, yz, xz, d = g_tensors[s], g_tensors[s + 1], g_tensors[s + 2], g_tensors[s + 3]
            c = g_tensors[s + 4] / ROOT_3
            g_x += xy * y + xz * z + (d - c) * x
            g_y += xy * x + yz * z - (d + c) * y
            g_z += yz * y + xz * x + 2 * c * z
        g_x, g_y, g_z = ROOT_2 * g_x, ROOT_2 * g_y, ROOT_2 * g_z
        along = (x * g_x + y * g_y + z * g_z) / r - g_lengths[e]
        g_vectors[e, 0] = along * x - g_x / r
        g_vectors[e, 1] = along * y - g_y / r
        g_vectors[e, 2] = along * z - g_z / r


@each_vector
def directions_tangent(
    turns: Turns, vectors: Any, dvectors: Any, dlengths: Any, components: int, dtensors: Any
) -> None:
    """Tangents of `directions`."""
    for e in taken(turns):
        r, x, y, z = unit_of(vectors, e)
        dr = -(x * dvectors[e, 0] + y * dvectors[e, 1] + z * dvectors[e, 2])
        dlengths[e] = dr
        d_x = -ROOT_2 * (dvectors[e, 0] + dr * x) / r
        d_y = -ROOT_2 * (dvectors[e, 1] + dr * y) / r
        d_z = -ROOT_2 * (dvectors[e, 2] + dr * z) / r
        at = e * components
        dtensors[at] = 0.0
        if components in (4, 9):
            dtensors[at + 1], dtensors[at + 2], dtensors[at + 3] = d_x, d_y, d_z
        if components in (6, 9):
            s = at + components - 5
            dtensors[s], dtensors[s + 1] = x * d_y + y * d_x, y * d_z + z * d_y
            dtensors[s + 2], dtensors[s + 3] = x * d_z + z * d_x, x * d_x - y * d_y
            dtensors[s + 4] = (2 * z * d_z - x * d_x - y * d_y) / ROOT_3
