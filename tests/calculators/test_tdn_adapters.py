"""TDN in everything that TensorNet supports: OpenMM, committees, batches, Hessian."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import molecule
from support.openmm_systems import ENGINES, evaluate, make_system

from tensormd.calculators import TDNCalculator, create_force
from tensormd.models import TDN, Committee, Potential, ScalarReadout


def make_tdn(seed: int = 0) -> Potential:
    torch.manual_seed(seed)
    network = TDN(channels=8, layers=2, lmax=2, heads=2, radial_functions=8, max_number=9)
    potential = Potential(network, ScalarReadout(8), elements=[1, 6, 8], scale=3.0)
    return potential.double().eval()


@pytest.fixture
def ethanol() -> Atoms:
    atoms = molecule("CH3CH2OH")
    atoms.rattle(0.05, seed=1)
    return atoms


@pytest.mark.parametrize("periodic", [False, True])
@pytest.mark.parametrize("engine", ENGINES)
def test_openmm_equals_ase(engine: str, periodic: bool, ethanol: Atoms) -> None:
    if periodic:
        ethanol.set_cell([6.0, 6.5, 7.0])  # smaller than twice the cutoff
        ethanol.pbc = True
    potential = make_tdn()
    force = create_force(
        potential, ethanol.numbers, engine=engine, dtype="float64", periodic=periodic
    )
    energy, forces = evaluate(make_system(ethanol, force), ethanol, "Reference")
    expected = TDNCalculator(potential, dtype="float64").evaluate([ethanol])[0]
    assert np.abs(expected["forces"]).max() > 0.01
    assert energy == pytest.approx(expected["energy"], abs=1e-9)
    np.testing.assert_allclose(forces, expected["forces"], atol=1e-9)


def test_committee_batch_and_hessian(ethanol: Atoms) -> None:
    members = [make_tdn(seed) for seed in (0, 1)]
    calculator = TDNCalculator(Committee(members), dtype="float64")
    together = calculator.evaluate([ethanol, molecule("CH4"), ethanol])
    alone = [TDNCalculator(m, dtype="float64").evaluate([ethanol])[0] for m in members]
    mean = np.mean([result["forces"] for result in alone], axis=0)
    for result in (together[0], together[2]):
        np.testing.assert_allclose(result["forces"], mean, atol=1e-11)
    assert together[0]["forces_std"].max() > 1e-3

    hessian = TDNCalculator(members[0], dtype="float64").get_hessian(ethanol)
    step, shifted = 1e-4, []
    for sign in (1, -1):
        moved = ethanol.copy()
        moved.positions[4, 1] += sign * step
        shifted.append(TDNCalculator(members[0], dtype="float64").evaluate([moved])[0]["forces"])
    numerical = -(shifted[0] - shifted[1]).ravel() / (2 * step)
    assert np.abs(numerical).max() > 0.01
    np.testing.assert_allclose(hessian[13], numerical, atol=1e-6 * np.abs(hessian).max())
