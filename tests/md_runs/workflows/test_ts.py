"""Transition states against one known by symmetry."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.build import molecule
from support.md_runs import Springs, run

from tensormd.calculators import PotentialCalculator
from tensormd.md_runs.reports.runs import write_report
from tensormd.md_runs.runs.folder import RunFolder
from tensormd.md_runs.workflows.single import Job
from tensormd.md_runs.workflows.ts import TsSettings, ts
from tensormd.md_runs.workflows.vibrations import VibrationsSettings, vibrations


def ammonia(height: float) -> Atoms:
    """NH3 with its nitrogen so many times as high as at rest above the hydrogens."""
    atoms = molecule("NH3")
    hydrogens = atoms.positions[1:, 2].mean()
    atoms.positions[0, 2] = hydrogens + height * (atoms.positions[0, 2] - hydrogens)
    atoms.calc = PotentialCalculator("organic", dtype="float64", backend="reference")
    return atoms


def test_without_sella(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    molecule("NH3").write("nh3.xyz")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert run("ts", "nh3.xyz") == 2
    assert "sella: pip install 'tensormd[ts]'" in capsys.readouterr().err
    assert not (tmp_path / "nh3_ts").exists()


def test_inversion_of_ammonia(tmp_path: Path) -> None:
    """The saddle is the planar molecule."""
    pytest.importorskip("sella", reason="sella is not installed")
    before = dict(os.environ)
    steps: list[int] = []
    job = Job(ammonia(0.4), tmp_path / "run", {"structure": {"formula": "NH3"}})
    results = ts(job, TsSettings(fmax=1e-3), lambda step, change, fmax: steps.append(step))
    assert dict(os.environ) == before
    assert results["converged"] is True
    assert results["imaginary"] == 1
    assert results["frequencies_inv_cm"][0] < -300
    normal = np.cross(*(job.atoms.positions[2:] - job.atoms.positions[1]))
    height = (job.atoms.positions[0] - job.atoms.positions[1]) @ normal / np.linalg.norm(normal)
    assert abs(height) < 0.01
    planar = ammonia(0.0)
    other = vibrations(Job(planar, tmp_path / "planar", {}), VibrationsSettings())
    assert results["energy_ev"] == pytest.approx(other["energy_ev"], abs=1e-4)
    np.testing.assert_allclose(
        results["frequencies_inv_cm"], other["frequencies_inv_cm"], rtol=0.01, atol=5
    )
    assert steps[-1] == results["steps"]
    page, numbers = write_report(tmp_path / "run")
    assert numbers["imaginary"] == 1
    assert "Transition state: NH3" in page.read_text()
    RunFolder.discard(tmp_path / "run")


def test_refusals(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("sella", reason="sella is not installed")
    monkeypatch.chdir(tmp_path)
    molecule("NH3", cell=[8, 8, 8], pbc=True).write("box.extxyz")
    molecule("NH3").write("nh3.xyz")
    for arguments, message in (
        (["box.extxyz"], "transition states are those of a molecule, but pbc is"),
        (["nh3.xyz", "--fmax", "0"], "--fmax is 0.0 eV/A"),
        (["nh3.xyz", "--steps", "0"], "--steps is 0: expected 1 or more"),
    ):
        assert run("ts", *arguments) == 2
        assert message in capsys.readouterr().err
    atoms = molecule("NH3")
    atoms.calc = Springs(atoms.positions)
    with pytest.raises(ValueError, match="expected a PotentialCalculator"):
        ts(Job(atoms, tmp_path / "run", {}), TsSettings())
