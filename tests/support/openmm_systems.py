"""OpenMM Systems with a potential, and the engines that run it.

Importing it skips a test file where OpenMM is not installed.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from ase import Atoms
from numpy.typing import NDArray

from tensormd.calculators import openmm_versions as engines
from tensormd.models.units import kj_per_mol_in_ev, nm_in_angstrom

openmm = pytest.importorskip("openmm", reason="openmm is not installed (extra 'openmm')")


ENGINES = [
    pytest.param(
        name,
        marks=pytest.mark.skipif(problem is not None, reason=str(problem)),
    )
    for name, problem in {
        "torchforce": engines.torchforce_problem(),
        "python": engines.python_problem(),
    }.items()
]


def make_system(atoms: Atoms, force: Any) -> Any:
    system = openmm.System()
    for mass in atoms.get_masses():
        system.addParticle(mass)
    if atoms.pbc.any():
        system.setDefaultPeriodicBoxVectors(*(atoms.cell.array / nm_in_angstrom))
    system.addForce(force)
    return system


def evaluate(system: Any, atoms: Atoms, platform: str) -> tuple[float, NDArray[np.float64]]:
    """Energy (eV) and forces (eV/A) from OpenMM."""
    context = openmm.Context(
        system, openmm.VerletIntegrator(5e-4), openmm.Platform.getPlatformByName(platform)
    )
    context.setPositions(atoms.positions / nm_in_angstrom)
    state = context.getState(getEnergy=True, getForces=True)
    forces = np.array(state.getForces(asNumpy=True)._value)
    energy = state.getPotentialEnergy()._value * kj_per_mol_in_ev
    return energy, forces * kj_per_mol_in_ev / nm_in_angstrom
