"""Readers of labelled frames, one module per family of formats."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..frames import Frames
from ..splits import checked_index, read_index
from ..units import DataUnits
from .ase_files import ASE_UNITS, ase_structures, database_structures
from .aselmdb import aselmdb_structures
from .consistency import check_energies, check_one_unit
from .lmdb_files import kind_of
from .npz import NPZ_UNITS, Trajectory, load_rmd17, npz_structures
from .pubchemqcr import LEVELS, PUBCHEMQCR_UNITS, pubchemqcr_structures
from .qm9 import QM9_UNITS, has_qm9, qm9_structures
from .structure import (
    Collector,
    Keys,
    Named,
    PathLike,
    Selection,
    Structure,
    check_labels,
    require_labels,
)

__all__ = [
    "FORMATS",
    "LEVELS",
    "DataUnits",
    "Named",
    "Structure",
    "Trajectory",
    "check_labels",
    "check_one_unit",
    "format_of",
    "iterate_structures",
    "load_rmd17",
    "read_aselmdb",
    "read_database",
    "read_extxyz",
    "read_frames",
    "read_pubchemqcr",
    "read_qm9",
    "read_rmd17",
    "require_labels",
]

log = logging.getLogger("tensormd")

Structures = Callable[[PathLike, Selection, DataUnits, Keys], Iterator[tuple[int, Structure]]]
_READERS: dict[str, tuple[Structures, DataUnits]] = {
    "extxyz": (ase_structures, ASE_UNITS),
    "ase-db": (database_structures, ASE_UNITS),
    "rmd17": (npz_structures, NPZ_UNITS),
    "qm9": (qm9_structures, QM9_UNITS),
    "pubchemqcr": (pubchemqcr_structures, PUBCHEMQCR_UNITS),
    "aselmdb": (aselmdb_structures, ASE_UNITS),
}
FORMATS = tuple(_READERS)
"""Names of the formats; ``extxyz`` is every format that ASE reads."""


def format_of(path: PathLike) -> str:
    """Recognise the format (one of `FORMATS`) by the name, and of LMDB files by a record.

    Raises
    ------
    FileNotFoundError, ValueError
        If an LMDB file does not exist or is empty, or a folder has no data set.
    ModuleNotFoundError
        If the file is an LMDB file and lmdb is not installed.
    """
    file = Path(path)
    suffix = file.suffix.lower()
    if str(path) == "qm9" or has_qm9(file):
        return "qm9"
    if suffix == ".aselmdb" or (file.is_dir() and any(file.glob("*.aselmdb"))):
        return "aselmdb"
    if suffix == ".lmdb" or (file / "data.mdb").is_file():
        return kind_of(file)
    return {".npz": "rmd17", ".db": "ase-db", ".json": "ase-db"}.get(suffix, "extxyz")


def read_frames(
    path: PathLike | Sequence[PathLike],
    cutoff: float,
    *,
    format: str | None = None,
    split: Sequence[int] | PathLike | None = None,
    limit: int | None = None,
    seed: int | None = None,
    units: Mapping[str, str] | None = None,
    keys: Keys | None = None,
) -> Frames:
    """Read labelled frames of one file, or of several.

    Frames may have different labels; a warning tells how many lack which.

    Parameters
    ----------
    path
        A file, a folder, or ``qm9`` for the installed package qm9pack; or several.
    cutoff
        Cutoff distance of the graphs, Angstrom.
    format
        One of `FORMATS`; None: recognised by `format_of`.
    split
        Numbers of the frames to read, from 0, in the order of the result, or a text file of
        numbers; None: all. For PubChemQCR, numbers of molecules.
    limit, seed
        Read at most this many frames per file: the first ones, or random ones if a seed is given.
    units
        Units of ``length`` and quantities in the file that differ from those of the format; see
        `DataUnits`.
    keys
        Names of labels in the file that differ from those of the format.

    Returns
    -------
    Frames
        Frames in eV and Angstrom, in memory.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If a file cannot be read, a frame has no label, no frame has one that ``keys`` names, one
        is not finite or of the wrong shape, or units are mixed. The message names the frame.
    ModuleNotFoundError
        If a format needs a package that is not installed.
    """
    paths = [path] if isinstance(path, (str, os.PathLike)) else list(path)
    index = _index(split)
    if index is not None and len(paths) > 1:
        raise ValueError(f"split names frames of one file, but there are {len(paths)}")
    collector = Collector(cutoff)
    numbers = []
    for file, each in enumerate(paths):
        for k, structure in iterate_structures(
            each, format=format, split=index, limit=limit, seed=seed, units=units, keys=keys
        ):
            collector.add(structure, file, k)
            numbers.append(k)
    frames = collector.frames(path)
    known = frames.labelled("energy")
    if known:
        energies = frames.energies.numpy()[known]
        atoms = [frames.graphs[k].numbers.numpy() for k in known]
        check_energies(energies, atoms, [collector.names[k] for k in known])
    if index is not None:
        place = {k: n for n, k in enumerate(index)}
        frames = frames.select(sorted(range(len(numbers)), key=lambda n: place[numbers[n]]))
    return frames


def iterate_structures(
    path: PathLike,
    *,
    format: str | None = None,
    split: Sequence[int] | PathLike | None = None,
    limit: int | None = None,
    seed: int | None = None,
    units: Mapping[str, str] | None = None,
    keys: Keys | None = None,
) -> Iterator[tuple[int, Structure]]:
    """Yield the frames of a file with their numbers, in eV and Angstrom.

    For parameters and errors see `read_frames`. Frames may lack labels.
    """
    name = format_of(path) if format is None else format
    if name not in _READERS:
        raise ValueError(f"format is {format!r}: expected one of {', '.join(FORMATS)}")
    reader, usual = _READERS[name]
    index = _index(split)
    selection = Selection(limit, seed, None if index is None else tuple(index))
    in_units = usual.with_changes(units)
    log.info("%s is read as %s", path, name)
    for k, structure in reader(path, selection, in_units, keys or {}):
        try:
            yield k, structure.converted(in_units, trusted=units is not None)
        except ValueError as error:
            raise ValueError(f"{structure.name}: {error}") from None


def _index(split: Sequence[int] | PathLike | None) -> list[int] | None:
    if split is None:
        return None
    if isinstance(split, (str, os.PathLike)):
        return read_index(split)
    return checked_index(split, "split")


def read_extxyz(path: PathLike, cutoff: float, **options: Any) -> Frames:
    """Read labelled frames from any file that ASE reads (eV, Angstrom), such as extended XYZ.

    ``info["charge"]``, if present, is the total charge. See `read_frames`.
    """
    return read_frames(path, cutoff, format="extxyz", **options)


def read_rmd17(path: PathLike, cutoff: float, **options: Any) -> Frames:
    """Read an npz file of revised MD17 (kcal/mol, Angstrom); see `read_frames`, `load_rmd17`."""
    return read_frames(path, cutoff, format="rmd17", **options)


def read_qm9(path: PathLike, cutoff: float, **options: Any) -> Frames:
    """Read QM9 (``qm9``, or a folder of its csv files); for options see `read_frames`."""
    return read_frames(path, cutoff, format="qm9", **options)


def read_pubchemqcr(path: PathLike, cutoff: float, **options: Any) -> Frames:
    """Read an LMDB file of PubChemQCR; for options see `read_frames`."""
    return read_frames(path, cutoff, format="pubchemqcr", **options)


def read_aselmdb(path: PathLike, cutoff: float, **options: Any) -> Frames:
    """Read ASE databases in LMDB files; for options see `read_frames`."""
    return read_frames(path, cutoff, format="aselmdb", **options)


def read_database(path: PathLike, cutoff: float, **options: Any) -> Frames:
    """Read an ASE database; for options see `read_frames`."""
    return read_frames(path, cutoff, format="ase-db", **options)
