r"""The operations of TensorNet on each atom: value, gradient, and the tangents of both.

For every quantity x a step knows four numbers: x, its gradient :math:`\bar x = dE/dx`, and along
the direction of the step (see `network`) their tangents :math:`\dot x` and :math:`\tilde x`, the
tangent of the gradient. An operation that is bilinear or a function of one argument has the
tangents that the product rule gives; those used here, with :math:`v = 1 / (|x|^2 + 1)`:

.. math::
    u = v x: \quad & \bar x = J \bar u, \; \dot u = J \dot x, \qquad
    J g = v g - 2 v^2 \langle g, x \rangle x \\
    & \tilde x = J \tilde u + \dot J \bar u, \qquad
    \dot J g = \dot v g - 2 v^2 (\langle g, \dot x \rangle x + \langle g, x \rangle \dot x)
    - 4 v \dot v \langle g, x \rangle x, \quad \dot v = -2 v^2 \langle x, \dot x \rangle \\
    C = q (Y M + M Y): \quad & \dot C = q (\dot Y M + M \dot Y + Y \dot M + \dot M Y) \\
    & \bar Y = q (\bar C M^T + M^T \bar C), \quad
    \tilde Y = q (\tilde C M^T + M^T \tilde C + \bar C \dot M^T + \dot M^T \bar C)

and the same with Y and M exchanged. Features have one component after the other, each of atoms x
channels, with channels padded to a multiple of sixteen (`Layout`).
"""

from __future__ import annotations

from typing import Any, NamedTuple

from numba import prange
from numpy.typing import NDArray

from ...inference.kernels.cpu.algebra import anticommutator, dot, product, transposed
from ...inference.kernels.cpu.compiled import inlined
from ...inference.kernels.cpu.components import load_apart, plus, plus_times, store_apart, times
from ...inference.kernels.cpu.simd import LANES, like, splat
from ...inference.kernels.cpu.tensornet_nodes import compressed, compressed_back, interaction


class Layout(NamedTuple):
    """Where features of all atoms have their numbers: component * stride + atom * width + channel."""

    shape: NDArray[Any]
    """Empty array that tells compiled functions the number of components (see `components`)."""
    atoms: int
    width: int
    """Channels, padded."""
    stride: int
    """Numbers between two components."""
    parity_conserving: bool


@inlined
def load(layout: Layout, x: Any, at: int) -> Any:
    """The components of an atom and sixteen channels."""
    return load_apart(layout.shape, x, at, layout.stride)


@inlined
def store(layout: Layout, x: Any, at: int, value: Any) -> None:
    """Write the components of an atom and sixteen channels."""
    store_apart(x, at, layout.stride, value)


@inlined
def compressed_back_tangent(x: Any, dx: Any, g: Any, dg: Any) -> Any:
    """Tangent of `compressed_back` for the tangents of x and g."""
    one, two = like(x[0], 1.0), like(x[0], 2.0)
    v = one / (dot(x, x) + one)
    v2 = two * v * v
    dv = -v2 * dot(x, dx)
    gx = dot(g, x)
    along_x = -v2 * dot(g, dx) - two * two * v * dv * gx
    found = plus_times(compressed_back(x, dg), dv, g)
    return plus_times(plus_times(found, along_x, x), -v2 * gx, dx)


@inlined
def interaction_back(parity_conserving: bool, y: Any, m: Any, q: Any, g: Any) -> Any:
    """Gradients of y and m from that of `interaction`; bilinear in g and in the other factor."""
    if parity_conserving:
        g = times(q, g)
        return anticommutator(g, transposed(m)), anticommutator(g, transposed(y))
    g = times(like(q, 2.0), g)
    return product(g, transposed(m)), product(transposed(y), g)


# Values


def enter(layout: Layout, x: Any, u: Any) -> None:
    """U = x / (|x|^2 + 1)."""
    for i in prange(layout.atoms):
        for at in range(i * layout.width, (i + 1) * layout.width, LANES):
            store(layout, u, at, compressed(load(layout, x, at)))


def interact(layout: Layout, y: Any, m: Any, charge: Any, t: Any) -> None:
    """T = c / (|c|^2 + 1) of the interaction c of y and m."""
    for i in prange(layout.atoms):
        q = splat(charge[i])
        for at in range(i * layout.width, (i + 1) * layout.width, LANES):
            c = interaction(
                load(layout, y, at), load(layout, m, at), q, layout.parity_conserving
            )
            store(layout, t, at, compressed(c))


def update(layout: Layout, u: Any, delta: Any, charge: Any, x: Any) -> None:
    """X = u + delta + q delta^2, the features after a layer."""
    for i in prange(layout.atoms):
        q = splat(charge[i])
        for at in range(i * layout.width, (i + 1) * layout.width, LANES):
            d = load(layout, delta, at)
            store(layout, x, at, plus_times(plus(load(layout, u, at), d), q, product(d, d)))


# Gradients


def update_back(layout: Layout, g: Any, delta: Any, charge: Any, g_delta: Any) -> None:
    """Gradient of delta from g, that of x; the gradient of u is g itself."""
    for i in prange(layout.atoms):
        q = splat(charge[i])
        for at in range(i * layout.width, (i + 1) * layout.width, LANES):
            x, d = load(layout, g, at), load(layout, delta, at)
            store(layout, g_delta, at, plus_times(x, q, anticommutator(x, transposed(d))))


def interact_back(
    layout: Layout, y: Any, m: Any, charge: Any, g: Any, g_y: Any, g_m: Any
) -> None:
    """Gradients of y and m from g, that of t."""
    for i in prange(layout.atoms):
        q = splat(charge[i])
        for at in range(i * layout.width, (i + 1) * layout.width, LANES):
            a, b = load(layout, y, at), load(layout, m, at)
            c = interaction(a, b, q, layout.parity_conserving)
            g_c = compressed_back(c, load(layout, g, at))
            g_a, g_b = interaction_back(layout.parity_conserving, a, b, q, g_c)
            store(layout, g_y, at, g_a)
            store(layout, g_m, at, g_b)


def enter_back(layout: Layout, x: Any, g: Any, direct: Any, g_x: Any) -> None:
    """Gradient of x from g + direct, that of u, which the mix and the next layer read.

    The tangent of u is the same function of that of x.
    """
    for i in prange(layout.atoms):
        for at in range(i * layout.width, (i + 1) * layout.width, LANES):
            both = plus(load(layout, g, at), load(layout, direct, at))
            store(layout, g_x, at, compressed_back(load(layout, x, at), both))


# Tangents of values


def enter_tangent(layout: Layout, x: Any, dx: Any, du: Any) -> None:
    """Tangent of `enter`."""
    for i in prange(layout.atoms):
        for at in range(i * layout.width, (i + 1) * layout.width, LANES):
            store(layout, du, at, compressed_back(load(layout, x, at), load(layout, dx, at)))


def interact_tangent(
    layout: Layout, y: Any, m: Any, dy: Any, dm: Any, charge: Any, dt: Any
) -> None:
    """Tangent of `interact`."""
    parity = layout.parity_conserving
    for i in prange(layout.atoms):
        q = splat(charge[i])
        for at in range(i * layout.width, (i + 1) * layout.width, LANES):
            a, b = load(layout, y, at), load(layout, m, at)
            c = interaction(a, b, q, parity)
            dc = plus(
                interaction(load(layout, dy, at), b, q, parity),
                interaction(a, load(layout, dm, at), q, parity),
            )
            store(layout, dt, at, compressed_back(c, dc))


def update_tangent(
    layout: Layout, du: Any, delta: Any, ddelta: Any, charge: Any, dx: Any
) -> None:
    """Tangent of `update`."""
    for i in prange(layout.atoms):
        q = splat(charge[i])
        for at in range(i * layout.width, (i + 1) * layout.width, LANES):
            d, dd = load(layout, delta, at), load(layout, ddelta, at)
            sums = plus(load(layout, du, at), dd)
            store(layout, dx, at, plus_times(sums, q, anticommutator(d, dd)))


# Tangents of gradients


def update_back_tangent(
    layout: Layout, g: Any, dg: Any, delta: Any, ddelta: Any, charge: Any, dg_delta: Any
) -> None:
    """Tangent of `update_back`."""
    for i in prange(layout.atoms):
        q = splat(charge[i])
        for at in range(i * layout.width, (i + 1) * layout.width, LANES):
            x, dx = load(layout, g, at), load(layout, dg, at)
            d, dd = load(layout, delta, at), load(layout, ddelta, at)
            both = plus(anticommutator(dx, transposed(d)), anticommutator(x, transposed(dd)))
            store(layout, dg_delta, at, plus_times(dx, q, both))


def interact_back_tangent(
    layout: Layout, y: Any, m: Any, dy: Any, dm: Any, charge: Any, g: Any, dg: Any, dg_y: Any,
    dg_m: Any,
) -> None:  # fmt: skip
    """Tangents of `interact_back`."""
    parity = layout.parity_conserving
    for i in prange(layout.atoms):
        q = splat(charge[i])
        for at in range(i * layout.width, (i + 1) * layout.width, LANES):
            a, b = load(layout, y, at), load(layout, m, at)
            da, db = load(layout, dy, at), load(layout, dm, at)
            c = interaction(a, b, q, parity)
            dc = plus(interaction(da, b, q, parity), interaction(a, db, q, parity))
            g_t = load(layout, g, at)
            g_c = compressed_back(c, g_t)
            dg_c = compressed_back_tangent(c, dc, g_t, load(layout, dg, at))
            one = interaction_back(parity, a, b, q, dg_c)
            two = interaction_back(parity, da, db, q, g_c)
            store(layout, dg_y, at, plus(one[0], two[0]))
            store(layout, dg_m, at, plus(one[1], two[1]))


def enter_back_tangent(
    layout: Layout, x: Any, dx: Any, g: Any, direct: Any, dg: Any, ddirect: Any, dg_x: Any
) -> None:
    """Tangent of `enter_back`."""
    for i in prange(layout.atoms):
        for at in range(i * layout.width, (i + 1) * layout.width, LANES):
            both = plus(load(layout, g, at), load(layout, direct, at))
            tangents = plus(load(layout, dg, at), load(layout, ddirect, at))
            found = compressed_back_tangent(
                load(layout, x, at), load(layout, dx, at), both, tangents
            )
            store(layout, dg_x, at, found)
