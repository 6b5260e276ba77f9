"""Interface of a head: a readout of a property other than the energy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..graph import Graph
from ..maths.double import DoubleConstants


class HeadConstants(DoubleConstants):
    """Scale, offsets and tables that turn outputs into values of the property.

    Parameters
    ----------
    elements
        Size of the table of references; None: no table.
    fixed
        Table that is not part of the weights, or None. It must be computed before the head is
        built, because heads of checkpoints are built without memory.
    """

    scale: Tensor
    references: Tensor
    fixed: Tensor

    def __init__(self, elements: int | None = None, fixed: Tensor | None = None) -> None:
        super().__init__()
        self.register_buffer("scale", torch.ones((), dtype=torch.float64))
        if elements is not None:
            self.register_buffer("references", torch.zeros(elements, dtype=torch.float64))
        if fixed is not None:
            self.register_buffer("fixed", fixed.clone(), persistent=False)


class Head(nn.Module):
    """A readout of a property from the features of a network.

    A subclass has the constructor ``Subclass(representation, **config)``, implements `forward` and
    `standardise`, and is added to models by a row of `quantities.QUANTITIES`.
    """

    degree: int = 0
    """Highest degree of the features it reads: 0 scalars, 1 vectors, 2 tensors."""
    reads_charges: bool = False
    """Whether it reads the charges that the network predicts, (N, C), instead of the features."""
    constants: HeadConstants
    """Constants that stay float64 regardless of the network's dtype."""

    def __init__(self, representation: nn.Module, **config: Any) -> None:
        super().__init__()
        self.config = config

    def forward(self, x: Tensor, graph: Graph) -> Tensor:
        """Features of the atoms of a graph -> one value per system, or per atom, float64."""
        raise NotImplementedError

    def standardise(self, graphs: Sequence[Graph], labels: Sequence[Tensor]) -> None:
        """Set `constants` from training data, so that outputs of order one fit the labels."""
        raise NotImplementedError


def sum_over_atoms(values: Tensor, graph: Graph) -> Tensor:
    """Sum over the atoms of each system: (N, ...) -> (B, ...)."""
    total = values.new_zeros([graph.charge.shape[0], *values.shape[1:]])
    return total.index_add(0, graph.system, values)
