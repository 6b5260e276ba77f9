"""The whole pass: positions in, outputs, forces and virial out, in one parallel region.

A phase computes for each atom all that it can before it needs another atom's result. The sums
over neighbours are shared by chunk of channels and part of the atoms, so that a chunk's table
and features stay in the cache; everything else by block of atoms.
"""

from __future__ import annotations

from typing import Any

from numba import prange

from .algebra import irreps_of
from .compiled import inlined
from .edges import Pairs, Slots, collect, embed, embed_back, gather, gather_back, place, table_row
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
from .team import counters, done, finish, join, take


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
    threads: int,
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
    threads
        How many are wanted.
    unit
        The network's unit of length, Angstrom.
    lower, cutoff
        In that unit.
    factor
        What takes the derivative of an output to eV/A.
    forces, virial
        (N, 3) and (N, 3, 3) float64, written.
    """
    phases = 5 + 4 * net.layers
    state = counters(phases)
    for _ in prange(threads):
        take_part(
            state, positions, species, pairs, slots, net, gate, values, gates, work, part,
            unit, lower, cutoff, factor, forces, virial,
        )  # fmt: skip


@inlined
def take_part(
    state: Any, positions: Any, species: Any, pairs: Pairs, slots: Slots, net: Network,
    gate: Perceptron, values: Perceptron, gates: Perceptron, work: Work, part: int,
    unit: float, lower: float, cutoff: float, factor: float, forces: Any, virial: Any,
) -> None:  # fmt: skip
    """What one thread does of a step."""
    rank = join(state)
    atoms, chunks, rows, layers = species.size, net.chunks, net.rows, net.layers
    block = work.block
    blocks = (atoms + block - 1) // block
    parts = (atoms + part - 1) // part
    row, size = table_row(net.shape), irreps_of(net.shape) * LANES
    table = chunks * rows * row
    phase = 0

    task = take(state, phase)
    while task < blocks:
        first, last = task * block, min((task + 1) * block, atoms)
        place(first, last, positions, pairs, slots, unit, lower, cutoff, rows - 3)
        done(state, phase)
        task = take(state, phase)
    phase = finish(state, phase, blocks)

    task = take(state, phase)
    while task < chunks * parts:
        chunk, first = task // parts, task % parts * part
        embed(
            first, min(first + part, atoms), chunk, chunks, net.shape, species, net.receiver,
            net.sender, net.tables, net.embedding_at_zero, rows, pairs, slots, work.embedded,
        )  # fmt: skip
        done(state, phase)
        task = take(state, phase)
    phase = finish(state, phase, chunks * parts)

    task = take(state, phase)
    while task < blocks:
        first, last = task * block, min((task + 1) * block, atoms)
        embed_atoms(first, last, rank, net, gate, work)
        if layers > 0:
            enter_layer(first, last, rank, 0, net, work)
        else:
            read_out(first, last, rank, net, values, gates, work)
        done(state, phase)
        task = take(state, phase)
    phase = finish(state, phase, blocks)

    for layer in range(layers):
        task = take(state, phase)
        while task < chunks * parts:
            chunk, first = task // parts, task % parts * part
            gather(
                first, min(first + part, atoms), chunk, atoms, net.shape, net.tables,
                (layer + 1) * table + chunk * rows * row, net.at_zero,
                (layer * chunks + chunk) * size, pairs, slots, work.y[layer],
                work.message[layer],
            )  # fmt: skip
            done(state, phase)
            task = take(state, phase)
        phase = finish(state, phase, chunks * parts)

        task = take(state, phase)
        while task < blocks:
            first, last = task * block, min((task + 1) * block, atoms)
            interact(first, last, rank, layer, net, work)
            if layer + 1 < layers:
                enter_layer(first, last, rank, layer + 1, net, work)
            else:
                read_out(first, last, rank, net, values, gates, work)
                interact_back(first, last, rank, layer, net, work)
            done(state, phase)
            task = take(state, phase)
        phase = finish(state, phase, blocks)

    for layer in range(layers - 1, -1, -1):
        task = take(state, phase)
        while task < chunks * parts:
            chunk, first = task // parts, task % parts * part
            gather_back(
                first, min(first + part, atoms), chunk, atoms, net.shape, net.tables,
                (layer + 1) * table + chunk * rows * row, net.at_zero,
                (layer * chunks + chunk) * size, pairs, slots, work.y[layer],
                work.message[layer], work.delta[layer], layer == layers - 1,
            )  # fmt: skip
            done(state, phase)
            task = take(state, phase)
        phase = finish(state, phase, chunks * parts)

        task = take(state, phase)
        while task < blocks:
            first, last = task * block, min((task + 1) * block, atoms)
            enter_layer_back(first, last, rank, layer, net, work)
            if layer > 0:
                interact_back(first, last, rank, layer - 1, net, work)
            done(state, phase)
            task = take(state, phase)
        phase = finish(state, phase, blocks)

    task = take(state, phase)
    while task < blocks:
        first, last = task * block, min((task + 1) * block, atoms)
        embed_atoms_back(first, last, rank, net, gate, work)
        embed_back(
            first, last, chunks, net.shape, species, net.receiver, net.sender, net.tables, rows,
            pairs, slots, work.gradient, layers,
        )  # fmt: skip
        done(state, phase)
        task = take(state, phase)
    phase = finish(state, phase, blocks)

    task = take(state, phase)
    while task < blocks:
        first, last = task * block, min((task + 1) * block, atoms)
        collect(first, last, pairs, slots, factor, unit, forces, virial)
        task = take(state, phase)
