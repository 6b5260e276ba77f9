"""Functions for separate processes, which import them from here by name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from ase import Atoms
from ase.build import molecule
from numpy.typing import NDArray

from tensormd.calculators import PotentialCalculator


def forces_of(calculator: PotentialCalculator, atoms: Atoms) -> NDArray[np.float64]:
    calculator.calculate(atoms)
    return np.array(calculator.results["forces"])


def forces_of_new_calculators(
    backends: Sequence[str],
) -> tuple[int, list[NDArray[np.float64]]]:
    """Forces of ethanol from a calculator that is made here for each backend; torch's threads."""
    calculators = [PotentialCalculator("ethanol", backend=backend) for backend in backends]
    forces = [forces_of(calculator, molecule("CH3CH2OH")) for calculator in calculators]
    torch.ones(1 << 22).exp()  # more than torch leaves to one thread
    return torch.get_num_threads(), forces


def send_forces(queue: Any, calculator: PotentialCalculator, atoms: Atoms) -> None:
    queue.put(forces_of(calculator, atoms))
