"""Relaxations of PubChemQCR: gzipped pickles of plain data in an LMDB file."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from ase.data import atomic_numbers

from ..units import DataUnits
from .lmdb_files import reading, unpacked
from .plain_pickle import load_plain
from .structure import Keys, PathLike, Selection, Structure

PUBCHEMQCR_UNITS = DataUnits(energy="hartree", forces="hartree/bohr")
LEVELS = ("pm3", "hf", "DFT_1st", "DFT_2nd")
"""Stages of a relaxation; each starts from the final geometry of the previous one."""

log = logging.getLogger("tensormd")


def pubchemqcr_structures(
    path: PathLike, selection: Selection, units: DataUnits, keys: Keys
) -> Iterator[tuple[int, Structure]]:
    """Yield steps of relaxations, and the numbers of their records.

    A record is a molecule, and the selection is of records: all steps of a relaxation are read, in
    order. Records are counted from 0 in the order of the file, which sorts their keys by bytes.
    ``keys`` may have ``level``, one or more of `LEVELS`; the default is DFT_2nd. Records without
    the level are omitted and logged. Forces are the negative gradient; the molecules are neutral.

    Raises
    ------
    ModuleNotFoundError, ValueError
        If lmdb is missing, or a record is not plain data of this form.
    """
    levels = _levels(keys)
    with reading(path) as transaction:
        keys_alone = transaction.cursor().iternext(keys=True, values=False)
        names = [key for key in keys_alone if key.isdigit()]
        without = 0
        for k in selection.of(len(names), path):
            name = f"record {names[k].decode()} of {path}"
            record = load_plain(unpacked(transaction.get(names[k]), name), name)
            if not isinstance(record, Mapping):
                raise ValueError(f"{name} is no dict of {', '.join(LEVELS)}")
            steps = [
                (level, n, step)
                for level in levels
                for n, step in enumerate(record.get(level) or ())
            ]
            without += not steps
            for level, n, step in steps:
                yield k, _structure(step, f"step {n} of {level} in {name}")
    if without:
        log.info("%s: %d records have no %s and were left out", path, without, levels)


def _levels(keys: Keys) -> Sequence[str]:
    others = [key for key in keys if key != "level"]
    if others:
        raise ValueError(f"keys: PubChemQCR has no {others[0]!r}: expected level")
    asked = keys.get("level", "DFT_2nd")
    levels = [asked] if isinstance(asked, str) else list(asked or ())
    unknown = [level for level in levels if level not in LEVELS]
    if unknown or not levels:
        raise ValueError(f"keys: level is {asked!r}: expected one or more of {', '.join(LEVELS)}")
    return levels


def _structure(step: Any, name: str) -> Structure:
    """Structure of a step; the nuclear charge, which some stages lack, is not read."""
    try:
        atoms, gradient = step["coordinates"], step["gradient"]
        symbols = [str(atom["atom"]).capitalize() for atom in atoms]
        positions = np.array([[atom[x] for x in "xyz"] for atom in atoms], dtype=np.float64)
        slope = np.array([[g[f"d{x}"] for x in "xyz"] for g in gradient], dtype=np.float64)
        energy = float(step["energy"])
        same = [str(g["atom"]).capitalize() for g in gradient] == symbols
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{name} lacks something or has a value that is no number ({error}): expected "
            "coordinates (atom, x, y, z), energy and gradient (atom, dx, dy, dz)"
        ) from None
    if not same:
        raise ValueError(f"{name}: coordinates and gradient are of different atoms")
    unknown = [symbol for symbol in symbols if symbol not in atomic_numbers]
    if unknown or not symbols:
        raise ValueError(f"{name} has {unknown[:1] or 'no atom'}: expected symbols of elements")
    numbers = np.array([atomic_numbers[symbol] for symbol in symbols], dtype=np.int64)
    labels = {"energy": energy, "forces": -slope}
    return Structure(name, numbers, positions, labels)
