"""Relaxations: results, formats, and structures that cannot be relaxed."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.constraints import FixAtoms
from ase.io import read, write
from support.md_runs import Springs, ethanol, run, write_tiny_potential

from tensormd.md_runs.md.relax import plan, relax
from tensormd.md_runs.runs.errors import Interrupted, RunStopped
from tensormd.md_runs.runs.folder import RunFolder
from tensormd.md_runs.runs.settings import RelaxSettings
from tensormd.md_runs.runs.structures import read_structure, read_structures, write_structure


@pytest.mark.parametrize("optimizer", ["lbfgs", "fire", "bfgs"])
def test_optimizers_find_the_minimum(optimizer: str, tmp_path: Path) -> None:
    atoms = ethanol()
    places = atoms.positions + 0.1
    atoms.calc = Springs(places)
    result = relax(atoms, RelaxSettings(optimizer=optimizer, fmax=1e-4), tmp_path / "out")
    assert result.converged
    assert result.fmax_ev_per_a < 1e-4
    assert result.energy_before_ev == pytest.approx(0.5 * 5 * 9 * 3 * 0.01)
    np.testing.assert_allclose(atoms.positions, places, atol=1e-4)
    relaxed = read(tmp_path / "out" / "relaxed.extxyz")
    np.testing.assert_allclose(relaxed.positions, atoms.positions, atol=1e-7)
    assert relaxed.get_potential_energy() == pytest.approx(result.energy_ev, abs=1e-7)
    frames = read(tmp_path / "out" / "trajectory.extxyz", ":")
    log = RunFolder.open(tmp_path / "out").read_log()
    assert len(frames) == len(log["step"]) == result.steps + 1
    assert log["energy_ev"][-1] == result.energy_ev


def test_cell_relaxes_to_zero_stress_and_to_a_pressure(tmp_path: Path) -> None:
    volumes = []
    for pressure in (0.0, 50_000.0):
        atoms = bulk("Cu", cubic=True)
        atoms.set_cell(atoms.cell.array @ np.diag([1.03, 0.99, 1.02]), scale_atoms=True)
        atoms.rattle(0.05, seed=1)
        atoms.calc = EMT()
        settings = RelaxSettings(cell=True, fmax=1e-3, pressure=pressure)
        result = relax(atoms, settings, tmp_path / f"{pressure}")
        assert result.converged
        assert result.volume_a3 is not None
        volumes.append(result.volume_a3)
        assert np.trace(atoms.get_stress(voigt=False)) / 3 * 1.602176634e6 == pytest.approx(
            -pressure, abs=1500
        )
    assert volumes[0] == pytest.approx(3.59**3, rel=0.01)
    assert volumes[1] < volumes[0] * 0.98


def test_unfinished_relaxation_is_saved(tmp_path: Path) -> None:
    atoms = ethanol()
    atoms.calc = Springs(atoms.positions + 0.5)
    result = relax(atoms, RelaxSettings(steps=2), tmp_path / "out")
    assert not result.converged
    assert result.steps == 2
    assert np.abs(read(result.output).positions - atoms.positions).max() < 1e-7


def test_already_relaxed(tmp_path: Path) -> None:
    atoms = ethanol()
    atoms.calc = Springs(atoms.positions)
    result = relax(atoms, RelaxSettings(steps=0), tmp_path / "out")
    assert result.converged
    assert result.steps == 0


def test_fixed_atoms_do_not_move(tmp_path: Path) -> None:
    atoms = ethanol()
    atoms.calc = Springs(atoms.positions + 0.1)
    atoms.set_constraint(FixAtoms([2]))
    kept = atoms.positions[2].copy()
    assert relax(atoms, RelaxSettings(), tmp_path / "out").converged
    np.testing.assert_array_equal(atoms.positions[2], kept)


def test_ctrl_c_saves_what_is_there(tmp_path: Path) -> None:
    import signal

    atoms = ethanol()
    atoms.calc = Springs(atoms.positions + 1.0)

    def press(step: int, energy: float, fmax: float) -> None:
        if step == 2:
            signal.raise_signal(signal.SIGTERM)

    with pytest.raises(Interrupted, match="stopped at step 2, before it converged") as stopped:
        relax(atoms, RelaxSettings(fmax=1e-9), tmp_path / "out", observer=press)
    assert stopped.value.exit_code == 143
    assert (
        np.abs(read(tmp_path / "out" / "relaxed.extxyz").positions - atoms.positions).max() < 1e-7
    )


def test_nan_stops_it(tmp_path: Path) -> None:
    class Broken(Springs):
        def calculate(self, *arguments, **keywords) -> None:
            super().calculate(*arguments, **keywords)
            if np.abs(self.atoms.positions - ethanol().positions).max() > 0:
                self.results["energy"] = np.nan

    atoms = ethanol()
    atoms.calc = Broken(atoms.positions + 0.5)
    with pytest.raises(RunStopped, match="broke down at step"):
        relax(atoms, RelaxSettings(), tmp_path / "out")
    assert len(RunFolder.open(tmp_path / "out").read_log()["step"]) == 1


@pytest.mark.parametrize("name", ["a.cif", "a.xyz", "a.pdb", "a.traj", "POSCAR", "a.json"])
def test_formats_come_back(name: str, tmp_path: Path) -> None:
    atoms = bulk("Cu", cubic=True)
    write_structure(tmp_path / name, atoms)
    back = read_structure(tmp_path / name)
    np.testing.assert_allclose(back.positions, atoms.positions, atol=1e-3)
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_bad_structure_files(tmp_path: Path) -> None:
    (tmp_path / "empty.xyz").write_text("")
    (tmp_path / "cut.xyz").write_text("3\n\nO 0 0 0\nH 0 0 1\n")
    (tmp_path / "noise.xyz").write_text("hello\nworld\n")
    (tmp_path / "nan.xyz").write_text("2\n\nO 0 0 0\nH 0 nan 1\n")
    (tmp_path / "none.xyz").write_text("0\n\n")
    (tmp_path / "what.qqq").write_text("hello")
    for name, message in {
        "missing.xyz": "no such file",
        "empty.xyz": "is empty: expected a structure",
        "cut.xyz": "cannot be read as a structure",
        "noise.xyz": "cannot be read as a structure",
        "nan.xyz": "position of atom 1 is",
        "none.xyz": "no atoms|no structure|cannot be read",
        "what.qqq": "does not recognise this format",
        ".": "is a folder",
    }.items():
        with pytest.raises((ValueError, OSError), match=message) as error:
            read_structure(tmp_path / name)
        assert "\n" not in str(error.value)


def test_a_pdb_file_of_one_model(tmp_path: Path) -> None:
    file = tmp_path / "water.pdb"
    file.write_text(
        "MODEL        1\n"
        "ATOM      1  O   HOH     1       0.000   0.000   0.119  1.00  0.00           O  \n"
        "ATOM      2  H1  HOH     1       0.000   0.763  -0.477  1.00  0.00           H  \n"
        "ATOM      3  H2  HOH     1       0.000  -0.763  -0.477  1.00  0.00           H  \n"
        "ENDMDL\n"
        "END\n"
    )
    assert read_structure(file).get_chemical_formula() == "H2O"


def test_one_of_several_structures(tmp_path: Path) -> None:
    frames = [ethanol(seed) for seed in range(3)]
    write(tmp_path / "many.xyz", frames)
    assert len(read_structures(tmp_path / "many.xyz")) == 3
    with pytest.raises(ValueError, match=r"holds 3 structures: choose one, for example .*@0"):
        read_structure(tmp_path / "many.xyz")
    picked = read_structure(f"{tmp_path / 'many.xyz'}@-1")
    np.testing.assert_allclose(picked.positions, frames[-1].positions, atol=1e-7)
    write(tmp_path / "odd@1.xyz", frames[0])
    assert len(read_structure(tmp_path / "odd@1.xyz")) == 9


def test_where_results_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write("a.xyz", [ethanol(0), ethanol(1)])
    write("b.xyz", ethanol(2))
    assert [str(t.folder) for t in plan(["b.xyz"], None)] == ["b_relaxed"]
    task = plan(["b.xyz"], Path("new.cif"))[0]
    assert (str(task.folder), str(task.file)) == ("new", "new.cif")
    assert [t.folder.name for t in plan(["a.xyz", "b.xyz"], None)] == ["a-1", "a-2", "b"]
    with pytest.raises(ValueError, match="expected a folder"):
        plan(["a.xyz"], Path("new.cif"))
    with pytest.raises(ValueError, match="ASE writes no such format"):
        plan(["b.xyz"], Path("new.qqq"))
    Path("new.cif").write_text("mine")
    with pytest.raises(ValueError, match="exists already"):
        plan(["b.xyz"], Path("new.cif"))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.xyz", "b.xyz", "new.cif"]


def test_relax_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_tiny_potential(tmp_path / "tiny.safetensors")
    write("a.xyz", ethanol())
    write("b.pdb", ethanol(1))
    options = ["-m", "tiny.safetensors", "--fmax", "5", "--json"]
    assert run("relax", "a.xyz", "b.pdb", *options, "-o", "both") == 0
    output = capsys.readouterr()
    results = json.loads(output.out)
    assert [r["converged"] for r in results] == [True, True]
    assert [r["folder"] for r in results] == ["both/a", "both/b"]
    assert output.err.count("converged after 0 steps") == 2
    assert run("relax", "a.xyz", *options, "-o", "out.cif") == 0
    assert len(read("out.cif")) == 9
    options[3] = "1e-12"
    assert run("relax", "a.xyz", *options, "--steps", "3", "-o", "hard") == 1
    output = capsys.readouterr()
    assert "NOT CONVERGED after 3 steps" in output.err
    assert "not converged: the structures so far are saved" in output.err
    assert isinstance(read("hard/relaxed.extxyz"), Atoms)
    assert run("relax", "a.xyz", *options, "--cell", "-o", "cell") == 2
    assert "not periodic in all three directions" in capsys.readouterr().err
