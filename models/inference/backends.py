"""Chooses how a potential runs at inference: fused kernels or TorchScript."""

from __future__ import annotations

import contextlib
import logging
import math
import re
import threading
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from ..committee import members_of
from ..graph import Graph, within
from ..parts import Part
from ..potential import Potential, Prediction, assemble, edge_gradient
from .forks import use_one_thread_in_forks
from .kernels import fuse, fused_problem
from .self_check import find_problem, known_problem

log = logging.getLogger("tensormd")

BACKENDS = ("auto", "reference", "fused")

COST_OF_TORCHSCRIPT = (
    "a step takes about as long as in torchmd-net, several times as long as with fused kernels"
)
COST_OF_MODULES = (
    "a step takes about as long as in torchmd-net, ten or more times as long as with fused "
    "kernels, and there is no TorchScript, no export and no training"
)
"""What users are told; `docs/results/performance.md` has the measurements."""

# torch.jit.script and forward differentiation, which builds the tables, keep state that all
# threads share without protection.
_COMPILER = threading.Lock()
_DEPRECATED: Any = (
    "ignore", re.compile(r"`torch\.jit\.script` is deprecated", re.IGNORECASE), Warning, None, 0
)  # fmt: skip
"""A filter of warnings. torch 2.10 and newer warn of torch.jit.script, which forward
differentiation calls too; there is nothing that a user could do about it."""


@contextlib.contextmanager
def compiling() -> Iterator[None]:
    """Compile in one thread at a time, without the warning that TorchScript is deprecated.

    `warnings.catch_warnings` would undo what other threads do to the filters in the meantime.
    """
    with _COMPILER:
        filters: Any = warnings.filters
        filters.insert(0, _DEPRECATED)
        try:
            yield
        finally:
            with contextlib.suppress(ValueError):  # somebody else has reset the filters
                filters.remove(_DEPRECATED)


def script(module: nn.Module) -> torch.jit.ScriptModule:
    """Compile a module for inference with TorchScript; safe to call from several threads."""
    use_one_thread_in_forks()
    with compiling():
        compiled: torch.jit.ScriptModule = torch.jit.script(module.eval().requires_grad_(False))
    return compiled


def compile_potential(potential: nn.Module, backend: str = "reference") -> nn.Module:
    """Compile a potential for inference, once for systems of all sizes and kinds.

    Parameters
    ----------
    potential
        Potential to compile. It is not changed, except that compiling with TorchScript puts it
        into evaluation mode and switches off the gradients of its parameters.
    backend
        ``reference``: plain torch operators, compiled by TorchScript; architectures that run as
        torchmd-net's own modules cannot be compiled and are returned unchanged.
        ``fused``: the kernels of `kernels`, whose radial tables leave errors of up to 2e-5 eV/A.
        The first time that they run on a machine they are compared with the network itself; if
        they are wrong or fail, a warning says so, and ``reference`` runs.
        ``auto``: fused kernels if they exist and the dtype is float32, otherwise ``reference``:
        float64 is meant to reproduce the network exactly.

    Returns
    -------
    Module ``Graph -> Prediction``.

    Raises
    ------
    ValueError
        If ``fused`` is requested and there are no fused kernels for this potential.
    """
    use_one_thread_in_forks()
    problem = why_not_fused(potential, backend)
    if problem is None:
        assert isinstance(potential, Potential)
        # Building the tables needs gradients, even if the caller has switched them off.
        with torch.inference_mode(False), torch.set_grad_enabled(True):
            with compiling():
                fused = fuse(potential)
            problem = find_problem(fused, potential)
        if problem is None:
            return fused
    elif fused_problem(potential) is not None:
        log.info("%s runs as %s", getattr(potential, "architecture", "it"), runs_as(potential))
    elif backend == "auto":
        log.info("the network itself runs, not fused kernels: %s", problem)
    return script(potential) if isinstance(potential, Potential) else potential


class PartialPotential(nn.Module):
    """A `Potential` for one part of a system: ``(Graph, Part) -> Prediction`` of its own atoms.

    Energies of other atoms are zero; forces on them are those of the part's own energies.
    """

    def __init__(self, potential: Potential) -> None:
        super().__init__()
        self.potential = potential

    def forward(self, graph: Graph, part: Part) -> Prediction:
        """Energy and virial of the own atoms, and their forces on all atoms of the graph."""
        graph, vectors = within(graph, self.potential.cutoff)
        vectors = vectors.detach().requires_grad_(True)
        energies = self.potential.atom_energies(graph, vectors, None, part)
        own = torch.arange(energies.shape[0], device=energies.device) < part.shells[0]
        energies = energies * own
        gradient = edge_gradient(energies, vectors)
        return assemble(graph, energies.detach(), vectors.detach(), gradient)


def compile_partial(potential: nn.Module, backend: str = "reference") -> nn.Module:
    """Compile a potential for parts of a system, as `compile_potential` does for whole ones.

    Returns
    -------
    Module ``(Graph, Part) -> Prediction``: see `PartialPotential`.

    Raises
    ------
    ValueError
        If the architecture cannot be divided, or ``fused`` is requested and there are no fused
        kernels for parts of a system.
    """
    if not isinstance(potential, Potential):
        raise ValueError(
            f"{getattr(potential, 'architecture', type(potential).__name__)} runs as "
            "torchmd-net's own module, which cannot be divided among processes: run one MPI rank"
        )
    if potential.charged:
        raise ValueError(
            f"a {potential.architecture} predicts charges that depend on all atoms, and cannot be "
            "divided among processes: run one MPI rank"
        )
    problem = why_not_fused(potential, backend)
    if problem is None:
        fused = compile_potential(potential, "fused")
        if getattr(fused, "evaluates_parts", False):
            return fused
        problem = f"the {implementation_of(fused)} of {potential.architecture} evaluate no parts"
        if backend == "fused":
            raise ValueError(
                f"backend is 'fused', but {problem} of a system: take backend='reference', or "
                "run one MPI rank"
            )
    if backend == "auto":
        log.info("the network itself runs, not fused kernels: %s", problem)
    return script(PartialPotential(potential))


def why_not_fused(potential: nn.Module, backend: str) -> str | None:
    """Reason why a backend does not run fused kernels for a potential or committee, or None.

    Raises
    ------
    ValueError
        If the backend is ``fused`` and there are no fused kernels.
    """
    if backend == "reference":
        return "backend is 'reference'"
    for member in members_of(potential):
        problem = fused_problem(member)
        if problem is not None and backend == "fused":
            raise ValueError(f"backend is 'fused', but {problem}; or take backend='reference'")
        problem = problem or known_problem(member)
        if problem is None and backend == "auto" and _dtype(member) == torch.float64:
            problem = "float64 runs the network itself under 'auto' ('fused' has radial tables)"
        if problem is not None:
            return problem
    return None


def list_cutoff(potential: nn.Module, backend: str) -> float:
    """Cutoff of the neighbour lists that a compiled potential needs, Angstrom.

    Fused kernels need no list where all pairs of a molecule interact by their charges.
    """
    cutoff = float(potential.cutoff)  # type: ignore[arg-type]
    if cutoff < math.inf or why_not_fused(potential, backend) is not None:
        return cutoff
    return max(_near_cutoff(member) for member in members_of(potential))


def _near_cutoff(member: nn.Module) -> float:
    """The longest edge that is not only a pair of charges, Angstrom."""
    assert isinstance(member, Potential)  # or there would be no fused kernels
    finite = member.cutoff < math.inf
    return float(member.cutoff if finite else member.near_cutoff)


def _dtype(member: nn.Module) -> torch.dtype | None:
    return member.dtype if isinstance(member, Potential) else None


def runs_as(potential: nn.Module) -> str:
    """How a potential is evaluated, and what it costs if there are no fused kernels for it."""
    problem = fused_problem(potential)
    if problem is None:
        return "fused kernels, or plain torch operators as TorchScript (backend reference)"
    if isinstance(potential, Potential):
        return f"plain torch operators as TorchScript: {problem}; {COST_OF_TORCHSCRIPT}"
    return f"torchmd-net's own module on tensormd's edges: {problem}; {COST_OF_MODULES}"


def implementation_of(compiled: nn.Module) -> str:
    """Name of the engine that runs a compiled potential."""
    if isinstance(compiled, torch.jit.ScriptModule):
        return "TorchScript"
    return str(getattr(compiled, "engine", "eager torch"))
