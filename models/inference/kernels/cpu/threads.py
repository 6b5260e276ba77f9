"""The threads that run kernels."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import numba
import torch

from ...forks import may_start_threads

_ONE_AT_A_TIME = threading.Lock()
_started_in: int | None = None
"""Id of the process that started the kernels' threads; its forks cannot use them."""


def threads_to_use() -> int:
    """Number of threads that torch uses, as far as Numba has them."""
    return torch.get_num_threads()


def may_use_threads() -> bool:
    """False in a fork of a process that started threads, because threads do not survive a fork."""
    global _started_in
    if _started_in is None:
        _started_in = os.getpid()
    return _started_in == os.getpid() and may_start_threads()


@contextmanager
def threads_of_kernels(threads: int) -> Iterator[None]:
    """Let kernels compiled for threads run with so many of them.

    Thread pools that end the process if two threads enter at the same time are locked meanwhile.
    """
    try:
        safe = numba.threading_layer() in ("omp", "tbb")
    except ValueError:  # not started yet
        safe = False
    with nullcontext() if safe else _ONE_AT_A_TIME:
        before = torch.get_num_threads()
        numba.set_num_threads(threads)
        if torch.get_num_threads() != before:
            # Starting its threads, numba sets OpenMP's number, which is torch's.
            torch.set_num_threads(before)
        yield
