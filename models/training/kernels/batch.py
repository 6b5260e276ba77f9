"""The arrays of a batch, and the kernels that run on them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ...inference.kernels.cpu.components import shape_of
from ...inference.kernels.cpu.dense import pack_matrix
from ...inference.kernels.cpu.simd import LANES
from ...maths.cartesian import COMPONENTS
from .edges import Edges
from .launch import launch
from .layout import Layout, add_products

Features = NDArray[Any]
"""Components of all atoms and channels, flat; see `layout`."""


class Memory:
    """Arrays that one batch after the other uses: new ones would cost as much as their use."""

    def __init__(self) -> None:
        self._arrays: list[Tensor] = []
        self._taken = 0
        self.uses = 0
        """Number of batches that have used it."""

    def start(self) -> None:
        """Let all arrays be taken again."""
        self._taken = 0
        self.uses += 1

    def take(self, size: int, dtype: torch.dtype) -> Tensor:
        """An array (size,) without values, until the next start."""
        if self._taken == len(self._arrays):
            self._arrays.append(torch.empty(0, dtype=dtype))
        if self._arrays[self._taken].numel() < size:
            self._arrays[self._taken] = torch.empty(size + size // 4, dtype=dtype)
        self._taken += 1
        return self._arrays[self._taken - 1][:size]


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
        Memory, used until the next batch that is given it.
    """

    def __init__(
        self, irreps: str, channels: int, parity_conserving: bool, edges: Edges, charge: Tensor,
        memory: Memory,
    ) -> None:  # fmt: skip
        memory.start()
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

    def run(self, function: Callable[..., None], *args: Any) -> None:
        """Run a kernel; tensors are passed as flat arrays."""
        launch(function, self.layout, *(flat(x) if torch.is_tensor(x) else x for x in args))

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
        return [self.memory.take(size, self.dtype).numpy() for _ in range(count)]

    def new_factors(self) -> Tensor:
        """Factors of irreps, (N, irreps, width), without values."""
        return torch.empty(self.layout.atoms, len(self.sizes), self.width, dtype=self.dtype)

    def factors(self, x: Tensor) -> Tensor:
        """(N, irreps F) -> factors of irreps, (N, irreps, width)."""
        return self.padded(x.view(len(x), len(self.sizes), self.channels)).contiguous()

    def side_by_side(self, factors: Tensor) -> Tensor:
        """(N, irreps, width) -> (N, irreps F)."""
        return factors[..., : self.channels].flatten(1)

    def padded(self, x: Tensor) -> Tensor:
        """(..., F) -> (..., width)."""
        missing = self.width - x.shape[-1]
        return nn.functional.pad(x, (0, missing)) if missing else x

    # Matrices

    def padded_matrices(self, matrices: Tensor) -> Tensor:
        """(irreps, F, F) -> (irreps, width, width)."""
        missing = self.width - self.channels
        return nn.functional.pad(matrices, (0, missing, 0, missing)) if missing else matrices

    def products(self, g: Features, dg: Features, x: Features, dx: Features) -> Tensor:
        r"""The gradients :math:`\tilde y x^T + \bar y \dot x^T` of matrices W in y = W x.

        ``g`` and ``dg`` are the gradient of y and its tangent.
        """
        found = torch.zeros(len(self.sizes), self.width, self.width, dtype=self.dtype)
        self.run(add_products, dg, x, found)
        self.run(add_products, g, dx, found)
        return found


def flat(x: Tensor) -> NDArray[Any]:
    """The numbers of a contiguous tensor."""
    return x.detach().view(-1).numpy()


def packed(matrices: Tensor) -> NDArray[Any]:
    """Matrices (irreps, inputs, outputs), as kernels read them."""
    return np.concatenate([pack_matrix(matrix) for matrix in matrices.detach().numpy()])
