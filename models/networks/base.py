"""What the rest of the package asks of a network, and what its features are.

`Network` is the base class: a new network is a subclass of it in a file of its own, and a row of
``NETWORKS`` in this package's ``__init__``. Nothing else knows networks by their names, save the
fused kernels and the readers of other programs' checkpoints.
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
    """``I``, ``A``, ``S`` of TensorNet or ``l=0``, ``l=1``, ... of TDN."""
    degree: int
    """l; its components are 2 l + 1."""
    first: int
    """Its first component."""

    @property
    def size(self) -> int:
        """Number of components."""
        return 2 * self.degree + 1

    @property
    def place(self) -> slice:
        """Its components."""
        return slice(self.first, self.first + self.size)


def consecutive_irreps(named: Iterable[tuple[str, int]]) -> tuple[Irrep, ...]:
    """Irreps that lie one after the other, from their names and degrees."""
    found: list[Irrep] = []
    first = 0
    for name, degree in named:
        found.append(Irrep(name, degree, first))
        first += found[-1].size
    return tuple(found)


@dataclass(frozen=True)
class FeatureLayout:
    """Where the features of a network hold its irreps, and what these mean."""

    irreps: tuple[Irrep, ...]
    """By their places."""
    axis: int
    """That of the components: 0 in features (d, N, F), 1 in (N, d, F)."""
    norms: bool
    """Whether invariants are the squared norms of all irreps; otherwise the scalars themselves."""
    tensor_basis: Tensor
    """(5, 3, 3) float64: the symmetric traceless matrices that the components of l = 2 mean."""

    def of_degree(self, degree: int) -> slice | None:
        """Components of the irrep of that degree, or None: 1 is a vector, 2 a tensor."""
        return next((irrep.place for irrep in self.irreps if irrep.degree == degree), None)

    def by_atom(self, x: Tensor) -> Tensor:
        """Features as (N, d, F), whatever the axis of their components."""
        return x.movedim(self.axis, 1)

    @property
    def invariants_per_channel(self) -> int:
        """Number of invariants of an atom and channel."""
        return len(self.irreps) if self.norms else 1

    def invariants(self, x: Tensor) -> Tensor:
        """Invariants (N, k F) of features (N, d, F), k of each channel."""
        if not self.norms:
            return x[:, 0]
        return torch.cat([x[:, irrep.place].square().sum(1) for irrep in self.irreps], dim=1)


Kept = str | Sequence[int]
"""Irreps in the words of a network's constructor: ``"IS"`` of TensorNet, ``[0, 2]`` of TDN."""
TABLE = 4
"""Multiplications for one value of a cubic spline."""


class Smaller(NamedTuple):
    """The network and readout that are left when irreps are removed."""

    network: dict[str, Any]
    """Arguments of the network."""
    readout: dict[str, Any]
    """Arguments of its readout."""
    tensors: dict[str, Tensor]
    """Those of the potential's state that changed, by name."""


class Network(nn.Module):
    """A graph and its edge vectors in, equivariant features of the atoms out.

    Edge vectors are its only geometry. A subclass calls this constructor, registers ``layers``
    and defines `forward`, `feature_layout` and `new_readout`; the other methods are for tables
    (`edge_factors`, `use_table` and ``has_tables``) and for removing irreps (`parse_kept`,
    `kept_without`, `project`, `smaller` and `multiplications`), which it may leave out: they then
    refuse.

    Parameters
    ----------
    config
        Arguments of the subclass's constructor: plain data, kept in checkpoints.
    channels
        Features of each atom and component, F.
    cutoff
        In the network's unit of length.
    cutoff_lower
        Distance below which it does not tell distances apart.
    max_number
        Size of the table of elements: atomic numbers below it can be embedded.
    smooth
        Whether an edge has no influence at the cutoff. Otherwise edges beyond it count too,
        where the potential has them.
    """

    if TYPE_CHECKING:  # TorchScript would read the annotation, and does not know the type.
        layers: nn.ModuleList
        """Called one after the other; each takes features as its first argument and gives the
        next ones."""

    has_tables = False
    """Whether its radial networks can be replaced by a table."""

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
            Of one system or several; its positions are not read.
        vectors
            (E, 3) displacements r_j - r_i of the edges, in the network's unit of length.
        pairs
            Of the edges, for radial networks that see each length once; None: as often as it
            occurs.

        Returns
        -------
        As `feature_layout` says: (d, N, F) or (N, d, F).
        """
        raise NotImplementedError(f"{type(self).__name__} has no forward")

    def feature_layout(self) -> FeatureLayout:
        """Where the features hold what heads and analyses read."""
        raise NotImplementedError(f"{type(self).__name__} has no feature_layout")

    def new_readout(self, head: str | None = None) -> Readout:
        """A readout of energies with new weights.

        Parameters
        ----------
        head
            Its kind, one of ``heads`` of the row of ``NETWORKS``; None: the usual one.
        """
        raise NotImplementedError(f"{type(self).__name__} has no new_readout")

    def check_readout(self, readout: Readout) -> None:
        """Raise a ValueError if the readout does not fit the features."""

    # Tables

    def edge_factors(self, distances: Tensor, pairs: Pairs | None = None) -> list[Tensor]:
        """All that the network asks of distances (E,): tensors (E, M), of any number and width.

        Once `use_table` was called they come from the table.
        """
        raise ValueError(self._lacks("tables"))

    def use_table(self, table: RadialTable) -> None:
        """Take the edge factors from a table, side by side, and drop the radial networks."""
        raise ValueError(self._lacks("tables"))

    # Removing irreps

    def parse_kept(self, kept: Kept) -> Kept:
        """The irreps themselves.

        Raises
        ------
        ValueError
            If the network does not have them, or makes no smaller network of them.
        """
        raise ValueError(self._lacks("orders to remove"))

    def kept_without(self, name: str) -> Kept:
        """What is kept when the irrep of that name is removed."""
        raise ValueError(self._lacks("orders to remove"))

    def project(self, kept: Kept) -> str:
        """Leave all other irreps out of every operation from now on; describes what is kept."""
        raise ValueError(self._lacks("orders to remove"))

    def smaller(self, kept: Kept, readout: Readout, tensors: Mapping[str, Tensor]) -> Smaller:
        """The network whose energies are those of this one after `project`, to rounding.

        Parameters
        ----------
        kept
            As `parse_kept` gives it.
        readout
            Of this network's features.
        tensors
            The state of the potential.
        """
        raise ValueError(self._lacks("orders to remove"))

    def multiplications(self, irreps: Sequence[Irrep], neighbours: float) -> float:
        """Multiplications per atom of one evaluation of the energy with these irreps.

        Counted is the forward pass with tables for the radial networks.
        """
        raise ValueError(self._lacks("count of its multiplications"))

    def _lacks(self, what: str) -> str:
        return f"{type(self).__name__} has no {what}"
