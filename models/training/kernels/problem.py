"""Which trainings have a fused step; imports no kernels, which are optional."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence

import torch

from ...heads.energy import EnergyReadout, LinearHead, MLPHead
from ...networks.tensornet import TensorNet
from ...potential import Potential
from ...quantities import QUANTITIES


def fused_step_problem(
    potential: Potential, quantities: Sequence[str], device: torch.device
) -> str | None:
    """Reason why a step for these quantities cannot be fused on a device; None if it can."""
    network, readout = potential.representation, potential.readout
    if type(network) is not TensorNet or type(readout) is not EnergyReadout:
        return f"there is no fused training step for {potential.architecture}"
    if not isinstance(readout.head, (MLPHead, LinearHead)):
        return "there is no fused training step for a gated head"
    head = next((name for name in quantities if QUANTITIES[name].source is not None), None)
    if head is not None:
        return f"a fused training step has no {head}: energies and their derivatives only"
    if device.type != "cpu":
        return "the fused training step runs only on a CPU"
    if importlib.util.find_spec("numba") is None:
        return "numba is not installed: pip install numba"
    return None
