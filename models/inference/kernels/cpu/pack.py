"""A network's weights, a neighbour list and the memory of a step, as the kernels want them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ....maths.cartesian import COMPONENTS
from ..packing import with_slopes
from ..weights import TensorNetWeights
from .compiled import inlined
from .components import shape_of
from .dense import pack_matrix
from .edges import FRAME, WEIGHTS, Pairs, Slots
from .nodes import Network, Work
from .perceptron import Perceptron, pack_perceptron, padded
from .simd import LANES


def pack_network(weights: TensorNetWeights, dtype: np.dtype[Any]) -> Network:
    """Weights in float64 -> arrays of a dtype, padded to multiples of sixteen channels."""
    chunks, irreps = -(-weights.channels // LANES), len(weights.irreps)
    sizes = [COMPONENTS[irrep] for irrep in weights.irreps]

    def flat(array: Tensor, parts: int = 1) -> NDArray[Any]:
        return padded(array.numpy(), array.ndim - 1, parts).astype(dtype).ravel()

    def table(coefficients: Tensor) -> NDArray[Any]:
        """(rows, 3F) -> flat (chunks, rows, 6, 16), see `edges.table_row`."""
        spacing = (weights.cutoff - weights.lower) / weights.intervals
        both = with_slopes(coefficients, spacing).numpy()
        rows = padded(both, 1, 2 * irreps).reshape(-1, 2 * irreps, chunks, LANES)
        return rows.transpose(2, 0, 1, 3).astype(dtype).ravel()

    def by_chunk(numbers: Tensor) -> NDArray[Any]:
        """(3F,) -> flat (chunks, 3, 16)."""
        parts = padded(numbers.numpy(), 0, irreps).reshape(irreps, chunks, LANES)
        return parts.transpose(1, 0, 2).astype(dtype).ravel()

    mixes = [weights.mix]
    for layer in weights.layers:
        mixes += [layer.mix_in, layer.mix_out]
    # y = x W^T: (irreps, inputs, outputs), and the way back (irreps, outputs, inputs).
    back = [padded(padded(mix.numpy(), 1), 2).astype(dtype) for mix in mixes]
    matrices = [matrix.transpose(0, 2, 1) for matrix in back]
    return Network(
        shape=shape_of(sum(sizes)),
        sizes=np.array(sizes),
        channels=weights.channels,
        chunks=chunks,
        parity_conserving=weights.parity_conserving,
        layers=len(weights.layers),
        rows=weights.intervals + 3,
        receiver=flat(weights.receiver),
        sender=flat(weights.sender),
        tables=np.concatenate([table(t) for t in (weights.table, *_tables(weights))]),
        embedding_at_zero=flat(weights.at_zero),
        at_zero=np.concatenate(
            [np.zeros(0, dtype), *(by_chunk(layer.at_zero) for layer in weights.layers)]
        ),
        norm_weight=flat(weights.norm_weight),
        norm_bias=flat(weights.norm_bias),
        mixes=np.concatenate([pack_matrix(m) for matrix in matrices for m in matrix]),
        mixes_transposed=np.concatenate([pack_matrix(m) for matrix in back for m in matrix]),
        readout_norm_weight=flat(weights.readout_norm_weight, irreps),
        readout_norm_bias=flat(weights.readout_norm_bias, irreps),
        readout_norm_size=weights.readout_norm_size,
        zeros=np.zeros(3 * chunks * LANES, dtype),
    )


def pack_perceptrons(
    weights: TensorNetWeights, dtype: np.dtype[Any]
) -> tuple[Perceptron, Perceptron, Perceptron]:
    """The embedding's gate, and the readout's values and gates."""
    irreps = len(weights.irreps)
    return (
        pack_perceptron(weights.gate, 1, irreps, dtype),
        pack_perceptron(weights.values, irreps, 1, dtype),
        pack_perceptron(weights.gates, irreps, 1, dtype),
    )


def _tables(weights: TensorNetWeights) -> list[Tensor]:
    return [layer.table for layer in weights.layers]


@inlined
def match_reverse(offsets: Any, senders: Any, images: Any, reverse: Any) -> bool:
    """Find each edge's reverse: whether all have one, and receivers come in order."""
    atoms = offsets.size - 1
    for i in range(atoms):
        for edge in range(offsets[i], offsets[i + 1]):
            j = senders[edge]
            reverse[edge] = -1
            for back in range(offsets[j], offsets[j + 1]):
                if (
                    senders[back] == i
                    and images[back, 0] == -images[edge, 0]
                    and images[back, 1] == -images[edge, 1]
                    and images[back, 2] == -images[edge, 2]
                ):
                    reverse[edge] = back
                    break
            if reverse[edge] < 0:
                return False
    return True


def pack_pairs(
    edge_index: NDArray[np.int64], images: NDArray[np.float64], shifts: NDArray[np.float64],
    atoms: int,
) -> Pairs:  # fmt: skip
    """A neighbour list by receiver.

    Parameters
    ----------
    edge_index
        (2, E), sorted by receiver; every pair in both directions.
    images
        (E, 3), whole numbers of lattice vectors.
    shifts
        (E, 3), the same in Angstrom.
    atoms
        N.

    Raises
    ------
    ValueError
        If the edges are not sorted, or one has no reverse.
    """
    receivers = edge_index[0]
    if (np.diff(receivers) < 0).any():
        raise ValueError("edges are not sorted by receiver: expected a Graph of NeighborList")
    offsets = np.searchsorted(receivers, np.arange(atoms + 1))
    senders = edge_index[1].astype(np.int32)
    reverse = np.empty(len(senders), np.int32)
    if not match_reverse(offsets, senders, images, reverse):
        edge = int(np.flatnonzero(reverse < 0)[0])
        raise ValueError(
            f"edge {edge} has no reverse: expected every pair in both directions, as "
            "NeighborList makes them"
        )
    return Pairs(offsets, senders, np.ascontiguousarray(shifts), reverse)


def make_slots(atoms: int, edges: int, chunks: int, dtype: np.dtype[Any]) -> Slots:
    """Room for as many edges as the neighbour list has."""
    return Slots(
        counts=np.zeros(atoms, np.int32),
        edge=np.zeros(edges, np.int32),
        slot=np.zeros(edges, np.int32),
        sender=np.zeros(edges, np.int32),
        row=np.zeros(edges, np.int32),
        weights=np.zeros(edges * WEIGHTS, dtype),
        frame=np.zeros(edges * FRAME, dtype),
        slope=np.zeros(edges * chunks, dtype),
        gradient=np.zeros((edges, 3), dtype),
    )


LARGEST_BLOCK = 32
"""Atoms: their features, and the matrices, stay in the cache of a core."""


def make_work(net: Network, perceptrons: Sequence[Perceptron], atoms: int, threads: int) -> Work:
    """Memory for steps of so many atoms."""
    dtype = net.tables.dtype
    blocks = threads * -(-atoms // (LARGEST_BLOCK * threads))
    block = max(1, -(-atoms // max(1, blocks)))
    blocks = -(-atoms // block)
    irreps, size = len(net.sizes), LANES * int(net.sizes.sum())
    features = atoms * net.chunks * size
    row, place = block * LANES, np.arange(block)
    # Scalars: inputs and values of a perceptron, twice; the gate's norms need a little more.
    scalars = max(int(p.chunks.sum()) for p in perceptrons) * row
    slopes = max(int(p.chunks[1:].sum()) for p in perceptrons[1:]) * row
    # Of the features' part the readout takes one row for each invariant.
    begin = 2 * net.chunks * block * size
    irrep_rows, first = np.zeros((irreps, block * int(net.sizes.max())), np.int64), 0
    for rows, count in zip(irrep_rows, net.sizes, strict=True):
        components = LANES * np.arange(first, first + count)
        rows[: block * count] = (size * place[:, None] + components).ravel()
        first += count

    return Work(
        block=block,
        charge=np.ones(atoms, dtype),
        embedded=np.empty(features, dtype),
        mixed=np.empty(features, dtype),
        scale=np.empty(irreps * atoms * net.chunks * LANES, dtype),
        statistics=np.empty((atoms, 2)),
        gate_slopes=np.empty(blocks * int(perceptrons[0].chunks[1:].sum()) * row, dtype),
        x=np.empty((net.layers + 1, features), dtype),
        y=np.empty((net.layers, features), dtype),
        message=np.empty((net.layers, features), dtype),
        delta=np.empty((net.layers, features), dtype),
        gradient=np.empty(features, dtype),
        outputs=np.empty(atoms),
        rows=LANES * place,
        irrep_rows=irrep_rows,
        scratch=np.zeros((threads, begin + 2 * scalars), dtype),
        scalars=begin,
        half=begin + scalars,
        slopes=np.empty((threads, 2 * slopes), dtype),
    )
