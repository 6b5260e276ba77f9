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
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from .batch import Batch
from .layers import NormTangents, PerceptronTangents
from .stages import EmbeddingStage, InteractionStage, ReadoutStage


@dataclass
class Dense:
    """A layer norm and the dense layers behind it."""

    norm_weight: Tensor
    norm_bias: Tensor
    weights: list[Tensor]
    biases: list[Tensor]


@dataclass
class Functions:
    """What is known of the dense layers besides their weights."""

    gate: list[nn.Module]
    """Activations of the embedding's gate."""
    head: list[nn.Module]
    norm_size: int
    """Count of numbers in the readout's layer norm."""
    epsilon: float
    """Of both layer norms."""


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
        for dense in (self.gate, self.head):
            found += [dense.norm_weight, dense.norm_bias, *dense.weights, *dense.biases]
        return found

    def filled(self, tensors: Iterable[Tensor]) -> Weights:
        """Other tensors, in that order."""
        rest: Iterator[Tensor] = iter(tensors)

        def dense(like: Dense) -> Dense:
            return Dense(
                next(rest),
                next(rest),
                [next(rest) for _ in like.weights],
                [next(rest) for _ in like.biases],
            )

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
        gate, head, epsilon = w.gate, w.head, functions.epsilon
        self.embedding = EmbeddingStage(
            batch, w.receiver, w.sender, w.tables[0], w.at_zero[0], w.mixes[0],
            NormTangents(gate.norm_weight, gate.norm_bias, batch.channels, epsilon),
            PerceptronTangents(gate.weights, gate.biases, functions.gate),
        )  # fmt: skip
        self.layers = [
            InteractionStage(batch, *each)
            for each in zip(w.tables[1:], w.at_zero[1:], w.mixes[1::2], w.mixes[2::2], strict=True)
        ]
        self.readout = ReadoutStage(
            batch,
            NormTangents(head.norm_weight, head.norm_bias, functions.norm_size, epsilon),
            PerceptronTangents(head.weights, head.biases, functions.head),
        )

    def values(self) -> tuple[Tensor, Tensor, Tensor]:
        """Outputs (N,), and the derivatives of their sum by lengths (E,) and directions (E, n)."""
        x = self.embedding.value()
        for layer in self.layers:
            x = layer.value(x)
        outputs = self.readout.value(x)

        g = self.readout.back(torch.ones_like(outputs))
        chunks, edges = self.batch.layout.chunks, len(self.batch.edges.sender)
        by_chunk = np.zeros((chunks, edges), self.batch.charge.dtype)
        for layer in reversed(self.layers):
            g = layer.back(g, by_chunk)
        g_lengths = torch.from_numpy(by_chunk.sum(0))
        return outputs.squeeze(1), g_lengths, self.embedding.back(g, g_lengths)

    def gradients(self, c: Tensor, d_lengths: Tensor, d_directions: Tensor) -> Weights:
        """Gradients of the loss from its derivatives by the results of `values`."""
        self.batch.check()
        d_lengths = d_lengths.contiguous()
        dx = self.embedding.tangent(d_lengths, d_directions.contiguous())
        for layer in self.layers:
            dx = layer.tangent(dx, d_lengths)
        self.readout.tangent(dx)

        dg = self.readout.back_tangent(c.unsqueeze(1))
        for layer in reversed(self.layers):
            dg = layer.back_tangent(dg)
        self.embedding.back_tangent(dg)
        embedding, readout = self.embedding, self.readout
        mixes = [m for layer in self.layers for m in (layer.g_mix_in, layer.g_mix_out)]
        return Weights(
            receiver=embedding.g_receiver,
            sender=embedding.g_sender,
            tables=[embedding.g_table, *(layer.g_table for layer in self.layers)],
            at_zero=[embedding.g_at_zero, *(layer.g_at_zero for layer in self.layers)],
            mixes=[embedding.g_mix, *mixes],
            gate=gradients_of(embedding.norm, embedding.gate),
            head=gradients_of(readout.norm, readout.head),
        )


def gradients_of(norm: NormTangents, perceptron: PerceptronTangents) -> Dense:
    """The gradients that both have computed."""
    return Dense(norm.g_weight, norm.g_bias, perceptron.g_weights, perceptron.g_biases)


class Energies(torch.autograd.Function):
    """`Evaluation` for autograd: (batch, functions, weights, their tensors) -> its values."""

    @staticmethod
    def forward(
        ctx: Any, batch: Batch, functions: Functions, like: Weights, *tensors: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """See `Evaluation.values`."""
        ctx.evaluation = Evaluation(batch, functions, like.filled(tensors))
        return ctx.evaluation.values()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *derivatives: Tensor) -> tuple[Tensor | None, ...]:
        """See `Evaluation.gradients`."""
        return None, None, None, *ctx.evaluation.gradients(*derivatives).tensors()
