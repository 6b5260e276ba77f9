"""A whole step of a TensorNet2: from positions to outputs, charges, forces and virial.

The stages are those of a TensorNet; between them, charges are predicted, summed over each system
and read by the edge networks, whose tasks are groups of atoms.
"""

from __future__ import annotations

import math
from typing import Any

from .charges import (
    add_up,
    add_up_back,
    charge_atoms,
    enter_edges,
    enter_edges_back,
    predict,
    predict_back,
)
from .compiled import internal
from .coulomb import coulomb
from .neighbors import Neighbors, Slots, collect, place
from .perceptron import Perceptron, one_of
from .team import Schedule, Stage, Tasks, Team, done, even, join, leave, make_schedule, next_task
from .tensornet2_edges import place_envelope, receive, receive_back, send_back
from .tensornet2_network import ChargesWork, EdgePlan, EdgesWork, PackedCharges
from .tensornet_edges import embed, embed_back
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
PLACE, SUM, EMBED, PREDICT, ADD_UP, CHARGE, ENTER, SEND, RECEIVE, INTERACT, READ_OUT, COULOMB = (
    range(1, 13)
)


def tensornet2_schedule(
    layers: int, chunks: int, bounds: tuple[int, ...], plan: EdgePlan, threads: int,
    electrostatic: bool,
) -> Schedule:  # fmt: skip
    """The stages of a step; ``bounds`` delimit the blocks of atoms.

    ``electrostatic``: whether there is a Coulomb energy. Without it, nothing depends on the last
    level of charges.
    """
    parts = threads // math.gcd(chunks, threads)
    atoms = bounds[-1]
    blocks, forces, pairs = (Tasks(name, bounds) for name in ("atoms", "forces", "pairs"))
    sums = Tasks("sums", even(atoms, -(-atoms // parts)), chunks)
    whole = Tasks("whole", (0, atoms))

    def level(k: int) -> list[Stage]:
        return [(blocks, PREDICT, k, 0), (whole, ADD_UP, k, 0), (blocks, CHARGE, k, 0)]

    def level_back(k: int) -> list[Stage]:
        return [(whole, -ADD_UP, k, 0), (blocks, -PREDICT, k, 0)]

    stages: list[Stage] = [(blocks, PLACE, 0, 0), (sums, SUM, 0, 0), (blocks, EMBED, 0, 0)]
    for k in range(layers):
        groups = Tasks("groups", plan.groups)
        stages += [*level(k), (blocks, ENTER, k, 0), (groups, RECEIVE, k, 0)]
        stages += [(blocks, INTERACT, k, 0)]
    stages += [*level(layers), (blocks, READ_OUT, 0, 0)]
    if electrostatic:
        stages += [(pairs, COULOMB, 0, 0), *level_back(layers)]
    for k in reversed(range(layers)):
        stages += [(blocks, -INTERACT, k, 0)]
        for portion, end in enumerate(plan.portions[1:]):
            begin = plan.portions[portion]
            groups = Tasks("groups", tuple(i for i in plan.groups if begin <= i <= end))
            stages += [(groups, -SEND, k, portion), (blocks, -RECEIVE, k, portion)]
        stages += [(blocks, -ENTER, k, 0), *level_back(k)]
    stages += [(blocks, -EMBED, 0, 0), (blocks, -SUM, 0, 0), (forces, -PLACE, 0, 0)]
    return make_schedule(stages)


def tensornet2_step(
    team: Team, schedule: Schedule, positions: Any, species: Any, neighbors: Neighbors,
    slots: Slots, work: TensorNetWork, factor: float, forces: Any, virial: Any,
    more: ChargesWork, inner: EdgesWork, pairs: Neighbors, net: PackedTensorNet, gate: Perceptron,
    values: Perceptron, gates: Perceptron, charges: PackedCharges, edges: Perceptron,
    predictions: Perceptron,
) -> None:  # fmt: skip
    """Compute the outputs of the network, charges, forces and virial; see `tensornet_step`.

    ``pairs`` (see `coulomb`) are the edges within the Coulomb cutoff; those of ``neighbors`` are
    within the cutoff of the network.
    """
    thread = join(team)
    phase, task = next_task(team, schedule.tasks, 0)
    while phase < schedule.tasks.size:
        for stage in range(schedule.starts[phase], schedule.starts[phase + 1]):
            perform(
                stage, phase, task, thread, schedule, positions, species, neighbors, slots,
                work, factor, forces, virial, more, inner, pairs, net, gate, values, gates,
                charges, edges, predictions,
            )  # fmt: skip
        done(team, phase)
        phase, task = next_task(team, schedule.tasks, phase)
    leave(team)


@internal
def perform(
    stage: int, phase: int, task: int, thread: int, schedule: Schedule, positions: Any,
    species: Any, neighbors: Neighbors, slots: Slots, work: TensorNetWork, factor: float,
    forces: Any, virial: Any, more: ChargesWork, inner: EdgesWork, pairs: Neighbors,
    net: PackedTensorNet, gate: Perceptron, values: Perceptron, gates: Perceptron,
    charges: PackedCharges, edges: Perceptron, predictions: Perceptron,
) -> None:  # fmt: skip
    """Run one stage of a task."""
    what, layer = schedule.stages[stage, 0], schedule.stages[stage, 1]
    portion = schedule.stages[stage, 2]
    begin, ranges = schedule.ranges[phase, 0], schedule.ranges[phase, 1]
    chunk, place_of_range = task // ranges, begin + task % ranges
    first, last = schedule.bounds[place_of_range], schedule.bounds[place_of_range + 1]
    scratch = work.scratch[thread]
    if what == PLACE:
        place(
            first, last, positions, neighbors, slots, net.unit, net.lower, net.cutoff,
            net.rows - 3,
        )  # fmt: skip
        place_envelope(first, last, net, neighbors, slots, inner)
    elif what == SUM:
        embed(first, last, chunk, species, net, neighbors, slots, work)
    elif what == EMBED:
        embed_atoms(first, last, net, gate, work, scratch)
    elif what == PREDICT:
        one = one_of(predictions, layer)
        predict(first, last, layer, net, one, charges, work, more, scratch)
    elif what == ADD_UP:
        add_up(layer, charges, more)
    elif what == CHARGE:
        charge_atoms(first, last, layer, charges, more)
    elif what == ENTER:
        enter_layer(first, last, layer, net, work, scratch)
        enter_edges(first, last, layer, net, charges, work, more, inner)
    elif what == RECEIVE:
        receive(
            first, last, layer, thread, one_of(edges, layer), net, charges, neighbors, slots,
            work, inner,
        )  # fmt: skip
    elif what == INTERACT:
        interact(first, last, layer, net, work, scratch)
    elif what == READ_OUT:
        read_out(first, last, net, values, gates, work, scratch, work.slopes[thread])
    elif what == COULOMB:
        coulomb(
            first, last, positions, charges, pairs, more, net.unit, factor, work.outputs, forces,
            virial, inner.values[thread],
        )  # fmt: skip
    elif what == -ADD_UP:
        add_up_back(layer, charges, more)
    elif what == -PREDICT:
        one = one_of(predictions, layer)
        predict_back(first, last, layer, net, one, charges, work, more, scratch)
    elif what == -INTERACT:
        interact_back(first, last, layer, net, work, scratch)
    elif what == -SEND:
        send_back(
            first, last, layer, portion, thread, one_of(edges, layer), net, charges, neighbors,
            slots, work, inner,
        )  # fmt: skip
    elif what == -RECEIVE:
        receive_back(first, last, portion, net, neighbors, slots, inner)
    elif what == -ENTER:
        enter_layer_back(first, last, layer, net, work, scratch)
        enter_edges_back(first, last, layer, net, charges, work, more, inner, scratch)
    elif what == -EMBED:
        embed_atoms_back(first, last, net, gate, work, scratch)
    elif what == -SUM:
        embed_back(first, last, species, net, neighbors, slots, work)
    else:
        collect(first, last, neighbors, slots, factor, net.unit, forces, virial)
