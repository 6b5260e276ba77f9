"""The base class of potentials that run as fused kernels, on any device."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from ...graph import Graph, displacements, within
from ...maths.splines import RadialTable
from ...parts import Part
from ...potential import Potential, Prediction, assemble, parse_dtype
from ..tables import build_table


class FusedPotential(nn.Module):
    """Energies, forces and virial of a `Potential`, for inference.

    Tables replace the radial networks (see `tables`), the derivatives are coded by hand, and
    there is no autograd tape. Graphs may hold any number of systems, edges beyond the cutoff, and
    atoms without neighbours.

    Parameters
    ----------
    potential
        Potential whose weights are copied; its dtype and device are used for the arithmetic.
    table
        Table of the network's edge factors, in float64; None builds it.

    Raises
    ------
    ValueError
        If the potential is neither float32 nor float64.
    """

    engine: str
    """Name of the implementation, shown to users."""
    evaluates_parts = False
    """Whether it takes parts of a system."""
    computes: tuple[str, ...] = ()
    """Names of the properties that it gives beside energies and forces; see `properties`."""
    kernel_folder: Path | None = None
    """Folder of the compiled kernels, whose name tells versions and processor; None: not kept."""

    def __init__(self, potential: Potential, table: RadialTable | None = None) -> None:
        super().__init__()
        self.dtype = parse_dtype(potential.dtype)
        self.cutoff = potential.cutoff
        self.length_in_angstrom = potential.length_in_angstrom
        self.energy_in_ev = potential.energy_in_ev
        self.atomic_scale = copy.deepcopy(potential.atomic_scale)
        self.repulsion = copy.deepcopy(potential.repulsion)
        if table is None:
            table, self.table_info = build_table(potential)
        self.table = table

    def forward(self, graph: Graph, part: Part | None = None) -> Prediction:
        """Energies, forces and virials of the systems of a graph, in eV and Angstrom.

        With a ``part``, the graph is a part of one system, and energies of its own atoms count.
        """
        prediction = self.evaluate(graph) if part is None else self.evaluate_part(graph, part)
        if self.repulsion is None:
            return prediction
        near, vectors = graph, displacements(graph)
        if not vectors.is_cuda:  # on CUDA, counting the pairs would wait for the device
            near, vectors = within(graph, self.repulsion.cutoff * self.length_in_angstrom)
        vectors = vectors.detach().requires_grad_(True)
        with torch.set_grad_enabled(True):
            energies = self.repulsion(near, vectors / self.length_in_angstrom) * self.energy_in_ev
            if part is not None:
                energies = energies * (torch.arange(len(energies)) < part.shells[0])
            gradient = torch.autograd.grad([energies.sum()], [vectors])[0]
        pairs = assemble(near, energies.detach(), vectors.detach(), gradient)
        return Prediction(*(a + b for a, b in zip(prediction, pairs, strict=True)))

    def evaluate(self, graph: Graph) -> Prediction:
        """The prediction without the short-range repulsion."""
        raise NotImplementedError

    def evaluate_part(self, graph: Graph, part: Part) -> Prediction:
        """The same for a part of a system, where the class ``evaluates_parts``."""
        raise NotImplementedError

    def properties(self, graph: Graph, names: Sequence[str]) -> dict[str, Tensor]:
        """Properties of a graph, float64, in the units of `quantities`; ``names``: of them."""
        raise NotImplementedError

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> FusedPotential:
        raise ValueError(
            "a fused potential keeps its dtype and its device: convert the potential that it was "
            "made from, and fuse that"
        )


class Versions:
    """Tensors and their versions, to recognise the same tensors if nothing was written to them."""

    def __init__(self, *tensors: Tensor) -> None:
        self._known = [(tensor, _version(tensor)) for tensor in tensors]

    def are(self, *tensors: Tensor) -> bool:
        """Whether these are the same tensor objects, unchanged."""
        for new, (old, version) in zip(tensors, self._known, strict=True):
            if new is not old or version is None or new._version != version:
                return False
        return True


def _version(tensor: Tensor) -> int | None:
    """Number of writes to a tensor; None where torch does not count them (inference mode)."""
    return None if tensor.is_inference() else tensor._version
