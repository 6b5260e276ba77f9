"""Polarizability of each system from the equivariant features of a network."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..graph import Graph
from ..networks.base import Network
from .base import HeadConstants, sum_over_atoms
from .gated import GatedReadout


class PolarizabilityReadout(GatedReadout):
    r"""Polarizability of each system: a scalar and a traceless tensor for every atom.

    .. math:: \alpha = \sum_i \left( \alpha_{ref}(Z_i) + a_i \right) \mathbb{1} + S_i

    Unlike in PaiNN, no term depends on positions: such a term grows with the distance between
    fragments.

    Parameters
    ----------
    representation
        Network whose features are read; the head does not keep it.

    Raises
    ------
    ValueError
        If the network's features have no rank-2 tensors.
    """

    degree = 2

    def __init__(self, representation: nn.Module) -> None:
        super().__init__(representation, "polarizability")
        assert isinstance(representation, Network)
        basis = self.layout.tensor_basis
        self.constants = HeadConstants(representation.max_number, basis.reshape(5, 9))

    def forward(self, x: Tensor, graph: Graph) -> Tensor:
        """Features of the atoms of a graph -> (B, 3, 3), e^2 A^2/eV, symmetric, float64."""
        isotropic, components = self.read(x)
        isotropic = isotropic + self.constants.references[graph.numbers]
        one = torch.eye(3, dtype=torch.float64, device=isotropic.device)
        tensors = (components @ self.constants.fixed).view(-1, 3, 3)
        return sum_over_atoms(isotropic[:, None, None] * one + tensors, graph)

    def standardise(self, graphs: Sequence[Graph], polarizabilities: Sequence[Tensor]) -> None:
        """Fit an isotropic polarizability for each element, and scale outputs to the remainder.

        Parameters
        ----------
        graphs
            Graph of each label.
        polarizabilities
            Polarizabilities (3, 3) or their isotropic parts (), e^2 A^2/eV.
        """
        labels = torch.stack([p.double().cpu() for p in polarizabilities])
        one = torch.eye(3, dtype=torch.float64)
        isotropic = labels if labels.ndim == 1 else labels.diagonal(dim1=1, dim2=2).mean(1)
        size = len(self.constants.references)
        counts = torch.stack([torch.bincount(g.numbers.cpu(), minlength=size) for g in graphs])
        counts = counts.double()
        found = torch.linalg.lstsq(counts, isotropic.unsqueeze(1), driver="gelsd").solution[:, 0]
        left = isotropic - counts @ found
        if labels.ndim > 1:
            left = labels - (isotropic - left)[:, None, None] * one
        atoms = float(counts.sum(1).mean())
        # The scale must not vanish if the references fit the labels to rounding.
        least = 1e-3 * float(isotropic.abs().mean()) / atoms
        scale = max(math.sqrt(float(left.square().mean()) / atoms), least)
        self.constants.references.copy_(found)
        self.constants.scale.fill_(scale if scale > 0 else 1.0)


def isotropic(tensors: Tensor) -> Tensor:
    """A third of the trace, (B, 3, 3) -> (B,)."""
    return tensors.diagonal(dim1=1, dim2=2).sum(1) / 3


def anisotropy(tensors: Tensor) -> Tensor:
    """sqrt(3/2) times the Frobenius norm of the traceless part, (B, 3, 3) -> (B,).

    For an axial molecule it is the difference of the two principal values.
    """
    one = torch.eye(3, dtype=tensors.dtype, device=tensors.device)
    rest = tensors - isotropic(tensors).view(-1, 1, 1) * one
    return 1.5**0.5 * (rest.flatten(1).square().sum(1) + 1e-24).sqrt()


def spherical(thirds: Tensor) -> Tensor:
    """Multiples (..., 3, 3) of the unit matrix, from thirds of the trace (...)."""
    one = torch.eye(3, dtype=thirds.dtype, device=thirds.device)
    return thirds[..., None, None] * one
