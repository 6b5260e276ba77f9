"""Energies, forces and virial of a TensorNet in one pass, without autograd.

`tensornet_step` goes from the positions to the energies, then back to the forces. It takes its
operators as an argument: Triton's, or the plain functions of the tests, which define what each
computes (``tests/support/kernel_equations.py``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from ..weights import TensorNetWeights
from .perceptrons import layer_norm, layer_norm_adjoint, perceptron, perceptron_adjoint
from .rows import EdgeRows

if TYPE_CHECKING:
    from .operators import TritonOperators


class StepInputs(NamedTuple):
    """Inputs that change from step to step; shapes and units as in `Graph` and `EdgeRows`."""

    positions: Tensor
    cell: Tensor
    system: Tensor
    numbers: Tensor
    charge: Tensor
    offsets: Tensor
    senders: Tensor
    shift: Tensor
    reverse: Tensor


def tensornet_step(
    inputs: StepInputs, weights: TensorNetWeights, length: float, operators: TritonOperators
) -> tuple[Tensor, Tensor, Tensor]:
    """Evaluate the network once: its outputs per atom, and their forces and virial.

    Nothing is read back from the device, and shapes depend only on those of the inputs. On CUDA,
    the device of the tensors must be the current one. Edges at or beyond the cutoff (in a Verlet
    skin) are skipped.

    Parameters
    ----------
    inputs
        Atoms and edges.
    weights
        Weights from `pack_weights`.
    length
        The network's unit of length, Angstrom.
    operators
        Implementation of the operators.

    Returns
    -------
    Outputs (N,) of the network in its dtype; forces (N, 3), float64, per Angstrom; each atom's
    share (N, 3, 3), float64, of the virial, of which only the symmetric part is meaningful. Scale
    and references are not applied yet.
    """
    w, op = weights, operators
    edges = EdgeRows(inputs.offsets, inputs.senders, inputs.shift, inputs.reverse)
    at = op.geometry(
        inputs.positions, inputs.cell, inputs.system, edges, length=length, lower=w.lower,
        cutoff=w.cutoff, intervals=w.intervals, dtype=w.table.dtype,
    )  # fmt: skip
    charge_factor = (1 + 0.1 * inputs.charge).to(w.table.dtype)[inputs.system]
    species = (w.receiver, w.sender, inputs.numbers)

    # Embedding (eqs. 6 to 10 of the paper)
    embedded = op.embed(at, edges, w.table, w.at_zero, *species)
    norm = op.norm_squared(embedded)
    normal, mean, inverse = layer_norm(norm, w.norm_weight, w.norm_bias, w.channels)
    factors, gate_linear = perceptron(w.gate, normal)
    mixed = mix(embedded, w.mix)
    x = op.gate(mixed, factors)

    # Interactions (eqs. 11 to 13)
    kept: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
    for layer in w.layers:
        normal = op.normalize(x)
        y = mix(normal, layer.mix_in)
        m = op.message(at, edges, layer.table, layer.at_zero, y)
        dx = mix(op.combine(y, m, charge_factor, w.parity_conserving), layer.mix_out)
        kept.append((x, y, m, dx))
        x = op.update(normal, dx, charge_factor)

    # Readout, and its gradient with respect to the features; from here on g = dE/dX
    invariants = op.irrep_norms_squared(x)
    outputs, g_invariants = _readout(invariants, w)
    g = op.irrep_norms_squared_adjoint(x, g_invariants)

    # Interactions, last one first; baddbmm_ adds the adjoint of a mix in place
    d_distance = torch.zeros_like(at.distance)
    for layer, (x, y, m, dx) in zip(reversed(w.layers), reversed(kept), strict=True):
        g_c = mix_adjoint(layer.mix_out, op.update_adjoint(dx, charge_factor, g))
        g_y, g_m = op.combine_adjoint(y, m, charge_factor, w.parity_conserving, g_c)
        sent, d_length = op.message_backward(at, edges, layer.table, layer.at_zero, y, g_m)
        d_distance += d_length
        g = op.normalize_adjoint(x, g.baddbmm_(g_y + sent, layer.mix_in))

    # Embedding
    g_mixed, g_factors = op.gate_adjoint(mixed, factors, g)
    g_norm = perceptron_adjoint(w.gate, gate_linear, g_factors)
    g_norm = layer_norm_adjoint(
        norm, w.norm_weight, w.norm_bias, mean, inverse, g_norm, w.channels
    )
    g = op.norm_squared_adjoint(embedded, g_norm).baddbmm_(g_mixed, w.mix)
    d_vector = op.embed_backward(at, edges, w.table, *species, g)

    forces, virial = op.forces(at, edges, d_vector, d_distance)
    return outputs, forces / length, virial


def _readout(invariants: Tensor, w: TensorNetWeights) -> tuple[Tensor, Tensor]:
    """Outputs (N,) of the network, and the gradient of their sum, (N, 3F)."""
    weight, bias, size = w.readout_norm_weight, w.readout_norm_bias, w.readout_norm_size
    x, mean, inverse = layer_norm(invariants, weight, bias, size)
    outputs, linear = perceptron(w.values, x)
    one = torch.ones_like(outputs)
    if not w.gates:
        g = perceptron_adjoint(w.values, linear, one)
    else:
        values, (gates, gates_linear) = outputs, perceptron(w.gates, x)
        outputs = values * gates
        g = perceptron_adjoint(w.values, linear, gates)
        g = g + perceptron_adjoint(w.gates, gates_linear, values)
    g = layer_norm_adjoint(invariants, weight, bias, mean, inverse, g, size)
    return outputs.squeeze(1), g


def mix(x: Tensor, weight: Tensor) -> Tensor:
    """Multiply the channels of each component by a matrix (`by_component`): X W^T, W (9, F, F)."""
    return torch.bmm(x, weight.mT)


def mix_adjoint(weight: Tensor, g: Tensor) -> Tensor:
    """Gradient of `mix` with respect to X, g W."""
    return torch.bmm(g, weight)
