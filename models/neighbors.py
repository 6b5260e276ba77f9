"""The neighbour list: from the atoms of one system to a `Graph`."""

from typing import Any, NamedTuple

import numpy as np
import torch
import vesin
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from .graph import FloatArray, Graph
from .heads.coulomb import WHY_NO_CELL

SKIN = 1.0
"""Default Verlet skin of molecular dynamics, Angstrom."""


class _Fixed(NamedTuple):
    """Inputs that rarely change between steps, and their tensors, which graphs share."""

    numbers: NDArray[np.int64]
    cell: FloatArray
    pbc: NDArray[np.bool_]
    charge: float
    periodic: bool
    """Whether any direction is."""
    tensors: tuple[Tensor, Tensor, Tensor, Tensor]
    """Tensors of numbers, cell, system and charge."""


class NeighborList:
    """Builds the `Graph` of one system, reusing its edges while the Verlet skin allows.

    Edges are searched within ``cutoff + skin`` and stay valid until an atom has moved by more
    than ``skin / 2`` or the numbers, the cell or the periodicity change. Any mix of periodic
    directions, any cell (triclinic, left-handed, smaller than the cutoff) and unwrapped
    positions are handled by vesin. The order of the edges does not depend on earlier
    searches: results with and without reuse are bitwise equal.

    Parameters
    ----------
    cutoff
        Cutoff distance, Angstrom; infinite: all pairs of a molecule.
    skin
        Verlet skin, Angstrom; 0: search again whenever positions change.
    device
        Device of the graph's tensors.

    Attributes
    ----------
    builds
        Number of searches so far.

    Raises
    ------
    ValueError
        If the cutoff is not positive, or the skin is negative.
    """

    def __init__(
        self, cutoff: float, skin: float = 0.0, device: torch.device | str = "cpu"
    ) -> None:
        if not cutoff > 0:
            raise ValueError(f"cutoff is {cutoff} A: expected a positive length")
        if not 0 <= skin < np.inf:
            raise ValueError(f"skin is {skin} A: expected zero or a positive length")
        self.cutoff = float(cutoff)
        self.skin = float(skin)
        self.device = torch.device(device)
        self.builds = 0
        self._search: Any = None  # all pairs need none
        if self.cutoff < np.inf:
            self._search = vesin.NeighborList(
                cutoff=self.cutoff + self.skin, full_list=True, sorted=False
            )
        self._searched: FloatArray | None = None
        self._edges: tuple[Tensor, Tensor] | None = None
        self._fixed: _Fixed | None = None

    def __reduce__(self) -> tuple[type, tuple[float, float, str]]:
        # The search object lives in C: a copy starts empty and searches on first use.
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
            Atomic numbers, (N,).
        positions
            Positions, (N, 3), Angstrom; they need not lie inside the cell.
        cell
            Lattice vectors as rows, (3, 3), Angstrom; None for a molecule.
        pbc
            Periodicity: one boolean, or one per lattice vector.
        charge
            Total charge, e.

        Returns
        -------
        Graph
            Graph with its own positions; graphs from one list share the other tensors as long as
            these do not change.

        Raises
        ------
        ValueError
            If shapes do not match, positions are not finite, a periodic cell has no volume, or
            all pairs of a periodic system are wanted.
        """
        numbers = np.asarray(numbers)
        points = np.array(positions, dtype=np.float64)
        if numbers.ndim != 1 or points.shape != (len(numbers), 3):
            raise ValueError(
                f"numbers have shape {numbers.shape} and positions {points.shape}: "
                "expected (N,) and (N, 3)"
            )
        fixed = self._fixed
        if fixed is None or not _same(fixed, numbers, cell, pbc, charge):
            fixed = self._fix(numbers, cell, pbc, charge)
        if not self._reusable(points):
            self._search_edges(points, fixed)
        assert self._edges is not None
        own = torch.from_numpy(points)
        if self.device.type != "cpu":
            own = own.to(self.device)
        return Graph(fixed.tensors[0], own, fixed.tensors[1], *self._edges, *fixed.tensors[2:])

    def _fix(
        self, numbers: NDArray[Any], cell: ArrayLike | None, pbc: ArrayLike, charge: float
    ) -> _Fixed:
        """Store changed inputs, and discard the edges if they depend on them."""
        numbers = np.array(numbers, dtype=np.int64)
        lattice = np.zeros((3, 3)) if cell is None else np.array(cell, dtype=np.float64)
        periodic = np.broadcast_to(np.asarray(pbc, dtype=bool), 3).copy()
        if lattice.shape != (3, 3):
            raise ValueError(f"cell has shape {lattice.shape}: expected (3, 3)")
        if not periodic.any():
            lattice[:] = 0
        old = self._fixed
        if old is None or not (
            np.array_equal(numbers, old.numbers)
            and np.array_equal(lattice, old.cell)
            and np.array_equal(periodic, old.pbc)
        ):
            self._searched = None
        with torch.inference_mode(False):  # the tensors may outlive the caller's inference mode
            tensors = (
                torch.tensor(numbers, device=self.device),
                torch.tensor(lattice[None], device=self.device),
                torch.zeros(len(numbers), dtype=torch.int64, device=self.device),
                torch.tensor([charge], dtype=torch.float64, device=self.device),
            )
        self._fixed = _Fixed(
            numbers, lattice, periodic, float(charge), bool(periodic.any()), tensors
        )
        return self._fixed

    def _reusable(self, points: FloatArray) -> bool:
        if self._searched is None:
            return False
        if self._search is None:
            return bool(np.isfinite(points).all())
        moved = points - self._searched
        return float(np.einsum("ij,ij->i", moved, moved).max(initial=0.0)) <= self.skin**2 / 4

    def _search_edges(self, points: FloatArray, fixed: _Fixed) -> None:
        if self._search is None:
            if fixed.periodic:
                raise ValueError(WHY_NO_CELL)
            if not np.isfinite(points).all():
                raise ValueError("no neighbours can be searched: non-finite positions")
            edge_index, edge_shift = _all_pairs(len(points))
        else:
            try:
                i, j, shift = self._search.compute(points, fixed.cell, fixed.pbc, quantities="ijS")
            except RuntimeError as error:
                raise ValueError(f"no neighbours can be searched: {error}") from None
            edge_index, edge_shift = sorted_edges(i, j, shift, len(points))
        self.builds += 1
        # A copy: callers own the positions of a graph, and may change them.
        self._searched = points.copy()
        with torch.inference_mode(False):
            self._edges = (
                torch.from_numpy(edge_index).to(self.device),
                torch.from_numpy(edge_shift).to(self.device),
            )


def all_pairs(graph: Graph) -> Graph:
    """The graph of molecules with the edges between all atoms of each.

    Raises
    ------
    ValueError
        If one is periodic.
    """
    if graph.cell.any():
        raise ValueError(WHY_NO_CELL)
    same = graph.system.unsqueeze(0) == graph.system.unsqueeze(1)
    same.fill_diagonal_(False)
    index = same.nonzero().t().contiguous()
    shift = graph.positions.new_zeros(index.shape[1], 3)
    return graph._replace(edge_index=index, edge_shift=shift)


def _all_pairs(atoms: int) -> tuple[NDArray[np.int64], FloatArray]:
    """Edges between all atoms, in the order of `sorted_edges`."""
    i, j = np.nonzero(~np.eye(atoms, dtype=bool))
    return np.stack([i, j]).astype(np.int64), np.zeros((len(i), 3))


def _same(
    fixed: _Fixed, numbers: NDArray[Any], cell: ArrayLike | None, pbc: ArrayLike, charge: float
) -> bool:
    """Whether the arguments of `NeighborList.graph` equal the stored ones."""
    if charge != fixed.charge or len(numbers) != len(fixed.numbers):
        return False
    if not same_values(numbers, fixed.numbers) or not same_values(np.asarray(pbc), fixed.pbc):
        return False
    if not fixed.periodic:
        return cell is None or np.shape(cell) == (3, 3)
    return cell is not None and np.array_equal(np.asarray(cell), fixed.cell)


def same_values(a: NDArray[Any], b: NDArray[Any]) -> bool:
    """Whether two arrays hold the same values, up to broadcasting."""
    if a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes():
        return True  # found three times as fast for small arrays
    return bool((a == b).all())


_BLOCK = 1 << 15
"""Number of edges per block, whose data fit in the cache of a core."""


def sorted_edges(
    i: NDArray[Any], j: NDArray[Any], shift: NDArray[np.int32], atoms: int
) -> tuple[NDArray[np.int64], FloatArray]:
    """Edges sorted by receiver, sender and shift: (2, E) and (E, 3).

    The five integers of an edge are packed into one: sorting these is several times faster than
    finding a permutation and applying it.
    """
    bits = max(atoms - 1, 0).bit_length()
    lowest = int(shift.min(initial=0))
    span = (int(shift.max(initial=0)) - lowest).bit_length()
    if 2 * bits + 3 * span > 63:  # atoms that have drifted through very many cells
        order = np.lexsort((shift[:, 2], shift[:, 1], shift[:, 0], j, i))
        return np.stack([i, j]).astype(np.int64)[:, order], shift[order].astype(np.float64)
    key = np.empty(len(i), dtype=np.int64)
    edge_index = np.empty((2, len(i)), dtype=np.int64)
    edge_shift = np.empty((len(i), 3))
    blocks = [slice(first, first + _BLOCK) for first in range(0, len(i), _BLOCK)]
    for block in blocks:
        packed = key[block]
        packed[:] = i[block]
        packed <<= bits
        packed |= j[block].astype(np.int64)
        for k in (0, 1, 2):
            packed <<= span
            packed |= shift[block, k].astype(np.int64) - lowest
    key.sort()
    for block in blocks:
        packed = key[block]
        for k in (2, 1, 0):
            edge_shift[block, k] = (packed & ((1 << span) - 1)) + lowest
            packed >>= span
        np.bitwise_and(packed, (1 << bits) - 1, out=edge_index[1, block])
        np.right_shift(packed, bits, out=edge_index[0, block])
    return edge_index, edge_shift
