"""Constants that stay float64 regardless of the network's dtype."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn


class DoubleConstants(nn.Module):
    """A module whose buffers follow the device of the network, but never its dtype.

    ``network.float().double()`` would truncate a plain buffer to seven digits; these keep all.
    """

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> DoubleConstants:
        for name, buffer in self._buffers.items():
            if buffer is not None:
                self._buffers[name] = buffer.to(fn(buffer).device)
        return self
