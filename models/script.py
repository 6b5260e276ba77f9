"""TorchScript compilation."""

from __future__ import annotations

import threading

import torch
from torch import nn

from .potential import Potential

# torch.jit.script keeps what it has compiled in tables that all threads share, unprotected.
_COMPILER = threading.Lock()


def script(module: nn.Module) -> torch.jit.ScriptModule:
    """The module for inference, compiled by TorchScript; safe to call from several threads."""
    with _COMPILER:
        compiled: torch.jit.ScriptModule = torch.jit.script(module.eval().requires_grad_(False))
    return compiled


def compile_potential(potential: nn.Module) -> nn.Module:
    """The potential compiled, once for every size and kind of system.

    Architectures that run as torchmd-net's own modules are returned as they are: those
    cannot be compiled.
    """
    return script(potential) if isinstance(potential, Potential) else potential
