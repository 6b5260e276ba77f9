"""Structures that readers yield, selections of frames, and the collector of frames."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from ase import Atoms
from numpy.typing import ArrayLike, NDArray

from ...graph import Graph
from ...neighbors import NeighborList
from ...quantities import QUANTITIES
from ..frames import Frames
from ..structures import CLOSEST_LABELLED, check_geometry
from ..units import DataUnits

PathLike = str | os.PathLike[str]
Keys = Mapping[str, str | Sequence[str] | None]


class Structure(NamedTuple):
    """A frame of a file, in the units of the file until it is converted."""

    name: str
    """Name in error messages."""
    numbers: NDArray[np.int64]
    """Atomic numbers, (N,)."""
    positions: NDArray[np.float64]
    """Positions, (N, 3)."""
    labels: dict[str, Any]
    """Labels by the names of `QUANTITIES`."""
    cell: NDArray[np.float64] | None = None
    """Lattice vectors as rows, (3, 3)."""
    pbc: ArrayLike = False
    charge: float = 0.0
    """Total charge, e."""
    units: object = None
    """Units that the frame itself states."""
    hint: str = ""
    """End of the error message for a frame without labels: entries that could be labels."""

    def converted(self, units: DataUnits, trusted: bool = False) -> Structure:
        """Convert the structure to eV and Angstrom.

        Parameters
        ----------
        units
            Units of the file.
        trusted
            Whether a user gave the units: the frame may then state unknown units.

        Raises
        ------
        ValueError
            If the frame states other units.
        """
        units.require(self.units, trusted)
        length = units.factor("length")
        return self._replace(
            positions=length * np.asarray(self.positions, dtype=np.float64),
            cell=None if self.cell is None else length * np.asarray(self.cell, dtype=np.float64),
            labels={
                name: units.factor(name) * np.asarray(value, dtype=np.float64)
                for name, value in self.labels.items()
            },
        )


@dataclass(frozen=True)
class Selection:
    """Selection of the frames of a file to read.

    Raises
    ------
    ValueError
        If the limit is below 1, a seed has no limit, or ``index`` is given with either.
    """

    limit: int | None = None
    """Maximum number of frames: the first ones, or, with a seed, random ones."""
    seed: int | None = None
    """Seed of random frames."""
    index: tuple[int, ...] | None = None
    """Numbers of the frames, from 0."""

    def __post_init__(self) -> None:
        if self.limit is not None and self.limit < 1:
            raise ValueError(f"limit is {self.limit}: expected 1 or more")
        if self.seed is not None and self.limit is None:
            raise ValueError(f"seed is {self.seed} but limit is None: say how many frames to draw")
        if self.index is not None and (self.limit, self.seed) != (None, None):
            raise ValueError("split says which frames to read: limit and seed do not go with it")

    @property
    def stop(self) -> int | None:
        """Number of frames from the start that include all selected ones; None if unknown."""
        if self.index is not None:
            return max(self.index) + 1
        return self.limit if self.seed is None else None

    def of(self, count: int, path: object) -> list[int]:
        """Numbers of the selected frames among ``count``, ascending.

        Raises
        ------
        ValueError
            If ``index`` has a number of ``count`` or more.
        """
        if self.index is not None:
            if max(self.index) >= count:
                raise ValueError(
                    f"the split names frame {max(self.index)}, but {path} holds {count}: "
                    "frames are counted from 0"
                )
            return sorted(self.index)
        if self.limit is None or self.limit >= count:
            return list(range(count))
        if self.seed is None:
            return list(range(self.limit))
        order = np.random.default_rng(self.seed).permutation(count)
        return sorted(order[: self.limit].tolist())


class Collector:
    """Builds graphs of structures one by one, and checks that all have the same labels."""

    def __init__(self, cutoff: float) -> None:
        self.names: list[str] = []
        self._groups: list[tuple[int, int]] = []
        self._neighbors = NeighborList(cutoff)
        self._graphs: list[Graph] = []
        self._labels: dict[str, list[Any]] = {}

    def add(self, structure: Structure, file: int, number: int) -> None:
        """Add a structure, in eV and Angstrom, of one of the files; numbers may repeat.

        Raises
        ------
        ValueError
            If it has no labels, other labels than the first structure or labels that are not
            valid, if its neighbours cannot be searched, or if its geometry cannot be right.
        """
        name, labels = structure.name, structure.labels
        require_labels(structure)
        if not self._graphs:
            self._labels = {key: [] for key in labels}
        for key in QUANTITIES:
            if (key in labels) != (key in self._labels):
                first = self.names[0]
                has, lacks = (name, first) if key in labels else (first, name)
                raise ValueError(
                    f"{lacks} has no {key}, which {has} has: label every frame, or leave it out "
                    f"by keys {{{key}: null}}"
                )
        check_labels(structure)
        try:
            graph = self._neighbors.graph(
                structure.numbers,
                structure.positions,
                structure.cell,
                structure.pbc,
                structure.charge,
            )
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
        atoms = Atoms(structure.numbers, structure.positions, cell=structure.cell)
        atoms.pbc = structure.pbc
        check_geometry(atoms, name, CLOSEST_LABELLED)
        self.names.append(name)
        self._groups.append((file, number))
        self._graphs.append(graph)
        for key, value in labels.items():
            self._labels[key].append(value)

    def frames(self, path: object) -> Frames:
        """Frames of all structures; those with the same number and file form a group.

        Raises
        ------
        ValueError
            If there is no structure.
        """
        if not self._graphs:
            raise ValueError(f"{path} holds no frame: expected at least one")
        labels = dict(self._labels)
        energies, forces = labels.pop("energy", None), labels.pop("forces", None)
        number = {group: n for n, group in enumerate(dict.fromkeys(self._groups))}
        repeated = len(number) < len(self._groups)
        groups = [number[group] for group in self._groups] if repeated else None
        return Frames(self._graphs, energies, forces, groups, **labels)


def require_labels(structure: Structure) -> None:
    """Raise a ValueError if a frame has no label; the message names the frame."""
    if not structure.labels:
        raise ValueError(
            f"{structure.name} has no energy, no forces and no other label{structure.hint}"
        )


def check_labels(structure: Structure) -> None:
    """Raise a ValueError if a label of a frame is not finite or has the wrong shape."""
    name, count = structure.name, len(structure.numbers)
    for key, value in structure.labels.items():
        if not np.isfinite(value).all():
            raise ValueError(f"{name} has a label that is not finite ({key}): leave the frame out")
        row = QUANTITIES[key]
        shape = (count, *row.shape) if row.per_atom else row.shape
        if np.shape(value) != shape:
            raise ValueError(
                f"{name} has {count} atoms but {key} of shape {np.shape(value)}: expected {shape}"
            )


def existing_file(path: PathLike) -> Path:
    """Check that a file exists and is not empty, and return its path.

    Raises
    ------
    FileNotFoundError, ValueError
        If it does not exist, is a folder, or is empty.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file")
    if path.is_dir():
        raise ValueError(f"{path} is a folder: expected a file of structures")
    if path.stat().st_size == 0:
        raise ValueError(f"{path} is empty: expected structures")
    return path
