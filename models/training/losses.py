"""Losses of the quantities, of which training minimises the weighted sum."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from ..data.frames import Frames
from ..quantities import QUANTITIES
from .settings import TrainingSettings


def check_labels(frames: Frames, settings: TrainingSettings, name: str) -> None:
    """Check that frames have every label that the loss needs.

    Parameters
    ----------
    frames
        Training or validation frames.
    settings
        Settings whose weights define the loss.
    name
        Name of the frames, for the message.

    Raises
    ------
    ValueError
        If a label is missing; the message names it, and the weight to set to 0.
    """
    for quantity in settings.weights:
        if quantity not in frames.quantities:
            has = ", ".join(frames.quantities) or "nothing"
            raise ValueError(
                f"the {name} frames have no {quantity}, which the loss asks for: they are "
                f"labelled with {has}; set {QUANTITIES[quantity].weight} to 0 or label them"
            )
    if "stress" in settings.weights:
        for k, graph in enumerate(frames.graphs):
            if not float(torch.linalg.det(graph.cell).abs().min()) > 0:
                raise ValueError(
                    f"{name} frame {k} has no cell, so it has no stress: set stress_weight to 0"
                )


def loss_terms(
    found: Mapping[str, Tensor],
    wanted: Mapping[str, Tensor],
    atoms: Tensor | None,
    settings: TrainingSettings,
) -> dict[str, Tensor]:
    r"""Loss of each quantity that has a weight, without the weight.

    .. math::
        L_q = \frac1n \sum_k \|\hat q_k - q_k\| \text{ (norm)}, \quad
        \frac{1}{n d} \sum_{kc} \ell(\hat q_{kc} - q_{kc}) \text{ (l1, mse, huber)}

    over n frames (atoms, for forces) and d components.

    Parameters
    ----------
    found, wanted
        Predictions and labels by quantity.
    atoms
        Number of atoms of each frame, (B,) float64; read if energies are taken per atom.
    settings
        Settings of the run.

    Returns
    -------
    dict[str, Tensor]
        One scalar for each quantity.
    """
    terms = {}
    for name in settings.weights:
        a, b = found[name], wanted[name]
        if name == "energy" and settings.energy_per_atom:
            assert atoms is not None
            a, b = a / atoms, b / atoms
        if settings.loss == "mse":
            terms[name] = F.mse_loss(a, b)
        elif settings.loss == "huber":
            terms[name] = F.huber_loss(a, b, delta=settings.huber_delta)
        elif settings.loss == "l1" or a.ndim == 1:
            terms[name] = F.l1_loss(a, b)
        else:
            terms[name] = torch.linalg.vector_norm((a - b).flatten(1), dim=1).mean()
    return terms


class RunningLosses:
    r"""Exponential smoothing of the losses of a run, as in torchmd-net.

    .. math:: \bar L_q \leftarrow \alpha_q L_q + (1 - \alpha_q) \bar L_q

    starting from the first loss. The smoothed loss is minimised: its gradient is
    :math:`\alpha_q \nabla L_q`, since past losses are constant.
    """

    def __init__(self, settings: TrainingSettings) -> None:
        self.alphas = settings.loss_emas
        self.values: dict[str, float] = {}

    def add(self, losses: Mapping[str, float]) -> dict[str, float]:
        """Losses of a step -> their running values."""
        for name, loss in losses.items():
            alpha = self.alphas[name]
            past = self.values.get(name, loss)
            self.values[name] = loss if alpha == 1 else alpha * loss + (1 - alpha) * past
        return dict(self.values)
