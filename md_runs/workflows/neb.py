"""The lowest path between two structures: nudged elastic band (ASE), with a climbing image."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from ase.build import minimize_rotation_and_translation
from ase.geometry import find_mic
from ase.mep import NEB
from ase.optimize import FIRE

from ..runs.errors import RunStopped
from ..runs.settings import ModelSettings
from ..runs.signals import StopRequest
from ..runs.structures import read_structure, with_results
from .single import Job, converge, prepare, write_run

CLIMB_FROM = 5.0
"""The highest image climbs once no force is larger than so many times ``fmax``."""

Observer = Callable[[int, float, float], None]
"""Called with the step, the highest energy above the first image (eV) and the largest force."""


@dataclass(frozen=True)
class NebSettings:
    """A nudged elastic band."""

    images: int = 7
    """Number of structures between the two ends."""
    fmax: float = 0.05
    """Converged when no force of the band on an atom is larger, eV/A."""
    steps: int = 500
    """Maximum number of steps."""
    relax_ends: bool = True
    """Relax both ends first."""

    def __post_init__(self) -> None:
        if self.images < 1:
            raise ValueError(f"--images is {self.images}: expected 1 or more")
        if not (self.fmax > 0 and math.isfinite(self.fmax)):
            raise ValueError(f"--fmax is {self.fmax} eV/A: expected a finite number above 0")
        if self.steps < 1:
            raise ValueError(f"--steps is {self.steps}: expected 1 or more")


def neb_of_files(
    first: str,
    last: str,
    model: ModelSettings,
    settings: NebSettings,
    out: Path | None = None,
    observer: Observer | None = None,
) -> dict[str, Any]:
    """The path between the structures of two files, in a new run folder; see `neb`."""
    end = read_structure(last)
    job = prepare(first, model, out, "neb", lambda atoms: check_ends(atoms, end))
    job.record["structure"]["end"] = last
    return {**neb(job, end, settings, observer), "folder": str(job.path)}


def check_ends(first: Atoms, last: Atoms) -> None:
    """Raise a ValueError if there is no path between two structures."""
    if len(first) != len(last) or (first.numbers != last.numbers).any():
        raise ValueError(
            f"the ends are {first.get_chemical_formula()} and {last.get_chemical_formula()}, or "
            "their atoms stand in another order: expected the same atoms in the same order"
        )
    if (first.pbc != last.pbc).any() or not np.allclose(first.cell, last.cell, atol=1e-6):
        raise ValueError("the ends have different cells: expected one cell for the whole path")
    if first.info.get("charge", 0) != last.info.get("charge", 0):
        raise ValueError("the ends have different charges: expected one")
    if np.abs(find_mic(last.positions - first.positions, first.cell, first.pbc)[0]).max() < 1e-3:
        raise ValueError("the ends are the same structure: expected two different ones")


def neb(
    job: Job, last: Atoms, settings: NebSettings, observer: Observer | None = None
) -> dict[str, Any]:
    """Find the lowest path and write it into a run folder.

    Images start from ASE's image dependent pair potential (IDPP). A molecule is turned onto the
    other end, and the band does not turn it.

    Parameters
    ----------
    job
        The first structure, with a calculator.
    last
        The other end.
    settings
        Options.
    observer
        Called after every step.

    Returns
    -------
    dict
        ``converged``, ``steps``, ``barrier_ev``, ``reverse_barrier_ev``, ``reaction_energy_ev``,
        ``highest_image``, ``fmax_ev_per_a``, ``distances_a`` along the path and ``energies_ev``.

    Raises
    ------
    ValueError
        If the ends do not fit.
    RunStopped
        If an end does not relax, or both relax into the same minimum.
    Interrupted
        After SIGINT or SIGTERM, with the path so far saved.
    """
    first, start = job.atoms, job.atoms.copy()
    last = last.copy()
    last.calc = first.calc
    check_ends(first, last)
    if settings.relax_ends:
        for atoms, name in ((first, "the first end"), (last, "the last end")):
            converge(atoms, settings.fmax / 5, settings.steps, name)
        away = find_mic(last.positions - first.positions, first.cell, first.pbc)[0]
        if first.pbc.any() and np.abs(away).max() < 0.1:
            raise RunStopped("both ends relax into the same minimum: nothing was written")
    free = not first.pbc.any()
    if free:
        minimize_rotation_and_translation(first, last)
    images = [first, *(first.copy() for _ in range(settings.images)), last]
    for image in images:
        image.calc = first.calc
    band = NEB(
        images,
        method="improvedtangent",
        allow_shared_calculator=True,
        remove_rotation_and_translation=free,
    )
    band.interpolate("idpp", mic=not free)
    optimizer = FIRE(band, logfile=None)
    converged = False
    with StopRequest() as stop:
        for climb, fmax in ((False, CLIMB_FROM * settings.fmax), (True, settings.fmax)):
            band.climb = climb
            left = settings.steps - optimizer.nsteps
            for finished in optimizer.irun(fmax=fmax, steps=max(left, 0)):
                converged = bool(finished) and climb
                if observer:
                    top = max(band.energies[1:-1]) - first.get_potential_energy()
                    observer(optimizer.nsteps, float(top), _largest(band))
                if stop.asked():
                    break
            if stop.asked():
                break
    frames = [with_results(image) for image in images]
    energies = np.array([frame.get_potential_energy() for frame in frames])
    steps = [
        np.linalg.norm(find_mic(b.positions - a.positions, a.cell, a.pbc)[0])
        for a, b in pairwise(frames)
    ]
    top = int(np.argmax(energies))
    results = {
        "converged": converged,
        "steps": int(optimizer.nsteps),
        "barrier_ev": float(energies[top] - energies[0]),
        "reverse_barrier_ev": float(energies[top] - energies[-1]),
        "reaction_energy_ev": float(energies[-1] - energies[0]),
        "highest_image": top,
        "fmax_ev_per_a": _largest(band),
        "distances_a": np.concatenate([[0.0], np.cumsum(steps)]).tolist(),
        "energies_ev": energies.tolist(),
    }
    write_run(job.path, "neb", settings, job.record, start, frames, results)
    if stop.asked() and not converged:
        raise stop.interrupted(
            f"stopped at step {results['steps']}, before it converged; the path so far is in "
            f"{job.path}"
        )
    return results


def _largest(band: NEB) -> float:
    return float(np.linalg.norm(band.get_forces(), axis=1).max())
