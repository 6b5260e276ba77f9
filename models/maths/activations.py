"""Activation functions by torchmd-net's names."""

from __future__ import annotations

import torch
from torch import Tensor, nn

# log 2 in float32, as in torchmd-net: weights were trained with this value.
LOG_2 = 0.6931471824645996


class ShiftedSoftplus(nn.Module):
    r""":math:`\log(1 + e^x) - \log 2` (SchNet), zero at zero."""

    def __init__(self) -> None:
        super().__init__()
        self.log_2 = LOG_2

    def forward(self, x: Tensor) -> Tensor:
        """Apply elementwise, for any shape."""
        return torch.nn.functional.softplus(x) - self.log_2


_ACTIVATIONS: dict[str, type[nn.Module]] = {
    "silu": nn.SiLU,
    "swish": nn.SiLU,  # Swish with beta = 1 is SiLU
    "ssp": ShiftedSoftplus,
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
    "mish": nn.Mish,
}
ACTIVATIONS = tuple(_ACTIVATIONS)


def activation(name: str) -> nn.Module:
    """A new activation module.

    Raises
    ------
    ValueError
        If the name is not one of ``ACTIVATIONS``.
    """
    if name not in _ACTIVATIONS:
        raise ValueError(f"unknown activation {name!r}: expected one of {', '.join(ACTIVATIONS)}")
    return _ACTIVATIONS[name]()
