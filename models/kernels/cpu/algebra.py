"""3x3 tensors by their nine components, as tuples of vectors: see `models/cartesian.py`.

``x[0]`` is I, ``x[1:4]`` A and ``x[4:9]`` S, in the orthonormal basis, so that norms are sums of
squares. In memory the nine vectors of an atom and chunk of channels lie side by side.
"""

from __future__ import annotations

import math
from typing import Any

from .compiled import inlined
from .simd import LANES, fma, like, load, store

COMPONENTS = 9
FEATURES = COMPONENTS * LANES
"""Numbers of one atom and chunk of channels."""
ROOT_1_2 = math.sqrt(1 / 2)
ROOT_1_3 = math.sqrt(1 / 3)
ROOT_1_6 = math.sqrt(1 / 6)


@inlined
def load_tensor(x: Any, at: int) -> Any:
    """The nine components that begin at ``at``."""
    return (
        load(x, at),
        load(x, at + LANES),
        load(x, at + 2 * LANES),
        load(x, at + 3 * LANES),
        load(x, at + 4 * LANES),
        load(x, at + 5 * LANES),
        load(x, at + 6 * LANES),
        load(x, at + 7 * LANES),
        load(x, at + 8 * LANES),
    )


@inlined
def store_tensor(x: Any, at: int, t: Any) -> None:
    """Write nine components."""
    store(x, at, t[0])
    store(x, at + LANES, t[1])
    store(x, at + 2 * LANES, t[2])
    store(x, at + 3 * LANES, t[3])
    store(x, at + 4 * LANES, t[4])
    store(x, at + 5 * LANES, t[5])
    store(x, at + 6 * LANES, t[6])
    store(x, at + 7 * LANES, t[7])
    store(x, at + 8 * LANES, t[8])


@inlined
def scaled(i: Any, a: Any, s: Any, x: Any) -> Any:
    """I, A and S times a factor each."""
    return (
        i * x[0], a * x[1], a * x[2], a * x[3], s * x[4], s * x[5], s * x[6], s * x[7], s * x[8],
    )  # fmt: skip


@inlined
def plus_scaled(t: Any, i: Any, a: Any, s: Any, x: Any) -> Any:
    """T + scaled(i, a, s, x)."""
    return (
        fma(i, x[0], t[0]),
        fma(a, x[1], t[1]),
        fma(a, x[2], t[2]),
        fma(a, x[3], t[3]),
        fma(s, x[4], t[4]),
        fma(s, x[5], t[5]),
        fma(s, x[6], t[6]),
        fma(s, x[7], t[7]),
        fma(s, x[8], t[8]),
    )


@inlined
def plus(x: Any, y: Any) -> Any:
    """X + y."""
    return (
        x[0] + y[0], x[1] + y[1], x[2] + y[2], x[3] + y[3], x[4] + y[4], x[5] + y[5],
        x[6] + y[6], x[7] + y[7], x[8] + y[8],
    )  # fmt: skip


@inlined
def dots(x: Any, y: Any) -> Any:
    """Inner products of the I, the A and the S parts."""
    a = fma(x[3], y[3], fma(x[2], y[2], x[1] * y[1]))
    s = fma(x[8], y[8], fma(x[7], y[7], fma(x[6], y[6], fma(x[5], y[5], x[4] * y[4]))))
    return x[0] * y[0], a, s


@inlined
def dot(x: Any, y: Any) -> Any:
    """Frobenius product."""
    i, a, s = dots(x, y)
    return i + a + s


@inlined
def transposed(x: Any) -> Any:
    """X^T: the antisymmetric part changes its sign."""
    return (x[0], -x[1], -x[2], -x[3], x[4], x[5], x[6], x[7], x[8])


@inlined
def compose(x: Any) -> Any:
    """Components -> the entries of the matrix, by rows."""
    half = like(x[0], ROOT_1_2)
    i, d, e = like(x[0], ROOT_1_3) * x[0], half * x[7], like(x[0], ROOT_1_6) * x[8]
    return (
        i + d - e,
        half * (x[4] - x[3]),
        half * (x[6] + x[2]),
        half * (x[4] + x[3]),
        i - d - e,
        half * (x[5] - x[1]),
        half * (x[6] - x[2]),
        half * (x[5] + x[1]),
        i + e + e,
    )


@inlined
def decompose(m: Any) -> Any:
    """The entries of a matrix -> its components."""
    half = like(m[0], ROOT_1_2)
    diagonal = m[0] + m[4]
    return (
        like(m[0], ROOT_1_3) * (diagonal + m[8]),
        half * (m[7] - m[5]),
        half * (m[2] - m[6]),
        half * (m[3] - m[1]),
        half * (m[1] + m[3]),
        half * (m[5] + m[7]),
        half * (m[2] + m[6]),
        half * (m[0] - m[4]),
        like(m[0], ROOT_1_6) * (m[8] + m[8] - diagonal),
    )


@inlined
def entry(a: Any, b: Any, row: int, column: int) -> Any:
    """One entry of the matrix product."""
    last = a[3 * row + 2] * b[6 + column]
    return fma(a[3 * row], b[column], fma(a[3 * row + 1], b[3 + column], last))


@inlined
def product(x: Any, y: Any) -> Any:
    """Components of X Y."""
    a, b = compose(x), compose(y)
    return decompose(
        (
            entry(a, b, 0, 0), entry(a, b, 0, 1), entry(a, b, 0, 2),
            entry(a, b, 1, 0), entry(a, b, 1, 1), entry(a, b, 1, 2),
            entry(a, b, 2, 0), entry(a, b, 2, 1), entry(a, b, 2, 2),
        )
    )  # fmt: skip


@inlined
def both(a: Any, b: Any, row: int, column: int) -> Any:
    """One entry of A B + B A."""
    return entry(a, b, row, column) + entry(b, a, row, column)


@inlined
def anticommutator(x: Any, y: Any) -> Any:
    """Components of X Y + Y X."""
    a, b = compose(x), compose(y)
    return decompose(
        (
            both(a, b, 0, 0), both(a, b, 0, 1), both(a, b, 0, 2),
            both(a, b, 1, 0), both(a, b, 1, 1), both(a, b, 1, 2),
            both(a, b, 2, 0), both(a, b, 2, 1), both(a, b, 2, 2),
        )
    )  # fmt: skip
