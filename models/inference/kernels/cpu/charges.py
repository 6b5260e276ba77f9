r"""Charges of the atoms, forward and backward; the equations are those of `ChargePrediction`.

With :math:`P = \sum p`, :math:`W = \sum w^2 + 10^{-6}` over a system, g the gradient of its
charges and :math:`s = \sum_k w_k^2 g_k / W`,

.. math::
    q_i = p_i + w_i^2 (Q - P) / W, \qquad
    \bar p_i = g_i - s, \qquad
    \bar w_i = 2 w_i (g_i - s) (Q - P) / W
"""

from __future__ import annotations

import math
from typing import Any

from .algebra import dots, features, load_irreps, scaled
from .compiled import internal
from .components import load_all, plus, store_all, store_apart, with_first
from .dense import multiply
from .perceptron import Perceptron, backward, forward, normalise, normalise_back
from .simd import LANES, like, load, store
from .tensornet2_network import ChargesWork, EdgesWork, PackedCharges
from .tensornet_network import PackedTensorNet, TensorNetWork

LEAST_SHARES = 1e-6
"""Added to the sum of the shares, as published."""
ROOT_1_3 = math.sqrt(1 / 3)


@internal
def write_invariants(
    first: int, last: int, level: int, net: PackedTensorNet, work: TensorNetWork, scratch: Any
) -> None:
    """A third of the trace, and the squared norms of A and S, one row per atom."""
    atoms, row, size = work.outputs.size, work.block * LANES, features(net.shape)
    for chunk in range(net.chunks):
        for a in range(last - first):
            x = load_all(net.shape, work.x[level], (chunk * atoms + first + a) * size)
            found = with_first(dots(x, x), x[0] * like(x[0], ROOT_1_3))
            store_apart(scratch, chunk * row + a * LANES, net.chunks * row, found)


@internal
def predict(
    first: int, last: int, level: int, net: PackedTensorNet, prediction: Perceptron,
    charges: PackedCharges, work: TensorNetWork, more: ChargesWork, scratch: Any,
) -> None:  # fmt: skip
    """Compute p and w of a level."""
    n, atoms, block = last - first, work.outputs.size, work.block
    row, at = block * LANES, work.scalars
    write_invariants(first, last, level, net, work, scratch)
    for a in range(n):
        statistics = more.statistics[level, first + a]
        statistics[0], statistics[1] = normalise(
            scratch, a * LANES, row, 3 * net.chunks, 3 * net.channels, charges.norm_weight[level],
            charges.norm_bias[level], scratch, at + a * LANES,
        )  # fmt: skip
    slopes = more.slopes[level, first // block]
    out = forward(prediction, scratch, at, slopes, 0, work.rows, n, block)
    for chunk in range(2 * charges.chunks):
        for a in range(n):
            place = (level * 2 * charges.chunks + chunk) * atoms + first + a
            store(more.outputs, place * LANES, load(scratch, out + chunk * row + a * LANES))


@internal
def predict_back(
    first: int, last: int, level: int, net: PackedTensorNet, prediction: Perceptron,
    charges: PackedCharges, work: TensorNetWork, more: ChargesWork, scratch: Any,
) -> None:  # fmt: skip
    """Add the gradient of the charges of a level to that of the features."""
    n, atoms, block = last - first, work.outputs.size, work.block
    row, at, size = block * LANES, work.scalars, features(net.shape)
    out = at + prediction.chunks[:-1].sum() * row
    width = charges.chunks * LANES
    for chunk in range(charges.chunks):
        for a in range(n):
            i = first + a
            sums, total = more.sums[level, more.system[i]], more.total[more.system[i]]
            place = ((level * charges.chunks + chunk) * atoms + i) * LANES
            w = (((level * 2 + 1) * charges.chunks + chunk) * atoms + i) * LANES
            to_p = out + chunk * row + a * LANES
            to_w = to_p + charges.chunks * row
            for k in range(LANES):
                c = chunk * LANES + k
                shares = sums[width + c] + LEAST_SHARES
                g = more.gradient[place + k] - sums[2 * width + c] / shares
                scratch[to_p + k] = g
                scratch[to_w + k] = 2 * more.outputs[w + k] * g * (total - sums[c]) / shares
    slopes = more.slopes[level, first // block]
    backward(prediction, scratch, at, slopes, 0, work.rows, n, block, net.zeros)
    write_invariants(first, last, level, net, work, scratch)
    for a in range(n):
        statistics = more.statistics[level, first + a]
        normalise_back(
            scratch, a * LANES, row, 3 * net.chunks, 3 * net.channels, charges.norm_weight[level],
            statistics[0], statistics[1], scratch, at + a * LANES,
        )  # fmt: skip
    for chunk in range(net.chunks):
        for a in range(n):
            here = (chunk * atoms + first + a) * size
            w = load_irreps(net.shape, scratch, at + chunk * row + a * LANES, net.chunks * row)
            x = scaled(plus(w, w), load_all(net.shape, work.x[level], here))
            x = with_first(x, w[0] * like(w[0], ROOT_1_3))
            store_all(work.gradient, here, plus(load_all(net.shape, work.gradient, here), x))


@internal
def add_up(level: int, charges: PackedCharges, more: ChargesWork) -> None:
    """Sum p and w^2 over the atoms of each system."""
    atoms, width = more.system.size, charges.chunks * LANES
    more.sums[level] = 0
    for chunk in range(charges.chunks):
        for i in range(atoms):
            sums = more.sums[level, more.system[i]]
            p = ((level * 2 * charges.chunks + chunk) * atoms + i) * LANES
            w = p + charges.chunks * atoms * LANES
            for k in range(LANES):
                sums[chunk * LANES + k] += more.outputs[p + k]
                sums[width + chunk * LANES + k] += more.outputs[w + k] * more.outputs[w + k]


@internal
def add_up_back(level: int, charges: PackedCharges, more: ChargesWork) -> None:
    """Sum w^2 times the gradient of the charges over the atoms of each system."""
    atoms, width = more.system.size, charges.chunks * LANES
    for chunk in range(charges.chunks):
        for i in range(atoms):
            sums = more.sums[level, more.system[i]]
            g = ((level * charges.chunks + chunk) * atoms + i) * LANES
            w = (((level * 2 + 1) * charges.chunks + chunk) * atoms + i) * LANES
            for k in range(LANES):
                share = more.outputs[w + k] * more.outputs[w + k]
                sums[2 * width + chunk * LANES + k] += share * more.gradient[g + k]


@internal
def charge_atoms(
    first: int, last: int, level: int, charges: PackedCharges, more: ChargesWork
) -> None:
    """Compute the charges of a level from p, w and their sums."""
    atoms, width = more.system.size, charges.chunks * LANES
    for chunk in range(charges.chunks):
        for i in range(first, last):
            sums, total = more.sums[level, more.system[i]], more.total[more.system[i]]
            p = ((level * 2 * charges.chunks + chunk) * atoms + i) * LANES
            w = p + charges.chunks * atoms * LANES
            q = ((level * charges.chunks + chunk) * atoms + i) * LANES
            for k in range(LANES):
                c = chunk * LANES + k
                missing = (total - sums[c]) / (sums[width + c] + LEAST_SHARES)
                share = more.outputs[w + k] * more.outputs[w + k]
                more.charges[q + k] = more.outputs[p + k] + share * missing
                more.gradient[q + k] = 0


@internal
def enter_edges(
    first: int, last: int, layer: int, net: PackedTensorNet, charges: PackedCharges,
    work: TensorNetWork, more: ChargesWork, inner: EdgesWork,
) -> None:  # fmt: skip
    """Compute the terms of a layer's edge networks that depend on the charges of an atom."""
    atoms, n, size = work.outputs.size, last - first, charges.chunks * net.chunks * LANES * LANES
    q, stride = (layer * charges.chunks * atoms + first) * LANES, atoms * LANES
    z = (layer * net.chunks * atoms + first) * LANES
    multiply(
        more.charges, q, stride, work.rows, n, charges.receiver, layer * size, charges.bias,
        layer * net.chunks * LANES, charges.chunks, net.chunks, inner.receiver, z, stride,
    )  # fmt: skip
    multiply(
        more.charges, q, stride, work.rows, n, charges.sender, layer * size, net.zeros, 0,
        charges.chunks, net.chunks, inner.sender, z, stride,
    )  # fmt: skip


@internal
def enter_edges_back(
    first: int, last: int, layer: int, net: PackedTensorNet, charges: PackedCharges,
    work: TensorNetWork, more: ChargesWork, inner: EdgesWork, scratch: Any,
) -> None:  # fmt: skip
    """Add to the gradient of the charges that a layer reads."""
    atoms, n, size = work.outputs.size, last - first, charges.chunks * net.chunks * LANES * LANES
    stride, row = atoms * LANES, work.block * LANES
    second = charges.chunks * row
    multiply(
        inner.g_receiver, first * LANES, stride, work.rows, n, charges.receiver_transposed,
        layer * size, charges.zeros, 0, net.chunks, charges.chunks, scratch, 0, row,
    )  # fmt: skip
    multiply(
        inner.g_sender, first * LANES, stride, work.rows, n, charges.sender_transposed,
        layer * size, charges.zeros, 0, net.chunks, charges.chunks, scratch, second, row,
    )  # fmt: skip
    for chunk in range(charges.chunks):
        for a in range(n):
            g = ((layer * charges.chunks + chunk) * atoms + first + a) * LANES
            k = chunk * row + a * LANES
            both = load(scratch, k) + load(scratch, second + k)
            store(more.gradient, g, load(more.gradient, g) + both)
