"""One part of a system, as one of several processes evaluates it.

A network of L layers lets atoms interact over L + 1 edges. The energies of a process's own atoms
therefore need the atoms that L + 1 edges or fewer lead to, and the gradient of these energies by
all those positions is the share of this process in the forces. The shares of all processes add up
to the forces of the whole system, without approximation.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
import vesin
from numpy.typing import NDArray
from torch import Tensor

from .graph import FloatArray, Graph
from .neighbors import sorted_edges


class Part(NamedTuple):
    """The place of a graph in the system that it is a part of; TorchScript can read it."""

    atoms: int
    """Number of atoms of the whole system."""
    shells: list[int]
    """Number of atoms that k edges or fewer separate from an own one, for k = 0, 1, ...: the atoms
    of the graph are sorted by that distance, and the own ones are the first ``shells[0]``."""


class PartGraph(NamedTuple):
    """A part and its atoms."""

    graph: Graph
    """Graph of the part; an edge that no own energy depends on may be missing."""
    part: Part
    """Its place in the whole."""
    atoms: NDArray[np.int64]
    """Index of each atom of the graph among all atoms, own ones first."""


class _Whole(NamedTuple):
    """The inputs that a list of edges was made for."""

    numbers: NDArray[Any]
    positions: FloatArray
    cell: FloatArray
    pbc: NDArray[np.bool_]
    charge: float
    own: NDArray[np.bool_]


class PartList:
    """Builds the `PartGraph` of one process, reusing its edges while the Verlet skin allows.

    Only atoms near the own ones are searched, so that the time falls with the number of processes.

    Parameters
    ----------
    cutoff
        Cutoff distance, Angstrom.
    hops
        Number of edges over which atoms interact: one more than the network has layers.
    skin
        Verlet skin, Angstrom.
    device
        Device of the graph's tensors.
    """

    def __init__(
        self, cutoff: float, hops: int, skin: float, device: torch.device | str = "cpu"
    ) -> None:
        self.cutoff, self.hops, self.skin = cutoff, hops, skin
        self.device = torch.device(device)
        self.builds = 0
        """Number of searches so far."""
        self._search = vesin.NeighborList(cutoff=cutoff + skin, full_list=True, sorted=False)
        self._whole: _Whole | None = None
        self._found: PartGraph | None = None

    def graph(
        self,
        numbers: NDArray[Any],
        positions: FloatArray,
        cell: FloatArray,
        pbc: NDArray[np.bool_],
        charge: float,
        own: NDArray[np.bool_],
    ) -> PartGraph:
        """The part of one process.

        Parameters
        ----------
        numbers
            Atomic numbers of all atoms, (N,).
        positions
            Positions of all atoms, (N, 3), Angstrom, anywhere in space.
        cell
            Vectors of the box as rows, (3, 3), Angstrom; those of directions without periodicity
            must not be zero.
        pbc
            (3,), periodicity along each vector.
        charge
            Total charge, e.
        own
            Whether an atom belongs to this process, (N,); at least one does.
        """
        whole = _Whole(numbers, positions, cell, pbc, charge, own)
        if self._found is None or not self._serves(whole):
            # A copy: the caller may write into these arrays.
            self._whole = _Whole(numbers.copy(), positions.copy(), cell.copy(), *whole[3:5], own)
            self._found = self._build(whole)
            self.builds += 1
        graph, part, atoms = self._found
        now = torch.from_numpy(positions[atoms]).to(self.device)
        return PartGraph(graph._replace(positions=now), part, atoms)

    def _serves(self, new: _Whole) -> bool:
        old = self._whole
        if old is None or len(old.numbers) != len(new.numbers):
            return False
        same = (
            np.array_equal(old.numbers, new.numbers)
            and np.array_equal(old.own, new.own)
            and np.array_equal(old.cell, new.cell)
            and np.array_equal(old.pbc, new.pbc)
            and old.charge == new.charge
        )
        if not same:
            return False
        moved = new.positions - old.positions
        return float(np.einsum("ij,ij->i", moved, moved).max(initial=0.0)) <= self.skin**2 / 4

    @torch.inference_mode(False)
    def _build(self, whole: _Whole) -> PartGraph:
        reach = self.hops * (self.cutoff + self.skin)
        near = np.flatnonzero(_near(whole, reach))
        lattice = whole.cell * whole.pbc[:, None]
        i, j, shift = self._search.compute(
            whole.positions[near], lattice, whole.pbc, quantities="ijS"
        )
        i, j = i.astype(np.int64), j.astype(np.int64)
        distance = np.where(whole.own[near], 0, self.hops + 1)
        shells = [int((distance == 0).sum())]
        for hop in range(self.hops):
            reached = np.zeros(len(near), dtype=bool)
            reached[j[distance[i] == hop]] = True
            distance[reached & (distance > hop)] = hop + 1
            shells.append(int((distance <= hop + 1).sum()))
        order = np.argsort(distance, kind="stable")[: shells[-1]]
        place = np.full(len(near), -1)
        place[order] = np.arange(len(order))
        # The outermost atoms send, but what they receive is of no use.
        nearer = np.minimum(distance[i], distance[j])
        used = (nearer < self.hops) & (place[i] >= 0) & (place[j] >= 0)
        edge_index, edge_shift = sorted_edges(
            place[i[used]], place[j[used]], shift[used], len(order)
        )
        atoms = near[order]
        graph = Graph(
            numbers=self._tensor(whole.numbers[atoms].astype(np.int64)),
            positions=self._tensor(whole.positions[atoms]),
            cell=self._tensor(lattice[None]),
            edge_index=self._tensor(edge_index),
            edge_shift=self._tensor(edge_shift),
            system=torch.zeros(len(atoms), dtype=torch.int64, device=self.device),
            charge=torch.tensor([whole.charge], dtype=torch.float64, device=self.device),
        )
        return PartGraph(graph, Part(len(whole.numbers), shells), atoms)

    def _tensor(self, values: NDArray[Any]) -> Tensor:
        return torch.from_numpy(values).to(self.device)


def _near(whole: _Whole, reach: float) -> NDArray[np.bool_]:
    """Atoms within ``reach``, Angstrom, of the block of space that holds the own atoms.

    The block has the shape of the box: along each lattice vector an interval of fractional
    coordinates, which periodic images shift by whole numbers.
    """
    inverse = np.linalg.inv(whole.cell)
    fractional = whole.positions @ inverse
    margin = reach * np.linalg.norm(inverse, axis=0)
    found = np.ones(len(whole.numbers), dtype=bool)
    for k in range(3):
        place = fractional[:, k]
        if whole.pbc[k]:
            # Own atoms may lie on both sides of a border: begin behind the widest gap.
            place = place - np.floor(place)
            ordered = np.sort(place[whole.own])
            gaps = np.diff(ordered, append=ordered[0] + 1)
            place = place - ordered[(int(np.argmax(gaps)) + 1) % len(ordered)]
            place = place - np.floor(place)
            width = 1 - gaps.max()
            found &= (place <= width + margin[k]) | (place >= 1 - margin[k])
        else:
            mine = place[whole.own]
            found &= (place >= mine.min() - margin[k]) & (place <= mine.max() + margin[k])
    return found
