"""The trajectory of a run as a DCD or XTC file, for other programs, and the PDB file beside it.

DCD and XTC hold numbers only: mdtraj, MDAnalysis and VMD take the atoms from the PDB file.

The extended XYZ file stays the record that survives a kill: the whole copy is made from it when
a run ends or is interrupted.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch  # noqa: F401 - its libraries must be loaded before openmm's
from ase.cell import Cell
from numpy.typing import NDArray

from ...models.files import replacing, write_atomically
from ..runs.folder import TRAJECTORY, TRAJECTORY_ATOMS, RunFolder
from ..runs.structures import whole_frames
from .openmm_system import read_topology

Array = NDArray[np.float64]

RESIDUE_ATOMS = 99
"""Atoms of a residue where the structure states none: names then have at most four letters."""

LATTICE = re.compile(rb'Lattice="([^"]*)"')


def convert_trajectory(folder: RunFolder, kind: str, timestep: float, interval: int) -> Path:
    """Write ``trajectory.dcd`` or ``trajectory.xtc`` from the frames of the run, atomically.

    ``trajectory.pdb``, with the first frame, says which atoms they are.

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
    for positions, cell in frames_of(folder.path / TRAJECTORY):
        symbols = folder.start().get_chemical_symbols()
        text = pdb_text(_labels(folder, symbols), symbols, positions, cell)
        write_atomically(folder.path / TRAJECTORY_ATOMS, text.encode())
        break
    return path


Label = tuple[str, str, str, int]
"""Name of an atom, name of its residue, chain, number of the residue."""


def _labels(folder: RunFolder, symbols: Sequence[str]) -> list[Label]:
    """A label for each atom: of the topology that the run keeps, or residues of 99 atoms."""
    kept = folder.topology()
    if kept is None:
        return block_labels(symbols)
    topology, _ = read_topology(kept)
    return [
        (atom.name, atom.residue.name, atom.residue.chain.id, atom.residue.index + 1)
        for atom in topology.atoms()
    ]


def block_labels(symbols: Sequence[str]) -> list[Label]:
    """Labels where there are no residues: blocks of 99 atoms, so that no name comes twice."""
    return [
        (f"{symbol}{k % RESIDUE_ATOMS + 1}", "MOL", "A", k // RESIDUE_ATOMS + 1)
        for k, symbol in enumerate(symbols)
    ]


def pdb_text(
    labels: Sequence[Label], symbols: Sequence[str], positions: Array, cell: Array | None
) -> str:
    """One frame as a PDB file; positions (N, 3) and cell (3, 3) in A."""
    lines = []
    if cell is not None:
        a, b, c, alpha, beta, gamma = Cell(cell).cellpar()
        lines.append(
            f"CRYST1{a:9.3f}{b:9.3f}{c:9.3f}{alpha:7.2f}{beta:7.2f}{gamma:7.2f} P 1           1"
        )
    inside = np.clip(positions, -999.999, 9999.999)  # what eight columns hold
    rows = zip(labels, symbols, inside, strict=True)
    for serial, ((name, residue, chain, number), symbol, (x, y, z)) in enumerate(rows, start=1):
        # The element ends in column 14: names of four letters begin one column earlier.
        title = name[:4] if len(name) > 3 or len(symbol) > 1 else f" {name}"
        lines.append(
            f"HETATM{serial % 100000:5d} {title:<4} {residue[:3]:>3} {chain[:1] or 'A'}"
            f"{number % 10000:4d}    {x:8.3f}{y:8.3f}{z:8.3f}  1.00  0.00          {symbol:>2}"
        )
    return "\n".join([*lines, "END", ""])


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
