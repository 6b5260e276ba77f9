"""Geometries of molecules and complexes, without labels: force field, network, by hand."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rdkit import Chem
from rdkit.Chem import AllChem, rdMolTransforms

Array = NDArray[np.float64]
Forces = Callable[[Sequence["Geometry"]], list[Array]]
"""Forces of several geometries, (N, 3) each, eV/Angstrom."""

BOLTZMANN = 8.617333e-5  # eV/K
KCAL = 0.0433641  # eV
ACCELERATION = 9.64853e-3  # (eV/A)/u in A/fs^2
# Configurations alone are wanted: with equal masses a step may be longer.
MASS, STEP, FRICTION = 12.0, 3.0, 0.02  # u, fs, 1/fs
LARGEST_FORCE = 15.0  # eV/A
COVALENT = np.zeros(18)
COVALENT[[1, 6, 7, 8, 9, 16, 17]] = [0.31, 0.76, 0.71, 0.66, 0.57, 1.05, 1.02]
VAN_DER_WAALS = np.zeros(18)
VAN_DER_WAALS[[1, 6, 7, 8, 9, 16, 17]] = [1.1, 1.7, 1.55, 1.52, 1.47, 1.8, 1.75]
ROTATABLE = Chem.MolFromSmarts("[!$(*#*)&!D1]-&!@[!$(*#*)&!D1]")


@dataclass(frozen=True)
class Geometry:
    """Atoms in space, and where they come from."""

    numbers: NDArray[np.int64]
    """(N,) atomic numbers."""
    positions: Array
    """(N, 3), Angstrom."""
    tag: str
    """How it was made."""
    molecule: str
    """Number of the molecule, or of both."""

    def moved(self, positions: Array, tag: str) -> Geometry:
        """The same atoms elsewhere."""
        return replace(self, positions=positions, tag=tag)

    @property
    def centred(self) -> Array:
        """Positions about their mean."""
        return self.positions - self.positions.mean(0)


def sane(geometry: Geometry) -> bool:
    """Whether no two atoms are closer than 0.6 of a bond, and all are in one place."""
    x, radii = geometry.positions, COVALENT[geometry.numbers]
    if not np.isfinite(x).all() or np.abs(geometry.centred).max() > 40:
        return False
    distances = np.linalg.norm(x[:, None] - x[None], axis=-1)
    np.fill_diagonal(distances, np.inf)
    return bool((distances > 0.6 * (radii[:, None] + radii[None])).all())


def langevin(
    forces: Callable[[list[Array]], list[Array]],
    positions: list[Array],
    temperatures: Sequence[float] | Array,
    steps: int,
    rng: np.random.Generator,
) -> list[Array]:
    """Positions after some steps of BAOAB Langevin dynamics of several molecules."""
    decay = np.exp(-FRICTION * STEP)
    thermal = [np.sqrt(BOLTZMANN * t * ACCELERATION / MASS) for t in temperatures]
    kick = 0.5 * STEP * ACCELERATION / MASS

    def clipped(x: list[Array]) -> list[Array]:
        return [np.clip(f, -LARGEST_FORCE, LARGEST_FORCE) for f in forces(x)]

    x = list(positions)
    v = [rng.normal(size=p.shape) * s for p, s in zip(x, thermal, strict=True)]
    f = clipped(x)
    for _ in range(steps):
        for k, s in enumerate(thermal):
            v[k] = v[k] + kick * f[k]
            x[k] = x[k] + 0.5 * STEP * v[k]
            noise = rng.normal(size=v[k].shape)
            v[k] = decay * v[k] + np.sqrt(1 - decay**2) * s * noise
            x[k] = x[k] + 0.5 * STEP * v[k]
        f = clipped(x)
        v = [a + kick * b for a, b in zip(v, f, strict=True)]
    return x


def relaxed(
    forces: Forces, geometries: Sequence[Geometry], steps: int, tag: str
) -> list[Geometry]:
    """Geometries some steps further down along the forces, 0.05 Angstrom a step at most."""
    found = list(geometries)
    for _ in range(steps):
        for k, f in enumerate(forces(found)):
            move = 0.01 * f
            length = np.linalg.norm(move, axis=1, keepdims=True)
            move *= np.minimum(1, 0.05 / np.maximum(length, 1e-9))
            found[k] = found[k].moved(found[k].positions + move, tag)
    return found


class Conformer:
    """A molecule in space and its force field (MMFF, or UFF where that has no parameters).

    Raises
    ------
    ValueError
        If RDKit finds no conformer or has no force field.
    """

    def __init__(self, smiles: str, name: str, seed: int) -> None:
        self.molecule: Any = Chem.AddHs(Chem.MolFromSmiles(smiles))
        parameters = AllChem.ETKDGv3()
        parameters.randomSeed, parameters.maxIterations = seed, 20
        if AllChem.EmbedMolecule(self.molecule, parameters) != 0:
            raise ValueError(f"{smiles}: no conformer")
        properties = AllChem.MMFFGetMoleculeProperties(self.molecule)
        if properties is not None:
            self.field = AllChem.MMFFGetMoleculeForceField(self.molecule, properties)
        elif AllChem.UFFHasAllMoleculeParams(self.molecule):
            self.field = AllChem.UFFGetMoleculeForceField(self.molecule)
        else:
            raise ValueError(f"{smiles}: no force field")
        self.field.Minimize(maxIts=100)
        numbers = np.array([a.GetAtomicNum() for a in self.molecule.GetAtoms()])
        self.geometry = Geometry(
            numbers, self.molecule.GetConformer().GetPositions(), "minimum", name
        )

    def _forces(self, positions: list[Array]) -> list[Array]:
        # Without both calls CalcGrad gives the gradient of other positions.
        self.molecule.GetConformer().SetPositions(np.ascontiguousarray(positions[0]))
        self.field.Initialize()
        return [-KCAL * np.array(self.field.CalcGrad()).reshape(-1, 3)]

    def heated(
        self, start: Geometry, temperature: float, steps: int, rng: np.random.Generator
    ) -> Geometry:
        """Langevin dynamics with the force field."""
        [x] = langevin(self._forces, [start.positions], [temperature], steps, rng)
        return start.moved(x, f"field{temperature:.0f}")

    def twisted(self, rng: np.random.Generator) -> Geometry | None:
        """The minimum with one to three bonds turned by any angle; None without such a bond."""
        bonds = self.molecule.GetSubstructMatches(ROTATABLE)
        if not bonds:
            return None
        copy = Chem.Mol(self.molecule)
        conformer = copy.GetConformer()
        conformer.SetPositions(self.geometry.positions)
        for b, c in rng.permutation(bonds)[: rng.integers(1, 4)].tolist():
            a = next(n.GetIdx() for n in copy.GetAtomWithIdx(b).GetNeighbors() if n.GetIdx() != c)
            d = next(n.GetIdx() for n in copy.GetAtomWithIdx(c).GetNeighbors() if n.GetIdx() != b)
            rdMolTransforms.SetDihedralDeg(conformer, a, b, c, d, rng.uniform(0, 360))
        return self.geometry.moved(conformer.GetPositions(), "twisted")

    def stretched(self, rng: np.random.Generator) -> Geometry:
        """The minimum with a bond outside of rings 0.85 to 1.5 times as long, or as noise does."""
        x = self.geometry.positions
        bonds = [b for b in self.molecule.GetBonds() if not b.IsInRing()]
        if bonds and rng.random() < 0.5:
            bond = bonds[rng.integers(len(bonds))]
            a, b = bond.GetBeginAtomIdx(), bond.GetEndAtomIdx()
            halves = Chem.FragmentOnBonds(self.molecule, [bond.GetIdx()], addDummies=False)
            side = next(f for f in Chem.GetMolFrags(halves) if b in f)
            y = x.copy()
            y[list(side)] += (x[b] - x[a]) * (rng.uniform(0.85, 1.5) - 1)
            return self.geometry.moved(y, "stretched")
        return distorted(self.geometry, rng)


def distorted(geometry: Geometry, rng: np.random.Generator) -> Geometry:
    """A geometry compressed, expanded, or with noise."""
    kind = rng.integers(3)
    if kind == 2:
        noise = rng.normal(size=geometry.positions.shape) * rng.uniform(0.03, 0.10)
        return geometry.moved(geometry.positions + noise, "noise")
    factor = rng.uniform(0.91, 0.98) if kind == 0 else rng.uniform(1.02, 1.09)
    return geometry.moved(geometry.centred * factor, "compressed" if kind == 0 else "expanded")


def _rotation(rng: np.random.Generator) -> Array:
    q, r = np.linalg.qr(rng.normal(size=(3, 3)))
    q *= np.sign(np.diag(r))
    return q if np.linalg.det(q) > 0 else -q


def _placed(one: Geometry, other: Geometry, axis: Array, closeness: float) -> Geometry:
    """Both, with the closest contact at a multiple of the sum of van der Waals radii."""
    a, b = one.centred, other.centred
    radii = VAN_DER_WAALS[one.numbers][:, None] + VAN_DER_WAALS[other.numbers][None]
    low, high = 0.0, 60.0
    for _ in range(30):
        middle = 0.5 * (low + high)
        distances = np.linalg.norm(a[:, None] - (b + middle * axis)[None], axis=-1)
        if (distances / radii).min() < closeness:
            low = middle
        else:
            high = middle
    return Geometry(
        np.concatenate([one.numbers, other.numbers]),
        np.concatenate([a, b + high * axis]),
        "dimer",
        f"{one.molecule}+{other.molecule}",
    )


def dimers(one: Geometry, other: Geometry, rng: np.random.Generator) -> list[Geometry]:
    """One pair at three distances: within contact, near it, and up to three times as far."""
    axis = rng.normal(size=3)
    axis /= np.linalg.norm(axis)
    a, b = (g.moved(g.centred @ _rotation(rng), g.tag) for g in (one, other))
    ranges = ((0.72, 0.95), (0.92, 1.15), (1.15, 2.8))
    return [_placed(a, b, axis, rng.uniform(*r)) for r in ranges]


def cluster(parts: Sequence[Geometry], rng: np.random.Generator) -> Geometry:
    """Molecules put one after the other onto the others at contact."""
    whole = parts[0]
    for part in parts[1:]:
        axis = rng.normal(size=3)
        axis /= np.linalg.norm(axis)
        turned = part.moved(part.centred @ _rotation(rng), part.tag)
        whole = _placed(whole, turned, axis, rng.uniform(0.75, 1.0))
    return replace(whole, tag="cluster")
