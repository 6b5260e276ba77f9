"""Energies, forces and virial of a TensorNet in one pass, without autograd.

`tensornet_step` reads from the positions to the energies and from there back to the forces,
the same for every backend: what differs is the `Operators` it is given. Equations stand in
`equations`.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from ...maths import cartesian
from . import equations
from .edges import Edges, Geometry
from .equations import mix, mix_adjoint
from .perceptrons import (
    layer_norm,
    layer_norm_adjoint,
    padded_layer_norm,
    padded_layer_norm_adjoint,
    perceptron,
    perceptron_adjoint,
)
from .weights import TensorNetWeights


class StepInputs(NamedTuple):
    """What changes from step to step; shapes and units as in `Graph` and `Edges`."""

    positions: Tensor
    cell: Tensor
    system: Tensor
    numbers: Tensor
    charge: Tensor
    offsets: Tensor
    senders: Tensor
    shift: Tensor
    reverse: Tensor


class StepResult(NamedTuple):
    """Of one pass, before scale, references and units of energy."""

    outputs: Tensor
    """(N,) of the network, in its dtype."""
    forces: Tensor
    """(N, 3) float64, - d(sum of outputs)/dR, per Angstrom."""
    virial: Tensor
    """(N, 3, 3) float64, each atom's share of - d(sum of outputs)/dstrain; only the
    symmetric part of a sum over a system means anything."""


class Operators(Protocol):
    """What a backend implements; see the functions of the same names in `equations`."""

    engine: str
    """What a person is told of it."""

    def geometry(  # noqa: D102
        self,
        positions: Tensor,
        cell: Tensor,
        system: Tensor,
        edges: Edges,
        *,
        length: float,
        lower: float,
        cutoff: float,
        intervals: int,
        dtype: torch.dtype,
    ) -> Geometry: ...

    def embed(  # noqa: D102
        self,
        at: Geometry,
        edges: Edges,
        table: Tensor,
        at_zero: Tensor,
        receiver: Tensor,
        sender: Tensor,
        numbers: Tensor,
        components: int = 9,
    ) -> Tensor: ...

    def embed_backward(  # noqa: D102
        self,
        at: Geometry,
        edges: Edges,
        table: Tensor,
        receiver: Tensor,
        sender: Tensor,
        numbers: Tensor,
        g: Tensor,
    ) -> Tensor: ...

    def message(  # noqa: D102
        self, at: Geometry, edges: Edges, table: Tensor, at_zero: Tensor, y: Tensor
    ) -> Tensor: ...

    def message_backward(  # noqa: D102
        self,
        at: Geometry,
        edges: Edges,
        table: Tensor,
        at_zero: Tensor,
        y: Tensor,
        g: Tensor,
    ) -> tuple[Tensor, Tensor]: ...

    def forces(  # noqa: D102
        self, at: Geometry, edges: Edges, d_vector: Tensor, d_distance: Tensor
    ) -> tuple[Tensor, Tensor]: ...

    def sum_by_system(  # noqa: D102
        self, values: Tensor, system: Tensor, systems: int
    ) -> Tensor: ...

    def normalize(self, x: Tensor) -> Tensor: ...  # noqa: D102

    def normalize_adjoint(self, x: Tensor, g: Tensor) -> Tensor: ...  # noqa: D102

    def combine(  # noqa: D102
        self, y: Tensor, m: Tensor, charge_factor: Tensor, parity_conserving: bool
    ) -> Tensor: ...

    def combine_adjoint(  # noqa: D102
        self, y: Tensor, m: Tensor, charge_factor: Tensor, parity_conserving: bool, g: Tensor
    ) -> tuple[Tensor, Tensor]: ...

    def update(self, x: Tensor, dx: Tensor, charge_factor: Tensor) -> Tensor: ...  # noqa: D102

    def update_adjoint(  # noqa: D102
        self, dx: Tensor, charge_factor: Tensor, g: Tensor
    ) -> Tensor: ...

    def norm_squared(self, x: Tensor) -> Tensor: ...  # noqa: D102

    def norm_squared_adjoint(self, x: Tensor, g: Tensor) -> Tensor: ...  # noqa: D102

    def irrep_norms_squared(self, x: Tensor) -> Tensor: ...  # noqa: D102

    def irrep_norms_squared_adjoint(self, x: Tensor, g: Tensor) -> Tensor: ...  # noqa: D102

    def gate(self, x: Tensor, factors: Tensor) -> Tensor: ...  # noqa: D102

    def gate_adjoint(  # noqa: D102
        self, x: Tensor, factors: Tensor, g: Tensor
    ) -> tuple[Tensor, Tensor]: ...


class TorchOperators:
    """The functions of `equations`: any device, any size; edge tensors are stored."""

    engine = "plain functions of the fused pass"
    geometry = staticmethod(equations.geometry)
    embed = staticmethod(equations.embed)
    embed_backward = staticmethod(equations.embed_backward)
    message = staticmethod(equations.message)
    message_backward = staticmethod(equations.message_backward)
    forces = staticmethod(equations.forces)
    sum_by_system = staticmethod(equations.sum_by_system)
    normalize = staticmethod(equations.normalize)
    normalize_adjoint = staticmethod(equations.normalize_adjoint)
    combine = staticmethod(equations.combine)
    combine_adjoint = staticmethod(equations.combine_adjoint)
    update = staticmethod(equations.update)
    update_adjoint = staticmethod(equations.update_adjoint)
    norm_squared = staticmethod(cartesian.norm_squared)
    norm_squared_adjoint = staticmethod(equations.norm_squared_adjoint)
    irrep_norms_squared = staticmethod(cartesian.irrep_norms_squared)
    irrep_norms_squared_adjoint = staticmethod(equations.irrep_norms_squared_adjoint)
    gate = staticmethod(equations.gate)
    gate_adjoint = staticmethod(equations.gate_adjoint)


def tensornet_step(
    inputs: StepInputs, weights: TensorNetWeights, length: float, operators: Operators
) -> StepResult:
    """One evaluation: outputs of the network by atom, their forces and virial.

    Nothing is read back from the device, and shapes depend on those of the inputs alone. On
    CUDA the device of the tensors must be the current one.

    Parameters
    ----------
    inputs
        Atoms and edges. Edges at the cutoff and beyond (a Verlet skin) are skipped.
    weights
        Packed in the dtype and device of the pass (`packing.pack_weights`).
    length
        The network's unit of length, Angstrom.
    operators
        The backend.
    """
    w, op = weights, operators
    edges = Edges(inputs.offsets, inputs.senders, inputs.shift, inputs.reverse)
    at = op.geometry(
        inputs.positions,
        inputs.cell,
        inputs.system,
        edges,
        length=length,
        lower=w.lower,
        cutoff=w.cutoff,
        intervals=w.intervals,
        dtype=w.table.dtype,
    )
    charge_factor = (1 + 0.1 * inputs.charge).to(w.table.dtype)[inputs.system]
    species = (w.receiver, w.sender, inputs.numbers)

    # Embedding (eqs. 6 to 10 of the paper)
    components = sum(cartesian.COMPONENTS[irrep] for irrep in w.irreps)
    embedded = op.embed(at, edges, w.table, w.at_zero, *species, components)
    norm = op.norm_squared(embedded)
    normal, mean, inverse = layer_norm(norm, w.norm_weight, w.norm_bias)
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

    # Readout, and its gradient with respect to the features, g = dE/dX from here on
    invariants = op.irrep_norms_squared(x)
    outputs, g_invariants = _readout(invariants, w)
    g = op.irrep_norms_squared_adjoint(x, g_invariants)

    # Interactions, last one first; baddbmm_ adds the adjoint of a mix to what it is called on
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
    g_norm = layer_norm_adjoint(norm, w.norm_weight, w.norm_bias, mean, inverse, g_norm)
    g = op.norm_squared_adjoint(embedded, g_norm).baddbmm_(g_mixed, w.mix)
    d_vector = op.embed_backward(at, edges, w.table, *species, g)

    forces, virial = op.forces(at, edges, d_vector, d_distance)
    return StepResult(outputs, forces / length, virial)


def _readout(invariants: Tensor, w: TensorNetWeights) -> tuple[Tensor, Tensor]:
    """Outputs (N,) of the network, and the gradient of their sum, (N, 3F)."""
    weight, bias, size = w.readout_norm_weight, w.readout_norm_bias, w.readout_norm_size
    x, mean, inverse = padded_layer_norm(invariants, weight, bias, size)
    outputs, linear = perceptron(w.values, x)
    one = torch.ones_like(outputs)
    if not w.gates:
        g = perceptron_adjoint(w.values, linear, one)
    else:
        values, (gates, gates_linear) = outputs, perceptron(w.gates, x)
        outputs = values * gates
        g = perceptron_adjoint(w.values, linear, gates)
        g = g + perceptron_adjoint(w.gates, gates_linear, values)
    g = padded_layer_norm_adjoint(invariants, weight, bias, mean, inverse, g, size)
    return outputs.squeeze(1), g
