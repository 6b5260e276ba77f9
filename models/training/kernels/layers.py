r"""Layer norms and dense layers of atoms: value, gradient, and the tangents of both.

The notation is that of `atoms`. A layer is called in this order: `value`, `back`, `tangent`,
`back_tangent`; each keeps what the next ones need. The gradients of the weights are those of
:math:`\sum \tilde y y + \bar y \dot y`, with the weights' own share in y only.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ...maths.activations import with_derivatives


def sum_of_rows(x: Tensor) -> Tensor:
    """(N, F) -> (F,), as a product: torch's sums depend on the number of threads."""
    return x.new_ones(1, len(x)).mm(x)[0]


class NormTangents:
    r"""Layer norm of rows x padded with zeros to n numbers: :math:`y = w \hat x + b`.

    .. math::
        \hat x &= \rho (x - \mu), \qquad \rho = (\sigma^2 + \epsilon)^{-1/2} \\
        \bar x &= \rho (h - \langle h \rangle - \hat x \langle h \hat x \rangle), \qquad
        h = w \bar y \\
        \dot{\hat x} &= \rho (\dot x - \langle \dot x \rangle)
        + \frac{\dot \rho}{\rho} \hat x, \qquad
        \frac{\dot \rho}{\rho} = -\rho \langle \hat x \dot x \rangle \\
        \tilde x &= J \tilde h + \frac{\dot \rho}{\rho} \bar x
        - \rho (\dot{\hat x} \langle h \hat x \rangle + \hat x \langle h \dot{\hat x} \rangle)

    where :math:`\langle \cdot \rangle` is the sum over a row divided by n, of which the zeros have
    a share too: :math:`\hat x_0 = -\rho \mu` for each of them.
    """

    def __init__(self, weight: Tensor, bias: Tensor, size: int, epsilon: float) -> None:
        self.weight, self.bias, self.size, self.epsilon = weight, bias, size, epsilon
        self.zeros = size - weight.numel()
        self.average = weight.new_full((weight.numel(), 1), 1 / size)

    def _mean(self, x: Tensor) -> Tensor:
        return x @ self.average

    def value(self, x: Tensor) -> Tensor:
        """(N, inputs) -> (N, inputs)."""
        mean = self._mean(x)
        centred = x - mean
        variance = self._mean(centred * centred) + self.zeros / self.size * mean * mean
        self.rho = (variance + self.epsilon).rsqrt()
        self.hat = self.rho * centred
        return torch.addcmul(self.bias, self.hat, self.weight)

    def back(self, g: Tensor) -> Tensor:
        """Gradient of x from that of y."""
        self.g, self.h = g, g * self.weight
        self.projection = self._mean(self.h * self.hat)
        self.g_x = self.rho * (self.h - self._mean(self.h) - self.hat * self.projection)
        return self.g_x

    def tangent(self, dx: Tensor) -> Tensor:
        """Tangent of y from that of x."""
        self.ratio = -self.rho * self._mean(self.hat * dx)
        self.dhat = self.rho * (dx - self._mean(dx)) + self.ratio * self.hat
        return self.dhat * self.weight

    def back_tangent(self, dg: Tensor) -> Tensor:
        """Tangent of the gradient of x from that of y; computes the gradients of the weights."""
        h = dg * self.weight
        self.g_weight = sum_of_rows(dg * self.hat + self.g * self.dhat)
        self.g_bias = sum_of_rows(dg)
        found = self.rho * (h - self._mean(h) - self.hat * self._mean(h * self.hat))
        crossed = self.dhat * self.projection + self.hat * self._mean(self.h * self.dhat)
        return found + self.ratio * self.g_x - self.rho * crossed


class PerceptronTangents:
    r"""Dense layers, :math:`y = a(z), \; z = W x + b`.

    .. math::
        \bar z = a' \bar y, \quad \bar x = W^T \bar z, \qquad
        \dot y = a' \dot z, \quad \dot z = W \dot x, \qquad
        \tilde z = a' \tilde y + a'' \dot z \bar y, \quad \tilde x = W^T \tilde z
    """

    def __init__(
        self, weights: Sequence[Tensor], biases: Sequence[Tensor], activations: Sequence[nn.Module]
    ) -> None:
        self.weights, self.biases, self.activations = weights, biases, activations

    def value(self, x: Tensor) -> Tensor:
        """(N, inputs) -> (N, outputs)."""
        self.x, self.slopes, self.curvatures = [], [], []
        for weight, bias, activation in zip(
            self.weights, self.biases, self.activations, strict=True
        ):
            self.x.append(x)
            x, slope, curvature = with_derivatives(activation, torch.addmm(bias, x, weight.t()))
            self.slopes.append(slope)
            self.curvatures.append(curvature)
        return x

    def back(self, g: Tensor) -> Tensor:
        """Gradient of the inputs from that of the outputs."""
        self.g_y: list[Tensor] = []
        self.g_z: list[Tensor] = []
        for weight, slope in zip(reversed(self.weights), reversed(self.slopes), strict=True):
            self.g_y.insert(0, g)
            self.g_z.insert(0, g * slope)
            g = self.g_z[0] @ weight
        return g

    def tangent(self, dx: Tensor) -> Tensor:
        """Tangent of the outputs from that of the inputs."""
        self.dx, self.dz = [], []
        for weight, slope in zip(self.weights, self.slopes, strict=True):
            self.dx.append(dx)
            self.dz.append(dx @ weight.t())
            dx = self.dz[-1] * slope
        return dx

    def back_tangent(self, dg: Tensor) -> Tensor:
        """Tangent of the gradient of the inputs; computes the gradients of the weights."""
        self.g_weights: list[Tensor] = []
        self.g_biases: list[Tensor] = []
        for k in reversed(range(len(self.weights))):
            dg_z = dg * self.slopes[k] + self.curvatures[k] * self.dz[k] * self.g_y[k]
            gradient = torch.addmm(self.g_z[k].t() @ self.dx[k], dg_z.t(), self.x[k])
            self.g_weights.insert(0, gradient)
            self.g_biases.insert(0, sum_of_rows(dg_z))
            dg = dg_z @ self.weights[k]
        return dg
