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

and the same with Y and M exchanged. Kernels take a block of atoms at a time through all
operations between two sums over neighbours, so that it stays in the cache.
"""

from __future__ import annotations

from typing import Any

from ...inference.kernels.cpu.algebra import (
    anticommutator,
    dot,
    dots,
    plus_scaled,
    product,
    scaled,
    transposed,
)
from ...inference.kernels.cpu.compiled import internal
from ...inference.kernels.cpu.components import plus, plus_times, times
from ...inference.kernels.cpu.simd import like, splat
from ...inference.kernels.cpu.tensornet_nodes import compressed, compressed_back, interaction
from .layout import (
    Layout,
    each_atom,
    factor_place,
    load,
    load_factors,
    mix,
    place,
    store,
    store_factors,
)
from .loops import Turns, over, taken


@internal
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


@internal
def interaction_back(parity_conserving: bool, y: Any, m: Any, q: Any, g: Any) -> Any:
    """Gradients of y and m from that of `interaction`; bilinear in g and in the other factor."""
    if parity_conserving:
        g = times(q, g)
        return anticommutator(g, transposed(m)), anticommutator(g, transposed(y))
    g = times(like(q, 2.0), g)
    return product(g, transposed(m)), product(transposed(y), g)


BLOCK = 12
"""Atoms in a block, a multiple of the rows of a tile of `dense`."""
each_block = over(lambda layout, *_: -(-layout.atoms // BLOCK))


# Squared norms of irreps


@each_atom
def inner_by_irrep(
    turns: Turns, layout: Layout, x: Any, y: Any, factor: float, products: Any
) -> None:
    """Inner products of each irrep, times a factor."""
    for i in taken(turns):
        for chunk in range(layout.chunks):
            at = place(layout, chunk, i)
            found = dots(load(layout, x, at), load(layout, y, at))
            store_factors(
                layout,
                products,
                factor_place(layout, chunk, i),
                times(like(found[0], factor), found),
            )


@each_atom
def irreps_back(turns: Turns, layout: Layout, g: Any, x: Any, g_x: Any) -> None:
    """Gradient of x, 2 g x, from those of the squared norms of its irreps."""
    for i in taken(turns):
        for chunk in range(layout.chunks):
            at, c = place(layout, chunk, i), factor_place(layout, chunk, i)
            f = load_factors(layout, g, c)
            store(g_x, at, scaled(plus(f, f), load(layout, x, at)))


@each_atom
def irreps_back_tangent(
    turns: Turns, layout: Layout, g: Any, dg: Any, x: Any, dx: Any, dg_x: Any
) -> None:
    """Tangent of `irreps_back`."""
    for i in taken(turns):
        for chunk in range(layout.chunks):
            at, c = place(layout, chunk, i), factor_place(layout, chunk, i)
            f = load_factors(layout, g, c)
            df = load_factors(layout, dg, c)
            found = scaled(plus(df, df), load(layout, x, at))
            store(dg_x, at, plus_scaled(found, plus(f, f), load(layout, dx, at)))


# Embedding: x = s mix(sums)


@each_block
def embed_out(
    turns: Turns, layout: Layout, sums: Any, matrices: Any, scale: Any, mixed: Any, x: Any
) -> None:
    """Mixed = mix(sums), x = s mixed."""
    for block in taken(turns):
        first, last = block * BLOCK, min((block + 1) * BLOCK, layout.atoms)
        mix(layout, matrices, sums, mixed, first, last)
        for chunk in range(layout.chunks):
            for i in range(first, last):
                at, f = place(layout, chunk, i), factor_place(layout, chunk, i)
                s = load_factors(layout, scale, f)
                store(x, at, scaled(s, load(layout, mixed, at)))


@each_block
def embed_out_back(
    turns: Turns, layout: Layout, g: Any, transposes: Any, scale: Any, mixed: Any, g_scale: Any,
    g_mixed: Any, g_sums: Any,
) -> None:  # fmt: skip
    """Gradients of s, mixed and sums from g, that of x."""
    for block in taken(turns):
        first, last = block * BLOCK, min((block + 1) * BLOCK, layout.atoms)
        for chunk in range(layout.chunks):
            for i in range(first, last):
                at, f = place(layout, chunk, i), factor_place(layout, chunk, i)
                s = load_factors(layout, scale, f)
                x = load(layout, g, at)
                store(g_mixed, at, scaled(s, x))
                found = dots(x, load(layout, mixed, at))
                store_factors(layout, g_scale, f, found)
        mix(layout, transposes, g_mixed, g_sums, first, last)


@each_block
def embed_out_tangent(
    turns: Turns, layout: Layout, dsums: Any, matrices: Any, scale: Any, dscale: Any, mixed: Any,
    dmixed: Any, dx: Any,
) -> None:  # fmt: skip
    """Tangents of `embed_out`."""
    for block in taken(turns):
        first, last = block * BLOCK, min((block + 1) * BLOCK, layout.atoms)
        mix(layout, matrices, dsums, dmixed, first, last)
        for chunk in range(layout.chunks):
            for i in range(first, last):
                at, f = place(layout, chunk, i), factor_place(layout, chunk, i)
                s, ds = load_factors(layout, scale, f), load_factors(layout, dscale, f)
                x = scaled(ds, load(layout, mixed, at))
                store(dx, at, plus_scaled(x, s, load(layout, dmixed, at)))


@each_block
def embed_out_back_tangent(
    turns: Turns, layout: Layout, g: Any, dg: Any, transposes: Any, scale: Any, dscale: Any,
    mixed: Any, dmixed: Any, dg_scale: Any, dg_mixed: Any, dg_sums: Any,
) -> None:  # fmt: skip
    """Tangents of `embed_out_back`."""
    for block in taken(turns):
        first, last = block * BLOCK, min((block + 1) * BLOCK, layout.atoms)
        for chunk in range(layout.chunks):
            for i in range(first, last):
                at, f = place(layout, chunk, i), factor_place(layout, chunk, i)
                s, ds = load_factors(layout, scale, f), load_factors(layout, dscale, f)
                x, dx = load(layout, g, at), load(layout, dg, at)
                store(dg_mixed, at, plus_scaled(scaled(ds, x), s, dx))
                found = dots(dx, load(layout, mixed, at))
                found = plus(found, dots(x, load(layout, dmixed, at)))
                store_factors(layout, dg_scale, f, found)
        mix(layout, transposes, dg_mixed, dg_sums, first, last)


# Interaction layers


@each_block
def enter(turns: Turns, layout: Layout, x: Any, u: Any, matrices: Any, y: Any) -> None:
    """U = x / (|x|^2 + 1), y = mix(u)."""
    for block in taken(turns):
        first, last = block * BLOCK, min((block + 1) * BLOCK, layout.atoms)
        for chunk in range(layout.chunks):
            for i in range(first, last):
                at = place(layout, chunk, i)
                store(u, at, compressed(load(layout, x, at)))
        mix(layout, matrices, u, y, first, last)


@each_block
def interact(
    turns: Turns, layout: Layout, u: Any, y: Any, m: Any, charge: Any, c: Any, t: Any,
    matrices: Any, delta: Any, x: Any,
) -> None:  # fmt: skip
    """C, t = c / (|c|^2 + 1), delta = mix(t), x = u + delta + q delta^2."""
    for block in taken(turns):
        first, last = block * BLOCK, min((block + 1) * BLOCK, layout.atoms)
        for chunk in range(layout.chunks):
            for i in range(first, last):
                at, q = place(layout, chunk, i), splat(charge[i])
                both = load(layout, y, at), load(layout, m, at)
                found = interaction(both[0], both[1], q, layout.parity_conserving)
                store(c, at, found)
                store(t, at, compressed(found))
        mix(layout, matrices, t, delta, first, last)
        for chunk in range(layout.chunks):
            for i in range(first, last):
                at, q = place(layout, chunk, i), splat(charge[i])
                d = load(layout, delta, at)
                store(x, at, plus_times(plus(load(layout, u, at), d), q, product(d, d)))


@each_block
def interact_back(
    turns: Turns, layout: Layout, y: Any, m: Any, charge: Any, c: Any, delta: Any, g: Any,
    g_delta: Any, transposes: Any, g_t: Any, g_y: Any, g_m: Any,
) -> None:  # fmt: skip
    """Gradients of delta, t, y and m from g, that of x; the gradient of u is g itself.

    ``g_y`` is the part that does not come through the messages.
    """
    for block in taken(turns):
        first, last = block * BLOCK, min((block + 1) * BLOCK, layout.atoms)
        for chunk in range(layout.chunks):
            for i in range(first, last):
                at, q = place(layout, chunk, i), splat(charge[i])
                x, d = load(layout, g, at), load(layout, delta, at)
                store(g_delta, at, plus_times(x, q, anticommutator(x, transposed(d))))
        mix(layout, transposes, g_delta, g_t, first, last)
        for chunk in range(layout.chunks):
            for i in range(first, last):
                at, q = place(layout, chunk, i), splat(charge[i])
                a, b = load(layout, y, at), load(layout, m, at)
                g_c = compressed_back(load(layout, c, at), load(layout, g_t, at))
                g_a, g_b = interaction_back(layout.parity_conserving, a, b, q, g_c)
                store(g_y, at, g_a)
                store(g_m, at, g_b)


@each_block
def enter_back(
    turns: Turns, layout: Layout, x: Any, g_y: Any, transposes: Any, g: Any, g_u: Any, g_x: Any
) -> None:
    """Gradients of u and x; g is that of the features after the layer, a part of that of u."""
    for block in taken(turns):
        first, last = block * BLOCK, min((block + 1) * BLOCK, layout.atoms)
        mix(layout, transposes, g_y, g_u, first, last)
        for chunk in range(layout.chunks):
            for i in range(first, last):
                at = place(layout, chunk, i)
                both = plus(load(layout, g_u, at), load(layout, g, at))
                store(g_u, at, both)
                store(g_x, at, compressed_back(load(layout, x, at), both))


# Tangents


@each_block
def enter_tangent(
    turns: Turns, layout: Layout, x: Any, dx: Any, du: Any, matrices: Any, dy: Any
) -> None:
    """Tangents of `enter`."""
    for block in taken(turns):
        first, last = block * BLOCK, min((block + 1) * BLOCK, layout.atoms)
        for chunk in range(layout.chunks):
            for i in range(first, last):
                at = place(layout, chunk, i)
                store(du, at, compressed_back(load(layout, x, at), load(layout, dx, at)))
        mix(layout, matrices, du, dy, first, last)


@each_block
def interact_tangent(
    turns: Turns, layout: Layout, du: Any, y: Any, dy: Any, m: Any, dm: Any, charge: Any, c: Any,
    dc: Any, dt: Any, matrices: Any, delta: Any, ddelta: Any, dx: Any,
) -> None:  # fmt: skip
    """Tangents of `interact`."""
    parity = layout.parity_conserving
    for block in taken(turns):
        first, last = block * BLOCK, min((block + 1) * BLOCK, layout.atoms)
        for chunk in range(layout.chunks):
            for i in range(first, last):
                at, q = place(layout, chunk, i), splat(charge[i])
                a, b = load(layout, y, at), load(layout, m, at)
                found = plus(
                    interaction(load(layout, dy, at), b, q, parity),
                    interaction(a, load(layout, dm, at), q, parity),
                )
                store(dc, at, found)
                store(dt, at, compressed_back(load(layout, c, at), found))
        mix(layout, matrices, dt, ddelta, first, last)
        for chunk in range(layout.chunks):
            for i in range(first, last):
                at, q = place(layout, chunk, i), splat(charge[i])
                d, dd = load(layout, delta, at), load(layout, ddelta, at)
                sums = plus(load(layout, du, at), dd)
                store(dx, at, plus_times(sums, q, anticommutator(d, dd)))


@each_block
def interact_back_tangent(
    turns: Turns, layout: Layout, y: Any, dy: Any, m: Any, dm: Any, charge: Any, c: Any, dc: Any,
    delta: Any, ddelta: Any, g: Any, dg: Any, dg_delta: Any, transposes: Any, g_t: Any, dg_y: Any,
    dg_m: Any,
) -> None:  # fmt: skip
    """Tangents of `interact_back`."""
    parity = layout.parity_conserving
    for block in taken(turns):
        first, last = block * BLOCK, min((block + 1) * BLOCK, layout.atoms)
        for chunk in range(layout.chunks):
            for i in range(first, last):
                at, q = place(layout, chunk, i), splat(charge[i])
                x, dx = load(layout, g, at), load(layout, dg, at)
                d, dd = load(layout, delta, at), load(layout, ddelta, at)
                both = plus(anticommutator(dx, transposed(d)), anticommutator(x, transposed(dd)))
                store(dg_delta, at, plus_times(dx, q, both))
        mix(layout, transposes, dg_delta, dg_y, first, last)  # that of t, for the loop below
        for chunk in range(layout.chunks):
            for i in range(first, last):
                at, q = place(layout, chunk, i), splat(charge[i])
                a, b = load(layout, y, at), load(layout, m, at)
                da, db = load(layout, dy, at), load(layout, dm, at)
                here, of_t = load(layout, c, at), load(layout, g_t, at)
                g_c = compressed_back(here, of_t)
                dg_c = compressed_back_tangent(
                    here, load(layout, dc, at), of_t, load(layout, dg_y, at)
                )
                one = interaction_back(parity, a, b, q, dg_c)
                two = interaction_back(parity, da, db, q, g_c)
                store(dg_y, at, plus(one[0], two[0]))
                store(dg_m, at, plus(one[1], two[1]))


@each_block
def enter_back_tangent(
    turns: Turns, layout: Layout, x: Any, dx: Any, dg_y: Any, transposes: Any, dg: Any, g_u: Any,
    dg_x: Any,
) -> None:  # fmt: skip
    """Tangent of `enter_back`, of the gradient of x only."""
    for block in taken(turns):
        first, last = block * BLOCK, min((block + 1) * BLOCK, layout.atoms)
        mix(layout, transposes, dg_y, dg_x, first, last)  # that of u, for the loop below
        for chunk in range(layout.chunks):
            for i in range(first, last):
                at = place(layout, chunk, i)
                of_u = plus(load(layout, dg_x, at), load(layout, dg, at))
                found = compressed_back_tangent(
                    load(layout, x, at), load(layout, dx, at), load(layout, g_u, at), of_u
                )
                store(dg_x, at, found)
