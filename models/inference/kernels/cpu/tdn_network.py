"""The weights of a TDN, the memory of a step and its order, as the kernels read them."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

# Places of a layer's matrices; that of the pair, with 2C outputs, takes two.
SENDER, RECEIVER, VALUE, MIX, GATED, GATE, GATED_MIX, PAIR = range(8)
MATRICES = 9
"""Of a layer."""


class Network(NamedTuple):
    """The weights of a TDN, packed; each head's channels are padded to chunks of sixteen."""

    shape: NDArray[Any]
    """Tells d when compiled, see `components`; it holds nothing."""
    degrees: NDArray[np.int64]
    """Those that there are, 0 first."""
    starts: NDArray[np.int64]
    """(degrees + 1,), first component of each, and d."""
    components: int
    """d."""
    matrix: int
    """d^2, padded to whole vectors."""
    norms: NDArray[np.float64]
    """(L + 1, L + 1), of each degree and m."""
    product: NDArray[Any]
    """Flat (d, matrix): for each harmonic j its M[k, i]."""
    smooth: bool
    unit: float
    """The network's unit of length, Angstrom."""
    cutoff: float
    """In that unit."""
    intervals: int
    """Of the tables."""
    channels: int
    """Without padding."""
    chunks: int
    heads: int
    layers: int
    matrices_of_layer: int
    """`MATRICES`; the embedding's mix comes after all layers."""
    slope: float
    """Of the leaky unit."""
    rows: int
    """Of each radial table."""
    tables: NDArray[Any]
    """Flat (1 + layers, rows, channels): the embedding's, then each layer's."""
    differences: NDArray[Any]
    """Of consecutive rows, over the distance between them."""
    matrices: NDArray[Any]
    """Packed, by layer; PAIR is gate and score of the messages side by side."""
    transposed: NDArray[Any]
    biases: NDArray[Any]
    """As the matrices: flat (layers, MATRICES, channels), then the embedding's."""
    score_dots: NDArray[Any]
    """Flat (layers, channels)."""
    norm_weights: NDArray[Any]
    """Flat (layers, 2, degrees, channels)."""
    norm_biases: NDArray[Any]
    """Flat (layers, 2, channels)."""
    epsilons: NDArray[np.float64]
    """(layers, 2, degrees)."""
    species: NDArray[Any]
    """Flat (Z, channels)."""
    readout_norm_weight: NDArray[Any]
    readout_norm_bias: NDArray[Any]
    zeros: NDArray[Any]


class Work(NamedTuple):
    """Memory of a step, for all atoms and for each thread."""

    block: int
    """Atoms that are done together, at most."""
    embedded: NDArray[Any]
    """Sums of the embedding."""
    degree: NDArray[Any]
    """(N,), sums of envelopes."""
    x: NDArray[Any]
    """(layers + 1, features): what enters each layer, and what leaves the last."""
    middle: NDArray[Any]
    """(layers, features), after the attention."""
    sent: NDArray[Any]
    received: NDArray[Any]
    z: NDArray[Any]
    """(layers, features)."""
    gradient: NDArray[Any]
    """Of what leaves a layer."""
    g_z: NDArray[Any]
    g_degree: NDArray[Any]
    g_sent: NDArray[Any]
    g_received: NDArray[Any]
    returned: NDArray[Any]
    """Features of the edges of a chunk of receivers: what goes back to senders."""
    outputs: NDArray[np.float64]
    """(N,), of the network."""
    rows: NDArray[np.int64]
    """Offsets of the rows of features,"""
    rows_first: NDArray[np.int64]
    """of their component 0,"""
    rows_rest: NDArray[np.int64]
    """and of the others."""
    rows_scalars: NDArray[np.int64]
    """Of the readout's block."""
    scratch: NDArray[Any]
    """(threads, ...): what follows says where what lies."""
    own: NDArray[np.float64]
    """(threads, 9, d + 2), of `harmonics`."""
    message: int
    value: int
    gate: int
    gradients: int
    radial: int
    g_radial: int
    alpha: int
    free: int
    shares: int
    """By head."""
    sums: int
    totals: int
    first: int
    """Four features of a block of atoms."""
    second: int
    third: int
    fourth: int
    scalars: int
    """Of the readout: rows of ``block``."""
    slopes: int


EMBED, ATTEND, UPDATE, BACK, COLLECT, FINISH, FORCES = range(7)
"""What a phase does, see `tdn_step.perform`."""


class Plan(NamedTuple):
    """Who does what and when: receivers in groups, groups in chunks, shared among threads."""

    phases: NDArray[np.int64]
    """(phases, 3): what is done, in which layer, to which chunk."""
    atoms: NDArray[np.int64]
    """(threads + 1,), first atom of each thread."""
    groups: NDArray[np.int64]
    """(groups + 1,), first atom of each, and N."""
    chunks: NDArray[np.int64]
    """(chunks + 1,), first group of each, and the number of groups."""
    shares: NDArray[np.int64]
    """(chunks + 1, threads + 1), first group of each thread; the last row is of all groups."""
