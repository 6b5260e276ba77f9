"""Reports: their numbers, their figures, and the runs for which they can be made."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.calculators.emt import EMT
from support.md_runs import Springs, ethanol, run

from tensormd.md_runs.md.loop import start_md
from tensormd.md_runs.md.relax import relax
from tensormd.md_runs.reports.analysis import (
    bonds,
    coordination,
    drift_mev_per_atom_ps,
    pair_distances,
    read_frames,
    rmsd_angstrom,
)
from tensormd.md_runs.reports.runs import write_report
from tensormd.md_runs.runs.folder import RunFolder
from tensormd.md_runs.runs.settings import MDSettings, RelaxSettings


def check_page(page: Path, figures: int) -> str:
    html = page.read_text()
    assert html.startswith("<!DOCTYPE html>")
    assert html.count('<img src="data:image/png;base64,') == figures
    markup = re.sub(r"<script.*?</script>", "", html, flags=re.DOTALL)
    assert not re.search(r'(src|href)="(?!data:)', markup), "the page must need no other file"
    assert len(list((page.parent / "figures").glob("*.png"))) == figures
    for png in (page.parent / "figures").glob("*.png"):
        data = png.read_bytes()
        assert data.startswith(b"\x89PNG")
        assert len(data) > 8000, f"{png.name} looks empty"
    return html


def test_report_of_a_molecule(tmp_path: Path) -> None:
    atoms = ethanol()
    atoms.calc = Springs(atoms.positions)
    record = {"structure": {"source": "<ethanol>", "formula": "C2H6O, 9 atoms"}}
    start_md(atoms, MDSettings(steps=200, seed=1), tmp_path / "run", record=record)
    page, numbers = write_report(tmp_path / "run")
    html = check_page(page, 4)
    for text in (
        "Molecular dynamics: C2H6O, 9 atoms",
        "NVE at 300 K, 0.5 fs steps",
        "energy drift",
        "meV/atom/ps",
        "&lt;ethanol&gt;",
        "Versions",
        "torch",
        "seed",
    ):
        assert text in html, text
    assert numbers["steps"] == 200
    assert numbers["time_ps"] == pytest.approx(0.1)
    assert abs(numbers["drift_mev_per_atom_ps"]) < 5
    assert numbers["temperature_k"] > 0
    assert "density_g_per_cm3" not in numbers
    assert write_report(tmp_path / "run")[1] == numbers  # again, over the old one


def test_report_of_a_crystal(tmp_path: Path) -> None:
    atoms = bulk("Cu", cubic=True) * (2, 2, 2)
    atoms.calc = EMT()
    settings = MDSettings(ensemble="npt", thermostat="bussi", steps=60, timestep=2, seed=1)
    start_md(atoms, settings, tmp_path / "run")
    page, numbers = write_report(tmp_path / "run")
    html = check_page(page, 5)
    assert "NPT (Bussi) at 300 K" in html
    assert "Radial distribution functions" in html
    assert numbers["density_g_per_cm3"] == pytest.approx(8.9, abs=0.4)
    assert numbers["volume_a3"] == pytest.approx(32 * 3.6**3 / 4, rel=0.05)


def test_report_of_langevin_has_no_drift(tmp_path: Path) -> None:
    atoms = ethanol()
    atoms.calc = Springs(atoms.positions)
    start_md(atoms, MDSettings(ensemble="nvt", steps=50, seed=1), tmp_path / "run")
    _, numbers = write_report(tmp_path / "run")
    assert numbers["drift_mev_per_atom_ps"] is None


def test_report_of_a_relaxation(tmp_path: Path) -> None:
    atoms = ethanol()
    atoms.calc = Springs(atoms.positions + 0.1 * np.random.default_rng(0).normal(size=(9, 3)))
    result = relax(atoms, RelaxSettings(), tmp_path / "run")
    page, numbers = write_report(tmp_path / "run")
    html = check_page(page, 2)
    assert "LBFGS to 0.01 eV/Å: converged" in html
    assert numbers["converged"] is True
    assert numbers["energy_ev"] == result.energy_ev
    assert numbers["fmax_ev_per_a"] == result.fmax_ev_per_a
    assert numbers["steps"] == result.steps


def test_report_of_a_folder_of_relaxations(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = {}
    for name in ("a-1", "a-2"):
        atoms = ethanol()
        atoms.calc = Springs(atoms.positions + 0.1 * np.random.default_rng(0).normal(size=(9, 3)))
        results[name] = relax(atoms, RelaxSettings(), tmp_path / "all" / name)
    page, numbers = write_report(tmp_path / "all")
    html = page.read_text()
    assert page == tmp_path / "all" / "report.html"
    assert html.count('<img src="data:image/png;base64,') == 4
    assert "a-1: Relaxation" in html
    assert {name: each["energy_ev"] for name, each in numbers.items()} == {
        name: result.energy_ev for name, result in results.items()
    }
    assert run("report", tmp_path / "all") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "a-1"
    assert lines[-1].split() == ["report", str(page)]
    (tmp_path / "empty").mkdir()
    assert run("report", tmp_path / "empty") == 2
    assert "is not a run folder: it holds no config.json" in capsys.readouterr().err


@pytest.mark.parametrize("steps", [0, 1])
@pytest.mark.parametrize("atoms", [Atoms("Ar"), bulk("Cu"), Atoms("H2", [[0, 0, 0], [0, 0, 0.8]])])
def test_report_of_next_to_nothing(steps: int, atoms: Atoms, tmp_path: Path) -> None:
    atoms = atoms.copy()
    atoms.calc = Springs(atoms.positions)
    start_md(atoms, MDSettings(steps=steps, interval=1), tmp_path / "run")
    _, numbers = write_report(tmp_path / "run")
    assert numbers["steps"] == steps


def test_report_of_a_killed_run(tmp_path: Path) -> None:
    atoms = ethanol()
    atoms.calc = Springs(atoms.positions)
    start_md(atoms, MDSettings(steps=50, seed=1), tmp_path / "run")
    for file in ("log.csv", "trajectory.extxyz"):
        path = tmp_path / "run" / file
        path.write_bytes(path.read_bytes()[:-40])
    _, numbers = write_report(tmp_path / "run")
    assert numbers["steps"] == 40
    assert len(read_frames(RunFolder.open(tmp_path / "run"))) == 5


def test_what_is_no_run_folder(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no such run folder"):
        write_report(tmp_path / "none")
    with pytest.raises(ValueError, match=r"is not a run folder: it holds no config\.json"):
        write_report(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match="is damaged"):
        write_report(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="was not written by this version"):
        write_report(tmp_path)


def test_drift_of_a_known_line() -> None:
    time = np.linspace(0, 10, 101)
    noise = 1e-4 * np.sin(97 * time)
    assert drift_mev_per_atom_ps(time, 3 + 0.018 * time + noise, 9) == pytest.approx(2, rel=1e-2)
    assert drift_mev_per_atom_ps(time[:2], time[:2], 9) is None


def test_rdf_of_an_ideal_gas_is_one() -> None:
    """In a triclinic cell, by pair of elements, beyond half the cell as well."""
    rng = np.random.default_rng(0)
    cell = np.array([[9.0, 0, 0], [2.0, 9.5, 0], [-1.0, 2.0, 10.0]])
    frames = [
        Atoms("H300O100", positions=rng.random((400, 3)) @ cell, cell=cell, pbc=True)
        for _ in range(10)
    ]
    pairs = pair_distances(frames)
    assert pairs.normalized
    assert list(pairs.curves) == ["H-H", "H-O", "O-O"]
    far = pairs.centers > 2
    for curve in pairs.curves.values():
        assert curve[far].mean() == pytest.approx(1, abs=0.02)


def test_rdf_of_a_crystal_counts_neighbors() -> None:
    atoms = bulk("Cu", cubic=True, a=3.6)
    pairs = pair_distances([atoms])
    curve, r = pairs.curves["Cu-Cu"], pairs.centers
    density = 4 / 3.6**3
    first = (r > 2.3) & (r < 2.8)
    count = (4 * np.pi * r**2 * density * curve)[first].sum() * (r[1] - r[0])
    assert count == pytest.approx(12)


def test_pair_distances_of_a_molecule() -> None:
    pairs = pair_distances([ethanol(), ethanol(1)])
    assert not pairs.normalized
    width = pairs.centers[1] - pairs.centers[0]
    counts = {name: curve.sum() * width for name, curve in pairs.curves.items()}
    assert counts == pytest.approx({"H-H": 15, "C-H": 12, "H-O": 6, "C-C": 1, "C-O": 2})


def test_bonds_and_coordination() -> None:
    assert len(bonds(ethanol())) == 8
    assert coordination(ethanol()).tolist() == [4, 4, 2, 1, 1, 1, 1, 1, 1]
    assert coordination(bulk("Cu")).tolist() == [12]


def test_rmsd_ignores_how_a_molecule_turned() -> None:
    atoms = ethanol()
    turned = atoms.copy()
    turned.rotate(77, (1, 2, 3))
    turned.translate((5, -3, 8))
    assert rmsd_angstrom(atoms, turned) < 1e-10
    mirrored = atoms.copy()
    mirrored.positions[:, 0] *= -1
    assert rmsd_angstrom(atoms, mirrored) > 1e-3
