"""Calls of kernels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ...inference.kernels.cpu.compiled import kernel
from ...inference.kernels.cpu.threads import (
    may_start_threads,
    threads_of_kernels,
    threads_to_use,
)


def launch(function: Callable[..., None], *args: Any) -> None:
    """Run a kernel with as many threads as torch uses."""
    threads = threads_to_use()
    if threads == 1 or not may_start_threads():
        kernel(function, threads=False)(*args)
    else:
        with threads_of_kernels(threads):
            kernel(function, threads=True)(*args)
