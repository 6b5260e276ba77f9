r"""TensorNet2: TensorNet whose atoms have charges, which every layer reads and predicts anew.

The network of AceFF-2 (Acellera) as in torchmd-net 3.1.0: TensorNet (Simeon & De Fabritiis,
arXiv:2306.06482) with the charge equilibration of AIMNet2 (Anstine, Zubatyuk & Isayev, Chem. Sci.
2025, 16, 10228).

Notation: X features (9, N, F) of N atoms and F channels, q charges (N, C) of C channels in level
l = 0 to L, Q total charge of a system; r distances (E,) of E edges, i receives from j. Lengths are
in the units of the network's cutoff.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..graph import Graph, Pairs
from ..maths.activations import activation
from ..maths.cartesian import irrep_norms_squared
from ..maths.splines import RadialTable
from .tensornet import CartesianNetwork, Interaction


class TensorNet2(CartesianNetwork):
    r"""One 3x3 tensor per atom and channel, and charges of the atoms after each layer.

    The charges of level 0 come from the embedding of the surroundings, those of level l from the
    features after layer l (`ChargePrediction`). The total charge of a system enters through them
    alone; TensorNet's factor 1 + Q / 10 is absent.

    Parameters
    ----------
    channels
        Number of features per atom and component, F.
    layers
        Number of interaction layers, L; 0: only the embedding.
    charge_channels
        Number of charges per atom and level, C.
    radial_functions
        Number of radial functions, K.
    radial
        Name of the radial basis: ``expnorm`` or ``gauss``.
    trainable_radial
        Whether the parameters of the radial basis are trained.
    activation
        Name of the activation function (see `activations.ACTIVATIONS`).
    cutoff, cutoff_lower
        Upper and lower cutoff distance, in the network's unit of length.
    max_number
        Size of the table of elements: atomic numbers below it can be embedded.
    group
        ``O(3)``: the energy is invariant under inversion; ``SO(3)``: it need not be.

    Raises
    ------
    ValueError
        If the group or a name are unknown, a size cannot be, or the cutoffs are not
        0 <= lower < upper.
    """

    has_tables = True

    def __init__(
        self,
        *,
        channels: int = 128,
        layers: int = 2,
        charge_channels: int = 16,
        radial_functions: int = 32,
        radial: str = "expnorm",
        trainable_radial: bool = False,
        activation: str = "silu",
        cutoff: float = 5.0,
        cutoff_lower: float = 0.0,
        max_number: int = 128,
        group: str = "O(3)",
    ) -> None:
        config = {
            "channels": channels,
            "layers": layers,
            "charge_channels": charge_channels,
            "radial_functions": radial_functions,
            "radial": radial,
            "trainable_radial": trainable_radial,
            "activation": activation,
            "cutoff": cutoff,
            "cutoff_lower": cutoff_lower,
            "max_number": max_number,
            "group": group,
        }
        super().__init__(config)
        self.charge_levels = layers + 1
        self.charge_channels = charge_channels
        self.charges = ChargePrediction(channels, charge_channels, activation)
        self.layers = nn.ModuleList(
            [
                ChargedInteraction(channels, radial_functions, charge_channels, activation, group)
                for _ in range(layers)
            ]
        )

    def forward(self, graph: Graph, vectors: Tensor, pairs: Pairs | None = None) -> Tensor:
        """Tensor features of every atom, (9, N, F); see `features_and_charges`."""
        return self.features_and_charges(graph, vectors, pairs)[0]

    def features_and_charges(
        self, graph: Graph, vectors: Tensor, pairs: Pairs | None = None
    ) -> tuple[Tensor, Tensor]:
        """Features (9, N, F), and charges (N, (L + 1) C), e, level after level.

        Parameters
        ----------
        graph
            Graph, whose numbers, edge_index, system and charge are read.
        vectors
            Displacements r_j - r_i of the edges, (E, 3), in the network's unit of length.
        pairs
            Not read: the two directions of a pair have different factors, because their charges
            stand in the other order.
        """
        i, j = graph.edge_index[0], graph.edge_index[1]
        atoms = torch.arange(graph.numbers.shape[0], device=vectors.device)
        distances = torch.linalg.vector_norm(vectors, dim=1)
        zero = torch.zeros(1, dtype=vectors.dtype, device=vectors.device)
        factors, envelope = self.edge_factors(distances), self.envelope(distances).unsqueeze(1)
        # Edges from atoms to themselves, at distance zero.
        own, own_envelope = self.edge_factors(zero), self.envelope(zero).unsqueeze(1)

        # Tensors are built along r_i - r_j as in torchmd-net: this determines the sign of A.
        unit = -vectors / distances.unsqueeze(1)
        x = self.embedding(graph, unit, factors[0], own[0])
        neutral = torch.zeros(graph.numbers.shape[0], dtype=vectors.dtype, device=vectors.device)
        charges = self.charges(x, graph)
        levels = [charges]
        for k, layer in enumerate(self.layers):
            sent = layer.factors(factors[k + 1], charges, i, j) * envelope  # type: ignore[operator]
            kept = layer.factors(own[k + 1], charges, atoms, atoms)  # type: ignore[operator]
            x = layer(x, graph, sent, kept * own_envelope, neutral)
            charges = layer.charges(x, graph)  # type: ignore[operator]
            levels.append(charges)
        return x, torch.cat(levels, dim=1)

    def edge_factors(self, distances: Tensor, pairs: Pairs | None = None) -> list[Tensor]:
        """Functions of the distances (E,): the embedding's factors, then each layer's terms.

        The factors (E, 3F) of I, A and S are zero at the cutoff. A layer's terms (E, F) are the
        part of its first dense layer that reads the radial basis; see `ChargedInteraction`.
        """
        if self.table is not None:
            widths = [3 * self.channels] + [self.channels] * len(self.layers)
            return list(torch.split(self.table(distances), widths, dim=1))
        else:
            basis = self.radial(distances)
            found = [self.embedding.radial(basis) * self.envelope(distances).unsqueeze(1)]
            for layer in self.layers:
                found.append(layer.of_distance(basis))  # type: ignore[operator]
            return found

    def use_table(self, table: RadialTable) -> None:
        """Replace the radial basis by a table of all edge factors, side by side."""
        self.table = table
        del self.radial, self.embedding.radial


class ChargePrediction(nn.Module):
    r"""Charges of one level that sum to the charge of their system.

    .. math::
        (p_i, w_i) &= \mathrm{MLP}(\mathrm{LayerNorm}([t_i, \|A_i\|^2, \|S_i\|^2])) \\
        q_{ic} &= p_{ic} + \frac{w_{ic}^2}{\sum_k w_{kc}^2 + 10^{-6}}
        \Big( Q - \sum_k p_{kc} \Big)

    where t is a third of the trace of X, with its sign, and k runs over the atoms of the system.

    Parameters
    ----------
    channels
        Number of channels of the features, F.
    charge_channels
        Number of charges per atom, C.
    act
        Name of the activation function.
    """

    def __init__(self, channels: int, charge_channels: int, act: str) -> None:
        super().__init__()
        self.charge_channels = charge_channels
        self.norm = nn.LayerNorm(3 * channels)
        self.network = nn.Sequential(
            nn.Linear(3 * channels, channels),
            activation(act),
            nn.Linear(channels, channels),
            activation(act),
            nn.Linear(channels, 2 * charge_channels),
        )

    def forward(self, x: Tensor, graph: Graph) -> Tensor:
        """Features (9, N, F) -> charges (N, C), e."""
        f = x.shape[2]
        # The first component is sqrt(3) t: the basis is orthonormal.
        invariants = torch.cat([x[0] / 3.0**0.5, irrep_norms_squared(x)[:, f:]], dim=1)
        p, w = torch.split(self.network(self.norm(invariants)), self.charge_channels, dim=1)
        shares = w * w
        systems = graph.charge.shape[0]
        zeros = p.new_zeros([systems, self.charge_channels])
        missing = graph.charge.to(p.dtype).unsqueeze(1) - zeros.index_add(0, graph.system, p)
        per_share = missing / (zeros.index_add(0, graph.system, shares) + 1e-6)
        return p + shares * per_share.index_select(0, graph.system)


class ChargedInteraction(Interaction):
    r"""TensorNet's `Interaction`, whose factors depend on the charges at both ends of an edge.

    .. math::
        f_{ij} = \phi(r_{ij})\, g(W_3\, g(W_2\, g(W_1 [b(r_{ij}), q_i, q_j])))

    with the radial basis b, the activation g, biases not written, and charges q of the level
    before. The factors of the two directions of a pair differ. The charges of its own level are
    predicted from its features.
    """

    def __init__(
        self, channels: int, radial_functions: int, charge_channels: int, act: str, group: str
    ) -> None:
        inputs = radial_functions + 2 * charge_channels
        super().__init__(channels, inputs, act, group, True, "IAS")
        self.radial_functions = radial_functions
        self.charges = ChargePrediction(channels, charge_channels, act)

    def of_distance(self, basis: Tensor) -> Tensor:
        """W_1 of the radial basis (E, K) alone -> (E, F)."""
        weight = self.radial[0].weight
        return basis @ weight[:, : self.radial_functions].t()  # type: ignore[index]

    def factors(self, of_distance: Tensor, charges: Tensor, i: Tensor, j: Tensor) -> Tensor:
        """Terms of the distance (E or 1, F), charges (N, C) -> factors (E, 3F), no envelope."""
        weight, bias = self.radial[0].weight, self.radial[0].bias
        # W_1 [b, q_i, q_j] is a sum of three terms, two of them computed per atom.
        of_charges = weight[:, self.radial_functions :]  # type: ignore[index]
        receiver, sender = torch.chunk(of_charges, 2, dim=1)
        of_receiver = charges @ receiver.t() + bias  # type: ignore[operator]
        hidden = of_distance + of_receiver.index_select(0, i)
        hidden = hidden + (charges @ sender.t()).index_select(0, j)
        for k, module in enumerate(self.radial):
            if k > 0:
                hidden = module(hidden)
        return hidden
