"""Perceptrons and layer norms on blocks of atoms, forward and backward.

The values of a block of atoms are in a flat array, layer after layer, each in the layout of
`dense`: chunks of ``block`` rows of sixteen numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ....maths.activations import LOG_2
from ..weights import LAYER_NORM_EPSILON, Dense
from .compiled import internal
from .dense import multiply, pack_matrix
from .simd import LANES, absolute, exp, fma, like, load, log, maximum, minimum, store, total

ACTIVATIONS = ("identity", "silu", "ssp", "tanh", "sigmoid", "mish")


class Perceptron(NamedTuple):
    """Dense layers, packed."""

    chunks: NDArray[np.int64]
    """(layers + 1,), chunks of the input and of each layer's output."""
    activations: NDArray[np.int64]
    """(layers,), index in ``ACTIVATIONS``."""
    weights: NDArray[Any]
    """Packed matrices, layer after layer."""
    transposed: NDArray[Any]
    """Packed transposed matrices, for the backward pass."""
    biases: NDArray[Any]
    """Biases, layer after layer."""


def pack_perceptron(
    layers: Sequence[Dense], input_parts: int, output_parts: int, dtype: np.dtype[Any]
) -> Perceptron:
    """Pack layers whose input and output consist of equal parts (3 for I, A and S side by side).

    The channels of each part are padded with zeros to a multiple of sixteen.
    """
    chunks, weights, transposed, biases = [], [], [], []
    for k, layer in enumerate(layers):
        inputs = input_parts if k == 0 else 1
        outputs = output_parts if k == len(layers) - 1 else 1
        weight = padded(padded(layer.weight.t().numpy(), 0, inputs), 1, outputs).astype(dtype)
        bias = padded(layer.bias.numpy(), 0, outputs).astype(dtype)
        weights.append(pack_matrix(weight))
        transposed.append(pack_matrix(np.ascontiguousarray(weight.T)))
        biases.append(bias)
        chunks += [weight.shape[0] // LANES] if k == 0 else []
        chunks.append(weight.shape[1] // LANES)
    return Perceptron(
        np.array(chunks or [0], dtype=np.int64),
        np.array([ACTIVATIONS.index(layer.activation) for layer in layers], dtype=np.int64),
        np.concatenate([*weights, np.zeros(0, dtype)]),
        np.concatenate([*transposed, np.zeros(0, dtype)]),
        np.concatenate([*biases, np.zeros(0, dtype)]),
    )


def stacked(perceptrons: Sequence[Perceptron], dtype: np.dtype[Any]) -> Perceptron:
    """Several perceptrons of the same sizes and activations as one; see `one_of`."""
    nothing = Perceptron(np.zeros(1, np.int64), np.zeros(0, np.int64), *[np.zeros(0, dtype)] * 3)
    chunks, activations = (perceptrons or [nothing])[0][:2]
    weights = zip(*(each[2:] for each in (*perceptrons, nothing)), strict=True)
    return Perceptron(chunks, activations, *(np.concatenate(arrays) for arrays in weights))


@internal
def one_of(stack: Perceptron, which: int) -> Any:
    """One of several stacked perceptrons."""
    size, width = 0, 0
    for layer in range(stack.activations.size):
        size += stack.chunks[layer] * stack.chunks[layer + 1] * LANES * LANES
        width += stack.chunks[layer + 1] * LANES
    matrices = slice(which * size, (which + 1) * size)
    return Perceptron(
        stack.chunks, stack.activations, stack.weights[matrices], stack.transposed[matrices],
        stack.biases[which * width : (which + 1) * width],
    )  # fmt: skip


def padded(array: NDArray[Any], axis: int, parts: int = 1) -> NDArray[Any]:
    """Pad each of the equal parts of an axis with zeros to a multiple of sixteen."""
    pieces = np.split(array, parts, axis)
    missing = -pieces[0].shape[axis] % LANES
    widths = [(0, missing if k == axis else 0) for k in range(array.ndim)]
    return np.concatenate([np.pad(piece, widths) for piece in pieces], axis)


@internal
def sigmoid(x: Any) -> Any:
    """1 / (1 + e^-x)."""
    one = like(x, 1.0)
    return one / (one + exp(-x))


@internal
def activate(activation: int, x: Any) -> Any:
    """Value and derivative of an activation."""
    one = like(x, 1.0)
    if activation == 1:  # silu: x s(x)
        s = sigmoid(x)
        return x * s, s * fma(x, one - s, one)
    if activation == 2:  # shifted softplus: log(1 + e^x) - log 2
        value = maximum(x, like(x, 0.0)) + log(one + exp(-absolute(x)))
        return value - like(x, LOG_2), sigmoid(x)
    if activation == 3:  # tanh: 2 s(2x) - 1
        t = one - like(x, 2.0) / (one + exp(x + x))
        return t, one - t * t
    if activation == 4:  # sigmoid
        s = sigmoid(x)
        return s, s * (one - s)
    if activation == 5:  # mish: x tanh(log(1 + e^x)), with w = e^x (e^x + 2)
        e = exp(minimum(x, like(x, 20.0)))
        w = e * (e + like(x, 2.0))
        t = w / (w + like(x, 2.0))
        return x * t, fma(x * (one - t * t), e / (e + one), t)
    return x, one


@internal
def forward(
    net: Perceptron, values: Any, v_start: int, slopes: Any, s_start: int, rows: Any, n: int,
    block: int,
) -> int:  # fmt: skip
    """Run the layers; returns the position at which the outputs begin.

    The inputs of n atoms begin at ``values[v_start]``; the values of each layer are written
    behind them, the derivatives of the activations to ``slopes`` from ``s_start`` on.
    """
    w_start, b_start = 0, 0
    for layer in range(net.activations.size):
        chunks, outputs = net.chunks[layer], net.chunks[layer + 1]
        following = v_start + chunks * block * LANES
        multiply(
            values, v_start, block * LANES, rows, n, net.weights, w_start, net.biases, b_start,
            chunks, outputs, values, following, block * LANES,
        )  # fmt: skip
        for chunk in range(outputs):
            for at in range(chunk * block * LANES, (chunk * block + n) * LANES, LANES):
                value, slope = activate(net.activations[layer], load(values, following + at))
                store(values, following + at, value)
                store(slopes, s_start + at, slope)
        w_start += chunks * outputs * LANES * LANES
        b_start += outputs * LANES
        s_start += outputs * block * LANES
        v_start = following
    return v_start


@internal
def backward(
    net: Perceptron, gradients: Any, g_start: int, slopes: Any, s_start: int, rows: Any, n: int,
    block: int, zeros: Any,
) -> None:  # fmt: skip
    """Compute the gradients of the inputs, at ``gradients[g_start]``, from those of the outputs.

    The layout is that of the values in `forward`; the gradients of the outputs must be where
    `forward` leaves the outputs.
    """
    layers = net.activations.size
    w_end = net.transposed.size
    g_end = g_start + net.chunks[:layers].sum() * block * LANES
    s_end = s_start + net.chunks[1:].sum() * block * LANES
    for layer in range(layers - 1, -1, -1):
        chunks, outputs = net.chunks[layer], net.chunks[layer + 1]
        s_end -= outputs * block * LANES
        w_end -= chunks * outputs * LANES * LANES
        for chunk in range(outputs):
            for at in range(chunk * block * LANES, (chunk * block + n) * LANES, LANES):
                gradient = load(gradients, g_end + at) * load(slopes, s_end + at)
                store(gradients, g_end + at, gradient)
        before = g_end - chunks * block * LANES
        multiply(
            gradients, g_end, block * LANES, rows, n, net.transposed, w_end, zeros, 0,
            outputs, chunks, gradients, before, block * LANES,
        )  # fmt: skip
        g_end = before


@internal
def normalise(
    x: Any, at: int, stride: int, chunks: int, count: int, weight: Any, bias: Any, y: Any,
    y_at: int,
) -> Any:  # fmt: skip
    """Layer norm of one row of ``count`` numbers: writes y, returns mean and 1 / deviation.

    Padded channels are zero in x and in y.
    """
    sums = load(x, at)
    for chunk in range(1, chunks):
        sums = sums + load(x, at + chunk * stride)
    mean = total(sums) / count
    middle = like(sums, mean)
    sums = sums - sums
    for chunk in range(chunks):
        deviation = load(x, at + chunk * stride) - middle
        sums = fma(deviation, deviation, sums)
    # A padded channel deviates by the mean.
    variance = (total(sums) - (chunks * LANES - count) * mean * mean) / count
    scale = 1 / np.sqrt(variance + LAYER_NORM_EPSILON)
    for chunk in range(chunks):
        hat = (load(x, at + chunk * stride) - middle) * like(sums, scale)
        w, b = load(weight, chunk * LANES), load(bias, chunk * LANES)
        store(y, y_at + chunk * stride, fma(hat, w, b))
    return mean, scale


@internal
def normalise_back(
    x: Any, at: int, stride: int, chunks: int, count: int, weight: Any, mean: Any, scale: Any,
    g: Any, g_at: int,
) -> None:  # fmt: skip
    r"""Turn the gradient of a layer norm's outputs into that of its inputs, in place.

    With :math:`\hat x = (x - \mu) / \sigma` and h the gradient with respect to it,
    :math:`(h - \langle h \rangle - \hat x \langle h \hat x \rangle) / \sigma`.
    """
    middle, factor = like(load(x, at), mean), like(load(x, at), scale)
    sums = load(x, at) - load(x, at)
    products = sums
    for chunk in range(chunks):
        h = load(g, g_at + chunk * stride) * load(weight, chunk * LANES)
        hat = (load(x, at + chunk * stride) - middle) * factor
        sums = sums + h
        products = fma(h, hat, products)
    h_mean = like(sums, total(sums) / count)
    p_mean = like(sums, total(products) / count)
    for chunk in range(chunks):
        h = load(g, g_at + chunk * stride) * load(weight, chunk * LANES)
        hat = (load(x, at + chunk * stride) - middle) * factor
        store(g, g_at + chunk * stride, (h - h_mean - hat * p_mean) * factor)
