r"""The operations of TensorNet on each atom, forward and backward, a block of atoms at a time.

The equations are those of `models/networks/tensornet.py`; a bar denotes the gradient of the
energy. For the maps that occur more than once:

.. math::
    u = x / (|x|^2 + 1) &\;\Rightarrow\;
    \bar x = v \bar u - 2 v^2 \langle \bar u, x \rangle \, x, \quad v = 1 / (|x|^2 + 1) \\
    C = Y M + M Y &\;\Rightarrow\;
    \bar Y = \bar C M^T + M^T \bar C, \quad \bar M = \bar C Y^T + Y^T \bar C

Features of all atoms have the layout [chunk of 16 channels][atom][component][channel]; so do those
of a block, in the scratch memory of a thread, with the atoms of the block.
"""

from __future__ import annotations

from typing import Any

from .algebra import (
    anticommutator,
    dot,
    dots,
    features,
    irreps_of,
    load_irreps,
    product,
    scaled,
    transposed,
)
from .compiled import internal
from .components import load_all, plus, plus_times, store_all, store_apart, times
from .dense import multiply
from .perceptron import Perceptron, backward, forward, normalise, normalise_back
from .simd import LANES, lane, like, load, splat, store
from .tensornet_network import PackedTensorNet, TensorNetWork


@internal
def mix(
    net: PackedTensorNet, matrices: Any, which: int, x: Any, x_start: int, x_stride: int, y: Any,
    y_start: int, y_stride: int, n: int, work: TensorNetWork,
) -> None:  # fmt: skip
    """Multiply the channels of each irrep by one matrix."""
    chunks, irreps = net.chunks, net.sizes.size
    size = (chunks * LANES) ** 2
    for k in range(irreps):
        multiply(
            x, x_start, x_stride, work.irrep_rows[k], net.sizes[k] * n, matrices,
            (irreps * which + k) * size, net.zeros, 0, chunks, chunks, y, y_start, y_stride,
        )  # fmt: skip


@internal
def compressed(x: Any) -> Any:
    """X / (|x|^2 + 1)."""
    one = like(x[0], 1.0)
    v = one / (dot(x, x) + one)
    return times(v, x)


@internal
def compressed_back(x: Any, g: Any) -> Any:
    """Gradient of x from that of x / (|x|^2 + 1)."""
    one = like(x[0], 1.0)
    v = one / (dot(x, x) + one)
    w = like(v, -2.0) * v * v * dot(g, x)
    return plus_times(times(v, g), w, x)


@internal
def embed_atoms(
    first: int, last: int, net: PackedTensorNet, gate: Perceptron, work: TensorNetWork,
    scratch: Any,
) -> None:  # fmt: skip
    """From the embedding's sums to the inputs of the first layer."""
    n, atoms, block = last - first, work.outputs.size, work.block
    size, row = features(net.shape), block * LANES
    at = work.scalars
    for chunk in range(net.chunks):
        for a in range(n):
            x = load_all(net.shape, work.embedded, (chunk * atoms + first + a) * size)
            store(scratch, at + chunk * row + a * LANES, dot(x, x))
    for a in range(n):
        work.statistics[first + a, 0], work.statistics[first + a, 1] = normalise(
            scratch, at + a * LANES, row, net.chunks, net.channels, net.norm_weight,
            net.norm_bias, scratch, at + a * LANES,
        )  # fmt: skip
    at = forward(gate, scratch, at, work.gate_slopes[first // block], 0, work.rows, n, block)
    mix(
        net, net.mixes, 0, work.embedded, first * size, atoms * size, work.mixed,
        first * size, atoms * size, n, work,
    )  # fmt: skip
    for chunk in range(net.chunks):
        for a in range(n):
            i = first + a
            s = load_irreps(net.shape, scratch, at + chunk * row + a * LANES, net.chunks * row)
            store_apart(work.scale, (chunk * atoms + i) * LANES, net.chunks * atoms * LANES, s)
            here = (chunk * atoms + i) * size
            store_all(work.x[0], here, scaled(s, load_all(net.shape, work.mixed, here)))


@internal
def enter_layer(
    first: int, last: int, layer: int, net: PackedTensorNet, work: TensorNetWork, scratch: Any
) -> None:
    """Compute Y of the layer, the features that atoms send."""
    n, atoms, block = last - first, work.outputs.size, work.block
    size = features(net.shape)
    for chunk in range(net.chunks):
        for a in range(n):
            x = load_all(net.shape, work.x[layer], (chunk * atoms + first + a) * size)
            store_all(scratch, (chunk * block + a) * size, compressed(x))
    mix(
        net, net.mixes, 1 + 2 * layer, scratch, 0, block * size, work.y[layer],
        first * size, atoms * size, n, work,
    )  # fmt: skip


@internal
def interact(
    first: int, last: int, layer: int, net: PackedTensorNet, work: TensorNetWork, scratch: Any
) -> None:
    """From Y and the messages to the outputs of the layer."""
    n, atoms, block = last - first, work.outputs.size, work.block
    size = features(net.shape)
    for chunk in range(net.chunks):
        for a in range(n):
            here = (chunk * atoms + first + a) * size
            c = interaction(
                load_all(net.shape, work.y[layer], here),
                load_all(net.shape, work.message[layer], here),
                splat(work.charge[first + a]),
                net.parity_conserving,
            )
            store_all(scratch, (chunk * block + a) * size, compressed(c))
    mix(
        net, net.mixes, 2 + 2 * layer, scratch, 0, block * size, work.delta[layer],
        first * size, atoms * size, n, work,
    )  # fmt: skip
    for chunk in range(net.chunks):
        for a in range(n):
            here = (chunk * atoms + first + a) * size
            delta = load_all(net.shape, work.delta[layer], here)
            q = splat(work.charge[first + a])
            x = plus(compressed(load_all(net.shape, work.x[layer], here)), delta)
            x = plus_times(x, q, product(delta, delta))
            store_all(work.x[layer + 1], here, x)


@internal
def interaction(y: Any, m: Any, q: Any, parity_conserving: bool) -> Any:
    """C of a layer."""
    if parity_conserving:
        return times(q, anticommutator(y, m))
    return times(like(q, 2.0), product(y, m))


@internal
def interact_back(
    first: int, last: int, layer: int, net: PackedTensorNet, work: TensorNetWork, scratch: Any
) -> None:
    """Backward pass of `interact`: gradients of the message and, its direct part only, of Y."""
    n, atoms, block = last - first, work.outputs.size, work.block
    size = features(net.shape)
    second = net.chunks * block * size
    for chunk in range(net.chunks):
        for a in range(n):
            here = (chunk * atoms + first + a) * size
            g = load_all(net.shape, work.gradient, here)
            delta = load_all(net.shape, work.delta[layer], here)
            q = splat(work.charge[first + a])
            g = plus_times(g, q, anticommutator(g, transposed(delta)))
            store_all(scratch, (chunk * block + a) * size, g)
    mix(
        net, net.mixes_transposed, 2 + 2 * layer, scratch, 0, block * size, scratch, second,
        block * size, n, work,
    )  # fmt: skip
    for chunk in range(net.chunks):
        for a in range(n):
            here = (chunk * atoms + first + a) * size
            y = load_all(net.shape, work.y[layer], here)
            m = load_all(net.shape, work.message[layer], here)
            q = splat(work.charge[first + a])
            c = interaction(y, m, q, net.parity_conserving)
            g = load_all(net.shape, scratch, second + (chunk * block + a) * size)
            g = compressed_back(c, g)
            if net.parity_conserving:
                g = times(q, g)
                g_message = anticommutator(g, transposed(y))
                g_y = anticommutator(g, transposed(m))
            else:
                g = times(like(q, 2.0), g)
                g_message = product(transposed(y), g)
                g_y = product(g, transposed(m))
            store_all(work.message[layer], here, g_message)
            store_all(work.delta[layer], here, g_y)


@internal
def enter_layer_back(
    first: int, last: int, layer: int, net: PackedTensorNet, work: TensorNetWork, scratch: Any
) -> None:
    """Backward pass of `enter_layer`: gradient of the layer's inputs.

    It comes from the gradients of Y and of the layer's outputs.
    """
    n, atoms, block = last - first, work.outputs.size, work.block
    size = features(net.shape)
    mix(
        net, net.mixes_transposed, 1 + 2 * layer, work.delta[layer], first * size,
        atoms * size, scratch, 0, block * size, n, work,
    )  # fmt: skip
    for chunk in range(net.chunks):
        for a in range(n):
            here = (chunk * atoms + first + a) * size
            g = load_all(net.shape, scratch, (chunk * block + a) * size)
            g = plus(g, load_all(net.shape, work.gradient, here))
            x = load_all(net.shape, work.x[layer], here)
            store_all(work.gradient, here, compressed_back(x, g))


@internal
def embed_atoms_back(
    first: int, last: int, net: PackedTensorNet, gate: Perceptron, work: TensorNetWork,
    scratch: Any,
) -> None:  # fmt: skip
    """Backward pass of `embed_atoms`: gradient of the embedding's sums."""
    n, atoms, block = last - first, work.outputs.size, work.block
    size, row = features(net.shape), block * LANES
    second, norms, at = net.chunks * block * size, work.half, work.scalars
    out = at + gate.chunks[:-1].sum() * row
    for chunk in range(net.chunks):
        for a in range(n):
            i = first + a
            here = (chunk * atoms + i) * size
            x = load_all(net.shape, work.embedded, here)
            store(scratch, norms + chunk * row + a * LANES, dot(x, x))
            g = load_all(net.shape, work.gradient, here)
            g_s = dots(g, load_all(net.shape, work.mixed, here))
            store_apart(scratch, out + chunk * row + a * LANES, net.chunks * row, g_s)
            scale, stride = (chunk * atoms + i) * LANES, net.chunks * atoms * LANES
            s = load_irreps(net.shape, work.scale, scale, stride)
            store_all(scratch, (chunk * block + a) * size, scaled(s, g))
    mix(
        net, net.mixes_transposed, 0, scratch, 0, block * size, scratch, second,
        block * size, n, work,
    )  # fmt: skip
    slopes = work.gate_slopes[first // block]
    backward(gate, scratch, at, slopes, 0, work.rows, n, block, net.zeros)
    for a in range(n):
        normalise_back(
            scratch, norms + a * LANES, row, net.chunks, net.channels, net.norm_weight,
            work.statistics[first + a, 0], work.statistics[first + a, 1], scratch, at + a * LANES,
        )  # fmt: skip
    for chunk in range(net.chunks):
        for a in range(n):
            here = (chunk * atoms + first + a) * size
            g = load_all(net.shape, scratch, second + (chunk * block + a) * size)
            w = load(scratch, at + chunk * row + a * LANES)
            w = w + w
            x = load_all(net.shape, work.embedded, here)
            store_all(work.gradient, here, plus_times(g, w, x))


@internal
def read_out(
    first: int, last: int, net: PackedTensorNet, values: Perceptron, gates: Perceptron,
    work: TensorNetWork, scratch: Any, slopes: Any,
) -> None:  # fmt: skip
    """Compute the outputs of the network, and the gradient of the last layer's outputs."""
    n, atoms, block = last - first, work.outputs.size, work.block
    size, row = features(net.shape), block * LANES
    chunks = irreps_of(net.shape) * net.chunks
    slopes_half = slopes.size // 2
    # The invariants are in the part of the scratch memory for features, which is free here.
    raw, at, half = 0, work.scalars, work.half
    gated = gates.activations.size > 0
    for chunk in range(net.chunks):
        for a in range(n):
            x = load_all(net.shape, work.x[net.layers], (chunk * atoms + first + a) * size)
            store_apart(scratch, raw + chunk * row + a * LANES, net.chunks * row, dots(x, x))
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
            scratch, raw + a * LANES, row, chunks, net.readout_norm_size, net.readout_norm_weight,
            mean, deviation, scratch, at + a * LANES,
        )  # fmt: skip
    for chunk in range(net.chunks):
        for a in range(n):
            here = (chunk * atoms + first + a) * size
            w = load_irreps(net.shape, scratch, at + chunk * row + a * LANES, net.chunks * row)
            x = load_all(net.shape, work.x[net.layers], here)
            store_all(work.gradient, here, scaled(plus(w, w), x))


@internal
def normalise_row(x: Any, at: int, row: int, net: PackedTensorNet, y: Any, y_at: int) -> Any:
    """The readout's layer norm of one atom's invariants."""
    return normalise(
        x, at, row, irreps_of(net.shape) * net.chunks, net.readout_norm_size,
        net.readout_norm_weight, net.readout_norm_bias, y, y_at,
    )  # fmt: skip
