"""What a training says as it goes: a progress bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from .console import SECONDS_BETWEEN_LINES, say

if TYPE_CHECKING:
    from ...models.training import Progress
    from ..train.run import Watcher


@contextmanager
def train_progress() -> Iterator[Watcher]:
    """A watcher for `start_training`: a bar on a terminal, else a line every ten seconds.

    Of several processes only the first is watched.
    """
    if not sys.stderr.isatty():
        yield LineWatcher()
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    with Bar(
        TextColumn("[bold]train"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
        console=Console(stderr=True),
        refresh_per_second=5,
    ) as bar:
        yield _BarWatcher(bar)


class LineWatcher:
    """A line at each validation, and between them every so often."""

    def __init__(self) -> None:
        self._spoke = time.monotonic()

    def stepped(self, epoch: int, step: int, steps: int, loss: float) -> None:
        """After every step."""
        if time.monotonic() - self._spoke > SECONDS_BETWEEN_LINES:
            self._spoke = time.monotonic()
            say(f"epoch {epoch}  step {step} of {steps}  loss {loss:.5g}")

    def validated(self, progress: Progress) -> None:
        """After every validation."""
        self._spoke = time.monotonic()
        say(f"epoch {progress.epoch}  {progress.seconds:.0f} s  {note(progress)}")


class _BarWatcher:
    def __init__(self, bar: Any) -> None:
        self._bar = bar
        self._task = bar.add_task("train", total=None, note="")

    def stepped(self, epoch: int, step: int, steps: int, loss: float) -> None:
        self._bar.update(self._task, completed=step, total=steps)

    def validated(self, progress: Progress) -> None:
        self._bar.update(self._task, note=f"epoch {progress.epoch}  {note(progress)}")


def note(progress: Progress) -> str:
    """Loss and validation errors (mean absolute) in one line."""
    errors = "  ".join(
        f"{name} {each.mae:.4g} {each.unit}" for name, each in progress.errors.items()
    )
    return f"loss {progress.loss:.5g}  watched {progress.validation_loss:.5g}: {errors}"
