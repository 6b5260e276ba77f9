"""Building a store of frames one by one, in memory or in files."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..files import write_all
from ..quantities import QUANTITIES
from .store import Floats, FrameArrays, Integers, Lists

_ROWS_AT_ONCE = 1 << 16
_PARTS = 256


class Column(Protocol):
    """An array that grows by rows."""

    rows: int
    """Number of rows so far."""

    def append(self, rows: NDArray[Any]) -> None:
        """Add rows, (n, ...)."""


class MemoryColumn:
    """A column in memory.

    Parameters
    ----------
    dtype
        Kind of the values; integers become the smallest kind that holds them all.
    shape
        Shape of a row.
    """

    def __init__(self, dtype: str, shape: tuple[int, ...]) -> None:
        self.dtype = np.dtype(dtype)
        self.shape = shape
        self.rows = 0
        self._parts: list[NDArray[Any]] = []
        self._blocks: list[NDArray[Any]] = []

    def append(self, rows: NDArray[Any]) -> None:
        """Add rows, (n, ...)."""
        self.rows += len(rows)
        if len(rows):
            own = rows.astype(_smallest(rows) if self.dtype.kind in "iu" else self.dtype)
            self._parts.append(own.reshape(len(rows), *self.shape))
            if len(self._parts) == _PARTS:  # small arrays take more memory than what they hold
                self._blocks.append(np.concatenate(self._parts))
                self._parts = []

    def array(self) -> NDArray[Any]:
        """All rows; the column cannot grow any more."""
        if not self.rows:
            return np.zeros((0, *self.shape), dtype=self.dtype)
        found = np.concatenate([*self._blocks, *self._parts])
        self._parts, self._blocks = [], []
        return found


def _smallest(values: NDArray[Any]) -> np.dtype[Any]:
    low, high = values.min(), values.max()
    kind = np.promote_types(np.min_scalar_type(low), np.min_scalar_type(high))
    return kind if kind.kind in "iu" else np.dtype(np.int64)


class FileColumn:
    """A column in a file, which holds the bytes of the rows and nothing else.

    Parameters
    ----------
    path
        File to create.
    dtype, shape
        Kind of the values, and shape of a row.
    """

    def __init__(self, path: Path, dtype: str, shape: tuple[int, ...]) -> None:
        self.path = path
        self.dtype = np.dtype(dtype)
        self.shape = shape
        self.rows = 0
        self._stream = path.open("wb", buffering=1 << 18)

    def append(self, rows: NDArray[Any]) -> None:
        """Add rows, (n, ...).

        Raises
        ------
        OverflowError
            If a whole number is too large for the column.
        """
        self.rows += len(rows)
        own = np.ascontiguousarray(rows, dtype=self.dtype)
        if self.dtype.kind in "iu" and not np.array_equal(own, rows):
            raise OverflowError(f"{rows.max()} is too large for {self.dtype}")
        write_all(self._stream, own.tobytes())

    def close(self) -> None:
        """Write what is left."""
        self._stream.close()


NewColumn = Callable[[str, str, tuple[int, ...]], Column]
"""From a name, a kind of values and the shape of a row to a column."""


class Edges(NamedTuple):
    """Edges of one frame, as in a `Graph`."""

    ends: NDArray[Any]
    """Receivers and senders, (2, E)."""
    shifts: NDArray[Any]
    """(E, 3)."""


class Columns:
    """Frames added one by one.

    Parameters
    ----------
    new
        Makes a column.
    """

    def __init__(self, new: NewColumn) -> None:
        self.count = 0
        self.atoms = 0
        self.columns: dict[str, Column] = {}
        self._new = new
        for name, (dtype, shape) in _ALWAYS.items():
            self._add_column(name, dtype, shape)
        self._groups: dict[tuple[int, int], int] = {}

    def _add_column(self, name: str, dtype: str, shape: tuple[int, ...]) -> None:
        self.columns[name] = self._new(name, dtype, shape)

    def add(
        self,
        numbers: NDArray[Any],
        positions: Floats,
        labels: Mapping[str, ArrayLike],
        *,
        cell: Floats | None = None,
        charge: float = 0.0,
        pbc: ArrayLike = False,
        edges: Edges | None = None,
        group: tuple[int, int] | None = None,
        isolated: bool = False,
        weight: float = 1.0,
    ) -> None:
        """Add a frame.

        Parameters
        ----------
        numbers, positions
            (N,), and (N, 3) in Angstrom.
        labels
            Labels of the right shapes by quantity.
        cell
            Lattice vectors, (3, 3), Angstrom; zero for a molecule.
        charge, pbc
            Total charge, e; periodicity.
        edges
            Neighbours; of all frames or none.
        group
            Frames of one group are not split; None: a group of its own.
        isolated, weight
            Whether it is an isolated atom, and its weight.
        """
        n = len(numbers)
        put = self._put
        put("sizes", [n])
        put("numbers", numbers)
        put("positions", positions)
        put("cells", [np.zeros((3, 3)) if cell is None else cell])
        put("charges", [charge])
        put("pbc", [np.broadcast_to(np.asarray(pbc, dtype=bool), 3)])
        put("isolated", [isolated])
        put("weights", [weight])
        key = (-1, self.count) if group is None else group
        put("groups", [self._groups.setdefault(key, len(self._groups))])
        if edges is not None:
            self._put_edges(edges)
        for name in labels:
            if f"label.{name}" not in self.columns:
                self._begin_label(name)
        for name in QUANTITIES:
            if f"label.{name}" in self.columns:
                self._put_label(name, labels.get(name), n)
        self.count += 1
        self.atoms += n

    def _put(self, name: str, rows: Any) -> None:
        self.columns[name].append(np.asarray(rows))

    def _put_edges(self, edges: Edges) -> None:
        if "edges" not in self.columns:
            for name, (dtype, shape) in _OF_LISTS.items():
                self._add_column(name, dtype, shape)
        shifted = bool(np.any(edges.shifts))
        self._put("edge_counts", [edges.ends.shape[1]])
        self._put("edges", edges.ends.T)
        self._put("shift_counts", [len(edges.shifts) if shifted else 0])
        if shifted:
            self._put("shifts", edges.shifts.astype(np.int64))

    def _begin_label(self, name: str) -> None:
        """New columns of a label, which the frames so far lack."""
        row = QUANTITIES[name]
        self._add_column(f"label.{name}", "<f8", row.shape)
        self._add_column(f"mask.{name}", "|b1", ())
        self._fill(f"label.{name}", self.atoms if row.per_atom else self.count, row.shape, np.nan)
        self._fill(f"mask.{name}", self.count, (), False)

    def _fill(self, name: str, rows: int, shape: tuple[int, ...], value: Any) -> None:
        for first in range(0, rows, _ROWS_AT_ONCE):
            self._put(name, np.full((min(_ROWS_AT_ONCE, rows - first), *shape), value))

    def _put_label(self, name: str, value: ArrayLike | None, atoms: int) -> None:
        row = QUANTITIES[name]
        given = np.full((atoms, *row.shape) if row.per_atom else row.shape, np.nan)
        if value is not None:
            given = np.asarray(value, dtype=np.float64)
        self._put(f"label.{name}", given if row.per_atom else given[None])
        self._put(f"mask.{name}", [value is not None])

    @property
    def grouped(self) -> bool:
        """Whether some frames are of one group."""
        return len(self._groups) < self.count


_ALWAYS = {
    "sizes": ("<u4", ()),
    "numbers": ("|u1", ()),
    "positions": ("<f8", (3,)),
    "cells": ("<f8", (3, 3)),
    "charges": ("<f8", ()),
    "pbc": ("|b1", (3,)),
    "isolated": ("|b1", ()),
    "weights": ("<f8", ()),
    "groups": ("<i8", ()),
}
_OF_LISTS = {
    "edge_counts": ("<u4", ()),
    "edges": ("<u2", (2,)),
    "shift_counts": ("<u4", ()),
    "shifts": ("<i2", (3,)),
}
"""Kinds of the values, and shapes of the rows, of the columns in a file."""


def kind_of_column(name: str) -> tuple[str, tuple[int, ...]]:
    """Kind of the values and shape of a row of a column.

    Raises
    ------
    KeyError
        If there is no such column.
    """
    kind, _, quantity = name.partition(".")
    if quantity:
        shape = QUANTITIES[quantity].shape
        return {"label": ("<f8", shape), "mask": ("|b1", ())}[kind]
    return {**_ALWAYS, **_OF_LISTS}[name]


def store_of(
    columns: Mapping[str, NDArray[Any]],
    *,
    grouped: bool,
    lists_cutoff: float | None = None,
    cutoff: float | None = None,
    read: Callable[[int], None] | None = None,
) -> FrameArrays:
    """The store of columns that are complete.

    Parameters
    ----------
    columns
        Arrays by the names of columns.
    grouped
        Whether groups are read: if not, all frames are independent.
    lists_cutoff
        Cutoff of the neighbour lists, Angstrom; None: lists of given graphs.
    cutoff
        Cutoff of the edges, Angstrom; None: that of the lists.
    read
        See `FrameArrays.read`.
    """
    weights = np.asarray(columns["weights"])
    lists = None
    if "edges" in columns:
        lists = Lists(
            lists_cutoff,
            starts_of(columns["edge_counts"]),
            columns["edges"],
            starts_of(columns["shift_counts"]),
            columns["shifts"],
        )
    names = [name for name in QUANTITIES if f"label.{name}" in columns]
    found = FrameArrays(
        starts=starts_of(columns["sizes"]),
        numbers=columns["numbers"],
        positions=columns["positions"],
        cells=columns["cells"],
        charges=np.array(columns["charges"]),
        isolated=np.array(columns["isolated"]),
        label_arrays={name: _label_array(columns, name) for name in names},
        masks={name: np.array(columns[f"mask.{name}"]) for name in names},
        groups=np.array(columns["groups"]).astype(np.int64) if grouped else None,
        weights=np.array(weights) if (weights != 1).any() else None,
        pbc=np.array(columns["pbc"]),
        lists=lists,
        cutoff=cutoff,
    )
    if read is not None:
        found.read = read
    return found


def _label_array(columns: Mapping[str, NDArray[Any]], name: str) -> Floats:
    """Labels of atoms as they are; those of frames, which are few, in memory."""
    found = columns[f"label.{name}"]
    return found if QUANTITIES[name].per_atom else np.array(found)


def starts_of(counts: NDArray[Any]) -> Integers:
    """First place of each of some parts, and the number of all."""
    return np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])


def memory_columns() -> Columns:
    """Columns in memory; `memory_store` reads them."""
    return Columns(lambda name, dtype, shape: MemoryColumn(dtype, shape))


def memory_store(columns: Columns, cutoff: float | None = None) -> FrameArrays:
    """The store of `memory_columns`; they cannot grow any more."""
    arrays = {}
    for name, column in columns.columns.items():
        assert isinstance(column, MemoryColumn)
        arrays[name] = column.array()
    return store_of(arrays, grouped=columns.grouped, lists_cutoff=cutoff, cutoff=cutoff)
