"""Helpers of the tests of `tensormd md --engine openmm`.

Importing it skips a test file where OpenMM is not installed.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ase import Atoms
from ase.build import molecule
from ase.io import read
from support.md_runs import ethanol, waters, write_tiny_potential

from tensormd.calculators.openmm_versions import python_problem
from tensormd.md_runs.md.launch import launch_md
from tensormd.md_runs.runs.folder import RunFolder
from tensormd.md_runs.runs.settings import MDSettings, ModelSettings

if python_problem() is not None:
    pytest.skip(f"needs OpenMM: {python_problem()}", allow_module_level=True)

from openmm import app, unit

WATER_MODEL = ("--force-field", "amber14/tip3p.xml")


def write_files(folder: Path) -> Path:
    """A model, molecules, a box, and three waters as PDB and mmCIF."""
    write_tiny_potential(folder / "tiny.safetensors")
    ethanol().write(folder / "ethanol.xyz")
    waters().write(folder / "waters.xyz")
    for suffix, box in (("pdb", None), ("cif", None), ("box.pdb", 2.4)):
        write_three_waters(folder / f"three.{suffix}", box)
    return folder


def three_waters() -> tuple[Any, Atoms]:
    """Three distorted waters: topology and structure."""
    topology, atoms = app.Topology(), Atoms()
    chain = topology.addChain("A")
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
        atoms += one
    return topology, atoms


def write_three_waters(path: Path, box: float | None = None) -> None:
    """As PDB or mmCIF; with ``box``, nm, periodic."""
    topology, atoms = three_waters()
    if box is not None:
        topology.setPeriodicBoxVectors(np.eye(3) * box)
    write = app.PDBxFile.writeFile if path.suffix == ".cif" else app.PDBFile.writeFile
    with open(path, "w") as stream:
        write(topology, atoms.positions * unit.angstrom, stream)


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


def assert_same_run(a: Path, b: Path) -> None:
    one, two = RunFolder.open(a).read_restart(), RunFolder.open(b).read_restart()
    assert one.state == two.state
    for name in ("positions", "momenta", "cell"):
        np.testing.assert_array_equal(one.arrays[name], two.arrays[name], err_msg=name)
    for file in ("log.csv", "trajectory.extxyz"):
        assert (a / file).read_bytes() == (b / file).read_bytes(), file
