"""Readers of labelled frames: every label in eV and Angstrom, or an error that names the frame."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, molecule
from ase.db import connect
from ase.io import write
from support.data import data_file
from support.reader_frames import (
    CUTOFF,
    MOLECULES,
    RNG,
    check_against,
    close,
    full,
    references,
    waters,
)

from tensormd.models import units
from tensormd.models.data.readers import read_database, read_qm9
from tensormd.models.data.readers.qm9 import anisotropy
from tensormd.models.training import FORMATS, format_of, read_extxyz, read_frames


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "waters.extxyz"
    write(path, waters())
    return path


# ASE


def test_every_label_of_extended_xyz(file: Path) -> None:
    assert format_of(file) == "extxyz"
    check_against(read_frames(file, CUTOFF), waters())


@pytest.mark.parametrize("name", ["waters.traj", "waters.json"])
def test_other_formats_of_ase(name: str, tmp_path: Path) -> None:
    write(tmp_path / name, waters(3))
    frames = read_frames(tmp_path / name, CUTOFF)
    close(frames.energies, [atoms.get_potential_energy() for atoms in waters(3)])
    close(frames.values("stress")[2], full(waters(3)[2].calc.results["stress"]))


def test_database(tmp_path: Path) -> None:
    path = tmp_path / "waters.db"
    with connect(path) as database:
        for atoms in waters():
            data = {"polarizability": atoms.info["polarizability"]}
            database.write(atoms, charge=-1, REF_energy=7.0, data=data)
        database.delete([2])
    left = [atoms for k, atoms in enumerate(waters()) if k != 1]
    assert format_of(path) == "ase-db"
    frames = read_frames(path, CUTOFF)
    check_against(frames, left)
    assert all(graph.charge == -1 for graph in frames.graphs)
    check_against(read_database(path, CUTOFF, split=[4, 0]), [left[4], left[0]])
    named = read_frames(path, CUTOFF, keys={"energy": "REF_energy", "charge": None})
    close(named.energies, [7.0] * 5)
    assert named.graphs[0].charge == 0


def renamed(atoms: Atoms) -> Atoms:
    """As MACE's users name labels."""
    labels, alpha = atoms.calc.results, atoms.info.pop("polarizability")
    other = Atoms(atoms.numbers, atoms.positions, cell=atoms.cell, pbc=True)
    other.info = {
        "REF_energy": labels["energy"],
        "REF_stress": labels["stress"],
        "REF_dipole": labels["dipole"],
        "alpha": alpha.ravel(),
        "total_charge": 2,
    }
    other.arrays["REF_forces"] = labels["forces"]
    return other


MACE_KEYS = {
    "energy": "REF_energy",
    "forces": "REF_forces",
    "stress": "REF_stress",
    "dipole": "REF_dipole",
    "polarizability": "alpha",
    "charge": "total_charge",
}


def test_labels_under_other_names(tmp_path: Path) -> None:
    path = tmp_path / "named.extxyz"
    write(path, [renamed(atoms) for atoms in waters()])
    frames = read_frames(path, CUTOFF, keys=MACE_KEYS)
    check_against(frames, waters())
    assert frames.graphs[3].charge == 2
    with pytest.raises(ValueError, match=r"frame 0 of .* has no energy, .* it has REF_energy"):
        read_frames(path, CUTOFF)
    with pytest.raises(ValueError, match=r"frame 0 .* has no 'DFT', which keys names for energy"):
        read_frames(path, CUTOFF, keys={"energy": "DFT"})
    with pytest.raises(ValueError, match=r"keys: unknown 'force': expected one of energy, forces"):
        read_frames(path, CUTOFF, keys={"force": "REF_forces"})


def test_a_name_that_is_given_comes_first(tmp_path: Path) -> None:
    atoms = waters(1)[0]
    atoms.info["DFT_energy"] = 3.0
    write(tmp_path / "both.extxyz", atoms)
    assert read_frames(tmp_path / "both.extxyz", CUTOFF).energies[0] < -400
    assert (
        read_frames(tmp_path / "both.extxyz", CUTOFF, keys={"energy": "DFT_energy"}).energies == 3
    )


def test_virial_becomes_a_stress(tmp_path: Path) -> None:
    """stress = -virial / volume, in whatever units: that of a crystal under compression."""
    virial = RNG(0).normal(size=(3, 3))
    atoms = bulk("Cu", cubic=True)
    atoms.info.update(E=-1.0, W=(virial + virial.T).ravel())
    write(tmp_path / "a.extxyz", atoms)
    keys = {"energy": "E", "virial": "W"}
    frames = read_frames(tmp_path / "a.extxyz", CUTOFF, keys=keys)
    close(frames.values("stress")[0], -(virial + virial.T) / atoms.get_volume())
    in_units = {"energy": "hartree", "length": "bohr", "stress": "GPa"}
    frames = read_frames(tmp_path / "a.extxyz", CUTOFF, keys=keys, units=in_units)
    factor = units.hartree_in_ev / units.bohr_in_angstrom**3
    close(frames.values("stress")[0], -factor * (virial + virial.T) / atoms.get_volume())
    atoms.cell, atoms.pbc = np.zeros((3, 3)), False
    write(tmp_path / "b.extxyz", atoms)
    with pytest.raises(ValueError, match=r"frame 0 .* has a virial and no volume"):
        read_frames(tmp_path / "b.extxyz", CUTOFF, keys=keys)


def test_charge(tmp_path: Path) -> None:
    frames = waters(3)
    frames[1].info["charge"] = -1
    write(tmp_path / "a.extxyz", frames)
    read = read_frames(tmp_path / "a.extxyz", CUTOFF)
    assert [float(graph.charge) for graph in read.graphs] == [0.0, -1.0, 0.0]


def test_labels_that_some_frames_lack(tmp_path: Path) -> None:
    frames = waters(4)
    del frames[2].calc.results["stress"]
    path = tmp_path / "some.extxyz"
    del frames[3].calc.results["energy"]
    for first in (0, 2):  # whatever comes first
        write(path, frames[first:])
        with pytest.warns(UserWarning, match=r"are missing: energy in 1, stress in 1; each frame"):
            read = read_frames(path, CUTOFF)
        count = len(read)
        assert read.partial == ("energy", "stress")
        assert read.labelled("energy") == list(range(count - 1))
        assert read.labelled("stress") == [*range(count - 2), count - 1]
        assert read.labelled("forces") == list(range(count))
        assert torch.isnan(read.values("stress")[count - 2]).all()
        close(read.values("stress")[count - 1], full(frames[3].calc.results["stress"]))
        assert "energy" not in read.select([count - 1]).quantities
        assert read.select([count - 1]).partial == ()
    assert "stress" not in read_frames(path, CUTOFF, keys={"stress": None}).quantities


def test_names_that_some_frames_lack(tmp_path: Path) -> None:
    """Such as isolated atoms in a file of their own; a name that no frame has is a mistake."""
    frames = [renamed(atoms) for atoms in waters(2)]
    write(tmp_path / "a.extxyz", frames)
    for atoms in frames:
        del atoms.arrays["REF_forces"]
    write(tmp_path / "b.extxyz", frames)
    keys = {"energy": "REF_energy", "forces": "REF_forces"}
    files = [tmp_path / "b.extxyz", tmp_path / "a.extxyz"]
    with pytest.warns(UserWarning, match="of 4 frames, labels are missing: forces in 2"):
        assert read_frames(files, CUTOFF, keys=keys).labelled("forces") == [2, 3]
    with pytest.raises(
        ValueError, match=r"no frame of .*b.extxyz has 'REF_forces', .* for forces"
    ):
        read_frames(files[0], CUTOFF, keys=keys)


def test_frames_without_forces(tmp_path: Path) -> None:
    atoms = molecule("CH4")
    atoms.info["energy"] = -40.5
    write(tmp_path / "a.extxyz", atoms)
    frames = read_extxyz(tmp_path / "a.extxyz", CUTOFF)
    assert frames.quantities == ("energy",)
    with pytest.raises(ValueError, match="the frames have no forces: they are labelled with ener"):
        frames.values("forces")


@pytest.mark.parametrize("label", ["energy", "forces", "stress", "dipole"])
def test_labels_that_are_no_number(label: str, tmp_path: Path) -> None:
    frames = waters(5)
    results = frames[3].calc.results
    results[label] = results[label] * np.nan
    path = tmp_path / "nan.extxyz"
    write(path, frames)
    with pytest.raises(ValueError, match=rf"frame 3 of .*nan.extxyz .* not finite \({label}\)"):
        read_frames(path, CUTOFF)
    assert len(read_frames(path, CUTOFF, limit=3)) == 3


# Which frames


def test_limit_seed_and_split(file: Path, tmp_path: Path) -> None:
    structures = waters()
    check_against(read_frames(file, CUTOFF, limit=2), structures[:2])
    check_against(read_frames(file, CUTOFF, limit=99), structures)
    check_against(read_frames(file, CUTOFF, split=[4, 1, 3]), [structures[k] for k in (4, 1, 3)])
    (tmp_path / "three.txt").write_text("4, 1 # the first two\n3\n")
    by_file = read_frames(file, CUTOFF, split=tmp_path / "three.txt")
    check_against(by_file, [structures[k] for k in (4, 1, 3)])
    drawn = read_frames(file, CUTOFF, limit=3, seed=5).energies
    assert torch.equal(drawn, read_frames(file, CUTOFF, limit=3, seed=5).energies)
    assert not torch.equal(drawn, read_frames(file, CUTOFF, limit=3, seed=1).energies)
    check_against(read_frames(f"{file}@1:3", CUTOFF), structures[1:3])
    several = read_frames([file, file], CUTOFF, limit=2)
    check_against(several, [*structures[:2], *structures[:2]])
    assert several.groups is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"split": [6]}, "the split names frame 6, but .* holds 6"),
        ({"split": [1, 2, 1]}, "split names frame 1 2 times"),
        ({"split": []}, "split names no frame"),
        ({"split": [-1]}, "split holds -1"),
        ({"split": [0], "limit": 1}, "limit and seed do not go with it"),
        ({"limit": 0}, "limit is 0: expected 1 or more"),
        ({"seed": 1}, "say how many frames to draw"),
        ({"format": "xyz"}, "format is 'xyz': expected one of extxyz, ase-db"),
        ({"units": {"time": "fs"}}, "unknown 'time': expected length, energy, forces"),
        ({"units": {"energy": "cal"}}, "unknown energy unit 'cal'"),
        ({"units": {"forces": "hartree"}}, "unknown unit of forces 'hartree'"),
        ({"units": {"stress": "bar/A"}}, "unknown stress unit"),
        ({"units": {"energy": 1.0}}, "energy is 1.0: expected the name of a unit"),
    ],
)
def test_options_that_are_wrong(options: dict[str, Any], message: str, file: Path) -> None:
    with pytest.raises(ValueError, match=message):
        read_frames(file, CUTOFF, **options)


@pytest.mark.parametrize("name", ["a.extxyz", "a.npz", "a.db", "a.lmdb", "a.aselmdb"])
def test_files_that_are_not_there_or_hold_nothing(name: str, tmp_path: Path) -> None:
    pytest.importorskip("lmdb")
    with pytest.raises(FileNotFoundError, match="no such file"):
        read_frames(tmp_path / name, CUTOFF)
    (tmp_path / name).touch()
    with pytest.raises(ValueError, match="is empty"):
        read_frames(tmp_path / name, CUTOFF)
    (tmp_path / name).write_bytes(bytes(range(256)) * 64)
    with pytest.raises(ValueError, match=name):
        read_frames(tmp_path / name, CUTOFF)


def test_a_folder_of_nothing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is a folder"):
        read_frames(tmp_path, CUTOFF)


# npz


def sgdml(**changes: Any) -> dict[str, Any]:
    rng = RNG(0)
    arrays = {
        "z": np.array([8, 1, 1], dtype=np.uint8),
        "R": molecule("H2O").positions + rng.normal(scale=0.05, size=(5, 3, 3)),
        "E": -47000 + rng.normal(size=(5, 1)),
        "F": rng.normal(size=(5, 3, 3)),
    }
    return arrays | changes


def test_md17(tmp_path: Path) -> None:
    arrays = sgdml()
    np.savez(tmp_path / "a.npz", **arrays)
    assert format_of(tmp_path / "a.npz") == "rmd17"
    frames = read_frames(tmp_path / "a.npz", CUTOFF)
    close(frames.energies, arrays["E"][:, 0] * units.kcal_per_mol_in_ev)
    close(frames.forces[3], arrays["F"][3] * units.kcal_per_mol_in_ev)
    np.savez(tmp_path / "b.npz", **arrays, e_unit="eV", r_unit="Ang")
    frames = read_frames(tmp_path / "b.npz", CUTOFF, units={"energy": "ev"}, split=[4, 2])
    close(frames.energies, arrays["E"][[4, 2], 0])
    with pytest.raises(ValueError, match=r"b.npz: it states the unit 'ev' of energy"):
        read_frames(tmp_path / "b.npz", CUTOFF)
    np.savez(tmp_path / "c.npz", **sgdml(F=arrays["F"][:4]))
    with pytest.raises(ValueError, match=r"F \(4, 3, 3\): expected \(N,\)"):
        read_frames(tmp_path / "c.npz", CUTOFF)
    np.savez(tmp_path / "d.npz", **sgdml(E=np.array([1, 2, np.nan, 4, 5])))
    with pytest.raises(ValueError, match=r"frame 2 of .*d.npz has a label that is not finite"):
        read_frames(tmp_path / "d.npz", CUTOFF)
    np.savez(tmp_path / "e.npz", **sgdml(E=np.array([{}] * 5)))
    with pytest.raises(ValueError, match="no npz file of numbers"):
        read_frames(tmp_path / "e.npz", CUTOFF)
    with pytest.raises(ValueError, match="the keys of an npz file are known"):
        read_frames(tmp_path / "a.npz", CUTOFF, keys={"energy": "E"})


RMD17 = ["ethanol", "aspirin", "benzene", "uracil", "salicylic"]


def test_revised_md17() -> None:
    """Several molecules together give no false alarm, and are PBE energies of theirs."""
    files = [data_file(f"rmd17/rmd17_{name}_train_01.npz") for name in RMD17]
    frames = read_frames(files, CUTOFF, limit=40)
    assert len(frames) == 200
    assert frames.elements == [1, 6, 7, 8]
    assert float(frames.energies[:40].mean()) == pytest.approx(-4209.6, abs=1.0)  # ethanol
    rms = torch.cat(frames.forces[:40]).square().mean().sqrt()
    assert 0.8 < float(rms) < 1.6  # at 500 K
    net = torch.stack([force.sum(0) for force in frames.forces])
    assert net.abs().max() < 0.02


# QM9

HEAD = (
    "XYZ_file,Index,SMILES,InChi,N_atoms,Stoichiometry,Elements,XYZ_Ang,Mulliken_pop,"
    "Dipole_debye,Polarizability_bohr3,HOMO_au,InternalEnergy_0K_au,GibbsFreeEnergy_298K_au"
)
TENSOR_HEAD = "XYZ_file,A_xx,A_xy,A_yy,A_xz,A_yz,A_zz"


def qm9_line(k: int, name: str, energy: float, dipole: float) -> str:
    atoms = molecule(name)
    elements = "['" + "','".join(atoms.get_chemical_symbols()) + "']"
    positions = str(atoms.positions.tolist()).replace(" ", "").replace("0.0,", "1.E-12,")
    return (
        f'"mol_{k}.xyz",{k},"C","InChI=1S/a,b",{len(atoms)},"[1,0]","{elements}","{positions}",'
        f'"[0.1,0.2]",{dipole},{10 + k},-0.2,{energy},{energy - 0.5}'
    )


@pytest.fixture
def qm9(tmp_path: Path) -> Path:
    """Nine molecules in three tables, as in qm9pack."""
    names = MOLECULES[:9]
    totals = references("total")
    for part in range(3):
        lines = [HEAD]
        for k in range(3 * part, 3 * part + 3):
            energy = sum(totals[z] for z in molecule(names[k]).numbers) / units.hartree_in_ev
            lines.append(qm9_line(k, names[k], energy, 0.5 * k))
        (tmp_path / f"qm9_part{part + 1}.csv").write_text("\n".join(lines) + "\n")
    tensors = [f'"mol_{k}.xyz",{7 + k},0.,{7 + k},0.,0.,{16 + k}' for k in reversed(range(9))]
    (tmp_path / "qm9_polarizability.csv").write_text("\n".join([TENSOR_HEAD, *tensors]) + "\n")
    return tmp_path


def test_qm9_tables(qm9: Path) -> None:
    assert format_of(qm9) == "qm9"
    frames = read_frames(qm9, CUTOFF)
    totals = references("total")
    for k, name in enumerate(MOLECULES[:9]):
        atoms = molecule(name)
        assert frames.graphs[k].numbers.tolist() == atoms.numbers.tolist()
        close(frames.graphs[k].positions, atoms.positions)
        close(frames.energies[k], sum(totals[z] for z in atoms.numbers))
        close(frames.values("dipole_norm")[k], 0.5 * k * units.debye_in_e_angstrom)
        alpha = units.bohr3_in_e2_angstrom2_per_ev
        close(frames.values("polarizability_isotropic")[k], (10 + k) * alpha)
        close(frames.values("polarizability_anisotropy")[k], 9 * alpha)
    chosen = read_frames(qm9, CUTOFF, split=[7, 0, 4])
    assert [len(graph.numbers) for graph in chosen.graphs] == [3, 3, 8]
    gibbs = read_qm9(qm9, CUTOFF, keys={"energy": "GibbsFreeEnergy_298K_au"}, limit=4)
    close(gibbs.energies, frames.energies[:4] - 0.5 * units.hartree_in_ev)
    energies = read_qm9(qm9, CUTOFF, keys=dict.fromkeys(frames.quantities[1:]))
    assert energies.quantities == ("energy",)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"energy": "U0"}, "expected a column in hartree"),
        ({"energy": "Nothing_au"}, "has no column 'Nothing_au': in hartree there are HOMO_au"),
        ({"forces": "F"}, "QM9 has no 'forces': expected energy, dipole_norm"),
        ({"dipole_norm": "Dipole"}, "expected Dipole_debye, or null"),
    ],
)
def test_qm9_keys(keys: dict[str, str], message: str, qm9: Path) -> None:
    with pytest.raises(ValueError, match=message):
        read_frames(qm9, CUTOFF, keys=keys)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text.replace(",2.5,", ",n/a,"), "frame 5 .* Dipole_debye is 'n/a'"),
        (lambda text: text.replace("'N'", "'Xx'"), "frame 2 .* cannot be read"),
        (lambda text: text.replace(",2.5,", ",nan,"), "frame 5 of .* not finite"),
        (lambda text: text.replace(',"[0.1,0.2]"', ""), "columns: expected 14"),
        (lambda text: text.replace("mol_4", "mol_x"), "has no line in qm9_polarizability.csv"),
    ],
)
def test_qm9_lines_that_are_damaged(change: Callable[[str], str], message: str, qm9: Path) -> None:
    for part in sorted(qm9.glob("qm9_part*.csv")):
        part.write_text(change(part.read_text()).replace(change(HEAD), HEAD))
    with pytest.raises(ValueError, match=message):
        read_frames(qm9, CUTOFF)


def test_anisotropy() -> None:
    """Of an axial molecule the difference of both values, in whatever orientation."""
    rotation, _ = np.linalg.qr(RNG(0).normal(size=(3, 3)))
    tensor = rotation @ np.diag([13.0, 4.0, 4.0]) @ rotation.T
    assert anisotropy(np.stack([tensor, 5 * np.eye(3)])) == pytest.approx([9.0, 0.0], abs=1e-7)
    close(anisotropy(np.diag([1.0, 2.0, 4.0])), np.sqrt((1 + 4 + 9) / 2))


needs_qm9 = pytest.mark.skipif(
    importlib.util.find_spec("qm9pack") is None, reason="qm9pack is not installed"
)


@needs_qm9
def test_qm9_itself() -> None:
    """Methane, ammonia, water and acetylene, the first of the data set, and a random subset."""
    frames = read_frames("qm9", CUTOFF, split=[0, 1, 2, 3])
    close(frames.energies[0], -40.47893 * units.hartree_in_ev)
    dipoles = torch.stack(frames.values("dipole_norm")) / units.debye_in_e_angstrom
    close(dipoles, [0.0, 1.6256, 1.8511, 0.0])
    alpha = torch.stack(frames.values("polarizability_isotropic"))
    close(alpha[0], 13.21 * units.bohr3_in_e2_angstrom2_per_ev)
    spread = torch.stack(frames.values("polarizability_anisotropy"))
    close(spread[3], (27.863 - 10.491) * units.bohr3_in_e2_angstrom2_per_ev)  # linear
    assert spread[0] < 1e-6
    # Why no tensor is read: that of acetylene is largest along z, where its atoms are not.
    extent = np.ptp(frames.graphs[3].positions.numpy(), axis=0)
    assert extent.argmax() != 2
    assert extent.max() > 3.0
    assert extent[2] < 0.1
    drawn = read_frames("qm9", CUTOFF, limit=300, seed=0)
    assert set(drawn.elements) >= {1, 6, 7, 8}
    assert float(drawn.energies.mean()) == pytest.approx(-11168, abs=300)


def test_qm9_that_is_not_installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'tensormd\[datasets\]'"):
        read_frames("qm9", CUTOFF)


def test_names_of_formats() -> None:
    assert FORMATS == ("extxyz", "ase-db", "rmd17", "qm9", "pubchemqcr", "aselmdb", "packed")
