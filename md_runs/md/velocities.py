"""Initial velocities, and the degrees of freedom that a temperature is counted over."""

from __future__ import annotations

import numpy as np
from ase import Atoms, units
from numpy.typing import NDArray

Array = NDArray[np.float64]


def thermalize(atoms: Atoms, temperature: float, rng: np.random.Generator, *, rigid: bool) -> None:
    """Draw velocities from the Maxwell-Boltzmann distribution, scaled to the temperature.

    Parameters
    ----------
    atoms
        Its momenta are replaced; constraints are respected.
    temperature
        K, which the velocities have exactly, counted over `degrees_of_freedom`.
    rng
        Where the numbers come from.
    rigid
        Whether the motion as a rigid body stays (Langevin thermalises it) or is removed.
    """
    spread = np.sqrt(atoms.get_masses() * units.kB * temperature)
    atoms.set_momenta(rng.standard_normal((len(atoms), 3)) * spread[:, None])
    if not rigid:
        remove_rigid_motion(atoms)
    freedom = degrees_of_freedom(atoms, rigid=rigid)
    found = temperature_of(atoms, freedom, rigid=rigid)
    factor = np.sqrt(temperature / found) if found > 0 else 0.0
    atoms.set_momenta(atoms.get_momenta() * factor)


def remove_rigid_motion(atoms: Atoms) -> None:
    """Stop the centre of mass and, where nothing is periodic, the rotation.

    Atoms held by constraints leave no motion as a whole to remove.
    """
    if not atoms.constraints:
        atoms.set_momenta(atoms.get_masses()[:, None] * _internal_velocities(atoms))


def rigid_energy(atoms: Atoms) -> float:
    """Kinetic energy of the motion that `remove_rigid_motion` would stop, eV."""
    if atoms.constraints:
        return 0.0
    internal = 0.5 * float(atoms.get_masses() @ (_internal_velocities(atoms) ** 2).sum(1))
    return float(atoms.get_kinetic_energy()) - internal


def degrees_of_freedom(atoms: Atoms, *, rigid: bool) -> int:
    """Number of velocities that can be thermal.

    Without ``rigid``, what `remove_rigid_motion` stopped is not counted: 3 translations, and 3
    rotations (2 of a linear molecule) where nothing is periodic.
    """
    freedom = int(atoms.get_number_of_degrees_of_freedom())
    if rigid or atoms.constraints:
        return freedom
    freedom -= 3
    if not atoms.pbc.any():
        masses = atoms.get_masses()
        arms = atoms.positions - masses @ atoms.positions / masses.sum()
        moments = np.linalg.eigvalsh(_inertia(arms, masses))
        freedom -= int((moments > 1e-9 * moments.max()).sum())
    return freedom


def temperature_of(atoms: Atoms, freedom: int, *, rigid: bool = True) -> float:
    """K, from the kinetic energy; 0 where nothing can move.

    ``freedom`` is what `degrees_of_freedom` counts. Without ``rigid``, the energy of the motion
    as a whole is left out, as its degrees of freedom are: nve conserves that motion, thermal or
    not.
    """
    if freedom <= 0:
        return 0.0
    energy = float(atoms.get_kinetic_energy())
    if not rigid:
        energy -= rigid_energy(atoms)
    return 2 * energy / (freedom * units.kB)


def _internal_velocities(atoms: Atoms) -> Array:
    """Velocities less translation and, where nothing is periodic, rotation; ASE's units."""
    masses = atoms.get_masses()
    velocities = atoms.get_velocities()
    velocities -= masses @ velocities / masses.sum()
    if not atoms.pbc.any():
        arms = atoms.positions - masses @ atoms.positions / masses.sum()
        momentum = (masses[:, None] * np.cross(arms, velocities)).sum(0)
        # The pseudo-inverse takes no rotation about the axis of a linear molecule.
        rotation = np.linalg.pinv(_inertia(arms, masses), rcond=1e-9) @ momentum
        velocities -= np.cross(rotation, arms)
    return np.asarray(velocities)


def _inertia(arms: Array, masses: Array) -> Array:
    squares = (masses * (arms**2).sum(1)).sum()
    return np.asarray(squares * np.eye(3) - (masses[:, None] * arms).T @ arms)
