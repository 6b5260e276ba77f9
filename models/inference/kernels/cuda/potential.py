"""A TensorNet potential on CUDA: `tensornet_step`, recorded and replayed."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch

from ....graph import Graph
from ....maths.splines import RadialTable
from ....potential import Potential, Prediction
from ..potential import FusedPotential, Versions
from ..weights import extract_weights
from .packing import pack_weights
from .recording import CudaGraphStep
from .rows import EdgeRows, edge_rows
from .step import StepInputs, tensornet_step

if TYPE_CHECKING:
    from .operators import TritonOperators


class CUDATensorNet(FusedPotential):
    """A TensorNet on CUDA; see `FusedPotential`.

    The rows of edges are kept as long as graphs hold the same ``edge_index`` (as those of a
    `NeighborList` do between two searches).

    Parameters
    ----------
    potential, table
        See `FusedPotential`.
    operators
        Operators that `tensornet_step` calls.
    graphs
        Whether to record the step as a CUDA graph and replay it; None does so on a CUDA device.
    """

    engine = "fused CUDA kernels"

    def __init__(
        self,
        potential: Potential,
        operators: TritonOperators,
        table: RadialTable | None = None,
        *,
        graphs: bool | None = None,
    ) -> None:
        super().__init__(potential, table)
        self.operators = operators
        device = next(potential.parameters()).device
        weights = extract_weights(potential, self.table)
        self.weights = pack_weights(weights, self.dtype, device)
        self._known: tuple[Versions, EdgeRows] | None = None
        self._step: Callable[[StepInputs], Prediction] = self.step
        if graphs or (graphs is None and device.type == "cuda"):
            self._step = CudaGraphStep(self.step)

    @torch.no_grad()
    def evaluate(self, graph: Graph) -> Prediction:
        """The prediction without the short-range repulsion."""
        # Triton launches on the current device.
        with torch.cuda.device_of(graph.positions):  # type: ignore[no-untyped-call]
            rows = self.rows_of(graph)
            atoms = (graph.positions, graph.cell, graph.system, graph.numbers, graph.charge)
            return self._step(StepInputs(*(t.contiguous() for t in (*atoms, *rows))))

    def step(self, inputs: StepInputs) -> Prediction:
        """The same from rows of edges; it launches kernels and does not wait for them."""
        length = self.length_in_angstrom
        outputs, forces, virial = tensornet_step(inputs, self.weights, length, self.operators)
        atoms = Graph(
            numbers=inputs.numbers, positions=inputs.positions, cell=inputs.cell,
            edge_index=inputs.numbers.new_empty(2, 0), edge_shift=inputs.shift[:0],
            system=inputs.system, charge=inputs.charge,
        )  # fmt: skip
        energies = self.atomic_scale(outputs, atoms) * self.energy_in_ev
        slope = (self.atomic_scale.slope(atoms) * self.energy_in_ev).expand_as(energies)
        virials = 0.5 * slope.view(-1, 1, 1) * (virial + virial.mT)
        summed = torch.cat([energies.unsqueeze(1), virials.flatten(1)], 1)
        summed = self.operators.sum_by_system(summed, inputs.system, inputs.charge.shape[0])
        return Prediction(
            energy=summed[:, 0],
            energies=energies,
            forces=slope.unsqueeze(1) * forces,
            virial=summed[:, 1:].view(-1, 3, 3),
            virials=virials,
        )

    def rows_of(self, graph: Graph) -> EdgeRows:
        """The sorted edges of a graph, kept until the graph holds another list.

        Lists are compared as objects: comparing their values would read from the device.
        """
        listed = (graph.edge_index, graph.edge_shift)
        if self._known is None or not self._known[0].are(*listed):
            self._known = Versions(*listed), edge_rows(graph)
        return self._known[1]
