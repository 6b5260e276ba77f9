"""State of a training: weights, their average and the optimizer; saving and resuming."""

from __future__ import annotations

import copy
import dataclasses
import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..data.batch import Batch
from ..data.frames import Frames
from ..files import replacing
from ..potential import Potential
from ..quantities import QUANTITIES
from .distributed import Processes
from .losses import RunningLosses
from .schedules import Schedule
from .settings import TrainingSettings
from .step import StepLosses, TrainingStep
from .watch import LossWatch

log = logging.getLogger("tensormd")


class BadLossError(FloatingPointError):
    """A loss or a gradient is infinite or NaN.

    Attributes
    ----------
    frames
        Frames of the batch, as indices into the training frames.
    """

    def __init__(self, message: str, frames: Sequence[int]) -> None:
        super().__init__(message)
        self.frames = [int(k) for k in frames]


class Run:
    """A training between two steps.

    Parameters
    ----------
    potential
        Potential, trained in place.
    settings
        Settings of the run.
    steps_per_epoch
        Number of steps per epoch.
    backend
        Kind of the steps: fused, compiled or plain.
    processes
        Processes that train together.
    masked
        Labels that some training frames lack.
    weighted
        Whether training frames have weights.
    """

    def __init__(
        self,
        potential: Potential,
        settings: TrainingSettings,
        steps_per_epoch: int,
        backend: str,
        processes: Processes,
        masked: Sequence[str] = (),
        weighted: bool = False,
    ) -> None:
        torch.manual_seed(settings.seed + processes.rank)
        self.potential = potential
        self.settings = settings
        self.processes = processes
        self.parameters: list[Tensor] = [p for p in potential.parameters() if p.requires_grad]
        processes.copy_from_first([p.detach() for p in potential.parameters()])
        self.average = copy.deepcopy(potential).requires_grad_(False)
        self._averaged: list[Tensor] = [
            mean
            for mean, p in zip(self.average.parameters(), potential.parameters(), strict=True)
            if p.requires_grad
        ]
        self.optimizer = torch.optim.AdamW(
            self.parameters,
            lr=settings.learning_rate,
            weight_decay=settings.weight_decay,
            fused=self.parameters[0].device.type in ("cpu", "cuda"),
        )
        self.steps_per_epoch = steps_per_epoch
        self.steps = settings.epochs * steps_per_epoch
        """Number of steps of the whole run."""
        self.schedule = Schedule(settings, self.steps)
        self.losses = RunningLosses(settings)
        self.watch = LossWatch()
        self.training_step = TrainingStep(potential, settings, backend, masked, weighted)
        self.epoch = 0
        """Number of epochs done."""
        self.steps_in_epoch = 0
        """Number of steps done in the current epoch."""
        self.epoch_sums: dict[str, float] = {}
        """Losses since the current epoch, or a later validation, began, each times its number of
        frames; ``frames``; and the number of frames with a label that others lack, such as
        ``forces frames``."""
        self.steps_done = 0
        self.validated_step = 0
        """Number of steps done at the last validation."""
        self.seconds = 0.0
        self.best_loss = math.inf
        self.best_weights: dict[str, Tensor] = {}
        self.validations_since_best = 0

    def step(
        self,
        frames: Frames,
        index: Sequence[int],
        rate: float | None = None,
        *,
        batch: Batch | None = None,
    ) -> float:
        """One step of the optimizer; returns the loss.

        Parameters
        ----------
        frames
            Training frames.
        index
            Frames of the batch, for all processes together.
        rate
            Learning rate; None: that of the schedule.
        batch
            What `prepare` gave for them; None: it is prepared now.

        Raises
        ------
        BadLossError
            If the loss or the norm of the gradient is infinite or NaN.
        """
        if rate is None:
            rate = self.schedule.rate(self.steps_done)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        found = self._gradients(frames, index, batch or self.prepare(frames, index))
        norm = float(
            torch.nn.utils.clip_grad_norm_(
                [p for p in self.parameters if p.grad is not None], self.settings.largest_gradient
            )
        )
        for name, value in (("loss", found.total), ("norm of the gradient", norm)):
            if not math.isfinite(value):
                raise BadLossError(
                    f"the {name} is {value} in epoch {self.epoch + 1}, step "
                    f"{self.steps_done + 1}, frames {', '.join(map(str, index))} of those to "
                    "train on: check these, or try a lower learning rate; the last state saved "
                    "is kept",
                    index,
                )
        self.optimizer.step()
        self.steps_done += 1
        decay = min(self.settings.ema_decay, self.steps_done / (self.steps_done + 10))
        with torch.no_grad():
            torch._foreach_lerp_(self._averaged, self.parameters, 1 - decay)
        counts = {name: frames.count(name, index) for name in frames.partial}
        terms = self.losses.add({n: loss for n, loss in found.terms.items() if counts.get(n, 1)})
        terms = {name: terms[name] if counts.get(name, 1) else 0.0 for name in found.terms}
        total = sum(self.settings.weights[name] * value for name, value in terms.items())
        for name, value in {**terms, "total": total, "frames": 1.0}.items():
            self._add_to_epoch(name, counts.get(name, len(index)) * value)
        for name, count in counts.items():
            self._add_to_epoch(f"{name} frames", count)
        self.steps_in_epoch += 1
        self._tell_of_a_rise(total)
        return total

    def _tell_of_a_rise(self, loss: float) -> None:
        rise = self.watch.add(loss)
        if rise is not None and self.processes.first:
            log.warning(
                "the loss rises: in epoch %d, step %d its moving mean is %.1f times the lowest "
                "one; if it does not fall again, stop the run and start one with a lower "
                "learning_rate than %g, or more warm_up_steps",
                self.epoch + 1, self.steps_done, rise, self.settings.learning_rate,
            )  # fmt: skip

    def _add_to_epoch(self, name: str, value: float) -> None:
        self.epoch_sums[name] = self.epoch_sums.get(name, 0.0) + value

    def prepare(self, frames: Frames, index: Sequence[int]) -> Batch | None:
        """The share of a batch that this process has, for `step`; None if it has none."""
        own = self.processes.share(index)
        return frames.batch(own, pairs=self.training_step.reads_pairs) if own else None

    def _gradients(self, frames: Frames, index: Sequence[int], batch: Batch | None) -> StepLosses:
        """Losses and gradients of the whole batch, from this process's share of it."""
        if self.processes.count == 1:
            assert batch is not None
            return self.training_step.step(batch)
        own = self.processes.share(index)
        shares = {}
        for name in self.settings.weights:
            atoms = QUANTITIES[name].per_atom
            whole = frames.count(name, index, atoms=atoms)
            shares[name] = frames.count(name, own, atoms=atoms) / whole if whole else 0.0
        terms = dict.fromkeys(shares, 0.0)
        if batch is not None:
            terms = self.training_step.step(batch, shares).terms
        else:
            self.optimizer.zero_grad()
        gradients = [p.grad for p in self.parameters]
        # All processes must agree on which parameters have no gradient, and are not updated.
        counts = [float(g is not None) for g in gradients]
        device = self.parameters[0].device
        summed = torch.tensor(
            [shares[name] * terms[name] for name in shares] + counts,
            dtype=torch.float64, device=device,
        )  # fmt: skip
        self.processes.add(summed)
        values = summed.tolist()
        used = [p for p, n in zip(self.parameters, values[len(shares) :], strict=True) if n > 0]
        flat = torch.cat(
            [(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in used]
        )
        self.processes.add(flat)
        self.optimizer.zero_grad()
        for p, part in zip(used, torch.split(flat, [p.numel() for p in used]), strict=True):
            p.grad = part.view_as(p)
        terms = dict(zip(shares, values, strict=False))
        weights = self.settings.weights
        return StepLosses(sum(weights[name] * terms[name] for name in terms), terms)

    def rehearse(self, frames: Frames, index: Sequence[int]) -> None:
        """Compute the gradients of a batch and forget them.

        Graphs and kernels are compiled at their first use; a run is not changed by it.
        """
        batch = None
        if self.training_step.backend != "plain":
            batch = self.prepare(frames, index)
        if batch is None:
            return
        plain_steps, device = self.training_step.plain_steps, self.parameters[0].device
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            self.training_step.step(batch)
        self.training_step.plain_steps = plain_steps
        self.optimizer.zero_grad()

    def mean_losses(self) -> dict[str, float]:
        """Mean losses by quantity and their ``total`` since the epoch or a validation began."""
        sums = dict(self.epoch_sums)
        frames = sums.pop("frames", 0.0)
        counts = {n: sums.pop(f"{n} frames") for n in list(sums) if f"{n} frames" in sums}
        return {name: value / max(counts.get(name, frames), 1) for name, value in sums.items()}

    def end_epoch(self) -> None:
        """Begin the next epoch."""
        self.epoch += 1
        self.steps_in_epoch = 0
        self.epoch_sums = {}

    @property
    def epochs_done(self) -> float:
        """Number of epochs done; whole at their ends."""
        part = self.steps_in_epoch / self.steps_per_epoch
        return self.epoch + round(part, 6) if part else self.epoch

    def validation_is_due(self) -> bool:
        """Whether the steps done end an interval between validations, or the run."""
        if self.validated_step == self.steps_done:
            return False
        interval = self.settings.validate_every * self.steps_per_epoch

        def intervals(steps: int) -> int:
            return math.floor(steps / interval + 1e-9)  # 3 * 0.1 is more than 0.3

        done = self.steps_done
        return done == self.steps or intervals(done) > intervals(done - 1)

    def validated(self, loss: float) -> bool:
        """Record a validation loss; returns whether it is the lowest so far."""
        self.validated_step = self.steps_done
        self.epoch_sums = {}
        self.schedule.validated(loss)
        best = loss < self.best_loss
        if best:
            self.best_loss = loss
            self.best_weights = {k: v.clone() for k, v in self.average.state_dict().items()}
        self.validations_since_best = 0 if best else self.validations_since_best + 1
        return best

    @property
    def stopped_early(self) -> bool:
        """Whether the settings allow no more validations without improvement."""
        return 0 < self.settings.early_stopping <= self.validations_since_best

    def result(self) -> Potential:
        """Averaged weights, last or best as the settings say, in evaluation mode."""
        if self.settings.keep == "best" and self.best_weights:
            self.average.load_state_dict(self.best_weights)
        return self.average.requires_grad_(True).eval()

    def save(self, file: Path | None) -> None:
        """Write the state atomically, in the first process."""
        random = self.processes.gather(torch.get_rng_state())
        cuda: list[Tensor] = []
        if self.parameters[0].device.type == "cuda":
            cuda = self.processes.gather(torch.cuda.get_rng_state())
        if file is not None and self.processes.first:
            self._write(file, random, cuda)
        self.processes.wait()

    def _write(self, file: Path, random: list[Tensor], cuda: list[Tensor]) -> None:
        state = {
            "settings": dataclasses.asdict(self.settings),
            "backend": self.training_step.backend,
            "potential": self.potential.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state(),
            "losses": self.losses.values,
            "random": random,
            "random_cuda": cuda,
            "epoch": self.epoch,
            "steps_in_epoch": self.steps_in_epoch,
            "epoch_sums": self.epoch_sums,
            "steps_done": self.steps_done,
            "validated_step": self.validated_step,
            "plain_steps": self.training_step.plain_steps,
            "seconds": self.seconds,
            "best_loss": self.best_loss,
            "best_weights": self.best_weights,
            "validations_since_best": self.validations_since_best,
        }
        with replacing(file) as temporary:
            torch.save(state, temporary)

    def load(self, state: Mapping[str, Any]) -> None:
        """Resume the run whose state `read_state` has read."""
        self.potential.load_state_dict(state["potential"])
        self.average.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load(state["schedule"])
        self.losses.values = dict(state["losses"])
        # With another number of processes, dropout cannot draw the same numbers.
        if len(state["random"]) == self.processes.count:
            torch.set_rng_state(state["random"][self.processes.rank])
            if state["random_cuda"] and self.parameters[0].device.type == "cuda":
                torch.cuda.set_rng_state(state["random_cuda"][self.processes.rank])
        for name in (
            "epoch", "steps_in_epoch", "steps_done", "seconds", "best_loss",
            "validations_since_best",
        ):  # fmt: skip
            setattr(self, name, state[name])
        # Earlier versions validated at ends of epochs only, and stopped before the validation.
        between = state["steps_done"] if state["steps_in_epoch"] == 0 else -1
        self.validated_step = state.get("validated_step", between)
        self.epoch_sums = dict(state["epoch_sums"])
        self._tell_of_another_length(state["settings"]["epochs"])
        device = self.parameters[0].device
        self.best_weights = {k: v.to(device) for k, v in state["best_weights"].items()}
        self.training_step.plain_steps = state["plain_steps"]

    def _tell_of_another_length(self, epochs: int) -> None:
        """Say what becomes of the learning rate where the number of epochs was another one."""
        s, per_epoch = self.settings, self.steps_per_epoch
        if epochs != s.epochs and s.schedule == "cosine" and self.steps_done < self.steps:
            earlier = Schedule(s, epochs * per_epoch)
            before = earlier.rate(min(self.steps_done, epochs * per_epoch))
            log.warning(
                "the run now has %d epochs, not %d: its learning rate goes from %.3g to %.3g, "
                "that of a run of %d epochs at this step",
                s.epochs, epochs, before, self.schedule.rate(self.steps_done), s.epochs,
            )  # fmt: skip


def read_state(file: Path, settings: TrainingSettings) -> dict[str, Any]:
    """Read the state of a run that `Run.save` wrote, to the CPU.

    Raises
    ------
    ValueError
        If it is not such a file, or belongs to a run with other settings; only ``epochs`` may
        differ, down to the epochs that have begun.
    """
    try:
        state: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True)
        theirs = state["settings"]
    except OSError:
        raise
    except Exception:  # torch raises several kinds
        raise ValueError(
            f"{file} is not a training state, or is damaged: delete it to start again"
        ) from None
    ours = dataclasses.asdict(settings)
    # A run of an earlier version has no value for an option that came later.
    defaults = dataclasses.asdict(TrainingSettings())
    for name in ours:
        value = theirs.get(name, defaults[name])
        if value != ours[name] and name != "epochs":
            raise ValueError(
                f"{file} belongs to a run with {name} {value}, not {ours[name]}: "
                "use the same settings, or delete it to start again"
            )
    begun = state["epoch"] + (state["steps_in_epoch"] > 0)
    if settings.epochs < begun:
        raise ValueError(
            f"epochs is {settings.epochs}, but {begun} have begun: expected {begun} or more"
        )
    return state
