"""Errors of a network after removing an order."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..data.frames import Frames
from ..evaluation.errors import error_statistics
from ..evaluation.predictions import predict_graphs
from ..networks.base import Irrep
from ..potential import Potential
from .batches import slices
from .layout import Layout, changed


class Predictions(NamedTuple):
    """Predictions for all frames, float64."""

    energy: Tensor
    """Energies, (F,), eV."""
    forces: Tensor | None
    """Forces, (N, 3), eV/A; None if not requested."""


class Accuracy(NamedTuple):
    """Mean absolute errors, and mean absolute changes relative to the whole network."""

    energy_mae_mev: float | None
    """Error of the energy of a frame; None without labels."""
    force_mae_mev_per_angstrom: float | None
    """Error of a force component; None without labels."""
    energy_change_mev: float
    """Change of the energy of a frame."""
    force_change_mev_per_angstrom: float | None
    """Change of a force component; None if forces have no labels."""


def predict(potential: nn.Module, frames: Frames, forces: bool = True) -> Predictions:
    """Energies, and forces if requested, of all frames."""
    quantities = ("energy", "forces") if forces else ("energy",)
    found = predict_graphs(potential, frames.graphs, quantities, slices(frames))
    return Predictions(found["energy"], found.get("forces"))


def accuracy(found: Predictions, whole: Predictions, frames: Frames) -> Accuracy:
    """Compare predictions with the labels and with those of the whole network."""
    masks = frames.masks(range(len(frames)))
    energies = frames.energies if "energy" in frames.quantities else None
    forces = torch.cat(frames.forces) if "forces" in frames.quantities else None
    errors = (
        _mae(found.energy, energies, masks.get("energy")),
        _mae(found.forces, forces, masks.get("forces")),
    )
    energy_change = _mae(found.energy, whole.energy)
    assert energy_change is not None
    return Accuracy(*errors, energy_change, _mae(found.forces, whole.forces))


def _mae(
    predicted: Tensor | None, reference: Tensor | None, mask: Tensor | None = None
) -> float | None:
    if predicted is None or reference is None:
        return None
    errors = predicted - reference
    return 1e3 * error_statistics((errors if mask is None else errors[mask]).numpy()).mae


def predict_without(
    potential: Potential, frames: Frames, layout: Layout, order: Irrep, layer: int, forces: bool
) -> Predictions:
    """Predictions with one order of X^k set to zero, where k is the layer."""

    def remove(k: int, x: Tensor) -> Tensor:
        return layout.without(x, [order]) if k == layer else x

    with changed(potential, remove):
        return predict(potential, frames, forces)
