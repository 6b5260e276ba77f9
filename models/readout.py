"""From features to the energy of each atom.

`EnergyReadout` is TensorNet's: its heads start from the invariants of an atom, the squared norms
of I, A and S side by side (3F numbers). `ScalarReadout` is TDN's.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from .activations import activation
from .cartesian import irrep_norms_squared


class MLPHead(nn.Module):
    """Linear, activation, then a two-layer perceptron: torchmd-net's `Scalar` output."""

    def __init__(self, channels: int, act: str) -> None:
        super().__init__()
        self.network = nn.Sequential(
            nn.Linear(3 * channels, channels),
            activation(act),
            nn.Linear(channels, channels // 2),
            activation(act),
            nn.Linear(channels // 2, 1),
        )

    def forward(self, invariants: Tensor) -> Tensor:
        """(N, 3F) -> (N, 1)."""
        return self.network(invariants)


class GatedHead(nn.Module):
    """A perceptron times a sigmoid-gated twin: matgl's `weighted_atom` readout."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.linear = nn.Linear(3 * channels, channels)
        self.values = self._perceptron(channels, last=None)
        self.gates = self._perceptron(channels, last=nn.Sigmoid())

    @staticmethod
    def _perceptron(channels: int, last: nn.Module | None) -> nn.Sequential:
        layers: list[nn.Module] = []
        for _ in range(3):
            layers += [nn.Linear(channels, channels), nn.SiLU()]
        layers.append(nn.Linear(channels, 1))
        if last is not None:
            layers.append(last)
        return nn.Sequential(*layers)

    def forward(self, invariants: Tensor) -> Tensor:
        """(N, 3F) -> (N, 1)."""
        x = self.linear(invariants)
        return self.values(x) * self.gates(x)


class LinearHead(nn.Module):
    """A linear map of the invariants: modelforge's readout, summed over its outputs."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.linear = nn.Linear(3 * channels, 1)

    def forward(self, invariants: Tensor) -> Tensor:
        """(N, 3F) -> (N, 1)."""
        return self.linear(invariants)


HEADS = ("mlp", "gated", "linear")


class EnergyReadout(nn.Module):
    """Of TensorNet: layer norm of the invariants, then a head: (9, N, F) -> energies (N,).

    Parameters
    ----------
    channels
        F of the representation.
    head
        ``mlp`` (torchmd-net), ``gated`` (matgl) or ``linear`` (modelforge).
    activation
        Of the ``mlp`` head; the others have none to choose.
    """

    def __init__(self, channels: int, head: str = "mlp", activation: str = "silu") -> None:
        super().__init__()
        self.config: dict[str, Any] = {"head": head, "activation": activation}
        self.norm = nn.LayerNorm(3 * channels)
        if head == "mlp":
            self.head: nn.Module = MLPHead(channels, activation)
        elif head == "gated":
            self.head = GatedHead(channels)
        elif head == "linear":
            self.head = LinearHead(channels)
        else:
            raise ValueError(f"unknown head {head!r}: expected one of {', '.join(HEADS)}")

    def forward(self, x: Tensor) -> Tensor:
        """(9, N, F) -> (N,), in the network's own unit of energy, unscaled."""
        return self.head(self.norm(irrep_norms_squared(x))).squeeze(-1)


class ScalarReadout(nn.Module):
    """Of TDN: layer norm of degree 0, then a perceptron: (N, d, C) -> energies (N,).

    Parameters
    ----------
    channels
        C of the representation.
    per_atom
        Whether the outputs of a system sum to its energy per atom, as those of the released TDN
        do: `Potential` then multiplies them by the number of atoms. Such an energy is not
        extensive: that of two molecules far apart is not the sum of theirs.
    """

    def __init__(self, channels: int, per_atom: bool = False) -> None:
        super().__init__()
        self.config: dict[str, Any] = {"per_atom": bool(per_atom)}
        self.norm = nn.LayerNorm(channels)
        self.head = nn.Sequential(nn.Linear(channels, channels), nn.SiLU(), nn.Linear(channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        """(N, d, C) -> (N,), in the network's own unit of energy, unscaled."""
        return self.head(self.norm(x[:, 0])).squeeze(-1)
