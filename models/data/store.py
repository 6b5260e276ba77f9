"""Frames as arrays: all atoms, labels and neighbour lists behind one another."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from ..neighbors import NeighborList
from ..quantities import QUANTITIES

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
Masks = NDArray[np.bool_]

_ATOMS_AT_ONCE = 1 << 20
_ROUNDING = 1e-9
"""Share of the cutoff beyond which a pair is surely outside: `graph.within` decides the rest."""


class Geometry(NamedTuple):
    """Atoms of one frame, as views that must not be changed."""

    numbers: NDArray[Any]
    """Atomic numbers, (N,)."""
    positions: Floats
    """Positions, (N, 3), Angstrom."""
    cell: Floats
    """Lattice vectors as rows, (3, 3), Angstrom; zero for a molecule."""
    charge: float
    """Total charge, e."""


class Lists(NamedTuple):
    """Neighbour lists of F frames: E edges, sorted in each frame as in a `Graph`."""

    cutoff: float | None
    """Cutoff of the search, Angstrom; None: the lists of given graphs, used as they are."""
    starts: Integers
    """First edge of each frame, and E, (F + 1,)."""
    edges: NDArray[Any]
    """Receivers and senders, counted in their frame, (E, 2)."""
    shift_starts: Integers
    """First image of each frame, and S, (F + 1,): one for each edge, or none if all are zero."""
    shifts: NDArray[Any]
    """Images, (S, 3)."""


class Store(Protocol):
    """F frames in memory or in a file. Arrays of F values are in memory."""

    isolated: Masks
    """Whether each frame is an isolated atom, (F,)."""
    groups: Integers | None
    """Group of each frame, (F,)."""
    weights: Floats | None
    """Weight of each frame, (F,); None: all are 1."""
    masks: dict[str, Masks]
    """Whether each frame has a label, (F,), by quantity."""

    @property
    def sizes(self) -> Integers:
        """Number of atoms of each frame, (F,)."""

    @property
    def composition(self) -> tuple[list[int], NDArray[np.int32]]:
        """Atomic numbers that occur, ascending, and their counts in each frame, (F, elements)."""

    @property
    def charges(self) -> Floats:
        """Total charges, (F,), e."""

    def geometry(self, k: int) -> Geometry:
        """Atoms of a frame."""

    def label(self, name: str, k: int) -> Floats:
        """Label of a frame; NaN if it has none."""

    def labels(self, name: str, index: Integers) -> Floats:
        """Labels of some frames joined, (n, ...) or (atoms, ...)."""

    def edges(self, k: int) -> tuple[Integers, Floats]:
        """Edges (2, E) and images (E, 3) of a frame, as in a `Graph`."""

    def edge_counts(self, index: Integers) -> Integers:
        """Numbers of edges of some frames."""


@dataclass
class FrameArrays:
    """A `Store` of arrays, which may lie in a memory-mapped file."""

    starts: Integers
    """First atom of each frame, and the number of atoms, (F + 1,)."""
    numbers: NDArray[Any]
    positions: Floats
    cells: Floats
    charges: Floats
    isolated: Masks
    label_arrays: dict[str, Floats]
    """By quantity: (F, ...), or (atoms, ...) for labels of atoms."""
    masks: dict[str, Masks]
    groups: Integers | None = None
    weights: Floats | None = None
    pbc: Masks | None = None
    """Periodicity, (F, 3); read where neighbours are searched."""
    lists: Lists | None = None
    cutoff: float | None = None
    """Cutoff of the edges, Angstrom; None: that of the lists."""
    read: Callable[[int], None] = field(default=lambda size: None)
    """Called with the number of bytes of each access."""

    @cached_property
    def sizes(self) -> Integers:
        """Number of atoms of each frame, (F,)."""
        return np.diff(self.starts)

    @cached_property
    def composition(self) -> tuple[list[int], NDArray[np.int32]]:
        """Atomic numbers that occur, ascending, and their counts in each frame, (F, elements)."""
        count = len(self.sizes)
        blocks = list(_blocks(self.starts))
        elements: set[int] = set()
        for first, last in blocks:
            elements |= set(np.unique(self.numbers[self.starts[first] : self.starts[last]]))
        listed = np.array(sorted(elements), dtype=np.int64)
        counts = np.zeros((count, len(listed)), dtype=np.int32)
        for first, last in blocks:
            numbers = self.numbers[self.starts[first] : self.starts[last]]
            frame = np.repeat(np.arange(last - first), self.sizes[first:last])
            place = frame * len(listed) + np.searchsorted(listed, numbers)
            found = np.bincount(place, minlength=(last - first) * len(listed))
            counts[first:last] = found.reshape(last - first, len(listed))
            self.read(numbers.nbytes)
        return listed.tolist(), counts

    def geometry(self, k: int) -> Geometry:
        """Atoms of a frame."""
        atoms = slice(self.starts[k], self.starts[k + 1])
        numbers, positions, cell = self.numbers[atoms], self.positions[atoms], self.cells[k]
        for each in (numbers, positions, cell):
            self.read(each.nbytes)
        return Geometry(numbers, positions, cell, float(self.charges[k]))

    def label(self, name: str, k: int) -> Floats:
        """Label of a frame; NaN if it has none."""
        row = QUANTITIES[name]
        if name not in self.label_arrays:
            return np.full((self.sizes[k], *row.shape) if row.per_atom else row.shape, np.nan)
        if not row.per_atom:
            return np.asarray(self.label_arrays[name][k])
        found = self.label_arrays[name][self.starts[k] : self.starts[k + 1]]
        self.read(found.nbytes)
        return found

    def labels(self, name: str, index: Integers) -> Floats:
        """Labels of some frames joined, (n, ...) or (atoms, ...)."""
        row = QUANTITIES[name]
        if row.per_atom:
            parts = [self.label(name, int(k)) for k in index]
            return np.concatenate(parts) if parts else np.zeros((0, *row.shape))
        if name not in self.label_arrays:
            return np.full((len(index), *row.shape), np.nan)
        return self.label_arrays[name][index]

    def edges(self, k: int) -> tuple[Integers, Floats]:
        """Edges (2, E) and images (E, 3) of a frame, as in a `Graph`."""
        if not self.lists_suffice:
            return self._searched(k)
        assert self.lists is not None
        lists = self.lists
        found = lists.edges[lists.starts[k] : lists.starts[k + 1]]
        rows = lists.shifts[lists.shift_starts[k] : lists.shift_starts[k + 1]]
        self.read(found.nbytes + rows.nbytes)
        index = np.ascontiguousarray(found.T, dtype=np.int64)
        shifts = rows.astype(np.float64) if len(rows) else np.zeros((len(found), 3))
        if lists.cutoff is None or self.cutoff is None or lists.cutoff == self.cutoff:
            return index, shifts
        atoms = self.geometry(k)
        vectors = atoms.positions[index[1]] - atoms.positions[index[0]] + shifts @ atoms.cell
        near = np.einsum("ij,ij->i", vectors, vectors) < (self.cutoff * (1 + _ROUNDING)) ** 2
        return index[:, near], shifts[near]

    @property
    def lists_suffice(self) -> bool:
        """Whether the lists hold all edges within the cutoff."""
        if self.lists is None:
            return False
        known = self.lists.cutoff
        return known is None or self.cutoff is None or known >= self.cutoff

    def _searched(self, k: int) -> tuple[Integers, Floats]:
        assert self.cutoff is not None
        assert self.pbc is not None
        atoms = self.geometry(k)
        # A list of its own for each search: threads may search at the same time.
        graph = NeighborList(self.cutoff).graph(
            atoms.numbers, atoms.positions, atoms.cell, self.pbc[k], atoms.charge
        )
        return graph.edge_index.numpy(), graph.edge_shift.numpy()

    def edge_counts(self, index: Integers) -> Integers:
        """Numbers of edges of some frames."""
        lists = self.lists
        if lists is not None and self.lists_suffice and lists.cutoff in (None, self.cutoff):
            return np.diff(lists.starts)[index]
        return np.array([self.edges(int(k))[0].shape[1] for k in index], dtype=np.int64)


class JoinedStores:
    """Stores behind one another, as a `Store`.

    Parameters
    ----------
    stores
        At least one; they keep their frames, and frames of different stores are in different
        groups.
    """

    def __init__(self, stores: Sequence[Store]) -> None:
        self.stores = list(stores)
        counts = [len(store.sizes) for store in self.stores]
        self._starts = np.cumsum([0, *counts])
        self.sizes = np.concatenate([store.sizes for store in self.stores])
        self.isolated = np.concatenate([store.isolated for store in self.stores])
        self.charges = np.concatenate([store.charges for store in self.stores])
        self.weights = None
        if any(store.weights is not None for store in self.stores):
            self.weights = np.concatenate(
                [np.ones(len(s.sizes)) if s.weights is None else s.weights for s in self.stores]
            )
        names = [n for n in QUANTITIES if any(n in store.masks for store in self.stores)]
        self.masks = {
            name: np.concatenate(
                [s.masks.get(name, np.zeros(len(s.sizes), dtype=bool)) for s in self.stores]
            )
            for name in names
        }
        self.groups = self._joined_groups()

    def _joined_groups(self) -> Integers | None:
        if all(store.groups is None for store in self.stores):
            return None
        found, following = [], 0
        for store in self.stores:
            own = np.arange(len(store.sizes)) if store.groups is None else store.groups
            found.append(own + following)
            following += int(own.max(initial=-1)) + 1
        return np.concatenate(found)

    @cached_property
    def composition(self) -> tuple[list[int], NDArray[np.int32]]:
        """Atomic numbers that occur, ascending, and their counts in each frame, (F, elements)."""
        parts = [store.composition for store in self.stores]
        elements = sorted({z for part, _ in parts for z in part})
        counts = np.zeros((len(self.sizes), len(elements)), dtype=np.int32)
        for (part, found), first, last in zip(
            parts, self._starts[:-1], self._starts[1:], strict=True
        ):
            counts[first:last, np.searchsorted(elements, part)] = found
        return elements, counts

    def _place(self, k: int) -> tuple[Store, int]:
        n = int(np.searchsorted(self._starts, k, side="right")) - 1
        return self.stores[n], int(k - self._starts[n])

    def geometry(self, k: int) -> Geometry:
        """Atoms of a frame."""
        store, own = self._place(k)
        return store.geometry(own)

    def label(self, name: str, k: int) -> Floats:
        """Label of a frame; NaN if it has none."""
        store, own = self._place(k)
        return store.label(name, own)

    def labels(self, name: str, index: Integers) -> Floats:
        """Labels of some frames joined, (n, ...) or (atoms, ...)."""
        row = QUANTITIES[name]
        if row.per_atom:
            parts = [self.label(name, int(k)) for k in index]
            return np.concatenate(parts) if parts else np.zeros((0, *row.shape))
        found = np.empty((len(index), *row.shape))
        for n, store in enumerate(self.stores):
            here = (index >= self._starts[n]) & (index < self._starts[n + 1])
            found[here] = store.labels(name, index[here] - self._starts[n])
        return found

    def edges(self, k: int) -> tuple[Integers, Floats]:
        """Edges (2, E) and images (E, 3) of a frame, as in a `Graph`."""
        store, own = self._place(k)
        return store.edges(own)

    def edge_counts(self, index: Integers) -> Integers:
        """Numbers of edges of some frames."""
        found = np.empty(len(index), dtype=np.int64)
        for n, store in enumerate(self.stores):
            here = (index >= self._starts[n]) & (index < self._starts[n + 1])
            found[here] = store.edge_counts(index[here] - self._starts[n])
        return found


def joined_stores(stores: Sequence[Store]) -> Store:
    """One store of the frames of several, or of one."""
    return stores[0] if len(stores) == 1 else JoinedStores(stores)


def _blocks(starts: Integers) -> Sequence[tuple[int, int]]:
    """Ranges of frames with about `_ATOMS_AT_ONCE` atoms each."""
    found, first, count = [], 0, len(starts) - 1
    while first < count:
        last = int(np.searchsorted(starts, starts[first] + _ATOMS_AT_ONCE, side="right")) - 1
        last = min(max(last, first + 1), count)
        found.append((first, last))
        first = last
    return found
