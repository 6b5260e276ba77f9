"""Molecular dynamics of a batch in torch-sim: copies of a structure, each with its own velocities.

python torchsim_md.py molecule.xyz --model organic --copies 20 --steps 2000

Langevin dynamics at one temperature. Needs Python 3.12 and tensormd[torchsim].
"""

import argparse

import torch
import torch_sim as ts
from ase.build import molecule
from ase.io import read, write
from torch_sim.units import MetalUnits

from tensormd.calculators.torchsim import TensormdModel

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("structure", nargs="?", help="structure file; default: ethanol")
parser.add_argument("--model", default="organic", help="checkpoint or registry name")
parser.add_argument("--copies", type=int, default=20)
parser.add_argument("--steps", type=int, default=2000, help="steps of 0.5 fs")
parser.add_argument("--temperature", type=float, default=300.0, help="K")
parser.add_argument("--interval", type=int, default=100, help="steps between two frames")
parser.add_argument("--seed", type=int, default=1)
arguments = parser.parse_args()

atoms = read(arguments.structure) if arguments.structure else molecule("CH3CH2OH")
model = TensormdModel(arguments.model)
state = ts.initialize_state([atoms] * arguments.copies, model.device, model.dtype)
state.rng = arguments.seed
heat = arguments.temperature * MetalUnits.temperature
state = ts.nvt_langevin_init(state, model, kT=torch.tensor(heat, dtype=model.dtype))
for step in range(1, arguments.steps + 1):
    state = ts.nvt_langevin_step(state, model, dt=0.5e-3 * MetalUnits.time, kT=heat)
    if step % arguments.interval == 0:
        kelvin = (
            ts.calc_kT(masses=state.masses, momenta=state.momenta, system_idx=state.system_idx)
            / MetalUnits.temperature
        )
        print(f"step {step}  mean energy {state.energy.mean():.4f} eV  {kelvin.mean():.0f} K")
        write("batch.extxyz", ts.io.state_to_atoms(state), append=step > arguments.interval)
