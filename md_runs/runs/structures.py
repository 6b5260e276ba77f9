"""Structures in and out, in any format ASE reads, with errors a person can act on."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from ase import Atoms
from ase.io import read, write
from ase.io.formats import UnknownFileTypeError, filetype, ioformats

from ...models.files import write_atomically


def read_structures(source: str | Path) -> list[Atoms]:
    """Every structure of a file; ``file@index`` takes those that ASE's index selects.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If it holds nothing that can be run.
    """
    name, _, index = str(source).rpartition("@")
    if not name or Path(source).exists():
        name, index = str(source), ""
    path = Path(name)
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file")
    if path.is_dir():
        raise ValueError(f"{path} is a folder: expected a structure file")
    if path.stat().st_size == 0:
        raise ValueError(f"{path} is empty: expected a structure")
    try:
        found = read(path, index=index or ":", do_not_split_by_at_sign=True)
    except UnknownFileTypeError:
        raise ValueError(f"{path}: ASE does not recognise this format") from None
    except PermissionError:
        raise PermissionError(f"{path}: permission denied") from None
    except Exception as error:  # each of ASE's 80 readers fails in its own way
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ValueError(f"{path} cannot be read as a structure: {reason}") from error
    structures = found if isinstance(found, list) else [found]
    # ASE takes the END that follows the last ENDMDL of a PDB file for one more, empty, model.
    structures = [atoms for atoms in structures if len(atoms)] or structures
    if not structures:
        raise ValueError(f"{path} holds no structure")
    for atoms in structures:
        check_structure(atoms, path)
    return structures


def read_structure(source: str | Path) -> Atoms:
    """The one structure of a file.

    Raises
    ------
    ValueError
        If it holds several and none was chosen.
    """
    structures = read_structures(source)
    if len(structures) > 1:
        raise ValueError(
            f"{source} holds {len(structures)} structures: choose one, for example "
            f"{source}@0 for the first or {source}@-1 for the last"
        )
    return structures[0]


def check_structure(atoms: Atoms, source: str | Path = "the structure") -> None:
    """Raise a ValueError for what no run can start from."""
    if len(atoms) == 0:
        raise ValueError(f"{source} has no atoms: expected at least one")
    finite = np.isfinite(atoms.positions).all(axis=1)
    if not finite.all():
        atom = int(np.argmin(finite))
        raise ValueError(
            f"{source}: position of atom {atom} is {atoms.positions[atom]}: "
            "expected finite numbers"
        )


def write_structure(path: Path, atoms: Atoms) -> None:
    """Write in the format of the file's name, atomically.

    Raises
    ------
    ValueError
        If ASE cannot write the format, or not this structure in it.
    """
    name = format_of(path)
    try:
        if ioformats[name].isbinary:
            binary = io.BytesIO()
            write(binary, atoms, format=name)
            data = binary.getvalue()
        else:
            text = io.StringIO()
            write(text, atoms, format=name)
            data = text.getvalue().encode()
    except Exception as error:  # each of ASE's writers fails in its own way
        raise ValueError(f"{path} cannot be written: {error}") from error
    write_atomically(path, data)


def format_of(path: Path) -> str:
    """ASE's name of the format that a file to be written will have.

    Raises
    ------
    ValueError
        If the name tells none that ASE writes.
    """
    try:
        name = filetype(str(path), read=False)
    except UnknownFileTypeError:
        name = ""
    if name not in ioformats or not ioformats[name].can_write:
        raise ValueError(
            f"{path}: ASE writes no such format; expected a name such as relaxed.xyz, "
            "relaxed.cif or relaxed.pdb"
        )
    return name


def frame_text(atoms: Atoms) -> str:
    """A frame in extended XYZ, with the results of its calculator."""
    text = io.StringIO()
    write(text, atoms, format="extxyz")
    return text.getvalue()


def whole_frames(path: Path) -> Iterator[list[bytes]]:
    """The lines of each frame of an extended XYZ file; one that a kill cut short is left out."""
    with open(path, "rb") as stream:
        while header := stream.readline():
            lines = [header, *(stream.readline() for _ in range(int(header) + 1))]
            if not lines[-1].endswith(b"\n"):
                return
            yield lines


def describe(atoms: Atoms) -> str:
    """``C2H6O, 9 atoms`` and what is periodic."""
    periodic = ", periodic" if atoms.pbc.all() else ""
    if atoms.pbc.any() and not atoms.pbc.all():
        periodic = ", periodic along " + "".join(np.array(list("abc"))[atoms.pbc])
    plural = "s" if len(atoms) != 1 else ""
    return f"{atoms.get_chemical_formula('hill')}, {len(atoms)} atom{plural}{periodic}"
