"""Dense layers of the rows of a batch; the equations are in `layers`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ...heads.energy import PaddedLayerNorm
from ...inference.kernels.cpu.perceptron import ACTIVATIONS
from ...inference.kernels.cpu.simd import LANES
from ...maths.activations import activation
from . import layers
from .memory import Memory, flat, joined, zeros
from .products import pack


@dataclass
class Dense:
    """A layer norm and the dense layers behind it, or their gradients.

    Their numbers are multiples of sixteen, padded with zeros.
    """

    weights: list[Tensor]
    biases: list[Tensor]
    norm_weight: Tensor | None = None
    norm_bias: Tensor | None = None

    def tensors(self) -> list[Tensor]:
        """All tensors in a fixed order."""
        norm = [x for x in (self.norm_weight, self.norm_bias) if x is not None]
        return [*norm, *self.weights, *self.biases]


@dataclass(frozen=True)
class Kinds:
    """What is known of dense layers besides their weights."""

    activations: Sequence[int]
    """Activation of each layer, as its place in `perceptron.ACTIVATIONS`."""
    norm_size: int = 1
    """Count of numbers in the layer norm, of which some may be left out because they are zero."""
    epsilon: float = 0.0


class DenseTangents:
    """Dense layers of rows: called in the order `value`, `back`, `tangent`, `back_tangent`.

    Parameters
    ----------
    dense, kinds
        The layers.
    rows
        Number of rows.
    memory
        Memory for what one call keeps for the next ones.
    """

    def __init__(self, dense: Dense, kinds: Kinds, rows: int, memory: Memory) -> None:
        self.dense, self.memory, self.rows = dense, memory, rows
        weights = joined(dense.weights)
        self.dtype = weights.dtype
        inputs = dense.weights[0].shape[1] // LANES
        self.chunks = [inputs, *(len(w) // LANES for w in dense.weights)]
        matrices, transposes = self._take(weights.size), self._take(weights.size)
        norm = [dense.norm_weight, dense.norm_bias]
        chunks = np.array(self.chunks)
        pack(chunks, weights, matrices, transposes)
        self.layers = layers.Layers(
            rows=LANES * np.arange(rows),
            chunks=chunks,
            activations=np.array(kinds.activations),
            matrices=matrices,
            transposes=transposes,
            biases=joined(dense.biases),
            zeros=np.zeros(max(self.chunks) * LANES, self.dtype),
            norm_weight=matrices[:0] if norm[0] is None else flat(norm[0]),
            norm_bias=matrices[:0] if norm[1] is None else flat(norm[1]),
            norm_size=kinds.norm_size,
            epsilon=kinds.epsilon,
        )

    def _take(self, size: int) -> NDArray[Any]:
        return self.memory.take(size, self.dtype)

    def _places(self, first: int = 0, last: int | None = None) -> int:
        return sum(self.chunks[first:last]) * self.rows * LANES

    def value(self, raw: NDArray[Any]) -> NDArray[Any]:
        """Outputs (chunks, rows, 16) of the inputs."""
        normed = self._places(0, 1) if self.dense.norm_weight is not None else 0
        after = self._places(1)
        self.v = layers.Values(
            x=self._take(self._places()),
            slopes=self._take(after),
            curvatures=self._take(after),
            hat=self._take(normed),
            rho=self._take(self.rows),
            g=self._take(self._places()),
            g_z=self._take(after),
            g_norm=self._take(normed),
            projection=self._take(self.rows),
        )
        if not normed:
            self.v.x[: raw.size] = raw
        layers.value(self.layers, raw, self.v)
        return self.v.x[self._places(0, -1) :]

    @property
    def g(self) -> NDArray[Any]:
        """Where `back` reads the gradient of the outputs."""
        return self.v.g[self._places(0, -1) :]

    @property
    def dg(self) -> NDArray[Any]:
        """Where `back_tangent` reads the tangent of that gradient."""
        return self.d.g[self._places(0, -1) :]

    def back(self) -> NDArray[Any]:
        """Gradient of the inputs."""
        layers.back(self.layers, self.v)
        return self.v.g_norm if self.v.g_norm.size else self.v.g[: self._places(0, 1)]

    def tangent(self, draw: NDArray[Any]) -> NDArray[Any]:
        """Tangent of the outputs from that of the inputs, with a layer norm."""
        self.d = layers.Tangents(
            x=self._take(self._places()),
            z=self._take(self._places(1)),
            hat=self._take(self._places(0, 1)),
            ratio=self._take(self.rows),
            g=self._take(self._places()),
            g_z=self._take(self._places(1)),
            g_norm=self._take(self._places(0, 1)),
        )
        layers.tangent(self.layers, draw, self.v, self.d)
        return self.d.x[self._places(0, -1) :]

    def back_tangent(self) -> NDArray[Any]:
        """Tangent of the gradient of the inputs."""
        layers.back_tangent(self.layers, self.v, self.d)
        return self.d.g_norm

    # Gradients of the weights

    def gradients(self) -> Dense:
        r"""Of :math:`\sum \bar y y` over the outputs."""
        return self._gradients([(self.v.g_z, self.v.x)])

    def gradients_of_tangents(self) -> Dense:
        r"""Of :math:`\sum \tilde y y + \bar y \dot y`, with the weights' own share in y only."""
        found = self._gradients([(self.d.g_z, self.v.x), (self.v.g_z, self.d.x)])
        weight, bias = zeros(2, self.chunks[0] * LANES, dtype=self.dtype)
        layers.add_norm_weights(self.layers, self.v, self.d, flat(weight), flat(bias))
        found.norm_weight, found.norm_bias = weight, bias
        return found

    def _gradients(self, pairs: Sequence[tuple[NDArray[Any], NDArray[Any]]]) -> Dense:
        weights, biases = self.dense.weights, self.dense.biases
        of_weights = zeros(sum(w.numel() for w in weights), dtype=self.dtype)
        of_biases = zeros(sum(b.numel() for b in biases), dtype=self.dtype)
        for k, (g_z, x) in enumerate(pairs):  # tangents of x have no share in b
            sums = flat(of_biases)[: 0 if k else None]
            layers.add_weights(self.layers, g_z, x, flat(of_weights), sums)
        split = torch.split(of_weights, [w.numel() for w in weights])
        return Dense(
            [part.view_as(w) for part, w in zip(split, weights, strict=True)],
            list(torch.split(of_biases, [b.numel() for b in biases])),
        )


def padded(x: Tensor, parts: int) -> Tensor:
    """Pad each of the equal parts of the last dimension with zeros to a multiple of sixteen."""
    size = x.shape[-1] // parts
    if size % LANES == 0:
        return x
    pieces = x.reshape(*x.shape[:-1], parts, size)
    return nn.functional.pad(pieces, (0, -size % LANES)).flatten(-2)


def dense_layers(
    modules: Iterable[nn.Module], norm: nn.LayerNorm | PaddedLayerNorm | None = None,
    norm_size: int = 1, first: int = 1, last: int = 1,
) -> tuple[Dense, Kinds]:  # fmt: skip
    """The weights of a layer norm and linear layers, padded, and the activation of each layer.

    ``first`` and ``last`` are the numbers of equal parts of inputs and outputs.
    """
    linear: list[nn.Linear] = []
    activations: list[int] = []
    for module in modules:
        if isinstance(module, nn.Linear):
            linear.append(module)
            activations.append(0)
        else:
            activations[-1] = place_of(module)
    weights, biases = [], []
    for k, module in enumerate(linear):
        weight = padded(module.weight, first if k == 0 else 1)
        outputs = last if module is linear[-1] else 1
        weights.append(padded(weight.t(), outputs).t().contiguous())
        biases.append(padded(module.bias, outputs))
    if norm is None:
        return Dense(weights, biases), Kinds(activations)
    of_norm = padded(norm.weight, first), padded(norm.bias, first)
    return Dense(weights, biases, *of_norm), Kinds(activations, norm_size, norm.eps)


def place_of(module: nn.Module) -> int:
    """Place of an activation in ``ACTIVATIONS``.

    Raises
    ------
    ValueError
        If the module is none of them.
    """
    for name in ACTIVATIONS[1:]:
        if type(module) is type(activation(name)):
            return ACTIVATIONS.index(name)
    raise ValueError(
        f"{type(module).__name__} is no activation: expected {', '.join(ACTIVATIONS[1:])}"
    )
