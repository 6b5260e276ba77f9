"""Checks of options, structures and results that all adapters share."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from ase import Atoms
from ase.calculators.calculator import PropertyNotImplementedError
from ase.data import chemical_symbols
from numpy.typing import NDArray
from torch import nn

from ..models.committee import has_coulomb, members_of
from ..models.graph import Graph, displacements
from ..models.inference.backends import BACKENDS

BLIND_TO_CHARGE = ("TDN",)
"""Architectures without the total charge in the formula of their energy."""


class UntrainedError(PropertyNotImplementedError, ValueError):
    """A property was requested that the weights were never trained on."""


def parse_device(device: str | torch.device) -> torch.device:
    """The device to run on; ``"auto"`` selects CUDA if it is available.

    Raises
    ------
    ValueError
        If the device is unknown, absent, or cannot do float64 (the geometry needs it).
    """
    if isinstance(device, str) and device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        parsed = torch.device(device)
    except (RuntimeError, TypeError):
        raise ValueError(f"unknown device {device!r}: expected 'auto', 'cpu' or 'cuda'") from None
    if parsed.type == "cuda":
        count = torch.cuda.device_count()
        if (parsed.index or 0) >= count:
            raise ValueError(f"device {device!r} is not there: torch finds {count} CUDA device(s)")
    elif parsed.type != "cpu":
        raise ValueError(f"device {device!r} is not supported: expected 'auto', 'cpu' or 'cuda'")
    return parsed


def parse_backend(backend: str) -> str:
    """The name of a backend, checked.

    Raises
    ------
    ValueError
        If no backend has that name.
    """
    if backend not in BACKENDS:
        raise ValueError(f"backend is {backend!r}: expected one of {', '.join(BACKENDS)}")
    return backend


def check_energies(potential: nn.Module) -> None:
    """Raise a ValueError if a potential, or a member of a committee, was not trained on energies.

    A checkpoint without ``metadata["trained_on"]`` is assumed to have been trained on them.
    """
    for member in members_of(potential):
        trained = member.metadata.get("trained_on")  # type: ignore[union-attr, operator]
        if isinstance(trained, list) and "energy" not in trained:
            raise UntrainedError(
                f"the model was trained on {', '.join(map(str, trained))}, not on energies: its "
                "energies and forces would be meaningless; request the properties it was trained "
                "on, or use another checkpoint"
            )


def parse_charge(charge: Any) -> int:
    """Total charge as an integer.

    Raises
    ------
    ValueError
        If it is not a whole number.
    """
    try:
        value = float(charge)
    except (TypeError, ValueError):
        raise ValueError(f"charge is {charge!r}: expected an integer, in e") from None
    if not value.is_integer():
        raise ValueError(f"charge is {charge!r}: expected an integer, in e")
    return int(value)


def charge_of(atoms: Atoms) -> int:
    """Total charge of a structure, e: ``atoms.info["charge"]``, or 0 if it is absent."""
    return parse_charge(atoms.info.get("charge", 0))


def warn_of_charge(potential: nn.Module, charge: int) -> None:
    """Warn of a charge if a potential, or a member of a committee, may never have seen one.

    ``metadata["trained_with_charge"]`` says whether charged structures were among its data.
    """
    stated = {
        member.metadata.get("trained_with_charge")  # type: ignore[union-attr, operator]
        for member in members_of(potential)
    }
    if not charge or stated == {True}:
        return
    why = (
        "was trained on neutral structures only"
        if False in stated
        else "does not state that it was trained on charged structures"
    )
    parts = str(potential.architecture).split(" + ")
    if set(parts) & set(BLIND_TO_CHARGE):
        why += f", and the energy of a {parts[0]} does not depend on the charge"
    warnings.warn(
        f"the charge is {charge:+d}, but the model {why}: results are unverified",
        UserWarning,
        stacklevel=2,
    )


def warn_of_charged_cell(potential: nn.Module, charge: int) -> bool:
    """Warn of what is assumed in a charged cell if there is a Coulomb energy; whether there is."""
    cutoffs = sorted({float(m.coulomb_cutoff) for m in members_of(potential) if has_coulomb(m)})  # type: ignore[arg-type]
    if not cutoffs:
        return False
    warnings.warn(
        f"the cell has the charge {charge:+d}: its charges interact up to "
        f"{', '.join(f'{cutoff:g}' for cutoff in cutoffs)} A, and beyond there is a reaction "
        "field, as of a polarisable surrounding such as water; nothing compensates the charge, "
        "and there is no sum over distant images: energies of cells of different charge or size "
        "are not comparable",
        UserWarning,
        stacklevel=2,
    )
    return True


def symbols(numbers: Iterable[int]) -> str:
    """Chemical symbols separated by commas; an unknown number stands as it is."""
    return ", ".join(
        chemical_symbols[z] if 0 < z < len(chemical_symbols) else str(z) for z in numbers
    )


def check_elements(numbers: NDArray[Any], elements: Sequence[int]) -> None:
    """Raise a ValueError if there are no atoms, or an element that the model was not made for."""
    if len(numbers) == 0:
        raise ValueError("the structure has no atoms: expected at least one")
    unknown = sorted(set(numbers.tolist()) - set(elements))
    if unknown:
        raise ValueError(
            f"the model does not know {symbols(unknown)}: it was made for {symbols(elements)}"
        )


def check_geometry(positions: NDArray[Any], cell: NDArray[Any], pbc: NDArray[Any]) -> None:
    """Raise a ValueError if positions are not finite or the periodic cell vectors span no volume.

    Positions (N, 3) and cell (3, 3) are in Angstrom; pbc is (3,).
    """
    finite = np.isfinite(positions).all(axis=1)
    if not finite.all():
        atom = int(np.argmin(finite))
        raise ValueError(f"position of atom {atom} is {positions[atom]}: expected finite numbers")
    if not pbc.any():
        return
    if not np.isfinite(cell).all():
        raise ValueError(f"cell is {cell.tolist()}: expected finite numbers")
    periodic = cell[pbc]
    if not periodic.any(axis=1).all():
        raise ValueError(
            f"pbc is {pbc.tolist()} but the cell has no such vector: set atoms.cell, or "
            "atoms.pbc = False for a molecule"
        )
    span = np.sqrt(max(np.linalg.det(periodic @ periodic.T), 0.0))
    if span <= 1e-9 * np.prod(np.linalg.norm(periodic, axis=1)):
        raise ValueError(
            f"the periodic lattice vectors {periodic.tolist()} are linearly dependent: "
            "expected a cell of non-zero volume"
        )


def all_finite(values: NDArray[Any]) -> bool:
    """Whether no value is infinite or not a number."""
    # One sum decides, unless finite numbers add up to infinity.
    return math.isfinite(values.sum()) or bool(np.isfinite(values).all())


def check_results(graph: Graph, *results: NDArray[Any]) -> None:
    """Raise a ValueError that explains the cause if a result for a graph is not finite."""
    if not all(map(all_finite, results)):
        raise ValueError(_explain_failure(graph))


def _explain_failure(graph: Graph) -> str:
    """Why a result is not finite: two atoms at the same position, or bad weights."""
    edge_index, numbers = graph.edge_index.cpu().numpy(), graph.numbers.cpu().numpy()
    lengths = np.linalg.norm(displacements(graph).cpu().numpy(), axis=1)
    if len(lengths) and lengths.min() < 1e-6:
        i, j = edge_index[:, int(np.argmin(lengths))]
        pair = symbols([numbers[i], numbers[j]])
        first = int((graph.system < graph.system[i]).sum())  # of the structure, in a batch
        return (
            f"atoms {i - first} and {j - first} ({pair}) are in one place: expected distinct "
            "positions"
        )
    closest = f", closest pair {lengths.min():.3f} A apart" if len(lengths) else ""
    return f"the model returned an energy or a force that is not finite{closest}"
