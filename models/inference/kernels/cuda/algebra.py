"""Triton kernels over atoms and channels: products of 3x3 tensors, norms, gates.

There is one element per atom and channel, with its nine components in registers as a tuple; every
kernel reads and writes features once. The functions of the same names in
``tests/support/kernel_equations.py`` define what each kernel computes.
"""

# Kernels carry no types, and their compile-time constants are in capitals, as usual in Triton.
# Triton turns lists into tuples.
# mypy: disable-error-code="no-untyped-def,no-untyped-call"
# ruff: noqa: N803

from __future__ import annotations

import triton
import triton.language as tl

SQRT_HALF = tl.constexpr(0.5**0.5)
SQRT_THIRD = tl.constexpr((1 / 3) ** 0.5)
SQRT_SIXTH = tl.constexpr((1 / 6) ** 0.5)


@triton.jit
def load9(x, stride, live):
    """Load the nine components of features; ``x`` points to the first."""
    return [tl.load(x + k * stride, mask=live, other=0.0) for k in (0, 1, 2, 3, 4, 5, 6, 7, 8)]


@triton.jit
def store9(x, stride, live, values):
    """Store the nine components of features."""
    for k in tl.static_range(9):
        tl.store(x + k * stride, values[k], mask=live)


@triton.jit
def times(factor, x):
    """Every component times one factor."""
    return [factor * each for each in x]


@triton.jit
def scaled(factors, x):
    """I, A and S, each times its factor."""
    i, a, s = factors
    return (
        i * x[0], a * x[1], a * x[2], a * x[3], s * x[4], s * x[5], s * x[6], s * x[7], s * x[8]
    )  # fmt: skip


@triton.jit
def plus(x, y):
    """X + Y."""
    return [x[k] + y[k] for k in (0, 1, 2, 3, 4, 5, 6, 7, 8)]


@triton.jit
def transposed(x):
    """X^T: A changes sign."""
    return (x[0], -x[1], -x[2], -x[3], x[4], x[5], x[6], x[7], x[8])


@triton.jit
def dots(x, y):
    """Sums of X Y over the components of I, A and S."""
    return (
        x[0] * y[0],
        x[1] * y[1] + x[2] * y[2] + x[3] * y[3],
        x[4] * y[4] + x[5] * y[5] + x[6] * y[6] + x[7] * y[7] + x[8] * y[8],
    )


@triton.jit
def dot(x, y):
    """Sum of X Y over components."""
    vector = x[1] * y[1] + x[2] * y[2] + x[3] * y[3]
    return (
        x[0] * y[0] + vector + x[4] * y[4] + x[5] * y[5] + x[6] * y[6] + x[7] * y[7] + x[8] * y[8]
    )


@triton.jit
def _compose(x):
    """Components -> matrix, row by row (`cartesian.BASIS`)."""
    i = x[0] * SQRT_THIRD
    s = x[8] * SQRT_SIXTH
    d = x[7] * SQRT_HALF
    return (
        i + d - s,
        (x[4] - x[3]) * SQRT_HALF,
        (x[6] + x[2]) * SQRT_HALF,
        (x[4] + x[3]) * SQRT_HALF,
        i - d - s,
        (x[5] - x[1]) * SQRT_HALF,
        (x[6] - x[2]) * SQRT_HALF,
        (x[5] + x[1]) * SQRT_HALF,
        i + s * 2,
    )


@triton.jit
def _decompose(m):
    """Matrix -> components: the transpose of `_compose`, because the basis is orthonormal."""
    return (
        (m[0] + m[4] + m[8]) * SQRT_THIRD,
        (m[7] - m[5]) * SQRT_HALF,
        (m[2] - m[6]) * SQRT_HALF,
        (m[3] - m[1]) * SQRT_HALF,
        (m[1] + m[3]) * SQRT_HALF,
        (m[5] + m[7]) * SQRT_HALF,
        (m[2] + m[6]) * SQRT_HALF,
        (m[0] - m[4]) * SQRT_HALF,
        (m[8] * 2 - m[0] - m[4]) * SQRT_SIXTH,
    )


@triton.jit
def _entry(a, b, ROW: tl.constexpr, COLUMN: tl.constexpr):
    """Entry of the matrix product."""
    first = a[3 * ROW] * b[COLUMN] + a[3 * ROW + 1] * b[3 + COLUMN]
    return first + a[3 * ROW + 2] * b[6 + COLUMN]


@triton.jit
def _matmul(a, b):
    return (
        _entry(a, b, 0, 0), _entry(a, b, 0, 1), _entry(a, b, 0, 2),
        _entry(a, b, 1, 0), _entry(a, b, 1, 1), _entry(a, b, 1, 2),
        _entry(a, b, 2, 0), _entry(a, b, 2, 1), _entry(a, b, 2, 2),
    )  # fmt: skip


@triton.jit
def product(x, y):
    """Components of X Y."""
    return _decompose(_matmul(_compose(x), _compose(y)))


@triton.jit
def anticommutator(x, y):
    """Components of X Y + Y X."""
    a = _compose(x)
    b = _compose(y)
    return _decompose(plus(_matmul(a, b), _matmul(b, a)))


@triton.jit
def _combined(y, m, q, PARITY: tl.constexpr):
    """C of `combine` before it is normalised."""
    if PARITY:
        return times(q, anticommutator(y, m))
    else:  # a branch of the compiler
        return times(2, product(y, m))


@triton.jit
def _normalize_adjoint(x, g):
    """From the gradient of x / (|x|^2 + 1) to that of x."""
    r = 1 / (dot(x, x) + 1)
    return plus(times(r, g), times(-2 * dot(x, g) * r * r, x))


@triton.jit
def _elements(size, BLOCK: tl.constexpr):
    """Indices of this program's elements, and a mask of those that exist."""
    n = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    return n, n < size


@triton.jit
def normalize_kernel(x, out, size, BLOCK: tl.constexpr):
    """X / (|X|^2 + 1); ``size`` is N F, here and below the stride of a component."""
    n, live = _elements(size, BLOCK)
    x_ = load9(x + n, size, live)
    store9(out + n, size, live, times(1 / (dot(x_, x_) + 1), x_))


@triton.jit
def normalize_adjoint_kernel(x, g, out, size, BLOCK: tl.constexpr):
    """Gradient of X from that of X / (|X|^2 + 1)."""
    n, live = _elements(size, BLOCK)
    g_ = load9(g + n, size, live)
    store9(out + n, size, live, _normalize_adjoint(load9(x + n, size, live), g_))


@triton.jit
def combine_kernel(
    y, m, charge_factor, out, size, CHANNELS: tl.constexpr, PARITY: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """C / (|C|^2 + 1)."""
    n, live = _elements(size, BLOCK)
    q = tl.load(charge_factor + n // CHANNELS, mask=live, other=0.0)
    c = _combined(load9(y + n, size, live), load9(m + n, size, live), q, PARITY)
    store9(out + n, size, live, times(1 / (dot(c, c) + 1), c))


@triton.jit
def combine_adjoint_kernel(
    y, m, charge_factor, g, d_y, d_m, size, CHANNELS: tl.constexpr, PARITY: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Gradients of Y and of M."""
    n, live = _elements(size, BLOCK)
    q = tl.load(charge_factor + n // CHANNELS, mask=live, other=0.0)
    y_ = load9(y + n, size, live)
    m_ = load9(m + n, size, live)
    h = _normalize_adjoint(_combined(y_, m_, q, PARITY), load9(g + n, size, live))
    if PARITY:
        h = times(q, h)
        store9(d_y + n, size, live, anticommutator(h, transposed(m_)))
        store9(d_m + n, size, live, anticommutator(h, transposed(y_)))
    else:
        h = times(2, h)
        store9(d_y + n, size, live, product(h, transposed(m_)))
        store9(d_m + n, size, live, product(transposed(y_), h))


@triton.jit
def update_kernel(x, dx, charge_factor, out, size, CHANNELS: tl.constexpr, BLOCK: tl.constexpr):
    """X + dX + q dX^2."""
    n, live = _elements(size, BLOCK)
    q = tl.load(charge_factor + n // CHANNELS, mask=live, other=0.0)
    d = load9(dx + n, size, live)
    sums = plus(load9(x + n, size, live), d)
    store9(out + n, size, live, plus(sums, times(q, product(d, d))))


@triton.jit
def update_adjoint_kernel(
    dx, charge_factor, g, out, size, CHANNELS: tl.constexpr, BLOCK: tl.constexpr
):
    """Gradient of dX."""
    n, live = _elements(size, BLOCK)
    q = tl.load(charge_factor + n // CHANNELS, mask=live, other=0.0)
    g_ = load9(g + n, size, live)
    across = anticommutator(g_, transposed(load9(dx + n, size, live)))
    store9(out + n, size, live, plus(g_, times(q, across)))


@triton.jit
def norm_squared_kernel(x, out, size, BLOCK: tl.constexpr):
    """|X|^2."""
    n, live = _elements(size, BLOCK)
    x_ = load9(x + n, size, live)
    tl.store(out + n, dot(x_, x_), mask=live)


@triton.jit
def norm_squared_adjoint_kernel(x, g, out, size, BLOCK: tl.constexpr):
    """2 g X."""
    n, live = _elements(size, BLOCK)
    factor = tl.load(g + n, mask=live, other=0.0) * 2
    store9(out + n, size, live, times(factor, load9(x + n, size, live)))


@triton.jit
def irrep_dots_kernel(x, y, out, size, CHANNELS: tl.constexpr, BLOCK: tl.constexpr):
    """<X, Y> for I, A and S, (N, 3F): norms if Y = X, the gradient of a gate if Y = g."""
    n, live = _elements(size, BLOCK)
    at = out + (n // CHANNELS) * (2 * CHANNELS) + n
    sums = dots(load9(x + n, size, live), load9(y + n, size, live))
    for k in tl.static_range(3):
        tl.store(at + k * CHANNELS, sums[k], mask=live)


@triton.jit
def scale_kernel(
    x, factors, out, size, SCALE: tl.constexpr, CHANNELS: tl.constexpr, BLOCK: tl.constexpr
):
    """I, A and S times their factors (N, 3F) and SCALE."""
    n, live = _elements(size, BLOCK)
    at = factors + (n // CHANNELS) * (2 * CHANNELS) + n
    of_each = [tl.load(at + k * CHANNELS, mask=live, other=0.0) * SCALE for k in (0, 1, 2)]
    store9(out + n, size, live, scaled(of_each, load9(x + n, size, live)))
