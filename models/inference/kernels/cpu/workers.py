"""Threads that help the calling thread with a step.

Soon after a call they sleep until the next: torch's own threads stay as they are, and a step never
waits for a helper that the system does not run (see `team`).
"""

from __future__ import annotations

import functools
import itertools
import os
import queue
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import numpy as np

from .team import LINE, Team, counters


class Workers:
    """Threads of this process that run functions, as soon as they can."""

    def __init__(self) -> None:
        self._calls: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._count = 0
        self._numbers = itertools.count(1)
        self._known = np.zeros(LINE, np.int64)
        self._starting = threading.Lock()

    def offer(self, call: Callable[[], None], threads: int) -> None:
        """Have up to ``threads`` of them run a function, in addition to the calling thread."""
        if self._count < threads:
            with self._starting:
                for number in range(self._count, threads):
                    name = f"tensormd-{number}"
                    threading.Thread(target=self._work, name=name, daemon=True).start()
                    self._count = number + 1
        # Calls that nobody has taken yet belong to steps that are over, or need no more help.
        while self._calls.qsize() > threads:
            with suppress(queue.Empty):
                self._calls.get_nowait()
        for _ in range(threads):
            self._calls.put(call)

    def team(self, phases: int) -> Team:
        """That of the next call."""
        return Team(True, next(self._numbers), self._known, counters(phases))

    def _work(self) -> None:
        while True:
            self._calls.get()()


_workers = Workers()


def new_team(phases: int) -> Team:
    """The threads of a new call, which lead it until `run_with_workers` finds others."""
    return _workers.team(phases)


def run_with_workers(kernel: Callable[..., None], args: tuple[Any, ...], threads: int) -> None:
    """Run a kernel in this thread, and in up to ``threads - 1`` others that come in time.

    Its first argument is the `new_team` of the call, or has the fields of one.
    """
    if threads > 1:
        helper = args[0]._replace(leads=False)
        _workers.offer(functools.partial(kernel, helper, *args[1:]), threads - 1)
    kernel(*args)


def _forget() -> None:
    """Threads do not survive a fork: the child starts its own."""
    global _workers
    _workers = Workers()


if hasattr(os, "register_at_fork"):  # not on Windows, which has no fork
    os.register_at_fork(after_in_child=_forget)
