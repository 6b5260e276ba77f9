"""Helpers of the tests of `tensormd train`: small data, configurations, comparison of runs."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import write
from support.md_runs import ethanol

from tensormd.calculators import PotentialCalculator
from tensormd.md_runs.runs.files import read_table
from tensormd.models import load_potential

SMALL: dict[str, Any] = {
    "data": {"train": "frames.extxyz", "split": [8, 4]},
    "model": {
        "tensornet": {
            "channels": 8,
            "layers": 1,
            "radial_functions": 8,
            "cutoff": 4.0,
            "max_number": 10,
        }
    },
    "training": {
        "epochs": 6,
        "batch": 4,
        "warm_up_steps": 2,
        "learning_rate": 0.01,
        "ema_decay": 0.9,
        "validate_every": 2,
        "compile": False,
        "dtype": "float64",
    },
    "machine": {"threads": 1, "device": "cpu"},
}


def labelled(
    count: int, teacher: str | Path, offsets: dict[str, float] | None = None
) -> list[Atoms]:
    """Distorted ethanols with a potential's energies and forces, and energies of elements."""
    structures = [ethanol(seed) for seed in range(count)]
    for atoms in structures:
        atoms.rattle(0.05, rng=np.random.default_rng(len(atoms)))
    results = PotentialCalculator(teacher, dtype="float64", backend="reference").evaluate(
        structures
    )
    for atoms, result in zip(structures, results, strict=True):
        energy = result["energy"] + sum((offsets or {}).get(s, 0.0) for s in atoms.symbols)
        atoms.calc = SinglePointCalculator(atoms, energy=energy, forces=result["forces"])
    return structures


def write_frames(path: Path, frames: Sequence[Atoms]) -> Path:
    write(path, list(frames), format="extxyz")
    return path


def configuration(path: Path, **changes: Any) -> Path:
    """`SMALL` with other values (section={key: value}; None drops a key), as a file."""
    content = {
        section: {
            key: value
            for key, value in (SMALL.get(section, {}) | changes.get(section, {})).items()
            if value is not None
        }
        for section in {**SMALL, **changes}
    }
    path.write_text(yaml.safe_dump(content))
    return path


def command(*arguments: str | Path) -> list[str]:
    return [sys.executable, "-m", "tensormd.md_runs.command.main", "train", *map(str, arguments)]


def start(*arguments: str | Path, cwd: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command(*arguments), cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def log_of(folder: Path) -> dict[str, list[float]]:
    return read_table(folder / "log.csv")


def assert_same_run(one: Path, two: Path) -> None:
    """Logs but for the time, and the weights of every checkpoint, to the last bit."""
    a, b = log_of(one), log_of(two)
    assert a.keys() == b.keys()
    for name in a.keys() - {"seconds"}:
        assert a[name] == b[name], name
    assert len(set(a["loss"])) == len(a["loss"]) > 1
    for name in ("last.safetensors", "best.safetensors"):
        x, y = (load_potential(folder / name).state_dict() for folder in (one, two))
        assert all(torch.equal(x[key], y[key]) for key in x), name
