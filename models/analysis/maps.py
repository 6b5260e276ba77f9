"""Low-dimensional maps of the graph embeddings of frames."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..data.frames import Frames
from ..graph import within
from ..potential import Potential
from .batches import batches
from .layout import Layout


@dataclass(frozen=True)
class Map:
    """Principal components of the embeddings of F frames; float64."""

    name: str
    """Name of an order, or ``all``."""
    points: Tensor
    """Coordinates of the frames, (F, 2)."""
    explained: tuple[float, float]
    """Fraction of the variance along each of the two components."""


def graph_embeddings(potential: Potential, frames: Frames, layout: Layout) -> Tensor:
    r"""Invariants of the last features, averaged over the atoms of each frame.

    The invariants of scalars are the features themselves, those of other orders the norms
    :math:`\sqrt{\sum_{m \in l} X_{imc}^2}`.

    Returns
    -------
    Tensor
        Embeddings, (orders, F, C) float64.
    """
    found = []
    for graph in batches(frames):
        with torch.no_grad():
            near, vectors = within(graph, potential.cutoff)
            scaled = (vectors / potential.length_in_angstrom).to(potential.dtype)
            x = potential.representation(near, scaled)
            values = layout.contract(x, x).sqrt()
            scalars = [k for k, order in enumerate(layout.orders) if order.degree == 0]
            for k in scalars:
                values[k] = layout.part(x, layout.orders[k]).squeeze(layout.axis)
        values = values.double()
        systems = graph.charge.shape[0]
        sums = values.new_zeros(values.shape[0], systems, values.shape[2])
        sums = sums.index_add(1, graph.system, values)
        sizes = torch.bincount(graph.system, minlength=systems)
        found.append(sums / sizes.view(1, -1, 1))
    return torch.cat(found, dim=1)


def principal_map(name: str, values: Tensor) -> Map:
    """First two principal components of values (F, C), with standardised channels."""
    centred = values - values.mean(0)
    spread = centred.square().mean(0).sqrt()
    # A channel that is constant up to rounding has no information.
    varied = spread > 1e-9 * values.abs().max().clamp_min(1e-300)
    scaled = centred[:, varied] / spread[varied]
    if min(scaled.shape) < 1:
        return Map(name, torch.zeros(len(values), 2, dtype=torch.float64), (0.0, 0.0))
    u, s, v = torch.linalg.svd(scaled, full_matrices=False)
    # The sign of a component is arbitrary: make the largest loading positive.
    signs = v.gather(1, v.abs().argmax(1, keepdim=True)).sign().squeeze(1)
    points = torch.zeros(len(values), 2, dtype=torch.float64)
    shares = s.square() / s.square().sum()
    kept = min(2, len(s))
    points[:, :kept] = (u * s * signs)[:, :kept]
    first, second = [*shares[:2].tolist(), 0.0][:2]
    return Map(name, points, (first, second))


def maps_of(potential: Potential, frames: Frames, layout: Layout) -> list[Map]:
    """Maps of all orders together, and of each order."""
    values = graph_embeddings(potential, frames, layout)
    together = values.transpose(0, 1).flatten(1)
    maps = [principal_map("all", together)]
    for order, part in zip(layout.orders, values, strict=True):
        maps.append(principal_map(order.name, part))
    return maps


def explained_by(points: Tensor, values: Tensor) -> float | None:
    """R^2 of a property (F,) as a linear function of map coordinates (F, 2); None if constant."""
    target = values - values.mean()
    total = float(target.square().sum())
    if total <= 1e-18 * max(float(values.square().sum()), 1e-300):
        return None
    ones = torch.ones(len(points), 1, dtype=points.dtype)
    design = torch.cat([points, ones], dim=1)
    fit = design @ torch.linalg.lstsq(design, values.unsqueeze(1), driver="gelsd").solution
    return 1 - float((values - fit.squeeze(1)).square().sum()) / total
