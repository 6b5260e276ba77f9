"""Time that OpenMM and TorchForce add to a bare evaluation of energy and forces, at 22 atoms.

    python benchmarks/openmm_overhead.py [STRUCTURE.pdb] [--steps 500] [--json FILE]

The network is a TensorNet with random weights, 2 layers, 128 channels, 32 radial functions and a
cutoff of 4.5 A. The step and the bare operator, both with fused kernels, are timed alternately in
one process, and medians are printed.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path

import numpy as np
import torch
from ase import Atoms
from ase.build import molecule

from tensormd.calculators import create_force
from tensormd.calculators.torch_operator import model_tensor
from tensormd.models import EnergyReadout, Potential, TensorNet
from tensormd.models.units import nm_in_angstrom

import openmm  # isort: skip
import openmm.app  # isort: skip


def default_structure() -> Atoms:
    """22 atoms: two ethanols and a formaldehyde, side by side."""
    first, second, third = molecule("CH3CH2OH"), molecule("CH3CH2OH"), molecule("H2CO")
    second.translate([0, 0, 3.4])
    third.translate([0, 3.6, 1.7])
    return first + second + third


def benchmark_potential() -> Potential:
    """The network that every benchmark of this folder runs."""
    torch.manual_seed(0)
    potential = Potential(TensorNet(), EnergyReadout(128), elements=range(1, 19))
    return potential.eval().requires_grad_(False)


def main() -> None:
    """Time both and print the difference."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("structure", nargs="?", help="PDB file; default: 22 atoms made here")
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    atoms = default_structure()
    if arguments.structure:
        pdb = openmm.app.PDBFile(arguments.structure)
        numbers = [atom.element.atomic_number for atom in pdb.topology.atoms()]
        atoms = Atoms(numbers, np.array(pdb.getPositions(asNumpy=True)._value) * nm_in_angstrom)

    potential = benchmark_potential()
    model, numbers = model_tensor(potential), torch.tensor(atoms.numbers)
    molecule_in_space = (
        torch.zeros(3, 3, dtype=torch.float64),
        torch.zeros(3, dtype=torch.bool),
        torch.zeros(1, dtype=torch.float64),
    )
    system = openmm.System()
    for mass in atoms.get_masses():
        system.addParticle(mass)
    system.addForce(create_force(potential, atoms.numbers, engine="torchforce"))
    # The step is too short to change the structure: both evaluate the same number of pairs.
    context = openmm.Context(
        system, openmm.VerletIntegrator(1e-6), openmm.Platform.getPlatformByName("CPU")
    )
    context.setPositions(atoms.positions / nm_in_angstrom)
    integrator = context.getIntegrator()
    generator = np.random.default_rng(0)

    def evaluate() -> None:
        moved = atoms.positions + generator.normal(scale=1e-4, size=atoms.positions.shape)
        torch.ops.tensormd.evaluate(model, numbers, torch.from_numpy(moved), *molecule_in_space)

    times: dict[str, list[float]] = {"bare": [], "step": []}
    for k in range(arguments.steps + 50):
        for name, call in (("bare", evaluate), ("step", lambda: integrator.step(1))):
            began = time.perf_counter()
            call()
            if k >= 50:  # the first calls compile
                times[name].append(1e3 * (time.perf_counter() - began))
    result = {name: statistics.median(values) for name, values in times.items()}
    result["overhead"] = result["step"] - result["bare"]
    result["atoms"] = len(atoms)
    result["threads"] = torch.get_num_threads()
    print(
        f"{len(atoms)} atoms, {result['threads']} threads: bare evaluation "
        f"{result['bare']:.3f} ms, OpenMM step {result['step']:.3f} ms, overhead "
        f"{result['overhead']:+.3f} ms"
    )
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
