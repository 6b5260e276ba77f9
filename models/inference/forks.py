"""Forks of a process that has run torch with several threads."""

from __future__ import annotations

import functools
import logging
import os

import torch

log = logging.getLogger("tensormd")


@functools.cache
def use_one_thread_in_forks() -> None:
    """From now on, let torch run with one thread in forks of this process.

    A fork inherits the pool of OpenMP, but not its threads: it would wait for them forever.
    """
    if hasattr(os, "register_at_fork"):  # not on Windows, which has no fork
        os.register_at_fork(after_in_parent=_tell, after_in_child=_use_one_thread)


def _use_one_thread() -> None:
    if torch.get_num_threads() > 1:
        torch.set_num_threads(1)


@functools.cache
def _tell() -> None:
    if torch.get_num_threads() > 1:
        log.info(
            "forked processes run torch with one thread: the threads of this process do not "
            "survive a fork (multiprocessing's method 'spawn' has no such limit)"
        )
