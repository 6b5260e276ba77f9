"""A sequence of structures to whose shapes TorchScript must not specialise."""

from __future__ import annotations

import torch
from support.helpers import System, crystal, ethanol, predict, predict_batch, slab, supercell, tiny
from torch import nn

ALONE = System(ethanol().numbers[:1], ethanol().positions[:1])
SYSTEMS = [
    ethanol(),
    ethanol(2, charge=1.0),
    crystal(),
    tiny(1),
    supercell(crystal(), (2, 2, 1)),
    ALONE,
    slab(),
    supercell(tiny(2), (3, 1, 2)),
    ethanol(3),
]


def assert_equal_physics(found: nn.Module, expected: nn.Module, dtype: torch.dtype) -> None:
    """Over changing numbers of atoms, cells and charges, each twice, and in a batch.

    Fused operators may round differently: some 1e-16 (6e-8 in float32) on energies of 10 eV
    and forces of 10 eV/A, virials of 100 eV.
    """
    bound = 1e-11 if dtype == torch.float64 else 3e-4
    for system in SYSTEMS * 2:
        for a, b in zip(predict(found, system), predict(expected, system), strict=True):
            assert a.dtype == torch.float64
            assert (a - b).abs().max() < bound
    for a, b in zip(predict_batch(found, SYSTEMS), predict_batch(expected, SYSTEMS), strict=True):
        assert (a - b).abs().max() < bound
    assert predict(expected, SYSTEMS[0]).forces.abs().max() > 0.1
