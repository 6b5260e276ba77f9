"""PDB files, read by columns: models, alternate locations, charges, any numbering."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator
from typing import Any

from ase import Atoms

from .parts import (
    ISOTOPES,
    Notes,
    Site,
    atoms_of_sites,
    crystal_cell,
    element,
    fixed_columns,
    number,
)

_X, _Y, _Z, _END = 30, 38, 46, 54
_CHARGE = re.compile(r"(\d)?([+-])(\d)?")
_ATOM_LIKE = re.compile(r"\s*-?\d+\.\d+\s*-?\d+\.\d+\s*-?\d+\.\d+")
_NO_ATOMS = ("REMARK", "ANISOU", "ORIGX", "SCALE", "MTRIX", "TVECT", "SIGATM", "SIGUIJ")
_RECORDS = (
    "ANISOU AUTHOR CAVEAT CISPEP COMPND CONECT DBREF DBREF1 DBREF2 END ENDMDL EXPDTA FORMUL",
    "FTNOTE HEADER HELIX HET HETNAM HETSYN HYDBND JRNL KEYWDS LINK MASTER MDLTYP MODEL MODRES",
    "MTRIX1 MTRIX2 MTRIX3 NUMMDL OBSLTE ORIGX1 ORIGX2 ORIGX3 REMARK REVDAT SCALE1 SCALE2",
    "SCALE3 SEQADV SEQRES SHEET SIGATM SIGUIJ SITE SLTBRG SOURCE SPLIT SPRSDE SSBOND TER",
    "TITLE TURN TVECT USER CRYST1",
)
RECORDS = frozenset(name for line in _RECORDS for name in line.split())
_RESIDUES = (
    "ALA ARG ASN ASP CYS CYX GLN GLU GLY HIS HID HIE HIP ILE LEU LYS MET PHE PRO SER THR TRP TYR",
    "VAL ACE NME NMA A C G U I DA DC DG DT DI HOH WAT SOL TIP TIP3 H2O",
)
POLYMERS = frozenset(name for line in _RESIDUES for name in line.split())
"""Residues whose atom names begin with a one-letter element: CA is carbon, HG hydrogen."""


def pdb_models(stream: Iterable[str], notes: Notes) -> Iterator[Atoms]:
    """Yield the models of a PDB file; a box applies to all models after it.

    Raises
    ------
    ValueError
        If the file violates the format; the message names the line.
    """
    cell: Any = None
    sites: list[Site] = []
    guessed: dict[str, str] = {}
    for count, raw in enumerate(stream, start=1):
        line = raw.rstrip("\r\n")
        record = line[:6].rstrip()
        try:
            if record in ("ATOM", "HETATM"):
                sites.append(_site(line, count, guessed))
            elif record == "CRYST1":
                edges = (6, 15, 24, 33, 40, 47, 54)
                parameters = [number(line[a:b]) for a, b in itertools.pairwise(edges)]
                cell = crystal_cell(parameters, line[55:66].strip(), notes)
            elif record in ("ENDMDL", "END"):
                if sites:
                    yield _model(sites, cell, guessed, notes)
                sites = []
            elif not line.startswith(_NO_ATOMS) and _ATOM_LIKE.match(line[_X:_END]):
                raise ValueError(f"{record!r} is no atom record, but its line has coordinates")
            elif line.strip() and record not in RECORDS:
                notes.say("record", f"line {count}: {record!r} is no record of PDB: not read")
        except ValueError as error:
            raise ValueError(f"line {count}: {error}") from None
    if sites:
        yield _model(sites, cell, guessed, notes)


def _model(sites: list[Site], cell: Any, guessed: dict[str, str], notes: Notes) -> Atoms:
    if guessed:
        some = ", ".join(f"{name} is {symbol}" for name, symbol in list(guessed.items())[:8])
        notes.say("elements", f"columns 77-78 name no element: {some}, by the names of the atoms")
    return atoms_of_sites(sites, cell, notes)


def _site(line: str, count: int, guessed: dict[str, str]) -> Site:
    if line[27:30].strip():
        raise ValueError(f"columns 28-30 are not blank: the line is shifted: {line.strip()!r}")
    if len(line) < _END:
        raise ValueError(f"the line ends before column {_END}: {line.strip()!r}")
    x, y, z = fixed_columns(line, (_X, _Y, _Z, _END), 3)
    name, residue_name = line[12:16], line[17:21].strip()
    charge = 0
    try:
        z_number, mass = element(line[76:78])
    except ValueError:
        symbol = guess_element(name, residue_name)
        guessed.setdefault(name.strip(), symbol)
        z_number, mass = element(symbol)
    else:
        charge = _charge(line[78:80])
    occupancy = line[54:60].strip()
    return Site(
        count,
        z_number,
        mass,
        (x, y, z),
        charge,
        name.strip(),
        line[16:17].strip(),
        (line[21:22].strip(), line[22:26].strip(), line[26:27].strip()),
        residue_name,
        number(occupancy) if occupancy else 1.0,
        int(line[6:11]) if line[6:11].strip().isdecimal() else None,
    )


def _charge(text: str) -> int:
    """Charge from ``1+``, ``+1``, ``2-`` or a bare sign."""
    text = text.strip()
    if not text or text.strip("0") == "":
        return 0
    found = _CHARGE.fullmatch(text)
    if found is None or (found[1] and found[3]):
        raise ValueError(f"columns 79-80 are {text!r}: expected a charge such as 1+ or 2-")
    size = int(found[1] or found[3] or 1)
    return size if found[2] == "+" else -size


def guess_element(name: str, residue_name: str) -> str:
    """Guess the symbol of an atom from its name (columns 13-16) and residue.

    Two-letter symbols begin in column 13, one-letter symbols in column 14, except in names of four
    characters.

    Raises
    ------
    ValueError
        If the name does not begin with an element.
    """
    letters = re.sub(r"[^A-Za-z]", " ", name)
    words = letters.split()
    if not words:
        raise ValueError(f"neither columns 77-78 nor the name {name.strip()!r} tell an element")
    first = words[0]
    full = len(name.strip()) == 4
    two = first[:2] if len(first) > 1 else ""
    if residue_name.upper() in POLYMERS or (name[:1] in " 0123456789" and not full):
        candidates = [first[0]]
    elif first.upper() == residue_name.upper() or not (full and first[0].upper() == "H"):
        candidates = [two, first[0]]
    else:
        candidates = [first[0]]
    if len(first) > 1:  # longer names with D or T are not isotopes, but Drude particles, ...
        candidates = [symbol for symbol in candidates if symbol.upper() not in ISOTOPES]
    for symbol in candidates:
        try:
            element(symbol)
        except ValueError:
            continue
        return symbol.capitalize()
    raise ValueError(f"neither columns 77-78 nor the name {name.strip()!r} tell an element")
