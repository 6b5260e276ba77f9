"""Batches: several frames as one graph, with their labels."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from ..graph import Graph, Pairs
from ..quantities import QUANTITIES


class Labels(dict[str, Tensor]):
    """Labels of B systems with N atoms in total, float64, by the names of `QUANTITIES`.

    They are also attributes, None if missing: (B, ...), or (N, 3) for forces; NaN for systems
    without the label, see `Batch.masks`.
    """

    def __getattr__(self, name: str) -> Tensor | None:
        if name not in QUANTITIES:
            raise AttributeError(f"no label is called {name!r}")
        return self.get(name)


@dataclass(frozen=True)
class Batch:
    """Frames as one graph of B systems."""

    graph: Graph
    labels: Labels
    pairs: Pairs | None
    """Pairs of the graph's edges; None if nobody reads them."""
    masks: dict[str, Tensor] = field(default_factory=dict)
    """Whether systems, (B,), or their atoms, (N,), have a label: of each label that some frames of
    the data set lack, even if all of this batch have it."""
    weights: dict[str, Tensor] = field(default_factory=dict)
    """Weights of systems, (B,), or of their atoms, (N,), by label, divided by their mean over the
    data set; empty if all frames of the data set have the same weight."""
