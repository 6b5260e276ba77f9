"""The trajectory of a run as a DCD or XTC file, for other programs.

The extended XYZ file stays the record that survives a kill: the whole copy is made from it when
a run ends or is interrupted.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch  # noqa: F401 - its libraries must be loaded before openmm's
from numpy.typing import NDArray

from ...models.files import replacing
from ..runs.folder import TRAJECTORY, RunFolder
from ..runs.structures import whole_frames

Array = NDArray[np.float64]

LATTICE = re.compile(rb'Lattice="([^"]*)"')


def convert_trajectory(folder: RunFolder, kind: str, timestep: float, interval: int) -> Path:
    """Write ``trajectory.dcd`` or ``trajectory.xtc`` from the frames of the run, atomically.

    Parameters
    ----------
    folder
        The run.
    kind
        ``"dcd"`` or ``"xtc"``.
    timestep
        Time step, fs.
    interval
        Steps between frames.

    Raises
    ------
    OSError
        If it cannot be written.
    """
    path = folder.path / f"trajectory.{kind}"
    with replacing(path) as temporary:
        write = _write_dcd if kind == "dcd" else _write_xtc
        frames = frames_of(folder.path / TRAJECTORY)
        write(str(temporary), frames, timestep * 1e-3, interval)
    return path


def frames_of(path: Path) -> Iterator[tuple[Array, Array | None]]:
    """Positions (N, 3) and cell (3, 3), A, of each whole frame that a run wrote.

    The cell is None where nothing is periodic.
    """
    for _, note, *lines in whole_frames(path):
        positions = np.array([line.split()[1:4] for line in lines], dtype=np.float64)
        cell = None
        found = LATTICE.search(note)
        if found and b'pbc="T T T"' in note:
            cell = np.array(found[1].split(), dtype=np.float64).reshape(3, 3)
        yield positions, cell


def notes_of(path: Path) -> Iterator[bytes]:
    """The comment line of each whole frame: cell, energy, step, ..."""
    for lines in whole_frames(path):
        yield lines[1]


def _topology(atoms: int, cell: Array | None) -> object:
    """The least that OpenMM's writers ask for: the number of atoms, and whether there is a box."""
    from openmm import app, unit

    topology = app.Topology()
    residue = topology.addResidue("ALL", topology.addChain())
    for _ in range(atoms):
        topology.addAtom("X", None, residue)
    if cell is not None:
        topology.setPeriodicBoxVectors(cell * unit.angstrom)
    return topology


def _write_dcd(
    name: str, frames: Iterator[tuple[Array, Array | None]], timestep_ps: float, interval: int
) -> None:
    from openmm import Vec3, app, unit

    with open(name, "w+b") as stream:
        file = None
        for positions, cell in frames:
            if file is None:
                topology = _topology(len(positions), cell)
                file = app.DCDFile(stream, topology, timestep_ps, 0, interval)
            box = None if cell is None else [Vec3(*row) for row in cell / 10] * unit.nanometer
            file.writeModel(positions / 10, periodicBoxVectors=box)


def _write_xtc(
    name: str, frames: Iterator[tuple[Array, Array | None]], timestep_ps: float, interval: int
) -> None:
    from openmm import Vec3, app, unit

    file = None
    for positions, cell in frames:
        if file is None:
            topology = _topology(len(positions), cell)
            file = app.XTCFile(name, topology, timestep_ps, 0, interval)
        box = None if cell is None else [Vec3(*row) for row in cell / 10] * unit.nanometer
        file.writeModel(positions / 10 * unit.nanometer, periodicBoxVectors=box)
