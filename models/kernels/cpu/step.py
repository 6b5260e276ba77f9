"""The whole pass: positions in, outputs, forces and virial out, in a few parallel loops.

What a loop over atoms computes is all that it can before it needs another atom's result: sums
over neighbours are shared by chunk of channels and part of the atoms, so that a chunk's table
and features stay in the cache; everything else by block of atoms.
"""

from __future__ import annotations

from typing import Any

from numba import get_thread_id, prange

from .edges import (
    TABLE_ROW,
    Pairs,
    Slots,
    collect,
    embed,
    embed_back,
    gather,
    gather_back,
    place,
)
from .nodes import (
    Network,
    Work,
    embed_atoms,
    embed_atoms_back,
    enter_layer,
    enter_layer_back,
    interact,
    interact_back,
    read_out,
)
from .perceptron import Perceptron
from .simd import LANES


def step(
    positions: Any,
    species: Any,
    pairs: Pairs,
    slots: Slots,
    net: Network,
    gate: Perceptron,
    values: Perceptron,
    gates: Perceptron,
    work: Work,
    part: int,
    unit: float,
    lower: float,
    cutoff: float,
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
        (N,) int64, rows of the network's tables of elements.
    pairs
        Neighbours, with their skin.
    slots, net, work
        See there.
    gate
        Of the embedding.
    values, gates
        Of the readout: their product is the output; without layers there are no gates.
    part
        Atoms whose sums over neighbours are one task.
    unit
        The network's unit of length, Angstrom.
    lower, cutoff
        In that unit.
    factor
        What takes the derivative of an output to eV/A.
    forces, virial
        (N, 3) and (N, 3, 3) float64, written.
    """
    atoms, chunks, rows, layers = species.size, net.chunks, net.rows, net.layers
    blocks = (atoms + work.block - 1) // work.block
    parts = (atoms + part - 1) // part
    table = chunks * rows * TABLE_ROW

    for block in prange(blocks):
        first, last = block * work.block, min((block + 1) * work.block, atoms)
        place(first, last, positions, pairs, slots, chunks, unit, lower, cutoff, rows - 3)

    for task in prange(chunks * parts):
        chunk, first = task // parts, task % parts * part
        embed(
            first, min(first + part, atoms), chunk, chunks, species, net.receiver, net.sender,
            net.tables, net.embedding_at_zero, rows, pairs, slots, work.embedded,
        )  # fmt: skip

    for block in prange(blocks):
        thread = get_thread_id()
        first, last = block * work.block, min((block + 1) * work.block, atoms)
        embed_atoms(first, last, thread, net, gate, work)
        if layers > 0:
            enter_layer(first, last, thread, 0, net, work)
        else:
            read_out(first, last, thread, net, values, gates, work)
            embed_atoms_back(first, last, thread, net, gate, work)

    for layer in range(layers):
        for task in prange(chunks * parts):
            chunk, first = task // parts, task % parts * part
            gather(
                first, min(first + part, atoms), chunk, atoms, net.tables,
                (layer + 1) * table + chunk * rows * TABLE_ROW, net.at_zero,
                (layer * chunks + chunk) * 3 * LANES, pairs, slots, work.y[layer],
                work.message[layer],
            )  # fmt: skip
        for block in prange(blocks):
            thread = get_thread_id()
            first, last = block * work.block, min((block + 1) * work.block, atoms)
            interact(first, last, thread, layer, net, work)
            if layer + 1 < layers:
                enter_layer(first, last, thread, layer + 1, net, work)
            else:
                read_out(first, last, thread, net, values, gates, work)
                interact_back(first, last, thread, layer, net, work)

    for back in range(layers):
        layer = layers - 1 - back
        for task in prange(chunks * parts):
            chunk, first = task // parts, task % parts * part
            gather_back(
                first, min(first + part, atoms), chunk, atoms, net.tables,
                (layer + 1) * table + chunk * rows * TABLE_ROW, net.at_zero,
                (layer * chunks + chunk) * 3 * LANES, pairs, slots, work.y[layer],
                work.message[layer], work.delta[layer],
            )  # fmt: skip
        for block in prange(blocks):
            thread = get_thread_id()
            first, last = block * work.block, min((block + 1) * work.block, atoms)
            enter_layer_back(first, last, thread, layer, net, work)
            if layer > 0:
                interact_back(first, last, thread, layer - 1, net, work)
            else:
                embed_atoms_back(first, last, thread, net, gate, work)

    for block in prange(blocks):
        first, last = block * work.block, min((block + 1) * work.block, atoms)
        embed_back(
            first, last, chunks, species, net.receiver, net.sender, net.tables, rows, pairs,
            slots, work.gradient,
        )  # fmt: skip

    for block in prange(blocks):
        first, last = block * work.block, min((block + 1) * work.block, atoms)
        collect(first, last, pairs, slots, factor, unit, forces, virial)
