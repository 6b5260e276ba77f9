"""Structures that enter and leave a run: charges, masses, constraints, nothing else."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.build import molecule
from ase.calculators.singlepoint import SinglePointCalculator
from ase.constraints import FixAtoms, FixBondLength, FixCartesian
from ase.io import read, write
from support.md_runs import run, write_tiny_potential

from tensormd.md_runs.runs.structures import (
    read_each,
    read_structure,
    runnable,
    write_structure,
)

WATER_PDB = (
    "ATOM      1  O   HOH A   1       0.000   0.000   0.119  1.00  0.00           O\n"
    "ATOM      2  H1  HOH A   1       0.000   0.763  -0.477  1.00  0.00           H\n"
    "ATOM      3  H2  HOH A   1       0.000  -0.763  -0.477  1.00  0.00           H\nEND\n"
)
WATER = "O 0 0 0.119\nH 0 0.763 -0.477\nH 0 -0.763 -0.477\n"
MODEL = ("-m", "tiny.safetensors")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a model in it, to work in."""
    monkeypatch.chdir(tmp_path)
    write_tiny_potential(tmp_path / "tiny.safetensors")
    return tmp_path


def labelled() -> Atoms:
    """A structure with labels and columns of its own."""
    atoms = molecule("H2O")
    atoms.info.update(REF_energy=-1.0, energy=-2.0, name="w", charge=1)
    atoms.set_array("REF_forces", atoms.positions.copy())
    atoms.set_array("residuenames", np.array(["HOH"] * 3))
    atoms.set_initial_charges([0.1, 0.2, 0.3])
    atoms.set_tags([1, 2, 3])
    atoms.set_momenta(atoms.positions)
    atoms.set_masses([16, 2, 1])
    atoms.set_constraint(FixAtoms([1]))
    return atoms


def test_what_goes_into_a_run() -> None:
    atoms = labelled()
    copy = runnable(atoms)
    assert set(copy.arrays) == {"numbers", "positions", "masses", "momenta", "tags"}
    assert copy.info == {"charge": 1}
    assert isinstance(copy.constraints[0], FixAtoms)
    assert copy.constraints[0] is not atoms.constraints[0]
    for name in copy.arrays:
        np.testing.assert_array_equal(copy.arrays[name], atoms.arrays[name])
        assert copy.arrays[name] is not atoms.arrays[name]
    assert "name" in atoms.info


@pytest.mark.parametrize("name", ["water.pdb", "labels.extxyz", "labels.traj", "labels.db"])
def test_a_resumed_run_writes_what_an_unbroken_one_writes(name: str, here: Path) -> None:
    if name == "water.pdb":
        Path(name).write_text(WATER_PDB)
    else:
        atoms = labelled()
        if name != "labels.traj":
            atoms.info.pop("energy")  # which extended XYZ and databases keep in their own place
        if name == "labels.db":
            atoms.info.clear()
        atoms.calc = SinglePointCalculator(atoms, energy=-3.0, forces=atoms.positions)
        write(name, atoms)
    options = ("--seed", "1", "--interval", "10", "--save-every", "0")
    assert run("md", name, *MODEL, "--steps", "20", *options, "-o", "cut") == 0
    assert run("md", "--resume", "cut", "--steps", "40", "--save-every", "0") == 0
    assert run("md", name, *MODEL, "--steps", "40", *options, "-o", "whole") == 0
    written = Path("whole/trajectory.extxyz").read_bytes()
    assert Path("cut/trajectory.extxyz").read_bytes() == written
    assert written.count(b"energy=") == 5
    assert b"REF" not in written
    assert b"residue" not in written


def test_a_charge_reaches_the_next_command(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("a.xyz").write_text(f"3\n\n{WATER}")
    options = (*MODEL, "--fmax", "100", "--json")

    def energy(*arguments: str) -> float:
        assert run("relax", *arguments, *options) == 0
        return json.loads(capsys.readouterr().out)[0]["energy_ev"]

    charged = energy("a.xyz", "--charge", "1", "-o", "one")
    assert read_structure("one/relaxed.extxyz").info == {"charge": 1}
    assert b"charge=1" in Path("one/trajectory.extxyz").read_bytes()
    assert energy("one/relaxed.extxyz", "-o", "two") == charged
    neutral = energy("one/relaxed.extxyz", "--charge", "0", "-o", "three")
    assert abs(neutral - charged) > 1e-6  # a random model hardly sees it
    assert energy("a.xyz", "-o", "four") == neutral
    md = ("--steps", "2", "--interval", "1", "-o", "run")
    assert run("md", "a.xyz", *MODEL, "--charge", "1", *md) == 0
    assert Path("run/trajectory.extxyz").read_bytes().count(b"charge=1") == 3
    capsys.readouterr()
    assert energy("run/trajectory.extxyz@0", "-o", "five") == charged
    # A format that cannot hold it says so.
    with pytest.warns(UserWarning, match=r"six\.pdb does not hold the charge \+1 \(give --charge"):
        assert run("relax", "a.xyz", *options, "--charge", "1", "-o", "six.pdb") == 0


def test_constraints_of_a_poscar_are_read_back(here: Path) -> None:
    text = "slab\n1.0\n4 0 0\n{b}\n0 0 8\nCu\n2\nSelective dynamics\nDirect\n"
    text += "0 0 0 F F T\n0.5 0.5 0.25 T T T\n"
    Path("POSCAR").write_text(text.format(b="0 4 0"))
    atoms = read_structure("POSCAR")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        write_structure(Path("a.extxyz"), atoms)
    back = read_structure("a.extxyz")
    assert [c.mask.tolist() for c in back.constraints] == [[True, True, False]]
    Path("POSCAR").write_text(text.format(b="1 4 0"))
    atoms = read_structure("POSCAR")
    with pytest.warns(UserWarning, match=r"b\.extxyz does not hold all of the constraints \(FixS"):
        write_structure(Path("b.extxyz"), atoms)


@pytest.mark.parametrize(
    ("change", "lost"),
    [
        (lambda atoms: atoms.set_masses([16, 2, 2]), "the masses"),
        (
            lambda atoms: atoms.set_constraint(FixBondLength(0, 1)),
            r"constraints \(FixBondLengths?\)",
        ),
        (lambda atoms: atoms.set_constraint(FixCartesian(0)), "constraints"),
        (lambda atoms: atoms.info.update(charge=-1), r"the charge -1 \(give"),
    ],
)
def test_what_a_format_cannot_hold_is_said(change, lost: str, tmp_path: Path) -> None:
    atoms = molecule("H2O")
    change(atoms)
    with pytest.warns(UserWarning, match=rf"a\.pdb does not hold .*{lost}"):
        write_structure(tmp_path / "a.pdb", atoms)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        write_structure(tmp_path / "a.traj", atoms)
        if "Bond" not in lost:
            write_structure(tmp_path / "a.extxyz", atoms)


def test_frames_hold_the_masses_of_heavy_water(here: Path) -> None:
    Path("a.xyz").write_text(f"3\n\n{WATER}".replace("H ", "D "))
    assert run("md", "a.xyz", *MODEL, "--steps", "2", "--interval", "1", "-o", "run") == 0
    for atoms in read("run/trajectory.extxyz", ":"):
        np.testing.assert_allclose(atoms.get_masses(), [15.999, 2.0141, 2.0141], atol=1e-3)


def test_relax_goes_on_and_says_what_failed(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = f"3\n\n{WATER}"
    Path("three.xyz").write_text(good + good.replace("O 0", "Xe 0") + good)
    Path("clash.xyz").write_text("2\n\nH 0 0 0\nH 0 0 0.1\n")
    Path("cut.xyz").write_text("3\n\nO 0 0 0\n")
    options = (*MODEL, "--fmax", "100", "--json")
    files = ("three.xyz", "clash.xyz", "cut.xyz", "missing.xyz")
    assert run("relax", *files, *options, "-o", "all") == 1
    output = capsys.readouterr()
    results = json.loads(output.out)
    assert [r["source"] for r in results] == ["three.xyz@0", "three.xyz@2"]
    assert [r["folder"] for r in results] == ["all/three-1", "all/three-3"]
    assert "three.xyz@1: the model does not know Xe" in output.err
    assert "clash.xyz: atoms 0 (H) and 1 (H) are 0.1 A apart" in output.err
    assert "cut.xyz cannot be read as a structure: line 1" in output.err
    assert "missing.xyz: no such file" in output.err
    assert (
        "failed: clash.xyz, cut.xyz, missing.xyz, three.xyz@1; the others are done" in output.err
    )
    # Checked before the first is run.
    assert output.err.index("three.xyz@1") < output.err.index("three.xyz@0  converged")
    assert sorted(p.name for p in Path("all").iterdir()) == ["three-1", "three-3"]
    assert run("relax", "clash.xyz", "cut.xyz", *options, "-o", "none") == 2
    assert "none of 2 structures could be relaxed" in capsys.readouterr().err
    assert not Path("none").exists()
    assert run("relax", "three.xyz@7", *options, "-o", "none") == 2
    assert "three.xyz holds 3 structures, numbered from 0: there is none at @7" in (
        capsys.readouterr().err
    )


def test_names_of_structures(tmp_path: Path) -> None:
    path = tmp_path / "a.xyz"
    path.write_text(f"3\n\n{WATER}" + "2\n\nH 0 0 0\nH 0 0 0\n")
    (name, atoms), (other, error) = read_each(path)
    assert (name, other) == (f"{path}@0", f"{path}@1")
    assert isinstance(atoms, Atoms)
    assert isinstance(error, ValueError)
    assert [name for name, _ in read_each(f"{path}@0")] == [f"{path}@0"]


def test_mmcif_and_hexadecimal_pdb_outside_of_openmm(here: Path) -> None:
    Path("hex.pdb").write_text(WATER_PDB.replace("A   1", "AA000"))
    Path("a.cif").write_text(
        "data_w\nloop_\n_atom_site.type_symbol\n_atom_site.Cartn_x\n_atom_site.Cartn_y\n"
        "_atom_site.Cartn_z\nO 0 0 0.119\nH 0 0.763 -0.477\nH 0 -0.763 -0.477\n"
    )
    assert run("relax", "hex.pdb", "a.cif", *MODEL, "--fmax", "100", "-o", "both") == 0
    assert len(read("both/a/relaxed.extxyz")) == len(read("both/hex/relaxed.extxyz")) == 3
