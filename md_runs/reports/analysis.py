"""Numbers drawn from a run: drift, pair distances, bonds, superposition."""

from __future__ import annotations

from dataclasses import dataclass
from io import StringIO
from itertools import combinations_with_replacement

import numpy as np
import vesin
from ase import Atoms
from ase.data import chemical_symbols
from ase.io.extxyz import read_xyz
from numpy.typing import NDArray

from ...models.data.structures.bonds import bonds_of
from ..runs.folder import TRAJECTORY, RunFolder
from ..runs.structures import whole_frames

Array = NDArray[np.float64]


def drift_mev_per_atom_ps(time_ps: Array, energy_ev: Array, atoms: int) -> float | None:
    """Slope of a straight line through the energies; None with fewer than three of them."""
    if len(time_ps) < 3:
        return None
    return float(1e3 * np.polyfit(time_ps, energy_ev, 1)[0] / atoms)


def fluctuation_mev_per_atom(time_ps: Array, energy_ev: Array, atoms: int) -> float | None:
    """Standard deviation about that line."""
    if len(time_ps) < 3:
        return None
    line = np.polyval(np.polyfit(time_ps, energy_ev, 1), time_ps)
    return float(1e3 * np.std(energy_ev - line) / atoms)


def read_frames(folder: RunFolder, most: int = 200) -> list[Atoms]:
    """At most this many frames of the trajectory, evenly spread from the first to the last."""
    path = folder.path / TRAJECTORY
    count = sum(1 for _ in whole_frames(path))
    if count == 0:
        raise ValueError(f"{path} holds no frame: the run wrote nothing yet")
    chosen = set(np.linspace(0, count - 1, min(most, count)).round().astype(int).tolist())
    texts = (b"".join(lines) for k, lines in enumerate(whole_frames(path)) if k in chosen)
    return [next(read_xyz(StringIO(text.decode()), index=0)) for text in texts]


@dataclass(frozen=True)
class PairDistances:
    """Frequency of distances between pairs of elements, averaged over frames."""

    centers: Array
    """Middles of the bins, A."""
    curves: dict[str, Array]
    """By pair of elements, such as ``C-H``; the most frequent pairs first."""
    normalized: bool
    """True: g(r), against an ideal gas of the same density; False: pairs per A."""


def pair_distances(
    frames: list[Atoms], longest: float = 8.0, width: float = 0.03, most: int = 6
) -> PairDistances:
    r"""Histogram of the distances of a trajectory.

    Where all three directions are periodic there is a density, and the curve is the radial
    distribution function

    .. math:: g_{ab}(r) = \frac{n_{ab}(r)}{N_a \, 4 \pi r^2 \Delta r \, N_b / V}

    with periodic images as neighbours like any others. A molecule has none: there it is the
    number of pairs per A.
    """
    normalized = bool(frames[0].pbc.all())
    if not normalized:
        spread = max(float(np.ptp(atoms.positions, axis=0).max()) for atoms in frames)
        longest = min(longest, 1.75 * spread + 1.0)
    edges = np.arange(0.0, longest + width, width)
    centers = 0.5 * (edges[1:] + edges[:-1])
    numbers = frames[0].numbers
    counts = {
        pair: np.zeros(len(centers))
        for pair in combinations_with_replacement(np.unique(numbers), 2)
    }
    search = vesin.NeighborList(cutoff=float(edges[-1]), full_list=True)
    for atoms in frames:
        box = atoms.cell.array if atoms.pbc.any() else np.zeros((3, 3))
        i, j, d = search.compute(atoms.positions, box, atoms.pbc, quantities="ijd")
        a, b = numbers[i], numbers[j]
        for (za, zb), histogram in counts.items():
            found = np.histogram(d[(a == za) & (b == zb)], edges)[0].astype(float)
            if normalized:
                density = (numbers == zb).sum() / atoms.get_volume()
                found /= (numbers == za).sum() * density * 4 * np.pi * centers**2 * width
            else:
                found /= width * (2 if za == zb else 1)
            histogram += found / len(frames)
    frequent = sorted(counts, key=lambda pair: -np.prod([(numbers == z).sum() for z in pair]))
    curves = {_pair_name(pair): counts[pair] for pair in frequent if counts[pair].any()}
    return PairDistances(centers, dict(list(curves.items())[:most]), normalized)


def _pair_name(pair: tuple[int, int]) -> str:
    return "-".join(sorted(chemical_symbols[z] for z in pair))


def bonds(atoms: Atoms) -> list[tuple[int, int]]:
    """Pairs i < j close enough for a bond, not through periodic boundaries."""
    found = bonds_of(Atoms(atoms.numbers, atoms.positions))
    return sorted((int(a), int(b)) for a, b in zip(found.i, found.j, strict=True) if a < b)


def coordination(atoms: Atoms) -> NDArray[np.int64]:
    """Number of bonds of each atom, those through periodic boundaries included, (N,)."""
    return np.bincount(bonds_of(atoms).i, minlength=len(atoms))


def superpose(moved: Array, fixed: Array, weights: Array) -> Array:
    """``moved`` (N, 3), rotated and shifted onto ``fixed`` by least squares (Kabsch)."""
    weights = weights / weights.sum()
    a, b = moved - weights @ moved, fixed - weights @ fixed
    u, _, vt = np.linalg.svd((a * weights[:, None]).T @ b)
    turn = np.diag([1.0, 1.0, np.sign(np.linalg.det(u @ vt))])
    return np.asarray(a @ u @ turn @ vt + weights @ fixed)


def rmsd_angstrom(before: Atoms, after: Atoms) -> float:
    """Root mean square displacement of the atoms, a molecule's after superposition."""
    positions = after.positions
    if not before.pbc.any():
        positions = superpose(positions, before.positions, before.get_masses())
    return float(np.sqrt(((positions - before.positions) ** 2).sum(1).mean()))
