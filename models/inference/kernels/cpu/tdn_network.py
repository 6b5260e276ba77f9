"""The weights of a TDN and the memory of a step, as the kernels read them."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ....heads.energy import ScalarReadout
from ....maths.splines import RadialTable
from ....networks.tdn import TDN
from ....networks.tdn_blocks import Block
from ....networks.tdn_layers import DegreeLinear, DegreeNorm, GatedLinear
from ....networks.tdn_product import ExactCoupling, FactoredCoupling
from ....potential import Potential
from ..weights import dense_layers
from .components import shape_of
from .dense import pack_matrix
from .perceptron import Perceptron, pack_perceptron, padded
from .simd import LANES

BLOCK = 32
"""Largest number of atoms in a block."""
HARMONICS_ROWS = 9
"""Rows of the memory of `harmonics`."""

# Maps of a layer, in the order of their matrices and biases. The first seven may have a matrix for
# each degree; the pair has 2C outputs, and counts twice.
SENDER, RECEIVER, VALUE, MIX, GATED, FACTOR, GATED_MIX, GATE, PAIR = range(9)
MAPS = 10
"""Maps per layer; the embedding's mix comes after all layers."""


class PackedTDN(NamedTuple):
    """The packed weights of a TDN; each head's channels are padded to chunks of sixteen.

    Without padding, there are d components and C channels.
    """

    shape: NDArray[Any]
    """Empty array that tells compiled functions d (see `components`)."""
    degrees: NDArray[np.int64]
    """Degrees of the features, 0 first."""
    starts: NDArray[np.int64]
    """(degrees + 1,), first component of each degree, and d."""
    components: int
    """d."""
    maps: int
    """Matrices of each of the first seven maps: one for each degree, or one."""
    radial_starts: NDArray[np.int64]
    """First component of each radial weight, and d: ``starts``, or 0 and d."""
    radial_places: NDArray[np.int64]
    """(d,), where each component's radial weight is among those of a chunk."""
    matrix: int
    """d^2, padded to whole vectors."""
    norms: NDArray[np.float64]
    """(L + 1, L + 1), norm of each degree and m."""
    product: NDArray[Any]
    """Flat (d, matrix): M[k, i] of each harmonic j."""
    terms: NDArray[np.int64]
    """(T, 3), places i, j, k of an atom's product with itself; none without such products."""
    factors: NDArray[Any]
    """(T,), M_ijk of each term."""
    smooth: bool
    """Whether the network has an envelope."""
    unit: float
    """The network's unit of length, Angstrom."""
    cutoff: float
    """Cutoff in that unit."""
    channels: int
    """Channels without padding."""
    chunks: int
    """Chunks of sixteen channels, padding included."""
    width: int
    """Channels, padding included."""
    radial_width: int
    """Radial weights of an edge, padding included: one or one of each degree per channel."""
    features: int
    """Count of numbers per atom, padding included: d times the width."""
    heads: int
    layers: int
    slope: float
    """Slope of the leaky unit."""
    rows: int
    """Rows of each radial table."""
    tables: NDArray[Any]
    """Flat (1 + layers, rows, radial weights, channels): the embedding's, then each layer's."""
    differences: NDArray[Any]
    """Differences of consecutive rows, divided by the distance between them."""
    matrices: NDArray[Any]
    """Packed matrices by layer and map; PAIR is gate and score of the messages, side by side."""
    transposed: NDArray[Any]
    """Packed transposed matrices, for the backward pass."""
    biases: NDArray[Any]
    """Flat (layers, MAPS, channels), then the embedding's bias."""
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
    senders: NDArray[Any]
    """Flat (Z, channels), what the embedding multiplies radial weights by."""
    readout_norm_weight: NDArray[Any]
    readout_norm_bias: NDArray[Any]
    zeros: NDArray[Any]


class TDNWork(NamedTuple):
    """Memory of a step, for all atoms and for each thread.

    "Features" in a shape stands for atoms x chunks x components x 16. The integers from
    ``message`` on are offsets into a row of ``scratch``.
    """

    receivers: NDArray[np.int64]
    """(chunks + 1,), first atom of each chunk of receivers, and N."""
    envelope: NDArray[Any]
    """(2 E,), phi and d phi / dr of each slot."""
    coupling: NDArray[Any]
    """(E * matrix,), M of each slot, row by row, padded to whole vectors."""
    harmonics: NDArray[Any]
    """(E, d), dE/dY of each slot."""
    embedded: NDArray[Any]
    """(features,), sums of the embedding."""
    degree: NDArray[Any]
    """(N,), sums of envelopes."""
    x: NDArray[Any]
    """(layers + 1, features), inputs of each layer, and the outputs of the last."""
    middle: NDArray[Any]
    """(layers, features), after the attention."""
    sent: NDArray[Any]
    """(layers, features), as senders."""
    received: NDArray[Any]
    """(layers, features), as receivers."""
    z: NDArray[Any]
    """(layers, features), sums of the attention."""
    gradient: NDArray[Any]
    """(features,), gradient of a layer's outputs."""
    g_z: NDArray[Any]
    g_degree: NDArray[Any]
    g_sent: NDArray[Any]
    g_received: NDArray[Any]
    returned: NDArray[Any]
    """Gradients that return to the senders, for the edges of a chunk of receivers."""
    outputs: NDArray[np.float64]
    """(N,), outputs of the network."""
    rows: NDArray[np.int64]
    """Offsets of the rows of features: those of component 0 of all atoms or edges, then those of
    the other degrees."""
    row_starts: NDArray[np.int64]
    """Where those of each degree begin."""
    rows_scalars: NDArray[np.int64]
    """Offsets of the rows of the readout's block."""
    scratch: NDArray[Any]
    """(threads, ...), memory of each thread."""
    own: NDArray[np.float64]
    """(threads, HARMONICS_ROWS, ...), memory of `harmonics`."""
    message: int
    value: int
    gate: int
    gradients: int
    radial: int
    slopes_radial: int
    alpha: int
    free: int
    shares: int
    """One number per head."""
    sums: int
    totals: int
    first: int
    """Features of a block of atoms, as ``second``, ``third`` and ``fourth``."""
    second: int
    third: int
    fourth: int
    products: int
    """Features of one atom and chunk, three times."""
    scalars: int
    """Values of the readout's perceptron, for a block of atoms."""
    slopes: int
    """Derivatives of its activations."""


def pack_tdn(
    potential: Potential, table: RadialTable, dtype: np.dtype[Any]
) -> tuple[PackedTDN, Perceptron]:
    """Pack the weights of a TDN, each head padded to multiples of sixteen, and of its readout.

    Parameters
    ----------
    potential
        A TDN with a `ScalarReadout`.
    table
        Table of the network's ``edge_factors``, in float64.
    dtype
        Dtype of the packed weights.
    """
    double = copy.deepcopy(potential).cpu().double().requires_grad_(False)
    network, readout = double.representation, double.readout
    assert isinstance(network, TDN)
    assert isinstance(readout, ScalarReadout)
    layers = [layer for layer in network.layers if isinstance(layer, Block)]
    heads, channels = int(dict[str, Any](network.config)["heads"]), network.channels
    embedding = network.surroundings
    width = -(-channels // heads // LANES) * LANES * heads
    degrees = np.array(network.degrees)
    starts = np.concatenate([[0], np.cumsum(2 * degrees + 1)])
    d = int(starts[-1])
    size = -(-d * d // LANES) * LANES
    tensor = _product(network)
    product = np.zeros((d, size), dtype)
    product[:, : d * d] = tensor.permute(1, 2, 0).reshape(d, d * d).numpy()
    norms = np.zeros((degrees[-1] + 1, degrees[-1] + 1))
    for degree in network.degrees:
        for m in range(degree + 1):
            ratio = math.factorial(degree - m) / math.factorial(degree + m)
            norms[degree, m] = math.sqrt((2 * degree + 1) * (2 - (m == 0)) * ratio)

    def flat(arrays: Iterable[Tensor]) -> NDArray[Any]:
        """Concatenate arrays, with their last axis, the channels, padded."""
        parts = [padded(a.numpy(), a.ndim - 1, heads).astype(dtype).ravel() for a in arrays]
        return np.concatenate([*parts, np.zeros(0, dtype)])

    def matrix(weight: Tensor) -> NDArray[Any]:
        """W -> padded W^T, (inputs, outputs), for y = x W^T."""
        return padded(padded(weight.t().numpy(), 0, heads), 1, heads).astype(dtype)

    stored, biases = [], []
    for layer in layers:
        maps = _linear_maps(layer)
        *weights, gate, score = (
            [matrix(w) for w in each.view(-1, channels, channels)] for each, _ in maps
        )
        stored += [*itertools.chain(*weights), np.hstack([*gate, *score])]
        biases += [weight.new_zeros(channels) if b is None else b for weight, b in maps]
    stored += [matrix(w) for w in embedding.mix.weight.view(-1, channels, channels)]
    biases.append(embedding.bias * embedding.scale)
    by_degree = network.radial_shape[0] > 1
    radial_starts = starts if by_degree else np.array([0, d])
    first, *rest = torch.split(
        table.coefficients.cpu().view(table.intervals + 3, -1, channels),
        len(radial_starts) - 1,
        dim=1,
    )
    tables = [first * embedding.scale, *rest]
    terms = (
        np.argwhere(tensor.numpy()) if network.config["self_product"] else np.zeros((0, 3), int)
    )
    pairs = [norm for layer in layers for norm in (layer.norm_1, layer.norm_2)]
    of_layers = [norm for norm in pairs if isinstance(norm, DegreeNorm)]
    epsilons = np.array([list(norm.epsilons) for norm in of_layers], dtype=np.float64)
    packed = PackedTDN(
        shape=shape_of(d),
        degrees=degrees,
        starts=starts,
        components=d,
        maps=len(degrees) if by_degree else 1,
        radial_starts=radial_starts,
        radial_places=LANES * np.repeat(np.arange(len(radial_starts) - 1), np.diff(radial_starts)),
        matrix=size,
        norms=norms,
        product=product.ravel(),
        terms=LANES * np.ascontiguousarray(terms),
        factors=tensor.numpy()[tuple(terms.T)].astype(dtype),
        smooth=network.smooth,
        unit=potential.length_in_angstrom,
        cutoff=table.cutoff,
        channels=channels,
        chunks=width // LANES,
        width=width,
        radial_width=width * (len(radial_starts) - 1),
        features=width * d,
        heads=heads,
        layers=len(layers),
        slope=layers[0].attention.score_act.slope if layers else 0.0,
        rows=table.intervals + 3,
        tables=flat(tables),
        # Slopes are differences of adjacent rows, taken before rounding to the dtype.
        differences=flat(
            t.diff(dim=0, append=t[-1:]) * (table.intervals / table.cutoff) for t in tables
        ),
        matrices=np.concatenate([pack_matrix(m) for m in stored]),
        transposed=np.concatenate([pack_matrix(np.ascontiguousarray(m.T)) for m in stored]),
        biases=flat(biases),
        score_dots=flat(layer.attention.score_dot.flatten() for layer in layers),
        norm_weights=flat(norm.weight for norm in of_layers),
        norm_biases=flat(norm.bias for norm in of_layers),
        epsilons=epsilons.reshape(len(layers), 2, len(degrees)),
        species=flat([network.species.weight]),
        senders=flat([embedding.sender.expand(network.species.weight.shape)]),
        readout_norm_weight=flat([readout.norm.weight]),
        readout_norm_bias=flat([readout.norm.bias]),
        zeros=np.zeros(max(2 * width, d * LANES), dtype),
    )
    return packed, pack_perceptron(dense_layers(readout.head), heads, 1, dtype)


def _product(network: TDN) -> Tensor:
    """(d, d, d), M[i, j, k] for features i, harmonics j and results k."""
    coupling = network.coupling
    if isinstance(coupling, FactoredCoupling):
        return torch.einsum("ir,jr,kr->ijk", coupling.a, coupling.b, coupling.c)
    assert isinstance(coupling, ExactCoupling)
    return coupling.tensor.double()


def _linear_maps(layer: Block) -> list[tuple[Tensor, Tensor | None]]:
    """Weights and biases of a layer in the order of their places, the two of the pair last."""
    attention, gated = layer.attention, layer.gated
    maps: list[DegreeLinear | GatedLinear | torch.nn.Linear] = [
        attention.sender, attention.receiver, attention.value, attention.mix, gated,
        layer.factor or layer.mix, layer.mix, gated.gate, attention.value.gate, attention.score,
    ]  # fmt: skip
    return [(m.value if isinstance(m, GatedLinear) else m.weight, m.bias) for m in maps]


def make_tdn_work(
    net: PackedTDN, head: Perceptron, offsets: NDArray[np.int64], groups: Sequence[int],
    receivers: Sequence[int], threads: int,
) -> TDNWork:  # fmt: skip
    """Allocate memory for steps.

    Parameters
    ----------
    net, head
        The packed network, and the perceptron of its readout.
    offsets
        (N + 1,), first edge of each receiver, and E.
    groups, receivers
        First atom of each group and of each chunk of receivers, and N.
    threads
        Number of threads.
    """
    dtype, d, atoms = net.tables.dtype, net.components, len(offsets) - 1
    features, slots = net.features, int(offsets[-1])
    edges = int(np.diff(offsets[groups]).max(initial=1))
    returned = int(np.diff(offsets[receivers]).max(initial=1))
    sizes = {
        **dict.fromkeys(("message", "value", "gate", "gradients"), edges * features),
        **dict.fromkeys(("radial", "slopes_radial"), edges * net.radial_width),
        **dict.fromkeys(("alpha", "free"), edges * net.heads),
        "shares": net.heads,
        "sums": net.matrix * LANES,
        "totals": net.matrix,
        **dict.fromkeys(("first", "second", "third", "fourth"), BLOCK * features),
        "products": 3 * d * LANES,
        **dict.fromkeys(("scalars", "slopes"), BLOCK * LANES * int(head.chunks.sum())),
    }
    starts, end = {}, 0
    for name, size in sizes.items():
        starts[name] = end
        end += -(-size // LANES) * LANES
    places = features * np.arange(max(edges, BLOCK))
    components = np.split(LANES * np.arange(d), net.starts[1:-1])
    rows = [(places[:, None] + each).ravel() for each in components]
    layers = max(1, net.layers)
    return TDNWork(
        receivers=np.array(receivers),
        envelope=np.zeros(2 * slots, dtype),
        coupling=np.zeros(slots * net.matrix, dtype),
        harmonics=np.zeros((slots, d), dtype),
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
        rows=np.concatenate(rows),
        row_starts=np.cumsum([0, *map(len, rows)]),
        rows_scalars=LANES * np.arange(BLOCK),
        scratch=np.zeros((threads, end), dtype),
        own=np.zeros((threads, HARMONICS_ROWS, max(d, int(net.degrees[-1])) + 2)),
        **starts,
    )
