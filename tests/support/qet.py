"""Small random QET potentials for tests."""

from __future__ import annotations

from typing import Any

import torch
from support.helpers import CUTOFF, ELEMENTS

from tensormd.models import QET, Potential


def make_qet(seed: int = 0, *, gain: float = 1.7, scale: float = 3.0, **network: Any) -> Potential:
    """A potential in float64 for evaluation; no bias is zero, and no hardness is one."""
    options = {"channels": 16, "layers": 2, "radial_functions": 8, "cutoff": CUTOFF} | network
    torch.manual_seed(seed)
    representation = QET(max_number=16, **options)
    readout = representation.new_readout()
    with torch.no_grad():
        for module in (representation, readout):
            for name, parameter in module.named_parameters():
                if parameter.ndim > 1:
                    parameter *= gain
                elif name in ("hardness.values", "widths"):
                    parameter += torch.rand_like(parameter)
                else:
                    parameter += 0.2 * torch.randn_like(parameter)
    return Potential(representation, readout, elements=ELEMENTS, scale=scale).double().eval()
