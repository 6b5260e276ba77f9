"""The energies of a potential, and their derivatives, as a training step reads them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import cast

import torch
from torch import Tensor, nn

from ...graph import Graph, Pairs
from ...heads.energy import EnergyReadout, LinearHead, MLPHead
from ...inference.kernels.cpu.simd import LANES
from ...networks.tensornet import Interaction, TensorNet
from ...potential import Potential, edge_gradient
from .batch import Batch, Memory
from .edges import Edges
from .network import Dense, Energies, Functions, Weights
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
        self.gate, gate_activations = dense(network.embedding.norm, network.embedding.gate)
        head = readout.head
        assert isinstance(head, (MLPHead, LinearHead))
        modules = head.network if isinstance(head, MLPHead) else [head.linear]
        self.head, head_activations = dense(readout.norm, modules)
        self.functions = Functions(
            gate=gate_activations,
            head=head_activations,
            norm_size=readout.norm_size,
            epsilon=readout.norm.eps,
        )

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
        own = (vectors.detach() / potential.length_in_angstrom).requires_grad_()
        narrow = own.to(potential.dtype)
        lengths = torch.linalg.vector_norm(narrow, dim=1)
        directions = network.embedding.algebra.directions(-narrow / lengths.unsqueeze(1)).t()
        if self.knots is not None:
            radial = self.knots(torch.linalg.vector_norm(own.detach(), dim=1))
        else:
            assert pairs is not None
            radial = radial_at_pairs(network, lengths.detach(), pairs)
        edges = Edges(
            graph.numbers.numpy(),
            torch.searchsorted(receivers, torch.arange(len(graph.numbers) + 1)).numpy(),
            senders.contiguous().numpy(),
            radial.row.numpy(),
            radial.weights.numpy().reshape(-1),
            radial.slopes.numpy().reshape(-1),
            directions.detach().contiguous().numpy().reshape(-1),
        )
        charge = 1 + 0.1 * graph.charge.to(potential.dtype).index_select(0, graph.system)
        parity_conserving = network.config["group"] == "O(3)"
        batch = Batch(
            network.irreps, network.channels, parity_conserving, edges, charge, self.memory
        )
        weights = self._weights(batch, radial)
        outputs, by_length, by_direction = Energies.apply(  # type: ignore[no-untyped-call]
            batch, self.functions, weights, *weights.tensors()
        )
        geometry = [(lengths, by_length)]
        if directions.requires_grad:  # those of I alone are constant
            geometry.append((directions, by_direction))
        values, derivatives = zip(*geometry, strict=True)
        [gradient] = torch.autograd.grad(values, [own], derivatives, create_graph=True)
        scale = potential.atomic_scale
        gradient = gradient * scale.scale / potential.length_in_angstrom
        energies = scale(outputs, graph)
        if potential.repulsion is not None:
            short = own.detach().requires_grad_()
            repulsion = potential.repulsion(graph, short).double()
            energies = energies + repulsion.detach()
            gradient = gradient + edge_gradient(repulsion, short) / potential.length_in_angstrom
        return energies * potential.energy_in_ev, gradient * potential.energy_in_ev

    def _weights(self, batch: Batch, radial: Radial) -> Weights:
        embedding, channels = self.network.embedding, self.network.channels
        pair, species = embedding.species_pair, embedding.species.weight
        # Products of a few rows would depend on the number of threads in the last digit.
        species = nn.functional.pad(species, (0, 0, 0, -len(species) % 16))

        def of_species(matrix: Tensor, bias: Tensor | None = None) -> Tensor:
            return batch.padded(nn.functional.linear(species, matrix, bias)).contiguous()

        def by_irrep(x: Tensor) -> Tensor:
            parts = x.view(*x.shape[:-1], len(self.network.irreps), channels)
            return batch.padded(parts).contiguous()

        def by_chunk(table: Tensor) -> Tensor:
            parts = by_irrep(table)
            parts = parts.view(*parts.shape[:2], -1, LANES)
            return parts.permute(2, 0, 1, 3).contiguous()

        mixes = [embedding.mix.weight]
        for layer in cast("list[Interaction]", list(self.network.layers)):
            mixes += [layer.mix_in.weight, layer.mix_out.weight]
        at_zero = radial.at_zero
        if not embedding.self_interaction:
            at_zero = [torch.zeros_like(x) for x in at_zero]
        return Weights(
            receiver=of_species(pair.weight[:, :channels], pair.bias),
            sender=of_species(pair.weight[:, channels:]),
            tables=[by_chunk(table) for table in radial.tables],
            at_zero=[by_irrep(row) for row in at_zero],
            mixes=[batch.padded_matrices(mix) for mix in mixes],
            gate=self.gate,
            head=self.head,
        )


def dense(norm: nn.Module, modules: Iterable[nn.Module]) -> tuple[Dense, list[nn.Module]]:
    """The weights of a layer norm and linear layers, and the activation after each of these."""
    weights: list[Tensor] = []
    biases: list[Tensor] = []
    activations: list[nn.Module] = []
    for module in modules:
        if isinstance(module, nn.Linear):
            weights.append(module.weight)
            biases.append(module.bias)
            activations.append(nn.Identity())
        else:
            activations[-1] = module
    return Dense(norm.weight, norm.bias, weights, biases), activations  # type: ignore[arg-type]
