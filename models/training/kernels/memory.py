"""Arrays of a step, kept for the next ones."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor


class Memory:
    """Arrays that one batch after the other uses: new ones would cost as much as their use."""

    def __init__(self) -> None:
        self._arrays: list[NDArray[Any]] = []
        self._taken = 0
        self.uses = 0
        """Number of batches that have used it."""

    def start(self) -> None:
        """Let all arrays be taken again."""
        self._taken = 0
        self.uses += 1

    def take(self, size: int, dtype: np.dtype[Any]) -> NDArray[Any]:
        """An array (size,) without values, until the next start."""
        if self._taken == len(self._arrays):
            self._arrays.append(np.empty(0, dtype))
        if self._arrays[self._taken].size < size:
            self._arrays[self._taken] = np.empty(size + size // 4, dtype)
        self._taken += 1
        return self._arrays[self._taken - 1][:size]


def flat(x: Tensor) -> NDArray[Any]:
    """The numbers of a contiguous tensor."""
    return x.detach().view(-1).numpy()
