"""Replacements in torchmd-net's modules: our edges, and plain operators."""

from __future__ import annotations

import functools
import importlib
import importlib.util
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn


class Edges:
    """Edges that the network's neighbour lists return; set before each evaluation."""

    index: Tensor
    vectors: Tensor
    shift: Tensor


class GivenEdges(nn.Module):
    """Replacement for torchmd-net's `OptimizedDistance` that returns given edges.

    The sign is r_i - r_j. Edges from atoms to themselves, if the network needs them, are last.
    """

    def __init__(self, replaced: nn.Module, edges: Edges, self_images: bool) -> None:
        super().__init__()
        self.cutoff_lower = float(replaced.cutoff_lower)  # type: ignore[arg-type]
        self.cutoff_upper = float(replaced.cutoff_upper)  # type: ignore[arg-type]
        self.loop = bool(replaced.loop)
        self.both_directions = bool(replaced.include_transpose)
        self.self_images = self_images
        self.edges = edges

    def forward(
        self, pos: Tensor, batch: Tensor | None = None, box: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return indices (2, E), distances (E,) and vectors (E, 3)."""
        index, vectors = self.edges.index, -self.edges.vectors
        distances = torch.linalg.vector_norm(vectors, dim=1)
        kept = (distances < self.cutoff_upper) & (distances >= self.cutoff_lower)
        image = index[0] == index[1]
        if not self.self_images and bool((kept & image).any()):
            raise ValueError(
                f"the cell is smaller than the cutoff ({self.cutoff_upper:g}, in the model's "
                "unit of length): an atom would interact with its own image, which this "
                "architecture of torchmd-net takes for the atom itself; repeat the structure "
                "until its cell is larger than the cutoff in every periodic direction"
            )
        if not self.both_directions:
            kept = kept & ((index[0] < index[1]) | (image & _leads(self.edges.shift)))
        # Networks modify these in place: return copies.
        index, vectors, distances = index[:, kept], vectors[kept], distances[kept].clone()
        if self.loop:
            atoms = torch.arange(len(pos), device=index.device)
            index = torch.cat([index, atoms.expand(2, -1)], dim=1)
            vectors = torch.cat([vectors, vectors.new_zeros(len(pos), 3)])
            distances = torch.cat([distances, distances.new_zeros(len(pos))])
        return index, distances, vectors


def _leads(shift: Tensor) -> Tensor:
    """True for exactly one of each pair of opposite images, (E, 3) -> (E,)."""
    x, y, z = shift.unbind(1)
    return (x > 0) | ((x == 0) & ((y > 0) | ((y == 0) & (z > 0))))


@functools.cache
def _plain_operators() -> dict[str, ModuleType]:
    """Private copies of torchmd-net's TensorNet modules that use its plain torch operators.

    Its compiled operators flip the sign of A, which changes SO(3) energies. The operators are
    globals of the module, so changing them there would affect all users of torchmd-net.
    """
    copies = {}
    for short in ("tensornet", "tensornet2"):
        original = importlib.import_module(f"torchmdnet.models.{short}")
        spec = importlib.util.spec_from_file_location(f"{__name__}.{short}", original.__file__)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        module.OPT = False  # type: ignore[attr-defined]
        for operator in (
            "compose_tensor",
            "decompose_tensor",
            "tensor_matmul_o3",
            "tensor_matmul_so3",
        ):
            setattr(module, operator, getattr(module, f"_{operator}"))
        copies[original.__name__] = module
    return copies


def use_plain_operators(model: nn.Module) -> None:
    """Make every TensorNet module of a torchmd-net model use the plain operators."""
    copies = _plain_operators()
    module: Any
    for module in model.modules():
        kind = type(module)
        if kind.__module__ in copies:
            module.__class__ = getattr(copies[kind.__module__], kind.__name__)
        if hasattr(module, "opt"):
            module.opt = False
