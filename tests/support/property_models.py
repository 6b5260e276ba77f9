"""Small networks with heads for dipole and polarizability."""

from __future__ import annotations

import functools
from typing import Any

import torch
from support.helpers import CUTOFF, Array, System, make_potential, make_tdn

from tensormd.models import DipoleReadout, PolarizabilityReadout, Potential, batch_graphs

MODELS: dict[str, dict[str, Any]] = {
    "TensorNet": {},
    "TensorNet-0-layers": {"layers": 0},
    "TensorNet-SO(3)": {"group": "SO(3)"},
    "TensorNet-IA": {"irreps": "IA"},
    "TensorNet-nm": {"length_unit": "nm", "cutoff": CUTOFF / 10},
    "TDN-L1": {"lmax": 1, "scale": 1.0},
    "TDN-L2": {"lmax": 2, "scale": 1.0},
    "TDN-0,1,3": {"lmax": 3, "degrees": (0, 1, 3), "scale": 1.0},
    "TDN-L2-SO(3)": {"lmax": 2, "scale": 1.0, "group": "SO(3)"},
}


def add_heads(potential: Potential, charges: bool = True) -> Potential:
    """The same network with random heads; its scales and offsets are not those of a new one."""
    torch.manual_seed(7)
    network = potential.representation
    heads: dict[str, Any] = {"dipole": DipoleReadout(network, charges=charges)}
    if network.feature_layout().of_degree(2) is not None:
        heads["polarizability"] = PolarizabilityReadout(network)
        heads["polarizability"].constants.references += torch.rand(
            len(heads["polarizability"].constants.references), dtype=torch.float64
        )
    for head in heads.values():
        head.constants.scale.fill_(1.5)
    scale = potential.atomic_scale
    return (
        Potential(
            network,
            potential.readout,
            elements=potential.elements,
            references=scale.references,
            scale=scale.scale.item(),
            repulsion=potential.repulsion,
            length_unit=potential.length_unit,
            energy_unit=potential.energy_unit,
            heads=heads,
        )
        .double()
        .eval()
    )


def bare(name: str) -> Potential:
    make = make_tdn if name.startswith("TDN") else make_potential
    return make(**MODELS[name])


@functools.cache
def model(name: str, charges: bool = True) -> Potential:
    return add_heads(bare(name), charges)


def properties(potential: Potential, *systems: System) -> dict[str, Array]:
    graph = batch_graphs([s.graph(potential.cutoff) for s in systems])
    with torch.no_grad():
        return {name: value.numpy() for name, value in potential.properties(graph).items()}
