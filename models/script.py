"""TorchScript compilation."""

from __future__ import annotations

import torch
from torch import nn

from .potential import Potential


def compile_potential(potential: nn.Module) -> nn.Module:
    """The potential compiled by TorchScript, once for every size and kind of system.

    Architectures that run as torchmd-net's own modules are returned as they are: those
    cannot be compiled.
    """
    if isinstance(potential, Potential):
        return torch.jit.script(potential)
    return potential
