"""Calls of kernels, of which a step makes many."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ...inference.kernels.calls import (
    entry_point,
    may_use_threads,
    run_in_threads,
    threads_to_use,
)


def launch(function: Callable[..., None], *args: Any) -> None:
    """Run a kernel with as many threads as torch uses."""
    threads = threads_to_use()
    parallel = threads > 1 and may_use_threads()
    entry = entry_point(function, parallel, args)
    if parallel:
        run_in_threads(threads, entry, args)
    else:
        entry(*args)
