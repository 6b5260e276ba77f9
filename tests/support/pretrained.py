"""The errors and the energy drift of the shipped checkpoints."""

from __future__ import annotations

from typing import Any

import numpy as np
from ase import Atoms
from support.data import data_file
from support.paths import ROOT

from tensormd.calculators import PotentialCalculator
from tensormd.models.units import kcal_per_mol_in_ev

FOLDER = ROOT / "models" / "pretrained"


def errors_on_test_frames(calculator: PotentialCalculator) -> tuple[float, float]:
    """Mean absolute errors of energies, meV, and forces, meV/A, on 1,000 frames of ethanol."""
    with np.load(data_file("rmd17/rmd17_ethanol_test_01.npz")) as data:
        numbers, positions = data["nuclear_charges"].astype(int), data["coords"]
        energies = data["energies"] * kcal_per_mol_in_ev
        forces = data["forces"] * kcal_per_mol_in_ev
    results: list[dict[str, Any]] = []
    for start in range(0, len(positions), 100):
        frames = [Atoms(numbers, each) for each in positions[start : start + 100]]
        results += calculator.evaluate(frames)
    energy_mae = 1e3 * np.abs([r["energy"] for r in results] - energies).mean()
    force_mae = 1e3 * np.abs(np.array([r["forces"] for r in results]) - forces).mean()
    assert len(results) == 1000
    return float(energy_mae), float(force_mae)


def drift_of(times_ps: list[float], energies: list[float], atoms: int) -> float:
    """Slope of the total energy, meV/atom/ps."""
    return 1e3 * float(np.polyfit(times_ps, energies, 1)[0]) / atoms
