"""The part of an OpenMM Topology that a potential reads: elements, box, bonds and link atoms."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

LINK_ATOM = re.compile(r"V\d+")
"""Name that openmm-ml 1.8 gives to a link atom and to its residue."""


def atomic_numbers(topology_or_numbers: Any) -> NDArray[np.int64]:
    """Atomic numbers (N,) of all particles; 0 for a virtual site, which has no element.

    Raises
    ------
    ValueError
        If it is neither a Topology nor a list of integers.
    """
    if not hasattr(topology_or_numbers, "atoms"):
        numbers = np.asarray(topology_or_numbers)
        if numbers.ndim != 1 or not np.issubdtype(numbers.dtype, np.integer):
            raise ValueError(
                f"atomic numbers are {topology_or_numbers!r}: expected a list of integers, or an "
                "OpenMM Topology"
            )
        return numbers.astype(np.int64)
    elements = [atom.element for atom in topology_or_numbers.atoms()]
    return np.array([0 if e is None else e.atomic_number for e in elements], dtype=np.int64)


def has_box(topology_or_numbers: Any) -> bool:
    """Whether it is a Topology with a periodic box."""
    get = getattr(topology_or_numbers, "getPeriodicBoxVectors", None)
    return get is not None and get() is not None


def bonds_of_region(
    topology_or_numbers: Any, chosen: Sequence[int] | None = None
) -> NDArray[np.int64]:
    """Bonds (B, 2) among chosen atoms, as places in ``chosen``; None chooses all atoms.

    openmm-ml lists one link atom for each bond that the region cuts, in the order of the bonds and
    without a bond of its own: here each is bonded to the chosen atom of that bond.

    Raises
    ------
    ValueError
        If a bond between a chosen atom and another one has no link atom: the potential would see
        a radical.
    """
    if not hasattr(topology_or_numbers, "bonds"):
        return np.zeros((0, 2), dtype=np.int64)
    atoms = list(topology_or_numbers.atoms())
    chosen = range(len(atoms)) if chosen is None else chosen
    place = {atom: k for k, atom in enumerate(chosen)}
    within, cut = [], []
    for bond in topology_or_numbers.bonds():
        ends = [place[atom.index] for atom in bond if atom.index in place]
        if len(ends) == 2:
            within.append(ends)
        elif ends:
            cut.append((bond, ends[0]))
    links = [place[atom] for atom in sorted(place) if _is_link(atoms[atom])]
    if len(links) < len(cut):
        _refuse([bond for bond, _ in cut[len(links) :]])
    within += [[end, link] for (_, end), link in zip(cut, links, strict=False)]
    return np.array(within, dtype=np.int64).reshape(-1, 2)


def _is_link(atom: Any) -> bool:
    return bool(LINK_ATOM.fullmatch(atom.name)) and atom.name == atom.residue.name


def _refuse(cut: Sequence[Iterable[Any]]) -> None:
    names = ", ".join(
        "-".join(_name_of(atom) for atom in sorted(bond, key=lambda atom: atom.index))
        for bond in cut[:5]
    )
    more = f" and {len(cut) - 5} more" if len(cut) > 5 else ""
    raise ValueError(
        f"the chosen atoms cut {len(cut)} bond(s): {names}{more}; there are no link atoms: choose "
        "both atoms of each bond or neither, or let createMixedSystem of openmm-ml 1.8 add them"
    )


def _name_of(atom: Any) -> str:
    residue = atom.residue
    return f"{atom.index} ({atom.name} of {residue.name} {residue.id})"
