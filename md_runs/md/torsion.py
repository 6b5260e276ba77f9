"""Energy of a molecule along one torsion, the rest relaxed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from ase import Atoms
from ase.constraints import FixInternals
from ase.optimize import BFGS
from numpy.typing import NDArray

from ...models.data.structures.bonds import bonds_of


@dataclass(frozen=True)
class TorsionProfile:
    """Energies along a torsion."""

    torsion: tuple[int, int, int, int]
    degrees: NDArray[np.float64]
    """(P,), ascending from 0 to below 360."""
    energies_ev: NDArray[np.float64]
    """(P,), the lower one of both directions, from the lowest of all."""

    @property
    def barrier_ev(self) -> float:
        """Highest energy, from the lowest."""
        return float(self.energies_ev.max())


def torsion_profile(
    atoms: Atoms,
    torsion: Sequence[int],
    *,
    points: int = 24,
    fmax: float = 0.03,
    steps: int = 100,
) -> TorsionProfile:
    """Turn a bond by a whole circle, forwards and backwards, relaxing everything else.

    Parameters
    ----------
    atoms
        A molecule with a calculator; it is not changed.
    torsion
        Atoms a-b-c-d; the side of c turns about the bond b-c.
    points
        Number of angles.
    fmax, steps
        Largest force at convergence, eV/A, and the most steps at each angle.

    Raises
    ------
    ValueError
        If b and c are not bonded, or the bond is part of a ring.
    """
    a, b, c, d = (int(k) for k in torsion)
    side = _side(atoms, b, c)
    first = atoms.get_dihedral(a, b, c, d)
    angles = first + np.arange(points) * 360 / points
    lowest = np.full(points, np.inf)
    for order in (range(points), [0, *range(points - 1, 0, -1)]):
        moved = atoms.copy()
        moved.calc = atoms.calc
        for k in order:
            moved.set_constraint()
            moved.set_dihedral(a, b, c, d, angles[k], indices=side)
            moved.set_constraint(FixInternals(dihedrals_deg=[[angles[k] % 360, [a, b, c, d]]]))
            BFGS(moved, logfile=None).run(fmax=fmax, steps=steps)
            lowest[k] = min(lowest[k], moved.get_potential_energy())
    order_of_angles = np.argsort(angles % 360)
    return TorsionProfile(
        (a, b, c, d), (angles % 360)[order_of_angles], (lowest - lowest.min())[order_of_angles]
    )


def _side(atoms: Atoms, b: int, c: int) -> list[int]:
    """Atoms beyond the bond b-c, c included."""
    found = bonds_of(atoms)
    neighbors: dict[int, list[int]] = {k: [] for k in range(len(atoms))}
    for i, j in zip(found.i.tolist(), found.j.tolist(), strict=True):
        neighbors[i].append(j)
    if c not in neighbors[b]:
        raise ValueError(f"atoms {b} and {c} are not bonded: expected the middle of a torsion")
    side, reached = {c}, [c]
    while reached:
        at = reached.pop()
        for k in neighbors[at]:
            if k == b and at != c:
                raise ValueError(f"the bond of atoms {b} and {c} is part of a ring")
            if k != b and k not in side:
                side.add(k)
                reached.append(k)
    return sorted(side)
