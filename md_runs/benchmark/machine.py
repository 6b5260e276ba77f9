"""The machine of a benchmark: CPU, GPU, versions and number of threads."""

from __future__ import annotations

import contextlib
import os
import platform
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from ..runs.versions import versions
from .worker import thread_variables


@contextlib.contextmanager
def using_threads(threads: int) -> Iterator[None]:
    """Use this many threads in every library until the end of the block."""
    variables = thread_variables(threads)
    before = {name: os.environ.get(name) for name in variables}
    torch_before = torch.get_num_threads()
    os.environ.update(variables)  # for what is loaded from now on
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(torch_before)
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


def describe_machine(device: torch.device, threads: int) -> dict[str, Any]:
    """Processor, GPU, threads and versions."""
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    return {
        "processor": processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None,
        "threads": threads,
        "device": str(device),
        "gpu": gpu,
        "platform": platform.platform(),
        "versions": versions(),
    }


def processor() -> str:
    """Name of the CPU."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
