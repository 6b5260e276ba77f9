"""A TensorNet potential that runs as one compiled call."""

from __future__ import annotations

from typing import Any

from numpy.typing import NDArray

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
    evaluates_parts = True

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

    def allocate_part(self, neighbors: Neighbors, threads: int, shells: list[int]) -> Memory:
        """Allocate memory for a part; each layer runs on the atoms that the own ones need."""
        net, *perceptrons = self.packed
        atoms, edges = len(neighbors.offsets) - 1, len(neighbors.senders)
        bounds = even(atoms, MOST_ATOMS, threads)
        work = make_tensornet_work(net, perceptrons, bounds, threads)
        # The messages of atoms beyond a layer are never written; their gradient is zero.
        work.message[:] = 0
        schedule = tensornet_schedule(net.layers, net.chunks, bounds, threads, shells)
        return Memory(make_slots(atoms, edges, net.chunks, self.arithmetic), work, schedule)

    def clear(self, memory: Memory, shells: list[int]) -> None:
        """Set to zero the gradients of atoms whose features have no influence."""
        net, work = self.packed[0], memory.work

        def by_atom(features: NDArray[Any]) -> NDArray[Any]:
            return features.reshape(net.chunks, len(work.outputs), -1)

        by_atom(work.gradient)[:, shells[0] :] = 0
        for layer in range(net.layers):
            by_atom(work.delta[layer])[:, shells[net.layers - 1 - layer] :] = 0
        memory.slots.slope[:] = 0

    def use(self, memory: Memory, composition: Composition) -> None:
        """Write the charge factors to the memory."""
        memory.work.charge[:] = composition.charge_factors
