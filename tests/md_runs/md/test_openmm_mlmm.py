"""ML/MM with `tensormd md --engine openmm`: a potential inside a force field."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ase import Atoms, units
from support.md_runs import run
from support.openmm_runs import (
    WATER_MODEL,
    app,
    assert_same_run,
    frames_of,
    start,
    three_waters,
    unit,
    write_files,
    write_three_waters,
)

from tensormd.calculators import PotentialCalculator
from tensormd.md_runs.md import openmm_system
from tensormd.md_runs.md.launch import launch_md
from tensormd.md_runs.md.loop import last_state
from tensormd.md_runs.runs.folder import RunFolder
from tensormd.md_runs.runs.settings import MDSettings, ModelSettings
from tensormd.models import EnergyReadout, Potential, TensorNet, save_potential

pytest.importorskip("openmmml", reason="openmmml is not installed (extra 'openmm')")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_files(tmp_path_factory.mktemp("inputs"))


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


def test_mixed_with_rigid_water(files: Path, tmp_path: Path) -> None:
    for ensemble in ("nve", "npt"):
        out = tmp_path / ensemble
        options = {"ml_atoms": "0-2", "force_field": ("amber14/tip3p.xml",), "platform": "CPU"}
        options |= {"constraints": "hbonds", "ensemble": ensemble}
        start(files, out, 50, "three.box.pdb", **options, interval=25)
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


def test_mixed_with_heavy_hydrogen(files: Path, tmp_path: Path) -> None:
    options = {"ml_atoms": "0-2", "force_field": ("amber14/tip3p.xml",), "hydrogen_mass": 3.0}
    start(files, tmp_path / "run", 0, "three.pdb", **options)
    folder = RunFolder.open(tmp_path / "run")
    masses = folder.start().get_masses()
    assert masses[4] == pytest.approx(3.0)
    assert masses.sum() == pytest.approx(3 * 18.015, abs=0.01)
    assert folder.config["settings"]["platform"] == "CPU"


def test_a_copy_has_the_residues_beside_it(files: Path, tmp_path: Path) -> None:
    options = {"ml_atoms": "0-2", "force_field": ("amber14/tip3p.xml",), "trajectory": "dcd"}
    start(files, tmp_path / "run", 2, "three.cif", **options, interval=1)
    kept = app.PDBFile(str(tmp_path / "run" / "trajectory.pdb")).topology
    assert [(r.name, len(list(r.atoms()))) for r in kept.residues()] == [("HOH", 3)] * 3
    assert [atom.name for atom in kept.atoms()] == ["O", "H1", "H2"] * 3
    assert RunFolder.open(tmp_path / "run").topology() == tmp_path / "run" / "topology.cif"


# The charge of the atoms of the potential


def chloride(folder: Path) -> Path:
    """A chloride between three waters."""
    topology, atoms = three_waters()
    residue = topology.addResidue("CL", topology.addChain("B"))
    topology.addAtom("CL", app.Element.getBySymbol("Cl"), residue)
    ion = atoms.positions.mean(0) + np.array([0, 0, 6.0])
    positions = np.vstack([atoms.positions, ion])
    with open(folder / "chloride.pdb", "w") as stream:
        app.PDBFile.writeFile(topology, positions * unit.angstrom, stream)
    return folder / "chloride.pdb"


@pytest.mark.parametrize(
    ("atoms", "given", "expected", "words"),
    [
        ("resname CL", None, -1, ["have the charge -1, as in the force field"]),
        ("resname CL", 0, 0, [r"--charge is +0, but the charges of the force field"]),
        ("resname CL", -1, -1, []),
        ("resname HOH", None, 0, []),
        ("chain A,chain B", None, -1, ["have the charge -1"]),
    ],
)
def test_the_charge_is_that_of_the_force_field(
    atoms: str, given: int | None, expected: int, words: list[str], tmp_path: Path
) -> None:
    topology, _ = openmm_system.read_topology(chloride(tmp_path))
    system = app.ForceField("amber14/tip3p.xml").createSystem(topology)
    chosen = openmm_system.select_atoms(atoms, topology)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        assert openmm_system.region_charge(system, chosen, given) == expected
    assert len(said) == len(words)
    for warning, each in zip(said, words, strict=True):
        assert each in str(warning.message)


def test_a_charge_that_is_no_whole_number(tmp_path: Path) -> None:
    topology, _ = openmm_system.read_topology(chloride(tmp_path))
    system = app.ForceField("amber14/tip3p.xml").createSystem(topology)
    with pytest.raises(
        ValueError, match=r"add up to -0\.834 e, no whole number: state .*--charge"
    ):
        openmm_system.region_charge(system, [0], None)
    with pytest.warns(UserWarning, match=r"--charge is -1, but .* add up to -0\.834"):
        assert openmm_system.region_charge(system, [0], -1) == -1


def test_an_ion_is_run_with_its_charge(tmp_path: Path) -> None:
    """The energy of the run is that of the potential with the charge -1, and not with 0."""
    source = chloride(tmp_path)
    network = TensorNet(channels=8, layers=1, radial_functions=8, cutoff=4.0, max_number=18)
    potential = Potential(network, EnergyReadout(8), elements=[1, 8, 17], scale=3.0)
    save_potential(potential, tmp_path / "ion.safetensors")
    energies = {}
    for charge in (None, -1, 0):
        out = tmp_path / f"run{charge}"
        settings = MDSettings(
            engine="openmm", ml_atoms="resname CL,0-2", force_field=("amber14/tip3p.xml",),
            platform="Reference", steps=0,
        )  # fmt: skip
        model = ModelSettings((str(tmp_path / "ion.safetensors"),), charge=charge, dtype="float64")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            launch_md(str(source), model, settings, out)
        energies[charge] = RunFolder.open(out).read_log()["potential_ev"][0]
    assert energies[None] == energies[-1]
    assert abs(energies[0] - energies[-1]) > 1e-7  # float64: an untrained network feels little


def test_selections(files: Path) -> None:
    topology, atoms = openmm_system.read_topology(files / "three.pdb")
    assert atoms.get_chemical_formula() == "H6O3"
    select = openmm_system.select_atoms
    assert select("5,0-1", topology) == [0, 1, 5]
    assert select("resname HOH", topology) == select("chain A", topology) == list(range(9))


def test_a_box_too_small_for_the_force_field(files: Path, tmp_path: Path) -> None:
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


@pytest.mark.parametrize("suffix", ["pdb", "cif"])
def test_alternate_locations_are_said(suffix: str, files: Path, tmp_path: Path) -> None:
    """OpenMM keeps the first one without a word, here that of the lower occupancy."""
    lines = (files / f"three.{suffix}").read_text().splitlines(keepends=True)
    at, line = next((k, x) for k, x in enumerate(lines) if x.startswith("HETATM") and "H1" in x)
    _, before = openmm_system.read_topology(files / f"three.{suffix}")
    if suffix == "pdb":
        first = f"{line[:16]}A{line[17:54]}  0.30{line[60:]}"
        second = f"{line[:16]}B{line[17:30]}{float(line[30:38]) + 0.1:8.3f}{line[38:54]}  0.70"
        lines[at : at + 1] = [first, second + line[60:]]
    else:
        names = [x.strip().removeprefix("_atom_site.") for x in lines if "_atom_site." in x]
        words = line.split()
        rows = []
        for letter, shift, occupancy in (("A", 0.0, "0.3"), ("B", 0.1, "0.7")):
            row = dict(zip(names, words, strict=True))
            row |= {"label_alt_id": letter, "occupancy": occupancy}
            row["Cartn_x"] = f"{float(row['Cartn_x']) + shift:.4f}"
            rows.append(" ".join(row.values()) + "\n")
        lines[at : at + 1] = rows
    path = tmp_path / f"alternate.{suffix}"
    path.write_text("".join(lines))
    with pytest.warns(
        UserWarning, match=r"alternate locations: .* keeps the first location"
    ) as said:
        _, atoms = openmm_system.read_topology(path)
    assert len(said) == 1
    np.testing.assert_array_equal(atoms.positions, before.positions)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        openmm_system.read_topology(files / f"three.{suffix}")
