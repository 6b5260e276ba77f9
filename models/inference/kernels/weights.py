"""The weights of a TensorNet potential that the fused kernels need, in float64."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from ...heads.energy import EnergyReadout, GatedHead, LinearHead, MLPHead
from ...maths.activations import ShiftedSoftplus, activation
from ...maths.splines import RadialTable
from ...networks.tensornet import CartesianNetwork, Interaction
from ...networks.tensornet2 import ChargedInteraction, ChargePrediction, TensorNet2
from ...potential import Potential

ACTIVATION_NAMES: dict[type[nn.Module], str] = {
    nn.SiLU: "silu",
    ShiftedSoftplus: "ssp",
    nn.Tanh: "tanh",
    nn.Sigmoid: "sigmoid",
    nn.Mish: "mish",
}


class Dense(NamedTuple):
    """A dense layer, y = act(W x + b)."""

    weight: Tensor
    """(outputs, inputs)."""
    bias: Tensor
    """(outputs,)."""
    activation: str
    """A value of ``ACTIVATION_NAMES``, or ``identity``."""


class InteractionWeights(NamedTuple):
    """Weights of one interaction layer."""

    table: Tensor
    """(intervals + 3, 3F), spline coefficients of the edge network times the envelope; of a
    TensorNet2 (intervals + 3, F), those of the terms of its first dense layer."""
    at_zero: Tensor
    """The functions of the table at distance zero, for an atom's message to itself; zero if there
    is no such message."""
    mix_in: Tensor
    """(3, F, F): y = x W^T for I, A and S."""
    mix_out: Tensor
    """(3, F, F)."""


class TensorNetWeights(NamedTuple):
    """Weights of a TensorNet potential, in the network's own units of length and energy."""

    channels: int
    irreps: str
    """The irreps of the features; in the shapes below, 3 stands for their number."""
    parity_conserving: bool
    cutoff: float
    lower: float
    """Lower cutoff: closer pairs have no edge."""
    intervals: int
    """Number of intervals of each table, from the lower cutoff to the upper."""
    receiver: Tensor
    """(Z, F), W_1 e_z + b; together with `sender`, the species factor of a pair."""
    sender: Tensor
    """(Z, F), W_2 e_z."""
    table: Tensor
    """(intervals + 3, 3F), spline coefficients of the embedding's projections times the
    envelope."""
    at_zero: Tensor
    """(F,), factor of receiver + sender in an atom's contribution to its own scalar part."""
    norm_weight: Tensor
    """(F,), layer norm of |X|^2 before the gate."""
    norm_bias: Tensor
    gate: list[Dense]
    """F -> 2F -> 3F."""
    mix: Tensor
    """(3, F, F)."""
    layers: list[InteractionWeights]
    readout_norm_weight: Tensor
    """(3F,), layer norm of |I|^2, |A|^2, |S|^2."""
    readout_norm_bias: Tensor
    readout_norm_size: int
    """Count of numbers in the readout's layer norm; those beyond the invariants are zero."""
    values: list[Dense]
    """3F -> ... -> 1."""
    gates: list[Dense]
    """3F -> ... -> 1; the energy is the product of values and gates. Empty if not gated."""


LAYER_NORM_EPSILON = 1e-5


def with_slopes(table: Tensor, spacing: float) -> Tensor:
    """Append to each row its difference to the next row divided by the spacing.

    (intervals + 3, K) -> (intervals + 3, 2K), in float64: slopes are made of differences of close
    coefficients, which would lose most of their digits in float32.
    """
    slopes = table.diff(dim=0, append=table[-1:]) / spacing
    return torch.cat([table, slopes], dim=1)


def extract_weights(potential: Potential, table: RadialTable) -> TensorNetWeights:
    """Extract the weights that a TensorNet and a TensorNet2 both have.

    ``table`` holds the network's ``edge_factors``, in float64 (see `tables.build_table`).
    """
    potential = copy.deepcopy(potential).cpu().double().requires_grad_(False)
    network, readout = potential.representation, potential.readout
    assert isinstance(network, CartesianNetwork)
    assert isinstance(readout, EnergyReadout)
    embedding, channels = network.embedding, network.channels
    layers = cast("list[Interaction]", list(network.layers))
    zero = torch.zeros(1, dtype=torch.float64)
    with torch.no_grad():
        widths = [factors.shape[1] for factors in network.edge_factors(zero)]
        parts = torch.split(table.coefficients, widths, dim=1)
        at_zero = torch.split(table(zero)[0], widths)
        if not embedding.self_interaction:
            at_zero = tuple(torch.zeros_like(part) for part in at_zero)
        species, pair = embedding.species.weight, embedding.species_pair
        values, gates = _head(readout.head)
        return TensorNetWeights(
            channels=channels,
            irreps=network.irreps,
            parity_conserving=network.config["group"] == "O(3)",
            cutoff=table.cutoff,
            lower=table.lower,
            intervals=table.intervals,
            receiver=species @ pair.weight[:, :channels].t() + pair.bias,
            sender=species @ pair.weight[:, channels:].t(),
            table=parts[0],
            at_zero=3**0.5 * at_zero[0][:channels],
            norm_weight=embedding.norm.weight,
            norm_bias=embedding.norm.bias,
            gate=dense_layers(embedding.gate),
            mix=embedding.mix.weight,
            layers=[
                InteractionWeights(part, zero, layer.mix_in.weight, layer.mix_out.weight)
                for layer, part, zero in zip(layers, parts[1:], at_zero[1:], strict=True)
            ],
            readout_norm_weight=readout.norm.weight,
            readout_norm_bias=readout.norm.bias,
            readout_norm_size=readout.norm_size,
            values=values,
            gates=gates,
        )


class ChargeWeights(NamedTuple):
    """The weights that only a TensorNet2 has; levels of charges 0 to L, layers 1 to L."""

    activation: str
    """Activation of the edge networks."""
    receiver: list[Tensor]
    """(F, C) of each layer: the part of its first dense layer for the receiver's charges."""
    sender: list[Tensor]
    """(F, C) of each layer: the part for the sender's."""
    bias: list[Tensor]
    """(F,) of each layer."""
    edges: list[list[Dense]]
    """F -> 2F -> 3F of each layer: the rest of the edge network."""
    norm_weight: list[Tensor]
    """(3F,) of each level."""
    norm_bias: list[Tensor]
    predictions: list[list[Dense]]
    """3F -> F -> F -> 2C of each level: p and w."""
    envelope_at_zero: float
    """Envelope of an atom's message to itself."""


def extract_charge_weights(potential: Potential) -> ChargeWeights:
    """Extract the weights that only a TensorNet2 has, in float64."""
    network = copy.deepcopy(potential.representation).cpu().double().requires_grad_(False)
    assert isinstance(network, TensorNet2)
    layers = cast("list[ChargedInteraction]", list(network.layers))
    predictions: list[ChargePrediction] = [network.charges, *(layer.charges for layer in layers)]
    dense = [dense_layers(layer.radial) for layer in layers]
    of_charges = [each[0].weight[:, network.config["radial_functions"] :] for each in dense]
    return ChargeWeights(
        activation=ACTIVATION_NAMES[type(activation(str(network.config["activation"])))],
        receiver=[weight[:, : network.charge_channels] for weight in of_charges],
        sender=[weight[:, network.charge_channels :] for weight in of_charges],
        bias=[each[0].bias for each in dense],
        edges=[each[1:] for each in dense],
        norm_weight=[each.norm.weight for each in predictions],
        norm_bias=[each.norm.bias for each in predictions],
        predictions=[dense_layers(each.network) for each in predictions],
        envelope_at_zero=float(network.envelope(torch.zeros(1))),
    )


def dense_layers(modules: Iterable[nn.Module]) -> list[Dense]:
    """Linear layers, each with the activation that follows it."""
    layers: list[Dense] = []
    for module in modules:
        if isinstance(module, nn.Linear):
            layers.append(Dense(module.weight.detach(), module.bias.detach(), "identity"))
        else:
            last = layers.pop()
            layers.append(Dense(last.weight, last.bias, ACTIVATION_NAMES[type(module)]))
    return layers


def _head(head: nn.Module) -> tuple[list[Dense], list[Dense]]:
    if isinstance(head, MLPHead):
        return dense_layers(head.network), []
    if isinstance(head, LinearHead):
        return dense_layers([head.linear]), []
    assert isinstance(head, GatedHead)
    values, gates = [head.linear, *head.values], [head.linear, *head.gates]
    return dense_layers(values), dense_layers(gates)
