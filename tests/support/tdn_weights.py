"""The weights of a TDN potential, in float64 and as `tdn_equations` reads them.

Radial networks are given as cubic tables (see `radial_table`), tensor products as one bilinear
map, perceptrons as lists of dense layers.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tensormd.models.heads.energy import ScalarReadout
from tensormd.models.inference.kernels.weights import Dense, dense_layers
from tensormd.models.maths.splines import RadialTable
from tensormd.models.networks.tdn import TDN
from tensormd.models.networks.tdn_blocks import Block
from tensormd.models.networks.tdn_layers import DegreeLinear, DegreeNorm, GatedLinear
from tensormd.models.networks.tdn_product import ExactCoupling, FactoredCoupling
from tensormd.models.potential import Potential


@dataclass(frozen=True)
class Linear:
    """y = x W^T, and a bias on degree 0."""

    weight: Tensor
    """(outputs, inputs), or one of each degree, (degrees, outputs, inputs)."""
    bias: Tensor
    """(outputs,)."""
    degrees: list[int]
    """Of the features."""


@dataclass(frozen=True)
class Norm:
    """Of each degree, see `DegreeNorm`."""

    weight: Tensor
    """(degrees, C)."""
    bias: Tensor
    """(C,)."""
    epsilons: list[float]
    """Of each degree."""
    sizes: list[int]
    """Components of each degree."""


@dataclass(frozen=True)
class Gated:
    """Values and gates, see `GatedLinear`."""

    value: Linear
    gate: Linear


@dataclass(frozen=True)
class BlockWeights:
    """Of one transformer block."""

    table: Tensor
    """(intervals + 3, C or degrees C), spline coefficients of the weights of its products."""
    norm_1: Norm
    sender: Linear
    receiver: Linear
    score: Linear
    score_dot: Tensor
    """(C,), head by head."""
    value: Gated
    """Of the messages."""
    mix: Linear
    """Of the sum over neighbours."""
    norm_2: Norm
    gated: Gated
    """Of the feed-forward network."""
    gated_mix: Linear
    factor: Linear | None
    """What an atom's features are multiplied with."""


@dataclass(frozen=True)
class TDNWeights:
    """Of a whole TDN potential; its units of length and energy are the network's own."""

    channels: int
    heads: int
    degrees: list[int]
    """Those that there are, 0 first."""
    smooth: bool
    """Whether there is an envelope."""
    slope: float
    """Of the leaky unit of the scores."""
    cutoff: float
    """End of the tables: the cutoff of the envelope, where there is one."""
    intervals: int
    """Of every table, from distance zero on."""
    product: Tensor
    """(d, d, d), M[i, j, k] of features i, harmonics j and results k."""
    table: Tensor
    """(intervals + 3, C or degrees C), of the embedding, times 1 / sqrt(n)."""
    sender: Tensor
    """(C,) or (Z, C), factors of the embedding's table."""
    mix: Linear
    """Of the embedding."""
    bias: Tensor
    """(C,), of the embedding, times 1 / sqrt(n)."""
    species: Tensor
    """(Z, C)."""
    layers: list[BlockWeights]
    readout_norm_weight: Tensor
    readout_norm_bias: Tensor
    head: list[Dense]
    """C -> C -> 1."""


def extract_tdn_weights(potential: Potential, table: RadialTable) -> TDNWeights:
    """The weights of a TDN potential.

    Parameters
    ----------
    potential
        With a `TDN` and a `ScalarReadout`.
    table
        In float64, of the network's ``edge_factors`` (see `tabulated.build_table`).

    Raises
    ------
    ValueError
        For another architecture.
    """
    if not isinstance(potential.representation, TDN):
        raise ValueError(
            f"{potential.architecture} has no fused kernels here: expected a Potential with a TDN"
        )
    potential = copy.deepcopy(potential).cpu().double()
    network, readout = potential.representation, potential.readout
    assert isinstance(network, TDN)
    assert isinstance(readout, ScalarReadout)
    with torch.no_grad():
        embedding, config = network.surroundings, dict[str, Any](network.config)
        blocks = [layer for layer in network.layers if isinstance(layer, Block)]
        parts = torch.split(table.coefficients.cpu(), math.prod(network.radial_shape), dim=1)
        return TDNWeights(
            channels=network.channels,
            heads=config["heads"],
            degrees=network.degrees,
            smooth=network.smooth,
            slope=blocks[0].attention.score_act.slope if blocks else 0.0,
            cutoff=table.cutoff,
            intervals=table.intervals,
            product=_product(network),
            table=parts[0] * embedding.scale,
            sender=embedding.sender.detach(),
            mix=_linear(embedding.mix),
            bias=embedding.bias.detach() * embedding.scale,
            species=network.species.weight.detach(),
            layers=[_block(block, part) for block, part in zip(blocks, parts[1:], strict=True)],
            readout_norm_weight=readout.norm.weight.detach(),
            readout_norm_bias=readout.norm.bias.detach(),
            head=dense_layers(readout.head),
        )


def _product(network: TDN) -> Tensor:
    coupling = network.coupling
    if isinstance(coupling, FactoredCoupling):
        return torch.einsum("ir,jr,kr->ijk", coupling.a, coupling.b, coupling.c)
    assert isinstance(coupling, ExactCoupling)
    return coupling.tensor.double()


def _block(block: Block, table: Tensor) -> BlockWeights:
    attention = block.attention
    return BlockWeights(
        table=table,
        norm_1=_norm(block.norm_1),
        sender=_linear(attention.sender),
        receiver=_linear(attention.receiver),
        score=_linear(attention.score),
        score_dot=attention.score_dot.detach().flatten(),
        value=_gated(attention.value),
        mix=_linear(attention.mix),
        norm_2=_norm(block.norm_2),
        gated=_gated(block.gated),
        gated_mix=_linear(block.mix),
        factor=None if block.factor is None else _linear(block.factor),
    )


def _norm(norm: torch.nn.Module) -> Norm:
    assert isinstance(norm, DegreeNorm)
    return Norm(norm.weight.detach(), norm.bias.detach(), list(norm.epsilons), list(norm.sizes))


def _linear(linear: DegreeLinear | torch.nn.Linear) -> Linear:
    weight, bias = linear.weight.detach(), linear.bias
    bias = weight.new_zeros(weight.shape[-2]) if bias is None else bias.detach()
    return Linear(weight, bias, _degrees(linear))


def _gated(gated: GatedLinear) -> Gated:
    value = Linear(gated.value.detach(), gated.bias.detach(), _degrees(gated))
    return Gated(value, _linear(gated.gate))


def _degrees(part: DegreeLinear | GatedLinear | torch.nn.Linear) -> list[int]:
    return [0] if isinstance(part, torch.nn.Linear) else [size // 2 for size in part.sizes]
