"""Ctrl-C and SIGTERM ask a run to stop after the step that it is in."""

from __future__ import annotations

import signal
from types import FrameType, TracebackType
from typing import Any

from .errors import Interrupted


class StopRequest:
    """While entered, remembers a signal instead of ending the process.

    A second Ctrl-C ends the process at once. Outside the main thread, where Python allows no
    handlers, nothing is caught. Loops ask `asked` after each step.

    Parameters
    ----------
    at_once
        Whether a signal raises KeyboardInterrupt, wherever the process is, until `wait_for_steps`
        is called: for preparations that take minutes and have nothing to save.
    """

    def __init__(self, at_once: bool = False) -> None:
        self._at_once = at_once
        self._signal: int | None = None
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        for number in (signal.SIGINT, signal.SIGTERM):
            try:
                self._previous[number] = signal.signal(number, self._remember)
            except ValueError:
                break
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._restore()

    def wait_for_steps(self) -> None:
        """Let the process finish its step from here on."""
        self._at_once = False

    def asked(self) -> bool:
        """Whether a signal has arrived."""
        return self._signal is not None

    def interrupted(self, message: str) -> Interrupted:
        """The exception that tells what was saved, with the exit code of the signal.

        Where another process got the signal, that of SIGTERM.
        """
        return Interrupted(message, self._signal or signal.SIGTERM)

    def _remember(self, number: int, frame: FrameType | None) -> None:
        self._signal = number
        self._restore()
        if self._at_once:
            raise KeyboardInterrupt

    def _restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous.clear()
