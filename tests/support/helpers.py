"""Helpers of the physics tests: small models, small structures, finite differences."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from ase.build import molecule
from numpy.typing import NDArray
from torch import nn

from tensormd.models import (
    TDN,
    EnergyReadout,
    NeighborList,
    Potential,
    Prediction,
    ScalarReadout,
    TensorNet,
    batch_graphs,
)
from tensormd.models.graph import Graph, displacements
from tensormd.models.heads.repulsion import ZBLRepulsion

Array = NDArray[np.float64]
CUTOFF = 4.5
ELEMENTS = (1, 6, 7, 8)
REFERENCES = [0.0, -13.0, 0.0, 0.0, 0.0, 0.0, -1030.0, -1480.0, -2040.0]


class System(NamedTuple):
    """One structure, as `NeighborList.graph` takes it."""

    numbers: Array
    positions: Array
    cell: Array | None = None
    pbc: Any = False
    charge: float = 0.0

    def graph(self, cutoff: float = CUTOFF, skin: float = 0.0) -> Graph:
        return NeighborList(cutoff, skin).graph(*self)

    def moved(self, positions: Array, cell: Array | None = None) -> System:
        return self._replace(positions=positions, cell=self.cell if cell is None else cell)

    def strained(self, strain: Array) -> System:
        deformation = np.eye(3) + strain
        cell = None if self.cell is None else self.cell @ deformation
        return self._replace(positions=self.positions @ deformation, cell=cell)


def make_potential(
    seed: int = 0,
    *,
    head: str = "mlp",
    zbl: float = 0.0,
    gain: float = 1.7,
    scale: float = 3.0,
    references: list[float] | None = None,
    length_unit: str = "angstrom",
    energy_unit: str = "ev",
    **network: Any,
) -> Potential:
    """A small random potential in float64, in evaluation mode.

    ``gain`` multiplies every matrix: at 1 an untrained network hardly sees its neighbours'
    arrangement, and a test of its forces would test little. ``zbl`` is the cutoff of a
    repulsion, 0 for none.
    """
    options = {"channels": 16, "layers": 2, "radial_functions": 8, "cutoff": CUTOFF} | network
    options.setdefault("max_number", 16)
    torch.manual_seed(seed)
    representation = TensorNet(**options)
    irreps = options.get("irreps", "IAS")
    readout = EnergyReadout(options["channels"], head, irreps=irreps)
    with torch.no_grad():
        for module in (representation, readout):
            for parameter in module.parameters():
                if parameter.ndim > 1:
                    parameter *= gain
    potential = Potential(
        representation,
        readout,
        elements=ELEMENTS,
        references=references,
        scale=scale,
        repulsion=ZBLRepulsion(zbl) if zbl else None,
        length_unit=length_unit,
        energy_unit=energy_unit,
    )
    return potential.double().eval()


def predict(potential: nn.Module, system: System, skin: float = 0.0) -> Prediction:
    return potential(system.graph(float(potential.cutoff), skin))


def predict_batch(potential: nn.Module, systems: list[System]) -> Prediction:
    return potential(batch_graphs([s.graph(float(potential.cutoff)) for s in systems]))


def ethanol(seed: int = 1, charge: float = 0.0) -> System:
    """Ethanol, distorted (so that it is chiral and feels forces)."""
    atoms = molecule("CH3CH2OH")
    positions = atoms.positions + 0.1 * np.random.default_rng(seed).normal(size=(len(atoms), 3))
    return System(atoms.numbers, positions, charge=charge)


def crystal(charge: float = 0.0) -> System:
    """Five atoms in a triclinic cell, periodic in all directions."""
    cell = np.array([[5.2, 0.0, 0.0], [1.1, 4.9, 0.0], [-0.7, 0.9, 5.6]])
    scaled = np.array(
        [
            [0.03, 0.11, 0.02],
            [0.24, 0.21, 0.17],
            [0.52, 0.47, 0.61],
            [0.71, 0.83, 0.39],
            [0.44, 0.08, 0.86],
        ]
    )
    return System(np.array([6, 1, 8, 7, 6]), scaled @ cell, cell, True, charge)


def slab() -> System:
    """The crystal, periodic in two directions."""
    return crystal()._replace(pbc=[True, True, False])


def tiny(atoms: int) -> System:
    """One or two atoms in a skewed cell far smaller than the cutoff: mostly self-images."""
    cell = np.array([[2.4, 0.0, 0.0], [1.0, 2.1, 0.0], [-0.8, 0.7, 2.6]])
    positions = np.array([[0.1, 0.2, 0.3], [1.1, 1.2, 1.5]])[:atoms]
    return System(np.array([6, 8])[:atoms], positions, cell, True)


def rotation(seed: int = 0) -> Array:
    """A random proper rotation Q; rows rotate as ``x @ Q.T``."""
    q, r = np.linalg.qr(np.random.default_rng(seed).normal(size=(3, 3)))
    q = q * np.sign(np.diag(r))
    return q * np.linalg.det(q)


def supercell(system: System, repeats: tuple[int, int, int]) -> System:
    """Copies of the cell one after the other, each with its atoms in the order given."""
    assert system.cell is not None
    images = np.array(list(np.ndindex(*repeats))) @ system.cell
    positions = (images[:, None] + system.positions).reshape(-1, 3)
    cell = system.cell * np.array(repeats)[:, None]
    return system._replace(
        numbers=np.tile(system.numbers, len(images)), positions=positions, cell=cell
    )


def gap_to_cutoff(system: System, cutoff: float = CUTOFF) -> float:
    """How far the distance nearest to the cutoff is from it."""
    distances = displacements(system.graph(cutoff + 0.5)).norm(dim=1)
    return float((distances - cutoff).abs().min()) if len(distances) else np.inf


# Fourth order: f' = (8 (f(h) - f(-h)) - (f(2h) - f(-2h))) / 12 h
_STENCIL = ((-2, 1.0), (-1, -8.0), (1, 8.0), (2, -1.0))


def _derivatives(
    potential: nn.Module, paths: list[Any], step: float, quantity: str = "energy"
) -> Array:
    """d(quantity)/dx at x = 0 of several ``path(x) -> System``, all in one batch."""
    systems = [path(k * step) for path in paths for k, _ in _STENCIL]
    values = getattr(predict_batch(potential, systems), quantity).detach().numpy()
    weights = np.array([weight for _, weight in _STENCIL])
    return weights @ values.reshape(len(paths), len(_STENCIL), -1) / (12 * step)


def _moves(system: System) -> list[Any]:
    """``path(x)`` that moves one atom along one axis, for all of them."""

    def path(atom: int, axis: int) -> Any:
        direction = np.zeros_like(system.positions)
        direction[atom, axis] = 1.0
        return lambda x: system.moved(system.positions + x * direction)

    return [path(a, k) for a in range(len(system.numbers)) for k in range(3)]


def numerical_forces(potential: nn.Module, system: System, step: float = 4e-4) -> Array:
    """-dE/dR by fourth-order central differences, (N, 3)."""
    return -_derivatives(potential, _moves(system), step).reshape(-1, 3)


def numerical_hessian(potential: nn.Module, system: System, step: float = 4e-4) -> Array:
    """-dF/dR by fourth-order central differences, (3N, 3N)."""
    return -_derivatives(potential, _moves(system), step, "forces")


def numerical_virial(potential: nn.Module, system: System, step: float = 3e-4) -> Array:
    """-dE/dstrain by fourth-order central differences along symmetric strains, (3, 3)."""

    def path(a: int, b: int) -> Any:
        unit = np.zeros((3, 3))
        unit[a, b] += 0.5
        unit[b, a] += 0.5
        return lambda x: system.strained(x * unit)

    pairs = [(a, b) for a in range(3) for b in range(3)]
    return -_derivatives(potential, [path(a, b) for a, b in pairs], step).reshape(3, 3)


def relative_error(a: Any, b: Any) -> float:
    """Largest difference over the largest magnitude; fails where there is nothing to compare."""
    a, b = (np.asarray(torch.as_tensor(x).detach().cpu(), dtype=float) for x in (a, b))
    assert a.shape == b.shape
    size = float(np.abs(b).max())
    assert size > 1e-3, f"nothing to compare: the largest magnitude is {size}"
    return float(np.abs(a - b).max()) / size


def crossing(potential: nn.Module, distance: float) -> System:
    """Ethanol, and a carbon atom at a distance from its rightmost atom alone."""
    base = ethanol()
    outermost = int(base.positions[:, 0].argmax())
    guest = base.positions[outermost] + np.array([distance, 0.0, 0.0])
    others = np.delete(base.positions, outermost, axis=0)
    assert np.linalg.norm(others - guest, axis=1).min() > float(potential.cutoff) + 0.011
    return System(np.append(base.numbers, 6), np.vstack([base.positions, guest]))


def jump(potential: nn.Module, gap: float) -> tuple[float, float]:
    """Change of energy (eV) and forces (eV/A) from just inside to just outside the cutoff."""
    cutoff = float(potential.cutoff)
    inside = predict(potential, crossing(potential, cutoff - gap))
    outside = predict(potential, crossing(potential, cutoff + gap))
    assert outside.forces[-1].abs().max() == 0
    energy = abs(inside.energy - outside.energy).item()
    return energy, (inside.forces - outside.forces).abs().max().item()


def make_tdn(
    seed: int = 0,
    *,
    gain: float = 1.4,
    scale: float = 3.0,
    zbl: float = 0.0,
    references: list[float] | None = None,
    length_unit: str = "angstrom",
    energy_unit: str = "ev",
    **network: Any,
) -> Potential:
    """A small random TDN in float64: no weight is at its initial 0 or 1."""
    options = {"channels": 16, "layers": 2, "heads": 4, "radial_functions": 8, "max_number": 16}
    options |= {"radial_widths": (16, 16), "cutoff": CUTOFF} | network
    torch.manual_seed(seed)
    representation, readout = TDN(**options), ScalarReadout(options["channels"])
    with torch.no_grad():
        for module in (representation, readout):
            for name, parameter in module.named_parameters():
                if parameter.ndim > 1:
                    parameter *= gain
                elif not name.startswith("radial"):
                    parameter += 0.2 * torch.randn_like(parameter)
        # Wide: with narrow ones a random network is far steeper than a trained one.
        representation.radial.std.uniform_(0.4, 1)
    return (
        Potential(
            representation,
            readout,
            elements=ELEMENTS,
            references=references,
            scale=scale,
            repulsion=ZBLRepulsion(zbl) if zbl else None,
            length_unit=length_unit,
            energy_unit=energy_unit,
        )
        .double()
        .eval()
    )
