"""TorchScript compilation."""

from __future__ import annotations

import threading

import torch
from torch import nn

from .potential import Potential

# torch.jit.script keeps what it has compiled in tables that are shared by all threads.
_COMPILER = threading.Lock()


def compile_potential(potential: nn.Module) -> nn.Module:
    """The potential compiled by TorchScript, once for every size and kind of system.

    Architectures that run as torchmd-net's own modules are returned as they are: those
    cannot be compiled.
    """
    if isinstance(potential, Potential):
        with _COMPILER:
            return torch.jit.script(potential)
    return potential
