r"""TensorNet for training on a CPU: energies, their derivatives, and the gradient of both.

A loss is a function of the energies :math:`e_i` of atoms and of their sum's derivatives by the
lengths :math:`\bar r` and directions :math:`\bar D` of edges. With its derivatives by these,
:math:`c_i, \dot r, \dot D`, the gradient of the loss for the weights is

.. math::
    \frac{dL}{d\theta} = \frac{d}{d\theta} \left[ \sum_i c_i e_i + D_v \sum_i e_i \right]

where :math:`D_v` is the derivative along :math:`\dot r, \dot D`. `values` therefore computes
every quantity x and its gradient :math:`\bar x`; `gradients` computes their tangents
:math:`\dot x` and :math:`\tilde x` along that direction, where :math:`\tilde x` also has the share
of c, and the gradients of the weights, such as :math:`\tilde y^T x + \bar y^T \dot x` of a matrix.
No tape is kept, and nothing is differentiated twice: the equations of the operations are in
`atoms`, `edges` and `layers`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ...inference.kernels.cpu.components import shape_of
from ...inference.kernels.cpu.dense import pack_matrix
from ...inference.kernels.cpu.simd import LANES
from ...maths.cartesian import COMPONENTS
from . import atoms, edges
from .atoms import Layout
from .edges import Edges
from .launch import launch
from .layers import NormTangents, PerceptronTangents


class Features:
    """Components of all atoms and channels, laid out as kernels read them."""

    def __init__(self, buffer: Tensor) -> None:
        self.flat: NDArray[Any] = buffer.numpy()


class Pair(NamedTuple):
    """Two features behind each other, which a matrix product takes at once."""

    first: Features
    second: Features
    both: Tensor
    """(components, 2 N, F)."""


class LayerValues(NamedTuple):
    """Values of an interaction layer."""

    x: Features
    """Features before the layer."""
    u: Pair
    """X / (|x|^2 + 1), and its tangent."""
    y: Features
    m: Features
    """Messages."""
    t: Pair
    """C / (|c|^2 + 1), and its tangent."""
    delta: Features


class LayerTangents(NamedTuple):
    """Tangents of values of an interaction layer."""

    x: Features
    y: Features
    m: Features
    delta: Features


class LayerGradients(NamedTuple):
    """Gradients of an interaction layer."""

    g: Features
    """Of the features after the layer."""
    g_delta: Pair
    """The tangent of the gradient, and the gradient."""
    g_t: Features
    g_m: Features
    g_y: Pair
    """As ``g_delta``."""
    g_u: Features


@dataclass
class Dense:
    """A layer norm and the dense layers behind it."""

    norm: tuple[Tensor, Tensor]
    """Weight and bias."""
    weights: list[Tensor]
    biases: list[Tensor]


@dataclass
class Weights:
    """Tensors for which `Energies` has gradients; channels of the first five are padded."""

    receiver: Tensor
    """(N, F), species factor of each atom as receiver."""
    sender: Tensor
    """(N, F)."""
    tables: list[Tensor]
    """(rows, irreps, F): the embedding's, then each layer's."""
    at_zero: list[Tensor]
    """(irreps, F), factors of an atom's message to itself."""
    mixes: list[Tensor]
    """(irreps, F, F): the embedding's, then each layer's mix_in and mix_out."""
    gate: Dense
    head: Dense

    def tensors(self) -> list[Tensor]:
        """All tensors in a fixed order."""
        found = [self.receiver, self.sender, *self.tables, *self.at_zero, *self.mixes]
        for dense in (self.gate, self.head):
            found += [*dense.norm, *dense.weights, *dense.biases]
        return found

    def filled(self, tensors: Iterable[Tensor]) -> Weights:
        """Other tensors in the same places."""
        rest = iter(tensors)

        def next_of(group: Iterable[Tensor]) -> list[Tensor]:
            return [next(rest) for _ in group]

        def dense(like: Dense) -> Dense:
            weight, bias = next_of(like.norm)
            return Dense((weight, bias), next_of(like.weights), next_of(like.biases))

        return Weights(
            *next_of((self.receiver, self.sender)),
            next_of(self.tables),
            next_of(self.at_zero),
            next_of(self.mixes),
            dense(self.gate),
            dense(self.head),
        )


@dataclass
class Shape:
    """What does not change during a training."""

    irreps: str
    channels: int
    parity_conserving: bool
    gate: list[nn.Module]
    """Activations of the embedding's gate."""
    head: list[nn.Module]
    norm_size: int
    """Count of numbers in the readout's layer norm."""
    epsilon: float


class Memory:
    """Arrays that one batch after the other uses: new ones would cost as much as their use."""

    def __init__(self) -> None:
        self._arrays: list[Tensor] = []
        self._taken = 0

    def start(self) -> None:
        """Let all arrays be taken again."""
        self._taken = 0

    def take(self, size: int, dtype: torch.dtype) -> Tensor:
        """An array (size,) without values, until the next start."""
        if self._taken == len(self._arrays):
            self._arrays.append(torch.empty(0, dtype=dtype))
        if self._arrays[self._taken].numel() < size:
            self._arrays[self._taken] = torch.empty(size + size // 4, dtype=dtype)
        self._taken += 1
        return self._arrays[self._taken - 1][:size]


class Evaluation:
    """One batch: `values`, then `gradients`.

    Parameters
    ----------
    shape
        The network.
    neighbors
        Edges of the batch.
    charge
        (N,), 1 + q / 10.
    memory
        Memory, used until the next evaluation that is given it.
    """

    def __init__(self, shape: Shape, neighbors: Edges, charge: Tensor, memory: Memory) -> None:
        memory.start()
        self.memory = memory
        self.shape, self.edges, self.charge = shape, neighbors, charge.numpy()
        self.dtype = charge.dtype
        self.sizes = [COMPONENTS[irrep] for irrep in shape.irreps]
        atoms_, width = charge.numel(), -(-shape.channels // LANES) * LANES
        components = sum(self.sizes)
        places = np.arange(atoms_)[:, None] * components * width
        rows = np.zeros((len(self.sizes), 5 * atoms_), np.int64)
        for k, size in enumerate(self.sizes):
            first = sum(self.sizes[:k])
            rows[k, : size * atoms_] = (places + width * np.arange(first, first + size)).ravel()
        self.layout = Layout(
            shape=shape_of(components),
            atoms=atoms_,
            width=width,
            row=components * width,
            sizes=np.array(self.sizes),
            rows=rows,
            zeros=np.zeros(width, self.charge.dtype),
            parity_conserving=shape.parity_conserving,
        )

    def new(self) -> Features:
        """Features without values."""
        size = self.layout.atoms * self.layout.row
        return Features(self.memory.take(size, self.dtype))

    def new_pair(self) -> Pair:
        """Two features without values."""
        size = self.layout.atoms * self.layout.row
        buffer = self.memory.take(2 * size, self.dtype)
        first, second = (Features(part) for part in buffer.view(2, -1))
        both = buffer.view(2 * self.layout.atoms, -1, self.layout.width).transpose(0, 1)
        return Pair(first, second, both)

    def run(self, function: Callable[..., None], *args: Any) -> None:
        """Run a kernel on features and arrays."""
        arrays = (
            x.flat if isinstance(x, Features) else x.view(-1).numpy() if torch.is_tensor(x) else x
            for x in args
        )
        launch(function, self.layout, *arrays)

    def factors(self, x: Tensor) -> Tensor:
        """(N, irreps F) -> factors of irreps, (N, irreps, width)."""
        return self.padded(x.view(len(x), len(self.sizes), self.shape.channels)).contiguous()

    def padded(self, x: Tensor) -> Tensor:
        """(..., F) with the padded channels."""
        missing = self.layout.width - x.shape[-1]
        return nn.functional.pad(x, (0, missing)) if missing else x

    def inner(self, x: Features, y: Features) -> Tensor:
        """Inner products of all components, (N, F)."""
        found = torch.empty(self.layout.atoms, self.layout.width, dtype=self.dtype)
        self.run(atoms.inner, x, y, found)
        return found[:, : self.shape.channels]

    def inner_by_irrep(self, x: Features, y: Features) -> Tensor:
        """Inner products of the irreps, (N, irreps F)."""
        found = self.new_factors()
        self.run(atoms.inner_by_irrep, x, y, found)
        return self.side_by_side(found)

    def new_factors(self) -> Tensor:
        """Factors of irreps, (N, irreps, width), without values."""
        return torch.empty(self.layout.atoms, len(self.sizes), self.layout.width, dtype=self.dtype)

    def side_by_side(self, x: Tensor) -> Tensor:
        """(N, irreps, width) -> (N, irreps F)."""
        return x[..., : self.shape.channels].flatten(1)

    def values(self, w: Weights) -> tuple[Tensor, Tensor, Tensor]:
        """Outputs (N,), and the derivatives of their sum by lengths (E,) and directions (E, n)."""
        self.w, run, shape = w, self.run, self.shape
        self.tables = [x.detach().numpy().reshape(-1) for x in w.tables]
        self.zeros = [x.detach().numpy().reshape(-1) for x in w.at_zero]
        self.mixes = [packed(mix.mT) for mix in w.mixes]
        self.transposes = [packed(mix) for mix in w.mixes]
        self.species = [x.detach().numpy().reshape(-1) for x in (w.receiver, w.sender)]
        self.norm = NormTangents(*w.gate.norm, shape.channels, shape.epsilon)
        self.gate = PerceptronTangents(w.gate.weights, w.gate.biases, shape.gate)
        self.last_norm = NormTangents(*w.head.norm, shape.norm_size, shape.epsilon)
        self.head = PerceptronTangents(w.head.weights, w.head.biases, shape.head)

        self.sums = self.new_pair()
        sums = self.sums.first
        run(edges.embed, self.edges, self.tables[0], self.zeros[0], *self.species, sums)
        norms = self.inner(sums, sums)
        self.scale = self.factors(self.gate.value(self.norm.value(norms)))
        self.unscaled, x = self.new(), self.new()
        run(atoms.embed_out, sums, self.mixes[0], self.scale, self.unscaled, x)
        self.layers: list[LayerValues] = []
        for k in range(1, len(w.tables)):
            y, m, delta, after = (self.new() for _ in range(4))
            u, t = self.new_pair(), self.new_pair()
            run(atoms.enter, x, u.first, self.mixes[2 * k - 1], y)
            run(edges.gather, self.edges, self.tables[k], self.zeros[k], y, m)
            run(
                atoms.interact,
                u.first,
                y,
                m,
                self.charge,
                t.first,
                self.mixes[2 * k],
                delta,
                after,
            )
            self.layers.append(LayerValues(x, u, y, m, t, delta))
            x = after
        self.x = x
        outputs = self.head.value(self.last_norm.value(self.inner_by_irrep(x, x)))
        return outputs.squeeze(1), *self._derivatives()

    def _derivatives(self) -> tuple[Tensor, Tensor]:
        w, run, edge_count = self.w, self.run, len(self.edges.sender)
        ones = torch.ones(self.layout.atoms, 1, dtype=self.dtype)
        self.g_invariants = 2 * self.factors(self.last_norm.back(self.head.back(ones)))
        g = self.new()
        run(atoms.times_irreps, self.g_invariants, self.x, g)
        by_chunk = np.zeros((self.layout.width // LANES, edge_count), self.charge.dtype)
        self.back: list[LayerGradients] = []
        for k in reversed(range(1, len(w.tables))):
            layer = self.layers[k - 1]
            g_t, direct, g_m, g_u, g_x = (self.new() for _ in range(5))
            g_delta, g_y = self.new_pair(), self.new_pair()
            run(
                atoms.interact_back, layer.y, layer.m, self.charge, layer.delta, g,
                g_delta.second, self.transposes[2 * k], g_t, direct, g_m,
            )  # fmt: skip
            run(
                edges.gather_back, self.edges, self.tables[k], self.zeros[k], layer.y, g_m, direct,
                g_y.second, by_chunk,
            )  # fmt: skip
            run(atoms.enter_back, layer.x, g_y.second, self.transposes[2 * k - 1], g, g_u, g_x)
            self.back.insert(0, LayerGradients(g, g_delta, g_t, g_m, g_y, g_u))
            g = g_x
        self.g_first = g
        self.g_unscaled, self.g_sums, g_scale = self.new_pair(), self.new(), self.new_factors()
        run(
            atoms.embed_out_back, g, self.transposes[0], self.scale, self.unscaled, g_scale,
            self.g_unscaled.second, self.g_sums,
        )  # fmt: skip
        g_norms = self.norm.back(self.gate.back(self.side_by_side(g_scale)))
        self.g_norms = 2 * self.padded(g_norms)
        run(atoms.add_times, self.g_norms, self.sums.first, self.g_sums)
        g_length = by_chunk.sum(0)
        g_direction = np.empty(edge_count * sum(self.sizes), self.charge.dtype)
        run(
            edges.embed_back, self.edges, self.tables[0], *self.species, self.g_sums, g_length,
            g_direction,
        )  # fmt: skip
        return (
            torch.from_numpy(g_length),
            torch.from_numpy(g_direction).view(edge_count, sum(self.sizes)),
        )

    def gradients(self, c: Tensor, dr: Tensor, d_directions: Tensor) -> Weights:
        """Gradients of the loss from its derivatives by the results of `values`."""
        w, run = self.w, self.run
        length = dr.contiguous().numpy()
        direction = d_directions.contiguous().numpy().reshape(-1)
        sums, d_sums = self.sums.first, self.sums.second
        run(
            edges.embed_tangent, self.edges, self.tables[0], length, direction, *self.species,
            d_sums,
        )  # fmt: skip
        d_norms = 2 * self.inner(sums, d_sums)
        d_scale = self.factors(self.gate.tangent(self.norm.tangent(d_norms)))
        d_unscaled, dx = self.new(), self.new()
        run(
            atoms.embed_out_tangent, d_sums, self.mixes[0], self.scale, d_scale, self.unscaled,
            d_unscaled, dx,
        )  # fmt: skip
        tangents: list[LayerTangents] = []
        for k, layer in enumerate(self.layers, 1):
            dy, dm, ddelta, after = (self.new() for _ in range(4))
            run(atoms.enter_tangent, layer.x, dx, layer.u.second, self.mixes[2 * k - 1], dy)
            run(
                edges.gather_tangent, self.edges, self.tables[k], self.zeros[k], length, layer.y,
                dy, dm,
            )  # fmt: skip
            run(
                atoms.interact_tangent, layer.u.second, layer.y, dy, layer.m, dm, self.charge,
                layer.t.second, self.mixes[2 * k], layer.delta, ddelta, after,
            )  # fmt: skip
            tangents.append(LayerTangents(dx, dy, dm, ddelta))
            dx = after
        self.head.tangent(self.last_norm.tangent(2 * self.inner_by_irrep(self.x, dx)))

        # The tangents of the gradients, from the last operation to the first.
        found = Weights(
            *(torch.zeros_like(x) for x in (w.receiver, w.sender)),
            *([torch.zeros_like(x) for x in group] for group in (w.tables, w.at_zero, w.mixes)),
            gate=w.gate,
            head=w.head,
        )
        tables = [x.numpy().reshape(-1) for x in found.tables]
        zeros = [x.numpy().reshape(-1) for x in found.at_zero]
        dg = self.new()
        dg_invariants = self.last_norm.back_tangent(self.head.back_tangent(c))
        run(atoms.times_irreps, 2 * self.factors(dg_invariants), self.x, dg)
        run(atoms.add_times_irreps, self.g_invariants, dx, dg)
        for k in reversed(range(1, len(w.tables))):
            layer, tangent, back = self.layers[k - 1], tangents[k - 1], self.back[k - 1]
            d_direct, dg_m, dg_x = (self.new() for _ in range(3))
            run(
                atoms.interact_back_tangent, layer.y, tangent.y, layer.m, tangent.m, self.charge,
                layer.delta, tangent.delta, back.g, dg, back.g_delta.first,
                self.transposes[2 * k], back.g_t, d_direct, dg_m,
            )  # fmt: skip
            add_products(found.mixes[2 * k], self.sizes, back.g_delta, layer.t)
            run(
                edges.gather_back_tangent, self.edges, self.tables[k], self.zeros[k], length,
                layer.y, tangent.y, back.g_m, dg_m, d_direct, back.g_y.first, tables[k], zeros[k],
            )  # fmt: skip
            add_products(found.mixes[2 * k - 1], self.sizes, back.g_y, layer.u)
            run(
                atoms.enter_back_tangent, layer.x, tangent.x, back.g_y.first, self.transposes[2 * k - 1],
                dg, back.g_u, dg_x,
            )  # fmt: skip
            dg = dg_x
        dg_sums, dg_scale = self.new(), self.new_factors()
        run(
            atoms.embed_out_back_tangent, self.g_first, dg, self.transposes[0], self.scale, d_scale,
            self.unscaled, d_unscaled, dg_scale, self.g_unscaled.first, dg_sums,
        )  # fmt: skip
        add_products(found.mixes[0], self.sizes, self.g_unscaled, self.sums)
        dg_norms = self.norm.back_tangent(self.gate.back_tangent(self.side_by_side(dg_scale)))
        run(atoms.add_times, 2 * self.padded(dg_norms), sums, dg_sums)
        run(atoms.add_times, self.g_norms, d_sums, dg_sums)
        run(
            edges.embed_table, self.edges, self.tables[0], self.zeros[0], length, direction,
            *self.species, self.g_sums, dg_sums, found.receiver.numpy().reshape(-1),
            found.sender.numpy().reshape(-1), tables[0], zeros[0],
        )  # fmt: skip
        found.gate = gradients_of(self.norm, self.gate)
        found.head = gradients_of(self.last_norm, self.head)
        return found


def add_products(matrices: Tensor, sizes: list[int], g: Pair, x: Pair) -> None:
    """Add the gradients of matrices (irreps, F, F) between features, from those of the results.

    The first of ``g`` are tangents of gradients, to be multiplied by values, the first of ``x``.
    """
    component = 0
    for matrix, size in zip(matrices, sizes, strict=True):
        for c in range(component, component + size):
            matrix.addmm_(g.both[c].t(), x.both[c])
        component += size


def packed(matrices: Tensor) -> NDArray[Any]:
    """Matrices (irreps, inputs, outputs), as kernels read them."""
    array = matrices.detach().numpy()
    return np.concatenate([pack_matrix(matrix) for matrix in array])


def gradients_of(norm: NormTangents, perceptron: PerceptronTangents) -> Dense:
    """The gradients that both have computed."""
    return Dense((norm.g_weight, norm.g_bias), perceptron.g_weights, perceptron.g_biases)


class Energies(torch.autograd.Function):
    """`Evaluation` for autograd: (evaluation, shape of the weights, tensors) -> its values."""

    @staticmethod
    def forward(ctx: Any, evaluation: Evaluation, like: Weights, *tensors: Tensor) -> Any:
        """See `Evaluation.values`."""
        ctx.evaluation = evaluation
        return evaluation.values(like.filled(tensors))

    @staticmethod
    @once_differentiable  # type: ignore[misc]
    def backward(ctx: Any, c: Tensor, dr: Tensor, d_directions: Tensor) -> Any:
        """See `Evaluation.gradients`."""
        found = ctx.evaluation.gradients(c.unsqueeze(1), dr, d_directions)
        return None, None, *found.tensors()
