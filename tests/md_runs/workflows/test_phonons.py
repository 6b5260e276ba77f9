"""Phonons against ASE's own, and their sums."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms, units
from ase.build import bulk, molecule
from ase.calculators.emt import EMT
from ase.phonons import Phonons
from scipy.integrate import trapezoid
from support.md_runs import run, write_tiny_potential

from tensormd.md_runs.reports.runs import write_report
from tensormd.md_runs.runs.folder import RunFolder
from tensormd.md_runs.workflows.phonons import PhononsSettings, force_constants, phonons
from tensormd.md_runs.workflows.single import Job

phonopy = pytest.importorskip("phonopy", reason="phonopy is not installed")

THZ = 1e12 * units._hplanck / units._e
"""In eV."""


def alloy() -> Atoms:
    """Four atoms, cubic."""
    atoms = bulk("Cu", "fcc", a=3.75, cubic=True)
    atoms.symbols[0] = "Au"
    atoms.calc = EMT()
    return atoms


def test_frequencies_are_those_of_ase(tmp_path: Path) -> None:
    """At wave vectors that fit the supercell, where no interpolation enters."""
    atoms = alloy()
    other = Phonons(
        atoms, EMT(), supercell=(2, 2, 2), delta=0.01, name=str(tmp_path / "displaced")
    )
    other.run()
    other.read(acoustic=True)
    points = np.array([[0, 0, 0], [0.5, 0, 0], [0.5, 0.5, 0], [0.5, 0.5, 0.5]])
    expected = other.band_structure(points, verbose=False) / THZ
    found = force_constants(atoms, (2, 2, 2), 0.01)
    found.run_qpoints(points)
    frequencies = found.qpoints.frequencies
    assert expected.max() > 4
    assert len(found.displacements) < 3 * len(atoms)  # symmetry
    assert np.abs(frequencies[0, :3]).max() < 1e-6  # those of ASE are 0.01, of rounding
    np.testing.assert_allclose(frequencies.flat[3:], expected.flat[3:], atol=1e-3)


def test_a_run(tmp_path: Path) -> None:
    atoms = alloy()
    job = Job(atoms, tmp_path / "run", {"structure": {"formula": "Cu3Au"}})
    results = phonons(job, PhononsSettings(supercell=(2, 2, 2), mesh=20.0))
    assert results["atoms"] == 4
    assert results["imaginary"] is False
    assert results["max_stress_gpa"] > 0.1
    dos = results["dos"]
    states = trapezoid(dos["states_per_thz"], dos["frequencies_thz"])
    assert states == pytest.approx(12, rel=0.02)
    mean = trapezoid(
        np.array(dos["frequencies_thz"]) * dos["states_per_thz"], dos["frequencies_thz"]
    )
    assert results["zero_point_ev"] == pytest.approx(0.5 * mean * THZ, rel=0.02)
    thermal = results["thermal"]
    assert thermal["temperatures_k"][-1] == 1000
    assert thermal["heat_capacity_ev_per_k"][-1] == pytest.approx(12 * units.kB, rel=0.01)
    slope = np.gradient(thermal["free_energy_ev"], thermal["temperatures_k"])
    np.testing.assert_allclose(-slope[20], thermal["entropy_ev_per_k"][20], rtol=1e-3)
    bands = results["bands"]
    assert bands["labels"][0] == ["G", "X"]
    assert np.abs(bands["frequencies_thz"][0][0][:3]).max() < 1e-3  # acoustic
    for frequencies, along in zip(bands["frequencies_thz"], bands["distances"], strict=True):
        assert np.shape(frequencies) == (len(along), 12)
    page, numbers = write_report(tmp_path / "run")
    assert numbers["highest_thz"] == results["highest_thz"]
    assert "Phonons: Cu3Au" in page.read_text()
    again = phonopy.load(tmp_path / "run" / "phonopy_params.yaml")
    again.run_qpoints([[0.5, 0, 0]])
    np.testing.assert_allclose(
        again.qpoints.frequencies[0], bands["frequencies_thz"][0][-1], atol=1e-4
    )
    RunFolder.discard(tmp_path / "run")  # it holds nothing that is not a run's own


def test_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Random weights: every crystal is unstable, which is said."""
    monkeypatch.chdir(tmp_path)
    write_tiny_potential(tmp_path / "tiny.safetensors")
    bulk("C", "diamond", a=3.57).write("c.extxyz")
    molecule("CO").write("co.xyz")
    how = ("-m", "tiny.safetensors", "--backend", "reference")
    options = ("--supercell", "2,2,2", "--mesh", "10")
    assert run("phonons", "c.extxyz", *how, *options, "--json") == 0
    captured = capsys.readouterr()
    results = json.loads(captured.out)
    assert results["supercell"] == [2, 2, 2]
    assert results["imaginary"] is True
    assert f"imaginary modes down to i {-results['lowest_thz']:.2f} THz" in captured.err
    assert "relax it first (tensormd relax --cell)" in captured.err
    for arguments, message in (
        (["c.extxyz", "--supercell", "2,2"], "--supercell is '2,2': expected three numbers"),
        (["c.extxyz", "--supercell", "0,1,1"], "--supercell is 0,1,1"),
        (["c.extxyz", "--displacement", "0.5"], "--displacement is 0.5 A: expected at most 0.2"),
        (["c.extxyz", "--mesh", "0"], "--mesh is 0.0 A: expected a finite number above 0"),
        (["co.xyz"], "phonons need a structure that is periodic in all three directions"),
        (["c.extxyz"], "c_phonons exists already"),
    ):
        assert run("phonons", *arguments, *how) == 2
        assert message in capsys.readouterr().err


def test_without_phonopy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"phonopy: pip install 'tensormd\[phonons\]'"):
        phonons(Job(alloy(), tmp_path / "run", {}), PhononsSettings())
    assert not (tmp_path / "run").exists()
