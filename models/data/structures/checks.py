"""Checks for structures of all formats: charge, cell, masses, distances."""

from __future__ import annotations

from typing import Any

import numpy as np
from ase import Atoms
from ase.constraints import FixCartesian, FixScaled
from ase.data import chemical_symbols
from numpy.typing import NDArray
from scipy.spatial import cKDTree  # type: ignore[import-untyped]

from .parts import Notes

Array = NDArray[np.float64]

CLOSEST = 0.4
"""Smallest allowed distance, Angstrom. Hydrogen atoms that collide with the full energy of their
bond (4.7 eV) approach each other to 0.38 A; no two nuclei of a structure are closer."""
CLOSEST_LABELLED = 0.1
"""Smallest allowed distance of labelled frames, Angstrom: they scan short distances on purpose."""
SMALLEST_VOLUME = 0.5
"""Smallest allowed volume per atom, cubic Angstrom. Hydrogen at 500 GPa has about 1."""
CHARGE_NAMES = ("Charge", "CHARGE", "total_charge", "net_charge")
"""Other names of the total charge."""
LABELS = (
    "energy",
    "free_energy",
    "forces",
    "stress",
    "virial",
    "dipole",
    "dipole_norm",
    "polarizability",
    "polarizability_isotropic",
    "polarizability_anisotropy",
)


def is_truth_value(value: Any) -> bool:
    """Whether a value is a boolean or an array of booleans, and therefore not a number."""
    return isinstance(value, (bool, np.bool_)) or (
        isinstance(value, (list, tuple, np.ndarray)) and np.asarray(value).dtype.kind == "b"
    )


def clean(atoms: Atoms, name: str, notes: Notes) -> Atoms:
    """Remove entries that only look like a charge or a label, and check the others.

    Parameters
    ----------
    atoms
        Structure from a reader; changed in place.
    name
        Name in error messages.
    notes
        Recipient of warnings about dropped entries.

    Raises
    ------
    ValueError
        If elements, positions, charge or masses cannot be right.
    """
    _check_atoms(atoms, name)
    _drop_truth_values(atoms, notes)
    _read_charge(atoms, name, notes)
    _check_masses(atoms, name)
    _simplify_constraints(atoms)
    return atoms


def check_geometry(atoms: Atoms, name: str, closest: float = CLOSEST, length: float = 1.0) -> None:
    """Check the cell and the distances between atoms.

    Parameters
    ----------
    atoms
        A structure, Angstrom.
    name
        Name in error messages.
    closest
        Smallest allowed distance between two atoms, Angstrom.

    Raises
    ------
    ValueError
        If the structure cannot be right.
    """
    _check_cell(atoms, name)
    check_distances(atoms, name, closest)


def _check_atoms(atoms: Atoms, name: str) -> None:
    if len(atoms) == 0:
        raise ValueError(f"{name} has no atoms: expected at least one")
    known = (atoms.numbers > 0) & (atoms.numbers < len(chemical_symbols))
    if not known.all():
        atom = int(np.argmin(known))
        raise ValueError(
            f"{name}: atom {atom} has the atomic number {atoms.numbers[atom]}, which is no element"
        )
    finite = np.isfinite(atoms.positions).all(axis=1)
    if not finite.all():
        atom = int(np.argmin(finite))
        raise ValueError(
            f"{name}: position of atom {atom} is {atoms.positions[atom]}: expected finite numbers"
        )


def _drop_truth_values(atoms: Atoms, notes: Notes) -> None:
    places = [atoms.info] + ([] if atoms.calc is None else [atoms.calc.results])
    for place in places:
        for key in ("charge", *CHARGE_NAMES, *LABELS):
            if key in place and is_truth_value(place[key]):
                value = place.pop(key)
                notes.say(
                    f"truth {key}",
                    f"{key} is {value}, a truth value and no number: it is not read",
                )


def _read_charge(atoms: Atoms, name: str, notes: Notes) -> None:
    if "charge" in atoms.info:
        atoms.info["charge"] = whole_charge(atoms.info["charge"], name)
        return
    for key in CHARGE_NAMES:
        if key in atoms.info:
            atoms.info["charge"] = whole_charge(atoms.info[key], name)
            notes.say("charge", f"total charge {atoms.info['charge']:+d}, by the entry {key}")
            return


def whole_charge(value: Any, name: str) -> int:
    """Total charge as an integer, e.

    Raises
    ------
    ValueError
        If it is not a whole number.
    """
    try:
        if is_truth_value(value):
            raise ValueError
        charge = float(np.asarray(value).reshape(()))
        if not charge.is_integer():
            raise ValueError
    except (TypeError, ValueError):
        raise ValueError(f"{name}: charge is {value!r}: expected an integer, in e") from None
    return int(charge)


def _check_cell(atoms: Atoms, name: str) -> None:
    cell, pbc = atoms.cell.array, atoms.pbc
    if not np.isfinite(cell).all():
        raise ValueError(f"{name}: the cell is {cell.tolist()}: expected finite numbers")
    if not pbc.any():
        return
    lengths = np.linalg.norm(cell, axis=1)
    if not (lengths[pbc] > 0).all():
        axis = int(np.flatnonzero(pbc & (lengths == 0))[0])
        raise ValueError(f"{name} is periodic along {'abc'[axis]}, but its cell vector is zero")
    if (lengths[pbc] < CLOSEST).any() or np.array_equal(cell, np.eye(3)):
        raise ValueError(
            f"{name}: a periodic cell with edges of {_triple(lengths)} A is no crystal: "
            "expected the real cell, or none"
        )
    if pbc.all():
        volume = atoms.cell.volume
        if volume < 1e-6 * lengths.prod():
            raise ValueError(f"{name}: the cell {cell.tolist()} spans no volume")
        if volume < SMALLEST_VOLUME * len(atoms):
            raise ValueError(
                f"{name}: the cell ({_triple(lengths)} A) has {volume / len(atoms):.3g} A^3 for "
                f"each of {len(atoms)} atoms: expected at least {SMALLEST_VOLUME}"
            )


def _triple(values: Array) -> str:
    return " x ".join(f"{value:.4g}" for value in values)


def _check_masses(atoms: Atoms, name: str) -> None:
    if not atoms.has("masses"):
        return
    masses = atoms.arrays["masses"]
    if masses.dtype.kind not in "fiu" or masses.shape != (len(atoms),):
        raise ValueError(f"{name}: masses are {str(masses)[:40]}: expected a number for each atom")
    if not (np.isfinite(masses) & (masses > 0)).all():
        atom = int(np.argmin(np.isfinite(masses) & (masses > 0)))
        raise ValueError(f"{name}: the mass of atom {atom} is {masses[atom]} u")


def check_distances(atoms: Atoms, name: str, closest: float = CLOSEST) -> None:
    """Raise a ValueError that names the closest two atoms if they are closer than this (A)."""
    found = _closest_pair(atoms.positions, atoms.cell.array, atoms.pbc, closest)
    if found is None:
        return
    i, j, distance = found
    symbols = atoms.get_chemical_symbols()
    image = " (with the periodic images)" if atoms.pbc.any() else ""
    raise ValueError(
        f"{name}: atoms {i} ({symbols[i]}) and {j} ({symbols[j]}) are {distance:.3g} A apart"
        f"{image}, in one place: expected {closest:g} A or more; atoms are counted from 0"
    )


def _closest_pair(
    positions: Array, cell: Array, pbc: NDArray[np.bool_], within: float
) -> tuple[int, int, float] | None:
    """Indices and distance of the closest two atoms, if less than ``within``."""
    owners, images = np.arange(len(positions)), positions
    for axis in np.flatnonzero(pbc):
        # Atoms near a face of the cell have an image near the opposite one.
        others = [k for k in range(3) if k != axis]
        normal = np.cross(_vector(cell, others[0]), _vector(cell, others[1]))
        normal /= np.linalg.norm(normal)
        height = cell[axis] @ normal
        place = images @ normal / height
        images = images - np.floor(place)[:, None] * cell[axis]
        near = (place - np.floor(place)) * abs(height) < within
        images = np.concatenate([images, images[near] + cell[axis]])
        owners = np.concatenate([owners, owners[near]])
    if len(images) < 2:
        return None
    tree = cKDTree(images)
    distances, neighbours = tree.query(images, k=2, distance_upper_bound=within)
    here = np.flatnonzero(distances[:, 1] < within)
    if not len(here):
        return None
    one = here[np.argmin(distances[here, 1])]
    # For coinciding atoms the first neighbour may be the atom itself or the other one.
    two = next(int(n) for n in neighbours[one] if n != one)
    i, j = sorted((int(owners[one]), int(owners[two])))
    return i, j, float(distances[one, 1])


def _vector(cell: Array, axis: int) -> Array:
    """A cell vector, or, if it is zero, a direction outside the span of the other two."""
    if cell[axis].any():
        return cell[axis]
    others = np.array([cell[k] for k in range(3) if k != axis and cell[k].any()])
    return np.linalg.svd(others)[2][-1]


def _simplify_constraints(atoms: Atoms) -> None:
    """Replace fixed fractional coordinates by Cartesian ones for a cell along x, y, z.

    Extended XYZ and most programs support only Cartesian ones.
    """
    if not np.array_equal(atoms.cell.array, np.diag(np.diag(atoms.cell.array))):
        return
    atoms.constraints = [
        FixCartesian(c.index, mask=c.mask) if isinstance(c, FixScaled) else c
        for c in atoms.constraints
    ]
