"""Helpers of the tests of tensormd.md_runs."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

import numpy as np
import torch
from ase import Atoms
from ase.build import molecule
from ase.calculators.calculator import Calculator, all_changes

from tensormd.md_runs.command.main import main
from tensormd.models import EnergyReadout, Potential, TensorNet, save_potential


def write_tiny_potential(path: Path, seed: int = 0) -> Path:
    """A TensorNet with random weights, for H, C and O."""
    torch.manual_seed(seed)
    network = TensorNet(channels=8, layers=1, radial_functions=8, cutoff=4.0, max_number=10)
    potential = Potential(
        network, EnergyReadout(8), elements=[1, 6, 8], scale=3.0, metadata={"name": "tiny"}
    )
    save_potential(potential, path)
    return path


def ethanol(seed: int = 0) -> Atoms:
    atoms = molecule("CH3CH2OH")
    atoms.rattle(0.03, seed=seed)
    return atoms


def waters() -> Atoms:
    """Four water molecules in a triclinic cell smaller than twice the cutoff of the model."""
    atoms = Atoms()
    for shift in ((0, 0, 0), (3.2, 0, 0.3), (0, 3.2, 0.6), (3.2, 3.2, 0)):
        water = molecule("H2O")
        water.translate(shift)
        atoms += water
    atoms.set_cell([[6.4, 0, 0], [0.9, 6.4, 0], [0.4, 0.7, 5.2]])
    atoms.pbc = True
    return atoms


class Springs(Calculator):
    """Every atom on a spring to its place: E = k/2 sum |r - r0|^2 (eV/A^2)."""

    implemented_properties = ["energy", "free_energy", "forces"]  # noqa: RUF012

    def __init__(self, places: np.ndarray, k: float = 5.0) -> None:
        super().__init__()
        self.places, self.k = places.copy(), k

    def calculate(self, atoms=None, properties=None, system_changes=all_changes):
        super().calculate(atoms, properties, system_changes)
        away = self.atoms.positions - self.places
        energy = 0.5 * self.k * float((away**2).sum())
        self.results = {"energy": energy, "free_energy": energy, "forces": -self.k * away}


class IdealGas(Calculator):
    """No interaction at all."""

    implemented_properties = ["energy", "free_energy", "forces", "stress"]  # noqa: RUF012

    def calculate(self, atoms=None, properties=None, system_changes=all_changes):
        super().calculate(atoms, properties, system_changes)
        self.results = {
            "energy": 0.0,
            "free_energy": 0.0,
            "forces": np.zeros((len(self.atoms), 3)),
            "stress": np.zeros(6),
        }


def run(*arguments: str | Path) -> int:
    """The command, in this process; its exit code."""
    try:
        main([str(argument) for argument in arguments])
    except SystemExit as exit_:
        return int(exit_.code or 0)
    return 0


def wait_for_lines(process: subprocess.Popen[str], log: Path, lines: int) -> None:
    """Return once the run has written that many lines of its log."""
    end = time.monotonic() + 240
    while not (log.exists() and log.read_bytes().count(b"\n") > lines):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end, "the run wrote no log"
        time.sleep(0.005)
