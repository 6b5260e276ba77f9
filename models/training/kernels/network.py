r"""TensorNet for training on a CPU: energies, their derivatives, and the gradient of both.

A loss is a function of the outputs :math:`e_i` of atoms and of their sum's derivatives by the
lengths :math:`\bar r` and directions :math:`\bar D` of edges. With its derivatives by these,
:math:`c_i, \dot r, \dot D`, the gradient of the loss for the weights is

.. math::
    \frac{dL}{d\theta} = \frac{d}{d\theta} \left[ \sum_i c_i e_i + D_v \sum_i e_i \right]

where :math:`D_v` is the derivative along :math:`\dot r, \dot D`. `Evaluation.values` therefore
computes every quantity x and its gradient :math:`\bar x`; `Evaluation.gradients` computes their
tangents :math:`\dot x` and :math:`\tilde x` along that direction, where :math:`\tilde x` also has
the share of c, and the gradients of the weights, :math:`\tilde y x^T + \bar y \dot x^T` for a
matrix W in y = W x. No tape is kept, and nothing is differentiated twice. The equations of the
operations are in `atoms`, `edges` and `layers`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.autograd.function import once_differentiable

from ...inference.kernels.cpu.simd import LANES
from .batch import Batch
from .geometry import directions_back, directions_tangent
from .memory import joined
from .perceptrons import Dense, DenseTangents, Kinds
from .products import pack
from .stages import EmbeddingStage, InteractionStage, ReadoutStage


@dataclass
class Functions:
    """What is known of the dense layers besides their weights."""

    gate: Kinds
    """Those of the embedding's gate."""
    head: Kinds


@dataclass
class Weights:
    """The tensors for which there are gradients; ``width`` are channels, padded."""

    receiver: Tensor
    """(species, width), factors of atoms as receivers."""
    sender: Tensor
    """(species, width)."""
    tables: list[Tensor]
    """(chunks, rows, irreps, 16): the embedding's, then each layer's."""
    at_zero: list[Tensor]
    """(irreps, width), factors of an atom's message to itself."""
    mixes: list[Tensor]
    """(irreps, width, width): the embedding's, then each layer's mix_in and mix_out."""
    gate: Dense
    head: Dense

    def tensors(self) -> list[Tensor]:
        """All tensors in a fixed order."""
        found = [self.receiver, self.sender, *self.tables, *self.at_zero, *self.mixes]
        return [*found, *self.gate.tensors(), *self.head.tensors()]

    def filled(self, tensors: Iterable[Tensor]) -> Weights:
        """Other tensors, in that order."""
        rest: Iterator[Tensor] = iter(tensors)

        def dense(like: Dense) -> Dense:
            norm = next(rest), next(rest)
            weights = [next(rest) for _ in like.weights]
            return Dense(weights, [next(rest) for _ in like.biases], *norm)

        return Weights(
            receiver=next(rest),
            sender=next(rest),
            tables=[next(rest) for _ in self.tables],
            at_zero=[next(rest) for _ in self.at_zero],
            mixes=[next(rest) for _ in self.mixes],
            gate=dense(self.gate),
            head=dense(self.head),
        )


class Evaluation:
    """The network for one batch: `values`, then `gradients`."""

    def __init__(self, batch: Batch, functions: Functions, weights: Weights) -> None:
        w = self.weights = weights
        self.batch = batch
        layout, size = batch.layout, len(batch.sizes) * batch.width**2
        raw = joined(w.mixes)
        packed = [batch.memory.take(raw.size, raw.dtype) for _ in range(2)]
        sides = np.full(1 + len(w.mixes) * len(batch.sizes), layout.chunks)
        pack(sides, raw, *packed)
        matrices, transposes = ([x[k : k + size] for k in range(0, x.size, size)] for x in packed)
        gate = DenseTangents(w.gate, functions.gate, layout.atoms, batch.memory)
        self.embedding = EmbeddingStage(
            batch, w.receiver, w.sender, w.tables[0], w.at_zero[0], matrices[0], transposes[0],
            gate,
        )  # fmt: skip
        self.layers = [
            InteractionStage(
                batch, table, at_zero, *(x[1 + 2 * k : 3 + 2 * k] for x in (matrices, transposes))
            )
            for k, (table, at_zero) in enumerate(zip(w.tables[1:], w.at_zero[1:], strict=True))
        ]
        head = DenseTangents(w.head, functions.head, layout.atoms, batch.memory)
        self.readout = ReadoutStage(batch, head)

    def values(self) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
        """Outputs (N,), and derivatives of their sum by lengths (E,) and directions, flat (E, n).

        They are valid until the next batch.
        """
        x = self.embedding.value()
        for layer in self.layers:
            x = layer.value(x)
        outputs = of_rows(self.readout.value(x))
        of_rows(self.readout.head.g)[:] = 1
        g = self.readout.back()
        chunks, edges = self.batch.layout.chunks, len(self.batch.edges.sender)
        by_chunk = np.zeros((chunks, edges), self.batch.charge.dtype)
        for layer in reversed(self.layers):
            g = layer.back(g, by_chunk)
        g_lengths = by_chunk.sum(0)
        g_directions = self.embedding.back(g, g_lengths)
        return outputs, g_lengths, g_directions

    def gradients(
        self, c: NDArray[Any], d_lengths: NDArray[Any], d_directions: NDArray[Any]
    ) -> Weights:
        """Gradients of the loss from its derivatives by the results of `values`."""
        self.batch.check()
        dx = self.embedding.tangent(d_lengths, d_directions)
        for layer in self.layers:
            dx = layer.tangent(dx, d_lengths)
        self.readout.tangent(dx)

        of_rows(self.readout.head.dg)[:] = c
        dg = self.readout.back_tangent()
        for layer in reversed(self.layers):
            dg = layer.back_tangent(dg)
        self.embedding.back_tangent(dg)
        embedding, radial = self.embedding, [self.embedding.radial]
        radial += [layer.radial for layer in self.layers]
        mixes = [m for layer in self.layers for m in (layer.g_mix_in, layer.g_mix_out)]
        return Weights(
            receiver=embedding.g_receiver,
            sender=embedding.g_sender,
            tables=[each.g_table for each in radial],
            at_zero=[each.g_at_zero for each in radial],
            mixes=[embedding.g_mix, *mixes],
            gate=embedding.gate.gradients_of_tangents(),
            head=self.readout.head.gradients_of_tangents(),
        )


def of_rows(x: NDArray[Any]) -> NDArray[Any]:
    """The first of sixteen numbers of each row; sets the others to zero."""
    rows = x.reshape(-1, LANES)
    rows[:, 1:] = 0
    return rows[:, 0]


class Energies(torch.autograd.Function):
    """Outputs (N,), and derivatives of their sum by the vectors of edges, (E, 3) float64.

    From the batch, what is known of the dense layers, the vectors, the weights, and all tensors of
    these, for which there are gradients.
    """

    @staticmethod
    def forward(
        ctx: Any, batch: Batch, functions: Functions, vectors: NDArray[np.float64],
        like: Weights, *tensors: Tensor,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """See `Evaluation.values`."""
        ctx.vectors, ctx.batch = vectors, batch
        ctx.evaluation = Evaluation(batch, functions, like.filled(tensors))
        outputs, *derivatives = ctx.evaluation.values()
        gradient = np.empty_like(vectors)
        g_lengths, g_directions = derivatives
        directions_back(vectors, g_lengths, sum(batch.sizes), g_directions, gradient)
        return torch.from_numpy(outputs.copy()), torch.from_numpy(gradient)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, c: Tensor, d_vectors: Tensor) -> tuple[Tensor | None, ...]:
        """See `Evaluation.gradients`; the derivative by the gradient is a tangent of vectors."""
        batch, components = ctx.batch, sum(ctx.batch.sizes)
        lengths = batch.memory.take(len(ctx.vectors), batch.charge.dtype)
        directions = batch.memory.take(components * len(ctx.vectors), batch.charge.dtype)
        tangents = d_vectors.contiguous().numpy()
        directions_tangent(ctx.vectors, tangents, lengths, components, directions)
        gradients = ctx.evaluation.gradients(c.numpy(), lengths, directions)
        return None, None, None, None, *gradients.tensors()
