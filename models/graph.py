"""The one data type that travels through the models, and the neighbour list that makes it."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
import vesin
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

FloatArray = NDArray[np.float64]


class Graph(NamedTuple):
    """Atoms of one or more systems and the pairs of atoms within the cutoff.

    Geometry is float64 whatever the model's dtype: only displacements, which are short, are
    cast down. Each pair is listed in both directions; there is no self-edge, but an atom may
    neighbour its own periodic image. The list may hold pairs beyond the cutoff (a Verlet
    skin): `Potential` drops them.
    """

    numbers: Tensor
    """(N,) int64, atomic numbers."""
    positions: Tensor
    """(N, 3) float64, Angstrom."""
    cell: Tensor
    """(B, 3, 3) float64, rows are lattice vectors, Angstrom; zero for a molecule."""
    edge_index: Tensor
    """(2, E) int64: i = edge_index[0] receives, j = edge_index[1] sends; sorted by
    i, then j, then shift."""
    edge_shift: Tensor
    """(E, 3) float64, integer images: r_ij = r_j - r_i + edge_shift @ cell."""
    system: Tensor
    """(N,) int64, which of the B systems an atom belongs to."""
    charge: Tensor
    """(B,) float64, total charge of each system, e."""


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
    shorter = Graph(
        graph.numbers,
        graph.positions,
        graph.cell,
        graph.edge_index[:, near],
        graph.edge_shift[near],
        graph.system,
        graph.charge,
    )
    return shorter, vectors[near]


def batch_graphs(graphs: Sequence[Graph]) -> Graph:
    """Join graphs into one whose systems are numbered in the order given."""
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


class _Structure(NamedTuple):
    """What a search was made for."""

    numbers: NDArray[np.int64]
    positions: FloatArray
    cell: FloatArray
    pbc: NDArray[np.bool_]


class NeighborList:
    """Builds the `Graph` of one system, reusing its edges while the Verlet skin allows.

    Edges are searched within ``cutoff + skin`` and stay valid until an atom has moved by more
    than ``skin / 2`` or the numbers, the cell or the periodicity change. Any mix of periodic
    directions, any cell (triclinic, left-handed, smaller than the cutoff) and unwrapped
    positions are handled by vesin. The order of the edges does not depend on what was
    searched before: results are the same to the last bit with and without reuse.

    Parameters
    ----------
    cutoff
        Angstrom.
    skin
        Angstrom; 0 searches anew at every change of position.
    device
        Where the tensors of the graph live.

    Attributes
    ----------
    builds
        How many searches were made so far.
    """

    def __init__(
        self, cutoff: float, skin: float = 0.0, device: torch.device | str = "cpu"
    ) -> None:
        if not 0 < cutoff < np.inf:
            raise ValueError(f"cutoff is {cutoff} A: expected a positive length")
        if not 0 <= skin < np.inf:
            raise ValueError(f"skin is {skin} A: expected zero or a positive length")
        self.cutoff = float(cutoff)
        self.skin = float(skin)
        self.device = torch.device(device)
        self.builds = 0
        self._search = vesin.NeighborList(
            cutoff=self.cutoff + self.skin, full_list=True, sorted=False
        )
        self._searched: _Structure | None = None
        self._edges: tuple[Tensor, Tensor] | None = None

    def __reduce__(self) -> tuple[type, tuple[float, float, str]]:
        # The search lives in C: a copy starts afresh and searches at its first use.
        return NeighborList, (self.cutoff, self.skin, str(self.device))

    def graph(
        self,
        numbers: ArrayLike,
        positions: ArrayLike,
        cell: ArrayLike | None = None,
        pbc: ArrayLike = False,
        charge: float = 0.0,
    ) -> Graph:
        """The graph of one system.

        Parameters
        ----------
        numbers
            (N,) atomic numbers.
        positions
            (N, 3), Angstrom; need not lie inside the cell.
        cell
            (3, 3), rows are lattice vectors, Angstrom; None for a molecule.
        pbc
            One truth value, or one for each lattice vector.
        charge
            Total charge, e.

        Raises
        ------
        ValueError
            If shapes do not match, positions are not finite or a periodic cell has no volume.
        """
        new = _Structure(
            np.array(numbers, dtype=np.int64),
            np.array(positions, dtype=np.float64),
            np.zeros((3, 3)) if cell is None else np.array(cell, dtype=np.float64),
            np.broadcast_to(np.asarray(pbc, dtype=bool), 3).copy(),
        )
        if new.numbers.ndim != 1 or new.positions.shape != (len(new.numbers), 3):
            raise ValueError(
                f"numbers have shape {new.numbers.shape} and positions {new.positions.shape}: "
                "expected (N,) and (N, 3)"
            )
        if new.cell.shape != (3, 3):
            raise ValueError(f"cell has shape {new.cell.shape}: expected (3, 3)")
        if not new.pbc.any():
            new.cell[:] = 0
        if not self._reusable(new):
            self._search_edges(new)
        assert self._edges is not None
        edge_index, edge_shift = self._edges
        return Graph(
            numbers=torch.tensor(new.numbers, device=self.device),
            positions=torch.tensor(new.positions, device=self.device),
            cell=torch.tensor(new.cell[None], device=self.device),
            edge_index=edge_index,
            edge_shift=edge_shift,
            system=torch.zeros(len(new.numbers), dtype=torch.int64, device=self.device),
            charge=torch.tensor([charge], dtype=torch.float64, device=self.device),
        )

    def _reusable(self, new: _Structure) -> bool:
        old = self._searched
        if old is None or not (
            np.array_equal(new.numbers, old.numbers)
            and np.array_equal(new.cell, old.cell)
            and np.array_equal(new.pbc, old.pbc)
        ):
            return False
        moved = new.positions - old.positions
        return float(np.einsum("ij,ij->i", moved, moved).max(initial=0.0)) <= self.skin**2 / 4

    def _search_edges(self, new: _Structure) -> None:
        try:
            i, j, shift = self._search.compute(new.positions, new.cell, new.pbc, quantities="ijS")
        except RuntimeError as error:
            raise ValueError(f"no neighbours can be searched: {error}") from None
        order = np.lexsort((shift[:, 2], shift[:, 1], shift[:, 0], j, i))
        edge_index = np.stack([i, j]).astype(np.int64)[:, order]
        self.builds += 1
        self._searched = new
        self._edges = (
            torch.tensor(edge_index, device=self.device),
            torch.tensor(shift[order].astype(np.float64), device=self.device),
        )
