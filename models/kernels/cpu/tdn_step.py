"""The whole pass of a TDN: positions in, outputs, forces and virial out, in parallel loops.

A thread takes receivers in groups of some dozens of edges: their messages stay in its cache from
the gather to the sum. The last layer goes on from there to the energies of the group and back,
the others compute their messages twice.
"""

from __future__ import annotations

from typing import Any

from numba import get_thread_id, prange

from .edges import Pairs, collect
from .perceptron import Perceptron
from .tdn_edges import attend, attend_back, collect_sent, embed, embed_back, gather
from .tdn_geometry import Slots, place, turn
from .tdn_network import Network, Plan, Work
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
    atoms, layers = species.size, net.layers
    threads = plan.shares.size - 1
    blocks = (atoms + work.block - 1) // work.block

    for block in prange(blocks):
        thread = get_thread_id()
        first, last = block * work.block, min((block + 1) * work.block, atoms)
        place(first, last, positions, pairs, slots, net, work.own[thread])
        embed(first, last, net, pairs, slots, work)
        embed_atoms(first, last, species, net, work)
        if layers > 0:
            enter_layer(first, last, 0, net, work, work.scratch[thread])
        else:
            read_out(first, last, net, head, work, work.scratch[thread])
            embed_atoms_back(first, last, net, work)

    for layer in range(layers - 1):
        for share in prange(threads):
            scratch = work.scratch[share]
            for group in range(plan.shares[share], plan.shares[share + 1]):
                first, last = plan.groups[group], plan.groups[group + 1]
                attend(first, last, layer, net, pairs, slots, work, scratch)
                gather(first, last, layer, net, pairs, slots, work, scratch)
        for block in prange(blocks):
            scratch = work.scratch[get_thread_id()]
            first, last = block * work.block, min((block + 1) * work.block, atoms)
            feed_forward(first, last, layer, net, work, scratch)
            enter_layer(first, last, layer + 1, net, work, scratch)

    for back in range(layers):
        layer = layers - 1 - back
        for chunk in range(plan.chunks.size - 1):
            receivers, end = plan.groups[plan.chunks[chunk]], plan.groups[plan.chunks[chunk + 1]]
            base = pairs.offsets[receivers]
            for share in prange(threads):
                scratch = work.scratch[share]
                bounds = plan.chunk_shares[chunk]
                for group in range(bounds[share], bounds[share + 1]):
                    first, last = plan.groups[group], plan.groups[group + 1]
                    attend(first, last, layer, net, pairs, slots, work, scratch)
                    if back == 0:
                        gather(first, last, layer, net, pairs, slots, work, scratch)
                        feed_forward(first, last, layer, net, work, scratch)
                        read_out(first, last, net, head, work, scratch)
                        feed_forward_back(first, last, layer, net, work, scratch)
                    attend_back(first, last, layer, base, net, pairs, slots, work, scratch)
            for block in prange(blocks):
                first, last = block * work.block, min((block + 1) * work.block, atoms)
                collect_sent(first, last, receivers, end, base, net, pairs, slots, work)
        for block in prange(blocks):
            scratch = work.scratch[get_thread_id()]
            first, last = block * work.block, min((block + 1) * work.block, atoms)
            enter_layer_back(first, last, layer, net, work, scratch)
            if layer > 0:
                feed_forward_back(first, last, layer - 1, net, work, scratch)
            else:
                embed_atoms_back(first, last, net, work)

    for block in prange(blocks):
        thread = get_thread_id()
        first, last = block * work.block, min((block + 1) * work.block, atoms)
        embed_back(first, last, net, pairs, slots, work, work.scratch[thread])
        for i in range(first, last):
            for slot in range(pairs.offsets[i], pairs.offsets[i] + slots.counts[i]):
                turn(slots, slot, net, work.own[thread])

    for block in prange(blocks):
        first, last = block * work.block, min((block + 1) * work.block, atoms)
        collect(first, last, pairs, slots, factor, net.unit, forces, virial)
