"""ASE databases in LMDB files, the format of fairchem for OC20, OC22 and OMol25."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator

from ...quantities import QUANTITIES
from ..units import DataUnits
from .ase_files import checked_keys, structure_of
from .lmdb_files import reading, unpacked
from .structure import Keys, PathLike, Selection, Structure


def aselmdb_files(path: PathLike) -> list[Path]:
    """Files of a data set: one file, or all files of a folder in the order of their names."""
    path = Path(path)
    if path.is_dir() and not (path / "data.mdb").exists():
        return sorted(path.glob("*.aselmdb"))
    return [path]


def aselmdb_structures(
    path: PathLike, selection: Selection, units: DataUnits, keys: Keys
) -> Iterator[tuple[int, Structure]]:
    """Yield rows in the order of files and ids, and their numbers from 0.

    As in an ASE database, labels and ``keys`` are fields of the row, key-value pairs and entries
    of ``data``. Only the selected rows are read.

    Raises
    ------
    ModuleNotFoundError, ValueError
        If lmdb is missing, or a row is not JSON packed by zlib.
    """
    wanted, files = checked_keys(keys), aselmdb_files(path)
    ids = [_ids(file) for file in files]
    chosen = selection.of(sum(map(len, ids)), path)
    first = 0
    for file, here in zip(files, ids, strict=True):
        with reading(file) as transaction:
            for k in (k for k in chosen if first <= k < first + len(here)):
                row_id = here[k - first]
                name = f"frame {k} of {path} (row {row_id} of {file.name})"
                data = transaction.get(b"%d" % row_id)
                if data is None:
                    raise ValueError(f"{name} is missing: copy the file again")
                yield k, structure_of(_atoms(_json(data, name), name), name, wanted, units)
        first += len(here)


def _ids(path: Path) -> list[int]:
    """Ids of the rows of a file: 1 up to nextid, without deleted ones."""
    with reading(path) as transaction:
        following = transaction.get(b"nextid")
        if following is None:
            for _, value in transaction.cursor():
                unpacked(value, f"the first record of {path}")  # its error says what it is
                break
            raise ValueError(f"{path} has no nextid: expected an ASE database of fairchem")
        deleted = transaction.get(b"deleted_ids")
        gone = set() if deleted is None else set(_json(deleted, f"deleted_ids of {path}"))
        count = _json(following, f"nextid of {path}")
    if not isinstance(count, int):
        raise ValueError(f"{path}: nextid is {count!r}: expected a whole number")
    return [k for k in range(1, count) if k not in gone]


def _json(data: bytes, name: str) -> Any:
    try:
        return json.loads(unpacked(data, name), object_hook=_array)
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{name} is no JSON: {error}") from None


def _array(found: dict[str, Any]) -> Any:
    """Convert arrays from ASE's JSON form."""
    if "__ndarray__" not in found:
        return found
    shape, dtype, values = found["__ndarray__"]
    return np.array(values, dtype=np.dtype(str(dtype))).reshape(shape)


def _atoms(row: Any, name: str) -> Any:
    """The ``ase.Atoms`` of a row, with its results."""
    try:
        atoms = Atoms(
            np.asarray(row["numbers"], dtype=np.int64),
            np.asarray(row["positions"], dtype=np.float64),
            cell=np.asarray(row.get("cell", np.zeros((3, 3))), dtype=np.float64),
            pbc=row.get("pbc", False),
        )
        others = (row.get("data"), row.get("key_value_pairs"))
        atoms.info = {
            key: v for part in others if isinstance(part, Mapping) for key, v in part.items()
        }
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"{name} is no row of an ASE database: {error!r}") from None
    results = {key: np.asarray(row[key]) for key in QUANTITIES if row.get(key) is not None}
    atoms.calc = SinglePointCalculator(atoms)
    atoms.calc.results = results
    return atoms
