"""The operations of a TDN on each atom, forward and backward, a block of atoms at a time.

The equations are in ``tests/support/tdn_equations.py``. Features have the layout of `tdn_edges`,
also those of a block in the memory of a thread.
"""

from __future__ import annotations

import math
from typing import Any

from .compiled import internal
from .dense import multiply
from .perceptron import Perceptron, backward, forward, normalise, normalise_back, sigmoid
from .simd import LANES, fma, lane, like, load, splat, store, total
from .tdn_network import (
    BLOCK,
    FACTOR,
    GATE,
    GATED,
    GATED_MIX,
    MAPS,
    MIX,
    RECEIVER,
    SENDER,
    PackedTDN,
    TDNWork,
)


@internal
def matrix_of(net: PackedTDN, layer: int, which: int, degree: int) -> int:
    """Where the matrix of a map begins, of a degree given by its place."""
    per_layer = GATE * net.maps + MAPS - GATE
    at = layer * per_layer + GATE * net.maps + which - GATE
    if which < GATE:
        at = layer * per_layer + which * net.maps + min(degree, net.maps - 1)
    return at * net.width * net.width


@internal
def transform(
    net: PackedTDN, matrices: Any, matrix: int, rows: Any, count: int, bias: Any, b_start: int,
    x: Any, x_start: int, y: Any, y_start: int,
) -> None:  # fmt: skip
    """The matrix at ``matrix`` on the channels of ``count`` rows of features, and a bias."""
    stride = net.components * LANES
    multiply(
        x, x_start, stride, rows, count, matrices, matrix, bias, b_start, net.chunks, net.chunks,
        y, y_start, stride,
    )  # fmt: skip


@internal
def map_degrees(
    net: PackedTDN, matrices: Any, layer: int, which: int, bias: Any, b_start: int, x: Any,
    x_start: int, y: Any, y_start: int, n: int, work: TDNWork,
) -> None:  # fmt: skip
    """A map on the features of n atoms or edges, each degree by its matrix; a bias on degree 0."""
    for k in range(net.degrees.size):
        matrix, rows = matrix_of(net, layer, which, k), work.rows[work.row_starts[k] :]
        count = n * (net.starts[k + 1] - net.starts[k])
        if k == 0:
            transform(net, matrices, matrix, rows, count, bias, b_start, x, x_start, y, y_start)
        else:
            transform(net, matrices, matrix, rows, count, net.zeros, 0, x, x_start, y, y_start)


@internal
def linear(
    net: PackedTDN, layer: int, which: int, x: Any, x_start: int, y: Any, y_start: int, n: int,
    work: TDNWork,
) -> None:  # fmt: skip
    """`DegreeLinear` of n atoms."""
    bias = (layer * MAPS + which) * net.width
    map_degrees(net, net.matrices, layer, which, net.biases, bias, x, x_start, y, y_start, n, work)


@internal
def linear_back(
    net: PackedTDN, layer: int, which: int, x: Any, x_start: int, y: Any, y_start: int, n: int,
    work: TDNWork,
) -> None:  # fmt: skip
    """Backward pass of `linear`."""
    map_degrees(net, net.transposed, layer, which, net.zeros, 0, x, x_start, y, y_start, n, work)


@internal
def add(x: Any, x_start: int, y: Any, y_start: int, count: int) -> None:
    """X += y."""
    for at in range(0, count, LANES):
        store(x, x_start + at, load(x, x_start + at) + load(y, y_start + at))


@internal
def norm(net: PackedTDN, which: int, x: Any, x_start: int, y: Any, y_start: int, n: int) -> None:
    """Layer norm of each degree of n atoms; ``which`` is 2 layer, plus 1 for the second norm."""
    d, chunks, degrees = net.components, net.chunks, net.degrees.size
    width, features = net.width, net.features
    for a in range(n):
        at, to = x_start + a * features, y_start + a * features
        weight = which * degrees * width
        normalise(
            x, at, d * LANES, chunks, net.channels, net.norm_weights[weight:],
            net.norm_biases[which * width :], y, to,
        )  # fmt: skip
        for degree in range(1, degrees):
            scale = degree_scale(net, which, degree, x, at)
            for chunk in range(chunks):
                c = chunk * LANES
                factor = load(net.norm_weights, weight + degree * width + c)
                factor = factor * like(factor, scale)
                for k in range(net.starts[degree], net.starts[degree + 1]):
                    here = (chunk * d + k) * LANES
                    store(y, to + here, factor * load(x, at + here))


@internal
def degree_scale(net: PackedTDN, which: int, degree: int, x: Any, at: int) -> float:
    """1 / sqrt of the mean square of a degree, given by its place, which is not the first."""
    d, sums = net.components, load(net.zeros, 0)
    begin, end = net.starts[degree], net.starts[degree + 1]
    for chunk in range(net.chunks):
        for k in range(begin, end):
            value = load(x, at + (chunk * d + k) * LANES)
            sums = fma(value, value, sums)
    mean = total(sums) / (net.channels * (end - begin))
    return 1 / math.sqrt(mean + net.epsilons[which // 2, which % 2, degree])


@internal
def norm_back(
    net: PackedTDN, which: int, x: Any, x_start: int, scratch: Any, n: int, work: TDNWork
) -> None:
    """Turn the gradient of `norm`'s result, at ``work.first``, into that of its input, in place.

    The normalised features are recomputed at ``work.second``, but not used.
    """
    d, chunks, degrees = net.components, net.chunks, net.degrees.size
    width, features = net.width, net.features
    for a in range(n):
        at, to = x_start + a * features, work.first + a * features
        weight = which * degrees * width
        mean, scale = normalise(
            x, at, d * LANES, chunks, net.channels, net.norm_weights[weight:],
            net.norm_biases[which * width :], scratch, work.second,
        )  # fmt: skip
        normalise_back(
            x, at, d * LANES, chunks, net.channels, net.norm_weights[weight:], mean, scale,
            scratch, to,
        )  # fmt: skip
        for degree in range(1, degrees):
            scale = degree_scale(net, which, degree, x, at)
            sums = load(net.zeros, 0)
            for chunk in range(chunks):
                factor = load(net.norm_weights, weight + degree * width + chunk * LANES)
                for k in range(net.starts[degree], net.starts[degree + 1]):
                    here = (chunk * d + k) * LANES
                    h = factor * load(scratch, to + here)
                    store(scratch, to + here, h)
                    sums = fma(h, load(x, at + here), sums)
            size = net.starts[degree + 1] - net.starts[degree]
            mean = total(sums) / (net.channels * size)
            own, theirs = like(sums, scale), like(sums, -mean * scale * scale * scale)
            for chunk in range(chunks):
                for k in range(net.starts[degree], net.starts[degree + 1]):
                    here = (chunk * d + k) * LANES
                    g = own * load(scratch, to + here)
                    store(scratch, to + here, fma(theirs, load(x, at + here), g))


@internal
def embed_atoms(first: int, last: int, species: Any, net: PackedTDN, work: TDNWork) -> None:
    """From the sums of the embedding to the inputs of the first layer."""
    d, width, features = net.components, net.width, net.features
    at, bias = first * features, net.layers * MAPS * width
    map_degrees(
        net, net.matrices, net.layers, 0, net.zeros, 0, work.embedded, at, work.x[0], at,
        last - first, work,
    )  # fmt: skip
    for i in range(first, last):
        degree = splat(work.degree[i])
        for c in range(0, width, LANES):
            at = i * features + c * d
            scalar = load(net.species, species[i] * width + c) + load(work.x[0], at)
            store(work.x[0], at, fma(degree, load(net.biases, bias + c), scalar))


@internal
def embed_atoms_back(first: int, last: int, net: PackedTDN, work: TDNWork) -> None:
    """Backward pass of `embed_atoms`: gradients of the sums (``work.g_z``) and the degrees."""
    d, width, features = net.components, net.width, net.features
    at, bias = first * features, net.layers * MAPS * width
    linear_back(net, net.layers, 0, work.gradient, at, work.g_z, at, last - first, work)
    for i in range(first, last):
        sums = load(net.zeros, 0)
        for c in range(0, width, LANES):
            g = load(work.gradient, i * features + c * d)
            sums = fma(g, load(net.biases, bias + c), sums)
        work.g_degree[i] = total(sums)


@internal
def enter_layer(
    first: int, last: int, layer: int, net: PackedTDN, work: TDNWork, scratch: Any
) -> None:
    """Features that atoms contribute as senders and as receivers, from a layer's inputs."""
    n, at = last - first, first * net.features
    norm(net, 2 * layer, work.x[layer], at, scratch, work.first, n)
    linear(net, layer, SENDER, scratch, work.first, work.sent[layer], at, n, work)
    linear(net, layer, RECEIVER, scratch, work.first, work.received[layer], at, n, work)


@internal
def enter_layer_back(
    first: int, last: int, layer: int, net: PackedTDN, work: TDNWork, scratch: Any
) -> None:
    """Backward pass of `enter_layer`: adds to ``work.gradient``."""
    n, features = last - first, net.features
    at = first * features
    linear_back(net, layer, SENDER, work.g_sent, at, scratch, work.first, n, work)
    linear_back(net, layer, RECEIVER, work.g_received, at, scratch, work.second, n, work)
    add(scratch, work.first, scratch, work.second, n * features)
    norm_back(net, 2 * layer, work.x[layer], at, scratch, n, work)
    add(work.gradient, at, scratch, work.first, n * features)


@internal
def values_and_gates(
    first: int, last: int, layer: int, net: PackedTDN, work: TDNWork, scratch: Any
) -> None:
    """Compute the feed-forward values (``work.second``) and the gates' inputs (``work.third``).

    The other factor of an atom's product with itself is at ``work.fourth``.
    """
    n = last - first
    norm(net, 2 * layer + 1, work.middle[layer], first * net.features, scratch, work.first, n)
    linear(net, layer, GATED, scratch, work.first, scratch, work.second, n, work)
    transform(
        net, net.matrices, matrix_of(net, layer, GATE, 0), work.rows, n, net.biases,
        (layer * MAPS + GATE) * net.width, scratch, work.first, scratch, work.third,
    )  # fmt: skip
    if net.factors.size > 0:
        linear(net, layer, FACTOR, scratch, work.first, scratch, work.fourth, n, work)


@internal
def feed_forward(
    first: int, last: int, layer: int, net: PackedTDN, work: TDNWork, scratch: Any
) -> None:
    """From the sums over neighbours to the outputs of the layer."""
    d, features, n = net.components, net.features, last - first
    at = first * features
    linear(net, layer, MIX, work.z[layer], at, work.middle[layer], at, n, work)
    add(work.middle[layer], at, work.x[layer], at, n * features)
    values_and_gates(first, last, layer, net, work, scratch)
    for here in range(0, n * features, d * LANES):
        v = load(scratch, work.second + here)
        gate = sigmoid(load(scratch, work.third + here))
        store(scratch, work.second + here, v * sigmoid(v))
        for k in range(here + LANES, here + d * LANES, LANES):
            store(scratch, work.second + k, gate * load(scratch, work.second + k))
    inner = work.second
    if net.factors.size > 0:
        inner = work.third
        for here in range(0, n * features, d * LANES):
            multiply_atom(net, scratch, work.second + here, work.fourth + here, inner + here)
    linear(net, layer, GATED_MIX, scratch, inner, work.x[layer + 1], at, n, work)
    add(work.x[layer + 1], at, work.middle[layer], at, n * features)


@internal
def multiply_atom(net: PackedTDN, scratch: Any, y: int, u: int, out: int) -> None:
    """Y + y (x) u of one atom and chunk."""
    for k in range(0, net.components * LANES, LANES):
        store(scratch, out + k, load(scratch, y + k))
    for t in range(net.factors.size):
        i, j, k = net.terms[t]
        product = load(scratch, y + i) * load(scratch, u + j)
        value = fma(splat(net.factors[t]), product, load(scratch, out + k))
        store(scratch, out + k, value)


@internal
def multiply_atom_back(
    net: PackedTDN, scratch: Any, y: int, u: int, g: int, g_y: int, g_u: int
) -> None:
    """Backward pass of `multiply_atom`: gradients of y and u from that of the result."""
    for k in range(0, net.components * LANES, LANES):
        store(scratch, g_y + k, load(scratch, g + k))
        store(scratch, g_u + k, load(net.zeros, 0))
    for t in range(net.factors.size):
        i, j, k = net.terms[t]
        share = splat(net.factors[t]) * load(scratch, g + k)
        store(scratch, g_y + i, fma(share, load(scratch, u + j), load(scratch, g_y + i)))
        store(scratch, g_u + j, fma(share, load(scratch, y + i), load(scratch, g_u + j)))


@internal
def feed_forward_back(
    first: int, last: int, layer: int, net: PackedTDN, work: TDNWork, scratch: Any
) -> None:
    """Backward pass of `feed_forward`: gradients of the attention's result and sums.

    The former is in ``work.gradient``, the latter in ``work.g_z``.
    """
    d, features, n = net.components, net.features, last - first
    at, block = first * features, d * LANES
    y, g_y, g_u = work.products, work.products + block, work.products + 2 * block
    values_and_gates(first, last, layer, net, work, scratch)
    linear_back(net, layer, GATED_MIX, work.gradient, at, scratch, work.first, n, work)
    for here in range(0, n * features, block):
        v = load(scratch, work.second + here)
        gate, s = sigmoid(load(scratch, work.third + here)), sigmoid(v)
        one, sums, share = like(v, 1.0), load(net.zeros, 0), work.first + here
        if net.factors.size > 0:
            store(scratch, y, v * s)
            for k in range(LANES, block, LANES):
                store(scratch, y + k, gate * load(scratch, work.second + here + k))
            multiply_atom_back(net, scratch, y, work.fourth + here, share, g_y, g_u)
            share = g_y
            for k in range(0, block, LANES):
                store(scratch, work.fourth + here + k, load(scratch, g_u + k))
        for k in range(LANES, block, LANES):
            g = load(scratch, share + k)
            sums = fma(g, load(scratch, work.second + here + k), sums)
            store(scratch, work.second + here + k, gate * g)
        g = load(scratch, share)
        store(scratch, work.second + here, g * s * fma(v, one - s, one))
        store(scratch, work.third + here, gate * (one - gate) * sums)
    linear_back(net, layer, GATED, scratch, work.second, scratch, work.first, n, work)
    if net.factors.size > 0:
        linear_back(net, layer, FACTOR, scratch, work.fourth, scratch, work.second, n, work)
        add(scratch, work.first, scratch, work.second, n * features)
    transform(
        net, net.transposed, matrix_of(net, layer, GATE, 0), work.rows, n, net.zeros, 0, scratch,
        work.third, scratch, work.fourth,
    )  # fmt: skip
    for here in range(0, n * features, d * LANES):
        g = load(scratch, work.first + here) + load(scratch, work.fourth + here)
        store(scratch, work.first + here, g)
    norm_back(net, 2 * layer + 1, work.middle[layer], at, scratch, n, work)
    add(work.gradient, at, scratch, work.first, n * features)
    linear_back(net, layer, MIX, work.gradient, at, work.g_z, at, n, work)


@internal
def read_out(
    first: int, last: int, net: PackedTDN, head: Perceptron, work: TDNWork, scratch: Any
) -> None:
    """Compute the outputs of the network, and the gradient of the last layer's outputs."""
    d, chunks, n, features = net.components, net.chunks, last - first, net.features
    row, x, at = BLOCK * LANES, work.x[net.layers], work.scalars
    for i in range(first, last):
        for k in range(0, features, LANES):
            store(work.gradient, i * features + k, load(net.zeros, 0))
        # The norm reads and writes in steps of d vectors, so it can write to the gradient.
        normalise(
            x, i * features, d * LANES, chunks, net.channels, net.readout_norm_weight,
            net.readout_norm_bias, work.gradient, i * features,
        )  # fmt: skip
        for chunk in range(chunks):
            value = load(work.gradient, i * features + chunk * d * LANES)
            store(scratch, at + chunk * row + (i - first) * LANES, value)
    out = forward(head, scratch, at, scratch, work.slopes, work.rows_scalars, n, BLOCK)
    for a in range(n):
        value = load(scratch, out + a * LANES)
        work.outputs[first + a] = lane(value, 0)
        store(scratch, out + a * LANES, like(value, 1.0))
    backward(head, scratch, at, scratch, work.slopes, work.rows_scalars, n, BLOCK, net.zeros)
    for i in range(first, last):
        mean, scale = normalise(
            x, i * features, d * LANES, chunks, net.channels, net.readout_norm_weight,
            net.readout_norm_bias, work.gradient, i * features,
        )  # fmt: skip
        for chunk in range(chunks):
            value = load(scratch, at + chunk * row + (i - first) * LANES)
            store(work.gradient, i * features + chunk * d * LANES, value)
        normalise_back(
            x, i * features, d * LANES, chunks, net.channels, net.readout_norm_weight, mean,
            scale, work.gradient, i * features,
        )  # fmt: skip
