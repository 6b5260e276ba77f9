"""Structures that the general potential `DEFAULT` is for, and those that it is unsure of.

Nothing but elements, charge and bonds is read from a structure: bonds as `bonds_of` finds them, or
those that a topology lists.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from ase import Atoms
from ase.data import chemical_symbols
from numpy.typing import NDArray
from scipy.sparse import coo_array  # type: ignore[import-untyped]
from scipy.sparse.csgraph import connected_components  # type: ignore[import-untyped]

from ..models.checkpoint.registry import REGISTRY
from ..models.data.structures.bonds import bonds_of

DEFAULT = "organic"
"""Registry name of the potential that runs where no checkpoint is given."""
DOMAIN = "neutral molecules"
"""What ``metadata["domain"]`` of such checkpoints says."""
CLOSE = 0.6
"""Pairs below this multiple of the sum of their covalent radii are nowhere in its data."""

ELEMENTS = (1, 6, 7, 8, 9, 16, 17)
NEIGHBOURS = {1: (1, 1), 6: (2, 4), 7: (1, 3), 8: (1, 2), 9: (1, 1), 16: (1, 4), 17: (1, 1)}
"""Least and largest numbers of bonds of an atom in its data."""

UNSURE_BONDS = {
    "F-N": "N-F bonds",
    "Cl-N": "N-Cl bonds",
    "F-O": "O-F bonds",
    "Cl-O": "O-Cl bonds",
    "Cl-F": "Cl-F bonds",
}
UNSURE_MOLECULES = {
    "H-H": "hydrogen",
    "C-O C-O": "carbon dioxide",
    "O-O": "oxygen",
    "O-S O-S": "sulfur dioxide",
    "O-S O-S O-S": "sulfur trioxide",
    "C-S C-S": "carbon disulfide",
    "C-O C-S": "carbonyl sulfide",
    "C-N C-O H-N": "isocyanic acid",
    "C-N C-S H-N": "isothiocyanic acid",
    "N-N N-O": "nitrous oxide",
    "C-C C-H C-H C-O": "ketene",
    "C-H C-H C-N N-N": "diazomethane",
    "H-O N-O N-O N-O": "nitric acid",
    "C-H C-H C-H C-N C-N": "methyl isocyanide",
    "H-S H-S S-S": "disulfane",
    "H-O H-S O-S": "hydrogen thioperoxide",
    "C-H C-H C-H C-S Cl-S": "methanesulfenyl chloride",
    "C-C C-C C-C C-H C-H C-H C-H": "cyclopropene",
}
"""Molecules by their sorted bonds, whose energies the members of its teacher disagree about."""


@dataclass(frozen=True)
class Molecules:
    """Connected parts of a structure."""

    numbers: NDArray[Any]
    """(N,) atomic numbers."""
    part: NDArray[np.int64]
    """(N,) number of the part that an atom belongs to."""
    bonds: NDArray[np.int64] | None
    """(B, 2) bonded atoms, each pair once; None: not known."""
    endless: bool = False
    """Whether a part is bonded to its own periodic image."""

    @property
    def names_of_bonds(self) -> list[str]:
        """Symbols of each bond, such as ``C-H``."""
        assert self.bonds is not None
        return ["-".join(sorted(_symbols(self.numbers[bond]))) for bond in self.bonds]


def molecules_of(atoms: Atoms) -> Molecules:
    """The molecules of a structure, by distances alone."""
    i, j, _, shift = bonds_of(atoms)
    part = np.full(len(atoms), -1)
    image = np.zeros((len(atoms), 3), dtype=int)
    ends = np.searchsorted(i, np.arange(len(atoms) + 1))
    endless = False
    for start in range(len(atoms)):
        if part[start] >= 0:
            continue
        part[start], reached = start, [start]
        while reached:
            a = reached.pop()
            for k in range(ends[a], ends[a + 1]):
                b, where = j[k], image[a] + shift[k]
                if part[b] < 0:
                    part[b], image[b] = start, where
                    reached.append(b)
                elif (image[b] != where).any():
                    endless = True
    once = i < j
    return Molecules(atoms.numbers, part, np.stack([i[once], j[once]], axis=1), endless)


def molecules_of_bonds(numbers: NDArray[Any], bonds: NDArray[np.int64]) -> Molecules:
    """The molecules of N atoms from a list of their bonds (B, 2).

    If an atom has no bond, as where nothing but residues of proteins have any, the list is not
    taken for complete: all atoms are one part, of unknown bonds.
    """
    atoms = len(numbers)
    if len(np.unique(bonds)) < atoms:
        return Molecules(numbers, np.zeros(atoms, dtype=int), None)
    joined = coo_array((np.ones(len(bonds)), bonds.T), shape=(atoms, atoms))
    return Molecules(numbers, connected_components(joined, directed=False)[1], bonds)


def why_not(atoms: Atoms, charge: int) -> str | None:
    """Why the general potential is not for a structure, with what else would do; None if it is."""
    unknown = sorted(set(atoms.numbers.tolist()) - set(ELEMENTS))
    if unknown:
        reason = f"knows {', '.join(_symbols(ELEMENTS))}, not {', '.join(_symbols(unknown))}"
    elif charge:
        reason = f"is for neutral molecules, and the charge is {charge:+d}"
    elif unsuitable := _unsuitable(molecules_of(atoms)):
        reason = f"is for neutral molecules, and {unsuitable[0]}"
    else:
        return None
    return f"no checkpoint was given, and {DEFAULT}, which ships, {reason}: {_advice(atoms)}"


def doubts(structure: Atoms | Molecules) -> list[str]:
    """What makes results of the general potential for a structure doubtful, a clause each."""
    if isinstance(structure, Atoms):
        found, close = molecules_of(structure), _too_close(structure)
    else:
        found, close = structure, []
    return _unsuitable(found) + close + _unlike_the_data(found)


def _unlike_the_data(found: Molecules) -> list[str]:
    """Bonds that its data lack, or that its teacher is unsure of."""
    if found.bonds is None:
        return []
    by_part: dict[int, list[str]] = {}
    for bond, name in zip(found.bonds, found.names_of_bonds, strict=True):
        by_part.setdefault(int(found.part[bond[0]]), []).append(name)
    molecules = {UNSURE_MOLECULES.get(" ".join(sorted(bonds)), "") for bonds in by_part.values()}
    bonds = {UNSURE_BONDS.get(name, "") for name in found.names_of_bonds}
    return _odd_neighbours(found.numbers, found.bonds) + [
        f"its teacher is unsure of {name}" for name in sorted((molecules | bonds) - {""})
    ]


def _unsuitable(found: Molecules) -> list[str]:
    """Why a structure is no neutral molecules."""
    reasons = []
    if found.endless:
        reasons.append("bonds of the structure reach from cell to cell without end")
    electrons = np.bincount(found.part, weights=found.numbers).astype(int)
    odd = np.flatnonzero(electrons % 2)
    if len(odd):
        formula = Atoms(numbers=found.numbers[found.part == odd[0]]).get_chemical_formula("hill")
        reasons.append(f"{formula} has an odd number of electrons: it is a radical or an ion")
    return reasons


def _too_close(atoms: Atoms) -> list[str]:
    i, j, d, _ = bonds_of(atoms, CLOSE)
    if len(d) == 0:
        return []
    k = int(np.argmin(d))
    return [f"atoms {i[k]} and {j[k]} are {d[k]:.2f} A apart"]


def _odd_neighbours(numbers: NDArray[Any], bonds: NDArray[np.int64]) -> list[str]:
    """The first atom with fewer or more bonds than any in the data."""
    degrees = np.bincount(bonds.ravel(), minlength=len(numbers))
    for atom, (number, degree) in enumerate(zip(numbers, degrees, strict=True)):
        least, most = NEIGHBOURS.get(int(number), (0, len(degrees)))
        if not least <= degree <= most:
            return [f"atom {atom} ({chemical_symbols[number]}) has {degree} bonds"]
    return []


def _advice(atoms: Atoms) -> str:
    """A published potential for a structure, as an option."""
    aceff = REGISTRY["aceff-2.0"]
    if not atoms.pbc.any() and set(atoms.numbers.tolist()) <= set(aceff.elements or ()):
        return f"take -m {aceff.name} (drug-like molecules and ions) or another checkpoint"
    universal = REGISTRY["tensornet-pes-matpes-pbe-2025.2"]
    return f"take -m {universal.name} (89 elements, materials) or another checkpoint"


def _symbols(numbers: Iterable[int]) -> list[str]:
    return [chemical_symbols[z] for z in numbers]
