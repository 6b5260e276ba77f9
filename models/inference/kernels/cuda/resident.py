"""Energies and forces of one system whose positions stay on the device."""

from __future__ import annotations

import torch
from torch import Tensor

from ....graph import Graph
from ....potential import Prediction
from ...torchscript_pairs import neighbor_pairs
from ..fused import FusedTensorNet


class ResidentSystem:
    """Evaluates a potential with a Verlet list that lives on the device.

    Whether the list still holds is found out on the device, together with the step, and read
    after it: one truth value, when the caller needs the results anyway. If an atom had moved
    too far, pairs are searched anew and the step is made once more, so that no result ever
    comes from a list that has expired. The search itself reads sizes from the device.

    Parameters
    ----------
    potential
        The fused potential.
    numbers
        (N,) int64 atomic numbers, on the device of the potential.
    periodic
        (3,) bool.
    charge
        Total charge, e.
    skin
        Angstrom; 0 searches at every change of position.

    Attributes
    ----------
    builds
        How many searches were made so far.
    """

    def __init__(
        self,
        potential: FusedTensorNet,
        numbers: Tensor,
        periodic: Tensor,
        charge: float = 0.0,
        skin: float = 1.0,
    ) -> None:
        if not 0 <= skin < float("inf"):
            raise ValueError(f"skin is {skin} A: expected zero or a positive length")
        self.potential = potential
        self.skin = float(skin)
        self.builds = 0
        self._numbers = numbers
        self._periodic = periodic
        self._system = torch.zeros_like(numbers)
        self._charge = torch.full((1,), charge, dtype=torch.float64, device=numbers.device)
        self._searched: tuple[Tensor, Tensor] | None = None
        self._edges: tuple[Tensor, Tensor] | None = None

    @torch.no_grad()
    def __call__(self, positions: Tensor, cell: Tensor) -> Prediction:
        """Energies, forces and virial.

        Parameters
        ----------
        positions
            (N, 3) float64, Angstrom, on the device.
        cell
            (3, 3) float64, rows are lattice vectors; not read where nothing is periodic.
        """
        if self._searched is None:
            self._search(positions, cell)
        expired = self._expired(positions, cell)
        prediction = self.potential(self._graph(positions, cell))
        if bool(expired):
            self._search(positions, cell)
            prediction = self.potential(self._graph(positions, cell))
        return prediction

    def _expired(self, positions: Tensor, cell: Tensor) -> Tensor:
        """One truth value, on the device; not a number counts as moved."""
        assert self._searched is not None
        moved = ((positions - self._searched[0]) ** 2).sum(1)
        still = (moved <= self.skin**2 / 4).all()
        return ~(still & (cell == self._searched[1]).all())

    def _search(self, positions: Tensor, cell: Tensor) -> None:
        cutoff = self.potential.cutoff + self.skin
        self._edges = neighbor_pairs(positions, cell, self._periodic, cutoff)
        self._searched = (positions.clone(), cell.clone())
        self.builds += 1

    def _graph(self, positions: Tensor, cell: Tensor) -> Graph:
        assert self._edges is not None
        return Graph(
            numbers=self._numbers,
            positions=positions,
            cell=(cell * self._periodic.unsqueeze(1)).unsqueeze(0),
            edge_index=self._edges[0],
            edge_shift=self._edges[1],
            system=self._system,
            charge=self._charge,
        )
