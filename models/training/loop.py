"""One loop for every architecture: steps, validations, averaged weights, exact resume."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..data.frames import Frames
from ..evaluation.errors import QuantityErrors, errors_of
from ..evaluation.predictions import check_heads, compare
from ..potential import Potential, parse_dtype
from .compiled import compiler_for
from .distributed import Processes, current_processes
from .losses import check_labels, loss_terms
from .settings import TrainingSettings
from .state import Run, read_state

log = logging.getLogger("tensormd")

WORTH_COMPILING = 3000
"""Steps that pay for a compilation of some minutes."""


class TrainingStopped(Exception):  # noqa: N818
    """The training was asked to stop; its state is saved."""


@dataclass(frozen=True)
class Progress:
    """What is known after a validation."""

    epoch: int
    """Epochs done."""
    step: int
    """Steps done."""
    seconds: float
    """Since the start, interruptions not counted."""
    loss: float
    """Weighted, mean over the epoch."""
    losses: dict[str, float]
    """Of each quantity, before the weights, mean over the epoch."""
    validation_loss: float
    """Of the averaged weights, on the validation frames."""
    best: bool
    """Whether it is the lowest so far."""
    errors: dict[str, QuantityErrors]
    """Of the averaged weights, on the validation frames, by quantity."""
    learning_rate: float
    """Of the last step."""
    compiled: bool
    """Whether steps are compiled."""
    plain_steps: int
    """Steps of a compiled run that were not, because a batch fitted no compiled graph."""


def _ignore(*_: Any) -> None:
    pass


def train(
    potential: Potential,
    fit: Frames,
    validation: Frames,
    settings: TrainingSettings,
    state_file: Path | None = None,
    tell: Callable[[Progress], None] = _ignore,
    device: str | torch.device = "cpu",
    *,
    keep: Callable[[Progress, Potential], None] = _ignore,
    step_done: Callable[[int, int, int, float], None] = _ignore,
    stop: Callable[[], bool] = lambda: False,
) -> Potential:
    """Train a potential, and return the averaged weights.

    In a group of processes (see `distributed`) all of them call this with the same arguments;
    the first one validates, writes, and calls ``tell`` and ``keep``.

    Parameters
    ----------
    potential
        Trained in place. Parameters without ``requires_grad`` stay as they are.
    fit, validation
        Frames to learn from, and frames that are watched.
    settings
        Of the run.
    state_file
        Where the run is saved after each validation and when it is stopped, and resumed from if
        it exists: the same numbers come out as without the interruption.
    tell
        Called after each validation, before the state is saved.
    device
        ``cpu`` or ``cuda``, where the potential is moved to.
    keep
        Called after ``tell`` with the averaged weights.
    step_done
        Called after each step with the epoch (from 1), steps done, steps of the whole run, and
        the loss.
    stop
        Asked after each step: if true, the run is saved and `TrainingStopped` raised. No signal
        is handled here: Ctrl-C ends the run at once, and it resumes from the last state saved.

    Raises
    ------
    ValueError
        If there are fewer frames than a batch holds, a label, head or element is missing, the
        state is of another run, or ``compile`` is True and there is no compiler.
    FloatingPointError
        If the loss becomes infinite or no number: it says in which frames (`BadLossError`), and
        the last state saved is kept.
    TrainingStopped
        See ``stop``.
    """
    processes = current_processes(device)
    _check(potential, fit, validation, settings, processes)
    per_epoch = len(fit) // settings.batch
    if settings.keep_last_batch:
        per_epoch = math.ceil(len(fit) / settings.batch)
    total = per_epoch * settings.epochs
    potential.to(device=torch.device(device), dtype=parse_dtype(settings.dtype))
    state = None
    begun = state_file is not None and state_file.exists()
    if processes.any(begun) != begun:
        raise ValueError(f"{state_file} is seen by some processes only: expected a shared folder")
    if begun and state_file is not None:
        state = read_state(state_file, settings)
    compiled = _whether_to_compile(settings, total, torch.device(device), state)
    run = Run(potential, settings, per_epoch, compiled, processes)
    if state is not None:
        run.load(state)
    began = time.perf_counter() - run.seconds

    def save() -> None:
        run.seconds = time.perf_counter() - began
        run.save(state_file)

    while run.epoch < settings.epochs and not run.stopped_early:
        order = np.random.default_rng([settings.seed, run.epoch]).permutation(len(fit))
        while run.steps_in_epoch < per_epoch:
            first = run.steps_in_epoch * settings.batch
            loss = run.step(fit, order[first : first + settings.batch].tolist())
            step_done(run.epoch + 1, run.steps_done, total, loss)
            if processes.any(stop()):
                save()
                raise TrainingStopped(f"the training was stopped in epoch {run.epoch + 1}")
        losses = run.end_epoch()
        if run.epoch % settings.validate_every == 0 or run.epoch == settings.epochs:
            run.seconds = time.perf_counter() - began
            progress = _validate(run, validation, losses)
            if processes.first:
                tell(progress)
                keep(progress, run.average)
            save()
    return run.result()


def _check(
    potential: Potential,
    fit: Frames,
    validation: Frames,
    settings: TrainingSettings,
    processes: Processes,
) -> None:
    if len(fit) < settings.batch:
        raise ValueError(f"{len(fit)} frames to train on: expected {settings.batch}, a batch")
    if settings.batch < processes.count:
        raise ValueError(
            f"a batch of {settings.batch} for {processes.count} processes: expected a frame for "
            "each, or more"
        )
    for name, frames in (("training", fit), ("validation", validation)):
        check_labels(frames, settings, name)
        unknown = sorted(set(frames.elements) - set(potential.elements))
        if unknown:
            raise ValueError(
                f"the {name} frames hold atomic number {unknown[0]}: the potential knows "
                f"{', '.join(map(str, potential.elements))}"
            )
    check_heads(potential, list(settings.weights))
    if not any(p.requires_grad for p in potential.parameters()):
        raise ValueError("no parameter of the potential is trainable: expected requires_grad")


def _whether_to_compile(
    settings: TrainingSettings, steps: int, device: torch.device, state: dict[str, Any] | None
) -> bool:
    if settings.compile is False:
        return False
    problem = compiler_for(device)
    if problem is not None:
        if settings.compile is True:
            raise ValueError(f"compile is True, but {problem}: install it, or set compile to auto")
        log.info("the training step is not compiled: %s", problem)
        return False
    if settings.compile is True:
        return True
    # A run goes on as it began: plain and compiled steps differ in the last digits.
    worth = steps >= WORTH_COMPILING if state is None else bool(state["compiled"])
    if not worth:
        log.info("the training step is not compiled: %d steps would not pay for it", steps)
    return worth


def _validate(run: Run, validation: Frames, losses: dict[str, float]) -> Progress:
    settings = run.settings
    loss, errors = math.nan, {}
    if run.processes.first:
        comparison = compare(run.average, validation, list(settings.weights))
        terms = loss_terms(comparison.found, comparison.wanted, comparison.atoms, settings)
        loss = sum(settings.weights[name] * float(term) for name, term in terms.items())
        errors = errors_of(comparison)
    [loss] = run.processes.from_first([loss])
    best = run.validated(loss)
    return Progress(
        epoch=run.epoch,
        step=run.steps_done,
        seconds=run.seconds,
        loss=losses.pop("total"),
        losses=losses,
        validation_loss=loss,
        best=best,
        errors=errors,
        learning_rate=run.optimizer.param_groups[0]["lr"],
        compiled=run.training_step.compiled,
        plain_steps=run.training_step.plain_steps,
    )
