"""Arrays of a step, kept for the next ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

LINE = 64
"""Bytes of a cache line: an array begins with one, so that no vector is in two."""


class Memory:
    """Arrays that one batch after the other uses: new ones would cost as much as their use."""

    def __init__(self) -> None:
        self._bytes = np.empty(0, np.uint8)
        self._taken = 0
        self.uses = 0
        """Number of batches that have used it."""

    def start(self) -> None:
        """Let all arrays be taken again."""
        if self._taken > self._bytes.size:  # the last batch found too few
            self._bytes = np.empty(self._taken + self._taken // 4, np.uint8)
        self._taken = -self._bytes.ctypes.data % LINE
        self.uses += 1

    def take(self, size: int, dtype: np.dtype[Any]) -> NDArray[Any]:
        """An array (size,) without values, until the next start."""
        count = size * dtype.itemsize
        first, self._taken = self._taken, self._taken + -(-count // LINE) * LINE
        if self._taken > self._bytes.size:
            return np.empty(count + LINE, np.uint8)[:count].view(dtype)
        return self._bytes[first : first + count].view(dtype)


# torch would fill and copy these with its own threads, which spin for a while afterwards: those of
# the kernels would have to share the cores with them.


def zeros(*shape: int, dtype: np.dtype[Any]) -> Tensor:
    """A tensor of zeros."""
    return torch.from_numpy(np.zeros(shape, dtype))


def joined(tensors: Sequence[Tensor]) -> NDArray[Any]:
    """Numbers of tensors, one behind the other."""
    return np.concatenate([x.detach().numpy().ravel() for x in tensors])


def flat(x: Tensor) -> NDArray[Any]:
    """The numbers of a contiguous tensor."""
    return x.detach().view(-1).numpy()
