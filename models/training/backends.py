"""Which kind of step a training runs: fused kernels, a compiled graph, or plain operators."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import torch

from ..potential import Potential
from .compiled import compiler_for
from .kernels import fused_step_problem
from .settings import TrainingSettings

log = logging.getLogger("tensormd")

WORTH_FUSING = 200
"""Number of steps from which loading kernels, or compiling them once for a machine, pays off."""
WORTH_COMPILING = 3000
"""Number of steps from which a compilation of some minutes pays off."""


def choose_backend(
    potential: Potential,
    settings: TrainingSettings,
    steps: int,
    device: torch.device,
    state: Mapping[str, Any] | None,
) -> str:
    """``fused``, ``compiled`` or ``plain``.

    Parameters
    ----------
    potential
        Potential to train.
    settings
        Settings, which may name the backend.
    steps
        Number of steps of the run.
    device
        Device of the run.
    state
        State to resume from: a resumed run keeps its backend, because they differ in the last
        digits. None: a new run.

    Raises
    ------
    ValueError
        If the settings name a backend that cannot run; the message gives the reason.
    """

    def problem_of(backend: str) -> str | None:
        if backend == "fused":
            return fused_step_problem(potential, list(settings.weights), device)
        if backend != "compiled":
            return None
        if potential.longer:
            return (
                "the Coulomb energy reaches beyond the network, whose number of pairs varies from "
                "step to step: there is no compiled step for it"
            )
        return compiler_for(device)

    wanted = settings.wanted_backend
    if wanted != "auto":
        if problem := problem_of(wanted):
            raise ValueError(f"backend is {wanted}, but {problem}: set backend to auto")
        return wanted
    if state is not None:
        backend = state.get("backend") or ("compiled" if state["compiled"] else "plain")
        problem = problem_of(backend)
        if problem:
            log.warning("the run goes on with plain steps, not %s ones: %s", backend, problem)
        return "plain" if problem else str(backend)
    for backend, worth in (("fused", WORTH_FUSING), ("compiled", WORTH_COMPILING)):
        problem = problem_of(backend)
        if problem is None and steps < worth:
            problem = f"{steps} steps would not pay for it"
        if problem is None:
            return backend
        log.info("steps are not %s: %s", backend, problem)
    return "plain"
