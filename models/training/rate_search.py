r"""A learning-rate range test: the loss of a few steps, each at a higher rate than the last.

After L. N. Smith, "Cyclical learning rates for training neural networks" (2017).
"""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch

from ..data.frames import Frames
from ..potential import Potential, parse_dtype
from .backends import choose_backend
from .batches import BatchPlan
from .distributed import Processes
from .settings import TrainingSettings
from .state import BadLossError, Run

LOWEST, HIGHEST = 1e-6, 1.0
"""Rates of the first and the last step."""
STEPS = 150
SMOOTHING = 0.9
"""Share of the past in the smoothed loss."""
EXPLODED = 4.0
"""The test ends when the smoothed loss is this many times its lowest value."""
BELOW = 2.0
"""Factor between the rate of the lowest loss and the suggestion."""


@dataclass(frozen=True)
class RateSearch:
    """Curve of a range test."""

    rates: list[float]
    """Learning rate of each step."""
    losses: list[float]
    """Smoothed loss after each step."""
    suggestion: float
    """Learning rate to train with."""


def search_learning_rate(
    potential: Potential,
    frames: Frames,
    settings: TrainingSettings,
    device: str | torch.device = "cpu",
    *,
    steps: int = STEPS,
    step_done: Callable[[int, int], None] = lambda *_: None,
) -> RateSearch:
    """Raise the learning rate from step to step until the loss explodes.

    The suggestion is half of the rate at which the smoothed loss is lowest, rounded to one
    digit.

    Parameters
    ----------
    potential
        Potential; a copy is trained.
    frames
        Training frames.
    settings
        Settings of the training that the rate is for; its rate, schedule and warm-up are not used.
    device
        Device to train on.
    steps
        Number of steps from the lowest to the highest rate.
    step_done
        Function called after each step with the number of steps done, and of all.

    Raises
    ------
    ValueError
        If there are fewer frames than a batch has, or the loss is not finite at the lowest rate.
    """
    plan = BatchPlan(frames, settings)
    by_size = itertools.chain.from_iterable(map(plan.epoch, itertools.count()))
    trained = copy.deepcopy(potential).to(torch.device(device), parse_dtype(settings.dtype))
    backend = choose_backend(trained, settings, steps, torch.device(device), None)
    constant = replace(settings, schedule="constant", warm_up_steps=0)
    processes = Processes(device=str(device))
    run = Run(trained, constant, steps, backend, processes, frames.partial, frames.weighted)
    rates = np.geomspace(LOWEST, HIGHEST, steps).tolist()
    generator = np.random.default_rng(settings.seed)
    done: list[float] = []
    losses: list[float] = []
    mean = 0.0
    for k, rate in enumerate(rates):
        if plan.largest is None:
            index = generator.choice(len(frames), settings.batch, replace=False).tolist()
        else:
            index = next(by_size)
        try:
            loss = run.step(frames, index, rate)
        except BadLossError as error:
            if not losses:
                raise ValueError(f"{error}: there is no rate to find") from None
            break
        mean = SMOOTHING * mean + (1 - SMOOTHING) * loss
        done.append(rate)
        losses.append(mean / (1 - SMOOTHING ** (k + 1)))
        step_done(k + 1, steps)
        if losses[-1] > EXPLODED * min(losses):
            break
    best = done[int(np.argmin(losses))] / BELOW
    digit = 10.0 ** math.floor(math.log10(best))
    return RateSearch(done, losses, float(f"{round(best / digit) * digit:.0e}"))
