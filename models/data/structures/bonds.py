"""Bonds of a structure, from distances alone."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import vesin
from ase import Atoms
from ase.data import covalent_radii
from numpy.typing import NDArray

BOND = 1.2
"""Pairs closer than this multiple of the sum of their covalent radii are bonded."""


class Bonds(NamedTuple):
    """Pairs of atoms, each in both directions, sorted by the first atom."""

    i: NDArray[np.int64]
    j: NDArray[np.int64]
    lengths: NDArray[np.float64]
    """Angstrom."""
    shifts: NDArray[np.int64]
    """(B, 3): the cell of j, counted from that of i."""


def bonds_of(atoms: Atoms, factor: float = BOND) -> Bonds:
    """Pairs of atoms closer than ``factor`` times the sum of their covalent radii."""
    radii = covalent_radii[atoms.numbers]
    search = vesin.NeighborList(
        cutoff=float(2 * factor * radii.max()), full_list=True, sorted=True
    )
    cell = atoms.cell.array if atoms.pbc.any() else np.zeros((3, 3))
    i, j, d, shifts = search.compute(atoms.positions, cell, atoms.pbc, quantities="ijdS")
    near = d < factor * (radii[i] + radii[j])
    return Bonds(
        i[near].astype(np.int64), j[near].astype(np.int64), d[near], shifts[near].astype(np.int64)
    )
