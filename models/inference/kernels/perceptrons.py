"""Layer norms and perceptrons as plain functions of tensors, forward and backward.

An adjoint takes the gradient g of the energy with respect to the function's result and returns
that with respect to its x.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ...maths.activations import LOG_2
from .weights import LAYER_NORM_EPSILON, Dense


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    r"""The layer norm over the last dimension, and what its adjoint needs of it.

    .. math:: w (x - \mu) s + b, \qquad s = 1 / \sqrt{\sigma^2 + \epsilon}

    Returns
    -------
    The result (N, F), :math:`\mu` and s (N, 1).
    """
    return torch.native_layer_norm(x, x.shape[-1:], weight, bias, LAYER_NORM_EPSILON)


def layer_norm_adjoint(
    x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, inverse: Tensor, g: Tensor
) -> Tensor:
    r"""Gradient of `layer_norm` with respect to x.

    .. math::
        s (h - \overline{h} - \hat x\, \overline{h \hat x}), \qquad
        \hat x = (x - \mu) s, \quad h = g w

    with bars for means over the last dimension; ``mean`` and ``inverse`` are :math:`\mu`
    and s of `layer_norm`.
    """
    only_x = [True, False, False]
    return torch.ops.aten.native_layer_norm_backward(
        g, x, x.shape[-1:], mean, inverse, weight, bias, only_x
    )[0]


def padded_layer_norm(
    x: Tensor, weight: Tensor, bias: Tensor, size: int
) -> tuple[Tensor, Tensor, Tensor]:
    """`layer_norm` of x and of zeros behind it, ``size`` in all (`readout.PaddedLayerNorm`)."""
    if size == x.shape[-1]:
        return layer_norm(x, weight, bias)
    mean = x.sum(-1, keepdim=True) / size
    squares = (x - mean).square().sum(-1, keepdim=True) + (size - x.shape[-1]) * mean.square()
    inverse = (squares / size + LAYER_NORM_EPSILON).rsqrt()
    return (x - mean) * inverse * weight + bias, mean, inverse


def padded_layer_norm_adjoint(
    x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, inverse: Tensor, g: Tensor, size: int
) -> Tensor:
    """Gradient of `padded_layer_norm` with respect to x: as above, means being sums over size."""
    if size == x.shape[-1]:
        return layer_norm_adjoint(x, weight, bias, mean, inverse, g)
    hat, h = (x - mean) * inverse, g * weight
    along = (h * hat).sum(-1, keepdim=True) / size
    return inverse * (h - h.sum(-1, keepdim=True) / size - hat * along)


def activate(name: str, x: Tensor) -> Tensor:
    """An activation by its name in `weights.Dense`."""
    functional = torch.nn.functional
    if name == "identity":
        return x
    if name == "silu":
        return functional.silu(x)
    if name == "ssp":
        return functional.softplus(x) - LOG_2
    if name == "tanh":
        return torch.tanh(x)
    if name == "sigmoid":
        return torch.sigmoid(x)
    if name == "mish":
        return functional.mish(x)
    raise ValueError(f"no kernel for activation {name!r}")


def activate_adjoint(name: str, x: Tensor, g: Tensor) -> Tensor:
    r"""The derivative of the activation at x, times g.

    With s the logistic function and :math:`t = \tanh \log(1 + e^x)`: s (1 + x (1 - s)) of
    ``silu``, s of ``ssp``, 1 - tanh(x)^2 of ``tanh``, s (1 - s) of ``sigmoid``,
    t + x s (1 - t^2) of ``mish``.
    """
    aten = torch.ops.aten
    if name == "identity":
        return g
    if name == "silu":
        return aten.silu_backward(g, x)
    if name == "ssp":
        return aten.softplus_backward(g, x, 1, 20)
    if name == "tanh":
        return aten.tanh_backward(g, torch.tanh(x))
    if name == "sigmoid":
        return aten.sigmoid_backward(g, torch.sigmoid(x))
    if name == "mish":
        return aten.mish_backward(g, x)
    raise ValueError(f"no kernel for activation {name!r}")


def perceptron(layers: list[Dense], x: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Dense layers one after the other: the result, and every layer's W x + b."""
    linear: list[Tensor] = []
    for layer in layers:
        linear.append(torch.addmm(layer.bias, x, layer.weight.t()))
        x = activate(layer.activation, linear[-1])
    return x, linear


def perceptron_adjoint(layers: list[Dense], linear: list[Tensor], g: Tensor) -> Tensor:
    """Gradient of `perceptron` with respect to its x."""
    for layer, z in zip(reversed(layers), reversed(linear), strict=True):
        g = torch.mm(activate_adjoint(layer.activation, z, g), layer.weight)
    return g
