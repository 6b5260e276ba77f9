"""benchmarks/acac.py on a few frames: it trains, resumes, tests and stores its errors."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from ase import Atoms
from ase.build import molecule
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import write
from support.paths import ROOT

from tensormd.md_runs.evaluate.evaluation import evaluate_checkpoint


@pytest.fixture
def acac(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The benchmark with a network that takes a second."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    module = importlib.import_module("acac")
    small = {
        "data": {"split": [8, 4]},
        "model": {"tensornet": {"channels": 4, "layers": 1, "radial_functions": 4}},
        "training": {"batch": 4, "warm_up_steps": 1, "validate_every": 1, "backend": "plain"},
    }
    monkeypatch.setattr(module, "SETTINGS", small)
    return module


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Acids on springs, and their atoms; of the curves energies alone are labelled."""
    folder = tmp_path / "acac"
    folder.mkdir()

    def frames(count: int, seed: int, forces: bool) -> list[Atoms]:
        found = []
        for k in range(count):
            atoms = molecule("HCOOH", cell=[50.0] * 3, pbc=False)
            moves = np.random.default_rng([seed, k]).normal(scale=0.05, size=(5, 3))
            atoms.positions += moves
            labels = {"energy": -5000.0 + 5 * float(np.square(moves).sum())}
            if forces:
                labels["forces"] = -10 * moves
            atoms.calc = SinglePointCalculator(atoms, **labels)
            found.append(atoms)
        return found

    for seed, (name, count) in enumerate(
        {"train_300K": 12, "test_MD_300K": 5, "test_MD_600K": 6}.items()
    ):
        write(folder / f"{name}.xyz", frames(count, seed, True), format="extxyz")
    write(folder / "test_dihedral.xyz", frames(4, 8, False), format="extxyz")
    write(folder / "test_H_transfer.xyz", frames(3, 9, False), format="extxyz")
    atoms = [Atoms(symbol) for symbol in "HCO"]
    for atom, energy in zip(atoms, (-13.6, -1000.0, -2000.0), strict=True):
        atom.calc = SinglePointCalculator(atom, energy=energy)
    write(folder / "isolated_atoms.xyz", atoms, format="extxyz")
    return folder


def test_one_command(
    acac: ModuleType, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    work, out = tmp_path / "work", tmp_path / "acac.json"
    command = ["--data", str(data), "--work", str(work), "--out", str(out)]
    acac.main([*command, "--epochs", "1"])
    first = json.loads(out.read_text())
    capsys.readouterr()
    acac.main([*command, "--epochs", "2"])  # goes on
    found = json.loads(out.read_text())
    assert (first["steps"], found["steps"]) == (2, 4)
    assert first["rmse"] != found["rmse"]
    checkpoint = work / "tensornet_seed0" / "last.safetensors"
    for name in ("600 K", "proton"):
        file = acac.TESTS[name]
        evaluated = evaluate_checkpoint(checkpoint, data / file)
        errors = evaluated.energy_errors
        rmse = found["rmse"][name]
        assert rmse["energy"] == pytest.approx(1e3 * np.sqrt(np.square(errors).mean()))
        assert rmse["energy_curve"] == pytest.approx(1e3 * errors.std())
        assert ("forces" in rmse) == ("MD" in file)
    table = capsys.readouterr().out.splitlines()
    assert f"{found['rmse']['600 K']['forces']:.2f}" in table[2]
    assert table[3].startswith("| BOTNet (quoted, not checked) | 0.89 | 6.3 | 6.2 | 29.8 |")


def test_a_file_that_is_missing(
    acac: ModuleType, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (data / "test_dihedral.xyz").unlink()
    with pytest.raises(SystemExit):
        acac.main(["--data", str(data)])
    assert "test_dihedral.xyz is not there" in capsys.readouterr().err
