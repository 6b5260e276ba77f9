"""Reading of structure files of any format that ASE reads, for runs and trainings.

Guesses and omissions are reported by a one-line ``UserWarning``; structures that cannot be right
are refused.
"""

from __future__ import annotations

import bz2
import gzip
import itertools
import lzma
import os
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO, Any

from ase import Atoms
from ase.io import iread
from ase.io.formats import UnknownFileTypeError, filetype, string2index

from .checks import (
    CLOSEST,
    CLOSEST_LABELLED,
    check_distances,
    check_geometry,
    clean,
    is_truth_value,
    whole_charge,
)
from .crystals import cif_structures, poscar_structure
from .mmcif import CARTESIAN, mmcif_models
from .parts import Notes
from .pdb import pdb_models
from .sdf import sdf_molecules
from .xyz import xyz_frames

__all__ = [
    "CLOSEST",
    "CLOSEST_LABELLED",
    "Notes",
    "check_distances",
    "check_geometry",
    "clean",
    "has_alternates",
    "is_truth_value",
    "iterate_atoms",
    "split_source",
    "whole_charge",
    "xyz_frames",
]

_BY_LINES: dict[str, Callable[[Iterable[str], Notes], Iterator[Atoms]]] = {
    "extxyz": xyz_frames,
    "proteindatabank": pdb_models,
    "mmcif": mmcif_models,
    "sdf": sdf_molecules,
}
_SUFFIXES = {
    ".xyz": "extxyz",
    ".extxyz": "extxyz",
    ".pdb": "proteindatabank",
    ".ent": "proteindatabank",
    ".cif": "cif",
    ".mmcif": "cif",
    ".sdf": "sdf",
    ".sd": "sdf",
    ".mol": "sdf",
}
_COMPRESSED = (".gz", ".bz2", ".xz")

Failed = Callable[[int, ValueError], None]


def iterate_atoms(
    source: str | os.PathLike[str],
    *,
    stop: int | None = None,
    closest: float | None = CLOSEST,
    failed: Failed | None = None,
) -> Iterator[tuple[int, Atoms]]:
    """Yield the structures of a file with their numbers, from 0.

    Parameters
    ----------
    source
        ``file``, or ``file@index`` with an ASE index: 7, -1, 10:20, or a query of a database.
    stop
        Read at most this many structures from the start; ignored with an index.
    closest
        Smallest distance between two atoms, Angstrom; structures with closer atoms are refused.
        None: the caller checks the geometry, once it knows the unit of length.
    failed
        Function called with the number of a refused structure and the error; reading continues.
        None: raise the error.

    Raises
    ------
    FileNotFoundError, PermissionError
        If there is no such file, or reading it is not permitted.
    ValueError
        If it is a folder, is empty, cannot be read, or has a structure that cannot be right.
    """
    path, index = split_source(source)
    notes = Notes(path)
    found = _chosen(_frames(path, index, stop, notes), index, path)
    empty = True
    for k, atoms in found:
        empty = False
        try:
            name = f"{path}@{k}" if k or index else str(path)
            clean(atoms, name, notes)
            if closest is not None:
                check_geometry(atoms, name, closest)
        except ValueError as error:
            if failed is None:
                raise
            failed(k, error)
            continue
        yield k, atoms
    if empty:
        raise ValueError(f"{path} holds no structure")


def split_source(source: str | os.PathLike[str]) -> tuple[Path, str]:
    """File and index of ``file@index``.

    Raises
    ------
    FileNotFoundError, ValueError
        If there is no such file, it is a folder, or empty.
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
    return path, index


def _chosen(
    frames: Iterator[tuple[int, Atoms]], index: str, path: Path
) -> Iterator[tuple[int, Atoms]]:
    """The structures that an index selects."""
    if not index:
        yield from frames
        return
    try:
        wanted = string2index(index)
    except ValueError:
        wanted = index
    if isinstance(wanted, str):
        yield from frames  # a query, which ASE has already applied
        return
    if isinstance(wanted, int) and wanted >= 0:
        held = list(itertools.islice(frames, wanted + 1))
    else:
        held = list(frames)
    try:
        chosen = [held[wanted]] if isinstance(wanted, int) else held[wanted]
    except (IndexError, ValueError):
        chosen = []
    if not chosen:
        raise ValueError(
            f"{path} holds {len(held)} structure{'s' if len(held) != 1 else ''}, numbered from 0: "
            f"there is none at @{index}"
        )
    yield from chosen


def _frames(path: Path, index: str, stop: int | None, notes: Notes) -> Iterator[tuple[int, Atoms]]:
    """Numbered structures from the readers; errors name the file."""
    try:
        frames = _read(path, index, notes)
        # In some formats ASE reads an END after the last model as another, empty structure.
        filled = (atoms for atoms in frames if len(atoms))
        yield from itertools.islice(enumerate(filled), None if index else stop)
    except UnknownFileTypeError:
        raise ValueError(f"{path}: ASE does not recognise this format") from None
    except PermissionError:
        raise PermissionError(f"{path}: permission denied") from None
    except GeneratorExit:
        raise
    except Exception as error:  # each of ASE's 80 readers fails in its own way
        raise ValueError(f"{path} cannot be read as a structure: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    if isinstance(error, KeyError):
        return f"{error} means nothing there"
    if isinstance(error, (StopIteration, EOFError)) or not str(error):
        return f"it ends too early, or is damaged ({type(error).__name__})"
    return str(error).splitlines()[0]


def _read(path: Path, index: str, notes: Notes) -> Iterator[Atoms]:
    kind = format_of(path)
    if kind in _BY_LINES:
        with _open(path) as stream:
            yield from _BY_LINES[kind](stream, notes)
    elif kind == "cif":
        with _open(path) as stream:
            yield from cif_structures(stream.read(), notes)
    elif kind == "vasp":
        with _open(path) as stream:
            text = stream.read()
        yield poscar_structure(path, text, notes)
    else:
        yield from _read_by_ase(path, kind, index)


def _read_by_ase(path: Path, kind: str, index: str) -> Iterator[Any]:
    wanted: Any = slice(None)
    if index and kind in ("db", "json"):
        try:
            string2index(index)
        except ValueError:
            wanted = index  # a query
    yield from iread(path, index=wanted, format=kind, do_not_split_by_at_sign=True)


def format_of(path: Path) -> str:
    """ASE's name for a file's format; ``mmcif`` for CIF with Cartesian coordinates."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] in _COMPRESSED:
        suffixes.pop()
    kind = _SUFFIXES.get(suffixes[-1] if suffixes else "")
    if kind is None:
        kind = filetype(str(path))
        kind = {"xyz": "extxyz", "mol": "sdf"}.get(kind, kind)
    if kind == "cif":
        with _open(path) as stream:
            if any(CARTESIAN in line for line in stream):
                return "mmcif"
    return str(kind)


def has_alternates(path: Path) -> bool:
    """Whether some atoms of a PDB or mmCIF file have alternate locations."""
    notes = Notes(path)
    with _open(path) as stream, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for _ in _BY_LINES[format_of(path)](stream, notes):
            pass
    return notes.has("alternate")


def _open(path: Path) -> IO[str]:
    """Open a text file, compressed or not; invalid UTF-8 breaks numbers, but not comments."""
    openers: dict[str, Any] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
    opener = openers.get(path.suffix.lower(), open)
    stream: IO[str] = opener(path, "rt", encoding="utf-8-sig", errors="replace")
    return stream
