"""Monte Carlo barostat, and the pressure of a moment, from energies alone.

Chow & Ferguson, "Isothermal-isobaric molecular dynamics simulations with Monte Carlo volume
sampling", Comput. Phys. Commun. 91, 283 (1995); Aqvist et al., Chem. Phys. Lett. 384, 288 (2004).
The algorithm of OpenMM's MonteCarloBarostat and MonteCarloAnisotropicBarostat. Theirs cannot be
resumed: a checkpoint of OpenMM holds neither their random numbers nor the size of their moves.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from ase import units
from numpy.typing import NDArray

Array = NDArray[np.float64]
Energy = Callable[[Array, Array], float]
"""Positions (N, 3) and box (3, 3), A -> energy, eV."""

STRIDE = 25
"""Steps between two moves."""
PROBE = 0.002
"""Relative change of the volume that a pressure is measured with."""


class MonteCarloBarostat:
    r"""Moves of the volume V.

    Accepted with probability :math:`\min(1, e^{-w / kT})`,

    .. math:: w = \Delta E + P \Delta V - M kT \ln(V' / V)

    where M molecules keep their shape and their places in scaled coordinates.

    Parameters
    ----------
    molecules
        Number of the molecule that each atom belongs to, from 0, (N,).
    temperature
        T, K.
    pressure
        P, eV/A^3.
    anisotropic
        Scale the box along one Cartesian axis at a time, drawn at random; else all three.
    volume
        V of the structure that the run starts from, A^3.
    """

    def __init__(
        self,
        molecules: NDArray[np.int64],
        temperature: float,
        pressure: float,
        anisotropic: bool,
        volume: float,
    ) -> None:
        self.molecules = molecules
        self.thermal = units.kB * temperature
        self.pressure = pressure
        self.sizes = [0.01 * volume] * (3 if anisotropic else 1)
        """Largest moves, A^3, by axis."""
        self.attempted = [0] * len(self.sizes)
        self.accepted = [0] * len(self.sizes)

    def move(
        self, positions: Array, box: Array, energy: Energy, rng: np.random.Generator
    ) -> tuple[Array, Array] | None:
        """Positions and box after a move, or None if it is rejected."""
        axis = int(rng.integers(3)) if len(self.sizes) == 3 else 0
        volume = abs(float(np.linalg.det(box)))
        change = self.sizes[axis] * rng.uniform(-1.0, 1.0)
        ratio = (volume + change) / volume
        if len(self.sizes) == 3:
            scale = np.where(np.arange(3) == axis, ratio, 1.0)
        else:
            scale = np.full(3, ratio ** (1 / 3))
        moved, scaled = scale_molecules(positions, box, scale, self.molecules)
        count = int(self.molecules.max()) + 1
        work = energy(moved, scaled) - energy(positions, box)
        work += self.pressure * change - count * self.thermal * np.log(ratio)
        # An energy that is no number is never accepted.
        accepted = bool(work <= 0 or rng.random() < np.exp(-work / self.thermal))
        self._adapt(axis, accepted, volume)
        return (moved, scaled) if accepted else None

    def _adapt(self, axis: int, accepted: bool, volume: float) -> None:
        """Keep between a quarter and three quarters of the moves accepted, as OpenMM does."""
        self.attempted[axis] += 1
        self.accepted[axis] += accepted
        if self.attempted[axis] < 10:
            return
        rate = self.accepted[axis] / self.attempted[axis]
        if rate < 0.25:
            self.sizes[axis] /= 1.1
        elif rate > 0.75:
            self.sizes[axis] = min(self.sizes[axis] * 1.1, 0.3 * volume)
        if rate < 0.25 or rate > 0.75:
            self.attempted[axis] = self.accepted[axis] = 0

    def state(self) -> dict[str, Any]:
        """State of a restart, as JSON data."""
        return {name: list(getattr(self, name)) for name in ("sizes", "attempted", "accepted")}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from what `state` returned."""
        for name, values in state.items():
            setattr(self, name, list(values))


def scale_molecules(
    positions: Array, box: Array, scale: Array, molecules: NDArray[np.int64]
) -> tuple[Array, Array]:
    """Scale the box and the middles of the molecules by a factor for each Cartesian axis."""
    sums = np.zeros((int(molecules.max()) + 1, 3))
    np.add.at(sums, molecules, positions)
    middles = sums / np.bincount(molecules)[:, None]
    return positions + (middles * (scale - 1.0))[molecules], box * scale


def molecular_pressure(
    positions: Array,
    momenta: Array,
    masses: Array,
    box: Array,
    energy: Energy,
    molecules: NDArray[np.int64],
) -> float:
    r"""Instantaneous pressure, eV/A^3, of molecules that keep their shape.

    .. math:: P = \frac{2}{3 V} \sum_m \frac{p_m^2}{2 M_m} - \frac{dE}{dV}

    with the momenta and masses of whole molecules, and a central difference of energies.
    """
    volume = abs(float(np.linalg.det(box)))
    energies = []
    for change in (-PROBE, PROBE):
        scale = np.full(3, (1 + change) ** (1 / 3))
        energies.append(energy(*scale_molecules(positions, box, scale, molecules)))
    whole = np.zeros((int(molecules.max()) + 1, 3))
    np.add.at(whole, molecules, momenta)
    moving = masses > 0
    total = np.bincount(molecules[moving], masses[moving], minlength=len(whole))
    kinetic = float(((whole**2).sum(1) / np.where(total > 0, 2 * total, np.inf)).sum())
    return 2 * kinetic / (3 * volume) - (energies[1] - energies[0]) / (2 * PROBE * volume)
