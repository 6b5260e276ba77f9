"""A TensorNet potential for inference, by fused operators and without autograd."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

from ...graph import Graph, displacements
from ...maths.splines import RadialTable
from ...potential import Potential, Prediction, assemble, parse_dtype
from ..tables import build_table
from .edges import Edges, edges_of
from .packing import pack_weights
from .step import Operators, StepInputs, StepResult, TorchOperators, tensornet_step
from .weights import extract_weights


class FusedTensorNet(nn.Module):
    """What a `Potential` of a `TensorNet` predicts, with its radial functions as tables.

    Graphs may hold any number of systems, edges beyond the cutoff, and atoms without
    neighbours. The rows of edges are kept as long as graphs come with the same ``edge_index``
    (as those of a `NeighborList` do between two searches).

    Parameters
    ----------
    potential
        Of a `TensorNet`; its dtype and device are those of the pass. Its weights are copied.
    table
        Of the network's edge factors, in float64; None builds it (`tabulated.build_table`).
    operators
        The backend; None takes the plain functions of `equations`.
    graphs
        Whether to record the pass as a CUDA graph and replay it; None does so on a CUDA device.

    Raises
    ------
    ValueError
        If the potential is of another architecture, or neither float32 nor float64.
    """

    def __init__(
        self,
        potential: Potential,
        table: RadialTable | None = None,
        operators: Operators | None = None,
        *,
        graphs: bool | None = None,
    ) -> None:
        super().__init__()
        self.operators: Operators = TorchOperators() if operators is None else operators
        self.engine = self.operators.engine
        self.atomic_scale = copy.deepcopy(potential.atomic_scale)
        self.repulsion = copy.deepcopy(potential.repulsion)
        self.cutoff = potential.cutoff
        self.length_in_angstrom = potential.length_in_angstrom
        self.energy_in_ev = potential.energy_in_ev
        device = next(potential.parameters()).device
        self.dtype = potential.dtype
        self._graphs = graphs
        if table is None:
            table, self.table_info = build_table(potential)
        self._double = extract_weights(potential, table)
        self._place(self.dtype, device)

    def _place(self, dtype: torch.dtype, device: torch.device) -> None:
        """Pack the weights, each time from float64."""
        self.dtype = parse_dtype(dtype)
        self.weights = pack_weights(self._double, dtype, device)
        self._known: tuple[Tensor, Tensor, tuple[int, int], Edges] | None = None
        self._run: Callable[[StepInputs], Prediction] = self._evaluate
        if self._graphs or (self._graphs is None and device.type == "cuda"):
            from .cuda.recording import CudaGraphStep

            self._run = CudaGraphStep(self._evaluate)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> FusedTensorNet:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        probe = fn(self.weights.table)
        self._place(probe.dtype, probe.device)
        return self

    @torch.no_grad()
    def forward(self, graph: Graph) -> Prediction:
        """Energies, forces and virials of the systems of a graph."""
        # Triton launches on the current device.
        with torch.cuda.device_of(graph.positions):  # type: ignore[no-untyped-call]
            edges = self._edges_of(graph)
            atoms = (graph.positions, graph.cell, graph.system, graph.numbers, graph.charge)
            inputs = StepInputs(*(t.contiguous() for t in (*atoms, *edges)))
            return self._with_repulsion(graph, self._run(inputs))

    def predict(self, graph: Graph, result: StepResult) -> Prediction:
        """Scale, references, repulsion and units: what `step` itself does not know."""
        return self._with_repulsion(graph, self._scaled(graph, result))

    def _evaluate(self, inputs: StepInputs) -> Prediction:
        """All but the repulsion."""
        length = self.length_in_angstrom
        result = tensornet_step(inputs, self.weights, length, self.operators)
        atoms = Graph(
            numbers=inputs.numbers,
            positions=inputs.positions,
            cell=inputs.cell,
            edge_index=inputs.numbers.new_empty(2, 0),
            edge_shift=inputs.shift[:0],
            system=inputs.system,
            charge=inputs.charge,
        )
        return self._scaled(atoms, result)

    def _scaled(self, graph: Graph, result: StepResult) -> Prediction:
        """Reads no edges."""
        energies = self.atomic_scale(result.outputs, graph) * self.energy_in_ev
        slope = (self.atomic_scale.slope(graph) * self.energy_in_ev).expand_as(energies)
        shares = slope.view(-1, 1, 1) * result.virial
        summed = torch.cat([energies.unsqueeze(1), shares.flatten(1)], 1)
        summed = self.operators.sum_by_system(summed, graph.system, graph.charge.shape[0])
        virial = summed[:, 1:].view(-1, 3, 3)
        return Prediction(
            energy=summed[:, 0],
            energies=energies,
            forces=slope.unsqueeze(1) * result.forces,
            virial=0.5 * (virial + virial.mT),
        )

    def _with_repulsion(self, graph: Graph, prediction: Prediction) -> Prediction:
        if self.repulsion is None:
            return prediction
        pairs = self._repulsion(graph)
        return Prediction(*(a + b for a, b in zip(prediction, pairs, strict=True)))

    def _repulsion(self, graph: Graph) -> Prediction:
        assert self.repulsion is not None
        with torch.enable_grad():  # type: ignore[no-untyped-call]
            vectors = displacements(graph).requires_grad_(True)
            own = (vectors / self.length_in_angstrom).to(self.dtype)
            energies = self.repulsion(graph, own).double() * self.energy_in_ev
            gradient = torch.autograd.grad([energies.sum()], [vectors])[0]
        return assemble(graph, energies.detach(), vectors.detach(), gradient)

    def _edges_of(self, graph: Graph) -> Edges:
        """Sorted anew only for another list: comparing them would read from the device."""
        index, shift = graph.edge_index, graph.edge_shift
        versions = (_version(index), _version(shift))
        known = self._known
        if known is None or known[0] is not index or known[1] is not shift or known[2] != versions:
            known = (index, shift, versions, edges_of(graph))
            self._known = known
        return known[3]


def _version(tensor: Tensor) -> int:
    """How often a tensor was written to; those of inference mode do not know."""
    return -1 if tensor.is_inference() else tensor._version
