"""XYZ and extended XYZ, frame by frame, without skipping frames or lines."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from ase import Atoms
from ase.constraints import FixAtoms, FixCartesian
from ase.io.extxyz import REV_PROPERTY_NAME_MAP, key_val_str_to_dict, set_calc_and_arrays

from .parts import Notes, element, number, set_isotopes

Rows = list[list[str]]

PLAIN = "species:S:1:pos:R:3"
"""Columns of a file without ``Properties``."""
_TOKEN = re.compile(
    r"""(?:"(?:\\.|[^"\\])*"|'(?:\\.|[^'\\])*'|\{[^}]*\}|\[[^\]]*\]|\\.|[^\s"'{\[\\])+"""
)
_TELLING = re.compile(
    r"(charge|energy|forces?|stress|virial|dipole|pbc|lattice)", flags=re.IGNORECASE
)


class _Lines:
    """Lines of a file, counted from 1."""

    def __init__(self, stream: Iterable[str]) -> None:
        self._stream = iter(stream)
        self._kept: str | None = None
        self.number = 0

    def next(self) -> str | None:
        if self._kept is not None:
            line, self._kept = self._kept, None
        else:
            found = next(self._stream, None)
            if found is None:
                return None
            line = found
        self.number += 1
        return line

    def give_back(self, line: str) -> None:
        self._kept = line
        self.number -= 1


def xyz_frames(stream: Iterable[str], notes: Notes) -> Iterator[Atoms]:
    """Yield the frames of an XYZ file; blank lines between frames are allowed.

    Raises
    ------
    ValueError
        If the file violates the format; the message names the line.
    """
    lines = _Lines(stream)
    while (line := lines.next()) is not None:
        if not line.strip():
            continue
        start = lines.number
        text = line.strip()
        if not text.isascii() or not text.isdigit():
            raise ValueError(
                f"line {start}: {text[:40]!r} stands where the number of atoms of a frame "
                "is expected"
            )
        if int(text) == 0:
            raise ValueError(f"line {start}: the frame has no atoms")
        comment = lines.next() or ""
        rows: Rows = []
        for k in range(int(text)):
            row = lines.next()
            if row is None or not row.strip():
                raise ValueError(
                    f"line {start}: the frame shall have {text} atoms, but "
                    + ("the file ends" if row is None else f"line {lines.number} is blank")
                    + f" after {k}"
                )
            rows.append(row.split())
        vectors = _vectors(lines)
        try:
            yield _frame(comment, rows, vectors, start, notes)
        except ValueError as error:
            told = str(error)
            raise ValueError(
                told if told.startswith("line ") else f"line {start}: {told}"
            ) from None


def _vectors(lines: _Lines) -> Rows:
    """Cell vectors in lines VEC1 to VEC3 after the atoms, as some programs write them."""
    found: Rows = []
    while (line := lines.next()) is not None:
        if not line.startswith("VEC"):
            lines.give_back(line)
            break
        found.append(line.split())
    return found


def _frame(comment: str, rows: Rows, vectors: Rows, start: int, notes: Notes) -> Atoms:
    info = entries_of(comment, start + 1, notes)
    plain = "Properties" not in info
    arrays, symbols = _columns(rows, str(info.pop("Properties", PLAIN)), plain, start, notes)
    cell, pbc = _cell(info, vectors)
    masses: list[float | None] = []
    numbers = arrays.pop("numbers", None)
    if numbers is None:
        if symbols is None:
            raise ValueError("there is no column of symbols (species) or atomic numbers (Z)")
        pairs = {name: _element(name, symbols, start) for name in set(symbols)}
        numbers = [pairs[name][0] for name in symbols]
        masses = [pairs[name][1] for name in symbols]
    positions = arrays.pop("positions", None)
    if positions is None or positions.shape != (len(rows), 3):
        raise ValueError("there are no positions: expected pos:R:3 in Properties")
    try:
        atoms = Atoms(numbers, positions, cell=cell, pbc=pbc, info=info)
        movable = arrays.pop("move_mask", None)
        if movable is not None:
            atoms.set_constraint(_constraints(np.asarray(movable)))
        if "masses" not in arrays:
            set_isotopes(atoms, masses)
        set_calc_and_arrays(atoms, arrays)
    except Exception as error:  # ASE checks shapes and keys in many ways
        raise ValueError(" ".join(str(error).split()) or type(error).__name__) from None
    return atoms


def _element(symbol: str, symbols: list[str], start: int) -> tuple[int, float | None]:
    try:
        return (int(symbol), None) if symbol.isdecimal() else element(symbol)
    except ValueError as error:
        raise ValueError(f"line {start + 2 + symbols.index(symbol)}: {error}") from None


def entries_of(comment: str, line: int, notes: Notes) -> dict[str, Any]:
    """The ``key=value`` entries of a comment line; bare words, True in ASE, are ignored.

    Raises
    ------
    ValueError
        If an entry cannot be read.
    """
    # Outside quotes, blanks around "=" are allowed.
    parts = re.split(r"""("(?:\\.|[^"\\])*")""", comment.strip())
    joined = "".join(p if p.startswith('"') else re.sub(r"\s*=\s*", "=", p) for p in parts)
    tokens = _TOKEN.findall(joined)
    entries = [token for token in tokens if "=" in token]
    bare = [token for token in tokens if "=" not in token]
    telling = next((word for word in bare if _TELLING.fullmatch(word.strip(":,;"))), None)
    if telling is not None:
        notes.say(
            f"bare {telling}",
            f"line {line}: the word {telling!r} in {comment.strip()[:60]!r} is no entry and is "
            f"not read: write {telling}=VALUE",
        )
    if not entries:
        return {}
    try:
        info: dict[str, Any] = key_val_str_to_dict(" ".join(entries))
    except Exception as error:  # wrong values raise errors of many kinds
        raise ValueError(f"line {line}: {' '.join(str(error).split())}") from None
    return info


def _cell(info: dict[str, Any], vectors: Rows) -> tuple[Any, Any]:
    """Cell and periodicity, removed from ``info``."""
    lattice, pbc = info.pop("Lattice", None), info.pop("pbc", None)
    cell = None if lattice is None else np.asarray(lattice, dtype=float).T
    if vectors:
        if cell is not None or len(vectors) > 3:
            raise ValueError("a cell is given twice: by Lattice and by VEC lines")
        cell = np.zeros((3, 3))
        for k, (name, *values) in enumerate(vectors):
            if name != f"VEC{k + 1}" or len(values) != 3:
                raise ValueError(f"{name} is no cell vector: expected VEC{k + 1} and 3 numbers")
            cell[k] = [number(value) for value in values]
        return cell, [k < len(vectors) for k in range(3)]
    if pbc is None:
        return cell, cell is not None
    flags = np.asarray(pbc)
    if (
        flags.dtype.kind not in "bi"
        or flags.shape not in ((), (3,))
        or not set(flags.ravel().tolist()) <= {0, 1}
    ):
        raise ValueError(f'pbc is {pbc!r}: expected three of T and F, such as pbc="T T F"')
    return cell, flags.astype(bool)


def _columns(
    rows: Rows, properties: str, plain: bool, start: int, notes: Notes
) -> tuple[dict[str, Any], list[str] | None]:
    """Columns by ASE's names, and the symbols, if there are any."""
    fields = properties.split(":")
    if len(fields) % 3:
        raise ValueError(f"Properties is {properties!r}: expected NAME:TYPE:COLUMNS, repeated")
    kinds = []
    for name, kind, count in zip(fields[::3], fields[1::3], fields[2::3], strict=True):
        if kind not in ("R", "I", "S", "L") or not count.isdecimal() or int(count) < 1:
            raise ValueError(f"Properties has {name}:{kind}:{count}: expected e.g. pos:R:3")
        kinds.append((REV_PROPERTY_NAME_MAP.get(name, name), kind, int(count)))
    if len({name for name, _, _ in kinds}) < len(kinds):
        raise ValueError(f"Properties is {properties!r}: a name occurs twice")
    width = sum(count for _, _, count in kinds)
    for k, row in enumerate(rows):
        if len(row) < width or (len(row) > width and not plain):
            raise ValueError(
                f"line {start + 2 + k} has {len(row)} columns: expected {width} ({properties})"
            )
    if plain and any(len(row) > width for row in rows):
        notes.say(
            "columns",
            f"line {start + 2}: columns after the fourth are not read, as no Properties say what "
            "they are",
        )
    arrays: dict[str, Any] = {}
    column = 0
    for name, kind, number_of_columns in kinds:
        part = [row[column : column + number_of_columns] for row in rows]
        values = _values(part, kind, start)
        arrays[name] = values[:, 0] if number_of_columns == 1 else values
        column += number_of_columns
    symbols = arrays.pop("symbols", None)
    return arrays, None if symbols is None else [str(symbol) for symbol in symbols]


def _values(part: Rows, kind: str, start: int) -> np.ndarray[Any, Any]:
    """Values (N, columns) of one property."""
    if kind == "S":
        return np.array(part, dtype=object)
    if kind == "L":
        flags = {"T": True, "F": False, "True": True, "False": False}
        for k, row in enumerate(part):
            if not set(row) <= set(flags):
                raise ValueError(f"line {start + 2 + k}: expected T or F, not {' '.join(row)!r}")
        return np.array([[flags[text] for text in row] for row in part], dtype=bool)
    convert = float if kind == "R" else int
    found = []
    for k, row in enumerate(part):
        try:
            if "_" in "".join(row):
                raise ValueError
            found.append([convert(text) for text in row])
        except ValueError:
            what = "numbers" if kind == "R" else "whole numbers"
            raise ValueError(
                f"line {start + 2 + k}: expected {what}, not {' '.join(row)!r}"
            ) from None
    try:
        return np.array(found, dtype=float if kind == "R" else np.int64)
    except OverflowError:
        raise ValueError("a whole number is too large") from None


def _constraints(movable: np.ndarray[Any, Any]) -> list[Any]:
    """ASE constraints from a column ``move_mask``."""
    movable = movable.astype(bool)
    if movable.ndim == 1:
        return [FixAtoms(mask=~movable)]
    return [FixCartesian(k, mask=~movable[k]) for k in range(len(movable)) if not movable[k].all()]
