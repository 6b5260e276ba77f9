"""Fused operators for inference: energies, forces and virial in one pass, without autograd.

`fuse` picks the implementation of a potential's device: `cpu` (Numba) or `cuda` (Triton).
The plain-torch twin of every operator is in `equations`; `operator` makes all of it one operator
of torch.
"""

from __future__ import annotations

import importlib.util

import torch
from torch import nn

from ...heads.energy import EnergyReadout, ScalarReadout
from ...networks.tdn import TDN
from ...networks.tensornet import TensorNet
from ...potential import Potential
from ..tables import TabulatedPotential

__all__ = ["fuse", "fused_problem"]


def fused_problem(potential: nn.Module) -> str | None:
    """Why there are no fused kernels for a potential on its device, or None if there are."""
    if isinstance(potential, TabulatedPotential):
        return "the potential has tables already: fuse the one that it was made from"
    if not _has_kernels(potential):
        architecture = getattr(potential, "architecture", type(potential).__name__)
        return f"there are no fused kernels for {architecture}"
    assert isinstance(potential, Potential)
    network = potential.representation
    if _on_gpu(potential):
        if not isinstance(network, TensorNet):
            return f"the kernels of {potential.architecture} run on a CPU alone"
        if network.irreps != "IAS":
            return f"the kernels of a TensorNet of {network.irreps} alone run on a CPU"
    if isinstance(network, TDN) and network.degrees == [0]:
        return "there are no fused kernels for a TDN of degree 0 alone"
    package = "triton" if _on_gpu(potential) else "numba"
    if importlib.util.find_spec(package) is None:
        return f"{package} is not installed: pip install {package}"
    return None


NETWORKS: dict[type[nn.Module], type[nn.Module]] = {
    TensorNet: EnergyReadout,
    TDN: ScalarReadout,
}
"""Networks that have kernels, with their readouts."""


def _has_kernels(potential: nn.Module) -> bool:
    """For these very classes: another that inherits from them may compute something else."""
    return type(potential) is Potential and NETWORKS.get(type(potential.representation)) is type(
        potential.readout
    )


def fuse(potential: Potential) -> nn.Module:
    """A potential for inference alone, ``Graph -> Prediction``, that runs as fused kernels.

    Parameters
    ----------
    potential
        Its device and dtype are those of the result; it is left as it is.

    Raises
    ------
    ValueError
        If there are none for it: the reason.
    """
    problem = fused_problem(potential)
    if problem is not None:
        raise ValueError(problem)
    if _on_gpu(potential):
        from .cuda.operators import TritonOperators
        from .fused import FusedTensorNet

        return FusedTensorNet(potential, operators=TritonOperators())
    from .cpu import tdn_potential, tensornet_potential

    if isinstance(potential.representation, TensorNet):
        return tensornet_potential.FusedTensorNet(potential)
    return tdn_potential.FusedTDN(potential)


def _on_gpu(potential: Potential) -> bool:
    device: torch.device = next(potential.parameters()).device
    return device.type == "cuda"
