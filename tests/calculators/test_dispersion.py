"""D3 dispersion beside a potential: the library's own numbers, added to the network's."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, fcc111, molecule
from ase.calculators.calculator import PropertyNotImplementedError
from ase.calculators.fd import calculate_numerical_forces, calculate_numerical_stress
from support.helpers import REFERENCES, make_potential
from support.md_runs import run, write_tiny_potential

from tensormd.calculators import PotentialCalculator, TensorNetCalculator
from tensormd.models import Committee, load_potential
from tensormd.models.checkpoint.registry import REGISTRY
from tensormd.models.units import bohr_in_angstrom, hartree_in_ev

dftd3 = pytest.importorskip("dftd3.interface", reason="dftd3 is not installed")

POTENTIAL = make_potential(references=REFERENCES)


def calculator(dispersion: str | None = "pbe", **options: object) -> TensorNetCalculator:
    how = {"dtype": "float64", "backend": "reference", **options}
    return TensorNetCalculator(POTENTIAL, dispersion=dispersion, **how)  # type: ignore[arg-type]


def ethanol() -> Atoms:
    atoms = molecule("CH3CH2OH")
    atoms.rattle(0.05, seed=1)
    return atoms


def diamond() -> Atoms:
    """Two atoms in a triclinic cell, the second off its place."""
    atoms = bulk("C", "diamond", a=3.57)
    atoms.rattle(0.1, seed=2)
    atoms.positions[1] += [0.2, -0.1, 0.3]
    return atoms


def library(atoms: Atoms, functional: str = "pbe") -> tuple[float, np.ndarray, np.ndarray]:
    """Energy, forces and derivative by the strain, of simple-dftd3 alone."""
    cell = atoms.cell.array / bohr_in_angstrom if atoms.pbc.any() else None
    model = dftd3.DispersionModel(
        atoms.numbers, atoms.positions / bohr_in_angstrom, cell, atoms.pbc
    )
    found = model.get_dispersion(dftd3.RationalDampingParam(method=functional, atm=False), True)
    forces = -found["gradient"] * hartree_in_ev / bohr_in_angstrom
    return found["energy"] * hartree_in_ev, forces, found["virial"] * hartree_in_ev


@pytest.mark.parametrize("functional", ["pbe", "wB97X"])
@pytest.mark.parametrize("make", [ethanol, diamond])
def test_the_library_is_added(make, functional: str) -> None:
    atoms = make()
    plain, added = calculator(None), calculator(functional)
    energy, forces, strain = library(atoms, functional)
    assert abs(energy) > 0.03
    assert np.abs(forces).max() > 1e-4
    energies = [calc.get_potential_energy(atoms) for calc in (plain, added)]
    assert energies[1] - energies[0] == pytest.approx(energy, abs=1e-10)
    assert added.get_potential_energy(atoms, force_consistent=True) == energies[1]
    difference = added.get_forces(atoms) - plain.get_forces(atoms)
    np.testing.assert_allclose(difference, forces, atol=1e-10)
    if atoms.pbc.any():
        found = added.get_property("stress", atoms) - plain.get_property("stress", atoms)
        expected = strain.flat[[0, 4, 8, 5, 2, 1]] / atoms.get_volume()
        assert np.abs(expected).max() > 1e-3
        np.testing.assert_allclose(found, expected, atol=1e-10)
    for batch, one in zip(added.evaluate([atoms, ethanol()]), (atoms, ethanol()), strict=True):
        assert batch["energy"] == pytest.approx(added.get_potential_energy(one), abs=1e-9)
        np.testing.assert_allclose(batch["forces"], added.get_forces(one), atol=1e-9)


@pytest.mark.parametrize("make", [ethanol, diamond])
def test_finite_differences(make) -> None:
    atoms = make()
    atoms.calc = calculator()
    numerical = calculate_numerical_forces(atoms, eps=1e-4)
    np.testing.assert_allclose(atoms.get_forces(), numerical, atol=2e-6)
    if atoms.pbc.any():
        stress = calculate_numerical_stress(atoms, eps=1e-5)
        np.testing.assert_allclose(atoms.get_stress(), stress, atol=2e-6)


def test_hessian() -> None:
    atoms = ethanol()
    added = calculator()
    found = added.get_hessian(atoms)
    numerical = np.empty_like(found)
    for k in range(found.shape[0]):
        forces = []
        for sign in (1e-4, -1e-4):
            moved = atoms.copy()
            moved.positions.flat[k] += sign
            forces.append(added.get_forces(moved).ravel())
        numerical[k] = -(forces[0] - forces[1]) / 2e-4
    np.testing.assert_allclose(found, numerical, atol=2e-4)
    assert np.abs(found - calculator(None).get_hessian(atoms)).max() > 1e-2


def test_periodic_images() -> None:
    """Lattice shifts and supercells."""
    crystal = diamond()
    added = calculator()
    energy, forces = added.get_potential_energy(crystal), added.get_forces(crystal)
    shifted = crystal.copy()
    shifted.positions[1] += [3, -2, 5] @ crystal.cell.array
    assert added.get_potential_energy(shifted) == pytest.approx(energy, abs=1e-9)
    np.testing.assert_allclose(added.get_forces(shifted), forces, atol=1e-9)
    twice = crystal * (2, 1, 1)
    assert added.get_potential_energy(twice) == pytest.approx(2 * energy, abs=1e-8)


@pytest.mark.parametrize("third", [0.0, [0.0, 0.0, 1.5], [1.0, 0.5, 20.0]])
def test_slab(third: float | list[float]) -> None:
    """Two periodic directions, whatever the third vector is."""
    added = calculator()
    slab = fcc111("C", (1, 1, 2), a=3.6)
    slab.rattle(0.05, seed=3)
    slab.positions -= 7.0
    slab.pbc = (True, True, False)
    slab.cell[2] = third
    wide = slab.copy()
    wide.cell[2] = [0, 0, 90]
    wide.pbc = True
    assert added.get_potential_energy(slab) == pytest.approx(
        added.get_potential_energy(wide), abs=1e-8
    )
    np.testing.assert_allclose(added.get_forces(slab), added.get_forces(wide), atol=1e-8)


def test_no_shares_of_atoms() -> None:
    added = calculator()
    for name in ("energies", "stresses"):
        assert name not in added.implemented_properties
        with pytest.raises(PropertyNotImplementedError):
            added.get_property(name, diamond())
    added.calculate(diamond(), ["energies", "stresses"])
    assert not {"energies", "stresses"} & added.results.keys()


def test_copies_and_options() -> None:
    added = calculator("PBE")
    assert added.todict()["dispersion"] == "pbe"
    copy = pickle.loads(pickle.dumps(added))
    energy = added.get_potential_energy(ethanol())
    assert copy.get_potential_energy(ethanol()) == pytest.approx(energy, abs=1e-10)
    assert added.team()[0].get_potential_energy(ethanol()) == pytest.approx(energy, abs=1e-10)


def test_unknown_functional() -> None:
    with pytest.raises(ValueError, match=r"dispersion is 'wb97x-d3bj': .* such as .*wb97x"):
        calculator("wb97x-d3bj")
    with pytest.raises(ValueError, match=r"dispersion is 'zzz': .* such as pbe, pbe0, b3lyp"):
        calculator("zzz")


def test_dispersion_never_counts_twice() -> None:
    potential = make_potential(references=REFERENCES)
    potential.metadata |= {"dispersion": True, "name": "vdw"}
    with pytest.raises(ValueError, match="the energies that vdw was trained on hold dispersion"):
        PotentialCalculator(potential, dispersion="pbe")
    with pytest.raises(ValueError, match="the energies that vdw"):
        PotentialCalculator(Committee([POTENTIAL, potential]), dispersion="pbe")
    assert REGISTRY["aceff-2.0"].dispersion is True
    assert load_potential("organic").metadata["dispersion"] is False


def test_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    molecule("H2O").write("water.xyz")
    write_tiny_potential(tmp_path / "tiny.safetensors")
    how = ("--model", "tiny.safetensors", "--backend", "reference")
    assert run("relax", "water.xyz", *how, "--dispersion", "wb97x", "--steps", "0") == 1
    config = (tmp_path / "water_relaxed" / "config.json").read_text()
    assert '"dispersion": "D3(BJ) of wb97x, dftd3 ' in config
    capsys.readouterr()
    assert run("relax", "water.xyz", *how, "-o", "x", "--dispersion", "wb98x") == 2
    assert "expected a functional with parameters of D3(BJ), such as wb97x" in (
        capsys.readouterr().err
    )
    assert not (tmp_path / "x").exists()


def test_openmm_refuses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("openmm")
    monkeypatch.chdir(tmp_path)
    molecule("H2O").write("water.xyz")
    how = ("--model", write_tiny_potential(tmp_path / "tiny.safetensors"), "--engine", "openmm")
    assert run("md", "water.xyz", *how, "--dispersion", "wb97x") == 2
    assert "--dispersion wb97x is not for --engine openmm" in capsys.readouterr().err
    assert not (tmp_path / "water_md").exists()
