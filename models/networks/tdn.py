r"""TDN: an equivariant transformer whose tensor products are one bilinear map for all paths.

Lin et al., "Tensor Decomposition Networks for Fast Machine Learning Interatomic Potential
Computations", NeurIPS 2025 (arXiv:2507.01131), adapted to dynamics: the cutoff is smooth, every
neighbour counts, and forces are the gradient of the energy; and to accuracy: weights of each
degree, products of atoms with themselves, species of senders (`PUBLISHED` is without them).

Notation: x features (N, d, C) of N atoms, d components, which are (L + 1)^2 for degrees 0 to L,
and C channels; i receives from j along the edge vector r_j - r_i of length r, whose harmonics are
Y. Lengths are in the units of the network's cutoff.
"""

import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType

import torch
from torch import Tensor, nn

from ..graph import Graph, Pairs
from ..heads.energy import Readout, ScalarReadout
from ..maths.cp import factors_for
from ..maths.harmonics import (
    SphericalHarmonics,
    check_degree,
    check_degrees,
    check_group,
    clebsch_gordan,
    degree_slice,
    degree_slices,
)
from ..maths.radial import CosineCutoff
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
from .tdn_blocks import Block, DegreeEmbedding, Edges, GraphAttention
from .tdn_layers import DegreeNorm, RadialNetwork, TrainedGaussianBasis
from .tdn_product import (
    ContractedProduct,
    ExactCoupling,
    FactoredCoupling,
    FactoredProduct,
    PathProduct,
    Product,
    parse_evaluation,
)

PRODUCTS = ("exact_cg", "cp")
ENVELOPES = ("cosine", "none")
WEIGHTS = ("by_degree", "shared")
PUBLISHED = MappingProxyType({"weights": "shared", "self_product": False, "sender_species": False})
"""Options of the published network, which files made before these options mean."""


class TDN(Network):
    """Features of several degrees for each atom from species and displacement vectors.

    Parameters
    ----------
    channels
        Number of features per atom and component, C.
    layers
        Number of transformer blocks.
    lmax
        Highest degree L: 1 to 6 (1 to 4 for ``cp``); None: the highest of ``degrees``, or 1.
    heads
        Number of attention heads; a divisor of the channels.
    radial_functions
        Number of radial functions, K.
    radial_widths
        Widths of the hidden layers of the radial networks.
    cutoff
        Cutoff distance, in the network's unit of length.
    max_number
        Size of the table of elements: atomic numbers below it can be embedded.
    group
        ``O(3)``: only paths with l1 + l2 + l3 even, so that inversion leaves the energy unchanged;
        ``SO(3)``: all paths, as published, so that mirror images have different energies.
    product
        ``exact_cg``: the Clebsch-Gordan tensor; ``cp``: its decomposition.
    rank
        Rank of the decomposition: ``"exact"``, ``"paper"`` or a number (see `cp`).
    evaluation
        ``contracted`` or ``factored`` (see `tdn_product`); ``auto`` chooses the faster one. All
        give the same numbers.
    envelope
        ``cosine``, or ``none`` as released: energies then jump when a neighbour enters.
    norm_epsilon
        Epsilon of the norms of degrees l > 0, see `DegreeNorm` (1e-5 in the released code).
    average_degree
        Typical number of neighbours: the embedding of the surroundings is divided by its root.
    dropout
        Fraction of attention weights dropped in training (0.2 in the released code).
    weights
        ``by_degree``: linear maps and tensor products have weights for each degree; ``shared``:
        all degrees share one matrix and one radial function per channel, as published.
    self_product
        Whether the feed-forward networks multiply each atom's features with a linear map of
        themselves (absent in the published network).
    sender_species
        Whether the embedding of the surroundings knows the neighbours' species (as published, it
        does not).
    degrees
        Degrees of the features and of the edges' harmonics, including 0; None: all from 0 to L.
        Paths of other degrees are omitted from M (or from its decomposition for ``lmax``, if it is
        factored). See `pruning`, which cuts such a network out of a larger one.

    Raises
    ------
    ValueError
        If an option is out of range or unknown, or options contradict each other.
    """

    has_tables = True

    def __init__(
        self,
        *,
        channels: int = 128,
        layers: int = 4,
        lmax: int | None = None,
        heads: int = 4,
        radial_functions: int = 128,
        radial_widths: Sequence[int] = (64, 64),
        cutoff: float = 4.5,
        max_number: int = 80,
        group: str = "O(3)",
        product: str = "exact_cg",
        rank: int | str = "exact",
        evaluation: str = "auto",
        envelope: str = "cosine",
        norm_epsilon: float = 0.1,
        average_degree: float = 18.6,
        dropout: float = 0.0,
        weights: str = "by_degree",
        self_product: bool = True,
        sender_species: bool = True,
        degrees: Sequence[int] | None = None,
    ) -> None:
        lmax, degrees = parse_degrees(lmax, degrees)
        check_group(group)
        check_sizes(
            layers,
            channels=channels,
            radial_functions=radial_functions,
            max_number=max_number,
        )
        if product not in PRODUCTS:
            raise ValueError(f"unknown product {product!r}: expected one of {', '.join(PRODUCTS)}")
        if envelope not in ENVELOPES:
            raise ValueError(
                f"unknown envelope {envelope!r}: expected one of {', '.join(ENVELOPES)}"
            )
        if weights not in WEIGHTS:
            raise ValueError(f"unknown weights {weights!r}: expected one of {', '.join(WEIGHTS)}")
        if heads < 1 or channels < 1 or channels % heads:
            raise ValueError(f"{heads} heads of {channels} channels: expected a divisor of them")
        for name, value in (
            ("cutoff", cutoff),
            ("norm_epsilon", norm_epsilon),
            ("average_degree", average_degree),
        ):
            if not 0 < value < math.inf:
                raise ValueError(f"{name} is {value}: expected a positive number")
        if any(width < 1 for width in radial_widths):
            raise ValueError(
                f"radial_widths are {list(radial_widths)}: expected 1 or more of each"
            )
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout is {dropout}: expected a share from 0 to below 1")
        contracted = parse_evaluation(evaluation)
        if product == "cp":
            factors = factors_for(lmax, group, rank)
            rank = factors.a.shape[1]
            a, b, c = (torch.cat([f[degree_slice(degree)] for degree in degrees]) for f in factors)
            coupling: nn.Module = FactoredCoupling(a, b, c, degrees, contracted)
        else:
            coupling = ExactCoupling(degrees, group, contracted)
        config = {
            "channels": channels,
            "layers": layers,
            "lmax": lmax,
            "heads": heads,
            "radial_functions": radial_functions,
            "radial_widths": list(radial_widths),
            "cutoff": float(cutoff),
            "max_number": max_number,
            "group": group,
            "product": product,
            "rank": rank,
            "evaluation": evaluation,
            "envelope": envelope,
            "norm_epsilon": float(norm_epsilon),
            "average_degree": float(average_degree),
            "dropout": float(dropout),
            "weights": weights,
            "self_product": bool(self_product),
            "sender_species": bool(sender_species),
            "degrees": None if len(degrees) == lmax + 1 else list(degrees),
        }
        super().__init__(
            config,
            channels=channels,
            cutoff=cutoff,
            max_number=max_number,
            smooth=envelope == "cosine",
        )
        self.coupling = coupling
        self.degrees = list(degrees)
        self.harmonics = SphericalHarmonics(max(degrees), degrees)
        self.radial = TrainedGaussianBasis(cutoff, radial_functions)
        self.envelope = CosineCutoff(cutoff)
        self.species = nn.Embedding(max_number, channels)
        nn.init.uniform_(self.species.weight, -1, 1)

        shared = weights == "shared"
        self.radial_shape = [1 if shared else len(degrees), channels]

        def tensor_product() -> Product:
            if contracted:
                return ContractedProduct()
            return FactoredProduct(shared) if product == "cp" else PathProduct(degrees, group)

        def radial_network() -> RadialNetwork:
            return RadialNetwork(
                radial_functions, list(radial_widths), math.prod(self.radial_shape)
            )

        self.surroundings = DegreeEmbedding(
            channels,
            degrees,
            radial_network(),
            average_degree,
            shared,
            max_number if sender_species else None,
        )

        def block() -> Block:
            attention = GraphAttention(
                channels,
                heads,
                tensor_product(),
                radial_network(),
                self.smooth,
                dropout,
                degrees,
                shared,
            )
            norms = [DegreeNorm(channels, degrees, norm_epsilon) for _ in range(2)]
            return Block(channels, attention, norms, degrees, shared, self_product)

        self.layers = nn.ModuleList([block() for _ in range(layers)])

    def feature_layout(self) -> FeatureLayout:
        """One irrep for each degree; components are the second axis."""
        irreps = consecutive_irreps((f"l={degree}", degree) for degree in self.degrees)
        basis = torch.from_numpy(math.sqrt(5) * clebsch_gordan(1, 1, 2)).permute(2, 0, 1)
        return FeatureLayout(irreps, axis=1, norms=False, tensor_basis=basis)

    def new_readout(self, head: str | None = None) -> ScalarReadout:
        """`ScalarReadout`; there is only one kind.

        Raises
        ------
        ValueError
            If ``head`` is not None.
        """
        if head is not None:
            raise ValueError(f"head is {head!r}: the readout of a TDN has none to choose from")
        return ScalarReadout(self.channels)

    def forward(self, graph: Graph, vectors: Tensor, pairs: Pairs | None = None) -> Tensor:
        """Features of every atom.

        Parameters
        ----------
        graph
            Graph, whose numbers and edge_index are read.
        vectors
            Displacements r_j - r_i of the edges, (E, 3), in the network's unit of length.
        pairs
            Pairs of the edges: radial networks then evaluate each length once; None: once per
            edge.

        Returns
        -------
        Tensor
            Features, (N, d, C).
        """
        distances = torch.linalg.vector_norm(vectors, dim=1)
        coupling = self.coupling(self.harmonics(vectors / distances.unsqueeze(1)))
        envelope = self.envelope(distances) if self.smooth else torch.ones_like(distances)
        edges = Edges(graph.edge_index[0], graph.edge_index[1], envelope.unsqueeze(1))
        weights: list[Tensor] = []
        for w in self.edge_factors(distances, pairs):
            weights.append(w.view(w.shape[0], w.shape[1] // self.channels, self.channels))
        species = self.species(graph.numbers).unsqueeze(1)
        x = self.surroundings(edges, weights[0], coupling, graph.numbers)
        x = torch.cat([x[:, :1] + species, x[:, 1:]], dim=1)
        for k, layer in enumerate(self.layers):
            x = layer(x, edges, weights[k + 1], coupling)
        return x

    def edge_factors(self, distances: Tensor, pairs: Pairs | None = None) -> list[Tensor]:
        """Radial networks of the distances (E,): weights of the tensor products.

        (E, degrees C), or (E, C) if degrees share them. The first belongs to the embedding, the
        others to the layers in order.
        """
        if self.table is not None:
            width = self.radial_shape[0] * self.radial_shape[1]
            return list(torch.split(self.table(distances), width, dim=1))
        else:
            if pairs is not None:
                distances = distances.index_select(0, pairs.one)
            basis = self.radial(distances)
            weights = [self.surroundings.radial(basis)]
            for layer in self.layers:
                weights.append(layer.weight(basis))  # type: ignore[operator]
            if pairs is not None:
                weights = [w.index_select(0, pairs.of_edge) for w in weights]
            return weights

    def use_table(self, table: RadialTable) -> None:
        """Replace the radial networks by a table of all weights, side by side."""
        self.table = table
        del self.radial, self.surroundings.radial
        for layer in self.layers:
            del layer.attention.radial  # type: ignore[union-attr]

    def parse_kept(self, kept: Kept) -> tuple[int, ...]:
        """Check that the network has these degrees, 0 among them, and return them.

        Raises
        ------
        ValueError
            If it does not, or ``kept`` is not a sequence of degrees.
        """
        if isinstance(kept, str):
            raise ValueError(f"a TDN has degrees, not irreps {kept}: expected (0, 2) or the like")
        found = check_degrees(kept)
        if not set(found) <= set(self.degrees):
            raise ValueError(
                f"the network has the degrees {self.degrees}: {list(kept)} is no part of them"
            )
        return found

    def kept_without(self, name: str) -> list[int]:
        """The other degrees."""
        return [degree for degree in self.degrees if f"l={degree}" != name]

    def project(self, kept: Kept) -> str:
        """Omit the components of other degrees from the tensor product."""
        degrees = self.parse_kept(kept)
        each = [torch.full((2 * n + 1,), float(n in degrees)) for n in self.degrees]
        self.coupling.mask(torch.cat(each).double())  # type: ignore[operator]
        return "l = " + ", ".join(map(str, degrees))

    def smaller(self, kept: Kept, readout: Readout, tensors: Mapping[str, Tensor]) -> Smaller:
        """The network without the components and norms of other degrees."""
        degrees = self.parse_kept(kept)
        places = degree_slices(self.degrees)
        rows = [self.degrees.index(degree) for degree in degrees]
        depth = 3 * len(self.config["radial_widths"])  # of the last layer of a radial network
        last = (f"radial.{depth}.weight", f"radial.{depth}.bias")
        changed = {}
        for name, tensor in tensors.items():
            if name.startswith("representation.coupling."):
                changed[name] = torch.cat([tensor[places[degree]] for degree in degrees])
            elif name.endswith((".norm_1.weight", ".norm_2.weight")) or (
                name.startswith("representation.") and tensor.ndim == 3  # a matrix of each degree
            ):
                changed[name] = tensor[rows]
            elif name.endswith(last) and self.radial_shape[0] > 1:
                each = tensor.view(self.radial_shape[0], self.channels, *tensor.shape[1:])
                changed[name] = each[rows].flatten(0, 1)
        config = self.config | {"degrees": list(degrees)}
        if config["product"] == "exact_cg":
            config["lmax"] = max(degrees)
        return Smaller(config, readout.config, changed)

    def multiplications(self, irreps: Sequence[Irrep], neighbours: float) -> float:
        """Sum over the embedding, the blocks and the readout."""
        c, d = self.channels, sum(irrep.size for irrep in irreps)
        table = TABLE * (1 if self.config["weights"] == "shared" else len(irreps))
        embedding = neighbours * c * (table + d) + d * c * c
        edge = c * (table + 2 * d * d) + c * c * (d + 2) + c
        atom = c * c * (5 * d + 1)
        if self.config["self_product"]:
            atom += c * d * (c + 2 * d)
        readout = c * c + c
        return embedding + len(self.layers) * (neighbours * edge + atom) + readout


def parse_degrees(lmax: int | None, degrees: Sequence[int] | None) -> tuple[int, tuple[int, ...]]:
    """L and the degrees from the options of `TDN`.

    Raises
    ------
    ValueError
        If L is out of range or below one of the degrees, or the degrees are not valid.
    """
    if degrees is None:
        lmax = check_degree(1 if lmax is None else lmax, lowest=1)
        return lmax, tuple(range(lmax + 1))
    found = check_degrees(degrees)
    lmax = max(found) if lmax is None else check_degree(lmax)
    if lmax < max(found):
        raise ValueError(f"degrees are {list(degrees)} and lmax is {lmax}: expected none above it")
    return lmax, found
