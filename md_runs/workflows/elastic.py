"""Elastic constants of a crystal from its stress under small strains."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from ase.stress import voigt_6_to_full_3x3_strain
from numpy.typing import NDArray

from ...models.units import ev_per_angstrom3_in_gpa
from ..runs.settings import ModelSettings
from ..runs.structures import with_results
from .single import Job, check_crystal, converge, prepare, write_run

Array = NDArray[np.float64]

SHARES = (-1.0, -0.5, 0.5, 1.0)
"""Strains, as shares of the largest."""


@dataclass(frozen=True)
class ElasticSettings:
    """Elastic constants by finite strains."""

    strain: float = 0.005
    """Largest strain."""
    fmax: float = 1e-3
    """Largest force on an atom at each strain, eV/A."""
    steps: int = 200
    """Maximum number of relaxation steps at each strain; 0 keeps the atoms clamped."""

    def __post_init__(self) -> None:
        if not 0 < self.strain <= 0.05:
            raise ValueError(f"--strain is {self.strain}: expected a fraction such as 0.005")
        if not (self.fmax > 0 and math.isfinite(self.fmax)):
            raise ValueError(f"--fmax is {self.fmax} eV/A: expected a finite number above 0")
        if self.steps < 0:
            raise ValueError(f"--steps is {self.steps}: expected 0 or more")


def elastic_of_file(
    source: str, model: ModelSettings, settings: ElasticSettings, out: Path | None = None
) -> dict[str, Any]:
    """Elastic constants of the structure in a file, in a new run folder; see `elastic`."""
    job = prepare(source, model, out, "elastic", check_elastic)
    return {**elastic(job, settings), "folder": str(job.path)}


def check_elastic(atoms: Atoms) -> None:
    """Raise a ValueError if the structure is no crystal."""
    check_crystal(atoms, "elastic constants need")


def elastic(job: Job, settings: ElasticSettings) -> dict[str, Any]:
    """The stiffness tensor and the moduli of a polycrystal, into a run folder.

    Each of the six strains is applied at four sizes; a constant is the slope of the stress,
    s_i = sum_j C_ij e_j in Voigt's notation (xx, yy, zz, yz, xz, xy; shears count twice). The
    symmetry of the crystal is not used: how well it holds shows the noise.

    Parameters
    ----------
    job
        A crystal with a calculator that has stress, best in float64, at its lattice constants.
    settings
        Options.

    Returns
    -------
    dict
        ``stiffness_gpa`` (6, 6); ``bulk_modulus_gpa`` and ``shear_modulus_gpa``, each a section of
        ``voigt``, ``reuss`` and ``hill``; of Hill's, ``young_modulus_gpa`` and ``poisson_ratio``;
        ``anisotropy``, the universal index; ``stable``, whether all eigenvalues of the stiffness
        are positive, and the ``lowest_eigenvalue_gpa``; ``asymmetry_gpa``, the largest difference
        of two constants that should be one; ``max_stress_gpa`` of the given cell. Without
        stability Reuss' and Hill's moduli, and what follows from them, are None.

    Raises
    ------
    ValueError
        If the structure is no crystal, or its calculator has no stress.
    RunStopped
        If the atoms do not relax.
    """
    check_elastic(job.atoms)
    start = job.atoms
    if "stress" not in start.calc.implemented_properties:
        raise ValueError(f"elastic constants need stress, which {start.calc.name} does not have")
    before = start.get_stress()
    frames, slopes = [], np.empty((6, 6))
    sizes = settings.strain * np.array(SHARES)
    for j in range(6):
        stresses = []
        for size in sizes:
            atoms = start.copy()
            deformation = voigt_6_to_full_3x3_strain(size * np.eye(6)[j])  # with 1
            atoms.set_cell(start.cell.array @ deformation, scale_atoms=True)
            atoms.calc = start.calc
            if settings.steps:
                what = f"the crystal strained by {size:+g} along {_NAMES[j]}"
                converge(atoms, settings.fmax, settings.steps, what)
            stresses.append(atoms.get_stress())
            frame = with_results(atoms, has_stress=True)
            frame.info["strain"] = f"{_NAMES[j]} {size:+g}"
            frames.append(frame)
        slopes[:, j] = np.polyfit(sizes, np.array(stresses), 1)[0] * ev_per_angstrom3_in_gpa
    stiffness = (slopes + slopes.T) / 2
    results = {
        "stiffness_gpa": stiffness.tolist(),
        **moduli(stiffness),
        "asymmetry_gpa": float(np.abs(slopes - slopes.T).max()),
        "max_stress_gpa": float(np.abs(before).max() * ev_per_angstrom3_in_gpa),
    }
    write_run(job.path, "elastic", settings, job.record, start, frames, results)
    return results


_NAMES = ("xx", "yy", "zz", "yz", "xz", "xy")


def moduli(stiffness: Array) -> dict[str, Any]:
    """Moduli of a polycrystal (Voigt, Reuss, Hill) from a stiffness (6, 6), GPa.

    References
    ----------
    Hill, Proc. Phys. Soc. A 65, 349 (1952); Ranganathan & Ostoja-Starzewski, Phys. Rev. Lett.
    101, 055504 (2008), for the anisotropy.
    """
    lowest = float(np.linalg.eigvalsh(stiffness).min())
    bulk = {"voigt": float(stiffness[:3, :3].mean())}
    shear = {"voigt": float(_shear(stiffness) / 15 + np.diag(stiffness)[3:].sum() / 5)}
    found: dict[str, Any] = {"stable": lowest > 0, "lowest_eigenvalue_gpa": lowest}
    young = ratio = anisotropy = None
    if lowest > 0:
        compliance: Array = np.linalg.inv(stiffness).astype(np.float64)
        bulk["reuss"] = float(1 / compliance[:3, :3].sum())
        shears = 4 * _shear(compliance) + 3 * np.diag(compliance)[3:].sum()
        shear["reuss"] = float(15 / shears)
        for each in (bulk, shear):
            each["hill"] = (each["voigt"] + each["reuss"]) / 2
        k, g = bulk["hill"], shear["hill"]
        young, ratio = 9 * k * g / (3 * k + g), (3 * k - 2 * g) / (6 * k + 2 * g)
        anisotropy = 5 * shear["voigt"] / shear["reuss"] + bulk["voigt"] / bulk["reuss"] - 6
    missing = {"reuss": None, "hill": None}
    return {
        **found,
        "bulk_modulus_gpa": {**missing, **bulk},
        "shear_modulus_gpa": {**missing, **shear},
        "young_modulus_gpa": young,
        "poisson_ratio": ratio,
        "anisotropy": anisotropy,
    }


def _shear(tensor: Array) -> float:
    """Sum of the diagonal less that of the others, of the part of normal strains."""
    return float(np.trace(tensor[:3, :3]) - tensor[[0, 0, 1], [1, 2, 2]].sum())


def young_along(stiffness: Array, directions: Array) -> Array:
    """Young's modulus along unit vectors (M, 3), GPa, of a stable crystal."""
    x, y, z = directions.T
    strain = np.array([x * x, y * y, z * z, y * z, x * z, x * y])  # s_i of a unit tension
    return np.asarray(1 / np.einsum("im,ij,jm->m", strain, np.linalg.inv(stiffness), strain))
