"""Macromolecular CIF: the atoms of ``_atom_site`` with Cartesian coordinates."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from ase import Atoms

from .parts import Notes, Site, atoms_of_sites, crystal_cell, element, number

CARTESIAN = "_atom_site.Cartn_x"
"""Item that distinguishes such a file from a crystallographic CIF."""
_WORD = re.compile(r"""'(?:[^']|'(?=\S))*'(?=\s|$)|"(?:[^"]|"(?=\S))*"(?=\s|$)|\#.*|\S+""")
_UNKNOWN = (".", "?", "")
_NEEDED = ("Cartn_x", "Cartn_y", "Cartn_z", "type_symbol")
_CELL = [f"_cell.length_{k}" for k in "abc"] + [
    f"_cell.angle_{k}" for k in ("alpha", "beta", "gamma")
]


class _Word(NamedTuple):
    text: str
    line: int
    quoted: bool

    def starts(self, *prefixes: str) -> bool:
        return not self.quoted and self.text.lower().startswith(prefixes)


def _words(stream: Iterable[str]) -> Iterator[_Word]:
    block: list[str] | None = None
    begun = 0
    count = 0
    for count, line in enumerate(stream, start=1):
        if line.startswith(";"):
            if block is None:
                block, begun = [line[1:]], count
                continue
            yield _Word("".join(block), begun, True)
            block, line = None, line[1:]
        if block is not None:
            block.append(line)
            continue
        for found in _WORD.finditer(line):
            text = found[0]
            if text.startswith("#"):
                break
            quoted = text[0] in "'\"" and len(text) > 1 and text[-1] == text[0]
            yield _Word(text[1:-1] if quoted else text, count, quoted)
    if block is not None:
        raise ValueError(f"line {begun}: a text that begins with ; does not end (line {count})")


def mmcif_models(stream: Iterable[str], notes: Notes) -> Iterator[Atoms]:
    """Yield the models of an mmCIF file.

    Raises
    ------
    ValueError
        If the file violates the format; the message names the line.
    """
    items, sites = _read(list(_words(stream)))
    cell = None
    parameters = [items.get(name, "?") for name in _CELL]
    if not any(value in _UNKNOWN for value in parameters):
        group = items.get("_symmetry.space_group_name_H-M", "")
        cell = crystal_cell(
            [_measured(value) for value in parameters], "" if group in _UNKNOWN else group, notes
        )
    models: dict[str, list[Site]] = {}
    for model, site in sites:
        models.setdefault(model, []).append(site)
    for found in models.values():
        yield atoms_of_sites(found, cell, notes, "_atom_site.pdbx_formal_charge")


def _read(words: list[_Word]) -> tuple[dict[str, str], list[tuple[str, Site]]]:
    """Single items, and atoms with their model numbers."""
    items: dict[str, str] = {}
    sites: list[tuple[str, Site]] = []
    k = 0
    blocks = 0
    while k < len(words):
        word = words[k]
        k += 1
        if word.starts("data_"):
            blocks += bool(sites)
        elif word.starts("loop_"):
            names = []
            while k < len(words) and words[k].starts("_"):
                names.append(words[k].text)
                k += 1
            values = []
            while k < len(words) and not words[k].starts("_", "loop_", "data_", "save_"):
                values.append(words[k])
                k += 1
            if any(name.startswith("_atom_site.") for name in names):
                if sites:
                    raise ValueError(
                        f"line {word.line}: atoms in a second block: split the file in two"
                    )
                sites = _sites(names, values, word.line)
        elif word.starts("_"):
            if k >= len(words) or words[k].starts("_", "loop_", "data_"):
                raise ValueError(f"line {word.line}: {word.text} has no value")
            items[word.text] = words[k].text
            k += 1
        elif not word.starts("save_", "global_", "stop_"):
            raise ValueError(f"line {word.line}: {word.text[:40]!r} belongs to no item")
    if not sites and any(name.startswith("_atom_site.") for name in items):
        names = [name for name in items if name.startswith("_atom_site.")]
        sites = _sites(names, [_Word(items[name], 0, True) for name in names], 0)
    return items, sites


def _sites(names: list[str], values: list[_Word], line: int) -> list[tuple[str, Site]]:
    columns = [name.removeprefix("_atom_site.") for name in names]
    missing = [name for name in _NEEDED if name not in columns]
    if missing:
        raise ValueError(f"line {line}: _atom_site has no {missing[0]}")
    width = len(columns)
    sites = []
    for start in range(0, len(values), width):
        row = values[start : start + width]
        # A missing or extra word would shift all following ones: each atom must be on one line.
        if len(row) < width or len({word.line for word in row}) > 1:
            raise ValueError(f"line {row[0].line}: expected the {width} values of one atom")
        try:
            sites.append(_site(dict(zip(columns, row, strict=True))))
        except ValueError as error:
            raise ValueError(f"line {row[0].line}: {error}") from None
    return sites


def _site(row: dict[str, _Word]) -> tuple[str, Site]:
    def text(*names: str) -> str:
        found = (row[name].text for name in names if name in row)
        return next((value for value in found if value not in _UNKNOWN), "")

    z, mass = element(text("type_symbol"))
    charge, occupancy, serial = text("pdbx_formal_charge"), text("occupancy"), text("id")
    site = Site(
        row["Cartn_x"].line,
        z,
        mass,
        (
            _measured(row["Cartn_x"].text),
            _measured(row["Cartn_y"].text),
            _measured(row["Cartn_z"].text),
        ),
        _whole(charge) if charge else 0,
        text("label_atom_id", "auth_atom_id"),
        text("label_alt_id"),
        (
            text("auth_asym_id", "label_asym_id"),
            text("auth_seq_id", "label_seq_id"),
            text("pdbx_PDB_ins_code"),
        ),
        text("label_comp_id", "auth_comp_id"),
        _measured(occupancy) if occupancy else 1.0,
        int(serial) if serial.isdecimal() else None,
    )
    return text("pdbx_PDB_model_num"), site


def _measured(text: str) -> float:
    """A number, possibly with an uncertainty: ``1.234(5)``."""
    return number(re.sub(r"\(\d+\)$", "", text))


def _whole(text: str) -> int:
    value = number(text)
    if not value.is_integer():
        raise ValueError(f"the charge {text!r} is no whole number")
    return int(value)
