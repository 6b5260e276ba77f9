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
    """Check that some of the frames, or all, have each label that the loss needs.

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
        If no frame has a label; the message names it, and the weight to set to 0.
    """
    for quantity in settings.weights:
        if quantity not in frames.quantities:
            has = ", ".join(frames.quantities) or "nothing"
            raise ValueError(
                f"the {name} frames have no {quantity}, which the loss asks for: they are "
                f"labelled with {has}; set {QUANTITIES[quantity].weight} to 0 or label them"
            )
        if not frames.mean_weights[quantity] > 0:
            raise ValueError(
                f"all {name} frames with a label of {quantity} have the weight 0: expected some "
                "above 0"
            )
    if "stress" in settings.weights:
        labelled, volumes = frames.labelled("stress"), frames.volumes
        for k in labelled:
            if not volumes[k] > 0:
                raise ValueError(
                    f"{name} frame {k} has no cell, so it has no stress: set stress_weight to 0"
                )


def loss_terms(
    found: Mapping[str, Tensor],
    wanted: Mapping[str, Tensor],
    atoms: Tensor | None,
    settings: TrainingSettings,
    masks: Mapping[str, Tensor] | None = None,
    weights: Mapping[str, Tensor] | None = None,
) -> dict[str, Tensor]:
    r"""Loss of each quantity that has a weight, without the weight.

    .. math::
        L_q = \frac1n \sum_k w_k \|\hat q_k - q_k\| \text{ (norm)}, \quad
        \frac{1}{n d} \sum_{kc} w_k \ell(\hat q_{kc} - q_{kc}) \text{ (l1, mse, huber)}

    over n frames (atoms, for forces) that have the label, and d components; 0 if none has it.

    Parameters
    ----------
    found, wanted
        Predictions and labels by quantity.
    atoms
        Number of atoms of each frame, (B,) float64; read if energies are taken per atom.
    settings
        Settings of the run.
    masks
        Whether each frame (atom, for forces) has the label, (n,) bool, by quantity; quantities
        that are not listed: all have it.
    weights
        Weights w of each frame (atom, for forces), (n,), by quantity; see `Batch.weights`. None:
        all are 1.

    Returns
    -------
    dict[str, Tensor]
        One scalar for each quantity.
    """
    terms = {}
    for name in settings.weights:
        a, b = found[name], wanted[name]
        mask = None if masks is None else masks.get(name)
        if mask is not None:
            # Two zeros add nothing to any loss, nor to its gradient.
            has = mask.view(-1, *(1 for _ in a.shape[1:]))
            a, b = torch.where(has, a, 0.0), torch.where(has, b, 0.0)
        if name == "energy" and settings.energy_per_atom:
            assert atoms is not None
            a, b = a / atoms, b / atoms
        if weights:
            items = _losses_of_rows(a, b, settings)
            terms[name] = (weights[name].to(items.dtype) * items).mean()
        elif settings.loss == "mse":
            terms[name] = F.mse_loss(a, b)
        elif settings.loss == "huber":
            terms[name] = F.huber_loss(a, b, delta=settings.huber_delta)
        elif settings.loss == "l1" or a.ndim == 1:
            terms[name] = F.l1_loss(a, b)
        else:
            terms[name] = torch.linalg.vector_norm((a - b).flatten(1), dim=1).mean()
        if mask is not None:
            rows = mask.to(terms[name].dtype)
            terms[name] = terms[name] * torch.ones_like(rows).sum() / rows.sum().clamp(min=1)
    return terms


def _losses_of_rows(a: Tensor, b: Tensor, settings: TrainingSettings) -> Tensor:
    """Loss of each frame or atom, (n,)."""
    a, b = a.flatten(1) if a.ndim > 1 else a[:, None], b.flatten(1) if b.ndim > 1 else b[:, None]
    if settings.loss == "mse":
        return F.mse_loss(a, b, reduction="none").mean(1)
    if settings.loss == "huber":
        return F.huber_loss(a, b, reduction="none", delta=settings.huber_delta).mean(1)
    if settings.loss == "l1" or a.shape[1] == 1:
        return F.l1_loss(a, b, reduction="none").mean(1)
    return torch.linalg.vector_norm(a - b, dim=1)


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
