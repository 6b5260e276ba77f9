r"""The stages of TensorNet: value, gradient, and the tangents of both.

The notation is that of `atoms`. A stage is called in this order: `value`, `back`, `tangent`,
`back_tangent`; each keeps what the next ones need. `back_tangent` also computes the gradients of
the loss for the stage's weights, under the names of the weights with ``g_`` before.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from numpy.typing import NDArray
from torch import Tensor

from . import atoms, edges
from .batch import Batch, Features
from .memory import flat, zeros
from .perceptrons import DenseTangents


class Radial:
    """Factors of the edges of a stage, and the gradients for them."""

    def __init__(self, table: Tensor, at_zero: Tensor) -> None:
        self.table, self.at_zero = flat(table), flat(at_zero)
        self.g_table, self.g_at_zero = (
            zeros(*table.shape, dtype=flat(table).dtype),
            zeros(*at_zero.shape, dtype=flat(at_zero).dtype),
        )

    @property
    def both(self) -> tuple[Features, Features]:
        """Table, and factors of an atom's message to itself."""
        return self.table, self.at_zero

    @property
    def gradients(self) -> tuple[Features, Features]:
        """Where the gradients of both are added."""
        return flat(self.g_table), flat(self.g_at_zero)


class EmbeddingStage:
    """From edges to the features that enter the first layer.

    Parameters
    ----------
    batch
        The batch.
    receiver, sender
        Species factors, (species, width).
    table
        (chunks, rows, irreps, 16).
    at_zero
        Factors of an atom's message to itself, (irreps, width).
    matrices, transposes
        Matrices that mix channels, and their transposes, packed.
    gate
        The function of the norms that scales the features.
    """

    def __init__(
        self, batch: Batch, receiver: Tensor, sender: Tensor, table: Tensor, at_zero: Tensor,
        matrices: Features, transposes: Features, gate: DenseTangents,
    ) -> None:  # fmt: skip
        self.batch, self.gate, self.radial = batch, gate, Radial(table, at_zero)
        self.receiver, self.sender = flat(receiver), flat(sender)
        self.g_receiver, self.g_sender = (
            zeros(*receiver.shape, dtype=flat(receiver).dtype),
            zeros(*sender.shape, dtype=flat(sender).dtype),
        )
        self.matrices, self.transposes = matrices, transposes

    def value(self) -> Features:
        """The features."""
        batch = self.batch
        self.sums, self.mixed, x = batch.new(3)
        norms = batch.new_factors()
        edges.embed(
            batch.layout, batch.edges, *self.radial.both, self.receiver, self.sender, self.sums,
            norms,
        )  # fmt: skip
        self.scale = self.gate.value(norms)
        atoms.embed_out(batch.layout, self.sums, self.matrices, self.scale, self.mixed, x)
        return x

    def back(self, g: Features, g_lengths: NDArray[Any]) -> NDArray[Any]:
        """Gradients of the directions, flat (E, n), from those of the features; adds to (E,)."""
        batch = self.batch
        self.g, (self.g_mixed, self.g_sums) = g, batch.new(2)
        atoms.embed_out_back(
            batch.layout, g, self.transposes, self.scale, self.mixed, self.gate.g, self.g_mixed,
            self.g_sums,
        )  # fmt: skip
        self.g_norms = self.gate.back()
        g_directions = batch.memory.take(batch.edges.directions.size, g.dtype)
        edges.embed_back(
            batch.layout, batch.edges, self.radial.table, self.receiver, self.sender, self.g_norms,
            self.sums, self.g_sums, g_lengths, g_directions,
        )  # fmt: skip
        return g_directions

    def tangent(self, d_lengths: NDArray[Any], d_directions: NDArray[Any]) -> Features:
        """Tangent of the features from those of lengths and directions."""
        batch = self.batch
        self.d_lengths, self.d_directions = d_lengths, d_directions
        self.d_sums, self.d_mixed, dx = batch.new(3)
        d_norms = batch.new_factors()
        edges.embed_tangent(
            batch.layout, batch.edges, self.radial.table, d_lengths, d_directions, self.receiver,
            self.sender, self.sums, self.d_sums, d_norms,
        )  # fmt: skip
        self.d_scale = self.gate.tangent(d_norms)
        atoms.embed_out_tangent(
            batch.layout, self.d_sums, self.matrices, self.scale, self.d_scale, self.mixed,
            self.d_mixed, dx,
        )  # fmt: skip
        return dx

    def back_tangent(self, dg: Features) -> None:
        """Gradients of the weights from the tangent of the features' gradient."""
        batch = self.batch
        dg_mixed, dg_sums = batch.new(2)
        atoms.embed_out_back_tangent(
            batch.layout, self.g, dg, self.transposes, self.scale, self.d_scale, self.mixed,
            self.d_mixed, self.gate.dg, dg_mixed, dg_sums,
        )  # fmt: skip
        self.g_mix = batch.products(self.g_mixed, dg_mixed, self.sums, self.d_sums)
        edges.embed_table(
            batch.layout, batch.edges, *self.radial.both, self.d_lengths, self.d_directions,
            self.receiver, self.sender, self.g_norms, self.gate.back_tangent(), self.sums,
            self.d_sums, self.g_sums, dg_sums, flat(self.g_receiver), flat(self.g_sender),
            *self.radial.gradients,
        )  # fmt: skip


class InteractionStage:
    """A layer of message passing.

    Parameters
    ----------
    batch, table, at_zero
        As those of `EmbeddingStage`.
    matrices, transposes
        Those of mix_in and of mix_out.
    """

    def __init__(
        self, batch: Batch, table: Tensor, at_zero: Tensor, matrices: Sequence[Features],
        transposes: Sequence[Features],
    ) -> None:  # fmt: skip
        self.batch, self.radial = batch, Radial(table, at_zero)
        self.matrices, self.transposes = matrices, transposes

    def value(self, x: Features) -> Features:
        """Features after the layer from those before it."""
        batch, self.x = self.batch, x
        self.u, self.y, self.m, self.c, self.t, self.delta, after = batch.new(7)
        atoms.enter(batch.layout, x, self.u, self.matrices[0], self.y)
        edges.gather(batch.layout, batch.edges, *self.radial.both, self.y, self.m)
        atoms.interact(
            batch.layout, self.u, self.y, self.m, batch.charge, self.c, self.t, self.matrices[1],
            self.delta, after,
        )  # fmt: skip
        return after

    def back(self, g: Features, g_lengths: NDArray[Any]) -> Features:
        """Gradient of the features before from that of those after; adds to (chunks, E)."""
        batch, self.g = self.batch, g
        self.g_delta, self.g_y, self.g_t, self.g_m, self.g_u, direct, g_x = batch.new(7)
        atoms.interact_back(
            batch.layout, self.y, self.m, batch.charge, self.c, self.delta, g, self.g_delta,
            self.transposes[1], self.g_t, direct, self.g_m,
        )  # fmt: skip
        edges.gather_back(
            batch.layout, batch.edges, *self.radial.both, self.y, self.g_m, direct, self.g_y,
            g_lengths,
        )  # fmt: skip
        atoms.enter_back(batch.layout, self.x, self.g_y, self.transposes[0], g, self.g_u, g_x)
        return g_x

    def tangent(self, dx: Features, d_lengths: NDArray[Any]) -> Features:
        """Tangent of `value`."""
        batch, self.dx, self.d_lengths = self.batch, dx, d_lengths
        self.du, self.dy, self.dm, self.dc, self.dt, self.d_delta, after = batch.new(7)
        atoms.enter_tangent(batch.layout, self.x, dx, self.du, self.matrices[0], self.dy)
        edges.gather_tangent(
            batch.layout, batch.edges, *self.radial.both, d_lengths, self.y, self.dy, self.dm
        )
        atoms.interact_tangent(
            batch.layout, self.du, self.y, self.dy, self.m, self.dm, batch.charge, self.c, self.dc,
            self.dt, self.matrices[1], self.delta, self.d_delta, after,
        )  # fmt: skip
        return after

    def back_tangent(self, dg: Features) -> Features:
        """Tangent of `back`, and the gradients of the weights."""
        batch = self.batch
        dg_delta, dg_y, dg_m, direct, dg_x = batch.new(5)
        atoms.interact_back_tangent(
            batch.layout, self.y, self.dy, self.m, self.dm, batch.charge, self.c, self.dc,
            self.delta, self.d_delta, self.g, dg, dg_delta, self.transposes[1], self.g_t, direct,
            dg_m,
        )  # fmt: skip
        self.g_mix_out = batch.products(self.g_delta, dg_delta, self.t, self.dt)
        edges.gather_back_tangent(
            batch.layout, batch.edges, *self.radial.both, self.d_lengths, self.y, self.dy,
            self.g_m, dg_m, direct, dg_y, *self.radial.gradients,
        )  # fmt: skip
        self.g_mix_in = batch.products(self.g_y, dg_y, self.u, self.du)
        atoms.enter_back_tangent(
            batch.layout, self.x, self.dx, dg_y, self.transposes[0], dg, self.g_u, dg_x
        )
        return dg_x


class ReadoutStage:
    """From features to the outputs of atoms, a function of the norms of their irreps.

    Parameters
    ----------
    batch
        The batch.
    head
        The function.
    """

    def __init__(self, batch: Batch, head: DenseTangents) -> None:
        self.batch, self.head = batch, head

    def value(self, x: Features) -> Features:
        """(1, N, 16), of which the first of sixteen is the output."""
        self.x, norms = x, self.batch.new_factors(len(self.batch.sizes))
        atoms.inner_by_irrep(self.batch.layout, x, x, 1.0, norms)
        return self.head.value(norms)

    def back(self) -> Features:
        """Gradient of the features from that of the outputs, ``head.g``."""
        [g_x] = self.batch.new(1)
        self.g_norms = self.head.back()
        atoms.irreps_back(self.batch.layout, self.g_norms, self.x, g_x)
        return g_x

    def tangent(self, dx: Features) -> None:
        """Tangents, of which those of the outputs are not needed."""
        self.dx, d_norms = dx, self.batch.new_factors(len(self.batch.sizes))
        atoms.inner_by_irrep(self.batch.layout, self.x, dx, 2.0, d_norms)
        self.head.tangent(d_norms)

    def back_tangent(self) -> Features:
        """Tangent of the features' gradient from that of the outputs', ``head.dg``."""
        [dg_x] = self.batch.new(1)
        dg_norms = self.head.back_tangent()
        atoms.irreps_back_tangent(self.batch.layout, self.g_norms, dg_norms, self.x, self.dx, dg_x)
        return dg_x
