"""Formats that ASE reads, such as extended XYZ, and ASE databases."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from ase.db import connect

from ...quantities import FROM_VOIGT, QUANTITIES
from ..structures import (
    Notes,
    clean,
    is_truth_value,
    iterate_atoms,
    whole_charge,
)
from ..units import DataUnits
from .structure import Keys, PathLike, Selection, Structure, existing_file

ASE_UNITS = DataUnits()
LABEL_KEYS = (*QUANTITIES, "virial", "charge", "weight")
"""Labels that ``keys`` may name; ``virial`` is converted to a stress, -virial / volume."""
WEIGHT = "config_weight"
"""Entry of ``info`` with the weight of a frame, as in MACE, where ``keys`` names no other."""
BY_NAME_ALONE = (*(name for name, row in QUANTITIES.items() if row.derive), "virial")
"""Labels read only if ``keys`` names them, because they are other forms of a label."""
_STATED = ("units", "energy_units", "energy_unit", "length_units", "length_unit")


def ase_structures(
    path: PathLike, selection: Selection, units: DataUnits, keys: Keys
) -> Iterator[tuple[int, Structure]]:
    """Yield frames of a file that ASE reads, and their numbers.

    Labels are results of the calculator that ASE attaches, or entries of ``info`` and ``arrays``
    with the same name; ``keys`` gives other names. ``file@index`` selects frames by ASE's index.

    Raises
    ------
    FileNotFoundError, ValueError
        If there is no such file, or ASE cannot read it.
    """
    wanted = checked_keys(keys)
    read = iterate_atoms(path, stop=selection.stop, closest=None)
    frames = (atoms for _, atoms in read)
    if selection.index is None and selection.seed is None:
        chosen: Iterator[tuple[int, Atoms]] = enumerate(islice(frames, selection.limit))
    else:
        found = list(frames)
        chosen = ((k, found[k]) for k in selection.of(len(found), path))
    for k, atoms in chosen:
        yield k, structure_of(atoms, f"frame {k} of {path}", wanted, units)


def database_structures(
    path: PathLike, selection: Selection, units: DataUnits, keys: Keys
) -> Iterator[tuple[int, Structure]]:
    """Yield rows of an ASE database in the order of their ids, and their numbers from 0.

    ``keys`` may name key-value pairs and entries of ``data``. Only the selected rows are read.

    Raises
    ------
    FileNotFoundError, ValueError
        As for `ase_structures`.
    """
    wanted, path = checked_keys(keys), existing_file(path)
    notes = Notes(path)
    for k, row_id, atoms in _database_rows(path, selection):
        name = f"frame {k} of {path} (row {row_id})"
        yield k, structure_of(clean(atoms, name, notes), name, wanted, units)


def _database_rows(path: Path, selection: Selection) -> Iterator[tuple[int, int, Atoms]]:
    """Numbers, ids and contents of the selected rows."""
    whole = path.suffix.lower() == ".json"
    with contextlib.ExitStack() as stack:
        with _database_errors(path):
            database = connect(path, type="json" if whole else "db", serial=True)
            stack.enter_context(database)
            # A JSON file is read completely at each access; from SQLite only the ids are read.
            rows = {row.id: row for row in database.select()} if whole else {}
            few = () if whole else database.select(columns=["id"], include_data=False)
            ids = sorted([*rows, *(row.id for row in few)])
        for k in selection.of(len(ids), path):
            with _database_errors(path):
                atoms = _row_atoms(rows[ids[k]] if whole else database.get(id=ids[k]))
            yield k, ids[k], atoms


@contextlib.contextmanager
def _database_errors(path: Path) -> Iterator[None]:
    """Turn errors of SQLite, JSON and ASE into one that names the file."""
    try:
        yield
    except Exception as error:
        raise ValueError(f"{path} is no ASE database, or is damaged: {_reason(error)}") from error


def _row_atoms(row: Any) -> Atoms:
    """Atoms of a row, with its data and key-value pairs as ``info``."""
    atoms = row.toatoms()
    data = row.data if isinstance(row.data, Mapping) else {}
    # For "charge" ASE returns the sum of initial charges, even if a pair has this name.
    pairs = {key: vars(row).get(key, value) for key, value in row.key_value_pairs.items()}
    atoms.info = {**data, **pairs}
    return atoms


def structure_of(atoms: Any, name: str, keys: Keys, units: DataUnits) -> Structure:
    """Structure of an ``ase.Atoms`` with its labels, in the units of the file.

    Parameters
    ----------
    atoms
        Atoms as read by ASE.
    name
        Name of the frame in error messages.
    keys
        Names of labels in the file; None omits a label.
    units
        Units of the file, in which a virial is converted to a stress.

    Raises
    ------
    ValueError
        If a named charge is missing, or a label is given in two forms.
    """
    labels: dict[str, Any] = {}
    missing = []
    for quantity in QUANTITIES:
        value = _find(atoms, quantity, keys, name)
        if value is not None:
            labels[quantity] = _shaped(value, quantity, name)
        elif keys.get(quantity) is not None:
            missing.append(_named(quantity, keys))
    virial = _find(atoms, "virial", keys, name)
    if virial is None and keys.get("virial") is not None:
        missing.append(_named("virial", keys))
    if virial is not None:
        if "stress" in labels or atoms.cell.rank < 3:
            raise ValueError(
                f"{name} has a virial and {'a stress too' if 'stress' in labels else 'no volume'}:"
                " name one of the two by keys, of periodic structures alone"
            )
        stress = -_shaped(virial, "virial", name) / atoms.get_volume()
        volume = units.factor("length") ** 3
        labels["stress"] = stress * (units.factor("energy") / volume / units.factor("stress"))
    charge = _find(atoms, "charge", keys, name)
    if charge is None and keys.get("charge") is not None:
        raise ValueError(f"{name} has no {_named('charge', keys)}{_hint(atoms)}")
    stated = ", ".join(str(atoms.info[key]) for key in _STATED if key in atoms.info)
    return Structure(
        name,
        atoms.numbers.astype(np.int64),
        atoms.positions,
        labels,
        atoms.cell.array,
        atoms.pbc,
        0.0 if charge is None else whole_charge(charge, name),
        stated or None,
        _hint(atoms) if missing or not labels else "",
        tuple(missing),
        _is_called_isolated(atoms.info.get("config_type")),
        _weight(atoms, name, keys),
    )


def _weight(atoms: Any, name: str, keys: Keys) -> float:
    key = keys.get("weight", WEIGHT)
    if key is None or (key == WEIGHT and key not in atoms.info):
        return 1.0
    value = atoms.info.get(key)
    if isinstance(value, (int, float, np.number)) and not is_truth_value(value):
        return float(value)
    if value is None:
        raise ValueError(f"{name} has no {_named('weight', keys)}{_hint(atoms)}")
    raise ValueError(f"{name}: {key} is {str(value)[:40]!r}: expected the frame's weight")


def _named(quantity: str, keys: Keys) -> str:
    return f"{keys[quantity]!r}, which keys names for {quantity}"


def _is_called_isolated(config_type: Any) -> bool:
    """Whether a frame is an ``IsolatedAtom`` (MACE) or an ``isolated_atom`` (GAP)."""
    return re.sub(r"[\W_]", "", str(config_type)).lower() == "isolatedatom"


def _find(atoms: Any, quantity: str, keys: Keys, name: str) -> Any:
    """Value of one label in the file, or None."""
    key = keys.get(quantity, None if quantity in BY_NAME_ALONE else quantity)
    if key is None:
        return None
    results = {} if atoms.calc is None else atoms.calc.results
    places: tuple[Any, ...] = (results, atoms.info, atoms.arrays)
    if quantity == "charge" and quantity not in keys:
        places = (atoms.info,)
    elif quantity in keys:  # named entries take precedence over ASE's results
        places = (atoms.info, atoms.arrays, results)
    for place in places:
        if place.get(key) is None:
            continue
        if not is_truth_value(place[key]):
            return place[key]
        if quantity in keys:
            raise ValueError(f"{name}: {key} is {place[key]}, a truth value: expected numbers")
    return None


def _shaped(value: Any, quantity: str, name: str) -> np.ndarray[Any, np.dtype[np.float64]]:
    try:
        array = np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError):
        raise ValueError(f"{name}: {quantity} is {str(value)[:40]!r}: expected numbers") from None
    row = QUANTITIES["stress" if quantity == "virial" else quantity]
    if row.voigt and array.shape == (6,):
        return array[FROM_VOIGT]
    return array.reshape(3, 3) if row.shape == (3, 3) and array.size == 9 else array


def _hint(atoms: Any) -> str:
    """End of an error message: entries of a frame that could be labels."""
    others = ("numbers", "positions")
    held = [*atoms.info, *(name for name in atoms.arrays if name not in others)]
    has = f"; it has {', '.join(held)}" if held else ""
    return f"{has}: name labels by keys, such as {{energy: REF_energy, forces: REF_forces}}"


def checked_keys(keys: Keys) -> Keys:
    """Check keys, and return them; raises a ValueError if one is not a label."""
    for name, value in keys.items():
        if name not in LABEL_KEYS:
            raise ValueError(f"keys: unknown {name!r}: expected one of {', '.join(LABEL_KEYS)}")
        if value is not None and not isinstance(value, str):
            raise ValueError(f"keys: {name} is {value!r}: expected the name it has in the file")
    return keys


def _reason(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]
