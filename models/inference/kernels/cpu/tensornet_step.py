"""A whole step of a TensorNet: from positions to outputs, forces and virial.

Tasks of the sums over neighbours are a chunk of channels and a range of atoms, so that a chunk's
table and features stay in the cache; tasks of everything else are blocks of atoms.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from .compiled import internal
from .neighbors import Neighbors, Slots, collect, place
from .perceptron import Perceptron
from .team import Schedule, Tasks, Team, done, even, join, leave, make_schedule, next_task
from .tensornet_edges import embed, embed_back, gather, gather_back
from .tensornet_network import PackedTensorNet, TensorNetWork
from .tensornet_nodes import (
    embed_atoms,
    embed_atoms_back,
    enter_layer,
    enter_layer_back,
    interact,
    interact_back,
    read_out,
)

# Operations of the stages; the negative of an operation is its backward pass.
PLACE, SUM, EMBED, ENTER, GATHER, INTERACT, READ_OUT = range(1, 8)


def tensornet_schedule(
    layers: int,
    chunks: int,
    bounds: tuple[int, ...],
    threads: int,
    shells: Sequence[int] | None = None,
) -> Schedule:
    """The stages of the forward pass, the readout and the backward pass (the same, reversed).

    ``bounds`` delimit the blocks of atoms. With ``shells`` (see `Part`) an operation runs on the
    first atoms only: those whose results the energies of the own atoms depend on.
    """
    parts = threads // math.gcd(chunks, threads)

    def tasks_of(what: int, layer: int) -> Tasks:
        atoms = bounds[-1]
        if shells is not None and abs(what) != PLACE:
            atoms = shells[_hops(what, layer, layers)]
        if what in (SUM, GATHER, -GATHER):
            return Tasks("sums", even(atoms, -(-atoms // parts)), chunks)
        blocks = (*(first for first in bounds if first < atoms), atoms)
        return Tasks("forces" if what == -PLACE else "atoms", blocks)

    there = [(PLACE, 0), (SUM, 0), (EMBED, 0)]
    there += [(what, layer) for layer in range(layers) for what in (ENTER, GATHER, INTERACT)]
    back = [(-what, layer) for what, layer in reversed(there)]
    stages = [*there, (READ_OUT, 0), *back]
    return make_schedule((tasks_of(what, layer), what, layer, 0) for what, layer in stages)


def _hops(what: int, layer: int, layers: int) -> int:
    """Number of edges between the own atoms and the furthest ones that an operation is needed for.

    Y has to be known for the senders too; its gradient is not zero there.
    """
    if what == READ_OUT:
        return 0
    if abs(what) in (SUM, EMBED):
        return layers
    entering = abs(what) == ENTER or what == -GATHER
    return layers - layer if entering else layers - 1 - layer


def tensornet_step(
    team: Team, schedule: Schedule, positions: Any, species: Any, neighbors: Neighbors,
    slots: Slots, work: TensorNetWork, factor: float, forces: Any, virial: Any,
    net: PackedTensorNet, gate: Perceptron, values: Perceptron, gates: Perceptron,
) -> None:  # fmt: skip
    """Compute the outputs of the network, in ``work.outputs``, forces and virial.

    ``positions`` (N, 3) are in Angstrom, ``species`` (N,) are rows of the network's tables of
    elements; ``factor`` converts the derivative of an output to eV/A; ``forces`` (N, 3), eV/A, and
    ``virial`` (N, 3, 3), eV, are written. ``gate`` belongs to the embedding; the output is
    ``values`` or, if ``gates`` has layers, the product of ``values`` and ``gates``.
    """
    thread = join(team)
    phase, task = next_task(team, schedule.tasks, 0)
    while phase < schedule.tasks.size:
        for stage in range(schedule.starts[phase], schedule.starts[phase + 1]):
            perform(
                stage, phase, task, thread, schedule, positions, species, neighbors, slots,
                work, factor, forces, virial, net, gate, values, gates,
            )  # fmt: skip
        done(team, phase)
        phase, task = next_task(team, schedule.tasks, phase)
    leave(team)


@internal
def perform(
    stage: int, phase: int, task: int, thread: int, schedule: Schedule, positions: Any,
    species: Any, neighbors: Neighbors, slots: Slots, work: TensorNetWork, factor: float,
    forces: Any, virial: Any, net: PackedTensorNet, gate: Perceptron, values: Perceptron,
    gates: Perceptron,
) -> None:  # fmt: skip
    """Run one stage of a task."""
    what, layer = schedule.stages[stage, 0], schedule.stages[stage, 1]
    begin, ranges = schedule.ranges[phase, 0], schedule.ranges[phase, 1]
    chunk, place_of_range = task // ranges, begin + task % ranges
    first, last = schedule.bounds[place_of_range], schedule.bounds[place_of_range + 1]
    scratch = work.scratch[thread]
    if what == PLACE:
        place(
            first, last, positions, neighbors, slots, net.unit, net.lower, net.cutoff,
            net.rows - 3,
        )  # fmt: skip
    elif what == SUM:
        embed(first, last, chunk, species, net, neighbors, slots, work)
    elif what == EMBED:
        embed_atoms(first, last, net, gate, work, scratch)
    elif what == ENTER:
        enter_layer(first, last, layer, net, work, scratch)
    elif what == GATHER:
        gather(first, last, chunk, layer, net, neighbors, slots, work)
    elif what == INTERACT:
        interact(first, last, layer, net, work, scratch)
    elif what == READ_OUT:
        read_out(first, last, net, values, gates, work, scratch, work.slopes[thread])
    elif what == -INTERACT:
        interact_back(first, last, layer, net, work, scratch)
    elif what == -GATHER:
        gather_back(first, last, chunk, layer, net, neighbors, slots, work)
    elif what == -ENTER:
        enter_layer_back(first, last, layer, net, work, scratch)
    elif what == -EMBED:
        embed_atoms_back(first, last, net, gate, work, scratch)
    elif what == -SUM:
        embed_back(first, last, species, net, neighbors, slots, work)
    else:
        collect(first, last, neighbors, slots, factor, net.unit, forces, virial)
