r"""Layer norms and dense layers of rows: value, gradient, and the tangents of both.

The notation is that of `atoms`. Layer norm of rows x, padded with zeros to n numbers:

.. math::
    y &= w \hat x + b, \qquad \hat x = \rho (x - \mu), \qquad
    \rho = (\sigma^2 + \epsilon)^{-1/2} \\
    \bar x &= \rho (h - \langle h \rangle - \hat x \langle h \hat x \rangle), \qquad
    h = w \bar y \\
    \dot{\hat x} &= \rho (\dot x - \langle \dot x \rangle)
    + \frac{\dot \rho}{\rho} \hat x, \qquad
    \frac{\dot \rho}{\rho} = -\rho \langle \hat x \dot x \rangle \\
    \tilde x &= \rho (\tilde h - \langle \tilde h \rangle
    - \hat x \langle \tilde h \hat x \rangle) + \frac{\dot \rho}{\rho} \bar x
    - \rho (\dot{\hat x} \langle h \hat x \rangle + \hat x \langle h \dot{\hat x} \rangle)

where :math:`\langle \cdot \rangle` is the sum over a row divided by n. Each zero has a share in
:math:`\sigma^2`, as :math:`\hat x_0 = -\rho \mu`. Dense layers:

.. math::
    y &= a(z), \quad z = W x + b, \qquad \bar z = a' \bar y, \quad \bar x = W^T \bar z \\
    \dot y &= a' \dot z, \quad \dot z = W \dot x, \qquad
    \tilde z = a' \tilde y + a'' \dot z \bar y, \quad \tilde x = W^T \tilde z

Rows have their numbers by chunks of sixteen, ``(chunk * rows + row) * 16 + number % 16``, padded
with zeros. Values and gradients of the numbers before and after each layer are one behind the
other. In padded places, weights are zero, and what other arrays hold there has no effect.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic
from numba.np import arrayobj
from numpy.typing import NDArray

from ...inference.kernels.cpu.compiled import internal
from ...inference.kernels.cpu.dense import multiply
from ...inference.kernels.cpu.perceptron import sigmoid
from ...inference.kernels.cpu.simd import (
    LANES,
    absolute,
    exp,
    fma,
    lane,
    like,
    load,
    log,
    maximum,
    splat,
    store,
    total,
)
from ...maths.activations import LOG_2
from .layout import number
from .loops import Turns, over, taken
from .products import add_product

BLOCK = 12
"""Rows in a block, a multiple of the rows of a tile of `dense`."""
each_block = over(lambda layers, *_: -(-layers.rows.size // BLOCK))


class Layers(NamedTuple):
    """A layer norm, unless its weights are empty, and dense layers."""

    matrices: NDArray[Any]
    """W of each layer, packed for products with rows."""
    rows: NDArray[np.int64]
    """(rows,), places of the rows within a chunk."""
    chunks: NDArray[np.int64]
    """(layers + 1,), chunks of the numbers before and after each layer."""
    activations: NDArray[np.int64]
    """(layers,), places in `perceptron.ACTIVATIONS`."""
    transposes: NDArray[Any]
    """W^T of each layer, packed."""
    biases: NDArray[Any]
    zeros: NDArray[Any]
    """As many zeros as the widest layer has numbers."""
    norm_weight: NDArray[Any]
    norm_bias: NDArray[Any]
    norm_size: int
    """n of the layer norm."""
    epsilon: float


class Values(NamedTuple):
    """What a pass keeps for the next ones: as `Layers`, layer behind layer."""

    x: NDArray[Any]
    """Inputs, and outputs of each layer."""
    slopes: NDArray[Any]
    """a' of each layer."""
    curvatures: NDArray[Any]
    """a''."""
    hat: NDArray[Any]
    """Normalised inputs."""
    rho: NDArray[Any]
    """(rows,)."""
    g: NDArray[Any]
    """Gradients of x."""
    g_z: NDArray[Any]
    g_norm: NDArray[Any]
    """Gradient of the layer norm's inputs."""
    projection: NDArray[Any]
    """(rows,), mean of h x_hat."""


class Tangents(NamedTuple):
    """Tangents of `Values`."""

    x: NDArray[Any]
    z: NDArray[Any]
    hat: NDArray[Any]
    ratio: NDArray[Any]
    """(rows,), tangent of rho by rho."""
    g: NDArray[Any]
    g_z: NDArray[Any]
    g_norm: NDArray[Any]


@internal
def activate(activation: int, x: Any) -> Any:
    """Value, slope and curvature of an activation."""
    one, two = like(x, 1.0), like(x, 2.0)
    if activation == 0:
        return x, one, one - one
    if activation == 3:  # tanh: 2 s(2 x) - 1
        t = one - two / (one + exp(x + x))
        slope = one - t * t
        return t, slope, -two * t * slope
    s = sigmoid(x)
    slope = s * (one - s)
    if activation == 1:  # silu: x s(x)
        return x * s, fma(x, slope, s), slope * fma(x, one - s - s, two)
    if activation == 2:  # shifted softplus, softplus - log 2
        return softplus(x) - like(x, LOG_2), s, slope
    if activation == 4:  # sigmoid
        return s, slope, slope * (one - s - s)
    t = one - two / (one + exp(two * softplus(x)))  # mish: x tanh(softplus)
    rest = one - t * t
    dt = rest * s
    return x * t, fma(x, dt, t), fma(x, rest * slope - two * t * dt * s, two * dt)


@internal
def softplus(x: Any) -> Any:
    """log(1 + e^x)."""
    return maximum(x, like(x, 0.0)) + log(like(x, 1.0) + exp(-absolute(x)))


@intrinsic
def place(typing: Any, layers: Any, chunk: Any, row: Any) -> Any:
    """Where sixteen numbers of a row begin; not a call, see `layout`."""
    kind = layers.types[layers.fields.index("rows")]

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        rows = arrayobj.make_array(kind)(
            context, builder, number(builder, layers, args[0], "rows")
        ).nitems
        found = builder.add(builder.mul(args[1], rows), args[2])
        return builder.mul(found, ir.Constant(found.type, LANES))

    return types.intp(layers, types.intp, types.intp), generate


@each_block
def value(turns: Turns, layers: Layers, raw: Any, v: Values) -> None:
    """Outputs of all layers from the inputs ``raw``, those of the layer norm."""
    for block in taken(turns):
        first, last = block * BLOCK, min((block + 1) * BLOCK, layers.rows.size)
        stride = place(layers, 1, 0)
        if layers.norm_weight.size > 0:
            for row in range(first, last):
                normalise(layers, row, raw, v)
        at, out, w, b = 0, 0, 0, 0
        for k in range(layers.activations.size):
            inputs, outputs = layers.chunks[k], layers.chunks[k + 1]
            after = at + place(layers, inputs, 0)
            multiply(
                v.x, at, stride, layers.rows[first:last], last - first, layers.matrices, w,
                layers.biases, b, inputs, outputs, v.x, after, stride,
            )  # fmt: skip
            for chunk in range(outputs):
                for row in range(first, last):
                    here = place(layers, chunk, row)
                    y, slope, curvature = activate(layers.activations[k], load(v.x, after + here))
                    store(v.x, after + here, y)
                    store(v.slopes, out + here, slope)
                    store(v.curvatures, out + here, curvature)
            at, out = after, out + place(layers, outputs, 0)
            w, b = w + inputs * outputs * LANES * LANES, b + outputs * LANES


@internal
def mean_of(layers: Layers, x: Any) -> Any:
    """Sum of the lanes by n, in all lanes."""
    return like(x, total(x) / layers.norm_size)


@internal
def normalise(layers: Layers, row: int, raw: Any, v: Values) -> None:
    """Layer norm of a row."""
    chunks = layers.chunks[0]
    sums = load(raw, place(layers, 0, row))
    for chunk in range(1, chunks):
        sums = sums + load(raw, place(layers, chunk, row))
    middle = mean_of(layers, sums)
    squares = sums - sums
    for chunk in range(chunks):
        centred = load(raw, place(layers, chunk, row)) - middle
        squares = fma(centred, centred, squares)
    zeros = like(sums, (layers.norm_size - chunks * LANES) / layers.norm_size)
    variance = fma(zeros * middle, middle, mean_of(layers, squares))
    v.rho[row] = 1 / np.sqrt(lane(variance, 0) + layers.epsilon)
    rho = splat(v.rho[row])
    for chunk in range(chunks):
        here, c = place(layers, chunk, row), chunk * LANES
        hat = (load(raw, here) - middle) * rho
        store(v.hat, here, hat)
        store(v.x, here, fma(hat, load(layers.norm_weight, c), load(layers.norm_bias, c)))


@each_block
def back(turns: Turns, layers: Layers, v: Values) -> None:
    """Gradients of all numbers from that of the outputs, the last part of ``v.g``."""
    for block in taken(turns):
        first, last = block * BLOCK, min((block + 1) * BLOCK, layers.rows.size)
        stride = place(layers, 1, 0)
        at, out = v.g.size, v.g_z.size
        w = layers.transposes.size
        for k in range(layers.activations.size - 1, -1, -1):
            inputs, outputs = layers.chunks[k], layers.chunks[k + 1]
            at, out = at - place(layers, outputs, 0), out - place(layers, outputs, 0)
            w -= inputs * outputs * LANES * LANES
            for chunk in range(outputs):
                for row in range(first, last):
                    here = place(layers, chunk, row)
                    store(v.g_z, out + here, load(v.slopes, out + here) * load(v.g, at + here))
            multiply(
                v.g_z, out, stride, layers.rows[first:last], last - first, layers.transposes, w,
                layers.zeros, 0, outputs, inputs, v.g, at - place(layers, inputs, 0), stride,
            )  # fmt: skip
        if layers.norm_weight.size > 0:
            for row in range(first, last):
                normalise_back(layers, row, v)


@internal
def normalise_back(layers: Layers, row: int, v: Values) -> None:
    """Gradient of a row before the layer norm."""
    rho = splat(v.rho[row])
    sums = rho - rho
    products = sums
    for chunk in range(layers.chunks[0]):
        here = place(layers, chunk, row)
        h = load(layers.norm_weight, chunk * LANES) * load(v.g, here)
        sums = sums + h
        products = fma(h, load(v.hat, here), products)
    middle, projection = mean_of(layers, sums), mean_of(layers, products)
    v.projection[row] = lane(projection, 0)
    for chunk in range(layers.chunks[0]):
        here = place(layers, chunk, row)
        h = load(layers.norm_weight, chunk * LANES) * load(v.g, here)
        store(v.g_norm, here, rho * (h - middle - load(v.hat, here) * projection))


@each_block
def tangent(turns: Turns, layers: Layers, draw: Any, v: Values, d: Tangents) -> None:
    """Tangents of `value`."""
    for block in taken(turns):
        first, last = block * BLOCK, min((block + 1) * BLOCK, layers.rows.size)
        stride = place(layers, 1, 0)
        for row in range(first, last):
            normalise_tangent(layers, row, draw, v, d)
        at, out, w = 0, 0, 0
        for k in range(layers.activations.size):
            inputs, outputs = layers.chunks[k], layers.chunks[k + 1]
            multiply(
                d.x, at, stride, layers.rows[first:last], last - first, layers.matrices, w,
                layers.zeros, 0, inputs, outputs, d.z, out, stride,
            )  # fmt: skip
            at += place(layers, inputs, 0)
            for chunk in range(outputs):
                for row in range(first, last):
                    here = place(layers, chunk, row)
                    store(d.x, at + here, load(v.slopes, out + here) * load(d.z, out + here))
            out += place(layers, outputs, 0)
            w += inputs * outputs * LANES * LANES


@internal
def normalise_tangent(layers: Layers, row: int, draw: Any, v: Values, d: Tangents) -> None:
    """Tangent of the layer norm of a row."""
    rho = splat(v.rho[row])
    sums = rho - rho
    products = sums
    for chunk in range(layers.chunks[0]):
        here = place(layers, chunk, row)
        dx = load(draw, here)
        sums = sums + dx
        products = fma(dx, load(v.hat, here), products)
    middle, ratio = mean_of(layers, sums), -rho * mean_of(layers, products)
    d.ratio[row] = lane(ratio, 0)
    for chunk in range(layers.chunks[0]):
        here = place(layers, chunk, row)
        dhat = fma(ratio, load(v.hat, here), rho * (load(draw, here) - middle))
        store(d.hat, here, dhat)
        store(d.x, here, dhat * load(layers.norm_weight, chunk * LANES))


@each_block
def back_tangent(turns: Turns, layers: Layers, v: Values, d: Tangents) -> None:
    """Tangents of `back`."""
    for block in taken(turns):
        first, last = block * BLOCK, min((block + 1) * BLOCK, layers.rows.size)
        stride = place(layers, 1, 0)
        at, out = v.g.size, v.g_z.size
        w = layers.transposes.size
        for k in range(layers.activations.size - 1, -1, -1):
            inputs, outputs = layers.chunks[k], layers.chunks[k + 1]
            at, out = at - place(layers, outputs, 0), out - place(layers, outputs, 0)
            w -= inputs * outputs * LANES * LANES
            for chunk in range(outputs):
                for row in range(first, last):
                    here = place(layers, chunk, row)
                    dz = load(v.curvatures, out + here) * load(d.z, out + here)
                    dg_z = load(v.slopes, out + here) * load(d.g, at + here)
                    store(d.g_z, out + here, fma(dz, load(v.g, at + here), dg_z))
            multiply(
                d.g_z, out, stride, layers.rows[first:last], last - first, layers.transposes, w,
                layers.zeros, 0, outputs, inputs, d.g, at - place(layers, inputs, 0), stride,
            )  # fmt: skip
        for row in range(first, last):
            normalise_back_tangent(layers, row, v, d)


@internal
def normalise_back_tangent(layers: Layers, row: int, v: Values, d: Tangents) -> None:
    """Tangent of the gradient of a row before the layer norm."""
    rho, ratio, projection = splat(v.rho[row]), splat(d.ratio[row]), splat(v.projection[row])
    sums = rho - rho
    products, crossed = sums, sums
    for chunk in range(layers.chunks[0]):
        here, weight = place(layers, chunk, row), load(layers.norm_weight, chunk * LANES)
        dh = weight * load(d.g, here)
        sums = sums + dh
        products = fma(dh, load(v.hat, here), products)
        crossed = fma(weight * load(v.g, here), load(d.hat, here), crossed)
    middle, both = mean_of(layers, sums), mean_of(layers, products + crossed)
    for chunk in range(layers.chunks[0]):
        here = place(layers, chunk, row)
        dh = load(layers.norm_weight, chunk * LANES) * load(d.g, here)
        found = dh - middle - load(v.hat, here) * both - load(d.hat, here) * projection
        store(d.g_norm, here, fma(ratio, load(v.g_norm, here), rho * found))


# Gradients of the weights


@over(lambda layers, *_: layers.chunks[1:].sum())
def add_weights(
    turns: Turns, layers: Layers, g_z: Any, x: Any, matrices: Any, biases: Any
) -> None:
    r"""Add :math:`g x^T` to the gradients of W, and g to those of b unless they are empty.

    ``g_z`` are gradients of all z, or their tangents, and ``x`` tangents of all x, or these.
    """
    rows = layers.rows.size
    for task in taken(turns):
        chunk, at, w, b = task, 0, 0, 0
        k = 0
        while chunk >= layers.chunks[k + 1]:  # find the layer
            at += place(layers, layers.chunks[k], 0)
            w += layers.chunks[k] * layers.chunks[k + 1] * LANES * LANES
            b += layers.chunks[k + 1] * LANES
            chunk -= layers.chunks[k + 1]
            k += 1
        inputs, g = layers.chunks[k], place(layers, task, 0)
        add_product(
            g_z, g, x, at, place(layers, 1, 0), layers.rows, rows, inputs, matrices,
            w + chunk * LANES * inputs * LANES,
        )  # fmt: skip
        if biases.size > 0:
            here = b + chunk * LANES
            sums = load(biases, here)
            for row in range(rows):
                sums = sums + load(g_z, g + row * LANES)
            store(biases, here, sums)


@over(lambda layers, *_: layers.chunks[0])
def add_norm_weights(
    turns: Turns, layers: Layers, v: Values, d: Tangents, weight: Any, bias: Any
) -> None:
    """Add the gradients of the layer norm's weights."""
    for chunk in taken(turns):
        of_weight, of_bias = load(weight, chunk * LANES), load(bias, chunk * LANES)
        for row in range(layers.rows.size):
            here = place(layers, chunk, row)
            dg = load(d.g, here)
            of_bias = of_bias + dg
            of_weight = fma(dg, load(v.hat, here), of_weight)
            of_weight = fma(load(v.g, here), load(d.hat, here), of_weight)
        store(weight, chunk * LANES, of_weight)
        store(bias, chunk * LANES, of_bias)
