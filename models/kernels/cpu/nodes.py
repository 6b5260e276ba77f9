r"""What TensorNet does with each atom, forward and backward, a block of atoms at a time.

The equations are those of `models/tensornet.py`; a bar denotes the gradient of the energy. For
the maps that occur more than once,

.. math::
    u = x / (|x|^2 + 1) &\;\Rightarrow\;
    \bar x = v \bar u - 2 v^2 \langle \bar u, x \rangle \, x, \quad v = 1 / (|x|^2 + 1) \\
    C = Y M + M Y &\;\Rightarrow\;
    \bar Y = \bar C M^T + M^T \bar C, \quad \bar M = \bar C Y^T + Y^T \bar C

Features of all atoms have the layout [chunk of 16 channels][atom][component][channel]; those of a
block, in the scratch memory of a thread, the same with the atoms of the block.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .algebra import (
    FEATURES,
    anticommutator,
    dot,
    dots,
    load_tensor,
    plus,
    plus_scaled,
    product,
    scaled,
    store_tensor,
    transposed,
)
from .compiled import inlined
from .dense import multiply
from .perceptron import Perceptron, backward, forward, normalise, normalise_back
from .simd import LANES, lane, like, load, splat, store


class Network(NamedTuple):
    """The weights of a TensorNet, packed; channels padded with zeros to chunks of sixteen."""

    channels: int
    """Without padding."""
    chunks: int
    parity_conserving: bool
    layers: int
    rows: int
    """Of each radial table."""
    receiver: NDArray[Any]
    sender: NDArray[Any]
    """Flat (elements, channels)."""
    tables: NDArray[Any]
    """Flat (1 + layers, chunks, rows, 6, 16): the embedding's, then each layer's."""
    embedding_at_zero: NDArray[Any]
    """(channels,)."""
    at_zero: NDArray[Any]
    """Flat (layers, chunks, 3, 16)."""
    norm_weight: NDArray[Any]
    norm_bias: NDArray[Any]
    mixes: NDArray[Any]
    """Packed matrices of I, A and S: the embedding's, then each layer's mix_in and mix_out."""
    mixes_transposed: NDArray[Any]
    readout_norm_weight: NDArray[Any]
    readout_norm_bias: NDArray[Any]
    zeros: NDArray[Any]
    """Where a product has no bias."""


class Work(NamedTuple):
    """Memory of a step, for all atoms and for each thread."""

    block: int
    """Atoms that are done together."""
    charge: NDArray[Any]
    """(N,), 1 + q / 10."""
    embedded: NDArray[Any]
    """X of the embedding's sum."""
    mixed: NDArray[Any]
    """The same, mixed."""
    scale: NDArray[Any]
    """Flat (3 chunks, N, 16), of the mixed one."""
    statistics: NDArray[np.float64]
    """(N, 2), mean and 1 / deviation of the gate's layer norm."""
    gate_slopes: NDArray[Any]
    """Of each block of atoms."""
    x: NDArray[Any]
    """(layers + 1, features): what enters each layer, and what leaves the last."""
    y: NDArray[Any]
    """(layers, features)."""
    message: NDArray[Any]
    """(layers, features); on the way back its gradient."""
    delta: NDArray[Any]
    """(layers, features); on the way back the gradient of Y."""
    gradient: NDArray[Any]
    """Of X, features."""
    outputs: NDArray[np.float64]
    """(N,), of the network."""
    rows: NDArray[np.int64]
    """(block,), offsets of the rows of scalars."""
    rows_i: NDArray[np.int64]
    rows_a: NDArray[np.int64]
    rows_s: NDArray[np.int64]
    """(block,), (3 block,), (5 block,), offsets of the rows of features."""
    scratch: NDArray[Any]
    """(threads, ...): two features of a block, then scalars."""
    scalars: int
    """Where the scalars begin in the scratch memory."""
    half: int
    """Where their second half begins."""
    slopes: NDArray[Any]
    """(threads, ...), of the readout's two perceptrons."""


@inlined
def mix(
    net: Network, matrices: Any, which: int, x: Any, x_start: int, x_stride: int, y: Any,
    y_start: int, y_stride: int, n: int, work: Work,
) -> None:  # fmt: skip
    """One matrix on the channels for each irrep."""
    chunks = net.chunks
    size = (chunks * LANES) ** 2
    first = 3 * which * size
    multiply(
        x, x_start, x_stride, work.rows_i, n, matrices, first, net.zeros, 0, chunks, chunks,
        y, y_start, y_stride,
    )  # fmt: skip
    multiply(
        x, x_start, x_stride, work.rows_a, 3 * n, matrices, first + size, net.zeros, 0, chunks,
        chunks, y, y_start, y_stride,
    )  # fmt: skip
    multiply(
        x, x_start, x_stride, work.rows_s, 5 * n, matrices, first + 2 * size, net.zeros, 0,
        chunks, chunks, y, y_start, y_stride,
    )  # fmt: skip


@inlined
def compressed(x: Any) -> Any:
    """X / (|x|^2 + 1)."""
    one = like(x[0], 1.0)
    v = one / (dot(x, x) + one)
    return scaled(v, v, v, x)


@inlined
def compressed_back(x: Any, g: Any) -> Any:
    """Gradient of x from that of x / (|x|^2 + 1)."""
    one = like(x[0], 1.0)
    v = one / (dot(x, x) + one)
    w = like(v, -2.0) * v * v * dot(g, x)
    return plus_scaled(scaled(v, v, v, g), w, w, w, x)


@inlined
def embed_atoms(
    first: int, last: int, thread: int, net: Network, gate: Perceptron, work: Work
) -> None:
    """From the embedding's sums to what enters the first layer."""
    n, atoms, block = last - first, work.outputs.size, work.block
    scratch, row = work.scratch[thread], block * LANES
    at = work.scalars
    for chunk in range(net.chunks):
        for a in range(n):
            x = load_tensor(work.embedded, (chunk * atoms + first + a) * FEATURES)
            store(scratch, at + chunk * row + a * LANES, dot(x, x))
    for a in range(n):
        mean, deviation = normalise(
            scratch, at + a * LANES, row, net.chunks, net.channels, net.norm_weight,
            net.norm_bias, scratch, at + a * LANES,
        )  # fmt: skip
        work.statistics[first + a, 0] = mean
        work.statistics[first + a, 1] = deviation
    slopes = first // block * (work.gate_slopes.size // ((atoms + block - 1) // block))
    at = forward(gate, scratch, at, work.gate_slopes, slopes, work.rows, n, block)
    mix(
        net, net.mixes, 0, work.embedded, first * FEATURES, atoms * FEATURES, work.mixed,
        first * FEATURES, atoms * FEATURES, n, work,
    )  # fmt: skip
    for chunk in range(net.chunks):
        for a in range(n):
            i = first + a
            s_i = load(scratch, at + chunk * row + a * LANES)
            s_a = load(scratch, at + (net.chunks + chunk) * row + a * LANES)
            s_s = load(scratch, at + (2 * net.chunks + chunk) * row + a * LANES)
            store(work.scale, (chunk * atoms + i) * LANES, s_i)
            store(work.scale, ((net.chunks + chunk) * atoms + i) * LANES, s_a)
            store(work.scale, ((2 * net.chunks + chunk) * atoms + i) * LANES, s_s)
            here = (chunk * atoms + i) * FEATURES
            store_tensor(work.x[0], here, scaled(s_i, s_a, s_s, load_tensor(work.mixed, here)))


@inlined
def enter_layer(first: int, last: int, thread: int, layer: int, net: Network, work: Work) -> None:
    """Y of the layer, which is what is sent."""
    n, atoms, block = last - first, work.outputs.size, work.block
    scratch = work.scratch[thread]
    for chunk in range(net.chunks):
        for a in range(n):
            x = load_tensor(work.x[layer], (chunk * atoms + first + a) * FEATURES)
            store_tensor(scratch, (chunk * block + a) * FEATURES, compressed(x))
    mix(
        net, net.mixes, 1 + 2 * layer, scratch, 0, block * FEATURES, work.y[layer],
        first * FEATURES, atoms * FEATURES, n, work,
    )  # fmt: skip


@inlined
def interact(first: int, last: int, thread: int, layer: int, net: Network, work: Work) -> None:
    """From Y and its message to what leaves the layer."""
    n, atoms, block = last - first, work.outputs.size, work.block
    scratch = work.scratch[thread]
    for chunk in range(net.chunks):
        for a in range(n):
            here = (chunk * atoms + first + a) * FEATURES
            c = interaction(
                load_tensor(work.y[layer], here),
                load_tensor(work.message[layer], here),
                splat(work.charge[first + a]),
                net.parity_conserving,
            )
            store_tensor(scratch, (chunk * block + a) * FEATURES, compressed(c))
    mix(
        net, net.mixes, 2 + 2 * layer, scratch, 0, block * FEATURES, work.delta[layer],
        first * FEATURES, atoms * FEATURES, n, work,
    )  # fmt: skip
    for chunk in range(net.chunks):
        for a in range(n):
            here = (chunk * atoms + first + a) * FEATURES
            delta = load_tensor(work.delta[layer], here)
            q = splat(work.charge[first + a])
            x = plus(compressed(load_tensor(work.x[layer], here)), delta)
            x = plus_scaled(x, q, q, q, product(delta, delta))
            store_tensor(work.x[layer + 1], here, x)


@inlined
def interaction(y: Any, m: Any, q: Any, parity_conserving: bool) -> Any:
    """C of a layer."""
    if parity_conserving:
        return scaled(q, q, q, anticommutator(y, m))
    two = like(q, 2.0)
    return scaled(two, two, two, product(y, m))


@inlined
def interact_back(
    first: int, last: int, thread: int, layer: int, net: Network, work: Work
) -> None:
    """From the gradient of what leaves the layer to those of the message and, so far, of Y."""
    n, atoms, block = last - first, work.outputs.size, work.block
    scratch, second = work.scratch[thread], net.chunks * block * FEATURES
    for chunk in range(net.chunks):
        for a in range(n):
            here = (chunk * atoms + first + a) * FEATURES
            g = load_tensor(work.gradient, here)
            delta = load_tensor(work.delta[layer], here)
            q = splat(work.charge[first + a])
            g = plus_scaled(g, q, q, q, anticommutator(g, transposed(delta)))
            store_tensor(scratch, (chunk * block + a) * FEATURES, g)
    mix(
        net, net.mixes_transposed, 2 + 2 * layer, scratch, 0, block * FEATURES, scratch, second,
        block * FEATURES, n, work,
    )  # fmt: skip
    for chunk in range(net.chunks):
        for a in range(n):
            here = (chunk * atoms + first + a) * FEATURES
            y, m = load_tensor(work.y[layer], here), load_tensor(work.message[layer], here)
            q = splat(work.charge[first + a])
            c = interaction(y, m, q, net.parity_conserving)
            g = compressed_back(c, load_tensor(scratch, second + (chunk * block + a) * FEATURES))
            if net.parity_conserving:
                g = scaled(q, q, q, g)
                g_message = anticommutator(g, transposed(y))
                g_y = anticommutator(g, transposed(m))
            else:
                two = like(q, 2.0)
                g = scaled(two, two, two, g)
                g_message = product(transposed(y), g)
                g_y = product(g, transposed(m))
            store_tensor(work.message[layer], here, g_message)
            store_tensor(work.delta[layer], here, g_y)


@inlined
def enter_layer_back(
    first: int, last: int, thread: int, layer: int, net: Network, work: Work
) -> None:
    """The gradient of what entered the layer from those of Y and of what left it."""
    n, atoms, block = last - first, work.outputs.size, work.block
    scratch = work.scratch[thread]
    mix(
        net, net.mixes_transposed, 1 + 2 * layer, work.delta[layer], first * FEATURES,
        atoms * FEATURES, scratch, 0, block * FEATURES, n, work,
    )  # fmt: skip
    for chunk in range(net.chunks):
        for a in range(n):
            here = (chunk * atoms + first + a) * FEATURES
            g = load_tensor(scratch, (chunk * block + a) * FEATURES)
            g = plus(g, load_tensor(work.gradient, here))
            x = load_tensor(work.x[layer], here)
            store_tensor(work.gradient, here, compressed_back(x, g))


@inlined
def embed_atoms_back(
    first: int, last: int, thread: int, net: Network, gate: Perceptron, work: Work
) -> None:
    """The gradient of the embedding's sums."""
    n, atoms, block = last - first, work.outputs.size, work.block
    scratch, row = work.scratch[thread], block * LANES
    second, norms, at = net.chunks * block * FEATURES, work.half, work.scalars
    hidden = 0
    for layer in range(gate.activations.size):
        hidden += gate.chunks[layer]
    out = at + hidden * row
    for chunk in range(net.chunks):
        for a in range(n):
            i = first + a
            here = (chunk * atoms + i) * FEATURES
            x = load_tensor(work.embedded, here)
            store(scratch, norms + chunk * row + a * LANES, dot(x, x))
            g = load_tensor(work.gradient, here)
            g_i, g_a, g_s = dots(g, load_tensor(work.mixed, here))
            store(scratch, out + chunk * row + a * LANES, g_i)
            store(scratch, out + (net.chunks + chunk) * row + a * LANES, g_a)
            store(scratch, out + (2 * net.chunks + chunk) * row + a * LANES, g_s)
            s_i = load(work.scale, (chunk * atoms + i) * LANES)
            s_a = load(work.scale, ((net.chunks + chunk) * atoms + i) * LANES)
            s_s = load(work.scale, ((2 * net.chunks + chunk) * atoms + i) * LANES)
            store_tensor(scratch, (chunk * block + a) * FEATURES, scaled(s_i, s_a, s_s, g))
    mix(
        net, net.mixes_transposed, 0, scratch, 0, block * FEATURES, scratch, second,
        block * FEATURES, n, work,
    )  # fmt: skip
    slopes = first // block * (work.gate_slopes.size // ((atoms + block - 1) // block))
    backward(gate, scratch, at, work.gate_slopes, slopes, work.rows, n, block, net.zeros)
    for a in range(n):
        normalise_back(
            scratch, norms + a * LANES, row, net.chunks, net.channels, net.norm_weight,
            work.statistics[first + a, 0], work.statistics[first + a, 1], scratch, at + a * LANES,
        )  # fmt: skip
    for chunk in range(net.chunks):
        for a in range(n):
            here = (chunk * atoms + first + a) * FEATURES
            g = load_tensor(scratch, second + (chunk * block + a) * FEATURES)
            w = load(scratch, at + chunk * row + a * LANES)
            w = w + w
            x = load_tensor(work.embedded, here)
            store_tensor(work.gradient, here, plus_scaled(g, w, w, w, x))


@inlined
def read_out(
    first: int,
    last: int,
    thread: int,
    net: Network,
    values: Perceptron,
    gates: Perceptron,
    work: Work,
) -> None:
    """Outputs of the network, and the gradient of what left the last layer."""
    n, atoms, block = last - first, work.outputs.size, work.block
    scratch, row, chunks = work.scratch[thread], block * LANES, 3 * net.chunks
    slopes, slopes_half = work.slopes[thread], work.slopes.shape[1] // 2
    # The features' part of the scratch memory is free: it holds the invariants.
    raw, at, half = 0, work.scalars, work.half
    gated = gates.activations.size > 0
    for chunk in range(net.chunks):
        for a in range(n):
            x = load_tensor(work.x[net.layers], (chunk * atoms + first + a) * FEATURES)
            i, v, s = dots(x, x)
            store(scratch, raw + chunk * row + a * LANES, i)
            store(scratch, raw + (net.chunks + chunk) * row + a * LANES, v)
            store(scratch, raw + (2 * net.chunks + chunk) * row + a * LANES, s)
    for a in range(n):
        normalise_row(scratch, raw + a * LANES, row, net, scratch, at + a * LANES)
        if gated:
            normalise_row(scratch, raw + a * LANES, row, net, scratch, half + a * LANES)
    out = forward(values, scratch, at, slopes, 0, work.rows, n, block)
    if gated:
        gate = forward(gates, scratch, half, slopes, slopes_half, work.rows, n, block)
    for a in range(n):
        value = load(scratch, out + a * LANES)
        factor = like(value, 1.0)
        if gated:
            factor = load(scratch, gate + a * LANES)
            store(scratch, gate + a * LANES, value)
            value = value * factor
        work.outputs[first + a] = lane(value, 0)
        store(scratch, out + a * LANES, factor)
    backward(values, scratch, at, slopes, 0, work.rows, n, block, net.zeros)
    if gated:
        backward(gates, scratch, half, slopes, slopes_half, work.rows, n, block, net.zeros)
        for chunk in range(chunks):
            for a in range(n):
                k = chunk * row + a * LANES
                store(scratch, at + k, load(scratch, at + k) + load(scratch, half + k))
    for a in range(n):
        mean, deviation = normalise_row(
            scratch, raw + a * LANES, row, net, scratch, half + a * LANES
        )
        normalise_back(
            scratch, raw + a * LANES, row, chunks, 3 * net.channels, net.readout_norm_weight,
            mean, deviation, scratch, at + a * LANES,
        )  # fmt: skip
    for chunk in range(net.chunks):
        for a in range(n):
            here = (chunk * atoms + first + a) * FEATURES
            w_i = load(scratch, at + chunk * row + a * LANES)
            w_a = load(scratch, at + (net.chunks + chunk) * row + a * LANES)
            w_s = load(scratch, at + (2 * net.chunks + chunk) * row + a * LANES)
            x = load_tensor(work.x[net.layers], here)
            store_tensor(work.gradient, here, scaled(w_i + w_i, w_a + w_a, w_s + w_s, x))


@inlined
def normalise_row(x: Any, at: int, row: int, net: Network, y: Any, y_at: int) -> Any:
    """The readout's layer norm of one atom's invariants."""
    return normalise(
        x, at, row, 3 * net.chunks, 3 * net.channels, net.readout_norm_weight,
        net.readout_norm_bias, y, y_at,
    )  # fmt: skip
