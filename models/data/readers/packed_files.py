"""Packed files as a format of the readers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

import numpy as np

from ...quantities import QUANTITIES
from ..packed import open_packed
from ..store import FrameArrays
from ..units import DataUnits
from .structure import Keys, PathLike, Selection, Structure

PACKED = "packed"
PACKED_UNITS = DataUnits()


def packed_structures(
    path: PathLike, selection: Selection, units: DataUnits, keys: Keys
) -> Iterator[tuple[int, Structure]]:
    """Yield frames of a packed file and their numbers.

    Raises
    ------
    FileNotFoundError, ValueError
        As for `packed_store`.
    """
    store = packed_store(path, None, keys)
    assert store.pbc is not None
    groups = store.groups
    for k in selection.of(len(store.sizes), path):
        atoms = store.geometry(k)
        yield (
            k if groups is None else int(groups[k]),
            Structure(
                f"frame {k} of {path}",
                np.array(atoms.numbers, dtype=np.int64),
                np.array(atoms.positions),
                {name: np.array(store.label(name, k)) for name, m in store.masks.items() if m[k]},
                np.array(atoms.cell),
                np.array(store.pbc[k]),
                atoms.charge,
                marked_isolated=bool(store.isolated[k]),
                weight=1.0 if store.weights is None else float(store.weights[k]),
            ),
        )


def packed_store(path: PathLike, cutoff: float | None, keys: Keys) -> FrameArrays:
    """Frames of a packed file, which stay in the file.

    Parameters
    ----------
    path
        The file.
    cutoff
        Cutoff of the edges, Angstrom; None: they are not read.
    keys
        Labels to ignore, such as ``{"forces": None}``, or ``{"weight": None}``.

    Raises
    ------
    FileNotFoundError, ValueError
        If it cannot be read, ``keys`` has names, or a frame has no other label.
    """
    store = open_packed(path, cutoff).arrays
    for name, key in keys.items():
        if key is not None:
            raise ValueError(
                f"keys: {name} is {key!r}, but labels of {path} got their names when it was "
                f"packed: expected null, which ignores the {name}, or nothing"
            )
        if name not in (*QUANTITIES, "weight"):
            raise ValueError(
                f"keys: {name!r} cannot be ignored in {path}: expected one of "
                f"{', '.join((*store.masks, 'weight'))}"
            )
    masks = {name: mask for name, mask in store.masks.items() if name not in keys}
    some = np.zeros(len(store.sizes), dtype=bool)
    for mask in masks.values():
        some |= mask
    if not some.all():
        raise ValueError(
            f"frame {int(np.argmin(some))} of {path} has no label but those that keys ignore: "
            f"the file has {', '.join(store.masks)}"
        )
    arrays = {name: store.label_arrays[name] for name in masks}
    weights = None if "weight" in keys else store.weights
    return replace(store, masks=masks, label_arrays=arrays, weights=weights)


def refuse_units(path: PathLike, units: Mapping[str, str] | None) -> None:
    """Raise a ValueError if units are given for a packed file."""
    if units:
        raise ValueError(
            f"units are {dict(units)}, but {path} is packed, in eV and Angstrom: leave them out, "
            "or give them when the frames are packed"
        )
