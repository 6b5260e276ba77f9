"""The fused operators on a GPU: launches the kernels of `neighbors` and `algebra`.

Import it only where Triton is installed (`pip install triton`; torch's CUDA builds include it).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import algebra, neighbors
from .rows import EdgeRows, Geometry

EDGE_BLOCK = 32
"""Edges per iteration of the geometry and force kernels."""
ELEMENT_BLOCK = 256
"""Elements, one per atom and channel, of a program of `algebra`."""
ATOM_BLOCK = 512
"""Atoms per iteration of the sums over systems."""
CHANNEL_BLOCK = 128
"""Largest number of channels of a program of a neighbour sum."""


class TritonOperators:
    """Operators of `tensornet_step` on CUDA devices (and anywhere in Triton's interpreter).

    Nothing is read back from the device. All tensors must be contiguous and on one device;
    features (9, N, F) have nine components. The function of the same name in
    ``tests/support/kernel_equations.py`` defines what each operator computes.
    """

    def geometry(
        self, positions: Tensor, cell: Tensor, system: Tensor, edges: EdgeRows, *, length: float,
        lower: float, cutoff: float, intervals: int, dtype: torch.dtype,
    ) -> Geometry:  # fmt: skip
        """Directions, distances and places in the radial tables, computed in float64.

        ``length`` is the network's unit of length in Angstrom; the cutoffs are in that unit.
        """
        room, device = edges.senders.shape[0], positions.device
        at = Geometry(
            unit=torch.empty(room, 3, dtype=dtype, device=device),
            distance=torch.empty(room, dtype=dtype, device=device),
            knot=torch.empty(room, dtype=torch.int32, device=device),
            fraction=torch.empty(room, dtype=dtype, device=device),
        )
        if positions.shape[0]:
            neighbors.geometry_kernel[(positions.shape[0],)](
                positions, cell, system, edges.offsets, edges.senders, edges.shift, *at,
                LENGTH=float(length), LOWER=float(lower), CUTOFF=float(cutoff),
                INTERVALS=intervals, BLOCK=EDGE_BLOCK, num_warps=1,
            )  # fmt: skip
        return at

    def embed(
        self, at: Geometry, edges: EdgeRows, table: Tensor, at_zero: Tensor, receiver: Tensor,
        sender: Tensor, numbers: Tensor,
    ) -> Tensor:  # fmt: skip
        """The embedding's sum over neighbours, (9, N, F)."""
        x = table.new_empty(9, numbers.shape[0], receiver.shape[1])
        _over_neighbors(
            neighbors.embed_kernel, x, edges.offsets, edges.senders, at.unit, at.knot,
            at.fraction, table, at_zero, receiver, sender, numbers, x, x[0].numel(),
        )  # fmt: skip
        return x

    def embed_backward(
        self, at: Geometry, edges: EdgeRows, table: Tensor, receiver: Tensor, sender: Tensor,
        numbers: Tensor, g: Tensor,
    ) -> Tensor:  # fmt: skip
        """Gradient of `embed` with respect to the edge vectors (E, 3); unset beyond the cutoff."""
        room = edges.senders.shape[0]
        d_vector = table.new_empty(_channel_blocks(g)[1], room, 3)
        _over_neighbors(
            neighbors.embed_backward_kernel, g, edges.offsets, edges.senders, at.unit,
            at.distance, at.knot, at.fraction, table, receiver, sender, numbers, g, d_vector,
            g[0].numel(), room,
        )  # fmt: skip
        return d_vector[0] if len(d_vector) == 1 else d_vector.sum(0)

    def message(
        self, at: Geometry, edges: EdgeRows, table: Tensor, at_zero: Tensor, y: Tensor
    ) -> Tensor:
        """The sum over neighbours of an interaction layer, (9, N, F)."""
        return self._message(at, edges, table, at_zero, y, None)[0]

    def message_backward(
        self, at: Geometry, edges: EdgeRows, table: Tensor, at_zero: Tensor, y: Tensor, g: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Gradients of `message` with respect to y (9, N, F) and to distances (E,).

        The latter are unset beyond the cutoff.
        """
        result, d_distance = self._message(at, edges, table, at_zero, g, y)
        return result, d_distance[0] if len(d_distance) == 1 else d_distance.sum(0)

    @staticmethod
    def _message(
        at: Geometry, edges: EdgeRows, table: Tensor, at_zero: Tensor, y: Tensor,
        own: Tensor | None,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        room = edges.senders.shape[0]
        result = torch.empty_like(y)
        d_distance = y.new_empty(_channel_blocks(y)[1], 0 if own is None else room)
        _over_neighbors(
            neighbors.message_kernel, y, edges.offsets, edges.senders, at.knot, at.fraction,
            table, at_zero, y, y if own is None else own, result, d_distance, y[0].numel(), room,
            BACKWARD=own is not None,
        )  # fmt: skip
        return result, d_distance

    def forces(
        self, at: Geometry, edges: EdgeRows, d_vector: Tensor, d_distance: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Forces (N, 3) and shares of the virial (N, 3, 3), float64."""
        atoms = edges.offsets.shape[0] - 1
        force = torch.empty(atoms, 3, dtype=torch.float64, device=at.unit.device)
        virial = torch.empty(atoms, 3, 3, dtype=torch.float64, device=at.unit.device)
        if atoms:
            neighbors.forces_kernel[(atoms,)](
                edges.offsets, edges.reverse, at.unit, at.distance, at.knot, d_vector,
                d_distance, force, virial, BLOCK=EDGE_BLOCK, num_warps=1,
            )  # fmt: skip
        return force, virial

    def sum_by_system(self, values: Tensor, system: Tensor, systems: int) -> Tensor:
        """Sums over the atoms of each system: (N, K) -> (systems, K)."""
        atoms, width = values.shape
        sums = values.new_empty(systems, width)
        neighbors.sum_by_system_kernel[(systems, width)](
            values, system, sums, atoms, WIDTH=width, BLOCK=ATOM_BLOCK
        )
        return sums

    def normalize(self, x: Tensor) -> Tensor:
        """X / (|X|^2 + 1)."""
        return _elementwise(algebra.normalize_kernel, x, x)

    def normalize_adjoint(self, x: Tensor, g: Tensor) -> Tensor:
        """Gradient of `normalize` with respect to x."""
        return _elementwise(algebra.normalize_adjoint_kernel, x, x, g)

    def combine(
        self, y: Tensor, m: Tensor, charge_factor: Tensor, parity_conserving: bool
    ) -> Tensor:
        """Product of features and message, normalised; ``charge_factor`` (N,)."""
        constants: dict[str, Any] = {"CHANNELS": y.shape[2], "PARITY": parity_conserving}
        return _elementwise(algebra.combine_kernel, y, y, m, charge_factor, **constants)

    def combine_adjoint(
        self, y: Tensor, m: Tensor, charge_factor: Tensor, parity_conserving: bool, g: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Gradients of `combine` with respect to y and m."""
        constants: dict[str, Any] = {"CHANNELS": y.shape[2], "PARITY": parity_conserving}
        given = (y, m, charge_factor, g, d_y := torch.empty_like(y))
        return d_y, _elementwise(algebra.combine_adjoint_kernel, y, *given, **constants)

    def update(self, x: Tensor, dx: Tensor, charge_factor: Tensor) -> Tensor:
        """X + dX + q dX^2."""
        return _elementwise(algebra.update_kernel, x, x, dx, charge_factor, CHANNELS=x.shape[2])

    def update_adjoint(self, dx: Tensor, charge_factor: Tensor, g: Tensor) -> Tensor:
        """Gradient of `update` with respect to dx."""
        given, channels = (dx, charge_factor, g), g.shape[2]
        return _elementwise(algebra.update_adjoint_kernel, g, *given, CHANNELS=channels)

    def norm_squared(self, x: Tensor) -> Tensor:
        """|X|^2, (9, N, F) -> (N, F)."""
        return _elementwise(algebra.norm_squared_kernel, x, x, out=torch.empty_like(x[0]))

    def norm_squared_adjoint(self, x: Tensor, g: Tensor) -> Tensor:
        """Gradient of `norm_squared` with respect to x."""
        return _elementwise(algebra.norm_squared_adjoint_kernel, x, x, g)

    def irrep_norms_squared(self, x: Tensor) -> Tensor:
        """|I|^2, |A|^2 and |S|^2, (9, N, F) -> (N, 3F)."""
        return _irrep_dots(x, x)

    def irrep_norms_squared_adjoint(self, x: Tensor, g: Tensor) -> Tensor:
        """Gradient of `irrep_norms_squared` with respect to x."""
        return _scale(x, g, 2.0)

    def gate(self, x: Tensor, factors: Tensor) -> Tensor:
        """I, A and S times their factors (N, 3F)."""
        return _scale(x, factors, 1.0)

    def gate_adjoint(self, x: Tensor, factors: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
        """Gradients of `gate` with respect to x and the factors."""
        return _scale(g, factors, 1.0), _irrep_dots(x, g)


def _irrep_dots(x: Tensor, y: Tensor) -> Tensor:
    out = x.new_empty(x.shape[1], 3 * x.shape[2])
    return _elementwise(algebra.irrep_dots_kernel, x, x, y, out=out, CHANNELS=x.shape[2])


def _scale(x: Tensor, factors: Tensor, scale: float) -> Tensor:
    channels = x.shape[2]
    return _elementwise(algebra.scale_kernel, x, x, factors, SCALE=scale, CHANNELS=channels)


def _elementwise(
    kernel: Any, like: Tensor, *inputs: Tensor, out: Tensor | None = None, **constants: Any
) -> Tensor:
    """Launch a kernel over the atoms and channels of ``like``; ``out`` None: a result like it."""
    result = torch.empty_like(like) if out is None else out
    size = like[0].numel()
    if size:
        grid = (-(-size // ELEMENT_BLOCK),)
        kernel[grid](*inputs, result, size, **constants, BLOCK=ELEMENT_BLOCK)
    return result


def _over_neighbors(kernel: Any, like: Tensor, *arguments: Any, **constants: Any) -> None:
    """Launch a kernel over the receivers and blocks of channels of features (9, N, F).

    The number of warps is the smallest that holds a block in registers (none spill for F = 128 on
    sm_90): within one warp, sums over channels need no shared memory. It is not tuned on a device.
    """
    atoms, channels = like.shape[1:]
    block, blocks = _channel_blocks(like)
    if atoms:
        warps = max(1, block * like.dtype.itemsize // 512)
        kernel[(atoms, blocks)](
            *arguments, **constants, CHANNELS=channels, BLOCK=block, num_warps=warps
        )


def _channel_blocks(like: Tensor) -> tuple[int, int]:
    """Channels per program, a power of two, and the number of programs that cover all channels."""
    channels = like.shape[2]
    block = min(1 << (channels - 1).bit_length(), CHANNEL_BLOCK)
    return block, -(-channels // block)
