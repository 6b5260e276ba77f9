"""Benchmarks of accuracy with networks and frames that take a second."""

from __future__ import annotations

import dataclasses
import importlib
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from ase.build import molecule
from support.paths import ROOT

TRAIN, TEST = 16, 9
MOLECULES = ("ethanol", "uracil")


@pytest.fixture
def accuracy(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The benchmark with networks and frames that take a second."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    module = importlib.import_module("accuracy")
    small: dict[str, Any] = {}
    for name, setting in module.SETTINGS.items():
        network = setting.network | {"channels": 4, "layers": 1, "radial_functions": 4}
        if name == "tdn":
            network["lmax"] = 1
        training = dataclasses.replace(
            setting.training, epochs=2, validate_every=1, warm_up_steps=1, compile=False
        )
        small[name] = module.Setting(network, training)
    monkeypatch.setattr(module, "SETTINGS", small)
    monkeypatch.setattr(module, "SIZES", (TRAIN - 4, 4))
    return module


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Water on springs under the names of two molecules of the set, kcal/mol and Angstrom."""
    folder = tmp_path / "rmd17"
    folder.mkdir()
    atoms = molecule("H2O")
    for seed, name in enumerate(MOLECULES):
        for part, count in (("train", TRAIN), ("test", TEST)):
            random = np.random.default_rng([seed, count])
            moves = random.normal(scale=0.05, size=(count, 3, 3))
            np.savez(
                folder / f"rmd17_{name}_{part}_01.npz",
                nuclear_charges=atoms.numbers.astype(np.uint8),
                coords=atoms.positions + moves,
                energies=-100.0 + 300.0 * np.square(moves).sum((1, 2)),
                forces=-600.0 * moves,
            )
    return tmp_path
