"""Structures that readers yield, selections of frames, and the collector of frames."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from ase import Atoms
from numpy.typing import ArrayLike, NDArray

from ...neighbors import NeighborList
from ...quantities import QUANTITIES
from ..columns import Columns, Edges
from ..frames import Frames
from ..structures import CLOSEST_LABELLED, check_geometry
from ..units import DataUnits

PathLike = str | os.PathLike[str]
Keys = Mapping[str, str | Sequence[str] | None]


ISOLATED = 8.0
"""Distance of its images from which a single periodic atom is isolated, Angstrom."""


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
    """End of an error message about missing labels: entries that could be labels."""
    missing: tuple[str, ...] = ()
    """Labels that ``keys`` names and this frame lacks, as error messages call them."""
    marked_isolated: bool = False
    """Whether the file calls it an isolated atom."""
    weight: float = 1.0
    """Weight in the loss."""

    @property
    def isolated(self) -> bool:
        """Whether it is one neutral atom, far from its images or called isolated by the file.

        Its energy is then a reference energy.
        """
        if len(self.numbers) != 1 or self.charge != 0:
            return False
        periodic = np.flatnonzero(np.broadcast_to(self.pbc, 3))
        if self.marked_isolated or self.cell is None or not len(periodic):
            return True
        steps = np.array(list(product((-1, 0, 1), repeat=len(periodic))))
        images = np.linalg.norm(steps @ np.asarray(self.cell)[periodic], axis=1)
        return bool(images[steps.any(1)].min() >= ISOLATED)

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


class Named:
    """Labels that ``keys`` names: some frame must have each of them."""

    def __init__(self) -> None:
        self._missing: tuple[str, ...] | None = None
        self._hint = ""

    def add(self, structure: Structure) -> None:
        """Add a frame."""
        if self._missing is None:
            self._missing, self._hint = structure.missing, structure.hint
        self._missing = tuple(each for each in self._missing if each in structure.missing)

    def check(self, path: object) -> None:
        """Raise a ValueError if no frame has one of the labels."""
        if self._missing:
            raise ValueError(f"no frame of {path} has {self._missing[0]}{self._hint}")


class Collector:
    """Checks structures one by one, and adds them and their neighbours to columns.

    Parameters
    ----------
    columns
        Where they go.
    cutoff
        Cutoff of the neighbours, Angstrom; None: none are searched.
    named
        Labels that some structure must have.
    """

    def __init__(self, columns: Columns, cutoff: float | None, named: Named) -> None:
        self._columns = columns
        self._neighbors = None if cutoff is None else NeighborList(cutoff)
        self._named = named

    def add(
        self, structure: Structure, number: int, file: int = 0, file_weight: float = 1.0
    ) -> None:
        """Add a structure, in eV and Angstrom; its number may repeat.

        Parameters
        ----------
        structure
            Structure.
        number, file
            Its number in its file, and the number of the file: structures with the same two form
            a group.
        file_weight
            Factor of its weight.

        Raises
        ------
        ValueError
            If it has no labels or labels that are not valid, if its neighbours cannot be searched
            or kept, or if its geometry cannot be right.
        """
        name, labels = structure.name, structure.labels
        self._named.add(structure)
        require_labels(structure)
        check_labels(structure)
        weight = structure.weight
        if not (np.isfinite(weight) and weight >= 0):
            raise ValueError(f"{name} has the weight {weight}: expected 0 or more")
        edges = self._edges(structure)
        atoms = Atoms(structure.numbers, structure.positions, cell=structure.cell)
        atoms.pbc = structure.pbc
        check_geometry(atoms, name, CLOSEST_LABELLED)
        cell = np.asarray(structure.cell) if atoms.pbc.any() else None
        try:
            self._columns.add(
                structure.numbers,
                np.asarray(structure.positions),
                labels,
                cell=cell,
                charge=structure.charge,
                pbc=structure.pbc,
                edges=edges,
                group=(file, number),
                isolated=structure.isolated,
                weight=weight * file_weight,
            )
        except OverflowError as error:
            raise ValueError(
                f"{name} does not fit a packed file ({error}): leave it out, or pack without "
                "neighbour lists"
            ) from None

    def _edges(self, structure: Structure) -> Edges | None:
        if self._neighbors is None:
            return None
        try:
            graph = self._neighbors.graph(
                structure.numbers,
                structure.positions,
                structure.cell,
                structure.pbc,
                structure.charge,
            )
        except ValueError as error:
            raise ValueError(f"{structure.name}: {error}") from None
        return Edges(graph.edge_index.numpy(), graph.edge_shift.numpy())


def tell_missing(frames: Frames, path: object) -> None:
    """Warn about labels that some frames lack, other than isolated atoms."""
    if all(frames.isolated):
        return
    others = frames.without_isolated()
    if others.partial:
        counts = [
            f"{name} in {len(others) - len(others.labelled(name))}" for name in others.partial
        ]
        warnings.warn(
            f"{path}: of {len(others)} frames, labels are missing: {', '.join(counts)}; each "
            "frame is used with the labels that it has",
            UserWarning,
            stacklevel=2,
        )


def require_labels(structure: Structure) -> None:
    """Raise a ValueError if a frame has no label; the message names the frame."""
    if not structure.labels:
        missing = ", ".join(structure.missing) or "energy, no forces and no other label"
        raise ValueError(f"{structure.name} has no {missing}{structure.hint}")


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
