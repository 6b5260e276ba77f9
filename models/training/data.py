"""Labelled frames: graphs with the energies and forces that belong to them."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from ..graph import Graph, NeighborList, batch_graphs
from ..units import kcal_per_mol_in_ev

PathLike = str | os.PathLike[str]


class Frames:
    """Graphs and labels in eV and Angstrom, ready to be batched.

    Parameters
    ----------
    graphs
        One of each frame.
    energies
        One of each frame, eV.
    forces
        One array (N, 3) of each frame, eV/A.

    Raises
    ------
    ValueError
        If there is no frame, the numbers of frames or atoms differ, or a label is not finite.
    """

    def __init__(
        self, graphs: Sequence[Graph], energies: ArrayLike, forces: Sequence[ArrayLike]
    ) -> None:
        self.graphs = list(graphs)
        self.energies = torch.as_tensor(np.asarray(energies, dtype=np.float64))
        self.forces = [torch.as_tensor(np.asarray(each, dtype=np.float64)) for each in forces]
        if not self.graphs:
            raise ValueError("no frame: expected at least one")
        if not len(self.graphs) == len(self.energies) == len(self.forces):
            raise ValueError(
                f"{len(self.graphs)} frames with {len(self.energies)} energies and "
                f"{len(self.forces)} arrays of forces: expected one of each for every frame"
            )
        for k, (graph, energy, each) in enumerate(
            zip(self.graphs, self.energies, self.forces, strict=True)
        ):
            if each.shape != graph.positions.shape:
                raise ValueError(
                    f"frame {k} has {len(graph.numbers)} atoms but forces of shape "
                    f"{tuple(each.shape)}"
                )
            if not (torch.isfinite(energy) and torch.isfinite(each).all()):
                raise ValueError(f"frame {k} has an energy or a force that is not finite")

    def __len__(self) -> int:
        return len(self.graphs)

    @property
    def elements(self) -> list[int]:
        """Atomic numbers that occur."""
        return sorted({int(z) for graph in self.graphs for z in graph.numbers})

    def select(self, index: Iterable[int]) -> Frames:
        """Some of the frames."""
        chosen = [int(k) for k in index]
        return Frames(
            [self.graphs[k] for k in chosen],
            self.energies[chosen],
            [self.forces[k] for k in chosen],
        )

    def split(self, sizes: Sequence[int], seed: int) -> list[Frames]:
        """Disjoint random parts of the given sizes.

        Raises
        ------
        ValueError
            If there are too few frames.
        """
        if sum(sizes) > len(self):
            raise ValueError(f"{len(self)} frames cannot be split into {list(sizes)}")
        order = np.random.default_rng(seed).permutation(len(self))
        ends = np.cumsum([0, *sizes])
        return [self.select(order[a:b]) for a, b in pairwise(ends)]

    def batch(self, index: Iterable[int]) -> Batch:
        """Some of the frames in one graph."""
        chosen = [int(k) for k in index]
        return Batch(
            batch_graphs([self.graphs[k] for k in chosen]),
            self.energies[chosen],
            torch.cat([self.forces[k] for k in chosen]),
        )


@dataclass(frozen=True)
class Batch:
    """Frames as one graph of B systems, with labels of shapes (B,) and (N, 3)."""

    graph: Graph
    energies: Tensor
    forces: Tensor


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
