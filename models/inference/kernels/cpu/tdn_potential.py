"""A TDN potential that runs as one compiled call."""

from __future__ import annotations

from itertools import pairwise

from ....potential import Potential
from .neighbors import Neighbors, make_slots, require_sorted
from .potential import CPUPotential, Memory
from .simd import LANES
from .tdn_network import BLOCK, make_tdn_work, pack_tdn
from .tdn_step import tdn_schedule, tdn_step
from .team import even

GROUP_EDGES = 64
"""Largest number of edges in a group of receivers, so that its data stay in a core's cache."""
CHUNK_BYTES = 2**22
"""Memory per thread for the gradients that pass from receivers to senders in the backward pass."""


class CPUTDN(CPUPotential):
    """A TDN on the CPU; see `CPUPotential`.

    Memory grows linearly with atoms and edges; each edge takes about d^2 numbers.
    """

    step = staticmethod(tdn_step)

    def __init__(self, potential: Potential) -> None:
        super().__init__(potential)
        self.packed = pack_tdn(potential, self.table, self.arithmetic)

    def allocate(self, neighbors: Neighbors, threads: int, old: Memory | None) -> Memory:
        """Allocate memory for steps with these neighbours; the old memory is not reused.

        Raises
        ------
        ValueError
            If the edges are not sorted by receiver, then sender.
        """
        net, head = self.packed
        offsets = neighbors.offsets
        atoms, edges = len(offsets) - 1, len(neighbors.senders)
        require_sorted(neighbors)
        groups = [0]
        for i in range(1, atoms):
            begin = groups[-1]
            if i - begin == BLOCK or offsets[i + 1] - offsets[begin] > GROUP_EDGES:
                groups.append(i)
        features = net.chunks * net.components * LANES * self.arithmetic.itemsize
        room = max(1, threads * CHUNK_BYTES // features)
        receivers = [0]
        for first, end in pairwise([*groups[1:], atoms]):
            if offsets[end] - offsets[receivers[-1]] > room:
                receivers.append(first)
        groups.append(atoms)
        receivers.append(atoms)
        return Memory(
            make_slots(atoms, edges, 1, self.arithmetic),
            make_tdn_work(net, head, offsets, groups, receivers, threads),
            tdn_schedule(net.layers, even(atoms, BLOCK, threads), tuple(groups), receivers),
        )
