"""What a TensorNet2 has beside the parts of a TensorNet: its weights and its memory of a step.

Places: each edge that an atom receives has one, after a first place for the atom's message to
itself. The place of the first edge of atom i in the neighbour list is ``offsets[i] + i + 1``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ....heads.coulomb import CoulombEnergy
from ..weights import ChargeWeights
from .components import shape_of
from .dense import pack_matrix
from .perceptron import ACTIVATIONS, Perceptron, pack_perceptron, padded, stacked
from .simd import LANES
from .tensornet_network import PackedTensorNet

TILE = 12
"""Rows that go through an edge network together; a multiple of those of a tile of `dense`."""


class PackedCharges(NamedTuple):
    """Packed weights of charges, edge networks and the Coulomb energy.

    F and C stand for channels of features and charges, padded with zeros to chunks of sixteen.
    """

    one: NDArray[Any]
    """Empty array that tells compiled functions of one function per channel in the tables."""
    chunks: int
    """Chunks of C."""
    levels: int
    activation: int
    """First activation of the edge networks, index in ``ACTIVATIONS``."""
    receiver: NDArray[Any]
    """Packed matrices (C, F) of each layer."""
    sender: NDArray[Any]
    receiver_transposed: NDArray[Any]
    """Packed matrices (F, C) of each layer, for the backward pass."""
    sender_transposed: NDArray[Any]
    bias: NDArray[Any]
    """Flat (layers, F)."""
    norm_weight: NDArray[Any]
    """(levels, 3F)."""
    norm_bias: NDArray[Any]
    envelope_at_zero: float
    zeros: NDArray[Any]
    """(C,), bias of products without bias."""
    shares: NDArray[Any]
    """Flat (levels, C), weights of the Coulomb energy; all zero: there is none."""
    coulomb: float
    """Coulomb constant, in the network's units."""
    damping: float
    """Length below which charges are damped, in the network's unit."""
    cutoff: float
    """Coulomb cutoff, in the network's unit; infinite: all pairs of a system."""
    field: float
    """Coefficient of r^2 in the reaction field."""
    shift: float
    """Constant of the reaction field."""


class ChargesWork(NamedTuple):
    """Memory of the charges in a step; numbers by chunk and atom are (chunks, N, 16)."""

    system: NDArray[np.int64]
    """(N,), system of each atom."""
    total: NDArray[np.float64]
    """(systems,), total charge of each system."""
    bounds: NDArray[np.int64]
    """(systems + 1,), first atom of each system, where all its pairs interact."""
    outputs: NDArray[Any]
    """(levels, 2C), p and w by chunk and atom."""
    sums: NDArray[np.float64]
    """(levels, systems, 3C): of p, of w^2, and of w^2 times the gradient of the charges."""
    charges: NDArray[Any]
    """(levels, C) by chunk and atom."""
    gradient: NDArray[Any]
    """(levels, C) by chunk and atom, gradient of the charges."""
    statistics: NDArray[np.float64]
    """(levels, N, 2), mean and 1 / deviation of the layer norm before the prediction."""
    slopes: NDArray[Any]
    """(levels, blocks, ...), derivatives of the activations of the predictions."""


class EdgesWork(NamedTuple):
    """Memory of the edge networks in a step; numbers by chunk and atom are (chunks, N, 16)."""

    receiver: NDArray[Any]
    """(layers, F) by chunk and atom: terms of the first dense layer of edges that an atom
    receives."""
    sender: NDArray[Any]
    """The same for edges that it sends."""
    g_receiver: NDArray[Any]
    """F by chunk and atom: gradient of a layer's ``receiver``."""
    g_sender: NDArray[Any]
    g_own: NDArray[Any]
    """The part of both that comes from an atom's message to itself."""
    envelope: NDArray[Any]
    """(edges, 2), envelope and its derivative of each slot."""
    listed: NDArray[np.int64]
    """(threads, rows of a group, 4): receiver, sender, slot in the list of the group's atom (-1: a
    message to itself) and start in ``tape``."""
    rows: NDArray[np.int64]
    """Offsets of the rows of a tile."""
    values: NDArray[Any]
    """(threads, ...): values of the hidden layers of a tile of rows, 3F each; from ``out`` on, the
    outputs v of a group, 3F each; from ``slopes`` on, their derivatives for one atom's rows; from
    ``along`` on, dE/dr of the group's rows. Or numbers of one atom's pairs."""
    out: int
    slopes: int
    along: int
    tape: NDArray[Any]
    """(layers, places, 6F), or, if they are not kept, (threads, rows of a group, 6F): derivatives
    of the first two activations of the edge networks, and what the third is applied to."""
    width: int
    """6F."""
    hidden: NDArray[Any]
    """(slots of a portion, F), gradient of the first dense layer's outputs."""
    keeps: bool
    """Whether the forward pass keeps the ``tape``; otherwise the backward pass computes it
    again."""
    portions: NDArray[np.int64]
    """First sender of each portion of the backward pass, and N."""


def pack_charges(
    weights: ChargeWeights, coulomb: CoulombEnergy | None, dtype: np.dtype[Any]
) -> tuple[PackedCharges, Perceptron, Perceptron]:
    """Pack charges and Coulomb energy, the edge networks, and the predictions of the charges."""
    levels, layers = len(weights.predictions), len(weights.edges)
    channels = weights.predictions[0][-1].weight.shape[0] // 2
    chunks = -(-channels // LANES)

    def flat(arrays: Sequence[Tensor], parts: int = 1) -> NDArray[Any]:
        """Vectors, padded, one after the other."""
        found = [padded(array.numpy(), 0, parts).astype(dtype) for array in arrays]
        return np.concatenate([np.zeros(0, dtype), *found])

    def matrices(arrays: Sequence[Tensor], back: bool) -> NDArray[Any]:
        """(F, C) -> packed (C, F), or (F, C) for the backward pass."""
        found = [padded(padded(array.numpy(), 0), 1).astype(dtype) for array in arrays]
        turned = found if back else [np.ascontiguousarray(array.T) for array in found]
        return np.concatenate([np.zeros(0, dtype), *(pack_matrix(array) for array in turned)])

    shares = np.zeros(levels * chunks * LANES, dtype)
    if coulomb is not None:
        each = coulomb.shares.cpu().numpy().reshape(levels, channels)
        shares = padded(each, 1).astype(dtype).ravel()
    packed = PackedCharges(
        one=shape_of(1),
        chunks=chunks,
        levels=levels,
        activation=ACTIVATIONS.index(weights.activation),
        receiver=matrices(weights.receiver, False),
        sender=matrices(weights.sender, False),
        receiver_transposed=matrices(weights.receiver, True),
        sender_transposed=matrices(weights.sender, True),
        bias=flat(weights.bias),
        norm_weight=flat(weights.norm_weight, 3).reshape(levels, -1),
        norm_bias=flat(weights.norm_bias, 3).reshape(levels, -1),
        envelope_at_zero=weights.envelope_at_zero,
        zeros=np.zeros(chunks * LANES, dtype),
        shares=shares,
        coulomb=coulomb.coulomb if coulomb is not None else 0.0,
        damping=coulomb.damping if coulomb is not None else 1.0,
        cutoff=coulomb.cutoff if coulomb is not None else 0.0,
        field=coulomb.field if coulomb is not None else 0.0,
        shift=coulomb.shift if coulomb is not None else 0.0,
    )
    assert layers == levels - 1
    edges = [pack_perceptron(each, 1, 3, dtype) for each in weights.edges]
    predictions = [pack_perceptron(each, 3, 2, dtype) for each in weights.predictions]
    return packed, stacked(edges, dtype), stacked(predictions, dtype)


class EdgePlan(NamedTuple):
    """How the edge networks are divided."""

    groups: tuple[int, ...]
    """First atom of each group, and N; each portion begins with a group."""
    rows: int
    """Largest number of rows in a group."""
    portions: tuple[int, ...]
    """First sender of each portion, and N."""
    places: int
    """Largest number of places in a portion."""
    keeps: bool
    """See `EdgesWork`."""


def plan_edges(
    offsets: NDArray[np.int64], threads: int, rows: int, kept: int, portion: int
) -> EdgePlan:
    """Divide atoms into groups and portions.

    ``rows`` is the wanted number of rows in a group; ``kept`` and ``portion`` are the largest
    numbers of places whose ``tape`` is kept, and of a portion.
    """
    atoms = len(offsets) - 1
    places = offsets + np.arange(atoms + 1)
    keeps = int(places[-1]) <= kept
    portions = _divide(places, max(1, portion))
    count = threads * -(-int(places[-1]) // (rows * threads))
    groups = _divide(places, -(-int(places[-1]) // max(1, count)), portions)
    return EdgePlan(
        groups=groups,
        rows=_largest(places, groups),
        portions=portions,
        places=_largest(places, portions),
        keeps=keeps,
    )


def _divide(places: NDArray[np.int64], most: int, also: Sequence[int] = ()) -> tuple[int, ...]:
    """Consecutive atoms with at most so many places, or one atom; ``also`` are bounds too."""
    atoms, bounds, fixed = len(places) - 1, [0], set(also)
    for i in range(1, atoms):
        if places[i + 1] - places[bounds[-1]] > most or i in fixed:
            bounds.append(i)
    return (*bounds, atoms)


def _largest(places: NDArray[np.int64], bounds: Sequence[int]) -> int:
    return int(np.diff(places[list(bounds)]).max(initial=0))


def make_charges_work(
    charges: PackedCharges, predictions: Perceptron, bounds: Sequence[int], dtype: np.dtype[Any]
) -> ChargesWork:
    """Allocate memory for the charges of the blocks of atoms that ``bounds`` delimit."""
    atoms, blocks, c = bounds[-1], len(bounds) - 1, charges.chunks * LANES
    slopes = int(predictions.chunks[1:].sum()) * bounds[1] * LANES
    return ChargesWork(
        system=np.zeros(atoms, np.int64),
        total=np.zeros(1),
        bounds=np.array([0, atoms]),
        outputs=np.zeros(charges.levels * atoms * 2 * c, dtype),
        sums=np.zeros((charges.levels, 1, 3 * c)),
        charges=np.zeros(charges.levels * atoms * c, dtype),
        gradient=np.zeros(charges.levels * atoms * c, dtype),
        statistics=np.zeros((charges.levels, atoms, 2)),
        slopes=np.empty((charges.levels, blocks, slopes), dtype),
    )


def make_edges_work(
    net: PackedTensorNet, charges: PackedCharges, networks: Perceptron, plan: EdgePlan,
    offsets: NDArray[np.int64], threads: int,
) -> EdgesWork:  # fmt: skip
    """Allocate memory for the edge networks of a neighbour list."""
    dtype, atoms, edges = net.tables.dtype, len(offsets) - 1, int(offsets[-1])
    f, rows, numbers = net.chunks * LANES, max(1, plan.rows), charges.levels * charges.chunks
    kept, layers = net.layers * (edges + atoms), net.layers * atoms * net.chunks * LANES
    width, row = int(networks.chunks.sum()) * LANES, int(networks.chunks[-1]) * LANES
    out, slopes, along = (row * k for k in (TILE, TILE + rows, TILE + 2 * rows))
    return EdgesWork(
        receiver=np.empty(layers, dtype),
        sender=np.empty(layers, dtype),
        g_receiver=np.empty(atoms * f, dtype),
        g_sender=np.empty(atoms * f, dtype),
        g_own=np.empty(atoms * f, dtype),
        envelope=np.empty((edges, 2), dtype),
        listed=np.zeros((threads, rows, 4), np.int64),
        rows=row * np.arange(TILE),
        values=np.zeros((threads, max(along + rows * LANES, 2 * numbers * LANES)), dtype),
        out=out,
        slopes=slopes,
        along=along,
        tape=np.empty((kept if plan.keeps else threads * rows) * width, dtype),
        width=width,
        hidden=np.empty(plan.places * f, dtype),
        keeps=plan.keeps,
        portions=np.array(plan.portions),
    )
