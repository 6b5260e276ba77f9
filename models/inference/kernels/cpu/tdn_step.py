"""A whole step of a TDN: from positions to outputs, forces and virial.

A thread takes receivers in groups of some dozens of edges, whose messages stay in its cache. In
the last layer, it continues to the energies of the group and back; in the others, messages are
computed twice.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from .compiled import internal
from .neighbors import Neighbors, Slots, collect, place
from .perceptron import Perceptron
from .tdn_edges import attend, attend_back, collect_sent, embed, embed_back, gather
from .tdn_harmonics import orient, turn_harmonics
from .tdn_network import PackedTDN, TDNWork
from .tdn_nodes import (
    embed_atoms,
    embed_atoms_back,
    enter_layer,
    enter_layer_back,
    feed_forward,
    feed_forward_back,
    read_out,
)
from .team import Schedule, Stage, Tasks, Team, done, join, leave, make_schedule, next_task

# Operations of the stages; the negative of an operation is its backward pass.
PLACE, SUM, EMBED, ENTER, ATTEND, FEED, READ_OUT = range(1, 8)
AGAIN = 8
"""Recomputes the messages of `ATTEND`, without their sum."""
RETURN = 9
"""Sums by sender the gradients that `-ATTEND` leaves for senders."""


def tdn_schedule(
    layers: int, bounds: tuple[int, ...], groups: tuple[int, ...], receivers: Sequence[int]
) -> Schedule:
    """The stages of the forward pass, the readout and the backward pass (the same, reversed).

    ``bounds`` delimit the blocks of atoms, ``groups`` the groups of receivers, and ``receivers``
    the chunks of receivers, by which the backward pass of the attention proceeds.
    """
    blocks, forces = Tasks("atoms", bounds), Tasks("forces", bounds)
    chunks = [
        Tasks("groups", tuple(g for g in groups if first <= g <= end))
        for first, end in pairwise(receivers)
    ]
    stages: list[Stage] = [(blocks, what, 0, 0) for what in (PLACE, SUM, EMBED)]
    for layer in range(layers):
        stages.append((blocks, ENTER, layer, 0))
        if layer < layers - 1:
            stages += [(Tasks("groups", groups), ATTEND, layer, 0), (blocks, FEED, layer, 0)]
    if layers == 0:
        stages.append((blocks, READ_OUT, 0, 0))
    for layer in reversed(range(layers)):
        before = [ATTEND, FEED, READ_OUT, -FEED] if layer == layers - 1 else [AGAIN]
        if layer < layers - 1:
            stages.append((blocks, -FEED, layer, 0))
        for k, chunk in enumerate(chunks):
            stages += [(chunk, what, layer, k) for what in (*before, -ATTEND)]
            stages.append((blocks, RETURN, layer, k))
        stages.append((blocks, -ENTER, layer, 0))
    stages += [(blocks, -EMBED, 0, 0), (blocks, -SUM, 0, 0), (forces, -PLACE, 0, 0)]
    return make_schedule(stages)


def tdn_step(
    team: Team, schedule: Schedule, positions: Any, species: Any, neighbors: Neighbors,
    slots: Slots, work: TDNWork, factor: float, forces: Any, virial: Any, net: PackedTDN,
    head: Perceptron,
) -> None:  # fmt: skip
    """Run a step of a TDN; the neighbours are sorted by receiver, then sender.

    ``head`` is the perceptron of the readout; see `tensornet_step` for the other parameters.
    """
    thread = join(team)
    phase, task = next_task(team, schedule.tasks, 0)
    while phase < schedule.tasks.size:
        for stage in range(schedule.starts[phase], schedule.starts[phase + 1]):
            perform(
                stage, phase, task, thread, schedule, positions, species, neighbors, slots,
                work, factor, forces, virial, net, head,
            )  # fmt: skip
        done(team, phase)
        phase, task = next_task(team, schedule.tasks, phase)
    leave(team)


@internal
def perform(
    stage: int, phase: int, task: int, thread: int, schedule: Schedule, positions: Any,
    species: Any, neighbors: Neighbors, slots: Slots, work: TDNWork, factor: float, forces: Any,
    virial: Any, net: PackedTDN, head: Perceptron,
) -> None:  # fmt: skip
    """Run one stage of a task."""
    what, layer, chunk = schedule.stages[stage]
    begin = schedule.ranges[phase, 0] + task
    first, last = schedule.bounds[begin], schedule.bounds[begin + 1]
    scratch, own = work.scratch[thread], work.own[thread]
    receivers = work.receivers[chunk]
    base = neighbors.offsets[receivers]
    if what == PLACE:
        place(first, last, positions, neighbors, slots, net.unit, 0.0, net.cutoff, net.rows - 3)
        orient(first, last, positions, neighbors, slots, net, work, own)
    elif what == SUM:
        embed(first, last, species, net, neighbors, slots, work)
    elif what == EMBED:
        embed_atoms(first, last, species, net, work)
    elif what == ENTER:
        enter_layer(first, last, layer, net, work, scratch)
    elif what in (ATTEND, AGAIN):
        attend(first, last, layer, net, neighbors, slots, work, scratch)
        if what == ATTEND:
            gather(first, last, layer, net, neighbors, slots, work, scratch)
    elif what == FEED:
        feed_forward(first, last, layer, net, work, scratch)
    elif what == READ_OUT:
        read_out(first, last, net, head, work, scratch)
    elif what == -FEED:
        feed_forward_back(first, last, layer, net, work, scratch)
    elif what == -ATTEND:
        attend_back(first, last, layer, base, net, neighbors, slots, work, scratch)
    elif what == RETURN:
        end = work.receivers[chunk + 1]
        collect_sent(first, last, receivers, end, base, net, neighbors, slots, work)
    elif what == -ENTER:
        enter_layer_back(first, last, layer, net, work, scratch)
    elif what == -EMBED:
        embed_atoms_back(first, last, net, work)
    elif what == -SUM:
        embed_back(first, last, species, net, neighbors, slots, work, scratch)
        turn_harmonics(first, last, neighbors, slots, net, work, own)
    else:
        collect(first, last, neighbors, slots, factor, net.unit, forces, virial)
