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
from numpy.typing import NDArray
from torch import Tensor, nn

from ...graph import Pairs
from ...inference.kernels.cpu.neighbors import spline_weights as weights_of
from ...networks.tensornet import TensorNet
from .edges import ROWS
from .launch import launch

COLUMNS = 128
"""Columns that a thread solves at a time."""


class Radial(NamedTuple):
    """Factors of the edges as sums over rows of tables; see `edges`."""

    row: Tensor
    """(E,) int64."""
    weights: Tensor
    """(E, 4)."""
    slopes: Tensor
    """(E, 4)."""
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

    def chosen(row: int) -> Tensor:
        weights = distances.new_zeros(len(distances), ROWS)
        weights[:, row] = 1
        return weights

    return Radial(
        row=2 * pairs.of_edge,
        weights=chosen(0),
        slopes=chosen(1),
        tables=[  # with two rows more, which the last pair reads and multiplies by zero
            nn.functional.pad(torch.stack([f, df], dim=1).flatten(0, 1), (0, 0, 0, 2))
            for f, df in zip(values, slopes, strict=True)
        ],
        at_zero=[f[0] for f in network.edge_factors(distances.new_zeros(1))],
    )


class Knots:
    """Splines through the factors at equally spaced distances.

    Parameters
    ----------
    network
        The network; its cutoffs and dtype do not change.
    intervals
        Number of intervals between the cutoffs.
    """

    def __init__(self, network: TensorNet, intervals: int) -> None:
        self.network, self.intervals = network, intervals
        self.lower, upper = network.cutoff_lower, network.cutoff
        self.step = (upper - self.lower) / intervals
        self.dtype = network.embedding.mix.weight.dtype
        knots = torch.linspace(self.lower, upper, intervals + 1, dtype=torch.float64)
        self.knots = knots.to(self.dtype)
        # Elimination in the equations of the inner coefficients: a matrix with 4 on its diagonal,
        # 2 at both ends, and 1 beside it.
        pivots = [2.0]
        for k in range(intervals):
            pivots.append((2 if k == intervals - 1 else 4) - 1 / pivots[-1])
        self.reciprocals = (1 / torch.tensor(pivots, dtype=torch.float64)).to(self.dtype).numpy()

    def __call__(self, distances: Tensor) -> Radial:
        """Splines of the edges, (E,) float64, in the network's unit of length."""
        edges = len(distances)
        row = np.empty(edges, np.int64)
        weights, slopes = (torch.empty(edges, 4, dtype=self.dtype) for _ in range(2))
        launch(
            spline_rows, distances.numpy(), self.lower, self.step, self.intervals, row,
            weights.numpy(), slopes.numpy(),
        )  # fmt: skip
        factors = self.network.edge_factors(self.knots)
        zero = factors
        if self.lower > 0:
            zero = self.network.edge_factors(self.knots.new_zeros(1))
        coefficients = self.coefficients(torch.cat(factors, 1))
        return Radial(
            row=torch.from_numpy(row),
            weights=weights,
            slopes=slopes,
            tables=list(torch.split(coefficients, factors[0].shape[1], 1)),
            at_zero=[f[0] for f in zero],
        )

    def coefficients(self, values: Tensor) -> Tensor:
        """Coefficients (n + 3, M) of the spline through values (n + 1, M) at the knots.

        Its slope is zero at the cutoff, where the envelope ends, and that of the polynomial
        through the first five values at the other end.
        """
        rise = values.new_tensor([-25, 48, -36, 16, -3]) / 6 @ values[:5]  # 2 h times the slope
        right = torch.cat([(3 * values[:1] + rise / 2), 6 * values[1:-1], 3 * values[-1:]])
        inner = Tridiagonal.apply(right, self.reciprocals)  # type: ignore[no-untyped-call]
        return torch.cat([inner[1:2] - rise, inner, inner[-2:-1]])


class Tridiagonal(torch.autograd.Function):
    """The solution of the equations of a spline's inner coefficients, which are symmetric."""

    @staticmethod
    def forward(ctx: Any, right: Tensor, reciprocals: NDArray[Any]) -> Tensor:
        """(n, M) -> (n, M)."""
        ctx.reciprocals = reciprocals
        return solution(right, reciprocals)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        """The same equations for the gradient."""
        return solution(gradient, ctx.reciprocals), None


def solution(right: Tensor, reciprocals: NDArray[Any]) -> Tensor:
    """Of the equations of a spline, by elimination and substitution."""
    x = right.detach().clone(memory_format=torch.contiguous_format)
    launch(eliminate, reciprocals, x.numpy())
    return x


def eliminate(reciprocals: Any, x: Any) -> None:
    """Solve in place, (n, M); ``reciprocals`` (n,) are those of the pivots."""
    width = (x.shape[1] + COLUMNS - 1) // COLUMNS
    for part in prange(width):
        first, last = part * COLUMNS, min((part + 1) * COLUMNS, x.shape[1])
        for column in range(first, last):
            x[0, column] *= reciprocals[0]
        for k in range(1, x.shape[0]):
            for column in range(first, last):
                x[k, column] = (x[k, column] - x[k - 1, column]) * reciprocals[k]
        for k in range(x.shape[0] - 2, -1, -1):
            for column in range(first, last):
                x[k, column] -= reciprocals[k] * x[k + 1, column]


def spline_rows(
    distances: Any, lower: float, step: float, intervals: int, row: Any, weights: Any, slopes: Any
) -> None:
    """First row of the table, weights of four rows and of their slopes, for each distance."""
    for e in prange(distances.size):
        place = (distances[e] - lower) / step
        row[e] = min(max(int(place), 0), intervals - 1)
        t = place - row[e]
        inside = 1.0 if 0 <= place < intervals else 0.0
        s = 1 - t
        of_value, of_slope = inside / 6, inside / (2 * step)
        values = weights_of(t)
        for m in range(4):
            weights[e, m] = of_value * values[m]
        slopes[e, 0] = -of_slope * s * s
        slopes[e, 1] = of_slope * (3 * t - 4) * t
        slopes[e, 2] = of_slope * (4 - 3 * s) * s
        slopes[e, 3] = of_slope * t * t
