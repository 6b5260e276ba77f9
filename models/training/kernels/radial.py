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
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ...graph import Pairs
from ...inference.kernels.cpu.neighbors import spline_weights as weights_of
from ...inference.kernels.cpu.simd import LANES, fma, like, load, splat, store
from ...networks.tensornet import TensorNet
from .edges import ROWS
from .loops import Turns, over, taken
from .memory import Memory, flat
from .perceptrons import Dense, DenseTangents, Kinds, dense_layers, padded


class Radial(NamedTuple):
    """Factors of the edges as sums over rows of tables; see `edges`."""

    row: Tensor
    """(E,) int64."""
    weights: Tensor
    """(E, 4)."""
    slopes: Tensor
    """(E, 4)."""
    tables: list[Tensor]
    """(chunks, rows, irreps, 16), the embedding's, then each layer's."""
    at_zero: list[Tensor]
    """(irreps, width)."""


def radial_at_pairs(network: TensorNet, distances: Tensor, pairs: Pairs) -> Radial:
    """The factors of the pairs themselves; ``distances`` (E,) in the network's unit."""
    lengths = distances.index_select(0, pairs.one)

    def factors(r: Tensor) -> tuple[Tensor, ...]:
        return tuple(network.edge_factors(r))

    values, slopes = torch.func.jvp(factors, (lengths,), (torch.ones_like(lengths),))
    irreps = len(network.irreps)

    def chosen(row: int) -> Tensor:
        weights = distances.new_zeros(len(distances), ROWS)
        weights[:, row] = 1
        return weights

    def table(rows: Tensor) -> Tensor:
        # With two rows more, which the last pair reads and multiplies by zero.
        parts = padded(nn.functional.pad(rows, (0, 0, 0, 2)), irreps)
        parts = parts.view(len(parts), irreps, -1, LANES)
        return parts.permute(2, 0, 1, 3).contiguous()

    zero = network.edge_factors(distances.new_zeros(1))
    return Radial(
        row=2 * pairs.of_edge,
        weights=chosen(0),
        slopes=chosen(1),
        tables=[
            table(torch.stack([f, df], dim=1).flatten(0, 1))
            for f, df in zip(values, slopes, strict=True)
        ],
        at_zero=[padded(f[0], irreps).view(irreps, -1) for f in zero],
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
        if self.lower > 0:
            knots = torch.cat([knots, knots.new_zeros(1)])
        self.knots = knots.to(self.dtype)
        """(K,), the knots, and zero if it is not the first of them."""
        self.zero = len(knots) - 1 if self.lower > 0 else 0
        """Place of zero."""
        self.memory = Memory()
        self._basis: tuple[list[int], Tensor, Tensor] | None = None
        modules = [network.embedding.radial, *(layer.radial for layer in network.layers)]
        self.modules = [[m] if isinstance(m, nn.Linear) else list(m) for m in modules]  # type: ignore[arg-type]
        # Elimination in the equations of the inner coefficients: a matrix with 4 on its diagonal,
        # 2 at both ends, and 1 beside it.
        pivots = [2.0]
        for k in range(intervals):
            pivots.append((2 if k == intervals - 1 else 4) - 1 / pivots[-1])
        self.reciprocals = (1 / torch.tensor(pivots, dtype=torch.float64)).to(self.dtype).numpy()

    def __call__(self, distances: Tensor) -> Radial:
        """Splines of the edges, (E,) float64, in the network's unit of length."""
        edges, irreps = len(distances), len(self.network.irreps)
        row = np.empty(edges, np.int64)
        weights, slopes = (torch.empty(edges, ROWS, dtype=self.dtype) for _ in range(2))
        spline_rows(
            distances.numpy(), self.lower, self.step, self.intervals, row, flat(weights),
            flat(slopes),
        )  # fmt: skip
        basis, envelope = self._functions()
        self.memory.start()
        layers = [dense_layers(modules, last=irreps) for modules in self.modules]
        tensors = [x for dense, _ in layers for x in dense.tensors()]
        found = Splines.apply(self, layers, envelope, basis, *tensors)  # type: ignore[no-untyped-call]
        return Radial(
            row=torch.from_numpy(row),
            weights=weights,
            slopes=slopes,
            tables=list(found[: len(layers)]),
            at_zero=list(found[len(layers) :]),
        )

    def _functions(self) -> tuple[Tensor, Tensor]:
        """Radial functions (K, width) and envelope (K,), new only if they have changed."""
        radial = self.network.radial
        versions = [x._version for x in (*radial.parameters(), *radial.buffers())]
        if self._basis is None or self._basis[0] != versions:
            basis = padded(radial(self.knots), 1)
            found = versions, basis, self.network.envelope(self.knots)
            if basis.requires_grad:
                return found[1:]
            self._basis = found
        return self._basis[1:]


Networks = list[tuple[Dense, Kinds]]
"""Dense layers of the embedding and of each layer."""


class Splines(torch.autograd.Function):
    """Tables and factors at zero from the radial functions on knots and the networks' weights."""

    @staticmethod
    def forward(
        ctx: Any, knots: Knots, networks: Networks, envelope: Tensor, basis: Tensor,
        *tensors: Tensor,
    ) -> tuple[Tensor, ...]:  # fmt: skip
        """See `coefficients`."""
        ctx.knots, ctx.envelope, ctx.irreps = knots, envelope.numpy(), len(knots.network.irreps)
        rows, chunks = basis.shape[0], basis.shape[1] // LANES
        by_chunk = basis.detach().view(rows, chunks, LANES).transpose(0, 1).contiguous()
        ctx.networks = [DenseTangents(*each, rows, knots.memory) for each in networks]
        tables, at_zero = [], []
        for network in ctx.networks:
            values = network.value(flat(by_chunk))
            width = network.chunks[-1] * LANES // ctx.irreps
            shape = width // LANES, knots.reciprocals.size + 2, ctx.irreps, LANES
            tables.append(basis.new_empty(shape))
            at_zero.append(basis.new_empty(ctx.irreps, width))
            coefficients(
                values, ctx.envelope, knots.reciprocals, knots.zero, ctx.irreps, flat(tables[-1]),
                flat(at_zero[-1]),
            )  # fmt: skip
        return *tables, *at_zero

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """See `coefficients_back`."""
        knots, count = ctx.knots, len(ctx.networks)
        found: list[Tensor] = []
        of_basis = []
        for network, g_table, g_zero in zip(
            ctx.networks, gradients[:count], gradients[count:], strict=True
        ):
            coefficients_back(
                flat(g_table), flat(g_zero), ctx.envelope, knots.reciprocals, knots.zero,
                ctx.irreps, network.g,
            )  # fmt: skip
            of_basis.append(network.back().reshape(-1, network.rows, LANES))
            found += network.gradients().tensors()
        g_basis = None
        if ctx.needs_input_grad[3]:
            g_basis = torch.from_numpy(sum(of_basis).transpose(1, 0, 2).reshape(network.rows, -1))
        return None, None, None, g_basis, *found


SLOPE = (-25 / 6, 48 / 6, -36 / 6, 16 / 6, -3 / 6)
"""2 h times the slope at the first knot of the polynomial through the first five values."""


@over(lambda values, envelope, *_: values.size // (envelope.size * LANES))
def coefficients(
    turns: Turns, values: Any, envelope: Any, reciprocals: Any, zero: int, irreps: int, table: Any,
    at_zero: Any,
) -> None:  # fmt: skip
    """Coefficients (n + 3) of the splines through values times envelope at n + 1 knots.

    Their slope is zero at the cutoff, where the envelope ends, and that of the polynomial through
    the first five values at the other end. ``values`` are (irreps, chunks, rows, 16).
    """
    rows, knots = envelope.size, reciprocals.size
    chunks = values.size // (irreps * rows * LANES)
    for task in taken(turns):
        k, chunk, of = task // chunks, task % chunks, task * rows * LANES
        step = irreps * LANES
        at = (chunk * (knots + 2) * irreps + k) * LANES
        store(at_zero, task * LANES, splat(envelope[zero]) * load(values, of + zero * LANES))
        rise = like(load(values, of), 0.0)
        for m in range(5):
            rise = fma(like(rise, SLOPE[m] * envelope[m]), load(values, of + m * LANES), rise)
        x = like(rise, 3 * envelope[0]) * load(values, of) + like(rise, 0.5) * rise
        x = splat(reciprocals[0]) * x
        store(table, at + step, x)
        for row in range(1, knots):
            factor = (3 if row == knots - 1 else 6) * envelope[row]
            x = fma(like(x, factor), load(values, of + row * LANES), -x)
            x = splat(reciprocals[row]) * x
            store(table, at + (row + 1) * step, x)
        for row in range(knots - 2, -1, -1):
            x = load(table, at + (row + 1) * step) - splat(reciprocals[row]) * x
            store(table, at + (row + 1) * step, x)
        store(table, at, load(table, at + 2 * step) - rise)
        store(table, at + (knots + 1) * step, load(table, at + (knots - 1) * step))


@over(lambda g_table, g_zero, envelope, *rest: rest[-1].size // (envelope.size * LANES))
def coefficients_back(
    turns: Turns, g_table: Any, g_zero: Any, envelope: Any, reciprocals: Any, zero: int,
    irreps: int, g_values: Any,
) -> None:  # fmt: skip
    """Gradient of the values from that of the coefficients, whose equations are symmetric."""
    rows, knots = envelope.size, reciprocals.size
    chunks = g_values.size // (irreps * rows * LANES)
    for task in taken(turns):
        k, chunk, to = task // chunks, task % chunks, task * rows * LANES
        step = irreps * LANES
        at = (chunk * (knots + 2) * irreps + k) * LANES
        first, last = load(g_table, at), load(g_table, at + (knots + 1) * step)
        x = splat(reciprocals[0]) * load(g_table, at + step)
        store(g_values, to, x)
        for row in range(1, knots):
            g = load(g_table, at + (row + 1) * step)
            if row == 1:
                g = g + first
            if row == knots - 2:
                g = g + last
            x = splat(reciprocals[row]) * (g - x)
            store(g_values, to + row * LANES, x)
        for row in range(knots - 2, -1, -1):
            x = load(g_values, to + row * LANES) - splat(reciprocals[row]) * x
            store(g_values, to + row * LANES, x)
        g_rise = like(x, 0.5) * x - first
        for row in range(rows):
            here = to + row * LANES
            if row < knots:
                ends = row == 0 or row == knots - 1
                g = like(x, 3 if ends else 6) * load(g_values, here)
            else:
                g = x - x
            if row < 5:
                g = fma(like(x, SLOPE[row]), g_rise, g)
            if row == zero:
                g = g + load(g_zero, task * LANES)
            store(g_values, here, splat(envelope[row]) * g)


@over(lambda distances, *_: distances.size)
def spline_rows(
    turns: Turns, distances: Any, lower: float, step: float, intervals: int, row: Any,
    weights: Any, slopes: Any,
) -> None:  # fmt: skip
    """First row of the table, weights of four rows and of their slopes, for each distance."""
    for e in taken(turns):
        place = (distances[e] - lower) / step
        row[e] = min(max(int(place), 0), intervals - 1)
        t = place - row[e]
        inside = 1.0 if 0 <= place < intervals else 0.0
        s = 1 - t
        of_value, of_slope = inside / 6, inside / (2 * step)
        values = weights_of(t)
        for m in range(4):
            weights[e * ROWS + m] = of_value * values[m]
        slopes[e * ROWS] = -of_slope * s * s
        slopes[e * ROWS + 1] = of_slope * (3 * t - 4) * t
        slopes[e * ROWS + 2] = of_slope * (4 - 3 * s) * s
        slopes[e * ROWS + 3] = of_slope * t * t
