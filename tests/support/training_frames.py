"""Frames with random labels, and small networks that learn them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from support.helpers import System

from tensormd.models import EnergyReadout, Potential, TensorNet
from tensormd.models.training import Frames

CUTOFF = 4.5


def labelled(systems: Sequence[System], stress: bool = False) -> Frames:
    graphs = [system.graph(CUTOFF) for system in systems]
    rng = np.random.default_rng(0)
    others = {"stress": rng.normal(size=(len(systems), 3, 3))} if stress else {}
    return Frames(
        graphs,
        rng.normal(size=len(graphs)),
        [rng.normal(size=graph.positions.shape) for graph in graphs],
        **others,
    )


def without(
    frames: Frames, lack: dict[str, list[int]], weights: Sequence[float] | None = None
) -> Frames:
    """The same frames, some of which lack labels, with weights."""
    left = {
        name: [None if k in lack.get(name, ()) else v for k, v in enumerate(frames.values(name))]
        for name in frames.quantities
    }
    energies, forces = left.pop("energy"), left.pop("forces")
    return Frames(frames.graphs, energies, forces, weights=weights, **left)


def water(seed: int) -> System:
    positions = np.array([[0.0, 0, 0.1], [0, 0.8, -0.5], [0, -0.8, -0.5]])
    return System(
        np.array([8, 1, 1]), positions + np.random.default_rng(seed).normal(scale=0.1, size=(3, 3))
    )


def tensornet(dtype: torch.dtype = torch.float64, layers: int = 1) -> Potential:
    torch.manual_seed(0)
    network = TensorNet(channels=4, layers=layers, radial_functions=4, cutoff=CUTOFF, max_number=9)
    return Potential(network, EnergyReadout(4), elements=[1, 6, 7, 8], scale=0.8).to(dtype)
