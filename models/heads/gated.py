r"""Readout of vectors or tensors gated by invariants, the base of dipole and polarizability.

TensorNet's antisymmetric part is built from the direction of an edge, and its layers (products
XY + YX, squares) commute with the transpose: under inversion :math:`X \to X^T`, so that A is a
polar vector and S an even tensor. TDN's degrees 1 and 2 behave in the same way. With SO(3) both
are equivariant under rotation, but mirror images may differ by more than a sign.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from ..networks.base import Network
from .base import Head


class GatedReadout(Head):
    r"""One scalar and one gated sum over the channels of an irrep for each atom.

    .. math:: (s_i, g_i) = \mathrm{MLP}(\mathrm{LayerNorm}(h_i)), \qquad
        y_i = \sum_c g_{ic} \sum_f W_{cf} x_{if}

    with h the invariants of the atom (see `FeatureLayout`; TensorNet: squared norms of I, A and
    S; TDN: degree 0) and x the components of the irrep.

    Raises
    ------
    ValueError
        If the representation is not a `Network`, or has no irrep of the degree.
    """

    def __init__(self, representation: nn.Module, needed_for: str, **config: Any) -> None:
        super().__init__(representation, **config)
        degree = self.degree
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
                f"{type(representation).__name__} has none: use a network that has it"
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

    def read(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Features -> scalars (N,) and components (N, 3 or 5), float64 and scaled."""
        x = self.layout.by_atom(x)
        outputs = self.network(self.norm(self.layout.invariants(x)))
        gated = (self.mix(x[:, self.place]) * outputs[:, 1:].unsqueeze(1)).sum(2)
        scale = self.constants.scale
        return scale * outputs[:, 0].double(), scale * gated.double()
