"""Screened nuclear repulsion at short distances."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .. import units
from ..graph import Graph
from ..maths.radial import CosineCutoff

SCREENING_LENGTH_ANGSTROM = 0.8854 * units.bohr_in_angstrom


class ZBLRepulsion(nn.Module):
    r"""ZBL pair energy.

    Ziegler, Biersack & Littmark, "The Stopping and Range of Ions in Solids" (1985), eqs. 9 and 10:

    .. math::
        E = \tfrac12 \sum_{i \ne j} k \frac{Z_i Z_j}{r_{ij}}\, \varphi(r_{ij} / a_{ij})\,
        \phi_c(r_{ij}), \qquad a_{ij} = \frac{a}{Z_i^{0.23} + Z_j^{0.23}}

    with the universal screening function :math:`\varphi` and the cosine cutoff
    :math:`\phi_c`, as in torchmd-net.

    Parameters
    ----------
    cutoff
        Cutoff distance, in the network's unit of length.
    coulomb
        Coulomb constant k, in the network's units of energy times length; default in eV Angstrom.
    screening_length
        Length a, in the network's unit of length; default in Angstrom.
    """

    def __init__(
        self,
        cutoff: float,
        coulomb: float = units.coulomb_ev_angstrom,
        screening_length: float = SCREENING_LENGTH_ANGSTROM,
    ) -> None:
        super().__init__()
        self.config = {
            "cutoff": float(cutoff),
            "coulomb": float(coulomb),
            "screening_length": float(screening_length),
        }
        self.cutoff = float(cutoff)
        self.coulomb = float(coulomb)
        self.screening_length = float(screening_length)
        self.envelope = CosineCutoff(cutoff)

    def forward(self, graph: Graph, vectors: Tensor) -> Tensor:
        """Energies of the atoms (N,): half of each pair's energy goes to each of its atoms."""
        i, j = graph.edge_index[0], graph.edge_index[1]
        charges = graph.numbers.to(vectors.dtype)
        z_i, z_j = charges.index_select(0, i), charges.index_select(0, j)
        distances = torch.linalg.vector_norm(vectors, dim=1)
        x = distances * (z_i**0.23 + z_j**0.23) / self.screening_length
        screening = (
            0.1818 * torch.exp(-3.2 * x)
            + 0.5099 * torch.exp(-0.9423 * x)
            + 0.2802 * torch.exp(-0.4029 * x)
            + 0.02817 * torch.exp(-0.2016 * x)
        )
        coulomb = 0.5 * self.coulomb * z_i * z_j / distances
        energies = coulomb * screening * self.envelope(distances)
        return torch.zeros_like(charges).index_add(0, i, energies)
