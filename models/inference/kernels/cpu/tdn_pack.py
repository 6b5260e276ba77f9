"""A TDN's weights, the memory of a step and the order of its work, as the kernels want them."""

from __future__ import annotations

import math
from collections.abc import Iterable
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ..tdn_weights import BlockWeights, Linear, TDNWeights
from .components import shape_of
from .dense import pack_matrix
from .edges import FRAME, Pairs
from .perceptron import Perceptron, pack_perceptron, padded
from .simd import LANES
from .tdn_geometry import HARMONICS_ROWS, WEIGHTS, Slots
from .tdn_network import (
    ATTEND,
    BACK,
    COLLECT,
    EMBED,
    FINISH,
    FORCES,
    MATRICES,
    PAIR,
    UPDATE,
    Network,
    Plan,
    Work,
)

GROUP_EDGES = 64
"""Their messages, values and gradients stay in the cache of a core."""
BLOCK = 32
"""Atoms, at most."""
ATOM_COST = 4
"""What else is done with an atom costs about as much as so many edges."""
CHUNK_BYTES = 2**22
"""For each thread, of what is kept between receivers and senders on the way back."""


def pack_tdn(weights: TDNWeights, unit: float, dtype: np.dtype[Any]) -> Network:
    """Weights in float64 -> arrays of a dtype, each head padded to multiples of sixteen.

    ``unit`` is the network's unit of length, Angstrom.
    """
    heads, layers = weights.heads, weights.layers
    width = -(-weights.channels // heads // LANES) * LANES * heads
    degrees = np.array(weights.degrees)
    starts = np.concatenate([[0], np.cumsum(2 * degrees + 1)])
    d = int(starts[-1])
    size = -(-d * d // LANES) * LANES
    product = np.zeros((d, size), dtype)
    product[:, : d * d] = weights.product.permute(1, 2, 0).reshape(d, d * d).numpy()
    norms = np.zeros((degrees[-1] + 1, degrees[-1] + 1))
    for degree in weights.degrees:
        for m in range(degree + 1):
            ratio = math.factorial(degree - m) / math.factorial(degree + m)
            norms[degree, m] = math.sqrt((2 * degree + 1) * (2 - (m == 0)) * ratio)

    def flat(arrays: Iterable[Tensor]) -> NDArray[Any]:
        """Their channels, the last axis, padded: one after the other."""
        parts = [padded(a.numpy(), a.ndim - 1, heads).astype(dtype).ravel() for a in arrays]
        return np.concatenate([*parts, np.zeros(0, dtype)])

    def matrix(linear: Linear | Tensor) -> NDArray[Any]:
        """(inputs, outputs): y = x W^T."""
        weight = (linear.weight if isinstance(linear, Linear) else linear).t().numpy()
        return padded(padded(weight, 0, heads), 1, heads).astype(dtype)

    stored = [matrix(each) for layer in layers for each in _matrices(layer)]
    pairs = [np.hstack([matrix(p) for p in _pair(layer)]) for layer in layers]
    for k, pair in enumerate(pairs):
        stored.insert(k * (PAIR + 1) + PAIR, pair)
    stored.append(matrix(weights.mix))
    biases = [e.bias for layer in layers for e in (*_matrices(layer), *_pair(layer))]
    tables = [weights.table, *(layer.table for layer in layers)]
    of_layers = [norm for layer in layers for norm in (layer.norm_1, layer.norm_2)]
    epsilons = np.array([norm.epsilons for norm in of_layers], dtype=np.float64)
    return Network(
        shape=shape_of(d),
        degrees=degrees,
        starts=starts,
        components=d,
        matrix=size,
        norms=norms,
        product=product.ravel(),
        smooth=weights.smooth,
        unit=unit,
        cutoff=weights.cutoff,
        intervals=weights.intervals,
        channels=weights.channels,
        chunks=width // LANES,
        heads=heads,
        layers=len(layers),
        matrices_of_layer=MATRICES,
        slope=weights.slope,
        rows=weights.intervals + 3,
        tables=flat(tables),
        # Slopes are differences of neighbouring rows: taken before they are rounded.
        differences=flat(
            t.diff(dim=0, append=t[-1:]) * (weights.intervals / weights.cutoff) for t in tables
        ),
        matrices=np.concatenate([pack_matrix(m) for m in stored]),
        transposed=np.concatenate([pack_matrix(np.ascontiguousarray(m.T)) for m in stored]),
        biases=flat([*biases, weights.bias]),
        score_dots=flat(layer.score_dot for layer in layers),
        norm_weights=flat(norm.weight for norm in of_layers),
        norm_biases=flat(norm.bias for norm in of_layers),
        epsilons=epsilons.reshape(len(layers), 2, len(degrees)),
        species=flat([weights.species]),
        readout_norm_weight=flat([weights.readout_norm_weight]),
        readout_norm_bias=flat([weights.readout_norm_bias]),
        zeros=np.zeros(max(2 * width, d * LANES), dtype),
    )


def _matrices(layer: BlockWeights) -> tuple[Linear, ...]:
    """In the order of their places, but for the pair."""
    return (
        layer.sender,
        layer.receiver,
        layer.value.value,
        layer.mix,
        layer.gated.value,
        layer.gated.gate,
        layer.gated_mix,
    )


def _pair(layer: BlockWeights) -> tuple[Linear, Linear]:
    return layer.value.gate, layer.score


def pack_head(weights: TDNWeights, dtype: np.dtype[Any]) -> Perceptron:
    """The readout's perceptron."""
    return pack_perceptron(weights.head, weights.heads, 1, dtype)


def make_tdn_slots(atoms: int, edges: int, net: Network) -> Slots:
    """Room for as many edges as the neighbour list has."""
    dtype = net.tables.dtype
    return Slots(
        counts=np.zeros(atoms, np.int32),
        edge=np.zeros(edges, np.int32),
        slot=np.zeros(edges, np.int32),
        sender=np.zeros(edges, np.int32),
        row=np.zeros(edges, np.int32),
        weights=np.zeros(edges * WEIGHTS, dtype),
        frame=np.zeros(edges * FRAME, dtype),
        envelope=np.zeros(2 * edges, dtype),
        coupling=np.zeros(edges * net.matrix, dtype),
        slope=np.zeros(edges, dtype),
        harmonics=np.zeros((edges, net.components), dtype),
        gradient=np.zeros((edges, 3), dtype),
    )


def make_plan(pairs: Pairs, net: Network, threads: int) -> Plan:
    """Groups of up to `GROUP_EDGES` edges or `BLOCK` atoms, shared evenly by edges."""
    offsets = pairs.offsets
    atoms = len(offsets) - 1
    groups = [0]
    for i in range(1, atoms):
        begin = groups[-1]
        if i - begin == BLOCK or offsets[i + 1] - offsets[begin] > GROUP_EDGES:
            groups.append(i)
    groups.append(atoms)
    features = net.chunks * net.components * LANES * net.tables.dtype.itemsize
    room = max(1, threads * CHUNK_BYTES // features)
    chunks = [0]
    for g in range(1, len(groups) - 1):
        if offsets[groups[g + 1]] - offsets[groups[chunks[-1]]] > room:
            chunks.append(g)
    chunks.append(len(groups) - 1)
    cost = offsets[groups] + ATOM_COST * np.array(groups)

    def share(first: int, last: int) -> NDArray[np.int64]:
        """First group of each thread."""
        goals = cost[first] + (cost[last] - cost[first]) * np.arange(threads + 1) / threads
        middles = (cost[first:last] + cost[first + 1 : last + 1]) / 2
        bounds = first + np.searchsorted(middles, goals)
        bounds[0], bounds[-1] = first, last
        return bounds

    whole, layers = len(chunks) - 1, net.layers
    phases = [(EMBED, 0, 0)]
    for layer in range(layers - 1):
        phases += [(ATTEND, layer, whole), (UPDATE, layer, 0)]
    for layer in reversed(range(layers)):
        for chunk in range(whole):
            phases += [(BACK, layer, chunk), (COLLECT, layer, chunk)]
    phases += [(FINISH, 0, 0), (FORCES, 0, 0)]
    shares = [share(a, b) for a, b in (*pairwise(chunks), (0, len(groups) - 1))]
    return Plan(
        phases=np.array(phases),
        atoms=np.array(groups)[shares[-1]],
        groups=np.array(groups),
        chunks=np.array(chunks),
        shares=np.stack(shares),
    )


def make_tdn_work(net: Network, head: Perceptron, pairs: Pairs, plan: Plan) -> Work:
    """Memory for steps with these neighbours."""
    dtype, d, offsets = net.tables.dtype, net.components, pairs.offsets
    atoms, threads, width = len(offsets) - 1, len(plan.atoms) - 1, net.chunks * LANES
    features = width * d
    edges = int(np.diff(offsets[plan.groups]).max(initial=1))
    returned = int(np.diff(offsets[plan.groups[plan.chunks]]).max(initial=1))
    sizes = {
        "message": edges * features,
        "value": edges * features,
        "gate": edges * features,
        "gradients": edges * features,
        "radial": edges * width,
        "g_radial": edges * width,
        "alpha": edges * net.heads,
        "free": edges * net.heads,
        "shares": net.heads,
        "sums": net.matrix * LANES,
        "totals": net.matrix,
        "first": BLOCK * features,
        "second": BLOCK * features,
        "third": BLOCK * features,
        "fourth": BLOCK * features,
        "scalars": BLOCK * LANES * int(head.chunks.sum()),
        "slopes": BLOCK * LANES * int(head.chunks.sum()),
    }
    starts, end = {}, 0
    for name, size in sizes.items():
        starts[name] = end
        end += -(-size // LANES) * LANES
    places = features * np.arange(max(edges, BLOCK))
    components = LANES * np.arange(d)
    layers = max(1, net.layers)
    return Work(
        block=BLOCK,
        embedded=np.empty(atoms * features, dtype),
        degree=np.empty(atoms, dtype),
        x=np.empty((net.layers + 1, atoms * features), dtype),
        middle=np.empty((layers, atoms * features), dtype),
        sent=np.empty((layers, atoms * features), dtype),
        received=np.empty((layers, atoms * features), dtype),
        z=np.empty((layers, atoms * features), dtype),
        gradient=np.empty(atoms * features, dtype),
        g_z=np.empty(atoms * features, dtype),
        g_degree=np.empty(atoms, dtype),
        g_sent=np.empty(atoms * features, dtype),
        g_received=np.empty(atoms * features, dtype),
        returned=np.empty(returned * features if net.layers else 0, dtype),
        outputs=np.empty(atoms),
        rows=(places[:, None] + components).ravel(),
        rows_first=places,
        rows_rest=(places[:, None] + components[1:]).ravel(),
        rows_scalars=LANES * np.arange(BLOCK),
        scratch=np.zeros((threads, end), dtype),
        own=np.zeros((threads, HARMONICS_ROWS, max(d, int(net.degrees[-1])) + 2)),
        **starts,
    )
