"""Screened nuclear repulsion at short distances: torchmd-net's prior, and that of TensorNet2."""

from collections.abc import Mapping
from typing import Any

import torch
from ase.data import covalent_radii
from torch import Tensor, nn

from .. import units
from ..graph import Graph
from ..maths.double import DoubleConstants
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
        screening = zbl_screening(distances * (z_i**0.23 + z_j**0.23) / self.screening_length)
        coulomb = 0.5 * self.coulomb * z_i * z_j / distances
        energies = coulomb * screening * self.envelope(distances)
        return torch.zeros_like(charges).index_add(0, i, energies)


def zbl_screening(x: Tensor) -> Tensor:
    """The universal screening function of reduced distances (E,)."""
    return (
        0.1818 * torch.exp(-3.2 * x)
        + 0.5099 * torch.exp(-0.9423 * x)
        + 0.2802 * torch.exp(-0.4029 * x)
        + 0.02817 * torch.exp(-0.2016 * x)
    )


SCREENING_EXPONENT = 0.3
SCREENING_RADIUS_ANGSTROM = 0.4543 / 1.8897261258369282
"""Length a of `CovalentRepulsion` as in torchmd-net, with its value of the bohr."""
COULOMB_EV_ANGSTROM = 14.399645
"""Coulomb constant with which torchmd-net trains weights beside this repulsion."""


class CovalentRepulsion(DoubleConstants):
    r"""ZBL pair energy that ends at the sum of the covalent radii.

    The repulsion of TensorNet2 in torchmd-net 3.1.0 (``RepulsionZBL``):

    .. math::
        E &= \tfrac12 \sum_{i \ne j} k \frac{Z_i Z_j}{r_{ij}}\, \varphi(r_{ij} / a_{ij})\,
        p(r_{ij} / (R_i + R_j)), \qquad a_{ij} = \frac{a}{Z_i^{0.3} + Z_j^{0.3}} \\
        p(x) &= 1 - 28 x^6 + 48 x^7 - 21 x^8 \text{ for } x < 1, \text{ else } 0

    with the screening function :math:`\varphi` of `ZBLRepulsion` and the covalent radii R of
    Cordero et al. (Dalton Trans. 2008, 2832). Powers and radii are part of the weights, because
    torchmd-net keeps them in its checkpoints.

    Parameters
    ----------
    elements
        Size of the table of elements.
    cutoff
        Longest distance of a pair, in the network's unit of length.
    coulomb
        Coulomb constant k, in the network's units of energy times length; default in eV Angstrom.
    screening_length
        Length a, in the network's unit of length; default in Angstrom.
    """

    powers: Tensor
    radii: Tensor

    def __init__(
        self,
        elements: int,
        cutoff: float,
        coulomb: float = COULOMB_EV_ANGSTROM,
        screening_length: float = SCREENING_RADIUS_ANGSTROM,
    ) -> None:
        super().__init__()
        if not 1 < elements <= len(covalent_radii):
            raise ValueError(
                f"elements is {elements}: expected 2 to {len(covalent_radii)}, as many as there "
                "are covalent radii"
            )
        self.config = {
            "kind": "covalent",
            "elements": int(elements),
            "cutoff": float(cutoff),
            "coulomb": float(coulomb),
            "screening_length": float(screening_length),
        }
        self.cutoff = float(cutoff)
        self.coulomb = float(coulomb)
        self.screening_length = float(screening_length)
        numbers = torch.arange(elements, dtype=torch.float64)
        self.register_buffer("powers", numbers**SCREENING_EXPONENT)
        self.register_buffer("radii", torch.tensor(covalent_radii[:elements]).double())

    def forward(self, graph: Graph, vectors: Tensor) -> Tensor:
        """Energies of the atoms (N,): half of each pair's energy goes to each of its atoms."""
        i, j = graph.edge_index[0], graph.edge_index[1]
        numbers = graph.numbers.to(vectors.dtype)
        powers = self.powers.to(vectors.dtype).index_select(0, graph.numbers)
        radii = self.radii.to(vectors.dtype).index_select(0, graph.numbers)
        distances = torch.linalg.vector_norm(vectors, dim=1)
        x = distances * (powers.index_select(0, i) + powers.index_select(0, j))
        screening = zbl_screening(x / self.screening_length)
        ends = radii.index_select(0, i) + radii.index_select(0, j)
        rho = (distances / ends).clamp(max=1.0)
        envelope = 1 - 28 * rho**6 + 48 * rho**7 - 21 * rho**8
        inside = (distances < ends) & (distances < self.cutoff)
        charges = numbers.index_select(0, i) * numbers.index_select(0, j)
        energies = 0.5 * self.coulomb * charges / distances * screening * envelope * inside
        return torch.zeros_like(numbers).index_add(0, i, energies)


Repulsion = ZBLRepulsion | CovalentRepulsion
"""Short-range pair energies of a potential."""
REPULSIONS: dict[str, type[Repulsion]] = {"zbl": ZBLRepulsion, "covalent": CovalentRepulsion}
"""Kinds in descriptions of potentials; files without a kind have the first one."""


def repulsion_from(config: Mapping[str, Any]) -> Repulsion:
    """A repulsion from its description.

    Raises
    ------
    ValueError
        If its kind is unknown.
    """
    options = dict(config)
    kind = options.pop("kind", "zbl")
    if kind not in REPULSIONS:
        raise ValueError(
            f"unknown repulsion {kind!r}: expected one of {', '.join(REPULSIONS)}; a newer "
            "tensormd may know it"
        )
    return REPULSIONS[kind](**options)
