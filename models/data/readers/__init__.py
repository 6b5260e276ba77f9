"""Readers of labelled frames, one module per family of formats."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..columns import memory_columns, memory_store, starts_of
from ..frames import Frames
from ..packed import SUFFIX
from ..splits import checked_index, read_index
from ..store import FrameArrays, joined_stores
from ..units import DataUnits
from .ase_files import ASE_UNITS, ase_structures, database_structures
from .aselmdb import aselmdb_structures
from .consistency import check_energies, check_one_unit
from .lmdb_files import kind_of
from .npz import NPZ_UNITS, Trajectory, load_rmd17, npz_structures
from .packed_files import (
    PACKED,
    PACKED_UNITS,
    packed_store,
    packed_structures,
    refuse_units,
)
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
    tell_missing,
)

__all__ = [
    "FORMATS",
    "LEVELS",
    "DataUnits",
    "Keys",
    "Named",
    "PathLike",
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
    PACKED: (packed_structures, PACKED_UNITS),
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
    if suffix == SUFFIX:
        return PACKED
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
    weights: Sequence[float] | None = None,
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
    weights
        Factor of the weights of each file's frames in the loss; None: 1.

    Returns
    -------
    Frames
        Frames in eV and Angstrom, in memory; those of packed files stay in the file.

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
    factors = [1.0] * len(paths) if weights is None else list(weights)
    if len(factors) != len(paths) or not all(0 < each < math.inf for each in factors):
        raise ValueError(f"weights of files are {factors}: expected one above 0 for each file")
    named = Named()
    sources = []
    for each, factor in zip(paths, factors, strict=True):
        if (format or format_of(each)) == PACKED:
            refuse_units(each, units)
            selection = Selection(limit, seed, None if index is None else tuple(index))
            sources.append(_packed_source(each, cutoff, selection, keys or {}, factor))
            continue
        numbers, names = [], []
        columns = memory_columns()
        collector = Collector(columns, cutoff, named)
        for k, structure in iterate_structures(
            each, format=format, split=index, limit=limit, seed=seed, units=units, keys=keys
        ):
            collector.add(structure, k, file_weight=factor)
            numbers.append(k)
            names.append(structure.name)
        if columns.count:
            order = np.arange(columns.count)
            if index is not None:
                place = {k: n for n, k in enumerate(index)}
                order = np.array(sorted(order, key=lambda n: place[numbers[n]]))
            sources.append(_Source(memory_store(columns, cutoff), order, names.__getitem__, True))
    if not sources:
        raise ValueError(f"{path} holds no frame: expected at least one")
    named.check(path)
    frames = _frames_of(sources)
    tell_missing(frames, path)
    return frames


class _Source(NamedTuple):
    """Frames of one file."""

    store: FrameArrays
    order: NDArray[np.int64]
    """Frames to take, in this order."""
    name_of: Callable[[int], str]
    unchecked: bool
    """Whether the units of its energies are to be checked; those of packed files were."""


def _packed_source(
    path: PathLike, cutoff: float, selection: Selection, keys: Keys, factor: float
) -> _Source:
    store = packed_store(path, cutoff, keys)
    count = len(store.sizes)
    if selection.index is None:
        order = np.array(selection.of(count, path), dtype=np.int64)
    else:
        selection.of(count, path)  # raises an error if there are too few
        order = np.array(selection.index, dtype=np.int64)
    if factor != 1:
        weights = np.ones(count) if store.weights is None else store.weights
        store = replace(store, weights=factor * weights)
    return _Source(store, order, lambda k: f"frame {k} of {path}", False)


def _frames_of(sources: Sequence[_Source]) -> Frames:
    """Frames of several files, with one unit of energy."""
    starts = starts_of(np.array([len(source.store.sizes) for source in sources]))
    store = joined_stores([source.store for source in sources])
    whole = Frames.of_store(store)
    known = whole.labelled("energy")
    if known and any(source.unchecked for source in sources):

        def name_of(k: int) -> str:
            n = int(np.searchsorted(starts, known[k], side="right")) - 1
            return sources[n].name_of(int(known[k] - starts[n]))

        counts = whole.element_counts(whole.elements)[known]
        check_energies(whole.joined("energy", known).numpy(), counts, name_of)
    return Frames.of_store(
        store,
        np.concatenate(
            [source.order + first for source, first in zip(sources, starts, strict=False)]
        ),
    )


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
    if name == PACKED:
        refuse_units(path, units)
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
