"""Harmonic vibrations of a molecule from the exact Hessian, and its thermochemistry (ASE)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms, units
from ase.thermochemistry import IdealGasThermo
from ase.vibrations import VibrationsData
from numpy.typing import NDArray

from ...calculators import PotentialCalculator
from ...models.units import bar_in_pascal
from ..runs.settings import ModelSettings
from ..runs.structures import with_results
from .single import Job, converge, prepare, write_run

Array = NDArray[np.float64]

STRAIGHT = 1e-3
"""A molecule is linear if its smallest moment of inertia is below this share of the largest."""
IMAGINARY = 1e-4
"""Frequencies above i 0.8 cm^-1 (eV) are rounding, not a saddle point."""


@dataclass(frozen=True)
class VibrationsSettings:
    """Vibrations at the nearest minimum, and ideal gas thermochemistry."""

    fmax: float = 1e-3
    """Largest force at the minimum, eV/A."""
    steps: int = 500
    """Maximum number of relaxation steps."""
    temperature: float = 298.15
    """Temperature, K."""
    pressure: float = 1.01325
    """Pressure, bar."""
    symmetry: int = 1
    """Rotational symmetry number."""

    def __post_init__(self) -> None:
        for name, unit in (("fmax", "eV/A"), ("temperature", "K"), ("pressure", "bar")):
            value = getattr(self, name)
            if not (value > 0 and math.isfinite(value)):
                raise ValueError(f"--{name} is {value} {unit}: expected a finite number above 0")
        for name, least in (("steps", 0), ("symmetry", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"--{name} is {getattr(self, name)}: expected {least} or more")


def vibrations_of_file(
    source: str, model: ModelSettings, settings: VibrationsSettings, out: Path | None = None
) -> dict[str, Any]:
    """Vibrations of the structure in a file, in a new run folder; see `vibrations`."""
    job = prepare(source, model, out, "vibrations", check_molecule)
    return {**vibrations(job, settings), "folder": str(job.path)}


def check_molecule(atoms: Atoms, what: str = "vibrations are those") -> None:
    """Raise a ValueError if the structure is no free molecule that vibrates."""
    if atoms.pbc.any():
        raise ValueError(
            f"{what} of a molecule, but pbc is {atoms.pbc.tolist()}: a crystal has phonons "
            "(tensormd phonons)"
        )
    if atoms.constraints:
        raise ValueError(
            "the structure holds constraints, which have no place among free vibrations: "
            "take them out of the file"
        )
    if len(atoms) < 2:
        raise ValueError("one atom does not vibrate: expected a molecule")


def vibrations(job: Job, settings: VibrationsSettings) -> dict[str, Any]:
    """Relax, compute the Hessian, and write frequencies and thermochemistry into a run folder.

    Parameters
    ----------
    job
        A molecule with a `PotentialCalculator`, best in float64. Moved in place.
    settings
        Options.

    Returns
    -------
    dict
        ``frequencies_inv_cm``: in ascending order, imaginary ones negative. ``zero_point_ev``;
        ``enthalpy_ev``, ``entropy_ev_per_k``, ``gibbs_ev`` of an ideal gas at the temperature
        and pressure, missing at a saddle point. The folder holds the Hessian (3N, 3N), eV/A^2,
        without rigid motion.

    Raises
    ------
    ValueError
        If the structure is no molecule, or its calculator has no Hessian.
    RunStopped
        If the relaxation does not converge.
    """
    atoms, start = job.atoms, job.atoms.copy()
    check_molecule(atoms)
    if not isinstance(atoms.calc, PotentialCalculator):
        raise ValueError(
            f"the calculator is {type(atoms.calc).__name__}: expected a PotentialCalculator, "
            "which has the Hessian"
        )
    converge(atoms, settings.fmax, settings.steps, "the relaxation to the minimum")
    hessian = without_rigid_motion(atoms, atoms.calc.get_hessian(atoms))
    energies = true_vibrations(atoms, hessian)
    saddle = bool((energies.imag > IMAGINARY).any())
    results: dict[str, Any] = {
        "energy_ev": float(atoms.get_potential_energy()),
        "fmax_ev_per_a": float(np.linalg.norm(atoms.get_forces(), axis=1).max()),
        "geometry": "linear" if is_linear(atoms) else "nonlinear",
        "imaginary": int((energies.imag > IMAGINARY).sum()),
        "frequencies_inv_cm": ((energies.real - energies.imag) / units.invcm).tolist(),
        "zero_point_ev": float(0.5 * energies.real.sum()),
        **({} if saddle else ideal_gas(atoms, energies.real, settings)),
    }
    frames = [with_results(atoms)]
    write_run(job.path, "vibrations", settings, job.record, start, frames, results, hessian)
    return results


def is_linear(atoms: Atoms) -> bool:
    """Whether all atoms lie on a line."""
    moments = atoms.get_moments_of_inertia()
    return bool(moments.min() < STRAIGHT * moments.max())


def without_rigid_motion(atoms: Atoms, hessian: Array) -> Array:
    """The Hessian (3N, 3N) with translations and rotations projected out.

    They have no frequency at a minimum; what is left of it by rounding would mix with soft modes.
    """
    weights = np.repeat(np.sqrt(atoms.get_masses()), 3)
    away = atoms.positions - atoms.get_center_of_mass()
    moves = [np.tile(axis, (len(atoms), 1)) for axis in np.eye(3)]
    moves += [np.cross(axis, away) for axis in np.eye(3)]
    rigid = weights[:, None] * np.array(moves).reshape(6, -1).T
    basis, sizes, _ = np.linalg.svd(rigid, full_matrices=False)
    basis = basis[:, sizes > 1e-6 * sizes.max()]  # a rotation about a line of atoms moves nothing
    keep = np.eye(len(weights)) - basis @ basis.T
    weighted = hessian / np.outer(weights, weights)
    return np.asarray((keep @ weighted @ keep) * np.outer(weights, weights))


def true_vibrations(atoms: Atoms, hessian: Array) -> NDArray[np.complex128]:
    """Energies of the 3N - 6 vibrations (linear: 3N - 5), eV, ascending; imaginary ones first."""
    energies = VibrationsData.from_2d(atoms, hessian).get_energies()
    rigid = 5 if is_linear(atoms) else 6
    kept = energies[np.argsort(np.abs(energies))[rigid:]]
    return np.asarray(kept[np.argsort(kept.real - kept.imag)])


def ideal_gas(atoms: Atoms, energies: Array, settings: VibrationsSettings) -> dict[str, float]:
    """Enthalpy, entropy and free energy in the rigid rotor, harmonic oscillator approximation."""
    gas = IdealGasThermo(
        list(energies),
        "linear" if is_linear(atoms) else "nonlinear",
        potentialenergy=float(atoms.get_potential_energy()),
        atoms=atoms,
        symmetrynumber=settings.symmetry,
        spin=0,
    )
    temperature = settings.temperature
    pressure = settings.pressure * bar_in_pascal
    return {
        "enthalpy_ev": float(gas.get_enthalpy(temperature, verbose=False)),
        "entropy_ev_per_k": float(gas.get_entropy(temperature, pressure, verbose=False)),
        "gibbs_ev": float(gas.get_gibbs_energy(temperature, pressure, verbose=False)),
    }
