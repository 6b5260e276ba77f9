"""Triton kernels of sums: geometry, the two neighbour sums and their gradients, forces.

One program for each receiver (and block of channels) walks the receiver's edges in their
order and sums in registers: no atomics, nothing of the size edges x channels in memory, and
the same bits every time. What must be known of an edge's gradient is summed over channels on
the way, one number or one vector for each edge and block of channels.

Loop bounds are read from the device, so that a recorded CUDA graph serves any edges that fit
into the same room. The equations are those of the functions of the same names in `equations`.
"""

# Kernels carry no types, and their compile-time constants are in capitals, as usual in Triton.
# mypy: disable-error-code="no-untyped-def,no-untyped-call"
# ruff: noqa: N803

from __future__ import annotations

import triton
import triton.language as tl

SQRT_2 = tl.constexpr(2**0.5)
SQRT_3 = tl.constexpr(3**0.5)
SQRT_HALF = tl.constexpr(0.5**0.5)
SQRT_THIRD = tl.constexpr((1 / 3) ** 0.5)
SQRT_SIXTH = tl.constexpr((1 / 6) ** 0.5)
SIXTH = tl.constexpr(1 / 6)


@triton.jit
def _weights(t):
    """B-spline weights at t, of `equations.spline`."""
    s = 1 - t
    return (
        s * s * s * SIXTH,
        (t * t * (3 * t - 6) + 4) * SIXTH,
        (t * (t * (3 - 3 * t) + 3) + 1) * SIXTH,
        t * t * t * SIXTH,
    )


@triton.jit
def _slope_weights(t):
    """Those of the stored differences, v of `equations.spline`."""
    s = 1 - t
    return 0.5 * s * s, t * s + 0.5, 0.5 * t * t


@triton.jit
def _value(row, live, w0, w1, w2, w3, WIDTH: tl.constexpr):
    """Of the spline, for a block of channels; ``row`` points to the first coefficients."""
    c0 = tl.load(row, mask=live, other=0.0)
    c1 = tl.load(row + WIDTH, mask=live, other=0.0)
    c2 = tl.load(row + 2 * WIDTH, mask=live, other=0.0)
    c3 = tl.load(row + 3 * WIDTH, mask=live, other=0.0)
    return w0 * c0 + w1 * c1 + w2 * c2 + w3 * c3


@triton.jit
def _slope(row, live, v0, v1, v2, WIDTH: tl.constexpr):
    """Derivative of the spline; ``row`` points to the first differences."""
    c0 = tl.load(row, mask=live, other=0.0)
    c1 = tl.load(row + WIDTH, mask=live, other=0.0)
    c2 = tl.load(row + 2 * WIDTH, mask=live, other=0.0)
    return v0 * c0 + v1 * c1 + v2 * c2


@triton.jit
def load9(x, stride, live):
    """The nine components of features; ``x`` points to the first."""
    return (
        tl.load(x, mask=live, other=0.0),
        tl.load(x + stride, mask=live, other=0.0),
        tl.load(x + 2 * stride, mask=live, other=0.0),
        tl.load(x + 3 * stride, mask=live, other=0.0),
        tl.load(x + 4 * stride, mask=live, other=0.0),
        tl.load(x + 5 * stride, mask=live, other=0.0),
        tl.load(x + 6 * stride, mask=live, other=0.0),
        tl.load(x + 7 * stride, mask=live, other=0.0),
        tl.load(x + 8 * stride, mask=live, other=0.0),
    )


@triton.jit
def store9(x, stride, live, x0, x1, x2, x3, x4, x5, x6, x7, x8):
    """The counterpart of `load9`."""
    tl.store(x, x0, mask=live)
    tl.store(x + stride, x1, mask=live)
    tl.store(x + 2 * stride, x2, mask=live)
    tl.store(x + 3 * stride, x3, mask=live)
    tl.store(x + 4 * stride, x4, mask=live)
    tl.store(x + 5 * stride, x5, mask=live)
    tl.store(x + 6 * stride, x6, mask=live)
    tl.store(x + 7 * stride, x7, mask=live)
    tl.store(x + 8 * stride, x8, mask=live)


@triton.jit
def geometry_kernel(
    positions,
    cell,
    system,
    offsets,
    senders,
    shift,
    unit,
    distance,
    knot,
    fraction,
    LENGTH: tl.constexpr,
    LOWER: tl.constexpr,
    CUTOFF: tl.constexpr,
    INTERVALS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """`equations.geometry`; grid (N,); float64 until it is stored."""
    i = tl.program_id(0).to(tl.int64)
    c = cell + tl.load(system + i) * 9
    c00 = tl.load(c)
    c01 = tl.load(c + 1)
    c02 = tl.load(c + 2)
    c10 = tl.load(c + 3)
    c11 = tl.load(c + 4)
    c12 = tl.load(c + 5)
    c20 = tl.load(c + 6)
    c21 = tl.load(c + 7)
    c22 = tl.load(c + 8)
    x = tl.load(positions + 3 * i)
    y = tl.load(positions + 3 * i + 1)
    z = tl.load(positions + 3 * i + 2)
    start = tl.load(offsets + i)
    end = tl.load(offsets + i + 1)
    element = fraction.dtype.element_ty
    for first in range(start, end, BLOCK):
        e = first + tl.arange(0, BLOCK)
        live = e < end
        e3 = e.to(tl.int64) * 3
        j3 = tl.load(senders + e, mask=live, other=0).to(tl.int64) * 3
        s0 = tl.load(shift + e3, mask=live, other=0.0)
        s1 = tl.load(shift + e3 + 1, mask=live, other=0.0)
        s2 = tl.load(shift + e3 + 2, mask=live, other=0.0)
        dx = tl.load(positions + j3, mask=live, other=0.0) - x
        dy = tl.load(positions + j3 + 1, mask=live, other=0.0) - y
        dz = tl.load(positions + j3 + 2, mask=live, other=0.0) - z
        dx = (dx + (s0 * c00 + s1 * c10 + s2 * c20)) / LENGTH
        dy = (dy + (s0 * c01 + s1 * c11 + s2 * c21)) / LENGTH
        dz = (dz + (s0 * c02 + s1 * c12 + s2 * c22)) / LENGTH
        d = tl.sqrt(dx * dx + dy * dy + dz * dz)
        inside = (d >= LOWER) & (d < CUTOFF)
        place = tl.where(inside, d - LOWER, 0.0) * (INTERVALS / (CUTOFF - LOWER))
        k = tl.minimum(place.to(tl.int32), INTERVALS - 1)
        tl.store(unit + e3, (-dx / d).to(element), mask=live)
        tl.store(unit + e3 + 1, (-dy / d).to(element), mask=live)
        tl.store(unit + e3 + 2, (-dz / d).to(element), mask=live)
        tl.store(distance + e, d.to(element), mask=live)
        tl.store(knot + e, tl.where(inside, k, -1), mask=live)
        tl.store(fraction + e, (place - k.to(tl.float64)).to(element), mask=live)


@triton.jit
def embed_kernel(
    offsets,
    senders,
    unit,
    knot,
    fraction,
    table,
    at_zero,
    receiver,
    sender,
    numbers,
    x,
    stride,
    CHANNELS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """`equations.embed`; grid (N, blocks of channels); ``stride`` is N F."""
    i = tl.program_id(0).to(tl.int64)
    f = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    live = f < CHANNELS
    number = tl.load(numbers + i)
    a = tl.load(receiver + number * CHANNELS + f, mask=live, other=0.0)
    own = a + tl.load(sender + number * CHANNELS + f, mask=live, other=0.0)
    x0 = tl.zeros((BLOCK,), dtype=x.dtype.element_ty)
    x1 = x0
    x2 = x0
    x3 = x0
    x4 = x0
    x5 = x0
    x6 = x0
    x7 = x0
    x8 = x0
    for e in range(tl.load(offsets + i), tl.load(offsets + i + 1)):
        k = tl.load(knot + e)
        if k >= 0:
            w0, w1, w2, w3 = _weights(tl.load(fraction + e))
            u0 = tl.load(unit + e * 3)
            u1 = tl.load(unit + e * 3 + 1)
            u2 = tl.load(unit + e * 3 + 2)
            other = tl.load(numbers + tl.load(senders + e))
            z = a + tl.load(sender + other * CHANNELS + f, mask=live, other=0.0)
            row = table + k * (6 * CHANNELS) + f
            f_i = z * _value(row, live, w0, w1, w2, w3, 6 * CHANNELS)
            f_a = z * _value(row + CHANNELS, live, w0, w1, w2, w3, 6 * CHANNELS)
            f_s = z * _value(row + 2 * CHANNELS, live, w0, w1, w2, w3, 6 * CHANNELS)
            x0 += f_i
            x1 += f_a * u0
            x2 += f_a * u1
            x3 += f_a * u2
            x4 += f_s * (u0 * u1)
            x5 += f_s * (u1 * u2)
            x6 += f_s * (u0 * u2)
            x7 += f_s * (u0 * u0 - u1 * u1)
            x8 += f_s * (2 * u2 * u2 - u0 * u0 - u1 * u1)
    x0 = x0 * SQRT_3 + tl.load(at_zero + f, mask=live, other=0.0) * own
    store9(
        x + i * CHANNELS + f,
        stride,
        live,
        x0,
        x1 * SQRT_2,
        x2 * SQRT_2,
        x3 * SQRT_2,
        x4 * SQRT_2,
        x5 * SQRT_2,
        x6 * SQRT_2,
        x7 * SQRT_HALF,
        x8 * SQRT_SIXTH,
    )


@triton.jit
def embed_backward_kernel(
    offsets,
    senders,
    unit,
    distance,
    knot,
    fraction,
    table,
    receiver,
    sender,
    numbers,
    g,
    d_vector,
    stride,
    edges,
    CHANNELS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """`equations.embed_backward`; grid (N, blocks of channels), ``d_vector`` (blocks, E, 3)."""
    i = tl.program_id(0).to(tl.int64)
    block = tl.program_id(1)
    f = block * BLOCK + tl.arange(0, BLOCK)
    live = f < CHANNELS
    a = tl.load(receiver + tl.load(numbers + i) * CHANNELS + f, mask=live, other=0.0)
    g0, g1, g2, g3, g4, g5, g6, g7, g8 = load9(g + i * CHANNELS + f, stride, live)
    g0 = g0 * SQRT_3
    g1 = g1 * SQRT_2
    g2 = g2 * SQRT_2
    g3 = g3 * SQRT_2
    # The symmetric matrix sum_k g_k B_k
    h01 = g4 * SQRT_HALF
    h12 = g5 * SQRT_HALF
    h02 = g6 * SQRT_HALF
    h00 = g7 * SQRT_HALF - g8 * SQRT_SIXTH
    h11 = -g7 * SQRT_HALF - g8 * SQRT_SIXTH
    h22 = g8 * 2 * SQRT_SIXTH
    out = d_vector + block.to(tl.int64) * edges * 3
    for e in range(tl.load(offsets + i), tl.load(offsets + i + 1)):
        k = tl.load(knot + e)
        if k >= 0:
            t = tl.load(fraction + e)
            w0, w1, w2, w3 = _weights(t)
            v0, v1, v2 = _slope_weights(t)
            u0 = tl.load(unit + e * 3)
            u1 = tl.load(unit + e * 3 + 1)
            u2 = tl.load(unit + e * 3 + 2)
            other = tl.load(numbers + tl.load(senders + e))
            z = a + tl.load(sender + other * CHANNELS + f, mask=live, other=0.0)
            row = table + k * (6 * CHANNELS) + f
            f_a = _value(row + CHANNELS, live, w0, w1, w2, w3, 6 * CHANNELS)
            f_s = _value(row + 2 * CHANNELS, live, w0, w1, w2, w3, 6 * CHANNELS)
            d_i = _slope(row + 3 * CHANNELS, live, v0, v1, v2, 6 * CHANNELS)
            d_a = _slope(row + 4 * CHANNELS, live, v0, v1, v2, 6 * CHANNELS)
            d_s = _slope(row + 5 * CHANNELS, live, v0, v1, v2, 6 * CHANNELS)
            p0 = h00 * u0 + h01 * u1 + h02 * u2
            p1 = h01 * u0 + h11 * u1 + h12 * u2
            p2 = h02 * u0 + h12 * u1 + h22 * u2
            along_a = g1 * u0 + g2 * u1 + g3 * u2
            along_s = p0 * u0 + p1 * u1 + p2 * u2
            d_distance = z * (d_i * g0 + d_a * along_a + d_s * along_s)
            inverse = z / tl.load(distance + e)
            f_a = f_a * inverse
            f_s = 2 * f_s * inverse
            # -u d_distance - (1 - u u^T) d_unit / d
            radial = f_a * along_a + f_s * along_s - d_distance
            tl.store(out + e * 3, tl.sum(u0 * radial - f_a * g1 - f_s * p0, axis=0))
            tl.store(out + e * 3 + 1, tl.sum(u1 * radial - f_a * g2 - f_s * p1, axis=0))
            tl.store(out + e * 3 + 2, tl.sum(u2 * radial - f_a * g3 - f_s * p2, axis=0))


@triton.jit
def message_kernel(
    offsets,
    senders,
    knot,
    fraction,
    table,
    at_zero,
    y,
    own,
    result,
    d_distance,
    stride,
    edges,
    CHANNELS: tl.constexpr,
    BACKWARD: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """`equations.message` of ``y``; grid (N, blocks of channels).

    With BACKWARD, ``y`` is a gradient and ``own`` are the features: `message_backward`, with
    ``d_distance`` (blocks, E).
    """
    i = tl.program_id(0).to(tl.int64)
    block = tl.program_id(1)
    f = block * BLOCK + tl.arange(0, BLOCK)
    live = f < CHANNELS
    x0, x1, x2, x3, x4, x5, x6, x7, x8 = load9(y + i * CHANNELS + f, stride, live)
    zero_i = tl.load(at_zero + f, mask=live, other=0.0)
    zero_a = tl.load(at_zero + CHANNELS + f, mask=live, other=0.0)
    zero_s = tl.load(at_zero + 2 * CHANNELS + f, mask=live, other=0.0)
    x0 = zero_i * x0
    x1 = zero_a * x1
    x2 = zero_a * x2
    x3 = zero_a * x3
    x4 = zero_s * x4
    x5 = zero_s * x5
    x6 = zero_s * x6
    x7 = zero_s * x7
    x8 = zero_s * x8
    if BACKWARD:
        o0, o1, o2, o3, o4, o5, o6, o7, o8 = load9(own + i * CHANNELS + f, stride, live)
        out = d_distance + block.to(tl.int64) * edges
    for e in range(tl.load(offsets + i), tl.load(offsets + i + 1)):
        k = tl.load(knot + e)
        if k >= 0:
            t = tl.load(fraction + e)
            w0, w1, w2, w3 = _weights(t)
            j = tl.load(senders + e).to(tl.int64)
            y0, y1, y2, y3, y4, y5, y6, y7, y8 = load9(y + j * CHANNELS + f, stride, live)
            row = table + k * (6 * CHANNELS) + f
            f_i = _value(row, live, w0, w1, w2, w3, 6 * CHANNELS)
            f_a = _value(row + CHANNELS, live, w0, w1, w2, w3, 6 * CHANNELS)
            f_s = _value(row + 2 * CHANNELS, live, w0, w1, w2, w3, 6 * CHANNELS)
            x0 += f_i * y0
            x1 += f_a * y1
            x2 += f_a * y2
            x3 += f_a * y3
            x4 += f_s * y4
            x5 += f_s * y5
            x6 += f_s * y6
            x7 += f_s * y7
            x8 += f_s * y8
            if BACKWARD:
                v0, v1, v2 = _slope_weights(t)
                d_i = _slope(row + 3 * CHANNELS, live, v0, v1, v2, 6 * CHANNELS)
                d_a = _slope(row + 4 * CHANNELS, live, v0, v1, v2, 6 * CHANNELS)
                d_s = _slope(row + 5 * CHANNELS, live, v0, v1, v2, 6 * CHANNELS)
                products = d_i * (o0 * y0) + d_a * (o1 * y1 + o2 * y2 + o3 * y3)
                products += d_s * (o4 * y4 + o5 * y5 + o6 * y6 + o7 * y7 + o8 * y8)
                tl.store(out + e, tl.sum(products, axis=0))
    store9(result + i * CHANNELS + f, stride, live, x0, x1, x2, x3, x4, x5, x6, x7, x8)


@triton.jit
def forces_kernel(
    offsets,
    reverse,
    unit,
    distance,
    knot,
    d_vector,
    d_distance,
    force,
    virial,
    BLOCK: tl.constexpr,
):
    """`equations.forces`; grid (N,); sums in float64."""
    i = tl.program_id(0).to(tl.int64)
    start = tl.load(offsets + i)
    end = tl.load(offsets + i + 1)
    f0 = tl.zeros((BLOCK,), dtype=tl.float64)
    f1 = f0
    f2 = f0
    v00 = f0
    v01 = f0
    v02 = f0
    v10 = f0
    v11 = f0
    v12 = f0
    v20 = f0
    v21 = f0
    v22 = f0
    for first in range(start, end, BLOCK):
        e = first + tl.arange(0, BLOCK)
        live = e < end
        live = live & (tl.load(knot + e, mask=live, other=-1) >= 0)
        back = tl.load(reverse + e, mask=live, other=0)
        # The reverse's direction is the opposite one.
        length = tl.load(d_distance + e, mask=live, other=0.0).to(tl.float64)
        length += tl.load(d_distance + back, mask=live, other=0.0).to(tl.float64)
        e3 = e.to(tl.int64) * 3
        back3 = back.to(tl.int64) * 3
        d = tl.load(distance + e, mask=live, other=0.0).to(tl.float64)
        u0 = tl.load(unit + e3, mask=live, other=0.0).to(tl.float64)
        u1 = tl.load(unit + e3 + 1, mask=live, other=0.0).to(tl.float64)
        u2 = tl.load(unit + e3 + 2, mask=live, other=0.0).to(tl.float64)
        p0 = tl.load(d_vector + e3, mask=live, other=0.0).to(tl.float64)
        p1 = tl.load(d_vector + e3 + 1, mask=live, other=0.0).to(tl.float64)
        p2 = tl.load(d_vector + e3 + 2, mask=live, other=0.0).to(tl.float64)
        p0 -= tl.load(d_vector + back3, mask=live, other=0.0).to(tl.float64) + length * u0
        p1 -= tl.load(d_vector + back3 + 1, mask=live, other=0.0).to(tl.float64) + length * u1
        p2 -= tl.load(d_vector + back3 + 2, mask=live, other=0.0).to(tl.float64) + length * u2
        f0 += p0
        f1 += p1
        f2 += p2
        d = d * 0.5
        v00 += d * u0 * p0
        v01 += d * u0 * p1
        v02 += d * u0 * p2
        v10 += d * u1 * p0
        v11 += d * u1 * p1
        v12 += d * u1 * p2
        v20 += d * u2 * p0
        v21 += d * u2 * p1
        v22 += d * u2 * p2
    tl.store(force + i * 3, tl.sum(f0, axis=0))
    tl.store(force + i * 3 + 1, tl.sum(f1, axis=0))
    tl.store(force + i * 3 + 2, tl.sum(f2, axis=0))
    tl.store(virial + i * 9, tl.sum(v00, axis=0))
    tl.store(virial + i * 9 + 1, tl.sum(v01, axis=0))
    tl.store(virial + i * 9 + 2, tl.sum(v02, axis=0))
    tl.store(virial + i * 9 + 3, tl.sum(v10, axis=0))
    tl.store(virial + i * 9 + 4, tl.sum(v11, axis=0))
    tl.store(virial + i * 9 + 5, tl.sum(v12, axis=0))
    tl.store(virial + i * 9 + 6, tl.sum(v20, axis=0))
    tl.store(virial + i * 9 + 7, tl.sum(v21, axis=0))
    tl.store(virial + i * 9 + 8, tl.sum(v22, axis=0))


@triton.jit
def sum_by_system_kernel(values, system, sums, atoms, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    """`equations.sum_by_system`; grid (systems, K), WIDTH is K; the same order every time."""
    own = tl.program_id(0)
    column = tl.program_id(1)
    total = tl.zeros((BLOCK,), dtype=values.dtype.element_ty)
    for first in range(0, atoms, BLOCK):
        n = first + tl.arange(0, BLOCK)
        live = n < atoms
        live = live & (tl.load(system + n, mask=live, other=-1) == own)
        total += tl.load(values + n.to(tl.int64) * WIDTH + column, mask=live, other=0.0)
    tl.store(sums + own * WIDTH + column, tl.sum(total, axis=0))
