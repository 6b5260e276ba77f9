r"""TDN forward and backward as plain functions of tensors, the reference of the fused kernels.

Each operator is followed by its adjoint, which takes the gradient g of the energy with respect to
the operator's result and returns the gradient with respect to its arguments.

Notation: N atoms, E edges, features x (n, d, C) of d components of some degrees and C channels; i
receives from j; an edge of length r and direction u = r_ij / r has the harmonics Y(u), the
envelope phi(r), the radial weights w(r) of a tensor product and its matrix

.. math:: M_{ki} = \sum_j M_{ijk} Y_j

so that features x of the edge become M w x. A bar denotes the gradient of the energy.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from support.tdn_weights import BlockWeights, Gated, Linear, Norm, TDNWeights
from torch import Tensor

from tensormd.models.inference.kernels.weights import LAYER_NORM_EPSILON


class Edges(NamedTuple):
    """What every layer reads of the edges."""

    receiver: Tensor
    sender: Tensor
    """(E,)."""
    distance: Tensor
    """(E,)."""
    envelope: Tensor
    """(E,)."""
    coupling: Tensor
    """(E, d, d), M."""


class EdgeGradients(NamedTuple):
    """What every layer adds to: gradients with respect to the fields of `Edges`."""

    distance: Tensor
    envelope: Tensor
    coupling: Tensor


# Geometry


def harmonics(unit: Tensor, degrees: Sequence[int]) -> tuple[Tensor, Tensor]:
    r"""Harmonics (E, d) of unit vectors (E, 3) and their derivatives (E, d, 3).

    With the notation of `SphericalHarmonics`, :math:`d \Pi_l^m / dy = \Pi_l^{m+1}` and, for
    :math:`c_m + i s_m = (z + i x)^m`,

    .. math:: dc_m = m (c_{m-1} dz - s_{m-1} dx), \qquad ds_m = m (s_{m-1} dz + c_{m-1} dx)

    The polynomials are differentiated as they stand: only the part of the derivative across u
    has a meaning.
    """
    x, y, z = unit.unbind(1)
    zero = torch.zeros_like(x)
    c, s = [torch.ones_like(x)], [zero]
    for m in range(max(degrees)):
        c.append(z * c[m] - x * s[m])
        s.append(z * s[m] + x * c[m])
    values, slopes = [], []
    for degree in degrees:
        for k in range(-degree, degree + 1):
            m = abs(k)
            norm = math.sqrt((2 * degree + 1) * (1 if m == 0 else 2)) * math.sqrt(
                math.factorial(degree - m) / math.factorial(degree + m)
            )
            p, rise = norm * legendre(degree, m, y), norm * legendre(degree, m + 1, y)
            phase = s[m] if k < 0 else c[m]
            values.append(p * phase)
            before = m - 1 if m else 0
            along_z = m * (s if k < 0 else c)[before]
            along_x = m * (c[before] if k < 0 else -s[before])
            slopes.append(torch.stack([p * along_x, rise * phase, p * along_z], dim=1))
    return torch.stack(values, dim=1), torch.stack(slopes, dim=1)


def legendre(degree: int, m: int, y: Tensor) -> Tensor:
    """The m-th derivative of the Legendre polynomial."""
    if m > degree:
        return torch.zeros_like(y)
    before, now = torch.zeros_like(y), torch.full_like(y, _double_factorial(2 * m - 1))
    for n in range(m, degree):
        before, now = now, ((2 * n + 1) * y * now - (n + m) * before) / (n + 1 - m)
    return now


def _double_factorial(n: int) -> float:
    return float(math.prod(range(n, 0, -2)))


def spline(table: Tensor, cutoff: float, distance: Tensor) -> tuple[Tensor, Tensor]:
    r"""Values (E, C) of a cubic spline (see `radial_table`) and its slopes.

    With :math:`t = (r - r_k) / h`, and in differences of coefficients, which lose no digits,

    .. math::
        f'(r) = \tfrac12 \left( (1-t)^2 \delta_k + (1 + 2t - 2t^2) \delta_{k+1}
        + t^2 \delta_{k+2} \right), \qquad \delta_k = (c_{k+1} - c_k) / h
    """
    intervals = table.shape[0] - 3
    place = distance * (intervals / cutoff)
    knot = place.floor().clamp(0, intervals - 1)
    t, row = (place - knot).unsqueeze(1), knot.long()
    s = 1 - t
    cubic = (s**3, (3 * t - 6) * t * t + 4, (3 * s - 6) * s * s + 4, t**3)
    square = (s * s, 1 + 2 * t - 2 * t * t, t * t)
    differences = table.diff(dim=0) * (intervals / cutoff)
    value = sum(weight * table[row + m] for m, weight in enumerate(cubic))
    slope = sum(weight * differences[row + m] for m, weight in enumerate(square))
    assert isinstance(value, Tensor)
    assert isinstance(slope, Tensor)
    return value / 6, slope / 2


# Atoms


def norm(x: Tensor, weights: Norm) -> Tensor:
    """`DegreeNorm`."""
    fields = [_hat(x, weights, n)[0] * weights.weight[n] for n in range(len(weights.sizes))]
    return torch.cat(fields, 1) + _at_zero(weights.bias, x)


def norm_adjoint(x: Tensor, weights: Norm, g: Tensor) -> Tensor:
    r"""Adjoint of `norm`.

    With h the gradient of the normalised :math:`\hat x = x / \sigma` of one degree,

    .. math:: \bar x = (h - \hat x \langle h \hat x \rangle) / \sigma

    and its mean over channels is subtracted from degree 0.
    """
    parts = []
    for n, field in enumerate(torch.split(g, weights.sizes, dim=1)):
        hat, scale = _hat(x, weights, n)
        h = field * weights.weight[n]
        part = (h - hat * (h * hat).mean((1, 2), keepdim=True)) * scale
        parts.append(part - part.mean(2, keepdim=True) if n == 0 else part)
    return torch.cat(parts, 1)


def _hat(x: Tensor, weights: Norm, n: int) -> tuple[Tensor, Tensor]:
    """Of the n-th degree."""
    field = torch.split(x, weights.sizes, dim=1)[n]
    if n == 0:
        field = field - field.mean(2, keepdim=True)
    square = field.square().mean((1, 2), keepdim=True)
    scale = (square + weights.epsilons[n]).rsqrt()
    return field * scale, scale


def _at_zero(bias: Tensor, x: Tensor) -> Tensor:
    """A bias (C,) of degree 0 as features of every component."""
    return torch.nn.functional.pad(bias[None, None], [0, 0, 0, x.shape[1] - 1])


def linear(x: Tensor, weights: Linear) -> Tensor:
    """`DegreeLinear`."""
    return by_degree(x, weights.weight.mT, weights.degrees) + _at_zero(weights.bias, x)


def linear_adjoint(g: Tensor, weights: Linear) -> Tensor:
    """Adjoint of `linear`: g W."""
    return by_degree(g, weights.weight, weights.degrees)


def by_degree(x: Tensor, matrices: Tensor, degrees: Sequence[int]) -> Tensor:
    """Features (n, d, C) times a matrix of each degree, or of all."""
    if matrices.ndim == 2:
        return x @ matrices
    found = [x[:, k] @ matrices[place] for k, place in enumerate(places(degrees)[: x.shape[1]])]
    return torch.stack(found, 1)


def spread(w: Tensor, x: Tensor, degrees: Sequence[int]) -> Tensor:
    """Weights (E, C) of all components or (E, degrees C) of each degree, as (E, 1 or d, C)."""
    w = w.unflatten(1, (-1, x.shape[2]))
    return w if w.shape[1] == 1 else w[:, places(degrees)]


def collect(g: Tensor, count: int, degrees: Sequence[int]) -> Tensor:
    """Adjoint of `spread`: gradients (E, d, C) -> (E, C) or (E, degrees C)."""
    if count == g.shape[2]:
        return g.sum(1)
    found = g.new_zeros(g.shape[0], len(degrees), g.shape[2])
    return found.index_add(1, torch.tensor(places(degrees)), g).flatten(1)


def places(degrees: Sequence[int]) -> list[int]:
    """Place of the degree of each component."""
    return [place for place, degree in enumerate(degrees) for _ in range(2 * degree + 1)]


def multiply_atoms(y: Tensor, u: Tensor, product: Tensor) -> Tensor:
    """The features y + y (x) u."""
    return y + torch.einsum("ijk,nic,njc->nkc", product, y, u)


def multiply_atoms_adjoint(
    y: Tensor, u: Tensor, product: Tensor, g: Tensor
) -> tuple[Tensor, Tensor]:
    """Gradients of y and u."""
    g_y = g + torch.einsum("ijk,nkc,njc->nic", product, g, u)
    return g_y, torch.einsum("ijk,nkc,nic->njc", product, g, y)


def gated(x: Tensor, weights: Gated) -> Tensor:
    """`GatedLinear`."""
    v, gate = _values_and_gates(x, weights)
    return torch.cat([(v[:, :1] * torch.sigmoid(v[:, :1])), v[:, 1:] * gate], 1)


def gated_adjoint(x: Tensor, weights: Gated, g: Tensor) -> Tensor:
    r"""Adjoint of `gated`.

    With :math:`s = \sigma(v_0)`, :math:`\sigma` the gate of l > 0 and q what it is made of,

    .. math::
        \bar v_0 = \bar y_0 \, s (1 + v_0 (1 - s)), \quad \bar v_l = \bar y_l \sigma, \quad
        \bar q = \sigma (1 - \sigma) \sum_{l > 0} \bar y_l v_l, \qquad
        \bar x = \bar v W_v + (\bar q W_g \text{ for } l = 0)
    """
    v, gate = _values_and_gates(x, weights)
    s = torch.sigmoid(v[:, :1])
    g_v = torch.cat([g[:, :1] * s * (1 + v[:, :1] * (1 - s)), g[:, 1:] * gate], 1)
    g_q = gate * (1 - gate) * (g[:, 1:] * v[:, 1:]).sum(1, keepdim=True)
    g_x = linear_adjoint(g_v, weights.value)
    return torch.cat([g_x[:, :1] + g_q @ weights.gate.weight, g_x[:, 1:]], 1)


def _values_and_gates(x: Tensor, weights: Gated) -> tuple[Tensor, Tensor]:
    gate = x[:, :1] @ weights.gate.weight.t() + weights.gate.bias
    return linear(x, weights.value), torch.sigmoid(gate)


# Edges


def embed(
    w: Tensor, sender: Tensor, edges: Edges, degrees: Sequence[int], atoms: int
) -> tuple[Tensor, Tensor]:
    """Sums over neighbours of the embedding, (N, d, C), and of the envelopes, (N,).

    ``sender`` are the factors (E, C) of the senders.
    """
    harmonics = edges.coupling[:, :, :1]
    factor = (sender * edges.envelope.unsqueeze(1)).unsqueeze(1)
    terms = harmonics * spread(w, factor, degrees) * factor
    degree = w.new_zeros(atoms).index_add(0, edges.receiver, edges.envelope)
    total = w.new_zeros(atoms, *terms.shape[1:]).index_add(0, edges.receiver, terms)
    return total, degree


def embed_adjoint(
    w: Tensor, slope: Tensor, sender: Tensor, edges: Edges, degrees: Sequence[int], g: Tensor,
    g_degree: Tensor,
) -> EdgeGradients:  # fmt: skip
    """From gradients of both results of `embed`; ``slope`` is dw/dr."""
    g = g[edges.receiver] * sender.unsqueeze(1)
    along = collect(g * edges.coupling[:, :, :1], w.shape[1], degrees)
    g_coupling = torch.zeros_like(edges.coupling)
    g_coupling[:, :, 0] = (g * spread(w, g, degrees)).sum(2) * edges.envelope.unsqueeze(1)
    return EdgeGradients(
        (along * slope).sum(1) * edges.envelope,
        (along * w).sum(1) + g_degree[edges.receiver],
        g_coupling,
    )


class Attention(NamedTuple):
    """What the way back of `attend` needs; recomputed by the kernels."""

    x: Tensor
    """(E, d, C), what the message is made of."""
    value: Tensor
    """(E, d, C), gate(W_v m)."""
    message: Tensor
    score: Tensor
    """(E, C), W m + b of degree 0."""
    alpha: Tensor
    """(E, heads)."""
    free: Tensor
    """(E, heads), alpha without its envelope."""
    z: Tensor
    """(N, d, C), the result."""


def attend(
    sent: Tensor, received: Tensor, w: Tensor, weights: BlockWeights, net: TDNWeights, edges: Edges
) -> Attention:
    r"""Sums over neighbours, weighted by attention; see `GraphAttention`.

    .. math::
        m = M w (s_j + r_i), \quad t_h = a_h \cdot \lambda(W_\alpha m_0 + b), \quad
        \alpha = \phi e^t / Z_i, \quad z_i = \sum_j \alpha M w \, \mathrm{gate}(W_v m)

    where :math:`\lambda` is the leaky unit.
    """
    i, atoms, width = edges.receiver, sent.shape[0], net.channels // net.heads
    x = sent[edges.sender] + received[i]
    message = edges.coupling @ (x * spread(w, x, net.degrees))
    score = message[:, 0] @ weights.score.weight.t() + weights.score.bias
    leaky = _leaky(score, net.slope)[0] * weights.score_dot
    t = leaky.view(-1, net.heads, width).sum(2)
    index = i.unsqueeze(1).expand(-1, net.heads)
    highest = t.new_zeros(atoms, net.heads)
    highest = highest.scatter_reduce(0, index, t, "amax", include_self=net.smooth)
    free = torch.exp(t - highest[i])
    total = torch.exp(-highest) if net.smooth else torch.zeros_like(highest)
    total = total.index_add(0, i, free * edges.envelope.unsqueeze(1))
    free = free / total[i]
    alpha = free * edges.envelope.unsqueeze(1)
    value = gated(message, weights.value)
    factor = alpha.repeat_interleave(width, 1).unsqueeze(1) * spread(w, x, net.degrees)
    terms = edges.coupling @ (value * factor)
    z = terms.new_zeros(atoms, *terms.shape[1:]).index_add(0, i, terms)
    return Attention(x, value, message, score, alpha, free, z)


def _leaky(x: Tensor, slope: float) -> tuple[Tensor, Tensor]:
    """`SmoothLeakyReLU` and its derivative."""
    even, odd, s = (1 + slope) / 2, (1 - slope) / 2, torch.sigmoid(x)
    return x * (even + odd * (2 * s - 1)), even + odd * (2 * s - 1 + 2 * x * s * (1 - s))


def attend_adjoint(
    passed: Attention, w: Tensor, slope: Tensor, weights: BlockWeights, net: TDNWeights,
    edges: Edges, g: Tensor,
) -> tuple[Tensor, Tensor, EdgeGradients]:  # fmt: skip
    r"""Gradients of what was sent and received, and of the edges.

    With :math:`y = M^T \bar z_i`, v the gated values and heads h,

    .. math::
        \bar \alpha_h = \sum_{c \in h} \sum_k w v y, \qquad
        \bar t = \alpha \left( \bar \alpha - \sum_{c \in h} \sum_k \bar z_i z_i \right), \qquad
        \bar \phi = \sum_h \bar t_h / \phi

    for :math:`\sum_j \alpha \bar \alpha` is the product of the result and its gradient. Then
    :math:`\bar v = \alpha w y`, the gate and the products lead to :math:`\bar m`, and with
    :math:`y' = M^T \bar m`, x = s_j + r_i,

    .. math::
        \bar x = w y', \qquad \bar w_l = \sum_{k \in l} (\alpha v y + x y'), \qquad
        \bar M = \bar z_i (\alpha w v)^T + \bar m (w x)^T
    """
    i, heads, width = edges.receiver, net.heads, net.channels // net.heads
    g_z = g[i]
    y = edges.coupling.mT @ g_z
    product = passed.value * y
    alpha = passed.alpha.repeat_interleave(width, 1)
    count, w = w.shape[1], spread(w, passed.x, net.degrees)
    g_alpha = (w * product).sum(1).view(-1, heads, width).sum(2)
    own = (g * passed.z).sum(1).view(-1, heads, width).sum(2)
    excess = g_alpha - own[i]
    g_t = (passed.alpha * excess).repeat_interleave(width, 1)
    g_score = g_t * weights.score_dot * _leaky(passed.score, net.slope)[1]
    factor = alpha.unsqueeze(1) * w
    g_m = gated_adjoint(passed.message, weights.value, factor * y)
    g_m = torch.cat([g_m[:, :1] + (g_score @ weights.score.weight).unsqueeze(1), g_m[:, 1:]], 1)
    y = edges.coupling.mT @ g_m
    g_x = w * y
    g_w = collect(alpha.unsqueeze(1) * product + passed.x * y, count, net.degrees)
    g_coupling = g_z @ (factor * passed.value).mT + g_m @ (w * passed.x).mT
    zeros = torch.zeros_like(g)
    gradients = EdgeGradients((g_w * slope).sum(1), (passed.free * excess).sum(1), g_coupling)
    return (
        zeros.index_add(0, edges.sender, g_x),
        zeros.index_add(0, edges.receiver, g_x),
        gradients,
    )


# The whole


def outputs_and_gradient(
    net: TDNWeights, numbers: Tensor, edge_index: Tensor, vectors: Tensor
) -> tuple[Tensor, Tensor]:
    """Outputs (N,) of the network and the gradient (E, 3) of their sum.

    Parameters
    ----------
    net
        Weights.
    numbers
        (N,) atomic numbers.
    edge_index
        (2, E), receivers and senders.
    vectors
        (E, 3), r_j - r_i in the network's unit of length, shorter than its cutoff.
    """
    atoms, distance = len(numbers), torch.linalg.vector_norm(vectors, dim=1)
    unit = vectors / distance.unsqueeze(1)
    y, y_slope = harmonics(unit, net.degrees)
    phase = math.pi / net.cutoff * distance
    envelope, fall = torch.ones_like(distance), torch.zeros_like(distance)
    if net.smooth:
        envelope = 0.5 * (torch.cos(phase) + 1)
        fall = -0.5 * math.pi / net.cutoff * torch.sin(phase)
    coupling = torch.einsum("ijk,ej->eki", net.product, y)
    edges = Edges(edge_index[0], edge_index[1], distance, envelope, coupling)
    radial = [spline(t, net.cutoff, distance) for t in (net.table, *(b.table for b in net.layers))]

    sender = net.sender.expand(len(net.species), -1)[numbers[edges.sender]]
    total, degree = embed(radial[0][0], sender, edges, net.degrees, atoms)
    x = linear(total, net.mix)
    scalars = degree.unsqueeze(1) * net.bias + net.species[numbers]
    x = torch.cat([x[:, :1] + scalars.unsqueeze(1), x[:, 1:]], 1)
    passed = []
    for layer, (w, _) in zip(net.layers, radial[1:], strict=True):
        h = norm(x, layer.norm_1)
        sums = attend(linear(h, layer.sender), linear(h, layer.receiver), w, layer, net, edges)
        middle = x + linear(sums.z, layer.mix)
        passed.append((x, sums, middle))
        h = norm(middle, layer.norm_2)
        y = gated(h, layer.gated)
        if layer.factor is not None:
            y = multiply_atoms(y, linear(h, layer.factor), net.product)
        x = middle + linear(y, layer.gated_mix)
    outputs, g = read_out(x, net)

    gradients = EdgeGradients(
        torch.zeros_like(distance), torch.zeros_like(distance), torch.zeros_like(coupling)
    )
    for layer, (w, slope), (x, sums, middle) in reversed(
        list(zip(net.layers, radial[1:], passed, strict=True))
    ):
        h = norm(middle, layer.norm_2)
        g_y, g_h = linear_adjoint(g, layer.gated_mix), torch.zeros_like(g)
        if layer.factor is not None:
            y, u = gated(h, layer.gated), linear(h, layer.factor)
            g_y, g_u = multiply_atoms_adjoint(y, u, net.product, g_y)
            g_h = linear_adjoint(g_u, layer.factor)
        g_h = g_h + gated_adjoint(h, layer.gated, g_y)
        g = g + norm_adjoint(middle, layer.norm_2, g_h)
        g_sent, g_received, own = attend_adjoint(
            sums, w, slope, layer, net, edges, linear_adjoint(g, layer.mix)
        )
        gradients = EdgeGradients(*(a + b for a, b in zip(gradients, own, strict=True)))
        g_h = linear_adjoint(g_sent, layer.sender) + linear_adjoint(g_received, layer.receiver)
        g = g + norm_adjoint(x, layer.norm_1, g_h)
    own = embed_adjoint(
        *radial[0], sender, edges, net.degrees, linear_adjoint(g, net.mix), g[:, 0] @ net.bias
    )
    gradients = EdgeGradients(*(a + b for a, b in zip(gradients, own, strict=True)))

    along = gradients.distance + fall * gradients.envelope
    g_y = torch.einsum("ijk,eki->ej", net.product, gradients.coupling)
    g_unit = torch.einsum("ej,eja->ea", g_y, y_slope)
    across = g_unit - (g_unit * unit).sum(1, keepdim=True) * unit
    return outputs, along.unsqueeze(1) * unit + across / distance.unsqueeze(1)


def read_out(x: Tensor, net: TDNWeights) -> tuple[Tensor, Tensor]:
    """Outputs (N,) and the gradient (N, d, C) of their sum: layer norm, two dense layers."""
    first, last = net.head
    middle = x[:, 0] - x[:, 0].mean(1, keepdim=True)
    scale = (middle.square().mean(1, keepdim=True) + LAYER_NORM_EPSILON).rsqrt()
    hat = middle * scale
    v = (hat * net.readout_norm_weight + net.readout_norm_bias) @ first.weight.t() + first.bias
    s = torch.sigmoid(v)
    outputs = (v * s) @ last.weight.t() + last.bias
    g = (last.weight * s * (1 + v * (1 - s))) @ first.weight * net.readout_norm_weight
    g = (g - hat * (g * hat).mean(1, keepdim=True)) * scale
    g = g - g.mean(1, keepdim=True)
    return outputs[:, 0], torch.nn.functional.pad(g.unsqueeze(1), [0, 0, 0, x.shape[1] - 1])
