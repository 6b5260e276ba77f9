"""Learning rates: warm-up, then a cosine, steps down at plateaus, or a constant."""

from __future__ import annotations

import math

from .settings import TrainingSettings


class Schedule:
    """Learning rate of each step of a run.

    The warm-up is a linear factor on the rate of the schedule.

    Parameters
    ----------
    settings
        Settings of the run.
    steps
        Number of steps of the whole run.
    """

    def __init__(self, settings: TrainingSettings, steps: int) -> None:
        self.settings = settings
        self.steps = steps
        self.factor = 1.0
        """Factor from the plateaus so far."""
        self._best = math.inf
        self._waited = 0

    def rate(self, step: int) -> float:
        """Learning rate of a step, counted from 0."""
        s = self.settings
        warm = min(1.0, (step + 1) / max(s.warm_up_steps, 1))
        if s.schedule == "cosine":
            return s.learning_rate * warm * (0.01 + 0.99 * self._cosine(step))
        return s.learning_rate * warm * self.factor

    def _cosine(self, step: int) -> float:
        return 0.5 * (1 + math.cos(math.pi * step / self.steps))

    def validated(self, loss: float) -> None:
        """Record a validation loss, like torch's ReduceLROnPlateau with threshold 1e-4."""
        s = self.settings
        if s.schedule != "plateau":
            return
        if loss < self._best * (1 - 1e-4):
            self._best, self._waited = loss, 0
            return
        self._waited += 1
        if self._waited > s.plateau_patience:
            lowest = s.plateau_minimum / s.learning_rate
            self.factor = max(self.factor * s.plateau_factor, min(lowest, self.factor))
            self._waited = 0

    def state(self) -> dict[str, float]:
        """State for `load`."""
        return {"factor": self.factor, "best": self._best, "waited": self._waited}

    def load(self, state: dict[str, float]) -> None:
        """Resume from a state."""
        self.factor, self._best = state["factor"], state["best"]
        self._waited = int(state["waited"])
