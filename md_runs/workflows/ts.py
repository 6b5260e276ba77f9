"""A saddle point of first order: the transition state nearest to a structure (Sella)."""

from __future__ import annotations

import importlib.util
import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from ase import Atoms, units

from ...calculators import PotentialCalculator
from ..runs.settings import ModelSettings
from ..runs.signals import StopRequest
from ..runs.structures import with_results
from .single import Job, prepare, write_run
from .vibrations import IMAGINARY, check_molecule, true_vibrations, without_rigid_motion

if TYPE_CHECKING:
    from sella import Sella

INSTALL = "pip install 'tensormd[ts]'"

Observer = Callable[[int, float, float], None]
"""Called with the step, the energy above the start (eV) and the largest force (eV/A)."""


@dataclass(frozen=True)
class TsSettings:
    """A search for a transition state."""

    fmax: float = 0.005
    """Converged when no force on an atom is larger, eV/A."""
    steps: int = 300
    """Maximum number of steps."""

    def __post_init__(self) -> None:
        if not (self.fmax > 0 and math.isfinite(self.fmax)):
            raise ValueError(f"--fmax is {self.fmax} eV/A: expected a finite number above 0")
        if self.steps < 1:
            raise ValueError(f"--steps is {self.steps}: expected 1 or more")


def ts_of_file(
    source: str,
    model: ModelSettings,
    settings: TsSettings,
    out: Path | None = None,
    observer: Observer | None = None,
) -> dict[str, Any]:
    """The transition state near the structure in a file, in a new run folder; see `ts`."""
    job = prepare(source, model, out, "ts", check_ts)
    return {**ts(job, settings, observer), "folder": str(job.path)}


def check_ts(atoms: Atoms) -> None:
    """Raise a ValueError if the structure is no molecule, or Sella is not installed."""
    if importlib.util.find_spec("sella") is None:
        raise ValueError(f"transition states need the package sella: {INSTALL}")
    check_molecule(atoms, "transition states are those")


def ts(job: Job, settings: TsSettings, observer: Observer | None = None) -> dict[str, Any]:
    """Walk up the softest mode and down all others, and write the way into a run folder.

    Parameters
    ----------
    job
        A molecule near a transition state, such as the highest image of `neb`, with a
        `PotentialCalculator`, whose exact Hessian guides the search. Moved in place.
    settings
        Options.
    observer
        Called after every step.

    Returns
    -------
    dict
        ``converged``, ``steps``, ``energy_ev``, ``energy_change_ev`` since the start,
        ``fmax_ev_per_a``; ``imaginary``, the number of imaginary modes: 1 at a transition state;
        ``frequencies_inv_cm``, in ascending order, imaginary ones negative.

    Raises
    ------
    ValueError
        If the structure is no molecule, its calculator has no Hessian, or Sella is missing.
    Interrupted
        After SIGINT or SIGTERM, with the structure so far saved.
    """
    atoms, start = job.atoms, job.atoms.copy()
    check_ts(atoms)
    calculator = atoms.calc
    if not isinstance(calculator, PotentialCalculator):
        raise ValueError(
            f"the calculator is {type(calculator).__name__}: expected a PotentialCalculator, "
            "which has the Hessian"
        )
    optimizer = _sella()(atoms, logfile=None, order=1, hessian_function=calculator.get_hessian)
    frames: list[Atoms] = []
    converged = False
    with StopRequest() as stop:
        for finished in optimizer.irun(fmax=settings.fmax, steps=settings.steps):
            converged = bool(finished)
            frames.append(with_results(atoms))
            if observer:
                change = frames[-1].get_potential_energy() - frames[0].get_potential_energy()
                observer(optimizer.nsteps, float(change), _largest(frames[-1]))
            if stop.asked():
                break
    hessian = without_rigid_motion(atoms, calculator.get_hessian(atoms))
    energies = true_vibrations(atoms, hessian)
    last = frames[-1]
    results = {
        "converged": converged,
        "steps": int(optimizer.nsteps),
        "energy_ev": float(last.get_potential_energy()),
        "energy_change_ev": float(last.get_potential_energy() - frames[0].get_potential_energy()),
        "fmax_ev_per_a": _largest(last),
        "imaginary": int((energies.imag > IMAGINARY).sum()),
        "frequencies_inv_cm": ((energies.real - energies.imag) / units.invcm).tolist(),
    }
    write_run(job.path, "ts", settings, job.record, start, frames, results, hessian)
    if stop.asked() and not converged:
        raise stop.interrupted(
            f"stopped at step {results['steps']}, before it converged; the structure so far is in "
            f"{job.path}"
        )
    return results


def _largest(frame: Atoms) -> float:
    return float(np.linalg.norm(frame.get_forces(), axis=1).max())


def _sella() -> type[Sella]:
    """Sella's class; its import sets environment variables, which are put back.

    It also sets jax, which nothing else here uses, to double precision.
    """
    before = dict(os.environ)
    try:
        from sella import Sella
    finally:
        os.environ.clear()
        os.environ.update(before)
    return Sella
