r"""Dipole of each system from the equivariant features of a network.

Notation: x features, N atoms in B systems; :math:`q_i` charges, :math:`\mu_i` atomic dipoles, Q
the charge of a system. ``docs/reference/properties.md`` has the definitions.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from ase.data import atomic_masses
from torch import Tensor, nn

from ..graph import Graph
from .base import HeadConstants, sum_over_atoms
from .gated import GatedReadout

MASSES = torch.tensor(np.asarray(atomic_masses), dtype=torch.float64)
"""Standard atomic weights by atomic number, u."""
NO_DIPOLE = (
    "the dipole of a periodic system is not defined (only up to charges times lattice vectors): "
    "ask for that of a molecule"
)


class DipoleReadout(GatedReadout):
    r"""Dipole of each system from atomic charges and atomic dipoles.

    .. math::
        \mu = \sum_i q_i (r_i - R) + \mu_i, \qquad
        q_i \leftarrow q_i + \frac{1}{N} \Big( Q - \sum_j q_j \Big)

    with R the centre of mass (standard atomic weights). The corrected charges sum to Q: the
    dipole of a neutral system does not depend on the origin, that of an ion refers to R.

    Parameters
    ----------
    representation
        Network whose features are read; the head does not keep it.
    charges
        Whether there are atomic charges. False leaves :math:`\sum_i \mu_i`, strictly a sum of
        local terms; this suffices for a neutral system without charge transfer beyond the range
        of the network.

    Raises
    ------
    ValueError
        If the network's features have no vectors.
    """

    degree = 1

    def __init__(self, representation: nn.Module, charges: bool = True) -> None:
        super().__init__(representation, "dipole", charges=bool(charges))
        self.constants = HeadConstants(fixed=MASSES)

    def forward(self, x: Tensor, graph: Graph) -> Tensor:
        """Features of the atoms of a graph -> (B, 3), e A, float64."""
        numbers, dipoles = self.read(x)
        if self.config["charges"]:
            dipoles = dipoles + self._neutral(numbers, graph).unsqueeze(1) * self._arms(graph)
        return sum_over_atoms(dipoles, graph)

    def charges(self, x: Tensor, graph: Graph) -> Tensor:
        """Charges of the atoms, (N,), e; they sum to the charge of their system.

        Raises
        ------
        ValueError
            If the readout has no charges.
        """
        if not self.config["charges"]:
            raise ValueError("this dipole readout was made with charges=False: it has none")
        return self._neutral(self.read(x)[0], graph)

    def _neutral(self, numbers: Tensor, graph: Graph) -> Tensor:
        missing = graph.charge - sum_over_atoms(numbers, graph)
        share = missing / sum_over_atoms(torch.ones_like(numbers), graph)
        return numbers + share.index_select(0, graph.system)

    def _arms(self, graph: Graph) -> Tensor:
        """Positions (N, 3) relative to the centre of mass of their system."""
        masses = self.constants.fixed[graph.numbers].unsqueeze(1)
        center = sum_over_atoms(masses * graph.positions, graph) / sum_over_atoms(masses, graph)
        return graph.positions - center.index_select(0, graph.system)

    def standardise(self, graphs: Sequence[Graph], dipoles: Sequence[Tensor]) -> None:
        """Set the scale so that outputs of order one give dipoles of this size.

        Parameters
        ----------
        graphs
            Graph of each label.
        dipoles
            Dipoles (3,) or their lengths (), e A.
        """
        square = np.mean([float(d.square().sum()) for d in dipoles])
        atoms = np.mean([len(graph.numbers) for graph in graphs])
        scale = math.sqrt(square / 3 / atoms)
        self.constants.scale.fill_(scale if scale > 0 else 1.0)


def length(vectors: Tensor) -> Tensor:
    """Lengths of vectors, (B, d) -> (B,); the gradient of a zero vector is zero."""
    return (vectors.square().sum(1) + 1e-24).sqrt()


def along_x(lengths: Tensor) -> Tensor:
    """Vectors (..., 3) along x with lengths (...)."""
    return lengths.unsqueeze(-1) * lengths.new_tensor([1.0, 0.0, 0.0])
