"""Fused operators for inference: energies, forces and virial in one pass, without autograd.

`fuse` picks the implementation of a potential's device: `cpu` (Numba) or `cuda` (Triton). The
equations, as plain functions that the kernels are tested against, are in ``tests/support``.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import nn

from ...heads.energy import EnergyReadout, Readout, ScalarReadout
from ...networks.base import Network
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
    problem = KERNELS[type(network)].problem(network, _on_gpu(potential))
    if problem is not None:
        return problem
    package = "triton" if _on_gpu(potential) else "numba"
    if importlib.util.find_spec(package) is None:
        return f"{package} is not installed: pip install {package}"
    return None


def _has_kernels(potential: nn.Module) -> bool:
    """For these very classes: another that inherits from them may compute something else."""
    if type(potential) is not Potential:
        return False
    kernels = KERNELS.get(type(potential.representation))
    return kernels is not None and kernels.readout is type(potential.readout)


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
    return KERNELS[type(potential.representation)].fuse(potential)


def _tensornet_problem(network: TensorNet, on_gpu: bool) -> str | None:
    if on_gpu and network.irreps != "IAS":
        return f"the kernels of a TensorNet of {network.irreps} alone run on a CPU"
    return None


def _fuse_tensornet(potential: Potential) -> nn.Module:
    if _on_gpu(potential):
        from .cuda.operators import TritonOperators
        from .cuda.potential import CUDATensorNet

        return CUDATensorNet(potential, TritonOperators())
    from .cpu.tensornet_potential import CPUTensorNet

    return CPUTensorNet(potential)


def _tdn_problem(network: TDN, on_gpu: bool) -> str | None:
    if on_gpu:
        return "the kernels of TDN run on a CPU alone"
    if network.degrees == [0]:
        return "there are no fused kernels for a TDN of degree 0 alone"
    return None


def _fuse_tdn(potential: Potential) -> nn.Module:
    from .cpu.tdn_potential import CPUTDN

    return CPUTDN(potential)


class Kernels(NamedTuple):
    """The kernels of one network."""

    readout: type[Readout]
    """The only readout that they compute."""
    problem: Callable[[Any, bool], str | None]
    """Why there are none for a network, on a GPU or not; None: there are."""
    fuse: Callable[[Potential], nn.Module]
    """`fuse`, of this network. Numba and Triton are optional: they are imported here."""


KERNELS: dict[type[Network], Kernels] = {
    TensorNet: Kernels(EnergyReadout, _tensornet_problem, _fuse_tensornet),
    TDN: Kernels(ScalarReadout, _tdn_problem, _fuse_tdn),
}
"""Networks that have kernels."""


def _on_gpu(potential: Potential) -> bool:
    device: torch.device = next(potential.parameters()).device
    return device.type == "cuda"
