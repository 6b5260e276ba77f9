"""Constant pressure and temperature for a periodic box, from any file that ASE reads.

python periodic_box.py crystal.cif --model mine.ckpt --steps 20000

OpenMM expects box vectors in reduced, lower-triangular form: `reduced` converts ASE's cell.
"""

import argparse
import sys

import numpy as np
from ase.io import read

from tensormd.calculators import create_force  # imports torch, which must precede openmm
from tensormd.md_runs.md.openmm_system import reduced

import openmm  # isort: skip
from openmm import app, unit  # isort: skip

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("structure", help="structure file with a cell")
parser.add_argument("--model", required=True, help="checkpoint or registry name")
parser.add_argument("--temperature", type=float, default=300.0, help="temperature, K")
parser.add_argument("--pressure", type=float, default=1.0, help="pressure, bar")
parser.add_argument("--steps", type=int, default=20000, help="steps of 0.5 fs")
arguments = parser.parse_args()

atoms = reduced(read(arguments.structure))
box = np.array(atoms.cell) * unit.angstrom

topology = app.Topology()
topology.setPeriodicBoxVectors(box)
residue = topology.addResidue("BOX", topology.addChain())
system = openmm.System()
system.setDefaultPeriodicBoxVectors(*box)
for symbol, mass in zip(atoms.get_chemical_symbols(), atoms.get_masses(), strict=True):
    topology.addAtom(symbol, app.Element.getBySymbol(symbol), residue)
    system.addParticle(mass)
system.addForce(create_force(arguments.model, topology, periodic=True))
temperature = arguments.temperature * unit.kelvin
system.addForce(openmm.MonteCarloBarostat(arguments.pressure * unit.bar, temperature))

integrator = openmm.LangevinMiddleIntegrator(
    temperature, 1 / unit.picosecond, 0.5 * unit.femtosecond
)
simulation = app.Simulation(topology, system, integrator)
simulation.context.setPositions(atoms.positions * unit.angstrom)
simulation.context.setVelocitiesToTemperature(temperature, 1)
simulation.reporters.append(app.DCDReporter("periodic_box.dcd", 100))
simulation.reporters.append(
    app.StateDataReporter(
        sys.stdout,
        max(arguments.steps // 10, 1),
        step=True,
        potentialEnergy=True,
        temperature=True,
        volume=True,
        speed=True,
    )
)
simulation.step(arguments.steps)
