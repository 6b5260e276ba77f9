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
    """The weights of a TensorNet, packed; channels padded with zeros to chunks of sixteen.

    Where I, A and S are spoken of, 3 stands for as many of them as there are.
    """

    shape: NDArray[Any]
    """Tells the number of components when compiled, see `components`; it holds nothing."""
    sizes: NDArray[np.int64]
    """Components of each irrep."""
    channels: int
    """Without padding."""
    chunks: int
    parity_conserving: bool
    layers: int
    unit: float
    """The network's unit of length, Angstrom."""
    lower: float
    cutoff: float
    """In that unit."""
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
    readout_norm_size: int
    """Numbers that the norm is taken of; those beyond the invariants are zero."""
    zeros: NDArray[Any]
    """Where a product has no bias."""


class TensorNetWork(NamedTuple):
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
    irrep_rows: NDArray[np.int64]
    """(3, 5 block), offsets of the rows of features that belong to each irrep."""
    scratch: NDArray[Any]
    """(threads, ...): two features of a block, then scalars."""
    scalars: int
    """Where the scalars begin in the scratch memory."""
    half: int
    """Where their second half begins."""
    slopes: NDArray[Any]
    """(threads, ...), of the readout's two perceptrons."""


def pack_tensornet(
    weights: TensorNetWeights, unit: float, dtype: np.dtype[Any]
) -> PackedTensorNet:
    """Weights in float64 -> arrays of a dtype, padded to multiples of sixteen channels.

    ``unit`` is the network's unit of length, Angstrom.
    """
    chunks, irreps = -(-weights.channels // LANES), len(weights.irreps)
    sizes = [COMPONENTS[irrep] for irrep in weights.irreps]

    def flat(array: Tensor, parts: int = 1) -> NDArray[Any]:
        return padded(array.numpy(), array.ndim - 1, parts).astype(dtype).ravel()

    def table(coefficients: Tensor) -> NDArray[Any]:
        """(rows, 3F) -> flat (chunks, rows, 6, 16), see `table_row`."""
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
    return PackedTensorNet(
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


def make_tensornet_work(
    net: PackedTensorNet,
    perceptrons: Sequence[Perceptron],
    bounds: Sequence[int],
    threads: int,
) -> TensorNetWork:
    """Memory for steps of so many atoms, in the blocks that ``bounds`` delimit."""
    dtype, atoms, blocks = net.tables.dtype, bounds[-1], len(bounds) - 1
    block = bounds[1]
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

    return TensorNetWork(
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
