"""`tensormd md --engine openmm`: energies, ensembles, boxes, formats, mistakes."""

from __future__ import annotations

import json
import struct
import sys
from pathlib import Path

import numpy as np
import pytest
from ase import units
from ase.build import bulk
from ase.constraints import FixAtoms, FixBondLength
from ase.io import read
from support.data import data_file
from support.md_runs import Springs, ethanol, run, waters
from support.openmm_runs import (
    WATER_MODEL,
    frames_of,
    start,
    write_files,
)

from tensormd.calculators import PotentialCalculator
from tensormd.md_runs.md import openmm_system
from tensormd.md_runs.md.loop import last_state, start_md
from tensormd.md_runs.md.openmm_barostat import MonteCarloBarostat, molecular_pressure
from tensormd.md_runs.md.trajectories import block_labels, pdb_text
from tensormd.md_runs.md.velocities import thermalize
from tensormd.md_runs.runs.folder import RunFolder
from tensormd.md_runs.runs.settings import MDSettings
from tensormd.models.units import bar_in_ev_per_angstrom3


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_files(tmp_path_factory.mktemp("inputs"))


@pytest.fixture(scope="module")
def calculator(files: Path) -> PotentialCalculator:
    return PotentialCalculator(files / "tiny.safetensors")


# Energies and ensembles


@pytest.mark.parametrize("engine", ["torchforce", "python"])
@pytest.mark.parametrize("structure", ["ethanol.xyz", "waters.xyz"])
def test_log_and_frames_equal_the_calculator(
    engine: str, structure: str, files: Path, calculator: PotentialCalculator, tmp_path: Path
) -> None:
    if engine == "torchforce":
        problem = openmm_system.choose_force_class("auto")
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


def test_kept_velocities_have_their_temperature(
    tmp_path: Path, calculator: PotentialCalculator
) -> None:
    """Motion as a whole stays in nve, and is no heat."""
    atoms = ethanol()
    thermalize(atoms, 300.0, np.random.default_rng(3), rigid=False)
    turning = np.cross([0.02, -0.01, 0.03], atoms.positions - atoms.get_center_of_mass())
    atoms.set_velocities(atoms.get_velocities() + turning + [0.01, 0.02, -0.01])
    energy = atoms.get_kinetic_energy()
    atoms.calc = calculator
    settings = MDSettings(engine="openmm", keep_velocities=True, steps=2, interval=1)
    start_md(atoms, settings, tmp_path / "run")
    log = RunFolder.open(tmp_path / "run").read_log()
    assert log["temperature_k"][0] == pytest.approx(300, rel=1e-6)
    assert log["kinetic_ev"][0] == pytest.approx(energy, rel=1e-6)


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


@pytest.mark.slow
def test_mean_volume_is_that_of_ase(tmp_path: Path) -> None:
    """Rock salt at 300 K with a universal model: two barostats, one volume."""
    model = str(data_file("matgl/TensorNet-MatPES-PBE-v2025.1-PES"))
    means = {}
    for engine in ("ase", "openmm"):
        atoms = bulk("NaCl", "rocksalt", a=5.7, cubic=True)
        atoms.calc = PotentialCalculator(model)
        settings = MDSettings(
            engine=engine, ensemble="npt", steps=10000, timestep=4.0, interval=25, seed=1
        )
        start_md(atoms, settings, tmp_path / engine)
        log = RunFolder.open(tmp_path / engine).read_log()
        volumes, pressures = (log[name][100:] for name in ("volume_a3", "pressure_bar"))
        blocks = np.array_split(volumes, 10)
        error = np.std([block.mean() for block in blocks]) / np.sqrt(len(blocks))
        means[engine] = volumes.mean(), error
        print(
            f"{engine}: {volumes.mean():.2f} +- {error:.2f} A^3, spread {volumes.std():.2f} A^3, "
            f"{pressures.mean():.0f} bar"
        )
    (ase, first), (openmm, second) = means.values()
    assert abs(ase - openmm) < 4 * np.hypot(first, second)
    assert abs(ase - openmm) / ase < 0.02


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


# Other formats


@pytest.mark.parametrize("name", ["three.pdb", "three.cif"])
def test_structures_of_biologists(name: str, files: Path, tmp_path: Path) -> None:
    start(files, tmp_path / "run", 0, name)
    began = RunFolder.open(tmp_path / "run").start()
    assert began.get_chemical_symbols() == ["O", "H", "H"] * 3
    _, expected = openmm_system.read_topology(files / name)
    np.testing.assert_allclose(began.positions, expected.positions, atol=1e-6)


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


@pytest.mark.parametrize(("structure", "kind"), [("waters.xyz", "dcd"), ("ethanol.xyz", "xtc")])
def test_a_copy_has_the_atoms_beside_it(
    structure: str, kind: str, files: Path, tmp_path: Path
) -> None:
    from openmm import app

    start(files, tmp_path / "run", 4, structure, trajectory=kind)
    first = frames_of(tmp_path / "run")[0]
    by_ase = read(tmp_path / "run" / "trajectory.pdb")
    by_openmm = app.PDBFile(str(tmp_path / "run" / "trajectory.pdb"))
    atoms = list(by_openmm.topology.atoms())
    assert by_ase.get_chemical_symbols() == first.get_chemical_symbols()
    assert [atom.element.symbol for atom in atoms] == first.get_chemical_symbols()
    assert len({(atom.residue.index, atom.name) for atom in atoms}) == len(first)
    np.testing.assert_allclose(by_ase.positions, first.positions, atol=6e-4)
    np.testing.assert_allclose(by_ase.cell.cellpar(), first.cell.cellpar(), atol=6e-3)
    assert by_ase.pbc.all() == first.pbc.all()
    assert run("md", "--resume", tmp_path / "run", "--steps", "8") == 0


def test_names_of_many_atoms() -> None:
    symbols = ["Cl", "H"] * 120
    labels = block_labels(symbols)
    assert len(set(labels)) == 240
    assert max(len(name) for name, *_ in labels) == 4
    text = pdb_text(labels, symbols, np.full((240, 3), -5e4), None).splitlines()
    assert text[0] == (
        "HETATM    1 Cl1  MOL A   1    -999.999-999.999-999.999  1.00  0.00          Cl"
    )
    assert text[1][12:16] == " H2 "
    assert text[99][22:26] == "   2"


# Mistakes

MD = ["md", "ethanol.xyz", "-m", "tiny.safetensors", "--engine", "openmm"]
MIXED = ["md", "three.pdb", "-m", "tiny.safetensors", "--engine", "openmm", *WATER_MODEL]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([*MD, "--ensemble", "nvt", "--thermostat", "bussi"], "--thermostat bussi is ASE's"),
        ([*MD, "--compressibility", "1e-4"], "--compressibility is an option of --engine ase"),
        ([*MD, "--ensemble", "npt", "--barostat", "berendsen"], "expected isotropic or aniso"),
        ([*MD, "--ensemble", "npt"], "npt needs a structure that is periodic"),
        ([*MD, "--platform", "Quantum"], "'Quantum': OpenMM has Reference"),
        ([*MD, "--device", "cpu", "--platform", "CUDA"], "GPU, but --platform CUDA is the GPU"),
        ([*MD, "--trajectory", "trr"], "expected extxyz or dcd or xtc"),
        ([*MD, "--ml-atoms", "0-2"], "--ml-atoms needs a --force-field"),
        ([*MD, *WATER_MODEL], "--force-field is an option of the force field"),
        ([*MD, "--constraints", "hbonds"], "--constraints is an option of the force field"),
        ([*MD, "--ml-atoms", "0-2", *WATER_MODEL], "expected a PDB or mmCIF file"),
        ([*MIXED, "--ml-atoms", "0-9"], "0-9 is out of range: the structure has the atoms 0 to 8"),
        ([*MIXED, "--ml-atoms", "0-2,2"], "atom 2 is named twice"),
        ([*MIXED, "--ml-atoms", "resname LIG"], "no resname LIG; the structure has resname HOH"),
        ([*MIXED, "--ml-atoms", "water"], "'water' means nothing"),
        (
            [*MIXED, "--ml-atoms", "3-4"],
            "the chosen atoms cut 1 bond(s): 3 (O of HOH 2)-5 (H2 of HOH 2); there are no link",
        ),
        ([*MIXED, "--ml-atoms", "2-0"], "2-0 is out of range"),
        ([*MIXED, "--ml-atoms", "0-2", "--force-field", "none.xml"], "none.xml"),
        ([*MIXED, "--ml-atoms", "0-2", "--hydrogen-mass", "-1"], "--hydrogen-mass is -1.0 u"),
        (["md", "xenon.xyz", *MD[2:]], "does not know Xe"),
        (["md", "clash.xyz", *MD[2:]], "0 A apart, in one place"),
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
