"""Systems to measure: molecules, boxes of water, and the motion between evaluations."""

from __future__ import annotations

import io
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from ase import Atoms
from ase.build import molecule
from ase.io import read
from ase.units import fs, kB
from numpy.typing import NDArray

from ..runs.structures import read_structures
from . import molecules as benchmark_molecules

Array = NDArray[np.float64]

BUILT_IN = ("alanine_dipeptide", "testosterone")
"""Named systems that need no file."""
IN_DATA = ("chignolin", "dhfr")
"""Named systems that are files NAME.pdb of a data folder."""

WATER_DENSITY = 0.997
"""g/cm^3, at 298 K."""
WATER_ANGLE, WATER_BOND = 104.52, 0.9572
"""Angle (degrees) and bond length (Angstrom) of TIP3P."""
GRAM_PER_CM3 = 0.602214076
"""In u/A^3."""
SMALLEST_WATER = 192
"""Atoms; below, a cell has no room for twice the usual cutoff."""

AMPLITUDE = 0.35
"""Angstrom: how far an atom goes from its place."""
TEMPERATURE = 300.0
TIMESTEP = 1.0
"""fs."""


@dataclass(frozen=True)
class System:
    """A structure and what it is called in tables."""

    name: str
    atoms: Atoms
    source: str


def collect_systems(
    names: tuple[str, ...], sizes: tuple[int, ...], data: Path | None
) -> list[System]:
    """The systems asked for, the smallest first.

    Parameters
    ----------
    names
        Of `BUILT_IN`, of `IN_DATA`, or structure files.
    sizes
        Atoms of boxes of water; see `water_box`.
    data
        Folder that holds ``NAME.pdb`` or ``systems/NAME.pdb``; None takes the environment's
        ``TENSORMD_DATA``.

    Raises
    ------
    ValueError, OSError
        If a name means nothing, a file is missing, or a box is too small.
    """
    systems = [_named(name, data) for name in names]
    for size in sizes:
        atoms = water_box(size)
        systems.append(System(f"water {len(atoms)}", atoms, "a lattice of rigid waters"))
    if not systems:
        raise ValueError(
            "nothing to measure: give --systems, such as alanine_dipeptide, or --sizes, such "
            "as 3000"
        )
    unique = {system.name: system for system in systems}
    return sorted(unique.values(), key=lambda system: len(system.atoms))


def _named(name: str, data: Path | None) -> System:
    if name in BUILT_IN:
        text = getattr(benchmark_molecules, name.upper()).strip()
        atoms = read(io.StringIO(f"{len(text.splitlines())}\n\n{text}\n"), format="xyz")
        return System(name, atoms, "torchmd-net's benchmark systems, built in")
    if name in IN_DATA:
        path = _data_file(name, data)
    elif not Path(name).exists():
        known = ", ".join(BUILT_IN + IN_DATA)
        raise ValueError(f"--systems: {name!r} is none of {known}, nor a structure file")
    else:
        path = Path(name)
    # The first of several: the trajectory is made here.
    atoms = read_structures(path)[0]
    atoms.calc = None
    return System(path.stem, atoms, path.name)


def _data_file(name: str, data: Path | None) -> Path:
    folder = data or Path(os.environ.get("TENSORMD_DATA", "."))
    for path in (folder / f"{name}.pdb", folder / "systems" / f"{name}.pdb"):
        if path.exists():
            return path
    raise ValueError(
        f"--systems: {name}.pdb is not in {folder}: give its folder by --data or TENSORMD_DATA "
        "(torchmd-net has it among its benchmark systems)"
    )


def water_box(size: int, seed: int = 0) -> Atoms:
    """A cubic periodic box of about ``size`` atoms of water at 0.997 g/cm^3.

    Rigid waters stand on a simple cubic lattice, n^3 of them, each turned at random: density
    and number of neighbours are those of the liquid, its structure is not.

    Parameters
    ----------
    size
        Atoms wanted; 3 n^3 is the nearest that there is.
    seed
        Seed of the orientations.

    Raises
    ------
    ValueError
        If it asks for fewer than `SMALLEST_WATER` atoms.
    """
    if size < SMALLEST_WATER:
        raise ValueError(
            f"--sizes: {size} atoms of water are too few: expected {SMALLEST_WATER} or more"
        )
    n = round((size / 3) ** (1 / 3))
    water = molecule("H2O")
    water.set_distance(0, 1, WATER_BOND, fix=0)
    water.set_distance(0, 2, WATER_BOND, fix=0)
    water.set_angle(1, 0, 2, WATER_ANGLE)
    spacing = (water.get_masses().sum() / (WATER_DENSITY * GRAM_PER_CM3)) ** (1 / 3)
    places = spacing * (np.indices((n, n, n)).reshape(3, -1).T + 0.5)
    shape = water.positions - water.positions[0]
    # Orthogonal factors of normal matrices are uniform; water is flat, so that a reflection is
    # a rotation too.
    turns, triangle = np.linalg.qr(np.random.default_rng(seed).normal(size=(n**3, 3, 3)))
    turns = turns * np.sign(np.diagonal(triangle, axis1=1, axis2=2))[:, None, :]
    positions = places[:, None] + np.einsum("mij,aj->mai", turns, shape)
    return Atoms(
        np.tile(water.numbers, n**3), positions.reshape(-1, 3), cell=[n * spacing] * 3, pbc=True
    )


class Motion:
    """Positions step by step: atoms fly to and fro with thermal velocities.

    Each moves along a line of its own at constant speed, drawn for 300 K and steps of 1 fs,
    and turns back `AMPLITUDE` from its place. Neighbour lists grow old as fast as in molecular
    dynamics, and the structure stays what it was, however long one measures.
    """

    def __init__(self, atoms: Atoms, seed: int = 0) -> None:
        generator = np.random.default_rng(seed)
        self.places: Array = atoms.get_positions()
        # A mass of zero is an atom that ASE does not know; it stays.
        masses = np.maximum(atoms.get_masses(), 1.0)[:, None]
        velocities = generator.normal(size=self.places.shape) * np.sqrt(kB * TEMPERATURE / masses)
        speeds = np.linalg.norm(velocities, axis=1, keepdims=True)
        self._directions = velocities / speeds
        self._paces = speeds * TIMESTEP * fs
        # Begun anywhere: from its place no atom would ever be half a usual skin away.
        self._begin = generator.uniform(0, 4 * AMPLITUDE, size=speeds.shape)
        self._step = 0

    def next(self) -> Array:
        """Positions (N, 3), Angstrom, one step on."""
        self._step += 1
        way = (self._paces * self._step + self._begin) % (4 * AMPLITUDE)
        return self.places + self._directions * (AMPLITUDE - np.abs(way - 2 * AMPLITUDE))
