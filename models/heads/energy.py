"""Readouts of the energy of each atom.

`EnergyReadout` is TensorNet's: its heads take the invariants of an atom, the squared norms of I, A
and S side by side (3F numbers, fewer for a network with fewer irreps).
`ScalarReadout` is TDN's, `GatedReadout` QET's.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from ..maths.activations import activation
from ..maths.cartesian import check_irreps, irrep_norms_squared


class MLPHead(nn.Module):
    """Linear, activation, then a two-layer perceptron: torchmd-net's `Scalar` output.

    ``hidden`` is the number of additional layers of that perceptron.
    """

    def __init__(self, inputs: int, channels: int, act: str, hidden: int = 0) -> None:
        super().__init__()
        between: list[nn.Module] = []
        for _ in range(hidden):
            between += [nn.Linear(channels // 2, channels // 2), activation(act)]
        self.network = nn.Sequential(
            nn.Linear(inputs, channels),
            activation(act),
            nn.Linear(channels, channels // 2),
            activation(act),
            *between,
            nn.Linear(channels // 2, 1),
        )

    def forward(self, invariants: Tensor) -> Tensor:
        """(N, inputs) -> (N, 1)."""
        return self.network(invariants)


class GatedHead(nn.Module):
    """A perceptron times a second one with a sigmoid: matgl's `weighted_atom` readout."""

    def __init__(self, inputs: int, channels: int) -> None:
        super().__init__()
        self.linear = nn.Linear(inputs, channels)
        self.values, self.gates = _gated(4 * [channels])

    def forward(self, invariants: Tensor) -> Tensor:
        """(N, inputs) -> (N, 1)."""
        x = self.linear(invariants)
        return self.values(x) * self.gates(x)


def _gated(sizes: list[int]) -> tuple[nn.Sequential, nn.Sequential]:
    """Two perceptrons with these numbers of inputs and one output, the second with a sigmoid."""
    both: list[nn.Sequential] = []
    for last in ([], [nn.Sigmoid()]):
        layers: list[nn.Module] = []
        for inputs, outputs in pairwise(sizes):
            layers += [nn.Linear(inputs, outputs), nn.SiLU()]
        both.append(nn.Sequential(*layers, nn.Linear(sizes[-1], 1), *last))
    return both[0], both[1]


class LinearHead(nn.Module):
    """A linear map of the invariants: modelforge's readout, summed over its outputs."""

    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.linear = nn.Linear(inputs, 1)

    def forward(self, invariants: Tensor) -> Tensor:
        """(N, inputs) -> (N, 1)."""
        return self.linear(invariants)


HEADS = ("mlp", "gated", "linear")


class PaddedLayerNorm(nn.Module):
    r"""Layer norm of x padded with zeros to ``size`` numbers.

    .. math::
        \mu = \tfrac1n \sum_c x_c, \qquad
        \sigma^2 = \tfrac1n \sum_c (x_c - \mu)^2 + (1 - \tfrac{k}{n}) \mu^2

    for k numbers among n. The results for the zeros are not returned.
    """

    def __init__(self, inputs: int, size: int) -> None:
        super().__init__()
        self.size = size
        self.eps = 1e-5  # as in torch.nn.LayerNorm
        self.weight = nn.Parameter(torch.ones(inputs))
        self.bias = nn.Parameter(torch.zeros(inputs))

    def forward(self, x: Tensor) -> Tensor:
        """(N, inputs) -> (N, inputs)."""
        mean = x.sum(-1, keepdim=True) / self.size
        deviation = x - mean
        zeros = (self.size - x.shape[-1]) * mean.square()
        variance = (deviation.square().sum(-1, keepdim=True) + zeros) / self.size
        return deviation * torch.rsqrt(variance + self.eps) * self.weight + self.bias


class EnergyReadout(nn.Module):
    """TensorNet's readout: layer norm of the invariants, then a head: (n, N, F) -> energies (N,).

    Parameters
    ----------
    channels
        Number of channels of the representation, F.
    head
        Kind of head: ``mlp`` (torchmd-net), ``gated`` (matgl) or ``linear`` (modelforge).
    activation
        Activation of the ``mlp`` head; that of the others is fixed.
    irreps
        Irreps of the representation.
    norm_size
        Number of values in the layer norm: the invariants, and zeros for the invariants of
        removed irreps (`without_invariants`). None: only the invariants.
    hidden_layers
        Number of additional hidden layers of the ``mlp`` head.

    Raises
    ------
    ValueError
        If the head or the irreps are unknown, the norm is smaller than its inputs, or there are
        hidden layers of a head that has none.
    """

    def __init__(
        self,
        channels: int,
        head: str = "mlp",
        activation: str = "silu",
        irreps: str = "IAS",
        norm_size: int | None = None,
        hidden_layers: int = 0,
    ) -> None:
        super().__init__()
        if not 0 <= hidden_layers <= 100 or (hidden_layers and head != "mlp"):
            raise ValueError(
                f"hidden_layers is {hidden_layers} for a head {head!r}: expected 0, or up to 100 "
                "for mlp"
            )
        inputs = len(check_irreps(irreps)) * channels
        size = inputs if norm_size is None else norm_size
        if size < inputs:
            raise ValueError(f"norm_size is {size}: expected {inputs} invariants or more")
        self.config: dict[str, Any] = {
            "head": head,
            "activation": activation,
            "irreps": irreps,
            "norm_size": None if size == inputs else size,
        }
        if hidden_layers:  # older programs read files without it
            self.config["hidden_layers"] = hidden_layers
        self.norm_size = size
        self.norm: nn.LayerNorm | PaddedLayerNorm = (
            nn.LayerNorm(inputs) if size == inputs else PaddedLayerNorm(inputs, size)
        )
        if head == "mlp":
            self.head: nn.Module = MLPHead(inputs, channels, activation, hidden_layers)
        elif head == "gated":
            self.head = GatedHead(inputs, channels)
        elif head == "linear":
            self.head = LinearHead(inputs)
        else:
            raise ValueError(f"unknown head {head!r}: expected one of {', '.join(HEADS)}")

    def forward(self, x: Tensor) -> Tensor:
        """(n, N, F) -> (N,), in the network's own unit of energy, unscaled."""
        return self.head(self.norm(irrep_norms_squared(x))).squeeze(-1)

    def without_invariants(self, kept: Tensor) -> dict[str, Tensor]:
        r"""Tensors of the readout that takes only some invariants, if the others are zero.

        Layer norm maps zeros to other values. With n numbers in the norm, K of them kept, and
        :math:`\hat x = (x - \mu) / \sigma`, each of the :math:`n - |K|` others becomes

        .. math:: \hat x_0 = -\frac{\mu}{\sigma} = -\frac{1}{n - |K|} \sum_{c \in K} \hat x_c

        which is linear in those kept. The first matrix W of the head, with the norm's w and b,
        therefore becomes

        .. math::
            W'_{oc} = W_{oc} w_c - \frac{1}{n - |K|} \sum_{d \notin K} W_{od} w_d, \qquad
            b'_o = b_o + \sum_{\text{all } c} W_{oc} b_c

        and the norm, without w and b, still divides by n (`PaddedLayerNorm`).

        Parameters
        ----------
        kept
            Indices of the invariants kept.
        """
        name = {"mlp": "head.network.0", "gated": "head.linear", "linear": "head.linear"}[
            self.config["head"]
        ]
        linear = self.get_submodule(name)
        assert isinstance(linear, nn.Linear)
        w, b, matrix, bias = (
            t.detach().double()
            for t in (self.norm.weight, self.norm.bias, linear.weight, linear.bias)
        )
        scaled = matrix * w
        zeros = self.norm_size - len(kept)
        gone = scaled.sum(1) - scaled[:, kept].sum(1)
        found = {
            "norm.weight": torch.ones_like(w[kept]),
            "norm.bias": torch.zeros_like(b[kept]),
            f"{name}.weight": scaled[:, kept] - gone.unsqueeze(1) / max(zeros, 1),
            f"{name}.bias": bias + matrix @ b,
        }
        return {key: tensor.to(self.norm.weight.dtype) for key, tensor in found.items()}


class ScalarReadout(nn.Module):
    """TDN's readout: layer norm of degree 0, then a perceptron: (N, d, C) -> energies (N,).

    Parameters
    ----------
    channels
        Number of channels of the representation, C.
    per_atom
        Whether the outputs of a system sum to its energy per atom, as in the released TDN:
        `Potential` then multiplies them by the number of atoms. Such an energy is not extensive:
        the energy of two distant molecules is not the sum of their energies.
    """

    def __init__(self, channels: int, per_atom: bool = False) -> None:
        super().__init__()
        self.config: dict[str, Any] = {"per_atom": bool(per_atom)}
        self.norm = nn.LayerNorm(channels)
        self.head = nn.Sequential(nn.Linear(channels, channels), nn.SiLU(), nn.Linear(channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        """(N, d, C) -> (N,), in the network's own unit of energy, unscaled."""
        return self.head(self.norm(x[:, 0])).squeeze(-1)


class GatedReadout(nn.Module):
    """QET's readout: layer norm, then a perceptron times a second one: (N, 1, F + 2) -> (N,).

    Parameters
    ----------
    channels
        Number of channels of the representation, F, besides a charge and a potential.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.config: dict[str, Any] = {}
        inputs = channels + 2
        self.norm = nn.LayerNorm(inputs)
        self.values, self.gates = _gated([inputs, inputs, channels, channels])

    def forward(self, x: Tensor) -> Tensor:
        """(N, 1, F + 2) -> (N,), in the network's own unit of energy, unscaled."""
        x = self.norm(x[:, 0])
        return (self.values(x) * self.gates(x)).squeeze(-1)


Readout = EnergyReadout | ScalarReadout | GatedReadout
"""Readouts from the features of a network to unscaled energies of atoms."""
