"""Training loop for every architecture: steps, validations, averaged weights, exact resume."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..data.frames import Frames
from ..evaluation.errors import QuantityErrors, errors_of
from ..evaluation.predictions import check_heads, compare
from ..potential import Potential, parse_dtype
from .backends import choose_backend
from .batches import BatchPlan, prepare_batches
from .distributed import Processes, current_processes
from .losses import check_labels, loss_terms
from .settings import TrainingSettings
from .state import Run, read_state

log = logging.getLogger("tensormd")


class TrainingStopped(Exception):  # noqa: N818
    """The training was asked to stop; its state is saved."""


@dataclass(frozen=True)
class Progress:
    """State of a run after a validation."""

    epoch: float
    """Number of epochs done; a whole number, but for validations within an epoch."""
    step: int
    """Number of steps done."""
    seconds: float
    """Wall time since the start, without interruptions."""
    loss: float
    """Weighted training loss, mean since the epoch or, if later, the last validation began."""
    losses: dict[str, float]
    """The same mean of the loss of each quantity, without its weight."""
    validation_loss: float
    """Loss of the averaged weights on the validation frames."""
    best: bool
    """Whether this validation loss is the lowest so far."""
    errors: dict[str, QuantityErrors]
    """Errors of the averaged weights on the validation frames, by quantity."""
    learning_rate: float
    """Learning rate of the last step."""
    backend: str
    """Kind of the steps: fused, compiled or plain."""
    plain_steps: int
    """Number of uncompiled steps in a compiled run, whose batches did not fit the graph."""

    @property
    def compiled(self) -> bool:
        """Whether steps are compiled."""
        return self.backend == "compiled"


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
    ready: Callable[[], None] = _ignore,
    step_done: Callable[[int, int, int, float], None] = _ignore,
    stop: Callable[[], bool] = lambda: False,
) -> Potential:
    """Train a potential, and return the averaged weights.

    In a group of processes (see `distributed`) all of them call this with the same arguments;
    the first one validates, writes, and calls ``tell`` and ``keep``.

    Parameters
    ----------
    potential
        Potential, trained in place. Parameters without ``requires_grad`` are not changed.
    fit, validation
        Training frames and validation frames.
    settings
        Settings of the run.
    state_file
        File to which the state is saved after each validation and on stopping. If it exists, the
        run resumes from it, with the same results as without the interruption. Of the settings
        only ``epochs`` may differ from those that the run began with: from there on, a cosine has
        the learning rates of a run of the new length.
    tell
        Function called after each validation, before the state is saved.
    device
        Device to which the potential is moved: ``cpu`` or ``cuda``.
    keep
        Function called after ``tell`` with the averaged weights.
    ready
        Function called before the first step, when kernels or graphs are compiled, which may have
        taken minutes; until then nothing is written, and an exception loses nothing.
    step_done
        Function called after each step with the epoch (from 1), the number of steps done, the
        number of steps of the whole run, and the loss.
    stop
        Function called after each step: if it returns true, the state is saved and
        `TrainingStopped` is raised. Signals are not handled: Ctrl-C ends the run at once, and the
        run can resume from the last saved state.

    Returns
    -------
    Potential
        The averaged weights, in evaluation mode.

    Raises
    ------
    ValueError
        If there are fewer frames than a batch has, no frame has a label, a head or element is
        missing, the state belongs to another run, or the settings name a backend that cannot run.
    BadLossError
        If the loss becomes infinite or NaN; the error has the frames, and the last saved state is
        kept.
    TrainingStopped
        If ``stop`` returns true.
    """
    processes = current_processes(device)
    _check(potential, fit, validation, settings, processes)
    plan = BatchPlan(fit, settings)
    per_epoch = plan.steps
    total = per_epoch * settings.epochs
    potential.to(device=torch.device(device), dtype=parse_dtype(settings.dtype))
    state = None
    begun = state_file is not None and state_file.exists()
    if processes.any(begun) != begun:
        raise ValueError(f"{state_file} is seen by some processes only: expected a shared folder")
    if begun and state_file is not None:
        state = read_state(state_file, settings)
    backend = choose_backend(potential, settings, total, torch.device(device), state)
    run = Run(potential, settings, per_epoch, backend, processes, fit.partial, fit.weighted)
    if state is not None:
        run.load(state)
        if run.stopped_early and run.steps_done < total:
            log.warning(
                "the run ended early, in epoch %g: %d validations without improvement",
                run.epochs_done, settings.early_stopping,
            )  # fmt: skip
    began = time.perf_counter() - run.seconds

    def save() -> None:
        run.seconds = time.perf_counter() - began
        run.save(state_file)

    if run.steps_done < total and not run.stopped_early:
        run.rehearse(fit, plan.epoch(0)[0])
    ready()
    upcoming = plan.batches(run.epoch, run.steps_in_epoch)
    with prepare_batches(lambda index: run.prepare(fit, index), upcoming) as batches:
        while True:
            due = run.validation_is_due()
            losses = run.mean_losses() if due else {}
            if run.steps_in_epoch == per_epoch:
                run.end_epoch()
            if due:
                run.seconds = time.perf_counter() - began
                progress = _validate(run, validation, losses)
                if processes.first:
                    tell(progress)
                    keep(progress, run.average)
                save()
            if run.steps_done >= total or run.stopped_early:
                return run.result()
            index, batch = next(batches)
            loss = run.step(fit, index, batch=batch)
            step_done(run.epoch + 1, run.steps_done, total, loss)
            if processes.any(stop()):
                save()
                raise TrainingStopped(f"the training was stopped in epoch {run.epoch + 1}")


def _check(
    potential: Potential,
    fit: Frames,
    validation: Frames,
    settings: TrainingSettings,
    processes: Processes,
) -> None:
    by_size = settings.batch_atoms or settings.batch_edges
    if not by_size and settings.batch < processes.count:
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


def _validate(run: Run, validation: Frames, losses: dict[str, float]) -> Progress:
    settings = run.settings
    loss, errors = math.nan, {}
    if run.processes.first:
        comparison = compare(run.average, validation, list(settings.weights))
        found, wanted, atoms, masks = comparison
        weights = validation.row_weights(range(len(validation)))
        terms = loss_terms(found, wanted, atoms, settings, masks, weights)
        loss = sum(settings.weights[name] * float(term) for name, term in terms.items())
        errors = errors_of(comparison)
    [loss] = run.processes.from_first([loss])
    best = run.validated(loss)
    return Progress(
        epoch=run.epochs_done,
        step=run.steps_done,
        seconds=run.seconds,
        loss=losses.pop("total"),
        losses=losses,
        validation_loss=loss,
        best=best,
        errors=errors,
        learning_rate=run.optimizer.param_groups[0]["lr"],
        backend=run.training_step.backend,
        plain_steps=run.training_step.plain_steps,
    )
