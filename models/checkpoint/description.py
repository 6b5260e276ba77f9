"""Descriptions of potentials as plain data."""

from __future__ import annotations

from typing import Any

from ..committee import Committee
from ..networks.torchmdnet import TorchMDNetPotential
from ..potential import Potential


def describe(potential: Potential | TorchMDNetPotential | Committee) -> dict[str, Any]:
    """Architecture, sizes, units, elements and metadata of a potential, as JSON data.

    Returns
    -------
    dict[str, Any]
        architecture, parameters (their number), dtype, cutoff_angstrom, elements (atomic numbers),
        units (of the network), network, readout, repulsion and heads (their arguments; for a
        torchmd-net module its hyper-parameters), atom_energies (whether it has them), metadata;
        for a committee also members.
    """
    found: dict[str, Any] = {
        "architecture": potential.architecture,
        "parameters": sum(parameter.numel() for parameter in potential.parameters()),
        "dtype": str(potential.dtype).removeprefix("torch."),
        "cutoff_angstrom": potential.cutoff,
        "elements": list(potential.elements),
        "metadata": potential.metadata,
    }
    if isinstance(potential, Committee):
        members: Any = potential.members
        return found | {"members": [describe(member) for member in members]}
    found["units"] = {"length": potential.length_unit, "energy": potential.energy_unit}
    if isinstance(potential, TorchMDNetPotential):
        found["network"] = potential.hyper_parameters
        found["atom_energies"] = potential.has_atom_energies
    elif isinstance(potential, Potential):
        found["network"] = potential.representation.config
        found["readout"] = potential.readout.config
        found["repulsion"] = None if potential.repulsion is None else potential.repulsion.config
        found["heads"] = {name: head.config for name, head in potential.heads.items()}
        found["atom_energies"] = True
    return found
