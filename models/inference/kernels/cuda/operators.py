"""The fused operators on a GPU: launches the kernels of `edges` and `algebra`.

Import it only where Triton is installed (`pip install triton`; torch's CUDA builds bring it).
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..edges import Edges, Geometry
from . import algebra
from . import edges as kernels

EDGE_BLOCK = 32
"""Edges that geometry and forces take at a time."""
ELEMENT_BLOCK = 256
"""Atoms times channels of one program of the algebra."""
ATOM_BLOCK = 512
"""Atoms that the sums over systems take at a time."""
CHANNEL_BLOCK = 128
"""Most channels of one program of a neighbour sum."""


class TritonOperators:
    """`step.Operators` on CUDA devices (and anywhere in Triton's interpreter).

    Nothing is read back from the device. Every tensor must be contiguous and on one device.
    """

    engine = "fused CUDA kernels"

    def geometry(
        self,
        positions: Tensor,
        cell: Tensor,
        system: Tensor,
        edges: Edges,
        *,
        length: float,
        lower: float,
        cutoff: float,
        intervals: int,
        dtype: torch.dtype,
    ) -> Geometry:
        """See `equations.geometry`."""
        room, device = edges.senders.shape[0], positions.device
        at = Geometry(
            unit=torch.empty(room, 3, dtype=dtype, device=device),
            distance=torch.empty(room, dtype=dtype, device=device),
            knot=torch.empty(room, dtype=torch.int32, device=device),
            fraction=torch.empty(room, dtype=dtype, device=device),
        )
        if positions.shape[0]:
            kernels.geometry_kernel[(positions.shape[0],)](
                positions,
                cell,
                system,
                edges.offsets,
                edges.senders,
                edges.shift,
                *at,
                LENGTH=float(length),
                LOWER=float(lower),
                CUTOFF=float(cutoff),
                INTERVALS=intervals,
                BLOCK=EDGE_BLOCK,
                num_warps=1,
            )
        return at

    def embed(
        self,
        at: Geometry,
        edges: Edges,
        table: Tensor,
        at_zero: Tensor,
        receiver: Tensor,
        sender: Tensor,
        numbers: Tensor,
        components: int = 9,
    ) -> Tensor:
        """See `equations.embed`; of nine components."""
        if components != 9:
            raise ValueError(f"{components} components: these kernels are of nine")
        atoms, channels = numbers.shape[0], receiver.shape[1]
        x = table.new_empty(9, atoms, channels)
        block, blocks = _channel_blocks(channels)
        if atoms:
            kernels.embed_kernel[(atoms, blocks)](
                edges.offsets,
                edges.senders,
                at.unit,
                at.knot,
                at.fraction,
                table,
                at_zero,
                receiver,
                sender,
                numbers,
                x,
                atoms * channels,
                CHANNELS=channels,
                BLOCK=block,
                num_warps=_warps(block, table.dtype),
            )
        return x

    def embed_backward(
        self,
        at: Geometry,
        edges: Edges,
        table: Tensor,
        receiver: Tensor,
        sender: Tensor,
        numbers: Tensor,
        g: Tensor,
    ) -> Tensor:
        """See `equations.embed_backward`; unset beyond the cutoff."""
        atoms, channels = numbers.shape[0], receiver.shape[1]
        block, blocks = _channel_blocks(channels)
        room = edges.senders.shape[0]
        d_vector = table.new_empty(blocks, room, 3)
        if atoms:
            kernels.embed_backward_kernel[(atoms, blocks)](
                edges.offsets,
                edges.senders,
                at.unit,
                at.distance,
                at.knot,
                at.fraction,
                table,
                receiver,
                sender,
                numbers,
                g,
                d_vector,
                atoms * channels,
                room,
                CHANNELS=channels,
                BLOCK=block,
                num_warps=_warps(block, table.dtype),
            )
        return d_vector[0] if blocks == 1 else d_vector.sum(0)

    def message(
        self, at: Geometry, edges: Edges, table: Tensor, at_zero: Tensor, y: Tensor
    ) -> Tensor:
        """See `equations.message`."""
        return self._message(at, edges, table, at_zero, y, None)[0]

    def message_backward(
        self,
        at: Geometry,
        edges: Edges,
        table: Tensor,
        at_zero: Tensor,
        y: Tensor,
        g: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """See `equations.message_backward`; the second is unset beyond the cutoff."""
        result, d_distance = self._message(at, edges, table, at_zero, g, y)
        return result, d_distance[0] if d_distance.shape[0] == 1 else d_distance.sum(0)

    @staticmethod
    def _message(
        at: Geometry,
        edges: Edges,
        table: Tensor,
        at_zero: Tensor,
        y: Tensor,
        own: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        atoms, channels = y.shape[1:]
        block, blocks = _channel_blocks(channels)
        room = edges.senders.shape[0]
        result = torch.empty_like(y)
        d_distance = y.new_empty(blocks, 0 if own is None else room)
        if atoms:
            kernels.message_kernel[(atoms, blocks)](
                edges.offsets,
                edges.senders,
                at.knot,
                at.fraction,
                table,
                at_zero,
                y,
                y if own is None else own,
                result,
                d_distance,
                atoms * channels,
                room,
                CHANNELS=channels,
                BACKWARD=own is not None,
                BLOCK=block,
                num_warps=_warps(block, table.dtype),
            )
        return result, d_distance

    def forces(
        self, at: Geometry, edges: Edges, d_vector: Tensor, d_distance: Tensor
    ) -> tuple[Tensor, Tensor]:
        """See `equations.forces`."""
        atoms = edges.offsets.shape[0] - 1
        force = torch.empty(atoms, 3, dtype=torch.float64, device=at.unit.device)
        virial = torch.empty(atoms, 3, 3, dtype=torch.float64, device=at.unit.device)
        if atoms:
            kernels.forces_kernel[(atoms,)](
                edges.offsets,
                edges.reverse,
                at.unit,
                at.distance,
                at.knot,
                d_vector,
                d_distance,
                force,
                virial,
                BLOCK=EDGE_BLOCK,
                num_warps=1,
            )
        return force, virial

    def sum_by_system(self, values: Tensor, system: Tensor, systems: int) -> Tensor:
        """See `equations.sum_by_system`."""
        sums = values.new_empty(systems, values.shape[1])
        kernels.sum_by_system_kernel[(systems, values.shape[1])](
            values,
            system,
            sums,
            values.shape[0],
            WIDTH=values.shape[1],
            BLOCK=ATOM_BLOCK,
        )
        return sums

    def normalize(self, x: Tensor) -> Tensor:
        """See `equations.normalize`."""
        out = torch.empty_like(x)
        if x.numel():
            algebra.normalize_kernel[_grid(x)](x, out, x[0].numel(), BLOCK=ELEMENT_BLOCK)
        return out

    def normalize_adjoint(self, x: Tensor, g: Tensor) -> Tensor:
        """See `equations.normalize_adjoint`."""
        out = torch.empty_like(x)
        if x.numel():
            algebra.normalize_adjoint_kernel[_grid(x)](
                x, g, out, x[0].numel(), BLOCK=ELEMENT_BLOCK
            )
        return out

    def combine(
        self, y: Tensor, m: Tensor, charge_factor: Tensor, parity_conserving: bool
    ) -> Tensor:
        """See `equations.combine`."""
        out = torch.empty_like(y)
        if y.numel():
            algebra.combine_kernel[_grid(y)](
                y,
                m,
                charge_factor,
                out,
                y[0].numel(),
                CHANNELS=y.shape[2],
                PARITY=parity_conserving,
                BLOCK=ELEMENT_BLOCK,
            )
        return out

    def combine_adjoint(
        self, y: Tensor, m: Tensor, charge_factor: Tensor, parity_conserving: bool, g: Tensor
    ) -> tuple[Tensor, Tensor]:
        """See `equations.combine_adjoint`."""
        d_y, d_m = torch.empty_like(y), torch.empty_like(m)
        if y.numel():
            algebra.combine_adjoint_kernel[_grid(y)](
                y,
                m,
                charge_factor,
                g,
                d_y,
                d_m,
                y[0].numel(),
                CHANNELS=y.shape[2],
                PARITY=parity_conserving,
                BLOCK=ELEMENT_BLOCK,
            )
        return d_y, d_m

    def update(self, x: Tensor, dx: Tensor, charge_factor: Tensor) -> Tensor:
        """See `equations.update`."""
        out = torch.empty_like(x)
        if x.numel():
            algebra.update_kernel[_grid(x)](
                x,
                dx,
                charge_factor,
                out,
                x[0].numel(),
                CHANNELS=x.shape[2],
                BLOCK=ELEMENT_BLOCK,
            )
        return out

    def update_adjoint(self, dx: Tensor, charge_factor: Tensor, g: Tensor) -> Tensor:
        """See `equations.update_adjoint`."""
        out = torch.empty_like(g)
        if g.numel():
            algebra.update_adjoint_kernel[_grid(g)](
                dx,
                charge_factor,
                g,
                out,
                g[0].numel(),
                CHANNELS=g.shape[2],
                BLOCK=ELEMENT_BLOCK,
            )
        return out

    def norm_squared(self, x: Tensor) -> Tensor:
        """See `cartesian.norm_squared`."""
        out = torch.empty_like(x[0])
        if x.numel():
            algebra.norm_squared_kernel[_grid(x)](x, out, out.numel(), BLOCK=ELEMENT_BLOCK)
        return out

    def norm_squared_adjoint(self, x: Tensor, g: Tensor) -> Tensor:
        """See `equations.norm_squared_adjoint`."""
        out = torch.empty_like(x)
        if x.numel():
            algebra.norm_squared_adjoint_kernel[_grid(x)](
                x, g, out, g.numel(), BLOCK=ELEMENT_BLOCK
            )
        return out

    def irrep_norms_squared(self, x: Tensor) -> Tensor:
        """See `cartesian.irrep_norms_squared`."""
        return _irrep_dots(x, x)

    def irrep_norms_squared_adjoint(self, x: Tensor, g: Tensor) -> Tensor:
        """See `equations.irrep_norms_squared_adjoint`."""
        return _scale(x, g, 2.0)

    def gate(self, x: Tensor, factors: Tensor) -> Tensor:
        """See `equations.gate`."""
        return _scale(x, factors, 1.0)

    def gate_adjoint(self, x: Tensor, factors: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
        """See `equations.gate_adjoint`."""
        return _scale(g, factors, 1.0), _irrep_dots(x, g)


def _irrep_dots(x: Tensor, y: Tensor) -> Tensor:
    out = x.new_empty(x.shape[1], 3 * x.shape[2])
    if x.numel():
        algebra.irrep_dots_kernel[_grid(x)](
            x, y, out, x[0].numel(), CHANNELS=x.shape[2], BLOCK=ELEMENT_BLOCK
        )
    return out


def _scale(x: Tensor, factors: Tensor, scale: float) -> Tensor:
    out = torch.empty_like(x)
    if x.numel():
        algebra.scale_kernel[_grid(x)](
            x,
            factors,
            out,
            x[0].numel(),
            SCALE=scale,
            CHANNELS=x.shape[2],
            BLOCK=ELEMENT_BLOCK,
        )
    return out


def _grid(x: Tensor) -> tuple[int]:
    return (-(-x[0].numel() // ELEMENT_BLOCK),)


def _channel_blocks(channels: int) -> tuple[int, int]:
    """Channels of a program, a power of two, and how many programs cover them all."""
    block = min(1 << (channels - 1).bit_length(), CHANNEL_BLOCK)
    return block, -(-channels // block)


def _warps(block: int, dtype: torch.dtype) -> int:
    """Of a neighbour sum: as few as hold the block in registers (none spill, F = 128, sm_90).

    Within one warp sums over channels need no shared memory. Not tuned on a device.
    """
    return max(1, block * dtype.itemsize // 512)
