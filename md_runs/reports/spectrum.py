r"""Infrared absorption of a molecule from the dipoles of a run's frames.

The molar absorption, integrated over wavenumbers, of classical nuclei with the harmonic quantum
correction :math:`\beta \hbar \omega / (1 - e^{-\beta \hbar \omega})` is

.. math::
    A(\tilde\nu) = \frac{N_A}{12 \epsilon_0 c^2 k T} \; P(\tilde\nu), \qquad
    \int_0^\infty P \, d\tilde\nu = \langle \dot\mu^2 \rangle

where P, the one-sided power spectrum of the dipole's time derivative, is the Fourier transform of
its autocorrelation (Wiener and Khinchin). A mode in equilibrium has the integral
:math:`N_A / 12 \epsilon_0 c^2 \; (d\mu / dQ)^2`, which is that of the double harmonic
approximation.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ...models.units import (
    ANGSTROM_M,
    AVOGADRO_PER_MOL,
    BOLTZMANN_J_PER_K,
    COULOMB_J_M,
    SPEED_OF_LIGHT_CM_PER_S,
)
from ..md.trajectories import notes_of
from ..runs.folder import TRAJECTORY, RunFolder

Array = NDArray[np.float64]

RESOLUTION = 10.0
"""cm^-1, of a run that is long enough."""
COARSEST = 100.0
"""cm^-1: beyond it bands are not told apart, and nothing is shown."""
HIGHEST_BAND = 4000.0
"""cm^-1: no fundamental of a molecule lies above but that of H2."""
HANN_WIDTH = 1.44
"""Full width at half maximum of a peak, in units of 1 / length of the window."""

DIPOLE = re.compile(rb'(?:^| )dipole="([^"]*)"')
STEP = re.compile(rb"(?:^| )step=(\d+)")


@dataclass(frozen=True)
class Spectrum:
    """Infrared absorption from the dipoles of a run."""

    wavenumbers: Array
    """cm^-1; empty where the run is too short."""
    absorption: Array
    """km/mol per cm^-1."""
    resolution: float
    """Width of a sharp line at half its height, cm^-1."""
    nyquist: float
    """Highest wavenumber that the interval of the frames can tell, cm^-1."""
    frames: int
    interval: float
    """Time between frames, fs."""

    @property
    def folds(self) -> bool:
        """Whether bands of molecules may lie above the Nyquist limit, and appear below it."""
        return self.nyquist < HIGHEST_BAND


def spectrum_of(folder: RunFolder, timestep: float, temperature: float) -> Spectrum | None:
    """The spectrum of a run, or None if its frames have no dipoles.

    Parameters
    ----------
    folder
        The run.
    timestep
        fs.
    temperature
        K.

    Raises
    ------
    ValueError
        If the frames are not equally spaced.
    """
    dipoles, steps = [], []
    for note in notes_of(folder.path / TRAJECTORY):
        dipole, step = DIPOLE.search(note), STEP.search(note)
        if dipole is None or step is None:
            return None
        dipoles.append([float(x) for x in dipole[1].split()])
        steps.append(int(step[1]))
    if len(steps) < 2 or not temperature > 0:
        return None
    intervals = set(np.diff(steps).tolist())
    if len(intervals) > 1:
        raise ValueError(
            f"{folder.path / TRAJECTORY} has frames {sorted(intervals)} steps apart: expected "
            "one interval, which a spectrum needs"
        )
    return infrared_spectrum(np.array(dipoles), timestep * intervals.pop(), temperature)


def infrared_spectrum(
    dipoles: Array, interval: float, temperature: float, resolution: float = RESOLUTION
) -> Spectrum:
    r"""Absorption from dipoles at equal intervals, by Welch's method.

    Differences of the dipoles stand for their derivative, each frequency made up for what that
    takes from it, :math:`(x / \sin x)^2` with :math:`x = \omega \Delta t / 2`. Power spectra of
    Hann windows that overlap by half are averaged; a window is as long as the resolution asks
    for, or as the run.

    Parameters
    ----------
    dipoles
        (F, 3), e A.
    interval
        fs.
    temperature
        K, of the nuclei.
    resolution
        cm^-1.
    """
    seconds = interval * 1e-15
    speed = (np.diff(dipoles, axis=0)) / seconds  # e A / s
    speed = speed - speed.mean(0)
    wanted = math.ceil(HANN_WIDTH / (SPEED_OF_LIGHT_CM_PER_S * resolution * seconds))
    length = min(len(speed), wanted)
    nyquist = 0.5 / (SPEED_OF_LIGHT_CM_PER_S * seconds)
    reached = HANN_WIDTH / (SPEED_OF_LIGHT_CM_PER_S * seconds * length)
    none = np.zeros(0)
    found = Spectrum(none, none, reached, nyquist, len(dipoles), interval)
    if reached > COARSEST or length < 8:
        return found
    window = np.sin(np.pi * (np.arange(length) + 0.5) / length) ** 2
    points = 4 * length  # zeros behind: a smooth curve through the same peaks
    starts = range(0, len(speed) - length + 1, max(length // 2, 1))
    power = np.zeros(points // 2 + 1)
    for start in starts:
        part = np.fft.rfft(window[:, None] * speed[start : start + length], points, axis=0)
        power += (np.abs(part) ** 2).sum(1) / len(starts)
    # One-sided, per cm^-1: the integral is the mean square.
    power *= 2 * seconds * SPEED_OF_LIGHT_CM_PER_S / (window**2).sum()
    wavenumbers = np.arange(len(power)) / (points * seconds * SPEED_OF_LIGHT_CM_PER_S)
    phase = 0.5 * np.pi * wavenumbers / nyquist
    power[1:] *= (phase[1:] / np.sin(phase[1:])) ** 2
    # e^2 A^2 / s^2 to C^2 m^2 / s^2 over epsilon_0, c in m/s, then m/mol to km/mol.
    light = SPEED_OF_LIGHT_CM_PER_S * 1e-2
    factor = AVOGADRO_PER_MOL * (math.pi / 3) * COULOMB_J_M * ANGSTROM_M**2
    factor /= light**2 * BOLTZMANN_J_PER_K * temperature * 1e3
    return Spectrum(wavenumbers, factor * power, reached, nyquist, len(dipoles), interval)
