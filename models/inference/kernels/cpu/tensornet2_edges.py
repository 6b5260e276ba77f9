r"""Edge networks that read charges, and their sums over neighbours, forward and backward.

With phi the envelope, T a spline of the distance, and g the activation,

.. math::
    z_{ij} = T(r_{ij}) + a_i + b_j, \qquad
    v_{ij} = g(W_3\, g(W_2\, g(z_{ij}))), \qquad
    M_i = \phi_0 v_{ii} \odot Y_i + \sum_j \phi(r_{ij})\, v_{ij} \odot Y_j

where a and b are products of the charges of receiver and sender. A group of receivers has one row
per edge (see `tensornet2_network`), so that the products are those of `dense`. The gradients of Y
and b need the edges that an atom sends, whose values differ from those of the edges that it
receives: `receive_back` keeps them, `send_back` sums them.
"""

from __future__ import annotations

import math
from typing import Any

from .algebra import dots, features, irreps_of, load_irreps, plus_scaled, scaled, weighted
from .compiled import internal
from .components import load_all, store_all, store_apart, times
from .neighbors import FRAME, WEIGHTS, Neighbors, Slots
from .perceptron import Perceptron, activate, backward, forward
from .simd import LANES, fma, load, splat, store, total
from .tensornet2_network import EdgesWork, PackedCharges
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
def count_rows(first: int, last: int, slots: Slots) -> int:
    """Number of rows of a group."""
    n = 0
    for i in range(first, last):
        n += 1 + slots.counts[i]
    return n


@internal
def tape_start(
    first: int, layer: int, thread: int, net: PackedTensorNet, neighbors: Neighbors,
    more: EdgesWork,
) -> int:  # fmt: skip
    """Position of the derivatives of a group's activations."""
    width = 6 * net.chunks * LANES
    if more.keeps:
        atoms = neighbors.offsets.size - 1
        places = neighbors.offsets[atoms] + atoms
        return (layer * places + neighbors.offsets[first] + first) * width
    return thread * more.rows.size * width


@internal
def places_before(
    layer: int, portion: int, neighbors: Neighbors, more: EdgesWork, kept: bool
) -> int:
    """What to subtract from a place, (offsets[i] + i, ...), to find it in a portion's memory.

    Of ``factors`` that are kept, the layers stand one after the other.
    """
    atoms = neighbors.offsets.size - 1
    if kept:
        return -layer * (neighbors.offsets[atoms] + atoms)
    begin = more.portions[portion]
    return neighbors.offsets[begin] + begin


@internal
def edge_network(
    first: int, last: int, layer: int, n: int, edges: Perceptron, net: PackedTensorNet,
    charges: PackedCharges, neighbors: Neighbors, slots: Slots, work: TensorNetWork,
    more: EdgesWork, values: Any, tape: int,
) -> int:  # fmt: skip
    """Run the edge network on a group's rows; returns the position of its outputs in ``values``.

    The derivatives of the activations are written to the tape, layer after layer.
    """
    row_size, atoms = table_row(charges.one), work.outputs.size
    embedding = net.chunks * net.rows * table_row(net.shape)
    for chunk in range(net.chunks):
        place = layer * net.chunks + chunk
        table = embedding + place * net.rows * row_size
        own, c = load(net.at_zero, place * LANES), place * atoms * LANES
        at = chunk * n * LANES
        for i in range(first, last):
            a = load(more.receiver, c + i * LANES)
            z = a + load(more.sender, c + i * LANES) + own
            value, slope = activate(charges.activation, z)
            store(values, at, value)
            store(more.tape, tape + at, slope)
            at += LANES
            for slot in range(neighbors.offsets[i], neighbors.offsets[i] + slots.counts[i]):
                where, w = table + slots.row[slot] * row_size, slot * WEIGHTS
                z = a + load(more.sender, c + slots.sender[slot] * LANES)
                z = z + factors(charges.one, net.tables, where, slots.weights, w)[0]
                value, slope = activate(charges.activation, z)
                store(values, at, value)
                store(more.tape, tape + at, slope)
                at += LANES
    begin = tape + net.chunks * n * LANES
    return forward(edges, values, 0, more.tape, begin, more.rows, n, n)


@internal
def receive(
    first: int, last: int, layer: int, thread: int, edges: Perceptron, net: PackedTensorNet,
    charges: PackedCharges, neighbors: Neighbors, slots: Slots, work: TensorNetWork,
    more: EdgesWork,
) -> None:  # fmt: skip
    """Compute a layer's messages to the atoms of a group."""
    shape, size, chunks = net.shape, features(net.shape), net.chunks
    values, n = more.values[thread], count_rows(first, last, slots)
    tape = tape_start(first, layer, thread, net, neighbors, more)
    out = edge_network(
        first, last, layer, n, edges, net, charges, neighbors, slots, work, more, values, tape
    )
    before = places_before(layer, 0, neighbors, more, True)
    y, message = work.y[layer], work.message[layer]
    own = splat(values.dtype.type(charges.envelope_at_zero))
    for chunk in range(chunks):
        begin, at = chunk * work.outputs.size * size, out + chunk * n * LANES
        for i in range(first, last):
            place = neighbors.offsets[i] + i - before
            v = load_irreps(shape, values, at, chunks * n * LANES)
            if more.keeps:
                keep(chunk, place, net, more, v)
            sums = scaled(times(own, v), load_all(shape, y, begin + i * size))
            at += LANES
            for slot in range(neighbors.offsets[i], neighbors.offsets[i] + slots.counts[i]):
                v = load_irreps(shape, values, at, chunks * n * LANES)
                if more.keeps:
                    keep(chunk, slot + i + 1 - before, net, more, v)
                f = times(splat(more.envelope[slot, 0]), v)
                sums = plus_scaled(sums, f, load_all(shape, y, begin + slots.sender[slot] * size))
                at += LANES
            store_all(message, begin + i * size, sums)


@internal
def keep(chunk: int, place: int, net: PackedTensorNet, more: EdgesWork, v: Any) -> None:
    """Write the outputs of the edge network of a place."""
    irreps = irreps_of(net.shape)
    store_apart(more.factors, (place * net.chunks + chunk) * irreps * LANES, LANES, v)


@internal
def kept(chunk: int, place: int, net: PackedTensorNet, more: EdgesWork) -> Any:
    """The outputs of the edge network of a place."""
    irreps = irreps_of(net.shape)
    return load_irreps(
        net.shape, more.factors, (place * net.chunks + chunk) * irreps * LANES, LANES
    )


@internal
def receive_back(
    first: int, last: int, layer: int, portion: int, thread: int, edges: Perceptron,
    net: PackedTensorNet, charges: PackedCharges, neighbors: Neighbors, slots: Slots,
    work: TensorNetWork, more: EdgesWork,
) -> None:  # fmt: skip
    """Backward pass of a group's edge networks: gradient of z, ``g_receiver``, slopes dE/dr."""
    shape, size, chunks = net.shape, features(net.shape), net.chunks
    values, n = more.values[thread], count_rows(first, last, slots)
    tape = tape_start(first, layer, thread, net, neighbors, more)
    out = edges.chunks[:-1].sum() * n * LANES
    before = places_before(layer, portion, neighbors, more, more.keeps)
    if not more.keeps:
        edge_network(
            first, last, layer, n, edges, net, charges, neighbors, slots, work, more, values, tape
        )
    y, g_message, atoms = work.y[layer], work.message[layer], work.outputs.size
    own = splat(values.dtype.type(charges.envelope_at_zero))
    zero = own - own
    for k in range(n):
        store(values, more.along + k * LANES, zero)
    for chunk in range(chunks):
        begin, k = chunk * atoms * size, 0
        for i in range(first, last):
            mine = load_all(shape, g_message, begin + i * size)
            at = out + (chunk * n + k) * LANES
            if not more.keeps:
                place = neighbors.offsets[i] + i - before
                keep(chunk, place, net, more, load_irreps(shape, values, at, chunks * n * LANES))
            g = times(own, dots(mine, load_all(shape, y, begin + i * size)))
            store_apart(values, at, chunks * n * LANES, g)
            k += 1
            for slot in range(neighbors.offsets[i], neighbors.offsets[i] + slots.counts[i]):
                at, place = out + (chunk * n + k) * LANES, slot + i + 1 - before
                if not more.keeps:
                    v = load_irreps(shape, values, at, chunks * n * LANES)
                    keep(chunk, place, net, more, v)
                theirs = load_all(shape, y, begin + slots.sender[slot] * size)
                g = dots(mine, theirs)
                rise = splat(more.envelope[slot, 1]) * weighted(kept(chunk, place, net, more), g)
                along = more.along + k * LANES
                store(values, along, load(values, along) + rise)
                g = times(splat(more.envelope[slot, 0]), g)
                store_apart(values, at, chunks * n * LANES, g)
                k += 1
    backward(edges, values, 0, more.tape, tape + chunks * n * LANES, more.rows, n, n, net.zeros)
    hidden_back(
        first, last, layer, portion, n, tape, net, charges, neighbors, slots, work, more, values
    )
    begins, k = layer == net.layers - 1, 0
    for i in range(first, last):
        k += 1
        for slot in range(neighbors.offsets[i], neighbors.offsets[i] + slots.counts[i]):
            slope = total(load(values, more.along + k * LANES))
            slots.slope[slot] = slope if begins else slots.slope[slot] + slope
            k += 1


@internal
def hidden_back(
    first: int, last: int, layer: int, portion: int, n: int, tape: int, net: PackedTensorNet,
    charges: PackedCharges, neighbors: Neighbors, slots: Slots, work: TensorNetWork,
    more: EdgesWork, values: Any,
) -> None:  # fmt: skip
    """From the gradient of g(z), in ``values``, to that of z, its sums and its part of dE/dr."""
    row_size, atoms = table_row(charges.one), work.outputs.size
    embedding = net.chunks * net.rows * table_row(net.shape)
    before = places_before(layer, portion, neighbors, more, False)
    for chunk in range(net.chunks):
        table = embedding + (layer * net.chunks + chunk) * net.rows * row_size
        at, k = chunk * n * LANES, 0
        for i in range(first, last):
            place = neighbors.offsets[i] + i - before
            sums = load(values, at) * load(more.tape, tape + at)
            store(more.hidden, (place * net.chunks + chunk) * LANES, sums)
            at += LANES
            k += 1
            for slot in range(neighbors.offsets[i], neighbors.offsets[i] + slots.counts[i]):
                place = slot + i + 1 - before
                g = load(values, at) * load(more.tape, tape + at)
                store(more.hidden, (place * net.chunks + chunk) * LANES, g)
                sums = sums + g
                where, w = table + slots.row[slot] * row_size, slot * WEIGHTS
                slope = factor_slopes(charges.one, net.tables, where, slots.weights, w)[0]
                along = more.along + k * LANES
                store(values, along, fma(g, slope, load(values, along)))
                at += LANES
                k += 1
            store(more.g_receiver, (chunk * atoms + i) * LANES, sums)


@internal
def send_back(
    first: int, last: int, chunk: int, layer: int, portion: int, net: PackedTensorNet,
    charges: PackedCharges, neighbors: Neighbors, slots: Slots, work: TensorNetWork,
    more: EdgesWork,
) -> None:  # fmt: skip
    """Add the part of a portion of receivers to the gradients of Y and ``sender``."""
    shape, size, atoms = net.shape, features(net.shape), work.outputs.size
    g_message, g_y = work.message[layer], work.delta[layer]
    begin = chunk * atoms * size
    of_factors = places_before(layer, portion, neighbors, more, more.keeps)
    of_hidden = places_before(layer, portion, neighbors, more, False)
    start, end = more.portions[portion], more.portions[portion + 1]
    own = splat(more.factors.dtype.type(charges.envelope_at_zero))
    for j in range(first, last):
        sums = load_all(shape, g_y, begin + j * size)
        where = (chunk * atoms + j) * LANES
        g_sender = load(more.g_sender, where)
        if portion == 0:
            g_sender = own - own
        # In the order of receivers, whatever the portions, so that results do not depend on them.
        own_next = start <= j < end
        slot, stop = neighbors.offsets[j], neighbors.offsets[j] + slots.counts[j]
        while slot < stop and slots.sender[slot] < start:
            slot += 1
        while (slot < stop and slots.sender[slot] < end) or own_next:
            i, place, envelope = j, neighbors.offsets[j] + j, own
            if own_next and (slot == stop or slots.sender[slot] >= j):
                own_next = False
            else:
                i, envelope = slots.sender[slot], splat(more.envelope[slot, 0])
                place = slots.slot[neighbors.reverse[slots.edge[slot]]] + i + 1
                slot += 1
            f = times(envelope, kept(chunk, place - of_factors, net, more))
            sums = plus_scaled(sums, f, load_all(shape, g_message, begin + i * size))
            at = ((place - of_hidden) * net.chunks + chunk) * LANES
            g_sender = g_sender + load(more.hidden, at)
        store_all(g_y, begin + j * size, sums)
        store(more.g_sender, where, g_sender)
