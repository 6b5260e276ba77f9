"""Labelled frames: graphs with energies, forces and other quantities."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from ..graph import Graph, Pairs, batch_graphs, pair_edges
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


class Frames:
    """Graphs and labels, ready to be batched.

    Parameters
    ----------
    graphs
        Graph of each frame.
    energies
        Energy of each frame, eV; None for frames without, or as a whole if there are none.
    forces
        Forces of each frame, (N, 3), eV/A; None likewise.
    groups
        Group number of each frame: frames of one group, such as the steps of a relaxation, are not
        split. None: every frame is independent.
    isolated
        Indices of the frames that are isolated atoms: their energies are reference energies (see
        `standardise`), and they are in no part of a split.
    others
        Other quantities by name, one value per frame; None likewise.

    Raises
    ------
    ValueError
        If there is no frame, a quantity is unknown, the numbers of frames or atoms differ, a
        label has another shape or is not finite, or an isolated atom is not one atom.

    Attributes
    ----------
    isolated
        Whether each frame is an isolated atom.
    atom_energies
        Energies of isolated atoms, eV, by atomic number; parts of the frames keep all of them.
    """

    def __init__(
        self,
        graphs: Sequence[Graph],
        energies: Sequence[float | None] | ArrayLike | None = None,
        forces: Sequence[ArrayLike | None] | None = None,
        groups: Sequence[int] | None = None,
        isolated: Iterable[int] = (),
        **others: Sequence[ArrayLike | None] | ArrayLike | None,
    ) -> None:
        self.graphs = list(graphs)
        if not self.graphs:
            raise ValueError("no frame: expected at least one")
        self.groups = None if groups is None else list(groups)
        unknown = [name for name in others if name not in QUANTITIES]
        if unknown:
            raise ValueError(f"unknown label {unknown[0]!r}: expected {', '.join(QUANTITIES)}")
        self._labels: dict[str, list[Tensor]] = {}
        self._masks: dict[str, list[bool]] = {}
        """Whether each frame has a label, for the labels that only some frames have."""
        for name, values in {"energy": energies, "forces": forces, **others}.items():
            if values is not None:
                given = list(values)  # type: ignore[arg-type]
                self._keep(name, self._checked(name, given), [v is not None for v in given])
        self._pairs: list[Pairs | None] = [None] * len(self.graphs)
        self.isolated = [False] * len(self.graphs)
        self.atom_energies: dict[int, list[float]] = {}
        for k in isolated:
            self._mark_isolated(k)

    def _keep(self, name: str, values: list[Tensor], mask: list[bool]) -> None:
        if any(mask):
            self._labels[name] = values
            if not all(mask):
                self._masks[name] = mask

    def _mark_isolated(self, k: int) -> None:
        numbers = self.graphs[k].numbers
        if len(numbers) != 1:
            raise ValueError(f"frame {k} has {len(numbers)} atoms: expected 1, an isolated atom")
        self.isolated[k] = True
        if k in self.labelled("energy"):
            energies = self.atom_energies.setdefault(int(numbers[0]), [])
            energies.append(float(self._labels["energy"][k]))

    def _checked(self, name: str, values: list[ArrayLike | None]) -> list[Tensor]:
        if len(values) != len(self.graphs):
            raise ValueError(
                f"{len(self.graphs)} frames with {len(values)} labels of {name}: expected one of "
                "each for every frame"
            )
        checked = []
        for k, (graph, value) in enumerate(zip(self.graphs, values, strict=True)):
            row = QUANTITIES[name]
            shape = (len(graph.numbers), *row.shape) if row.per_atom else row.shape
            if value is None:
                checked.append(torch.full(shape, torch.nan, dtype=torch.float64))
                continue
            tensor = torch.as_tensor(np.asarray(value, dtype=np.float64))
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
        """Names of the labels that at least one frame has."""
        return tuple(name for name in QUANTITIES if name in self._labels)

    @property
    def partial(self) -> tuple[str, ...]:
        """Names of the labels that some frames have and others lack."""
        return tuple(name for name in QUANTITIES if name in self._masks)

    def labelled(self, name: str) -> list[int]:
        """Indices of the frames that have a label."""
        if name not in self._masks:
            return list(range(len(self))) if name in self._labels else []
        return [k for k, has in enumerate(self._masks[name]) if has]

    def count(self, name: str, index: Iterable[int], *, atoms: bool = False) -> int:
        """Number of frames, or of their atoms, that have a label, among some frames."""
        mask = self._masks.get(name)
        return sum(
            len(self.graphs[k].numbers) if atoms else 1 for k in index if mask is None or mask[k]
        )

    def values(self, name: str) -> list[Tensor]:
        """Values of one label for all frames; NaN for frames without it, see `labelled`.

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
        part._labels, part._masks = {}, {}
        for name, values in self._labels.items():
            mask = self._masks.get(name)
            has = [True] * len(chosen) if mask is None else [mask[k] for k in chosen]
            part._keep(name, [values[k] for k in chosen], has)
        part.isolated = [self.isolated[k] for k in chosen]
        part.atom_energies = self.atom_energies
        part._pairs = [self._pairs[k] for k in chosen]
        part.groups = None if self.groups is None else [self.groups[k] for k in chosen]
        return part

    def without_isolated(self) -> Frames:
        """The frames that are not isolated atoms.

        Raises
        ------
        ValueError
            If there are none.
        """
        if not any(self.isolated):
            return self
        if all(self.isolated):
            raise ValueError(
                "every frame is an isolated atom, a reference energy: expected others too"
            )
        return self.select(k for k, alone in enumerate(self.isolated) if not alone)

    def split(self, sizes: Sequence[int], seed: int) -> list[Frames]:
        """Disjoint random parts of the given sizes; `split_frames` also supports groups and files.

        Isolated atoms are in none of them.

        Raises
        ------
        ValueError
            If there are too few frames.
        """
        frames = self.without_isolated()
        if sum(sizes) > len(frames):
            raise ValueError(f"{len(frames)} frames cannot be split into {list(sizes)}")
        order = np.random.default_rng(seed).permutation(len(frames))
        ends = np.cumsum([0, *sizes])
        return [frames.select(order[a:b]) for a, b in pairwise(ends)]

    def batch(self, index: Iterable[int], pairs: bool = True) -> Batch:
        """Join some frames into one graph, by index; ``pairs``: with the pairs of its edges."""
        chosen = [int(k) for k in index]
        labels = {
            name: join(name, [values[k] for k in chosen]) for name, values in self._labels.items()
        }
        return Batch(
            batch_graphs([self.graphs[k] for k in chosen]),
            Labels(labels),
            _batch_pairs([self._pairs_of(k) for k in chosen]) if pairs else None,
            self.masks(chosen),
        )

    def masks(self, index: Sequence[int]) -> dict[str, Tensor]:
        """Masks of some frames, see `Batch.masks`."""
        found = {}
        for name, mask in self._masks.items():
            rows = torch.tensor([mask[k] for k in index], dtype=torch.bool)
            if QUANTITIES[name].per_atom:
                sizes = torch.tensor([len(self.graphs[k].numbers) for k in index])
                rows = torch.repeat_interleave(rows, sizes)
            found[name] = rows
        return found

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
    pairs: Pairs | None
    """Pairs of the graph's edges; None if nobody reads them."""
    masks: dict[str, Tensor] = field(default_factory=dict)
    """Whether systems, (B,), or their atoms, (N,), have a label: of each label that some frames of
    the data set lack, even if all of this batch have it."""


def _batch_pairs(parts: Sequence[Pairs]) -> Pairs:
    edges = np.cumsum([0] + [len(p.of_edge) for p in parts])
    pairs = np.cumsum([0] + [len(p.one) for p in parts])
    return Pairs(
        torch.cat([p.one + int(n) for p, n in zip(parts, edges, strict=False)]),
        torch.cat([p.of_edge + int(n) for p, n in zip(parts, pairs, strict=False)]),
    )
