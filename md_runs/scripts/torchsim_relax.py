"""Relax many molecules together in torch-sim, and for comparison one at a time in ASE.

python torchsim_relax.py molecules.xyz --model organic --ase

Without a file it makes 200 distorted molecules. Needs Python 3.12 and tensormd[torchsim].
"""

import argparse
import time

import torch
import torch_sim as ts
from ase.build import molecule
from ase.io import read, write
from ase.optimize import FIRE
from torch_sim.autobatching import InFlightAutoBatcher

from tensormd.calculators import PotentialCalculator
from tensormd.calculators.torchsim import TensormdModel

NAMES = ("CH3CH2OH", "C6H6", "CH3NO2", "C4H4S", "CH3CH2NH2", "CH3COOH", "C5H5N", "isobutane")

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("structures", nargs="?", help="file of structures; default: molecules of ASE")
parser.add_argument("--model", default="organic", help="checkpoint or registry name")
parser.add_argument("--number", type=int, default=200, help="number of molecules without a file")
parser.add_argument("--fmax", type=float, default=0.02, help="largest force at the end, eV/A")
parser.add_argument("--steps", type=int, default=500, help="maximum number of steps")
parser.add_argument("--atoms", type=int, default=5000, help="largest number of atoms in flight")
parser.add_argument("--ase", action="store_true", help="relax them one at a time in ASE too")
arguments = parser.parse_args()

if arguments.structures:
    structures = read(arguments.structures, ":")
else:
    structures = [molecule(NAMES[k % len(NAMES)]) for k in range(arguments.number)]
    for k, atoms in enumerate(structures):
        atoms.rattle(0.03, seed=k)

model = TensormdModel(arguments.model)
model(ts.initialize_state(structures[:1], model.device, model.dtype))  # compiles once
start = time.perf_counter()
converged = ts.generate_force_convergence_fn(arguments.fmax)
state = ts.optimize(
    structures,
    model,
    optimizer=ts.Optimizer.fire,
    convergence_fn=converged,
    max_steps=arguments.steps,
    # Finished molecules leave, and waiting ones take their place.
    autobatcher=InFlightAutoBatcher(
        model, memory_scales_with="n_atoms", max_memory_scaler=arguments.atoms
    ),
    init_kwargs={"cell_filter": None},
)
together = time.perf_counter() - start
done = int(torch.count_nonzero(converged(state)))
print(f"torch-sim: {done} of {len(structures)} below {arguments.fmax} eV/A in {together:.1f} s")
relaxed = ts.io.state_to_atoms(state)
for atoms, energy in zip(relaxed, state.energy.tolist(), strict=True):
    atoms.info["energy"] = energy
write("relaxed.extxyz", relaxed)

if arguments.ase:
    calculator = PotentialCalculator(arguments.model)
    start, largest = time.perf_counter(), 0.0
    for atoms, energy in zip(structures, state.energy.tolist(), strict=True):
        atoms.calc = calculator
        FIRE(atoms, logfile=None).run(fmax=arguments.fmax, steps=arguments.steps)
        largest = max(largest, abs(atoms.get_potential_energy() - energy))
    alone = time.perf_counter() - start
    print(f"ASE: one at a time in {alone:.1f} s, {alone / together:.1f} times as long")
    print(f"largest difference of two energies {1e3 * largest:.2f} meV")
