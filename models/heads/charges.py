"""Charges of atoms, from a network that predicts them."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from ..graph import Graph
from ..networks.base import Network
from .base import Head


class ChargeReadout(Head):
    r"""One charge per atom from the charges of the levels and channels of a network.

    .. math:: q_i = \sum_l \omega_l\, \frac1C \sum_c q_{ic}^l \Big/ \sum_l \omega_l

    The charges of a system sum to its total charge.

    Parameters
    ----------
    representation
        Network that predicts charges, such as a `TensorNet2`.
    weights
        Weights :math:`\omega` of the levels; None: those of the Coulomb energy of a potential, or
        the last level alone.

    Raises
    ------
    ValueError
        If the network predicts no charges, or there is not one weight per level.
    """

    reads_charges = True

    def __init__(self, representation: nn.Module, weights: Sequence[float] | None = None) -> None:
        levels = representation.charge_levels if isinstance(representation, Network) else 0
        if not levels:
            raise ValueError(
                f"a {type(representation).__name__} predicts no charges: expected a network that "
                "does, such as a TensorNet2"
            )
        if weights is None:
            weights = [0.0] * (levels - 1) + [1.0]
        if len(weights) != levels or sum(weights) == 0:
            raise ValueError(
                f"weights of the charges are {list(weights)}: expected {levels} numbers, one per "
                "level, with a sum that is not zero"
            )
        super().__init__(representation, weights=[float(weight) for weight in weights])
        self.weights = [float(weight) / sum(weights) for weight in weights]

    def forward(self, x: Tensor, graph: Graph) -> Tensor:
        """Charges (N, levels * channels) of the network -> (N,), e, float64."""
        by_level = x.double().view(len(x), len(self.weights), -1).mean(2)
        return by_level @ by_level.new_tensor(self.weights)

    def standardise(self, graphs: Sequence[Graph], labels: Sequence[Tensor]) -> None:
        """Change nothing: the network's own charges have no scale."""
