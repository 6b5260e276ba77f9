"""The model that is measured, and the least that it costs."""

from __future__ import annotations

import statistics
import time

import torch
from torch import nn

from ...models import CoulombEnergy, EnergyReadout, Potential, TensorNet, TensorNet2
from ...models.maths.cartesian import TensorLinear

ELEMENTS = range(1, 100)


NETWORKS = ("tensornet", "tensornet2")
"""Networks that `random_potential` makes."""


def random_potential(seed: int = 0, network: str = "tensornet") -> Potential:
    """A potential of a usual size with random weights, for evaluation.

    Parameters
    ----------
    seed
        Seed of the weights.
    network
        ``tensornet``: torchmd-net's default architecture, 2 layers, 128 channels, 32 expnorm
        functions, cutoff 4.5 A, O(3). ``tensornet2``: the size of AceFF-2, the same with 16
        charges per atom and level, cutoff 5 A, and the Coulomb energy of all pairs.

    Raises
    ------
    ValueError
        If the network is neither.
    """
    if network not in NETWORKS:
        raise ValueError(f"network is {network!r}: expected one of {', '.join(NETWORKS)}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        charged = network == "tensornet2"
        representation = TensorNet2() if charged else TensorNet()
        potential = Potential(
            representation,
            EnergyReadout(128),
            elements=ELEMENTS,
            coulomb=CoulombEnergy([0.0, 0.0, 1.0], channels=16) if charged else None,
            metadata={"name": f"random weights, seed {seed}"},
        )
    return potential.eval().requires_grad_(False)


def product_flops_per_atom(potential: nn.Module) -> int | None:
    """Operations of the matrix products that every atom needs for energy and forces.

    These act on features of atoms (mixing of channels, gates, readout): a multiplication and an
    addition each, once forwards and once backwards. Networks of a distance alone are left out,
    since a table can replace them. None for other architectures.
    """
    if not isinstance(potential, Potential) or not isinstance(potential.representation, TensorNet):
        return None
    network = potential.representation
    per_atom: list[nn.Module] = [network.embedding.gate, potential.readout]
    count = sum(
        module.weight.numel()
        for part in per_atom
        for module in part.modules()
        if isinstance(module, nn.Linear)
    )
    for module in network.modules():
        if isinstance(module, TensorLinear):
            count += 9 * module.weight.shape[1] * module.weight.shape[2]
    return 2 * 2 * count


def product_rate(device: torch.device | str = "cpu", size: int = 2048, repeats: int = 7) -> float:
    """Operations per second of ``torch.mm`` on square float32 matrices; the median."""
    a = torch.ones(size, size, device=device)
    out = torch.empty_like(a)
    times = []
    for _ in range(repeats + 2):
        began = time.perf_counter()
        torch.mm(a, a, out=out)
        if out.is_cuda:
            torch.cuda.synchronize(out.device)
        times.append(time.perf_counter() - began)
    return 2 * size**3 / statistics.median(times[2:])
