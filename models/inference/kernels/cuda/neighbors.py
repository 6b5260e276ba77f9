"""Triton kernels over edges: geometry, the two neighbour sums and their gradients, forces.

One program per receiver (and block of channels) visits the receiver's edges in order and sums in
registers: there are no atomics, nothing of size edges x channels is stored, and results are
bitwise reproducible. Gradients of edges are summed over channels at once, to one number or vector
per edge and block of channels.

Loop bounds are read on the device, so that a recorded CUDA graph serves any edges that fit into
its buffers. The functions of the same names in ``tests/support/kernel_equations.py`` define what
each kernel computes.
"""

# Kernels carry no types, and their compile-time constants are in capitals, as usual in Triton.
# Triton turns lists into tuples.
# mypy: disable-error-code="no-untyped-def,no-untyped-call,assignment"
# ruff: noqa: N803

from __future__ import annotations

import triton
import triton.language as tl

from .algebra import SQRT_HALF, SQRT_SIXTH, dots, load9, plus, scaled, store9

SQRT_2 = tl.constexpr(2**0.5)
SQRT_3 = tl.constexpr(3**0.5)
SIXTH = tl.constexpr(1 / 6)


@triton.jit
def _weights(t):
    """Weights of the four coefficients of a cubic B-spline."""
    s = 1 - t
    return (
        s * s * s * SIXTH,
        (t * t * (3 * t - 6) + 4) * SIXTH,
        (t * (t * (3 - 3 * t) + 3) + 1) * SIXTH,
        t * t * t * SIXTH,
    )


@triton.jit
def _slope_weights(t):
    """Weights of the three stored differences in the derivative of a spline."""
    s = 1 - t
    return 0.5 * s * s, t * s + 0.5, 0.5 * t * t


@triton.jit
def _splines(row, live, weights, CHANNELS: tl.constexpr):
    """Splines of I, A and S for a block of channels; ``row`` points to the first coefficient."""
    return [_spline(row + k * CHANNELS, live, weights, 6 * CHANNELS) for k in (0, 1, 2)]


@triton.jit
def _spline(row, live, weights, WIDTH: tl.constexpr):
    value = weights[0] * tl.load(row, mask=live, other=0.0)
    for m in tl.static_range(1, len(weights)):
        value += weights[m] * tl.load(row + m * WIDTH, mask=live, other=0.0)
    return value


@triton.jit
def load3(x, live):
    """Load three consecutive numbers."""
    return [tl.load(x + k, mask=live, other=0.0) for k in (0, 1, 2)]


@triton.jit
def store3(x, values, live):
    """Store three consecutive numbers."""
    for k in tl.static_range(3):
        tl.store(x + k, values[k], mask=live)


@triton.jit
def dot3(x, y):
    """Inner product of two vectors."""
    return x[0] * y[0] + x[1] * y[1] + x[2] * y[2]


@triton.jit
def _column(matrix, K: tl.constexpr):
    """Column of a 3x3 matrix that is given by rows."""
    return (matrix[K], matrix[3 + K], matrix[6 + K])


@triton.jit
def geometry_kernel(
    positions, cell, system, offsets, senders, shift, unit, distance, knot, fraction,
    LENGTH: tl.constexpr, LOWER: tl.constexpr, CUTOFF: tl.constexpr, INTERVALS: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Geometry of all edges; grid (N,). Arithmetic is float64 until results are stored."""
    i = tl.program_id(0).to(tl.int64)
    first_of_cell = cell + tl.load(system + i) * 9
    lattice = [tl.load(first_of_cell + c) for c in (0, 1, 2, 3, 4, 5, 6, 7, 8)]
    here = load3(positions + 3 * i, True)
    end = tl.load(offsets + i + 1)
    element = fraction.dtype.element_ty
    for first in range(tl.load(offsets + i), end, BLOCK):
        e = first + tl.arange(0, BLOCK)
        live = e < end
        e3 = e.to(tl.int64) * 3
        j = tl.load(senders + e, mask=live, other=0).to(tl.int64)
        images = load3(shift + e3, live)
        there = load3(positions + 3 * j, live)
        r = [(there[k] - here[k] + dot3(images, _column(lattice, k))) / LENGTH for k in (0, 1, 2)]
        d = tl.sqrt(dot3(r, r))
        inside = (d >= LOWER) & (d < CUTOFF)
        place = tl.where(inside, d - LOWER, 0.0) * (INTERVALS / (CUTOFF - LOWER))
        row = tl.minimum(place.to(tl.int32), INTERVALS - 1)
        store3(unit + e3, [(-each / d).to(element) for each in r], live)
        tl.store(distance + e, d.to(element), mask=live)
        tl.store(knot + e, tl.where(inside, row, -1), mask=live)
        tl.store(fraction + e, (place - row.to(tl.float64)).to(element), mask=live)


@triton.jit
def embed_kernel(
    offsets, senders, unit, knot, fraction, table, at_zero, receiver, sender, numbers, x, stride,
    CHANNELS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The embedding's sum; grid (N, blocks of channels), ``stride`` is N F."""
    i = tl.program_id(0).to(tl.int64)
    f = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    live = f < CHANNELS
    number = tl.load(numbers + i)
    a = tl.load(receiver + number * CHANNELS + f, mask=live, other=0.0)
    own = a + tl.load(sender + number * CHANNELS + f, mask=live, other=0.0)
    zero = tl.zeros((BLOCK,), dtype=x.dtype.element_ty)
    sums = (zero, zero, zero, zero, zero, zero, zero, zero, zero)
    for e in range(tl.load(offsets + i), tl.load(offsets + i + 1)):
        interval = tl.load(knot + e)
        if interval >= 0:
            u = load3(unit + e * 3, True)
            other = tl.load(numbers + tl.load(senders + e))
            z = a + tl.load(sender + other * CHANNELS + f, mask=live, other=0.0)
            row = table + interval * (6 * CHANNELS) + f
            factors = _splines(row, live, _weights(tl.load(fraction + e)), CHANNELS)
            squares = (u[0] * u[0] - u[1] * u[1], 2 * u[2] * u[2] - u[0] * u[0] - u[1] * u[1])
            directions = (
                1.0, u[0], u[1], u[2], u[0] * u[1], u[1] * u[2], u[0] * u[2], squares[0],
                squares[1],
            )  # fmt: skip
            sums = plus(sums, scaled([z * each for each in factors], directions))
    at_own = tl.load(at_zero + f, mask=live, other=0.0) * own
    result = (
        sums[0] * SQRT_3 + at_own, sums[1] * SQRT_2, sums[2] * SQRT_2, sums[3] * SQRT_2,
        sums[4] * SQRT_2, sums[5] * SQRT_2, sums[6] * SQRT_2, sums[7] * SQRT_HALF,
        sums[8] * SQRT_SIXTH,
    )  # fmt: skip
    store9(x + i * CHANNELS + f, stride, live, result)


@triton.jit
def embed_backward_kernel(
    offsets, senders, unit, distance, knot, fraction, table, receiver, sender, numbers, g,
    d_vector, stride, edges, CHANNELS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Gradient of edge vectors; grid (N, blocks of channels), ``d_vector`` (blocks, E, 3)."""
    i = tl.program_id(0).to(tl.int64)
    block = tl.program_id(1)
    f = block * BLOCK + tl.arange(0, BLOCK)
    live = f < CHANNELS
    a = tl.load(receiver + tl.load(numbers + i) * CHANNELS + f, mask=live, other=0.0)
    g_ = load9(g + i * CHANNELS + f, stride, live)
    g_i = g_[0] * SQRT_3
    g_a = [g_[c] * SQRT_2 for c in (1, 2, 3)]
    # The symmetric matrix sum_k g_k B_k, by its rows
    h01 = g_[4] * SQRT_HALF
    h12 = g_[5] * SQRT_HALF
    h02 = g_[6] * SQRT_HALF
    h00 = g_[7] * SQRT_HALF - g_[8] * SQRT_SIXTH
    h11 = -g_[7] * SQRT_HALF - g_[8] * SQRT_SIXTH
    h22 = g_[8] * 2 * SQRT_SIXTH
    matrix = ((h00, h01, h02), (h01, h11, h12), (h02, h12, h22))
    out = d_vector + block.to(tl.int64) * edges * 3
    for e in range(tl.load(offsets + i), tl.load(offsets + i + 1)):
        interval = tl.load(knot + e)
        if interval >= 0:
            t = tl.load(fraction + e)
            u = load3(unit + e * 3, True)
            other = tl.load(numbers + tl.load(senders + e))
            z = a + tl.load(sender + other * CHANNELS + f, mask=live, other=0.0)
            row = table + interval * (6 * CHANNELS) + f
            weights = _weights(t)
            f_a = _spline(row + CHANNELS, live, weights, 6 * CHANNELS)
            f_s = _spline(row + 2 * CHANNELS, live, weights, 6 * CHANNELS)
            slopes = _splines(row + 3 * CHANNELS, live, _slope_weights(t), CHANNELS)
            p = [dot3(each, u) for each in matrix]
            along_a = dot3(g_a, u)
            along_s = dot3(p, u)
            d_distance = z * dot3(slopes, (g_i, along_a, along_s))
            inverse = z / tl.load(distance + e)
            f_a = f_a * inverse
            f_s = 2 * f_s * inverse
            # -u d_distance - (1 - u u^T) d_unit / d
            radial = f_a * along_a + f_s * along_s - d_distance
            for k in tl.static_range(3):
                along = u[k] * radial - f_a * g_a[k] - f_s * p[k]
                tl.store(out + e * 3 + k, tl.sum(along, axis=0))


@triton.jit
def message_kernel(
    offsets, senders, knot, fraction, table, at_zero, y, own, result, d_distance, stride, edges,
    CHANNELS: tl.constexpr, BACKWARD: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Messages from features ``y``; grid (N, blocks of channels).

    With BACKWARD, this is `message_backward`: ``y`` is a gradient, ``own`` are the features, and
    ``d_distance`` (blocks, E) is written.
    """
    i = tl.program_id(0).to(tl.int64)
    block = tl.program_id(1)
    f = block * BLOCK + tl.arange(0, BLOCK)
    live = f < CHANNELS
    zero = [tl.load(at_zero + c * CHANNELS + f, mask=live, other=0.0) for c in (0, 1, 2)]
    sums = scaled(zero, load9(y + i * CHANNELS + f, stride, live))
    if BACKWARD:
        own_ = load9(own + i * CHANNELS + f, stride, live)
        out = d_distance + block.to(tl.int64) * edges
    for e in range(tl.load(offsets + i), tl.load(offsets + i + 1)):
        interval = tl.load(knot + e)
        if interval >= 0:
            t = tl.load(fraction + e)
            j = tl.load(senders + e).to(tl.int64)
            y_ = load9(y + j * CHANNELS + f, stride, live)
            row = table + interval * (6 * CHANNELS) + f
            sums = plus(sums, scaled(_splines(row, live, _weights(t), CHANNELS), y_))
            if BACKWARD:
                slopes = _splines(row + 3 * CHANNELS, live, _slope_weights(t), CHANNELS)
                tl.store(out + e, tl.sum(dot3(slopes, dots(own_, y_)), axis=0))
    store9(result + i * CHANNELS + f, stride, live, sums)


@triton.jit
def forces_kernel(
    offsets, reverse, unit, distance, knot, d_vector, d_distance, force, virial,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Forces and shares of the virial; grid (N,), sums in float64."""
    i = tl.program_id(0).to(tl.int64)
    end = tl.load(offsets + i + 1)
    zero = tl.zeros((BLOCK,), dtype=tl.float64)
    pulls = (zero, zero, zero)
    shares = (zero, zero, zero, zero, zero, zero, zero, zero, zero)
    for first in range(tl.load(offsets + i), end, BLOCK):
        e = first + tl.arange(0, BLOCK)
        live = e < end
        live = live & (tl.load(knot + e, mask=live, other=-1) >= 0)
        back = tl.load(reverse + e, mask=live, other=0)
        # The reverse edge has the opposite direction.
        length = tl.load(d_distance + e, mask=live, other=0.0).to(tl.float64)
        length += tl.load(d_distance + back, mask=live, other=0.0).to(tl.float64)
        e3 = e.to(tl.int64) * 3
        d = tl.load(distance + e, mask=live, other=0.0).to(tl.float64)
        u = [each.to(tl.float64) for each in load3(unit + e3, live)]
        ahead = load3(d_vector + e3, live)
        behind = load3(d_vector + back.to(tl.int64) * 3, live)
        p = [
            ahead[k].to(tl.float64) - (behind[k].to(tl.float64) + length * u[k]) for k in (0, 1, 2)
        ]
        pulls = [pulls[k] + p[k] for k in (0, 1, 2)]
        shares = [shares[k] + d * 0.5 * u[k // 3] * p[k % 3] for k in (0, 1, 2, 3, 4, 5, 6, 7, 8)]
    for c in tl.static_range(3):
        tl.store(force + i * 3 + c, tl.sum(pulls[c], axis=0))
    for c in tl.static_range(9):
        tl.store(virial + i * 9 + c, tl.sum(shares[c], axis=0))


@triton.jit
def sum_by_system_kernel(values, system, sums, atoms, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    """Sums over the atoms of each system, in a fixed order; grid (systems, K), WIDTH is K."""
    own = tl.program_id(0)
    column = tl.program_id(1)
    total = tl.zeros((BLOCK,), dtype=values.dtype.element_ty)
    for first in range(0, atoms, BLOCK):
        n = first + tl.arange(0, BLOCK)
        live = n < atoms
        live = live & (tl.load(system + n, mask=live, other=-1) == own)
        total += tl.load(values + n.to(tl.int64) * WIDTH + column, mask=live, other=0.0)
    tl.store(sums + own * WIDTH + column, tl.sum(total, axis=0))
