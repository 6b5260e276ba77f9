"""Readers of labelled frames."""

from __future__ import annotations

import os
import zipfile
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..graph import NeighborList
from ..units import kcal_per_mol_in_ev
from .frames import Frames

PathLike = str | os.PathLike[str]


@dataclass(frozen=True)
class Trajectory:
    """Frames of one molecule, in eV and Angstrom."""

    numbers: NDArray[np.int64]
    """(N,), atomic numbers."""
    positions: NDArray[np.float64]
    """(F, N, 3)."""
    energies: NDArray[np.float64]
    """(F,)."""
    forces: NDArray[np.float64]
    """(F, N, 3)."""


def load_rmd17(path: PathLike) -> Trajectory:
    """The arrays in an npz file of revised MD17 (kcal/mol, Angstrom).

    Parameters
    ----------
    path
        With the keys nuclear_charges, coords, energies and forces.

    Raises
    ------
    ValueError
        If it is no such file, or its arrays do not belong together.
    """
    keys = ("nuclear_charges", "coords", "energies", "forces")
    try:
        with np.load(path, allow_pickle=False) as data:
            found = {key: data[key] for key in keys if key in data.files}
    except (zipfile.BadZipFile, EOFError, ValueError, AttributeError, TypeError):
        raise ValueError(f"{path} is no npz file of numbers, or is damaged") from None
    for key in keys:
        if key not in found:
            raise ValueError(f"{path} has no {key}: expected an npz file of revised MD17")
    numbers = found[keys[0]].astype(np.int64)
    positions, energies, forces = (found[key].astype(np.float64) for key in keys[1:])
    shape = (*energies.shape, *numbers.shape, 3)
    if energies.ndim != 1 or numbers.ndim != 1 or not positions.shape == forces.shape == shape:
        raise ValueError(
            f"{path}: nuclear_charges {numbers.shape}, coords {positions.shape}, energies "
            f"{energies.shape} and forces {forces.shape}: expected (N,), (F, N, 3), (F,) and "
            "(F, N, 3)"
        )
    return Trajectory(
        numbers, positions, energies * kcal_per_mol_in_ev, forces * kcal_per_mol_in_ev
    )


def read_rmd17(path: PathLike, cutoff: float) -> Frames:
    """An npz file of revised MD17 (kcal/mol, Angstrom); see `load_rmd17`.

    Parameters
    ----------
    path
        Of the file.
    cutoff
        Of the graphs, Angstrom.
    """
    found = load_rmd17(path)
    neighbors = NeighborList(cutoff)
    graphs = [neighbors.graph(found.numbers, positions) for positions in found.positions]
    return Frames(graphs, found.energies, list(found.forces))


def labels_of(atoms: Any, frame: str) -> tuple[float, NDArray[np.float64]]:
    """Energy (eV) and forces (N, 3) (eV/A) that a file gave an ``ase.Atoms``.

    Parameters
    ----------
    atoms
        As ASE read it.
    frame
        What an error calls it.

    Raises
    ------
    ValueError
        If it has no energy or no forces.
    """
    from ase.calculators.calculator import PropertyNotImplementedError

    try:
        return atoms.get_potential_energy(), atoms.get_forces(apply_constraint=False)
    except (RuntimeError, PropertyNotImplementedError):
        raise ValueError(f"{frame} has no energy or no forces") from None


def read_extxyz(path: PathLike, cutoff: float) -> Frames:
    """Any file that ASE reads with energies and forces (eV, Angstrom), such as extended XYZ.

    ``info["charge"]``, where a frame has it, is its total charge.

    Raises
    ------
    ValueError
        If a frame has no energy or no forces: its number is named.
    """
    from ase.io import iread

    neighbors = NeighborList(cutoff)
    graphs, energies, forces = [], [], []
    for k, atoms in enumerate(iread(path, index=":")):
        energy, force = labels_of(atoms, f"frame {k} of {path}")
        energies.append(energy)
        forces.append(force)
        charge = float(atoms.info.get("charge", 0))
        graphs.append(
            neighbors.graph(atoms.numbers, atoms.positions, atoms.cell.array, atoms.pbc, charge)
        )
    return Frames(graphs, energies, forces)
