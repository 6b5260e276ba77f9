"""Constant pressure by stochastic cell rescaling.

Bernetti & Bussi, "Pressure control using stochastic cell rescaling", J. Chem. Phys. 153, 114107
(2020). First order like Berendsen's barostat, but with the noise that makes the volume
fluctuate as it should. It keeps no state of its own, works with any thermostat and any cell
(whose shape it keeps), and is why a resumed run needs nothing but positions, momenta, the cell
and the random generator.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from ase import Atoms, units

from ...models.units import bar_in_ev_per_angstrom3

SOFTEST_PER_BAR = 4.5e-5
"""Compressibility of water: the softest that is assumed of a condensed phase."""


@dataclass(frozen=True)
class StochasticCellRescaling:
    r"""One step of the volume V, with :math:`\lambda = \sqrt V`.

    .. math::
        d\lambda = -\frac{\beta \lambda}{2 \tau}
        \left(P_0 - P - \frac{k T}{2 V}\right) dt + \sqrt{\frac{k T \beta}{2 \tau}}\, dW

    Positions are scaled by :math:`(V'/V)^{1/3}` and momenta by its inverse, so that the volume
    they take in phase space stays the same.
    """

    temperature: float
    """T, K."""
    pressure: float
    """P_0, eV/A^3."""
    compressibility: float
    """beta, A^3/eV; it sets how fast the volume moves, not where to."""
    time: float
    """tau, ASE time units."""
    timestep: float
    """dt between two rescalings, ASE time units."""

    def apply(self, atoms: Atoms, rng: np.random.Generator) -> None:
        """Rescale cell, positions and momenta."""
        thermal = units.kB * self.temperature
        volume = atoms.get_volume()
        rate = self.compressibility / (2 * self.time)
        excess = self.pressure - pressure_of(atoms) - thermal / (2 * volume)
        root = np.sqrt(volume)
        root += -rate * root * excess * self.timestep
        root += np.sqrt(thermal * rate * self.timestep) * rng.standard_normal()
        scale_volume(atoms, float(root**2 / volume))


def scale_volume(atoms: Atoms, ratio: float) -> None:
    """Scale the cell and positions to ``ratio`` of the volume, momenta by the inverse."""
    factor = ratio ** (1 / 3)
    momenta = atoms.get_momenta() / factor
    positions = atoms.positions * factor
    atoms.set_cell(atoms.cell.array * factor)
    atoms.positions = positions
    atoms.set_momenta(momenta)


def pressure_of(atoms: Atoms) -> float:
    """Instantaneous pressure, that of the moving atoms included, eV/A^3."""
    virial = -float(np.trace(atoms.get_stress(voigt=False))) / 3
    return virial + float(2 * atoms.get_kinetic_energy() / (3 * atoms.get_volume()))


def estimate_compressibility(atoms: Atoms, strain: float = 0.003) -> float:
    r"""Compressibility of the structure as it stands, 1/bar, by a central difference.

    .. math:: \\beta = -\frac{1}{V} \frac{\Delta V}{\Delta P}

    A frozen structure is stiffer than a moving one: the value is on the safe side, for the
    barostat then moves the volume more slowly than ``tau``, never faster.
    """
    pressures = []
    for ratio in (1 - strain, 1 + strain):
        probe = atoms.copy()
        probe.calc = atoms.calc
        scale_volume(probe, ratio)
        pressures.append(-float(np.trace(probe.get_stress(voigt=False))) / 3)
    bulk_modulus = (pressures[0] - pressures[1]) / (2 * strain)
    if not bulk_modulus > 0:
        return SOFTEST_PER_BAR
    return min(bar_in_ev_per_angstrom3 / bulk_modulus, SOFTEST_PER_BAR)
