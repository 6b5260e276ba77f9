"""How far a potential is from its labels."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import nn

from .data import Frames


class Errors(NamedTuple):
    """Mean absolute errors."""

    energy_mev: float
    """Of the energy of a frame, meV."""
    force_mev_per_angstrom: float
    """Of a component of a force, meV/A."""


def evaluate_errors(potential: nn.Module, frames: Frames, batch: int = 100) -> Errors:
    """Mean absolute errors over all frames; the potential is left as it was."""
    training = potential.training
    potential.eval()
    energy, force = [], []
    try:
        for start in range(0, len(frames), batch):
            labels = frames.batch(range(start, min(start + batch, len(frames))))
            prediction = potential(labels.graph)
            energy.append((prediction.energy - labels.energies).abs())
            force.append((prediction.forces - labels.forces).abs().mean(1))
    finally:
        potential.train(training)
    return Errors(1e3 * float(torch.cat(energy).mean()), 1e3 * float(torch.cat(force).mean()))
