"""Layer norms and perceptrons as plain functions of tensors, forward and backward.

An adjoint takes the gradient g of the energy with respect to the function's result and returns
that with respect to its x.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ....maths.activations import LOG_2
from ..weights import LAYER_NORM_EPSILON, Dense

aten = torch.ops.aten


def layer_norm(
    x: Tensor, weight: Tensor, bias: Tensor, size: int
) -> tuple[Tensor, Tensor, Tensor]:
    r"""The layer norm over the last dimension, and the statistics that its adjoint needs.

    .. math:: w (x - \mu) s + b, \qquad s = 1 / \sqrt{\sigma^2 + \epsilon}

    Means are over ``size`` numbers; those that are not in x (N, F) count as zero
    (`PaddedLayerNorm`). Returns the result (N, F), :math:`\mu` (N, 1) and s (N, 1).
    """
    if size == x.shape[-1]:
        return torch.native_layer_norm(x, x.shape[-1:], weight, bias, LAYER_NORM_EPSILON)
    mean = x.sum(-1, keepdim=True) / size
    squares = (x - mean).square().sum(-1, keepdim=True) + (size - x.shape[-1]) * mean.square()
    inverse = (squares / size + LAYER_NORM_EPSILON).rsqrt()
    return (x - mean) * inverse * weight + bias, mean, inverse


def layer_norm_adjoint(
    x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, inverse: Tensor, g: Tensor, size: int
) -> Tensor:
    r"""Gradient of `layer_norm` with respect to x.

    .. math::
        s (h - \overline{h} - \hat x\, \overline{h \hat x}), \qquad
        \hat x = (x - \mu) s, \quad h = g w

    with bars for means; ``mean`` and ``inverse`` are :math:`\mu` and s of `layer_norm`.
    """
    if size == x.shape[-1]:
        only_x = [True, False, False]
        return aten.native_layer_norm_backward(
            g, x, x.shape[-1:], mean, inverse, weight, bias, only_x
        )[0]
    hat, h = (x - mean) * inverse, g * weight
    along = (h * hat).sum(-1, keepdim=True) / size
    return inverse * (h - h.sum(-1, keepdim=True) / size - hat * along)


ACTIVATIONS: dict[str, tuple[Callable[..., Tensor], Callable[..., Tensor]]] = {
    "identity": (lambda x: x, lambda x, g: g),
    "silu": (torch.nn.functional.silu, lambda x, g: aten.silu_backward(g, x)),
    "ssp": (
        lambda x: torch.nn.functional.softplus(x) - LOG_2,
        lambda x, g: aten.softplus_backward(g, x, 1, 20),
    ),
    "tanh": (torch.tanh, lambda x, g: aten.tanh_backward(g, torch.tanh(x))),
    "sigmoid": (torch.sigmoid, lambda x, g: aten.sigmoid_backward(g, torch.sigmoid(x))),
    "mish": (torch.nn.functional.mish, lambda x, g: aten.mish_backward(g, x)),
}
"""Name in `Dense` -> the function of x, and its derivative at x times g."""


def perceptron(layers: list[Dense], x: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Apply dense layers in sequence; returns the result and every layer's W x + b."""
    linear: list[Tensor] = []
    for layer in layers:
        linear.append(torch.addmm(layer.bias, x, layer.weight.t()))
        x = ACTIVATIONS[layer.activation][0](linear[-1])
    return x, linear


def perceptron_adjoint(layers: list[Dense], linear: list[Tensor], g: Tensor) -> Tensor:
    """Gradient of `perceptron` with respect to its x."""
    for layer, z in zip(reversed(layers), reversed(linear), strict=True):
        g = torch.mm(ACTIVATIONS[layer.activation][1](z, g), layer.weight)
    return g
