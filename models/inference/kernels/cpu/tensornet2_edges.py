r"""Edge networks that read charges, and their sums over neighbours, forward and backward.

With phi the envelope, T a spline of the distance, and g the activation,

.. math::
    z_{ij} = T(r_{ij}) + a_i + b_j, \qquad
    v_{ij} = g(W_3\, g(W_2\, g(z_{ij}))), \qquad
    M_i = \phi_0 v_{ii} \odot Y_i + \sum_j \phi(r_{ij})\, v_{ij} \odot Y_j

where a and b are products of the charges of receiver and sender. A group of atoms has one row per
edge, so that the products are those of `dense`; a few rows at a time, their numbers stay in the
fastest cache. Forward, a group has the edges that its atoms receive. Backward, it has those that
they send: the gradients of Y and b are sums over these. Only the gradient of a is left, for
`receive_back`.
"""

from __future__ import annotations

import math
from typing import Any

from .algebra import dots, features, load_irreps, plus_scaled, scaled, weighted
from .compiled import internal
from .components import load_all, multiplied, store_all, store_apart, times
from .dense import multiply
from .neighbors import FRAME, WEIGHTS, Neighbors, Slots
from .perceptron import Perceptron, activate
from .simd import LANES, fma, load, splat, store, total
from .tensornet2_network import TILE, EdgesWork, PackedCharges
from .tensornet_edges import factor_slopes, factors, table_row
from .tensornet_network import PackedTensorNet, TensorNetWork


@internal
def place_envelope(
    first: int, last: int, net: PackedTensorNet, neighbors: Neighbors, slots: Slots,
    more: EdgesWork,
) -> None:  # fmt: skip
    """Fill in the envelope of the slots of receivers ``first`` to ``last``."""
    for i in range(first, last):
        for slot in range(neighbors.offsets[i], neighbors.offsets[i] + slots.counts[i]):
            r = 1 / slots.frame[slot * FRAME + 3]
            slope = math.pi / net.cutoff
            phase = r * slope
            if net.lower > 0:
                slope = 2 * math.pi / (net.cutoff - net.lower)
                phase = (r - net.lower) * slope + math.pi
            more.envelope[slot, 0] = 0.5 * (math.cos(phase) + 1)
            more.envelope[slot, 1] = -0.5 * slope * math.sin(phase)


@internal
def list_rows(
    first: int, last: int, layer: int, thread: int, back: int, neighbors: Neighbors,
    slots: Slots, more: EdgesWork,
) -> int:  # fmt: skip
    """List the rows of a group in ``listed`` and return their number.

    Each atom has a row for its message to itself, then one per edge that it receives, or, with
    ``back`` = 1, sends.
    """
    index, atoms, n = more.listed[thread], neighbors.offsets.size - 1, 0
    for i in range(first, last):
        begin = neighbors.offsets[i]
        for slot in range(begin - 1, begin + slots.counts[i]):
            other, place = i, begin + i
            index[n, 2] = -1
            if slot >= begin:
                index[n, 2], other, place = slot, slots.sender[slot], slot + i + 1
                if back:
                    place = slots.slot[neighbors.reverse[slots.edge[slot]]] + other + 1
            if more.keeps:
                place += layer * (neighbors.offsets[atoms] + atoms)
            else:
                place = thread * more.listed.shape[1] + n
            index[n, back], index[n, 1 - back], index[n, 3] = i, other, place * more.width
            n += 1
    return n


@internal
def activate_row(
    activation: int, x: Any, start: int, slopes: Any, s_start: int, y: Any, y_start: int,
    chunks: int,
) -> None:  # fmt: skip
    """Values y of an activation, and its derivatives."""
    for at in range(0, chunks * LANES, LANES):
        value, slope = activate(activation, load(x, start + at))
        store(y, y_start + at, value)
        store(slopes, s_start + at, slope)


@internal
def edge_network(
    n: int, layer: int, thread: int, edges: Perceptron, net: PackedTensorNet,
    charges: PackedCharges, slots: Slots, work: TensorNetWork, more: EdgesWork,
) -> None:  # fmt: skip
    """Run the edge network on a group's rows: v in ``values``, what the way back needs in tape."""
    values, tape, index = more.values[thread], more.tape, more.listed[thread]
    row_size, atoms = table_row(charges.one), work.outputs.size
    tables = net.chunks * net.rows * (table_row(net.shape) + layer * row_size)
    a, b, c = edges.chunks
    row = c * LANES
    for begin in range(0, n, TILE):
        count = min(TILE, n - begin)
        for k in range(count):
            receiver, sender, slot = index[begin + k, 0], index[begin + k, 1], index[begin + k, 2]
            for chunk in range(net.chunks):
                place = (layer * net.chunks + chunk) * atoms
                z = load(more.receiver, (place + receiver) * LANES)
                z = z + load(more.sender, (place + sender) * LANES)
                if slot < 0:
                    z = z + load(net.at_zero, (layer * net.chunks + chunk) * LANES)
                else:
                    where = tables + (chunk * net.rows + slots.row[slot]) * row_size
                    w = slot * WEIGHTS
                    z = z + factors(charges.one, net.tables, where, slots.weights, w)[0]
                store(values, k * row + chunk * LANES, z)
            at = k * row
            activate_row(charges.activation, values, at, tape, index[begin + k, 3], values, at, a)
        multiply(
            values, 0, LANES, more.rows, count, edges.weights, 0, edges.biases, 0, a, b, values,
            a * LANES, LANES,
        )  # fmt: skip
        for k in range(count):
            at, t = k * row + a * LANES, index[begin + k, 3] + a * LANES
            activate_row(edges.activations[0], values, at, tape, t, values, at, b)
        out = more.out + begin * row
        multiply(
            values, a * LANES, LANES, more.rows, count, edges.weights, a * b * LANES * LANES,
            edges.biases, b * LANES, b, c, values, out, LANES,
        )  # fmt: skip
        for k in range(count):
            at, t = out + k * row, index[begin + k, 3] + (a + b) * LANES
            for m in range(0, row, LANES):
                store(tape, t + m, load(values, at + m))
            # These derivatives go where nothing is needed any more: to compute them again takes
            # less time than memory.
            activate_row(edges.activations[1], values, at, values, 0, values, at, c)


@internal
def receive(
    first: int, last: int, layer: int, thread: int, edges: Perceptron, net: PackedTensorNet,
    charges: PackedCharges, neighbors: Neighbors, slots: Slots, work: TensorNetWork,
    more: EdgesWork,
) -> None:  # fmt: skip
    """Compute a layer's messages to the atoms of a group."""
    shape, size, part = net.shape, features(net.shape), net.chunks * LANES
    values, index, row = more.values[thread], more.listed[thread], edges.chunks[2] * LANES
    n = list_rows(first, last, layer, thread, 0, neighbors, slots, more)
    edge_network(n, layer, thread, edges, net, charges, slots, work, more)
    y, message = work.y[layer], work.message[layer]
    own, start = splat(values.dtype.type(charges.envelope_at_zero)), 0
    for i in range(first, last):
        end = start + 1 + slots.counts[i]
        for chunk in range(net.chunks):
            begin, at = chunk * work.outputs.size * size, more.out + chunk * LANES
            v = load_irreps(shape, values, at + start * row, part)
            sums = scaled(times(own, v), load_all(shape, y, begin + i * size))
            for k in range(start + 1, end):
                v = load_irreps(shape, values, at + k * row, part)
                f = times(splat(more.envelope[index[k, 2], 0]), v)
                sums = plus_scaled(sums, f, load_all(shape, y, begin + index[k, 1] * size))
            store_all(message, begin + i * size, sums)
        start = end


@internal
def send_back(
    first: int, last: int, layer: int, portion: int, thread: int, edges: Perceptron,
    net: PackedTensorNet, charges: PackedCharges, neighbors: Neighbors, slots: Slots,
    work: TensorNetWork, more: EdgesWork,
) -> None:  # fmt: skip
    """Backward pass of the edge networks of a group of senders.

    Adds to the gradient of Y, computes that of z and of ``sender``, and the slopes dE/dr.
    """
    values, tape, index = more.values[thread], more.tape, more.listed[thread]
    a, b, c = edges.chunks
    row, start = c * LANES, 0
    n = list_rows(first, last, layer, thread, 1, neighbors, slots, more)
    if not more.keeps:
        edge_network(n, layer, thread, edges, net, charges, slots, work, more)
    for j in range(first, last):
        end = start + 1 + slots.counts[j]
        for k in range(start, end):
            at, s = more.out + k * row, more.slopes + (k - start) * row
            t = index[k, 3] + (a + b) * LANES
            activate_row(edges.activations[1], tape, t, values, s, values, at, c)
        messages_back(j, start, end, layer, net, charges, index, work, more, values, row)
        start = end
    for begin in range(0, n, TILE):
        count = min(TILE, n - begin)
        multiply(
            values, more.out + begin * row, LANES, more.rows, count, edges.transposed,
            a * b * LANES * LANES, net.zeros, 0, c, b, values, a * LANES, LANES,
        )  # fmt: skip
        for k in range(count):
            at, t = k * row + a * LANES, index[begin + k, 3] + a * LANES
            for m in range(0, b * LANES, LANES):
                store(values, at + m, load(values, at + m) * load(tape, t + m))
        multiply(
            values, a * LANES, LANES, more.rows, count, edges.transposed, 0, net.zeros, 0, b, a,
            values, 0, LANES,
        )  # fmt: skip
        for k in range(count):
            hidden_back(
                begin + k, k * row, layer, more.portions[portion], net, charges, neighbors, slots,
                index, work, more, values,
            )  # fmt: skip


@internal
def messages_back(
    j: int, start: int, end: int, layer: int, net: PackedTensorNet, charges: PackedCharges,
    index: Any, work: TensorNetWork, more: EdgesWork, values: Any, row: int,
) -> None:  # fmt: skip
    """From the gradient of the messages to that before the last activation, which replaces v.

    The rows are those of sender j.
    """
    shape, size, part = net.shape, features(net.shape), net.chunks * LANES
    y, g_message, g_y = work.y[layer], work.message[layer], work.delta[layer]
    own = splat(values.dtype.type(charges.envelope_at_zero))
    for chunk in range(net.chunks):
        begin = chunk * work.outputs.size * size
        here, sums = load_all(shape, y, begin + j * size), load_all(shape, g_y, begin + j * size)
        for k in range(start, end):
            at, s = chunk * LANES + k * row, chunk * LANES + (k - start) * row
            v, slot = load_irreps(shape, values, more.out + at, part), index[k, 2]
            theirs = load_all(shape, g_message, begin + index[k, 0] * size)
            g, envelope = dots(theirs, here), own
            if slot >= 0:
                envelope = splat(more.envelope[slot, 0])
                rise = splat(more.envelope[slot, 1]) * weighted(v, g)
                along = more.along + k * LANES
                if chunk > 0:
                    rise = rise + load(values, along)
                store(values, along, rise)
            sums = plus_scaled(sums, times(envelope, v), theirs)
            g = times(envelope, g)
            g = multiplied(g, load_irreps(shape, values, more.slopes + s, part))
            store_apart(values, more.out + at, part, g)
        store_all(g_y, begin + j * size, sums)


@internal
def hidden_back(
    k: int, at: int, layer: int, start: int, net: PackedTensorNet, charges: PackedCharges,
    neighbors: Neighbors, slots: Slots, index: Any, work: TensorNetWork, more: EdgesWork,
    values: Any,
) -> None:  # fmt: skip
    """From a row's gradient of g(z), in ``values``, to that of z, its sums and its part of dE/dr.

    ``start`` is the first sender of the portion.
    """
    j, slot, t = index[k, 1], index[k, 2], index[k, 3]
    row_size, atoms = table_row(charges.one), work.outputs.size
    tables = net.chunks * net.rows * (table_row(net.shape) + layer * row_size)
    place = (slot - neighbors.offsets[start]) * net.chunks * LANES
    along = load(values, more.along + k * LANES)
    for c in range(net.chunks):
        g = load(values, at + c * LANES) * load(more.tape, t + c * LANES)
        where = (c * atoms + j) * LANES
        if slot < 0:  # the first row of the atom
            store(more.g_own, where, g)
            store(more.g_sender, where, g)
        else:
            store(more.hidden, place + c * LANES, g)
            store(more.g_sender, where, load(more.g_sender, where) + g)
            table = tables + (c * net.rows + slots.row[slot]) * row_size
            w = slot * WEIGHTS
            slope = factor_slopes(charges.one, net.tables, table, slots.weights, w)[0]
            along = fma(g, slope, along)
    if slot >= 0:
        before = 0.0 if layer == net.layers - 1 else slots.slope[slot]
        slots.slope[slot] = before + total(along)


@internal
def receive_back(
    first: int, last: int, portion: int, net: PackedTensorNet, neighbors: Neighbors,
    slots: Slots, more: EdgesWork,
) -> None:  # fmt: skip
    """Add the part of a portion of senders to the gradient of ``receiver``.

    The sums are in the order of senders, whatever the portions, so that results do not depend on
    them.
    """
    atoms, zero = neighbors.offsets.size - 1, splat(more.hidden.dtype.type(0))
    start, end = more.portions[portion], more.portions[portion + 1]
    before = neighbors.offsets[start]
    for i in range(first, last):
        slot, stop = neighbors.offsets[i], neighbors.offsets[i] + slots.counts[i]
        while slot < stop and slots.sender[slot] < start:
            slot += 1
        begin = slot
        while slot < stop and slots.sender[slot] < end:
            slot += 1
        for chunk in range(net.chunks):
            where = (chunk * atoms + i) * LANES
            sums = zero if portion == 0 else load(more.g_receiver, where)
            for k in range(begin, slot):
                place = slots.slot[neighbors.reverse[slots.edge[k]]] - before
                sums = sums + load(more.hidden, (place * net.chunks + chunk) * LANES)
            if end == atoms:
                sums = sums + load(more.g_own, where)
            store(more.g_receiver, where, sums)
