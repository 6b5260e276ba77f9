"""`tensormd evaluate` compares quantities that are both predicted and labelled, and names them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import read, write
from support.md_runs import ethanol, run, waters, write_tiny_potential

from tensormd.calculators import PotentialCalculator
from tensormd.models import DipoleReadout, PolarizabilityReadout, load_potential, save_potential
from tensormd.models.units import bohr3_in_e2_angstrom2_per_ev, debye_in_e_angstrom


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write_tiny_potential(tmp_path / "tiny.safetensors")
    return tmp_path


def write_polar(here: Path) -> PotentialCalculator:
    """A model of dipole and polarizability alone, with random weights."""
    potential = load_potential(here / "tiny.safetensors")
    torch.manual_seed(3)
    network = potential.representation
    potential.heads["dipole"] = DipoleReadout(network)
    potential.heads["polarizability"] = PolarizabilityReadout(network)
    potential.metadata |= {"trained_on": ["dipole", "polarizability"]}
    save_potential(potential, here / "polar.safetensors")
    return PotentialCalculator(potential, dtype="float64")


def evaluate(checkpoint: str, frames: list[Atoms], capsys: pytest.CaptureFixture[str]) -> Any:
    write("frames.extxyz", frames)
    shutil.rmtree("out", ignore_errors=True)
    options = ["--dtype", "float64", "-o", "out"]
    assert run("evaluate", checkpoint, "frames.extxyz", *options) == 0
    found = json.loads(Path("out/evaluation.json").read_text())
    said = capsys.readouterr().out
    assert all(line in said.splitlines() for line in found["skipped"])
    return found


def test_energies_alone(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    frames = [ethanol(seed) for seed in range(5)]
    results = PotentialCalculator("tiny.safetensors", dtype="float64").evaluate(frames)
    shifts = [0.01, -0.02, 0.05, 0.03, 0.0]
    for atoms, result, shift in zip(frames, results, shifts, strict=True):
        atoms.info["energy"] = result["energy"] - shift
    found = evaluate("tiny.safetensors", frames, capsys)
    assert found["energy_mev"]["mae"] == pytest.approx(22, rel=1e-4)
    assert found["force_mev_per_angstrom"] is None
    assert found["skipped"] == ["forces: not labelled in 5 of 5 frames"]
    assert [each["frame"] for each in found["worst_frames"]] == [2, 3, 1, 0, 4]
    worst: Any = read("out/worst.extxyz", 0)
    error = worst.info["predicted_energy"] - worst.info["reference_energy"]
    assert error == pytest.approx(0.05, rel=1e-4)


def test_labels_of_some_frames(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Frame 1 has no label, frame 2 an energy alone, frame 3 a stress."""
    crystal = waters()
    frames = [ethanol(0), ethanol(1), ethanol(2), crystal]
    results = PotentialCalculator("tiny.safetensors", dtype="float64").evaluate(frames)
    for k, labels in {0: ("energy", "forces"), 2: ("energy",), 3: ("energy", "stress")}.items():
        known = {name: results[k][name] + 0.001 for name in labels}
        frames[k].calc = SinglePointCalculator(frames[k], **known)
    found = evaluate("tiny.safetensors", frames, capsys)
    assert {name: each["frames"] for name, each in found["errors"].items()} == {
        "energy": 3,
        "forces": 1,
        "stress": 1,
    }
    for each in found["errors"].values():
        assert each["mae"] == pytest.approx(1.0, rel=1e-3)
    assert found["errors"]["stress"]["compared"] == 6
    assert found["skipped"] == [
        "energy: not labelled in 1 of 4 frames",
        "forces: not labelled in 3 of 4 frames",
    ]
    assert [each["frame"] for each in found["worst_frames"]] == [0]


def test_dipoles_and_polarizabilities(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    calculator = write_polar(here)
    frames = [ethanol(seed) for seed in range(4)]
    for atoms, result in zip(frames, calculator.evaluate(frames), strict=True):
        atoms.info["dipole"] = result["dipole"] * 1.1
        if atoms is not frames[3]:
            atoms.info["polarizability"] = result["polarizability"] - 0.02 * np.eye(3)
    frames[0].info["energy"] = -1.0
    found = evaluate("polar.safetensors", frames, capsys)
    errors = found["errors"]
    assert {name: (each["unit"], each["frames"]) for name, each in errors.items()} == {
        "dipole": ("D", 4),
        "dipole_norm": ("D", 4),
        "polarizability": ("a0^3", 3),
        "polarizability_isotropic": ("a0^3", 3),
        "polarizability_anisotropy": ("a0^3", 3),
    }
    lengths = [np.linalg.norm(atoms.info["dipole"]) / 11 for atoms in frames]
    expected = np.mean(lengths) / debye_in_e_angstrom
    assert errors["dipole_norm"]["mae"] == pytest.approx(expected, rel=1e-5)
    expected = 0.02 / bohr3_in_e2_angstrom2_per_ev
    assert errors["polarizability_isotropic"]["bias"] == pytest.approx(expected, rel=1e-5)
    assert errors["polarizability_anisotropy"]["mae"] < 1e-5 * expected
    assert found["skipped"] == [
        "energy: labelled, but the model was trained on no energies",
        "polarizability: not labelled in 1 of 4 frames",
    ]
    order = np.argsort(lengths)[::-1].tolist()
    assert [each["frame"] for each in found["worst_frames"]] == order
    for atoms in frames:  # lengths alone, as QM9 has them
        atoms.info = {"length": float(np.linalg.norm(atoms.info["dipole"]))}
    write("lengths.extxyz", frames)
    options = ["--label", "dipole_norm=length", "--dtype", "float64", "-o", "again"]
    assert run("evaluate", "polar.safetensors", "lengths.extxyz", *options) == 0
    again = json.loads(Path("again/evaluation.json").read_text())["errors"]
    assert list(again) == ["dipole_norm"]
    for key in ("mae", "rmse", "largest", "bias"):
        assert again["dipole_norm"][key] == pytest.approx(errors["dipole_norm"][key], rel=1e-6)


def test_a_dipole_of_a_crystal_is_not_compared(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_polar(here)
    frames = [ethanol(), waters()]
    for atoms in frames:
        atoms.info["dipole"] = np.ones(3)
    found = evaluate("polar.safetensors", frames, capsys)
    assert found["errors"]["dipole"]["frames"] == 1
    assert "dipole: labelled, but is not defined in 1 periodic frames" in found["skipped"]
