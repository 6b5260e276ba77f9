"""One training in several processes, started by torchrun, one for each GPU or each few cores.

    torchrun --nproc-per-node 4 -m tensormd.md_runs.command.main train config.yaml

Every process holds all weights and draws the same order of frames. Of each batch a process takes
its share; gradients are added up with the weight that each share has in the batch, so that a
step is that of the whole batch, whatever the number of processes (to rounding: sums are taken in
another order; and dropout draws other numbers). Process 0 alone validates and writes files.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True)
class Processes:
    """One process among those that train together."""

    rank: int = 0
    count: int = 1
    device: str = "cpu"
    """That this process shall use."""

    @property
    def first(self) -> bool:
        """Whether this is the one that validates and writes."""
        return self.rank == 0

    def share(self, frames: Sequence[int]) -> Sequence[int]:
        """What this process takes of a batch; it may be nothing."""
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
        """Until all processes have come here."""
        if self.count > 1:
            dist.barrier()

    def from_first(self, values: Sequence[float]) -> list[float]:
        """The first process's numbers, in all."""
        if self.count == 1:
            return list(values)
        tensor = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.broadcast(tensor, 0)
        return tensor.tolist()

    def copy_from_first(self, tensors: Sequence[Tensor]) -> None:
        """Make tensors those of the first process."""
        if self.count > 1:
            for tensor in tensors:
                dist.broadcast(tensor, 0)

    def gather(self, values: Tensor) -> list[Tensor]:
        """Tensors of the same shape, of every process, on the CPU."""
        if self.count == 1:
            return [values.cpu()]
        values = values.to(self.device)
        parts = [torch.empty_like(values) for _ in range(self.count)]
        dist.all_gather(parts, values)
        return [part.cpu() for part in parts]


@contextlib.contextmanager
def start_processes(device: str | torch.device = "cpu") -> Iterator[Processes]:
    """Join the processes that torchrun has started; without torchrun, just one.

    Parameters
    ----------
    device
        ``cpu``: they talk through gloo; ``cuda``: through nccl, each on the GPU of its local
        rank.

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
                f"{torch.cuda.device_count()}; start as many processes"
            )
        torch.cuda.set_device(local)
        device = f"cuda:{local}"
    dist.init_process_group("nccl" if kind == "cuda" else "gloo", rank=rank, world_size=count)
    try:
        yield Processes(rank, count, str(device))
    finally:
        dist.destroy_process_group()


def current_processes(device: str | torch.device) -> Processes:
    """Of the group that `start_processes`, or the caller, has joined."""
    if dist.is_available() and dist.is_initialized():
        return Processes(dist.get_rank(), dist.get_world_size(), str(device))
    return Processes(device=str(device))
