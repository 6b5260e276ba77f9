"""`Graph`: the input of every model."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

FloatArray = NDArray[np.float64]


class Graph(NamedTuple):
    """Atoms of one or more systems and the pairs of atoms within the cutoff.

    Geometry is float64 for every dtype of the model: only displacements, which are short, are
    cast down. Each pair is listed in both directions; there is no self-edge, but an atom may
    neighbour its own periodic image. The list may hold pairs beyond the cutoff (a Verlet
    skin): `Potential` drops them.
    """

    numbers: Tensor
    """Atomic numbers, (N,) int64."""
    positions: Tensor
    """Positions, (N, 3) float64, Angstrom."""
    cell: Tensor
    """Lattice vectors as rows, (B, 3, 3) float64, Angstrom; zero for a molecule."""
    edge_index: Tensor
    """Edges, (2, E) int64: i = edge_index[0] receives, j = edge_index[1] sends; sorted by
    i, then j, then shift."""
    edge_shift: Tensor
    """Integer images, (E, 3) float64: r_ij = r_j - r_i + edge_shift @ cell."""
    system: Tensor
    """Index of the system (of B) that each atom belongs to, (N,) int64."""
    charge: Tensor
    """Total charge of each system, (B,) float64, e."""


class Pairs(NamedTuple):
    """Pairs of atoms, each listed as two edges of equal length."""

    one: Tensor
    """One edge of each pair, (P,) int64."""
    of_edge: Tensor
    """Pair of each edge, (E,) int64."""


def displacements(graph: Graph) -> Tensor:
    """Vectors r_ij = r_j - r_i + shift @ cell of every edge, (E, 3) float64, Angstrom."""
    i, j = graph.edge_index[0], graph.edge_index[1]
    vectors = graph.positions.index_select(0, j) - graph.positions.index_select(0, i)
    if graph.cell.shape[0] == 1:
        return vectors + graph.edge_shift @ graph.cell[0]
    cell = graph.cell.index_select(0, graph.system.index_select(0, i))
    return vectors + (graph.edge_shift.unsqueeze(1) @ cell).squeeze(1)


def within(graph: Graph, cutoff: float) -> tuple[Graph, Tensor]:
    """The graph without its edges of ``cutoff`` (Angstrom) or more, and its displacements."""
    vectors = displacements(graph)
    near = (vectors * vectors).sum(1) < cutoff**2
    return shorter_edges(graph, near), vectors[near]


def shorter_edges(graph: Graph, near: Tensor) -> Graph:
    """The graph with some of its edges: those for which ``near`` (E,) is true."""
    return Graph(
        graph.numbers,
        graph.positions,
        graph.cell,
        graph.edge_index[:, near],
        graph.edge_shift[near],
        graph.system,
        graph.charge,
    )


def batch_graphs(graphs: Sequence[Graph]) -> Graph:
    """Join graphs into one; systems are numbered in the order given.

    Raises
    ------
    ValueError
        If there is no graph.
    """
    if not graphs:
        raise ValueError("no graph to batch: expected at least one")
    atoms = np.cumsum([0] + [len(g.numbers) for g in graphs])
    systems = np.cumsum([0] + [len(g.charge) for g in graphs])
    return Graph(
        numbers=torch.cat([g.numbers for g in graphs]),
        positions=torch.cat([g.positions for g in graphs]),
        cell=torch.cat([g.cell for g in graphs]),
        edge_index=torch.cat(
            [g.edge_index + int(n) for g, n in zip(graphs, atoms, strict=False)], dim=1
        ),
        edge_shift=torch.cat([g.edge_shift for g in graphs]),
        system=torch.cat([g.system + int(b) for g, b in zip(graphs, systems, strict=False)]),
        charge=torch.cat([g.charge for g in graphs]),
    )


def pair_edges(graph: Graph) -> Pairs:
    """Pairs of a graph, which lists each of them in both directions.

    Raises
    ------
    ValueError
        If an edge has no counterpart.
    """
    reverse = reverse_edges(graph)
    # The first of the two directions stands for both.
    one = torch.minimum(torch.arange(len(reverse), device=reverse.device), reverse)
    kept, of_edge = torch.unique(one, return_inverse=True)
    return Pairs(kept, of_edge)


def reverse_edges(graph: Graph) -> Tensor:
    """Index of the opposite edge of each edge, (E,) int64; edges may be in any order.

    Synchronises with the device of the graph.

    Raises
    ------
    ValueError
        If an edge has no counterpart.
    """
    atoms = graph.numbers.shape[0]
    i, j = graph.edge_index[0], graph.edge_index[1]
    images, there, back = _image_numbers(graph.edge_shift.to(torch.int64), atoms)
    # One integer per edge, and one for its counterpart.
    forward = (i * atoms + j) * images + there
    backward = (j * atoms + i) * images + back
    order, place = torch.argsort(forward), torch.argsort(backward)
    if not torch.equal(forward[order], backward[place]):
        raise ValueError("an edge has no counterpart: expected every pair in both directions")
    reverse = torch.empty_like(order)
    reverse[place] = order
    return reverse


def _image_numbers(shift: Tensor, atoms: int) -> tuple[int, Tensor, Tensor]:
    """An exclusive bound; integers below it for the shifts and for their opposites, (E,)."""
    if shift.shape[0] == 0:
        return 1, shift[:, 0], shift[:, 0]
    x, y, z = (2 * int(reach) + 1 for reach in shift.abs().amax(0).tolist())
    if atoms**2 * x * y * z < 2**62:
        there = (shift * torch.tensor([y * z, z, 1], device=shift.device)).sum(1)
        middle = (x * y * z) // 2
        return x * y * z, middle + there, middle - there
    # Atoms are so many cells apart that the integer would overflow: number the distinct shifts.
    distinct, number = torch.unique(torch.cat([shift, -shift]), dim=0, return_inverse=True)
    there, back = number.chunk(2)
    return distinct.shape[0], there, back
