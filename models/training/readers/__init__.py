"""Readers of labelled frames, one file for each family of formats."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from ..frames import Frames
from .ase_files import ASE_UNITS, ase_structures, database_structures
from .data_units import DataUnits
from .npz import NPZ_UNITS, Trajectory, load_rmd17, npz_structures
from .structure import Collector, Keys, PathLike, Selection, Structure, check_labels

__all__ = [
    "FORMATS",
    "DataUnits",
    "Structure",
    "Trajectory",
    "check_labels",
    "format_of",
    "iterate_structures",
    "load_rmd17",
    "read_extxyz",
    "read_frames",
    "read_rmd17",
]

log = logging.getLogger("tensormd")

Structures = Callable[[PathLike, Selection, DataUnits, Keys], Iterator[tuple[int, Structure]]]
_READERS: dict[str, tuple[Structures, DataUnits]] = {
    "extxyz": (ase_structures, ASE_UNITS),
    "ase-db": (database_structures, ASE_UNITS),
    "rmd17": (npz_structures, NPZ_UNITS),
}
FORMATS = tuple(_READERS)
"""Names of the formats; ``extxyz`` is anything that ASE reads."""


def format_of(path: PathLike) -> str:
    """Which of `FORMATS` a file is taken for, by its name.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    """
    suffix = Path(path).suffix.lower()
    return {".npz": "rmd17", ".db": "ase-db"}.get(suffix, "extxyz")


def read_frames(
    path: PathLike | Sequence[PathLike],
    cutoff: float,
    *,
    format: str | None = None,
    split: Sequence[int] | None = None,
    limit: int | None = None,
    seed: int | None = None,
    units: Mapping[str, str] | None = None,
    keys: Keys | None = None,
) -> Frames:
    """Labelled frames of one file, or of several with the same labels.

    Parameters
    ----------
    path
        A file, a folder, or ``qm9`` for the installed package qm9pack; or several.
    cutoff
        Of the graphs, Angstrom.
    format
        One of `FORMATS`; None tells it from the name (`format_of`).
    split
        Numbers of the frames to read, from 0, in the order they shall have; None for all.
    limit, seed
        So many frames of each file: the first ones, or random ones where there is a seed.
    units
        Unit of ``length``, ``energy``, ``forces``, ``stress``, ``dipole`` or
        ``polarizability`` in the file, where it is not that of the format; see `DataUnits`.
    keys
        Names that labels have in the file, where they are not those of the format.

    Returns
    -------
    Frames
        In eV and Angstrom, all held in memory.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If it cannot be read; a label is missing, not finite, or of another shape than others;
        units are mixed. The frame is named.
    """
    paths = list(path) if isinstance(path, Sequence) and not isinstance(path, str) else [path]
    if split is not None and len(paths) > 1:
        raise ValueError(f"split names frames of one file, but there are {len(paths)}")
    collector = Collector(cutoff)
    for each in paths:
        for k, structure in iterate_structures(
            each, format=format, split=split, limit=limit, seed=seed, units=units, keys=keys
        ):
            collector.add(structure, f"frame {k} of {each}")
    frames = collector.frames(path)
    if split is not None:
        rank = {k: n for n, k in enumerate(sorted(split))}
        frames = frames.select(rank[k] for k in split)
    return frames


def iterate_structures(
    path: PathLike,
    *,
    format: str | None = None,
    split: Sequence[int] | None = None,
    limit: int | None = None,
    seed: int | None = None,
    units: Mapping[str, str] | None = None,
    keys: Keys | None = None,
) -> Iterator[tuple[int, Structure]]:
    """The frames of a file one by one, in eV and Angstrom, and their numbers.

    For the parameters see `read_frames`; what a frame lacks it has not in ``labels``.
    """
    name = format_of(path) if format is None else format
    if name not in _READERS:
        raise ValueError(f"format is {format!r}: expected one of {', '.join(FORMATS)}")
    reader, usual = _READERS[name]
    selection = Selection(limit, seed, None if split is None else tuple(split))
    in_units = usual.with_changes(units)
    log.info("%s is read as %s", path, name)
    for k, structure in reader(path, selection, in_units, keys or {}):
        try:
            yield k, structure.converted(in_units, trusted=units is not None)
        except ValueError as error:
            raise ValueError(f"frame {k} of {path}: {error}") from None


def read_extxyz(path: PathLike, cutoff: float) -> Frames:
    """Any file that ASE reads with labels (eV, Angstrom), such as extended XYZ.

    ``info["charge"]``, where a frame has it, is its total charge. See `read_frames`.
    """
    return read_frames(path, cutoff, format="extxyz")


def read_rmd17(path: PathLike, cutoff: float) -> Frames:
    """An npz file of revised MD17 (kcal/mol, Angstrom); see `read_frames` and `load_rmd17`."""
    return read_frames(path, cutoff, format="rmd17")
