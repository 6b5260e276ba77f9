"""`tensormd md --engine openmm`: energies, ensembles, resuming, ML/MM, mistakes."""

from __future__ import annotations

import json
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ase import Atoms, units
from ase.build import bulk, molecule
from ase.constraints import FixAtoms, FixBondLength
from ase.io import read
from test_md_runs_support import Springs, ethanol, run, waters, write_tiny_potential

from tensormd.calculators import PotentialCalculator
from tensormd.calculators.openmm_engines import python_problem
from tensormd.md_runs.dynamics import last_state, start_md
from tensormd.md_runs.errors import Interrupted, RunStopped
from tensormd.md_runs.launch import launch_md, relaunch_md
from tensormd.md_runs.run_folder import RunFolder
from tensormd.md_runs.settings import MDSettings, ModelSettings
from tensormd.models.units import bar_in_ev_per_angstrom3

if python_problem() is not None:
    pytest.skip(f"needs OpenMM: {python_problem()}", allow_module_level=True)

from openmm import app, unit

from tensormd.md_runs import openmm_system
from tensormd.md_runs.openmm_barostat import MonteCarloBarostat, molecular_pressure
from tensormd.md_runs.openmm_engine import OpenMMEngine

try:
    import openmmml  # noqa: F401
except ImportError:
    openmmml_missing = True
else:
    openmmml_missing = False
needs_openmmml = pytest.mark.skipif(openmmml_missing, reason="openmmml is not installed")

WATER_MODEL = ("--force-field", "amber14/tip3p.xml")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inputs")
    write_tiny_potential(folder / "tiny.safetensors")
    ethanol().write(folder / "ethanol.xyz")
    waters().write(folder / "waters.xyz")
    for suffix, box in (("pdb", None), ("cif", None), ("box.pdb", 2.4)):
        write_three_waters(folder / f"three.{suffix}", box)
    return folder


@pytest.fixture(scope="module")
def calculator(files: Path) -> PotentialCalculator:
    return PotentialCalculator(files / "tiny.safetensors")


def write_three_waters(path: Path, box: float | None = None) -> None:
    """As PDB or mmCIF; with ``box``, nm, periodic."""
    topology = app.Topology()
    chain = topology.addChain("A")
    positions = []
    for k in range(3):
        residue = topology.addResidue("HOH", chain)
        oxygen, first, second = (
            topology.addAtom(name, app.Element.getBySymbol(name[0]), residue)
            for name in ("O", "H1", "H2")
        )
        topology.addBond(oxygen, first)
        topology.addBond(oxygen, second)
        one = molecule("H2O")
        one.rattle(0.03, seed=k)
        one.translate([2.9 * k, 0.3 * k, 0])
        positions.append(one.positions)
    if box is not None:
        topology.setPeriodicBoxVectors(np.eye(3) * box)
    write = app.PDBxFile.writeFile if path.suffix == ".cif" else app.PDBFile.writeFile
    with open(path, "w") as stream:
        write(topology, np.concatenate(positions) * unit.angstrom, stream)


def start(
    files: Path, out: Path, steps: int, structure: str = "ethanol.xyz", **keywords: Any
) -> None:
    run_options = {k: keywords.pop(k) for k in ("observer", "save_every") if k in keywords}
    settings = {"engine": "openmm", "seed": 5, "interval": 4} | keywords
    model = ModelSettings(
        (str(files / "tiny.safetensors"),), dtype=settings.pop("dtype", "float32")
    )
    launch_md(
        str(files / structure), model, MDSettings(steps=steps, **settings), out, **run_options
    )


def frames_of(folder: Path) -> list[Atoms]:
    return read(folder / "trajectory.extxyz", ":")


# Energies and ensembles


@pytest.mark.parametrize("engine", ["torchforce", "python"])
@pytest.mark.parametrize("structure", ["ethanol.xyz", "waters.xyz"])
def test_log_and_frames_equal_the_calculator(
    engine: str, structure: str, files: Path, calculator: PotentialCalculator, tmp_path: Path
) -> None:
    if engine == "torchforce":
        problem = openmm_system.choose_engine("auto")
        if problem != "torchforce":
            pytest.skip("openmmtorch does not fit")
    start(files, tmp_path / "run", 12, structure, engine_force=engine)
    log = RunFolder.open(tmp_path / "run").read_log()
    frames = frames_of(tmp_path / "run")
    assert len(frames) == len(log["step"]) == 4
    assert np.ptp(log["potential_ev"]) > 1e-3
    for k, frame in enumerate(frames):
        expected = calculator.evaluate([frame])[0]  # the file holds 8 digits
        assert log["potential_ev"][k] == pytest.approx(expected["energy"], abs=1e-5)
        np.testing.assert_allclose(frame.get_forces(), expected["forces"], atol=2e-5)
        assert log["kinetic_ev"][k] == pytest.approx(frame.get_kinetic_energy(), abs=1e-6)
        if frame.pbc.any():
            ideal = 2 * log["kinetic_ev"][k] / (3 * frame.get_volume())
            virial = -expected["stress"][:3].mean()
            pressure = (virial + ideal) / bar_in_ev_per_angstrom3
            assert log["pressure_bar"][k] == pytest.approx(pressure, rel=0.01, abs=20)
    assert ("pressure_bar" in log) == (structure == "waters.xyz")


def test_nve_is_that_of_ase(files: Path, tmp_path: Path) -> None:
    """The same velocities from the same seed, and velocity Verlet on either side."""
    start(files, tmp_path / "openmm", 60, dtype="float64")
    start(files, tmp_path / "ase", 60, dtype="float64", engine="ase")
    one, two = (RunFolder.open(tmp_path / name).read_log() for name in ("openmm", "ase"))
    assert list(one) == list(two)
    assert np.ptp(one["potential_ev"]) > 0.05
    for name in one:
        np.testing.assert_allclose(one[name], two[name], rtol=1e-7, atol=1e-8, err_msg=name)
    assert np.ptp(one["conserved_ev"]) < 0.02 * np.ptp(one["kinetic_ev"])
    first, second = (last_state(RunFolder.open(tmp_path / n)) for n in ("openmm", "ase"))
    np.testing.assert_allclose(first.positions, second.positions, atol=1e-7)
    np.testing.assert_allclose(first.get_momenta(), second.get_momenta(), atol=1e-6)


def test_nvt_has_the_temperature(files: Path, tmp_path: Path) -> None:
    start(
        files,
        tmp_path / "run",
        700,
        ensemble="nvt",
        thermostat_time=20.0,
        interval=5,
        timestep=1.0,
    )
    log = RunFolder.open(tmp_path / "run").read_log()
    assert "conserved_ev" not in log
    assert log["temperature_k"][0] == pytest.approx(300)
    assert log["temperature_k"][50:].mean() == pytest.approx(300, rel=0.2)
    assert log["temperature_k"][50:].std() == pytest.approx(300 * np.sqrt(2 / 27), rel=0.5)


@pytest.mark.parametrize("barostat", ["isotropic", "anisotropic"])
def test_npt_moves_the_box(
    barostat: str, files: Path, calculator: PotentialCalculator, tmp_path: Path
) -> None:
    options = {"ensemble": "npt", "barostat": barostat, "interval": 25}
    start(files, tmp_path / "run", 200, "waters.xyz", **options)
    log = RunFolder.open(tmp_path / "run").read_log()
    assert len(np.unique(log["volume_a3"])) > 3
    frames = frames_of(tmp_path / "run")
    for frame, energy in zip(frames, log["potential_ev"], strict=True):
        assert calculator.evaluate([frame])[0]["energy"] == pytest.approx(energy, abs=1e-5)
    ratio = np.diag(frames[-1].cell.array) / np.diag(frames[0].cell.array)
    assert (np.ptp(ratio) < 1e-9) == (barostat == "isotropic")


def test_barostat_samples_the_ideal_gas() -> None:
    """N free molecules: <V> = (N + 1) kT / P and var V = (N + 1) (kT / P)^2."""
    count, temperature, pressure = 16, 300.0, 0.02
    thermal = units.kB * temperature
    for anisotropic in (False, True):
        rng = np.random.default_rng(4)
        molecules = np.repeat(np.arange(count), 2)  # diatomic: half as many as atoms
        volume = count * thermal / pressure
        barostat = MonteCarloBarostat(molecules, temperature, pressure, anisotropic, volume)
        positions, box = np.zeros((2 * count, 3)), np.eye(3) * volume ** (1 / 3)
        volumes = []
        for _ in range(20000):
            moved = barostat.move(positions, box, lambda *_: 0.0, rng)
            positions, box = (positions, box) if moved is None else moved
            volumes.append(np.linalg.det(box))
        unit_volume = thermal / pressure
        assert np.mean(volumes[500:]) == pytest.approx((count + 1) * unit_volume, rel=0.04)
        assert np.std(volumes[500:]) == pytest.approx(np.sqrt(count + 1) * unit_volume, rel=0.12)


def test_pressure_of_an_ideal_gas_of_molecules() -> None:
    rng = np.random.default_rng(0)
    molecules, box = np.repeat(np.arange(5), 2), np.eye(3) * 10
    momenta, masses = rng.normal(size=(10, 3)), np.full(10, 2.0)
    pressure = molecular_pressure(
        rng.normal(size=(10, 3)), momenta, masses, box, lambda *_: 0.0, molecules
    )
    whole = momenta.reshape(5, 2, 3).sum(1)
    assert pressure == pytest.approx((whole**2).sum() / (2 * 4.0) * 2 / 3000)


# Boxes


@pytest.mark.parametrize("hand", [1, -1])
def test_any_cell_is_turned_into_openmms_form(hand: int, calculator: PotentialCalculator) -> None:
    atoms = waters()
    rng = np.random.default_rng(1)
    atoms.set_momenta(rng.normal(size=(len(atoms), 3)))
    atoms.set_cell((np.array([[1, 0, 0], [2, 1, 0], [-1, 1, 1]]) @ waters().cell.array) * hand)
    atoms.rotate(37, (1, 2, 3), rotate_cell=True)
    turned = openmm_system.reduced(atoms)
    cell = turned.cell.array
    assert not np.triu(cell, 1).any()
    assert (np.diag(cell) > 0).all()
    assert max(abs(cell[1, 0]), abs(cell[2, 0])) <= cell[0, 0] / 2 + 1e-9
    assert abs(cell[2, 1]) <= cell[1, 1] / 2 + 1e-9
    assert turned.get_volume() == pytest.approx(atoms.get_volume())
    before, after = (calculator.evaluate([each])[0] for each in (atoms, turned))
    assert after["energy"] == pytest.approx(before["energy"], abs=1e-5)
    turn = np.linalg.lstsq(atoms.positions, turned.positions, rcond=None)[0]
    assert np.linalg.det(turn) == pytest.approx(1.0)  # no mirror image
    np.testing.assert_allclose(before["forces"] @ turn, after["forces"], atol=1e-5)
    np.testing.assert_allclose(atoms.get_momenta() @ turn, turned.get_momenta(), atol=1e-12)
    np.testing.assert_array_equal(openmm_system.reduced(turned).positions, turned.positions)
    assert openmm_system.reduced(bulk("Cu")).cell.array[1, 0] > 0


def test_a_box_smaller_than_the_cutoff(tmp_path: Path, calculator: PotentialCalculator) -> None:
    atoms = bulk("C", "diamond", a=3.6)  # vectors of 2.5 A; the cutoff is 4
    atoms.rattle(0.05, seed=1)
    atoms.calc = calculator
    start_md(atoms, MDSettings(engine="openmm", steps=4, interval=2), tmp_path / "run")
    log = RunFolder.open(tmp_path / "run").read_log()
    for frame, energy in zip(frames_of(tmp_path / "run"), log["potential_ev"], strict=True):
        assert calculator.evaluate([frame])[0]["energy"] == pytest.approx(energy, abs=1e-5)


def test_minimisation_and_atoms_held_fixed(files: Path, tmp_path: Path) -> None:
    atoms = ethanol()
    atoms.set_constraint(FixAtoms([0, 4]))
    atoms.calc = PotentialCalculator(files / "tiny.safetensors", dtype="float64")
    before = atoms.get_potential_energy()
    settings = MDSettings(engine="openmm", minimize=True, steps=8, interval=4, seed=1)
    start_md(atoms, settings, tmp_path / "run")
    log = RunFolder.open(tmp_path / "run").read_log()
    assert log["potential_ev"][0] < before - 0.01
    assert log["temperature_k"][0] == pytest.approx(300)
    last = last_state(RunFolder.open(tmp_path / "run"))
    np.testing.assert_allclose(last.positions[[0, 4]], atoms.positions[[0, 4]], atol=1e-12)
    assert np.abs(last.positions - atoms.positions)[1:4].min() > 1e-5
    atoms.set_constraint(FixBondLength(0, 1))
    with pytest.raises(ValueError, match="holds FixBondLengths: OpenMM takes over FixAtoms only"):
        start_md(atoms, settings, tmp_path / "other")


# Killed, stopped, gone on


def assert_same_run(a: Path, b: Path) -> None:
    one, two = RunFolder.open(a).read_restart(), RunFolder.open(b).read_restart()
    assert one.state == two.state
    for name in ("positions", "momenta", "cell"):
        np.testing.assert_array_equal(one.arrays[name], two.arrays[name], err_msg=name)
    for file in ("log.csv", "trajectory.extxyz"):
        assert (a / file).read_bytes() == (b / file).read_bytes(), file


def command(files: Path, out: Path, steps: int, *more: str) -> list[str]:
    return [
        *(sys.executable, "-m", "tensormd.md_runs.cli", "md", str(files / "ethanol.xyz")),
        *("-m", str(files / "tiny.safetensors"), "--engine", "openmm", "--threads", "1"),
        *("--steps", str(steps), "--seed", "5", "--interval", "4", "-o", str(out), *more),
    ]


def wait_for_lines(process: subprocess.Popen[str], log: Path, lines: int) -> None:
    end = time.monotonic() + 90
    while not (log.exists() and log.read_bytes().count(b"\n") > lines):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end, "the run wrote no log"
        time.sleep(0.005)


@pytest.mark.parametrize("ensemble", ["nve", "nvt"])
def test_kill_9_then_resume(ensemble: str, files: Path, tmp_path: Path) -> None:
    out, steps = tmp_path / "killed", 300
    options = ("--save-every", "0.05", "--ensemble", ensemble, "--trajectory", "dcd")
    process = subprocess.Popen(
        command(files, out, steps, *options), stderr=subprocess.PIPE, text=True
    )
    wait_for_lines(process, out / "log.csv", 20)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    done = RunFolder.open(out).read_restart().state["step"]
    assert 0 < done < steps
    relaunch_md(out, {})
    start(files, tmp_path / "whole", steps, ensemble=ensemble)
    assert_same_run(tmp_path / "whole", out)
    moved = last_state(RunFolder.open(out)).positions - RunFolder.open(out).start().positions
    assert np.abs(moved).max() > 0.01
    assert (out / "trajectory.dcd").exists()


class DiedError(Exception):
    pass


@pytest.mark.parametrize("platform", ["Reference", "CPU"])
def test_npt_resumes_to_the_last_bit(platform: str, files: Path, tmp_path: Path) -> None:
    def die(step: int, row: object) -> None:
        if step >= 88:
            raise DiedError

    options = {"structure": "waters.xyz", "ensemble": "npt", "platform": platform}
    start(files, tmp_path / "whole", 110, **options)
    with pytest.raises(DiedError):
        start(files, tmp_path / "cut", 90, **options, observer=die, save_every=0.2)
    assert 0 <= RunFolder.open(tmp_path / "cut").read_restart().state["step"] <= 88
    relaunch_md(tmp_path / "cut", {"platform": platform.lower(), "steps": 110})
    assert_same_run(tmp_path / "whole", tmp_path / "cut")


def test_sigterm_saves(files: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    process = subprocess.Popen(
        command(files, out, 10**6, "--trajectory", "xtc"), stderr=subprocess.PIPE, text=True
    )
    wait_for_lines(process, out / "log.csv", 10)
    process.terminate()
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 143
    done = RunFolder.open(out).read_restart().state["step"]
    assert done > 0
    assert f"stopped at step {done}" in errors
    assert "Traceback" not in errors
    assert (out / "trajectory.xtc").stat().st_size > 0


def test_ctrl_c(files: Path, tmp_path: Path) -> None:
    def press(step: int, row: object) -> None:
        if step == 12:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(Interrupted) as stopped:
        start(files, tmp_path / "run", 40, observer=press)
    assert stopped.value.exit_code == 130
    relaunch_md(tmp_path / "run", {})
    start(files, tmp_path / "whole", 40)
    assert_same_run(tmp_path / "whole", tmp_path / "run")


def test_a_restart_of_another_platform_is_refused(files: Path, tmp_path: Path) -> None:
    start(files, tmp_path / "run", 4)
    with pytest.raises(ValueError, match="--platform is CPU, but the run was started with Refer"):
        relaunch_md(tmp_path / "run", {"platform": "CPU"})
    config = tmp_path / "run" / "config.json"
    config.write_text(config.read_text().replace('"Reference"', '"CPU"'))
    with pytest.raises(ValueError, match="the restart is not one of OpenMM's platform CPU"):
        relaunch_md(tmp_path / "run", {"steps": 8})


@pytest.mark.parametrize("value", [np.nan, 1e4])
def test_a_run_that_breaks_down(
    value: float, files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Velocities go wrong in step 37, in the middle of a batch of steps."""
    true_trouble = OpenMMEngine._trouble

    def trouble(engine: OpenMMEngine) -> str:
        state = engine._context.getState(getVelocities=True)
        if state.getStepCount() >= 37:
            velocities = np.array(state.getVelocities(asNumpy=True)._value)
            velocities[2] += value
            engine._context.setVelocities(velocities)
            if np.isnan(value):
                engine._context.setPositions(engine._positions() * np.nan)
        return true_trouble(engine)

    monkeypatch.setattr(OpenMMEngine, "_trouble", trouble)
    message = "a position is no number" if np.isnan(value) else "atom 2 moves"
    with pytest.raises(RunStopped, match=f"broke down at step 37: {message}"):
        start(files, tmp_path / "run", 100, interval=20, save_every=0)
    kept = RunFolder.open(tmp_path / "run").read_restart()
    assert 20 <= kept.state["step"] < 37
    assert np.isfinite(kept.arrays["positions"]).all()


def test_a_hot_structure_explodes(files: Path, tmp_path: Path) -> None:
    with pytest.raises(RunStopped, match=r"broke down at step \d+: "):
        start(files, tmp_path / "run", 500, temperature=1e7, timestep=20.0)


# Other formats


def test_dcd(files: Path, tmp_path: Path) -> None:
    start(files, tmp_path / "run", 12, "waters.xyz", trajectory="dcd")
    data = (tmp_path / "run" / "trajectory.dcd").read_bytes()
    frames = frames_of(tmp_path / "run")
    assert data[4:8] == b"CORD"
    assert struct.unpack_from("<i", data, 8)[0] == len(frames) == 4
    atoms = len(frames[0])
    size = 56 + 3 * (4 * atoms + 8)
    assert (len(data) - 276) == 4 * size
    for k, frame in enumerate(frames):
        at = 276 + k * size
        box = struct.unpack_from("<6d", data, at + 4)
        np.testing.assert_allclose([box[0], box[2], box[5]], frame.cell.lengths(), rtol=1e-6)
        columns = [
            np.frombuffer(data, "<f4", atoms, at + 56 + axis * (4 * atoms + 8) + 4)
            for axis in range(3)
        ]
        np.testing.assert_allclose(np.transpose(columns), frame.positions, atol=1e-5)


def test_xtc(files: Path, tmp_path: Path) -> None:
    utilities = pytest.importorskip("openmm.app.internal.xtc_utils")
    start(files, tmp_path / "run", 12, trajectory="xtc", interval=6)
    name = str(tmp_path / "run" / "trajectory.xtc").encode()
    coordinates, _, times, steps = utilities.read_xtc(name)
    frames = frames_of(tmp_path / "run")
    assert steps.tolist() == [0, 6, 12]
    np.testing.assert_allclose(times, [0, 0.003, 0.006], atol=1e-6)
    for k, frame in enumerate(frames):
        np.testing.assert_allclose(coordinates[:, :, k] * 10, frame.positions, atol=0.006)


# ML/MM


@needs_openmmml
@pytest.mark.parametrize("name", ["three.pdb", "three.cif", "three.box.pdb"])
def test_mixed(name: str, files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(files)
    options = ["-m", "tiny.safetensors", "--engine", "openmm", "--ml-atoms", "3-5", *WATER_MODEL]
    options += ["--platform", "Reference", "--seed", "3", "--interval", "10"]
    options += ["--dtype", "float64"]
    out = tmp_path / "run"
    assert run("md", name, *options, "--steps", "20", "-o", out) == 0
    log = RunFolder.open(out).read_log()
    topology, atoms = openmm_system.read_topology(files / name)
    if atoms.pbc.any():
        assert "pressure_bar" in log
    calculator = PotentialCalculator("tiny.safetensors", dtype="float64")
    force_field = app.ForceField("amber14/tip3p.xml")
    # By hand: the force field of all, less that of the region, and the potential of the region.
    for frame, energy in zip(frames_of(out), log["potential_ev"], strict=True):
        everything = mm_energy(force_field, topology, frame)
        modeller = app.Modeller(topology, frame.positions * unit.angstrom)
        modeller.delete([r for r in modeller.topology.residues() if r.index != 1])
        within = mm_energy(force_field, modeller.topology, frame[3:6], interactions=False)
        learned = calculator.evaluate([frame[3:6]])[0]["energy"]
        # PME sums the charges' images too: there the region's own is not quite its difference.
        bound = 2e-3 if atoms.pbc.any() else 1e-6
        assert energy == pytest.approx(everything - within + learned, abs=bound)
    if name != "three.pdb":
        return
    assert run("md", "--resume", out, "--steps", "30") == 0
    assert run("md", "--resume", out, *WATER_MODEL, "--steps", "31") == 0
    assert run("md", name, *options, "--steps", "31", "-o", tmp_path / "whole") == 0
    assert_same_run(tmp_path / "whole", out)
    assert run("report", out) == 0
    assert "OpenMM (ML/MM)" in (out / "report.html").read_text()


def mm_energy(
    force_field: Any, topology: Any, atoms: Atoms, *, interactions: bool = True
) -> float:
    import openmm

    periodic = bool(atoms.pbc.any()) and interactions
    system = force_field.createSystem(
        topology,
        nonbondedMethod=app.PME if periodic else app.NoCutoff,
        nonbondedCutoff=1.0,
        rigidWater=False,
    )
    context = openmm.Context(
        system, openmm.VerletIntegrator(1e-3), openmm.Platform.getPlatformByName("Reference")
    )
    context.setPositions(atoms.positions * 0.1)
    energy = context.getState(getEnergy=True).getPotentialEnergy()
    return float(energy._value) * units.kJ / units.mol


@needs_openmmml
def test_mixed_with_rigid_water(files: Path, tmp_path: Path) -> None:
    for ensemble in ("nve", "npt"):
        out = tmp_path / ensemble
        options = {"ml_atoms": "0-2", "force_field": ("amber14/tip3p.xml",), "platform": "CPU"}
        options |= {"constraints": "hbonds", "ensemble": ensemble}
        start(files, out, 50, "three.box.pdb", **options, minimize=True, interval=10)
        frames = frames_of(out)
        for first in (3, 6):
            lengths = [frame.get_distance(first, first + 1) for frame in frames]
            np.testing.assert_allclose(lengths, 0.9572, atol=1e-4)
        assert np.ptp([frame.get_distance(0, 1) for frame in frames]) > 1e-3
        last = last_state(RunFolder.open(out))
        assert last.get_masses()[4] == pytest.approx(1.008, abs=1e-3)  # of rigid water: as it is
        folder = RunFolder.open(out)
        removed = 3 if ensemble == "nve" else 0
        assert folder.read_restart().state["freedom"] == 27 - 6 - removed
        log = folder.read_log()
        assert log["temperature_k"][0] == pytest.approx(300)
        if ensemble == "nve":
            assert np.ptp(log["conserved_ev"]) < 0.1 * np.ptp(log["kinetic_ev"])
            bond = last.positions[4] - last.positions[3]
            speed = last.get_velocities()[4] - last.get_velocities()[3]
            assert abs(bond @ speed) < 1e-4
        else:
            assert len(np.unique(log["volume_a3"])) > 1


@needs_openmmml
def test_mixed_with_heavy_hydrogen(files: Path, tmp_path: Path) -> None:
    options = {"ml_atoms": "0-2", "force_field": ("amber14/tip3p.xml",), "hydrogen_mass": 3.0}
    start(files, tmp_path / "run", 0, "three.pdb", **options)
    folder = RunFolder.open(tmp_path / "run")
    masses = folder.start().get_masses()
    assert masses[4] == pytest.approx(3.0)
    assert masses.sum() == pytest.approx(3 * 18.015, abs=0.01)
    assert folder.config["settings"]["platform"] == "CPU"


def test_selections(files: Path) -> None:
    topology, atoms = openmm_system.read_topology(files / "three.pdb")
    assert atoms.get_chemical_formula() == "H6O3"
    select = openmm_system.select_atoms
    assert select("5,0-1", topology) == [0, 1, 5]
    assert select("resname HOH", topology) == select("chain A", topology) == list(range(9))


# Mistakes

MD = ["md", "ethanol.xyz", "-m", "tiny.safetensors", "--engine", "openmm"]
MIXED = ["md", "three.pdb", "-m", "tiny.safetensors", "--engine", "openmm", *WATER_MODEL]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([*MD, "--thermostat", "bussi"], "--thermostat bussi is ASE's"),
        ([*MD, "--compressibility", "1e-4"], "--compressibility is an option of --engine ase"),
        ([*MD, "--barostat", "berendsen"], "expected isotropic or anisotropic"),
        ([*MD, "--ensemble", "npt"], "npt needs a structure that is periodic"),
        ([*MD, "--platform", "Quantum"], "'Quantum': OpenMM has Reference"),
        ([*MD, "--trajectory", "trr"], "expected extxyz or dcd or xtc"),
        ([*MD, "--ml-atoms", "0-2"], "--ml-atoms needs a --force-field"),
        ([*MD, *WATER_MODEL], "--force-field is of the force field's part"),
        ([*MD, "--constraints", "hbonds"], "--constraints is of the force field's part"),
        ([*MD, "--ml-atoms", "0-2", *WATER_MODEL], "expected a PDB or mmCIF file"),
        ([*MIXED, "--ml-atoms", "0-9"], "0-9 is out of range: the structure has the atoms 0 to 8"),
        ([*MIXED, "--ml-atoms", "0-2,2"], "atom 2 is named twice"),
        ([*MIXED, "--ml-atoms", "resname LIG"], "no resname LIG; the structure has resname HOH"),
        ([*MIXED, "--ml-atoms", "water"], "'water' means nothing"),
        ([*MIXED, "--ml-atoms", "2-0"], "2-0 is out of range"),
        ([*MIXED, "--ml-atoms", "0-2", "--force-field", "none.xml"], "none.xml"),
        ([*MIXED, "--ml-atoms", "0-2", "--hydrogen-mass", "-1"], "--hydrogen-mass is -1.0 u"),
        (["md", "xenon.xyz", *MD[2:]], "does not know Xe"),
        (["md", "clash.xyz", *MD[2:]], "are two atoms in one place?"),
        (["md", "slab.xyz", *MD[2:]], "periodic in all three directions or in none"),
        ([*MD[:4], "--minimize"], "--minimize is an option of --engine openmm only"),
        ([*MD[:4], "--platform", "CPU"], "--platform is an option of --engine openmm only"),
    ],
)
def test_mistakes_are_one_line(
    arguments: list[str],
    message: str,
    files: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(files)
    Path("xenon.xyz").write_text("1\n\nXe 0 0 0\n")
    Path("clash.xyz").write_text("2\n\nH 0 0 0\nH 0 0 0\n")
    Path("slab.xyz").write_text(
        '1\nLattice="4 0 0 0 4 0 0 0 9" pbc="T T F" Properties=species:S:1:pos:R:3\nH 0 0 0\n'
    )
    before = sorted(files.iterdir())
    assert run(*arguments) == 2
    errors = capsys.readouterr().err
    assert message in errors
    assert len(errors.strip().splitlines()) == 1, errors
    assert sorted(files.iterdir()) == before


def test_without_openmm(
    files: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(files)
    monkeypatch.setitem(sys.modules, "openmm", None)
    assert run(*MD) == 2
    errors = capsys.readouterr().err
    assert "openmm is not installed: pip install 'tensormd[openmm]'" in errors
    assert len(errors.strip().splitlines()) == 1


def test_a_box_too_small_for_the_force_field(files: Path, tmp_path: Path) -> None:
    if openmmml_missing:
        pytest.skip("openmmml is not installed")
    write_three_waters(tmp_path / "small.pdb", 1.2)
    with pytest.raises(ValueError, match=r"OpenMM cannot run this: .*cutoff distance"):
        start(
            files,
            tmp_path / "run",
            4,
            str(tmp_path / "small.pdb"),
            ml_atoms="0-2",
            force_field=("amber14/tip3p.xml",),
        )


def test_a_calculator_without_a_potential(tmp_path: Path) -> None:
    atoms = ethanol()
    atoms.calc = Springs(atoms.positions)
    with pytest.raises(ValueError, match="takes the potential of a PotentialCalculator"):
        start_md(atoms, MDSettings(engine="openmm"), tmp_path / "run")


def test_config_says_what_ran(files: Path, tmp_path: Path) -> None:
    start(files, tmp_path / "run", 0)
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["settings"]["platform"] == "Reference"
    assert config["settings"]["engine_force"] in ("torchforce", "python")
    assert config["versions"]["openmm"]
