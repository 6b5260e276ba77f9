"""Early notice of a loss that explodes."""

from __future__ import annotations

import math

RISE = 5.0
"""Factor between the lowest moving mean and one that is noticed."""
SPAN = 50
"""Steps of the moving mean; noise of single batches averages out."""


class LossWatch:
    """Compares the moving mean of the loss with its lowest value so far.

    Noticed is a mean that is `RISE` times the lowest one; again only when it has grown as much
    once more, or has come back before.
    """

    def __init__(self) -> None:
        self._mean = 0.0
        self._count = 0
        self._lowest = math.inf
        self._noticed = math.inf

    def add(self, loss: float) -> float | None:
        """Record the loss of a step.

        Returns
        -------
        float | None
            The moving mean over its lowest value, if that should be said now.
        """
        self._count += 1
        self._mean += (loss - self._mean) / min(self._count, SPAN)
        if self._count < SPAN:
            return None
        if self._mean < 2 * self._lowest:
            self._lowest = min(self._lowest, self._mean)
            self._noticed = self._lowest
        if self._mean < RISE * self._noticed:
            return None
        self._noticed = self._mean
        return self._mean / self._lowest
