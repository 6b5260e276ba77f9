"""A TensorNet potential that runs as one compiled call."""

from __future__ import annotations

from ....potential import Potential
from ..weights import extract_weights
from .neighbors import Neighbors, make_slots
from .potential import Composition, CPUPotential, Memory
from .team import even
from .tensornet_network import make_tensornet_work, pack_tensornet
from .tensornet_step import tensornet_schedule, tensornet_step

MOST_ATOMS = 32
"""Largest number of atoms in a block, so that their features and the matrices stay in a core's
cache."""


class CPUTensorNet(CPUPotential):
    """A TensorNet on the CPU; see `CPUPotential`."""

    step = staticmethod(tensornet_step)

    def __init__(self, potential: Potential) -> None:
        super().__init__(potential)
        weights = extract_weights(potential, self.table)
        self.packed = pack_tensornet(weights, self.length_in_angstrom, self.arithmetic)

    def allocate(self, neighbors: Neighbors, threads: int, old: Memory | None) -> Memory:
        """Allocate memory for steps with these neighbours, reusing old arrays that fit."""
        net, *perceptrons = self.packed
        atoms, edges = len(neighbors.offsets) - 1, len(neighbors.senders)
        bounds = even(atoms, MOST_ATOMS, threads)
        if old is not None and len(old.work.outputs) != atoms:
            old = None
        if old is not None and len(old.slots.edge) >= edges:
            slots = old.slots
        else:
            slots = make_slots(atoms, edges + edges // 20, net.chunks, self.arithmetic)
        if old is not None and len(old.work.scratch) == threads:
            work = old.work
        else:
            work = make_tensornet_work(net, perceptrons, bounds, threads)
        return Memory(slots, work, tensornet_schedule(net.layers, net.chunks, bounds, threads))

    def use(self, memory: Memory, composition: Composition) -> None:
        """Write the charge factors to the memory."""
        memory.work.charge[:] = composition.charge_factors
