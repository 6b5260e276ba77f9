"""Small random TensorNet2 potentials for tests."""

from __future__ import annotations

from typing import Any

import torch
from support.helpers import CUTOFF, ELEMENTS

from tensormd.models import Potential
from tensormd.models.heads.coulomb import CoulombEnergy
from tensormd.models.heads.repulsion import CovalentRepulsion
from tensormd.models.networks.tensornet2 import TensorNet2

REACTION_FIELD = 5.05
"""A short Coulomb cutoff, A, so that small systems have pairs beyond it."""


def make_tensornet2(
    seed: int = 0,
    *,
    coulomb: float | None = None,
    repulsion: bool = False,
    weights: list[float] | None = None,
    gain: float = 1.7,
    scale: float = 3.0,
    **network: Any,
) -> Potential:
    """A potential in float64 for evaluation; ``coulomb``: cutoff, infinity for all pairs."""
    options = {"channels": 16, "layers": 2, "charge_channels": 4, "radial_functions": 8}
    options |= {"cutoff": CUTOFF, "max_number": 16} | network
    torch.manual_seed(seed)
    representation = TensorNet2(**options)
    readout = representation.new_readout()
    with torch.no_grad():
        for module in (representation, readout):
            for parameter in module.parameters():
                if parameter.ndim > 1:
                    parameter *= gain
                else:
                    parameter += 0.1 * torch.randn_like(parameter)
        for name, parameter in representation.named_parameters():
            if name.endswith("charges.network.4.bias"):
                # Shares of order one, beside which the 1e-6 of the formula is small.
                parameter[len(parameter) // 2 :] += 1.0
    energy = None
    if coulomb is not None:
        levels = representation.charge_levels
        cutoff = None if coulomb == float("inf") else coulomb
        energy = CoulombEnergy(
            weights or [float(k + 1) for k in range(levels)], options["charge_channels"], cutoff
        )
    potential = Potential(
        representation,
        readout,
        elements=ELEMENTS,
        scale=scale,
        repulsion=CovalentRepulsion(options["max_number"], CUTOFF) if repulsion else None,
        coulomb=energy,
    )
    return potential.double().eval()
