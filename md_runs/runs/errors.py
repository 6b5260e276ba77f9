"""Ends of a run other than success; a user's mistake is a ValueError or an OSError."""

from __future__ import annotations


class RunStopped(RuntimeError):  # noqa: N818 - an event, as StopIteration is
    """A result is not finite; the run folder holds the last good state."""


class Interrupted(Exception):  # noqa: N818
    """A run was asked to stop, and has saved.

    Attributes
    ----------
    exit_code
        Exit code of a process that the signal ended: 130 or 143.
    """

    def __init__(self, message: str, signal_number: int) -> None:
        super().__init__(message)
        self.exit_code = 128 + signal_number
