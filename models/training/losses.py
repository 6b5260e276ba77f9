"""The loss: of each quantity by itself, then their weighted sum."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from ..data.frames import Frames
from ..quantities import QUANTITIES
from .settings import TrainingSettings


def check_labels(frames: Frames, settings: TrainingSettings, name: str) -> None:
    """Check that frames have every label that the loss asks for.

    Parameters
    ----------
    frames
        To train on or to validate with.
    settings
        Whose weights say what is asked for.
    name
        Of the frames, for the message.

    Raises
    ------
    ValueError
        Naming the label and the weight to set to zero.
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
    r"""The loss of each quantity that has a weight, before the weights.

    .. math::
        L_q = \frac1n \sum_k \|\hat q_k - q_k\| \text{ (norm)}, \quad
        \frac{1}{n d} \sum_{kc} \ell(\hat q_{kc} - q_{kc}) \text{ (l1, mse, huber)}

    over n frames (atoms, for forces) and d components.

    Parameters
    ----------
    found, wanted
        Predictions and labels by quantity.
    atoms
        (B,) float64, atoms of each frame: read if energies are taken per atom.
    settings
        Of the run.

    Returns
    -------
    One number for each quantity.
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

    from the first loss on. The smoothed loss is the one minimised: its gradient is
    :math:`\alpha_q \nabla L_q`, the rest being the past.
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
