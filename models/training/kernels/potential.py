"""The energies of a potential, and their derivatives, as a training step reads them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ...graph import Graph, Pairs
from ...heads.energy import EnergyReadout, MLPHead
from ...networks.tensornet import TensorNet
from ...potential import Potential, edge_gradient
from .edges import Edges
from .network import Dense, Energies, Evaluation, Memory, Shape, Weights
from .radial import Knots, radial_at_pairs


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
        self.potential, self.network, self.readout = potential, network, readout
        self.knots = Knots(network, intervals) if intervals else None
        self.memory = Memory()
        head = readout.head
        layers = list(head.network) if isinstance(head, MLPHead) else [head.linear]
        self.gate, gate_activations = _dense(network.embedding.gate)
        self.head, head_activations = _dense(layers)
        self.shape = Shape(
            irreps=network.irreps,
            channels=network.channels,
            parity_conserving=network.config["group"] == "O(3)",
            gate=gate_activations,
            head=head_activations,
            norm_size=readout.norm_size,
            epsilon=readout.norm.eps,
        )

    def __call__(self, graph: Graph, vectors: Tensor, pairs: Pairs) -> tuple[Tensor, Tensor]:
        """Energies (N,), eV, and the derivatives of their sum by ``vectors`` (E, 3), in eV/A.

        Both are float64.

        Raises
        ------
        ValueError
            If the edges of the graph are not sorted by receiver.
        """
        potential, network = self.potential, self.network
        own = (vectors.detach() / potential.length_in_angstrom).requires_grad_()
        narrow = own.to(potential.dtype)
        lengths = torch.linalg.vector_norm(narrow, dim=1)
        directions = network.embedding.algebra.directions(-narrow / lengths.unsqueeze(1)).t()
        if self.knots is not None:
            radial = self.knots(torch.linalg.vector_norm(own.detach(), dim=1))
        else:
            radial = radial_at_pairs(network, lengths.detach(), pairs)
        receivers, senders = graph.edge_index
        if not (receivers[1:] >= receivers[:-1]).all():
            raise ValueError("edges are not sorted by receiver: expected a Graph of NeighborList")
        neighbors = Edges(
            torch.searchsorted(receivers, torch.arange(len(graph.numbers) + 1)).numpy(),
            senders.numpy(),
            radial.row.numpy(),
            radial.weights.numpy(),
            radial.slopes.numpy(),
            directions.detach().contiguous().numpy().reshape(-1),
        )
        charge = 1 + 0.1 * graph.charge.to(potential.dtype).index_select(0, graph.system)
        evaluation = Evaluation(self.shape, neighbors, charge, self.memory)
        weights = self._weights(evaluation, graph, radial.tables, radial.at_zero)
        outputs, by_length, by_direction = Energies.apply(evaluation, weights, *weights.tensors())
        gradient = torch.autograd.grad(
            [lengths, directions], [own], [by_length, by_direction], create_graph=True
        )[0]
        scale = potential.atomic_scale
        gradient = gradient * scale.scale / potential.length_in_angstrom
        energies = scale(outputs, graph)
        if potential.repulsion is not None:
            short = own.detach().requires_grad_()
            repulsion = potential.repulsion(graph, short).double()
            energies = energies + repulsion.detach()
            gradient = gradient + edge_gradient(repulsion, short) / potential.length_in_angstrom
        return energies * potential.energy_in_ev, gradient * potential.energy_in_ev

    def _weights(
        self, evaluation: Evaluation, graph: Graph, tables: list[Tensor], at_zero: list[Tensor]
    ) -> Weights:
        embedding, channels = self.network.embedding, self.network.channels
        pair = embedding.species_pair
        padded = evaluation.padded
        species = embedding.species.weight

        def of_atoms(matrix: Tensor, bias: Tensor | None = None) -> Tensor:
            each = nn.functional.linear(species, matrix, bias)
            return padded(each.index_select(0, graph.numbers))

        def by_irrep(x: Tensor) -> Tensor:
            return padded(x.unflatten(-1, (-1, channels))).contiguous()

        def square(matrix: Tensor) -> Tensor:
            missing = evaluation.layout.width - channels
            return nn.functional.pad(matrix, (0, missing, 0, missing)) if missing else matrix

        mixes = [embedding.mix]
        for layer in self.network.layers:
            mixes += [layer.mix_in, layer.mix_out]
        if not embedding.self_interaction:
            at_zero = [torch.zeros_like(x) for x in at_zero]
        return Weights(
            receiver=of_atoms(pair.weight[:, :channels], pair.bias),
            sender=of_atoms(pair.weight[:, channels:]),
            tables=[by_irrep(table) for table in tables],
            at_zero=[by_irrep(row) for row in at_zero],
            mixes=[square(mix.weight) for mix in mixes],
            gate=Dense((embedding.norm.weight, embedding.norm.bias), *self.gate),
            head=Dense((self.readout.norm.weight, self.readout.norm.bias), *self.head),
        )


def _dense(
    modules: nn.Module | list[nn.Module],
) -> tuple[tuple[list[Tensor], list[Tensor]], list[nn.Module]]:
    """Weights, biases and the activation after each linear layer."""
    weights, biases, activations = [], [], []
    for module in modules:
        if isinstance(module, nn.Linear):
            weights.append(module.weight)
            biases.append(module.bias)
            activations.append(nn.Identity())
        else:
            activations[-1] = module
    return (weights, biases), activations
