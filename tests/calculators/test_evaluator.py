"""Every adapter gives the evaluator's numbers, within the rounding of its program's units."""

from __future__ import annotations

import copy
import functools
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, molecule
from numpy.typing import NDArray
from support.helpers import REFERENCES, make_potential
from torch import nn

from tensormd.calculators import PotentialCalculator, create_force
from tensormd.calculators.checks import charge_of
from tensormd.calculators.evaluator import Evaluator, Structure
from tensormd.calculators.openmm_versions import FORCE_CLASSES
from tensormd.calculators.torch_operator import model_tensor
from tensormd.models import Committee, Potential


def toy(seed: int) -> Potential:
    return make_potential(seed, references=REFERENCES, scale=0.5).float()


POTENTIALS: dict[str, nn.Module] = {
    "one": toy(0),
    "committee": Committee([toy(0), toy(1)]),
}


# Radial tables take a second to make: once for each potential.


@functools.cache
def evaluator_of(members: str, backend: str) -> Evaluator:
    return Evaluator(POTENTIALS[members], device="cpu", backend=backend)


@functools.cache
def calculator_of(members: str, backend: str) -> PotentialCalculator:
    return PotentialCalculator(POTENTIALS[members], device="cpu", backend=backend)


@functools.cache
def tensor_of(members: str) -> torch.Tensor:
    return model_tensor(POTENTIALS[members])


def ethanol(charge: int = 0) -> Atoms:
    atoms = molecule("CH3CH2OH")
    atoms.rattle(0.05, seed=1)
    atoms.info["charge"] = charge
    return atoms


def crystal() -> Atoms:
    """A box of 3.6 A, smaller than the cutoff, its atoms not wrapped."""
    atoms = bulk("C", "diamond", a=3.6, cubic=True)
    atoms.rattle(0.05, seed=1)
    atoms.positions[2] += 2 * atoms.cell[0]
    return atoms


STRUCTURES = {"molecule": ethanol(), "anion": ethanol(-1), "crystal": crystal()}

Result = tuple[float, NDArray[np.float64]]
Adapter = Callable[[str, Atoms, str], Result]


def structure_of(atoms: Atoms) -> Structure:
    return Structure(atoms.numbers, atoms.positions, atoms.cell.array, atoms.pbc, charge_of(atoms))


def by_ase(members: str, atoms: Atoms, backend: str) -> Result:
    atoms = atoms.copy()
    atoms.calc = calculator_of(members, backend)
    return atoms.get_potential_energy(), atoms.get_forces()


def by_ase_in_a_batch(members: str, atoms: Atoms, backend: str) -> Result:
    batch = [molecule("CH4"), atoms, ethanol(1)]
    result = calculator_of(members, backend).evaluate(batch)[1]
    return result["energy"], result["forces"]


def by_operator(members: str, atoms: Atoms, backend: str) -> Result:
    energy, forces = torch.ops.tensormd.evaluate(
        tensor_of(members),
        torch.tensor(atoms.numbers),
        torch.tensor(atoms.positions),
        torch.tensor(atoms.cell.array),
        torch.tensor(atoms.pbc),
        torch.tensor([float(charge_of(atoms))], dtype=torch.float64),
    )
    return float(energy), forces.numpy()


def by_openmm(engine: str) -> Adapter:
    def ask(members: str, atoms: Atoms, backend: str) -> Result:
        from support.openmm_systems import evaluate, make_system  # skips without OpenMM

        force = create_force(
            POTENTIALS[members],
            atoms.numbers,
            charge=charge_of(atoms),
            engine=engine,
            periodic=bool(atoms.pbc.all()),
            device="cpu",
            backend=backend,
        )
        return evaluate(make_system(atoms, force), atoms, "Reference")

    return ask


ADAPTERS: list[Any] = [
    pytest.param(adapter, backend, id=f"{adapter.__name__}-{backend}")
    for adapter, backend in (
        (by_ase, "fused"),
        (by_ase, "reference"),
        (by_ase_in_a_batch, "fused"),
        (by_operator, "fused"),
    )
]
ADAPTERS += [
    pytest.param(
        by_openmm(name),
        backend,
        id=f"{name}-{backend}",
        marks=pytest.mark.skipif(bool(problem()), reason=str(problem())),
    )
    for name, problem in FORCE_CLASSES.items()
    for backend in ("fused", "reference")
]


@pytest.mark.parametrize("kind", ["anion", "crystal"])
@pytest.mark.parametrize("members", POTENTIALS)
@pytest.mark.parametrize(("adapter", "backend"), ADAPTERS)
def test_every_adapter(adapter: Adapter, backend: str, members: str, kind: str) -> None:
    atoms, evaluator = STRUCTURES[kind], evaluator_of(members, backend)
    expected = evaluator.evaluate(evaluator.graph(structure_of(atoms)))
    assert np.abs(expected.forces).max() > 0.03
    energy, forces = adapter(members, atoms, backend)
    if adapter in (by_ase, by_operator) and backend == "fused":  # which repeats to the last bit
        assert energy == expected.energy[0]
        np.testing.assert_array_equal(forces, expected.forces)
    # A batch sums in another order, OpenMM rounds lengths to its unit, and TorchScript's first
    # calls differ from later ones: in float32 about 1e-6 eV/A, and 1e-6 eV an atom.
    assert energy == pytest.approx(expected.energy[0], abs=1e-5)
    np.testing.assert_allclose(forces, expected.forces, rtol=0, atol=1e-5)


def test_the_cases_differ() -> None:
    """Or the comparisons above would not notice a charge or a member that is lost."""
    energies = [
        by_ase(members, STRUCTURES[kind], "fused")[0]
        for members in POTENTIALS
        for kind in ("molecule", "anion")
    ]
    assert min(np.diff(sorted(energies))) > 1e-3


def test_a_committee_gives_mean_and_deviation() -> None:
    atoms = structure_of(ethanol())
    evaluators = [Evaluator(toy(seed), backend="reference") for seed in (0, 1)]
    alone = [each.evaluate(each.graph(atoms)) for each in evaluators]
    assert alone[0].energy_std is None
    together = evaluator_of("committee", "reference")
    found = together.evaluate(together.graph(atoms))
    for name in ("energy", "energies", "forces", "virial"):
        values = np.array([getattr(each, name) for each in alone])
        np.testing.assert_allclose(getattr(found, name), values.mean(0), rtol=1e-12, atol=1e-12)
    forces = np.array([each.forces for each in alone])
    assert found.forces_std is not None
    np.testing.assert_allclose(found.forces_std, forces.std(0, ddof=1), atol=1e-12)
    assert found.forces_std.max() > 0.1


def test_twins_keep_a_list_each() -> None:
    evaluator = Evaluator(toy(0), backend="reference")
    expected = evaluator.evaluate(evaluator.graph(structure_of(ethanol())))
    twin = evaluator.twin(skin=0.5)
    twin.evaluate(twin.graph(structure_of(crystal())))
    assert twin.potential is evaluator.potential
    assert (evaluator.neighbors.builds, twin.neighbors.builds) == (1, 1)
    again = evaluator.evaluate(evaluator.graph(structure_of(ethanol())))
    np.testing.assert_array_equal(again.forces, expected.forces)
    assert evaluator.neighbors.builds == 1


@pytest.mark.parametrize("copier", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_copies(copier: Callable[[Any], Any]) -> None:
    evaluator = Evaluator(toy(0), backend="fused")
    expected = evaluator.energy_and_forces(structure_of(ethanol()))
    found = copier(evaluator).energy_and_forces(structure_of(ethanol()))
    assert torch.equal(found[1], expected[1])


def test_a_loaded_potential_is_left_as_it_is() -> None:
    potential = toy(0).train()
    evaluator = Evaluator(potential, dtype="float64")
    assert evaluator.potential.dtype == torch.float64
    assert potential.dtype == torch.float32
    assert potential.training
    assert all(parameter.requires_grad for parameter in potential.readout.parameters())
    assert Evaluator(potential, dtype=None).potential.dtype == torch.float32
