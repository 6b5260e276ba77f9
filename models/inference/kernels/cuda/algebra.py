"""Triton kernels over atoms and channels: products of 3x3 tensors, norms, gates.

One element for each atom and channel, its nine components in registers; every kernel reads
and writes features once. The equations are those of the functions of the same names in
`equations`.
"""

# Kernels carry no types, and their compile-time constants are in capitals, as usual in Triton.
# mypy: disable-error-code="no-untyped-def,no-untyped-call"
# ruff: noqa: N803

from __future__ import annotations

import triton
import triton.language as tl

from .edges import SQRT_HALF, SQRT_SIXTH, SQRT_THIRD, load9, store9


@triton.jit
def _compose(x0, x1, x2, x3, x4, x5, x6, x7, x8):
    """Components -> matrix, row by row (`cartesian.BASIS`)."""
    i = x0 * SQRT_THIRD
    s = x8 * SQRT_SIXTH
    d = x7 * SQRT_HALF
    return (
        i + d - s,
        (x4 - x3) * SQRT_HALF,
        (x6 + x2) * SQRT_HALF,
        (x4 + x3) * SQRT_HALF,
        i - d - s,
        (x5 - x1) * SQRT_HALF,
        (x6 - x2) * SQRT_HALF,
        (x5 + x1) * SQRT_HALF,
        i + s * 2,
    )


@triton.jit
def _decompose(m00, m01, m02, m10, m11, m12, m20, m21, m22):
    """Matrix -> components: the transpose of `_compose`, because the basis is orthonormal."""
    return (
        (m00 + m11 + m22) * SQRT_THIRD,
        (m21 - m12) * SQRT_HALF,
        (m02 - m20) * SQRT_HALF,
        (m10 - m01) * SQRT_HALF,
        (m01 + m10) * SQRT_HALF,
        (m12 + m21) * SQRT_HALF,
        (m02 + m20) * SQRT_HALF,
        (m00 - m11) * SQRT_HALF,
        (m22 * 2 - m00 - m11) * SQRT_SIXTH,
    )


@triton.jit
def _matmul(
    a00, a01, a02, a10, a11, a12, a20, a21, a22, b00, b01, b02, b10, b11, b12, b20, b21, b22
):
    return (
        a00 * b00 + a01 * b10 + a02 * b20,
        a00 * b01 + a01 * b11 + a02 * b21,
        a00 * b02 + a01 * b12 + a02 * b22,
        a10 * b00 + a11 * b10 + a12 * b20,
        a10 * b01 + a11 * b11 + a12 * b21,
        a10 * b02 + a11 * b12 + a12 * b22,
        a20 * b00 + a21 * b10 + a22 * b20,
        a20 * b01 + a21 * b11 + a22 * b21,
        a20 * b02 + a21 * b12 + a22 * b22,
    )


@triton.jit
def _product(x0, x1, x2, x3, x4, x5, x6, x7, x8, y0, y1, y2, y3, y4, y5, y6, y7, y8):
    """Components of X Y."""
    a00, a01, a02, a10, a11, a12, a20, a21, a22 = _compose(x0, x1, x2, x3, x4, x5, x6, x7, x8)
    b00, b01, b02, b10, b11, b12, b20, b21, b22 = _compose(y0, y1, y2, y3, y4, y5, y6, y7, y8)
    c00, c01, c02, c10, c11, c12, c20, c21, c22 = _matmul(
        a00, a01, a02, a10, a11, a12, a20, a21, a22, b00, b01, b02, b10, b11, b12, b20, b21, b22
    )
    return _decompose(c00, c01, c02, c10, c11, c12, c20, c21, c22)


@triton.jit
def _anticommutator(x0, x1, x2, x3, x4, x5, x6, x7, x8, y0, y1, y2, y3, y4, y5, y6, y7, y8):
    """Components of X Y + Y X."""
    a00, a01, a02, a10, a11, a12, a20, a21, a22 = _compose(x0, x1, x2, x3, x4, x5, x6, x7, x8)
    b00, b01, b02, b10, b11, b12, b20, b21, b22 = _compose(y0, y1, y2, y3, y4, y5, y6, y7, y8)
    c00, c01, c02, c10, c11, c12, c20, c21, c22 = _matmul(
        a00, a01, a02, a10, a11, a12, a20, a21, a22, b00, b01, b02, b10, b11, b12, b20, b21, b22
    )
    d00, d01, d02, d10, d11, d12, d20, d21, d22 = _matmul(
        b00, b01, b02, b10, b11, b12, b20, b21, b22, a00, a01, a02, a10, a11, a12, a20, a21, a22
    )
    return _decompose(
        c00 + d00,
        c01 + d01,
        c02 + d02,
        c10 + d10,
        c11 + d11,
        c12 + d12,
        c20 + d20,
        c21 + d21,
        c22 + d22,
    )


@triton.jit
def _dot(x0, x1, x2, x3, x4, x5, x6, x7, x8, y0, y1, y2, y3, y4, y5, y6, y7, y8):
    """Sum over components of X Y."""
    vector = x1 * y1 + x2 * y2 + x3 * y3
    return x0 * y0 + vector + x4 * y4 + x5 * y5 + x6 * y6 + x7 * y7 + x8 * y8


@triton.jit
def _combined(
    y0, y1, y2, y3, y4, y5, y6, y7, y8, m0, m1, m2, m3, m4, m5, m6, m7, m8, q, PARITY: tl.constexpr
):
    """C of `equations.combine` before it is normalised."""
    if PARITY:
        c0, c1, c2, c3, c4, c5, c6, c7, c8 = _anticommutator(
            y0, y1, y2, y3, y4, y5, y6, y7, y8, m0, m1, m2, m3, m4, m5, m6, m7, m8
        )
        factor = q
    else:
        c0, c1, c2, c3, c4, c5, c6, c7, c8 = _product(
            y0, y1, y2, y3, y4, y5, y6, y7, y8, m0, m1, m2, m3, m4, m5, m6, m7, m8
        )
        factor = 2
    return (
        c0 * factor,
        c1 * factor,
        c2 * factor,
        c3 * factor,
        c4 * factor,
        c5 * factor,
        c6 * factor,
        c7 * factor,
        c8 * factor,
    )


@triton.jit
def normalize_kernel(x, out, size, BLOCK: tl.constexpr):
    """`equations.normalize`; ``size`` is N F, here and below the stride of a component."""
    n = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    live = n < size
    x0, x1, x2, x3, x4, x5, x6, x7, x8 = load9(x + n, size, live)
    s = _dot(x0, x1, x2, x3, x4, x5, x6, x7, x8, x0, x1, x2, x3, x4, x5, x6, x7, x8)
    r = 1 / (s + 1)
    store9(
        out + n, size, live, x0 * r, x1 * r, x2 * r, x3 * r, x4 * r, x5 * r, x6 * r, x7 * r, x8 * r
    )


@triton.jit
def normalize_adjoint_kernel(x, g, out, size, BLOCK: tl.constexpr):
    """`equations.normalize_adjoint`."""
    n = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    live = n < size
    x0, x1, x2, x3, x4, x5, x6, x7, x8 = load9(x + n, size, live)
    g0, g1, g2, g3, g4, g5, g6, g7, g8 = load9(g + n, size, live)
    s = _dot(x0, x1, x2, x3, x4, x5, x6, x7, x8, x0, x1, x2, x3, x4, x5, x6, x7, x8)
    p = _dot(x0, x1, x2, x3, x4, x5, x6, x7, x8, g0, g1, g2, g3, g4, g5, g6, g7, g8)
    r = 1 / (s + 1)
    p = 2 * p * r * r
    store9(
        out + n,
        size,
        live,
        g0 * r - x0 * p,
        g1 * r - x1 * p,
        g2 * r - x2 * p,
        g3 * r - x3 * p,
        g4 * r - x4 * p,
        g5 * r - x5 * p,
        g6 * r - x6 * p,
        g7 * r - x7 * p,
        g8 * r - x8 * p,
    )


@triton.jit
def combine_kernel(
    y,
    m,
    charge_factor,
    out,
    size,
    CHANNELS: tl.constexpr,
    PARITY: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """`equations.combine`."""
    n = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    live = n < size
    q = tl.load(charge_factor + n // CHANNELS, mask=live, other=0.0)
    y0, y1, y2, y3, y4, y5, y6, y7, y8 = load9(y + n, size, live)
    m0, m1, m2, m3, m4, m5, m6, m7, m8 = load9(m + n, size, live)
    c0, c1, c2, c3, c4, c5, c6, c7, c8 = _combined(
        y0, y1, y2, y3, y4, y5, y6, y7, y8, m0, m1, m2, m3, m4, m5, m6, m7, m8, q, PARITY
    )
    s = _dot(c0, c1, c2, c3, c4, c5, c6, c7, c8, c0, c1, c2, c3, c4, c5, c6, c7, c8)
    r = 1 / (s + 1)
    store9(
        out + n, size, live, c0 * r, c1 * r, c2 * r, c3 * r, c4 * r, c5 * r, c6 * r, c7 * r, c8 * r
    )


@triton.jit
def combine_adjoint_kernel(
    y,
    m,
    charge_factor,
    g,
    d_y,
    d_m,
    size,
    CHANNELS: tl.constexpr,
    PARITY: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """`equations.combine_adjoint`."""
    n = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    live = n < size
    q = tl.load(charge_factor + n // CHANNELS, mask=live, other=0.0)
    y0, y1, y2, y3, y4, y5, y6, y7, y8 = load9(y + n, size, live)
    m0, m1, m2, m3, m4, m5, m6, m7, m8 = load9(m + n, size, live)
    g0, g1, g2, g3, g4, g5, g6, g7, g8 = load9(g + n, size, live)
    c0, c1, c2, c3, c4, c5, c6, c7, c8 = _combined(
        y0, y1, y2, y3, y4, y5, y6, y7, y8, m0, m1, m2, m3, m4, m5, m6, m7, m8, q, PARITY
    )
    s = _dot(c0, c1, c2, c3, c4, c5, c6, c7, c8, c0, c1, c2, c3, c4, c5, c6, c7, c8)
    p = _dot(c0, c1, c2, c3, c4, c5, c6, c7, c8, g0, g1, g2, g3, g4, g5, g6, g7, g8)
    r = 1 / (s + 1)
    p = 2 * p * r * r
    # The gradient h of C, times the factor of the product
    factor = q if PARITY else 2
    g0 = (g0 * r - c0 * p) * factor
    g1 = (g1 * r - c1 * p) * factor
    g2 = (g2 * r - c2 * p) * factor
    g3 = (g3 * r - c3 * p) * factor
    g4 = (g4 * r - c4 * p) * factor
    g5 = (g5 * r - c5 * p) * factor
    g6 = (g6 * r - c6 * p) * factor
    g7 = (g7 * r - c7 * p) * factor
    g8 = (g8 * r - c8 * p) * factor
    # A changes its sign in the transpose.
    if PARITY:
        c0, c1, c2, c3, c4, c5, c6, c7, c8 = _anticommutator(
            g0, g1, g2, g3, g4, g5, g6, g7, g8, m0, -m1, -m2, -m3, m4, m5, m6, m7, m8
        )
        g0, g1, g2, g3, g4, g5, g6, g7, g8 = _anticommutator(
            g0, g1, g2, g3, g4, g5, g6, g7, g8, y0, -y1, -y2, -y3, y4, y5, y6, y7, y8
        )
    else:
        c0, c1, c2, c3, c4, c5, c6, c7, c8 = _product(
            g0, g1, g2, g3, g4, g5, g6, g7, g8, m0, -m1, -m2, -m3, m4, m5, m6, m7, m8
        )
        g0, g1, g2, g3, g4, g5, g6, g7, g8 = _product(
            y0, -y1, -y2, -y3, y4, y5, y6, y7, y8, g0, g1, g2, g3, g4, g5, g6, g7, g8
        )
    store9(d_y + n, size, live, c0, c1, c2, c3, c4, c5, c6, c7, c8)
    store9(d_m + n, size, live, g0, g1, g2, g3, g4, g5, g6, g7, g8)


@triton.jit
def update_kernel(x, dx, charge_factor, out, size, CHANNELS: tl.constexpr, BLOCK: tl.constexpr):
    """`equations.update`."""
    n = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    live = n < size
    q = tl.load(charge_factor + n // CHANNELS, mask=live, other=0.0)
    x0, x1, x2, x3, x4, x5, x6, x7, x8 = load9(x + n, size, live)
    d0, d1, d2, d3, d4, d5, d6, d7, d8 = load9(dx + n, size, live)
    s0, s1, s2, s3, s4, s5, s6, s7, s8 = _product(
        d0, d1, d2, d3, d4, d5, d6, d7, d8, d0, d1, d2, d3, d4, d5, d6, d7, d8
    )
    store9(
        out + n,
        size,
        live,
        x0 + d0 + q * s0,
        x1 + d1 + q * s1,
        x2 + d2 + q * s2,
        x3 + d3 + q * s3,
        x4 + d4 + q * s4,
        x5 + d5 + q * s5,
        x6 + d6 + q * s6,
        x7 + d7 + q * s7,
        x8 + d8 + q * s8,
    )


@triton.jit
def update_adjoint_kernel(
    dx, charge_factor, g, out, size, CHANNELS: tl.constexpr, BLOCK: tl.constexpr
):
    """`equations.update_adjoint`."""
    n = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    live = n < size
    q = tl.load(charge_factor + n // CHANNELS, mask=live, other=0.0)
    d0, d1, d2, d3, d4, d5, d6, d7, d8 = load9(dx + n, size, live)
    g0, g1, g2, g3, g4, g5, g6, g7, g8 = load9(g + n, size, live)
    s0, s1, s2, s3, s4, s5, s6, s7, s8 = _anticommutator(
        g0, g1, g2, g3, g4, g5, g6, g7, g8, d0, -d1, -d2, -d3, d4, d5, d6, d7, d8
    )
    store9(
        out + n,
        size,
        live,
        g0 + q * s0,
        g1 + q * s1,
        g2 + q * s2,
        g3 + q * s3,
        g4 + q * s4,
        g5 + q * s5,
        g6 + q * s6,
        g7 + q * s7,
        g8 + q * s8,
    )


@triton.jit
def norm_squared_kernel(x, out, size, BLOCK: tl.constexpr):
    """`cartesian.norm_squared`."""
    n = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    live = n < size
    x0, x1, x2, x3, x4, x5, x6, x7, x8 = load9(x + n, size, live)
    s = _dot(x0, x1, x2, x3, x4, x5, x6, x7, x8, x0, x1, x2, x3, x4, x5, x6, x7, x8)
    tl.store(out + n, s, mask=live)


@triton.jit
def irrep_dots_kernel(x, y, out, size, CHANNELS: tl.constexpr, BLOCK: tl.constexpr):
    """<X, Y> of I, A and S, (N, 3F): norms with Y = X, `equations.gate_adjoint` with Y = g."""
    n = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    live = n < size
    at = out + (n // CHANNELS) * (2 * CHANNELS) + n
    x0, x1, x2, x3, x4, x5, x6, x7, x8 = load9(x + n, size, live)
    y0, y1, y2, y3, y4, y5, y6, y7, y8 = load9(y + n, size, live)
    tl.store(at, x0 * y0, mask=live)
    tl.store(at + CHANNELS, x1 * y1 + x2 * y2 + x3 * y3, mask=live)
    s = x4 * y4 + x5 * y5 + x6 * y6 + x7 * y7 + x8 * y8
    tl.store(at + 2 * CHANNELS, s, mask=live)


@triton.jit
def scale_kernel(
    x, factors, out, size, SCALE: tl.constexpr, CHANNELS: tl.constexpr, BLOCK: tl.constexpr
):
    """I, A and S times their factor (N, 3F) and the number SCALE: `equations.gate`."""
    n = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    live = n < size
    at = factors + (n // CHANNELS) * (2 * CHANNELS) + n
    x0, x1, x2, x3, x4, x5, x6, x7, x8 = load9(x + n, size, live)
    i = tl.load(at, mask=live, other=0.0) * SCALE
    a = tl.load(at + CHANNELS, mask=live, other=0.0) * SCALE
    s = tl.load(at + 2 * CHANNELS, mask=live, other=0.0) * SCALE
    store9(
        out + n, size, live, x0 * i, x1 * a, x2 * a, x3 * a, x4 * s, x5 * s, x6 * s, x7 * s, x8 * s
    )


@triton.jit
def norm_squared_adjoint_kernel(x, g, out, size, BLOCK: tl.constexpr):
    """`equations.norm_squared_adjoint`."""
    n = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    live = n < size
    x0, x1, x2, x3, x4, x5, x6, x7, x8 = load9(x + n, size, live)
    s = tl.load(g + n, mask=live, other=0.0) * 2
    store9(
        out + n, size, live, x0 * s, x1 * s, x2 * s, x3 * s, x4 * s, x5 * s, x6 * s, x7 * s, x8 * s
    )
