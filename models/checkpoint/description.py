"""Descriptions of potentials as plain data."""

from __future__ import annotations

import math
from typing import Any

from ..committee import Committee
from ..inference.backends import runs_as
from ..networks.torchmdnet import TorchMDNetPotential
from ..potential import Potential


def finite_cutoff(cutoff: float) -> float | None:
    """A cutoff as JSON data: None if all pairs of a molecule interact."""
    return cutoff if math.isfinite(cutoff) else None


def describe(potential: Potential | TorchMDNetPotential | Committee) -> dict[str, Any]:
    """Architecture, sizes, units, elements and metadata of a potential, as JSON data.

    Returns
    -------
    dict[str, Any]
        architecture, parameters (their number), dtype, cutoff_angstrom, elements (atomic numbers),
        units (of the network), network, readout, repulsion, coulomb and heads (their arguments;
        for a torchmd-net module its hyper-parameters), atom_energies (whether it has them),
        runs_as (how it is evaluated, and what that costs), metadata; for a committee also members.
        The cutoff is None if all pairs of a molecule interact.
    """
    found: dict[str, Any] = {
        "architecture": potential.architecture,
        "parameters": sum(parameter.numel() for parameter in potential.parameters()),
        "dtype": str(potential.dtype).removeprefix("torch."),
        "cutoff_angstrom": finite_cutoff(potential.cutoff),
        "elements": list(potential.elements),
        "metadata": potential.metadata,
    }
    if isinstance(potential, Committee):
        members: Any = potential.members
        return found | {"members": [describe(member) for member in members]}
    found["runs_as"] = runs_as(potential)
    found["units"] = {"length": potential.length_unit, "energy": potential.energy_unit}
    if isinstance(potential, TorchMDNetPotential):
        found["network"] = potential.hyper_parameters
        found["atom_energies"] = potential.has_atom_energies
    elif isinstance(potential, Potential):
        found["network"] = potential.representation.config
        found["readout"] = potential.readout.config
        found["repulsion"] = None if potential.repulsion is None else potential.repulsion.config
        found["coulomb"] = None if potential.coulomb is None else potential.coulomb.config
        found["heads"] = {name: head.config for name, head in potential.heads.items()}
        found["atom_energies"] = True
    return found
