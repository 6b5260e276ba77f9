"""Labelled frames: graphs with energies, forces and other quantities."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from itertools import pairwise
from typing import overload

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from ..graph import Graph, pair_edges
from ..quantities import QUANTITIES
from .batch import Batch, Labels
from .columns import Edges, memory_columns, memory_store
from .store import Floats, Integers, Masks, Store

_FRAMES_AT_ONCE = 4096


class Frames:
    """Graphs and labels, ready to be batched.

    The frames are a selection from a `Store`, in memory or in a packed file: graphs and labels are
    made when they are asked for.

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
    weights
        Weight of each frame in the loss; None: all are 1.
    others
        Other quantities by name, one value per frame; None likewise.

    Raises
    ------
    ValueError
        If there is no frame, a quantity is unknown, the numbers of frames or atoms differ, a
        label has another shape or is not finite, a weight is not valid, or an isolated atom is not
        one atom.

    Attributes
    ----------
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
        weights: ArrayLike | None = None,
        **others: Sequence[ArrayLike | None] | ArrayLike | None,
    ) -> None:
        if not len(graphs):
            raise ValueError("no frame: expected at least one")
        unknown = [name for name in others if name not in QUANTITIES]
        if unknown:
            raise ValueError(f"unknown label {unknown[0]!r}: expected {', '.join(QUANTITIES)}")
        labels = {
            name: _checked(name, list(values), graphs)  # type: ignore[arg-type]
            for name, values in {"energy": energies, "forces": forces, **others}.items()
            if values is not None
        }
        alone = set(isolated)
        for k in alone:
            if len(graphs[k].numbers) != 1:
                raise ValueError(
                    f"frame {k} has {len(graphs[k].numbers)} atoms: expected 1, an isolated atom"
                )
        columns = memory_columns()
        each_weight = checked_weights(np.ones(len(graphs)) if weights is None else weights)
        for k, (graph, weight) in enumerate(zip(graphs, each_weight, strict=True)):
            given = {n: v[k] for n, v in labels.items() if v[k] is not None}
            columns.add(
                graph.numbers.cpu().numpy(),
                graph.positions.cpu().numpy(),
                given,  # type: ignore[arg-type]
                cell=graph.cell[0].cpu().numpy(),
                charge=float(graph.charge),
                edges=Edges(graph.edge_index.cpu().numpy(), graph.edge_shift.cpu().numpy()),
                isolated=k in alone,
                weight=float(weight),
            )
        store = memory_store(columns)
        if groups is not None:
            store.groups = np.asarray(groups, dtype=np.int64)
        self._begin(store, np.arange(len(graphs)), None)

    @classmethod
    def of_store(cls, store: Store, index: Integers | None = None) -> Frames:
        """Frames of a store, with labels that were checked before.

        Parameters
        ----------
        store
            Where the frames are.
        index
            Numbers of the frames; None: all.

        Raises
        ------
        ValueError
            If there is no frame.
        """
        chosen = np.arange(len(store.sizes)) if index is None else index
        if not len(chosen):
            raise ValueError("no frame: expected at least one")
        found = cls.__new__(cls)
        found._begin(store, chosen, None)
        return found

    def _begin(
        self, store: Store, index: Integers, atom_energies: dict[int, list[float]] | None
    ) -> None:
        self._store = store
        self._index = index
        if atom_energies is None:
            atom_energies = {}
            for k in index[store.isolated[index]].tolist():
                if "energy" in store.masks and store.masks["energy"][k]:
                    number = int(store.geometry(k).numbers[0])
                    atom_energies.setdefault(number, []).append(float(store.label("energy", k)))
        self.atom_energies = atom_energies

    def __len__(self) -> int:
        return len(self._index)

    # Structures

    @property
    def graphs(self) -> Graphs:
        """Graphs of the frames, each made when it is asked for."""
        return Graphs(self, edges=True)

    @property
    def structures(self) -> Graphs:
        """Graphs of the frames without edges."""
        return Graphs(self, edges=False)

    @property
    def sizes(self) -> Integers:
        """Number of atoms of each frame, (F,)."""
        return self._store.sizes[self._index]

    @property
    def edge_counts(self) -> Integers:
        """Number of edges of each frame, (F,)."""
        return self._store.edge_counts(self._index)

    @property
    def charges(self) -> Floats:
        """Total charge of each frame, (F,), e."""
        return self._store.charges[self._index]

    @property
    def volumes(self) -> Floats:
        """Volume of each frame's cell, (F,), Angstrom^3; 0 for a molecule."""
        found = [np.zeros(0)]
        for first in range(0, len(self), _FRAMES_AT_ONCE):
            index = self._index[first : first + _FRAMES_AT_ONCE].tolist()
            cells = np.stack([self._store.geometry(k).cell for k in index])
            found.append(np.abs(np.linalg.det(cells)))
        return np.concatenate(found)

    @property
    def elements(self) -> list[int]:
        """Atomic numbers that occur in the frames, ascending."""
        listed, counts = self._store.composition
        occurs = np.flatnonzero(counts[self._index].any(0))
        return [listed[column] for column in occurs]

    def element_counts(self, elements: Sequence[int]) -> Floats:
        """Atoms of each of some elements in each frame, (F, elements)."""
        listed, counts = self._store.composition
        found = np.zeros((len(self), len(elements)))
        for column, z in enumerate(elements):
            if z in listed:
                found[:, column] = counts[self._index, listed.index(z)]
        return found

    def graph(self, k: int, edges: bool = True) -> Graph:
        """Graph of one frame, with or without its edges."""
        return self._joined([int(self._index[k])], edges)

    # Labels

    @cached_property
    def _masks(self) -> dict[str, Masks]:
        """Whether each frame has a label, (F,), for the labels that at least one has."""
        found = {name: mask[self._index] for name, mask in self._store.masks.items()}
        return {name: found[name] for name in QUANTITIES if name in found and found[name].any()}

    @cached_property
    def quantities(self) -> tuple[str, ...]:
        """Names of the labels that at least one frame has."""
        return tuple(self._masks)

    @cached_property
    def partial(self) -> tuple[str, ...]:
        """Names of the labels that some frames have and others lack."""
        return tuple(name for name, mask in self._masks.items() if not mask.all())

    def labelled(self, name: str) -> list[int]:
        """Indices of the frames that have a label."""
        found: list[int] = np.flatnonzero(self._masks.get(name, ())).tolist()
        return found

    def count(self, name: str, index: Iterable[int], *, atoms: bool = False) -> int:
        """Number of frames, or of their atoms, that have a label, among some frames."""
        chosen = np.fromiter(index, dtype=np.int64)
        if name in self.partial:
            chosen = chosen[self._masks[name][chosen]]
        return int(self._store.sizes[self._index[chosen]].sum()) if atoms else len(chosen)

    def joined(self, name: str, index: Sequence[int] | NDArray[np.int64] | None = None) -> Tensor:
        """Values of one label for all frames, or for some: (F, ...), or (atoms, ...) for forces.

        They are NaN for frames without it, see `labelled`.

        Raises
        ------
        ValueError
            If the frames have no such label.
        """
        if name not in self._masks:
            has = ", ".join(self.quantities) or "nothing"
            raise ValueError(f"the frames have no {name}: they are labelled with {has}")
        chosen = self._index if index is None else self._index[np.asarray(index, dtype=np.int64)]
        return torch.from_numpy(np.array(self._store.labels(name, chosen)))

    def values(self, name: str) -> list[Tensor]:
        """Values of one label for all frames; NaN for frames without it, see `labelled`.

        They are all in memory at once; `joined` gives those of some frames.

        Raises
        ------
        ValueError
            If the frames have no such label.
        """
        found = self.joined(name)
        if QUANTITIES[name].per_atom:
            return list(torch.split(found, self.sizes.tolist()))
        return list(found)

    @property
    def energies(self) -> Tensor:
        """Energies, (F,), eV; see `values`."""
        return self.joined("energy")

    @property
    def forces(self) -> list[Tensor]:
        """Forces of every frame, (N, 3), eV/A; see `values`."""
        return self.values("forces")

    def update_digest(self, digest: hashlib._Hash) -> None:
        """Add all structures and labels to a digest, whatever holds them."""
        for k in self._index.tolist():
            numbers, positions, cell, charge = self._store.geometry(k)
            digest.update(numbers.astype(np.int64).tobytes())
            digest.update(positions.tobytes())
            digest.update(cell.tobytes())
            digest.update(np.float64(charge).tobytes())
        for name in self.quantities:
            for part in np.array_split(self._index, max(1, len(self) // _FRAMES_AT_ONCE)):
                digest.update(self._store.labels(name, part).tobytes())
        if self.weighted:
            digest.update(self.weights.tobytes())

    # Isolated atoms, groups and weights

    @property
    def isolated(self) -> list[bool]:
        """Whether each frame is an isolated atom."""
        found: list[bool] = self._store.isolated[self._index].tolist()
        return found

    @property
    def groups(self) -> list[int] | None:
        """Group of each frame; None: every frame is independent."""
        groups = self._store.groups
        return None if groups is None else groups[self._index].tolist()

    @cached_property
    def weights(self) -> Floats:
        """Weight of each frame in the loss, (F,)."""
        weights = self._store.weights
        return np.ones(len(self)) if weights is None else weights[self._index]

    @cached_property
    def weighted(self) -> bool:
        """Whether some frames have another weight than others."""
        return self._store.weights is not None and bool(np.ptp(self.weights) > 0)

    @cached_property
    def mean_weights(self) -> dict[str, float]:
        """Mean weight of the frames, or of their atoms, that have a label, by quantity."""
        found = {}
        for name, mask in self._masks.items():
            counts = self.sizes[mask] if QUANTITIES[name].per_atom else np.ones(int(mask.sum()))
            found[name] = float((self.weights[mask] * counts).sum() / counts.sum())
        return found

    def row_weights(self, index: Sequence[int]) -> dict[str, Tensor]:
        """Weights of some frames divided by the mean over all frames; see `Batch.weights`."""
        if not self.weighted:
            return {}
        weights = torch.from_numpy(self.weights[np.asarray(index, dtype=np.int64)])
        sizes = torch.from_numpy(self._store.sizes[self._index[np.asarray(index, np.int64)]])
        found = {}
        for name, mean in self.mean_weights.items():
            rows = weights / mean if mean > 0 else torch.zeros_like(weights)
            per_atom = QUANTITIES[name].per_atom
            found[name] = torch.repeat_interleave(rows, sizes) if per_atom else rows
        return found

    # Parts

    def select(self, index: Iterable[int]) -> Frames:
        """A subset of the frames, by index.

        Raises
        ------
        ValueError
            If no frame is selected.
        """
        chosen = np.asarray(index if isinstance(index, np.ndarray) else list(index), np.int64)
        if not len(chosen):
            raise ValueError("no frame is selected: expected at least one")
        part = Frames.__new__(Frames)
        part._begin(self._store, self._index[chosen], self.atom_energies)
        return part

    def without_isolated(self) -> Frames:
        """The frames that are not isolated atoms.

        Raises
        ------
        ValueError
            If there are none.
        """
        alone = self._store.isolated[self._index]
        if not alone.any():
            return self
        if alone.all():
            raise ValueError(
                "every frame is an isolated atom, a reference energy: expected others too"
            )
        return self.select(np.flatnonzero(~alone))

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

    # Batches

    def batch(self, index: Iterable[int], pairs: bool = True) -> Batch:
        """Join some frames into one graph, by index; ``pairs``: with the pairs of its edges."""
        chosen = [int(k) for k in index]
        graph = self._joined(self._index[chosen].tolist(), True)
        return Batch(
            graph,
            Labels({name: self.joined(name, chosen) for name in self.quantities}),
            pair_edges(graph) if pairs else None,
            self.masks(chosen),
            self.row_weights(chosen),
        )

    def _joined(self, places: Sequence[int], with_edges: bool) -> Graph:
        """Some frames of the store as one graph; systems are numbered in the order given."""
        if not places:
            raise ValueError("no graph to batch: expected at least one")
        atoms = [self._store.geometry(k) for k in places]
        sizes = np.array([len(each.numbers) for each in atoms])
        index: list[Integers] = [np.zeros((2, 0), dtype=np.int64)]
        shifts: list[Floats] = [np.zeros((0, 3))]
        if with_edges:
            first = 0
            for k, size in zip(places, sizes.tolist(), strict=True):
                own, shift = self._store.edges(k)
                if own.size and own.max() >= size:
                    raise ValueError(
                        f"frame {k} of the data has the neighbour {own.max()} of {size} atoms: "
                        "the file is damaged; pack the frames again"
                    )
                index.append(own + first)
                shifts.append(shift)
                first += size
        return Graph(
            numbers=torch.from_numpy(np.concatenate([a.numbers for a in atoms]).astype(np.int64)),
            positions=torch.from_numpy(np.concatenate([a.positions for a in atoms])),
            cell=torch.from_numpy(np.stack([a.cell for a in atoms])),
            edge_index=torch.from_numpy(np.concatenate(index, axis=1)),
            edge_shift=torch.from_numpy(np.concatenate(shifts)),
            system=torch.from_numpy(np.repeat(np.arange(len(sizes)), sizes)),
            charge=torch.tensor([a.charge for a in atoms], dtype=torch.float64),
        )

    def masks(self, index: Sequence[int]) -> dict[str, Tensor]:
        """Masks of some frames, see `Batch.masks`."""
        found = {}
        chosen = np.asarray(index, dtype=np.int64)
        for name in self.partial:
            rows = torch.from_numpy(self._masks[name][chosen])
            if QUANTITIES[name].per_atom:
                sizes = torch.from_numpy(self._store.sizes[self._index[chosen]])
                rows = torch.repeat_interleave(rows, sizes)
            found[name] = rows
        return found


class Graphs(Sequence[Graph]):
    """Graphs of frames, each made when it is asked for; a slice is a list."""

    def __init__(self, frames: Frames, edges: bool) -> None:
        self._frames = frames
        self._edges = edges

    def __len__(self) -> int:
        return len(self._frames)

    @overload
    def __getitem__(self, k: int) -> Graph: ...
    @overload
    def __getitem__(self, k: slice) -> list[Graph]: ...
    def __getitem__(self, k: int | slice) -> Graph | list[Graph]:
        if isinstance(k, slice):
            return [self._frames.graph(n, self._edges) for n in range(*k.indices(len(self)))]
        return self._frames.graph(k, self._edges)

    def __iter__(self) -> Iterator[Graph]:
        return (self._frames.graph(k, self._edges) for k in range(len(self)))


def _checked(
    name: str, values: list[ArrayLike | None], graphs: Sequence[Graph]
) -> list[Floats | None]:
    """Values of a label as arrays of the right shape."""
    if len(values) != len(graphs):
        raise ValueError(
            f"{len(graphs)} frames with {len(values)} labels of {name}: expected one of "
            "each for every frame"
        )
    row = QUANTITIES[name]
    checked: list[Floats | None] = []
    for k, (graph, value) in enumerate(zip(graphs, values, strict=True)):
        if value is None:
            checked.append(None)
            continue
        array = np.asarray(value, dtype=np.float64)
        shape = (len(graph.numbers), *row.shape) if row.per_atom else row.shape
        if array.shape != shape:
            raise ValueError(
                f"frame {k} has {len(graph.numbers)} atoms but {name} of shape "
                f"{tuple(array.shape)}: expected {tuple(shape)}"
            )
        if not np.isfinite(array).all():
            raise ValueError(f"frame {k} has a label of {name} that is not finite")
        checked.append(array)
    return checked


def checked_weights(weights: ArrayLike) -> Floats:
    """Check the weights of frames, and return them as (F,).

    Raises
    ------
    ValueError
        If one is negative or not finite.
    """
    found = np.asarray(weights, dtype=np.float64)
    wrong = ~(np.isfinite(found) & (found >= 0))
    if wrong.any():
        k = int(np.argmax(wrong))
        raise ValueError(f"frame {k} has the weight {found[k]}: expected 0 or more")
    return found
