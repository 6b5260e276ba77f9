"""Dipole and polarizability in the ASE calculator."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.calculators.calculator import PropertyNotImplementedError
from ase.vibrations import Infrared
from support.helpers import (
    System,
    crystal,
    ethanol,
    relative_error,
)
from support.property_models import add_heads, bare, model, properties
from torch import Tensor

from tensormd.calculators import PotentialCalculator, create_force
from tensormd.models import Committee


def atoms_of(system: System) -> Atoms:
    return Atoms(system.numbers, system.positions, cell=system.cell, pbc=system.pbc)


@pytest.mark.parametrize("backend", ["reference", "fused"])
def test_calculator(backend: str) -> None:
    potential = model("TensorNet")
    atoms = atoms_of(ethanol())
    calculator = PotentialCalculator(potential, dtype="float64", backend=backend)
    atoms.calc = calculator
    expected = properties(potential, ethanol())
    # Products of matrices round by the alignment of their memory.
    assert relative_error(atoms.get_dipole_moment(), expected["dipole"][0]) < 1e-14
    assert "energy" not in calculator.results  # nobody asked
    energy = atoms.get_potential_energy()
    assert set(calculator.results) >= {"energy", "forces", "dipole"}
    polarizability = calculator.get_property("polarizability", atoms)
    assert relative_error(polarizability, expected["polarizability"][0]) < 1e-14
    assert calculator.results["energy"] == energy
    (found,) = calculator.evaluate([atoms])
    assert np.abs(found["dipole"] - expected["dipole"][0]).max() < 1e-12
    atoms.positions[0] += 0.1
    assert np.abs(atoms.get_dipole_moment() - expected["dipole"][0]).max() > 1e-4
    assert "energy" not in calculator.results
    assert calculator.info()["properties"][-2:] == ["dipole", "polarizability"]
    atoms.info["charge"] = 1
    assert np.abs(atoms.get_dipole_moment() - expected["dipole"][0]).max() > 1e-4


def test_calculator_of_a_crystal() -> None:
    atoms, box = atoms_of(ethanol()), atoms_of(crystal())
    box.calc = calculator = PotentialCalculator(model("TensorNet"))
    with pytest.raises(PropertyNotImplementedError, match="periodic system is not defined"):
        box.get_dipole_moment()
    molecule, periodic = calculator.evaluate([atoms, box])
    assert set(molecule) - set(periodic) == {"dipole"}
    assert set(periodic) - set(molecule) == {"stress", "stresses"}


def test_calculator_without_heads() -> None:
    atoms = atoms_of(ethanol())
    atoms.calc = PotentialCalculator(bare("TensorNet"))
    with pytest.raises(PropertyNotImplementedError):
        atoms.get_dipole_moment()


def test_committee() -> None:
    members = [model("TensorNet"), model("TDN-L1")]
    atoms = atoms_of(ethanol())
    atoms.calc = PotentialCalculator(Committee(members), dtype="float64")
    assert "polarizability" not in atoms.calc.implemented_properties  # one of them has none
    mean = sum(properties(member, ethanol())["dipole"][0] for member in members) / 2
    assert relative_error(atoms.get_dipole_moment(), mean) < 1e-12


def test_a_model_of_the_dipole_alone_gives_no_energies() -> None:
    potential = add_heads(bare("TensorNet"))
    potential.metadata["trained_on"] = ["dipole"]
    atoms = atoms_of(ethanol())
    atoms.calc = PotentialCalculator(potential)
    for ask in (atoms.get_potential_energy, atoms.get_forces):
        with pytest.raises(ValueError, match="trained on dipole, not on energies"):
            ask()
    with pytest.raises(ValueError, match="not on energies"):
        atoms.calc.calculate(atoms, ["forces"])
    with pytest.raises(ValueError, match="not on energies"):
        atoms.calc.get_hessian(atoms)
    with pytest.raises(ValueError, match="not on energies"):
        create_force(potential, atoms.numbers)
    dipole = atoms.get_dipole_moment()
    assert np.abs(dipole).max() > 1e-3
    (found,) = atoms.calc.evaluate([atoms])
    assert set(found) == {"dipole", "polarizability"}
    potential.metadata["trained_on"] = ["energy", "dipole"]
    atoms.calc = PotentialCalculator(potential)
    assert np.isfinite(atoms.get_potential_energy())


def test_infrared(tmp_path: Path) -> None:
    """ASE's intensities are those of the derivatives by automatic differentiation."""
    potential = model("TensorNet")
    atoms = atoms_of(ethanol())
    atoms.calc = PotentialCalculator(potential, dtype="float64", backend="reference")
    infrared = Infrared(atoms, indices=[2, 4], name=str(tmp_path / "ir"), delta=1e-3, nfree=4)
    infrared.run()
    infrared.get_energies()
    graph = ethanol().graph()

    def dipole(positions: Tensor) -> Tensor:
        return potential.properties(graph._replace(positions=positions))["dipole"][0]

    born = torch.autograd.functional.jacobian(dipole, graph.positions)[:, [2, 4]].reshape(3, -1)
    # dmu/dq of the modes, in units of D/A/sqrt(u)
    modes = infrared.modes * infrared.im
    expected = ((born.numpy() @ modes.T / 0.2081943) ** 2).sum(0)
    assert relative_error(infrared.intensities, expected) < 1e-5
