"""The energies of a potential, and their derivatives, as a training step reads them."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from ...graph import Graph, Pairs
from ...heads.energy import EnergyReadout, LinearHead, MLPHead
from ...maths.cartesian import COMPONENTS
from ...networks.tensornet import Interaction, TensorNet
from ...potential import Potential, edge_gradient
from .batch import Batch
from .edges import Edges
from .geometry import directions
from .memory import Memory
from .network import Energies, Functions, Weights
from .perceptrons import dense_layers, padded
from .radial import Knots, Radial, radial_at_pairs


class FusedEnergies:
    """Energies of atoms and their derivatives by edge vectors, differentiable in the weights.

    Parameters
    ----------
    potential
        Potential for which `fused_step_problem` finds no problem.
    intervals
        Intervals of splines that replace the radial networks; 0: none do.
    """

    def __init__(self, potential: Potential, intervals: int) -> None:
        network, readout = potential.representation, potential.readout
        assert isinstance(network, TensorNet)
        assert isinstance(readout, EnergyReadout)
        self.potential, self.network = potential, network
        self.knots = Knots(network, intervals) if intervals else None
        self.reads_pairs = self.knots is None
        self.memory = Memory()
        self.readout = readout
        head = readout.head
        assert isinstance(head, (MLPHead, LinearHead))
        self.head = head.network if isinstance(head, MLPHead) else [head.linear]

    def __call__(
        self, graph: Graph, vectors: Tensor, pairs: Pairs | None
    ) -> tuple[Tensor, Tensor]:
        """Energies (N,), eV, and the derivatives of their sum by ``vectors`` (E, 3), in eV/A.

        Both are float64.

        Raises
        ------
        ValueError
            If the edges of the graph are not sorted by receiver.
        """
        potential, network = self.potential, self.network
        receivers, senders = graph.edge_index
        if not (receivers[1:] >= receivers[:-1]).all():
            raise ValueError("edges are not sorted by receiver: expected a Graph of NeighborList")
        own = (vectors.detach().double() / potential.length_in_angstrom).contiguous()
        components = sum(COMPONENTS[irrep] for irrep in network.irreps)
        lengths = torch.empty(len(own), dtype=torch.float64)
        tensors = torch.empty(len(own) * components, dtype=potential.dtype)
        directions(own.numpy(), lengths.numpy(), components, tensors.numpy())
        if self.knots is not None:
            radial = self.knots(lengths)
        else:
            assert pairs is not None
            radial = radial_at_pairs(network, lengths.to(potential.dtype), pairs)
        edges = Edges(
            graph.numbers.numpy(),
            torch.searchsorted(receivers, torch.arange(len(graph.numbers) + 1)).numpy(),
            senders.contiguous().numpy(),
            radial.row.numpy(),
            radial.weights.numpy().reshape(-1),
            radial.slopes.numpy().reshape(-1),
            tensors.numpy(),
        )
        self.memory.start()
        charge = 1 + 0.1 * graph.charge.to(potential.dtype).index_select(0, graph.system)
        parity_conserving = network.config["group"] == "O(3)"
        batch = Batch(
            network.irreps, network.channels, parity_conserving, edges, charge, self.memory
        )
        weights, functions = self._weights(batch, radial)
        outputs, gradient = Energies.apply(  # type: ignore[no-untyped-call]
            batch, functions, own.numpy(), weights, *weights.tensors()
        )
        scale = potential.atomic_scale
        gradient = gradient * scale.scale / potential.length_in_angstrom
        energies = scale(outputs, graph)
        if potential.repulsion is not None:
            short = own.detach().requires_grad_()
            repulsion = potential.repulsion(graph, short).double()
            energies = energies + repulsion.detach()
            gradient = gradient + edge_gradient(repulsion, short) / potential.length_in_angstrom
        return energies * potential.energy_in_ev, gradient * potential.energy_in_ev

    def _weights(self, batch: Batch, radial: Radial) -> tuple[Weights, Functions]:
        embedding, channels = self.network.embedding, self.network.channels
        irreps = len(self.network.irreps)
        pair, species = embedding.species_pair, embedding.species.weight
        # Products of a few rows would depend on the number of threads in the last digit.
        species = nn.functional.pad(species, (0, 0, 0, -len(species) % 16))

        def of_species(matrix: Tensor, bias: Tensor | None = None) -> Tensor:
            return padded(nn.functional.linear(species, matrix, bias), 1)

        mixes = [embedding.mix.weight]
        for layer in cast("list[Interaction]", list(self.network.layers)):
            mixes += [layer.mix_in.weight, layer.mix_out.weight]
        at_zero = radial.at_zero
        if not embedding.self_interaction:
            at_zero = [torch.zeros_like(x) for x in at_zero]
        gate, of_gate = dense_layers(embedding.gate, embedding.norm, channels, last=irreps)
        norm, size = self.readout.norm, self.readout.norm_size
        head, of_head = dense_layers(self.head, norm, size, first=irreps)
        weights = Weights(
            receiver=of_species(pair.weight[:, :channels], pair.bias),
            sender=of_species(pair.weight[:, channels:]),
            tables=radial.tables,
            at_zero=at_zero,
            mixes=[padded(padded(mix.mT, 1).mT, 1) for mix in mixes],
            gate=gate,
            head=head,
        )
        return weights, Functions(of_gate, of_head)
