"""Interface of networks, and the layout of their features.

`Network` is the base class: a new network is a subclass in its own file and a row of ``NETWORKS``
in this package's ``__init__``. Only the fused kernels and the readers of other programs'
checkpoints refer to networks by name.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from ..graph import Graph, Pairs
from ..heads.energy import Readout
from ..maths.splines import RadialTable


class Irrep(NamedTuple):
    """One irreducible representation among the components of the features."""

    name: str
    """Name: ``I``, ``A``, ``S`` of TensorNet or ``l=0``, ``l=1``, ... of TDN."""
    degree: int
    """Degree l; there are 2 l + 1 components."""
    first: int
    """Index of its first component."""

    @property
    def size(self) -> int:
        """Number of components."""
        return 2 * self.degree + 1

    @property
    def place(self) -> slice:
        """Slice of its components."""
        return slice(self.first, self.first + self.size)


def consecutive_irreps(named: Iterable[tuple[str, int]]) -> tuple[Irrep, ...]:
    """Contiguous irreps from their names and degrees."""
    found: list[Irrep] = []
    first = 0
    for name, degree in named:
        found.append(Irrep(name, degree, first))
        first += found[-1].size
    return tuple(found)


@dataclass(frozen=True)
class FeatureLayout:
    """Position and meaning of the irreps in the features of a network."""

    irreps: tuple[Irrep, ...]
    """Irreps in the order of their components."""
    axis: int
    """Axis of the components: 0 in features (d, N, F), 1 in (N, d, F)."""
    norms: bool
    """Whether invariants are the squared norms of all irreps; otherwise they are the scalars."""
    tensor_basis: Tensor
    """Symmetric traceless matrices of the components of l = 2, (5, 3, 3) float64."""

    def of_degree(self, degree: int) -> slice | None:
        """Slice of the irrep of a degree (1: vector, 2: tensor); None if there is none."""
        return next((irrep.place for irrep in self.irreps if irrep.degree == degree), None)

    def by_atom(self, x: Tensor) -> Tensor:
        """Features as (N, d, F), for either axis of the components."""
        return x.movedim(self.axis, 1)

    @property
    def invariants_per_channel(self) -> int:
        """Number of invariants per atom and channel."""
        return len(self.irreps) if self.norms else 1

    def invariants(self, x: Tensor) -> Tensor:
        """Invariants (N, k F) of features (N, d, F), k per channel."""
        if not self.norms:
            return x[:, 0]
        return torch.cat([x[:, irrep.place].square().sum(1) for irrep in self.irreps], dim=1)


Kept = str | Sequence[int]
"""Irreps as a network's constructor takes them: ``"IS"`` of TensorNet, ``[0, 2]`` of TDN."""
TABLE = 4
"""Number of multiplications per value of a cubic spline."""
MOST_LAYERS = 1000
"""Largest number of layers: more are a slip, and would fill the memory without an error."""


def check_sizes(layers: int, **sizes: int) -> None:
    """Raise a ValueError if there cannot be this number of layers, or a size is below 1."""
    if not 0 <= layers <= MOST_LAYERS:
        raise ValueError(f"layers is {layers}: expected 0 to {MOST_LAYERS}")
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f"{name} is {size}: expected 1 or more")


class Smaller(NamedTuple):
    """Network and readout after irreps are removed."""

    network: dict[str, Any]
    """Arguments of the network."""
    readout: dict[str, Any]
    """Arguments of the readout."""
    tensors: dict[str, Tensor]
    """Changed tensors of the potential's state, by name."""


class Network(nn.Module):
    """Base class: equivariant features of atoms from a graph and its edge vectors.

    The geometry enters through the edge vectors only. A subclass calls this constructor, registers
    ``layers`` and defines `forward`, `feature_layout` and `new_readout`. The other methods are
    optional. `features_and_charges` is for networks that predict charges. The others raise a
    ValueError unless overridden: those for tables (`edge_factors`,
    `use_table` and ``has_tables``) and for removing irreps (`parse_kept`, `kept_without`,
    `project`, `smaller` and `multiplications`).

    Parameters
    ----------
    config
        Arguments of the subclass's constructor: plain data, kept in checkpoints.
    channels
        Number of features per atom and component, F.
    cutoff
        Cutoff distance, in the network's unit of length.
    cutoff_lower
        Distance below which all distances are treated alike.
    max_number
        Size of the table of elements: atomic numbers below it can be embedded.
    smooth
        Whether the influence of an edge vanishes at the cutoff. Otherwise edges beyond the cutoff
        count too, if the potential's list has any.
    """

    if TYPE_CHECKING:  # TorchScript would read the annotation, and does not support the type.
        layers: nn.ModuleList
        """Layers in order; each takes features as its first argument and returns the next ones."""

    has_tables = False
    """Whether its radial networks can be replaced by a table."""
    charge_levels = 0
    """Number of levels of the charges that it predicts; 0: it predicts none."""
    charge_channels = 0
    """Number of channels per level of charges."""

    def __init__(
        self,
        config: dict[str, Any],
        *,
        channels: int,
        cutoff: float,
        max_number: int,
        cutoff_lower: float = 0.0,
        smooth: bool = True,
    ) -> None:
        super().__init__()
        self.config = config
        self.channels = channels
        self.cutoff = float(cutoff)
        self.cutoff_lower = float(cutoff_lower)
        self.max_number = max_number
        self.smooth = smooth
        self.table: RadialTable | None = None

    def forward(self, graph: Graph, vectors: Tensor, pairs: Pairs | None = None) -> Tensor:
        """Features of every atom.

        Parameters
        ----------
        graph
            One or more systems; the positions are not read.
        vectors
            Displacements r_j - r_i of the edges, (E, 3), in the network's unit of length.
        pairs
            Pairs of the edges: radial networks then evaluate each length once; None: once per
            edge.

        Returns
        -------
        Tensor
            Features, (d, N, F) or (N, d, F), see `feature_layout`.
        """
        raise NotImplementedError(f"{type(self).__name__} has no forward")

    def features_and_charges(
        self, graph: Graph, vectors: Tensor, pairs: Pairs | None = None
    ) -> tuple[Tensor, Tensor]:
        """`forward`, and charges of the atoms, (N, charge_levels * charge_channels), e.

        The charges of each channel sum to the charge of their system. A network that predicts
        charges overrides this.
        """
        return self.forward(graph, vectors, pairs), vectors.new_zeros(graph.numbers.shape[0], 0)

    def feature_layout(self) -> FeatureLayout:
        """Layout of the features, for heads and analyses."""
        raise NotImplementedError(f"{type(self).__name__} has no feature_layout")

    def new_readout(self, head: str | None = None) -> Readout:
        """Energy readout with new weights.

        Parameters
        ----------
        head
            Kind of readout, one of ``heads`` in the row of ``NETWORKS``; None: the default.
        """
        raise NotImplementedError(f"{type(self).__name__} has no new_readout")

    def check_readout(self, readout: Readout) -> None:
        """Raise a ValueError if the readout does not fit the features of the network."""

    # Tables

    def edge_factors(self, distances: Tensor, pairs: Pairs | None = None) -> list[Tensor]:
        """All functions of the distances (E,) that the network uses: a list of tensors (E, M).

        After `use_table` they are taken from the table.
        """
        raise ValueError(self._lacks("tables"))

    def use_table(self, table: RadialTable) -> None:
        """Replace the radial networks by a table of all edge factors, side by side."""
        raise ValueError(self._lacks("tables"))

    # Removing irreps

    def parse_kept(self, kept: Kept) -> Kept:
        """Check the irreps to keep, and return them.

        Raises
        ------
        ValueError
            If the network does not have them, or they do not make a smaller network.
        """
        raise ValueError(self._lacks("orders to remove"))

    def kept_without(self, name: str) -> Kept:
        """Irreps to keep when the irrep of that name is removed."""
        raise ValueError(self._lacks("orders to remove"))

    def project(self, kept: Kept) -> str:
        """Omit all other irreps from every operation; returns a description of those kept."""
        raise ValueError(self._lacks("orders to remove"))

    def smaller(self, kept: Kept, readout: Readout, tensors: Mapping[str, Tensor]) -> Smaller:
        """Smaller network with the energies of this one after `project`, up to rounding.

        Parameters
        ----------
        kept
            Irreps to keep, as `parse_kept` returns them.
        readout
            Readout of this network's features.
        tensors
            State of the potential.
        """
        raise ValueError(self._lacks("orders to remove"))

    def multiplications(self, irreps: Sequence[Irrep], neighbours: float) -> float:
        """Number of multiplications per atom for one energy evaluation with these irreps.

        This counts the forward pass with tables in place of the radial networks.
        """
        raise ValueError(self._lacks("count of its multiplications"))

    def _lacks(self, what: str) -> str:
        return f"{type(self).__name__} has no {what}"
