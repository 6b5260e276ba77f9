r"""Embedding and attention of a TDN over the neighbours of a few atoms, forward and backward.

The equations are in ``tests/support/tdn_equations.py``, under the same names. Messages, values
and gates of the edges of a group of receivers are in a thread's scratch memory, and the backward
pass recomputes them: nothing of size edges x components x channels is kept from layer to layer.
Gradients that return to the senders are written once for a chunk of receivers, then summed by
sender.

Layout: features of atoms and edges are [atom or edge][chunk of 16 channels][component][16].
"""

from __future__ import annotations

import math
from typing import Any

from .compiled import internal
from .components import (
    couple,
    couple_back,
    dot,
    load_all,
    load_places,
    multiplied,
    outer_sums,
    plus,
    store_all,
    times,
    with_first,
)
from .dense import multiply
from .neighbors import WEIGHTS, Neighbors, Slots
from .perceptron import sigmoid
from .simd import LANES, fma, like, load, splat, store, total
from .tdn_harmonics import add_to_harmonics
from .tdn_network import MAPS, PAIR, VALUE, PackedTDN, TDNWork
from .tdn_nodes import map_degrees, matrix_of


@internal
def spline(net: PackedTDN, slots: Slots, slot: int, start: int) -> Any:
    """A radial weight of sixteen channels; its table begins at ``start``."""
    width, w = net.radial_width, slot * WEIGHTS
    at = start + slots.row[slot] * width
    lower = splat(slots.weights[w]) * load(net.tables, at)
    lower = fma(splat(slots.weights[w + 1]), load(net.tables, at + width), lower)
    upper = splat(slots.weights[w + 3]) * load(net.tables, at + 3 * width)
    upper = fma(splat(slots.weights[w + 2]), load(net.tables, at + 2 * width), upper)
    return lower + upper


@internal
def spline_slope(net: PackedTDN, slots: Slots, slot: int, start: int) -> Any:
    """Derivatives of the radial weights of `spline`."""
    width, w = net.radial_width, slot * WEIGHTS
    at = start + slots.row[slot] * width
    sums = splat(slots.weights[w + 4]) * load(net.differences, at)
    sums = fma(splat(slots.weights[w + 5]), load(net.differences, at + width), sums)
    return fma(splat(slots.weights[w + 6]), load(net.differences, at + 2 * width), sums)


@internal
def embed(
    first: int, last: int, species: Any, net: PackedTDN, neighbors: Neighbors, slots: Slots,
    work: TDNWork,
) -> None:  # fmt: skip
    """Sum features and envelopes over the neighbours of atoms ``first`` to ``last``."""
    d, size, width, starts = net.components, net.matrix, net.width, net.radial_starts
    for i in range(first, last):
        degree = 0.0
        for slot in range(neighbors.offsets[i], neighbors.offsets[i] + slots.counts[i]):
            degree += work.envelope[2 * slot]
        work.degree[i] = degree
        for chunk in range(net.chunks):
            here = (i * net.chunks + chunk) * d * LANES
            zero = load(net.zeros, 0)
            for k in range(d):
                store(work.embedded, here + k * LANES, zero)
            for slot in range(neighbors.offsets[i], neighbors.offsets[i] + slots.counts[i]):
                sender = species[slots.sender[slot]] * width + chunk * LANES
                s = splat(work.envelope[2 * slot]) * load(net.senders, sender)
                for r in range(starts.size - 1):
                    w = s * spline(net, slots, slot, r * width + chunk * LANES)
                    for k in range(starts[r], starts[r + 1]):
                        at, m = here + k * LANES, splat(work.coupling[slot * size + k * d])
                        store(work.embedded, at, fma(m, w, load(work.embedded, at)))


@internal
def embed_back(
    first: int, last: int, species: Any, net: PackedTDN, neighbors: Neighbors, slots: Slots,
    work: TDNWork, scratch: Any,
) -> None:  # fmt: skip
    """Backward pass of `embed`: adds to the gradients of the slots.

    The gradients of the sums are in ``work.g_z`` (features) and ``work.g_degree`` (envelopes).
    """
    d, size, sums = net.components, net.matrix, work.sums
    width, starts = net.width, net.radial_starts
    for i in range(first, last):
        for slot in range(neighbors.offsets[i], neighbors.offsets[i] + slots.counts[i]):
            for at in range(0, size * LANES, LANES):
                store(scratch, sums + at, load(net.zeros, 0))
            phi, fall = work.envelope[2 * slot], work.envelope[2 * slot + 1]
            value, rise = load(net.zeros, 0), load(net.zeros, 0)
            for chunk in range(net.chunks):
                here = (i * net.chunks + chunk) * d * LANES
                s = load(net.senders, species[slots.sender[slot]] * width + chunk * LANES)
                for r in range(starts.size - 1):
                    table = r * width + chunk * LANES
                    w, along = s * spline(net, slots, slot, table), load(net.zeros, 0)
                    for k in range(starts[r], starts[r + 1]):
                        g, m = load(work.g_z, here + k * LANES), work.coupling[slot * size + k * d]
                        along = fma(splat(m), g, along)
                        at = sums + k * d * LANES
                        store(scratch, at, fma(w * splat(phi), g, load(scratch, at)))
                    value = fma(w, along, value)
                    rise = fma(s * spline_slope(net, slots, slot, table), along, rise)
            slots.slope[slot] += phi * total(rise) + fall * (total(value) + work.g_degree[i])
            add_to_harmonics(slot, net, work, scratch)


@internal
def attend(
    first: int, last: int, layer: int, net: PackedTDN, neighbors: Neighbors, slots: Slots,
    work: TDNWork, scratch: Any,
) -> None:  # fmt: skip
    r"""Compute messages, values, gates and attention of a group's edges, in scratch memory.

    Messages are at ``work.message``, W_v m at ``work.value``. ``work.gate`` has rows as long as
    features: first the gates :math:`\sigma(W_g m_0 + b)`, then :math:`a \lambda'(W_\alpha m_0
    + b)`. Radial weights are at ``work.radial``, the attention at ``work.alpha``, and the
    attention without the envelope at ``work.free``.
    """
    d, chunks, matrix = net.components, net.chunks, net.matrix
    width, features = net.width, net.features
    sent, received = work.sent[layer], work.received[layer]
    table, weights = (layer + 1) * net.rows * net.radial_width, net.radial_starts.size - 1
    n = 0
    for i in range(first, last):
        for slot in range(neighbors.offsets[i], neighbors.offsets[i] + slots.counts[i]):
            j = slots.sender[slot]
            for chunk in range(chunks):
                here = chunk * d * LANES
                radial = work.radial + n * net.radial_width + chunk * weights * LANES
                for r in range(weights):
                    w = spline(net, slots, slot, table + r * width + chunk * LANES)
                    store(scratch, radial + r * LANES, w)
                x = plus(
                    load_all(net.shape, sent, j * features + here),
                    load_all(net.shape, received, i * features + here),
                )
                x = multiplied(load_places(net.shape, scratch, radial, net.radial_places), x)
                m = couple(work.coupling, slot * matrix, x, times(load(net.zeros, 0), x))
                store_all(scratch, work.message + n * features + here, m)
            n += 1
    if n == 0:
        return
    map_degrees(
        net, net.matrices, layer, VALUE, net.zeros, 0, scratch, work.message, scratch, work.value,
        n, work,
    )  # fmt: skip
    multiply(
        scratch, work.message, d * LANES, work.rows, n, net.matrices,
        matrix_of(net, layer, PAIR, 0), net.biases, (layer * MAPS + PAIR) * width, chunks,
        2 * chunks, scratch, work.gate, LANES,
    )  # fmt: skip
    heads, per_head = net.heads, chunks // net.heads
    even, odd = (1 + net.slope) / 2, (1 - net.slope) / 2
    n = 0
    for i in range(first, last):
        count = slots.counts[i]
        for e in range(n, n + count):
            row = work.gate + e * features
            for head in range(heads):
                sums = load(net.zeros, 0)
                for chunk in range(head * per_head, (head + 1) * per_head):
                    c = chunk * LANES
                    store(scratch, row + c, sigmoid(load(scratch, row + c)))
                    a = load(scratch, row + width + c)
                    s, one, two = sigmoid(a), like(a, 1.0), like(a, 2.0)
                    inner = fma(two, s, -one)
                    weight = load(net.score_dots, layer * width + c)
                    leaky = a * fma(like(a, odd), inner, like(a, even))
                    sums = fma(weight, leaky, sums)
                    curve = fma(two * a * s, one - s, inner)
                    leaky = fma(like(a, odd), curve, like(a, even))
                    store(scratch, row + width + c, weight * leaky)
                scratch[work.alpha + e * heads + head] = total(sums)
        for head in range(heads):
            highest = 0.0 if net.smooth else -math.inf
            for e in range(n, n + count):
                highest = max(highest, scratch[work.alpha + e * heads + head])
            whole = math.exp(-highest) if net.smooth else 0.0
            for e in range(n, n + count):
                at, slot = work.alpha + e * heads + head, neighbors.offsets[i] + e - n
                free = math.exp(scratch[at] - highest)
                scratch[work.free + e * heads + head] = free
                whole += work.envelope[2 * slot] * free
            for e in range(n, n + count):
                at, slot = e * heads + head, neighbors.offsets[i] + e - n
                free = scratch[work.free + at] / whole
                scratch[work.free + at] = free
                scratch[work.alpha + at] = work.envelope[2 * slot] * free
        n += count


@internal
def gather(
    first: int, last: int, layer: int, net: PackedTDN, neighbors: Neighbors, slots: Slots,
    work: TDNWork, scratch: Any,
) -> None:  # fmt: skip
    """Sum the values over the edges of a group, weighted by attention: z."""
    d, chunks, matrix = net.components, net.chunks, net.matrix
    width, features, z = net.width, net.features, work.z[layer]
    biases = (layer * MAPS + VALUE) * width
    per_head, weights = net.chunks // net.heads, net.radial_starts.size - 1
    n = 0
    for i in range(first, last):
        for chunk in range(chunks):
            here, c = chunk * d * LANES, chunk * LANES
            bias = load(net.biases, biases + c)
            sums = load_all(net.shape, net.zeros, 0)
            for e in range(n, n + slots.counts[i]):
                alpha = splat(scratch[work.alpha + e * net.heads + chunk // per_head])
                u = load_all(net.shape, scratch, work.value + e * features + here)
                u_0 = u[0] + bias
                v = times(load(scratch, work.gate + e * features + c), u)
                v = with_first(v, u_0 * sigmoid(u_0))
                radial = work.radial + e * net.radial_width + c * weights
                w = load_places(net.shape, scratch, radial, net.radial_places)
                v = times(alpha, multiplied(w, v))
                slot = neighbors.offsets[i] + e - n
                sums = couple(work.coupling, slot * matrix, v, sums)
            store_all(z, i * features + here, sums)
        n += slots.counts[i]


@internal
def attend_back(
    first: int, last: int, layer: int, base: int, net: PackedTDN,
    neighbors: Neighbors, slots: Slots, work: TDNWork, scratch: Any,
) -> None:  # fmt: skip
    """Backward pass of `attend` and `gather`, from the scratch memory that they leave.

    The gradient of z is in ``work.g_z``. The gradients of the senders' features are written to
    ``work.returned``, beginning with that of slot ``base``; those of the receivers' features to
    ``work.g_received``.
    """
    n = back_to_messages(first, last, layer, net, neighbors, slots, work, scratch)
    chunks, width = net.chunks, net.width
    if n > 0:
        map_degrees(
            net, net.transposed, layer, VALUE, net.zeros, 0, scratch, work.value, scratch,
            work.gradients, n, work,
        )  # fmt: skip
        multiply(
            scratch, work.gate, LANES, work.rows, n, net.transposed,
            matrix_of(net, layer, PAIR, 0), net.zeros, 0, 2 * chunks, chunks, scratch,
            work.gate + 2 * width, LANES,
        )  # fmt: skip
    back_to_features(first, last, layer, base, net, neighbors, slots, work, scratch)


@internal
def back_to_messages(
    first: int, last: int, layer: int, net: PackedTDN, neighbors: Neighbors, slots: Slots,
    work: TDNWork, scratch: Any,
) -> int:  # fmt: skip
    """From the gradient of z to those of W_v m and of the arguments of gates and scores.

    Each gradient overwrites its own variable; alpha w v overwrites the messages, and derivatives
    of the radial weights are written. Returns the number of edges.
    """
    d, matrix, z = net.components, net.matrix, work.z[layer]
    width, features = net.width, net.features
    biases = (layer * MAPS + VALUE) * width
    table, weights = (layer + 1) * net.rows * net.radial_width, net.radial_starts.size - 1
    heads, per_head = net.heads, net.chunks // net.heads
    n = 0
    for i in range(first, last):
        own, share = work.shares, work.g_z
        for head in range(heads):
            sums = load(net.zeros, 0)
            for chunk in range(head * per_head, (head + 1) * per_head):
                at = i * features + chunk * d * LANES
                sums = sums + dot(load_all(net.shape, share, at), load_all(net.shape, z, at))
            scratch[own + head] = total(sums)
        for slot in range(neighbors.offsets[i], neighbors.offsets[i] + slots.counts[i]):
            row = work.gate + n * features
            change, rise = 0.0, load(net.zeros, 0)
            for head in range(heads):
                alpha = splat(scratch[work.alpha + n * heads + head])
                sums = load(net.zeros, 0)
                for chunk in range(head * per_head, (head + 1) * per_head):
                    here, c = chunk * d * LANES, chunk * LANES
                    at = n * features + here
                    g = load_all(net.shape, share, i * features + here)
                    y = couple_back(work.coupling, slot * matrix, g, times(load(net.zeros, 0), g))
                    places = n * net.radial_width + c * weights
                    for r in range(weights):
                        steep = spline_slope(net, slots, slot, table + r * width + c)
                        store(scratch, work.slopes_radial + places + r * LANES, steep)
                    w = load_places(net.shape, scratch, work.radial + places, net.radial_places)
                    u = load_all(net.shape, scratch, work.value + at)
                    u_0 = u[0] + load(net.biases, biases + c)
                    gate, s = load(scratch, row + c), sigmoid(u_0)
                    one = like(s, 1.0)
                    v = with_first(times(gate, u), u_0 * s)
                    product, weighted = multiplied(v, y), multiplied(w, v)
                    sums = sums + dot(weighted, y)
                    steep = work.slopes_radial + places
                    slopes = load_places(net.shape, scratch, steep, net.radial_places)
                    rise = fma(alpha, dot(product, slopes), rise)
                    store_all(scratch, work.message + at, times(alpha, weighted))
                    y = times(alpha, multiplied(w, y))
                    rest = dot(y, with_first(u, load(net.zeros, 0)))
                    store(scratch, row + c, gate * (one - gate) * rest)
                    y = with_first(times(gate, y), y[0] * s * fma(u_0, one - s, one))
                    store_all(scratch, work.value + at, y)
                excess = total(sums) - scratch[own + head]
                change += scratch[work.free + n * heads + head] * excess
                g_t = splat(scratch[work.alpha + n * heads + head] * excess)
                for chunk in range(head * per_head, (head + 1) * per_head):
                    at = row + width + chunk * LANES
                    store(scratch, at, g_t * load(scratch, at))
            slots.slope[slot] += change * work.envelope[2 * slot + 1] + total(rise)
            n += 1
    return n


@internal
def back_to_features(
    first: int, last: int, layer: int, base: int, net: PackedTDN,
    neighbors: Neighbors, slots: Slots, work: TDNWork, scratch: Any,
) -> None:  # fmt: skip
    """From the gradients of the messages to those of the features and the slots."""
    d, chunks, matrix = net.components, net.chunks, net.matrix
    width, features = net.width, net.features
    sent, received, share = work.sent[layer], work.received[layer], work.g_z
    weights = net.radial_starts.size - 1
    n = 0
    for i in range(first, last):
        for chunk in range(chunks):
            here = i * features + chunk * d * LANES
            store_all(work.g_received, here, load_all(net.shape, net.zeros, 0))
        for slot in range(neighbors.offsets[i], neighbors.offsets[i] + slots.counts[i]):
            j = slots.sender[slot]
            rise = load(net.zeros, 0)
            for chunk in range(chunks):
                here, c = chunk * d * LANES, chunk * LANES
                at, mine = n * features + here, i * features + here
                g = load_all(net.shape, scratch, work.gradients + at)
                scalar = load(scratch, work.gate + n * features + 2 * width + c)
                g = with_first(g, g[0] + scalar)
                store(scratch, work.gradients + at, g[0])
                y = couple_back(work.coupling, slot * matrix, g, times(load(net.zeros, 0), g))
                x = plus(
                    load_all(net.shape, sent, j * features + here),
                    load_all(net.shape, received, mine),
                )
                places = n * net.radial_width + c * weights
                w = load_places(net.shape, scratch, work.radial + places, net.radial_places)
                steep = work.slopes_radial + places
                slopes = load_places(net.shape, scratch, steep, net.radial_places)
                rise = rise + dot(multiplied(x, y), slopes)
                y = multiplied(w, y)
                store_all(work.returned, (slot - base) * features + here, y)
                store_all(
                    work.g_received, mine, plus(load_all(net.shape, work.g_received, mine), y)
                )
                store_all(scratch, work.value + at, multiplied(w, x))
            slots.slope[slot] += total(rise)
            outer_sums(
                net.shape, share, i * features, scratch, work.message + n * features, scratch,
                work.gradients + n * features, scratch, work.value + n * features, chunks,
                scratch, work.sums,
            )  # fmt: skip
            add_to_harmonics(slot, net, work, scratch)
            n += 1


@internal
def collect_sent(
    first: int, last: int, receivers: int, end: int, base: int, net: PackedTDN,
    neighbors: Neighbors, slots: Slots, work: TDNWork,
) -> None:  # fmt: skip
    """Sum the gradients that senders ``first`` to ``last`` get from receivers up to ``end``.

    The receivers begin with ``receivers`` and are always added in order; ``work.returned`` begins
    with slot ``base``.
    """
    d, chunks, features = net.components, net.chunks, net.features
    for j in range(first, last):
        begin, stop = neighbors.offsets[j], neighbors.offsets[j] + slots.counts[j]
        last_of_chunk = stop
        # The receivers of j are the senders to j, in order.
        while begin < last_of_chunk:
            half = (begin + last_of_chunk) // 2
            if slots.sender[half] < receivers:
                begin = half + 1
            else:
                last_of_chunk = half
        for chunk in range(chunks):
            at = j * features + chunk * d * LANES
            sums = load_all(net.shape, net.zeros, 0)
            if receivers > 0:
                sums = load_all(net.shape, work.g_sent, at)
            slot = begin
            while slot < stop and slots.sender[slot] < end:
                back = slots.slot[neighbors.reverse[slots.edge[slot]]] - base
                here = back * features + chunk * d * LANES
                sums = plus(sums, load_all(net.shape, work.returned, here))
                slot += 1
            store_all(work.g_sent, at, sums)
