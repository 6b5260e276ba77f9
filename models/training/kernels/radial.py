r"""The factors of edges, from the radial networks, differentiable in their weights.

At pairs: a table holds the factors of each pair and their slopes, which forward-mode
differentiation gives. On knots: the networks are evaluated at equally spaced distances, whatever
the batch, and a cubic B-spline runs through their values (see `models.maths.splines`). Its error
falls with the fourth power of the distance between knots; that of its slope, and so of the forces,
with the third.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from numba import prange
from torch import Tensor

from ...graph import Pairs
from ...maths.splines import spline_weights
from ...networks.tensornet import TensorNet
from .launch import launch


class Radial(NamedTuple):
    """Factors of the edges as sums over rows of tables; see `edges`."""

    row: Tensor
    """(E,) int64."""
    weights: Tensor
    """(E, rows per edge)."""
    slopes: Tensor
    """(E, rows per edge)."""
    tables: list[Tensor]
    """(rows, irreps F), the embedding's, then each layer's."""
    at_zero: list[Tensor]
    """(irreps F,)."""


def radial_at_pairs(network: TensorNet, distances: Tensor, pairs: Pairs) -> Radial:
    """The factors of the pairs themselves; ``distances`` (E,) in the network's unit."""
    lengths = distances.index_select(0, pairs.one)

    def factors(r: Tensor) -> tuple[Tensor, ...]:
        return tuple(network.edge_factors(r))

    values, slopes = torch.func.jvp(factors, (lengths,), (torch.ones_like(lengths),))
    edges = len(distances)
    return Radial(
        row=2 * pairs.of_edge,
        weights=distances.new_tensor([1.0, 0.0]).expand(edges, 2).contiguous(),
        slopes=distances.new_tensor([0.0, 1.0]).expand(edges, 2).contiguous(),
        tables=[
            torch.stack([f, df], dim=1).flatten(0, 1) for f, df in zip(values, slopes, strict=True)
        ],
        at_zero=[f[0] for f in network.edge_factors(distances.new_zeros(1))],
    )


def radial_on_knots(network: TensorNet, distances: Tensor, intervals: int) -> Radial:
    """Splines through the factors at ``intervals`` + 1 distances; ``distances`` as above."""
    lower, step = network.cutoff_lower, (network.cutoff - network.cutoff_lower) / intervals
    dtype = network.embedding.mix.weight.dtype
    knots = torch.linspace(lower, network.cutoff, intervals + 1, dtype=torch.float64).to(dtype)
    factors = network.edge_factors(knots)
    places = (distances.double() - lower) / step
    row = places.floor().clamp(0, intervals - 1)
    t = places - row
    inside = ((places >= 0) & (places < intervals)).unsqueeze(1)
    weights = torch.stack(spline_weights(t), dim=1) / 6 * inside
    s = 1 - t
    slopes = torch.stack(
        [-s * s, (3 * t - 4) * t, (4 - 3 * s) * s, t * t], dim=1
    ) / (2 * step) * inside  # fmt: skip
    zero = factors if lower == 0 else network.edge_factors(knots.new_zeros(1))
    return Radial(
        row=row.long(),
        weights=weights.to(dtype),
        slopes=slopes.to(dtype),
        tables=list(torch.split(_coefficients(torch.cat(factors, 1)), factors[0].shape[1], 1)),
        at_zero=[f[0] for f in zero],
    )


def _coefficients(values: Tensor) -> Tensor:
    """Coefficients (n + 3, M) of the spline through values (n + 1, M) at the knots.

    Its slope is zero at the cutoff, where the envelope ends, and that of the polynomial through
    the first five values at the other end.
    """
    first = values.new_tensor([-25, 48, -36, 16, -3]) / 6
    rise = first @ values[:5]  # 2 h times the slope
    right = 6 * values
    right = torch.cat([(right[:1] + rise) / 2, right[1:-1], right[-1:] / 2])
    inner = Tridiagonal.apply(right)
    return torch.cat([inner[1:2] - rise, inner, inner[-2:-1]])


class Tridiagonal(torch.autograd.Function):
    """The solution of the equations of a spline's inner coefficients, which are symmetric.

    The matrix has 4 on its diagonal (2 at both ends) and 1 beside it.
    """

    @staticmethod
    def forward(ctx: Any, right: Tensor) -> Tensor:
        """(n, M) -> (n, M)."""
        pivots = np.empty(len(right))
        pivots[0] = 2
        for k in range(1, len(right)):
            pivots[k] = (2 if k == len(right) - 1 else 4) - 1 / pivots[k - 1]
        ctx.pivots = (1 / pivots).astype(str(right.dtype).removeprefix("torch."))
        return Tridiagonal.solve(ctx.pivots, right)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        """The same solution for the gradient."""
        return Tridiagonal.solve(ctx.pivots, gradient)

    @staticmethod
    def solve(pivots: Any, right: Tensor) -> Tensor:
        """Elimination and substitution."""
        x = right.detach().clone(memory_format=torch.contiguous_format)
        launch(eliminate, pivots, x.numpy())
        return x


def eliminate(pivots: Any, x: Any) -> None:
    """Solve in place, a column at a time; ``pivots`` are the reciprocals of the pivots."""
    parts = 8
    width = (x.shape[1] + parts - 1) // parts
    for part in prange(parts):
        first, last = part * width, min((part + 1) * width, x.shape[1])
        for column in range(first, last):
            x[0, column] *= pivots[0]
        for k in range(1, x.shape[0]):
            for column in range(first, last):
                x[k, column] = (x[k, column] - x[k - 1, column]) * pivots[k]
        for k in range(x.shape[0] - 2, -1, -1):
            for column in range(first, last):
                x[k, column] -= pivots[k] * x[k + 1, column]
