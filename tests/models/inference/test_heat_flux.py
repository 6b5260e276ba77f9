"""The heat flux against its definition."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from ase import Atoms
from support.helpers import System, crystal, ethanol, make_potential, make_tdn
from support.tensornet2 import make_tensornet2

from tensormd.calculators import TDNCalculator, TensorNetCalculator
from tensormd.models import Potential
from tensormd.models.graph import displacements
from tensormd.models.inference.heat_flux import heat_flux, unfold

RNG = np.random.default_rng(4)
MASSES = torch.from_numpy(RNG.uniform(1, 20, size=9))
VELOCITIES = torch.from_numpy(RNG.normal(scale=0.1, size=(9, 3)))
CUTOFF = 3.0
NETWORKS: dict[str, Any] = {
    "TensorNet": lambda **more: make_potential(layers=1, cutoff=CUTOFF, **more),
    "TDN": lambda **more: make_tdn(layers=1, cutoff=CUTOFF, lmax=2, **more),
}


def flux_of(potential: Potential, system: System) -> torch.Tensor:
    atoms = len(system.numbers)
    return heat_flux(potential, system.graph(potential.cutoff), VELOCITIES[:atoms], MASSES[:atoms])


@pytest.mark.parametrize("zbl", [0.0, 2.0])
@pytest.mark.parametrize("network", NETWORKS)
def test_of_a_molecule_is_the_rate_of_its_energy_moment(network: str, zbl: float) -> None:
    potential, system = NETWORKS[network](zbl=zbl), ethanol()
    graph = system.graph(potential.cutoff)
    acceleration = potential(graph).forces / MASSES.unsqueeze(1)

    def moment(time: float) -> torch.Tensor:
        positions = graph.positions + VELOCITIES * time + 0.5 * acceleration * time**2
        velocities = VELOCITIES + acceleration * time
        energies = potential(system.moved(positions.numpy()).graph(potential.cutoff)).energies
        total = energies + 0.5 * MASSES * velocities.square().sum(1)
        return total @ positions

    step = 1e-4
    expected = (moment(step) - moment(-step)) / (2 * step)
    flux = flux_of(potential, system)
    assert flux[0].abs().max() > 1e-2
    torch.testing.assert_close(flux.sum(0), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("network", NETWORKS)
def test_of_a_crystal_is_the_sum_over_pairs_of_atoms(network: str) -> None:
    """All derivatives of an energy by positions, in a cell where images are different atoms."""
    potential, system = NETWORKS[network](), crystal()
    atoms, cell = len(system.numbers), np.asarray(system.cell)
    n = 4
    shifts = np.array(list(itertools.product(range(n), repeat=3)))
    positions = (system.positions + (shifts @ cell)[:, None]).reshape(-1, 3)
    large = System(np.tile(system.numbers, n**3), positions, n * cell, True)
    graph = large.graph(potential.cutoff)
    moving = graph.positions.clone().requires_grad_(True)
    energies = potential.atom_energies(graph, displacements(graph._replace(positions=moving)))
    expected = torch.zeros(3, dtype=torch.float64)
    velocities = VELOCITIES[:atoms].repeat(n**3, 1)
    for i in range(atoms):
        [gradient] = torch.autograd.grad([energies[i]], [moving], retain_graph=True)
        apart = (positions[i] - positions) @ np.linalg.inv(n * cell)
        between = torch.from_numpy((apart - np.round(apart)) @ (n * cell))
        expected += ((gradient * velocities).sum(1, keepdim=True) * between).sum(0)
    found = flux_of(potential, system)[0]
    assert found.abs().max() > 1e-2
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-10)


def test_is_extensive_and_does_not_depend_on_wrapping() -> None:
    potential, system = make_potential(), crystal()
    potential.atomic_scale.mean.fill_(3.0)  # of each system, whatever its size
    flux = flux_of(potential, system)
    wrapped = system.moved(system.positions + [[0], [2], [-1], [0], [1]] @ system.cell[:1])
    torch.testing.assert_close(flux_of(potential, wrapped), flux, rtol=1e-10, atol=1e-10)
    cell = np.diag([2.0, 1, 1]) @ system.cell
    positions = np.concatenate([system.positions, system.positions + system.cell[0]])
    double = System(np.tile(system.numbers, 2), positions, cell, True)
    moving = VELOCITIES[:5].repeat(2, 1), MASSES[:5].repeat(2)
    twice = heat_flux(potential, double.graph(potential.cutoff), *moving)
    torch.testing.assert_close(twice[0], 2 * flux[0], rtol=1e-10, atol=1e-10)


def test_unfolded_energies_are_those_of_the_system() -> None:
    potential, system = make_potential(), crystal()
    graph = system.graph(potential.cutoff)
    large, part, origin = unfold(graph, hops=3)
    assert part.atoms == 5
    assert part.shells == sorted(part.shells)
    assert part.shells[-1] == len(origin) == len(large.numbers)
    energies = potential.atom_energies(large, displacements(large), None, part)[:5]
    torch.testing.assert_close(energies, potential(graph).energies, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("kind", "make"), [(TensorNetCalculator, make_potential), (TDNCalculator, make_tdn)]
)
def test_calculator(kind: Any, make: Any) -> None:
    potential, system = make(), crystal()
    atoms = Atoms(system.numbers, system.positions, cell=system.cell, pbc=True)
    atoms.set_masses(MASSES[:5].numpy())
    atoms.set_velocities(VELOCITIES[:5].numpy())
    atoms.calc = kind(potential, dtype="float64")
    found = atoms.calc.get_heat_flux(atoms)
    expected = flux_of(potential, system).numpy()
    np.testing.assert_allclose(found.potential, expected[0], rtol=1e-10)
    np.testing.assert_allclose(found.convective, expected[1], rtol=1e-10)


def test_what_reaches_further_is_refused() -> None:
    atoms = Atoms("OH2", positions=[[0, 0, 0], [0.8, 0.6, 0], [-0.8, 0.6, 0]])
    atoms.set_velocities(np.ones((3, 3)))
    calculator = TensorNetCalculator(make_potential(), dispersion="pbe")
    with pytest.raises(ValueError, match="no heat flux of the dispersion"):
        calculator.get_heat_flux(atoms)
    with pytest.raises(ValueError, match="no structure"):
        TensorNetCalculator(make_potential()).get_heat_flux()
    charged = make_tensornet2()
    graph = System(atoms.numbers, atoms.positions).graph(charged.cutoff)
    with pytest.raises(
        ValueError, match=r"no heat flux for this TensorNet2: expected a network without charges"
    ):
        heat_flux(charged, graph, torch.ones(3, 3).double(), torch.ones(3).double())
