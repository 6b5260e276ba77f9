"""Labelled frames: graphs with energies, forces and other quantities."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from ..graph import Graph, Pairs, batch_graphs, pair_edges
from ..quantities import QUANTITIES


class Labels(dict[str, Tensor]):
    """Labels of B systems with N atoms in total, float64, by the names of `QUANTITIES`.

    They are also attributes, None if missing: (B, ...), or (N, 3) for forces.
    """

    def __getattr__(self, name: str) -> Tensor | None:
        if name not in QUANTITIES:
            raise AttributeError(f"no label is called {name!r}")
        return self.get(name)


class Frames:
    """Graphs and labels, ready to be batched.

    Parameters
    ----------
    graphs
        Graph of each frame.
    energies
        Energy of each frame, eV; or None.
    forces
        Forces of each frame, (N, 3), eV/A; or None.
    groups
        Group number of each frame: frames of one group, such as the steps of a relaxation, are not
        split. None: every frame is independent.
    others
        Other quantities by name, one value per frame; None: no such labels.

    Raises
    ------
    ValueError
        If there is no frame, a quantity is unknown, the numbers of frames or atoms differ, or a
        label has another shape or is not finite.
    """

    def __init__(
        self,
        graphs: Sequence[Graph],
        energies: ArrayLike | None = None,
        forces: Sequence[ArrayLike] | None = None,
        groups: Sequence[int] | None = None,
        **others: Sequence[ArrayLike] | ArrayLike | None,
    ) -> None:
        self.graphs = list(graphs)
        if not self.graphs:
            raise ValueError("no frame: expected at least one")
        self.groups = None if groups is None else list(groups)
        unknown = [name for name in others if name not in QUANTITIES]
        if unknown:
            raise ValueError(f"unknown label {unknown[0]!r}: expected {', '.join(QUANTITIES)}")
        self._labels: dict[str, list[Tensor]] = {}
        for name, values in {"energy": energies, "forces": forces, **others}.items():
            if values is not None:
                self._labels[name] = self._checked(name, list(values))  # type: ignore[arg-type]
        self._pairs: list[Pairs | None] = [None] * len(self.graphs)

    def _checked(self, name: str, values: list[ArrayLike]) -> list[Tensor]:
        if len(values) != len(self.graphs):
            raise ValueError(
                f"{len(self.graphs)} frames with {len(values)} labels of {name}: expected one of "
                "each for every frame"
            )
        checked = []
        for k, (graph, value) in enumerate(zip(self.graphs, values, strict=True)):
            tensor = torch.as_tensor(np.asarray(value, dtype=np.float64))
            row = QUANTITIES[name]
            shape = (len(graph.numbers), *row.shape) if row.per_atom else row.shape
            if tensor.shape != shape:
                raise ValueError(
                    f"frame {k} has {len(graph.numbers)} atoms but {name} of shape "
                    f"{tuple(tensor.shape)}: expected {tuple(shape)}"
                )
            if not torch.isfinite(tensor).all():
                raise ValueError(f"frame {k} has a label of {name} that is not finite")
            checked.append(tensor)
        return checked

    def __len__(self) -> int:
        return len(self.graphs)

    @property
    def quantities(self) -> tuple[str, ...]:
        """Names of the frames' labels."""
        return tuple(name for name in QUANTITIES if name in self._labels)

    def values(self, name: str) -> list[Tensor]:
        """Values of one label for all frames.

        Raises
        ------
        ValueError
            If the frames have no such label.
        """
        if name not in self._labels:
            has = ", ".join(self.quantities) or "nothing"
            raise ValueError(f"the frames have no {name}: they are labelled with {has}")
        return self._labels[name]

    @property
    def energies(self) -> Tensor:
        """Energies, (F,), eV; see `values`."""
        return torch.stack(self.values("energy"))

    @property
    def forces(self) -> list[Tensor]:
        """Forces of every frame, (N, 3), eV/A; see `values`."""
        return self.values("forces")

    @property
    def elements(self) -> list[int]:
        """Atomic numbers that occur in the frames, ascending."""
        return sorted({int(z) for graph in self.graphs for z in graph.numbers})

    def select(self, index: Iterable[int]) -> Frames:
        """A subset of the frames, by index.

        Raises
        ------
        ValueError
            If no frame is selected.
        """
        chosen = [int(k) for k in index]
        if not chosen:
            raise ValueError("no frame is selected: expected at least one")
        part = Frames.__new__(Frames)  # the labels are already checked
        part.graphs = [self.graphs[k] for k in chosen]
        part._labels = {n: [values[k] for k in chosen] for n, values in self._labels.items()}
        part._pairs = [self._pairs[k] for k in chosen]
        part.groups = None if self.groups is None else [self.groups[k] for k in chosen]
        return part

    def split(self, sizes: Sequence[int], seed: int) -> list[Frames]:
        """Disjoint random parts of the given sizes; `split_frames` also supports groups and files.

        Raises
        ------
        ValueError
            If there are too few frames.
        """
        if sum(sizes) > len(self):
            raise ValueError(f"{len(self)} frames cannot be split into {list(sizes)}")
        order = np.random.default_rng(seed).permutation(len(self))
        ends = np.cumsum([0, *sizes])
        return [self.select(order[a:b]) for a, b in pairwise(ends)]

    def batch(self, index: Iterable[int]) -> Batch:
        """Join some frames into one graph, by index."""
        chosen = [int(k) for k in index]
        labels = {
            name: join(name, [values[k] for k in chosen]) for name, values in self._labels.items()
        }
        return Batch(
            batch_graphs([self.graphs[k] for k in chosen]),
            Labels(labels),
            _batch_pairs([self._pairs_of(k) for k in chosen]),
        )

    def _pairs_of(self, k: int) -> Pairs:
        pairs = self._pairs[k]
        if pairs is None:
            pairs = self._pairs[k] = pair_edges(self.graphs[k])
        return pairs


def join(name: str, values: Sequence[Tensor]) -> Tensor:
    """Join values of a quantity for several frames into one tensor, (B, ...) or (N, ...)."""
    return (torch.cat if QUANTITIES[name].per_atom else torch.stack)(list(values))


@dataclass(frozen=True)
class Batch:
    """Frames as one graph of B systems."""

    graph: Graph
    labels: Labels
    pairs: Pairs
    """Pairs of the graph's edges."""


def _batch_pairs(parts: Sequence[Pairs]) -> Pairs:
    edges = np.cumsum([0] + [len(p.of_edge) for p in parts])
    pairs = np.cumsum([0] + [len(p.one) for p in parts])
    return Pairs(
        torch.cat([p.one + int(n) for p, n in zip(parts, edges, strict=False)]),
        torch.cat([p.of_edge + int(n) for p, n in zip(parts, pairs, strict=False)]),
    )
