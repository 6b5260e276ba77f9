"""TensorNet: message passing with rank-2 Cartesian tensors.

Simeon & De Fabritiis, "TensorNet: Cartesian Tensor Representations for Efficient Learning of
Molecular Potentials", NeurIPS 2023 (arXiv:2306.06482), with the total charge as in torchmd-net
(Simeon, Mirarchi, Pelaez, Galvelis & De Fabritiis, arXiv:2403.15073).

Notation: X features (n, N, F) of N atoms and F channels (components first, see `cartesian`; n is
9 if there are all irreps), r distances (E,) of E edges, i receives from j. Lengths are in the
units of the network's cutoff.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..graph import Graph, Pairs
from ..heads.energy import EnergyReadout, Readout
from ..maths.activations import activation
from ..maths.cartesian import (
    BASIS,
    ROWS,
    TensorAlgebra,
    TensorLinear,
    check_irreps,
    norm_squared,
    scale_irreps,
)
from ..maths.radial import CosineCutoff, radial_basis
from ..maths.splines import RadialTable
from .base import (
    TABLE,
    FeatureLayout,
    Irrep,
    Kept,
    Network,
    Smaller,
    check_sizes,
    consecutive_irreps,
)

GROUPS = ("O(3)", "SO(3)")
DEGREES = {"I": 0, "A": 1, "S": 2}
"""Degrees l of the irreps."""


class CartesianNetwork(Network):
    """Base class of `TensorNet` and `TensorNet2`: the parts that both have.

    Parameters
    ----------
    config
        Arguments of the subclass's constructor.
    self_interaction
        Whether an atom is a neighbour of itself, at distance zero.
    irreps
        Parts of the tensors.

    Raises
    ------
    ValueError
        If the group or a name are unknown, a size cannot be, or the cutoffs are not
        0 <= lower < upper.
    """

    def __init__(
        self, config: dict[str, Any], self_interaction: bool = True, irreps: str = "IAS"
    ) -> None:
        names = ("channels", "radial_functions", "charge_channels", "max_number")
        check_sizes(config["layers"], **{name: config[name] for name in names if name in config})
        group, lower, cutoff = config["group"], config["cutoff_lower"], config["cutoff"]
        if group not in GROUPS:
            raise ValueError(f"unknown group {group!r}: expected one of {', '.join(GROUPS)}")
        if not 0 <= lower < cutoff < math.inf:
            raise ValueError(f"cutoffs {lower} and {cutoff}: expected 0 <= lower < upper")
        channels, functions = config["channels"], config["radial_functions"]
        super().__init__(
            config | {"cutoff": float(cutoff), "cutoff_lower": float(lower)},
            channels=channels,
            cutoff=cutoff,
            cutoff_lower=lower,
            max_number=config["max_number"],
        )
        self.irreps = irreps
        self.radial = radial_basis(
            config["radial"], cutoff, functions, lower, config["trainable_radial"]
        )
        self.envelope = CosineCutoff(cutoff, lower)
        self.embedding = TensorEmbedding(
            channels,
            functions,
            config["activation"],
            config["max_number"],
            self_interaction,
            irreps,
        )

    def feature_layout(self) -> FeatureLayout:
        """Those of I, A and S that the network has; components are the first axis."""
        irreps = consecutive_irreps((irrep, DEGREES[irrep]) for irrep in self.irreps)
        return FeatureLayout(irreps, axis=0, norms=True, tensor_basis=BASIS[ROWS["S"]])

    def new_readout(self, head: str | None = None) -> EnergyReadout:
        """`EnergyReadout` with the given head, ``mlp`` by default."""
        activation = str(self.config["activation"])
        return EnergyReadout(self.channels, head or "mlp", activation, irreps=self.irreps)

    def check_readout(self, readout: Readout) -> None:
        """Raise a ValueError if the readout reads other irreps."""
        read = readout.config.get("irreps", self.irreps)
        if read != self.irreps:
            raise ValueError(
                f"the network has the irreps {self.irreps}, the readout reads {read}: give both "
                "the same"
            )


class TensorNet(CartesianNetwork):
    """One 3x3 tensor per atom and channel from species and displacement vectors.

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
        Name of the activation function (see `activations.ACTIVATIONS`).
    cutoff, cutoff_lower
        Upper and lower cutoff distance, in the network's unit of length.
    max_number
        Size of the table of elements: atomic numbers below it can be embedded.
    group
        ``O(3)``: the energy is invariant under inversion; ``SO(3)``: it need not be.
    self_interaction
        Whether an atom sends a message to itself, at distance zero (as in torchmd-net).
    irreps
        Parts of the tensors to keep: ``IAS``, ``IS``, ``IA`` or ``I``. Other parts have neither
        features nor weights, and are dropped from every product; see `pruning`, which cuts such a
        network out of a larger one.

    Raises
    ------
    ValueError
        If irreps, group or a name are unknown, or the cutoffs are not 0 <= lower < upper.
    """

    has_tables = True

    def __init__(
        self,
        *,
        channels: int = 128,
        layers: int = 2,
        radial_functions: int = 32,
        radial: str = "expnorm",
        trainable_radial: bool = False,
        activation: str = "silu",
        cutoff: float = 4.5,
        cutoff_lower: float = 0.0,
        max_number: int = 128,
        group: str = "O(3)",
        self_interaction: bool = True,
        irreps: str = "IAS",
    ) -> None:
        check_irreps(irreps)
        config = {
            "channels": channels,
            "layers": layers,
            "radial_functions": radial_functions,
            "radial": radial,
            "trainable_radial": trainable_radial,
            "activation": activation,
            "cutoff": cutoff,
            "cutoff_lower": cutoff_lower,
            "max_number": max_number,
            "group": group,
            "self_interaction": self_interaction,
            "irreps": irreps,
        }
        super().__init__(config, self_interaction, irreps)
        self.layers = nn.ModuleList(
            [
                Interaction(
                    channels, radial_functions, activation, group, self_interaction, irreps
                )
                for _ in range(layers)
            ]
        )

    def forward(self, graph: Graph, vectors: Tensor, pairs: Pairs | None = None) -> Tensor:
        """Tensor features of every atom.

        Parameters
        ----------
        graph
            Graph, whose numbers, edge_index, system and charge are read.
        vectors
            Displacements r_j - r_i of the edges, (E, 3), in the network's unit of length.
        pairs
            Pairs of the edges: radial networks then evaluate each length once; None: once per
            edge.

        Returns
        -------
        Tensor
            Features, (n, N, F).
        """
        distances = torch.linalg.vector_norm(vectors, dim=1)
        # Tensors are built along r_i - r_j as in torchmd-net: this determines the sign of A.
        unit = -vectors / distances.unsqueeze(1)
        factors = self.edge_factors(distances, pairs)
        at_zero = self.edge_factors(torch.zeros(1, dtype=vectors.dtype, device=vectors.device))
        charge = graph.charge.to(vectors.dtype).index_select(0, graph.system)

        x = self.embedding(graph, unit, factors[0], at_zero[0])
        for k, layer in enumerate(self.layers):
            x = layer(x, graph, factors[k + 1], at_zero[k + 1], charge)
        return x

    def edge_factors(self, distances: Tensor, pairs: Pairs | None = None) -> list[Tensor]:
        """Radial networks of the distances (E,): factors (E, 3F) of I, A and S.

        The first belongs to the embedding, the others to the layers in order. Removed irreps have
        no factors. All factors are zero at the cutoff.
        """
        if self.table is not None:
            width = len(self.irreps) * self.channels
            return list(torch.split(self.table(distances), width, dim=1))
        else:
            if pairs is not None:
                distances = distances.index_select(0, pairs.one)
            basis = self.radial(distances)
            envelope = self.envelope(distances).unsqueeze(1)
            factors = [self.embedding.radial(basis) * envelope]
            for layer in self.layers:
                factors.append(layer.radial(basis) * envelope)  # type: ignore[operator]
            if pairs is not None:
                factors = [f.index_select(0, pairs.of_edge) for f in factors]
            return factors

    def use_table(self, table: RadialTable) -> None:
        """Replace the radial networks by a table of all edge factors, side by side."""
        self.table = table
        del self.radial, self.envelope, self.embedding.radial
        for layer in self.layers:
            del layer.radial

    def parse_kept(self, kept: Kept) -> str:
        """Check that the network has these irreps, and return them.

        Raises
        ------
        ValueError
            If it does not, or ``kept`` is not a string of irreps.
        """
        if not isinstance(kept, str):
            raise ValueError(
                f"a TensorNet has irreps, not degrees {list(kept)}: expected IS, IA or I"
            )
        check_irreps(kept)
        if not set(kept) <= set(self.irreps):
            raise ValueError(
                f"the network has the irreps {self.irreps}: {kept} is no part of them"
            )
        return kept

    def kept_without(self, name: str) -> str:
        """The letters of the other irreps."""
        return self.irreps.replace(name, "")

    def project(self, kept: Kept) -> str:
        """Omit the components of other irreps from products and directions."""
        irreps = self.parse_kept(kept)
        for module in self.modules():
            if isinstance(getattr(module, "algebra", None), TensorAlgebra):
                algebra = TensorAlgebra(self.irreps, irreps)
                module.algebra = algebra.to(next(self.parameters()).device)
        return irreps

    def smaller(self, kept: Kept, readout: Readout, tensors: Mapping[str, Tensor]) -> Smaller:
        """The network without the rows, matrices and radial functions of other irreps.

        Raises
        ------
        ValueError
            If the network does not have the irreps, or the readout is not an `EnergyReadout`.
        """
        irreps = self.parse_kept(kept)
        if not isinstance(readout, EnergyReadout):
            raise ValueError(f"a {type(readout).__name__} reads no irreps: expected EnergyReadout")
        config = self.config | {"irreps": irreps}
        with torch.device("meta"):
            shapes = {k: tensor.shape for k, tensor in TensorNet(**config).state_dict().items()}
        places = [self.irreps.index(irrep) for irrep in irreps]
        changed = {}
        for name, shape in shapes.items():
            name = f"representation.{name}"
            if tensors[name].shape != shape:
                # The first dimension consists of one block per irrep.
                blocks = tensors[name].chunk(len(self.irreps))
                changed[name] = torch.cat([blocks[place] for place in places])
        columns = torch.arange(len(self.irreps) * self.channels).view(-1, self.channels)
        for name, tensor in readout.without_invariants(columns[places].flatten()).items():
            changed[f"readout.{name}"] = tensor
        fewer = {"irreps": irreps, "norm_size": readout.norm_size}
        return Smaller(config, readout.config | fewer, changed)

    def multiplications(self, irreps: Sequence[Irrep], neighbours: float) -> float:
        """Sum over the embedding, the layers and the readout."""
        f, n, d = self.channels, len(irreps), sum(irrep.size for irrep in irreps)
        embedding = neighbours * f * (TABLE * n + n + d) + d * f * f + 2 * f * f * (1 + n)
        rows = [row for irrep in irreps for row in range(9)[ROWS[irrep.name]]]
        basis = BASIS[rows]
        both = torch.einsum("iab,jbc,kac->ijk", basis, basis, basis)
        terms = (both + both.transpose(0, 1)).abs() > 1e-12
        anticommutator, square = int(terms.sum()), int(torch.triu(terms.any(2)).sum())
        layer = neighbours * f * (TABLE * n + d) + 2 * d * f * f
        layer += f * (anticommutator + square + 6 * d)
        readout = n * f * f + f * f / 2 + f / 2
        return embedding + len(self.layers) * layer + readout


class TensorEmbedding(nn.Module):
    r"""Initial features of an atom from the directions and species of its neighbours.

    .. math::
        X_i = \sum_j \phi(r_{ij}) Z_{ij} \left( f_I \mathbb{1} + f_A [\hat r_{ij}]_\times
        + f_S (\hat r_{ij} \hat r_{ij}^T - \tfrac13 \mathbb{1}) \right)
        \qquad \text{(eqs. 6 to 8)}

    with :math:`Z_{ij} = W [e(Z_i), e(Z_j)] + b` and f linear in the radial basis. The sum is
    mixed over channels and scaled by a function of the norms (eqs. 9 and 10).
    """

    def __init__(
        self,
        channels: int,
        radial_functions: int,
        act: str,
        max_number: int,
        self_interaction: bool,
        irreps: str,
    ) -> None:
        super().__init__()
        self.channels = channels
        self.irreps = irreps
        self.self_interaction = self_interaction
        self.species = nn.Embedding(max_number, channels)
        self.species_pair = nn.Linear(2 * channels, channels)
        self.radial = nn.Linear(radial_functions, len(irreps) * channels)
        self.norm = nn.LayerNorm(channels)
        self.gate = nn.Sequential(
            nn.Linear(channels, 2 * channels),
            activation(act),
            nn.Linear(2 * channels, len(irreps) * channels),
            activation(act),
        )
        self.mix = TensorLinear(channels, irreps)
        self.algebra = TensorAlgebra(irreps)

    def forward(
        self,
        graph: Graph,
        unit: Tensor,
        factors: Tensor,
        at_zero: Tensor,
    ) -> Tensor:
        """Directions (E, 3) and `TensorNet.edge_factors` (E, 3F) -> (n, N, F)."""
        i, j = graph.edge_index[0], graph.edge_index[1]
        f, irreps = self.channels, len(self.irreps)
        species = self.species(graph.numbers)
        # W [e_i, e_j] is a sum of two terms, each computed per atom.
        receiver = species @ self.species_pair.weight[:, :f].t() + self.species_pair.bias
        sender = species @ self.species_pair.weight[:, f:].t()

        pair = receiver.index_select(0, i) + sender.index_select(0, j)
        by_irrep = (factors.view(-1, irreps, f) * pair.unsqueeze(1)).transpose(0, 1)
        edges = scale_irreps(self.algebra.directions(unit).unsqueeze(2), by_irrep)
        x = edges.new_zeros([edges.shape[0], graph.numbers.shape[0], f]).index_add(1, i, edges)
        if self.self_interaction:
            # At r = 0 there is no direction: only the scalar part remains, with norm sqrt(3).
            own = 3.0**0.5 * at_zero[:, :f] * (receiver + sender)
            x = torch.cat([x[:1] + own.unsqueeze(0), x[1:]])

        scale = self.gate(self.norm(norm_squared(x))).view(-1, irreps, f).transpose(0, 1)
        return scale_irreps(self.mix(x), scale)


class Interaction(nn.Module):
    r"""One layer of message passing.

    .. math::
        Y_i &= \mathrm{mix}(X_i / (\|X_i\|^2 + 1)) \qquad
        M_i = \sum_j f(r_{ij}) \odot Y_j \qquad \text{(eq. 11)} \\
        C_i &= (1 + q/10) (Y_i M_i + M_i Y_i) \text{ for O(3)}, \quad
        2 Y_i M_i \text{ for SO(3)} \qquad \text{(eq. 12)} \\
        \Delta X_i &= \mathrm{mix}(C_i / (\|C_i\|^2 + 1)) \\
        X_i &\leftarrow X_i / (\|X_i\|^2 + 1) + \Delta X_i + (1 + q/10) \Delta X_i^2
        \qquad \text{(eq. 13)}

    where f, one factor for each of I, A and S, is a network of the radial basis times the
    envelope, and q the total charge of the system.
    """

    def __init__(
        self,
        channels: int,
        radial_functions: int,
        act: str,
        group: str,
        self_interaction: bool,
        irreps: str,
    ) -> None:
        super().__init__()
        self.channels = channels
        self.irreps = irreps
        self.parity_conserving = group == "O(3)"
        self.self_interaction = self_interaction
        self.radial = nn.Sequential(
            nn.Linear(radial_functions, channels),
            activation(act),
            nn.Linear(channels, 2 * channels),
            activation(act),
            nn.Linear(2 * channels, len(irreps) * channels),
            activation(act),
        )
        self.mix_in = TensorLinear(channels, irreps)
        self.mix_out = TensorLinear(channels, irreps)
        self.algebra = TensorAlgebra(irreps)

    def forward(
        self,
        x: Tensor,
        graph: Graph,
        factors: Tensor,
        at_zero: Tensor,
        charge: Tensor,
    ) -> Tensor:
        """(n, N, F) and `TensorNet.edge_factors` (E, 3F) -> (n, N, F).

        ``charge`` (N,) is the total charge of the atom's system.
        """
        charge_factor = (1 + 0.1 * charge).unsqueeze(1)
        x = x / (norm_squared(x) + 1)
        y = self.mix_in(x)

        sent = scale_irreps(y.index_select(1, graph.edge_index[1]), self._by_irrep(factors))
        message = torch.zeros_like(y).index_add(1, graph.edge_index[0], sent)
        if self.self_interaction:
            message = message + scale_irreps(y, self._by_irrep(at_zero))

        if self.parity_conserving:
            c = charge_factor * self.algebra.anticommutator(y, message)
        else:
            c = 2 * self.algebra.product(y, message)
        dx = self.mix_out(c / (norm_squared(c) + 1))
        return x + dx + charge_factor * self.algebra.square(dx)

    def _by_irrep(self, factors: Tensor) -> Tensor:
        """(E, 3F) -> (3, E, F)."""
        return factors.view(-1, len(self.irreps), self.channels).transpose(0, 1)
