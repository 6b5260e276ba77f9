"""Torsion profiles: angles held, symmetry of the molecule, and what cannot be turned."""

from __future__ import annotations

import numpy as np
import pytest
from ase import Atoms
from ase.build import molecule
from ase.calculators.calculator import Calculator, all_changes

from tensormd.md_runs.md.torsion import torsion_profile


class Torsional(Calculator):
    """Harmonic bonds to a start, and 0.1 eV (1 + cos of the torsion) of a chain of four."""

    implemented_properties = ("energy", "forces")

    def __init__(self, start: Atoms, torsion: tuple[int, int, int, int]) -> None:
        super().__init__()
        self.lengths = start.get_all_distances()
        self.near = (self.lengths > 0) & (self.lengths < 2.3)
        self.torsion = torsion

    def energy(self, positions: np.ndarray) -> float:
        d = np.linalg.norm(positions[:, None] - positions[None], axis=-1)
        angle = Atoms("H" * len(positions), positions).get_dihedral(*self.torsion)
        stretched = ((d - self.lengths)[self.near] ** 2).sum()
        return float(10 * stretched + 0.1 * (1 + np.cos(np.radians(angle))))

    def calculate(self, atoms=None, properties=None, system_changes=all_changes) -> None:
        super().calculate(atoms, properties, system_changes)
        x = atoms.positions
        forces = np.zeros_like(x)
        for k in np.ndindex(x.shape):
            step = np.zeros_like(x)
            step[k] = 1e-4
            forces[k] = -(self.energy(x + step) - self.energy(x - step)) / 2e-4
        self.results = {"energy": self.energy(x), "forces": forces}


def peroxide() -> Atoms:
    atoms = molecule("H2O2")
    o = np.flatnonzero(atoms.numbers == 8)
    h = np.flatnonzero(atoms.numbers == 1)
    first = h[np.argmin(atoms.get_distances(int(o[0]), h))]
    second = h[np.argmin(atoms.get_distances(int(o[1]), h))]
    return atoms[[int(first), int(o[0]), int(o[1]), int(second)]]


def test_a_profile_is_the_potential_of_the_torsion() -> None:
    atoms = peroxide()
    atoms.calc = Torsional(atoms, (0, 1, 2, 3))
    before = atoms.positions.copy()
    found = torsion_profile(atoms, (0, 1, 2, 3), points=8)
    expected = 0.1 * (1 + np.cos(np.radians(found.degrees)))
    np.testing.assert_allclose(found.energies_ev, expected - expected.min(), atol=2e-3)
    assert found.barrier_ev > 0.15
    np.testing.assert_allclose(np.diff(found.degrees), 45)
    assert (atoms.positions == before).all()
    assert not atoms.constraints


def test_what_cannot_be_turned_is_refused() -> None:
    with pytest.raises(ValueError, match="not bonded"):
        torsion_profile(peroxide(), (1, 0, 3, 2))
    ring = molecule("C6H6")
    carbons = [k for k in range(12) if ring.numbers[k] == 6]
    with pytest.raises(ValueError, match="part of a ring"):
        torsion_profile(ring, carbons[:4])
