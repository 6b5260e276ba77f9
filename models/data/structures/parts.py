"""Parts shared by readers of structure files: elements, numbers, notes, atoms of biomolecules."""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from ase import Atoms
from ase.cell import Cell
from ase.data import atomic_numbers

ISOTOPES = {"D": (1, 2.014101778), "T": (1, 3.016049282)}
"""Atomic number and mass (u) by symbol of an isotope."""


class Notes:
    """Warns about guesses and omissions, once per kind and file.

    Parameters
    ----------
    source
        Name of the file in warnings.
    """

    def __init__(self, source: object) -> None:
        self.source = source
        self._said: set[str] = set()

    def has(self, kind: str) -> bool:
        """Whether this file has a warning of this kind."""
        return kind in self._said

    def say(self, kind: str, text: str) -> None:
        """Warn, unless this file already has a warning of this kind."""
        if kind not in self._said:
            self._said.add(kind)
            warnings.warn(f"{self.source}: {text}", UserWarning, stacklevel=2)


def element(symbol: str) -> tuple[int, float | None]:
    """Atomic number of a symbol, and the mass (u) if it is an isotope, or None.

    Raises
    ------
    ValueError
        If it is not the symbol of an element.
    """
    name = symbol.strip().capitalize()
    if name in ISOTOPES:
        return ISOTOPES[name]
    number = atomic_numbers.get(name, 0)
    if number < 1:
        raise ValueError(f"{symbol!r} is no element: expected a symbol such as H, D, C or Cl")
    return number, None


def number(text: str) -> float:
    """Read a finite number; unlike ``float``, this refuses ``1_0`` and ``nan``.

    Raises
    ------
    ValueError
        If the text is not a finite number.
    """
    try:
        value = float(text) if "_" not in text else math.nan
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ValueError(f"{text.strip()!r} is no number")
    return value


def fixed_columns(line: str, edges: Sequence[int], decimals: int) -> list[float]:
    """Read numbers in fixed columns, such as columns 31-38, 39-46 and 47-54 of a PDB atom.

    Parameters
    ----------
    line
        Line of the file.
    edges
        First column of each number, from 0, and the end of the last one.
    decimals
        Number of decimals of a full column. Digits that cross an edge are two numbers only if the
        first number has all its decimals; otherwise the line is shifted.

    Raises
    ------
    ValueError
        If a number is missing, damaged or shifted.
    """
    values = []
    for start, end in itertools.pairwise(edges):
        text = line[start:end]
        after = line[end : end + 1]
        if text[-1:].isdigit() and (after.isdigit() or after == "."):
            if len(text.rpartition(".")[2]) != decimals or "." not in text:
                raise ValueError(f"columns {start + 1}-{end} cut a number: {line.strip()!r}")
        elif text[-1:] in ("-", "+", "."):
            raise ValueError(f"columns {start + 1}-{end} cut a number: {line.strip()!r}")
        values.append(number(text))
    return values


def make_atoms(
    numbers: Sequence[int],
    positions: Any,
    masses: Sequence[float | None] = (),
    cell: Any = None,
    pbc: Any = False,
    charge: int = 0,
) -> Atoms:
    """ASE atoms; None is the standard mass of the element, and a charge of 0 is not stored."""
    atoms = Atoms(numbers, np.asarray(positions, dtype=float).reshape(-1, 3), cell=cell, pbc=pbc)
    set_isotopes(atoms, masses)
    if charge:
        atoms.info["charge"] = charge
    return atoms


def set_isotopes(atoms: Atoms, masses: Sequence[float | None]) -> None:
    """Set the masses (u) that are not None."""
    if any(mass is not None for mass in masses):
        found = atoms.get_masses()
        for k, mass in enumerate(masses):
            if mass is not None:
                found[k] = mass
        atoms.set_masses(found)


@dataclass
class Site:
    """An atom of a PDB or mmCIF file."""

    line: int
    number: int
    mass: float | None
    position: tuple[float, float, float]
    charge: int
    name: str
    alternate: str
    """Letter of the alternate location; empty if there is only one location."""
    residue: tuple[str, ...]
    """Chain, number and insertion code."""
    residue_name: str
    occupancy: float
    serial: int | None = None


def chosen_sites(sites: list[Site], notes: Notes) -> list[Site]:
    """Select one location per atom: in each residue the letter with the highest occupancy.

    In a tie the first letter wins. The letters of a residue are alternatives if two of them have
    an atom of the same name, or different residue names; otherwise all atoms are kept.
    """
    residues: dict[tuple[str, ...], list[Site]] = {}
    for site in sites:
        residues.setdefault(site.residue, []).append(site)
    dropped: set[int] = set()
    for residue, atoms in residues.items():
        letters: dict[str, list[Site]] = {}
        for site in atoms:
            if site.alternate:
                letters.setdefault(site.alternate, []).append(site)
        if len(letters) < 2 or not _are_alternatives(list(letters.values()), atoms):
            continue
        occupancy = {
            letter: float(np.mean([site.occupancy for site in held]))
            for letter, held in letters.items()
        }
        best = max(occupancy, key=occupancy.__getitem__)  # the first one in a tie
        lost = [site for letter in letters if letter != best for site in letters[letter]]
        dropped.update(id(site) for site in lost)
        name = " ".join(part for part in (atoms[0].residue_name, *residue) if part)
        notes.say(
            "alternate",
            f"alternate locations: {best!r} is kept in {name}, "
            f"{len(lost)} atoms of {', '.join(repr(x) for x in letters if x != best)} are "
            "dropped; so in every residue, by the highest occupancy",
        )
    return [site for site in sites if id(site) not in dropped]


def _are_alternatives(letters: list[list[Site]], atoms: list[Site]) -> bool:
    if len({site.residue_name for site in atoms}) > 1:
        return True
    names = [{site.name for site in held} for held in letters]
    return sum(map(len, names)) > len(set.union(*names))


def say_of_gaps(sites: list[Site], notes: Notes) -> None:
    """Warn if serial numbers jump inside a residue, because lines may be missing."""
    for one, two in itertools.pairwise(sites):
        if one.serial is None or two.serial is None or one.residue != two.residue:
            continue
        if two.serial != one.serial + 1:
            notes.say(
                "gap",
                f"atom numbers jump from {one.serial} to {two.serial} inside residue "
                f"{one.residue_name} (line {two.line}): are atoms missing?",
            )


def atoms_of_sites(
    sites: list[Site], cell: Any, notes: Notes, charges_from: str = "columns 79-80"
) -> Atoms:
    """Atoms of one model, with the charges stated in the file."""
    say_of_gaps(sites, notes)
    sites = chosen_sites(sites, notes)
    charge = sum(site.charge for site in sites)
    if any(site.charge for site in sites):
        notes.say(
            "charge",
            f"total charge {charge:+d}, the sum of the charges in {charges_from} "
            "(--charge overrides it)",
        )
    return make_atoms(
        [site.number for site in sites],
        [site.position for site in sites],
        [site.mass for site in sites],
        cell,
        cell is not None,
        charge,
    )


def placeholder_box(lengths: Any, notes: Notes) -> bool:
    """Whether a box (A) is only a placeholder that the format requires; warns if so."""
    if not (np.allclose(lengths, 1, atol=1e-6) or np.allclose(lengths, 0, atol=1e-6)):
        return False
    notes.say(
        "box",
        f"the box of {lengths[0]:g} x {lengths[1]:g} x {lengths[2]:g} A stands for no crystal "
        "(NMR, cryo-EM): run without a cell",
    )
    return True


def crystal_cell(parameters: Sequence[float], group: str, notes: Notes) -> Any:
    """Cell from lengths (A) and angles (degrees), or None for a placeholder.

    Raises
    ------
    ValueError
        If the cell spans no volume.
    """
    if placeholder_box(np.asarray(parameters[:3]), notes):
        return None
    cell = Cell.new(np.asarray(parameters, dtype=float))
    if not np.isfinite(cell.array).all() or not cell.volume > 0:
        raise ValueError(f"the cell {' '.join(f'{x:g}' for x in parameters)} spans no volume")
    if group and group.replace(" ", "").upper() not in ("P1", "P11", "P111"):
        notes.say(
            "group",
            f"space group {group}: only the atoms written in the file are run, its symmetry "
            "copies are not made",
        )
    return cell
