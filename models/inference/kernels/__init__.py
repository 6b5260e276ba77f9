"""Fused operators for inference: energies, forces and virial in one pass, without autograd.

`fuse` chooses the implementation for a potential's device: `cpu` (Numba) or `cuda` (Triton). The
equations are in ``tests/support``, as plain functions against which the kernels are tested.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any, NamedTuple

from torch import nn

from ...heads.energy import EnergyReadout, Readout, ScalarReadout
from ...networks.base import Network
from ...networks.tdn import TDN
from ...networks.tensornet import TensorNet
from ...networks.tensornet2 import TensorNet2
from ...potential import Potential
from ..tables import TabulatedPotential
from .potential import FusedPotential

__all__ = ["fuse", "fused_problem"]


def fused_problem(potential: nn.Module) -> str | None:
    """Reason why there are no fused kernels for a potential on its device; None if there are."""
    if isinstance(potential, TabulatedPotential):
        return "the potential has tables already: fuse the one that it was made from"
    network: Any = getattr(potential, "representation", None)
    kernels = KERNELS.get(type(network))  # exactly these classes: others compute other things
    if (
        type(potential) is not Potential
        or kernels is None
        or type(potential.readout) is not kernels.readout
    ):
        architecture = getattr(potential, "architecture", type(potential).__name__)
        return f"there are no fused kernels for {architecture}"
    on_gpu = _on_gpu(potential)
    package = "triton" if on_gpu else "numba"
    problem = kernels.problem(network, on_gpu)
    if problem is None and importlib.util.find_spec(package) is None:
        return f"{package} is not installed: pip install {package}"
    return problem


def fuse(potential: Potential) -> FusedPotential:
    """A potential for inference only, ``Graph -> Prediction``, that runs as fused kernels.

    Parameters
    ----------
    potential
        Potential to fuse, which is not changed. The result has its device and dtype.

    Raises
    ------
    ValueError
        If there are no kernels for it; the message gives the reason.
    """
    problem = fused_problem(potential)
    if problem is not None:
        raise ValueError(problem)
    return KERNELS[type(potential.representation)].fuse(potential)


def _tensornet_problem(network: TensorNet, on_gpu: bool) -> str | None:
    if on_gpu and network.irreps != "IAS":
        return f"the kernels of a TensorNet with irreps {network.irreps} run only on a CPU"
    return None


def _fuse_tensornet(potential: Potential) -> FusedPotential:
    if _on_gpu(potential):
        from .cuda.operators import TritonOperators
        from .cuda.potential import CUDATensorNet

        return CUDATensorNet(potential, TritonOperators())
    from .cpu.tensornet_potential import CPUTensorNet

    return CPUTensorNet(potential)


def _tensornet2_problem(network: TensorNet2, on_gpu: bool) -> str | None:
    return "the kernels of TensorNet2 run only on a CPU" if on_gpu else None


def _fuse_tensornet2(potential: Potential) -> FusedPotential:
    from .cpu.tensornet2_potential import CPUTensorNet2

    return CPUTensorNet2(potential)


def _tdn_problem(network: TDN, on_gpu: bool) -> str | None:
    if on_gpu:
        return "the kernels of TDN run only on a CPU"
    if network.degrees == [0]:
        return "there are no fused kernels for a TDN with degree 0 only"
    return None


def _fuse_tdn(potential: Potential) -> FusedPotential:
    from .cpu.tdn_potential import CPUTDN

    return CPUTDN(potential)


class Kernels(NamedTuple):
    """The kernels of one network."""

    readout: type[Readout]
    """The only readout that the kernels compute."""
    problem: Callable[[Any, bool], str | None]
    """(network, whether on a GPU) -> reason why there are no kernels, or None."""
    fuse: Callable[[Potential], FusedPotential]
    """`fuse` for this network. It imports Numba or Triton, which are optional."""


KERNELS: dict[type[Network], Kernels] = {
    TensorNet: Kernels(EnergyReadout, _tensornet_problem, _fuse_tensornet),
    TensorNet2: Kernels(EnergyReadout, _tensornet2_problem, _fuse_tensornet2),
    TDN: Kernels(ScalarReadout, _tdn_problem, _fuse_tdn),
}
"""The networks that have kernels."""


def _on_gpu(potential: Potential) -> bool:
    return next(potential.parameters()).is_cuda
