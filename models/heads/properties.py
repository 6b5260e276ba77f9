r"""Dipole and polarizability from the equivariant features of a network.

TensorNet's antisymmetric part is built from the direction of an edge, and its layers (products
XY + YX, squares) take the transpose to the transpose: under inversion :math:`X \to X^T`, so that
A is a polar vector and S an even tensor. TDN's degrees 1 and 2 are the same two. With SO(3) both
rotate as they should, and mirror images may differ in more than a sign.

Notation: x features, N atoms in B systems, F channels; :math:`q_i` charges, :math:`\mu_i` atomic
dipoles, Q the charge of a system. ``docs/reference/properties.md`` has the definitions.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from ase.data import atomic_masses
from torch import Tensor, nn

from ..graph import Graph
from ..maths.double import DoubleConstants
from ..networks.base import Network

MASSES = torch.tensor(np.asarray(atomic_masses), dtype=torch.float64)
"""Standard atomic weights by atomic number, u."""
NO_DIPOLE = (
    "the dipole of a periodic system is not defined (only up to charges times lattice vectors): "
    "ask for that of a molecule"
)


class HeadConstants(DoubleConstants):
    """What turns outputs into e A, or into e^2 A^2/eV.

    Parameters
    ----------
    elements
        Size of the table of references; None: there is none.
    fixed
        A table that is no part of the weights.
    """

    scale: Tensor
    references: Tensor
    fixed: Tensor

    def __init__(self, elements: int | None, fixed: Tensor) -> None:
        super().__init__()
        self.register_buffer("scale", torch.ones((), dtype=torch.float64))
        if elements is not None:
            self.register_buffer("references", torch.zeros(elements, dtype=torch.float64))
        self.register_buffer("fixed", fixed.clone(), persistent=False)


class GatedReadout(nn.Module):
    r"""One number, and one gated sum over the channels of an irrep, for each atom.

    .. math:: (s_i, g_i) = \mathrm{MLP}(\mathrm{LayerNorm}(h_i)), \qquad
        y_i = \sum_c g_{ic} \sum_f W_{cf} x_{if}

    with h the invariants of the atom (see `FeatureLayout`; TensorNet: squared norms of I, A and
    S; TDN: degree 0) and x the components of the irrep.
    """

    constants: HeadConstants

    def __init__(self, representation: nn.Module, degree: int, needed_for: str) -> None:
        super().__init__()
        kind = {1: "vector", 2: "tensor"}[degree]
        if not isinstance(representation, Network):
            raise ValueError(
                f"a {type(representation).__name__} has no vectors or tensors that are known: "
                "expected a network, such as a TensorNet or a TDN"
            )
        self.layout = representation.feature_layout()
        place = self.layout.of_degree(degree)
        if place is None:
            raise ValueError(
                f"a {needed_for} needs the {kind} part of the features (TensorNet: "
                f"{'A' if degree == 1 else 'S'}; TDN: l = {degree}), and this "
                f"{type(representation).__name__} has none: take a network that has it"
            )
        self.place: slice = place
        channels = representation.channels
        width = channels * self.layout.invariants_per_channel
        self.norm = nn.LayerNorm(width)
        self.network = nn.Sequential(
            nn.Linear(width, channels),
            nn.SiLU(),
            nn.Linear(channels, channels),
            nn.SiLU(),
            nn.Linear(channels, 1 + channels),
        )
        self.mix = nn.Linear(channels, channels, bias=False)
        self.config: dict[str, Any] = {}

    def read(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Features -> numbers (N,) and components (N, 3 or 5), float64 and scaled."""
        x = self.layout.by_atom(x)
        outputs = self.network(self.norm(self.layout.invariants(x)))
        gated = (self.mix(x[:, self.place]) * outputs[:, 1:].unsqueeze(1)).sum(2)
        scale = self.constants.scale
        return scale * outputs[:, 0].double(), scale * gated.double()


class DipoleReadout(GatedReadout):
    r"""Dipole of each system from atomic charges and atomic dipoles.

    .. math::
        \mu = \sum_i q_i (r_i - R) + \mu_i, \qquad
        q_i \leftarrow q_i + \frac{1}{N} \Big( Q - \sum_j q_j \Big)

    with R the centre of mass (standard atomic weights). The corrected charges sum to Q: the
    dipole of a neutral system depends on no origin, that of an ion is taken at R.

    Parameters
    ----------
    representation
        The network whose features are read; it is not kept.
    charges
        False leaves :math:`\sum_i \mu_i`: strictly a sum of local terms, and for a neutral
        system whose charges move no further than the network sees all that is needed.

    Raises
    ------
    ValueError
        If the network has no vectors.
    """

    def __init__(self, representation: nn.Module, charges: bool = True) -> None:
        super().__init__(representation, 1, "dipole")
        self.constants = HeadConstants(None, MASSES)
        self.config = {"charges": bool(charges)}

    def forward(self, x: Tensor, graph: Graph) -> Tensor:
        """Features of the atoms of a graph -> (B, 3), e A, float64."""
        numbers, dipoles = self.read(x)
        if self.config["charges"]:
            dipoles = dipoles + self._neutral(numbers, graph).unsqueeze(1) * self._arms(graph)
        return _sum(dipoles, graph)

    def charges(self, x: Tensor, graph: Graph) -> Tensor:
        """Charges of the atoms, (N,) e, which sum to the charge of their system.

        Raises
        ------
        ValueError
            If the readout has none.
        """
        if not self.config["charges"]:
            raise ValueError("this dipole readout was made with charges=False: it has none")
        return self._neutral(self.read(x)[0], graph)

    def _neutral(self, numbers: Tensor, graph: Graph) -> Tensor:
        missing = graph.charge - _sum(numbers, graph)
        share = missing / _sum(torch.ones_like(numbers), graph)
        return numbers + share.index_select(0, graph.system)

    def _arms(self, graph: Graph) -> Tensor:
        """Positions (N, 3) relative to the centre of mass of their system."""
        masses = self.constants.fixed[graph.numbers].unsqueeze(1)
        center = _sum(masses * graph.positions, graph) / _sum(masses, graph)
        return graph.positions - center.index_select(0, graph.system)

    def standardise(self, graphs: Sequence[Graph], dipoles: Sequence[Tensor]) -> None:
        """Set the scale so that outputs of order one make dipoles as large as these.

        Parameters
        ----------
        graphs
            One of each label.
        dipoles
            (3,), e A, or lengths ().
        """
        square = np.mean([float(d.square().sum()) for d in dipoles])
        atoms = np.mean([len(graph.numbers) for graph in graphs])
        scale = math.sqrt(square / 3 / atoms)
        self.constants.scale.fill_(scale if scale > 0 else 1.0)


class PolarizabilityReadout(GatedReadout):
    r"""Polarizability of each system: a number and a traceless tensor of every atom.

    .. math:: \alpha = \sum_i \left( \alpha_{ref}(Z_i) + a_i \right) \mathbb{1} + S_i

    There is no term of positions (as PaiNN has one): what it adds grows with the distance of
    fragments.

    Parameters
    ----------
    representation
        The network whose features are read; it is not kept.

    Raises
    ------
    ValueError
        If the network has no tensors of rank two.
    """

    def __init__(self, representation: nn.Module) -> None:
        super().__init__(representation, 2, "polarizability")
        assert isinstance(representation, Network)
        basis = self.layout.tensor_basis
        self.constants = HeadConstants(representation.max_number, basis.reshape(5, 9))

    def forward(self, x: Tensor, graph: Graph) -> Tensor:
        """Features of the atoms of a graph -> (B, 3, 3), e^2 A^2/eV, symmetric, float64."""
        isotropic, components = self.read(x)
        isotropic = isotropic + self.constants.references[graph.numbers]
        one = torch.eye(3, dtype=torch.float64, device=isotropic.device)
        tensors = (components @ self.constants.fixed).view(-1, 3, 3)
        return _sum(isotropic[:, None, None] * one + tensors, graph)

    def standardise(self, graphs: Sequence[Graph], polarizabilities: Sequence[Tensor]) -> None:
        """Fit the isotropic polarizability of each element, and scale outputs to what is left.

        Parameters
        ----------
        graphs
            One of each label.
        polarizabilities
            (3, 3), e^2 A^2/eV, or isotropic parts ().
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
        # Labels that references fit to rounding leave a scale all the same.
        least = 1e-3 * float(isotropic.abs().mean()) / atoms
        scale = max(math.sqrt(float(left.square().mean()) / atoms), least)
        self.constants.references.copy_(found)
        self.constants.scale.fill_(scale if scale > 0 else 1.0)


def _sum(values: Tensor, graph: Graph) -> Tensor:
    """(N, ...) summed over the atoms of each system, (B, ...)."""
    total = values.new_zeros([graph.charge.shape[0], *values.shape[1:]])
    return total.index_add(0, graph.system, values)


Head = DipoleReadout | PolarizabilityReadout
HEADS: dict[str, type[Head]] = {
    "dipole": DipoleReadout,
    "polarizability": PolarizabilityReadout,
}
"""Readouts by the property that they give."""
