r"""Coulomb energy of predicted charges.

As in AceFF-2 (torchmd-net 3.1.0, ``ScalarPlusWeightedCoulomb``), which took it from AIMNet2
(Anstine, Zubatyuk & Isayev, Chem. Sci. 2025, 16, 10228). Notation: :math:`q_{ic}` charges (N, C)
of N atoms in C channels, r distances (E,) of E edges.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..graph import Graph
from ..maths.double import DoubleConstants

COULOMB_EV_ANGSTROM = 27.211386024367243 * 0.5291772105638411
"""Coulomb constant with which the weights were trained, eV Angstrom."""
DAMPING_ANGSTROM = 4.6
DIELECTRIC = 78.3
"""Relative permittivity of the reaction field: water."""
LARGEST_CUTOFF = 100.0
"""Largest cutoff that is no slip; the number of pairs grows with its cube."""
WHY_NO_CELL = (
    "the model sums its Coulomb energy over all pairs of a molecule, which a periodic cell does "
    "not allow: give it a cutoff, beyond which there is a reaction field (coulomb_cutoff=12.0, in "
    "A, in a calculator; --coulomb-cutoff 12 on the command line; "
    "potential.with_coulomb_cutoff(12.0) in Python), or remove the cell"
)


class CoulombEnergy(DoubleConstants):
    r"""Damped Coulomb energy of all pairs, or of those within a cutoff with a reaction field.

    .. math::
        E &= \sum_{i < j} k\, (1 - f(r_{ij}))\, \bar q_{ij}\, v(r_{ij}), \qquad
        \bar q_{ij} = \frac{\sum_c \omega_c q_{ic} q_{jc}}{\sum_c \omega_c} \\
        f(r) &= \exp\left(1 - \frac{1}{1 - (r / r_d)^2}\right) \text{ for } r < r_d,
        \text{ else } 0

    with v = 1 / r for all pairs and, with a cutoff (Tironi et al., J. Chem. Phys. 1995, 102,
    5451),

    .. math::
        v(r) = \frac1r + \frac{\epsilon - 1}{2 \epsilon + 1} \frac{r^2}{r_c^3}
        - \frac{3 \epsilon}{(2 \epsilon + 1)\, r_c}

    which is zero at the cutoff; its slope there is -3 / ((2 epsilon + 1) r_c^2), a fiftieth of
    that of 1 / r. In a cell every image within the cutoff counts, own images too.

    Parameters
    ----------
    weights
        Weights :math:`\omega` of the levels; the channels of a level have the same.
    channels
        Number of channels per level.
    cutoff
        Cutoff :math:`r_c`, in the network's unit of length; None: all pairs of a molecule.
    damping
        Length :math:`r_d` below which charges are damped, in the network's unit of length; default
        in Angstrom.
    coulomb
        Coulomb constant k, in the network's units of energy times length; default in eV Angstrom.
    dielectric
        Relative permittivity :math:`\epsilon` beyond the cutoff.

    Raises
    ------
    ValueError
        If the weights do not have a sum other than zero, or a length cannot be.
    """

    shares: Tensor

    def __init__(
        self,
        weights: Sequence[float],
        channels: int,
        cutoff: float | None = None,
        damping: float = DAMPING_ANGSTROM,
        coulomb: float = COULOMB_EV_ANGSTROM,
        dielectric: float = DIELECTRIC,
    ) -> None:
        super().__init__()
        weights = [float(weight) for weight in weights]
        total = sum(weights) * channels
        if not math.isfinite(total) or total == 0:
            raise ValueError(
                f"weights of the Coulomb energy are {weights} for {channels} channels: expected "
                "one per level of charges, with a sum that is not zero"
            )
        if cutoff is not None and not 0 < cutoff < math.inf:
            raise ValueError(
                f"cutoff of the Coulomb energy is {cutoff}: expected a positive length, or None "
                "for all pairs"
            )
        self.config: dict[str, Any] = {
            "weights": weights,
            "channels": int(channels),
            "cutoff": None if cutoff is None else float(cutoff),
            "damping": float(damping),
            "coulomb": float(coulomb),
            "dielectric": float(dielectric),
        }
        # A device of its own: checkpoints are built on one without memory.
        shares = torch.tensor(weights, dtype=torch.float64, device="cpu") / total
        self.register_buffer("shares", shares.repeat_interleave(channels), persistent=False)
        self.all_pairs = cutoff is None
        self.cutoff = math.inf if cutoff is None else float(cutoff)
        self.damping = float(damping)
        self.coulomb = float(coulomb)
        self.field = self.shift = 0.0
        if cutoff is not None:
            self.field = (dielectric - 1) / (2 * dielectric + 1) / cutoff**3
            self.shift = 3 * dielectric / (2 * dielectric + 1) / cutoff

    def forward(self, charges: Tensor, graph: Graph, vectors: Tensor) -> Tensor:
        """Energies of the atoms (N,): half of each pair's energy goes to each of its atoms.

        Parameters
        ----------
        charges
            Charges of the atoms, (N, C), e.
        graph
            Graph whose edges are all pairs within the cutoff; longer ones are left out.
        vectors
            Displacements of the edges, (E, 3), in the network's unit of length.
        """
        distances = torch.linalg.vector_norm(vectors, dim=1)
        potential = 1 / distances
        if not self.all_pairs:
            potential = potential + self.field * distances**2 - self.shift
            potential = potential * (distances < self.cutoff)
        # Just below 1, as in torchmd-net: the exponential is zero from there on.
        reduced = (distances / self.damping).clamp(max=1 - 1e-6)
        damped = 1 - torch.exp(1 - 1 / (1 - reduced**2))
        energies = 0.5 * self.coulomb * damped * potential * self._products(charges, graph)
        total = torch.zeros_like(charges[:, 0])
        return total.index_add(0, graph.edge_index[0], energies)

    def _products(self, charges: Tensor, graph: Graph) -> Tensor:
        """Weighted products of the charges of each edge, (E,)."""
        i, j = graph.edge_index[0], graph.edge_index[1]
        weighted = charges * self.shares.to(charges.dtype)
        n = charges.shape[0]
        if n * n <= i.shape[0] * charges.shape[1]:
            # Of nearly all pairs: one matrix product is much less than gathering rows.
            return (weighted @ charges.t()).reshape(n * n).index_select(0, i * n + j)
        return (weighted.index_select(0, i) * charges.index_select(0, j)).sum(1)


def parse_coulomb_cutoff(cutoff: float | None) -> float | None:
    """A Coulomb cutoff, Angstrom, checked; infinity and None stand for all pairs: None.

    Raises
    ------
    ValueError
        If it cannot be a cutoff.
    """
    if cutoff is None or cutoff == math.inf:
        return None
    if not 0 < cutoff <= LARGEST_CUTOFF:
        raise ValueError(
            f"the cutoff of the Coulomb energy is {cutoff} A: expected a length up to "
            f"{LARGEST_CUTOFF:g} A, or infinity for all pairs of a molecule"
        )
    return float(cutoff)
