"""What every reader yields, which frames it is asked for, and how frames are collected."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ...graph import Graph
from ...neighbors import NeighborList
from ...quantities import QUANTITIES
from ..frames import Frames
from ..units import DataUnits

PathLike = str | os.PathLike[str]
Keys = Mapping[str, str | Sequence[str] | None]


class Structure(NamedTuple):
    """A frame as a file has it: in the units of the file until they are converted."""

    name: str
    """What an error calls it."""
    numbers: NDArray[np.int64]
    """(N,), atomic numbers."""
    positions: NDArray[np.float64]
    """(N, 3)."""
    labels: dict[str, Any]
    """By the names of `QUANTITIES`."""
    cell: NDArray[np.float64] | None = None
    """(3, 3), rows are lattice vectors."""
    pbc: ArrayLike = False
    charge: float = 0.0
    """e."""
    units: object = None
    """What the frame itself says of its units."""
    hint: str = ""
    """Of a frame without labels: the rest of the error, with what could be labels."""

    def converted(self, units: DataUnits, trusted: bool = False) -> Structure:
        """The same in eV and Angstrom.

        Parameters
        ----------
        units
            Of the file.
        trusted
            Whether a user gave them: then a frame may state units that nobody knows.

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
    """Which frames of a file to read."""

    limit: int | None = None
    """So many: the first ones, or, with a seed, random ones."""
    seed: int | None = None
    index: tuple[int, ...] | None = None
    """Their numbers, from 0."""

    def __post_init__(self) -> None:
        if self.limit is not None and self.limit < 1:
            raise ValueError(f"limit is {self.limit}: expected 1 or more")
        if self.seed is not None and self.limit is None:
            raise ValueError(f"seed is {self.seed} but limit is None: say how many frames to draw")
        if self.index is not None and (self.limit, self.seed) != (None, None):
            raise ValueError("split says which frames to read: limit and seed do not go with it")

    @property
    def stop(self) -> int | None:
        """So many frames from the beginning hold all that are wanted; None if not known yet."""
        if self.index is not None:
            return max(self.index) + 1
        return self.limit if self.seed is None else None

    def of(self, count: int, path: object) -> list[int]:
        """Numbers of the frames to read out of ``count``, ascending."""
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
    """Builds the graphs of structures as they come, and checks that all have the same labels."""

    def __init__(self, cutoff: float) -> None:
        self.names: list[str] = []
        self._groups: list[tuple[int, int]] = []
        self._neighbors = NeighborList(cutoff)
        self._graphs: list[Graph] = []
        self._labels: dict[str, list[Any]] = {}

    def add(self, structure: Structure, file: int, number: int) -> None:
        """Take a structure in eV and Angstrom, of one of the files; numbers may repeat."""
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
        self.names.append(name)
        self._groups.append((file, number))
        self._graphs.append(graph)
        for key, value in labels.items():
            self._labels[key].append(value)

    def frames(self, path: object) -> Frames:
        """All that was taken; structures of one number and file are a group."""
        if not self._graphs:
            raise ValueError(f"{path} holds no frame: expected at least one")
        labels = dict(self._labels)
        energies, forces = labels.pop("energy", None), labels.pop("forces", None)
        number = {group: n for n, group in enumerate(dict.fromkeys(self._groups))}
        repeated = len(number) < len(self._groups)
        groups = [number[group] for group in self._groups] if repeated else None
        return Frames(self._graphs, energies, forces, groups, **labels)


def require_labels(structure: Structure) -> None:
    """Raise a ValueError that names the frame if it has no label."""
    if not structure.labels:
        raise ValueError(
            f"{structure.name} has no energy, no forces and no other label{structure.hint}"
        )


def check_labels(structure: Structure) -> None:
    """Raise a ValueError that names the frame if a label is not finite or of another shape."""
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
    """The path of a file that is there and holds something.

    Raises
    ------
    FileNotFoundError, ValueError
        If there is none, or it is a folder or empty.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file")
    if path.is_dir():
        raise ValueError(f"{path} is a folder: expected a file of structures")
    if path.stat().st_size == 0:
        raise ValueError(f"{path} is empty: expected structures")
    return path
