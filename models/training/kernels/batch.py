"""The arrays of a batch, and the kernels that run on them."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ...inference.kernels.cpu.components import shape_of
from ...inference.kernels.cpu.simd import LANES
from ...maths.cartesian import COMPONENTS
from .edges import Edges
from .layout import Layout, add_products
from .memory import Memory, flat, zeros

Features = NDArray[Any]
"""Components of all atoms and channels, flat; see `layout`."""


class Batch:
    """Edges and arrays of one batch.

    Parameters
    ----------
    irreps, channels, parity_conserving
        Those of the network.
    edges
        Edges of the batch.
    charge
        (N,), 1 + q / 10.
    memory
        Memory, started for this batch.
    """

    def __init__(
        self, irreps: str, channels: int, parity_conserving: bool, edges: Edges, charge: Tensor,
        memory: Memory,
    ) -> None:  # fmt: skip
        self.memory, self.use = memory, memory.uses
        self.channels, self.edges, self.dtype = channels, edges, charge.dtype
        self.charge: NDArray[Any] = charge.numpy()
        self.sizes = [COMPONENTS[irrep] for irrep in irreps]
        self.width = -(-channels // LANES) * LANES
        components = sum(self.sizes)
        places = LANES * np.arange(components * len(charge)).reshape(-1, components)
        rows = np.zeros((len(irreps), max(self.sizes) * len(charge)), np.int64)
        for k, part in enumerate(np.split(places, np.cumsum(self.sizes)[:-1], axis=1)):
            rows[k, : part.size] = part.ravel()
        self.layout = Layout(
            shape=shape_of(components),
            atoms=len(charge),
            chunks=self.width // LANES,
            sizes=np.array(self.sizes),
            rows=rows,
            zeros=np.zeros(self.width, self.charge.dtype),
            parity_conserving=parity_conserving,
        )

    def check(self) -> None:
        """Raise a RuntimeError if another batch has used the memory meanwhile."""
        if self.memory.uses != self.use:
            raise RuntimeError(
                "another batch was evaluated before the gradient of this one: expected values and "
                "gradient of a batch in turn"
            )

    # Arrays

    def new(self, count: int) -> list[Features]:
        """Features without values."""
        size = self.layout.atoms * sum(self.sizes) * self.width
        return [self.memory.take(size, self.charge.dtype) for _ in range(count)]

    def new_factors(self, irreps: int = 1) -> Features:
        """Factors of irreps, (irreps, chunks, N, 16), without values."""
        return self.memory.take(irreps * self.layout.atoms * self.width, self.charge.dtype)

    def products(self, g: Features, dg: Features, x: Features, dx: Features) -> Tensor:
        r"""The gradients :math:`\tilde y x^T + \bar y \dot x^T` of matrices W in y = W x.

        ``g`` and ``dg`` are the gradient of y and its tangent.
        """
        found = zeros(len(self.sizes), self.width, self.width, dtype=self.charge.dtype)
        add_products(self.layout, dg, x, flat(found))
        add_products(self.layout, g, dx, flat(found))
        return found
