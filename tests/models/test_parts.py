"""Parts of a system: their energies, forces and virials add up to those of the whole."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from support.helpers import System, crystal, ethanol, make_potential, make_tdn, slab, supercell
from torch import nn

from tensormd.models import Potential
from tensormd.models.inference.backends import compile_partial, compile_potential
from tensormd.models.parts import PartList

SYSTEMS = {
    "molecule": ethanol(charge=-1.0),
    "crystal": supercell(crystal(), (4, 2, 2)),
    "slab": supercell(slab(), (3, 3, 1)),
    "small cell": crystal(),
}


def halves(system: System, parts: int = 2, axis: int = 0) -> list[np.ndarray]:
    """Own atoms of each part: slices of equal numbers of atoms along an axis."""
    order = np.argsort(system.positions[:, axis])
    owner = np.empty(len(order), dtype=int)
    owner[order] = np.arange(len(order)) * parts // len(order)
    return [owner == k for k in range(parts)]


def arrays_of(system: System) -> tuple[Any, ...]:
    cell = np.diag([50.0, 50.0, 50.0]) if system.cell is None else system.cell
    pbc = np.broadcast_to(system.pbc, 3).copy()
    return system.numbers, system.positions, cell, pbc, system.charge


def summed(
    model: nn.Module, potential: Potential, system: System, parts: list[np.ndarray]
) -> tuple[Any, ...]:
    energies, forces = np.zeros(len(system.numbers)), np.zeros((len(system.numbers), 3))
    virial = np.zeros((3, 3))
    hops = len(potential.representation.layers) + 1
    for own in parts:
        search = PartList(potential.cutoff, hops, 0.5)
        graph, part, atoms = search.graph(*arrays_of(system), own)
        assert set(atoms[: part.shells[0]]) == set(np.flatnonzero(own))
        for _ in range(2):  # the second step uses memory that the first has written to
            found = model(graph, part)
        energies[atoms] += found.energies.numpy()
        np.add.at(forces, atoms, found.forces.numpy())
        virial += found.virial[0].numpy()
        assert float(found.energy) == pytest.approx(float(found.energies.sum()))
    return energies, forces, virial


@pytest.mark.parametrize("name", SYSTEMS)
@pytest.mark.parametrize("backend", ["reference", "fused"])
def test_parts_add_up(name: str, backend: str) -> None:
    system = SYSTEMS[name]
    potential = make_potential(1, zbl=2.0, references=[0.0, *range(1, 16)], cutoff=3.0)
    potential.atomic_scale.mean.fill_(7.0)
    whole = compile_potential(potential, backend)(system.graph(3.0, 0.5))
    model = compile_partial(potential, backend)
    for axis, count in ((0, 2), (2, 3)):
        parts = halves(system, count, axis)
        energies, forces, virial = summed(model, potential, system, parts)
        assert np.abs(whole.forces.numpy()).max() > 0.1
        np.testing.assert_allclose(energies, whole.energies.numpy(), rtol=1e-12, atol=1e-11)
        np.testing.assert_allclose(forces, whole.forces.numpy(), rtol=1e-11, atol=1e-11)
        np.testing.assert_allclose(virial, whole.virial[0].numpy(), rtol=1e-11, atol=1e-10)


@pytest.mark.parametrize("layers", [0, 1, 3])
def test_each_number_of_layers(layers: int) -> None:
    system = supercell(crystal(), (6, 1, 1))
    potential = make_potential(2, layers=layers, cutoff=3.2, group="SO(3)")
    whole = compile_potential(potential, "fused")(system.graph(3.2, 0.5))
    model = compile_partial(potential, "fused")
    _, forces, virial = summed(model, potential, system, halves(system, 3))
    np.testing.assert_allclose(forces, whole.forces.numpy(), rtol=1e-11, atol=1e-11)
    np.testing.assert_allclose(virial, whole.virial[0].numpy(), rtol=1e-11, atol=1e-10)


@pytest.mark.parametrize("per_atom", [False, True])
def test_tdn(per_atom: bool) -> None:
    system = supercell(crystal(), (3, 1, 1))
    potential = make_tdn(1, cutoff=3.0)
    potential.atomic_scale.mean.fill_(2.0)
    potential.atomic_scale.per_atom = per_atom
    whole = potential(system.graph(potential.cutoff))
    model = compile_partial(potential, "auto")
    energies, forces, _ = summed(model, potential, system, halves(system))
    np.testing.assert_allclose(energies, whole.energies.numpy(), rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(forces, whole.forces.numpy(), rtol=1e-10, atol=1e-10)
    with pytest.raises(ValueError, match="evaluate no parts of a system"):
        compile_partial(potential, "fused")


def test_one_hop_fewer_is_wrong() -> None:
    """The control: the atoms of the outermost shell are needed."""
    system = supercell(crystal(), (8, 1, 1))
    potential = make_potential(1, cutoff=3.5)
    whole = potential(system.graph(3.5))
    forces = np.zeros((len(system.numbers), 3))
    for own in halves(system):
        graph, part, atoms = PartList(3.5, 2, 0.0).graph(*arrays_of(system), own)
        np.add.at(forces, atoms, compile_partial(potential)(graph, part).forces.numpy())
    assert np.abs(forces - whole.forces.numpy()).max() > 1e-6


def test_the_part_is_smaller_than_the_whole_and_reused() -> None:
    system = supercell(crystal(), (12, 1, 1))
    numbers, positions, cell, pbc, charge = arrays_of(system)
    own = halves(system, 4)[1]
    search = PartList(2.5, 3, 0.5)
    first = search.graph(numbers, positions, cell, pbc, charge, own)
    assert first.part.shells == sorted(first.part.shells)
    assert len(first.atoms) == first.part.shells[-1] < len(numbers)
    moved = positions + 0.1
    second = search.graph(numbers, moved, cell, pbc, charge, own)
    assert search.builds == 1
    assert second.graph.edge_index is first.graph.edge_index
    assert torch.equal(second.graph.positions, first.graph.positions + 0.1)
    moved[0] += 0.2  # an atom far from the own ones may have come near
    search.graph(numbers, moved, cell, pbc, charge, own)
    assert search.builds == 2
    for change in ({"charge": 1.0}, {"cell": 1.01 * cell}, {"own": ~own}):
        given = {"numbers": numbers, "positions": moved, "cell": cell, "pbc": pbc}
        search.graph(**(given | {"charge": charge, "own": own} | change))
    assert search.builds == 5


def test_torchmdnet_modules_cannot_be_divided() -> None:
    with pytest.raises(ValueError, match="run one MPI rank"):
        compile_partial(nn.Linear(1, 1))
