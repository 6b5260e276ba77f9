"""The model that is measured, and the least that it costs."""

from __future__ import annotations

import statistics
import time

import torch
from torch import nn

from ...models import EnergyReadout, Potential, TensorNet
from ...models.maths.cartesian import TensorLinear

ELEMENTS = range(1, 100)


def random_potential(seed: int = 0) -> Potential:
    """TensorNet with torchmd-net's default architecture and random weights.

    2 layers, 128 channels, 32 expnorm functions, cutoff 4.5 A, O(3).
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        potential = Potential(
            TensorNet(),
            EnergyReadout(128),
            elements=ELEMENTS,
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
