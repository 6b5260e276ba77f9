"""What a potential says of labelled frames, under the names that labels have."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..data.frames import Frames
from ..graph import Graph, Pairs, within
from ..potential import Potential, assemble, edge_gradient

OF_THE_ENERGY = ("energy", "forces", "stress")
"""Quantities that the energy and its derivatives are; all others are properties."""
_HEADS = {
    "dipole": "dipole",
    "dipole_norm": "dipole",
    "polarizability": "polarizability",
    "polarizability_isotropic": "polarizability",
    "polarizability_anisotropy": "polarizability",
}
"""Head that a property needs."""


def check_heads(potential: Potential, quantities: Sequence[str]) -> None:
    """Check that a potential can say something of quantities.

    Raises
    ------
    ValueError
        Naming the head that it lacks.
    """
    for name in quantities:
        head = _HEADS.get(name)
        if head is not None and head not in potential.heads:
            raise ValueError(
                f"the potential has no head for the {head}, which {name} needs: give it one "
                f"(Potential(..., heads=...)), or set {name}_weight to 0"
            )


def predict(
    potential: Potential,
    graph: Graph,
    vectors: Tensor,
    pairs: Pairs | None,
    quantities: Sequence[str],
    volume: Tensor | None = None,
) -> dict[str, Tensor]:
    """Quantities of a graph, float64, from one pass through the network.

    They can be differentiated by the parameters where the potential is in training mode.

    Parameters
    ----------
    potential
        Its energies, and its heads for properties.
    graph, vectors, pairs
        Edges within the cutoff, their vectors (E, 3) and, if known, their pairs.
    quantities
        Names of `Labels`.
    volume
        (B,), A^3: read for the stress.
    """
    properties = [name for name in quantities if name not in OF_THE_ENERGY]
    derivatives = "forces" in quantities or "stress" in quantities
    found: dict[str, Tensor] = {}
    vectors = vectors.detach().requires_grad_(derivatives)
    if len(properties) == len(quantities):
        found = dict(potential.properties(graph, vectors, pairs))
    else:
        if properties:
            energies, found = potential.atom_energies_and_properties(graph, vectors, pairs)
        else:
            energies = potential.atom_energies(graph, vectors, pairs)
        gradient = torch.zeros_like(vectors)
        if derivatives:
            gradient = edge_gradient(energies, vectors, potential.training, keep=True)
        prediction = assemble(graph, energies, vectors.detach(), gradient)
        found = {**found, "energy": prediction.energy, "forces": prediction.forces}
        if "stress" in quantities:
            assert volume is not None
            found["stress"] = -prediction.virial / volume.view(-1, 1, 1)
    if "dipole" in found:
        found["dipole_norm"] = _length(found["dipole"])
    if "polarizability" in found:
        alpha = found["polarizability"]
        third = alpha.diagonal(dim1=1, dim2=2).sum(1) / 3
        unit = torch.eye(3, dtype=alpha.dtype, device=alpha.device)
        rest = alpha - third.view(-1, 1, 1) * unit
        found["polarizability_isotropic"] = third
        found["polarizability_anisotropy"] = 1.5**0.5 * _length(rest.flatten(1))
    return {name: found[name] for name in quantities}


def _length(x: Tensor) -> Tensor:
    """(B, d) -> (B,), with a gradient, zero, where it is zero."""
    return (x.square().sum(1) + 1e-24).sqrt()


class Comparison(NamedTuple):
    """Predictions and labels of many frames, float64 on the CPU, by quantity."""

    found: dict[str, Tensor]
    wanted: dict[str, Tensor]
    atoms: Tensor
    """(F,) float64, of each frame."""


def compare(
    potential: Potential, frames: Frames, quantities: Sequence[str] | None = None, batch: int = 100
) -> Comparison:
    """Predictions beside the labels of all frames; the potential is left as it was.

    Parameters
    ----------
    potential
        On any device.
    frames
        Labelled.
    quantities
        Names of `Labels`; None: all that the frames are labelled with and the potential has.
    batch
        Frames at a time.
    """
    if quantities is None:
        quantities = [
            name
            for name in frames.quantities
            if name in OF_THE_ENERGY or _HEADS[name] in potential.heads
        ]
    check_heads(potential, quantities)
    device = next(potential.parameters()).device
    training = potential.training
    potential.eval()
    found: dict[str, list[Tensor]] = {name: [] for name in quantities}
    try:
        for start in range(0, len(frames), batch):
            part = frames.batch(range(start, min(start + batch, len(frames))))
            graph, vectors = within(Graph(*(x.to(device) for x in part.graph)), potential.cutoff)
            volume = torch.linalg.det(graph.cell).abs() if "stress" in quantities else None
            values = predict(potential, graph, vectors, None, quantities, volume)
            for name, value in values.items():
                found[name].append(value.detach().cpu())
    finally:
        potential.train(training)
    join = {name: torch.cat if name == "forces" else torch.stack for name in quantities}
    return Comparison(
        {name: torch.cat(values) for name, values in found.items()},
        {name: join[name](frames.values(name)) for name in quantities},
        torch.tensor([len(graph.numbers) for graph in frames.graphs], dtype=torch.float64),
    )
