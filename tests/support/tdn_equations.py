r"""TDN forward and backward as plain functions of tensors, the reference of the fused kernels.

Each operator is followed by its adjoint, which takes the gradient g of the energy with respect to
the operator's result and returns the gradient with respect to its arguments.

Notation: N atoms, E edges, features x (n, d, C) of d components of some degrees and C channels; i
receives from j; an edge of length r and direction u = r_ij / r has the harmonics Y(u), the
envelope phi(r), the radial weights w(r) of a tensor product and its matrix

.. math:: M_{ki} = \sum_j M_{ijk} Y_j

so that features x of the edge become w M x. A bar denotes the gradient of the energy.
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
    """`DegreeLinear`; its adjoint is g W."""
    return x @ weights.weight.t() + _at_zero(weights.bias, x)


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
    g_x = g_v @ weights.value.weight
    return torch.cat([g_x[:, :1] + g_q @ weights.gate.weight, g_x[:, 1:]], 1)


def _values_and_gates(x: Tensor, weights: Gated) -> tuple[Tensor, Tensor]:
    gate = x[:, :1] @ weights.gate.weight.t() + weights.gate.bias
    return linear(x, weights.value), torch.sigmoid(gate)


# Edges


def embed(w: Tensor, weights: TDNWeights, edges: Edges, atoms: int) -> tuple[Tensor, Tensor]:
    """Sums over neighbours of the embedding, (N, d, C), and of the envelopes, (N,)."""
    terms = edges.coupling[:, :, :1] * (w * edges.envelope.unsqueeze(1)).unsqueeze(1)
    degree = w.new_zeros(atoms).index_add(0, edges.receiver, edges.envelope)
    total = w.new_zeros(atoms, *terms.shape[1:]).index_add(0, edges.receiver, terms)
    return total, degree


def embed_adjoint(
    w: Tensor, slope: Tensor, edges: Edges, g: Tensor, g_degree: Tensor
) -> EdgeGradients:
    """From gradients of both results of `embed`; ``slope`` is dw/dr."""
    g = g[edges.receiver]
    along = (g * edges.coupling[:, :, :1]).sum(1)
    g_coupling = torch.zeros_like(edges.coupling)
    g_coupling[:, :, 0] = torch.einsum("ekc,ec->ek", g, w * edges.envelope.unsqueeze(1))
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
        m = w M (s_j + r_i), \quad t_h = a_h \cdot \lambda(W_\alpha m_0 + b), \quad
        \alpha = \phi e^t / Z_i, \quad z_i = \sum_j \alpha w M \, \mathrm{gate}(W_v m)

    where :math:`\lambda` is the leaky unit.
    """
    i, atoms, width = edges.receiver, sent.shape[0], net.channels // net.heads
    x = sent[edges.sender] + received[i]
    message = (edges.coupling @ x) * w.unsqueeze(1)
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
    factor = alpha.repeat_interleave(width, 1) * w
    terms = edges.coupling @ (value * factor.unsqueeze(1))
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
        \bar \alpha_h = \sum_{c \in h} w \sum_k v y, \qquad
        \bar t = \alpha \left( \bar \alpha - \sum_{c \in h} \sum_k \bar z_i z_i \right), \qquad
        \bar \phi = \sum_h \bar t_h / \phi

    for :math:`\sum_j \alpha \bar \alpha` is the product of the result and its gradient. Then
    :math:`\bar v = \alpha w y`, the gate and the products lead to :math:`\bar m`, and with
    :math:`y' = M^T \bar m`, x = s_j + r_i,

    .. math::
        \bar x = w y', \qquad \bar w = \alpha \sum_k v y + \sum_k x y', \qquad
        \bar M = \bar z_i (\alpha w v)^T + \bar m (w x)^T
    """
    i, heads, width = edges.receiver, net.heads, net.channels // net.heads
    g_z = g[i]
    y = edges.coupling.mT @ g_z
    product = (passed.value * y).sum(1)
    alpha = passed.alpha.repeat_interleave(width, 1)
    g_alpha = (w * product).view(-1, heads, width).sum(2)
    own = (g * passed.z).sum(1).view(-1, heads, width).sum(2)
    excess = g_alpha - own[i]
    g_t = (passed.alpha * excess).repeat_interleave(width, 1)
    g_score = g_t * weights.score_dot * _leaky(passed.score, net.slope)[1]
    factor = (alpha * w).unsqueeze(1)
    g_m = gated_adjoint(passed.message, weights.value, factor * y)
    g_m = torch.cat([g_m[:, :1] + (g_score @ weights.score.weight).unsqueeze(1), g_m[:, 1:]], 1)
    y = edges.coupling.mT @ g_m
    g_x = w.unsqueeze(1) * y
    g_w = alpha * product + (passed.x * y).sum(1)
    g_coupling = g_z @ (factor * passed.value).mT + g_m @ (w.unsqueeze(1) * passed.x).mT
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

    total, degree = embed(radial[0][0], net, edges, atoms)
    x = total @ net.mix.t()
    scalars = degree.unsqueeze(1) * net.bias + net.species[numbers]
    x = torch.cat([x[:, :1] + scalars.unsqueeze(1), x[:, 1:]], 1)
    passed = []
    for layer, (w, _) in zip(net.layers, radial[1:], strict=True):
        h = norm(x, layer.norm_1)
        sums = attend(linear(h, layer.sender), linear(h, layer.receiver), w, layer, net, edges)
        middle = x + linear(sums.z, layer.mix)
        passed.append((x, sums, middle))
        h = gated(norm(middle, layer.norm_2), layer.gated)
        x = middle + linear(h, layer.gated_mix)
    outputs, g = read_out(x, net)

    gradients = EdgeGradients(
        torch.zeros_like(distance), torch.zeros_like(distance), torch.zeros_like(coupling)
    )
    for layer, (w, slope), (x, sums, middle) in reversed(
        list(zip(net.layers, radial[1:], passed, strict=True))
    ):
        h = norm(middle, layer.norm_2)
        g_h = gated_adjoint(h, layer.gated, g @ layer.gated_mix.weight)
        g = g + norm_adjoint(middle, layer.norm_2, g_h)
        g_sent, g_received, own = attend_adjoint(
            sums, w, slope, layer, net, edges, g @ layer.mix.weight
        )
        gradients = EdgeGradients(*(a + b for a, b in zip(gradients, own, strict=True)))
        g_h = g_sent @ layer.sender.weight + g_received @ layer.receiver.weight
        g = g + norm_adjoint(x, layer.norm_1, g_h)
    own = embed_adjoint(*radial[0], edges, g @ net.mix, g[:, 0] @ net.bias)
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
