"""MDL molfiles and SDF (V2000 and V3000): every molecule, its charges and isotopes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from ase import Atoms
from ase.data import atomic_masses

from .parts import ISOTOPES, Notes, element, fixed_columns, make_atoms, number

_OLD_CHARGES = {0: 0, 1: 3, 2: 2, 3: 1, 4: 0, 5: -1, 6: -2, 7: -3}
"""Charges by the code in the charge column of an atom; 4 is a radical."""


@dataclass
class _Molecule:
    numbers: list[int] = field(default_factory=list)
    positions: list[list[float]] = field(default_factory=list)
    masses: list[float | None] = field(default_factory=list)
    charges: list[int] = field(default_factory=list)

    def add(self, symbol: str, position: list[float], charge: int) -> None:
        z, mass = element(symbol)
        self.numbers.append(z)
        self.masses.append(mass)
        self.positions.append(position)
        self.charges.append(charge)

    def set_isotope(self, atom: int, mass_number: int, notes: Notes) -> None:
        """Set the mass of an isotope, exact for hydrogen."""
        exact = {2: ISOTOPES["D"][1], 3: ISOTOPES["T"][1]} if self.numbers[atom] == 1 else {}
        if mass_number not in exact:
            notes.say("isotope", f"isotope masses are mass numbers, such as {mass_number} u")
        self.masses[atom] = exact.get(mass_number, float(mass_number))


def sdf_molecules(stream: Iterable[str], notes: Notes) -> Iterator[Atoms]:
    """Yield the molecules of an SDF file or molfile.

    Raises
    ------
    ValueError
        If the file violates the format; the message names the line.
    """
    record: list[str] = []
    start = 1
    for count, line in enumerate(stream, start=1):
        if line.startswith("$$$$"):
            yield _read(record, start, notes)
            record, start = [], count + 1
        else:
            record.append(line.rstrip("\r\n"))
    if any(line.strip() for line in record):
        yield _read(record, start, notes)


def _read(lines: list[str], start: int, notes: Notes) -> Atoms:
    if len(lines) < 4:
        raise ValueError(f"line {start}: a molecule needs a header of three lines and its counts")
    position = [3]
    try:
        version = lines[3][33:39].strip()
        if version not in ("V2000", "V3000", ""):
            raise ValueError(f"version {version!r}: expected V2000 or V3000")
        read = _read_v3000 if version == "V3000" else _read_v2000
        molecule = read(lines, position, notes)
        _check_data(lines, position)
    except ValueError as error:
        raise ValueError(f"line {start + min(position[0], len(lines))}: {error}") from None
    if lines[1][20:22].upper() == "2D" and not any(p[2] for p in molecule.positions):
        raise ValueError(
            f"line {start + 1}: the molecule is a drawing (2D): make a structure in three "
            "dimensions, with all its hydrogens, first"
        )
    charge = sum(molecule.charges)
    if any(molecule.charges):
        notes.say(
            "charge", f"total charge {charge:+d}, as stated in the file (--charge overrides it)"
        )
    atoms = make_atoms(molecule.numbers, molecule.positions, molecule.masses, charge=charge)
    return atoms


def _check_data(lines: list[str], place: list[int]) -> None:
    """Raise a ValueError for lines outside data items, such as a molecule without $$$$."""
    inside = False
    for k in range(place[0], len(lines)):
        place[0] = k
        if lines[k].startswith(">"):
            inside = True
        elif not lines[k].strip():
            inside = False
        elif not inside or lines[k].startswith("M  END"):
            raise ValueError(f"{lines[k].strip()[:40]!r} stands where $$$$ is expected")


def _integer(text: str, what: str) -> int:
    try:
        if "_" in text:
            raise ValueError
        return int(text)
    except ValueError:
        raise ValueError(f"{text.strip()!r} is no {what}") from None


def _optional(text: str, what: str) -> int:
    return _integer(text, what) if text.strip() else 0


def _read_v2000(lines: list[str], place: list[int], notes: Notes) -> _Molecule:
    """Read fixed columns; ``place`` has the line number for errors, from 0."""
    atoms = _integer(lines[3][:3], "number of atoms")
    bonds = _integer(lines[3][3:6], "number of bonds")
    if atoms < 1 or bonds < 0:
        raise ValueError(f"{atoms} atoms and {bonds} bonds: expected at least one atom")
    molecule = _Molecule()
    for k in range(4, 4 + atoms):
        place[0] = k
        line = _line(lines, k)
        symbol, position, difference, charge = _atom_v2000(line)
        if charge not in _OLD_CHARGES:
            raise ValueError(f"charge code {charge}: expected 0 to 7")
        molecule.add(symbol, position, _OLD_CHARGES[charge])
        if difference:
            natural = round(float(atomic_masses[molecule.numbers[-1]]))
            molecule.set_isotope(len(molecule.numbers) - 1, natural + difference, notes)
    for k in range(4 + atoms, 4 + atoms + bonds):
        place[0] = k
        line = _line(lines, k)
        ends = (_integer(line[:3], "atom of a bond"), _integer(line[3:6], "atom of a bond"))
        if not all(0 < end <= atoms for end in ends) or "." in line:
            raise ValueError(f"{line.strip()[:40]!r} is no bond between two of {atoms} atoms")
    charged = False
    for k in range(4 + atoms + bonds, len(lines)):
        place[0] = k
        line = lines[k]
        if line.startswith("M  END"):
            place[0] = k + 1
            return molecule
        if line.startswith(("M  CHG", "M  RAD")) and not charged:
            charged = True  # these lines override the charge column of atoms
            molecule.charges = [0] * atoms
        if line.startswith(("M  CHG", "M  ISO")):
            for atom, value in _pairs(line, atoms):
                if line.startswith("M  CHG"):
                    molecule.charges[atom] = value
                elif value:
                    molecule.set_isotope(atom, value, notes)
        elif not line.startswith(("M  ", "A  ", "V  ", "G  ", "S  ")):
            previous = lines[k - 1]
            if not previous.startswith(("A  ", "G  ")):  # a line of text follows these
                raise ValueError(f"{line.strip()[:40]!r} stands where M  END is expected")
    place[0] = len(lines)
    raise ValueError("the molecule ends without M  END")


def _line(lines: list[str], k: int) -> str:
    if k >= len(lines):
        raise ValueError("the molecule ends before its last atom or bond")
    return lines[k]


def _atom_v2000(line: str) -> tuple[str, list[float], int, int]:
    """Symbol, position, mass difference and charge code of an atom's line."""
    try:
        position = fixed_columns(line, (0, 10, 20, 30), 4)
        symbol = line[30:34].strip()
        if not symbol or line[34:35].isalpha():
            raise ValueError(f"columns 32-34 hold no symbol: {line.strip()!r}")
        return (
            symbol,
            position,
            _optional(line[34:36], "mass difference"),
            _optional(line[36:39], "charge code"),
        )
    except ValueError as error:
        words = line.split()  # files written by hand ignore the columns
        if len(words) < 4 or not words[3].isalpha():
            raise error
        rest = [_integer(word, "whole number") for word in words[4:6]] + [0, 0]
        return words[3], [number(word) for word in words[:3]], rest[0], rest[1]


def _pairs(line: str, atoms: int) -> list[tuple[int, int]]:
    """Atom indices, from 0, and values of a property line such as ``M  CHG  1   2  -1``."""
    words = [_integer(word, "whole number") for word in line[6:].split()]
    if not words or len(words) != 1 + 2 * words[0]:
        raise ValueError(f"{line.strip()!r}: expected a count and as many pairs")
    found = list(zip(words[1::2], words[2::2], strict=True))
    for atom, _ in found:
        if not 0 < atom <= atoms:
            raise ValueError(f"{line.strip()!r} names atom {atom} of {atoms}")
    return [(atom - 1, value) for atom, value in found]


def _read_v3000(lines: list[str], place: list[int], notes: Notes) -> _Molecule:
    molecule = _Molecule()
    count: int | None = None
    index: dict[str, int] = {}
    inside = ended = False
    text = ""
    for k in range(4, len(lines)):
        place[0] = k
        line = lines[k]
        if line.startswith("M  END"):
            ended = True
            place[0] = k + 1
            break
        if not line.startswith("M  V30 "):
            raise ValueError(f"{line.strip()[:40]!r}: expected a line of V3000 (M  V30)")
        text += line[7:].strip()
        if text.endswith("-"):
            text = text[:-1]
            continue
        words, text = text.split(), ""
        if words[:1] == ["COUNTS"] and len(words) > 1:
            count = _integer(words[1], "number of atoms")
        elif words[:2] in (["BEGIN", "ATOM"], ["END", "ATOM"]):
            inside = words[0] == "BEGIN"
        elif inside:
            if len(words) < 5:
                raise ValueError(f"{line.strip()!r} is no atom: expected index, symbol, x, y, z")
            index[words[0]] = len(molecule.numbers)
            molecule.add(words[1], [number(word) for word in words[2:5]], 0)
            for word in words[5:]:
                key, _, value = word.partition("=")
                if key == "CHG":
                    molecule.charges[-1] = _integer(value, "charge")
                elif key == "MASS":
                    mass_number = _integer(value, "mass number")
                    molecule.set_isotope(len(molecule.numbers) - 1, mass_number, notes)
    if not ended:
        place[0] = len(lines)
        raise ValueError("the molecule ends without M  END")
    if count != len(molecule.numbers) or not count:
        raise ValueError(f"the counts say {count} atoms, but {len(molecule.numbers)} are there")
    return molecule
