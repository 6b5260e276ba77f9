r"""QET: a TensorNet whose atoms have charges, from an equilibrium of electronegativities.

The charge-equilibrated TensorNet of matgl 4 (``matgl.models.QET``; Ko, Liu, Ong et al.,
arXiv:2511.07249). Charges minimise :math:`\sum_i \chi_i q_i + \tfrac12 \eta_i q_i^2` for the total
charge Q of their system, which has a closed solution; the energy reads them, and the potential
that the charges of the neighbours cause.

Notation: s scalars (N, F) of N atoms and F channels, r distances (E,) of E edges, i receives from
j. Lengths are in the units of the network's cutoff, Angstrom for published models.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from ase.data import covalent_radii
from torch import Tensor, nn

from ..graph import Graph, Pairs
from ..heads.energy import GatedReadout, Readout
from ..maths.activations import activation as activation_of
from ..maths.cartesian import BASIS, ROWS, irrep_norms_squared
from .base import FeatureLayout, Network, consecutive_irreps
from .tensornet import TensorNet

COULOMB = 14.399645478425668
"""e^2 / (4 pi epsilon_0) in eV A, as matgl has it: outputs are in eV."""
HARDNESSES = ("element", "surroundings")


class QET(Network):
    r"""Scalars of every atom, its charge, and the potential of its neighbours' charges.

    .. math::
        s_i &= W \, \mathrm{LayerNorm}([\|I_i\|^2, \|A_i\|^2, \|S_i\|^2]), \qquad
        \chi_i = \mathrm{MLP}(s_i) \\
        q_i &= \frac{1}{\eta_i} \left( \frac{Q + \sum_k \chi_k / \eta_k}{\sum_k 1 / \eta_k}
        - \chi_i \right) \\
        V_i &= k \sum_j \frac{q_j}{r_{ij}} \,
        \mathrm{erf}\!\left( \frac{r_{ij}}{\sqrt{2 (\sigma_i^2 + \sigma_j^2)}} \right) f(r_{ij}),
        \quad f = 1 - 10 x^3 + 15 x^4 - 6 x^5, \; x = r / r_c

    with the features I, A and S of a `TensorNet`, and k over the atoms of a system. TensorNet's
    factor 1 + Q / 10 is absent.

    Parameters
    ----------
    channels
        Number of features per atom and component, F.
    layers
        Number of interaction layers; 0: only the embedding.
    radial_functions
        Number of radial functions, K.
    radial
        Name of the radial basis: ``expnorm``, ``gauss`` or ``bessel``.
    trainable_radial
        Whether the parameters of the radial basis are trained.
    activation
        Name of the TensorNet's activation function (see `activations.ACTIVATIONS`).
    cutoff
        Cutoff distance, in the network's unit of length.
    max_number
        Size of the table of elements: atomic numbers below it can be embedded.
    group
        ``O(3)``: the energy is invariant under inversion; ``SO(3)``: it need not be.
    hardness
        One hardness for each ``element``, or from an atom's ``surroundings`` by a perceptron of
        its scalars.
    trainable_widths
        Whether the widths of the elements are trained; at first, they are the covalent radii.

    Raises
    ------
    ValueError
        If an option is unknown or out of range.
    """

    def __init__(
        self,
        *,
        channels: int = 64,
        layers: int = 2,
        radial_functions: int = 32,
        radial: str = "expnorm",
        trainable_radial: bool = False,
        activation: str = "silu",
        cutoff: float = 5.0,
        max_number: int = 96,
        group: str = "O(3)",
        hardness: str = "element",
        trainable_widths: bool = False,
    ) -> None:
        if hardness not in HARDNESSES:
            raise ValueError(
                f"unknown hardness {hardness!r}: expected one of {', '.join(HARDNESSES)}"
            )
        if max_number > len(covalent_radii):
            raise ValueError(
                f"max_number is {max_number}: expected at most {len(covalent_radii)}, as many as "
                "there are covalent radii"
            )
        options: dict[str, Any] = {
            "channels": channels,
            "layers": layers,
            "radial_functions": radial_functions,
            "radial": radial,
            "trainable_radial": trainable_radial,
            "activation": activation,
            "cutoff": float(cutoff),
            "max_number": max_number,
            "group": group,
        }
        super().__init__(
            {**options, "hardness": hardness, "trainable_widths": trainable_widths},
            channels=channels,
            cutoff=cutoff,
            max_number=max_number,
        )
        self.charge_levels = 1
        self.charge_channels = 1
        self.coulomb = COULOMB
        self.network = TensorNet(**options, self_interaction=False)
        self.norm = nn.LayerNorm(3 * channels)
        self.linear = nn.Linear(3 * channels, channels)
        self.electronegativity = _perceptron(channels, activation_of("silu"))
        self.hardness: nn.Module = (
            ElementHardness(max_number) if hardness == "element" else Hardness(channels)
        )
        widths = torch.as_tensor(covalent_radii[:max_number]).to(torch.get_default_dtype())
        if trainable_widths:
            self.widths = nn.Parameter(widths)
        else:
            self.register_buffer("widths", widths)

    @property
    def layers(self) -> nn.ModuleList:  # type: ignore[override]
        """Those of the TensorNet."""
        return self.network.layers

    __jit_unused_properties__ = ("layers",)

    def forward(self, graph: Graph, vectors: Tensor, pairs: Pairs | None = None) -> Tensor:
        """Scalars, charge and potential of every atom, (N, 1, F + 2)."""
        return self.features_and_charges(graph, vectors, pairs)[0]

    def features_and_charges(
        self, graph: Graph, vectors: Tensor, pairs: Pairs | None = None
    ) -> tuple[Tensor, Tensor]:
        """`forward`, and charges (N, 1), e."""
        neutral = Graph(
            graph.numbers, graph.positions, graph.cell, graph.edge_index, graph.edge_shift,
            graph.system, torch.zeros_like(graph.charge),
        )  # fmt: skip
        x = self.network(neutral, vectors, pairs)
        s = self.linear(self.norm(irrep_norms_squared(x)))
        charges = self.equilibrium(s, graph)
        potential = self.potential(charges, graph, vectors)
        features = torch.cat([s, charges.unsqueeze(1), potential.unsqueeze(1)], dim=1)
        return features.unsqueeze(1), charges.unsqueeze(1)

    def equilibrium(self, s: Tensor, graph: Graph) -> Tensor:
        """Charges (N,), e, of scalars (N, F)."""
        chi = self.electronegativity(s).squeeze(1)
        softness = 1 / self.hardness(s, graph.numbers)
        zeros = torch.zeros(graph.charge.shape[0], dtype=s.dtype, device=s.device)
        total = zeros.index_add(0, graph.system, softness)
        needed = graph.charge.to(s.dtype) + zeros.index_add(0, graph.system, chi * softness)
        return softness * ((needed / total).index_select(0, graph.system) - chi)

    def potential(self, charges: Tensor, graph: Graph, vectors: Tensor) -> Tensor:
        """Potentials V (N,), eV/e, of the charges of neighbours."""
        i, j = graph.edge_index[0], graph.edge_index[1]
        r = torch.linalg.vector_norm(vectors, dim=1)
        squares = self.widths.square().index_select(0, graph.numbers)
        width = (2 * (squares.index_select(0, i) + squares.index_select(0, j))).sqrt()
        x = r / self.cutoff
        envelope = 1 - 10 * x**3 + 15 * x**4 - 6 * x**5
        envelope = torch.where(x <= 1, envelope, 0.0)
        terms = charges.index_select(0, j) * torch.erf(r / width) * envelope / r
        return torch.zeros_like(charges).index_add(0, i, self.coulomb * terms)

    def feature_layout(self) -> FeatureLayout:
        """Scalars only."""
        irreps = consecutive_irreps([("scalars", 0)])
        return FeatureLayout(irreps, axis=1, norms=False, tensor_basis=BASIS[ROWS["S"]])

    def new_readout(self, head: str | None = None) -> GatedReadout:
        """`GatedReadout`; there is only one kind.

        Raises
        ------
        ValueError
            If ``head`` is not None.
        """
        if head is not None:
            raise ValueError(f"head is {head!r}: the readout of a QET has none to choose from")
        return GatedReadout(int(self.config["channels"]))

    def check_readout(self, readout: Readout) -> None:
        """Raise a ValueError if it is not a `GatedReadout`."""
        if not isinstance(readout, GatedReadout):
            raise ValueError(
                f"the readout of a QET is a {type(readout).__name__}: expected a GatedReadout"
            )


class ElementHardness(nn.Module):
    """A hardness for each element."""

    def __init__(self, max_number: int) -> None:
        super().__init__()
        self.values = nn.Parameter(torch.ones(max_number))

    def forward(self, s: Tensor, numbers: Tensor) -> Tensor:
        """Scalars (N, F) and atomic numbers (N,) -> hardnesses (N,)."""
        return self.values.index_select(0, numbers)


class Hardness(nn.Module):
    """A hardness from the scalars of an atom."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.network = _perceptron(channels, nn.Softplus())

    def forward(self, s: Tensor, numbers: Tensor) -> Tensor:
        """Scalars (N, F) and atomic numbers (N,) -> hardnesses (N,)."""
        return self.network(s).squeeze(1)


def _perceptron(channels: int, act: nn.Module) -> nn.Sequential:
    sizes = [channels, channels, channels, 1]
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(sizes):
        layers += [nn.Linear(inputs, outputs), act]
    return nn.Sequential(*layers)
