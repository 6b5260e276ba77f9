"""How runs end other than well; what a user did wrong is a ValueError or an OSError."""

from __future__ import annotations


class RunStopped(RuntimeError):  # noqa: N818 - an event, as StopIteration is
    """The numbers went wrong; the run folder holds the last good state."""


class Interrupted(Exception):  # noqa: N818
    """A run was asked to stop, and has saved.

    Attributes
    ----------
    exit_code
        What a shell expects of a process that the signal ended: 130 or 143.
    """

    def __init__(self, message: str, signal_number: int) -> None:
        super().__init__(message)
        self.exit_code = 128 + signal_number
