"""Trajectories of one molecule in npz files: revised MD17, MD17 and sGDML."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..units import DataUnits
from .structure import Keys, PathLike, Selection, Structure, existing_file

NPZ_UNITS = DataUnits(energy="kcal/mol")
_RMD17 = ("nuclear_charges", "coords", "energies", "forces")
_SGDML = ("z", "R", "E", "F")


@dataclass(frozen=True)
class Trajectory:
    """Frames of one molecule, in eV and Angstrom."""

    numbers: NDArray[np.int64]
    """Atomic numbers, (N,)."""
    positions: NDArray[np.float64]
    """Positions, (F, N, 3), Angstrom."""
    energies: NDArray[np.float64]
    """Energies, (F,), eV."""
    forces: NDArray[np.float64]
    """Forces, (F, N, 3), eV/A."""


def load_rmd17(path: PathLike, units: DataUnits = NPZ_UNITS) -> Trajectory:
    """Read the arrays of an npz file of revised MD17, MD17 or sGDML.

    Parameters
    ----------
    path
        File with the keys nuclear_charges, coords, energies and forces, or z, R, E and F.
    units
        Units of the file; default kcal/mol and Angstrom.

    Raises
    ------
    ValueError
        If it is not such a file, states other units (``e_unit``, ``r_unit``), or the shapes of its
        arrays do not match.
    """
    found = _arrays(path, units)
    return Trajectory(
        found.numbers,
        found.positions * units.factor("length"),
        found.energies * units.factor("energy"),
        found.forces * units.factor("forces"),
    )


def npz_structures(
    path: PathLike, selection: Selection, units: DataUnits, keys: Keys
) -> Iterator[tuple[int, Structure]]:
    """Yield frames and their numbers.

    Raises
    ------
    ValueError
        If ``keys`` are given, or as for `load_rmd17`.
    """
    if keys:
        raise ValueError(f"keys {dict(keys)}: the keys of an npz file are known; leave them out")
    found = _arrays(path, units)
    for k in selection.of(len(found.energies), path):
        labels: dict[str, Any] = {"energy": found.energies[k], "forces": found.forces[k]}
        name = f"frame {k} of {path}"
        yield k, Structure(name, found.numbers, found.positions[k], labels)


def _arrays(path: PathLike, units: DataUnits) -> Trajectory:
    """Trajectory of `load_rmd17`, in the units of the file."""
    existing_file(path)
    try:
        with np.load(path, allow_pickle=False) as data:
            keys = _SGDML if _SGDML[0] in data.files else _RMD17
            found = {key: data[key] for key in keys if key in data.files}
            stated = {key: str(_text(data[key])) for key in ("e_unit", "r_unit") if key in data}
    except (zipfile.BadZipFile, EOFError, ValueError, AttributeError, TypeError):
        raise ValueError(f"{path} is no npz file of numbers, or is damaged") from None
    for key in keys:
        if key not in found:
            raise ValueError(
                f"{path} has no {key}: expected an npz file of revised MD17 "
                f"({', '.join(_RMD17)}) or MD17 ({', '.join(_SGDML)})"
            )
    try:
        units.require(stated)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    numbers = found[keys[0]].astype(np.int64)
    positions, energies, forces = (found[key].astype(np.float64) for key in keys[1:])
    if energies.ndim == 2 and energies.shape[1] == 1:
        energies = energies[:, 0]
    shape = (*energies.shape, *numbers.shape, 3)
    if energies.ndim != 1 or numbers.ndim != 1 or not positions.shape == forces.shape == shape:
        raise ValueError(
            f"{path}: {keys[0]} {numbers.shape}, {keys[1]} {positions.shape}, {keys[2]} "
            f"{energies.shape} and {keys[3]} {forces.shape}: expected (N,), (F, N, 3), (F,) and "
            "(F, N, 3)"
        )
    return Trajectory(numbers, positions, energies, forces)


def _text(value: NDArray[Any]) -> str:
    item = value.item()
    return item.decode() if isinstance(item, bytes) else str(item)
