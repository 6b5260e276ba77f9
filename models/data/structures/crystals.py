"""Crystallographic CIF and POSCAR: ASE's readers, and checks that they lack."""

from __future__ import annotations

import io
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from ase.io.cif import parse_cif
from ase.io.vasp import read_vasp

from .checks import check_distances
from .parts import ISOTOPES, Notes, element

FULL = 0.9
"""Smallest occupancy of a site that counts as full."""


def cif_structures(text: str, notes: Notes) -> Iterator[Atoms]:
    """Yield the structures in the blocks of a CIF.

    Raises
    ------
    ValueError
        If the file is damaged or the crystal disordered (partly occupied sites).
    """
    _check_quotes(text)
    for block in parse_cif(io.BytesIO(text.encode())):
        if not block.has_structure():
            if any(key.startswith("_atom_site_") for key in block):
                raise ValueError(f"data_{block.name}: its atoms have no positions or no cell")
            continue
        _check_cell(block)
        _check_occupancies(block, notes)
        _check_symbols(block)
        # ASE merges coinciding atoms, which symmetry creates; among the file's own, one is wrong.
        check_distances(block.get_unsymmetrized_structure(), f"data_{block.name}")
        atoms = block.get_atoms()
        _check_formula(block, atoms, notes)
        yield atoms


def _check_quotes(text: str) -> None:
    """Raise a ValueError if a line of atoms has the wrong number of values."""
    # ASE reads a loop as a stream of values: a missing value shifts all following ones.
    names, inside = 0, False
    for count, raw in enumerate(text.splitlines(), start=1):
        line = raw.strip()
        if line.lower() == "loop_":
            names, inside = 0, False
        elif line.startswith("_"):
            names = names + 1 if line.startswith("_atom_site_") and " " not in line else 0
            inside = names > 0 and not line.startswith("_atom_site_aniso")
        elif not line or line.startswith(("#", ";", "data_")):
            inside = False
        elif inside and len(re.findall(r"'[^']*'|\"[^\"]*\"|\S+", line)) != names:
            raise ValueError(f"line {count}: expected the {names} values of one atom")


def _check_cell(block: Any) -> None:
    """Raise a ValueError if the cell is incomplete: ASE would read fractions as Angstrom."""
    parameters = block.get_cellpar()
    if parameters is None and block.get("_atom_site_fract_x") is None:
        return
    if parameters is None or not all(isinstance(x, (int, float)) for x in parameters):
        raise ValueError(
            f"data_{block.name}: lengths and angles of the cell are {parameters}: expected six "
            "numbers"
        )


def _check_occupancies(block: Any, notes: Notes) -> None:
    occupancies = block.get("_atom_site_occupancy")
    if occupancies is None:
        return
    labels = block.get("_atom_site_label") or [str(k) for k in range(len(occupancies))]
    for label, value in zip(labels, occupancies, strict=False):
        if isinstance(value, str):
            if value in (".", "?"):
                continue
            raise ValueError(f"the occupancy of atom {label} is {value!r}: expected a number")
        if value < FULL:
            raise ValueError(
                f"atom {label} has an occupancy of {value:g}: a disordered crystal is no "
                "structure; make an ordered one of it first"
            )
        if value < 1:
            notes.say("occupancy", f"the occupancy {value:g} of atom {label} is taken for full")


def _check_symbols(block: Any) -> None:
    """Raise a ValueError for an unknown symbol, of which ASE would read the letters it knows."""
    types = block.get("_atom_site_type_symbol")
    for text in types or ():
        letters = re.match(r"[A-Za-z]*", str(text))
        assert letters is not None
        element(letters[0])
        if not re.fullmatch(r"[A-Za-z]+\d*[+-]?\d*", str(text)):
            raise ValueError(f"{text!r} is no symbol of an element")


def _check_formula(block: Any, atoms: Atoms, notes: Notes) -> None:
    """Warn if the file's formula has other proportions, because atoms may be missing."""
    stated = block.get("_chemical_formula_sum")
    if not isinstance(stated, str) or stated.strip() in (".", "?"):
        return
    wanted: Counter[str] = Counter()
    for symbol, count in re.findall(r"([A-Z][a-z]?)\s?(\d*\.?\d*)", stated):
        wanted["H" if symbol in ISOTOPES else symbol] += float(count or 1)  # type: ignore[assignment]
    found = Counter(atoms.get_chemical_symbols())
    units = len(atoms) / max(sum(wanted.values()), 1e-9)
    if any(
        abs(found[symbol] - units * wanted[symbol]) > 0.01 * units + 1e-6
        for symbol in {*found, *wanted}
    ):
        notes.say(
            "formula",
            f"the formula is {stated.strip()}, but the atoms are "
            f"{atoms.get_chemical_formula('hill')}: are atoms missing (hydrogens)?",
        )


def poscar_structure(path: Path, text: str, notes: Notes) -> Atoms:
    """Structure of a POSCAR.

    Raises
    ------
    ValueError
        If the file violates the format or has the wrong number of atoms; the message names the
        line.
    """
    lines = text.splitlines()
    _check_poscar(lines, notes)
    stream = _Named(text)
    stream.name = str(path)  # ASE looks in its folder for a POTCAR with the elements
    atoms: Atoms = read_vasp(stream)
    return atoms


class _Named(io.StringIO):
    name: str


def _check_poscar(lines: list[str], notes: Notes) -> None:
    if len(lines) < 8:
        raise ValueError(f"a POSCAR has at least 8 lines, not {len(lines)}")
    symbols = lines[5].split("!")[0].split()
    start = 5
    if symbols and symbols[0].isdecimal():
        notes.say(
            "elements",
            f"line 6 names no elements: they are read from the comment {lines[0].strip()!r} or "
            "a POTCAR",
        )
    else:
        start = 6
        for symbol in symbols:
            try:
                _, mass = element(symbol.split("/")[0].split("_")[0])
            except ValueError as error:
                raise ValueError(f"line 6: {error}") from None
            if mass is not None:
                raise ValueError(f"line 6: {symbol}: ASE reads no isotopes here; write H")
    words = lines[start].split("!")[0].split()
    if not words or not all(word.isdecimal() for word in words):
        raise ValueError(f"line {start + 1}: {lines[start].strip()!r} are no numbers of atoms")
    if start == 6 and len(words) != len(symbols):
        raise ValueError(f"lines 6 and 7: {len(symbols)} elements, but {len(words)} numbers")
    count = sum(map(int, words))
    first = start + 1
    selective = lines[first].strip()[:1].lower() == "s"
    first += selective
    if first >= len(lines) or lines[first].strip()[:1].lower() not in tuple("dck"):
        raise ValueError(f"line {first + 1}: expected Direct or Cartesian")
    for k in range(first + 1, first + 1 + count):
        words = lines[k].split() if k < len(lines) else []
        if not _numbers(words[:3]) or (selective and not set(words[3:6]) <= {"T", "F"}):
            said = " ".join(words) or "nothing"
            raise ValueError(f"line {k + 1}: expected atom {k - first} of {count}, not {said!r}")
        if selective and len(words) < 6:
            raise ValueError(f"line {k + 1}: expected three of T and F after the position")
    if first + 1 + count < len(lines) and _numbers(lines[first + 1 + count].split()[:3]):
        raise ValueError(
            f"line {first + 2 + count}: one more position, but the numbers add up to {count} atoms"
        )


def _numbers(words: list[str]) -> bool:
    try:
        return len(words) == 3 and bool(np.isfinite([float(word) for word in words]).all())
    except ValueError:
        return False
