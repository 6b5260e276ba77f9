"""The physics of the ensembles, and runs that go wrong."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms, units
from ase.build import bulk, molecule
from ase.calculators.emt import EMT
from ase.constraints import FixAtoms
from support.md_runs import IdealGas, Springs, ethanol

from tensormd.md_runs.md.barostat import StochasticCellRescaling, estimate_compressibility
from tensormd.md_runs.md.ensembles import Integrator
from tensormd.md_runs.md.loop import last_state, resume_md, start_md
from tensormd.md_runs.md.velocities import (
    degrees_of_freedom,
    remove_rigid_motion,
    rigid_energy,
    temperature_of,
    thermalize,
)
from tensormd.md_runs.runs.errors import RunStopped
from tensormd.md_runs.runs.folder import RunFolder
from tensormd.md_runs.runs.settings import MDSettings
from tensormd.models.units import bar_in_ev_per_angstrom3


@pytest.mark.parametrize(
    ("atoms", "rigid", "freedom"),
    [
        (molecule("CH3CH2OH"), False, 21),
        (molecule("CH3CH2OH"), True, 27),
        (molecule("CO2"), False, 4),
        (molecule("H2"), False, 1),
        (Atoms("Ar"), False, 0),
        (bulk("Cu", cubic=True), False, 9),
    ],
)
def test_degrees_of_freedom(atoms: Atoms, rigid: bool, freedom: int) -> None:
    assert degrees_of_freedom(atoms, rigid=rigid) == freedom
    thermalize(atoms, 300.0, np.random.default_rng(1), rigid=rigid)
    assert temperature_of(atoms, freedom) == pytest.approx(300.0 if freedom else 0.0)
    if not rigid:
        assert np.abs(atoms.get_momenta().sum(0)).max() < 1e-12
        if not atoms.pbc.any():
            assert np.abs(atoms.get_angular_momentum()).max() < 1e-12


def test_fixed_atoms_stay_and_are_not_counted() -> None:
    atoms = ethanol()
    atoms.set_constraint(FixAtoms([0, 1]))
    thermalize(atoms, 300.0, np.random.default_rng(1), rigid=False)
    assert degrees_of_freedom(atoms, rigid=False) == 21
    assert np.abs(atoms.get_momenta()[:2]).max() == 0


def test_rigid_motion_far_from_the_origin() -> None:
    atoms = ethanol()
    atoms.positions += 1e4
    thermalize(atoms, 300.0, np.random.default_rng(1), rigid=True)
    remove_rigid_motion(atoms)
    about_center = atoms.copy()
    about_center.positions -= atoms.get_center_of_mass()
    assert np.abs(about_center.get_angular_momentum()).max() < 1e-6


@pytest.mark.parametrize("thermostat", ["langevin", "bussi"])
def test_thermostats_sample_the_temperature(thermostat: str) -> None:
    """Springs in equilibrium: <E_pot> = (3N/2) kT of the modes that are thermal."""
    rng = np.random.default_rng(2)
    atoms = Atoms("Ar8", positions=rng.normal(size=(8, 3)) * 4)
    atoms.calc = Springs(atoms.positions, k=2.0)
    settings = MDSettings(
        ensemble="nvt", thermostat=thermostat, temperature=300.0, timestep=5.0, thermostat_time=50
    )
    thermalize(atoms, 300.0, rng, rigid=True)
    integrator = Integrator(atoms, settings, rng)
    if thermostat == "bussi":  # the springs do not conserve momentum: all 24 are thermal
        integrator._dynamics.ndof = 24
        integrator._dynamics.target_kinetic_energy = 12 * units.kB * 300
    potential, kinetic = [], []
    for _ in range(6000):
        integrator.step()
        potential.append(atoms.get_potential_energy())
        kinetic.append(atoms.get_kinetic_energy())
    expected = 12 * units.kB * 300
    assert np.mean(kinetic[500:]) == pytest.approx(expected, rel=0.06)
    assert np.mean(potential[500:]) == pytest.approx(expected, rel=0.08)
    assert np.std(kinetic[500:]) == pytest.approx(expected / np.sqrt(12), rel=0.15)


def test_bussi_counts_only_inner_motion() -> None:
    """ASE's own count would leave a molecule at rest 27/21 too hot inside."""
    atoms = ethanol()
    atoms.calc = IdealGas()
    rng = np.random.default_rng(0)
    settings = MDSettings(ensemble="nvt", thermostat="bussi", timestep=1, thermostat_time=5)
    thermalize(atoms, 300.0, rng, rigid=False)
    integrator = Integrator(atoms, settings, rng)
    found = []
    for _ in range(4000):
        integrator.step()
        found.append(temperature_of(atoms, 21))
    assert np.mean(found) == pytest.approx(300, rel=0.03)


def test_barostat_samples_the_ideal_gas() -> None:
    """N free atoms: <V> = (N + 1) kT / P and var V = (N + 1) (kT / P)^2."""
    n, temperature, pressure = 16, 300.0, 0.02 * bar_in_ev_per_angstrom3 * 1e4
    thermal = units.kB * temperature
    rng = np.random.default_rng(4)
    atoms = Atoms(f"Ar{n}", cell=np.eye(3) * (n * thermal / pressure) ** (1 / 3), pbc=True)
    atoms.calc = IdealGas()
    barostat = StochasticCellRescaling(
        temperature, pressure, compressibility=1 / pressure, time=20.0, timestep=1.0
    )
    spread = np.sqrt(atoms.get_masses() * thermal)[:, None]
    volumes = []
    for _ in range(20000):
        # A thermostat without memory: the volume alone is under test.
        atoms.set_momenta(rng.standard_normal((n, 3)) * spread)
        barostat.apply(atoms, rng)
        volumes.append(atoms.get_volume())
    unit = thermal / pressure
    assert np.mean(volumes[500:]) == pytest.approx((n + 1) * unit, rel=0.02)
    assert np.std(volumes[500:]) == pytest.approx(np.sqrt(n + 1) * unit, rel=0.08)


def test_npt_finds_the_volume_and_keeps_the_shape(tmp_path: Path) -> None:
    atoms = bulk("Cu") * (3, 3, 3)
    relaxed = atoms.get_volume()
    cell = atoms.cell.array.copy()
    atoms.set_cell(cell * 1.02, scale_atoms=True)
    atoms.calc = EMT()
    settings = MDSettings(
        ensemble="npt", thermostat="bussi", timestep=4, steps=400, seed=1, barostat_time=100
    )
    start_md(atoms, settings, tmp_path / "run")
    log = RunFolder.open(tmp_path / "run").read_log()
    assert log["volume_a3"][0] == pytest.approx(relaxed * 1.02**3)
    assert log["volume_a3"][-10:].mean() == pytest.approx(relaxed, rel=0.03)
    ratio = atoms.cell.array[abs(cell) > 0.1] / cell[abs(cell) > 0.1]
    np.testing.assert_allclose(ratio, ratio[0])
    assert np.ptp(log["conserved_ev"]) / len(atoms) < 1e-3
    kept = RunFolder.open(tmp_path / "run").config["settings"]["compressibility"]
    assert 3e-7 < kept < 3e-6  # copper: 7e-7 per bar


def test_compressibility_of_what_has_none() -> None:
    atoms = Atoms("Ar", cell=np.eye(3) * 5, pbc=True)
    atoms.calc = IdealGas()
    assert estimate_compressibility(atoms) == 4.5e-5


def test_nve_conserves_energy_and_momentum(tmp_path: Path) -> None:
    atoms = ethanol()
    atoms.calc = EMT()
    start_md(atoms, MDSettings(steps=100, interval=7, seed=2), tmp_path / "run")
    log = RunFolder.open(tmp_path / "run").read_log()
    assert log["step"].tolist() == list(range(0, 101, 7))
    np.testing.assert_allclose(log["time_ps"], log["step"] * 0.5e-3)
    assert log["temperature_k"][0] == pytest.approx(300)
    np.testing.assert_allclose(log["total_ev"], log["potential_ev"] + log["kinetic_ev"])
    assert np.abs(atoms.get_momenta().sum(0)).max() < 1e-10


def test_seed_decides_and_differs(tmp_path: Path) -> None:
    ends = []
    for number, seed in enumerate((1, 1, 2)):
        atoms = ethanol()
        atoms.calc = EMT()
        start_md(atoms, MDSettings(ensemble="nvt", steps=5, seed=seed), tmp_path / f"run{number}")
        ends.append(atoms.positions)
    np.testing.assert_array_equal(ends[0], ends[1])
    assert np.abs(ends[0] - ends[2]).max() > 1e-3


def test_keep_velocities(tmp_path: Path) -> None:
    atoms = ethanol()
    atoms.calc = EMT()
    with pytest.raises(ValueError, match="has no velocities"):
        start_md(atoms, MDSettings(keep_velocities=True), tmp_path / "run")
    atoms.set_velocities(np.full((9, 3), 0.01))
    start_md(atoms, MDSettings(keep_velocities=True, steps=1), tmp_path / "run")
    energy = RunFolder.open(tmp_path / "run").read_log()["kinetic_ev"][0]
    assert energy == pytest.approx(0.5 * atoms.get_masses().sum() * 3e-4)


def spinning(seed: int = 3) -> Atoms:
    """Ethanol, 300 K inside, that flies and turns."""
    atoms = ethanol()
    thermalize(atoms, 300.0, np.random.default_rng(seed), rigid=False)
    turning = np.cross([0.02, -0.01, 0.03], atoms.positions - atoms.get_center_of_mass())
    atoms.set_velocities(atoms.get_velocities() + turning + [0.01, 0.02, -0.01])
    return atoms


def test_rigid_energy_is_what_removal_takes() -> None:
    atoms = spinning()
    whole, before = rigid_energy(atoms), atoms.get_kinetic_energy()
    remove_rigid_motion(atoms)
    assert whole == pytest.approx(before - atoms.get_kinetic_energy(), rel=1e-9)
    assert whole > 0.1 * before
    assert rigid_energy(atoms) == pytest.approx(0, abs=1e-12)


def test_kept_velocities_in_nve(tmp_path: Path) -> None:
    """They stay as they are, and the temperature is that of the motion that is counted."""
    atoms = spinning()
    atoms.calc = EMT()
    energy, momentum = atoms.get_kinetic_energy(), atoms.get_momenta().sum(0)
    start_md(atoms, MDSettings(keep_velocities=True, steps=20), tmp_path / "run")
    log = RunFolder.open(tmp_path / "run").read_log()
    assert log["temperature_k"][0] == pytest.approx(300.0, rel=1e-9)
    assert log["kinetic_ev"][0] == pytest.approx(energy)
    np.testing.assert_allclose(atoms.get_momenta().sum(0), momentum, atol=1e-9)


@pytest.mark.parametrize("thermostat", ["langevin", "bussi"])
def test_kept_velocities_reach_the_temperature(thermostat: str, tmp_path: Path) -> None:
    """From velocities that are thermal in all 27 degrees of freedom, as Langevin leaves them."""
    atoms = ethanol()
    thermalize(atoms, 300.0, np.random.default_rng(3), rigid=True)
    atoms.calc = IdealGas()
    settings = MDSettings(
        ensemble="nvt", thermostat=thermostat, thermostat_time=5, timestep=1, steps=4000,
        interval=5, seed=2, keep_velocities=True,
    )  # fmt: skip
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        start_md(atoms, settings, tmp_path / "run")
    folder = RunFolder.open(tmp_path / "run")
    log, freedom = folder.read_log(), folder.read_restart().state["freedom"]
    assert freedom == (21 if thermostat == "bussi" else 27)
    kinetic = log["kinetic_ev"][100:].mean()
    assert kinetic == pytest.approx(0.5 * freedom * units.kB * 300, rel=0.04)
    assert log["temperature_k"][100:].mean() == pytest.approx(300, rel=0.04)
    words = [str(each.message) for each in said if "motion as a whole" in str(each.message)]
    assert len(words) == (thermostat == "bussi")
    if thermostat == "bussi":
        assert rigid_energy(atoms) < 1e-6 * atoms.get_kinetic_energy()


def test_bussi_with_nothing_to_scale(tmp_path: Path) -> None:
    bussi = {"ensemble": "nvt", "thermostat": "bussi", "steps": 5}
    held = ethanol()
    held.set_constraint(FixAtoms(range(9)))
    flying = ethanol()
    flying.set_velocities(np.full((9, 3), 0.01))
    for atoms, options, message in (
        (Atoms("Ar"), {}, r"no degree of freedom for it: a single atom; use --thermostat lang"),
        (held, {}, r"no degree of freedom for it: its constraints hold every atom"),
        (flying, {"keep_velocities": True}, r"apart from motion as a whole all atoms are at rest"),
    ):
        atoms.calc = IdealGas()
        with pytest.raises(ValueError, match=message):
            start_md(atoms, MDSettings(**bussi, **options), tmp_path / "run")  # type: ignore[arg-type]
        assert not (tmp_path / "run").exists()


def test_constraints_and_masses_survive_a_resume(tmp_path: Path) -> None:
    def prepared() -> Atoms:
        atoms = ethanol()
        atoms.set_masses([2.01410177812 if z == 1 else None for z in atoms.numbers])
        atoms.set_constraint(FixAtoms([0]))
        atoms.calc = Springs(atoms.positions + 0.1)
        return atoms

    settings = MDSettings(steps=20, seed=1)
    whole = prepared()
    start_md(whole, settings, tmp_path / "whole")
    first = prepared()
    start_md(first, MDSettings(steps=9, seed=1), tmp_path / "parts")
    folder = RunFolder.open(tmp_path / "parts")
    resume_md(folder, prepared().calc, steps=20)
    after = last_state(folder)
    np.testing.assert_array_equal(after.positions, whole.positions)
    np.testing.assert_array_equal(after.get_momenta(), whole.get_momenta())
    np.testing.assert_array_equal(after.positions[0], ethanol().positions[0])
    assert after.get_masses()[3] == 2.01410177812


class Breaking(Springs):
    """Forces that become no number, or huge, after some evaluations."""

    def __init__(self, places: np.ndarray, after: int, value: float) -> None:
        super().__init__(places)
        self.after, self.value, self.calls = after, value, 0

    def calculate(self, *arguments, **keywords) -> None:
        super().calculate(*arguments, **keywords)
        self.calls += 1
        if self.calls > self.after:
            self.results["forces"] = self.results["forces"] + self.value


@pytest.mark.parametrize(
    ("value", "message"),
    [(np.nan, "is no number"), (1e5, r"atom \d moves .* A in one step")],
)
def test_a_run_that_breaks_down_keeps_its_last_good_state(
    value: float, message: str, tmp_path: Path
) -> None:
    atoms = ethanol()
    atoms.calc = Breaking(atoms.positions, 20, value)
    with pytest.raises(RunStopped, match=message) as stopped:
        start_md(atoms, MDSettings(steps=100, seed=1), tmp_path / "run", save_every=0)
    kept = RunFolder.open(tmp_path / "run").read_restart()
    assert f"at step {kept.state['step'] + 1}:" in str(stopped.value)
    assert f"keeps the state of step {kept.state['step']}" in str(stopped.value)
    assert kept.state["step"] > 10
    assert all(np.isfinite(array).all() for array in kept.arrays.values())


def test_calculator_that_refuses_is_a_breakdown(tmp_path: Path) -> None:
    class Refusing(Breaking):
        def calculate(self, *arguments, **keywords) -> None:
            if self.calls >= self.after:
                raise ValueError("atoms 1 and 2 are in one place")
            super().calculate(*arguments, **keywords)

    atoms = ethanol()
    atoms.calc = Refusing(atoms.positions, 10, 0.0)
    with pytest.raises(RunStopped, match="atoms 1 and 2 are in one place"):
        start_md(atoms, MDSettings(steps=100), tmp_path / "run")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"ensemble": "nvq"}, "--ensemble is 'nvq': expected nve or nvt or npt"),
        ({"engine": "lammps"}, "--engine is 'lammps': expected ase or openmm"),
        ({"minimize": True}, "--minimize is an option of --engine openmm only"),
        ({"temperature": -1}, "--temperature is -1 K: expected a finite number above zero"),
        ({"timestep": float("nan")}, "--timestep is nan fs"),
        ({"interval": 0}, "--interval is 0: expected 1 or more"),
        ({"steps": -1}, "--steps is -1"),
        ({"ensemble": "nvt", "thermostat_time": 0.1}, "shorter than the time step"),
    ],
)
def test_settings_that_make_no_sense(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MDSettings(**settings)  # type: ignore[arg-type]


def test_npt_of_a_molecule(tmp_path: Path) -> None:
    atoms = ethanol()
    atoms.calc = IdealGas()
    with pytest.raises(ValueError, match="npt needs a structure that is periodic in all three"):
        start_md(atoms, MDSettings(ensemble="npt"), tmp_path / "run")
    assert not (tmp_path / "run").exists()
