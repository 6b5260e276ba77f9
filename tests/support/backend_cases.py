"""Potentials and structures on which backends are compared, and how near they must be."""

from __future__ import annotations

from typing import Any

import numpy as np
from ase import Atoms
from ase.build import bulk, molecule
from support.helpers import REFERENCES, make_potential

from tensormd.models import Potential

BOUNDS = {"float32": (1e-4, 1e-5), "float64": (3e-5, 1e-5)}
"""Largest and root mean square error of forces, eV/A."""


def toy(seed: int = 0, **options: Any) -> Potential:
    """A small untrained potential whose forces are of the size of a molecule's."""
    return make_potential(seed, references=REFERENCES, scale=0.5, **options)


def ethanol() -> Atoms:
    atoms = molecule("CH3CH2OH")
    atoms.rattle(0.05, seed=1)
    return atoms


def charged() -> Atoms:
    atoms = ethanol()
    atoms.info["charge"] = -1
    return atoms


def crystal() -> Atoms:
    """A triclinic cell of two atoms, smaller than the cutoff."""
    atoms = bulk("C", "diamond", a=3.57)
    atoms.rattle(0.1, seed=2)
    return atoms


def slab() -> Atoms:
    """Periodic in two directions, its atoms not wrapped."""
    atoms = crystal() * (2, 1, 1)
    atoms.pbc = (True, True, False)
    atoms.positions[0] += 3 * atoms.cell[0]
    return atoms


STRUCTURES = {
    "molecule": ethanol,
    "charged": charged,
    "crystal": crystal,
    "slab": slab,
    "atom": lambda: Atoms("O"),
}


def agree(found: dict[str, Any], expected: dict[str, Any], dtype: str = "float32") -> None:
    largest, rms = BOUNDS[dtype]
    error = found["forces"] - expected["forces"]
    assert np.abs(error).max() <= largest
    assert np.sqrt(np.mean(error**2)) <= rms
    assert abs(found["energy"] - expected["energy"]) / len(error) <= 1e-5
    assert set(found) | {"stresses"} == set(expected) | {"stresses"}  # these are on request
    if "stress" in expected:
        np.testing.assert_allclose(found["stress"], expected["stress"], atol=1e-5)
