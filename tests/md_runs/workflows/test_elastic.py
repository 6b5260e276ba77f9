"""Elastic constants against a known stiffness, ASE's equation of state and crystal symmetry."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule
from ase.calculators.calculator import Calculator, all_changes
from ase.calculators.emt import EMT
from ase.io import read
from ase.stress import full_3x3_to_voigt_6_strain
from support.md_runs import Springs, run, write_tiny_potential

from tensormd.md_runs.reports.runs import write_report
from tensormd.md_runs.runs.folder import RunFolder
from tensormd.md_runs.workflows.elastic import ElasticSettings, elastic, moduli, young_along
from tensormd.md_runs.workflows.eos import EosSettings, eos
from tensormd.md_runs.workflows.single import Job
from tensormd.models.units import ev_per_angstrom3_in_gpa

A0 = 3.58994
"""Lattice constant of EMT's copper at rest, A."""


class Hooke(Calculator):
    """A crystal whose stress is linear in the strain of its cell."""

    implemented_properties = ("energy", "forces", "stress")

    def __init__(self, cell: np.ndarray, stiffness: np.ndarray) -> None:
        super().__init__()
        self.cell, self.stiffness = cell.copy(), stiffness

    def calculate(self, atoms=None, properties=None, system_changes=all_changes) -> None:
        super().calculate(atoms, properties, system_changes)
        deformation = np.linalg.solve(self.cell, self.atoms.cell.array)
        strain = full_3x3_to_voigt_6_strain((deformation + deformation.T) / 2)
        self.results = {
            "energy": 0.0,
            "forces": np.zeros((len(self.atoms), 3)),
            "stress": self.stiffness @ strain / ev_per_angstrom3_in_gpa,
        }


def test_a_triclinic_crystal_of_known_stiffness(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    half = rng.normal(size=(6, 6))
    stiffness = 10 * half @ half.T + 40 * np.eye(6)
    atoms = Atoms("Ar", cell=[[4.0, 0, 0], [1.0, 4.2, 0], [-0.5, 0.7, 5.1]], pbc=True)
    atoms.calc = Hooke(atoms.cell.array, stiffness)
    job = Job(atoms, tmp_path / "run", {})
    results = elastic(job, ElasticSettings())
    np.testing.assert_allclose(results["stiffness_gpa"], stiffness, atol=1e-8)
    assert results["asymmetry_gpa"] < 1e-8
    assert results["stable"] is True
    volumes = [frame.get_volume() for frame in read(tmp_path / "run" / "trajectory.extxyz", ":")]
    assert len(volumes) == 24
    np.testing.assert_allclose(volumes, atoms.get_volume(), rtol=0.0051)
    page, numbers = write_report(tmp_path / "run")
    assert numbers["bulk_modulus_gpa"] == results["bulk_modulus_gpa"]["hill"]
    assert "Elastic constants" in page.read_text()
    RunFolder.discard(tmp_path / "run")


def test_copper_is_cubic_and_has_the_bulk_modulus_of_its_equation_of_state(tmp_path: Path) -> None:
    crystal = bulk("Cu", a=A0, cubic=True)
    crystal.calc = EMT()
    results = elastic(Job(crystal, tmp_path / "elastic", {}), ElasticSettings(strain=0.002))
    c = np.array(results["stiffness_gpa"])
    assert results["max_stress_gpa"] < 0.02
    assert c[0, 0] > c[0, 1] > 50
    assert c[3, 3] > 50
    np.testing.assert_allclose(np.diag(c)[:3], c[0, 0], rtol=1e-4)
    np.testing.assert_allclose(np.diag(c)[3:], c[3, 3], rtol=1e-4)
    np.testing.assert_allclose(c[:3, 3:], 0, atol=1e-2)
    other = eos(Job(crystal, tmp_path / "eos", {}), EosSettings(range=0.02))
    bulk_modulus = results["bulk_modulus_gpa"]
    assert bulk_modulus["hill"] == pytest.approx(other["bulk_modulus_gpa"], rel=0.01)
    assert bulk_modulus["voigt"] == pytest.approx(bulk_modulus["reuss"], rel=1e-4)  # of a cube


def test_moduli_of_an_isotropic_solid() -> None:
    bulk_modulus, shear = 100.0, 40.0
    stiffness = np.diag([2 * shear] * 3 + [shear] * 3)
    stiffness[:3, :3] += bulk_modulus - 2 * shear / 3
    found = moduli(stiffness)
    for kind in ("voigt", "reuss", "hill"):
        assert found["bulk_modulus_gpa"][kind] == pytest.approx(bulk_modulus)
        assert found["shear_modulus_gpa"][kind] == pytest.approx(shear)
    young = 9 * bulk_modulus * shear / (3 * bulk_modulus + shear)
    assert found["young_modulus_gpa"] == pytest.approx(young)
    assert found["poisson_ratio"] == pytest.approx(young / (2 * shear) - 1)
    assert found["anisotropy"] == pytest.approx(0, abs=1e-12)
    rng = np.random.default_rng(1)
    directions = rng.normal(size=(5, 3))
    directions /= np.linalg.norm(directions, axis=1)[:, None]
    np.testing.assert_allclose(young_along(stiffness, directions), young)


def test_an_unstable_crystal_has_no_moduli() -> None:
    found = moduli(np.diag([100.0, 100, 100, 30, 30, -5]))
    assert found["stable"] is False
    assert found["lowest_eigenvalue_gpa"] == pytest.approx(-5)
    assert found["bulk_modulus_gpa"] == {
        "voigt": pytest.approx(100 / 3),
        "reuss": None,
        "hill": None,
    }
    assert found["young_modulus_gpa"] is None


def test_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Random weights: a crystal under stress, which is said."""
    monkeypatch.chdir(tmp_path)
    write_tiny_potential(tmp_path / "tiny.safetensors")
    bulk("C", "diamond", a=3.57).write("c.extxyz")
    molecule("CO").write("co.xyz")
    how = ("-m", "tiny.safetensors", "--backend", "reference")
    assert run("elastic", "c.extxyz", *how, "--steps", "0", "--json") == 0
    captured = capsys.readouterr()
    results = json.loads(captured.out)
    assert np.shape(results["stiffness_gpa"]) == (6, 6)
    assert f"a stress of {results['max_stress_gpa']:.2f} GPa: relax it first" in captured.err
    assert ("the crystal is unstable" in captured.err) is not results["stable"]
    assert run("report", "c_elastic") == 0
    capsys.readouterr()
    for arguments, message in (
        (["c.extxyz", "--strain", "0"], "--strain is 0.0: expected a fraction such as 0.005"),
        (["co.xyz"], "elastic constants need a structure that is periodic in all three"),
        (["c.extxyz"], "c_elastic exists already"),
    ):
        assert run("elastic", *arguments, *how) == 2
        assert message in capsys.readouterr().err
    atoms = bulk("Cu")
    atoms.calc = Springs(atoms.positions)
    with pytest.raises(ValueError, match="elastic constants need stress, which springs"):
        elastic(Job(atoms, tmp_path / "run", {}), ElasticSettings())
