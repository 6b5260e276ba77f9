"""Functions for separate processes, which import them from here by name."""

from __future__ import annotations

from typing import Any

import numpy as np
from ase import Atoms
from numpy.typing import NDArray

from tensormd.calculators import PotentialCalculator


def forces_of(calculator: PotentialCalculator, atoms: Atoms) -> NDArray[np.float64]:
    calculator.calculate(atoms)
    return np.array(calculator.results["forces"])


def send_forces(queue: Any, calculator: PotentialCalculator, atoms: Atoms) -> None:
    queue.put(forces_of(calculator, atoms))
