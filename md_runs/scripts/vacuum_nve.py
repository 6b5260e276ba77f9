"""Constant-energy dynamics of one molecule in vacuum, with the potential as an OpenMM force.

python vacuum_nve.py --model ethanol --steps 20000
"""

import argparse
import sys

from ase.build import molecule

from tensormd.calculators import create_force  # imports torch, which must precede openmm

import openmm  # isort: skip
from openmm import app, unit  # isort: skip

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--model", default="ethanol", help="checkpoint or registry name")
parser.add_argument("--molecule", default="CH3CH2OH", help="a molecule of ase.build.molecule")
parser.add_argument("--steps", type=int, default=20000, help="steps of 0.5 fs")
arguments = parser.parse_args()

atoms = molecule(arguments.molecule)
topology = app.Topology()
residue = topology.addResidue("MOL", topology.addChain())
system = openmm.System()
for symbol, mass in zip(atoms.get_chemical_symbols(), atoms.get_masses(), strict=True):
    topology.addAtom(symbol, app.Element.getBySymbol(symbol), residue)
    system.addParticle(mass)
system.addForce(create_force(arguments.model, topology))

integrator = openmm.VerletIntegrator(0.5 * unit.femtosecond)
simulation = app.Simulation(topology, system, integrator)
simulation.context.setPositions(atoms.positions * unit.angstrom)
simulation.minimizeEnergy(maxIterations=100)
simulation.context.setVelocitiesToTemperature(300 * unit.kelvin, 1)
simulation.reporters.append(app.DCDReporter("vacuum_nve.dcd", 20))
simulation.reporters.append(
    app.StateDataReporter(
        sys.stdout,
        max(arguments.steps // 10, 1),
        step=True,
        totalEnergy=True,
        temperature=True,
        speed=True,
    )
)
simulation.step(arguments.steps)
