"""Which program runs a potential at inference: fused kernels, or TorchScript."""

from __future__ import annotations

import logging
import threading

import torch
from torch import nn

from ..committee import members_of
from ..potential import Potential
from .kernels import fuse, fused_problem

log = logging.getLogger("tensormd")

BACKENDS = ("auto", "reference", "fused")

# torch.jit.script keeps what it has compiled in tables that all threads share, unprotected, and
# so does forward differentiation, by which tables are made.
_COMPILER = threading.Lock()


def script(module: nn.Module) -> torch.jit.ScriptModule:
    """The module for inference, compiled by TorchScript; safe to call from several threads."""
    with _COMPILER:
        compiled: torch.jit.ScriptModule = torch.jit.script(module.eval().requires_grad_(False))
    return compiled


def compile_potential(potential: nn.Module, backend: str = "reference") -> nn.Module:
    """The potential compiled for inference, once for every size and kind of system.

    Parameters
    ----------
    potential
        Left as it is, but for its gradients, which are switched off.
    backend
        ``reference``: plain torch operators, compiled by TorchScript; architectures that run as
        torchmd-net's own modules are returned as they are, for those cannot be compiled.
        ``fused``: the kernels of `kernels`, whose radial tables leave errors of up to 2e-5 eV/A.
        ``auto``: fused where it exists, in float32; who asks for float64 wants the network to
        the last digit, and gets the reference.

    Raises
    ------
    ValueError
        If ``fused`` is asked for and does not exist for this potential.
    """
    problem = why_not_fused(potential, backend)
    if problem is None:
        # Tables are made from gradients, under the caller's no_grad too.
        with _COMPILER, torch.inference_mode(False), torch.set_grad_enabled(True):
            return fuse(potential)  # type: ignore[arg-type]
    if backend == "auto":
        log.info("the network itself runs, not fused kernels: %s", problem)
    return script(potential) if isinstance(potential, Potential) else potential


def why_not_fused(potential: nn.Module, backend: str) -> str | None:
    """Why a backend does not run fused kernels for a potential (or committee); None: it does.

    Raises
    ------
    ValueError
        If it is ``fused``, and there are none.
    """
    if backend == "reference":
        return "backend is 'reference'"
    for member in members_of(potential):
        problem = fused_problem(member)
        if problem is not None and backend == "fused":
            raise ValueError(f"backend is 'fused', but {problem}; or take backend='reference'")
        if problem is None and backend == "auto" and _dtype(member) == torch.float64:
            problem = "float64 runs the network itself under 'auto' ('fused' has radial tables)"
        if problem is not None:
            return problem
    return None


def _dtype(member: nn.Module) -> torch.dtype | None:
    return member.dtype if isinstance(member, Potential) else None


def implementation_of(compiled: nn.Module) -> str:
    """What runs a compiled potential, in words."""
    if isinstance(compiled, torch.jit.ScriptModule):
        return "TorchScript"
    return str(getattr(compiled, "engine", "eager torch"))
