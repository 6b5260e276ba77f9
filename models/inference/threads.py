"""The number of threads that share a step: chosen by timing, while steps run.

Results do not depend on it, so that it may change at any step. A second thread saves up to half of
the time on an idle machine; beside other busy processes it loses time, because a step ends only
when all of its threads have had their turn.
"""

from __future__ import annotations

import functools
import math
import os
import time
from collections.abc import Callable
from pathlib import Path

import torch

FEW_ATOMS = 60
"""Atoms up to which steps begin with one thread; more begin with all."""
FIRST_STEPS = 10
"""Steps before the first trial."""
WINDOW = 0.02
"""Least time of a measurement, s."""
WINDOW_STEPS = 3
"""Least number of steps of a measurement."""
PERIOD = 1.0
"""Least time between trials, s."""
SHARE = 0.02
"""Largest part of all time that trials of slower numbers may cost."""
GAIN = 0.98
"""A number is better if it takes less than this part of the time, twice in a row."""
FAR_SLOWER = 1.3
"""A trial ends early if steps take this many times as long."""


def usable_cores() -> int:
    """Number of cores that this process may use: affinity and the quota of its control group."""
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    else:
        cores = os.cpu_count() or 1
    return max(1, min(cores, _quota()))


@functools.cache
def _quota(root: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> int:
    """Whole number of cores of the tightest quota of control groups; without one, a large number.

    Both versions of control groups are read; a container sees its own group as the root.
    """
    try:
        groups = [line.split(":", 2)[1:] for line in own.read_text().splitlines()]
    except (OSError, IndexError):
        return 2**31
    found = math.inf
    for controllers, path in groups:
        if controllers and "cpu" not in controllers.split(","):
            continue
        top = root / "cpu" if controllers else root
        group = top / path.lstrip("/")
        for folder in (group, *group.parents):
            found = min(found, _quota_of(folder))
            if folder == top:
                break
    return math.ceil(min(found, 2**31))


def _quota_of(group: Path) -> float:
    """Cores of the quota that the files of one control group state, or infinity."""
    try:
        if (group / "cpu.max").exists():
            quota, period = (group / "cpu.max").read_text().split()
        else:
            quota, period = (
                (group / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period")
            )
        return float(quota) / float(period) if float(quota) > 0 else math.inf
    except (OSError, ValueError, ZeroDivisionError):  # "max", or no such files
        return math.inf


def most_threads() -> int:
    """Upper bound of the number of threads: that of torch, and of the usable cores."""
    return min(torch.get_num_threads(), usable_cores())


class ThreadChoice:
    """The number of threads for steps of one size.

    Now and then, some steps run with the next smaller or larger number. It is kept if it is faster
    twice in a row; the cost of such trials is bounded by `SHARE`.

    Parameters
    ----------
    atoms
        Number of atoms, which decides how steps begin.
    clock
        Returns the time, s.
    cores
        Returns the number of cores that may be used, asked at each trial.
    """

    def __init__(
        self,
        atoms: int,
        clock: Callable[[], float] = time.perf_counter,
        cores: Callable[[], int] = lambda: usable_cores(),
    ) -> None:
        self._atoms, self._clock, self._read_cores = atoms, clock, cores
        self._cores = cores()
        self._begin(0)

    def _begin(self, limit: int) -> None:
        """Forget all measurements; ``limit`` is the largest number asked for."""
        self._limit = limit
        self._most = max(1, min(limit, self._cores))
        self._now = 1 if self._atoms <= FEW_ATOMS else self._most
        self._up = self._now < self._most
        self._trial: _Trial | None = None
        self._times: dict[int, float] = {}
        self._steps = 0
        self._due = -math.inf

    def threads(self, limit: int) -> int:
        """Number of threads of the next step, at most ``limit``."""
        if limit != self._limit:
            self._begin(limit)
        return self._now if self._trial is None else self._trial.threads

    def add(self, seconds: float) -> None:
        """Tell how long the step took."""
        self._steps += 1
        if self._trial is None:
            if self._steps >= FIRST_STEPS and self._clock() >= self._due:
                self._start_trial()
        elif self._trial.add(seconds):
            self._end_trial(self._trial)

    def _start_trial(self) -> None:
        cores = self._read_cores()
        if cores != self._cores:
            self._cores = cores
            self._begin(self._limit)
            return
        numbers = candidates(self._most)
        for _ in range(2):
            place = numbers.index(self._now) + (1 if self._up else -1)
            if 0 <= place < len(numbers):
                self._trial = _Trial(self._now, numbers[place])
                return
            self._up = not self._up
        self._due = self._clock() + PERIOD  # one thread is all there is

    def _end_trial(self, trial: _Trial) -> None:
        self._trial = None
        self._times = {trial.now: trial.means[0], trial.other: trial.means[1]}
        if trial.better:
            self._now, self._due = trial.other, -math.inf  # and further in this direction
        else:
            self._up = not self._up
            self._due = self._clock() + max(PERIOD, trial.cost / SHARE)

    def __str__(self) -> str:
        if not self._times:
            timed = f"{self._atoms} atoms, not timed yet"
        else:
            timed = ", ".join(
                f"{1e3 * seconds:.3g} ms a step with {number}"
                for number, seconds in sorted(self._times.items())
            )
        return f"{self._now} of at most {self._most} ({timed})"


class _Trial:
    """Windows of steps with the present number, the other one twice, and the present one."""

    def __init__(self, now: int, other: int) -> None:
        self.now, self.other = now, other
        self.means: list[float] = []
        """Mean time of a step in each window, s."""
        self.cost = 0.0
        """Time lost to the other number, s."""
        self.better = False
        self._steps: list[float] = []
        self._moved = False

    @property
    def threads(self) -> int:
        """Number of threads of the next step."""
        return self.other if len(self.means) in (1, 2) else self.now

    def add(self, seconds: float) -> bool:
        """Add a step; returns whether the trial has ended."""
        if len(self.means) in (1, 2):
            self.cost += max(0.0, seconds - self.means[0])
        if self._moved:  # the first step with another number finds cold memory
            self._moved = False
            return False
        steps = self._steps
        steps.append(seconds)
        if len(self.means) == 1 and min(steps) > FAR_SLOWER * self.means[0]:
            self.means.append(sum(steps) / len(steps))
            return True
        if len(steps) < WINDOW_STEPS or sum(steps) < WINDOW:
            return False
        self.means.append(sum(steps) / len(steps))
        self._steps = []
        self._moved = len(self.means) in (1, 3)
        if len(self.means) == 2:
            return self.means[1] >= GAIN * self.means[0]
        if len(self.means) == 4:
            self.better = self.means[2] < GAIN * self.means[3]
            return True
        return False


def candidates(most: int) -> list[int]:
    """Numbers of threads to choose from, each at most half as large again as the one before."""
    powers = (2**k for k in range(1, max(1, most).bit_length()))
    return sorted({1, most, *(n for p in powers for n in (p, 3 * p // 2) if n < most)})
