r"""Every operator of the fused pass as a plain function of tensors, forward and backward.

The kernels are tested against these functions, which define what each kernel computes. A
function's adjoint (``..._adjoint``, ``..._backward``) takes the gradient g of the energy with
respect to the function's result and returns the gradient with respect to its arguments.

Notation: N atoms, E edges, F channels; X, Y, M features (9, N, F) in the orthonormal
components of `cartesian`; <A, B> the sum of products of components, which is the Frobenius
product; i receives from j; u = -r_ij / d the direction and d the distance of an edge. In a network
without A or S, features have fewer components, whose number tells the irreps; 3F then stands for
the number of irreps times F, and products are projected onto these irreps.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from tensormd.models import Potential
from tensormd.models.inference.kernels.cuda.potential import CUDATensorNet
from tensormd.models.inference.kernels.cuda.rows import EdgeRows, Geometry
from tensormd.models.maths.cartesian import (
    BASIS,
    BY_COMPONENTS,
    COMPONENTS,
    TensorAlgebra,
    irrep_norms_squared,
    norm_squared,
    scale_irreps,
    split_irreps,
)
from tensormd.models.maths.splines import RadialTable

_ALGEBRAS = {n: TensorAlgebra(irreps) for n, irreps in BY_COMPONENTS.items()}


def geometry(
    positions: Tensor,
    cell: Tensor,
    system: Tensor,
    edges: EdgeRows,
    *,
    length: float,
    lower: float,
    cutoff: float,
    intervals: int,
    dtype: torch.dtype,
) -> Geometry:
    r"""Directions, distances and places in the radial tables; computed in float64.

    .. math::
        r_{ij} = (r_j - r_i + s C) / \ell, \qquad
        k = \lfloor (d - r_l) / h \rfloor, \quad t = (d - r_l) / h - k, \quad
        h = (r_c - r_l) / \text{intervals}

    Parameters
    ----------
    positions, cell, system
        As in `Graph`, Angstrom.
    edges
        Of the graph.
    length
        The network's unit of length, Angstrom.
    lower, cutoff
        Ends of the tables in that unit, r_l and r_c; outside there is no edge.
    intervals
        Of the tables.
    dtype
        Of the results.
    """
    i, j = receivers(edges), edges.senders.long()
    vectors = positions[j] - positions[i]
    vectors = vectors + (edges.shift.unsqueeze(1) @ cell[system[i]]).squeeze(1)
    # Room behind the last edge holds whatever it held: no edge.
    vectors = torch.where(exists(edges).unsqueeze(1), vectors, 2 * cutoff * length) / length
    distance = torch.linalg.vector_norm(vectors, dim=1)
    inside = (distance >= lower) & (distance < cutoff)
    place = (distance - lower) * (intervals / (cutoff - lower))
    knot = place.floor().clamp(0, intervals - 1)
    return Geometry(
        unit=(-vectors / distance.unsqueeze(1)).to(dtype),
        distance=distance.to(dtype),
        knot=torch.where(inside, knot, -1.0).to(torch.int32),
        fraction=(place - knot).to(dtype),
    )


def exists(edges: EdgeRows) -> Tensor:
    """(E,) bool: whether a place of the list holds an edge."""
    places = torch.arange(edges.senders.shape[0], device=edges.senders.device)
    return places < edges.offsets[-1]


def receivers(edges: EdgeRows) -> Tensor:
    """(E,) int64, the receiver of every edge."""
    places = torch.arange(edges.senders.shape[0], device=edges.senders.device)
    rows = torch.searchsorted(edges.offsets.long(), places, right=True) - 1
    return rows.clamp(max=edges.offsets.shape[0] - 2)


def spline(table: Tensor, at: Geometry) -> tuple[Tensor, Tensor]:
    r"""Value and derivative of uniform cubic B-splines.

    .. math::
        f(d) = \sum_{m=0}^{3} w_m(t) c_{k+m}, \qquad
        f'(d) = \sum_{m=0}^{2} v_m(t) \frac{c_{k+m+1} - c_{k+m}}{h}

    with w = ((1 - t)^3, 3t^3 - 6t^2 + 4, -3t^3 + 3t^2 + 3t + 1, t^3) / 6 and
    v = ((1 - t)^2, -2t^2 + 2t + 1, t^2) / 2. The differences are stored, because in float32
    little would be left of those of two close coefficients.

    Parameters
    ----------
    table
        (intervals + 3, 2K): c, and the differences over h (`with_slopes`).
    at
        Where; 0 from the cutoff on.

    Returns
    -------
    (E, K) and (E, K).
    """
    weights, slope_weights = spline_weights(at.fraction.unsqueeze(1))
    rows = at.knot.clamp(min=0).long()
    inside = (at.knot >= 0).unsqueeze(1)
    coefficients, slopes = table.chunk(2, dim=1)
    value = sum(w * coefficients[rows + m] for m, w in enumerate(weights))
    slope = sum(v * slopes[rows + m] for m, v in enumerate(slope_weights))
    # Not a product with a mask: room behind the edges may hold anything.
    return torch.where(inside, value, 0.0), torch.where(inside, slope, 0.0)


def spline_weights(t: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """w_m(t), m = 0 to 3, and v_m(t), m = 0 to 2, of `spline`."""
    s = 1 - t
    return (
        [
            s * s * s / 6,
            (t * t * (3 * t - 6) + 4) / 6,
            (t * (t * (3 - 3 * t) + 3) + 1) / 6,
            t * t * t / 6,
        ],
        [s * s / 2, t * s + 0.5, t * t / 2],
    )


def embed(
    at: Geometry,
    edges: EdgeRows,
    table: Tensor,
    at_zero: Tensor,
    receiver: Tensor,
    sender: Tensor,
    numbers: Tensor,
    components: int = 9,
) -> Tensor:
    r"""The sum over neighbours that starts the network (eqs. 6 to 8 of the paper).

    .. math::
        X_i = \sum_j (a_i + b_j) f(d) \odot D(u) + f_0 (a_i + b_i) e_I, \qquad
        D(u) = (\sqrt 3, \sqrt 2 u, S(u)), \quad S_k(u) = u^T B_k u

    with a and b the species factors of receiver and sender, f the three projections by irrep
    and :math:`B_k` the basis tensors of S.

    Parameters
    ----------
    at, edges
        Geometry and edges.
    table
        (intervals + 3, 6F), see `spline`.
    at_zero
        (F,), f_0.
    receiver, sender
        (Z, F), a and b by atomic number.
    numbers
        (N,) atomic numbers.
    components
        Of the result.

    Returns
    -------
    (9, N, F)
    """
    a, b = receiver[numbers], sender[numbers]
    i, j = receivers(edges), edges.senders.long()
    algebra = _ALGEBRAS[components]
    factors = _by_irrep(spline(table, at)[0], algebra.irreps) * (a[i] + b[j])
    sent = scale_irreps(algebra.directions(at.unit).unsqueeze(2), factors)
    x = sent.new_zeros(components, *a.shape).index_add(1, i, sent)
    x[0] += at_zero * (a + b)
    return x


def embed_backward(
    at: Geometry,
    edges: EdgeRows,
    table: Tensor,
    receiver: Tensor,
    sender: Tensor,
    numbers: Tensor,
    g: Tensor,
) -> Tensor:
    r"""Gradient of `embed` with respect to the edge vectors r_ij, (E, 3).

    With z = a_i + b_j, sums over channels, and :math:`p = \sum_k g_{S,k} B_k u`,

    .. math::
        \partial_d &= \sum z \left( \sqrt 3 f_I' g_I + \sqrt 2 f_A' u \cdot g_A
            + f_S' u \cdot p \right) \\
        \partial_u &= \sum z \left( \sqrt 2 f_A g_A + 2 f_S p \right) \\
        \partial_{r_{ij}} &= -u\, \partial_d - (1 - u u^T) \partial_u / d

    because d and u depend on r_ij as d' = -u and u' = -(1 - u u^T) / d.
    """
    a, b = receiver[numbers], sender[numbers]
    i, j = receivers(edges), edges.senders.long()
    value, slope = spline(table, at)
    irreps = BY_COMPONENTS[g.shape[0]]
    f, df = (_by_irrep(each, irreps) * (a[i] + b[j]) for each in (value, slope))
    u = at.unit.t().unsqueeze(2)
    d_distance, d_unit = torch.zeros_like(f[0]), torch.zeros_like(at.unit)
    for irrep, part, f_k, df_k in zip(irreps, split_irreps(g[:, i]), f, df, strict=True):
        if irrep == "I":
            d_distance = d_distance + math.sqrt(3) * df_k * part[0]
        elif irrep == "A":
            g_a = math.sqrt(2) * part
            d_distance = d_distance + df_k * (u * g_a).sum(0)
            d_unit = d_unit + (f_k * g_a).sum(2).t()
        else:
            p = torch.einsum("kab,kef,eb->aef", BASIS[4:].to(g), part, at.unit)
            d_distance = d_distance + df_k * (u * p).sum(0)
            d_unit = d_unit + (2 * f_k * p).sum(2).t()
    across = d_unit - (d_unit * at.unit).sum(1, keepdim=True) * at.unit
    return -d_distance.sum(1, keepdim=True) * at.unit - across / at.distance.unsqueeze(1)


def message(at: Geometry, edges: EdgeRows, table: Tensor, at_zero: Tensor, y: Tensor) -> Tensor:
    r"""The sum over neighbours of an interaction layer (eq. 11 of the paper).

    .. math:: M_i = \sum_j f(d) \odot Y_j + f_0 \odot Y_i

    Parameters
    ----------
    at, edges
        Geometry and edges.
    table
        (intervals + 3, 6F), see `spline`.
    at_zero
        (3F,), f_0.
    y
        (9, N, F).

    Returns
    -------
    (9, N, F)
    """
    i, j = receivers(edges), edges.senders.long()
    irreps = BY_COMPONENTS[y.shape[0]]
    sent = scale_irreps(y[:, j], _by_irrep(spline(table, at)[0], irreps))
    own = scale_irreps(y, _by_irrep(at_zero.unsqueeze(0), irreps))
    return own.index_add(1, i, sent)


def message_backward(
    at: Geometry,
    edges: EdgeRows,
    table: Tensor,
    at_zero: Tensor,
    y: Tensor,
    g: Tensor,
) -> tuple[Tensor, Tensor]:
    r"""Gradient of `message` with respect to Y and to the distances.

    Every edge has its reverse and both have one length, so that what j sends to all its
    receivers is the same gather, of gradients instead of features:

    .. math::
        \partial_{Y_i} = \sum_j f(d) \odot g_j + f_0 \odot g_i, \qquad
        \partial_d = \langle f'(d) \odot Y_i, g_j \rangle

    The derivative stands at the edge i, j although it is that of the message from i to j:
    only the sum of an edge's and its reverse's is ever used.

    Returns
    -------
    (9, N, F) and (E,).
    """
    i, j = receivers(edges), edges.senders.long()
    slope = _by_irrep(spline(table, at)[1], BY_COMPONENTS[y.shape[0]])
    d_distance = (scale_irreps(y[:, i], slope) * g[:, j]).sum((0, 2))
    return message(at, edges, table, at_zero, g), d_distance


def forces(
    at: Geometry, edges: EdgeRows, d_vector: Tensor, d_distance: Tensor
) -> tuple[Tensor, Tensor]:
    r"""Forces and each atom's share of the virial, from the gradients of the edges.

    .. math::
        g_{ij} = \partial_{r_{ij}} - u\, \partial_d, \qquad
        F_i = \sum_j (g_{ij} - g_{ji}), \qquad
        W_i = \tfrac12 \sum_j d\, u \otimes (g_{ij} - g_{ji})

    Each pair gives both of its atoms half of its virial -r_ij (x) (g_ij - g_ji).

    Parameters
    ----------
    at, edges
        Geometry and edges.
    d_vector
        (E, 3), gradient with respect to r_ij.
    d_distance
        (E,), gradient with respect to d.

    Returns
    -------
    (N, 3) and (N, 3, 3), float64, for an energy and lengths in the units of the gradients;
    zero where an atom has no neighbour.
    """
    atoms = edges.offsets.shape[0] - 1
    i = receivers(edges)
    inside = (at.knot >= 0).unsqueeze(1)
    unit = at.unit.double()
    gradient = d_vector.double() - d_distance.double().unsqueeze(1) * unit
    gradient = torch.where(inside, gradient, 0.0)
    back = torch.where(inside, gradient[edges.reverse.long()], 0.0)
    pull = gradient - back
    arm = at.distance.double().unsqueeze(1) * unit
    force = pull.new_zeros(atoms, 3).index_add(0, i, pull)
    virial = pull.new_zeros(atoms, 3, 3)
    return force, virial.index_add(0, i, 0.5 * arm.unsqueeze(2) * pull.unsqueeze(1))


def sum_by_system(values: Tensor, system: Tensor, systems: int) -> Tensor:
    """Sums over the atoms of each system: (N, K) -> (systems, K)."""
    return values.new_zeros(systems, values.shape[1]).index_add(0, system, values)


def normalize(x: Tensor) -> Tensor:
    r""":math:`X / (\|X\|^2 + 1)`."""
    return x / (norm_squared(x) + 1)


def normalize_adjoint(x: Tensor, g: Tensor) -> Tensor:
    r""":math:`g / (n + 1) - 2 X \langle X, g \rangle / (n + 1)^2` with n the squared norm."""
    n = norm_squared(x) + 1
    return g / n - 2 * x * ((x * g).sum(0) / (n * n))


def transpose(x: Tensor) -> Tensor:
    """Components of the transposed matrices: A changes its sign."""
    parts = zip(BY_COMPONENTS[x.shape[0]], split_irreps(x), strict=True)
    return torch.cat([-part if irrep == "A" else part for irrep, part in parts])


def combine(y: Tensor, m: Tensor, charge_factor: Tensor, parity_conserving: bool) -> Tensor:
    r"""Product of features and message, normalised (eq. 12 of the paper).

    .. math::
        C = q (Y M + M Y) \text{ for O(3)}, \quad 2 Y M \text{ for SO(3)}; \qquad
        \text{result } C / (\|C\|^2 + 1)

    ``charge_factor`` (N,) is q.
    """
    return normalize(_product(y, m, charge_factor, parity_conserving))


def combine_adjoint(
    y: Tensor, m: Tensor, charge_factor: Tensor, parity_conserving: bool, g: Tensor
) -> tuple[Tensor, Tensor]:
    r"""Gradients of `combine` with respect to Y and M.

    With h the gradient of C, through `normalize_adjoint`,

    .. math::
        \partial_Y = q (h M^T + M^T h), \quad \partial_M = q (h Y^T + Y^T h)
        \text{ for O(3)}; \qquad
        \partial_Y = 2 h M^T, \quad \partial_M = 2 Y^T h \text{ for SO(3)}
    """
    h = normalize_adjoint(_product(y, m, charge_factor, parity_conserving), g)
    algebra = _ALGEBRAS[y.shape[0]]
    if parity_conserving:
        h = h * charge_factor.unsqueeze(1)
        return algebra.anticommutator(h, transpose(m)), algebra.anticommutator(h, transpose(y))
    return 2 * algebra.product(h, transpose(m)), 2 * algebra.product(transpose(y), h)


def _product(y: Tensor, m: Tensor, charge_factor: Tensor, parity_conserving: bool) -> Tensor:
    algebra = _ALGEBRAS[y.shape[0]]
    if parity_conserving:
        return charge_factor.unsqueeze(1) * algebra.anticommutator(y, m)
    return 2 * algebra.product(y, m)


def update(x: Tensor, dx: Tensor, charge_factor: Tensor) -> Tensor:
    r""":math:`X + \Delta X + q \Delta X^2` (eq. 13 of the paper); q (N,)."""
    return x + dx + charge_factor.unsqueeze(1) * _ALGEBRAS[x.shape[0]].square(dx)


def update_adjoint(dx: Tensor, charge_factor: Tensor, g: Tensor) -> Tensor:
    r"""Gradient with respect to dx, :math:`g + q (g \Delta X^T + \Delta X^T g)`.

    That with respect to X is g itself.
    """
    algebra = _ALGEBRAS[dx.shape[0]]
    return g + charge_factor.unsqueeze(1) * algebra.anticommutator(g, transpose(dx))


def norm_squared_adjoint(x: Tensor, g: Tensor) -> Tensor:
    """2 X g, of `cartesian.norm_squared`; g (N, F)."""
    return 2 * x * g


def irrep_norms_squared_adjoint(x: Tensor, g: Tensor) -> Tensor:
    """2 X g, of `cartesian.irrep_norms_squared`; g (N, 3F)."""
    return gate(2 * x, g)


def gate(x: Tensor, factors: Tensor) -> Tensor:
    """Scale I, A and S by (N, 3F) factors."""
    return scale_irreps(x, _by_irrep(factors, BY_COMPONENTS[x.shape[0]]))


def gate_adjoint(x: Tensor, factors: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of `gate` with respect to x, (9, N, F), and to the factors, (N, 3F)."""
    return gate(g, factors), torch.cat([part.sum(0) for part in split_irreps(x * g)], dim=1)


def _by_irrep(factors: Tensor, irreps: str) -> Tensor:
    """(E, 3F) -> (3, E, F)."""
    parts = len(irreps)
    return factors.view(factors.shape[0], parts, factors.shape[1] // parts).transpose(0, 1)


class TorchOperators:
    """These functions as the operators of `tensornet_step`: any device, any size.

    Tensors of the edges are stored, and there may be fewer irreps than I, A and S.
    """

    def __init__(self, irreps: str = "IAS") -> None:
        self.components = sum(COMPONENTS[irrep] for irrep in irreps)

    def embed(self, *arguments: Any) -> Tensor:
        return embed(*arguments, self.components)

    geometry = staticmethod(geometry)
    embed_backward = staticmethod(embed_backward)
    message = staticmethod(message)
    message_backward = staticmethod(message_backward)
    forces = staticmethod(forces)
    sum_by_system = staticmethod(sum_by_system)
    normalize = staticmethod(normalize)
    normalize_adjoint = staticmethod(normalize_adjoint)
    combine = staticmethod(combine)
    combine_adjoint = staticmethod(combine_adjoint)
    update = staticmethod(update)
    update_adjoint = staticmethod(update_adjoint)
    norm_squared = staticmethod(norm_squared)
    norm_squared_adjoint = staticmethod(norm_squared_adjoint)
    irrep_norms_squared = staticmethod(irrep_norms_squared)
    irrep_norms_squared_adjoint = staticmethod(irrep_norms_squared_adjoint)
    gate = staticmethod(gate)
    gate_adjoint = staticmethod(gate_adjoint)


def plain_pass(potential: Potential, table: RadialTable | None = None) -> CUDATensorNet:
    """The fused pass of a potential with these functions in the place of the kernels."""
    operators: Any = TorchOperators(potential.representation.irreps)
    return CUDATensorNet(potential, operators, table)
