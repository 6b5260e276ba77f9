"""The whole pass of a TDN: positions in, outputs, forces and virial out, in one compiled call.

A thread takes receivers in groups of some dozens of edges: their messages stay in its cache from
the gather to the sum. The last layer goes on from there to the energies of the group and back,
the others compute their messages twice. What is to be done in which order is a list (`Plan`),
and each of its entries is shared by all threads: one parallel loop compiles much faster than
seven.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import prange

from .compiled import internal
from .edges import Pairs, collect
from .perceptron import Perceptron
from .tdn_edges import attend, attend_back, collect_sent, embed, embed_back, gather
from .tdn_geometry import Slots, place, turn
from .tdn_network import ATTEND, BACK, COLLECT, EMBED, FINISH, UPDATE, Network, Plan, Work
from .tdn_nodes import (
    embed_atoms,
    embed_atoms_back,
    enter_layer,
    enter_layer_back,
    feed_forward,
    feed_forward_back,
    read_out,
)


def tdn_step(
    positions: Any,
    species: Any,
    pairs: Pairs,
    slots: Slots,
    net: Network,
    head: Perceptron,
    work: Work,
    plan: Plan,
    factor: float,
    forces: Any,
    virial: Any,
) -> None:
    """Energies' gradient with respect to positions, and the outputs of the network.

    Parameters
    ----------
    positions
        (N, 3) float64, Angstrom.
    species
        (N,) int64, rows of the network's table of elements.
    pairs
        Neighbours, with their skin, in order of receiver and sender.
    slots, net, work, plan
        See there.
    head
        Of the readout.
    factor
        What takes the derivative of an output to eV/A.
    forces, virial
        (N, 3) and (N, 3, 3) float64, written.
    """
    for phase in range(plan.phases.shape[0]):
        for share in prange(plan.atoms.size - 1):
            perform(
                phase, np.int64(share), positions, species, pairs, slots, net, head, work, plan,
                factor, forces, virial,
            )  # fmt: skip


@internal
def perform(
    phase: int, share: int, positions: Any, species: Any, pairs: Pairs, slots: Slots,
    net: Network, head: Perceptron, work: Work, plan: Plan, factor: float, forces: Any,
    virial: Any,
) -> None:  # fmt: skip
    """One thread's share of a phase: its atoms in blocks, or its groups of receivers."""
    what, layer, chunk = plan.phases[phase, 0], plan.phases[phase, 1], plan.phases[phase, 2]
    scratch, own = work.scratch[share], work.own[share]
    begin, end = plan.atoms[share], plan.atoms[share + 1]
    if what in (ATTEND, BACK):
        base = pairs.offsets[plan.groups[plan.chunks[chunk]]]
        for group in range(plan.shares[chunk, share], plan.shares[chunk, share + 1]):
            first, last = plan.groups[group], plan.groups[group + 1]
            attend(first, last, layer, net, pairs, slots, work, scratch)
            if what == ATTEND or layer + 1 == net.layers:
                gather(first, last, layer, net, pairs, slots, work, scratch)
            if what == BACK:
                if layer + 1 == net.layers:
                    feed_forward(first, last, layer, net, work, scratch)
                    read_out(first, last, net, head, work, scratch)
                    feed_forward_back(first, last, layer, net, work, scratch)
                attend_back(first, last, layer, base, net, pairs, slots, work, scratch)
        return
    for first in range(begin, end, work.block):
        last = min(first + work.block, end)
        if what == EMBED:
            place(first, last, positions, pairs, slots, net, own)
            embed(first, last, net, pairs, slots, work)
            embed_atoms(first, last, species, net, work)
            if net.layers > 0:
                enter_layer(first, last, 0, net, work, scratch)
            else:
                read_out(first, last, net, head, work, scratch)
                embed_atoms_back(first, last, net, work)
        elif what == UPDATE:
            feed_forward(first, last, layer, net, work, scratch)
            enter_layer(first, last, layer + 1, net, work, scratch)
        elif what == COLLECT:
            receivers, stop = plan.groups[plan.chunks[chunk]], plan.groups[plan.chunks[chunk + 1]]
            base = pairs.offsets[receivers]
            collect_sent(first, last, receivers, stop, base, net, pairs, slots, work)
            if stop == species.size:
                enter_layer_back(first, last, layer, net, work, scratch)
                if layer > 0:
                    feed_forward_back(first, last, layer - 1, net, work, scratch)
                else:
                    embed_atoms_back(first, last, net, work)
        elif what == FINISH:
            embed_back(first, last, net, pairs, slots, work, scratch)
            for i in range(first, last):
                for slot in range(pairs.offsets[i], pairs.offsets[i] + slots.counts[i]):
                    turn(slots, slot, net, own)
        else:
            collect(first, last, pairs, slots, factor, net.unit, forces, virial)
