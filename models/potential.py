"""Energies, forces and virial of a graph, in eV and Angstrom.

Conventions: forces = -dE/dR; virial = -dE/dstrain (symmetric strain), so that ASE's stress is
``-virial / volume``. See ``docs/reference/conventions.md``.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .graph import Graph, Pairs, shorter_edges, within
from .heads.base import Head
from .heads.charges import ChargeReadout
from .heads.coulomb import CoulombEnergy, parse_coulomb_cutoff
from .heads.energy import Readout
from .heads.repulsion import Repulsion
from .maths.double import DoubleConstants
from .networks.base import Network
from .parts import Part
from .quantities import HEADS, QUANTITIES
from .units import energy_in_ev, length_in_angstrom

DTYPES = {"float32": torch.float32, "float64": torch.float64}


def parse_dtype(dtype: str | torch.dtype) -> torch.dtype:
    """The torch dtype of ``"float32"`` or ``"float64"``.

    Raises
    ------
    ValueError
        If ``dtype`` is anything else.
    """
    if isinstance(dtype, torch.dtype) and dtype in DTYPES.values():
        return dtype
    if isinstance(dtype, str) and dtype in DTYPES:
        return DTYPES[dtype]
    raise ValueError(f"dtype is {dtype!r}: expected one of {', '.join(map(repr, DTYPES))}")


class Prediction(NamedTuple):
    """Prediction of a potential for the B systems of a graph; float64."""

    energy: Tensor
    """Energies of the systems, (B,), eV."""
    energies: Tensor
    """Energies of the atoms, (N,), eV; they sum to the energy of their system."""
    forces: Tensor
    """Forces, (N, 3), eV/Angstrom."""
    virial: Tensor
    """Virial -dE/dstrain, (B, 3, 3), eV, symmetric."""
    virials: Tensor
    """Shares of the atoms in the virial of their system, (N, 3, 3), eV, symmetric; each atom of a
    pair has half of what the pair adds."""


class AtomicScale(DoubleConstants):
    r"""Scale, references and mean that turn the network's output into energies.

    .. math:: E_i = \sigma e_i + E_{ref}(Z_i) + \mu / N

    The table stays float64 regardless of the network's dtype: total energies are thousands of
    eV, and float32 would leave 1e-4 eV of noise in them.

    Parameters
    ----------
    references, scale, mean
        Parameters of `Potential`.
    per_atom
        Whether the outputs sum to an energy per atom: :math:`\sigma` is then multiplied by N.
    """

    references: Tensor
    scale: Tensor
    mean: Tensor

    def __init__(
        self,
        references: Sequence[float] | Tensor,
        scale: float = 1.0,
        mean: float = 0.0,
        per_atom: bool = False,
    ) -> None:
        super().__init__()
        self.per_atom = per_atom
        table = torch.as_tensor(references, dtype=torch.float64)
        self.register_buffer("references", table.clone())
        self.register_buffer("scale", torch.tensor(float(scale), dtype=torch.float64))
        self.register_buffer("mean", torch.tensor(float(mean), dtype=torch.float64))

    def forward(self, outputs: Tensor, graph: Graph, part: Part | None = None) -> Tensor:
        """Outputs (N,) of the network -> energies (N,), float64, in the network's unit.

        ``part``: the place of the graph in the one system that it is a part of.
        """
        sizes = self._sizes(graph, part)
        slope = self.scale * sizes if self.per_atom else self.scale
        return slope * outputs.double() + (self.references[graph.numbers] + self.mean / sizes)

    def slope(self, graph: Graph) -> Tensor:
        """Derivative of the energies with respect to the outputs, float64, (N,) or a scalar."""
        return self.scale * self._sizes(graph) if self.per_atom else self.scale

    def _sizes(self, graph: Graph, part: Part | None = None) -> Tensor:
        """Number of atoms in the system of each atom, (N,) float64."""
        # Not bincount, which copies its largest value from a CUDA device to the host.
        one = torch.ones_like(graph.system, dtype=torch.float64)
        if part is not None:
            return one * part.atoms
        sizes = torch.zeros_like(graph.charge).index_add(0, graph.system, one)
        return sizes.index_select(0, graph.system)


class Potential(nn.Module):
    """A representation, a readout, and the scaling of its output to energies.

    Parameters
    ----------
    representation
        `TensorNet`, `TDN` or another `Network`.
    readout
        Readout of the energies: ``features -> (N,)``.
    elements
        Atomic numbers the model was trained on.
    references
        Energy of each element, indexed by atomic number, in the network's unit.
    scale, mean
        Factor of the network's output, and a constant added once per system.
    repulsion
        Short-range pair energy, or None.
    coulomb
        Coulomb energy of the charges that the network predicts, or None.
    length_unit, energy_unit
        The network's own units: names of `units`.
    metadata
        Information about the weights: name, training data, errors, licence, source.
    heads
        Readouts of other properties from the same features, under their names in
        `quantities.HEADS`. A network that predicts charges always has the head ``charges``.

    Raises
    ------
    ValueError
        If an element is outside the tables, a unit or a head is unknown, or the readout or the
        Coulomb energy do not fit the network.
    """

    def __init__(
        self,
        representation: Network,
        readout: Readout,
        *,
        elements: Iterable[int],
        references: Sequence[float] | Tensor | None = None,
        scale: float = 1.0,
        mean: float = 0.0,
        repulsion: Repulsion | None = None,
        coulomb: CoulombEnergy | None = None,
        length_unit: str = "angstrom",
        energy_unit: str = "ev",
        metadata: dict[str, Any] | None = None,
        heads: Mapping[str, Head] | None = None,
    ) -> None:
        super().__init__()
        self.elements = sorted({int(z) for z in elements})
        if not self.elements:
            raise ValueError("elements is empty: expected the atomic numbers the model knows")
        if references is None:
            references = [0.0] * (max(self.elements) + 1)
        places = min(len(references), representation.max_number)
        if not 0 < min(self.elements) <= max(self.elements) < places:
            raise ValueError(
                f"elements are {self.elements}: the network and its references have a place for "
                f"atomic numbers 1 to {places - 1}"
            )
        representation.check_readout(readout)
        self.length_unit = length_unit.lower()
        self.energy_unit = energy_unit.lower()
        self.length_in_angstrom = length_in_angstrom(length_unit)
        self.energy_in_ev = energy_in_ev(energy_unit)
        self.metadata = dict(metadata or {})
        self.representation = representation
        self.readout: Readout = readout
        self.repulsion = repulsion
        check_charges(representation, coulomb)
        self.coulomb = coulomb
        per_atom = bool(readout.config.get("per_atom", False))
        self.atomic_scale = AtomicScale(references, scale, mean, per_atom)
        own_cutoff = representation.cutoff
        if repulsion is not None:
            own_cutoff = max(own_cutoff, repulsion.cutoff)
        self.near_cutoff = own_cutoff * self.length_in_angstrom
        """Largest distance at which atoms interact other than by their charges, Angstrom."""
        if coulomb is not None:
            own_cutoff = max(own_cutoff, coulomb.cutoff)
        self.charged = representation.charge_levels > 0
        """Whether the network predicts charges."""
        self.longer = coulomb is not None and coulomb.cutoff > representation.cutoff
        """Whether charges interact beyond the cutoff of the network."""
        self.cutoff = own_cutoff * self.length_in_angstrom
        """Largest distance at which atoms interact, Angstrom; infinite if all pairs of a molecule
        do."""
        heads = dict(heads or {})
        if representation.charge_levels and "charges" not in heads:
            weights = None if coulomb is None else coulomb.config["weights"]
            heads["charges"] = ChargeReadout(representation, weights)
        for name, head in heads.items():
            if name not in HEADS or not isinstance(head, HEADS[name]):
                known = ", ".join(f"{name!r}: {kind.__name__}" for name, kind in HEADS.items())
                raise ValueError(f"heads has {name!r}: {type(head).__name__}: expected {known}")
        self.heads = nn.ModuleDict(heads)

    __jit_unused_properties__ = ("architecture", "coulomb_cutoff", "dtype")
    __jit_ignored_attributes__ = ("heads",)  # compiled models give energies and forces only

    @property
    def architecture(self) -> str:
        """Name of the network's class: ``TensorNet``, ..."""
        return type(self.representation).__name__

    @property
    def coulomb_cutoff(self) -> float | None:
        """Cutoff of the Coulomb energy, Angstrom, infinite for all pairs; None: no such energy."""
        if self.coulomb is None:
            return None
        return self.coulomb.cutoff * self.length_in_angstrom

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the network's weights."""
        return next(self.representation.parameters()).dtype

    def forward(self, graph: Graph) -> Prediction:
        """Energies, forces and virials of the systems of a graph.

        In training mode the forces are differentiable.
        """
        graph, vectors = within(graph, self.cutoff)
        vectors = vectors.detach().requires_grad_(True)
        energies = self.atom_energies(graph, vectors)
        gradient = edge_gradient(energies, vectors, create_graph=self.training)
        if not self.training:
            energies = energies.detach()
        return assemble(graph, energies, vectors.detach(), gradient)

    def total_energy(self, graph: Graph) -> Tensor:
        """Sum of all energies, eV, differentiable in ``graph.positions``."""
        graph, vectors = within(graph, self.cutoff)
        return self.atom_energies(graph, vectors).sum()

    def atom_energies(
        self,
        graph: Graph,
        vectors: Tensor,
        pairs: Pairs | None = None,
        part: Part | None = None,
    ) -> Tensor:
        """Energy of each atom, (N,) eV float64, as a function of the edge vectors (E, 3)."""
        vectors = self._in_own_unit(vectors)
        features, charges = self._represent(graph, vectors, pairs)
        return self._energies(features, charges, graph, vectors, part)

    def _represent(
        self, graph: Graph, vectors: Tensor, pairs: Pairs | None
    ) -> tuple[Tensor, Tensor]:
        """Features and charges from the edges within the network's own cutoff."""
        if self.longer:
            # Far more pairs than the network can see, and their factors would all be zero.
            near = (vectors * vectors).sum(1) < self.representation.cutoff**2
            graph, vectors, pairs = shorter_edges(graph, near), vectors[near], None
        if self.charged:
            return self.representation.features_and_charges(graph, vectors, pairs)
        else:
            # The module itself is called, so that hooks see its features.
            none = vectors.new_zeros(graph.numbers.shape[0], 0)
            return self.representation(graph, vectors, pairs), none

    def _in_own_unit(self, vectors: Tensor) -> Tensor:
        return (vectors / self.length_in_angstrom).to(self.readout.norm.weight.dtype)

    def _energies(
        self,
        features: Tensor,
        charges: Tensor,
        graph: Graph,
        vectors: Tensor,
        part: Part | None = None,
    ) -> Tensor:
        energies = self.atomic_scale(self.readout(features), graph, part)
        if self.coulomb is not None:
            energies = energies + self.coulomb(charges, graph, vectors).double()
        if self.repulsion is not None:
            energies = energies + self.repulsion(graph, vectors).double()
        return energies * self.energy_in_ev

    @torch.jit.unused
    def atom_energies_and_properties(
        self, graph: Graph, vectors: Tensor, pairs: Pairs | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """`atom_energies` and `properties` from one pass through the representation.

        torch can trace it: there are no checks and no copies to the host.
        """
        vectors = self._in_own_unit(vectors)
        features, charges = self._represent(graph, vectors, pairs)
        found = self._read(list(self.heads), features, charges, graph)
        return self._energies(features, charges, graph, vectors), found

    def _read(
        self, names: Sequence[str], features: Tensor, charges: Tensor, graph: Graph
    ) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        for name in names:
            head: Any = self.heads[name]
            found[name] = head(charges if head.reads_charges else features, graph)
        return found

    @torch.jit.unused
    def with_coulomb_cutoff(self, cutoff: float | None) -> "Potential":
        """The same model, sharing its weights, with another cutoff of the Coulomb energy.

        Parameters
        ----------
        cutoff
            Coulomb cutoff, Angstrom, with a reaction field beyond it, which periodic systems
            need; None or infinity: all pairs of a molecule.

        Raises
        ------
        ValueError
            If the model has no Coulomb energy, or the cutoff cannot be.
        """
        if self.coulomb is None:
            raise ValueError(
                f"this {self.architecture} has no Coulomb energy to cut off: leave its cutoff out"
            )
        parsed = parse_coulomb_cutoff(cutoff)
        own = None if parsed is None else parsed / self.length_in_angstrom
        coulomb = CoulombEnergy(**{**self.coulomb.config, "cutoff": own})
        other = Potential(
            self.representation,
            self.readout,
            elements=self.elements,
            repulsion=self.repulsion,
            coulomb=coulomb.to(self.atomic_scale.references.device),
            length_unit=self.length_unit,
            energy_unit=self.energy_unit,
            metadata=self.metadata,
            heads={name: head for name, head in self.heads.items() if isinstance(head, Head)},
        )
        other.atomic_scale = self.atomic_scale
        return other.train(self.training)

    @torch.jit.unused
    def properties(
        self,
        graph: Graph,
        vectors: Tensor | None = None,
        pairs: Pairs | None = None,
        names: Sequence[str] | None = None,
    ) -> dict[str, Tensor]:
        """Properties that the heads predict for the N atoms or B systems of a graph, float64.

        Parameters
        ----------
        graph
            Systems; without ``vectors``, results are differentiable in its positions.
        vectors
            Displacements of the edges, (E, 3), Angstrom, none longer than the cutoff; None:
            computed from the positions. With them torch can trace the call: there are no copies
            to the host.
        pairs
            Pairs of the edges, if ``vectors`` are given.
        names
            Names of the properties; None: all.

        Returns
        -------
        dict[str, Tensor]
            ``dipole``: (B, 3), e A; ``polarizability``: (B, 3, 3), e^2 A^2/eV; ``charges``: (N,),
            e.

        Raises
        ------
        ValueError
            If there is no such head; without ``vectors`` also if the property is not defined for
            a periodic system (its dipole).
        """
        names = list(self.heads) if names is None else list(names)
        missing = [name for name in names if name not in self.heads]
        if missing or not names:
            raise ValueError(
                f"the model has no {missing[0] if missing else 'heads'}: it gives "
                f"{', '.join(['energy', *self.heads])}"
            )
        if vectors is None:
            if pairs is not None:
                raise ValueError("pairs belong to vectors: give both, or neither")
            for reason in filter(None, (QUANTITIES[name].not_periodic for name in names)):
                if graph.cell.any():
                    raise ValueError(reason)
            graph, vectors = within(graph, self.cutoff)
        features, charges = self._represent(graph, self._in_own_unit(vectors), pairs)
        return self._read(names, features, charges, graph)


def check_charges(representation: Network, coulomb: CoulombEnergy | None) -> None:
    """Raise a ValueError if a Coulomb energy needs charges that the network does not predict."""
    if coulomb is None:
        return
    levels, channels = representation.charge_levels, representation.charge_channels
    read = (len(coulomb.config["weights"]), coulomb.config["channels"])
    if read != (levels, channels):
        raise ValueError(
            f"the Coulomb energy reads {read[0]} levels of {read[1]} charges, the "
            f"{type(representation).__name__} predicts {levels} of {channels}: give one weight "
            "per level, or leave the Coulomb energy out"
        )


def edge_gradient(
    energies: Tensor, vectors: Tensor, create_graph: bool = False, keep: bool = False
) -> Tensor:
    """dE/dr_ij (E, 3), float64, of the sum of energies computed from edge vectors (E, 3).

    ``create_graph``: make the gradient itself differentiable; ``keep``: keep the autograd graph of
    the energies for further gradients.
    """
    gradient = torch.autograd.grad(
        [energies.sum()], [vectors], retain_graph=keep or create_graph, create_graph=create_graph
    )[0]
    assert gradient is not None
    return gradient


def assemble(graph: Graph, energies: Tensor, vectors: Tensor, gradient: Tensor) -> Prediction:
    """Sum energies (N,) and the gradient dE/dr_ij (E, 3) into a `Prediction`.

    r_ij = r_j - r_i and r_ij -> r_ij (1 + strain), so that

    F_i = sum over edges of dE/dr_ij (received) - dE/dr_ji (sent),
    virial = - sum over edges of r_ij (x) dE/dr_ij, symmetrised,

    and each of its terms is divided equally between i and j.
    """
    virials = atom_virials(graph, vectors, gradient)
    energy, virial = sums_of_systems(graph, energies), sums_of_systems(graph, virials)
    return Prediction(energy, energies, sum_forces(graph, gradient), virial, virials)


def sums_of_systems(graph: Graph, values: Tensor) -> Tensor:
    """Sums (B, ...) of values of atoms, (N, ...)."""
    shape = [graph.charge.shape[0]] + list(values.shape[1:])  # noqa: RUF005 (TorchScript)
    sums = torch.zeros(shape, dtype=values.dtype, device=values.device)
    return sums.index_add(0, graph.system, values)


def atom_virials(graph: Graph, vectors: Tensor, gradient: Tensor) -> Tensor:
    """Shares of the atoms in the virials (N, 3, 3), see `assemble`."""
    outer = vectors.unsqueeze(2) * gradient.unsqueeze(1)
    half = -0.25 * (outer + outer.mT)
    zeros = torch.zeros(graph.numbers.shape[0], 3, 3, dtype=outer.dtype, device=outer.device)
    return zeros.index_add(0, graph.edge_index[0], half).index_add(0, graph.edge_index[1], half)


def sum_forces(graph: Graph, gradient: Tensor) -> Tensor:
    """Forces (N, 3) from the gradient dE/dr_ij (E, 3), see `assemble`."""
    forces = torch.zeros_like(graph.positions)
    return forces.index_add(0, graph.edge_index[0], gradient).index_add(
        0, graph.edge_index[1], -gradient
    )
