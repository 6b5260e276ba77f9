"""Labelled frames: graphs with the energies and forces that belong to them."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

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


def read_rmd17(path: PathLike, cutoff: float) -> Frames:
    """An npz file of revised MD17 (kcal/mol, Angstrom).

    Parameters
    ----------
    path
        With the keys nuclear_charges, coords, energies and forces.
    cutoff
        Of the graphs, Angstrom.
    """
    with np.load(path, allow_pickle=False) as data:
        missing = {"nuclear_charges", "coords", "energies", "forces"} - set(data.files)
        if missing:
            raise ValueError(
                f"{path} has no {sorted(missing)[0]}: expected an npz file of revised MD17"
            )
        numbers: NDArray[np.int64] = data["nuclear_charges"].astype(np.int64)
        coordinates = data["coords"]
        energies = data["energies"] * kcal_per_mol_in_ev
        forces = data["forces"] * kcal_per_mol_in_ev
    neighbors = NeighborList(cutoff)
    graphs = [neighbors.graph(numbers, positions) for positions in coordinates]
    return Frames(graphs, energies, list(forces))


def read_extxyz(path: PathLike, cutoff: float) -> Frames:
    """Any file that ASE reads with energies and forces (eV, Angstrom), such as extended XYZ.

    ``info["charge"]``, where a frame has it, is its total charge.

    Raises
    ------
    ValueError
        If a frame has no energy or no forces: its number is named.
    """
    from ase.calculators.calculator import PropertyNotImplementedError
    from ase.io import iread

    neighbors = NeighborList(cutoff)
    graphs, energies, forces = [], [], []
    for k, atoms in enumerate(iread(path, index=":")):
        try:
            energies.append(atoms.get_potential_energy())
            forces.append(atoms.get_forces(apply_constraint=False))
        except (RuntimeError, PropertyNotImplementedError):
            raise ValueError(f"frame {k} of {path} has no energy or no forces") from None
        charge = float(atoms.info.get("charge", 0))
        graphs.append(
            neighbors.graph(atoms.numbers, atoms.positions, atoms.cell.array, atoms.pbc, charge)
        )
    return Frames(graphs, energies, forces)
