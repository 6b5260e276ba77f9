r"""The stages of TensorNet: value, gradient, and the tangents of both.

The notation is that of `atoms`. A stage is called in this order: `value`, `back`, `tangent`,
`back_tangent`; each keeps what the next ones need. `back_tangent` also computes the gradients of
the loss for the stage's weights, under the names of the weights with ``g_`` before.
"""

from __future__ import annotations

from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from . import atoms, edges
from .batch import Batch, Features, packed
from .layers import NormTangents, PerceptronTangents


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
    mix
        (irreps, width, width).
    norm, gate
        The function of the norms that scales the features.
    """

    def __init__(
        self, batch: Batch, receiver: Tensor, sender: Tensor, table: Tensor, at_zero: Tensor,
        mix: Tensor, norm: NormTangents, gate: PerceptronTangents,
    ) -> None:  # fmt: skip
        self.batch, self.norm, self.gate = batch, norm, gate
        self.receiver, self.sender, self.table = receiver, sender, table
        self.at_zero, self.mix = at_zero, mix
        self.matrices, self.transposes = packed(mix.mT), packed(mix)

    def value(self) -> Features:
        """The features."""
        batch = self.batch
        [self.sums] = [sums] = batch.new(1)
        batch.run(
            edges.embed, batch.edges, self.table, self.at_zero, self.receiver, self.sender, sums
        )
        self.scale = batch.factors(self.gate.value(self.norm.value(self._inner(sums, sums))))
        self.mixed, x = batch.new(2)
        batch.run(atoms.embed_out, sums, self.matrices, self.scale, self.mixed, x)
        return x

    def _inner(self, x: Features, y: Features) -> Tensor:
        found = torch.empty(self.batch.layout.atoms, self.batch.width, dtype=self.batch.dtype)
        self.batch.run(atoms.inner, x, y, found)
        return found[:, : self.batch.channels]

    def back(self, g: Features, g_lengths: Tensor) -> Tensor:
        """Gradients of the directions, (E, n), from those of the features; adds to (E,)."""
        batch = self.batch
        self.g, g_scale = g, batch.new_factors()
        self.g_mixed, self.g_sums = batch.new(2)
        batch.run(
            atoms.embed_out_back, g, self.transposes, self.scale, self.mixed, g_scale,
            self.g_mixed, self.g_sums,
        )  # fmt: skip
        g_norms = self.norm.back(self.gate.back(batch.side_by_side(g_scale)))
        self.g_norms = 2 * batch.padded(g_norms)
        batch.run(atoms.add_times, self.g_norms, self.sums, self.g_sums)
        g_directions = torch.empty(len(batch.edges.sender), sum(batch.sizes), dtype=batch.dtype)
        batch.run(
            edges.embed_back, batch.edges, self.table, self.receiver, self.sender, self.g_sums,
            g_lengths, g_directions,
        )  # fmt: skip
        return g_directions

    def tangent(self, d_lengths: Tensor, d_directions: Tensor) -> Features:
        """Tangent of the features from those of lengths and directions."""
        batch, sums = self.batch, self.sums
        [self.d_sums] = [d_sums] = batch.new(1)
        self.d_lengths, self.d_directions = d_lengths, d_directions
        batch.run(
            edges.embed_tangent, batch.edges, self.table, d_lengths, d_directions, self.receiver,
            self.sender, d_sums,
        )  # fmt: skip
        d_norms = 2 * self._inner(sums, d_sums)
        self.d_scale = batch.factors(self.gate.tangent(self.norm.tangent(d_norms)))
        self.d_mixed, dx = batch.new(2)
        batch.run(
            atoms.embed_out_tangent, d_sums, self.matrices, self.scale, self.d_scale, self.mixed,
            self.d_mixed, dx,
        )  # fmt: skip
        return dx

    def back_tangent(self, dg: Features) -> None:
        """Gradients of the weights from the tangent of the features' gradient."""
        batch, dg_scale = self.batch, self.batch.new_factors()
        dg_mixed, dg_sums = batch.new(2)
        batch.run(
            atoms.embed_out_back_tangent, self.g, dg, self.transposes, self.scale, self.d_scale,
            self.mixed, self.d_mixed, dg_scale, dg_mixed, dg_sums,
        )  # fmt: skip
        self.g_mix = batch.products(self.g_mixed, dg_mixed, self.sums, self.d_sums)
        dg_norms = self.norm.back_tangent(self.gate.back_tangent(batch.side_by_side(dg_scale)))
        dg_norms = 2 * batch.padded(dg_norms)
        batch.run(atoms.add_times_tangent, self.g_norms, dg_norms, self.sums, self.d_sums, dg_sums)
        self.g_receiver, self.g_sender, self.g_table, self.g_at_zero = (
            torch.zeros_like(x) for x in (self.receiver, self.sender, self.table, self.at_zero)
        )
        batch.run(
            edges.embed_table, batch.edges, self.table, self.at_zero, self.d_lengths,
            self.d_directions, self.receiver, self.sender, self.g_sums, dg_sums, self.g_receiver,
            self.g_sender, self.g_table, self.g_at_zero,
        )  # fmt: skip


class InteractionStage:
    """A layer of message passing.

    Parameters
    ----------
    batch, table, at_zero
        As those of `EmbeddingStage`.
    mix_in, mix_out
        (irreps, width, width).
    """

    def __init__(
        self, batch: Batch, table: Tensor, at_zero: Tensor, mix_in: Tensor, mix_out: Tensor
    ) -> None:
        self.batch, self.table, self.at_zero = batch, table, at_zero
        self.mix_in, self.mix_out = mix_in, mix_out
        self.matrices = [packed(mix.mT) for mix in (mix_in, mix_out)]
        self.transposes = [packed(mix) for mix in (mix_in, mix_out)]

    def value(self, x: Features) -> Features:
        """Features after the layer from those before it."""
        batch, self.x = self.batch, x
        self.u, self.y, self.m, self.c, self.t, self.delta, after = batch.new(7)
        batch.run(atoms.enter, x, self.u, self.matrices[0], self.y)
        batch.run(edges.gather, batch.edges, self.table, self.at_zero, self.y, self.m)
        batch.run(
            atoms.interact, self.u, self.y, self.m, batch.charge, self.c, self.t,
            self.matrices[1], self.delta, after,
        )  # fmt: skip
        return after

    def back(self, g: Features, g_lengths: NDArray[Any]) -> Features:
        """Gradient of the features before from that of those after; adds to (chunks, E)."""
        batch, self.g = self.batch, g
        self.g_delta, self.g_y, self.g_t, self.g_m, self.g_u, direct, g_x = batch.new(7)
        batch.run(
            atoms.interact_back, self.y, self.m, batch.charge, self.c, self.delta, g,
            self.g_delta, self.transposes[1], self.g_t, direct, self.g_m,
        )  # fmt: skip
        batch.run(
            edges.gather_back, batch.edges, self.table, self.at_zero, self.y, self.g_m, direct,
            self.g_y, g_lengths,
        )  # fmt: skip
        batch.run(atoms.enter_back, self.x, self.g_y, self.transposes[0], g, self.g_u, g_x)
        return g_x

    def tangent(self, dx: Features, d_lengths: Tensor) -> Features:
        """Tangent of `value`."""
        batch, self.dx, self.d_lengths = self.batch, dx, d_lengths
        self.du, self.dy, self.dm, self.dc, self.dt, self.d_delta, after = batch.new(7)
        batch.run(atoms.enter_tangent, self.x, dx, self.du, self.matrices[0], self.dy)
        batch.run(
            edges.gather_tangent, batch.edges, self.table, self.at_zero, d_lengths, self.y,
            self.dy, self.dm,
        )  # fmt: skip
        batch.run(
            atoms.interact_tangent, self.du, self.y, self.dy, self.m, self.dm, batch.charge,
            self.c, self.dc, self.dt, self.matrices[1], self.delta, self.d_delta, after,
        )  # fmt: skip
        return after

    def back_tangent(self, dg: Features) -> Features:
        """Tangent of `back`, and the gradients of the weights."""
        batch = self.batch
        self.g_table, self.g_at_zero = map(torch.zeros_like, (self.table, self.at_zero))
        dg_delta, dg_y, dg_m, direct, dg_x = batch.new(5)
        batch.run(
            atoms.interact_back_tangent, self.y, self.dy, self.m, self.dm, batch.charge,
            self.c, self.dc, self.delta, self.d_delta, self.g, dg, dg_delta, self.transposes[1],
            self.g_t, direct, dg_m,
        )  # fmt: skip
        self.g_mix_out = batch.products(self.g_delta, dg_delta, self.t, self.dt)
        batch.run(
            edges.gather_back_tangent, batch.edges, self.table, self.at_zero, self.d_lengths,
            self.y, self.dy, self.g_m, dg_m, direct, dg_y, self.g_table, self.g_at_zero,
        )  # fmt: skip
        self.g_mix_in = batch.products(self.g_y, dg_y, self.u, self.du)
        batch.run(
            atoms.enter_back_tangent, self.x, self.dx, dg_y, self.transposes[0], dg,
            self.g_u, dg_x,
        )  # fmt: skip
        return dg_x


class ReadoutStage:
    """From features to the outputs of atoms, a function of the norms of their irreps.

    Parameters
    ----------
    batch
        The batch.
    norm, head
        The function.
    """

    def __init__(self, batch: Batch, norm: NormTangents, head: PerceptronTangents) -> None:
        self.batch, self.norm, self.head = batch, norm, head

    def value(self, x: Features) -> Tensor:
        """(N, 1)."""
        self.x = x
        return self.head.value(self.norm.value(self._inner(x, x)))

    def _inner(self, x: Features, y: Features) -> Tensor:
        found = self.batch.new_factors()
        self.batch.run(atoms.inner_by_irrep, x, y, found)
        return self.batch.side_by_side(found)

    def back(self, g: Tensor) -> Features:
        """Gradient of the features from that of the outputs."""
        [g_x] = self.batch.new(1)
        self.g_norms = 2 * self.batch.factors(self.norm.back(self.head.back(g)))
        self.batch.run(atoms.times_irreps, self.g_norms, self.x, g_x)
        return g_x

    def tangent(self, dx: Features) -> Tensor:
        """Tangent of the outputs."""
        self.dx = dx
        return self.head.tangent(self.norm.tangent(2 * self._inner(self.x, dx)))

    def back_tangent(self, dg: Tensor) -> Features:
        """Tangent of the features' gradient from that of the outputs'."""
        [dg_x] = self.batch.new(1)
        dg_norms = 2 * self.batch.factors(self.norm.back_tangent(self.head.back_tangent(dg)))
        self.batch.run(atoms.times_irreps_tangent, self.g_norms, dg_norms, self.x, self.dx, dg_x)
        return dg_x
