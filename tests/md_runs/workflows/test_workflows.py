"""Vibrations, equations of state and reaction paths against known answers."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms, units
from ase.build import add_adsorbate, fcc100, molecule
from ase.calculators.calculator import Calculator, all_changes
from ase.calculators.emt import EMT
from ase.constraints import FixAtoms
from ase.eos import birchmurnaghan
from ase.mep import NEB
from ase.optimize import BFGS
from ase.thermochemistry import IdealGasThermo
from ase.vibrations import Vibrations
from support.md_runs import run

from tensormd.calculators import PotentialCalculator
from tensormd.md_runs.reports.runs import write_report
from tensormd.md_runs.runs.errors import Interrupted, RunStopped
from tensormd.md_runs.runs.folder import RunFolder
from tensormd.md_runs.workflows.eos import EosSettings, eos
from tensormd.md_runs.workflows.neb import NebSettings, neb
from tensormd.md_runs.workflows.single import Job
from tensormd.md_runs.workflows.vibrations import (
    VibrationsSettings,
    vibrations,
    without_rigid_motion,
)


def job(name: str, path: Path) -> Job:
    atoms = molecule(name)
    atoms.calc = PotentialCalculator("organic", dtype="float64", backend="reference")
    return Job(atoms, path, {"structure": {"formula": name}})


def test_frequencies_are_those_of_finite_differences(tmp_path: Path) -> None:
    water = job("H2O", tmp_path / "run")
    results = vibrations(water, VibrationsSettings(fmax=1e-5))
    found = results["frequencies_inv_cm"]
    other = Vibrations(water.atoms, name=str(tmp_path / "displaced"), delta=1e-3)
    other.run()
    expected = np.sort(other.get_frequencies().real)[-3:]
    assert expected.min() > 1000
    np.testing.assert_allclose(found, expected, rtol=1e-3)
    assert results["imaginary"] == 0
    assert results["zero_point_ev"] == pytest.approx(0.5 * sum(found) * units.invcm)
    hessian = RunFolder.open(tmp_path / "run").read_hessian()
    assert hessian.shape == (9, 9)
    assert np.abs(hessian @ np.tile([1.0, 0, 0], 3)).max() < 1e-10
    assert np.abs(hessian).max() > 10


def test_water_against_ase_and_measurement(tmp_path: Path) -> None:
    """Entropy at 298.15 K and 1 bar: ASE's, of its own frequencies, and 188.8 J/K/mol (NIST)."""
    water = job("H2O", tmp_path / "run")
    results = vibrations(water, VibrationsSettings(fmax=1e-5, symmetry=2, pressure=1.0))
    other = Vibrations(water.atoms, name=str(tmp_path / "displaced"), delta=1e-3)
    other.run()
    gas = IdealGasThermo(
        other.get_energies()[-3:].real,
        "nonlinear",
        atoms=water.atoms,
        symmetrynumber=2,
        spin=0,
    )
    expected = gas.get_entropy(298.15, 1e5, verbose=False)
    assert results["entropy_ev_per_k"] == pytest.approx(expected, abs=1e-9)
    joule = results["entropy_ev_per_k"] * units._e * units._Nav
    assert joule == pytest.approx(188.8, abs=0.5)


def test_entropy_of_an_ideal_gas(tmp_path: Path) -> None:
    """Sackur-Tetrode, rigid rotor and oscillators, in SI units."""
    water = job("H2O", tmp_path / "run")
    settings = VibrationsSettings(symmetry=2, temperature=400.0, pressure=2.0)
    results = vibrations(water, settings)
    k, h, t = units._k, units._hplanck, settings.temperature
    mass = water.atoms.get_masses().sum() * units._amu
    volume = k * t / (settings.pressure * 1e5)
    entropy = 2.5 + np.log((2 * np.pi * mass * k * t / h**2) ** 1.5 * volume)
    inertia = water.atoms.get_moments_of_inertia() * units._amu * 1e-20
    rotor = np.sqrt(np.pi * np.prod(8 * np.pi**2 * inertia * k * t / h**2)) / settings.symmetry
    entropy += 1.5 + np.log(rotor)
    x = np.array(results["frequencies_inv_cm"]) * units.invcm / (units.kB * t)
    entropy += (x / np.expm1(x) - np.log(-np.expm1(-x))).sum()
    assert results["entropy_ev_per_k"] == pytest.approx(entropy * units.kB, rel=1e-5)
    assert results["gibbs_ev"] == pytest.approx(
        results["enthalpy_ev"] - t * results["entropy_ev_per_k"], abs=1e-9
    )
    heat = results["enthalpy_ev"] - results["energy_ev"] - results["zero_point_ev"]
    assert heat == pytest.approx(units.kB * t * (4 + (x / np.expm1(x)).sum()), rel=1e-4)


def test_a_linear_molecule_has_one_vibration_more(tmp_path: Path) -> None:
    results = vibrations(job("C2H2", tmp_path / "run"), VibrationsSettings())
    assert results["geometry"] == "linear"
    assert len(results["frequencies_inv_cm"]) == 3 * 4 - 5


def test_a_saddle_point_has_no_thermochemistry(tmp_path: Path) -> None:
    planar = job("NH3", tmp_path / "run")
    planar.atoms.positions[:, 2] = 0.0
    results = vibrations(planar, VibrationsSettings())
    assert results["imaginary"] == 1
    assert results["frequencies_inv_cm"][0] < -100
    assert "gibbs_ev" not in results
    page, numbers = write_report(tmp_path / "run")
    assert numbers["imaginary"] == 1
    assert numbers["gibbs_ev"] is None
    assert "a saddle point" in page.read_text()


def test_rigid_motion_is_projected_out_of_any_matrix() -> None:
    atoms = molecule("CH3OH")
    rng = np.random.default_rng(0)
    matrix = rng.normal(size=(18, 18))
    kept = without_rigid_motion(atoms, matrix + matrix.T)
    away = atoms.positions - atoms.get_center_of_mass()
    for axis in np.eye(3):
        assert np.abs(kept @ np.tile(axis, 6)).max() < 1e-9
        assert np.abs(kept @ np.cross(axis, away).ravel()).max() < 1e-9
    assert np.linalg.matrix_rank(kept, tol=1e-6) == 12


class Curve(Calculator):
    """A crystal whose energy is a Birch-Murnaghan equation of its volume."""

    implemented_properties = ("energy", "forces")
    values = (-3.0, 0.6, 4.5, 16.0)
    """eV, eV/A^3, and A^3."""

    def calculate(self, atoms=None, properties=None, system_changes=all_changes) -> None:
        super().calculate(atoms, properties, system_changes)
        energy = birchmurnaghan(self.atoms.get_volume(), *self.values)
        self.results = {"energy": energy, "forces": np.zeros((len(self.atoms), 3))}


def crystal(volume: float, path: Path) -> Job:
    atoms = Atoms("Cu", cell=np.eye(3) * volume ** (1 / 3), pbc=True)
    atoms.calc = Curve()
    return Job(atoms, path, {})


def test_equation_of_state_of_a_known_curve(tmp_path: Path) -> None:
    results = eos(crystal(16.3, tmp_path / "run"), EosSettings())
    assert results["volume_a3"] == pytest.approx(16.0, rel=1e-6)
    assert results["energy_ev"] == pytest.approx(-3.0, abs=1e-8)
    assert results["bulk_modulus_gpa"] == pytest.approx(0.6 * 160.21766, rel=1e-4)
    assert results["bulk_modulus_derivative"] == pytest.approx(4.5, rel=1e-3)
    assert results["scale"] == pytest.approx((16.0 / 16.3) ** (1 / 3), rel=1e-6)
    page, numbers = write_report(tmp_path / "run")
    assert numbers["volume_a3"] == results["volume_a3"]
    assert "Equation of state" in page.read_text()


def test_a_volume_far_from_the_lowest_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunStopped, match=r"falls towards 18\.80 A\^3, the end of the range"):
        eos(crystal(20.0, tmp_path / "run"), EosSettings())
    assert not (tmp_path / "run").exists()


class DoubleWell(Calculator):
    """One atom in E = 0.3 (x^2 - 1)^2 + (y - x^2)^2 + z^2 - 0.05 x: a bent path over a barrier."""

    implemented_properties = ("energy", "forces")

    def calculate(self, atoms=None, properties=None, system_changes=all_changes) -> None:
        super().calculate(atoms, properties, system_changes)
        x, y, z = self.atoms.positions[0]
        slope_x = 1.2 * x * (x**2 - 1) - 4 * x * (y - x**2) - 0.05
        energy = 0.3 * (x**2 - 1) ** 2 + (y - x**2) ** 2 + z**2 - 0.05 * x
        forces = -np.array([[slope_x, 2 * (y - x**2), 2 * z]])
        self.results = {"energy": energy, "forces": forces}


def ends(path: Path) -> tuple[Job, Atoms]:
    first = Atoms("Ar", [[-1.1, 0.9, 0.1]], cell=np.eye(3) * 20, pbc=True)
    last = Atoms("Ar", [[1.1, 1.2, -0.1]], cell=np.eye(3) * 20, pbc=True)
    first.calc = DoubleWell()
    return Job(first, path, {}), last


def test_the_climbing_image_finds_the_barrier(tmp_path: Path) -> None:
    start, last = ends(tmp_path / "run")
    results = neb(start, last, NebSettings(images=5, fmax=0.005))
    x = np.sort(np.roots([1.2, 0, -1.2, -0.05]).real)  # y = x^2, z = 0 at all three
    left, top, right = 0.3 * (x**2 - 1) ** 2 - 0.05 * x
    assert results["converged"] is True
    assert results["barrier_ev"] == pytest.approx(top - left, abs=1e-4)
    assert results["reverse_barrier_ev"] == pytest.approx(top - right, abs=1e-4)
    assert results["reaction_energy_ev"] == pytest.approx(right - left, abs=1e-4)
    assert results["highest_image"] == 3
    assert len(results["energies_ev"]) == 7
    page, numbers = write_report(tmp_path / "run")
    assert numbers["barrier_ev"] == results["barrier_ev"]
    assert numbers["converged"] is True
    assert "image 3" in page.read_text()


def test_a_barrier_is_that_of_ase_by_hand(tmp_path: Path) -> None:
    """A copper atom hops over the bridge of a copper surface."""
    slab = fcc100("Cu", (2, 2, 2), vacuum=6.0)
    slab.set_constraint(FixAtoms(indices=range(8)))
    slab.pbc = True
    add_adsorbate(slab, "Cu", 1.7, "hollow")
    last = slab.copy()
    last.positions[-1, 0] += slab.cell[0, 0] / 2
    slab.calc = EMT()
    images = [slab.copy(), *(slab.copy() for _ in range(3)), last.copy()]
    for image in images:
        image.calc = EMT()
    for end in (images[0], images[-1]):
        BFGS(end, logfile=None).run(fmax=0.005)
    band = NEB(images, climb=True)
    band.interpolate(mic=True)
    BFGS(band, logfile=None).run(fmax=0.02, steps=200)
    energies = [image.get_potential_energy() for image in images]
    expected = max(energies) - energies[0]
    assert expected > 0.2
    job = Job(slab, tmp_path / "run", {})
    results = neb(job, last, NebSettings(images=3, fmax=0.02))
    assert results["converged"] is True
    assert results["barrier_ev"] == pytest.approx(expected, abs=1e-3)
    assert results["reaction_energy_ev"] == pytest.approx(0, abs=1e-3)


def test_an_interrupted_path_is_saved(tmp_path: Path) -> None:
    start, last = ends(tmp_path / "run")

    def stop(step: int, barrier: float, fmax: float) -> None:
        if step == 2:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(Interrupted, match="before it converged; the path so far is in") as error:
        neb(start, last, NebSettings(images=3), stop)
    assert error.value.exit_code == 130
    assert RunFolder.open(tmp_path / "run").read_results()["converged"] is False


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda atoms: atoms.set_chemical_symbols(["Ne"]), "the ends are Ar and Ne"),
        (lambda atoms: atoms.set_cell(np.eye(3) * 19), "different cells"),
        (lambda atoms: atoms.set_positions([[-1.1, 0.9, 0.1]]), "the same structure"),
    ],
)
def test_ends_without_a_path(change, message: str, tmp_path: Path) -> None:
    start, last = ends(tmp_path / "run")
    change(last)
    with pytest.raises(ValueError, match=message):
        neb(start, last, NebSettings())
    assert not (tmp_path / "run").exists()


def test_the_commands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    water = molecule("H2O")
    water.write("water.xyz")
    assert run("vibrations", "water.xyz", "--symmetry", "2", "--json") == 0
    results = json.loads(capsys.readouterr().out)
    assert len(results["frequencies_inv_cm"]) == 3
    assert run("report", "water_vibrations") == 0
    assert "gibbs_ev" in capsys.readouterr().out
    water.set_cell(np.eye(3) * 8)
    water.pbc = True
    water.write("box.extxyz")
    Atoms("He").write("atom.xyz")
    for arguments, message in (
        (["vibrations", "water.xyz"], "water_vibrations exists already"),
        (["vibrations", "box.extxyz"], "vibrations are those of a molecule, but pbc is"),
        (["vibrations", "atom.xyz"], "one atom does not vibrate"),
        (["vibrations", "water.xyz", "-o", "x", "--temperature", "0"], "--temperature is 0.0 K"),
        (["vibrations", "water.xyz", "-o", "x", "--symmetry", "0"], "--symmetry is 0"),
        (["eos", "water.xyz"], "needs a structure that is periodic in all three directions"),
        (["eos", "box.extxyz", "--points", "4"], "--points is 4: expected 5 or more"),
        (["neb", "water.xyz", "atom.xyz"], "the ends are H2O and He"),
        (["neb", "water.xyz", "water.xyz", "--images", "0"], "--images is 0: expected 1"),
    ):
        assert run(*arguments) == 2
        assert message in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir()) == [
        "water_vibrations"
    ]


def test_a_relaxation_that_does_not_converge(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    molecule("H2O").write("water.xyz")
    assert run("vibrations", "water.xyz", "--steps", "0") == 1
    assert "did not converge in 0 steps" in capsys.readouterr().err
    assert not (tmp_path / "water_vibrations").exists()
