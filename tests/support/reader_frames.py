"""Labelled structures for the tests of data set readers."""

from __future__ import annotations

from typing import Any

import numpy as np
from ase import Atoms
from ase.build import molecule
from ase.calculators.singlepoint import SinglePointCalculator

from tensormd.models.training import Frames

CUTOFF = 4.5


RNG = np.random.default_rng


def waters(count: int = 6) -> list[Atoms]:
    """Distorted waters with every label that extended XYZ can hold, in eV, A and e."""
    structures = []
    for k in range(count):
        rng = RNG(k)
        atoms = molecule("H2O", vacuum=4.0, pbc=True)
        atoms.rattle(0.1, rng=rng)
        stress = rng.normal(size=6)
        atoms.calc = SinglePointCalculator(
            atoms,
            energy=-470 + rng.normal(),
            forces=rng.normal(size=(3, 3)),
            stress=stress,
            dipole=rng.normal(size=3),
        )
        alpha = rng.normal(size=(3, 3))
        atoms.info["polarizability"] = alpha + alpha.T
        structures.append(atoms)
    return structures


def full(voigt: Any) -> Any:
    xx, yy, zz, yz, xz, xy = voigt
    return np.array([[xx, xy, xz], [xy, yy, yz], [xz, yz, zz]])


def close(found: Any, expected: Any) -> None:
    np.testing.assert_allclose(np.asarray(found), np.asarray(expected), rtol=1e-6, atol=1e-7)


def check_against(frames: Frames, structures: list[Atoms]) -> None:
    """All labels of `waters`, to the digits that a text file keeps."""
    assert frames.quantities == ("energy", "forces", "stress", "dipole", "polarizability")
    assert len(frames) == len(structures)
    for k, atoms in enumerate(structures):
        close(frames.graphs[k].positions, atoms.positions)
        close(frames.graphs[k].cell[0], atoms.cell.array)
        results = atoms.calc.results
        for name in ("energy", "forces", "dipole"):
            close(frames.values(name)[k], results[name])
        close(frames.values("stress")[k], full(results["stress"]))
        close(frames.values("polarizability")[k], atoms.info["polarizability"])


MOLECULES = ["H2O", "CH4", "NH3", "CH3OH", "C2H6", "CH3CH2OH", "C6H6", "HCN", "CO2", "N2"]


def references(kind: str) -> dict[int, float]:
    """Energies of atoms, eV: all electrons, with pseudopotentials, or of atomisation."""
    return {
        "total": {1: -13.6, 6: -1030.0, 7: -1485.0, 8: -2042.0},
        "pseudo": {1: -12.5, 6: -155.0, 7: -270.0, 8: -432.0},
        "cohesive": {1: -2.5, 6: -6.5, 7: -4.5, 8: -4.0},
    }[kind]
