"""The fused backend against the network itself, in OpenMM."""

from __future__ import annotations

import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from support.backend_cases import agree, ethanol, toy
from support.openmm_systems import ENGINES, evaluate, make_system, openmm

from tensormd.calculators import TensorNetCalculator, create_force
from tensormd.calculators import openmm_versions as engines
from tensormd.models import (
    Committee,
    Potential,
)
from tensormd.models.units import kj_per_mol_in_ev, nm_in_angstrom

pytest.importorskip("numba", reason="numba is not installed")


@pytest.fixture(scope="module")
def potential() -> Potential:
    return toy()


def openmm_results(system: Any, atoms: Atoms) -> dict[str, Any]:
    energy, forces = evaluate(system, atoms, "Reference")
    return {"energy": energy, "forces": forces}


def bare(results: dict[str, Any]) -> dict[str, Any]:
    return {name: results[name] for name in ("energy", "forces")}


def box() -> Atoms:
    atoms = bulk("C", "diamond", a=3.6, cubic=True)
    atoms.rattle(0.05, seed=1)
    return atoms


@pytest.mark.parametrize("members", [1, 2])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("engine", ENGINES)
def test_openmm(engine: str, dtype: str, members: int) -> None:
    potential = toy() if members == 1 else Committee([toy(seed) for seed in range(members)])
    for atoms in (ethanol(), box()):
        force = create_force(
            potential,
            atoms.numbers,
            engine=engine,
            dtype=dtype,
            backend="fused",
            periodic=bool(atoms.pbc.all()),
        )
        calculator = TensorNetCalculator(potential, backend="reference", dtype="float64")
        expected = bare(calculator.evaluate([atoms])[0])
        agree(openmm_results(make_system(atoms, force), atoms), expected, dtype)


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("engine", ENGINES)
def test_openmm_backend_is_what_was_asked_for(
    engine: str, backend: str, potential: Potential, caplog: pytest.LogCaptureFixture
) -> None:
    atoms = ethanol()
    with caplog.at_level(logging.INFO):
        force = create_force(potential, atoms.numbers, engine=engine, backend=backend)
    if engine == "torchforce":
        plain = "runs plain torch operators: backend is 'reference'" in caplog.text
        assert plain == (backend == "reference")
    found = openmm_results(make_system(atoms, force), atoms)
    expected = TensorNetCalculator(potential, backend=backend).evaluate([atoms])[0]
    # What differs otherwise is far below a table's error: the last digits of nm.
    assert np.abs(found["forces"] - expected["forces"]).max() <= 1e-5


@pytest.mark.skipif(engines.torchforce_problem() is not None, reason="TorchForce does not run")
@pytest.mark.parametrize("members", [1, 2])
def test_xml_in_another_process(members: int, tmp_path: Path) -> None:
    potential = toy() if members == 1 else Committee([toy(seed) for seed in range(members)])
    atoms = ethanol()
    system = make_system(atoms, create_force(potential, atoms.numbers, engine="torchforce"))
    text = openmm.XmlSerializer.serialize(system)
    here = openmm_results(openmm.XmlSerializer.deserialize(text), atoms)
    np.testing.assert_array_equal(here["forces"], openmm_results(system, atoms)["forces"])
    assert np.abs(here["forces"]).max() > 0.1
    (tmp_path / "system.xml").write_text(text)
    np.save(tmp_path / "positions.npy", atoms.positions / nm_in_angstrom)
    code = """
import numpy as np, torch, openmm, openmmtorch, sys
if sys.argv[1] == "with":
    import tensormd.calculators
system = openmm.XmlSerializer.deserialize(open("system.xml").read())
context = openmm.Context(system, openmm.VerletIntegrator(5e-4),
                         openmm.Platform.getPlatformByName("Reference"))
context.setPositions(np.load("positions.npy"))
forces = context.getState(getForces=True).getForces(asNumpy=True)._value
np.save("forces.npy", np.array(forces))
"""
    for registered in ("with", "without"):
        done = subprocess.run(
            [sys.executable, "-c", code, registered],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )
        if registered == "without":
            assert done.returncode != 0
            assert "tensormd::evaluate" in done.stderr
            continue
        assert done.returncode == 0, done.stderr
        there = np.load(tmp_path / "forces.npy") * kj_per_mol_in_ev / nm_in_angstrom
        np.testing.assert_array_equal(there, here["forces"])
