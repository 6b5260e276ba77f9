"""Training in several processes, started by torchrun: one per GPU or per group of cores.

    torchrun --nproc-per-node 4 -m tensormd.md_runs.command.main train config.yaml

Every process holds all weights and draws the same order of frames. Each process evaluates its
share of a batch. Gradients are summed with the weight of each share, so that a step does not
depend on the number of processes (except for rounding, because sums are taken in another order,
and for dropout, which draws other numbers). Only process 0 validates and writes files. Each
process has its share of the cores, see `threads_of_process`.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from ..inference.threads import usable_cores


@dataclass(frozen=True)
class Processes:
    """One of the processes of a training."""

    rank: int = 0
    """Index of this process."""
    count: int = 1
    """Number of processes."""
    device: str = "cpu"
    """Device of this process."""

    @property
    def first(self) -> bool:
        """Whether this process validates and writes."""
        return self.rank == 0

    def share(self, frames: Sequence[int]) -> Sequence[int]:
        """Frames of a batch that this process evaluates; possibly none."""
        return frames[self.rank :: self.count]

    def add(self, values: Tensor) -> None:
        """Replace values by their sums over all processes."""
        if self.count > 1:
            dist.all_reduce(values)

    def any(self, flag: bool) -> bool:
        """Whether the flag is set in any process."""
        if self.count == 1:
            return flag
        sum_of_flags = torch.tensor(float(flag), device=self.device)
        dist.all_reduce(sum_of_flags)
        return bool(sum_of_flags > 0)

    def wait(self) -> None:
        """Wait until all processes have called this."""
        if self.count > 1:
            dist.barrier()

    def from_first(self, values: Sequence[float]) -> list[float]:
        """Numbers of the first process, returned in all processes."""
        if self.count == 1:
            return list(values)
        tensor = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.broadcast(tensor, 0)
        return tensor.tolist()

    def copy_from_first(self, tensors: Sequence[Tensor]) -> None:
        """Overwrite tensors with those of the first process."""
        if self.count > 1:
            for tensor in tensors:
                dist.broadcast(tensor, 0)

    def gather(self, values: Tensor) -> list[Tensor]:
        """Tensors of all processes, which have the same shape, on the CPU."""
        if self.count == 1:
            return [values.cpu()]
        values = values.to(self.device)
        parts = [torch.empty_like(values) for _ in range(self.count)]
        dist.all_gather(parts, values)
        return [part.cpu() for part in parts]


@contextlib.contextmanager
def start_processes(device: str | torch.device = "cpu") -> Iterator[Processes]:
    """Join the processes started by torchrun; without torchrun there is only one.

    Parameters
    ----------
    device
        ``cpu``: processes communicate through gloo; ``cuda``: through nccl, each on the GPU of its
        local rank.

    Raises
    ------
    ValueError
        If there are more processes on this machine than GPUs.
    """
    kind = torch.device(device).type
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count == 1:
        yield Processes(device=str(device))
        return
    rank, local = int(os.environ["RANK"]), int(os.environ.get("LOCAL_RANK", "0"))
    if kind == "cuda":
        if local >= torch.cuda.device_count():
            raise ValueError(
                f"process {local} of this machine has no GPU of its own: there are "
                f"{torch.cuda.device_count()}; start at most as many processes"
            )
        torch.cuda.set_device(local)
        device = f"cuda:{local}"
    dist.init_process_group("nccl" if kind == "cuda" else "gloo", rank=rank, world_size=count)
    try:
        yield Processes(rank, count, str(device))
    finally:
        dist.destroy_process_group()


def threads_of_process() -> int | None:
    """Share of the processor's cores of each process that torchrun starts on this machine.

    None: there is one process, or ``OMP_NUM_THREADS`` gives a number. torchrun itself sets it to
    1, which is therefore taken as no number.
    """
    count = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if count == 1 or os.environ.get("OMP_NUM_THREADS", "1") != "1":
        return None
    return max(1, usable_cores() // count)


def current_processes(device: str | torch.device) -> Processes:
    """Processes of the group that `start_processes`, or the caller, has joined."""
    if dist.is_available() and dist.is_initialized():
        return Processes(dist.get_rank(), dist.get_world_size(), str(device))
    return Processes(device=str(device))
