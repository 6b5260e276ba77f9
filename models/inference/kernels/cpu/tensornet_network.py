"""The weights of a TensorNet and the memory of a step, as the kernels read them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ....maths.cartesian import COMPONENTS
from ..weights import TensorNetWeights, with_slopes
from .components import shape_of
from .dense import pack_matrix
from .perceptron import Perceptron, pack_perceptron, padded
from .simd import LANES


class PackedTensorNet(NamedTuple):
    """The packed weights of a TensorNet; channels are padded with zeros to chunks of sixteen.

    In shapes, 3 stands for the number of irreps, and 6 for twice that number.
    """

    shape: NDArray[Any]
    """Empty array that tells compiled functions the number of components (see `components`)."""
    sizes: NDArray[np.int64]
    """Components of each irrep."""
    channels: int
    """Channels without padding."""
    chunks: int
    """Chunks of sixteen channels, padding included."""
    parity_conserving: bool
    layers: int
    unit: float
    """The network's unit of length, Angstrom."""
    lower: float
    """Lower cutoff in that unit."""
    cutoff: float
    """Cutoff in that unit."""
    rows: int
    """Rows of each radial table."""
    receiver: NDArray[Any]
    """Flat (elements, channels)."""
    sender: NDArray[Any]
    """Flat (elements, channels)."""
    tables: NDArray[Any]
    """Flat (1 + layers, chunks, rows, 6, 16): the embedding's, then each layer's; those of the
    layers of a TensorNet2 have 2 in place of 6."""
    embedding_at_zero: NDArray[Any]
    """(channels,)."""
    at_zero: NDArray[Any]
    """Flat (layers, chunks, 3, 16), of a TensorNet2 (layers, chunks, 1, 16)."""
    norm_weight: NDArray[Any]
    norm_bias: NDArray[Any]
    mixes: NDArray[Any]
    """Packed matrices of I, A and S: the embedding's, then each layer's mix_in and mix_out."""
    mixes_transposed: NDArray[Any]
    """The same, transposed, for the backward pass."""
    readout_norm_weight: NDArray[Any]
    readout_norm_bias: NDArray[Any]
    readout_norm_size: int
    """Count of numbers in the readout's layer norm; those beyond the invariants are zero."""
    zeros: NDArray[Any]
    """Bias of products without bias."""


class TensorNetWork(NamedTuple):
    """Memory of a step, for all atoms and for each thread.

    "Features" in a shape stands for chunks x atoms x components x 16.
    """

    block: int
    """Number of atoms in a block."""
    charge: NDArray[Any]
    """(N,), 1 + q / 10."""
    embedded: NDArray[Any]
    """(features,), the embedding's sum."""
    mixed: NDArray[Any]
    """(features,), the embedding's sum after its mix."""
    scale: NDArray[Any]
    """Flat (3 chunks, N, 16), factors of ``mixed``."""
    statistics: NDArray[np.float64]
    """(N, 2), mean and 1 / deviation of the gate's layer norm."""
    gate_slopes: NDArray[Any]
    """(blocks, ...), derivatives of the gate's activations."""
    x: NDArray[Any]
    """(layers + 1, features), inputs of each layer, and the outputs of the last."""
    y: NDArray[Any]
    """(layers, features)."""
    message: NDArray[Any]
    """(layers, features), messages; in the backward pass their gradient."""
    delta: NDArray[Any]
    """(layers, features), dX; in the backward pass the gradient of Y."""
    gradient: NDArray[Any]
    """(features,), gradient of X."""
    outputs: NDArray[np.float64]
    """(N,), outputs of the network."""
    rows: NDArray[np.int64]
    """(block,), offsets of the rows of scalars."""
    irrep_rows: NDArray[np.int64]
    """(3, 5 block), offsets of the rows of features that belong to each irrep."""
    scratch: NDArray[Any]
    """(threads, ...): two features of a block, then scalars."""
    scalars: int
    """Offset of the scalars in the scratch memory."""
    half: int
    """Offset of the second half of the scalars."""
    slopes: NDArray[Any]
    """(threads, ...), derivatives of the activations of the readout's two perceptrons."""


def pack_tensornet(
    weights: TensorNetWeights, unit: float, dtype: np.dtype[Any]
) -> tuple[PackedTensorNet, Perceptron, Perceptron, Perceptron]:
    """Pack the network, the embedding's gate, and the readout's values and gates.

    Weights in float64 become arrays of a dtype, padded to multiples of sixteen channels. ``unit``
    is the network's unit of length, Angstrom.
    """
    chunks, irreps = -(-weights.channels // LANES), len(weights.irreps)
    sizes = [COMPONENTS[irrep] for irrep in weights.irreps]

    def flat(array: Tensor, parts: int = 1) -> NDArray[Any]:
        return padded(array.numpy(), array.ndim - 1, parts).astype(dtype).ravel()

    def table(coefficients: Tensor) -> NDArray[Any]:
        """(rows, 3F) -> flat (chunks, rows, 6, 16); see `table_row`."""
        spacing = (weights.cutoff - weights.lower) / weights.intervals
        both = with_slopes(coefficients, spacing).numpy()
        parts = both.shape[1] // weights.channels
        rows = padded(both, 1, parts).reshape(-1, parts, chunks, LANES)
        return rows.transpose(2, 0, 1, 3).astype(dtype).ravel()

    def by_chunk(numbers: Tensor) -> NDArray[Any]:
        """(3F,) -> flat (chunks, 3, 16)."""
        count = len(numbers) // weights.channels
        parts = padded(numbers.numpy(), 0, count).reshape(count, chunks, LANES)
        return parts.transpose(1, 0, 2).astype(dtype).ravel()

    mixes = [weights.mix]
    for layer in weights.layers:
        mixes += [layer.mix_in, layer.mix_out]
    # y = x W^T: (irreps, inputs, outputs); in the backward pass (irreps, outputs, inputs).
    back = [padded(padded(mix.numpy(), 1), 2).astype(dtype) for mix in mixes]
    matrices = [matrix.transpose(0, 2, 1) for matrix in back]
    packed = PackedTensorNet(
        shape=shape_of(sum(sizes)),
        sizes=np.array(sizes),
        channels=weights.channels,
        chunks=chunks,
        parity_conserving=weights.parity_conserving,
        layers=len(weights.layers),
        unit=unit,
        lower=weights.lower,
        cutoff=weights.cutoff,
        rows=weights.intervals + 3,
        receiver=flat(weights.receiver),
        sender=flat(weights.sender),
        tables=np.concatenate(
            [table(t) for t in (weights.table, *(layer.table for layer in weights.layers))]
        ),
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
    gate = pack_perceptron(weights.gate, 1, irreps, dtype)
    values = pack_perceptron(weights.values, irreps, 1, dtype)
    return packed, gate, values, pack_perceptron(weights.gates, irreps, 1, dtype)


def make_tensornet_work(
    net: PackedTensorNet, perceptrons: Sequence[Perceptron], bounds: Sequence[int], threads: int
) -> TensorNetWork:
    """Allocate memory for steps of ``bounds[-1]`` atoms, in the blocks that ``bounds`` delimit."""
    dtype, atoms, blocks = net.tables.dtype, bounds[-1], len(bounds) - 1
    block = bounds[1]
    irreps, size = len(net.sizes), LANES * int(net.sizes.sum())
    features = atoms * net.chunks * size
    row, place = block * LANES, np.arange(block)
    # Scalars: inputs and values of a perceptron, twice; the norms of the gate fit in as well.
    scalars = max(int(p.chunks.sum()) for p in perceptrons) * row
    slopes = max(int(p.chunks[1:].sum()) for p in perceptrons[1:]) * row
    # The readout keeps its invariants, one row each, in the part for features.
    begin = 2 * net.chunks * block * size
    irrep_rows, first = np.zeros((irreps, block * int(net.sizes.max())), np.int64), 0
    for rows, count in zip(irrep_rows, net.sizes, strict=True):
        components = LANES * np.arange(first, first + count)
        rows[: block * count] = (size * place[:, None] + components).ravel()
        first += count

    return TensorNetWork(
        block=block,
        charge=np.ones(atoms, dtype),
        embedded=np.empty(features, dtype),
        mixed=np.empty(features, dtype),
        scale=np.empty(irreps * atoms * net.chunks * LANES, dtype),
        statistics=np.empty((atoms, 2)),
        gate_slopes=np.empty((blocks, int(perceptrons[0].chunks[1:].sum()) * row), dtype),
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
