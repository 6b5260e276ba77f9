"""Equation of state of a crystal: energy against volume (ASE's fits)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from ase.eos import EquationOfState

from ...models.units import ev_per_angstrom3_in_gpa
from ..runs.errors import RunStopped
from ..runs.settings import ModelSettings
from ..runs.structures import with_results
from .single import Job, check_crystal, converge, prepare, write_run


@dataclass(frozen=True)
class EosSettings:
    """Volumes at which a crystal is evaluated, and how its atoms relax there."""

    range: float = 0.06
    """Largest change of the volume, as a fraction."""
    points: int = 9
    """Number of volumes."""
    fmax: float = 0.01
    """Largest force on an atom at each volume, eV/A."""
    steps: int = 200
    """Maximum number of relaxation steps at each volume."""

    def __post_init__(self) -> None:
        if not 0 < self.range < 0.5:
            raise ValueError(f"--range is {self.range}: expected a fraction such as 0.06")
        if self.points < 5:
            raise ValueError(f"--points is {self.points}: expected 5 or more, to fit 4 numbers")
        if not (self.fmax > 0 and math.isfinite(self.fmax)):
            raise ValueError(f"--fmax is {self.fmax} eV/A: expected a finite number above 0")
        if self.steps < 0:
            raise ValueError(f"--steps is {self.steps}: expected 0 or more")


def eos_of_file(
    source: str, model: ModelSettings, settings: EosSettings, out: Path | None = None
) -> dict[str, Any]:
    """Equation of state of the structure in a file, in a new run folder; see `eos`."""
    job = prepare(source, model, out, "eos", check_eos)
    return {**eos(job, settings), "folder": str(job.path)}


def check_eos(atoms: Atoms) -> None:
    """Raise a ValueError if the structure has no volume to change."""
    check_crystal(atoms, "an equation of state needs")


def eos(job: Job, settings: EosSettings) -> dict[str, Any]:
    """Energies at volumes around the given one, the cell scaled without changing its shape.

    Parameters
    ----------
    job
        A crystal with a calculator, best in float64, near its lowest volume.
    settings
        Options.

    Returns
    -------
    dict
        ``volumes_a3``, ``energies_ev``; of the fit (Birch-Murnaghan) ``volume_a3``, ``energy_ev``,
        ``bulk_modulus_gpa``, ``bulk_modulus_derivative`` and ``fit_rms_mev``, its deviation;
        ``scale``, the factor of the given lattice vectors at the lowest energy.

    Raises
    ------
    ValueError
        If the structure is no crystal.
    RunStopped
        If the atoms do not relax, or no volume of the range has the lowest energy.
    """
    check_eos(job.atoms)
    start = job.atoms
    frames = []
    for change in np.linspace(-settings.range, settings.range, settings.points):
        atoms = start.copy()
        atoms.set_cell(start.cell * (1 + change) ** (1 / 3), scale_atoms=True)
        atoms.calc = start.calc
        converge(atoms, settings.fmax, settings.steps, f"the volume {atoms.get_volume():.2f} A^3")
        frames.append(with_results(atoms))
    volumes = np.array([frame.get_volume() for frame in frames])
    energies = np.array([frame.get_potential_energy() for frame in frames])
    fit = EquationOfState(volumes, energies, eos="birchmurnaghan")
    lowest = int(np.argmin(energies))
    if lowest in (0, len(energies) - 1):
        raise RunStopped(
            f"the energy falls towards {volumes[lowest]:.2f} A^3, the end of the range: nothing "
            "was written; relax the cell first (tensormd relax --cell), or take a wider --range"
        )
    volume, energy, modulus = fit.fit()
    _, _, derivative, _ = fit.eos_parameters
    fitted = fit.func(volumes, *fit.eos_parameters)
    results = {
        "volume_a3": float(volume),
        "energy_ev": float(energy),
        "bulk_modulus_gpa": float(modulus * ev_per_angstrom3_in_gpa),
        "bulk_modulus_derivative": float(derivative),
        "fit_rms_mev": float(1e3 * np.sqrt(np.mean((fitted - energies) ** 2))),
        "scale": float((volume / start.get_volume()) ** (1 / 3)),
        "volumes_a3": volumes.tolist(),
        "energies_ev": energies.tolist(),
    }
    write_run(job.path, "eos", settings, job.record, start, frames, results)
    return results
