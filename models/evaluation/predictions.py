"""Predictions of a potential for graphs and labelled frames, by the names of labels."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

from ..data.frames import Frames
from ..graph import Graph, Pairs, batch_graphs, within
from ..inference.forks import use_one_thread_in_forks
from ..potential import Potential, atom_virials, edge_gradient, sum_forces, sums_of_systems
from ..quantities import QUANTITIES, with_derived


class EnergiesAndGradient(Protocol):
    """Another way than autograd to the energies of a potential and their derivatives."""

    reads_pairs: bool
    """Whether a call reads the pairs."""

    def __call__(
        self, graph: Graph, vectors: Tensor, pairs: Pairs | None
    ) -> tuple[Tensor, Tensor]:
        """Energies of atoms (N,), eV, and derivatives by the vectors (E, 3), eV/A; float64."""


def check_heads(potential: Potential, quantities: Sequence[str]) -> None:
    """Check that a potential predicts the given quantities.

    Raises
    ------
    ValueError
        If it lacks a head; the message names the head.
    """
    for name in quantities:
        row = QUANTITIES[name]
        if row.source is not None and row.source not in potential.heads:
            raise ValueError(
                f"the potential has no head for the {row.source}, which {name} needs: give it one "
                f"(Potential(..., heads=...)), or set {row.weight} to 0"
            )


def predict(
    potential: Potential,
    graph: Graph,
    vectors: Tensor,
    pairs: Pairs | None,
    quantities: Sequence[str],
    volume: Tensor | None = None,
    fused: EnergiesAndGradient | None = None,
) -> dict[str, Tensor]:
    """Quantities of a graph, float64, from one pass through the network.

    In training mode they are differentiable with respect to the parameters.

    Parameters
    ----------
    potential
        Potential with a head for every property.
    graph, vectors, pairs
        Graph with edges within the cutoff, their vectors (E, 3) in Angstrom, and their pairs or
        None.
    quantities
        Names in `QUANTITIES`.
    volume
        Volumes of the cells, (B,), Angstrom^3; read for the stress.
    fused
        Function to take energies and their derivatives from; None: the potential and autograd.
    """
    properties = [name for name in quantities if QUANTITIES[name].source is not None]
    derivatives = needs_derivatives(quantities)
    found: dict[str, Tensor] = {}
    vectors = vectors.detach().requires_grad_(derivatives)
    if len(properties) == len(quantities):
        found = dict(potential.properties(graph, vectors, pairs))
    else:
        gradient = torch.zeros_like(vectors)
        if fused is not None:
            energies, gradient = fused(graph, vectors, pairs)
        elif properties:
            energies, found = potential.atom_energies_and_properties(graph, vectors, pairs)
        else:
            energies = potential.atom_energies(graph, vectors, pairs)
        if derivatives and fused is None:
            gradient = edge_gradient(energies, vectors, potential.training, keep=True)
        energy, forces = sums_of_systems(graph, energies), sum_forces(graph, gradient)
        found = {**found, "energy": energy, "forces": forces}
        if "stress" in quantities:
            assert volume is not None
            virials = atom_virials(graph, vectors.detach(), gradient)
            found["stress"] = -sums_of_systems(graph, virials) / volume.view(-1, 1, 1)
    found = with_derived(found)
    return {name: found[name] for name in quantities}


def needs_derivatives(quantities: Sequence[str]) -> bool:
    """Whether one of the quantities is a derivative of the energy."""
    return any(QUANTITIES[name].per_length is not None for name in quantities)


def predict_graphs(
    potential: nn.Module,
    graphs: Sequence[Graph],
    quantities: Sequence[str],
    parts: Iterable[slice],
) -> dict[str, Tensor]:
    """Quantities of many graphs, (B, ...) or (N, ...), float64 on the CPU.

    Parameters
    ----------
    potential
        Potential on any device; it is not changed. Other modules give energies and forces only.
    graphs
        Graphs with all edges within the cutoff.
    quantities
        Names in `QUANTITIES`.
    parts
        Consecutive slices that cover all graphs; each is evaluated at once.
    """
    use_one_thread_in_forks()
    device = next(potential.parameters()).device
    training = potential.training
    potential.eval()
    found: dict[str, list[Tensor]] = {name: [] for name in quantities}
    try:
        for part in parts:
            graph = Graph(*(x.to(device) for x in batch_graphs(list(graphs[part]))))
            for name, value in _values(potential, graph, quantities).items():
                found[name].append(value.detach().cpu())
    finally:
        potential.train(training)
    return {name: torch.cat(values) for name, values in found.items()}


def _values(potential: nn.Module, graph: Graph, quantities: Sequence[str]) -> dict[str, Tensor]:
    if not isinstance(potential, Potential):
        prediction = potential(graph)
        return {name: getattr(prediction, name) for name in quantities}
    graph, vectors = within(graph, potential.cutoff)
    volume = torch.linalg.det(graph.cell).abs() if "stress" in quantities else None
    with torch.set_grad_enabled(needs_derivatives(quantities)):
        return predict(potential, graph, vectors, None, quantities, volume)


def slices(count: int, batch: int) -> list[slice]:
    """Slices of at most ``batch`` frames that cover ``count`` frames."""
    return [slice(start, min(start + batch, count)) for start in range(0, count, batch)]


class Comparison(NamedTuple):
    """Predictions and labels of many frames, float64 on the CPU, by quantity."""

    found: dict[str, Tensor]
    wanted: dict[str, Tensor]
    atoms: Tensor
    """Number of atoms of each frame, (F,) float64."""
    masks: dict[str, Tensor]
    """Whether frames, (F,), or their atoms, (N,), have a label, for labels that some lack."""

    def errors(self, name: str) -> Tensor:
        """Predictions minus labels of a quantity, where there are labels: (K, ...)."""
        errors = self.found[name] - self.wanted[name]
        return errors[self.masks[name]] if name in self.masks else errors

    def sizes(self, name: str) -> Tensor:
        """Number of atoms of each frame that has a label of a quantity, (K,)."""
        return self.atoms[self.masks[name]] if name in self.masks else self.atoms


def compare(
    potential: nn.Module, frames: Frames, quantities: Sequence[str] | None = None, batch: int = 100
) -> Comparison:
    """Predictions and labels of all frames; the potential is not changed.

    Parameters
    ----------
    potential
        Potential on any device.
    frames
        Labelled frames.
    quantities
        Names in `QUANTITIES`; None: all labels that the potential predicts.
    batch
        Number of frames evaluated at once.

    Raises
    ------
    ValueError
        If no frame has a label, or the potential no head, for one of the quantities.
    """
    if quantities is None:
        given = (None, *getattr(potential, "heads", ()))
        quantities = [n for n in frames.quantities if QUANTITIES[n].source in given]
    elif isinstance(potential, Potential):
        check_heads(potential, quantities)
    wanted = {name: frames.joined(name) for name in quantities}
    found = predict_graphs(potential, frames.graphs, quantities, slices(len(frames), batch))
    masks = frames.masks(range(len(frames)))
    return Comparison(found, wanted, torch.from_numpy(frames.sizes).double(), masks)
