"""ML/MM through openmm-ml: mechanical embedding and interpolation, checked by hand."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ase import Atoms
from support.helpers import make_potential
from support.openmm_runs import three_waters, write_three_waters

from tensormd.calculators import TensorNetCalculator, create_force
from tensormd.calculators import openmm_versions as engines
from tensormd.models import Potential, save_potential
from tensormd.models.units import kj_per_mol_in_ev, nm_in_angstrom

openmm = pytest.importorskip("openmm", reason="openmm is not installed (extra 'openmm')")
openmmml = pytest.importorskip("openmmml", reason="openmmml is not installed (extra 'openmm')")
app = pytest.importorskip("openmm.app")

ENGINES = [
    pytest.param(
        "torchforce",
        marks=pytest.mark.skipif(
            engines.torchforce_problem() is not None, reason=str(engines.torchforce_problem())
        ),
    ),
    "python",
]
REGION = [3, 4, 5]


@pytest.fixture(scope="module")
def potential() -> Potential:
    return make_potential()


def mm_system(topology: Any, periodic: bool) -> Any:
    if periodic:
        topology.setPeriodicBoxVectors(np.eye(3) * 2.5)
    return app.ForceField("amber14/tip3p.xml").createSystem(
        topology,
        nonbondedMethod=app.CutoffPeriodic if periodic else app.NoCutoff,
        nonbondedCutoff=1.0,
        rigidWater=False,
        useDispersionCorrection=False,  # a sum over all atoms: it is no one region's
    )


def energy_of(system: Any, atoms: Atoms, **parameters: float) -> float:
    """kJ/mol, on the Reference platform (float64)."""
    context = openmm.Context(
        system,
        openmm.VerletIntegrator(1e-3),
        openmm.Platform.getPlatformByName("Reference"),
    )
    context.setPositions(atoms.positions / nm_in_angstrom)
    for name, value in parameters.items():
        context.setParameter(name, value)
    return float(context.getState(getEnergy=True).getPotentialEnergy()._value)


def by_hand(potential: Potential, topology: Any, atoms: Atoms, periodic: bool) -> float:
    """MM of all, minus MM within the region, plus ML of the region; kJ/mol."""
    everything = energy_of(mm_system(topology, periodic), atoms)
    alone, _ = three_waters()
    modeller = app.Modeller(alone, atoms.positions * 0.1)
    modeller.delete([r for r in modeller.topology.residues() if r.index != 1])
    within = energy_of(mm_system(modeller.topology, periodic), atoms[REGION])
    region = atoms[REGION]
    if periodic:
        region.set_cell([25.0] * 3)
        region.pbc = True
    learned = TensorNetCalculator(potential, dtype="float64").evaluate([region])[0]["energy"]
    assert abs(within) > 1e-3
    return everything - within + learned / kj_per_mol_in_ev


@pytest.mark.parametrize("periodic", [False, True])
@pytest.mark.parametrize("engine", ENGINES)
def test_mechanical_embedding(engine: str, periodic: bool, potential: Potential) -> None:
    topology, atoms = three_waters()
    system = mm_system(topology, periodic)
    mixed = openmmml.MLPotential("tensormd", modelPath=potential).createMixedSystem(
        topology, system, REGION, engine=engine, dtype="float64"
    )
    expected = by_hand(potential, topology, atoms, periodic)
    assert energy_of(mixed, atoms) == pytest.approx(expected, abs=1e-5 * len(atoms))


@pytest.mark.parametrize("interpolate", [False, True])
@pytest.mark.parametrize(
    ("region", "cut"),
    [
        ([3, 4], "1 bond(s): 3 (O of HOH 2)-5 (H2 of HOH 2);"),
        ([4, 3, 0, 1, 2], "1 bond(s): 3 (O of HOH 2)-5 (H2 of HOH 2);"),
        ([5], "1 bond(s): 3 (O of HOH 2)-5 (H2 of HOH 2);"),
        ([0, 6], "4 bond(s): 0 (O of HOH 1)-1 (H1 of HOH 1), 0 (O of HOH 1)-2 (H2 of HOH 1), "),
    ],
)
def test_a_region_that_cuts_bonds(
    region: list[int], cut: str, interpolate: bool, potential: Potential
) -> None:
    topology, _ = three_waters()
    learned = openmmml.MLPotential("tensormd", modelPath=potential)
    with pytest.raises(ValueError, match=re.escape(cut)):
        create_force(potential, topology, atoms=region)
    if hasattr(learned, "getSupportedEmbeddings"):
        pytest.skip("this openmm-ml adds link atoms: see test_openmm_links.py")
    with pytest.raises(ValueError, match=re.escape(cut)):
        learned.createMixedSystem(
            topology, mm_system(topology, False), region, interpolate=interpolate
        )


@pytest.mark.parametrize("region", [[5, 3, 4], [0, 1, 2, 6, 7, 8], range(9)])
def test_regions_of_whole_molecules(region: Sequence[int], potential: Potential) -> None:
    topology, atoms = three_waters()
    system = openmmml.MLPotential("tensormd", modelPath=potential).createMixedSystem(
        topology, mm_system(topology, False), region, dtype="float64"
    )
    assert np.isfinite(energy_of(system, atoms))


@pytest.mark.parametrize("engine", ENGINES)
def test_interpolation_ends_in_both_states(engine: str, potential: Potential) -> None:
    topology, atoms = three_waters()
    system = mm_system(topology, False)
    mixed = openmmml.MLPotential("tensormd", modelPath=potential).createMixedSystem(
        topology, system, REGION, interpolate=True, engine=engine, dtype="float64"
    )
    classical = energy_of(system, atoms)
    learned = by_hand(potential, topology, atoms, False)
    assert abs(classical - learned) > 1
    assert energy_of(mixed, atoms, lambda_interpolate=0) == pytest.approx(classical, abs=1e-4)
    assert energy_of(mixed, atoms, lambda_interpolate=1) == pytest.approx(learned, abs=1e-4)
    middle = energy_of(mixed, atoms, lambda_interpolate=0.5)
    assert middle == pytest.approx((classical + learned) / 2, abs=1e-4)


# Processes of their own


def python(code: str, folder: Path, **environment: str) -> str:
    """Output of a process that runs the code, in which OpenMM is not imported yet."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(
    "first", ["from openmmml import MLPotential", "import openmm", "import torch"]
)
def test_any_module_may_be_imported_first(
    first: str, engine: str, potential: Potential, tmp_path: Path
) -> None:
    _, atoms = three_waters()
    save_potential(potential, tmp_path / "model.safetensors")
    write_three_waters(tmp_path / "three.pdb")
    code = f"""
{first}
from openmmml import MLPotential
import openmm
from openmm import app
pdb = app.PDBFile("three.pdb")
potential = MLPotential("tensormd", modelPath="model.safetensors")
system = potential.createSystem(pdb.topology, charge=0, engine={engine!r}, dtype="float64")
context = openmm.Context(
    system, openmm.VerletIntegrator(1e-3), openmm.Platform.getPlatformByName("Reference")
)
context.setPositions(pdb.positions)
print(context.getState(getEnergy=True).getPotentialEnergy()._value)
"""
    atoms.positions = atoms.positions.round(3)  # as in the file
    expected = TensorNetCalculator(potential, dtype="float64").evaluate([atoms])[0]["energy"]
    found = float(python(code, tmp_path).split()[-1]) * kj_per_mol_in_ev
    assert found == pytest.approx(expected, abs=1e-4)


def test_openmm_ml_where_torch_is_broken(tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("raise ImportError('libtorch.so is not there')")
    code = """
import openmmml
try:
    openmmml.MLPotential("tensormd", modelPath="model.safetensors")
except ImportError as error:
    print(error)
from tensormd.calculators import openmm_versions
try:
    from tensormd.calculators import create_force
except ImportError as error:
    print(error)
"""
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    said = python(code, tmp_path, PYTHONPATH=path).splitlines()
    assert said == [
        "libtorch.so is not there",
        "tensormd.calculators.create_force needs torch, which fails: ImportError: "
        "libtorch.so is not there",
    ]


def test_kernels_that_cannot_be_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    if engines.torchforce_problem() is not None:
        pytest.skip(str(engines.torchforce_problem()))
    platform = type("Empty", (), {"supportsKernels": lambda self, names: False})()
    failure = "Error loading library /none/libOpenMMTorchReference.so: libtorch.so: no such file"
    for name, value in (
        ("getPlatformByName", lambda name: platform),
        ("getPluginLoadFailures", lambda: [failure]),
    ):
        monkeypatch.setattr(openmm.Platform, name, staticmethod(value))
    engines._kernels_problem.cache_clear()
    try:
        with pytest.raises(ValueError, match=r"no kernels for it .*/none/libOpenMMTorchReference"):
            engines.choose_force_class("torchforce")
        assert engines.choose_force_class("auto") == "python"
    finally:
        engines._kernels_problem.cache_clear()
