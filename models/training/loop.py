"""One loop for every architecture: AdamW, cosine schedule, averaged weights, exact resume."""

from __future__ import annotations

import copy
import dataclasses
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..files import replacing
from ..potential import Potential, Prediction
from .errors import Errors, evaluate_errors
from .frames import Batch, Frames


@dataclass(frozen=True)
class TrainingSettings:
    """What a training is asked to do."""

    epochs: int = 900
    batch: int = 8
    """Frames in one step; what is left of an epoch is dropped."""
    learning_rate: float = 1e-3
    """Highest; reached after the warm-up, then half a cosine down to a hundredth."""
    warm_up_steps: int = 500
    energy_weight: float = 0.5
    """Of the mean absolute error of the energy of a frame, 1/eV."""
    force_weight: float = 1.0
    """Of the mean length of the error of a force, A/eV."""
    ema_decay: float = 0.999
    """Of the exponential moving average of the weights, which is what is kept."""
    weight_decay: float = 1e-6
    largest_gradient: float = 10.0
    """Norm at which the gradient of a step is clipped."""
    seed: int = 0
    validate_every: int = 20
    """Epochs between validations, at which the state of the run is saved."""

    def __post_init__(self) -> None:
        for name in ("epochs", "batch", "validate_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}: expected 1 or more")
        for name in ("learning_rate", "largest_gradient"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} is {getattr(self, name)}: expected a positive number")
        if not 0 <= self.ema_decay < 1:
            raise ValueError(f"ema_decay is {self.ema_decay}: expected 0 or more, less than 1")

    def learning_rate_at(self, step: int, steps: int) -> float:
        """Of one step out of ``steps``."""
        warm = min(1.0, (step + 1) / max(self.warm_up_steps, 1))
        cosine = 0.5 * (1 + math.cos(math.pi * step / steps))
        return self.learning_rate * warm * (0.01 + 0.99 * cosine)


@dataclass(frozen=True)
class Progress:
    """What is known after a validation."""

    epoch: int
    seconds: float
    loss: float
    errors: Errors
    """Of the averaged weights, on the validation frames."""


def loss_of(prediction: Prediction, labels: Batch, settings: TrainingSettings) -> Tensor:
    """Weighted mean absolute errors of energies and forces."""
    assert labels.labels.energy is not None
    assert labels.labels.forces is not None
    energy = (prediction.energy - labels.labels.energy).abs().mean()
    force = (prediction.forces - labels.labels.forces).norm(dim=1).mean()
    return settings.energy_weight * energy + settings.force_weight * force


def train(
    potential: Potential,
    fit: Frames,
    validation: Frames,
    settings: TrainingSettings,
    state_file: Path | None = None,
    tell: Callable[[Progress], None] = lambda progress: None,
) -> Potential:
    """Train, and return the averaged weights.

    Parameters
    ----------
    potential
        Trained in place.
    fit, validation
        Frames to learn from, and frames that are only watched.
    settings
        Of the run.
    state_file
        Where the run is saved at each validation, and taken up from if it exists: the same
        numbers come out as without the interruption.
    tell
        Called after each validation.

    Raises
    ------
    ValueError
        If there are fewer frames than a batch holds, or the state is of another run.
    FloatingPointError
        If the loss becomes infinite or no number: the last state saved is kept.
    """
    if len(fit) < settings.batch:
        raise ValueError(f"{len(fit)} frames to train on: expected {settings.batch}, a batch")
    run = _Run(potential, settings, len(fit) // settings.batch)
    if state_file is not None and state_file.exists():
        run.load(state_file)
    began = time.perf_counter() - run.seconds
    while run.epoch < settings.epochs:
        order = np.random.default_rng([settings.seed, run.epoch]).permutation(len(fit))
        loss = 0.0
        for k in range(run.steps_per_epoch):
            labels = fit.batch(order[k * settings.batch : (k + 1) * settings.batch])
            loss += run.step(labels) / run.steps_per_epoch
        run.epoch += 1
        if run.epoch % settings.validate_every == 0 or run.epoch == settings.epochs:
            errors = evaluate_errors(run.average, validation)
            run.seconds = time.perf_counter() - began
            if state_file is not None:
                run.save(state_file)
            tell(Progress(run.epoch, run.seconds, loss, errors))
    return run.average.eval()


class _Run:
    """Weights, their average and the optimizer, and how to save them all."""

    def __init__(self, potential: Potential, settings: TrainingSettings, per_epoch: int) -> None:
        torch.manual_seed(settings.seed)
        self.potential = potential
        self.average = copy.deepcopy(potential)
        self.settings = settings
        self.steps_per_epoch = per_epoch
        self.optimizer = torch.optim.AdamW(
            potential.parameters(),
            lr=settings.learning_rate,
            weight_decay=settings.weight_decay,
        )
        self.epoch = 0
        self.steps_done = 0
        self.seconds = 0.0

    def step(self, labels: Batch) -> float:
        """One step of the optimizer; returns the loss."""
        settings = self.settings
        total = settings.epochs * self.steps_per_epoch
        for group in self.optimizer.param_groups:
            group["lr"] = settings.learning_rate_at(self.steps_done, total)
        self.potential.train()
        loss = loss_of(self.potential(labels.graph), labels, settings)
        value = float(loss.detach())
        if not math.isfinite(value):
            raise FloatingPointError(
                f"the loss is {value} in epoch {self.epoch + 1}, step {self.steps_done + 1}: "
                "try a lower learning rate; the last state saved is kept"
            )
        self.optimizer.zero_grad()
        torch.autograd.backward([loss])
        torch.nn.utils.clip_grad_norm_(self.potential.parameters(), settings.largest_gradient)
        self.optimizer.step()
        self.steps_done += 1
        decay = min(settings.ema_decay, self.steps_done / (self.steps_done + 10))
        with torch.no_grad():
            pairs = zip(self.average.parameters(), self.potential.parameters(), strict=True)
            for mean, parameter in pairs:
                mean.lerp_(parameter, 1 - decay)
        return value

    def save(self, file: Path) -> None:
        """Write the state under a temporary name, then rename it."""
        state = {
            "settings": dataclasses.asdict(self.settings),
            "potential": self.potential.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "random": torch.get_rng_state(),
            "epoch": self.epoch,
            "steps_done": self.steps_done,
            "seconds": self.seconds,
        }
        with replacing(file) as temporary:
            torch.save(state, temporary)

    def load(self, file: Path) -> None:
        """Take up the run that `save` wrote."""
        state: dict[str, Any] = torch.load(file, weights_only=True)
        ours = dataclasses.asdict(self.settings)
        changed = [name for name, value in state["settings"].items() if ours.get(name) != value]
        if changed:
            name = changed[0]
            raise ValueError(
                f"{file} is of a run with {name} {state['settings'][name]}, not {ours.get(name)}: "
                "use the same settings, or delete it to start anew"
            )
        self.potential.load_state_dict(state["potential"])
        self.average.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        torch.set_rng_state(state["random"])
        self.epoch = state["epoch"]
        self.steps_done = state["steps_done"]
        self.seconds = state["seconds"]
